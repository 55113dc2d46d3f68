"""Draw one cell's genes under random masks, under CorrMask and under its control.

    CORRMASK_DATA=folder python docs/pictures/cell_masks.py

Reads ``pbmc3k.h5ad`` (10x PBMC 3k, raw counts). Writes ``docs/_static/cell-masks.png`` (Random, CorrMask) and
``cell-masks-control.png`` (CorrMask, and random masks that mask each gene as often). The shares in the titles are
the hit rates of ``audit_masking`` over all cells.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import matplotlib.patheffects as effects
import networkx as nx
import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from torch import from_numpy

from corrmask_fast import (
    CorrMasker,
    RandomMasker,
    audit_masking,
    build_dependency_graph,
    make_masker,
    read_corpus,
    suggest_thresholds,
    tokenize,
)

OUT = Path(__file__).resolve().parents[1] / "_static"
CELL_TYPE, NAMED = "B", ("HLA-DRA", "CD74", "CD79A", "RPL32", "RPS3A", "ACTB", "TMSB4X", "FTL", "CST3")
MASKED, VISIBLE, EDGE = "#c8374b", "#9fb0bd", "#e3e8ec"


def main(data: Path) -> None:
    """Build the graph, take the cell of the type with the median number of genes, draw it under each strategy."""
    with tempfile.TemporaryDirectory() as folder:
        tokenize(data / "pbmc3k.h5ad", f"{folder}/cells", obs=["cell_type"], progress=False)
        corpus = read_corpus(f"{folder}/cells")
        graph = build_dependency_graph(corpus, **suggest_thresholds(corpus.n_cells), progress=False)
        of_type = np.flatnonzero(np.asarray(corpus.obs["cell_type"]) == CELL_TYPE)
        cell = of_type[np.argsort(corpus.lengths[of_type], kind="stable")[len(of_type) // 2]]
        tokens = corpus.gather(np.array([cell]))[1]
        strategies = {
            "Random": RandomMasker(corpus.vocabulary),
            "CorrMask": CorrMasker(graph),
            "Random, frequencies of CorrMask": make_masker("random-matched", graph=graph, corpus=corpus),
        }
        panels = {}
        for name, masker in strategies.items():
            audited = next(iter(audit_masking(masker, corpus, graph, n_cells=corpus.n_cells, progress=False)))
            masked = masker(from_numpy(tokens.astype(np.int64))[None], epoch=0).masked_positions[0].numpy()
            panels[f"{name}: {audited.hit_rate:.0%} of partners masked too"] = masked[masked >= 0]
            print(name, f"hit rate {audited.hit_rate:.4f}, hidden rate {audited.hidden_rate:.4f}")
    draw(dict(list(panels.items())[:2]), tokens, graph, OUT / "cell-masks.png")
    draw(dict(list(panels.items())[1:]), tokens, graph, OUT / "cell-masks-control.png")


def draw(panels: dict[str, np.ndarray], tokens: np.ndarray, graph: object, out: Path) -> None:
    """Draw the largest connected part of the graph among the cell's genes, once for each list of masked positions."""
    links = graph.to_scipy()[tokens][:, tokens].tocoo()
    network = nx.Graph((i, j) for i, j in zip(links.row, links.col, strict=True) if i < j)
    network = network.subgraph(max(nx.connected_components(network), key=len))
    places = nx.kamada_kawai_layout(network)
    at = np.array([places.get(i, (np.nan, np.nan)) for i in range(len(tokens))])
    edges = list(network.edges)
    names = graph.vocabulary.names
    figure = Figure(figsize=(5.4 * len(panels), 5.2), layout="constrained", dpi=110)
    for axis, (title, masked) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
        hidden = np.isin(np.arange(len(tokens)), masked)
        together = [at[[i, j]] for i, j in edges if hidden[i] and hidden[j]]
        axis.add_collection(LineCollection([at[[i, j]] for i, j in edges], colors=EDGE, linewidths=0.4))
        axis.add_collection(LineCollection(together, colors=MASKED, linewidths=0.6, alpha=0.55))
        axis.scatter(*at.T, s=24, c=np.where(hidden, MASKED, VISIBLE), zorder=2, linewidths=0)
        for i in network:
            if names[tokens[i]] in NAMED:
                halo = [effects.withStroke(linewidth=2.5, foreground="white")]
                axis.annotate(
                    names[tokens[i]], at[i], (4, 4), textcoords="offset points", fontsize=8, path_effects=halo
                )
        axis.set_title(title, fontsize=11)
        axis.set_axis_off()
    handles = [
        Line2D([], [], marker="o", linestyle="", color=MASKED, label="masked gene"),
        Line2D([], [], marker="o", linestyle="", color=VISIBLE, label="visible gene"),
        Line2D([], [], color="#c3ccd4", label="correlated genes (partners)"),
        Line2D([], [], color=MASKED, label="partners that are masked together"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    figure.savefig(out, pil_kwargs={"optimize": True})


if __name__ == "__main__":
    main(Path(os.environ["CORRMASK_DATA"]))
