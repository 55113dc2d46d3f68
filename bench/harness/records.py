"""Rows of results: one CSV a bench, from which alone every table and picture is made."""

from __future__ import annotations

import csv
import importlib.metadata
import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import corrmask_fast

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from harness.timing import Timing

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "bench" / "results"
PACKAGES = ("corrmask-fast", "numpy", "numba", "torch", "transformers", "datasets")
NAMES = {
    "python": "Python",
    "numpy": "NumPy",
    "scipy": "SciPy",
    "numba": "Numba",
    "torch": "PyTorch",
    "cupy": "CuPy",
    "transformers": "transformers",
    "datasets": "datasets",
}
Row = dict[str, Any]


def conditions(rounds: int, described: Row, packages: Sequence[str] = PACKAGES) -> Row:
    """Return what the figures of a run were measured with; ``described``: columns that describe its input."""
    versions = {name.replace("-", "_"): version_of(name) for name in packages}
    return {
        "run": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "commit": _commit(),
        "device": _cpu(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load": round(os.getloadavg()[0], 2),
        "rounds": rounds,
        **described,
        "python": platform.python_version(),
        **versions,
    }


def conditions_text(row: Row, how: str) -> str:
    """Return the conditions of a row in a sentence or two; ``how`` begins it, as "Medians of 40 rounds in turns"."""
    place = f"{row['cores']} cores of {row.get('cpu') or row['device']} (load {row['load']})"
    if "cpu" in row:
        device = f"{row['device']}, driver {row['driver'] or '–'}, CUDA {row['cuda'] or '–'}, {row['clock']} clock"
        place = f"{device}, beside {place}"
    cells = (
        f"; cells of {row['columns']} genes, vocabulary {row['vocabulary']}, {float(row['with_neighbors']):.0%} of a "
        f"cell's genes with neighbours, {row['mean_degree']} on average, {float(row['present_share']):.0%} of them in "
        "the cell"
        if row.get("present_share")
        else ""
    )
    versions = ", ".join(f"{name} {row[key] or '–'}" for key, name in NAMES.items() if key in row)
    return f"{how} on {place}{cells}. {versions}; commit {row['commit']}, {row['run']}."


def rows_of(case: str, batch: int, timings: dict[str, Timing], threads: dict[str, int], shared: Row) -> list[Row]:
    """One row a contestant: times in microseconds a cell, or a call where a contestant counts a call as one."""
    return [
        {"case": case, "contestant": name, "batch": batch, "threads": threads.get(name, 1)}
        | {f"{key}_us": round(float(value), 3) for key, value in timing._asdict().items()}
        | shared
        for name, timing in timings.items()
    ]


def check_columns(rows: Sequence[Row], path: Path) -> None:
    """Refuse rows with other columns than the file has, if there is one."""
    if rows and path.exists():
        with path.open(newline="") as file:
            assert next(csv.reader(file)) == list(rows[0]), f"{path} has other columns; begin a new file"


def append(rows: Sequence[Row], path: Path) -> None:
    """Append rows to a CSV file; its columns are those of its first row."""
    check_columns(rows, path)
    path.parent.mkdir(exist_ok=True)
    fresh = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        if fresh:
            writer.writeheader()
        writer.writerows(rows)


def read(path: Path) -> list[Row]:
    """Return all rows of a file."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def last_run(rows: Iterable[Row], cases: Collection[str]) -> list[Row]:
    """Return the rows of the last run that covers all of these cases."""
    runs: dict[str, list[Row]] = {}
    for row in rows:
        runs.setdefault(row["run"], []).append(row)
    return [run for run in runs.values() if set(cases) <= {row["case"] for row in run}][-1]


def newest(rows: Sequence[Row]) -> list[Row]:
    """Return the rows of each case and batch from the last run that has them, in their order."""
    last = {(row["case"], row["batch"]): row["run"] for row in rows}
    return [row for row in rows if row["run"] == last[row["case"], row["batch"]]]


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
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()

    results = f":!{RESULTS.relative_to(ROOT)}"
    return (git("rev-parse", "--short", "HEAD") or "unknown") + (
        "+" if git("diff", "HEAD", "--stat", "--", ".", results) else ""
    )


def _cpu() -> str:
    """Return the processor's name."""
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    return names[0].partition(":")[2].strip() if names else platform.processor() or platform.machine()
