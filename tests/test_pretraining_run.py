"""``corrmask-fast pretrain``: settings, a run and its files, resuming, and the loss split by where partners are."""

from __future__ import annotations

import csv
import json
import math

import numpy as np
import pytest
import torch

from corrmask_fast import CorrMasker, DependencyGraph, InputError, RandomMasker, Vocabulary
from corrmask_fast.cells.corpus_io import write_corpus
from corrmask_fast.cli.main import main
from corrmask_fast.training.settings import PRESETS, PretrainingSettings

transformers = pytest.importorskip("transformers")

from corrmask_fast.training.partner_loss import PartnerLoss, masked_losses
from corrmask_fast.training.run import make_model, pretrain, split_cells

TINY = PretrainingSettings(
    hidden_size=16,
    layers=1,
    heads=2,
    intermediate_size=16,
    max_length=40,
    batch_size=8,
    max_steps=6,
    learning_rate=5e-3,
    held_out=0.2,
    eval_every=3,
    save_every=3,
    log_every=1,
    device="cpu",
)


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def corpus(make_corpus):
    return make_corpus(60, 40, seed=3, max_length=40)


@pytest.fixture(scope="module")
def graph(corpus):
    pairs = [(2 * i, 2 * i + 1) for i in range(1, 20)]
    return DependencyGraph.from_edges(pairs, corpus.vocabulary)


def changed(**changes):
    from dataclasses import replace

    return replace(TINY, **changes)


def test_the_defaults_are_the_papers_table_5():
    paper = PRESETS["paper"]
    assert (paper.hidden_size, paper.intermediate_size, paper.heads, paper.layers) == (256, 512, 4, 6)
    assert (paper.learning_rate, paper.warmup_steps, paper.weight_decay) == (1e-3, 10_000, 0.001)
    assert (paper.epochs, paper.batch_size, paper.dropout, paper.lr_schedule) == (3, 12, 0.02, "linear")


def test_options_win_over_the_file_and_the_file_over_the_preset(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text("layers = 2\nlearning_rate = 1e-4\ngroup_by_length = true\n")
    settings = PretrainingSettings.read(path, "small", layers=4, heads=None)
    assert (settings.layers, settings.learning_rate, settings.group_by_length) == (4, 1e-4, True)
    assert settings.hidden_size == PRESETS["small"].hidden_size
    path.write_text(settings.to_toml())
    assert PretrainingSettings.read(path) == settings


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("layer = 2", "there is no setting 'layer'"),
        ("layers = ", "is not a readable TOML file"),
        ("layers = 0", "layers must be an integer in \\[1, 1000\\]; got 0"),
        ("heads = 3", "heads must be a divisor of hidden_size=256; got 3"),
        ('precision = "int8"', "precision must be one of auto, float32, bfloat16, float16; got 'int8'"),
        ("dropout = 2.0", r"dropout must be a number in \[0, 1\]"),
        ("compile = 1", "compile must be true or false; got 1"),
        ("model = 3", "model must be a text; got 3"),
        ('report_to = "wandb"', "report_to must be one of none, tensorboard; got 'wandb'"),
    ],
)
def test_bad_settings_are_refused(tmp_path, text, message):
    (tmp_path / "run.toml").write_text(text)
    with pytest.raises(InputError, match=message):
        PretrainingSettings.read(tmp_path / "run.toml")


def test_held_out_cells_are_not_trained_on(corpus):
    train, held_out = split_cells(corpus, TINY)
    assert (train.n_cells, held_out.n_cells) == (48, 12)
    cells = [tuple(c.tokens[a:b]) for c in (train, held_out) for a, b in zip(c.indptr, c.indptr[1:], strict=False)]
    everyone = [tuple(corpus.tokens[a:b]) for a, b in zip(corpus.indptr, corpus.indptr[1:], strict=False)]
    assert sorted(cells) == sorted(everyone)
    assert split_cells(corpus, changed(held_out=0.0))[1].n_cells == 0


def test_a_run_writes_its_model_log_and_settings_and_resumes_to_the_same_losses(corpus, graph, tmp_path):
    masker = CorrMasker(graph, mlm_probability=0.2)
    whole = pretrain(corpus, masker, tmp_path / "whole", TINY, graph=graph, progress=False)
    model = transformers.BertForMaskedLM.from_pretrained(tmp_path / "whole" / "model")
    assert model.config.hidden_size == 16
    assert PretrainingSettings.read(tmp_path / "whole" / "settings.toml") == TINY
    with (tmp_path / "whole" / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    losses = [float(row["loss"]) for row in rows if row["loss"]]
    assert len(losses) == 6
    assert losses[-1] < losses[0]
    assert [row["step"] for row in rows if row["eval_loss"]] == ["3", "6"]
    said = whole.summary()
    assert all(group in said for group in ("a partner in view", "all partners hidden", "no partner in the cell"))
    assert "these are different genes: the gap is no measure of copying; `corrmask-fast evaluate shortcut` is" in said
    assert f"loss in training            {losses[-1]:.3f} nats under the run's own masks" in said
    assert float(rows[2]["tokens_per_second"]) > 0

    pretrain(corpus, masker, tmp_path / "halves", changed(max_steps=6), graph=graph, progress=False)
    import shutil

    (tmp_path / "halves" / "checkpoint-6" / "corrmask.json").unlink()  # written last: the run was killed before that
    (tmp_path / "halves" / "checkpoint-6" / "model.safetensors").write_bytes(b"half")
    (tmp_path / "halves" / "checkpoint-mine").mkdir()
    shutil.rmtree(tmp_path / "halves" / "model")
    resumed = pretrain(corpus, masker, tmp_path / "halves", TINY, graph=graph, resume=True, progress=False)
    for name in ("loss", "eval_loss", "eval_loss_partner_visible", "eval_loss_partner_hidden"):
        got, expected = ([row[name] for row in run.history if name in row] for run in (resumed, whole))
        assert got == expected, name

    with pytest.raises(InputError, match="holds a run already"):
        pretrain(corpus, masker, tmp_path / "whole", TINY, progress=False)
    with pytest.raises(InputError, match="no whole checkpoint to resume from"):
        pretrain(corpus, masker, tmp_path / "fresh", TINY, resume=True, progress=False)


@pytest.mark.parametrize("changes", [{"head": "full"}, {"masking": "device"}])
def test_neither_the_head_nor_where_masks_are_made_changes_the_training(corpus, graph, tmp_path, changes):
    runs = [
        pretrain(corpus, CorrMasker(graph), tmp_path / str(i), settings, graph=graph, progress=False)
        for i, settings in enumerate([TINY, changed(**changes)])
    ]
    for name in ("loss", "eval_loss", "eval_loss_partner_hidden"):
        first, second = ([row[name] for row in run.history if name in row] for run in runs)
        np.testing.assert_allclose(first, second, rtol=1e-4, err_msg=name)


def test_losses_are_split_by_what_stays_in_view(corpus, graph):
    """Against plain loops over the rows."""
    masker = CorrMasker(graph, mlm_probability=0.3, structural_ratio=0.5)
    ids = torch.zeros(10, 40, dtype=torch.int64)
    for row in range(10):
        cell = corpus.tokens[corpus.indptr[row] : corpus.indptr[row + 1]].astype(np.int64)
        ids[row, : cell.size] = torch.from_numpy(cell)
    attention = (ids != 0).long()
    masked = masker(ids, attention, epoch=0)
    for head in ("masked", "full"):
        model = make_model(corpus.vocabulary.size, 0, changed(head=head)).eval()
        batch = {"input_ids": masked.input_ids, "attention_mask": attention, "labels": masked.labels}
        if head == "masked":
            batch["masked_positions"] = masked.masked_positions
        losses, rows, tokens, _ = masked_losses(model, batch)
        expected: dict[str, list[float]] = {"visible": [], "hidden": [], "alone": []}
        for loss, row, token in zip(losses, rows, tokens, strict=True):
            hidden = set(masked.labels[row][masked.labels[row] != -100].tolist())
            partners = set(graph.neighbors(int(token))[0].tolist()) & set(ids[row].tolist())
            kind = "alone" if not partners else "visible" if partners - hidden else "hidden"
            expected[kind].append(loss)
        split = PartnerLoss(graph)
        split.add(model, batch)
        metrics = split.metrics("")
        assert min(map(len, expected.values())) > 0
        assert metrics["loss_partner_visible"] == pytest.approx(np.mean(expected["visible"]))
        assert metrics["loss_partner_hidden"] == pytest.approx(np.mean(expected["hidden"]))
        assert metrics["loss_partner_absent"] == pytest.approx(np.mean(expected["alone"]))
        assert metrics["loss"] == pytest.approx(np.mean(np.concatenate(list(expected.values()))))
        counted = [metrics[f"genes_partner_{name}"] for name in ("visible", "hidden", "absent")]
        assert counted == [len(each) for each in expected.values()]
    assert math.isnan(PartnerLoss(graph).metrics("")["loss"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 32}, "has hidden_size=16, and cannot go on with 32"),
        ({"held_out": 0.3}, r"has held_out=0\.2, and cannot go on with 0\.3"),
        ({"batch_size": 4}, "made with cells_a_step 8, this run has cells_a_step 4"),
        ({"group_by_length": True}, "made with grouped False, this run has grouped True"),
    ],
)
def test_a_run_goes_on_with_nothing_else(a_run, corpus, graph, changes, message):
    before = (a_run / "settings.toml").read_text()
    with pytest.raises(InputError, match=message):
        pretrain(corpus, CorrMasker(graph), a_run, changed(**changes), resume=True, progress=False)
    assert (a_run / "settings.toml").read_text() == before


def test_another_strategy_is_named(a_run, corpus):
    with pytest.raises(InputError, match=r"made with .*strategy='CorrMasker'.*this run has .*strategy='RandomMasker'"):
        pretrain(corpus, RandomMasker(corpus.vocabulary), a_run, TINY, resume=True, progress=False)


@pytest.fixture(scope="module")
def a_run(corpus, graph, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    pretrain(corpus, CorrMasker(graph), folder, changed(max_steps=3), progress=False)
    return folder


def test_a_partner_graph_of_other_genes_is_refused(corpus, tmp_path):
    genes = corpus.vocabulary
    other = DependencyGraph.from_edges([(2, 3)], Vocabulary((*genes.names[:-1], "another")))
    with pytest.raises(InputError, match="the graph"):
        pretrain(corpus, RandomMasker(genes), tmp_path / "run", TINY, graph=other, progress=False)


def test_a_file_where_the_run_should_be_is_refused(corpus, tmp_path):
    (tmp_path / "run").write_text("mine")
    with pytest.raises(InputError, match="it is a file; give the name of a folder"):
        pretrain(corpus, RandomMasker(corpus.vocabulary), tmp_path / "run", TINY, progress=False)


def test_a_rate_that_masks_nothing_is_refused(corpus, tmp_path):
    masker = RandomMasker(corpus.vocabulary, mlm_probability=0.001)
    with pytest.raises(InputError, match=r"masks none of \d+ genes.*mlm_probability must be"):
        pretrain(corpus, masker, tmp_path / "run", TINY, progress=False)
    assert not (tmp_path / "run").exists()


def test_the_configuration_file_makes_the_masker_and_a_resumed_run_needs_no_option(corpus, graph, tmp_path, capsys):
    write_corpus(corpus, tmp_path / "cells.dataset")
    graph.save(tmp_path / "graph.safetensors")
    masker = f'strategy = "corrmask"\ngraph = "{tmp_path}/graph.safetensors"\nmlm_probability = "0.1..0.3"\nseed = 5\n'
    (tmp_path / "run.toml").write_text(TINY.to_toml() + masker)
    common = ["pretrain", str(tmp_path / "cells.dataset"), "--out", str(tmp_path / "run"), "--no-progress"]
    options = ["--max-partners", "4", "--replace", "group"]
    assert main([*common, "--config", str(tmp_path / "run.toml"), "--max-steps", "3", *options]) == 0
    record = json.loads((tmp_path / "run" / "checkpoint-3" / "corrmask.json").read_text())["masker"]
    assert (record["mlm_probability"], record["seed"], record["max_partners"]) == ("(0.1, 0.3)", 5, 4)
    assert record["replace"] == "group"
    assert 'mlm_probability = "0.1..0.3"' in (tmp_path / "run" / "settings.toml").read_text()
    assert main([*common, "--resume", "--max-steps", "6"]) == 0
    assert "6 steps; the model lies in" in capsys.readouterr().out
    assert main([*common, "--resume", "--seed", "6"]) == 2
    assert "made with --seed 5, this run has --seed 6" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('strategy = "any"', "strategy must be one of random, weighted, span"),
        ('strategy = "random"\nmlm_probability = "linear"', "a rate must be a number"),
        ('strategy = "random"\nmlm_probability = true', "--mlm-probability must be a number"),
        ("graph = 3", "graph must be a text in quotes; got 3"),
        ('strategy = "random"\neval_strategy = "mam"', "--eval-strategy must be one of random, weighted, span"),
        ('strategy = "random"\nseed = "a"', "--seed must be an integer"),
    ],
)
def test_bad_options_of_the_masker_in_the_file_are_refused(corpus, tmp_path, capsys, text, message):
    write_corpus(corpus, tmp_path / "cells.dataset")
    (tmp_path / "run.toml").write_text(text)
    given = ["pretrain", str(tmp_path / "cells.dataset"), "--out", str(tmp_path / "run")]
    assert main([*given, "--config", str(tmp_path / "run.toml")]) == 2
    assert message in capsys.readouterr().err


def test_command_line(corpus, graph, tmp_path, capsys):
    write_corpus(corpus, tmp_path / "cells.dataset")
    graph.save(tmp_path / "graph.safetensors")
    (tmp_path / "tiny.toml").write_text(TINY.to_toml())
    common = ["pretrain", str(tmp_path / "cells.dataset"), "--out", str(tmp_path / "run"), "--no-progress"]
    made = [*common, "--graph", str(tmp_path / "graph.safetensors"), "--config", str(tmp_path / "tiny.toml")]
    assert main([*made, "--max-steps", "3"]) == 0
    out = capsys.readouterr().out
    assert "3 steps; the model lies in" in out
    assert "all partners hidden" in out
    assert (tmp_path / "run" / "loss.png").stat().st_size > 5000
    assert main([*made, "--max-steps", "3"]) == 2
    assert "holds a run already; continue it with --resume" in capsys.readouterr().err
    assert main([*made, "--heads", "3"]) == 2
    assert "--heads must be a divisor of --hidden-size" in capsys.readouterr().err
    assert main(common) == 2
    assert "--strategy corrmask needs --graph GRAPH" in capsys.readouterr().err
