"""Rows of a GPU's results: tables, medians, and the newest rows of a file in which each case may have its own run."""

from __future__ import annotations

import csv
from typing import TYPE_CHECKING

import records

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

RESULTS = records.RESULTS.with_name("gpu.csv")


def table(rows: Sequence[records.Row]) -> str:
    """Return rows as a Markdown table: microseconds a call, and where bytes are counted, the rate."""
    lines = ["| | p20, µs | median, µs | p80, µs | GB/s | |", "|---|---:|---:|---:|---:|---|"]
    for row in rows:
        times = " | ".join(f"{float(row[name]):,.1f}" for name in ("p20_us", "p50_us", "p80_us"))
        moved, median = int(row["bytes"] or 0), float(row["p50_us"])
        rate = f"{moved / median / 1e3:,.1f}" if moved and median else ""
        lines.append(f"| {row['contestant']} | {times} | {rate} | {row['detail']} |")
    return "\n".join(lines)


def medians(rows: Iterable[records.Row]) -> dict[tuple[str, str, int], float]:
    """(case, contestant, batch) → median in microseconds."""
    return {(row["case"], row["contestant"], int(row["batch"])): float(row["p50_us"]) for row in rows}


def newest(path: Path = RESULTS) -> list[records.Row]:
    """Return the rows of each case and batch from the last run that has them, in the order of the file."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    last = {(row["case"], row["batch"]): row["run"] for row in rows}
    return [row for row in rows if row["run"] == last[row["case"], row["batch"]]]


def said_conditions(row: records.Row) -> str:
    """Return the conditions of a row in a sentence or two."""
    return (
        f"Percentiles of {row['rounds']} rounds in turns ({row['clock']} clock) on {row['device']}, driver "
        f"{row['driver'] or '–'}, CUDA {row['cuda'] or '–'}, beside {row['cores']} cores of {row['cpu']} (load "
        f"{row['load']}). Python {row['python']}, PyTorch {row['torch']}, CuPy {row['cupy'] or '–'}, NumPy "
        f"{row['numpy']}, Numba {row['numba']}, transformers {row['transformers']}; "
        f"commit {row['commit']}, {row['run']}."
    )
