"""Checks before a training run: model, masker, vocabulary, cells and arguments must fit each other."""

from __future__ import annotations

import inspect
import re
from typing import TYPE_CHECKING, Any

from torch import nn

from corrmask_fast.cells.corpus import Corpus
from corrmask_fast.errors import InputError, shown
from corrmask_fast.masking.features import PACKED
from corrmask_fast.masking.schedules import parse_rate, rate_text
from corrmask_fast.training.sampling import cell_lengths, groups_by_length, is_stream

if TYPE_CHECKING:
    from corrmask_fast.cells.vocabulary import Vocabulary
    from corrmask_fast.masking.base import Masker

__all__ = [
    "check_arguments", "check_attention", "check_eval_masker", "check_learning", "check_model", "check_packing",
    "check_width", "parameters_of", "positions_of",
]  # fmt: skip

# The names that Hugging Face's models give to tables of positions. Tables of distances have other names.
POSITIONS = re.compile(r"(^|\.)(position_embeddings?|embed_positions|wpe)$")


def check_model(model: Any, masker: Masker, dataset: Any) -> None:
    """Raise InputError unless a model takes every token and cell, and has the masker's padding token.

    The model's modules are checked, not its configuration: a ``pad_token_id`` that no module reads does no harm. The
    lengths of cells are checked in a CorpusDataset, and in a ``datasets.Dataset`` with a column ``length``.
    """
    vocabulary = masker.vocabulary
    embedding = _embedding_of(model)
    size = getattr(embedding, "num_embeddings", getattr(getattr(model, "config", None), "vocab_size", None))
    if size is not None and size < vocabulary.size:
        raise InputError(
            f"the model knows {size} tokens, the masker's vocabulary has {vocabulary.size}; make the model with "
            f"vocab_size={vocabulary.size}, or resize_token_embeddings({vocabulary.size})"
        )
    _check_padding(embedding, vocabulary)
    for module in model.modules():  # ESM zeroes the embeddings of the mask token, and scales by their number
        mask = getattr(module, "mask_token_id", None)
        if getattr(module, "token_dropout", False) and mask != vocabulary.mask_token_id:
            raise InputError(
                f"the model drops token {mask} as its mask token, the vocabulary's <mask> is "
                f"{vocabulary.mask_token_id}; make the model with mask_token_id={vocabulary.mask_token_id}"
            )
    corpus = getattr(dataset, "corpus", None)
    if isinstance(corpus, Corpus):
        corpus.vocabulary.check_same(vocabulary, "the corpus", f"the masker's {masker.mask_source}")
    places, lost = positions_of(model)
    if places is not None and not is_stream(dataset) and len(dataset):
        _check_lengths(dataset, places, lost)


def _embedding_of(model: Any) -> Any:
    """Return the embeddings of a model's tokens; None if the model does not say which they are."""
    try:
        return model.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        return None


def _check_padding(embedding: Any, vocabulary: Vocabulary) -> None:
    """Raise InputError if the model takes another token than ``<pad>`` for padding, and so never trains its embedding.

    Models like RoBERTa also count positions by this token.
    """
    padding = getattr(embedding, "padding_idx", None)
    if padding is not None and padding != vocabulary.pad_token_id and padding < vocabulary.size:
        raise InputError(
            f"the model takes token {padding} for padding and never trains its embedding; in the vocabulary it is "
            f"{vocabulary.name_of(padding)}, and <pad> is {vocabulary.pad_token_id}; make the model with "
            f"pad_token_id={vocabulary.pad_token_id}"
        )


def positions_of(model: Any) -> tuple[int | None, int]:
    """Return (number of positions of a cell, number of unused ones before them); (None, 0) without such a table.

    Models like RoBERTa start to count after the number of the padding token, the table's ``padding_idx``.
    """
    table = _position_table(model)
    if table is None:
        return None, 0
    lost = getattr(table, "offset", 0) if table.padding_idx is None else table.padding_idx + 1
    return table.num_embeddings - lost, lost


def _position_table(model: Any) -> Any:
    """Return a model's embeddings of positions; None if it has none."""
    for name, module in model.named_modules():
        if POSITIONS.search(name) and isinstance(module, nn.Embedding):
            owner = model.get_submodule(name.rpartition(".")[0])
            if getattr(owner, "position_embedding_type", None) == "rotary":
                continue  # before transformers 5, ESM has a table that it does not use
            return module
    return None


def check_attention(model: Any) -> None:
    """Raise InputError unless a model keeps packed cells apart."""
    attention = getattr(getattr(model, "config", None), "_attn_implementation", None)
    if "flash" not in str(attention):
        raise InputError(
            f"the batch is packed, and the model's attention is {attention!r}: its cells would attend to each other, "
            "without an error; make the model with attn_implementation='flash_attention_2', or the collator without "
            "packing"
        )


def check_packing(model: Any, position_ids_start: int) -> None:
    """Raise InputError unless a model keeps packed cells apart, and counts positions as their collator does."""
    check_attention(model)
    parameters = inspect.signature(model.forward).parameters
    takes = set(parameters) >= PACKED or any(one.kind is one.VAR_KEYWORD for one in parameters.values())
    # What transformers says of models that hand such names on to their attention; others take and forget them.
    if not (takes and getattr(model, "_supports_attention_backend", False)):
        raise InputError(
            f"{type(model).__name__} does not tell its attention where packed cells begin, by "
            f"{', '.join(sorted(PACKED))}; update transformers, take another model, or leave packing out"
        )
    table = _position_table(model)
    start = 0 if table is None or table.padding_idx is None else table.padding_idx + 1
    if table is not None and position_ids_start != start:
        raise InputError(
            f"the model counts positions from {start} on, the collator from {position_ids_start}; make the collator "
            f"with position_ids_start={start}"
        )


def _check_lengths(dataset: Any, places: int, lost: int) -> None:
    """Raise InputError if the longest cell has more tokens than the model has positions."""
    if not isinstance(getattr(dataset, "corpus", None), Corpus) and "length" not in getattr(
        dataset, "column_names", ()
    ):
        return
    lengths = cell_lengths(dataset)
    longest = int(lengths.argmax())
    length = len(dataset[longest]["input_ids"]) if lengths[longest] > places else 0
    if length > places:
        raise InputError(
            f"cell {longest} has {length} tokens, the model {places} positions; read the corpus with "
            f"max_length, or make the model with max_position_embeddings={length + lost}"
        )


def check_width(width: int, places: int | None) -> None:
    """Raise InputError if a batch is wider than the model: of cells that no check saw before (``evaluate(other)``)."""
    if places is not None and width > places:
        raise InputError(
            f"a batch has cells of {width} columns, the model {places} positions; read the corpus with "
            f"max_length={places}, or lower pad_to_multiple_of"
        )


def parameters_of(model: Any) -> Any:
    """Return the parameters of a model's forward, which must take a batch of cells."""
    parameters = inspect.signature(model.forward).parameters
    open_ended = any(one.kind is one.VAR_KEYWORD for one in parameters.values())
    if not open_ended and not {"input_ids", "attention_mask"} <= set(parameters):
        raise InputError(
            "the model's forward must take input_ids and attention_mask and return logits, (rows, columns, tokens), "
            f"as models of Hugging Face do; {type(model).__name__}'s takes {', '.join(parameters) or 'nothing'}"
        )
    return parameters


def check_learning(masker: Any, model: Any, masking: str) -> None:
    """Raise InputError unless a masker that learns can be trained with the model, and saved."""
    name = type(masker).__name__
    if masking == "worker":
        raise InputError(f"{name} needs the model's embeddings, which workers do not have; use masking='device'")
    if model is None:
        raise InputError(f"{name} learns with one model; give model=, in place of model_init")
    for rate in (masker.mlm_probability, masker.structural_ratio):
        # A rate that a saved masker cannot keep is refused before the training, not after it.
        if parse_rate(str(rate_text(rate))) != rate:
            raise InputError(f"{shown(rate)} cannot be saved with the masker; use a number, a range, Linear or Cosine")


def check_eval_masker(masker: Any, training: Masker) -> None:
    """Raise InputError unless a masker gives every evaluation of a run the same masks."""
    training.vocabulary.check_same(masker.vocabulary, "the masker", "eval_masker")
    if masker.needs_model:
        raise InputError(
            f"a {type(masker).__name__} learns, and its masks would change between evaluations; give another "
            "eval_masker"
        )
    if masker.has_schedule:
        raise InputError(
            "eval_masker's rates go by the step, and masks would change between evaluations; give it numbers"
        )


def check_arguments(args: Any, compute_loss_func: Any, train_dataset: Any) -> None:
    """Raise InputError if CorrMaskTrainer cannot do what an argument asks for."""
    if args.label_smoothing_factor or compute_loss_func is not None:
        raise InputError(
            "CorrMaskTrainer computes the masked language modelling loss itself; leave out label_smoothing_factor and "
            "compute_loss_func, or use transformers.Trainer with CorrMaskCallback"
        )
    if args.n_gpu > 1:  # DataParallel would split batches after they were counted
        raise InputError(
            f"CorrMaskTrainer needs one process for each GPU, and this process has {args.n_gpu}; start it with "
            "torchrun --nproc-per-node=auto …, or set CUDA_VISIBLE_DEVICES to one GPU"
        )
    if args.label_names is not None and "labels" not in args.label_names:
        raise InputError(
            f"label_names must contain 'labels', the masked genes; got {shown(args.label_names)}; leave label_names out"
        )
    if groups_by_length(args) and is_stream(train_dataset):
        raise InputError(
            "a stream cannot be grouped by length; leave out group_by_length, or give a dataset with a length"
        )
