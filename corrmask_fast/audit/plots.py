"""The picture of an audit: a panel for each figure, and how evenly genes are masked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from corrmask_fast.audit.report import NOTE
from corrmask_fast.plots import COLORS, GREY, TEXT, new_figure, save_figure, style_axis

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from corrmask_fast.audit.report import AuditReport, StrategyAudit

__all__ = ["plot_audit"]

# Fewer sightings than this say little about how often a gene is masked.
MIN_TIMES_PRESENT = 50

_PANELS = (
    ("hit_rate", "Partners masked together", "present partners masked (%)", True),
    ("hidden_rate", "Genes with every partner hidden", "masked genes (%)", True),
    (
        "residual_shortcut_same_genes",
        "Shortcut left open, same genes",
        "mean |rho| of the strongest visible partner",
        False,
    ),
    ("all_partner_hit_rate", "All partners, in the cell or not", "partners masked (%)", True),
    ("mean_span", "Run of masked neighbours in rank", "mean length (genes)", False),
)


def plot_audit(report: AuditReport, path: str | os.PathLike[str] | None = None) -> Any:
    """Draw an audit: a panel for each figure, strategies beside their control, and how evenly genes are masked.

    Parameters
    ----------
    report
        Of :func:`corrmask_fast.audit_masking`.
    path
        Where to save it (``.png``, ``.pdf``, ``.svg``); None: only return it.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    MissingExtraError
        Without matplotlib (extra ``plot``).
    """
    strategies, colors = list(report), _strategy_colors(report)
    rows = len(strategies)
    figure = new_figure((11, 3.6 + 0.5 * rows))
    axes = figure.subplots(2, 3)
    for axis, (name, title, label, percent) in zip(axes.flat, _PANELS, strict=False):
        values = np.array([getattr(strategy, name) for strategy in strategies]) * (100 if percent else 1)
        _bars(axis, values, colors, percent)
        style_axis(axis, title=title, x=label)
        first_column = axis in axes[:, 0]
        axis.set_yticks(range(rows), [s.name if first_column else "" for s in strategies], fontsize=9)
    how = _coverage(axes[1, 2], strategies, colors)
    figure.supxlabel(f"{NOTE}\n{how}", x=0.01, ha="left", fontsize=8, color="#404040")
    masked = f"{100 * strategies[0].rate:.1f} % of genes masked"
    figure.suptitle(f"What masking hides: {report.scope}, {masked}", x=0.01, ha="left")
    return save_figure(figure, path)


def _strategy_colors(report: AuditReport) -> list[str]:
    """Give each strategy a colour; controls are grey."""
    palette = iter(COLORS * (1 + len(report.strategies) // len(COLORS)))
    return [GREY if strategy.name in report.controls else next(palette) for strategy in report]


def _bars(axis: Any, values: np.ndarray, colors: list[str], percent: bool) -> None:
    """Horizontal bars, the first strategy on top, each with its value at its end."""
    shown = np.nan_to_num(values)
    axis.barh(range(values.size), shown, color=colors, height=0.62)
    for row, value in enumerate(values):
        text = "no pair" if np.isnan(value) else f"{value:.1f} %" if percent else f"{value:.2f}"
        axis.annotate(text, (shown[row], row), (3, 0), **TEXT, va="center")
    axis.invert_yaxis()
    axis.set_xlim(0, max(float(shown.max()), 1e-9) * 1.28)
    axis.tick_params(axis="y", length=0)


def _coverage(axis: Any, strategies: Sequence[StrategyAudit], colors: list[str]) -> str:
    """Draw how often genes are masked when present, a row a strategy; return how to read it."""
    present = strategies[0].times_present
    least = min(MIN_TIMES_PRESENT, max(int(present.max()), 1))
    genes = present >= least
    for row, (strategy, color) in enumerate(zip(strategies, colors, strict=True)):
        low, left, middle, right, high = np.percentile(100 * strategy.coverage[genes], (5, 25, 50, 75, 95))
        axis.plot([low, high], [row, row], color=color, linewidth=1.6, solid_capstyle="butt")
        axis.plot([left, right], [row, row], color=color, linewidth=8, solid_capstyle="butt")
        axis.plot(middle, row, "o", color="white", markeredgecolor=color, markersize=4.5)
        axis.annotate(f"{low:.0f} to {high:.0f} %", (high, row), (4, 0), **TEXT, va="center")
    axis.set_ylim(len(strategies) - 0.5, -0.5)
    axis.set_xlim(0, axis.get_xlim()[1] * 1.28)
    axis.tick_params(axis="y", length=0)
    axis.set_yticks(range(len(strategies)), [""] * len(strategies))
    style_axis(axis, title="How evenly genes are masked", x="times masked / times present (%)")
    return (
        f"How evenly: median, half (thick) and 90 % (thin) of {np.count_nonzero(genes):,} genes seen {least} times or "
        "more; the control's width is what sampling makes of even masking."
    )
