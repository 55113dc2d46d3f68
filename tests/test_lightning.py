"""Runs of Lightning's Trainer: every batch has the masks of (seed, epoch, cell), in whatever way it was reached."""

from __future__ import annotations

import doctest
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from lightning_runs import (
    BATCH,
    CELLS,
    DATASET,
    EPOCHS,
    MASKER,
    STEPS,
    VOCABULARY,
    Parts,
    assert_masked_as_in,
    cells_of,
    make_module,
    make_trainer,
    order_of,
    pl,
)
from torch.utils.data import DataLoader

from corrmask_fast import (
    CorrMasker,
    CorrMaskLightningCallback,
    DataCollatorForCorrMask,
    InputError,
    Linear,
    MultinomialAttentionMasker,
    PaddingCollator,
    RandomMasker,
    stream_corpus,
)
from corrmask_fast.integrations import lightning as integration
from corrmask_fast.masking.padded_batch import EVALUATION_EPOCH
from corrmask_fast.testing import make_graph

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore")]
HERE = Path(__file__).parent
WORKERS = {"num_workers": 2}
KEPT = {"num_workers": 2, "persistent_workers": True}


class SaveAt(pl.Callback):
    """Write a checkpoint at the n-th call of a hook."""

    def __init__(self, hook, n, path):
        self.path, self.left = path, n
        setattr(self, hook, self.count)

    def count(self, trainer, *args):
        self.left -= 1
        if self.left == 0:
            trainer.save_checkpoint(self.path)


def fit(parts, *callbacks, path=None, val=None, package=pl, **options):
    module = make_module(package)
    trainer = make_trainer([parts.callback, *callbacks], package, **options)
    trainer.fit(module, parts.loader, val, ckpt_path=path)
    return module, trainer


def held_out(collator):
    return DataLoader(DATASET, BATCH, collate_fn=collator)


@pytest.mark.parametrize("device", [False, True], ids=["collator", "device"])
@pytest.mark.parametrize("options", [{}, WORKERS, KEPT], ids=["none", "workers", "persistent"])
def test_every_batch_has_the_masks_of_its_epoch(device, options):
    module, _ = fit(Parts(device=device, **options))
    assert len(module.batches) == STEPS * EPOCHS
    assert cells_of(module.batches) == order_of(0, 1, 2)
    for step, batch in enumerate(module.batches):
        assert_masked_as_in(batch, step // STEPS)


def test_pytorch_lightning_is_the_same():
    package = pytest.importorskip("pytorch_lightning")
    module, _ = fit(Parts(), package=package)
    assert cells_of(module.batches) == order_of(0, 1, 2)
    for step, batch in enumerate(module.batches):
        assert_masked_as_in(batch, step // STEPS)


@pytest.mark.parametrize("options", [{}, WORKERS], ids=["none", "workers"])
def test_loaders_are_made_anew(options):
    parts = Parts(**options)

    class Data(pl.LightningDataModule):
        def train_dataloader(self):
            return parts.make()

    module = make_module()
    make_trainer([parts.callback], reload_dataloaders_every_n_epochs=1).fit(module, datamodule=Data())
    assert cells_of(module.batches) == order_of(0, 1, 2)
    for step, batch in enumerate(module.batches):
        assert_masked_as_in(batch, step // STEPS)


def test_a_second_fit_of_a_trainer_goes_on_and_another_trainer_begins_anew():
    parts, module = Parts(**WORKERS), make_module()
    trainer = make_trainer([parts.callback], max_epochs=1)
    trainer.fit(module, parts.loader)
    trainer.fit_loop.max_epochs = 2
    trainer.fit(module, parts.loader)
    make_trainer([parts.callback], max_epochs=1).fit(module, parts.loader)
    assert cells_of(module.batches) == order_of(0, 1, 0)
    for step, batch in enumerate(module.batches):
        assert_masked_as_in(batch, (0, 1, 0)[step // STEPS])


@pytest.mark.parametrize("device", [False, True], ids=["collator", "device"])
@pytest.mark.parametrize("options", [{}, KEPT], ids=["none", "persistent"])
@pytest.mark.parametrize(
    ("hook", "n"), [("on_train_epoch_end", 1), ("on_validation_end", 2), ("on_train_batch_end", 2 * STEPS)]
)
def test_a_run_resumed_at_an_epoch_s_end_goes_on_as_if_uninterrupted(tmp_path, hook, n, options, device):
    path = tmp_path / "run.ckpt"

    def parts():
        return Parts(device=device, **options)

    val = held_out(PaddingCollator(VOCABULARY) if device else DataCollatorForCorrMask(MASKER).frozen())
    whole, _ = fit(parts(), SaveAt(hook, n, path), val=val)
    done = torch.load(path, weights_only=False)["global_step"]
    assert done % STEPS == 0
    resumed, _ = fit(parts(), path=path, val=val)
    assert len(resumed.batches) == STEPS * EPOCHS - done
    for mine, theirs in zip(resumed.batches, whole.batches[done:], strict=True):
        assert torch.equal(mine["input_ids"], theirs["input_ids"])
        assert torch.equal(mine["labels"], theirs["labels"])


@pytest.mark.parametrize("limit", [{}, {"max_steps": STEPS * EPOCHS}], ids=["epochs", "steps"])
@pytest.mark.parametrize("device", [False, True], ids=["collator", "device"])
@pytest.mark.parametrize("n", [3, STEPS + 2])
@pytest.mark.parametrize("options", [{}, WORKERS], ids=["none", "workers"])
def test_a_run_resumed_in_mid_epoch_has_the_masks_of_its_epoch(tmp_path, n, options, device, limit):
    """Lightning begins the epoch's order anew; which cells follow is the loader's business, their masks are ours."""
    path = tmp_path / "run.ckpt"
    fit(Parts(device=device, **options), SaveAt("on_train_batch_end", n, path), **limit)
    module, _ = fit(Parts(device=device, **options), path=path, **limit)
    assert len(module.batches) == STEPS * EPOCHS - n
    left = STEPS - n % STEPS
    assert cells_of(module.batches[:left]) == order_of(n // STEPS)[: left * BATCH]
    assert cells_of(module.batches[left:]) == order_of(*range(n // STEPS + 1, EPOCHS))
    for step, batch in enumerate(module.batches, start=n):
        assert_masked_as_in(batch, step // STEPS)


@pytest.mark.parametrize("n", [3, STEPS + 2])
@pytest.mark.parametrize("options", [{}, WORKERS], ids=["none", "workers"])
def test_with_torchdata_s_loader_a_run_goes_on_exactly(tmp_path, n, options):
    loader = pytest.importorskip("torchdata.stateful_dataloader").StatefulDataLoader
    path = tmp_path / "run.ckpt"
    whole, _ = fit(Parts(loader=loader, **options), SaveAt("on_train_batch_end", n, path))
    module, _ = fit(Parts(loader=loader, **options), path=path)
    assert cells_of(whole.batches) == order_of(0, 1, 2)
    assert cells_of(module.batches) == cells_of(whole.batches[n:])
    for step, batch in enumerate(module.batches, start=n):
        assert_masked_as_in(batch, step // STEPS)


@pytest.mark.parametrize("options", [{}, WORKERS], ids=["none", "workers"])
def test_lightning_s_own_epoch_counts_where_it_skips_one(tmp_path, options):
    """By max_steps, Lightning cuts the epoch short in which it resumes at an epoch's end; order and masks agree."""
    path, limit = tmp_path / "run.ckpt", {"max_steps": STEPS * EPOCHS}
    fit(Parts(**options), SaveAt("on_train_epoch_end", 1, path), **limit)
    parts, epochs = Parts(**options), []

    class Epochs(pl.Callback):
        def on_train_batch_start(self, trainer, *args):
            epochs.append(parts.callback.epoch)

    module, _ = fit(parts, Epochs(), path=path, **limit)
    assert len(module.batches) == STEPS * (EPOCHS - 1)
    assert epochs == sorted(epochs)
    assert epochs[0] == 1
    at = 0
    for epoch, batch in zip(epochs, module.batches, strict=True):
        assert_masked_as_in(batch, epoch)
        at = at if at and epochs[at - 1] == epoch else 0
    for epoch in set(epochs):
        cells = cells_of([batch for e, batch in zip(epochs, module.batches, strict=True) if e == epoch])
        assert cells == order_of(epoch)[: len(cells)]


@pytest.mark.parametrize("options", [{}, KEPT], ids=["none", "persistent"])
def test_a_stream_gets_the_epoch_before_its_first_batch(tmp_path, options):
    def run(path=None, *callbacks):
        stream = stream_corpus(CELLS, VOCABULARY, shuffle_buffer=8, seed=3)
        collator, module = DataCollatorForCorrMask(MASKER), make_module()
        loader = DataLoader(stream, BATCH, collate_fn=collator, **options)
        callback = CorrMaskLightningCallback(collator, listeners=[stream])
        make_trainer([callback, *callbacks]).fit(module, loader, ckpt_path=path)
        return module.batches

    whole = run(None, SaveAt("on_train_epoch_end", 1, tmp_path / "run.ckpt"))
    resumed = run(tmp_path / "run.ckpt")
    per_epoch = len(whole) // EPOCHS
    for epoch in range(EPOCHS):
        batches = whole[epoch * per_epoch : (epoch + 1) * per_epoch]
        assert sorted(cells_of(batches)) == sorted(CELLS)
        for batch in batches:
            assert_masked_as_in(batch, epoch)
    assert cells_of(whole[:per_epoch]) != cells_of(whole[per_epoch : 2 * per_epoch])
    assert [b["labels"].tolist() for b in resumed] == [b["labels"].tolist() for b in whole[per_epoch:]]


@pytest.mark.parametrize("device", [False, True], ids=["collator", "device"])
def test_masks_of_validation_are_frozen(device):
    rising = CorrMasker(make_graph(VOCABULARY), mlm_probability=Linear(0.1, 0.4, steps=10), seed=5)
    parts = Parts(rising, device=device)
    val = held_out(parts.collator if device else parts.collator.frozen())
    module, trainer = fit(parts, val=val, num_sanity_val_steps=1)
    trainer.test(module, val)
    at_the_end = CorrMasker(make_graph(VOCABULARY), mlm_probability=0.4, seed=5)
    assert cells_of(module.validated) == CELLS[:BATCH] + CELLS * (EPOCHS + 1)
    for batch in module.validated:
        assert_masked_as_in(batch, EVALUATION_EPOCH, at_the_end)


@pytest.mark.parametrize("device", [False, True], ids=["collator", "device"])
def test_schedules_follow_the_step(tmp_path, device):
    """Two batches a step; without workers the collator, too, masks at the step's own rate, also after a resume."""
    rising, path = (
        CorrMasker(make_graph(VOCABULARY), mlm_probability=Linear(0.1, 0.8, steps=6), seed=5),
        tmp_path / "ckpt",
    )
    options = {"accumulate_grad_batches": 2}
    whole, trainer = fit(Parts(rising, device=device), SaveAt("on_train_epoch_end", 1, path), **options)
    resumed, _ = fit(Parts(rising, device=device), path=path, **options)
    steps = [0, 0, 1, 1, 2, 3, 3, 4, 4, 5, 6, 6, 7, 7, 8]  # the last batch of an epoch is a step of its own
    assert trainer.global_step == 9
    for batches, taken in ((whole.batches, steps), (resumed.batches, steps[STEPS:])):
        for step, batch in zip(taken, batches, strict=True):
            rising.set_step(step)
            assert_masked_as_in(batch, (3 * (step // 3)) // 3, rising)
    assert (whole.batches[0]["labels"][0] != -100).sum() == 1
    assert (whole.batches[-1]["labels"][0] != -100).sum() == 9


def test_the_docstring_s_example_runs():
    failed, tried = doctest.testmod(integration)
    assert failed == 0 < tried


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """The folder of what two ranks saw, in runs and in those resumed from them."""
    if not torch.distributed.is_gloo_available():
        pytest.skip("this PyTorch has no gloo")
    folder = tmp_path_factory.mktemp("ranks")
    done = subprocess.run(
        [sys.executable, str(HERE / "lightning_runs.py"), str(folder)], env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=False, timeout=600, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:]
    return folder


@pytest.mark.parametrize("kind", ["collator", "device"])
@pytest.mark.parametrize(("name", "epochs"), [("first", [0, 1]), ("resumed", [2])])
def test_two_ranks_have_the_masks_of_one(ranks, kind, name, epochs):
    """Ten cells a rank: three batches in an epoch."""
    both = [torch.load(ranks / f"{kind}-{name}-{rank}.pt", weights_only=True) for rank in range(2)]
    assert [len(batches) for batches in both] == [3 * len(epochs)] * 2
    for k, epoch in enumerate(epochs):
        together = [batch for batches in both for batch in batches[3 * k : 3 * k + 3]]
        assert sorted(cells_of(together)) == sorted(CELLS)
        for batch in together:
            assert_masked_as_in(batch, epoch)


def test_another_masker_does_not_resume(tmp_path):
    path = tmp_path / "run.ckpt"
    fit(Parts(), SaveAt("on_train_epoch_end", 1, path))
    for masker, said in (
        (CorrMasker(make_graph(VOCABULARY), mlm_probability=0.3, seed=6), "seed=5, this run has seed=6"),
        (RandomMasker(VOCABULARY, mlm_probability=0.3, seed=5), "strategy='CorrMasker'"),
        (CorrMasker(make_graph(VOCABULARY, seed=9), mlm_probability=0.3, seed=5), "was made with table"),
    ):
        with pytest.raises(InputError, match=said):
            fit(Parts(masker), path=path)
    parts = Parts(CorrMasker(make_graph(VOCABULARY), mlm_probability=0.3, seed=6))
    make_trainer([parts.callback]).validate(make_module(), held_out(parts.collator.frozen()), ckpt_path=path)


def test_checkpoints_of_other_runs(tmp_path):
    """One without the callback is taken, and its epoch counts; one with a damaged record or progress is refused."""
    path = tmp_path / "run.ckpt"
    fit(Parts(), SaveAt("on_train_epoch_end", 1, path))
    saved = torch.load(path, weights_only=False)
    record = saved["callbacks"].pop("CorrMaskLightningCallback")
    torch.save(saved, path)
    module, _ = fit(Parts(), path=path)
    assert cells_of(module.batches) == order_of(1, 2)
    assert_masked_as_in(module.batches[0], 1)
    del record["table"]
    torch.save(saved | {"callbacks": {"CorrMaskLightningCallback": record}}, path)
    with pytest.raises(InputError, match="not a readable checkpoint of Lightning: it lacks 'table'"):
        fit(Parts(), path=path)
    del saved["loops"]["fit_loop"]["epoch_progress"]
    torch.save(saved, path)
    with pytest.raises(InputError, match=r"the checkpoint is not a readable .* it lacks 'epoch_progress'"):
        fit(Parts(), path=path)


def wrong_loader(parts, collate):
    parts.loader = DataLoader(DATASET, BATCH, collate_fn=collate)
    return parts


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (CorrMaskLightningCallback, "needs one of collator"),
        (lambda: CorrMaskLightningCallback(DataCollatorForCorrMask(MASKER), masker=MASKER), "needs one of collator"),
        (lambda: CorrMaskLightningCallback(PaddingCollator(VOCABULARY)), "got PaddingCollator; behind a PaddingColl"),
        (lambda: CorrMaskLightningCallback(masker=MultinomialAttentionMasker(VOCABULARY, 8)), "learns with the model"),
        (lambda: CorrMaskLightningCallback(masker=MASKER, listeners=[CELLS]), "must have set_epoch; got list"),
        (lambda: fit(wrong_loader(Parts(), None)), "collate_fn is .*, which has no set_epoch"),
        (lambda: fit(wrong_loader(Parts(), PaddingCollator(VOCABULARY))), "is PaddingCollator, which has no set_epoch"),
        (lambda: fit(wrong_loader(Parts(), DataCollatorForCorrMask(MASKER))), "which is not that of the callback"),
        (lambda: fit(wrong_loader(Parts(device=True), DataCollatorForCorrMask(MASKER))), "CorrMask masks too"),
        (lambda: fit(wrong_loader(Parts(device=True), lambda cells: [len(cells)])), "without labels; got 'list'"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(make, said):
    with pytest.raises(InputError, match=said):
        make()


def test_a_collator_made_anew_with_each_loader_is_refused():
    parts = Parts()

    class Data(pl.LightningDataModule):
        def train_dataloader(self):
            loader = parts.make()
            parts.collator = DataCollatorForCorrMask(MASKER)
            return loader

    module = make_module()
    with pytest.raises(InputError, match=r"which is not that of the callback; .* the same one each time"):
        make_trainer([parts.callback], reload_dataloaders_every_n_epochs=1).fit(module, datamodule=Data())
    assert len(module.batches) == STEPS


@pytest.mark.parametrize("kind", ["validation", "test"])
def test_an_evaluation_with_the_collator_of_training_is_refused(kind):
    parts = Parts()
    loader = held_out(parts.collator)
    trainer, module = make_trainer([parts.callback]), make_module()
    run = partial(trainer.fit, module, parts.loader, [loader])
    if kind == "test":
        run = partial(trainer.test, module, {"cells": loader})
    with pytest.raises(InputError, match=f"DataLoader of {kind} has the collator of training"):
        run()


def test_an_epoch_that_another_changes_is_refused():
    parts = Parts()

    class Backwards(pl.Callback):
        def on_train_batch_start(self, trainer, *args):
            if trainer.global_step == STEPS + 1:
                parts.collator.set_epoch(0)

    with pytest.raises(InputError, match=r"the collator's epoch is 0, and training is in epoch 1: another set_epoch"):
        fit(parts, Backwards())


def test_a_wrong_epoch_of_ours_is_refused():
    parts = Parts()
    parts.callback.on_train_epoch_end = lambda *_: None  # as if Lightning called it at another time
    with pytest.raises(InputError, match="Lightning is in epoch 1, and its batches have the masks of epoch 0"):
        fit(parts)


def test_lightning_sets_the_epoch_of_samplers_too_late(tmp_path):
    """Why listeners exist: without one, a resumed run with workers begins with the order of epoch 0."""
    path = tmp_path / "run.ckpt"
    fit(Parts(), SaveAt("on_train_epoch_end", 1, path))
    parts = Parts(**WORKERS)
    parts.callback.listeners.remove(parts.sampler)
    module, _ = fit(parts, path=path)
    assert cells_of(module.batches[:1]) == order_of(0)[:BATCH]
    assert_masked_as_in(module.batches[0], 1)
