"""The stages of a build, called one by one, without progress bars."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from corrmask_fast.graph.build import stages_cpu as stages
from corrmask_fast.graph.build.stages_cpu import rank_genes
from corrmask_fast.progress import progress_bar

if TYPE_CHECKING:
    from corrmask_fast import Corpus
    from corrmask_fast.graph.build.stages_cpu import GeneColumns

__all__ = ["QUIET", "rank_genes", "read_columns"]

QUIET = partial(progress_bar, shown=False)


def read_columns(corpus: Corpus, min_presence: int) -> GeneColumns:
    """Return all cells as columns of the genes that are present in enough of them."""
    sample = stages.read_sample(corpus, np.arange(corpus.n_cells), corpus.max_length, QUIET)
    genes = np.flatnonzero(sample.presence.sum(axis=0) >= min_presence)
    return stages.make_columns(sample, genes, corpus.max_length)
