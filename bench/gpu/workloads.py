"""What is measured on: made-up cells and their graph, made anew in seconds by Numba and PyTorch's own dependencies."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from harness.atlas import made_up_corpus
from harness.workload import Size, Workload

from corrmask_fast import build_dependency_graph
from corrmask_fast.training.settings import PretrainingSettings

if TYPE_CHECKING:
    from corrmask_fast import Corpus


PAPER = PretrainingSettings(head="full")  # the paper's model, with the head that stock code trains


@dataclass(frozen=True)
class Sizes(Size):
    """How large; the defaults are those of a real pretraining, over cells of full length: no padding, the most work."""

    n_modules: int = 80
    batches: tuple[int, ...] = (12, 64, 1_024, 16_384)
    strategy_batches: tuple[int, ...] = (64, 16_384)
    count_batches: tuple[int, ...] = (64, 1_024)
    min_presence: int = 20
    density: float = 0.13
    atlas_cells: int = 100_000
    atlas_genes: tuple[int, ...] = (2_000, 25_000)
    atlas_density: float = 0.06
    training_batches: tuple[int, ...] = (12, 64)
    model: PretrainingSettings = PAPER
    sample_ms: float = 10.0


SMOKE = Sizes(
    batches=(3, 8),
    strategy_batches=(8,),
    count_batches=(8,),
    length=48,
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
    sample_ms=1.0,
)


def masking_workload(sizes: Sizes) -> Workload:
    """Cells of full length and the graph that Algorithm 1 builds from them and the shorter ones."""
    shape = {"density": sizes.density, "n_modules": sizes.n_modules, "max_length": sizes.length}
    corpus = made_up_corpus(sizes.n_cells, sizes.n_genes, **shape)
    graph = build_dependency_graph(
        corpus,
        max_length=sizes.length,
        min_presence=sizes.min_presence,
        min_cooccurrence=sizes.min_cooccurrence,
        device="cpu",
        progress=False,
    )
    return Workload(sizes, Path(), corpus.take(np.flatnonzero(corpus.lengths == sizes.length)), graph)


def atlas(sizes: Sizes, n_genes: int) -> Corpus:
    """As many cells as a graph is built from, over all genes or as many as a panel of them has."""
    modules = max(2, min(50, n_genes // 20))
    return made_up_corpus(
        sizes.atlas_cells, n_genes, density=sizes.atlas_density, n_modules=modules, max_length=sizes.length
    )


# What a device's graph is compared with the CPU's on before any clock: small, yet with common genes and rare ones.
COMPARED = Sizes(atlas_cells=900, atlas_density=0.2, length=512)
