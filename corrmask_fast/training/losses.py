"""Cross-entropy at masked genes, for models with logits at all columns and for models with logits at some.

Nothing here needs transformers: :func:`masked_lm_loss` is for any model and any training loop.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import cross_entropy

from corrmask_fast.errors import InputError, shown

if TYPE_CHECKING:
    from collections.abc import Callable

    from corrmask_fast.masking.base import MaskedBatch

__all__ = [
    "hidden_at", "labels_at", "logits_of", "losses_at_masked", "masked_lm_loss", "mean_loss", "summed_by_row",
    "targets_of",
]  # fmt: skip


def masked_lm_loss(
    hidden: torch.Tensor,
    head: Callable[[torch.Tensor], torch.Tensor],
    masked: MaskedBatch | Mapping[str, torch.Tensor],
    *,
    num_items_in_batch: torch.Tensor | int | None = None,
) -> torch.Tensor:
    """Return the loss of masked language modelling, with logits at the masked genes alone.

    Loss and gradients are those of a head over all columns, to float tolerance. At a rate of 15 % there are 85 % fewer
    logits, which are most of a small model's memory. This function works with any model and any training loop.

    Parameters
    ----------
    hidden
        (rows, columns, width) float: output of the model's last layer for the masked ``input_ids``.
    head
        Function or module that maps (…, width) to logits (…, vocabulary).
    masked
        Result of a masker, or a batch of a collator. It has ``labels`` (rows, columns) int64, −100 where nothing is to
        be predicted, and ``masked_positions`` (rows, K) int64, −1 after a row's positions. Without
        ``masked_positions``, the positions are found from the labels; on a GPU this waits for the device.
    num_items_in_batch
        What the summed loss is divided by. None: the number of masked genes in this batch. With accumulated gradients
        or several ranks, give the number over all batches and ranks of a step.

    Returns
    -------
    torch.Tensor
        Scalar float32: the loss in nats a gene. It is 0 if nothing is masked.

    Raises
    ------
    InputError
        If labels are missing, or shapes do not fit each other.

    See Also
    --------
    with_sparse_head : The same for a model of transformers, inside its ``forward``.

    Examples
    --------
    >>> import torch
    >>> from corrmask_fast import RandomMasker, masked_lm_loss
    >>> from corrmask_fast.testing import make_vocabulary
    >>> masker = RandomMasker(make_vocabulary(8), mlm_probability=0.5)  # 8 genes, <pad> and <mask>
    >>> embed, head = torch.nn.Embedding(10, 4), torch.nn.Linear(4, 10)
    >>> masked = masker(torch.arange(2, 10).repeat(2, 1), epoch=0)
    >>> loss = masked_lm_loss(embed(masked.input_ids), head, masked)
    >>> loss.backward()
    """
    given = masked if isinstance(masked, Mapping) else getattr(masked, "_asdict", dict)()
    labels, positions = given.get("labels"), given.get("masked_positions")
    if not isinstance(labels, torch.Tensor):
        has = ", ".join(given) or "nothing"
        raise InputError(
            f"masked must hold labels, as a masker's result and a collator's batch do; it has {has}; "
            "was the batch masked?"
        )
    if hidden.dim() != 3 or hidden.shape[:2] != labels.shape:
        raise InputError(
            f"hidden must be ({', '.join(map(str, labels.shape))}, width), as the labels are; got {tuple(hidden.shape)}"
        )
    if positions is None:
        chosen = labels != -100
        here, targets = hidden[chosen], labels[chosen]
    else:
        here, targets = hidden_at(positions, hidden), labels_at(positions, labels)
    logits = head(here)
    if not isinstance(logits, torch.Tensor) or logits.shape[:-1] != targets.shape:
        raise InputError(
            f"head must return logits, ({', '.join(map(str, targets.shape))}, vocabulary); got "
            f"{tuple(logits.shape) if isinstance(logits, torch.Tensor) else shown(logits)}"
        )
    return mean_loss(logits, targets, num_items_in_batch)


def hidden_at(positions: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
    """Return (rows, K, width) of ``hidden`` at (rows, K) int64 positions; any column where those are −1."""
    if positions.dim() != 2 or positions.dtype != torch.int64 or positions.shape[0] != hidden.shape[0]:
        raise InputError(
            f"masked_positions must be ({hidden.shape[0]}, K) int64; got {tuple(positions.shape)} {positions.dtype}"
        )
    columns = positions.clamp(min=0)
    return hidden.gather(1, columns[..., None].expand(-1, -1, hidden.shape[-1]))


def labels_at(positions: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Return (rows, K) of labels at (rows, K) int64 positions; −100 where those are −1."""
    return values.gather(1, positions.clamp(min=0)).masked_fill(positions < 0, -100)


def mean_loss(
    logits: torch.Tensor, targets: torch.Tensor, num_items_in_batch: torch.Tensor | int | None = None
) -> torch.Tensor:
    """Return the cross-entropy over all targets but −100, summed and divided by their number, or by the given one."""
    # In float32 for weights of any dtype: a softmax over a vocabulary loses too much in bfloat16.
    total = cross_entropy(logits.float().flatten(0, -2), targets.flatten(), ignore_index=-100, reduction="sum")
    count = (targets != -100).sum() if num_items_in_batch is None else num_items_in_batch
    return total / torch.as_tensor(count, device=total.device).clamp(min=1)


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
        return labels_at(positions, labels), rows.gather(1, positions.clamp(min=0))
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
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return (cross-entropy in nats, row, token, is right) of every masked gene; takes what :func:`targets_of` returns.

    A gene is right if no other token has a larger logit (of equal ones the lowest token counts).
    """
    chosen = targets != -100  # first: logits of all columns in float32 would be gigabytes
    logits, targets = logits[chosen].float(), targets[chosen]
    return cross_entropy(logits, targets, reduction="none"), rows[chosen], targets, logits.argmax(-1) == targets


def summed_by_row(logits: torch.Tensor, targets: torch.Tensor, rows: torch.Tensor, n_rows: int) -> torch.Tensor:
    """Return (n_rows, 2) float32: the summed cross-entropy in nats, and the number of targets, of each row."""
    losses, rows, *_ = losses_at_masked(logits, targets, rows)
    both = torch.stack([losses, torch.ones_like(losses)], dim=1)
    return both.new_zeros(n_rows, 2).index_add_(0, rows, both)
