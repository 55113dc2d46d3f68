"""Rows come back from the file as the table that was measured, and the page takes the last whole run."""

from __future__ import annotations

import sys

import pytest
import run
from contestants import COPY, FLOORS, GOALS, MASKER, PHILOX, TORCH_MASK
from harness import records
from harness.goals import table
from harness.parity import check_masker
from harness.timing import Contestant, Timing, race

from corrmask_fast import CorrMasker


def made_up_run(name, *, masker_us, cases=None):
    """Rows of every race at batch 64, or 256 for threads: floors take 2 µs, our masker what is given, others 100."""
    described = {"columns": 8, "vocabulary": 10, "with_neighbors": 0.5, "mean_degree": 2.0, "present_share": 0.25}
    shared = records.conditions(7, {"first_call_s": 0.5, **described}) | {"run": name}
    rows = []
    for goal in GOALS:
        if cases is None or goal.case in cases:
            batch = 256 if goal.batches[0] else min(64, goal.batches[1])
            timings = dict.fromkeys((COPY, PHILOX, goal.ours, *goal.theirs), Timing(1.0, 100.0, 200.0))
            timings |= {MASKER: Timing(1.0, masker_us, 20.0), COPY: Timing(1, 2, 3), PHILOX: Timing(1, 2, 3)}
            rows += records.rows_of(goal.case, batch, timings, {}, shared)
    return rows


def printed(rows):
    return table(rows, GOALS, FLOORS)


def test_a_run_goes_through_the_file_into_the_page(tmp_path):
    path, page = tmp_path / "results" / "masking.csv", tmp_path / "speed.md"
    first, second = made_up_run("first", masker_us=50.0), made_up_run("second", masker_us=10.0)
    for rows in (first, second, made_up_run("third", masker_us=1.0, cases=["masking"])):
        records.append(rows, path)
    found = run.last_run(path)
    assert printed(found) == printed(second) != printed(first)
    (line,) = [line for line in printed(found).splitlines() if "mask a padded tensor " in line and TORCH_MASK in line]
    cells = [cell.strip() for cell in line.split("|")[3:-1]]
    assert cells == ["64", "100.0 µs", "10.0 µs", "10x", "2.5", "≥ 8x", "met"]

    page.write_text(f"before {run.BEGIN} old figures {run.END} after")
    run.write_page(found, page)
    text = page.read_text()
    assert text.startswith(f"before {run.BEGIN}\n\n| what")
    assert text.endswith(f"{run.END} after")
    assert "old figures" not in text
    assert "10.0x (10.0 µs)" in text
    assert "Medians of 7 rounds" in text


def test_a_smoke_run_checks_and_times_every_case(workload, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(sys, "argv", ["run.py", "--smoke", "--results", str(tmp_path / "masking.csv")])
    monkeypatch.setattr(run, "make_workload", lambda *_: workload)
    run.main()
    out = capsys.readouterr().out
    lines = [line for line in out.splitlines() if line.rstrip(" |").endswith(("met", "short"))]
    assert {line.split("|")[1].strip() for line in lines} == {goal.what for goal in GOALS}
    assert "nothing is recorded" in out
    assert not (tmp_path / "masking.csv").exists()


def test_a_damaged_mask_is_not_timed(workload, monkeypatch):
    def shifted(self, *arguments, **keywords):
        masked = forward(self, *arguments, **keywords)
        return masked._replace(labels=masked.labels.roll(1, 1))

    forward = CorrMasker.forward
    monkeypatch.setattr(CorrMasker, "forward", shifted)
    with pytest.raises(AssertionError, match="labels"):
        check_masker(workload, 4)


def test_other_columns_are_refused(tmp_path):
    path = tmp_path / "masking.csv"
    rows = made_up_run("first", masker_us=50.0)
    records.append(rows, path)
    with pytest.raises(AssertionError, match="other columns"):
        records.append([row | {"more": 1} for row in rows], path)


def test_a_race_tells_fast_from_slow():
    timings = race([Contestant("slow", lambda: sum(range(20_000)), 2), Contestant("fast", list, 2)], rounds=5)
    assert timings["fast"].p80 < timings["slow"].p20
    assert timings["slow"].p20 <= timings["slow"].p50 <= timings["slow"].p80
