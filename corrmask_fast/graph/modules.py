"""Modules of a graph: groups of genes that are strongly linked, and the gene sets that name them."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from corrmask_fast.cells.gene_sets import open_gene_sets, tokens_of_set
from corrmask_fast.errors import InputError, MissingExtraError, check_number, import_extra
from corrmask_fast.graph.genesets import p_text
from corrmask_fast.suggestions import did_you_mean
from corrmask_fast.tables import align, write_csv

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Mapping, Sequence

    from corrmask_fast.graph.dependency_graph import DependencyGraph

__all__ = ["GraphModules", "ModuleName", "average_linkage", "find_modules", "linkage_modules", "strongest_genes"]

BROAD = 3000  # strongest genes among which linkage searches
MEAN_RHO = 0.1  # smallest mean rho between the genes of a module of linkage; a pair without an edge counts as 0
MIN_GENES = 4  # of a module
LARGEST_Q = 0.05  # of a set that names a module
SHOWN_GENES = 8  # of a module, in the table


class ModuleName(NamedTuple):
    """The gene set that shares more genes with a module than by chance, of all sets the clearest."""

    name: str
    shared: int
    """Number of the module's genes that are in the set."""
    genes: int
    """Number of the set's genes among which modules were searched."""
    q_value: float
    """P-value of the hypergeometric test, corrected for all modules and sets (Benjamini and Hochberg)."""

    def __str__(self) -> str:
        return f"{self.name} ({self.shared} of {self.genes})"


@dataclass(frozen=True, eq=False)
class GraphModules:
    """Result of :func:`~corrmask_fast.find_modules`: modules of a graph, the largest first; no gene is in two.

    Printed, it is its :meth:`~corrmask_fast.GraphModules.table`.

    Attributes
    ----------
    graph
        The graph.
    method
        ``"leiden"`` or ``"linkage"``.
    members
        For each module (genes,) int64 token ids, the gene with the strongest edges in the module first.
    strength
        For each module (genes,) float64, in the order of ``members``: sum of rho over a gene's edges in the module (rho
        over all cells, where the graph has it).
    n_searched
        Number of genes among which modules were searched.
    names
        For each module the gene set that names it (``name``, ``shared``, ``genes``, ``q_value``), or None. Empty if no
        sets were given. ``shared`` is the number of the module's genes that are in the set; ``genes`` is the number of
        the set's genes that were searched; ``q_value`` is corrected for all modules and sets.

    Examples
    --------
    >>> from itertools import combinations
    >>> from corrmask_fast import DependencyGraph, Vocabulary, find_modules
    >>> genes = Vocabulary(("<pad>", "<mask>", *"ABCDEFGHIJ"))
    >>> graph = DependencyGraph.from_edges([*combinations("ABCDE", 2), *combinations("FGHI", 2)], genes)
    >>> modules = find_modules(graph, method="linkage", sets={"first": ["A", "B", "C", "D", "E", "J"]})
    >>> [members.tolist() for members in modules.members], str(modules.names[0])
    ([[2, 3, 4, 5, 6], [7, 8, 9, 10]], 'first (5 of 5)')
    """

    graph: DependencyGraph
    method: str
    members: tuple[np.ndarray, ...]
    strength: tuple[np.ndarray, ...]
    n_searched: int
    names: tuple[ModuleName | None, ...] = ()

    def table(self, limit: int | None = None) -> str:
        """Return an aligned table: a line for each module, with its strongest genes.

        Parameters
        ----------
        limit : int, optional
            Most modules to show, from the first on. None: all.

        Returns
        -------
        str
            The table.
        """
        rows = [["module", "genes", *(["q", "set"] if self.names else [])]]
        genes = ["strongest genes"]
        for i, members in enumerate(self.members[:limit]):
            name = self.names[i] if self.names else None
            named = ["-", "-"] if name is None else [p_text(name.q_value), str(name)]
            rows.append([str(i + 1), f"{members.size:,}", *(named if self.names else [])])
            genes.append(" ".join(self.graph.vocabulary.name_of(token) for token in members[:SHOWN_GENES].tolist()))
        rest = len(self.members) - (len(rows) - 1)
        lines = [f"{row}  {text}" for row, text in zip(align(rows), genes, strict=True)]
        found = sum(members.size for members in self.members)
        how = "Leiden" if self.method == "leiden" else "average linkage"
        note = (
            f"{len(self.members):,} modules of {MIN_GENES} genes or more ({how}), with {found:,} of the "
            f"{self.n_searched:,} genes searched"
        )
        return "\n".join([*lines, *([f"... and {rest:,} more"] if rest > 0 else []), "", note])

    def save_csv(self, path: str | os.PathLike[str]) -> None:
        """Write a CSV file with a line for each gene, module after module.

        Parameters
        ----------
        path : path
            File to write. A file that is there is replaced.

        Raises
        ------
        InputError
            If the path is a folder, or its parent does not exist.
        """
        vocabulary, rows = self.graph.vocabulary, []
        for i, (members, strength) in enumerate(zip(self.members, self.strength, strict=True)):
            name = self.names[i] if self.names else None
            named = [] if not self.names else ["", ""] if name is None else [name.name, name.q_value]
            for token, value in zip(members.tolist(), strength.tolist(), strict=True):
                rows.append([i + 1, vocabulary.names[token], vocabulary.name_of(token), value, *named])
        write_csv(path, ["module", "gene", "symbol", "strength", *(["set", "q_value"] if self.names else [])], rows)

    def __str__(self) -> str:
        return self.table()


def find_modules(
    graph: DependencyGraph,
    *,
    method: Literal["leiden", "linkage"] | None = None,
    resolution: float = 1.0,
    sets: str | os.PathLike[str] | Mapping[str, Iterable[int | str]] | None = None,
) -> GraphModules:
    """Find modules: groups of four genes or more with many strong edges between them.

    Parameters
    ----------
    graph : DependencyGraph
        A graph with at least one edge.
    method : str, optional
        ``"leiden"``: the Leiden algorithm with modularity (Traag et al. 2019), over all genes; edges of negative rho do
        not count. It needs igraph. ``"linkage"``: average linkage on 1 - rho (rho is 0 where there is no edge), cut at
        a mean rho of 0.1, over the 3 000 genes of largest summed absolute rho; ``corrmask-fast graph plot`` draws
        these. None: Leiden where igraph is installed, else linkage.
    resolution : float
        Of Leiden, in (0, 1e6): larger values give more and smaller modules.
    sets : path or mapping, optional
        Gene sets that name modules: path of a ``.gmt`` file, or name → genes. Genes outside the vocabulary are left
        out. A module is named by the set of smallest p-value (hypergeometric test, over the genes that were searched),
        if the p-value is at most 0.05 after correction for all modules and sets (Benjamini and Hochberg).

    Returns
    -------
    GraphModules
        The modules, the largest first.

    Raises
    ------
    InputError
        If the graph has no edges, an argument is out of range, or ``sets`` cannot be read.
    MissingExtraError
        If ``method="leiden"`` finds no igraph.

    Examples
    --------
    >>> from itertools import combinations
    >>> from corrmask_fast import DependencyGraph, Vocabulary, find_modules
    >>> genes = Vocabulary(("<pad>", "<mask>", *"ABCDEFGHIJ"))
    >>> pairs = [*combinations("ABCD", 2), *combinations("EFGHI", 2), ("D", "E", 0.1)]
    >>> modules = find_modules(DependencyGraph.from_edges(pairs, genes), method="linkage")
    >>> [[genes.name_of(token) for token in sorted(members)] for members in modules.members]
    [['E', 'F', 'G', 'H', 'I'], ['A', 'B', 'C', 'D']]
    """
    if method not in {"leiden", "linkage", None}:
        raise InputError(
            f"method must be 'leiden', 'linkage' or None; got {method!r}{did_you_mean(method, ('leiden', 'linkage'))}"
        )
    check_number("resolution", resolution, 0, 1e6, open_ends=True)
    if graph.n_edges == 0:
        raise InputError("the graph has no edges, so it has no modules; build it with lower thresholds")
    if method is None:
        try:
            import_extra("igraph", "leiden")
            method = "leiden"
        except MissingExtraError:
            method = "linkage"
    if method == "leiden":
        tokens = np.flatnonzero(graph.degrees)
        weights = _weights(graph)
        members = [tokens[part] for part in _leiden(weights[tokens][:, tokens], resolution)]
        strength = [np.asarray(weights[part][:, part].sum(axis=1)).ravel() for part in members]
    else:
        tokens, matrix = strongest_genes(graph)
        parts = linkage_modules(matrix)
        members = [tokens[part] for part in parts]
        strength = [matrix[np.ix_(part, part)].sum(axis=1) - 1 for part in parts]
    order = [np.argsort(-one, kind="stable") for one in strength]
    return GraphModules(
        graph,
        method,
        tuple(part[by] for part, by in zip(members, order, strict=True)),
        tuple(one[by] for one, by in zip(strength, order, strict=True)),
        tokens.size,
        () if sets is None else _names(graph, tokens, members, sets),
    )


def strongest_genes(graph: DependencyGraph) -> tuple[np.ndarray, np.ndarray]:
    """Return the tokens of the genes of largest summed abs(rho), in this order, and the matrix of rho between them.

    rho lies in [-1, 1], is 1 with itself and 0 where there is no edge.
    """
    weights = _weights(graph)
    strength = np.asarray(abs(weights).sum(axis=1)).ravel()
    tokens = np.argsort(-strength, kind="stable")[: min(BROAD, np.count_nonzero(graph.degrees))]
    matrix = np.clip(weights[tokens][:, tokens].toarray().astype(np.float64), -1, 1)
    np.fill_diagonal(matrix, 1)
    return tokens, matrix


def linkage_modules(matrix: np.ndarray) -> list[np.ndarray]:
    """Return the modules of average linkage as places in the matrix of rho, the largest module first.

    In each, the gene with the largest summed rho to the others is first.
    """
    from scipy.cluster import hierarchy

    groups = _large_groups(hierarchy.fcluster(average_linkage(matrix), 1 - MEAN_RHO, "distance") - 1)
    return [part[np.argsort(-matrix[np.ix_(part, part)].sum(axis=1), kind="stable")] for part in groups]


def average_linkage(matrix: np.ndarray, *, ordered: bool = False) -> np.ndarray:
    """Return the average linkage of genes at distance ``1 - rho``."""
    from scipy.cluster import hierarchy
    from scipy.spatial.distance import squareform

    return hierarchy.linkage(squareform(1 - matrix, checks=False), "average", optimal_ordering=ordered)


def _weights(graph: DependencyGraph) -> Any:
    """Return the (V, V) sparse matrix of rho: over all cells, where the graph has it."""
    return graph.to_scipy("rho" if graph.rho_global is None else "rho_global")


def _large_groups(label: np.ndarray) -> list[np.ndarray]:
    """Return the places of each label of at least MIN_GENES, ascending; the largest group first."""
    sizes = np.bincount(label)
    return [np.flatnonzero(label == i) for i in np.argsort(-sizes, kind="stable").tolist() if sizes[i] >= MIN_GENES]


def _leiden(weights: Any, resolution: float) -> list[np.ndarray]:
    """Return the communities of the Leiden algorithm as places, the largest first."""
    from scipy.sparse import triu

    igraph = import_extra("igraph", "leiden")
    edges = triu(weights, 1).tocoo()
    kept = edges.data > 0
    graph = igraph.Graph(weights.shape[0], np.column_stack([edges.row, edges.col])[kept].tolist())
    igraph.set_random_number_generator(random.Random(0))  # noqa: S311 (the same modules in every run)
    try:
        found = graph.community_leiden(
            objective_function="modularity", weights=edges.data[kept].tolist(), resolution=resolution, n_iterations=-1
        )
    finally:
        igraph.set_random_number_generator(random)
    return _large_groups(np.array(found.membership, np.int64))


def _names(
    graph: DependencyGraph, tokens: np.ndarray, members: Sequence[np.ndarray], sets: Any
) -> tuple[ModuleName | None, ...]:
    """Return the set that names each module, if any: hypergeometric tests over the genes searched, all corrected."""
    from scipy.stats import false_discovery_control, hypergeom

    module = np.full(graph.vocabulary.size, -1, np.int64)
    module[tokens] = len(members)  # searched, and in no module
    for i, part in enumerate(members):
        module[part] = i
    given = open_gene_sets(sets)
    found = {str(name): module[tokens_of_set(graph.vocabulary, name, genes, {})] for name, genes in given.items()}
    found = {name: of_gene[of_gene >= 0] for name, of_gene in found.items() if np.count_nonzero(of_gene >= 0) > 1}
    if not members or not found:
        return (None,) * len(members)
    shared = np.array([np.bincount(of_gene, minlength=len(members) + 1) for of_gene in found.values()])
    size = np.array([part.size for part in members])
    genes, shared = shared.sum(axis=1), shared[:, :-1]
    p = hypergeom.sf(shared - 1, tokens.size, genes[:, None], size)  # of at least so many shared genes
    q = false_discovery_control(p, axis=None).reshape(p.shape)
    names, best = list(found), p.argmin(axis=0)
    return tuple(
        ModuleName(names[k], int(shared[k, i]), int(genes[k]), float(q[k, i])) if q[k, i] <= LARGEST_Q else None
        for i, k in enumerate(best.tolist())
    )
