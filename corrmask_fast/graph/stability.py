"""How often the edges of a graph come back when it is built again from parts of the cells."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np

from corrmask_fast.errors import InputError, check_integer, check_number, check_seed
from corrmask_fast.graph.build.building import GraphParameters, build_dependency_graph
from corrmask_fast.graph.dependency_graph import DependencyGraph, graph_of_pairs
from corrmask_fast.graph.export import NAMES, edge_rows
from corrmask_fast.tables import align, write_csv

if TYPE_CHECKING:
    import os

    from corrmask_fast.cells.corpus import Corpus

__all__ = ["EdgeStability", "edge_stability"]

SCALED = ("min_cooccurrence", "min_presence")  # numbers of cells: they shrink with the cells


@dataclass(frozen=True, eq=False)
class EdgeStability:
    """Result of :func:`~corrmask_fast.edge_stability`: in how many repeats each edge of a graph occurs.

    Printed, it is its :meth:`~corrmask_fast.EdgeStability.table`.

    Attributes
    ----------
    graph
        The graph.
    n_repeats
        Number of graphs that were built again.
    cells_per_repeat
        Number of cells of each.
    times
        (n_edges,) int64: number of repeats with the edge, in order of ``graph.edges()``.
    other_u
        (others,) int64: first gene (token id) of each pair that is an edge of a repeat but not of the graph.
    other_v
        (others,) int64: second gene of each of these pairs.
    other_times
        (others,) int64: number of repeats with the pair.

    Examples
    --------
    >>> import numpy as np
    >>> from corrmask_fast import DependencyGraph, EdgeStability, Vocabulary
    >>> genes = Vocabulary(("<pad>", "<mask>", "A", "B", "C"))
    >>> graph = DependencyGraph.from_edges([("A", "B"), ("B", "C")], genes)
    >>> none = np.empty(0, np.int64)
    >>> stability = EdgeStability(graph, 4, 100, np.array([4, 1]), none, none, none)
    >>> stability.frequency.tolist(), stability.filter(0.5).n_edges
    ([1.0, 0.25], 1)
    """

    graph: DependencyGraph
    n_repeats: int
    cells_per_repeat: int
    times: np.ndarray
    other_u: np.ndarray
    other_v: np.ndarray
    other_times: np.ndarray

    @property
    def frequency(self) -> np.ndarray:
        """(n_edges,) float64: share of the repeats with the edge, in order of ``graph.edges()``."""
        return self.times / self.n_repeats

    def filter(self, min_frequency: float) -> DependencyGraph:
        """Return the graph of the edges that occur in enough repeats; their rho stays.

        Parameters
        ----------
        min_frequency : float
            Smallest share of the repeats, in [0, 1].

        Returns
        -------
        DependencyGraph
            Its ``params`` name the share, the number of repeats and their cells too.

        Raises
        ------
        InputError
            If ``min_frequency`` is out of range.
        """
        min_frequency = check_number("min_frequency", min_frequency, 0, 1)
        edges = self.graph.edges()
        kept = self.times >= _part(min_frequency, self.n_repeats)
        stability = {
            "min_frequency": min_frequency,
            "stability_repeats": self.n_repeats,
            "stability_cells": self.cells_per_repeat,
        }
        overall = None if edges.rho_global is None else edges.rho_global[kept]
        params = {**self.graph.params, **stability}
        return graph_of_pairs(edges.u[kept], edges.v[kept], edges.rho[kept], self.graph.vocabulary, params, overall)

    def table(self) -> str:
        """Return an aligned table: how many edges occur in at least how many repeats.

        Returns
        -------
        str
            The table.
        """
        rows = [["in at least", "edges", "of the graph's", "others"]]
        for share in (1.0, 0.9, 0.8, 0.5, 0.2):
            least = max(1, _part(share, self.n_repeats))
            kept, others = (int(np.count_nonzero(times >= least)) for times in (self.times, self.other_times))
            of_all = f"{100 * kept / self.graph.n_edges:.1f} %" if self.graph.n_edges else "-"
            rows.append([f"{least} of {self.n_repeats}", f"{kept:,}", of_all, f"{others:,}"])
        never = int(np.count_nonzero(self.times == 0))
        rows = [row for i, row in enumerate(rows) if i == 0 or row[0] != rows[i - 1][0]]
        note = f"{never:,} of {self.graph.n_edges:,} edges occur in no repeat; others: edges that only repeats have"
        return "\n".join([*align(rows), note])

    def save_csv(self, path: str | os.PathLike[str]) -> None:
        """Write a CSV file with a line for each edge, the most frequent first: its genes, rho and share of repeats.

        Parameters
        ----------
        path : path
            File to write. A file that is there is replaced.

        Raises
        ------
        InputError
            If the path is a folder, or its parent does not exist.
        """
        rho = self.graph.edges().rho
        order = np.lexsort((-np.abs(rho), -self.times))
        rows = edge_rows(self.graph, rho, self.times, self.frequency, order=order)
        write_csv(path, [*NAMES, "rho", "repeats", "frequency"], rows)

    def __str__(self) -> str:
        return self.table()


def edge_stability(
    corpus: Corpus,
    graph: DependencyGraph,
    *,
    n_repeats: int = 10,
    fraction: float = 0.5,
    seed: int | None = None,
    device: str = "auto",
    progress: bool = True,
) -> EdgeStability:
    """Build a graph several times from parts of the cells, and count how often each of its edges occurs.

    Repeat r (from 1) calls :func:`~corrmask_fast.build_dependency_graph` with the graph's parameters, except for three:
    the seed is ``seed + r``; the number of cells is ``fraction`` of the graph's; and ``min_cooccurrence`` and
    ``min_presence``, which count cells, shrink by the same fraction (rounded up). Otherwise edges would be lost because
    there are fewer cells.

    Parameters
    ----------
    corpus : Corpus
        The cells that the graph was built from.
    graph : DependencyGraph
        A graph that :func:`~corrmask_fast.build_dependency_graph` built: its ``params`` hold the parameters.
    n_repeats : int
        Number of graphs to build. Each takes about ``fraction`` of the time of the first one.
    fraction : float
        Share of the cells of each repeat, in (0, 1]. Each repeat draws its own cells, without replacement. With 1, and
        a corpus no larger than the sample, all repeats are equal.
    seed : int, optional
        Seed of the samples, in [0, 2**64). None: the graph's.
    device, progress
        As for :func:`~corrmask_fast.build_dependency_graph`.

    Returns
    -------
    EdgeStability
        The number of repeats with each edge of the graph, and with edges that are not in the graph.

    Raises
    ------
    InputError
        If the graph was not built from cells, or has another vocabulary or number of cells than the corpus; if a number
        is out of range.

    Notes
    -----
    Half of the cells is the fraction of stability selection (Meinshausen and Buehlmann 2010).

    Examples
    --------
    >>> import numpy as np
    >>> from corrmask_fast import Corpus, Vocabulary, build_dependency_graph, edge_stability
    >>> genes = Vocabulary(("<pad>", "<mask>", "A", "B", "C"))
    >>> corpus = Corpus(np.arange(0, 61, 3), np.array([2, 3, 4, 4, 3, 2] * 10), genes)
    >>> graph = build_dependency_graph(corpus, min_cooccurrence=4, min_presence=2, progress=False)
    >>> edge_stability(corpus, graph, n_repeats=4, progress=False).frequency
    array([1.])
    """
    parameters = parameters_of(graph)
    check_corpus(corpus, graph)
    check_integer("n_repeats", n_repeats, 1)
    if check_number("fraction", fraction, 0, 1) == 0:
        raise InputError("fraction must be a number in (0, 1]; got 0")
    seed = parameters["seed"] if seed is None else check_seed(seed)
    n_cells = _part(fraction, graph.params["n_cells_used"])
    parameters |= {name: _part(fraction, parameters[name]) for name in SCALED}
    parameters |= {"n_cells": n_cells, "device": device, "progress": progress}
    size = graph.vocabulary.size
    found = []
    for repeat in range(1, n_repeats + 1):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # no edges at all: the table says so
            edges = build_dependency_graph(corpus, **{**parameters, "seed": (seed + repeat) % 2**64}).edges()
        found.append(edges.u * size + edges.v)
    pairs, times = np.unique(np.concatenate(found), return_counts=True)
    mine = graph.edges()
    keys = mine.u * size + mine.v
    place = np.minimum(np.searchsorted(pairs, keys), max(pairs.size - 1, 0))
    known = pairs[place] == keys if pairs.size else np.zeros(keys.size, np.bool_)
    others = ~np.isin(pairs, keys)
    return EdgeStability(
        graph=graph,
        n_repeats=n_repeats,
        cells_per_repeat=n_cells,
        times=np.where(known, times[place], 0) if pairs.size else np.zeros(keys.size, np.int64),
        other_u=pairs[others] // size,
        other_v=pairs[others] % size,
        other_times=times[others],
    )


def _part(share: float, whole: int) -> int:
    """Return the share of a number, rounded up: 0.7 of 10 is 7, whatever 0.7 * 10 is in binary."""
    return math.ceil(share * whole - 1e-9)


def check_corpus(corpus: Corpus, graph: DependencyGraph) -> None:
    """Raise InputError unless the corpus can be the one that the graph was built from."""
    corpus.vocabulary.check_same(graph.vocabulary, "the corpus", "the graph")
    used, n_cells = graph.params["n_cells_used"], graph.params["n_cells"]
    sampled = used == n_cells and corpus.n_cells >= used
    if not sampled and used != corpus.n_cells:
        raise InputError(
            f"the graph was built from {used} cells, and the corpus has {corpus.n_cells}; give the corpus that it was "
            "built from (of a graph of one group: the cells of that group)"
        )


def parameters_of(graph: DependencyGraph) -> dict[str, Any]:
    """Return what the graph was built with, as keyword arguments."""
    names = [field.name for field in fields(GraphParameters)]
    missing = [name for name in (*names, "n_cells_used") if name not in graph.params]
    if missing:
        raise InputError(
            f"the graph does not say how it was built (its params lack {', '.join(missing)}): this needs a graph "
            "that build_dependency_graph made; merged graphs and graphs from elsewhere cannot be built again"
        )
    return {name: graph.params[name] for name in names}
