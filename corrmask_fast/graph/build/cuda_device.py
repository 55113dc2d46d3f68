"""The GPU that builds a graph: memory and sums are torch's, kernels are those of ``kernels/*.cu``.

The stages reach the device through :class:`GraphDevice` alone. Tests replace it by one that runs emulated kernels on
tensors in host memory.
"""

from __future__ import annotations

import json
import socket
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from corrmask_fast.errors import InputError, import_extra

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import torch

    from corrmask_fast.graph.build.distributed import Team

__all__ = ["GraphDevice", "check_cuda", "warn_of_idle_devices"]

THREADS = 256  # of a block
SIGNED = {np.dtype(np.uint16): np.int16, np.dtype(np.uint32): np.int32}  # the same bits, as torch takes them


class GraphDevice:
    """Torch's current CUDA device.

    Attributes
    ----------
    device
        Where tensors lie.
    shared_limit
        Bytes of shared memory that a block can have.
    processors
        Multiprocessors.
    threads
        Threads of a block, unless a kernel asks for another number.
    """

    threads = THREADS

    def __init__(self) -> None:
        import torch

        from corrmask_fast.cuda import open_device

        self.device = torch.device("cuda", torch.cuda.current_device())
        self._kernels = open_device(self.device)
        self.shared_limit = self._kernels.shared_limit
        self.processors = self._kernels.processors

    def empty(self, shape: int | tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """Return memory that was not written yet."""
        import torch

        return torch.empty(shape, dtype=dtype, device=self.device)

    def zeros(self, shape: int | tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """Return memory full of zeros."""
        return self.empty(shape, dtype).zero_()

    def upload(self, array: np.ndarray) -> torch.Tensor:
        """Copy an array to the device; unsigned integers arrive as signed ones of the same bits."""
        tensor = self.empty(array.shape, as_tensor(array[:0]).dtype)
        return tensor.copy_(as_tensor(array))

    def launch(
        self,
        file: str,
        name: str,
        grid: int,
        args: Sequence[Any],
        *,
        shared_bytes: int = 0,
        threads: int | None = None,
    ) -> None:
        """Launch a kernel on torch's current stream: tensors are passed as addresses, ints as int64."""
        if grid:
            values = [_argument(arg) for arg in args]
            self._kernels.launch(file, name, grid, threads or self.threads, values, shared_bytes)

    def whereabouts(self) -> tuple[str, str, int]:
        """Return the machine, which GPU of it this is, and how many of them this process sees."""
        import torch

        name = str(getattr(torch.cuda.get_device_properties(self.device), "uuid", self.device))
        return socket.gethostname(), name, torch.cuda.device_count()

    def free_bytes(self) -> int:
        """Return how much memory is free."""
        import torch

        cached = torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)
        return torch.cuda.mem_get_info(self.device)[0] + cached


def as_tensor(array: np.ndarray) -> torch.Tensor:
    """Return an array as a tensor in host memory, without a copy where it can be written."""
    import torch

    array = array.view(SIGNED.get(array.dtype, array.dtype))
    return torch.from_numpy(array if array.flags.writeable else array.copy())


def _argument(value: Any) -> Any:
    if hasattr(value, "data_ptr"):
        return value.data_ptr()
    return np.int64(value) if isinstance(value, int) else value


def warn_of_idle_devices(team: Team, device: GraphDevice | None = None) -> None:
    """Warn, once in a team, where several ranks take one GPU and leave another of their machine without work.

    ``device`` is the one of this rank; None: torch's current one.
    """
    whereabouts = np.frombuffer(json.dumps((device or GraphDevice()).whereabouts()).encode(), np.uint8)
    everybody = [json.loads(arrays["text"].tobytes()) for arrays in team.gather({"text": whereabouts})]
    for machine in sorted({host for host, _, _ in everybody}) if team.rank == 0 else ():
        gpus = [gpu for host, gpu, _ in everybody if host == machine]
        seen = max(count for host, _, count in everybody if host == machine)
        if len(set(gpus)) < min(len(gpus), seen):
            warnings.warn(
                f"{len(gpus)} ranks on {machine} take {len(set(gpus))} of its {seen} GPUs; to give each its own, call "
                "torch.cuda.set_device(int(os.environ['LOCAL_RANK'])) before the graph is built",
                UserWarning,
                stacklevel=2,
            )


@contextmanager
def memory_errors_named() -> Iterator[None]:
    """Turn torch's out-of-memory error into one that says what a user can do."""
    import torch

    try:
        yield
    except torch.OutOfMemoryError as error:
        first = str(error).partition(". ")[0]
        raise InputError(
            f"device='cuda': the graph does not fit the GPU's memory ({first}); free what else lies there, lower "
            "n_cells, max_genes or n_neighbors, or use device='cpu'"
        ) from error


def check_cuda() -> None:
    """Raise, naming cause and fix, unless a graph can be built on a GPU here.

    Raises
    ------
    InputError
        If torch sees no CUDA device.
    MissingExtraError
        If CuPy is not installed; the message names the extra that brings it.
    """
    import torch

    if torch.version.cuda is None:
        raise InputError(
            f"device='cuda': this PyTorch ({torch.__version__}) is built without CUDA; "
            "install a CUDA build of PyTorch, or use device='auto' or 'cpu'"
        )
    if not torch.cuda.is_available():
        raise InputError(
            f"device='cuda': PyTorch ({torch.__version__}) sees no CUDA device; look at nvidia-smi and "
            "CUDA_VISIBLE_DEVICES, or use device='auto' or 'cpu'"
        )
    import_extra("cupy", f"cuda{torch.version.cuda.partition('.')[0]}")
