"""Tokenised cells as many as an atlas has, made up in seconds: for benches that count tokens, not biology.

    gene g is in cell c   if   base[g] + loading[g] * activity[c, module of g] + marker[type of c, g] + Gumbel > 0

which is a Poisson count above zero. Genes reach from very rare to nearly everywhere (of 25 000 genes in 6 % of the
cells on average, the median one is in 2 %, the commonest in 95 %); those of a module rise and fall together. Present
genes are ordered by what the cell adds to their base, as rank-value encoding orders them, noise included.
"""

from __future__ import annotations

import numpy as np

from corrmask_fast import Corpus, Vocabulary
from corrmask_fast.kernels.jit import inline, kernel
from corrmask_fast.threads import map_tasks

MODULE_SHARE, MARKER_SHARE = 0.3, 0.1  # of all genes, as in corrmask_fast/synthetic.py
# Standard deviations of natural logarithms.
BASE_SD, DEPTH_SD, TYPE_SD, CELL_SD, MARKER_SD = 1.8, 0.3, 0.8, 1.0, 0.9
CHUNK_CELLS = 512
LEVELS = 1 << 14  # of the table that random bits are looked up in
BINS = 4096  # of the counting sort; equal bins keep the order of genes
FEW = 64  # genes that are sorted by insertion, to the same order


def made_up_corpus(
    n_cells: int,
    n_genes: int,
    *,
    density: float = 0.06,
    n_modules: int = 50,
    n_types: int = 16,
    max_length: int = 2048,
    seed: int = 0,
    piece: int = 0,
) -> Corpus:
    """Make up cells; the same for equal arguments, whatever the number of threads.

    ``density`` is the share of genes that a cell holds, about, before it is cut to ``max_length``. Pieces are as many
    other cells of the same genes and types each.
    """
    rng = np.random.default_rng(seed)
    base = rng.normal(0, BASE_SD, n_genes)
    base += _shift(base, density)
    order = rng.permutation(n_genes)
    in_modules, marked = int(MODULE_SHARE * n_genes), int(MARKER_SHARE * n_genes)
    module = np.zeros(n_genes, np.int32)  # module 0 is that of genes in none
    module[order[:in_modules]] = 1 + np.arange(in_modules) % n_modules
    loading = rng.uniform(0.6, 1.4, n_genes).astype(np.float32)
    shares = rng.dirichlet(np.full(n_types, 3.0))
    cell_type = rng.choice(n_types, n_cells, p=shares)
    type_activity = rng.normal(0, TYPE_SD, (n_types, n_modules + 1))
    own_activity = rng.normal(0, CELL_SD, (n_cells, n_modules + 1))
    depth = rng.normal(0, DEPTH_SD, n_cells).astype(np.float32)
    marker = np.zeros((n_types, n_genes), np.float32)
    marker[:, order[in_modules : in_modules + marked]] = rng.normal(0, MARKER_SD, (n_types, marked))
    if piece:
        rng = np.random.default_rng([seed, piece])
        cell_type = rng.choice(n_types, n_cells, p=shares)
        own_activity = rng.normal(0, CELL_SD, (n_cells, n_modules + 1))
        depth = rng.normal(0, DEPTH_SD, n_cells).astype(np.float32)
    activity = type_activity[cell_type] + own_activity
    activity[:, 0] = 0
    tables = base.astype(np.float32), module, loading, marker, _gumbel_quantiles()
    cells = cell_type.astype(np.int64), activity.astype(np.float32), depth

    def make(begin: int) -> tuple[np.ndarray, np.ndarray]:
        part = [array[begin : begin + CHUNK_CELLS] for array in cells]
        tokens = np.empty((part[0].size, min(max_length, n_genes)), np.uint16 if n_genes < 2**16 - 2 else np.int32)
        lengths = np.empty(part[0].size, np.int64)
        _fill_cells(np.uint64((seed + piece) * n_cells + begin), *part, *tables, tokens, lengths)
        return lengths, tokens[np.arange(tokens.shape[1]) < lengths[:, None]]

    lengths, tokens = zip(*map_tasks(make, range(0, n_cells, CHUNK_CELLS)), strict=True)
    indptr = np.concatenate([[0], np.cumsum(np.concatenate(lengths))])
    return Corpus(indptr, np.concatenate(tokens), vocabulary_of(n_genes), max_length=max_length)


def vocabulary_of(n_genes: int) -> Vocabulary:
    """Return the genes of a corpus that is made up."""
    return Vocabulary(("<pad>", "<mask>", *(f"GENE{i:05d}" for i in range(n_genes))))


def _shift(base: np.ndarray, density: float) -> float:
    """What to add to ``base`` so that genes are present in this share of cells on average."""
    low, high = -40.0, 40.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if -np.expm1(-np.exp(base + middle)).mean() < density else (low, middle)
    return low


def _gumbel_quantiles() -> np.ndarray:
    return -np.log(-np.log((np.arange(LEVELS) + 0.5) / LEVELS)).astype(np.float32)


@inline
def _sort_few(gene, key, n):
    for i in range(1, n):
        g, k, at = gene[i], key[i], i
        while at and key[at - 1] > k:
            gene[at], key[at] = gene[at - 1], key[at - 1]
            at -= 1
        gene[at], key[at] = g, k


@kernel
def _fill_cells(seed, cell_type, activity, depth, base, module, loading, marker, gumbel, tokens, lengths):
    n_genes, most = base.size, tokens.shape[1]
    gene, key = np.empty(n_genes, np.int32), np.empty(n_genes, np.int32)
    for c in range(cell_type.size):
        state = (seed + np.uint64(c)) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(0x632BE59BD9B4E019)
        n = 0
        for g in range(n_genes):
            state ^= state << np.uint64(13)  # xorshift64
            state ^= state >> np.uint64(7)
            state ^= state << np.uint64(17)
            own = loading[g] * activity[c, module[g]] + marker[cell_type[c], g]
            if base[g] + depth[c] + own + gumbel[(state >> np.uint64(20)) & np.uint64(LEVELS - 1)] <= 0:
                continue
            value = own + gumbel[(state >> np.uint64(40)) & np.uint64(LEVELS - 1)]
            place = min(max(int((np.float32(12.0) - value) * np.float32(BINS / 20)), 0), BINS - 1)  # falling
            gene[n], key[n] = g, place
            n += 1
        lengths[c] = min(n, most)
        if n <= FEW:
            _sort_few(gene, key, n)
            tokens[c, : min(n, most)] = gene[: min(n, most)] + 2
            continue
        starts = np.zeros(BINS + 1, np.int32)
        for i in range(n):
            starts[key[i] + 1] += 1
        for b in range(BINS):
            starts[b + 1] += starts[b]
        for i in range(n):
            at = starts[key[i]]
            starts[key[i]] += 1
            if at < most:
                tokens[c, at] = gene[i] + 2
