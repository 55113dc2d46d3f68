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
from .jit import inline, maker, stage
from .lanes import fill_words, sort_by_rank, write_replaced
from .layout import COUNTED, GIVEN, HI, LO, MASK, MASK_BELOW, PAD, RANDOM_BELOW, SIZE
from .philox import LOW, S32
from .weights import key_at, scale_of

U0, U1 = np.uint64(0), np.uint64(1)
ALL = np.uint64(0xFFFFFFFFFFFFFFFF)
S6 = np.uint64(6)


@inline
def words_for(n):
    """Number of 64-bit words for n columns."""
    return (n + 63) >> 6


@inline
def copy(values, out):
    """out[:values.size] = values, for which Numba would make an array, lest they overlap."""
    for i in range(values.size):
        out[i] = values[i]


@inline
def mix(x):
    """splitmix64's finaliser."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@stage
def padding_ends(tokens, attention_mask, pad):
    """Return (first, end): the row's first column that is not padding and the one after its last."""
    by_token = attention_mask.size == 0
    first, end = 0, tokens.size
    if by_token:
        while first < end and tokens[first] == pad:
            first += 1
        while end > first and tokens[end - 1] == pad:
            end -= 1
    else:
        while first < end and attention_mask[first] == 0:
            first += 1
        while end > first and attention_mask[end - 1] == 0:
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
def find_maskable(tokens, attention_mask, special_tokens_mask, first, end, settings, maskable):
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
        if attention_mask.size:
            genes &= nonzero_flags(attention_mask, begin, stop)
        if special_tokens_mask.size:
            genes &= ~nonzero_flags(special_tokens_mask, begin, stop)
        maskable[i] = genes
        n += count_ones(genes)
    if attention_mask.size:  # what is not attended to may be anything but padding, at the row's ends too
        for c in range(tokens.size):
            known &= 0 <= tokens[c] < size
    return n, known


@stage
def row_content(tokens, first, maskable, width):
    """Sum of mix((r << 32) | token) over the maskable columns, modulo 2**64."""
    total = U0
    for i in range(words_for(width)):
        if maskable[i] == ALL:
            begin = np.uint64(64 * i)
            here = tokens[first + 64 * i :]  # an index that may be negative would be looked at, and not in vectors
            for k in range(64):
                total += mix(((begin + np.uint64(k)) << S32) | (np.uint64(here[k]) & LOW))
        else:
            bits = maskable[i]
            while bits != U0:
                r = 64 * i + lowest_one(bits)
                bits &= bits - U1
                total += mix((np.uint64(r) << S32) | (np.uint64(tokens[first + r]) & LOW))
    return total


@stage
def row_draw(tokens, first, maskable, width, row, draws, mode, offset):
    """Return a row's draw_id (SPEC 3)."""
    if mode == GIVEN:
        return np.uint64(draws[row])
    if mode == COUNTED:
        return np.uint64(draws[0]) + np.uint64(offset) + np.uint64(row)
    return mix(row_content(tokens, first, maskable, width) + np.uint64(draws[0]))


@inline
def column_words(w0, w1, w2, w3, begin, block, draw, seed):
    """Fill the words of a block of AT_ONCE columns from ``begin`` on."""
    fill_words(w0, w1, w2, w3, begin, block, draw & LOW, draw >> S32, seed & LOW, seed >> S32)


@inline
def list_ones(bits, begin, out, n):
    """Append begin + b for each bit b of a word to the n columns in ``out``; return how many there are then.

    Four are written at a time, wanted or not: a branch for each would be guessed wrong as often as not.
    """
    end = n + count_ones(bits)
    while True:
        for k in range(4):
            out[n + k] = np.uint64(begin + lowest_one(bits))
            bits &= bits - U1
        n += 4
        if n >= end:
            return end


@maker
def sort_many(keys, n):
    """Sort the first n keys, in any number."""
    keys[:n].sort()


@stage
def sort_keys(keys, n, buffer):
    """Sort the first n keys, all different; both arrays need room up to the next multiple of 16 after n."""
    if n > 128:
        sort_many(keys, n)
    elif n > 1:
        copy(keys[:n], buffer)
        sort_by_rank(buffer, n, keys)


@stage
def split_by_bounds(w, pool, width, low, high, inside, between):
    """inside: the columns of ``pool`` with w < low; between: those from there up to ``high``; return both numbers."""
    n, more = 0, 0
    for i in range(words_for(width)):
        bits = pool[i]
        below = bits & ones_below(w, 64 * i, low)
        rest = bits & ones_below(w, 64 * i, high) & ~below
        inside[i], between[i] = below, rest
        n += count_ones(below)
        more += count_ones(rest)
    return n, more


@inline
def revised_scale(scale, key, below, size):
    """Return the scale by which ``below`` of ``size`` columns have a smaller key."""
    if below == 0:
        return 16.0 * scale
    return scale_of(key, below / size) if below < size else scale / 16.0


@stage
def take_smallest(w, pool, width, size, count, chosen, keys, buffer, scales=None):
    """Move the ``count`` columns with the smallest (w, column) from ``pool`` (``size`` columns) to ``chosen``.

    Two bounds are guessed, two standard deviations below and above the expected count: columns below the lower one
    are taken 64 at a time, and only those between the two are sorted. After a wrong guess they move apart. ``scales``
    are given where ``w`` are keys by weight: the first is that of the rows before; a wrong guess gives this row's.
    """
    if count <= 0:
        return
    words = words_for(width)
    if count >= size:
        for i in range(words):
            chosen[i] |= pool[i]
        return
    inside, between = buffer[:words], buffer[words : 2 * words]
    step = 2.0 * np.sqrt(count) + 1.0
    scale = 0.0 if scales is None else scales[0]
    while True:
        from_share, to_share = max((count - step) / size, 0.0), min((count + step) / size, 1.0)
        if scales is None:
            low, high = np.uint64(4294967295.0 * from_share), np.uint64(4294967295.0 * to_share)
        else:
            low, high = key_at(from_share, scale), key_at(to_share, scale)
        below, more = split_by_bounds(w, pool, width, low, high, inside, between)
        if below <= count and below + more >= count:
            break
        if low == U0 and high == LOW:  # only words of 2**32 − 1 are left out
            for i in range(words):
                between[i] = pool[i] & ~inside[i]
            break
        step *= 2.0
        if scales is not None:
            scale = revised_scale(scale, low if below > count else high, below if below > count else below + more, size)
    n = 0
    for i in range(words):
        chosen[i] |= inside[i]
        n = list_ones(between[i], 64 * i, keys, n)
    for k in range(n):
        keys[k] |= np.uint64(w[keys[k]]) << S32
    sort_keys(keys, n, buffer)
    for k in range(count - below):
        r = keys[k] & LOW
        chosen[r >> S6] |= U1 << (r & np.uint64(63))
    if scales is not None:
        last = keys[count - below - 1] >> S32 if count > below else low
        scales[0] = 0.5 * scales[0] + 0.5 * scale_of(last, count / size)


@stage
def write_row(tokens, first, width, masked, w2, w3, settings, out, labels, out_attention, positions, columns):
    """Write one row of the batch: tokens with their replacements, padding, labels, attention, masked positions.

    80/10/10: w2 < mask_below → <mask>; else w2 < random_below → the gene lo + (w3 · (hi − lo) >> 32); else unchanged.
    ``out_attention`` may be empty.
    """
    size, pad, last = tokens.size, settings[PAD], first + width
    copy(tokens[:first], out)
    labels[:first] = -100
    write_replaced(
        tokens, first, width, masked, w2, w3, settings[MASK_BELOW], settings[RANDOM_BELOW], settings[LO],
        settings[HI] - settings[LO], settings[MASK], out, labels,
    )  # fmt: skip
    copy(tokens[last:], out[last:])
    out[size:], labels[last:] = pad, -100
    n = 0
    for i in range(words_for(width)):
        n = list_ones(masked[i], first + 64 * i, columns, n)
    copy(columns[:n], positions)
    positions[n:] = -1
    if out_attention.size:
        for c in range(size):
            out_attention[c] = tokens[c] != pad
        out_attention[size:] = 0
