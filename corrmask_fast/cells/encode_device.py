"""Rank-value encoding on a CUDA device: counts there become padded tokens there, with the bits of the CPU."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from corrmask_fast import cuda
from corrmask_fast.cells.count_batches import checked_tensor
from corrmask_fast.errors import InputError

if TYPE_CHECKING:
    from corrmask_fast.cells.encoding import EncodingTables
    from corrmask_fast.cells.vocabulary import Vocabulary

FILE = "encode.cu"
STATE_BYTES = 272  # EncodeState in kernels/encode.cu
ENTRY_BYTES = 12  # a key and a token
IN_SHARED = 4096  # entries of a cell that lie in shared memory: four blocks fit a multiprocessor of an H100
PAD_THREADS = 256


class DeviceTables(NamedTuple):
    """What the kernel looks up, on the device."""

    token_of_column: torch.Tensor  # (columns,) int32
    median_of_token: torch.Tensor  # (V,) float64

    @classmethod
    def of(cls, tables: EncodingTables, device: torch.device) -> DeviceTables:
        """Copy them there."""
        arrays = tables.token_of_column, tables.median_of_token
        return cls(*(torch.from_numpy(array).to(device) for array in arrays))


class DeviceCells(NamedTuple):
    """Cells as CSR on the device."""

    indptr: torch.Tensor  # (n + 1,) int64
    columns: torch.Tensor  # int64
    counts: torch.Tensor  # float64
    n_columns: int


def cells_on_device(counts: torch.Tensor) -> DeviceCells:
    """Return a dense or sparse tensor of counts as the kernels take it."""
    counts = checked_tensor(counts)
    if counts.layout != torch.sparse_csr:
        counts = counts.to_sparse_csr()
    return DeviceCells(
        counts.crow_indices().long().contiguous(),
        counts.col_indices().long().contiguous(),
        counts.values().double().contiguous(),
        int(counts.shape[1]),
    )


def encode_on_device(
    cells: DeviceCells,
    tables: EncodingTables,
    found_tables: DeviceTables,
    vocabulary: Vocabulary,
    totals: torch.Tensor | None,
    multiple: int,
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Return ``(input_ids, attention_mask)``, each (n, columns) int64; None if a cell is to be refused.

    Waits for the device twice: to look at the pointers, and for the longest cell: the batch is no wider.
    """
    kernels = cuda.open_device(cells.columns.device)
    n, entries = cells.indptr.numel() - 1, cells.columns.numel()

    def empty(size: int | tuple[int, ...], dtype: torch.dtype = torch.int64) -> torch.Tensor:
        return torch.empty(size, dtype=dtype, device=cells.columns.device)

    keys, tokens, found = empty(2 * entries), empty(entries, torch.int32), empty((2, n))
    longest = _longest(cells.indptr, entries) if n else 0
    capacity = min(longest + 1, IN_SHARED, (kernels.shared_limit - STATE_BYTES) // ENTRY_BYTES)
    capacity -= capacity % 2  # the tokens begin after the keys, at a multiple of 16 bytes
    if n:
        kernels.launch(
            FILE,
            "encode_rows",
            n,
            _threads(longest),
            [
                *_addresses(cells.indptr, cells.columns, cells.counts),
                np.int64(cells.n_columns),
                *_addresses(*found_tables),
                np.int64(tables.once),
                np.float64(tables.target_sum),
                *_addresses(totals),
                np.int64(tables.fractional),
                np.int64(capacity),
                np.int64(entries),
                *_addresses(keys, tokens, found[0], found[1]),
            ],
            STATE_BYTES + ENTRY_BYTES * capacity,
        )
        most, faults = torch.stack([found[0].max(), found[1].max()]).tolist()
        if faults:
            return None
    around = vocabulary.n_surrounding
    width = -(-(min(int(most), tables.limit) + around if n else 0) // multiple) * multiple
    input_ids, attention_mask = empty((n, width)), empty((n, width))
    if n and width:
        cls, eos = (-1 if token is None else token for token in (vocabulary.cls_token_id, vocabulary.eos_token_id))
        numbers = (tables.limit, width, vocabulary.pad_token_id, cls, eos)
        kernels.launch(
            FILE,
            "pad_rows",
            n,
            PAD_THREADS,
            [
                *_addresses(cells.indptr, tokens, found[0]),
                *map(np.int64, numbers),
                *_addresses(input_ids, attention_mask),
            ],
        )
    return input_ids, attention_mask


def _longest(indptr: torch.Tensor, entries: int) -> int:
    """Return the entries of the longest cell; InputError if the pointers do not fit: the kernel trusts them."""
    lengths = indptr[1:] - indptr[:-1]
    shortest, longest, first, last = torch.stack([lengths.min(), lengths.max(), indptr[0], indptr[-1]]).tolist()
    if shortest < 0 or first < 0 or last > entries or longest >= 2**31:
        raise InputError(f"the batch: the pointers of its sparse counts do not fit its {entries} entries")
    return longest


def _threads(longest: int) -> int:
    """Return the threads of a block: one for two entries of the longest cell, 64 to 512."""
    return min(512, max(64, 1 << (max(longest - 1, 1).bit_length() - 1)))


def _addresses(*tensors: torch.Tensor | None) -> list[Any]:
    return [0 if tensor is None else tensor.data_ptr() for tensor in tensors]
