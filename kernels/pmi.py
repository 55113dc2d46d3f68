"""PMI masking (Levine et al. 2021; SPEC 5): runs of columns whose neighbouring pairs are no coincidence.

    column     0  1  2  3  4  5        linked, bit r: columns r and r + 1 are maskable, and (token r, token r + 1) is a
    linked     1  1  0  0  1  .                       pair of the table
    runs       |0  1  2|    |4  5|     maximal, of two columns or more; in random order (w0, column) of their first

    table      CSR of ordered pairs: u is followed by indices[indptr[u]:indptr[u + 1]], ascending
    filter     a bit for each pair, at hash(u, v): most pairs that are not in the table are told by it alone

Called by the row loop of ``mask.py``.
"""

import numpy as np

from .bits import count_ones, lowest_one
from .groups import collect_starts, wave_width
from .jit import inline, stage
from .philox import LOW
from .rows import S6, U0, U1, sort_keys, words_for

HASH = np.uint64(0x9E3779B97F4A7C15)
TOP_BIT = np.uint64(63)


@inline
def filter_shift(filter_bits):
    """By how much a product is shifted to give a bit of the filter; its size in words is a power of two."""
    shift = np.uint64(58)
    while (U1 << (np.uint64(58) - shift)) < np.uint64(filter_bits.size):
        shift -= U1
    return shift


@stage
def has_pair(u, v, indptr, indices):
    """Whether gene u is followed by gene v: a binary search."""
    begin, end = np.int64(indptr[u]), np.int64(indptr[u + 1])
    while begin < end:
        middle = (begin + end) >> 1
        if np.int64(indices[middle]) < v:
            begin = middle + 1
        else:
            end = middle
    return begin < np.int64(indptr[u + 1]) and np.int64(indices[begin]) == v


@stage
def find_linked(tokens, first, span, pool, size, filter_bits, indptr, indices, linked):
    """Fill ``linked``; return how many of its bits are set. Tokens outside the vocabulary are in no pair."""
    shift = filter_shift(filter_bits)
    words = words_for(span)
    n = 0
    for i in range(words):
        following = pool[i + 1] << TOP_BIT if i + 1 < words else U0
        bits = pool[i] & ((pool[i] >> U1) | following)
        if bits != U0:
            passed = U0
            base = first + 64 * i
            for b in range(min(64, span - 1 - 64 * i)):
                code = np.uint64(tokens[base + b]) * np.uint64(size) + np.uint64(tokens[base + b + 1])
                at = (code * HASH) >> shift
                passed |= ((filter_bits[at >> S6] >> (at & TOP_BIT)) & U1) << np.uint64(b)
            bits &= passed
            rest = bits
            while rest != U0:
                b = lowest_one(rest)
                u, v = np.int64(tokens[base + b]), np.int64(tokens[base + b + 1])
                if not (0 <= u < size and 0 <= v < size and has_pair(u, v, indptr, indices)):
                    bits &= ~(U1 << np.uint64(b))
                rest &= rest - U1
        linked[i] = bits
        n += count_ones(bits)
    return n


@stage
def find_starts(linked, span, starts):
    """Fill the bits of the columns at which a run begins; return how many there are."""
    n, carry = 0, U0
    for i in range(words_for(span)):
        starts[i] = linked[i] & ~((linked[i] << U1) | carry)
        carry = linked[i] >> TOP_BIT
        n += count_ones(starts[i])
    return n


@stage
def add_run(linked, masked, start, room):
    """Add the run that begins at a column, at most ``room`` columns of it; return how many (runs never overlap)."""
    r, new = start, 0
    while new < room:
        word, bit = r >> 6, U1 << np.uint64(r & 63)
        masked[word] |= bit
        new += 1
        if (linked[word] & bit) == U0:
            break
        r += 1
    return new


@stage
def add_runs(tokens, first, span, pool, masked, w0, quota, size, filter_bits, indptr, indices, keys, order, spare):
    """Add runs to ``masked`` until ``quota`` columns are in, or there are no more; return how many are."""
    words = words_for(span)
    linked, starts = spare[:words], spare[words : 2 * words]
    links = find_linked(tokens, first, span, pool, size, filter_bits, indptr, indices, linked)
    runs = find_starts(linked, span, starts)
    count = 0
    low = U0
    while runs > 0 and count < quota and low <= LOW:
        high = low + wave_width((quota - count) * runs / (links + runs), runs)
        n = collect_starts(w0, starts, span, low, high, keys)
        sort_keys(keys, n, order)
        for k in range(n):
            if count == quota:
                break
            count += add_run(linked, masked, np.int64(keys[k] & LOW), quota - count)
        low = high
    return count
