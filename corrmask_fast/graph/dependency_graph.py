"""The dependency graph: which genes depend on each other, how strongly, and its file."""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from corrmask_fast.errors import InputError, check_number, import_extra, naming, shown
from corrmask_fast.tensor_files import hash_tensors, plain_params, read_graph, write_graph

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

    from corrmask_fast.cells.vocabulary import Vocabulary

__all__ = ["DependencyGraph"]


class Edges(NamedTuple):
    """The edges of a graph, each once: u < v, in order of (u, v)."""

    u: np.ndarray  # (n_edges,) int64 token ids
    v: np.ndarray  # (n_edges,) int64
    rho: np.ndarray  # (n_edges,) float32
    rho_global: np.ndarray | None  # (n_edges,) float32, where known


class DependencyGraph:
    """Genes and their neighbours: an undirected graph over a vocabulary, with a rho for each edge.

    :func:`~corrmask_fast.build_dependency_graph` builds one from cells.
    :meth:`~corrmask_fast.DependencyGraph.from_edges` takes the edges from elsewhere. All arguments
    are attributes, too.

    Parameters
    ----------
    indptr : array
        (V + 1,) int64: the neighbours of token g are ``indices[indptr[g]:indptr[g + 1]]``. Special tokens have none.
    indices : array
        (2 · n_edges,) int32: token ids, ascending in each row.
    rho : array
        (2 · n_edges,) float32: weight of each edge. In a built graph, Spearman's rho over the cells that hold both
        genes.
    vocabulary : Vocabulary
        Which id is which gene; its size is V.
    params : mapping, optional
        How the graph was made: names, and values that JSON can hold.
    rho_global : array, optional
        (2 · n_edges,) float32: Spearman's rho over all cells. None: not known.

    Raises
    ------
    InputError
        If the arrays are no undirected graph over the genes of the vocabulary, a gene is its own neighbour, or a weight
        is not finite.

    Notes
    -----
    docs/SPEC.md, section 2.

    Examples
    --------
    >>> from corrmask_fast import DependencyGraph, Vocabulary
    >>> genes = Vocabulary(("<pad>", "<mask>", "RPL3", "RPS6", "CD3D"))
    >>> graph = DependencyGraph.from_edges([("RPL3", "RPS6", 0.7)], genes)
    >>> graph
    DependencyGraph(1 edge between 2 of 3 genes)
    >>> graph.neighbors("RPS6")
    (array([2], dtype=int32), array([0.7], dtype=float32))
    """

    def __init__(
        self,
        indptr: np.ndarray,
        indices: np.ndarray,
        rho: np.ndarray,
        vocabulary: Vocabulary,
        params: Mapping[str, Any] | None = None,
        rho_global: np.ndarray | None = None,
    ) -> None:
        self.vocabulary = vocabulary
        self.params = plain_params(params or {})
        self.indptr, self.indices = _check_structure(indptr, indices, vocabulary)
        self.rho = _check_weights("rho", rho, self.indices.size)
        self.rho_global = None if rho_global is None else _check_weights("rho_global", rho_global, self.indices.size)

    # ----------------------------------------------------------------------------------------------------- looking

    @property
    def n_edges(self) -> int:
        """Number of edges; each pair of genes counts once."""
        return self.indices.size // 2

    @property
    def degrees(self) -> np.ndarray:
        """(V,) int64: number of neighbours of each token."""
        return np.diff(self.indptr)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of edges and vocabulary, without rho.

        Graphs with the same fingerprint give the same masks, unless partners are drawn by weight.
        """
        return hash_tensors(self.vocabulary.fingerprint.encode(), {"indptr": self.indptr, "indices": self.indices})

    def neighbors(self, gene: str | int) -> tuple[np.ndarray, np.ndarray]:
        """Return the neighbours of a gene, the one with the largest absolute rho first (ties: lower id).

        Parameters
        ----------
        gene : str or int
            Token id, name or symbol.

        Returns
        -------
        ids : array
            (degree,) int32 token ids.
        rho : array
            (degree,) float32: rho of each edge.

        Raises
        ------
        InputError
            If there is no such gene.
        """
        token = self.vocabulary.id_of(gene)
        row = slice(self.indptr[token], self.indptr[token + 1])
        order = np.argsort(-np.abs(self.rho[row]), kind="stable")
        return self.indices[row][order], self.rho[row][order]

    def edges(self) -> Edges:
        """Return each edge once: its genes u < v, in order of (u, v).

        Returns
        -------
        NamedTuple
            ``u`` and ``v``: (n_edges,) int64 token ids; ``rho``: (n_edges,) float32; ``rho_global``: (n_edges,)
            float32, or None.
        """
        rows = np.repeat(np.arange(self.vocabulary.size), self.degrees)
        once = rows < self.indices
        overall = None if self.rho_global is None else self.rho_global[once]
        return Edges(rows[once], self.indices[once].astype(np.int64), self.rho[once], overall)

    def summary(self) -> dict[str, Any]:
        """Return sizes, degrees, quantiles of rho, and parameters: what ``corrmask-fast graph info`` shows.

        Returns
        -------
        dict
            Plain values, by name.
        """
        lo, hi = self.vocabulary.gene_range
        degrees = self.degrees[lo:hi]
        linked = degrees[degrees > 0]
        hub = lo + int(degrees.argmax())
        facts: dict[str, Any] = {
            "genes": hi - lo,
            "genes_with_neighbors": linked.size,
            "edges": self.n_edges,
            "mean_degree": float(linked.mean()) if linked.size else 0.0,  # of genes with neighbours
            "median_degree": float(np.median(linked)) if linked.size else 0.0,
            "max_degree": int(degrees.max()),
            "hub": self.vocabulary.name_of(hub) if linked.size else None,
        }
        for name, values in (("rho", self.rho), ("rho_global", self.rho_global)):
            if values is not None and values.size:
                facts[f"{name}_quantiles"] = [float(q) for q in np.quantile(values, [0, 0.25, 0.5, 0.75, 1])]
                facts[f"{name}_negative_share"] = float(np.mean(values < 0))
        return {**facts, "params": self.params, "fingerprint": self.fingerprint}

    def __repr__(self) -> str:
        lo, hi = self.vocabulary.gene_range
        edges = "1 edge" if self.n_edges == 1 else f"{self.n_edges} edges"
        return f"DependencyGraph({edges} between {np.count_nonzero(self.degrees)} of {hi - lo} genes)"

    # -------------------------------------------------------------------------------------------------- converting

    def to_scipy(self, weights: Literal["rho", "rho_global"] | None = "rho") -> Any:
        """Return the graph as a sparse matrix.

        Parameters
        ----------
        weights : str or None
            ``"rho"``, ``"rho_global"``, or None for ones.

        Returns
        -------
        scipy.sparse.csr_array
            (V, V) float32, symmetric.

        Raises
        ------
        InputError
            If ``weights`` is none of these, or the graph has no ``rho_global``.
        """
        from scipy.sparse import csr_array

        if weights not in {"rho", "rho_global", None}:
            raise InputError(f"weights must be 'rho', 'rho_global' or None; got {weights!r}")
        data = np.ones(self.indices.size, np.float32) if weights is None else getattr(self, weights)
        if data is None:
            raise InputError("this graph has no rho_global (it was not built from cells); use weights='rho'")
        size = self.vocabulary.size
        return csr_array((data.copy(), self.indices.copy(), self.indptr.copy()), shape=(size, size))

    def to_networkx(self) -> Any:
        """Return the graph for NetworkX.

        Returns
        -------
        networkx.Graph
            A node for every gene, by name, with ``token`` and ``symbol`` (the name, where a gene has no symbol); edges
            with ``rho`` and, where known, ``rho_global``.

        Raises
        ------
        MissingExtraError
            If networkx is not installed.
        """
        networkx = import_extra("networkx", "networkx")
        graph = networkx.Graph()
        lo, hi = self.vocabulary.gene_range
        names = self.vocabulary.names
        for token in range(lo, hi):
            graph.add_node(names[token], token=token, symbol=self.vocabulary.name_of(token))
        edges = self.edges()
        known = {name: values.tolist() for name, values in zip(edges._fields, edges, strict=True) if values is not None}
        for u, v, *weights in zip(*known.values(), strict=True):
            graph.add_edge(names[u], names[v], **dict(zip(list(known)[2:], weights, strict=True)))
        return graph

    @classmethod
    def from_edges(
        cls,
        pairs: Iterable[tuple[Any, ...]],
        vocabulary: Vocabulary,
        *,
        unknown: Literal["error", "skip"] = "error",
        params: Mapping[str, Any] | None = None,
    ) -> DependencyGraph:
        """Return a graph from pairs of genes: protein interactions (STRING), shared GO terms, complexes.

        Parameters
        ----------
        pairs : iterable of tuple
            ``(gene, gene)`` or ``(gene, gene, weight)``: genes by token id, name or symbol; the weight is 1.0 if not
            given. Each pair counts in both directions. Of a pair that stands several times, the weight of largest
            absolute value counts. A gene paired with itself is left out.
        vocabulary : Vocabulary
            The vocabulary that the graph is for.
        unknown : str
            What to do with a gene outside the vocabulary: ``"error"``, or ``"skip"`` its pairs.
        params : mapping, optional
            Where the graph comes from, kept as its ``params``.

        Returns
        -------
        DependencyGraph
            The graph; its ``rho`` are the weights, and it has no ``rho_global``.

        Raises
        ------
        InputError
            If a pair has neither two nor three parts, a weight is no finite number, a gene is unknown, or ``unknown``
            is none of these.

        Examples
        --------
        >>> from corrmask_fast import DependencyGraph, Vocabulary
        >>> genes = Vocabulary(("<pad>", "<mask>", "RPL3", "RPS6", "CD3D"))
        >>> pairs = [("RPL3", "RPS6", 0.9), ("RPS6", "RPL3", 0.4), ("RPL3", "BRCA1")]
        >>> DependencyGraph.from_edges(pairs, genes, unknown="skip").edges().rho
        array([0.9], dtype=float32)
        """
        if unknown not in {"error", "skip"}:
            raise InputError(f"unknown must be 'error' or 'skip'; got {unknown!r}")
        weights: dict[tuple[int, int], float] = {}
        for number, pair in enumerate(pairs):
            parts = () if isinstance(pair, str) or not isinstance(pair, Iterable) else tuple(pair)
            if len(parts) not in {2, 3}:
                raise InputError(f"pair {number} must be (gene, gene) or (gene, gene, weight); got {shown(pair)}")
            try:
                a, b = sorted(vocabulary.id_of(gene) for gene in parts[:2])
            except (InputError, TypeError) as error:
                if unknown == "skip":
                    continue
                raise InputError(f"pair {number}: {error}; unknown='skip' leaves such pairs out") from error
            weight = 1.0
            if len(parts) == 3:
                weight = check_number(f"the weight of pair {number}", parts[2], -math.inf, math.inf, open_ends=True)
            if a != b and ((a, b) not in weights or abs(weight) > abs(weights[a, b])):
                weights[a, b] = weight
        edges = np.array(list(weights), np.int64).reshape(-1, 2)
        return graph_of_pairs(edges[:, 0], edges[:, 1], np.array(list(weights.values())), vocabulary, params)

    # ------------------------------------------------------------------------------------------------ saving, loading

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the graph as one ``safetensors`` file; the same graph always gives the same bytes.

        Parameters
        ----------
        path : path
            File to write. A file that is there is replaced.

        Raises
        ------
        InputError
            If the path is a folder, or its parent does not exist.
        """
        tensors = {"indptr": self.indptr, "indices": self.indices, "rho": self.rho}
        if self.rho_global is not None:
            tensors["rho_global"] = self.rho_global
        write_graph(path, tensors, self.vocabulary, self.params)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> DependencyGraph:
        """Read a graph that :meth:`~corrmask_fast.DependencyGraph.save` wrote.

        Parameters
        ----------
        path : path
            The file.

        Returns
        -------
        DependencyGraph
            The graph, with its vocabulary.

        Raises
        ------
        InputError
            If there is no such file, or it is truncated, altered, of another format or of a newer version.

        Examples
        --------
        >>> import tempfile
        >>> from corrmask_fast import DependencyGraph, Vocabulary
        >>> graph = DependencyGraph.from_edges([("A", "B", 0.5)], Vocabulary(("<pad>", "<mask>", "A", "B")))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     graph.save(f"{folder}/graph.safetensors")
        ...     DependencyGraph.load(f"{folder}/graph.safetensors")
        DependencyGraph(1 edge between 2 of 2 genes)
        """
        tensors, vocabulary, params = read_graph(path)
        with naming(path):
            return cls(**tensors, vocabulary=vocabulary, params=params)  # type: ignore[arg-type]


def graph_of_pairs(
    a: np.ndarray,
    b: np.ndarray,
    rho: np.ndarray,
    vocabulary: Vocabulary,
    params: Mapping[str, Any] | None = None,
    rho_global: np.ndarray | None = None,
) -> DependencyGraph:
    """Return the graph of pairs of tokens ``a`` and ``b`` (each pair once), in both directions."""
    rows, others = np.concatenate([a, b]), np.concatenate([b, a])
    order = np.lexsort((others, rows))

    def both(values: np.ndarray) -> np.ndarray:
        return np.concatenate([values, values])[order]

    indptr = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=vocabulary.size))])
    everywhere = None if rho_global is None else both(rho_global)
    return DependencyGraph(indptr, others[order], both(rho), vocabulary, params, everywhere)


def _check_structure(indptr: Any, indices: Any, vocabulary: Vocabulary) -> tuple[np.ndarray, np.ndarray]:
    """CSR arrays of an undirected graph over the vocabulary's genes, as int64 and int32."""
    indptr, indices = np.asarray(indptr), np.asarray(indices)
    for name, array in (("indptr", indptr), ("indices", indices)):
        if array.ndim != 1 or array.dtype.kind not in "iu":
            raise InputError(f"{name} must be a one-dimensional integer array; got {array.ndim}-d {array.dtype}")
    size = vocabulary.size
    if indptr.size != size + 1:
        raise InputError(
            f"indptr must have one entry more than the vocabulary has tokens, {size + 1}; got {indptr.size}; "
            "give the vocabulary that the graph was made with"
        )
    indptr, indices = np.ascontiguousarray(indptr, np.int64), np.ascontiguousarray(indices, np.int64)
    if indptr[0] != 0 or indptr[-1] != indices.size or np.any(np.diff(indptr) < 0):
        raise InputError(f"indptr must rise from 0 to the number of indices, {indices.size}, and never fall")
    rows = np.repeat(np.arange(size), np.diff(indptr))
    lo, hi = vocabulary.gene_range

    def check(wrong: np.ndarray, rule: str) -> None:
        if wrong.any():
            k = int(wrong.argmax())
            raise InputError(f"{rule}; got neighbor {indices[k]} in row {rows[k]} (place {k} of indices)")

    check((indices < lo) | (indices >= hi), f"neighbors must be gene tokens in [{lo}, {hi})")
    check(rows == indices, "a gene cannot be its own neighbor")
    check(np.diff(rows * size + indices, prepend=-1) <= 0, "neighbors must ascend in each row, each once")
    # Ascending keys equal to the sorted keys of all edges turned round: every edge has its other direction.
    turned = np.sort(indices * size + rows)
    check(rows * size + indices != turned, "every edge must be there in both directions")
    return indptr, indices.astype(np.int32)


def _check_weights(name: str, weights: Any, size: int) -> np.ndarray:
    weights = np.asarray(weights)
    if weights.shape != (size,) or weights.dtype.kind not in "fiu":
        raise InputError(f"{name} must hold one number for each of {size} indices; got {weights.dtype} {weights.shape}")
    with np.errstate(over="ignore"):
        weights = np.ascontiguousarray(weights, np.float32)
    if not np.isfinite(weights).all():
        raise InputError(f"{name} must be finite (in float32); got {weights[~np.isfinite(weights)][0]}")
    return weights
