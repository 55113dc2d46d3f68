"""What strategies that mask groups of columns share: the groups' first columns in random order, and adding columns.

    starts      bits of the columns at which a group begins; their order is (w0, column)
    waves       of them, those with w0 in [low, high) at a time, sorted: the quota is mostly reached in the first
    leader      of a column: the first of the group that added it. Where groups are replaced alike, its w2 is put in the
                place of the column's

The width of a wave decides the time, never the result.
"""

import numpy as np

from .bits import lowest_one, ones_below
from .jit import inline, stage
from .philox import LOW, S32, philox
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
def word_of_leader(column, draw, seed):
    """Return the w2 of a column, drawn anew: another leader's may have taken its place."""
    return philox(np.uint64(column), U0, draw & LOW, draw >> S32, seed & LOW, seed >> S32)[2]


@stage
def follow_leaders(w2, masked, width, leaders, draw, seed):
    """Put the w2 of its leader in the place of that of each masked column."""
    for i in range(words_for(width)):
        bits = masked[i]
        while bits != U0:
            r = 64 * i + lowest_one(bits)
            w2[r] = word_of_leader(leaders[r], draw, seed)
            bits &= bits - U1


@inline
def add_column(masked, r):
    """Add column r; return 1 if it is new, else 0."""
    word, bit = r >> 6, U1 << np.uint64(r & 63)
    new = np.int64((masked[word] & bit) == U0)
    masked[word] |= bit
    return new
