"""Gene sets (SPEC 5): the genes of a pathway are masked together.

    words      one random word a set; sets come in rising order of (word, number)
    members    of a set: its genes that stand in the cell, by their first column; fewer than two are no group
    masked     members of set after set until the quota Q = floor(B·λ); only within the set that Q cuts they are put in
               order, by (w0, column)

Genes that are in a set have numbers, ids[gene] > 0 (``engine/tables.py``), and the gene table ``pos`` of
``corrmask.py`` says in which column they stand.

Called by the row loop of ``mask.py``. Assumed: the scratch large enough (``engine/rows.py``).
"""

import numpy as np

from .bits import ones_unequal, prefetch
from .corrmask import add_flag
from .groups import collect_starts, wave_width, word_of_leader
from .jit import inline, stage
from .lanes import first_words
from .philox import LOW, S32, SETS_BLOCK
from .rows import U0, U1, sort_keys, words_for

AHEAD = 4  # sets: so long before it is its turn, a set's genes are asked for


@inline
def prefetch_members(key, indptr, indices):
    """Ask for the genes of a set before they are needed."""
    for line in range(3):
        prefetch(indices, indptr[key & LOW] + line * (64 // indices.itemsize))


@stage
def find_members(key, indptr, indices, base, pos, columns):
    """List the columns of a set's genes that are in the cell; return how many there are."""
    found = U0
    first = np.uint64(base)
    for j in range(np.uint64(indptr[key & LOW]), np.uint64(indptr[(key & LOW) + U1])):
        place = np.uint64(pos[np.uint64(indices[j])])
        columns[found] = place - first  # written over by the next if it is not in the cell
        found += np.uint64(place >= first)
    return np.int64(found)


@stage
def add_sets(
    masked, flags, w0, w2, width, quota, grouped, draw, seed, sets, indptr, indices, base, pos, rates, columns, words,
    keys, order, spare,
):  # fmt: skip
    """Set ``masked`` to members of sets until ``quota`` columns are in, or there are no more; return how many are.

    ``sets``: bits of those with two genes or more. They are sorted in waves, those with words in [low, high) at a time;
    how many columns a set brought in the rows before (``rates``) decides how many that are, never the result.
    """
    n_sets = indptr.size - 1
    first_words(n_sets, SETS_BLOCK, draw & LOW, draw >> S32, seed & LOW, seed >> S32, words)
    flags[: 64 * words_for(width)] = 0
    count, used, pace = 0, 0, rates[0]
    low = U0
    while count < quota and low <= LOW:
        high = low + wave_width((quota - count) / pace, n_sets)
        n = collect_starts(words, sets, n_sets, low, high, keys)
        sort_keys(keys, n, order)
        for k in range(min(AHEAD, n)):
            prefetch_members(keys[k], indptr, indices)
        for k in range(n):
            if count == quota:
                break
            if k + AHEAD < n:
                prefetch_members(keys[k + AHEAD], indptr, indices)
            found = find_members(keys[k], indptr, indices, base, pos, columns)
            used += 1
            if found < 2:
                continue
            if grouped or found > quota - count:
                for i in range(found):
                    columns[i] |= np.uint64(w0[columns[i]]) << S32
                sort_keys(columns, found, spare)
            word = word_of_leader(columns[0] & LOW, draw, seed) if grouped else U0
            for i in range(found):
                r = np.int64(columns[i] & LOW)
                new = add_flag(flags, r, None, U0)
                if grouped and new:
                    w2[r] = word
                count += new
                if count == quota:
                    break
        low = high
    for i in range(words_for(width)):
        masked[i] = ones_unequal(flags, 64 * i, 0)
    if used > 0:
        rates[0] = max(0.05, 0.75 * pace + 0.25 * count / used)
    return count
