"""Compile a CUDA source as CuPy would, without a GPU: the library of the wheel nvidia-cuda-nvrtc."""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import re
from pathlib import Path

from corrmask_fast import cuda


@functools.cache
def library():
    """The library, or None."""
    spec = importlib.util.find_spec("nvidia")
    for root in spec.submodule_search_locations if spec else ():
        for path in sorted(Path(root).glob("*/lib/libnvrtc.so.*"), reverse=True):
            for builtins in path.parent.glob("libnvrtc-builtins.so.*"):
                ctypes.CDLL(str(builtins), mode=ctypes.RTLD_GLOBAL)  # it does not find them by itself
            return ctypes.CDLL(str(path))
    return None


@functools.cache
def compiled(name: str, arch: int) -> tuple[bytes, str]:
    """Compile a file of kernels/; return the machine code and the compiler's log."""
    nvrtc, program = library(), ctypes.c_void_p()
    source = cuda.kernel_source(name).encode()
    assert nvrtc.nvrtcCreateProgram(ctypes.byref(program), source, name.encode(), 0, None, None) == 0
    options = [*cuda.OPTIONS, f"-arch=sm_{arch}", "--ptxas-options=-v", "-ftz=true"]  # the last is CuPy's own
    failed = nvrtc.nvrtcCompileProgram(
        program, len(options), (ctypes.c_char_p * len(options))(*map(str.encode, options))
    )
    log = _result_of(nvrtc, program, "ProgramLog").decode().strip("\0\n ")
    assert not failed, log
    return _result_of(nvrtc, program, "CUBIN"), log


def _result_of(nvrtc, program, what):
    size = ctypes.c_size_t()
    assert getattr(nvrtc, f"nvrtcGet{what}Size")(program, ctypes.byref(size)) == 0
    text = ctypes.create_string_buffer(size.value)
    assert getattr(nvrtc, f"nvrtcGet{what}")(program, text) == 0
    return text.raw


def version() -> str:
    """The compiler's version."""
    major, minor = ctypes.c_int(), ctypes.c_int()
    library().nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
    return f"NVRTC {major.value}.{minor.value}"


def properties(log):
    """Kernel → (registers, spilled bytes, static shared bytes), as ptxas tells them."""
    found = {}
    for part in log.split("Function properties for ")[1:]:
        name = part.split()[0]
        numbers = {
            key: int(value) for value, key in re.findall(r"(\d+) (bytes spill stores|registers|bytes smem)", part)
        }
        found[name] = (numbers["registers"], numbers["bytes spill stores"], numbers.get("bytes smem", 0))
    return found
