"""Ranks that wait for one that never comes, or that hangs: each wait ends, with a message."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest
from graph_cases import free_port

from corrmask_fast import InputError, write_corpus
from corrmask_fast.graph.build.distributed import limit_of

BOUND = 60  # seconds until a process of these tests must have ended: with the default limits none would

RANK = """
    import os, signal, sys
    import torch.distributed as dist
    from corrmask_fast import build_dependency_graph, read_corpus
    from corrmask_fast.graph.build import work

    dist.init_process_group("gloo")
    divide, last = work.Work.divide, dist.get_rank() == 1

    def interrupted(self, name, *rest):
        if last and name == sys.argv[2]:
            os.kill(os.getpid(), signal.SIGSTOP)
        return divide(self, name, *rest)

    work.Work.divide = interrupted
    if last and sys.argv[2] == "nothing":
        os.kill(os.getpid(), signal.SIGKILL)
    try:
        build_dependency_graph(
            read_corpus(sys.argv[1] + "/cells.npz"), min_cooccurrence=5, min_presence=5, rho_min=0.05, progress=False
        )
    except ConnectionError as error:
        print(error, flush=True)
    os._exit(0)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory, make_corpus):
    folder = tmp_path_factory.mktemp("waits")
    write_corpus(make_corpus(200, 60, seed=4), folder / "cells.npz")
    return folder


def start(*arguments, rank, port, **environment):
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "WORLD_SIZE": "2"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, *map(str, arguments)], env={**os.environ, **place, **environment}, **pipes)


def output_of(processes, which):
    try:
        return processes[which].communicate(timeout=BOUND)
    finally:
        for process in processes:
            process.kill()


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_whose_launcher_is_gone_does_not_wait_for_it(folder, tmp_path, rank):
    """Rank 0 holds the store itself, and nobody comes; rank 1 looks for the store of a launcher that was killed."""
    command = ("-m", "corrmask_fast", "graph", "build", folder / "cells.npz", "-o", tmp_path / "g.safetensors")
    agent = {"TORCHELASTIC_USE_AGENT_STORE": "True"} if rank else {}
    process = start(*command, rank=rank, port=free_port(), CORRMASK_JOIN_SECONDS="3", **agent)
    _, err = output_of([process], 0)
    last = err.splitlines()[-1]
    assert last.startswith(f"corrmask-fast: error: rank {rank} of 2 did not find all others within 3 s ("), err
    assert last.endswith("see what the others say, and that MASTER_ADDR and MASTER_PORT are reached from all of them")
    assert process.returncode


@pytest.mark.parametrize(
    ("where", "message"),
    [
        (
            "nothing",
            "rank 0 waits for rank 1 since 2 s: inside a process group of several ranks all of them build the ",
        ),
        ("pairs", "rank 0 lost contact with the other ranks: [Rank 0]: Rank 1 failed to pass monitoredBarrier in 3000"),
    ],
)
def test_a_rank_that_is_killed_before_it_joins_or_hangs_later(folder, where, message):
    port = free_port()
    limits = {"CORRMASK_JOIN_SECONDS": "2", "CORRMASK_WAIT_SECONDS": "3", "OMP_NUM_THREADS": "1"}
    processes = [start("-c", textwrap.dedent(RANK), folder, where, rank=rank, port=port, **limits) for rank in range(2)]
    out, err = output_of(processes, 0)
    assert out.startswith(message), (out, err)


@pytest.mark.parametrize("text", ["soon", "0", "-1", "inf", "nan"])
def test_a_limit_that_is_none(monkeypatch, text):
    monkeypatch.setenv("CORRMASK_WAIT_SECONDS", text)
    with pytest.raises(
        InputError, match=rf"^CORRMASK_WAIT_SECONDS must be a number of seconds above 0; got '{text}'; "
    ):
        limit_of("CORRMASK_WAIT_SECONDS", 5.0)
    monkeypatch.setenv("CORRMASK_WAIT_SECONDS", "")
    assert limit_of("CORRMASK_WAIT_SECONDS", 5.0) == 5.0
