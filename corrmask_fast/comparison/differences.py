"""Differences between strategies, paired by seed: mean, confidence interval, and how many seeds they would need.

Two models with the same seed and fraction have the same initial weights and see the same cells in the same order, so
their difference is free of what these do. The interval is Student's over the seeds. It does not cover what is the same
for all seeds: the test cells whose losses are taken, and, at the fraction 1, the training cells and their graph.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from corrmask_fast.comparison.measures import Measure
    from corrmask_fast.comparison.results import Results

__all__ = ["Difference"]

SEEDLESS = ("unigram", "cell type")  # baselines
LEVEL, POWER, MOST_SEEDS = 0.95, 0.8, 1000
MANY = f"more than {MOST_SEEDS}"

# Pairs that answer a question of their own, where both strategies are there.
QUESTIONS = (
    ("corrmask", "random-matched", "Does CorrMask do more than mask hub genes more often?"),
    ("corrmask", "corrmask-rewired", "Does the graph matter beyond how many partners each gene has?"),
    ("corrmask-balanced", "random", "What does CorrMask do when it masks every gene of a cell equally often?"),
)  # fmt: skip


@dataclass(frozen=True)
class Difference:
    """``strategy`` minus ``against`` in one measure, paired by seed, at one fraction."""

    fraction: float
    measure: Measure
    strategy: str
    against: str
    n: int
    """Seeds that both have."""
    mean: float
    sd: float
    """Standard deviation over seeds; NaN with one seed, as ``low`` and ``high``."""
    low: float
    high: float
    """Ends of the 95 % confidence interval."""

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval lies on one side of 0."""
        return self.low > 0 or self.high < 0

    @property
    def seeds_needed(self) -> int | None:
        """How many seeds a difference of this mean and spread would need (see :func:`seeds_needed`)."""
        return seeds_needed(self.mean, self.sd)

    @property
    def verdict(self) -> str:
        """``"better"`` or ``"worse"``; ``"higher"`` or ``"lower"`` of a measure without direction; else empty."""
        if not self.excludes_zero:
            return ""
        way = "lower" if self.mean < 0 else "higher"
        if not self.measure.better:
            return way
        return "better" if way == self.measure.better else "worse"

    def interval(self) -> str:
        """Return the mean and its interval as text; with digits enough that an end off 0 is not shown as 0.

        A single seed has no interval, and the text says so.
        """
        if self.n < 2:
            return f"{self.measure.text(self.mean, sign=True)}{self.measure.difference_unit} (1 seed, no interval)"
        digits = self.measure.digits
        nearest = min(abs(self.low), abs(self.high)) * self.measure.scale
        while self.excludes_zero and round(nearest, digits) == 0 and digits < self.measure.digits + 4:
            digits += 1
        mean, low, high = (self.measure.text(each, digits, sign=True) for each in (self.mean, self.low, self.high))
        return f"{mean}{self.measure.difference_unit} [{low}, {high}]"


def all_differences(results: Results) -> list[Difference]:
    """Return each strategy minus the reference, then the pairs of :data:`QUESTIONS`, for each fraction and measure."""
    return [
        difference
        for fraction in results.started
        for strategy, against in pairs(results)
        for measure in results.measures
        if (difference := paired_difference(results, fraction, measure, strategy, against))
    ]


def pairs(results: Results) -> list[tuple[str, str]]:
    """Return which strategies are compared with which, each pair once."""
    names = results.strategies
    first = [(name, results.reference) for name in names if name != results.reference]
    others = [(one, other) for one, other, _ in QUESTIONS if one in names and other in names]
    return list(dict.fromkeys(first + [pair for pair in others if pair[::-1] not in first]))


def paired_difference(
    results: Results, fraction: float, measure: Measure, strategy: str, against: str
) -> Difference | None:
    """Return ``strategy`` minus ``against``, or None if no seed has both.

    Baselines of losses have one row, which is taken for every seed: nothing in them depends on one.
    """
    mine = results.values(strategy, measure.name, fraction)
    others = results.values(against, measure.name, fraction)
    if against in SEEDLESS and len(others) == 1:
        others = dict.fromkeys(mine, next(iter(others.values())))
    values = np.array(by_seed(mine, others))
    if not values.size:
        return None
    mean, sd, low, high = interval(values)
    return Difference(fraction, measure, strategy, against, values.size, mean, sd, low, high)


def by_seed(mine: Mapping[int, float], others: Mapping[int, float]) -> list[float]:
    """Return the differences of two columns, of the seeds that both have."""
    return [mine[seed] - others[seed] for seed in mine if seed in others]


def beside_baselines(results: Results, fraction: float) -> list[Difference]:
    """Return each strategy minus the best baseline, of measures that have a direction and a baseline."""
    found = []
    for measure in results.measures:
        scores = {name: values for name in results.baselines if (values := results.values(name, measure.name, None))}
        if scores and measure.better:
            choose = min if measure.better == "lower" else max
            best = choose(scores, key=lambda name: sum(scores[name].values()) / len(scores[name]))
            ours = (paired_difference(results, fraction, measure, name, best) for name in results.strategies)
            found += [difference for difference in ours if difference]
    return found


def interval(values: Sequence[float] | np.ndarray) -> tuple[float, float, float, float]:
    """Return the mean, the standard deviation and both ends of Student's 95 % interval of (n,) values.

    >>> [round(x, 3) for x in interval([1.0, 2.0, 3.0])]
    [2.0, 1.0, -0.484, 4.484]
    """
    from scipy.special import stdtrit

    values = np.asarray(values, dtype=np.float64)
    mean = float(values.mean())
    if values.size < 2:
        return mean, math.nan, math.nan, math.nan
    sd = float(values.std(ddof=1))
    half = float(stdtrit(values.size - 1, (1 + LEVEL) / 2)) * sd / math.sqrt(values.size)
    return mean, sd, mean - half, mean + half


@lru_cache(maxsize=1024)
def seeds_needed(mean: float, sd: float) -> int | None:
    """Return the fewest seeds with which a paired t-test (two-sided, 5 %) finds such a difference with power 80 %.

    The mean and the standard deviation of the differences are taken as true, so of few seeds the number is rough. None:
    more than 1000 seeds. With one seed, ``sd`` is NaN and nothing is known: None as well.

    >>> seeds_needed(1.0, 1.0), seeds_needed(0.5, 1.0)
    (10, 34)
    """
    from scipy.special import nctdtr, stdtrit

    if math.isnan(sd) or mean == 0:
        return None
    low, high = 1, MOST_SEEDS + 1  # too few; enough, or more than are asked about
    while high - low > 1:
        n = (low + high) // 2
        # From a shift of 40 on the power is 0.998 or more, whatever n is. Far out the distribution underflows to NaN.
        shift = min(abs(mean) * math.sqrt(n) / sd, 40.0) if sd else 40.0
        missed = float(nctdtr(n - 1, shift, stdtrit(n - 1, (1 + LEVEL) / 2)))
        low, high = (n, high) if missed > 1 - POWER else (low, n)
    return high if high <= MOST_SEEDS else None
