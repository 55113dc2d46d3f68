"""CUDA masking: the kernels, emulated on the CPU, give the bits of the oracle; so does a device, where there is one."""

from __future__ import annotations

import faulthandler
import os
import resource
import signal

import numpy as np
import pytest
from cuda_cases import FORWARD, MIXED, RANDOM, REVERSE, SOURCE

from corrmask_fast import reference
from corrmask_fast.kernels.layout import CORRMASK, COUNTED, KERNELS
from corrmask_fast.masking.engine import device
from corrmask_fast.testing import (
    LONG_PARAMETERS,
    PARAMETERS,
    Case,
    assert_same,
    cases,
    draw_ids,
    long_cases,
    make_graph,
    make_vocabulary,
)

CASES, LONG_CASES = cases(), long_cases()


@pytest.fixture(scope="module")
def module(cuda_host):
    return cuda_host.launch.HostModule(SOURCE)


@pytest.fixture(scope="module", name="check")
def check_fixture(cuda_host, module):
    """Emulate a case and compare it with the oracle."""

    def check(case, parameters, *, of=module, epoch=None, **how):
        draws = {"epoch": epoch} if epoch is not None else {"draw_ids": draw_ids(case.rows, seed=7)}
        got = cuda_host.masking.emulate(of, case, **draws, **parameters, **how)
        assert_same(case.expected(**draws, **parameters), got, f"{case.name}, {parameters}, {how}")

    return check


# ------------------------------------------------------------------------------------------------ the kernels, emulated


@pytest.mark.parametrize("threads", [32, 64, 96, 160, 224, 416, 992, 1024])
@pytest.mark.parametrize("schedule", [FORWARD, REVERSE, RANDOM])
def test_any_block_and_any_order_of_threads(check, threads, schedule):
    parameters = {"mlm_probability": 0.4, "structural_ratio": 0.9}
    check(MIXED, parameters, threads=threads, schedule=schedule, schedule_seed=threads, preempt_percent=30)


@pytest.mark.parametrize("max_partners", [0, 1, 15, 16, 17, 33, 50, 499])
def test_any_number_of_partners_of_a_hub(check, max_partners):
    check(MIXED, {"max_partners": max_partners, "structural_ratio": 1.0, "mlm_probability": 0.6})


def test_a_hub_with_thousands_of_neighbors(check):
    graph = make_graph(make_vocabulary(9000), degree=3, seed=2)
    assert graph.degrees.max() > 8000
    ids = np.random.default_rng(0).permutation(9000)[None, :1500] + 2
    ids[0, 700] = 2 if 2 not in ids else ids[0, 700]
    for max_partners in (5, 40):
        check(Case("hub", graph, ids), {"max_partners": max_partners, "structural_ratio": 1.0, "mlm_probability": 0.9})


@pytest.mark.parametrize("capacity", [1, 3, 7])
def test_waves_that_overflow_their_list(check, capacity):
    """Seeds are then expanded in many waves, each halved until it fits."""
    for partners in (0, 5):
        arena = device.Arena.make(MIXED.columns, MIXED.graph.vocabulary.size, partners, KERNELS[CORRMASK])
        parameters = {"max_partners": partners, "structural_ratio": 1.0, "mlm_probability": 0.3}
        check(MIXED, parameters, arena=arena._replace(wave_capacity=capacity), schedule=RANDOM)


@pytest.mark.parametrize("blocks", [1, 2, 3])
def test_kernels_that_work_in_device_memory(check, blocks):
    for case in (MIXED, MIXED.astype(np.int32), *(case for case in CASES if case.rows > 2)):
        check(case, {"mlm_probability": 0.3}, scratch_blocks=min(blocks, case.rows), schedule=RANDOM)


@pytest.mark.parametrize("mask_dtype", [np.bool_, np.int8, np.int32, np.int64])
def test_masks_of_any_width(check, mask_dtype):
    """An element is nonzero also where its low bytes are zero."""
    for case in CASES:
        if case.attention_mask is None and case.special_tokens_mask is None:
            continue
        check(case, {}, mask_dtype=mask_dtype)
        if np.dtype(mask_dtype).itemsize > 1:
            big = [
                None if mask is None else mask.astype(mask_dtype) << (8 * np.dtype(mask_dtype).itemsize - 2)
                for mask in (case.attention_mask, case.special_tokens_mask)
            ]
            check(Case(case.name, case.graph, case.input_ids, *big, known=case.known), {}, mask_dtype=mask_dtype)


@pytest.mark.parametrize(("dtype", "offset"), [(np.int64, 8), (np.int32, 4), (np.int32, 8)])
def test_tensors_that_start_anywhere(check, dtype, offset):
    check(MIXED.astype(dtype), {}, offset=offset)


@pytest.mark.parametrize("indptr_dtype", [np.int32, np.int64])
def test_neighbor_tables_of_both_widths(check, indptr_dtype):
    check(MIXED, {"structural_ratio": 1.0}, indptr_dtype=indptr_dtype)


def test_the_running_counter(cuda_host, module):
    """Row r draws counter + offset + r, modulo 2**64."""
    for counter, offset in ((0, 0), (41, 3 << 48), (2**63 - 2, -(1 << 48))):
        draws = np.array([(counter + offset + row) % 2**64 for row in range(MIXED.rows)], np.uint64).view(np.int64)
        got = cuda_host.masking.emulate(module, MIXED, draws=(np.array([counter]), COUNTED, offset))
        assert_same(MIXED.expected(draw_ids=draws), got, f"{counter}, {offset}")


@pytest.fixture
def oracle_with_ties(cuda_host, monkeypatch):
    def words(*counter):
        return tuple(word & cuda_host.masking.TIE_BITS for word in right(*counter))

    right = reference.words
    monkeypatch.setattr(reference, "words", words)


def test_equal_keys_are_settled_as_the_oracle_does(cuda_host, check, oracle_with_ties):
    """Seeds by (w0, column), partners by (key, j), top-up by (w1, column): words of eight bits are equal often."""
    ties = cuda_host.launch.HostModule(cuda_host.masking.with_ties(SOURCE))
    for case in (MIXED, *CASES):
        for number, parameters in enumerate(PARAMETERS):
            check(case, parameters, of=ties, schedule=RANDOM, schedule_seed=number)
    check(LONG_CASES[4], LONG_PARAMETERS[1], of=ties)


def test_a_radix_search_of_all_bytes(cuda_host, check, oracle_with_ties):
    """The top-up goes down to the columns, the last bytes of the key, where it may leave one tie at most."""
    source = cuda_host.masking.with_ties(SOURCE)
    assert source.count("inside > MAX_TIES") == 1
    deep = cuda_host.launch.HostModule(source.replace("inside > MAX_TIES", "inside > 1"))
    for case in (MIXED, LONG_CASES[3]):
        check(case, {"structural_ratio": 0.3}, of=deep)


@pytest.mark.parametrize("rates", [(np.nan, np.nan), (2.0, 2.0), (-1.0, 0.5), (0.5, -3.0), (np.inf, np.inf)])
def test_rates_that_a_device_cannot_refuse_do_no_harm(cuda_host, module, rates):
    """No memory but the outputs is written (the guards hold), and what is masked has its label."""
    got = cuda_host.masking.emulate(module, MIXED, draw_ids=draw_ids(3), rates=np.array(rates), schedule=RANDOM)
    labelled = got.labels != -100
    assert (got.labels[labelled] == MIXED.input_ids[labelled]).all()
    assert (got.input_ids[~labelled] == MIXED.input_ids[~labelled]).all()


# ------------------------------------------------------------------------------------------------ planted faults

FAULTS = {
    "a barrier is missing (ranks of genes)": ("    before += __popc(words[i].bits);\n  }\n  __syncthreads();", ""),
    "a barrier is missing (seeds)": ("{key, begin, degree, 0};\n  }\n  __syncthreads();", ""),
    "a barrier is missing (waves)": ("wave.listed[i], proposals + 1);\n  }\n  __syncthreads();", ""),
    "a syncwarp is missing (first hits)": ("count + __popc(leaders));\n    __syncwarp();", ""),
    "first columns are not kept": ("token.x < STRAY_TOKEN) atomicMin", "token.x < STRAY_TOKEN) atomicExch"),
    "an overrun of the arena": ("  row.end = row.masked", "  row.end = 1024 + row.masked"),
    "an overrun of the labels": ("      if (c + k >= batch.columns) break;", "      "),
    "an input is written": ("batch.labels[at + k] = label[k];", "((i64*)batch.input_ids)[at + k] = 0;"),
}


def fails(function, error):
    """Whether a function raises the error, or crashes, in a process of its own."""
    child = os.fork()
    if child == 0:
        faulthandler.disable()  # a crash is no news
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.alarm(60)
        status = 2
        try:
            function()
            status = 0
        except error:
            status = 1
        finally:
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in {0, 1, -signal.SIGSEGV, -signal.SIGBUS, -signal.SIGABRT}, status
    return status != 0


@pytest.mark.parametrize("name", FAULTS)
def test_planted_faults_are_found(cuda_host, check, name):
    """By results that differ under random schedules, by guards, or by the emulation itself."""
    right, wrong = FAULTS[name]
    assert SOURCE.count(right) == 1
    wrong = wrong or right.replace("__syncthreads();", "").replace("__syncwarp();", "")
    broken = cuda_host.launch.HostModule(SOURCE.replace(right, wrong))
    odd = Case("odd columns", MIXED.graph, MIXED.input_ids[:, :397])

    def run():
        for seed in range(10):
            check(odd, {"mlm_probability": 0.4}, of=broken, schedule=RANDOM, schedule_seed=seed, preempt_percent=50)

    assert fails(run, (AssertionError, cuda_host.launch.LaunchError))
