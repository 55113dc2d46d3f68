"""The conformance suite: each planted fault is found and nothing else, and the table of its how-to page holds."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from collator_cases import (
    FAULTS,
    VOCABULARY,
    BioNeMoStyle,
    OtherRate,
    Sound,
    cells_of,
    geneformer_style,
    hugging_face,
    pad_alone,
)

from corrmask_fast import (
    CorpusDataset,
    CorrMasker,
    DataCollatorForCorrMask,
    DependencyGraph,
    InputError,
    Linear,
    RandomMasker,
    SpanMasker,
    check_collator,
)
from corrmask_fast.audit.conformance import _sigmas

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "how-to" / "your-collator.md").read_text()
GRAPH = DependencyGraph.from_edges([(f"G{i}", f"G{(i + 7) % 60}") for i in range(60)], VOCABULARY)


def check(collator, corpus=None, **options):
    return check_collator(collator, cells_of() if corpus is None else corpus, progress=False, **options)


def rows_of_page():
    """The table of the page: property → the verdict on each collator."""
    lines = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in PAGE.splitlines() if line.startswith("|")
    ]
    (_, *names), _, *rows = lines
    return {row[0]: dict(zip(names, row[1:], strict=True)) for row in rows}


def collators():
    """Column of the page → collator, and more for the check."""
    corpus = cells_of()
    return {
        "Hugging Face": lambda: (hugging_face(), {}),
        "Hugging Face, `seed=`": lambda: (hugging_face(seed=42), {}),
        "Geneformer's way": lambda: (geneformer_style(), {}),
        "BioNeMo's way": lambda: (pad_alone, {"dataset": BioNeMoStyle(corpus), "mlm_probability": 0.15}),
        "`DataCollatorForCorrMask`": lambda: (DataCollatorForCorrMask(CorrMasker(GRAPH)), {}),
    }


@pytest.mark.parametrize("column", collators())
def test_the_page_s_table(column):
    transformers = pytest.importorskip("transformers")
    if "seed" not in {field.name for field in fields(transformers.DataCollatorForLanguageModeling)}:
        pytest.skip("this transformers has no seed=")
    collator, options = collators()[column]()
    report = check(collator, **options)
    assert {item.name: item.verdict for item in report} == {name: row[column] for name, row in rows_of_page().items()}


def test_the_page_names_all_collators():
    assert {tuple(row) for row in rows_of_page().values()} == {tuple(collators())}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found_and_nothing_else(fault):
    report = check(fault())
    assert set(report.broken) == FAULTS[fault], report.table()


@pytest.mark.parametrize(
    "collator",
    [
        Sound(side="left", multiple=8, form=np.array),
        Sound(keep_special=False, form=list),
        RandomMasker(VOCABULARY, mlm_probability=(0.1, 0.4)),
        SpanMasker(VOCABULARY, mlm_probability=Linear(0.3, 0.1, 100), mask_replace_prob=1, random_replace_prob=0),
        DataCollatorForCorrMask(CorrMasker(GRAPH, structural_ratio=1, mask_replace_prob=0.5, random_replace_prob=0.5)),
    ],
    ids=["left", "dropped", "range", "schedule", "all replaced"],
)
def test_sound_collators_keep_all(collator):
    report = check(collator)
    assert report.broken == (), report.table()
    applicable = {item.name for item in report if item.verdict == "kept"}
    never = {"special tokens are never masked"} if getattr(collator, "keep_special", True) is False else set()
    drawn = {"random replacements are any gene"} if isinstance(collator, SpanMasker) else set()
    assert applicable == {item.name for item in report} - never - drawn


@pytest.mark.parametrize("seed", range(40))
def test_shares_raise_no_false_alarm(seed):
    """Statistical items alone, over many seeds, also of few genes."""
    from corrmask_fast.audit.collators import Feed
    from corrmask_fast.audit.conformance import _of_batches

    corpus = cells_of(5 + 10 * (seed % 8), seed=seed, least=1)

    class Seeded(Sound):
        def key(self, cell, batch):
            return [seed, *super().key(cell, batch)]

    feed = Feed(Seeded(), corpus)
    items = list(_of_batches([feed(np.arange(corpus.n_cells))], VOCABULARY, 0.15, 0.8, 0.1))
    assert not [item for item in items if item.verdict == "broken"], items


def test_sigmas_by_hand():
    one = np.array([1])
    assert _sigmas(one * 15, one * 100, 0.15, 0.15) == 0
    assert _sigmas(one * 15, one * 100, 0.1, 0.2) == 0
    assert _sigmas(one * 1600, one * 10_000, 0.15, 0.15) == pytest.approx(2.77, abs=0.02)  # 100 / sqrt(1275) = 2.80
    assert _sigmas(one * 1400, one * 10_000, 0.15, 0.15) == pytest.approx(-2.83, abs=0.02)
    assert _sigmas(one, one * 100, 0, 0) == np.inf
    assert _sigmas(one * 0, one * 0, 0.1, 0.1) == 0
    # Rows that are masked wholly or not at all scatter more: ten of 40 is no surprise where single genes would be one.
    rows, whole = np.repeat([100, 0], [10, 30]), np.full(40, 100)
    assert abs(_sigmas(rows, whole, 0.15, 0.15)) < 2
    assert abs(_sigmas(one * 1000, one * 4000, 0.15, 0.15)) > 15


def test_a_rate_that_is_given_comes_before_the_collator_s_own():
    assert check(OtherRate(), mlm_probability=0.2)["masking rate"].verdict == "kept"
    assert check(OtherRate(), mlm_probability=(0.1, 0.3))["masking rate"].verdict == "kept"

    class Nameless(Sound):
        mlm_probability = None

    item = check(Nameless())["masking rate"]
    assert item.verdict == "not applicable"
    assert "give mlm_probability" in item.detail
    assert item.measured == pytest.approx(0.15, abs=0.02)


def test_a_collator_that_fails_in_workers_alone():
    class MainOnly(Sound):
        def __call__(self, examples):
            if torch.utils.data.get_worker_info() is not None:
                raise OSError("no file in a worker")
            return super().__call__(examples)

    report = check(MainOnly())
    assert report.broken == ("same masks with any workers",)
    assert "no file in a worker" in report["same masks with any workers"].detail


class OwnGenerator(Sound):
    """Its generator is a state of its own, which the masks go by."""

    def __init__(self):
        super().__init__()
        self.generator = torch.Generator().manual_seed(0)

    def key(self, cell, batch):
        return [int(torch.randint(2**31, (1,), generator=self.generator))]


class NotCopied(OwnGenerator):
    def __deepcopy__(self, memo):
        raise TypeError("cannot be copied")


@pytest.mark.parametrize("collator", [OwnGenerator, NotCopied])
def test_a_generator_of_its_own(collator):
    """Workers begin with the generator as it is in the main process, in each epoch."""
    broken = set(check(collator()).broken)
    layouts = {f"same masks {how}" for how in ("in any batch", "with any workers", "on any ranks", "after a resume")}
    assert broken == {*layouts, "fresh masks in each epoch"}


def test_masks_by_the_number_of_a_cell_change_with_the_order_of_the_corpus():
    corpus = cells_of(20)
    turned = corpus.take(np.arange(20)[::-1])
    here, there = (pad_alone([BioNeMoStyle(each)[i] for i in range(20)])["labels"] for each in (corpus, turned))
    assert not (here == there.flip(0)).all(1).any()
    collator = DataCollatorForCorrMask(CorrMasker(GRAPH))
    collator.set_epoch(0)
    here, there = (collator([{"input_ids": cell["input_ids"]} for cell in CorpusDataset(each)[:]])["labels"]
                   for each in (corpus, turned))  # fmt: skip
    assert torch.equal(here, there.flip(0))


def test_report():
    report = check(Sound(), cells_of(40), batch_size=16)
    lines = report.table().splitlines()
    assert lines[0] == "Conformance of Sound: 40 cells, 0 of 12 items broken"
    assert len(lines) == 1 + len(report.items) == 13
    assert json.loads(json.dumps(report.to_dict()))["items"][0]["name"] == "masking rate"
    assert re.search(r"cells that come out otherwise: 0 of 20 with no workers", lines[-1])
    with pytest.raises(KeyError, match="no item 'spam' in this report; it has masking rate"):
        report["spam"]


def test_few_cells():
    report = check(Sound(), cells_of(1))
    assert report.broken == ()
    assert report["same masks after a resume"].verdict == "not applicable"


def test_the_generators_are_restored():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    check(Sound(), cells_of(8))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size must be an integer >= 1; got 0"),
        ({"n_cells": 0}, "n_cells must be an integer >= 1; got 0"),
        ({"mlm_probability": 1.5}, "mlm_probability must be a number in"),
        ({"mask_replace_prob": -1}, "mask_replace_prob must be a number in"),
        ({"random_replace_prob": 0.3}, r"must be at most 1; got 0.8 \+ 0.3"),
    ],
)
def test_bad_parameters(options, message):
    with pytest.raises(InputError, match=message):
        check(Sound(), cells_of(4), **options)


def test_an_empty_corpus():
    with pytest.raises(InputError, match="empty corpus"):
        check(Sound(), cells_of(4).take(np.arange(0)))
