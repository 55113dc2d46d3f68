"""Graphs of corpora that pass in chunks: the same bits as in memory, in bounded memory, for any number of cells."""

from __future__ import annotations

import decimal
import itertools
import math
import re
import subprocess
import sys
import textwrap
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from corrmask_fast import (
    Corpus,
    InputError,
    Vocabulary,
    build_dependency_graph,
    read_corpus,
    reference,
    set_num_threads,
)
from corrmask_fast.cells.corpus_io import CorpusWriter
from corrmask_fast.graph.build import building as graph_building
from corrmask_fast.graph.build import memory as graph_memory
from corrmask_fast.graph.build import products as graph_products
from corrmask_fast.graph.build.distributed import Team
from corrmask_fast.graph.build.memory import ChunkPlan, Need
from corrmask_fast.graph.build.products import Cut, plan_product
from corrmask_fast.graph.build.records import Cells
from corrmask_fast.graph.build.stages_streamed import StreamedStages
from corrmask_fast.graph.build.work import Work
from corrmask_fast.kernels.wide import fold, to_floats

LOOSE = {"rho_min": 0.0, "min_cooccurrence": 0, "min_presence": 1}


@pytest.fixture(autouse=True)
def _restore_threads():
    yield
    set_num_threads(None)


def streamed(corpus, chunk_cells, band_bytes, *, wide=False, tile_genes=512, **parameters):
    """The graph from chunks and bands of the given sizes."""
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        plan = ChunkPlan(chunk_cells, band_bytes, wide)
        patch.setattr(graph_building, "plan_chunks", lambda *_: plan)
        patch.setattr(graph_products, "Cut", lambda: Cut(tile_genes=tile_genes))
        return build_dependency_graph(corpus, **{"progress": False, **parameters})


def assert_equal(graph, expected):
    """Equal to the bit but for a stated error."""
    assert graph.n_edges == expected.n_edges
    for name in ("indptr", "indices", "rho", "rho_global"):
        np.testing.assert_array_equal(getattr(graph, name), getattr(expected, name))
    assert {**graph.params, "rho_error": None} == {**expected.params, "rho_error": None}


# Cells of a chunk, bytes of a band: one chunk and band, tiny odd ones, one task or pair at a time.
CHUNK_PLANS = ((10**6, 2**40), (13, 5000), (50, 1))


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"n_neighbors": 3, "rho_min": 0.3, "min_cooccurrence": 20, "min_presence": 10},
        {"max_length": 7, "rho_min": 0.1},
        {"max_length": 1},
        {"n_cells": 60, "seed": 5, "min_presence": 3, "max_genes": 17},
        {"n_cells": None, "max_length": 65535, "n_neighbors": 2},
        {"rho_min": 0, "min_cooccurrence": 0, "min_presence": 0, "n_neighbors": 9},
    ],
    ids=str,
)
def test_the_same_bits_as_in_memory(make_corpus, parameters):
    corpus = make_corpus(110, 24, seed=1)
    parameters = {"min_cooccurrence": 5, "min_presence": 5, **parameters}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        expected = build_dependency_graph(corpus, progress=False, **parameters)
    for (chunk_cells, band_bytes), wide in itertools.product(CHUNK_PLANS, (False, True)):
        graph = streamed(corpus, chunk_cells, band_bytes, wide=wide, tile_genes=5, **parameters)
        assert_equal(graph, expected)
        assert graph.params.get("rho_error") == (5 * 2.0**-53 if wide else None)


def test_the_same_bits_as_the_oracle(make_corpus):
    corpus = make_corpus(60, 12, seed=3)
    parameters = {"n_neighbors": 3, "min_presence": 3, "min_cooccurrence": 3, "rho_min": 0.05}
    cells = [corpus.tokens[a:b].tolist() for a, b in itertools.pairwise(corpus.indptr)]
    expected = reference.build_dependency_graph(cells, **parameters)
    graph = streamed(corpus, 7, 100, wide=True, tile_genes=3, **parameters)
    assert {gene: graph.indices[graph.indptr[gene] : graph.indptr[gene + 1]].tolist() for gene in expected} == {
        gene: list(partners) for gene, partners in expected.items()
    }
    for values, column in ((graph.rho, 0), (graph.rho_global, 1)):
        stored = [pair[column] for partners in expected.values() for pair in partners.values()]
        np.testing.assert_array_equal(values, np.array(stored, np.float32))


def test_threads_chunks_and_bands_change_nothing(make_corpus, tmp_path):
    corpus = make_corpus(300, 90, seed=4)
    files = set()
    for threads, (chunk_cells, band_bytes) in itertools.product((1, 3), ((10**6, 2**40), (64, 60_000))):
        set_num_threads(threads)
        graph = streamed(corpus, chunk_cells, band_bytes, min_cooccurrence=10, rho_min=0.05, max_length=40)
        graph.save(tmp_path / "graph.safetensors")
        files.add((tmp_path / "graph.safetensors").read_bytes())
    assert graph.n_edges > 100
    assert len(files) == 1


# -------------------------------------------------------------------------------------------------- beyond 64 bits


def test_wide_sums_round_as_python_does():
    rng = np.random.default_rng(0)
    values = []
    for bits in range(1, 127):
        for _ in range(40):
            value = int.from_bytes(rng.bytes(16), "little") >> (128 - bits)
            if rng.random() < 0.4:  # a tie, or next to one
                value = ((value >> max(0, bits - 54)) << max(0, bits - 54)) + int(rng.integers(-1, 2))
            values += [value, -value]
    low = np.array([value % 2**64 for value in values], np.uint64)
    high = np.array([value >> 64 for value in values], np.int64)
    out = np.empty(len(values))
    to_floats(low, high, out)
    assert out.tolist() == [float(value) for value in values]


def test_folded_sums_carry():
    rng = np.random.default_rng(1)
    parts = rng.integers(0, 2**64, (50, 20), np.uint64)
    parts[:5] = 2**64 - 1
    low, high = np.zeros(20, np.uint64), np.zeros(20, np.uint32)
    for part in parts:
        fold(part, low, high)
    assert [(int(h) << 64) + int(x) for h, x in zip(high, low, strict=True)] == [
        sum(map(int, column)) for column in parts.T
    ]


def exact_sum(x, y):
    """Sum of x·y as a Python integer."""
    return sum(int(x[i : i + 65536] @ y[i : i + 65536]) for i in range(0, x.size, 65536))


def doubled_ranks(values):
    """2 · average rank - (n + 1), int64."""
    level, counts = np.unique(values, return_inverse=True, return_counts=True)[1:]
    return (2 * np.cumsum(counts) - counts - values.size)[level]


def test_more_cells_than_64_bits_hold():
    """Sums beyond 2**64, exact, and rho within its stated bound of the true value."""
    N, vocabulary = 3_400_000, Vocabulary(("<pad>", "<mask>", *"ABC"))
    rng = np.random.default_rng(0)
    orders = np.array(list(itertools.permutations([2, 3, 4])), np.uint16)
    tokens = orders[rng.choice(6, N, p=[0.3, 0.25, 0.15, 0.15, 0.1, 0.05])]
    corpus = Corpus(np.arange(0, 3 * N + 1, 3), tokens.reshape(-1), vocabulary)
    parameters = {"max_length": 3, "rho_min": 0.0, "n_cells": None, "progress": False}
    graph = build_dependency_graph(corpus, **parameters)
    assert graph.params["rho_error"] == graph_memory.RHO_ERROR == 5 * 2.0**-53
    d = [doubled_ranks(3 - np.argmax(tokens == gene, axis=1)) for gene in (2, 3, 4)]
    assert exact_sum(d[0], d[0]) > 2**63
    pairs = wide_pairs(corpus, parameters["max_length"])
    with decimal.localcontext() as context:
        context.prec = 60
        for k, (u, v) in enumerate([(0, 1), (0, 2), (1, 2)]):
            product, squares = exact_sum(d[u], d[v]), (exact_sum(d[u], d[u]), exact_sum(d[v], d[v]))
            rho = float(product) / math.sqrt(float(squares[0]) * float(squares[1]))
            assert pairs.rho[k] == rho
            true = decimal.Decimal(product) / (decimal.Decimal(squares[0]) * decimal.Decimal(squares[1])).sqrt()
            assert abs(decimal.Decimal(rho) - true) <= decimal.Decimal(graph_memory.RHO_ERROR) * abs(true)
            place = graph.indptr[u + 2] + v - 1 if u == 0 else graph.indptr[3] + 1
            # All cells hold all genes, so rho over the overlap comes from the same numbers by the other way.
            assert graph.rho[place] == graph.rho_global[place] == np.float32(rho)


def wide_pairs(corpus, max_length):
    stages = StreamedStages(Work(), ChunkPlan(100_000, 2**40, wide=True))
    sample = stages.read_sample(Cells(corpus, range(corpus.n_cells), max_length))
    columns = stages.make_columns(sample, np.array([2, 3, 4]))
    return stages.strongest_pairs(columns, stages.rank_genes(columns), 2, 0.0)


def test_the_product_of_many_cells_leaves_blas_out():
    """Where products of ranks no longer fit float64 exactly, no task is given to it."""
    presence = np.full(600, 30_000_000)
    for n_cells, methods in ((100_000, {"dense"}), (100_000_000, {"panel"})):
        plan = plan_product(np.minimum(presence, n_cells), np.ones(600), n_cells)
        assert {task.method for task in plan.tasks} == methods


# ------------------------------------------------------------------------------------------------------------ memory


@pytest.mark.parametrize(
    ("text", "size"),
    [("8GB", 8 * 10**9), (" 1.5 gib ", 3 * 2**29), ("500MB", 5 * 10**8), (10**9, 10**9), ("123", 123), (None, None)],
)
def test_limits_are_read(text, size):
    assert graph_memory.check_memory(text) == size


@pytest.mark.parametrize("limit", ["much", "8 apples", 0, -1, 1.5, "", "GB"])
def test_limits_that_are_none(limit, make_corpus):
    with pytest.raises(InputError, match=r"memory_limit must be bytes, or text such as '8GB' or '500MiB'; got "):
        build_dependency_graph(make_corpus(10, 5), memory_limit=limit, progress=False, **LOOSE)


def test_too_little_memory_says_what_is_needed(make_corpus):
    corpus = make_corpus(200, 60, seed=4)
    with pytest.raises(InputError) as caught:
        build_dependency_graph(corpus, memory_limit="1MB", progress=False, **LOOSE)
    message = re.fullmatch(
        r"memory_limit=1MB is too little: this build needs at least ([\d.]+MB); raise memory_limit, or lower "
        r"n_cells or the number of threads \(now \d+\)",  # so few cells take less in memory than in chunks
        str(caught.value),
    )
    build_dependency_graph(corpus, memory_limit=message[1], progress=False, **LOOSE)  # what it says is enough

    many = replace(Need.of(Cells(corpus, range(200), 2048)), n_cells=10**6, n_tokens=10**9)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Need, "of", lambda *_: many)
        with pytest.raises(
            InputError, match=r"lower max_length \(ranks of 2048 places for 62 tokens take 0.51MB\) or "
        ):
            graph_memory.plan_chunks(Cells(corpus, range(200), 2048), 10**6, Team())


def test_what_fits_is_held_and_what_does_not_passes(make_corpus):
    corpus, team = make_corpus(200, 60, seed=4), Team()
    need = Need.of(Cells(corpus, range(200), 2048))
    assert need.n_tokens == corpus.nnz
    assert graph_memory.plan_chunks(Cells(corpus, range(200), 2048), math.ceil(need.in_memory), team) is None
    many = replace(need, n_cells=10**7, n_tokens=10**10, longest=1000.0, vocabulary_size=25_000)
    with pytest.MonkeyPatch.context() as patch:
        fits = replace(many, n_cells=10**5, n_tokens=10**8)
        patch.setattr(Need, "of", lambda *_: fits)
        for more, whole in ((0, True), (-1, False)):
            found = graph_memory.plan_chunks(Cells(corpus, range(1), 2048), math.ceil(fits.in_memory) + more, team)
            assert (found is None) == whole
        assert not found.wide
        patch.setattr(Need, "of", lambda *_: many)
        for limit in ("1GB", "4GB", "50GB"):
            size = graph_memory.check_memory(limit)
            found = graph_memory.plan_chunks(Cells(corpus, range(1), 2048), size, team)
            assert found.wide
            assert many.tables + many.chunk(found.chunk_cells) + found.band_bytes <= size


PEAK = """
    import sys, threading
    from corrmask_fast import build_dependency_graph, read_corpus, set_num_threads
    set_num_threads(1)

    def anonymous():
        with open("/proc/self/status") as file:
            return next(1024 * int(line.split()[1]) for line in file if line.startswith("RssAnon"))

    corpus, limit = read_corpus(sys.argv[1]), int(sys.argv[2])
    parameters = {"min_cooccurrence": 20, "n_neighbors": 10, "max_length": 512, "progress": False}
    build_dependency_graph(corpus, n_cells=100, memory_limit=limit, **parameters)  # kernels, modules
    begin, peak, done = anonymous(), 0, threading.Event()

    def watch():
        global peak
        while not done.wait(0.002):
            peak = max(peak, anonymous())

    thread = threading.Thread(target=watch)
    thread.start()
    graph = build_dependency_graph(corpus, memory_limit=limit, **parameters)
    done.set()
    thread.join()
    graph.save(sys.argv[3])
    print(peak - begin)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc to watch memory")
def test_memory_stays_within_its_limit(tmp_path):
    """A corpus on disk that takes three times the limit, in a process of its own."""
    rng = np.random.default_rng(0)
    n_cells, n_genes, length = 16_000, 1500, 500
    vocabulary = Vocabulary(("<pad>", "<mask>", *(f"G{i}" for i in range(n_genes))))
    weight = rng.gamma(0.6, size=n_genes)
    with CorpusWriter(tmp_path / "cells", vocabulary) as writer:
        for _ in range(n_cells // 1000):
            noise = rng.exponential(size=(1000, n_genes)).astype(np.float32) / weight.astype(np.float32)
            cells = np.argpartition(noise, length, axis=1)[:, :length] + 2
            writer.write(np.arange(0, 1000 * length + 1, length), cells.reshape(-1))
    limit = 90_000_000
    assert Need.of(Cells(read_corpus(tmp_path / "cells"), range(n_cells), 512)).in_memory > 2.5 * limit
    command = [sys.executable, "-c", textwrap.dedent(PEAK), tmp_path / "cells", str(limit), tmp_path / "graph"]
    run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=80)
    assert run.returncode == 0, run.stderr
    assert 0.2 * limit < int(run.stdout) < limit


def test_cells_beyond_64_bits_are_refused_on_a_gpu(make_corpus, monkeypatch):
    cells = Cells(make_corpus(20, 5), range(20), 8)
    for wide, message in ((True, "hold the sums of at most 1905000 cells; lower n_cells"), (False, "these do not fit")):
        chunks = ChunkPlan(8, 100, wide)
        monkeypatch.setattr(graph_building, "plan_chunks", lambda *_, chunks=chunks: chunks)
        with pytest.raises(InputError, match=message):
            graph_building._choose_stages("cuda", cells, None, Work(), asked_for_cuda=True)
