"""What a comparison consists of: strategies by their names, what all models have in common, and the list of runs."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from corrmask_fast.errors import InputError, check_integer, check_number, shown
from corrmask_fast.masking.schedules import check_rate, parse_rate
from corrmask_fast.masking.strategies import CONTROL, LEARNED_STRATEGIES, STRATEGIES
from corrmask_fast.training.settings import PRESETS, PretrainingSettings

if TYPE_CHECKING:
    from collections.abc import Iterable

    from corrmask_fast.masking.base import RateLike

RATE = 0.15
TUNING_BATCH = 16  # cells in a step of fine-tuning
# Settings that a comparison sets itself, or that have no meaning for it.
NOT_COMPARED = (
    *("model", "run_seed", "held_out", "eval_every", "save_every", "log_every", "masking", "workers", "report_to"),
    *("compile", "gradient_checkpointing"),
)


class Compared(NamedTuple):
    """A strategy as it is named in a comparison: ``corrmask``, or with a rate of its own, ``random@0.1..0.9``."""

    name: str
    strategy: str
    rate: RateLike | None  # None: the rate of all

    @property
    def label(self) -> str:
        """Its name in tables and pictures."""
        every = STRATEGIES | LEARNED_STRATEGIES
        label = every[self.strategy].label if self.strategy in every else self.strategy
        return label if self.rate is None else f"{label}, rate {self.name.partition('@')[2]}"


def parse_compared(name: str) -> Compared:
    """Return the strategy that a name means.

    >>> parse_compared("random@0.4").label
    'Random, rate 0.4'
    """
    strategy, at, rate = name.partition("@") if isinstance(name, str) else ("", "", "")
    if strategy not in STRATEGIES | LEARNED_STRATEGIES and not all(strategy.partition(":")):
        names = ", ".join((*STRATEGIES, *LEARNED_STRATEGIES))
        raise InputError(
            f"strategies must be of {names}, or package.module:Name, each with a rate of its own where one follows "
            f"(random@0.4, random@0.1..0.9); got {shown(name)}"
        )
    return Compared(name, strategy, parse_rate(rate) if at else None)


@dataclass(frozen=True)
class Scoring:
    """How :func:`~corrmask_fast.compare_strategies` scores each model.

    Parameters
    ----------
    n_cells
        Largest number of test cells for losses.
    n_targets
        Largest number of targets for the shortcut. 0: the shortcut is not measured.
    fine_tuning_epochs
        Passes over the labelled cells in fine-tuning. 0: no fine-tuning; cell types are told from frozen embeddings
        only.
    min_cells
        Types with fewer labelled test cells are left out; at least 4.
    neighbors
        Number of a cell's neighbours for kNN purity.

    Raises
    ------
    InputError
        If a number is out of range.

    Examples
    --------
    >>> from corrmask_fast import Scoring
    >>> Scoring(n_targets=0).n_cells  # without the shortcut
    1000
    """

    n_cells: int = 1000
    n_targets: int = 1000
    fine_tuning_epochs: int = 10
    min_cells: int = 10
    neighbors: int = 10

    def __post_init__(self) -> None:
        check_integer("n_cells", self.n_cells, 1)
        check_integer("n_targets", self.n_targets, 0)
        check_integer("fine_tuning_epochs", self.fine_tuning_epochs, 0)
        check_integer("min_cells", self.min_cells, 4)  # a half of them is split again
        check_integer("neighbors", self.neighbors, 1)


class Task(NamedTuple):
    """One model to train and score. ``strategy`` None: the untrained encoder, and the baselines of the seed."""

    strategy: str | None
    fraction: float
    seed: int


@dataclass(frozen=True)
class Plan:
    """What all models of a comparison have in common, and which models there are.

    ``options``: files of ``gene_sets`` and ``weights``, for the strategies of these names.
    """

    strategies: tuple[str, ...]
    seeds: int
    fractions: tuple[float, ...]
    reference: str = CONTROL
    labels: str | None = None
    mlm_probability: float = RATE
    settings: PretrainingSettings = field(default_factory=lambda: PRESETS["tiny"])
    scoring: Scoring = field(default_factory=Scoring)
    options: dict[str, Any] = field(default_factory=dict)
    graph: str | None = None
    pmi: str | None = None

    def __post_init__(self) -> None:
        if not self.strategies:
            raise InputError("strategies must name one or more; such as random and corrmask")
        for name in self.strategies:
            if (rate := parse_compared(name).rate) is not None:
                check_rate(f"the rate of {name}", rate)
        for what, given in (("strategies", self.strategies), ("fractions", self.fractions)):
            for one in given:
                if given.count(one) > 1:  # type: ignore[arg-type]
                    raise InputError(f"{what} has {one} twice; name each once")
        if not self.fractions:
            raise InputError("fractions must be one or more shares of the training cells, such as 1")
        for fraction in self.fractions:
            check_number("fractions", fraction, 0, 1)
            if fraction == 0:
                raise InputError("fractions must be above 0; got 0")
        check_integer("seeds", self.seeds, 1)
        check_number("mlm_probability", self.mlm_probability, 0, 1, open_ends=True)
        if self.settings.model:
            raise InputError("model must be left out: all models of a comparison start from new weights")
        if self.settings.max_steps == 0:
            raise InputError("max_steps must be 1 or more: all models of a comparison take as many steps")

    def tasks(self) -> list[Task]:
        """Return all runs: one seed after the other, so that a comparison that is broken off has whole pairs."""
        found = []
        for seed in range(self.seeds):
            found.append(Task(None, 1.0, seed))
            found += [Task(name, fraction, seed) for fraction in sorted(self.fractions) for name in self.strategies]
        return found

    def lasting(self) -> dict[str, Any]:
        """Return what may not change while a comparison grows by strategies, seeds and fractions."""
        settings = {name: value for name, value in asdict(self.settings).items() if name not in NOT_COMPARED}
        return {
            "labels": self.labels,
            "mlm_probability": self.mlm_probability,
            "options": {name: _content(path) for name, path in self.options.items()},
            "graph": _content(self.graph),
            "pmi": _content(self.pmi),
            "settings": settings,
            "scoring": asdict(self.scoring),
        }


def _content(path: str | None) -> str | None:
    """Return what a file holds, in short."""
    if path is None:
        return None
    try:
        digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    return f"{Path(path).name} ({digest[:12]})"


def united(before: Iterable[Any], now: Iterable[Any]) -> list[Any]:
    """Return what was there, then what is new."""
    return list(dict.fromkeys([*before, *now]))


def notes_of(plan: Plan, names: Iterable[str]) -> list[str]:
    """Return what a reader has to know of the losses of some strategies, in sentences."""
    every = STRATEGIES | LEARNED_STRATEGIES
    compared = [parse_compared(name) for name in names]
    needed = {every[one.strategy].needs for one in compared if one.strategy in every}
    notes = []
    for source, what, given in (("graph", "graph", plan.graph), ("pmi", "PMI table", plan.pmi)):
        if source in needed:
            made = "made from the cells that each model is pretrained on, cut as for the model"
            notes.append(f"The {what} of a strategy is {'the one that was given' if given else made}.")
    if plan.scoring.n_targets:
        graph = "the graph that was given" if plan.graph else "the graph of all training cells"
        notes.append(f"The shortcut of all models is measured by {graph}.")
    notes.append(
        "Losses are taken under random masks of one rate for all models. These are the masks that Random is trained "
        "with, so they favour it; other strategies meet them for the first time."
    )
    if any(one.rate is not None for one in compared):
        notes.append(
            "Strategies of another rate predict another number of genes in as many steps, and take another time."
        )
    notes.append("Gene frequencies, as baselines, are counted in the test cells, the scored cell left out.")
    return notes


def type_notes(plan: Plan, *, has_counts: bool) -> list[str]:
    """Return how cell types are told, in sentences."""
    what = "counts" if has_counts else "ranks (there are no counts)"
    notes = [
        (
            "Cell types: half of the labelled test cells train the head or the regression, the other half is scored; "
            "the halves follow from the seed."
        ),
        (
            f"The logistic regressions read the {what} of all genes of a cell; models read its first "
            f"{plan.settings.max_length} genes."
        ),
    ]
    if plan.scoring.fine_tuning_epochs:
        notes.append(
            f"Fine-tuning: AdamW with the learning rate of pretraining, {plan.scoring.fine_tuning_epochs} epochs of "
            f"{TUNING_BATCH} cells a step."
        )
    return notes
