"""What is measured on: corpora made up once and kept, and parts of them as the peers and the growth need them."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from harness import atlas

from corrmask_fast import Corpus, read_corpus, write_corpus
from graph.peers import MAX_CHECKED

if TYPE_CHECKING:
    from corrmask_fast.graph.build.records import GeneColumns, Ranks

MIN_PRESENCE = 50  # the default of build_dependency_graph


class Shape(NamedTuple):
    """A corpus to make; ``density`` is what the maker is asked for (its cells vary, which adds to it)."""

    name: str
    n_cells: int
    n_genes: int
    density: float


SHAPES = {
    shape.name: shape
    for shape in (
        Shape("d4k", 20_000, 4_000, 0.071),
        Shape("d12k", 20_000, 12_000, 0.069),
        Shape("big", 100_000, 25_000, 0.0505),
    )
}
SMOKE = {
    shape.name: shape
    for shape in (Shape("d4k", 400, 150, 0.1), Shape("d12k", 500, 300, 0.1), Shape("big", 900, 400, 0.08))
}


def corpus_file(shape: Shape, keep: Path) -> Path:
    """Return the file of a shape's corpus, made where it is not kept yet."""
    made_by = Path(atlas.__file__).read_bytes() + repr(shape).encode()
    path = keep / f"{shape.name}-{hashlib.sha256(made_by).hexdigest()[:12]}.npz"
    if not path.exists():
        keep.mkdir(parents=True, exist_ok=True)
        write_corpus(atlas.made_up_corpus(shape.n_cells, shape.n_genes, density=shape.density), path)
    return path


def part_of(corpus: Corpus, n_cells: int | None = None, n_genes: int | None = None) -> Corpus:
    """Return the first cells with evenly spread genes: as dense as the whole."""
    n_cells = corpus.n_cells if n_cells is None else n_cells
    total = corpus.vocabulary.size - corpus.vocabulary.gene_range[0]
    if n_genes is None or n_genes >= total:
        return corpus if n_cells >= corpus.n_cells else corpus.take(np.arange(n_cells))
    return _of_genes(corpus, n_cells, corpus.vocabulary.gene_range[0] + np.arange(n_genes) * total // n_genes)


def first_genes(corpus: Corpus, n_genes: int) -> Corpus:
    """Return all cells with the first of the genes that a graph would be built over: what the peers are given."""
    kept = np.flatnonzero(np.bincount(corpus.tokens, minlength=corpus.vocabulary.size) >= MIN_PRESENCE)
    return _of_genes(corpus, corpus.n_cells, kept[:n_genes])


def _of_genes(corpus: Corpus, n_cells: int, genes: np.ndarray) -> Corpus:
    kept = np.zeros(corpus.vocabulary.size, np.bool_)
    kept[genes] = True
    indptr, tokens = corpus.indptr[: n_cells + 1], corpus.tokens[: corpus.indptr[n_cells]]
    inside = kept[tokens]
    return Corpus(np.concatenate([[0], np.cumsum(inside)])[indptr], tokens[inside], corpus.vocabulary)


def columns_of(corpus: Corpus) -> tuple[GeneColumns, Ranks]:
    """Return the columns and ranks of all genes that a graph would be built over."""
    from graph.stages import STAGES, read_columns

    columns = read_columns(corpus, MIN_PRESENCE)
    return columns, STAGES.rank_genes(columns)


def exact_rho(columns: GeneColumns, ranks: Ranks, n: int = MAX_CHECKED) -> np.ndarray:
    """(n, n) float64: rho of the first n genes, from integer sums, by the definition."""
    n = min(n, columns.genes.size)
    d = np.repeat(-ranks.n_positive[:n, None], columns.n_cells, axis=1)
    for g in range(n):
        column = slice(columns.indptr[g], columns.indptr[g + 1])
        d[g, columns.cells[column]] += ranks.e[column].astype(np.int64)
    squares = np.einsum("ij,ij->i", d, d).astype(np.float64)
    # Sums below 2**53 are exact in float64, whatever the order.
    assert columns.n_cells <= 131_072
    with np.errstate(invalid="ignore"):
        return (d.astype(np.float64) @ d.T.astype(np.float64)) / np.sqrt(squares[:, None] * squares)


def write_peer_input(path: Path, columns: GeneColumns, ranks: Ranks) -> None:
    """Write what a peer reads: values and ranks as sparse columns, and what its first genes shall correlate like."""
    np.savez(
        path,
        n_cells=columns.n_cells,
        indptr=columns.indptr,
        cells=columns.cells,
        values=columns.levels.astype(np.int16) - 1,
        e=ranks.e,
        exact=exact_rho(columns, ranks),
    )


def load(path: str | Path) -> Corpus:
    """Read a kept corpus into memory."""
    return read_corpus(path)
