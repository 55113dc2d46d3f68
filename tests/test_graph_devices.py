"""Several processes with GPUs: which device each takes, and a process group that sends GPU tensors alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist
from graph_cases import free_port

from corrmask_fast import build_dependency_graph, write_corpus
from corrmask_fast.graph.build import memory as graph_memory
from corrmask_fast.graph.build.cuda_device import warn_of_idle_devices
from corrmask_fast.graph.build.distributed import ProcessGroup, Team
from corrmask_fast.graph.build.records import Cells

PARAMETERS = {"rho_min": 0.05, "min_cooccurrence": 5, "min_presence": 5, "n_neighbors": 4, "progress": False}

RANK = """
    import json, os, sys
    import torch, torch.distributed as dist
    from corrmask_fast import build_dependency_graph
    from corrmask_fast.graph.build import building as graph_building
    from corrmask_fast.graph.build import cuda_device as graph_device
    from corrmask_fast.graph.build import memory as graph_memory
    from corrmask_fast.graph.build import overlaps as graph_overlaps
    from corrmask_fast import read_corpus
    from corrmask_fast.graph.build import stages_cuda as graph_stages_cuda

    folder, cuda_host = sys.argv[1:3]
    parameters = json.load(open(folder + "/parameters.json"))
    corpus = read_corpus(folder + "/cells.npz")
    # As with NCCL: nothing in host memory can be sent; and the group is bound to a device, as Trainer binds it.
    dist.init_process_group("cuda:gloo")
    rank, said = dist.get_rank(), {}
    dist.distributed_c10d._get_default_group().bound_device_id = torch.device("cuda", rank)
    try:
        dist.all_reduce(torch.ones(1))
    except RuntimeError as error:
        said["host memory"] = str(error)

    def attempt(name, **more):
        try:
            build_dependency_graph(corpus, **{**parameters, **more}).save(f"{folder}/{name}-{rank}.safetensors")
        except Exception as error:
            said[name] = f"{type(error).__name__}: {error}"

    attempt("cpu")
    find = graph_building.plan_chunks
    graph_building.plan_chunks = lambda *_: graph_memory.ChunkPlan(64, 2_000_000)
    attempt("streamed")
    graph_building.plan_chunks = find

    if cuda_host:
        sys.path.insert(0, cuda_host)
        import graph
        device = graph.EmulatedDevice(threads=32)
        cut = graph_stages_cuda.Cut(7, 48, 7)  # work for both
        graph_stages_cuda.Cut.fitting, graph_overlaps.MIN_WORK = lambda *_: cut, 2000
        graph_device.check_cuda = lambda: None
        with graph.in_place(device):
            attempt("cuda", device="cuda")
            said["kernels"] = sorted(set(device.launched))
            attempt("mixed", device="cuda" if rank else "cpu")
    json.dump(said, open(f"{folder}/said-{rank}.json", "w"))
    dist.destroy_process_group()
"""


def test_a_group_that_sends_gpu_tensors_alone(cuda_host, make_corpus, tmp_path):
    """The team's own exchange does not go over it, on the CPU and on (emulated) GPUs; the graph is that of one."""
    corpus = make_corpus(200, 60, seed=4)
    write_corpus(corpus, tmp_path / "cells.npz")
    (tmp_path / "parameters.json").write_text(json.dumps(PARAMETERS))
    (tmp_path / "rank.py").write_text(textwrap.dedent(RANK))
    command = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(free_port())]
    run = subprocess.run(
        [sys.executable, *command, str(tmp_path / "rank.py"), str(tmp_path), str(cuda_host.folder)],
        env={**os.environ, "CORRMASK_NUM_THREADS": "1"}, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    graph = build_dependency_graph(corpus, **PARAMETERS)
    assert graph.n_edges > 50
    graph.save(tmp_path / "whole.safetensors")
    for rank in range(2):
        said = json.loads((tmp_path / f"said-{rank}.json").read_text())
        assert "No backend type associated with device type cpu" in said.pop("host memory")
        assert {"keep_strongest", "correlate_overlaps"} <= set(said.pop("kernels"))
        assert said == {
            "mixed": "InputError: the kind of device must be the same on all ranks; got 'cpu' on rank 0 and 'cuda' on "
            "rank 1; give every rank device='cpu', or device='cuda' where each has a GPU and CuPy"
        }
        for name in ("cpu", "streamed", "cuda"):
            saved = (tmp_path / f"{name}-{rank}.safetensors").read_bytes()
            assert saved == (tmp_path / "whole.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("device", "gpus", "nccl", "local_rank", "backend", "taken"),
    [
        ("auto", 8, True, 5, "cpu:gloo,cuda:nccl", 5),
        ("cuda", 2, True, 5, "cpu:gloo,cuda:nccl", 1),  # more ranks than GPUs
        ("cuda", 2, False, 1, "gloo", 1),  # a PyTorch without NCCL
        ("cpu", 8, True, 5, "gloo", None),
        ("auto", 0, False, 5, "gloo", None),
    ],
)
def test_each_rank_of_a_machine_takes_its_gpu(monkeypatch, device, gpus, nccl, local_rank, backend, taken):
    seen = SimpleNamespace(backend=None, taken=None)
    place = {"RANK": "13", "WORLD_SIZE": "16", "LOCAL_RANK": str(local_rank), "LOCAL_WORLD_SIZE": "8"}
    for name, value in {**place, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "set_device", lambda index: setattr(seen, "taken", index))
    monkeypatch.setattr(dist, "is_nccl_available", lambda: nccl)
    monkeypatch.setattr(dist, "init_process_group", lambda name, **_: setattr(seen, "backend", name))
    monkeypatch.setattr(dist, "get_rank", lambda: 13)
    monkeypatch.setattr(dist, "destroy_process_group", lambda: None)
    with ProcessGroup(device, threads=1) as group:
        assert group.rank == 13
    assert (seen.backend, seen.taken) == (backend, taken)


class Gathered(Team):
    """Rank 0 of a team whose ranks stand where ``everybody`` says."""

    def __init__(self, everybody):
        self.everybody, self.size = everybody, len(everybody)

    def gather(self, arrays):
        del arrays
        for one in self.everybody:
            yield {"text": np.frombuffer(json.dumps(one).encode(), np.uint8)}


def test_ranks_that_leave_gpus_idle_are_told():
    def told(*everybody):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            warn_of_idle_devices(Gathered(everybody), SimpleNamespace(whereabouts=lambda: everybody[0]))
        return [str(warning.message) for warning in caught]

    assert told(*(("a", f"GPU-{i}", 8) for i in range(8))) == []
    assert told(*(("a", f"GPU-{i}", 1) for i in range(4))) == []  # CUDA_VISIBLE_DEVICES gave each its own
    assert told(*(("a", f"GPU-{i % 2}", 2) for i in range(4))) == []  # more ranks than GPUs
    assert told(("a", "GPU-0", 1), ("b", "GPU-0", 1)) == []
    (text,) = told(*(("a", "GPU-0", 8),) * 8, ("b", "GPU-0", 1))
    assert text.startswith("8 ranks on a take 1 of its 8 GPUs; to give each its own, call torch.cuda.set_device(")


def test_ranks_of_a_machine_share_what_memory_is_free(make_corpus, monkeypatch):
    corpus, team = make_corpus(200, 60, seed=4), Team()
    need = graph_memory.Need.of(Cells(corpus, range(200), 2048))
    monkeypatch.setattr(graph_memory, "free_memory", lambda: 2 * need.in_memory)  # of which 80 % may be taken
    assert graph_memory.plan_chunks(Cells(corpus, range(200), 2048), None, team) is None
    team.local_size = 2
    with pytest.raises(graph_memory.InputError, match=r"or start fewer processes \(now 2 on this machine\)$"):
        graph_memory.plan_chunks(Cells(corpus, range(200), 2048), None, team)
