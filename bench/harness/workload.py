"""What is measured on: made-up cells of 2 048 genes, their dependency graph, and a datasets folder of them.

The graph is built by Algorithm 1 from the cells themselves, so that the genes of a cell have as many neighbours, and as
many of them beside them, as in real cells; README.md of this folder compares.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

import corrmask_fast
from corrmask_fast import Corpus, DependencyGraph, build_dependency_graph, read_corpus, tokenize, write_corpus
from corrmask_fast.synthetic import generate_cells


@dataclass(frozen=True)
class Size:
    """How large; the defaults are Geneformer V1's cells and vocabulary, over fewer cells than an atlas has."""

    n_cells: int = 4_000
    n_genes: int = 25_424
    n_modules: int = 50
    n_types: int = 16
    length: int = 2_048
    batches: tuple[int, ...] = (12, 64)
    thread_batches: tuple[int, ...] = (12, 64, 256, 1_024)
    min_presence: int = 50
    min_cooccurrence: int = 20  # of 4 000 cells: in proportion, more than 200 of 100 000


SMOKE = Size(
    n_cells=200,
    n_genes=600,
    n_modules=20,
    n_types=3,
    length=48,
    batches=(4,),
    thread_batches=(4, 64),
    min_presence=20,
    min_cooccurrence=10,
)


@dataclass(frozen=True)
class Workload:
    """Cells of ``size.length`` genes each, on disk and open, and their graph."""

    size: Size
    folder: Path  # a datasets folder
    corpus: Corpus  # the same cells, memory-mapped
    graph: DependencyGraph

    def rows(self, n: int) -> np.ndarray:
        """(n, length) int64: the first cells, over again where there are not so many."""
        tokens = self.corpus.gather(np.arange(n) % self.corpus.n_cells)[1]
        return tokens.reshape(n, self.size.length).astype(np.int64)

    def describe(self) -> dict[str, str | int | float]:
        """Return the figures that the cost of masking depends on."""
        indptr, indices = self.graph.indptr, self.graph.indices
        degrees, present = [], []
        for cell in self.rows(32):
            here = np.zeros(self.graph.vocabulary.size, np.bool_)
            here[cell] = True
            degrees.append(indptr[cell + 1] - indptr[cell])
            inside = np.concatenate([[0], np.cumsum(here[indices])])
            present.append(inside[indptr[cell + 1]] - inside[indptr[cell]])
        degree, partners = np.concatenate(degrees), np.concatenate(present)
        return {
            "columns": self.size.length,
            "vocabulary": self.graph.vocabulary.size,
            "graph_edges": self.graph.indices.size // 2,
            "with_neighbors": round(float(np.mean(degree > 0)), 3),
            "mean_degree": round(float(degree[degree > 0].mean()), 1),
            "present_share": round(float(partners.sum() / degree.sum()), 3),
        }


def make_workload(size: Size, keep_in: Path) -> Workload:
    """Open the workload kept in a folder, or make it there."""
    folder = keep_in / _key(size)
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
            _make(size, Path(temporary))
            shutil.copytree(temporary, folder)
    graph = DependencyGraph.load(folder / "graph.safetensors")
    return Workload(
        size, folder / "cells.dataset", read_corpus(folder / "cells.dataset", max_length=size.length), graph
    )


def _key(size: Size) -> str:
    """Cells and graph follow from the size and from this code: where it changed, a kept workload is made anew."""
    package = Path(corrmask_fast.__file__).parent
    makers = [
        package / "synthetic.py",
        *(p for f in ("cells", "graph", "kernels") for p in (package / f).rglob("*.py")),
    ]
    text = b"".join(path.read_bytes() for path in sorted(makers))
    return hashlib.sha256(text + json.dumps(asdict(size)).encode()).hexdigest()[:12]


def _make(size: Size, folder: Path) -> None:
    cells = generate_cells(size.n_cells, size.n_genes, n_modules=size.n_modules, n_types=size.n_types)
    cells.write_h5ad(folder / "counts.h5ad")
    limit = {"max_length": size.length}
    tokenize(folder / "counts.h5ad", folder / "all.npz", cells.vocabulary, progress=False, **limit)
    (folder / "counts.h5ad").unlink()
    corpus = read_corpus(folder / "all.npz", **limit)
    graph = build_dependency_graph(
        corpus, min_presence=size.min_presence, min_cooccurrence=size.min_cooccurrence, progress=False, **limit
    )
    graph.save(folder / "graph.safetensors")
    # Shorter cells count for the graph, but what is timed is cells of full length: no padding, the most work.
    write_corpus(corpus.take(np.flatnonzero(corpus.lengths == size.length)), folder / "cells.dataset")
