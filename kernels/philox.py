"""Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"): the only source of randomness.

    words(seed, draw_id, column, block) = philox(counter = (column, block, draw_id low, draw_id high),
                                                 key     = (seed low, seed high))      → w0 w1 w2 w3

Ten rounds of   (c0, c1, c2, c3) → (hi(M1·c2) ^ c1 ^ k0,  lo(M1·c2),  hi(M0·c0) ^ c3 ^ k1,  lo(M0·c0)).
Words are held in uint64 with the upper half zero: LLVM then uses the 32×32 → 64 vector multiply.
"""

import numpy as np

from .jit import inline, kernel

M0, M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
W0, W1 = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)
LOW = np.uint64(0xFFFFFFFF)
ROUNDS = 10
S32 = np.uint64(32)

SAMPLE_COLUMN = np.uint64(2**32 - 1)  # the column of section 2: which cells a graph is built from
RATE_COLUMN = np.uint64(2**32 - 2)  # the column that a row's own rates are drawn from
START_COLUMN = np.uint64(2**32 - 3)  # the column that says where a row's circle of modules is entered (section 5)
SETS_BLOCK = np.uint64(2**32 - 2)  # the block of gene sets, whose numbers stand for columns (section 5)


@inline
def philox_round(c0, c1, c2, c3, k0, k1):
    """Return the counter and the key after one round."""
    p0 = M0 * c0
    p1 = M1 * c2
    return (p1 >> S32) ^ c1 ^ k0, p1 & LOW, (p0 >> S32) ^ c3 ^ k1, p0 & LOW, (k0 + W0) & LOW, (k1 + W1) & LOW


@inline
def philox(c0, c1, c2, c3, k0, k1):
    """Return four words, each in a uint64, of four counter words and two key words (uint64, upper half zero)."""
    for _ in range(ROUNDS):
        c0, c1, c2, c3, k0, k1 = philox_round(c0, c1, c2, c3, k0, k1)
    return c0, c1, c2, c3


@kernel
def words(seed, draw_id, column, block):
    """Words of one counter (uint64 arguments, uint64 results below 2**32)."""
    return philox(column, block, draw_id & LOW, draw_id >> S32, seed & LOW, seed >> S32)


@kernel
def sample_keys(seed, first, out):
    """out[i] = (w0 << 32) | w1 of draw first + i: the order in which cells enter a graph's sample (section 2)."""
    k0, k1 = seed & LOW, seed >> S32
    for i in range(out.size):
        draw = np.uint64(first + i)
        w0, w1, _, _ = philox(SAMPLE_COLUMN, np.uint64(0), draw & LOW, draw >> S32, k0, k1)
        out[i] = (w0 << S32) | w1
