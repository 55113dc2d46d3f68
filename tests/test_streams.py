"""Cells that can only be passed through: every pass is an epoch, in a DataLoader and under both Trainers."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from corrmask_fast import CorrMasker, DataCollatorForCorrMask, InputError, stream_corpus

transformers = pytest.importorskip("transformers", minversion="4.46")
pytest.importorskip("accelerate")

from trainers import (
    CELLS,
    GRAPH,
    MASKER,
    VOCABULARY,
    StockTrainer,
    StopAfter,
    assert_masked_as_in,
    cells_of,
    make_arguments,
    make_model,
    our_trainer,
)

from corrmask_fast.training.sampling import leave_undivided
from corrmask_fast.training.trainer import CorrMaskCallback

pytestmark = pytest.mark.usefixtures("one_thread")


class Lines(IterableDataset):
    """Torch's own kind; it divides the cells among workers."""

    def __iter__(self):
        worker = get_worker_info()
        cells = CELLS if worker is None else CELLS[worker.id :: worker.num_workers]
        return iter([{"input_ids": cell} for cell in cells])


class CountedLines(Lines):
    """As webdataset's with_length, and many of users' own."""

    def __len__(self):
        return len(CELLS)


class Shards(CountedLines):
    """As mosaicml's: a stream that has indices too, and says nothing of them to a DataLoader."""

    def __getitem__(self, index):
        raise AssertionError("a stream is not indexed")


def hugging_face_stream():
    datasets = pytest.importorskip("datasets")
    return datasets.Dataset.from_dict({"input_ids": CELLS}).to_iterable_dataset(num_shards=2)


def our_stream():
    return stream_corpus(CELLS, VOCABULARY, shuffle_buffer=7)


STREAMS = {
    "lines": Lines, "counted": CountedLines, "shards": Shards, "datasets": hugging_face_stream, "ours": our_stream,
}  # fmt: skip


def stock_trainer(folder, dataset, **options):
    collate = DataCollatorForCorrMask(MASKER)
    return StockTrainer(
        make_model(), make_arguments(folder, **options), data_collator=collate, train_dataset=dataset,
        callbacks=[CorrMaskCallback(collate)],
    )  # fmt: skip


def assert_passes_are_epochs(trainer, first=0, batches=6):
    for k in range(0, len(trainer.batches), batches):
        assert sorted(cells_of(trainer.batches[k : k + batches])) == sorted(CELLS)
        assert_masked_as_in(trainer.batches[k : k + batches], first + k // batches)


@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize("how", ["stock", "worker", "device"])
def test_each_pass_is_an_epoch(tmp_path, stream, how):
    dataset = STREAMS[stream]()
    make = stock_trainer if how == "stock" else lambda *args, **more: our_trainer(*args, masking=how, **more)
    trainer = make(tmp_path, dataset=dataset, max_steps=18)
    trainer.train()
    assert trainer.state.global_step == 18
    assert_passes_are_epochs(trainer)


@pytest.mark.parametrize("stream", ["lines", "datasets", "ours"])
@pytest.mark.parametrize("persistent", [False, True])
def test_workers_hear_of_a_new_pass(tmp_path, stream, persistent):
    options = {"dataloader_num_workers": 2, "dataloader_persistent_workers": persistent, "max_steps": 18}
    for make in (stock_trainer, our_trainer):
        trainer = make(tmp_path, dataset=STREAMS[stream](), **options)
        trainer.train()
        assert_passes_are_epochs(trainer)


@pytest.mark.parametrize("stream", [Lines, our_stream])
@pytest.mark.parametrize("how", ["stock", "worker", "device"])
def test_a_resumed_stream_repeats_no_pass(tmp_path, how, stream):
    """Within the first pass a resume is exact. Later Trainer begins the stream anew: a pass of its own."""
    make = stock_trainer if how == "stock" else lambda *args, **more: our_trainer(*args, masking=how, **more)
    run = {"max_steps": 40, "save_strategy": "steps", "save_steps": 4}
    whole = make(tmp_path / "whole", dataset=stream(), **run)
    whole.train()
    trainer, folder = None, tmp_path / "stopped"
    for stop in (4, 12, 20, 40):
        before = trainer
        if stop == 20 and not hasattr(transformers.Trainer, "_run_epoch"):  # of 4.46, which trains nothing then
            with pytest.raises(InputError, match=r"checkpoint is of pass 1 .* set ignore_data_skip=True to begin the"):
                make(folder, dataset=stream(), **run).train(resume_from_checkpoint=True)
            run["ignore_data_skip"] = True
        trainer = make(folder, dataset=stream(), **run)
        trainer.add_callback(StopAfter(stop))
        trainer.train(resume_from_checkpoint=before is not None)
        assert trainer.state.global_step == stop
        if stop == 4:
            continue
        if stop == 12:
            assert trainer.losses[:2] == whole.losses[4:6]
            trainer.batches, begun = trainer.batches[2:], 0
        for k in range(0, len(trainer.batches), 6):
            assert_masked_as_in(trainer.batches[k : k + 6], begun + 1 + k // 6)
        begun = json.loads((folder / f"checkpoint-{stop}" / "corrmask.json").read_text())["epoch"]


def test_batches_too_few_for_a_step_do_not_leak_into_the_next(tmp_path):
    """Six batches a pass, four a step: the gradient of each step is that of its own sixteen cells."""
    trainer = our_trainer(tmp_path, dataset=Lines(), max_steps=3, gradient_accumulation_steps=4, learning_rate=0.0)
    trainer.train()
    assert trainer.state.global_step == 3
    assert cells_of(trainer.batches) == CELLS[:16] * 3
    alone = our_trainer(tmp_path, dataset=Lines(), max_steps=3, per_device_train_batch_size=16, learning_rate=0.0)
    alone.train()
    torch.testing.assert_close(trainer.gradients[0], alone.gradients[0], rtol=1e-3, atol=1e-5)
    trainer = our_trainer(tmp_path, dataset=Lines(), gradient_accumulation_steps=7)
    with pytest.raises(InputError, match="the stream ends after 6 batches, a step takes 7; lower"):
        trainer.train()


def test_a_stream_is_evaluated(tmp_path):
    plain = our_trainer(tmp_path, eval_dataset=[{"input_ids": cell} for cell in CELLS]).evaluate()["eval_loss"]
    for masking in ("worker", "device"):
        for stream in (Lines, hugging_face_stream, our_stream):
            trainer = our_trainer(tmp_path, eval_dataset=stream(), masking=masking)
            assert trainer.evaluate()["eval_loss"] == pytest.approx(plain, rel=1e-6)
            assert trainer.predict(stream()).metrics["test_loss"] == pytest.approx(plain, rel=1e-6)


def test_streams_in_a_loader():
    """With an epoch a pass: by it, for any number of workers. Without: another mask in each pass."""
    masker = CorrMasker(GRAPH, mlm_probability=0.3, seed=5)
    for options in ({}, {"num_workers": 2}, {"num_workers": 2, "persistent_workers": True}):
        told, fresh = DataCollatorForCorrMask(masker), DataCollatorForCorrMask(masker)
        loader, other = (DataLoader(Lines(), 4, collate_fn=collate, **options) for collate in (told, fresh))
        for epoch in (0, 1, 3):
            told.set_epoch(epoch)
            assert_masked_as_in(list(loader), epoch, masker)
        passes = [np.concatenate([batch["labels"].numpy().ravel() for batch in other]) for _ in range(3)]
        assert len({one.tobytes() for one in passes}) == 3


def test_a_stream_is_left_undivided_where_trainer_divides_it():
    for loader in (DataLoader(our_stream()), SimpleNamespace(dataset=SimpleNamespace(dataset=our_stream()))):
        leave_undivided(loader, 2)
        stream = getattr(loader.dataset, "dataset", loader.dataset)
        assert (stream.rank, stream.world_size) == (0, 1)
    with pytest.raises(InputError, match="divides batches among ranks itself, and the stream has world_size=3"):
        leave_undivided(DataLoader(stream_corpus(CELLS, VOCABULARY, rank=0, world_size=3)), 2)


def test_what_a_stream_cannot_do_is_refused(tmp_path):
    with pytest.raises((InputError, ValueError), match=r"grouped by length|group_by_length"):
        our_trainer(tmp_path, dataset=Lines(), group_by_length=True)
