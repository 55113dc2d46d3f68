"""Files of raw counts, and cells and medians by hand: what the tests of tokenising share."""

from __future__ import annotations

import numpy as np
import pytest

from corrmask_fast import Vocabulary, read_corpus
from corrmask_fast.cells import tokenizer

anndata = pytest.importorskip("anndata")
pandas = pytest.importorskip("pandas")


NAMES = tuple(f"ENSG{i:03d}" for i in range(12))
GENES = Vocabulary(("<pad>", "<mask>", *NAMES), {name: f"SYM{i}" for i, name in enumerate(NAMES)})


def some_counts(n_cells=60, n_genes=12, seed=0):
    rng = np.random.default_rng(seed)
    return rng.poisson(rng.gamma(0.6, size=n_genes) * 2, (n_cells, n_genes)).astype(np.float32)


def write_h5ad(path, counts, *, index=NAMES, var=None, obs=None, layers=None, raw=None):
    cells = [f"cell{i}" for i in range(counts.shape[0])]
    adata = anndata.AnnData(
        counts,
        obs=pandas.DataFrame(obs or {}, index=cells),
        var=pandas.DataFrame(var or {}, index=list(index)),
        layers=layers,
    )
    if raw is not None:
        adata.raw = anndata.AnnData(raw, var=pandas.DataFrame(index=[f"ENSG{i:03d}" for i in range(raw.shape[1])]))
    adata.write_h5ad(path)
    return path


def by_hand(counts, token_of_column, median_of_token, max_length=2048):
    """Each cell's tokens, in plain NumPy on dense float64."""
    cells = []
    for row in np.asarray(counts, np.float64):
        sums = {}
        for column in np.flatnonzero(row):
            token = token_of_column[column]
            if token >= 0 and token in median_of_token:
                sums[token] = sums.get(token, 0.0) + row[column]
        whole = np.cumsum(row)[-1]  # one after the other: for fractions the order counts
        value = {token: total / whole * 10_000 / median_of_token[token] for token, total in sums.items()}
        cells.append(sorted(value, key=lambda token: (-value[token], token))[:max_length])
    return [cell for cell in cells if cell]


def medians_by_hand(counts, token_of_column, vocabulary):
    counts = np.asarray(counts, np.float64)
    summed = np.zeros((counts.shape[0], vocabulary.size))
    for column, token in enumerate(token_of_column):
        if token >= 0:
            summed[:, token] += counts[:, column]
    total = np.cumsum(counts, axis=1)[:, -1:]
    scaled = summed / np.where(total == 0, 1, total) * 10_000
    return {t: np.median(scaled[:, t][summed[:, t] > 0]) for t in range(vocabulary.size) if summed[:, t].any()}


def cells_of(corpus):
    return [corpus.tokens[a:b].tolist() for a, b in zip(corpus.indptr[:-1], corpus.indptr[1:], strict=True)]


def tokenize(path, output, vocabulary=GENES, medians=None, **options):
    report = tokenizer.tokenize(path, output, vocabulary, medians, progress=False, **options)
    return report, read_corpus(output)


ALL = np.arange(2, 14)  # tokens of NAMES
