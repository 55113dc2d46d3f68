"""Pictures of dependency graphs: degrees, rho, modules."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from corrmask_fast.errors import InputError, check_integer
from corrmask_fast.graph.modules import average_linkage, linkage_modules, strongest_genes
from corrmask_fast.plots import (
    BLUE,
    COLORS,
    DARK,
    GREY,
    PAGE,
    RED,
    TEXT,
    edges_bar,
    head_figure,
    new_figure,
    save_figure,
    style_axis,
)
from corrmask_fast.suggestions import did_you_mean

if TYPE_CHECKING:
    import os

    from corrmask_fast.graph.dependency_graph import DependencyGraph

__all__ = ["KINDS", "plot_graph", "plot_modules"]

KINDS = ("degree", "rho", "modules", "all")
DIVERGING = "RdBu_r"  # blue below 0, white at 0, red above
MODULE_GENES = 50  # as many symbols as stay legible on a page
APART = 2.0  # largest distance 1 - rho between two genes
MODULE_COLORS = (*COLORS, "#F0E442", "#000000", GREY)  # as many modules are shown
HUBS = 5
ALL_CELLS, OVERLAP = "over all cells", "over cells with both genes"


def plot_graph(graph: DependencyGraph, path: str | os.PathLike[str] | None = None, *, kind: str = "all") -> Any:
    """Draw a graph: how many partners genes have, how strong they are, which genes form modules.

    Parameters
    ----------
    graph
        A graph with at least one edge.
    path
        Where to save it (``.png``, ``.pdf``, ``.svg``); None: only return it.
    kind
        ``"degree"``, ``"rho"``, ``"modules"``, or ``"all"`` of them on one page.

    Returns
    -------
    matplotlib.figure.Figure
        The picture.

    Raises
    ------
    InputError
        If the graph has no edges, or ``kind`` is none of these.
    MissingExtraError
        Without matplotlib (extra ``plot``).

    Examples
    --------
    >>> from corrmask_fast import DependencyGraph, plot_graph
    >>> from corrmask_fast.testing import make_vocabulary
    >>> graph = DependencyGraph.from_edges([("G0", "G1"), ("G1", "G2")], make_vocabulary(20))
    >>> figure = plot_graph(graph, kind="degree")
    >>> figure.savefig("graph.png")  # doctest: +SKIP
    """
    if kind not in KINDS:
        raise InputError(f"kind must be one of {', '.join(map(repr, KINDS))}; got {kind!r}{did_you_mean(kind, KINDS)}")
    _check_edges(graph)
    if kind == "modules":
        return plot_modules(graph, path)
    draw = [_draw_degrees, _draw_rho] if kind == "all" else [_draw_degrees] if kind == "degree" else [_draw_rho]
    if kind != "degree" and graph.rho_global is not None:
        draw.append(_draw_rho_pair)
    if kind == "all":
        figure = new_figure((PAGE, 9.2))
        above, below = figure.subfigures(2, 1, height_ratios=(1, 2.7))
        axes = above.subplots(1, len(draw))
        _draw_modules(below, graph, MODULE_GENES)
    else:
        figure = new_figure((PAGE / 2 * len(draw), 3.2))
        axes = figure.subplots(1, len(draw), squeeze=False)[0]
    for axis, one in zip(axes, draw, strict=True):
        one(axis, graph)
    head_figure(figure, _title(graph))
    return save_figure(figure, path)


def plot_modules(
    graph: DependencyGraph, path: str | os.PathLike[str] | None = None, *, n_genes: int = MODULE_GENES
) -> Any:
    """Draw the module view: a clustered heat map of the strongest genes of the largest modules.

    Parameters
    ----------
    graph
        A graph with at least one edge.
    path
        Where to save it; None: only return it.
    n_genes
        Genes shown, at most.

    Returns
    -------
    matplotlib.figure.Figure

    Notes
    -----
    Genes are clustered by average linkage on ``1 - rho`` (0 where there is no edge), leaves in optimal order, each
    module by itself; its number of genes counts those that are not shown too.
    """
    _check_edges(graph)
    figure = new_figure((PAGE, 6.6))
    _draw_modules(figure, graph, check_integer("n_genes", n_genes, 2))
    head_figure(figure, _title(graph))
    return save_figure(figure, path)


def _check_edges(graph: DependencyGraph) -> None:
    if graph.n_edges == 0:
        raise InputError("the graph has no edges, so there is nothing to draw; build it with lower thresholds")


def _title(graph: DependencyGraph) -> str:
    cells = graph.params.get("n_cells_used")
    built = f", from {cells:,} cells" if cells else ""
    return f"Dependency graph: {np.count_nonzero(graph.degrees):,} genes, {graph.n_edges:,} edges{built}"


# -------------------------------------------------------------------------------------------------------- degrees, rho


def _draw_degrees(axis: Any, graph: DependencyGraph) -> None:
    """Genes with at least so many partners, on logarithmic axes, with the median and the largest hubs."""
    degrees = graph.degrees
    linked = np.sort(degrees[degrees > 0])
    values, first = np.unique(linked, return_index=True)
    # To the left of a value everything down to the one before it counts as many genes.
    axis.loglog(values, linked.size - first, drawstyle="steps-pre", color=BLUE, linewidth=1.6)
    for which in (axis.xaxis, axis.yaxis):
        which.set_major_formatter("{x:,.0f}")
        which.set_minor_formatter("")
    median = float(np.median(linked))
    axis.axvline(median, color=GREY, linewidth=1, linestyle="--")
    axis.annotate(f"median {median:g}", (median, 1), (4, -1), color=GREY, xycoords=("data", "axes fraction"), va="top",
                  **TEXT)  # fmt: skip
    hubs = np.argsort(-degrees, kind="stable")[: min(HUBS, linked.size)]
    named = [f"{graph.vocabulary.name_of(token)}  {degrees[token]:,}" for token in hubs]
    axis.annotate(
        "\n".join(["most partners:", *named]), (0.04, 0.04), xycoords="axes fraction", fontsize=6.5, va="bottom"
    )
    style_axis(axis, title="How many partners genes have", x="partners", y="genes with at least so many")
    axis.set_xlim(0.9, max(values[-1] * 1.2, 2))
    axis.set_ylim(0.9, linked.size * 1.3)


def _draw_rho(axis: Any, graph: DependencyGraph) -> None:
    """Draw histograms of both kinds of rho."""
    edges = graph.edges()
    kinds = [(OVERLAP, edges.rho, RED)]
    if edges.rho_global is not None:
        kinds.insert(0, (ALL_CELLS, edges.rho_global, BLUE))
    most = max(float(np.abs(values).max()) for _, values, _ in kinds)
    limit = min(1.0, 1.05 * most) if most <= 1 else most
    bins = np.linspace(-limit, limit, 81)
    for row, (name, values, color) in enumerate(kinds):
        counts = np.histogram(values, bins)[0]
        axis.stairs(counts, bins, color=color, linewidth=1.4)
        axis.stairs(counts, bins, color=color, fill=True, alpha=0.15)
        axis.annotate(name, (0, 1), (4, -2 - 9 * row), xycoords="axes fraction", va="top", color=color, **TEXT)
    axis.axvline(0, ymax=0.82, color=GREY, linewidth=0.8)  # not through the names
    axis.margins(x=0)
    axis.yaxis.set_major_formatter("{x:,.0f}")
    axis.locator_params(axis="x", nbins=5)
    axis.set_ylim(0, axis.get_ylim()[1] * 1.2)
    style_axis(axis, title="How strong edges are", x="Spearman's rho", y="edges")


def _draw_rho_pair(axis: Any, graph: DependencyGraph) -> None:
    """Draw rho over the cells that hold both genes against rho over all cells, as a density of edges."""
    _, _, rho, overall = graph.edges()
    assert overall is not None
    extent = (-1, 1, -1, 1)
    shown = axis.hexbin(overall, rho, gridsize=50, extent=extent, bins="log", cmap="Blues", mincnt=1,
                        linewidths=0)  # fmt: skip
    edges_bar(axis, shown)
    axis.axline((0, 0), slope=1, color=GREY, linewidth=0.8, linestyle="--")
    axis.axhline(0, color=GREY, linewidth=0.6)
    limit = min(1.0, 1.08 * max(float(np.abs(values).max()) for values in (rho, overall)))
    axis.set_xlim(-limit, limit)
    axis.set_ylim(-limit, limit)
    axis.set_aspect("equal")
    axis.locator_params(nbins=5)
    style_axis(axis, title="The same edges, both ways", x=f"rho, {ALL_CELLS}", y=f"rho, {OVERLAP}")


# ------------------------------------------------------------------------------------------------------------- modules


def _draw_modules(figure: Any, graph: DependencyGraph, n_genes: int) -> None:
    """Draw a heat map of the largest modules' strongest genes under its dendrogram, modules as a strip beside it."""
    from scipy.cluster import hierarchy

    matrix, tokens, module, sizes = _module_genes(graph, n_genes)
    # Modules are further from each other than any two genes are: each stays in one piece.
    tree = average_linkage(matrix - APART * (module[:, None] != module), ordered=True)
    order = hierarchy.leaves_list(tree)
    matrix, tokens, module = matrix[np.ix_(order, order)], tokens[order], module[order]
    n = tokens.size
    limit = min(1.0, np.ceil(10 * np.abs(matrix[~np.eye(n, dtype=bool)]).max()) / 10)

    grid = figure.subplots(
        2, 2, width_ratios=(0.03, 1), height_ratios=(0.07, 1), gridspec_kw={"wspace": 0, "hspace": 0}
    )
    grid[0, 0].axis("off")
    _dendrogram(grid[0, 1], tree)
    runs = np.flatnonzero(np.diff(module, prepend=-1, append=-1))
    palette = np.array([_rgb(color) for color in MODULE_COLORS])
    strip, axis = grid[1]
    strip.imshow(palette[module][:, None], aspect="auto", interpolation="nearest")
    for begin, end in pairwise(runs.tolist()):
        number = module[begin]
        text = f"M{number + 1}: {sizes[number]:,} genes" if sizes.size > 1 else f"{sizes[number]:,} genes"
        strip.annotate(text, (-0.6, (begin + end - 1) / 2), (-2, 0), ha="right", va="center", color=DARK,
                       **TEXT | {"fontsize": 6.5})  # fmt: skip
    strip.axis("off")
    np.fill_diagonal(matrix, np.nan)
    shown = axis.imshow(matrix, cmap=DIVERGING, vmin=-limit, vmax=limit, aspect="auto", interpolation="nearest")
    axis.set_facecolor("#D0D0D0")
    names = [graph.vocabulary.name_of(token) for token in tokens]
    size = float(np.clip(280 / n, 2.5, 7))
    axis.set_xticks(range(n), names, rotation=90, fontsize=size)
    axis.set_yticks(range(n), names, fontsize=size)
    axis.yaxis.tick_right()
    axis.tick_params(length=0, pad=1.5)
    for line in runs[1:-1]:
        axis.axhline(line - 0.5, color="white", linewidth=1.2)
        axis.axvline(line - 0.5, color="white", linewidth=1.2)
    axis.spines[:].set_visible(False)
    bar = figure.colorbar(shown, ax=grid, shrink=0.35, aspect=25, pad=0.02)
    kind = OVERLAP if graph.rho_global is None else ALL_CELLS
    bar.set_label(f"Spearman's rho, {kind} (white: no edge)", fontsize=7)
    bar.ax.tick_params(labelsize=6)
    title = f"The strongest genes of the {sizes.size} largest modules" if sizes.size > 1 else "The strongest genes"
    grid[0, 1].set_title(title, loc="left", fontsize=9)


def _module_genes(graph: DependencyGraph, n_genes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return rho between the genes to show (1 with itself), their tokens, their modules, and all modules' sizes."""
    tokens, matrix = strongest_genes(graph)
    modules = linkage_modules(matrix)[: len(MODULE_COLORS)]
    if not modules:  # too loose for modules: the strongest genes, as one
        kept = np.arange(min(n_genes, tokens.size))
        return matrix[np.ix_(kept, kept)], tokens[kept], np.zeros(kept.size, np.int64), np.array([kept.size])
    # The strongest gene of each module, then the second of each, …
    turns = [(place, i) for i, members in enumerate(modules) for place in range(members.size)]
    taken = sorted(turns)[:n_genes]
    kept = np.array([modules[i][place] for place, i in taken])
    sizes = np.array([members.size for members in modules])
    return matrix[np.ix_(kept, kept)], tokens[kept], np.array([i for _, i in taken]), sizes


def _dendrogram(axis: Any, tree: np.ndarray) -> None:
    from scipy.cluster import hierarchy

    drawn = hierarchy.dendrogram(tree, no_plot=True)
    for x, y in zip(drawn["icoord"], drawn["dcoord"], strict=True):
        if max(y) > APART:  # between modules
            continue
        axis.plot((np.array(x) - 5) / 10, y, color="#606060", linewidth=0.6)
    axis.set_xlim(-0.5, len(drawn["leaves"]) - 0.5)
    axis.set_ylim(0, None)
    axis.axis("off")


def _rgb(color: str) -> tuple[float, ...]:
    return tuple(int(color[i : i + 2], 16) / 255 for i in (1, 3, 5))
