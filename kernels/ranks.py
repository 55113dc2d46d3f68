"""Sampled cells as sparse columns of genes, and the exact ranks of each column (paper, appendix A.4, lines 3 to 13).

A gene that stands at position pos (1-based) of a cell has the value X = max_length - pos; an absent one has 0. What is
stored is the *level* X + 1, so that 0 is free to mean absent:

    cell    B A D      A  B  C  D        a column holds its cells, ascending, and the level in each:
    cell    C A    →   3  4  ·  2        A → cells 0 1, levels 3 3      B → cell 0, level 4 ...
                       3  ·  4  ·        (max_length = 4)

Doubled, centred average ranks d = 2·rank - (n_cells + 1) are integers. X = 0 (absent, or level 1) is the lowest tie;
there d is -m, m being the number of cells with X > 0. So e = d + m is as sparse as X, and never negative:

    d(level) = 2 · #{cells below this level} + #{cells of this level} - n_cells        sum d² = sum e² - n_cells · m²

Work split: counting and filling by ranges of cells, ranks by ranges of genes. Assumed: max_length < 2**16, n_cells
such that 4/3 · n_cells³ fits int64.
"""

import numpy as np

from .jit import kernel


@kernel
def count_genes(indptr, tokens, max_length, presence, value_sum):
    """Add to ``presence[g]`` the cells whose first ``max_length`` genes hold g, and to ``value_sum[g]`` their X."""
    for i in range(indptr.size - 1):
        begin = indptr[i]
        for k in range(begin, min(indptr[i + 1], begin + max_length)):
            gene = np.int64(tokens[k])
            presence[gene] += 1
            value_sum[gene] += max_length - 1 - (k - begin)


@kernel
def fill_columns(indptr, tokens, max_length, first_cell, column_of, cursor, cells, levels):
    """Append cells ``first_cell``, ``first_cell + 1``, ... to their genes' columns, each at its own ``cursor``.

    ``column_of[token]`` is the column of a gene, or -1 where it was not kept. ``cursor`` (G,) moves on.
    """
    # Some cells at a time are sorted by column in a small buffer: writing them straight to as many places of memory as
    # there are genes misses every cache.
    G, batch = cursor.size, 2048
    begins = np.empty(G + 1, np.int64)
    buffer = np.empty(0, np.uint32)  # cell within the batch, level: 16 bits each
    for begin in range(0, indptr.size - 1, batch):
        end = min(begin + batch, indptr.size - 1)
        begins[:] = 0
        for i in range(begin, end):
            for k in range(indptr[i], min(indptr[i + 1], indptr[i] + max_length)):
                column = column_of[tokens[k]]
                if column >= 0:
                    begins[column + 1] += 1
        for g in range(G):
            begins[g + 1] += begins[g]
        if buffer.size < begins[G]:
            buffer = np.empty(begins[G], np.uint32)
        for i in range(begin, end):
            for k in range(indptr[i], min(indptr[i + 1], indptr[i] + max_length)):
                column = column_of[tokens[k]]
                if column >= 0:
                    buffer[begins[column]] = ((i - begin) << 16) | (max_length - (k - indptr[i]))
                    begins[column] += 1
        k = 0
        for g in range(G):  # each beginning has moved to its column's end
            at = cursor[g]
            while k < begins[g]:
                cells[at] = first_cell + begin + (buffer[k] >> 16)
                levels[at] = buffer[k] & 0xFFFF
                at += 1
                k += 1
            cursor[g] = at


@kernel
def rank_columns(indptr, levels, n_cells, max_length, begin, end, e, n_positive, sum_squares):
    """Write ``e`` beside ``levels``, and m and sum d² of each column in [begin, end)."""
    rank = np.empty(max_length + 1, np.int64)  # counts first
    for g in range(begin, end):
        rank[:] = 0
        for k in range(indptr[g], indptr[g + 1]):
            rank[levels[k]] += 1
        m = indptr[g + 1] - indptr[g] - rank[1]
        rank[1] = 0
        below = n_cells - m
        for level in range(2, max_length + 1):
            count = rank[level]
            rank[level] = 2 * below + count - n_cells + m
            below += count
        total = 0
        for k in range(indptr[g], indptr[g + 1]):
            x = rank[levels[k]]
            e[k] = x
            total += x * x
        n_positive[g] = m
        sum_squares[g] = total - n_cells * m * m
