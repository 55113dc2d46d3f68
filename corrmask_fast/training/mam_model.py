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

    from corrmask_fast.masking.strategies.mam import MultinomialAttentionMasker

__all__ = ["attach", "attached", "detach", "detached"]

NAME = "attention_masker"  # of the masker in the model
FILE = f"{NAME}.safetensors"  # beside a model's weights
IGNORED = "_ddp_params_and_buffers_to_ignore"  # where DDP looks for what it shall not send about


def attach(masker: MultinomialAttentionMasker, model: nn.Module) -> None:
    """Make a masker a part of a Hugging Face model: ``model.attention_masker``, trained and saved with it.

    From then on a call of the model takes ``latents`` beside ``input_ids``: those that ``masker.draw`` returned, whose
    context is added to the embeddings. Without ``latents`` it is the model that it was, and :func:`detach` leaves that
    model alone. The masker moves to the device and the dtype of the model's embeddings.

    Raises
    ------
    InputError
        If the model takes no ``inputs_embeds``, is of another width, or has another masker already.
    """
    if "inputs_embeds" not in inspect.signature(model.forward).parameters:
        raise InputError(
            f"the model's forward must take inputs_embeds, as BertForMaskedLM's; got {type(model).__name__}"
        )
    weight: Any = model.get_input_embeddings().weight  # type: ignore[operator]
    if weight.shape[1] != masker.dim:
        raise InputError(
            f"the masker's dim must be the width of the model's embeddings, {weight.shape[1]}; got {masker.dim}"
        )
    before = attached(model)
    if before is masker:
        return
    if before is not None:
        raise InputError(f"the model learns with another masker; take that off first: {__name__}.detach(model) does")
    detach(model)  # what ``del model.attention_masker`` has left
    model.add_module(NAME, masker.to(weight.device, weight.dtype))
    model.register_forward_pre_hook(_add_context, with_kwargs=True)
    # The same on every rank, and DDP would send them about in each step.
    buffers = [f"{NAME}.{name}" for name, _ in masker.named_buffers()]
    _ignore(model, [*getattr(model, IGNORED, ()), *buffers])


def attached(model: nn.Module) -> MultinomialAttentionMasker | None:
    """Return the masker that is a part of a model, if one is."""
    masker: Any = getattr(model, NAME, None)
    return masker


def detach(model: nn.Module) -> None:
    """Undo :func:`attach`: the model is the one that it was before, with what it has learnt; without a masker, as is.

    Examples
    --------
    >>> from torch import nn
    >>> model = nn.Linear(2, 2)
    >>> detach(model)
    >>> attached(model) is None
    True
    """
    if hasattr(model, NAME):
        delattr(model, NAME)
    hooks = model._forward_pre_hooks  # noqa: SLF001 (a handle would not outlive copies and pickles of the model)
    for key in [key for key, hook in hooks.items() if hook is _add_context]:
        del hooks[key]
        model._forward_pre_hooks_with_kwargs.pop(key, None)  # noqa: SLF001
    if hasattr(model, IGNORED):
        _ignore(model, [name for name in getattr(model, IGNORED) if not name.startswith(f"{NAME}.")])


def _ignore(model: nn.Module, names: list[str]) -> None:
    """Tell DDP what it shall not send about; it knows of no model's names if there are none."""
    if names:
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, names)  # noqa: SLF001
    else:
        delattr(model, IGNORED)


def _add_context(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Turn ``input_ids`` and ``latents`` of a model's call into ``inputs_embeds``: a hook before its forward."""
    latents = kwargs.pop("latents", None)
    if latents is None:
        return None
    masker = attached(model)
    if masker is None:
        raise InputError(f"latents= needs the masker that drew them, and it is off the model; {__name__}.attach it")
    if args:  # by the class: what wraps a model's own forward may hide its parameters
        names = list(inspect.signature(type(model).forward).parameters)[1:]
        kwargs |= dict(zip(names, args, strict=False))
    ids = kwargs.pop("input_ids", None)
    if ids is None or kwargs.get("inputs_embeds") is not None:
        raise InputError(
            "latents= goes with input_ids, whose embeddings get the context, not with inputs_embeds; add "
            "masker.context(…) to embeddings of your own and leave latents out"
        )
    kwargs["inputs_embeds"] = masker.embed(model, ids, kwargs.get("attention_mask"), latents)
    return (), kwargs


@contextmanager
def detached(model: nn.Module) -> Iterator[None]:
    """Leave a model without its masker for a while: to save it as an ordinary one."""
    masker = attached(model)
    setattr(model, NAME, None)  # and not gone: the order of the model's parameters is the optimiser's
    try:
        yield
    finally:
        setattr(model, NAME, masker)
