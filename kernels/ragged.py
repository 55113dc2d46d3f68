"""Rows of a ragged corpus, gathered from the buffers they lie in.

A corpus lies in one or more segments (record batches of a memory-mapped Arrow file, or one pair of arrays). Each has
its own offsets and tokens; a kernel gets their addresses, so that rows from a thousand segments cost no Python.

    segment s:   offsets[s] → | 0 | 3 | 5 | 9 |            cell i of the corpus is row i − first_cell[s] of its segment
                 tokens[s]  → | a b c | d e | f g h i |

Work split: one call copies any number of rows, in the order given. Assumed: rows lie in [0, first_cell[-1]).
"""

import numpy as np
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .jit import inline, kernel

OK, OUTSIDE = 0, 1  # what gather_rows found: all well, or a token outside the vocabulary
NEW, DISTINCT, REPEATS = 0, 1, 2  # what is known of a cell: nothing, each gene once, a gene stands in it again


@intrinsic
def load_at(typingctx, address, index, like):
    """Return element ``index`` of the array of ``like``'s dtype that begins at the integer ``address``."""
    if not isinstance(like, types.Array):
        return None
    signature = like.dtype(types.uint64, types.int64, like)

    def codegen(context, builder, signature, args):
        data_type = context.get_data_type(like.dtype)
        pointer = builder.inttoptr(args[0], data_type.as_pointer())
        # Arrow aligns buffers to 8 bytes at least, but a slice may begin anywhere.
        return builder.load(cgutils.gep(builder, pointer, args[1]), align=1)

    return signature, codegen


@inline
def segment_of(first_cell, cell):
    """Index of the segment that holds a cell (binary search)."""
    low, high = 0, first_cell.size - 1
    while high - low > 1:
        middle = (low + high) // 2
        if first_cell[middle] <= cell:
            low = middle
        else:
            high = middle
    return low


@inline
def place_of(first_cell, offset_address, offsets_like, cell):
    """Return (segment, begin, end) of a cell's tokens."""
    s = segment_of(first_cell, cell)
    i = cell - first_cell[s]
    return (
        s,
        np.int64(load_at(offset_address[s], i, offsets_like)),
        np.int64(load_at(offset_address[s], i + 1, offsets_like)),
    )


@kernel(makes_arrays=False)
def first_outside(rows, n):
    """Return the first k with a rows[k] that is not in [0, n), or −1."""
    for k in range(rows.size):
        if rows[k] < 0 or rows[k] >= n:
            return k
    return -1


@kernel(makes_arrays=False)
def row_lengths(first_cell, offset_address, offsets_like, rows, out):
    """out[k] = length of cell rows[k], as stored."""
    for k in range(rows.size):
        _, begin, end = place_of(first_cell, offset_address, offsets_like, rows[k])
        out[k] = end - begin


@kernel(makes_arrays=False)
def most_tokens(first_cell, offset_address, offsets_like, rows, max_length):
    """Return how many tokens rows have, each cut to ``max_length``; special tokens are counted too."""
    total = 0
    for k in range(rows.size):
        _, begin, end = place_of(first_cell, offset_address, offsets_like, rows[k])
        total += min(end - begin, max_length)
    return total


@kernel(makes_arrays=False)
def longest_row(indptr, n_tokens):
    """Return the length of the longest row, or −1 if ``indptr`` does not rise from 0 to ``n_tokens``."""
    if indptr.size == 0 or indptr[0] != 0 or indptr[-1] != n_tokens:
        return -1
    longest = 0
    for row in range(indptr.size - 1):
        length = indptr[row + 1] - indptr[row]
        if length < 0:
            return -1
        longest = max(longest, length)
    return longest


@kernel(makes_arrays=False)
def number_columns(indptr, start, out):
    """Count the columns of each row from ``start`` on, the rows one after the other in ``out``."""
    for row in range(indptr.size - 1):
        for c in range(indptr[row], indptr[row + 1]):
            out[c] = start + c - indptr[row]


@kernel
def gather_rows(
    first_cell, offset_address, token_address, value_address, offsets_like, tokens_like, rows, size, lo, hi, max_length,
    known, out_indptr, out, out_values,
):  # fmt: skip
    """Copy rows without their special tokens, each cut to ``max_length`` genes, one after the other into ``out``.

    The vocabulary has ``size`` tokens, its genes are [lo, hi). Of a gene that stands in a cell again the first
    occurrence is taken. ``known[cell]`` says what earlier calls found in a cell (NEW, DISTINCT or REPEATS) and is
    written here; one without entries: all cells are distinct. So a cell is looked through once, and copied in vectors
    from then on. ``out_values`` float32 gets the value of each token that is copied; without entries there are none.

    Returns (what, k, token, dropped): OK, or OUTSIDE with the row and the token; with OK the first row and token of
    those that were dropped in cells that were NEW, and their number.
    """
    seen = np.zeros((size + 63) // 64 if known.size > 0 else 0, np.uint64)  # a bit for each token
    n = 0
    dropped, first_row, first_token = 0, -1, -1
    valued = out_values.size > 0
    out_indptr[0] = 0
    for k in range(rows.size):
        s, a, b = place_of(first_cell, offset_address, offsets_like, rows[k])
        begin = n
        state = known[rows[k]] if known.size > 0 else DISTINCT
        if state == DISTINCT and b - a <= max_length:
            address, row = token_address[s], out[n : n + b - a]
            others = 0
            for c in range(row.size):  # mostly genes alone: then a plain copy, in vectors
                token = np.int64(load_at(address, a + c, tokens_like))
                row[c] = token
                others += np.int64(token < lo) + np.int64(token >= hi)
            if others == 0:
                if valued:
                    copied = out_values[n : n + b - a]
                    for c in range(copied.size):
                        copied[c] = load_at(value_address[s], a + c, out_values)
                n += b - a
                out_indptr[k + 1] = n
                continue
        if state != DISTINCT:
            seen[:] = 0
        repeats = 0
        for c in range(a, b):
            token = np.int64(load_at(token_address[s], c, tokens_like))
            if token < 0 or token >= size:
                return OUTSIDE, k, token, 0
            if token < lo or token >= hi:
                continue
            if n - begin == max_length:
                break
            if state != DISTINCT:
                word, bit = token >> 6, np.uint64(1) << np.uint64(token & 63)
                if seen[word] & bit:
                    repeats += 1
                    if state == NEW and first_row < 0:
                        first_row, first_token = k, token
                    continue
                seen[word] |= bit
            out[n] = token
            if valued:
                out_values[n] = load_at(value_address[s], c, out_values)
            n += 1
        out_indptr[k + 1] = n
        if state == NEW:
            dropped += repeats
            known[rows[k]] = REPEATS if repeats > 0 else DISTINCT
    return OK, first_row, first_token, dropped


@kernel(makes_arrays=False)
def surround_rows(indptr, tokens, before, after, longest, out_indptr, out):
    """Copy rows, each cut to ``longest`` and put between the tokens ``before`` and ``after`` (−1: none)."""
    n = 0
    out_indptr[0] = 0
    for row in range(indptr.size - 1):
        if before >= 0:
            out[n] = before
            n += 1
        for c in range(indptr[row], min(indptr[row + 1], indptr[row] + longest)):
            out[n] = tokens[c]
            n += 1
        if after >= 0:
            out[n] = after
            n += 1
        out_indptr[row + 1] = n
