"""What is measured on: made-up cells and their graph, made anew in seconds by Numba and PyTorch's own dependencies."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from atlas import made_up_corpus
from workload import Size, Workload

from corrmask_fast import build_dependency_graph
from corrmask_fast.training.settings import PretrainingSettings

if TYPE_CHECKING:
    from corrmask_fast import Corpus


PAPER = PretrainingSettings(head="full")  # the paper's model, with the head that stock code trains


@dataclass(frozen=True)
class Sizes:
    """How large; the defaults are those of a real pretraining, over cells of full length: no padding, the most work."""

    batches: tuple[int, ...] = (12, 64, 1_024, 16_384)
    columns: int = 2_048
    n_genes: int = 25_424
    n_cells: int = 4_000  # that the masking graph is built from
    density: float = 0.13
    n_modules: int = 80
    min_cooccurrence: int = 20  # of 4 000 cells: in proportion, more than 200 of 100 000
    atlas_cells: int = 100_000
    atlas_genes: tuple[int, ...] = (2_000, 25_000)
    atlas_density: float = 0.06
    training_batches: tuple[int, ...] = (12, 64)
    model: PretrainingSettings = PAPER
    rounds: int = 40
    sample_ms: float = 10.0


SMOKE = Sizes(
    batches=(3, 8),
    columns=48,
    n_genes=600,
    n_cells=240,
    density=0.2,
    n_modules=8,
    min_cooccurrence=10,
    atlas_cells=300,
    atlas_genes=(80, 200),
    atlas_density=0.2,
    training_batches=(2,),
    model=PretrainingSettings(head="full", hidden_size=16, layers=1, heads=2, intermediate_size=32),
    rounds=2,
    sample_ms=1.0,
)


def masking_workload(sizes: Sizes) -> Workload:
    """Cells of full length and the graph that Algorithm 1 builds from them and the shorter ones."""
    corpus = made_up_corpus(
        sizes.n_cells, sizes.n_genes, density=sizes.density, n_modules=sizes.n_modules, max_length=sizes.columns
    )
    graph = build_dependency_graph(
        corpus,
        max_length=sizes.columns,
        min_presence=20,
        min_cooccurrence=sizes.min_cooccurrence,
        device="cpu",
        progress=False,
    )
    full = corpus.take(np.flatnonzero(corpus.lengths == sizes.columns))
    return Workload(Size(n_cells=sizes.n_cells, length=sizes.columns), Path(), full, graph)


def rows_of(workload: Workload, batch: int) -> torch.Tensor:
    """(batch, columns) int64 on the CPU."""
    return torch.from_numpy(workload.rows(batch))


def atlas(sizes: Sizes, n_genes: int) -> Corpus:
    """As many cells as a graph is built from, over all genes or as many as a panel of them has."""
    modules = max(2, min(50, n_genes // 20))
    return made_up_corpus(
        sizes.atlas_cells, n_genes, density=sizes.atlas_density, n_modules=modules, max_length=sizes.columns
    )


# What a device's graph is compared with the CPU's on before any clock: small, yet with common genes and rare ones.
COMPARED = Sizes(atlas_cells=900, atlas_density=0.2, columns=512)
