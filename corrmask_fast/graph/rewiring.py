"""A graph's degrees without its structure: what a graph is compared with, to see what its edges say beyond its hubs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from corrmask_fast.errors import check_number, check_seed
from corrmask_fast.graph.dependency_graph import graph_of_pairs

if TYPE_CHECKING:
    from corrmask_fast.graph.dependency_graph import DependencyGraph

__all__ = ["rewired"]

PROPOSALS = 1 << 20  # drawn at a time
TRIES = 10  # proposals for each swap wanted, at most: in a full graph hardly any swap is possible


def rewired(graph: DependencyGraph, seed: int = 0, *, swaps_per_edge: float = 10) -> DependencyGraph:
    """Return a random graph in which every gene keeps its number of neighbours.

    Two edges (a, b), (c, d) drawn at random become (a, d), (c, b) or (a, c), (b, d), unless that would be a loop or an
    edge twice; again and again (Maslov and Sneppen 2002). Each edge keeps its rho wherever it goes, so that the
    weights are the same too, in another order.

    Parameters
    ----------
    graph
        The graph; it stays as it is.
    seed
        In [0, 2**64): the same seed gives the same graph.
    swaps_per_edge
        Swaps made, for each edge. Edges are forgotten after a few; the default leaves a wide margin. Proposals end at
        ten for each swap wanted, should the graph be so full that few are possible.

    Returns
    -------
    DependencyGraph
        Its ``params`` say from which graph (by fingerprint), with which seed and after how many swaps. It has no
        ``rho_global``.

    Raises
    ------
    InputError
        If the seed or ``swaps_per_edge`` is out of range.

    Examples
    --------
    >>> from corrmask_fast import DependencyGraph, Vocabulary
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
    made, left = 0, TRIES * wanted if n > 1 else 0
    while made < wanted and left > 0:
        some = min(left, PROPOSALS)
        first, second = rng.integers(0, n, (2, some))
        turned = rng.integers(0, 2, some, np.uint8)
        made += swap_edges(u, v, size, table, first, second, turned, wanted - made)
        left -= some
    params = {"rewired_from": graph.fingerprint[:16], "seed": seed, "swaps": made}
    return graph_of_pairs(u, v, edges.rho, graph.vocabulary, params)
