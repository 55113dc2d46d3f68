"""Counting what a mask hides (SPEC: the audit): one pass over rows, their masked columns and the graph.

    column   0  1  2  3  4  5        state of a gene in this row:  absent · visible · masked
    token    A  B  C  D  A  ·        A stands twice: its first maskable column is its position
    masked   x  x  .  x  .  .        runs: |0 1| |3|

A masked column is *judged* if it is its gene's position and the gene has a neighbour in the row. Counts are int64;
the largest |rho| of visible neighbours is summed in float64 within a row, in order of columns, and left beside its
column for sums by gene, so that no result depends on how rows are divided among threads.

Work split: one call takes any number of rows; what it adds up is the caller's to combine. Assumed: ``masked`` holds
only where ``maskable`` does. A token outside the vocabulary is a gene without neighbours.
"""

import numpy as np

from .jit import kernel

# What ``counts`` holds, in this order.
MASKABLE, MASKED, RUNS, JUDGED, PAIRS, HITS, ALL_PAIRS, HIDDEN = range(8)
N_COUNTS = 8


@kernel
def audit_rows(
    indptr,
    tokens,
    maskable,
    masked,
    graph_indptr,
    graph_indices,
    graph_strength,
    counts,
    shortcut,
    strongest_visible,
    times_masked,
    times_present,
):
    """Add rows to ``counts`` (N_COUNTS,), ``times_masked`` and ``times_present`` (V,); write ``shortcut`` (rows,).

    Row r is ``tokens[indptr[r]:indptr[r + 1]]`` (``maskable`` and ``masked`` are bool beside it); ``graph_strength``
    is |rho|. ``shortcut[r]`` = sum over judged columns of the largest |rho| among visible neighbours, which is also
    written to ``strongest_visible`` (nnz,) at each judged column (float32, as ``graph_strength``); others stay.
    """
    size = graph_indptr.size - 1
    # state[g] = 2r + 1 where g is visible in row r, 2r + 2 where masked; smaller values are of earlier rows.
    state = np.zeros(size, np.int64)
    for r in range(indptr.size - 1):
        begin, end = indptr[r], indptr[r + 1]
        visible, hidden = 2 * r + 1, 2 * r + 2
        in_run = False
        for c in range(begin, end):
            if masked[c] and not in_run:
                counts[RUNS] += 1
            in_run = masked[c]
            if not maskable[c]:
                continue
            counts[MASKABLE] += 1
            counts[MASKED] += masked[c]
            gene = np.int64(tokens[c])
            if 0 <= gene < size and state[gene] < visible:
                state[gene] = hidden if masked[c] else visible
                times_present[gene] += 1
                times_masked[gene] += masked[c]

        total = 0.0
        for c in range(begin, end):
            gene = np.int64(tokens[c])
            # A second column of a gene is not its position: the state of a judged gene is taken back below.
            if not (masked[c] and 0 <= gene < size and state[gene] == hidden):
                continue
            here, hit, strongest = 0, 0, 0.0
            for j in range(graph_indptr[gene], graph_indptr[gene + 1]):
                other = abs(state[graph_indices[j]])
                if other < visible:
                    continue
                here += 1
                if other == hidden:
                    hit += 1
                else:
                    strongest = max(strongest, np.float64(graph_strength[j]))
            state[gene] = -hidden
            if here > 0:
                counts[JUDGED] += 1
                counts[PAIRS] += here
                counts[HITS] += hit
                counts[ALL_PAIRS] += graph_indptr[gene + 1] - graph_indptr[gene]
                counts[HIDDEN] += hit == here
                total += strongest
                strongest_visible[c] = strongest
        shortcut[r] = total
