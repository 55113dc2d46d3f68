"""Masking rows, whatever the strategy (SPEC 4 and 5): one loop, in which only what is proposed differs.

    maskable columns      n; budget B = floor(n·p), quota Q = floor(B·λ); p and λ may be drawn for each row
    proposed columns      by the strategy, in its random order, until Q are masked:
                              CorrMask  seeds and partners       corrmask.py
                              Span      runs of random length    span.py
                              PMI       runs of linked pairs     pmi.py
    top-up                the columns with the smallest (w1, column), until B are masked
    replacement           80/10/10, labels, positions

Work split: one call takes a range of rows. Assumed: arrays contiguous, the scratch large enough (``masking/rows.py``).
"""

import numpy as np

from .corrmask import expand_seeds, largest_entry, place_genes
from .jit import kernel, stage
from .layout import (
    CORRMASK,
    DEGREE,
    P_HI,
    P_LO,
    PAD,
    PARTNERS,
    PMI,
    RANDOM,
    RATIO_HI,
    RATIO_LO,
    SAMPLED,
    SIZE,
    SPAN,
    STRATEGY,
)
from .philox import LOW, RATE_COLUMN, S32, philox
from .pmi import add_runs
from .rows import (
    U0,
    column_words,
    find_maskable,
    padding_ends,
    row_draw,
    take_smallest,
    words_for,
    write_row,
)
from .span import add_spans


@stage
def row_rates(rates, draw, seed):
    """Return a row's own p and λ: drawn evenly between their ends where those differ."""
    p, ratio = rates[P_LO], rates[RATIO_LO]
    if p < rates[P_HI] or ratio < rates[RATIO_HI]:
        v0, v1, _, _ = philox(RATE_COLUMN, U0, draw & LOW, draw >> S32, seed & LOW, seed >> S32)
        p += (rates[P_HI] - p) * np.float64(v0) / 4294967296.0
        ratio += (rates[RATIO_HI] - ratio) * np.float64(v1) / 4294967296.0
    return p, ratio


@kernel
def mask(
    begin, end, row_ptr, tokens, seen, protected, draws, mode, offset, seed, rates, settings,
    lookup, indptr, indices, graph_ids, priorities, table_base, paces, pos, w0, w1, w2, w3, pool, masked, seed_keys,
    looked, lanes, keys, order, spare, partners, out, attention, labels, positions,
):  # fmt: skip
    """Mask the rows [begin, end) of a batch.

    Row i is tokens[row_ptr[i]:row_ptr[i + 1]], written into row i of the outputs, padded on the right. ``seen``,
    ``protected`` (1: attended to, 1: never masked) and ``priorities`` lie like ``tokens``; these, ``graph_ids`` and the
    output ``attention`` may be empty. A priority takes the place of w0, or of w1 where the strategy is SAMPLED.
    ``lookup``, ``indptr`` and ``indices`` hold one table, or several one behind the other, of which ``graph_ids`` names
    each row's. ``table_base`` and ``paces`` (one element each) are kept for the next call. Returns the first row that
    holds a token outside the vocabulary, or −1.
    """
    key = np.uint64(seed)
    base, pace = table_base[0], paces[0]
    strategy, size = settings[STRATEGY], settings[SIZE]
    tables = indptr.size // (size + 1)
    flags = lookup.size // tables
    bad = -1
    for row in range(begin, end):
        here = slice(row_ptr[row], row_ptr[row + 1])
        cell, visible, fixed, ranks = tokens[here], seen[here], protected[here], priorities[here]
        first, last = padding_ends(cell, visible, settings[PAD])
        span = last - first
        n, known = find_maskable(cell, visible, fixed, first, last, settings, pool)
        if not known and bad < 0:
            bad = row
        draw = row_draw(cell, first, pool, span, row, draws, mode, offset) if n > 0 else U0
        p, ratio = row_rates(rates, draw, key)
        budget = np.int64(np.floor(n * p))
        quota = np.int64(np.floor(budget * ratio))
        masked[: words_for(span)] = U0
        if budget > 0:
            column_words(w0, w1, w2, w3, span, draw, key)
            if ranks.size:
                order_by = w1 if strategy == SAMPLED else w0
                for r in range(span):
                    order_by[r] = np.uint32(ranks[first + r])
            count = 0
            table = graph_ids[row] if graph_ids.size else 0
            if quota == 0 or strategy == RANDOM or strategy == SAMPLED:
                pass
            elif strategy == SPAN:
                count = add_spans(pool, masked, w0, span, n, quota, draw, key, seed_keys, order)
            elif strategy == PMI:
                count = add_runs(
                    cell, first, span, pool, known, masked, w0, quota, size, lookup, seed_keys, order, spare
                )
            elif strategy == CORRMASK and 0 <= table < tables:
                if base + span > largest_entry(pos):
                    pos[:] = 0
                    base = 1
                place_genes(cell, first, span, pool, known, base, pos)
                count, pace = expand_seeds(
                    cell, first, span, pool, masked, w0, n, quota, draw, key,
                    lookup[table * flags : (table + 1) * flags],
                    indptr[table * (size + 1) : (table + 1) * (size + 1)], indices,
                    min(settings[PARTNERS], settings[DEGREE]), base, pos, pace, seed_keys, looked, lanes, keys, order,
                    spare, partners,
                )  # fmt: skip
            for i in range(words_for(span)):
                pool[i] &= ~masked[i]
            take_smallest(w1, pool, span, n - count, budget - count, masked, seed_keys, order)
        write_row(
            cell, first, span, masked, w2, w3, settings, out[row], labels[row],
            attention[row] if attention.size else attention[0], positions[row], order,
        )  # fmt: skip
        base += span
    table_base[0], paces[0] = base, pace
    return bad
