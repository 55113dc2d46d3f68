"""The tool that predicts: occupancy by the documented rules, and a run from end to end where its tools are."""

import re
import subprocess
import sys

import pytest

from gpu import predict


def test_blocks_of_a_multiprocessor():
    assert predict.blocks_of(90, 48, 41_120) == 5  # 40 warps of 48 registers
    assert predict.blocks_of(90, 32, 41_120) == 5  # shared memory: 5 · 42 144 of 233 472 bytes
    assert predict.blocks_of(90, 32, 0) == 8  # 64 warps
    assert predict.blocks_of(80, 48, 41_120) == 3
    assert predict.blocks_of(75, 64, 41_120) == 1
    assert predict.SM[90].carveouts[predict.smallest_carveout(90, 41_120)] == 64


def test_time_is_bound_by_bytes_issue_or_latency():
    row = predict.Row(
        {}, {}, 4_000, {"alu": 1_000, "fma": 0, "slow": 0, "shuffle": 0}, 0, 0, 0, 0, 0, 10_000.0, 10_000.0
    )
    short, long = (predict.predicted_s(row, n, 5, 50_000) for n in (12, 132 * 1_000))
    assert short == pytest.approx(3e-6 + 10_000 / 1.98e9)
    assert long == pytest.approx(3e-6 + 132 * 1_000 * 50_000 / 4.3e12)
    assert predict.predicted_s(row, 132 * 1_000, 1, 0) > predict.predicted_s(row, 132 * 1_000, 5, 0)


def test_a_run_from_end_to_end():
    if predict.nvrtc.library() is None:
        pytest.skip("no NVRTC here: pip install nvidia-cuda-nvrtc")
    if predict.sass.find_nvdisasm() is None:
        pytest.skip("no nvdisasm here: pip install nvidia-cuda-nvdisasm")
    command = [sys.executable, predict.__file__, "--smoke", "--rows", "1", "--attention"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert re.search(r"\| corrmask_i64 \| \d+ \| 0 \| 0 \|", printed)
    assert re.search(r"\| draw_words \| [\d,]+ \|", printed)
    assert re.search(r"\| 16,384 \| [\d.]+ \|", printed)
