"""Checks that come before any clock: what is about to be timed gives the right result."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from contestants import pipelines

from corrmask_fast import CorrMasker, DataCollatorForCorrMask, MaskedBatch, set_num_threads
from corrmask_fast.testing import Case, assert_same

if TYPE_CHECKING:
    from workload import Workload

FEW = 3  # rows that the oracle masks; it takes its time


def check_masker(workload: Workload, batch: int) -> None:
    """The masker equals the oracle to the bit, with one thread and with two, counted and by epoch."""
    rows = workload.rows(batch)
    few = Case("bench", workload.graph, rows[:FEW])
    for epoch, draw in ((None, {"draw_ids": np.arange(FEW)}), (1, {"epoch": 1})):
        expected = few.expected(**draw)
        results = []
        for threads in (2, 1):
            set_num_threads(threads)
            results.append(CorrMasker(workload.graph)(torch.from_numpy(rows), epoch=epoch))
            assert_same(expected, MaskedBatch(*(tensor[:FEW] for tensor in results[-1])), f"{threads} threads, {draw}")
        assert_same(*results, "one thread beside two")


def check_pipelines(workload: Workload, batch: int) -> None:
    """Every pipeline delivers the same cells; both of ours the oracle's masks."""
    rows, cells = workload.rows(batch), list(range(batch))
    expected = Case("bench", workload.graph, rows[:FEW]).expected(epoch=0)
    for name, dataset, collator in pipelines(workload):
        ours = isinstance(collator, DataCollatorForCorrMask)
        if ours:
            collator.set_epoch(0)
            collator.return_masked_positions = True
        found = collator(dataset.__getitems__(cells))
        ids, labels = found["input_ids"], found["labels"]
        assert np.array_equal(torch.where(labels == -100, ids, labels), rows), f"{name}: the cells are not the same"
        assert found["attention_mask"].all(), f"{name}: padding in cells of one length"
        if ours:
            assert_same(expected, MaskedBatch(ids[:FEW], labels[:FEW], found["masked_positions"][:FEW]), name)
