"""Figure 3 of the paper: which counts of tokenised cells give planted modules back (appendix B.1).

    python bench/paper/figure3.py            a minute

1 000 cells of 1 000 genes in 5 modules, one module active in each cell, half of all values dropped, the 100 highest
genes kept in order. Three matrices of genes by genes, each judged by the AUC of its entries: the probability that a
pair of one module has a larger entry than a pair of two.

    adjacency        how often two genes stand side by side in rank (what span masking looks at)
    co-occurrence    how often they stand in one cell
    rho              Spearman's rho over all cells, as Algorithm 1 computes it
"""

from __future__ import annotations

import numpy as np
from experiment import conclude, options, save_table
from scipy.stats import rankdata

from corrmask_fast import Corpus, Vocabulary, build_dependency_graph
from corrmask_fast.plots import PAGE, new_figure, save_figure

SIGNAL, SPREAD, DROPOUT = 10.0, 2.0, 0.5
WAYS = ("adjacency", "co-occurrence", "rho")
PAPER = "correlation-based recovery gives the five modules back strongly, adjacency in part (a picture, no number)"


def generate(rng, n_cells, n_genes, n_modules, length):
    """Return (cells, length) genes by falling expression, and the module of each gene."""
    module = np.arange(n_genes) * n_modules // n_genes
    active = rng.integers(0, n_modules, n_cells)
    x = rng.exponential(1.0, (n_cells, n_genes))
    x += (module == active[:, None]) * rng.normal(SIGNAL, SPREAD, x.shape)
    x *= rng.random(x.shape) < 1 - DROPOUT
    return np.argsort(-x, axis=1, kind="stable")[:, :length], module


def adjacency(cells, n_genes):
    counts = np.zeros((n_genes, n_genes))
    np.add.at(counts, (cells[:, :-1].ravel(), cells[:, 1:].ravel()), 1)
    return counts + counts.T


def cooccurrence(cells, n_genes):
    present = np.zeros((len(cells), n_genes))
    np.put_along_axis(present, cells, 1, axis=1)
    counts = present.T @ present
    np.fill_diagonal(counts, 0)
    return counts


def correlation(cells, n_genes):
    """Return rho over all cells of every pair of genes: Algorithm 1 without its thresholds."""
    vocabulary = Vocabulary(("<pad>", "<mask>", *(f"G{i}" for i in range(n_genes))))
    indptr = np.arange(len(cells) + 1) * cells.shape[1]
    corpus = Corpus(indptr, cells.ravel() + 2, vocabulary)
    thresholds = {"rho_min": 0, "min_cooccurrence": 0, "min_presence": 0, "n_neighbors": n_genes}
    graph = build_dependency_graph(corpus, max_length=cells.shape[1] + 1, **thresholds, progress=False)
    return graph.to_scipy("rho_global").toarray()[2:, 2:]


def auc(matrix, module):
    """Return the probability that a pair of one module has a larger entry than a pair of two (ties count half)."""
    u, v = np.triu_indices(module.size, 1)
    same = module[u] == module[v]
    ranks = rankdata(matrix[u, v])
    n = int(same.sum())
    return float((ranks[same].sum() - n * (n + 1) / 2) / (n * (same.size - n)))


def draw(path, matrices, module, aucs):
    figure = new_figure((PAGE, 2.0))
    truth = (module == module[:, None]).astype(float)
    panels = [("planted modules", truth, None), *((way, matrices[way], np.mean(aucs[way])) for way in WAYS)]
    for axis, (name, matrix, score) in zip(figure.subplots(1, 4), panels, strict=True):
        diverging = name == "rho"
        limit = float(np.quantile(np.abs(matrix), 0.999)) or 1.0
        limits = {"cmap": "RdBu_r", "vmin": -limit} if diverging else {"cmap": "Blues", "vmin": 0}
        shown = axis.imshow(matrix, vmax=limit, interpolation="nearest", **limits)
        axis.set_title(name if score is None else f"{name}: AUC {score:.3f}", loc="left", fontsize=8)
        axis.set_xticks([])
        axis.set_yticks([])
        axis.set_xlabel(f"{module.size:,} genes", fontsize=7)
        figure.colorbar(shown, ax=axis, shrink=0.7).ax.tick_params(labelsize=6)
    save_figure(figure, path)


def main(arguments=None):
    given = options(__doc__.splitlines()[0]).parse_args(arguments)
    size = {"n_cells": 200, "n_genes": 100, "n_modules": 5, "length": 10} if given.quick else {
        "n_cells": 1000, "n_genes": 1000, "n_modules": 5, "length": 100}  # fmt: skip
    rows, aucs = [], {way: [] for way in WAYS}
    for trial in range(2 if given.quick else 5):
        rng = np.random.default_rng([given.seed, trial])
        cells, module = generate(rng, **size)
        made = (adjacency, cooccurrence, correlation)
        matrices = {way: make(cells, module.size) for way, make in zip(WAYS, made, strict=True)}
        for way, matrix in matrices.items():
            aucs[way].append(auc(matrix, module))
            rows.append({"trial": trial, "matrix": way, "auc": round(aucs[way][-1], 5), **size, "seed": given.seed})
        if trial == 0:
            first = matrices
    table, picture = given.out / "figure3.csv", given.out / "figure3.png"
    save_table(table, rows)
    draw(picture, first, module, aucs)
    spread = {way: (np.mean(values), np.std(values, ddof=1)) for way, values in aucs.items()}
    text = ", ".join(f"{way} {mean:.3f} ± {sd:.3f}" for way, (mean, sd) in spread.items())
    conclude(PAPER, f"AUC of same-module pairs: {text} (mean ± sd of {len(aucs['rho'])} data sets)", table, picture)
    return spread


if __name__ == "__main__":
    main()
