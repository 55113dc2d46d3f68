"""The contestants under pytest-benchmark: ``pytest bench --benchmark-enable``. Without it, each runs once.

pytest-benchmark times them one after the other and compares runs over time (``--benchmark-autosave``); for ratios on a
machine that is not quiet, take ``bench/run.py``, which times them in turns.
"""

from __future__ import annotations

import pytest
from contestants import input_race, masking_race, packers, packing_race, pipelines, reference_race, thread_race
from harness.parity import check_masker, check_packers, check_pipelines

from corrmask_fast import set_num_threads


def time_one(benchmark, contestants, k, group):
    contestant = contestants[k]
    benchmark.group = group
    benchmark.name = contestant.name
    benchmark.extra_info["cells"] = contestant.rows
    if contestant.prepare is not None:
        contestant.prepare()
    benchmark(contestant.run)


@pytest.mark.parametrize("k", range(6))
@pytest.mark.parametrize("which", [0, -1])
def test_input(benchmark, workload, which, k):
    batch = workload.size.batches[which]
    check_pipelines(workload, batch, pipelines(workload))
    time_one(benchmark, input_race(workload, batch), k, f"input, batch {batch}")


@pytest.mark.parametrize("k", range(5))
@pytest.mark.parametrize("which", [0, -1])
def test_masking(benchmark, workload, which, k):
    batch = workload.size.batches[which]
    check_masker(workload, batch)
    time_one(benchmark, masking_race(workload, batch), k, f"masking, batch {batch}")


@pytest.mark.parametrize("k", range(2))
@pytest.mark.parametrize("which", [0, -1])
def test_packing(benchmark, workload, which, k):
    batch = workload.size.batches[which]
    check_packers(workload, batch, *packers(workload, batch))
    time_one(benchmark, packing_race(workload, batch), k, f"packing, batch {batch}")


@pytest.mark.parametrize("k", range(2))
def test_reference(benchmark, workload, k):
    batch = workload.size.batches[-1]
    check_masker(workload, batch)
    time_one(benchmark, reference_race(workload, batch), k, f"reference, batch {batch}")


@pytest.mark.parametrize("k", range(2))
@pytest.mark.parametrize("ragged", [False, True], ids=["masker", "collator"])
@pytest.mark.parametrize("which", [0, -1])
def test_threads(benchmark, workload, which, ragged, k):
    batch = workload.size.thread_batches[which]
    check_masker(workload, batch)
    try:
        time_one(benchmark, thread_race(workload, batch, ragged=ragged), k, f"threads, ragged={ragged}, batch {batch}")
    finally:
        set_num_threads(1)
