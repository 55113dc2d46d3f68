"""Counts scaled cell by cell, count / total * target_sum, refusing what is no count."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from corrmask_fast.errors import InputError, brief
from corrmask_fast.threads import run_ranges

if TYPE_CHECKING:
    from collections.abc import Iterator

    from corrmask_fast.cells.counts import Rows
    from corrmask_fast.cells.sources import Source

MIN_CELLS_A_THREAD = 64  # a thread is not worth waking for fewer


class ScaledCells(NamedTuple):
    """Cells with the genes they express: cell r's from ``indptr[r]`` on, as many as ``lengths[r]``."""

    indptr: np.ndarray  # (n + 1,) int64
    lengths: np.ndarray  # (n,) int64
    tokens: np.ndarray  # int32, ascending in each cell
    values: np.ndarray  # float64: count / total * target_sum


def scaled_chunks(source: Source, n_tokens: int) -> Iterator[ScaledCells]:
    """Yield the cells of an input that are kept, scaled, chunk by chunk; refuses what is no count."""
    from corrmask_fast.kernels.tokenize import OK, scale_rows

    token_of_column, reading, none = source.genes.counting_tokens(), source.reading, np.empty(0, np.float64)
    for chosen, rows in source.counts.chunks(source.kept):
        size, lengths = rows.counts.size, np.zeros(chosen.size, np.int64)
        cells = ScaledCells(rows.indptr, lengths, np.empty(size, np.int32), np.empty(size, np.float64))
        totals = none if source.totals is None else source.totals[chosen]
        given = (rows.indptr, rows.columns, rows.counts, token_of_column, n_tokens, reading.target_sum)
        scale = partial(scale_rows, *given, totals, reading.allow_fractional, *cells[1:])
        for code, row, position in run_ranges(scale, chosen.size, MIN_CELLS_A_THREAD):
            if code != OK:
                raise no_count(source, rows, chosen, code, row, position)
        yield cells


def no_count(source: Source, rows: Rows, chosen: np.ndarray, code: int, row: int, position: int) -> InputError:
    """Return the error of a row that is no cell: what was found instead of a count, and where counts may be.

    ``code`` and ``position`` are those of kernels/encode.py; ``chosen`` are the numbers of the rows' cells.
    """
    from corrmask_fast.kernels.encode import BAD_TOTAL

    counts, fractional = source.counts, source.reading.allow_fractional
    name = brief(counts.obs.index()[chosen[row]])
    if code == BAD_TOTAL:
        total = None if source.totals is None else source.totals[chosen[row]]
        of = f"cell {name} of {counts.name}"
        if total is None:
            return InputError(f"the counts of {of} add up to more than a float64 holds; give raw counts")
        return InputError(
            f"a cell's total must be a finite number above 0; {of} has {total}; give another column, or none (total)"
        )
    elsewhere = [f"layer={other!r}" for other in counts.layers[:5] if other != counts.layer]
    fixes = [f"try {' or '.join(elsewhere)}" if elsewhere else "the file has no other layer: go back to the raw counts"]
    rule = "numbers" if fractional else "whole numbers"
    looks = _looks_like(rows)
    if looks is None and not fractional and np.isfinite(rows.counts).all() and rows.counts.min() >= 0:
        fixes.insert(0, "allow fractions if these are corrected or estimated counts (allow_fractional)")
    value, gene = str(rows.stored[position]).removesuffix(".0"), brief(counts.var.index()[rows.columns[position]])
    return InputError(
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
