"""Span masking (SpanBERT, Joshi et al. 2020; SPEC 5): runs of columns whose length is geometric, p = 0.2, up to 10.

    start      every maskable column, in random order (w0, column)
    length     1 + the number of k in 1 … 9 with words(…, block 1)[0] >= floor(2^32 · (1 − 0.8^k) / (1 − 0.8^10))
    span       the start and the maskable columns after it, so many, to the row's end at most

Called by the row loop of ``mask.py``.
"""

import numpy as np

from .bits import count_ones, lowest_one
from .groups import add_column, collect_starts, wave_width, word_of_leader
from .jit import inline, stage
from .philox import LOW, S32, philox
from .rows import U0, U1, sort_keys, words_for

MEAN_GAIN = 3.3  # columns that a span adds as a rule: 3.8, less those that an earlier one holds


@inline
def span_length(w):
    """Length of a span from a random word."""
    longer = np.int64(w >= np.uint64(962321996)) + np.int64(w >= np.uint64(1732179594))
    longer += np.int64(w >= np.uint64(2348065672)) + np.int64(w >= np.uint64(2840774534))
    longer += np.int64(w >= np.uint64(3234941624)) + np.int64(w >= np.uint64(3550275296))
    longer += np.int64(w >= np.uint64(3802542233)) + np.int64(w >= np.uint64(4004355783))
    return 1 + longer + np.int64(w >= np.uint64(4165806623))


@stage
def add_span(pool, masked, start, length, width, room, w2, word):
    """Add the maskable column ``start`` and those after it, ``length`` in all; return how many are new, at most room.

    Mostly all of them are maskable and there is room: then the span is one run of bits, over two words at most.
    """
    i, shift = start >> 6, np.uint64(start & 63)
    run = (U1 << np.uint64(length)) - U1
    low, high = run << shift, U0
    if shift + np.uint64(length) > np.uint64(64):
        high = run >> (np.uint64(64) - shift)
    fits = start + length <= width and (pool[i] & low) == low and (high == U0 or (pool[i + 1] & high) == high)
    if w2 is None and fits and length <= room:
        new = count_ones(low & ~masked[i])
        masked[i] |= low
        if high != U0:
            new += count_ones(high & ~masked[i + 1])
            masked[i + 1] |= high
        return new
    new, added = 0, 0
    bits = pool[i] & ~((U1 << shift) - U1)
    while added < length and new < room:
        while bits == U0:
            i += 1
            if i >= words_for(width):
                return new
            bits = pool[i]
        r = 64 * i + lowest_one(bits)
        is_new = add_column(masked, r)
        if w2 is not None and is_new:
            w2[r] = word
        new += is_new
        bits &= bits - U1
        added += 1
    return new


@stage
def add_spans(pool, masked, w0, w2, width, maskable, quota, draw, seed, keys, order):
    """Add spans to ``masked`` until ``quota`` columns are in; return how many are.

    ``w2``: None but where spans are replaced alike; so that the usual kernel has no trace of it.
    """
    d0, d1, k0, k1 = draw & LOW, draw >> S32, seed & LOW, seed >> S32
    count = 0
    low = U0
    while count < quota and low <= LOW:
        high = low + wave_width((quota - count) / MEAN_GAIN, maskable)
        n = collect_starts(w0, pool, width, low, high, keys)
        sort_keys(keys, n, order)
        for k in range(n):
            w, _, _, _ = philox(keys[k] & LOW, U1, d0, d1, k0, k1)
            order[k] = span_length(w)
        for k in range(n):
            if count == quota:
                break
            start = np.int64(keys[k] & LOW)
            word = U0 if w2 is None else word_of_leader(start, draw, seed)
            count += add_span(pool, masked, start, np.int64(order[k]), width, quota - count, w2, word)
        low = high
    return count
