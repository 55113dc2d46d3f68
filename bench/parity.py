"""Checks that come before any clock: what is about to be timed gives the right result."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from contestants import pipelines, reference_settings

from corrmask_fast import CorrMasker, DataCollatorForCorrMask, set_num_threads
from corrmask_fast.reference import mask_row

if TYPE_CHECKING:
    from workload import Workload

FEW = 3  # rows that the reference masks; it takes its time


def check_masker(workload: Workload, batch: int) -> None:
    """The masker equals the reference to the bit, with one thread and with two, counted and by epoch."""
    rows = torch.from_numpy(workload.rows(batch))
    settings = reference_settings(workload.graph)
    for epoch in (None, 1):
        set_num_threads(2)
        both = CorrMasker(workload.graph)(rows, epoch=epoch)
        set_num_threads(1)
        single = CorrMasker(workload.graph)(rows, epoch=epoch)
        for one, two in zip(single, both, strict=True):
            assert torch.equal(one, two), "one thread and two differ"
        for i, row in enumerate(rows[:FEW].tolist()):
            draw = {"draw_id": i} if epoch is None else {"epoch": epoch}
            expected = mask_row(row, **draw, **settings)
            found = [tensor[i].tolist() for tensor in single]
            assert found == list(map(list, expected)), f"row {i} is not the reference's"


def check_pipelines(workload: Workload, batch: int) -> None:
    """Every pipeline delivers the same cells; both of ours the reference's masks."""
    rows, cells = workload.rows(batch), list(range(batch))
    expected = [mask_row(row, epoch=0, **reference_settings(workload.graph)) for row in rows[:FEW].tolist()]
    for name, dataset, collator in pipelines(workload):
        if isinstance(collator, DataCollatorForCorrMask):
            collator.set_epoch(0)
        found = collator(dataset.__getitems__(cells))
        ids, labels = found["input_ids"].numpy(), found["labels"].numpy()
        assert np.array_equal(np.where(labels == -100, ids, labels), rows), f"{name}: the cells are not the same"
        assert found["attention_mask"].all(), f"{name}: padding in cells of one length"
        if isinstance(collator, DataCollatorForCorrMask):
            for i, row in enumerate(expected):
                assert ids[i].tolist() == row.input_ids, f"{name}: row {i} is not the reference's"
                assert labels[i].tolist() == row.labels, f"{name}: row {i} is not the reference's"
