"""Counts in an ``.h5ad`` file, read a chunk of cells at a time, whatever their layout (CSR, CSC, dense)."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from corrmask_fast.errors import InputError, check_integer, import_extra

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator, Sequence

    from scipy.sparse import csr_matrix

    ReadRows = Callable[[int, int], csr_matrix]  # cells [begin, end)

CHUNK_ENTRIES = 2_000_000  # entries held at a time, about 50 bytes each through all stages: what bounds memory
MAX_CHUNK_CELLS = 16_384


class CountsFile:
    """The counts of an ``.h5ad`` file, with the names of its cells and genes; a context manager.

    Parameters
    ----------
    path
        The file, as AnnData writes it.
    layer
        Where the counts are: None for ``X``, ``"raw"`` for ``raw/X``, else the name of a layer.
    chunk_cells
        Cells read at a time; None: as many as hold about two million entries.

    Notes
    -----
    Memory is one chunk of cells and 8 bytes a cell. CSC cannot be read by cells: on first use it is rewritten as CSR
    into temporary files of 12 bytes an entry (in ``TMPDIR``: let that be a disk), which takes two passes over the
    counts. They are memory-mapped: a process monitor counts their pages, but the system may take them back.

    Raises
    ------
    InputError
        If this is no ``.h5ad`` file, is damaged, or has no such layer (says which ones there are).
    MissingExtraError
        Without anndata and h5py.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, layer: str | None = None, chunk_cells: int | None = None
    ) -> None:
        self.path, self.layer = Path(path), layer
        if chunk_cells is not None:
            check_integer("chunk_cells", chunk_cells, 1)
        self._io = import_extra("anndata.io", "anndata")
        with ExitStack() as opening:
            self._file = opening.enter_context(_open(self.path))
            self.n_cells, self.n_genes, entries, self._make_reader = self._layout(self._find_matrix())
            self._exit = opening.pop_all()
        self._read_rows: ReadRows | None = None
        mean = max(entries / max(self.n_cells, 1), 1.0)
        self.chunk_cells = chunk_cells or max(1, min(MAX_CHUNK_CELLS, int(CHUNK_ENTRIES / mean)))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._exit.close()

    # -------------------------------------------------------------------------------------------- what the file holds

    @property
    def layers(self) -> list[str]:
        """Where else this file may hold counts: values for ``layer``."""
        raw = ["raw"] if "raw/X" in self._file else []
        return raw + list(self._file.get("layers", ()))

    def _find_matrix(self) -> Any:
        for name in ("obs", "var"):
            if name not in self._file:
                raise InputError(
                    f"{self.path} has no {name!r}: it is an HDF5 file, but no .h5ad; write it with AnnData"
                )
            if "column-order" not in self._file[name].attrs:
                raise InputError(
                    f"{self.path} was written by anndata < 0.7; write it anew: "
                    "anndata.read_h5ad(old).write_h5ad(new), with an anndata that still reads it"
                )
        self._raw = self.layer == "raw" and "raw/X" in self._file
        where = "X" if self.layer is None else "raw/X" if self._raw else f"layers/{self.layer}"
        if where not in self._file:
            choices = ["X (layer=None)"] if "X" in self._file else []
            choices += [repr(name) for name in self.layers]
            raise InputError(f"{self.path} has no {where}; it has {', '.join(choices) or 'no counts at all'}")
        return self._file[where]

    @property
    def _var(self) -> Any:
        return self._file["raw/var" if self._raw else "var"]

    def var_names(self) -> np.ndarray:
        """(n_genes,) str: the index of ``var``."""
        return self._index(self._var)

    def obs_names(self) -> np.ndarray:
        """(n_cells,) str: the index of ``obs``."""
        return self._index(self._file["obs"])

    def var_column(self, name: str) -> np.ndarray:
        """(n_genes,): a column of ``var``, missing values as None."""
        return _plain(self._column(self._var, "var", name))

    def var_columns(self) -> list[str]:
        """Names of the columns of ``var``."""
        return _column_names(self._var)

    def obs_reader(self, names: Sequence[str]) -> Callable[[int, int], dict[str, np.ndarray]]:
        """Return a function of (begin, end) that gives these columns of ``obs`` for a range of cells.

        Categories become their labels, missing values None. The columns are held in memory as they are stored.
        """
        columns = {name: self._column(self._file["obs"], "obs", name) for name in names}
        return lambda begin, end: {name: _plain(column[begin:end]) for name, column in columns.items()}

    def _index(self, frame: Any) -> np.ndarray:
        return np.asarray(self._io.read_elem(frame[frame.attrs["_index"]])).astype(str)

    def _column(self, frame: Any, axis: str, name: str) -> Any:
        names = _column_names(frame)
        if name not in names:
            raise InputError(f"{self.path} has no {axis} column {name!r}; it has {', '.join(names) or 'none'}")
        if frame.attrs.get("encoding-version") == "0.2.0":
            return self._io.read_elem(frame[name])
        return self._io.read_elem(frame)[name].array  # anndata 0.7 keeps categories beside the columns

    # ----------------------------------------------------------------------------------------------- reading the counts

    def chunks(self) -> Iterator[tuple[int, csr_matrix]]:
        """Yield (first cell, CSR matrix of its counts and those after it), chunk by chunk; columns are checked."""
        read = self._read_rows = self._read_rows or self._make_reader()
        for begin in range(0, self.n_cells, self.chunk_cells):
            rows = read(begin, min(begin + self.chunk_cells, self.n_cells))
            if rows.nnz and not 0 <= rows.indices.min() <= rows.indices.max() < self.n_genes:
                raise InputError(f"{self.path} is damaged: its counts name columns outside its {self.n_genes} genes")
            yield begin, rows

    def _layout(self, matrix: Any) -> tuple[int, int, int, Callable[[], ReadRows]]:
        """Return n_cells, n_genes, the number of entries to expect, and what makes a reader of rows."""
        from scipy.sparse import csr_matrix

        if hasattr(matrix, "shape"):  # a dense HDF5 dataset
            if len(matrix.shape or ()) != 2 or matrix.dtype.kind not in "iufb":  # a missing X has shape None
                raise InputError(
                    f"{self.path} holds no matrix of numbers in {matrix.name}; name the layer of the counts"
                )
            n_cells, n_genes = matrix.shape
            return n_cells, n_genes, n_cells * n_genes, lambda: lambda a, b: csr_matrix(matrix[a:b].astype(np.float64))
        encoding = str(matrix.attrs.get("encoding-type", matrix.attrs.get("h5sparse_format", "unknown")))
        if not encoding.startswith(("csr", "csc")):
            raise InputError(f"{self.path} holds its counts as {encoding!r}; store them as CSR, CSC or dense")
        sparse = self._io.sparse_dataset(matrix)
        n_cells, n_genes = map(int, sparse.shape)
        entries = _check_indptr(matrix, n_cells if encoding.startswith("csr") else n_genes, self.path)
        if encoding.startswith("csr"):
            return n_cells, n_genes, entries, lambda: lambda a, b: sparse[a:b]
        return n_cells, n_genes, entries, lambda: self._rewrite_as_csr(sparse, matrix, entries)

    def _rewrite_as_csr(self, sparse: Any, matrix: Any, entries: int) -> ReadRows:
        folder = tempfile.TemporaryDirectory(prefix="corrmask-csr-")
        return _csr_on_disk(sparse, matrix, entries, Path(self._exit.enter_context(folder)), self.path)


def _open(path: Path) -> Any:
    """Open an HDF5 file for reading."""
    h5py = import_extra("h5py", "anndata")
    if not path.exists():
        raise InputError(f"no file at {path}; give the path of an .h5ad file")
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise InputError(f"{path} is not a readable .h5ad file: {error}") from error


def _column_names(frame: Any) -> list[str]:
    return [str(name) for name in frame.attrs["column-order"]]


def _plain(column: Any) -> np.ndarray:
    """Return a column as NumPy: categories as their labels, missing values of labels and of nullable types as None."""
    if hasattr(column, "categories"):
        labels = np.array([*column.categories, None], object)  # code -1 is a missing value
        return labels[np.asarray(column.codes)]
    if hasattr(column, "isna"):  # a nullable pandas array
        return column.to_numpy(object, na_value=None)
    return np.asarray(column)


def _check_indptr(matrix: Any, n_major: int, path: Path) -> int:
    """Return the number of entries of a sparse matrix, if its pointers are sound: kernels trust them."""
    indptr = matrix["indptr"][:].astype(np.int64)
    entries = matrix["indices"].size
    if matrix["data"].dtype.kind not in "iufb":
        raise InputError(f"{path} holds no numbers in {matrix.name}, but {matrix['data'].dtype}")
    sound = indptr.size == n_major + 1 and indptr[0] == 0 and indptr[-1] == entries == matrix["data"].size
    if not sound or np.any(np.diff(indptr) < 0):
        raise InputError(f"{path} is damaged: the pointers of its sparse counts do not fit its {entries} entries")
    return entries


def _csr_on_disk(sparse: Any, matrix: Any, entries: int, folder: Path, path: Path) -> ReadRows:
    """Rewrite a CSC matrix as CSR in two memory-mapped files, a block of columns at a time."""
    from scipy.sparse import csr_matrix

    from corrmask_fast.kernels.tokenize import scatter_columns

    n_cells, n_genes = map(int, sparse.shape)
    indptr = np.zeros(n_cells + 1, np.int64)
    for begin in range(0, entries, CHUNK_ENTRIES):
        rows = matrix["indices"][begin : begin + CHUNK_ENTRIES]
        if not 0 <= rows.min() <= rows.max() < n_cells:
            raise InputError(f"{path} is damaged: its counts name rows outside its {n_cells} cells")
        indptr[1:] += np.bincount(rows, minlength=n_cells)
    np.cumsum(indptr, out=indptr)
    shape = max(entries, 1)  # an empty file cannot be mapped
    columns = np.memmap(folder / "columns", np.int32, "w+", shape=(shape,))
    counts = np.memmap(folder / "counts", np.float64, "w+", shape=(shape,))
    place = indptr[:-1].copy()
    step = max(1, int(CHUNK_ENTRIES / max(entries / max(n_genes, 1), 1.0)))
    for first in range(0, n_genes, step):
        block = sparse[:, first : first + step]
        scatter_columns(
            block.indptr.astype(np.int64),
            block.indices.astype(np.int64),
            block.data.astype(np.float64),
            first,
            place,
            columns,
            counts,
        )

    def read_rows(begin: int, end: int) -> csr_matrix:
        entries = slice(indptr[begin], indptr[end])
        parts = (np.asarray(counts[entries]), np.asarray(columns[entries]), indptr[begin : end + 1] - indptr[begin])
        return csr_matrix(parts, shape=(end - begin, n_genes))

    return read_rows
