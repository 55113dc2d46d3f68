"""Makes a masker that learns a part of its model: both are optimised, wrapped by DDP and saved together."""

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
IGNORED = "_ddp_params_and_buffers_to_ignore"  # the attribute in which DDP finds what it must not broadcast


def attach(masker: MultinomialAttentionMasker, model: nn.Module) -> None:
    """Make a masker a part of a Hugging Face model: ``model.attention_masker``, trained and saved with it.

    Afterwards the model's forward takes ``latents`` as well as ``input_ids``. These are the latents that
    ``masker.draw`` returned; their context is added to the embeddings. Without ``latents`` the model computes what it
    did before. :func:`detach` undoes all this. The masker moves to the device and the dtype of the model's embeddings.

    Raises
    ------
    InputError
        If the model takes no ``inputs_embeds``, has another width, or has another masker already.
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
        raise InputError(f"the model learns with another masker; call {__name__}.detach(model) first")
    detach(model)  # hooks that ``del model.attention_masker`` left
    model.add_module(NAME, masker.to(weight.device, weight.dtype))
    model.register_forward_pre_hook(_add_context, with_kwargs=True)
    # They are the same on every rank; DDP would broadcast them in each step.
    buffers = [f"{NAME}.{name}" for name, _ in masker.named_buffers()]
    _ignore(model, [*getattr(model, IGNORED, ()), *buffers])


def attached(model: nn.Module) -> MultinomialAttentionMasker | None:
    """Return the masker that is a part of a model; None if there is none."""
    masker: Any = getattr(model, NAME, None)
    return masker


def detach(model: nn.Module) -> None:
    """Undo :func:`attach`. The model keeps its weights; a model without a masker stays as it is.

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
    """Set the names that DDP must not broadcast; without names, remove the attribute."""
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
        raise InputError(f"latents= needs the masker that drew them; call {__name__}.attach(masker, model)")
    if args:  # the class has the names: a wrapper of the model's own forward may hide them
        names = list(inspect.signature(type(model).forward).parameters)[1:]
        kwargs |= dict(zip(names, args, strict=False))
    ids = kwargs.pop("input_ids", None)
    if ids is None or kwargs.get("inputs_embeds") is not None:
        raise InputError(
            "latents= needs input_ids, and no inputs_embeds; with inputs_embeds, leave latents out and add "
            "masker.context(…) to them"
        )
    kwargs["inputs_embeds"] = masker.embed(model, ids, kwargs.get("attention_mask"), latents)
    return (), kwargs


@contextmanager
def detached(model: nn.Module) -> Iterator[None]:
    """Take the masker off a model inside the block, to save an ordinary model."""
    masker = attached(model)
    setattr(model, NAME, None)  # not deleted: the optimiser needs the order of the model's parameters
    try:
        yield
    finally:
        setattr(model, NAME, masker)
