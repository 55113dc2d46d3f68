"""How long a comparison will take, from a few steps of its own model on its own cells."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import torch

from corrmask_fast.cells.dataset import CorpusDataset
from corrmask_fast.masking.collator import DataCollatorForCorrMask
from corrmask_fast.masking.strategies.random import RandomMasker
from corrmask_fast.training.run import start_model

if TYPE_CHECKING:
    from corrmask_fast.cells.corpus import Corpus
    from corrmask_fast.comparison.plan import Plan

STEPS = 4  # timed; one before them warms up
START = 3.0  # seconds: reading, a new Trainer, saving


def seconds_a_model(train: Corpus, n_test: int, n_labelled: int, plan: Plan, threads: int) -> tuple[float, float]:
    """Return the estimated seconds that one model takes to train, and to score, on so many threads.

    Parameters
    ----------
    train
        The training cells, cut to the models' length.
    n_test, n_labelled
        Test cells, and those of them with a type.
    """
    settings, scoring = plan.settings, plan.scoring
    device = torch.device("cuda" if settings.device != "cpu" and torch.cuda.is_available() else "cpu")
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        size = min(settings.batch_size, train.n_cells)
        collator = DataCollatorForCorrMask(RandomMasker(train.vocabulary), return_masked_positions=True)
        collator.set_epoch(0)
        batch = collator(CorpusDataset(train).__getitems__(list(range(size))))
        batch = {name: value.to(device) for name, value in batch.items()}
        model = start_model(train.vocabulary, settings).to(device).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

        def step() -> None:
            model(**batch).loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        @torch.inference_mode()
        def look() -> None:
            model(**batch)

        times = []
        for what in (step, look):
            what()
            _wait(device)
            began = time.perf_counter()
            for _ in range(STEPS):
                what()
            _wait(device)
            times.append((time.perf_counter() - began) / STEPS)
    finally:
        torch.set_num_threads(before)
    a_step, a_look = times
    rows = 2 * min(scoring.n_cells, n_test) + 3 * scoring.n_targets + 2 * n_labelled
    tuning = scoring.fine_tuning_epochs * (n_labelled / 2) * a_step / size
    return START + settings.max_steps * settings.gradient_accumulation * a_step, rows * a_look / size + tuning


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
