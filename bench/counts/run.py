"""From raw counts to tokens and to masked batches: ``python bench/counts/run.py``; rows go to results/counts.csv.

The rival is the arithmetic of Geneformer's TranscriptomeTokenizer, written anew: blocks of 512 cells, scaled and
divided with SciPy, each cell's values sorted by ``np.argsort``; for batches, Hugging Face's collator after it.
"""

from __future__ import annotations

import sys
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import scipy.sparse as sp
import torch
from harness.bench import Bench, parser_of
from harness.goals import Goal
from harness.records import PACKAGES
from harness.timing import Contestant, Timing

from corrmask_fast import (
    DataCollatorForCounts,
    DependencyGraph,
    RankEncoder,
    Vocabulary,
    make_masker,
    set_num_threads,
    tokenize,
)
from corrmask_fast.masking.stock import stock_collator
from counts.disk import LOADERS, SLAF, missing, slaf_microseconds

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

CASES = ("encode", "masked", "tokenize", "disk")
N_GENES, LONGEST, BLOCK, COPIES = 20_000, 2_048, 512, 8
EXPRESSED = (700, 2_000, 6_000)  # genes of a cell
GENEFORMER, SORT = "Geneformer's arithmetic", "floor: np.sort of the float32 keys"
STOCK = "Geneformer's arithmetic, Hugging Face's collator"
ENCODER, OURS, TOKENIZE = "RankEncoder", "DataCollatorForCounts", "tokenize"
DISK_OURS = f"bionemo-scdl, then: {OURS}"
DISK_STOCK = (*(f"{loader}, then: {STOCK}" for loader in LOADERS), SLAF)
GOALS = (
    *(Goal(f"{n} genes: counts to tokens", f"encode {n}", ENCODER, (GENEFORMER,), 10) for n in EXPRESSED),
    *(
        Goal(f"{n} genes: counts to a masked batch", f"masked {n}", OURS, (STOCK,), 15 if n == EXPRESSED[-1] else 30)
        for n in EXPRESSED
    ),
    *(Goal(f"{n} genes: a file to a corpus on disk", f"tokenize {n}", TOKENIZE, (GENEFORMER,), 5) for n in EXPRESSED),
    *(Goal(f"{n} genes: a file to masked batches", f"disk {n}", DISK_OURS, DISK_STOCK, 3) for n in EXPRESSED),
)


class Cells:
    """Made-up cells that express ``n`` genes each: counts as float32 CSR, a vocabulary, medians, a graph."""

    def __init__(self, n: int, n_cells: int, n_genes: int) -> None:
        rng = np.random.default_rng(n)
        weight = rng.gamma(0.4, size=n_genes)
        chosen = [np.sort(rng.choice(n_genes, n, replace=False, p=weight / weight.sum())) for _ in range(n_cells)]
        columns = np.concatenate(chosen)
        counts = 1 + rng.poisson(rng.gamma(0.3, 3, columns.size) * weight[columns] / weight.mean())
        indptr = np.arange(n_cells + 1) * n
        self.counts = sp.csr_matrix((counts.astype(np.float32), columns.astype(np.int32), indptr), (n_cells, n_genes))
        names = tuple(f"ENSG{i:011d}" for i in range(n_genes))
        order = rng.permutation(n_genes)  # columns stand in another order than tokens
        self.names = [names[k] for k in order]
        self.vocabulary = Vocabulary(("<pad>", "<mask>", *names))
        self.medians = dict(zip(names, (rng.gamma(2, 1, n_genes) + 0.1).tolist(), strict=True))
        self.token_of_column = 2 + order
        self.median_of_column = np.array([self.medians[name] for name in self.names])
        self.n_genes_a_cell, self.nnz = n, self.counts.nnz

    def batches(self, size: int) -> Iterator[Any]:
        return (self.counts[i : i + size] for i in range(0, self.counts.shape[0], size))

    def graph(self) -> DependencyGraph:
        """Return a graph of pairs of a third of the genes."""
        return DependencyGraph.from_edges([(i, i + 1) for i in range(2, len(self.names) // 3, 2)], self.vocabulary)


def geneformer_tokens(cells: Cells, counts: Any = None) -> Iterator[np.ndarray]:
    """Yield each cell's tokens by Geneformer's arithmetic."""
    counts = cells.counts if counts is None else counts
    for begin in range(0, counts.shape[0], BLOCK):
        block = counts[begin : begin + BLOCK]
        totals = np.asarray(block.sum(axis=1, dtype=np.float64))
        scaled = sp.csr_matrix(block.multiply(1 / totals).multiply(10_000).multiply(1 / cells.median_of_column[None]))
        for i in range(scaled.shape[0]):
            row = scaled[i]
            yield cells.token_of_column[row.indices][np.argsort(-row.data)][:LONGEST]


def geneformer_batches(cells: Cells, batch: int, collator: Any) -> None:
    tokens = list(geneformer_tokens(cells))
    for begin in range(0, len(tokens), batch):
        collator([{"input_ids": cell.tolist()} for cell in tokens[begin : begin + batch]])


def geneformer_file(path: Path, cells: Cells, folder: Path) -> None:
    """Tokenise a file as TranscriptomeTokenizer does, and write it with ``datasets``."""
    import anndata
    import datasets

    datasets.disable_progress_bars()
    file = anndata.read_h5ad(path, backed="r")
    found = [cell.tolist() for cell in geneformer_tokens(cells, file.X[:])]
    lengths = [len(cell) for cell in found]
    datasets.Dataset.from_dict({"input_ids": found, "length": lengths}).save_to_disk(str(folder))


def sort_keys(cells: Cells, keys: np.ndarray) -> None:
    indptr = cells.counts.indptr
    for begin, end in pairwise(indptr):
        np.sort(keys[begin:end])


def check(cells: Cells, encoder: RankEncoder) -> None:
    """Both ways name the same genes in the same order, but for ties and the last bits of a value."""
    batch = encoder(cells.counts)
    for i, theirs in enumerate(geneformer_tokens(cells)):
        ours = batch.tokens[batch.indptr[i] : batch.indptr[i + 1]]
        assert ours.size == theirs.size, "cells of other lengths"
        assert np.mean(ours == theirs) > 0.98, f"cell {i}: other genes"


def measure(bench: Bench, case: str, cells: Cells, batch: int) -> None:
    """Time one case for cells of one depth."""
    rows, n = cells.counts.shape[0], cells.n_genes_a_cell
    encoder = RankEncoder(cells.vocabulary, cells.medians, cells.names)
    check(cells, encoder)
    name, more = f"{case} {n}", {"genes_a_cell": n, "nnz": cells.nnz}
    if case == "encode":
        keys = cells.counts.data * np.float32(1.7)
        timings = bench.race(name, batch, [
            Contestant(GENEFORMER, lambda: drop(id, geneformer_tokens(cells)), rows),
            Contestant(ENCODER, lambda: drop(encoder, cells.batches(batch)), rows),
            Contestant(SORT, lambda: sort_keys(cells, keys), rows),
        ], more=more)  # fmt: skip
        print("  ".join(f"{one}: {timing.p50 * 1000 / n:.1f} ns a nonzero" for one, timing in timings.items()))
    elif case == "masked":
        collator = DataCollatorForCounts(encoder, make_masker("corrmask", graph=cells.graph()))
        stock = stock_collator(cells.vocabulary)
        bench.race(name, batch, [
            Contestant(STOCK, lambda: geneformer_batches(cells, batch, stock), rows),
            Contestant(OURS, lambda: drop(collator, cells.batches(batch)), rows),
        ], more=more)  # fmt: skip
    elif case == "disk":
        measure_disk(bench, name, cells, batch, more)
    else:
        with tempfile.TemporaryDirectory() as folder:
            measure_files(bench, name, cells, Path(folder), more)


def drop(collator: Any, batches: Iterable[Any]) -> None:
    """Collate batch after batch as training does: none is kept."""
    for batch in batches:
        collator(batch)


def measure_disk(bench: Bench, name: str, cells: Cells, batch: int, more: dict[str, Any]) -> None:
    """Time a file on disk to masked batches: each loader that is installed, with either way behind it."""
    import anndata
    import pandas as pd

    stock = stock_collator(cells.vocabulary)
    encoder = RankEncoder(cells.vocabulary, cells.medians, cells.names)
    ours = DataCollatorForCounts(encoder, make_masker("corrmask", graph=cells.graph()))
    rows = cells.counts.shape[0]

    def theirs(counts: Any) -> None:
        stock([{"input_ids": cell.tolist()} for cell in geneformer_tokens(cells, counts)])

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "cells.h5ad")
        anndata.AnnData(cells.counts, var=pd.DataFrame(index=cells.names)).write_h5ad(path)
        contestants = []
        for loader, (begin_of, module) in LOADERS.items():
            if missing(module):
                print(f"{name}: {loader} is not installed here; see bench/README.md")
                continue
            begin = begin_of(path, batch)
            contestants += [
                Contestant(f"{loader}, then: {STOCK}", lambda begin=begin: drop(theirs, begin()), rows),
                Contestant(f"{loader}, then: {OURS}", lambda begin=begin: drop(ours, begin()), rows),
                Contestant(f"{loader} alone", lambda begin=begin: drop(id, begin()), rows),
            ]
        if contestants:
            bench.race(name, batch, contestants, more=more, sample_ms=0.0)
        if bench.smoke:
            return
        if missing("slaf"):
            print(f"{name}: {SLAF} is not installed here; see bench/README.md")
            return
        passes = [slaf_microseconds(path, batch, LONGEST, len(cells.names), rows) for _ in range(3)]
        timing = Timing(*np.percentile(passes, [20, 50, 80]))
        bench.keep(name, batch, {SLAF: timing}, {SLAF: 0}, {**more, **bench.shared, "rounds": len(passes)})


def measure_files(bench: Bench, name: str, cells: Cells, folder: Path, more: dict[str, Any]) -> None:
    """Time a file to a corpus on disk."""
    import shutil

    import anndata
    import pandas as pd

    path, output = folder / "cells.h5ad", folder / "out.dataset"
    counts = sp.vstack([cells.counts] * (1 if bench.smoke else COPIES), format="csr")  # a file of 4 096 cells or more
    anndata.AnnData(counts, var=pd.DataFrame(index=cells.names)).write_h5ad(path)
    rows = counts.shape[0]

    def remove() -> None:
        shutil.rmtree(output, ignore_errors=True)

    dictionaries = cells.vocabulary, cells.medians
    bench.race(name, rows, [
        Contestant(GENEFORMER, lambda: geneformer_file(path, cells, output), rows, prepare=remove),
        Contestant(TOKENIZE, lambda: tokenize(path, output, *dictionaries, progress=False), rows, prepare=remove),
    ], rounds=min(bench.rounds, 3), more=more, sample_ms=0.0)  # fmt: skip


def main() -> None:
    """Check, time, print, record."""
    parser = parser_of(__doc__, "counts.csv", CASES, rounds=9)
    parser.add_argument("--batch", type=int, default=64)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    set_num_threads(1)
    packages = (*PACKAGES, "scipy", *LOADERS, SLAF)
    bench = Bench(arguments, GOALS, {"columns": N_GENES, "longest": LONGEST}, floors=(SORT,), packages=packages)
    for n in (30, 60, 90) if arguments.smoke else EXPRESSED:
        n_cells = 64 if arguments.smoke else 512 if n == EXPRESSED[-1] else 1024
        cells = Cells(n, n_cells, 200 if arguments.smoke else N_GENES)
        for case in arguments.cases:
            measure(bench, case, cells, 16 if arguments.smoke else arguments.batch)
    bench.finish()


if __name__ == "__main__":
    main()
