"""Masking on a CUDA device: outputs, working memory and arguments of the kernels of every strategy."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from corrmask_fast import cuda
from corrmask_fast.cuda import THREADS, Buffer
from corrmask_fast.errors import InputError
from corrmask_fast.kernels.layout import CORRMASK, PARTNERS, PMI, RANDOM, SAMPLED, SIZE, SPAN, STRATEGY

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

__all__ = ["Arena", "kernel_of", "mask_arguments", "mask_cuda"]

# The file of each strategy's kernels; they are called by it: random_i32, random_i64, random_i32_scratch, …
KERNELS = {RANDOM: "random", SAMPLED: "random", SPAN: "span", PMI: "pmi", CORRMASK: "corrmask"}
# Sizes in bytes of structures in kernels/rows.cuh and kernels/corrmask.cu, which assert them.
ROW_STATE, SEED, POOL = 1472, 24, 640
DTYPES = {"indptr": ("torch.int32", "torch.int64"), "indices": ("torch.int32",)}  # the others: int64
MOST_COLUMNS = 2**28  # span.cu keeps a length beside a column


class Arena(NamedTuple):
    """The working memory of a block that masks a row, as the kernels lay it out."""

    bytes: int
    max_partners: int  # no more than there are columns
    wave_capacity: int  # seeds that are expanded at a time

    @classmethod
    def make(cls, columns: int, vocab_size: int, max_partners: int, threads: int, strategy: int = CORRMASK) -> Arena:
        """Return what a row of ``columns`` needs; a multiple of 16 bytes."""
        words = -(-columns // 64) * 2
        bits = 16 * -(-words // 4)
        partners = min(max_partners, columns)
        capacity = max(1, min(64, 2048 // (partners + 1)))
        more = 0
        if strategy == CORRMASK:
            genes = 8 * (-(-vocab_size // 64) * 2)
            more = POOL * (threads // 32) + genes + capacity * (SEED + 4 * (partners + 1))
        elif strategy == SPAN:
            more = 4 * 32 * words
        elif strategy == PMI:
            more = 2 * bits
        row = ROW_STATE + 3 * 4 * 32 * words + 2 * bits
        return cls(-(-(row + more) // 16) * 16, partners, capacity)


def kernel_of(strategy: int, token_bytes: int, *, in_device_memory: bool = False) -> tuple[str, str]:
    """Return the file and the name of a strategy's kernel.

    >>> kernel_of(SPAN, 8)
    ('span.cu', 'span_i64')
    """
    stem = KERNELS[strategy]
    return f"{stem}.cu", f"{stem}_i{8 * token_bytes}{'_scratch' if in_device_memory else ''}"


def mask_arguments(
    shape: tuple[int, int],
    max_masked: int,
    settings: Sequence[int],
    arena: Arena,
    draw_mode: int,
    draw_offset: int,
    *,
    tables: int,
    input_ids: Buffer,
    attention_mask: Buffer,
    special_tokens_mask: Buffer,
    draws: Buffer,
    seed: Buffer,
    rates: Buffer,
    lookup: Buffer,
    indptr: Buffer,
    indices: Buffer,
    graph_ids: Buffer,
    priorities: Buffer,
    out_ids: Buffer,
    labels: Buffer,
    masked_positions: Buffer,
) -> list[Any]:
    """Return the arguments of a strategy's kernels, in their order and types: those of all rows, then its own."""
    pad, mask, lo, hi, size, _, mask_below, random_below = settings[:8]
    strategy = settings[STRATEGY]
    shared = [
        input_ids.address,
        attention_mask.address,
        special_tokens_mask.address,
        np.int32(attention_mask.itemsize),
        np.int32(special_tokens_mask.itemsize),
        np.int64(shape[0]),
        np.uint32(shape[1]),
        draws.address,
        np.int32(draw_mode),
        np.uint64(draw_offset % 2**64),
        seed.address,
        rates.address,
        0 if strategy == RANDOM else priorities.address,  # it proposes nothing whose order they could be
        *map(np.uint32, (size, lo, hi, pad, mask)),
        np.uint64(mask_below),
        np.uint64(random_below),
        out_ids.address,
        labels.address,
        masked_positions.address,
        np.int64(max_masked),
    ]
    if strategy == CORRMASK:
        table = indptr.address, np.int32(indptr.itemsize), indices.address
        own = [*table, graph_ids.address, *map(np.uint32, (tables, arena.max_partners, arena.wave_capacity))]
    elif strategy == PMI:
        own = [lookup.address]
    else:
        own = []
    return shared + own


def mask_cuda(
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
    *,
    threads: int = THREADS,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Mask a padded batch on its device (SPEC 3 to 5): one launch, no synchronisation.

    Parameters
    ----------
    input_ids
        (rows, columns) int32 or int64, on a CUDA device; not changed. A token outside the vocabulary counts as a gene
        without neighbours.
    attention_mask, special_tokens_mask
        (rows, columns) or None. bool, int8 and uint8, int32, int64 are read as they are; others cost a conversion.
    draws, draw_mode, draw_offset
        Where draw_ids come from, see :class:`corrmask_fast.masking.rows.Draws`; ``draws`` is int64.
    seed_bits, rate_bits
        (1,) int64: the seed's bits; (4,) int64: the bits of the ends of p and λ as float64.
    neighbor_lookup, neighbor_indptr, neighbor_indices
        What the strategy looks up, see ``neighbor_tables.py``: int64, int32 or int64, and int32.
    graph_ids
        (rows,) int64 or None: which table a row goes by; a number that is none's is a row without a graph.
    priorities
        (rows, columns) int64 or None: in place of w0, or of w1 where the strategy is SAMPLED; their lower 32 bits.
    settings
        The integers of :meth:`corrmask_fast.masking.rows.RowRules.settings_of`.
    max_probability
        The largest p that ``rate_bits`` may hold: it decides the shape of the result.
    threads
        Of a block: a multiple of 32, up to 1024.

    Returns
    -------
    ``input_ids`` in the input's dtype, ``labels`` int64, ``masked_positions`` (rows, floor(columns · max_probability))
    int64, all on the input's device.

    Raises
    ------
    InputError
        If the tensors lie on different devices, or have a shape or dtype that the kernel does not take.
    """
    import torch

    inputs = {
        "draws": draws,
        "seed": seed_bits,
        "rates": rate_bits,
        "lookup": neighbor_lookup,
        "indptr": neighbor_indptr,
        "indices": neighbor_indices,
    }
    given = {"graph_ids": graph_ids, "priorities": priorities}
    numbers = inputs | {name: tensor for name, tensor in given.items() if tensor is not None}
    _check_tensors(input_ids, numbers, {"attention_mask": attention_mask, "special_tokens_mask": special_tokens_mask})
    rows, columns = input_ids.shape
    ids = input_ids.contiguous()
    max_masked = math.floor(columns * max_probability)
    out = torch.empty_like(ids)
    labels = torch.empty_like(ids, dtype=torch.int64)
    positions = torch.empty((rows, max_masked), dtype=torch.int64, device=ids.device)
    if ids.numel() == 0:  # CuPy launches one block at least
        return out, labels, positions
    if columns >= MOST_COLUMNS:
        raise InputError(f"rows must have fewer than {MOST_COLUMNS} columns on a device; got {columns}")
    device, strategy = cuda.open_device(ids.device), settings[STRATEGY]
    arena = Arena.make(columns, settings[SIZE], settings[PARTNERS], threads, strategy)
    # Held until the launch: torch may hand memory on to what this stream does next, not before.
    held = {
        "input_ids": ids,
        "attention_mask": _as_numbers(attention_mask),
        "special_tokens_mask": _as_numbers(special_tokens_mask),
        **{name: None if tensor is None else tensor.contiguous() for name, tensor in (inputs | given).items()},
        "out_ids": out,
        "labels": labels,
        "masked_positions": positions,
    }
    buffers = {name: Buffer() if t is None else Buffer(t.data_ptr(), t.element_size()) for name, t in held.items()}
    args = mask_arguments(
        (rows, columns), max_masked, settings, arena, draw_mode, draw_offset,
        tables=neighbor_indptr.numel() // (settings[SIZE] + 1), **buffers,
    )  # fmt: skip
    if arena.bytes <= device.shared_limit:
        device.launch(*kernel_of(strategy, ids.element_size()), rows, threads, args, arena.bytes)
    else:  # a huge vocabulary, or long rows on a small card: slower, in device memory
        blocks = min(rows, 2 * device.processors)
        scratch = torch.empty(blocks * arena.bytes, dtype=torch.uint8, device=ids.device)
        args += [scratch.data_ptr(), np.int64(arena.bytes // 16)]
        device.launch(*kernel_of(strategy, ids.element_size(), in_device_memory=True), blocks, threads, args)
    return out, labels, positions


def _as_numbers(mask: torch.Tensor | None) -> torch.Tensor | None:
    """Return a mask in a dtype whose elements the kernels can read: integers of 1, 4 or 8 bytes."""
    import torch

    if mask is None:
        return None
    if mask.dtype not in {torch.bool, torch.uint8, torch.int8, torch.int32, torch.int64}:
        mask = mask != 0
    return mask.contiguous()


def _check_tensors(
    input_ids: torch.Tensor, integers: dict[str, torch.Tensor], masks: dict[str, torch.Tensor | None]
) -> None:
    """Raise InputError unless the kernel can take the tensors as they are."""
    import torch

    if input_ids.dim() != 2 or input_ids.dtype not in {torch.int32, torch.int64}:
        raise InputError(
            f"input_ids must be (rows, columns) of int32 or int64; got {tuple(input_ids.shape)} {input_ids.dtype}"
        )
    for name, tensor in integers.items():
        wanted = DTYPES.get(name, ("torch.int64",))
        if str(tensor.dtype) not in wanted:
            raise InputError(f"{name} must be of {' or '.join(wanted)}; got {tensor.dtype}")
    given = {name: mask for name, mask in masks.items() if mask is not None}
    for name, mask in given.items():
        if mask.shape != input_ids.shape:
            raise InputError(
                f"{name} must have the shape of input_ids, {tuple(input_ids.shape)}; got {tuple(mask.shape)}"
            )
    for name, tensor in {**integers, **given}.items():
        if tensor.device != input_ids.device:
            raise InputError(
                f"{name} is on {tensor.device}, input_ids on {input_ids.device}; move both to one device with .to()"
            )
