"""The stages of a build on the CPU, over cells in memory."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import numpy as np

from corrmask_fast.cells.row_numbers import rows_between
from corrmask_fast.graph.build.overlaps import Overlaps, plan_overlaps
from corrmask_fast.graph.build.products import Operands, StrongestPartners, plan_product, run_tasks
from corrmask_fast.graph.build.records import GeneColumns, Pairs, Ranks, Sample
from corrmask_fast.graph.build.work import Work
from corrmask_fast.kernels.overlap import correlate_overlaps
from corrmask_fast.kernels.ranks import count_genes, fill_columns, rank_columns
from corrmask_fast.threads import map_tasks, run_ranges

if TYPE_CHECKING:
    from corrmask_fast.graph.build.products import Cut
    from corrmask_fast.graph.build.records import Cells

CHUNK_CELLS = 4096  # cells read at a time


class CpuStages:
    """The stages on the CPU; see :class:`corrmask_fast.graph.build.records.Stages`.

    Parameters
    ----------
    work
        Who divides the build, and where it is saved; None: this process alone, and nowhere.
    cut
        How the product of all genes is cut into tasks; None: as its default says.
    """

    rho_error = None

    def __init__(self, work: Work | None = None, cut: Cut | None = None) -> None:
        self._work, self._cut = work or Work(), cut

    def read_sample(self, cells: Cells, *, chunk_cells: int = CHUNK_CELLS) -> Sample:
        """Read the cells: only their tokens are held, whatever the size of the corpus."""
        corpus, rows, max_length = cells
        size = corpus.vocabulary.size

        def read(begin: int) -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray, np.ndarray]:
            corpus.check_files()
            chunk = corpus.gather(rows_between(rows, begin, begin + chunk_cells), warn=False)
            presence, value_sum = np.zeros(size, np.int64), np.zeros(size, np.int64)
            count_genes(*chunk, max_length, presence, value_sum)
            return chunk, presence, value_sum

        chunks, presences, total = [], [], np.zeros(size, np.int64)
        with self._work.bar("reading cells", len(rows), "cell") as progress:
            for chunk, presence, value_sum in map_tasks(read, range(0, len(rows), chunk_cells)):
                chunks.append(chunk)
                presences.append(presence)
                total += value_sum
                progress.update(chunk[0].size - 1)
        return Sample(max_length, chunks, np.array(presences), total)

    def make_columns(self, sample: Sample, genes: np.ndarray) -> GeneColumns:
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
            where = sample.max_length, first_cells[c], column_of, cursors[c]
            fill_columns(*sample.chunks[c], *where, cells, levels)

        deque(map_tasks(fill, range(len(sizes))), maxlen=0)
        return GeneColumns(genes, sum(sizes), sample.max_length, indptr, cells, levels)

    def rank_genes(self, columns: GeneColumns) -> Ranks:
        """Rank every column exactly."""
        G = columns.genes.size
        ranks = Ranks(np.empty(columns.levels.size, np.uint32), np.empty(G, np.int64), np.empty(G, np.float64))

        def rank(begin: int, end: int) -> None:
            data = columns.indptr, columns.levels, columns.n_cells, columns.max_length
            rank_columns(*data, begin, end, ranks.e, ranks.n_positive, ranks.sum_squares)

        run_ranges(rank, G, 16)
        return ranks

    def strongest_pairs(self, columns: GeneColumns, ranks: Ranks, n_neighbors: int, rho_min: float) -> Pairs:
        """Correlate all genes, task by task, and keep each gene's strongest partners."""
        plan = plan_product(columns.presence, ranks.sum_squares, columns.n_cells, self._cut)
        strongest = StrongestPartners(columns.genes.size, plan.list_length(n_neighbors), rho_min)
        shard = self._work.divide("pairs", plan.layout, plan.costs, strongest)
        mine = [plan.tasks[number] for number in shard.tasks]
        with self._work.bar("correlating genes", sum(task.n_pairs for task in mine), "pair") as progress:
            for number in run_tasks(plan, shard.tasks, Operands(plan, columns, ranks.e, mine), ranks, strongest):
                shard.done(number)
                progress.update(plan.tasks[number].n_pairs)
        shard.finish()
        return Pairs(*strongest.pairs())

    def correlate_pairs(
        self, columns: GeneColumns, pairs: Pairs, min_cooccurrence: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Correlate each pair over the cells that hold both genes."""
        plan = plan_overlaps(columns, pairs)
        results = Overlaps(pairs.u.size, columns.n_cells)

        def correlate(number: int) -> tuple[int, np.ndarray, np.ndarray]:
            common, partner = plan.pairs_of(number)
            overlap, rho = np.empty(common.size, np.int64), np.empty(common.size, np.float64)
            data = columns.indptr, columns.cells, columns.levels, columns.n_cells, columns.max_length
            correlate_overlaps(common, partner, 0, common.size, *data, min_cooccurrence, overlap, rho)
            return number, overlap, rho

        shard = self._work.divide("overlaps", plan.ranges, plan.costs, results)
        with self._work.bar("comparing overlaps", plan.places_of(shard.tasks).size, "pair") as progress:
            for number, overlap, rho in map_tasks(correlate, shard.tasks.tolist()):
                these = slice(*plan.ranges[number])
                results.overlap[these], results.rho[these] = overlap, rho
                shard.done(number)
                progress.update(overlap.size)
        shard.finish()
        return results.overlap[plan.back], results.rho[plan.back]
