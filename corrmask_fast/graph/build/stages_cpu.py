"""The stages of building a graph, on the CPU: columns, ranks, strongest pairs, overlaps.

Another backend gives the same functions with the same results, to the bit.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from corrmask_fast.cells.corpus import rows_between
from corrmask_fast.graph.build.checkpoint import Expected, check_arrays
from corrmask_fast.graph.build.products import RHO_RANGE, Cut, Operands, StrongestPartners, plan_product, run_tasks
from corrmask_fast.graph.build.work import Work
from corrmask_fast.kernels.overlap import correlate_overlaps
from corrmask_fast.kernels.ranks import count_genes, fill_columns, rank_columns
from corrmask_fast.threads import map_tasks, run_ranges

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from corrmask_fast.cells.corpus import Corpus

    Bar = Callable[[str, int, str], Any]  # (what, total, unit) -> a progress bar as tqdm makes it

KIND = "cpu"  # of device
CHUNK_CELLS = 4096  # cells read at a time
MOST_RANGES, LEAST_WORK = 1024, 2_000_000  # ranges of pairs: their number, and elements that pass in one (1 ms)


class Sample(NamedTuple):
    """The sampled cells as they were read, chunk by chunk, and what was counted in them."""

    chunks: list[tuple[np.ndarray, np.ndarray]]  # (indptr, tokens)
    presence: np.ndarray  # (chunks, V) int64: cells of a chunk in which a gene is present
    value_sum: np.ndarray  # (V,) int64: sum of X over all cells


@dataclass(frozen=True)
class GeneColumns:
    """The sampled cells as sparse columns of the kept genes, in order of token."""

    genes: np.ndarray  # (G,) int64: token of each column
    n_cells: int
    max_length: int
    indptr: np.ndarray  # (G + 1,) int64
    cells: np.ndarray  # (nnz,) int32, ascending in each column
    levels: np.ndarray  # (nnz,) uint16: X + 1

    @property
    def presence(self) -> np.ndarray:
        """(G,) int64: cells in which each gene is present."""
        return np.diff(self.indptr)


class Ranks(NamedTuple):
    """Exact ranks of all columns, as kernels/ranks.py defines them."""

    e: np.ndarray  # (nnz,) uint32
    n_positive: np.ndarray  # (G,) int64: m
    sum_squares: np.ndarray  # (G,) float64: sum of d², exact and rounded once


class Pairs(NamedTuple):
    """Pairs of columns u < v, each once, in order of (u, v)."""

    u: np.ndarray  # (pairs,) int64
    v: np.ndarray  # (pairs,) int64
    rho: np.ndarray  # (pairs,) float64


# ------------------------------------------------------------------------------------------- columns and their ranks


def read_sample(
    corpus: Corpus, rows: Sequence[int] | np.ndarray, max_length: int, bar: Bar, *, chunk_cells: int = CHUNK_CELLS
) -> Sample:
    """Read cells ``rows``: only their tokens are held, whatever the size of the corpus."""
    size = corpus.vocabulary.size

    def read(begin: int) -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray, np.ndarray]:
        corpus.check_files()
        chunk = corpus.gather(rows_between(rows, begin, begin + chunk_cells), tell=False)
        presence, value_sum = np.zeros(size, np.int64), np.zeros(size, np.int64)
        count_genes(*chunk, max_length, presence, value_sum)
        return chunk, presence, value_sum

    chunks, presences, total = [], [], np.zeros(size, np.int64)
    with bar("reading cells", len(rows), "cell") as progress:
        for chunk, presence, value_sum in map_tasks(read, range(0, len(rows), chunk_cells)):
            chunks.append(chunk)
            presences.append(presence)
            total += value_sum
            progress.update(chunk[0].size - 1)
    return Sample(chunks, np.array(presences), total)


def make_columns(sample: Sample, genes: np.ndarray, max_length: int) -> GeneColumns:
    """Turn cells into columns of ``genes`` (tokens, ascending)."""
    presence = sample.presence[:, genes]
    indptr = np.concatenate([[0], np.cumsum(presence.sum(axis=0))])
    # Where each chunk's part of each column begins, so that chunks can be filled in at the same time.
    cursors = indptr[:-1] + np.cumsum(presence, axis=0) - presence
    sizes = [chunk_indptr.size - 1 for chunk_indptr, _ in sample.chunks]
    first_cells = np.cumsum(sizes) - sizes
    column_of = np.full(sample.presence.shape[1], -1, np.int64)
    column_of[genes] = np.arange(genes.size)
    cells, levels = np.empty(indptr[-1], np.int32), np.empty(indptr[-1], np.uint16)

    def fill(c: int) -> None:
        fill_columns(*sample.chunks[c], max_length, first_cells[c], column_of, cursors[c], cells, levels)

    deque(map_tasks(fill, range(len(sizes))), maxlen=0)
    return GeneColumns(genes, sum(sizes), max_length, indptr, cells, levels)


def rank_genes(columns: GeneColumns) -> Ranks:
    """Rank every column exactly."""
    G = columns.genes.size
    ranks = Ranks(np.empty(columns.levels.size, np.uint32), np.empty(G, np.int64), np.empty(G, np.float64))

    def rank(begin: int, end: int) -> None:
        data = columns.indptr, columns.levels, columns.n_cells, columns.max_length
        rank_columns(*data, begin, end, ranks.e, ranks.n_positive, ranks.sum_squares)

    run_ranges(rank, G, 16)
    return ranks


# --------------------------------------------------------------------------------------------------- strongest pairs


def strongest_pairs(
    columns: GeneColumns,
    ranks: Ranks,
    n_neighbors: int,
    rho_min: float,
    bar: Bar,
    *,
    work: Work | None = None,
    cut: Cut | None = None,
) -> Pairs:
    """Return the pairs in which one gene is among the other's ``n_neighbors`` strongest and abs(rho) >= ``rho_min``."""
    plan = plan_product(columns.presence, ranks.sum_squares, columns.n_cells, cut or Cut())
    k = max(1, min(n_neighbors, plan.order.size - 1))
    strongest = StrongestPartners(columns.genes.size, k, rho_min)
    share = (work or Work()).divide("pairs", plan.layout, [task.cost for task in plan.tasks], strongest)
    mine = [plan.tasks[number] for number in share.tasks]
    with bar("correlating genes", sum(task.n_pairs for task in mine), "pair") as progress:
        for number in run_tasks(plan, share.tasks, Operands(plan, columns, ranks.e, mine), ranks, strongest):
            share.done(number)
            progress.update(plan.tasks[number].n_pairs)
    share.finish()
    return Pairs(*strongest.pairs())


# ----------------------------------------------------------------------------------------------------------- overlaps


class Overlaps:
    """Overlap and rho of pairs, as far as they are known; no overlap exceeds ``n_cells``."""

    def __init__(self, n_pairs: int, n_cells: int) -> None:
        self.n_cells = n_cells
        self.overlap, self.rho = np.full(n_pairs, -1, np.int64), np.zeros(n_pairs, np.float64)

    def arrays(self) -> dict[str, np.ndarray]:
        """Return both, with -1 as overlap where they are not known."""
        return {"overlap": self.overlap, "rho": self.rho}

    def check(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Raise InputError for arrays that are no overlaps and rho of these pairs."""
        shape = self.overlap.shape
        expected = {
            "overlap": Expected(np.int64, shape, -1, self.n_cells),
            "rho": Expected(np.float64, shape, *RHO_RANGE),
        }
        check_arrays(arrays, expected)

    def merge(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Take up what others know."""
        known = arrays["overlap"] >= 0
        self.overlap[known], self.rho[known] = arrays["overlap"][known], arrays["rho"][known]


def correlate_pairs(
    columns: GeneColumns, pairs: Pairs, min_cooccurrence: int, bar: Bar, *, work: Work | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return each pair's overlap (int64) and its rho over the overlap (float64; 0 below ``min_cooccurrence``)."""
    common, partner, back, ranges, costs = overlap_tasks(columns, pairs)
    results = Overlaps(common.size, columns.n_cells)

    def correlate(number: int) -> tuple[int, np.ndarray, np.ndarray]:
        these = slice(*ranges[number])
        n_pairs = these.stop - these.start
        overlap, rho = np.empty(n_pairs, np.int64), np.empty(n_pairs, np.float64)
        data = columns.indptr, columns.cells, columns.levels, columns.n_cells, columns.max_length
        correlate_overlaps(common[these], partner[these], 0, n_pairs, *data, min_cooccurrence, overlap, rho)
        return number, overlap, rho

    share = (work or Work()).divide("overlaps", ranges, costs, results)
    with bar("comparing overlaps", sum(b - a for a, b in (ranges[i] for i in share.tasks)), "pair") as progress:
        for number, overlap, rho in map_tasks(correlate, share.tasks.tolist()):
            these = slice(*ranges[number])
            results.overlap[these], results.rho[these] = overlap, rho
            share.done(number)
            progress.update(overlap.size)
    share.finish()
    return results.overlap[back], results.rho[back]


class OverlapTasks(NamedTuple):
    """The pairs of the last stage, sorted by their commoner gene, in ranges of about equal work."""

    common: np.ndarray  # (pairs,) int64: the gene in more cells
    partner: np.ndarray  # (pairs,) int64: the gene in fewer
    back: np.ndarray  # (pairs,) int64: where each pair as it was given stands now
    ranges: list[tuple[int, int]]
    costs: np.ndarray  # of the ranges


def overlap_tasks(
    columns: Any, pairs: Pairs, argsort: Callable[[np.ndarray], np.ndarray] | None = None
) -> OverlapTasks:
    """Return the tasks of the last stage, the same for all backends; ``argsort`` is stable (None: NumPy's)."""
    presence = columns.presence
    swap = presence[pairs.u] < presence[pairs.v]
    common, partner = np.where(swap, pairs.v, pairs.u), np.where(swap, pairs.u, pairs.v)
    order = np.argsort(common, kind="stable") if argsort is None else argsort(common)
    common, partner = common[order], partner[order]
    back = np.empty_like(order)
    back[order] = np.arange(order.size)
    return OverlapTasks(common, partner, back, *even_ranges(presence[partner] + columns.max_length // 8))


def even_ranges(work: np.ndarray) -> tuple[list[tuple[int, int]], np.ndarray]:
    """Cut [0, n) into ranges of about equal work, enough for any number of threads; return ranges and their work."""
    if work.size == 0:
        return [], np.empty(0, np.int64)
    total = np.cumsum(work)
    parts = min(work.size, MOST_RANGES, 1 + int(total[-1]) // LEAST_WORK)
    cuts = np.searchsorted(total, total[-1] * np.arange(1, parts) // parts)
    bounds = np.unique([0, *cuts, work.size])
    return list(pairwise(bounds.tolist())), np.add.reduceat(work, bounds[:-1])
