"""Pretraining with Hugging Face's Trainer, whatever its version: .ci/floors runs this with the oldest."""

from __future__ import annotations

import json

import numpy as np
import pytest
import scipy.sparse
import torch

from corrmask_fast import (
    Corpus,
    CorpusDataset,
    CorrMasker,
    CountsDataset,
    DataCollatorForCorrMask,
    DataCollatorForCounts,
    InputError,
    Linear,
    PaddingCollator,
    RankEncoder,
    read_corpus,
    write_corpus,
)
from corrmask_fast.masking import collator
from corrmask_fast.testing import make_graph, make_vocabulary

transformers = pytest.importorskip("transformers", minversion="4.46")
pytest.importorskip("accelerate")

from trainers import (
    CELLS,
    DATASET,
    GRAPH,
    MASKER,
    VOCABULARY,
    OurTrainer,
    StockTrainer,
    StopAfter,
    assert_masked_as_in,
    cells_of,
    make_arguments,
    make_cells,
    make_model,
    our_trainer,
)

from corrmask_fast.training.sparse_head import BertForSparseMaskedLM
from corrmask_fast.training.trainer import EVALUATION_EPOCH, CorrMaskCallback, CorrMaskTrainer

pytestmark = pytest.mark.usefixtures("one_thread")


# ------------------------------------------------------------------------------------- where masking happens, and loss


@pytest.mark.parametrize("accumulated", [1, 3])
def test_masking_in_workers_and_on_the_device_train_alike(tmp_path, accumulated):
    runs = []
    for masking in ("worker", "device"):
        options = {"gradient_accumulation_steps": accumulated, "max_steps": 4}
        trainer = our_trainer(tmp_path, make_model(dropout=0.1), masking=masking, **options)
        trainer.train()
        assert_masked_as_in(trainer.batches[:6], 0)
        runs.append(trainer)
    worker, device = runs
    assert worker.losses == device.losses
    assert len(worker.losses) == 4 * accumulated
    assert all(torch.equal(a, b) for a, b in zip(worker.gradients, device.gradients, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(worker.model.parameters(), device.model.parameters(), strict=True))


@pytest.mark.parametrize("masking", ["worker", "device"])
def test_straight_from_counts_as_from_tokens_on_disk(tmp_path, masking):
    names = [VOCABULARY.names[token] for token in range(2, 62)]
    counts = np.random.default_rng(3).poisson(0.4, (24, 60)).astype(np.float32)
    encoder = RankEncoder(VOCABULARY, dict.fromkeys(names, 50.0), names)
    cells = encoder(counts)
    tokens = CorpusDataset(Corpus(cells.indptr, cells.tokens, VOCABULARY))
    runs = []
    for dataset, collate in (
        (tokens, DataCollatorForCorrMask(MASKER)),
        (CountsDataset(scipy.sparse.csr_matrix(counts)), DataCollatorForCounts(encoder, MASKER)),
    ):
        options = {"masker": MASKER, "data_collator": PaddingCollator.like(collate)} if masking == "device" else {}
        trainer = OurTrainer(
            make_model(positions=64), make_arguments(tmp_path), **{"data_collator": collate, **options},
            train_dataset=dataset, eval_dataset=dataset, masking=masking,
        )  # fmt: skip
        trainer.train()
        runs.append((trainer.losses, trainer.evaluate()["eval_loss"]))
    assert runs[0] == runs[1]


@pytest.mark.parametrize("masking", ["worker", "device"])
def test_accumulated_batches_are_one_large_batch(tmp_path, masking):
    """Also where they hold different numbers of masked tokens, which a mean of means would get wrong."""
    small = our_trainer(
        tmp_path, masking=masking, per_device_train_batch_size=2, gradient_accumulation_steps=4, max_steps=2
    )
    large = our_trainer(tmp_path, masking=masking, per_device_train_batch_size=8, max_steps=2)
    small.train()
    large.train()
    assert len({(batch["labels"] != -100).sum().item() for batch in small.batches}) > 2
    assert sorted(cells_of(small.batches[:4])) == sorted(cells_of(large.batches[:1]))
    for one, other in zip(small.gradients, large.gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(np.reshape(small.losses, (2, 4)).sum(1), large.losses, rtol=1e-5)
    for one, other in zip(small.model.parameters(), large.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("ours", [True, False])
def test_an_epoch_that_another_changes_is_refused(tmp_path, ours):
    """Six steps an epoch: in the second one, something sets the collator back."""
    collator = DataCollatorForCorrMask(MASKER)

    class Backwards(transformers.TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 8:
                collator.set_epoch(0)

    kind, more = (CorrMaskTrainer, []) if ours else (transformers.Trainer, [CorrMaskCallback(collator)])
    trainer = kind(
        make_model(), make_arguments(tmp_path, max_steps=12), data_collator=collator, train_dataset=DATASET,
        callbacks=[Backwards(), *more],
    )  # fmt: skip
    with pytest.raises(InputError, match=r"the collator's epoch is 0, and training is in epoch 1: another set_epoch"):
        trainer.train()
    assert trainer.state.global_step == 8


def test_the_loss_is_the_models_own(tmp_path):
    """One batch a step: the stock Trainer with BERT's own loss gives the same losses, gradients and reports."""
    ours, collate = our_trainer(tmp_path, logging_steps=1), DataCollatorForCorrMask(MASKER)

    class SameOrder(StockTrainer):
        def _get_train_sampler(self, *args):
            return ours._get_train_sampler()

    stock = SameOrder(
        make_model(), make_arguments(tmp_path, max_grad_norm=1e9, logging_steps=1), data_collator=collate,
        train_dataset=DATASET, callbacks=[CorrMaskCallback(collate)],
    )  # fmt: skip
    ours.train()
    stock.train()
    np.testing.assert_allclose(ours.losses, stock.losses, rtol=1e-6)
    for one, other in zip(ours.gradients, stock.gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    for trainer in (ours, stock):
        said = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        np.testing.assert_allclose(said, trainer.losses, rtol=1e-4)


@pytest.mark.parametrize("masking", ["worker", "device"])
def test_a_model_that_takes_masked_positions_gets_them(tmp_path, masking):
    stock = our_trainer(tmp_path, masking=masking, gradient_accumulation_steps=2, eval_dataset=DATASET)
    sparse = BertForSparseMaskedLM(make_model().config)
    sparse.load_state_dict(make_model().state_dict())
    ours = our_trainer(tmp_path, sparse, masking=masking, gradient_accumulation_steps=2, eval_dataset=DATASET)
    for trainer in (stock, ours):
        trainer.train()
    assert all("masked_positions" in batch for batch in ours.batches)
    assert not any("masked_positions" in batch for batch in stock.batches)
    np.testing.assert_allclose(ours.losses, stock.losses, rtol=1e-5)
    for one, other in zip(ours.gradients, stock.gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)
    assert ours.evaluate()["eval_loss"] == pytest.approx(stock.evaluate()["eval_loss"], rel=1e-5)


@pytest.mark.parametrize("masking", ["worker", "device"])
def test_cells_in_which_nothing_can_be_masked(tmp_path, masking):
    """floor(3 · 0.3) = 0: no loss, no gradient, no NaN; also where a batch among others is such."""
    short = CorpusDataset(read_corpus([[2, 3, 4], [5, 6], [7]] * 4, VOCABULARY))
    trainer = our_trainer(tmp_path, dataset=short, masking=masking, max_steps=2, weight_decay=0.0, eval_dataset=short)
    before = [parameter.clone() for parameter in trainer.model.parameters()]
    trainer.train()
    assert trainer.losses == [0.0, 0.0]
    assert all(torch.equal(a, b) for a, b in zip(before, trainer.model.parameters(), strict=True))
    assert np.isnan(trainer.evaluate()["eval_loss"])  # not 0, the best loss there is

    mixed = CorpusDataset(read_corpus([[2, 3, 4], *CELLS[:3]], VOCABULARY))
    options = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4, "max_steps": 1}
    trainer = our_trainer(tmp_path, dataset=mixed, masking=masking, **options)
    trainer.train()
    assert sum(loss == 0 for loss in trainer.losses) == 1
    assert torch.isfinite(trainer.gradients[0]).all()
    assert trainer.gradients[0].abs().max() > 0


@pytest.mark.parametrize("masking", ["worker", "device"])
def test_masks_of_evaluation_are_frozen(tmp_path, masking):
    held_out = CorpusDataset(read_corpus(make_cells(13, seed=9), VOCABULARY))
    options = {"max_steps": 12, "learning_rate": 0.0, "eval_strategy": "steps", "eval_steps": 4}
    trainer = our_trainer(tmp_path, masking=masking, eval_dataset=held_out, **options)
    seen = []
    inner = trainer.model.forward

    def forward(*args, **kwargs):
        if not trainer.model.training:
            seen.append({name: kwargs[name].clone() for name in ("input_ids", "attention_mask")})
        return inner(*args, **kwargs)

    trainer.model.forward = forward
    trainer.train()
    losses = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert len(losses) == 3
    assert len(set(losses)) == 1
    padded = [torch.tensor([cell + [0] * (24 - len(cell)) for cell in read_cells(held_out)])]
    expected = MASKER(padded[0], epoch=EVALUATION_EPOCH).input_ids
    rows = torch.cat(
        [torch.nn.functional.pad(batch["input_ids"], (0, 24 - batch["input_ids"].shape[1])) for batch in seen]
    )
    assert torch.equal(rows, torch.cat([expected] * 3))
    assert_masked_as_in(trainer.batches[6:], 1)  # evaluation did not touch the masks of training
    assert losses[0] == pytest.approx(trainer.evaluate()["eval_loss"])


def test_schedules_go_by_the_step_of_each_batch(tmp_path):
    """On the device; workers prepare batches ahead of the step, so there it is refused. A resume changes nothing."""
    masker = CorrMasker(GRAPH, mlm_probability=Linear(0.6, 0.2, 4), seed=5)
    with pytest.raises(InputError, match="workers prepare batches ahead of it; use masking='device'"):
        our_trainer(tmp_path, masker=masker)
    run = {"masker": masker, "masking": "device", "max_steps": 6, "gradient_accumulation_steps": 2}
    run |= {"save_strategy": "steps", "save_steps": 3}
    trainer = our_trainer(tmp_path, eval_dataset=DATASET, eval_strategy="steps", eval_steps=2, **run)
    trainer.train()
    for k, batch in enumerate(trainer.batches):
        expected = CorrMasker(GRAPH, mlm_probability=Linear(0.6, 0.2, 4)(k // 2), seed=5)
        assert_masked_as_in([batch], k // 6, expected)
    evaluated = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert len(evaluated) == 3
    resumed = our_trainer(tmp_path, **run)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert resumed.losses == trainer.losses[6:]


def test_graphs_of_cells_are_chosen_on_the_device_too(tmp_path):
    masker = CorrMasker([GRAPH, make_graph(VOCABULARY, seed=1)], mlm_probability=0.3, seed=5)
    corpus = read_corpus(CELLS, VOCABULARY)
    corpus.obs = {"tissue": np.array(["lung", "kidney"] * 12)}
    dataset = CorpusDataset(corpus, columns=("tissue",))
    collate = DataCollatorForCorrMask(masker, graph_column="tissue", graph_numbers={"lung": 0, "kidney": 1})
    seen = []
    for masking in ("worker", "device"):
        trainer = OurTrainer(
            make_model(), make_arguments(tmp_path), data_collator=collate, train_dataset=dataset, masking=masking
        )
        trainer.train()
        seen.append(trainer)
    for one, other in zip(seen[0].batches, seen[1].batches, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)
    assert seen[0].losses == seen[1].losses


def read_cells(dataset):
    return [dataset[i]["input_ids"].tolist() for i in range(len(dataset))]


def test_a_dataset_can_freeze_its_masks_under_any_trainer():
    collate = DataCollatorForCorrMask(MASKER)
    batches = []
    for epoch in (0, 3):
        collate.set_epoch(epoch)
        batches.append(collate(CorpusDataset(DATASET.corpus, epoch=11).__getitems__(range(9))))
    assert torch.equal(batches[0]["labels"], batches[1]["labels"])
    assert_masked_as_in(batches, 11)
    with pytest.raises(InputError, match="epoch must be an integer in"):
        CorpusDataset(DATASET.corpus, epoch=-1)


# ------------------------------------------------------------------------------------------------- the order of cells


def test_grouping_by_length_pads_less_and_follows_from_the_seed(tmp_path):
    cells = make_cells(240, seed=3, least=4, most=30)
    dataset = CorpusDataset(read_corpus(cells, VOCABULARY))
    padded, orders = {}, {}
    for name, options in {
        "grouped": {"group_by_length": True}, "again": {"group_by_length": True, "data_seed": 7},
        "another seed": {"group_by_length": True, "data_seed": 8}, "shuffled": {},
    }.items():  # fmt: skip
        trainer = our_trainer(tmp_path, dataset=dataset, **options)
        torch.manual_seed(len(orders))  # the order takes nothing from here
        loader = trainer.get_train_dataloader()
        batches = list(loader)
        padded[name] = np.mean([1 - batch["attention_mask"].float().mean() for batch in batches])
        orders[name] = cells_of(batches)
        assert sorted(orders[name]) == sorted(cells)
        assert cells_of(loader) != orders[name]
    assert padded["grouped"] < padded["shuffled"] / 2
    assert orders["grouped"] == orders["again"]
    assert orders["grouped"] != orders["another seed"]
    assert max(map(len, orders["grouped"][:4])) == max(map(len, cells))


def test_lengths_of_a_datasets_folder(tmp_path):
    datasets = pytest.importorskip("datasets")
    write_corpus(DATASET.corpus, tmp_path / "cells.dataset")
    folder = datasets.load_from_disk(str(tmp_path / "cells.dataset"))
    from corrmask_fast.training.sampling import cell_lengths

    expected = [len(cell) for cell in CELLS]
    for dataset in (DATASET, folder, folder.remove_columns("length"), [{"input_ids": cell} for cell in CELLS]):
        assert cell_lengths(dataset).tolist() == expected
    shuffled = folder.remove_columns("length").shuffle(seed=1)
    assert cell_lengths(shuffled).tolist() == [len(row) for row in shuffled["input_ids"]]
    with pytest.raises(InputError, match="grouping by length needs cells with 'input_ids'; cell 0 is"):
        cell_lengths([3])
    trainer = our_trainer(tmp_path, dataset=folder, group_by_length=True, max_steps=6)
    trainer.train()
    assert sorted(cells_of(trainer.batches)) == sorted(CELLS)


# ------------------------------------------------------------------------------------------------------------- resume


@pytest.mark.parametrize(("masking", "options"), [
    ("worker", {}),
    ("device", {"gradient_accumulation_steps": 2, "group_by_length": True}),
], ids=["worker", "device, accumulated, grouped"])  # fmt: skip
def test_a_run_that_is_stopped_and_resumed_loses_the_same(tmp_path, masking, options):
    """Stopped within the second epoch, with dropout."""

    def run(folder, last, resume=None):
        trainer = our_trainer(
            tmp_path / folder, make_model(dropout=0.1), masking=masking, max_steps=9, save_strategy="steps",
            save_steps=4, **options,
        )  # fmt: skip
        if last:
            trainer.add_callback(StopAfter(last))
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    whole = run("whole", None)
    stopped = run("stopped", 8)
    resumed = run("stopped", None, str(tmp_path / "stopped" / "checkpoint-8"))
    assert stopped.losses + resumed.losses == whole.losses
    for one, other in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    run = {"max_steps": 2, "save_strategy": "steps", "save_steps": 2}
    our_trainer(tmp_path, **run).train()
    record = json.loads((tmp_path / "checkpoint-2" / "corrmask.json").read_text())
    assert record["masker"]["seed"] == 5
    again = run | {"max_steps": 3}
    cells = [*CELLS[:-1], CELLS[-1][::-1]]
    others = [
        ({"masker": CorrMasker(GRAPH, mlm_probability=0.3, seed=6)}, "was made with seed=5, this run has seed=6"),
        (
            {"masker": CorrMasker(GRAPH, mlm_probability=0.3, replace="group", seed=5)},
            "was made with replace='token', this run has replace='group'",
        ),
        ({"masker": CorrMasker(make_graph(VOCABULARY, seed=1), mlm_probability=0.3, seed=5)}, "was made with table "),
        ({"dataset": CorpusDataset(read_corpus(cells, VOCABULARY))}, "was made with corpus "),
        ({"dataset": CorpusDataset(read_corpus(CELLS[:-1], VOCABULARY))}, "was made with c"),
        ({"data_seed": 1}, "was made with data_seed 7, this run has data_seed 1"),
    ]
    for changed, message in others:
        with pytest.raises(InputError, match=message):
            our_trainer(tmp_path, **again | changed).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    with pytest.raises(InputError, match="resume with what the first run had"):
        our_trainer(tmp_path, **again, **others[0][0]).train(resume_from_checkpoint=True)
    (tmp_path / "checkpoint-2" / "corrmask.json").write_text("[]")
    with pytest.raises(InputError, match="is not a readable record of a run"):
        our_trainer(tmp_path, **again).train(resume_from_checkpoint=True)


# ---------------------------------------------------------------------------------------------------------- bad input


def test_bad_input(tmp_path):
    def make(model=None, train=DATASET, **options):
        return CorrMaskTrainer(model or make_model(), make_arguments(tmp_path), train_dataset=train, **options)

    other = CorpusDataset(read_corpus(CELLS, make_vocabulary(61)))
    collate = DataCollatorForCorrMask(MASKER)
    stock = DataCollatorForCorrMask(MASKER, compat="geneformer")
    for options, message in [
        ({}, "needs one of masker and data_collator"),
        ({"masker": MASKER, "data_collator": collate}, "needs one of masker and data_collator"),
        ({"data_collator": list}, "data_collator must be a DataCollatorForCorrMask; got type"),
        ({"data_collator": collate, "pad_to_multiple_of": 8}, "pad_to_multiple_of goes with masker"),
        ({"masker": MASKER, "masking": "gpu"}, "masking must be 'worker' or 'device'; got 'gpu'"),
        ({"data_collator": stock, "masking": "device"}, "compat='geneformer' masks in the collator"),
        ({"masker": MASKER, "train": other}, "the corpus and the masker's graph have different vocabularies"),
        ({"masker": MASKER, "eval_dataset": other}, "the corpus and the masker's graph have different vocabularies"),
        (
            {"masker": MASKER, "model": make_model(vocab_size=40)},
            "the model knows 40 tokens, .* has 62; make the model",
        ),
        ({"masker": MASKER, "model": make_model(positions=20)}, "tokens, the model 20 positions; read the corpus with"),
        ({"masker": MASKER, "compute_loss_func": sum}, "computes the masked language modelling loss itself"),
    ]:
        with pytest.raises(InputError, match=message):
            make(**options)
    with pytest.raises(InputError, match="CorrMaskCallback needs a DataCollatorForCorrMask; got list"):
        CorrMaskCallback([])
    with pytest.raises(InputError, match=r"label_names must contain 'labels', the masked genes; got \['cell_type'\]"):
        CorrMaskTrainer(make_model(), make_arguments(tmp_path, label_names=["cell_type"]), masker=MASKER)
    trainer = make(masker=MASKER, train=None, model=make_model(positions=20))
    with pytest.raises(
        InputError, match=r"a batch has cells of 2\d columns, the model 20 positions; read the corpus with max_len"
    ):
        trainer.evaluate(DATASET)
    trainer = make(masker=MASKER)
    trainer.data_collator = collator.PaddingCollator(VOCABULARY)
    with pytest.raises(InputError, match=r"a batch came without labels \(it has input_ids, attention_mask\)"):
        trainer.train()
    callback = CorrMaskCallback(collate)
    arguments = make_arguments(tmp_path)
    small = transformers.Trainer(make_model(vocab_size=40), arguments, collate, DATASET, callbacks=[callback])
    with pytest.raises(InputError, match="the model knows 40 tokens"):
        small.train()
