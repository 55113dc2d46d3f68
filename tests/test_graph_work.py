"""Builds that are interrupted, and builds by several processes: the same file as one process that is left alone."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
from contextlib import contextmanager

import numpy as np
import pytest
from graph_cases import free_port
from safetensors.numpy import load_file

from corrmask_fast import Corpus, InputError, build_dependency_graph, write_corpus
from corrmask_fast.graph.build import building as graph_building
from corrmask_fast.graph.build import checkpoint as graph_checkpoint
from corrmask_fast.graph.build import overlaps as graph_overlaps
from corrmask_fast.graph.build import products as graph_products
from corrmask_fast.graph.build import stages_cpu as graph_stages
from corrmask_fast.graph.build import stages_streamed as graph_streamed
from corrmask_fast.graph.build import work as graph_work
from corrmask_fast.graph.build.distributed import Team
from corrmask_fast.graph.build.memory import ChunkPlan
from corrmask_fast.graph.build.products import Cut, Rates, StrongestPartners

PARAMETERS = {"rho_min": 0.05, "min_cooccurrence": 5, "min_presence": 5, "n_neighbors": 4, "progress": False}

# What a process of these tests runs first: small tasks, and a checkpoint after each.
PRELUDE = """
    import os, signal, sys, json, time
    from corrmask_fast import read_corpus, build_dependency_graph, InputError, set_num_threads
    from corrmask_fast.graph.build import building as graph_building
    from corrmask_fast.graph.build import checkpoint as graph_checkpoint
    from corrmask_fast.graph.build import distributed as graph_distributed
    from corrmask_fast.graph.build import memory as graph_memory
    from corrmask_fast.graph.build import overlaps as graph_overlaps
    from corrmask_fast.graph.build import products as graph_products
    from corrmask_fast.graph.build import stages_streamed as graph_streamed
    from corrmask_fast.graph.build import work as graph_work
    from corrmask_fast.graph.build.products import Cut
    set_num_threads(1)
    graph_products.Cut = lambda: Cut(tile_genes=5)
    graph_overlaps.MIN_WORK = 2000
    graph_work.SAVE_SECONDS = graph_streamed.SUMS_SECONDS = 0.0
    folder = sys.argv[1]
    corpus = read_corpus(folder + "/cells.npz")
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory, make_corpus):
    """A corpus of 200 cells, and the file of its graph."""
    folder = tmp_path_factory.mktemp("work")
    corpus = make_corpus(200, 60, seed=4)
    write_corpus(corpus, folder / "cells.npz")
    (folder / "parameters.json").write_text(json.dumps(PARAMETERS))
    graph = build_dependency_graph(corpus, **PARAMETERS)
    assert graph.n_edges > 50
    graph.save(folder / "graph.safetensors")
    return folder


@pytest.fixture
def corpus(make_corpus):
    return make_corpus(200, 60, seed=4)


def program(*parts):
    return "\n".join(textwrap.dedent(part) for part in (PRELUDE, *parts))


def start(text, *arguments, **environment):
    command = [sys.executable, "-c", text, *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env={**os.environ, **environment}, **pipes)


def saved(graph, path):
    graph.save(path)
    return path.read_bytes()


# -------------------------------------------------------------------------------------------------------- checkpoints

# Kills itself when it has written, or is about to write, the given part for the given time.
KILL = """
    what, when, after = sys.argv[2], int(sys.argv[3]), sys.argv[4] == "after"
    save, replace = graph_checkpoint.Checkpoint.save, graph_checkpoint.Path.replace
    saves = 0

    def counted(self, name, layout, arrays):
        global saves
        saves += name == what
        if name == what and saves == when and not after:
            graph_checkpoint.Path.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # written, not yet renamed
        save(self, name, layout, arrays)
        if name == what and saves == when:
            os.kill(os.getpid(), signal.SIGKILL)

    graph_checkpoint.Checkpoint.save = counted
    parameters = json.load(open(folder + "/parameters.json"))
    if len(sys.argv) > 6:
        graph_building.plan_chunks = lambda *_: graph_memory.ChunkPlan(*map(int, sys.argv[6:]))
    build_dependency_graph(corpus, checkpoint=sys.argv[5], **parameters)
"""


def test_a_killed_build_goes_on_and_gives_the_same_file(folder, corpus, tmp_path):
    """One kill after the other, each of a build that goes on from where the last one was killed."""
    state = tmp_path / "state"
    for place in (("counts", 1, "after"), ("pairs", 3, "after"), ("pairs", 2, "before"), ("overlaps", 2, "after")):
        process = start(program(KILL), folder, *place, state)
        _, err = process.communicate(timeout=60)
        assert process.returncode == -signal.SIGKILL, err
        done = done_in(state, "pairs")
        if place == ("pairs", 3, "after"):
            assert done.sum() == 3
        elif place == ("pairs", 2, "before"):
            assert 4 == done.sum() < done.size  # it took up three; the file of the second task more was never renamed
            assert list(state.glob(".pairs*"))
    assert done.all()
    assert 2 == done_in(state, "overlaps").sum() < done_in(state, "overlaps").size
    with small_tasks():
        graph = build_dependency_graph(corpus, checkpoint=state, **PARAMETERS)
        assert saved(graph, tmp_path / "graph.safetensors") == (folder / "graph.safetensors").read_bytes()
        assert done_in(state, "overlaps").all()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(graph_stages, "correlate_overlaps", None)  # nothing is left to do
            again = build_dependency_graph(corpus, checkpoint=state, **PARAMETERS)
    assert saved(again, tmp_path / "again.safetensors") == (folder / "graph.safetensors").read_bytes()


def test_a_killed_build_of_chunks_goes_on_and_gives_the_same_file(folder, corpus, tmp_path):
    state, plan = tmp_path / "state", (64, 1_000_000)
    for place in (("levels", 1, "after"), ("sums", 2, "after"), ("sums", 1, "after"), ("overlaps", 2, "after")):
        process = start(program(KILL), folder, *place, state, *plan)
        _, err = process.communicate(timeout=60)
        assert process.returncode == -signal.SIGKILL, err
        if place[0] == "sums":  # of four chunks, two were added; then, from there on, the third
            assert load_file(state / "sums-0.safetensors")["cells"] == (128 if place[1] == 2 else 192)
    assert not (state / "sums-0.safetensors").exists()
    assert done_in(state, "pairs").all()
    assert 2 <= done_in(state, "overlaps").sum() < done_in(state, "overlaps").size
    with small_tasks(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(graph_building, "plan_chunks", lambda *_: ChunkPlan(*plan))
        patch.setattr(graph_streamed, "count_levels", None)  # the levels were saved
        graph = build_dependency_graph(corpus, checkpoint=state, **PARAMETERS)
    assert saved(graph, tmp_path / "graph.safetensors") == (folder / "graph.safetensors").read_bytes()
    # What chunks have saved serves a build in memory too.
    with small_tasks():
        graph = build_dependency_graph(corpus, checkpoint=state, **PARAMETERS)
    assert saved(graph, tmp_path / "graph.safetensors") == (folder / "graph.safetensors").read_bytes()


def done_in(state, name):
    path = state / f"{name}-0.safetensors"
    return load_file(path)["done"] if path.exists() else np.zeros(0, np.bool_)


@contextmanager
def small_tasks():
    """The tasks of PRELUDE, in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graph_products, "Cut", lambda: Cut(tile_genes=5))
        patch.setattr(graph_overlaps, "MIN_WORK", 2000)
        patch.setattr(graph_work, "SAVE_SECONDS", 0.0)
        yield


def test_a_part_that_is_cut_off_or_altered_is_done_again(folder, corpus, tmp_path):
    state = tmp_path / "state"
    with small_tasks():
        build_dependency_graph(corpus, checkpoint=state, **PARAMETERS)
        part = state / "pairs-0.safetensors"
        whole = part.read_bytes()
        for damaged in (whole[: len(whole) // 2], whole[:-1] + bytes([whole[-1] ^ 1]), b""):
            part.write_bytes(damaged)
            with pytest.warns(UserWarning, match=r"pairs-0.safetensors .*(damaged|truncated).* computed again"):
                graph = build_dependency_graph(corpus, checkpoint=state, **PARAMETERS)
            assert part.read_bytes() == whole
            assert saved(graph, tmp_path / "graph.safetensors") == (folder / "graph.safetensors").read_bytes()
    # Other tasks (another version, another cut): what is saved of them is of no use, and does no harm.
    graph = build_dependency_graph(corpus, checkpoint=state, **PARAMETERS)
    assert saved(graph, tmp_path / "graph.safetensors") == (folder / "graph.safetensors").read_bytes()


def test_a_checkpoint_of_another_build_is_refused(corpus, make_corpus, tmp_path):
    state = tmp_path / "state"
    build_dependency_graph(corpus, checkpoint=state, **PARAMETERS)
    files = {path.name: path.read_bytes() for path in state.iterdir()}

    def refused(corpus, message, **parameters):
        with pytest.raises(InputError, match=message):
            build_dependency_graph(corpus, checkpoint=state, **{**PARAMETERS, **parameters})

    refused(
        corpus, r"belongs to another build: rho_min was 0.05 there and is 0.1 now; .* or another folder", rho_min=0.1
    )
    refused(corpus, r"belongs to another build: max_genes was None there and is 7 now", max_genes=7)
    refused(make_corpus(200, 60, seed=5), r"belongs to another build: corpus \(its fingerprint\) was")
    # Two genes of one cell that changed places, of 200: lengths and presence of all genes are the same.
    tokens = corpus.tokens.copy()
    first = corpus.indptr[np.flatnonzero(np.diff(corpus.indptr) > 1)[100]]
    tokens[[first, first + 1]] = tokens[[first + 1, first]]
    swapped = Corpus(corpus.indptr, tokens, corpus.vocabulary)
    refused(swapped, r"belongs to another build: corpus \(its fingerprint\) was")
    # A corpus that changes after it was looked at is seen when the cells are counted.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graph_building, "fingerprint_cells", lambda *_: "the same")
        other = tmp_path / "other"
        build_dependency_graph(corpus, checkpoint=other, **PARAMETERS)
        with pytest.raises(InputError, match=r"belongs to another corpus: other tokens are counted in it now"):
            build_dependency_graph(swapped, checkpoint=other, **PARAMETERS)
    assert files == {path.name: path.read_bytes() for path in state.iterdir()}

    (state / "build.json").write_text("{")
    refused(corpus, r"build.json is no description of a build: it is damaged .*; delete .*, or give another folder")
    (tmp_path / "file").write_text("")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    for folder, message in (
        ("file", r"cannot write to .*file: it is a file; give the name of a folder"),
        ("full", r"checkpoint=.*full holds other files already; give a new or an empty folder"),
        ("no/where", r"the folder .*no does not exist; create it first"),
    ):
        with pytest.raises(InputError, match=message):
            build_dependency_graph(corpus, checkpoint=tmp_path / folder, **PARAMETERS)


def test_sums_of_tasks_of_another_plan_are_not_taken_up(folder, corpus, tmp_path):
    class EndedError(Exception):
        pass

    save = graph_checkpoint.Checkpoint.save

    def ended(self, name, layout, arrays):
        save(self, name, layout, arrays)
        if name == "sums":
            raise EndedError

    def build(method):
        rates = Rates(**{**dict.fromkeys(Rates._fields, 1e-9), method: 1.0})
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                graph_products, "Cut", lambda: Cut(tile_genes=7, rates=rates)
            )  # as many tasks in another order
            patch.setattr(graph_building, "plan_chunks", lambda *_: ChunkPlan(64, 1_000_000))
            patch.setattr(graph_streamed, "SUMS_SECONDS", 0.0)
            if method == "scatter":
                patch.setattr(graph_checkpoint.Checkpoint, "save", ended)
            return build_dependency_graph(corpus, checkpoint=tmp_path / "state", **PARAMETERS)

    with pytest.raises(EndedError):
        build("scatter")
    assert saved(build("dense"), tmp_path / "graph.safetensors") == (folder / "graph.safetensors").read_bytes()


def test_lists_merge_whatever_they_share():
    """Lists of overlapping sets of pairs, merged in any order, are the lists of all pairs."""
    rng = np.random.default_rng(0)
    G = 30
    u, v = np.triu_indices(G, 1)
    pairs = u.astype(np.int32), v.astype(np.int32), rng.choice(np.linspace(-1, 1, 21), u.size)  # ties

    def lists(chosen):
        out = StrongestPartners(G, 4, 0.1)
        out.offer(tuple(column[chosen] for column in pairs))
        return out

    expected = lists(rng.permutation(u.size)).pairs()
    parts = [lists(np.flatnonzero(rng.random(u.size) < 0.5)) for _ in range(5)]
    parts.append(lists(np.setdiff1d(np.arange(u.size), np.flatnonzero(pairs[2] > 2))))  # all, so that none is missing
    for order in ((0, 1, 2, 3, 4, 5), (5, 3, 1), (2, 5, 0, 5)):
        merged = StrongestPartners(G, 4, 0.1)
        for number in order:
            merged.merge(parts[number].arrays())
        for got, want in zip(merged.pairs(), expected, strict=True):
            np.testing.assert_array_equal(got, want)


def test_tasks_are_shared_by_cost():
    teams = [Team() for _ in range(3)]
    for rank, team in enumerate(teams):
        team.rank, team.size = rank, 3
    for costs in ([5, 4, 3, 3, 2, 1], [1], [], [2] * 7, np.random.default_rng(0).random(100)):
        shares = [team.share(costs) for team in teams]
        assert sorted(np.concatenate(shares).tolist()) == list(range(len(costs)))
        loads = [sum(costs[i] for i in share) for share in shares]
        assert max(loads) - min(loads) <= max([0, *costs])
    assert [share.tolist() for share in (team.share([5, 4, 3, 3, 2, 1]) for team in teams)] == [[0, 5], [1, 4], [2, 3]]


# -------------------------------------------------------------------------------------------------- several processes

TEAM = """
    import torch.distributed as dist

    rank = int(os.environ["RANK"])
    dist.init_process_group("gloo")
    parameters = json.load(open(folder + "/parameters.json"))
    graph_distributed.TELL_SECONDS = 2.0

    def attempt(name, corpus=corpus, **more):
        begin = time.monotonic()
        try:
            build_dependency_graph(corpus, **{**parameters, **more}).save(f"{folder}/{name}-{rank}.safetensors")
            result = "built"
        except Exception as error:
            result = f"{type(error).__name__}: {error}"
        print(json.dumps([name, result, time.monotonic() - begin]), flush=True)

    def when_overlaps_begin(then, on_rank):
        divide = graph_work.Work.divide

        def interrupted(self, name, *rest):
            if name == "overlaps" and rank == on_rank:
                then()
            return divide(self, name, *rest)

        graph_work.Work.divide = interrupted
        return lambda: setattr(graph_work.Work, "divide", divide)

    def fail():
        raise OSError("the disk is gone")
"""
SCENARIOS = """
    attempt("parity")
    found = graph_building.plan_chunks
    graph_building.plan_chunks = lambda *_: graph_memory.ChunkPlan(64, 2_000_000)
    attempt("streamed", checkpoint=folder + "/streamed")
    graph_building.plan_chunks = found
    attempt("parameters", seed=1 if rank == 1 else 0)
    attempt("range", n_neighbors=0 if rank == 2 else 4)
    attempt("corpus", corpus.take(range(rank == 3, 200)))
    back = when_overlaps_begin(fail, on_rank=1)
    attempt("raised", checkpoint=folder + "/state")
    back()
    attempt("resumed", checkpoint=folder + "/state")
    when_overlaps_begin(lambda: os.kill(os.getpid(), signal.SIGKILL), on_rank=2)
    attempt("died")
    os._exit(0)  # nobody is left to take leave of
"""


def run_team(size, text, *arguments):
    """Run a program on ``size`` ranks; return each rank's lines of JSON."""
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(size)}
    processes = [start(text, *arguments, RANK=str(rank), OMP_NUM_THREADS="1", **place) for rank in range(size)]
    try:
        outputs = [process.communicate(timeout=80) for process in processes]
    finally:
        for process in processes:
            process.kill()
    lines = [[json.loads(line) for line in out.splitlines() if line.startswith("[")] for out, _ in outputs]
    assert all(lines), outputs
    return lines


def test_four_processes(folder):
    results = [
        {name: (text, took) for name, text, took in lines} for lines in run_team(4, program(TEAM, SCENARIOS), folder)
    ]

    def said(name):
        return [result[name][0] if name in result else None for result in results]

    whole = (folder / "graph.safetensors").read_bytes()
    for name in ("parity", "streamed", "resumed"):
        assert said(name) == ["built"] * 4
        assert [(folder / f"{name}-{rank}.safetensors").read_bytes() for rank in range(4)] == [whole] * 4
    for text in said("parameters"):
        assert text.startswith("InputError: seed must be the same on all ranks; got 0 on rank 0 and 1 on rank 1; start")
    for text in said("corpus"):
        assert text.startswith("InputError: corpus (its fingerprint) must be the same on all ranks; got '")
    own = "n_neighbors must be an integer >= 1; got 0"
    told = f"InputError: rank 2 stopped, and the others with it: {own}"
    assert said("range") == [told, told, f"InputError: {own}", told]
    told = "ConnectionError: rank 1 stopped, and the others with it: OSError: the disk is gone"
    assert said("raised") == [told, "OSError: the disk is gone", told, told]
    died = said("died")
    assert died[2] is None
    # Rank 0 waits for each of the others; the store may go with it before they have read what it says.
    assert died[0].startswith("ConnectionError: rank 0 lost contact with the other ranks: [Rank 0]: Rank 2 failed to")
    assert died[0].endswith("see what ended one of them (memory?), and start again with the same checkpoint folder")
    for rank in (0, 1, 3):
        assert died[rank].startswith("ConnectionError: "), died
        assert results[rank]["died"][1] < 20


def test_torchrun_gives_the_same_file(folder, tmp_path):
    options = [f"--{name.replace('_', '-')}={value}" for name, value in PARAMETERS.items() if name != "progress"]
    command = ["-m", "corrmask_fast", "graph", "build", folder / "cells.npz", "-o", tmp_path / "graph.safetensors"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", free_port()]
    run = subprocess.run(
        [*map(str, torchrun + command), *options], capture_output=True, text=True, timeout=80, check=True
    )
    assert run.stdout.count("saved to") == 1
    assert len(re.findall(r"^comparing overlaps: 100%", run.stderr, re.MULTILINE)) == 1
    assert (tmp_path / "graph.safetensors").read_bytes() == (folder / "graph.safetensors").read_bytes()


def test_a_rank_that_cannot_begin_tells_the_others(folder, tmp_path):
    """At the command line too, and outside of torchrun, which would end the others itself."""
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    build = [sys.executable, "-m", "corrmask_fast", "graph", "build", "-o", tmp_path / "graph.safetensors"]
    processes = [
        subprocess.Popen(
            [*map(str, build), str(corpus), "--no-progress"],
            env={**os.environ, **place, "RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, corpus in enumerate((folder / "cells.npz", folder / "nothing.npz"))
    ]
    try:
        said = [process.communicate(timeout=60)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    own = f"no corpus at {folder}/nothing.npz: give a datasets folder or an .npz file"
    # PyTorch's store may warn, in lines of its own, that the other process is gone already.
    assert said[1].splitlines()[-1] == f"corrmask-fast: error: {own}"
    assert said[0].splitlines()[-1] == f"corrmask-fast: error: rank 1 stopped, and the others with it: {own}"
    assert not any("Traceback" in text for text in said)
    assert [process.returncode for process in processes] == [2, 2]
    assert list(tmp_path.iterdir()) == []
