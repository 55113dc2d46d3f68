"""The peers, each in a process of its own, at the largest size it manages; needs NumPy, SciPy and the peer, not us.

Each gets the cells as it likes them (dense or sparse, float32 or float64) before the clock starts, and is asked for all
correlations of genes: the quickest honest way that its documentation shows. Two give less than that: "product alone".
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if __name__ == "__main__":
    del sys.path[0]  # this folder, whose names are not for others to find

import numpy as np
import scipy.sparse
import scipy.stats

if TYPE_CHECKING:
    from collections.abc import Callable

    Prepared = tuple[Callable[[], Any], Callable[[Any], np.ndarray | None]]

SIZES = (100, 200, 500, 1_000, 2_000, 4_000, 8_000, 12_000)


class Cells:
    """The first genes of the cells that were handed over."""

    def __init__(self, arrays: dict[str, np.ndarray], n_genes: int) -> None:
        self.n_cells, self.n_genes = int(arrays["n_cells"]), n_genes
        self.indptr = arrays["indptr"][: n_genes + 1]
        self.cells = arrays["cells"][: self.indptr[-1]]
        self.values, self.e = arrays["values"], arrays["e"]

    def dense(self, dtype: type) -> np.ndarray:
        """(n_cells, n_genes): values."""
        return self.sparse(self.values, dtype).toarray()

    def sparse(self, data: np.ndarray, dtype: type) -> scipy.sparse.csc_matrix:
        """(n_cells, n_genes) in CSC."""
        matrix = data[: self.indptr[-1]].astype(dtype), self.cells, self.indptr
        return scipy.sparse.csc_matrix(matrix, shape=(self.n_cells, self.n_genes))


def _itself(result: Any) -> np.ndarray:
    return np.asarray(result)


def scipy_spearmanr(cells: Cells) -> Prepared:
    X = cells.dense(np.float64)
    return lambda: scipy.stats.spearmanr(X).statistic, _itself


def numpy_corrcoef(cells: Cells) -> Prepared:
    X = cells.dense(np.float64)
    return lambda: np.corrcoef(scipy.stats.rankdata(X, axis=0), rowvar=False), _itself


def pandas_corr(cells: Cells) -> Prepared:
    import pandas as pd

    frame = pd.DataFrame(cells.dense(np.float64))
    return lambda: frame.corr(method="spearman"), _itself


def sklearn_covariance(cells: Cells) -> Prepared:
    from sklearn.covariance import empirical_covariance
    from sklearn.preprocessing import StandardScaler

    X = cells.dense(np.float64)
    return lambda: empirical_covariance(StandardScaler().fit_transform(scipy.stats.rankdata(X, axis=0))), _itself


def torch_corrcoef(cells: Cells) -> Prepared:
    import torch

    X = cells.dense(np.float64)
    return lambda: torch.corrcoef(torch.from_numpy(scipy.stats.rankdata(X, axis=0).astype(np.float32)).T), _itself


def corals_full(cells: Cells) -> Prepared:
    from corals.correlation.full.default import cor_full

    X = cells.dense(np.float64)
    return lambda: cor_full(X, correlation_type="spearman"), _itself


def mkl_sparse_gram(cells: Cells) -> Prepared:
    # MKL's wheel puts its library where the loader does not look, under a name that changes.
    for library in sorted(Path(sys.prefix, "lib").glob("libmkl_rt.*")):
        os.environ.setdefault("MKL_RT", str(library))
    from sparse_dot_mkl import gram_matrix_mkl

    # Ranks as integers that are 0 where a gene is absent, in float32, which is faster and inexact: neither centred nor
    # divided, and that is all it gives.
    ranks = cells.sparse(cells.e, np.float32).tocsr()
    return lambda: gram_matrix_mkl(ranks, transpose=False, dense=True), lambda _: None


PEERS = {
    "SciPy spearmanr": scipy_spearmanr,
    "NumPy corrcoef of ranks": numpy_corrcoef,
    "pandas corr": pandas_corr,
    "scikit-learn covariance of ranks": sklearn_covariance,
    "torch corrcoef of ranks, float32": torch_corrcoef,
    "CorALS": corals_full,
    "MKL sparse Gram, product alone": mkl_sparse_gram,
}


def time_peer(name: str, arrays: dict[str, np.ndarray], n_genes: int) -> dict:
    """Seconds of one call, and its largest error among the first genes."""
    cells = Cells(arrays, n_genes)
    run, correlations = PEERS[name](cells)
    began = time.perf_counter()
    result = run()
    seconds = time.perf_counter() - began
    found, error = correlations(result), None
    if found is not None:
        n = min(n_genes, arrays["exact"].shape[0])
        error = float(np.nanmax(np.abs(found[:n, :n] - arrays["exact"][:n, :n])))
    return {"seconds": seconds, "n_cells": cells.n_cells, "n_genes": n_genes, "largest_error": error}


def largest_size(seconds: float, tried: int, limit_s: float, n_cells: int, most: int) -> int:
    """Genes that fit time and memory, if time grows with the square of their number."""
    memory = 0.5 * free_memory()
    fits = [
        size
        for size in (*SIZES, most)
        if size <= most and seconds * (size / tried) ** 2 <= limit_s and 8 * (4 * n_cells * size + 3 * size**2) < memory
    ]
    return max(fits, default=tried)


def free_memory() -> float:
    """Bytes that a process could take now."""
    try:
        with open("/proc/meminfo") as file:  # noqa: PTH123
            return next(float(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable"))
    except OSError:
        return 8e9


def sgemm_flops(n: int = 6144, calls: int = 3) -> float:
    """Floating-point operations a second that dense float32 products reach on this machine."""
    a, b = (np.random.default_rng(i).random((n, n), np.float32) for i in (0, 1))
    out = a @ b
    seconds = []
    for _ in range(calls):
        began = time.perf_counter()
        np.matmul(a, b, out=out)
        seconds.append(time.perf_counter() - began)
    return 2 * n**3 / min(seconds)


def run(what: dict) -> dict:
    """Do what the driver asks for."""
    if what["peer"] == "SGEMM":
        return {"flops": sgemm_flops(what["n"])}
    with np.load(what["input"]) as file:
        arrays = dict(file)
    most, name = arrays["indptr"].size - 1, what["peer"]
    n_genes = most
    if not what["all_genes"]:
        tried = min(most, 100 if name == "pandas corr" else 500)
        time_peer(name, arrays, min(20, most))  # what a first call loads or compiles
        seconds = time_peer(name, arrays, tried)["seconds"]
        n_genes = largest_size(seconds, tried, what["limit_s"], int(arrays["n_cells"]), most)
    row = time_peer(name, arrays, n_genes)
    return row | {"peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}


if __name__ == "__main__":
    print(json.dumps(run(json.loads(sys.argv[1]))))
