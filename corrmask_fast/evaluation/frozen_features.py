"""Cell types told from vectors that no longer change: a model's embeddings, or the counts themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from corrmask_fast.errors import InputError, check_integer, import_extra

if TYPE_CHECKING:
    import scipy.sparse

    from corrmask_fast.cells.corpus import Corpus

__all__ = [
    "confusion_matrix", "f1_by_type", "f1_of", "gene_features", "knn_purity", "nearest_types", "probe_types", "reduced",
]  # fmt: skip

BLOCK = 1024  # rows of distances at a time


def gene_features(corpus: Corpus) -> scipy.sparse.csr_array:
    """Return what a regression without a model reads of cells: (n_cells, V) CSR float32.

    ``log1p`` of counts per 10 000 where the corpus has values, else 1 − rank / genes of the cell.
    """
    import scipy.sparse

    lengths = np.diff(corpus.indptr)
    if corpus.values is None:
        place = np.arange(corpus.tokens.size) - np.repeat(corpus.indptr[:-1], lengths)
        values = 1 - place / np.repeat(lengths, lengths)
    else:
        counts, cell = corpus.values.astype(np.float64), np.repeat(np.arange(lengths.size), lengths)
        values = np.log1p(1e4 * counts / np.bincount(cell, counts, lengths.size)[cell])
    shape = (corpus.n_cells, corpus.vocabulary.size)
    return scipy.sparse.csr_array((values.astype(np.float32), corpus.tokens.astype(np.int32), corpus.indptr), shape)


def probe_types(features: Any, codes: np.ndarray, new_features: Any) -> np.ndarray:
    """Return the types of new cells that a logistic regression on labelled cells names.

    Every feature is divided by its largest absolute value (sparse) or standardised (dense); an L2 penalty with C = 1.

    Parameters
    ----------
    features
        (n, d) dense or sparse: the labelled cells.
    codes
        (n,) integers: their types.
    new_features
        (m, d): the cells to name.

    Returns
    -------
    (m,) codes.
    """
    linear = import_extra("sklearn.linear_model", "eval")
    preprocessing = import_extra("sklearn.preprocessing", "eval")
    pipeline = import_extra("sklearn.pipeline", "eval")
    sparse = hasattr(features, "tocsr")
    scaler = preprocessing.MaxAbsScaler() if sparse else preprocessing.StandardScaler()
    model = pipeline.make_pipeline(scaler, linear.LogisticRegression(C=1.0, max_iter=2000))
    return np.asarray(model.fit(features, codes).predict(new_features))


def nearest_types(features: np.ndarray, codes: np.ndarray, new_features: np.ndarray, k: int = 10) -> np.ndarray:
    """Return the types of new cells that most of the k nearest labelled cells have: (m,) codes.

    By cosine, once the labelled cells' mean is taken off: all embeddings of a model have much in common. Parameters are
    those of :func:`probe_types`; with fewer than k labelled cells all vote.
    """
    neighbors = import_extra("sklearn.neighbors", "eval")
    centre = features.mean(axis=0)
    model = neighbors.KNeighborsClassifier(min(k, len(codes)), metric="cosine")
    return np.asarray(model.fit(features - centre, codes).predict(new_features - centre))


def reduced(features: Any, n_components: int = 50, seed: int = 0) -> np.ndarray:
    """Return the first principal components of sparse features: (cells, at most ``n_components``)."""
    decomposition = import_extra("sklearn.decomposition", "eval")
    n = min(n_components, min(features.shape) - 1)
    if n < 1:
        raise InputError(f"principal components need 2 cells and 2 genes or more; got {features.shape}")
    dense = np.asarray(features.todense(), np.float32)
    pca = decomposition.PCA(n, svd_solver="randomized", random_state=seed % 2**32)
    return np.asarray(pca.fit_transform(dense))


def confusion_matrix(codes: np.ndarray, named: np.ndarray, n_types: int) -> np.ndarray:
    """(n_types, n_types) int64: cells of the row's type that were given the column's."""
    return np.bincount(codes * n_types + named, minlength=n_types**2).reshape(n_types, n_types)


def f1_of(confusion: np.ndarray) -> np.ndarray:
    """(…, n_types): F1 of each type by (…, n_types, n_types) confusion matrices; 0 of one that is never named right.

    >>> f1_of(np.array([[3, 1], [0, 0]]))
    array([0.857..., 0.       ])
    """
    right = np.diagonal(confusion, axis1=-2, axis2=-1)
    either = confusion.sum(-1) + confusion.sum(-2)
    return np.divide(2.0 * right, either, out=np.zeros(right.shape), where=either > 0)


def f1_by_type(codes: np.ndarray, named: np.ndarray, n_types: int) -> np.ndarray:
    """(n_types,): F1 of each type; 0 of one that is never named right."""
    return f1_of(confusion_matrix(codes, named, n_types))


def knn_purity(embeddings: np.ndarray, codes: np.ndarray, k: int = 10) -> float:
    """Return how pure the neighbourhoods of cells are: of the k nearest cells (cosine), the share of the same type.

    The mean over the cells of a type, then over types, so that rare types count as much as others.

    Parameters
    ----------
    embeddings
        (n, width).
    codes
        (n,) integers: types of the cells.
    k
        Neighbours of a cell, itself left out; at most n − 1.
    """
    check_integer("k", k, 1)
    n = len(codes)
    if n < 2:
        return float("nan")
    k = min(k, n - 1)
    unit = embeddings - embeddings.mean(axis=0)
    unit = unit / np.maximum(np.linalg.norm(unit, axis=1, keepdims=True), 1e-12)
    same = np.empty(n)
    for begin in range(0, n, BLOCK):
        rows = np.arange(begin, min(begin + BLOCK, n))
        likeness = unit[rows] @ unit.T
        likeness[np.arange(rows.size), rows] = -np.inf
        nearest = np.argpartition(-likeness, k - 1, axis=1)[:, :k]
        same[rows] = (codes[nearest] == codes[rows, None]).mean(axis=1)
    present = np.bincount(codes)
    return float(np.mean((np.bincount(codes, same) / np.maximum(present, 1))[present > 0]))
