"""Algorithm 1: the fast path equals the plain-Python oracle to the bit, SciPy agrees, the oracle is worked by hand."""

from __future__ import annotations

import itertools
import math
import warnings
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llvmlite.binding import llvm_version_info
from scipy.stats import spearmanr

from corrmask_fast import (
    Corpus,
    InputError,
    Vocabulary,
    build_dependency_graph,
    graph_building,
    graph_memory,
    graph_stages,
    reference,
    set_num_threads,
)
from corrmask_fast.corpus import Segment
from corrmask_fast.graph_products import (
    DENSE,
    PANEL,
    SCATTER,
    Cut,
    Operands,
    Rates,
    StrongestPartners,
    plan_product,
    select,
)
from corrmask_fast.graph_stages import GeneColumns, Pairs
from corrmask_fast.kernels import overlap as overlap_kernel
from corrmask_fast.progress import progress_bar

A, B, C, D, E = range(2, 7)
LETTERS = Vocabulary(("<pad>", "<mask>", *"ABCDE"))
LOOSE = {"rho_min": 0.0, "min_cooccurrence": 0, "min_presence": 1}
QUIET = partial(progress_bar, shown=False)
# Tiny, odd ways to cut the work: by each method alone, and by what the costs say.
CUTS = {
    "scatter": Cut(tile_genes=5, rates=Rates(scatter=math.inf)),
    "panels": Cut(tile_genes=150, chunk_cells=7, passes=0.5, rates=Rates(panel=math.inf)),
    "dense": Cut(tile_genes=7, rates=Rates(dense=math.inf)),
    "mixed": Cut(tile_genes=3, chunk_cells=3, passes=2.0, rates=Rates(scatter=1.0, panel=3.0, dense=6.0)),
}
METHODS = dict(zip(CUTS.values(), ({SCATTER}, {PANEL}, {DENSE}, {SCATTER, PANEL, DENSE}), strict=True))


@pytest.fixture(autouse=True)
def _restore_threads():
    yield
    set_num_threads(None)


def corpus_of(cells, vocabulary=LETTERS, **kwargs):
    indptr = np.cumsum([0, *map(len, cells)])
    return Corpus(indptr, np.array([gene for cell in cells for gene in cell], np.int64), vocabulary, **kwargs)


def cells_of(corpus):
    return [corpus.tokens[a:b].tolist() for a, b in itertools.pairwise(corpus.indptr)]


def build(corpus, *, cut=None, chunk_cells=None, **parameters):
    """The graph, built in pieces of the given sizes; an empty one does not warn here."""
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        if cut is not None:
            patch.setattr(graph_stages, "Cut", lambda: cut)
        if chunk_cells is not None:
            read = graph_stages.read_sample
            patch.setattr(graph_stages, "read_sample", lambda *args: read(*args, chunk_cells=chunk_cells))
        return build_dependency_graph(corpus, progress=False, **parameters)


def assert_equals_reference(graph, expected):
    rows = {
        gene: slice(graph.indptr[gene], graph.indptr[gene + 1])
        for gene in range(graph.vocabulary.size)
        if graph.degrees[gene]
    }
    assert {gene: graph.indices[row].tolist() for gene, row in rows.items()} == {
        gene: list(partners) for gene, partners in expected.items()
    }
    for column, values in enumerate((graph.rho, graph.rho_global)):
        stored = [pair[column] for partners in expected.values() for pair in partners.values()]
        np.testing.assert_array_equal(values, np.array(stored, np.float32), strict=True)


def check(corpus, *, chunk_cells=None, **parameters):
    """Build with every cut and hold each graph to the oracle; return the oracle's."""
    expected = reference.build_dependency_graph(cells_of(corpus), **parameters)
    for cut in (None, *CUTS.values()):
        assert_equals_reference(build(corpus, cut=cut, chunk_cells=chunk_cells, **parameters), expected)
    return expected


# -------------------------------------------------------------------------------------------------- the oracle, by hand


def test_oracle_by_hand():
    # With max_length 4, X of A is 3 3 2 0, of B 2 2 3 0, of C 0 1 1 3; D stands in one cell only.
    cells = [[A, B], [A, B, C], [B, A, C], [C, D]]
    parameters = {"max_length": 4, "min_presence": 2, "rho_min": 0.0, "min_cooccurrence": 0}
    # Doubled, centred ranks over all: A 2 2 -1 -3, B 0 0 3 -3, C -3 0 0 3, each with 18 as sum of squares.
    ab, ac, bc = 6 / 18, -15 / 18, -9 / 18
    # Over their overlaps: A 1 1 -2 against B -1 -1 2; C is constant (1 1) against either.
    expected = {A: {B: (-1.0, ab), C: (0.0, ac)}, B: {A: (-1.0, ab), C: (0.0, bc)}, C: {A: (0.0, ac), B: (0.0, bc)}}
    assert check(corpus_of(cells), **parameters) == expected


def test_candidates_are_chosen_before_they_are_dropped():
    # A's strongest partner is B (rho -1), but they never meet; D, its second, meets it and could have been an edge.
    cells = [[A, D, E], [A, D, E], [A], [B], [B], [B, D, E]]
    parameters = {"rho_min": 0.0, "min_cooccurrence": 1, "min_presence": 1}
    assert set(check(corpus_of(cells), n_neighbors=1, **parameters)) == {D, E}
    both = check(corpus_of(cells), n_neighbors=2, **parameters)
    assert D in both[A]
    assert B not in both[A]


def test_thresholds_include_their_value():
    cells = [[A, B], [A, B, C], [B, A, C], [C, D]]
    parameters = {"max_length": 4, "min_presence": 2, "n_neighbors": 5}
    assert B in check(corpus_of(cells), rho_min=6 / 18, min_cooccurrence=3, **parameters)[A]
    assert A not in check(corpus_of(cells), rho_min=math.nextafter(6 / 18, 1), min_cooccurrence=3, **parameters)
    assert A not in check(corpus_of(cells), rho_min=6 / 18, min_cooccurrence=4, **parameters)
    assert check(corpus_of(cells), rho_min=1.0, min_cooccurrence=0, **parameters) == {}
    # A gene in 3 of 4 cells is kept at min_presence 3.
    assert A in check(corpus_of(cells), **{**parameters, "min_presence": 3}, rho_min=0.0, min_cooccurrence=0)


def test_equal_candidates_go_to_the_lower_token():
    # B, C and D order the cells alike, so each has the same rho with A, and rho 1 with each other.
    cells = [[A], [A], [A, B, C, D], [B, C, D], [E]]
    parameters = {"rho_min": 0.0, "min_cooccurrence": 0, "min_presence": 2}
    graph = check(corpus_of(cells), n_neighbors=1, **parameters)
    assert {gene: list(partners) for gene, partners in graph.items()} == {A: [B], B: [A, C, D], C: [B], D: [B]}
    assert list(check(corpus_of(cells), n_neighbors=2, **parameters)[A]) == [B, C]


def test_rows_are_symmetric_and_may_exceed_n_neighbors(make_corpus):
    graph = build(make_corpus(150, 40, seed=3), n_neighbors=2, rho_min=0.0, min_cooccurrence=5, min_presence=5)
    assert graph.degrees.max() > 2
    matrix, everywhere = graph.to_scipy(), graph.to_scipy("rho_global")
    assert (matrix != matrix.T).nnz == 0
    assert (everywhere != everywhere.T).nnz == 0


def test_a_gene_in_the_last_place_is_present_with_value_zero():
    # C stands in last places only: constant 0, so without edges, though it counts as present in every cell.
    cells = [[A, B, C], [B, A, C], [D, A, C], [A, D, C], [B, D, C]]
    parameters = {"max_length": 3, "rho_min": 0.0, "min_cooccurrence": 0}
    assert build(corpus_of(cells), min_presence=5, **parameters).params["n_genes_used"] == 1
    assert set(check(corpus_of(cells), min_presence=1, **parameters)) == {A, B, D}
    # A cell in which one gene stands last belongs to their overlap: two cells, levels 1 2 against 2 1.
    pair = check(corpus_of([[A, B], [B, A], [A], [B]]), max_length=2, rho_min=0.0, min_cooccurrence=2, min_presence=1)
    assert pair[A][B] == (-1.0, -1.0)


def test_max_genes_keeps_the_largest_sums_and_the_lower_tokens():
    cells = [[A, B], [B, A], [D, C], [C, D], [A], [B, E]]  # sums of X with max_length 3: 5 5 3 3 1
    for max_genes, kept in ((1, set()), (2, {A, B}), (3, {A, B, C}), (4, {A, B, C, D}), (9, {A, B, C, D, E})):
        assert set(check(corpus_of(cells), max_length=3, max_genes=max_genes, **LOOSE)) == kept
    # Sums, not presence: A stands in two cells but low in both (1), B in one but first (2).
    assert set(check(corpus_of([[B, A], [C, D, A], [C], [C]]), max_length=3, max_genes=2, **LOOSE)) == {B, C}


# ------------------------------------------------------------------------------------ parity, over odd and random cells

SETTINGS = (
    {},
    {"n_neighbors": 1},
    {"n_neighbors": 3, "rho_min": 0.3, "min_cooccurrence": 20, "min_presence": 10},
    {"max_length": 7, "rho_min": 0.1},
    {"max_length": 1},
    {"n_cells": 60, "seed": 5, "min_presence": 3},
    {"n_cells": 60, "seed": 2**64 - 1, "max_genes": 17},
    {"max_length": 65535, "n_neighbors": 10_000, "rho_min": 0.05},
    {"rho_min": 0, "min_cooccurrence": 0, "min_presence": 0, "n_neighbors": 9},
)


@pytest.mark.parametrize("parameters", SETTINGS, ids=lambda p: ",".join(f"{k}={v}" for k, v in p.items()) or "base")
def test_parity(make_corpus, parameters):
    base = {"min_cooccurrence": 5, "min_presence": 5, "max_length": 2048}
    expected = check(make_corpus(110, 24, seed=1), chunk_cells=13, **{**base, **parameters})
    assert expected or parameters.get("max_length") == 1


def test_parity_over_several_panels(make_corpus):
    assert check(make_corpus(90, 150, seed=2), n_neighbors=4, min_cooccurrence=5, min_presence=3)


@pytest.mark.parametrize(
    "cells",
    [
        [[], [], [A, B]],
        [[A]],
        [[A, B, C]] * 4,  # every gene constant
        [[A, B], [B, A]] * 3,
        [[A, B, C, D, E], [E, D, C, B, A]] * 2 + [[C]],
        [[A], [B], [C], [D], [E]],  # no two genes meet
        [[A, B, C, D, E]] * 3 + [[]] * 3,
    ],
)
@pytest.mark.parametrize("max_length", [1, 2, 4, 5, 2048])
def test_parity_on_ties_and_constant_genes(cells, max_length):
    for n_neighbors in (1, 2, 50):
        check(corpus_of(cells), max_length=max_length, n_neighbors=n_neighbors, **LOOSE)


@st.composite
def tied_cells(draw):
    kinds = draw(st.lists(st.permutations([A, B, C, D, E]).flatmap(
        lambda genes: st.integers(0, 5).map(lambda length: list(genes[:length]))), min_size=1, max_size=5))  # fmt: skip
    return draw(st.lists(st.sampled_from(kinds), min_size=1, max_size=14))


@settings(max_examples=150, deadline=None)
@given(
    cells=tied_cells(),
    parameters=st.fixed_dictionaries(
        {
            "n_cells": st.integers(1, 15),
            "max_length": st.integers(1, 6),
            "n_neighbors": st.integers(1, 5),
            "rho_min": st.sampled_from([0.0, 0.2, 0.5, 1 / 3, 1.0]),
            "seed": st.integers(0, 2**64 - 1),
            "max_genes": st.none() | st.integers(1, 5),
        }
    ),
    data=st.data(),
)
def test_parity_on_made_up_cells(cells, parameters, data):
    n = min(len(cells), parameters["n_cells"])
    bounds = {name: data.draw(st.integers(0, n), name) for name in ("min_cooccurrence", "min_presence")}
    check(corpus_of(cells), **parameters, **bounds)


def test_same_file_for_any_number_of_threads(make_corpus, tmp_path):
    corpus = make_corpus(300, 90, seed=4)
    files = []
    for threads, cut in itertools.product((1, 2, 5), (None, *CUTS.values())):
        set_num_threads(threads)
        graph = build(corpus, cut=cut, chunk_cells=11, min_cooccurrence=10, rho_min=0.05)
        graph.save(tmp_path / "graph.safetensors")
        files.append((tmp_path / "graph.safetensors").read_bytes())
    assert graph.n_edges > 100
    assert len(set(files)) == 1


@pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS)
def test_tasks_add_up_over_chunks_of_cells_in_any_order(make_corpus, cut):
    columns, ranks = stages_of(make_corpus(200, 60, seed=7), 4)
    plan = plan_product(columns.presence, ranks.sum_squares, columns.n_cells, cut)
    assert {task.method for task in plan.tasks} == METHODS[cut]
    seen = [(a, b) for t in plan.tasks for a in t.u for b in t.v if a < b]
    assert len(seen) == len(set(seen)) == plan.n_pairs == sum(task.n_pairs for task in plan.tasks)
    strongest = StrongestPartners(columns.genes.size, 5, 0.1)
    for task in reversed(plan.tasks):
        sums = task.zeros()
        for begin, end in ((120, 200), (0, 1), (1, 120)):
            Operands(plan, *cells_between(columns, ranks.e, begin, end), [task]).add(task, sums)
        strongest.offer(select(plan, task, sums, ranks, columns.n_cells, strongest.reach))
    whole = graph_stages.strongest_pairs(columns, ranks, 5, 0.1, QUIET)
    for found, expected in zip(strongest.pairs(), whole, strict=True):
        np.testing.assert_array_equal(found, expected)


def cells_between(columns, e, begin, end):
    inside = (columns.cells >= begin) & (columns.cells < end)
    indptr = np.concatenate([[0], np.cumsum(inside)])[columns.indptr]
    cells, levels = columns.cells[inside] - np.int32(begin), columns.levels[inside]
    return GeneColumns(columns.genes, end - begin, columns.max_length, indptr, cells, levels), e[inside]


def test_sampling_equals_the_oracle(make_corpus):
    corpus = make_corpus(40, 5)
    for n_cells, seed in ((1, 0), (17, 3), (39, 2**63), (40, 1), (100, 1)):
        assert corpus.sample_rows(n_cells, seed).tolist() == reference.sample_cells(40, n_cells, seed)


def test_only_the_sampled_cells_are_read_in_chunks(make_corpus, monkeypatch):
    corpus = make_corpus(60, 12, seed=6)
    # As it lies on disk: two segments, with special tokens, read on demand.
    segments = [stored_segment(corpus, range(25)), stored_segment(corpus, range(25, 60))]
    stored = Corpus.from_segments(segments, corpus.vocabulary)
    read = []
    gather = Corpus.gather
    monkeypatch.setattr(Corpus, "gather", lambda self, rows, **kw: read.append(rows.size) or gather(self, rows, **kw))
    parameters = {"n_cells": 31, "seed": 9, **LOOSE}
    graph = build(stored, chunk_cells=8, **parameters)
    assert read == [8, 8, 8, 7]
    assert not stored.in_memory
    assert_equals_reference(graph, reference.build_dependency_graph(cells_of(corpus), **parameters))


def test_columns_of_many_cells(make_corpus):
    """More cells in one call than are sorted by gene at a time."""
    corpus = make_corpus(4500, 12, seed=4)
    columns, _ = stages_of(corpus, 1, 20)
    X, present = dense_values(columns)
    for cell, genes in enumerate(cells_of(corpus)):
        places = {gene: 20 - place for place, gene in enumerate(genes[:20])}
        assert {columns.genes[g]: X[cell, g] + 1 for g in np.flatnonzero(present[cell])} == places


def stored_segment(corpus, rows):
    indptr, tokens = corpus.gather(np.array(rows))
    rows = np.split(tokens, indptr[1:-1])
    pad, mask = corpus.vocabulary.pad_token_id, corpus.vocabulary.mask_token_id
    return Segment(indptr + 2 * np.arange(indptr.size), np.concatenate([[mask, *row, pad] for row in rows]))


# -------------------------------------------------------------------------------------------------------- SciPy, limits


def stages_of(corpus, min_presence, max_length=2048):
    sample = graph_stages.read_sample(corpus, np.arange(corpus.n_cells), max_length, QUIET)
    genes = np.flatnonzero(sample.presence.sum(axis=0) >= min_presence)
    columns = graph_stages.make_columns(sample, genes, max_length)
    return columns, graph_stages.rank_genes(columns)


def dense_values(columns):
    X = np.zeros((columns.n_cells, columns.genes.size), np.int64)
    present = np.zeros(X.shape, np.bool_)
    column = np.repeat(np.arange(columns.genes.size), columns.presence)
    X[columns.cells, column] = columns.levels.astype(np.int64) - 1
    present[columns.cells, column] = True
    return X, present


def assert_agrees_with_scipy(columns, ranks, *, at_most):
    X, present = dense_values(columns)
    pairs = graph_stages.strongest_pairs(columns, ranks, 10**6, 0.0, QUIET)
    everywhere = spearmanr(X).statistic
    np.testing.assert_allclose(pairs.rho, everywhere[pairs.u, pairs.v], rtol=0, atol=1e-12)
    overlap, rho = graph_stages.correlate_pairs(columns, pairs, 2, QUIET)
    compared = 0
    for k in range(0, pairs.u.size, max(1, pairs.u.size // at_most)):
        both = present[:, pairs.u[k]] & present[:, pairs.v[k]]
        x, y = X[both, pairs.u[k]], X[both, pairs.v[k]]
        assert overlap[k] == both.sum()
        if len(set(x)) > 1 and len(set(y)) > 1:
            assert abs(rho[k] - spearmanr(x, y).statistic) <= 1e-12
            compared += 1
        else:
            assert rho[k] == 0
    assert compared > at_most / 2


@pytest.mark.parametrize("max_length", [2048, 60, 9])
def test_scipy_agrees_before_rounding(make_corpus, max_length):
    assert_agrees_with_scipy(*stages_of(make_corpus(700, 70, seed=8), 20, max_length), at_most=150)


@pytest.mark.parametrize("n_cells", [131_072, graph_memory.MOST_CELLS_OF_64_BITS])
def test_sums_are_exact_at_the_limits(n_cells):
    """Columns whose sums come as close to the limit as they can: no ties to speak of, every cell full."""
    rng = np.random.default_rng(0)
    G = 3
    levels = rng.integers(2, 65_536, (G, n_cells)).astype(np.uint16)
    levels[1] = np.maximum(2, 65_537 - levels[0].astype(np.int64))  # as far from the first as can be
    indptr = np.arange(G + 1) * n_cells
    cells = np.tile(np.arange(n_cells, dtype=np.int32), G)
    columns = GeneColumns(np.arange(2, 2 + G), n_cells, 65_535, indptr, cells, levels.reshape(-1))
    ranks = graph_stages.rank_genes(columns)
    below = [np.concatenate([[0], np.cumsum(np.bincount(row, minlength=65_536))]) for row in levels]
    d = [below[g][levels[g]] + below[g][levels[g].astype(np.int64) + 1] - n_cells for g in range(G)]

    def dot(x, y):
        return sum(int((x[k : k + 100_000] * y[k : k + 100_000]).sum()) for k in range(0, n_cells, 100_000))

    assert ranks.sum_squares.tolist() == [float(dot(x, x)) for x in d]
    assert dot(d[0], d[0]) > n_cells**3 / 3 * 0.999
    exact = [
        float(dot(d[u], d[v])) / math.sqrt(float(dot(d[u], d[u])) * float(dot(d[v], d[v])))
        for u, v in ((0, 1), (0, 2), (1, 2))
    ]
    for rates in (Rates(scatter=math.inf), Rates(panel=math.inf), Rates(dense=math.inf)):
        pairs = graph_stages.strongest_pairs(columns, ranks, 5, 0.0, QUIET, cut=Cut(rates=rates))
        assert pairs.rho.tolist() == exact
    overlap, rho = graph_stages.correlate_pairs(columns, pairs, 1, QUIET)
    assert overlap.tolist() == [n_cells] * 3
    assert rho.tolist() == exact  # every cell holds both
    assert exact[0] < -0.99


def exact_rho_of(x, y):
    """Integers by the definition, with the oracle's last three roundings."""

    def d(values):
        below = np.searchsorted(np.sort(values), values, side="left")
        return below + np.searchsorted(np.sort(values), values, side="right") - values.size

    a, b = d(x).astype(np.int64), d(y).astype(np.int64)
    squares = float((a * a).sum()) * float((b * b).sum())
    return float((a * b).sum()) / math.sqrt(squares) if squares else 0.0


@pytest.mark.parametrize("overlap", [0, 1, 2, 15, 16, 17, 200, 4_000, 32_766, 32_767, 32_768, 40_000])
def test_overlaps_of_every_size(overlap):
    """Tables of 16 bits up to 32 767 cells; few levels, all levels, the largest rank, partners that lack cells."""
    rng = np.random.default_rng(overlap)
    n_cells, max_length = overlap + 37, 2048
    holders = [rng.permutation(n_cells)[:overlap]] * 2
    levels = [rng.integers(1, max_length + 1, overlap), rng.integers(1, max_length + 1, overlap) // 300 + 1]
    levels.append(np.where(np.arange(overlap) < overlap - 1, 1, max_length))  # all but one are tied
    holders.append(holders[0])
    everywhere = np.arange(n_cells)
    holders.append(everywhere)  # the commonest: the others are found in it
    levels.append(rng.integers(1, max_length + 1, n_cells))
    for share, most in ((1.0, n_cells), (0.8, n_cells), (0.8, 40)):  # whole columns, a part of their cells, a few
        parts = [np.flatnonzero(np.isin(everywhere, rows) & (rng.random(n_cells) < share))[:most] for rows in holders]
        of = [dict(zip(rows.tolist(), row.tolist(), strict=True)) for rows, row in zip(holders, levels, strict=True)]
        indptr = np.cumsum([0, *(rows.size for rows in parts)])
        flat = np.array([of[g][cell] for g, rows in enumerate(parts) for cell in rows.tolist()], np.uint16)
        columns = GeneColumns(
            np.arange(2, 6), n_cells, max_length, indptr, np.concatenate(parts).astype(np.int32), flat
        )
        u, v = np.triu_indices(4, 1)
        got, rho = graph_stages.correlate_pairs(columns, Pairs(u, v, np.zeros(u.size)), 1, QUIET)
        for k in range(u.size):
            both = np.intersect1d(parts[u[k]], parts[v[k]]).tolist()
            assert got[k] == len(both)
            assert rho[k] == exact_rho_of(*(np.array([of[g][cell] for cell in both]) for g in (u[k], v[k])))


@pytest.mark.skipif(llvm_version_info < (20,), reason="this LLVM cannot leave elements out of a vector")
@pytest.mark.parametrize("size", [0, 1, 15, 16, 17, 31, 64, 1_000])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_overlaps_in_vectors_are_those_found_one_by_one(size, share):
    rng = np.random.default_rng(size)
    n_cells = 3 * size + 1
    dense = np.append(np.where(rng.random(n_cells) < share, rng.integers(1, 65_536, n_cells), 0), 7).astype(np.uint16)
    cells = np.sort(rng.permutation(n_cells)[:size]).astype(np.int32)
    if size:
        cells[-1] = n_cells - 1  # the vector that reads beyond the last cell
    levels = rng.integers(1, 65_536, size).astype(np.uint16)
    found = []
    for find in (overlap_kernel.find_in_vectors, overlap_kernel.find_one_by_one):
        both = np.full(size + 16, 99, np.uint32)
        n = find(dense, cells, levels, 0, size, both, 0, size)
        found.append(both[:n].tolist())
    there = dense[cells] != 0
    expected = (dense[cells][there].astype(np.int64) << 16 | levels[there]).tolist()
    assert found == [expected, expected]


def test_the_limit_is_the_limit_of_int64():
    most = graph_memory.MOST_CELLS_OF_64_BITS
    assert 4 * most**3 // 3 < 2**63 <= 4 * (most + 1000) ** 3 // 3


# ------------------------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"n_cells": 0}, r"n_cells must be an integer >= 1; got 0"),
        ({"n_cells": 10.5}, r"n_cells must be an integer >= 1; got 10.5"),
        ({"max_length": 0}, r"max_length must be an integer in \[1, 65535\]; got 0"),
        ({"max_length": 65536}, r"max_length must be an integer in \[1, 65535\]; got 65536"),
        ({"n_neighbors": 0}, r"n_neighbors must be an integer >= 1; got 0"),
        ({"rho_min": -0.1}, r"rho_min must be a number in \[0, 1\]; got -0.1"),
        ({"rho_min": 1.01}, r"rho_min must be a number in \[0, 1\]; got 1.01"),
        ({"rho_min": math.nan}, r"rho_min must be a number in \[0, 1\]; got nan"),
        ({"rho_min": "high"}, r"rho_min must be a number in \[0, 1\]; got 'high'"),
        ({"min_cooccurrence": -1}, r"min_cooccurrence must be an integer >= 0; got -1"),
        ({"min_presence": -1}, r"min_presence must be an integer >= 0; got -1"),
        ({"max_genes": 0}, r"max_genes must be an integer >= 1; got 0"),
        ({"seed": -1}, r"seed must be an integer in \[0, \d+\]; got -1"),
        ({"seed": 2**64}, r"seed must be an integer in"),
        ({"device": "gpu"}, r"device must be 'auto', 'cpu' or 'cuda'; got 'gpu'"),
        ({}, r"min_cooccurrence must be at most the number of cells .* here 100; got 200; lower it, or bring more"),
        ({"n_cells": 60, "min_cooccurrence": 61}, r"min_cooccurrence must be at most .* here 60; got 61"),
        ({"min_cooccurrence": 1, "min_presence": 101}, r"min_presence must be at most .* here 100; got 101"),
    ],
)
def test_parameters_out_of_range(make_corpus, parameters, message):
    with pytest.raises(InputError, match=message):
        build_dependency_graph(make_corpus(100, 5), progress=False, **parameters)


def test_an_empty_corpus():
    with pytest.raises(InputError, match=r"the corpus has no cells, and a graph needs some; check the file"):
        build_dependency_graph(corpus_of([]), progress=False)


def test_more_cells_than_ranks_hold(make_corpus, monkeypatch):
    monkeypatch.setattr(graph_building, "MOST_CELLS", 99)
    with pytest.raises(InputError, match=r"built from at most 99 cells; got 100; lower n_cells"):
        build_dependency_graph(make_corpus(100, 5), progress=False, min_cooccurrence=1)


def test_bad_cells_are_named():
    for last, message in ([C, C], r"cell 1 holds gene C \(token 4\) twice"), ([C, 7], r"cell 1 holds token 7, outside"):
        stored = Corpus.from_segments([Segment(np.array([0, 2, 4]), np.array([A, B, *last]))], LETTERS)
        with pytest.raises(InputError, match=message):
            build_dependency_graph(stored, progress=False, **LOOSE)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        (
            {"min_presence": 4},
            r"no edges: only 1 gene present in at least min_presence=4 of 5 cells; lower min_presence",
        ),
        ({"min_presence": 5}, r"no edges: only 0 genes present in at least min_presence=5 of 5 cells"),
        ({"min_presence": 1, "max_genes": 1}, r"only 1 gene present in .* within max_genes=1"),
        ({"min_presence": 1, "rho_min": 1.0}, r"no pair of its 4 genes has an absolute rho of at least rho_min=1.0"),
        (
            {"min_presence": 1, "rho_min": 0.0, "min_cooccurrence": 4},
            r"of 6 correlated pairs none stands together in at least min_cooccurrence=4 of 5 cells \(at most 2\)",
        ),
    ],
)
def test_a_graph_without_edges_says_why(parameters, message):
    corpus = corpus_of([[A, B], [B, A], [C, D], [A, C], [A]])
    with pytest.warns(UserWarning, match=message):
        graph = build_dependency_graph(corpus, progress=False, **{"min_cooccurrence": 1, **parameters})
    assert graph.n_edges == 0


def test_progress_goes_to_standard_error(make_corpus, capsys):
    corpus = make_corpus(100, 20)
    build_dependency_graph(corpus, min_cooccurrence=1, progress=False)
    assert capsys.readouterr() == ("", "")
    build_dependency_graph(corpus, min_cooccurrence=1)
    out, err = capsys.readouterr()
    assert out == ""
    for what in ("reading cells", "correlating genes", "comparing overlaps"):
        assert f"{what}: 100%" in err


def test_defaults(make_corpus):
    """A graph cuts at 2048 whatever the corpus holds; None takes the corpus's own cut; parameters are kept."""
    corpus = make_corpus(100, 20, max_length=8)
    parameters = {"min_cooccurrence": 5, "min_presence": 5}
    cells = cells_of(corpus)
    graph = build(corpus, **parameters)
    assert_equals_reference(graph, reference.build_dependency_graph(cells, max_length=2048, **parameters))
    graph = build(corpus, max_length=None, **parameters)
    assert_equals_reference(graph, reference.build_dependency_graph(cells, max_length=8, **parameters))
    assert graph.params == {
        "n_cells": 100_000,
        "max_length": 8,
        "n_neighbors": 50,
        "rho_min": 0.2,
        "min_cooccurrence": 5,
        "min_presence": 5,
        "max_genes": None,
        "seed": 0,
        "n_cells_used": 100,
        "n_genes_used": int((np.bincount(corpus.tokens) >= 5).sum()),
    }


# ----------------------------------------------------------------------------------------------------------- real cells


@pytest.fixture(scope="module")
def pbmc(data_folder, tmp_path_factory):
    from corrmask_fast import read_corpus, tokenize_h5ad

    folder = data_folder / "geneformer"
    vocabulary = Vocabulary.from_token_dictionary(folder / "token_dictionary.json", folder / "gene_name_id_dict.json")
    path = tmp_path_factory.mktemp("pbmc") / "pbmc.dataset"
    medians = folder / "gene_median_dictionary.json"
    tokenize_h5ad(data_folder / "pbmc3k.h5ad", path, vocabulary, medians, progress=False)
    return read_corpus(path, vocabulary)


def test_ribosomal_genes_are_each_others_partners(pbmc):
    graph = build(pbmc)
    vocabulary = graph.vocabulary
    ribosomal = np.array([vocabulary.name_of(t).startswith(("RPL", "RPS")) for t in range(vocabulary.size)])
    rows = np.repeat(np.arange(vocabulary.size), graph.degrees)
    share = ribosomal[graph.indices[ribosomal[rows]]].mean()
    chance = graph.degrees[ribosomal].sum() / graph.degrees.sum()
    assert share >= 0.5
    assert share > 1.5 * chance
    ids, rho = graph.neighbors("RPL3")
    assert ribosomal[ids[:10]].all()
    assert (rho[:10] > 0.5).all()


def test_parity_on_real_cells(pbmc):
    cells = pbmc.take(np.arange(0, pbmc.n_cells, 6))
    assert check(cells, max_genes=60, min_cooccurrence=50, n_neighbors=10)


def test_scipy_agrees_on_real_cells(pbmc):
    assert_agrees_with_scipy(*stages_of(pbmc.take(np.arange(0, pbmc.n_cells, 3)), 450), at_most=200)
