"""The settings of a pretraining run: defaults from the paper, changed by a TOML file or the command line."""

from __future__ import annotations

import json
import tomllib
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from corrmask_fast.errors import InputError, check_integer, check_number, naming, readable, shown
from corrmask_fast.masking.strategies import DEFAULT, OPTIONS, SOURCES

if TYPE_CHECKING:
    import argparse
    import os
    from collections.abc import Collection, Mapping

__all__ = ["PRESETS", "PretrainingSettings"]

SETTINGS = "settings.toml"  # in the folder of a run
CHOICES = {
    "lr_schedule": ("linear", "cosine", "constant"),
    "precision": ("auto", "float32", "bfloat16", "float16"),
    "device": ("auto", "cpu", "cuda"),
    "masking": ("auto", "worker", "device"),
    "head": ("masked", "full"),
    "report_to": ("none", "tensorboard"),
}

# Options of the masker in a configuration file; None: the masker's own default.
MASKER_OPTIONS: dict[str, Any] = {
    "strategy": DEFAULT,
    **{name: None for name, source in SOURCES.items() if source.metavar},
    "mlm_probability": 0.15,
    **dict.fromkeys(OPTIONS),
    "replace": None,
    "eval_strategy": None,
    "eval_mlm_probability": None,
    "seed": 0,
}
# Of a checkpoint that training starts from, where it has them: setting → configuration of transformers.
OF_CHECKPOINT = {
    "hidden_size": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "intermediate_size": "intermediate_size",
    "dropout": "hidden_dropout_prob",
}

MAX_WEIGHTS = 10**10  # of a model; the largest single-cell models have about 10**9
LONG = 10**9  # steps; no run has more


def _number(default: float, low: float, high: float, metavar: str, text: str, *, open_ends: bool = False) -> Any:
    rule = {"low": low, "high": high} | ({"open_ends": True} if open_ends else {})
    return field(default=default, metadata={"metavar": metavar, "help": text, "rule": rule})


def _choice(default: str, text: str) -> Any:
    return field(default=default, metadata={"help": text})


def _switch(text: str) -> Any:
    return field(default=False, metadata={"help": text})


@dataclass(frozen=True)
class PretrainingSettings:
    """Model and training; the defaults are Table 5 of Hacohen et al. 2026 (Geneformer's architecture).

    Every field is an option of ``corrmask-fast pretrain`` and a key of its configuration file.
    """

    model: str = field(
        default="",
        metadata={
            "metavar": "FOLDER",
            "help": "a checkpoint to start from, of any masked language model of transformers; its size is the "
            "model's (default: a new BERT)",
        },
    )
    hidden_size: int = _number(256, 1, 65_536, "N", "width of the model")
    layers: int = _number(6, 1, 1_000, "N", "layers")
    heads: int = _number(4, 1, 65_536, "N", "attention heads; divides the width")
    intermediate_size: int = _number(512, 1, 1_000_000, "N", "width of the feed-forward layers")
    dropout: float = _number(0.02, 0, 1, "P", "dropout, of attention too")
    max_length: int = _number(2048, 1, 1_000_000, "N", "cells are cut to so many genes")
    batch_size: int = _number(12, 1, 1_000_000, "N", "cells in a batch, on each process")
    gradient_accumulation: int = _number(1, 1, 1_000_000, "N", "batches in a step")
    learning_rate: float = _number(1e-3, 0, 10, "RATE", "highest learning rate (AdamW)", open_ends=True)
    lr_schedule: str = _choice("linear", "shape of the learning rate after the warm-up")
    warmup_steps: int = _number(10_000, 0, LONG, "N", "warm-up steps; at most 10 % of all steps")
    weight_decay: float = _number(0.001, 0, 10, "X", "of AdamW")
    epochs: float = _number(3.0, 0, 100_000, "N", "passes over the cells", open_ends=True)
    max_steps: int = _number(0, 0, LONG, "N", "stop after so many steps; 0: by epochs")
    run_seed: int = _number(0, 0, 2**64 - 1, "N", "of weights, order of cells and dropout")
    precision: str = _choice("auto", "auto: bfloat16 on a GPU that has it; float16 needs a GPU")
    compile: bool = _switch("compile the model (torch.compile)")
    gradient_checkpointing: bool = _switch("compute activations twice instead of keeping them: slower, less memory")
    device: str = _choice("auto", "where to train")
    masking: str = _choice("auto", "in the collator's workers, or on the device inside the step (auto: there on a GPU)")
    head: str = _choice("masked", "logits at masked genes alone, or at all genes (the same loss)")
    workers: int = _number(0, 0, 1_024, "N", "worker processes that collate")
    held_out: float = _number(0.02, 0, 0.5, "SHARE", "of the cells, kept for evaluation (at most 2 000 cells)")
    eval_every: int = _number(500, 1, LONG, "STEPS", "steps between evaluations; there is one at the end too")
    save_every: int = _number(500, 1, LONG, "STEPS", "steps between checkpoints; the last two are kept")
    log_every: int = _number(50, 1, LONG, "STEPS", "steps between lines of the log")
    group_by_length: bool = _switch("batch cells of like length: less padding")
    report_to: str = _choice("none", "also write the log for TensorBoard, into the folder's `tensorboard`")

    def __post_init__(self) -> None:
        self.check_values(asdict(self))
        if self.hidden_size % self.heads:
            raise InputError(f"heads must be a divisor of hidden_size={self.hidden_size}; got {self.heads}")
        self.check_size(0)

    @classmethod
    def check_values(cls, values: Mapping[str, Any]) -> None:
        """Raise InputError if one of the named values breaks the rule of its setting."""
        for one in fields(cls):
            name, value = one.name, values.get(one.name, one.default)
            if "rule" in one.metadata:
                check: Any = check_integer if isinstance(one.default, int) else check_number
                check(name, value, **one.metadata["rule"])
            elif name in CHOICES and value not in CHOICES[name]:
                raise InputError(f"{name} must be one of {', '.join(CHOICES[name])}; got {shown(value)}")
            elif isinstance(one.default, bool) and not isinstance(value, bool):
                raise InputError(f"{name} must be true or false; got {shown(value)}")
            elif isinstance(one.default, str) and not isinstance(value, str):
                raise InputError(f"{name} must be a text; got {shown(value)}")

    def of_checkpoint(self) -> PretrainingSettings:
        """Return the settings with the sizes of the checkpoint that training starts from, if it starts from one."""
        if not self.model:
            return self
        from corrmask_fast.training.pretrained import load_config

        config = load_config(self.model)
        sizes = {name: getattr(config, theirs, None) for name, theirs in OF_CHECKPOINT.items()}
        positions = getattr(config, "max_position_embeddings", None)
        sizes["max_length"] = min(self.max_length, positions) if isinstance(positions, int) else None
        return replace(self, **{name: size for name, size in sizes.items() if size is not None})

    def check_size(self, n_tokens: int) -> None:
        """Raise InputError if the model has too many weights with a vocabulary of ``n_tokens``."""
        width = self.hidden_size
        layer = 4 * width**2 + 2 * width * self.intermediate_size
        weights = self.layers * layer + (n_tokens + self.max_length) * width
        if weights > MAX_WEIGHTS:
            raise InputError(
                f"the model must have at most {MAX_WEIGHTS:,} weights; it would have {weights:,} "
                f"(layers={self.layers}, hidden_size={width}, intermediate_size={self.intermediate_size}, "
                f"max_length={self.max_length}); lower one of these"
            )

    @classmethod
    def read(cls, path: str | os.PathLike[str] | None, preset: str = "paper", **given: Any) -> PretrainingSettings:
        """Return a preset's settings, changed by a TOML file, then by the given values that are not None.

        Raises
        ------
        InputError
            If the preset, the file or one of its keys is unknown, or a value breaks its rule.
        """
        if preset not in PRESETS:
            raise InputError(f"preset must be one of {', '.join(PRESETS)}; got {shown(preset)}")
        given = {name: value for name, value in given.items() if value is not None}
        if path is None:
            return replace(PRESETS[preset], **given)
        found = read_config(path)[0]
        cls.check_values(given)  # first: these values are not the file's
        with naming(path):
            return replace(PRESETS[preset], **(found | given))

    def to_toml(self) -> str:
        """Return the settings as a configuration file."""
        return to_toml(asdict(self))


def read_config(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return (settings, options of the masker) of a configuration file: a TOML file of names and values.

    Raises
    ------
    InputError
        If the file is not TOML, has an unknown name, or a setting's value breaks its rule.
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
    with naming(path):
        PretrainingSettings.check_values(settings)
    return settings, {name: value for name, value in found.items() if name not in names}


def to_toml(values: Mapping[str, Any]) -> str:
    """Return names and plain values as lines of a configuration file."""
    # Strings, finite numbers and truth values are the same in JSON and TOML.
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
    "tiny": PretrainingSettings(  # about a minute on one thread
        hidden_size=64,
        layers=2,
        intermediate_size=128,
        dropout=0.0,
        max_length=192,
        batch_size=16,
        max_steps=700,
    ),
}


def add_setting_options(
    parser: argparse.ArgumentParser, leave_out: Collection[str] = (), preset: str = "paper"
) -> None:
    """Add an option for every setting but some; its default None leaves the value to the file or the preset.

    ``preset``: whose values the help names.
    """
    for one in fields(PretrainingSettings):
        if one.name in leave_out:
            continue
        default = getattr(PRESETS[preset], one.name)
        flag, text = f"--{one.name.replace('_', '-')}", one.metadata["help"].replace("%", "%%")
        if isinstance(one.default, bool):
            parser.add_argument(flag, action="store_const", const=True, help=text)
        elif one.name in CHOICES:
            parser.add_argument(flag, choices=CHOICES[one.name], help=f"{text} (default: {default})")
        elif one.default == "":
            parser.add_argument(flag, metavar=one.metadata["metavar"], help=text)
        else:
            what: dict[str, Any] = {"type": type(one.default), "metavar": one.metadata["metavar"]}
            parser.add_argument(flag, **what, help=f"{text} (default: {default})")
