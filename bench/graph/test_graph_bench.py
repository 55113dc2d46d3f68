"""The bench's own arithmetic, and a run at tiny sizes that ends with its tables."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from harness.goals import compare

from graph import child, growth, peers, run


def row(case, contestant, seconds, **more):
    return {"case": case, "contestant": contestant, "seconds": seconds, "peak_gib": 2.0, "note": ""} | more


def test_goals_are_met_short_or_not_run():
    rows = [
        row("big", run.OURS, 40.0, peak_gib=7.5),
        row("big", run.SGEMM, 300.0),
        row("d12k", run.OURS, 5.0),
        row("d12k", run.MKL, 15.0),
        row("d4k", run.OURS, 1.0),
        row("d4k", run.SCIPY, "", note="not installed"),
    ]
    verdicts = {one.goal.what: one.verdict for one in compare(rows, run.GOALS)}
    assert verdicts["25 000 genes × 100 000 cells"] == "met"
    assert verdicts["12 000 genes × 20 000 cells"] == "short"
    assert verdicts["4 000 genes × 20 000 cells"] == "not installed"
    assert verdicts["overlap Spearman, overlap 200"] == "not run"
    assert verdicts["memory of 25 000 × 100 000"] == "short"


def test_the_fit_finds_the_exponents():
    rows = [
        {"n_cells": cells, "n_genes": genes, "seconds": 3e-9 * cells**0.9 * genes**1.7}
        for cells in (100, 1000)
        for genes in (50, 500)
    ]
    assert growth.fit(rows) == pytest.approx((3e-9, 0.9, 1.7))


def test_a_peer_gets_the_largest_size_that_fits_its_minute(monkeypatch):
    def largest(linear, square, most=12_000):
        tried = {size: linear * size + square * size**2 for size in (500, 1_000)}
        return peers.largest_size(tried, 60.0, 20_000, most)

    monkeypatch.setattr(peers, "free_memory", lambda: 1e12)
    assert largest(0, 4e-6) == 2_000
    assert largest(0, 4e-8, most=11_500) == 11_500
    assert largest(2e-3, 4e-7) == 8_000  # the square alone would allow 11 600, the line alone 27 000
    assert largest(0, 4e-4) == 200
    assert largest(1, 1) == 500  # nothing fits: what was tried
    monkeypatch.setattr(peers, "free_memory", lambda: 4e9)
    assert largest(0, 4e-8) == 2_000


def peer_arrays():
    rng = np.random.default_rng(0)
    dense = rng.integers(0, 4, (60, 5))
    cells, columns = np.nonzero(dense.T)[::-1]
    doubled = (2 * peers.scipy.stats.rankdata(dense, axis=0)).astype(np.int64) - 61
    e = (doubled + (dense > 0).sum(axis=0))[cells, columns]
    return {
        "n_cells": np.array(60),
        "indptr": np.concatenate([[0], np.cumsum((dense > 0).sum(axis=0))]),
        "cells": cells,
        "values": dense[cells, columns],
        "e": e,
        "exact": peers.scipy.stats.spearmanr(dense).statistic,
    }


def test_a_peer_agrees_and_a_wrong_one_is_found_out(monkeypatch):
    arrays = peer_arrays()
    assert peers.time_peer("NumPy corrcoef of ranks", arrays, 5)["largest_error"] < 1e-12
    monkeypatch.setattr(peers.scipy.stats, "rankdata", lambda x, **_: x)
    assert peers.time_peer("NumPy corrcoef of ranks", arrays, 5)["largest_error"] > 1e-3


def test_products_of_a_gram_matrix_are_correlations():
    cells = peers.Cells(peer_arrays(), 4)
    ranks = cells.sparse(cells.e, np.float64).toarray()
    upper = np.triu(ranks.T @ ranks)
    np.testing.assert_allclose(cells.rho_of_gram(upper), peer_arrays()["exact"][:4, :4], atol=1e-12)


def test_a_peer_that_takes_too_long_ends_and_says_so(tmp_path, monkeypatch):
    np.savez(tmp_path / "cells.npz", **peer_arrays())
    what = {"input": tmp_path / "cells.npz", "all_genes": True, "max_genes": None, "threads": 1}
    found = child.measure("peers.py", peer="NumPy corrcoef of ranks", limit_s=20, **what)
    assert found["n_genes"] == 5
    assert found["note"].startswith(f"numpy {np.__version__}, scipy ")
    found = child.measure("peers.py", peer="NumPy corrcoef of ranks", limit_s=1e-6, **what)
    assert found == {"too_long": True, "error": "takes longer than 0 s", "n_genes": 5}
    monkeypatch.setitem(peers.PEERS, "CorALS", peers.PEERS["CorALS"]._replace(needs=("numpy", "no_such_thing")))
    assert peers.missing("CorALS") == ["no_such_thing"]


def test_a_smoke_run(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(sys, "argv", ["run.py", "--smoke", "--keep", str(tmp_path)])
    run.main()
    out = capsys.readouterr().out
    assert "4 000 genes × 20 000 cells" in out
    assert "time grows as" in out
    assert "NumPy corrcoef of ranks" in out
    assert "nothing is recorded" in out
    assert (tmp_path / "graph_growth.png").stat().st_size > 10_000
