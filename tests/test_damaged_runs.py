"""Folders of runs with damaged or hostile files: a resume refuses them in one line, before it trains a step."""

from __future__ import annotations

import json
import pickle
import random
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from corrmask_fast import CorpusDataset, InputError, RandomMasker
from corrmask_fast.cells.corpus_io import write_corpus
from corrmask_fast.cli.main import main
from corrmask_fast.training.settings import PretrainingSettings

transformers = pytest.importorskip("transformers", minversion="4.46")
pytest.importorskip("matplotlib")

from trainers import make_arguments

from corrmask_fast.training.checkpoint_files import NUMPY_STATE, numpy_states
from corrmask_fast.training.run import make_model, pretrain
from corrmask_fast.training.trainer import CorrMaskTrainer

pytestmark = pytest.mark.usefixtures("one_thread")

TINY = PretrainingSettings(
    hidden_size=16, layers=1, heads=2, intermediate_size=16, max_length=40, batch_size=8, max_steps=2, held_out=0.2,
    eval_every=2, save_every=2, log_every=1, device="cpu",
)  # fmt: skip


class Hostile:
    """What a pickle can do: on loading it makes the folder that it names."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        import os

        return os.mkdir, (str(self.path),)


@pytest.fixture(scope="module")
def a_run(make_corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    corpus = make_corpus(40, 40, seed=3, max_length=40)
    write_corpus(corpus, folder / "cells.dataset")
    pretrain(
        corpus, RandomMasker(corpus.vocabulary), folder / "run", TINY, progress=False,
        masker_options={"strategy": "random"},
    )  # fmt: skip
    return folder, corpus


@pytest.fixture
def run(a_run, tmp_path):
    shutil.copytree(a_run[0] / "run", tmp_path / "run")
    return tmp_path / "run"


def resume(a_run, run, *more):
    return main(["pretrain", str(a_run[0] / "cells.dataset"), "--out", str(run), "--resume", "--no-progress",
                 "--max-steps", "4", *more])  # fmt: skip


def assert_refused(a_run, run, capsys, *named):
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    capsys.readouterr()
    assert resume(a_run, run) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1, said
    assert len(said) < 1000
    for text in named:
        assert text in said, said
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_an_unharmed_run_resumes(a_run, run):
    (run / "log.csv").write_bytes(b"\xff\x00,,\n")  # it is written anew, from the checkpoint
    assert resume(a_run, run) == 0
    assert [line.split(",")[0] for line in (run / "log.csv").read_text().split()] == ["step", "1", "2", "3", "4"]


# ---------------------------------------------------------------------------------------------------- text and tensors

GARBAGE = {"empty": b"", "binary": b"\xff\xfe\x00\x80", "deep": b"[" * 100_000, "list": b"[]", "number": b"7"}
JSON_FILES = ("corrmask.json", "trainer_state.json", "config.json")


@pytest.mark.parametrize("content", GARBAGE.values(), ids=GARBAGE)
@pytest.mark.parametrize("name", [*JSON_FILES, "model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_files_of_a_checkpoint_that_hold_garbage(a_run, run, capsys, name, content):
    (run / "checkpoint-2" / name).write_bytes(content)
    assert_refused(a_run, run, capsys, f"checkpoint-2/{name} is not a readable", "(re")


@pytest.mark.parametrize("name", [*JSON_FILES, "model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_files_of_a_checkpoint_that_are_cut_short(a_run, run, capsys, name):
    path = run / "checkpoint-2" / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    assert_refused(a_run, run, capsys, f"checkpoint-2/{name} is not a readable")


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "scheduler.pt", "trainer_state.json"])
def test_files_of_a_checkpoint_that_are_missing(a_run, run, capsys, name):
    (run / "checkpoint-2" / name).unlink()
    assert_refused(a_run, run, capsys, "checkpoint-2", name)


@pytest.mark.parametrize(
    "change",
    [
        {"global_step": "2"}, {"global_step": 5}, {"global_step": -1}, {"global_step": 10**40}, {"global_step": 2.0},
        {"global_step": None}, {"epoch": "x"}, {"epoch": float("inf")}, {"epoch": [1]}, {"total_flos": "1"},
        {"max_steps": {}}, {"log_history": 5}, {"log_history": [5]}, {"log_history": [{"loss": 1.0}]},
        {"log_history": [{"step": "1"}]}, {"log_history": [{"step": 1, "loss": "x"}]}, {"log_history": {"step": 1}},
        {"stateful_callbacks": [1]}, {"is_world_process_zero": "no"}, {"other": 1},
        {"log_history": [{"step": 1, "loss": "x" * 10**6}]},
    ],
    ids=lambda change: json.dumps(change)[:40],
)  # fmt: skip
def test_states_of_a_trainer_that_lie(a_run, run, capsys, change):
    path = run / "checkpoint-2" / "trainer_state.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert_refused(a_run, run, capsys, "checkpoint-2/trainer_state.json is not a readable file of a checkpoint")


@pytest.mark.parametrize("change", [{"epoch": 10**30}, {"epoch": "0"}, {"cells": "40"}, {"masker": []}, {"table": 1}])
def test_records_of_a_run_that_lie(a_run, run, capsys, change):
    path = run / "checkpoint-2" / "corrmask.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert_refused(a_run, run, capsys, "checkpoint-2/corrmask.json is not a readable record", next(iter(change)))


def test_values_of_a_record_are_quoted_briefly(a_run, run, capsys):
    path = run / "checkpoint-2" / "corrmask.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"masker": record["masker"] | {"seed": "x" * 10**6}}))
    assert_refused(a_run, run, capsys, "was made with seed='xxx")


@pytest.mark.parametrize(
    "text",
    ["\0", "[" * 5000, "layers = [", "layers = '1'", "heads = 3", "layers = 10000000000000", "other = 1", "seed = -1",
     "device = 'x'", "mlm_probability = 'x'", "strategy = 3", "strategy = 'span'\nstructural_ratio = 'x'"],
    ids=lambda text: text[:20],
)  # fmt: skip
def test_settings_of_a_run_that_are_damaged(a_run, run, capsys, text):
    lines = (run / "settings.toml").read_text().splitlines()
    names = {line.split(" = ")[0] for line in text.splitlines()}
    kept = [line for line in lines if line.split(" = ")[0] not in names]
    (run / "settings.toml").write_text("\n".join([*kept, text]))
    assert_refused(a_run, run, capsys, "run/settings.toml")


def test_settings_that_are_no_text(a_run, run, capsys):
    (run / "settings.toml").write_bytes(b"\xff\xfe")
    assert_refused(a_run, run, capsys, "run/settings.toml is not a readable TOML file")


@pytest.mark.parametrize("name", ["settings.toml", "log.csv", "loss.png"])
def test_folders_in_place_of_files(a_run, run, capsys, name):
    (run / name).unlink(missing_ok=True)
    (run / name).mkdir()
    options = ["--heads", "2", "--hidden-size", "16", "--layers", "1"] if name == "settings.toml" else []
    assert resume(a_run, run, "--strategy", "random", *options) == 2
    said = capsys.readouterr().err
    assert f"{name}: it is a folder" in said
    assert said.count("\n") == 1
    assert not (run / "checkpoint-4").exists()


def test_a_value_of_the_command_line_is_not_blamed_on_the_file(a_run, run, capsys):
    assert resume(a_run, run, "--layers", "0") == 2
    assert "settings.toml" not in capsys.readouterr().err


@pytest.mark.parametrize("change", ["drop", "reshape"])
def test_weights_that_are_not_the_models(a_run, run, capsys, change):
    path = run / "checkpoint-2" / "model.safetensors"
    weights = load_file(path)
    name = "bert.encoder.layer.0.output.dense.weight"
    if change == "drop":  # Trainer would go on with a random matrix
        del weights[name]
    else:
        weights[name] = weights[name][:, :3].contiguous()
    save_file(weights, path, {"format": "pt"})
    assert_refused(a_run, run, capsys, "checkpoint-2", name)


# ----------------------------------------------------------------------------------------------------- hostile pickles

PICKLES = ("optimizer.pt", "scheduler.pt", "rng_state.pth", "rng_state_1.pth", "scaler.pt", "pytorch_model.bin")


@pytest.mark.parametrize("how", ["torch", "old torch", "pickle"])
@pytest.mark.parametrize("name", PICKLES)
def test_no_file_of_a_checkpoint_runs_code(a_run, run, tmp_path, capsys, monkeypatch, name, how):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")  # as many set it for older versions of transformers
    path, state = run / "checkpoint-2" / name, {"state": Hostile(tmp_path / "ran")}
    if how == "pickle":
        path.write_bytes(pickle.dumps(state))
    else:
        torch.save(state, path, _use_new_zipfile_serialization=how == "torch")
    assert_refused(a_run, run, capsys, f"checkpoint-2/{name} is not a readable file of a checkpoint")
    assert not (tmp_path / "ran").exists()


def test_what_nobody_reads_is_left_alone(a_run, run, tmp_path):
    (run / "checkpoint-2" / "training_args.bin").write_bytes(pickle.dumps(Hostile(tmp_path / "ran")))
    (run / "checkpoint-2" / "mine.bin").write_bytes(b"anything")
    assert resume(a_run, run) == 0
    assert not (tmp_path / "ran").exists()


def test_states_of_generators_that_lie(a_run, run, capsys):
    """NumPy takes any position, and reads its state there: far beyond its end."""
    path = run / "checkpoint-2" / "rng_state.pth"
    with numpy_states():
        right = torch.load(path, weights_only=True)
    name, words, position, *rest = right["numpy"]
    for change in (
        {"numpy": (name, words, 10**6, *rest)},
        {"numpy": (name, words, -1, *rest)},
        {"numpy": (name, words, 1.0, *rest)},
        {"numpy": (name, words[:5], position, *rest)},
        {"numpy": (name, words.astype(np.uint32).view("V4"), position, *rest)},
        {"numpy": ("PCG64", words, position, *rest)},
        {"numpy": "MT19937"},
        {"python": random.Random(1).getstate()[1]},
        {"python": (3, (1,) * 624 + (10**6,), None)},
        {"cpu": torch.zeros(3, dtype=torch.uint8)},
        {"cpu": [1]},
    ):
        torch.save(right | change, path)
        assert_refused(a_run, run, capsys, "checkpoint-2/rng_state.pth is not a readable file of a checkpoint")


def test_types_are_admitted_while_a_state_is_read_and_not_longer(a_run, run):
    assert len(NUMPY_STATE) == 4
    before = set(torch.serialization.get_safe_globals())
    with numpy_states():
        assert set(torch.serialization.get_safe_globals()) == before.union(NUMPY_STATE)
    assert resume(a_run, run) == 0
    assert set(torch.serialization.get_safe_globals()) == before
    with torch.serialization.safe_globals([np.ndarray]):  # a user's own stays
        with numpy_states():
            pass
        assert np.ndarray in torch.serialization.get_safe_globals()


@pytest.mark.parametrize("how", [str, "path", True])
def test_a_trainer_checks_what_it_resumes_from(a_run, run, tmp_path, how):
    torch.save({"state": Hostile(tmp_path / "ran")}, run / "checkpoint-2" / "optimizer.pt")
    vocabulary = a_run[1].vocabulary
    trainer = CorrMaskTrainer(
        make_model(vocabulary.size, vocabulary.pad_token_id, TINY), make_arguments(run),
        train_dataset=CorpusDataset(a_run[1]), masker=RandomMasker(vocabulary),
    )  # fmt: skip
    folder = run / "checkpoint-2"
    (folder / "corrmask.json").unlink()  # of other cells
    with pytest.raises(InputError, match=r"optimizer.pt is not a readable .*whose loading can run code"):
        trainer.train(resume_from_checkpoint={str: str(folder), "path": folder, True: True}[how])
    assert not (tmp_path / "ran").exists()


def test_an_optimizer_of_another_model(a_run, run, capsys):
    path = run / "checkpoint-2" / "optimizer.pt"
    state = torch.load(path, weights_only=True)
    state["param_groups"][0]["params"].pop()
    torch.save(state, path)
    assert_refused(a_run, run, capsys, "checkpoint-2: optimizer.pt or scheduler.pt is not a readable")
