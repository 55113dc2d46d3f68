"""The product of all genes' ranks, as a list of tasks that together see every pair of genes once.

Genes are ordered by presence and cut into blocks; a task is a rectangle of pairs in that order:

              block 0   1   2   3          scatter   both blocks rare: per-cell products into a tile of sums
    block 0      S      S   P   P          panel     a common gene: LANES of them, dense, against sparse columns
          1             S   P   P          dense     both blocks common: BLAS on columns written out
          2                 P   P
          3                     D

A task knows its pairs and its cost before a cell is read. It adds up any number of chunks of cells, and turns its sums
into pairs at the end. Cells in memory are one chunk: each task is added up and selected at once. Cells that do not fit
pass in chunks, while the sums of some tasks are kept. Several machines divide the tasks by their costs. All sums are
64-bit integers, so neither the method, nor the order, nor the machine changes a bit.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import groupby, pairwise
from threading import local
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from corrmask_fast.graph.build.records import RHO_RANGE, Expected, check_arrays
from corrmask_fast.kernels.correlation import (
    add_exact,
    keep_strongest,
    merge_lists,
    rows_of_block,
    select_pairs,
    tile_products,
    write_dense,
)
from corrmask_fast.kernels.panel import LANES, chunk_starts, fill_panel, panel_products
from corrmask_fast.threads import map_tasks, one_blas_thread, run_ranges

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from corrmask_fast.graph.build.records import GeneColumns, Ranks

    Found = tuple[np.ndarray, np.ndarray, np.ndarray]  # u, v, rho of pairs

SCATTER, PANEL, DENSE = "scatter", "panel", "dense"
DENSE_CELLS = 2048  # cells of a dense tile that are written out at a time; 8 MiB for a block of 512 genes


class Rates(NamedTuple):
    """Products a second of each method on one core, as ``bench/graph`` measures them (AMD Zen 4, AVX-512, OpenBLAS).

    They are constants: machines that divide a product have to cut it alike, so rates cannot be measured on each. Other
    processors have other rates but similar ratios. Where two methods are about as fast, the choice matters little.
    """

    scatter: float = 1.0e9  # of two nonzeros
    panel: float = 10.0e9  # of a nonzero and a place of a panel, be it zero or not
    dense: float = 24.0e9  # of two places, be they zero or not


@dataclass(frozen=True)
class Cut:
    """How the product of all genes is cut into tasks. It decides the time, and no result."""

    tile_genes: int = 512  # genes in a block; the sums of two take 2 MiB
    chunk_cells: int = 1024  # rows of a panel that stay in the L2 cache while columns pass
    passes: float = 32.0  # nonzeros of a range of columns, for each row of the panel that is read for it
    rates: Rates = field(default_factory=Rates)


class Task(NamedTuple):
    """Products of the columns ``order[u]`` with the columns ``order[v]``; of the pairs, those with u < v count."""

    method: str
    u: range
    v: range
    cost: float  # estimated seconds on one core, for all cells

    @property
    def ahead(self) -> int:
        """How far v begins after u: of the places (a, b) in the sums, those with a < b + ahead count."""
        return self.v.start - self.u.start

    @property
    def n_pairs(self) -> int:
        """Pairs u < v."""
        return sum(min(len(self.u), b + self.ahead) for b in range(len(self.v)))

    def zeros(self) -> np.ndarray:
        """(len(u), at least len(v)) uint64: sums to begin with."""
        return np.zeros((len(self.u), LANES if self.method == PANEL else len(self.v)), np.uint64)


@dataclass(frozen=True)
class ProductPlan:
    """All tasks of a product, the longest first."""

    order: np.ndarray  # (n,) int64: columns by rising presence, without those of constant rank
    tasks: list[Task]
    cut: Cut

    @property
    def layout(self) -> list[tuple[str, range, range]]:
        """What the tasks are, whatever their costs."""
        return [(task.method, task.u, task.v) for task in self.tasks]

    @property
    def costs(self) -> list[float]:
        """Estimated cost of each task."""
        return [task.cost for task in self.tasks]

    @property
    def n_pairs(self) -> int:
        """Pairs of all tasks."""
        return self.order.size * (self.order.size - 1) // 2

    def list_length(self, n_neighbors: int) -> int:
        """Return how many partners a gene's list has to hold."""
        return max(1, min(n_neighbors, self.order.size - 1))


def plan_product(presence: np.ndarray, sum_squares: np.ndarray, n_cells: int, cut: Cut | None = None) -> ProductPlan:
    """Cut the product of all columns that vary into tasks, each by the method that is fastest for it.

    Parameters
    ----------
    presence
        (G,) int64: cells in which each gene is present, of all ``n_cells``.
    sum_squares
        (G,) int64: 0 where a gene's rank is constant.
    n_cells
        Cells of all chunks together.
    cut
        Sizes and rates.
    """
    cut = cut or Cut()
    varying = np.flatnonzero(sum_squares)
    order = varying[np.argsort(presence[varying], kind="stable")]
    n = order.size
    # Many cells have ranks of which BLAS can add few products exactly at a time, and from 2**26 cells on none.
    n_exact = 2**53 // (2 * n_cells) ** 2
    dense = max(1e-9, cut.rates.dense * min(1.0, n_exact / DENSE_CELLS))
    blocks = [range(begin, min(begin + cut.tile_genes, n)) for begin in range(0, n, cut.tile_genes)]
    nonzeros = [float(presence[order[block.start : block.stop]].sum()) for block in blocks]
    tasks: list[Task] = []
    for j, v in enumerate(blocks):

        def costs(i: int, j: int = j, v: range = v) -> dict[str, float]:
            half = 0.5 if i == j else 1.0
            return {
                SCATTER: half * nonzeros[i] * nonzeros[j] / n_cells / cut.rates.scatter,
                PANEL: half * nonzeros[i] * len(v) / cut.rates.panel,
                DENSE: len(blocks[i]) * len(v) * n_cells / dense,
            }

        priced = [(i, *min(costs(i).items(), key=lambda item: item[1])) for i in range(j + 1)]
        for method, group in groupby(priced, key=lambda one: one[1]):
            members = list(group)
            if method != PANEL:
                tasks += [Task(method, blocks[i], v, cost) for i, _, cost in members]
            else:
                cost = sum(cost for *_, cost in members) * LANES / len(v)
                u = range(blocks[members[0][0]].start, blocks[members[-1][0]].stop)
                tasks += [
                    Task(
                        PANEL,
                        range(u.start, min(u.stop, begin + LANES)),
                        range(begin, min(begin + LANES, v.stop)),
                        cost,
                    )
                    for begin in range(v.start, v.stop, LANES)
                ]
    return ProductPlan(order, sorted(tasks, key=lambda task: -task.cost), cut)


class Operands:
    """A chunk of cells in the forms that the tasks of a plan read.

    Parameters
    ----------
    plan
        The tasks.
    columns
        The chunk's cells as columns; ``columns.n_cells`` counts these cells alone.
    e
        (nnz,) uint32: ranks beside ``columns.cells``, taken over all cells of all chunks.
    tasks
        Which tasks will be added; None: all.
    """

    def __init__(self, plan: ProductPlan, columns: GeneColumns, e: np.ndarray, tasks: list[Task] | None = None) -> None:
        self.order, self.cut, self.columns, self.e = plan.order, plan.cut, columns, e
        self._of_thread = local()
        tasks = plan.tasks if tasks is None else tasks
        blocks = sorted({block for task in tasks if task.method == SCATTER for block in (task.u, task.v)}, key=min)
        self._rows = dict(zip(blocks, map_tasks(self._make_rows, blocks), strict=True))
        self._starts = self._make_starts() if any(task.method == PANEL for task in tasks) else None

    def add(self, task: Task, sums: np.ndarray) -> None:
        """Add the products of this chunk's cells to a task's sums."""
        if task.method == SCATTER:
            tile_products(self._rows[task.u], self._rows[task.v], task.ahead == 0, sums)
        elif task.method == PANEL:
            self._add_panel(task, sums)
        else:
            self._add_dense(task, sums)

    def _make_rows(self, block: range) -> Found:
        members = self.order[block.start : block.stop]
        return rows_of_block(members, self.columns.indptr, self.columns.cells, self.e, self.columns.n_cells)

    def _make_starts(self) -> np.ndarray:
        """(G, ranges + 1) int64: where each range of ``chunk_cells`` cells begins in each column."""
        G, length = self.columns.genes.size, self.cut.chunk_cells
        starts = np.empty((G, -(-self.columns.n_cells // length) + 1), np.int64)
        run_ranges(lambda a, b: chunk_starts(self.columns.indptr, self.columns.cells, length, a, b, starts), G, 16)
        return starts

    def _add_panel(self, task: Task, sums: np.ndarray) -> None:
        columns, n_cells = self.columns, self.columns.n_cells
        of_u, of_v = self.order[task.u.start : task.u.stop], self.order[task.v.start : task.v.stop]
        panel = getattr(self._of_thread, "panel", None)
        if panel is None:
            panel = self._of_thread.panel = np.zeros((n_cells, LANES), np.uint32)
        else:  # memory that is there already comes cheaper than new
            panel[:] = 0
        fill_panel(of_v, columns.indptr, columns.cells, self.e, panel)
        # Columns go by in ranges large enough to be worth a pass over the panel.
        passes = np.cumsum(columns.presence[of_u]) // max(1, int(self.cut.passes * n_cells))
        for a, b in pairwise([0, *(np.flatnonzero(np.diff(passes)) + 1).tolist(), of_u.size]):
            panel_products(of_u[a:b], self._starts, columns.cells, self.e, panel, sums[a:b])

    def _add_dense(self, task: Task, sums: np.ndarray) -> None:
        columns, n_cells = self.columns, self.columns.n_cells
        # So many products of two e are exact in float64, in whichever order they are added.
        n_exact = max(1, 2**53 // max(1, int(self.e.max(initial=0))) ** 2)
        length = min(DENSE_CELLS, n_exact, n_cells)
        of_u, of_v = self.order[task.u.start : task.u.stop], self.order[task.v.start : task.v.stop]
        next_u, next_v = columns.indptr[of_u], columns.indptr[of_v]
        dense_u, dense_v = np.empty((of_u.size, length)), np.empty((of_v.size, length))
        products = np.empty((of_u.size, of_v.size))
        with one_blas_thread():
            for end in range(length, n_cells + length, length):
                write_dense(of_u, next_u, columns.indptr, columns.cells, self.e, end, dense_u)
                write_dense(of_v, next_v, columns.indptr, columns.cells, self.e, end, dense_v)
                np.matmul(dense_u, dense_v.T, out=products)
                add_exact(products, sums)


def select(plan: ProductPlan, task: Task, sums: np.ndarray, ranks: Ranks, n_cells: int, threshold: np.ndarray) -> Found:
    """Return (u, v, rho) of a task's pairs whose abs(rho) is at least ``threshold`` of u or of v (both (G,) float64).

    ``sums`` are complete: ``n_cells`` and the sums in ``ranks`` are those of all chunks.
    """
    of_u, of_v = plan.order[task.u.start : task.u.stop], plan.order[task.v.start : task.v.stop]
    return select_pairs(sums, of_u, of_v, task.ahead, n_cells, ranks.n_positive, ranks.sum_squares, threshold)


class StrongestPartners:
    """Each gene's list of its ``k`` strongest partners so far."""

    def __init__(self, n_genes: int, k: int, rho_min: float) -> None:
        self.n_kept = np.zeros(n_genes, np.int64)
        self.gene, self.rho = np.empty((n_genes, k), np.int32), np.empty((n_genes, k), np.float64)
        # The abs(rho) that a pair needs to enter a gene's list. It rises with the results; tasks may read an older one.
        self.threshold = np.full(n_genes, rho_min)

    def offer(self, found: Found) -> None:
        """Offer pairs to both genes' lists; pairs may come in any order, each once."""
        keep_strongest(found, self.n_kept, self.gene, self.rho, self.threshold)

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the lists, as :meth:`merge` takes them."""
        listed = np.arange(self.gene.shape[1]) < self.n_kept[:, None]
        return {"n_kept": self.n_kept, "gene": self.gene[listed], "rho": self.rho[listed]}

    def check(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Raise InputError for arrays that are no lists of partners."""
        n_genes, k = self.gene.shape
        listed = {"n_kept": Expected(np.int64, (n_genes,), 0, k)}
        check_arrays({name: arrays[name] for name in listed}, listed)
        n = int(arrays["n_kept"].sum())
        of_pairs = {"gene": Expected(np.int32, (n,), 0, n_genes - 1), "rho": Expected(np.float64, (n,), *RHO_RANGE)}
        check_arrays(arrays, {**listed, **of_pairs})

    def merge(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Take up the lists of others, which may hold the same pairs."""
        merge_lists(arrays["n_kept"], arrays["gene"], arrays["rho"], self.n_kept, self.gene, self.rho, self.threshold)

    def pairs(self) -> Found:
        """Return the pairs that stand in a list, u < v, each once, in order of (u, v)."""
        G, k = self.gene.shape
        listed = np.arange(k) < self.n_kept[:, None]
        u, v = np.nonzero(listed)[0], self.gene[listed].astype(np.int64)
        pair, first = np.unique(np.minimum(u, v) * G + np.maximum(u, v), return_index=True)
        return pair // max(G, 1), pair % max(G, 1), self.rho[listed][first]


def run_tasks(
    plan: ProductPlan, tasks: np.ndarray, operands: Operands, ranks: Ranks, strongest: StrongestPartners
) -> Iterator[int]:
    """Run tasks, given by their numbers, on one chunk that holds all cells; yield each when its pairs were offered."""

    def run(number: int) -> tuple[int, Found]:
        task = plan.tasks[number]
        sums = task.zeros()
        operands.add(task, sums)
        return number, select(plan, task, sums, ranks, operands.columns.n_cells, strongest.threshold)

    for number, found in map_tasks(run, tasks.tolist()):
        strongest.offer(found)
        yield number
