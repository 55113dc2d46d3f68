"""Parity: the kernels give the bits of the plain-Python oracle, through every door, however a batch is laid out."""

from __future__ import annotations

import dis
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from corrmask_fast import CorrMasker, DataCollatorForCorrMask, DependencyGraph, InputError, set_num_threads
from corrmask_fast.masking.engine import rows as masking_rows
from corrmask_fast.testing import (
    PARAMETERS,
    Case,
    assert_same,
    cases,
    draw_ids,
    long_cases,
    make_graph,
    make_vocabulary,
)

CASES, LONG_CASES = cases(), long_cases()


def tensors(case):
    """The case as the module takes it; tensors never share the case's memory."""
    arrays = (case.input_ids, case.attention_mask, case.special_tokens_mask)
    return tuple(None if array is None else torch.from_numpy(array.copy()) for array in arrays)


def make_masker(case, **parameters):
    return CorrMasker(case.graph, validate=None if case.known else False, **parameters)


def ragged(masker, case, **draw):
    """The whole rows, padding included, through the ragged door."""
    marks = {"attention_mask": case.attention_mask, "special_tokens_mask": case.special_tokens_mask}
    return masker.mask_ragged(
        np.arange(case.rows + 1) * case.columns,
        np.clip(case.input_ids, -(2**31), 2**31 - 1).reshape(-1),
        columns=case.columns,
        **{name: mask.reshape(-1) for name, mask in marks.items() if mask is not None},
        **draw,
    )


@pytest.mark.parametrize("case", [case for case in CASES if case.rows and case.known], ids=lambda case: case.name)
def test_the_collator_equals_the_oracle(case):
    collator = DataCollatorForCorrMask(CorrMasker(case.graph, mlm_probability=0.4), return_masked_positions=True)
    collator.set_epoch(5)
    names = ("input_ids", "attention_mask", "special_tokens_mask")
    features = [
        {name: array[row] for name, array in zip(names, (case.input_ids, case.attention_mask, case.special_tokens_mask),
                                                 strict=True) if array is not None}
        for row in range(case.rows)
    ]  # fmt: skip
    batch = collator(features)
    expected = case.expected(epoch=5, mlm_probability=0.4)
    for name in expected._fields:
        assert np.array_equal(batch[name].numpy(), getattr(expected, name)), name
    pad = case.graph.vocabulary.pad_token_id
    seen = case.input_ids != pad if case.attention_mask is None else case.attention_mask
    assert np.array_equal(batch["attention_mask"].numpy(), seen)


# ------------------------------------------------------------------------------------------------- made-up inputs

SMALL = make_vocabulary(14, v2=True)
TOKENS = st.one_of(st.integers(0, 17), st.integers(4, 17), st.integers(4, 8))


@st.composite
def made_cases(draw):
    """Any graph over fourteen genes, any rows, masks and parameters."""
    genes = st.integers(4, 17)
    pairs = draw(st.lists(st.tuples(genes, genes), max_size=40))
    columns, rows = draw(st.integers(0, 40)), draw(st.integers(1, 3))

    def table(elements):
        flat = draw(st.lists(elements, min_size=rows * columns, max_size=rows * columns))
        return np.array(flat, np.int64).reshape(rows, columns)

    bits = st.integers(0, 1)
    attention = table(bits).astype(np.uint8) if draw(st.booleans()) else None
    special = table(bits).astype(np.uint8) if draw(st.booleans()) else None
    case = Case("made up", DependencyGraph.from_edges(pairs, SMALL), table(TOKENS), attention, special)
    share = draw(st.floats(0, 1))
    parameters = {
        "mlm_probability": draw(st.floats(0, 1, exclude_min=True, exclude_max=True)),
        "structural_ratio": draw(st.one_of(st.sampled_from([0.0, 0.5, 1.0]), st.floats(0, 1))),
        "max_partners": draw(st.sampled_from([0, 1, 2, 5, 8, 9, 50])),
        "mask_replace_prob": share,
        "random_replace_prob": draw(st.floats(0, 1)) * (1 - share),
        "seed": draw(st.integers(0, 2**64 - 1)),
    }
    draws = draw(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=rows, max_size=rows))
    return case, parameters, np.array(draws, np.int64)


@given(made_cases())
@settings(max_examples=150, deadline=None, derandomize=True)
def test_made_up_rows_equal_the_oracle_to_the_bit(made):
    case, parameters, draws = made
    masker, expected = CorrMasker(case.graph, **parameters), case.expected(draw_ids=draws, **parameters)
    assert_same(expected, masker(*tensors(case), draw_ids=torch.from_numpy(draws)), "made up")
    epoch = int(draws[0]) % 2**63
    assert_same(case.expected(epoch=epoch, **parameters), ragged(masker, case, epoch=epoch), "made up, epoch")


# ------------------------------------------------------------------------------------- nothing but the row matters


@pytest.fixture(scope="module")
def cells():
    """Forty cells of 0 to 130 genes and a masker for them."""
    rng = np.random.default_rng(2)
    graph = make_graph(make_vocabulary(200), degree=10, seed=3)
    lengths = rng.integers(0, 131, 40)
    return [rng.choice(np.arange(2, 202), n, replace=False) for n in lengths], CorrMasker(graph, seed=4)


def padded(rows, *, left=0, width=None):
    """Rows as a tensor, each after ``left`` padding tokens."""
    width = left + max(map(len, rows)) if width is None else width
    out = np.zeros((len(rows), width), np.int64)
    for row, cell in enumerate(rows):
        out[row, left : left + len(cell)] = cell
    return torch.from_numpy(out)


def test_padding_changes_nothing(cells):
    rows, masker = cells
    right = masker(padded(rows, width=130), epoch=1)
    for left in (1, 63, 64, 65):
        shifted = masker(padded(rows, left=left, width=left + 150), epoch=1)
        assert torch.equal(shifted.input_ids[:, left : left + 130], right.input_ids)
        assert torch.equal(shifted.labels[:, left : left + 130], right.labels)
        for row in range(len(rows)):
            positions = shifted.masked_positions[row]
            wanted = right.masked_positions[row]
            assert torch.equal(positions[positions >= 0] - left, wanted[wanted >= 0])


@pytest.mark.parametrize("size", [1, 7, 39])
def test_the_split_into_batches_changes_nothing(cells, size):
    rows, masker = cells
    whole = padded(rows)
    draws = torch.from_numpy(draw_ids(len(rows)))
    for options in ([{"epoch": 2}] * 6, [{"draw_ids": part} for part in draws.split(size)]):
        parts = [masker(part, **option) for part, option in zip(whole.split(size), _repeat(options), strict=False)]
        masked = masker(whole, **({"epoch": 2} if "epoch" in options[0] else {"draw_ids": draws}))
        for field in ("input_ids", "labels", "masked_positions"):
            assert torch.equal(torch.cat([getattr(part, field) for part in parts]), getattr(masked, field))


def _repeat(options):
    return options if "draw_ids" in options[0] else options * 100


def test_the_order_of_rows_changes_nothing(cells):
    rows, masker = cells
    whole = padded(rows)
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(rows)))
    assert torch.equal(masker(whole[order], epoch=9).labels, masker(whole, epoch=9).labels[order])


def test_the_number_of_threads_changes_nothing(cells, monkeypatch):
    rows, masker = cells
    whole, draws = padded(rows), torch.from_numpy(draw_ids(len(rows)))
    monkeypatch.setattr(masking_rows, "MIN_TOKENS", 1)  # else so few rows stay on one thread
    monkeypatch.setattr(masking_rows, "MIN_TOKENS_OF_RANGE", 1)
    results = []
    try:
        for threads in (1, 2, 3, 64):
            set_num_threads(threads)
            results.append([*masker(whole, draw_ids=draws), *masker(whole, epoch=1)])
    finally:
        set_num_threads(None)
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))


def test_an_unknown_token_is_named_whatever_the_threads(cells, monkeypatch):
    rows, masker = cells
    whole = padded(rows)
    whole[17, 4], whole[30, 2] = 202, -5
    monkeypatch.setattr(masking_rows, "MIN_TOKENS", 1)
    monkeypatch.setattr(masking_rows, "MIN_TOKENS_OF_RANGE", 1)
    try:
        for threads in (1, 3):
            set_num_threads(threads)
            with pytest.raises(InputError, match=r"token 202 in row 17, column 4 must be in \[0, 202\)"):
                masker(whole, epoch=0)
    finally:
        set_num_threads(None)


def test_earlier_batches_leave_nothing_behind(cells):
    """The scratch memory of a thread is used again by batches of other widths, vocabularies and graphs."""
    rows, masker = cells
    other = make_masker(LONG_CASES[1])
    first = masker(padded(rows), epoch=0)
    for _ in range(3):
        other(*tensors(LONG_CASES[1]), epoch=0)
        CorrMasker(CASES[8].graph, structural_ratio=1.0)(*tensors(CASES[8]), epoch=0)
        assert torch.equal(masker(padded(rows[:5]), epoch=0).labels[:, : first.labels.shape[1]],
                           first.labels[:5, : padded(rows[:5]).shape[1]])  # fmt: skip
        assert torch.equal(masker(padded(rows), epoch=0).labels, first.labels)


def test_a_larger_vocabulary_before_does_not_widen_a_smaller_one():
    """Tokens after a small vocabulary must not be looked up in tables that a large one has left."""
    large = next(case for case in CASES if "70 000" in case.name)
    for case in CASES:
        if case.graph.vocabulary.size > 1000:
            continue
        size = case.graph.vocabulary.size
        tokens = case.input_ids.copy()
        tokens[:, ::3] = np.where(tokens[:, ::3] > 1, tokens[:, ::3] + size, tokens[:, ::3])
        strange = Case(case.name, case.graph, tokens, case.attention_mask, case.special_tokens_mask, known=False)
        make_masker(large)(*tensors(large), epoch=0)
        for parameters in (PARAMETERS[2], PARAMETERS[5]):
            masker, draws = make_masker(strange, **parameters), draw_ids(strange.rows)
            masked = masker(*tensors(strange), draw_ids=torch.from_numpy(draws))
            assert_same(strange.expected(draw_ids=draws, **parameters), masked, case.name)


@pytest.mark.parametrize("base", [2**16 - 2000, 2**16 - 1, 2**31 - 2000, 2**40])
def test_the_gene_table_starts_over_before_its_entries_overflow(cells, base):
    rows, masker = cells
    expected = masker(padded(rows), epoch=0)
    table_base, _, table = masking_rows._scratch.arrays[:3]
    table[:], table_base[0] = 0, base  # as after so many tokens
    for _ in range(60):  # some 150 000 tokens: 16-bit entries overflow on the way in any case
        assert torch.equal(masker(padded(rows), epoch=0).labels, expected.labels)
    assert table_base[0] < 2**16 + 130


def test_inputs_are_never_written_to():
    for case in CASES:
        if case.known:
            given_tensors = tensors(case)
            CorrMasker(case.graph, mlm_probability=0.9)(*given_tensors, epoch=1)
            for tensor, array in zip(given_tensors, tensors(case), strict=True):
                assert tensor is None or torch.equal(tensor, array)


def test_tensors_need_not_be_contiguous(cells):
    rows, masker = cells
    whole = padded(rows)
    attention = (whole != 0).to(torch.float32)
    expected = masker(whole, epoch=0)
    odd = masker(whole.T.contiguous().T, attention.T.contiguous().T, epoch=0)
    doubled = torch.stack([whole, whole], 2)[:, :, 0]
    assert torch.equal(odd.labels, expected.labels)
    assert odd.input_ids.is_contiguous()
    assert torch.equal(masker(doubled, attention.bool(), epoch=0).labels, expected.labels)
    one = whole[3:4].expand(5, -1)
    assert torch.equal(masker(one, epoch=0).labels, masker(one.contiguous(), epoch=0).labels)


def test_an_interrupt_leaves_the_next_masks_right(cells):
    """Python may deliver a signal right after a call (as of the kernel), before its result is stored."""
    rows, masker = cells
    batch = padded(rows[:6])
    expected = masker(batch, epoch=0).labels
    place = 0
    while interrupted_at(place, lambda: masker(batch, epoch=1)):
        assert torch.equal(masker(batch, epoch=0).labels, expected), f"after an interrupt at place {place}"
        place += 1
    assert place > 50


def interrupted_at(place, call):
    """Raise KeyboardInterrupt where the package stores, returns or drops a value for the ``place``-th time; did it?"""
    left = place

    def trace(frame, event, _):
        nonlocal left
        if "corrmask_fast" not in frame.f_code.co_filename:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode" and dis.opname[frame.f_code.co_code[frame.f_lasti]].startswith(("STORE", "RETURN", "POP")):
            left -= 1
            if left < 0:
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
    return False
