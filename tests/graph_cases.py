"""Small corpora, ways to build their graphs, ports of several ranks: what the tests of graph building share."""

from __future__ import annotations

import itertools
import math
import socket
import warnings

import numpy as np
import pytest

from corrmask_fast import Corpus, Vocabulary, build_dependency_graph, reference
from corrmask_fast.graph.build import products
from corrmask_fast.graph.build.products import Cut, Rates
from corrmask_fast.graph.build.records import Cells
from corrmask_fast.graph.build.stages_cpu import CpuStages

A, B, C, D, E = range(2, 7)
LETTERS = Vocabulary(("<pad>", "<mask>", *"ABCDE"))
LOOSE = {"rho_min": 0.0, "min_cooccurrence": 0, "min_presence": 1}
ODD_CELLS = [
    [[], [], [A, B]],
    [[A]],
    [[A, B, C]] * 4,  # every gene constant
    [[A, B], [B, A]] * 3,
    [[A, B, C, D, E], [E, D, C, B, A]] * 2 + [[C]],
    [[A], [B], [C], [D], [E]],  # no two genes meet
    [[A, B, C, D, E]] * 3 + [[]] * 3,  # all as strong as each other
]
# Of a graph whose stages are looked at one by one.
BASE = {"max_length": 30, "min_presence": 3, "n_neighbors": 5, "rho_min": 0.05, "min_cooccurrence": 5}
# Tiny, odd ways to cut the work: by each method alone, and by what the costs say.
CUTS = {
    "scatter": Cut(tile_genes=5, rates=Rates(scatter=math.inf)),
    "panels": Cut(tile_genes=150, chunk_cells=7, passes=0.5, rates=Rates(panel=math.inf)),
    "dense": Cut(tile_genes=7, rates=Rates(dense=math.inf)),
    "mixed": Cut(tile_genes=3, chunk_cells=3, passes=2.0, rates=Rates(scatter=1.0, panel=3.0, dense=6.0)),
}


def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


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
            patch.setattr(products, "Cut", lambda: cut)
        if chunk_cells is not None:
            read = CpuStages.read_sample
            patch.setattr(CpuStages, "read_sample", lambda self, cells: read(self, cells, chunk_cells=chunk_cells))
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


def columns_of(stages, corpus, min_presence, max_length=2048, **how):
    sample = CpuStages().read_sample(Cells(corpus, range(corpus.n_cells), max_length), **how)
    return stages.make_columns(sample, np.flatnonzero(sample.presence.sum(axis=0) >= min_presence))


def stages_of(corpus, min_presence, max_length=2048):
    columns = columns_of(CpuStages(), corpus, min_presence, max_length)
    return columns, CpuStages().rank_genes(columns)


def dense_values(columns):
    X = np.zeros((columns.n_cells, columns.genes.size), np.int64)
    present = np.zeros(X.shape, np.bool_)
    column = np.repeat(np.arange(columns.genes.size), columns.presence)
    X[columns.cells, column] = columns.levels.astype(np.int64) - 1
    present[columns.cells, column] = True
    return X, present


def every_stage(
    stages, corpus, *, max_length, min_presence, n_neighbors, rho_min, min_cooccurrence, cut=None, work=None
):
    """All that the stages of a class hand on, as NumPy arrays."""
    stages = stages(work, cut)
    columns = columns_of(stages, corpus, min_presence, max_length, chunk_cells=13)
    ranks = stages.rank_genes(columns)
    pairs = stages.strongest_pairs(columns, ranks, n_neighbors, rho_min)
    overlaps = stages.correlate_pairs(columns, pairs, min_cooccurrence)
    return {
        "indptr": columns.indptr, "cells": on_host(columns.cells), "levels": on_host(columns.levels, np.uint16),
        "e": on_host(ranks.e, np.uint32), "n_positive": ranks.n_positive, "sum_squares": ranks.sum_squares,
        "u": pairs.u, "v": pairs.v, "rho": pairs.rho, "overlap": overlaps[0], "rho_local": overlaps[1],
    }  # fmt: skip


def on_host(values, bits=None):
    array = values.cpu().numpy() if hasattr(values, "cpu") else values
    return array if bits is None else array.view(bits)


def assert_equal_stages(got, expected):
    for name, values in expected.items():
        np.testing.assert_array_equal(got[name], values, err_msg=name, strict=True)
