"""Every picture. Figures are made without pyplot: no window, no global state, Agg when they are saved."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from corrmask_fast.errors import InputError, check_integer, import_extra
from corrmask_fast.files import atomic_file, check_output

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence
    from pathlib import Path

    from corrmask_fast.audit_report import AuditReport, StrategyAudit

__all__ = ["check_picture", "plot_audit", "plot_loss"]

# Okabe and Ito's colours, told apart with any colour vision; the control is grey.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
GREY = "#8C8C8C"

# Fewer sightings than this say little about how often a gene is masked.
SEEN_AT_LEAST = 50

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


PICTURES = (".png", ".pdf", ".svg")

_TEXT: dict[str, Any] = {"textcoords": "offset points", "fontsize": 9, "annotation_clip": False}
_INSIDE: dict[str, Any] = {"xycoords": "axes fraction", "ha": "right", "va": "top"}


def check_picture(path: str | os.PathLike[str]) -> Path:
    """Return where to save a picture, or raise InputError: to be asked before the work whose picture it is."""
    path = check_output(path)
    if path.suffix.lower() not in PICTURES:
        raise InputError(f"a picture must end in {', '.join(PICTURES[:-1])} or {PICTURES[-1]}; got {path}")
    return path


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
    from corrmask_fast.audit_report import NOTE

    strategies, colors = list(report), _strategy_colors(report)
    rows = len(strategies)
    figure = new_figure((11, 3.6 + 0.5 * rows))
    axes = figure.subplots(2, 3)
    for axis, (name, title, label, percent) in zip(axes.flat, _PANELS, strict=False):
        values = np.array([getattr(strategy, name) for strategy in strategies]) * (100 if percent else 1)
        _bars(axis, values, colors, percent)
        dress(axis, title=title, x=label)
        first_column = axis in axes[:, 0]
        axis.set_yticks(range(rows), [s.name if first_column else "" for s in strategies], fontsize=9)
    _coverage(axes[1, 2], strategies, colors)
    figure.supxlabel(NOTE, x=0.01, ha="left", fontsize=8, color="#404040")
    masked = f"{100 * strategies[0].rate:.1f} % of genes masked"
    figure.suptitle(f"What masking hides: {report.scope}, {masked}", x=0.01, ha="left")
    return save_figure(figure, path)


def plot_loss(
    losses: Sequence[float],
    path: str | os.PathLike[str] | None = None,
    *,
    chance: float | None = None,
    window: int | None = None,
    title: str = "Learning to name masked genes",
) -> Any:
    """Draw a loss curve: every step, and its running mean.

    Parameters
    ----------
    losses
        (steps,) cross-entropy at masked genes in nats, one value a step.
    path
        Where to save it; None: only return it.
    chance
        The loss of a uniform guess, drawn as a line.
    window
        Steps of the running mean; None: a tenth of them.
    title
        Of the picture.

    Returns
    -------
    matplotlib.figure.Figure
    """
    values = np.asarray(losses, np.float64)
    steps = np.arange(1, values.size + 1)
    window = max(1, values.size // 10) if window is None else check_integer("window", window, 1)
    figure = new_figure((6.4, 4.0))
    axis = figure.subplots()
    axis.plot(steps, values, ".", color=COLORS[0], alpha=0.35, markersize=5)
    if values.size >= window:
        smooth = np.convolve(values, np.ones(window) / window, mode="valid")
        middle = steps[: smooth.size] + (window - 1) / 2
        axis.plot(middle, smooth, color=COLORS[0], linewidth=2)
        # Beside its end, so that the eye needs no legend.
        label = f"{smooth[-1]:.2f} nats,\nmean of\n{window} steps"
        axis.annotate(label, (steps[-1], smooth[-1]), (6, 0), **_TEXT, color=COLORS[0], va="center")
    if chance is not None:
        axis.axhline(chance, color=GREY, linewidth=1, linestyle="--")
        axis.annotate("uniform\nguess", (steps[-1], chance), (6, 0), **_TEXT, color=GREY, va="center")
    dress(axis, title=title, x="training step", y="loss at masked genes (nats)")
    axis.set_xlim(0, values.size + 0.5)
    return save_figure(figure, path)


def new_figure(size: tuple[float, float]) -> Any:
    return import_extra("matplotlib.figure", "plot").Figure(figsize=size, layout="constrained")


def dress(axis: Any, *, title: str, x: str, y: str = "") -> None:
    """Title, axis labels, and no more frame than needed."""
    axis.set_title(title, loc="left", fontsize=10)
    axis.set_xlabel(x, fontsize=9)
    axis.set_ylabel(y, fontsize=9)
    axis.tick_params(labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)


def edges_bar(axis: Any, shown: Any) -> None:
    """Say what the colours of a picture mean: numbers of edges, on a logarithmic scale, in plain figures."""
    bar = axis.figure.colorbar(shown, ax=axis, shrink=0.7, pad=0.02)
    bar.set_label("edges", fontsize=8)
    bar.ax.yaxis.set_major_formatter("{x:,.0f}")
    bar.ax.yaxis.set_minor_formatter("{x:,.0f}" if shown.norm.vmax < 10 * max(shown.norm.vmin, 1) else "")
    bar.ax.tick_params(which="both", labelsize=7)


def save_figure(figure: Any, path: str | os.PathLike[str] | None) -> Any:
    if path is not None:
        kind = check_picture(path).suffix.removeprefix(".").lower()
        with atomic_file(path) as temporary:
            figure.savefig(temporary, format=kind, dpi=160)
    return figure


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
        axis.annotate(text, (shown[row], row), (3, 0), **_TEXT, va="center")
    axis.invert_yaxis()
    axis.set_xlim(0, max(float(shown.max()), 1e-9) * 1.28)
    axis.tick_params(axis="y", length=0)


def _coverage(axis: Any, strategies: Sequence[StrategyAudit], colors: list[str]) -> None:
    """Histogram over genes of how often each is masked when present, a line a strategy with its name on it."""
    present = strategies[0].times_present
    least = min(SEEN_AT_LEAST, max(int(present.max()), 1))
    genes = present >= least
    shares = [100 * strategy.coverage[genes] for strategy in strategies]
    highest = max(float(np.max(share)) for share in shares)
    edges = np.linspace(0, max(highest, 1.0), 41)
    for row, (strategy, share, color) in enumerate(zip(strategies, shares, colors, strict=True)):
        axis.stairs(np.histogram(share, edges)[0], edges, color=color, linewidth=1.6)
        # The right side is free: few genes are masked far more often than the others.
        axis.annotate(strategy.name, (1, 1), (0, -12 * row), **_TEXT, **_INSIDE, color=color)
    seen = f"{np.count_nonzero(genes):,} genes seen\n{least} times or more"
    axis.annotate(seen, (1, 1), (0, -12 * len(strategies)), **_TEXT, **_INSIDE, color="#404040")
    dress(axis, title="How evenly genes are masked", x="times masked / times present (%)", y="genes")
