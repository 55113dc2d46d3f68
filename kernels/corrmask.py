"""CorrMask: correlated genes of a cell are masked together (Hacohen et al. 2026, Algorithm 2; SPEC 4).

    seeds      columns whose gene has neighbours, in random order (w0, column)
    partners   of a seed: its neighbours in the cell, the ``max_partners`` first by a random key
    masked     seeds and partners until the quota Q = floor(B·λ), then a random top-up to B = floor(n·p)

    gene table   pos[gene] = base + first maskable column; an entry below ``base`` is left from an earlier row,
                 so that the table is never cleared

Called by the row loop of ``mask.py``. Assumed: arrays contiguous, the scratch large enough (``masking.py``).
"""

import numpy as np

from .bits import count_ones, lowest_one, ones_below, ones_inside, prefetch
from .groups import add_column
from .jit import inline, stage
from .philox import LOW, S32, philox
from .rows import ALL, S6, U0, U1, sort_keys, words_for

TOP = np.uint32(0xFFFFFFFF)
SIZE_MAX = 2**62


@inline
def largest_entry(pos):
    """Return what an entry of the gene table may not exceed: it is uint16, or int32 for very long rows."""
    return 0xFFFF if pos.itemsize == 2 else 0x7FFFFFFF


@stage
def place_genes(tokens, first, span, pool, known, base, pos):
    """pos[gene] = base + its first maskable column: written from the last column to the first, so the first stays."""
    for i in range(words_for(span) - 1, -1, -1):
        bits = pool[i]
        if bits == ALL and known:
            for r in range(64 * i + 63, 64 * i - 1, -1):
                pos[np.uint64(tokens[first + r])] = base + r
        else:
            for r in range(min(64 * i + 63, span - 1), 64 * i - 1, -1):
                token = tokens[first + r]
                if (bits >> np.uint64(r & 63)) & U1 and 0 <= token < pos.size:
                    pos[np.uint64(token)] = base + r


@stage
def collect_seeds(tokens, first, span, pool, w0, low, high, connected, indptr, indices, base, pos, keys):
    """List the seeds with w0 in [low, high), as (w0 << 32) | column; return how many there are."""
    seeds = 0
    for i in range(words_for(span)):
        bits = pool[i]
        if high <= LOW:
            bits &= ones_below(w0, 64 * i, high)
        if low > U0:
            bits &= ~ones_below(w0, 64 * i, low)
        while bits != U0:
            r = 64 * i + lowest_one(bits)
            bits &= bits - U1
            gene = np.uint64(min(np.uint64(tokens[first + r]), np.uint64(64 * connected.size - 1)))
            keys[seeds] = (np.uint64(w0[r]) << S32) | np.uint64(r)  # written over by the next if it is no seed
            is_seed = (connected[gene >> S6] >> (gene & np.uint64(63))) & np.uint64(pos[gene] == base + r)
            seeds += np.int64(is_seed & U1)
    for s in range(seeds):  # the neighbour table is far larger than the cache: ask for it before it is needed
        gene = np.uint64(tokens[first + np.int64(keys[s] & LOW)])
        for line in range(4):
            prefetch(indices, indptr[gene] + 32 * line)
    return seeds


@stage
def key_neighbors(r, begin, n, indices, draw, seed, base, above, pos, looked, keys):
    """Look up the n neighbours of the seed in column r, and key them; return how many are in the cell.

    Neighbour j has the entry (j mod 4)·quarter + j div 4, so that the four words of a block go to four rows:

        j     0  4  8 …   1  5  9 …   2  6 10 …   3  7 11 …       keys[entry] = words(…, r, 1 + j div 4)[j mod 4]
        word  w0 ………     w1 ………      w2 ………      w3 ………         looked[entry] = pos of the gene

    A neighbour that is not in the cell (looked < base) has the key TOP. Entries fill a multiple of 64.
    """
    d0, d1, k0, k1 = draw & LOW, draw >> S32, seed & LOW, seed >> S32
    c0 = np.uint64(r)
    quarter = np.uint64(16 * words_for(n))
    size = 64 * words_for(n)
    for e in range(size):
        looked[e] = 0
    first = np.uint64(begin)
    for j in range(np.uint64(n)):
        looked[(j & np.uint64(3)) * quarter + (j >> np.uint64(2))] = pos[np.uint64(indices[first + j])]
    for b in range(quarter):
        w0, w1, w2, w3 = philox(c0, U1 + b, d0, d1, k0, k1)
        keys[b] = np.uint32(w0)
        keys[quarter + b] = np.uint32(w1)
        keys[quarter + quarter + b] = np.uint32(w2)
        keys[quarter + quarter + quarter + b] = np.uint32(w3)
    for e in range(size):
        keys[e] = keys[e] if looked[e] >= base else TOP
    k = 0
    for i in range(0, size, 64):
        k += count_ones(ones_inside(looked, i, base, above))
    return k


@inline
def count_keys_below(keys, size, bound):
    """Count the first ``size`` keys that lie below a bound."""
    inside = 0
    for i in range(0, size, 64):
        inside += count_ones(ones_below(keys, i, np.uint64(bound)))
    return inside


@stage
def bound_of_smallest(keys, size, k, most):
    """Return a bound below which exactly ``most`` of the k keys lie, or 0 where equal keys leave none.

    A guess lets the expected number in; then the next key is let in, or the last one out, until the number is right.
    """
    bound = np.uint32(4294967295.0 * (most + 0.5) / k)
    inside = count_keys_below(keys, size, bound)
    while inside < most:
        least = TOP
        for e in range(size):
            least = min(least, keys[e] if keys[e] >= bound else TOP)
        if least == TOP:
            return U0
        bound = least + np.uint32(1)
        inside += 1
    while inside > most:
        largest = np.uint32(0)
        for e in range(size):
            largest = max(largest, keys[e] if keys[e] < bound else np.uint32(0))
        bound = largest
        inside -= 1
    return np.uint64(bound) if count_keys_below(keys, size, bound) == most else U0


@stage
def add_partners(n, k, most, base, above, masked, looked, keys, order, spare):
    """Add the partners of a seed, none of which the quota cuts off: their order is no matter."""
    size = 64 * words_for(n)
    bound = U0
    if k > most:
        bound = bound_of_smallest(keys, size, k, most)
        if bound == U0:
            add_in_order(n, most, SIZE_MAX, base, masked, looked, keys, order, spare)
            return
    for i in range(0, size, 64):
        bits = ones_below(keys, i, bound) if k > most else ones_inside(looked, i, base, above)
        while bits != U0:
            r = np.uint64(looked[i + lowest_one(bits)] - base)
            bits &= bits - U1
            masked[r >> S6] |= U1 << (r & np.uint64(63))


@stage
def add_in_order(n, most, room, base, masked, looked, keys, order, spare):
    """Add the partners of a seed by (key, j) until ``room`` new columns are in; return how many are."""
    k, quarter = 0, 16 * words_for(n)
    for j in range(n):
        entry = (j & 3) * quarter + (j >> 2)
        order[k] = (np.uint64(keys[entry]) << S32) | np.uint64(j)
        k += np.int64(looked[entry] >= base)
    sort_keys(order, k, spare)
    new = 0
    for i in range(min(k, most)):
        if new == room:
            break
        j = np.int64(order[i] & LOW)
        new += add_column(masked, np.int64(looked[(j & 3) * quarter + (j >> 2)] - base))
    return new


@stage
def expand_seeds(
    tokens, first, span, pool, masked, w0, maskable, quota, draw, seed, connected, indptr, indices, most,
    base, pos, pace, seed_keys, looked, keys, order, spare,
):  # fmt: skip
    """Add seeds and partners to ``masked`` until ``quota`` columns are in; return how many are, and the new ``pace``.

    Seeds are sorted in waves, those with w0 in [low, high) at a time; most rows need one. ``pace`` is how many columns
    came in for each one looked at in the rows before: it decides the width of a wave, never the result.
    """
    count = 0
    above = largest_entry(pos) - base  # entries of this row lie in [base, base + above)
    low = U0
    width = np.uint64(min(4294967296.0, 4294967296.0 * (1.06 * quota / pace + 6.0) / maskable))
    reached = U0
    while count < quota and low <= LOW:
        high = low + width
        seeds = collect_seeds(
            tokens, first, span, pool, w0, low, high, connected, indptr, indices, base, pos, seed_keys
        )
        sort_keys(seed_keys, seeds, order)
        s = 0
        while s < seeds and count < quota:
            whole = (quota - count) // (1 + most)  # so many seeds are not cut off, whatever they bring
            for i in range(s, min(s + max(whole, 1), seeds)):
                reached = seed_keys[i] >> S32
                r = np.int64(seed_keys[i] & LOW)
                count += add_column(masked, r)
                if most == 0:
                    continue
                gene = tokens[first + r]
                n = np.int64(indptr[gene + 1]) - np.int64(indptr[gene])
                k = key_neighbors(r, indptr[gene], n, indices, draw, seed, base, above, pos, looked, keys)
                if whole > 0:
                    add_partners(n, k, most, base, above, masked, looked, keys, order, spare)
                else:
                    count += add_in_order(n, most, quota - count, base, masked, looked, keys, order, spare)
            s += max(whole, 1)
            if whole > 0:
                count = 0
                for i in range(words_for(span)):
                    count += count_ones(masked[i])
        if count < quota:
            reached = high
        low = high
        width *= np.uint64(2)
    looked_at = maskable * (np.float64(reached) + 1.0) / 4294967296.0
    return count, max(0.05, 0.75 * pace + 0.25 * count / looked_at)
