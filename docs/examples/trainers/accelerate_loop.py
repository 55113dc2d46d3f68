"""A loop with accelerate: the same lines for one process and for many; gradients of two batches a step; a resume."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from accelerate import Accelerator
from cells import DATASET, MASKER, Model, check
from torch.utils.data import DataLoader

from corrmask_fast import DataCollatorForCorrMask, ShuffledSampler, masked_lm_loss

if TYPE_CHECKING:
    from pathlib import Path

EPOCHS, ACCUMULATED = 2, 2


def train(checkpoint: Path, stop_after: int | None = None) -> list[float]:
    """Train to the end, or to a batch; go on from the checkpoint if there is one."""
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=ACCUMULATED)
    collator = DataCollatorForCorrMask(MASKER, return_masked_positions=True)
    sampler = ShuffledSampler(len(DATASET), seed=1)
    loader = DataLoader(DATASET, batch_size=8, sampler=sampler, collate_fn=collator)
    model = Model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    first, losses = 0, []
    if checkpoint.exists():
        accelerator.load_state(str(checkpoint))
        first = int((checkpoint / "batches").read_text())
    for epoch in range(first // len(loader), EPOCHS):
        collator.set_epoch(epoch)
        seen = max(first - epoch * len(loader), 0)
        batches = accelerator.skip_first_batches(loader, seen) if seen else loader
        batches.set_epoch(epoch)  # of the sampler; accelerate passes it on to no collator
        for k, batch in enumerate(batches, start=epoch * len(loader) + seen + 1):
            with accelerator.accumulate(model):
                hidden = model(batch["input_ids"], batch["attention_mask"])
                loss = masked_lm_loss(hidden, accelerator.unwrap_model(model).head, batch)
                accelerator.backward(loss)
                optimizer.step()
                optimizer.zero_grad()
            losses.append(loss.item())
            if k == stop_after and accelerator.sync_gradients:  # gradients are not saved
                accelerator.save_state(str(checkpoint))
                (checkpoint / "batches").write_text(str(k))
                return losses
    return losses


if __name__ == "__main__":
    check(train, 10, stops=(2, 5, 7))
