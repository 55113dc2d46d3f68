"""Masking and its input: contestants (today's way first, ours last) and goals."""

from __future__ import annotations

from itertools import chain, repeat
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import transformers
from datasets import load_from_disk
from harness.floors import copy_collated, copy_masked, philox_words
from harness.goals import Goal
from harness.timing import Contestant
from torch.utils.data import DataLoader

from corrmask_fast import CorpusDataset, CorrMasker, DataCollatorForCorrMask, set_num_threads
from corrmask_fast.masking.stock import stock_collator
from corrmask_fast.testing import Case

if TYPE_CHECKING:
    from collections.abc import Callable

    from harness.workload import Workload

    from corrmask_fast import Vocabulary

# The contestants' names, as they stand in the results.
STOCK = "datasets folder, Geneformer-style collator"
NEWEST = "datasets folder, newest collator with a fast tokenizer"
LISTS = "datasets folder, our collator"
OURS = "CorpusDataset, our collator"
TORCH_MASK = "torch_mask_tokens (random masks)"
REFERENCE = "pure-Python reference"
MASKER = "CorrMasker"
MASKER_EPOCH = "CorrMasker, draws from the epoch"
COPY = "floor: copy of the same bytes"
PHILOX = "floor: Philox words of all columns"
FLATTENED = "our padded batch, then transformers' DataCollatorWithFlattening"
PACKED = "our collator with packing"
FLOORS = (COPY, PHILOX)


def with_threads(name: str, threads: int) -> str:
    """Name a contestant that runs with so many threads."""
    return f"{name}, {threads} thread{'s' * (threads > 1)}"


GOALS = (
    Goal("fetch and collate: our dataset and collator", "input", OURS, (STOCK, NEWEST), 60),
    Goal("fetch and collate: our collator on their folder", "input", LISTS, (STOCK, NEWEST), 8),
    Goal("mask a padded tensor", "masking", MASKER, (TORCH_MASK,), 8),
    Goal("mask a padded tensor, draws from the epoch", "masking", MASKER_EPOCH, (TORCH_MASK,), 8),
    Goal("mask a padded tensor", "reference", MASKER, (REFERENCE,), 1_000),
    Goal("mask and pack cells into one row", "packing", PACKED, (FLATTENED,), 5),
    *(
        Goal(what, f"threads: {name}", with_threads(name, 2), (with_threads(name, 1),), at_least, batches=batches)
        for what, name in (("mask with 2 threads", MASKER), ("fetch and collate with 2 threads", OURS))
        for at_least, batches in ((1.0, (0, 12)), (1.8, (256, 1_000_000)))
    ),
)


def newest_collator(vocabulary: Vocabulary) -> Any:
    """Hugging Face's collator of today over a fast tokenizer of the same vocabulary."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    words = WordLevel({name: token for token, name in enumerate(vocabulary.names)}, unk_token="<pad>")
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(words), pad_token="<pad>", mask_token="<mask>"
    )
    return transformers.DataCollatorForLanguageModeling(tokenizer)


def pipelines(workload: Workload) -> list[tuple[str, Any, Any]]:
    """(name, dataset, collator) of every input pipeline."""
    vocabulary = workload.graph.vocabulary
    lists = load_from_disk(str(workload.folder)).select_columns(["input_ids"])
    ours = DataCollatorForCorrMask(CorrMasker(workload.graph))
    return [
        (STOCK, lists, stock_collator(vocabulary)),
        (NEWEST, lists, newest_collator(vocabulary)),
        (LISTS, lists, ours),
        (OURS, CorpusDataset(workload.corpus), ours),
    ]


def input_race(workload: Workload, batch: int) -> list[Contestant]:
    """Fetch and collate through a DataLoader without workers, shuffled."""
    entries = []
    for name, dataset, collator in pipelines(workload):
        loader = DataLoader(dataset, batch, shuffle=True, drop_last=True, collate_fn=collator)
        entries.append(Contestant(name, chain.from_iterable(repeat(loader)).__next__, batch))
    shape = batch, workload.size.length
    return [
        Contestant(COPY, copy_collated(*shape), batch),
        Contestant(PHILOX, philox_words(*shape), batch),
        *entries,
    ]


def floors_of_masking(rows: torch.Tensor) -> list[Contestant]:
    """Return what masking a padded tensor cannot beat."""
    batch = len(rows)
    return [Contestant(COPY, copy_masked(*rows.shape), batch), Contestant(PHILOX, philox_words(*rows.shape), batch)]


def torch_mask(rows: torch.Tensor, vocabulary: Vocabulary) -> Contestant:
    """Return Hugging Face's masking of a padded tensor."""
    stock = stock_collator(vocabulary)
    # It writes into the tensor it is given. Its special tokens are looked up beforehand: off the clock.
    theirs, special = rows.clone(), torch.zeros(rows.shape, dtype=torch.bool)
    return Contestant(TORCH_MASK, lambda: stock.torch_mask_tokens(theirs, special_tokens_mask=special), len(rows))


def masking_race(workload: Workload, batch: int) -> list[Contestant]:
    """Mask a padded tensor."""
    rows = torch.from_numpy(workload.rows(batch))
    masker = CorrMasker(workload.graph)
    return [
        *floors_of_masking(rows),
        torch_mask(rows, workload.graph.vocabulary),
        Contestant(MASKER_EPOCH, lambda: masker(rows, epoch=1), batch),
        Contestant(MASKER, lambda: masker(rows), batch),
    ]


def reference_race(workload: Workload, batch: int) -> list[Contestant]:
    """Mask a padded tensor, and a few of its rows in plain Python."""
    rows = torch.from_numpy(workload.rows(batch))
    masker = CorrMasker(workload.graph)
    few = Case("bench", workload.graph, workload.rows(2))
    return [
        Contestant(REFERENCE, lambda: few.expected(draw_ids=np.arange(few.rows)), few.rows),
        Contestant(MASKER, lambda: masker(rows), batch),
    ]


def packers(workload: Workload, batch: int) -> tuple[Callable[[], dict[str, Any]], Callable[[], dict[str, Any]]]:
    """Return two functions that mask and pack the first cells: transformers' collator after ours, and ours alone."""
    masker, cells = (
        CorrMasker(workload.graph),
        CorpusDataset(workload.corpus)[np.arange(batch) % workload.corpus.n_cells],
    )
    pads, packs = DataCollatorForCorrMask(masker), DataCollatorForCorrMask(masker, packing=True)
    for collator in (pads, packs):
        collator.set_epoch(0)
    flattens = transformers.DataCollatorWithFlattening(return_flash_attn_kwargs=True)
    lengths = np.diff(cells.indptr).tolist()

    def flatten() -> dict[str, Any]:
        padded = pads(cells)
        rows = zip(padded["input_ids"], padded["labels"], lengths, strict=True)
        return flattens([{"input_ids": ids[:n], "labels": labels[:n]} for ids, labels, n in rows])

    return flatten, lambda: packs(cells)


def packing_race(workload: Workload, batch: int) -> list[Contestant]:
    """Mask ragged cells, and put them into one row."""
    return [
        Contestant(name, run, batch) for name, run in zip((FLATTENED, PACKED), packers(workload, batch), strict=True)
    ]


def thread_race(workload: Workload, batch: int, *, ragged: bool) -> list[Contestant]:
    """Mask a padded tensor, or fetch and collate, with one thread and with two."""
    masker = CorrMasker(workload.graph)
    if ragged:
        dataset, collator = CorpusDataset(workload.corpus), DataCollatorForCorrMask(masker)
        cells = (np.arange(batch) % len(dataset)).tolist()
        name, run = OURS, lambda: collator(dataset.__getitems__(cells))
    else:
        rows = torch.from_numpy(workload.rows(batch))
        name, run = MASKER, lambda: masker(rows)
    return [Contestant(with_threads(name, n), run, batch, n, lambda n=n: set_num_threads(n)) for n in (1, 2)]
