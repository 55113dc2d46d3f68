"""PMI masking (Levine et al. 2021; SPEC 5): runs of columns whose neighbouring pairs are no coincidence.

    column     0  1  2  3  4  5        linked, bit r: columns r and r + 1 are maskable, and (token r, token r + 1) is a
    linked     1  1  0  0  1  .                       pair of the table
    runs       |0  1  2|    |4  5|     maximal, of two columns or more; in random order (w0, column) of their first

Which pairs there are is looked up in buckets (``engine/tables.py``): the token in front has a few of its own, and by
its low bits the one after it is in a certain one of them or in none. Nothing branches by what is found, nor is
anything made of it yet, so that the CPU has many lookups under way at once; they come while the columns' random words
are computed (``begin_row``), which leaves the units that read memory idle.

    columns      0  1  2 …          slots of the bucket in which the second token stands, in bits
    found        0  4  0 …          (0, 1) is no pair, (1, 2) is one: slot 2 has it
    linked       0  1  0 …

Runs never overlap, and so are added many at a time. A number whose ones are the links, plus a one at each chosen
run's start, has other bits just where these runs' columns are:

    linked           …0 0 1 0 0 1 1     bit 0 on the right
    + start          …0 0 0 0 0 0 1
    sum              …0 0 1 0 1 0 0     exclusive or with linked: …0 0 0 0 1 1 1, the run of columns 0, 1, 2

Called by the row loop of ``mask.py``.
"""

import numpy as np

from .bits import count_ones, lowest_one, ones_below, ones_unequal, slots_with
from .groups import collect_starts, wave_width
from .jit import inline, stage
from .philox import LOW, S32
from .rows import ALL, U0, U1, sort_keys, words_for

S2, S16 = np.uint64(2), np.uint64(16)
TOP_BIT = np.uint64(63)


@inline
def pair_slots(u, v, size, lookup):
    """Return bits, none but where gene u is followed by gene v; both, uint64, must lie in the vocabulary."""
    if size > 65536:
        u += np.uint64(size) * (v >> S16)
    head = lookup[u]
    return slots_with(lookup, ((head >> S32) + (head & v)) << S2, v)


@inline
def find_pairs(tokens, first, begin, end, size, lookup, found):
    """Fill ``found`` for the columns [begin, end), each with the one after it; tokens must lie in the vocabulary."""
    if end <= begin:
        return
    here, r = np.uint64(first + begin), np.uint64(begin)
    u = np.uint64(tokens[here])
    for k in range(np.uint64(end - begin)):
        v = np.uint64(tokens[here + k + U1])
        found[r + k] = pair_slots(u, v, size, lookup)
        u = v


@stage
def find_linked(tokens, first, width, pool, known, size, lookup, found, linked):
    """Fill ``linked``; return how many of its bits are set.

    Tokens outside the vocabulary are in no pair: where not all are ``known``, ``found`` is not filled, nor needed.
    """
    words = words_for(width)
    n = 0
    for i in range(words):
        following = pool[i + 1] << TOP_BIT if i + 1 < words else U0
        bits = pool[i] & ((pool[i] >> U1) | following)
        if known:
            bits &= ones_unequal(found, 64 * i, 0)
        else:
            rest = bits
            while rest != U0:
                b = lowest_one(rest)
                u, v = tokens[first + 64 * i + b], tokens[first + 64 * i + b + 1]
                if not (0 <= u < size and 0 <= v < size and pair_slots(np.uint64(u), np.uint64(v), size, lookup)):
                    bits &= ~(U1 << np.uint64(b))
                rest &= rest - U1
        linked[i] = bits
        n += count_ones(bits)
    return n


@stage
def find_starts(linked, width, starts):
    """Fill the bits of the columns at which a run begins; return how many there are."""
    n, carry = 0, U0
    for i in range(words_for(width)):
        starts[i] = linked[i] & ~((linked[i] << U1) | carry)
        carry = linked[i] >> TOP_BIT
        n += count_ones(starts[i])
    return n


@stage
def set_runs_below(w0, linked, starts, width, bound, masked):
    """Set ``masked`` to the runs whose start has w0 < bound; return how many columns that are."""
    n, carry = 0, U0
    for i in range(words_for(width)):
        chosen = starts[i] & ones_below(w0, 64 * i, bound) if bound <= LOW else starts[i]
        part = linked[i] + chosen
        total = part + carry
        carry = np.uint64(part < chosen) | np.uint64(total < carry)
        masked[i] = linked[i] ^ total
        n += count_ones(masked[i])
    return n


@stage
def add_run(linked, masked, start, room):
    """Add the run that begins at a column, at most ``room`` columns of it; return how many (runs never overlap)."""
    new, r = 0, start
    while True:
        shift = np.uint64(r & 63)
        links = lowest_one(~(linked[r >> 6] >> shift))  # from r on, in this word: zeros are shifted in
        whole = shift + np.uint64(links) == np.uint64(64)
        columns = min(links + np.int64(not whole), room - new)
        masked[r >> 6] |= (ALL >> np.uint64(64 - columns)) << shift
        new += columns
        r += columns
        if not whole or new == room:
            return new


@inline
def safe_bound(quota, columns, runs):
    """Return a w0 below which runs of ``columns`` in all hardly ever have more than ``quota``; they vary in length."""
    share = quota / columns
    return np.uint64(4294967296.0 * max(share - 3.0 * np.sqrt(share / runs), 0.0))


@stage
def follow_starts(w2, masked, width, starts):
    """Put the w2 of a run's first column, which is masked wherever others are, in the place of theirs."""
    word = w2[0]
    for i in range(words_for(width)):
        bits = masked[i]
        while bits != U0:
            b = lowest_one(bits)
            if (starts[i] >> np.uint64(b)) & U1:
                word = w2[64 * i + b]
            w2[64 * i + b] = word
            bits &= bits - U1


@stage
def add_runs(tokens, first, width, pool, known, masked, w0, w2, quota, grouped, size, lookup, keys, order, spare):
    """Set ``masked`` to runs until ``quota`` columns are in, or there are no more; return how many are."""
    words = words_for(width)
    after = 16 * words  # ``spare`` begins with what ``find_pairs`` found, 16 bits a column
    linked, starts = spare[after : after + words], spare[after + words : after + 2 * words]
    links = find_linked(tokens, first, width, pool, known, size, lookup, spare.view(np.uint16), linked)
    runs = find_starts(linked, width, starts)
    if runs == 0:
        return 0
    columns = links + runs
    low = LOW + U1 if columns <= quota else safe_bound(quota, columns, runs)
    count = set_runs_below(w0, linked, starts, width, low, masked)
    while count > quota:
        low >>= U1
        count = set_runs_below(w0, linked, starts, width, low, masked)
    while count < quota and low <= LOW:
        high = low + wave_width((quota - count) * runs / columns, runs)
        n = collect_starts(w0, starts, width, low, high, keys)
        sort_keys(keys, n, order)
        for k in range(n):
            if count == quota:
                break
            count += add_run(linked, masked, np.int64(keys[k] & LOW), quota - count)
        low = high
    if grouped:
        follow_starts(w2, masked, width, starts)
    return count
