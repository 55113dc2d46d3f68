"""What strategies look up, as the masking kernels take it.

"graph"     a dependency graph, or several one after the other, as CSR:
indptr      (graphs · (V + 1),)   of graph g from g · (V + 1) on
indices     all neighbours; ``indptr`` counts through all graphs
            The CPU kernels go by numbers of the genes with neighbours (``number_connected``): a small table is quickly
            read.
"pairs"     ordered pairs of tokens: u is followed by v
lookup      a head for each u (for each 65 536 possible v, where the vocabulary has more), then buckets of 4 words:
                head       (u's first bucket << 32) | (their number − 1); the number is a power of two
                bucket     i, from word 4 · i on: sixteen v, their low 16 bits; v is in number v mod the number, or none
"gene sets" sets of genes, as CSR in the order of their numbers
indptr      (sets + 1,)
indices     token ids, ascending in each set
lookup      bits of the sets, 64 to a word, that have genes: two at least
            The CPU kernels go by numbers of the genes that are in a set (``number_members``).
others      nothing, in the same form
costs       (V + 1,) where genes have weights, else nothing: of each token, then of one of no vocabulary (SPEC 3)
edge_costs  like ``indices`` where partners go by |rho|, else nothing

What a strategy does not read holds nothing.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from corrmask_fast.cells.vocabulary import Vocabulary
    from corrmask_fast.graph.dependency_graph import DependencyGraph

NO_LOOKUP = np.zeros(1, np.uint64)
NO_COSTS = np.empty(0, np.uint32)
LARGEST_COST, LARGEST_RATIO = 2**31, 2**20  # of the smallest weight; of the largest weight to the smallest
SLOTS = 16  # of a bucket: one comparison of 256 bits looks at all of them


class NeighborTable(NamedTuple):
    """What a strategy looks up."""

    lookup: np.ndarray  # uint64
    indptr: np.ndarray  # int32, or int64 where there are so many neighbours
    indices: np.ndarray  # int32
    degree: int  # the largest number of neighbours
    fingerprint: str  # SHA-256: equal exactly where masks come out equal
    n_graphs: int = 0
    costs: np.ndarray = NO_COSTS  # uint32
    edge_costs: np.ndarray = NO_COSTS  # uint32

    def with_costs(self, costs: np.ndarray = NO_COSTS, edge_costs: np.ndarray = NO_COSTS) -> NeighborTable:
        """Return the table with costs of tokens, of edges, or of both: of none it stays what it is."""
        if not costs.size and not edge_costs.size:
            return self
        parts = (
            self.fingerprint.encode(),
            *(np.int64(each.size).tobytes() + each.tobytes() for each in (costs, edge_costs)),
        )
        fingerprint = hashlib.sha256(b"".join(parts)).hexdigest()
        return self._replace(costs=costs, edge_costs=edge_costs, fingerprint=fingerprint)


def costs_of(weights: np.ndarray, smallest: np.ndarray | float) -> np.ndarray:
    """Return the costs of weights, uint32: the larger a weight, the smaller (SPEC 3)."""
    return np.floor(LARGEST_COST * (smallest / weights)).astype(np.uint32)


def costs_of_edges(graph: DependencyGraph) -> np.ndarray:
    """Return the costs of a graph's edges by |rho|: those of each gene for themselves."""
    begins, degrees = graph.indptr[:-1][graph.degrees > 0], graph.degrees[graph.degrees > 0]
    strength = np.abs(graph.rho.astype(np.float64))
    if not strength.size:
        return NO_COSTS
    strongest = np.maximum.reduceat(strength, begins)
    least = np.where(strongest > 0, strongest / LARGEST_RATIO, 1.0)
    weights = np.maximum(strength, np.repeat(least, degrees))
    return costs_of(weights, np.repeat(np.minimum.reduceat(weights, begins), degrees))


def table_of_graphs(graphs: Sequence[DependencyGraph]) -> NeighborTable:
    """Stack dependency graphs of one vocabulary."""
    starts = np.cumsum([0, *(graph.indices.size for graph in graphs)])
    fingerprints = [graph.fingerprint for graph in graphs]
    both = hashlib.sha256("\n".join(fingerprints).encode()).hexdigest()
    return NeighborTable(
        NO_LOOKUP,
        _narrow(np.concatenate([graph.indptr + start for graph, start in zip(graphs, starts, strict=False)])),
        np.concatenate([graph.indices for graph in graphs]).astype(np.int32, copy=False),
        max(int(graph.degrees.max(initial=0)) for graph in graphs),
        fingerprints[0] if len(graphs) == 1 else both,
        len(graphs),
    )


class Connected(NamedTuple):
    """Dependency graphs as the CPU kernels take them: only genes with neighbours have a number, from 1 on."""

    ids: np.ndarray  # (graphs · (V + 1),): the number of each gene, 0 without neighbours; 0 after each graph's genes
    indptr: np.ndarray  # (numbers + 2,): number 0 has no neighbours
    indices: np.ndarray  # numbers


def number_connected(indptr: np.ndarray, indices: np.ndarray, size: int) -> Connected:
    """Give genes with neighbours numbers, those of each of the stacked graphs after the ones before."""
    graphs = indptr.size // (size + 1)
    starts = indptr.reshape(graphs, size + 1)
    connected = np.zeros((graphs, size + 1), np.bool_)
    connected[:, :-1] = starts[:, 1:] > starts[:, :-1]
    number = np.where(connected, np.cumsum(connected).reshape(graphs, size + 1), 0)
    narrow = np.uint16 if int(connected.sum()) < 2**16 else np.int32  # half the bytes, where they suffice
    graph = np.repeat(np.arange(graphs), starts[:, -1] - starts[:, 0])
    return Connected(
        number.astype(narrow).reshape(-1),
        np.concatenate([starts[:1, 0], starts[connected], starts[-1:, -1]]),
        number[graph, indices].astype(narrow),
    )


def table_of_sets(indptr: np.ndarray, indices: np.ndarray, fingerprint: str) -> NeighborTable:
    """Return the table of gene sets given as CSR; of those that propose nothing, no genes."""
    bits = np.packbits(np.diff(indptr) > 0, bitorder="little")
    lookup = np.zeros(-(-bits.size // 8), np.uint64)
    lookup.view(np.uint8)[: bits.size] = bits
    return NeighborTable(lookup, _narrow(indptr), indices.astype(np.int32), 0, fingerprint)


def number_members(indices: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the number of each gene as in :class:`Connected`, 0 of those that are in no set; and the sets by them."""
    inside = np.zeros(size + 1, np.bool_)
    inside[indices] = True
    number = np.where(inside, np.cumsum(inside), 0)
    narrow = np.uint16 if int(inside.sum()) < 2**16 else np.int32
    return number.astype(narrow), number[indices].astype(narrow)


def table_of_pairs(indptr: np.ndarray, indices: np.ndarray, fingerprint: str) -> NeighborTable:
    """Return the table of ordered pairs given as CSR over the vocabulary, ascending in each row."""
    size = indptr.size - 1
    heads = size * max(1, -(-size // 2**16))
    before = -(-heads // 4)  # buckets whose memory the heads take
    # A head's pairs lie together: by v / 65 536, then u. Mostly that is the order they are given in.
    head = np.repeat(np.arange(size), np.diff(indptr)) + size * (indices >> 16)
    order = np.argsort(head, kind="stable") if heads > size else slice(None)
    head, low = head[order], (indices[order] & 0xFFFF).astype(np.int64)
    buckets = _buckets_needed(head, low, heads)
    begin = 2 + np.cumsum(buckets) - buckets
    bucket = begin[head] + (low & (buckets[head] - 1))
    by_bucket = np.argsort(bucket, kind="stable")
    filled = np.bincount(bucket, minlength=2 + int(buckets.sum()))
    place = np.arange(low.size) - np.repeat(np.cumsum(filled) - filled, filled)
    # Slots left over hold a gene that follows u anyway. Where none does there are the first two buckets, which hold
    # what is never looked for there: odd numbers in the one for even numbers, and the other way round.
    some = np.zeros(heads, np.int64)
    some[head] = low
    slots = np.repeat(np.concatenate([[1, 0], np.repeat(some, buckets)]), SLOTS).astype(np.uint16).reshape(-1, SLOTS)
    slots[bucket[by_bucket], place] = low[by_bucket]
    begin[buckets == 0], buckets[buckets == 0] = 0, 2
    lookup = np.zeros(4 * before + slots.size // 4, np.uint64)
    lookup[:heads] = ((before + begin) << 32) | (buckets - 1)
    lookup[4 * before :] = slots.reshape(-1).view(np.uint64)
    return NeighborTable(lookup, np.zeros(size + 1, np.int32), np.empty(0, np.int32), 0, fingerprint)


def _buckets_needed(head: np.ndarray, low: np.ndarray, heads: int) -> np.ndarray:
    """For each head, the smallest power of two of buckets none of which has more entries than slots; 0 for no entries.

    With 65 536 buckets each entry has its own: this ends.
    """
    buckets = np.minimum(np.bincount(head, minlength=heads), 1)
    while head.size:
        begin = np.cumsum(buckets) - buckets
        bucket = begin[head] + (low & (buckets[head] - 1))
        full = np.zeros(heads, np.bool_)
        full[head[np.bincount(bucket)[bucket] > SLOTS]] = True
        buckets[full] *= 2
        head, low = head[full[head]], low[full[head]]
    return buckets


def no_table(vocabulary: Vocabulary) -> NeighborTable:
    """Return the table of a strategy that needs none."""
    nothing = np.zeros(vocabulary.size + 1, np.int32)
    return NeighborTable(NO_LOOKUP, nothing, np.empty(0, np.int32), 0, vocabulary.fingerprint)


def _narrow(indptr: np.ndarray) -> np.ndarray:
    return indptr.astype(np.int32 if indptr[-1] < 2**31 else np.int64)
