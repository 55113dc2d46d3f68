"""Pictures of graphs: what is drawn is what the graph says, and every label is legible."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from corrmask_fast import DependencyGraph, InputError, Vocabulary, compare_graphs
from corrmask_fast.graph.compare import compare_all
from corrmask_fast.graph.dependency_graph import graph_of_pairs
from corrmask_fast.graph.plots import _module_genes, plot_graph, plot_modules
from corrmask_fast.graph.plots_compare import plot_comparison, plot_stability
from corrmask_fast.graph.stability import EdgeStability
from corrmask_fast.testing import make_vocabulary

matplotlib = pytest.importorskip("matplotlib")


def with_modules(sizes=(12, 9, 6), *, seed=0, overall=True):
    """Modules of strong edges, weak negative ones between them, and some genes with one weak edge."""
    rng = np.random.default_rng(seed)
    vocabulary = make_vocabulary(60)
    module = np.repeat(np.arange(len(sizes)), sizes)
    u, v = np.triu_indices(module.size, 1)
    same = module[u] == module[v]
    kept = same | (rng.random(u.size) < 0.1)
    u, v, same = u[kept], v[kept], same[kept]
    rho = np.where(same, rng.uniform(0.4, 0.9, u.size), rng.uniform(-0.4, -0.2, u.size)).astype(np.float32)
    u, v = np.append(u, [40, 42]), np.append(v, [41, 43])
    rho = np.append(rho, np.float32([0.2, 0.2]))
    return graph_of_pairs(u + 2, v + 2, rho / 2, vocabulary, {"n_cells_used": 1234}, rho if overall else None)


GRAPH = with_modules()


def texts(figure):
    found = [text.get_text() for text in figure.findobj(matplotlib.text.Text)]
    return [text for text in found if text]


def test_modules_are_found_whole():
    matrix, tokens, module, sizes = _module_genes(GRAPH, 60)
    assert sizes.tolist() == [12, 9, 6]
    planted = np.repeat([0, 1, 2], [12, 9, 6])
    assert module.tolist() == planted[tokens - 2].tolist()
    rho = GRAPH.to_scipy("rho_global").toarray()
    np.fill_diagonal(rho, 1)
    assert np.array_equal(matrix, rho[np.ix_(tokens, tokens)])
    _, tokens, module, _ = _module_genes(GRAPH, 8)  # a share for each module
    assert np.bincount(module).tolist() == [3, 3, 2]
    for number in range(3):
        members = np.flatnonzero(planted == number) + 2
        strength = rho[np.ix_(members, members)].sum(axis=1)
        strongest = members[np.argsort(-strength, kind="stable")[: np.count_nonzero(module == number)]]
        assert set(tokens[module == number]) == set(strongest)


def test_the_heat_map_shows_rho_in_the_order_of_its_labels():
    figure = plot_modules(GRAPH)
    image = max((image for image in figure.findobj(matplotlib.image.AxesImage)), key=lambda i: i.get_array().size)
    names = [label.get_text() for label in image.axes.get_yticklabels()]
    assert names == [label.get_text() for label in image.axes.get_xticklabels()]
    tokens = [GRAPH.vocabulary.id_of(name) for name in names]
    shown = np.ma.filled(image.get_array(), np.nan)
    expected = GRAPH.to_scipy("rho_global").toarray()[np.ix_(tokens, tokens)]
    np.fill_diagonal(expected, np.nan)
    assert np.array_equal(shown, expected, equal_nan=True)
    low, high = image.get_clim()
    assert low == -high  # white is 0
    assert high >= np.nanmax(np.abs(expected))
    assert image.get_cmap().name == "RdBu_r"


@pytest.mark.parametrize("kind", ["degree", "rho", "modules", "all"])
def test_every_kind_is_saved(kind, tmp_path):
    graph = with_modules(overall=kind != "rho")
    figure = plot_graph(graph, tmp_path / "graph.svg", kind=kind)
    assert (tmp_path / "graph.svg").read_text().startswith("<?xml")
    assert f"Dependency graph: 31 genes, {graph.n_edges:,} edges, from 1,234 cells" in [
        " ".join(text.split()) for text in texts(figure)
    ]


def test_symbols_do_not_overlap():
    figure = plot_graph(GRAPH)
    figure.draw_without_rendering()
    for axis in (axis for axis in figure.findobj(matplotlib.axes.Axes) if axis.axison):
        for labels in (axis.get_xticklabels(), axis.get_yticklabels()):
            boxes = [label.get_window_extent() for label in labels if label.get_text() and label.get_visible()]
            for one, other in pairwise(boxes):
                assert not one.overlaps(other), axis.get_title(loc="left")


def test_odd_graphs_are_drawn_too(tmp_path):
    one = DependencyGraph.from_edges([("A", "B", 0.5)], Vocabulary(("<pad>", "<mask>", *"ABC")))
    plot_graph(one, tmp_path / "one.png")
    strong = DependencyGraph.from_edges(
        [(f"G{i}", f"G{i + 1}", 900.0) for i in range(20)], make_vocabulary(30)
    )  # STRING's scores
    plot_graph(strong, tmp_path / "strong.png")
    negative = DependencyGraph.from_edges([("A", "B", -0.5), ("B", "C", -0.6)], one.vocabulary)
    plot_graph(negative, tmp_path / "negative.png")
    empty = DependencyGraph.from_edges([], one.vocabulary)
    for draw in (plot_graph, plot_modules):
        with pytest.raises(InputError, match="the graph has no edges, so there is nothing to draw"):
            draw(empty, tmp_path / "empty.png")
    with pytest.raises(InputError, match="kind must be one of 'degree', 'rho', 'modules', 'all'; got 'pie'"):
        plot_graph(one, kind="pie")
    with pytest.raises(InputError, match="a picture must end in"):
        plot_graph(one, tmp_path / "one.txt")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["negative.png", "one.png", "strong.png"]


def test_comparisons(tmp_path):
    other = with_modules(seed=1)
    one = compare_graphs(GRAPH, other, names=("lung", "skin"))
    figure = plot_comparison(one, tmp_path / "two.png")
    shown = texts(figure)
    assert (
        f"lung against skin: Jaccard {one.jaccard:.3f}, {one.expected_jaccard:.3f} by chance with the same degrees"
        in shown
    )
    assert {"only\nlung", "both", "only\nskin", f"{one.shared}", f"r = {one.rho_correlation:.2f}"} <= set(shown)
    several = compare_all({"lung": GRAPH, "skin": other, "eye": with_modules(seed=2)})
    figure = plot_comparison(several, tmp_path / "three.png")
    for comparison in several:
        assert texts(figure).count(f"{comparison.jaccard:.2f}\n{comparison.fold:.1f}x") >= 2
    empty = DependencyGraph.from_edges([], GRAPH.vocabulary)
    plot_comparison(compare_graphs(GRAPH, empty), tmp_path / "none.png")
    with pytest.raises(InputError, match="neither graph has an edge"):
        plot_comparison(compare_graphs(empty, empty))
    with pytest.raises(InputError, match="at least two graphs"):
        plot_comparison([])


def test_stability(tmp_path):
    times = np.arange(GRAPH.n_edges) % 6
    pairs = np.array([2, 3]), np.array([50, 51]), np.array([1, 2])
    figure = plot_stability(EdgeStability(GRAPH, 5, 617, times, *pairs), tmp_path / "stability.png")
    assert {f"{GRAPH.n_edges} edges of the graph", "2 others", "Stability of edges: 5 graphs of 617 cells each"} <= set(
        texts(figure)
    )
    heights = [bar.get_height() for bar in figure.axes[0].patches]
    assert heights[:6] == np.bincount(times).tolist()
    assert heights[6:] == [0, 1, 1, 0, 0, 0]
    empty = DependencyGraph.from_edges([], GRAPH.vocabulary)
    with pytest.raises(InputError, match="the graph has no edges"):
        plot_stability(EdgeStability(empty, 5, 617, times[:0], *pairs))
