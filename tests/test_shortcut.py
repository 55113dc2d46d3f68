"""The paired shortcut: versions of a cell by plain loops; a model that copies has one, one that cannot has none."""

from __future__ import annotations

import csv

import numpy as np
import pytest
import torch

from corrmask_fast import (
    Corpus,
    CorrMasker,
    DependencyGraph,
    InputError,
    Vocabulary,
    build_dependency_graph,
    measure_shortcut,
    read_corpus,
    score_masks,
    write_corpus,
)
from corrmask_fast.cli.main import main
from corrmask_fast.evaluation.scored_models import gene_counts
from corrmask_fast.evaluation.shortcut import plan_targets
from corrmask_fast.evaluation.standard_errors import estimate
from corrmask_fast.synthetic import generate_cells
from corrmask_fast.training.partner_loss import PartnerLoss

transformers = pytest.importorskip("transformers")

from test_masked_scores import N_GENES, tiny_bert

pytestmark = pytest.mark.usefixtures("one_thread")

SHARE = 0.4
RANDOM, PARTNERS, PLACEBO = range(3)


@pytest.fixture(scope="module")
def corpus(make_corpus):
    return make_corpus(40, N_GENES, seed=5, max_length=40)


@pytest.fixture(scope="module")
def graph(corpus):
    """A hub with many partners, a chain, and genes without any."""
    chain = [(i, i + 1, 0.2 + 0.02 * i) for i in range(12, 24)]
    return DependencyGraph.from_edges([(2, i, 0.5 + 0.01 * i) for i in range(3, 9)] + chain, corpus.vocabulary)


def measured(models, corpus, graph, **options):
    return measure_shortcut(models, corpus, graph, progress=False, **{"mlm_probability": SHARE} | options)


def planned(corpus, graph, n_targets=10**6, seed=0, length=40, share=SHARE):
    counts = gene_counts(corpus, length)
    return *plan_targets(corpus, graph, counts, length, share, n_targets, seed), counts


def cells_of(corpus):
    return [corpus.tokens[a:b].tolist() for a, b in zip(corpus.indptr, corpus.indptr[1:], strict=False)]


# ------------------------------------------------------------------------------------------------------- what is masked


def test_versions_of_a_cell_by_plain_loops(corpus, graph):
    targets, _, counts = planned(corpus, graph)
    cells = cells_of(corpus)
    assert counts.tolist() == [sum(gene in cell for cell in cells) for gene in range(N_GENES + 2)]
    assert len(targets) > 100
    assert max(target.partners.size for target in targets) >= 4
    for target in targets:
        cell, budget = cells[target.cell], int(SHARE * len(cells[target.cell]))
        partners = {int(other): rho for other, rho in zip(*graph.neighbors(target.gene), strict=True) if other in cell}
        k = len(partners)
        assert target.partners.tolist() == list(partners)  # the largest |rho| first
        assert target.rho == max(map(abs, partners.values()))
        assert target.masked.shape == (3, budget)  # the same budget in all versions
        a, b, c = target.masked.tolist()
        assert all(set(version) <= set(cell) and len(set(version)) == budget for version in (a, b, c))
        assert a[0] == b[0] == c[0] == target.gene
        assert not set(a) & set(partners)
        assert set(b[1 : 1 + k]) == set(partners)
        placebo = c[1 : 1 + k]
        assert not set(placebo) & (set(partners) | set(a))
        assert b[1 + k :] == c[1 + k :] == a[1 : budget - k]  # what is hidden in all
        pool = set(cell) - set(partners) - set(a)
        for partner, gene in zip(partners, placebo, strict=True):  # each the nearest of those that are left
            nearest = min(abs(counts[other] - counts[partner]) for other in pool)
            assert abs(counts[gene] - counts[partner]) == nearest
            pool.remove(gene)


def test_targets_come_in_rounds_over_the_cells_and_the_others_are_counted(corpus, graph):
    targets, refused, _ = planned(corpus, graph)
    eligible, kinds = [], {"none": 0, "many": 0, "few": 0}
    for i, cell in enumerate(cells_of(corpus)):
        budget = int(SHARE * len(cell))
        for gene in cell:
            k = len(set(graph.neighbors(gene)[0].tolist()) & set(cell))
            if k == 0:
                kinds["none"] += 1
            elif 2 * k > budget - 1:
                kinds["many"] += 1
            elif len(cell) - 1 - k < budget - 1 + k:
                kinds["few"] += 1
            else:
                eligible.append((i, gene))
    drawn = [(target.cell, target.gene) for target in targets]
    assert sorted(drawn) == sorted(eligible)  # all of them, each once
    assert refused == (40, corpus.nnz, *kinds.values())
    assert min(kinds["none"], kinds["many"]) > 0
    of_cell = [cell for cell, _ in drawn]
    number = [of_cell[:i].count(cell) for i, cell in enumerate(of_cell)]
    assert number == sorted(number)  # a second gene of no cell before the first of all
    assert of_cell[:30] != sorted(of_cell[:30])
    few, looked_at, _ = planned(corpus, graph, n_targets=12)
    assert [(target.cell, target.gene) for target in few] == drawn[:12]
    assert all(np.array_equal(one.masked, other.masked) for one, other in zip(few, targets, strict=False))
    assert looked_at.cells < 40
    others, _, _ = planned(corpus, graph, seed=1)
    assert [(target.cell, target.gene) for target in others] != drawn


def test_too_few_other_genes_are_counted(graph, corpus):
    """Of 10 genes 8 are masked: beside a target with one partner 8 are left, 7 for (a), and one for the placebo."""
    cells = read_corpus(
        [[2, 3, 14, 20, 25, 26, 27, 28, 29, 30], [2, 3, 4, 14, 20, 25, 26, 27, 28, 29]], corpus.vocabulary
    )
    targets, refused, _ = planned(cells, graph, share=0.8)
    assert sorted((target.cell, target.gene) for target in targets) == [(0, 2), (0, 3), (1, 3), (1, 4)]
    assert refused.too_few_genes == 1  # the hub with two partners
    assert all(target.masked.shape == (3, 8) for target in targets)


def test_special_tokens_stay_and_are_never_masked():
    names = ("<pad>", "<mask>", "<cls>", "<eos>", *(f"G{i}" for i in range(20)))
    genes = Vocabulary(names)
    graph = DependencyGraph.from_edges([(4, 5), (6, 7), (4, 8)], genes)
    cells = read_corpus([[4, 5, 6, 7, *range(9, 19)], [8, 4, 5, *range(10, 21)]], genes)
    seen = []

    def remember(input_ids, attention_mask):
        seen.extend(row[mask != 0].tolist() for row, mask in zip(input_ids, attention_mask, strict=True))
        return torch.zeros(*input_ids.shape, 24)

    report = measured({"remember": remember}, cells, graph, max_length=14)
    rows = {cell: [2, *cells_of(cells)[cell][:12], 3] for cell in (0, 1)}  # cut, with both tokens around
    for row in seen:
        assert (row[0], row[-1], row.count(1)) == (2, 3, int(SHARE * 12))  # <mask> is 1
        assert any(all(token in {1, own} for token, own in zip(row, full, strict=True)) for full in rows.values())
    assert len(seen) == 3 * report.genes.size


# ----------------------------------------------------------------------------------------------------------- the losses


def test_losses_by_plain_loops(corpus, graph):
    """One version after the other, without padding; the shortcut and its error by plain Python and by jackknife."""
    model = tiny_bert()
    report = measured({"bert": model}, corpus, graph, n_targets=60, seed=3)
    targets, _, counts = planned(corpus, graph, n_targets=60, seed=3)
    model.eval()
    cells = cells_of(corpus)
    for i, target in enumerate(targets):
        cell = cells[target.cell]
        assert (report.cells[i], report.genes[i], report.partners[i]) == (
            target.cell,
            target.gene,
            target.partners.size,
        )
        assert report.frequency[i] == counts[target.gene] / 40
        for version in range(3):
            ids = torch.tensor([[1 if gene in target.masked[version] else gene for gene in cell]])
            logits = model(ids).logits[0, cell.index(target.gene)]
            loss = -torch.log_softmax(logits, -1)[target.gene].item()
            assert report.losses["bert"][i, version] == pytest.approx(loss, rel=1e-4)
    a, b, c = report.losses["bert"].T
    for measure, values in (("shortcut", b - a), ("placebo", c - a), ("excess", b - c)):
        found = report.mean("bert", measure)
        assert found.mean == pytest.approx(values.mean())
        every = np.unique(report.cells)
        without = np.array([values[report.cells != cell].mean() for cell in every])
        jackknife = np.sqrt((every.size - 1) / every.size * ((without - without.mean()) ** 2).sum())
        assert found.error == pytest.approx(jackknife, rel=0.1)
        assert (found.n, found.n_cells) == (60, every.size)
    with pytest.raises(InputError, match="measure must be one of shortcut, placebo, excess; got 'gap'"):
        report.mean("bert", "gap")


def test_neither_batches_nor_other_models_change_a_target(corpus, graph):
    models = {"one": tiny_bert(), "other": tiny_bert(seed=1)}
    whole = measured(models, corpus, graph, n_targets=50, batch_size=50)
    for size in (1, 7):
        parts = measured(models, corpus, graph, n_targets=50, batch_size=size)
        np.testing.assert_array_equal(parts.genes, whole.genes)
        for name in models:
            np.testing.assert_allclose(parts.losses[name], whole.losses[name], rtol=1e-4)
    alone = measured({"other": models["other"]}, corpus, graph, n_targets=50)
    np.testing.assert_allclose(alone.losses["other"], whole.losses["other"], rtol=1e-4)
    paired = whole.difference("other", "one", "excess")
    assert paired == estimate(whole.values("other", "excess") - whole.values("one", "excess"), whole.cells)


# ---------------------------------------------------------------------------------- one that copies, one that cannot


class Planted:
    """Cells with planted types and modules, a model that reads a cell's composition, and one that also copies."""

    def __init__(self, n_cells, n_genes, n_modules):
        cells = generate_cells(n_cells, n_genes, n_modules=n_modules, n_types=4)
        rows = [row.indices[np.lexsort((row.indices, -row.data))] + 2 for row in cells.counts]
        self.corpus = read_corpus(rows, cells.vocabulary)
        self.graph = build_dependency_graph(
            self.corpus, min_cooccurrence=50, min_presence=40, rho_min=0.3, progress=False
        )
        self.size = cells.vocabulary.size
        of_type = [self.corpus.select(np.flatnonzero(cells.cell_types == each)).tokens for each in range(4)]
        counts = np.stack([np.bincount(tokens, minlength=self.size) for tokens in of_type]) + 0.5
        counts[:, :2] = 1e-9
        self.shares = torch.from_numpy(counts / counts.sum(1, keepdims=True))  # of genes, in each type
        self.types = torch.from_numpy(np.bincount(cells.cell_types) / n_cells)
        self.neighbors = torch.from_numpy(self.graph.to_scipy(None).toarray())

    def bag(self, input_ids):
        bag = torch.zeros(len(input_ids), self.size, dtype=torch.float64).scatter_(1, input_ids, 1.0)
        bag[:, :2] = 0  # <pad> and <mask>
        return bag

    def composition(self, input_ids, attention_mask, masked_positions):
        """Naive Bayes over types, and the genes of these types: it knows no order and no partner."""
        types = torch.softmax(self.bag(input_ids) @ self.shares.log().T + self.types.log(), 1)
        return (types @ self.shares).log()[:, None].expand(-1, masked_positions.shape[1], -1)

    def copying(self, input_ids, attention_mask, masked_positions):
        raised = 0.3 * (self.bag(input_ids).float() @ self.neighbors)
        return self.composition(input_ids, attention_mask, masked_positions) + raised[:, None]

    def models(self):
        return {"composition": self.composition, "copying": self.copying}

    def old_gap(self):
        """The loss at masked genes with all partners hidden less that with one in view, under CorrMask's masks."""
        scores = score_masks({"composition": self.composition}, self.corpus, CorrMasker(self.graph), progress=False)
        hidden = {cell: set(scores.tokens[scores.cells == cell].tolist()) for cell in np.unique(scores.cells).tolist()}
        cells, kinds = cells_of(self.corpus), []
        for cell, token in zip(scores.cells.tolist(), scores.tokens.tolist(), strict=True):
            partners = set(self.graph.neighbors(token)[0].tolist()) & set(cells[cell])
            kinds.append("alone" if not partners else "visible" if partners - hidden[cell] else "hidden")
        groups = {kind: scores.loss("composition", np.array(kinds) == kind) for kind in ("visible", "hidden", "alone")}
        gap = groups["hidden"].mean - groups["visible"].mean
        return gap, np.hypot(groups["hidden"].error, groups["visible"].error), groups


@pytest.fixture(scope="module")
def planted():
    return Planted(300, 3000, 40)


def test_a_model_that_cannot_copy_has_no_shortcut_and_one_that_copies_has(planted):
    report = measured(planted.models(), planted.corpus, planted.graph, mlm_probability=0.15, n_targets=300)
    assert report.genes.size == 300
    composition = {measure: report.mean("composition", measure) for measure in ("shortcut", "placebo", "excess")}
    assert abs(composition["excess"].mean) < 3 * composition["excess"].error + 1e-6  # float32 losses
    assert abs(composition["shortcut"].mean) < 0.005
    copying = report.mean("copying", "excess")
    assert copying.mean > 0.5
    assert copying.mean > 10 * copying.error
    paired = report.difference("copying", "composition", "excess")
    assert paired.mean > 10 * paired.error


def test_the_old_gap_of_the_model_that_cannot_copy_is_far_from_nothing(planted):
    gap, error, groups = planted.old_gap()
    assert gap > 10 * error  # what the paired shortcut is not
    assert gap > 0.1
    assert groups["alone"].mean > groups["hidden"].mean
    split = PartnerLoss(planted.graph)
    masker = CorrMasker(planted.graph)
    for cell in range(planted.corpus.n_cells):
        indptr, tokens = planted.corpus.gather(np.array([cell]))
        masked = masker.mask_ragged(indptr, tokens, epoch=2**63 - 1)
        batch = {name: torch.from_numpy(values) for name, values in masked._asdict().items()}
        split.add(planted.composition, batch)
    metrics = split.metrics("")
    assert metrics["loss_partner_hidden"] - metrics["loss_partner_visible"] == pytest.approx(gap, rel=1e-4)
    for name, kind in (("visible", "visible"), ("hidden", "hidden"), ("absent", "alone")):
        assert metrics[f"genes_partner_{name}"] == groups[kind].n
        assert metrics[f"loss_partner_{name}"] == pytest.approx(groups[kind].mean, rel=1e-4)


def test_in_short_cells_partners_tell_a_little_of_the_type():
    """Of 35 genes a type is not certain, and partners tell more of it than others: far less than copying is worth."""
    short = Planted(400, 400, 10)
    report = measured(short.models(), short.corpus, short.graph, mlm_probability=0.15, n_targets=400)
    composition, copying = (report.mean(model, "excess").mean for model in short.models())
    assert 0 <= composition < 0.05 * copying


# ------------------------------------------------------------------------------------------- tables, files, messages


def test_every_target_is_saved_and_groups_divide_them(corpus, graph, tmp_path):
    report = measured({"one": tiny_bert(), "other": tiny_bert(seed=1)}, corpus, graph, n_targets=40)
    for groups in report.groups().values():
        assert np.sum(list(groups.values()), axis=0).tolist() == [1] * 40
    report.save_csv(tmp_path / "targets.csv")
    rows = list(csv.DictReader((tmp_path / "targets.csv").open()))
    assert len(rows) == 40
    for i, row in enumerate(rows):
        assert (int(row["cell"]), row["gene"]) == (report.cells[i], corpus.vocabulary.names[report.genes[i]])
        assert [float(row[f"other ({version})"]) for version in "abc"] == report.losses["other"][i].tolist()
    said = report.table()
    assert f"40 targets in {np.unique(report.cells).size} cells; 0.4 of a cell's genes masked, always by <mask>" in said
    assert "have no partner in the cell" in said
    assert report.difference("other", "one").text(4) in said


def test_a_picture_is_drawn(corpus, graph, tmp_path):
    pytest.importorskip("matplotlib")
    from corrmask_fast.evaluation.plots import plot_shortcut

    report = measured({"one": tiny_bert(), "a/very/long/path/of/another/model": tiny_bert(seed=1)}, corpus, graph)
    figure = plot_shortcut(report, tmp_path / "shortcut.png")
    assert (tmp_path / "shortcut.png").stat().st_size > 10_000
    everything, by_rho, by_frequency = figure.axes
    names = [label.get_text() for label in everything.get_yticklabels()]
    assert names == ["one", "…/long/path/of/another/model"]
    for axis, groups in zip((by_rho, by_frequency), report.groups().values(), strict=True):
        assert len(axis.get_xticklabels()) == sum(among.any() for among in groups.values())


def test_what_cannot_be_measured_is_refused(corpus, graph):
    models = {"one": tiny_bert()}
    with pytest.raises(
        InputError, match=r"no gene can be a target: Of [\d,]+ genes in the 40 cells .* 100.0 % have no pa"
    ):
        measured(models, corpus, DependencyGraph.from_edges([], corpus.vocabulary))
    with pytest.raises(InputError, match=r"B = floor\(0\.05 · n\), and a target needs 1 to \(B - 1\) / 2 partners"):
        measured(models, corpus, graph, mlm_probability=0.05)
    other = Vocabulary(("<pad>", "<mask>", *(f"X{i}" for i in range(N_GENES))))
    with pytest.raises(InputError, match="the graph"):
        measured(models, corpus, DependencyGraph.from_edges([(2, 3)], other))
    for options, message in (
        ({"n_targets": 0}, "n_targets must be an integer >= 1; got 0"),
        ({"mlm_probability": 1.5}, r"mlm_probability must be a number in \(0, 1\); got 1.5"),
        ({"batch_size": 0}, "batch_size must be an integer >= 1"),
        ({"seed": -1}, "seed must be an integer"),
        ({"max_length": 0}, "max_length must be an integer >= 1"),
    ):
        with pytest.raises(InputError, match=message):
            measured(models, corpus, graph, **options)
    with pytest.raises(InputError, match="the model small knows 20 tokens, the corpus has 32"):
        measured({"small": tiny_bert(vocab_size=20)}, corpus, graph)
    unmasked = Vocabulary(("<pad>", "A", "B", "C"))
    cells = Corpus(np.array([0, 3]), np.array([1, 2, 3]), unmasked)
    with pytest.raises(InputError, match="this vocabulary has none"):
        measured(models, cells, DependencyGraph.from_edges([("A", "B")], unmasked))


def test_the_command_measures_several_models(corpus, graph, tmp_path, capsys, fails):
    pytest.importorskip("matplotlib")
    write_corpus(corpus, tmp_path / "cells.dataset")
    graph.save(tmp_path / "graph.safetensors")
    models = [str(tmp_path / name) for name in ("one", "other")]
    for seed, model in enumerate(models):
        tiny_bert(seed=seed).save_pretrained(model)
    given = ["evaluate", "shortcut", *models, str(tmp_path / "cells.dataset"), "--no-progress"]
    given += ["--graph", str(tmp_path / "graph.safetensors"), "--mlm-probability", "0.4", "--n-targets", "30"]
    files = ["--csv", str(tmp_path / "targets.csv"), "--plot", str(tmp_path / "shortcut.svg")]
    assert main([*given, "--seed", "3", *files]) == 0
    assert capsys.readouterr().out == measured(models, corpus, graph, n_targets=30, seed=3).table() + "\n"
    assert (tmp_path / "targets.csv").read_text().count("\n") == 31
    assert (tmp_path / "shortcut.svg").stat().st_size
    assert "no gene can be a target" in fails(*given, "--mlm-probability", "0.01")
    assert "--n-targets must be an integer >= 1; got 0" in fails(*given, "--n-targets", "0")
    assert "--csv would replace" in fails(*given, "--csv", tmp_path / "graph.safetensors")
