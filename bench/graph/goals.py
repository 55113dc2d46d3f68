"""What a build shall reach beside its rivals in the same run, and the tables that say whether it did."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

    from records import Row

OURS, SGEMM = "corrmask-fast", "dense SGEMM at peak, product alone"
SCIPY, MKL = "SciPy spearmanr", "MKL sparse Gram, product alone"


class Goal(NamedTuple):
    """``case`` by ``contestant`` shall be ``at_least`` times as fast as by ``against``, or ``at_most`` GiB large."""

    what: str
    case: str
    against: str
    at_least: float = 0.0
    at_most: float = 0.0


GOALS = (
    Goal("25 000 genes × 100 000 cells", "big", SGEMM, at_least=6),
    Goal("12 000 genes × 20 000 cells", "d12k", MKL, at_least=4),
    Goal("4 000 genes × 20 000 cells", "d4k", SCIPY, at_least=15),
    Goal("overlap Spearman, overlap 200", "overlap 200", SCIPY, at_least=100),
    Goal("overlap Spearman, overlap 2 000", "overlap 2000", SCIPY, at_least=100),
    Goal("overlap Spearman, overlap 20 000", "overlap 20000", SCIPY, at_least=100),
    Goal("2 threads beside 1, 12 000 × 20 000", "threads", f"{OURS}, 1 thread", at_least=1.8),
    Goal("memory of 25 000 × 100 000, GiB", "big", "", at_most=6),
)


def compare(rows: Sequence[Row]) -> list[list[str]]:
    """One line a goal: what, against, theirs, ours, ratio, goal, met or short (or that it was not run)."""
    found = {(row["case"], row["contestant"]): row for row in rows}
    lines = []
    for goal in GOALS:
        ours, theirs = found.get((goal.case, OURS)), found.get((goal.case, goal.against))
        if goal.at_most:
            goal_text = f"≤ {goal.at_most:g}"
            if ours is None:
                lines.append([goal.what, "", "", "", "", goal_text, "not run"])
                continue
            peak = float(ours["peak_gib"])
            lines.append([goal.what, "", "", f"{peak:.2f}", "", goal_text, _verdict(peak <= goal.at_most)])
            continue
        goal_text = f"{goal.at_least:g}x"
        if ours is None or theirs is None or not theirs["seconds"]:
            why = "not run" if theirs is None or not theirs.get("note") else str(theirs["note"])
            lines.append([goal.what, goal.against, "", _seconds(ours), "", goal_text, why])
            continue
        ratio = float(theirs["seconds"]) / float(ours["seconds"])
        verdict = _verdict(ratio >= goal.at_least)
        times = _seconds(theirs), _seconds(ours)
        lines.append([goal.what, goal.against, *times, f"{ratio:.1f}x", goal_text, verdict])
    return lines


def _verdict(met: bool) -> str:
    return "met" if met else "short"


def _seconds(row: Row | None) -> str:
    if row is None or not row["seconds"]:
        return ""
    seconds = float(row["seconds"])
    return f"{seconds:.2f} s" if seconds >= 0.1 else f"{seconds * 1e6:.1f} µs"


def markdown(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Return lines as a Markdown table."""
    whole = [list(head), *map(list, lines)]
    widths = [max(len(line[i]) for line in whole) for i in range(len(head))]
    whole.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in whole
    )


def goal_table(rows: Sequence[Row]) -> str:
    """Return the goals beside what was reached."""
    return markdown(["what", "against", "theirs", "ours", "ratio", "goal", ""], compare(rows))


def peer_table(rows: Sequence[Row]) -> str:
    """Return every peer at its largest size, with ours at the same size."""
    ours = {int(row["n_genes"]): row for row in rows if row["case"] == "peers" and row["contestant"] == OURS}
    lines = []
    for row in rows:
        if row["case"] != "peers" or row["contestant"] == OURS:
            continue
        if not row["seconds"]:
            lines.append([row["contestant"], "", "", "", "", "", "", "", row["note"]])
            continue
        mine = ours.get(int(row["n_genes"]))
        lines.append(
            [
                row["contestant"],
                f"{int(row['n_genes']):,}",
                _seconds(row),
                f"{float(row['peak_gib']):.2f}",
                f"{float(row['largest_error']):.0e}" if row["largest_error"] not in ("", None) else "",
                _seconds(mine),
                f"{float(mine['peak_gib']):.2f}" if mine else "",
                f"{float(row['seconds']) / float(mine['seconds']):.1f}x" if mine else "",
                "",
            ]
        )
    head = ["peer", "genes", "seconds", "peak GiB", "largest error", "ours", "our peak GiB", "ratio", ""]
    return markdown(head, lines)
