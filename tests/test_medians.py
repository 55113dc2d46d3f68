"""Medians of scaled counts: exact in bounded memory, from files, and refused where they are none."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
import scipy.sparse as sp
from count_cases import GENES, some_counts, tokenize, write_h5ad

from corrmask_fast import InputError
from corrmask_fast.cells.count_scaling import ScaledCells
from corrmask_fast.cells.medians import MedianSearch
from corrmask_fast.cells.tokenizer import corpus_medians


@pytest.mark.parametrize("most_values", [10**6, 1700, 0])
def test_medians_are_exact_however_many_passes_they_take(most_values):
    rng = np.random.default_rng(3)
    n_cells, n_tokens = 500, 40
    values = 10_000 * rng.integers(1, 50, (n_cells, n_tokens)) / rng.integers(50, 5000, (n_cells, 1))
    values[:, 0], values[:, 1] = 0.125, np.where(np.arange(n_cells) % 2, 1.0, np.nextafter(1, 2))
    values[:, 2], values[0, 2] = 10_000, 10_000 * 2.0**-53  # the largest and the least there are
    present = rng.random((n_cells, n_tokens)) < np.linspace(0, 1, n_tokens)
    present[:, :3] = True
    present[:, 5], present[:, 6], present[:, 7] = False, np.arange(n_cells) == 9, np.arange(n_cells) < 2
    indptr = np.append(0, np.cumsum(present.sum(axis=1)))
    tokens = np.nonzero(present)[1].astype(np.int32)
    search, passes = MedianSearch(n_tokens, 10_000.0, most_values), 0
    halves = []
    for a, b in ((0, 200), (200, n_cells)):
        part = slice(indptr[a], indptr[b])
        pointers = indptr[a : b + 1] - indptr[a]
        halves.append(ScaledCells(pointers, np.diff(pointers), tokens[part], values[present][part]))
    while not search.narrow_enough:
        passes += 1
        for half in halves:
            search.count(half)
        search.narrow()
    for half in halves:
        search.collect(half)
    expected = [np.median(values[:, t][present[:, t]]) if present[:, t].any() else np.nan for t in range(n_tokens)]
    assert np.array_equal(search.medians(), expected, equal_nan=True)
    assert passes == {10**6: 1, 1700: 2, 0: 6}[most_values]


def test_medians_of_a_cell_whose_total_is_above_2_to_the_53rd(tmp_path):
    """Its other counts are less than 2**-53 of the total, where a search first looks for values."""
    counts = some_counts().astype(np.float64)
    counts[0], counts[0, :3] = 1, (2.0**60, 72, 1)
    path = write_h5ad(tmp_path / "cells.h5ad", sp.csr_matrix(counts))
    scaled = counts / counts.sum(axis=1, keepdims=True) * 10_000
    expected = [np.median(column[column > 0]) for column in scaled.T]
    assert list(corpus_medians(path, GENES, progress=False).values()) == expected


def test_medians_from_json_and_pickle(tmp_path):
    path = write_h5ad(tmp_path / "cells.h5ad", sp.csr_matrix(some_counts()))
    medians = corpus_medians(path, GENES, progress=False)
    (tmp_path / "medians.json").write_text(json.dumps(medians))
    (tmp_path / "medians.pkl").write_bytes(pickle.dumps({name: np.float64(value) for name, value in medians.items()}))
    _, own = tokenize(path, tmp_path / "own.npz")
    for source in ("medians.json", "medians.pkl"):
        _, corpus = tokenize(path, tmp_path / f"{source}.npz", medians=tmp_path / source)
        assert np.array_equal(corpus.tokens, own.tokens)


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), "high"])
def test_bad_medians(tmp_path, value):
    path = write_h5ad(tmp_path / "cells.h5ad", sp.csr_matrix(some_counts()))
    with pytest.raises(InputError, match="must be a finite number above 0; 'ENSG004' has"):
        tokenize(path, tmp_path / "out.npz", medians={"ENSG004": value})
    with pytest.raises(InputError, match="none of the medians in the dictionary given is of a gene of the vocabulary"):
        tokenize(path, tmp_path / "out.npz", medians={"A": 1.0})


def test_a_token_dictionary_is_no_medians(tmp_path):
    path = write_h5ad(tmp_path / "cells.h5ad", sp.csr_matrix(some_counts()))
    (tmp_path / "tokens.json").write_text(json.dumps({"<pad>": 0, "<mask>": 1, "ENSG004": 2}))
    with pytest.raises(InputError, match=r"tokens\.json is a token dictionary \(it has '<pad>'\), not medians"):
        tokenize(path, tmp_path / "out.npz", medians=tmp_path / "tokens.json")
