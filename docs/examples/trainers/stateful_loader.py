"""torchdata's StatefulDataLoader: a resume in mid-epoch needs its state and the epoch, also with workers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from cells import DATASET, MASKER, Model, check
from torchdata.stateful_dataloader import StatefulDataLoader

from corrmask_fast import DataCollatorForCorrMask, ShuffledSampler, masked_lm_loss

if TYPE_CHECKING:
    from pathlib import Path

EPOCHS = 2


def train(checkpoint: Path, stop_after: int | None = None) -> list[float]:
    """Train to the end, or to a step; go on from the checkpoint if there is one."""
    collator = DataCollatorForCorrMask(MASKER, return_masked_positions=True)
    sampler = ShuffledSampler(len(DATASET), seed=1)
    loader = StatefulDataLoader(DATASET, batch_size=8, sampler=sampler, collate_fn=collator, num_workers=2)
    model = Model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    first, step, losses = 0, 0, []
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=False)
        first, step = saved["epoch"], saved["step"]
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        loader.load_state_dict(saved["loader"])
    for epoch in range(first, EPOCHS):
        collator.set_epoch(epoch)  # both before the loader is iterated: its workers fetch at once
        sampler.set_epoch(epoch)
        for batch in loader:
            loss = masked_lm_loss(model(batch["input_ids"], batch["attention_mask"]), model.head, batch)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
            step += 1
            if step == stop_after:
                state = {"epoch": epoch, "step": step, "loader": loader.state_dict(), "model": model.state_dict()}
                torch.save(state | {"optimizer": optimizer.state_dict()}, checkpoint)
                return losses
    return losses


if __name__ == "__main__":
    check(train, 10, stops=(1, 5, 9))
