"""Graphs of groups of cells: each is the one that its cells alone give, and each has a file that can be found."""

from __future__ import annotations

import csv
import warnings

import numpy as np
import pytest

from corrmask_fast import Corpus, DependencyGraph, InputError, build_dependency_graph, build_graphs_by
from corrmask_fast.graph import groups as graph_groups
from corrmask_fast.graph.groups import iter_graphs_by, rows_by_group, save_graphs

LOOSE = {"rho_min": 0.05, "min_cooccurrence": 8, "min_presence": 4, "progress": False}


@pytest.fixture(scope="module")
def cells(make_corpus):
    """400 cells of 40 genes: 250 of the lung, 120 of the skin, 5 of the eye, 25 of nothing known."""
    corpus = make_corpus(400, 40, seed=2)
    tissue = np.array(
        ["lung"] * 250 + ["skin"] * 120 + ["eye"] * 5 + [None] * 15 + [""] * 5 + [float("nan")] * 5, object
    )
    tissue = np.random.default_rng(0).permutation(tissue)
    return Corpus(corpus.indptr, corpus.tokens, corpus.vocabulary, obs={"tissue": tissue, "donor": np.arange(400) % 3})


def same(a, b):
    assert a.params == b.params
    for name in ("indptr", "indices", "rho", "rho_global"):
        assert np.array_equal(getattr(a, name), getattr(b, name)), name


@pytest.mark.parametrize("options", [{}, {"n_cells": 60, "seed": 7, "max_genes": 25, "max_length": 20}])
def test_each_graph_is_that_of_its_cells_alone(cells, options, tmp_path):
    with pytest.warns(UserWarning, match=r"left out of 'tissue': 'eye' \(5\): fewer than the 8 cells that min_cooc"):
        graphs = build_graphs_by(cells, "tissue", **LOOSE, **options)
    assert list(graphs) == ["lung", "skin"]
    for tissue, graph in graphs.items():
        rows = [i for i, value in enumerate(cells.obs["tissue"]) if value == tissue]
        alone = Corpus(*cells.gather(np.array(rows)), cells.vocabulary)
        assert graph.n_edges > 20
        same(graph, build_dependency_graph(alone, **LOOSE, **options))
        graph.save(tmp_path / "a.safetensors")
        build_dependency_graph(alone, **LOOSE, **options).save(tmp_path / "b.safetensors")
        assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_a_corpus_on_disk_gives_the_same_graphs(cells, tmp_path):
    datasets = pytest.importorskip("datasets")
    from corrmask_fast import read_corpus, write_corpus

    write_corpus(cells, tmp_path / "cells.dataset")
    stored = read_corpus(datasets.load_from_disk(str(tmp_path / "cells.dataset")).shuffle(seed=1), cells.vocabulary)
    in_memory = stored.take(np.arange(stored.n_cells))
    expected = build_graphs_by(in_memory, "donor", **LOOSE)
    assert list(expected) == ["0", "1", "2"]
    for donor, graph in build_graphs_by(stored, "donor", **LOOSE).items():
        same(graph, expected[donor])
    assert not stored.in_memory


def test_groups_are_values_as_text(cells):
    groups = rows_by_group(cells, "tissue")
    assert {name: rows.size for name, rows in groups.items()} == {"eye": 5, "lung": 250, "skin": 120}
    for name, rows in groups.items():
        assert np.all(np.diff(rows) > 0)
        assert set(cells.obs["tissue"][rows]) == {name}
    mixed = Corpus(np.zeros(6, np.int64), np.empty(0, np.int64), cells.vocabulary, obs={})
    mixed.obs = {"x": np.array([1, "1", 2.5, True, None], object)}
    assert {name: rows.tolist() for name, rows in rows_by_group(mixed, "x").items()} == {"1": [0, 1, 3], "2.5": [2]}
    mixed.obs = {"x": np.array([2.5, np.nan, 1, 1, np.nan])}
    assert {name: rows.tolist() for name, rows in rows_by_group(mixed, "x").items()} == {"1.0": [2, 3], "2.5": [0]}


def test_what_goes_wrong_names_the_group(cells):
    with pytest.raises(InputError, match=r"no obs column 'organ'; it has 'tissue', 'donor'.*named when tokenising"):
        build_graphs_by(cells, "organ", **LOOSE)
    with pytest.raises(InputError, match=r"no group of obs column 'tissue' has the 300 cells .*largest of 3 has 250"):
        build_graphs_by(cells, "tissue", **{**LOOSE, "min_presence": 300})
    with pytest.raises(InputError, match="min_presence must be an integer >= 0; got -1"):
        build_graphs_by(cells, "tissue", **{**LOOSE, "min_presence": -1})
    with pytest.raises(InputError, match="donor '0': rho_min must be a number in"):
        build_graphs_by(cells, "donor", **{**LOOSE, "rho_min": 2})
    with pytest.warns(UserWarning, match="the graph has no edges") as caught:
        build_graphs_by(cells, "donor", **{**LOOSE, "rho_min": 0.999})
    assert [str(warning.message)[:10] for warning in caught] == ["donor '0':", "donor '1':", "donor '2':"]
    twice = Corpus.from_segments(cells.select(np.arange(400))._segments, cells.vocabulary, obs=dict(cells.obs))
    twice._segments[0] = type(twice._segments[0])(twice._segments[0].offsets, twice._segments[0].tokens.copy())
    twice._index_segments()
    row = int(np.flatnonzero((cells.obs["donor"] == 1) & (np.diff(cells.indptr) > 1))[0])
    begin = cells.indptr[row]
    twice._segments[0].tokens[begin + 1] = twice._segments[0].tokens[begin]
    with pytest.warns(UserWarning, match=rf"donor '1': .*1 gene stood twice in its cell: .* in cell {row};"):
        build_graphs_by(twice, "donor", **LOOSE)


def test_files_have_safe_names_and_a_table(cells, tmp_path, monkeypatch):
    graph = DependencyGraph.from_edges([("G1", "G2", 0.5)], cells.vocabulary)
    groups = ["../up", "B cell/naïve", "b cell*naive", "b_cell_na_ve", "", "λ", "CON" * 60, ".hidden"]
    paths = save_graphs(((group, graph) for group in groups), tmp_path / "out")
    assert list(paths) == groups
    assert len({path.name.lower() for path in paths.values()}) == len(groups)
    for path in paths.values():
        assert path.parent == tmp_path / "out"
        assert len(path.name) < 100
        assert not path.name.startswith(".")
        assert path.name.isascii()
        same(DependencyGraph.load(path), graph)
    with (tmp_path / "out" / "groups.csv").open(newline="", encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    assert [(row["group"], row["file"]) for row in table] == [(group, path.name) for group, path in paths.items()]
    assert {row["edges"] for row in table} == {"1"}
    with pytest.raises(InputError, match="exists already and is no empty folder"):
        save_graphs([], tmp_path / "out")
    with pytest.raises(InputError, match=r"the folder .* does not exist; create it first"):
        save_graphs([], tmp_path / "no" / "out")


def test_a_run_that_stops_keeps_what_it_had(cells, tmp_path, monkeypatch):
    build, calls = graph_groups.build_dependency_graph, []

    def failing(corpus, **parameters):
        calls.append(corpus.n_cells)
        if len(calls) == 2:
            raise InputError("a chunk cannot be read")
        return build(corpus, **parameters)

    monkeypatch.setattr(graph_groups, "build_dependency_graph", failing)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(InputError, match="tissue 'skin': a chunk cannot be read"):
            save_graphs(iter_graphs_by(cells, "tissue", **LOOSE), tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["groups.csv", "lung.safetensors"]
    assert DependencyGraph.load(tmp_path / "out" / "lung.safetensors").params["n_cells_used"] == 250
