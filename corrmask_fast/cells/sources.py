"""The inputs of a corpus: one or many AnnData, each matched to the vocabulary, opened when it is read."""

from __future__ import annotations

import os
from collections import OrderedDict
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np

from corrmask_fast.cells.counts import Counts
from corrmask_fast.cells.gene_matching import match_genes
from corrmask_fast.cells.obs_columns import ObsColumn, marks, obs_column
from corrmask_fast.cells.other_formats import is_count_matrix
from corrmask_fast.errors import InputError, check_number, shown

if TYPE_CHECKING:
    from collections.abc import Iterator

    from corrmask_fast.cells.gene_matching import GeneMapping, GeneMatch
    from corrmask_fast.cells.vocabulary import Vocabulary

FILTER_PASS = "filter_pass"  # Geneformer's column of obs
SUFFIXES = (".h5ad", ".zarr", ".h5", ".loom")  # of the inputs that a folder holds
GROUPS = {"b": "b", "i": "n", "u": "n", "f": "n", "M": "M", "m": "m"}  # kinds of dtype that have a type in common
KEPT_OPEN = 32  # inputs; files are few, and CSC is turned round once


@dataclass(frozen=True)
class Reading:
    """How counts are read, the same for every input: parameters of :func:`~corrmask_fast.tokenize`."""

    layer: str | None = None
    gene_column: str | None = None
    gene_mapping: GeneMapping | None = None
    filter_pass: str = "auto"
    total: str | None = None
    allow_fractional: bool = False
    target_sum: float = 10_000
    chunk_cells: int | None = None

    def __post_init__(self) -> None:
        target_sum = check_number("target_sum", self.target_sum, 0, np.inf, open_ends=True)
        object.__setattr__(self, "target_sum", target_sum)
        if not isinstance(self.allow_fractional, bool | np.bool_):
            raise InputError(f"allow_fractional must be True or False; got {shown(self.allow_fractional)}")


def inputs_of(given: Any) -> list[Any]:
    """Return the inputs that are meant: AnnData, paths of files and stores; folders stand for what is in them.

    Raises
    ------
    InputError
        If there is none, or one stands there twice.
    """
    several = given if isinstance(given, list | tuple) else [given]
    found = [one for each in several for one in _inputs_in(each)]
    if not found:
        raise InputError("there is no input; give one or more AnnData, .h5ad files, zarr stores or folders of these")
    seen: set[Any] = set()
    for one in found:
        key = os.path.realpath(one) if isinstance(one, str | os.PathLike) else id(one)
        if key in seen:
            raise InputError(
                f"{key if isinstance(key, str) else 'an AnnData'} is given twice; its cells would count twice"
            )
        seen.add(key)
    return found


def _inputs_in(given: Any) -> list[Any]:
    if not isinstance(given, str | os.PathLike) or not Path(given).is_dir() or is_count_matrix(Path(given)):
        return [given]
    found = sorted(path for path in Path(given).iterdir() if path.suffix in SUFFIXES and not path.name.startswith("."))
    found += sorted(path for path in Path(given).iterdir() if path.is_dir() and is_count_matrix(path, "10x"))
    return list(found) or [given]  # what a folder without any is, is said when it is opened


class Source:
    """An input, open: its counts, which gene each column is, which cells are kept."""

    def __init__(self, given: Any, vocabulary: Vocabulary, reading: Reading) -> None:
        self.reading = reading
        with ExitStack() as opening:
            counts = Counts(given, layer=reading.layer, chunk_cells=reading.chunk_cells)
            self.counts = opening.enter_context(counts)
            if counts.n_cells == 0:
                raise InputError(f"{counts.name} has no cells; give an AnnData with counts")
            mapping = reading.gene_mapping
            self.genes: GeneMatch = match_genes(counts.var, counts.name, vocabulary, reading.gene_column, mapping)
            self.filter_column = self._filter_column()
            self.kept = self._kept()
            self.totals = self._totals()
            self._exit = opening.pop_all()

    def close(self) -> None:
        """Close the file."""
        self._exit.close()

    @property
    def name(self) -> str:
        """The input, in messages."""
        return self.counts.name

    @cached_property
    def n_kept(self) -> int:
        """Number of cells that pass the filter."""
        return self.counts.n_cells if self.kept is None else int(np.count_nonzero(self.kept))

    def obs(self, name: str) -> ObsColumn | None:
        """Return a column of ``obs`` (``"index"``: its index), None if there is none of that name."""
        columns = self.counts.obs.columns()
        return self.counts.obs.column(name) if name in columns or name == "index" else None

    def cell_names(self, name: str) -> ObsColumn:
        """Return the index of ``obs`` as a column."""
        return obs_column(name, self.counts.obs.index())

    def _filter_column(self) -> str | None:
        asked = self.reading.filter_pass
        if asked != "auto":
            return None if asked == "none" else asked
        return FILTER_PASS if FILTER_PASS in self.counts.obs.columns() else None

    def _kept(self) -> np.ndarray | None:
        """Return (n_cells,) bool, the cells that pass; None: all do."""
        column = self.filter_column
        if column is None:
            return None
        values = self.counts.obs.column(column)
        try:
            kept = marks(column, values, "filter_pass")
        except InputError as error:
            raise InputError(f"{self.name}: {error}; filter_pass='none' takes all cells") from error
        if not kept.any():
            raise InputError(
                f"no cell of {self.name} passes: obs {column!r} is 1 nowhere; filter_pass='none' takes all cells"
            )
        return kept

    def _totals(self) -> np.ndarray | None:
        """(n_cells,) float64: each cell's total where an obs column gives it, NaN where that has no value."""
        total = self.reading.total
        if total is None:
            return None
        values, _, missing = self.counts.obs.column(total).flat()
        if values.dtype.kind not in "iuf":
            raise InputError(f"total must be a column of numbers; obs {total!r} of {self.name} holds {values.dtype}")
        numbers = values.astype(np.float64)
        return numbers if missing is None else np.where(missing, np.nan, numbers)


class Sources:
    """All inputs, in order; the last few that were used stay open. A context manager."""

    def __init__(self, inputs: list[Any], vocabulary: Vocabulary, reading: Reading) -> None:
        self.inputs, self.vocabulary, self.reading = inputs, vocabulary, reading
        self._open: OrderedDict[int, Source] = OrderedDict()
        self._n_kept: dict[int, int] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for source in self._open.values():
            source.close()
        self._open.clear()

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, number: int) -> Source:
        if number not in self._open:
            while len(self._open) >= KEPT_OPEN:
                self._open.popitem(last=False)[1].close()
            self._open[number] = Source(self.inputs[number], self.vocabulary, self.reading)
            self._n_kept[number] = self._open[number].n_kept
        self._open.move_to_end(number)
        return self._open[number]

    def __iter__(self) -> Iterator[Source]:
        return (self[number] for number in range(len(self)))

    @property
    def n_kept(self) -> int:
        """Number of cells that pass the filters, in all inputs (opens those that were not open yet)."""
        for number in range(len(self)):
            if number not in self._n_kept:
                self[number]
        return sum(self._n_kept.values())

    def names(self) -> list[str]:
        """Return what the inputs are called in a column of the corpus: file names, whole paths if two are alike."""
        whole = [
            os.fspath(one) if isinstance(one, str | os.PathLike) else f"AnnData {number}"
            for number, one in enumerate(self.inputs)
        ]
        short = [Path(name).name for name in whole]
        return short if len(set(short)) == len(short) else whole


class KindOfColumn(NamedTuple):
    """The type of a column's values in one input, and the largest integer of it."""

    dtype: np.dtype[Any]
    n_values: int
    largest: int

    @classmethod
    def of(cls, column: ObsColumn) -> KindOfColumn:
        """Look at a column."""
        values = column.values
        whole = values.dtype.kind in "iu" and values.size
        return cls(values.dtype, values.size, max(abs(int(values.min())), abs(int(values.max()))) if whole else 0)


def united_kind(name: str, found: list[KindOfColumn]) -> np.dtype[Any]:
    """Return the one type that the values of a column have over all inputs: of numbers the wider, else text.

    Raises InputError where integers of one input would not survive as the floats of another.
    """
    known = [one for one in found if one.n_values]  # categories without a label have no type
    kinds = list(dict.fromkeys(one.dtype for one in known or found))
    largest = max(one.largest for one in found)
    groups = {GROUPS.get(kind.kind, "text") for kind in kinds}
    if len(groups) > 1 or "text" in groups:
        return np.dtype(object)
    if groups & {"M", "m"} and len(kinds) > 1:  # the unit that corpora have
        return np.dtype(f"{kinds[0].kind}8[us]")
    kind = np.result_type(*kinds)
    if kind.kind == "f" and not any(each.kind == "f" for each in kinds) and largest < 2**63:
        return np.dtype(np.int64)  # NumPy takes floats for int64 beside uint64
    if kind.kind == "f" and largest > 2**53:
        raise InputError(
            f"obs column {name!r} holds integers up to {largest} in one input, and in another numbers that no one type "
            "holds beside them; rename one, or leave it out"
        )
    return kind


def as_kind(column: ObsColumn | None, n: int, kind: np.dtype[Any]) -> ObsColumn:
    """Return a column with values of a type; all missing where the input has none (None)."""
    if column is None:
        blank = np.full(n, "", object) if kind.hasobject else np.zeros(n, kind)
        return ObsColumn(blank, None, np.ones(n, np.bool_))
    if column.values.dtype == kind:
        return column
    values = column.values
    texts = np.array([str(value) for value in values.tolist()], object) if kind.hasobject else values.astype(kind)
    return column._replace(values=texts)
