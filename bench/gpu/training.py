"""A pretraining step of Geneformer's shape (Table 5 of the paper), by where its masks come from."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from timing import Contestant

from corrmask_fast import CorpusDataset, CorrMasker, DataCollatorForCorrMask, MultinomialAttentionMasker
from corrmask_fast.masking.stock import stock_collator
from corrmask_fast.training.mam_model import attach
from corrmask_fast.training.run import make_model
from gpu import goals
from gpu.devices import free_memory
from gpu.workloads import rows_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from workload import Workload

    from gpu.workloads import Sizes


def training_step(model: torch.nn.Module, device: torch.device) -> Callable[..., None]:
    """Return forward, backward and AdamW in bfloat16 autocast, without a look at the loss."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=device.type == "cuda")

    def step(input_ids: torch.Tensor, labels: torch.Tensor, **more: torch.Tensor) -> None:
        with torch.autocast(device.type, dtype=torch.bfloat16):
            loss = model(input_ids=input_ids, labels=labels, **more).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def training_race(workload: Workload, batch: int, sizes: Sizes, device: torch.device) -> list[Contestant]:
    """A step over the same cells, masked beforehand, by the stock collator, by ours, on the device, by MAM there."""
    vocabulary, settings = workload.graph.vocabulary, replace(sizes.model, max_length=sizes.columns)
    model, learning = (make_model(vocabulary.size, vocabulary.pad_token_id, settings).train() for _ in range(2))
    mam = MultinomialAttentionMasker(vocabulary, settings.hidden_size, n_heads=settings.heads)
    attach(mam, learning)
    step, learning_step = (training_step(each.to(device), device) for each in (model, learning))
    on_host = rows_of(workload, batch)
    ids = on_host.to(device)
    masker = CorrMasker(workload.graph).to(device)
    ready = masker(ids)
    lists = [{"input_ids": row} for row in on_host.tolist()]
    stock, ours = stock_collator(vocabulary), DataCollatorForCorrMask(CorrMasker(workload.graph))
    dataset, cells = CorpusDataset(workload.corpus), [i % workload.corpus.n_cells for i in range(batch)]

    def collated(features: Callable[[], Any], collator: Any) -> Callable[[], None]:
        def run() -> None:
            found = collator(features())
            step(*(found[name].to(device, non_blocking=True) for name in ("input_ids", "labels")))

        return run

    def on_device() -> None:
        masked = masker(ids)
        step(masked.input_ids, masked.labels)

    def learned() -> None:
        masked, latents = mam.draw(ids, embeddings=learning.get_input_embeddings())
        learning_step(masked.input_ids, masked.labels, latents=latents)

    return [
        Contestant(goals.OFF, lambda: step(ready.input_ids, ready.labels), 1),
        Contestant(goals.STOCK, collated(lambda: lists, stock), 1),
        Contestant(goals.COLLATOR, collated(lambda: dataset.__getitems__(cells), ours), 1),
        Contestant(goals.OURS, on_device, 1),
        Contestant(goals.ALONE, lambda: masker(ids), 1),
        Contestant(goals.LEARNED, learned, 1),
    ]


def fitting_batch(workload: Workload, batch: int, sizes: Sizes, device: torch.device) -> int:
    """Return the largest batch that a step has memory for: ``batch``, or a half of it, or a half of that …"""
    while batch > 1:
        try:
            contestants = training_race(workload, batch, sizes, device)
            contestants[0].run()
        except torch.OutOfMemoryError:
            batch //= 2
        else:
            return batch
        finally:
            contestants = []
            free_memory()
    return batch
