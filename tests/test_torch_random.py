"""What PyTorch computes of a row is what the oracle does: words, draws, what is maskable; and sampling by weight."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from corrmask_fast import reference
from corrmask_fast.masking.engine.draws import draws_of_tensors
from corrmask_fast.masking.engine.torch_random import (
    draw_ids_of,
    gumbel_priorities,
    maskable_columns,
    mix,
    philox_words,
    relative_columns,
)
from corrmask_fast.testing import cases


def bits(value):
    return torch.tensor([value - 2**64 if value >= 2**63 else value])


@pytest.mark.parametrize("seed", [0, 7, 2**63 + 5, 2**64 - 1])
@pytest.mark.parametrize("draw", [0, 1, 2**32 + 3, 2**64 - 1])
def test_words_are_the_oracles(seed, draw):
    for block in (0, 1, 2**32 - 1):
        columns = torch.tensor([0, 1, 77, 2**32 - 2])
        got = torch.stack(philox_words(bits(seed), bits(draw), columns, block), dim=1)
        assert got.tolist() == [list(reference.words(seed, draw, int(column), block)) for column in columns]


def test_mix_is_the_oracles():
    numbers = [0, 1, 2**31, 2**63, 2**64 - 1, 0x9E3779B97F4A7C15]
    got = torch.cat([mix(bits(number)) for number in numbers])
    assert [int(x) % 2**64 for x in got] == [reference.mix(number) for number in numbers]


@pytest.mark.parametrize("case", cases(), ids=repr)
@pytest.mark.parametrize("epoch", [0, 3])
def test_draws_follow_from_content_and_epoch_as_in_the_kernels(case, epoch):
    ids, vocabulary = torch.from_numpy(case.input_ids), case.graph.vocabulary
    seen = ids != vocabulary.pad_token_id if case.attention_mask is None else torch.from_numpy(case.attention_mask) != 0
    special = None if case.special_tokens_mask is None else torch.from_numpy(case.special_tokens_mask)
    if ids.numel() == 0:
        return
    maskable, columns = maskable_columns(vocabulary, ids, seen, special), relative_columns(seen)
    draws = draws_of_tensors(ids.shape[0], None, epoch, torch.zeros(1, dtype=torch.int64), torch.device("cpu"))
    got = draw_ids_of(draws, ids, maskable, columns)
    for row in range(ids.shape[0]):
        first, expected = reference.maskable_columns(
            case.input_ids[row].tolist(),
            special_token_ids=vocabulary.special_token_ids,
            pad_token_id=vocabulary.pad_token_id,
            attention_mask=None if case.attention_mask is None else case.attention_mask[row].tolist(),
            special_tokens_mask=None if special is None else special[row].tolist(),
        )
        assert maskable[row].nonzero().flatten().tolist() == [first + column for column in expected]
        draw = reference.draw_id_of_epoch(reference.row_content(expected), epoch)
        assert int(got[row]) % 2**64 == draw


def test_columns_of_weight_zero_come_last_and_ties_go_by_column():
    w0 = torch.tensor([[5, 5, 5, 5]])
    assert gumbel_priorities(torch.tensor([[1.0, 0.0, 1.0, 0.0]]), w0).argsort(dim=1).tolist() == [[0, 2, 1, 3]]


def test_sampling_goes_by_weight_without_replacement():
    """Chi-square against the exact chances of every ordered pair of five columns."""
    weights = torch.tensor([1.0, 2.0, 3.0, 0.5, 4.0])
    rows = 40_000
    w0 = torch.from_numpy(np.random.default_rng(0).integers(0, 2**32, (rows, 5)))
    first, second = gumbel_priorities(weights.expand(rows, -1), w0).argsort(dim=1)[:, :2].T
    seen = np.bincount((5 * first + second).numpy(), minlength=25)
    share = (weights / weights.sum()).double().numpy()
    chance = np.array([0 if i == j else share[i] * share[j] / (1 - share[i]) for i in range(5) for j in range(5)])
    cells = chance > 0
    assert seen[~cells].sum() == 0
    statistic = ((seen[cells] - rows * chance[cells]) ** 2 / (rows * chance[cells])).sum()
    degrees = cells.sum() - 1
    assert abs(statistic - degrees) < 5 * math.sqrt(2 * degrees)
