"""Masked language models of transformers with a vocabulary projection at the masked positions alone.

    stock        encoder → (rows, columns, width) → head → (rows, columns, vocabulary)
    sparse head  encoder → (rows, columns, width) → at masked_positions → head → (rows, K, vocabulary)

A hook on the encoder takes the masked positions out of what it returns. So the head, whatever it is made of, stays the
model's own.
"""

from __future__ import annotations

import warnings
from functools import cache
from typing import TYPE_CHECKING, Any

import torch

from corrmask_fast.errors import InputError, import_extra, shown
from corrmask_fast.training.losses import hidden_at, labels_at, mean_loss

if TYPE_CHECKING:
    import os

transformers: Any = import_extra("transformers", "hf")

__all__ = ["BertForSparseMaskedLM", "with_sparse_head"]


def with_sparse_head(model: Any) -> Any:
    """Make a model of transformers compute logits at the masked genes alone.

    The model is changed in place: its class becomes a subclass whose ``forward`` also takes ``masked_positions`` and
    ``num_items_in_batch``, as that of :class:`~corrmask_fast.BertForSparseMaskedLM` does. Without ``masked_positions``
    it computes all logits, as before. Weights, configuration and checkpoints stay those of the stock class. Loss and
    gradients are those of the full head, to float tolerance.

    Parameters
    ----------
    model
        Masked language model of transformers with one encoder, such as BERT, RoBERTa, ESM, ELECTRA, DistilBERT or
        ModernBERT.

    Returns
    -------
    transformers.PreTrainedModel
        The same object.

    Raises
    ------
    InputError
        If ``model`` is not of transformers, has a decoder, or has no output embeddings.

    See Also
    --------
    masked_lm_loss : The same for a model that is not of transformers.

    Examples
    --------
    >>> import torch, transformers
    >>> from corrmask_fast import with_sparse_head
    >>> config = transformers.EsmConfig(
    ...     vocab_size=40, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8,
    ...     pad_token_id=0, mask_token_id=1
    ... )
    >>> model = with_sparse_head(transformers.EsmForMaskedLM(config))
    >>> ids, labels = torch.arange(2, 22).reshape(2, 10), torch.full((2, 10), -100)
    >>> labels[0, 3], labels[0, 7], labels[1, 0] = 5, 9, 12
    >>> model(ids, labels=labels, masked_positions=torch.tensor([[3, 7], [0, -1]])).logits.shape
    torch.Size([2, 2, 40])
    """
    if isinstance(model, _SparseHead):
        return model
    if not isinstance(model, transformers.PreTrainedModel):
        raise InputError(
            f"with_sparse_head needs a masked language model of transformers; got {shown(model)}; for a model of your "
            "own there is masked_lm_loss(hidden, head, masked)"
        )
    name = type(model).__name__
    if getattr(model.config, "is_encoder_decoder", False):
        raise InputError(f"{name} has a decoder; a sparse head needs a masked language model with one encoder")
    if model.get_output_embeddings() is None or model.base_model is model:
        raise InputError(
            f"{name} has no output embeddings, and so no logits of genes; take the class for masked language "
            f"modelling, {name.removesuffix('Model')}ForMaskedLM"
        )
    stock: Any = type(model)
    model.__class__ = _sparse_class(stock)
    model.base_model.register_forward_hook(_keep_masked)
    return model


def _keep_masked(encoder: Any, _: Any, outputs: Any) -> Any:
    """Take the masked positions out of what an encoder returns, where the model has just named them."""
    positions = getattr(encoder, "masked_positions", None)
    if positions is None:
        return outputs
    hidden = hidden_at(positions, outputs[0])
    if isinstance(outputs, tuple):
        return hidden, *outputs[1:]
    outputs["last_hidden_state"] = hidden
    return outputs


class _SparseHead:
    """What a sparse head changes in a model of transformers."""

    # Trainer (from 4.48) passes num_items_in_batch, and leaves the scaling to the model.
    accepts_loss_kwargs = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.base_model.register_forward_hook(_keep_masked)  # type: ignore[attr-defined]

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
        """Return logits at the masked positions, and the loss if there are labels.

        Parameters
        ----------
        input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds
            As for the stock model. Leave out those that it does not take.
        labels
            (rows, columns) int64: the token to predict, −100 where there is none.
        masked_positions
            (rows, K) int64: columns to predict, −1 after the row's positions. Every column that has a label must be
            among them. None: all columns, as in the stock model.
        num_items_in_batch
            What the summed loss is divided by: the number of labels in all accumulated batches. None: the number of
            labels in this batch.
        **kwargs
            As for the stock model.

        Returns
        -------
        transformers.modeling_outputs.MaskedLMOutput
            ``logits`` is (rows, K, vocabulary), or (rows, columns, vocabulary) without ``masked_positions``. ``loss``
            is a scalar float32 in nats a gene; it is 0 if there is no label, where the stock models return NaN. With
            ``return_dict=False`` a tuple.

        Raises
        ------
        InputError
            If ``masked_positions`` is not (rows, K) int64.

        Warns
        -----
        UserWarning
            In training, if there are labels and no ``masked_positions``: then all logits are computed.
        """
        model: Any = self
        as_dict = kwargs.pop("return_dict", None)
        as_dict = getattr(model.config, "return_dict", True) if as_dict is None else as_dict
        more = {"token_type_ids": token_type_ids, "position_ids": position_ids, "inputs_embeds": inputs_embeds}
        more = {name: value for name, value in more.items() if value is not None}
        if masked_positions is None and labels is not None and model.training and not torch.compiler.is_compiling():
            warnings.warn(
                "labels came without masked_positions: logits are computed at all positions; make the collator with "
                "return_masked_positions=True",
                stacklevel=2,
            )
        encoder = model.base_model
        encoder.masked_positions = masked_positions
        try:
            outputs = super().forward(  # type: ignore[misc]
                input_ids, attention_mask=attention_mask, **more, **kwargs, return_dict=True
            )
        finally:
            encoder.masked_positions = None  # the encoder may be called by itself
        if labels is not None:
            targets = labels if masked_positions is None else labels_at(masked_positions, labels)
            outputs = type(outputs)(**{**outputs, "loss": mean_loss(outputs.logits, targets, num_items_in_batch)})
        return outputs if as_dict else outputs.to_tuple()

    def save_pretrained(
        self, save_directory: str | os.PathLike[str], is_main_process: bool = True, **kwargs: Any
    ) -> Any:
        """Save an ordinary checkpoint of the stock class, such as ``BertForMaskedLM``.

        Parameters
        ----------
        save_directory
            Folder to write to.
        is_main_process
            Whether this process writes the configuration.
        **kwargs
            As for ``PreTrainedModel.save_pretrained``.

        Returns
        -------
        object
            What ``PreTrainedModel.save_pretrained`` returns.
        """
        result = super().save_pretrained(  # type: ignore[misc]
            save_directory, is_main_process=is_main_process, **kwargs
        )
        # Hugging Face wrote the name of this class, which other programs do not know.
        config = self.config  # type: ignore[attr-defined]
        config.architectures = [next(one.__name__ for one in type(self).mro() if not issubclass(one, _SparseHead))]
        if is_main_process:
            config.save_pretrained(save_directory)
        return result


@cache
def _sparse_class(stock: type) -> type:
    """Return the subclass of a stock model's class that has a sparse head."""
    if stock is transformers.BertForMaskedLM:
        return BertForSparseMaskedLM
    name = stock.__name__.replace("ForMaskedLM", "ForSparseMaskedLM")
    return type(name, (_SparseHead, stock), {"__module__": __name__, "__doc__": _SparseHead.__doc__})


def __getattr__(name: str) -> Any:
    """Return ``EsmForSparseMaskedLM`` and the like: so these classes can be imported, and their models pickled."""
    stock = getattr(transformers, name.replace("ForSparseMaskedLM", "ForMaskedLM"), None)
    if not name.endswith("ForSparseMaskedLM") or stock is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _sparse_class(stock)


class BertForSparseMaskedLM(_SparseHead, transformers.BertForMaskedLM):
    """``BertForMaskedLM``, Geneformer's architecture, with logits at the masked genes alone.

    Loss and gradients are those of the full head, to float tolerance. At a rate of 15 % there are 85 % fewer logits,
    which are most of a small model's memory and a large part of its step. Without ``masked_positions`` all logits are
    computed. Weights, configuration and checkpoints are those of ``BertForMaskedLM``: each class loads what the other
    saved.

    Parameters
    ----------
    *args, **kwargs
        As for ``BertForMaskedLM``: the configuration.

    See Also
    --------
    with_sparse_head : The same for other models of transformers.

    Examples
    --------
    >>> import torch, transformers
    >>> from corrmask_fast import BertForSparseMaskedLM
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
