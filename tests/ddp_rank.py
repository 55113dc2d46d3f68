"""A run that test_pretrain_ddp.py makes in one process and, as this script, in each of two."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from pathlib import Path

import torch
from test_sparse_head import make_pair
from torch.utils.data import IterableDataset
from trainers import MASKER, VOCABULARY, make_cells, our_trainer

from corrmask_fast import CorpusDataset, MultinomialAttentionMasker, read_corpus, stream_corpus
from corrmask_fast.cells.corpus_io import write_corpus
from corrmask_fast.cli.main import main

RUNS = (("worker", 1), ("device", 2), ("learned", 2))  # masking, accumulated batches


class Stream(IterableDataset):
    """Cells of many lengths, whose batches no rank could join with another's."""

    def __iter__(self):
        return iter([{"input_ids": cell} for cell in make_cells(21, seed=6)])


def run_stream(folder, masking, batch_size):
    """Train for eight steps on a stream: ours, or of torch's own kind."""
    stream = stream_corpus(make_cells(21, seed=6), VOCABULARY) if masking == "worker" else Stream()
    distributed = {"ddp_backend": "gloo", "ddp_find_unused_parameters": False} if "RANK" in os.environ else {}
    trainer = our_trainer(
        folder, None, stream, masking=masking, max_steps=8, per_device_train_batch_size=batch_size, **distributed
    )
    trainer.train()
    return {"batches": trainer.batches, "steps": trainer.state.global_step}


def run(folder, masking, accumulated, batch_size):
    """Train for six steps; the stock model with masks from the collator, ours with masks on the device or learned."""
    stock, sparse = make_pair()
    dataset = CorpusDataset(read_corpus(make_cells(48, seed=2), VOCABULARY))
    held_out = CorpusDataset(read_corpus(make_cells(23, seed=8, least=2), VOCABULARY))  # no multiple of a step
    distributed = {"ddp_backend": "gloo", "ddp_find_unused_parameters": False} if "RANK" in os.environ else {}
    masker = MASKER
    if masking == "learned":
        masker, masking = MultinomialAttentionMasker(VOCABULARY, 32, n_latents=6, mlm_probability=0.3), "device"
    trainer = our_trainer(
        folder, sparse if masking == "device" else stock, dataset, masker=masker, masking=masking,
        eval_dataset=held_out, max_steps=6,
        per_device_train_batch_size=batch_size, gradient_accumulation_steps=accumulated, logging_steps=1,
        group_by_length=True, **distributed,
    )  # fmt: skip
    trainer.train()
    unsent = {f"module.{name}" for name in getattr(trainer.model_wrapped, "parameters_to_ignore", ())}
    return {
        "rank": trainer.args.process_index,
        "batches": trainer.batches,
        "losses": trainer.losses,
        "gradients": trainer.gradients,
        "said": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
        "evaluation": trainer.evaluate()["eval_loss"],
        "prediction": trainer.predict(held_out).metrics["test_loss"],
        "weights": [parameter.detach().clone() for parameter in trainer.model.parameters()],
        "buffers": [name for name, _ in trainer.model_wrapped.named_buffers() if name not in unsent],
    }


def command_line(folder, batch_size):
    """Run ``corrmask-fast pretrain`` on 52 cells, with 11 held out; return what it said."""
    write_corpus(read_corpus(make_cells(63, seed=4), VOCABULARY), folder / f"cells-{os.getpid()}.dataset")
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        code = main([
            "pretrain", str(folder / f"cells-{os.getpid()}.dataset"), "--out", str(folder / "run"), "--no-progress",
            "--strategy", "random", "--hidden-size", "16", "--layers", "1", "--heads", "2", "--intermediate-size", "16",
            "--batch-size", str(batch_size), "--held-out", "0.175", "--epochs", "2", "--log-every", "1",
            "--device", "cpu", "--dropout", "0",
        ])  # fmt: skip
    assert code == 0
    return said.getvalue()


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    runs = {masking: run(folder / masking, masking, accumulated, 2) for masking, accumulated in RUNS}
    runs["streams"] = {
        masking: run_stream(folder / f"stream-{masking}", masking, 2) for masking in ("worker", "device")
    }
    runs["said"] = command_line(folder, 2)
    runs["share"] = [row["input_ids"].tolist() for row in stream_corpus(make_cells(21, seed=6), VOCABULARY)]
    torch.save(runs, folder / f"rank-{runs['worker']['rank']}.pt")
    # As in test_gpu.py: gloo's threads, which DDP keeps alive, can abort an interpreter that ends.
    os._exit(0)
