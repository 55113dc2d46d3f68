"""A Parquet file to masked batches, as a stream and as an indexed corpus: ``python bench/streams.py``.

Whole passes through a DataLoader without workers. The cells and their masks are compared first; rows go to
results/streams.csv.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from datasets import disable_progress_bars, load_from_disk
from harness.bench import Bench, parser_of
from harness.goals import Goal
from harness.timing import Contestant
from harness.workload import SMOKE, Size, make_workload
from torch.utils.data import DataLoader

from corrmask_fast import (
    CorpusDataset,
    CorrMasker,
    DataCollatorForCorrMask,
    read_corpus,
    set_num_threads,
    stream_corpus,
)

if TYPE_CHECKING:
    from harness.workload import Workload

INDEXED = "indexed: read_corpus, CorpusDataset, shuffled"
OPEN = "floor: indexed, read into memory before"
STREAM, SHUFFLED = "stream_corpus", "stream_corpus, shuffle_buffer=2048"
SLOWER = 1.25  # within 20 % of the cells a second
GOALS = tuple(
    Goal(f"a Parquet file to masked batches: {ours}", "stream", ours, (INDEXED,), at_most=SLOWER)
    for ours in (STREAM, SHUFFLED)
)


def sources(workload: Workload, folder: Path) -> dict[str, Any]:
    """Name → what opens the cells of a Parquet file, and whether a DataLoader shuffles them."""
    path, vocabulary = folder / "cells.parquet", workload.graph.vocabulary
    disable_progress_bars()
    load_from_disk(str(workload.folder)).to_parquet(path, batch_size=1000)
    options = {"max_length": workload.size.length}
    opened = CorpusDataset(read_corpus(path, vocabulary, **options))
    return {
        OPEN: lambda: (opened, True),
        INDEXED: lambda: (CorpusDataset(read_corpus(path, vocabulary, **options)), True),
        STREAM: lambda: (stream_corpus(path, vocabulary, **options), False),
        SHUFFLED: lambda: (stream_corpus(path, vocabulary, shuffle_buffer=2048, **options), False),
    }


def loader_of(source: Any, batch: int, collator: Any) -> DataLoader:
    dataset, shuffle = source()
    return DataLoader(dataset, batch, shuffle=shuffle, collate_fn=collator)


def check(found: dict[str, Any], batch: int, collator: Any) -> None:
    """All hand out the same cells, masked alike."""
    expected = None
    for name, source in found.items():
        rows = set()
        for one in loader_of(source, batch, collator):
            masked = torch.stack([one["input_ids"], one["labels"]], dim=1).numpy()
            rows.update(row.tobytes() for row in masked)
        assert expected in {None, frozenset(rows)}, f"{name}: other cells or masks"
        expected = frozenset(rows)


def contestants(workload: Workload, folder: Path, batch: int) -> list[Contestant]:
    """Return every way, checked."""
    found, collator = sources(workload, folder), DataCollatorForCorrMask(CorrMasker(workload.graph))
    collator.set_epoch(0)
    check(found, batch, collator)

    def whole_pass(source: Any) -> None:
        for _ in loader_of(source, batch, collator):
            pass

    return [
        Contestant(name, lambda source=source: whole_pass(source), workload.corpus.n_cells)
        for name, source in found.items()
    ]


def main() -> None:
    """Check, time, print, record."""
    parser = parser_of(__doc__, "streams.csv", ("stream",), rounds=15)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    set_num_threads(1)
    workload = make_workload(SMOKE if arguments.smoke else Size(), arguments.keep)
    bench = Bench(arguments, GOALS, {"cells": workload.corpus.n_cells, **workload.describe()}, floors=(OPEN,))
    for batch in workload.size.batches:
        with tempfile.TemporaryDirectory() as folder:
            bench.race("stream", batch, contestants(workload, Path(folder), batch), sample_ms=0.0)
    bench.finish()


if __name__ == "__main__":
    main()
