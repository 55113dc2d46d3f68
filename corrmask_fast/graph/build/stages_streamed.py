"""The stages of a build on the CPU, over cells that pass in chunks, in as many passes as the memory requires.

The results are those of stages_cpu.py, to the bit, whatever the chunks:

    pass           what is kept                                   what comes of it
    1              counts[gene, level]                            presence, ranks of all levels
    2 … b          sums of e_u·e_v, of a band of tasks            strongest pairs of these tasks
    then two for   counts[pair, side, level] over the overlap,    overlap, ranks over it,
    some pairs     sums of d_u·d_v                                rho over it

Several machines divide the cells of the first pass, and the tasks and pairs of the other passes.

Up to 1 905 000 cells the sums of e_u·e_v fit 64 bits. With more cells they are kept in 96 bits (kernels/wide.py), and
chunks are small enough for their own sums to fit 64. So all sums are exact for any number of cells below 2**31, and
each is rounded to float64 once. With u = 2**-53, rho = P / sqrt(S·T) then has a relative error of u for each of P, the
root and the division, and of half of u for each of S, T and their product: below 5 u in all (RHO_ERROR).
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from corrmask_fast.errors import InputError
from corrmask_fast.graph.build.memory import RHO_ERROR
from corrmask_fast.graph.build.overlaps import Overlaps, plan_overlaps
from corrmask_fast.graph.build.products import Operands, StrongestPartners, plan_product, select
from corrmask_fast.graph.build.records import Expected, Pairs, Ranks, check_arrays
from corrmask_fast.graph.build.stages_cpu import CHUNK_CELLS, CpuStages
from corrmask_fast.kernels.streaming import (
    add_rank_products,
    count_levels,
    count_overlaps,
    look_up_ranks,
    rank_counts,
    rank_overlaps,
)
from corrmask_fast.kernels.wide import centre_sums, fold, to_floats
from corrmask_fast.threads import get_num_threads, map_tasks, run_ranges

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from corrmask_fast.graph.build.memory import ChunkPlan
    from corrmask_fast.graph.build.products import ProductPlan, Task
    from corrmask_fast.graph.build.records import Cells, GeneColumns
    from corrmask_fast.graph.build.work import Work

    Sums = list[tuple[np.ndarray, np.ndarray | None]]  # low and high words, of each task of a band


MIN_PIECE = 256  # cells of a chunk that a thread reads at a time, at least
SUMS_SECONDS = 300.0  # between two times that sums, which may take gigabytes, are saved


class StreamedSample(NamedTuple):
    """What is counted in the sampled cells."""

    cells: Cells
    counts: np.ndarray  # (V, max_length + 1) uint32: cells in which a gene has a level
    presence: np.ndarray  # (1, V) int64
    value_sum: np.ndarray  # (V,) int64


@dataclass(frozen=True)
class StreamedColumns:
    """The columns of the kept genes, which pass in chunks."""

    cells: Cells
    genes: np.ndarray  # (G,) int64: token of each column
    presence: np.ndarray  # (G,) int64
    counts: np.ndarray  # (G, max_length + 1) uint32

    @property
    def n_cells(self) -> int:
        """Cells of all chunks."""
        return len(self.cells.rows)

    @property
    def max_length(self) -> int:
        """Genes read of a cell."""
        return self.cells.max_length


class StreamedStages:
    """The stages over cells that pass in chunks; see :class:`corrmask_fast.graph.build.records.Stages`.

    Parameters
    ----------
    work
        Who divides the build, and where it is saved.
    chunks
        Cells of a chunk, and bytes of sums in a pass.
    """

    def __init__(self, work: Work, chunks: ChunkPlan) -> None:
        self._work, self._chunks = work, chunks
        self.rho_error = RHO_ERROR if chunks.wide else None

    def _read(
        self, cells: Cells, genes: np.ndarray, chunk_cells: int, *, first: int = 0, of_this_rank: bool = False
    ) -> Iterator[GeneColumns]:
        """Read all cells from ``first`` on, or those of this rank, chunk by chunk, as columns of ``genes``."""
        team, reader = self._work.team, CpuStages()  # which shows no bar: the pass has one
        begins = range(first, len(cells.rows), chunk_cells)
        for begin in begins[team.rank :: team.size] if of_this_rank else begins:
            team.check()
            rows = cells.rows[begin : begin + chunk_cells]
            piece_cells = min(CHUNK_CELLS, max(MIN_PIECE, -(-len(rows) // (2 * get_num_threads()))))
            yield reader.make_columns(reader.read_sample(cells._replace(rows=rows), chunk_cells=piece_cells), genes)

    def read_sample(self, cells: Cells) -> StreamedSample:
        """Count how often each gene has each level: one pass, divided among the ranks."""
        shape, n_cells = (cells.corpus.vocabulary.size, cells.max_length + 1), len(cells.rows)
        check = partial(_check_levels, shape=shape, n_cells=n_cells)
        counts = self._work.recall("levels", f"{shape} {n_cells}", check, lambda: self._count(cells, shape))["counts"]
        presence = counts.sum(axis=1, dtype=np.int64)
        values = np.maximum(np.arange(-1, cells.max_length, dtype=np.int64), 0)  # of the levels
        value_sum = np.array([row @ values for row in counts], np.int64)
        return StreamedSample(cells, counts, presence[None], value_sum)

    def _count(self, cells: Cells, shape: tuple[int, int]) -> dict[str, np.ndarray]:
        counts, tokens, n_cells = np.zeros(shape, np.uint32), np.arange(shape[0]), len(cells.rows)
        with self._work.bar("counting levels (pass over the corpus)", n_cells, "cell") as progress:
            for columns in self._read(cells, tokens, self._chunks.chunk_cells, of_this_rank=True):
                run_ranges(partial(count_levels, columns.indptr, columns.levels, counts), tokens.size, 64)
                progress.update(columns.n_cells * self._work.team.size)
            progress.update(n_cells - progress.n)
        self._work.team.sum(counts)
        return {"counts": counts}

    def make_columns(self, sample: StreamedSample, genes: np.ndarray) -> StreamedColumns:
        """Keep the counts of ``genes`` (tokens, ascending), in the memory of those of all."""
        counts = sample.counts[: genes.size]
        for column, gene in enumerate(genes.tolist()):
            counts[column] = sample.counts[gene]
        return StreamedColumns(sample.cells, genes, sample.presence[0, genes], counts)

    def rank_genes(self, columns: StreamedColumns) -> Ranks:
        """Rank all levels of every column exactly: ``e`` (G, max_length + 1), in the memory of their counts."""
        G = columns.genes.size
        ranks = Ranks(columns.counts, np.empty(G, np.int64), np.empty(G, np.float64))
        run_ranges(partial(rank_counts, ranks.e, columns.n_cells, *ranks[1:]), G, 16)
        return ranks

    # ----------------------------------------------------------------------------------------------- strongest pairs

    def strongest_pairs(self, columns: StreamedColumns, ranks: Ranks, n_neighbors: int, rho_min: float) -> Pairs:
        """Add up the product of all genes, in as few passes as the memory allows."""
        plan = plan_product(columns.presence, ranks.sum_squares, columns.n_cells)
        strongest = StrongestPartners(columns.genes.size, plan.list_length(n_neighbors), rho_min)
        shard = self._work.divide("pairs", plan.layout, plan.costs, strongest)
        bytes_a_sum = 12 if self._chunks.wide else 8
        sizes = np.array([plan.tasks[i].zeros().size * bytes_a_sum for i in shard.tasks], np.int64)
        bands = _bands(sizes, self._chunks.band_bytes)
        for number, band in enumerate(bands):
            title = f"correlating genes (pass {number + 1} of {len(bands)})"
            with self._work.bar(title, columns.n_cells, "cell") as progress:
                self._add_band(plan, columns, ranks, shard.tasks[band], strongest, progress.update)
            shard.done(shard.tasks[band])
        shard.finish()
        return Pairs(*strongest.pairs())

    def _add_band(
        self,
        plan: ProductPlan,
        columns: StreamedColumns,
        ranks: Ranks,
        numbers: np.ndarray,
        strongest: StrongestPartners,
        update: Callable[[int], Any],
    ) -> None:
        """Add up the tasks ``numbers`` while all chunks pass, and offer their pairs."""
        tasks = [plan.tasks[number] for number in numbers]
        wide = self._chunks.wide
        sums = [(low, np.zeros(low.shape, np.uint32) if wide else None) for low in (task.zeros() for task in tasks)]
        # The plan too: another version may give the same numbers to other tasks.
        layout = sha256(f"{wide} {numbers.tolist()} {plan.layout}".encode()).hexdigest()
        cells = self._saved_sums(layout, sums, columns.n_cells)
        update(cells)
        saved = time.monotonic()
        chunk_cells = self._chunks.chunk_cells
        if wide:
            chunk_cells = max(1, min(chunk_cells, (2**64 - 1) // max(1, int(ranks.e.max(initial=0))) ** 2))
        for chunk in self._read(columns.cells, columns.genes, chunk_cells, first=cells):
            e = np.empty(chunk.levels.size, np.uint32)
            run_ranges(partial(look_up_ranks, chunk.indptr, chunk.levels, ranks.e, e), columns.genes.size, 16)
            operands = Operands(plan, chunk, e, tasks)

            def add(place: int, operands: Operands = operands) -> None:
                task, (low, high) = tasks[place], sums[place]
                part = low if high is None else task.zeros()
                operands.add(task, part)
                if high is not None:
                    fold(part.reshape(-1), low.reshape(-1), high.reshape(-1))

            for _ in map_tasks(add, range(len(tasks))):
                self._work.team.check()
            update(chunk.n_cells)
            cells += chunk.n_cells
            if time.monotonic() - saved >= SUMS_SECONDS and cells < columns.n_cells:
                self._save_sums(layout, sums, cells)
                saved = time.monotonic()

        def found(place: int) -> Any:
            task, (low, high) = tasks[place], sums[place]
            return select(plan, task, low if high is None else _centred(plan, task, low, high, ranks, columns.n_cells),
                          ranks, columns.n_cells, strongest.threshold)  # fmt: skip

        for pairs in map_tasks(found, range(len(tasks))):
            strongest.offer(pairs)
        self._work.checkpoint.drop("sums")

    def _save_sums(self, layout: str, sums: Sums, cells: int) -> None:
        """Save the sums of a band in the middle of its pass: over a large corpus it may take hours."""
        arrays = {f"low {i}": low for i, (low, _) in enumerate(sums)}
        arrays |= {f"high {i}": high for i, (_, high) in enumerate(sums) if high is not None}
        self._work.checkpoint.save("sums", layout, {**arrays, "cells": np.array([cells])})

    def _saved_sums(self, layout: str, sums: Sums, n_cells: int) -> int:
        """Take up the sums of a band that was begun; return how many cells they are of."""
        largest = min(2**64 - 1, 4 * n_cells**3)  # each e is below 2 · n_cells
        expected = {"cells": Expected(np.int64, (1,), 0, n_cells)}
        for i, (low, high) in enumerate(sums):
            expected[f"low {i}"] = Expected(np.uint64, low.shape, 0, largest if high is None else 2**64 - 1)
            if high is not None:
                expected[f"high {i}"] = Expected(np.uint32, high.shape, 0, 2**32 - 1)
        check = partial(check_arrays, expected=expected)
        for part in self._work.checkpoint.parts("sums", layout, check, own=True):
            for i, (low, high) in enumerate(sums):
                low[:] = part[f"low {i}"]
                if high is not None:
                    high[:] = part[f"high {i}"]
            return int(part["cells"][0])
        return 0

    # ------------------------------------------------------------------------------------------------------- overlaps

    def correlate_pairs(
        self, columns: StreamedColumns, pairs: Pairs, min_cooccurrence: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Correlate each pair over the cells that hold both genes: two passes for as many pairs as fit memory."""
        plan = plan_overlaps(columns, pairs)
        results = Overlaps(pairs.u.size, columns.n_cells)
        shard = self._work.divide("overlaps", plan.ranges, plan.costs, results)
        mine, ends = plan.places_of(shard.tasks), plan.ends_of(shard.tasks)
        bands = _bands(np.full(mine.size, 8 * (columns.max_length + 1) + 64), self._chunks.band_bytes)
        for number, band in enumerate(bands):
            these = mine[band]
            title = f"comparing overlaps (passes {2 * number + 1} and {2 * number + 2} of {2 * len(bands)})"
            with self._work.bar(title, 2 * columns.n_cells, "cell") as progress:
                genes = plan.common[these], plan.partner[these]
                overlap, rho = self._compare(columns, *genes, min_cooccurrence, progress.update)
            results.overlap[these], results.rho[these] = overlap, rho
            shard.done(shard.tasks[ends <= band.stop])
        shard.finish()
        return results.overlap[plan.back], results.rho[plan.back]

    def _compare(
        self,
        columns: StreamedColumns,
        common: np.ndarray,
        partner: np.ndarray,
        min_cooccurrence: int,
        update: Callable[[int], Any],
    ) -> tuple[np.ndarray, np.ndarray]:
        n, chunk_cells = common.size, self._chunks.chunk_cells
        if self._chunks.wide:
            chunk_cells = max(1, min(chunk_cells, (2**63 - 1) // columns.n_cells**2))
        table = np.zeros((n, 2, columns.max_length + 1), np.uint32)
        for chunk in self._read(columns.cells, columns.genes, chunk_cells):
            data = (chunk.indptr, chunk.cells, chunk.levels, chunk.n_cells)
            run_ranges(partial(count_overlaps, common, partner, *data, table), n, 16)
            update(chunk.n_cells)
        overlap, squares = np.empty(n, np.int64), np.empty((n, 2))
        run_ranges(partial(rank_overlaps, table, overlap, squares), n, 16)
        ranks = table.view(np.int32)
        wanted = (overlap >= min_cooccurrence) & (squares > 0).all(axis=1)
        low, high = np.zeros(n, np.uint64), np.zeros(n, np.int64)
        for chunk in self._read(columns.cells, columns.genes, chunk_cells):
            data = (chunk.indptr, chunk.cells, chunk.levels, chunk.n_cells)
            run_ranges(partial(add_rank_products, common, partner, *data, ranks, wanted, low, high), n, 16)
            update(chunk.n_cells)
        product = np.empty(n)
        to_floats(low, high, product)
        rho = np.zeros(n)
        np.divide(product, np.sqrt(squares[:, 0] * squares[:, 1]), out=rho, where=wanted)
        return overlap, rho


def _check_levels(arrays: Mapping[str, np.ndarray], shape: tuple[int, int], n_cells: int) -> None:
    """Raise InputError for arrays that are not how often each gene has each level in ``n_cells`` cells."""
    check_arrays(arrays, {"counts": Expected(np.uint32, shape, 0, n_cells)})
    if arrays["counts"].sum(axis=1, dtype=np.int64).max(initial=0) > n_cells:
        raise InputError("a gene cannot be in more cells than there are")


def _bands(sizes: np.ndarray, most: int) -> list[slice]:
    """Cut tasks into consecutive bands of at most ``most`` bytes (one task at least), few and even."""
    if sizes.size == 0:
        return []
    for parts in range(max(1, -(-int(sizes.sum()) // most)), sizes.size):
        ends = np.searchsorted(np.cumsum(sizes), sizes.sum() * np.arange(1, parts + 1) / parts)
        bounds = np.unique([0, *np.minimum(ends + 1, sizes.size)])
        if np.add.reduceat(sizes, bounds[:-1]).max() <= max(most, int(sizes.max())):
            return [slice(a, b) for a, b in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True)]
    return [slice(i, i + 1) for i in range(sizes.size)]


def _centred(
    plan: ProductPlan, task: Task, low: np.ndarray, high: np.ndarray, ranks: Ranks, n_cells: int
) -> np.ndarray:
    """Return the sums of d_u·d_v as float64, where ``low`` lay."""
    of_u, of_v = plan.order[task.u.start : task.u.stop], plan.order[task.v.start : task.v.stop]
    products = low.view(np.float64)
    centre_sums(low, high, of_u, of_v, n_cells, ranks.n_positive, products)
    return products
