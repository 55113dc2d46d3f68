"""Cells of genes with values: transformed, drawn, hidden, padded and split, as SPEC 8 and its oracle have it."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from corrmask_fast import (
    CorrMasker,
    CorrMaskTrainer,
    DataCollatorForValues,
    InputError,
    PaddingCollator,
    RaggedBatch,
    RandomMasker,
    RankEncoder,
    ValueReplacement,
    Vocabulary,
    reference,
    set_num_threads,
)
from corrmask_fast.masking.engine.draws import epoch_salt
from corrmask_fast.reference_values import prepare_cell
from corrmask_fast.testing import make_graph, make_vocabulary

PLAIN = make_vocabulary(300)
WITH_CLS = Vocabulary(("<pad>", "<mask>", "<cls>", "<eos>", *(f"G{i}" for i in range(300))))
HIDDEN = {"mask_replace_prob": 1.0, "random_replace_prob": 0.0}


def make_masker(vocabulary=PLAIN, p=0.3, seed=5, **more):
    return RandomMasker(vocabulary, mlm_probability=p, seed=seed, **HIDDEN | more)


def make_cells(vocabulary, rng, sizes=(0, 1, 2, 40, 80, 200), zeros=0.2, kind="counts"):
    low, high = vocabulary.gene_range
    cells = []
    for n in sizes:
        values = rng.poisson(3, n) + 1.0 if kind == "counts" else rng.gamma(0.7, 9, n).astype(np.float32) + 0.01
        values = np.where(rng.random(n) < zeros, 0, values).astype(np.float32)
        cells.append({"input_ids": rng.permutation(np.arange(low, high))[:n], "values": values})
    return cells


def rows_of(batch, name="values"):
    return [row[mask != 0].tolist() for row, mask in zip(batch[name], batch["attention_mask"], strict=True)]


@pytest.mark.parametrize("vocabulary", [PLAIN, WITH_CLS], ids=["plain", "cls"])
@pytest.mark.parametrize("kind", ["counts", "fractions"])
@pytest.mark.parametrize(
    "options",
    [
        {"max_length": 50},
        {"max_length": 50, "sampling": False},
        {"transform": "log1p", "max_length": 50},
        {"transform": "log1p", "target_sum": None},
        {"transform": "bins"},
        {"transform": "bins", "max_length": 30, "n_bins": 8},
        {"transform": "bins", "bin_ties": "lower", "n_bins": 5},
        {"transform": "bins", "bin_ties": "upper", "integers": True, "pad_value": 7},
    ],
    ids=lambda options: ", ".join(f"{name}={value}" for name, value in options.items()),
)
def test_rows_are_those_of_the_oracle(vocabulary, kind, options):
    cells = make_cells(vocabulary, np.random.default_rng(len(options)), kind=kind)
    masker = make_masker(vocabulary)
    collator = DataCollatorForValues(ValueReplacement(masker, -1), **options)
    collator.set_epoch(3)
    batch = collator(cells)
    own = {name: options[name] for name in options if name not in {"integers", "pad_value"}}
    pad = options.get("pad_value", 0)
    ids, targets = rows_of(batch, "input_ids"), rows_of(batch, "targets")
    draws, low = [], vocabulary.gene_range[0]
    for i, cell in enumerate(cells):
        expected = prepare_cell(
            cell["input_ids"].tolist(), cell["values"].tolist(), genes=range(*vocabulary.gene_range), seed=5,
            salt=epoch_salt(3), cls=vocabulary.cls_token_id, **own,
        )  # fmt: skip
        values = [value if token >= low else pad for token, value in zip(*expected[:2], strict=True)]
        assert ids[i] == expected.tokens
        if options.get("transform") == "log1p":
            np.testing.assert_allclose(targets[i], values, rtol=3e-7)
        else:
            assert targets[i] == values
        draws.append(expected.draw_id)
    # Hidden are the columns that the masker chooses by these draws, on the padded batch.
    masked = masker(
        batch["input_ids"],
        batch["attention_mask"],
        draw_ids=torch.from_numpy(np.array(draws, np.uint64).view(np.int64)),
    )
    assert torch.equal(batch["masked"], masked.labels != -100)
    assert (batch["values"][batch["masked"]] == -1).all()
    assert torch.equal(batch["values"][~batch["masked"]], batch["targets"][~batch["masked"]])
    assert (batch["targets"][batch["attention_mask"] == 0] == pad).all()
    assert batch["masked"].any()


def test_the_oracle_by_hand():
    """Quantiles of 1 2 2 4 at 0, 1/2, 1 are 1, 2, 4: 2 lies on one edge, and 1 on the first."""
    cell = prepare_cell(
        [5, 6, 7, 8, 9], [1, 2, 2, 4, 0], genes=range(2, 10), seed=0, salt=0, transform="bins", n_bins=4
    )
    assert cell.values == [1, 2, 2, 3, 0]
    lower = prepare_cell(
        [5, 6, 7, 8, 9],
        [1, 2, 2, 4, 0],
        genes=range(2, 10),
        seed=0,
        salt=0,
        transform="bins",
        n_bins=4,
        bin_ties="lower",
    )
    assert lower.values == [0, 1, 1, 2, 0]
    scaled = prepare_cell([5, 1, 6], [1, 99, 3], genes=range(2, 10), seed=0, salt=0, transform="log1p", target_sum=4)
    np.testing.assert_allclose(scaled.values, [np.log(2), 0, np.log(4)])
    assert scaled.raw == [1, 0, 3]


def test_bins_are_those_of_numpy_and_torch():
    """scGPT digitises by np.quantile and np.digitize, Tahoe-x1 by torch.bucketize."""
    rng = np.random.default_rng(1)
    low, high = PLAIN.gene_range
    values = rng.choice([0, 1, 2, 3, 7.5, 100], high - low, p=[0.3, 0.4, 0.1, 0.1, 0.05, 0.05]).astype(np.float32)
    edges = np.quantile(values[values > 0].astype(np.float64), np.linspace(0, 1, 50))
    found = {}
    for ties in ("lower", "upper", "spread"):
        collator = DataCollatorForValues(ValueReplacement(make_masker(), -1), transform="bins", bin_ties=ties)
        collator.set_epoch(0)
        found[ties] = collator([{"input_ids": np.arange(low, high), "values": values}])["targets"][0].numpy()
    positive = values > 0
    assert (found["upper"][positive] == np.digitize(values, edges)[positive]).all()
    bucket = torch.bucketize(torch.from_numpy(values).double(), torch.from_numpy(edges)).numpy()
    assert (found["lower"][positive] == bucket[positive]).all()
    assert (found["spread"][~positive] == 0).all()
    assert (found["spread"][positive] >= np.maximum(found["lower"], 1)[positive]).all()
    assert (found["spread"][positive] <= found["upper"][positive]).all()
    ones = found["spread"][values == 1]  # on many edges: any of their bins
    assert len(set(ones.tolist())) > 20
    assert ones.min() < 4
    assert ones.max() > found["upper"][values == 1][0] - 4


def test_edges_of_many_bins_are_those_of_numpy():
    """249 · (1 / 498) is below 249 / 498 = 1/2, so the edge lies just below the value in the middle."""
    values = np.arange(1, 32.0)
    edges = np.quantile(values, np.linspace(0, 1, 499))
    how = {"transform": "bins", "n_bins": 500, "bin_ties": "lower"}
    cell = {"input_ids": np.arange(31) + PLAIN.gene_range[0], "values": values}
    found = DataCollatorForValues(ValueReplacement(make_masker(), -1), **how)([cell])["targets"][0]
    oracle = prepare_cell(
        cell["input_ids"].tolist(), values.tolist(), genes=range(*PLAIN.gene_range), seed=0, salt=0, **how
    )
    assert found.tolist() == oracle.values == np.digitize(values, edges, right=True).tolist()


def test_a_draw_of_genes_is_even_and_new_in_each_epoch():
    low, high = PLAIN.gene_range
    cell = {"input_ids": np.arange(low, high), "values": np.ones(high - low)}
    collator = DataCollatorForValues(ValueReplacement(make_masker(), -1), max_length=60)
    kept = np.zeros(high - low)
    for epoch in range(400):
        collator.set_epoch(epoch)
        ids = collator([cell])["input_ids"][0].numpy()
        assert (np.diff(ids) > 0).all()  # in the order that they had
        kept[ids - low] += 1
    expected = 400 * 60 / 300
    assert np.abs(kept - expected).max() < 5 * np.sqrt(expected * (1 - 60 / 300))


def test_nothing_depends_on_batches_threads_and_workers():
    cells = make_cells(WITH_CLS, np.random.default_rng(0), sizes=(90,) * 70)
    collator = DataCollatorForValues.scgpt(make_masker(WITH_CLS), max_length=64, columns=("input_ids", "values"))
    collator.set_epoch(2)
    whole = collator(cells)
    for loader in (
        [collator([cell]) for cell in cells],
        DataLoader(cells, batch_size=9, collate_fn=collator, num_workers=2),
    ):
        for name in whole:
            assert torch.equal(torch.cat([batch[name] for batch in loader]), whole[name])
    again = pickle.loads(pickle.dumps(collator))(cells)
    set_num_threads(1)
    try:
        single = collator(cells)
    finally:
        set_num_threads(2)
    for name in whole:
        assert torch.equal(single[name], whole[name])
        assert torch.equal(again[name], whole[name])


def test_without_an_epoch_each_call_is_new():
    cells = make_cells(PLAIN, np.random.default_rng(0), sizes=(200,))
    collator = DataCollatorForValues(ValueReplacement(make_masker(), -1), max_length=50)
    assert not torch.equal(collator(cells)["input_ids"], collator(cells)["input_ids"])


def test_zeros_by_the_rules_of_value_replacement():
    """scFoundation: 30 % of the values and 3 % of the zeros, the same as ValueReplacement's with these draws."""
    rng = np.random.default_rng(4)
    low, high = PLAIN.gene_range
    cells = [{"input_ids": np.arange(low, high), "values": rng.poisson(0.5, high - low)} for _ in range(8)]
    collator = DataCollatorForValues.scfoundation(make_masker())
    collator.set_epoch(1)
    batch = collator(cells)
    draws = []
    for cell in cells:
        content = reference.row_content(
            dict(enumerate(cell["input_ids"].tolist())), dict(enumerate(cell["values"].tolist()))
        )
        draws.append(reference.mix(content + epoch_salt(1)))
    hide = ValueReplacement.scfoundation(make_masker())
    out = hide(
        batch["input_ids"], batch["targets"], draw_ids=torch.from_numpy(np.array(draws, np.uint64).view(np.int64))
    )
    assert torch.equal(out.values, batch["values"])
    assert torch.equal(out.masked, batch["masked"])
    zero = batch["targets"] == 0
    assert (batch["masked"] & zero).sum(dim=1).tolist() == [int(n * 0.03) for n in zero.sum(dim=1).tolist()]
    assert (batch["masked"] & ~zero).sum(dim=1).tolist() == [int(n * 0.3) for n in (~zero).sum(dim=1).tolist()]
    encoder_takes = (batch["targets"] > 0) & ~batch["masked"]
    assert not (encoder_takes & (batch["values"] == 102)).any()


def test_the_fields_of_scgpt():
    masker = CorrMasker(make_graph(WITH_CLS, degree=20), mlm_probability=0.4, seed=5, **HIDDEN)
    rng = np.random.default_rng(2)
    cells = [
        {"genes": cell["input_ids"].tolist(), "expressions": torch.from_numpy(cell["values"]), "batch_labels": 3}
        for cell in make_cells(WITH_CLS, rng, sizes=(200, 30))
    ]
    collator = DataCollatorForValues.scgpt(masker, max_length=100)
    collator.set_epoch(0)
    batch = collator(cells)
    assert list(batch) == ["gene", "expr", "masked_expr", "batch_labels"]
    assert batch["gene"].shape == (2, 100)
    assert (batch["gene"][:, 0] == WITH_CLS.cls_token_id).all()
    assert (batch["expr"][:, 0] == -2).all()
    assert batch["batch_labels"].tolist() == [3, 3]
    assert ((batch["masked_expr"] == -1).sum(dim=1)).tolist() == [39, 12]  # floor(99 · 0.4), floor(30 · 0.4)
    assert (batch["masked_expr"][1, 31:] == -2).all()
    split = DataCollatorForValues.scgpt(masker, split=True, max_length=100)
    split.set_epoch(0)
    parts = split(cells)
    shapes = {"pcpt_gene": (2, 61), "pcpt_expr": (2, 61), "gen_gene": (2, 39), "gen_expr_target": (2, 39)}
    assert {name: tuple(part.shape) for name, part in parts.items()} == shapes | {"batch_labels": (2,)}
    hidden = batch["masked_expr"] == -1
    for row in range(2):
        n = int(hidden[row].sum())
        assert parts["gen_gene"][row, :n].tolist() == batch["gene"][row][hidden[row]].tolist()
        assert parts["gen_expr_target"][row, :n].tolist() == batch["expr"][row][hidden[row]].tolist()
        assert (parts["gen_gene"][row, n:] == WITH_CLS.pad_token_id).all()
        given = (batch["gene"][row] != WITH_CLS.pad_token_id) & ~hidden[row]
        assert parts["pcpt_gene"][row, : int(given.sum())].tolist() == batch["gene"][row][given].tolist()
        assert (parts["pcpt_expr"][row, int(given.sum()) :] == -2).all()


def test_scgpt_in_categories_for_embeddings():
    cells = make_cells(PLAIN, np.random.default_rng(2), sizes=(100, 60))
    collator = DataCollatorForValues.scgpt(make_masker(), category=True, columns=("input_ids", "values"))
    collator.set_epoch(0)
    batch = collator(cells)
    assert batch["masked_expr"].dtype == torch.int64
    assert set(batch["masked_expr"].unique().tolist()) <= {*range(53)}
    assert (batch["masked_expr"] == 52).sum(dim=1).tolist() == [30, 18]
    assert (batch["expr"][1, 60:] == 51).all()


def test_the_fields_of_tahoe_have_raw_values():
    cells = [
        {"genes": c["input_ids"], "expressions": c["values"], "drug_ids": 4}
        for c in make_cells(PLAIN, np.random.default_rng(2), sizes=(100,))
    ]
    batch = DataCollatorForValues.tahoe(make_masker())(cells)
    assert set(batch) == {
        "pcpt_gene", "pcpt_expr", "pcpt_expr_raw", "gen_gene", "gen_expr_target", "gen_expr_raw", "drug_ids"
    }  # fmt: skip
    value = dict(zip(cells[0]["genes"].tolist(), cells[0]["expressions"].tolist(), strict=True))
    for part in ("pcpt", "gen"):
        genes, raw = batch[f"{part}_gene"][0].tolist(), batch[f"{part}_expr_raw"][0].tolist()
        assert raw == [value[gene] for gene in genes]


def test_genecompass_hides_ids_and_values_together():
    masker = RandomMasker(PLAIN, mlm_probability=0.5, mask_replace_prob=0.8, random_replace_prob=0.1, seed=1)
    cells = [{**cell, "species": 0} for cell in make_cells(PLAIN, np.random.default_rng(2), sizes=(200,) * 20, zeros=0)]
    collator = DataCollatorForValues.genecompass(masker)
    collator.set_epoch(0)
    batch = collator(cells)
    assert set(batch) == {"input_ids", "values", "attention_mask", "labels", "labels_values", "species"}
    ids = torch.from_numpy(np.stack([cell["input_ids"] for cell in cells]))
    chosen = batch["labels"] != -100
    assert chosen.sum(dim=1).tolist() == [100] * 20
    assert torch.equal(batch["labels"][chosen], ids[chosen])
    replaced = batch["input_ids"] != ids
    assert torch.equal(batch["values"] == -1, replaced)
    assert (replaced & ~chosen).sum() == 0
    assert 0.85 < replaced.sum() / chosen.sum() < 0.95
    assert (batch["input_ids"][chosen] == PLAIN.mask_token_id).float().mean() > 0.75
    assert torch.equal(batch["labels_values"], torch.from_numpy(np.stack([cell["values"] for cell in cells])))


def test_scbert_has_a_column_that_no_gene_has():
    bins = torch.randint(0, 6, (3, 301))
    bins[:, 300] = 0
    hide = ValueReplacement.scbert(make_masker(p=0.15), appended=True)
    out = hide(torch.arange(*PLAIN.gene_range), bins, epoch=0)
    assert out.values.shape == (3, 301)
    assert not out.masked[:, 300].any()
    plain = ValueReplacement.scbert(make_masker(p=0.15))(torch.arange(*PLAIN.gene_range), bins[:, :300], epoch=0)
    assert torch.equal(out.masked[:, :300], plain.masked)


def test_straight_from_counts():
    names = [f"G{i}" for i in range(300)]
    counts = np.random.default_rng(0).poisson(0.3, (6, 300))
    encoder = RankEncoder(WITH_CLS, None, names)
    cells = encoder(counts, values=True)
    assert [dict(zip(c["input_ids"].tolist(), c["values"].tolist(), strict=True)) for c in cells] == [
        {4 + column: float(n) for column, n in enumerate(row) if n} for row in counts.tolist()
    ]
    assert all((np.diff(cell["values"]) <= 0).all() for cell in cells)  # without medians, by falling count
    collator = DataCollatorForValues.scgpt(make_masker(WITH_CLS), encoder=encoder, max_length=40)
    collator.set_epoch(0)
    got = collator(counts)
    as_lists = DataCollatorForValues.scgpt(make_masker(WITH_CLS), max_length=40, columns=("input_ids", "values"))
    as_lists.set_epoch(0)
    want = as_lists([dict(cell) for cell in cells])
    assert all(torch.equal(got[name], want[name]) for name in want)


@pytest.mark.parametrize(
    ("cell", "options", "message"),
    [
        ({"values": [1.0, 2]}, {}, r"values of row 1 must have one number for each of its 3 input_ids; got \(2,\)"),
        ({"values": [1.0, np.nan, 2]}, {}, "the value in row 1, column 1 must be finite; got nan; give 0"),
        ({"values": [1.0, np.inf, 2]}, {"transform": "bins"}, "column 1 must be finite and >= 0; got inf"),
        ({"values": [1.0, 2, -3]}, {"transform": "log1p"}, r"column 2 must be finite and >= 0; got -3\.0"),
        ({"values": ["a", "b", "c"]}, {}, "values of row 1 must be numbers"),
        ({}, {}, "feature 1 has no 'values'; it has 'input_ids'"),
        ({"values": [1.0, 2, 3], "noise": [1, 2, 3]}, {}, "'noise' has a value for each gene"),
        ({"input_ids": [4, 5, 999], "values": [1.0, 2, 3]}, {}, "token 999 in row 1"),
        ({"input_ids": [4, 5, 999], "values": [1.0, 2, 3]}, {"max_length": 2}, "token 999 in row 1, column 2"),
        ({"input_ids": [999] * 3, "values": [1.0] * 3}, {"max_length": 2}, "token 999 in row 1, column 0"),
        (
            {"input_ids": [4, 5, -1], "values": [1.0, 2, 3]},
            {"max_length": 2, "sampling": False},
            "token -1 in row 1, column 2",
        ),
        ({"input_ids": [0, 0, 1, 5], "values": [0, 0, 0, 1.0]}, {"max_length": 2}, "row 1 has 3 special tokens"),
        ({"input_ids": [0, 0, 1, 5], "values": [0, 0, 0, 1.0]}, {"max_length": 3}, "row 1 has 3 special tokens"),
        ({"values": [1.0, 0.5, 3]}, {"integers": True}, r"a whole number that int64 holds; row 1, column 1 has 0\.5"),
        ({"values": [1, 2, 2.0**63]}, {"integers": True}, "row 1, column 2 has 9"),
        ({"values": [1, 2, 1e39]}, {}, r"values of row 1 must be numbers that float32 holds; got 1e\+39"),
        ({"values": [1.0, 2, 3], "special_tokens_mask": [0, 0, 1]}, {}, "'special_tokens_mask' has a value for each"),
    ],
)  # fmt: skip
def test_what_is_no_cell_is_refused(cell, options, message):
    first = {"input_ids": [4], "values": [1.0]} | ({"noise": [2]} if "noise" in cell else {})
    collator = DataCollatorForValues(ValueReplacement(make_masker(), -1), **options)
    with pytest.raises(InputError, match=message):
        collator([first, {"input_ids": [4, 5, 6]} | cell])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"transform": "log"}, "transform must be one of None, 'log1p', 'bins'; got 'log'"),
        ({"bin_ties": "up"}, "bin_ties must be one of 'spread', 'lower', 'upper'; got 'up'"),
        ({"integers": True, "transform": "log1p"}, "integers=True cannot hold the values of transform='log1p'"),
        ({"integers": True, "pad_value": 0.5}, r"pad_value must be a number that torch.int64 holds.*; got 0\.5"),
        ({"pad_value": 1e300}, r"pad_value must be a number that torch.float32 holds.*; got 1e\+300"),
        ({"transform": "log1p", "target_sum": 1e300}, "target_sum must be a number in"),
        ({"fields": {"values": "x", "targets": "x"}}, "fields must have a name each"),
        ({"columns": ("genes",)}, "columns must be two names"),
        ({"encoder": "counts"}, "encoder must be a RankEncoder; got 'counts'"),
        ({"max_length": 1}, "max_length"),
        ({"n_bins": 2}, "n_bins"),
        ({"fields": {"gene": "x"}}, "fields must be of input_ids, attention_mask"),
        ({"fields": {"values": "x"}, "split": True}, "fields must be of given_ids"),
        ({"pad_value": np.nan}, "pad_value"),
    ],
)  # fmt: skip
def test_options_that_do_not_fit_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        DataCollatorForValues(ValueReplacement(make_masker(), -1), **options)


@pytest.mark.parametrize(
    ("indptr", "tokens", "values", "message"),
    [
        ([0, 3], [4, 5, 6], np.ones(1), "values must be one number for each of 3 tokens"),
        ([0, 8], [4, 5, 6], np.ones(3), r"indptr must rise from 0 to the number of tokens, 3; got \[0 8\]"),
        ([0, 3, 0], [4, 5, 6], np.ones(3), "indptr must rise from 0"),
        ([0, 3], [4, 5, 2**32 + 6], np.ones(3), "token 4294967302 in row 0, column 2"),
    ],
    ids=["values", "past the end", "falling", "beyond int32"],
)
def test_a_batch_made_by_hand_is_not_trusted(indptr, tokens, values, message):
    batch = RaggedBatch(np.array(indptr), np.array(tokens), values=values)
    with pytest.raises(InputError, match=message):
        DataCollatorForValues(ValueReplacement(make_masker(), -1))(batch)


def test_numbers_of_any_type_are_values():
    collator = DataCollatorForValues(ValueReplacement(make_masker(), -1))
    kinds = [getattr(torch, kind) for kind in ("bool", "uint8", "int64", "float16", "bfloat16", "float64")]
    batch = collator([{"input_ids": [4, 5], "values": torch.tensor([0, 1], dtype=kind)} for kind in kinds])
    assert batch["targets"].tolist() == [[0, 1]] * len(kinds)


def test_trainers_of_masked_ids_refuse_values():
    collator = DataCollatorForValues(ValueReplacement(make_masker(), -1))
    with pytest.raises(InputError, match="CorrMaskTrainer's loss is that of masked ids"):
        CorrMaskTrainer(torch.nn.Linear(1, 1), None, collator)
    with pytest.raises(InputError, match="hides values in the collator, not on the device"):
        PaddingCollator.like(collator)
    with pytest.raises(InputError, match="split=True hands out ids as they are"):
        DataCollatorForValues(ValueReplacement(make_masker(), -1, replace_ids=True), split=True)
    for integers, value in ((False, 0.1), (True, 1e30)):
        with pytest.raises(InputError, match="mask_value must be a number that torch"):
            DataCollatorForValues(ValueReplacement(make_masker(), value), integers=integers)


def test_what_does_not_fit_the_collator_is_refused():
    with pytest.raises(InputError, match="hide must be a ValueReplacement"):
        DataCollatorForValues(make_masker())
    with pytest.raises(InputError, match="graph_column needs a column beside the tokens, and counts bring none"):
        DataCollatorForValues(
            ValueReplacement(CorrMasker(make_graph(PLAIN, degree=3), **HIDDEN), -1),
            encoder=RankEncoder(PLAIN, None, [f"G{i}" for i in range(300)]),
            graph_column="tissue",
        )
    with pytest.raises(InputError, match="a padded batch keeps its ids"):
        ValueReplacement(make_masker(), -1, replace_ids=True)(torch.tensor([[4]]), torch.tensor([[1.0]]))
    with pytest.raises(InputError, match="zero_probability needs"):
        ValueReplacement(make_masker(), -1, nonzero_only=True, zero_probability=0.1, replace_ids=True)
    collator = DataCollatorForValues(ValueReplacement(make_masker(), -1))
    with pytest.raises(InputError, match="the batch has no values; make CorpusDataset"):
        collator(RankEncoder(PLAIN, None, [f"G{i}" for i in range(300)])(np.ones((1, 300))))
    with pytest.raises(InputError, match="return_tensors must be 'pt'"):
        collator([{"input_ids": [4], "values": [1.0]}], return_tensors="np")
