"""What cells have beside their tokens: passed on as a model takes it, or refused, or named."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from corrmask_fast import (
    CorpusDataset,
    CorrMasker,
    DataCollatorForCorrMask,
    InputError,
    PaddingCollator,
    RandomMasker,
    read_corpus,
    reference,
)
from corrmask_fast.testing import make_graph, make_vocabulary

VOCABULARY = make_vocabulary(60)
MASKER = CorrMasker(make_graph(VOCABULARY), mlm_probability=0.3)
CELLS = [[4, 9, 6, 11, 30, 7], [5, 8], [20, 21, 22, 23]]


@pytest.fixture(params=["masks", "pads"])
def collator(request):
    if request.param == "pads":
        return PaddingCollator(VOCABULARY, pad_to_multiple_of=4)
    collator = DataCollatorForCorrMask(MASKER, pad_to_multiple_of=4)
    collator.set_epoch(0)
    return collator


def features(**columns):
    return [
        {"input_ids": cell, **{name: column[i] for name, column in columns.items()}} for i, cell in enumerate(CELLS)
    ]


FORMS = {
    "lists": list,
    "arrays": np.array,
    "tensors": torch.tensor,
    "narrow": lambda values: np.array(values, np.int8),
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_numbers_of_tokens_are_padded(collator, form):
    types = [[1, 0, 1, 1, 0, 1], [1, 1], [0, 1, 0, 1]]
    labels = [[3, 0, 0, 2, 1, 1], [7, 7], [0, 1, 2, 3]]
    given = features(token_type_ids=[form(row) for row in types], ner_labels=[form(row) for row in labels])
    batch = collator(given)
    assert batch["token_type_ids"].tolist() == [row + [0] * (8 - len(row)) for row in types]
    assert batch["ner_labels"].tolist() == [row + [-100] * (8 - len(row)) for row in labels]
    assert batch["token_type_ids"].dtype == batch["ner_labels"].dtype == torch.int64
    plain = collator([{"input_ids": cell} for cell in CELLS])
    assert all(torch.equal(batch[name], plain[name]) for name in plain)


def test_numbers_of_cells_and_arrays_of_one_shape(collator):
    batch = collator(
        features(
            species=[3, 0, 9],
            age=[1.5, 2, 3],
            healthy=[True, False, True],
            batch_number=[np.int8(3), np.int8(1), np.int8(2)],
            embedding=np.arange(15.0).reshape(3, 5),
            values=[torch.arange(len(cell)) / 2 for cell in CELLS],
            pairs=[[[k, -k] for k in range(len(cell))] for cell in CELLS],
        )
    )
    assert batch["species"].tolist() == [3, 0, 9]
    assert batch["age"].tolist() == [1.5, 2, 3]
    assert batch["healthy"].tolist() == [1, 0, 1]
    assert batch["batch_number"].dtype == batch["species"].dtype == batch["healthy"].dtype == torch.int64
    assert batch["age"].dtype == batch["embedding"].dtype == batch["values"].dtype == torch.float32
    assert batch["embedding"].tolist() == np.arange(15).reshape(3, 5).tolist()
    assert batch["values"][1].tolist() == [0, 0.5, 0, 0, 0, 0, 0, 0]
    assert batch["pairs"].shape == (3, 8, 2)
    assert batch["pairs"][1, :3].tolist() == [[0, 0], [1, -1], [0, 0]]


def test_a_batch_of_columns_and_a_corpus_pass_them_on_too(collator):
    columns = {
        "input_ids": CELLS,
        "length": [6, 2, 4],
        "species": [3, 0, 9],
        "token_type_ids": [[1] * 6, [1] * 2, [1] * 4],
    }
    batch = collator(columns)
    assert batch["species"].tolist() == [3, 0, 9]
    assert batch["token_type_ids"].sum(1).tolist() == [6, 2, 4]
    assert "length" not in batch
    corpus = read_corpus(CELLS, VOCABULARY)
    corpus.obs = {"species": np.array([3, 0, 9], np.int16), "age": np.array([0.5, 1, 2]), "unused": np.array(["a"] * 3)}
    dataset = CorpusDataset(corpus, columns=("species", "age"))
    for given in (dataset[[2, 0]], list(dataset[[2, 0]]), [dataset[2], dataset[0]]):
        batch = collator(given)
        assert batch["species"].tolist() == [9, 3]
        assert batch["age"].tolist() == [2.0, 0.5]
        assert batch["age"].dtype == torch.float32
        assert "unused" not in batch


def test_the_graphs_column_is_used_up():
    masker = CorrMasker([make_graph(VOCABULARY), make_graph(VOCABULARY, seed=1)], mlm_probability=0.3)
    corpus = read_corpus(CELLS, VOCABULARY)
    corpus.obs = {"tissue": np.array(["lung", "blood", "lung"]), "species": np.array([3, 0, 9])}
    collator = DataCollatorForCorrMask(masker, graph_column="tissue", graph_numbers={"lung": 0, "blood": 1})
    batch = collator(CorpusDataset(corpus, columns=("tissue", "species"))[:])
    assert list(batch) == ["input_ids", "attention_mask", "labels", "species"]
    padded = PaddingCollator.like(collator)(CorpusDataset(corpus, columns=("tissue", "species"))[:])
    assert padded["graph_ids"].tolist() == [0, 1, 0]
    assert "tissue" not in padded


PANEL = list(range(2, 62))


def panel_cells(n=40):
    values = np.random.default_rng(0).integers(0, 9, (n, 60)) / 2
    return [{"input_ids": PANEL, "values": row} for row in values.tolist()], values


def test_values_of_a_panel_are_a_part_of_the_cell():
    """All cells have the same tokens: by them alone, all would have one mask an epoch, and one a batch without."""
    cells, values = panel_cells()
    collator = DataCollatorForCorrMask(MASKER)
    fresh = collator(cells)["labels"]
    assert len({tuple(row) for row in fresh.tolist()}) == 40
    collator.set_epoch(3)
    labels = collator(cells)["labels"]
    assert len({tuple(row) for row in labels.tolist()}) == 40
    assert torch.equal(collator(cells[7:9])["labels"], labels[7:9])
    numbers = dict(enumerate(PANEL))
    for row in (0, 5):
        content = reference.row_content(numbers, dict(enumerate(values[row].tolist())))
        draw = reference.draw_id_of_epoch(content, 3)
        expected = MASKER(torch.tensor([PANEL]), draw_ids=torch.tensor([draw - 2**64 if draw >= 2**63 else draw]))
        assert torch.equal(labels[row], expected.labels[0])
    collator.pad_to_multiple_of = 64
    assert torch.equal(collator(cells)["labels"][:, :60], labels)
    two = [cell | {"more": [float(i)] * 60} for i, cell in enumerate(cells[:1] * 5)]
    assert len({tuple(row) for row in collator(two)["labels"].tolist()}) == 1  # "values" alone is a part of the cell


def test_other_numbers_change_no_mask(collator):
    given = features(token_type_ids=[[1] * len(cell) for cell in CELLS], species=[1, 2, 3], age=[0.5, 1.5, 2.5])
    plain, batch = collator(features()), collator(given)
    assert all(torch.equal(batch[name], plain[name]) for name in plain)


def test_what_is_no_number_is_left_out_by_name(collator):
    left_out = {"cell_type": ["B", "T", "B"], "donor": [1, None, 2], "when": np.array(["2020"] * 3, "datetime64[D]")}
    for name, column in left_out.items():
        with pytest.warns(UserWarning, match=f"'{name}' is left out of batches, for it is not a number in every cell"):
            batch = collator(features(**{name: column}))
        assert name not in batch
    uneven = features(species=[1, 2, 3])
    del uneven[1]["species"]
    with pytest.warns(UserWarning, match="'species' is left out"):
        collator(uneven)


def test_what_has_no_shape_or_another_meaning_is_refused(collator):
    with pytest.raises(
        InputError, match=r"'x' must be one number a cell, .* got the shapes \(2,\), \(3,\) beside 6, 2, 4"
    ):
        collator(features(x=[[1, 2], [1, 2, 3], [1, 2]]))
    with pytest.raises(InputError, match=r"'x' must be one number a cell"):
        collator(features(x=[[1] * 6, [1] * 3, [1] * 4]))
    for name in ("labels", "masked_positions", "graph_ids"):
        with pytest.raises(InputError, match=f"a feature is named '{name}', and the collator makes that one itself"):
            collator(features(**{name: [1, 2, 3]}))
    with pytest.raises(InputError, match="the columns of a batch must be of one length; got"):
        collator({"input_ids": CELLS, "species": [1, 2]})


def test_code_around_a_collator_finds_what_it_asks_for(collator, tmp_path):
    given = features()
    for kind in ("pt", None):
        assert torch.equal(collator(given, return_tensors=kind)["input_ids"], collator(given)["input_ids"])
    for kind in ("np", "tf", 1):
        with pytest.raises(InputError, match="batches are PyTorch tensors, return_tensors='pt'; got"):
            collator(given, return_tensors=kind)
    tokenizer = collator.tokenizer
    assert (tokenizer.pad_token_id, tokenizer.mask_token_id, len(tokenizer), tokenizer.vocab_size) == (0, 1, 62, 62)
    assert tokenizer.cls_token_id is None
    assert tokenizer.all_special_ids == [0, 1]
    tokenizer.save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_vector_of_a_cell_changes_no_mask_whatever_the_width_of_the_batch():
    collator = DataCollatorForCorrMask(RandomMasker(make_vocabulary(60), mlm_probability=0.5))
    collator.set_epoch(0)
    one, other = ({"input_ids": list(range(2, 2 + n)), "embedding": np.linspace(0, 1, 20)} for n in (20, 24))
    labels = collator([one])["labels"][0]
    assert torch.equal(collator([one, other])["labels"][0, :20], labels)
    assert torch.equal(collator([{"input_ids": one["input_ids"]}])["labels"][0], labels)
