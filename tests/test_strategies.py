"""Every strategy: the kernels give the bits of the plain-Python oracle, through every door; names, files, bad input."""

from __future__ import annotations

import copy
import pickle
from fractions import Fraction

import numpy as np
import pytest
import torch

from corrmask_fast import (
    CorpusDataset,
    CorrMasker,
    DataCollatorForCorrMask,
    InputError,
    PMIMasker,
    PMITable,
    RandomMasker,
    SpanMasker,
    make_masker,
    read_corpus,
    reference,
)
from corrmask_fast.masking.strategies import STRATEGIES
from corrmask_fast.testing import (
    STRATEGY_PARAMETERS,
    cases,
    draw_ids,
    long_cases,
    make_graph,
    make_vocabulary,
)

CASES, LONG_CASES = cases(), long_cases()
GENES = make_vocabulary(60)


def tensors(case):
    arrays = (case.input_ids, case.attention_mask, case.special_tokens_mask)
    return tuple(None if array is None else torch.from_numpy(array.copy()) for array in arrays)


def test_the_table_of_pairs_reaches_the_masks():
    """The cases hold runs: else PMI would be tested as random masking."""
    for case in CASES:
        if case.name in {"any length", "repeated genes", "left padding", "special_tokens_mask"}:
            draws = draw_ids(case.rows)
            ours, random = (
                case.expected(draw_ids=draws, strategy=each, mlm_probability=0.4) for each in ("pmi", "random")
            )
            assert not np.array_equal(ours.labels, random.labels), case.name


@pytest.mark.parametrize("parameters", STRATEGY_PARAMETERS[::2], ids=str)
def test_the_collator_and_ragged_rows_equal_the_oracle(parameters):
    case = next(case for case in CASES if case.name == "any length")
    collator = DataCollatorForCorrMask(case.masker(**parameters), return_masked_positions=True)
    collator.set_epoch(5)
    batch = collator([{"input_ids": row[row > 0]} for row in case.input_ids])
    expected = case.expected(epoch=5, **parameters)
    for name in expected._fields:
        assert np.array_equal(batch[name].numpy(), getattr(expected, name)), name


def test_random_is_corrmask_with_nothing_through_the_graph():
    case = next(case for case in CASES if case.name == "any length")
    one = RandomMasker(case.graph.vocabulary, mlm_probability=0.4, seed=3)(*tensors(case), epoch=1)
    other = CorrMasker(case.graph, mlm_probability=0.4, seed=3, structural_ratio=0)(*tensors(case), epoch=1)
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_the_words_of_span_lengths():
    """The bounds in the kernels, against exact arithmetic."""
    from corrmask_fast.kernels.span import span_length

    for k in range(1, 10):
        bound = 2**32 * (1 - Fraction(4, 5) ** k) / (1 - Fraction(4, 5) ** 10)
        assert span_length(np.uint64(int(bound))) == k + 1
        assert span_length(np.uint64(int(bound) - 1)) == k
    assert (span_length(np.uint64(0)), span_length(np.uint64(2**32 - 1))) == (1, 10)


def test_spans_by_hand():
    """Spans skip what is not maskable, stop at the row's end, and are cut at the quota."""
    columns = {0: 5, 1: 6, 3: 7, 4: 8, 9: 9}
    long = {(1, 1): 2**32 - 1}  # at column 1, by the word of block 1
    groups = reference.span_groups(columns, lambda c: (-c, c), lambda c, block: (long.get((c, block), 0), 0, 0, 0))
    assert list(groups) == [[9], [4], [3], [1, 3, 4, 9], [0]]


def test_runs_by_hand():
    columns = {0: 5, 1: 6, 2: 7, 4: 8, 5: 9, 6: 5}
    pairs = {5: [6], 6: [7], 7: [8], 8: [9], 9: [4]}
    groups = list(reference.run_groups(columns, pairs, lambda c: (-c, c)))
    assert groups == [[4, 5], [0, 1, 2]]  # 7 and 8 are a pair, but not next to each other


def balanced_by_hand(words):
    """A star of 5 with 6, 7 and 8, a lone 9, and 6 again; w0 is −column: later columns come first."""
    columns = {0: 5, 1: 6, 2: 7, 4: 6, 5: 8, 6: 9}
    neighbors = {5: [6, 7, 8], 6: [5], 7: [5], 8: [5]}
    leaders = reference.module_leaders(columns, neighbors, by_column := lambda c: (-c, c))
    return reference.balanced_group(
        leaders, by_column, lambda column, block: (words.get((column, block), 2**31), 0, 0, 0)
    )


def test_modules_by_hand():
    """Column 5 leads the star's middle. Columns 1 and 2 come before the middle, and lead themselves, as 4 and 6 do."""
    start = {(2**32 - 3, 0): 0}
    # Leaders 1, 2, 4, 5 and 6 in this order, since their words are equal; the module of 5 is (5, 0).
    assert balanced_by_hand(start) == [1, 2, 4, 5, 0, 6]
    assert balanced_by_hand({**start, (6, 1): 0, (2, 1): 2**32 - 1}) == [6, 1, 4, 5, 0, 2]
    assert balanced_by_hand({(2**32 - 3, 0): 2**32 - 1}) == [6, 1, 2, 4, 5, 0]
    assert balanced_by_hand({(2**32 - 3, 0): 2**31}) == [5, 0, 6, 1, 2, 4]
    assert reference.balanced_group({}, lambda c: (c, c), lambda *_: (5, 0, 0, 0)) == []


def test_sets_by_hand():
    """Gene 6 stands twice; set 0 has one gene in the row, set 2 none of two; words put set 3 before 1."""
    columns = {0: 5, 1: 6, 2: 7, 4: 6, 5: 8, 6: 9}
    sets = {0: [9, 50], 1: [6, 8, 8, 60, 5], 2: [70, 71], 3: [7, 9], 4: [8, 5]}
    words = {1: 5, 3: 4, 4: 5, 0: 0, 2: 0}

    def draw(number, block):
        assert block == 2**32 - 2
        return words[number], 0, 0, 0

    # Later columns come first; 6 stands in column 1 first; sets 1 and 4 have the same word.
    assert list(reference.set_groups(columns, sets, lambda c: (-c, c), draw)) == [[6, 2], [5, 1, 0], [5, 0]]
    assert list(reference.set_groups({}, sets, lambda c: (-c, c), draw)) == []


def test_equal_words_of_leaders_are_settled_as_the_oracle_does():
    """Numba's circle alone: words of few values, modules of any size, cut at every place."""
    from corrmask_fast.kernels import balanced

    rng = np.random.default_rng(0)
    for width, values in ((1, 1), (70, 2), (200, 3), (300, 40)):
        room = -(-width // 64) * 64 + 64
        keys, order, counts = np.empty(room, np.uint64), np.empty(room, np.uint64), np.empty(64, np.uint32)
        w0, circle, lead = (np.zeros(room, np.uint32) for _ in range(3))
        w0[:width], lead[:width] = rng.integers(0, 9, width), rng.integers(0, width, width)
        circle[:width] = (rng.integers(0, values, width).astype(np.uint32) << 26)[lead[:width]]
        columns = np.flatnonzero(rng.random(width) < 0.8)
        pool, chosen = np.zeros(room // 64, np.uint64), np.zeros(room // 64, np.uint64)
        for c in columns:
            pool[c >> 6] |= np.uint64(1) << np.uint64(c & 63)
        expected = sorted(columns.tolist(), key=lambda c: (circle[c], lead[c], w0[c], c))
        for places in range(columns.size + 1):
            balanced.count_places(circle, pool, width, counts)
            balanced.take_places(circle, lead, w0, pool, width, counts, places, chosen, keys, order)
            got = [c for c in range(width) if chosen[c >> 6] >> np.uint64(c & 63) & np.uint64(1)]
            assert got == sorted(expected[:places]), (width, places)


def test_no_bucket_of_pairs_lies_in_two_cache_lines():
    masker = CASES[0].masker(strategy="pmi")
    for each in (masker, copy.deepcopy(masker), pickle.loads(pickle.dumps(masker))):
        assert each.neighbor_lookup.data_ptr() % 64 == 0


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_modules_travel_and_resume(strategy):
    case = next(case for case in CASES if case.name == "any length")
    masker = case.masker(strategy)
    first = masker(*tensors(case))
    for again in (copy.deepcopy(masker), pickle.loads(pickle.dumps(masker)), copy.deepcopy(masker).half()):
        assert torch.equal(again(*tensors(case)).labels, copy.deepcopy(masker)(*tensors(case)).labels)
    again = case.masker(strategy)
    again.load_state_dict(masker.state_dict())
    assert torch.equal(again(*tensors(case)).labels, masker(*tensors(case)).labels)
    assert first.labels.shape == case.input_ids.shape
    assert strategy.partition("-")[0] in type(masker).__name__.lower()


def test_a_resumed_run_needs_the_same_table():
    case = next(case for case in CASES if case.name == "any length")
    other = PMIMasker(case.pairs, npmi_min=0.3)
    other.load_state_dict(PMIMasker(case.pairs, npmi_min=0.2).state_dict())  # the same pairs pass
    with pytest.raises(InputError, match=r"the saved masker used PMI table .*; resume with the PMI table of the first"):
        PMIMasker(case.pairs, npmi_min=0.01).load_state_dict(other.state_dict())
    with pytest.raises(InputError, match="the saved masker used vocabulary"):
        RandomMasker(GENES).load_state_dict(RandomMasker(make_vocabulary(61)).state_dict())


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_compiled_whole(strategy):
    case = next(case for case in CASES if case.name == "any length")
    masker, draws = case.masker(strategy), torch.from_numpy(draw_ids(case.rows))
    torch.compiler.reset()
    compiled = torch.compile(lambda ids: masker(ids, draw_ids=draws), fullgraph=True, backend="aot_eager")
    ids = tensors(case)[0]
    assert torch.equal(compiled(ids).labels, masker(ids, draw_ids=draws).labels)


# ------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("strategy", "given", "message"),
    [
        (
            "spam",
            {},
            "corrmask-100, corrmask-balanced, gene-sets, mam, corrmask-mam, or your own as package.module:Name",
        ),
        ("corrmask", {"vocabulary": GENES}, "'corrmask' needs a dependency graph: give graph="),
        ("pmi", {"vocabulary": GENES}, "'pmi' needs a PMI table: give pmi="),
        ("span", {}, "'span' needs a vocabulary"),
        (
            "gene-sets",
            {"vocabulary": GENES},
            "'gene-sets' needs gene sets: give sets=the path of a .gmt file, or a map",
        ),
        ("gene-sets", {"sets": {"a": [2, 3]}}, "'gene-sets' needs a vocabulary: give vocabulary=Vocabulary.load(path)"),
        (
            "random",
            {"vocabulary": GENES, "structural_ratio": 0.5},
            "structural_ratio has no meaning for the strategy 'ran",
        ),
        ("span", {"vocabulary": GENES, "max_partners": 5}, "max_partners has no meaning for the strategy 'span'"),
        ("corrmask-100", {"graph": make_graph(GENES), "structural_ratio": 0.5}, "choose it freely with 'corrmask'"),
        (
            "span",
            {"vocabulary": GENES, "structural_ratio": 1.5},
            "structural_ratio must be a number in [0, 1]; got 1.5",
        ),
        ("random", {"vocabulary": make_vocabulary(9), "graph": make_graph(GENES)}, "the graph"),
    ],
)
def test_what_cannot_be_made(strategy, given, message):
    with pytest.raises(InputError) as error:
        make_masker(strategy, **given)
    assert message in str(error.value)


def test_a_table_of_another_vocabulary():
    pairs = CASES[0].pairs
    with pytest.raises(InputError, match=r"the graph .*the PMI table"):
        make_masker("pmi", graph=make_graph(GENES), pmi=pairs)
    corpus = read_corpus([[2, 3]], GENES)
    with pytest.raises(InputError, match=r"the corpus .*the masker's PMI table"):
        DataCollatorForCorrMask(PMIMasker(pairs))(CorpusDataset(corpus).__getitems__([0]))
    with pytest.raises(InputError, match=r"table must be a PMITable; got 'pmi.safetensors'; PMITable.load"):
        PMIMasker("pmi.safetensors")
    with pytest.raises(InputError, match="npmi_min must be a number"):
        PMIMasker(pairs, npmi_min="high")
    with pytest.raises(InputError, match="seed is fixed when a masker is made; make another SpanMasker with seed=3"):
        SpanMasker(GENES).seed = 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"indptr": np.zeros(5, np.int64)}, "indptr must have 203 entries"),
        ({"indices": np.array([2.0])}, "indices must be a one-dimensional integer array"),
        ({"npmi": np.full(1, np.nan)}, "npmi must hold one finite number for each of 1 pairs"),
        ({"counts": np.ones(2)}, "counts must hold one finite number"),
        ({"indices": np.array([0])}, "pairs must be of tokens in [2, 202); got the pair (5, 0), place 0"),
    ],
)
def test_tables_that_are_none(change, message):
    good = {
        "indptr": (np.arange(203) > 5).astype(np.int64),
        "indices": np.array([6]),
        "npmi": np.ones(1),
        "counts": np.ones(1, np.int64),
    }
    vocabulary = make_vocabulary(200)
    assert PMITable(**good, vocabulary=vocabulary).npmi_of(5, 6) == 1.0
    with pytest.raises(InputError) as error:
        PMITable(**{**good, **change}, vocabulary=vocabulary)
    assert message in str(error.value)
