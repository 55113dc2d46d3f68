"""Every kernel that masks, by strategy and by option, beside the device's copy of the same bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from harness.goals import Goal
from harness.timing import Contestant
from strategies import gene_sets

from corrmask_fast import CorrMasker, PMITable, make_masker
from corrmask_fast.graph.dependency_graph import graph_of_pairs
from corrmask_fast.kernels.layout import FUNCTION, SAMPLED
from corrmask_fast.testing import Case, assert_same
from gpu import exercise, masking

if TYPE_CHECKING:
    from collections.abc import Callable

    from harness.workload import Workload

    from corrmask_fast import DependencyGraph
    from corrmask_fast.masking.base import Masker

PMI_CELLS, MIN_COUNT = 1_000, 5  # the table of pairs is made from so many cells
N_GRAPHS = 4
STRATEGIES = ("random", "weighted", "span", "pmi", "corrmask", "corrmask-balanced", "gene-sets")
NARROW, OUTSIDE = "corrmask, int32 tokens", "corrmask, in device memory"
GOALS = tuple(
    Goal(f"{name}, beside the copy", "strategies", name, (masking.COPY,), at_most=4, batches=masking.LARGE)
    for name in STRATEGIES
)


class Entry(NamedTuple):
    """A masker on the CPU, and what its batches are given beside the tokens, there too."""

    masker: Masker
    given: dict[str, torch.Tensor]


def entries(workload: Workload, batch: int) -> dict[str, Entry]:
    """Return every strategy at its defaults, then CorrMask by its options, then kernels that go by priorities."""
    graph, rows = workload.graph, workload.rows(min(batch, 64))
    case = Case("bench", graph, rows)
    few = workload.corpus.take(np.arange(min(PMI_CELLS, workload.corpus.n_cells)))
    pairs = PMITable.from_corpus(few, min_count=MIN_COUNT, progress=False)
    sources: dict[str, Any] = {"graph": graph, "pmi": pairs, "sets": gene_sets(workload)}
    graphs = [graph, *(permuted(graph, seed) for seed in range(1, N_GRAPHS))]
    rng = np.random.default_rng(0)
    priorities = {"priorities": torch.from_numpy(rng.integers(0, 2**32, (batch, rows.shape[1])))}
    weighted: dict[str, dict[str, Any]] = {"weighted": {"weights": case.weights}}
    ranges = {"mlm_probability": (0.1, 0.2), "structural_ratio": (0.25, 0.75)}
    return {
        **{name: Entry(make_masker(name, **sources, **weighted.get(name, {})), {}) for name in STRATEGIES},
        "corrmask, partners by weight": Entry(CorrMasker(graph, partners="weighted"), {}),
        "corrmask, genes and partners by weight": Entry(
            CorrMasker(graph, partners="weighted", weights=case.weights), {}
        ),
        f"corrmask, {N_GRAPHS} graphs": Entry(CorrMasker(graphs), {"graph_ids": torch.arange(batch) % N_GRAPHS}),
        "corrmask, rates of ranges": Entry(CorrMasker(graph, **ranges), {}),
        "corrmask, groups replaced whole": Entry(CorrMasker(graph, replace="group"), {}),
        "corrmask, given priorities": Entry(CorrMasker(graph), priorities),
        "function, its answer given": Entry(exercise.by_priorities(case, FUNCTION), priorities),
        "mam, its draws given": Entry(exercise.by_priorities(case, SAMPLED), priorities),
    }


def permuted(graph: DependencyGraph, seed: int) -> DependencyGraph:
    """Return the graph with its genes renamed at random: as many partners, other ones."""
    vocabulary, rng = graph.vocabulary, np.random.default_rng(seed)
    lo, hi = vocabulary.gene_range
    new = np.arange(vocabulary.size)
    new[lo:hi] = rng.permutation(new[lo:hi])
    first = np.repeat(np.arange(vocabulary.size), graph.degrees)
    once = first < graph.indices
    return graph_of_pairs(new[first[once]], new[graph.indices[once]], graph.rho[once], vocabulary)


def strategies_race(workload: Workload, batch: int, device: torch.device, tally: exercise.Tally) -> list[Contestant]:
    """All maskers mask the same padded batch, those that gave the CPU's masks; the tally has the others."""
    on_host = torch.from_numpy(workload.rows(batch))
    ids = on_host.to(device)
    contestants = [Contestant(masking.COPY, masking.copy_of_the_bytes(ids), 1)]
    for name, (masker, given) in entries(workload, batch).items():
        want = masker(on_host, epoch=1, **given)
        there, given_there = masker.to(device), {key: tensor.to(device) for key, tensor in given.items()}
        right = len(tally.wrong)
        with tally.comparing(f"{name}, batch {batch}", exercise.Given(name, masker).stem):
            assert_same(want, exercise.first_rows(there(ids, epoch=1, **given_there), batch), name)
        if len(tally.wrong) > right:
            continue
        contestants.append(Contestant(name, call(there, ids, given_there), 1))
        if name == "corrmask":
            contestants.append(Contestant(NARROW, call(there, ids.int(), {}), 1))
            if device.type == "cuda":
                contestants.append(Contestant(OUTSIDE, outside(call(there, ids, {}), device), 1))
    return contestants


def call(masker: Masker, ids: torch.Tensor, given: dict[str, torch.Tensor]) -> Callable[[], Any]:
    """Return a call of a masker that counts its draws."""
    return lambda: masker(ids, **given)


def outside(run: Callable[[], Any], device: torch.device) -> Callable[[], Any]:
    """Return a call whose rows seem too long for shared memory."""

    def in_device_memory() -> Any:
        with exercise.small_shared_memory(device):
            return run()

    return in_device_memory
