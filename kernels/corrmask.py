"""CorrMask: correlated genes of a cell are masked together (Hacohen et al. 2026, Algorithm 2; SPEC 4).

    seeds      columns whose gene has neighbours, in random order (w0, column)
    partners   of a seed: its neighbours in the cell, the ``max_partners`` first by a random key
    masked     seeds and partners until the quota Q = floor(B·λ), then a random top-up to B = floor(n·p)

    gene table   pos[gene] = base + first maskable column; an entry below ``base`` is left from an earlier row,
                 so that the table is never cleared

Which partners a seed has does not depend on what is masked: seeds are expanded many at a time, as many as the quota
needs for certain, and added in their order afterwards.

    batch       s0 s1 s2 … s31         seeds by (w0, column)
    groups      s5 s9 s0 … │ s2 s7 …   eight with about as many neighbours, one a lane (lanes.py)
    looked      8·j + lane             the gene table's entry of each lane's neighbour j
    partners    of s0, s1, s2 …        by (key, j): added until the quota is met
    hub         s3 s3 s3 … s3          a seed with many neighbours: an eighth of them a lane, lists merged afterwards

Called by the row loop of ``mask.py``. Assumed: arrays contiguous, the scratch large enough (``masking/rows.py``).
"""

import numpy as np

from .bits import ones_below, prefetch
from .groups import add_column
from .jit import inline, stage
from .lanes import NONE, smallest_keys
from .layout import BATCH, FEW, KEPT, LANES, WIDE
from .philox import LOW, S32
from .rows import ALL, S6, U0, U1, list_ones, sort_keys, words_for


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
def collect_seeds(tokens, first, span, pool, w0, low, high, connected, indptr, indices, base, pos, keys, columns):
    """List the seeds with w0 in [low, high), as (w0 << 32) | column; return how many there are."""
    n, seeds = 0, 0
    for i in range(words_for(span)):
        bits = pool[i]
        if high <= LOW:
            bits &= ones_below(w0, 64 * i, high)
        if low > U0:
            bits &= ~ones_below(w0, 64 * i, low)
        n = list_ones(bits, 64 * i, columns, n)
    for k in range(n):
        r = np.int64(columns[k])
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
def look_up(lane, begin, n, indices, pos, looked):
    """looked[8·j + lane] = what the gene table holds of neighbour j, for n neighbours from ``begin`` on."""
    first, at = np.uint64(begin), np.uint64(lane)
    for j in range(np.uint64(n)):
        looked[np.uint64(LANES) * j + at] = pos[np.uint64(indices[first + j])]


@stage
def fill_lanes_by_seeds(chosen, tokens, first, seed_keys, indptr, indices, pos, looked, lanes):
    """Give each of up to eight seeds a lane, the one with the most neighbours last; return the blocks of that one."""
    blocks = (np.int64(chosen[chosen.size - 1] >> S32) + 7) >> 3 << 1  # even: lanes take two at a step
    looked[: 4 * LANES * blocks] = 0
    lanes[:] = U0
    for lane in range(chosen.size):
        column = seed_keys[np.int64(chosen[lane] & LOW)] & LOW
        lanes[lane] = column
        gene = tokens[first + np.int64(column)]
        look_up(lane, indptr[gene], np.int64(chosen[lane] >> S32), indices, pos, looked)
    return blocks


@stage
def fill_lanes_by_hub(column, begin, n, indices, pos, looked, lanes):
    """Give each lane an eighth of one seed's n neighbours; return the blocks of a lane."""
    blocks = (n + 8 * LANES - 1) // (8 * LANES) * 2
    looked[: 4 * LANES * blocks] = 0
    lanes[:] = U0
    for lane in range(LANES):
        lanes[lane], lanes[LANES + lane] = column, np.uint64(blocks * lane)
        before = 4 * blocks * lane
        look_up(lane, begin + before, min(max(n - before, 0), 4 * blocks), indices, pos, looked)
    return blocks


@stage
def smallest_of_lanes(blocks, most, base, draw, seed, looked, lanes, keys):
    """List the ``most`` smallest keys of each lane, keys[8·i + lane], NONE behind; return how long the lists are."""
    d0, d1, k0, k1 = draw & LOW, draw >> S32, seed & LOW, seed >> S32
    length = 0
    while True:
        smallest_keys(looked, base, blocks, lanes, d0, d1, k0, k1, keys, LANES * length)
        length += KEPT
        if length >= most:
            return length
        more = False
        for lane in range(LANES):
            last = keys[LANES * (length - 1) + lane]
            lanes[2 * LANES + lane] = last if last == NONE else last + U1
            more |= last != NONE
        if not more:
            return length


@stage
def merge_lanes(blocks, most, length, base, looked, lanes, keys, partners, at):
    """List the partners of a hub: the lanes' lists, merged."""
    lanes[:LANES] = U0  # how many keys of a list are taken
    for i in range(most):
        least, best = NONE, 0
        for lane in range(LANES):
            taken = np.int64(lanes[lane])
            key = keys[LANES * taken + lane] if taken < length else NONE
            if key < least:
                least, best = key, lane
        if least == NONE:
            partners[at + i] = -1
            return
        lanes[best] += U1
        j = np.int64(least & LOW) - 4 * blocks * best
        partners[at + i] = looked[LANES * j + best] - base


@stage
def list_partners(lane, most, length, base, looked, keys, partners, at):
    """List the partners of a lane's seed."""
    for i in range(most):
        key = keys[LANES * i + lane] if i < length else NONE
        if key == NONE:
            partners[at + i] = -1
            return
        partners[at + i] = looked[LANES * np.int64(key & LOW) + lane] - base


@stage
def find_partners(
    at, seeds, tokens, first, seed_keys, draw, seed, indptr, indices, most, base, pos, looked, lanes, keys, order,
    spare, partners,
):  # fmt: skip
    """List the partners of the seeds from ``at`` on as columns, −1 behind: partners[most·i …] of seed i."""
    for i in range(seeds):
        gene = tokens[first + np.int64(seed_keys[at + i] & LOW)]
        degree = np.uint64(np.int64(indptr[gene + 1]) - np.int64(indptr[gene]))
        order[i] = (degree << S32) | np.uint64(at + i)
    sort_keys(order, seeds, spare)
    done = 0
    while done < seeds:
        group = 0
        while group < min(LANES, seeds - done) and np.int64(order[done + group] >> S32) <= FEW:
            group += 1
        if group > 0:
            chosen = order[done : done + group]
            blocks = fill_lanes_by_seeds(chosen, tokens, first, seed_keys, indptr, indices, pos, looked, lanes)
            length = smallest_of_lanes(blocks, most, base, draw, seed, looked, lanes, keys)
            for lane in range(group):
                to = most * (np.int64(chosen[lane] & LOW) - at)
                list_partners(lane, most, length, base, looked, keys, partners, to)
            done += group
        else:
            place = np.int64(order[done] & LOW)
            column = seed_keys[place] & LOW
            begin = indptr[tokens[first + np.int64(column)]]
            n = np.int64(order[done] >> S32)
            blocks = fill_lanes_by_hub(column, begin, n, indices, pos, looked, lanes)
            length = smallest_of_lanes(blocks, most, base, draw, seed, looked, lanes, keys)
            merge_lanes(blocks, most, length, base, looked, lanes, keys, partners, most * (place - at))
            done += 1


@stage
def add_seeds(at, seeds, seed_keys, most, partners, quota, count, masked):
    """Add seeds and their partners in order until ``quota`` columns are in; return how many are, and the seeds used."""
    for i in range(seeds):
        count += add_column(masked, np.int64(seed_keys[at + i] & LOW))
        for k in range(most * i, most * (i + 1)):
            if count == quota:
                return count, i + 1
            if partners[k] < 0:
                break
            count += add_column(masked, np.int64(partners[k]))
        if count == quota:
            return count, i + 1
    return count, seeds


@stage
def expand_seeds(
    tokens, first, span, pool, masked, w0, maskable, quota, draw, seed, connected, indptr, indices, most,
    base, pos, pace, seed_keys, looked, lanes, keys, order, spare, partners,
):  # fmt: skip
    """Add seeds and partners to ``masked`` until ``quota`` columns are in; return how many are, and the new ``pace``.

    Seeds are sorted in waves, those with w0 in [low, high) at a time; most rows need one. ``pace`` is how many columns
    came in for each one looked at in the rows before: it decides the width of a wave, never the result.
    """
    count = 0
    low = U0
    width = np.uint64(min(4294967296.0, 4294967296.0 * (1.15 * quota / pace + 20.0) / maskable))
    reached = U0
    capacity = BATCH if most <= WIDE else LANES
    while count < quota and low <= LOW:
        high = low + width
        seeds = collect_seeds(
            tokens, first, span, pool, w0, low, high, connected, indptr, indices, base, pos, seed_keys, order
        )
        sort_keys(seed_keys, seeds, order)
        s = 0
        while s < seeds and count < quota:
            needed = (quota - count) // (1 + most) + 1  # so many at least: none is expanded in vain but a few
            batch = min(seeds - s, capacity, (needed + LANES - 1) // LANES * LANES)
            if most > 0:
                find_partners(
                    s, batch, tokens, first, seed_keys, draw, seed, indptr, indices, most, base, pos, looked, lanes,
                    keys, order, spare, partners,
                )  # fmt: skip
            count, used = add_seeds(s, batch, seed_keys, most, partners, quota, count, masked)
            reached = seed_keys[s + used - 1] >> S32
            s += used
        if count < quota:
            reached = high
        low = high
        width *= np.uint64(2)
    looked_at = maskable * (np.float64(reached) + 1.0) / 4294967296.0
    return count, max(0.05, 0.75 * pace + 0.25 * count / looked_at)
