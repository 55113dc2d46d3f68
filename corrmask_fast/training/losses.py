"""Cross-entropy at masked genes, for models with logits at all columns and for models with logits at some."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from corrmask_fast.errors import InputError

__all__ = ["logits_of", "losses_at_masked", "summed_by_row", "targets_of"]


def logits_of(outputs: Any) -> torch.Tensor:
    """Return a model's logits: its output of that name, its only output, or the first of several after the loss."""
    logits = outputs
    if isinstance(outputs, Mapping):
        logits = outputs.get("logits")
    elif isinstance(outputs, list | tuple):
        has_loss = len(outputs) > 1 and isinstance(outputs[0], torch.Tensor) and outputs[0].dim() == 0
        logits = outputs[int(has_loss)] if outputs else None
    if not isinstance(logits, torch.Tensor):
        names = list(outputs) if isinstance(outputs, Mapping) else type(outputs).__name__
        raise InputError(
            f"the model must return logits, as models for masked language modelling do; it returned {names}"
        )
    return logits


def targets_of(
    logits: torch.Tensor,
    labels: torch.Tensor,
    positions: torch.Tensor | None = None,
    cu_seq_lens: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the label and the row of each of the logits; the label is −100 where nothing is to be predicted.

    Parameters
    ----------
    logits
        (rows, columns, tokens); (rows, K, tokens) at ``positions``; (rows · columns, tokens); or (n, tokens) at the n
        labels.
    labels
        (rows, columns) int64, −100 where nothing is to be predicted.
    positions
        (rows, K) int64, −1 after the row's positions.
    cu_seq_lens
        (cells + 1,): where the cells of a packed batch begin, and the end; a cell is a row then.

    Returns
    -------
    Two int64 tensors of the logits' shape without ``tokens``.
    """
    if cu_seq_lens is None:
        rows = torch.arange(len(labels), device=labels.device)[:, None].expand_as(labels)
    else:
        columns = torch.arange(labels.shape[1], dtype=cu_seq_lens.dtype, device=labels.device)
        rows = torch.bucketize(columns, cu_seq_lens[1:], right=True)[None]
    shape = logits.shape[:-1]
    if shape == labels.shape:
        return labels, rows
    if positions is not None and shape == positions.shape:
        columns = positions.clamp(min=0)
        return labels.gather(1, columns).masked_fill(positions < 0, -100), rows.gather(1, columns)
    chosen = torch.ones_like(labels, dtype=torch.bool) if shape == (labels.numel(),) else labels != -100
    targets = labels[chosen]
    if shape != targets.shape:
        raise InputError(
            f"the model returned logits of shape {tuple(logits.shape)} for labels of shape {tuple(labels.shape)}; they "
            "must be of all columns, of the masked_positions, or of the columns that have a label"
        )
    return targets, rows[chosen]


def losses_at_masked(
    logits: torch.Tensor, targets: torch.Tensor, rows: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return (cross-entropy in nats, row, token) of every masked gene; takes what :func:`targets_of` returns."""
    chosen = targets != -100  # first: logits of all columns in float32 would be gigabytes
    targets = targets[chosen]
    return cross_entropy(logits[chosen].float(), targets, reduction="none"), rows[chosen], targets


def summed_by_row(logits: torch.Tensor, targets: torch.Tensor, rows: torch.Tensor, n_rows: int) -> torch.Tensor:
    """Return (n_rows, 2) float32: the summed cross-entropy in nats, and the number of targets, of each row."""
    losses, rows, _ = losses_at_masked(logits, targets, rows)
    both = torch.stack([losses, torch.ones_like(losses)], dim=1)
    return both.new_zeros(n_rows, 2).index_add_(0, rows, both)
