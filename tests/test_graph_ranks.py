"""Ranks that differ in what each has for itself, and ranks whose store is gone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap

from graph_cases import free_port

from corrmask_fast import build_dependency_graph, write_corpus
from corrmask_fast.graph.build import building
from corrmask_fast.graph.build.memory import ChunkPlan

PARAMETERS = {"rho_min": 0.05, "min_cooccurrence": 5, "min_presence": 5, "n_neighbors": 4, "progress": False}

# Two builds in chunks, by ranks that have other memory: as much as makes the given chunks, or (None) nobody knows.
# Then rank 0, which holds the store, dies, first seen inside of a team.
RANK = """
    import json, os, signal, sys, time
    import numpy as np
    from corrmask_fast import InputError, build_dependency_graph, read_corpus
    from corrmask_fast.graph.build import building, distributed, memory
    from corrmask_fast.graph.build.records import Cells

    folder, rank = sys.argv[1], int(os.environ["RANK"])
    parameters = json.load(open(folder + "/parameters.json"))
    corpus = read_corpus(folder + "/cells.npz")
    memory.MIN_CHUNK_CELLS = 8
    memory.Need.in_memory = property(lambda need: float("inf"))  # cells pass in chunks, however few there are
    find, said = building.plan_chunks, {}

    def found(*given):
        plan = find(*given)
        said.setdefault("chunk_cells", []).append(plan.chunk_cells)
        return plan

    building.plan_chunks = found

    def build(name, chunk_cells):
        need = memory.Need.of(Cells(corpus, range(200), corpus.max_length))
        a_cell = need.chunk(1) - need.chunk(0)
        free = (need.tables + need.chunk(0) + 3 * a_cell * (chunk_cells + 0.5)) * 2 / memory.SHARE_OF_FREE
        memory.free_memory = lambda: int(free) if chunk_cells < 200 else None
        build_dependency_graph(corpus, **parameters).save(f"{folder}/{name}-{rank}.safetensors")

    try:
        with distributed.ProcessGroup("cpu", 1):
            build("near", (70, 69)[rank])
            build("unknown", (200, 80)[rank])
            with distributed.current_team() as team:
                begin = time.monotonic()
                try:
                    team.any(True)  # both are there
                    if rank == 0:
                        os.kill(os.getpid(), signal.SIGKILL)
                    team.any(True)
                except ConnectionError as error:
                    said["inside"] = str(error)
                try:
                    distributed.current_team().__enter__()
                except ConnectionError as error:
                    said["next"] = str(error)
            raise InputError("told to nobody")
    except InputError as error:
        said["outside"] = str(error)
    said["seconds"] = time.monotonic() - begin
    print(json.dumps(said))
"""


def test_ranks_of_unequal_memory_and_one_that_takes_the_store_with_it(make_corpus, tmp_path, monkeypatch):
    corpus = make_corpus(200, 60, seed=4)
    write_corpus(corpus, tmp_path / "cells.npz")
    (tmp_path / "parameters.json").write_text(json.dumps({**PARAMETERS, "max_length": corpus.max_length}))
    # In this process first: kernels are compiled once, and ranks find them.
    whole = build_dependency_graph(corpus, **PARAMETERS, max_length=corpus.max_length)
    assert whole.n_edges > 50
    whole.save(tmp_path / "whole.safetensors")
    monkeypatch.setattr(building, "plan_chunks", lambda *_: ChunkPlan(64, 2_000_000))
    build_dependency_graph(corpus, **PARAMETERS, max_length=corpus.max_length).save(tmp_path / "one.safetensors")
    assert (tmp_path / "one.safetensors").read_bytes() == (tmp_path / "whole.safetensors").read_bytes()
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(RANK), str(tmp_path)],
            env={**os.environ, **place, "RANK": str(rank), "LOCAL_WORLD_SIZE": "2"},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        outputs = [process.communicate(timeout=80) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [-signal.SIGKILL, 0], outputs
    said = json.loads(outputs[1][0])
    assert said["chunk_cells"] == [69, 80]
    for name in ("near", "unknown"):
        for rank in range(2):
            saved = (tmp_path / f"{name}-{rank}.safetensors").read_bytes()
            assert saved == (tmp_path / "whole.safetensors").read_bytes()
    for place in ("inside", "next"):
        assert said[place].startswith("rank 1 lost contact with the other ranks: ")
    assert said["outside"] == "told to nobody"
    assert said["seconds"] < 20
