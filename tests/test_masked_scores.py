"""One yardstick: masks that are the same for all models and batches, baselines by hand, errors over cells."""

from __future__ import annotations

import csv
from fractions import Fraction

import numpy as np
import pytest
import torch

from corrmask_fast import (
    Corpus,
    CorrMasker,
    DependencyGraph,
    InputError,
    Linear,
    MultinomialAttentionMasker,
    RandomMasker,
    Vocabulary,
    score_masks,
    write_corpus,
)
from corrmask_fast.cli.main import main
from corrmask_fast.evaluation.standard_errors import estimate, in_bins

transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.usefixtures("one_thread")

N_GENES = 30
LABELS = np.array(["T cell", "B cell", "T cell", "nan", None], object)


def tiny_bert(positions=40, seed=0, vocab_size=N_GENES + 2):
    torch.manual_seed(seed)
    config = transformers.BertConfig(
        vocab_size=vocab_size, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=positions, pad_token_id=0, initializer_range=0.5,
    )  # fmt: skip
    return transformers.BertForMaskedLM(config)


@pytest.fixture(scope="module")
def corpus(make_corpus):
    cells = make_corpus(60, N_GENES, seed=3, max_length=40)
    return Corpus(cells.indptr, cells.tokens, cells.vocabulary, obs={"cell_type": np.tile(LABELS, 12)})


@pytest.fixture(scope="module")
def graph(corpus):
    return DependencyGraph.from_edges([(2 * i, 2 * i + 1) for i in range(1, 15)], corpus.vocabulary)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    for name, seed in (("one", 0), ("other", 1)):
        tiny_bert(seed=seed).save_pretrained(folder / name)
    return folder


def scores_of(models, corpus, *args, **options):
    return score_masks(models, corpus, *args, progress=False, **options)


def flat(n_tokens):
    """Return a model to which all tokens are alike."""

    def model(input_ids, attention_mask):
        assert input_ids.shape == attention_mask.shape
        return torch.zeros(*input_ids.shape, n_tokens)

    return model


uniform = flat(N_GENES + 2)


# ----------------------------------------------------------------------------------------------- means and their errors


def test_the_error_is_that_of_clusters():
    """By plain loops, and by leaving out one cell after the other."""
    rng = np.random.default_rng(0)
    cells = np.repeat(np.arange(80), rng.integers(1, 20, 80))
    values = rng.normal(5, 1, cells.size) + rng.normal(0, 1, 80)[cells]
    found = estimate(values, cells + 7)
    mean = sum(values) / len(values)
    total = sum(sum(v - mean for v, c in zip(values, cells, strict=True) if c == cell) ** 2 for cell in range(80))
    assert found.mean == pytest.approx(mean)
    assert found.error == pytest.approx((total * 80 / 79) ** 0.5 / len(values))
    assert (found.n, found.n_cells) == (cells.size, 80)
    without = np.array([values[cells != cell].mean() for cell in range(80)])
    jackknife = np.sqrt(79 / 80 * ((without - without.mean()) ** 2).sum())
    assert found.error == pytest.approx(jackknife, rel=0.05)
    assert found.error > 1.5 * values.std() / np.sqrt(values.size)  # genes of a cell are alike
    holes = np.where(np.arange(values.size) % 3 == 0, np.nan, values)
    assert estimate(holes, cells) == estimate(holes[~np.isnan(holes)], cells[~np.isnan(holes)])
    assert estimate(values[:0], cells[:0]).text() == ""
    assert estimate(np.array([2.0]), np.array([0])).text() == "2.000"


def test_ranges_hold_every_value_once():
    values = np.array([0.0, 0.01, 0.049, 0.05, 0.5, 1.0])
    found = in_bins(values, (0.01, 0.05, 0.5), percent=True)
    assert list(found) == ["below 1 %", "1-5 %", "5-50 %", "50 % and above"]
    assert [np.flatnonzero(each).tolist() for each in found.values()] == [[0], [1, 2], [3], [4, 5]]


# ---------------------------------------------------------------------------------------------------------- the masks


def test_a_uniform_model_has_the_logarithm_of_its_tokens(corpus):
    scores = scores_of({"uniform": uniform}, corpus)
    loss = scores.loss("uniform")
    assert loss.mean == pytest.approx(np.log(N_GENES + 2))
    assert loss.error == pytest.approx(0, abs=1e-6)
    assert scores.perplexity("uniform").mean == pytest.approx(N_GENES + 2)
    assert scores.accuracy("uniform").mean == 0  # of equal logits the lowest token counts, <pad>


def test_every_model_is_scored_at_the_masks_of_a_trainers_evaluation(corpus):
    seen = []

    def remember(input_ids, attention_mask):
        seen.extend(row[mask != 0].tolist() for row, mask in zip(input_ids, attention_mask, strict=True))
        return uniform(input_ids, attention_mask)

    scores = scores_of({"one": remember, "two": remember}, corpus, batch_size=7)
    masker = RandomMasker(corpus.vocabulary, mlm_probability=0.15, seed=0)
    inputs, cells, tokens = [], [], []
    for cell in range(corpus.n_cells):
        ids = torch.from_numpy(corpus.tokens[corpus.indptr[cell] : corpus.indptr[cell + 1]].astype(np.int64))[None]
        masked = masker(ids, epoch=2**63 - 1)
        inputs.append(masked.input_ids[0].tolist())
        hidden = masked.labels[masked.labels != -100].tolist()
        assert len(hidden) == int(0.15 * ids.numel())
        tokens += hidden
        cells += [cell] * len(hidden)
    assert (scores.cells.tolist(), scores.tokens.tolist()) == (cells, tokens)
    first, second = ([row for k in range(0, 60, 7) for row in seen[2 * k + shift * len(inputs[k : k + 7]) :][
        : len(inputs[k : k + 7])]] for shift in (0, 1))  # fmt: skip
    assert first == second == inputs


@pytest.mark.parametrize("masker", [None, "corrmask"])
def test_neither_batches_nor_other_models_change_a_score(corpus, graph, checkpoints, masker):
    chosen = None if masker is None else CorrMasker(graph, mlm_probability=0.3, seed=4)
    models = [checkpoints / "one", checkpoints / "other"]
    whole = scores_of(models, corpus, chosen, batch_size=60)
    assert whole.lines == [str(model) for model in models] + ["unigram"]
    for size in (1, 7):
        parts = scores_of(models, corpus, chosen, batch_size=size)
        np.testing.assert_array_equal(parts.tokens, whole.tokens)
        for line in whole.lines:
            np.testing.assert_allclose(parts.losses[line], whole.losses[line], rtol=1e-4)
    alone = scores_of({"other": tiny_bert(seed=1)}, corpus, chosen, batch_size=60)
    np.testing.assert_allclose(alone.losses["other"], whole.losses[str(models[1])], rtol=1e-5)
    difference = whole.difference(str(models[1]), str(models[0]))
    by_gene = whole.losses[str(models[1])] - whole.losses[str(models[0])]
    assert difference == estimate(by_gene, whole.cells)
    assert difference.error < np.hypot(whole.loss(str(models[0])).error, whole.loss(str(models[1])).error)


def test_losses_are_those_of_the_whole_logits(corpus):
    """One cell after the other, without padding and without a sparse head."""
    model = tiny_bert()
    scores = scores_of({"bert": model}, corpus)
    assert model.training  # it is left as it was
    model.eval()
    masker = RandomMasker(corpus.vocabulary)
    losses, right = [], []
    for a, b in zip(corpus.indptr, corpus.indptr[1:], strict=False):
        masked = masker(torch.from_numpy(corpus.tokens[a:b].astype(np.int64))[None], epoch=2**63 - 1)
        chosen = masked.labels != -100
        if chosen.any():
            logits = model(masked.input_ids).logits[chosen].detach()
            losses += torch.nn.functional.cross_entropy(logits, masked.labels[chosen], reduction="none").tolist()
            right += (logits.argmax(-1) == masked.labels[chosen]).tolist()
    np.testing.assert_allclose(scores.losses["bert"], losses, rtol=1e-4)
    assert scores.right["bert"].tolist() == right
    assert scores.accuracy("bert").mean == pytest.approx(np.mean(right))


def test_cells_are_cut_to_what_every_model_sees(corpus):
    widths = []

    def remember(input_ids, attention_mask):
        widths.append(input_ids.shape[1])
        return uniform(input_ids, attention_mask)

    scores = scores_of({"short": tiny_bert(positions=12), "uniform": remember}, corpus)
    assert max(widths) == 12
    starts = zip(corpus.indptr, corpus.indptr[1:], strict=False)
    cut = np.concatenate([corpus.tokens[a : min(b, a + 12)] for a, b in starts])
    frequency = np.bincount(cut, minlength=N_GENES + 2) / corpus.n_cells
    np.testing.assert_allclose(scores.frequency, frequency[scores.tokens])
    widths.clear()
    scores_of({"uniform": remember}, corpus, max_length=9)
    assert max(widths) == 9


# ------------------------------------------------------------------------------------------------------ the baselines


def test_baselines_worked_by_hand():
    """Three cells, AB, AC and AB, of types x, x and y."""
    genes = Vocabulary(("<pad>", "<mask>", "A", "B", "C", "D"))
    cells = Corpus(np.array([0, 2, 4, 6]), np.array([2, 3, 2, 4, 2, 3]), genes, obs={"type": np.array(["x", "x", "y"])})
    scores = scores_of(
        {"none": flat(6)},
        cells, RandomMasker(genes, mlm_probability=0.5), labels="type",
    )  # fmt: skip
    # With each cell left out: A, B, C, D stand in so many of the others, plus 1.
    unigram = [(3, 2, 2, 1), (3, 3, 1, 1), (3, 2, 2, 1)]
    of_type = [(1, 0, 1, 0), (1, 1, 0, 0), (0, 0, 0, 0)]  # in the other cells of the type
    assert scores.cells.tolist() == [0, 1, 2]
    for cell, token in zip(scores.cells, scores.tokens, strict=True):
        share = [Fraction(count, 8) for count in unigram[cell]]
        known = [count + 4 * one for count, one in zip(of_type[cell], share, strict=True)]
        for line, shares in (("unigram", share), ("cell type", known)):
            expected = float(shares[token - 2] / sum(shares))
            assert np.exp(-scores.losses[line][cell]) == pytest.approx(expected), (line, cell, token)
            assert scores.right[line][cell] == (shares.index(max(shares)) == token - 2)
    assert scores.losses["cell type"][2] == pytest.approx(scores.losses["unigram"][2])  # the only cell of its type


def test_cells_without_a_label_are_scored_by_the_unigram(corpus):
    scores = scores_of({"uniform": uniform}, corpus, labels="cell_type")
    labelled = np.isin(scores.cells % 5, [0, 1, 2])
    known, unigram = (scores.losses[line] for line in ("cell type", "unigram"))
    np.testing.assert_allclose(known[~labelled], unigram[~labelled], rtol=1e-14)
    assert (known[labelled] != unigram[labelled]).any()
    assert scores.loss("cell type").n == scores.loss("unigram").n  # the same genes
    assert list(scores.types) == ["T cell", "B cell"]  # by abundance
    np.testing.assert_array_equal(scores.types["B cell"], scores.cells % 5 == 1)
    said = scores.table()
    assert "masks: Random, 0.15 of a cell's genes, seed 0" in said
    assert "models trained with any masking compare" in " ".join(said.split())
    assert "of cells without a label the unigram's" in " ".join(said.split())


def test_a_type_with_genes_of_its_own_is_worth_knowing():
    genes = Vocabulary(("<pad>", "<mask>", *(f"G{i}" for i in range(40))))
    rows = [np.random.default_rng(i).permutation(20)[:10] + 2 + 20 * (i % 2) for i in range(100)]
    cells = Corpus(np.arange(0, 1001, 10), np.concatenate(rows), genes, obs={"type": np.tile(["x", "y"], 50)})
    scores = scores_of({"none": flat(42)}, cells, labels="type")
    assert scores.loss("unigram").mean == pytest.approx(np.log(40), abs=0.05)
    # 50 cells of 10 genes and a prior of 40, half of it on the other type's genes: 96 % of the mass on its own 20.
    assert scores.loss("cell type").mean == pytest.approx(np.log(20 / 0.96), abs=0.05)


# ---------------------------------------------------------------------------------------------- groups, files, messages


def test_an_unknown_line_is_refused_by_name(corpus):
    scores = scores_of({"flat": flat(N_GENES + 2)}, corpus)
    with pytest.raises(InputError, match=r"no line 'Flat' \(did you mean 'flat'\?\); there is flat, unigram"):
        scores.loss("Flat")


def test_groups_divide_the_masked_genes_and_are_saved(corpus, tmp_path):
    scores = scores_of({"bert": tiny_bert()}, corpus, labels="cell_type")
    groups = scores.groups()
    assert list(groups) == ["loss by frequency", "loss by type"]
    assert np.sum(list(groups["loss by frequency"].values()), axis=0).tolist() == [1] * scores.cells.size
    scores.save_csv(tmp_path / "scores.csv")
    rows = list(csv.DictReader((tmp_path / "scores.csv").open()))
    whole = next(row for row in rows if row["table"] == "all" and row["line"] == "bert")
    assert float(whole["loss"]) == scores.losses["bert"].mean()
    assert float(whole["perplexity"]) == pytest.approx(np.exp(scores.losses["bert"].mean()))
    assert float(whole["perplexity_se"]) == pytest.approx(float(whole["perplexity"]) * float(whole["loss_se"]))
    t_cells = next(row for row in rows if row["group"] == "T cell" and row["line"] == "unigram")
    of_them = np.isin(scores.cells % 5, [0, 2])
    assert float(t_cells["loss"]) == pytest.approx(scores.losses["unigram"][of_them].mean())
    assert int(t_cells["masked_genes"]) == of_them.sum()
    assert float(t_cells["loss_less_first"]) == pytest.approx(
        (scores.losses["unigram"] - scores.losses["bert"])[of_them].mean()
    )


def test_what_cannot_be_scored_is_refused(corpus, graph, checkpoints, tmp_path):
    path, other = checkpoints / "one", Vocabulary(("<pad>", "<mask>", *(f"X{i}" for i in range(N_GENES))))
    models = {"uniform": uniform}
    for wrong, message in (
        ([], "models must hold one model at least"),
        ([path, path], "each model must be given once"),
        ([uniform], "a model without a name must be a folder"),
        ({"unigram": uniform}, "no model may be named 'unigram'"),
        ({"number": 3}, "the model number must be the folder of a checkpoint, a module or a function"),
        ([tmp_path], "holds no model"),
        ({"small": tiny_bert(vocab_size=20)}, "the model small knows 20 tokens, the corpus has 32"),
        ({"few": flat(5)}, "the model few knows 5 tokens"),
        ({"text": lambda **_: "no"}, "the model must return logits"),
    ):
        with pytest.raises(InputError, match=message):
            scores_of(wrong, corpus)
    for masker, message in (
        (RandomMasker(other), "the corpus"),
        (RandomMasker(corpus.vocabulary, mlm_probability=Linear(0.1, 0.2, 9)), "has rates that go by the step"),
        (CorrMasker([graph, graph]), "CorrMasker has 2 graphs"),
        (MultinomialAttentionMasker(corpus.vocabulary, 16, n_latents=4), "MultinomialAttentionMasker learns"),
        (RandomMasker(corpus.vocabulary, mlm_probability=0.01), "no gene is masked at a rate of 0.01 in 60 cells"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=message):
            scores_of(models, corpus, masker)
    with pytest.raises(InputError, match="no obs column 'tissue'"):
        scores_of(models, corpus, labels="tissue")
    empty = Corpus(corpus.indptr, corpus.tokens, corpus.vocabulary, obs={"type": np.full(60, "nan")})
    with pytest.raises(InputError, match="column 'type' has no label in 60 cells"):
        scores_of(models, empty, labels="type")
    with pytest.raises(InputError, match="batch_size must be an integer >= 1; got 0"):
        scores_of(models, corpus, batch_size=0)
    with pytest.raises(InputError, match="device must be 'auto', 'cpu' or 'cuda'; got 'tpu'"):
        scores_of(models, corpus, device="tpu")


def test_the_command_scores_several_models(corpus, graph, checkpoints, tmp_path, capsys, fails):
    write_corpus(corpus, tmp_path / "cells.dataset")
    graph.save(tmp_path / "graph.safetensors")
    models = [str(checkpoints / name) for name in ("one", "other")]
    given = ["evaluate", "masks", *models, str(tmp_path / "cells.dataset"), "--no-progress"]
    assert main([*given, "--labels", "cell_type", "--csv", str(tmp_path / "scores.csv")]) == 0
    said = capsys.readouterr().out
    scores = scores_of(models, corpus, labels="cell_type")
    assert said == scores.table() + "\n"
    assert "Random, 0.15 of a cell's genes, seed 0" in said
    assert len(list(csv.DictReader((tmp_path / "scores.csv").open()))) == 4 * (1 + 5 + 2)
    more = ["--strategy", "corrmask", "--graph", str(tmp_path / "graph.safetensors"), "--mlm-probability", "0.3"]
    assert main([*given, *more, "--seed", "2"]) == 0
    said = capsys.readouterr().out
    assert said == scores_of(models, corpus, CorrMasker(graph, mlm_probability=0.3, seed=2)).table() + "\n"
    assert "masks: CorrMask, 0.3 of a cell's genes, seed 2" in said
    assert "no obs column 'tissue'" in fails(*given, "--labels", "tissue")
    assert "--strategy corrmask needs --graph GRAPH" in fails(*given, "--strategy", "corrmask")
    assert "--csv would replace" in fails(*given, *more, "--csv", tmp_path / "graph.safetensors")
