"""``replace="group"``: what a group masks becomes alike; which columns are masked stays (bits: ``test_parity.py``)."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from corrmask_fast import (
    DependencyGraph,
    InputError,
    MultinomialAttentionMasker,
    RandomMasker,
    ValueReplacement,
    make_masker,
    reference,
)
from corrmask_fast.masking.strategies import STRATEGIES
from corrmask_fast.testing import cases, make_vocabulary

CASE = next(case for case in cases() if case.name == "any length")
ROWS = torch.from_numpy(CASE.input_ids)
GENES = make_vocabulary(200)
MODULES = DependencyGraph.from_edges(
    [(2 + 5 * k + i, 2 + 5 * k + j) for k in range(40) for i in range(5) for j in range(i)], GENES
)
CELLS = torch.from_numpy(np.stack([2 + np.random.default_rng(i).permutation(200) for i in range(60)]))
HALF = {"mlm_probability": 0.25, "mask_replace_prob": 0.5, "random_replace_prob": 0.0}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_same_columns_are_masked(strategy):
    given = {"mlm_probability": 0.5, "seed": 3}
    token, group = (CASE.masker(strategy, replace=replace, **given)(ROWS, epoch=0) for replace in ("token", "group"))
    assert torch.equal(token.labels, group.labels)
    assert torch.equal(token.input_ids, group.input_ids) == (strategy in {"random", "weighted", "random-matched"})


def by_module(columns):
    """Count columns (60, 200) by the module of their gene."""
    return torch.zeros(60, 40, dtype=torch.int64).scatter_add_(1, (CELLS - 2) // 5, columns.long())


@pytest.mark.parametrize("strategy", ["corrmask-100", "corrmask-balanced", "gene-sets"])
def test_no_partner_stays_readable_beside_its_module(strategy):
    """Modules of five genes, all in each cell: what is masked of one is hidden whole or left whole, half each."""
    given = {"graph": MODULES, "sets": {f"module {k}": range(2 + 5 * k, 7 + 5 * k) for k in range(40)}, **HALF}
    masker = make_masker(strategy, replace="group", **given)
    out = masker(CELLS, epoch=0)
    hidden, masked = by_module(out.input_ids == GENES.mask_token_id), by_module(out.labels != -100)
    assert ((hidden == 0) | (hidden == masked)).all()
    n = (masked > 0).sum().item()
    assert n >= 600
    assert abs((hidden > 0).sum().item() / n - 0.5) < 5 * (0.25 / n) ** 0.5
    alone = make_masker(strategy, **given)(CELLS, epoch=0)
    assert set(by_module(alone.input_ids == GENES.mask_token_id).unique().tolist()) == {0, 1, 2, 3, 4, 5}


def test_values_of_a_module_are_hidden_together():
    masker = make_masker("corrmask-balanced", graph=MODULES, replace="group", **HALF)
    out = ValueReplacement(masker, -1.0)(CELLS, torch.full(CELLS.shape, 3.0), epoch=0)
    hidden, masked = by_module(out.values == -1), by_module(out.masked)
    assert ((hidden == 0) | (hidden == masked)).all()
    assert len(hidden.unique()) > 2


def masked_row(tokens, neighbors=None, **given):
    return reference.mask_row(
        tokens, neighbors or {}, vocab_size=len(tokens) + 2, gene_range=(2, len(tokens) + 2), pad_token_id=0,
        mask_token_id=1, special_token_ids=[0, 1], seed=0, structural_ratio=1.0, replace="group",
        random_replace_prob=0.0, **given,
    )  # fmt: skip


def test_the_first_column_decides_though_another_group_brought_it_in():
    """By hand: the second group begins with a column of the first, whose own word decides all the same."""
    answer = [0, 2, 4], [0, 1, 1, 2]
    words = [reference.words(0, 9, column, 0)[2] / 2**32 for column in range(3)]
    bound = sum(sorted(words)[:2]) / 2
    row = masked_row(
        [2, 3, 4, 5], strategy="function", propose=lambda *_: answer, draw_id=9, mlm_probability=0.75,
        mask_replace_prob=bound,
    )  # fmt: skip
    decides = [0, 0, 1]
    assert row.input_ids[:3] == [1 if words[decides[c]] < bound else 2 + c for c in range(3)]
    assert len({words[c] < bound for c in range(3)}) == 2  # or all would become the same anyway


def test_the_leader_decides_though_it_has_another_leader():
    """By hand: a chain of 30 genes. A leader mostly has another leader, and may not be masked itself."""
    n, seen = 30, Counter()
    chain = {2 + c: [2 + d for d in (c - 1, c + 1) if 0 <= d < n] for c in range(n)}
    for draw in range(20):
        words = [reference.words(0, draw, column, 0) for column in range(n)]
        leader = [min((d for d in (c - 1, c, c + 1) if 0 <= d < n), key=lambda d: words[d][0]) for c in range(n)]
        row = masked_row(
            list(range(2, n + 2)), chain, strategy="corrmask-balanced", draw_id=draw, mlm_probability=0.5,
            mask_replace_prob=0.5,
        )  # fmt: skip
        for c in row.masked_positions:
            assert row.input_ids[c] == (1 if words[leader[c]][2] < 2**31 else 2 + c)
            seen["has another", leader[leader[c]] != leader[c]] += 1
            seen["is masked", leader[c] in row.masked_positions] += 1
    assert len(seen) == 4


def test_what_is_refused_and_what_is_kept(tmp_path):
    for wrong in ("span", None, ["group"]):
        with pytest.raises(InputError, match="replace must be 'token' or 'group'; got "):
            RandomMasker(GENES, replace=wrong)
    assert "replace='group'" in repr(RandomMasker(GENES, replace="group"))
    assert "replace" not in repr(RandomMasker(GENES))
    learned = MultinomialAttentionMasker(GENES, 8, graph=MODULES, replace="group")
    learned.save(tmp_path / "m.safetensors")
    assert MultinomialAttentionMasker.load(tmp_path / "m.safetensors", graph=MODULES).replace == "group"
