"""A graph as text for the terminal: its facts, and the partners of a gene."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from corrmask_fast.tables import align

if TYPE_CHECKING:
    from corrmask_fast.graph.dependency_graph import DependencyGraph

__all__ = ["partner_table", "summary_table"]

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


def partner_table(graph: DependencyGraph, gene: str | int, limit: int | None = None) -> str:
    """Return a gene's partners, strongest first, as an aligned table of at most ``limit`` lines."""

    def label(token: int) -> str:
        name, symbol = vocabulary.names[token], vocabulary.name_of(token)
        return name if name == symbol else f"{symbol} ({name})"

    vocabulary = graph.vocabulary
    token = vocabulary.id_of(gene)
    ids, rho = graph.neighbors(token)
    title = f"{label(token)}, token {token}: {ids.size} partner{'' if ids.size == 1 else 's'}"
    if ids.size == 0:
        return f"{title}; no other gene passed the thresholds of this graph"
    overall: dict[int, float] = {}
    if graph.rho_global is not None:
        row = slice(graph.indptr[token], graph.indptr[token + 1])
        overall = dict(zip(graph.indices[row].tolist(), graph.rho_global[row].tolist(), strict=True))
    rows = [["partner", "token", "rho", "rho, all cells"]]
    for other, value in zip(ids.tolist()[:limit], rho.tolist(), strict=False):
        text = f"{overall[other]:+.3f}" if overall else "-"
        rows.append([label(other), str(other), f"{value:+.3f}", text])
    rest = ids.size - (len(rows) - 1)
    return "\n".join([title, *align(rows), *([f"... and {rest} more"] if rest else [])])
