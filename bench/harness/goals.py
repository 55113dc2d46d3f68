"""Goals: what is compared with what, the ratio to reach, and tables that show whether it was reached."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from harness.records import Row

UNITS = {"µs": 1.0, "s": 1e6, "GiB": 1.0}  # what a measured number is divided by


class Goal(NamedTuple):
    """``ours`` in a case shall be ``at_least`` times as fast as each of ``theirs``, or reach ``at_most``.

    ``at_most`` has a unit: x and % are of the time of ``theirs``; µs, s and GiB are of ours alone. ``minus`` is
    subtracted from ours before: what a step costs more than another. ``batches``: the smallest and the largest.
    """

    what: str
    case: str
    ours: str
    theirs: tuple[str, ...] = ("",)
    at_least: float = 0.0
    at_most: float = 0.0
    unit: str = "x"
    minus: str = ""
    batches: tuple[float, float] = (0, float("inf"))


class Comparison(NamedTuple):
    """A goal at one batch, against one contestant: microseconds (GiB where the goal is in GiB); None: not measured."""

    goal: Goal
    against: str
    batch: int | None
    theirs: float | None
    ours: float | None
    minus: float | None
    floor: float  # 0: none was measured beside it
    note: str  # of the row that has no time

    @property
    def value(self) -> float | None:
        """The number that the goal is about."""
        if None in (self.ours, self.minus) or (self.against and self.theirs is None):
            return None
        if self.goal.at_least:
            return self.theirs / self.ours
        if self.against:
            return (self.ours - self.minus) / self.theirs * (100 if self.goal.unit == "%" else 1)
        return self.ours / UNITS[self.goal.unit]

    @property
    def verdict(self) -> str:
        """ "met", "short", or why it is neither."""
        if self.value is None:
            return self.note or "not run"
        met = self.value >= self.goal.at_least if self.goal.at_least else self.value <= self.goal.at_most
        return "met" if met else "short"


def compare(rows: Iterable[Row], goals: Sequence[Goal], floors: Sequence[str] = ()) -> list[Comparison]:
    """Compare at every batch that was run, in the order of the goals; ``floors``: contestants that nothing can beat."""
    found = {(row["case"], row["contestant"], int(row.get("batch") or 0)): row for row in rows}
    compared = []
    for goal in goals:
        low, high = goal.batches
        batches = sorted({batch for case, _, batch in found if case == goal.case and low <= batch <= high})
        for batch in batches or [None]:
            names = (goal.ours, goal.minus, *goal.theirs, *floors)
            of = {name: _measured(found.get((goal.case, name, batch)), goal.unit) for name in names}
            minus, floor = of[goal.minus] if goal.minus else 0.0, sum(of[name] or 0.0 for name in floors)
            for name in goal.theirs:
                note = str(found.get((goal.case, name, batch), {}).get("note", ""))
                compared.append(Comparison(goal, name, batch, of[name], of[goal.ours], minus, floor, note))
    return compared


def _measured(row: Row | None, unit: str) -> float | None:
    """Return the peak of a row in GiB, else its median, or its one time, in microseconds."""
    if row is None:
        return None
    column, scale = ("peak_gib", 1.0) if unit == "GiB" else ("p50_us", 1.0) if "p50_us" in row else ("seconds", 1e6)
    return None if row[column] in ("", None) else float(row[column]) * scale


def table(rows: Iterable[Row], goals: Sequence[Goal], floors: Sequence[str] = ()) -> str:
    """Return what was compared as a Markdown table, each line with its goal and whether it was met."""
    head = ["what", "against", "batch", "theirs", "ours", "measured", "ours / floor", "goal", ""]
    lines = []
    for one in compare(rows, goals, floors):
        unit = one.goal.unit if one.goal.unit == "x" else f" {one.goal.unit}"
        times = ["" if one.goal.unit == "GiB" else time_text(us) for us in (one.theirs, one.ours)]
        value = (
            "" if one.value is None else f"{one.value:,.4g}{unit}" if one.value < 1000 else f"{one.value:,.0f}{unit}"
        )
        beyond = f"{one.ours / one.floor:.1f}" if one.floor and one.ours else ""
        bound = f"≥ {one.goal.at_least:,g}{unit}" if one.goal.at_least else f"≤ {one.goal.at_most:,g}{unit}"
        batch = f"{one.batch:,}" if one.batch else ""
        lines.append([one.goal.what, one.against, batch, *times, value, beyond, bound, one.verdict])
    return markdown([head, *lines])


def headlines(rows: Iterable[Row], goals: Sequence[Goal]) -> str:
    """Return how many times as fast ours is, and its microseconds a cell, a line a comparison and a column a batch."""
    found = [one for one in compare(rows, goals) if one.value is not None]
    batches = sorted({one.batch for one in found})
    lines: dict[tuple[str, str], dict[int, str]] = {}
    for one in found:
        digits = 0 if one.value >= 100 else 1 if one.value >= 10 else 2
        cell = f"{one.value:,.{digits}f}x ({one.ours:,.1f} µs)"
        lines.setdefault((one.goal.what, one.against), {})[one.batch] = cell
    head = ["what", "against", *(f"batch {batch:,}" for batch in batches)]
    return markdown([head, *([*names, *(cells.get(batch, "") for batch in batches)] for names, cells in lines.items())])


def time_text(us: float | None) -> str:
    """Return microseconds for a table: in seconds from 0.1 s on, "" of None."""
    return "" if us is None else f"{us / 1e6:,.2f} s" if us >= 1e5 else f"{us:,.1f} µs"


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table; the first line is its head. Columns without a head and a value are left out."""
    used = [i for i, name in enumerate(lines[0]) if name or any(line[i] for line in lines)]
    used = [i for i in used if len(lines) == 1 or any(line[i] for line in lines[1:])]
    lines = [[line[i] for i in used] for line in lines]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    )
