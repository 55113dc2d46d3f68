"""``torch.library`` custom ops, what ``torch.compile`` sees: CPU tensors go to Numba, CUDA tensors to CuPy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch

from corrmask_fast.buffers import empty
from corrmask_fast.kernels.layout import CORRMASK, SIZE, STRATEGY
from corrmask_fast.masking.neighbor_tables import Connected, number_connected
from corrmask_fast.masking.rows import (
    NOTHING,
    Draws,
    RowRules,
    check_graph_ids,
    check_priorities,
    mask_rows,
    raise_unknown_token,
)

__all__ = ["mask", "mask_on_cpu", "mask_on_device"]

TABLES_KEPT = 4  # of maskers that are called as operators

Result = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def mask_on_cpu(
    rules: RowRules,
    rates: np.ndarray,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None,
    special_tokens_mask: torch.Tensor | None,
    draws: Draws,
    *,
    max_probability: float,
    validate: bool,
    graph_ids: torch.Tensor | None = None,
    priorities: torch.Tensor | None = None,
) -> Result:
    """Mask a padded batch of CPU tensors; return (input_ids, labels, masked_positions)."""
    rows, columns = input_ids.shape
    out, labels = empty((rows, columns)), empty((rows, columns))
    positions = empty((rows, math.floor(columns * max_probability)))
    tokens = np.ascontiguousarray(input_ids.numpy(), np.int64).reshape(-1)
    row_ptr = _row_starts(rows, columns)
    seen, protected = _as_bytes(attention_mask), _as_bytes(special_tokens_mask)
    more = {}
    if graph_ids is not None:
        numbers = graph_ids.contiguous().numpy()
        more["graph_ids"] = (
            check_graph_ids(numbers, rules.ids.size // (int(rules.settings[SIZE]) + 1)) if validate else numbers
        )
    if priorities is not None:
        ranks = priorities.contiguous().numpy()
        more["priorities"] = (check_priorities(ranks) if validate else ranks).reshape(-1)
    bad = -1
    if rows:
        bad = mask_rows(
            rules, rates, row_ptr, tokens, draws, out, labels, positions, seen=seen, protected=protected, **more
        )
    if bad >= 0 and validate:
        raise_unknown_token(bad, tokens[row_ptr[bad] : row_ptr[bad + 1]], int(rules.settings[SIZE]))
    masked = torch.from_numpy(out)
    return (
        masked if input_ids.dtype == torch.int64 else masked.to(input_ids.dtype),
        torch.from_numpy(labels),
        torch.from_numpy(positions),
    )


@lru_cache(maxsize=16)
def _row_starts(rows: int, columns: int) -> np.ndarray:
    return np.arange(rows + 1, dtype=np.int64) * columns


def _as_bytes(mask: torch.Tensor | None) -> np.ndarray:
    if mask is None:
        return NOTHING
    return (mask if mask.dtype == torch.bool else mask != 0).contiguous().view(torch.uint8).numpy().reshape(-1)


_tables: dict[tuple[int, ...], tuple[Connected, torch.Tensor, torch.Tensor]] = {}


def _connected(indptr: torch.Tensor, indices: torch.Tensor, size: int) -> Connected:
    """Return number_connected of a masker's buffers, made once: an operator is given the buffers alone, at each call.

    Buffers are known by their storage, which is no other's as long as a tensor of it is kept here, and by the address
    of their memory, which a storage leaves for another when it is sent to a process.
    """
    key = size, *(part for buffer in (indptr, indices) for part in _memory_of(buffer))
    if key not in _tables:
        while len(_tables) >= TABLES_KEPT:
            _tables.pop(next(iter(_tables)), None)
        _tables[key] = number_connected(indptr.numpy(), indices.numpy(), size), indptr, indices
    return _tables[key][0]


def _memory_of(tensor: torch.Tensor) -> tuple[int, int, int]:
    return tensor.untyped_storage()._cdata, tensor.data_ptr(), tensor.numel()  # noqa: SLF001 (no public identity)


@torch.library.custom_op("corrmask_fast::mask", mutates_args=())
def mask(
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None,
    special_tokens_mask: torch.Tensor | None,
    draws: torch.Tensor,
    draw_mode: int,
    draw_offset: int,
    seed_bits: torch.Tensor,
    rate_bits: torch.Tensor,
    neighbor_lookup: torch.Tensor,
    neighbor_indptr: torch.Tensor,
    neighbor_indices: torch.Tensor,
    graph_ids: torch.Tensor | None,
    priorities: torch.Tensor | None,
    settings: Sequence[int],
    max_probability: float,
    validate: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Mask a padded batch (SPEC 4 and 5): (input_ids, labels, masked_positions)."""
    table = _connected(neighbor_indptr, neighbor_indices, settings[SIZE]) if settings[STRATEGY] == CORRMASK else None
    rules = RowRules.make(
        neighbor_lookup.numpy(), neighbor_indptr.numpy(), neighbor_indices.numpy(), settings, seed_bits.numpy(), table
    )
    return mask_on_cpu(
        rules,
        rate_bits.numpy().view(np.float64),
        input_ids,
        attention_mask,
        special_tokens_mask,
        Draws(draws.numpy(), draw_mode, draw_offset),
        max_probability=max_probability,
        validate=validate,
        graph_ids=graph_ids,
        priorities=priorities,
    )


@mask.register_kernel("cuda")
def mask_on_device(
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None,
    special_tokens_mask: torch.Tensor | None,
    draws: torch.Tensor,
    draw_mode: int,
    draw_offset: int,
    seed_bits: torch.Tensor,
    rate_bits: torch.Tensor,
    neighbor_lookup: torch.Tensor,
    neighbor_indptr: torch.Tensor,
    neighbor_indices: torch.Tensor,
    graph_ids: torch.Tensor | None,
    priorities: torch.Tensor | None,
    settings: Sequence[int],
    max_probability: float,
    validate: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Mask a padded batch of CUDA tensors; return (input_ids, labels, masked_positions)."""
    from corrmask_fast.masking.rows_cuda import mask_cuda

    if validate:  # waits for the device; without it such a token counts as a gene without neighbours
        rows = ((input_ids < 0) | (input_ids >= settings[SIZE])).any(dim=1).nonzero()
        if rows.numel():
            row = int(rows[0])
            raise_unknown_token(row, input_ids[row].cpu().numpy(), settings[SIZE])
    if validate and graph_ids is not None:
        check_graph_ids(graph_ids.cpu().numpy(), neighbor_indptr.numel() // (settings[SIZE] + 1))
    if validate and priorities is not None:
        check_priorities(priorities.cpu().numpy())
    return mask_cuda(
        input_ids,
        attention_mask,
        special_tokens_mask,
        draws,
        draw_mode,
        draw_offset,
        seed_bits,
        rate_bits,
        neighbor_lookup,
        neighbor_indptr,
        neighbor_indices,
        graph_ids,
        priorities,
        settings,
        max_probability,
    )


@mask.register_fake
def _(
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None,
    special_tokens_mask: torch.Tensor | None,
    draws: torch.Tensor,
    draw_mode: int,
    draw_offset: int,
    seed_bits: torch.Tensor,
    rate_bits: torch.Tensor,
    neighbor_lookup: torch.Tensor,
    neighbor_indptr: torch.Tensor,
    neighbor_indices: torch.Tensor,
    graph_ids: torch.Tensor | None,
    priorities: torch.Tensor | None,
    settings: Sequence[int],
    max_probability: float,
    validate: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rows, columns = input_ids.shape
    whole = torch.empty_like(input_ids, memory_format=torch.contiguous_format)
    labels = torch.empty_like(whole, dtype=torch.int64)
    return whole, labels, input_ids.new_empty((rows, math.floor(columns * max_probability)), dtype=torch.int64)
