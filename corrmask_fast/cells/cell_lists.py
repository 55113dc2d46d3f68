"""Cells as Python has them: lists or arrays of token ids, or rows with ``input_ids``; all at once, or in passing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from corrmask_fast.cells.corpus import Corpus
from corrmask_fast.cells.obs_columns import obs_column
from corrmask_fast.cells.segments import Segment, float32_of
from corrmask_fast.errors import InputError, listed, reason
from corrmask_fast.suggestions import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Iterator

    from corrmask_fast.cells.vocabulary import Vocabulary


def cells_in_memory(cells: Any) -> tuple[list[Any], list[Any]]:
    """Return a list of cells, and one of their values if they are rows that have any.

    InputError names what to give in place of something else.
    """
    kind = type(cells).__name__
    if any(base.__name__ == "IterableDataset" for base in type(cells).__mro__):
        raise InputError(
            "an IterableDataset gives its cells one after the other, and a corpus finds each by its number; use "
            "stream_corpus, or save it first: CorpusWriter(…).write_cells(stream), and give that folder"
        )
    if isinstance(cells, Mapping):
        names = list(cells)
        if "input_ids" in names:
            raise InputError(f"cells must be a list of cells; got a {kind} of columns; give its 'input_ids'")
        named = ", ".join(map(repr, names[:10])) or "none"
        raise InputError(f"a {kind} holds splits ({named}); give one of them, such as cells['train']")
    if "input_ids" in getattr(cells, "columns", ()):
        raise InputError(f"cells must be a list of cells; got a {kind}; give the list in its column 'input_ids'")
    if not isinstance(cells, Iterable):
        raise InputError(f"cells must be a path, a datasets.Dataset, or a list of cells; got {kind}")
    rows = list(cells)
    values = [row["values"] for row in rows if isinstance(row, Mapping) and _is_list(row.get("values"))]
    if values and len(values) < len(rows):
        raise InputError(
            f"values must stand beside the tokens of every cell, or of none; {len(values)} cells have them"
        )
    return [row["input_ids"] if isinstance(row, Mapping) and "input_ids" in row else row for row in rows], values


def _is_list(value: Any) -> bool:
    """Return whether a row's ``values`` are those of its tokens; else they are one number of the cell."""
    return hasattr(value, "__len__") and not isinstance(value, str | bytes) and getattr(value, "ndim", 1) > 0


def flatten_values(values: list[Any], indptr: np.ndarray, first: int = 0) -> np.ndarray | None:
    """(nnz,) float32: the values of cells one after the other; None if they have none. See :func:`flatten`."""
    if not values:
        return None
    arrays = []
    for i, (value, n) in enumerate(zip(values, np.diff(indptr).tolist(), strict=True), first):
        try:
            array = np.asarray(value)
        except Exception as error:
            raise InputError(f"values of cell {i} must be {n} numbers, one a token; {reason(error)}") from error
        if array.shape != (n,) or (array.dtype.kind not in "iufb" and n):
            raise InputError(
                f"values of cell {i} must be {n} numbers, one a token; got {array.dtype} of {array.shape}; rename the "
                "column if it is another one"
            )
        arrays.append(float32_of(array, f"values of cell {i}"))
    return np.concatenate(arrays)


def flatten(cells: list[Any], first: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return ``(indptr, tokens)`` of a list of lists or arrays of token ids; ``first``: the number of the first one."""
    arrays = []
    for i, cell in enumerate(cells, first):
        try:
            array = np.asarray(cell)
        except Exception as error:
            raise InputError(f"cell {i} must be a list of integer token ids; {reason(error)}") from error
        if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
            raise InputError(f"cell {i} must be a list of integer token ids; got {array.ndim}-d {array.dtype}")
        # Beside int64, NumPy would turn uint64 into floats; what int64 does not hold is no token anyway.
        arrays.append(array.astype(np.int64) if array.dtype == np.uint64 else array)
    indptr = np.zeros(len(arrays) + 1, np.int64)
    np.cumsum([array.size for array in arrays], out=indptr[1:])
    filled = [array for array in arrays if array.size]
    return indptr, np.concatenate(filled) if filled else np.empty(0, np.int64)


def blocks_of_cells(
    cells: Iterable[Any],
    vocabulary: Vocabulary,
    max_length: int | None,
    n_cells: int,
    *,
    columns: Any = None,
    values: bool = True,
) -> Iterator[Corpus]:
    """Yield cells in passing as corpora of ``n_cells`` (the last may have fewer); nothing is checked of tokens yet.

    All rows have the columns of the first one. ``columns``: only these are kept. ``values``: take the values that rows
    have beside their tokens.
    """
    rest, first, names = iter(cells), 0, None
    while block := list(islice(rest, n_cells)):
        rows = [cell if isinstance(cell, Mapping) else {"input_ids": cell} for cell in block]
        names = rows[0].keys() if names is None else names
        for i, row in enumerate(rows, first):
            if "input_ids" not in row:
                raise InputError(f"cell {i} has no 'input_ids'; it has {listed(row)}")
            if row.keys() != names:
                raise InputError(
                    f"cell {i} has the columns {listed(row)}, and those before it {listed(names)}; give every cell the "
                    "same columns"
                )
        valued = _is_list(rows[0].get("values"))
        obs, own = {}, {"input_ids", "length", *(["values"] if valued else [])}
        for name in sorted(set(names) - own if columns is None else set(columns)):
            if name not in names:
                raise InputError(f"cells have no column {name!r}{did_you_mean(name, names)}; they have {listed(names)}")
            obs[name] = obs_column(name, [row[name] for row in rows]).to_numpy()
        indptr, tokens = flatten([row["input_ids"] for row in rows], first)
        numbers = flatten_values([row["values"] for row in rows], indptr, first) if valued and values else None
        yield Corpus.from_segments([Segment(indptr, tokens, numbers)], vocabulary, max_length=max_length, obs=obs)
        first += len(block)
