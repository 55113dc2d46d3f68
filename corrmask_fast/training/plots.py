"""Pictures of training: the loss of a few steps, the losses of a run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from corrmask_fast.errors import check_integer
from corrmask_fast.plots import BLUE, GREEN, GREY, RED, TEXT, new_figure, save_figure, style_axis

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from corrmask_fast.training.run import PretrainingReport

__all__ = ["plot_loss", "plot_pretraining"]


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
    figure = new_figure((5.0, 3.0))
    axis = figure.subplots()
    axis.plot(steps, values, ".", color=BLUE, alpha=0.35, markersize=4)
    if values.size >= window:
        smooth = np.convolve(values, np.ones(window) / window, mode="valid")
        middle = steps[: smooth.size] + (window - 1) / 2
        axis.plot(middle, smooth, color=BLUE, linewidth=2)
        # Beside its end, so that the eye needs no legend.
        label = f"{smooth[-1]:.2f} nats,\nmean of\n{window} steps"
        axis.annotate(label, (steps[-1], smooth[-1]), (6, 0), **TEXT, color=BLUE, va="center")
    if chance is not None:
        axis.axhline(chance, color=GREY, linewidth=1, linestyle="--")
        # Above its line: beside it the label of the loss may stand.
        place = {"xycoords": ("axes fraction", "data"), "ha": "right"}
        axis.annotate(f"uniform guess {chance:.2f}", (1, chance), (0, 2), **place, **TEXT, color=GREY)
        axis.margins(y=0.1)
    style_axis(axis, title=title, x="training step", y="loss at masked genes (nats)")
    axis.set_xlim(0, values.size + 0.5)
    return save_figure(figure, path)


def plot_pretraining(report: PretrainingReport, path: str | os.PathLike[str] | None = None) -> Any:
    """Draw the losses of a run: in training under its own masks, and on held-out cells.

    With a graph the latter are split by where the partners of a gene are. The groups are different genes: gaps between
    them do not measure copying.

    Parameters
    ----------
    report
        Of :func:`corrmask_fast.training.run.pretrain`.
    path
        Where to save it (``.png``, ``.pdf``, ``.svg``); None: only return it.
    """
    figure = new_figure((5.0, 3.4))
    axis = figure.subplots()
    lines = (
        ("loss", "in training, under the run's own masks", GREY, "-", 1.2),
        ("eval_loss", "held-out cells", "black", "-", 1.8),
        ("eval_loss_partner_visible", "genes with a partner in view", RED, "--", 1.2),
        ("eval_loss_partner_hidden", "other genes: all partners hidden", BLUE, "-.", 1.2),
        ("eval_loss_partner_absent", "other genes: no partner in the cell", GREEN, ":", 1.2),
    )
    for name, label, color, style, width in lines:
        points = np.array([(row["step"], row[name]) for row in report.history if name in row])
        if points.size:
            marker = "o" if name != "loss" else ""
            axis.plot(*points.T, style, marker=marker, markersize=3, color=color, linewidth=width, label=label)
    style_axis(axis, title="Learning to name masked genes", x="training step", y="loss at masked genes (nats)")
    axis.xaxis.get_major_locator().set_params(integer=True)
    if axis.lines:
        figure.legend(frameon=False, fontsize=7, loc="outside lower left", ncols=2)
    return save_figure(figure, path)
