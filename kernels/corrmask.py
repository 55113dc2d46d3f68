"""CorrMask: correlated genes of a cell are masked together (Hacohen et al. 2026, Algorithm 2; SPEC 4).

    seeds      columns whose gene has neighbours, in random order (w0, column)
    partners   of a seed: its neighbours in the cell, the ``max_partners`` first by a random key
    masked     seeds and partners until the quota Q = floor(B·λ), then a random top-up to B = floor(n·p)

    gene table   pos[gene] = base + first maskable column; an entry below ``base`` is left from an earlier row,
                 so that the table is never cleared

Work split: one call takes a range of rows. Assumed: arrays contiguous, the scratch large enough (``masking.py``).
"""

import numpy as np

from .bits import lowest_one, ones_below, ones_inside, prefetch
from .jit import inline, kernel, stage
from .philox import LOW, S32, philox
from .rows import (
    ALL,
    PAD,
    PARTNERS,
    U0,
    U1,
    column_words,
    draw_replacements,
    find_maskable,
    padding_ends,
    row_draw,
    sort_keys,
    take_smallest,
    words_for,
    write_row,
)

AHEAD = 4  # seeds whose neighbours are asked for before their turn
EVERY_COLUMN = 2**30  # base + column never reaches further above base than this


@stage
def place_genes(tokens, first, span, maskable, known, base, pos):
    """pos[gene] = base + its first maskable column: written from the last column to the first, so the first stays."""
    for i in range(words_for(span) - 1, -1, -1):
        bits = maskable[i]
        if bits == ALL and known:
            for r in range(64 * i + 63, 64 * i - 1, -1):
                pos[np.uint64(tokens[first + r])] = base + r
        else:
            for r in range(min(64 * i + 63, span - 1), 64 * i - 1, -1):
                token = tokens[first + r]
                if (bits >> np.uint64(r & 63)) & U1 and 0 <= token < pos.size:
                    pos[token] = base + r


@inline
def add_column(masked, r):
    """Add column r; return 1 if it is new, else 0."""
    word, bit = r >> 6, U1 << np.uint64(r & 63)
    new = np.int64((masked[word] & bit) == U0)
    masked[word] |= bit
    return new


@stage
def find_present(begin, end, indices, base, pos, looked, found, column):
    """List the neighbours that are in the cell: found[i] is their place j in the CSR row; return how many there are."""
    n = np.int64(end) - np.int64(begin)
    for j in range(n):
        looked[j] = pos[np.uint64(indices[begin + j])]
    k = 0
    for i in range(words_for(n)):
        bits = ones_inside(looked, 64 * i, base, EVERY_COLUMN)
        if 64 * i + 64 > n:
            bits &= (U1 << np.uint64(n & 63)) - U1
        while bits != U0:
            j = 64 * i + lowest_one(bits)
            bits &= bits - U1
            found[k] = j
            column[k] = looked[j] - base
            k += 1
    return k


@stage
def choose_partners(seed_column, k, most, draw, seed, found, keys, buffer):
    """Bring the ``most`` of the k present neighbours with the smallest (key, j) to the front of ``keys``.

    Neighbour j of the CSR row has the key words(…, seed_column, 1 + j div 4)[j mod 4].
    """
    d0, d1, k0, k1 = draw & LOW, draw >> S32, seed & LOW, seed >> S32
    c0 = np.uint64(seed_column)
    for i in range((k + 7) // 8 * 8):  # whole vectors; found has room behind k
        j = np.uint64(found[i]) & LOW
        a, b, c, d = philox(c0, U1 + (j >> np.uint64(2)), d0, d1, k0, k1)
        word = j & np.uint64(3)
        low = a if word == U0 else b
        high = c if word == np.uint64(2) else d
        keys[i] = ((low if word < np.uint64(2) else high) << S32) | np.uint64(i)
    if most > 8:
        keys[:k].sort()
        return
    for i in range(k, (k + 7) // 8 * 8):
        keys[i] = ALL
    after = U0
    for m in range(min(most, k)):  # the smallest key, then the smallest behind it, …: short loops without a branch
        least = ALL
        for i in range((k + 7) // 8 * 8):
            least = min(least, keys[i] - after)  # wraps around for keys that are out already
        buffer[m] = least + after
        after = buffer[m] + U1
    for m in range(min(most, k)):
        keys[m] = buffer[m]


@stage
def expand_seeds(
    tokens, first, span, maskable, masked, w0, n, quota, draw, seed, indptr, indices, partners, base, pos, looked, found, column, keys
):
    """Add seeds and partners to ``masked`` until ``quota`` columns are in; return how many are.

    Seeds are taken in waves: a wave holds the columns with w0 in [low, high), sorted; most rows need one.
    """
    count = 0
    low = U0
    per_wave = 12.0 + 1.1 * quota / (1.0 + min(partners, 4))
    width = np.uint64(min(4294967296.0, 4294967296.0 * per_wave / n))
    drawn, buffer = keys[keys.size // 3 : 2 * (keys.size // 3)], keys[2 * (keys.size // 3) :]
    while count < quota and low <= LOW:
        high = low + width
        seeds = 0
        for i in range(words_for(span)):
            bits = maskable[i]
            if high <= LOW:
                bits &= ones_below(w0, 64 * i, high)
            if low > U0:
                bits &= ~ones_below(w0, 64 * i, low)
            while bits != U0:
                r = 64 * i + lowest_one(bits)
                bits &= bits - U1
                token = tokens[first + r]
                if 0 <= token < pos.size and pos[token] == base + r and indptr[token] < indptr[token + 1]:
                    keys[seeds] = (np.uint64(w0[r]) << S32) | np.uint64(r)
                    seeds += 1
        sort_keys(keys, seeds, buffer)
        for s in range(seeds):
            if s + AHEAD < seeds:  # the neighbour table is far larger than the cache
                ahead = tokens[first + np.int64(keys[s + AHEAD] & LOW)]
                for j in range(indptr[ahead], indptr[ahead + 1], 16):
                    prefetch(indices, j)
            r = np.int64(keys[s] & LOW)
            count += add_column(masked, r)
            if count == quota or partners == 0:
                if count == quota:
                    break
                continue
            token = tokens[first + r]
            k = find_present(indptr[token], indptr[token + 1], indices, base, pos, looked, found, column)
            if k <= partners and count + k <= quota:  # all are taken and none is cut off: their order is no matter
                for i in range(k):
                    count += add_column(masked, column[i])
            else:
                choose_partners(r, k, partners, draw, seed, found, drawn, buffer)
                for i in range(min(k, partners)):
                    count += add_column(masked, column[np.int64(drawn[i] & LOW)])
                    if count == quota:
                        break
            if count == quota:
                break
        low = high
        width *= np.uint64(4)
    return count


@kernel
def corrmask(
    begin, end, row_ptr, tokens, seen, protected, draws, mode, offset, seed, rates, settings, indptr, indices,
    base, pos, w0, w1, pool, masked, keys, looked, found, column, columns, drawn, out, attention, labels, positions,
):  # fmt: skip
    """Mask the rows [begin, end) of a batch.

    Row i is tokens[row_ptr[i]:row_ptr[i + 1]], written into row i of the outputs, padded on the right. ``seen`` and
    ``protected`` (1: attended to, 1: never masked) lie like ``tokens``; both, and the output ``attention``, may be
    empty. Returns (row, base): the first row that holds a token outside the vocabulary, or −1.
    """
    key = np.uint64(seed)
    bad = -1
    third = keys.size // 3
    for row in range(begin, end):
        here = slice(row_ptr[row], row_ptr[row + 1])
        cell, visible, fixed = tokens[here], seen[here], protected[here]
        first, last = padding_ends(cell, visible, settings[PAD])
        span = last - first
        n, known = find_maskable(cell, visible, fixed, first, last, settings, pool)
        if not known and bad < 0:
            bad = row
        budget = np.int64(np.floor(n * rates[0]))
        quota = np.int64(np.floor(budget * rates[1]))
        masked[: words_for(span)] = U0
        k = 0
        if budget > 0:
            draw = row_draw(cell, first, pool, span, row, draws, mode, offset)
            column_words(w0, w1, span, draw, key)
            count = 0
            if quota > 0:
                place_genes(cell, first, span, pool, known, base, pos)
                count = expand_seeds(
                    cell, first, span, pool, masked, w0, n, quota, draw, key, indptr, indices, settings[PARTNERS],
                    base, pos, looked, found, column, keys,
                )  # fmt: skip
            for i in range(words_for(span)):
                pool[i] &= ~masked[i]
            take_smallest(w1, pool, span, n - count, budget - count, masked, keys, keys[third:])
            k = draw_replacements(masked, span, draw, key, settings, columns, drawn)
        write_row(
            cell, first, k, columns, drawn, settings[PAD], out[row], labels[row],
            attention[row] if attention.size else attention[0], positions[row],
        )  # fmt: skip
        base += span
    return bad, base
