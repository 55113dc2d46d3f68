"""Models and cells that do or do not fit each other, under CorrMaskTrainer and under the callback."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from corrmask_fast import CorpusDataset, CorrMasker, DataCollatorForCorrMask, InputError, Vocabulary, read_corpus
from corrmask_fast.testing import make_graph

transformers = pytest.importorskip("transformers", minversion="4.46")
pytest.importorskip("accelerate")

from trainers import (
    CELLS,
    DATASET,
    FIT,
    GRAPH,
    MASKER,
    NO_DROPOUT,
    VOCABULARY,
    OurTrainer,
    StockTrainer,
    assert_masked_as_in,
    make_arguments,
    make_kind,
    make_model,
    our_trainer,
)

from corrmask_fast.training import callback
from corrmask_fast.training import trainer as trainer_module
from corrmask_fast.training.checks import check_model
from corrmask_fast.training.trainer import CorrMaskCallback

pytestmark = pytest.mark.usefixtures("one_thread")

ROTARY = {"position_embedding_type": "rotary"}


def loss_by_hand(model, batch):
    """Mean of -log p of the right token at masked positions, in float64."""
    with torch.no_grad():
        logits = model.eval()(batch["input_ids"], batch["attention_mask"]).logits.double()
    masked = batch["labels"] >= 0
    return -torch.log_softmax(logits, -1)[masked, batch["labels"][masked]].mean().item()


@pytest.mark.parametrize("kind", FIT)
def test_models_that_fit_are_trained(tmp_path, kind):
    model = make_kind(kind, **FIT[kind] | NO_DROPOUT)
    before = copy.deepcopy(model)
    trainer = our_trainer(tmp_path, model, max_steps=1)
    trainer.train()
    (batch,), (loss,) = trainer.batches, trainer.losses
    assert (batch["labels"] >= 0).sum() > 5
    assert loss == pytest.approx(loss_by_hand(before, batch), rel=1e-5)
    assert loss_by_hand(model, batch) < loss - 0.01  # one step against its gradient


DO_NOT = [
    ("Roberta", {}, "takes token 1 for padding .* it is <mask>, and <pad> is 0; make the model with pad_token_id=0"),
    ("Camembert", {}, "takes token 1 for padding .* it is <mask>, and <pad> is 0"),
    ("Bert", {"pad_token_id": 7}, "takes token 7 for padding .* it is G5, and <pad> is 0"),
    ("Electra", {"pad_token_id": 61}, "takes token 61 for padding"),
    ("DistilBert", {"pad_token_id": 2}, "takes token 2 for padding"),
    ("ModernBert", {"pad_token_id": 3}, "takes token 3 for padding"),
    ("Esm", {"pad_token_id": 1, "mask_token_id": 32} | ROTARY, "takes token 1 for padding"),
    (
        "Esm",
        {"pad_token_id": 0, "mask_token_id": 32, "token_dropout": True} | ROTARY,
        "drops token 32 as its mask token, the vocabulary's <mask> is 1; make the model with mask_token_id=1",
    ),
    ("Bert", {"vocab_size": 40}, "the model knows 40 tokens, the masker's vocabulary has 62"),
    ("Bert", {"max_position_embeddings": 20}, "tokens, the model 20 positions; .* max_position_embeddings=24"),
    (
        "Roberta",
        {"pad_token_id": 0, "max_position_embeddings": 24},
        "has 24 tokens, the model 23 positions; .* max_position_embeddings=25",
    ),
]


@pytest.mark.parametrize(("kind", "options", "message"), DO_NOT, ids=[f"{k} {list(o)}" for k, o, _ in DO_NOT])
def test_models_that_do_not_fit_are_refused_before_the_first_step(tmp_path, kind, options, message):
    model = make_kind(kind, **options)
    with pytest.raises(InputError, match=message):
        our_trainer(tmp_path, model)
    collate = DataCollatorForCorrMask(MASKER)
    stock = StockTrainer(model, make_arguments(tmp_path), collate, DATASET, callbacks=[CorrMaskCallback(collate)])
    with pytest.raises(InputError, match=message):
        stock.train()
    assert not stock.losses


HARMLESS = [
    ("Esm", {"pad_token_id": 0, "mask_token_id": 32, "token_dropout": False}),  # no module reads it
    ("Esm", {"pad_token_id": 0, "mask_token_id": 1, "max_position_embeddings": 8} | ROTARY),
    ("ModernBert", {"pad_token_id": 0, "max_position_embeddings": 8}),
    ("Bert", {"pad_token_id": 62, "vocab_size": 64}),  # beside the vocabulary
    ("Bert", {"pad_token_id": None}),
    ("Roberta", {"pad_token_id": 0, "max_position_embeddings": 25}),  # 24 positions, the longest cell's
]


@pytest.mark.parametrize(("kind", "options"), HARMLESS, ids=[f"{k} {list(o.items())[-1]}" for k, o in HARMLESS])
def test_numbers_that_do_no_harm_are_left_alone(kind, options):
    check_model(make_kind(kind, **options), MASKER, DATASET)


def test_the_padding_of_any_vocabulary_counts():
    """scGPT's order: genes first, <pad> behind them. BERT's default would take the first gene for padding."""
    vocabulary = Vocabulary((*(f"G{i}" for i in range(60)), "<pad>", "<mask>"))
    masker = CorrMasker(make_graph(vocabulary), mlm_probability=0.3)
    with pytest.raises(InputError, match="it is G0, and <pad> is 60; make the model with pad_token_id=60"):
        check_model(make_kind("Bert"), masker, None)
    check_model(make_kind("Bert", pad_token_id=60), masker, None)


def test_a_folder_with_lengths_is_held_against_the_positions(tmp_path):
    datasets = pytest.importorskip("datasets")
    folder = datasets.Dataset.from_dict({"input_ids": CELLS, "length": [len(cell) for cell in CELLS]})
    with pytest.raises(InputError, match="tokens, the model 20 positions"):
        our_trainer(tmp_path, make_model(positions=20), folder)
    our_trainer(tmp_path, make_model(positions=24), folder)


# ---------------------------------------------------------------------------------------------- models of one's own


class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.out = nn.Embedding(62, 16), nn.Linear(16, 62)

    def forward(self, input_ids, attention_mask):
        hidden = self.embed(input_ids) * attention_mask[..., None]
        return self.out(hidden + hidden.mean(dim=1, keepdim=True))


class Blind(Own):
    def forward(self, tokens):
        return super().forward(tokens, tokens != 0)


class Wordless(Own):
    def forward(self, input_ids, attention_mask):
        return {"hidden": super().forward(input_ids, attention_mask)}


@pytest.mark.parametrize("masking", ["worker", "device"])
def test_a_module_of_ones_own(tmp_path, masking):
    trainer = our_trainer(tmp_path, Own(), masking=masking, max_steps=30, eval_dataset=DATASET)
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < before
    with pytest.raises(InputError, match=r"forward must take input_ids and attention_mask .* Blind's takes tokens"):
        our_trainer(tmp_path, Blind(), masking=masking)
    with pytest.raises(InputError, match=r"the model must return logits, .* it returned \['hidden'\]"):
        our_trainer(tmp_path, Wordless(), masking=masking).train()


# ------------------------------------------------------------------------------------------------ inputs beside tokens


class Listening(transformers.BertForMaskedLM):
    """Remembers what it was given beside tokens."""

    def forward(self, input_ids=None, attention_mask=None, token_type_ids=None, species=None, **kwargs):
        self.heard.append((token_type_ids, species, sorted(kwargs)))
        return super().forward(input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids)


def listening():
    torch.manual_seed(1)
    model = Listening(make_model().config)
    model.heard = []
    return model


@pytest.mark.parametrize("masking", ["worker", "device"])
def test_other_inputs_reach_the_model_and_unused_columns_do_not(tmp_path, masking):
    datasets = pytest.importorskip("datasets")
    types = [[k % 2 for k in range(len(cell))] for cell in CELLS]
    columns = {"input_ids": CELLS, "token_type_ids": types, "species": list(range(24)), "age": [0.5] * 24}
    folder = datasets.Dataset.from_dict(columns | {"length": [len(cell) for cell in CELLS], "cell_type": ["B"] * 24})
    corpus = read_corpus(CELLS, VOCABULARY)
    corpus.obs = {"species": np.arange(24), "age": np.full(24, 0.5)}
    for dataset, with_types in ((folder, True), (CorpusDataset(corpus, columns=("species", "age")), False)):
        model = listening()
        trainer = our_trainer(tmp_path, model, dataset, masking=masking, max_steps=6, eval_dataset=dataset)
        trainer.train()
        assert sorted(number for _, species, _ in model.heard for number in species.tolist()) == list(range(24))
        for (token_types, _, more), batch in zip(model.heard, trainer.batches, strict=True):
            assert not set(more) & {"age", "length", "cell_type"}
            assert (token_types is not None) == with_types
            if with_types:
                width = batch["input_ids"].shape[1]
                expected = torch.arange(width).remainder(2) * batch["attention_mask"]
                assert torch.equal(token_types, expected)
        del model.heard[:]
        trainer.evaluate()
        assert [number for _, species, _ in model.heard for number in species.tolist()] == list(range(24))


@pytest.mark.parametrize("masking", ["worker", "device"])
def test_columns_that_the_collator_needs_are_kept(tmp_path, masking):
    """Trainer removes columns that the model does not take; the graph's and protected tokens decide masks."""
    datasets = pytest.importorskip("datasets")
    masker = CorrMasker([GRAPH, make_graph(VOCABULARY, seed=1)], mlm_probability=0.3, seed=5)
    collate = DataCollatorForCorrMask(masker, graph_column="tissue", graph_numbers={"lung": 0, "blood": 1})
    folder = datasets.Dataset.from_dict({
        "input_ids": CELLS, "tissue": ["lung", "blood"] * 12, "length": [len(cell) for cell in CELLS],
        "special_tokens_mask": [[k < 3 for k in range(len(cell))] for cell in CELLS],
    })  # fmt: skip
    trainer = OurTrainer(
        make_model(), make_arguments(tmp_path, max_steps=6), data_collator=collate, train_dataset=folder,
        masking=masking,
    )  # fmt: skip
    trainer.train()
    hidden = torch.cat([(batch["labels"] != -100).sum(0)[:4] for batch in trainer.batches]).reshape(-1, 4).sum(0)
    assert hidden[:3].tolist() == [0, 0, 0]
    assert hidden[3] > 0
    for batch in trainer.batches:
        assert set(batch) == {"input_ids", "attention_mask", "labels"}


def test_a_dataset_is_checked_once_and_a_new_one_again(tmp_path, monkeypatch):
    checked = []
    for module in (callback, trainer_module):
        monkeypatch.setattr(module, "check_model", lambda _model, _masker, dataset: checked.append(dataset))
    trainer = our_trainer(tmp_path, max_steps=1)
    trainer.train()
    assert [dataset for dataset in checked if dataset is not None] == [DATASET]
    trainer.train_dataset = other = CorpusDataset(DATASET.corpus)
    trainer.train()
    assert checked[-1] is other


def test_masks_do_not_change_with_other_inputs(tmp_path):
    datasets = pytest.importorskip("datasets")
    types = [[1] * len(cell) for cell in CELLS]
    trainer = our_trainer(tmp_path, dataset=datasets.Dataset.from_dict({"input_ids": CELLS, "token_type_ids": types}))
    trainer.train()
    assert_masked_as_in(trainer.batches, 0)


class Valued(Own):
    def forward(self, input_ids, attention_mask, values):
        return super().forward(input_ids, attention_mask) + values.mean()


def test_cells_of_one_panel_have_masks_of_their_own_wherever_they_are_made(tmp_path):
    datasets = pytest.importorskip("datasets")
    values = np.random.default_rng(0).integers(0, 9, (24, 60)) / 2
    panel = datasets.Dataset.from_dict({"input_ids": [list(range(2, 62))] * 24, "values": values.tolist()})
    runs = []
    for masking in ("worker", "device"):
        trainer = our_trainer(tmp_path, Valued(), panel, masking=masking, max_steps=6, eval_dataset=panel)
        trainer.train()
        runs.append(trainer)
        assert len({tuple(row) for batch in trainer.batches for row in batch["labels"].tolist()}) == 24
    for one, other in zip(runs[0].batches, runs[1].batches, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)
    assert runs[0].losses == runs[1].losses
    assert runs[0].evaluate()["eval_loss"] == runs[1].evaluate()["eval_loss"]
