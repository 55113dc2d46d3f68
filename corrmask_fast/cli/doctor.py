"""``corrmask-fast doctor``: what is installed, what works, what is missing and how it comes here; for a bug report."""

from __future__ import annotations

import getpass
import importlib
import importlib.metadata
import importlib.util
import os
import pkgutil
import platform
import re
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from corrmask_fast import __version__
from corrmask_fast.cli.options import PROGRAM
from corrmask_fast.errors import InputError, MissingExtraError, reason

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from packaging.requirements import Requirement

    Lines = list[tuple[str, str]]

BROKEN = 1  # exit code
# What each extra is for; versions and packages stand in the metadata of the package.
PURPOSES = {
    "hf": "reading datasets folders, pretraining, embeddings",
    "anndata": "reading .h5ad and zarr",
    "plot": "pictures",
    "eval": "evaluations",
    "networkx": "graphs as .graphml and in networkx",
    "leiden": "modules by the Leiden algorithm",
    "lightning": "the Lightning callback",
    "tensorboard": "logs for TensorBoard",
    "completion": "shell completion",
    "cuda12": "masks and graphs on an NVIDIA GPU, CUDA 12",
    "cuda13": "masks and graphs on an NVIDIA GPU, CUDA 13",
}
CUDA_ASKED = "device='cuda': "  # how messages about it begin
FOR_DEVELOPERS = {"dev", "docs"}
ALWAYS_TOLD = (
    "numpy",
    "numba",
    "scipy",
    "torch",
    "transformers",
    "datasets",
    "anndata",
)  # in a folder without metadata
BROUGHT_ALONG = {"anndata": ("zarr",)}  # by packages of an extra


def examine() -> int:
    """Print the report; return 1 if something that is installed does not work, else 0."""
    report = _Report()
    report.part("", _system)
    report.part("packages", report.packages)
    report.part("machine", _machine)
    report.part("GPU", report.gpu)
    report.part("compiled kernels", report.kernels)
    report.part("masking", report.masking)
    if report.missing:
        report.say("not installed", report.missing)
    if report.broken:
        report.say("does not work", report.broken)
    return BROKEN if report.broken else 0


class _Report:
    """The text, printed part by part, and what it says at the end."""

    def __init__(self) -> None:
        self.missing: Lines = []  # package and its purpose, the line that installs it
        self.broken: Lines = []  # what does not work, why
        self.cuda: str | None = None  # the CUDA version of PyTorch's build
        self.has_gpu = False  # that kernels can use

    def part(self, title: str, find: Callable[[], Iterator[tuple[str, str]]]) -> None:
        """Print what one function finds; whatever it raises becomes a line."""
        lines: Lines = []
        try:
            lines.extend(find())
        except Exception as error:  # noqa: BLE001 (a broken installation may raise anything)
            self.broken.append((title or "system", _why(error)))
            lines.append(("failed", _why(error)))
        self.say(title, lines)

    def say(self, title: str, lines: Lines) -> None:
        """Print aligned lines below a title."""
        width = max((len(name) for name, _ in lines), default=0)
        if title:
            print(f"\n{title}")
        for name, text in lines:
            print(_without_names(f"{'  ' if title else ''}{name.ljust(width)}  {text}").rstrip())
        print(end="", flush=True)

    def try_out(self, what: str, function: Callable[[], str]) -> tuple[str, str]:
        """Return what a function says of something that is installed; if it fails, that is broken."""
        try:
            return what, function()
        except Exception as error:  # noqa: BLE001
            self.broken.append((what, _why(error)))
            return what, f"does not work: {_why(error)}"

    # -------------------------------------------------------------------------------------------------- packages

    def packages(self) -> Iterator[tuple[str, str]]:
        """Yield versions, and those that this package does not allow."""
        self.cuda = _cuda_of_torch()
        try:
            groups = _requirements()
        except importlib.metadata.PackageNotFoundError:
            yield PROGRAM, "is not installed (it runs from a folder): which packages it needs is not known"
            yield from ((name, version) for name in ALWAYS_TOLD if (version := _version(name)))
            return
        for extra, requirements in groups.items():
            for one in requirements:
                yield self._package(one, extra)
            for name in BROUGHT_ALONG.get(extra, ()):
                if version := _version(name):
                    yield name, version

    def _package(self, one: Requirement, extra: str) -> tuple[str, str]:
        version, bounds = _version(one.name), str(one.specifier)
        install = f"pip install 'corrmask-fast[{extra}]'" if extra else f"pip install '{one.name}{bounds}'"
        purpose = PURPOSES.get(extra, "needed by everything")
        if version is None:
            if extra.startswith("cuda") and extra != f"cuda{self.cuda}":
                return one.name, "not installed; not needed by this PyTorch"
            if extra.startswith("cuda") and _version("cupy"):  # built from source, or by conda
                return one.name, "not installed; the package cupy is"
            self.missing.append((f"{one.name} ({purpose})", install))
            return one.name, "not installed"
        if not one.specifier.contains(version, prereleases=True):
            install = f"pip install '{one.name}{bounds}'"
            self.missing.append((f"{one.name} {bounds} (here is {version}, which was not tried)", install))
            return one.name, f"{version}  not {bounds}"
        if one.name == "torch":  # installed, and may still not load
            return self.try_out("torch", lambda: f"{version}  ({_build_of_torch()})")
        return one.name, version

    # ------------------------------------------------------------------------------------------------------- GPU

    def gpu(self) -> Iterator[tuple[str, str]]:
        """Yield what the driver, PyTorch and CuPy see, and what ``device="cuda"`` says."""
        yield "driver", _driver()
        if importlib.util.find_spec("torch"):
            yield self.try_out("PyTorch", _gpu_of_torch)
        if importlib.util.find_spec("cupy"):
            yield self.try_out("CuPy", _cupy)
        else:
            yield "CuPy", "not installed"
        try:
            from corrmask_fast.graph.build.cuda_device import check_cuda

            check_cuda()
            self.has_gpu = True
            yield 'device="cuda"', "can be used"
        except Exception as error:  # noqa: BLE001
            yield 'device="cuda"', f"refused: {_why(error).removeprefix(CUDA_ASKED)}"

    # --------------------------------------------------------------------------------------------------- kernels

    def kernels(self) -> Iterator[tuple[str, str]]:
        """Yield where compiled kernels are kept, and how many are there for this version and this processor."""
        from corrmask_fast import kernels
        from corrmask_fast.kernels.jit import cache_state

        states = []
        for found in pkgutil.iter_modules(kernels.__path__):
            module = importlib.import_module(f"{kernels.__name__}.{found.name}")
            mine = [
                one for one in vars(module).values() if hasattr(one, "py_func") and one.__module__ == module.__name__
            ]
            states += [cache_state(one) for one in mine if getattr(one, "_cache", None) is not None]
        folders = {folder for folder, _ in states if folder is not None}
        for folder in sorted(folders):
            writable = os.access(folder, os.W_OK)
            yield "folder", f"{folder} ({'can' if writable else 'cannot'} be written to)"
        if not folders:
            yield "folder", "none can be written to: set NUMBA_CACHE_DIR to one; kernels are compiled in every process"
        saved = sum(there for _, there in states)
        yield "saved", f"{saved} for this version and processor; others are compiled when they are used first"

    # --------------------------------------------------------------------------------------------------- masking

    def masking(self) -> Iterator[tuple[str, str]]:
        """Yield whether masks are those of the reference."""
        yield self.try_out("CPU", lambda: _mask("cpu"))
        if self.has_gpu:
            yield self.try_out("GPU", lambda: _mask("cuda"))


def _requirements() -> dict[str, list[Requirement]]:
    """Return extra → the packages that it brings, "" for those that are always needed, as the metadata lists them."""
    from packaging.requirements import Requirement

    found = importlib.metadata.distribution(PROGRAM)
    every = [Requirement(text) for text in found.requires or ()]
    extras = [name for name in found.metadata.get_all("Provides-Extra") or () if name not in FOR_DEVELOPERS]
    groups: dict[str, list[Requirement]] = {}
    for extra in ("", *extras):
        wanted = [one for one in every if one.marker is None or one.marker.evaluate({"extra": extra})]
        taken = {str(one) for group in groups.values() for one in group}
        groups[extra] = [one for one in wanted if one.name != PROGRAM and str(one) not in taken]
    return groups


def _system() -> Iterator[tuple[str, str]]:
    yield PROGRAM, __version__
    yield "Python", platform.python_version()
    yield "system", f"{platform.system()} {platform.release()}, {platform.machine()}"


def _machine() -> Iterator[tuple[str, str]]:
    from corrmask_fast.graph.build.memory import free_memory, in_units
    from corrmask_fast.threads import get_num_threads

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield "processor", f"{_processor()}; {cores} cores for this process, of {os.cpu_count()}"
    free = free_memory()
    yield "memory", "not known" if free is None else f"{in_units(free)} free"
    given = os.environ.get("CORRMASK_NUM_THREADS")
    where = "CORRMASK_NUM_THREADS is not set: all cores" if given is None else f"CORRMASK_NUM_THREADS={given}"
    yield "threads", f"{get_num_threads()} ({where})"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    text = info.read_text(encoding="utf-8", errors="replace") if info.exists() else ""
    named = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return named[1] if named else platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cuda_of_torch() -> str | None:
    """Return the first number of the CUDA version that PyTorch was built with."""
    try:
        import torch
    except Exception:  # noqa: BLE001 (said elsewhere)
        return None
    return torch.version.cuda and torch.version.cuda.partition(".")[0]


def _build_of_torch() -> str:
    import torch

    if torch.version.cuda:
        return f"built for CUDA {torch.version.cuda}"
    return f"built for ROCm {torch.version.hip}" if torch.version.hip else "built for the CPU"


def _driver() -> str:
    path = shutil.which("nvidia-smi")
    if path is None:
        return "no nvidia-smi here: no NVIDIA driver"
    question = [path, "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        answer = subprocess.run(question, capture_output=True, text=True, timeout=30, check=False)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"nvidia-smi does not answer: {_why(error)}"
    return "; ".join((answer.stdout or answer.stderr).strip().splitlines()) or "nvidia-smi says nothing"


def _gpu_of_torch() -> str:
    import torch

    seen = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    more = "; Apple GPU, which masks are not made on" if torch.backends.mps.is_available() else ""
    return f"{_build_of_torch()}; sees {', '.join(seen) or 'no CUDA device'}{more}"


def _cupy() -> str:
    import cupy

    major, minor = cupy.cuda.nvrtc.getVersion()
    try:
        seen = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError:
        seen = 0
    return f"{cupy.__version__}, compiles with NVRTC {major}.{minor}; sees {seen} GPU{'' if seen == 1 else 's'}"


def _mask(device: str) -> str:
    """Mask a small batch and hold it to the reference."""
    import time

    import numpy as np
    import torch

    from corrmask_fast.testing import Case, assert_same, draw_ids, make_graph, make_vocabulary

    rows = np.tile(np.arange(2, 202), (8, 1))
    case = Case("doctor", make_graph(make_vocabulary(200)), np.random.default_rng(0).permuted(rows, axis=1)[:, :100])
    draws, masker = draw_ids(len(rows)), case.masker().to(device)
    inputs = torch.from_numpy(case.input_ids).to(device), torch.from_numpy(draws).to(device)
    masker(inputs[0], draw_ids=inputs[1])  # compiles
    began = time.perf_counter()
    masked = masker(inputs[0], draw_ids=inputs[1])
    micros = 1e6 * (time.perf_counter() - began) / len(rows)
    found = masked._make(each.cpu().numpy() for each in masked)
    assert_same(case.expected(draw_ids=draws), found, f"masks on {device}")
    timed = f"; {micros:.0f} µs a cell of 100 genes" if device == "cpu" else ""
    return f"works: {len(rows)} cells masked as the pure-Python reference masks them{timed}"


def _why(error: BaseException) -> str:
    """Return what an exception says; its type only where the message may not say enough."""
    text = reason(error)
    if isinstance(error, InputError | MissingExtraError) or text.startswith(type(error).__name__):
        return text
    return f"{type(error).__name__}: {text}"


def _without_names(text: str) -> str:
    """Return text without the user's home folder and name, and the machine's name."""
    with suppress(RuntimeError):  # no home folder; and "/" is the home of nobody
        home = Path.home()
        if len(home.parts) > 1:
            text = re.sub(rf"{re.escape(str(home))}(?![\w-])", "~", text)
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a user without a name, as in containers
        user = ""
    for name, instead in ((user, "USER"), (platform.node(), "HOST")):
        if name:
            text = re.sub(rf"(?<![\w-]){re.escape(name)}(?![\w-])", instead, text)
    return text
