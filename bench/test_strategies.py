"""The bench of strategies runs, and its rivals mask as many tokens as ours."""

from __future__ import annotations

import torch
from strategies import MIN_COUNTS, contestants

from corrmask_fast import PMITable


def test_every_contestant_masks_the_budget(workload):
    tables = {name: PMITable.from_corpus(workload.corpus, min_count=5, progress=False) for name in MIN_COUNTS}
    batch = workload.size.batches[0]
    for one in contestants(workload, tables, batch):
        labels = one.run()[1]
        counts = (labels != -100).sum(1)
        if not one.name.startswith("random, plain"):  # Hugging Face's masks any number
            assert torch.equal(counts, torch.full((batch,), int(workload.size.length * 0.15))), one.name
