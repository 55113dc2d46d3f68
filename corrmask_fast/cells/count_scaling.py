"""Counts scaled cell by cell, count / total * target_sum, refusing what is no count."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from corrmask_fast.errors import InputError, brief
from corrmask_fast.progress import progress_bar
from corrmask_fast.threads import run_ranges

if TYPE_CHECKING:
    from collections.abc import Iterator

    from corrmask_fast.cells.counts import Counts, Rows
    from corrmask_fast.cells.gene_matching import GeneMatch

MIN_CELLS_A_THREAD = 64  # a thread is not worth waking for fewer


@dataclass(frozen=True)
class Scaling:
    """How counts become values."""

    target_sum: float = 10_000
    fractional: bool = False  # whether counts may be fractions
    totals: np.ndarray | None = None  # (n_cells,) float64; None: the sum of a cell's counts
    kept: np.ndarray | None = None  # (n_cells,) bool: which cells; None: all


class ScaledCells(NamedTuple):
    """Cells with the genes they express: cell r's from ``indptr[r]`` on, as many as ``lengths[r]``."""

    indptr: np.ndarray  # (n + 1,) int64
    lengths: np.ndarray  # (n,) int64
    tokens: np.ndarray  # int32, ascending in each cell
    values: np.ndarray  # float64: count / total * target_sum


def scaled_chunks(
    counts: Counts, genes: GeneMatch, n_tokens: int, scaling: Scaling, what: str, *, progress: bool
) -> Iterator[tuple[np.ndarray, ScaledCells]]:
    """Yield (numbers of cells, these scaled), chunk by chunk, with a progress bar; refuses what is no count."""
    from corrmask_fast.kernels.tokenize import OK, scale_rows

    n_cells = counts.n_cells if scaling.kept is None else int(np.count_nonzero(scaling.kept))
    none = np.empty(0, np.float64)
    with progress_bar(what, n_cells, "cell", shown=progress) as bar:
        for chosen, rows in counts.chunks(scaling.kept):
            numbers = rows.counts if genes.counted is None else np.where(genes.counted[rows.columns], rows.counts, 0.0)
            lengths = np.zeros(chosen.size, np.int64)
            cells = ScaledCells(
                rows.indptr, lengths, np.empty(numbers.size, np.int32), np.empty(numbers.size, np.float64)
            )
            totals = none if scaling.totals is None else scaling.totals[chosen]
            given = (rows.indptr, rows.columns, numbers, genes.token_of_column, n_tokens, scaling.target_sum)
            scale = partial(scale_rows, *given, totals, scaling.fractional, *cells[1:])
            for code, row, position in run_ranges(scale, chosen.size, MIN_CELLS_A_THREAD):
                if code != OK:
                    raise InputError(_no_count(counts, rows, scaling, code, int(chosen[row]), position))
            yield chosen, cells
            bar.update(chosen.size)


def _no_count(counts: Counts, rows: Rows, scaling: Scaling, code: int, cell: int, position: int) -> str:
    """Return the message: what was found instead of a count, what it looks like, and where counts may be."""
    from corrmask_fast.kernels.tokenize import BAD_TOTAL

    name = brief(counts.obs.index()[cell])
    if code == BAD_TOTAL:
        total = None if scaling.totals is None else scaling.totals[cell]
        of = f"cell {name} of {counts.name}"
        if total is None:
            return f"the counts of {of} add up to more than a float64 holds; give counts"
        return f"a cell's total must be a finite number above 0; {of} has {total}; give another column, or none (total)"
    elsewhere = [f"layer={other!r}" for other in counts.layers[:5] if other != counts.layer]
    fixes = [f"try {' or '.join(elsewhere)}" if elsewhere else "the file has no other layer: go back to the raw counts"]
    rule = "numbers" if scaling.fractional else "whole numbers"
    looks = _looks_like(rows)
    if looks is None and not scaling.fractional and np.isfinite(rows.counts).all() and rows.counts.min() >= 0:
        fixes.insert(0, "allow fractions if these are corrected or estimated counts (allow_fractional)")
    value, gene = str(rows.stored[position]).removesuffix(".0"), brief(counts.var.index()[rows.columns[position]])
    return (
        f"counts must be {rule} >= 0; {counts.name} has {value} in cell {name}, gene {gene}"
        f"{f': this looks {looks}' if looks else ''}. Tokenising needs raw counts; {'; '.join(fixes)}"
    )


def _looks_like(rows: Rows) -> str | None:
    """Return what was done to these counts, or None if unsure."""
    counts = rows.counts
    if not np.isfinite(counts).all():
        return None
    if counts.min() < 0:
        return "scaled (z-scores)" if np.mean(counts != np.floor(counts)) > 0.5 else None
    if counts.max() < 50:  # as logarithms are
        unlogged = np.expm1(counts)
        if _one_total(rows.indptr, unlogged):
            return "normalised and log-transformed"
        if np.abs(unlogged - np.rint(unlogged)).max() < 1e-3 * max(1.0, unlogged.max()) ** 0.5:
            return "log-transformed"
    return "normalised" if _one_total(rows.indptr, counts) else None


def _one_total(indptr: np.ndarray, values: np.ndarray) -> bool:
    """Return whether all cells that have values have the same total."""
    cell = np.repeat(np.arange(indptr.size - 1), np.diff(indptr))
    totals = np.bincount(cell, values, indptr.size - 1)
    totals = totals[totals > 0]
    return totals.size > 1 and np.ptp(totals) < 1e-3 * totals.max()
