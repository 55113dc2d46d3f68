"""Spearman's rho of two genes over the cells that hold both (appendix A.4, lines 22 to 26).

The commoner gene is written once into a dense column of levels (0 = absent); its partners' sparse columns stream past:

    common gene   level in every cell:    | 0 | 7 | 3 | 0 | 5 |
    partner       cells 1 3 4, levels 2 6 6   →   overlap: (7, 2) (5, 6)

Levels are small integers, so ranks within the overlap come from counting. With n cells in the overlap, a level that c
of them have, and b below it, has the doubled, centred rank d = 2·b + c - n; all sums are int64.

    rho = sum d_u·d_v / sqrt(sum d_u² · sum d_v²), or 0 where either gene is constant over the overlap

Work split: a task is a range of pairs, which lie sorted by their common gene. Scratch: one dense column a task.
"""

import numpy as np
from llvmlite import ir
from numba.extending import intrinsic

from .bits import lowest_one
from .jit import inline, kernel, stage

LOW, S16 = np.uint32(0xFFFF), np.uint32(16)


@intrinsic
def opaque(typingctx, x):
    """Return the integer ``x``, of which the compiler no longer knows where it comes from."""

    def codegen(context, builder, signature, args):
        kind = args[0].type
        return builder.asm(ir.FunctionType(kind, [kind]), "", "=r,0", args, side_effect=False)

    return x(x), codegen


@stage
def rank_levels(n, rank):
    """Turn counts of levels into doubled, centred ranks; return sum d²."""
    cubes = 0  # 3 · sum d² = n³ - sum count³: from the counts alone, and so in vectors
    for level in range(rank.size):
        cubes += rank[level] * rank[level] * rank[level]
    next_rank = -n
    for level in range(rank.size):
        count = rank[level]
        rank[level] = next_rank + count
        next_rank += 2 * count
    return (n * n * n - cubes) // 3


@stage
def rank_few_levels(n, rank, touched):
    """Do the same, visiting only the levels that have a bit in ``touched``, which is left zeroed."""
    cubes, next_rank = 0, -n
    for word in range(touched.size):
        bits = touched[word]
        touched[word] = 0
        while bits != 0:
            level = np.uint64(64 * word + lowest_one(bits))
            bits &= bits - np.uint64(1)
            count = rank[level]
            rank[level] = next_rank + count
            next_rank += 2 * count
            cubes += count * count * count
    return (n * n * n - cubes) // 3


@inline
def touch(touched, level):
    """Set the bit of a level."""
    touched[level >> np.uint32(6)] |= np.uint64(1) << np.uint64(level & np.uint32(63))


@kernel
def correlate_overlaps(
    common, partner, begin, end, indptr, cells, levels, n_cells, max_length, min_cooccurrence, overlap, rho
):
    """Write ``overlap`` and ``rho`` of pairs [begin, end), sorted by ``common``; rho 0 below ``min_cooccurrence``."""
    dense = np.zeros(n_cells, np.uint16)
    longest = 0
    for i in range(begin, end):
        longest = max(longest, indptr[partner[i] + 1] - indptr[partner[i]])
    both = np.empty(longest, np.uint32)  # the overlap: level of the common gene, then of the partner, 16 bits each
    rank_u, rank_v = np.zeros(max_length + 1, np.int64), np.zeros(max_length + 1, np.int64)
    touched_u, touched_v = np.zeros(max_length // 64 + 1, np.uint64), np.zeros(max_length // 64 + 1, np.uint64)
    current = -1
    for i in range(begin, end):
        if common[i] != current:
            if current >= 0:
                dense[:] = 0
            current = common[i]
            a, b = indptr[current], indptr[current + 1]
            cells_u, levels_u = cells[a:b], levels[a:b]
            for k in range(b - a):
                dense[np.uint32(cells_u[k])] = levels_u[k]

        # Slices and unsigned indices spare a look at the index's sign for every element.
        a, b = indptr[partner[i]], indptr[partner[i] + 1]
        cells_v, levels_v, at = cells[a:b], levels[a:b], np.uint64(0)
        for k in range(b - a):
            level = np.uint32(dense[np.uint32(cells_v[k])])
            both[at] = (level << S16) | np.uint32(levels_v[k])  # written over by the next if absent: no branch
            at += np.uint64(level != 0)
        n = np.int64(at)
        overlap[i] = n
        rho[i] = 0.0
        if n < min_cooccurrence:
            continue

        for k in range(n):
            rank_u[both[k] >> S16] += 1
            rank_v[both[k] & LOW] += 1
        few = n < max_length // 4
        if few:
            for k in range(n):
                touch(touched_u, both[k] >> S16)
                touch(touched_v, both[k] & LOW)
            squares_u, squares_v = rank_few_levels(n, rank_u, touched_u), rank_few_levels(n, rank_v, touched_v)
        else:
            squares_u, squares_v = rank_levels(n, rank_u), rank_levels(n, rank_v)
        total = 0
        for k in range(n):
            pair = opaque(both[k])  # LLVM would run this sum in vectors, and gathering is slower than loading
            total += rank_u[pair >> S16] * rank_v[pair & LOW]
        if few:
            for k in range(n):
                rank_u[both[k] >> S16] = 0
                rank_v[both[k] & LOW] = 0
        else:
            rank_u[:] = 0
            rank_v[:] = 0
        if squares_u > 0 and squares_v > 0:
            rho[i] = np.float64(total) / np.sqrt(np.float64(squares_u) * np.float64(squares_v))
