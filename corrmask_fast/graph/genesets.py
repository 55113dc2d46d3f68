"""Known gene sets in a graph: whether a set's genes are partners of each other more often than by chance."""

from __future__ import annotations

import math
import re
import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from corrmask_fast.cells.gene_sets import open_gene_sets, tokens_of_set
from corrmask_fast.errors import InputError, naming, shown
from corrmask_fast.graph.chance import EdgesWithin
from corrmask_fast.tables import align, write_csv

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Mapping

    from corrmask_fast.cells.vocabulary import Vocabulary
    from corrmask_fast.graph.dependency_graph import DependencyGraph

__all__ = ["SetCohesion", "SetEnrichment", "enrich_gene_sets", "p_text", "ribosomal_genes", "set_cohesion"]

# Proteins of the two ribosomal subunits and their paralogues (RPL10A, RPS4Y1, RPLP0, RPSA, RPL22L1), not the
# ribosomal S6 kinases (RPS6KA1) nor pseudogenes (RPL7P9).
_RIBOSOMAL = re.compile(r"RP[LS](A|P\d|\d+(A|AL|X|Y\d|L\d?)?)", re.IGNORECASE)


@dataclass(frozen=True)
class SetCohesion:
    """How often the partners of a set's genes are in the set, over all their edges."""

    genes: int
    """Number of genes of the set that have a partner."""
    partners: int
    """Number of their partners; one that several genes have counts several times."""
    share: float
    """Share of these partners that are in the set."""
    chance: float
    """Expected share in a random graph with the same degrees; see :mod:`corrmask_fast.graph.chance`."""

    @property
    def enrichment(self) -> float:
        """``share / chance``."""
        return self.share / self.chance if self.chance else math.nan

    def __str__(self) -> str:
        if not self.partners:
            return "no gene of the set has a partner"
        return (
            f"{100 * self.share:.1f} % of the {self.partners:,} partners of {self.genes} genes are of the set; "
            f"{100 * self.chance:.1f} % by chance with the same degrees: {self.enrichment:.1f}-fold"
        )


def ribosomal_genes(vocabulary: Vocabulary) -> np.ndarray:
    """Return the token ids of cytosolic ribosomal proteins (RPL*, RPS*), found by symbol.

    Examples
    --------
    >>> from corrmask_fast import Vocabulary
    >>> vocabulary = Vocabulary(("<pad>", "<mask>", "RPL3", "RPS6", "RPS6KA1", "RPLP0", "CD3E"))
    >>> ribosomal_genes(vocabulary)
    array([2, 3, 5])
    """
    lo, hi = vocabulary.gene_range
    return np.array([token for token in range(lo, hi) if _RIBOSOMAL.fullmatch(vocabulary.name_of(token))], np.int64)


def set_cohesion(graph: DependencyGraph, genes: Iterable[int | str]) -> SetCohesion:
    """Compare the partners of a set's genes with chance: a random graph that keeps every gene's degree.

    Parameters
    ----------
    graph
        The graph.
    genes
        Token ids, names or symbols; at least one.

    Raises
    ------
    InputError
        If the set is empty or names an unknown gene.
    """
    members = np.unique([graph.vocabulary.id_of(gene) for gene in genes]).astype(np.int64)
    if members.size == 0:
        raise InputError("the gene set is empty; give at least one gene")
    degrees = graph.degrees
    own = degrees[members]
    partners = int(own.sum())
    if partners == 0:
        return SetCohesion(0, 0, math.nan, math.nan)
    within = 2 * _edges_within(graph, members)
    chance = 2 * EdgesWithin(degrees).moments(members)[0] / partners
    return SetCohesion(int(np.count_nonzero(own)), partners, within / partners, chance)


def _edges_within(graph: DependencyGraph, members: np.ndarray) -> int:
    """Return the number of edges between genes of a set."""
    inside = np.zeros(graph.vocabulary.size, np.bool_)
    inside[members] = True
    rows = [inside[graph.indices[graph.indptr[token] : graph.indptr[token + 1]]] for token in members.tolist()]
    return int(np.count_nonzero(np.concatenate(rows))) // 2 if rows else 0


@dataclass(frozen=True, eq=False)
class SetEnrichment:
    """Result of :func:`~corrmask_fast.enrich_gene_sets`: gene sets and their p-values, the smallest first.

    Printed, it is its :meth:`~corrmask_fast.SetEnrichment.table`.

    Attributes
    ----------
    names
        Names of the sets, in the order of all arrays.
    size
        (sets,) int64: number of genes of the set.
    known
        (sets,) int64: number of these that are in the vocabulary.
    genes
        (sets,) int64: number of these that have a partner in the graph.
    edges
        (sets,) int64: number of edges between genes of the set.
    expected
        (sets,) float64: mean number of such edges over random graphs in which each gene has as many partners as here.
    sd
        (sets,) float64: standard deviation of this number.
    p_value
        (sets,) float64: probability of at least so many edges by chance.
    q_value
        (sets,) float64: the p-value corrected for the number of sets (Benjamini and Hochberg): the false discovery rate
        of the sets down to this one.
    left_out
        Names of the sets with fewer than two genes that have a partner: they can have no edge.
    n_named
        Number of different genes in all sets.
    unknown
        Those of these genes that are not in the vocabulary.

    Examples
    --------
    >>> from corrmask_fast import DependencyGraph, Vocabulary, enrich_gene_sets
    >>> genes = Vocabulary(("<pad>", "<mask>", *"ABCDEF"))
    >>> ring = DependencyGraph.from_edges(zip("ABCDEF", "BCDEFA"), genes)
    >>> found = enrich_gene_sets(ring, {"run": ["A", "B", "C"], "alone": ["D", "X"]})
    >>> found.names, found.genes.tolist(), found.edges.tolist(), found.left_out
    (('run',), [3], [2], ('alone',))
    """

    names: tuple[str, ...]
    size: np.ndarray
    known: np.ndarray
    genes: np.ndarray
    edges: np.ndarray
    expected: np.ndarray
    sd: np.ndarray
    p_value: np.ndarray
    q_value: np.ndarray
    left_out: tuple[str, ...]
    n_named: int
    unknown: tuple[str, ...]

    @property
    def fold(self) -> np.ndarray:
        """(sets,) float64: ``edges / expected``."""
        return self.edges / self.expected

    def table(self, limit: int | None = None) -> str:
        """Return an aligned table: a line for each set, and what was left out.

        Parameters
        ----------
        limit : int, optional
            Most sets to show, from the first on. None: all.

        Returns
        -------
        str
            The table.
        """
        rows = [["set", "genes", "of", "edges", "by chance", "sd", "fold", "p", "q"]]
        for i, name in enumerate(self.names[:limit]):
            counts = [f"{self.genes[i]:,}", f"{self.size[i]:,}", f"{self.edges[i]:,}", f"{self.expected[i]:,.1f}"]
            tests = [f"{self.sd[i]:.1f}", f"{self.fold[i]:.1f}", p_text(self.p_value[i]), p_text(self.q_value[i])]
            rows.append([name, *counts, *tests])
        rest = len(self.names) - (len(rows) - 1)
        return "\n".join([*align(rows), *([f"... and {rest:,} more"] if rest else []), "", *self._notes()])

    def _notes(self) -> list[str]:
        found = [f"{len(self.names):,} sets, {np.count_nonzero(self.q_value <= 0.05):,} of them with q <= 0.05"]
        if self.left_out:
            found[0] += f"; {len(self.left_out):,} left out: fewer than two of their genes have a partner in the graph"
        if self.unknown:
            found.append(
                f"{len(self.unknown):,} of {self.n_named:,} genes are not in the vocabulary, such as "
                f"{shown(self.unknown[0])}"
            )
        meant = (
            "genes: those with a partner, of all genes of the set; by chance: in random graphs in which each gene has "
            "as many partners as here; p: of at least so many edges; q: corrected for the number of sets"
        )
        return [*found, *textwrap.wrap(meant, 110)]

    def save_csv(self, path: str | os.PathLike[str]) -> None:
        """Write a CSV file with a line for each set.

        Parameters
        ----------
        path : path
            File to write. A file that is there is replaced.

        Raises
        ------
        InputError
            If the path is a folder, or its parent does not exist.
        """
        columns = {
            "set": self.names,
            "genes_in_set": self.size.tolist(),
            "genes_known": self.known.tolist(),
            "genes_with_partners": self.genes.tolist(),
            "edges": self.edges.tolist(),
            "expected": self.expected.tolist(),
            "sd": self.sd.tolist(),
            "fold": self.fold.tolist(),
            "p_value": self.p_value.tolist(),
            "q_value": self.q_value.tolist(),
        }
        write_csv(path, list(columns), zip(*columns.values(), strict=True))

    def __str__(self) -> str:
        return self.table()


def enrich_gene_sets(
    graph: DependencyGraph, sets: str | os.PathLike[str] | Mapping[str, Iterable[int | str]]
) -> SetEnrichment:
    """Test gene sets for more edges between their genes than by chance.

    Chance is a random graph in which each gene keeps its number of partners: hubs have many edges among each other
    anyway.

    Parameters
    ----------
    graph : DependencyGraph
        The graph.
    sets : path or mapping
        Path of a ``.gmt`` file (:func:`~corrmask_fast.read_gene_sets`), or name → genes by token id, name or symbol.
        Genes outside the vocabulary are left out.

    Returns
    -------
    SetEnrichment
        Edges, expected edges, p-values and q-values, the set of smallest p-value first.

    Raises
    ------
    InputError
        If the file cannot be read, or no set has two genes with a partner in the graph.

    Notes
    -----
    Mean and variance of the number of edges within a set are computed, not sampled. The p-value is that of a translated
    Poisson distribution of this mean and variance (Roellin 2005): Poisson's for rare edges, close to the normal one for
    many. Numbers of independent edges are at most as skewed as Poisson's, so small p-values are rather too large than
    too small. The test has one side: fewer edges than by chance give a p-value near 1.

    :func:`~corrmask_fast.rewired` draws random graphs of this kind.

    Examples
    --------
    >>> from corrmask_fast import DependencyGraph, Vocabulary, enrich_gene_sets
    >>> genes = Vocabulary(("<pad>", "<mask>", *"ABCDEFGHIJ"))
    >>> ring = DependencyGraph.from_edges(zip("ABCDEFGHIJ", "BCDEFGHIJA"), genes)
    >>> found = enrich_gene_sets(ring, {"apart": ["A", "C", "E"], "run": ["A", "B", "C", "X"]})
    >>> found.names, found.edges.tolist(), found.expected.round(2).tolist(), found.unknown
    (('run', 'apart'), [2, 0], [0.67, 0.67], ('X',))
    """
    from scipy.special import gammainc
    from scipy.stats import false_discovery_control

    tokens: dict[str, np.ndarray] = {}
    size: dict[str, int] = {}
    unknown: dict[str, None] = {}
    for name, genes in open_gene_sets(sets).items():
        lost: dict[str, None] = {}
        tokens[str(name)] = tokens_of_set(graph.vocabulary, name, genes, lost)
        size[str(name)] = tokens[str(name)].size + len(lost)
        unknown |= lost
    degrees, chance = graph.degrees, EdgesWithin(graph.degrees)
    linked = {name: members[degrees[members] > 0] for name, members in tokens.items()}
    names = [name for name, members in linked.items() if members.size > 1]
    if not names:
        example = f", such as {shown(next(iter(unknown)))}" if unknown else ""
        with naming(sets):
            raise InputError(
                f"none of {len(tokens)} gene sets has two genes with a partner in the graph, which has "
                f"{np.count_nonzero(degrees)} such genes; {len(unknown)} genes are not in its vocabulary{example}. "
                f"Genes are found by names like {shown(graph.vocabulary.names[graph.vocabulary.gene_range[0]])}, and "
                "by symbols where the graph has them (give symbols when cells are tokenised or the graph is built)"
            )
    edges = np.array([_edges_within(graph, linked[name]) for name in names])
    mean, variance = np.array([chance.moments(linked[name]) for name in names]).T
    # P(X >= edges) of Poisson(variance) moved by mean - variance; between its steps as the gamma function goes.
    above = np.maximum(edges - (mean - variance), 0)
    p, sd = gammainc(above, variance), np.sqrt(variance)
    order = np.lexsort((-(edges - mean) / sd, p))
    ordered = [names[i] for i in order]
    return SetEnrichment(
        names=tuple(ordered),
        size=np.array([size[name] for name in ordered]),
        known=np.array([tokens[name].size for name in ordered]),
        genes=np.array([linked[name].size for name in ordered]),
        edges=edges[order],
        expected=mean[order],
        sd=sd[order],
        p_value=p[order],
        q_value=false_discovery_control(p)[order],
        left_out=tuple(name for name in tokens if linked[name].size < 2),
        n_named=np.unique(np.concatenate(list(tokens.values()))).size + len(unknown),
        unknown=tuple(unknown),
    )


def p_text(p: float) -> str:
    """Return a p-value for a table."""
    return f"{p:.2f}" if p >= 0.01 else f"{p:.0e}" if p > 0 else "<1e-300"
