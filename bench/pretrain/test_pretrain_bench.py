"""The benches of pretraining run and agree at a tiny size, and a wrong step is caught."""

from __future__ import annotations

import sys

import pytest
import torch

from corrmask_fast import BertForSparseMaskedLM
from pretrain import contestants, run
from pretrain.contestants import GOALS, MAM_STEP, OUR_STEP


def test_everything_runs_and_is_judged(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(sys, "argv", ["run.py", "--smoke", "--keep", str(tmp_path)])
    run.main()
    out = capsys.readouterr().out
    lines = [
        line for line in out.splitlines() if line.startswith("| ") and line.rstrip(" |").endswith(("met", "short"))
    ]
    assert {line.split("|")[1].strip() for line in lines} == {goal.what for goal in GOALS}
    assert out.count(f"{OUR_STEP} ") == 2
    assert f"mam: {MAM_STEP} " in out
    assert "nothing is recorded" in out


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
