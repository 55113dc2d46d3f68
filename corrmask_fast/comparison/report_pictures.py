"""The pictures of the report, each with a sentence below it and a text in its place."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from corrmask_fast.comparison import plots
from corrmask_fast.comparison.differences import by_seed
from corrmask_fast.comparison.markup import count, enumerated, esc, picture
from corrmask_fast.comparison.measures import MEASURES, Measure
from corrmask_fast.comparison.results import percent
from corrmask_fast.errors import brief
from corrmask_fast.plots import plain

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from corrmask_fast.comparison.differences import Difference
    from corrmask_fast.comparison.results import Results


def _group(title: str, how: str, figures: Sequence[str]) -> str:
    """Return a row of pictures under a title, with how to read them."""
    return f'<h3>{esc(title)}</h3><p>{esc(how)}</p><div class="grid">{"".join(figures)}</div>' if figures else ""


def pictures(results: Results, differences: Sequence[Difference]) -> str:
    """Return the section of pictures, at the largest fraction that has models."""
    fraction = results.started[0]
    where = f"pretrained on {percent(fraction)} of the cells"
    main = [measure for measure in results.measures if measure.main]
    reference = results.label(results.reference)
    forest = [
        (measure, [one for one in differences
                   if (one.measure, one.fraction, one.against) == (measure, fraction, results.reference)])
        for measure in main
    ]  # fmt: skip
    parts = [
        _group(
            "Every seed",
            f"Models {where}. Small dots: a seed each. Marker and bar: mean and 95 % interval of the mean. Whether two "
            "strategies differ is told by the next pictures, where seeds are paired.",
            [_dots(results, measure, fraction) for measure in main if _means(results, measure, fraction)],
        ),
        _group(
            f"Differences to {reference}",
            f"Models {where}, paired by seed. Bar: 95 % interval. A filled marker: the interval excludes 0. A hollow "
            "one: it does not.",
            [_forest(results, ours) for _, ours in forest if ours],
        ),
        _group(
            "By number of cells",
            "Means with 95 % intervals over seeds.",
            [_by_cells(results, measure) for measure in main] if len(results.started) > 1 else [],
        ),
        _shortcuts(results, fraction, where),
        _by_type_and_gene(results, fraction, where),
    ]
    return f"<section><h2>Pictures</h2>{''.join(parts)}</section>"


def _means(results: Results, measure: Measure, fraction: float) -> dict[str, float]:
    """Return the mean over seeds by label, of strategies that have any."""
    columns = {text: results.values(name, measure.name, fraction) for name, text in results.strategies.items()}
    return {text: sum(column.values()) / len(column) for text, column in columns.items() if column}


def _spelled(measure: Measure, means: Mapping[str, float]) -> str:
    return enumerated([f"{text} {measure.text(mean)}" for text, mean in means.items()]) + f" {measure.unit}".rstrip()


def _dots(results: Results, measure: Measure, fraction: float) -> str:
    means = _means(results, measure, fraction)
    low, high = min(means, key=means.__getitem__), max(means, key=means.__getitem__)
    ends = [f"{measure.text(means[name])} {measure.unit}".rstrip() + f" ({name})" for name in (low, high)]
    caption = f"{measure.label}: means from {ends[0]} to {ends[1]}."
    return picture(plots.plot_measure(results, measure, fraction), f"Means: {_spelled(measure, means)}", caption)


def _forest(results: Results, differences: Sequence[Difference]) -> str:
    told = [f"{results.label(one.strategy)} ({one.verdict})" for one in differences if one.excludes_zero]
    label = differences[0].measure.label
    if all(one.n < 2 for one in differences):
        caption = f"{label}: one seed, no interval."
    else:
        caption = (
            f"{label}: the interval of {enumerated(told)} excludes 0." if told else f"{label}: no interval excludes 0."
        )
    alt = "; ".join(f"{results.pair(one.strategy, one.against)}: {one.interval()}" for one in differences)
    return picture(plots.plot_differences(results, differences), alt, caption)


def _by_cells(results: Results, measure: Measure) -> str:
    fractions = results.started[::-1]
    alt = ". ".join(
        f"{percent(one)} of the cells: {_spelled(measure, _means(results, measure, one))}" for one in fractions
    )
    caption = f"{measure.label} of models pretrained on {enumerated([percent(one) for one in fractions])} of the cells."
    ours = [
        _means(results, measure, one).get(results.label(results.reference)) for one in (fractions[0], fractions[-1])
    ]
    if ours[0] is not None and ours[1] is not None:
        ends = f"{measure.text(ours[0])} to {measure.text(ours[1])} {measure.unit}".rstrip()
        caption += f" {results.label(results.reference)}: {ends}."
    return picture(plots.plot_fractions(results, measure), alt, caption)


def _shortcuts(results: Results, fraction: float, where: str) -> str:
    named = {measure.name: measure for measure in MEASURES}
    figures = []
    if means := _means(results, named["shortcut"], fraction):
        excess = _means(results, named["excess"], fraction)
        caption = (
            f"Shortcut − placebo, mean over seeds: {_spelled(named['excess'], excess)}." if excess else "Shortcut."
        )
        alt = f"Shortcut: {_spelled(named['shortcut'], means)}"
        figures.append(picture(plots.plot_shortcut(results, fraction), alt, caption))
    for table, x, what in (
        ("shortcut by rho", "largest |rho| of a partner", "the largest |rho| between a target gene and its partners"),
        ("shortcut by frequency", "test cells that have the gene", "the share of test cells that have the target gene"),
    ):
        if groups := _lists(results.by_group(table, fraction)):
            figure = plots.plot_groups(results, groups, title="Shortcut", x=x, y="nats")
            figures.append(picture(figure, _spelled_groups(results, groups), f"Shortcut by {what}."))
    how = (
        f"Models {where}; means with 95 % intervals over seeds. Shortcut: what partners in view are worth to the "
        "model. Placebo: the same for random genes of matched frequency. Neither high nor low is better in itself."
    )
    return _group("Shortcut beside placebo", how, figures)


def _by_type_and_gene(results: Results, fraction: float, where: str) -> str:
    figures = []
    order = {name: place for place, name in enumerate(results.facts["types"])}
    for table, how in (("f1", "fine-tuned"), ("probe", "probe")):
        if groups := _lists(results.by_group(table, fraction)):
            groups = dict(sorted(groups.items(), key=lambda one: order.get(one[0], len(order))))
            figure = plots.plot_types(results, groups, title=f"F1 by cell type, {how}")
            rare = [name for name in groups if name in results.facts["rare"]]
            caption = f"F1 of {count(len(groups), 'cell type')} ({how}), the most abundant in the test cells first."
            caption += f" Rare, in bold: {', '.join(rare)}." if rare else ""
            figures.append(picture(figure, _spelled_groups(results, groups), caption))
    if differences := loss_by_frequency(results):
        reference = results.label(results.reference)
        title = f"Loss minus that of {plain(brief(reference, 20))}"
        x, y = "test cells that have the gene", "nats (↓ better)"
        figure = plots.plot_groups(results, differences, title=title, x=x, y=y, zero=True)
        caption = f"Loss minus that of {reference}, paired by seed, by share of test cells that have the masked gene."
        figures.append(picture(figure, _spelled_groups(results, differences), caption))
    return _group("By cell type and gene frequency", f"Models {where}; means with 95 % intervals over seeds.", figures)


def loss_by_frequency(results: Results) -> dict[str, dict[str, list[float]]]:
    """Return the loss minus the reference's, paired by seed: by group of genes and strategy, at the fraction shown."""
    groups = results.by_group("loss by frequency", results.started[0])
    differences = {}
    for group, columns in groups.items():
        reference = columns.pop(results.reference, {})
        both = {name: by_seed(column, reference) for name, column in columns.items()}
        differences[group] = {name: values for name, values in both.items() if values}
    return {group: columns for group, columns in differences.items() if columns}


def _lists(groups: Mapping[str, Mapping[str, Mapping[int, float]]]) -> dict[str, dict[str, list[float]]]:
    return {group: {name: [*column.values()] for name, column in columns.items()} for group, columns in groups.items()}


def _spelled_groups(results: Results, groups: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
    texts = []
    for group, columns in groups.items():
        means = [f"{results.label(name)} {np.mean(values):.3f}" for name, values in columns.items() if len(values)]
        texts.append(f"{group}: {', '.join(means)}")
    return "; ".join(texts).replace("-0.", "−0.")
