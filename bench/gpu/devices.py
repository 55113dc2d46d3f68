"""The device that is measured: its name, its clock, replays of CUDA graphs. Without a GPU the CPU stands in, for a
smoke run that records nothing."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from harness import records
from harness.timing import host_clock

if TYPE_CHECKING:
    from collections.abc import Callable

PACKAGES = ("corrmask-fast", "numpy", "numba", "torch", "cupy", "transformers")
CUPY = ("cupy-cuda13x", "cupy-cuda12x", "cupy")  # the names that CuPy is installed under


def why_not() -> str:
    """Return why nothing can be measured here; empty where something can."""
    if not torch.cuda.is_available():
        return "PyTorch finds no CUDA device here" + (
            "" if torch.version.cuda else " (this build of it knows the CPU alone)"
        )
    try:
        import cupy  # noqa: F401
    except ImportError as error:
        major = torch.version.cuda.partition(".")[0]
        return f"CuPy cannot be imported ({error}): pip install 'corrmask-fast[cuda{major}]'"
    return ""


def works() -> bool:
    """Return whether the device can still be used: after an illegal access every call fails. True without one."""
    try:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
    except RuntimeError:
        return False
    return True


def event_clock(run: Callable[[], Any], repeats: int) -> float:
    """Seconds between two events on the current stream, around ``repeats`` calls issued as fast as the host can.

    The stream is idle when the first event comes, so that what the host needs to issue the work counts as well.
    """
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    begin.record()
    for _ in range(repeats):
        run()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1000


def clock_of(device: torch.device) -> Callable[[Callable[[], Any], int], float]:
    """Return the clock to time with."""
    return event_clock if device.type == "cuda" else host_clock


def replay_of(run: Callable[[], Any]) -> Callable[[], None]:
    """Capture a call in a CUDA graph; return what replays it."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = run()

    def replay(_kept: Any = kept) -> None:  # what the graph writes must live as long as it does
        graph.replay()

    return replay


def free_memory() -> None:
    """Give what PyTorch holds unused back to the device."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.empty_cache()


def described(device: torch.device, shared: records.Row) -> records.Row:
    """Return the conditions of a run on a device from those of the machine: ``device`` becomes ``cpu``."""
    cupy = next(filter(None, map(records.version_of, CUPY)), "")
    found = shared | {"cpu": shared["device"], "cupy": cupy, "device": "cpu (smoke)", "driver": "", "clock": "host"}
    found["cuda"] = torch.version.cuda or ""
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        name = f"{properties.name}, {properties.multi_processor_count} SMs, {properties.total_memory / 2**30:.0f} GiB"
        found |= {"device": name, "driver": _driver(), "clock": "events"}
    return found


def _driver() -> str:
    """Return the driver's version, from ``/proc`` or nvidia-smi."""
    version = Path("/proc/driver/nvidia/version")
    if version.exists():
        words = version.read_text().splitlines()[0].split()
        return next((word for word in words if word[0].isdigit() and "." in word), "")
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(query, capture_output=True, text=True, check=True, timeout=20).stdout.split()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        return os.environ.get("NVIDIA_DRIVER_VERSION", "")
