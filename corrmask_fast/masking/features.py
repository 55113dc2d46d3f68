"""What a collator is given: a batch of cells in any of the forms that datasets hand out."""

from __future__ import annotations

import struct
import warnings
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from corrmask_fast.cells.dataset import RaggedBatch, joined
from corrmask_fast.errors import InputError, as_integer, shown

if TYPE_CHECKING:
    from corrmask_fast.cells.vocabulary import Vocabulary

__all__ = ["as_cells", "graph_ids_of", "other_inputs", "padded_width", "ragged"]

# What collators take care of; "length" (Geneformer's column) says what the attention mask says.
OWN = frozenset({"input_ids", "attention_mask", "special_tokens_mask", "length"})
MADE = frozenset({"labels", "masked_positions", "graph_ids", "mask_epoch"})  # which a feature must not bring along
# What describes a packed row, by transformers' names.
PACKED = frozenset({"position_ids", "cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k"})
IGNORED_LABEL = -100  # after a row's own labels: no loss counts it

Cells = RaggedBatch | list[Mapping[str, Any]]


def as_cells(features: Any, ids: str = "input_ids") -> Cells:
    """Return a batch as it is worked on: a :class:`RaggedBatch`, or a list with a mapping for each cell.

    ``ids`` is what mappings call the tokens of a cell.
    """
    if isinstance(features, RaggedBatch):
        return features
    if isinstance(features, Mapping):
        sizes = {name: len(column) for name, column in features.items()}
        if len(set(sizes.values())) > 1:
            raise InputError(f"the columns of a batch must be of one length; got {sizes}")
        features = [dict(zip(features, row, strict=True)) for row in zip(*features.values(), strict=True)]
    if not isinstance(features, Sequence) or not features:
        raise InputError(f"a batch must be a non-empty list of features; got {shown(features)}")
    if (batch := joined(features)) is not None:
        return batch
    cells = [cell if isinstance(cell, Mapping) else {ids: cell} for cell in features]
    for i, cell in enumerate(cells):
        if ids not in cell:
            raise InputError(f"feature {i} has no {ids!r}; it has {', '.join(map(repr, cell)) or 'nothing'}")
    return cells


def ragged(
    cells: Cells, vocabulary: Vocabulary, mask_source: str = "vocabulary"
) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Return (indptr, tokens, marks) of a batch."""
    if isinstance(cells, RaggedBatch):
        if cells.vocabulary is not None:
            cells.vocabulary.check_same(vocabulary, "the corpus", f"the masker's {mask_source}")
        return cells.indptr, cells.tokens, {}
    indptr, tokens = concatenate([row["input_ids"] for row in cells], "input_ids")
    marks = {}
    for name in ("attention_mask", "special_tokens_mask"):
        if any(name in row for row in cells):
            ends, values = concatenate([row.get(name, ()) for row in cells], name)
            if not np.array_equal(ends, indptr):
                raise InputError(f"{name} must have one value for each of a row's input_ids, in all rows or none")
            marks[name] = (values != 0).view(np.uint8)
    return indptr, tokens, marks


def concatenate(cells: list[Any], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Concatenate lists, arrays or tensors of integers."""
    indptr = np.zeros(len(cells) + 1, np.int64)
    try:
        np.cumsum([len(cell) for cell in cells], out=indptr[1:])
    except TypeError as error:
        raise InputError(f"{name} must be a list, array or tensor of integers in each row: {error}") from error
    tokens = np.empty(int(indptr[-1]), np.int32)
    for i, cell in enumerate(cells):
        here = tokens[indptr[i] : indptr[i + 1]]
        if isinstance(cell, list | tuple):
            # struct is the fastest way from Python integers to memory, twice as fast as NumPy.
            try:
                struct.pack_into(f"{len(cell)}i", here, 0, *cell)  # type: ignore[arg-type]
            except struct.error as error:
                raise InputError(f"{name} of row {i} must be integers that fit int32: {error}") from error
        else:
            array = np.asarray(cell)
            if array.ndim != 1 or array.dtype.kind not in "iub":
                raise InputError(
                    f"{name} of row {i} must be one-dimensional integers; got {array.ndim}-d {array.dtype}"
                )
            if array.size and array.dtype.itemsize > 2 and not -(2**31) <= array.min() <= array.max() < 2**31:
                raise InputError(f"{name} of row {i} must fit int32; it reaches from {array.min()} to {array.max()}")
            here[:] = array
    return indptr, tokens


def graph_ids_of(cells: Cells, column: str, numbers: Mapping[Any, int] | None) -> np.ndarray:
    """Return (rows,) int64: the number of each row's graph, by the value of a feature."""
    if isinstance(cells, RaggedBatch):
        if column not in cells.columns:
            raise InputError(f"the batch has no column {column!r}; make CorpusDataset(corpus, columns=({column!r},))")
        values = cells.columns[column].tolist()
    else:
        for i, cell in enumerate(cells):
            if column not in cell:
                raise InputError(
                    f"feature {i} has no {column!r}, which chooses the cell's graph; under the stock Trainer "
                    "set remove_unused_columns=False: it removes what the model does not take"
                )
        values = [cell[column] for cell in cells]
    if numbers is not None:
        for row, value in enumerate(values):
            if value not in numbers:
                known = ", ".join(map(repr, numbers))
                raise InputError(f"{column!r} of row {row} must be one of {known}; got {value!r}")
        values = [numbers[value] for value in values]
    if any(as_integer(value) is None for value in values):
        raise InputError(
            f"{column!r} must hold numbers of graphs; got {values[0]!r}; graph_numbers= names them by value"
        )
    return np.array([as_integer(value) for value in values], np.int64)


def padded_width(indptr: np.ndarray, multiple: int | None) -> int:
    """Return the columns of a padded batch."""
    multiple = multiple or 1
    return -(-int(np.diff(indptr).max(initial=0)) // multiple) * multiple


def other_inputs(
    cells: Cells, indptr: np.ndarray, multiple: int | None, graph_column: str | None, *, packed: bool = False
) -> dict[str, torch.Tensor]:
    """Return what cells have beside their tokens, as a model takes it.

    A number a cell becomes (rows,); a number for each of its tokens (rows, width), padded with 0, labels with −100
    (``packed``: (1, tokens)); arrays of one shape (rows, …). Integers are int64, others float32. What is no number is
    left out with a warning.
    """
    columns = _columns_of(cells) if isinstance(cells, RaggedBatch) else dict.fromkeys(chain.from_iterable(cells))
    names = [name for name in columns if name not in OWN and name != graph_column]
    if not names:
        return {}
    lengths, result = np.diff(indptr), {}
    width = None if packed else padded_width(indptr, multiple)
    for name in names:
        if name in MADE or (packed and name in PACKED):
            raise InputError(
                f"a feature is named {name!r}, and the collator makes that one itself; rename or remove it"
            )
        values = columns[name] if isinstance(cells, RaggedBatch) else [row.get(name) for row in cells]
        array = _as_array(name, values, lengths, width)
        if array is None:
            warnings.warn(
                f"{name!r} is left out of batches, for it is not a number in every cell; make numbers of it to pass it "
                "to the model, or remove the column",
                stacklevel=3,
            )
        else:
            result[name] = torch.from_numpy(array)
    return result


def _columns_of(batch: RaggedBatch) -> dict[str, Any]:
    """Return the columns of a batch, the values of its tokens too, as its rows have them."""
    if batch.values is None:
        return dict(batch.columns)
    return {**batch.columns, "values": np.split(batch.values, batch.indptr[1:-1])[: len(batch)]}


def _as_array(name: str, values: Any, lengths: np.ndarray, width: int | None) -> np.ndarray | None:
    """Return an array with a row for each cell, or None if not all are numbers; without a width tokens are packed."""
    try:
        arrays = values if isinstance(values, np.ndarray) else [np.asarray(value) for value in values]
    except (TypeError, ValueError, RuntimeError):  # lists of other lengths; tensors that NumPy has no type for
        return None
    kinds = {array.dtype.kind for array in arrays}
    if not kinds <= set("iufb"):
        return None
    dtype = np.float32 if "f" in kinds else np.int64
    shapes = {array.shape for array in arrays}
    by_token = all(array.shape[:1] == (n,) for array, n in zip(arrays, lengths, strict=True))
    if by_token and len({shape[1:] for shape in shapes}) == 1:
        if width is None:
            return np.concatenate(arrays)[None].astype(dtype, copy=False)
        fill = IGNORED_LABEL if name.endswith(("label", "labels", "label_ids")) else 0
        result = np.full((len(arrays), width, *next(iter(shapes))[1:]), fill, dtype)
        for row, array in zip(result, arrays, strict=True):
            row[: len(array)] = array
        return result
    if len(shapes) > 1:
        raise InputError(
            f"{name!r} must be one number a cell, one for each of its input_ids, or of one shape in all cells; got the "
            f"shapes {', '.join(map(str, sorted(shapes)))} beside {', '.join(map(str, lengths))} input_ids"
        )
    return np.stack(list(arrays)).astype(dtype, copy=False)
