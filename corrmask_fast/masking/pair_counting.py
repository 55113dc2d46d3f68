"""Counting the ordered pairs of neighbouring tokens of a corpus, exactly, in bounded memory.

Only genes seen ``min_count`` times can be in a pair seen so often. For these there is a count of every pair, dense: a
table of genes by genes, or as many of its rows at a time as the memory allows, and then the corpus is read again for
the next rows. Each thread has rows of its own, and looks at all cells: no two write one count.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from corrmask_fast.errors import InputError, check_integer
from corrmask_fast.progress import progress_bar
from corrmask_fast.threads import get_num_threads, run_ranges

if TYPE_CHECKING:
    from collections.abc import Iterator

    from corrmask_fast.cells.corpus import Corpus

CHUNK_CELLS = 8192
MEMORY = 2**30  # bytes of counts at a time


class PairCounts(NamedTuple):
    """The pairs (first[k], second[k]) seen often enough, ascending."""

    first: np.ndarray  # (n,) int64 tokens
    second: np.ndarray  # (n,) int32 tokens
    counts: np.ndarray  # (n,) int64
    gene_counts: np.ndarray  # (V,) int64
    n_pairs: int  # neighbouring tokens, all pairs together
    n_cells: int

    @property
    def n_tokens(self) -> int:
        """Number of tokens, all genes together."""
        return int(self.gene_counts.sum())

    def npmi(self) -> np.ndarray:
        """(n,) float64: log(P(u, v) / (P(u) · P(v))) / −log P(u, v); 1 where P(u, v) = 1."""
        out = np.empty(self.counts.size)
        p = (self.gene_counts / max(self.n_tokens, 1)).tolist()
        pairs = zip(
            self.first.tolist(), self.second.tolist(), (self.counts / max(self.n_pairs, 1)).tolist(), strict=True
        )
        # The C library's logarithm: NumPy's own differs in the last bit from one processor to another.
        for k, (u, v, p_uv) in enumerate(pairs):
            out[k] = 1.0 if p_uv == 1.0 else math.log(p_uv / (p[u] * p[v])) / -math.log(p_uv)
        return out


def count_pairs(
    corpus: Corpus, min_count: int, *, n_cells: int | None, seed: int, memory: int, progress: bool
) -> PairCounts:
    """Count pairs and genes; keep the pairs seen at least ``min_count`` times."""
    from corrmask_fast.kernels.pair_counts import add_genes, add_pairs

    check_integer("min_count", min_count, 1)
    check_integer("memory", memory, 1)
    if corpus.n_cells == 0:
        raise InputError("cannot count the pairs of an empty corpus; give at least one cell")
    rows = np.arange(corpus.n_cells) if n_cells is None else corpus.sample_rows(n_cells, seed)

    def chunks(what: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        with progress_bar(what, rows.size, "cell", shown=progress) as bar:
            for begin in range(0, rows.size, CHUNK_CELLS):
                chunk = corpus.gather(rows[begin : begin + CHUNK_CELLS], warn=False)
                yield chunk
                bar.update(chunk[0].size - 1)

    gene_counts, n_pairs = np.zeros(corpus.vocabulary.size, np.int64), 0
    for indptr, tokens in chunks("counting genes"):
        n_pairs += int(add_genes(indptr, tokens, gene_counts))
    corpus.warn_of_repeats()
    genes = np.flatnonzero(gene_counts >= min_count)
    place = np.full(corpus.vocabulary.size, -1, np.int32)
    place[genes] = np.arange(genes.size)

    found: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    band = max(1, min(genes.size, memory // (4 * max(genes.size, 1))))
    for low in range(0, genes.size, band):
        high = min(low + band, genes.size)
        table = np.zeros((high - low, genes.size), np.uint32)
        passes = "" if band >= genes.size else f" ({high:,} of {genes.size:,} genes)"
        for indptr, tokens in chunks(f"counting pairs{passes}"):

            def work(begin: int, end: int, indptr: np.ndarray = indptr, tokens: np.ndarray = tokens) -> None:
                add_pairs(indptr, tokens, place, low + begin, table[begin:end])  # noqa: B023 (called at once)

            run_ranges(work, high - low, (high - low) // get_num_threads())  # each reads all tokens
        u, v = np.nonzero(table >= min_count)
        found.append((genes[low + u], genes[v].astype(np.int32), table[u, v].astype(np.int64)))
    first, second, counts = (np.concatenate(parts) for parts in zip(*found, strict=True)) if found else (
        np.empty(0, np.int64), np.empty(0, np.int32), np.empty(0, np.int64)
    )  # fmt: skip
    return PairCounts(first, second, counts, gene_counts, n_pairs, int(rows.size))
