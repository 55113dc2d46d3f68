"""What is compared with what, and by how much it shall win."""

from __future__ import annotations

from typing import NamedTuple

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


def with_threads(name: str, threads: int) -> str:
    """Name a contestant that runs with so many threads."""
    return f"{name}, {threads} thread{'s' * (threads > 1)}"


class Goal(NamedTuple):
    """``ours`` shall be ``at_least`` times as fast as each of ``theirs``."""

    what: str
    case: str
    ours: str
    theirs: tuple[str, ...]
    at_least: float
    smallest_batch: int = 0
    largest_batch: int = 1_000_000


GOALS = (
    Goal("fetch and collate: our dataset and collator", "input", OURS, (STOCK, NEWEST), 60),
    Goal("fetch and collate: our collator on their folder", "input", LISTS, (STOCK, NEWEST), 8),
    Goal("mask a padded tensor", "masking", MASKER, (TORCH_MASK,), 8),
    Goal("mask a padded tensor, draws from the epoch", "masking", MASKER_EPOCH, (TORCH_MASK,), 8),
    Goal("mask a padded tensor", "reference", MASKER, (REFERENCE,), 1_000),
    *(
        Goal(what, f"threads: {name}", with_threads(name, 2), (with_threads(name, 1),), *limits)
        for what, name in (("mask with 2 threads", MASKER), ("fetch and collate with 2 threads", OURS))
        for limits in ((1.0, 0, 12), (1.8, 256))
    ),
)
