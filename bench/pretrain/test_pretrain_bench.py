"""The benches of pretraining run and agree at a tiny size, and a wrong step is caught."""

from __future__ import annotations

import pytest
import records
import torch

from pretrain import contestants
from pretrain.run import time_input, time_steps
from pretrain.targets import OUR_STEP, STEPS, TARGETS


def test_everything_runs_and_becomes_rows(workload):
    shared = records.conditions(workload.describe(), 2, 0.0)
    rows = time_input(workload, 2, shared)
    for case in STEPS:
        rows += time_steps(workload, case, 2, shared, small=True)
    assert {row["case"] for row in rows} == {target.case for target in TARGETS}
    assert records.table(rows, TARGETS).count(OUR_STEP.removeprefix("BertForSparse")) >= 2


def test_a_step_that_differs_is_not_timed(workload, monkeypatch):
    class Wrong(contestants.BertForSparseMaskedLM):
        def forward(self, *args, masked_positions=None, **kwargs):
            fewer = None if masked_positions is None else torch.where(masked_positions < 20, -1, masked_positions)
            return super().forward(*args, masked_positions=fewer, **kwargs)

    monkeypatch.setattr(contestants, "BertForSparseMaskedLM", Wrong)
    with pytest.raises(AssertionError, match="losses"):
        contestants.step_race(workload, 4, 0.0, small=True)
