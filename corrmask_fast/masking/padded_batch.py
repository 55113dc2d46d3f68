"""A padded batch on its way to a masker, on any device; the epoch and the step of evaluation masks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from corrmask_fast.masking.engine.draws import draws_of_tensors
from corrmask_fast.masking.engine.torch_random import VALUES, draw_ids_by_values

if TYPE_CHECKING:
    from corrmask_fast.masking.base import Masker

__all__ = ["EVALUATION_EPOCH", "LAST_STEP", "padded_inputs"]

# The epoch of evaluation masks. No training run reaches it, so every evaluation has the same masks.
EVALUATION_EPOCH = 2**63 - 1
LAST_STEP = 2**53  # the step of evaluation masks: a masker's schedules are at their ends


def padded_inputs(masker: Masker, batch: dict[str, Any], epoch: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return a masker's arguments, by place and by name, for a batch of :class:`~corrmask_fast.PaddingCollator`.

    Takes what only the masker reads (graphs, special tokens, the dataset's own epoch) out of the batch.
    """
    more: dict[str, Any] = {"graph_ids": batch.pop("graph_ids")} if "graph_ids" in batch else {}
    more = more if masker.n_graphs else {}  # those of training may be several, and evaluation without one
    more["epoch"] = batch.pop("mask_epoch")[:1] if "mask_epoch" in batch else epoch
    if VALUES in batch:
        salt, *_ = draws_of_tensors(0, None, more["epoch"], masker.draw_counter, batch["input_ids"].device)
        draws = draw_ids_by_values(masker.vocabulary, batch, salt)
        more |= {} if draws is None else {"draw_ids": draws, "epoch": None}
    return (batch["input_ids"], batch["attention_mask"], batch.pop("special_tokens_mask", None)), more
