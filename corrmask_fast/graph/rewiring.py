"""Random graphs with the degrees of a graph: a control that keeps the hubs and loses which genes are partners."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from corrmask_fast.errors import check_number, check_seed
from corrmask_fast.graph.dependency_graph import graph_of_pairs

if TYPE_CHECKING:
    from corrmask_fast.graph.dependency_graph import DependencyGraph

__all__ = ["rewired"]

PROPOSALS = 1 << 20  # drawn at a time
MAX_TRIES = 10  # for each swap wanted: in a full graph hardly any swap is possible


def rewired(graph: DependencyGraph, seed: int = 0, *, swaps_per_edge: float = 10) -> DependencyGraph:
    """Return a random graph in which every gene keeps its number of neighbours.

    Two edges (a, b), (c, d) are drawn at random and become (a, d), (c, b) or (a, c), (b, d), unless that makes a loop
    or an edge twice. This is repeated many times. Each edge keeps its rho, so the weights are the same, in another
    order.

    Parameters
    ----------
    graph : DependencyGraph
        The graph; it stays as it is.
    seed : int
        Seed in [0, 2**64). The same seed gives the same graph.
    swaps_per_edge : float
        Number of swaps for each edge, in [0, 1e6]. A few are enough to lose the edges of the graph; the default leaves
        a wide margin. At most ten swaps are tried for each one wanted: in a nearly full graph, few are possible.

    Returns
    -------
    DependencyGraph
        Its ``params`` name the graph (by fingerprint), the seed and the number of swaps. It has no ``rho_global``.

    Raises
    ------
    InputError
        If ``seed`` or ``swaps_per_edge`` is out of range.

    Notes
    -----
    Maslov and Sneppen 2002. :class:`~corrmask_fast.RewiredCorrMasker` masks by such a graph.

    Examples
    --------
    >>> from corrmask_fast import DependencyGraph, Vocabulary, rewired
    >>> genes = Vocabulary(("<pad>", "<mask>", *"ABCDEF"))
    >>> ring = DependencyGraph.from_edges(zip("ABCDEF", "BCDEFA"), genes)
    >>> other = rewired(ring, seed=1)
    >>> other.degrees.tolist() == ring.degrees.tolist(), other.params["swaps"]
    (True, 60)
    """
    from corrmask_fast.kernels.rewire import EMPTY, insert_edges, swap_edges

    rng = np.random.Generator(np.random.PCG64(check_seed(seed)))
    edges = graph.edges()
    u, v, size, n = edges.u.copy(), edges.v.copy(), graph.vocabulary.size, edges.u.size
    wanted = round(check_number("swaps_per_edge", swaps_per_edge, 0, 1e6) * n)
    table = np.full(1 << max(4, (4 * n - 1).bit_length()), EMPTY, np.int64)
    insert_edges(u, v, size, table)
    made, left = 0, MAX_TRIES * wanted if n > 1 else 0
    while made < wanted and left > 0:
        some = min(left, PROPOSALS)
        first, second = rng.integers(0, n, (2, some))
        turned = rng.integers(0, 2, some, np.uint8)
        made += swap_edges(u, v, size, table, first, second, turned, wanted - made)
        left -= some
    params = {"rewired_from": graph.fingerprint[:16], "seed": seed, "swaps": made}
    return graph_of_pairs(u, v, edges.rho, graph.vocabulary, params)
