"""Loading a checkpoint of Hugging Face's: its encoder, to be fine-tuned, or all of it, to go on with pretraining.

From its files alone, and of them only what cannot run code: ``config.json`` and ``.safetensors``.
"""

from __future__ import annotations

import json
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from corrmask_fast.cells.vocabulary import DICTIONARY_FILE, Vocabulary
from corrmask_fast.errors import InputError, as_integer, import_extra

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator

    from torch import nn

transformers: Any = import_extra("transformers", "hf")

__all__ = ["load_config", "load_encoder", "load_masked_lm", "new_encoder"]


def load_config(path: str | os.PathLike[str]) -> Any:
    """Read the configuration of a checkpoint; InputError if there is none."""
    try:
        return transformers.AutoConfig.from_pretrained(str(path), local_files_only=True)
    except Exception as error:  # parsers raise more types than anyone lists
        inside = Path(path) / "model"
        hint = f"; did you mean {inside}?" if (inside / "config.json").is_file() else ""
        raise InputError(
            f"{path} holds no model ({type(error).__name__}); give the folder of a checkpoint as save_pretrained "
            f"writes it, with config.json and model.safetensors{hint}"
        ) from error


def load_encoder(path: str | os.PathLike[str], vocabulary: Vocabulary) -> nn.Module:
    """Load the encoder of a checkpoint, without its masked-language-model head.

    Raises
    ------
    InputError
        If there is no checkpoint, its weights are damaged or not those of its configuration, its vocabulary is smaller
        than the corpus's, or the dictionary beside its weights, where there is one, is another.
    """
    config = load_config(path)
    return _load(path, config, vocabulary, transformers.AutoModel, _without_pooler(config))


def new_encoder(path: str | os.PathLike[str], seed: int) -> nn.Module:
    """Return an encoder of a checkpoint's configuration with new weights, which follow from the seed alone."""
    import torch

    config = load_config(path)
    with torch.random.fork_rng():
        torch.manual_seed(seed % 2**63)
        return transformers.AutoModel.from_config(config, **_without_pooler(config))


def _without_pooler(config: Any) -> dict[str, bool]:
    """Return what leaves out the pooler, where there is one: it is not used, and its absence needs no warning."""
    return {"add_pooling_layer": False} if config.model_type in {"bert", "roberta"} else {}


def load_masked_lm(path: str | os.PathLike[str], vocabulary: Vocabulary) -> Any:
    """Load a checkpoint as a masked language model of any architecture of transformers.

    Raises
    ------
    InputError
        As :func:`load_encoder`; or if its architecture has no masked language model, or the head's weights are missing.
    """
    config = load_config(path)
    if type(config) not in transformers.MODEL_FOR_MASKED_LM_MAPPING:
        raise InputError(
            f"{path} is of type {config.model_type}, which has no masked language model; give a checkpoint of one, "
            "such as BertForMaskedLM's"
        )
    return _load(path, config, vocabulary, transformers.AutoModelForMaskedLM, {})


def _load(
    path: str | os.PathLike[str], config: Any, vocabulary: Vocabulary, kind: Any, options: dict[str, bool]
) -> Any:
    """Return the model of a class of transformers, with all its weights, once the vocabulary is known to fit."""
    known = as_integer(getattr(config, "vocab_size", None)) or 0
    if known < vocabulary.size:
        raise InputError(
            f"the model at {path} knows {known} tokens, the corpus has {vocabulary.size}; "
            "tokenise the cells with the dictionary that the model was pretrained with"
        )
    dictionary = Path(path) / DICTIONARY_FILE
    if dictionary.is_file():
        Vocabulary.load(dictionary).check_same(vocabulary, f"the model at {path}", "the corpus")
    model, report = _load_weights(kind, str(path), options)
    missing = sorted(name for name in report["missing_keys"] if not name.startswith("pooler."))
    if missing:
        raise InputError(
            f"the weights at {path} lack {len(missing)} of those that its config.json speaks of, such as "
            f"{missing[0]!r}; give the folder of a checkpoint as save_pretrained writes it"
        )
    return model


def _load_weights(kind: Any, path: str, options: dict[str, bool]) -> tuple[Any, dict[str, Any]]:
    """Return the model at ``path``, and what transformers reports of its weights."""
    from safetensors import SafetensorError

    # Safetensors alone: other formats of weights are pickles, and a pickle can run code.
    options |= {"local_files_only": True, "use_safetensors": True, "output_loading_info": True}
    try:
        with _quiet():
            return kind.from_pretrained(path, **options)
    except OSError as error:
        raise InputError(
            f"cannot load the weights at {path}: {error}; they must be a .safetensors file "
            "(model.save_pretrained(path, safe_serialization=True) converts)"
        ) from error
    except (SafetensorError, json.JSONDecodeError) as error:
        raise InputError(
            f"the weights at {path} are damaged or cut short ({error}); copy or download the checkpoint again"
        ) from error
    except Exception as error:  # transformers' own message runs over many lines
        raise InputError(
            f"the weights at {path} are not those of its config.json ({type(error).__name__}); give the folder of a "
            "checkpoint as save_pretrained writes it"
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave out the report on weights that a checkpoint has and the model has not: mostly of another head."""
    logging = transformers.logging
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with no_bars():
            yield
    finally:
        logging.set_verbosity(level)


@contextmanager
def no_bars() -> Iterator[None]:
    """Leave out the bars of transformers itself, such as of each file that it reads or writes."""
    logging = transformers.logging
    enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if enabled:
            logging.enable_progress_bar()
