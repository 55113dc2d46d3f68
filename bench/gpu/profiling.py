"""Where a batch's time goes: kernels by name, what a launch takes of the device, parts of the masking kernel.

Parts are found by leaving work out: a run differs from the one before it by the part that it adds.
"""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from harness.timing import Contestant

from corrmask_fast import CorrMasker, cuda
from corrmask_fast.masking.engine import device

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from harness.workload import Workload

BLOCKS = (64, 128, 192, 256, 320, 384, 512, 768, 1024)  # threads that are tried


class Launch(NamedTuple):
    """A kernel as it was launched."""

    file: str
    name: str
    grid: int
    block: int
    shared_bytes: int


@contextmanager
def watched_launches() -> Iterator[list[Launch]]:
    """List the launches that our loader makes."""
    given, launches = cuda.CudaDevice.launch, []

    def launch(
        self: Any, file: str, name: str, grid: int, block: int, args: Any, shared_bytes: int = 0, **how: Any
    ) -> Any:
        launches.append(Launch(file, name, grid, block, shared_bytes))
        return given(self, file, name, grid, block, args, shared_bytes, **how)

    cuda.CudaDevice.launch = launch
    try:
        yield launches
    finally:
        cuda.CudaDevice.launch = given


@contextmanager
def blocks_of(threads: int) -> Iterator[None]:
    """Let the masking kernels run in blocks of so many threads."""
    given, device.THREADS = device.THREADS, threads
    try:
        yield
    finally:
        device.THREADS = given


def parts(workload: Workload) -> list[tuple[str, CorrMasker, dict[str, Any]]]:
    """(what, masker, keywords): each does a little more than the one before it."""
    graph = workload.graph
    none = 0.5 / workload.size.length  # floor(n · p) is 0
    return [
        ("read and write", CorrMasker(graph, mlm_probability=none), {}),
        ("+ draws from the content", CorrMasker(graph, mlm_probability=none), {"epoch": 1}),
        ("+ words, top-up, replacement", CorrMasker(graph, structural_ratio=0.0), {}),
        ("+ seeds, no partners", CorrMasker(graph, max_partners=0), {}),
        ("+ one partner", CorrMasker(graph, max_partners=1), {}),
        ("all (five partners)", CorrMasker(graph), {}),
        ("all, every one by the graph", CorrMasker(graph, structural_ratio=1.0), {}),
    ]


def parts_race(workload: Workload, ids: torch.Tensor) -> list[Contestant]:
    """The parts as contestants."""
    found = []
    for what, masker, keywords in parts(workload):
        on_device = masker.to(ids.device)
        found.append(Contestant(what, partial(on_device, ids, **keywords), 1))
    return found


def blocks_race(workload: Workload, ids: torch.Tensor) -> list[Contestant]:
    """The whole kernel in blocks of different sizes."""
    masker = CorrMasker(workload.graph).to(ids.device)

    def run(threads: int) -> None:
        with blocks_of(threads):
            masker(ids)

    return [Contestant(f"{threads} threads a block", partial(run, threads), 1) for threads in BLOCKS]


def taken_by(ours: cuda.CudaDevice, file: str) -> list[str]:
    """Compile a file of kernels; return what each of them takes of a multiprocessor, a line each."""
    lines = []
    for name in cuda.kernel_names(cuda.kernel_source(file)):
        taken = ours._module(file).get_function(name).attributes
        registers, spilled = taken["num_regs"], taken["local_size_bytes"]
        lines.append(f"{name}: {registers} registers, {spilled} bytes of local memory")
    return lines


def resources(device: torch.device, launch: Launch) -> dict[str, Any]:
    """Return registers, shared and spilled bytes of a kernel, and how many of its blocks live on a multiprocessor."""
    from cupy.cuda import driver

    ours = cuda.open_device(device)
    kernel = ours._module(launch.file).get_function(launch.name)
    attributes = kernel.attributes
    live = driver.occupancyMaxActiveBlocksPerMultiprocessor(kernel.kernel.ptr, launch.block, launch.shared_bytes)
    most = torch.cuda.get_device_properties(device).max_threads_per_multi_processor
    return {
        "grid": launch.grid,
        "block": launch.block,
        "registers": attributes["num_regs"],
        "spilled_bytes": attributes["local_size_bytes"],
        "shared_bytes": launch.shared_bytes + attributes["shared_size_bytes"],
        "blocks_per_sm": live,
        "occupancy": round(live * launch.block / most, 3),
    }


def kernel_times(run: Callable[[], Any], calls: int = 10) -> list[tuple[str, int, float]]:
    """(kernel, launches a call, µs a call), the longest first, from PyTorch's profiler."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    run()
    with torch.profiler.profile(activities=activities) as profile:
        for _ in range(calls):
            run()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
    found = [
        (event.key, event.count // calls, event.self_device_time_total / calls)
        for event in profile.key_averages()
        if event.self_device_time_total > 0 and event.device_type == torch.autograd.DeviceType.CUDA
    ]
    return sorted(found, key=lambda one: -one[2])
