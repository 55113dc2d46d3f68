"""Whether correlated genes stand close to each other in rank: the CorrMask paper's Table 8, with controls.

The paper gives one figure in two wordings (appendix C.6); both are counted here, over the gene tokens of each cell:

========  ========================================================================================================
near      of the tokens whose gene has a neighbour in the graph, the share with a neighbour among the ``width``
          closest tokens on either side
windows   of all runs of ``width`` neighbouring tokens, the share that holds a pair of neighbours in the graph
========  ========================================================================================================

Beside them two controls: the same cells with a rewired graph (same degrees, other partners), and the same graph with
each cell's genes in random order. If closeness in rank meant correlation, the first line would stand out from both.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from corrmask_fast.errors import InputError, check_integer, check_seed
from corrmask_fast.tables import align, write_csv
from corrmask_fast.threads import run_ranges

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from corrmask_fast.cells.corpus import Corpus
    from corrmask_fast.graph.dependency_graph import DependencyGraph

__all__ = ["WindowShares", "correlated_windows", "windows_beside_controls", "windows_table"]

CHUNK_CELLS = 4096  # read at a time: bounds memory, changes no result
RANKED, REWIRED, SHUFFLED = "as ranked", "rewired graph", "random order"


@dataclass(frozen=True)
class WindowShares:
    """How often correlated genes stand close to each other in rank: counts, and two shares.

    :func:`~corrmask_fast.correlated_windows` returns it.

    Attributes
    ----------
    name
        Name of the order of genes in tables.
    width
        Tokens of a window, and how many on either side are near.
    n_cells
        Number of cells.
    tokens
        Number of gene tokens in them.
    linked
        Tokens whose gene has a neighbour in the graph.
    near
        Of ``linked``, those with a neighbour among the ``width`` closest tokens on either side.
    windows
        Runs of ``width`` neighbouring tokens of a cell; a shorter cell has none.
    with_pair
        Of ``windows``, those that hold a pair of neighbours in the graph.

    Examples
    --------
    >>> from corrmask_fast import WindowShares
    >>> shares = WindowShares("as ranked", width=5, n_cells=1, tokens=9, linked=8, near=2, windows=5, with_pair=1)
    >>> shares.near_share, shares.window_share
    (0.25, 0.2)
    """

    name: str
    width: int
    n_cells: int
    tokens: int
    linked: int
    near: int
    windows: int
    with_pair: int

    @property
    def near_share(self) -> float:
        """``near / linked``, in [0, 1]; NaN if ``linked`` is 0."""
        return self.near / self.linked if self.linked else math.nan

    @property
    def window_share(self) -> float:
        """``with_pair / windows``, in [0, 1]; NaN if there are no windows."""
        return self.with_pair / self.windows if self.windows else math.nan

    def to_dict(self) -> dict[str, Any]:
        """Return shares and counts by name.

        Returns
        -------
        dict
            ``order`` (the name), ``near_share``, ``window_share``, and the counts.
        """
        return {"order": self.name, "near_share": self.near_share, "window_share": self.window_share} | {
            name: value for name, value in asdict(self).items() if name != "name"
        }


def correlated_windows(
    corpus: Corpus,
    graph: DependencyGraph,
    *,
    width: int = 5,
    n_cells: int | None = None,
    seed: int = 0,
    shuffled: bool = False,
    name: str = RANKED,
    progress: bool = True,
) -> WindowShares:
    """Count how often correlated genes stand close to each other in cells (Hacohen et al. 2026, Table 8).

    Parameters
    ----------
    corpus
        A :class:`~corrmask_fast.Corpus`; its special tokens play no part.
    graph
        The :class:`~corrmask_fast.DependencyGraph` whose neighbours count as correlated.
    width
        Tokens of a window, and how many on either side are near; >= 2.
    n_cells
        Look at a sample of this many cells. None: all.
    seed
        Of the sample, and of the order with ``shuffled``.
    shuffled
        True: put each cell's genes in random order first, as a control.
    name
        Name of the result in tables.
    progress
        Show a progress bar.

    Returns
    -------
    WindowShares
        Counts and shares.

    Raises
    ------
    InputError
        If the corpus is empty, its vocabulary is not the graph's, or a number is out of range.

    Notes
    -----
    The paper gives one figure in two wordings (appendix C.6); ``near_share`` and ``window_share`` are the two. If
    closeness in rank meant correlation, both would lie above those with ``shuffled``, and above those of a graph from
    :func:`~corrmask_fast.rewired`.

    Examples
    --------
    >>> from corrmask_fast import DependencyGraph, Vocabulary, correlated_windows, read_corpus
    >>> genes = Vocabulary(("<pad>", "<mask>", *"ABCDEF"))
    >>> graph = DependencyGraph.from_edges([("A", "C"), ("B", "F")], genes)
    >>> shares = correlated_windows(read_corpus([[2, 3, 4, 5, 6, 7]], genes), graph, width=3, progress=False)
    >>> shares.near_share, shares.window_share
    (0.5, 0.25)
    """
    from corrmask_fast.kernels.windows import N_COUNTS, count_windows
    from corrmask_fast.progress import progress_bar

    check_integer("width", width, 2)
    graph.vocabulary.check_same(corpus.vocabulary, "the graph", "the corpus")
    if corpus.n_cells == 0:
        raise InputError("cannot look for windows in an empty corpus; give at least one cell")
    rows = np.arange(corpus.n_cells) if n_cells is None else corpus.sample_rows(n_cells, seed)
    rng = np.random.Generator(np.random.PCG64(check_seed(seed)))
    graph_indptr, graph_indices = graph.indptr.astype(np.int64), graph.indices.astype(np.int32)
    total = np.zeros(N_COUNTS, np.int64)
    with progress_bar("windows", rows.size, "cell", shown=progress) as bar:
        for start in range(0, rows.size, CHUNK_CELLS):
            indptr, tokens = corpus.gather(rows[start : start + CHUNK_CELLS])
            if shuffled:
                cell = np.repeat(np.arange(indptr.size - 1), np.diff(indptr))
                tokens = tokens[np.lexsort((rng.random(tokens.size), cell))]

            def count(begin: int, end: int, indptr: np.ndarray = indptr, tokens: np.ndarray = tokens) -> np.ndarray:
                counts = np.zeros(N_COUNTS, np.int64)
                count_windows(indptr[begin : end + 1], tokens, graph_indptr, graph_indices, width, counts)
                return counts

            total += np.sum(run_ranges(count, indptr.size - 1, smallest=16), axis=0)
            bar.update(indptr.size - 1)
    return WindowShares(name, width, int(rows.size), *total.tolist())


def windows_beside_controls(
    corpus: Corpus,
    graph: DependencyGraph,
    other_graph: DependencyGraph | None = None,
    *,
    width: int = 5,
    n_cells: int | None = None,
    seed: int = 0,
    progress: bool = True,
) -> list[WindowShares]:
    """Return three :class:`WindowShares`: as ranked, with a rewired graph, and with each cell in random order.

    Parameters
    ----------
    other_graph
        The rewired graph; None: made with ``seed``.
    corpus, graph, width, n_cells, seed, progress
        See :func:`correlated_windows`.
    """
    from corrmask_fast.graph.rewiring import rewired

    other_graph = other_graph or rewired(graph, seed)
    return [
        correlated_windows(corpus, of, width=width, n_cells=n_cells, seed=seed, shuffled=mixed, name=name,
                           progress=progress)
        for name, of, mixed in ((RANKED, graph, False), (REWIRED, other_graph, False), (SHUFFLED, graph, True))
    ]  # fmt: skip


def windows_table(shares: Sequence[WindowShares]) -> str:
    """Return an aligned table, a line for each of them, and what its columns mean."""
    width = shares[0].width
    head = ["order of genes", "near", "windows"]
    body = [[s.name, _percent(s.near_share), _percent(s.window_share)] for s in shares]
    return "\n".join(
        [
            f"Correlated genes close in rank: {shares[0].n_cells:,} cells, {shares[0].tokens:,} genes in them",
            *align([head, *body]),
            f"near: of the genes with a partner in the graph, those with one among the {width} closest on either side;",
            f"windows: of all runs of {width} neighbouring genes, those that hold a pair of partners.",
        ]
    )


def save_windows_csv(shares: Sequence[WindowShares], path: str | os.PathLike[str]) -> None:
    """Write a line for each of them: shares, then the counts they were made of."""
    rows = [each.to_dict() for each in shares]
    write_csv(path, list(rows[0]), [list(row.values()) for row in rows])


def _percent(share: float) -> str:
    return "-" if math.isnan(share) else f"{100 * share:.2f} %"
