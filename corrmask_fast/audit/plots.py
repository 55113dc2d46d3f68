"""The picture of an audit: a panel for each figure, and how evenly genes are masked."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

import numpy as np

from corrmask_fast.errors import brief
from corrmask_fast.plots import (
    DARK,
    PAGE,
    TEXT,
    Look,
    head_figure,
    new_figure,
    save_figure,
    strategy_looks,
    style_axis,
)

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from corrmask_fast.audit.report import AuditReport, StrategyAudit

__all__ = ["plot_audit"]

# Fewer sightings than this say little about how often a gene is masked.
MIN_TIMES_PRESENT = 50

_PANELS = (
    ("hit_rate", "Partners masked together", "present partners masked (%)", True),
    ("hidden_rate", "Every partner hidden", "masked genes (%)", True),
    ("residual_shortcut_same_genes", "Shortcut left, same genes", "mean |rho|, strongest in view", False),
    ("all_partner_hit_rate", "Partners, in the cell or not", "partners masked (%)", True),
    ("mean_span", "Masked neighbours in rank", "mean length of a run (genes)", False),
)
_NOTE = (
    "The first four: of the masked genes with a partner in the cell. CorrMask masks genes with many partners more "
    "often; 'same genes' weighs each gene as the control does."
)


def plot_audit(report: AuditReport, path: str | os.PathLike[str] | None = None) -> Any:
    """Draw an audit: a panel for each figure, strategies beside their control, and how evenly genes are masked.

    Parameters
    ----------
    report
        Of :func:`~corrmask_fast.audit_masking`, :func:`~corrmask_fast.audit_all_strategies` or
        :func:`~corrmask_fast.audit_collator`.
    path
        Where to save it (``.png``, ``.pdf``, ``.svg``); None: only return it.

    Returns
    -------
    matplotlib.figure.Figure
        The picture.

    Raises
    ------
    MissingExtraError
        Without matplotlib (extra ``plot``).

    Examples
    --------
    >>> from corrmask_fast import CorrMasker, DependencyGraph, audit_masking, plot_audit, read_corpus
    >>> from corrmask_fast.testing import make_vocabulary
    >>> genes = make_vocabulary(20)
    >>> graph = DependencyGraph.from_edges([("G0", "G1"), ("G2", "G3")], genes)
    >>> report = audit_masking(CorrMasker(graph), read_corpus([range(2, 22)] * 50, genes), graph, progress=False)
    >>> figure = plot_audit(report)
    >>> figure.savefig("audit.png")  # doctest: +SKIP
    """
    strategies = list(report)
    looks = [*strategy_looks(strategy.name for strategy in strategies).values()]
    rows = len(strategies)
    figure = new_figure((PAGE, 2.4 + 0.32 * rows))
    axes = figure.subplots(2, 3)
    for axis, (name, title, label, percent) in zip(axes.flat, _PANELS, strict=False):
        values = np.array([getattr(strategy, name) for strategy in strategies]) * (100 if percent else 1)
        _bars(axis, values, looks, percent)
        style_axis(axis, title=title, x=label)
    how = _coverage(axes[1, 2], strategies, looks)
    for axis in axes.flat:
        first_column = axis in axes[:, 0]
        axis.set_ylim(rows - 0.45, -0.55)
        axis.set_yticks(range(rows), [brief(s.name, 32) if first_column else "" for s in strategies])
        axis.tick_params(axis="y", length=0)
        axis.locator_params(axis="x", nbins=4)
    figure.supxlabel("\n".join(textwrap.wrap(f"{_NOTE} {how}", 140)), x=0.01, ha="left", fontsize=6.5, color=DARK)
    masked = f"{100 * strategies[0].rate:.1f} % of genes masked"
    head_figure(figure, f"What masking hides: {report.scope}, {masked}")
    return save_figure(figure, path)


def _bars(axis: Any, values: np.ndarray, looks: Sequence[Look], percent: bool) -> None:
    """Horizontal bars, the first strategy on top, each with its value at its end."""
    shown = np.nan_to_num(values)
    for row, (value, look) in enumerate(zip(values, looks, strict=True)):
        axis.barh(row, shown[row], height=0.62, **look.bar())
        text = "no pair" if np.isnan(value) else f"{value:.1f} %" if percent else f"{value:.2f}"
        axis.annotate(text, (shown[row], row), (3, 0), **TEXT, va="center")
    axis.set_xlim(0, max(float(shown.max()), 1e-9) * 1.4)


def _coverage(axis: Any, strategies: Sequence[StrategyAudit], looks: Sequence[Look]) -> str:
    """Draw how often genes are masked when present, a row a strategy; return how to read it."""
    present = strategies[0].times_present
    least = min(MIN_TIMES_PRESENT, max(int(present.max()), 1))
    genes = present >= least
    most = 0.0
    for row, (strategy, look) in enumerate(zip(strategies, looks, strict=True)):
        low, left, middle, right, high = np.percentile(100 * strategy.coverage[genes], (5, 25, 50, 75, 95))
        axis.plot([low, high], [row, row], color=look.color, linewidth=1.2, solid_capstyle="butt", zorder=1)
        axis.barh(row, right - left, left=left, height=0.5, **look.bar())
        axis.plot(middle, row, "o", color="white", markeredgecolor=look.color, markersize=3.5, clip_on=False, zorder=3)
        axis.annotate(f"{low:.0f} to {high:.0f} %", (high, row), (4, 0), **TEXT, va="center")
        most = max(most, float(high))
    axis.set_xlim(0, most * 1.6)
    style_axis(axis, title="How evenly masked", x="times masked / present (%)")
    return (
        f"How evenly: median, half (box) and 90 % (line) of {np.count_nonzero(genes):,} genes seen {least} times or "
        "more; the control's width is what sampling makes of even masking."
    )
