"""Batches of at most so many tokens: best fit as in plain Python, every cell once, as many steps for all processes."""

from __future__ import annotations

import numpy as np
import pytest
from torch.utils.data import DataLoader

from corrmask_fast import (
    CorpusDataset,
    DataCollatorForCorrMask,
    InputError,
    PackedBatchSampler,
    RandomMasker,
    read_corpus,
)
from corrmask_fast.testing import make_vocabulary

RNG = np.random.default_rng(0)
LENGTHS = RNG.integers(0, 60, 700)


def best_fit(lengths, max_tokens):
    """Batches by looking through all of them: the least room that suffices, of several the one that came to it last."""
    batches, rooms, changed = [], [], []
    for cell, length in enumerate(lengths):
        fitting = [i for i, room in enumerate(rooms) if room >= length]
        if fitting:
            chosen = min(fitting, key=lambda i: (rooms[i], -changed[i]))
        else:
            chosen = len(batches)
            batches, rooms, changed = [*batches, []], [*rooms, max_tokens], [*changed, 0]
        batches[chosen].append(cell)
        rooms[chosen] -= length
        changed[chosen] = cell
    return batches


@pytest.mark.parametrize("max_tokens", [59, 63, 64, 65, 100, 128, 4095, 4096, 4097, 10_000])
def test_batches_are_those_of_plain_best_fit(max_tokens):
    for lengths in (LENGTHS, LENGTHS[:5], np.minimum(LENGTHS, 1), LENGTHS[:0]):
        sampler = PackedBatchSampler(lengths, max_tokens, shuffle=False)
        expected = best_fit(lengths.tolist(), max_tokens)
        assert list(sampler) == expected
        assert len(sampler) == len(expected)
    long = RNG.integers(0, max_tokens + 1, 300)
    assert list(PackedBatchSampler(long, max_tokens, shuffle=False)) == best_fit(long.tolist(), max_tokens)


@pytest.mark.parametrize("epoch", [0, 5])
def test_every_cell_comes_once_and_no_batch_is_too_long(epoch):
    sampler = PackedBatchSampler(LENGTHS, 200, seed=3)
    sampler.set_epoch(epoch)
    batches = list(sampler)
    assert sorted(cell for batch in batches for cell in batch) == list(range(700))
    totals = [LENGTHS[batch].sum() for batch in batches]
    assert max(totals) <= 200
    assert sampler.fill_rate == pytest.approx(np.mean(totals) / 200)
    assert sampler.fill_rate > 0.97  # cells one after the other, each batch closed by the first that does not fit: 0.87


def test_batches_follow_from_seed_and_epoch():
    def batches(seed, epoch):
        sampler = PackedBatchSampler(LENGTHS, 200, seed=seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert batches(1, 2) == batches(1, 2)
    assert batches(1, 2) != batches(1, 3)
    assert batches(1, 2) != batches(2, 2)
    sampler = PackedBatchSampler(LENGTHS, 200, seed=1)
    assert list(sampler) == list(sampler) == batches(1, 0)
    sampler.set_epoch(2)
    assert list(sampler) == batches(1, 2)
    fixed = PackedBatchSampler(LENGTHS, 200, shuffle=False)
    before = list(fixed)
    fixed.set_epoch(1)
    assert list(fixed) == before


def test_cells_of_a_batch_have_all_lengths():
    lengths = np.concatenate([np.full(300, 10), np.full(300, 50)])
    shares = [np.mean(lengths[batch] == 50) for batch in PackedBatchSampler(lengths, 1000)]
    assert np.median(shares) == pytest.approx(0.5, abs=0.15)
    order = list(PackedBatchSampler(lengths, 60))
    assert any(sum(lengths[batch]) < 60 for batch in order[: len(order) // 2])  # not all of these come last


@pytest.mark.parametrize("drop_last", [False, True])
def test_processes_take_as_many_steps_and_have_all_batches(drop_last):
    everything = list(PackedBatchSampler(LENGTHS, 200))
    assert len(everything) % 5, "nothing would be filled up or dropped"
    shares = [PackedBatchSampler(LENGTHS, 200, num_replicas=5, rank=rank, drop_last=drop_last) for rank in range(5)]
    dealt = [batch for step in zip(*shares, strict=True) for batch in step]
    assert {len(share) for share in shares} == {len(dealt) // 5}
    whole = len(everything) // 5 * 5
    expected = everything[:whole] if drop_last else everything + everything[: whole + 5 - len(everything)]
    assert dealt == expected
    assert shares[2].fill_rate == PackedBatchSampler(LENGTHS, 200).fill_rate


@pytest.mark.parametrize("workers", [0, 2])
def test_a_dataloader_takes_it(workers):
    vocabulary = make_vocabulary(100)
    cells = [RNG.choice(np.arange(2, 102), length, replace=False) for length in RNG.integers(1, 90, 60)]
    dataset = CorpusDataset(read_corpus(cells, vocabulary))
    sampler = PackedBatchSampler(dataset.lengths, 256)
    collator = DataCollatorForCorrMask(RandomMasker(vocabulary), packing=True)
    collator.set_epoch(0)
    loader = DataLoader(dataset, batch_sampler=sampler, collate_fn=collator, num_workers=workers,
                        multiprocessing_context="fork" if workers else None)  # fmt: skip
    assert len(loader) == len(sampler)
    for batch, chosen in zip(loader, sampler, strict=True):
        original = batch["input_ids"].where(batch["labels"] < 0, batch["labels"])
        assert original[0].tolist() == np.concatenate([cells[i] for i in chosen]).tolist()
        assert batch["input_ids"].shape[1] <= 256


def test_bad_values_are_refused():
    with pytest.raises(
        InputError,
        match="cell 1 has 70, max_tokens is 64; raise max_tokens, or read the corpus with max_length=64",
    ):
        PackedBatchSampler([3, 70, 9], 64)
    PackedBatchSampler([3, 64, 9], 64)
    for options, message in (
        ({"max_tokens": 0}, "max_tokens must be"),
        ({"max_tokens": 2**40}, "max_tokens must be"),
        ({"lengths": [[1, 2]]}, "lengths must be one integer per cell"),
        ({"lengths": [1.5]}, "lengths must be one integer per cell"),
        ({"lengths": [[1], [1, 2]]}, r"lengths must be one integer per cell; got \[\[1\], \[1, 2\]\]"),
        ({"lengths": [4, -2]}, "lengths must be >= 0; got -2 of cell 1"),
        ({"seed": -1}, "seed must be"),
        ({"num_replicas": 0}, "num_replicas must be"),
        ({"num_replicas": 2, "rank": 2}, "rank must be"),
    ):
        with pytest.raises(InputError, match=message):
            PackedBatchSampler(**{"lengths": [1, 2], "max_tokens": 8, **options})
    with pytest.raises(InputError, match="epoch must be"):
        PackedBatchSampler([1], 8).set_epoch(-1)
