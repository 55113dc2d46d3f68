"""The explicit vectors of the kernels against plain Python: lengths, offsets and types with branches of their own."""

from __future__ import annotations

import numpy as np
import pytest

from corrmask_fast.kernels import corrmask, rows
from corrmask_fast.kernels.jit import stage
from corrmask_fast.kernels.lanes import AT_ONCE, neighbor_words, smallest_by_rank, write_replaced
from corrmask_fast.masking.engine.tables import number_connected
from corrmask_fast.reference import words

SEED, DRAW = 0xFEDCBA9876543210, 0x0123456789ABCDEF
BASE = 1000


def key_of(column, j):
    return words(SEED, DRAW, column, 1 + j // 4)[j % 4] << 32 | j


@stage
def call_column_words(w0, w1, w2, w3, begin, draw, seed):
    rows.column_words(w0, w1, w2, w3, begin, draw, seed)


@stage
def call_neighbor_words(column, size, draw, seed, out):
    low = np.uint64(2**32 - 1)
    half = np.uint64(32)
    neighbor_words(column, size, draw & low, draw >> half, seed & low, seed >> half, out)


@stage
def call_smallest_by_rank(keys, n, most):
    return smallest_by_rank(keys, n, most)


@stage
def call_write_replaced(tokens, first, size, masked, w2, w3, numbers, out, labels):
    write_replaced(
        tokens, first, size, masked, w2, w3, numbers[0], numbers[1], numbers[2], numbers[3], numbers[4], out, labels
    )


@pytest.mark.parametrize("begin", [0, 32, 96])
def test_words_of_columns(begin):
    arrays = [np.zeros(160, np.uint32) for _ in range(4)]
    call_column_words(*arrays, begin, np.uint64(DRAW), np.uint64(SEED))
    for r in range(begin, begin + AT_ONCE):
        assert tuple(int(array[r]) for array in arrays) == words(SEED, DRAW, r, 0)
    assert not any(array[:begin].any() or array[begin + AT_ONCE :].any() for array in arrays)


@pytest.mark.parametrize("size", [0, 1, 31, 32, 33, 100])
@pytest.mark.parametrize("column", [0, 5, 4095])
def test_words_of_neighbors(size, column):
    out = np.zeros(160, np.uint32)
    call_neighbor_words(np.uint64(column), size, np.uint64(DRAW), np.uint64(SEED), out)
    assert [int(word) << 32 | j for j, word in enumerate(out[:size])] == [key_of(column, j) for j in range(size)]
    assert not out[-(-size // 32) * 32 :].any()


@pytest.mark.parametrize("n", [0, 1, 15, 16, 17, 50, 64])
@pytest.mark.parametrize("most", [1, 5, 40])
def test_smallest_keys(n, most):
    keys = np.random.default_rng(n).integers(0, 2**64, 64, np.uint64)  # those behind n must not count
    bits = int(call_smallest_by_rank(keys, n, most))
    smallest = sorted(keys[:n].tolist())[:most]
    assert [i for i in range(n) if bits >> i & 1] == [i for i in range(n) if int(keys[i]) in smallest]


def made_up_seeds(rng, degrees, n_genes=900, entry=np.uint16):
    """A row of genes whose first ones have so many neighbours; about half of all genes are in the row."""
    indptr = np.concatenate([[0], np.cumsum(degrees), [sum(degrees)] * (n_genes - len(degrees))]).astype(np.int32)
    indices = np.concatenate([np.sort(rng.permutation(n_genes)[:degree]) for degree in degrees]).astype(np.int64)
    present = np.concatenate([np.arange(len(degrees)), len(degrees) + rng.permutation(n_genes - len(degrees))[:400]])
    tokens = rng.permutation(present)
    return indptr, indices, tokens


@pytest.mark.parametrize("share", [0.02, 0.5, 1.0])
@pytest.mark.parametrize("most", [0, 1, 5, 6, 40, 700])
@pytest.mark.parametrize(
    "degrees", [[3], [64], [700], [1, 5, 20, 33, 64, 65, 100, 127, 128], [129, 2, 600, 4, 130, 128, 31, 7]], ids=str
)
def test_seeds_and_partners_in_order(degrees, most, share):
    """Any quota cuts where the reference would, whatever share of neighbours is expected to be there."""
    rng = np.random.default_rng(len(degrees) + most)
    indptr, indices, tokens = made_up_seeds(rng, degrees)
    column_of = {int(gene): column for column, gene in enumerate(tokens)}
    # Neighbours have numbers of their own here: each gene has one neighbour at least.
    indptr[len(degrees) + 1 :] += np.arange(1, indptr.size - len(degrees), dtype=np.int32)
    indices = np.concatenate([indices, np.zeros(900 - len(degrees), np.int64)])
    table = number_connected(indptr, indices, 900)
    pos = rng.integers(0, BASE, 901).astype(np.uint16)
    pos[table.ids[tokens]] = BASE + np.arange(tokens.size)
    seed_keys = np.array([(i << 32) | column_of[i] for i in range(len(degrees))], np.uint64)
    order: list[int] = []
    used_at = []
    for i, degree in enumerate(degrees):
        neighbors = indices[indptr[i] : indptr[i] + degree].tolist()
        keyed = sorted((key_of(column_of[i], j), column_of[g]) for j, g in enumerate(neighbors) if g in column_of)
        for column in [column_of[i], *(column for _, column in keyed[:most])]:
            if column not in order:
                order.append(column)
                used_at.append(i + 1)
    scratch = np.zeros(800, np.uint32), np.zeros(800, np.uint64), np.zeros(800, np.uint64), np.zeros(2, np.uint64)
    for quota in {1, 2, 3, len(order) // 2 + 1, len(order), len(order) + 1}:
        flags = np.zeros(tokens.size, np.uint8)
        got = corrmask.add_seeds(
            len(degrees), tokens, 0, flags, quota, 0, np.uint64(DRAW), np.uint64(SEED), *table, most, share, BASE,
            pos, seed_keys, *scratch,
        )  # fmt: skip
        expected = order[:quota]
        assert got == (len(expected), used_at[quota - 1] if quota <= len(order) else len(degrees))
        assert np.flatnonzero(flags).tolist() == sorted(expected)


def test_numbers_of_connected_genes_in_stacked_graphs():
    """The second graph's numbers follow the first's, and name the same genes' neighbours."""
    first, second = [[2], [], [0, 3], [2]], [[1], [0], [], []]
    rows_of = first + second
    indptr = np.array([0, 1, 1, 3, 4, 4, 5, 6, 6, 6], np.int32)
    table = number_connected(indptr, np.array([2, 0, 3, 2, 1, 0]), 4)
    assert table.ids.tolist() == [1, 0, 2, 3, 0, 4, 5, 0, 0, 0]
    assert table.ids.dtype == table.indices.dtype == np.uint16
    genes = np.flatnonzero(table.ids)
    for number, gene in enumerate(genes, start=1):
        graph, token = divmod(int(gene), 5)
        neighbors = table.indices[table.indptr[number] : table.indptr[number + 1]]
        assert [int(genes[other - 1]) - 5 * graph for other in neighbors] == rows_of[4 * graph + token]


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
