"""What strategies that mask groups of columns share: the groups' first columns in random order, and adding columns.

    starts      bits of the columns at which a group begins; their order is (w0, column)
    waves       of them, those with w0 in [low, high) at a time, sorted: the quota is mostly reached in the first

The width of a wave decides the time, never the result.
"""

import numpy as np

from .bits import ones_below
from .jit import inline, stage
from .philox import LOW, S32
from .rows import U0, U1, list_ones, words_for

WHOLE = 4294967296.0  # 2**32: every w0 lies below


@inline
def wave_width(groups, starts):
    """How far w0 must reach for so many of the groups that begin at ``starts`` columns; a few more are taken."""
    return np.uint64(min(WHOLE, WHOLE * (groups + 2.0 * np.sqrt(groups) + 4.0) / starts))


@stage
def collect_starts(w0, starts, width, low, high, keys):
    """List the columns of ``starts`` with w0 in [low, high), as (w0 << 32) | column; return how many there are."""
    n = 0
    for i in range(words_for(width)):
        bits = starts[i]
        if high <= LOW:
            bits &= ones_below(w0, 64 * i, high)
        if low > U0:
            bits &= ~ones_below(w0, 64 * i, low)
        n = list_ones(bits, 64 * i, keys, n)
    for k in range(n):
        keys[k] |= np.uint64(w0[keys[k]]) << S32
    return n


@inline
def add_column(masked, r):
    """Add column r; return 1 if it is new, else 0."""
    word, bit = r >> 6, U1 << np.uint64(r & 63)
    new = np.int64((masked[word] & bit) == U0)
    masked[word] |= bit
    return new
