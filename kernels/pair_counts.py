"""Counts of genes, and of ordered pairs of neighbouring genes, over ragged cells.

    cell       A  B  C  B'          pairs  (A, B)  (B, C)  (C, B')
    place      of a gene: its row and column in the table of counts, −1: not counted

Work split: each thread has some rows of the table, and reads all cells. Assumed: tokens inside the vocabulary.
"""

import numpy as np

from .jit import kernel


@kernel
def add_genes(indptr, tokens, counts):
    """Add each token to the counts of its gene; return the number of pairs of neighbouring tokens."""
    pairs = 0
    for cell in range(indptr.size - 1):
        length = indptr[cell + 1] - indptr[cell]
        pairs += max(length - 1, 0)
    for k in range(tokens.size):
        counts[tokens[k]] += 1
    return pairs


@kernel
def add_pairs(indptr, tokens, place, low, table):
    """Add the pairs whose first gene has a place in [low, low + rows of the table)."""
    rows = table.shape[0]
    for cell in range(indptr.size - 1):
        begin, end = indptr[cell], indptr[cell + 1]
        if end - begin < 2:
            continue
        u = place[tokens[begin]]
        for k in range(begin + 1, end):
            v = place[tokens[k]]
            row = u - low
            if v >= 0 and 0 <= row < rows:
                table[row, v] += np.uint32(1)
            u = v
