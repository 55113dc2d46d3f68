"""What every masking strategy shares: a row's columns, its random words, the top-up, the replacement (SPEC 3 and 4).

A row is worked on in *relative* columns r: r = 0 is the first column that is not padding, so that padding changes
nothing. Sets of columns (maskable, masked) are bits, 64 to a word.

    tokens        pad pad  A   B  <cls> C   D  pad          input column c
    r                      0   1   2    3   4                c − first
    maskable                1   1   0    1   1                gene tokens, not padding, not protected
    w0 w1 (r)               …   Philox words of (seed, draw_id, r, block 0)

Work split: one call takes a range of rows; each thread has a range and a scratch of its own.
"""

import numpy as np

from .bits import count_ones, lowest_one, ones_below, ones_inside, ones_unequal
from .jit import inline, stage
from .layout import COUNTED, GIVEN, HI, LO, MASK, MASK_BELOW, RANDOM_BELOW, SIZE
from .philox import LOW, S32, philox

U0, U1 = np.uint64(0), np.uint64(1)
ALL = np.uint64(0xFFFFFFFFFFFFFFFF)
S6 = np.uint64(6)


@inline
def words_for(n):
    """Number of 64-bit words for n columns."""
    return (n + 63) >> 6


@inline
def mix(x):
    """splitmix64's finaliser."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@stage
def padding_ends(tokens, attention, pad):
    """Return (first, end): the row's first column that is not padding and the one behind its last."""
    by_token = attention.size == 0
    first, end = 0, tokens.size
    if by_token:
        while first < end and tokens[first] == pad:
            first += 1
        while end > first and tokens[end - 1] == pad:
            end -= 1
    else:
        while first < end and attention[first] == 0:
            first += 1
        while end > first and attention[end - 1] == 0:
            end -= 1
    return first, end


@inline
def nonzero_flags(flags, begin, end):
    """Bit b: flags[begin + b] != 0, for the up to 64 columns [begin, end)."""
    if begin + 64 <= end:
        return ones_unequal(flags, begin, 0)
    bits = U0
    for c in range(begin, end):
        bits |= np.uint64(flags[c] != 0) << np.uint64(c - begin)
    return bits


@stage
def find_maskable(tokens, attention, protected, first, end, settings, maskable):
    """Fill the bits of maskable columns; return their number and whether all tokens lie in the vocabulary.

    A token outside the vocabulary counts as a gene (without neighbours): whether that is an error is not decided here.
    """
    lo, hi, size = settings[LO], settings[HI], settings[SIZE]
    n, known = 0, True
    for i in range(words_for(end - first)):
        begin = first + 64 * i
        stop = min(begin + 64, end)
        if begin + 64 <= end:
            genes = ones_inside(tokens, begin, lo, hi - lo)
        else:
            genes = U0
            for c in range(begin, stop):
                genes |= np.uint64(lo <= tokens[c] < hi) << np.uint64(c - begin)
        if genes != ALL:
            for c in range(begin, stop):
                if tokens[c] < 0 or tokens[c] >= size:
                    known = False
                    genes |= U1 << np.uint64(c - begin)
        if attention.size:
            genes &= nonzero_flags(attention, begin, stop)
        if protected.size:
            genes &= ~nonzero_flags(protected, begin, stop)
        maskable[i] = genes
        n += count_ones(genes)
    if attention.size:  # what is not attended to may be anything but padding, at the row's ends too
        for c in range(tokens.size):
            known &= 0 <= tokens[c] < size
    return n, known


@stage
def row_content(tokens, first, maskable, span):
    """Sum of mix((r << 32) | token) over the maskable columns, modulo 2**64."""
    total = U0
    for i in range(words_for(span)):
        if maskable[i] == ALL:
            part = U0
            for r in range(64 * i, 64 * i + 64):
                part += mix((np.uint64(r) << S32) | (np.uint64(tokens[first + r]) & LOW))
            total += part
        else:
            bits = maskable[i]
            while bits != U0:
                r = 64 * i + lowest_one(bits)
                bits &= bits - U1
                total += mix((np.uint64(r) << S32) | (np.uint64(tokens[first + r]) & LOW))
    return total


@stage
def row_draw(tokens, first, maskable, span, row, draws, mode, offset):
    """Return a row's draw_id (SPEC 3)."""
    if mode == GIVEN:
        return np.uint64(draws[row])
    if mode == COUNTED:
        return np.uint64(draws[0]) + np.uint64(offset) + np.uint64(row)
    return mix(row_content(tokens, first, maskable, span) + np.uint64(draws[0]))


@stage
def column_words(w0, w1, span, draw, seed):
    """Fill w0 and w1 of the columns 0 … span − 1, rounded up to 64."""
    d0, d1, k0, k1 = draw & LOW, draw >> S32, seed & LOW, seed >> S32
    for r in range(64 * words_for(span)):
        a, b, _, _ = philox(np.uint64(r), U0, d0, d1, k0, k1)
        w0[r] = np.uint32(a)
        w1[r] = np.uint32(b)


@stage
def count_below(w, pool, span, bound):
    """Number of columns of ``pool`` with w < bound."""
    n = 0
    for i in range(words_for(span)):
        n += count_ones(pool[i] & ones_below(w, 64 * i, bound))
    return n


@stage
def sort_keys(keys, n, buffer):
    """Sort the first n keys, all different: in short lists each key's place is the number of smaller ones."""
    if n > 128:
        keys[:n].sort()
        return
    for i in range(n):
        buffer[i] = keys[i]
    for i in range(n, 128):
        buffer[i] = ALL
    for i in range(n):
        place = count_ones(ones_below(buffer, 0, buffer[i]))
        if n > 64:
            place += count_ones(ones_below(buffer, 64, buffer[i]))
        keys[place] = buffer[i]


@stage
def take_smallest(w, pool, span, size, count, chosen, keys, buffer):
    """Move the ``count`` columns with the smallest (w, column) from ``pool`` (``size`` columns) to ``chosen``.

    Two bounds are guessed, two standard deviations below and above the expected count: columns below the lower one
    are taken 64 at a time, and only those between the two are sorted. A wrong guess is moved and looked at again.
    """
    if count <= 0:
        return
    if count >= size:
        for i in range(words_for(span)):
            chosen[i] |= pool[i]
        return
    step = 2.0 * np.sqrt(count) + 1.0
    low_guess, high_guess = count - step, count + step
    low, high = U0, LOW  # always true: columns below ``low`` <= count <= columns up to ``high``
    below = 0
    while True:
        if low_guess > 0.0:
            bound = np.uint64(4294967295.0 * (low_guess / size))
            if low < bound < high:
                n = count_below(w, pool, span, bound)
                if n <= count:
                    low, below = bound, n
                else:
                    high, high_guess = bound, low_guess
                    low_guess -= 2.0 * step
                    continue
        if high_guess < size:
            bound = np.uint64(4294967295.0 * (high_guess / size))
            if low < bound < high:
                n = count_below(w, pool, span, bound)
                if n >= count:
                    high = bound
                else:
                    low, below, low_guess = bound, n, high_guess
                    high_guess += 2.0 * step
                    continue
        break
    between = 0
    for i in range(words_for(span)):
        bits = pool[i]
        inside = bits & ones_below(w, 64 * i, low)
        chosen[i] |= inside
        bits &= ~inside
        if high < LOW:
            bits &= ones_below(w, 64 * i, high)
        while bits != U0:
            r = 64 * i + lowest_one(bits)
            bits &= bits - U1
            keys[between] = (np.uint64(w[r]) << S32) | np.uint64(r)
            between += 1
    sort_keys(keys, between, buffer)
    for k in range(count - below):
        r = keys[k] & LOW
        chosen[r >> S6] |= U1 << (r & np.uint64(63))


@stage
def draw_replacements(masked, span, draw, seed, settings, columns, drawn):
    """List the masked columns and what replaces each (−1: nothing); return how many there are.

    80/10/10: w2 < mask_below → <mask>; else w2 < random_below → the gene lo + (w3 · (hi − lo) >> 32); else unchanged.
    """
    n = 0
    for i in range(words_for(span)):
        bits = masked[i]
        while bits != U0:
            columns[n] = 64 * i + lowest_one(bits)
            bits &= bits - U1
            n += 1
    d0, d1, k0, k1 = draw & LOW, draw >> S32, seed & LOW, seed >> S32
    mask_below, random_below = np.uint64(settings[MASK_BELOW]), np.uint64(settings[RANDOM_BELOW])
    lo, width, mask = settings[LO], np.uint64(settings[HI] - settings[LO]), settings[MASK]
    for k in range((n + 15) // 16 * 16):  # whole vectors; columns has room behind n
        _, _, w2, w3 = philox(np.uint64(columns[k]) & LOW, U0, d0, d1, k0, k1)
        gene = lo + np.int64((w3 * width) >> S32)
        drawn[k] = mask if w2 < mask_below else (gene if w2 < random_below else -1)
    return n


@stage
def write_row(tokens, first, n, columns, drawn, pad, out, labels, attention, positions):
    """Write one row of the batch: tokens with their replacements, padding, labels, attention, masked positions.

    ``attention`` may be empty.
    """
    size = tokens.size
    out[:size] = tokens
    out[size:] = pad
    labels[:] = -100
    for k in range(n):
        c = np.uint64(first + columns[k])
        labels[c] = tokens[c]
        if drawn[k] >= 0:
            out[c] = drawn[k]
        positions[k] = c
    positions[n:] = -1
    if attention.size:
        for c in range(size):
            attention[c] = tokens[c] != pad
        attention[size:] = 0
