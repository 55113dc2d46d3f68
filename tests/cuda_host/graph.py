"""The stages of a graph without a device: emulated kernels on torch's CPU tensors, poisoned and guarded."""

from __future__ import annotations

import weakref
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from corrmask_fast.cuda import kernel_source
from corrmask_fast.graph.build import cuda_device, stages_cuda
from corrmask_fast.graph.build.cuda_device import GraphDevice


class EmulatedDevice(GraphDevice):
    """In place of a GPU.

    Parameters
    ----------
    threads
        Of every block.
    shared_limit
        Bytes; a small one sends kernels to their device memory.
    free
        Bytes of memory that the device says it has.
    replace
        {file: source} of kernels with a fault in them.
    how
        Of the launches: schedule and the like.
    """

    def __init__(self, *, threads=64, shared_limit=227 * 1024, free=1 << 30, replace=None, sanitizer=None, **how):
        self.device = torch.device("cpu")
        self.shared_limit, self.processors, self.threads = shared_limit, 2, threads
        self.free, self.how, self.launched, self.memory = free, how, [], []
        self.guard_bytes = 0 if sanitizer else 256  # the sanitizers see more without
        self._sources, self._sanitizer, self._modules = replace or {}, sanitizer, {}

    def empty(self, shape, dtype):
        from launch import GUARD, POISON

        shape = (shape,) if isinstance(shape, int) else tuple(shape)
        item = torch.empty(0, dtype=dtype).element_size()
        n = int(np.prod(shape)) * item
        around = torch.full((n + 2 * self.guard_bytes,), GUARD, dtype=torch.uint8)
        inside = around[self.guard_bytes : self.guard_bytes + n]
        inside.fill_(POISON)
        tensor = inside.view(dtype).view(shape) if n else torch.empty(shape, dtype=dtype)
        self.memory.append((weakref.ref(tensor), around, n))
        return tensor

    def launch(self, file, name, grid, args, *, shared_bytes=0, threads=None):
        from launch import GUARD, HostModule, LaunchError

        if not grid:
            return
        del threads  # always its own
        if file not in self._modules:
            source = self._sources.get(file) or kernel_source(file)
            self._modules[file] = HostModule(source, sanitizer=self._sanitizer)
        assert shared_bytes <= max(self.shared_limit, 48 * 1024)  # what every device has
        self.launched.append(name)
        values = [arg.data_ptr() if isinstance(arg, torch.Tensor) else arg for arg in args]
        self._modules[file].launch(name, (grid,), (self.threads,), values, shared_bytes=shared_bytes, **self.how)
        for _, around, n in self.memory:
            low, high = around[: self.guard_bytes], around[self.guard_bytes + n :]
            if (low != GUARD).any() or (high != GUARD).any():
                raise LaunchError(f"{name}: a thread wrote outside an array of {n} bytes")
        self.memory = [entry for entry in self.memory if entry[0]() is not None]

    def whereabouts(self):
        return "here", "emulated", 1

    def free_bytes(self):
        return self.free


def changed(source, *replacements):
    """Return a kernel's source, given as text or as its file's name, with pieces replaced that stand in it once."""
    text = kernel_source(source) if source.endswith(".cu") else source
    for old, new in replacements:
        assert text.count(old) == 1, f"{old!r} stands {text.count(old)} times"
        text = text.replace(old, new)
    return text


@contextmanager
def in_place(device, **constants):
    """Let the stages run on ``device``, with other constants of their module; yield their class."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (stages_cuda, cuda_device):
            patch.setattr(module, "GraphDevice", lambda: device)
        for name, value in constants.items():
            patch.setattr(stages_cuda, name, value)
        yield stages_cuda.CudaStages
