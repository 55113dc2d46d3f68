"""Correlated genes that stand close to each other in rank (the CorrMask paper's appendix C.6).

    cell      A  B  C  D  E  F       width 3, edges A–C and B–F
    window   |A  B  C|               holds a pair: A–C
                |B  C  D|            holds none; B–F is wider
    near      x     x                of A, B, C, F, which have neighbours: a neighbour among the 3 closest on a side

Every pair of tokens at most ``width`` places apart is looked up in the shorter of its two rows of the graph, by
bisection. Windows are ``width`` tokens long: pairs in them are at most width − 1 apart.

Work split: one call takes any number of rows. A token outside the vocabulary is a gene without neighbours.
"""

import numpy as np

from .jit import kernel, stage

# What ``counts`` holds, in this order.
TOKENS, LINKED, NEAR, WINDOWS, WITH_PAIR = range(5)
N_COUNTS = 5


@stage
def linked(graph_indptr, graph_indices, a, b):
    """Tell whether genes a and b, which have neighbours, are neighbours."""
    if graph_indptr[a + 1] - graph_indptr[a] > graph_indptr[b + 1] - graph_indptr[b]:
        a, b = b, a
    low, high = graph_indptr[a], graph_indptr[a + 1]
    while low < high:
        middle = (low + high) >> 1
        if graph_indices[middle] < b:
            low = middle + 1
        else:
            high = middle
    return low < graph_indptr[a + 1] and graph_indices[low] == b


@kernel
def count_windows(indptr, tokens, graph_indptr, graph_indices, width, counts):
    """Add rows to ``counts`` (N_COUNTS,) int64; row r is ``tokens[indptr[r]:indptr[r + 1]]``."""
    size = graph_indptr.size - 1
    longest = 0
    for r in range(indptr.size - 1):
        longest = max(longest, indptr[r + 1] - indptr[r])
    near = np.zeros(longest, np.bool_)
    partner = np.zeros(longest, np.int64)  # the closest later place of a neighbour
    for r in range(indptr.size - 1):
        begin = indptr[r]
        n = indptr[r + 1] - begin
        for i in range(n):
            near[i], partner[i] = False, n + width
        for i in range(n):
            a = np.int64(tokens[begin + i])
            if not (0 <= a < size and graph_indptr[a] < graph_indptr[a + 1]):
                continue
            counts[LINKED] += 1
            for j in range(i + 1, min(i + width + 1, n)):
                b = np.int64(tokens[begin + j])
                if not (0 <= b < size and graph_indptr[b] < graph_indptr[b + 1]):
                    continue
                if linked(graph_indptr, graph_indices, a, b):
                    near[i] = near[j] = True
                    partner[i] = min(partner[i], j)
        counts[TOKENS] += n
        first_end = n + width  # where the first pair that begins here or later ends
        for i in range(n - 1, -1, -1):
            counts[NEAR] += near[i]
            first_end = min(first_end, partner[i])
            if i + width <= n:
                counts[WINDOWS] += 1
                counts[WITH_PAIR] += first_end < i + width
