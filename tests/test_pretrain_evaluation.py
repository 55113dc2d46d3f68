"""Held-out cells: frozen masks, a loss that no batch size changes, labels beside the logits that they belong to."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from corrmask_fast import CorpusDataset, InputError, read_corpus

transformers = pytest.importorskip("transformers", minversion="4.46")
pytest.importorskip("accelerate")

from trainers import (
    DATASET,
    MASKER,
    VOCABULARY,
    OurTrainer,
    assert_masked_as_in,
    make_arguments,
    make_cells,
    make_model,
    our_trainer,
)

from corrmask_fast.training.losses import logits_of, losses_at_masked, summed_by_row, targets_of
from corrmask_fast.training.sparse_head import BertForSparseMaskedLM
from corrmask_fast.training.trainer import EVALUATION_EPOCH

pytestmark = pytest.mark.usefixtures("one_thread")

# Of 2 and of 24 genes: a mean of the means of batches is another number.
HELD_OUT = [cell[:2] if i % 3 else cell for i, cell in enumerate(make_cells(11, seed=9, least=24))]
HELD_OUT += [cell[:4] for cell in make_cells(6, seed=3, least=24)]


def cells_as_dataset(cells=HELD_OUT, **options):
    return CorpusDataset(read_corpus(cells, VOCABULARY), **options)


def make_sparse():
    model = BertForSparseMaskedLM(make_model().config)
    model.load_state_dict(make_model().state_dict())
    return model


def make_modern(**options):
    if not hasattr(transformers, "ModernBertForMaskedLM"):
        pytest.skip("transformers has ModernBERT from 4.48 on")
    torch.manual_seed(1)
    config = transformers.ModernBertConfig(
        vocab_size=62, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=32, pad_token_id=0, cls_token_id=0, sep_token_id=0, bos_token_id=0, eos_token_id=0,
        global_attn_every_n_layers=1, **options,
    )  # fmt: skip
    return transformers.ModernBertForMaskedLM(config)


MODELS = {"all columns": make_model, "masked positions": make_sparse}
ALL_MODELS = MODELS | {"labels alone": lambda: make_modern(sparse_prediction=True)}


def padded(cells):
    width = max(map(len, cells))
    return torch.tensor([cell + [0] * (width - len(cell)) for cell in cells])


def by_hand(model, cells=HELD_OUT, epoch=EVALUATION_EPOCH):
    """Mean cross-entropy over all masked genes, accuracy of the best guess, and the number of genes."""
    ids = padded(cells)
    masked = MASKER(ids, epoch=epoch)
    chosen = masked.labels != -100
    with torch.no_grad():
        logits = model.eval()(masked.input_ids, attention_mask=(ids != 0).long()).logits[chosen]
    loss = torch.nn.functional.cross_entropy(logits, masked.labels[chosen]).item()
    return loss, (logits.argmax(-1) == masked.labels[chosen]).float().mean().item(), int(chosen.sum())


@pytest.mark.parametrize("masking", ["worker", "device"])
@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_the_loss_is_the_mean_over_masked_genes(tmp_path, masking, make):
    for size in (1, 3, 5, 17):
        model = make()
        trainer = our_trainer(tmp_path, model, masking=masking, per_device_eval_batch_size=size)
        expected, _, _ = by_hand(model)
        for _ in range(2):  # before and after training
            assert trainer.evaluate(cells_as_dataset())["eval_loss"] == pytest.approx(expected, rel=1e-5)
            assert trainer.predict(cells_as_dataset()).metrics["test_loss"] == pytest.approx(expected, rel=1e-5)
            trainer.train()
            expected, _, _ = by_hand(model)


@pytest.mark.parametrize("masking", ["worker", "device"])
def test_every_way_to_evaluate_has_the_same_masks(tmp_path, masking):
    other = make_cells(7, seed=4)
    sets = {"one": cells_as_dataset(), "two": cells_as_dataset(other)}
    options = {"dataloader_num_workers": 2, "dataloader_persistent_workers": True} if masking == "worker" else {}
    trainer = our_trainer(tmp_path, masking=masking, eval_dataset=sets, learning_rate=0.0, max_steps=12, **options)
    expected = {name: by_hand(trainer.model, cells)[0] for name, cells in (("one", HELD_OUT), ("two", other))}
    for _ in range(2):
        losses = trainer.evaluate()
        assert losses["eval_one_loss"] == pytest.approx(expected["one"], rel=1e-5)
        assert losses["eval_two_loss"] == pytest.approx(expected["two"], rel=1e-5)
        for loader in (trainer.get_eval_dataloader(sets["two"]), trainer.get_test_dataloader(sets["two"])):
            if masking == "worker":
                assert_masked_as_in(list(loader), EVALUATION_EPOCH)
        trainer.train()
    assert_masked_as_in(trainer.batches[6:12], 1)  # those of training are still its own


@pytest.mark.parametrize("masking", ["worker", "device"])
def test_a_datasets_own_epoch_counts_wherever_masks_are_made(tmp_path, masking):
    held_out = cells_as_dataset(epoch=11)
    trainer = our_trainer(tmp_path, masking=masking, eval_dataset=held_out)
    expected, _, _ = by_hand(trainer.model, epoch=11)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-5)
    trainer = our_trainer(tmp_path, dataset=CorpusDataset(DATASET.corpus, epoch=11), masking=masking, max_steps=9)
    trainer.train()
    assert_masked_as_in(trainer.batches, 11)
    assert not any("mask_epoch" in batch for batch in trainer.batches)


@pytest.mark.parametrize("masking", ["worker", "device"])
@pytest.mark.parametrize("make", ALL_MODELS.values(), ids=ALL_MODELS)
def test_metrics_get_the_labels_of_the_logits(tmp_path, masking, make):
    shapes = []

    def accuracy(prediction):
        keep = prediction.label_ids != -100
        hits = (prediction.predictions[keep] == prediction.label_ids[keep]).mean()
        return {"accuracy": float(hits), "genes": int(keep.sum())}

    def guess(logits, labels):
        shapes.append((tuple(logits.shape[:-1]), tuple(labels.shape)))
        return logits.argmax(-1)

    model = make()
    trainer = OurTrainer(
        model, make_arguments(tmp_path, max_steps=30), train_dataset=DATASET, eval_dataset=cells_as_dataset(),
        masker=MASKER, masking=masking, compute_metrics=accuracy, preprocess_logits_for_metrics=guess,
    )  # fmt: skip
    trainer.train()
    loss, hits, genes = by_hand(model)
    for metrics, prefix in ((trainer.evaluate(), "eval"), (trainer.predict(cells_as_dataset()).metrics, "test")):
        assert metrics[f"{prefix}_accuracy"] == pytest.approx(hits)
        assert metrics[f"{prefix}_genes"] == genes
        assert metrics[f"{prefix}_loss"] == pytest.approx(loss, rel=1e-5)
    assert all(one == other for one, other in shapes)
    predicted = trainer.predict(cells_as_dataset())
    assert predicted.predictions.shape == predicted.label_ids.shape
    assert sorted(predicted.label_ids[predicted.label_ids != -100]) == sorted(
        MASKER(padded(HELD_OUT), epoch=EVALUATION_EPOCH).labels.ravel().tolist()[k]
        for k in np.flatnonzero(MASKER(padded(HELD_OUT), epoch=EVALUATION_EPOCH).labels.ravel() != -100)
    )


@pytest.mark.parametrize("masking", ["worker", "device"])
def test_a_model_that_projects_at_labels_alone_still_does(tmp_path, masking):
    runs = {}
    for sparse in (False, True):
        model, projected = make_modern(sparse_prediction=sparse), []
        model.decoder.register_forward_hook(lambda _m, _i, out, seen=projected: seen.append(out.shape[:-1].numel()))
        trainer = our_trainer(
            tmp_path, model, masking=masking, gradient_accumulation_steps=2, eval_dataset=cells_as_dataset()
        )
        trainer.train()
        genes = [int((batch["labels"] != -100).sum()) for batch in trainer.batches]
        columns = [batch["labels"].numel() for batch in trainer.batches]
        assert projected == (genes if sparse else columns)
        runs[sparse] = trainer
        del projected[:]
        assert trainer.evaluate()["eval_loss"] == pytest.approx(by_hand(model)[0], rel=1e-5)
    np.testing.assert_allclose(runs[True].losses, runs[False].losses, rtol=1e-5)
    for one, other in zip(runs[True].gradients, runs[False].gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


# ------------------------------------------------------------------------------------------------- the loss itself


def test_targets_worked_by_hand():
    labels = torch.tensor([[-100, 5, -100], [7, -100, 9]])
    positions = torch.tensor([[1, -1], [0, 2]])
    for shape, targets, rows in (
        ((2, 3, 10), labels.tolist(), [[0, 0, 0], [1, 1, 1]]),
        ((2, 2, 10), [[5, -100], [7, 9]], [[0, 0], [1, 1]]),
        ((6, 10), [-100, 5, -100, 7, -100, 9], [0, 0, 0, 1, 1, 1]),
        ((3, 10), [5, 7, 9], [0, 1, 1]),
    ):
        found, of_row = targets_of(torch.zeros(shape), labels, positions)
        assert (found.tolist(), of_row.tolist()) == (targets, rows)
        sums = summed_by_row(torch.zeros(shape), found, of_row, 2)
        np.testing.assert_allclose(sums, [[np.log(10), 1], [2 * np.log(10), 2]], rtol=1e-6)
        losses, of_row, tokens, _ = losses_at_masked(torch.zeros(shape), found, of_row)
        assert (of_row.tolist(), tokens.tolist()) == ([0, 1, 1], [5, 7, 9])
        np.testing.assert_allclose(losses, np.log(10), rtol=1e-6)
    with pytest.raises(InputError, match=r"returned logits of shape \(2, 4, 10\) for labels of shape \(2, 3\)"):
        targets_of(torch.zeros(2, 4, 10), labels, positions)


def test_logits_of_every_kind_of_output():
    logits, loss = torch.zeros(1, 2, 3), torch.zeros(())
    assert logits_of(logits) is logits_of({"logits": logits}) is logits_of((logits,)) is logits
    assert logits_of((loss, logits)) is logits_of([logits, loss]) is logits
    for wrong in ({"prediction_logits": logits}, (), None, (None,)):
        with pytest.raises(InputError, match="the model must return logits"):
            logits_of(wrong)
