"""The stages of a build, called one by one, without progress bars."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from corrmask_fast.graph.build.records import Cells
from corrmask_fast.graph.build.stages_cpu import CpuStages

if TYPE_CHECKING:
    from corrmask_fast import Corpus
    from corrmask_fast.graph.build.records import GeneColumns

STAGES = CpuStages()


def read_columns(corpus: Corpus, min_presence: int) -> GeneColumns:
    """Return all cells as columns of the genes that are present in enough of them."""
    sample = STAGES.read_sample(Cells(corpus, range(corpus.n_cells), corpus.max_length))
    return STAGES.make_columns(sample, np.flatnonzero(sample.presence.sum(axis=0) >= min_presence))
