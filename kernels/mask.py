"""Masking rows, whatever the strategy (SPEC 4 and 5): one loop, in which only what is proposed differs.

    maskable columns      n; budget B = floor(n·p), quota Q = floor(B·λ); p and λ may be drawn for each row
    proposed columns      by the strategy, in its random order, until Q are masked:
                              CorrMask  seeds and partners       corrmask.py
                              Span      runs of random length    span.py
                              PMI       runs of linked pairs     pmi.py
                              Balanced  whole modules            balanced.py
                              Function  what it returned         function.py
                              Gene sets whole sets               gene_sets.py
    top-up                the columns with the smallest (w1, column), until B are masked
    replacement           80/10/10, labels, positions

Work split: one call takes a range of rows. Assumed: arrays contiguous, the scratch large enough (``engine/rows.py``).
"""

import numpy as np

from .balanced import add_arc
from .bits import prefetch
from .corrmask import expand_seeds, largest_entry, place_genes
from .function import add_proposed
from .gene_sets import add_sets
from .groups import follow_leaders
from .jit import inline, kernel, stage
from .lanes import AT_ONCE, fill_words_placing, weigh_words
from .layout import (
    BALANCED,
    CORRMASK,
    DEGREE,
    FUNCTION,
    GENE_SETS,
    GROUPED,
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
from .pmi import add_runs, find_pairs
from .rows import (
    U0,
    column_words,
    copy,
    find_maskable,
    padding_ends,
    row_draw,
    take_smallest,
    words_for,
    write_row,
)
from .span import add_spans

ALL_AT_ONCE = np.uint64(2**AT_ONCE - 1)


@stage
def row_rates(rates, draw, seed):
    """Return a row's own p and λ: drawn evenly between their ends where those differ."""
    p, ratio = rates[P_LO], rates[RATIO_LO]
    if p < rates[P_HI] or ratio < rates[RATIO_HI]:
        v0, v1, _, _ = philox(RATE_COLUMN, U0, draw & LOW, draw >> S32, seed & LOW, seed >> S32)
        p += (rates[P_HI] - p) * np.float64(v0) / 4294967296.0
        ratio += (rates[RATIO_HI] - ratio) * np.float64(v1) / 4294967296.0
    return p, ratio


@stage
def begin_row(
    tokens, first, width, pool, known, placing, linking, w0, w1, w2, w3, draw, seed, ids, base, pos, size, lookup,
    found, costs, column_costs, out, labels,
):  # fmt: skip
    """Draw the words of all columns, fill the gene table or look up pairs, and ask for the memory that is written to.

    Where genes have ``costs``, w1 become keys by weight, and so do w0 that order seeds, where the gene table is filled.

    The words keep the vector units busy; what is read and written beside them takes little time of its own.
    """
    if placing:
        for begin in range(64 * words_for(width) - AT_ONCE, -1, -AT_ONCE):
            ask_for(out, labels, first + begin)
            if known and ~(pool[begin >> 6] >> np.uint64(begin & 63)) & ALL_AT_ONCE == U0:
                fill_words_placing(
                    w0, w1, w2, w3, begin, U0, draw & LOW, draw >> S32, seed & LOW, seed >> S32,
                    tokens, first, ids, base, pos,
                )  # fmt: skip
            else:
                place_genes(tokens, first, begin, min(begin + AT_ONCE, width), pool, ids, base, pos)
                column_words(w0, w1, w2, w3, begin, U0, draw, seed)
    else:
        for begin in range(0, 64 * words_for(width), AT_ONCE):
            ask_for(out, labels, first + begin)
            if linking:
                find_pairs(tokens, first, begin, min(begin + AT_ONCE, width - 1), size, lookup, found)
            column_words(w0, w1, w2, w3, begin, U0, draw, seed)
    if costs.size:
        for begin in range(0, 64 * words_for(width), AT_ONCE):
            find_costs(tokens, first + begin, first + width - 1, costs, column_costs)
            weigh_words(w1, begin, column_costs, 0)
            if placing:
                weigh_words(w0, begin, column_costs, 0)


@inline
def ask_for(out, labels, column):
    """Ask for the memory that AT_ONCE columns are written to."""
    for c in range(column, column + AT_ONCE, 8):
        prefetch(out, c)
        prefetch(labels, c)


@inline
def find_costs(tokens, begin, last, costs, out):
    """out[k] = the cost of the token in column begin + k; after the last column the last one's, which nobody reads."""
    for k in range(AT_ONCE):
        token = np.uint64(tokens[np.uint64(min(begin + k, last))])
        out[k] = costs[min(token, np.uint64(costs.size - 1))]


@kernel(makes_arrays=False)
def mask(
    begin, end, row_ptr, tokens, attention_mask, special_tokens_mask, draws, mode, offset, seed, rates, settings,
    ids, lookup, indptr, indices, costs, edge_costs, graph_ids, priorities, table_base, rates_before, pos, w0, w1, w2,
    w3, pool, masked, flags, seed_keys, words, keys, order, spare, out_ptr, out, out_attention, labels, positions,
):  # fmt: skip
    """Mask the rows [begin, end) of a batch.

    Row i is tokens[row_ptr[i]:row_ptr[i + 1]], written to [out_ptr[i], out_ptr[i + 1]) of ``out``, ``out_attention``
    and ``labels``, padded on the right, and to row i of ``positions``.
    ``attention_mask`` (0: padding), ``special_tokens_mask`` (1: never masked) and ``priorities`` lie like ``tokens``;
    these, ``graph_ids`` and the output ``out_attention`` may be empty. A priority takes the place of w0, or of w1 where
    the strategy is SAMPLED. A row of ``positions`` must have room for floor(columns · p). ``ids``, ``lookup``,
    ``indptr`` and ``indices`` are what the strategy looks up (``engine/tables.py``); of several graphs ``graph_ids``
    names each row's. ``costs`` (of tokens) and ``edge_costs`` (of neighbours) may be empty: then all weigh the same.
    ``table_base`` (one element) and ``rates_before`` (four) are kept for the next call; the arrays from ``pos`` to
    ``spare`` are scratch. Returns the first row that holds a token outside the vocabulary, or −1.
    """
    key = np.uint64(seed)
    base = table_base[0]
    strategy, size = settings[STRATEGY], settings[SIZE]
    tables, most = ids.size // (size + 1), min(settings[PARTNERS], settings[DEGREE])
    bad = -1
    for row in range(begin, end):
        here, there = slice(row_ptr[row], row_ptr[row + 1]), slice(out_ptr[row], out_ptr[row + 1])
        cell, ranks = tokens[here], priorities[here]
        visible, protected = attention_mask[here], special_tokens_mask[here]
        first, last = padding_ends(cell, visible, settings[PAD])
        width = last - first
        n, known = find_maskable(cell, visible, protected, first, last, settings, pool)
        if not known and bad < 0:
            bad = row
        draw = row_draw(cell, first, pool, width, row, draws, mode, offset) if n > 0 else U0
        p, ratio = row_rates(rates, draw, key)
        budget = np.int64(np.floor(n * p))
        quota = np.int64(np.floor(budget * ratio))
        masked[: words_for(width)] = U0
        grouped = settings[GROUPED] != 0
        table = graph_ids[row] if graph_ids.size else 0
        placing = strategy == CORRMASK or strategy == BALANCED or strategy == GENE_SETS
        placing = placing and quota > 0 and 0 <= table < tables
        numbers = ids[table * (size + 1) : (table + 1) * (size + 1)] if placing else ids
        if placing and base + width > largest_entry(pos):
            pos[:] = 0
            base = 1
        if budget > 0:
            linking = strategy == PMI and quota > 0 and known
            begin_row(
                cell, first, width, pool, known, placing, linking, w0, w1, w2, w3, draw, key, numbers, base, pos, size,
                lookup, spare.view(np.uint16), costs, order.view(np.uint32), out[there], labels[there],
            )  # fmt: skip
            if ranks.size:
                order_by = w1 if strategy == SAMPLED else w0
                copy(ranks[first:last], order_by)
            seeds_weighted = costs.size > 0 and not ranks.size
            count = 0
            if quota == 0 or strategy == RANDOM or strategy == SAMPLED:
                pass
            elif strategy == SPAN:
                if grouped:
                    count = add_spans(pool, masked, w0, w2, width, n, quota, draw, key, seed_keys, order)
                else:
                    count = add_spans(pool, masked, w0, None, width, n, quota, draw, key, seed_keys, order)
            elif strategy == PMI:
                count = add_runs(
                    cell, first, width, pool, known, masked, w0, w2, quota, grouped, size, lookup, seed_keys, order,
                    spare,
                )  # fmt: skip
            elif strategy == BALANCED:
                count = add_arc(
                    cell, first, width, pool, masked, flags, w0, w2, n, quota, grouped, draw, key, placing, numbers,
                    indptr, indices, base, pos, seed_keys, order, spare,
                )  # fmt: skip
            elif strategy == FUNCTION:
                count = add_proposed(pool, masked, w0, width, quota, seed_keys, order, spare)
                if grouped and ranks.size:
                    follow_leaders(w2, masked, width, ranks[first:last].view(np.uint32)[1::2], draw, key)
            elif strategy == GENE_SETS:
                count = add_sets(
                    masked, flags, w0, w2, width, quota, grouped, draw, key, lookup, indptr, indices, base, pos,
                    rates_before, seed_keys, words, keys, order, spare,
                )  # fmt: skip
            elif placing and grouped:
                count = expand_seeds(
                    cell, first, width, pool, masked, flags, w0, w2, n, quota, draw, key, numbers, indptr, indices,
                    edge_costs, most, base, pos, rates_before, seeds_weighted, seed_keys, words, keys, order, spare,
                )  # fmt: skip
            elif placing:
                count = expand_seeds(
                    cell, first, width, pool, masked, flags, w0, None, n, quota, draw, key, numbers, indptr, indices,
                    edge_costs, most, base, pos, rates_before, seeds_weighted, seed_keys, words, keys, order, spare,
                )  # fmt: skip
            for i in range(words_for(width)):
                pool[i] &= ~masked[i]
            if costs.size:
                take_smallest(w1, pool, width, n - count, budget - count, masked, seed_keys, order, rates_before[2:])
            else:
                take_smallest(w1, pool, width, n - count, budget - count, masked, seed_keys, order)
        write_row(
            cell, first, width, masked, w2, w3, settings, out[there], labels[there], out_attention[there],
            positions[row], order,
        )  # fmt: skip
        base += width
    table_base[0] = base
    return bad
