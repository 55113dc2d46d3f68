"""Counts of an AnnData, read a chunk of cells at a time, whatever their layout (CSR, CSC, dense) and place."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np

from corrmask_fast.cells.anndata_store import check_stored, open_anndata
from corrmask_fast.errors import InputError, check_integer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from corrmask_fast.cells.anndata_store import Store

    ReadRows = Callable[[int, int], "Rows"]  # cells [begin, end)

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
    Memory is one chunk of cells and 8 bytes a cell. CSC on disk cannot be read by cells: on first use it is rewritten
    as CSR into temporary files of 12 bytes an entry (in ``TMPDIR``: let that be a disk), which takes two passes over
    the counts. They are memory-mapped: a process monitor counts their pages, but the system may take them back.

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
        if chunk_cells is not None:
            check_integer("chunk_cells", chunk_cells, 1)
        with ExitStack() as opening:
            self._store: Store = opening.enter_context(open_anndata(source))
            self.name = self._store.name
            matrix, place, var = self._find_matrix()
            with self._store.reading():
                self.n_cells, self.n_genes, entries, self._make_reader = self._layout(matrix, place)
                self.obs, self.var = self._store.frame("obs"), self._store.frame(var)
            self._check_names(place, var)
            self._exit = opening.pop_all()
        self._read_rows: ReadRows | None = None
        mean = max(entries / max(self.n_cells, 1), 1.0)
        self.chunk_cells = chunk_cells or max(1, min(MAX_CHUNK_CELLS, int(CHUNK_ENTRIES / mean)))

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
        with self._store.reading():
            read = self._read_rows = self._read_rows or self._make_reader()
        for begin in range(0, self.n_cells, self.chunk_cells):
            end = min(begin + self.chunk_cells, self.n_cells)
            cells = np.arange(begin, end)
            if kept is None or kept[begin:end].all():
                with self._store.reading():
                    rows = read(begin, end)
            elif not kept[begin:end].any():
                continue
            else:
                with self._store.reading():
                    rows = read(begin, end).take(kept[begin:end])
                cells = cells[kept[begin:end]]
            yield cells, rows

    # ------------------------------------------------------------------------------------------------------- the matrix

    def _find_matrix(self) -> tuple[Any, str, str]:
        """Return the matrix of counts, its place, and the place of its ``var``."""
        store, layer = self._store, self.layer
        raw = layer == "raw" and store.matrix("raw/X") is not None
        place = "X" if layer is None else "raw/X" if raw else f"layers/{layer}"
        matrix = store.matrix(place)
        if matrix is None:
            choices = ["X (layer=None)"] if store.matrix("X") is not None else []
            choices += [repr(name) for name in self.layers]
            raise InputError(f"{store.name} has no {place}; it has {', '.join(choices) or 'no counts at all'}")
        return matrix, place, "raw/var" if raw else "var"

    def _check_names(self, place: str, var: str) -> None:
        """Refuse names that do not fit the matrix: AnnData looks at this in memory only."""
        for frame, where, n, what in (
            (self.obs, "obs", self.n_cells, "rows"),
            (self.var, var, self.n_genes, "columns"),
        ):
            if frame.size != n:
                raise InputError(f"{self.name} is damaged: {place} has {n} {what}, {where} has {frame.size} names")

    def _layout(self, matrix: Any, place: str) -> tuple[int, int, int, Callable[[], ReadRows]]:
        """Return n_cells, n_genes, the number of entries to expect, and what makes a reader of rows."""
        layout = str(getattr(matrix, "format", "dense"))  # of SciPy's and of AnnData's backed matrices
        if layout not in {"csr", "csc", "dense"}:
            raise InputError(f"{self.name} holds {place} as {layout!r}; store counts as CSR, CSC or dense")
        if layout == "dense":
            if len(matrix.shape or ()) != 2 or matrix.dtype.kind not in NUMBERS:  # a missing X has shape None
                raise InputError(f"{self.name} holds no matrix of numbers in {place}; name the layer of the counts")
            n_cells, n_genes = map(int, matrix.shape)
            return n_cells, n_genes, n_cells * n_genes, lambda: lambda begin, end: _dense_rows(matrix[begin:end])
        sparse = _Compressed(matrix, place, self.name)
        n_cells, n_genes = sparse.shape
        if layout == "csr":
            return n_cells, n_genes, sparse.entries, lambda: sparse.rows
        if isinstance(sparse.indices, np.ndarray):  # in memory SciPy turns it round
            sparse.check(sparse.indices)
            in_rows = _Compressed(matrix.tocsr(), place, self.name)
            return n_cells, n_genes, sparse.entries, lambda: in_rows.rows
        return n_cells, n_genes, sparse.entries, lambda: self._rewrite_as_csr(sparse)

    def _rewrite_as_csr(self, columns: _Compressed) -> ReadRows:
        folder = tempfile.TemporaryDirectory(prefix="corrmask-csr-")
        return _csr_on_disk(columns, Path(self._exit.enter_context(folder)))


class _Compressed:
    """A CSR or CSC matrix in memory or on disk, whose pointers are sound; indices are checked as they are read."""

    def __init__(self, matrix: Any, place: str, name: str) -> None:
        self.name, self.place = name, place
        try:
            self.shape = tuple(map(int, matrix.shape))
        except (TypeError, ValueError, KeyError) as error:
            raise self._damaged("its shape is missing, or not two numbers") from error
        group = getattr(matrix, "group", None)  # where AnnData's backed matrix lies
        parts = (matrix.indptr, matrix.indices, matrix.data) if group is None else map(group.__getitem__, _PARTS)
        indptr, self.indices, self.data = parts
        for part in (indptr, self.indices, self.data):
            check_stored(part, name)
        by_rows = matrix.format == "csr"
        if len(self.shape) != 2 or min(self.shape) < 0:
            raise self._damaged(f"its shape is {self.shape}")
        n_major, self.n_minor = self.shape if by_rows else self.shape[::-1]
        self.minor = (
            f"columns outside its {self.n_minor} genes" if by_rows else f"rows outside its {self.n_minor} cells"
        )
        sizes = [(part.dtype.kind, len(part.shape)) for part in (indptr, self.indices, self.data)]
        if [dims for _, dims in sizes] != [1, 1, 1]:
            raise self._damaged("its parts are no lists of numbers")
        if sizes[0][0] not in "iu" or sizes[1][0] not in "iu" or sizes[2][0] not in NUMBERS:
            raise self._damaged(f"it holds {indptr.dtype}, {self.indices.dtype} and {self.data.dtype}, no counts")
        self.entries = int(self.indices.shape[0])
        fits = indptr.shape[0] == n_major + 1 and self.data.shape[0] == self.entries
        pointers = np.asarray(indptr[:]) if fits else np.empty(0, np.int64)
        sound = fits and pointers[0] == 0 and pointers[-1] == self.entries and not (pointers[1:] < pointers[:-1]).any()
        if not sound:
            raise self._damaged(f"the pointers of its sparse counts do not fit its {self.entries} entries")
        self.indptr = pointers.astype(np.int64)

    def part(self, begin: int, end: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return (pointers from 0, indices as int64, data as stored) of major rows [begin, end)."""
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
        """Return the rows [begin, end) of a CSR matrix."""
        indptr, columns, stored = self.part(begin, end)
        return Rows(indptr, columns, stored.astype(np.float64), stored)

    def _damaged(self, why: str) -> InputError:
        return InputError(f"{self.name} is damaged: {why} (in {self.place})")


_PARTS = ("indptr", "indices", "data")


def _dense_rows(matrix: Any) -> Rows:
    """Return rows of a dense matrix, without its zeros."""
    if hasattr(matrix, "compute"):  # dask
        matrix = matrix.compute()
    dense = matrix.toarray() if hasattr(matrix, "toarray") else np.asarray(matrix)
    entries = dense != 0  # NaN is not 0
    stored = dense[entries]
    indptr = np.concatenate([[0], np.cumsum(entries.sum(axis=1))])
    return Rows(indptr, np.nonzero(entries)[1], stored.astype(np.float64), stored)


def _csr_on_disk(matrix: _Compressed, folder: Path) -> ReadRows:
    """Rewrite a CSC matrix as CSR in two memory-mapped files, a block of columns at a time."""
    from corrmask_fast.kernels.tokenize import scatter_columns

    (n_cells, n_genes), entries = matrix.shape, matrix.entries
    step = max(1, int(CHUNK_ENTRIES / max(entries / max(n_genes, 1), 1.0)))
    blocks = [(first, min(first + step, n_genes)) for first in range(0, n_genes, step)]
    indptr = np.zeros(n_cells + 1, np.int64)
    for block in blocks:
        indptr[1:] += np.bincount(matrix.part(*block)[1], minlength=n_cells)
    np.cumsum(indptr, out=indptr)
    size = max(entries, 1)  # an empty file cannot be mapped
    columns = np.memmap(folder / "columns", np.int32, "w+", shape=(size,))
    counts = np.memmap(folder / "counts", np.float64, "w+", shape=(size,))
    place = indptr[:-1].copy()
    for first, last in blocks:
        pointers, rows, data = matrix.part(first, last)
        scatter_columns(pointers, rows, data.astype(np.float64), first, place, columns, counts)

    def read_rows(begin: int, end: int) -> Rows:
        here = slice(indptr[begin], indptr[end])
        values = np.asarray(counts[here])
        return Rows(indptr[begin : end + 1] - indptr[begin], columns[here].astype(np.int64), values, values)

    return read_rows
