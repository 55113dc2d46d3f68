"""A graph built with ``device="cuda"``: the public door, several ranks, checkpoints; kernels are emulated."""

from __future__ import annotations

import subprocess
import sys
import threading
import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
import torch
from graph_cases import BASE, A, B, C, assert_equal_stages, corpus_of, every_stage

from corrmask_fast import InputError, MissingExtraError, build_dependency_graph, cuda
from corrmask_fast.graph.build import building, memory, overlaps, stages_cuda
from corrmask_fast.graph.build import cuda_device as graph_device
from corrmask_fast.graph.build import work as graph_work
from corrmask_fast.graph.build.distributed import Team
from corrmask_fast.graph.build.stages_cpu import CpuStages


@pytest.fixture(name="pretend")
def pretend_fixture(cuda_host, monkeypatch):
    """An emulated device that ``device="cuda"`` and ``"auto"`` find."""
    device = cuda_host.graph.EmulatedDevice(threads=32)
    monkeypatch.setattr(graph_device, "check_cuda", lambda: None)
    monkeypatch.setattr(cuda, "can_use_cuda", lambda: True)
    with cuda_host.graph.in_place(device):
        yield device


def test_a_graph_file_is_the_same_from_either_device(pretend, make_corpus, tmp_path):
    corpus = make_corpus(150, 30, seed=3)
    files = []
    for device in ("cpu", "cuda", "auto"):
        pretend.launched.clear()
        graph = build_dependency_graph(
            corpus, min_cooccurrence=10, min_presence=9, n_cells=120, rho_min=0.1, device=device, progress=False
        )
        assert bool(pretend.launched) == (device != "cpu")
        graph.save(tmp_path / f"{device}.safetensors")
        files.append((tmp_path / f"{device}.safetensors").read_bytes())
    assert graph.n_edges > 20
    assert len(set(files)) == 1


def test_the_command_line_takes_a_device(pretend, make_corpus, tmp_path, capsys):
    from corrmask_fast import write_corpus
    from corrmask_fast.cli.main import main

    write_corpus(make_corpus(80, 12, seed=3), tmp_path / "cells.npz")
    command = ["graph", "build", str(tmp_path / "cells.npz"), "-o", str(tmp_path / "graph.safetensors")]
    assert main([*command, "--min-cooccurrence", "5", "--min-presence", "5", "--device", "cuda", "--no-progress"]) == 0
    assert "correlate_overlaps" in pretend.launched
    assert "saved to" in capsys.readouterr().out


def test_a_graph_without_edges_warns_the_same(pretend):
    for cells, min_presence in (([[A], [B]], 1), ([[A, B, C]] * 4, 1), ([[A], [B]], 2)):
        messages = []
        for device in ("cpu", "cuda"):
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                build_dependency_graph(
                    corpus_of(cells), min_presence=min_presence, min_cooccurrence=1, device=device, progress=False
                )
            messages.append([str(warning.message) for warning in caught])
        assert messages[0] == messages[1]
        assert len(messages[0]) == 1


def test_progress_counts_every_pair(pretend, make_corpus, capsys):
    build_dependency_graph(make_corpus(100, 20), min_cooccurrence=1, min_presence=5, rho_min=0.0, device="cuda")
    err = capsys.readouterr().err
    for what in ("reading cells", "correlating genes", "comparing overlaps"):
        assert f"{what}: 100%" in err


def test_an_explicit_request_is_obeyed_or_refused(make_corpus, monkeypatch):
    build = partial(build_dependency_graph, make_corpus(60, 5), min_cooccurrence=5, progress=False)
    if torch.version.cuda is None:
        with pytest.raises(InputError, match=r"device='cuda': this PyTorch .* without CUDA; install .* or 'cpu'"):
            build(device="cuda")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match=r"device='cuda': .* sees no CUDA device; look at nvidia-smi .* or 'cpu'"):
        build(device="cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(MissingExtraError, match=r"'cupy'.*corrmask-fast\[cuda13\]"):
        build(device="cuda")


@pytest.mark.parametrize("has_cupy", [False, True])
@pytest.mark.parametrize("has_device", [False, True])
@pytest.mark.parametrize("version", [None, "13.0"])  # None: PyTorch for AMD's GPUs, which it calls "cuda" too
def test_auto_takes_a_device_where_cupy_and_torch_see_one(monkeypatch, has_cupy, has_device, version):
    monkeypatch.setattr(cuda.importlib.util, "find_spec", lambda _: object() if has_cupy else None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_device)
    monkeypatch.setattr(torch.version, "cuda", version)
    assert building._kind_of_device("auto") == ("cuda" if has_cupy and has_device and version else "cpu")
    assert building._kind_of_device("cpu") == "cpu"


def test_cells_beyond_the_memory_of_the_host_are_refused(pretend, make_corpus, monkeypatch):
    monkeypatch.setattr(building, "plan_chunks", lambda *_: memory.ChunkPlan(16, 1 << 20))
    build = partial(build_dependency_graph, make_corpus(60, 9), min_cooccurrence=1, min_presence=1, progress=False)
    with pytest.raises(InputError, match=r"device='cuda' holds all sampled cells in memory.*or use device='cpu'"):
        build(device="cuda")
    assert build(device="auto").n_edges == build(device="cpu").n_edges
    assert not pretend.launched


def test_auto_does_not_wait_for_torch_where_cupy_is_not_installed():
    code = (
        "import sys, importlib.util as u; find = u.find_spec\n"
        "u.find_spec = lambda name, *rest: None if name == 'cupy' else find(name, *rest)\n"
        "from corrmask_fast.graph.build.building import _kind_of_device\n"
        "assert _kind_of_device('auto') == _kind_of_device('cpu') == 'cpu'\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


# ------------------------------------------------------------------------------------------------ tasks


class RankOfTwo(Team):
    """One of two ranks, each in a thread of its own."""

    size = 2

    def __init__(self, rank, meet, given):
        self.rank, self._meet, self._given = rank, meet, given

    def share(self, costs):
        return np.arange(self.rank, len(costs), 2)

    def agree(self, settings):
        assert len({str(rank["settings"]) for rank in self.gather({"settings": str(settings)})}) == 1

    def gather(self, arrays):
        self._given[self.rank] = {name: np.array(array) for name, array in arrays.items()}
        self._meet.wait(timeout=60)
        both = list(self._given)
        self._meet.wait(timeout=60)
        return iter(both)


def test_ranks_divide_the_tasks(cuda_host, make_corpus, monkeypatch):
    corpus = make_corpus(80, 40, seed=7)
    expected = every_stage(CpuStages, corpus, **BASE)
    monkeypatch.setattr(overlaps, "MIN_WORK", 300)  # several tasks of overlaps, too
    device, meet, given = cuda_host.graph.EmulatedDevice(threads=32), threading.Barrier(2), [{}, {}]
    launch, one_at_a_time, launches = device.launch, threading.Lock(), []

    def launch_alone(file, name, *args, **options):
        with one_at_a_time:
            launch(file, name, *args, **options)
            launches.append((threading.current_thread().name, name))

    monkeypatch.setattr(device, "launch", launch_alone)

    def run(rank):
        work = graph_work.Work(RankOfTwo(rank, meet, given))
        return every_stage(stages_cuda.CudaStages, corpus, cut=stages_cuda.Cut(9, 33, 4), work=work, **BASE)

    with cuda_host.graph.in_place(device), ThreadPoolExecutor(2) as pool:
        for got in pool.map(run, range(2)):
            assert_equal_stages(got, expected)
    for kernel in ("keep_strongest", "correlate_overlaps"):
        by_rank = Counter(thread for thread, name in launches if name == kernel)
        assert len(by_rank) == 2


def test_a_build_goes_on_from_its_checkpoint(pretend, make_corpus, tmp_path, monkeypatch):
    corpus = make_corpus(150, 30, seed=3)
    build = partial(build_dependency_graph, corpus, min_cooccurrence=10, min_presence=9, rho_min=0.1, progress=False)
    monkeypatch.setattr(stages_cuda, "PART_GENES", 7)
    monkeypatch.setattr(stages_cuda.Cut, "fitting", lambda *_: stages_cuda.Cut(7, 48, 7))
    monkeypatch.setattr(graph_work, "SAVE_SECONDS", 0.0)
    launch, calls = pretend.launch, []

    def failing(file, name, *args, **options):
        calls.append(name)
        if calls.count("keep_strongest") > 4 and "correlate_overlaps" not in calls:
            raise KeyboardInterrupt
        launch(file, name, *args, **options)

    monkeypatch.setattr(pretend, "launch", failing)
    with pytest.raises(KeyboardInterrupt):
        build(device="cuda", checkpoint=tmp_path / "state")
    monkeypatch.setattr(pretend, "launch", launch)
    pretend.launched.clear()
    resumed = build(device="cuda", checkpoint=tmp_path / "state")
    assert 0 < pretend.launched.count("keep_strongest") <= 2 * (-(-30 // 7) - 2)
    build(device="cpu").save(tmp_path / "whole.safetensors")
    resumed.save(tmp_path / "resumed.safetensors")
    assert (tmp_path / "whole.safetensors").read_bytes() == (tmp_path / "resumed.safetensors").read_bytes()
