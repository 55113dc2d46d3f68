"""What a comparison leaves in its folder, read and checked: facts, a row for each model, details by group."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from corrmask_fast.comparison.measures import MEASURES, Measure
from corrmask_fast.errors import InputError, as_integer, readable, shown

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Mapping, Sequence

FACTS, ROWS, DETAILS = "comparison.json", "rows.csv", "details.csv"
BASELINES = {
    "untrained": "Untrained model", "unigram": "Gene frequencies", "cell type": "Gene frequencies by cell type",
    "majority": "Largest cell type", "logistic, counts": "Logistic regression on counts",
    "logistic, PCA": "Logistic regression on PCA",
}  # fmt: skip
KINDS = ("model", "untrained", "baseline")
# Of a row, beside the measures and their standard errors: all of them numbers, each may be missing.
NUMBERS = ("cells", "steps", "seconds", "graph_edges", "coverage_error", "own_loss", "targets")
_LARGEST = 1e15  # a number beyond it comes of a model that diverged
_KEPT = {*NUMBERS, *(name for measure in MEASURES for name in (measure.name, f"{measure.name}_se"))}
# Facts that may be missing, and what stands for them then.
_OPTIONAL: dict[str, Any] = {
    "labelled_cells": 0, "types": {}, "rare": [], "settings": {}, "evaluation": {}, "inputs": {}, "notes": [],
    "versions": {}, "command": "",
}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One model, or one baseline, with one seed."""

    kind: str
    """``"model"``, ``"untrained"`` or ``"baseline"``."""
    strategy: str
    fraction: float | None
    """Share of the training cells; None: of baselines and the untrained model."""
    seed: int
    values: Mapping[str, float]
    """By column of ``rows.csv``; what is missing there is missing here."""
    not_finite: Sequence[str] = ()
    """Columns with NaN, an infinite number or one beyond 1e15: they are in no table."""


class Detail(NamedTuple):
    """One value of one model for a group of cells or genes."""

    strategy: str
    fraction: float | None
    seed: int
    table: str
    group: str
    value: float
    n: int


@dataclass(frozen=True)
class Results:
    """What ``comparison.json``, ``rows.csv`` and ``details.csv`` hold; models may still be missing."""

    facts: Mapping[str, Any]
    rows: Sequence[Row]
    details: Sequence[Detail] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "facts", _checked_facts(self.facts))
        values: dict[tuple[str, float | None], dict[int, Mapping[str, float]]] = {}
        for row in self.rows:
            if row.kind == "model" and row.strategy not in self.strategies:
                raise InputError(f"{ROWS} has strategy {shown(row.strategy)}, which {FACTS} does not list")
            if row.kind == "model" and row.fraction not in self.fractions:
                raise InputError(f"{ROWS} has fraction {row.fraction}, which {FACTS} does not list")
            if row.kind != "model" and row.strategy in self.strategies:
                raise InputError(f"{ROWS} has a baseline with the name of a strategy: {shown(row.strategy)}")
            seeds = values.setdefault((row.strategy, row.fraction if row.kind == "model" else None), {})
            if row.seed in seeds:
                raise InputError(
                    f"{ROWS} has two rows of {shown(row.strategy)}, fraction {row.fraction}, seed {row.seed}; keep one"
                )
            seeds[row.seed] = row.values
        object.__setattr__(self, "_values", values)

    @classmethod
    def read(cls, folder: str | os.PathLike[str]) -> Self:
        """Read the folder of a comparison, finished or not.

        Parameters
        ----------
        folder
            Folder with ``comparison.json`` and ``rows.csv``; ``details.csv`` may be missing.

        Returns
        -------
        Comparison
            The models that have ended.

        Raises
        ------
        InputError
            If a file is missing, damaged, or does not fit the others.
        """
        folder = Path(folder)
        for name in (FACTS, ROWS):
            if not (folder / name).is_file():
                raise InputError(f"{folder} is no folder of a comparison: it lacks {name}")
        with readable(folder / FACTS, "JSON file"):
            facts = json.loads((folder / FACTS).read_bytes())
            json.dumps(facts, ensure_ascii=False).encode()  # half a surrogate pair can be in JSON, and in no file
            _checked_facts(facts)
        with readable(folder / ROWS, "CSV file"):
            rows = [_row(fields) for fields in _lines(folder / ROWS, ("kind", "strategy", "fraction", "seed"))]
        details: list[Detail] = []
        if (folder / DETAILS).is_file():
            with readable(folder / DETAILS, "CSV file"):
                details = [detail for fields in _lines(folder / DETAILS, Detail._fields) for detail in _detail(fields)]
        with readable(folder, "comparison"):
            return cls(facts, rows, details)

    @property
    def strategies(self) -> dict[str, str]:
        """Name of each strategy → its label, in the order given."""
        return self.facts["strategies"]  # type: ignore[no-any-return]

    @property
    def reference(self) -> str:
        """Name of the strategy that the others are compared with."""
        return self.facts["reference"]  # type: ignore[no-any-return]

    @property
    def fractions(self) -> list[float]:
        """Shares of the training cells, the largest first."""
        return sorted(self.facts["fractions"], reverse=True)

    @property
    def started(self) -> list[float]:
        """Fractions that have a model, the largest first; tables and pictures show these."""
        there = {row.fraction for row in self.rows if row.kind == "model"}
        return [fraction for fraction in self.fractions if fraction in there]

    @property
    def baselines(self) -> list[str]:
        """Names of the baselines and of the untrained model, in the order of their rows."""
        return list(dict.fromkeys(row.strategy for row in self.rows if row.kind != "model"))

    @property
    def measures(self) -> list[Measure]:
        """Measures of which some model has a value, each with ``name``, ``label``, ``unit`` and ``better``."""
        there = {name for row in self.rows if row.kind == "model" for name in row.values}
        return [measure for measure in MEASURES if measure.name in there]

    @property
    def planned(self) -> int:
        """Number of models that the finished comparison has."""
        return int(self.facts["models"])

    @property
    def ended(self) -> int:
        """Number of models that have a row."""
        return sum(row.kind == "model" for row in self.rows)

    def label(self, name: str) -> str:
        """Return the label of a strategy or baseline, as tables and pictures show it.

        Parameters
        ----------
        name
            Name of a strategy or baseline.

        Returns
        -------
        str
            Its label, such as ``"Random"`` for ``"random"``.
        """
        return self.strategies.get(name, BASELINES.get(name, name))

    def pair(self, strategy: str, against: str) -> str:
        """Return the label of a difference, as tables and pictures show it.

        Parameters
        ----------
        strategy, against
            Names of strategies or baselines.

        Returns
        -------
        str
            Such as ``"CorrMask − Random"``.
        """
        return f"{self.label(strategy)} − {self.label(against)}"

    def values(self, name: str, measure: str, fraction: float | None) -> dict[int, float]:
        """Return the values of one column of ``rows.csv`` by seed.

        Parameters
        ----------
        name
            Name of a strategy or baseline.
        measure
            Name of a column, such as ``"loss"``.
        fraction
            Share of the training cells, in (0, 1]. It does not matter for a baseline.

        Returns
        -------
        dict
            Seed → value. Seeds without a value are left out.
        """
        seeds = self._rows_of(name, fraction)
        return {seed: values[measure] for seed, values in sorted(seeds.items()) if measure in values}

    def _rows_of(self, name: str, fraction: float | None) -> Mapping[int, Mapping[str, float]]:
        values: dict[Any, dict[int, Mapping[str, float]]] = self._values  # type: ignore[attr-defined]
        return values.get((name, fraction if name in self.strategies else None), {})

    def by_group(self, table: str, fraction: float) -> dict[str, dict[str, dict[int, float]]]:
        """Return one table of ``details.csv``.

        Parameters
        ----------
        table
            Name of the table, such as ``"loss by frequency"``.
        fraction
            Share of the training cells, in (0, 1].

        Returns
        -------
        dict
            Group → strategy → seed → value.
        """
        groups: dict[str, dict[str, dict[int, float]]] = {}
        for one in self.details:
            if one.table == table and one.fraction == fraction and one.strategy in self.strategies:
                groups.setdefault(one.group, {}).setdefault(one.strategy, {})[one.seed] = one.value
        return groups

    def cells(self, fraction: float) -> int:
        """Return the number of cells that the models of a fraction were pretrained on.

        Parameters
        ----------
        fraction
            Share of the training cells, in (0, 1].

        Returns
        -------
        int
            Number of cells.
        """
        for row in self.rows:
            if row.kind == "model" and row.fraction == fraction and "cells" in row.values:
                return int(row.values["cells"])
        return round(fraction * int(self.facts["train_cells"]))

    def remarks(self) -> list[str]:
        """Return remarks on the rows: models that are missing, and values that are not finite.

        Returns
        -------
        list of str
            Sentences; empty if nothing is missing.
        """
        remarks = []
        if self.ended < self.planned:
            remarks.append(
                f"This comparison is not finished: {self.ended:,} of {self.planned:,} models have ended. "
                "Two strategies are compared by the seeds that both have."
            )
        for row in self.rows:
            if row.not_finite:
                where = "" if row.fraction is None else f", {percent(row.fraction)} of the cells"
                names = ", ".join(row.not_finite)
                remarks.append(
                    f"{self.label(row.strategy)}{where}, seed {row.seed}: not finite or beyond 1e15, left out: {names}."
                )
        return remarks


def percent(fraction: float) -> str:
    """Return a share as a percentage.

    >>> percent(0.1), percent(1.0)
    ('10 %', '100 %')
    """
    return f"{100 * fraction:g} %"


def _checked_facts(facts: Any) -> dict[str, Any]:
    """Return facts with what may be missing filled in; raise InputError if they cannot be those of a comparison."""

    def check(holds: bool, rule: str, value: Any) -> None:
        if not holds:
            raise InputError(f"{rule}; got {shown(value)}")

    check(isinstance(facts, dict), "facts must be a JSON object", facts)
    for key in ("strategies", "reference", "fractions", "seeds", "train_cells", "test_cells", "genes"):
        check(key in facts, f"facts lack {key!r}", list(facts))
    facts = {**_OPTIONAL, **facts}
    for key, empty in _OPTIONAL.items():
        check(isinstance(facts[key], type(empty)), f"{key} must be a {type(empty).__name__}", facts[key])
    names = facts["strategies"]
    check(
        isinstance(names, dict) and bool(names) and all(isinstance(text, str) for text in names.values()),
        "strategies must be an object with a label for each name", names,
    )  # fmt: skip
    labels = [*names, *names.values()]
    check(all(text.isprintable() for text in labels), "names and labels of strategies must be printable", labels)
    check(len(set(names.values())) == len(names), "labels of strategies must differ", labels)
    check(facts["reference"] in list(names), "reference must be one of the strategies", facts["reference"])
    fractions = facts["fractions"]
    check(
        isinstance(fractions, list) and bool(fractions)
        and all(isinstance(one, int | float) and not isinstance(one, bool) and 0 < one <= 1 for one in fractions)
        and len(set(fractions)) == len(fractions),
        "fractions must be a list of different numbers in (0, 1]", fractions,
    )  # fmt: skip
    facts.setdefault("models", len(names) * len(fractions) * int(facts["seeds"]))
    for key in ("seeds", "models", "train_cells", "test_cells", "genes", "labelled_cells"):
        count = as_integer(facts[key])
        least = 0 if key == "labelled_cells" else 1
        check(count is not None and least <= count < 2**63, f"{key} must be an integer >= {least}", facts[key])
    types = facts["types"]
    check(all(as_integer(n) is not None for n in types.values()), "types must give a number of cells each", types)
    check(all(isinstance(name, str) for name in facts["rare"]), "rare must list cell types", facts["rare"])
    check(all(isinstance(note, str) for note in facts["notes"]), "notes must be texts", facts["notes"])
    return facts


def _lines(path: Path, needed: Sequence[str]) -> Iterator[dict[str, str]]:
    """Yield the rows of a CSV file by column, each with as many fields as the head."""
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.reader(file, strict=True)
        head = next(reader, [])
        if missing := [name for name in needed if name not in head]:
            raise InputError(f"{path} lacks the columns {', '.join(missing)}")
        for fields in reader:
            if len(fields) != len(head):
                raise InputError(f"{path}, line {reader.line_num}: {len(fields)} fields, the head has {len(head)}")
            yield dict(zip(head, fields, strict=True))


def _row(fields: dict[str, str]) -> Row:
    if fields["kind"] not in KINDS:
        raise InputError(f"kind must be one of {', '.join(KINDS)}; got {shown(fields['kind'])}")
    numbers = {name: _number(name, text) for name, text in fields.items() if name in _KEPT and text}
    if not fields["strategy"].isprintable():
        raise InputError(f"strategy must be printable; got {shown(fields['strategy'])}")
    values = {name: value for name, value in numbers.items() if abs(value) < _LARGEST}
    lost = [name for name in numbers if name not in values]
    fraction, seed = _fraction(fields["fraction"]), _integer("seed", fields["seed"])
    return Row(fields["kind"], fields["strategy"], fraction, seed, values, lost)


def _detail(fields: dict[str, str]) -> Iterator[Detail]:
    """Give the detail of a line, or none where its value is empty or not finite."""
    value = _number("value", fields["value"]) if fields["value"] else math.nan
    if abs(value) < _LARGEST:
        yield Detail(
            fields["strategy"], _fraction(fields["fraction"]), _integer("seed", fields["seed"]), fields["table"],
            fields["group"], value, _integer("n", fields["n"] or "0"),
        )  # fmt: skip


def _fraction(text: str) -> float | None:
    return _number("fraction", text) if text else None


def _number(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise InputError(f"{name} must be a number; got {shown(text)}") from None


def _integer(name: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise InputError(f"{name} must be an integer; got {shown(text)}") from None
