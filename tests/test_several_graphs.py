"""Several graphs in one masker, chosen row by row; priorities in place of random words."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from corrmask_fast import (
    Corpus,
    CorpusDataset,
    CorrMasker,
    DataCollatorForCorrMask,
    DependencyGraph,
    InputError,
    RandomMasker,
)
from corrmask_fast.kernels.layout import CORRMASK, GIVEN, SAMPLED
from corrmask_fast.masking.base import Masker
from corrmask_fast.masking.engine import ops
from corrmask_fast.masking.engine.draws import priorities_of
from corrmask_fast.masking.engine.tables import no_table
from corrmask_fast.testing import Case, assert_same, cases, make_graph, make_vocabulary

GENES = make_vocabulary(200)
GRAPHS = [make_graph(GENES, degree=degree, seed=seed) for degree, seed in ((8, 1), (0, 2), (30, 3))]
PARAMETERS = {"mlm_probability": 0.4, "structural_ratio": 0.9, "seed": 6}
RNG = np.random.default_rng(1)
IDS = RNG.permuted(np.tile(np.arange(2, 202), (30, 1)), axis=1)[:, :120]
WHICH = RNG.integers(0, 3, 30)


def expected_rows(which, **parameters):
    """Each row as the oracle masks it with its own graph; a number that is none's is a row without neighbours."""
    nothing = DependencyGraph.from_edges([], GENES)
    parts = []
    for row, number in enumerate(which):
        graph = GRAPHS[number] if 0 <= number < 3 else nothing
        parts.append(Case("row", graph, IDS[row : row + 1]).expected(draw_ids=np.array([row]), **parameters))
    return type(parts[0])(*(np.concatenate(field) for field in zip(*parts, strict=True)))


@pytest.fixture(scope="module")
def masker():
    return CorrMasker(GRAPHS, **PARAMETERS)


def call(masker, which, **options):
    return masker(torch.from_numpy(IDS), draw_ids=torch.arange(30), graph_ids=torch.from_numpy(which), **options)


def test_each_row_goes_by_its_own_graph(masker):
    assert_same(expected_rows(WHICH, **PARAMETERS), call(masker, WHICH), "by graph")
    for number in range(3):
        alone = CorrMasker(GRAPHS[number], **PARAMETERS)(torch.from_numpy(IDS), draw_ids=torch.arange(30))
        assert_same(alone, call(masker, np.full(30, number)), f"graph {number}")
    ragged = masker.mask_ragged(np.arange(31) * 120, IDS.ravel(), draw_ids=np.arange(30), graph_ids=WHICH)
    assert_same(expected_rows(WHICH, **PARAMETERS), ragged, "ragged")


def test_the_op_and_compiled_functions_take_graphs(masker):
    torch.compiler.reset()
    compiled = torch.compile(masker, fullgraph=True, backend="aot_eager")
    assert_same(call(masker, WHICH), call(compiled, WHICH), "compiled")
    torch.library.opcheck(
        ops.mask,
        (torch.from_numpy(IDS), None, None, torch.arange(30), GIVEN, 0, torch.from_numpy(WHICH),
         torch.zeros(30, 120, dtype=torch.int64), True, *masker.fixed_arguments()),
    )  # fmt: skip


def test_a_number_that_is_none_is_a_row_without_graph_where_nothing_is_checked():
    unchecked = CorrMasker(GRAPHS, **PARAMETERS, validate=False)
    which = WHICH.copy()
    which[[0, 5, 7]] = -1, 3, 2**62
    assert_same(expected_rows(which, **PARAMETERS), call(unchecked, which), "unchecked")


def test_fingerprints_tell_the_graphs_and_their_order():
    prints = {bytes(CorrMasker(graphs).table_fingerprint.tolist()) for graphs in (GRAPHS, GRAPHS[::-1], GRAPHS[:1])}
    assert len(prints) == 3
    assert bytes(CorrMasker(GRAPHS[:1]).table_fingerprint.tolist()).hex() == GRAPHS[0].fingerprint
    assert "in 3 graphs" in repr(CorrMasker(GRAPHS))


@pytest.fixture(scope="module")
def corpus():
    tissues = np.array(["lung", "liver", "blood"])[WHICH]
    return Corpus(np.arange(31) * 120, IDS.ravel(), GENES, obs={"tissue": tissues, "number": WHICH})


def test_a_collator_chooses_by_a_column(masker, corpus):
    names = {"lung": 0, "liver": 1, "blood": 2}
    expected = masker.mask_ragged(np.arange(31) * 120, IDS.ravel(), epoch=2, graph_ids=WHICH).labels
    for column, numbers in (("tissue", names), ("number", None)):
        collator = DataCollatorForCorrMask(masker, graph_column=column, graph_numbers=numbers)
        collator.set_epoch(2)
        dataset = CorpusDataset(corpus, columns=(column,))
        batches = [
            dataset.__getitems__(range(30)),
            list(dataset.__getitems__(range(30))),  # as Trainer hands them on
            [{"input_ids": row, column: corpus.obs[column][i]} for i, row in enumerate(IDS)],
            {"input_ids": list(IDS), column: corpus.obs[column]},
        ]
        for batch in batches:
            assert np.array_equal(collator(batch)["labels"].numpy(), expected)
    loader = torch.utils.data.DataLoader(dataset, batch_size=7, collate_fn=collator)
    assert np.array_equal(np.concatenate([batch["labels"] for batch in loader]), expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "this masker has 3 graphs; give graph_ids"),
        ({"graph_ids": torch.full((30,), 3)}, "graph_ids[0] must be in [0, 3), the graphs of this masker; got 3"),
        ({"graph_ids": torch.arange(30) - 1}, "graph_ids[0] must be in [0, 3), the graphs of this masker; got -1"),
        (
            {"graph_ids": torch.zeros(29, dtype=torch.int64)},
            "graph_ids must be (30,) int64 on cpu; got (29,) torch.int64",
        ),
        ({"graph_ids": torch.zeros(30)}, "got (30,) torch.float32"),
        (
            {"graph_ids": torch.zeros(30, dtype=torch.int64), "priorities": torch.zeros(30, 3)},
            "priorities must be (30, 120)",
        ),
        (
            {"graph_ids": torch.zeros(30, dtype=torch.int64), "priorities": torch.full((30, 120), 2**32)},
            "priorities must be in [0, 4294967296); got 4294967296 in row 0, column 0",
        ),
        (
            {"graph_ids": torch.zeros(30, dtype=torch.int64), "priorities": -torch.eye(30, 120, dtype=torch.int64)},
            "priorities must be in [0, 4294967296); got -1 in row 0, column 0",
        ),
    ],
)
def test_row_numbers_that_do_not_fit(masker, options, message):
    with pytest.raises(InputError) as error:
        masker(torch.from_numpy(IDS), epoch=0, **options)
    assert message in str(error.value)


def test_graphs_that_cannot_be_chosen(masker, corpus):
    ragged = np.arange(31) * 120, IDS.ravel()
    with pytest.raises(InputError, match="this masker has 3 graphs; give graph_ids"):
        masker.mask_ragged(*ragged, epoch=0)
    with pytest.raises(InputError, match=r"graph_ids\[4\] must be in \[0, 3\)"):
        masker.mask_ragged(*ragged, epoch=0, graph_ids=np.where(np.arange(30) == 4, 9, 0))
    with pytest.raises(InputError, match="graph_ids have no meaning for a masker without graphs"):
        RandomMasker(GENES)(torch.from_numpy(IDS), epoch=0, graph_ids=torch.zeros(30, dtype=torch.int64))
    with pytest.raises(InputError, match=r"graph 0 .*graph 2"):
        CorrMasker([*GRAPHS[:2], make_graph(make_vocabulary(201))])
    with pytest.raises(InputError, match="CorrMasker needs one graph at least"):
        CorrMasker([])
    with pytest.raises(InputError, match="the masker has 3 graphs; give graph_column"):
        DataCollatorForCorrMask(masker)
    with pytest.raises(InputError, match="graph_column='tissue' chooses among graphs, and this masker has none"):
        DataCollatorForCorrMask(RandomMasker(GENES), graph_column="tissue")
    with pytest.raises(InputError, match=r"the graph's number of 'x' must be an integer in \[0, 2\]; got 3"):
        DataCollatorForCorrMask(masker, graph_column="tissue", graph_numbers={"x": 3})
    with pytest.raises(InputError, match="the corpus has no obs column 'organ'; it has 'tissue', 'number'"):
        CorpusDataset(corpus, columns=("organ",))
    collator = DataCollatorForCorrMask(masker, graph_column="tissue", graph_numbers={"lung": 0})
    with pytest.raises(InputError, match=r"the batch has no column 'tissue'; make CorpusDataset\(corpus, columns="):
        collator(CorpusDataset(corpus).__getitems__([0]))
    with pytest.raises(InputError, match="feature 0 has no 'tissue'"):
        collator([{"input_ids": [2, 3]}])
    with pytest.raises(InputError, match="'tissue' of row 1 must be one of 'lung'; got 'skin'"):
        collator([{"input_ids": [2, 3], "tissue": "lung"}, {"input_ids": [2, 3], "tissue": "skin"}])
    with pytest.raises(InputError, match="'tissue' must hold numbers of graphs; got 'lung'; graph_numbers="):
        DataCollatorForCorrMask(masker, graph_column="tissue")([{"input_ids": [2, 3], "tissue": "lung"}])


# ------------------------------------------------------------------------------------------------------ priorities

CASES = [case for case in cases() if case.known]


def sampled(vocabulary, **parameters):
    own = {"mask_replace_prob": 0.8, "random_replace_prob": 0.1, "seed": 0, "validate": None, "mlm_probability": 0.15}
    return Masker(vocabulary, SAMPLED, no_table(vocabulary), structural_ratio=0.0, **{**own, **parameters})


def tensors(case):
    arrays = (case.input_ids, case.attention_mask, case.special_tokens_mask)
    return tuple(None if array is None else torch.from_numpy(array.copy()) for array in arrays)


def test_the_columns_of_smallest_priority_are_masked():
    scores = torch.rand(30, 120, generator=torch.Generator().manual_seed(5))
    masked = sampled(GENES, mlm_probability=0.25)(torch.from_numpy(IDS), priorities=priorities_of(scores))
    top = scores.topk(30, dim=1).indices.sort(1).values
    assert torch.equal(masked.masked_positions, top)


def test_priorities_that_are_not_checked_count_by_their_lower_32_bits():
    """As on a device, which cannot raise: nothing else is read or written, whatever is given."""
    given = torch.randint(2**32, (30, 120), generator=torch.Generator().manual_seed(6))
    wide = given + 2**32 * torch.tensor([-(2**31), -1, 0, 5, 2**31 - 1]).repeat(24)
    for masker in (sampled(GENES, validate=False), CorrMasker(GRAPHS[0], validate=False)):
        expected = masker(torch.from_numpy(IDS), epoch=0, priorities=given)
        masked = masker(torch.from_numpy(IDS), epoch=0, priorities=wide)
        assert all(map(torch.equal, masked, expected))


def test_priorities_of_scores():
    scores = torch.tensor([[1.0, 3.0, 1.0, -torch.inf], [0.0, 0.0, 0.0, 0.0]])
    ranks = priorities_of(scores)
    assert ranks.argsort(1).tolist() == [[1, 0, 2, 3], [0, 1, 2, 3]]
    assert ranks.dtype == torch.int64
    assert ranks.max() < 2**32
    assert priorities_of(torch.empty(2, 0)).shape == (2, 0)


def test_a_masker_by_priorities_needs_them():
    masker = sampled(GENES)
    with pytest.raises(InputError, match="this masker takes the columns of smallest priority; give priorities"):
        masker(torch.from_numpy(IDS), epoch=0)
    with pytest.raises(InputError, match="ragged rows have no priorities"):
        masker.mask_ragged(np.array([0, 3]), np.arange(2, 5), epoch=0)
    assert CORRMASK != SAMPLED
