"""A graph as text for the terminal: its facts, and the partners of a gene."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from corrmask_fast.errors import InputError
from corrmask_fast.graph.build.building import GraphParameters
from corrmask_fast.graph.stability import check_corpus, parameters_of
from corrmask_fast.suggestions import did_you_mean
from corrmask_fast.tables import align

if TYPE_CHECKING:
    from corrmask_fast.cells.corpus import Corpus
    from corrmask_fast.graph.dependency_graph import DependencyGraph

__all__ = ["cells_with_both", "partner_table", "summary_table"]

SORTS = ("local", "global", "overlap")
CHUNK = 10_000  # cells read at a time

# What the two kinds of rho of a summary are.
LABELS = {
    "rho_quantiles": "rho, cells with both",
    "rho_negative_share": "  of these negative",
    "rho_global_quantiles": "rho, all cells",
    "rho_global_negative_share": "  of those negative",
}


def summary_table(graph: DependencyGraph) -> str:
    """Return the facts of :meth:`corrmask_fast.DependencyGraph.summary`, a line for each."""

    def text(value: Any) -> str:
        if isinstance(value, list):
            return "  ".join(f"{quantile:+.3f}" for quantile in value) + "  (minimum, quartiles, maximum)"
        return f"{value:,}" if isinstance(value, int) else f"{value:.3g}" if isinstance(value, float) else str(value)

    facts = {LABELS.get(name, name): value for name, value in graph.summary().items()}
    parameters = facts.pop("params")
    if "n_genes_used" in parameters:
        used = {"genes": facts.pop("genes"), "genes it was built over": parameters["n_genes_used"]}
        facts = used | facts
    facts["built with"] = (
        ", ".join(f"{name}={value}" for name, value in sorted(parameters.items())) or "no stated parameters"
    )
    width = max(map(len, facts))
    return "\n".join(f"{name.replace('_', ' ').ljust(width)}  {text(value)}" for name, value in facts.items())


def partner_table(
    graph: DependencyGraph,
    gene: str | int,
    limit: int | None = None,
    *,
    sort: str | None = None,
    corpus: Corpus | None = None,
) -> str:
    """Return a gene's partners as an aligned table of at most ``limit`` lines.

    ``sort``: by absolute rho over all cells (``"global"``) or over the cells that hold both genes (``"local"``), or by
    the number of cells that hold both (``"overlap"``), the largest first. None: global, where the graph stores it. A
    graph does not store the number of cells: it is counted in ``corpus``, the cells that the graph was built from.
    """

    def label(token: int) -> str:
        name, symbol = vocabulary.names[token], vocabulary.name_of(token)
        return name if name == symbol else f"{symbol} ({name})"

    if sort is None:
        sort = "local" if graph.rho_global is None else "global"
    if sort not in SORTS:
        raise InputError(f"sort must be one of {', '.join(map(repr, SORTS))}; got {sort!r}{did_you_mean(sort, SORTS)}")
    vocabulary = graph.vocabulary
    token = vocabulary.id_of(gene)
    row = slice(graph.indptr[token], graph.indptr[token + 1])
    ids, local = graph.indices[row], graph.rho[row]
    overall = None if graph.rho_global is None else graph.rho_global[row]
    overlap = None if corpus is None else cells_with_both(graph, corpus, token)
    title = f"{label(token)}, token {token}: {ids.size} partner{'' if ids.size == 1 else 's'}"
    if overlap is not None:
        title += f", in {overlap[token]:,} of {graph.params['n_cells_used']:,} cells"
    if ids.size == 0:
        used = [f"{name}={graph.params[name]}" for name in ("rho_min", "min_cooccurrence") if name in graph.params]
        by = f" ({', '.join(used)})" if used else ""
        return f"{title}; no other gene passed the thresholds of this graph{by}"
    key = {"local": np.abs(local), "global": overall, "overlap": None if overlap is None else overlap[ids]}[sort]
    if key is None:
        raise InputError(
            "sort='global' needs rho over all cells, which this graph does not store (it was not built from cells); "
            "sort by 'local'"
            if sort == "global"
            else "sort='overlap' needs corpus=, the cells that the graph was built from"
        )
    rows = [["partner", "token", "rho", "rho, all cells", *([] if overlap is None else ["cells with both"])]]
    for i in np.lexsort((-np.abs(local), -np.abs(key)))[:limit].tolist():
        texts = [f"{local[i]:+.3f}", "-" if overall is None else f"{overall[i]:+.3f}"]
        both = [] if overlap is None else [f"{overlap[ids[i]]:,}"]
        rows.append([label(ids[i]), str(ids[i]), *texts, *both])
    rest = ids.size - (len(rows) - 1)
    return "\n".join([title, *align(rows), *([f"... and {rest} more"] if rest else [])])


def cells_with_both(graph: DependencyGraph, corpus: Corpus, gene: str | int) -> np.ndarray:
    """Return (V,) int64: in how many of the cells that the graph was built from a gene stands with each other gene.

    At the gene's own place: in how many cells it stands. The cells are read once, in bounded memory.

    Raises
    ------
    InputError
        If the graph was not built from cells, or from another number of cells than the corpus has.
    """
    parameters = GraphParameters(**parameters_of(graph))
    check_corpus(corpus, graph)
    cells = parameters.sample(corpus)
    token, rows = graph.vocabulary.id_of(gene), np.asarray(cells.rows)
    counts = np.zeros(graph.vocabulary.size, np.int64)
    for begin in range(0, rows.size, CHUNK):
        indptr, tokens = corpus.gather(rows[begin : begin + CHUNK], warn=False)
        lengths = np.diff(indptr)
        cell = np.repeat(np.arange(lengths.size), lengths)
        read = np.arange(tokens.size) - indptr[cell] < cells.max_length
        cell, tokens = cell[read], tokens[read]
        holds = np.zeros(lengths.size, np.bool_)
        holds[cell[tokens == token]] = True
        counts += np.bincount(tokens[holds[cell]], minlength=counts.size)
    return counts
