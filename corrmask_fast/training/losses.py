"""Cross-entropy at masked genes, whatever the columns that a model returns logits of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from corrmask_fast.errors import InputError

__all__ = ["logits_of", "summed_by_row", "targets_of"]


def logits_of(outputs: Any, *, behind_loss: bool = False) -> torch.Tensor:
    """Return the logits among a model's outputs: by name, the outputs themselves, or the first (the second) of them."""
    logits = outputs
    if isinstance(outputs, Mapping):
        logits = outputs.get("logits")
    elif isinstance(outputs, list | tuple):
        logits = outputs[int(behind_loss)] if len(outputs) > behind_loss else None
    if not isinstance(logits, torch.Tensor):
        names = list(outputs) if isinstance(outputs, Mapping) else type(outputs).__name__
        raise InputError(
            f"the model must return logits, as models for masked language modelling do; it returned {names}"
        )
    return logits


def targets_of(
    logits: torch.Tensor, labels: torch.Tensor, positions: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the label of each of the logits, −100 where there is none, and the row that it is of.

    Parameters
    ----------
    logits
        (rows, columns, tokens); (rows, K, tokens) at ``positions``; or (n, tokens) at the n labels, or at all columns.
    labels
        (rows, columns) int64, −100 where nothing is to be predicted.
    positions
        (rows, K) int64, −1 behind a row's own.

    Returns
    -------
    Two int64 tensors of the logits' shape without ``tokens``.
    """
    every_row = torch.arange(len(labels), device=labels.device)[:, None]
    shape = logits.shape[:-1]
    if shape == labels.shape:
        return labels, every_row.expand_as(labels)
    if positions is not None and shape == positions.shape:
        targets = labels.gather(1, positions.clamp(min=0)).masked_fill(positions < 0, -100)
        return targets, every_row.expand_as(positions)
    if shape == (labels.numel(),):
        return labels.flatten(), every_row.expand_as(labels).flatten()
    chosen = labels != -100
    targets = labels[chosen]
    if shape != targets.shape:
        raise InputError(
            f"the model returned logits of shape {tuple(logits.shape)} for labels of shape {tuple(labels.shape)}; they "
            "must be of all columns, of the masked_positions, or of the columns that have a label"
        )
    return targets, every_row.expand_as(labels)[chosen]


def summed_by_row(logits: torch.Tensor, targets: torch.Tensor, rows: torch.Tensor, n_rows: int) -> torch.Tensor:
    """Return (n_rows, 2) float32: the summed cross-entropy in nats, and the number of targets, of each row."""
    losses = cross_entropy(logits.flatten(0, -2).float(), targets.flatten(), ignore_index=-100, reduction="none")
    both = torch.stack([losses, (targets.flatten() != -100).float()], dim=1)
    return both.new_zeros(n_rows, 2).index_add_(0, rows.flatten(), both)
