"""The audit: counts equal to the plain-Python oracle, figures worked by hand, reports and pictures."""

from __future__ import annotations

import csv
import json
import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corrmask_fast import (
    CorpusDataset,
    CorrMasker,
    DataCollatorForCorrMask,
    DependencyGraph,
    InputError,
    Vocabulary,
    audit_masking,
    read_corpus,
    reference,
    set_num_threads,
)
from corrmask_fast.audit.masks import CONTROL, audit_strategies, common_mix
from corrmask_fast.audit.masks import _Tally as Tally
from corrmask_fast.audit.report import COUNTS, NOTE

VOCABULARY = Vocabulary(("<pad>", "<mask>", "<cls>", "<eos>", *"ABCDEFGHIJKL"))
A, B, C, D, E = range(4, 9)


def make_graph(edges, vocabulary=VOCABULARY):
    """A graph of {(u, v): rho}; a pair given in both directions has a value for each."""
    rows = {}
    for (u, v), rho in edges.items():
        rows.setdefault(u, {})[v] = np.float32(rho)
        rows.setdefault(v, {}).setdefault(u, np.float32(rho))
    indptr = np.zeros(vocabulary.size + 1, np.int64)
    for gene, partners in rows.items():
        indptr[gene + 1] = len(partners)
    order = [(gene, other) for gene in sorted(rows) for other in sorted(rows[gene])]
    indices, rho = [other for _, other in order], [rows[gene][other] for gene, other in order]
    return DependencyGraph(np.cumsum(indptr), np.array(indices, int), np.array(rho, np.float32), vocabulary)


def oracle_graph(graph):
    return {
        gene: {int(graph.indices[j]): float(graph.rho[j]) for j in range(graph.indptr[gene], graph.indptr[gene + 1])}
        for gene in range(graph.vocabulary.size)
    }


def tally(graph, rows, name="ours"):
    """Audit rows given as (tokens, maskable flags, masked columns)."""
    lengths = [len(tokens) for tokens, _, _ in rows]
    width = max([len(masked) for _, _, masked in rows], default=0)
    positions = np.full((len(rows), width), -1, np.int64)
    for row, (_, _, masked) in enumerate(rows):
        positions[row, : len(masked)] = sorted(masked)
    counts = Tally(graph)
    counts.add(
        np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        np.array([token for tokens, _, _ in rows for token in tokens], np.int64),
        np.array([flag for _, maskable, _ in rows for flag in maskable], np.bool_),
        positions,
    )
    return counts.finish(name)


def oracle(graph, rows):
    plain = [
        ({c: token for c, token in enumerate(tokens) if maskable[c]}, sorted(masked))
        for tokens, maskable, masked in rows
    ]
    return reference.audit_rows(plain, oracle_graph(graph))


def assert_equal(audit, expected):
    for name in (*COUNTS, "shortcut_sum"):
        assert getattr(audit, name) == getattr(expected, name), name
    for name in ("times_masked", "times_present"):
        array = getattr(audit, name)
        # A token outside the vocabulary can be masked, but is no gene to keep a record of.
        by_gene = {gene: times for gene, times in getattr(expected, name).items() if 0 <= gene < array.size}
        assert {g: int(array[g]) for g in np.flatnonzero(audit.times_present)} == by_gene
        assert array.sum() == sum(by_gene.values())


@st.composite
def cases(draw):
    genes = st.integers(4, 15)
    rho = st.floats(-1, 1, width=32)
    edges = draw(st.dictionaries(st.tuples(genes, genes).filter(lambda pair: pair[0] != pair[1]), rho, max_size=25))
    rows = []
    for _ in range(draw(st.integers(0, 6))):
        # Genes may stand twice, lie outside the vocabulary, or be special tokens; padding is a special token too.
        tokens = draw(st.lists(st.one_of(genes, st.integers(0, 3), st.sampled_from([-7, 16, 99])), max_size=14))
        maskable = [token not in range(4) and draw(st.integers(0, 9)) > 0 for token in tokens]
        masked = {c for c in range(len(tokens)) if maskable[c] and draw(st.booleans())}
        rows.append((tokens, maskable, masked))
    return make_graph(edges), rows


@given(cases())
@settings(max_examples=300, deadline=None)
def test_equals_the_oracle_to_the_bit(case):
    graph, rows = case
    assert_equal(tally(graph, rows), oracle(graph, rows))


def test_figures_worked_by_hand():
    # A: partners B (visible), C (masked), E (absent). C: partner A (masked). D: no partner. B is visible.
    graph = make_graph({(A, B): -0.8, (A, C): 0.5, (A, E): 0.9})
    tokens = [2, A, C, B, D, 3, 0]
    audit = tally(graph, [(tokens, [False, True, True, True, True, False, False], {1, 2, 4})])
    assert (audit.maskable, audit.masked, audit.runs, audit.judged) == (4, 3, 2, 2)
    assert audit.hit_rate == 2 / 3  # A to B no, A to C yes, C to A yes
    assert audit.all_partner_hit_rate == 2 / 4  # E stands in A's list, but not in the cell
    assert audit.hidden_rate == 1 / 2  # C's only partner is masked
    assert audit.residual_shortcut == np.float32(0.8) / 2
    assert audit.mean_span == 3 / 2
    assert audit.rate == 3 / 4
    assert [audit.coverage[g] for g in (A, B, C, D)] == [1, 0, 1, 1]
    assert math.isnan(audit.coverage[E])
    assert audit.genes_reached == 3 / 4


def test_the_second_column_of_a_gene_is_not_its_position():
    graph = make_graph({(A, B): 0.5})
    only_second = tally(graph, [([A, B, A], [True] * 3, {2})])
    assert (only_second.judged, only_second.masked, only_second.times_masked[A]) == (0, 1, 0)
    both = tally(graph, [([A, B, A], [True] * 3, {0, 2})])
    assert (both.judged, both.pairs, both.hits, both.times_present[A]) == (1, 1, 0, 1)
    protected_first = tally(graph, [([A, B, A], [False, True, True], {2})])
    assert (protected_first.judged, protected_first.times_masked[A]) == (1, 1)


def test_runs_end_with_their_row_and_at_columns_that_cannot_be_masked():
    graph = make_graph({})
    rows = [([A, B], [True, True], {0, 1}), ([C, 2, D], [True, False, True], {0, 2})]
    assert tally(graph, rows).runs == 3
    assert tally(graph, rows).mean_span == 4 / 3


@pytest.mark.parametrize(
    ("rows", "nan"),
    [
        ([], ["hit_rate", "all_partner_hit_rate", "hidden_rate", "mean_span", "rate", "genes_reached"]),
        ([([], [], set())], ["hit_rate", "mean_span", "rate", "genes_reached"]),
        ([([2, 3, 0], [False] * 3, set())], ["hit_rate", "mean_span", "rate", "genes_reached"]),
        ([([A, B], [True] * 2, set())], ["hit_rate", "hidden_rate", "residual_shortcut", "mean_span"]),
        ([([A, D], [True] * 2, {0})], ["hit_rate", "all_partner_hit_rate", "hidden_rate", "residual_shortcut"]),
    ],
    ids=["no rows", "an empty row", "special tokens only", "nothing masked", "no partner present"],
)
def test_an_empty_sum_is_nan(rows, nan):
    audit = tally(make_graph({(A, B): 0.5}), rows)
    figures = audit.to_dict()
    assert all(math.isnan(figures[name]) for name in nan)
    others = {"hit_rate", "mean_span", "rate", "genes_reached"} - set(nan)
    assert not any(math.isnan(figures[name]) for name in others)


def random_masks(indptr, tokens, epoch):
    """Masked columns as a function of the row and the epoch alone."""
    rows = []
    for begin, end in pairwise(indptr):
        rng = np.random.default_rng([epoch, *tokens[begin:end].tolist()])
        rows.append(np.flatnonzero(rng.random(end - begin) < 0.3))
    positions = np.full((len(rows), max(row.size for row in rows)), -1, np.int64)
    for row, masked in enumerate(rows):
        positions[row, : masked.size] = masked
    return positions


@pytest.fixture(scope="module")
def corpus():
    rng = np.random.default_rng(5)
    cells = [rng.permutation(40)[: rng.integers(0, 41)] + 2 for _ in range(300)]
    vocabulary = Vocabulary(("<pad>", "<mask>", *(f"G{i}" for i in range(40))), symbols={"G0": "RPL3"})
    return read_corpus(cells, vocabulary)


@pytest.fixture(scope="module")
def graph(corpus):
    rng = np.random.default_rng(3)
    edges = {tuple(rng.choice(40, 2, replace=False) + 2): rng.uniform(-1, 1) for _ in range(120)}
    return make_graph(edges, corpus.vocabulary)


def audit(corpus, graph, **options):
    return audit_strategies({"ours": random_masks}, graph, corpus, progress=False, **options)


def test_a_corpus_equals_the_oracle_for_any_threads_and_chunks(corpus, graph, monkeypatch):
    rows = []
    for epoch in range(2):
        masks = random_masks(corpus.indptr, corpus.tokens, epoch)
        for i in range(corpus.n_cells):
            tokens = corpus.tokens[corpus.indptr[i] : corpus.indptr[i + 1]].tolist()
            rows.append((tokens, [True] * len(tokens), set(masks[i][masks[i] >= 0].tolist())))
    expected = oracle(graph, rows)
    by_gene = set()
    for threads, chunk in ((1, 1024), (2, 1024), (3, 64), (1, 7)):
        monkeypatch.setattr("corrmask_fast.audit.masks.CHUNK_CELLS", chunk)
        set_num_threads(threads)
        try:
            ours = audit(corpus, graph, epochs=2)["ours"]
            assert_equal(ours, expected)
            by_gene.add(ours.shortcut_of_gene.tobytes())
            assert ours.times_judged.sum() == ours.judged
            assert ours.shortcut_of_gene.sum() == pytest.approx(ours.shortcut_sum)
        finally:
            set_num_threads(None)

    assert len(by_gene) == 1


def test_same_genes_take_out_the_mix_of_genes():
    # A has strong partners, C weak ones. Ours hides A's partner in one cell of four, and masks A far more often.
    graph = make_graph({(A, B): 0.75, (C, D): 0.25})
    cell = ([A, B, C, D], [True] * 4)
    hub, hidden, weak = (*cell, {0}), (*cell, {0, 1}), (*cell, {2})
    ours, control = Tally(graph), Tally(graph)
    for counts, rows in ((ours, [hub] * 3 + [hidden, weak]), (control, [hub, weak, weak, weak])):
        positions = np.array([[*sorted(masked), -1][:2] for _, _, masked in rows])
        tokens = np.array([token for row in rows for token in row[0]], np.int64)
        counts.add(np.arange(len(rows) + 1) * 4, tokens, np.ones(tokens.size, np.bool_), positions)
    mix = common_mix({"ours": ours.times_judged, CONTROL: control.times_judged}, CONTROL)
    assert {g: int(mix[g]) for g in np.flatnonzero(mix)} == {A: 1, C: 3}  # the control never judged B
    ours, control = ours.finish("ours", mix), control.finish(CONTROL, mix)
    assert ours.residual_shortcut == 2.5 / 6 > control.residual_shortcut == 1.5 / 4
    assert ours.residual_shortcut_same_genes == (0.75 * 3 / 4 * 1 + 0.25 * 3) / 4 < 1.5 / 4
    assert control.residual_shortcut_same_genes == control.residual_shortcut


def test_a_sample_of_cells(corpus, graph):
    report = audit(corpus, graph, n_cells=50, seed=1)
    rows = corpus.sample_rows(50, 1)
    assert report.n_cells == 50
    assert report["ours"].maskable == corpus.take(rows).nnz


def test_bad_input_is_named(corpus, graph):
    with pytest.raises(InputError, match="empty corpus"):
        audit(corpus.take(np.arange(0)), graph)
    with pytest.raises(InputError, match="different vocabularies"):
        audit(read_corpus([[4, 5]], VOCABULARY), graph)
    with pytest.raises(InputError, match=r"epochs must be an integer >= 1; got 0"):
        audit(corpus, graph, epochs=0)
    with pytest.raises(KeyError, match="no strategy 'theirs' in this report; it has ours"):
        audit(corpus, graph)["theirs"]


@pytest.mark.parametrize("special", [("<pad>", "<mask>"), ("<pad>", "<mask>", "<cls>", "<eos>")], ids=["V1", "V2"])
def test_a_masker_is_audited_as_it_masks_in_training(special):
    rng = np.random.default_rng(1)
    vocabulary = Vocabulary((*special, *(f"G{i}" for i in range(60))))
    lo, hi = vocabulary.gene_range
    cells = [rng.permutation(np.arange(lo, hi))[: rng.integers(0, 61)] for _ in range(120)]
    corpus = read_corpus(cells, vocabulary)
    graph = make_graph({(lo + i, lo + (i + 7) % 60): 0.5 for i in range(60)}, vocabulary)
    masker = CorrMasker(graph, mlm_probability=0.3, structural_ratio=0.8, seed=5)
    report = audit_masking(masker, corpus, graph, epochs=2, progress=False)

    for name, ratio in (("CorrMask", 0.8), (CONTROL, 0.0)):
        collator = DataCollatorForCorrMask(CorrMasker(graph, mlm_probability=0.3, structural_ratio=ratio, seed=5))
        dataset, rows = CorpusDataset(corpus), []
        for epoch in range(2):
            collator.set_epoch(epoch)
            for i in range(corpus.n_cells):
                labels = collator(dataset.__getitems__([i]))["labels"][0].tolist()
                tokens = dataset[i]["input_ids"].tolist()
                masked = {column for column, label in enumerate(labels) if label != -100}
                rows.append((tokens, [lo <= token < hi for token in tokens], masked))
        assert_equal(report[name], oracle(graph, rows))
    assert report["CorrMask"].hit_rate > 1.5 * report[CONTROL].hit_rate
    assert report["CorrMask"].masked == report[CONTROL].masked == 2 * sum(int(len(cell) * 0.3) for cell in cells)


def test_report_as_table_dict_and_csv(corpus, graph, tmp_path):
    def nothing(indptr, tokens, epoch):
        return np.full((indptr.size - 1, 1), -1, np.int64)

    report = audit_strategies({"ours": random_masks, "nothing": nothing}, graph, corpus, progress=False)
    lines = report.table().splitlines()
    assert lines[0].startswith("Masking audit: 300 cells, 1 epoch")
    assert len({len(line) for line in lines[1:6]}) == 1
    assert report.table().endswith(NOTE)
    assert f"{100 * report['ours'].hit_rate:.2f} %" in lines[4]
    assert lines[5].split()[:2] == ["nothing", "-"]
    json.dumps(report.to_dict())

    headings = lines[1].split(), lines[2].split()
    assert headings[0].index("shortcut,") < headings[0].index("residual")  # the one to compare by comes first
    assert not {"lambda", "K", "p", "seed"} & set(headings[1])  # functions have no settings

    report.save_csv(tmp_path / "audit.csv")
    with (tmp_path / "audit.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["graph"] for row in rows} == {graph.fingerprint[:12]}
    assert {(row["structural_ratio"], row["seed"]) for row in rows} == {("", "")}
    assert [row["strategy"] for row in rows] == ["ours", "nothing"]
    assert float(rows[0]["hit_rate"]) == report["ours"].hit_rate
    assert int(rows[0]["hits"]) == report["ours"].hits

    report.save_coverage_csv(tmp_path / "coverage.csv")
    with (tmp_path / "coverage.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert rows[0]["symbol"] == "RPL3"
    assert sum(int(row["times_present"]) for row in rows) == corpus.nnz
    assert sum(int(row["times_masked: ours"]) for row in rows) == report["ours"].masked


def test_several_maskers_in_one_report(corpus, graph, tmp_path):
    common = {"mlm_probability": 0.3, "seed": 4}
    pairs = [(ratio, k) for ratio in (0.25, 1.0) for k in (1, 5)]
    maskers = [CorrMasker(graph, structural_ratio=ratio, max_partners=k, **common) for ratio, k in pairs]
    report = audit_masking(maskers, corpus, graph, progress=False)
    names = [f"CorrMask, lambda {ratio:g}, K {k}" for ratio, k in pairs]
    assert [row.name for row in report] == [*names, CONTROL]
    for name, masker in zip(names, maskers, strict=True):
        alone = audit_masking(masker, corpus, graph, progress=False)
        assert [row.name for row in alone] == ["CorrMask", CONTROL]
        assert alone["CorrMask"].hits == report[name].hits
        assert alone[CONTROL].hits == report[CONTROL].hits
    assert len({row.hits for row in report}) == 5

    report.save_csv(tmp_path / "audit.csv")
    with (tmp_path / "audit.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["strategy"] for row in rows] == ["CorrMask"] * 4 + [CONTROL]
    settings = [(row["structural_ratio"], row["max_partners"], row["mlm_probability"], row["seed"]) for row in rows]
    assert settings == [(str(r), str(k), "0.3", "4") for r, k in pairs] + [("0.0", "", "0.3", "4")]
    _, _, heading, _, *lines = report.table().splitlines()
    assert heading.split()[:3] == ["strategy", "lambda", "K"]  # p and seed are those of all
    assert " p " not in heading
    assert [line.split()[1:3] for line in lines[:4]] == [[f"{r:g}", str(k)] for r, k in pairs]
    assert lines[4].removeprefix(CONTROL).split()[:2] == ["0", "-"]

    named = audit_masking({"a": maskers[0], "b": maskers[0]}, corpus, graph, progress=False)
    assert [row.name for row in named] == ["a", "b", CONTROL]
    rates = [CorrMasker(graph, mlm_probability=p) for p in (0.15, (0.1, 0.2))]
    names = [row.name for row in audit_masking(rates, corpus, graph, progress=False)]
    assert names == ["CorrMask, p 0.15", "CorrMask, p 0.1..0.2", CONTROL]
    with pytest.raises(InputError, match="two maskers have the same label and settings; name them"):
        audit_masking([maskers[0], maskers[0]], corpus, graph)
    with pytest.raises(InputError, match="one or more of them; got none"):
        audit_masking([], corpus, graph)
    with pytest.raises(InputError, match="no masker may be named 'control"):
        audit_masking({CONTROL: maskers[0]}, corpus, graph)


def test_plots_are_saved_whole_or_not_at_all(corpus, graph, tmp_path):
    pytest.importorskip("matplotlib")
    from corrmask_fast.audit.plots import plot_audit
    from corrmask_fast.training.plots import plot_loss

    report = audit(corpus, graph)
    plot_audit(report, tmp_path / "audit.png")
    assert (tmp_path / "audit.png").read_bytes().startswith(b"\x89PNG")
    figure = plot_loss([3.0, 2.5, 2.0], tmp_path / "loss.svg", chance=3.2, window=2)
    assert figure.axes[0].texts[0].get_text() == "2.25 nats,\nmean of\n2 steps"
    assert b"<svg" in (tmp_path / "loss.svg").read_bytes()
    with pytest.raises(InputError, match="does not exist"):
        plot_audit(report, tmp_path / "nowhere" / "audit.png")
    with pytest.raises(InputError, match="bmpx"):
        plot_audit(report, tmp_path / "audit.bmpx")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["audit.png", "loss.svg"]


def test_a_plot_of_masks_without_any_pair(corpus, tmp_path):
    pytest.importorskip("matplotlib")
    from corrmask_fast.audit.plots import plot_audit

    figure = plot_audit(audit(corpus, make_graph({}, corpus.vocabulary)))
    texts = [text.get_text() for axis in figure.axes for text in axis.texts]
    assert texts.count("no pair") == 4
