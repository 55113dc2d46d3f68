"""Cells as lists, as corpora and as a dataset: what the tests of reading and writing corpora share."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from corrmask_fast import Corpus
from corrmask_fast.testing import make_vocabulary

datasets = pytest.importorskip("datasets")


V1, V2 = make_vocabulary(300), make_vocabulary(300, v2=True)
TYPES = ["B", "T", "NK"]


def make_cells(n_cells=50, seed=0, most=40):
    rng = np.random.default_rng(seed)
    return [rng.choice(np.arange(4, 300), rng.integers(0, most), replace=False).tolist() for _ in range(n_cells)]


def make_corpus(cells, vocabulary=V1, **obs):
    return Corpus(
        np.cumsum([0, *map(len, cells)]), np.array([t for cell in cells for t in cell], np.int64), vocabulary, obs=obs
    )


def cells_of(corpus):
    return [chunk.tokens[a:b].tolist() for chunk in corpus.chunks(7) for a, b in pairwise(chunk.indptr)]


def dataset_of(cells, dtype="int64", **columns):
    features = {"input_ids": datasets.Sequence(datasets.Value(dtype)), "length": datasets.Value("int64")}
    features |= {name: datasets.Value("string") for name in columns}
    table = {"input_ids": cells, "length": [len(cell) for cell in cells], **columns}
    return datasets.Dataset.from_dict(table, features=datasets.Features(features))
