"""A small Lightning module that remembers its batches, and Trainers: what the tests of Lightning share."""

from __future__ import annotations

import importlib.util
import logging
import os
import sys

import pytest
import torch
from torch.utils.data import DataLoader

if not any(map(importlib.util.find_spec, ("lightning", "pytorch_lightning"))):
    pytest.skip("Lightning is not installed; .ci/lightning runs these tests", allow_module_level=True)

from corrmask_fast import CorpusDataset, CorrMasker, DataCollatorForCorrMask, PaddingCollator, read_corpus
from corrmask_fast.integrations.lightning import PACKAGE, CorrMaskLightningCallback
from corrmask_fast.testing import make_graph, make_vocabulary
from corrmask_fast.training.sampling import ShuffledSampler

pl = importlib.import_module(PACKAGE)
for name in (PACKAGE, "pytorch_lightning", PACKAGE.replace("pytorch", "fabric")):
    logging.getLogger(name).setLevel(logging.ERROR)

VOCABULARY = make_vocabulary(60)
MASKER = CorrMasker(make_graph(VOCABULARY), mlm_probability=0.3, seed=5)
# A cell is known by its genes: 20 cells of 12 genes each, and its first gene is its number.
CELLS = [[2 + i, *(2 + (i + 3 * k + 20) % 60 for k in range(11))] for i in range(20)]
DATASET = CorpusDataset(read_corpus(CELLS, VOCABULARY))
BATCH, STEPS, EPOCHS = 4, 5, 3  # cells a batch, batches an epoch, epochs


def make_module(package=pl):
    """Return a module of a Lightning package that keeps every batch of training and of validation."""

    class Module(package.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = torch.nn.Sequential(torch.nn.Embedding(62, 8), torch.nn.Linear(8, 62))
            self.batches, self.validated = [], []

        def loss(self, batch):
            return torch.nn.functional.cross_entropy(
                self.net(batch["input_ids"]).flatten(0, 1), batch["labels"].flatten()
            )

        def training_step(self, batch, batch_idx):
            self.batches.append({name: value.clone() for name, value in batch.items()})
            return self.loss(batch)

        def validation_step(self, batch, batch_idx):
            self.validated.append({name: value.clone() for name, value in batch.items()})

        test_step = validation_step

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    return Module()


def make_trainer(callbacks, package=pl, **options):
    defaults = {
        "accelerator": "cpu", "devices": 1, "num_sanity_val_steps": 0, "logger": False, "enable_checkpointing": False,
        "enable_progress_bar": False, "enable_model_summary": False,
    }  # fmt: skip
    limit = {} if "max_steps" in options else {"max_epochs": EPOCHS}
    return package.Trainer(callbacks=callbacks, **defaults | limit | options)


class Parts:
    """A run's collator, sampler, callback and loader; masks come from the workers, or from the device."""

    def __init__(self, masker=MASKER, *, device=False, loader=DataLoader, dataset=DATASET, **options):
        self.sampler = ShuffledSampler(len(CELLS), seed=2)
        self.collator = PaddingCollator(VOCABULARY) if device else DataCollatorForCorrMask(masker)
        masks = {"masker": masker} if device else {"collator": self.collator}
        self.callback = CorrMaskLightningCallback(**masks, listeners=[self.sampler])
        self.make = lambda: loader(dataset, BATCH, sampler=self.sampler, collate_fn=self.collator, **options)
        self.loader = self.make()


def original(batch):
    return torch.where(batch["labels"] == -100, batch["input_ids"], batch["labels"])


def cells_of(batches):
    return [row[row != 0].tolist() for batch in batches for row in original(batch)]


def assert_masked_as_in(batch, epoch, masker=MASKER):
    expected = masker(original(batch), batch["attention_mask"], epoch=epoch)
    assert torch.equal(batch["input_ids"], expected.input_ids)
    assert torch.equal(batch["labels"], expected.labels)


def order_of(*epochs):
    """The cells of epochs, in the order of the sampler."""
    sampler = ShuffledSampler(len(CELLS), seed=2)
    cells = []
    for epoch in epochs:
        sampler.set_epoch(epoch)
        cells += [CELLS[i] for i in sampler]
    return cells


if __name__ == "__main__":  # one of two ranks; Lightning starts the other
    torch.set_num_threads(1)
    for kind, options in (("device", {"device": True}), ("collator", {"num_workers": 1, "persistent_workers": True})):
        path = f"{sys.argv[1]}/{kind}.ckpt"
        for name, epochs in (("first", 2), ("resumed", 3)):
            parts, module = Parts(**options), make_module()
            trainer = make_trainer([parts.callback], devices=2, strategy="ddp", max_epochs=epochs)
            trainer.fit(module, parts.loader, ckpt_path=path if name == "resumed" else None)
            if name == "first":
                trainer.save_checkpoint(path)
            torch.save(module.batches, f"{sys.argv[1]}/{kind}-{name}-{trainer.global_rank}.pt")
    trainer.strategy.barrier()
    os._exit(0)  # as in ddp_rank.py: gloo's threads can hang or abort an interpreter that ends
