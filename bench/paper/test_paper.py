"""The experiments do what their text says: generators, matrices, masks, and a quick run of each."""

from __future__ import annotations

import csv
from types import SimpleNamespace

import figure3
import figure7
import numpy as np
import pytest
import real_cells
import table3
from scipy.stats import spearmanr

from corrmask_fast import Corpus, Vocabulary
from corrmask_fast.audit.all_strategies import ALL_CONTROL


def test_cells_hold_mostly_genes_of_their_module():
    cells, module = figure3.generate(np.random.default_rng(0), n_cells=50, n_genes=200, n_modules=5, length=20)
    assert cells.shape == (50, 20)
    assert np.bincount(module).tolist() == [40] * 5
    assert all(len(set(cell)) == 20 for cell in cells.tolist())
    common = [np.bincount(module[cell]).max() for cell in cells]
    assert np.mean(common) > 15


def test_matrices_by_hand():
    cells = np.array([[0, 1, 2], [2, 1, 3], [1, 0, 2]])
    assert figure3.adjacency(cells, 4).tolist() == [[0, 2, 1, 0], [2, 0, 2, 1], [1, 2, 0, 0], [0, 1, 0, 0]]
    assert figure3.cooccurrence(cells, 4).tolist() == [[0, 2, 2, 0], [2, 0, 3, 1], [2, 3, 0, 1], [0, 1, 1, 0]]


def test_rho_is_spearmans():
    cells, _ = figure3.generate(np.random.default_rng(1), n_cells=60, n_genes=30, n_modules=3, length=12)
    values = np.zeros((60, 30))
    np.put_along_axis(values, cells, np.arange(12, 0, -1), axis=1)
    expected = spearmanr(values).statistic
    np.fill_diagonal(expected, 0)
    assert figure3.correlation(cells, 30) == pytest.approx(expected, abs=1e-6)


def test_auc_is_scikit_learns():
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    module, matrix = rng.integers(0, 3, 40), rng.integers(0, 5, (40, 40))
    u, v = np.triu_indices(40, 1)
    expected = metrics.roc_auc_score(module[u] == module[v], matrix[u, v])
    assert figure3.auc(matrix, module) == pytest.approx(expected)


def test_figure_3_runs(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    spread = figure3.main(["--quick", "--out", str(tmp_path)])
    assert spread["rho"][0] > spread["adjacency"][0]
    assert "paper says: " in capsys.readouterr().out
    with (tmp_path / "figure3.csv").open(newline="") as file:
        assert {row["matrix"] for row in csv.DictReader(file)} == set(figure3.WAYS)
    assert (tmp_path / "figure3.png").exists()


@pytest.fixture(scope="module")
def figure4():
    pytest.importorskip("sklearn")
    import figure4
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in its own processes: threads cost more than steps this small
    yield figure4
    torch.set_num_threads(threads)


def test_samples_are_ranks_that_give_the_module_away_when_modular(figure4):
    for background, most in (("rate", 0.9), ("scale", 1.0)):
        ranks, label = figure4.generate(np.random.default_rng(0), 1.0, background)
        assert np.array_equal(np.sort(ranks, axis=1), np.tile(np.arange(60), (1500, 1)))
        means = np.stack([ranks[:, module == figure4.MODULE].mean(axis=1) for module in range(3)], axis=1)
        assert (means.argmax(axis=1) == label).mean() >= most
    ranks, label = figure4.generate(np.random.default_rng(0), 0.0, "scale")
    means = np.stack([ranks[:, module == figure4.MODULE].mean(axis=1) for module in range(3)], axis=1)
    assert abs((means.argmax(axis=1) == label).mean() - 1 / 3) < 0.05


def test_random_masks_are_a_quarter(figure4):
    masked = figure4.random_mask(np.random.default_rng(0), 4000)
    assert np.all(masked.sum(axis=1) == 15)
    assert masked.mean(axis=0) == pytest.approx(np.full(60, 0.25), abs=5 * np.sqrt(0.25 * 0.75 / 4000))


def test_correlation_masks_take_partners_until_a_quarter(figure4):
    rng = np.random.default_rng(0)
    masked = figure4.correlation_mask(rng, 4000, cut=False)
    counts = masked.sum(axis=1)
    assert counts.min() >= 15
    assert counts.max() <= 14 + 9  # what the last group may add
    cut = figure4.correlation_mask(rng, 4000, cut=True)
    assert np.all(cut.sum(axis=1) == 15)
    for some in (masked, cut):
        together = [some[:, module == figure4.MODULE].sum(axis=1) for module in range(3)]
        at_random = figure4.random_mask(rng, 4000)
        apart = [at_random[:, module == figure4.MODULE].sum(axis=1) for module in range(3)]
        assert np.var(together) > 4 * np.var(apart)  # whole groups of one module


def test_a_trial_learns_and_is_the_same_twice(figure4, monkeypatch, tmp_path):
    monkeypatch.setattr(figure4, "N_SAMPLES", 160)
    monkeypatch.setattr(figure4, "N_TRAIN", 96)
    monkeypatch.setattr(figure4, "N_TEST", 32)
    given = SimpleNamespace(background="scale", cut=True)
    one, again = (figure4.trial(1.0, "correlation", 0, 2, given) for _ in range(2))
    timed = {"seconds": 0}
    assert one | timed == again | timed
    assert one["mask_rate"] == 0.25
    assert one["accuracy_of_ranks"] > 0.9
    assert one["last_loss"] < 4.3  # of log(60) = 4.09 for a guess, at first
    table = tmp_path / "figure4.csv"
    assert figure4.finished(table) == []
    figure4.save_table(table, [one, again])
    for row in figure4.finished(table):
        assert all(row[name] == one[name] for name in ("gamma", "strategy", "seed", "accuracy", "epochs"))


def test_the_picture_and_the_gap_come_from_the_rows(figure4, tmp_path):
    pytest.importorskip("matplotlib")
    values = {"random": [0.5, 0.6], "correlation": [0.7, 0.6]}
    rows = [
        {"gamma": gamma, "strategy": strategy, "accuracy": value, "accuracy_of_ranks": 0.9}
        for gamma in (0.0, 1.0)
        for strategy, some in values.items()
        for value in some
    ]
    gaps = figure4.draw(tmp_path / "figure4.png", rows, (0.0, 1.0))
    assert gaps[1.0] == pytest.approx((10, 10))  # +20 and 0 points, paired
    assert (tmp_path / "figure4.png").exists()


@pytest.fixture
def _made_up_cells(monkeypatch):
    """Cells of five modules in place of the real ones."""
    cells, _ = figure3.generate(np.random.default_rng(0), n_cells=500, n_genes=60, n_modules=5, length=40)
    vocabulary = Vocabulary(("<pad>", "<mask>", *(f"G{i}" for i in range(60))))
    corpus = Corpus(np.arange(501) * 40, cells.ravel() + 2, vocabulary)
    for module in (table3, figure7):
        monkeypatch.setattr(module, "data_folder", lambda: None)
        monkeypatch.setattr(module, "read_cells", lambda *_: corpus)


@pytest.mark.usefixtures("_made_up_cells")
def test_table_3_runs(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    audits, windows = table3.main(["--quick", "--out", str(tmp_path)])
    found = {(row["cells"], row["mlm_probability"], row["strategy"]): row for row in audits}
    assert len(found) == 2 * 2 * 9 == len(audits)
    ours, control = (found["pbmc3k", 0.15, name] for name in ("CorrMask", ALL_CONTROL))
    assert ours["hit_rate"] > control["hit_rate"] == pytest.approx(5 / 39, abs=0.01)  # 6 masked of 40, one is the gene
    assert control["mean_span"] == pytest.approx(40 / 35, abs=0.02)
    assert [row["order"] for row in windows] == ["as ranked", "rewired graph", "random order"] * 2
    out = capsys.readouterr().out
    assert "paper says: mean span and hit rate: Random 1.08 and 1.93 %" in out
    assert "cannot be reproduced" in out
    assert {path.name for path in tmp_path.iterdir()} == {"table3.csv", "table8.csv", "table3.png"}


@pytest.mark.usefixtures("_made_up_cells")
def test_figure_7_runs(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    rows = figure7.main(["--quick", "--out", str(tmp_path)])
    assert [row["lambda"] for row in rows] == [*figure7.LAMBDAS] * 2
    hits = [row["hit_rate"] for row in rows[:5]]
    assert hits == sorted(hits)
    assert "models were not trained" in capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} == {"figure7.csv", "figure7.png"}


def test_unevenness_is_what_would_have_to_move():
    row = SimpleNamespace(times_present=np.array([100, 100, 200, 10]), times_masked=np.array([30, 10, 40, 10]))
    assert figure7.unevenness(row) == 10 / 80  # of 80 masks, even is 20, 20, 40; the gene seen ten times is left out


@pytest.mark.parametrize("folder", [None, "nothing"])
def test_without_real_cells_the_experiments_say_so(monkeypatch, tmp_path, capsys, folder):
    monkeypatch.delenv("CORRMASK_DATA", raising=False)
    if folder:
        monkeypatch.setenv("CORRMASK_DATA", str(tmp_path / folder))
    with pytest.raises(SystemExit) as stop:
        real_cells.data_folder()
    assert stop.value.code == 0
    assert capsys.readouterr().err.startswith("skipped: this needs real cells; set CORRMASK_DATA to a folder with pbmc")
