"""A corpus over the Arrow buffers of a ``datasets.Dataset``: nothing is copied, and nothing trusted.

Offsets, bitmaps and row numbers come from files, and kernels take them as addresses. So Arrow's own validation passes
over them once, on opening (offsets: as much work as there are cells), and over other columns when they are read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from corrmask_fast.cells.corpus import Corpus
from corrmask_fast.cells.obs_columns import unfit_text
from corrmask_fast.cells.segments import Segment, float32_of
from corrmask_fast.errors import InputError, import_extra, readable

if TYPE_CHECKING:
    from corrmask_fast.cells.vocabulary import Vocabulary

VALUES = "values"  # the column of lists with a number for each token
OTHER_COLUMN = "if it is another one: dataset.rename_column('values', 'other'), or remove_columns('values')"


def corpus_of_dataset(
    dataset: Any, vocabulary: Vocabulary, max_length: int | None, source: str = "the dataset"
) -> _DatasetCorpus:
    """Corpus over the Arrow buffers of a ``datasets.Dataset``; nothing is copied."""
    if dataset.format["type"] == "custom":
        raise InputError(
            f"{source} has a transform (set_transform, with_transform), which changes cells as they are handed out and "
            "not as they are stored; apply it with dataset.map, or take it away with dataset.reset_format()"
        )
    if "input_ids" not in dataset.column_names:
        raise InputError(f"{source} must have a column 'input_ids'; it has {', '.join(dataset.column_names)}")
    with readable(source, "dataset"):
        dataset.data.validate()
        segments = _segments_of(dataset.data)
        order = _order(dataset, sum(segment.offsets.size - 1 for segment in segments))
    obs = _DatasetColumns(dataset, source)
    corpus = _DatasetCorpus.from_segments(segments, vocabulary, max_length=max_length, obs=obs, order=order)
    corpus.dataset, corpus.source, corpus.rows = dataset, source, None
    files = [Path(file["filename"]) for file in dataset.cache_files]
    corpus.files = {file: file.stat().st_size for file in files if file.is_file()}
    return corpus


def has_values(schema: Any) -> bool:
    """Whether a dataset's column ``values`` holds a list for each cell: the values of its tokens."""
    types = import_extra("pyarrow", "hf").types
    kind = schema.field(VALUES).type if VALUES in schema.names else None
    return kind is not None and (types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind))


def _segments_of(table: Any) -> list[Segment]:
    """Return the cells of a dataset's table, with their values if it has any."""
    if not has_values(table.schema):
        chunks = [chunk for chunk in table.column("input_ids").chunks if len(chunk)]
        return [segment_of(chunk) for chunk in chunks] or [Segment(np.zeros(1, np.int64), np.empty(0, np.int32))]
    batches = [batch for batch in table.to_batches() if batch.num_rows]  # of both columns, nothing is copied
    found = [with_values(segment_of(batch.column("input_ids")), batch.column(VALUES)) for batch in batches]
    nothing = Segment(np.zeros(1, np.int64), np.empty(0, np.int32), np.empty(0, np.float32))
    return found or [nothing]


def with_values(segment: Segment, chunk: Any) -> Segment:
    """Return a segment with the values of a chunk of ``values``, which has as many for each cell as it has tokens."""
    types = import_extra("pyarrow", "hf").types
    kind = chunk.type.value_type
    if not (types.is_floating(kind) or types.is_integer(kind)):
        raise InputError(f"the column 'values' must hold lists of numbers; it holds {chunk.type}; {OTHER_COLUMN}")
    chunk.validate(full=True)
    flat = chunk.flatten()
    if chunk.null_count or flat.null_count:
        raise InputError("the column 'values' holds missing values; drop those cells first")
    n_values, n_tokens = np.asarray(chunk.value_lengths()), np.diff(segment.offsets)
    odd = np.flatnonzero(n_values != n_tokens)
    if odd.size:
        i = int(odd[0])
        raise InputError(
            f"the column 'values' must have a number for each token; a cell has {n_values[i]} values and "
            f"{n_tokens[i]} input_ids; {OTHER_COLUMN}"
        )
    values = float32_of(np.asarray(flat), "the column 'values'")
    return replace(segment, values=values, shift=-int(segment.offsets[0]))


def segment_of(chunk: Any) -> Segment:
    """Return a chunk of ``input_ids`` as offsets and tokens; what lies outside its buffers would be foreign memory."""
    pa = import_extra("pyarrow", "hf")
    fixed = pa.types.is_fixed_size_list(chunk.type)
    if not (fixed or pa.types.is_list(chunk.type) or pa.types.is_large_list(chunk.type)):
        raise InputError(f"the column 'input_ids' must hold lists of integers; it holds {chunk.type}")
    if not pa.types.is_integer(chunk.type.value_type):
        raise InputError(f"the column 'input_ids' must hold integers; it holds {chunk.type.value_type}")
    chunk.validate(full=True)  # offsets and bitmaps; of integers there is nothing to check
    if chunk.null_count or chunk.flatten().null_count:
        raise InputError("the column 'input_ids' holds missing values; drop those cells first")
    if fixed:
        return Segment(np.arange(len(chunk) + 1) * chunk.type.list_size, np.asarray(chunk.flatten()))
    return Segment(np.asarray(chunk.offsets), np.asarray(chunk.values))  # a slice's offsets are into all values


def _order(dataset: Any, n_stored: int) -> np.ndarray | None:
    """Return the stored row of each cell where ``select``, ``shuffle`` or ``filter`` left a table of these."""
    indices = getattr(dataset, "_indices", None)
    if indices is None:
        return None
    indices.validate(full=True)
    order = np.asarray(indices.column(0)).astype(np.int64)
    if order.size and not 0 <= order.min() <= order.max() < n_stored:
        raise InputError(f"the table of row numbers names rows outside [0, {n_stored}); save the dataset again")
    return order


class _DatasetCorpus(Corpus):
    """A corpus over a dataset's buffers: goes to worker processes as the dataset does, by the paths of its files."""

    dataset: Any
    source: str
    rows: np.ndarray | None  # of the dataset, where some were selected

    def select(self, rows: np.ndarray) -> Corpus:
        """Return the given cells over the same buffers: see :meth:`Corpus.select`."""
        chosen: Any = super().select(rows)
        rows = np.asarray(rows, np.int64)
        chosen.dataset, chosen.source = self.dataset, self.source
        chosen.rows = rows if self.rows is None else self.rows[rows]
        return chosen

    def __reduce__(self) -> tuple[Any, ...]:
        if self.rows is not None and not self.files:  # the dataset lies in memory, and more of it than these cells
            cells = self.take(np.arange(self.n_cells))
            cells.obs = dict(cells.obs)
            return _itself, (cells,)
        return _reopen, (self.dataset, self.vocabulary, self.max_length, self.source, self.rows)


def _itself(corpus: Corpus) -> Corpus:
    return corpus


def _reopen(dataset: Any, vocabulary: Vocabulary, max_length: int, source: str, rows: np.ndarray | None) -> Corpus:
    corpus = corpus_of_dataset(dataset, vocabulary, max_length, source)
    return corpus if rows is None else corpus.select(rows)


class _DatasetColumns(Mapping[str, np.ndarray]):
    """The other columns of a dataset, each read when asked for; of some cells only, where ``rows`` are given."""

    def __init__(self, dataset: Any, source: str, rows: np.ndarray | None = None) -> None:
        self._dataset, self._source, self._rows = dataset, source, rows
        own = {"input_ids", "length", *([VALUES] if has_values(dataset.data.schema) else [])}
        self._names = [name for name in dataset.column_names if name not in own]

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._names:
            raise KeyError(name)
        # Without the tokens: selecting cells must not touch them.
        column = self._dataset.with_format(None).select_columns([name])
        with readable(f"the obs column {name!r} of {self._source}", "column"):
            column.data.validate(full=True)
            values = (column if self._rows is None else column.select(self._rows))[name][:]
            text = any(isinstance(value, str) for value in values[:1])
            return np.array(values, object) if text and unfit_text(values) is not None else np.asarray(values)

    def take(self, rows: np.ndarray) -> _DatasetColumns:
        """Return the columns of some cells; nothing is read yet."""
        return _DatasetColumns(self._dataset, self._source, rows if self._rows is None else self._rows[rows])

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
