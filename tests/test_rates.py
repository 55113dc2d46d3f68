"""Rates that rows draw from a range, or that follow the step: as number, as tensor, compiled, in workers; bad input."""

from __future__ import annotations

import copy
import math
import pickle

import numpy as np
import pytest
import torch

from corrmask_fast import (
    CorrMasker,
    Cosine,
    DataCollatorForCorrMask,
    InputError,
    Linear,
    Piecewise,
    RandomMasker,
    SpanMasker,
)
from corrmask_fast.masking.schedules import Schedule, parse_rate, rate_text
from corrmask_fast.testing import Case, assert_same, cases, draw_ids, make_graph, make_vocabulary

CASES = cases()
GENES = make_vocabulary(200)
GRAPH = make_graph(GENES)
ROWS = torch.arange(2, 102).repeat(40, 1)
RANGES = (
    {"mlm_probability": (0.1, 0.6)},
    {"structural_ratio": (0.0, 1.0), "mlm_probability": 0.4},
    {"mlm_probability": (0.05, 0.9), "structural_ratio": (0.3, 0.7), "seed": 9},
    {"strategy": "span", "mlm_probability": (0.2, 0.5)},
    {"strategy": "random", "mlm_probability": (0.15, 0.15)},
)


def tensors(case):
    arrays = (case.input_ids, case.attention_mask, case.special_tokens_mask)
    return tuple(None if array is None else torch.from_numpy(array.copy()) for array in arrays)


# ---------------------------------------------------------------------------------------------------------- ranges


@pytest.mark.parametrize("parameters", RANGES, ids=str)
def test_ranges_equal_the_oracle_to_the_bit(parameters):
    for case in CASES:
        draws, masker = draw_ids(case.rows), case.masker(**parameters)
        expected = case.expected(draw_ids=draws, **parameters)
        assert_same(expected, masker(*tensors(case), draw_ids=torch.from_numpy(draws)), f"{case.name}, {parameters}")


def test_each_row_has_a_rate_of_its_own_evenly_from_the_range():
    """Of 10 000 maskable tokens a row masks floor(10 000 · p): p is seen to four places."""
    genes = make_vocabulary(2000)
    masker = RandomMasker(genes, mlm_probability=(0.1, 0.5))
    rates = np.concatenate([
        (masker(torch.arange(2, 2002).repeat(500, 1)).labels != -100).sum(1).numpy() / 2000 for _ in range(4)
    ])  # fmt: skip
    assert rates.min() >= 0.1 - 1 / 2000
    assert rates.max() <= 0.5
    counts = np.histogram(rates + 1 / 4000, bins=10, range=(0.1, 0.5))[0]
    chi_square = ((counts - 200) ** 2 / 200).sum()
    assert abs(chi_square - 9) < 5 * math.sqrt(18)
    assert abs(np.corrcoef(rates[:-1], rates[1:])[0, 1]) < 5 / math.sqrt(2000)


def test_p_and_ratio_are_drawn_apart():
    star = make_graph(GENES, degree=0)
    one = CorrMasker(star, mlm_probability=(0.1, 0.5))(ROWS, epoch=0)
    other = CorrMasker(star, mlm_probability=(0.1, 0.5), structural_ratio=(0, 1))(ROWS, epoch=0)
    assert torch.equal((one.labels >= 0).sum(1), (other.labels >= 0).sum(1))
    assert one.masked_positions.shape[1] == 50


def test_the_control_of_a_range_has_the_same_rates():
    masker = CorrMasker(GRAPH, mlm_probability=(0.1, 0.5), structural_ratio=(0.2, 0.9))
    indptr, tokens = np.arange(41) * 100, ROWS.numpy().ravel()
    ours = masker.mask_ragged(indptr, tokens, epoch=3)
    control = masker.mask_ragged(indptr, tokens, epoch=3, structural_ratio=0.0)
    assert np.array_equal((ours.labels >= 0).sum(1), (control.labels >= 0).sum(1))
    assert not np.array_equal(ours.labels, control.labels)


# ------------------------------------------------------------------------------------------------------- schedules

SCHEDULES = (
    Linear(0.3, 0.15, 1000),
    Cosine(0.05, 0.65, 997),
    Piecewise(((10, 0.2), (50, 0.7), (51, 0.1), (2000, 0.3))),
    Piecewise(((0, 0.25),)),
)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_a_schedule_has_the_same_bits_as_a_tensor(schedule):
    steps = [*range(60), 499, 500, 996, 997, 998, 1500, 10**9, 2**62]
    numbers = [schedule(step) for step in steps]
    assert schedule.at(torch.tensor(steps)).tolist() == numbers
    assert numbers[0] == schedule.values[0]
    assert numbers[-1] == schedule.values[-1]
    assert min(schedule.values) <= min(numbers) <= max(numbers) <= max(schedule.values)
    assert pickle.loads(pickle.dumps(schedule)) == schedule


@pytest.mark.parametrize("as_tensor", [False, True])
def test_masks_go_by_the_step(as_tensor):
    """At every step those of a masker with the rates of that step; the width is that of the largest p."""
    p, ratio = Linear(0.5, 0.1, 100), Cosine(0.0, 1.0, 80)
    masker = CorrMasker(GRAPH, mlm_probability=p, structural_ratio=ratio)
    for step in (0, 1, 37, 80, 100, 5000):
        masker.set_step(torch.tensor([step]) if as_tensor else step)
        fixed = CorrMasker(GRAPH, mlm_probability=p(step), structural_ratio=ratio(step))
        masked, expected = masker(ROWS, epoch=1), fixed(ROWS, epoch=1)
        assert torch.equal(masked.labels, expected.labels)
        assert masked.masked_positions.shape == (40, 50)
        assert masker.current_rates() == ((p(step), p(step)), (ratio(step), ratio(step)))
    assert masker.schedule_step.item() == 5000


def test_one_compiled_step_serves_all_steps():
    masker = SpanMasker(GENES, mlm_probability=Cosine(0.1, 0.5, 100), structural_ratio=Piecewise(((0, 1.0), (9, 0.5))))
    copied = copy.deepcopy(masker)
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    def step(ids, number):
        masker.set_step(number)
        return masker(ids, epoch=number).labels

    torch.compiler.reset()
    compiled = torch.compile(step, fullgraph=True, backend=backend)
    for number in (0, 1, 5, 50, 200):
        copied.set_step(number)
        assert torch.equal(compiled(ROWS, torch.tensor([number])), copied(ROWS, epoch=number).labels)
    assert len(graphs) == 1
    torch.compiler.reset()
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for number in (3, 4, 70):
        copied.set_step(number)
        assert torch.equal(compiled(ROWS, number), copied(ROWS, epoch=number).labels)


def test_a_step_without_schedules_changes_nothing():
    masker = CorrMasker(GRAPH, mlm_probability=(0.1, 0.2))
    before = masker(ROWS, epoch=0)
    masker.set_step(100)
    assert torch.equal(masker(ROWS, epoch=0).labels, before.labels)


class Cells(torch.utils.data.Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, index):
        return {"input_ids": list(range(2 + index, 102 + index))}


def test_a_collator_tells_running_workers_the_step():
    collator = DataCollatorForCorrMask(RandomMasker(GENES, mlm_probability=Linear(0.1, 0.5, 10)))
    loader = torch.utils.data.DataLoader(
        Cells(), batch_size=4, collate_fn=collator, num_workers=1, persistent_workers=True
    )
    collator.set_epoch(0)
    for step, masked in ((0, 10), (5, 30), (10, 50), (0, 10)):
        collator.set_step(step)
        assert [(batch["labels"] >= 0).sum(1).tolist() for batch in loader] == [[masked] * 4] * 2
    collator.set_step(10)
    assert (copy.deepcopy(collator)([Cells()[0]])["labels"] >= 0).sum() == 50
    assert (pickle.loads(pickle.dumps(collator))([Cells()[0]])["labels"] >= 0).sum() == 50


# ------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        (
            {"mlm_probability": Linear(0.2, 1.0, 5)},
            "mlm_probability must stay in (0, 1) at every step; Linear(start=0.2",
        ),
        ({"mlm_probability": Cosine(0.0, 0.4, 5)}, "reaches 0.0"),
        (
            {"structural_ratio": Piecewise(((0, 0.5), (9, 1.25)))},
            "structural_ratio must stay in [0, 1] at every step; ",
        ),
        ({"structural_ratio": Linear(-0.5, 1, 5)}, "reaches -0.5"),
        ({"mlm_probability": (0.3, 0.1)}, "a range of mlm_probability must rise; got (0.3, 0.1); give (0.1, 0.3)"),
        ({"mlm_probability": (0.0, 0.1)}, "each end of mlm_probability must be a number in (0, 1); got 0.0"),
        ({"structural_ratio": (0.5, 1.5)}, "each end of structural_ratio must be a number in [0, 1]; got 1.5"),
        ({"mlm_probability": (0.1, 0.2, 0.3)}, "a range of mlm_probability must be (low, high); got (0.1, 0.2, 0.3)"),
    ],
)
def test_rates_that_leave_their_interval(parameters, message):
    with pytest.raises(InputError) as error:
        CorrMasker(GRAPH, **parameters)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Linear(0.1, 0.2, 0), "steps must be an integer in [1, 9007199254740992]; got 0"),
        (lambda: Linear("a", 0.2, 5), "start must be a number"),
        (lambda: Cosine(0.1, float("inf"), 5), "end must be a number"),
        (lambda: Piecewise(()), "points must hold one (step, value) pair at least"),
        (lambda: Piecewise(((5, 0.1), (5, 0.2))), "the step of point 1 must be an integer >= 6; got 5"),
        (lambda: Piecewise(((0, "x"),)), "the value of point 0 must be a number"),
        (lambda: Piecewise((1, 2)), "points must be (step, value) pairs"),
        (lambda: Linear(0.1, 0.2, 5)(-1), "step must be an integer >= 0; got -1"),
        (lambda: RandomMasker(GENES).set_step(1.5), "step must be an integer in [0, "),
        (
            lambda: RandomMasker(GENES).set_step(torch.tensor([1.0])),
            "a step tensor must be one int64 on cpu; got torch.fl",
        ),
        (lambda: DataCollatorForCorrMask(RandomMasker(GENES)).set_step(-1), "step must be an integer in [0, "),
        (
            lambda: DataCollatorForCorrMask(RandomMasker(GENES, mlm_probability=(0.1, 0.2)), compat="geneformer"),
            "compat='geneformer' has one rate for all; got (0.1, 0.2)",
        ),
    ],
)
def test_schedules_that_are_none(make, message):
    with pytest.raises(InputError) as error:
        make()
    assert message in str(error.value)


@pytest.mark.parametrize(
    "text", ["", "much", "0.1..", "linear:0.1:0.2", "cosine:a:b:c", "piecewise:", "sine:1:2:3", "0.1:0.2"]
)
def test_text_that_is_no_rate(text):
    with pytest.raises(InputError, match=r"a rate must be a number, a range low..high|points must"):
        parse_rate(text)


def test_a_rate_that_rounds_up_to_a_column_more_has_room_for_it():
    masker = RandomMasker(make_vocabulary(30), mlm_probability=Linear(0.2999999999999, 0.1, 100))
    assert masker(torch.arange(2, 12)[None], epoch=0).masked_positions.shape == (1, 3)


SAID = [0.15, (0.1, 0.3), Linear(0.3, 0.15, 9), Cosine(0.1, 0.2, 9), Piecewise(((0, 0.5),))]
NUMPYS = [
    np.float64(0.15), [np.float64(0.1), np.float64(0.3)], Linear(np.float64(0.3), np.float64(0.15), np.int64(9)),
    Cosine(np.float64(0.1), np.float64(0.2), np.int32(9)), Piecewise(((np.int64(0), np.float64(0.5)),)),
]  # fmt: skip


@pytest.mark.parametrize(("rate", "numpys"), list(zip(SAID, NUMPYS, strict=True)))
def test_a_rate_is_read_as_it_was_said(rate, numpys):
    for given in (rate, numpys):
        assert parse_rate(str(rate_text(given))) == rate
        kept = RandomMasker(GENES, mlm_probability=given).mlm_probability  # what files and records of runs tell
        assert repr(kept) == repr(rate)


def test_a_schedule_that_text_cannot_name():
    class Mine(Linear):
        def formula(self, step, math_of):
            return 0.5 * super().formula(step, math_of)

    with pytest.raises(InputError, match=r"neither the file of a masker nor the command line .* \(Mine\); use Linear"):
        rate_text(Mine(0.3, 0.1, 10))


def test_a_schedule_of_ones_own():
    class Steps(Schedule):
        values = (0.2, 0.4)

        def formula(self, step, math_of):
            return 0.2 + 0.2 * math_of.unit(step - 9)

    masker = RandomMasker(GENES, mlm_probability=Steps())
    for step, n in ((0, 20), (9, 20), (10, 40)):
        masker.set_step(step)
        assert (masker(ROWS).labels >= 0).sum(1).tolist() == [n] * 40
    case = Case("own", GRAPH, ROWS.numpy())
    assert_same(case.expected(epoch=1, strategy="random", mlm_probability=0.4), masker(ROWS, epoch=1), "own schedule")
