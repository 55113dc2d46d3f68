"""The page of a comparison: one HTML file with its pictures inside, without script, font or anything from elsewhere.

What it prints comes from files: all of it is escaped.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

from corrmask_fast.comparison.differences import MANY, QUESTIONS, Difference, beside_baselines, pairs
from corrmask_fast.comparison.markup import PAGE, STYLE, count, enumerated, esc, listing, table
from corrmask_fast.comparison.measures import MEASURES, Measure
from corrmask_fast.comparison.report_pictures import loss_by_frequency, pictures
from corrmask_fast.comparison.results import percent
from corrmask_fast.errors import brief

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from corrmask_fast.comparison.results import Results

_MISSING = '<td class="d">–</td>'


def page(results: Results, differences: Sequence[Difference]) -> str:
    """Return the report of a comparison as HTML.

    Parameters
    ----------
    differences
        Of the same results, from ``all_differences``.
    """
    sections = [_settings(results)]
    if results.started:
        beside = {fraction: beside_baselines(results, fraction) for fraction in results.started}
        first = beside[results.started[0]]
        sections = [
            _answer(results, differences, beside),
            _reading(results, [*differences, *first]),
            _questions(results, differences),
            pictures(results, differences),
            _baselines(results, first),
            _own_losses(results),
            _all_differences(results, differences),
            *sections,
        ]
    text = PAGE.format(
        title="Masking strategies, compared",
        style=STYLE,
        introduction=_introduction(results),
        sections="\n".join(section for section in sections if section),
    )
    return text.replace(" %", "\N{NO-BREAK SPACE}%")


def _introduction(results: Results) -> str:
    facts, inputs = results.facts, results.facts["inputs"]
    labels = [text + " (the reference)" * (name == results.reference) for name, text in results.strategies.items()]
    shares = [f"{percent(one)} ({count(results.cells(one), 'cell')})" for one in results.fractions[::-1]]
    of_file = {key: f" ({inputs[key]})" if key in inputs else "" for key in ("train", "test")}
    labelled = facts["labelled_cells"]
    uneven = results.planned < len(labels) * len(shares) * int(facts["seeds"])
    text = (
        f"The same model was pretrained under each of these masking strategies: {enumerated(labels)}. "
        f"There are {count(results.planned, 'model')}: {'up to ' if uneven else ''}{count(facts['seeds'], 'seed')} of "
        f"each strategy on {enumerated(shares)} of the {facts['train_cells']:,} training "
        f"cells{of_file['train']}, with a vocabulary of {count(facts['genes'], 'gene')}. "
        "With the same seed, all strategies start from the same weights and meet the same cells in the same order, for "
        f"the same number of steps. All were tested on the same {count(facts['test_cells'], 'cell')}{of_file['test']}, "
        f"which no model was pretrained on{f'; {labelled:,} of them have a cell type' if labelled else ''}."
    )
    notice = "".join(f'<p class="notice">{esc(remark)}</p>\n' for remark in results.remarks())
    return f"{notice}<p>{esc(text)}</p>"


def _answer(results: Results, differences: Sequence[Difference], beside: Mapping[float, Sequence[Difference]]
            ) -> str:  # fmt: skip
    reference = results.label(results.reference)
    first, *others = results.started
    parts = [
        f"<h2>Results</h2>{_answer_table(results, differences, beside[first], first)}",
        _key(results, reference, beside[first]),
    ]
    parts += [
        f"<details><summary>{percent(fraction)} of the cells</summary>"
        f"{_answer_table(results, differences, beside[fraction], fraction)}</details>"
        for fraction in others
    ]
    parts.append(f"<h3>What is told apart from {esc(reference)}</h3>" + listing(_verdicts(results, differences, first)))
    used = [measure for measure in MEASURES if measure in results.measures]
    terms = "".join(f"<dt>{esc(one.heading)}</dt><dd>{esc(one.says)}{_direction(one)}.</dd>" for one in used)
    parts.append(f"<details><summary>What the measures are</summary><dl>{terms}</dl></details>")
    return "<section>" + "\n".join(parts) + "</section>"


def _direction(measure: Measure) -> str:
    return f". {measure.better.capitalize()} is better" if measure.better else ""


def _answer_table(
    results: Results, differences: Sequence[Difference], beside: Sequence[Difference], fraction: float
) -> str:
    """Return strategies, then baselines; mean ± sd, and below it the difference to the reference."""
    measures = [measure for measure in results.measures if measure.main]
    told = {(one.strategy, one.measure.name): one for one in differences
            if one.fraction == fraction and one.against == results.reference}  # fmt: skip
    beaten = {(one.strategy, one.measure.name): one.verdict == "better" for one in beside if one.n > 1}

    def cell(name: str, measure: Measure) -> str:
        values = [*results.values(name, measure.name, fraction).values()]
        if not values:
            return _MISSING
        text = measure.mean_sd(values) + ("" if beaten.get((name, measure.name), True) else " ‡")
        one = told.get((name, measure.name))
        return f"<td>{text}{'' if one is None else f'<br>{_mark(one)}'}</td>"

    seeds = {name: len({seed for one in measures for seed in results.values(name, one.name, fraction)})
             for name in [*results.strategies, *results.baselines]}  # fmt: skip
    same = len(set(seeds.values())) == 1

    def body(names: Sequence[str]) -> str:
        lines = []
        for name in names:
            label = esc(results.label(name)) + "<br>(reference)" * (name == results.reference)
            cells = "".join(cell(name, measure) for measure in measures)
            lines.append(f'<tr><th scope="row">{label}</th>{"" if same else f"<td>{seeds[name]}</td>"}{cells}</tr>')
        return f"<tbody>{''.join(lines)}</tbody>" if lines else ""

    heads = "".join(f'<th scope="col">{esc(one.label)}<br>{esc(_unit_and_way(one))}</th>' for one in measures)
    seeds_head = "" if same else '<th scope="col">Seeds</th>'
    over = count(seeds[results.reference], "seed") if same else "seeds"
    what = over if over == "1 seed" else f"mean ± standard deviation over {over}"
    caption = f"Pretrained on {count(results.cells(fraction), 'cell')} ({percent(fraction)}): {what}"
    head = f'<th scope="col" class="text">Strategy</th>{seeds_head}{heads}'
    return table(caption, head, body([*results.strategies]) + body(results.baselines), "answer")


def _unit_and_way(measure: Measure) -> str:
    way = {"lower": "lower is better", "higher": "higher is better"}.get(measure.better, "")
    return ", ".join(filter(None, [measure.unit, way]))


def _mark(one: Difference) -> str:
    """Return the difference to the reference; where its interval excludes 0: a word and a colour."""
    digits = one.measure.digits
    text = one.measure.text(one.mean, digits, sign=True)
    if not one.excludes_zero:
        return f'<span class="d">{text}</span>'
    return f'<span class="told {one.verdict}">{text} {one.verdict}</span>'


def _key(results: Results, reference: str, beside: Sequence[Difference]) -> str:
    text = (
        f"Second line of a cell: the difference to {reference}, paired by seed. With a word (better, worse, lower, "
        "higher): its 95 % interval excludes 0. Grey, without a word: it does not."
    )
    if results.baselines:
        text += " Below the line: baselines, which were not pretrained."
    if any(one.verdict != "better" and one.n > 1 and one.measure.main for one in beside):
        text += " ‡: not shown to be better than the best baseline of that measure."
    return f"<p>{esc(text)}</p>"


def _verdicts(results: Results, differences: Sequence[Difference], fraction: float) -> list[str]:
    """Say for each strategy which main measures are told apart from the reference, and which are not."""
    lines = []
    for name in results.strategies:
        ours = [one for one in differences if one.measure.main and (one.strategy, one.against, one.fraction) ==
                (name, results.reference, fraction)]  # fmt: skip
        if not ours:
            continue
        seeds = sorted({one.n for one in ours})
        told = [f"{one.measure.label} {one.interval()}: {one.verdict}" for one in ours if one.excludes_zero]
        rest = esc(", ".join(one.measure.label + _needs(one) for one in ours if not one.excludes_zero))
        number = f"{enumerated([str(n) for n in seeds])} seed{'' if seeds == [1] else 's'}"
        text = f"<strong>{esc(results.pair(name, results.reference))}</strong> ({number}). "
        if seeds == [1]:
            text += "One seed gives no interval, so nothing is told apart."
        else:
            text += esc("; ".join(told) + "." if told else "No interval excludes 0.")
            text += f"<br>Not told apart, with the seeds that this would take: {rest}." if rest else ""
        lines.append(text)
    return lines or ["There is no second strategy with a seed of the reference yet."]


def _needs(one: Difference) -> str:
    return "" if one.n < 2 else f" (about {one.seeds_needed:,})" if one.seeds_needed else f" ({MANY})"


def _reading(results: Results, shown: Sequence[Difference]) -> str:
    """Say what intervals cover, how many there are, and what chance makes of so many."""
    by_gene = [values for columns in loss_by_frequency(results).values() for values in columns.values()]
    intervals = sum(one.n > 1 for one in shown) + sum(len(values) > 1 for values in by_gene)
    errors = []
    for measure in results.measures:
        found = [row.values[f"{measure.name}_se"] for row in results.rows
                 if row.kind == "model" and f"{measure.name}_se" in row.values]  # fmt: skip
        if found:
            unit = measure.difference_unit
            errors.append(f"{measure.label} {measure.text(float(np.mean(found)), measure.digits + 1)}{unit}")
    chance = (
        f"This page gives {count(intervals, 'interval')} of differences. If no strategy differed from another, about "
        f"{0.05 * intervals:.0f} of them (5 %) would exclude 0 by chance."
    )
    none = "This page gives no interval, which takes two seeds of two strategies: nothing is told apart from chance."
    text = [
        (
            "Intervals are 95 % confidence intervals of the mean difference (Student's t over seeds). They cover what "
            "a seed changes: weights, order of cells, masks, the share of the cells, and the halves of the labelled "
            "cells. They do not cover what is the same for all seeds: the cells whose losses are taken, and, at 100 % "
            "of the cells, the training cells and their graph."
        ),
        f"One model's standard error over test cells, on average: {'; '.join(errors)}." if errors else "",
        chance if intervals else none,
        (
            "Seeds needed: as many as a paired t-test (two-sided, 5 %) takes to find a difference of this mean and "
            "spread with a power of 80 %. Of few seeds that number is rough."
        ),
    ]
    paragraphs = "".join(f"<p>{esc(line)}</p>" for line in text if line)
    return f"<section><h2>How to read the intervals</h2>{paragraphs}</section>"


def _questions(results: Results, differences: Sequence[Difference]) -> str:
    parts = []
    for strategy, against, question in QUESTIONS:
        ours = [one for one in differences if one.measure.main and (one.strategy, one.against, one.fraction) ==
                (strategy, against, results.started[0])]  # fmt: skip
        if ours:
            where = f"pretrained on {percent(results.started[0])} of the cells"
            title = f"{results.pair(strategy, against)}, {where}"
            parts.append(f"<h3>{esc(question)}</h3>{_difference_table(results, ours, title, pair=False)}")
    return f"<section><h2>Questions</h2>{''.join(parts)}</section>" if parts else ""


def _difference_table(results: Results, differences: Sequence[Difference], caption: str, *, pair: bool = True) -> str:
    one_fraction = len({one.fraction for one in differences}) == 1
    cells_head = "" if one_fraction else '<th scope="col">Cells</th>'
    lines = []
    for one in differences:
        verdict = one.verdict or ("not told apart" if one.n > 1 else "1 seed, no interval")
        told = f"told {one.verdict}" if one.verdict else "d"
        needed = "–" if one.n < 2 else f"{one.seeds_needed:,}" if one.seeds_needed else MANY
        lines.append(
            (f'<tr><th scope="row">{esc(results.pair(one.strategy, one.against))}</th>' if pair else "<tr>")
            + f'<td class="text">{esc(one.measure.label)}</td>'
            + ("" if one_fraction else f"<td>{percent(one.fraction)}</td>")
            + f'<td class="text"><span class="{told}">{verdict}</span></td><td class="text">{esc(one.interval())}</td>'
            f"<td>{one.n}</td><td>{needed}</td></tr>"
        )
    head = (
        ('<th scope="col" class="text">Difference</th>' if pair else "")
        + f'<th scope="col" class="text">Measure</th>{cells_head}<th scope="col" class="text">Told apart from 0</th>'
        '<th scope="col" class="text">Mean [95 % interval]</th><th scope="col">Seeds</th>'
        '<th scope="col">Seeds needed</th>'
    )
    return table(esc(caption), head, f"<tbody>{''.join(lines)}</tbody>")


def _baselines(results: Results, beside: Sequence[Difference]) -> str:
    if not beside:
        return ""
    lines = []
    for measure in dict.fromkeys(one.measure for one in beside if one.measure.main):
        ours = [one for one in beside if one.measure == measure and one.verdict != "better" and one.n > 1]
        each = [f"{results.label(one.strategy)} {one.interval()}{one.verdict and f', {one.verdict}'}" for one in ours]
        if ours:
            best = results.label(ours[0].against)
            lines.append(
                f"<strong>{esc(measure.label)}</strong>, best baseline {esc(best)}. Not shown to be better: "
                f"{esc('; '.join(each))}."
            )
    text = (
        "The best baseline of a measure is the one with the best mean. It was not pretrained. Where a strategy is not "
        "shown to be better, pretraining with it is not shown to be of use for that measure."
    )
    if all(one.n < 2 for one in beside):
        text += " One seed gives no interval, so nothing is told apart."
    elif all(one.verdict == "better" for one in beside if one.measure.main):
        text += " Every strategy is better than the best baseline in every measure of the first table."
    caption = f"Each strategy minus the best baseline, {percent(beside[0].fraction)} of the cells"
    return (
        f"<section><h2>Beside baselines</h2><p>{esc(text)}</p>{listing(lines) if lines else ''}"
        "<details><summary>All differences to the best baseline</summary>"
        f"{_difference_table(results, beside, caption)}</details></section>"
    )


def _own_losses(results: Results) -> str:
    lines = []
    for name, text in results.strategies.items():
        columns = [[*results.values(name, "own_loss", fraction).values()] for fraction in results.started]
        cells = "".join(f"<td>{MEASURES[0].mean_sd(values)}</td>" if values else _MISSING for values in columns)
        lines += [f'<tr><th scope="row">{esc(text)}</th>{cells}</tr>'] if any(columns) else []
    if not lines:
        return ""
    heads = "".join(f'<th scope="col">{percent(one)} of the cells (nats)</th>' for one in results.started)
    return (
        "<section><h2>Held-out losses, each under its own masks: not comparable</h2>"
        "<p>Strategies mask other genes, and some genes are harder to predict than others. These losses tell whether a "
        "run went well. They do not tell which strategy is better.</p>"
        + table("Each under its own masks: mean ± standard deviation over seeds",
                 f'<th scope="col" class="text">Strategy</th>{heads}', f"<tbody>{''.join(lines)}</tbody>")
        + "</section>"
    )  # fmt: skip


def _all_differences(results: Results, differences: Sequence[Difference]) -> str:
    if not differences:
        return ""
    parts = []
    for strategy, against in pairs(results):
        ours = [one for one in differences if (one.strategy, one.against) == (strategy, against)]
        if ours:
            parts.append(_difference_table(results, ours, results.pair(ours[0].strategy, ours[0].against), pair=False))
    return (
        f"<section><h2>All differences</h2><details><summary>{count(len(differences), 'difference')}, as in "
        f"differences.csv</summary>{''.join(parts)}</details></section>"
    )


def _settings(results: Results) -> str:
    facts = results.facts
    notes = f"<h3>Notes</h3>{listing(map(esc, facts['notes']))}" if facts["notes"] else ""
    titles = {"settings": "Pretraining", "evaluation": "Evaluation", "inputs": "Inputs", "versions": "Versions"}
    tables = "".join(_pairs_table(title, facts[key]) for key, title in titles.items())
    if facts["command"]:
        again = f"<p>The command that made this comparison:</p><pre class='scroll'>{esc(facts['command'])}</pre>"
    else:
        again = "<p>Run <code>corrmask-fast compare</code> with these inputs, strategies, seeds and settings.</p>"
    return (
        f"<section><h2>Models, settings, versions</h2>{_models(results)}{notes}{tables}"
        f"<h3>How to reproduce this page</h3>{again}<p>This page and differences.csv are made from comparison.json, "
        "rows.csv (a row for each model) and details.csv alone.</p></section>"
    )


_RUN_COLUMNS = (
    ("cells", "Cells", ",.0f"), ("steps", "Steps", ",.0f"), ("seconds", "Time (s)", ",.0f"),
    ("graph_edges", "Graph edges", ",.0f"), ("coverage_error", "Coverage error", ".4f"),
    ("targets", "Shortcut targets", ",.0f"),
)  # fmt: skip


def _models(results: Results) -> str:
    columns = [one for one in _RUN_COLUMNS if any(one[0] in row.values for row in results.rows if row.kind == "model")]
    lines = []
    for fraction in results.fractions:
        for name, text in results.strategies.items():
            values = [[*results.values(name, column, fraction).values()] for column, _, _ in columns]
            seeds = sum((row.strategy, row.fraction) == (name, fraction) for row in results.rows)
            cells = "".join(f"<td>{format(np.mean(v), form)}</td>" if v else _MISSING
                            for v, (_, _, form) in zip(values, columns, strict=True))  # fmt: skip
            head = f'<th scope="row">{esc(text)}</th>'
            lines.append(f"<tr>{head}<td>{percent(fraction)}</td><td>{seeds}</td>{cells}</tr>")
    titles = ["Share of cells", "Seeds", *(title for _, title, _ in columns)]
    head = '<th scope="col" class="text">Strategy</th>' + "".join(f'<th scope="col">{title}</th>' for title in titles)
    note = ""
    if any(column == "coverage_error" for column, _, _ in columns):
        note = "<p>Coverage error: mean over genes of |how often a gene is masked − how often CorrMask masks it|.</p>"
    return table("Models, means over seeds", head, f"<tbody>{''.join(lines)}</tbody>") + note


def _pairs_table(title: str, values: Mapping[str, Any]) -> str:
    if not values:
        return ""
    texts = {
        key: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False) for key, value in values.items()
    }
    lines = "".join(
        f'<tr><th scope="row">{esc(key)}</th><td class="text">{esc(brief(text, 200))}</td></tr>'
        for key, text in texts.items()
    )
    return table(title, "", f"<tbody>{lines}</tbody>")
