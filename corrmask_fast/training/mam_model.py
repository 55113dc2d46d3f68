"""A masker that learns, made a part of the model that it learns with: optimised, wrapped by DDP and saved as one."""

from __future__ import annotations

import inspect
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch.nn.parallel import DistributedDataParallel

from corrmask_fast.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn

    from corrmask_fast.masking.mam import MultinomialAttentionMasker

__all__ = ["attach", "taken_off"]

NAME = "attention_masker"  # of the masker in the model
FILE = f"{NAME}.safetensors"  # beside a model's weights


def attach(masker: MultinomialAttentionMasker, model: nn.Module) -> None:
    """Make a masker a part of a Hugging Face model: ``model.attention_masker``, trained and saved with it.

    From then on a call of the model takes ``latents`` beside ``input_ids``: those that ``masker.draw`` returned, whose
    context is added to the embeddings. Without ``latents`` it is the model that it was, and ``del
    model.attention_masker`` leaves that model alone.

    Raises
    ------
    InputError
        If the model takes no ``inputs_embeds``, is of another width, or has another masker already.
    """
    if "inputs_embeds" not in inspect.signature(model.forward).parameters:
        raise InputError(
            f"the model's forward must take inputs_embeds, as BertForMaskedLM's; got {type(model).__name__}"
        )
    width = model.get_input_embeddings().weight.shape[1]  # type: ignore[operator]
    if width != masker.dim:
        raise InputError(f"the masker's dim must be the width of the model's embeddings, {width}; got {masker.dim}")
    before = getattr(model, NAME, None)
    if before is masker:
        return
    if before is not None:
        raise InputError(f"the model learns with another masker; take that off first: del model.{NAME}")
    model.add_module(NAME, masker)
    model.register_forward_pre_hook(_add_context, with_kwargs=True)
    # The same on every rank, and DDP would send them about in each step.
    buffers = [f"{NAME}.{name}" for name, _ in masker.named_buffers()]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, buffers)  # noqa: SLF001


def _add_context(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Turn ``input_ids`` and ``latents`` of a model's call into ``inputs_embeds``: a hook before its forward."""
    latents = kwargs.pop("latents", None)
    if latents is None:
        return None
    masker: Any = getattr(model, NAME)
    kwargs["inputs_embeds"] = masker.embed(model, kwargs.pop("input_ids"), kwargs.get("attention_mask"), latents)
    return args, kwargs


@contextmanager
def taken_off(model: nn.Module) -> Iterator[None]:
    """Leave a model without its masker for a while: to save it as an ordinary one."""
    masker: Any = getattr(model, NAME)
    delattr(model, NAME)
    try:
        yield
    finally:
        model.add_module(NAME, masker)
