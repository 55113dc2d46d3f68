"""Building a dependency graph, stage by stage, through the seam by which ``build_dependency_graph`` takes them."""

from __future__ import annotations

import time
from collections import defaultdict
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from corrmask_fast import build_dependency_graph
from corrmask_fast.graph.build import building
from gpu.devices import clock_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from corrmask_fast import Corpus, DependencyGraph

REST = "sampling and assembling"
TOTAL = "end to end"
PRODUCT = "floor: float64 product at the rate of a large one"


class TimedStages:
    """The stages of a build, each timed; the device is waited for before and after each."""

    def __init__(self, stages: Any, device: torch.device) -> None:
        self._stages, self._device = stages, device
        self.seconds: dict[str, float] = defaultdict(float)

    def __getattr__(self, name: str) -> Any:
        stage = getattr(self._stages, name)
        if not callable(stage) or isinstance(stage, type):
            return stage

        def timed(*arguments: Any, **keywords: Any) -> Any:
            self._wait()
            began = time.perf_counter()
            result = stage(*arguments, **keywords)
            self._wait()
            self.seconds[name] += time.perf_counter() - began
            return result

        return timed

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


@contextmanager
def timed_stages(device: torch.device) -> Iterator[list[TimedStages]]:
    """Let ``build_dependency_graph`` take timed stages; the list holds those of each build."""
    given, used = building._choose_stages, []

    def stages(*arguments: Any, **keywords: Any) -> TimedStages:
        used.append(TimedStages(given(*arguments, **keywords), device))
        return used[-1]

    building._choose_stages = stages
    try:
        yield used
    finally:
        building._choose_stages = given


def build_timed(corpus: Corpus, device: torch.device, **parameters: Any) -> tuple[DependencyGraph, dict[str, float]]:
    """Build a graph; return it and the seconds of each stage, of the rest, and end to end."""
    with timed_stages(device) as used:
        began = time.perf_counter()
        graph = build_dependency_graph(corpus, device=device.type, progress=False, **parameters)
        total = time.perf_counter() - began
    seconds = dict(used[0].seconds)
    return graph, {**seconds, REST: total - sum(seconds.values()), TOTAL: total}


def product_seconds(n_genes: int, n_cells: int, device: torch.device) -> list[float]:
    """Seconds that the product of all genes' ranks takes at the rate of one large product, in a few rounds.

    The sums of half the pairs are needed: n_genes² · n_cells operations.
    """
    rows, inner = (4_096, 8_192) if device.type == "cuda" else (64, 64)
    a, b = (torch.rand((rows, inner), dtype=torch.float64, device=device) for _ in range(2))
    out = a @ b.t()
    clock, done = clock_of(device), 2.0 * rows * rows * inner
    return [n_genes**2 * n_cells / done * clock(lambda: torch.mm(a, b.t(), out=out), 1) for _ in range(5)]


def percentiles(rounds: list[dict[str, float]]) -> dict[str, np.ndarray]:
    """Return p20, p50, p80 of each stage in microseconds."""
    return {name: np.percentile([one[name] for one in rounds], [20, 50, 80]) * 1e6 for name in rounds[0]}
