"""Cells of genes with values, made ready for a model (SPEC 8).

    cell     <cls> RPL3 CD3E LYZ …        values    –   4   1  9 …       float32, as they came
    1. draw_id      from the cell as it came, for all that is drawn, the masker's words too
    2. transform    scaled to a total, or bins of the cell's quantiles   –  12   1 50 …
    3. length       a draw of the genes, or the first ones      <cls> and genes, in the order that they had
    4. pad, hide    values of the columns that the masker chose become the mask value

Bins: whole numbers below TABLE are counted, others are sorted; then values and edges, both ascending, are walked
through together. The draw: the genes below a bound of w0 that a histogram gives, ties by column.

Work split: a range of rows a call. Assumed: ``indptr`` rises from 0 to the number of tokens, there are as many values,
outputs are as large as stated.
"""

import numpy as np

from .jit import inline, kernel, stage
from .philox import LOW, S32, philox
from .rows import mix
from .values import content_of

OK, BAD_VALUE, NO_SPACE = 0, 1, 2  # what was found in a row
AS_GIVEN, SCALED, BINS = 0, 1, 2  # transforms
SPREAD, LOWER, UPPER = 0, 1, 2  # which bin a value takes that lies on several edges
BLOCK = np.uint64(2**32 - 4)  # of the words drawn here, which no masker uses
DIGIT = 11  # bits of a digit of the sort; three make 32
TABLE = 1 << DIGIT  # whole numbers below it are counted
APART = 4  # tables that count in turns: equal neighbours would wait for each other
CHOICES, CHOICE_SHIFT = 1 << 10, np.uint64(22)  # the upper 10 bits of a word choose its bucket


@stage
def row_draw(tokens, bits, n, lo, hi, salt):
    """Return the draw_id of a row."""
    total = np.uint64(0)
    for c in range(n):
        is_gene = (tokens[c] >= lo) & (tokens[c] < hi)
        total += content_of(c, tokens[c], bits[c]) if is_gene else np.uint64(0)
    return mix(total + salt)


@stage
def fill_two_words(draw, seed, n, w0, w1):
    """Write the first two words of each column in the block of this file."""
    low, high, key_low, key_high = draw & LOW, draw >> S32, seed & LOW, seed >> S32
    for c in range(n):
        first, second, _, _ = philox(np.uint64(c), BLOCK, low, high, key_low, key_high)
        w0[c] = first
        w1[c] = second


@stage
def read_row(tokens, values, lo, hi, cls, row, given):
    """Copy a row, with ``cls`` before it (−1: nothing); special tokens have the value 0. Return (columns, genes)."""
    n, n_genes = 0, 0
    if cls >= 0:
        row[0], given[0] = cls, 0
        n = 1
    for k in range(tokens.size):
        is_gene = (tokens[k] >= lo) & (tokens[k] < hi)
        row[n + k] = tokens[k]
        given[n + k] = values[k] if is_gene else np.float32(0)
        n_genes += np.int64(is_gene)
    return n + tokens.size, n_genes


@inline
def is_bad(value, positive):
    """Whether a number is no value."""
    return (not abs(value) < np.float32(np.inf)) | (positive & (value < 0))


@stage
def first_bad(values, n, positive):
    """Return the column of the first value that is none, or −1."""
    bad = 0
    for c in range(n):  # in vectors; mostly there is none
        bad += np.int64(is_bad(values[c], positive))
    if bad > 0:
        for c in range(n):
            if is_bad(values[c], positive):
                return c
    return -1


@stage
def scale(values, n, target_sum, out):
    """Out = values / their total · target_sum; the total is the sum of four sums, over every fourth column."""
    a, b, c, d = 0.0, 0.0, 0.0, 0.0
    last = n - n % 4
    for k in range(0, last, 4):
        a += np.float64(values[k])
        b += np.float64(values[k + 1])
        c += np.float64(values[k + 2])
        d += np.float64(values[k + 3])
    for k in range(last, n):
        a += np.float64(values[k])
    total = (a + b) + (c + d)
    if total == 0:
        total = 1.0
    for k in range(n):
        out[k] = np.float32(np.float64(values[k]) / total * target_sum)


@stage
def count_whole(values, n, counts):
    """Count the values if all are whole numbers below TABLE; return the largest, or −1 if they are not."""
    largest, odd = np.int32(0), 0
    for c in range(n):
        within = values[c] < np.float32(TABLE)  # what an int32 does not hold must not become one
        whole = np.int32(values[c] if within else np.float32(0))
        odd += np.int64(np.float32(whole) != values[c])
        largest = max(largest, whole)
    if odd > 0:
        return -1
    size = np.int64(largest) + 1
    for t in range(APART):
        for x in range(size):
            counts[t * TABLE + x] = 0
    last = n - n % APART
    for c in range(0, last, APART):
        for t in range(APART):
            counts[t * TABLE + np.int64(values[c + t])] += 1
    for c in range(last, n):
        counts[np.int64(values[c])] += 1
    for x in range(size):
        counts[x] += counts[TABLE + x] + counts[2 * TABLE + x] + counts[3 * TABLE + x]
    return np.int64(largest)


@inline
def between(a, b, share):
    """A number between two, as NumPy's ``linear`` quantiles have it."""
    return b - (b - a) * (1 - share) if share >= 0.5 else a + (b - a) * share


@stage
def look_bins_up(values, n, largest, counts, quantiles, ties, w1, out):
    """Out = the bins of whole numbers that were counted. Overwrites ``counts``."""
    m = 0
    for x in range(1, largest + 1):
        m += counts[x]
    below, upto = counts[TABLE : 2 * TABLE], counts[2 * TABLE : 3 * TABLE]  # edges below a number, and up to it
    for x in range(largest + 1):
        below[x] = 0
        upto[x] = 0
    x, reached = 0, 0  # sorted values before place ``reached`` are ``x`` at most
    for j in range(quantiles.size if m > 0 else 0):
        place = quantiles[j] * (m - 1)
        first = np.int64(np.floor(place))
        while reached <= first:
            x += 1
            reached += counts[x]
        after = x
        if first + 1 >= reached and first + 1 < m:
            after += 1
            while counts[after] == 0:
                after += 1
        edge = between(np.float64(x), np.float64(after), place - first)
        whole = np.int64(np.floor(edge))
        upto[whole if whole == edge else min(whole + 1, largest)] += 1
        if whole + 1 <= largest:
            below[whole + 1] += 1
    for x in range(1, largest + 1):
        below[x] += below[x - 1]
        upto[x] += upto[x - 1]
    for c in range(n):
        whole = np.int64(values[c])
        low, high = np.int64(below[whole]), np.int64(upto[whole])
        number = high
        if ties == LOWER:
            number = low
        elif ties == SPREAD:
            number = low + np.int64(high > low) + np.int64((w1[c] * np.uint64(high - low)) >> S32)
        out[c] = np.float32(number if whole > 0 else 0)


@stage
def sort_positive(values, n, words, spare, places):
    """Write the columns with a value above 0 to the low halves of ``words``, by rising value.

    Return how many there are.
    """
    m = 0
    bits = values.view(np.uint32)
    for c in range(n):
        words[m] = (np.uint64(bits[c]) << S32) | np.uint64(c)
        m += np.int64(values[c] > 0)
    low = np.uint64((1 << DIGIT) - 1)
    source, target = words, spare
    for digit in range(3):
        shift = np.uint64(32 + DIGIT * digit)
        for b in range(1 << DIGIT):
            places[b] = 0
        for i in range(m):
            places[(source[i] >> shift) & low] += 1
        if m == 0 or places[(source[0] >> shift) & low] == m:
            continue
        before = 0
        for b in range(1 << DIGIT):
            size = places[b]
            places[b] = before
            before += size
        for i in range(m):
            word = source[i]
            b = (word >> shift) & low
            target[places[b]] = word
            places[b] += 1
        source, target = target, source
    for i in range(m):
        words[i] = source[i]
    return m


@inline
def edge_of(values, words, m, quantile):
    """A quantile of the sorted values, float64."""
    place = quantile * (m - 1)
    first = np.int64(np.floor(place))
    a = np.float64(values[np.int64(words[first] & LOW)])
    b = np.float64(values[np.int64(words[min(first + 1, m - 1)] & LOW)])
    return between(a, b, place - first)


@stage
def write_bins(values, m, words, quantiles, ties, w1, edges, out):
    """out[c] = the bin of the value of each sorted column."""
    for j in range(quantiles.size):
        edges[j] = edge_of(values, words, m, quantiles[j])
    below, upto = 0, 0  # edges below the value, and up to it
    for i in range(m):
        c = np.int64(words[i] & LOW)
        x = np.float64(values[c])
        while below < edges.size and edges[below] < x:
            below += 1
        upto = max(upto, below)
        while upto < edges.size and edges[upto] <= x:
            upto += 1
        if ties == LOWER or upto == below:
            number = below
        elif ties == UPPER:
            number = upto
        else:
            number = below + 1 + np.int64((w1[c] * np.uint64(upto - below)) >> S32)
        out[c] = np.float32(number)


@stage
def choose(tokens, n, lo, hi, n_chosen, w0, kept, counts, keys):
    """kept[c] = 1 for all columns that are no gene, and for the ``n_chosen`` genes first by (w0, column)."""
    for b in range(CHOICES):
        counts[b] = 0
    for c in range(n):
        is_gene = (tokens[c] >= lo) & (tokens[c] < hi)
        counts[w0[c] >> CHOICE_SHIFT] += np.int32(is_gene)
    bound, before = 0, 0
    while bound < CHOICES and before + counts[bound] <= n_chosen:
        before += counts[bound]
        bound += 1
    m = 0
    for c in range(n):
        is_gene = (tokens[c] >= lo) & (tokens[c] < hi)
        bucket = np.int64(w0[c] >> CHOICE_SHIFT)
        kept[c] = (not is_gene) | (bucket < bound)
        keys[m] = (w0[c] << S32) | np.uint64(c)
        m += np.int64(is_gene & (bucket == bound))
    for i in range(n_chosen - before):  # a few of a few
        least = i
        for j in range(i + 1, m):
            if keys[j] < keys[least]:
                least = j
        keys[i], keys[least] = keys[least], keys[i]
        kept[np.int64(keys[i] & LOW)] = 1


@kernel
def prepare_rows(
    indptr, tokens, values, salt, seed, lo, hi, cls, transform, target_sum, quantiles, ties, length, sampling, positive,
    out_indptr, out_tokens, out_values, out_raw, zero, draws, first, last,
):  # fmt: skip
    """Transform and shorten the rows [first, last); return (code, row, column).

    tokens int32, values float32: the cells. salt, seed: uint64. cls: the token put before cells that do not begin with
    it, or −1. quantiles (edges,) float64 of BINS. length: most columns of a row. positive: whether values below 0 are
    refused. out_indptr (rows + 1,): where each row goes in out_tokens int32, out_values float32, out_raw float32 (or
    none: values before the transform) and zero uint8 (1 where the value is 0). draws (rows,) uint64: draw_ids.
    """
    longest = 1
    for r in range(first, last):
        longest = max(longest, indptr[r + 1] - indptr[r] + 1)
    row, given, made = np.empty(longest, np.int32), np.empty(longest, np.float32), np.empty(longest, np.float32)
    w0, w1 = np.empty(longest, np.uint64), np.empty(longest, np.uint64)
    words, spare = np.empty(longest + 1, np.uint64), np.empty(longest + 1, np.uint64)
    counts, kept = np.empty(APART * TABLE, np.int32), np.empty(longest, np.uint8)
    edges, given_bits, raw = np.empty(quantiles.size, np.float64), given.view(np.uint32), out_raw.size > 0
    for r in range(first, last):
        begin, end = indptr[r], indptr[r + 1]
        put = cls if end == begin or tokens[begin] != cls else -1
        n, n_genes = read_row(tokens[begin:end], values[begin:end], lo, hi, put, row, given)
        bad = first_bad(given, n, positive)
        if bad >= 0:
            return BAD_VALUE, r, bad - (n - (end - begin))
        draws_genes = sampling and n > length
        if draws_genes and n - n_genes >= length:
            return NO_SPACE, r, n - n_genes
        draws[r] = row_draw(row, given_bits, n, lo, hi, salt)
        if draws_genes or (transform == BINS and ties == SPREAD):
            fill_two_words(draws[r], seed, n, w0, w1)
        if transform == SCALED:
            scale(given, n, target_sum, made)
        elif transform == BINS:
            largest = count_whole(given, n, counts)
            if largest >= 0:
                look_bins_up(given, n, largest, counts, quantiles, ties, w1, made)
            else:
                for c in range(n):
                    made[c] = 0
                m = sort_positive(given, n, words, spare, counts)
                write_bins(given, m, words, quantiles, ties, w1, edges, made)
        else:
            for c in range(n):
                made[c] = given[c]
        m = min(n, length)
        if draws_genes:
            choose(row, n, lo, hi, length - (n - n_genes), w0, kept, counts, words)
            m = 0
            for c in range(n):
                row[m] = row[c]
                made[m] = made[c]
                given[m] = given[c]
                m += np.int64(kept[c])
        at = out_indptr[r]
        for c in range(m):
            out_tokens[at + c] = row[c]
            out_values[at + c] = made[c]
            zero[at + c] = made[c] == 0
        for c in range(m if raw else 0):
            out_raw[at + c] = given[c]
    return OK, 0, 0


@inline
def is_hidden(label, token):
    """Whether a masker put another token where it chose a column."""
    return label != -100 and label != token


@kernel(makes_arrays=False)
def hide_rows(
    indptr, tokens, values, ids, labels, zero_ids, zero_labels, lo, hi, mask_value, pad_value, replace_ids,
    out_values, out_targets, out_masked, first, last,
):  # fmt: skip
    """Pad the values of the rows [first, last), and hide those of the columns that a masker chose.

    ids, labels (rows, columns) int64: what the masker made of the tokens. ids become the tokens again, unless
    ``replace_ids``. zero_ids, zero_labels: the same of a masker of zeros, or no columns. Outputs (rows, columns):
    values and targets of the types of mask_value and pad_value, masked bool. Special tokens and padding have
    ``pad_value``.
    """
    beside = zero_labels.shape[1] > 0
    for r in range(first, last):
        begin, n = indptr[r], indptr[r + 1] - indptr[r]
        for c in range(n):
            token, label = tokens[begin + c], labels[r, c]
            chosen, hidden = label != -100, is_hidden(label, ids[r, c])
            if beside:
                chosen |= zero_labels[r, c] != -100
                hidden |= is_hidden(zero_labels[r, c], zero_ids[r, c])
            out_targets[r, c] = pad_value
            if lo <= token < hi:
                out_targets[r, c] = values[begin + c]
            out_values[r, c] = mask_value if hidden else out_targets[r, c]
            out_masked[r, c] = chosen
            if not replace_ids:
                ids[r, c] = token
        for c in range(n, ids.shape[1]):
            out_values[r, c] = pad_value
            out_targets[r, c] = pad_value
            out_masked[r, c] = False


@kernel(makes_arrays=False)
def split_rows(
    indptr, tokens, masked, targets, raw, pad, pad_value, given_ids, given_values, given_raw, made_ids, made_values,
    made_raw, first, last,
):  # fmt: skip
    """Split the rows [first, last) into the columns that were not chosen and those that were, each padded.

    masked (rows, columns) bool and targets (rows, columns) of ``hide_rows``; raw (nnz,) float32 or none. The raw
    outputs have no columns where there are no raw values.
    """
    with_raw = raw.size > 0
    for r in range(first, last):
        begin, n = indptr[r], indptr[r + 1] - indptr[r]
        g, m = 0, 0
        for c in range(n):
            if masked[r, c]:
                made_ids[r, m] = tokens[begin + c]
                made_values[r, m] = targets[r, c]
                if with_raw:
                    made_raw[r, m] = raw[begin + c]
                m += 1
            else:
                given_ids[r, g] = tokens[begin + c]
                given_values[r, g] = targets[r, c]
                if with_raw:
                    given_raw[r, g] = raw[begin + c]
                g += 1
        for c in range(g, given_ids.shape[1]):
            given_ids[r, c] = pad
            given_values[r, c] = pad_value
            if with_raw:
                given_raw[r, c] = pad_value
        for c in range(m, made_ids.shape[1]):
            made_ids[r, c] = pad
            made_values[r, c] = pad_value
            if with_raw:
                made_raw[r, c] = pad_value
