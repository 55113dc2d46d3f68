"""Memory of batches is used again: never while anything made of it is left, and never much of it is kept."""

from __future__ import annotations

import gc
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from corrmask_fast import RandomMasker, buffers
from corrmask_fast.testing import make_vocabulary

GENES = make_vocabulary(200)
IDS = torch.arange(2, 202).repeat(64, 1)
LARGE = (64, 16_384)


@pytest.mark.parametrize(
    "keep",
    [
        lambda masked: masked.labels,
        lambda masked: masked.labels[3:5, ::2],
        lambda masked: masked.labels.numpy(),
        lambda masked: masked.input_ids[1:].reshape(-1)[5:],
        lambda masked: memoryview(masked.labels.numpy()),
        lambda masked: torch.from_numpy(masked.labels.numpy()).numpy()[0],
    ],
)
def test_what_is_kept_of_a_batch_stays_as_it_is(keep):
    masker = RandomMasker(GENES, mlm_probability=0.5)
    kept = [keep(masker(IDS, epoch=epoch)) for epoch in range(8)]
    gc.collect()
    copies = [np.asarray(part).copy() for part in kept]
    for epoch in range(8, 40):
        masker(IDS, epoch=epoch)
    assert all(np.array_equal(part, copy) for part, copy in zip(kept, copies, strict=True))
    assert not np.array_equal(copies[0], copies[1])


def test_threads_never_share_memory():
    def fill(value):
        for _ in range(50):
            array = buffers.empty(LARGE)
            array[:] = value
            if not (array == value).all():
                return False
        return True

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(fill, range(8)))


def test_memory_comes_back_and_little_is_kept():
    """Batch after batch takes no more than one; of many that were alive at a time a part is kept."""
    masker = RandomMasker(GENES)
    masker(IDS, epoch=0)
    tracemalloc.start()
    try:
        for epoch in range(50):
            masker(IDS, epoch=epoch)
        assert tracemalloc.get_traced_memory()[1] < 4 * IDS.numel() * 8
        held = [buffers.empty(LARGE) for _ in range(2 * buffers.KEPT // (8 * LARGE[0] * LARGE[1]))]
        assert all(array.shape == LARGE for array in held)
        del held
        gc.collect()
        assert tracemalloc.get_traced_memory()[0] <= buffers.KEPT + 2**20
    finally:
        tracemalloc.stop()
        buffers._blocks.clear()


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.uint8])
@pytest.mark.parametrize("shape", [(0, 5), (3, 4), (64, 1000), (3, 2**24)])
def test_any_shape_and_dtype(shape, dtype):
    array = buffers.empty(shape, dtype)
    assert (array.shape, array.dtype, array.flags.c_contiguous) == (shape, dtype, True)
