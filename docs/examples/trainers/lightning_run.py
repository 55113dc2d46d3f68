"""Lightning: the callback sets the epoch; torchdata's StatefulDataLoader makes a resume in mid-epoch exact."""

from __future__ import annotations

import logging
import warnings
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import torch
from cells import DATASET, MASKER, Model, check
from torchdata.stateful_dataloader import StatefulDataLoader

from corrmask_fast import CorrMaskLightningCallback, DataCollatorForCorrMask, ShuffledSampler, masked_lm_loss

if TYPE_CHECKING:
    from pathlib import Path

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
warnings.filterwarnings("ignore")


class Module(pl.LightningModule):
    """Knows nothing of masks but the loss."""

    def __init__(self) -> None:
        super().__init__()
        self.model, self.losses = Model(), []

    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:  # noqa: ARG002
        """Return the loss of a batch."""
        loss = masked_lm_loss(self.model(batch["input_ids"], batch["attention_mask"]), self.model.head, batch)
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return the optimizer."""
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


class StopAfter(pl.Callback):
    """Ends a run as an interruption would, with a checkpoint."""

    def __init__(self, step: int, checkpoint: Path) -> None:
        self.step, self.checkpoint = step, checkpoint

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        """Save and stop."""
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.checkpoint)
            trainer.should_stop = True


def train(checkpoint: Path, stop_after: int | None = None) -> list[float]:
    """Train to the end, or to a step; go on from the checkpoint if there is one."""
    collator = DataCollatorForCorrMask(MASKER, return_masked_positions=True)
    sampler = ShuffledSampler(len(DATASET), seed=1)
    loader = StatefulDataLoader(DATASET, batch_size=8, sampler=sampler, collate_fn=collator)
    callbacks: list[Any] = [CorrMaskLightningCallback(collator, listeners=[sampler])]
    if stop_after:
        callbacks.append(StopAfter(stop_after, checkpoint))
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer, module = pl.Trainer(max_epochs=2, accelerator="cpu", devices=1, callbacks=callbacks, **quiet), Module()
    trainer.fit(module, loader, ckpt_path=checkpoint if checkpoint.exists() else None)
    return module.losses


if __name__ == "__main__":
    check(train, 10, stops=(1, 4, 7))
