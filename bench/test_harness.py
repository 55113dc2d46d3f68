"""Rows come back from the file as the table that was measured, and the README takes the last whole run."""

from __future__ import annotations

import pytest
import records
from goals import COPY, GOALS, MASKER, PHILOX, TORCH_MASK
from timing import Contestant, Timing, race


def made_up_run(name, *, masker_us, cases=None):
    """A row for everybody in every race at batch 64, or 256 for threads: 100 µs, our masker's own, floors of 2."""
    described = {"columns": 8, "vocabulary": 10, "with_neighbors": 0.5, "mean_degree": 2.0, "present_share": 0.25}
    shared = records.conditions(described, 7, 0.5) | {"run": name}
    rows = []
    for goal in GOALS:
        if cases is None or goal.case in cases:
            batch = 256 if goal.smallest_batch else min(64, goal.largest_batch)
            entrants = [Contestant(one, list, batch) for one in (COPY, PHILOX, goal.ours, *goal.theirs)]
            timings = {one.name: Timing(1.0, 100.0, 200.0) for one in entrants}
            timings |= {MASKER: Timing(1.0, masker_us, 20.0), COPY: Timing(1, 2, 3), PHILOX: Timing(1, 2, 3)}
            rows += records.rows_of_race(goal.case, batch, entrants, timings, shared)
    return rows


def test_a_run_goes_through_the_file_into_the_readme(tmp_path):
    path, readme = tmp_path / "results" / "masking.csv", tmp_path / "README.md"
    first, second = made_up_run("first", masker_us=50.0), made_up_run("second", masker_us=10.0)
    for rows in (first, second, made_up_run("third", masker_us=1.0, cases=["masking"])):
        records.append(rows, path)
    found = records.last_run(path)
    assert records.table(found) == records.table(second) != records.table(first)
    (line,) = [
        line for line in records.table(found).splitlines() if "mask a padded tensor " in line and TORCH_MASK in line
    ]
    assert [cell.strip() for cell in line.split("|")[3:-1]] == ["64", "100.0", "10.0", "10x", "2.5", "8x"]

    readme.write_text(f"before {records.BEGIN} of yore {records.END} behind")
    records.write_readme(found, readme)
    text = readme.read_text()
    assert text.startswith(f"before {records.BEGIN}\n\n| what")
    assert text.endswith(f"{records.END} behind")
    assert "of yore" not in text
    assert "10.0x (10.0 µs)" in text
    assert "Medians of 7 rounds" in text


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
