"""What a pretraining run is made of: the paper's numbers by default, a TOML file or the command line for others."""

from __future__ import annotations

import json
import tomllib
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from corrmask_fast.errors import InputError, check_integer, check_number, readable, shown
from corrmask_fast.masking.strategies import DEFAULT, OPTIONS, SOURCES

if TYPE_CHECKING:
    import argparse
    import os
    from collections.abc import Mapping

__all__ = ["PRESETS", "PretrainingSettings"]

SETTINGS = "settings.toml"  # in a run's folder
CHOICES = {
    "lr_schedule": ("linear", "cosine", "constant"),
    "precision": ("auto", "float32", "bfloat16"),
    "device": ("auto", "cpu", "cuda"),
    "masking": ("auto", "worker", "device"),
    "head": ("masked", "full"),
}

# What a configuration file may say beside the settings, with the default where it is not the masker's own.
MASKER_OPTIONS: dict[str, Any] = {
    "strategy": DEFAULT,
    **{name: None for name, source in SOURCES.items() if source.command},
    "mlm_probability": 0.15,
    **dict.fromkeys(OPTIONS),
    "seed": 0,
}


MOST_WEIGHTS = 10**10  # of a model; the largest of single cells have some 10**9
LONG = 10**9  # more steps than any run has


def _number(default: float, low: float, high: float, metavar: str, text: str, *, open_ends: bool = False) -> Any:
    rule = {"low": low, "high": high} | ({"open_ends": True} if open_ends else {})
    return field(default=default, metadata={"metavar": metavar, "help": text, "rule": rule})


def _choice(default: str, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class PretrainingSettings:
    """Model and training; the defaults are Table 5 of Hacohen et al. 2026 (Geneformer's architecture).

    Every field is an option of ``corrmask-fast pretrain`` and a key of its configuration file.
    """

    hidden_size: int = _number(256, 1, 65_536, "N", "width of the model")
    layers: int = _number(6, 1, 1_000, "N", "layers")
    heads: int = _number(4, 1, 65_536, "N", "attention heads; divides the width")
    intermediate_size: int = _number(512, 1, 1_000_000, "N", "width of the feed-forward layers")
    dropout: float = _number(0.02, 0, 1, "P", "dropout, of attention too")
    max_length: int = _number(2048, 1, 1_000_000, "N", "cells are cut to so many genes")
    batch_size: int = _number(12, 1, 1_000_000, "N", "cells in a batch, on each process")
    gradient_accumulation: int = _number(1, 1, 1_000_000, "N", "batches in a step")
    learning_rate: float = _number(1e-3, 0, 10, "RATE", "highest learning rate (AdamW)", open_ends=True)
    lr_schedule: str = _choice("linear", "how it falls")
    warmup_steps: int = _number(10_000, 0, LONG, "N", "steps in which it rises; at most a tenth of all")
    weight_decay: float = _number(0.001, 0, 10, "X", "of AdamW")
    epochs: float = _number(3.0, 0, 100_000, "N", "passes over the cells", open_ends=True)
    max_steps: int = _number(0, 0, LONG, "N", "stop after so many steps; 0: by epochs")
    run_seed: int = _number(0, 0, 2**64 - 1, "N", "of weights, order of cells and dropout")
    precision: str = _choice("auto", "auto: bfloat16 on a GPU that has it")
    device: str = _choice("auto", "where to train")
    masking: str = _choice("auto", "in the collator's workers, or on the device inside the step (auto: there on a GPU)")
    head: str = _choice("masked", "logits at masked genes alone, or at all (the same loss)")
    workers: int = _number(0, 0, 1_024, "N", "worker processes that collate")
    held_out: float = _number(0.02, 0, 0.5, "SHARE", "of the cells, kept for evaluation (at most 2 000 cells)")
    eval_every: int = _number(500, 1, LONG, "STEPS", "evaluate so often, and at the end")
    save_every: int = _number(500, 1, LONG, "STEPS", "write a checkpoint so often; the last two are kept")
    log_every: int = _number(50, 1, LONG, "STEPS", "log so often")
    group_by_length: bool = field(default=False, metadata={"help": "batch cells of like length: less padding"})

    def __post_init__(self) -> None:
        for one in fields(self):
            if "rule" in one.metadata:
                check: Any = check_integer if isinstance(one.default, int) else check_number
                check(one.name, getattr(self, one.name), **one.metadata["rule"])
        if self.hidden_size % self.heads:
            raise InputError(f"heads must be a divisor of hidden_size={self.hidden_size}; got {self.heads}")
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise InputError(f"{name} must be one of {', '.join(allowed)}; got {shown(getattr(self, name))}")
        if not isinstance(self.group_by_length, bool):
            raise InputError(f"group_by_length must be true or false; got {shown(self.group_by_length)}")
        self.check_size(0)

    def check_size(self, n_tokens: int) -> None:
        """Raise InputError if a model over so many tokens has more weights than any machine trains."""
        width = self.hidden_size
        layer = 4 * width**2 + 2 * width * self.intermediate_size
        weights = self.layers * layer + (n_tokens + self.max_length) * width
        if weights > MOST_WEIGHTS:
            raise InputError(
                f"the model must have at most {MOST_WEIGHTS:,} weights; it would have {weights:,} "
                f"(layers={self.layers}, hidden_size={width}, intermediate_size={self.intermediate_size}, "
                f"max_length={self.max_length}); lower one of these"
            )

    @classmethod
    def read(cls, path: str | os.PathLike[str] | None, preset: str = "paper", **given: Any) -> PretrainingSettings:
        """Return a preset's settings, changed by a TOML file, changed by what is given (None: not given).

        Raises
        ------
        InputError
            If the preset, the file or one of its keys is unknown, or a value breaks its rule.
        """
        if preset not in PRESETS:
            raise InputError(f"preset must be one of {', '.join(PRESETS)}; got {shown(preset)}")
        changes = {} if path is None else read_config(path)[0]
        changes |= {name: value for name, value in given.items() if value is not None}
        return replace(PRESETS[preset], **changes)

    def to_toml(self) -> str:
        """Return the settings as a configuration file."""
        return to_toml(asdict(self))


def read_config(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return (settings, options of the masker) of a configuration file: a TOML file of names and values.

    Raises
    ------
    InputError
        If the file is no such file, or names something else.
    """
    with readable(path, "TOML file (lines such as `learning_rate = 1e-3`)"):
        found = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    names = {one.name for one in fields(PretrainingSettings)}
    for name in found:
        if name not in names and name not in MASKER_OPTIONS:
            raise InputError(
                f"{path}: there is no setting {shown(name)}; there are {', '.join(sorted(names.union(MASKER_OPTIONS)))}"
            )
    settings = {name: value for name, value in found.items() if name in names}
    return settings, {name: value for name, value in found.items() if name not in names}


def to_toml(values: Mapping[str, Any]) -> str:
    """Return names and plain values as lines of a configuration file."""
    # JSON's strings, numbers and truth values are TOML's, as far as they are finite.
    return "".join(f"{name} = {json.dumps(value, ensure_ascii=False)}\n" for name, value in values.items())


PRESETS = {
    "paper": PretrainingSettings(),
    "small": PretrainingSettings(
        hidden_size=128,
        layers=3,
        intermediate_size=256,
        max_length=512,
        batch_size=16,
        warmup_steps=500,
        eval_every=200,
        save_every=200,
        log_every=20,
    ),
}


def add_setting_options(parser: argparse.ArgumentParser) -> None:
    """Add an option for every setting; one that is not given is None, and the file or the preset speaks."""
    for one in fields(PretrainingSettings):
        flag, text = f"--{one.name.replace('_', '-')}", one.metadata["help"]
        if isinstance(one.default, bool):
            parser.add_argument(flag, action="store_const", const=True, help=text)
        elif one.name in CHOICES:
            parser.add_argument(flag, choices=CHOICES[one.name], help=f"{text} (default: {one.default})")
        else:
            what: dict[str, Any] = {"type": type(one.default), "metavar": one.metadata["metavar"]}
            parser.add_argument(flag, **what, help=f"{text} (default: {one.default})")
