"""What the examples share: made-up cells in AnnData files, an encoder, a collator, and the masks that must come out."""

from __future__ import annotations

import tempfile
from pathlib import Path

import anndata
import numpy as np

from corrmask_fast import (
    CorrMasker,
    DataCollatorForCounts,
    DependencyGraph,
    RankEncoder,
    Vocabulary,
    corpus_medians,
)
from corrmask_fast.synthetic import generate_cells

FOLDER = Path(tempfile.mkdtemp())


def make_files(n_files: int = 3) -> list[Path]:
    """Write made-up cells as a few ``.h5ad`` files."""
    paths = [FOLDER / f"cells{i}.h5ad" for i in range(n_files)]
    for i, path in enumerate(paths):
        generate_cells(200, 300, n_modules=4, seed=i).write_h5ad(path)
    return paths


def make_collator(paths: list[Path], genes: object = None) -> DataCollatorForCounts:
    """Return a collator for the files' genes: these few lines are all that a project has to write."""
    vocabulary = Vocabulary(("<pad>", "<mask>", *anndata.read_h5ad(paths[0]).var_names))
    medians = corpus_medians(paths, vocabulary, progress=False)
    encoder = RankEncoder(vocabulary, medians, genes)
    graph = DependencyGraph.from_edges([(2 + i, 3 + i) for i in range(0, 200, 2)], vocabulary)
    collator = DataCollatorForCounts(encoder, CorrMasker(graph))
    collator.set_epoch(0)
    return collator


def check(collator: DataCollatorForCounts, paths: list[Path], batches: list[dict]) -> None:
    """Hold what a loader gave to the same cells read whole: every cell once, with its mask of this epoch."""
    whole = anndata.concat([anndata.read_h5ad(path) for path in paths])

    def rows(batch: dict) -> list[tuple]:
        return [(*ids[mask == 1].tolist(), *labels[mask == 1].tolist()) for ids, labels, mask in zip(
            *(batch[name].numpy() for name in ("input_ids", "labels", "attention_mask")), strict=True)]  # fmt: skip

    found = sorted(row for batch in batches for row in rows(batch))
    assert found == sorted(rows(collator(whole))), "a loader's cells are not the files'"
    masked = np.mean([float((batch["labels"] != -100).sum() / batch["attention_mask"].sum()) for batch in batches])
    print(f"{len(found)} cells in {len(batches)} batches, {100 * masked:.1f} % of their genes masked")
