"""A batch of counts in memory as CSR, whatever loader it comes from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from corrmask_fast.errors import InputError, naming

TAKEN = (np.dtype(np.float32), np.dtype(np.float64), np.dtype(np.int32))  # types of counts that kernels are made for


class CountRows(NamedTuple):
    """Cells as CSR, as kernels take it: the entries of row r are ``indptr[r]`` to ``indptr[r + 1]``."""

    indptr: np.ndarray  # (n + 1,) int64
    columns: np.ndarray  # int32 or int64; kernels look whether they lie inside
    counts: np.ndarray  # float32, float64 or int32


class CountBatch(NamedTuple):
    """Cells of a batch, and how many columns it has."""

    rows: CountRows
    n_columns: int

    def __len__(self) -> int:
        return self.rows.indptr.size - 1


def var_of(source: Any) -> Any:
    """Return the ``var`` (a pandas table) of an AnnData, of what is like one or of a mapping, or the table itself."""
    if isinstance(source, Mapping):
        return source.get("var")
    for table in (source, getattr(source, "var", None)):
        if hasattr(table, "columns") and hasattr(table, "index") and hasattr(table, "iloc"):
            return table
    names = getattr(source, "var_names", None)  # AnnData's collections have names alone
    return None if names is None else names.to_frame()


def count_batch(counts: Any) -> CountBatch:
    """Return a batch of counts as CSR; see :class:`~corrmask_fast.RankEncoder` for what it may be.

    Raises
    ------
    InputError
        If it is no matrix of numbers, or lies on a device.
    """
    with naming("the batch"):
        return _batch_of(counts)


def _batch_of(counts: Any) -> CountBatch:
    if isinstance(counts, Mapping):
        if "X" not in counts:
            raise InputError(
                f"a batch must be counts, or a mapping with 'X'; got {', '.join(map(str, counts)) or 'none'}"
            )
        counts = counts["X"]
    if hasattr(counts, "X"):
        counts = counts.X
    if hasattr(counts, "compute"):  # dask
        counts = counts.compute()
    if isinstance(counts, list | tuple):
        counts = _stacked(counts)
    if hasattr(counts, "layout") and hasattr(counts, "device"):
        counts = _from_tensor(counts)
    if hasattr(counts, "indptr") or hasattr(counts, "tocsr"):
        return _from_sparse(counts if getattr(counts, "format", "csr") == "csr" else counts.tocsr())
    dense = np.asarray(counts)
    if dense.ndim != 2:
        raise InputError(f"counts must be a matrix of cells and genes; got {dense.ndim} dimensions of {dense.dtype}")
    entries = dense != 0  # NaN is not 0
    indptr = np.concatenate([[0], np.cumsum(entries.sum(axis=1))])
    return CountBatch(CountRows(indptr, np.nonzero(entries)[1], _numbers(dense[entries])), dense.shape[1])


def _stacked(rows: Any) -> Any:
    """Return a list of cells, as a DataLoader without a collate function of its own hands them out, as one matrix."""
    if not rows:
        raise InputError("a batch must hold at least one cell")
    rows = [row["X"] if isinstance(row, Mapping) and "X" in row else getattr(row, "X", row) for row in rows]
    if all(hasattr(row, "tocsr") for row in rows):
        from scipy.sparse import vstack

        widths = {row.shape[-1] for row in rows}
        if len(widths) > 1:
            raise InputError(f"the cells of a batch must have the same columns; got {sorted(widths)} columns")
        return vstack(rows, format="csr")
    arrays = [np.asarray(row) for row in rows]
    if len({array.shape for array in arrays}) > 1:
        raise InputError(f"the cells of a batch must have the same columns; got {sorted({a.shape for a in arrays})}")
    return np.concatenate([np.atleast_2d(array) for array in arrays])


def _from_tensor(counts: Any) -> Any:
    import torch

    if counts.device.type != "cpu":
        raise InputError(f"it lies on {counts.device}; encode it there with RankEncoder.padded, or give it on the CPU")
    if counts.layout == torch.strided:
        return counts.detach().numpy()
    counts = counts if counts.layout == torch.sparse_csr else counts.detach().to_sparse_csr()
    data, indices, indptr = (
        part.detach().numpy() for part in (counts.values(), counts.col_indices(), counts.crow_indices())
    )
    return _Parts(data, indices, indptr, tuple(counts.shape))


class _Parts(NamedTuple):
    """The parts of a sparse tensor, by the names that SciPy has for them."""

    data: np.ndarray
    indices: np.ndarray
    indptr: np.ndarray
    shape: tuple[int, ...]


def _from_sparse(matrix: Any) -> CountBatch:
    indptr, columns, counts = (np.asarray(part) for part in (matrix.indptr, matrix.indices, matrix.data))
    n = indptr.size - 1
    if columns.size < counts.size or len(matrix.shape) != 2 or matrix.shape[0] != n:
        raise InputError("the parts of its sparse counts do not fit each other")
    indptr = np.ascontiguousarray(indptr, np.int64)
    if indptr[0] < 0 or indptr[-1] > counts.size or (indptr[1:] < indptr[:-1]).any():
        raise InputError(f"the pointers of its sparse counts do not fit its {counts.size} entries")
    columns = columns if columns.dtype in (np.int32, np.int64) else columns.astype(np.int64)
    return CountBatch(CountRows(indptr, np.ascontiguousarray(columns), _numbers(counts)), int(matrix.shape[1]))


def _numbers(counts: np.ndarray) -> np.ndarray:
    if counts.dtype.kind not in "iufb":
        raise InputError(f"counts must be numbers; got {counts.dtype}")
    return np.ascontiguousarray(counts if counts.dtype in TAKEN else counts.astype(np.float64))
