"""Pictures of comparisons: edges that graphs share, and how often a graph's edges come back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from corrmask_fast.errors import InputError, brief
from corrmask_fast.plots import (
    BLUE,
    DARK,
    GREY,
    PAGE,
    PURPLE,
    RED,
    TEXT,
    edges_bar,
    head_figure,
    new_figure,
    plain,
    save_figure,
    short_names,
    style_axis,
)

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from corrmask_fast.graph.compare import GraphComparison
    from corrmask_fast.graph.stability import EdgeStability

__all__ = ["plot_comparison", "plot_stability"]

STRENGTHS = 12  # groups of edges of equal size, by strength


def plot_comparison(
    comparisons: GraphComparison | Sequence[GraphComparison], path: str | os.PathLike[str] | None = None
) -> Any:
    """Draw a comparison of two graphs, or a matrix of Jaccard indices for the pairs of several graphs.

    Parameters
    ----------
    comparisons
        Of :func:`corrmask_fast.compare_graphs`, or all of :func:`corrmask_fast.graph.compare.compare_all`.
    path
        Where to save it (``.png``, ``.pdf``, ``.svg``); None: only return it.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    InputError
        If there is nothing to compare, or no edge in either graph.
    MissingExtraError
        Without matplotlib (extra ``plot``).
    """
    several = list(comparisons) if hasattr(comparisons, "__iter__") else [comparisons]
    if not several:
        raise InputError("there is no comparison to draw; give at least two graphs")
    if len(several) > 1:
        return save_figure(_matrix(several), path)
    one = several[0]
    if one.edges_a + one.edges_b == 0:
        raise InputError("neither graph has an edge, so there is nothing to draw")
    figure = new_figure((PAGE, 2.6))
    bars, genes, weights = figure.subplots(1, 3)
    names = _names(one.names)
    _draw_counts(bars, one, names)
    _draw_gene_jaccard(genes, one)
    _draw_rho(weights, one, names)
    chance = f"{one.expected_jaccard:.3f} by chance with the same degrees"
    head_figure(figure, f"{names[0]} against {names[1]}: Jaccard {one.jaccard:.3f}, {chance}")
    return save_figure(figure, path)


def plot_stability(stability: EdgeStability, path: str | os.PathLike[str] | None = None) -> Any:
    """Draw how often edges come back: how many in how many repeats, and how that follows from their strength.

    Parameters
    ----------
    stability
        Of :func:`corrmask_fast.edge_stability`, of a graph with at least one edge.
    path
        Where to save it; None: only return it.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    InputError
        If the graph has no edges.
    MissingExtraError
        Without matplotlib (extra ``plot``).
    """
    graph, n = stability.graph, stability.n_repeats
    if graph.n_edges == 0:
        raise InputError("the graph has no edges, so there is nothing to draw")
    figure = new_figure((PAGE, 2.9))
    counts, strength = figure.subplots(1, 2)
    places = np.arange(n + 1)
    mine = np.bincount(stability.times, minlength=n + 1)
    others = np.bincount(stability.other_times, minlength=n + 1)
    counts.bar(places - 0.2, mine, 0.4, color=BLUE)
    counts.bar(places + 0.2, others, 0.4, color=GREY)
    top = max(int(mine.max()), int(others.max()))
    for row, (label, color) in enumerate(
        ((f"{graph.n_edges:,} edges of the graph", BLUE), (f"{others.sum():,} others", GREY))
    ):
        counts.annotate(label, (0.5, 1), (0, -2 - 9 * row), xycoords="axes fraction", va="top", ha="center",
                        color=color, **TEXT)  # fmt: skip
    counts.set_ylim(0, 1.2 * top)
    counts.yaxis.set_major_formatter("{x:,.0f}")
    counts.xaxis.get_major_locator().set_params(integer=True)
    style_axis(counts, title="How often edges come back", x=f"repeats with the edge, of {n}", y="edges")
    _draw_strength(strength, stability)
    head_figure(figure, f"Stability of edges: {n} graphs of {stability.cells_per_repeat:,} cells each")
    return save_figure(figure, path)


def _draw_strength(axis: Any, stability: EdgeStability) -> None:
    """Draw mean frequency of edges in groups of rising strength, with the middle half of each group."""
    edges = stability.graph.edges()
    values, what = (edges.rho, "over cells with both genes") if edges.rho_global is None else (
        edges.rho_global, "over all cells")  # fmt: skip
    order = np.argsort(np.abs(values), kind="stable")
    groups = [group for group in np.array_split(order, min(STRENGTHS, order.size)) if group.size]
    x = [float(np.abs(values[group]).mean()) for group in groups]
    frequency = 100 * stability.frequency
    low, high = zip(*(np.quantile(frequency[group], [0.25, 0.75]) for group in groups), strict=True)
    axis.fill_between(x, low, high, color=BLUE, alpha=0.15, linewidth=0)
    axis.plot(x, [frequency[group].mean() for group in groups], "o-", color=BLUE, markersize=4, linewidth=1.4)
    note = "line: mean; band: middle half of edges"
    axis.annotate(note, (1, 0), (-4, 4), xycoords="axes fraction", ha="right", color=DARK, **TEXT)
    axis.set_ylim(0, 104)
    style_axis(axis, title="Frequency by strength", x=f"|rho| {what}", y="repeats with the edge (%)")


def _names(names: Sequence[str]) -> list[str]:
    """Return graphs' names as axes have room for."""
    return [plain(brief(name, 20)) for name in short_names(names)]


def _draw_counts(axis: Any, comparison: GraphComparison, graphs: Sequence[str]) -> None:
    """Draw edges of one graph only, of both, and of both by chance."""
    only = [edges - comparison.shared for edges in (comparison.edges_a, comparison.edges_b)]
    names = [f"only\n{graphs[0]}", "both", f"only\n{graphs[1]}"]
    values = [only[0], comparison.shared, only[1]]
    axis.barh(range(3), values, color=[BLUE, PURPLE, RED], height=0.62)
    for row, value in enumerate(values):
        axis.annotate(f"{value:,}", (value, row), (3, 0), va="center", **TEXT)
    axis.plot([comparison.expected_shared] * 2, [0.62, 1.38], color="black", linewidth=1.4)
    axis.annotate(f"by chance {comparison.expected_shared:,.0f}: {comparison.fold:.1f}-fold",
                  (comparison.expected_shared, 1.38), (2, -2), va="top", **TEXT)  # fmt: skip
    axis.set_yticks(range(3), names)
    axis.invert_yaxis()
    axis.set_xlim(0, 1.35 * max(*values, 1))
    axis.locator_params(axis="x", nbins=4)
    axis.xaxis.set_major_formatter("{x:,.0f}")
    style_axis(axis, title="Edges", x="edges")


def _draw_gene_jaccard(axis: Any, comparison: GraphComparison) -> None:
    """Draw how much of its partners each gene keeps, beside chance."""
    both = (comparison.degree_a > 0) & (comparison.degree_b > 0)
    union = comparison.degree_a + comparison.degree_b
    chance = comparison.expected_of_gene / np.maximum(union - comparison.expected_of_gene, 1)
    bins = np.linspace(0, 1, 26)
    for row, (label, values, color) in enumerate(
        (("observed", comparison.gene_jaccard[both], PURPLE), ("by chance", chance[both], GREY))
    ):
        axis.stairs(np.histogram(values, bins)[0], bins, color=color, fill=True, alpha=0.2)
        axis.stairs(np.histogram(values, bins)[0], bins, color=color, linewidth=1.4)
        axis.annotate(label, (1, 1), (-4, -2 - 9 * row), xycoords="axes fraction", ha="right", va="top", color=color,
                      **TEXT)  # fmt: skip
    title = f"Partners of {np.count_nonzero(both):,} common genes"
    style_axis(axis, title=title, x="Jaccard index of a gene's partners", y="genes")


def _draw_rho(axis: Any, comparison: GraphComparison, graphs: Sequence[str]) -> None:
    """Draw rho of the shared edges in one graph against the other."""
    if comparison.shared:
        shown = axis.hexbin(comparison.rho_a, comparison.rho_b, gridsize=50, extent=(-1, 1, -1, 1), bins="log",
                            cmap="Purples", mincnt=1, linewidths=0)  # fmt: skip
        edges_bar(axis, shown)
    axis.axline((0, 0), slope=1, color=GREY, linewidth=0.8, linestyle="--")
    axis.set_xlim(-1, 1)
    axis.set_ylim(-1, 1)
    axis.set_aspect("equal")
    axis.locator_params(nbins=5)
    axis.annotate(f"r = {comparison.rho_correlation:.2f}", (0, 1), (4, -4), xycoords="axes fraction", va="top", **TEXT)
    x, y = (f"rho in {name}" for name in graphs)
    style_axis(axis, title="Shared edges", x=x, y=y)


def _matrix(comparisons: Sequence[GraphComparison]) -> Any:
    """Draw the Jaccard index of every pair, with the fold over chance."""
    names = list(dict.fromkeys(name for comparison in comparisons for name in comparison.names))
    place = {name: i for i, name in enumerate(names)}
    jaccard, fold = np.full((2, len(names), len(names)), np.nan)
    for comparison in comparisons:
        i, j = (place[name] for name in comparison.names)
        jaccard[i, j] = jaccard[j, i] = comparison.jaccard
        fold[i, j] = fold[j, i] = comparison.fold
    side = min(PAGE - 1.0, 2.0 + 0.48 * len(names))
    figure = new_figure((side + 1.0, side))
    axis = figure.subplots()
    top = max(float(np.nanmax(jaccard)), 0.01) if np.isfinite(jaccard).any() else 1.0
    shown = axis.imshow(jaccard, cmap="Blues", vmin=0, vmax=top)
    for i, j in np.argwhere(np.isfinite(jaccard)):
        color = "white" if jaccard[i, j] > 0.6 * top else "black"
        axis.text(j, i, f"{jaccard[i, j]:.2f}\n{fold[i, j]:.1f}x", ha="center", va="center", fontsize=6, color=color)
    shown_names = _names(names)
    axis.set_xticks(range(len(names)), shown_names, rotation=45, ha="right", rotation_mode="anchor", fontsize=7)
    axis.set_yticks(range(len(names)), shown_names, fontsize=7)
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    bar = figure.colorbar(shown, ax=axis, shrink=0.6)
    bar.set_label("Jaccard index of edges", fontsize=7)
    bar.ax.tick_params(labelsize=6)
    axis.set_title(
        "Edges shared: Jaccard index, and below it\nhow many times more than by chance", loc="left", fontsize=9
    )
    return figure
