"""A corpus that passes in chunks of cells: what is counted in a chunk, and what is looked up for it.

Ranks need only how often each level occurs, and counts add up over chunks:

    chunk 1:  counts[gene, level] += …  ┐
    chunk 2:  counts[gene, level] += …  ┴→  ranks of all levels  →  chunk 1: e = rank[gene, level] …

The same holds for two genes over the cells that hold both, in two passes: first the counts of both genes' levels there,
then, with ranks from these, the sum of d_u·d_v. Levels and ranks are those of kernels/ranks.py and kernels/overlap.py.

Work split: genes or pairs by ranges; pairs lie sorted by their common gene. Assumed: fewer than 2**31 cells; a chunk
small enough that its own sums fit 64 bits.
"""

import numpy as np

from .jit import inline, kernel
from .wide import add, multiply, to_float


@kernel
def count_levels(indptr, levels, counts, begin, end):
    """counts[g, level] += cells of the chunk in which gene g of [begin, end) has this level."""
    for g in range(begin, end):
        row = counts[g]
        for k in range(indptr[g], indptr[g + 1]):
            row[levels[k]] += np.uint32(1)


@inline
def add_squares(high, low, count, d):
    """Return (high, low) with count · d² added."""
    more_high, more_low = multiply(np.uint64(count), np.uint64(d * d))
    return add(high, low, more_high, more_low)


@kernel
def rank_counts(counts, n_cells, n_positive, sum_squares, begin, end):
    """Turn ``counts`` (G, levels) uint32 into e of each level; write m, and sum d² as float64, rounded once."""
    for g in range(begin, end):
        row = counts[g]
        m = 0
        for level in range(2, row.size):
            m += np.int64(row[level])
        high, low = add_squares(np.uint64(0), np.uint64(0), n_cells - m, m)
        row[:2] = 0
        below = n_cells - m
        for level in range(2, row.size):
            count = np.int64(row[level])
            d = 2 * below + count - n_cells
            if count:
                high, low = add_squares(high, low, count, d)
                row[level] = d + m
            below += count
        n_positive[g] = m
        sum_squares[g] = to_float(high, low)


@kernel
def look_up_ranks(indptr, levels, table, e, begin, end):
    """e[k] = rank of gene and level, for the columns [begin, end) of a chunk."""
    for g in range(begin, end):
        row = table[g]
        for k in range(indptr[g], indptr[g + 1]):
            e[k] = row[levels[k]]


@inline
def write_levels(dense, indptr, cells, levels, gene):
    """Write a gene's levels into ``dense`` (cells of the chunk), 0 where it is absent."""
    dense[:] = 0
    for k in range(indptr[gene], indptr[gene + 1]):
        dense[cells[k]] = levels[k]


@kernel
def count_overlaps(common, partner, indptr, cells, levels, n_cells, counts, begin, end):
    """counts[i, side, level] += cells of the chunk that hold both genes of pair i, by the level of either."""
    dense = np.empty(n_cells, np.uint16)
    current = -1
    for i in range(begin, end):
        if common[i] != current:
            current = common[i]
            write_levels(dense, indptr, cells, levels, current)
        of_u, of_v = counts[i, 0], counts[i, 1]
        for k in range(indptr[partner[i]], indptr[partner[i] + 1]):
            level = dense[cells[k]]
            if level != 0:
                of_u[level] += np.uint32(1)
                of_v[levels[k]] += np.uint32(1)


@kernel
def rank_overlaps(counts, overlap, squares, begin, end):
    """Turn counts of levels into d, in the same 32 bits; write the overlap, and sum d² of either side as float64."""
    for i in range(begin, end):
        n = 0
        for level in range(counts.shape[2]):
            n += np.int64(counts[i, 0, level])
        overlap[i] = n
        for side in range(2):
            row = counts[i, side]
            high, low, below = np.uint64(0), np.uint64(0), 0
            for level in range(row.size):
                count = np.int64(row[level])
                d = 2 * below + count - n
                if count:
                    high, low = add_squares(high, low, count, d)
                    row[level] = np.uint32(np.int32(d))
                below += count
            squares[i, side] = to_float(high, low)


@kernel
def add_rank_products(common, partner, indptr, cells, levels, n_cells, ranks, wanted, low, high, begin, end):
    """Add the sum of d_u·d_v over the chunk's overlap cells to (``high`` int64, ``low`` uint64) of ``wanted`` pairs.

    ``ranks`` (pairs, 2, levels) int32.
    """
    dense = np.empty(n_cells, np.uint16)
    current = -1
    for i in range(begin, end):
        if not wanted[i]:
            continue
        if common[i] != current:
            current = common[i]
            write_levels(dense, indptr, cells, levels, current)
        of_u, of_v = ranks[i, 0], ranks[i, 1]
        total = 0
        for k in range(indptr[partner[i]], indptr[partner[i] + 1]):
            level = dense[cells[k]]
            if level != 0:
                total += np.int64(of_u[level]) * np.int64(of_v[levels[k]])
        sign = np.uint64(0xFFFFFFFFFFFFFFFF) if total < 0 else np.uint64(0)
        new_high, new_low = add(np.uint64(high[i]), low[i], sign, np.uint64(total))
        high[i], low[i] = np.int64(new_high), new_low
