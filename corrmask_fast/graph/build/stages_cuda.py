"""The stages of a build on a CUDA device, with the bits of stages_cpu.py.

Cells go to the device once, as tokens; columns, ranks and sums stay there, and pairs come back. Columns' ``cells`` and
``levels`` and the ranks' ``e`` are tensors on the device (int32, int16 with the bits of uint16, int32).

The product of all genes is a dense float64 matrix product, strip by strip and chunk by chunk:

    chunks of cells →      c0   c1   c2
    strip of genes   u  [ dense rows u ] · [ dense rows 0 … u ]ᵀ   added up over chunks  →  sums (strip, genes)

The product is exact while every partial sum is an integer below 2^53. This holds for up to 131 072 cells at once. With
more cells, chunks are short enough for it to hold in each, and are added up as int64.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from corrmask_fast.errors import InputError
from corrmask_fast.graph.build.cuda_device import GraphDevice, as_tensor, memory_errors_named
from corrmask_fast.graph.build.overlaps import Overlaps, plan_overlaps
from corrmask_fast.graph.build.products import StrongestPartners
from corrmask_fast.graph.build.records import GeneColumns, Pairs, Ranks, Sample
from corrmask_fast.graph.build.stages_cpu import CpuStages
from corrmask_fast.graph.build.work import Work

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import torch

    from corrmask_fast.graph.build.records import Cells

CHUNK_CELLS = 128  # cells whose tokens one block puts into columns, one after the other
MAX_CHUNKS = 2048
BLOCK_BYTES = 1 << 30  # of a chunk's dense rows, of a strip's sums, of a batch's dense columns: at most
FREE_SHARE = 0.3  # of the free memory that each of them may take
PART_GENES = 1024  # rows multiplied at a time: of the square at a strip's end, less is done in vain; also: of a task
# Sizes in bytes of structures in kernels/level_ranks.cuh and kernels/correlation.cu, which assert them.
BLOCK_SUMS, FOUND = 384, 16_392
EXACT = 2.0**53


@dataclass(frozen=True)
class Cut:
    """How the product of all genes is cut. It decides time and memory, and no result."""

    genes: int  # of a strip
    cells: int  # of a chunk
    part: int = PART_GENES

    @classmethod
    def fitting(cls, n_genes: int, n_cells: int, exact_cells: int, free_bytes: int) -> Cut:
        """Return strips and chunks as large as is useful, within the free memory.

        Raises
        ------
        InputError
            If the smallest do not fit.
        """
        fitting = min(BLOCK_BYTES, int(FREE_SHARE * free_bytes)) // (8 * n_genes)
        if fitting < 16:
            raise InputError(
                f"device='cuda': {n_genes} genes need {16 * 8 * n_genes / FREE_SHARE / 2**20:.0f} MiB of free GPU "
                f"memory for their sums; got {free_bytes / 2**20:.0f} MiB; free some, lower max_genes, or use "
                "device='cpu'"
            )
        # Chunks of equal length, in whole lines of memory.
        chunks = -(-n_cells // min(fitting, exact_cells))
        cells = 16 * -(-n_cells // (16 * chunks))
        return cls(min(fitting, n_genes), cells if exact_cells >= n_cells else min(cells, exact_cells))


class CudaStages:
    """The stages on a CUDA device; see :class:`corrmask_fast.graph.build.records.Stages`.

    Parameters
    ----------
    work
        Who divides the build, and where it is saved; None: this process alone, and nowhere.
    cut
        How the product of all genes is cut; None: as the device's free memory allows.
    """

    rho_error = None

    def __init__(self, work: Work | None = None, cut: Cut | None = None) -> None:
        self._work, self._cut, self._gpu = work or Work(), cut, GraphDevice()

    def read_sample(self, cells: Cells) -> Sample:
        """Read the cells into host memory."""
        return CpuStages(self._work).read_sample(cells)

    @memory_errors_named()
    def make_columns(self, sample: Sample, genes: np.ndarray) -> GeneColumns:
        """Turn cells into columns of ``genes`` (tokens, ascending)."""
        import torch

        gpu = self._gpu
        size, G = sample.presence.shape[1], genes.size
        indptr, tokens = _upload_cells(gpu, sample, size)
        n_cells = indptr.numel() - 1
        column_of = np.full(size, -1, np.int32)
        column_of[genes] = np.arange(G)
        chunk_cells = max(CHUNK_CELLS, -(-n_cells // MAX_CHUNKS))
        n_chunks = -(-n_cells // chunk_cells)
        cells_of = [
            indptr,
            tokens,
            np.int32(tokens.element_size()),
            np.uint32(sample.max_length),
            gpu.upload(column_of),
        ]
        cells_of += [n_cells, chunk_cells, G]

        counts = gpu.zeros((n_chunks, G), torch.int32)
        gpu.launch("ranks.cu", "count_columns", n_chunks, [*cells_of, counts])
        column_indptr = gpu.zeros(G + 1, torch.int64)
        torch.cumsum(counts.sum(0), 0, out=column_indptr[1:])
        cursors = gpu.empty((n_chunks, G), torch.int32).copy_(counts.cumsum(0, dtype=torch.int32).sub_(counts))
        del counts
        nnz = int(column_indptr[-1])
        cells: Any = gpu.empty(nnz, torch.int32)
        levels: Any = gpu.empty(nnz, torch.int16)
        filled = [*cells_of, cursors, column_indptr, cells, levels]
        gpu.launch("ranks.cu", "fill_columns", n_chunks, filled, threads=2 * gpu.threads)
        return GeneColumns(genes, n_cells, sample.max_length, column_indptr.cpu().numpy(), cells, levels)

    @memory_errors_named()
    def rank_genes(self, columns: GeneColumns) -> Ranks:
        """Rank every column exactly."""
        import torch

        gpu = self._gpu
        G, n_bins = columns.genes.size, columns.max_length + 1
        e: Any = gpu.empty(columns.cells.shape[0], torch.int32)
        n_positive, sum_squares = gpu.empty(G, torch.int64), gpu.empty(G, torch.int64)
        args = [gpu.upload(columns.indptr), columns.levels, G, columns.n_cells, np.uint32(columns.max_length)]
        args += [e, n_positive, sum_squares]
        _launch_with_bins(gpu, "ranks.cu", "rank_columns", G, args, n_bins)
        return Ranks(e, n_positive.cpu().numpy(), sum_squares.cpu().numpy().astype(np.float64))

    @memory_errors_named()
    def strongest_pairs(self, columns: GeneColumns, ranks: Ranks, n_neighbors: int, rho_min: float) -> Pairs:
        """Correlate all genes, strip by strip, and keep each gene's strongest partners."""
        import torch

        gpu = self._gpu
        varying = np.flatnonzero(ranks.sum_squares)
        n = varying.size
        n_positive, squares = ranks.n_positive[varying], ranks.sum_squares[varying]
        exact_cells = _exact_cells(columns.n_cells, n_positive, squares)
        lists = DevicePartners(gpu, n, max(1, min(n_neighbors, n - 1)), rho_min)
        cut = self._cut or Cut.fitting(max(n, 1), columns.n_cells, exact_cells, gpu.free_bytes())
        # A task is the pairs v <= u of so many genes u, whatever the memory: several devices agree about it.
        ends = np.minimum(np.arange(cut.part, n + cut.part, cut.part), n)
        shard = self._work.divide("pairs", ("cuda", n, cut.part), ends, lists)
        n_pairs = ends * (ends - 1) // 2
        inexact = gpu.zeros(1, torch.int32)
        of_all = [columns.n_cells, gpu.upload(n_positive), gpu.upload(squares), np.uint32(lists.gene.shape[1])]
        of_all += [lists.n_kept, lists.gene, lists.rho, lists.threshold, inexact]
        with self._work.bar(
            "correlating genes", int(np.diff(n_pairs, prepend=0)[shard.tasks].sum()), "pair"
        ) as progress:
            for begin, end, sums in _sums(gpu, columns, ranks, varying, cut, exact_cells, ends, shard.tasks):
                looked_at = [sums, np.int32(sums.dtype == torch.int64), n]
                for by_column, genes in ((0, end - begin), (1, end)):
                    args = [*looked_at, np.int32(by_column), begin, end, *of_all]
                    gpu.launch("correlation.cu", "keep_strongest", genes, args, shared_bytes=FOUND)
                _check_exact(inexact)
                shard.done(shard.tasks[(ends[shard.tasks] > begin) & (ends[shard.tasks] <= end)])
                progress.update((end * (end - 1) - begin * (begin - 1)) // 2)
        shard.finish()
        u, v, rho = lists.pairs()
        return Pairs(varying[u], varying[v], rho)

    @memory_errors_named()
    def correlate_pairs(
        self, columns: GeneColumns, pairs: Pairs, min_cooccurrence: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Correlate each pair over the cells that hold both genes."""
        import torch

        gpu = self._gpu
        plan = plan_overlaps(
            columns, pairs, lambda genes: torch.sort(gpu.upload(genes), stable=True).indices.cpu().numpy()
        )
        results = Overlaps(pairs.u.size, columns.n_cells)
        shard = self._work.divide("overlaps", plan.ranges, plan.costs, results)
        mine, ends = plan.places_of(shard.tasks), plan.ends_of(shard.tasks)

        data = gpu.upload(columns.indptr), columns.cells, columns.levels
        rows = min(BLOCK_BYTES // 4, int(FREE_SHARE * gpu.free_bytes())) // (2 * columns.n_cells)
        dense = gpu.empty((max(1, min(rows, columns.genes.size)), columns.n_cells), torch.int16)
        with self._work.bar("comparing overlaps", mine.size, "pair") as progress:
            for begin, end, genes, row in _batches(plan.common[mine], len(dense)):
                these = mine[begin:end]
                dense[: genes.size].zero_()
                gpu.launch("overlap.cu", "fill_levels", genes.size, [gpu.upload(genes), *data, columns.n_cells, dense])
                found = gpu.empty(end - begin, torch.int64), gpu.empty(end - begin, torch.float64)
                args = [gpu.upload(row), gpu.upload(plan.partner[these]), end - begin, *data, dense, columns.n_cells]
                args += [np.uint32(columns.max_length), min_cooccurrence, *found]
                _launch_with_bins(
                    gpu, "overlap.cu", "correlate_overlaps", end - begin, args, 2 * (columns.max_length + 1)
                )
                results.overlap[these], results.rho[these] = (values.cpu().numpy() for values in found)
                shard.done(shard.tasks[(ends > begin) & (ends <= end)])
                progress.update(end - begin)
        shard.finish()
        return results.overlap[plan.back], results.rho[plan.back]


# ------------------------------------------------------------------------------------------- columns and their ranks


def _upload_cells(gpu: GraphDevice, sample: Sample, vocab_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (indptr, tokens) of all chunks, on the device; tokens are 16-bit where all of them fit."""
    import torch

    sizes = [int(indptr[-1]) for indptr, _ in sample.chunks]
    narrow = vocab_size <= 1 << 16
    tokens = gpu.empty(sum(sizes), torch.int16 if narrow else torch.int32)
    indptrs, begin = [np.zeros(1, np.int64)], 0
    for (indptr, chunk), n in zip(sample.chunks, sizes, strict=True):
        tokens[begin : begin + n].copy_(as_tensor(chunk.astype(np.uint16 if narrow else np.int32, copy=False)))
        indptrs.append(indptr[1:] + begin)
        begin += n
    return gpu.upload(np.concatenate(indptrs)), tokens


def _launch_with_bins(gpu: GraphDevice, file: str, name: str, blocks: int, args: list[Any], n_bins: int) -> None:
    """Launch a kernel whose blocks count in ``n_bins`` bins: in shared memory, or where that is too small, outside."""
    import torch

    if BLOCK_SUMS + 4 * n_bins <= gpu.shared_limit:
        gpu.launch(file, name, blocks, args, shared_bytes=BLOCK_SUMS + 4 * n_bins)
        return
    blocks = min(blocks, 4 * gpu.processors)
    scratch = gpu.empty((blocks, n_bins), torch.int32)
    gpu.launch(file, f"{name}_scratch", blocks, [*args, scratch], shared_bytes=BLOCK_SUMS)


# --------------------------------------------------------------------------------------------------- strongest pairs


class DevicePartners:
    """Each gene's list of its ``k`` strongest partners so far, on the device; those that others found, on the host."""

    def __init__(self, gpu: GraphDevice, n_genes: int, k: int, rho_min: float) -> None:
        import torch

        self._settings = n_genes, k, rho_min
        self._others: StrongestPartners | None = None
        self.n_kept = gpu.zeros(n_genes, torch.int32)
        self.gene, self.rho = gpu.empty((n_genes, k), torch.int32), gpu.empty((n_genes, k), torch.float64)
        self.threshold = gpu.empty(n_genes, torch.float64).fill_(rho_min)

    def arrays(self) -> dict[str, np.ndarray]:
        """Return all lists, as :meth:`merge` takes them."""
        return self._merged().arrays()

    def check(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Raise InputError for arrays that are no lists of partners."""
        StrongestPartners(*self._settings).check(arrays)

    def merge(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Take up the lists of others."""
        self._others = self._others or StrongestPartners(*self._settings)
        self._others.merge(arrays)

    def pairs(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the pairs that stand in a list, u < v, each once, in order of (u, v)."""
        import torch

        if self._others is not None:
            return self._merged().pairs()
        n, listed = self.gene.shape[0], self._listed()
        u, v = listed.nonzero()[:, 0], self.gene[listed].long()
        pair, order = torch.sort(torch.minimum(u, v) * n + torch.maximum(u, v))
        first = torch.ones_like(pair, dtype=torch.bool)
        first[1:] = pair[1:] != pair[:-1]
        pair, rho = pair[first], self.rho[listed][order][first]
        host_pair = pair.cpu().numpy()
        return host_pair // max(n, 1), host_pair % max(n, 1), rho.cpu().numpy()

    def _listed(self) -> torch.Tensor:
        import torch

        return torch.arange(self.gene.shape[1], device=self.gene.device) < self.n_kept[:, None]

    def _merged(self) -> StrongestPartners:
        listed = self._listed()
        own = {"n_kept": self.n_kept.long(), "gene": self.gene[listed], "rho": self.rho[listed]}
        self.merge({name: values.cpu().numpy() for name, values in own.items()})
        assert self._others is not None
        return self._others


def _exact_cells(n_cells: int, n_positive: np.ndarray, sum_squares: np.ndarray) -> int:
    """Return over how many cells any sum of e_u·e_v is an integer that float64 holds."""
    if n_positive.size == 0 or (sum_squares + float(n_cells) * n_positive.astype(np.float64) ** 2).max() < EXACT:
        return n_cells  # no sum exceeds the largest sum of e²
    largest = n_cells - 1 + int(n_positive.max())  # e = 2·rank − (n_cells + 1) + m
    return int(EXACT) // largest**2


def _strips(ends: np.ndarray, tasks: np.ndarray, longest: int) -> Iterator[tuple[int, int]]:
    """Yield strips [begin, end) of at most ``longest`` genes that cover the tasks."""
    for run in np.split(tasks, np.flatnonzero(np.diff(tasks) != 1) + 1):
        first, last = (int(ends[run[0] - 1]) if run[0] else 0, int(ends[run[-1]])) if run.size else (0, 0)
        for begin in range(first, last, longest):
            yield begin, min(begin + longest, last)


def _sums(
    gpu: GraphDevice,
    columns: GeneColumns,
    ranks: Ranks,
    varying: np.ndarray,
    cut: Cut,
    exact_cells: int,
    ends: np.ndarray,
    tasks: np.ndarray,
) -> Iterator[tuple[int, int, torch.Tensor]]:
    """Yield (begin, end, sums) for strips [begin, end) of the varying genes.

    ``sums[u - begin, v]`` is the sum of e_u·e_v over all cells for v <= u, and undefined for others; float64 where one
    product over all cells is exact, else int64.
    """
    import torch

    n, in_one_go = varying.size, exact_cells >= columns.n_cells
    every = gpu.upload(varying), gpu.upload(columns.indptr), columns.cells, ranks.e
    dense = gpu.empty((n, cut.cells), torch.float64)
    memory = gpu.empty((min(cut.genes, n), n), torch.float64 if in_one_go else torch.int64)
    for begin, end in _strips(ends, tasks, cut.genes):
        for first_cell in range(0, columns.n_cells, cut.cells):
            dense[:end].zero_()
            gpu.launch("correlation.cu", "fill_dense", end, [*every, first_cell, cut.cells, dense], threads=128)
            for a in range(begin, end, cut.part):
                b = min(a + cut.part, end)
                sums, rows, others = memory[a - begin : b - begin, :b], dense[a:b], dense[:b].t()
                if not in_one_go:
                    product = torch.mm(rows, others).to(torch.int64)
                    sums.copy_(product) if first_cell == 0 else sums.add_(product)
                elif first_cell == 0:
                    torch.mm(rows, others, out=sums)
                else:
                    sums.addmm_(rows, others)
        yield begin, end, memory


def _check_exact(inexact: torch.Tensor) -> None:
    """Raise InputError if a gene's product with itself was not what its ranks say."""
    if inexact.item():
        raise InputError(
            "device='cuda': a float64 matrix product on this GPU is not exact, as cuBLAS' emulated float64 is not; "
            "unset CUBLAS_EMULATE_DOUBLE_PRECISION, or use device='cpu'"
        )


# ----------------------------------------------------------------------------------------------------------- overlaps


def _batches(common: np.ndarray, n_rows: int) -> Iterator[tuple[int, int, np.ndarray, np.ndarray]]:
    """Cut pairs, sorted by their common gene, into batches of ``n_rows`` of them: (begin, end, genes, rows)."""
    starts = np.flatnonzero(np.diff(common, prepend=-1))
    bounds = [*starts.tolist(), common.size]
    for first in range(0, starts.size, n_rows):
        last = min(first + n_rows, starts.size)
        begin, end = bounds[first], bounds[last]
        row = np.repeat(np.arange(last - first), np.diff(bounds[first : last + 1]))
        yield begin, end, common[starts[first:last]], row
