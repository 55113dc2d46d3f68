"""Masking as a ``torch.library`` operator, which ``torch.compile`` sees: on the CPU by Numba, on a GPU by CuPy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from corrmask_fast.kernels.layout import GIVEN, KERNELS, NEEDED, Settings
from corrmask_fast.masking.engine import rows
from corrmask_fast.masking.engine.checks import check_batch, check_int64, check_row_numbers
from corrmask_fast.masking.engine.draws import Draws

__all__ = ["mask", "mask_on_device"]

N_BATCH = 9  # arguments that are the batch; the others are the masker's: Masker.fixed_arguments
MAX_PLANS = 4  # kept, of maskers that are called as operators

_plans: dict[tuple[Any, ...], tuple[rows.CpuPlan, list[torch.Tensor]]] = {}


@torch.library.custom_op("corrmask_fast::mask", mutates_args=())
def mask(
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None,
    special_tokens_mask: torch.Tensor | None,
    draws: torch.Tensor,
    draw_mode: int,
    draw_offset: int,
    graph_ids: torch.Tensor | None,
    priorities: torch.Tensor | None,
    validate: bool,
    seed_bits: torch.Tensor,
    rate_bits: torch.Tensor,
    lookup: torch.Tensor,
    indptr: torch.Tensor,
    indices: torch.Tensor,
    costs: torch.Tensor,
    edge_costs: torch.Tensor,
    settings: Sequence[int],
    max_probability: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Mask a padded batch (SPEC 4 and 5): (input_ids, labels, masked_positions).

    Parameters
    ----------
    input_ids, attention_mask, special_tokens_mask, graph_ids, priorities
        As :meth:`corrmask_fast.Masker.forward` takes them.
    draws, draw_mode, draw_offset
        int64 tensor and numbers: see :class:`corrmask_fast.masking.engine.draws.Draws`.
    validate
        Whether a token, a graph's number or a priority out of range raises.
    seed_bits, rate_bits
        (1,) int64: the seed's bits; (4,) int64: the bits of the ends of p and of λ as float64.
    lookup, indptr, indices
        What the strategy looks up, see ``tables.py``: int64, int32 or int64, and int32.
    costs, edge_costs
        The bits of the costs of tokens and of neighbours as int32; empty where all weigh the same.
    settings
        The numbers of :class:`corrmask_fast.kernels.layout.Settings`.
    max_probability
        The largest p that ``rate_bits`` may hold: it decides the shape of ``masked_positions``.
    """
    draw = draws, draw_mode, draw_offset
    _check((input_ids, attention_mask, special_tokens_mask, *draw, graph_ids, priorities, validate), indptr, settings)
    return rows.mask_batch(
        _plan(seed_bits, rate_bits, lookup, indptr, indices, costs, edge_costs, settings, max_probability),
        *(input_ids, attention_mask, special_tokens_mask, Draws(draws.numpy(), draw_mode, draw_offset)),
        *(graph_ids, priorities),
        validate=validate,
    )


@mask.register_kernel("cuda")
def mask_on_device(*arguments: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Mask a padded batch of CUDA tensors: the arguments of :func:`mask`."""
    from corrmask_fast.masking.engine import device

    batch, fixed = arguments[:N_BATCH], arguments[N_BATCH:]
    _check(batch, fixed[3], fixed[-2])
    return device.mask_batch(device.make_plan(*fixed), *batch)


@mask.register_fake
def _(*arguments: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    input_ids, max_probability = arguments[0], arguments[-1]
    n_rows, columns = input_ids.shape
    whole = torch.empty_like(input_ids, memory_format=torch.contiguous_format)
    labels = torch.empty_like(whole, dtype=torch.int64)
    return whole, labels, input_ids.new_empty((n_rows, math.floor(columns * max_probability)), dtype=torch.int64)


def _check(batch: tuple[Any, ...], indptr: torch.Tensor, settings: Sequence[int]) -> None:
    """Check a batch that may have come without a masker: kernels would read whatever lies there."""
    input_ids, attention_mask, special_tokens_mask, draws, draw_mode, _, graph_ids, priorities, _ = batch
    constants = Settings(*settings)
    kernels = KERNELS[constants.strategy]
    check_batch(input_ids, attention_mask, special_tokens_mask, indptr.device)
    n_graphs = indptr.numel() // (constants.size + 1) if kernels.reads == "graph" else 0
    check_row_numbers(graph_ids, priorities, n_graphs, kernels.priorities in NEEDED, input_ids)
    check_int64("draws", draws, (input_ids.shape[0] if draw_mode == GIVEN else 1,), input_ids.device)


def _plan(*fixed: Any) -> rows.CpuPlan:
    """Return the plan of a masker, made once: an operator is given its buffers alone, at each call.

    Buffers are known by their storage, which is no other's as long as a tensor of it is kept here, and by the address
    of their memory, which a storage leaves for another when it is sent to a process.
    """
    *buffers, settings, max_probability = fixed
    key = *settings, max_probability, *(part for buffer in buffers for part in _memory_of(buffer))
    if key not in _plans:
        while len(_plans) >= MAX_PLANS:
            _plans.pop(next(iter(_plans)), None)
        _plans[key] = rows.make_plan(*fixed), buffers
    return _plans[key][0]


def _memory_of(tensor: torch.Tensor) -> tuple[int, int, int]:
    return tensor.untyped_storage()._cdata, tensor.data_ptr(), tensor.numel()  # noqa: SLF001 (no public identity)
