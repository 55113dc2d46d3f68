"""Algorithm 1: the fast path equals the plain-Python oracle to the bit, however the work is cut; what is refused."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from graph_cases import (
    CUTS,
    LETTERS,
    LOOSE,
    ODD_CELLS,
    A,
    B,
    C,
    D,
    E,
    assert_equals_reference,
    build,
    cells_of,
    check,
    corpus_of,
    stages_of,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from corrmask_fast import Corpus, InputError, build_dependency_graph, reference, set_num_threads
from corrmask_fast.cells.segments import Segment
from corrmask_fast.graph.build import building
from corrmask_fast.graph.build.products import DENSE, PANEL, SCATTER, Operands, StrongestPartners, plan_product, select
from corrmask_fast.graph.build.records import GeneColumns
from corrmask_fast.graph.build.stages_cpu import CpuStages

METHODS = dict(zip(CUTS.values(), ({SCATTER}, {PANEL}, {DENSE}, {SCATTER, PANEL, DENSE}), strict=True))


@pytest.fixture(autouse=True)
def _restore_threads():
    yield
    set_num_threads(None)


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


@pytest.mark.parametrize("cells", ODD_CELLS)
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
        strongest.offer(select(plan, task, sums, ranks, columns.n_cells, strongest.threshold))
    whole = CpuStages().strongest_pairs(columns, ranks, 5, 0.1)
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


def stored_segment(corpus, rows):
    indptr, tokens = corpus.gather(np.array(rows))
    rows = np.split(tokens, indptr[1:-1])
    pad, mask = corpus.vocabulary.pad_token_id, corpus.vocabulary.mask_token_id
    return Segment(indptr + 2 * np.arange(indptr.size), np.concatenate([[mask, *row, pad] for row in rows]))


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
    monkeypatch.setattr(building, "MAX_CELLS", 99)
    with pytest.raises(InputError, match=r"built from at most 99 cells; got 100; lower n_cells"):
        build_dependency_graph(make_corpus(100, 5), progress=False, min_cooccurrence=1)


def test_bad_cells_are_named():
    stored = Corpus.from_segments([Segment(np.array([0, 2, 4]), np.array([A, B, C, 7]))], LETTERS)
    with pytest.raises(InputError, match="cell 1 holds token 7, outside"):
        build_dependency_graph(stored, progress=False, **LOOSE)


def test_of_a_gene_twice_in_a_cell_the_first_occurrence_counts():
    """In memory and over mapped buffers; the warning has the number of the whole corpus."""
    cells = [[A, B, A, C], [B, A, C, C, B], [C, A, B], [B, C, B]] * 3
    right = build_dependency_graph(corpus_of([list(dict.fromkeys(cell)) for cell in cells]), progress=False, **LOOSE)
    offsets = np.cumsum([0, *map(len, cells)])
    stored = Corpus.from_segments([Segment(offsets, np.array([g for cell in cells for g in cell]))], LETTERS)
    with pytest.warns(UserWarning, match=r"12 genes stood twice in a cell, as gene A \(token 2\) in cell 0"):
        graph = build_dependency_graph(stored, progress=False, **LOOSE)
    assert np.array_equal(graph.indices, right.indices)
    assert np.array_equal(graph.rho, right.rho)


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
