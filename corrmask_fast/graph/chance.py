"""Chance with the same degrees: what is expected of random graphs in which genes keep their numbers of partners.

The random graph is the one of largest entropy in which every gene keeps its degree on average: genes u and v are linked
with probability x_u x_v / (1 + x_u x_v). Hubs share many edges by chance alone, and no probability passes 1, however
many partners two hubs have (Park and Newman 2004). :func:`corrmask_fast.rewired` draws graphs that keep every degree
exactly; their means are those expected here, within a few per cent.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

BLOCK = 4_000_000  # pairs of degrees looked at together
MAX_ROUNDS, CLOSE = 2000, 1e-4  # of fitting degrees: until none is off by more than this share


def expected_neighbors(degrees: Sequence[np.ndarray], among: np.ndarray | None = None) -> np.ndarray:
    """Return how many neighbours each gene has, on average, in all of several independent random graphs at once.

    Parameters
    ----------
    degrees
        (genes,) int64, for each graph.
    among
        (genes,) bool: count only these neighbours; None: all.

    Returns
    -------
    (genes,) float64.
    """
    # Genes of equal degrees are alike.
    kinds, first, kind = np.unique(np.stack(degrees), axis=1, return_index=True, return_inverse=True)
    kind = kind.reshape(-1)
    among = np.ones(kind.size, np.bool_) if among is None else among
    times = np.bincount(kind[among], minlength=kinds.shape[1])
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
    return expected[kind] - itself[kind] * among  # no gene is its own neighbour


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
