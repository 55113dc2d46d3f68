"""What ``make gpu-report`` runs on a GPU, with the CUDA kernels emulated: every kernel is launched, and compared."""

from __future__ import annotations

import importlib
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from corrmask_fast.graph.build import building
from corrmask_fast.masking.engine import ops

BENCH = Path(__file__).resolve().parents[1] / "bench"


class Emulated(torch.Tensor):
    """A CPU tensor that a masker sends through the custom op, as it does with every tensor that is not plain."""


@pytest.fixture
def exercise(monkeypatch):
    """The script that compute-sanitizer runs."""
    monkeypatch.syspath_prepend(str(BENCH))
    return importlib.import_module("gpu.exercise")


@pytest.fixture
def launched_of_masking(exercise, emulated_cuda, monkeypatch):
    """Launch the kernels of masking and encoding; return what was launched."""

    def to(_device, value):
        return value.as_subclass(Emulated) if isinstance(value, torch.Tensor) else value

    def first_rows(masked, rows):
        return exercise_rows([tensor.as_subclass(torch.Tensor) for tensor in masked], rows)

    exercise_rows = exercise.first_rows
    monkeypatch.setattr(ops, "mask", ops.mask_on_device)
    monkeypatch.setattr(exercise, "to", to)
    monkeypatch.setattr(exercise, "first_rows", first_rows)
    encoder, padded = exercise.RankEncoder, exercise.RankEncoder.padded
    times = []

    def padded_there(self, counts, *more, **options):  # by turns on the CPU, as it is called, and on the device twice
        times.append(counts)
        here = len(times) % 3 == 1
        return padded(self, counts) if here else self._padded_on_device(counts, counts, None, 1)

    monkeypatch.setattr(encoder, "padded", padded_there)
    files = [stem for stem in exercise.FILES if stem not in exercise.GRAPH]
    with exercise.profiling.watched_launches() as launches:
        assert not exercise.exercise(torch.device("cpu"), files, small=True).wrong
    assert len(launches) == len(emulated_cuda.launches)
    return launches


@pytest.fixture
def launched_of_graphs(exercise, cuda_host, monkeypatch):
    """Launch the kernels of graphs; return what was launched."""
    launches = []

    class Device(cuda_host.graph.EmulatedDevice):
        def launch(self, file, name, *arguments, **options):
            launches.append(exercise.profiling.Launch(file, name, 0, 0, 0))
            super().launch(file, name, *arguments, **options)

    @contextmanager
    def small_shared_memory(_device):
        given, emulated.shared_limit = emulated.shared_limit, 400
        yield
        emulated.shared_limit = given

    emulated = Device(threads=64)
    monkeypatch.setattr(building, "_kind_of_device", lambda device: device)
    monkeypatch.setattr(exercise, "small_shared_memory", small_shared_memory)
    with cuda_host.graph.in_place(emulated):
        exercise.build_graphs(SimpleNamespace(type="cuda"), tally := exercise.Tally(), small=True)
    assert not tally.wrong
    return launches


def test_every_kernel_is_launched_and_compared_with_the_cpu(exercise, launched_of_masking, launched_of_graphs):
    missed = exercise.unlaunched(launched_of_masking + launched_of_graphs)
    assert not missed, f"no kernel may be missing from bench/gpu/exercise.py: {missed}"
