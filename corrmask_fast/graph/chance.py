"""Chance with the same degrees: what is expected of random graphs in which genes keep their numbers of partners.

The random graph is the one of largest entropy in which every gene keeps its degree on average: genes u and v are linked
with probability x_u x_v / (1 + x_u x_v). Hubs share many edges by chance alone, and no probability passes 1, however
many partners two hubs have (Park and Newman 2004). :func:`corrmask_fast.rewired` draws graphs that keep every degree
exactly; their means are those expected here, within a few per cent. :class:`EdgesWithin` gives their variances too.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

BLOCK = 4_000_000  # pairs of degrees looked at together
MAX_ROUNDS, CLOSE = 2000, 1e-4  # of fitting degrees: until none is off by more than this share


def expected_neighbors(degrees: Sequence[np.ndarray]) -> np.ndarray:
    """Return how many neighbours each gene has, on average, in all of several independent random graphs at once.

    Parameters
    ----------
    degrees
        (genes,) int64, for each graph.

    Returns
    -------
    (genes,) float64.
    """
    # Genes of equal degrees are alike.
    _, first, kind, times = np.unique(
        np.stack(degrees), axis=1, return_index=True, return_inverse=True, return_counts=True
    )
    kind = kind.reshape(-1)
    multipliers = [fit_multipliers(one)[first] for one in degrees]
    expected, itself = np.empty(times.size), np.ones(times.size)
    for x in multipliers:
        itself *= _linked(x * x)
    step = max(1, BLOCK // max(times.size, 1))
    for begin in range(0, times.size, step):
        linked = np.ones((min(step, times.size - begin), times.size))
        for x in multipliers:
            linked *= _linked(np.outer(x[begin : begin + step], x))
        expected[begin : begin + step] = linked @ times
    return (expected - itself)[kind]  # no gene is its own neighbour


class EdgesWithin:
    """The number of edges within a set of genes, over random graphs with the same degrees: its mean and variance.

    In the random graph of largest entropy all edges are independent, and so mean and variance within a set are sums
    over its pairs. There a gene keeps its degree on average alone. Where it keeps it exactly, the number within a set
    varies less: by what is left of it once the degrees are known. Number and degrees are all sums of edges, and so
    nearly normal together, with covariances that are sums over pairs again; what is left has the variance
    Var(T) - Cov(T, D) Cov(D)^-1 Cov(D, T). Genes of equal degree are alike, so all matrices have a row for each degree
    there is, and Cov(D), which is diagonal but for them, is inverted by Woodbury's formula. In a graph of 2 700 blood
    cells (23 357 edges, 50 gene sets), the means of 1 000 rewired graphs differ from these by no more than their
    standard errors explain, and the standard deviations by 0.6 % on average.

    Parameters
    ----------
    degrees
        (genes,) int64.
    """

    def __init__(self, degrees: np.ndarray) -> None:
        from scipy.linalg import lu_factor

        _, first, self._kind, times = np.unique(degrees, return_index=True, return_inverse=True, return_counts=True)
        x = fit_multipliers(degrees)[first]
        self._linked = _linked(np.outer(x, x))
        self._varies = self._linked * (1 - self._linked)
        # Cov(D) = diag(own) + C varies C', where C says which gene has which degree
        own = self._varies @ times - 2 * np.diag(self._varies)
        self._inverse = np.divide(1, own, out=np.zeros_like(own), where=own > 0)
        self._factors = lu_factor(np.eye(times.size) + self._varies * (times * self._inverse))

    def moments(self, members: np.ndarray) -> tuple[float, float]:
        """Return mean and variance of the number of edges within the set of genes ``members``, each given once."""
        from scipy.linalg import lu_solve

        n = np.bincount(self._kind[members], minlength=self._inverse.size).astype(np.float64)
        mean = (n @ self._linked @ n - n @ np.diag(self._linked)) / 2
        shared = self._varies @ n - np.diag(self._varies)  # Cov(T, D) of a member; 0 of other genes
        variance = n @ shared / 2
        weighed = n * shared * self._inverse
        known = weighed @ shared - weighed @ lu_solve(self._factors, self._varies @ weighed)
        return float(mean), max(float(variance - known), float(CLOSE * mean) ** 2)  # no less than the mean's error


def fit_multipliers(degrees: np.ndarray) -> np.ndarray:
    """Return x with sum over v of x_u x_v / (1 + x_u x_v) = degree of u, by iteration over the degrees there are."""
    d, kind, times = np.unique(degrees, return_inverse=True, return_counts=True)
    d = d.astype(np.float64)
    x = d / math.sqrt(max(float(d @ times), 1.0))
    for _ in range(MAX_ROUNDS):
        # x_u = d_u / sum over v of x_v / (1 + x_u x_v), v other than u
        weights = x / (1 + np.outer(x, x))
        total = weights @ times - x / (1 + x * x)
        if np.all(np.abs(x * total - d) <= CLOSE * d):
            break
        x = np.divide(d, total, out=np.zeros_like(d), where=total > 0)
    return x[kind]


def _linked(products: np.ndarray) -> np.ndarray:
    return products / (1 + products)
