"""What the loader expects of CuPy, tried with CuPy itself, without a GPU: where it is installed, and in .ci/floors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from cuda_host import nvrtc

from corrmask_fast import cuda

cupy = pytest.importorskip("cupy", reason="CuPy is not installed here: .ci/floors tries it in environments of its own")
if nvrtc.library() is None:
    pytest.skip("no NVRTC here: pip install nvidia-cuda-nvrtc", allow_module_level=True)
from cupy.cuda import compiler, driver, function, runtime

KERNELS = sorted(path.name for path in (Path(__file__).parents[1] / "kernels").glob("*.cu"))


@pytest.mark.parametrize("name", KERNELS)
def test_cupy_compiles_the_kernels(name, monkeypatch):
    # CuPy asks the driver for the architecture.
    monkeypatch.setattr(compiler, "_get_arch_for_options_for_nvrtc", lambda *_: ("-arch=sm_90", "cubin"))
    source = cuda.kernel_source(name)
    code, _ = compiler.compile_using_nvrtc(source, cuda.OPTIONS, arch="90", filename=name)
    assert code.startswith(b"\x7fELF")
    for kernel in cuda.kernel_names(source):
        assert kernel.encode() in code


def test_modules_and_kernels_have_what_the_loader_and_the_bench_use():
    module = cupy.RawModule(code=cuda.kernel_source(KERNELS[0]), options=cuda.OPTIONS)
    assert callable(module.get_function)
    for name in ("max_dynamic_shared_size_bytes", "preferred_shared_memory_carveout", "kernel", "attributes"):
        assert hasattr(cupy.RawKernel, name), name
    # The names of Device.attributes are those of these constants.
    for name in ("MaxSharedMemoryPerBlockOptin", "MultiProcessorCount"):
        assert isinstance(getattr(runtime, f"cudaDevAttr{name}"), int)
    assert callable(driver.occupancyMaxActiveBlocksPerMultiprocessor)


def test_a_launch_takes_what_the_loader_gives():
    """A kernel without a module: the call gets as far as the driver, and what does not fit is refused before."""
    kernel = function.Function.__new__(function.Function)
    given = (1,), (256,), (np.int64(3), 7, np.float64(0.5), np.uint64(2**64 - 1)), 48_000
    try:
        has_device = runtime.getDeviceCount() > 0
    except runtime.CUDARuntimeError:
        has_device = False
    if has_device:
        pytest.skip("a launch of nothing is tried without a device alone; with one, tests marked gpu launch kernels")
    with pytest.raises(runtime.CUDARuntimeError, match="Driver"):
        kernel(*given, cuda._Stream(1))
    with pytest.raises(AttributeError, match="ptr"):
        kernel(*given, object())
    with pytest.raises(TypeError):
        kernel((1,), (256,), (object(),), 0, cuda._Stream(1))
