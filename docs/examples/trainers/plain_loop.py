"""A loop in plain PyTorch: gradients of two batches a step, new masks in each epoch, a resume in mid-epoch."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

import torch
from cells import DATASET, MASKER, Model, check
from torch.utils.data import DataLoader

from corrmask_fast import DataCollatorForCorrMask, ShuffledSampler, masked_lm_loss

if TYPE_CHECKING:
    from pathlib import Path

EPOCHS, ACCUMULATED = 2, 2


def train(checkpoint: Path, stop_after: int | None = None) -> list[float]:
    """Train to the end, or to a step; go on from the checkpoint if there is one."""
    collator = DataCollatorForCorrMask(MASKER, return_masked_positions=True)
    sampler = ShuffledSampler(len(DATASET), seed=1)  # the order is a function of (seed, epoch) too
    loader = DataLoader(DATASET, batch_size=8, sampler=sampler, collate_fn=collator)
    model = Model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    step, losses = 0, []
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        step = saved["step"]
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
    steps = -(-len(loader) // ACCUMULATED)  # of an epoch
    while step < EPOCHS * steps:
        epoch, done = divmod(step, steps)
        collator.set_epoch(epoch)
        sampler.set_epoch(epoch)
        batches = islice(loader, done * ACCUMULATED, None)  # a resume passes over the batches that were seen
        while together := list(islice(batches, ACCUMULATED)):
            n_masked = sum((batch["labels"] != -100).sum() for batch in together)
            loss = torch.zeros(())
            for batch in together:  # the gradient is that of one large batch
                hidden = model(batch["input_ids"], batch["attention_mask"])
                part = masked_lm_loss(hidden, model.head, batch, num_items_in_batch=n_masked)
                part.backward()
                loss += part.detach()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
            step += 1
            if step == stop_after:
                torch.save({"step": step, "model": model.state_dict(), "optimizer": optimizer.state_dict()}, checkpoint)
                return losses
    return losses


if __name__ == "__main__":
    check(train, 6, stops=(1, 3, 5))
