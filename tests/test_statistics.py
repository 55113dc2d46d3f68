"""Masks are random in the way they should be: chi-square within five sigma of its mean, seeds fixed.

Each test draws tens of thousands of rows from the kernels and counts what the model of SPEC 4 says is uniform.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from corrmask_fast import (
    BalancedCorrMasker,
    CorrMasker,
    DependencyGraph,
    GeneSetMasker,
    PMIMasker,
    PMITable,
    SpanMasker,
    reference,
)
from corrmask_fast.testing import cases, make_graph, make_vocabulary

SIGMAS = 5.0
ROWS = 20_000


def assert_fits(counts, expected, *, shrink=1.0):
    """Chi-square of counts against expected counts, within five sigma on both sides (too even is wrong too).

    ``shrink``: variance of a count relative to independent draws (without replacement it is smaller).
    """
    counts, expected = np.asarray(counts, float).ravel(), np.broadcast_to(expected, np.shape(counts)).ravel()
    assert counts.size > 1
    assert np.isclose(counts.sum(), expected.sum())
    freedom = counts.size - 1
    statistic = ((counts - expected) ** 2 / expected).sum() / shrink
    assert abs(statistic - freedom) < SIGMAS * math.sqrt(2 * freedom), f"chi-square {statistic} at {freedom} degrees"


def some_draws(rows):
    return np.arange(rows) * 1_000_003 - 12345


def mask(graph, row, *, rows=ROWS, by="draw_ids", **parameters):
    """Mask the same row many times; return (rows, columns) of what is masked, and the batch."""
    return mask_by(CorrMasker(graph, **parameters), row, rows=rows, by=by)


def mask_by(masker, row, *, rows=ROWS, by="draw_ids"):
    """Do as ``mask`` does, by a masker."""
    batch = torch.tensor([row]).repeat(rows, 1)
    masked = masker(batch, draw_ids=torch.from_numpy(some_draws(rows))) if by == "draw_ids" else masker(batch)
    return (masked.labels != -100).numpy(), masked


@pytest.fixture(scope="module")
def genes():
    return make_vocabulary(60)


def pairs_of(genes, n):
    """Genes 2 and 3, 4 and 5, … are partners."""
    return DependencyGraph.from_edges([(2 + 2 * i, 3 + 2 * i) for i in range(n // 2)], genes)


# ---------------------------------------------------------------------------------------------------------- columns


@pytest.mark.parametrize("by", ["draw_ids", "counter"])
def test_seeds_are_uniform(genes, by):
    """One masked column a row, no partners: it is the seed. The last ten columns have no neighbours."""
    row = list(range(2, 42))
    hidden, _ = mask(pairs_of(genes, 30), row, by=by, mlm_probability=0.03, structural_ratio=1.0, max_partners=0)
    assert hidden.sum(1).tolist() == [1] * ROWS
    assert_fits(hidden[:, :30].sum(0), ROWS / 30)
    assert not hidden[:, 30:].any()


def test_the_seeds_of_a_row_are_a_uniform_subset(genes):
    """All pairs of two seeds are equally likely, not the single seeds alone."""
    row = list(range(2, 14))
    hidden, _ = mask(pairs_of(genes, 12), row, mlm_probability=0.17, structural_ratio=1.0, max_partners=0)
    assert set(hidden.sum(1)) == {2}
    together = (hidden.T.astype(int) @ hidden.astype(int))[np.triu_indices(12, 1)]
    assert_fits(together, ROWS / together.size)


@pytest.mark.parametrize("most", [1, 3, 9])
def test_partners_are_uniform(genes, most):
    """A star: where its middle is the seed, any ``most`` of its 20 leaves are as likely as any others."""
    row = [2, *range(3, 23), *range(40, 60)]
    star = DependencyGraph.from_edges([(2, leaf) for leaf in range(3, 23)], genes)
    budget = most + 1
    hidden, _ = mask(
        star, row, rows=5 * ROWS, mlm_probability=(budget + 0.5) / len(row), structural_ratio=1.0, max_partners=most
    )
    # A leaf that is the first seed brings the middle, then comes a second seed: rows with the middle first are those
    # in which the leaves' mask is of the middle's choosing. w0 of the middle is smallest in 1 of 21 rows.
    words = seed_words(5 * ROWS, len(row))
    first = words[:, :21].argmin(1) == 0
    assert 0.8 < first.mean() * 21 < 1.2
    chosen = hidden[first]
    assert chosen[:, 0].all()
    assert (chosen[:, 1:21].sum(1) == most).all()
    assert not chosen[:, 21:].any()
    assert_fits(chosen[:, 1:21].sum(0), chosen.shape[0] * most / 20, shrink=1 - (most - 1) / 19)


def seed_words(rows, columns):
    """w0 of each row and column of ``mask``: the oracle's Philox takes arrays too."""
    draws = some_draws(rows).astype(np.uint64)[:, None]
    zero = np.uint64(0)
    counter = np.arange(columns, dtype=np.uint64)[None, :], zero, draws & np.uint64(2**32 - 1), draws >> np.uint64(32)
    return reference.philox4x32(counter, (0, 0))[0]


def test_the_top_up_is_uniform(genes):
    row = list(range(2, 52))
    hidden, _ = mask(pairs_of(genes, 20), row, mlm_probability=0.2, structural_ratio=0.0)
    assert_fits(hidden.sum(0), ROWS * 10 / 50, shrink=1 - 9 / 49)
    # What the top-up adds to seeds: the same share of every column that is no seed.
    hidden, _ = mask(pairs_of(genes, 20), row, mlm_probability=0.2, structural_ratio=0.5, max_partners=0)
    rest = hidden[:, 20:].sum(0)
    assert_fits(rest, rest.mean(), shrink=1 - (5 - 1) / 44)
    # Five seeds out of twenty, then five of the 45 columns that are left.
    assert abs(rest.mean() / ROWS - 5 / 45) < SIGMAS * math.sqrt(5 / 45 / ROWS)


def test_neighbouring_draws_and_columns_are_independent(genes):
    """Masks of consecutive draws overlap by chance alone, and masked columns do not attract each other."""
    row = list(range(2, 52))
    masker = CorrMasker(pairs_of(genes, 0), mlm_probability=0.2)
    hidden = (masker(torch.tensor([row]).repeat(ROWS, 1)).labels != -100).numpy()
    overlap = (hidden[1:] & hidden[:-1]).sum(1)
    assert abs(overlap.mean() - 2.0) < SIGMAS * overlap.std() / math.sqrt(ROWS)
    runs = (hidden[:, 1:] & hidden[:, :-1]).sum(1)
    expected = 49 * (10 / 50) * (9 / 49)
    assert abs(runs.mean() - expected) < SIGMAS * runs.std() / math.sqrt(ROWS)


def test_another_seed_is_another_mask(genes):
    row = list(range(2, 52))
    one, _ = mask(pairs_of(genes, 20), row, rows=2000, structural_ratio=0, seed=0)
    other, _ = mask(pairs_of(genes, 20), row, rows=2000, structural_ratio=0, seed=1)
    assert abs((one & other).sum(1).mean() - 7 * 7 / 50) < 0.2


# ------------------------------------------------------------------------------------------- spans, runs of pairs


def test_the_starts_of_spans_are_uniform(genes):
    """One masked column a row: it is where the first span starts, whatever its length."""
    hidden, _ = mask_by(SpanMasker(genes, mlm_probability=0.021), list(range(2, 52)))
    assert set(hidden.sum(1)) == {1}
    assert_fits(hidden.sum(0), ROWS / 50)


def test_the_lengths_of_spans_are_geometric_and_at_most_ten():
    """What a larger budget adds tells the order of columns: those of the first span, then the start of the second.

    Counted are rows whose first span does not meet the row's end, nor whose second starts close to it: by w0, which
    has no part in the length.
    """
    columns, longest = 100, 10
    first, second = seed_words(ROWS, columns).argsort(1)[:, :2].T
    clear = (first < columns - longest) & (abs(first - second) > longest)
    assert clear.sum() > ROWS / 2
    lengths, goes_on = np.zeros(ROWS, int), np.ones(ROWS, bool)
    for budget in range(1, longest + 2):
        masker = SpanMasker(make_vocabulary(columns), mlm_probability=(budget + 0.5) / columns)
        hidden, _ = mask_by(masker, list(range(2, 2 + columns)))
        goes_on &= hidden[np.arange(ROWS), np.minimum(first + budget - 1, columns - 1)]
        lengths += goes_on
    counts = np.bincount(lengths[clear], minlength=longest + 2)
    assert counts[0] == counts[longest + 1] == 0
    shares = 0.8 ** np.arange(longest)
    assert_fits(counts[1:-1], clear.sum() * shares / shares.sum())


def runs_of(genes, lengths):
    """Genes 2 and on, in runs of such lengths, with a gene between two runs; return the row, its table, the starts."""
    starts = np.cumsum([0, *(length + 1 for length in lengths)])
    row = np.arange(2, 2 + starts[-1])
    linked = np.ones(row.size, bool)
    for start, length in zip(starts, lengths, strict=False):
        linked[start + length - 1 : start + length + 1] = False
    first = row[linked]
    indptr = np.searchsorted(first, np.arange(genes.size + 1))
    table = PMITable(indptr, first + 1, np.full(first.size, 0.5), np.full(first.size, 60), genes)
    return row.tolist(), table, starts[:-1]


def test_the_first_of_the_runs_is_any_of_them(genes):
    """One masked column a row: where the first run starts, and a run is not likelier for its length."""
    row, table, starts = runs_of(genes, [2, 9, 3, 2, 8, 2, 5, 4, 2, 7])
    hidden, _ = mask_by(PMIMasker(table, mlm_probability=1.5 / len(row)), row)
    counts = hidden.sum(0)
    assert counts[starts].sum() == ROWS
    assert_fits(counts[starts], ROWS / starts.size)


@pytest.mark.parametrize("length", [2, 4])
def test_the_runs_of_a_row_are_a_uniform_subset(genes, length):
    """Two whole runs are masked: any two."""
    row, table, starts = runs_of(genes, [length] * 10)
    hidden, _ = mask_by(PMIMasker(table, mlm_probability=(2 * length + 0.5) / len(row)), row)
    chosen = hidden[:, starts].astype(int)
    for k in range(1, length):
        assert np.array_equal(hidden[:, starts + k], chosen)
    assert set(chosen.sum(1)) == {2}
    together = (chosen.T @ chosen)[np.triu_indices(starts.size, 1)]
    assert_fits(together, ROWS / together.size)


# ---------------------------------------------------------------------------------------------------------- modules


def test_balanced_masks_every_gene_equally_often():
    """Within five sigma of the binomial in every column; CorrMask masks the hub far more often."""
    genes = make_vocabulary(300)
    graph = make_graph(genes, degree=6, seed=2)
    row = [2, *range(4, 4 + 150), 280, 290, 30, 31]  # the hub, genes without neighbours, genes twice
    budget = int(len(row) * 0.15)
    error = math.sqrt(ROWS * budget / len(row) * (1 - budget / len(row)))
    hidden, _ = mask_by(BalancedCorrMasker(graph), row)
    assert (hidden.sum(1) == budget).all()
    off = (hidden.sum(0) - ROWS * budget / len(row)) / error
    assert np.abs(off).max() < SIGMAS
    assert 0.7 < off.std() < 1.3
    unequal, _ = mask(graph, row, structural_ratio=1.0)
    assert unequal[:, 0].mean() > 2 * budget / len(row)


@pytest.mark.parametrize("p", [0.08, 0.5, 0.97])
def test_the_arc_begins_anywhere(genes, p):
    """Twenty columns, six pairs and eight alone: each is masked as often, and an end of the arc alone parts a pair."""
    row = list(range(2, 22))
    masker = BalancedCorrMasker(pairs_of(genes, 12), mlm_probability=p)
    hidden, _ = mask_by(masker, row)
    budget = int(hidden.sum(1)[0])
    assert (hidden.sum(1) == budget).all()
    error = math.sqrt(ROWS * budget / 20 * (1 - budget / 20))
    assert np.abs(hidden.sum(0) - ROWS * budget / 20).max() < SIGMAS * error
    parted = (hidden[:, 0:12:2] != hidden[:, 1:12:2]).sum(0)
    assert np.abs(parted - ROWS * 2 / 20).max() < SIGMAS * math.sqrt(ROWS * 0.1 * 0.9)


# ------------------------------------------------------------------------------------------------------------- sets


def test_any_set_is_the_first_alike(genes):
    """Of seven pairs one is masked: each as often, whatever its number, among sets that are not in the row."""
    sets = {f"absent {i}": [16 + i % 40, 61] for i in range(90)} | {
        f"pair {i}": [2 + 2 * i, 3 + 2 * i] for i in range(7)
    }
    names = sorted(sets, key=lambda name: name[-1])
    masker = GeneSetMasker(genes, {name: sets[name] for name in names}, mlm_probability=0.15)
    hidden, _ = mask_by(masker, list(range(2, 16)))
    assert (hidden.sum(1) == 2).all()
    assert np.array_equal(hidden[:, ::2], hidden[:, 1::2])
    assert_fits(hidden[:, ::2].sum(0), np.full(7, ROWS / 7))


# ------------------------------------------------------------------------------------------------------ replacement


def test_replacement_is_80_10_10_and_random_genes_are_uniform():
    genes = make_vocabulary(60, v2=True)
    row = list(range(4, 54))
    hidden, masked = mask(make_graph(genes), row, rows=40_000, mlm_probability=0.5)
    before, after = np.array(row)[np.nonzero(hidden)[1]], masked.input_ids.numpy()[hidden]
    assert before.size == 25 * 40_000
    lo, hi = genes.gene_range
    to_mask = after == genes.mask_token_id
    assert set(after[~to_mask]) == set(range(lo, hi))  # never a special token, always every gene
    # A random gene may be the one that was there: 1 of 60.
    other = ~to_mask & (after != before)
    same = ~to_mask & (after == before)
    shares = np.array([0.8, 0.1 * 59 / 60, 0.1 + 0.1 / 60])
    assert_fits([to_mask.sum(), other.sum(), same.sum()], before.size * shares)
    # The random genes, those that were there aside: every gene is one in 60 of all draws but at its own column.
    drawn = np.bincount(after[other], minlength=hi)[lo:]
    at_home = np.bincount(before, minlength=hi)[lo:]
    expected = 0.1 / 60 * (before.size - at_home)
    assert_fits(drawn, expected * drawn.sum() / expected.sum())


@pytest.mark.parametrize(("to_mask", "to_random"), [(1.0, 0.0), (0.0, 1.0), (0.0, 0.0), (0.3, 0.6)])
def test_other_shares(to_mask, to_random):
    genes = make_vocabulary(60)
    row = list(range(2, 62))
    hidden, masked = mask(
        make_graph(genes),
        row,
        rows=10_000,
        mlm_probability=0.5,
        mask_replace_prob=to_mask,
        random_replace_prob=to_random,
    )
    before, after = np.array(row)[np.nonzero(hidden)[1]], masked.input_ids.numpy()[hidden]
    counts = [(after == 1).sum(), ((after != 1) & (after != before)).sum(), (after == before).sum()]
    shares = np.array([to_mask, to_random * 59 / 60, 1 - to_mask - to_random * 59 / 60])
    possible = shares > 0
    assert not np.array(counts)[~possible].any()
    if possible.sum() > 1:
        assert_fits(np.array(counts)[possible], before.size * shares[possible])


def test_what_replaces_a_token_does_not_depend_on_why_it_is_masked(genes):
    row = list(range(2, 52))
    hidden, masked = mask(pairs_of(genes, 20), row, rows=40_000, mlm_probability=0.3, structural_ratio=0.9)
    became_mask = (masked.input_ids.numpy() == 1) & hidden
    counts = hidden.sum(0)
    assert counts[:20].min() > 2 * counts[20:].max()  # seeds and partners are masked far more often …
    spread = (became_mask.sum(0) - 0.8 * counts) / np.sqrt(0.8 * 0.2 * counts)
    assert np.abs(spread).max() < SIGMAS  # … and are replaced alike


# ------------------------------------------------------------------------------------------------------------- rate


@pytest.fixture(scope="module")
def short_cases():
    return cases()


@pytest.mark.parametrize("ratio", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("p", [0.15, 0.29, 0.5, 0.85])
def test_every_row_has_exactly_its_budget(short_cases, p, ratio):
    for case in short_cases:
        if not case.known or not case.rows or case.attention_mask is not None or case.special_tokens_mask is not None:
            continue
        masker = CorrMasker(case.graph, mlm_probability=p, structural_ratio=ratio)
        batch = torch.from_numpy(case.input_ids)
        maskable = torch.from_numpy(~np.isin(case.input_ids, case.graph.vocabulary.special_token_ids))
        for _ in range(20):
            masked = masker(batch)
            budget = [math.floor(n * p) for n in maskable.sum(1).tolist()]
            assert (masked.labels != -100).sum(1).tolist() == budget, case.name
            assert (masked.masked_positions >= 0).sum(1).tolist() == budget, case.name
            assert not (masked.labels != -100)[~maskable].any(), case.name
            untouched = masked.labels == -100
            assert torch.equal(masked.input_ids[untouched], batch[untouched]), case.name
