"""Controls of CorrMask: the rewired graph, and random masks that cover each gene as often."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from corrmask_fast import (
    BalancedCorrMasker,
    CorrMasker,
    DependencyGraph,
    InputError,
    Linear,
    MatchedRandomMasker,
    RandomMasker,
    RewiredCorrMasker,
    WeightedMasker,
    audit_masking,
    build_dependency_graph,
    make_masker,
    matched_weights,
    read_corpus,
    rewired,
    stream_corpus,
    write_corpus,
)
from corrmask_fast.audit.masks import audit_strategies, masks_of
from corrmask_fast.cli.main import main
from corrmask_fast.synthetic import generate_cells
from corrmask_fast.testing import make_graph, make_vocabulary


@pytest.fixture(scope="module")
def corpus():
    """800 made-up cells of 400 genes, each by falling count."""
    cells = generate_cells(800, 400, n_modules=8, n_types=3, seed=1)
    rows = [row.indices[np.argsort(-row.data, kind="stable")] + 2 for row in cells.counts]
    return read_corpus([row.tolist() for row in rows], cells.vocabulary)


@pytest.fixture(scope="module")
def graph(corpus):
    return build_dependency_graph(corpus, min_cooccurrence=20, min_presence=20, progress=False)


@pytest.fixture(scope="module")
def matched(corpus, graph):
    return matched_weights(CorrMasker(graph, seed=5), corpus, progress=False)


def coverage(masker, corpus, epochs):
    """Times masked / times present of each gene by plain counting, and how often it is present."""
    indptr, tokens = corpus.gather_for_training(np.arange(corpus.n_cells))
    present = np.bincount(tokens, minlength=corpus.vocabulary.size)
    masked = np.zeros_like(present)
    for epoch in epochs:
        positions = masks_of(masker)(indptr, tokens, epoch)
        np.add.at(masked, tokens[(indptr[:-1, None] + positions)[positions >= 0]], 1)
    return masked / np.maximum(present * len(epochs), 1), present


# -------------------------------------------------------------------------------------------------- the rewired graph


def test_the_rewired_control_masks_by_the_rewired_graph(corpus, graph):
    other = rewired(graph, 7)
    assert np.array_equal(other.degrees, graph.degrees)
    rows = corpus.gather_for_training(np.arange(50))
    for options in ({}, {"structural_ratio": 0.9, "max_partners": 2, "partners": "weighted", "mlm_probability": 0.4}):
        control = make_masker("corrmask-rewired", graph=graph, seed=7, **options)
        same = CorrMasker(other, seed=7, **options).mask_ragged(*rows, epoch=3)
        assert np.array_equal(control.mask_ragged(*rows, epoch=3).input_ids, same.input_ids)
        assert torch.equal(control.table_fingerprint, CorrMasker(other, **options).table_fingerprint)
    with pytest.raises(InputError, match="resume with the graph of the first run"):  # another seed is another graph
        RewiredCorrMasker(graph, seed=8).load_state_dict(RewiredCorrMasker(graph, seed=7).state_dict())


def test_the_rewired_control_hides_fewer_partners(corpus, graph):
    report = {masker.label: audit_masking(masker, corpus, graph, epochs=3, progress=False)[masker.label]
              for masker in (CorrMasker(graph), RewiredCorrMasker(graph), RandomMasker(corpus.vocabulary))}  # fmt: skip
    corrmask, control, random = (report[name] for name in ("CorrMask", "CorrMask, rewired graph", "Random"))
    assert corrmask.hidden_rate > 1.3 * control.hidden_rate > 1.3 * random.hidden_rate
    assert corrmask.hit_rate > control.hit_rate + 0.04
    assert corrmask.masked == control.masked == random.masked


def test_rewired_in_several_graphs_and_by_weight(graph):
    masker = RewiredCorrMasker([graph, graph], partners="weighted")
    assert (masker.n_graphs, masker.label) == (2, "CorrMask-weighted, rewired graph")
    with pytest.raises(InputError, match=r"graph must be a DependencyGraph; got 'graph.safetensors'"):
        RewiredCorrMasker("graph.safetensors")


# ---------------------------------------------------------------------------------------------- the matched frequencies


def test_frequencies_match_in_fresh_draws(corpus, graph, matched):
    wanted, present = coverage(CorrMasker(graph, seed=5), corpus, range(40))
    reached, _ = coverage(WeightedMasker(corpus.vocabulary, matched.weights, seed=6), corpus, range(40, 80))
    plain, _ = coverage(RandomMasker(corpus.vocabulary), corpus, range(40))
    assert np.array_equal(present, matched.present)
    errors = [np.abs(each - wanted) @ present / present.sum() for each in (reached, plain)]
    assert errors[0] < 0.008 < errors[1] / 8
    assert abs(matched.mean_error - errors[0]) < 0.003
    assert abs(matched.random_error - errors[1]) < 0.005
    assert 0 < matched.mean_noise < matched.mean_error < 2 * matched.mean_noise + 0.003
    often = present >= 50
    assert matched.largest_error == np.abs(matched.reached - matched.wanted)[often].max() < 0.06
    assert np.abs(plain - wanted)[often].max() > 0.12


def test_the_numbers_are_counts_of_the_masks(corpus, graph, matched):
    """The last of the 3 · 32 + 120 epochs were drawn by the weights, those before by CorrMask."""
    first = 2**40
    again, _ = coverage(CorrMasker(graph, seed=5), corpus, range(first, first + 32))
    wanted, present = coverage(CorrMasker(graph, seed=5), corpus, range(first + 152, first + 184))
    by_weight = WeightedMasker(corpus.vocabulary, matched.weights, seed=5)
    reached, _ = coverage(by_weight, corpus, range(first + 184, first + 216))
    genes = present > 0
    for ours, theirs in ((matched.wanted_again, again), (matched.wanted, wanted), (matched.reached, reached)):
        assert np.array_equal(ours[genes], theirs[genes])
        assert np.isnan(ours[~genes]).all()
    assert matched.mean_error == pytest.approx(np.abs(reached - wanted) @ present / present.sum())


def test_what_is_left_of_corrmask_is_partners_masked_together(corpus, graph, matched):
    weighted = WeightedMasker(corpus.vocabulary, matched.weights)
    maskers = {"CorrMask": CorrMasker(graph), "matched": weighted, "Random": RandomMasker(corpus.vocabulary)}
    masks = {name: masks_of(masker) for name, masker in maskers.items()}
    corrmask, control, random = audit_strategies(masks, graph, corpus, epochs=3, progress=False)
    assert random.hit_rate < control.hit_rate < corrmask.hit_rate
    assert random.hidden_rate < control.hidden_rate < corrmask.hidden_rate / 2


def test_any_strategy_is_matched(corpus, graph):
    found = matched_weights(BalancedCorrMasker(graph, mlm_probability=(0.1, 0.5)), corpus, n_cells=300, progress=False)
    assert found.n_cells == 300
    assert found.mean_error < 0.012 + found.mean_noise  # all genes alike: hardly anything to match
    assert found.random_error < 0.03


def test_the_same_weights_again(corpus, graph, matched):
    again = make_masker("random-matched", graph=graph, corpus=corpus, seed=5)
    assert np.array_equal(again.matched.weights, matched.weights)
    lo, hi = corpus.vocabulary.gene_range
    assert np.array_equal(again.weights[lo:hi], matched.weights[lo:hi])
    other = MatchedRandomMasker(graph, corpus, structural_ratio=0.9, max_partners=9, seed=5)
    assert other.matched.random_error > 1.3 * matched.random_error
    other_table = other.state_dict()
    with pytest.raises(InputError, match=r"the saved masker used weights .*resume with the weights of the first run"):
        again.load_state_dict(other_table)


def test_rare_genes_and_genes_in_no_cell():
    """The coverage of a gene in one cell is mostly noise; a gene in none has the weight of most."""
    vocabulary = make_vocabulary(60)
    rng = np.random.default_rng(0)
    cells = [(2 + rng.permutation(40)[:30]).tolist() for _ in range(200)]
    cells[0].append(50)
    corpus = read_corpus(cells, vocabulary)
    graph = DependencyGraph.from_edges([(2, k) for k in range(3, 12)], vocabulary)
    found = matched_weights(CorrMasker(graph, mlm_probability=0.3), corpus, progress=False)
    assert found.present[[50, 55]].tolist() == [1, 0]
    assert found.weights[55] == np.median(found.weights[found.present > 0])
    assert 0.5 < found.weights[50] / found.weights[55] < 2
    assert np.isnan(found.wanted[55])
    assert found.weights[2] > 3 * found.weights[30]
    assert f"({vocabulary.name_of(found.worst)}, in {found.present[found.worst]} of 200 cells)" in found.summary()
    nothing = matched_weights(CorrMasker(graph, mlm_probability=0.01), corpus, rounds=1, progress=False)
    assert (nothing.weights == 1).all()
    assert nothing.mean_error == nothing.largest_error == 0


# ------------------------------------------------------------------------------------------------------- bad input


def test_bad_input(corpus, graph):
    masker = CorrMasker(graph)
    stream = stream_corpus([[2, 3, 4]], corpus.vocabulary)
    for bad, message in (
        (stream, r"weights are fitted on a Corpus, .*; read_corpus\(path\) opens files"),
        (read_corpus([], corpus.vocabulary), "weights cannot be fitted on an empty corpus"),
        (read_corpus([[2]], make_vocabulary(3)), "the masker .*the corpus"),
    ):
        with pytest.raises(InputError, match=message):
            matched_weights(masker, bad)
    for options, message in (({"rounds": 0}, "rounds must be an integer >= 1"), ({"n_cells": 0}, "n_cells must be")):
        with pytest.raises(InputError, match=message):
            matched_weights(masker, corpus, **options)
    with pytest.raises(
        InputError, match=r"'random-matched' needs the corpus, on which it is fitted: give corpus=read_"
    ):
        make_masker("random-matched", graph=graph)
    with pytest.raises(InputError, match="'random-matched' needs a dependency graph: give graph="):
        make_masker("random-matched", corpus=corpus)
    with pytest.raises(InputError, match=r"the graph .*the corpus"):
        make_masker("random-matched", graph=make_graph(make_vocabulary(9)), corpus=corpus)
    for name in ("mlm_probability", "structural_ratio"):
        with pytest.raises(InputError, match=f"{name} must be a number or a range in random-matched"):
            MatchedRandomMasker(graph, corpus, **{name: Linear(0.3, 0.1, 10)})


def test_commands(corpus, graph, tmp_path, capsys, fails):
    write_corpus(corpus.select(np.arange(200)), tmp_path / "cells.npz")
    graph.save(tmp_path / "graph.safetensors")
    files = [f"{tmp_path}/cells.npz", "--graph", f"{tmp_path}/graph.safetensors", "--no-progress"]
    for name, label in (("corrmask-rewired", "CorrMask, rewired graph"), ("random-matched", "Random, matched")):
        assert main(["audit", *files, "--strategy", name, "--n-cells", "50"]) == 0
        out = capsys.readouterr().out
        assert f"\n{label}" in out
        assert ("Random, matched: how often genes are masked differs from CorrMask by" in out) == (
            name != "corrmask-rewired"
        )
    options = ["--strategy", "random-matched", "--mlm-probability", "linear:0.3:0.1:9"]
    assert "--mlm-probability must be a number or a range in random-matched" in fails("audit", *files, *options)


@pytest.mark.parametrize(
    "options",
    [
        ["--strategy", "random-matched", "--structural-ratio", "0.8"],
        ["--strategy", "corrmask-rewired"],
        ["--strategy", "corrmask-balanced", "--eval-strategy", "random-matched"],
        ["--strategy", "random", "--mlm-probability", "0.1..0.9"],
    ],
    ids=lambda options: " ".join(options[1::2]),
)
def test_controls_are_trained_with_and_resumed(corpus, graph, tmp_path, capsys, options):
    pytest.importorskip("transformers")
    pytest.importorskip("matplotlib")
    write_corpus(corpus.select(np.arange(40)), tmp_path / "cells.npz")
    graph.save(tmp_path / "graph.safetensors")
    sizes = {"hidden-size": 8, "layers": 1, "heads": 1, "intermediate-size": 8, "max-length": 32, "batch-size": 4}
    files = [f"{tmp_path}/cells.npz", "--graph", f"{tmp_path}/graph.safetensors", "--out", f"{tmp_path}/run"]
    given = [part for name, value in sizes.items() for part in (f"--{name}", str(value))]
    command = ["pretrain", *files, *given, "--save-every", "2", "--no-progress"]
    assert main([*command, *options, "--max-steps", "2"]) == 0
    out = capsys.readouterr().out
    assert ("Random, matched: how often genes are masked differs" in out) == (options[1] == "random-matched")
    assert main(["pretrain", *files, "--resume", "--max-steps", "4", "--no-progress"]) == 0
    assert "\n4 steps; the model lies in " in capsys.readouterr().out
