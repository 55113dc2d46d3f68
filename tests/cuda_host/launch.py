"""Compile a CUDA source with g++ and launch its kernels on the CPU: see README.md."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from corrmask_fast.cuda import Buffer, kernel_names

HERE = Path(__file__).parent
CACHE = Path(tempfile.gettempdir()) / f"corrmask-cuda-host-{os.getuid()}"
FLAGS = ("-std=c++17", "-fPIC", "-g", "-Wall", "-Wno-unknown-pragmas", f"-I{HERE}")
# No contraction, as CUDA's explicit roundings; no assumptions that a GPU does not make.
KERNEL_FLAGS = ("-ffp-contract=off", "-fno-strict-aliasing", "-fwrapv")
SANITIZERS = {"thread": "-DWATCHED_BY_TSAN", "address": "-DWATCHED_BY_ASAN"}
FORWARD, REVERSE, RANDOM = range(3)
POISON, GUARD, GUARD_BYTES = 0xCD, 0xA5, 256


class LaunchError(RuntimeError):
    """The emulation found what hardware leaves undefined, or memory was written that must not be."""


class _Launch(ctypes.Structure):
    _fields_ = (
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared_bytes", ctypes.c_uint64),
        ("seed", ctypes.c_uint64),
        ("schedule", ctypes.c_int),
        ("preempt_percent", ctypes.c_int),
    )


def missing() -> str | None:
    """Say why kernels cannot be run here; None where they can."""
    if shutil.which("g++") is None:
        return "the host emulation of CUDA needs g++"
    if platform.machine() not in {"x86_64", "aarch64"}:
        return f"the host emulation of CUDA knows x86_64 and aarch64, not {platform.machine()}"
    return None


class HostModule:
    """The kernels of one CUDA source, on the CPU.

    Parameters
    ----------
    source
        CUDA C++ text with its includes pasted in: what CuPy would compile.
    sanitizer
        ``"thread"`` or ``"address"``: the process must run with that sanitizer's library preloaded (sanitize.py).
    """

    def __init__(self, source: str, *, sanitizer: str | None = None):
        # Sanitizers keep their own record of every access: less optimisation, nearer to the source.
        optimise = ("-O1", f"-fsanitize={sanitizer}") if sanitizer else ("-O2",)
        watched = (SANITIZERS[sanitizer],) if sanitizer else ()
        launchers = "\n".join(f"CUDA_HOST_KERNEL({name})" for name in kernel_names(source))
        kernels = _compiled(f'#include "cuda_host.hpp"\n{source}\n{launchers}\n', (*FLAGS, *KERNEL_FLAGS, *optimise))
        runtime = _compiled((HERE / "runtime.cpp").read_text(), (*FLAGS, "-O2", *watched))
        self.library = ctypes.CDLL(str(_linked((kernels, runtime), optimise)))

    def launch(self, name, grid, block, args, *, shared_bytes=0, schedule=FORWARD, preempt_percent=0, schedule_seed=1):
        """Run a kernel on arguments as CuPy takes them: NumPy scalars, and ints that are addresses."""
        how = _Launch(_three(grid), _three(block), shared_bytes, schedule_seed, schedule, preempt_percent)
        values = [np.int64(arg) if isinstance(arg, int) else arg for arg in args]
        cells = [(ctypes.c_char * value.nbytes).from_buffer_copy(value.tobytes()) for value in values]
        pointers = (ctypes.c_void_p * len(cells))(*[ctypes.addressof(cell) for cell in cells])
        message = ctypes.create_string_buffer(1024)
        kernel = getattr(self.library, f"launch_{name}")
        if kernel(ctypes.byref(how), pointers, message, ctypes.c_uint64(len(message))):
            raise LaunchError(message.value.decode())


class FakeCuPy:
    """CuPy's calling convention in front of the emulation, so that a loader of kernels runs from end to end.

    ``launches``: (kernel, grid, block, shared bytes, stream) of each; ``compiled``: the sources; ``limits``: the shared
    memory that kernels were allowed; ``carveouts``: kernel → the share of shared memory that it asked for.
    """

    def __init__(self):
        self.launches, self.compiled, self.limits, self.carveouts = [], [], [], {}
        fake = self

        class RawModule:
            def __init__(self, *, code, options):
                assert "-std=c++17" in options
                fake.compiled.append(code)
                self.host = HostModule(code)

            def get_function(self, name):
                return Kernel(self.host, name)

        class Kernel:
            def __init__(self, host, name):
                self.host, self.name = host, name

            @property
            def kernel(self):
                def run(grid, block, args, shared_bytes, stream):
                    fake.launches.append((self.name, grid, block, shared_bytes, stream.ptr))
                    self.host.launch(self.name, grid, block, args, shared_bytes=shared_bytes)

                return run

            def __setattr__(self, name, value):
                if name == "max_dynamic_shared_size_bytes":
                    fake.limits.append(value)
                if name == "preferred_shared_memory_carveout":
                    fake.carveouts[self.name] = value
                super().__setattr__(name, value)

        attributes = {"MaxSharedMemoryPerBlockOptin": 227 * 1024, "MultiProcessorCount": 2}
        self.RawModule = RawModule
        self.cuda = SimpleNamespace(Device=lambda _: SimpleNamespace(attributes=attributes))


class Guarded:
    """A copy of an array between guard bytes, as kernels are given it.

    Parameters
    ----------
    array
        Any array; None is a null pointer. ``finish`` copies what a kernel wrote back into it, and a read-only array
        must be unchanged.
    offset
        Bytes by which the copy lies off the alignment that device memory has.
    guard_bytes
        On each side; a sanitizer needs none, and sees reads as well.
    """

    def __init__(self, array: np.ndarray | None, *, offset: int = 0, guard_bytes: int = GUARD_BYTES):
        self.array = array
        if array is None:
            self.buffer = Buffer()
            return
        self.memory = np.full(array.nbytes + 2 * guard_bytes + (256 if guard_bytes else 0), GUARD, np.uint8)
        self.begin = (guard_bytes + -self.memory.ctypes.data % 256 + offset) if guard_bytes else 0
        self.inside = self.memory[self.begin : self.begin + array.nbytes]
        self.inside[:] = _bytes(array)
        self.buffer = Buffer(self.memory.ctypes.data + self.begin, array.itemsize)

    def finish(self, name: str) -> None:
        """Raise LaunchError if the guards, or an input, were written; else copy the result back."""
        if self.array is None:
            return
        end = self.begin + self.array.nbytes
        if (self.memory[: self.begin] != GUARD).any() or (self.memory[end:] != GUARD).any():
            raise LaunchError(f"{name}: a thread wrote outside the array")
        if self.array.flags.writeable:
            self.array.reshape(-1).view(np.uint8)[:] = self.inside
        elif (self.inside != _bytes(self.array)).any():
            raise LaunchError(f"{name}: a thread wrote to an input")


def read_only(array: np.ndarray | None) -> np.ndarray | None:
    """Return a view that a kernel must not write."""
    if array is None:
        return None
    view = array.view()
    view.flags.writeable = False
    return view


def poisoned(shape: tuple[int, ...], dtype: type) -> np.ndarray:
    """Return an output array that no kernel has written yet."""
    return np.full(int(np.prod(shape)) * np.dtype(dtype).itemsize, POISON, np.uint8).view(dtype).reshape(shape)


def _bytes(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def _three(size) -> ctypes.Array:
    return (ctypes.c_uint * 3)(*[*size, 1, 1][:3])


@functools.cache
def _compiled(text: str, flags: tuple[str, ...]) -> Path:
    key = _key(text, (HERE / "cuda_host.hpp").read_text(), *flags)
    return _once(CACHE / f"{key}.o", ["g++", *flags, "-c", "-x", "c++", "-"], text)


def _linked(objects: tuple[Path, ...], flags: tuple[str, ...]) -> Path:
    names = [str(path) for path in objects]
    return _once(CACHE / f"{_key(*names, *flags)}.so", ["g++", "-shared", *flags, *names], "")


def _key(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:20]


def _once(target: Path, command: list[str], text: str) -> Path:
    """Run a compiler unless its result is there already; other processes may do the same at the same time."""
    if not target.exists():
        CACHE.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as folder:
            result = Path(folder) / target.name
            done = subprocess.run(
                [*command, "-o", str(result)], input=text, text=True, capture_output=True, check=False
            )
            if done.returncode or "warning:" in done.stderr:
                raise RuntimeError(f"g++ on a kernel:\n{done.stderr}")
            result.replace(target)
    return target
