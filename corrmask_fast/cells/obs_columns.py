"""Columns of ``obs``: each has one type, whatever its first values are, and says which values are missing."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from corrmask_fast.errors import InputError, shown

if TYPE_CHECKING:
    from collections.abc import Iterable


MAX_TEXT = 1000  # characters: NumPy would give every cell space for the longest text


class ObsColumn(NamedTuple):
    """One value a cell: ``values``, or ``values[codes]`` where there are codes. Text is Python strings."""

    values: np.ndarray
    codes: np.ndarray | None = None  # −1: missing
    missing: np.ndarray | None = None  # (n,) bool; None: nothing is; there, values are "", 0, False or NaN

    @property
    def size(self) -> int:
        """Number of cells."""
        return len(self.values if self.codes is None else self.codes)

    def take(self, rows: np.ndarray) -> ObsColumn:
        """Return the values of some cells, without codes."""
        if self.codes is None:
            return ObsColumn(self.values[rows], None, None if self.missing is None else self.missing[rows])
        codes = self.codes[rows]
        blank = np.array([""], object) if self.values.dtype == object else np.zeros(1, self.values.dtype)
        labels = self.values if self.values.size else blank
        return ObsColumn(labels[np.maximum(codes, 0)], None, codes < 0 if (codes < 0).any() else None)

    def flat(self) -> ObsColumn:
        """Return the column without codes."""
        return self if self.codes is None else self.take(np.arange(self.size))

    def to_numpy(self) -> np.ndarray:
        """(n,): the values as :attr:`Corpus.obs` has them, with None for what is missing."""
        flat = self.flat()
        if flat.values.dtype.kind in "mM":  # as datetime and timedelta, which datasets gives too
            return flat.values.astype(f"{flat.values.dtype.kind}8[us]").astype(object)
        if flat.missing is None or not flat.missing.any():
            return flat.values
        out = flat.values.astype(object)
        out[flat.missing] = None
        return out


def obs_column(name: str, column: Any) -> ObsColumn:
    """Return a column of any kind (NumPy, pandas, list) with one type for all its values.

    Categories have the type of their labels. Objects are booleans, integers or numbers where all of them are, else
    text. Raises InputError for what is not one number, text or time a cell.
    """
    if isinstance(column, ObsColumn):
        return column
    if hasattr(column, "categories") and hasattr(column, "codes"):
        labels = obs_column(name, column.categories).values
        return ObsColumn(labels if labels.size else np.empty(0, object), np.asarray(column.codes))
    try:
        values, missing = _nullable(column)
    except ValueError as error:  # lists of other lengths
        raise _unfit(name, "lists") from error
    if values.dtype.kind == "f" and values.dtype.itemsize > 8:
        values = values.astype(np.float64)
    if values.dtype.kind in "fmM":
        missing = np.isnan(values) if values.dtype.kind == "f" else np.isnat(values)
    elif values.dtype.kind in "UST":  # T: NumPy's strings of any length
        values = np.array([text_of(value) for value in values.tolist()], object).reshape(values.shape)
    elif values.dtype == object and values.ndim == 1:
        missing = np.fromiter(map(_is_missing, values), np.bool_, values.size)
        values = _typed(name, values, missing)
    elif values.dtype.kind not in "biu":
        raise _unfit(name, values.dtype)
    if values.ndim != 1:
        raise _unfit(name, f"{values.ndim} dimensions")
    return ObsColumn(values, None, missing if missing is not None and missing.any() else None)


def unfit_text(values: Iterable[str | None]) -> str | None:
    """Return the first text that NumPy's strings of one width do not suit, or None.

    A long one takes gigabytes, and NumPy drops a NUL at the end.
    """
    return next((text for text in values if text and (len(text) > MAX_TEXT or text.endswith("\0"))), None)


def marks(name: str, column: Any, what: str) -> np.ndarray:
    """(n,) bool: where a column of 0 and 1, or of False and True, is 1; a missing value is not."""
    values, _, missing = obs_column(name, column).flat()
    there = np.ones(values.size, np.bool_) if missing is None else ~missing
    wrong = there if values.dtype == object else there & (values != 0) & (values != 1)
    if wrong.any():
        value = shown(values[wrong][:1].tolist()[0])
        raise InputError(f"{what} must be a column of 0 and 1, or False and True; obs[{name!r}] has {value}")
    return there & (values == 1)


def _nullable(column: Any) -> tuple[np.ndarray, np.ndarray | None]:
    """Return a column as NumPy, and where a nullable column of pandas has no value."""
    dtype = getattr(getattr(column, "dtype", None), "numpy_dtype", None)
    if not hasattr(column, "isna") or not isinstance(dtype, np.dtype) or dtype.kind not in "biuf":
        return np.asarray(column), None
    return column.to_numpy(dtype, na_value=dtype.type(math.nan if dtype.kind == "f" else 0)), np.asarray(column.isna())


def _typed(name: str, values: np.ndarray, missing: np.ndarray) -> np.ndarray:
    """Return Python objects as one type, with a placeholder where they are missing."""
    there = values[~missing].tolist()
    kinds = {type(value) for value in there}
    if any(issubclass(kind, list | tuple | dict | set | np.ndarray) for kind in kinds):
        raise _unfit(name, "lists")
    truths = [issubclass(kind, bool | np.bool_) for kind in kinds]
    whole = [issubclass(kind, int | np.integer) for kind in kinds]
    numbers = [issubclass(kind, int | float | np.integer | np.floating) for kind in kinds]
    dtype: Any = object
    if kinds and all(truths):
        dtype = np.bool_
    elif kinds and not any(truths) and all(numbers):
        dtype = np.int64 if all(whole) else np.float64
        if any(issubclass(type(value), int) and abs(value) >= 2**63 for value in there):
            dtype = object
    out = np.full(values.size, "", object) if dtype is object else np.zeros(values.size, dtype)
    out[~missing] = [text_of(value) for value in there] if dtype is object else there
    if dtype is np.float64:
        out[missing] = np.nan
    return out


def _is_missing(value: Any) -> bool:
    if value is None or type(value).__name__ in {"NAType", "NaTType"}:
        return True
    return isinstance(value, float | np.floating) and math.isnan(value)


def text_of(value: Any) -> str:
    """Return a name or value as text; bytes of files without encodings are decoded."""
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _unfit(name: str, found: Any) -> InputError:
    return InputError(f"obs column {name!r} must hold one number, text or time a cell; it holds {found}")
