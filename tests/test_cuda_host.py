"""The host emulation of CUDA: right kernels run right under every schedule, and every planted fault is found."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

SCHEDULES = [
    {"schedule": 0},
    {"schedule": 1},
    {"schedule": 2, "schedule_seed": 3},
    {"schedule": 2, "schedule_seed": 4, "preempt_percent": 50},
]


@pytest.fixture(scope="module")
def module(cuda_host):
    return cuda_host.launch.HostModule((cuda_host.folder / "selftest.cu").read_text())


@pytest.fixture(scope="module", name="run")
def run_fixture(cuda_host, module):
    """Run a kernel on one guarded output, and return it."""

    def run(name, out, block, *, grid=(1,), inputs=(), read_only=False, **how):
        guarded = cuda_host.launch.Guarded(cuda_host.launch.read_only(out) if read_only else out)
        arrays = [cuda_host.launch.Guarded(array) for array in inputs]
        args = [*(array.buffer.address for array in arrays), guarded.buffer.address]
        args += [np.int32(array.size) for array in inputs]
        module.launch(name, grid, block, args, **how)
        for array in (guarded, *arrays):
            array.finish("array")
        return out

    return run


@pytest.mark.parametrize("how", SCHEDULES)
@pytest.mark.parametrize("threads", [32, 96, 256, 1024])
def test_shared_memory_shuffles_and_barriers(cuda_host, run, how, threads):
    numbers = cuda_host.launch.read_only(np.arange(1000, dtype=np.int32))
    out = np.zeros(4, np.int32)
    run("sum_of_block", out, (threads,), grid=(3,), inputs=[numbers], shared_bytes=4 * threads, **how)
    assert out.tolist() == [499500, 499500, 499500, 3 * threads]


@pytest.mark.parametrize("how", SCHEDULES)
def test_warp_functions(run, how):
    got = run("warp_functions", np.full(64 * 20, -1, np.int32), (64,), **how).reshape(64, 20)
    for thread in range(64):
        lane = thread % 32
        ballot = sum(1 << i for i in range(32) if i % 3 == 0)
        same = sum(1 << i for i in range(32) if i // 5 == lane // 5)
        half = sum(1 << i for i in range(32) if i // 16 == lane // 16 and i % 2 == (lane < 16))
        ffs = 0 if lane == 0 else (lane & -lane).bit_length()
        expected = [
            ballot, thread >= 32, same, 49, lane if lane < 3 else lane - 3, lane if lane > 28 else lane + 3, lane ^ 9,
            100 - 31, sum(range(32)), half, 13, 1, lane.bit_count() + 100 * (32 - lane.bit_length()) + 10000 * ffs,
            2 + (64 - lane) + 41, -1 + 2**30 - 1 - 2**29 + 3, lane ^ 1,
        ]  # fmt: skip
        assert got[thread, :16].view(np.uint32).tolist() == [int(x) % 2**32 for x in expected], thread
        assert (got[thread, 16:] == -1).all()


@pytest.mark.parametrize("how", SCHEDULES)
def test_atomics(run, how):
    out = run("atomics", np.zeros(8, np.uint32), (96,), **how)
    assert out.tolist() == [sum(range(96)), 2**32 - 1, 95, 7, 0, 96, 0, 2**32 - 96]


def test_indices_of_blocks_and_threads(run):
    out = run("indices", np.zeros(2 * 3 * 2 * 24, np.int32), (4, 3, 2), grid=(2, 3, 2))
    assert (out == [1000 * block + thread for block in range(12) for thread in range(24)]).all()


def test_schedules_differ_and_can_be_repeated(run):
    def order(seed):
        out = np.zeros(64, np.int32)
        return run("fault_missing_barrier", out, (64,), schedule=2, schedule_seed=seed).tolist()

    assert order(1) == order(1)
    assert order(1) != order(2)


MESSAGES = {
    "fault_shared_overrun": "wrote outside the 256 bytes of shared memory",
    "fault_write_overrun": "wrote outside the array",
    "fault_input_written": "wrote to an input",
    "fault_divergent_barrier": "while others wait in line",
    "fault_barrier_for_some": "32 wait at a barrier (thread 1 in __syncthreads",
    "fault_exit_before_barrier": "threads wait at the barrier in line",
    "fault_ballot_of_some": "40 in a warp collective (thread 0 in __ballot_sync",
    "fault_mask_lacks_caller": "the mask 0000ffff lacks the caller",
    "fault_shuffle_from_nobody": "reads lane 20, which takes no part",
}


@pytest.mark.parametrize("how", SCHEDULES)
@pytest.mark.parametrize("name", MESSAGES)
def test_a_fault_ends_the_launch_with_a_message(cuda_host, run, name, how):
    with pytest.raises(cuda_host.launch.LaunchError) as error:
        run(name, np.zeros(64, np.int32), (64,), read_only="input" in name, shared_bytes=256, **how)
    assert MESSAGES[name] in str(error.value)


def test_a_launch_that_no_device_takes(cuda_host, run):
    with pytest.raises(cuda_host.launch.LaunchError, match="no device can launch 1056 threads"):
        run("indices", np.zeros(8, np.int32), (1056,))
    with pytest.raises(cuda_host.launch.LaunchError, match="300000 bytes of shared memory"):
        run("indices", np.zeros(8, np.int32), (32,), shared_bytes=300_000)


def test_a_missing_barrier_shows_in_the_results(run):
    right = list(range(63, -1, -1))
    wrong = [
        how for how in SCHEDULES if run("fault_missing_barrier", np.zeros(64, np.int32), (64,), **how).tolist() != right
    ]
    assert all(how in wrong for how in SCHEDULES[2:])


def test_memory_that_was_not_written_shows_in_the_results(run):
    assert (run("fault_uninitialised", np.zeros(32, np.int32), (32,)).view(np.uint32) == 0xCDCDCDCD).all()


def sanitized(cuda_host, sanitizer, *args):
    """Run sanitize.py in a process of its own; return its exit code and what it printed."""
    library = {"thread": "libtsan.so", "address": "libasan.so"}[sanitizer]
    path = subprocess.run(["g++", f"-print-file-name={library}"], text=True, capture_output=True, check=True).stdout
    if not Path(path.strip()).is_absolute():
        pytest.skip(f"g++ has no {library}")
    options = "exitcode=66 halt_on_error=1 detect_leaks=0 detect_stack_use_after_return=0"
    env = os.environ | {"LD_PRELOAD": path.strip(), "TSAN_OPTIONS": options, "ASAN_OPTIONS": options}
    command = [sys.executable, str(cuda_host.folder / "sanitize.py"), sanitizer, *args]
    done = subprocess.run(command, text=True, capture_output=True, env=env, timeout=120, check=False)
    if "unexpected memory mapping" in done.stderr:
        pytest.skip("the thread sanitizer cannot run here: it needs a smaller vm.mmap_rnd_bits")
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("sanitizer", "name"),
    [
        ("thread", "fault_missing_barrier"),
        ("thread", "fault_plain_increment"),
        ("thread", "fault_missing_syncwarp"),
        ("address", "fault_read_overrun"),
        ("address", "fault_write_overrun"),
        ("address", "fault_shared_overrun"),
    ],
)
def test_sanitizers_find_what_results_do_not_show(cuda_host, sanitizer, name):
    code, report = sanitized(cuda_host, sanitizer, "selftest", name)
    assert code == 66, report
    assert name in report
    assert {"thread": "data race", "address": "AddressSanitizer"}[sanitizer] in report


@pytest.mark.parametrize("sanitizer", ["thread", "address"])
def test_the_masking_kernels_are_clean_under_sanitizers(cuda_host, sanitizer):
    code, report = sanitized(cuda_host, sanitizer, "corrmask")
    assert code == 0, report


@pytest.mark.parametrize("sanitizer", ["thread", "address"])
def test_the_kernels_of_a_graph_are_clean_under_sanitizers(cuda_host, sanitizer):
    code, report = sanitized(cuda_host, sanitizer, "graph")
    assert code == 0, report


@pytest.mark.parametrize("sanitizer", ["thread", "address"])
def test_the_kernels_of_encoding_are_clean_under_sanitizers(cuda_host, sanitizer):
    code, report = sanitized(cuda_host, sanitizer, "encode")
    assert code == 0, report


def test_the_thread_sanitizer_finds_a_barrier_that_the_kernels_of_encoding_lack(cuda_host):
    barrier = "    __syncthreads();  // all sums are made of the keys"
    code, report = sanitized(cuda_host, "thread", "encode", barrier, "")
    assert code == 66, report
    assert "data race" in report


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("overlap.cu", "atomicAdd(&bins_u[level], 1u)", "++bins_u[level]"),
        ("correlation.cu", "    __syncthreads();\n    if (!is_mine", "    if (!is_mine"),
    ],
)
def test_the_thread_sanitizer_finds_what_the_kernels_of_a_graph_lack(cuda_host, file, old, new):
    code, report = sanitized(cuda_host, "thread", "graph", file, old, new)
    assert code == 66, report
    assert f"{file}:" in report


@pytest.mark.parametrize("left_out", ["syncthreads 13", "syncwarp 4"])
def test_the_thread_sanitizer_finds_a_barrier_that_the_masking_kernels_lack(cuda_host, left_out):
    code, report = sanitized(cuda_host, "thread", "corrmask", left_out)
    assert code == 66, report
    assert "data race" in report
