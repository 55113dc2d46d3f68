"""The peers, each in a process of its own, at the largest size it manages; needs NumPy, SciPy and the peer, not us.

Each gets the cells as it likes them (dense or sparse, float32 or float64) before the clock starts, and is asked for all
correlations of genes: the quickest way that its documentation shows. Two give less than that: "product alone".

A call that takes longer than its limit ends its process. What it printed last is the number of genes of that call.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import time
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if __name__ == "__main__":
    del sys.path[0]  # this folder, whose names are not for others to find

import numpy as np
import scipy.sparse
import scipy.stats

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Prepared = tuple[Callable[[], Any], Callable[[Any], np.ndarray]]  # the call, and correlations from its result

SIZES = (50, 100, 200, 500, 1_000, 2_000, 4_000, 6_000, 8_000, 12_000)
MAX_CHECKED = 200  # genes whose correlations are compared
MARGIN = 0.9  # of the limit that a size may be estimated to take


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

    def rho_of_gram(self, gram: np.ndarray) -> np.ndarray:
        """Correlations of the first genes, from products of ``e`` of which only the upper half is there."""
        n = min(self.n_genes, MAX_CHECKED)
        columns = [slice(*self.indptr[gene : gene + 2]) for gene in range(n)]
        positive = np.array([np.count_nonzero(self.values[column]) for column in columns], np.int64)
        # d = e - m where a gene is present, and -m elsewhere; its squares add up to:
        squares = [int(np.square(self.e[column].astype(np.int64)).sum()) for column in columns]
        squares = np.array(squares) - self.n_cells * positive**2
        upper = np.triu(gram[:n, :n].astype(np.float64))
        products = upper + np.triu(upper, 1).T - float(self.n_cells) * positive[:, None] * positive
        with np.errstate(invalid="ignore"):
            return products / np.sqrt(squares[:, None] * squares.astype(np.float64))


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
    # divided, and that is all it gives. Genes as rows in CSR: several times as fast as cells as rows.
    ranks = cells.sparse(cells.e, np.float32).T
    return lambda: gram_matrix_mkl(ranks, transpose=True, dense=True), cells.rho_of_gram


class Peer(NamedTuple):
    """What it does with the cells, the distributions it needs, and two sizes to try it with."""

    prepare: Callable[[Cells], Prepared]
    needs: tuple[str, ...]
    first_sizes: tuple[int, int] = (500, 1_000)


PEERS = {
    "SciPy spearmanr": Peer(scipy_spearmanr, ("numpy", "scipy")),
    "NumPy corrcoef of ranks": Peer(numpy_corrcoef, ("numpy", "scipy")),
    "pandas corr": Peer(pandas_corr, ("numpy", "pandas"), (50, 100)),
    "scikit-learn covariance of ranks": Peer(sklearn_covariance, ("numpy", "scipy", "scikit-learn")),
    "torch corrcoef of ranks, float32": Peer(torch_corrcoef, ("torch", "scipy")),
    "CorALS": Peer(corals_full, ("numpy", "corals")),
    "MKL sparse Gram, product alone": Peer(mkl_sparse_gram, ("sparse_dot_mkl", "mkl")),
}


def missing(name: str) -> list[str]:
    """Return the distributions that a peer needs and this environment lacks."""
    lacks = []
    for need in PEERS[name].needs:
        try:
            metadata.version(need)
        except metadata.PackageNotFoundError:
            lacks.append(need)
    return lacks


@contextmanager
def ending_after(seconds: float) -> Iterator[None]:
    """End this process if the block takes longer, whichever library it is in then."""
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def time_peer(name: str, arrays: dict[str, np.ndarray], n_genes: int, limit_s: float = 0.0) -> dict:
    """Seconds of one call, and its largest error among the first genes; no limit is 0."""
    cells = Cells(arrays, n_genes)
    run, correlations = PEERS[name].prepare(cells)
    print(json.dumps({"n_genes": n_genes}), flush=True)  # known if this process ends
    with ending_after(limit_s):
        began = time.perf_counter()
        result = run()
        seconds = time.perf_counter() - began
    n = min(n_genes, arrays["exact"].shape[0])
    error = float(np.nanmax(np.abs(correlations(result)[:n, :n] - arrays["exact"][:n, :n])))
    return {"seconds": seconds, "n_cells": cells.n_cells, "n_genes": n_genes, "largest_error": error}


def largest_size(tried: dict[int, float], limit_s: float, n_cells: int, most: int) -> int:
    """Genes that fit time and memory, if time has a part that grows with their number and one with its square.

    ``tried`` gives the seconds that two sizes took.
    """
    (few, seconds_few), (more, seconds_more) = sorted(tried.items())
    square = max(0.0, (seconds_more / more - seconds_few / few) / (more - few))
    linear = max(0.0, seconds_more / more - square * more)
    memory = 0.5 * free_memory()
    fits = [
        size
        for size in (*SIZES, most)
        if size <= most
        and linear * size + square * size**2 <= MARGIN * limit_s
        and 8 * (4 * n_cells * size + 3 * size**2) < memory
    ]
    return max(fits, default=few)


def free_memory() -> float:
    """Bytes that a process could take now."""
    try:
        with open("/proc/meminfo") as file:  # noqa: PTH123
            return next(float(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable"))
    except OSError:
        return 8e9


def peak_gib() -> float:
    """Largest resident memory of this process so far; getrusage would begin with what its parent had."""
    try:
        with open("/proc/self/status") as file:  # noqa: PTH123
            return next(int(line.split()[1]) for line in file if line.startswith("VmHWM")) / 2**20
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


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
    name, limit_s = what["peer"], what["limit_s"]
    if lacks := missing(name):
        raise SystemExit(f"not installed: {', '.join(lacks)}")
    with np.load(what["input"]) as file:
        arrays = dict(file)
    n_genes = most = min(what["max_genes"] or 2**31, arrays["indptr"].size - 1)
    if not what["all_genes"]:
        sizes = [min(size, most) for size in PEERS[name].first_sizes]
        time_peer(name, arrays, min(20, most))  # what a first call loads or compiles
        if sizes[0] < sizes[1]:
            tried = {size: time_peer(name, arrays, size, limit_s)["seconds"] for size in sizes}
            n_genes = largest_size(tried, limit_s, int(arrays["n_cells"]), most)
    row = time_peer(name, arrays, n_genes, limit_s)
    peak = peak_gib()
    versions = ", ".join(f"{need} {metadata.version(need)}" for need in PEERS[name].needs)
    return row | {"peak_gib": peak, "note": versions}


if __name__ == "__main__":
    print(json.dumps(run(json.loads(sys.argv[1]))))
