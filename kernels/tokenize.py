"""Medians of scaled counts, and what they are found from (Theodoris et al. 2023, Geneformer; SPEC 7).

    value = (count / total of the cell) * target_sum        float64, in exactly this order

The total is over all columns, also those of genes outside the vocabulary, or given; columns of one gene are summed
first (whole numbers below 2**53: exact in any order). Genes of count 0 have no place in the cell.

    columns   c0 c1 c2 c3         token_of_column  7 -1 9 7        →  tokens (ascending) 7 9
    counts     2  5  0  1                                             values             (3 / 8) * target_sum …

``scale_rows`` makes that, and ``histogram_values`` and ``collect_values`` find exact medians: float64 values above zero
sort as their bits do (read as int64), so a gene's median is found by narrowing an interval of bits, pass by pass over
the file. Ranking is kernels/encode.py.

Work split: the first takes rows, the others tokens; ranges of these may run on any number of threads.
Assumed: column indices lie inside ``token_of_column``.
"""

import numpy as np

from .encode import BAD_TOTAL, OK, count_carefully
from .jit import kernel

N_BINS = 1024  # bins of a histogram: each pass narrows a gene's interval by ten bits


@kernel
def scale_rows(
    indptr, columns, counts, token_of_column, n_tokens, target_sum, totals, fractional,
    out_lengths, out_tokens, out_values, first, last,
):  # fmt: skip
    """Sum the columns of each gene and scale: rows [first, last) of a CSR matrix of float64 counts.

    ``totals`` holds one for each row, or none: then it is the sum of the row. ``fractional`` lets fractions pass.

    Row r's tokens, ascending, and values go to ``out_tokens`` and ``out_values`` from ``indptr[r]`` on, as many as
    ``out_lengths[r]``. ``token_of_column`` is as in kernels/encode.py. Returns (code, row, position in ``counts``).
    """
    sums = np.zeros(n_tokens, np.float64)
    seen = np.zeros(n_tokens // 64 + 1, np.uint64)  # a bit a token: reading it gives the tokens in order
    for r in range(first, last):
        begin, end = indptr[r], indptr[r + 1]
        values = out_values[begin:end]
        code, position, n, total = count_carefully(
            columns, counts, begin, end, token_of_column, fractional, sums, seen, out_tokens[begin:end], values
        )
        if code != OK:
            return code, r, position
        if totals.size > 0 and total > 0:  # a cell without counts needs no total
            total = totals[r] if totals[r] > 0 else np.inf
        if not total < np.inf:
            return BAD_TOTAL, r, begin
        for i in range(n):
            values[i] = values[i] / total * target_sum
        out_lengths[r] = n
    return OK, 0, 0


@kernel
def histogram_values(indptr, lengths, tokens, bits, low, shift, histogram, first_token, last_token):
    """Count values of tokens [first_token, last_token) into N_BINS bins of 2**shift bits each.

    ``bits`` (int64) are those of the values; ``low[token]`` is where the token's interval of bits begins. What lies
    outside the interval is not counted.
    """
    for r in range(lengths.size):
        for k in range(indptr[r], indptr[r] + lengths[r]):
            token = tokens[k]
            if first_token <= token < last_token:
                offset = bits[k] - low[token]
                if offset >= 0 and offset >> shift < N_BINS:  # N_BINS << shift may be 2**63
                    histogram[token, offset >> shift] += 1


@kernel
def collect_values(indptr, lengths, tokens, bits, low, width, above, place, ends, out, first_token, last_token):
    """Write the values inside each token's interval of ``width`` bits, and lower ``above`` to the least beyond it.

    Values of a token go to ``out`` from ``place[token]``, which moves on, and never after ``ends[token]``.
    """
    for r in range(lengths.size):
        for k in range(indptr[r], indptr[r] + lengths[r]):
            token = tokens[k]
            if first_token <= token < last_token:
                offset = bits[k] - low[token]
                if offset >= width:
                    above[token] = min(above[token], bits[k])
                elif offset >= 0 and place[token] < ends[token]:
                    out[place[token]] = bits[k]
                    place[token] += 1


@kernel
def scatter_columns(indptr, rows, counts, first_column, place, out_columns, out_counts):
    """Turn a block of CSC columns into CSR: entry of row i goes to ``place[i]``, which moves on."""
    for j in range(indptr.size - 1):
        for k in range(indptr[j], indptr[j + 1]):
            p = place[rows[k]]
            place[rows[k]] = p + 1
            out_columns[p] = first_column + j
            out_counts[p] = counts[k]
