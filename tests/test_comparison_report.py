"""A comparison's rows: read and checked, paired differences, seeds needed, the table, the pictures, the page."""

from __future__ import annotations

import base64
import csv
import io
import json
import math
import re
from html.parser import HTMLParser

import comparison_cases as cases
import numpy as np
import pytest

from corrmask_fast import Comparison, InputError
from corrmask_fast.comparison import plots
from corrmask_fast.comparison.differences import beside_baselines, interval, seeds_needed
from corrmask_fast.comparison.measures import MEASURES
from corrmask_fast.comparison.results import Results, Row
from corrmask_fast.plots import GREY

NAMED = {measure.name: measure for measure in MEASURES}


def row(strategy, seed, fraction=1.0, kind="model", **values):
    return Row(kind, strategy, fraction if kind == "model" else None, seed, values)


def of_losses(losses, *, seeds=5, measure="loss", baselines=()):
    """A comparison of one fraction with given values by strategy, seed by seed; None: not ended."""
    given = cases.facts({name: name.title() for name in losses}, seeds=seeds, fractions=[1.0])
    rows = [row(name, s, **{measure: value}) for name, values in losses.items()
            for s, value in enumerate(values) if value is not None]  # fmt: skip
    return Comparison(given, [*rows, *baselines])


def found(comparison, strategy, against, measure="loss"):
    [one] = [
        d for d in comparison.differences() if (d.strategy, d.against, d.measure.name) == (strategy, against, measure)
    ]
    return one


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A finished comparison, saved."""
    folder = cases.write(tmp_path_factory.mktemp("comparison") / "run")
    Comparison.read(folder).save(folder)
    return folder


@pytest.fixture(scope="module")
def page(folder):
    return (folder / "report.html").read_text(encoding="utf-8").replace("\N{NO-BREAK SPACE}", " ")


# Differences


def test_an_interval_is_that_of_a_paired_t_test():
    from scipy.stats import ttest_rel

    rng = np.random.default_rng(0)
    base = rng.normal(7, 0.3, 6)  # seeds differ far more than strategies do
    other = base - 0.03 + rng.normal(0, 0.01, 6)
    one = found(of_losses({"random": base, "corrmask": other}, seeds=6), "corrmask", "random")
    wanted = ttest_rel(other, base).confidence_interval(0.95)
    assert (one.low, one.high) == pytest.approx((wanted.low, wanted.high), rel=1e-9)
    assert one.n == 6
    assert one.verdict == "better"


def test_an_interval_worked_by_hand():
    """Of 1, 2, 3: mean 2, sd 1, t(0.975, 2) = 4.302653, so ± 4.302653 / sqrt(3)."""
    mean, sd, low, high = interval([1.0, 2.0, 3.0])
    assert (mean, sd) == (2.0, 1.0)
    assert (low, high) == pytest.approx((2 - 2.484138, 2 + 2.484138), abs=1e-6)


def test_only_seeds_that_both_have_are_paired():
    comparison = of_losses({"random": [7.0, 7.2, None, 7.4], "corrmask": [6.9, None, 6.0, 7.2]}, seeds=4)
    one = found(comparison, "corrmask", "random")
    assert one.n == 2
    assert one.mean == pytest.approx(-0.15)


def test_one_seed_has_no_interval_and_says_so():
    comparison = of_losses({"random": [7.0], "corrmask": [6.5]}, seeds=1)
    one = found(comparison, "corrmask", "random")
    assert one.n == 1
    assert math.isnan(one.sd)
    assert one.verdict == ""
    assert one.seeds_needed is None
    assert one.interval() == "−0.500 nats (1 seed, no interval)"


@pytest.mark.parametrize(
    ("measure", "shift", "verdict"),
    [("loss", -1, "better"), ("loss", 1, "worse"), ("macro_f1", 1, "better"), ("accuracy", -1, "worse"),
     ("shortcut", -1, "lower"), ("excess", 1, "higher"), ("shortcut", 0, "")],
)  # fmt: skip
def test_better_is_said_of_measures_with_a_direction_alone(measure, shift, verdict):
    noise = np.array([-0.1, 0.0, 0.1])
    comparison = of_losses({"random": np.zeros(3), "corrmask": shift + noise}, seeds=3, measure=measure)
    assert found(comparison, "corrmask", "random", measure).verdict == verdict


def test_an_interval_that_excludes_0_is_not_written_as_if_it_held_0():
    one = found(of_losses({"random": [0.0] * 3, "corrmask": [0.0003, 0.00031, 0.00032]}, seeds=3), "corrmask", "random")
    assert one.excludes_zero
    assert one.interval() == "+0.0003 nats [+0.0003, +0.0003]"
    accuracy = of_losses({"random": [0.0] * 3, "corrmask": [0.01, 0.02, 0.03]}, seeds=3, measure="accuracy")
    assert found(accuracy, "corrmask", "random", "accuracy").interval() == "+2.00 percentage points [−0.48, +4.48]"


def test_pairs_that_answer_questions_are_there_once():
    names = ["random", "corrmask", "random-matched", "corrmask-rewired", "corrmask-balanced"]
    pairs = [(d.strategy, d.against) for d in of_losses({name: [1.0, 2.0] for name in names}, seeds=2).differences()]
    others = [("corrmask", "random-matched"), ("corrmask", "corrmask-rewired")]
    assert pairs == [*((name, "random") for name in names[1:]), *others]  # balanced − random is one of the first
    assert not of_losses({"random": [1.0]}, seeds=1).differences()


def test_a_pair_is_not_given_a_second_time_the_other_way_round():
    pairs = [
        (d.strategy, d.against) for d in of_losses({"random-matched": [1.0, 2], "corrmask": [2.0, 3]}).differences()
    ]
    assert pairs == [("corrmask", "random-matched")]
    turned = [
        (d.strategy, d.against) for d in of_losses({"corrmask": [1.0, 2], "random-matched": [2.0, 3]}).differences()
    ]
    assert turned == [("random-matched", "corrmask")]


# Seeds needed


@pytest.mark.parametrize(("effect", "n"), [(1.0, 10), (0.5, 34), (0.2, 199), (0.8, 15)])
def test_seeds_needed_are_those_of_tables_of_power(effect, n):
    """Cohen's tables of the one-sample t-test: two-sided 5 %, power 80 %."""
    assert seeds_needed(effect, 1.0) == n
    assert seeds_needed(-3 * effect, 3.0) == n


def test_seeds_needed_have_the_power_when_simulated():
    from scipy.special import stdtrit

    def power(n):
        draws = np.random.default_rng(0).normal(1.5, 1.0, (100_000, n))
        t = draws.mean(axis=1) / (draws.std(axis=1, ddof=1) / np.sqrt(n))
        return np.mean(np.abs(t) > stdtrit(n - 1, 0.975))

    n = seeds_needed(1.5, 1.0)
    assert power(n) > 0.795
    assert power(n - 1) < 0.805


@pytest.mark.parametrize(
    ("mean", "sd", "n"),
    [(1.0, 0.0, 2), (1.0, 1e-9, 2), (1.0, 0.02, 2), (0.062, 0.0078, 3), (0.0, 1.0, None), (0.0, 0.0, None),
     (1e-6, 1.0, None), (1.0, math.nan, None)],
)  # fmt: skip
def test_seeds_needed_at_the_ends(mean, sd, n):
    assert seeds_needed(mean, sd) == n


def test_a_clearer_difference_never_needs_more_seeds():
    needed = [seeds_needed(1.0, sd) for sd in np.geomspace(0.001, 10, 60)]
    assert needed == sorted(needed)


# Baselines


def test_a_strategy_is_compared_with_the_best_baseline():
    counts = [row("logistic, counts", s, kind="baseline", macro_f1=0.70 + 0.01 * s) for s in range(3)]
    others = [row("majority", 0, kind="baseline", macro_f1=0.1), row("untrained", 0, kind="untrained", macro_f1=0.2)]
    losses = {"random": [0.6, 0.6, 0.6], "corrmask": [0.80, 0.81, 0.82]}
    comparison = of_losses(losses, seeds=3, measure="macro_f1", baselines=[*counts, *others])
    assert {d.strategy: (d.against, d.verdict, round(d.mean, 3)) for d in beside_baselines(comparison, 1.0)} == {
        "random": ("logistic, counts", "worse", -0.11), "corrmask": ("logistic, counts", "better", 0.1)
    }  # fmt: skip


@pytest.mark.parametrize(("name", "n", "mean"), [("unigram", 3, -0.1), ("logistic, counts", 1, -0.2)])
def test_one_row_counts_for_all_seeds_where_nothing_in_it_depends_on_a_seed(name, n, mean):
    baseline = [row(name, 0, kind="baseline", probe_f1=0.7)]
    comparison = of_losses({"random": [0.5, 0.6, 0.7]}, seeds=3, measure="probe_f1", baselines=baseline)
    [one] = beside_baselines(comparison, 1.0)
    assert (one.n, round(one.mean, 6)) == (n, mean)


def test_a_shortcut_has_no_best_baseline():
    untrained = [row("untrained", 0, kind="untrained", shortcut=0.0)]
    assert not beside_baselines(of_losses({"random": [0.1, 0.2]}, measure="shortcut", baselines=untrained), 1.0)


# Files


def test_what_is_written_is_read(folder):
    comparison = Comparison.read(folder)
    given = cases.facts()
    assert comparison.facts == {**given, "command": "", "models": 60}
    assert len(comparison.rows) == 6 * 5 * 2 + 6 * 5
    wanted = [one["loss"] for one in cases.rows(given) if (one["strategy"], one.get("fraction")) == ("corrmask", 0.1)]
    assert [*comparison.values("corrmask", "loss", 0.1).values()] == wanted
    assert comparison.values("logistic, counts", "loss", 0.1) == {}
    assert comparison.baselines == [
        "untrained",
        "unigram",
        "cell type",
        "majority",
        "logistic, counts",
        "logistic, PCA",
    ]
    assert set(comparison.by_group("f1", 1.0)) == set(cases.TYPES)
    assert (comparison.ended, comparison.planned, comparison.remarks()) == (60, 60, [])


def test_differences_are_a_csv_file_in_the_units_of_the_rows(folder):
    with (folder / "differences.csv").open(encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == (5 + 2) * 2 * 11
    [one] = [line for line in lines if (line["strategy"], line["against"], line["fraction"], line["measure"]) ==
             ("corrmask", "random", "1.0", "accuracy")]  # fmt: skip
    comparison = Comparison.read(folder)
    mine, other = (comparison.values(name, "accuracy", 1.0) for name in ("corrmask", "random"))
    assert float(one["mean"]) == pytest.approx(np.mean([mine[s] - other[s] for s in range(5)]), rel=1e-5)
    assert float(one["low"]) < float(one["mean"]) < float(one["high"])
    assert all(line["seeds_needed"].isdigit() or line["seeds_needed"] == "more than 1000" for line in lines)


FACTS_FAULTS = [
    ({"reference": "span"}, "reference must be one of the strategies; got 'span'"),
    ({"reference": []}, "reference must be"),
    ({"strategies": {}}, "strategies must be"),
    ({"strategies": ["random"]}, "strategies must be"),
    ({"strategies": {"random": 1}}, "strategies must be"),
    ({"strategies": {"random": "A", "corrmask": "A"}}, "labels of strategies must differ"),
    ({"strategies": {"random": "A\x1b[2J"}}, "must be printable"),
    ({"strategies": {"random": "\ud800"}}, "JSON"),
    ({"fractions": []}, "fractions must be"),
    ({"fractions": [0]}, "fractions must be"),
    ({"fractions": [True]}, "fractions must be"),
    ({"fractions": [1, 1.0]}, "fractions must be"),
    ({"seeds": 0}, "seeds must be an integer >= 1; got 0"),
    ({"train_cells": 10**5000}, "train_cells must be|JSON"),
    ({"types": {"B cell": "many"}}, "types must"),
    ({"types": []}, "types must be a dict"),
    ({"notes": [1]}, "notes must be texts"),
    ({"rare": "B cell"}, "rare must be a list"),
]


@pytest.mark.parametrize(("change", "message"), FACTS_FAULTS)
def test_facts_that_cannot_be_are_refused(tmp_path, change, message):
    folder = cases.write(tmp_path / "run", parts=[])
    facts = cases.facts() | change
    try:
        (folder / "comparison.json").write_text(json.dumps(facts))
    except ValueError:  # Python writes no integer of 5000 digits either
        (folder / "comparison.json").write_text(json.dumps(cases.facts()).replace("4200", "1" + "0" * 5000))
    with pytest.raises(InputError, match=message):
        Comparison.read(folder)


def damaged_rows(name):
    lines = cases.rows(cases.facts())
    if name == "an unknown strategy":
        lines[0]["strategy"] = "span"
    elif name == "an unknown fraction":
        lines[0]["fraction"] = 0.5
    elif name == "two rows":
        lines.append(lines[0])
    elif name == "no number":
        lines[0]["loss"] = "seven"
    elif name == "no seed":
        lines[0]["seed"] = ""
    elif name == "an unknown kind":
        lines[0]["kind"] = "ensemble"
    elif name == "a baseline":
        lines.append({"kind": "baseline", "strategy": "random", "seed": 0})
    return lines


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("an unknown strategy", "strategy 'span', which comparison.json does not list"),
        ("an unknown fraction", "fraction 0.5, which comparison.json does not list"),
        ("two rows", "two rows of 'random', fraction 0.1, seed 0; keep one"),
        ("no number", "rows.csv: loss must be a number; got 'seven'"),
        ("no seed", "rows.csv: seed must be an integer; got ''"),
        ("an unknown kind", "rows.csv: kind must be one of model, untrained, baseline; got 'ensemble'"),
        ("a baseline", "a baseline with the name of a strategy"),
    ],
)
def test_rows_that_cannot_be_are_refused(tmp_path, fault, message):
    folder = cases.write(tmp_path / "run", lines=damaged_rows(fault), parts=[])
    with pytest.raises(InputError, match=re.escape(message)):
        Comparison.read(folder)


@pytest.mark.parametrize("name", ["comparison.json", "rows.csv", "details.csv"])
@pytest.mark.parametrize(
    "content", [b"", b"\xff\xfe\x00", b"a" * 300_000, b"[" * 100_000, b'kind,strategy\nx,"y', b"{}"]
)
def test_damaged_files_raise_one_error_that_names_the_file(tmp_path, name, content):
    folder = cases.write(tmp_path / "run")
    (folder / name).write_bytes(content)
    with pytest.raises(InputError, match=re.escape(name)) as error:
        Comparison.read(folder)
    assert len(str(error.value)) < 700
    assert "\n" not in str(error.value)


def test_a_line_cut_short_is_named(tmp_path):
    folder = cases.write(tmp_path / "run")
    text = (folder / "rows.csv").read_text(encoding="utf-8")
    (folder / "rows.csv").write_text(text[: text.rindex(",")], encoding="utf-8")
    with pytest.raises(InputError, match=r"rows.csv, line 91: 26 fields, the head has 27"):
        Comparison.read(folder)


@pytest.mark.parametrize("name", ["comparison.json", "rows.csv"])
def test_missing_files_are_named(tmp_path, name):
    folder = cases.write(tmp_path / "run")
    (folder / name).unlink()
    with pytest.raises(InputError, match=f"is no folder of a comparison: it lacks {name}"):
        Comparison.read(folder)


def test_without_details_the_rest_is_there(tmp_path):
    folder = cases.write(tmp_path / "run", cases.facts(seeds=2, fractions=[1.0]))
    (folder / "details.csv").unlink()
    assert Comparison.read(folder).by_group("f1", 1.0) == {}


def test_numbers_that_are_none_are_left_out_and_said(tmp_path):
    lines = cases.rows(cases.facts())
    lines[1] |= {"loss": math.nan, "perplexity": math.inf}  # CorrMask, 10 %, seed 0
    comparison = Comparison.read(cases.write(tmp_path / "run", lines=lines, parts=[]))
    assert sorted(comparison.values("corrmask", "loss", 0.1)) == [1, 2, 3, 4]
    text = "CorrMask, 10 % of the cells, seed 0: not finite or beyond 1e15, left out: loss, perplexity."
    assert comparison.remarks() == [text]
    assert text in comparison.table()


# The table


def test_the_table_shows_means_and_what_is_told_apart():
    comparison = of_losses({"random": [7.0, 7.1, 7.2], "corrmask": [6.9, 7.0, 7.11]}, seeds=3)
    lines = comparison.table().splitlines()
    assert lines[1].split("  ")[0] == "4,200 cells (100 %)"
    assert (lines[0].strip(), lines[1][-8:].strip()) == ("Loss", "(nats)")
    assert re.fullmatch(r"Random \(reference\) +3 +7\.100 ± 0\.100 ", lines[2])
    assert re.fullmatch(r"Corrmask +3 +7\.003 ± 0\.105\*", lines[3])
    assert lines[-1] == "Corrmask − Random: Loss −0.097 nats [−0.111, −0.082], 3 seeds: better"


def test_the_table_of_an_unfinished_comparison():
    comparison = of_losses({"random": [7.0, 7.2], "corrmask": [6.9]}, seeds=3)
    assert comparison.table().startswith("This comparison is not finished: 3 of 6 models have ended.")
    assert "better" not in comparison.table()
    assert "0 of 6 models" in of_losses({"random": [], "corrmask": []}, seeds=3).table()


# The page


class Tags(HTMLParser):
    """The tags of a page, and whether each that is opened is closed."""

    def __init__(self):
        super().__init__()
        self.open, self.seen, self.attributes, self.texts = [], [], [], []

    def handle_starttag(self, tag, attributes):
        self.seen.append(tag)
        self.attributes += attributes
        if tag not in {"meta", "img", "br"}:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def parsed(text):
    tags = Tags()
    tags.feed(text)
    tags.close()
    assert not tags.open
    return tags


def test_the_page_is_whole_and_needs_nothing_from_elsewhere(page):
    tags = parsed(page)
    assert not {"script", "link", "iframe", "object"} & set(tags.seen)
    assert "http:" not in page
    assert "https:" not in page
    assert "url(" not in page
    assert all(value.startswith("data:image/png;base64,") for name, value in tags.attributes if name == "src")
    alts = [value for name, value in tags.attributes if name == "alt"]
    assert len(alts) == tags.seen.count("img") == tags.seen.count("figcaption") == 8 * 3 + 3 + 3
    assert all(len(text) > 20 for text in alts)
    assert {"h1", "h2", "table", "thead", "figure", "main", "details"} <= set(tags.seen)


def test_the_pictures_are_pictures(page):
    from PIL import Image

    found = re.findall(r'base64,([^"]+)" width="(\d+)" height="(\d+)"', page)
    for data, width, height in found:
        with Image.open(io.BytesIO(base64.b64decode(data))) as image:
            assert image.size == pytest.approx((1.8 * int(width), 1.8 * int(height)), abs=3)
            assert len(image.convert("RGB").getcolors(10**6)) > 5
        assert int(width) <= 400  # of a telephone


def test_the_answer_comes_first_and_own_losses_are_set_apart(page):
    titles = re.findall(r"<h2>(.*?)</h2>", page)
    assert titles == [
        "Results", "How to read the intervals", "Questions", "Pictures", "Beside baselines",
        "Held-out losses, each under its own masks: not comparable", "All differences", "Models, settings, versions",
    ]  # fmt: skip
    first = page[: page.index("<h2>How to read")]
    assert "own masks" not in first
    assert "6.57" not in first  # CorrMask's loss under its own masks


def test_the_page_says_what_the_planted_effects_are(folder, page):
    one = found_in(folder, "corrmask", "random", "loss")
    assert one.verdict == "better"
    assert f"<strong>CorrMask − Random</strong> (5 seeds). Loss {one.interval()}: better" in page
    assert one.interval() in page[page.index("<h2>All differences") :]
    assert f'<span class="told better">{one.measure.text(one.mean, sign=True)} better</span>' in page
    assert "Does CorrMask do more than mask hub genes more often?" in page
    assert "−0.094 nats" in page  # the shortcut, lower
    assert not re.search(r"Shortcut [^;.<]*: (better|worse)", page)


def found_in(folder, strategy, against, measure):
    [one] = [d for d in Comparison.read(folder).differences() if d.fraction == 1.0
             and (d.strategy, d.against, d.measure.name) == (strategy, against, measure)]  # fmt: skip
    return one


def test_the_page_counts_its_intervals_and_those_that_chance_makes(folder, page):
    [count, chance] = re.search(r"gives (\d+) intervals of differences.*?about (\d+) of them", page).groups()
    comparison = Comparison.read(folder)
    wanted = (
        len(comparison.differences())
        + len(beside_baselines(comparison, 1.0))
        + 5 * len(cases.GROUPS["loss by frequency"])
    )
    assert int(count) == wanted
    assert int(chance) == round(0.05 * wanted)


def test_a_strategy_that_does_not_beat_a_logistic_regression_is_seen(page):
    section = page[page.index("<h2>Beside baselines") : page.index("<h2>Held-out")]
    [line] = re.findall(r"<li><strong>Probe macro-F1</strong>.*?</li>", section)
    assert "best baseline Logistic regression on counts. Not shown to be better: Random −0.2" in line
    assert line.count("worse") == 6
    assert "‡" in page[: page.index("<h2>How to read")]


def test_everything_from_files_is_escaped(tmp_path):
    evil = "<script>alert(1)</script><img src='https://example.org/x'> $\\frac{$ & \""
    given = cases.facts({"random": "Random", evil: evil}, seeds=2, fractions=[1.0])
    given |= {
        "types": {evil: 10}, "rare": [evil], "notes": [evil], "settings": {evil: evil}, "versions": {evil: [evil]},
        "inputs": {"train": evil, "test": evil}, "command": evil,
    }  # fmt: skip
    lines = cases.rows(given)
    for line in lines:
        line["strategy"] = {"majority": f"{evil}!"}.get(line["strategy"], line["strategy"])
    parts = [(name, 1.0, s, table, evil, 0.5 + 0.1 * s, 3) for name in given["strategies"] for s in range(2)
             for table in ("f1", "loss by frequency", "shortcut by rho")]  # fmt: skip
    folder = cases.write(tmp_path / "run", given, lines, parts)
    Comparison.read(folder).save(folder)
    text = (folder / "report.html").read_text(encoding="utf-8")
    tags = parsed(text)
    assert "script" not in tags.seen
    assert all(value.startswith("data:") for name, value in tags.attributes if name == "src")
    assert text.count("&lt;script&gt;") > 20
    assert any(evil in data for data in tags.texts)


def saved_page(tmp_path, **options):
    folder = cases.write(tmp_path / "run", **options)
    comparison = Comparison.read(folder)
    comparison.save(folder)
    return (folder / "report.html").read_text(encoding="utf-8").replace("\N{NO-BREAK SPACE}", " ")


def test_without_labels_there_is_no_f1_at_all(tmp_path):
    text = saved_page(
        tmp_path, given=cases.facts(dict([*cases.STRATEGIES.items()][:2]), 2, [1.0], labels=False), labels=False
    )
    text = re.sub(r'base64,[^"]+"', "", text)
    assert "F1" not in text
    assert "kNN" not in text
    assert "Shortcut" in text


def test_with_one_seed_nothing_is_told_apart(tmp_path):
    given = cases.facts(dict([*cases.STRATEGIES.items()][:2]), 1, [1.0], labels=False)
    text = saved_page(tmp_path, given=given, labels=False)
    assert "One seed gives no interval, so nothing is told apart." in text
    assert "This page gives no interval" in text
    assert "(1 seed, no interval)" in text
    assert not re.search(
        r'class="told|‡|nan|: (better|worse|lower|higher)[.;]',
        re.sub(r'base64,[^"]+"', "", text[text.index("<main>") :]),
    )


def test_a_page_of_what_has_ended_so_far(tmp_path):
    given = cases.facts(dict([*cases.STRATEGIES.items()][:3]), 3)
    lines = [one for one in cases.rows(given) if one["kind"] == "model"][:5]
    text = saved_page(tmp_path, given=given, lines=lines, parts=[])
    assert "This comparison is not finished: 5 of 18 models have ended." in text
    assert "CorrMask − Random</strong> (2 seeds)" in text
    assert "CorrMask, rewired graph − Random</strong> (1 seed)" in text
    assert "By number of cells" not in text


def test_a_page_before_the_first_model_has_ended(tmp_path):
    text = saved_page(tmp_path, lines=[], parts=[])
    assert "0 of 60 models have ended" in text
    assert "<h2>Results" not in text


def test_ten_strategies_are_told_apart():
    names = {f"s{i}": f"S{i}" for i in range(10)}
    looks = plots.looks(Results(cases.facts(names), []))
    assert len({(look.color, look.marker) for look in looks.values()}) == 10
    assert len({look.marker for look in looks.values()}) == 10
    assert len({(look.color, look.filled) for look in looks.values()}) == 10
    assert all(look.color != GREY for look in looks.values())  # which is Random's


def test_a_picture_of_differences_has_what_it_is_given():
    comparison = of_losses({"random": [7.0, 7.1, 7.2], "corrmask": [6.9, 7.0, 7.11], "span": [7.0, 7.2, 7.1]}, seeds=3)
    [axis] = plots.plot_differences(comparison, comparison.differences()).axes
    bars = [line.get_xdata() for line in axis.lines if len(line.get_xdata()) == 2 and line.get_color() != "#404040"]
    assert [*bars[0], *bars[1]] == pytest.approx([end for d in comparison.differences() for end in (d.low, d.high)])
    markers = [line for line in axis.lines if len(line.get_xdata()) == 1]
    assert [line.get_markerfacecolor() == "white" for line in markers] == [False, True]  # the second holds 0
    assert [text.get_text() for text in axis.get_yticklabels()] == ["Corrmask", "Span"]


def test_a_failed_save_leaves_the_old_report(folder, tmp_path, monkeypatch):
    from corrmask_fast.comparison import report

    copy = cases.write(tmp_path / "run", cases.facts(seeds=1, fractions=[1.0]), parts=[])
    (copy / "report.html").write_text("old")
    monkeypatch.setattr(report, "_introduction", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        Comparison.read(copy).save(copy)
    assert (copy / "report.html").read_text() == "old"
