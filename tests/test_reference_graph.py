"""Algorithm 1 worked by hand: the oracle, and every way of the fast path beside it."""

from __future__ import annotations

import math

from graph_cases import LOOSE, A, B, C, D, E, build, check, corpus_of


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
