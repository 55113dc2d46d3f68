"""What decides a run's masks and the order of its cells, kept in each checkpoint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from corrmask_fast.cells.count_batches import count_batch
from corrmask_fast.errors import InputError, listed, readable, shown
from corrmask_fast.files import atomic_file
from corrmask_fast.masking.schedules import Schedule
from corrmask_fast.training.sampling import data_seed, groups_by_length, is_stream

if TYPE_CHECKING:
    import os

    from corrmask_fast.masking.base import Masker

__all__ = ["RunRecord"]

FILE = "corrmask.json"
CELLS_LOOKED_AT = 64
MAX_EPOCHS = 2**53


@dataclass(frozen=True)
class RunRecord:
    """A run resumes exactly if all these values are the same. Messages show the names of the fields."""

    corpus: str
    cells: int
    vocabulary: str
    masker: dict[str, Any]  # before the table, which depends on it: the message names the first that differs
    table: str
    data_seed: int
    cells_a_step: int
    grouped: bool

    @classmethod
    def of(cls, masker: Masker, dataset: Any, args: Any) -> RunRecord:
        """Return the record of a run that begins now."""
        return cls(
            corpus="stream" if is_stream(dataset) else _digest(dataset),
            cells=-1 if is_stream(dataset) else len(dataset),
            **masks_record(masker),
            data_seed=data_seed(args),
            cells_a_step=args.train_batch_size * args.gradient_accumulation_steps * args.world_size,
            grouped=groups_by_length(args),
        )

    def write_to(self, folder: str | os.PathLike[str], epoch: int) -> None:
        """Write the record and the epoch of the run into a checkpoint's folder, if the folder exists."""
        if Path(folder).is_dir():
            with atomic_file(Path(folder) / FILE) as temporary:
                temporary.write_text(json.dumps(asdict(self) | {"epoch": epoch}, indent=1) + "\n", encoding="utf-8")

    def check_folder(self, folder: str | os.PathLike[str]) -> int | None:
        """Return the epoch of the checkpoint in ``folder``; None if it has no record.

        Raises
        ------
        InputError
            If its record differs from this one, or cannot be read.
        """
        path = Path(folder) / FILE
        if not path.is_file():
            return None
        with readable(path, "record of a run (remove it to resume unchecked)"):
            saved, own = json.loads(path.read_text(encoding="utf-8")), json.loads(json.dumps(asdict(self)))
            pairs = [(field.name, saved[field.name], own[field.name]) for field in fields(self)]
            epoch = saved.get("epoch")
            wrong = [name for name, then, now in pairs if type(then) is not type(now)]
            if wrong or not (epoch is None or (type(epoch) is int and 0 <= epoch < MAX_EPOCHS)):
                raise TypeError(f"{wrong[0] if wrong else 'epoch'} has a wrong value")
        check_same(folder, saved, own)
        return epoch


def masks_record(masker: Masker) -> dict[str, Any]:
    """Return what decides a masker's masks, beside epoch and cell, as values that JSON keeps."""
    return {
        "vocabulary": masker.vocabulary.fingerprint,
        "masker": _settings(masker),
        "table": bytes(masker.table_fingerprint.tolist()).hex(),
    }


def check_same(source: Any, saved: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """Raise InputError if a checkpoint's record differs from that of the run that resumes from it."""
    for name, now in own.items():
        if (then := saved[name]) != now:
            raise InputError(
                f"{source} was made with {_said(name, then, now)}, this run has {_said(name, now, then)}; resume "
                "with what the first run had, or start a new run in another output_dir"
            )


def _said(name: str, value: Any, other: Any) -> str:
    """Return a value with its name; of a masker's settings only those that differ."""
    if isinstance(value, dict):
        names = [key for key in {**value, **other} if value.get(key) != other.get(key)]
        return listed(f"{key}={shown(value.get(key))}" for key in names)
    return f"{name} {str(value)[:12]}"


def _settings(masker: Any) -> dict[str, Any]:
    """Return what decides a masker's masks, except its graph."""
    from corrmask_fast.masking.base import FIXED

    found = {name: getattr(masker, name) for name in (*sorted(FIXED), *masker.own_parameters)}
    return {"strategy": type(masker).__name__, **{name: _plain(value) for name, value in found.items()}}


def _plain(value: Any) -> Any:
    """Return a setting as JSON keeps it, the same in every process."""
    if isinstance(value, Schedule) and type(value).__repr__ is object.__repr__:  # that repr has an address in memory
        return f"{type(value).__qualname__}{tuple(value.values)}"
    return value if isinstance(value, int | float | str) else repr(value)


def _digest(dataset: Any) -> str:
    """Return a hash of at most 64 cells, spread over the dataset: a large corpus is not read as a whole."""
    digest = hashlib.sha256()
    for i in np.unique(np.linspace(0, len(dataset) - 1, min(CELLS_LOOKED_AT, len(dataset))).astype(np.int64)):
        for part in _parts_of(dataset[int(i)]):
            digest.update(np.int64(part.size).tobytes() + part.tobytes())
    return digest.hexdigest()


def _parts_of(cell: Any) -> list[np.ndarray]:
    """Return what a cell is: its tokens, or the columns and values of its counts."""
    if isinstance(cell, Mapping) and "input_ids" in cell:
        return [np.asarray(cell["input_ids"], np.int64)]
    rows = count_batch(cell).rows
    return [rows.columns.astype(np.int64), rows.counts.astype(np.float64)]
