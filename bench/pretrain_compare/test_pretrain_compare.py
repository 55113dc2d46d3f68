"""The comparison's table and picture come from its rows: means and standard errors over seeds."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("transformers")
SPEC = importlib.util.spec_from_file_location("pretrain_compare_run", Path(__file__).with_name("run.py"))
run = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(run)


def made_up_rows():
    rng = np.random.default_rng(0)
    return [
        {"strategy": name, "fraction": fraction, "cells": int(1000 * fraction), "seed": seed}
        | {f"{tissue}_{kind}": rng.random() for tissue in run.TISSUES for kind in ("macro_f1", "rare_f1")}
        for name in run.STRATEGIES
        for fraction in run.FRACTIONS
        for seed in range(3)
    ]


def test_scores_are_means_over_tissues_with_errors_over_seeds(tmp_path):
    rows = made_up_rows()
    mean, error = run.summarise(rows)["corrmask", 0.3]["macro_f1"]
    own = [row for row in rows if row["strategy"] == "corrmask" and row["fraction"] == 0.3]
    values = np.array([(row["pbmc_macro_f1"] + row["pancreas_macro_f1"]) / 2 for row in own])
    assert mean == pytest.approx(values.mean())
    assert error == pytest.approx(values.std(ddof=1) / np.sqrt(3))
    assert f"{mean:.3f} ± {error:.3f}" in run.table(rows)
    run.plot(rows, tmp_path / "curve.png")
    assert (tmp_path / "curve.png").stat().st_size > 5000
