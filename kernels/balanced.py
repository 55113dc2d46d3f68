"""Balanced CorrMask (SPEC 5): correlated genes are masked together, and every gene of a cell equally often.

    leader     of a column: the first by (w0, column) among itself and its partners; of what has no partners, itself
    modules    columns with one leader, in random order (words(leader, block 1)[0], leader)
    circle     all modules end to end, n places; masked are Q of them from a random place on, around

    places     | 0  1  2 | 3 | 4  5  6  7 | 8  9 |        module after module
    masked             ^^^^^^^^^^^                        o = 2, Q = 4: whole modules but at both ends

Leaders come from two sides. In waves of rising w0, seeds hand themselves to all partners, and the first to do so leads:
few seeds reach nearly all. Those that are left then look for their leader themselves.

    lead       of a column: the place in ``walked`` of its leader, then the leader; the column ``absent`` is that of all
               genes that are not in the cell
    circle     of a column: the random word of its leader. Of the columns before a place only those with the word that
               the place cuts need to be in order

Called by the row loop of ``mask.py``. Assumed: neighbours are mutual, the scratch large enough (``engine/rows.py``).
"""

import numpy as np

from .bits import lowest_one, ones_below, ones_unequal
from .corrmask import AHEAD, id_of, prefetch_neighbors
from .groups import add_column, collect_starts, follow_leaders
from .jit import inline, stage
from .philox import LOW, S32, START_COLUMN, philox
from .rows import ALL, U0, U1, list_ones, sort_keys, words_for

WAVES = 24  # in which all seeds would be walked
WORTH = 2  # a seed is walked as long as each leads so many more, itself included
SHARES, SHARE_SHIFT = 64, np.uint64(26)  # of the circle, by the highest bits of the words
NOBODY = 0xFFFFFFFF


@stage
def find_seeds(tokens, first, width, pool, ids, base, pos, seeds):
    """Fill the bits of columns that are the first of a gene with neighbours; return how many there are."""
    n = 0
    for i in range(words_for(width)):
        bits, found = pool[i], U0
        while bits != U0:
            b = lowest_one(bits)
            bits &= bits - U1
            gene = id_of(tokens, first + 64 * i + b, ids)
            is_seed = (gene != U0) & (np.int64(pos[gene]) == base + 64 * i + b)
            found |= np.uint64(is_seed) << np.uint64(b)
            n += np.int64(is_seed)
        seeds[i] = found
    return n


@inline
def column_in_cell(pos, gene, base, absent):
    """Return the column of a gene, or ``absent``."""
    return min(np.uint64(np.int64(pos[np.uint64(gene)]) - base), absent)


@stage
def walk(tokens, first, width, n, keys, ids, indptr, indices, base, pos, absent, walked, before, lead, fresh):
    """Let n seeds, by (w0, column), lead themselves and their partners, as far as nobody does.

    From the last seed to the first, so that the first stays: nothing that was just written is waited for.
    """
    fresh[: absent + U1] = NOBODY
    for k in range(n - 1, -1, -1):
        if k >= AHEAD:
            prefetch_neighbors(tokens, first, keys[k - AHEAD], ids, indptr, indices)
        column = keys[k] & LOW
        place = np.uint32(before + k)
        walked[before + k] = column
        gene = id_of(tokens, np.uint64(first) + column, ids)
        for j in range(np.uint64(indptr[gene]), np.uint64(indptr[gene + U1])):
            fresh[column_in_cell(pos, indices[j], base, absent)] = place
        fresh[column] = place
    for r in range(width):
        lead[r] = min(lead[r], fresh[r])


@stage
def list_open(seeds, lead, width, keys):
    """List the seeds that nobody leads; return how many there are."""
    n = 0
    for i in range(words_for(width)):
        n = list_ones(seeds[i] & ~ones_unequal(lead, 64 * i, NOBODY), 64 * i, keys, n)
    return n


@stage
def find_leaders(tokens, first, width, seeds, n_seeds, w0, ids, indptr, indices, base, pos, lead, walked, keys, order):
    """Fill ``lead`` with the column that leads each column."""
    absent = np.uint64(64 * words_for(width))
    fresh = order.view(np.uint32)
    lead[: 64 * words_for(width)] = NOBODY
    w0[absent] = NOBODY
    low, done, left, led = U0, 0, n_seeds, n_seeds
    while led > 0 and low <= LOW:
        high = low + (LOW // np.uint64(WAVES) + U1)
        n = collect_starts(w0, seeds, width, low, high, keys)
        sort_keys(keys, n, order)
        walk(tokens, first, width, n, keys, ids, indptr, indices, base, pos, absent, walked, done, lead, fresh)
        done += n
        still = list_open(seeds, lead, width, order)
        led = left - still - WORTH * n
        left = still
        low = high
    walked[done] = NOBODY
    for r in range(width):
        leader = walked[min(np.uint64(lead[r]), np.uint64(done))]
        lead[r] = leader if leader != NOBODY else r
    for k in range(left):
        if k + AHEAD < left:
            prefetch_neighbors(tokens, first, order[k + AHEAD], ids, indptr, indices)
        column = order[k]
        best = (np.uint64(w0[column]) << S32) | column
        gene = id_of(tokens, np.uint64(first) + column, ids)
        for j in range(np.uint64(indptr[gene]), np.uint64(indptr[gene + U1])):
            partner = column_in_cell(pos, indices[j], base, absent)
            best = min(best, (np.uint64(w0[partner]) << S32) | partner)
        lead[column] = best & LOW


@stage
def count_places(circle, pool, width, counts):
    """Count the columns by the highest bits of their words."""
    counts[:] = 0
    for i in range(words_for(width)):
        for b in range(64):
            share = np.uint64(circle[np.uint64(64 * i + b)]) >> SHARE_SHIFT
            counts[share] += np.uint32((pool[i] >> np.uint64(b)) & U1)


@stage
def take_places(circle, lead, w0, pool, width, counts, places, chosen, keys, order):
    """Set ``chosen`` to the columns in the first places of the circle."""
    share, left = U0, places
    while share < SHARES and left >= np.int64(counts[share]):
        left -= np.int64(counts[share])
        share += U1
    n = 0
    for i in range(words_for(width)):
        chosen[i] = pool[i] & ones_below(circle, 64 * i, share << SHARE_SHIFT) if share < SHARES else pool[i]
        if left > 0:
            after = (share + U1) << SHARE_SHIFT
            inside = pool[i] & ~chosen[i]
            inside &= ones_below(circle, 64 * i, after) if after <= LOW else ALL
            n = list_ones(inside, 64 * i, keys, n)
    if left == 0:
        return
    for k in range(n):
        keys[k] |= np.uint64(circle[keys[k]]) << S32
    sort_keys(keys, n, order)
    begin = end = left  # of the columns with the word of the first that is out
    while begin > 0 and keys[begin - 1] >> S32 == keys[left] >> S32:
        begin -= 1
    while end < n and keys[end] >> S32 == keys[left] >> S32:
        end += 1
    for k in range(begin):
        add_column(chosen, np.int64(keys[k] & LOW))
    cut = keys[begin:end]
    for k in range(cut.size):
        cut[k] = (np.uint64(w0[cut[k] & LOW]) << S32) | (cut[k] & LOW)
    sort_keys(cut, cut.size, order)
    left -= begin
    after = np.int64(-1)
    while left > 0:  # once, but where leaders have equal words
        leader = np.int64(NOBODY)
        for k in range(cut.size):
            other = np.int64(lead[cut[k] & LOW])
            leader = min(leader, other) if other > after else leader
        for k in range(cut.size):
            if np.int64(lead[cut[k] & LOW]) == leader and left > 0:
                left -= add_column(chosen, np.int64(cut[k] & LOW))
        after = leader


@stage
def add_arc(
    tokens, first, width, pool, masked, flags, w0, w2, n, quota, grouped, draw, seed, has_graph, ids, indptr, indices,
    base, pos, keys, order, spare,
):  # fmt: skip
    """Set ``masked`` to ``quota`` columns, an arc of the circle of all n; return how many that are."""
    words, half = words_for(width), spare.size
    seeds = before = flags.view(np.uint64)[:words]  # in turn
    lead, walked = spare.view(np.uint32)[:half], spare.view(np.uint32)[half:]
    n_seeds = 0
    if has_graph:
        n_seeds = find_seeds(tokens, first, width, pool, ids, base, pos, seeds)
    find_leaders(tokens, first, width, seeds, n_seeds, w0, ids, indptr, indices, base, pos, lead, walked, keys, order)
    circle = walked
    d0, d1, k0, k1 = draw & LOW, draw >> S32, seed & LOW, seed >> S32
    for r in range(width):
        circle[r] = philox(np.uint64(lead[r]), U1, d0, d1, k0, k1)[0]
    begin = np.int64((philox(START_COLUMN, U0, d0, d1, k0, k1)[0] * np.uint64(n)) >> S32)
    end = begin + quota
    counts = lead[half - SHARES :]  # after the last column
    count_places(circle, pool, width, counts)
    take_places(circle, lead, w0, pool, width, counts, begin, before, keys, order)
    take_places(circle, lead, w0, pool, width, counts, end if end <= n else end - n, masked, keys, order)
    for i in range(words):
        masked[i] = masked[i] & ~before[i] if end <= n else pool[i] & (masked[i] | ~before[i])
    if grouped:
        follow_leaders(w2, masked, width, lead, draw, seed)
    return quota
