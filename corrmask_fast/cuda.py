"""CUDA kernels of ``kernels/*.cu``: compiled by CuPy (NVRTC), launched on torch's current stream, without a copy.

A new kernel is one ``.cu`` file and one function that allocates its outputs and calls :meth:`CudaDevice.launch`.
"""

from __future__ import annotations

import functools
import importlib.util
import re
from importlib import resources
from typing import TYPE_CHECKING, Any, NamedTuple

from corrmask_fast.errors import InputError, import_extra

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

__all__ = ["Buffer", "CudaDevice", "can_use_cuda", "kernel_source", "open_device"]

THREADS = 256  # of a block
GLOBAL = 'extern "C" __global__ void'  # how a kernel begins
# Per cent of what shared memory and the L1 cache share. By default the driver may choose as little as one block needs:
# then one row of CorrMask lives on a multiprocessor in place of five.
MOST_SHARED = 100
OPTIONS = ("-std=c++17", "-lineinfo")


def kernel_source(name: str) -> str:
    """Return the text of a file of ``kernels/`` with its own includes pasted in.

    CuPy's cache on disk sees the text it is given and nothing else: an included header that changed would go unnoticed.
    ``#line`` keeps the compiler's messages pointing at the files.

    Examples
    --------
    >>> 'extern "C" __global__ void' in kernel_source("corrmask.cu")
    True
    """
    return _pasted(name, set())


def _pasted(name: str, pasted: set[str]) -> str:
    pasted.add(name)
    lines = resources.files("corrmask_fast.kernels").joinpath(name).read_text(encoding="utf-8").split("\n")
    out = [f'#line 1 "{name}"']
    for number, line in enumerate(lines, 1):
        include = re.fullmatch(r'#include "([\w.]+)"', line)
        if include is None:
            out.append(line)
            continue
        if include[1] not in pasted:
            out.append(_pasted(include[1], pasted))
        out.append(f'#line {number + 1} "{name}"')
    return "\n".join(out)


# ---------------------------------------------------------------------------------------------------------- devices


class _Stream(NamedTuple):
    """What CuPy reads of a stream."""

    ptr: int


class CudaDevice:
    """The kernels on one device, and what a launch must know about it.

    Attributes
    ----------
    shared_limit
        Bytes of shared memory that one block can have.
    processors
        Multiprocessors.
    """

    def __init__(self, index: int) -> None:
        import torch

        major = (torch.version.cuda or "13").partition(".")[0]
        self._cupy = import_extra("cupy", f"cuda{major}")
        self._index = index
        self._functions: dict[tuple[str, str], Any] = {}
        attributes = self._cupy.cuda.Device(index).attributes
        self.shared_limit: int = attributes["MaxSharedMemoryPerBlockOptin"]
        self._shared_of_device = self.shared_limit  # whatever the limit is set to later, kernels may have this much
        self.processors: int = attributes["MultiProcessorCount"]

    def launch(self, file: str, name: str, grid: int, block: int, args: Sequence[Any], shared_bytes: int = 0) -> None:
        """Launch a kernel on torch's current stream; ``args`` are NumPy scalars, and ints that are addresses."""
        import torch

        with torch.cuda.device(self._index):
            function = self._functions.get((file, name)) or self._load(file, name)
            # CuPy's own caches look the device up at each call; the plain function does not.
            stream = _Stream(torch._C._cuda_getCurrentRawStream(self._index))  # noqa: SLF001
            function((grid,), (block,), tuple(args), shared_bytes, stream)

    def _load(self, file: str, name: str) -> Any:
        """Compile a kernel and let it have all the shared memory that a block can have."""
        import torch

        if torch.cuda.is_current_stream_capturing():
            raise InputError(
                f"the kernel {name} is not loaded yet, and cannot be while a CUDA graph is captured; "
                "mask one batch of the same dtype on this device before the capture"
            )
        source = kernel_source(file)
        for found, after in zip(kernel_names(source), source.split(GLOBAL)[1:], strict=True):
            kernel = self._module(file).get_function(found)
            kernel.max_dynamic_shared_size_bytes = self._shared_of_device
            if "ROW_PARAMETERS" in after and "SHARED_ARENA" in after:  # masking; for others nothing was predicted
                kernel.preferred_shared_memory_carveout = MOST_SHARED
            self._functions[file, found] = kernel.kernel
        return self._functions[file, name]

    @functools.cache  # noqa: B019 (devices live as long as the process)
    def _module(self, file: str) -> Any:
        return self._cupy.RawModule(code=kernel_source(file), options=OPTIONS)


def kernel_names(source: str) -> list[str]:
    """Return the names of the kernels of a source: ``extern "C" __global__ void [attribute] name(``."""
    return re.findall(GLOBAL + r"\s+(?:\w+(?:\([^)]*\))?\s+)?(\w+)\(", source)


@functools.cache
def _device_at(index: int) -> CudaDevice:
    return CudaDevice(index)


def open_device(device: torch.device) -> CudaDevice:
    """Return the kernels on a device, loaded once for the process.

    Raises
    ------
    InputError
        If it is no CUDA device.
    MissingExtraError
        If CuPy is not installed; the message names the extra that brings it.
    """
    if device.type != "cuda":
        raise InputError(f"CUDA kernels need tensors on a CUDA device; got one on {device}; move it with .to('cuda')")
    import torch

    return _device_at(torch.cuda.current_device() if device.index is None else device.index)


def can_use_cuda() -> bool:
    """Whether the kernels can run on a GPU here: CuPy is installed, and torch, built for CUDA, sees a device."""
    if importlib.util.find_spec("cupy") is None:
        return False
    import torch

    return torch.version.cuda is not None and torch.cuda.is_available()  # for AMD's GPUs torch has no CUDA version


class Buffer(NamedTuple):
    """The address of an array, as a kernel takes it."""

    address: int = 0
    itemsize: int = 0
