"""Our side, in a process of its own: checks against the oracle, then times, then prints one JSON object."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from unittest.mock import patch

sys.path[0] = str(Path(__file__).resolve().parents[1])

# ruff: noqa: E402
import numpy as np
from scipy.stats import spearmanr

from corrmask_fast import Corpus, DependencyGraph, build_dependency_graph, read_corpus, reference, set_num_threads
from corrmask_fast.graph.build import building
from corrmask_fast.graph.build.memory import ChunkPlan
from corrmask_fast.graph.build.products import DENSE, PANEL, SCATTER, Cut, Operands, Rates, plan_product
from graph import overlaps, shapes
from graph.peers import peak_gib
from graph.stages import STAGES


def check(corpus: Corpus, chunks: ChunkPlan | None = None) -> float:
    """Hold a graph of a few cells and genes to the oracle, bit by bit; return the seconds of this first build.

    ``chunks`` says how the cells pass; None: all at once.
    """
    small = shapes.part_of(corpus, 150, 40)
    parameters = {"min_presence": 5, "min_cooccurrence": 5, "rho_min": 0.05, "n_neighbors": 6}
    began = time.perf_counter()
    with patch.object(building, "plan_chunks", lambda *_: chunks):
        graph = build_dependency_graph(small, progress=False, **parameters)
    seconds = time.perf_counter() - began
    cells = [small.tokens[small.indptr[i] : small.indptr[i + 1]].tolist() for i in range(small.n_cells)]
    expected = reference.build_dependency_graph(cells, **parameters)
    pairs = [(u, v, *rhos) for u, partners in sorted(expected.items()) for v, rhos in partners.items()]
    rows = np.repeat(np.arange(graph.vocabulary.size), np.diff(graph.indptr))
    for got, want in zip((rows, graph.indices, graph.rho, graph.rho_global), zip(*pairs, strict=True), strict=True):
        np.testing.assert_array_equal(got, np.array(want, got.dtype))
    return seconds


def build(corpus: Corpus, threads: int, min_cooccurrence: int = 200) -> dict:
    """From tokens in memory to the saved graph."""
    set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        began, cpu = time.perf_counter(), time.process_time()
        graph = build_dependency_graph(corpus, min_cooccurrence=min_cooccurrence, progress=False)
        graph.save(Path(folder) / "graph.safetensors")
        seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    used = {"n_cells": graph.params["n_cells_used"], "n_genes": graph.params["n_genes_used"], "nnz": corpus.nnz}
    return {"seconds": seconds, "cpu_seconds": cpu, "n_edges": graph.n_edges, **used}


def run_build(what: dict) -> dict:
    """Time ``repeats`` builds and take the quickest; how far rho is from exact where both are known."""
    corpus = shapes.load(what["corpus"])
    first_call = check(corpus)
    if what.get("first_genes"):
        corpus = shapes.first_genes(corpus, what["n_genes"])
    runs = [build(corpus, what["threads"], what["min_cooccurrence"]) for _ in range(what.get("repeats", 1))]
    best = min(runs, key=lambda run: run["seconds"]) | {"peak_gib": peak_gib(), "first_call_s": first_call}
    return best | {"largest_error": largest_error(corpus) if what.get("error") else None}


def largest_error(corpus: Corpus) -> float:
    """Of every pair among the first genes: rho as the stages give it, against integers summed by the definition."""
    columns, ranks = shapes.columns_of(corpus)
    exact = shapes.exact_rho(columns, ranks)
    n = exact.shape[0]
    few = slice(0, columns.indptr[n])
    part = columns.__class__(
        columns.genes[:n],
        columns.n_cells,
        columns.max_length,
        columns.indptr[: n + 1],
        columns.cells[few],
        columns.levels[few],
    )
    pairs = STAGES.strongest_pairs(part, STAGES.rank_genes(part), n, 0.0)
    return float(np.abs(pairs.rho - exact[pairs.u, pairs.v]).max())


def run_growth(what: dict) -> dict:
    """Time builds of growing parts of one corpus."""
    corpus = shapes.load(what["corpus"])
    check(corpus)
    rows = []
    for n_cells, n_genes in what["parts"]:
        part = shapes.part_of(corpus, n_cells, n_genes)
        rows.append(build(part, what["threads"], what["min_cooccurrence"]) | {"cells": n_cells, "genes": n_genes})
    return {"rows": rows}


def run_streamed_check(what: dict) -> dict:
    """Hold graphs of cells that pass in chunks to the oracle, with sums of 64 and of more bits."""
    corpus = read_corpus(what["corpus"]).take(np.arange(2_000))
    for wide in (False, True):
        check(corpus, ChunkPlan(64, 100_000, wide))
    return {}


def run_edges(what: dict) -> dict:
    """Of some edges of a graph: their rho, over all cells and over the overlap, against SciPy's."""
    corpus, graph = read_corpus(what["corpus"]), DependencyGraph.load(what["graph"])
    rows = np.repeat(np.arange(graph.vocabulary.size), np.diff(graph.indptr))
    chosen = np.linspace(0, rows.size - 1, what["edges"]).astype(np.int64)
    genes = np.unique([rows[chosen], graph.indices[chosen]])
    values = np.zeros((genes.size, corpus.n_cells), np.uint16)  # levels: 0 where a gene is absent
    for begin in range(0, corpus.n_cells, 1 << 16):
        cells = np.arange(begin, min(begin + (1 << 16), corpus.n_cells))
        indptr, tokens = corpus.gather(cells)
        found = np.flatnonzero(np.isin(tokens, genes))
        cell = np.searchsorted(indptr, found, side="right") - 1
        place = found - indptr[cell]
        kept = place < corpus.max_length
        levels = corpus.max_length - place[kept]
        values[np.searchsorted(genes, tokens[found[kept]]), begin + cell[kept]] = levels
    largest = 0.0
    for edge in chosen.tolist():
        x, y = values[np.searchsorted(genes, [rows[edge], graph.indices[edge]])]
        both = (x > 0) & (y > 0)
        # X is a level less one, and 0 where a gene is absent: the last place ties with absence.
        over_all = spearmanr(np.maximum(x, 1), np.maximum(y, 1)).statistic
        local = spearmanr(x[both], y[both]).statistic
        largest = max(largest, abs(over_all - graph.rho_global[edge]), abs(local - graph.rho[edge]))
    return {"largest_error": largest, "n_edges": graph.n_edges}


def run_overlap(what: dict) -> dict:
    """Pairs a second of the overlap step on one core, beside SciPy."""
    set_num_threads(what["threads"])
    corpus = shapes.load(what["corpus"])
    check(corpus)
    return {"rows": overlaps.measure(corpus, Path(what["corpus"]), what)}


def run_rates(what: dict) -> dict:
    """Products a second of each method on one core, over all tasks that it would get if it were the only one."""
    set_num_threads(1)
    corpus = shapes.load(what["corpus"])
    check(corpus)
    columns, ranks = shapes.columns_of(shapes.part_of(corpus, None, what["n_genes"]))
    rows = {}
    for method, rates in (
        (SCATTER, Rates(scatter=np.inf)),
        (PANEL, Rates(panel=np.inf)),
        (DENSE, Rates(dense=np.inf)),
    ):
        plan = plan_product(columns.presence, ranks.sum_squares, columns.n_cells, Cut(rates=rates))
        operands = Operands(plan, columns, ranks.e)
        # The tasks that the method is made for: the rarest blocks, all of the commonest panel, the commonest block.
        task = (min if method == SCATTER else max)(plan.tasks, key=lambda task: (task.v.start, task.u.start))
        counted = columns.presence[plan.order]
        nonzeros_u, nonzeros_v = (float(counted[part.start : part.stop].sum()) for part in (task.u, task.v))
        products = {
            SCATTER: nonzeros_u * nonzeros_v / columns.n_cells / (2 if task.ahead == 0 else 1),
            PANEL: nonzeros_u * len(task.v),
            DENSE: len(task.u) * len(task.v) * float(columns.n_cells),
        }[method]
        sums = task.zeros()
        operands.add(task, sums)
        began = time.perf_counter()
        operands.add(task, sums)
        rows[method] = products / (time.perf_counter() - began)
    return {"rates": rows}


if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    print(json.dumps(globals()[f"run_{asked['part']}"](asked)))
