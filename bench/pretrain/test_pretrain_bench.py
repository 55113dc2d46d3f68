"""The benches of pretraining run and agree at a tiny size, and a wrong step is caught."""

from __future__ import annotations

import sys
from collections import Counter

import pytest
import torch

from corrmask_fast import BertForSparseMaskedLM
from pretrain import contestants, profiling, run
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


def test_a_profile_adds_up_and_finds_what_dropout_draws(workload):
    batch = 4
    found = {name: profiling.profiled(step) for name, step in profiling.steps_of(workload, batch, small=True).items()}
    assert len(found) == 4
    for name, seconds in found.items():
        assert sum(seconds[group] for group in profiling.ALL) == pytest.approx(seconds[profiling.STEP])
        drops = "0.02" in name
        for group in (*profiling.GROUPS, profiling.REST):
            drawn = group == "random numbers of dropout"
            assert (seconds[group] > 0) == (drops or not drawn), f"{name}: {group}"
    timings = profiling.timings_of(found, batch)
    step = f"{OUR_STEP}, dropout 0.0"
    assert timings[f"{step}: {profiling.STEP}"].p50 == found[step][profiling.STEP] * 1e6 / batch


def test_gradients_belong_to_what_they_are_the_gradients_of():
    body, head = torch.nn.Linear(8, 64), torch.nn.Linear(64, 50)
    labelled = profiling.label("head", head.forward)
    scores = torch.nn.functional.scaled_dot_product_attention
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as found:
        hidden = body(torch.randn(1, 1, 16, 8))
        labelled(scores(hidden, hidden, hidden, dropout_p=0.5)).square().mean().backward()
    products = Counter(
        group for group, event in profiling.grouped(found.events()) if event.name.split("::")[-1] in ("addmm", "mm")
    )
    # Forward, and for weights and input of the head, but for the weights of the body: its input needs no gradient.
    assert products == {"prediction head": 3, "linear layers of the encoder": 2}
    attention = Counter(event.name for group, event in profiling.grouped(found.events()) if group == "attention")
    assert attention["aten::bmm"] == 6  # two products, and the gradients for both of their factors
    assert "aten::bernoulli_" not in attention
