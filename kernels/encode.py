"""Rank-value encoding in one pass (Theodoris et al. 2023, Geneformer; SPEC 7): a cell's counts to its genes in order.

    value = ((count / total of the cell) * target_sum) / median of the gene        float64, in exactly this order
    tokens of the cell: by falling value, ties by lower token, the first ``limit`` of them

    columns   c0 c1 c2 c3         token_of_column  7 -1 9 4        →  tokens with a value  7 9 4
    counts     2  5  1  1         total 9                             out                  9 7 4   (by their medians)

Usual rows (whole counts, columns that rise, no gene in two columns) take the fast way: no table of sums, and totals in
integers, which are exact. All others take the careful way, entry by entry.

Sorting: values above zero sort as their bits do. The bits below the largest value, cut to two digits, are sorted by
counting (least digit first), with the place of the entry in the low half of the word; genes beyond ``limit`` are left
out before. Where two cut keys are equal, the whole values and the tokens decide.

Work split: ranges of rows, on any number of threads. Assumed: ``indptr`` rises; medians are finite and above zero.
"""

import numpy as np

from .bits import lowest_one
from .jit import kernel, stage

OK, NEGATIVE, FRACTIONAL, NOT_FINITE, BAD_TOTAL, OUTSIDE = 0, 1, 2, 3, 4, 5  # what was found in a row

NOT_COUNTED = -2  # token of a column that is no part of a cell's total; -1: it is, and has no token
BLOCK = 256  # entries whose tokens and counts stay in the first cache until they are divided
MAX_DIGIT = 10  # bits of a digit of the sort
SHORT_RUN = 16  # equal cut keys that are sorted by insertion
LOW_HALF = np.uint64(0xFFFFFFFF)
HALF = np.uint64(32)


@stage
def is_usual(columns, counts, begin, end, n_columns):
    """Return (whether the row takes the fast way, its total)."""
    total = np.int64(0)
    unusual = np.int32(0)
    for k in range(begin, end):
        count = counts[k]
        whole = np.int32(count)
        unusual |= np.int32(whole != count) | np.int32(whole < 0)
        total += np.int64(whole)
    for k in range(begin + 1, end):
        unusual |= np.int32(columns[k] <= columns[k - 1])
    if end > begin:
        unusual |= np.int32(columns[begin] < 0) | np.int32(columns[end - 1] >= n_columns)
    return unusual == 0, total


@stage
def count_usual(columns, counts, begin, end, token_of_column, median_of_token, total, target_sum, tokens, values):
    """Fill tokens and values of a usual row; return how many there are."""
    n = 0
    while begin < end:
        stop = min(begin + BLOCK, end)
        first = n
        for k in range(begin, stop):
            token = token_of_column[np.uint64(columns[k])]
            count = np.float64(counts[k])
            tokens[np.uint64(n)] = token
            values[np.uint64(n)] = count
            n += np.int64(token >= 0) & np.int64(count > 0)
        for i in range(first, n):
            values[i] = values[i] / total * target_sum / median_of_token[np.uint64(tokens[i])]
        begin = stop
    return n


@stage
def count_carefully(columns, counts, begin, end, token_of_column, fractional, sums, seen, tokens, values):
    """Check a row, and add up each gene's counts; return (code, position, how many genes there are, total)."""
    total, n = 0.0, 0
    one = np.uint64(1)
    for k in range(begin, end):
        if columns[k] < 0 or columns[k] >= token_of_column.size:
            return OUTSIDE, k, n, total
        count, token = np.float64(counts[k]), token_of_column[columns[k]]
        if token == NOT_COUNTED:
            continue
        if count < 0:
            return NEGATIVE, k, n, total
        if not count < np.inf:
            return NOT_FINITE, k, n, total
        if count != np.floor(count) and not fractional:
            return FRACTIONAL, k, n, total
        total += count
        if token >= 0 and count > 0:
            sums[token] += count
            seen[token >> 6] |= one << np.uint64(token & 63)
    for word in range(seen.size):
        bits = seen[word]
        seen[word] = 0
        while bits != 0:
            token = (word << 6) + lowest_one(bits)
            bits &= bits - one
            tokens[n] = token
            values[n] = sums[token]
            sums[token] = 0.0
            n += 1
    return OK, 0, n, total


@stage
def precedes(keys, tokens, first, second):
    """Whether entry ``first`` comes before entry ``second``; each in the low half of a word."""
    a, b = np.int64(first & LOW_HALF), np.int64(second & LOW_HALF)
    return keys[a] > keys[b] or (keys[a] == keys[b] and tokens[a] < tokens[b])


@stage
def sort_run(keys, tokens, words, begin, end, spare):
    """Put words[begin:end] in order, by the entries that they name (by insertion, or merging if there are many)."""
    if end - begin <= SHORT_RUN:
        for i in range(begin + 1, end):
            word = words[i]
            j = i
            while j > begin and precedes(keys, tokens, word, words[j - 1]):
                words[j] = words[j - 1]
                j -= 1
            words[j] = word
        return
    width = 1
    while width < end - begin:
        for low in range(begin, end, 2 * width):
            middle, high = min(low + width, end), min(low + 2 * width, end)
            i, j = low, middle
            for k in range(low, high):
                if j >= high or (i < middle and not precedes(keys, tokens, words[j], words[i])):
                    spare[k] = words[i]
                    i += 1
                else:
                    spare[k] = words[j]
                    j += 1
        for k in range(begin, end):
            words[k] = spare[k]
        width *= 2


@stage
def sort_row(keys, tokens, n, limit, words, spare, low_place, high_place, out, position):
    """Write the first ``limit`` of n tokens, by falling key, ties by lower token, to ``out`` from ``position`` on.

    ``keys`` are the bits of the values; ``words`` and ``spare`` need n entries, the places 2**MAX_DIGIT.
    """
    lowest, highest = keys[0], keys[0]
    for i in range(n):
        lowest, highest = min(lowest, keys[i]), max(highest, keys[i])
    digit = 8 if n <= 1024 else 9 if n <= 3072 else MAX_DIGIT
    width, span = 0, highest - lowest
    while span != 0:
        span >>= np.uint64(1)
        width += 1
    cut = np.uint64(max(width - 2 * digit, 0))
    high, low = np.uint64(digit) + HALF, np.uint64((1 << digit) - 1)
    for b in range(1 << digit):
        low_place[b] = 0
        high_place[b] = 0
    for i in range(n):
        word = ((highest - keys[i]) >> cut) << HALF | np.uint64(i)
        high_place[word >> high] += 1
        words[i] = word
    kept = n
    if n > limit:  # leave out the buckets after that of number ``limit``
        kept, last = 0, 0
        while kept + high_place[last] < limit:
            kept += high_place[last]
            last += 1
        kept = 0
        for i in range(n):
            word = words[i]
            words[np.uint64(kept)] = word
            kept += np.int64(np.int64(word >> high) <= last)
    for i in range(kept):
        low_place[words[i] >> HALF & low] += 1
    before_low, before_high = np.int32(0), np.int32(0)
    for b in range(1 << digit):
        size = low_place[b]
        low_place[b] = before_low
        before_low += size
        size = high_place[b]
        high_place[b] = before_high
        before_high += size
    for i in range(kept):
        word = words[i]
        b = word >> HALF & low
        spare[np.uint64(low_place[b])] = word
        low_place[b] += 1
    for i in range(kept):
        word = spare[i]
        b = word >> high
        words[np.uint64(high_place[b])] = word
        high_place[b] += 1
    begin = 0
    for i in range(1, kept + 1):
        if i == kept or words[i] >> HALF != words[begin] >> HALF:
            if i - begin > 1:
                sort_run(keys, tokens, words, begin, i, spare)
            begin = i
    for i in range(min(kept, limit)):
        out[position + i] = tokens[words[i] & LOW_HALF]


@kernel
def encode_rows(
    indptr, columns, counts, token_of_column, median_of_token, once, target_sum, totals, fractional, limit,
    found, out, first, last,
):  # fmt: skip
    """Encode the rows [first, last) of a CSR matrix; return (code, row, entry, first).

    Where all is well, (OK, 0, where the tokens in ``out`` end, first).

    indptr, columns, counts: the matrix, its entries of any integer or floating-point types. token_of_column (columns,)
    int32, -1 or NOT_COUNTED where no token. median_of_token (V,) float64. once: no token has two columns, all count.
    totals (rows,) float64, or none: sums of rows. found (rows,) int64: genes of each row, before the cut to ``limit``.
    out int32: tokens, one row after the other, from indptr[first] - indptr[0] on.
    """
    longest = 0
    for r in range(first, last):
        longest = max(longest, indptr[r + 1] - indptr[r])
    tokens, values = np.empty(longest + 1, np.int32), np.empty(longest + 1, np.float64)
    words, spare = np.empty(longest, np.uint64), np.empty(longest, np.uint64)
    low_place, high_place = np.empty(1 << MAX_DIGIT, np.int32), np.empty(1 << MAX_DIGIT, np.int32)
    keys = values.view(np.uint64)
    sums, seen = np.empty(0, np.float64), np.empty(0, np.uint64)
    position = indptr[first] - indptr[0]
    for r in range(first, last):
        begin, end = indptr[r], indptr[r + 1]
        usual, whole = is_usual(columns, counts, begin, end, token_of_column.size)
        usual = usual and once
        total, n = np.float64(whole), 0
        if not usual:
            if sums.size == 0:
                sums = np.zeros(median_of_token.size, np.float64)
                seen = np.zeros(median_of_token.size // 64 + 1, np.uint64)
            code, entry, n, total = count_carefully(
                columns, counts, begin, end, token_of_column, fractional, sums, seen, tokens, values
            )
            if code != OK:
                return code, r, entry, first
        if totals.size > 0 and total > 0:  # a cell without counts needs no total
            total = totals[r] if totals[r] > 0 else np.inf
        if not total < np.inf:
            return BAD_TOTAL, r, begin, first
        if usual:
            n = count_usual(
                columns, counts, begin, end, token_of_column, median_of_token, total, target_sum, tokens, values
            )
        else:
            for i in range(n):
                values[i] = values[i] / total * target_sum / median_of_token[tokens[i]]
        found[r] = n
        if n > 0:
            sort_row(keys, tokens, n, limit, words, spare, low_place, high_place, out, position)
            position += min(n, limit)
    return OK, 0, position, first


@kernel
def values_of_rows(indptr, columns, counts, token_of_column, n_tokens, out_indptr, tokens, out, first, last):
    """out[k] = the count of the gene tokens[k] in its cell, for the encoded rows [first, last); float32.

    Entries of one gene are added in the order in which they are stored.
    """
    sums = np.zeros(n_tokens, np.float64)
    for r in range(first, last):
        for k in range(indptr[r], indptr[r + 1]):
            token = token_of_column[columns[k]]
            if token >= 0:
                sums[token] += np.float64(counts[k])
        for k in range(out_indptr[r], out_indptr[r + 1]):
            out[k] = np.float32(sums[tokens[k]])
        for k in range(indptr[r], indptr[r + 1]):
            token = token_of_column[columns[k]]
            if token >= 0:
                sums[token] = 0.0
