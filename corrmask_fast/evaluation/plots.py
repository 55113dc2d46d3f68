"""Pictures of evaluations: F1 by abundance of the cell type, ROC curves of gene classes, the paired shortcut."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from corrmask_fast.errors import import_extra
from corrmask_fast.plots import COLORS, GREY, new_figure, save_figure, style_axis

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable

    from corrmask_fast.evaluation.cell_annotation import CellAnnotation
    from corrmask_fast.evaluation.gene_classification import GeneClassification
    from corrmask_fast.evaluation.shortcut import Shortcut

MAX_NUMBERED = 15  # types whose confusion matrix has numbers in it

__all__ = ["plot_cell_annotation", "plot_gene_classification", "plot_shortcut"]


def plot_cell_annotation(report: CellAnnotation, path: str | os.PathLike[str] | None = None) -> Any:
    """Draw F1 of every cell type, the most abundant on top, each repeat a dot, and the confusion matrix.

    A third panel has macro-F1 of the baselines, where there are some, or the learning curves.

    Parameters
    ----------
    report
        Of :func:`corrmask_fast.annotate_cells`.
    path
        Where to save it (``.png``, ``.pdf``, ``.svg``); None: only return it.

    Returns
    -------
    The figure.
    """
    n_types = len(report.types)
    third = len(report.confusions) > 1 or len(report.sizes) > 1
    figure = new_figure((15.5 if third else 10.5, max(2.6, 2.2 + 0.28 * n_types)))
    axis, matrix, *more = figure.subplots(1, 3 if third else 2, width_ratios=(1, 0.8, 1)[: 3 if third else 2])
    rare = np.arange(n_types) >= n_types - report.n_rare
    colors = [COLORS[1] if one else COLORS[0] for one in rare]
    axis.barh(range(n_types), report.f1.mean(axis=0), color=colors, height=0.66, alpha=0.85)
    if len(report.f1) > 1:
        for scores in report.f1:
            axis.plot(scores, range(n_types), ".", color="black", markersize=4, alpha=0.7)
    macro, tail = report.macro_f1.mean(), report.rare_f1.mean()
    axis.axvline(macro, color=GREY, linestyle="--", linewidth=1)
    axis.annotate(f"macro-F1 {macro:.3f}", (macro, 1), (-3, 3), xycoords=("data", "axes fraction"),
                  textcoords="offset points", ha="right", fontsize=8, color=GREY)  # fmt: skip
    names = [f"{name}  ({cells:,})" for name, cells in zip(report.types, report.n_cells, strict=True)]
    axis.set_yticks(range(n_types), names, fontsize=8)
    axis.set_ylim(n_types - 0.5, -0.5)
    axis.set_xlim(0, 1)
    title = f"Cell types named (orange: the rarest {report.n_rare}, mean F1 {tail:.3f})\n"
    style_axis(axis, title=title, x="F1 on cells held out")
    _draw_confusion(matrix, report)
    for panel in more:
        (_draw_curves if len(report.sizes) > 1 else _draw_methods)(panel, report)
    return save_figure(figure, path)


def _draw_confusion(axis: Any, report: CellAnnotation) -> None:
    """Draw where the cells of each type went, in percent of the type; rows as in the panel to the left."""
    n_types = len(report.types)
    share = report.confusion / np.maximum(report.confusion.sum(axis=1, keepdims=True), 1)
    axis.imshow(share, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    if n_types <= MAX_NUMBERED:
        for (row, column), value in np.ndenumerate(share):
            if value >= 0.005:
                color = "white" if value > 0.5 else "black"
                axis.text(column, row, f"{100 * value:.0f}", ha="center", va="center", fontsize=7, color=color)
    style_axis(axis, title="Cells of each type, in % of it\n", x="named")
    axis.set_xticks(range(n_types), report.types, rotation=45, ha="right", rotation_mode="anchor", fontsize=7)
    axis.set_yticks(range(n_types), [""] * n_types)


def _look(method: str, methods: Iterable[str]) -> dict[str, Any]:
    """Return how a method is drawn: a colour for each kind, hollow and dashed where the weights are new."""
    kinds = list(dict.fromkeys(each.partition(",")[0] for each in methods))
    color = COLORS[kinds.index(method.partition(",")[0]) % len(COLORS)]
    fresh = method.endswith("new weights")
    return {"color": color, "marker": "o", "markersize": 5, "linestyle": "--" if fresh else "-",
            "markerfacecolor": "white" if fresh else color, "capsize": 2, "linewidth": 1.4}  # fmt: skip


def _macro_f1(report: CellAnnotation, method: str, size: int) -> tuple[float, float]:
    """Return the mean over repeats, and its standard error; 0 where there is one repeat."""
    macro = report.f1_of(method, size).mean(axis=1)
    return float(macro.mean()), float(macro.std(ddof=1) / np.sqrt(macro.size)) if macro.size > 1 else 0.0


def _draw_methods(axis: Any, report: CellAnnotation) -> None:
    """Draw macro-F1 of the model and of the baselines."""
    methods = list(report.confusions)
    for row, method in enumerate(methods):
        mean, error = _macro_f1(report, method, report.sizes[-1])
        axis.errorbar(mean, row, xerr=error, **_look(method, methods))
    axis.set_yticks(range(len(methods)), methods, fontsize=8)
    axis.set_ylim(len(methods) - 0.5, -0.5)
    axis.set_xlim(0, 1)
    spread = ", ± s.e. over repeats" if len(report.f1) > 1 else ""
    style_axis(axis, title="The same cells named by\n", x=f"macro-F1{spread}")


def _draw_curves(axis: Any, report: CellAnnotation) -> None:
    """Draw macro-F1 of every method by the number of labelled cells that it learnt from."""
    for method in report.confusions:
        means, errors = zip(*(_macro_f1(report, method, size) for size in report.sizes), strict=True)
        axis.errorbar(report.sizes, means, yerr=errors, label=method, **_look(method, report.confusions))
    axis.set_xscale("log")
    axis.set_xticks(report.sizes, [f"{size:,}" for size in report.sizes])
    axis.minorticks_off()
    axis.set_ylim(0, 1)
    axis.legend(fontsize=7, frameon=False)
    spread = ", ± s.e. over repeats" if len(report.f1) > 1 else ""
    style_axis(axis, title="By labelled cells\n", x="labelled cells to learn from", y=f"macro-F1{spread}")


def plot_gene_classification(report: GeneClassification, path: str | os.PathLike[str] | None = None) -> Any:
    """Draw the ROC curve of each fold, and their mean; return the figure.

    Parameters
    ----------
    report
        Of :func:`corrmask_fast.classify_genes`.
    path
        Where to save it; None: only return it.
    """
    metrics = import_extra("sklearn.metrics", "eval")
    figure = new_figure((4.8, 4.8))
    axis = figure.subplots()
    false_rate = np.linspace(0, 1, 201)
    curves = []
    for fold in report.folds:
        x, y, _ = metrics.roc_curve(fold.truth, fold.score)
        curves.append(np.interp(false_rate, x, y))
        axis.plot(x, y, color=COLORS[0], alpha=0.3, linewidth=1)
    mean = np.concatenate([[0.0], np.mean(curves, axis=0)])
    axis.plot(np.concatenate([[0.0], false_rate]), mean, color=COLORS[0], linewidth=2)
    axis.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=1)
    spread = f" ± {report.auc.std(ddof=1):.3f}" if report.auc.size > 1 else ""
    label = f"AUC {report.auc.mean():.3f}{spread}\n{report.auc.size} folds, mean in bold"
    axis.annotate(label, (0.98, 0.04), ha="right", fontsize=9, color=COLORS[0])
    axis.set_aspect("equal")
    style_axis(
        axis,
        title=f"{report.classes[1]} against {report.classes[0]}, genes held out",
        x="false positive rate",
        y="true positive rate",
    )
    return save_figure(figure, path)


def plot_shortcut(report: Shortcut, path: str | os.PathLike[str] | None = None) -> Any:
    """Draw shortcut and placebo of each model: over all targets, by |rho| and by frequency; return the figure.

    Parameters
    ----------
    report
        Of :func:`corrmask_fast.measure_shortcut`.
    path
        Where to save it; None: only return it.
    """
    models = report.models
    figure = new_figure((12.5, max(3.8, 1.8 + 0.3 * len(models))))
    everything, *by_group = figure.subplots(1, 3, width_ratios=(1.1, 1, 1))
    colors = {model: COLORS[i % len(COLORS)] for i, model in enumerate(models)}
    kinds = {"shortcut": {"fmt": "o", "markersize": 6}, "placebo": {"fmt": "o", "markersize": 6, "mfc": "white"}}
    for measure, style in kinds.items():
        for i, model in enumerate(models):
            found = report.mean(model, measure)
            color = colors[model] if measure == "shortcut" else GREY
            everything.errorbar(found.mean, i, xerr=_drawn(found.error), color=color, capsize=3, **style)
    everything.axvline(0, color=GREY, linewidth=0.8)
    everything.set_xlim(*_at_least(*everything.get_xlim()))
    everything.locator_params(axis="x", nbins=5)
    everything.set_yticks(range(len(models)), [_short(model) for model in models], fontsize=8)
    everything.set_ylim(len(models) - 0.5, -0.5)
    number = f"{report.genes.size:,} targets in {np.unique(report.cells).size:,} cells"
    style_axis(everything, title="Shortcut (filled) and placebo (grey)", x=f"nats at the target, ± s.e.; {number}")
    titles = {"shortcut by rho": "largest |rho| among its partners", "shortcut by frequency": "share of cells with it"}
    for axis, (name, ranges) in zip(by_group, report.groups().items(), strict=True):
        groups = {group: among for group, among in ranges.items() if among.any()}
        for i, model in enumerate(models):
            shift = (i - (len(models) - 1) / 2) * min(0.08, 0.4 / len(models))
            for measure, line in (("shortcut", "-"), ("placebo", ":")):
                of_groups = [report.mean(model, measure, among) for among in groups.values()]
                means, errors = [one.mean for one in of_groups], [_drawn(one.error) for one in of_groups]
                axis.errorbar(
                    np.arange(len(groups)) + shift, means, yerr=errors, color=colors[model], linestyle=line,
                    capsize=2, linewidth=1.4, marker="o", markersize=4,
                    mfc=colors[model] if measure == "shortcut" else "white",
                )  # fmt: skip
        axis.axhline(0, color=GREY, linewidth=0.8)
        axis.set_ylim(*_at_least(*axis.get_ylim()))
        ticks = [f"{group}\nn = {np.count_nonzero(among):,}" for group, among in groups.items()]
        axis.set_xticks(range(len(groups)), ticks, fontsize=7)
        style_axis(axis, title=f"By {titles[name]}", x="", y="nats")
    lines = [by_group[0].plot([], [], line, color="black", label=label)[0] for line, label in
             (("-", "shortcut"), (":", "placebo"))]  # fmt: skip
    by_group[0].legend(handles=lines, frameon=False, fontsize=8, loc="upper left")
    return save_figure(figure, path)


def _at_least(low: float, high: float, least: float = 0.002) -> tuple[float, float]:
    """Return the ends of an axis in nats, wide enough that rounding errors do not look like results."""
    return min(low, -least), max(high, least)


def _drawn(error: float) -> float:
    """Return an error bar's length: none where the error is not known."""
    return 0.0 if np.isnan(error) else error


def _short(name: str, longest: int = 28) -> str:
    """Return a name for an axis: the end of a long path."""
    return name if len(name) <= longest else f"…{name[1 - longest :]}"
