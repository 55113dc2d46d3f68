"""The random generator: Random123's known answers, and one stream of words in the oracle and in the kernels."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corrmask_fast import Corpus, InputError, reference
from corrmask_fast.cells import corpus
from corrmask_fast.kernels import philox, rows
from corrmask_fast.testing import draw_ids, make_vocabulary

# Random123 1.14, kat_vectors, philox4x32 10: counter, key, answer.
ONES = 0xFFFFFFFF
KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((ONES,) * 4, (ONES,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]
WORD, LONG = st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1)


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN_ANSWERS)
def test_known_answers(counter, key, answer):
    assert reference.philox4x32(counter, key) == answer
    # words() lays the counter out as (column, block, draw_id low, draw_id high), the key as (seed low, seed high).
    column, block, low, high = counter
    seed, draw_id = key[0] | key[1] << 32, low | high << 32
    assert reference.words(seed, draw_id, column, block) == answer
    assert tuple(map(int, philox.words(*map(np.uint64, (seed, draw_id, column, block))))) == answer


@given(LONG, LONG, WORD, WORD)
@settings(max_examples=200, deadline=None, derandomize=True)
def test_the_kernel_gives_the_words_of_the_oracle(seed, draw_id, column, block):
    got = philox.words(*map(np.uint64, (seed, draw_id, column, block)))
    assert tuple(map(int, got)) == reference.words(seed, draw_id, column, block)


def test_a_draw_id_is_read_as_unsigned():
    for draw_id in map(int, draw_ids(6)):
        assert reference.words(3, draw_id, 1, 2) == reference.words(3, draw_id % 2**64, 1, 2)


@pytest.mark.parametrize(
    ("x", "mixed"),
    # splitmix64 seeded with 0 gives mix(1 · golden), mix(2 · golden), …: the published first outputs.
    [
        (0x9E3779B97F4A7C15, 0xE220A8397B1DCDAF),
        (2 * 0x9E3779B97F4A7C15 % 2**64, 0x6E789E6AA1B965F4),
        (3 * 0x9E3779B97F4A7C15 % 2**64, 0x06C45D188009454F),
        (0, 0),
    ],
)
def test_mix_is_the_finaliser_of_splitmix64(x, mixed):
    assert reference.mix(x) == mixed
    assert int(rows.mix(np.uint64(x))) == mixed


def test_content_worked_by_hand():
    """Columns count from the first that is not padding; special tokens leave a gap."""
    terms = [reference.mix((0 << 32) | 7), reference.mix((2 << 32) | 9)]
    assert reference.row_content({0: 7, 2: 9}) == sum(terms) % 2**64
    assert reference.draw_id_of_epoch(5, 3) == reference.mix(5 + 3 * 0x9E3779B97F4A7C15)


# ------------------------------------------------------------------------------------- which cells a graph is made of


def empty_cells(n_cells):
    return Corpus(np.zeros(n_cells + 1, np.int64), np.empty(0, np.int64), make_vocabulary(3))


@pytest.mark.parametrize(("n_cells", "take", "seed"), [(50, 7, 0), (50, 49, 3), (333, 100, 2**64 - 1), (5, 1, 1)])
def test_a_sample_holds_the_cells_with_the_smallest_words(n_cells, take, seed):
    def key(cell):
        w0, w1, _, _ = reference.words(seed, cell, 2**32 - 1, 0)
        return w0, w1, cell

    expected = sorted(sorted(range(n_cells), key=key)[:take])
    assert empty_cells(n_cells).sample_rows(take, seed).tolist() == expected


@pytest.mark.parametrize("take", [20, 21, 10**9])
def test_a_sample_of_all_or_more_is_all(take):
    assert empty_cells(20).sample_rows(take).tolist() == list(range(20))
    assert empty_cells(0).sample_rows(take).tolist() == []


def test_ties_go_to_the_earlier_cell(monkeypatch):
    def equal_keys(seed, first, out):
        out[:] = [1 if cell == 3 else 5 for cell in range(first, first + out.size)]

    monkeypatch.setattr(philox, "sample_keys", equal_keys)
    assert empty_cells(10).sample_rows(4).tolist() == [0, 1, 2, 3]
    assert empty_cells(10).sample_rows(2).tolist() == [0, 3]
    monkeypatch.setattr(corpus, "SAMPLE_BLOCK", 3)
    assert empty_cells(10).sample_rows(4).tolist() == [0, 1, 2, 3]
    assert empty_cells(10).sample_rows(2).tolist() == [0, 3]


def test_a_sample_drawn_in_blocks_is_the_same(monkeypatch):
    expected = {take: empty_cells(100).sample_rows(take, 5).tolist() for take in (1, 7, 50, 99)}
    monkeypatch.setattr(corpus, "SAMPLE_BLOCK", 8)
    assert {take: empty_cells(100).sample_rows(take, 5).tolist() for take in expected} == expected


@pytest.mark.parametrize(
    ("take", "seed", "message"),
    [(0, 0, "n_cells must be an integer >= 1; got 0"), (3, -1, "seed must be"), (3, 2**64, "seed must be")],
)
def test_bad_samples(take, seed, message):
    with pytest.raises(InputError, match=message):
        empty_cells(5).sample_rows(take, seed)
