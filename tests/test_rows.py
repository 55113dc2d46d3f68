"""The selections inside the kernels where words tie: too rare (2⁻³² a pair) for any row to show them."""

from __future__ import annotations

import numpy as np
import pytest

from corrmask_fast.kernels import rows


def bits_of(columns, span):
    """Columns as the kernels keep sets: 64 to a word, and a word to spare."""
    words = np.zeros(span // 64 + 2, np.uint64)
    for column in columns:
        words[column // 64] |= np.uint64(1) << np.uint64(column % 64)
    return words


def columns_of(bits):
    return [64 * i + b for i, word in enumerate(bits.tolist()) for b in range(64) if word >> b & 1]


def some_words(rng, size, kind):
    """Words that tie: few values, extreme values, a narrow range, all alike; or real ones."""
    return {
        "few": lambda: rng.choice(np.array([0, 7, 2**31, 2**32 - 1]), size),
        "extreme": lambda: rng.choice(np.array([0, 2**32 - 1, 2**32 - 2]), size),
        "narrow": lambda: rng.integers(5, 9, size),
        "low": lambda: rng.integers(0, 2**20, size),
        "high": lambda: rng.integers(2**32 - 2**20, 2**32, size),
        "alike": lambda: np.full(size, rng.choice([0, 12345, 2**32 - 1])),
        "spread": lambda: rng.integers(0, 2**32, size),
    }[kind]().astype(np.uint32)


KINDS = ["few", "extreme", "narrow", "low", "high", "alike", "spread"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_smallest_columns_are_taken_whatever_the_words(kind):
    rng = np.random.default_rng(KINDS.index(kind))
    for _ in range(120):
        span = int(rng.integers(1, 700))
        w = np.full(-(-span // 64) * 64 + 64, 2**32 - 1, np.uint32)
        w[:span] = some_words(rng, span, kind)
        pool = np.sort(rng.choice(span, rng.integers(1, span + 1), replace=False))
        count = int(rng.choice([0, 1, pool.size // 7, pool.size // 2, pool.size - 1, pool.size]))
        already = np.setdiff1d(np.arange(span), pool)[:5]
        chosen = bits_of(already, span)
        rows.take_smallest(
            w, bits_of(pool, span), span, pool.size, count, chosen, np.zeros(1024, np.uint64), np.zeros(1024, np.uint64)
        )
        smallest = sorted(pool.tolist(), key=lambda column: (w[column], column))[:count]
        assert columns_of(chosen) == sorted([*smallest, *already.tolist()])


@pytest.mark.parametrize("n", [0, 1, 2, 63, 64, 65, 127, 128, 129, 500])
def test_keys_are_sorted(n):
    keys = np.random.default_rng(n).permutation(1000)[:n].astype(np.uint64) << np.uint64(40)
    out, buffer = np.zeros(600, np.uint64), np.zeros(600, np.uint64)
    out[:n] = keys
    rows.sort_keys(out, n, buffer)
    assert out[:n].tolist() == sorted(keys.tolist())
