"""A batch of counts in memory as CSR, whatever loader it comes from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from corrmask_fast.errors import InputError, readable

TAKEN = (np.dtype(np.float32), np.dtype(np.float64), np.dtype(np.int32))  # types of counts that kernels are made for
KIND = "matrix of counts"


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


def is_table(source: Any) -> bool:
    """Whether something is a table as pandas has it."""
    return hasattr(source, "columns") and hasattr(source, "index") and hasattr(source, "iloc")


def var_of(batch: Any) -> Any:
    """Return what names the columns of a batch: a table ``var``, or a list of names; None if nothing does.

    The ``var`` of an AnnData, of what is like one, or of a mapping; the columns of a table.
    """
    if is_table(batch):
        return list(batch.columns)
    var = batch.get("var") if isinstance(batch, Mapping) else getattr(batch, "var", None)
    if is_table(var):
        return var
    names = getattr(batch, "var_names", None) if var is None or callable(var) else var  # of AnnData's collections
    return None if names is None else list(names)


def count_batch(counts: Any) -> CountBatch:
    """Return a batch of counts as CSR; see :class:`~corrmask_fast.RankEncoder` for what it may be.

    Raises
    ------
    InputError
        If it is no matrix of numbers, or lies on a device.
    """
    with readable("the batch", KIND):
        return _batch_of(counts)


def numbers_of_cells(values: Any, n: int) -> np.ndarray:
    """(n,) float64: one number a cell, of anything that holds them.

    Raises
    ------
    InputError
        If it does not hold one number for each cell.
    """
    with readable("totals", "list of numbers"):
        if hasattr(values, "detach"):
            values = values.detach().cpu().double().numpy()
        array = np.asarray(values)
    if array.shape != (n,) or array.dtype.kind not in "iuf" or np.ma.isMaskedArray(values):
        raise InputError(f"totals must hold one number for each of {n} cells; got {array.dtype} {array.shape}")
    return np.ascontiguousarray(array, np.float64)


def dense_entries(dense: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (pointers, columns, counts) of a dense matrix's entries that are not 0; NaN is not."""
    entries = dense != 0
    indptr = np.concatenate([[0], np.cumsum(entries.sum(axis=1))])
    return indptr, np.ascontiguousarray(np.nonzero(entries)[1]), dense[entries]


def _batch_of(counts: Any) -> CountBatch:
    if isinstance(counts, Mapping):
        if "X" not in counts:
            raise InputError(
                f"a batch must be counts, or a mapping with 'X'; got {', '.join(map(str, counts)) or 'none'}"
            )
        counts = counts["X"]
    if hasattr(counts, "X") and hasattr(counts, "var_names"):
        counts = counts.X
    for to_memory in ("compute", "to_memory"):  # dask's arrays; AnnData's backed matrices
        if hasattr(counts, to_memory):
            counts = getattr(counts, to_memory)()
    if isinstance(counts, list | tuple):
        counts = _stacked(counts)
    if hasattr(counts, "layout") and hasattr(counts, "device"):
        counts = _from_tensor(counts)
    if len(getattr(counts, "shape", (0, 0))) != 2:
        raise InputError(f"counts must be a matrix of cells and genes; got {len(counts.shape)} dimensions")
    if hasattr(counts, "indptr") or hasattr(counts, "tocsr"):
        return _from_sparse(counts)
    if np.ma.isMaskedArray(counts):
        raise InputError("counts must have no mask; fill what is masked: .filled(0)")
    dense = _numbers(np.asarray(counts))
    if dense.ndim != 2:
        raise InputError(f"counts must be a matrix of cells and genes; got {dense.ndim} dimensions of {dense.dtype}")
    return CountBatch(CountRows(*dense_entries(dense)), dense.shape[1])


def _stacked(rows: Any) -> Any:
    """Return a list of cells, as a DataLoader without a collate function of its own hands them out, as one matrix."""
    if not rows:
        raise InputError("a batch must hold at least one cell")
    rows = [row["X"] if isinstance(row, Mapping) and "X" in row else getattr(row, "X", row) for row in rows]
    widths = {int(row.shape[-1]) if getattr(row, "shape", ()) else len(row) for row in rows}
    if len(widths) > 1:
        raise InputError(f"the cells of a batch must have the same columns; got {sorted(widths)} columns")
    if all(hasattr(row, "tocsr") for row in rows):
        from scipy.sparse import vstack

        return vstack(rows, format="csr")
    if all(hasattr(row, "layout") and hasattr(row, "device") for row in rows):
        import torch

        return torch.cat([row.to_dense().reshape(-1, row.shape[-1]) for row in rows])
    return np.concatenate([np.atleast_2d(np.asarray(row)) for row in rows])


def _from_tensor(counts: Any) -> Any:
    """Return a tensor as NumPy, or its sparse parts by the names that SciPy has for them."""
    import torch

    if counts.device.type != "cpu":
        raise InputError(f"it lies on {counts.device}; encode it there with RankEncoder.padded, or give it on the CPU")
    counts = checked_tensor(counts)
    if counts.layout == torch.strided:
        return counts.numpy()
    counts = counts if counts.layout == torch.sparse_csr else counts.to_sparse_csr()
    data, indices, indptr = (part.numpy() for part in (counts.values(), counts.col_indices(), counts.crow_indices()))
    return _Parts(data, indices, indptr, tuple(counts.shape))


def checked_tensor(counts: Any) -> Any:
    """Return a tensor of counts without its history, in a type that NumPy has."""
    if counts.ndim != 2 or counts.is_complex():
        raise InputError(f"counts must be a matrix of cells and genes; got {counts.ndim} dimensions of {counts.dtype}")
    counts = counts.detach()
    if counts.is_floating_point() and counts.element_size() < 4:  # half, bfloat16
        counts = counts.double()
    return counts.resolve_neg()


class _Parts(NamedTuple):
    data: np.ndarray
    indices: np.ndarray
    indptr: np.ndarray
    shape: tuple[int, ...]
    format: str = "csr"


def _from_sparse(matrix: Any) -> CountBatch:
    shape = tuple(map(int, matrix.shape))
    if matrix.format == "coo":
        _check_inside(matrix.row, shape[0], "rows")
        _check_inside(matrix.col, shape[1], "columns")
    elif matrix.format in {"csc", "bsr"}:  # SciPy trusts their parts
        lines, size = (shape[1], shape[0]) if matrix.format == "csc" else (matrix.indptr.size - 1, shape[1])
        _check_pointers(matrix.indptr, matrix.indices.size, lines)
        _check_inside(matrix.indices, size, "rows" if matrix.format == "csc" else "columns")
    matrix = matrix if matrix.format == "csr" else matrix.tocsr()
    indptr, columns, counts = (np.asarray(part) for part in (matrix.indptr, matrix.indices, matrix.data))
    indptr = _check_pointers(indptr, min(columns.size, counts.size), shape[0])
    columns = columns if columns.dtype in (np.int32, np.int64) else columns.astype(np.int64)
    return CountBatch(CountRows(indptr, np.ascontiguousarray(columns), _numbers(counts)), shape[1])


def _check_pointers(indptr: np.ndarray, entries: int, lines: int) -> np.ndarray:
    indptr = np.ascontiguousarray(indptr, np.int64)
    if indptr.size != lines + 1 or indptr[0] < 0 or indptr[-1] > entries or (indptr[1:] < indptr[:-1]).any():
        raise InputError(f"the pointers of its sparse counts do not fit its {entries} entries")
    return indptr


def _check_inside(indices: np.ndarray, n: int, what: str) -> None:
    if indices.size and not 0 <= indices.min() <= indices.max() < n:
        raise InputError(f"its sparse counts name {what} outside its {n}")


def _numbers(counts: np.ndarray) -> np.ndarray:
    if counts.dtype == object:
        counts = counts.astype(np.float64)  # a table with missing values raises
    if counts.dtype.kind not in "iufb":
        raise InputError(f"counts must be numbers; got {counts.dtype}")
    return np.ascontiguousarray(counts if counts.dtype in TAKEN else counts.astype(np.float64))
