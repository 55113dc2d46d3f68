"""Pictures of a comparison. Each is narrow enough for a telephone, so a page puts several side by side.

A strategy has the same colour and marker in every picture (``corrmask_fast/plots.py``).
"""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

import numpy as np

from corrmask_fast.comparison.differences import interval
from corrmask_fast.comparison.results import percent
from corrmask_fast.errors import brief, import_extra
from corrmask_fast.plots import DARK, Look, new_figure, plain, strategy_looks, style_axis

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from corrmask_fast.comparison.differences import Difference
    from corrmask_fast.comparison.measures import Measure
    from corrmask_fast.comparison.results import Results

WIDTH = 3.9  # inches


def looks(results: Results) -> dict[str, Look]:
    """Return how each strategy of a comparison is drawn."""
    return strategy_looks(results.strategies)


def plot_measure(results: Results, measure: Measure, fraction: float) -> Any:
    """Draw a measure of every strategy at a fraction: a dot for each seed, the mean, its 95 % interval."""
    names = [name for name in results.strategies if results.values(name, measure.name, fraction)]
    figure, axis = _rows_figure(results, names)
    for row, (name, look) in enumerate((name, looks(results)[name]) for name in names):
        values = np.array([*results.values(name, measure.name, fraction).values()]) * measure.scale
        mean, _, low, high = interval(values)
        axis.plot(values, np.full(values.size, row - 0.22), ".", color=look.color, markersize=4, alpha=0.6)
        axis.plot([low, high], [row, row], color=look.color, linewidth=1.6)
        axis.plot(mean, row, **look.style())
    way = {"lower": "  (← better)", "higher": "  (better →)"}.get(measure.better, "")
    style_axis(axis, title=measure.label, x=f"{measure.unit or 'score, 0 to 1'}{way}")
    return figure


def plot_differences(results: Results, differences: Sequence[Difference]) -> Any:
    """Draw differences of one measure to the reference with their intervals; filled where the interval excludes 0."""
    figure, axis = _rows_figure(results, [one.strategy for one in differences])
    axis.axvline(0, color=DARK, linewidth=0.9)
    for row, one in enumerate(differences):
        look, scale = looks(results)[one.strategy], one.measure.scale
        axis.plot([one.low * scale, one.high * scale], [row, row], color=look.color, linewidth=1.8)
        axis.plot(one.mean * scale, row, **look._replace(filled=one.excludes_zero).style())
    reach = max(abs(end) for end in axis.get_xlim())
    axis.set_xlim(-reach, reach)
    measure = differences[0].measure
    way = {"lower": "← better   ", "higher": "better →   "}.get(measure.better, "")
    style_axis(
        axis, title=measure.label, x=f"{way}difference{measure.difference_unit and ','}{measure.difference_unit}"
    )
    return figure


def plot_fractions(results: Results, measure: Measure) -> Any:
    """Draw a measure against the number of cells that models were pretrained on, with 95 % intervals."""
    fractions = results.started[::-1]
    names, styles = list(results.strategies), looks(results)
    figure = new_figure((WIDTH, 2.7 + _legend_height(names)))
    axis = figure.subplots()
    x = np.arange(len(fractions))
    for name, shift in zip(names, _dodge(len(names), 0.5), strict=True):
        columns = [results.values(name, measure.name, fraction) for fraction in fractions]
        _line(axis, x, [[*column.values()] for column in columns], styles[name], shift, measure.scale)
    axis.set_xticks(x, [f"{results.cells(one):,}\n({percent(one)})" for one in fractions])
    axis.set_xlim(-0.4, len(fractions) - 0.6)
    style_axis(axis, title=f"{measure.label}", x="cells pretrained on", y=measure.unit or "score, 0 to 1")
    _legend(figure, results, names)
    return figure


def plot_shortcut(results: Results, fraction: float) -> Any:
    """Draw the shortcut beside the placebo of every strategy, with 95 % intervals."""
    names = [name for name in results.strategies if results.values(name, "shortcut", fraction)]
    figure, axis = _rows_figure(results, names)
    for row, name in enumerate(names):
        look = looks(results)[name]
        for measure, place, filled in (("shortcut", -0.12, True), ("placebo", 0.18, False)):
            values = results.values(name, measure, fraction)
            if values:
                mean, _, low, high = interval([*values.values()])
                axis.plot([low, high], [row + place] * 2, color=look.color, linewidth=1.6)
                axis.plot(mean, row + place, **(look._replace(filled=filled).style() | {"marker": "os"[not filled]}))
    axis.axvline(0, color=DARK, linewidth=0.8)
    style_axis(axis, title="● shortcut     □ placebo", x="nats")
    return figure


def plot_groups(
    results: Results,
    groups: Mapping[str, Mapping[str, Sequence[float]]],
    *,
    title: str,
    x: str,
    y: str,
    zero: bool = False,
) -> Any:
    """Draw values of groups that have an order, a line for each strategy, with 95 % intervals over the seeds.

    Parameters
    ----------
    groups
        By group and strategy: a value for each seed.
    zero
        Whether to draw a line at 0.
    """
    names = [name for name in results.strategies if any(name in group for group in groups.values())]
    figure = new_figure((WIDTH, 2.8 + _legend_height(names)))
    axis = figure.subplots()
    if zero:
        axis.axhline(0, color=DARK, linewidth=0.9)
    places = np.arange(len(groups))
    for name, shift in zip(names, _dodge(len(names), 0.5), strict=True):
        _line(axis, places, [group.get(name, []) for group in groups.values()], looks(results)[name], shift, 1)
    crowded = max((len(group) for group in groups), default=0) * len(groups) > 40
    axis.set_xticks(places, [plain(brief(group, 20)) for group in groups], rotation=35 if crowded else 0,
                    ha="right" if crowded else "center")  # fmt: skip
    style_axis(axis, title=title, x=x, y=y)
    _legend(figure, results, names)
    return figure


def plot_types(results: Results, groups: Mapping[str, Mapping[str, Sequence[float]]], *, title: str) -> Any:
    """Draw F1 of every cell type, strategies side by side: means over seeds with 95 % intervals.

    The most abundant type is on top; the name of a type stands above its markers, so that it may be long.
    """
    names = [name for name in results.strategies if any(name in group for group in groups.values())]
    each = 0.11 * len(names) + 0.22  # inches
    figure = new_figure((WIDTH, each * len(groups) + 0.8 + _legend_height(names)))
    axis = figure.subplots()
    top = 0.19 / each  # share of a row that its name takes
    for row, (group, values) in enumerate(groups.items()):
        rare = group in results.facts["rare"]
        cells = results.facts["types"].get(group)
        text = f"{plain(brief(group, 40))}{'' if cells is None else f' ({cells:,})'}{' – rare' if rare else ''}"
        axis.annotate(text, (0, row), (3, -1), xycoords=("axes fraction", "data"), textcoords="offset points", va="top",
                      fontsize=8.5, fontweight="bold" if rare else "normal")  # fmt: skip
        axis.axhline(row, color="#D8D8D8", linewidth=0.7)
        for place, name in enumerate(names):
            if values.get(name):
                mean, _, low, high = interval(values[name])
                y = row + top + (1 - top) * (place + 0.5) / len(names)
                look = looks(results)[name]
                axis.plot([low, high], [y, y], color=look.color, linewidth=1.2)
                axis.plot(mean, y, **(look.style() | {"markersize": 4.5, "markeredgewidth": 1}))
    axis.set_ylim(len(groups), 0)
    axis.set_yticks([])
    style_axis(axis, title=title, x="F1 on test cells (better →)")
    axis.grid(visible=True, axis="x", color="#ECECEC", linewidth=0.7)
    axis.set_axisbelow(True)
    _legend(figure, results, names)
    return figure


def _name(text: str) -> str:
    """Return a strategy's label on at most two lines."""
    return "\n".join(textwrap.wrap(plain(brief(text, 40)), 21)[:2]) or " "


def _rows_figure(results: Results, names: Sequence[str]) -> tuple[Any, Any]:
    """Return a figure with a row for each strategy, the first on top."""
    figure = new_figure((WIDTH, 0.95 + 0.36 * len(names)))
    axis = figure.subplots()
    axis.set_yticks(range(len(names)), [_name(results.label(name)) for name in names])
    axis.set_ylim(len(names) - 0.45, -0.55)
    axis.locator_params(axis="x", nbins=5)
    axis.grid(visible=True, axis="x", color="#ECECEC", linewidth=0.7)
    axis.set_axisbelow(True)
    return figure, axis


def _line(axis: Any, x: np.ndarray, columns: Sequence[Sequence[float]], look: Look, shift: float, scale: float) -> None:
    """Draw means with intervals at places moved by ``shift``, joined by a thin line."""
    there = [i for i, values in enumerate(columns) if len(values)]
    if not there:
        return
    mean, _, low, high = np.array([interval(columns[i]) for i in there]).T * scale
    places = x[there] + shift
    axis.plot(places, mean, color=look.color, linestyle=look.dash, linewidth=0.9, alpha=0.6)
    axis.vlines(places, low, high, color=look.color, linewidth=1.4)
    axis.plot(places, mean, **(look.style() | {"markersize": 5}))


def _dodge(n: int, width: float) -> np.ndarray:
    """Return where n markers of one place stand, so that none hides another."""
    return (np.arange(n) - (n - 1) / 2) * (width / max(n, 6))


def _legend_height(names: Sequence[str]) -> float:
    return 0.22 * -(-len(names) // 2) + 0.1


def _legend(figure: Any, results: Results, names: Sequence[str]) -> None:
    """Name the strategies below the picture, in two columns."""
    line = import_extra("matplotlib.lines", "plot").Line2D
    handles = [line([], [], **looks(results)[name].style()) for name in names]
    labels = [brief(plain(results.label(name)), 26) for name in names]
    figure.legend(handles, labels, loc="outside lower left", ncols=2, fontsize=8, frameon=False, handletextpad=0.2,
                  columnspacing=1.0)  # fmt: skip
