"""Parts of a checkpoint that lie: not used, with a warning; the graph is the one of an undisturbed build."""

from __future__ import annotations

import json
import shutil
import warnings

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from corrmask_fast import InputError, build_dependency_graph
from corrmask_fast.graph.build import building
from corrmask_fast.graph.build.checkpoint import Checkpoint
from corrmask_fast.graph.build.memory import ChunkPlan
from corrmask_fast.tensor_files import METADATA, canonical, hash_tensors

PARAMETERS = {"rho_min": 0.05, "min_cooccurrence": 5, "min_presence": 5, "n_neighbors": 4, "progress": False}


def build(corpus, state, **changes):
    """A graph, and what was warned of."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        graph = build_dependency_graph(corpus, checkpoint=state, device="cpu", **(PARAMETERS | changes))
    return graph, [str(warning.message) for warning in caught]


def rewrite(path, change):
    """Change the arrays of a part; its hash is right."""
    with safe_open(path, "numpy") as file:
        header = json.loads(file.metadata()[METADATA])
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    change(arrays)
    del header["sha256"]
    header["sha256"] = hash_tensors(canonical(header), arrays)
    save_file(arrays, path, {METADATA: canonical(header).decode()})


def put(name, value):
    """A change of all numbers of an array."""

    def change(arrays):
        arrays[name] = np.full_like(arrays[name], value)

    return change


def cast(name, dtype):
    return lambda arrays: arrays.update({name: arrays[name].astype(dtype)})


def longer(name):
    return lambda arrays: arrays.update({name: np.concatenate([arrays[name], arrays[name]])})


PAIRS = {
    "n_kept too large": put("n_kept", 10**6),
    "n_kept negative": put("n_kept", -1),
    "n_kept too few": put("n_kept", 3),
    "genes out of range": put("gene", 10**6),
    "genes negative": put("gene", -1),
    "genes of another type": cast("gene", np.int64),
    "rho above 1": put("rho", 1.5),
    "rho NaN": put("rho", np.nan),
    "rho of another type": cast("rho", np.float32),
    "rho of another length": longer("rho"),
    "no genes": lambda arrays: arrays.pop("gene"),
    "no n_kept": lambda arrays: arrays.pop("n_kept"),
    "no done": lambda arrays: arrays.pop("done"),
    "done of another length": longer("done"),
    "done of another type": cast("done", np.uint8),
    "one too many": lambda arrays: arrays.update(more=arrays["rho"]),
}
OVERLAPS = {
    "overlap too large": put("overlap", 201),
    "overlap negative": put("overlap", -2),
    "overlap of another type": cast("overlap", np.int32),
    "overlap of another length": longer("overlap"),
    "rho above 1": put("rho", -1.5),
    "rho infinite": put("rho", np.inf),
    "no rho": lambda arrays: arrays.pop("rho"),
}
COUNTS = {"letters": put("sha256", 255), "shorter": lambda arrays: arrays.update(sha256=arrays["sha256"][:9])}
LEVELS = {"too many": put("counts", 10**6), "in all too many": put("counts", 199), "signed": cast("counts", np.int32)}
CHANGES = [
    pytest.param(part, change, id=f"{part}: {what}")
    for part, changes in (("pairs", PAIRS), ("overlaps", OVERLAPS), ("counts", COUNTS), ("levels", LEVELS))
    for what, change in changes.items()
]


@pytest.fixture(scope="module")
def states(tmp_path_factory, make_corpus):
    """Two corpora of one size, and a whole checkpoint of each: in memory, and in chunks."""
    folder = tmp_path_factory.mktemp("states")
    corpora = [make_corpus(200, 60, seed=seed) for seed in (4, 5)]
    graphs = [build(corpus, folder / f"{i}")[0] for i, corpus in enumerate(corpora)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(building, "plan_chunks", lambda *_: ChunkPlan(64, 1_000_000))
        for i, corpus in enumerate(corpora):
            build(corpus, folder / f"{i}-chunks")
    return folder, corpora, graphs


def same(a, b):
    return np.array_equal(a.indices, b.indices) and np.array_equal(a.rho, b.rho)


@pytest.mark.parametrize(("part", "change"), CHANGES)
def test_arrays_that_no_stage_saves_are_computed_again(states, tmp_path, monkeypatch, part, change):
    folder, corpora, graphs = states
    chunks = part == "levels"
    shutil.copytree(folder / ("0-chunks" if chunks else "0"), tmp_path / "state")
    if chunks:
        monkeypatch.setattr(building, "plan_chunks", lambda *_: ChunkPlan(64, 1_000_000))
    rewrite(tmp_path / "state" / f"{part}-0.safetensors", change)
    graph, said = build(corpora[0], tmp_path / "state")
    assert same(graph, graphs[0])
    assert len(said) == 1, said
    assert f"{part}-0.safetensors is not used: " in said[0]
    assert said[0].endswith("what it held is computed again")
    graph, said = build(corpora[0], tmp_path / "state")  # the part was written anew
    assert same(graph, graphs[0])
    assert not said


@pytest.mark.parametrize("part", ["pairs", "overlaps", "counts", "levels"])
def test_parts_of_another_build_are_not_used(states, tmp_path, monkeypatch, part):
    folder, corpora, graphs = states
    kind = "-chunks" if part == "levels" else ""
    if kind:
        monkeypatch.setattr(building, "plan_chunks", lambda *_: ChunkPlan(64, 1_000_000))
    shutil.copytree(folder / f"0{kind}", tmp_path / "state")
    shutil.copy(folder / f"1{kind}" / f"{part}-0.safetensors", tmp_path / "state")
    graph, said = build(corpora[0], tmp_path / "state")
    assert same(graph, graphs[0])
    assert any(f"{part}-0.safetensors is not used: it belongs to another build" in message for message in said)


def test_sums_that_no_pass_saves_are_added_up_again(tmp_path):
    checkpoint = Checkpoint(tmp_path)
    from corrmask_fast.graph.build.stages_streamed import StreamedStages
    from corrmask_fast.graph.build.work import Work

    stages = StreamedStages(Work(checkpoint=checkpoint), ChunkPlan(64, 1_000_000))
    good = {"low 0": np.full((2, 3), 7, np.uint64), "cells": np.array([128])}
    for changes in (
        {"cells": np.array([201])}, {"cells": np.array([-1])}, {"cells": np.array([128.0])},
        {"low 0": np.full((2, 4), 7, np.uint64)}, {"low 0": np.full((2, 3), 7)},
        {"high 0": np.zeros((2, 3), np.uint32)},
        {"low 0": np.full((2, 3), 4 * 200**3 + 1, np.uint64)},
    ):  # fmt: skip
        sums = [(np.zeros((2, 3), np.uint64), None)]
        checkpoint.save("sums", "layout", good | changes)
        with pytest.warns(UserWarning, match=r"sums-0.safetensors is not used: "):
            assert stages._saved_sums("layout", sums, 200) == 0
        assert not sums[0][0].any()
    checkpoint.save("sums", "layout", good)
    assert stages._saved_sums("layout", sums, 200) == 128
    assert (sums[0][0] == 7).all()


@pytest.mark.parametrize("text", ["[" * 100_000, "1" * 5000, "[]", "null", '{"format": [], "version": {}}', ""])
def test_descriptions_of_a_build_that_are_none(states, tmp_path, text):
    _, corpora, _ = states
    (tmp_path / "build.json").write_text(text)
    with pytest.raises(InputError, match=r"build.json is no description of a build: .*; delete .*, or give another"):
        build(corpora[0], tmp_path)


def test_a_folder_in_place_of_a_part_ends_no_build(states, tmp_path):
    folder, corpora, graphs = states
    shutil.copytree(folder / "0", tmp_path / "state")
    (tmp_path / "state" / "overlaps-0.safetensors").unlink()
    (tmp_path / "state" / "overlaps-0.safetensors").mkdir()
    graph, said = build(corpora[0], tmp_path / "state")
    assert same(graph, graphs[0])
    assert any("the checkpoint was not saved, and the build goes on without" in message for message in said)
