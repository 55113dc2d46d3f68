"""The last stage, correlating pairs over the cells that hold both genes, as a list of tasks with costs."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from corrmask_fast.graph.build.records import RHO_RANGE, Expected, check_arrays

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from corrmask_fast.graph.build.records import Pairs

MAX_RANGES, MIN_WORK = 1024, 2_000_000  # ranges of pairs: their number, and elements that pass in one (1 ms)


class OverlapPlan(NamedTuple):
    """Pairs sorted by their commoner gene, in ranges of about equal work; a range is a task."""

    common: np.ndarray  # (pairs,) int64: the gene in more cells
    partner: np.ndarray  # (pairs,) int64: the gene in fewer
    back: np.ndarray  # (pairs,) int64: place of each pair that was given
    ranges: list[tuple[int, int]]
    costs: np.ndarray  # of the ranges

    def pairs_of(self, task: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the commoner and the rarer genes of a task's pairs."""
        begin, end = self.ranges[task]
        return self.common[begin:end], self.partner[begin:end]

    def places_of(self, tasks: np.ndarray) -> np.ndarray:
        """Return the places of the tasks' pairs, one task after the other."""
        return np.concatenate([np.empty(0, np.int64), *(np.arange(*self.ranges[task]) for task in tasks)])

    def ends_of(self, tasks: np.ndarray) -> np.ndarray:
        """Return the place in :meth:`places_of` at which each task ends."""
        return np.cumsum([self.ranges[task][1] - self.ranges[task][0] for task in tasks])


def plan_overlaps(columns: Any, pairs: Pairs, argsort: Callable[[np.ndarray], np.ndarray] | None = None) -> OverlapPlan:
    """Return the tasks of the last stage, the same for all backends; ``argsort`` is stable (None: NumPy's)."""
    presence = columns.presence
    swap = presence[pairs.u] < presence[pairs.v]
    common, partner = np.where(swap, pairs.v, pairs.u), np.where(swap, pairs.u, pairs.v)
    order = np.argsort(common, kind="stable") if argsort is None else argsort(common)
    common, partner = common[order], partner[order]
    back = np.empty_like(order)
    back[order] = np.arange(order.size)
    return OverlapPlan(common, partner, back, *even_ranges(presence[partner] + columns.max_length // 8))


def even_ranges(work: np.ndarray) -> tuple[list[tuple[int, int]], np.ndarray]:
    """Cut [0, n) into ranges of about equal work, enough for any number of threads; return ranges and their work."""
    if work.size == 0:
        return [], np.empty(0, np.int64)
    total = np.cumsum(work)
    parts = min(work.size, MAX_RANGES, 1 + int(total[-1]) // MIN_WORK)
    cuts = np.searchsorted(total, total[-1] * np.arange(1, parts) // parts)
    bounds = np.unique([0, *cuts, work.size])
    return list(pairwise(bounds.tolist())), np.add.reduceat(work, bounds[:-1])


class Overlaps:
    """Overlap and rho of pairs, as far as they are known. No overlap exceeds ``n_cells``."""

    def __init__(self, n_pairs: int, n_cells: int) -> None:
        self.n_cells = n_cells
        self.overlap, self.rho = np.full(n_pairs, -1, np.int64), np.zeros(n_pairs, np.float64)

    def arrays(self) -> dict[str, np.ndarray]:
        """Return both; an overlap of -1 means that they are not known."""
        return {"overlap": self.overlap, "rho": self.rho}

    def check(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Raise InputError for arrays that are no overlaps and rho of these pairs."""
        shape = self.overlap.shape
        expected = {
            "overlap": Expected(np.int64, shape, -1, self.n_cells),
            "rho": Expected(np.float64, shape, *RHO_RANGE),
        }
        check_arrays(arrays, expected)

    def merge(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Take up what others know."""
        known = arrays["overlap"] >= 0
        self.overlap[known], self.rho[known] = arrays["overlap"][known], arrays["rho"][known]
