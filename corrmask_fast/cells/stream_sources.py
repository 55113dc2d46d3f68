"""Where a stream's cells come from: files, of which any share is found by number, or what can only be iterated over."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from corrmask_fast.cells.cell_lists import blocks_of_cells
from corrmask_fast.cells.corpus import Corpus
from corrmask_fast.cells.corpus_files import check_columns, stored_vocabulary
from corrmask_fast.cells.corpus_io import read_corpus
from corrmask_fast.cells.dataset_corpus import VALUES, corpus_of_dataset, has_values, segment_of, with_values
from corrmask_fast.cells.segments import Segment
from corrmask_fast.errors import InputError, import_extra, listed, readable, shown
from corrmask_fast.suggestions import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from corrmask_fast.cells.vocabulary import Vocabulary

READ_CELLS = 1024  # decoded or converted at a time
READ_BYTES = 1 << 20  # of a Parquet file: without, Arrow reads a column of a row group whole


class Piece(NamedTuple):
    """Some cells as they are stored, their numbers in the stream, and their columns."""

    segment: Segment
    numbers: np.ndarray
    obs: Mapping[str, np.ndarray]

    def cut(self, begin: int, end: int) -> Piece:
        """Return some of the cells, over the same buffers."""
        segment = self.segment.between(begin, end)
        obs = {name: column[begin:end] for name, column in self.obs.items()}
        return Piece(segment, self.numbers[begin:end], obs)

    def take(self, rows: np.ndarray) -> Piece:
        """Return the cells of some rows, ascending; copied, if they are not all."""
        if rows.size == self.numbers.size:
            return self
        offsets = self.segment.offsets.astype(np.int64)
        lengths = np.diff(offsets)[rows]
        ends = np.concatenate([[0], np.cumsum(lengths)])
        places = np.arange(ends[-1]) + np.repeat(offsets[rows] - ends[:-1], lengths)
        stored = self.segment.values
        segment = Segment(
            ends, self.segment.tokens[places], None if stored is None else stored[places + self.segment.shift]
        )
        return Piece(segment, self.numbers[rows], {name: column[rows] for name, column in self.obs.items()})


class Share(NamedTuple):
    """The cells of a pass that a worker reads: its part of those of its rank."""

    rank: int = 0
    world_size: int = 1
    worker: int = 0
    n_workers: int = 1
    drop_last: bool = False  # whether all ranks have the same number of cells

    def between(self, n_cells: int) -> tuple[int, int]:
        """Return begin and end of the share among ``n_cells`` in order; the first shares have one cell more."""
        counted = n_cells - n_cells % self.world_size if self.drop_last else n_cells
        begin, end = _part(counted, self.rank, self.world_size)
        mine = _part(end - begin, self.worker, self.n_workers)
        return begin + mine[0], begin + mine[1]


def _part(n: int, k: int, parts: int) -> tuple[int, int]:
    size, more = divmod(n, parts)
    begin = k * size + min(k, more)
    return begin, begin + size + (k < more)


class FileSource:
    """Cells of files, one after the other. Parquet is decoded in bounded memory, the rest is memory-mapped.

    A block is a row group, or some cells of a corpus. A share is a run of cells in the order of the blocks: of the
    blocks at its ends, it reads a part.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        vocabulary: Vocabulary | None,
        max_length: int | None,
        columns: Sequence[str],
        *,
        values: bool,
    ) -> None:
        self._max_length, self._columns, self._values = max_length, list(columns), values
        self._blocks: list[tuple[Any, int, int]] = []  # (path, row group, cells), or (corpus, first cell, cells)
        self._schema: tuple[Any, Path] | None = None  # of the Parquet files, and the first one
        whose = "the vocabulary given" if vocabulary is not None else f"the corpus {paths[0]}"
        for path in paths:
            if files := _parquet_files(path):
                vocabulary = stored_vocabulary(path, vocabulary, whose)
                for file in files:
                    self._add_parquet(file)
                continue
            if path.suffix != ".npz":
                vocabulary = stored_vocabulary(path, vocabulary, whose)
            corpus = read_corpus(path, vocabulary, max_length=max_length)
            vocabulary = corpus.vocabulary
            _check_there(self._columns, list(corpus.obs), path)
            _check_values(values, corpus.has_values, path)
            ends = range(0, corpus.n_cells, READ_CELLS)
            self._blocks += [(corpus, first, min(READ_CELLS, corpus.n_cells - first)) for first in ends]
        assert vocabulary is not None
        self.vocabulary = vocabulary
        self._sizes = np.array([n for *_, n in self._blocks], np.int64)
        self.n_cells = int(self._sizes.sum())

    def _add_parquet(self, path: Path) -> None:
        pa, parquet = import_extra("pyarrow", "hf"), import_extra("pyarrow.parquet", "hf")
        with readable(path, "Parquet file"), parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            groups = [file.metadata.row_group(k).num_rows for k in range(file.num_row_groups)]
            schema = pa.schema([field for field in file.schema_arrow if field.name in self._columns])
            valued = has_values(file.schema_arrow)
        _check_there(["input_ids", *self._columns], names, path)
        _check_values(self._values, valued, path)
        self._schema = self._schema or (schema, path)
        check_columns(self._schema[0], schema, self._schema[1], path)
        self._blocks += [(path, k, n) for k, n in enumerate(groups) if n]

    def pieces(self, share: Share, skip: int, shuffled: np.random.Philox | None) -> Iterator[Piece]:
        """Yield a share's cells but the first ``skip``; of blocks in drawn order, if ``shuffled``."""
        pieces = self._pieces(share, skip, shuffled)
        return pieces if self._schema is None else _ahead(pieces)

    def _pieces(self, share: Share, skip: int, shuffled: np.random.Philox | None) -> Iterator[Piece]:
        order = np.arange(len(self._blocks)) if shuffled is None else drawn_order(len(self._blocks), shuffled)
        stored = np.cumsum(self._sizes) - self._sizes  # number of each block's first cell
        ends = np.cumsum(self._sizes[order]).tolist()
        begin, end = share.between(self.n_cells)
        begin = min(begin + skip, end)
        k = bisect_right(ends, begin)
        while begin < end:
            block = int(order[k])
            there = ends[k] - int(self._sizes[block])
            yield from self._read(block, begin - there, min(end, ends[k]) - there, int(stored[block]))
            begin, k = min(end, ends[k]), k + 1

    def _read(self, block: int, begin: int, end: int, first: int) -> Iterator[Piece]:
        """Yield some cells of a block; ``first``: the number of its first cell."""
        source, place, _ = self._blocks[block]
        if isinstance(source, Corpus):
            source.check_files()
            yield from pieces_of(source, np.arange(first, first + end), place, self._columns, begin)
            return
        pa, parquet = import_extra("pyarrow", "hf"), import_extra("pyarrow.parquet", "hf")
        names = ["input_ids", *self._columns, *([VALUES] if self._values else [])]
        reads = {"buffer_size": READ_BYTES, "pre_buffer": False}
        with readable(source, "Parquet file"), parquet.ParquetFile(source, **reads) as file:
            done = 0
            for batch in file.iter_batches(READ_CELLS, [place], names, use_threads=False):
                a, b = max(begin - done, 0), min(end - done, batch.num_rows)
                if a < b and not self._columns:
                    segment = segment_of(batch.column("input_ids"))
                    segment = with_values(segment, batch.column(VALUES)) if self._values else segment
                    yield Piece(segment, np.arange(first + done, first + done + batch.num_rows), {}).cut(a, b)
                elif a < b:
                    corpus = corpus_of_table(pa.table(batch), self.vocabulary, self._max_length, str(source))
                    yield from pieces_of(corpus, np.arange(first + done, first + done + b), 0, self._columns, a)
                done += batch.num_rows
                if done >= end:
                    return
            raise InputError(f"{source} ends after {done} cells of row group {place}; copy it again, or make it again")


class IteratorSource:
    """Cells of whatever is iterated over: every worker passes over all of them, and keeps those of its share."""

    def __init__(
        self,
        source: Any,
        vocabulary: Vocabulary,
        max_length: int | None,
        columns: Sequence[str],
        n_cells: int | None,
        *,
        values: bool,
    ) -> None:
        if not callable(source) and not isinstance(source, Iterable):
            raise InputError(
                "a stream's source must be paths, an iterable of cells, or a function that returns an iterator of "
                f"them; got {type(source).__name__}"
            )
        self._source, self._max_length, self._columns = source, max_length, list(columns)
        self.vocabulary = vocabulary
        self.n_cells, self._values = n_cells, values
        self._once = not callable(source) and iter(source) is source
        self._passed = False

    def pieces(self, share: Share, skip: int, shuffled: np.random.Philox | None) -> Iterator[Piece]:  # noqa: ARG002
        """Yield a share's cells but the first ``skip``: every one of so many as there are shares, so all are alike."""
        if self._once and (self._passed or share.n_workers > 1):
            raise InputError(
                "the stream's source is an iterator, which can be passed over once, in one process; give a function "
                "that returns a new one: stream_corpus(lambda: cells(), vocabulary)"
            )
        self._passed = True
        seen = 0
        waiting: list[Piece] = []  # of the last cells, which some ranks may have none of
        for corpus in self._blocks():
            _check_values(self._values, corpus.has_values, "the stream")
            for piece in pieces_of(corpus, np.arange(seen, seen + corpus.n_cells), 0, self._columns):
                mine = piece.numbers % share.world_size == share.rank
                mine &= piece.numbers // share.world_size % share.n_workers == share.worker
                rows = np.flatnonzero(mine)
                waiting.append(piece.take(rows[skip:]))
                skip -= min(skip, rows.size)
            seen += corpus.n_cells
            settled = seen - seen % share.world_size if share.drop_last else seen
            ready, waiting = waiting, []
            for piece in ready:
                n = int(np.searchsorted(piece.numbers, settled))
                if n:
                    yield piece.cut(0, n)
                if n < piece.numbers.size:
                    waiting.append(piece.cut(n, piece.numbers.size))
        if self.n_cells not in {None, seen}:
            raise InputError(
                f"the stream ended after {seen} cells, and n_cells says {self.n_cells}; bring the missing cells, or "
                "give the right number"
            )

    def _blocks(self) -> Iterator[Corpus]:
        if hasattr(self._source, "iter") and hasattr(self._source, "with_format"):  # datasets' own stream
            for table in self._source.with_format("arrow").iter(READ_CELLS):
                yield corpus_of_table(table, self.vocabulary, self._max_length, "the stream")
            return
        cells = self._source() if callable(self._source) else self._source
        if not isinstance(cells, Iterable):
            raise InputError(f"the stream's function must return an iterator of cells; it returned {shown(cells)}")
        yield from blocks_of_cells(
            cells, self.vocabulary, self._max_length, READ_CELLS, columns=self._columns, values=self._values
        )


def corpus_of_table(table: Any, vocabulary: Vocabulary, max_length: int | None, source: str) -> Corpus:
    """Return a corpus over the buffers of an Arrow table."""
    datasets = import_extra("datasets", "hf")
    dataset = datasets.Dataset(datasets.table.InMemoryTable(table), fingerprint="stream")  # its own would hash tokens
    return corpus_of_dataset(dataset, vocabulary, max_length, source)


def pieces_of(
    corpus: Corpus, numbers: np.ndarray, first: int, columns: Sequence[str], begin: int = 0
) -> Iterator[Piece]:
    """Yield cells of a corpus: ``numbers[begin:]`` are those of its cells from ``first + begin`` on."""
    _check_there(columns, list(corpus.obs), "the stream")
    a, b = first + begin, first + numbers.size
    part = corpus.select(np.arange(a, b)) if columns and b - a < corpus.n_cells else corpus
    obs = {name: np.asarray(part.obs[name]) for name in columns}
    done = 0
    for segment in corpus.segments_of(a, b):
        n = segment.offsets.size - 1
        here = slice(done, done + n)
        yield Piece(segment, numbers[begin:][here], {name: column[here] for name, column in obs.items()})
        done += n


def _ahead(pieces: Iterator[Piece]) -> Iterator[Piece]:
    """Yield pieces while a thread decodes the next one: Arrow lets Python go on meanwhile."""
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, pieces, None)
        while (piece := coming.result()) is not None:
            coming = thread.submit(next, pieces, None)
            yield piece


def drawn_order(n: int, bits: np.random.Philox) -> np.ndarray:
    """Return 0 … n − 1 in random order, from raw words: these are the same in all versions of NumPy."""
    return np.argsort(bits.random_raw(n), kind="stable")


def _parquet_files(path: Path) -> list[Path]:
    """Return the Parquet files of a path that holds no more than these."""
    if path.is_dir():
        others = any(path.glob("*.arrow")) or (path / "state.json").exists() or (path / "dataset_dict.json").exists()
        return [] if others else sorted(path.glob("*.parquet"))
    return [path] if path.suffix == ".parquet" else []


def _check_there(columns: Sequence[str], names: Sequence[str], source: Path | str) -> None:
    for name in columns:
        if name not in names:
            meant = did_you_mean(name, names)
            raise InputError(f"{source} must have a column {name!r}; it has {listed(names)}{meant}")


def _check_values(wanted: bool, there: bool, source: Path | str) -> None:
    if wanted and not there:
        raise InputError(
            f"{source} has no values; cells need a column 'values' of lists, with a number for each of their input_ids"
        )
