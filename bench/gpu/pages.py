"""The report of a GPU run: a Markdown page and pictures, made from rows and from how each step ended."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, Any

from harness.goals import table
from harness.records import conditions_text

from corrmask_fast import plots
from corrmask_fast.files import atomic_file
from gpu import graphs, masking
from gpu.run import GOALS, HOW, rows_table

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from harness.records import Row

# Who is drawn, and as what; the others stand in the tables.
SHOWN = {
    masking.COPY: "copy of the same bytes",
    masking.MASKER: "CorrMasker",
    masking.REPLAY: "CorrMasker, graph replay",
    masking.TORCH_MASK: "torch_mask_tokens",
    masking.TORCH_CORRMASK: "CorrMask in PyTorch",
    masking.HOST_PATH: "CPU, then copied",
}


def write_report(rows: Sequence[Row], steps: Sequence[dict[str, Any]], folder: Path) -> list[Path]:
    """Write ``gpu.md`` and the pictures that the rows allow; return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures = [path for draw in (draw_masking, draw_graphs) if (path := draw(rows, folder)) is not None]
    page = folder / "gpu.md"
    with atomic_file(page) as temporary:
        temporary.write_text(page_of(rows, steps, [path.name for path in pictures]), encoding="utf-8")
    return [page, *pictures]


def page_of(rows: Sequence[Row], steps: Sequence[dict[str, Any]], pictures: Sequence[str]) -> str:
    """Return the page."""
    parts = ["# Measured on a GPU"]
    if rows:
        parts += [*dict.fromkeys(conditions_text(row, HOW.format(**row)) for row in rows)]
        parts += [f"## Goals\n\n{table(rows, GOALS)}"]
    else:
        parts += ["Nothing has been measured yet: `make gpu-report` on a machine with a GPU."]
    parts += [f"![{name}]({name})" for name in pictures]
    parts += [f"## Steps\n\n{steps_table(steps)}"] if steps else []
    key = lambda row: (row["case"], int(row["batch"]))  # noqa: E731
    parts += [
        f"## {case}, {batch:,}\n\n{rows_table(list(members))}"
        for (case, batch), members in groupby(sorted(rows, key=key), key)
    ]
    return "\n\n".join(parts) + "\n"


def steps_table(steps: Sequence[dict[str, Any]]) -> str:
    """Return how each step ended."""
    lines = ["| step | | seconds | when |", "|---|---|---:|---|"]
    for one in steps:
        why = f": {one['why']}" if one["why"] else ""
        lines.append(f"| {one['what']} | {one['status']}{why} | {one['seconds']:,.0f} | {one['when']} |")
    return "\n".join(lines)


def draw_masking(rows: Sequence[Row], folder: Path) -> Path | None:
    """Microseconds a row against the batch, one line a contestant."""
    lines = {
        name: sorted(
            (int(row["batch"]), float(row["p50_us"]))
            for row in rows
            if row["case"] == "masking" and row["contestant"] == name
        )
        for name in SHOWN
    }
    lines = {name: points for name, points in lines.items() if points}
    if not lines:
        return None
    figure = plots.new_figure((7.2, 4.2))
    axis = figure.subplots()
    for (name, points), color in zip(lines.items(), (plots.GREY, *plots.COLORS), strict=False):
        batches = [batch for batch, _ in points]
        each = [us / batch for batch, us in points]
        axis.plot(batches, each, "o-", color=color, linewidth=1.6, markersize=4)
        axis.annotate(SHOWN[name], (batches[-1], each[-1]), (6, 0), **plots.TEXT, color=color, va="center")
    axis.set_xscale("log")
    axis.set_yscale("log")
    plots.style_axis(axis, title="Masking on the device", x="rows of a batch", y="microseconds a row (median)")
    axis.margins(x=0.1)
    path = folder / "gpu-masking.png"
    plots.save_figure(figure, path)
    return path


def draw_graphs(rows: Sequence[Row], folder: Path) -> Path | None:
    """Seconds of each stage, bars beside each other: on the device and on the CPU, for each number of genes."""
    found: dict[str, list[tuple[str, float]]] = {}
    for row in rows:
        where, _, stage = row["contestant"].rpartition(", ")
        if row["case"].startswith("graph: ") and stage not in {graphs.TOTAL, graphs.PRODUCT}:
            place = "CPU" if "CPU" in where else "GPU"
            label = f"{row['case'].removeprefix('graph: ')}\n{place}"
            found.setdefault(label, []).append((stage, float(row["p50_us"]) / 1e6))
    if not found:
        return None
    figure = plots.new_figure((7.2, 1.6 + 0.6 * len(found)))
    axis = figure.subplots()
    stages = list(dict.fromkeys(stage for bars in found.values() for stage, _ in bars))
    left = dict.fromkeys(found, 0.0)
    for stage, color in zip(stages, (*plots.COLORS, plots.GREY), strict=False):
        widths = [dict(found[label]).get(stage, 0.0) for label in found]
        axis.barh(list(found), widths, left=list(left.values()), color=color, height=0.6, label=stage.replace("_", " "))
        left = {label: left[label] + width for label, width in zip(found, widths, strict=True)}
    axis.invert_yaxis()
    axis.legend(fontsize=8, frameon=False, ncols=2)
    plots.style_axis(axis, title="Building a dependency graph", x="seconds (median)")
    path = folder / "gpu-graph.png"
    plots.save_figure(figure, path)
    return path
