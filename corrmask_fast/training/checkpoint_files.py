"""The files of a checkpoint, checked before a run resumes: no file may run code, and none may be damaged.

transformers 5 loads the pickles of a checkpoint with ``weights_only=True``. 4.46 leaves that to PyTorch, whose default
``TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD`` changes. Here every pickle is loaded with ``weights_only=True`` first.
"""

from __future__ import annotations

import math
import pickle
import random
import re
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import safe_open

from corrmask_fast.errors import InputError, import_extra, listed, readable, shown

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator

transformers: Any = import_extra("transformers", "hf")

__all__ = ["check_checkpoint", "check_random_states", "numpy_states"]

KIND = "file of a checkpoint (resume from another checkpoint, or start a new run)"
# The pickles that Trainer reads. It writes training_args.bin, too, and never reads it.
PICKLES = ("*optimizer.pt", "optimizer.bin", "scheduler.pt", "scaler.pt", "pytorch_model*.bin", "adapter_model.bin")
# Types of the state of NumPy's generator.
NUMPY_STATE: list[Any] = [np.ndarray, np.dtype, type(np.dtype(np.uint32)), np.empty(0).__reduce__()[0]]
WORDS = 624  # of the Mersenne Twister
MAX_STEPS = 2**53


def check_checkpoint(folder: str | os.PathLike[str], model: Any, *, whole: bool = False) -> None:
    """Check all files that Trainer reads when it resumes.

    Parameters
    ----------
    folder
        The checkpoint.
    model
        The model of the run, whose weights the checkpoint must have.
    whole
        Also require the weights and the optimizer's state, and a log of numbers alone.

    Raises
    ------
    InputError
        If a file is damaged, could run code, or is of another model or step.
    """
    folder = Path(folder)
    _check_state(folder, numbers=whole)
    for name in ("model.safetensors", "optimizer.pt", "scheduler.pt") if whole else ():
        if not (folder / name).is_file():
            raise InputError(f"{folder} lacks {name}; resume from another checkpoint, or start a new run")
    for path in (folder / "config.json", *folder.glob("*.index.json")):
        if path.is_file():
            with readable(path, KIND):
                transformers.PretrainedConfig.from_json_file(str(path))
    _check_weights(folder, model)
    for path in (path for pattern in PICKLES for path in folder.glob(pattern)):
        if path.is_file() and not isinstance(load(path), dict):
            raise InputError(f"{path} is not a readable {KIND}: it holds no named values")
    check_random_states(folder)


def check_random_states(folder: str | os.PathLike[str]) -> None:
    """Check the states of the random number generators; NumPy itself does not check the position in its state."""
    for path in sorted(Path(folder).glob("rng_state*.pth")):
        with numpy_states():
            state = load(path)
        with readable(path, KIND):
            _, words, position, *_ = state["numpy"]
            if type(words) is not np.ndarray or words.dtype != np.uint32 or words.shape != (WORDS,):
                raise TypeError(f"the state of NumPy's generator must be {WORDS} numbers of 32 bits")
            if type(position) is not int or not 0 <= position <= WORDS:
                raise ValueError(f"the position in NumPy's state must be in [0, {WORDS}]; got {shown(position)}")
            np.random.RandomState().set_state(state["numpy"])
            random.Random().setstate(state["python"])  # noqa: S311
            torch.Generator().set_state(state["cpu"])


@contextmanager
def numpy_states() -> Iterator[None]:
    """Let ``torch.load`` read the state of NumPy's generator inside the block, and nothing more."""
    new = [one for one in NUMPY_STATE if one not in torch.serialization.get_safe_globals()]
    with torch.serialization.safe_globals(new):
        yield


def load(path: Path) -> Any:
    """Return what a pickle of PyTorch holds: tensors, numbers and text in lists and tables; data stays in the file."""
    with readable(path, KIND):
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except pickle.UnpicklingError as error:  # PyTorch's own message recommends weights_only=False
            raise InputError(
                f"{path} is not a readable {KIND}: it is damaged, or holds objects other than tensors, numbers and "
                "text, whose loading can run code"
            ) from error


def _check_state(folder: Path, *, numbers: bool) -> None:
    """Check the types in Trainer's state, the step against the name of the folder, and the log."""
    path = folder / "trainer_state.json"
    with readable(path, KIND):
        state, fresh = transformers.TrainerState.load_from_json(str(path)), transformers.TrainerState(epoch=0.0)
        for name, value in vars(state).items():
            kind = type(getattr(fresh, name))
            wanted = (int, float) if kind in {int, float} else (kind,)
            if kind is not type(None) and type(value) not in wanted and (name, value) != ("epoch", None):
                raise TypeError(f"{name} is {shown(value)}")
        step, named = state.global_step, re.fullmatch(r"checkpoint-(\d+)", folder.name)
        if not (type(step) is int and 0 <= step < MAX_STEPS) or (named and int(named[1]) != step):
            raise ValueError(f"global_step is {shown(step)}")
        if not math.isfinite(state.epoch or 0):
            raise ValueError(f"epoch is {state.epoch}")
        for row in state.log_history:
            if type(row) is not dict or type(row.get("step")) is not int:
                raise TypeError(f"log_history has {shown(row)}, which names no step")
            if numbers and not all(type(value) in {int, float} for value in row.values()):
                raise TypeError(f"log_history has {shown(row)}; values must be numbers")


def _check_weights(folder: Path, model: Any) -> None:
    """Check that safetensors files hold all weights of the model; Trainer itself ignores missing weights."""
    found: dict[str, list[int]] = {}
    paths = sorted(folder.glob("model*.safetensors"))
    for path in paths:
        with readable(path, KIND), safe_open(path, "pt") as file:
            found |= {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    own = model.state_dict() if paths else {}
    stored = {value.data_ptr() for name, value in own.items() if name in found}  # of tied weights one is stored
    for name, value in own.items():
        if name in found and found[name] != list(value.shape):
            raise InputError(
                f"{folder} has {name} of shape {found[name]}, the model has {list(value.shape)}; resume with the model "
                "of the first run, or start a new run"
            )
    if missing := [name for name, value in own.items() if name not in found and value.data_ptr() not in stored]:
        raise InputError(
            f"{folder} lacks weights of the model: {listed(missing)}; resume with the model of the first run, from "
            "another checkpoint, or start a new run"
        )
