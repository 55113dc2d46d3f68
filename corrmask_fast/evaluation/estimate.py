"""How long training will take, from a few steps of it."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from corrmask_fast.evaluation.fine_tuning import Labeller, fine_tune, predictions
from corrmask_fast.progress import silent_bar
from corrmask_fast.training.pretrained import new_encoder

if TYPE_CHECKING:
    import os
    from collections.abc import Callable

    from corrmask_fast.cells.corpus import Corpus
    from corrmask_fast.evaluation.fine_tuning import FineTuning

BATCHES = 2  # timed; as many before them warm up


def seconds_of(what: Callable[[], object], device: torch.device, times: int = 1) -> float:
    """Return the mean seconds of a call, of so many after one that warms up."""
    what()
    _wait(device)
    began = time.perf_counter()
    for _ in range(times):
        what()
    _wait(device)
    return (time.perf_counter() - began) / times


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_a_batch(
    model: str | os.PathLike[str], corpus: Corpus, rows: np.ndarray, n_types: int, settings: FineTuning
) -> tuple[float, float]:
    """Return the seconds of a step of fine-tuning a checkpoint on some of the cells ``rows``, and of naming a batch."""
    labeller = Labeller(new_encoder(model, 0), corpus.vocabulary, n_types, per_gene=False)
    part = np.random.default_rng(0).permutation(rows)[: BATCHES * settings.batch_size]
    n = -(-part.size // settings.batch_size)

    def step() -> None:
        with silent_bar("", n, "step") as bar:
            one = replace(settings, epochs=1)
            fine_tune(labeller, corpus, part, lambda batch, _: torch.zeros(batch.size, dtype=torch.int64), one, bar)

    device = settings.torch_device()
    seconds = seconds_of(step, device) / n
    return seconds, seconds_of(lambda: list(predictions(labeller, corpus, part, settings)), device) / n
