"""Who runs against whom, and the checks that come before: the same cells, the same loss, the same gradients."""

from __future__ import annotations

from itertools import chain, repeat
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import transformers
from datasets import load_from_disk
from timing import Contestant

from corrmask_fast import (
    BertForSparseMaskedLM,
    CorpusDataset,
    CorrMaskCallback,
    CorrMasker,
    CorrMaskTrainer,
    DataCollatorForCorrMask,
)
from corrmask_fast.stock import stock_collator
from pretrain.targets import LISTS_INPUT, OUR_INPUT, OUR_STEP, PLAIN_INPUT, STOCK_INPUT, STOCK_STEP

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from workload import Workload


def make_config(workload: Workload, dropout: float, *, small: bool) -> Any:
    """Return the configuration of the paper's Table 5; ``small``: of a model for a smoke run."""
    width, layers, heads, feed_forward = (32, 1, 2, 32) if small else (256, 6, 4, 512)
    return transformers.BertConfig(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=feed_forward,
        vocab_size=workload.graph.vocabulary.size,
        max_position_embeddings=workload.size.length,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        hidden_act="relu",
    )


def step_race(workload: Workload, batch: int, dropout: float, *, small: bool) -> list[Contestant]:
    """Forward, backward and AdamW over one masked batch: all logits against those at masked positions."""
    config = make_config(workload, dropout, small=small)
    rows = torch.from_numpy(workload.rows(batch))
    masked = CorrMasker(workload.graph)(rows, epoch=0)
    inputs = {"input_ids": masked.input_ids, "attention_mask": torch.ones_like(rows), "labels": masked.labels}
    torch.manual_seed(0)
    stock = transformers.BertForMaskedLM(config)
    ours = BertForSparseMaskedLM(config)
    ours.load_state_dict(stock.state_dict())
    check_step(stock, ours, inputs, masked.masked_positions)
    return [
        _step(STOCK_STEP, stock, inputs, batch),
        _step(OUR_STEP, ours, inputs | {"masked_positions": masked.masked_positions}, batch),
    ]


def check_step(stock: Any, ours: Any, inputs: dict[str, torch.Tensor], positions: torch.Tensor) -> None:
    """Loss equal to 1e-5, every gradient to float tolerance; dropout off, for it draws."""
    losses = []
    for model, more in ((stock, {}), (ours, {"masked_positions": positions})):
        loss = model.eval()(**inputs, **more).loss
        loss.backward()
        losses.append(loss.item())
    assert abs(losses[0] - losses[1]) <= 1e-5, f"losses {losses}"
    pairs = zip(stock.named_parameters(), ours.named_parameters(), strict=True)
    for (name, one), (_, other) in pairs:
        apart = (one.grad - other.grad).norm() / one.grad.norm().clamp(min=1e-6)
        # A key's bias adds the same to all scores of a query: its gradient is rounding alone.
        assert apart < 1e-4 or "key.bias" in name, f"gradients of {name} differ by {apart:.1e}"
        one.grad = other.grad = None
    print(f"loss {losses[0]:.6f} and {losses[1]:.6f}, gradients agree", flush=True)


def _step(name: str, model: Any, inputs: dict[str, torch.Tensor], batch: int) -> Contestant:
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=1e-3, weight_decay=0.001)

    def run() -> None:
        model(**inputs).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return Contestant(name, run, batch, torch.get_num_threads())


def input_race(workload: Workload, batch: int, folder: Path) -> list[Contestant]:
    """Batches out of a Trainer's own loader, without workers, one thread; the same cells in all."""
    lists = load_from_disk(str(workload.folder))
    cells, masker = CorpusDataset(workload.corpus), CorrMasker(workload.graph)
    arguments = transformers.TrainingArguments(
        str(folder), per_device_train_batch_size=batch, dataloader_drop_last=True, report_to=[], use_cpu=True
    )
    model = transformers.BertForMaskedLM(make_config(workload, 0.0, small=True))
    trainers = {}
    for name, dataset, collator in (
        (STOCK_INPUT, lists, stock_collator(workload.graph.vocabulary)),
        (LISTS_INPUT, lists, DataCollatorForCorrMask(masker)),
        (PLAIN_INPUT, cells, DataCollatorForCorrMask(masker)),
    ):
        callbacks = [CorrMaskCallback(collator)] if name != STOCK_INPUT else []
        trainers[name] = transformers.Trainer(model, arguments, collator, dataset, callbacks=callbacks)
    trainers[OUR_INPUT] = CorrMaskTrainer(model, arguments, train_dataset=cells, masker=masker)
    loaders = {name: trainer.get_train_dataloader() for name, trainer in trainers.items()}
    for name, loader in loaders.items():
        check_input(name, loader, workload, batch)
    return [Contestant(name, _endless(loader).__next__, batch) for name, loader in loaders.items()]


def check_input(name: str, loader: Any, workload: Workload, batch: int) -> None:
    """A batch holds whole cells of the workload, masked at about the rate."""
    found = next(iter(loader))
    ids = torch.where(found["labels"] == -100, found["input_ids"], found["labels"]).numpy()
    known = {row.tobytes() for row in workload.rows(workload.corpus.n_cells)}
    assert ids.shape == (batch, workload.size.length), f"{name}: {ids.shape}"
    assert all(row.astype(np.int64).tobytes() in known for row in ids), f"{name}: not the cells"
    rate = (found["labels"] != -100).float().mean().item()
    assert 0.05 < rate < 0.25, f"{name}: masks {rate:.0%}"


def _endless(loader: Any) -> Iterator[Any]:
    return chain.from_iterable(repeat(loader))
