"""The stages of building a graph, on a CUDA device: the same functions as graph_stages.py, the same bits.

Cells go to the device once, as tokens; columns, ranks and sums stay there, and pairs come back. Columns' ``cells`` and
``levels`` and the ranks' ``e`` are tensors on the device (int32, int16 with the bits of uint16, int32).

The product of all genes is a dense float64 matrix product, strip by strip and chunk by chunk:

    chunks of cells →      c0   c1   c2
    strip of genes   u  [ dense rows u ] · [ dense rows 0 … u ]ᵀ   added up over chunks  →  sums (strip, genes)

It is exact while every partial sum is an integer below 2^53, which holds up to 131 072 cells in one go; beyond, chunks
are so short that it holds for each, and are added up as int64.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from corrmask_fast.errors import InputError
from corrmask_fast.graph_device import GraphDevice, as_tensor, memory_errors_named
from corrmask_fast.graph_stages import GeneColumns, Pairs, Ranks, Sample, read_sample

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

    from corrmask_fast.graph_stages import Bar

__all__ = ["correlate_pairs", "make_columns", "rank_genes", "read_sample", "strongest_pairs"]

CHUNK_CELLS = 128  # cells whose tokens one block puts into columns, one after the other
MOST_CHUNKS = 2048
BLOCK_BYTES = 1 << 30  # of a chunk's dense rows, of a strip's sums, of a batch's dense columns: at most
FREE_SHARE = 0.3  # of the free memory that each of them may take
PART_GENES = 1024  # rows of a strip that are multiplied at a time: less of the square at its end is done in vain
# Sizes in bytes of structures in kernels/level_ranks.cuh and kernels/correlation.cu, which assert them.
BLOCK_SUMS, FOUND = 384, 16_408
EXACT = 2.0**53


def open_device() -> GraphDevice:
    """Return the device that the stages run on."""
    return GraphDevice()


# ------------------------------------------------------------------------------------------- columns and their ranks


@memory_errors_named()
def make_columns(sample: Sample, genes: np.ndarray, max_length: int) -> GeneColumns:
    """Turn cells into columns of ``genes`` (tokens, ascending)."""
    import torch

    gpu = open_device()
    size, G = sample.presence.shape[1], genes.size
    indptr, tokens = _upload_cells(gpu, sample, size)
    n_cells = indptr.numel() - 1
    column_of = np.full(size, -1, np.int32)
    column_of[genes] = np.arange(G)
    chunk_cells = max(CHUNK_CELLS, -(-n_cells // MOST_CHUNKS))
    n_chunks = -(-n_cells // chunk_cells)
    cells_of = [indptr, tokens, np.int32(tokens.element_size()), np.uint32(max_length), gpu.upload(column_of)]
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
    return GeneColumns(genes, n_cells, max_length, column_indptr.cpu().numpy(), cells, levels)


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


@memory_errors_named()
def rank_genes(columns: GeneColumns) -> Ranks:
    """Rank every column exactly."""
    import torch

    gpu = open_device()
    G, n_bins = columns.genes.size, columns.max_length + 1
    e: Any = gpu.empty(columns.cells.shape[0], torch.int32)
    n_positive, sum_squares = gpu.empty(G, torch.int64), gpu.empty(G, torch.int64)
    args = [gpu.upload(columns.indptr), columns.levels, G, columns.n_cells, np.uint32(columns.max_length)]
    args += [e, n_positive, sum_squares]
    _launch_with_bins(gpu, "ranks.cu", "rank_columns", G, args, n_bins)
    return Ranks(e, n_positive.cpu().numpy(), sum_squares.cpu().numpy())


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


@dataclass(frozen=True)
class Cut:
    """How the product of all genes is cut: worth time and memory, but no result depends on it."""

    genes: int  # of a strip
    cells: int  # of a chunk
    part: int = PART_GENES

    @classmethod
    def fitting(cls, n_genes: int, n_cells: int, exact_cells: int, free_bytes: int) -> Cut:
        """Return strips and chunks as large as is useful and as the free memory allows.

        Raises
        ------
        InputError
            If not even the smallest fit.
        """
        room = min(BLOCK_BYTES, int(FREE_SHARE * free_bytes)) // (8 * n_genes)
        if room < 16:
            raise InputError(
                f"device='cuda': {n_genes} genes need {16 * 8 * n_genes / FREE_SHARE / 2**20:.0f} MiB of free GPU "
                f"memory for their sums; got {free_bytes / 2**20:.0f} MiB; free some, lower max_genes, or use "
                "device='cpu'"
            )
        # Chunks of equal length, in whole lines of memory.
        chunks = -(-n_cells // min(room, exact_cells))
        cells = 16 * -(-n_cells // (16 * chunks))
        return cls(min(room, n_genes), cells if exact_cells >= n_cells else min(cells, exact_cells))


@memory_errors_named()
def strongest_pairs(
    columns: GeneColumns, ranks: Ranks, n_neighbors: int, rho_min: float, bar: Bar, *, cut: Cut | None = None
) -> Pairs:
    """Return the pairs in which one gene is among the other's ``n_neighbors`` strongest and abs(rho) >= ``rho_min``."""
    import torch

    gpu = open_device()
    varying = np.flatnonzero(ranks.sum_squares)
    n, k = varying.size, max(1, min(n_neighbors, varying.size - 1))
    n_positive, squares = ranks.n_positive[varying], ranks.sum_squares[varying].astype(np.float64)
    exact_cells = _exact_cells(columns.n_cells, n_positive, squares)
    n_kept, kept_gene = gpu.zeros(n, torch.int32), gpu.empty((n, k), torch.int32)
    kept_rho, reach = gpu.empty((n, k), torch.float64), gpu.empty(n, torch.float64).fill_(rho_min)
    inexact = gpu.zeros(1, torch.int32)
    lists = [columns.n_cells, gpu.upload(n_positive), gpu.upload(squares), np.uint32(k)]
    lists += [n_kept, kept_gene, kept_rho, reach, inexact]
    if n > 1:
        cut = cut or Cut.fitting(n, columns.n_cells, exact_cells, gpu.free_bytes())
    with bar("correlating genes", n * (n - 1) // 2, "pair") as progress:
        for begin, end, sums in _strips(gpu, columns, ranks, varying, cut, exact_cells) if cut and n > 1 else ():
            looked_at = [sums, np.int32(sums.dtype == torch.int64), n]
            for by_column, genes in ((0, end - begin), (1, end)):
                args = [*looked_at, np.int32(by_column), begin, end, *lists]
                gpu.launch("correlation.cu", "keep_strongest", genes, args, shared_bytes=FOUND)
            _check_exact(inexact)
            progress.update((end * (end - 1) - begin * (begin - 1)) // 2)
    return _listed_pairs(n_kept, kept_gene, kept_rho, varying)


def _exact_cells(n_cells: int, n_positive: np.ndarray, sum_squares: np.ndarray) -> int:
    """Return over how many cells any sum of e_u·e_v is an integer that float64 holds."""
    if n_positive.size == 0 or (sum_squares + float(n_cells) * n_positive.astype(np.float64) ** 2).max() < EXACT:
        return n_cells  # no sum exceeds the largest sum of e²
    largest = n_cells - 1 + int(n_positive.max())  # e = 2·rank − (n_cells + 1) + m
    return int(EXACT) // largest**2


def _strips(
    gpu: GraphDevice, columns: GeneColumns, ranks: Ranks, varying: np.ndarray, cut: Cut, exact_cells: int
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
    for begin in range(0, n, cut.genes):
        end = min(begin + cut.genes, n)
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


def _listed_pairs(n_kept: torch.Tensor, kept_gene: torch.Tensor, kept_rho: torch.Tensor, varying: np.ndarray) -> Pairs:
    """Return what stands in the genes' lists as pairs u < v, each once, in order."""
    import torch

    n, k = kept_gene.shape
    listed = torch.arange(k, device=n_kept.device) < n_kept[:, None]
    u, v = listed.nonzero()[:, 0], kept_gene[listed].long()
    pair, order = torch.sort(torch.minimum(u, v) * n + torch.maximum(u, v))
    first = torch.ones_like(pair, dtype=torch.bool)
    first[1:] = pair[1:] != pair[:-1]
    pair, rho = pair[first], kept_rho[listed][order][first]
    place_u, place_v = pair // max(n, 1), pair % max(n, 1)
    return Pairs(varying[place_u.cpu().numpy()], varying[place_v.cpu().numpy()], rho.cpu().numpy())


# ----------------------------------------------------------------------------------------------------------- overlaps


@memory_errors_named()
def correlate_pairs(
    columns: GeneColumns, pairs: Pairs, min_cooccurrence: int, bar: Bar
) -> tuple[np.ndarray, np.ndarray]:
    """Return each pair's overlap (int64) and its rho over the overlap (float64; 0 below ``min_cooccurrence``)."""
    import torch

    gpu = open_device()
    overlap, rho = np.empty(pairs.u.size, np.int64), np.empty(pairs.u.size, np.float64)
    presence = columns.presence
    swap = presence[pairs.u] < presence[pairs.v]
    common, partner = np.where(swap, pairs.v, pairs.u), np.where(swap, pairs.u, pairs.v)
    order = torch.sort(gpu.upload(common), stable=True).indices.cpu().numpy()
    common, partner = common[order], partner[order]
    indptr = gpu.upload(columns.indptr)
    data = indptr, columns.cells, columns.levels
    rows = max(1, min(BLOCK_BYTES // 4, int(FREE_SHARE * gpu.free_bytes())) // (2 * columns.n_cells))
    dense = gpu.empty((min(rows, columns.genes.size), columns.n_cells), torch.int16)
    n_bins = 2 * (columns.max_length + 1)
    with bar("comparing overlaps", order.size, "pair") as progress:
        for begin, end, genes, row in _batches(common, len(dense)):
            dense[: genes.size].zero_()
            gpu.launch("overlap.cu", "fill_levels", genes.size, [gpu.upload(genes), *data, columns.n_cells, dense])
            result = gpu.empty(end - begin, torch.int64), gpu.empty(end - begin, torch.float64)
            args = [gpu.upload(row), gpu.upload(partner[begin:end]), end - begin, *data, dense, columns.n_cells]
            args += [np.uint32(columns.max_length), min_cooccurrence, *result]
            _launch_with_bins(gpu, "overlap.cu", "correlate_overlaps", end - begin, args, n_bins)
            overlap[order[begin:end]], rho[order[begin:end]] = (values.cpu().numpy() for values in result)
            progress.update(end - begin)
    return overlap, rho


def _batches(common: np.ndarray, n_rows: int) -> Iterator[tuple[int, int, np.ndarray, np.ndarray]]:
    """Cut pairs, sorted by their common gene, into batches of ``n_rows`` of them: (begin, end, genes, rows)."""
    starts = np.flatnonzero(np.diff(common, prepend=-1))
    bounds = [*starts.tolist(), common.size]
    for first in range(0, starts.size, n_rows):
        last = min(first + n_rows, starts.size)
        begin, end = bounds[first], bounds[last]
        row = np.repeat(np.arange(last - first), np.diff(bounds[first : last + 1]))
        yield begin, end, common[starts[first:last]], row
