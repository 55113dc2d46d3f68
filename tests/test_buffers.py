"""Memory that is used again: never while anything made of it is left."""

from __future__ import annotations

import gc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from corrmask_fast import buffers
from corrmask_fast.buffers import SMALLEST, empty

SHAPE = (64, SMALLEST // 8 // 64)


@pytest.fixture(autouse=True)
def _no_blocks(monkeypatch):
    monkeypatch.setattr(buffers, "_blocks", [])


def address(array):
    return array.__array_interface__["data"][0]


def test_a_block_comes_back_when_nothing_of_it_is_left():
    first = empty(SHAPE)
    place = address(first)
    del first
    assert address(empty(SHAPE)) == place


@pytest.mark.parametrize(
    "keep",
    [
        lambda array: array,
        lambda array: array[3:5, ::2],
        torch.from_numpy,
        lambda array: torch.from_numpy(array)[1:].view(-1)[5],
        memoryview,
        lambda array: torch.from_numpy(array).numpy()[0],
    ],
)
def test_a_block_is_not_used_again_while_part_of_it_lives(keep):
    first = empty(SHAPE)
    place = address(first)
    part = keep(first)
    del first
    gc.collect()
    second = empty(SHAPE)
    assert address(second) != place
    del part, second
    gc.collect()
    assert place in {address(array) for array in [empty(SHAPE), empty(SHAPE)]}


def test_threads_never_share_a_block():
    def fill(value):
        for _ in range(50):
            array = empty(SHAPE)
            array[:] = value
            if not (array == value).all():
                return False
        return True

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(fill, range(8)))


@pytest.mark.parametrize(("limit", "value"), [("KEPT", 4 * SMALLEST), ("MOST", 4)])
def test_what_is_kept_is_bounded(monkeypatch, limit, value):
    monkeypatch.setattr(buffers, limit, value)
    held = [empty(SHAPE) for _ in range(20)]
    assert sum(block.nbytes for block in buffers._blocks) == 4 * SMALLEST
    for i, array in enumerate(held):
        array[:] = i
    assert all((array == i).all() for i, array in enumerate(held))


def test_too_large_a_block_is_not_kept(monkeypatch):
    monkeypatch.setattr(buffers, "LARGEST", SMALLEST)
    assert empty((SMALLEST + 8,), np.uint8).shape == (SMALLEST + 8,)
    assert not buffers._blocks


def test_a_block_serves_another_dtype():
    first = empty((SMALLEST // 4,))
    place = address(first)
    del first
    second = empty((SMALLEST // 2 - 3,), np.int32)
    assert address(second) == place
    assert second.dtype == np.int32
    assert second.size == SMALLEST // 2 - 3


def test_small_and_empty_shapes():
    assert empty((0, 5)).shape == (0, 5)
    assert empty((3, 4)).dtype == np.int64
    assert not buffers._blocks
