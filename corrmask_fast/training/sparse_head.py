"""``BertForMaskedLM``, Geneformer's architecture, with a vocabulary projection at the masked positions alone."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import cross_entropy

from corrmask_fast.errors import InputError, import_extra

if TYPE_CHECKING:
    import os

transformers: Any = import_extra("transformers", "hf")

__all__ = ["BertForSparseMaskedLM"]


class BertForSparseMaskedLM(transformers.BertForMaskedLM):
    """A ``BertForMaskedLM`` that computes logits at ``masked_positions`` alone, if these are given.

    Loss and gradients are those of the full head to float tolerance. At a rate of 15 % there are 85 % fewer logits.
    The logits are most of a small model's memory, and a large part of its step. Weights, configuration and checkpoints
    are those of ``BertForMaskedLM``: each class loads what the other saved.

    Examples
    --------
    >>> config = transformers.BertConfig(
    ...     vocab_size=40, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8
    ... )
    >>> model = BertForSparseMaskedLM(config)
    >>> ids, labels = torch.arange(2, 22).reshape(2, 10), torch.full((2, 10), -100)
    >>> labels[0, 3], labels[0, 7], labels[1, 0] = 5, 9, 12
    >>> output = model(ids, labels=labels, masked_positions=torch.tensor([[3, 7], [0, -1]]))
    >>> output.logits.shape
    torch.Size([2, 2, 40])
    """

    # Trainer (from 4.48) passes num_items_in_batch, and leaves the scaling to the model.
    accepts_loss_kwargs = True

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        masked_positions: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        **kwargs: Any,
    ) -> Any:
        """Return a ``MaskedLMOutput``.

        Parameters
        ----------
        input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, **kwargs
            As for ``BertForMaskedLM``.
        labels
            (rows, columns) int64: the token to predict, −100 where there is none.
        masked_positions
            (rows, K) int64: columns to predict, −1 after the row's positions; all that have a label must be among them.
            ``logits`` is (rows, K, vocabulary) then. None: all columns, as in ``BertForMaskedLM``.
        num_items_in_batch
            The number of labels in all accumulated batches. The summed loss is divided by it; None: by the number of
            labels in this batch.

        Notes
        -----
        The loss is 0 if there is no label (that of ``BertForMaskedLM`` is NaN).

        Raises
        ------
        InputError
            If ``masked_positions`` is not (rows, K) int64.
        """
        inputs = {"token_type_ids": token_type_ids, "position_ids": position_ids, "inputs_embeds": inputs_embeds}
        as_dict = kwargs.pop("return_dict", None)
        as_dict = getattr(self.config, "return_dict", True) if as_dict is None else as_dict
        outputs = self.bert(input_ids, attention_mask=attention_mask, **inputs, **kwargs, return_dict=True)
        hidden, targets = outputs[0], labels
        if masked_positions is not None:
            hidden, targets = _at(masked_positions, hidden, labels)
        elif labels is not None and self.training and not torch.compiler.is_compiling():
            warnings.warn(
                "labels came without masked_positions: logits are computed at all positions; make the collator with "
                "return_masked_positions=True",
                stacklevel=2,
            )
        logits = self.cls(hidden)
        loss = None
        if targets is not None:
            # In float32 for weights of any dtype: a softmax over a vocabulary loses too much in bfloat16.
            total = cross_entropy(logits.float().flatten(0, -2), targets.flatten(), ignore_index=-100, reduction="sum")
            count = (targets != -100).sum() if num_items_in_batch is None else num_items_in_batch
            loss = total / torch.as_tensor(count, device=total.device).clamp(min=1)
        output = transformers.modeling_outputs.MaskedLMOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )
        return output if as_dict else output.to_tuple()

    def save_pretrained(
        self, save_directory: str | os.PathLike[str], is_main_process: bool = True, **kwargs: Any
    ) -> Any:
        """Save an ordinary ``BertForMaskedLM`` checkpoint."""
        result = super().save_pretrained(save_directory, is_main_process=is_main_process, **kwargs)
        # Hugging Face wrote the name of this class, which other programs do not know.
        self.config.architectures = ["BertForMaskedLM"]
        if is_main_process:
            self.config.save_pretrained(save_directory)
        return result


def _at(
    positions: torch.Tensor, hidden: torch.Tensor, labels: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return (rows, K, width) of ``hidden`` and (rows, K) of ``labels`` at positions, −100 where those are −1."""
    if positions.dim() != 2 or positions.dtype != torch.int64 or positions.shape[0] != hidden.shape[0]:
        raise InputError(
            f"masked_positions must be ({hidden.shape[0]}, K) int64; got {tuple(positions.shape)} {positions.dtype}"
        )
    columns = positions.clamp(min=0)
    if labels is not None:
        labels = labels.gather(1, columns).masked_fill(positions < 0, -100)
    return hidden.gather(1, columns[..., None].expand(-1, -1, hidden.shape[-1])), labels
