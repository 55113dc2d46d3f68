"""Several graphs at once: merged into one, or compared edge by edge beside what chance with the same degrees gives."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from corrmask_fast.errors import InputError, as_integer
from corrmask_fast.graph.chance import expected_neighbors
from corrmask_fast.graph.dependency_graph import DependencyGraph, graph_of_pairs
from corrmask_fast.suggestions import did_you_mean
from corrmask_fast.tables import align, write_csv

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

__all__ = ["GraphComparison", "compare_all", "compare_graphs", "comparison_table", "merge_graphs"]

COLUMNS: dict[str, tuple[str, str]] = {  # field: heading, format
    "edges_a": ("edges of first", ",d"),
    "edges_b": ("of second", ",d"),
    "shared": ("shared", ",d"),
    "expected_shared": ("by chance", ",.1f"),
    "fold": ("fold", ".1f"),
    "jaccard": ("Jaccard", ".3f"),
    "expected_jaccard": ("by chance", ".3f"),
    "median_gene_jaccard": ("median gene", ".3f"),
    "rho_correlation": ("r of rho", ".3f"),
    "same_sign": ("same sign", ".3f"),
}


def merge_graphs(
    graphs: Sequence[DependencyGraph],
    keep: Literal["union", "intersection"] | int = "union",
    *,
    combine: Literal["mean", "strongest"] = "mean",
) -> DependencyGraph:
    """Merge graphs over one vocabulary.

    Parameters
    ----------
    graphs : sequence of DependencyGraph
        Two or more.
    keep : str or int
        Which edges stay: those of any graph (``"union"``), of all graphs (``"intersection"``), or of at least ``keep``
        graphs.
    combine : str
        The rho of an edge, over the graphs that have it: the ``"mean"`` (in float64, rounded once), or the
        ``"strongest"``, the one of largest absolute value (of two equal ones, the positive). ``rho_global`` likewise,
        if all graphs have it.

    Returns
    -------
    DependencyGraph
        It does not depend on the order of the graphs. Its ``params`` say how it was merged, and from which graphs (by
        fingerprint).

    Raises
    ------
    InputError
        If there are fewer than two graphs, their vocabularies differ, or ``keep`` or ``combine`` is none of these.

    Examples
    --------
    >>> from corrmask_fast import DependencyGraph, Vocabulary, merge_graphs
    >>> genes = Vocabulary(("<pad>", "<mask>", "A", "B", "C"))
    >>> lung = DependencyGraph.from_edges([("A", "B", 0.5), ("B", "C", 0.25)], genes)
    >>> skin = DependencyGraph.from_edges([("A", "B", 0.25)], genes)
    >>> merge_graphs([lung, skin], "intersection").neighbors("A")
    (array([3], dtype=int32), array([0.375], dtype=float32))
    """
    graphs = _check_graphs(graphs)
    named = {"union": 1, "intersection": len(graphs)}
    least = named.get(keep) if isinstance(keep, str) else as_integer(keep)
    if least is None or not 1 <= least <= len(graphs):
        meant = did_you_mean(keep, named)
        raise InputError(
            f"keep must be 'union', 'intersection' or a number from 1 to {len(graphs)}; got {keep!r}{meant}"
        )
    if combine not in {"mean", "strongest"}:
        raise InputError(
            f"combine must be 'mean' or 'strongest'; got {combine!r}{did_you_mean(combine, ('mean', 'strongest'))}"
        )
    size = graphs[0].vocabulary.size
    edges = [graph.edges() for graph in graphs]
    keys = np.concatenate([e.u * size + e.v for e in edges])
    pairs, place, times = np.unique(keys, return_inverse=True, return_counts=True)
    kept = times >= least

    def combined(parts: Sequence[np.ndarray]) -> np.ndarray:
        values = np.concatenate(parts).astype(np.float64)
        if combine == "mean":
            order = np.lexsort((values, place))  # one order of the sum, whatever the order of the graphs
            return np.bincount(place[order], values[order], pairs.size)[kept] / times[kept]
        last = np.lexsort((values, np.abs(values), place))
        return values[last[np.cumsum(times) - 1]][kept]

    overall = [e.rho_global for e in edges if e.rho_global is not None]
    return graph_of_pairs(
        pairs[kept] // size,
        pairs[kept] % size,
        combined([e.rho for e in edges]),
        graphs[0].vocabulary,
        {
            "merged_graphs": len(graphs),
            "at_least": least,
            "combine": combine,
            "sources": sorted(graph.fingerprint[:16] for graph in graphs),
        },
        combined(overall) if len(overall) == len(graphs) else None,
    )


@dataclass(frozen=True, eq=False)
class GraphComparison:
    """Result of :func:`~corrmask_fast.compare_graphs`: two graphs, edge by edge.

    Printed, it is a table with one row.

    Attributes
    ----------
    names
        Names of the first and the second graph.
    edges_a
        Number of edges of the first graph.
    edges_b
        Number of edges of the second graph.
    shared
        Number of edges that both have.
    expected_shared
        Mean number of edges that two random graphs with the same degrees share.
    tokens
        (genes,) int64: token ids of the genes with a neighbour in at least one of the graphs. The next arrays are in
        their order.
    degree_a
        (genes,) int64: number of neighbours in the first graph.
    degree_b
        (genes,) int64: number of neighbours in the second graph.
    shared_of_gene
        (genes,) int64: number of neighbours in both.
    expected_of_gene
        (genes,) float64: expected number of neighbours in both.
    rho_a
        (shared,) float32: rho of the shared edges in the first graph.
    rho_b
        (shared,) float32: rho of the shared edges in the second graph.
    graph
        The first graph, for the names of its genes.

    Examples
    --------
    >>> from corrmask_fast import DependencyGraph, Vocabulary, compare_graphs
    >>> genes = Vocabulary(("<pad>", "<mask>", *"ABCDEF"))
    >>> lung = DependencyGraph.from_edges([("A", "B"), ("B", "C"), ("D", "E")], genes)
    >>> skin = DependencyGraph.from_edges([("A", "B"), ("D", "E"), ("E", "F")], genes)
    >>> comparison = compare_graphs(lung, skin, names=("lung", "skin"))
    >>> comparison.tokens.tolist(), comparison.shared_of_gene.tolist(), comparison.gene_jaccard.tolist()
    ([2, 3, 4, 5, 6, 7], [1, 1, 0, 1, 1, 0], [1.0, 0.5, 0.0, 1.0, 0.5, 0.0])
    """

    names: tuple[str, str]
    edges_a: int
    edges_b: int
    shared: int
    expected_shared: float
    tokens: np.ndarray
    degree_a: np.ndarray
    degree_b: np.ndarray
    shared_of_gene: np.ndarray
    expected_of_gene: np.ndarray
    rho_a: np.ndarray
    rho_b: np.ndarray
    graph: DependencyGraph

    @property
    def jaccard(self) -> float:
        """Share of the shared edges among the edges of either graph, in [0, 1]; NaN if there is no edge."""
        return _ratio(self.shared, self.edges_a + self.edges_b - self.shared)

    @property
    def expected_jaccard(self) -> float:
        """Jaccard index if ``expected_shared`` edges were shared."""
        return _ratio(self.expected_shared, self.edges_a + self.edges_b - self.expected_shared)

    @property
    def fold(self) -> float:
        """Shared edges over those expected, ``shared / expected_shared``; NaN if none is expected."""
        return _ratio(self.shared, self.expected_shared)

    @property
    def gene_jaccard(self) -> np.ndarray:
        """(genes,) float64: of a gene's neighbours in either graph, the share that are its neighbours in both."""
        return self.shared_of_gene / (self.degree_a + self.degree_b - self.shared_of_gene)

    @property
    def median_gene_jaccard(self) -> float:
        """Median of ``gene_jaccard`` over the genes with neighbours in both graphs; NaN if there is none."""
        both = (self.degree_a > 0) & (self.degree_b > 0)
        return float(np.median(self.gene_jaccard[both])) if both.any() else math.nan

    @property
    def rho_correlation(self) -> float:
        """Pearson's correlation of rho over the shared edges; NaN if they are fewer than three, or all equal."""
        a, b = self.rho_a.astype(np.float64), self.rho_b.astype(np.float64)
        return float(np.corrcoef(a, b)[0, 1]) if a.size > 2 and np.ptp(a) > 0 and np.ptp(b) > 0 else math.nan

    @property
    def same_sign(self) -> float:
        """Share of the shared edges whose rho has the same sign in both graphs; NaN if there is none."""
        return _ratio(int(np.count_nonzero(np.sign(self.rho_a) == np.sign(self.rho_b))), self.shared)

    def to_dict(self) -> dict[str, Any]:
        """Return the names and all figures that are single numbers.

        Returns
        -------
        dict
            Name → value.
        """
        names = {"first": self.names[0], "second": self.names[1]}
        return names | {name: getattr(self, name) for name in COLUMNS}

    def save_genes_csv(self, path: str | os.PathLike[str]) -> None:
        """Write a CSV file with a line for each gene: its degrees, shared neighbours, those by chance, Jaccard index.

        Parameters
        ----------
        path : path
            File to write. A file that is there is replaced.

        Raises
        ------
        InputError
            If the path is a folder, or its parent does not exist.
        """
        vocabulary = self.graph.vocabulary
        columns = (self.degree_a, self.degree_b, self.shared_of_gene, self.expected_of_gene, self.gene_jaccard)
        rows = (
            [vocabulary.names[token], vocabulary.name_of(token), *values]
            for token, *values in zip(self.tokens.tolist(), *(column.tolist() for column in columns), strict=True)
        )
        degrees = [f"degree in {name}" for name in self.names]
        write_csv(path, ["gene", "symbol", *degrees, "shared", "shared by chance", "jaccard"], rows)

    def __str__(self) -> str:
        return comparison_table([self])


def compare_graphs(
    a: DependencyGraph, b: DependencyGraph, *, names: tuple[str, str] = ("first", "second")
) -> GraphComparison:
    """Compare two graphs over one vocabulary: how many edges they share, and how many they would share by chance.

    Chance is two random graphs in which each gene has as many partners, on average, as here (Park and Newman 2004).

    Parameters
    ----------
    a, b : DependencyGraph
        The graphs.
    names : tuple of str
        What tables and pictures call them.

    Returns
    -------
    GraphComparison
        Counts of shared edges, in all and of each gene, beside those by chance; rho of the shared edges.

    Raises
    ------
    InputError
        If their vocabularies differ.

    Examples
    --------
    >>> from corrmask_fast import DependencyGraph, Vocabulary, compare_graphs
    >>> genes = Vocabulary(("<pad>", "<mask>", *"ABCDEF"))
    >>> a = DependencyGraph.from_edges([("A", "B"), ("B", "C"), ("D", "E")], genes)
    >>> b = DependencyGraph.from_edges([("A", "B"), ("D", "E"), ("E", "F")], genes)
    >>> comparison = compare_graphs(a, b)
    >>> comparison.shared, comparison.jaccard, round(comparison.expected_shared, 2)
    (2, 0.5, 0.61)
    """
    _check_graphs([a, b])
    size = a.vocabulary.size
    of_a, of_b = a.edges(), b.edges()
    keys, in_a, in_b = np.intersect1d(
        of_a.u * size + of_a.v, of_b.u * size + of_b.v, assume_unique=True, return_indices=True
    )
    tokens = np.flatnonzero(a.degrees + b.degrees)
    degree_a, degree_b = a.degrees[tokens], b.degrees[tokens]
    expected = expected_neighbors([degree_a, degree_b])
    return GraphComparison(
        names=names,
        edges_a=a.n_edges,
        edges_b=b.n_edges,
        shared=keys.size,
        expected_shared=float(expected.sum() / 2),
        tokens=tokens,
        degree_a=degree_a,
        degree_b=degree_b,
        shared_of_gene=np.bincount(np.concatenate([keys // size, keys % size]), minlength=size)[tokens],
        expected_of_gene=expected,
        rho_a=of_a.rho[in_a],
        rho_b=of_b.rho[in_b],
        graph=a,
    )


def compare_all(graphs: Mapping[str, DependencyGraph]) -> list[GraphComparison]:
    """Compare every pair of named graphs, in the order given."""
    return [compare_graphs(graphs[a], graphs[b], names=(a, b)) for a, b in combinations(graphs, 2)]


def comparison_table(comparisons: Sequence[GraphComparison]) -> str:
    """Return an aligned table, a line for each comparison."""
    head = ["graphs", *(heading for heading, _ in COLUMNS.values())]
    rows = [head]
    for comparison in comparisons:
        values = {name: getattr(comparison, name) for name in COLUMNS}
        texts = ["-" if math.isnan(values[name]) else format(values[name], form) for name, (_, form) in COLUMNS.items()]
        rows.append([" | ".join(comparison.names), *texts])
    return "\n".join(align(rows))


def save_comparisons_csv(comparisons: Sequence[GraphComparison], path: str | os.PathLike[str]) -> None:
    """Write a line for each comparison."""
    rows = [comparison.to_dict() for comparison in comparisons]
    write_csv(path, list(rows[0]), [list(row.values()) for row in rows])


def _ratio(part: float, whole: float) -> float:
    return float(part / whole) if whole else math.nan


def _check_graphs(graphs: Sequence[DependencyGraph]) -> Sequence[DependencyGraph]:
    if len(graphs) < 2:
        raise InputError(f"give at least two graphs; got {len(graphs)}")
    for number, graph in enumerate(graphs[1:], 2):
        graphs[0].vocabulary.check_same(graph.vocabulary, "graph 1", f"graph {number}")
    return graphs
