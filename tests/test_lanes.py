"""The explicit vectors of the kernels against plain Python: lengths, offsets and types with branches of their own."""

from __future__ import annotations

import numpy as np
import pytest

from corrmask_fast.kernels import corrmask, rows
from corrmask_fast.kernels.jit import stage
from corrmask_fast.kernels.lanes import LANES, NONE, smallest_keys, write_replaced
from corrmask_fast.kernels.layout import FEW
from corrmask_fast.reference import words

SEED, DRAW = 0xFEDCBA9876543210, 0x0123456789ABCDEF
BASE = 1000


def key_of(column, j):
    return words(SEED, DRAW, column, 1 + j // 4)[j % 4] << 32 | j


@stage
def call_smallest_keys(looked, base, blocks, lanes, draw, seed, out, at):
    low = np.uint64(2**32 - 1)
    half = np.uint64(32)
    smallest_keys(looked, base, blocks, lanes, draw & low, draw >> half, seed & low, seed >> half, out, at)


@stage
def call_write_replaced(tokens, first, size, masked, w2, w3, numbers, out, labels):
    write_replaced(
        tokens, first, size, masked, w2, w3, numbers[0], numbers[1], numbers[2], numbers[3], numbers[4], out, labels
    )


@pytest.mark.parametrize("span", [1, 63, 64, 200])
def test_words_of_all_columns(span):
    arrays = [np.zeros(256, np.uint32) for _ in range(4)]
    rows.column_words(*arrays, span, np.uint64(DRAW), np.uint64(SEED))
    for r in range(span):
        assert tuple(int(array[r]) for array in arrays) == words(SEED, DRAW, r, 0)


@pytest.mark.parametrize("entry", [np.uint16, np.int32])
@pytest.mark.parametrize("blocks", [0, 2, 6, 32])
@pytest.mark.parametrize("share", [0.0, 0.05, 0.5, 1.0])
def test_smallest_keys_of_every_lane(entry, blocks, share):
    rng = np.random.default_rng(blocks)
    looked = np.where(rng.random(4 * LANES * blocks) < share, BASE + 7, BASE - 1).astype(entry)
    lanes = np.concatenate([rng.integers(0, 5000, LANES), rng.integers(0, 90, LANES), np.zeros(LANES)]).astype(
        np.uint64
    )
    lanes[2 * LANES :: 2] = rng.integers(2**62, 2**64, LANES // 2, np.uint64)
    out = np.zeros(100, np.uint64)
    call_smallest_keys(looked, BASE, blocks, lanes, np.uint64(DRAW), np.uint64(SEED), out, 3)
    for lane in range(LANES):
        column, first, least = (int(lanes[i * LANES + lane]) for i in range(3))
        keys = [key_of(column, 4 * first + j) for j in range(4 * blocks) if looked[LANES * j + lane] >= BASE]
        expected = [*sorted(key for key in keys if key >= least), *[int(NONE)] * 5][:5]
        assert out[3 + lane : 3 + lane + 5 * LANES : LANES].tolist() == expected
    assert not out[:3].any()
    assert not out[43:].any()


def made_up_seeds(rng, degrees, n_genes=900, entry=np.uint16):
    """A row of genes whose first ones have so many neighbours; about half of all genes are in the row."""
    indptr = np.concatenate([[0], np.cumsum(degrees), [sum(degrees)] * (n_genes - len(degrees))]).astype(np.int32)
    indices = np.concatenate([np.sort(rng.permutation(n_genes)[:degree]) for degree in degrees]).astype(np.uint16)
    present = np.concatenate([np.arange(len(degrees)), len(degrees) + rng.permutation(n_genes - len(degrees))[:400]])
    tokens = rng.permutation(present)
    pos = rng.integers(0, BASE, n_genes).astype(entry)
    pos[tokens] = BASE + np.arange(tokens.size)
    return indptr, indices, tokens, pos


@pytest.mark.parametrize("most", [1, 2, 5, 6, 40, 700])
@pytest.mark.parametrize(
    "degrees",
    [
        [0],
        [3],
        [FEW],
        [FEW + 1],
        [700],
        [1, 5, 20, 33, 64, 65, 100, 127, 128],
        [129, 2, 600, 4, 130, 0, 128, 31, 0, 7, 8, 9],
    ],
    ids=str,
)
def test_partners_are_the_first_by_key_and_place(degrees, most):
    """Lone seeds, groups of eight and fewer, hubs between them, more partners than one pass finds."""
    indptr, indices, tokens, pos = made_up_seeds(np.random.default_rng(len(degrees) + most), degrees)
    column_of = {int(gene): column for column, gene in enumerate(tokens)}
    at = 3
    seed_keys = np.zeros(at + len(degrees), np.uint64)
    seed_keys[at:] = [(i << 32) | column_of[i] for i in range(len(degrees))]
    partners = np.full(len(degrees) * most, -7, np.int32)
    corrmask.find_partners(
        at, len(degrees), tokens, 0, seed_keys, np.uint64(DRAW), np.uint64(SEED), indptr, indices, most, BASE, pos,
        np.full(4000, 2**16 - 1, np.uint16), np.zeros(24, np.uint64), np.zeros(8 * (most + 5), np.uint64),
        np.zeros(128, np.uint64), np.zeros(128, np.uint64), partners,
    )  # fmt: skip
    for i, degree in enumerate(degrees):
        neighbors = indices[indptr[i] : indptr[i + 1]]
        keyed = sorted((key_of(column_of[i], j), column_of[int(neighbors[j])])
                       for j in range(degree) if int(neighbors[j]) in column_of)  # fmt: skip
        expected = [column for _, column in keyed[:most]]
        assert partners[most * i : most * i + len(expected)].tolist() == expected
        assert len(expected) == most or partners[most * i + len(expected)] == -1


def test_equal_words_of_a_hub_go_by_place():
    """Words of two neighbours tie in one of 2**32 pairs; here by hand, in the lists of different lanes."""
    blocks, length, most = 2, 5, 7
    keys = np.full(LANES * length, NONE)
    listed = [(5, 2, 17), (9, 1, 9), (5, 0, 3), (9, 7, 62), (5, 1, 8), (8, 2, 16), (9, 2, 20)]  # word, lane, place
    for word, lane, j in sorted(listed):
        slot = lane + LANES * next(i for i in range(length) if keys[LANES * i + lane] == NONE)
        keys[slot] = word << 32 | j
    looked = (BASE + np.arange(4 * LANES * blocks)).astype(np.uint16)
    partners = np.zeros(most, np.int32)
    corrmask.merge_lanes(blocks, most, length, BASE, looked, np.zeros(24, np.uint64), keys, partners, 0)
    assert partners.tolist() == [LANES * (j % 8) + lane for _, j, lane in sorted((w, j, lane) for w, lane, j in listed)]


@pytest.mark.parametrize("most", [0, 1, 3])
@pytest.mark.parametrize("quota", range(1, 12))
def test_the_quota_cuts_anywhere(most, quota):
    rng = np.random.default_rng(10 * quota + most)
    seeds, at = 6, 2
    columns = rng.integers(0, 12, at + seeds)  # few columns: many are in already
    partners = np.where(rng.random((seeds, most)) < 0.8, rng.integers(0, 12, (seeds, most)), -1).astype(np.int32)
    expected, used = [], 0
    for i in range(seeds):
        used += 1
        alive = partners[i].tolist()
        alive = alive[: alive.index(-1)] if -1 in alive else alive
        for column in [int(columns[at + i]), *alive]:
            if len(expected) < quota and column not in expected:
                expected.append(column)
        if len(expected) == quota:
            break
    masked = np.zeros(2, np.uint64)
    got = corrmask.add_seeds(at, seeds, columns.astype(np.uint64), most, partners.reshape(-1), quota, 0, masked)
    assert got == (len(expected), used)
    assert [b for b in range(64) if int(masked[0]) >> b & 1] == sorted(expected)


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 64, 75])
def test_replacement_of_columns(dtype, size):
    rng = np.random.default_rng(size)
    first, mask, lo, genes = 5, 1, 4, 1000
    tokens = rng.integers(-5, 2000, first + size + 3).astype(dtype)
    chosen = rng.random(128) < 0.6
    w2, w3 = (rng.integers(0, 2**32, 128).astype(np.uint32) for _ in range(2))
    for mask_below, random_below in ((2**31, 3 * 2**30), (0, 2**32), (2**32, 2**32), (0, 0)):
        out, labels = (np.full(tokens.size, 77, np.int64) for _ in range(2))
        numbers = np.array([mask_below, random_below, lo, genes, mask], np.uint64)
        call_write_replaced(
            tokens, first, size, np.packbits(chosen, bitorder="little").view(np.uint64), w2, w3, numbers, out, labels
        )
        for r, token in enumerate(tokens[first : first + size].tolist()):
            gene = lo + (int(w3[r]) * genes >> 32)
            new = mask if w2[r] < mask_below else gene if w2[r] < random_below else token
            assert out[first + r] == (new if chosen[r] else token)
            assert labels[first + r] == (token if chosen[r] else -100)
        for array in (out, labels):  # and nothing beside
            assert (array[:first] == 77).all()
            assert (array[first + size :] == 77).all()
