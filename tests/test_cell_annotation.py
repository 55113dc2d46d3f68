"""What stands beside a fine-tuned model: baselines on the same cells, fewer labelled cells, what is taken for what."""

from __future__ import annotations

import csv
import re

import numpy as np
import pytest
import torch

from corrmask_fast import Corpus, FineTuning, InputError, annotate_cells
from corrmask_fast.cells.corpus_io import write_corpus
from corrmask_fast.cli.main import main
from corrmask_fast.evaluation import cell_annotation
from corrmask_fast.evaluation.cell_annotation import (
    FINE_TUNED,
    LOGISTIC,
    MAJORITY,
    NEAREST,
    NEAREST_UNTRAINED,
    UNTRAINED,
    few_of,
)
from corrmask_fast.evaluation.fine_tuning import Labeller, fine_tune
from corrmask_fast.evaluation.frozen_features import f1_by_type, f1_of, gene_features, nearest_types
from corrmask_fast.evaluation.plots import plot_cell_annotation
from corrmask_fast.progress import silent_bar
from corrmask_fast.training.pretrained import load_encoder, new_encoder

transformers = pytest.importorskip("transformers")
sklearn_metrics = pytest.importorskip("sklearn.metrics")

pytestmark = pytest.mark.usefixtures("one_thread")

QUICK = FineTuning(epochs=8, batch_size=16, learning_rate=5e-3, device="cpu")


@pytest.fixture(scope="module")
def corpus(make_corpus):
    """Types that have the same genes, A's first half in front of the second one and B's behind; C is between."""
    vocabulary, rng = make_corpus(1, 24).vocabulary, np.random.default_rng(0)
    types = np.repeat(["A", "B", "C"], [80, 60, 20])
    halves = np.arange(2, 14), np.arange(14, 26)
    cells = []
    for kind in types:
        one, other = map(rng.permutation, halves)
        cells.append(np.concatenate({"A": [one, other], "B": [other, one], "C": [rng.permutation(24) + 2]}[kind]))
    return Corpus(np.arange(161) * 24, np.concatenate(cells), vocabulary, obs={"cell_type": types.astype(object)})


@pytest.fixture(scope="module")
def model(tmp_path_factory, corpus):
    """A checkpoint that was trained to tell A from B on half of the cells, without its head."""
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=26, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=32, pad_token_id=0, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    encoder = transformers.BertModel(config, add_pooling_layer=False)
    kind = torch.from_numpy((corpus.obs["cell_type"] == "B").astype(np.int64))
    labeller = Labeller(encoder, corpus.vocabulary, 2, per_gene=False)
    with silent_bar("", 0, "") as bar:
        fine_tune(labeller, corpus, np.arange(0, 140, 2), lambda rows, _: kind[rows], QUICK, bar)
    folder = tmp_path_factory.mktemp("model")
    encoder.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def report(corpus, model):
    return annotate_cells(
        model, corpus, repeats=2, test_share=0.25, baselines=True, sizes=[30, 60], settings=QUICK, progress=False
    )


def test_what_the_model_scores_does_not_depend_on_what_stands_beside_it(corpus, model, report):
    alone = annotate_cells(model, corpus, repeats=2, test_share=0.25, settings=QUICK, progress=False)
    np.testing.assert_array_equal(alone.f1, report.f1)
    assert list(alone.confusions) == [FINE_TUNED]
    assert alone.sizes == [120]
    assert "named by" not in alone.table()


def test_all_methods_name_the_same_cells(report):
    ranks = LOGISTIC.format("ranks")
    assert list(report.confusions) == [FINE_TUNED, UNTRAINED, NEAREST, NEAREST_UNTRAINED, ranks, MAJORITY]
    assert report.sizes == [30, 60, 120]
    for found in report.confusions.values():
        assert all(cells.shape == (2, 3, 3) for cells in found.values())
        assert all((cells.sum(2) == [20, 15, 5]).all() for cells in found.values())  # a quarter of each type
    # All 40 cells named A: its F1 is 2 * 20 / (20 + 40).
    np.testing.assert_allclose(report.f1_of(MAJORITY, 30), [[2 / 3, 0, 0]] * 2)
    assert report.confusion.sum() == 80
    table = report.table()
    assert re.search(r"^most common type +0.222 ± 0.000 +0.000 ± 0.000 +0.500 ± 0.000$", table, re.MULTILINE)
    assert "macro-F1 by labelled cells" in table


def test_embeddings_of_a_trained_model_separate_types_better(report):
    accuracy = {
        name: np.trace(report.confusions[name][120].sum(0)) / 80 for name in (NEAREST, NEAREST_UNTRAINED, MAJORITY)
    }
    assert accuracy[NEAREST] > 0.8
    assert accuracy[NEAREST] > accuracy[NEAREST_UNTRAINED] + 0.1


def test_a_learning_curve_has_equal_steps_and_growing_sets_of_cells(corpus, model, monkeypatch):
    taken = []

    def record(encoder, corpus, of_cell, split, settings, bar):
        taken.append((split[0], settings.steps(split[0].size)))
        return np.zeros(split[1].size, np.int64)

    monkeypatch.setattr(cell_annotation, "fine_tuned_types", record)
    annotate_cells(model, corpus, sizes=[16, 64, 16], settings=QUICK, progress=False)
    (whole, steps), (many, many_steps), (few, few_steps) = taken
    assert (whole.size, many.size, few.size) == (128, 64, 16)
    assert (steps, many_steps, few_steps) == (64, 64, 64)
    assert set(few) < set(many) < set(whole)
    kinds = corpus.obs["cell_type"]
    assert [np.sum(kinds[few] == kind) for kind in "ABC"] == [8, 6, 2]
    with pytest.raises(InputError, match=r"sizes must be an integer in \[2, 127\]; got 128"):
        annotate_cells(model, corpus, sizes=[128], settings=QUICK, progress=False)
    with pytest.raises(InputError, match="2 cells, of each type alike, have one"):
        few_of(np.arange(8), np.array([0] * 7 + [1]), 2, 0)


def test_new_weights_follow_from_the_seed(corpus, model):
    before = torch.random.get_rng_state()
    weights = [new_encoder(model, seed).embeddings.word_embeddings.weight for seed in (3, 3, 4)]
    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert weights[0].shape == load_encoder(model, corpus.vocabulary).embeddings.word_embeddings.weight.shape


def test_f1_is_scikit_learns():
    rng = np.random.default_rng(0)
    truth, named = rng.integers(0, 5, (2, 200))
    named[named == 4] = 0  # a type that is never named
    expected = sklearn_metrics.f1_score(truth, named, average=None, labels=np.arange(6), zero_division=0.0)
    np.testing.assert_array_equal(f1_by_type(truth, named, 6), expected)
    assert f1_of(np.zeros((2, 3, 3), int)).tolist() == [[0.0] * 3] * 2


def test_nearest_cells_vote_by_their_direction_from_the_mean():
    labelled = 100 + np.array([[1.0, 0], [2, 0.1], [3, 0], [-1, 0], [-2, 0.1], [-3, 0]])
    new = 100 + np.array([[0.5, 0.1], [-9.0, 1]])
    assert nearest_types(labelled, np.array([0, 0, 0, 1, 1, 1]), new, k=3).tolist() == [0, 1]
    assert nearest_types(labelled[:2], np.array([4, 4]), new).tolist() == [4, 4]  # fewer cells than k


def test_regressions_read_counts_where_there_are_some(vocabulary):
    indptr, tokens = np.array([0, 3, 3, 4]), np.array([5, 2, 7, 3])  # the second cell has no genes
    ranks = gene_features(Corpus(indptr, tokens, vocabulary)).toarray()
    np.testing.assert_allclose(ranks[0, [5, 2, 7]], [1, 2 / 3, 1 / 3], rtol=1e-6)
    counts = gene_features(Corpus(indptr, tokens, vocabulary, values=np.array([6.0, 1, 3, 4]))).toarray()
    np.testing.assert_allclose(counts[0, [5, 2, 7]], np.log1p([6000, 1000, 3000]), rtol=1e-6)
    assert counts[2, 3] == pytest.approx(np.log1p(1e4))
    assert np.count_nonzero(ranks) == np.count_nonzero(counts) == 4


@pytest.mark.parametrize("options", [{}, {"baselines": True}, {"sizes": [16]}])
def test_pictures(corpus, model, options, tmp_path):
    pytest.importorskip("matplotlib")
    settings = FineTuning(epochs=0, device="cpu")
    figure = plot_cell_annotation(annotate_cells(model, corpus, settings=settings, progress=False, **options))
    assert len(figure.axes) == (3 if options else 2)
    numbers = {text.get_text() for text in figure.axes[1].texts}
    assert numbers <= {str(n) for n in range(1, 101)}
    assert [label.get_text() for label in figure.axes[1].get_xticklabels()] == ["A", "B", "C"]


def test_the_command_says_how_long_it_takes_and_saves_the_confusion_matrix(corpus, model, tmp_path, capsys):
    write_corpus(corpus, tmp_path / "cells.npz")
    given = ["evaluate", "cells", str(model), str(tmp_path / "cells.npz"), "--epochs", "1", "--device", "cpu"]
    outputs = ["--csv", str(tmp_path / "f1.csv"), "--confusion-csv", str(tmp_path / "confusion.csv")]
    assert main([*given, "--sizes", "20", *outputs]) == 0
    out, err = capsys.readouterr()
    assert "4 models to fine-tune, 44 steps in all: about 0 s" in err.replace("about 1 s", "about 0 s")
    assert "10 nearest cells, embeddings" in out
    with (tmp_path / "confusion.csv").open() as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["cell_type", "A", "B", "C"]
    assert [(row[0], sum(map(int, row[1:]))) for row in rows[1:]] == [("A", 16), ("B", 12), ("C", 4)]
    with (tmp_path / "f1.csv").open() as file:
        found = list(csv.DictReader(file))
    assert len(found) == 6 * 2 * 3
    assert {row["labelled_cells"] for row in found} == {"20", "128"}
    assert main([*given, "--no-baselines", "--no-progress"]) == 0
    out, err = capsys.readouterr()
    assert re.fullmatch(r"1 models to fine-tune, 11 steps in all: about \d s\n", err)  # how long, and no bar
    assert "nearest" not in out
