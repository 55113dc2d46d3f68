"""Where each row's draw comes from: it is given, or counted, or computed from the row's content and a salt."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch

from corrmask_fast.errors import InputError, check_integer
from corrmask_fast.kernels.layout import CONTENT, COUNTED, GIVEN
from corrmask_fast.masking.engine.checks import check_array, check_int64, check_one_number

GOLDEN = 0x9E3779B97F4A7C15


class Draws(NamedTuple):
    """Where a CPU kernel finds each row's draw_id."""

    values: np.ndarray  # int64: (rows,) draw ids (GIVEN), (1,) a counter (COUNTED), or (1,) a salt (CONTENT)
    mode: int  # GIVEN, COUNTED or CONTENT of kernels/layout.py
    offset: int = 0  # COUNTED: added to the counter (rank << 48)


def epoch_salt(epoch: Any) -> int:
    """Return what is added to a row's content for an epoch: epoch · 0x9E3779B97F4A7C15 mod 2**64."""
    return check_integer("epoch", epoch, 0, 2**63 - 1) * GOLDEN % 2**64


def mix(x: int) -> int:
    """splitmix64's finaliser."""
    x %= 2**64
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) % 2**64
    return x ^ (x >> 31)


def draws_of_tensors(
    rows: int,
    draw_ids: torch.Tensor | None,
    epoch: int | torch.Tensor | None,
    counter: torch.Tensor,
    device: torch.device,
) -> tuple[torch.Tensor, int, int]:
    """Return (values, mode, offset), as of :class:`Draws`, for a padded batch; the values stay a tensor."""
    if draw_ids is not None:
        if epoch is not None:
            raise InputError("give draw_ids or epoch, not both: each alone decides the draw")
        check_int64("draw_ids", draw_ids, (rows,), device)
        return draw_ids.contiguous(), GIVEN, 0
    if epoch is None:
        return counter, COUNTED, signed((_rank() << 48) % 2**64)
    if torch.compiler.is_compiling() and not isinstance(epoch, torch.Tensor):
        epoch = torch.full((1,), epoch, dtype=torch.int64, device=device)  # a constant would compile for each epoch
    if isinstance(epoch, torch.Tensor):
        check_one_number("an epoch", epoch, device)
        return epoch.reshape(1) * signed(GOLDEN), CONTENT, 0
    # Filled on the device: a copy from the host would wait, and a CUDA graph could not capture it.
    return torch.full((1,), signed(epoch_salt(epoch)), dtype=torch.int64, device=device), CONTENT, 0


def draws_of_arrays(rows: int, draw_ids: np.ndarray | None, epoch: int | None, salt: int | None) -> Draws:
    """Return the draws of ragged rows: by exactly one of the three."""
    if sum(given is not None for given in (draw_ids, epoch, salt)) != 1:
        raise InputError("mask_ragged needs one of draw_ids, epoch and salt: each alone decides the draw")
    if draw_ids is not None:
        return Draws(check_array("draw_ids", draw_ids, rows, np.int64), GIVEN)
    number = epoch_salt(epoch) if salt is None else salt
    return Draws(np.array([signed(number)], np.int64), CONTENT)


def priorities_of(scores: torch.Tensor) -> torch.Tensor:
    """Return priorities for scores: the largest score comes first, of equal ones the earlier column.

    Parameters
    ----------
    scores
        (rows, columns), any real dtype; NaN counts as the largest, as in ``torch.sort``.

    Returns
    -------
    (rows, columns) int64, spread evenly over [0, 2**32): kernels find the first few quickest so.

    Examples
    --------
    >>> (priorities_of(torch.tensor([[0.5, 2.0, 0.5, 1.0]])) >> 30).tolist()
    [[2, 0, 3, 1]]
    """
    order = scores.sort(dim=1, descending=True, stable=True).indices
    step = 2**32 // max(scores.shape[1], 1)
    ranks = torch.arange(scores.shape[1], device=scores.device) * step
    return torch.empty_like(order).scatter_(1, order, ranks.expand_as(order))


def _rank() -> int:
    distributed = torch.distributed
    return distributed.get_rank() if distributed.is_available() and distributed.is_initialized() else 0


def signed(value: int) -> int:
    """Return the int64 of the same bits."""
    return value - 2**64 if value >= 2**63 else value
