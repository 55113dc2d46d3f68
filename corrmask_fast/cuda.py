"""CUDA kernels of ``kernels/*.cu``: compiled by CuPy (NVRTC), launched on torch's current stream, without a copy.

A new kernel is one ``.cu`` file and one function here that allocates its outputs and calls :meth:`CudaDevice.launch`.
"""

from __future__ import annotations

import functools
import math
import re
from importlib import resources
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from corrmask_fast.errors import InputError, import_extra
from corrmask_fast.kernels.layout import PARTNERS, SIZE

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

__all__ = ["CudaDevice", "corrmask_cuda", "kernel_source", "open_device"]

THREADS = 256  # of a block
OPTIONS = ("-std=c++17", "-lineinfo")
# Sizes in bytes of structures in kernels/rows.cuh and kernels/corrmask.cu, which assert them.
ROW_STATE, SEED, POOL = 1472, 24, 640
DTYPES = {"indptr": ("torch.int32", "torch.int64"), "indices": ("torch.int32",)}  # the others: int64


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
        for key in [(file, found) for found in kernel_names(kernel_source(file))]:
            kernel = self._module(file).get_function(key[1])
            kernel.max_dynamic_shared_size_bytes = self.shared_limit
            self._functions[key] = kernel.kernel
        return self._functions[file, name]

    @functools.cache  # noqa: B019 (devices live as long as the process)
    def _module(self, file: str) -> Any:
        return self._cupy.RawModule(code=kernel_source(file), options=OPTIONS)


def kernel_names(source: str) -> list[str]:
    """Return the names of the kernels of a source: ``extern "C" __global__ void [attribute] name(``."""
    return re.findall(r'extern "C" __global__ void\s+(?:\w+(?:\([^)]*\))?\s+)?(\w+)\(', source)


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


# ---------------------------------------------------------------------------------------------------------- masking


class Arena(NamedTuple):
    """The working memory of a block that masks a row, as kernels/corrmask.cu lays it out."""

    bytes: int
    max_partners: int  # no more than there are columns
    wave_capacity: int  # seeds that are expanded at a time

    @classmethod
    def make(cls, columns: int, vocab_size: int, max_partners: int, threads: int) -> Arena:
        """Return what a row of ``columns`` needs; a multiple of 16 bytes."""
        words = -(-columns // 64) * 2
        partners = min(max_partners, columns)
        capacity = max(1, min(64, 2048 // (partners + 1)))
        row = ROW_STATE + 3 * 4 * 32 * words + 2 * 16 * -(-words // 4)
        genes = 8 * (-(-vocab_size // 64) * 2)
        wave = capacity * (SEED + 4 * (partners + 1))
        return cls(-(-(row + POOL * (threads // 32) + genes + wave) // 16) * 16, partners, capacity)


class Buffer(NamedTuple):
    """Where an array lies, as a kernel is told."""

    address: int = 0
    itemsize: int = 0


def corrmask_arguments(
    shape: tuple[int, int],
    max_masked: int,
    settings: Sequence[int],
    arena: Arena,
    draw_mode: int,
    draw_offset: int,
    *,
    input_ids: Buffer,
    attention_mask: Buffer,
    special_tokens_mask: Buffer,
    draws: Buffer,
    seed: Buffer,
    rates: Buffer,
    indptr: Buffer,
    indices: Buffer,
    out_ids: Buffer,
    labels: Buffer,
    masked_positions: Buffer,
) -> list[Any]:
    """Return the arguments of the kernels of ``kernels/corrmask.cu``, in their order and types."""
    pad, mask, lo, hi, size, _, mask_below, random_below = settings[:8]
    return [
        input_ids.address,
        attention_mask.address,
        special_tokens_mask.address,
        np.int32(attention_mask.itemsize),
        np.int32(special_tokens_mask.itemsize),
        np.int64(shape[0]),
        np.uint32(shape[1]),
        draws.address,
        np.int32(draw_mode),
        np.uint64(draw_offset % 2**64),
        seed.address,
        rates.address,
        indptr.address,
        np.int32(indptr.itemsize),
        indices.address,
        *map(np.uint32, (size, lo, hi, pad, mask, arena.max_partners)),
        np.uint64(mask_below),
        np.uint64(random_below),
        out_ids.address,
        labels.address,
        masked_positions.address,
        np.int64(max_masked),
        np.uint32(arena.wave_capacity),
    ]


def corrmask_cuda(
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None,
    special_tokens_mask: torch.Tensor | None,
    draws: torch.Tensor,
    draw_mode: int,
    draw_offset: int,
    seed_bits: torch.Tensor,
    rate_bits: torch.Tensor,
    neighbor_indptr: torch.Tensor,
    neighbor_indices: torch.Tensor,
    settings: Sequence[int],
    max_probability: float,
    *,
    threads: int = THREADS,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """CorrMask of a padded batch on its device (SPEC 3 and 4): one launch, no synchronisation.

    Parameters
    ----------
    input_ids
        (rows, columns) int32 or int64, on a CUDA device; not changed. A token outside the vocabulary counts as a gene
        without neighbours.
    attention_mask, special_tokens_mask
        (rows, columns) or None. bool, int8 and uint8, int32, int64 are read as they are; others cost a conversion.
    draws, draw_mode, draw_offset
        Where draw_ids come from, see :class:`corrmask_fast.masking.Draws`; ``draws`` is int64.
    seed_bits, rate_bits
        (1,) int64: the seed's bits; (4,) int64: the bits of the ends of p and λ as float64.
    neighbor_indptr, neighbor_indices
        The graph: (V + 1,) int32 or int64, and int32.
    settings
        The integers of :meth:`corrmask_fast.masking.RowRules.settings_of`.
    max_probability
        The largest p that ``rate_bits`` may hold: it decides the shape of the result.
    threads
        Of a block: a multiple of 32, up to 1024.

    Returns
    -------
    ``input_ids`` in the input's dtype, ``labels`` int64, ``masked_positions`` (rows, floor(columns · max_probability))
    int64, all on the input's device.

    Raises
    ------
    InputError
        If the tensors lie on different devices, or have a shape or dtype that the kernel does not take.
    """
    import torch

    inputs = {
        "draws": draws,
        "seed": seed_bits,
        "rates": rate_bits,
        "indptr": neighbor_indptr,
        "indices": neighbor_indices,
    }
    _check_tensors(input_ids, inputs, {"attention_mask": attention_mask, "special_tokens_mask": special_tokens_mask})
    rows, columns = input_ids.shape
    ids = input_ids.contiguous()
    max_masked = math.floor(columns * max_probability)
    out = torch.empty_like(ids)
    labels = torch.empty_like(ids, dtype=torch.int64)
    positions = torch.empty((rows, max_masked), dtype=torch.int64, device=ids.device)
    if ids.numel() == 0:  # CuPy launches one block at least
        return out, labels, positions
    device = open_device(ids.device)
    arena = Arena.make(columns, settings[SIZE], settings[PARTNERS], threads)
    # Held until the launch: torch may hand memory on to what this stream does next, not before.
    held = {
        "input_ids": ids,
        "attention_mask": _as_numbers(attention_mask),
        "special_tokens_mask": _as_numbers(special_tokens_mask),
        **{name: tensor.contiguous() for name, tensor in inputs.items()},
        "out_ids": out,
        "labels": labels,
        "masked_positions": positions,
    }
    buffers = {name: Buffer() if t is None else Buffer(t.data_ptr(), t.element_size()) for name, t in held.items()}
    args = corrmask_arguments((rows, columns), max_masked, settings, arena, draw_mode, draw_offset, **buffers)
    kernel = "corrmask_i64" if ids.dtype == torch.int64 else "corrmask_i32"
    if arena.bytes <= device.shared_limit:
        device.launch("corrmask.cu", kernel, rows, threads, args, arena.bytes)
    else:  # a huge vocabulary, or long rows on a small card: slower, in device memory
        blocks = min(rows, 2 * device.processors)
        scratch = torch.empty(blocks * arena.bytes, dtype=torch.uint8, device=ids.device)
        args += [scratch.data_ptr(), np.int64(arena.bytes // 16)]
        device.launch("corrmask.cu", f"{kernel}_scratch", blocks, threads, args)
    return out, labels, positions


def _as_numbers(mask: torch.Tensor | None) -> torch.Tensor | None:
    """Return a mask in a dtype whose elements the kernels can read: integers of 1, 4 or 8 bytes."""
    import torch

    if mask is None:
        return None
    if mask.dtype not in {torch.bool, torch.uint8, torch.int8, torch.int32, torch.int64}:
        mask = mask != 0
    return mask.contiguous()


def _check_tensors(
    input_ids: torch.Tensor, integers: dict[str, torch.Tensor], masks: dict[str, torch.Tensor | None]
) -> None:
    """Raise InputError unless the kernel can take the tensors as they are."""
    import torch

    if input_ids.dim() != 2 or input_ids.dtype not in {torch.int32, torch.int64}:
        raise InputError(
            f"input_ids must be (rows, columns) of int32 or int64; got {tuple(input_ids.shape)} {input_ids.dtype}"
        )
    for name, tensor in integers.items():
        wanted = DTYPES.get(name, ("torch.int64",))
        if str(tensor.dtype) not in wanted:
            raise InputError(f"{name} must be of {' or '.join(wanted)}; got {tensor.dtype}")
    given = {name: mask for name, mask in masks.items() if mask is not None}
    for name, mask in given.items():
        if mask.shape != input_ids.shape:
            raise InputError(
                f"{name} must have the shape of input_ids, {tuple(input_ids.shape)}; got {tuple(mask.shape)}"
            )
    for name, tensor in {**integers, **given}.items():
        if tensor.device != input_ids.device:
            raise InputError(
                f"{name} is on {tensor.device}, input_ids on {input_ids.device}; move both to one device with .to()"
            )
