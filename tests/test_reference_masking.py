"""The oracle of Algorithm 2 on rows worked by hand: its random words are set, so that each step can be followed."""

from __future__ import annotations

import pytest

from corrmask_fast import reference

PAD, MASK, CLS, EOS = range(4)
A, B, C, D, E, F, G, H = range(4, 12)
LARGE = 2**32 - 1


@pytest.fixture
def set_words(monkeypatch):
    """Set words: {column: (w0, w1, w2, w3)} of block 0, {(column, block): four keys}; all others are large."""

    def use(table):
        def words(seed, draw_id, column, block):
            return table.get((column, block) if block else column, (LARGE,) * 4)

        monkeypatch.setattr(reference, "words", words)

    return use


def mask(tokens, neighbors, **options):
    return reference.mask_row(
        tokens,
        neighbors,
        **{
            "vocab_size": 12,
            "gene_range": (4, 12),
            "pad_token_id": PAD,
            "mask_token_id": MASK,
            "special_token_ids": (PAD, MASK, CLS, EOS),
            "seed": 0,
            "draw_id": 0,
            "mask_replace_prob": 1.0,
            "random_replace_prob": 0.0,
            **options,
        },
    )


def order(*columns):
    """w0 and w1 that put columns in this order; nothing is replaced by <mask> unless that is certain."""
    return {column: (place, place, 0, 0) for place, column in enumerate(columns)}


ROW = [A, B, C, D, E, F, G, H]


def test_a_seed_brings_its_partners_in_the_order_of_their_keys(set_words):
    # n = 8, B = Q = 3. Seeds in the order C (2), A (0), H (7), F (5); C's neighbours A, F, H have the keys 30, 10, 20.
    graph = {C: [A, F, H], A: [C], F: [C], H: [C]}
    set_words({**order(2, 0, 7, 5, 1, 3, 4, 6), (2, 1): (30, 10, 20, 0)})
    options = {"mlm_probability": 0.38, "structural_ratio": 1.0}
    assert mask(ROW, graph, **options, max_partners=3).masked_positions == [2, 5, 7]  # C, F, H; A is cut off
    assert mask(ROW, graph, **options, max_partners=2).masked_positions == [2, 5, 7]
    assert mask(ROW, graph, **options, max_partners=1).masked_positions == [0, 2, 5]  # C, F; then the seed A
    assert mask(ROW, graph, **options, max_partners=0).masked_positions == [0, 2, 7]  # the seeds C, A, H


def test_the_quota_cuts_a_group_and_the_budget_is_filled_at_random(set_words):
    # B = floor(8 · 0.5) = 4, Q = floor(4 · 0.5) = 2: C and its first partner F (key 10); H and A are cut off.
    graph = {C: [A, F, H], A: [C], F: [C], H: [C]}
    table = order(2, 0, 5, 7, 1, 3, 4, 6)
    # Top-up by w1: columns 6 and 4 come first.
    table |= {6: (60, 0, 0, 0), 4: (61, 1, 0, 0)} | {c: (table[c][0], 9, 0, 0) for c in (0, 1, 3, 7)}
    set_words({**table, (2, 1): (30, 10, 20, 0)})
    masked = mask(ROW, graph, mlm_probability=0.5, structural_ratio=0.5)
    assert masked.masked_positions == [2, 4, 5, 6]
    assert masked.labels == [-100, -100, C, -100, E, F, G, -100]
    assert masked.input_ids == [A, B, MASK, D, MASK, MASK, MASK, H]


def test_a_seed_that_is_masked_already_still_brings_its_partners(set_words):
    # Seeds C, then F (C's partner, so in M already), which brings G. Without that rule D would be next.
    graph = {C: [F], D: [E], E: [D], F: [C, G], G: [F]}
    set_words({**order(2, 5, 3, 4, 6, 0, 1, 7), (2, 1): (1, 0, 0, 0), (5, 1): (2, 1, 0, 0)})
    options = {"mlm_probability": 0.38, "structural_ratio": 1.0}  # B = Q = 3
    assert mask(ROW, graph, **options).masked_positions == [2, 5, 6]
    # With one partner F's is G (key 1 before C's 2) …
    assert mask(ROW, graph, **options, max_partners=1).masked_positions == [2, 5, 6]
    # … and if its key came first F would bring C, which is in already, and D follows.
    set_words({**order(2, 5, 3, 4, 6, 0, 1, 7), (2, 1): (1, 0, 0, 0), (5, 1): (1, 2, 0, 0)})
    assert mask(ROW, graph, **options, max_partners=1).masked_positions == [2, 3, 5]


def test_only_present_neighbors_are_partners_but_all_count_for_the_keys(set_words):
    # D's neighbours by token: A, B, C, E, F (j = 0 … 4); B and C are not in the cell. F's key stands in block 2.
    row = [A, D, E, F, G, H]
    graph = {D: [A, B, C, E, F], A: [D], B: [D], C: [D], E: [D], F: [D]}
    keys = {(1, 1): (9, 0, 0, 7), (1, 2): (8, 0, 0, 0)}  # A 9, E 7, F 8
    set_words({**order(1, 0, 2, 3, 4, 5), **keys})
    options = {"mlm_probability": 0.5, "structural_ratio": 1.0, "max_partners": 2}
    assert mask(row, graph, **options).masked_positions == [1, 2, 3]  # D, E, F


def test_ties_go_to_the_earlier_neighbor_and_the_earlier_column(set_words):
    graph = {B: [A, C, D], A: [B], C: [B], D: [B]}
    set_words({1: (0, 0, 0, 0), (1, 1): (5, 5, 5, 5), **dict.fromkeys((0, 2, 3, 4, 5, 6, 7), (7, 7, 0, 0))})
    masked = mask(ROW, graph, mlm_probability=0.5, structural_ratio=0.5, max_partners=1)  # B = 4, Q = 2
    assert masked.masked_positions == [0, 1, 2, 3]  # B with A; then by column
    masked = mask(ROW, graph, mlm_probability=0.5, structural_ratio=1.0, max_partners=0)  # all four are seeds
    assert masked.masked_positions == [0, 1, 2, 3]


def test_a_repeated_gene_is_a_seed_and_a_partner_at_its_first_column(set_words):
    row = [A, B, A, B, C, D, A, A]
    graph = {A: [B], B: [A]}
    # Columns 2, 3, 6, 7 have the smallest words but repeat A and B: they are no seeds, and nobody's partner.
    set_words(order(2, 3, 6, 7, 1, 0, 4, 5))
    masked = mask(row, graph, mlm_probability=0.5, structural_ratio=0.5)  # B = 4, Q = 2
    assert masked.masked_positions == [0, 1, 2, 3]  # seed B (column 1) brings A (column 0); then the top-up
    assert masked.labels[:4] == [A, B, A, B]


def test_a_quota_without_enough_seeds_is_filled_at_random(set_words):
    set_words(order(7, 6, 5, 4, 3, 2, 1, 0))
    assert mask(ROW, {A: [B], B: [A]}, mlm_probability=0.5, structural_ratio=1.0).masked_positions == [0, 1, 6, 7]
    assert mask(ROW, {}, mlm_probability=0.5, structural_ratio=1.0).masked_positions == [4, 5, 6, 7]
    # Genes whose neighbours are not in the cell are seeds all the same (they have neighbours in the graph).
    alone = mask([A, C, D, E], {A: [B], B: [A]}, mlm_probability=0.5, structural_ratio=0.5)
    assert alone.masked_positions[0] == 0


def test_special_tokens_and_padding_are_neither_masked_nor_counted(set_words):
    # Columns count from the first that is not padding: here the <cls> in column 2 is column 0.
    row = [PAD, PAD, CLS, A, B, MASK, C, D, EOS, PAD]
    set_words(order(0, 3, 6, 5, 4, 2, 1))  # specials first: <cls>, <mask>, <eos>; then D, C, B, A
    masked = mask(row, {}, mlm_probability=0.5, structural_ratio=0.5)  # n = 4, B = 2
    assert masked.masked_positions == [6, 7]
    assert masked.input_ids == [PAD, PAD, CLS, A, B, MASK, MASK, MASK, EOS, PAD]
    assert masked.labels == [-100] * 6 + [C, D, -100, -100]


def test_masks_given_by_the_caller(set_words):
    set_words(order(7, 6, 5, 4, 3, 2, 1, 0))
    seen = [0, 1, 1, 0, 1, 1, 1, 1]  # the row begins in column 1; column 3 is a hole
    masked = mask(ROW, {}, mlm_probability=0.4, attention_mask=seen)  # n = 6, B = 2
    assert masked.masked_positions == [6, 7]
    protected = [0, 0, 0, 0, 0, 0, 1, 1]
    masked = mask(ROW, {}, mlm_probability=0.4, attention_mask=seen, special_tokens_mask=protected)  # n = 4, B = 1
    assert masked.masked_positions == [5]
    row = [A, PAD, B, C, D, E, F, CLS]  # attended to, but padding and <cls> are special tokens of the vocabulary
    masked = mask(row, {}, mlm_probability=0.99, attention_mask=[1] * 8, special_tokens_mask=[0] * 8)  # n = 6, B = 5
    assert masked.masked_positions == [2, 3, 4, 5, 6]


@pytest.mark.parametrize(
    ("n", "p", "ratio", "budget"),
    [
        (6, 0.15, 1.0, 0),
        (7, 0.15, 1.0, 1),
        (20, 0.15, 0.5, 3),
        (100, 0.29, 1.0, 28),
        (1, 0.999, 1.0, 0),
        (0, 0.5, 1.0, 0),
    ],
)
def test_budgets_are_floors_of_float64_products(n, p, ratio, budget):
    """100 · 0.29 is 28.999999999999996 in float64."""
    masked = mask([4 + i % 8 for i in range(n)], {}, mlm_probability=p, structural_ratio=ratio)
    assert len(masked.masked_positions) == budget


def test_replacement_thresholds(set_words):
    half, three_quarters = 2**31, 3 * 2**30
    row = [A, B, C, D, E, F]
    table = {
        0: (0, 0, half - 1, 0),  # below a half: <mask>
        1: (1, 1, half, 0),  # from there to three quarters: the gene lo + (w3 · 8 >> 32)
        2: (2, 2, three_quarters - 1, 2**32 - 1),
        3: (3, 3, three_quarters, 0),  # from there: unchanged, but masked all the same
        4: (4, 4, half, 2**29 - 1),
        5: (5, 5, half, 2**29),
    }
    set_words(table)
    options = {"mlm_probability": 0.999, "mask_replace_prob": 0.5, "random_replace_prob": 0.25}
    masked = mask(row, {}, **options)
    assert masked.masked_positions == [0, 1, 2, 3, 4]
    assert masked.input_ids == [MASK, 4, 11, D, 4, F]
    assert masked.labels == [A, B, C, D, E, -100]
    assert mask([*row, G], {}, **options).input_ids[5] == 5  # w3 = 2**29 is an eighth: the second of eight genes


def test_the_epoch_and_the_content_make_the_draw():
    row = [PAD, CLS, A, B, C, D, E, F, G, H, EOS]
    content = sum(reference.mix((column << 32) | token) for column, token in enumerate(ROW, start=1))
    draw_id = reference.mix(content + 7 * reference.GOLDEN)
    options = {"mlm_probability": 0.5}
    by_epoch = mask(row, {A: [B], B: [A]}, draw_id=None, epoch=7, **options)
    assert by_epoch == mask(row, {A: [B], B: [A]}, draw_id=draw_id, **options)
    # What stands at special tokens is no part of it, what is protected neither.
    assert mask([PAD, EOS, *row[2:]], {}, draw_id=None, epoch=7, **options).labels[2:] == by_epoch_labels(row, options)


def by_epoch_labels(row, options):
    return mask(row, {}, draw_id=None, epoch=7, **options).labels[2:]


def test_a_token_outside_the_vocabulary():
    for token in (-1, 12):
        with pytest.raises(ValueError, match=rf"token {token} in column 1 must be in \[0, 12\)"):
            mask([A, token, B], {})
        row = [token] * 10
        masked = mask(row, {}, validate=False, mlm_probability=0.5)
        assert len(masked.masked_positions) == 5  # a gene without neighbours
        assert [x for x in masked.labels if x != -100] == [token] * 5


def test_padding_alone_is_a_row_without_anything_to_mask():
    assert mask([PAD] * 5, {A: [B]}) == ([PAD] * 5, [-100] * 5, [])
    assert mask([], {}) == ([], [], [])
