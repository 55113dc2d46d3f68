"""All strategies audited side by side: each as it masks by itself, one control for all, and the command."""

from __future__ import annotations

import csv

import numpy as np
import pytest

from corrmask_fast import (
    CorrMasker,
    DependencyGraph,
    InputError,
    Linear,
    PMITable,
    audit_all_strategies,
    audit_masking,
    make_masker,
    read_corpus,
    rewired,
    write_corpus,
)
from corrmask_fast.audit.all_strategies import ALL_CONTROL
from corrmask_fast.audit.masks import CONTROL, audit_strategies, masks_of
from corrmask_fast.cli.main import main
from corrmask_fast.masking.strategies import STRATEGIES
from corrmask_fast.testing import make_graph, make_vocabulary

REWIRED, MATCHED = "CorrMask, rewired graph", "Random, matched"
NAMES = [
    *(ALL_CONTROL, "Span", "PMI", "PMI-Rand", "CorrMask", REWIRED, MATCHED, "CorrMask-100", "CorrMask-balanced"),
    "Gene sets",
]
SETS = {"one": ["G1", "G2", "G3"], "another": ["G3", "G40", "G41"], "a third": [f"G{i}" for i in range(50, 58)]}


@pytest.fixture(scope="module")
def corpus(make_corpus):
    return make_corpus(250, 60)


@pytest.fixture(scope="module")
def graph(corpus):
    return make_graph(corpus.vocabulary, degree=5, hub=False)


@pytest.fixture(scope="module")
def pmi(corpus):
    return PMITable.from_corpus(corpus, min_count=4, progress=False)


@pytest.fixture(scope="module")
def report(corpus, graph, pmi):
    options = {"mlm_probability": 0.3, "npmi_min": 0.05, "epochs": 2, "seed": 3, "sets": SETS}
    return audit_all_strategies(corpus, graph, pmi, **options, progress=False)


def test_every_line_is_what_its_strategy_gives_alone(report, corpus, graph, pmi):
    assert [row.name for row in report] == NAMES
    assert report.controls == (ALL_CONTROL, REWIRED, MATCHED)
    for name, each in STRATEGIES.items():
        if each.requires:
            continue
        own = {"npmi_min": 0.05} if each.needs == "pmi" else {}
        sources = {"graph": graph, "pmi": pmi, "corpus": corpus, "sets": SETS}
        masker = make_masker(name, **sources, mlm_probability=0.3, seed=3, **own)
        alone = audit_masking(masker, corpus, graph, epochs=2, progress=False)
        row = report[ALL_CONTROL if name == "random" else each.label]
        for field in ("masked", "runs", "hits", "pairs", "hidden", "shortcut_sum"):
            assert getattr(row, field) == getattr(alone[masker.label], field), (name, field)
        # One line speaks for the controls of all, with weights or without.
        assert np.array_equal(alone[CONTROL].times_masked, report[ALL_CONTROL].times_masked)
        assert (alone[CONTROL].hits, alone[CONTROL].runs) == (report[ALL_CONTROL].hits, report[ALL_CONTROL].runs)
    assert report["Span"].mean_span > report["PMI"].mean_span > 1.05 * report[ALL_CONTROL].mean_span


def test_a_schedule_is_audited_at_a_step(corpus, graph, pmi):
    falling = Linear(0.4, 0.1, 100)
    masker = CorrMasker(graph, mlm_probability=falling)
    assert audit_masking(masker, corpus, graph, progress=False).step == 0
    masker.set_step(50)
    at_50 = audit_masking(masker, corpus, graph, progress=False)
    plain = audit_masking(CorrMasker(graph, mlm_probability=falling(50)), corpus, graph, progress=False)
    assert (at_50.step, plain.step) == (50, None)
    assert np.array_equal(at_50["CorrMask"].times_masked, plain["CorrMask"].times_masked)
    assert at_50.table().startswith("Masking audit: 250 cells, 1 epoch, rates of training step 50; the same draws")
    every = audit_all_strategies(corpus, graph, pmi, mlm_probability=falling, step=50, progress=False)
    assert (every.step, every["CorrMask"].hits) == (50, plain["CorrMask"].hits)
    assert every.to_dict()["step"] == 50


def test_random_is_the_control_of_every_strategy_column_by_column(corpus, graph, pmi):
    indptr, tokens = corpus.gather_for_training(np.arange(corpus.n_cells))
    plain = masks_of(make_masker("random", vocabulary=corpus.vocabulary, seed=9))(indptr, tokens, 4)
    for name in [name for name, each in STRATEGIES.items() if not (each.requires or each.fitted)]:
        masker = make_masker(name, graph=graph, pmi=pmi, vocabulary=corpus.vocabulary, sets=SETS, seed=9)
        assert np.array_equal(masks_of(masker, structural_ratio=0.0)(indptr, tokens, 4), plain), name


def test_the_rewired_line_masks_by_other_partners(report, corpus, graph):
    other = make_masker("corrmask", graph=rewired(graph, 3), mlm_probability=0.3, seed=3)
    alone = audit_strategies({"other": masks_of(other)}, graph, corpus, epochs=2, progress=False)["other"]
    assert report[REWIRED].hits == alone.hits
    # It masks linked genes as often, and so hits more than random masking; the edges say the rest.
    assert report["CorrMask"].hit_rate > report[REWIRED].hit_rate + 0.05 > report[ALL_CONTROL].hit_rate + 0.1
    assert report[REWIRED].masked == report["CorrMask"].masked


def test_the_matched_line_masks_as_often_and_no_partners_together(report):
    """What linked genes are masked more often hits partners too; that they are masked together hits and hides more."""
    corrmask, matched, random = (report[name] for name in ("CorrMask", MATCHED, ALL_CONTROL))
    errors = [np.nanmean(np.abs(each.coverage - corrmask.coverage)) for each in (matched, random)]
    assert errors[0] < errors[1] / 2
    assert matched.masked == random.masked
    assert corrmask.hit_rate > matched.hit_rate + 0.05 > random.hit_rate + 0.1
    assert corrmask.hidden_rate > matched.hidden_rate + 0.1 > random.hidden_rate + 0.15
    assert report.notes[0].startswith("Random, matched: how often genes are masked differs from CorrMask by ")
    assert report.notes[0] in report.table()


def test_bad_input(corpus, graph):
    with pytest.raises(InputError, match="different vocabularies"):
        audit_all_strategies(read_corpus([[2, 3]], make_vocabulary(4)), graph, progress=False)
    with pytest.raises(InputError, match="mlm_probability"):
        audit_all_strategies(corpus, graph, mlm_probability=1.5, progress=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, corpus, graph, pmi):
    folder = tmp_path_factory.mktemp("all")
    write_corpus(corpus, folder / "cells.npz")
    graph.save(folder / "graph.safetensors")
    pmi.save(folder / "pmi.safetensors")
    DependencyGraph.from_edges([], make_vocabulary(3)).save(folder / "other.safetensors")
    return folder


def audit(folder, *options):
    files = [f"{folder}/cells.npz", "--graph", f"{folder}/graph.safetensors"]
    return main(["audit", *files, *map(str, options), "--no-progress"])


def test_the_command_prints_and_saves(folder, tmp_path, capsys, report):
    pytest.importorskip("matplotlib")
    files = {name: tmp_path / name for name in ("a.csv", "w.csv", "a.png")}
    outputs = ["--csv", files["a.csv"], "--windows-csv", files["w.csv"], "--plot", files["a.png"]]
    given = ["--pmi", folder / "pmi.safetensors", "--npmi-min", 0.05, "--mlm-probability", 0.3, "--epochs", 2]
    sets = "".join("\t".join((name, "", *genes)) + "\n" for name, genes in SETS.items())
    (tmp_path / "sets.gmt").write_text(sets)
    assert audit(folder, "--all", *given, "--gene-sets", tmp_path / "sets.gmt", "--seed", 3, *outputs) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert out.startswith(report.table())
    for text in ("rewired graph: ", "PMI table: ", "as ranked", "random order"):
        assert text in out
    with files["a.csv"].open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["strategy"] for row in rows] == NAMES
    assert [float(row["hit_rate"]) for row in rows] == [row.hit_rate for row in report]
    assert {row["graph"] for row in rows} == {str(folder / "graph.safetensors")}
    assert {(row["mlm_probability"], row["seed"]) for row in rows} == {("0.3", "3")}
    ratios = {row["strategy"]: (row["structural_ratio"], row["max_partners"]) for row in rows}
    assert [ratios[name] for name in ("Random (lambda = 0)", "PMI-Rand", "CorrMask", MATCHED, "CorrMask-100")] == [
        *(("0.0", ""), ("0.5", ""), ("0.5", "5"), ("0.5", "5"), ("1.0", "5"))
    ]
    assert files["w.csv"].read_text().count("\n") == 4
    assert files["a.png"].read_bytes().startswith(b"\x89PNG")


def test_several_ratios_and_numbers_of_partners_are_a_line_each(folder, tmp_path, capsys, graph, corpus):
    options = ["--structural-ratio", 0, 0.25, 1, "--max-partners", 1, 5, "--csv", tmp_path / "a.csv", "--seed", 2]
    assert audit(folder, *options) == 0
    out = capsys.readouterr().out
    with (tmp_path / "a.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    # lambda = 0 is the control, once.
    pairs = [("0.25", "1"), ("0.25", "5"), ("1.0", "1"), ("1.0", "5"), ("0.0", "")]
    assert [(row["structural_ratio"], row["max_partners"]) for row in rows] == pairs
    alone = audit_masking(CorrMasker(graph, max_partners=1, structural_ratio=0.25, seed=2), corpus, graph)
    assert int(rows[0]["hits"]) == alone["CorrMask"].hits
    assert out.count("\nCorrMask ") == 4
    assert "Shortcut: the\nlargest |rho| among a masked gene's partners in view" in out


@pytest.mark.parametrize("what", [["--strategy", "span"], ["--all", "--n-cells", 20]])
def test_the_command_names_the_step_of_a_schedule(folder, capsys, what):
    for step, rate in (([], 40), (["--step", 100], 10)):
        assert audit(folder, *what, "--mlm-probability", "linear:0.4:0.1:100", *step) == 0
        title, *lines = capsys.readouterr().out.splitlines()
        assert f"rates of training step {(step or [0])[-1]}; the same draws" in title
        assert rate - 2 < float(lines[3].split()[-4]) <= rate  # per cent; a cell's budget is rounded down


def test_without_a_table_it_is_counted_from_the_corpus(folder, capsys):
    assert audit(folder, "--all", "--n-cells", 60) == 0
    assert "(counted from these cells)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--step", "-1", "--mlm-probability", "linear:0.3:0.1:9"], "--step must be an integer in [0, "),
        (["--epochs", "0"], "--epochs must be an integer >= 1; got 0"),
        (["--n-cells", "0"], "--n-cells must be an integer >= 1; got 0"),
    ],
)
def test_numbers_are_refused_before_a_table_is_counted(folder, capsys, monkeypatch, options, message):
    monkeypatch.setattr(PMITable, "from_corpus", None)
    assert audit(folder, "--all", *options) == 2
    assert message in capsys.readouterr().err


def test_a_step_is_refused_before_a_table_is_counted(corpus, graph, monkeypatch):
    monkeypatch.setattr(PMITable, "from_corpus", None)
    for bad in ({"step": -1}, {"epochs": 0}):
        with pytest.raises(InputError, match="must be an integer"):
            audit_all_strategies(corpus, graph, progress=False, **bad)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--all", "--strategy", "span"], "--all audits every strategy; leave --strategy span out, or --all"),
        (["--all", "--structural-ratio", "0.3"], "--structural-ratio follows from each strategy's name"),
        (["--all", "--max-partners", "1", "5"], "--all audits every strategy with one --max-partners; give one number"),
        (["--max-partners", "5", "5"], "--max-partners has 5 twice; give each once"),
        (["--windows-csv", "w.csv"], "--windows-csv belongs to --all; give both, or neither"),
        (["--all", "--csv", "nowhere/a.csv"], "the folder nowhere does not exist"),
        (["--all", "--pmi", "missing.safetensors"], "no PMI table file at missing.safetensors"),
        (["--all", "--epochs", "0"], "--epochs must be an integer >= 1; got 0"),
        (["--step", "5"], "--step 5 belongs to a rate that goes by the step, such as --mlm-probability linear:"),
        (["--step", "-1", "--mlm-probability", "linear:0.3:0.1:9"], "--step must be an integer in [0, "),
    ],
)
def test_bad_options(folder, capsys, options, message):
    assert audit(folder, *options) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
