"""Pictures of evaluations: F1 by abundance of the cell type, ROC curves of gene classes, the paired shortcut."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np

from corrmask_fast.errors import import_extra
from corrmask_fast.plots import (
    BLUE,
    COLORS,
    COLUMN,
    GREY,
    ORANGE,
    PAGE,
    TEXT,
    head_figure,
    new_figure,
    plain,
    save_figure,
    short_names,
    strategy_looks,
    style_axis,
)

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
    height = 1.7 + 0.2 * n_types
    figure = new_figure((PAGE, height + (2.2 if third else 0)))
    above, *below = figure.subfigures(2, 1, height_ratios=(height, 2.2)) if third else [figure]
    axis, matrix = above.subplots(1, 2, width_ratios=(1, 0.9))
    rare = np.arange(n_types) >= n_types - report.n_rare
    colors = [ORANGE if one else BLUE for one in rare]
    axis.barh(range(n_types), report.f1.mean(axis=0), color=colors, height=0.66, alpha=0.85)
    if len(report.f1) > 1:
        spread = report.f1.std(axis=0, ddof=1)
        axis.errorbar(report.f1.mean(axis=0), range(n_types), xerr=spread, fmt="none", color="black", linewidth=0.8)
        for scores in report.f1:
            axis.plot(scores, range(n_types), ".", color="black", markersize=3, alpha=0.7)
    macro, tail = report.macro_f1.mean(), report.rare_f1.mean()
    axis.axvline(macro, color=GREY, linestyle="--", linewidth=1)
    axis.annotate(f"macro-F1 {macro:.3f}", (macro, 1), (0, 2), xycoords=("data", "axes fraction"), color=GREY,
                  ha="center" if 0.2 < macro < 0.8 else "left" if macro < 0.5 else "right", **TEXT)  # fmt: skip
    names = [plain(f"{name}  ({cells:,})") for name, cells in zip(report.types, report.n_cells, strict=True)]
    axis.set_yticks(range(n_types), names)
    axis.set_ylim(n_types - 0.5, -0.5)
    axis.set_xlim(0, 1)
    repeats = f" ({len(report.f1)} repeats, ± s.d.)" if len(report.f1) > 1 else ""
    rarest = f"orange: the rarest {report.n_rare}, mean F1 {tail:.3f}"
    style_axis(axis, title="", x=f"F1 on cells held out{repeats}\n{rarest}")
    head_figure(figure, f"Cell types named ({report.method})")
    _draw_confusion(matrix, report)
    for part in below:
        (_draw_curves if len(report.sizes) > 1 else _draw_methods)(part.subplots(), report)
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
                axis.text(column, row, f"{100 * value:.0f}", ha="center", va="center", fontsize=6, color=color)
    style_axis(axis, title="Cells of each type, in % of it", x="named")
    axis.set_xticks(
        range(n_types), [plain(name) for name in report.types], rotation=45, ha="right", rotation_mode="anchor"
    )
    axis.set_yticks(range(n_types), [""] * n_types)


def _look(method: str, methods: Iterable[str]) -> dict[str, Any]:
    """Return how a method is drawn: a colour for each kind, hollow and dashed where the weights are new."""
    kinds = list(dict.fromkeys(each.partition(",")[0] for each in methods))
    color = COLORS[kinds.index(method.partition(",")[0]) % len(COLORS)]
    fresh = method.endswith("new weights")
    return {"color": color, "marker": "o", "markersize": 4, "linestyle": "--" if fresh else "-",
            "markerfacecolor": "white" if fresh else color, "capsize": 2, "linewidth": 1.2}  # fmt: skip


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
    axis.set_yticks(range(len(methods)), methods)
    axis.set_ylim(len(methods) - 0.5, -0.5)
    axis.set_xlim(0, 1)
    spread = ", ± s.e. over repeats" if len(report.f1) > 1 else ""
    style_axis(axis, title="The same cells named by", x=f"macro-F1{spread}")


def _draw_curves(axis: Any, report: CellAnnotation) -> None:
    """Draw macro-F1 of every method by the number of labelled cells that it learnt from."""
    for method in report.confusions:
        means, errors = zip(*(_macro_f1(report, method, size) for size in report.sizes), strict=True)
        axis.errorbar(report.sizes, means, yerr=errors, label=method, **_look(method, report.confusions))
    axis.set_xscale("log")
    axis.set_xticks(report.sizes, [f"{size:,}" for size in report.sizes])
    axis.minorticks_off()
    axis.set_ylim(0, 1)
    axis.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1.02, 0.5))
    spread = ", ± s.e. over repeats" if len(report.f1) > 1 else ""
    style_axis(axis, title="By labelled cells", x="labelled cells to learn from", y=f"macro-F1{spread}")


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
    figure = new_figure((COLUMN, COLUMN))
    axis = figure.subplots()
    false_rate = np.linspace(0, 1, 201)
    curves = []
    for fold in report.folds:
        x, y, _ = metrics.roc_curve(fold.truth, fold.score)
        curves.append(np.interp(false_rate, x, y))
        axis.plot(x, y, color=BLUE, alpha=0.3, linewidth=0.7)
    mean = np.mean(curves, axis=0)
    if len(curves) > 1:
        spread = np.std(curves, axis=0, ddof=1)
        low, high = np.clip([mean - spread, mean + spread], 0, 1)
        axis.fill_between(false_rate, low, high, color=BLUE, alpha=0.15, linewidth=0)
    axis.plot(np.concatenate([[0.0], false_rate]), np.concatenate([[0.0], mean]), color=BLUE, linewidth=1.8)
    axis.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=1)
    error = f" ± {report.auc.std(ddof=1):.3f}" if report.auc.size > 1 else ""
    label = f"AUC {report.auc.mean():.3f}{error}\n{report.auc.size} folds; bold: mean ± s.d."
    axis.annotate(label, (0.98, 0.04), ha="right", fontsize=7, color=BLUE)
    axis.set_aspect("equal")
    style_axis(axis, title="", x="false positive rate", y="true positive rate")
    head_figure(figure, plain(f"{report.classes[1]} against {report.classes[0]}, genes held out"))
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
    figure = new_figure((PAGE, max(2.8, 1.5 + 0.2 * len(models))))
    everything, *by_group = figure.subplots(1, 3, width_ratios=(1.1, 1, 1))
    looks = strategy_looks(models)
    for measure in ("shortcut", "placebo"):
        for i, model in enumerate(models):
            found, look = report.mean(model, measure), looks[model]
            style = look._replace(filled=measure == "shortcut").style() | {"marker": "o", "markersize": 4.5}
            place = i + (0.12 if measure == "placebo" else -0.12)
            everything.errorbar(found.mean, place, xerr=_drawn(found.error), capsize=2, **style)
    everything.axvline(0, color=GREY, linewidth=0.8)
    everything.set_xlim(*_at_least(*everything.get_xlim()))
    everything.locator_params(axis="x", nbins=4)
    everything.set_yticks(range(len(models)), [plain(_short(name)) for name in short_names(models)])
    everything.set_ylim(len(models) - 0.5, -0.5)
    number = f"{report.genes.size:,} targets in {np.unique(report.cells).size:,} cells"
    style_axis(everything, title="● shortcut   ○ placebo", x=f"nats at the target, ± s.e.\n{number}")
    titles = {"shortcut by rho": "its strongest |rho|", "shortcut by frequency": "share of cells with it"}
    for axis, (name, ranges) in zip(by_group, report.groups().items(), strict=True):
        groups = {group: among for group, among in ranges.items() if among.any()}
        for i, model in enumerate(models):
            shift = (i - (len(models) - 1) / 2) * min(0.08, 0.4 / len(models))
            for measure, line in (("shortcut", "-"), ("placebo", ":")):
                of_groups = [report.mean(model, measure, among) for among in groups.values()]
                means, errors = [one.mean for one in of_groups], [_drawn(one.error) for one in of_groups]
                style = looks[model]._replace(filled=measure == "shortcut").style() | {
                    "linestyle": line,
                    "markersize": 3,
                }
                axis.errorbar(
                    np.arange(len(groups)) + shift, means, yerr=errors, capsize=1.5, linewidth=1.1,
                    **style | {"marker": "o", "markeredgewidth": 0.9},
                )  # fmt: skip
        axis.axhline(0, color=GREY, linewidth=0.8)
        axis.set_ylim(*_at_least(*axis.get_ylim()))
        ticks = [f"{_range(group)}\nn = {np.count_nonzero(among):,}" for group, among in groups.items()]
        axis.set_xticks(range(len(groups)), ticks)
        style_axis(axis, title=f"By {titles[name]}", x="", y="nats")
        axis.tick_params(axis="x", labelsize=6)
    lines = [by_group[0].plot([], [], line, color="black", label=label)[0] for line, label in
             (("-", "shortcut"), (":", "placebo"))]  # fmt: skip
    by_group[0].legend(handles=lines, frameon=False, fontsize=7, loc="upper left")
    return save_figure(figure, path)


def _at_least(low: float, high: float, least: float = 0.002) -> tuple[float, float]:
    """Return the ends of an axis in nats, wide enough that rounding errors do not look like results."""
    return min(low, -least), max(high, least)


def _drawn(error: float) -> float:
    """Return an error bar's length: none where the error is not known."""
    return 0.0 if np.isnan(error) else error


def _range(text: str) -> str:
    """Return a range as short as a tick has room for."""
    return re.sub(r"(.+) and above", r"≥ \1", text.replace("below ", "< "))


def _short(name: str, longest: int = 28) -> str:
    """Return a name for an axis: the end of a long path."""
    return name if len(name) <= longest else f"…{name[1 - longest :]}"
