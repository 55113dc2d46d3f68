"""CUDA masking by every strategy, several graphs, ranges, priorities: emulated, and on a device where there is one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from cuda_cases import FORWARD, MIXED, RANDOM, REVERSE, arguments, as_result

from corrmask_fast import InputError, cuda
from corrmask_fast.masking.engine import ops
from corrmask_fast.testing import (
    STRATEGY_PARAMETERS,
    WEIGHTED_PARAMETERS,
    Case,
    assert_same,
    cases,
    draw_ids,
    long_cases,
    make_graph,
    make_vocabulary,
)

CASES, LONG_CASES = cases(), long_cases()
# The file of each strategy's kernels.
STEMS = {name: name for name in ("random", "span", "pmi", "corrmask")}
STEMS |= {"weighted": "random", "corrmask-balanced": "balanced", "gene-sets": "gene_sets"}
RANGES = (
    {"mlm_probability": (0.1, 0.6), "structural_ratio": (0.2, 0.9)},
    {"strategy": "span", "mlm_probability": (0.2, 0.5)},
    {"strategy": "random", "mlm_probability": (0.05, 0.9), "seed": 4},
)


@pytest.fixture(scope="module")
def modules(cuda_host):
    """The kernels of each strategy, compiled once."""
    return {name: cuda_host.launch.HostModule(cuda.kernel_source(f"{stem}.cu")) for name, stem in STEMS.items()}


@pytest.fixture(scope="module", name="check")
def check_fixture(cuda_host, modules):
    """Emulate a case and compare it with the oracle."""

    def check(case, parameters, *, of=modules, epoch=None, **how):
        draws = {"epoch": epoch} if epoch is not None else {"draw_ids": draw_ids(case.rows, seed=7)}
        module = of[parameters.get("strategy", "corrmask")]
        got = cuda_host.masking.emulate(module, case, **draws, **parameters, **how)
        given = {"priorities": how["priorities"]} if "priorities" in how else {}
        assert_same(case.expected(**draws, **parameters, **given), got, f"{case.name}, {parameters}")

    return check


@pytest.mark.parametrize("threads", [32, 160, 1024])
@pytest.mark.parametrize("schedule", [FORWARD, REVERSE, RANDOM])
def test_any_block_and_any_order_of_threads(check, threads, schedule):
    for parameters in (*STRATEGY_PARAMETERS[1:14:2], WEIGHTED_PARAMETERS[2]):
        how = {"threads": threads, "schedule": schedule, "schedule_seed": threads, "preempt_percent": 30}
        check(MIXED, {**parameters, "mlm_probability": 0.4}, **how)


@pytest.mark.parametrize("blocks", [1, 2])
def test_kernels_that_work_in_device_memory(check, blocks):
    for parameters in (*STRATEGY_PARAMETERS[::2], WEIGHTED_PARAMETERS[2]):
        check(MIXED, parameters, scratch_blocks=blocks, schedule=RANDOM)
        check(MIXED.astype(np.int32), parameters, scratch_blocks=blocks, schedule=RANDOM)


@pytest.mark.parametrize("strategy", ["span", "pmi", "corrmask-balanced", "gene-sets"])
def test_equal_keys_are_settled_as_the_oracle_does(cuda_host, check, monkeypatch, strategy):
    """Words of eight bits are equal often: groups by (w0, first column), the top-up by (w1, column)."""
    from corrmask_fast import reference

    right = reference.words
    monkeypatch.setattr(reference, "words", lambda *at: tuple(word & cuda_host.masking.TIE_BITS for word in right(*at)))
    source = cuda.kernel_source(f"{STEMS[strategy]}.cu")
    ties = {strategy: cuda_host.launch.HostModule(cuda_host.masking.with_ties(source))}
    for case in (MIXED, *CASES):
        for number, parameters in enumerate(STRATEGY_PARAMETERS):
            if parameters["strategy"] == strategy:
                check(case, parameters, of=ties, schedule=RANDOM, schedule_seed=number)


def test_one_run_of_a_whole_row(check):
    """Every gene is followed by the next one: nothing but the quota ends the run."""
    ids = np.tile(np.arange(2, 402), (2, 1))
    case = Case("one run", make_graph(make_vocabulary(500)), ids)
    every = cases()[2].pairs.__class__(
        (np.arange(503) - 2).clip(0, 498), np.arange(3, 501), np.ones(498), np.full(498, 60), case.graph.vocabulary
    )
    object.__setattr__(case, "pairs", every)
    for p in (0.15, 0.9):
        check(case, {"strategy": "pmi", "mlm_probability": p}, schedule=RANDOM, preempt_percent=30)


@pytest.mark.parametrize("rates", [(np.nan, np.nan), (2.0, 2.0), (-1.0, 0.5), (np.inf, np.inf)])
@pytest.mark.parametrize("strategy", ["span", "pmi", "random", "corrmask-balanced", "gene-sets"])
def test_rates_that_a_device_cannot_refuse_do_no_harm(cuda_host, modules, rates, strategy):
    how = {"draw_ids": draw_ids(3), "rates": np.array(rates), "schedule": RANDOM, "strategy": strategy}
    got = cuda_host.masking.emulate(modules[strategy], MIXED, **how)
    labelled = got.labels != -100
    assert (got.labels[labelled] == MIXED.input_ids[labelled]).all()
    assert (got.input_ids[~labelled] == MIXED.input_ids[~labelled]).all()


FAULTS = {  # one a strategy: each costs a compilation
    "span": ("<< LENGTH_SHIFT;\n  __syncthreads();", "<< LENGTH_SHIFT;\n"),  # a barrier is missing (lengths)
    "pmi": ("    __syncthreads();  // the first word of a run may be another thread's\n", ""),
    "corrmask-balanced": ("    __syncthreads();  // positions and words are other threads'\n", ""),
    "gene-sets": (
        "atomicAdd(&row.state->listed, fresh);\n  __syncthreads();\n",
        "atomicAdd(&row.state->listed, fresh);\n",
    ),
}


@pytest.mark.parametrize("strategy", FAULTS)
def test_planted_faults_are_found(cuda_host, check, strategy):
    source, (right, wrong) = cuda.kernel_source(f"{STEMS[strategy]}.cu"), FAULTS[strategy]
    assert source.count(right) == 1
    broken = {strategy: cuda_host.launch.HostModule(source.replace(right, wrong))}

    def run():
        for seed in range(10):
            parameters = {"strategy": strategy, "mlm_probability": 0.5}
            check(MIXED, parameters, of=broken, schedule=RANDOM, schedule_seed=seed, preempt_percent=50)

    with pytest.raises((AssertionError, cuda_host.launch.LaunchError)):
        run()


# ---------------------------------------------------------------------------------------------------- the loader


@pytest.mark.parametrize("parameters", [*STRATEGY_PARAMETERS[::2], *WEIGHTED_PARAMETERS[:3]], ids=str)
def test_the_loader_equals_the_oracle_to_the_bit(emulated_cuda, parameters):
    for case in (MIXED, MIXED.astype(np.int32), *CASES[:4]):
        got = ops.mask_on_device(*arguments(case, **parameters))
        expected = case.expected(draw_ids=draw_ids(case.rows, seed=7), **parameters)
        assert_same(expected, as_result(got), f"{case.name}, {parameters}")
    assert emulated_cuda.launches[0][0] == f"{STEMS[parameters.get('strategy', 'corrmask')]}_i64"
    emulated_cuda.device.shared_limit = 4_000
    got = ops.mask_on_device(*arguments(MIXED, **parameters))
    assert emulated_cuda.launches[-1][0] == f"{STEMS[parameters.get('strategy', 'corrmask')]}_i64_scratch"
    assert_same(MIXED.expected(draw_ids=draw_ids(3, seed=7), **parameters), as_result(got), "scratch")


def test_priorities_are_checked_on_a_device_that_validates(emulated_cuda):
    given = torch.zeros(MIXED.input_ids.shape, dtype=torch.int64)
    ops.mask_on_device(*arguments(MIXED, priorities=given, validate=True))
    for bad in (-1, 2**32):
        given[1, 2] = bad
        with pytest.raises(InputError, match=rf"priorities must be in .*; got {bad} in row 1, column 2"):
            ops.mask_on_device(*arguments(MIXED, priorities=given, validate=True))
    got = ops.mask_on_device(*arguments(MIXED, priorities=given))
    expected = MIXED.expected(draw_ids=draw_ids(3, seed=7), priorities=(given % 2**32).numpy())
    assert_same(expected, as_result(got), "their lower 32 bits")


def test_row_numbers_through_the_loader(emulated_cuda):
    given = torch.from_numpy(np.random.default_rng(0).integers(0, 2**32, MIXED.input_ids.shape))
    got = ops.mask_on_device(*arguments(MIXED, priorities=given))
    expected = MIXED.expected(draw_ids=draw_ids(3, seed=7), priorities=given.numpy())
    assert_same(expected, as_result(got), "priorities")
    got = ops.mask_on_device(*arguments(MIXED, graph_ids=torch.tensor([0, 5, 0])))
    expected = MIXED.expected(draw_ids=draw_ids(3, seed=7), structural_ratio=0.0)
    assert np.array_equal(as_result(got).labels[1], expected.labels[1])


# ------------------------------------------------------------------------------------------------------- a device


@pytest.mark.gpu
def test_device_graph_replays_follow_the_step(gpu):
    """A captured graph holds the schedule: replays mask by the step that stands in the tensor."""
    from corrmask_fast import Cosine, SpanMasker

    vocabulary = MIXED.graph.vocabulary
    masker = SpanMasker(vocabulary, mlm_probability=Cosine(0.1, 0.5, 10)).to(gpu)
    ids, draws = torch.from_numpy(MIXED.input_ids).to(gpu), torch.arange(3, device=gpu)
    step = torch.zeros(1, dtype=torch.int64, device=gpu)
    masker.set_step(step)
    masker(ids, draw_ids=draws)  # loads the kernel
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        masker.set_step(step)
        masked = masker(ids, draw_ids=draws)
    for number in (0, 3, 10, 5):
        step.fill_(number)
        graph.replay()
        torch.cuda.synchronize()
        there = SpanMasker(vocabulary, mlm_probability=Cosine(0.1, 0.5, 10))
        there.set_step(number)
        expected = there(torch.from_numpy(MIXED.input_ids), draw_ids=torch.arange(3))
        assert torch.equal(masked.labels.cpu(), expected.labels)
