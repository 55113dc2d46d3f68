"""The stock Trainer with our collator, Geneformer's pretrainer, and masks as the stock path makes them."""

from __future__ import annotations

import collections.abc
import inspect
import pickle
from pathlib import Path

import pytest
import torch

from corrmask_fast import (
    CorpusDataset,
    CorrMasker,
    DataCollatorForCorrMask,
    InputError,
    RaggedBatch,
    read_corpus,
    write_corpus,
)
from corrmask_fast.masking import collator
from corrmask_fast.masking import features as features_module
from corrmask_fast.testing import make_graph, make_vocabulary

transformers = pytest.importorskip("transformers", minversion="4.46")
pytest.importorskip("accelerate")

from trainers import (
    CELLS,
    DATASET,
    MASKER,
    VOCABULARY,
    StockTrainer,
    assert_masked_as_in,
    cells_of,
    make_arguments,
    make_model,
    our_trainer,
)

from corrmask_fast.training.trainer import CorrMaskCallback

pytestmark = pytest.mark.usefixtures("one_thread")


class Watched(DataCollatorForCorrMask):
    """Knows what it was given."""

    def __call__(self, features):
        type(self).seen.append(features)
        return super().__call__(features)


@pytest.mark.parametrize("remove", [True, False])
def test_the_fast_path_survives_trainer(tmp_path, monkeypatch, remove):
    """Trainer hands the collator a list of rows; ours finds the buffers behind them, and whose they are."""
    monkeypatch.setattr(features_module, "concatenate", None)  # the slow path
    monkeypatch.setattr(Watched, "seen", [], raising=False)
    arguments = make_arguments(tmp_path, remove_unused_columns=remove)
    trainer = StockTrainer(make_model(), arguments, data_collator=Watched(MASKER), train_dataset=DATASET)
    trainer.train()
    assert len(trainer.losses) == 3
    assert all(type(features) is (list if remove else RaggedBatch) for features in Watched.seen)
    other = CorpusDataset(read_corpus(CELLS, make_vocabulary(61)))
    trainer = StockTrainer(make_model(), arguments, data_collator=Watched(MASKER), train_dataset=other)
    with pytest.raises(InputError, match="the corpus and the masker's graph have different vocabularies"):
        trainer.train()


def test_rows_that_are_no_whole_batch_are_taken_one_by_one():
    collate = DataCollatorForCorrMask(MASKER)
    collate.set_epoch(0)
    batch = DATASET.__getitems__(range(6))
    rows, other = list(batch), list(DATASET.__getitems__(range(6, 9)))
    whole = collate(batch)
    assert torch.equal(collate(rows)["input_ids"], whole["input_ids"])
    for picked in (rows[::-1], rows[:4], [rows[0], rows[0]], rows[:3] + other, [rows[2], {"input_ids": CELLS[0]}]):
        expected = collate([{"input_ids": row["input_ids"]} for row in picked])
        found = collate(picked)
        assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert pickle.loads(pickle.dumps(rows[1]))["input_ids"].tolist() == CELLS[1]


def test_the_callback_brings_the_epoch(tmp_path):
    collate = DataCollatorForCorrMask(MASKER)
    trainer = StockTrainer(
        make_model(), make_arguments(tmp_path, max_steps=15), data_collator=collate, train_dataset=DATASET,
        callbacks=[CorrMaskCallback(collate)],
    )  # fmt: skip
    trainer.train()
    assert len(trainer.batches) == 15
    for epoch, begin in enumerate((0, 6, 12)):
        assert_masked_as_in(trainer.batches[begin : begin + 6], epoch)


def test_a_run_of_the_stock_trainer_resumes(tmp_path):
    """Also where transformers saves NumPy's state as arrays and torch loads none: 4.46 with torch from 2.6 on."""

    def make():
        collate = DataCollatorForCorrMask(MASKER)
        arguments = make_arguments(tmp_path, max_steps=12, save_strategy="steps", save_steps=4)
        return StockTrainer(
            make_model(), arguments, data_collator=collate, train_dataset=DATASET, callbacks=[CorrMaskCallback(collate)]
        )

    make().train()
    resumed, admitted = make(), set(torch.serialization.get_safe_globals())
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert set(torch.serialization.get_safe_globals()) == admitted
    assert resumed.state.global_step == 12
    assert_masked_as_in(resumed.batches[:2], 0)
    assert_masked_as_in(resumed.batches[2:], 1)


@pytest.mark.parametrize("options", [{}, {"dataloader_num_workers": 2, "dataloader_persistent_workers": True}])
def test_running_workers_hear_of_the_epoch(tmp_path, options):
    trainer = our_trainer(tmp_path, max_steps=12, **options)
    trainer.train()
    assert_masked_as_in(trainer.batches[:6], 0)
    assert_masked_as_in(trainer.batches[6:], 1)
    assert sorted(cells_of(trainer.batches[:6])) == sorted(CELLS) == sorted(cells_of(trainer.batches[6:]))


class PretrainerLikeGeneformers(transformers.Trainer):
    """Geneformer's pretrainer in all that meets a collator: its arguments, its sampler's signature, its own seed."""

    def __init__(self, *args, **kwargs):
        given = kwargs.get("data_collator")
        self.token_dictionary = kwargs.pop("token_dictionary")
        assert given is not None
        self.example_lengths = pickle.loads(Path(kwargs.pop("example_lengths_file")).read_bytes())
        super().__init__(*args, **kwargs)

    def _get_train_sampler(self):
        if not isinstance(self.train_dataset, collections.abc.Sized):
            return None
        generator = torch.Generator()
        generator.manual_seed(int(torch.empty((), dtype=torch.int64).random_().item()))
        return torch.utils.data.RandomSampler(self.train_dataset, generator=generator)


def test_drops_into_geneformers_pretrainer(tmp_path):
    if "train_dataset" in inspect.signature(transformers.Trainer._get_train_sampler).parameters:
        pytest.skip("Geneformer's sampler has the signature of transformers 4.46, which this version does not call")
    datasets = pytest.importorskip("datasets")
    write_corpus(DATASET.corpus, tmp_path / "cells.dataset")
    (tmp_path / "lengths.pkl").write_bytes(pickle.dumps(DATASET.lengths.tolist()))  # as the how-to page has it
    arguments = make_arguments(tmp_path / "run", logging_steps=1, save_strategy="steps", save_steps=2)

    def make():
        collate = DataCollatorForCorrMask(MASKER)
        trainer = PretrainerLikeGeneformers(
            model=make_model(), args=arguments, data_collator=collate,
            train_dataset=datasets.load_from_disk(str(tmp_path / "cells.dataset")),
            token_dictionary={name: token for token, name in enumerate(VOCABULARY.names)},
            example_lengths_file=str(tmp_path / "lengths.pkl"), callbacks=[CorrMaskCallback(collate)],
        )  # fmt: skip
        assert trainer.data_collator is collate
        return trainer

    trainer = make()
    assert trainer.example_lengths == [len(cell) for cell in CELLS]
    trainer.train()
    make().train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 3
    assert all(3 < loss < 6 for loss in losses)  # log(62) = 4.1


def test_compat_masks_as_the_stock_path_does():
    """The same bits from the same state of torch's generator; <cls> and <eos> are masked, as they are today."""
    from corrmask_fast.masking.stock import stock_collator

    vocabulary = make_vocabulary(60, v2=True)
    masker = CorrMasker(make_graph(vocabulary), mlm_probability=0.3)
    dataset = CorpusDataset(read_corpus([[token + 2 for token in cell] for cell in CELLS], vocabulary))
    ours, stock = DataCollatorForCorrMask(masker, compat="geneformer"), stock_collator(vocabulary, mlm_probability=0.3)
    cells = [{"input_ids": row["input_ids"].tolist()} for row in dataset.__getitems__(range(24))]
    hidden = 0
    for features in (dataset.__getitems__(range(24)), cells):
        for seed in range(5):
            torch.manual_seed(seed)
            found = ours(features)
            torch.manual_seed(seed)
            expected = stock(cells)
            assert set(found) == set(expected)
            assert all(torch.equal(found[name], expected[name]) for name in found)
            hidden += (found["labels"] == 2).sum()
    assert hidden > 20  # <cls>
    with pytest.raises(InputError, match="compat must be None or 'geneformer'; got 'bert'"):
        DataCollatorForCorrMask(masker, compat="bert")
    with pytest.raises(InputError, match="it has no masked_positions"):
        DataCollatorForCorrMask(masker, compat="geneformer", return_masked_positions=True)


def test_padding_alone():
    pad = collator.PaddingCollator(VOCABULARY, pad_to_multiple_of=8)
    batch = pad(DATASET.__getitems__(range(5)))
    assert list(batch) == ["input_ids", "attention_mask"]
    assert batch["input_ids"].shape[1] % 8 == 0
    assert [row[: len(cell)].tolist() for row, cell in zip(batch["input_ids"], CELLS, strict=False)] == CELLS[:5]
    assert batch["attention_mask"].sum(1).tolist() == [len(cell) for cell in CELLS[:5]]
    marked = pad([{"input_ids": [4, 5, 6], "attention_mask": [1, 1, 0], "special_tokens_mask": [0, 1, 0]}])
    assert marked["attention_mask"].tolist() == [[1, 1, 0, 0, 0, 0, 0, 0]]
    assert marked["special_tokens_mask"].tolist() == [[0, 1, 0, 0, 0, 0, 0, 0]]
    assert pad([[], []])["input_ids"].shape == (2, 0)
    with pytest.raises(InputError, match="pad_to_multiple_of must be an integer >= 1"):
        collator.PaddingCollator(VOCABULARY, pad_to_multiple_of=0)
    other = CorpusDataset(read_corpus(CELLS, make_vocabulary(61)))
    with pytest.raises(InputError, match="have different vocabularies"):
        pad(other.__getitems__([0]))
