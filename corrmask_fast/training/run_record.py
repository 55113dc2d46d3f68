"""What decides a run's masks and the order of its cells, kept beside each checkpoint."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from corrmask_fast.errors import InputError, readable
from corrmask_fast.files import atomic_file
from corrmask_fast.masking.schedules import Schedule

if TYPE_CHECKING:
    import os

    from corrmask_fast.masking.base import Masker

__all__ = ["RunRecord", "check_model"]

FILE = "corrmask.json"
CELLS_LOOKED_AT = 64


@dataclass(frozen=True)
class RunRecord:
    """A run resumes exactly if all of these are the same; the names are those of the messages."""

    corpus: str
    cells: int
    vocabulary: str
    masker: dict[str, Any]  # before the table, which differs with it: the message names the first that differs
    table: str
    data_seed: int
    cells_a_step: int
    grouped: bool

    @classmethod
    def of(cls, masker: Masker, dataset: Any, args: Any) -> RunRecord:
        """Return the record of a run that is about to begin."""
        from corrmask_fast.training.sampling import data_seed, groups_by_length

        return cls(
            corpus=_digest(dataset) if _is_map(dataset) else "stream",
            cells=len(dataset) if _is_map(dataset) else -1,
            vocabulary=masker.vocabulary.fingerprint,
            table=bytes(masker.table_fingerprint.tolist()).hex(),
            masker=_settings(masker),
            data_seed=data_seed(args),
            cells_a_step=args.train_batch_size * args.gradient_accumulation_steps * args.world_size,
            grouped=groups_by_length(args),
        )

    def write_to(self, folder: str | os.PathLike[str]) -> None:
        """Write the record into a checkpoint's folder, if that is there."""
        if Path(folder).is_dir():
            with atomic_file(Path(folder) / FILE) as temporary:
                temporary.write_text(json.dumps(asdict(self), indent=1) + "\n")

    def check_folder(self, folder: str | os.PathLike[str]) -> None:
        """Raise InputError if the checkpoint in ``folder`` has another record; one without any passes."""
        path = Path(folder) / FILE
        if not path.is_file():
            return
        with readable(path, "record of a run (remove it to resume unchecked)"):
            saved, own = json.loads(path.read_text()), json.loads(json.dumps(asdict(self)))
            pairs = [(field.name, saved[field.name], own[field.name]) for field in fields(self)]
            if wrong := [name for name, then, now in pairs if type(then) is not type(now)]:
                raise TypeError(f"{wrong[0]} is of another type")
        for name, then, now in pairs:
            if then != now:
                raise InputError(
                    f"{folder} was made with {_said(name, then, now)}, this run has {_said(name, now, then)}; resume "
                    "with what the first run had, or start a run of its own in another output_dir"
                )


def _said(name: str, value: Any, other: Any) -> str:
    """Name a value, of a masker's settings those that differ."""
    if isinstance(value, dict):
        return ", ".join(f"{key}={value.get(key)!r}" for key in {**value, **other} if value.get(key) != other.get(key))
    return f"{name} {str(value)[:12]}"


def _settings(masker: Any) -> dict[str, Any]:
    """Return all that decides a masker's masks but its graph."""
    from corrmask_fast.masking.base import FIXED

    found = {name: getattr(masker, name) for name in (*sorted(FIXED), *masker.own_parameters)}
    return {"strategy": type(masker).__name__, **{name: _plain(value) for name, value in found.items()}}


def _plain(value: Any) -> Any:
    """Return a setting as JSON keeps it: the same in the process that resumes."""
    if isinstance(value, Schedule) and type(value).__repr__ is object.__repr__:  # an address in memory
        return f"{type(value).__qualname__}{tuple(value.values)}"
    return value if isinstance(value, int | float) else repr(value)


def _is_map(dataset: Any) -> bool:
    return hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")


def _digest(dataset: Any) -> str:
    """Return a hash over a few of a dataset's cells, spread over all of it: no pass over a large corpus."""
    digest = hashlib.sha256()
    for i in np.unique(np.linspace(0, len(dataset) - 1, min(CELLS_LOOKED_AT, len(dataset))).astype(np.int64)):
        cell = np.asarray(dataset[int(i)]["input_ids"], np.int64)
        digest.update(np.int64(cell.size).tobytes() + cell.tobytes())
    return digest.hexdigest()


def check_model(model: Any, masker: Masker, dataset: Any) -> None:
    """Raise InputError unless a model has a place for every token, and for every cell of a CorpusDataset."""
    vocabulary = masker.vocabulary
    size = getattr(model.config, "vocab_size", None)
    if size is not None and size < vocabulary.size:
        raise InputError(
            f"the model knows {size} tokens, the masker's vocabulary has {vocabulary.size}; make the model with "
            f"vocab_size={vocabulary.size}, or resize_token_embeddings({vocabulary.size})"
        )
    corpus = getattr(dataset, "corpus", None)
    if corpus is None:
        return
    corpus.vocabulary.check_same(vocabulary, "the corpus", f"the masker's {masker.goes_by}")
    places = getattr(model.config, "max_position_embeddings", None)
    if places is not None and len(dataset):
        lengths = dataset.lengths
        longest = int(lengths.argmax())
        length = len(dataset[longest]["input_ids"]) if lengths[longest] > places else 0
        if length > places:
            raise InputError(
                f"cell {longest} has {length} tokens, the model {places} positions; read the corpus with "
                f"max_length, or make the model with max_position_embeddings={length}"
            )
