"""Counts of an AnnData, read a chunk of cells at a time, whatever their layout (CSR, CSC, dense) and place."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, Self

import numpy as np

from corrmask_fast.cells.anndata_store import check_stored, lacks_chunks, open_anndata
from corrmask_fast.cells.count_batches import dense_entries
from corrmask_fast.errors import InputError, check_integer, listed
from corrmask_fast.suggestions import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Iterator

    from corrmask_fast.cells.anndata_store import Store

CHUNK_ENTRIES = 2_000_000  # entries held at a time, about 50 bytes each through all stages: what bounds memory
MAX_CHUNK_CELLS = 16_384
NUMBERS = "iufb"  # kinds of dtype that counts may have


class Rows(NamedTuple):
    """Cells as CSR: the entries of row r are ``indptr[r]`` to ``indptr[r + 1]``; columns lie inside the matrix."""

    indptr: np.ndarray  # (n + 1,) int64, from 0
    columns: np.ndarray  # int64
    counts: np.ndarray  # float64
    stored: np.ndarray  # the counts as they are stored: what a message quotes

    def take(self, rows: np.ndarray) -> Rows:
        """Return the rows where ``rows`` (n,) bool is True."""
        lengths = np.diff(self.indptr)
        entries = np.repeat(rows, lengths)
        indptr = np.concatenate([[0], np.cumsum(lengths[rows])])
        return Rows(indptr, self.columns[entries], self.counts[entries], self.stored[entries])


class Matrix(Protocol):
    """A matrix of counts that is read by rows."""

    shape: tuple[int, int]

    def rows(self, begin: int, end: int) -> Rows:
        """Return the rows [begin, end)."""

    def end_of_chunk(self, begin: int) -> int:
        """Return where a chunk from row ``begin`` on ends, so that it holds about CHUNK_ENTRIES entries."""


class Counts:
    """The counts of an AnnData, with its ``obs`` and ``var``; a context manager.

    Parameters
    ----------
    source
        The path of an ``.h5ad`` file or a zarr store, or an ``AnnData`` in memory or backed.
    layer
        Where the counts are: None for ``X``, ``"raw"`` for ``raw/X``, else the name of a layer.
    chunk_cells
        Cells read at a time; None: as many as hold about two million entries.

    Attributes
    ----------
    name
        The source, in messages.
    n_cells, n_genes
        Shape of the counts; ``obs`` and ``var`` have as many rows.
    obs, var
        Dataframes whose index and columns are read when they are asked for.

    Notes
    -----
    Memory is one chunk of cells, and 8 bytes a cell for sparse counts (24 for CSC). CSC on disk cannot be read by
    cells: on first use it is rewritten as CSR into temporary files of 12 bytes an entry (in ``TMPDIR``: let that be a
    disk), which takes two passes over the counts. They are memory-mapped: a process monitor counts their pages, but the
    system may take them back.

    Raises
    ------
    InputError
        If this is no AnnData, is damaged, its parts do not fit each other, or it has no such layer (says which ones
        there are).
    MissingExtraError
        Without anndata.
    """

    def __init__(self, source: Any, *, layer: str | None = None, chunk_cells: int | None = None) -> None:
        self.layer = layer
        self._chunk_cells = None if chunk_cells is None else check_integer("chunk_cells", chunk_cells, 1)
        with ExitStack() as opening:
            self._store: Store = opening.enter_context(open_anndata(source))
            self.name = self._store.name
            matrix, place, var = self._find_matrix()
            with self._store.reading():
                self._matrix = _matrix_of(matrix, place, self.name, opening)
                self.n_cells, self.n_genes = self._matrix.shape
                self.obs, self.var = self._store.frame("obs"), self._store.frame(var)
            self._check_names(place, var)
            self._exit = opening.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._exit.close()

    @property
    def layers(self) -> list[str]:
        """Where else this AnnData may hold counts: values for ``layer``."""
        raw = ["raw"] if self._store.matrix("raw/X") is not None else []
        return raw + self._store.layers()

    def chunks(self, kept: np.ndarray | None = None) -> Iterator[tuple[np.ndarray, Rows]]:
        """Yield (numbers of cells, their counts), chunk by chunk; columns are checked.

        ``kept`` (n_cells,) bool: leave the other cells out.
        """
        begin = 0
        while begin < self.n_cells:
            with self._store.reading():  # cells left out too: a damaged file is refused, whatever is asked of it
                end = self._matrix.end_of_chunk(begin) if self._chunk_cells is None else begin + self._chunk_cells
                end = min(end, self.n_cells)
                rows, cells = self._matrix.rows(begin, end), np.arange(begin, end)
            chosen = None if kept is None or kept[begin:end].all() else kept[begin:end]
            if chosen is None:
                yield cells, rows
            elif chosen.any():
                yield cells[chosen], rows.take(chosen)
            begin = end

    def _find_matrix(self) -> tuple[Any, str, str]:
        """Return the matrix of counts, its place, and the place of its ``var``."""
        store, layer = self._store, self.layer
        raw = layer == "raw" and store.matrix("raw/X") is not None
        place = "X" if layer is None else "raw/X" if raw else f"layers/{layer}"
        matrix = store.matrix(place)
        if matrix is None:
            choices = ["X (layer=None)"] if store.matrix("X") is not None else []
            choices += [repr(name) for name in self.layers]
            raise InputError(
                f"{store.name} has no {place}{did_you_mean(layer, self.layers)}; it has "
                f"{listed(choices) if choices else 'no counts at all'}"
            )
        return matrix, place, "raw/var" if raw else "var"

    def _check_names(self, place: str, var: str) -> None:
        """Refuse names that do not fit the matrix: AnnData looks at this in memory only."""
        for frame, where, n, what in (
            (self.obs, "obs", self.n_cells, "rows"),
            (self.var, var, self.n_genes, "columns"),
        ):
            if frame.size != n:
                raise InputError(f"{self.name} is damaged: {place} has {n} {what}, {where} has {frame.size} names")


def _matrix_of(matrix: Any, place: str, name: str, opened: ExitStack) -> Matrix:
    """Return what reads a matrix by rows, whatever its layout; ``opened`` removes temporary files in the end."""
    layout = str(getattr(matrix, "format", "dense"))  # of SciPy's and of AnnData's backed matrices
    if layout not in {"csr", "csc", "dense"}:
        raise InputError(f"{name} holds {place} as {layout!r}; store counts as CSR, CSC or dense")
    if layout == "dense":
        if len(matrix.shape or ()) != 2 or matrix.dtype.kind not in NUMBERS:  # a missing X has shape None
            raise InputError(f"{name} holds no matrix of numbers in {place}; name the layer of the counts")
        return _Dense(matrix)
    compressed = _Compressed(matrix, place, name)
    if layout == "csr":
        return compressed
    by_columns = _ByColumns(compressed)
    opened.callback(by_columns.close)
    return by_columns


class _Dense:
    """A dense matrix in memory or on disk; zeros are left out of its rows."""

    def __init__(self, matrix: Any) -> None:
        self._matrix = matrix
        n_cells, n_genes = matrix.shape
        self.shape = int(n_cells), int(n_genes)

    def end_of_chunk(self, begin: int) -> int:
        return begin + max(1, min(MAX_CHUNK_CELLS, CHUNK_ENTRIES // max(self.shape[1], 1)))

    def rows(self, begin: int, end: int) -> Rows:
        part = self._matrix[begin:end]
        if hasattr(part, "compute"):  # dask
            part = part.compute()
        dense = part.toarray() if hasattr(part, "toarray") else np.asarray(part)
        indptr, columns, stored = dense_entries(dense)
        return Rows(indptr, columns, stored.astype(np.float64), stored)


class _Compressed:
    """A CSR matrix in memory or on disk (or a CSC one by columns): pointers are sound, indices checked when read."""

    def __init__(self, matrix: Any, place: str, name: str) -> None:
        self.name, self.place = name, place
        try:
            n_rows, n_columns = map(int, matrix.shape)
        except (TypeError, ValueError, KeyError) as error:
            raise self._damaged("its shape is missing, or not two numbers") from error
        self.shape = n_rows, n_columns
        if min(self.shape) < 0:
            raise self._damaged(f"its shape is {self.shape}")
        by_rows = matrix.format == "csr"
        n_major, self.n_minor = (n_rows, n_columns) if by_rows else (n_columns, n_rows)
        self.minor = (
            f"columns outside its {self.n_minor} genes" if by_rows else f"rows outside its {self.n_minor} cells"
        )
        group = getattr(matrix, "group", None)  # where AnnData's backed matrix lies
        parts = [getattr(matrix, name) if group is None else group[name] for name in ("indptr", "indices", "data")]
        self.indices, self.data = parts[1:]
        self.indptr = self._check_parts(parts[0], n_major)
        self.entries = int(self.indptr[-1])

    def _check_parts(self, indptr: Any, n_major: int) -> np.ndarray:
        """Return (n_major + 1,) int64 pointers, if the matrix's parts are arrays of numbers that fit each other."""
        indices, data = self.indices, self.data
        for part in (indptr, indices, data):
            check_stored(part, self.name)
            if len(part.shape or ()) != 1:
                raise self._damaged("its parts are no lists of numbers")
        if indptr.dtype.kind not in "iu" or indices.dtype.kind not in "iu" or data.dtype.kind not in NUMBERS:
            raise self._damaged(f"it holds {indptr.dtype}, {indices.dtype} and {data.dtype}, no counts")
        entries = int(indices.shape[0])
        fits = indptr.shape[0] == n_major + 1 and data.shape[0] == entries
        pointers = np.asarray(indptr[:]) if fits else np.empty(0, np.int64)
        if not fits or pointers[0] != 0 or pointers[-1] != entries or (pointers[1:] < pointers[:-1]).any():
            raise self._damaged(f"the pointers of its sparse counts do not fit its {entries} entries")
        several = entries > n_major  # entries than rows: then not all of them can name column 0
        if (several and lacks_chunks(indices)) or (lacks_chunks(data) and data.chunks[0] < entries):
            raise self._damaged("a part of its sparse counts is missing")
        return pointers.astype(np.int64, copy=False)

    def part(self, begin: int, end: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return (pointers from 0, indices as int64, data as stored) of the rows, or columns of CSC, [begin, end)."""
        entries = slice(int(self.indptr[begin]), int(self.indptr[end]))
        indices = np.asarray(self.indices[entries])
        self.check(indices)
        return (
            self.indptr[begin : end + 1] - self.indptr[begin],
            indices.astype(np.int64),
            np.asarray(self.data[entries]),
        )

    def check(self, indices: np.ndarray) -> None:
        """Raise InputError unless indices lie inside the matrix: kernels and SciPy trust them."""
        if indices.size and not 0 <= indices.min() <= indices.max() < self.n_minor:
            raise self._damaged(f"its counts name {self.minor}")

    def rows(self, begin: int, end: int) -> Rows:
        indptr, columns, stored = self.part(begin, end)
        return Rows(indptr, columns, stored.astype(np.float64), stored)

    def end_of_chunk(self, begin: int) -> int:
        return _end_of_chunk(self.indptr, begin)

    def _damaged(self, why: str) -> InputError:
        return InputError(f"{self.name} is damaged: {why} (in {self.place})")


class _ByColumns:
    """A CSC matrix, turned round when it is first read: by SciPy in memory, into temporary files on disk."""

    def __init__(self, columns: _Compressed) -> None:
        self._columns, self.shape = columns, columns.shape
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def close(self) -> None:
        if self._folder is not None:
            self._folder.cleanup()

    @cached_property
    def _rows(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Pointers, columns and counts as CSR."""
        matrix = self._columns
        if isinstance(matrix.indices, np.ndarray) and isinstance(matrix.data, np.ndarray):
            from scipy.sparse import csc_matrix

            matrix.check(matrix.indices)
            data = matrix.data.astype(np.float64, copy=False)
            turned = csc_matrix((data, matrix.indices, matrix.indptr), shape=matrix.shape).tocsr()
            return turned.indptr.astype(np.int64, copy=False), turned.indices, turned.data
        self._folder = tempfile.TemporaryDirectory(prefix="corrmask-csr-")
        return _csr_on_disk(matrix, Path(self._folder.name))

    def end_of_chunk(self, begin: int) -> int:
        return _end_of_chunk(self._rows[0], begin)

    def rows(self, begin: int, end: int) -> Rows:
        indptr, columns, counts = self._rows
        here = slice(indptr[begin], indptr[end])
        values = np.asarray(counts[here])
        return Rows(indptr[begin : end + 1] - indptr[begin], columns[here].astype(np.int64), values, values)


def _end_of_chunk(indptr: np.ndarray, begin: int) -> int:
    """Return the last row up to which there are CHUNK_ENTRIES entries at most, one row at least."""
    last = int(np.searchsorted(indptr, indptr[begin] + CHUNK_ENTRIES, side="right")) - 1
    return min(max(last, begin + 1), begin + MAX_CHUNK_CELLS)


def _csr_on_disk(matrix: _Compressed, folder: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rewrite a CSC matrix as CSR in two memory-mapped files, a block of columns at a time."""
    from corrmask_fast.kernels.tokenize import scatter_columns

    n_cells, n_genes = matrix.shape
    blocks, begin = [], 0
    while begin < n_genes:
        blocks.append((begin, min(_end_of_chunk(matrix.indptr, begin), n_genes)))
        begin = blocks[-1][1]
    indptr = np.zeros(n_cells + 1, np.int64)
    for block in blocks:
        indptr[1:] += np.bincount(matrix.part(*block)[1], minlength=n_cells)
    np.cumsum(indptr, out=indptr)
    size = max(matrix.entries, 1)  # an empty file cannot be mapped
    columns = np.memmap(folder / "columns", np.int32, "w+", shape=(size,))
    counts = np.memmap(folder / "counts", np.float64, "w+", shape=(size,))
    place = indptr[:-1].copy()
    for first, last in blocks:
        pointers, rows, data = matrix.part(first, last)
        scatter_columns(pointers, rows, data.astype(np.float64), first, place, columns, counts)
    return indptr, columns, counts
