"""Who runs against whom. Every function returns the contestants of one race, today's way first and ours last."""

from __future__ import annotations

from itertools import chain, repeat
from typing import TYPE_CHECKING, Any

import goals
import numpy as np
import torch
import transformers
from datasets import load_from_disk
from floors import copy_collated, copy_masked, philox_words
from timing import Contestant
from torch.utils.data import DataLoader

from corrmask_fast import CorpusDataset, CorrMasker, DataCollatorForCorrMask, set_num_threads
from corrmask_fast.masking.stock import stock_collator
from corrmask_fast.testing import Case

if TYPE_CHECKING:
    from workload import Workload

    from corrmask_fast import Vocabulary


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
        (goals.STOCK, lists, stock_collator(vocabulary)),
        (goals.NEWEST, lists, newest_collator(vocabulary)),
        (goals.LISTS, lists, ours),
        (goals.OURS, CorpusDataset(workload.corpus), ours),
    ]


def input_race(workload: Workload, batch: int) -> list[Contestant]:
    """Fetch and collate through a DataLoader without workers, shuffled."""
    entries = []
    for name, dataset, collator in pipelines(workload):
        loader = DataLoader(dataset, batch, shuffle=True, drop_last=True, collate_fn=collator)
        entries.append(Contestant(name, chain.from_iterable(repeat(loader)).__next__, batch))
    shape = batch, workload.size.length
    return [
        Contestant(goals.COPY, copy_collated(*shape), batch),
        Contestant(goals.PHILOX, philox_words(*shape), batch),
        *entries,
    ]


def masking_race(workload: Workload, batch: int) -> list[Contestant]:
    """Mask a padded tensor."""
    rows = torch.from_numpy(workload.rows(batch))
    masker = CorrMasker(workload.graph)
    stock = stock_collator(workload.graph.vocabulary)
    # It writes into the tensor it is given. Its special tokens are looked up beforehand: off the clock.
    theirs, special = rows.clone(), torch.zeros(rows.shape, dtype=torch.bool)
    shape = batch, workload.size.length
    return [
        Contestant(goals.COPY, copy_masked(*shape), batch),
        Contestant(goals.PHILOX, philox_words(*shape), batch),
        Contestant(goals.TORCH_MASK, lambda: stock.torch_mask_tokens(theirs, special_tokens_mask=special), batch),
        Contestant(goals.MASKER_EPOCH, lambda: masker(rows, epoch=1), batch),
        Contestant(goals.MASKER, lambda: masker(rows), batch),
    ]


def reference_race(workload: Workload, batch: int) -> list[Contestant]:
    """Mask a padded tensor, and a few of its rows in plain Python."""
    rows = torch.from_numpy(workload.rows(batch))
    masker = CorrMasker(workload.graph)
    few = Case("bench", workload.graph, workload.rows(2))
    return [
        Contestant(goals.REFERENCE, lambda: few.expected(draw_ids=np.arange(few.rows)), few.rows),
        Contestant(goals.MASKER, lambda: masker(rows), batch),
    ]


def thread_race(workload: Workload, batch: int, *, ragged: bool) -> list[Contestant]:
    """Mask a padded tensor, or fetch and collate, with one thread and with two."""
    masker = CorrMasker(workload.graph)
    if ragged:
        dataset, collator = CorpusDataset(workload.corpus), DataCollatorForCorrMask(masker)
        cells = (np.arange(batch) % len(dataset)).tolist()
        name, run = goals.OURS, lambda: collator(dataset.__getitems__(cells))
    else:
        rows = torch.from_numpy(workload.rows(batch))
        name, run = goals.MASKER, lambda: masker(rows)
    return [Contestant(goals.with_threads(name, n), run, batch, n, lambda n=n: set_num_threads(n)) for n in (1, 2)]
