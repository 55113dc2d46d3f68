"""What a function of the user's proposes (SPEC 5): what it gets of a row, and what becomes of its answer.

    row           A  <cls>  B   C   D      columns 0 … 4
    tokens        A   B   C   D            the maskable ones, n of them, with their words of block 2^32 − 3
    answer        |2 1|  |1 3|             groups of places in ``tokens``; or a weight for each of them
    priorities    –   –   1   0   2        in which order columns are proposed, spread over 32 bits: so the
                                           smallest are found soonest; –: not proposed. In the upper 32 bits
                                           the leader: the column that the group begins with (``groups.py``)
    masked        the quota's columns with the smallest priority

Before the row loop of ``mask.py``: ``open_row``, the function, ``place_groups`` or ``place_weights``; a function that
Numba compiled is called by ``rows_by``, any other by ``masking/strategies/function.py``. In it: ``add_proposed``.
"""

import math
from functools import lru_cache

import numpy as np
from numba import types
from numba.core.errors import TypingError
from numba.extending import overload

from .bits import count_ones, ones_below
from .jit import kernel, stage
from .lanes import AT_ONCE
from .layout import NOT_PROPOSED, PAD
from .rows import U0, column_words, copy, find_maskable, list_ones, padding_ends, row_draw, take_smallest, words_for

WORD_BLOCK = np.uint64(2**32 - 3)
NONE = np.int64(NOT_PROPOSED)


@stage
def add_proposed(pool, masked, priorities, width, quota, keys, order, proposed):
    """Set ``masked`` to the ``quota`` proposed columns of smallest priority; return how many there are."""
    n = 0
    for i in range(words_for(width)):
        proposed[i] = pool[i] & ones_below(priorities, 64 * i, np.uint64(NONE))
        n += count_ones(proposed[i])
    take_smallest(priorities, proposed, width, n, quota, masked, keys, order)
    return min(n, quota)


@kernel
def make_room(columns):
    """Return scratch for rows of so many columns: pool, w0, w1, w2, w3, and what ``open_row`` fills."""
    padded = (columns + 63) // 64 * 64 + 64
    words = np.empty((4, padded), np.uint32)
    return (
        np.empty(padded // 64, np.uint64), words[0], words[1], words[2], words[3],
        np.empty(padded, np.int64), np.empty(columns, np.int64), np.empty((columns, 4), np.uint32),
    )  # fmt: skip


@kernel
def open_row(row, row_ptr, tokens, attention_mask, special_tokens_mask, draws, mode, offset, seed, settings, room):
    """Fill the row's maskable columns (r), their tokens and words; return how many, the first column, and the draw.

    At a token of no vocabulary −1 in place of their number. Without maskable columns there is no draw.
    """
    here = slice(row_ptr[row], row_ptr[row + 1])
    cell, visible, protected = tokens[here], attention_mask[here], special_tokens_mask[here]
    pool, w0, w1, w2, w3, columns, some, words = room
    first, last = padding_ends(cell, visible, settings[PAD])
    width = last - first
    n, known = find_maskable(cell, visible, protected, first, last, settings, pool)
    if not known or n == 0:
        return (0 if known else -1), first, U0
    draw = row_draw(cell, first, pool, width, row, draws, mode, offset)
    for begin in range(0, width, AT_ONCE):
        column_words(w0, w1, w2, w3, begin, WORD_BLOCK, draw, seed)
    if n == width:  # mostly: then no index needs to be looked up
        for r in range(n):
            columns[r] = r
            words[r, 0], words[r, 1], words[r, 2], words[r, 3] = w0[r], w1[r], w2[r], w3[r]
        copy(cell[first:last], some)
        return n, first, draw
    listed = 0
    for i in range(words_for(width)):
        listed = list_ones(pool[i], 64 * i, columns, listed)
    for k in range(n):
        r = columns[k]
        some[k] = cell[first + r]
        words[k, 0], words[k, 1], words[k, 2], words[k, 3] = w0[r], w1[r], w2[r], w3[r]
    return n, first, draw


@kernel
def place_groups(indptr, places, n, columns, priorities):
    """Fill priorities (of columns r, none proposed so far) by groups; return whether these are sound."""
    if indptr.size == 0 or np.int64(indptr[0]) != 0 or np.int64(indptr[indptr.size - 1]) != places.size:
        return False
    step, following = np.int64(2**32) // max(1, min(n, places.size)), np.int64(0)
    for group in range(indptr.size - 1):
        begin, end = np.int64(indptr[group]), np.int64(indptr[group + 1])
        if not begin <= end <= places.size:
            return False
        for i in range(begin, end):
            place = np.int64(places[i])
            if not 0 <= place < n:
                return False
            if priorities[columns[place]] == NONE:
                priorities[columns[place]] = columns[np.int64(places[begin])] << 32 | following
                following += step
    return True


@kernel
def place_weights(weights, n, columns, priorities, draw, seed, room):
    """Fill priorities (of columns r, none proposed so far) by Gumbel top-k; return whether the weights are sound."""
    if weights.size != n:
        return False
    _, w0, w1, w2, w3, _, _, _ = room
    for begin in range(0, columns[n - 1] + 1, AT_ONCE):
        column_words(w0, w1, w2, w3, begin, U0, draw, seed)
    scores, chosen, m = np.empty(n, np.float64), np.empty(n, np.int64), 0
    for k in range(n):
        weight = np.float64(weights[k])
        if not 0.0 <= weight < np.inf:
            return False
        if weight > 0.0:
            scores[m] = math.log(-math.log((np.float64(w0[columns[k]]) + 0.5) / 4294967296.0)) - math.log(weight)
            chosen[m] = columns[k]
            m += 1
    step = np.int64(2**32) // max(1, m)
    order = np.argsort(scores[:m], kind="mergesort")
    for i in range(m):
        priorities[chosen[order[i]]] = chosen[order[i]] << 32 | i * step
    return True


def place_answer(answer, n, columns, priorities, draw, seed, room):
    """Fill priorities by what a function returned, groups or weights; return whether it is sound. For Numba alone."""
    raise NotImplementedError


@overload(place_answer)
def _place_answer(answer, n, columns, priorities, draw, seed, room):
    if isinstance(answer, types.BaseTuple) and len(answer) == 2 and all(_is_list(a, types.Integer) for a in answer):
        return lambda answer, n, columns, priorities, draw, seed, room: place_groups(
            answer[0], answer[1], n, columns, priorities
        )
    if _is_list(answer, types.Integer, types.Float):
        return lambda answer, n, columns, priorities, draw, seed, room: place_weights(  # noqa: PLW0108 (Numba asks so)
            answer, n, columns, priorities, draw, seed, room
        )
    raise TypingError(f"propose returned {answer}")


def _is_list(kind, *numbers):
    return isinstance(kind, types.Array) and kind.ndim == 1 and isinstance(kind.dtype, numbers)


@lru_cache(maxsize=16)
def rows_by(propose):
    """Return a compiled loop over rows by a function that Numba compiled."""

    @stage
    def propose_rows(
        begin, end, row_ptr, tokens, attention_mask, special_tokens_mask, draws, mode, offset, seed, settings, longest,
        draw_ids, priorities,
    ):  # fmt: skip
        """Fill the draws and priorities of rows; return the first row where that cannot be done, or −1."""
        room = make_room(longest)
        for row in range(begin, end):
            n, first, draw = open_row(
                row, row_ptr, tokens, attention_mask, special_tokens_mask, draws, mode, offset, seed, settings, room
            )
            if n < 0:
                return row
            draw_ids[row] = draw
            ranks = priorities[row_ptr[row] : row_ptr[row + 1]]
            ranks[:] = NONE
            if n > 0:
                answer = propose(room[6][:n], room[7][:n])
                if not place_answer(answer, n, room[5], ranks[first:], draw, seed, room):
                    return row
        return -1

    return propose_rows
