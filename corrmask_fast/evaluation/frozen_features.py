"""Cell types told from vectors that no longer change: a model's embeddings, or the counts themselves."""

from __future__ import annotations

from typing import Any

import numpy as np

from corrmask_fast.errors import InputError, check_integer, import_extra

__all__ = ["f1_by_type", "knn_purity", "probe_types", "reduced"]

BLOCK = 1024  # rows of distances at a time


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


def reduced(features: Any, n_components: int = 50, seed: int = 0) -> np.ndarray:
    """Return the first principal components of sparse features: (cells, at most ``n_components``)."""
    decomposition = import_extra("sklearn.decomposition", "eval")
    n = min(n_components, min(features.shape) - 1)
    if n < 1:
        raise InputError(f"principal components need 2 cells and 2 genes or more; got {features.shape}")
    dense = np.asarray(features.todense(), np.float32)
    pca = decomposition.PCA(n, svd_solver="randomized", random_state=seed % 2**32)
    return np.asarray(pca.fit_transform(dense))


def f1_by_type(codes: np.ndarray, named: np.ndarray, n_types: int) -> np.ndarray:
    """(n_types,): F1 of each type; 0 of one that is never named right."""
    metrics = import_extra("sklearn.metrics", "eval")
    return np.asarray(metrics.f1_score(codes, named, average=None, labels=np.arange(n_types), zero_division=0.0))


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
