"""Comparisons: models that differ in their masks alone, each row written once, and goes on where it was broken off."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("transformers")
pytest.importorskip("sklearn")
anndata = pytest.importorskip("anndata")

from corrmask_fast import Corpus, InputError, Vocabulary, compare_strategies, read_corpus, tokenize, write_corpus
from corrmask_fast.cli.main import main
from corrmask_fast.comparison.inputs import read_cells
from corrmask_fast.comparison.models import Cells, split_labelled
from corrmask_fast.comparison.plan import Plan, Scoring, Task, notes_of, parse_compared
from corrmask_fast.synthetic import generate_cells
from corrmask_fast.training.settings import PRESETS

pytestmark = pytest.mark.usefixtures("one_thread")

TINY = replace(
    PRESETS["tiny"], hidden_size=8, layers=1, heads=2, intermediate_size=8, max_length=48, batch_size=8, max_steps=3,
    device="cpu",
)  # fmt: skip
SCORING = Scoring(n_cells=30, n_targets=20, fine_tuning_epochs=1, min_cells=8)
TIMES = {"seconds"}  # all else in a row follows from the seed


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Two files of counts, one with fewer genes, that share genes and types."""
    folder = tmp_path_factory.mktemp("counts")
    for name, n_cells, seed in (("train", 400, 0), ("test", 160, 0)):
        cells = generate_cells(n_cells, 300, n_modules=9, n_types=3, seed=seed)
        cells.write_h5ad(folder / f"{name}.h5ad")
    return folder / "train.h5ad", folder / "test.h5ad"


def compare(files, folder, **options):
    given = {"test": files[1], "labels": "cell_type", "settings": TINY, "scoring": SCORING, "jobs": 1}
    given |= {"strategies": ["random", "corrmask"], "seeds": 1, "progress": False, **options}
    return compare_strategies(files[0], folder, **given)


def table_of(path):
    with path.open(newline="") as file:
        return [{name: text for name, text in row.items() if name not in TIMES} for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def finished(files, tmp_path_factory):
    folder = tmp_path_factory.mktemp("compared") / "run"
    names = ["random", "random@0.15", "corrmask", "random-matched"]
    return folder, compare(files, folder, strategies=names, fractions=[0.5, 1])


def of_model(rows, strategy, fraction):
    [row] = [row for row in rows if (row["strategy"], row["fraction"]) == (strategy, fraction)]
    return row


def test_there_is_a_row_for_each_model_and_baseline(finished):
    folder, _ = finished
    rows = table_of(folder / "rows.csv")
    models = [(row["strategy"], float(row["fraction"]), int(row["seed"])) for row in rows if row["kind"] == "model"]
    facts = json.loads((folder / "comparison.json").read_text())
    assert models == [(name, fraction, 0) for fraction in (0.5, 1.0) for name in facts["strategies"]]
    assert [row["seed"] for row in rows if row["kind"] == "untrained"] == ["0"]
    baselines = [row["strategy"] for row in rows if row["kind"] == "baseline" and row["seed"] == "0"]
    assert baselines == ["unigram", "cell type", "majority", "logistic, counts", "logistic, PCA"]
    assert {int(row["cells"]) for row in rows if row["kind"] == "model"} == {200, 400}
    measures = ("loss", "loss_se", "accuracy", "shortcut", "placebo", "excess_se", "probe_f1", "macro_f1", "knn_purity")
    assert all(np.isfinite(float(row[name])) for row in rows if row["kind"] == "model" for name in measures)
    assert (folder / "report.html").stat().st_size > 20_000
    assert (folder / "differences.csv").is_file()
    assert (folder / "models" / "corrmask-1-seed-0" / "model.safetensors").is_file()


def test_two_names_of_one_strategy_give_one_model(finished):
    # The same weights, cells, steps and masks: every figure is the same to the last digit.
    rows = table_of(finished[0] / "rows.csv")
    for fraction in ("0.5", "1.0"):
        one, other = (of_model(rows, name, fraction) for name in ("random", "random@0.15"))
        assert {**one, "strategy": ""} == {**other, "strategy": ""}
        assert one["loss"] != of_model(rows, "corrmask", fraction)["loss"]


def test_only_the_matched_strategy_has_an_error_of_coverage(finished):
    rows = [row for row in table_of(finished[0] / "rows.csv") if row["kind"] == "model"]
    assert {row["strategy"] for row in rows if row["coverage_error"]} == {"random-matched"}


def test_the_same_call_computes_nothing_again(files, finished):
    folder, before = finished
    written = (folder / "rows.csv").stat().st_mtime_ns
    again = compare(files, folder, strategies=list(before.strategies), fractions=[0.5, 1])
    assert (folder / "rows.csv").stat().st_mtime_ns == written
    assert again.rows == before.rows


def test_a_comparison_goes_on_to_the_same_rows(files, tmp_path):
    whole = tmp_path / "whole"
    compare(files, whole)
    rows = (whole / "rows.csv").read_text().splitlines(keepends=True)
    expected = table_of(whole / "rows.csv"), table_of(whole / "details.csv")
    (whole / "rows.csv").write_text("".join(rows[:-1]))  # as if it had been stopped before the last model ended
    compare(files, whole)
    assert (table_of(whole / "rows.csv"), table_of(whole / "details.csv")) == expected


def test_strategies_and_seeds_may_be_added_and_jobs_change_nothing(files, tmp_path):
    small, large = tmp_path / "small", tmp_path / "large"
    compare(files, small, strategies=["random"])
    grown = compare(files, small, strategies=["random", "corrmask"], seeds=2, jobs=2)
    assert list(grown.strategies) == ["random", "corrmask"]
    compare(files, large, seeds=2)

    def by_key(folder):
        return sorted(
            (row["kind"], row["strategy"], row["fraction"], row["seed"], *row.items())
            for row in table_of(folder / "rows.csv")
        )

    assert by_key(small) == by_key(large)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"settings": replace(TINY, max_steps=4)}, "max_steps=3, and cannot go on with 4"),
        ({"labels": None}, "on other cells or genes"),  # the labels are a part of the cells
        ({"mlm_probability": 0.2}, "mlm_probability=0.15, and cannot go on with 0.2"),
        ({"scoring": replace(SCORING, n_targets=5)}, "n_targets=20"),
        ({"gene_share": 0.3}, "on other cells or genes"),
    ],
)
def test_a_folder_of_other_settings_is_refused(files, finished, options, message):
    rows = (finished[0] / "rows.csv").read_bytes()
    with pytest.raises(InputError, match=message):
        compare(files, finished[0], **options)
    assert (finished[0] / "rows.csv").read_bytes() == rows


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labels": "type"}, r"test\.h5ad.*'type'"),
        ({"strategies": ["random", "gene-sets"]}, "gene-sets needs gene_sets"),
        ({"strategies": ["random", "weighted"]}, "weighted needs weights"),
        ({"strategies": ["corrmask"]}, "reference must be one of the strategies"),
        ({"strategies": ["random", "corrmsk"]}, "strategies must be of .*corrmsk"),
        ({"strategies": ["random", "corrmask@2"]}, "the rate of corrmask@2 must be"),
        ({"seeds": 0}, "seeds must be"),
        ({"fractions": [0]}, "fractions must be above 0"),
        ({"fractions": [0.5, 0.5]}, "0.5 twice"),
        ({"settings": replace(TINY, max_steps=0)}, "max_steps must be 1"),
        ({"scoring": replace(SCORING, min_cells=150)}, "types of at least min_cells=150"),
        ({"gene_share": 1.0}, "genes stand in 400 or more of 400"),
        ({"test_share": 1.0, "test": None}, "test_share"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(files, tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        compare(files, tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


def test_cells_without_a_target_are_refused_before_a_model_is_trained(files, tmp_path):
    with pytest.raises(InputError, match=r"no gene can be a target.*or leave the shortcut out: n_targets=0"):
        compare(files, tmp_path / "run", settings=replace(TINY, max_length=10))
    assert len((tmp_path / "run" / "rows.csv").read_text().splitlines()) == 1


def test_a_type_with_one_cell_is_left_out_and_named(files, tmp_path):
    cells = anndata.read_h5ad(files[1])
    types = cells.obs["cell_type"].astype(str).to_numpy().copy()
    types[0] = "once"
    cells.obs["cell_type"] = types
    cells.write_h5ad(tmp_path / "test.h5ad")
    folder = tmp_path / "run"
    compare(files, folder, test=tmp_path / "test.h5ad", strategies=["random"], scoring=replace(SCORING, n_targets=0))
    facts = json.loads((folder / "comparison.json").read_text())
    assert "once" not in facts["types"]
    assert any("fewer than 8 test cells are left out: once" in note for note in facts["notes"])


def test_a_folder_that_is_no_comparison_is_left_alone(files, tmp_path):
    (tmp_path / "letter.txt").write_text("dear reader")
    with pytest.raises(InputError, match="holds other files, and no comparison"):
        compare(files, tmp_path)


def test_a_strategy_may_be_added_alone(files, finished, tmp_path):
    folder = shutil.copytree(finished[0], tmp_path / "run")
    assert "weighted" not in finished[1].strategies
    # Genes that are too rare for this comparison, and so have no token, may have weights.
    rare = set(anndata.read_h5ad(files[0]).var_names) - set(read_corpus(folder / "train.npz").vocabulary.names)
    (tmp_path / "weights.tsv").write_text(f"{min(rare)}\t7\nGENE0020\t3\n")
    grown = compare(files, folder, strategies=["weighted"], options={"weights": str(tmp_path / "weights.tsv")})
    assert list(grown.strategies) == [*finished[1].strategies, "weighted"]
    assert grown.ended == finished[1].ended + 1


def test_two_calls_on_one_folder_are_kept_apart(files, finished):
    fcntl = pytest.importorskip("fcntl")
    with (finished[0] / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="another call works on"):
            compare(files, finished[0], strategies=["corrmask", "random"])


def test_what_an_interrupted_call_leaves_is_taken(files, finished, tmp_path):
    (tmp_path / "run").mkdir()
    for name in ("train.npz", ".test.npz.x7f3"):
        shutil.copy(finished[0] / "train.npz", tmp_path / "run" / name)
    assert compare(files, tmp_path / "run", strategies=["random"]).ended == 1


@pytest.mark.parametrize(("old", "new"), [("kind,", "knd,"), (",0,", ",zero,"), ("strategy", "strtegy")])
def test_a_damaged_table_is_refused(files, finished, tmp_path, old, new):
    folder = shutil.copytree(finished[0], tmp_path / "run")
    (folder / "rows.csv").write_text((folder / "rows.csv").read_text().replace(old, new, 1))
    with pytest.raises(InputError, match=r"rows\.csv"):
        compare(files, folder)


def test_models_that_end_are_kept_when_another_fails(files, tmp_path, monkeypatch):
    monkeypatch.setattr("corrmask_fast.comparison.models.check_maskers", lambda *_: None)
    # The second strategy cannot be imported where its model is trained.
    with pytest.raises(InputError, match="nowhere:Mine cannot be imported"):
        compare(files, tmp_path / "run", strategies=["random", "nowhere:Mine"], jobs=2)
    kinds = [row["strategy"] for row in table_of(tmp_path / "run" / "rows.csv") if row["kind"] == "model"]
    assert kinds in ([], ["random"])  # whichever had begun
    with pytest.raises(InputError, match="nowhere:Mine cannot be imported"):
        compare(files, tmp_path / "run", strategies=["nowhere:Mine", "random"], jobs=1)


# ------------------------------------------------------------------------------------------------------- the cells


def test_train_and_test_cells_are_what_tokenize_gives_over_the_common_genes(files, tmp_path):
    cells = read_cells(list(files[:1]), files[1], max_length=40, labels="cell_type", gene_share=0.05, progress=False)
    counts = [anndata.read_h5ad(path) for path in files]
    present = np.asarray((counts[0].X > 0).sum(axis=0)).ravel()
    names = [name for name, n in zip(counts[0].var_names, present, strict=True) if n >= 0.05 * 400]
    assert list(cells.train.vocabulary.names[2:]) == names
    # The same by hand: tokenised with all genes, others dropped, then cut.
    every = Vocabulary(("<pad>", "<mask>", *counts[0].var_names))
    medians = {}
    for name, column in zip(counts[0].var_names, scaled(counts[0]).T, strict=True):
        if (column > 0).any():
            medians[name] = float(np.median(column[column > 0]))
    for corpus, path in ((cells.train, files[0]), (cells.test, files[1])):
        tokenize(path, tmp_path / "all.npz", every, medians, progress=False)
        whole = read_corpus(tmp_path / "all.npz")
        for i in (0, 7, corpus.n_cells - 1):
            own = [every.names[token] for token in whole.tokens[whole.indptr[i] : whole.indptr[i + 1]]]
            kept = [name for name in own if name in set(names)][:40]
            mine = corpus.tokens[corpus.indptr[i] : corpus.indptr[i + 1]]
            assert [corpus.vocabulary.names[token] for token in mine] == kept
    # Regressions read log counts per 10 000 of the genes that are kept, cells not cut.
    kept = counts[1][:, names].X.toarray()
    expected = np.log1p(1e4 * kept / kept.sum(axis=1, keepdims=True))
    assert np.allclose(cells.features.toarray()[:, 2:], expected, atol=1e-5)
    assert cells.test.obs["cell_type"].tolist() == counts[1].obs["cell_type"].tolist()


def scaled(data):
    counts = data.X.toarray()
    return 1e4 * counts / counts.sum(axis=1, keepdims=True)


def test_genes_keep_their_ids_and_two_may_have_one_symbol(tmp_path):
    cells = anndata.AnnData(
        np.random.default_rng(0).poisson(2.0, (60, 12)).astype(np.float32),
        var={"gene_symbols": [f"S{i // 2}" for i in range(12)]},
    )
    cells.var_names = [f"ENSG{i:011d}" for i in range(12)]
    cells.write_h5ad(tmp_path / "cells.h5ad")
    found = read_cells([tmp_path / "cells.h5ad"], max_length=8, progress=False)
    assert found.train.vocabulary.names[2:] == tuple(cells.var_names)


def test_without_a_test_file_a_share_of_the_cells_is_held_out(files):
    cells = read_cells([files[0]], max_length=300, labels="cell_type", test_share=0.25, progress=False)
    assert (cells.train.n_cells, cells.test.n_cells) == (300, 100)
    train, test = (
        {tuple(corpus.tokens[a:b]) for a, b in zip(corpus.indptr, corpus.indptr[1:], strict=False)}
        for corpus in (cells.train, cells.test)
    )
    assert not train & test


def test_a_tokenised_corpus_will_do_and_its_ranks_stand_for_counts(tmp_path):
    genes = Vocabulary(("<pad>", "<mask>", *(f"G{i}" for i in range(12))))
    rng = np.random.default_rng(0)
    tokens = np.concatenate([rng.permutation(12)[:8] + 2 for _ in range(60)])
    write_corpus(Corpus(np.arange(0, 481, 8), tokens, genes), tmp_path / "cells.npz")
    cells = read_cells([tmp_path / "cells.npz"], max_length=8, progress=False)
    assert not cells.has_counts
    first = cells.test.tokens[:8].astype(int)
    assert np.allclose(cells.features.toarray()[0, first], 1 - np.arange(8) / 8)
    with pytest.raises(InputError, match=r"test cells of the same kind; got .*cells.npz \(tokenised\)"):
        read_cells([tmp_path / "cells.npz"], tmp_path / "other.h5ad", max_length=8, progress=False)


def test_a_split_of_labelled_cells_is_halved_within_types_and_follows_from_the_seed(finished):
    test = read_corpus(finished[0] / "test.npz")
    one, again, other = (split_labelled(test, "cell_type", 8, seed) for seed in (3, 3, 4))
    assert np.array_equal(one.train, again.train)
    assert not np.array_equal(one.train, other.train)
    assert not set(one.train) & set(one.test)
    halves = [np.bincount(one.of_cell[rows]) for rows in (one.train, one.test)]
    assert np.abs(halves[0] - halves[1]).max() <= 1


def test_shares_of_the_cells_follow_from_the_seed(files, finished):
    cells = Cells(finished[0], Plan(("random",), 1, (1.0,), settings=TINY))
    one, other = (cells.share(0.5, seed) for seed in (0, 1))
    assert one.n_cells == other.n_cells == 200
    assert not np.array_equal(one.tokens, other.tokens)
    assert np.array_equal(cells.share(1.0, 0).tokens, cells.share(1.0, 1).tokens)


# ----------------------------------------------------------------------------------------------------------- names


def test_a_name_may_have_a_rate_of_its_own():
    assert parse_compared("random@0.1..0.9") == ("random@0.1..0.9", "random", (0.1, 0.9))
    assert parse_compared("random@0.1..0.9").label == "Random, rate 0.1..0.9"
    assert parse_compared("corrmask").rate is None
    assert parse_compared("my.module:Mine@0.4").label == "my.module:Mine, rate 0.4"


def test_notes_speak_of_what_was_given_and_of_what_was_made():
    plan = Plan(("random", "pmi"), 1, (1.0,), settings=TINY, graph="g.safetensors")
    notes = " ".join(notes_of(plan, plan.strategies))
    assert "The graph of a strategy" not in notes  # none of them has one
    assert "The PMI table of a strategy is made from the cells that each model is pretrained on" in notes
    assert "shortcut of all models is measured by the graph that was given" in notes
    assert "they favour it" in notes
    assert "another rate" not in notes
    assert "another rate" in " ".join(notes_of(plan, ["random", "random@0.4"]))


def test_seeds_come_one_after_the_other():
    plan = Plan(("random", "corrmask"), 2, (1.0, 0.1), settings=TINY)
    assert plan.tasks()[:5] == [
        Task(None, 1.0, 0),
        *(Task(name, fraction, 0) for fraction in (0.1, 1.0) for name in ("random", "corrmask")),
    ]
    assert [task.seed for task in plan.tasks()] == [0] * 5 + [1] * 5


# ---------------------------------------------------------------------------------------------------- command line


def test_two_files_of_counts_become_a_report_in_one_command(files, tmp_path, capsys):
    command = ["compare", str(files[0]), "--test", str(files[1]), "--labels", "cell_type", "--out", str(tmp_path / "c")]
    sizes = ["--max-steps", "2", "--hidden-size", "8", "--heads", "2", "--layers", "1", "--max-length", "32"]
    quick = ["--n-cells", "20", "--n-targets", "10", "--fine-tuning-epochs", "0", "--min-cells", "8", "--seeds", "1"]
    assert main([*command, *sizes, *quick, "--strategies", "random", "corrmask", "--jobs", "1"]) == 0
    out = capsys.readouterr().out
    assert "400 cells to pretrain on, 160 to score" in out
    assert "2 models of 2 steps, about" in out
    assert "report:" in out
    page = (tmp_path / "c" / "report.html").read_text()
    assert "CorrMask" in page
    assert 'src="http' not in page


def test_the_command_line_names_its_options(files, tmp_path, capsys):
    command = ["compare", str(files[0]), "--out", str(tmp_path / "c"), "--strategies", "random", "gene-sets"]
    assert main(command) == 2
    assert "gene-sets needs --gene-sets" in capsys.readouterr().err
