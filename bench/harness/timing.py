"""Timing of several ways of doing one thing, in turns: what disturbs the machine disturbs all of them alike."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


@dataclass(frozen=True)
class Contestant:
    """One way of doing it; ``run`` handles ``rows`` cells, ``prepare`` comes before it off the clock."""

    name: str
    run: Callable[[], Any]
    rows: int
    threads: int = 1
    prepare: Callable[[], Any] | None = None


class Timing(NamedTuple):
    """Microseconds per cell: percentiles over the rounds."""

    p20: float
    p50: float
    p80: float


def host_clock(run: Callable[[], Any], repeats: int) -> float:
    """Seconds that ``repeats`` calls take."""
    began = time.perf_counter()
    for _ in range(repeats):
        run()
    return time.perf_counter() - began


def race(
    contestants: Sequence[Contestant],
    *,
    rounds: int,
    sample_ms: float = 50.0,
    clock: Callable[[Callable[[], Any], int], float] = host_clock,
) -> dict[str, Timing]:
    """Time every contestant once in each round; a sample lasts at least ``sample_ms``, or one call."""
    repeats = [_repeats(contestant, sample_ms, clock) for contestant in contestants]
    samples = np.empty((len(contestants), rounds))
    for i in range(rounds):
        # Forwards, then backwards: nobody always follows the same one and its traces in the caches.
        for k in range(len(contestants)) if i % 2 == 0 else reversed(range(len(contestants))):
            samples[k, i] = _sample(contestants[k], repeats[k], clock)
    return {
        contestant.name: Timing(*np.percentile(row, [20, 50, 80]))
        for contestant, row in zip(contestants, samples, strict=True)
    }


def _sample(contestant: Contestant, repeats: int, clock: Callable[[Callable[[], Any], int], float]) -> float:
    """Microseconds per cell over ``repeats`` calls."""
    if contestant.prepare is not None:
        contestant.prepare()
    return clock(contestant.run, repeats) * 1e6 / (repeats * contestant.rows)


def _repeats(contestant: Contestant, sample_ms: float, clock: Callable[[Callable[[], Any], int], float]) -> int:
    """Warm up; then how many calls fill a sample."""
    _sample(contestant, 1, clock)
    milliseconds = _sample(contestant, 1, clock) * contestant.rows / 1000
    if milliseconds < sample_ms:
        milliseconds = min(milliseconds, *(_sample(contestant, 1, clock) * contestant.rows / 1000 for _ in range(2)))
    return max(1, math.ceil(sample_ms / milliseconds))
