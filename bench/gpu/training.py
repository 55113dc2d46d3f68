"""A pretraining step of Geneformer's shape (Table 5 of the paper), by where its masks come from."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from harness.goals import Goal
from harness.timing import Contestant
from pretrain.contestants import training

from corrmask_fast import (
    CorpusDataset,
    CorrMasker,
    DataCollatorForCorrMask,
    MultinomialAttentionMasker,
    with_sparse_head,
)
from corrmask_fast.masking.stock import stock_collator
from corrmask_fast.training.mam_model import attach
from corrmask_fast.training.run import make_model
from gpu.devices import free_memory

if TYPE_CHECKING:
    from collections.abc import Callable

    from harness.workload import Workload

    from gpu.workloads import Sizes

# A training step, by where its masks come from.
OFF = "step, masked beforehand"
STOCK = "step, stock collator on the CPU"
COLLATOR = "step, our collator on the CPU"
OURS = "step, CorrMasker on the device"
SPARSE = "step, CorrMasker on the device, sparse head"
ALONE = "CorrMasker alone"
LEARNED = "step, MultinomialAttentionMasker on the device"

GOALS = (
    Goal("masking alone, of a step", "training", ALONE, (OURS,), at_most=0.5, unit="%"),
    Goal("what masking adds to a step", "training", OURS, (OURS,), at_most=0.5, unit="%", minus=OFF),
    Goal("sparse head beside full head", "training", SPARSE, (OURS,), 1.8),
    Goal("what MAM adds to a step", "training", LEARNED, (LEARNED,), at_most=5, unit="%", minus=OFF),
)


def training_race(workload: Workload, batch: int, sizes: Sizes, device: torch.device) -> list[Contestant]:
    """A step over the same cells, masked beforehand, by the stock collator, by ours, on the device, by MAM there."""
    vocabulary, settings = workload.graph.vocabulary, replace(sizes.model, max_length=sizes.length)
    model, learning = (make_model(vocabulary.size, vocabulary.pad_token_id, settings) for _ in range(2))
    with_sparse_head(model)  # for those who give it masked positions; for the others it stays as it is
    mam = MultinomialAttentionMasker(vocabulary, settings.hidden_size, n_heads=settings.heads)
    attach(mam, learning)
    for each in (model, learning):
        each.to(device)
    on_host = torch.from_numpy(workload.rows(batch))
    ids = on_host.to(device)
    masker = CorrMasker(workload.graph).to(device)
    ready = _inputs(masker(ids))
    lists = [{"input_ids": row} for row in on_host.tolist()]
    stock, ours = stock_collator(vocabulary), DataCollatorForCorrMask(CorrMasker(workload.graph))
    dataset, cells = CorpusDataset(workload.corpus), [i % workload.corpus.n_cells for i in range(batch)]

    def collated(found: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: found[name].to(device, non_blocking=True) for name in ready}

    def learned() -> dict[str, torch.Tensor]:
        masked, latents = mam.draw(ids, embeddings=learning.get_input_embeddings())
        return {**_inputs(masked), "latents": latents}

    def step(inputs: Callable[[], dict[str, torch.Tensor]], of: Any = model) -> Callable[[], None]:
        return training(of, inputs, autocast=device)

    return [
        Contestant(OFF, step(lambda: ready), 1),
        Contestant(STOCK, step(lambda: collated(stock(lists))), 1),
        Contestant(COLLATOR, step(lambda: collated(ours(dataset.__getitems__(cells)))), 1),
        Contestant(OURS, step(lambda: _inputs(masker(ids))), 1),
        Contestant(SPARSE, step(lambda: _inputs(masker(ids), sparse=True)), 1),
        Contestant(ALONE, lambda: masker(ids), 1),
        Contestant(LEARNED, step(learned, learning), 1),
    ]


def _inputs(masked: Any, *, sparse: bool = False) -> dict[str, torch.Tensor]:
    inputs = {"input_ids": masked.input_ids, "labels": masked.labels}
    return inputs | {"masked_positions": masked.masked_positions} if sparse else inputs


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
