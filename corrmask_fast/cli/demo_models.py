"""The demo's steps that need Hugging Face: the collators side by side, and a tiny BERT."""

from __future__ import annotations

import math
import time
from contextlib import contextmanager
from itertools import chain, repeat
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from corrmask_fast.errors import import_extra
from corrmask_fast.tables import align
from corrmask_fast.threads import get_num_threads, set_num_threads

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from corrmask_fast.cells.corpus import Corpus
    from corrmask_fast.masking.base import Masker

# Logits of one training step, batch * length * vocabulary: they are most of its work.
LOGITS = 8_000_000


class Throughput(NamedTuple):
    """An input pipeline and what it delivered."""

    name: str
    cells_per_second: float


def compare_collators(
    corpus: Corpus, folder: Path, masker: Masker, *, batch_size: int, seconds: float
) -> list[Throughput]:
    """Time fetching and collating through a DataLoader (0 workers, one thread), today's path first, then ours.

    ``folder`` is the datasets folder that ``corpus`` was read from.
    """
    from torch.utils.data import DataLoader

    from corrmask_fast.cells.dataset import CorpusDataset
    from corrmask_fast.masking.collator import DataCollatorForCorrMask
    from corrmask_fast.masking.stock import stock_collator

    dataset = import_extra("datasets", "hf").load_from_disk(str(folder)).select_columns(["input_ids"])
    stock, ours = stock_collator(corpus.vocabulary), DataCollatorForCorrMask(masker)
    pipelines = [
        ("datasets folder, Hugging Face's collator (random masks)", dataset, stock),
        ("datasets folder, our collator", dataset, ours),
        ("CorpusDataset, our collator", CorpusDataset(corpus), ours),
    ]
    loaders = {name: DataLoader(cells, batch_size, shuffle=True, collate_fn=c) for name, cells, c in pipelines}
    with one_thread():
        return [Throughput(name, _cells_per_second(loader, seconds)) for name, loader in loaders.items()]


@contextmanager
def one_thread() -> Iterator[None]:
    """Let PyTorch and our kernels use one thread each."""
    import torch

    threads, torch_threads = get_num_threads(), torch.get_num_threads()
    set_num_threads(1)
    torch.set_num_threads(1)
    try:
        yield
    finally:
        set_num_threads(threads)
        torch.set_num_threads(torch_threads)


def _cells_per_second(loader: Any, seconds: float) -> float:
    """Cells that a loader delivers in a second, over about ``seconds`` and without the first batch."""
    batches = chain.from_iterable(repeat(loader))
    next(batches)
    cells, began = 0, time.perf_counter()
    while True:
        cells += next(batches)["input_ids"].shape[0]
        passed = time.perf_counter() - began
        if passed >= seconds:
            return cells / passed


def throughput_table(rows: list[Throughput]) -> str:
    """Return throughputs as an aligned table, each beside its ratio to the first."""
    first = rows[0].cells_per_second
    lines = [[name, f"{rate:,.0f}", f"{rate / first:.1f}x"] for name, rate in rows]
    return "\n".join(align([["input pipeline", "cells/s", "ratio"], *lines]))


class Training(NamedTuple):
    """What was trained, and its loss at every step (nats)."""

    description: str
    losses: np.ndarray


def train_tiny_bert(folder: Path, masker: Masker, *, steps: int, progress: bool) -> Training:
    """Train a small ``BertForMaskedLM`` on the first genes of the cells in ``folder``."""
    import torch
    from torch.utils.data import DataLoader
    from tqdm.auto import trange

    from corrmask_fast.cells.corpus_io import read_corpus
    from corrmask_fast.cells.dataset import CorpusDataset
    from corrmask_fast.masking.collator import DataCollatorForCorrMask

    transformers = import_extra("transformers", "hf")
    vocabulary = masker.vocabulary
    batch_size = 16 if vocabulary.size < 8192 else 8
    length = min(256, max(64, LOGITS // (batch_size * vocabulary.size)))
    corpus = read_corpus(folder, max_length=length)
    torch.manual_seed(0)
    model = transformers.BertForMaskedLM(
        transformers.BertConfig(
            vocab_size=vocabulary.size,
            hidden_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=128,
            max_position_embeddings=length + 2,
            pad_token_id=vocabulary.pad_token_id,
        )
    )
    collator = DataCollatorForCorrMask(masker)
    loader = DataLoader(CorpusDataset(corpus), batch_size, shuffle=True, collate_fn=collator)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    batches = chain.from_iterable(loader for epoch in _epochs(collator))
    losses = np.empty(steps)
    with one_thread():  # layers this small lose more by waiting for other threads than they gain
        for step in trange(steps, desc="train", unit="step", disable=not progress):
            loss = model(**next(batches)).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses[step] = loss.item()
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return Training(
        f"BertForMaskedLM, 2 layers of width 64 ({parameters:,} parameters), {steps} steps of {batch_size} cells, "
        f"first {length} genes of each",
        losses,
    )


def _epochs(collator: Any) -> Any:
    """Count epochs, and tell the collator: other masks in each."""
    epoch = 0
    while True:
        collator.set_epoch(epoch)
        yield epoch
        epoch += 1


def chance_loss(masker: Masker) -> float:
    """Return the cross-entropy of a uniform guess among the genes, in nats."""
    lo, hi = masker.vocabulary.gene_range
    return math.log(hi - lo)
