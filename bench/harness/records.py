"""Rows of results: appended to one CSV, from which alone every table is made."""

from __future__ import annotations

import csv
import importlib.metadata
import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from goals import COPY, GOALS, PHILOX

import corrmask_fast

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from goals import Goal
    from timing import Contestant, Timing

RESULTS = Path(__file__).with_name("results") / "masking.csv"
README = Path(__file__).resolve().parents[1] / "README.md"
BEGIN = "<!-- figures: written by bench/run.py --readme from the last rows of bench/results/masking.csv -->"
END = "<!-- end of figures -->"
PACKAGES = ("corrmask-fast", "numpy", "numba", "torch", "transformers", "datasets")
Row = dict[str, Any]


def conditions(described: Row, rounds: int, first_call_s: float, packages: Sequence[str] = PACKAGES) -> Row:
    """Return what the figures of a run were measured with."""
    versions = {name.replace("-", "_"): version_of(name) for name in packages}
    return {
        "run": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "commit": _commit(),
        "device": _cpu(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load": round(os.getloadavg()[0], 2),
        "rounds": rounds,
        "first_call_s": round(first_call_s, 2),
        **described,
        "python": platform.python_version(),
        **versions,
    }


def rows_of_race(
    case: str, batch: int, contestants: Iterable[Contestant], timings: dict[str, Timing], shared: Row
) -> list[Row]:
    """One row a contestant: times in microseconds a cell."""
    return [
        {"case": case, "contestant": one.name, "batch": batch, "threads": one.threads}
        | {f"{name}_us": round(float(value), 3) for name, value in timings[one.name]._asdict().items()}
        | shared
        for one in contestants
    ]


def append(rows: Sequence[Row], path: Path = RESULTS) -> None:
    """Append rows to a CSV file; its columns are those of its first row."""
    path.parent.mkdir(exist_ok=True)
    fresh = not path.exists()
    if not fresh:
        with path.open(newline="") as file:
            assert next(csv.reader(file)) == list(rows[0]), f"{path} has other columns; begin a new file"
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        if fresh:
            writer.writeheader()
        writer.writerows(rows)


def last_run(path: Path = RESULTS) -> list[Row]:
    """Return the rows of the last run in a file that covers every case."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    runs: dict[str, list[Row]] = {}
    for row in rows:
        runs.setdefault(row["run"], []).append(row)
    cases = {goal.case for goal in GOALS}
    return [run for run in runs.values() if cases <= {row["case"] for row in run}][-1]


class Comparison(NamedTuple):
    """One of ours beside one of theirs: microseconds a cell."""

    goal: Goal
    against: str
    batch: int
    theirs: float
    ours: float
    floor: float  # 0: none was measured beside it


def comparisons(rows: Sequence[Row], goals: Sequence[Goal] = GOALS) -> list[Comparison]:
    """Return every comparison that the rows allow, in the order of the goals."""
    us = {(row["case"], row["contestant"], int(row["batch"])): float(row["p50_us"]) for row in rows}
    found = []
    for goal in goals:
        for batch in sorted({int(row["batch"]) for row in rows if row["case"] == goal.case}):
            if goal.smallest_batch <= batch <= goal.largest_batch:
                floor = us.get((goal.case, COPY, batch), 0.0) + us.get((goal.case, PHILOX, batch), 0.0)
                ours = us[goal.case, goal.ours, batch]
                found += [
                    Comparison(goal, name, batch, us[goal.case, name, batch], ours, floor) for name in goal.theirs
                ]
    return found


def table(rows: Sequence[Row], goals: Sequence[Goal] = GOALS) -> str:
    """Return the comparisons as a Markdown table, each with its goal."""
    found = comparisons(rows, goals)
    lines = [["what", "against", "batch", "theirs, µs a cell", "ours, µs a cell", "ratio", "ours / floor", "goal"]]
    for one in found:
        times = [f"{one.theirs:,.1f}", f"{one.ours:,.1f}", f"{one.theirs / one.ours:,.4g}x"]
        beyond = [f"{one.ours / one.floor:.1f}" if one.floor else "", f"{one.goal.at_least:,g}x"]
        lines.append([one.goal.what, one.against, str(one.batch), *times, *beyond])
    return markdown(lines)


def headlines(rows: Sequence[Row], goals: Sequence[Goal] = GOALS) -> str:
    """Return how many times as fast ours is, and its microseconds a cell, a line a comparison and a column a batch."""
    found = comparisons(rows, goals)
    batches = sorted({one.batch for one in found})
    lines: dict[tuple[str, str], dict[int, str]] = {}
    for one in found:
        ratio = one.theirs / one.ours
        cell = f"{ratio:,.{0 if ratio >= 100 else 1 if ratio >= 10 else 2}f}x ({one.ours:,.1f} µs)"
        lines.setdefault((one.goal.what, one.against), {})[one.batch] = cell
    head = ["what", "against", *(f"batch {batch:,}" for batch in batches)]
    return markdown([head, *([*names, *(cells.get(batch, "") for batch in batches)] for names, cells in lines.items())])


def markdown(lines: list[list[str]]) -> str:
    """Return a Markdown table; the first line is its head."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    lines = [lines[0], ["-" * width for width in widths], *lines[1:]]
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    )


def said_conditions(rows: Sequence[Row]) -> str:
    """Return the conditions of a run in a sentence or two."""
    row = rows[0]
    return (
        f"Medians of {row['rounds']} rounds in turns, one thread against one thread unless said, on {row['cores']} "
        f"cores of {row['device']} (load {row['load']}); cells of {row['columns']} genes, vocabulary "
        f"{row['vocabulary']}, {float(row['with_neighbors']):.0%} of a cell's genes with neighbours, "
        f"{row['mean_degree']} on average, {float(row['present_share']):.0%} of them in the cell. Python "
        f"{row['python']}, NumPy {row['numpy']}, Numba {row['numba']}, PyTorch {row['torch']}, transformers "
        f"{row['transformers']}, datasets {row['datasets']}; commit {row['commit']}, {row['run']}. "
        "In brackets our microseconds a cell."
    )


def figures(rows: Sequence[Row]) -> str:
    """Return what stands between the marks in the README: a run's figures, and their conditions right below."""
    return f"\n\n{headlines(rows)}\n\n{said_conditions(rows)}\n\n"


def write_readme(rows: Sequence[Row], path: Path = README) -> None:
    """Put a run's figures into the README."""
    before, rest = path.read_text().split(BEGIN)
    path.write_text(before + BEGIN + figures(rows) + END + rest.split(END)[1])


def version_of(package: str) -> str:
    """Return a package's version; of ours also where it is on the path without being installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return corrmask_fast.__version__ if package == "corrmask-fast" else ""


def _commit() -> str:
    """Return the short hash, with ``+`` where tracked files were changed; without git, what CORRMASK_COMMIT says."""
    if os.environ.get("CORRMASK_COMMIT"):
        return os.environ["CORRMASK_COMMIT"]

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=README.parent, capture_output=True, text=True, check=False
        ).stdout.strip()

    results = f":!{RESULTS.parent.relative_to(README.parent)}"
    return (git("rev-parse", "--short", "HEAD") or "unknown") + (
        "+" if git("diff", "HEAD", "--stat", "--", ".", results) else ""
    )


def _cpu() -> str:
    """Return the processor's name."""
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    return names[0].partition(":")[2].strip() if names else platform.processor() or platform.machine()
