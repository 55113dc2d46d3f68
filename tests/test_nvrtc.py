"""Every kernels/*.cu compiles for every architecture, without a GPU, and stays within its budget of registers."""

from __future__ import annotations

from pathlib import Path

import pytest
from cuda_host import nvrtc

from corrmask_fast import cuda
from corrmask_fast.kernels.layout import CORRMASK
from corrmask_fast.kernels.layout import KERNELS as STRATEGY_KERNELS
from corrmask_fast.masking.engine import device

if nvrtc.library() is None:
    pytest.skip("no NVRTC here: pip install nvidia-cuda-nvrtc", allow_module_level=True)

KERNELS = sorted(path.name for path in (Path(__file__).parents[1] / "kernels").glob("*.cu"))
ARCHITECTURES = (75, 80, 90, 100)
MASKING = sorted({kernels.stem for kernels in STRATEGY_KERNELS})
REGISTERS = {
    **{f"{name}_{token}": 48 for name in MASKING for token in ("i32", "i64")},
    **{f"{name}_{token}_scratch": 64 for name in MASKING for token in ("i32", "i64")},
    "count_columns": 32, "fill_columns": 32, "rank_columns": 32, "rank_columns_scratch": 40,
    "fill_dense": 32, "keep_strongest": 64,
    "encode_rows": 56, "pad_rows": 32,
    "fill_levels": 32, "correlate_overlaps": 40, "correlate_overlaps_scratch": 48,
}  # fmt: skip
REGISTERS_ON_SM_75 = 64  # all that 1 024 threads, the most of a multiprocessor, can have
SM_90 = {"registers": 65536, "shared_bytes": 228 * 1024, "shared_of_block": 227 * 1024, "reserved_of_block": 1024}


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("name", KERNELS)
def test_compiles_without_a_warning(name, arch):
    binary, log = nvrtc.compiled(name, arch)
    assert binary[:4] == b"\x7fELF"
    said = [line for line in log.splitlines() if line and not line.startswith("ptxas")]
    assert not said, log
    assert "warning" not in log.lower()


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_registers_stay_within_budget(arch):
    for name in KERNELS:
        found = nvrtc.properties(nvrtc.compiled(name, arch)[1])
        assert set(found) == set(cuda.kernel_names(cuda.kernel_source(name)))
        for kernel, (registers, spills, shared) in found.items():
            most = REGISTERS_ON_SM_75 if arch == 75 else REGISTERS[kernel]
            assert registers <= most, f"{kernel} on sm_{arch}: {registers} registers"
            assert spills == 0, f"{kernel} on sm_{arch}: {spills} bytes of registers are spilled"
            assert shared == 0, "shared memory is the arena's alone"


@pytest.mark.parametrize("vocab_size", [25_426, 20_275])
def test_five_rows_of_2048_genes_live_on_a_multiprocessor_at_a_time(vocab_size):
    """By registers and by shared memory, on an H100 or H200."""
    arena = device.Arena.make(2048, vocab_size, 5, STRATEGY_KERNELS[CORRMASK])
    assert SM_90["registers"] // (REGISTERS["corrmask_i64"] * cuda.THREADS) >= 5
    assert SM_90["shared_bytes"] // (arena.bytes + SM_90["reserved_of_block"]) >= 5


@pytest.mark.parametrize(("columns", "vocab_size"), [(8192, 25_426), (8192, 65_536), (2048, 500_000)])
def test_long_rows_and_large_vocabularies_fit_shared_memory(columns, vocab_size):
    assert device.Arena.make(columns, vocab_size, 5, STRATEGY_KERNELS[CORRMASK]).bytes <= SM_90["shared_of_block"]
