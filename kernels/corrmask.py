"""CorrMask: correlated genes of a cell are masked together (Hacohen et al. 2026, Algorithm 2; SPEC 4).

    seeds      columns whose gene has neighbours, in random order (w0, column)
    partners   of a seed: its neighbours in the cell, the ``max_partners`` first by a random key
    masked     seeds and partners until the quota Q = floor(B·λ), then a random top-up to B = floor(n·p)

Only genes with neighbours have a number here, ids[gene] > 0 (``engine/tables.py``): they are few, and what is known
of them stays in the first cache.

    gene table   pos[id] = base + first maskable column; an entry below ``base`` is left from an earlier row, so that
                 the table is never cleared; pos[0] takes what all other genes write

The random words of a seed's neighbours come before it is known which of them are in the cell: those with small words
are looked up first, so many that the partners are probably among them, and the others only where they are not.

    word         9  2  7  1  8  3  …      of neighbours 0, 1, 2 …
    < bound         2     1     3  …      looked up in the gene table: are they in the cell?
    found           2           3  …      (word << 32) | j of those that are; of them the smallest

Called by the row loop of ``mask.py``. Assumed: arrays contiguous, the scratch large enough (``engine/rows.py``).
"""

import numpy as np

from .bits import count_ones, lowest_one, ones_below, ones_unequal, prefetch
from .groups import word_of_leader
from .jit import inline, stage
from .lanes import AT_ONCE, neighbor_words, smallest_by_rank, weigh_words
from .philox import LOW, S32
from .rows import ALL, U0, U1, list_ones, sort_keys, words_for
from .weights import COST_SCALE, key_at, scale_of

WHOLE = 4294967296.0  # 2**32: every word lies below
AHEAD = 8  # seeds: so long before it is its turn, a seed's neighbours are asked for


@inline
def largest_entry(pos):
    """Return what an entry of the gene table may not exceed: it is uint16, or int32 for very long rows."""
    return 0xFFFF if pos.itemsize == 2 else 0x7FFFFFFF


@inline
def id_of(tokens, column, ids):
    """Return the number of a column's gene as an index; 0 if it has no neighbours, or is of no vocabulary."""
    return np.uint64(ids[min(np.uint64(tokens[np.uint64(column)]), np.uint64(ids.size - 1))])


@inline
def place_genes(tokens, first, begin, end, pool, ids, base, pos):
    """pos[id] = base + its column, from the last column to the first, so that a gene's first column stays."""
    bits = pool[begin >> 6] >> np.uint64(begin & 63)
    for r in range(end - 1, begin - 1, -1):
        if (bits >> np.uint64(r - begin)) & U1:
            pos[id_of(tokens, first + r, ids)] = base + r


@stage
def collect_seeds(tokens, first, width, pool, w0, low, high, ids, indptr, indices, base, pos, keys, columns):
    """List the seeds with w0 in [low, high), as (w0 << 32) | column; return how many there are."""
    n, seeds = 0, 0
    for i in range(words_for(width)):
        bits = pool[i]
        if high <= LOW:
            bits &= ones_below(w0, 64 * i, high)
        if low > U0:
            bits &= ~ones_below(w0, 64 * i, low)
        n = list_ones(bits, 64 * i, columns, n)
    for k in range(n):
        r = columns[k]
        gene = id_of(tokens, np.uint64(first) + r, ids)
        keys[np.uint64(seeds)] = (np.uint64(w0[r]) << S32) | r  # written over by the next if it is no seed
        seeds += np.int64((gene != U0) & (np.int64(pos[gene]) == base + np.int64(r)))
    return seeds


@inline
def prefetch_neighbors(tokens, first, seed_key, ids, indptr, indices):
    """Ask for a seed's neighbours before they are needed: those of all genes take more than a cache."""
    gene = id_of(tokens, np.uint64(first) + (seed_key & LOW), ids)
    for line in range(3):
        prefetch(indices, indptr[gene] + line * (64 // indices.itemsize))


@inline
def add_flag(flags, r, w2, word):
    """Add column r; return 1 if it is new, else 0. A byte each: no column waits for another of the same word."""
    new = np.int64(flags[np.uint64(r)] == 0)
    flags[np.uint64(r)] = 1
    if w2 is not None and new:
        w2[np.uint64(r)] = word
    return new


@inline
def weigh_neighbors(words, degree, edge_costs, gene, begin, share):
    """Make the words of a seed's neighbours keys by weight; return a bound below which this share of them lies."""
    for k in range(0, degree, AT_ONCE):
        weigh_words(words, k, edge_costs, np.int64(begin) + k)
    return key_at(share, COST_SCALE * edge_costs[gene]) if share < 1.0 else LOW + U1


@stage
def add_seeds(
    seeds, tokens, first, flags, w2, quota, count, draw, seed, ids, indptr, indices, edge_costs, most, share, base, pos,
    seed_keys, words, keys, buffer, tally,
):  # fmt: skip
    """Add seeds and their partners in order until ``quota`` columns are in; return how many are, and the seeds used.

    ``share`` of the neighbours are expected to be in the cell. ``tally`` counts neighbours looked up, and found.
    """
    wanted = (most + 1.5 * np.sqrt(np.float64(most)) + 1.0) / share
    d0, d1, k0, k1 = draw & LOW, draw >> S32, seed & LOW, seed >> S32
    for s in range(min(AHEAD, seeds)):
        prefetch_neighbors(tokens, first, seed_keys[s], ids, indptr, indices)
    for s in range(seeds):
        if s + AHEAD < seeds:
            prefetch_neighbors(tokens, first, seed_keys[s + AHEAD], ids, indptr, indices)
        column = seed_keys[s] & LOW
        word = U0 if w2 is None else word_of_leader(column, draw, seed)
        count += add_flag(flags, np.int64(column), w2, word)
        if count == quota:
            return count, s + 1
        if most == 0:
            continue
        gene = id_of(tokens, np.uint64(first) + column, ids)
        begin = np.uint64(indptr[gene])
        degree = np.int64(np.uint64(indptr[gene + U1]) - begin)
        neighbor_words(column, degree, d0, d1, k0, k1, words)
        low, high = U0, np.uint64(WHOLE * min(wanted / degree, 1.0))
        if edge_costs.size:
            high = weigh_neighbors(words, degree, edge_costs, gene, np.uint64(indptr.size - 1) + begin, wanted / degree)
        found = U0
        while True:
            for i in range(words_for(degree)):
                bits = ALL >> np.uint64(max(64 * (i + 1) - degree, 0))
                if high <= LOW:
                    bits &= ones_below(words, 64 * i, high)
                if low > U0:
                    bits &= ~ones_below(words, 64 * i, low)
                tally[0] += count_ones(bits)
                while bits != U0:
                    j = np.uint64(64 * i + lowest_one(bits))
                    bits &= bits - U1
                    keys[found] = (np.uint64(words[j]) << S32) | j  # written over by the next if it is not in the cell
                    found += np.uint64(pos[np.uint64(indices[begin + j])] >= base)
            if found >= most or high > LOW:
                break
            low, high = high, LOW + U1
        tally[1] += found
        in_order = found > 64 or count + most > quota
        if in_order:
            sort_keys(keys, np.int64(found), buffer)
        rest = ALL if in_order else smallest_by_rank(keys, np.int64(found), most)
        for k in range(min(np.int64(found), most)):
            key = keys[np.uint64(k if in_order else lowest_one(rest))]
            rest &= rest - U1
            partner = np.int64(pos[np.uint64(indices[begin + (key & LOW)])]) - base
            count += add_flag(flags, partner, w2, word)
            if count == quota:
                return count, s + 1
    return count, seeds


@stage
def expand_seeds(
    tokens, first, width, pool, masked, flags, w0, w2, maskable, quota, draw, seed, ids, indptr, indices, edge_costs,
    most, base, pos, rates, weighted, seed_keys, words, keys, order, tally,
):  # fmt: skip
    """Set ``masked`` to seeds and partners until ``quota`` columns are in; return how many are.

    ``w2``: None but where groups are replaced alike; so that the usual kernel has no trace of it. Seeds are sorted
    in waves, those with w0 in [low, high) at a time; most rows need one. ``rates`` hold what the rows before had,
    and decide how far is looked, never the result: columns that came in for each one looked at as a seed, the share
    of neighbours that are in the cell, and last the scale of w0 where it is ``weighted``.
    """
    count = 0
    pace, share = rates[0], rates[1]
    tally[:2] = U0
    flags[: 64 * words_for(width)] = 0
    low = reached = U0
    share_of_wave, share_reached = (1.15 * quota / pace + 20.0) / maskable, 0.0
    step = np.uint64(min(WHOLE, WHOLE * share_of_wave))
    while count < quota and low <= LOW:
        high = low + step
        if weighted:
            share_reached += share_of_wave
            share_of_wave *= 2.0
            high = max(key_at(share_reached, rates[3]), low + U1) if share_reached < 1.0 else LOW + U1
        seeds = collect_seeds(
            tokens, first, width, pool, w0, low, high, ids, indptr, indices, base, pos, seed_keys, order
        )
        sort_keys(seed_keys, seeds, order)
        count, used = add_seeds(
            seeds, tokens, first, flags, w2, quota, count, draw, seed, ids, indptr, indices, edge_costs, most, share,
            base, pos, seed_keys, words, keys, order, tally,
        )  # fmt: skip
        reached = high if count < quota else seed_keys[used - 1] >> S32
        low = high
        step *= np.uint64(2)
    for i in range(words_for(width)):
        masked[i] = ones_unequal(flags, 64 * i, 0)
    looked_at = maskable * (np.float64(reached) + 1.0) / WHOLE
    if weighted:
        looked_at = 1.0
        for i in range(words_for(width)):
            looked_at += count_ones(pool[i] & ones_below(w0, 64 * i, min(reached, LOW)))
        if looked_at < maskable:
            rates[3] = 0.5 * rates[3] + 0.5 * scale_of(reached, looked_at / maskable)
    rates[0] = max(0.05, 0.75 * pace + 0.25 * count / looked_at)
    if tally[0] > U0:
        rates[1] = max(0.01, 0.75 * share + 0.25 * tally[1] / tally[0])
    return count
