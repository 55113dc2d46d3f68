"""Masking on a CUDA device: a masker's launch plan, outputs, working memory, and one launch for a batch."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from corrmask_fast import cuda
from corrmask_fast.cuda import Buffer
from corrmask_fast.errors import InputError
from corrmask_fast.kernels.layout import KERNELS, Kernels, Settings
from corrmask_fast.masking.engine.checks import check_values_on_device

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Arena", "DevicePlan", "kernel_arguments", "kernel_of", "make_plan", "mask_batch", "pack"]

THREADS = cuda.THREADS  # of a block: a multiple of 32, up to 1024
# Sizes in bytes of structures in kernels/rows.cuh and kernels/corrmask.cu, which assert them.
ROW_STATE, SEED = 1488, 24
INT64 = ("int64",)
FIXED = {"seed": INT64, "rates": INT64, "lookup": INT64, "indptr": ("int32", "int64"), "indices": ("int32",)}
FIXED |= {"costs": ("int32",), "edge_costs": ("int32",)}
MASKS = frozenset({torch.bool, torch.uint8, torch.int8, torch.int32, torch.int64})  # read as they are
MAX_COLUMNS = 2**28  # a kernel may keep four bits beside a column


class Arena(NamedTuple):
    """The working memory of a block that masks a row, as the kernels lay it out."""

    bytes: int
    max_partners: int  # no more than there are columns
    wave_capacity: int  # seeds that are expanded at a time

    @classmethod
    @lru_cache(maxsize=256)
    def make(cls, columns: int, vocab_size: int, max_partners: int, kernels: Kernels, grouped: int = 0) -> Arena:
        """Return what a row of ``columns`` needs; a multiple of 16 bytes."""
        words = -(-columns // 64) * 2
        each, bits = 4 * 32 * words, 16 * -(-words // 4)  # bytes of a number for each column, and of a set of columns
        partners = min(max_partners, columns)
        capacity = max(1, min(64, 2048 // (partners + 1)))
        size = ROW_STATE + (3 + kernels.columns + grouped) * each + (2 + kernels.sets) * bits
        if kernels.reads in {"graph", "gene sets"}:
            size += 8 * (-(-vocab_size // 64) * 2)
        if kernels.waves:
            size += capacity * (2 * 8 + 2 * SEED + 4 * (partners + 1))
        return cls(-(-size // 16) * 16, partners, capacity)


class DevicePlan(NamedTuple):
    """All that the CUDA kernels take of a masker, checked and packed once."""

    device: torch.device
    kernels: Kernels
    settings: Settings
    seed: int  # addresses
    rates: int
    costs: int  # 0 where all tokens weigh the same
    constants: tuple[
        Any, ...
    ]  # from the vocabulary's size to the bounds of replacement, in the kernels' order and types
    table: tuple[Any, ...]  # what the strategy looks up, in the same way
    edge_costs: int
    n_graphs: int
    max_probability: float
    held: tuple[torch.Tensor, ...] = ()  # the memory at the addresses


def make_plan(
    seed_bits: torch.Tensor,
    rate_bits: torch.Tensor,
    lookup: torch.Tensor,
    indptr: torch.Tensor,
    indices: torch.Tensor,
    costs: torch.Tensor,
    edge_costs: torch.Tensor,
    settings: Sequence[int],
    max_probability: float,
) -> DevicePlan:
    """Check and pack what a masker holds on its device: the last arguments of :func:`~.ops.mask`."""
    held = dict(zip(FIXED, (seed_bits, rate_bits, lookup, indptr, indices, costs, edge_costs), strict=True))
    for name, tensor in held.items():
        if str(tensor.dtype).removeprefix("torch.") not in FIXED[name]:
            raise InputError(f"{name} must be of {' or '.join(FIXED[name])}; got {tensor.dtype}")
        if tensor.device != indptr.device:
            raise InputError(f"{name} is on {tensor.device}, indptr on {indptr.device}; move the masker with .to()")
        held[name] = tensor.contiguous()
    buffers = {name: Buffer(t.data_ptr(), t.element_size()) if t.numel() else Buffer() for name, t in held.items()}
    plan = pack(settings, max_probability, n_starts=indptr.numel(), device=indptr.device, **buffers)
    return plan._replace(held=tuple(held.values()))


def pack(
    settings: Sequence[int],
    max_probability: float,
    *,
    n_starts: int,
    device: torch.device,
    seed: Buffer,
    rates: Buffer,
    lookup: Buffer,
    indptr: Buffer,
    indices: Buffer,
    costs: Buffer,
    edge_costs: Buffer,
) -> DevicePlan:
    """Return the plan of buffers that lie anywhere; ``n_starts`` is the number of entries of ``indptr``."""
    constants = Settings(*settings)
    kernels = KERNELS[constants.strategy]
    table: tuple[Any, ...] = ()
    if kernels.reads == "graph":
        table = indptr.address, np.int32(indptr.itemsize), indices.address
    elif kernels.reads == "gene sets":
        table = indptr.address, np.int32(indptr.itemsize), indices.address, np.uint32(n_starts - 1)
    elif kernels.reads == "pairs":
        table = (lookup.address,)
    numbers = (constants.size, constants.lo, constants.hi, constants.pad, constants.mask)
    return DevicePlan(
        device=device,
        kernels=kernels,
        settings=constants,
        seed=seed.address,
        rates=rates.address,
        costs=costs.address,
        constants=(*map(np.uint32, numbers), np.uint64(constants.mask_below), np.uint64(constants.random_below)),
        table=table,
        edge_costs=edge_costs.address,
        n_graphs=n_starts // (constants.size + 1) if kernels.reads == "graph" else 0,
        max_probability=max_probability,
    )


def kernel_of(kernels: Kernels, token_bytes: int, *, in_device_memory: bool = False) -> tuple[str, str]:
    """Return the file and the name of a strategy's kernel.

    >>> kernel_of(Kernels("x"), 8)
    ('x.cu', 'x_i64')
    """
    return f"{kernels.stem}.cu", f"{kernels.stem}_i{8 * token_bytes}{'_scratch' if in_device_memory else ''}"


def kernel_arguments(
    plan: DevicePlan,
    arena: Arena,
    shape: tuple[int, int],
    draw_mode: int,
    draw_offset: int,
    *,
    input_ids: Buffer,
    attention_mask: Buffer,
    special_tokens_mask: Buffer,
    draws: Buffer,
    graph_ids: Buffer,
    priorities: Buffer,
    out_ids: Buffer,
    labels: Buffer,
    masked_positions: Buffer,
) -> list[Any]:
    """Return the arguments of a strategy's kernels, in their order and types: those of all rows, then its own."""
    rows, columns = shape
    arguments = [
        *(input_ids.address, attention_mask.address, special_tokens_mask.address),
        *(np.int32(attention_mask.itemsize), np.int32(special_tokens_mask.itemsize)),
        *(np.int64(rows), np.uint32(columns)),
        *(draws.address, np.int32(draw_mode), np.uint64(draw_offset % 2**64)),
        *(plan.seed, plan.rates, plan.costs, priorities.address if plan.kernels.priorities else 0),
        np.int32(plan.settings.grouped),
        *plan.constants,
        *(out_ids.address, labels.address, masked_positions.address),
        np.int64(math.floor(columns * plan.max_probability)),
        *plan.table,
    ]
    if plan.kernels.reads == "graph":
        arguments += [graph_ids.address, np.uint32(plan.n_graphs)]
    if plan.kernels.waves:
        arguments += [plan.edge_costs, np.uint32(arena.max_partners), np.uint32(arena.wave_capacity)]
    return arguments


def mask_batch(
    plan: DevicePlan,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None,
    special_tokens_mask: torch.Tensor | None,
    draws: torch.Tensor,
    draw_mode: int,
    draw_offset: int,
    graph_ids: torch.Tensor | None,
    priorities: torch.Tensor | None,
    validate: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Mask a checked batch on its device (SPEC 3 to 5): one launch, and no synchronisation without ``validate``.

    Without ``validate`` a token outside the vocabulary counts as a gene without neighbours, a number of no graph as a
    row without a graph, and of a priority the lower 32 bits count. Masks of bool, int8, uint8, int32 and int64 are read
    as they are; others cost a conversion.

    Returns
    -------
    ``input_ids`` in the input's dtype, ``labels`` int64, ``masked_positions`` (rows, floor(columns · max_probability))
    int64, all on the input's device.
    """
    if validate:
        ranks = None if plan.kernels.priorities == "columns" else priorities  # those the masker itself makes
        check_values_on_device(input_ids, graph_ids, ranks, plan.settings.size, plan.n_graphs)
    rows, columns = input_ids.shape
    ids = input_ids.contiguous()
    out = torch.empty_like(ids)
    labels = torch.empty_like(ids, dtype=torch.int64)
    positions = torch.empty((rows, math.floor(columns * plan.max_probability)), dtype=torch.int64, device=ids.device)
    if ids.numel() == 0:  # CuPy launches one block at least
        return out, labels, positions
    if columns >= MAX_COLUMNS:
        raise InputError(f"rows must have fewer than {MAX_COLUMNS} columns on a device; got {columns}")
    device = cuda.open_device(plan.device)
    settings = plan.settings
    arena = Arena.make(columns, settings.size, settings.max_partners, plan.kernels, settings.grouped)
    # Held until the launch: torch may hand memory on to what this stream does next, not before.
    held = {
        "input_ids": ids,
        "attention_mask": _as_numbers(attention_mask),
        "special_tokens_mask": _as_numbers(special_tokens_mask),
        "draws": draws.contiguous(),
        "graph_ids": None if graph_ids is None else graph_ids.contiguous(),
        "priorities": None if priorities is None else priorities.contiguous(),
        "out_ids": out,
        "labels": labels,
        "masked_positions": positions,
    }
    buffers = {name: Buffer() if t is None else Buffer(t.data_ptr(), t.element_size()) for name, t in held.items()}
    args = kernel_arguments(plan, arena, (rows, columns), draw_mode, draw_offset, **buffers)
    if arena.bytes <= device.shared_limit:
        device.launch(*kernel_of(plan.kernels, ids.element_size()), rows, THREADS, args, arena.bytes)
    else:  # a huge vocabulary, or long rows on a small card: slower, in device memory
        blocks = min(rows, 2 * device.processors)
        scratch = torch.empty(blocks * arena.bytes, dtype=torch.uint8, device=ids.device)
        args += [scratch.data_ptr(), np.int64(arena.bytes // 16)]
        name = kernel_of(plan.kernels, ids.element_size(), in_device_memory=True)
        device.launch(*name, blocks, THREADS, args)
    return out, labels, positions


def _as_numbers(mask: torch.Tensor | None) -> torch.Tensor | None:
    """Return a mask in a dtype whose elements the kernels can read: integers of 1, 4 or 8 bytes."""
    if mask is None:
        return None
    return (mask if mask.dtype in MASKS else mask != 0).contiguous()
