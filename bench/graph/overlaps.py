"""Pairs a second of the overlap step on one core, and SciPy's on some of the same pairs.

The pairs are those that a build over all cells and genes compares: each gene's 50 strongest partners, here down to
abs(rho) 0.05, where small overlaps are found too. A build writes each common gene down once for all of its partners,
and so the pairs of one size are those of the common genes that have most of them.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np
from scipy.stats import spearmanr

from corrmask_fast import set_num_threads
from corrmask_fast.graph.build.records import Pairs
from corrmask_fast.threads import one_blas_thread
from graph import shapes
from graph.stages import STAGES, read_columns

if TYPE_CHECKING:
    from pathlib import Path

    from corrmask_fast import Corpus
    from corrmask_fast.graph.build.records import GeneColumns

N_NEIGHBORS, RHO_MIN = 50, 0.2  # the defaults of build_dependency_graph
WEAKEST = 0.05


def measure(corpus: Corpus, path: Path, what: dict) -> list[dict]:
    """One row for each overlap asked for, and one for all pairs of a build."""
    columns = read_columns(corpus, shapes.MIN_PRESENCE)
    pairs, overlap = compared_pairs(columns, path.with_name(f"{path.stem}-pairs.npz"))
    common = np.where(columns.presence[pairs.u] >= columns.presence[pairs.v], pairs.u, pairs.v)
    cases = {f"overlap {size}": near(common, overlap, size, what["pairs"]) for size in what["overlaps"]}
    cases["overlaps of a build"] = np.flatnonzero(np.abs(pairs.rho) >= RHO_MIN)
    set_num_threads(1)
    rows = []
    for case, some in cases.items():
        if some.size == 0:
            continue
        chosen = Pairs(pairs.u[some], pairs.v[some], pairs.rho[some])
        seconds = []
        for _ in range(what["repeats"]):
            began = time.perf_counter()
            _, rho = STAGES.correlate_pairs(columns, chosen, 1)
            seconds.append(time.perf_counter() - began)
        of = (
            f"{some.size} pairs of {np.unique(common[some]).size} common genes, mean overlap {overlap[some].mean():.0f}"
        )
        rows.append(
            {"case": case, "pairs": some.size, "ours": some.size / min(seconds), "note": of}
            | scipy_overlaps(columns, chosen, rho, what["scipy_pairs"])
        )
    return rows


def compared_pairs(columns: GeneColumns, kept: Path) -> tuple[Pairs, np.ndarray]:
    """Return the pairs that a build compares, and their overlaps: found once, then read."""
    if not kept.exists():
        pairs = STAGES.strongest_pairs(columns, STAGES.rank_genes(columns), N_NEIGHBORS, WEAKEST)
        overlap, _ = STAGES.correlate_pairs(columns, pairs, 1)
        np.savez(kept, u=pairs.u, v=pairs.v, rho=pairs.rho, overlap=overlap)
    with np.load(kept) as file:
        return Pairs(file["u"], file["v"], file["rho"]), file["overlap"]


def near(common: np.ndarray, overlap: np.ndarray, size: int, least: int) -> np.ndarray:
    """Return pairs whose overlap is within a tenth of ``size``, of the common genes with most: ``least`` in all."""
    fits = np.flatnonzero(np.abs(overlap - size) <= size / 10)
    _, gene, counts = np.unique(common[fits], return_inverse=True, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    enough = np.searchsorted(np.cumsum(counts[order]), least) + 1
    return fits[np.isin(gene, order[:enough])]


def scipy_overlaps(columns: GeneColumns, pairs: Pairs, rho: np.ndarray, n: int) -> dict:
    """Pairs a second of SciPy from dense columns to rho, and of ``spearmanr`` alone; the largest difference."""
    whole, alone, largest, done = 0.0, 0.0, 0.0, 0
    for k in range(0, pairs.u.size, max(1, pairs.u.size // n)):
        x, y = (dense_column(columns, gene) for gene in (pairs.u[k], pairs.v[k]))
        with one_blas_thread():
            began = time.perf_counter()
            both = (x > 0) & (y > 0)
            x, y = x[both], y[both]
            selected = time.perf_counter()
            found = spearmanr(x, y).statistic
            ended = time.perf_counter()
        whole, alone, done = whole + ended - began, alone + ended - selected, done + 1
        largest = max(largest, abs(found - rho[k]))
    return {"scipy": done / whole, "scipy_alone": done / alone, "scipy_pairs": done, "largest_error": largest}


def dense_column(columns: GeneColumns, gene: int) -> np.ndarray:
    """(n_cells,) uint16: level of a gene in every cell, 0 where it is absent."""
    dense = np.zeros(columns.n_cells, np.uint16)
    part = slice(columns.indptr[gene], columns.indptr[gene + 1])
    dense[columns.cells[part]] = columns.levels[part]
    return dense
