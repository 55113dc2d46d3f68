"""What pictures share: a look for each strategy everywhere; no text over another, none cut, at the size of a page."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations, pairwise
from types import SimpleNamespace

import comparison_cases as cases
import numpy as np
import pytest

from corrmask_fast import DependencyGraph, FunctionMasker, audit_all_strategies, compare_graphs
from corrmask_fast.audit.all_strategies import ALL_CONTROL
from corrmask_fast.audit.masks import CONTROL
from corrmask_fast.comparison.results import Results
from corrmask_fast.graph.compare import compare_all
from corrmask_fast.graph.stability import EdgeStability
from corrmask_fast.masking.strategies import LEARNED_STRATEGIES, STRATEGIES
from corrmask_fast.plots import GREY, LOOKS, PAGE, short_names, strategy_looks
from corrmask_fast.testing import make_graph, make_vocabulary

matplotlib = pytest.importorskip("matplotlib")
EVERY = STRATEGIES | LEARNED_STRATEGIES


def spoiled(figure):
    """Texts that stand over one another or reach out of the picture, as a page prints it."""
    assert figure.get_figwidth() <= PAGE
    figure.draw_without_rendering()
    page = figure.bbox.padded(1)
    found, unseen = [], set()
    for axes in figure.findobj(matplotlib.axes.Axes):
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks()):
                if not (axes.axison and low <= tick.get_loc() <= high):
                    unseen |= {tick.label1, tick.label2}
    shown = [text for text in figure.findobj(matplotlib.text.Text) if text.get_visible() and text not in unseen]
    # Boxes are upright: of slanted texts they tell nothing.
    shown = [text for text in shown if text.get_text().strip() and text.get_rotation() % 90 == 0]
    places = [(text.get_text(), text.get_window_extent().padded(-0.5)) for text in shown]
    for name, box in places:
        if not (page.x0 <= box.x0 and box.x1 <= page.x1 and page.y0 <= box.y0 and box.y1 <= page.y1):
            found.append(f"{name!r} is cut")
    for (one, a), (other, b) in combinations(places, 2):
        if a.overlaps(b):
            found.append(f"{one!r} over {other!r}")
    return found


def test_every_strategy_has_a_look_by_its_name_and_by_its_label():
    looks = strategy_looks(EVERY)
    assert looks == {name: LOOKS[name] for name in EVERY}
    assert strategy_looks(each.label for each in EVERY.values()) == {
        each.label: looks[name] for name, each in EVERY.items()
    }
    assert len({(look.color, look.marker) for look in looks.values()}) == len(EVERY)
    assert len({(look.color, look.filled) for look in looks.values()}) == len(EVERY)  # told apart as bars
    hollow = {name for name, look in looks.items() if not look.filled}
    assert {name for name, each in EVERY.items() if each.control} < hollow
    for name in (ALL_CONTROL, CONTROL, "control (random)", "random@0.4", "Random, rate 0.1..0.9", "runs/random/model"):
        assert strategy_looks([name])[name] == looks["random"], name
    assert strategy_looks(["pkg:RandomWalks"])["pkg:RandomWalks"].color != GREY


def test_lines_of_one_strategy_are_told_apart_in_its_colour():
    names = ["CorrMask", *(f"CorrMask, lambda {i}, K 5" for i in range(20)), "Random", "mine", "another"]
    looks = strategy_looks(names)
    assert list(looks) == names
    assert len(set(looks.values())) == len(names)
    assert {looks[name].color for name in names[:21]} == {LOOKS["corrmask"].color}
    assert len({(looks[name].color, looks[name].marker) for name in names[:10]}) == 10
    assert len({looks[name].color for name in ("CorrMask", "Random", "mine", "another")}) == 4


def test_names_of_paths_are_what_tells_them_apart():
    assert short_names(["out/random/model/", "out/span/model/"]) == ["random", "span"]
    assert short_names(["a/one.safetensors", "b/one.safetensors"]) == ["a", "b"]
    assert short_names(["one", "a/b"]) == ["one", "a/b"]


@pytest.fixture(scope="module")
def corpus(make_corpus):
    return make_corpus(120, 60)


@pytest.fixture(scope="module")
def report(corpus):
    graph = make_graph(corpus.vocabulary, degree=5, hub=False)

    def first(tokens, words):
        return np.array([0, tokens.size]), np.arange(tokens.size)

    masker = FunctionMasker(corpus.vocabulary, first)
    sets = {"one": ["G1", "G2", "G3"], "another": ["G3", "G40", "G41"]}
    return audit_all_strategies(corpus, graph, maskers=[masker], sets=sets, progress=False)


def test_an_audit_of_every_strategy_is_legible(report):
    from corrmask_fast.audit.plots import plot_audit

    figure = plot_audit(report)
    assert spoiled(figure) == []
    looks = strategy_looks(row.name for row in report)
    for axis in figure.axes[:5]:
        colors = [matplotlib.colors.to_hex(bar.get_edgecolor()).upper() for bar in axis.patches]
        assert colors == [looks[row.name].color.upper() for row in report]
    coverage = figure.axes[5]
    lines = [line for line in coverage.lines if len(line.get_xdata()) == 2]
    assert [line.get_ydata()[0] for line in lines] == list(range(len(report.strategies)))  # a row each
    ends = [np.percentile(100 * row.coverage[row.times_present >= 50], (5, 95)) for row in report]
    assert np.allclose([line.get_xdata() for line in lines], ends)
    one = replace(report, strategies=report.strategies[:2])
    assert spoiled(plot_audit(one)) == []


def test_a_comparison_draws_strategies_as_an_audit_does():
    from corrmask_fast.comparison import plots

    names = {name: each.label for name, each in STRATEGIES.items()}
    assert plots.looks(Results(cases.facts(names), [])) == {name: LOOKS[name] for name in names}


def modular(seed):
    """Twelve modules, more than are shown, with edges between them."""
    rng = np.random.default_rng(seed)
    module = np.repeat(np.arange(12), np.arange(15, 3, -1))
    u, v = np.triu_indices(module.size, 1)
    kept = (module[u] == module[v]) | (rng.random(u.size) < 0.05)
    rho = np.where(module[u] == module[v], rng.uniform(0.3, 0.9, u.size), rng.uniform(-0.3, 0.3, u.size))
    edges = [(f"G{a}", f"G{b}", r) for a, b, r in zip(u[kept], v[kept], rho[kept], strict=True)]
    return DependencyGraph.from_edges(edges, make_vocabulary(200))


def test_modules_are_whole_and_each_has_its_colour_and_number():
    from corrmask_fast.graph.plots import MODULE_COLORS, plot_modules

    figure = plot_modules(modular(0))
    assert spoiled(figure) == []
    named = sorted(text.get_text() for text in figure.findobj(matplotlib.text.Text) if text.get_text().startswith("M"))
    assert named == sorted(f"M{i + 1}: {15 - i} genes" for i in range(9))
    strip = next(image for image in figure.findobj(matplotlib.image.AxesImage) if image.get_array().shape[1] == 1)
    colors = [tuple(row) for row in strip.get_array()[:, 0]]
    changes = sum(one != other for one, other in pairwise(colors))
    assert changes == len(set(colors)) - 1 == len(MODULE_COLORS) - 1  # none is split, no two alike


@pytest.mark.parametrize("kind", ["degree", "rho", "all"])
def test_graphs_are_legible(kind):
    from corrmask_fast.graph.plots import plot_graph

    assert spoiled(plot_graph(modular(0), kind=kind)) == []


def test_comparisons_and_stability_are_legible():
    from corrmask_fast.graph.plots_compare import plot_comparison, plot_stability

    graphs = {f"runs/tissue number {i}/graph.safetensors": modular(i) for i in range(4)}
    a, b = list(graphs)[:2]
    figure = plot_comparison(compare_graphs(graphs[a], graphs[b], names=(a, b)))
    assert spoiled(figure) == []
    texts = [text.get_text() for text in figure.findobj(matplotlib.text.Text)]
    assert "rho in tissue number 0" in texts
    assert not any("/" in text for text in texts)
    assert spoiled(plot_comparison(compare_all(graphs))) == []
    graph = graphs[a]
    times = np.random.default_rng(0).integers(0, 11, graph.n_edges)
    pairs = np.array([2, 3]), np.array([50, 51]), np.array([1, 2])
    assert spoiled(plot_stability(EdgeStability(graph, 10, 617, times, *pairs))) == []


def test_pictures_of_training_are_legible():
    from corrmask_fast.training.plots import plot_loss, plot_pretraining

    steps = np.arange(1, 61)
    losses = 8.3 - 0.4 * steps / 60 + np.random.default_rng(0).normal(0, 0.03, 60)
    assert spoiled(plot_loss(losses, chance=8.29)) == []
    groups = [f"eval_loss{end}" for end in ("", *(f"_partner_{name}" for name in ("visible", "hidden", "absent")))]
    history = [{"step": step, "loss": loss} for step, loss in zip(steps.tolist(), losses, strict=True)]
    history += [{"step": step, **dict.fromkeys(groups, 8.0 - step / 100)} for step in (20, 40, 60)]
    figure = plot_pretraining(SimpleNamespace(history=history))
    assert spoiled(figure) == []
    assert [len(line.get_xdata()) for line in figure.axes[0].lines] == [60, 3, 3, 3, 3]
    assert len({(line.get_color(), line.get_linestyle()) for line in figure.axes[0].lines}) == 5


@pytest.mark.parametrize("repeats", [1, 4])
def test_pictures_of_evaluations_show_the_spread_of_repeats(repeats):
    from corrmask_fast.evaluation.cell_annotation import FINE_TUNED, CellAnnotation
    from corrmask_fast.evaluation.plots import plot_cell_annotation, plot_gene_classification

    rng = np.random.default_rng(0)
    methods = [FINE_TUNED, "fine-tuned, new weights", "10 nearest cells, embeddings", "most common type"]
    sizes = [50, 400] if repeats > 1 else [400]
    found = {name: {size: rng.integers(0, 30, (repeats, 8, 8)) for size in sizes} for name in methods}
    types = [f"CD{i}+ naive helper T cell" for i in range(8)]
    cells = CellAnnotation(types, np.arange(8000, 0, -1000), found, 3)
    f1 = cells.f1
    assert spoiled(plot_cell_annotation(CellAnnotation(types, cells.n_cells, {FINE_TUNED: found[FINE_TUNED]}, 3))) == []
    figure = plot_cell_annotation(cells)
    assert spoiled(figure) == []
    axis = next(axis for axis in figure.findobj(matplotlib.axes.Axes) if axis.get_xlabel().startswith("F1"))
    bars = [c for c in axis.collections if isinstance(c, matplotlib.collections.LineCollection)]
    assert len(bars) == (repeats > 1)
    if bars:
        lengths = [segment[1, 0] - segment[0, 0] for segment in bars[0].get_segments()]
        assert lengths == pytest.approx(2 * f1.std(axis=0, ddof=1))
    pytest.importorskip("sklearn")
    folds = [SimpleNamespace(truth=rng.integers(0, 2, 200), score=rng.normal(size=200)) for _ in range(repeats)]
    genes = SimpleNamespace(
        folds=folds, auc=rng.uniform(0.4, 0.6, repeats), classes=("dosage_sensitive", "dosage_insensitive")
    )
    assert spoiled(plot_gene_classification(genes)) == []
