"""Models that are scored on masked genes: opened from their folders or taken as they are, and asked alike."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from corrmask_fast.errors import InputError, check_integer, shown
from corrmask_fast.training.checks import positions_of
from corrmask_fast.training.losses import logits_of
from corrmask_fast.training.partner_loss import masked_losses

if TYPE_CHECKING:
    from collections.abc import Iterator

    from corrmask_fast.cells.corpus import Corpus
    from corrmask_fast.cells.vocabulary import Vocabulary

__all__ = ["FREQUENCIES", "Models", "ScoredModel", "gene_counts", "opened", "scored_length"]

Model = str | os.PathLike[str] | nn.Module | Callable[..., Any]
Models = Mapping[str, Model] | Iterable[str | os.PathLike[str]] | str | os.PathLike[str]
FREQUENCIES = (0.01, 0.05, 0.2, 0.5)  # edges of ranges of genes, by the share of cells that have the gene
CHUNK = 1024  # cells that are counted at a time


class ScoredModel:
    """A model with its name; of a batch on the CPU it returns the losses at the labels."""

    def __init__(self, name: str, model: Any, vocabulary: Vocabulary, device: torch.device) -> None:
        self.name, self.model, self.vocabulary, self.device = name, model, vocabulary, device
        call = model.forward if isinstance(model, nn.Module) else model
        with suppress(ValueError):  # a function in C has no signature
            self.takes_positions = "masked_positions" in inspect.signature(call).parameters
        self.positions = positions_of(model)[0] if isinstance(model, nn.Module) else None
        known = getattr(getattr(model, "config", None), "vocab_size", None)
        if isinstance(known, int) and known < vocabulary.size:
            raise self._too_small(known)

    takes_positions = False

    def losses(self, batch: dict[str, torch.Tensor]) -> tuple[np.ndarray, np.ndarray]:
        """Return (cross-entropy in nats, is right) at every label of a batch, row after row, column after column.

        The batch has ``input_ids``, ``attention_mask``, ``labels`` and ``masked_positions``.
        """
        left_out = () if self.takes_positions else ("masked_positions",)
        here = {name: value.to(self.device) for name, value in batch.items() if name not in left_out}
        losses, _, _, right = masked_losses(self._checked, here)
        return losses, right

    def _checked(self, **inputs: torch.Tensor) -> torch.Tensor:
        logits = logits_of(self.model(**inputs))
        if logits.shape[-1] < self.vocabulary.size:
            raise self._too_small(logits.shape[-1])
        return logits

    def _too_small(self, known: int) -> InputError:
        return InputError(
            f"the model {self.name} knows {known} tokens, the corpus has {self.vocabulary.size}; score it on cells of "
            "the vocabulary that it was pretrained with"
        )


@contextmanager
def opened(
    models: Models, vocabulary: Vocabulary, device: str, taken: Iterable[str] = ()
) -> Iterator[list[ScoredModel]]:
    """Yield the models, ready to be asked: without dropout; those that were given as objects are left as they were.

    Checkpoints are loaded to ``device``. A module stays where it lies; a function gets tensors on the CPU. ``taken``
    are names that no model may have.
    """
    if device not in {"auto", "cpu", "cuda"}:
        raise InputError(f"device must be 'auto', 'cpu' or 'cuda'; got {shown(device)}")
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("device='cuda': PyTorch finds no GPU here; use device='auto' or 'cpu'")
    of_files = torch.device("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")
    found = [_open(name, model, vocabulary, of_files) for name, model in _named(models, taken).items()]
    modes = [(one.model, one.model.training) for one in found if isinstance(one.model, nn.Module)]
    try:
        for model, _ in modes:
            model.eval()
        yield found
    finally:
        for model, training in modes:
            model.train(training)


def _named(models: Models, taken: Iterable[str]) -> dict[str, Model]:
    """Return name → model; the name of a path is the path."""
    if isinstance(models, Mapping):
        named = {str(name): model for name, model in models.items()}
    else:
        paths = [models] if isinstance(models, str | os.PathLike) else list(models)
        wrong = next((path for path in paths if not isinstance(path, str | os.PathLike)), None)
        if wrong is not None:
            raise InputError(f"a model without a name must be a folder; got {shown(wrong)}; give {{name: model}}")
        named = {str(path): path for path in paths}
        if len(named) < len(paths):
            raise InputError(f"each model must be given once; got {', '.join(map(str, paths))}")
    if not named:
        raise InputError("models must hold one model at least; got none")
    for name in taken:
        if name in named:
            raise InputError(f"no model may be named {name!r}: that is a baseline's name; choose another")
    return named


def _open(name: str, model: Any, vocabulary: Vocabulary, device: torch.device) -> ScoredModel:
    if isinstance(model, str | os.PathLike):
        from corrmask_fast.training.pretrained import load_masked_lm
        from corrmask_fast.training.sparse_head import with_sparse_head

        loaded = load_masked_lm(model, vocabulary)
        with suppress(InputError):  # without a sparse head it computes all logits: slower, the same losses
            loaded = with_sparse_head(loaded)
        return ScoredModel(name, loaded.to(device), vocabulary, device)
    if isinstance(model, nn.Module):
        weight = next(model.parameters(), None)
        return ScoredModel(name, model, vocabulary, torch.device("cpu") if weight is None else weight.device)
    if not callable(model):
        raise InputError(
            f"the model {name} must be the folder of a checkpoint, a module or a function of input_ids and "
            f"attention_mask; got {shown(model)}"
        )
    return ScoredModel(name, model, vocabulary, torch.device("cpu"))


def scored_length(models: Iterable[ScoredModel], corpus: Corpus, max_length: int | None) -> int:
    """Return to how many tokens cells are cut, ``<cls>`` and ``<eos>`` included, so that all models see them whole."""
    longest = corpus.max_length + corpus.vocabulary.n_surrounding
    if max_length is not None:
        longest = min(longest, check_integer("max_length", max_length, 1))
    return min([longest, *(model.positions for model in models if model.positions is not None)])


def gene_counts(corpus: Corpus, length: int) -> np.ndarray:
    """Return (V,) int64: the number of cells, cut to ``length`` tokens, that have each gene; special tokens have 0."""
    counts = np.zeros(corpus.vocabulary.size, np.int64)
    for begin in range(0, corpus.n_cells, CHUNK):
        rows = np.arange(begin, min(begin + CHUNK, corpus.n_cells))
        counts += np.bincount(corpus.gather_for_training(rows, length)[1], minlength=counts.size)
    lo, hi = corpus.vocabulary.gene_range
    counts[:lo] = counts[hi:] = 0
    return counts
