"""The benches of pretraining run and agree at a tiny size, and a wrong step is caught."""

from __future__ import annotations

import pytest
import records
import torch

from corrmask_fast import BertForSparseMaskedLM
from pretrain import contestants
from pretrain.run import CASES, time_input, time_steps
from pretrain.targets import MAM_STEP, OUR_STEP, TARGETS


def test_everything_runs_and_becomes_rows(workload):
    shared = records.conditions(workload.describe(), 2, 0.0)
    rows = time_input(workload, 2, shared)
    for case in CASES[1:]:
        rows += time_steps(workload, case, 2, shared, small=True)
    assert {row["case"] for row in rows} == {target.case for target in TARGETS}
    assert records.table(rows, TARGETS).count(OUR_STEP.removeprefix("BertForSparse")) >= 2
    assert MAM_STEP in {row["contestant"] for row in rows}


def test_a_step_that_differs_is_not_timed(workload, monkeypatch):
    class Wrong(BertForSparseMaskedLM):
        def forward(self, *args, masked_positions=None, **kwargs):
            fewer = None if masked_positions is None else torch.where(masked_positions < 20, -1, masked_positions)
            return super().forward(*args, masked_positions=fewer, **kwargs)

    make_model = contestants.make_model

    def make_wrong(size, pad, settings):
        model = make_model(size, pad, settings)
        model.__class__ = Wrong if settings.head == "masked" else type(model)
        return model

    monkeypatch.setattr(contestants, "make_model", make_wrong)
    with pytest.raises(AssertionError, match="losses"):
        contestants.step_race(workload, 4, 0.0, small=True)


def test_a_masker_that_learns_nothing_is_not_timed(workload, monkeypatch):
    def deaf(self, embedded, *_):
        return torch.zeros_like(embedded[:, 0]) + 0 * self.latents.sum()

    monkeypatch.setattr(contestants.MultinomialAttentionMasker, "context", deaf)
    with pytest.raises(AssertionError, match="the latents do not learn"):
        contestants.learned_race(workload, 4, small=True)
