"""The bench's own arithmetic, and a run at tiny sizes that ends with its tables."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from graph import goals, growth, peers, run


def row(case, contestant, seconds, **more):
    return {"case": case, "contestant": contestant, "seconds": seconds, "peak_gib": 2.0, "note": ""} | more


def test_goals_are_met_short_or_not_run():
    rows = [
        row("big", goals.OURS, 40.0, peak_gib=7.5),
        row("big", goals.SGEMM, 300.0),
        row("d12k", goals.OURS, 5.0),
        row("d12k", goals.MKL, 15.0),
        row("d4k", goals.OURS, 1.0),
        row("d4k", goals.SCIPY, "", note="not installed"),
    ]
    verdicts = {line[0]: line[-1] for line in goals.compare(rows)}
    assert verdicts["25 000 genes × 100 000 cells"] == "met"
    assert verdicts["12 000 genes × 20 000 cells"] == "short"
    assert verdicts["4 000 genes × 20 000 cells"] == "not installed"
    assert verdicts["overlap Spearman, overlap 200"] == "not run"
    assert verdicts["memory of 25 000 × 100 000, GiB"] == "short"


def test_the_fit_finds_the_exponents():
    rows = [
        {"n_cells": cells, "n_genes": genes, "seconds": 3e-9 * cells**0.9 * genes**1.7}
        for cells in (100, 1000)
        for genes in (50, 500)
    ]
    assert growth.fit(rows) == pytest.approx((3e-9, 0.9, 1.7))


def test_a_peer_gets_the_largest_size_that_fits_its_minute(monkeypatch):
    monkeypatch.setattr(peers, "free_memory", lambda: 1e12)
    assert peers.largest_size(1.0, 500, 60.0, 20_000, 12_000) == 2_000
    assert peers.largest_size(0.01, 500, 60.0, 20_000, 11_500) == 11_500
    assert peers.largest_size(90.0, 500, 60.0, 20_000, 12_000) == 200
    monkeypatch.setattr(peers, "free_memory", lambda: 4e9)
    assert peers.largest_size(0.01, 500, 60.0, 20_000, 12_000) == 2_000


def test_a_peer_agrees_and_a_wrong_one_is_found_out(monkeypatch):
    rng = np.random.default_rng(0)
    dense = rng.integers(0, 4, (60, 5))
    cells, columns = np.nonzero(dense.T)[::-1]
    arrays = {
        "n_cells": np.array(60),
        "indptr": np.concatenate([[0], np.cumsum((dense > 0).sum(axis=0))]),
        "cells": cells,
        "values": dense[cells, columns],
        "e": dense[cells, columns],
        "exact": peers.scipy.stats.spearmanr(dense).statistic,
    }
    assert peers.time_peer("NumPy corrcoef of ranks", arrays, 5)["largest_error"] < 1e-12
    monkeypatch.setattr(peers.scipy.stats, "rankdata", lambda x, **_: x)
    assert peers.time_peer("NumPy corrcoef of ranks", arrays, 5)["largest_error"] > 1e-3


def test_a_smoke_run(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(sys, "argv", ["run.py", "--smoke", "--keep", str(tmp_path)])
    run.main()
    said = capsys.readouterr().out
    assert "4 000 genes × 20 000 cells" in said
    assert "time grows as" in said
    assert "NumPy corrcoef of ranks" in said
    assert "nothing is recorded" in said
    assert (tmp_path / "graph_growth.png").stat().st_size > 10_000
