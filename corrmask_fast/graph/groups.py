"""A dependency graph for each group of cells: a tissue, a donor, a disease."""

from __future__ import annotations

import re
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from corrmask_fast.errors import InputError, check_integer
from corrmask_fast.files import check_output_folder
from corrmask_fast.graph.build.building import build_dependency_graph
from corrmask_fast.suggestions import did_you_mean
from corrmask_fast.tables import write_csv

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from corrmask_fast.cells.corpus import Corpus
    from corrmask_fast.graph.dependency_graph import DependencyGraph

__all__ = ["build_graphs_by", "iter_graphs_by", "rows_by_group", "save_graphs"]

INDEX = "groups.csv"
MAX_NAMED = 10  # groups that a message names
MAX_NAME_CHARS = 80  # of a file, in characters


def build_graphs_by(
    corpus: Corpus, column: str, *, min_cooccurrence: int = 200, min_presence: int = 50, **parameters: Any
) -> dict[str, DependencyGraph]:
    """Build a graph from each group of cells, such as a tissue, a donor or a disease.

    A group's graph is the one that its cells alone would give, in the order of the corpus, to the bit. ``n_cells``
    cells are sampled from each group. Groups are built one after the other, with the cells of one group in memory.

    Parameters
    ----------
    corpus : Corpus
        Tokenised cells with their obs.
    column : str
        Column of ``corpus.obs``. Each of its values is a group, named by the value as text. Cells without a value
        (None, NaN or empty) are in no group.
    min_cooccurrence, min_presence : int
        As for :func:`~corrmask_fast.build_dependency_graph`. A group of fewer cells is left out.
    **parameters
        Further arguments of :func:`~corrmask_fast.build_dependency_graph`, the same for every group.

    Returns
    -------
    dict
        Group → :class:`~corrmask_fast.DependencyGraph`, in order of name.

    Raises
    ------
    InputError
        If there is no such column, no group has enough cells, or a graph cannot be built (names the group).

    Warns
    -----
    UserWarning
        If groups are left out because they have too few cells, or a graph has no edges.

    Notes
    -----
    For two independent genes and n cells, rho has a standard deviation of 1 / sqrt(n - 1). For 200 cells this is 0.07,
    and a ``rho_min`` of 0.2 lets through one pair in 200 by chance. So take a larger ``rho_min`` for groups of a few
    hundred cells, and look at :func:`~corrmask_fast.edge_stability`.

    Examples
    --------
    >>> import numpy as np
    >>> from corrmask_fast import Corpus, Vocabulary, build_graphs_by
    >>> genes = Vocabulary(("<pad>", "<mask>", "A", "B"))
    >>> tokens = np.array([2, 3, 3, 2] * 3)
    >>> corpus = Corpus(np.arange(0, 13, 2), tokens, genes, obs={"tissue": np.array(["lung"] * 4 + ["skin"] * 2)})
    >>> graphs = build_graphs_by(corpus, "tissue", min_cooccurrence=2, min_presence=1, progress=False)
    >>> {tissue: graph.n_edges for tissue, graph in graphs.items()}
    {'lung': 1, 'skin': 1}
    """
    thresholds = {"min_cooccurrence": min_cooccurrence, "min_presence": min_presence}
    return dict(iter_graphs_by(corpus, column, **thresholds, **parameters))


def iter_graphs_by(
    corpus: Corpus, column: str, *, min_cooccurrence: int = 200, min_presence: int = 50, **parameters: Any
) -> Iterator[tuple[str, DependencyGraph]]:
    """Yield ``(group, graph)`` one after the other, as :func:`build_graphs_by` builds them."""
    thresholds = {
        "min_cooccurrence": check_integer("min_cooccurrence", min_cooccurrence, 0),
        "min_presence": check_integer("min_presence", min_presence, 0),
    }
    groups = rows_by_group(corpus, column)
    fewest = max(*thresholds.values(), 1)
    small = {name: rows.size for name, rows in groups.items() if rows.size < fewest}
    limit = " and ".join(f"{name}={value}" for name, value in thresholds.items())
    if len(small) == len(groups):
        largest = max(small.values(), default=0)
        raise InputError(
            f"no group of obs column {column!r} has the {fewest} cells that {limit} ask for (the largest of "
            f"{len(groups)} has {largest}); lower them, or take a column with larger groups"
        )
    if small:
        named = _some([f"{name!r} ({size})" for name, size in small.items()])
        warnings.warn(
            f"left out of {column!r}: {named}: fewer than the {fewest} cells that {limit} ask for",
            UserWarning,
            stacklevel=2,
        )
    for name, rows in groups.items():
        if name not in small:
            yield name, _build_one(corpus, column, name, rows, {**thresholds, **parameters})


def _build_one(corpus: Corpus, column: str, name: str, rows: np.ndarray, parameters: dict[str, Any]) -> DependencyGraph:
    """Build a group's graph; errors and warnings name the group."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            graph = build_dependency_graph(corpus.select(rows), **parameters)
        except InputError as error:
            raise InputError(f"{column} {name!r}: {error}") from error
    for warning in caught:
        warnings.warn(f"{column} {name!r}: {warning.message}", warning.category, stacklevel=3)
    return graph


def rows_by_group(corpus: Corpus, column: str) -> dict[str, np.ndarray]:
    """Return group → (n,) int64 indices of its cells, ascending; groups in order of name, missing values in none.

    Raises
    ------
    InputError
        If the corpus has no such column.
    """
    if column not in corpus.obs:
        known = ", ".join(map(repr, corpus.obs)) or "none at all"
        raise InputError(
            f"the corpus has no obs column {column!r}{did_you_mean(column, corpus.obs)}; it has {known}. Columns "
            "stay with the cells if they are named when tokenising (obs=, or --obs at the command line)"
        )
    # Millions of cells have few different values, so only these become text.
    number: dict[Any, int] = {}
    column_values = np.asarray(corpus.obs[column]).tolist()
    group = np.fromiter((number.setdefault(v, len(number)) for v in column_values), np.int64, len(column_values))
    name_of = ["" if value is None or value != value else str(value) for value in number]  # noqa: PLR0124 (NaN)
    names = sorted(set(name_of) - {""})
    place = {name: i for i, name in enumerate(names)}
    group = np.array([place.get(name, -1) for name in name_of], np.int64)[group]
    rows = np.argsort(group, kind="stable")  # keeps each group's cells in the order of the corpus
    ends = np.searchsorted(group[rows], np.arange(-1, len(names)), side="right")
    return {name: rows[ends[i] : ends[i + 1]] for i, name in enumerate(names)}


def save_graphs(graphs: Iterable[tuple[str, DependencyGraph]], folder: str | os.PathLike[str]) -> dict[str, Path]:
    """Write a graph file for each group, and ``groups.csv`` that says which file is whose.

    Each graph is written as soon as it is built. A run that is interrupted leaves the graphs that were finished, and a
    table of them. File names are made of letters, digits, ``.``, ``_`` and ``-``, and differ in more than case.

    Parameters
    ----------
    graphs
        ``(group, graph)``, as :func:`iter_graphs_by` yields them.
    folder
        A new or empty folder.

    Returns
    -------
    dict
        Group → path of its file.

    Raises
    ------
    InputError
        If the folder is not empty, or its parent does not exist.
    """
    folder = check_graph_folder(folder)
    written: dict[str, Path] = {}
    table: list[list[Any]] = []
    for group, graph in graphs:
        folder.mkdir(exist_ok=True)
        path = folder / f"{_file_name(group, {path.stem.lower() for path in written.values()})}.safetensors"
        graph.save(path)
        written[group] = path
        used = [graph.params.get(name, "") for name in ("n_cells_used", "n_genes_used")]
        table.append([group, path.name, *used, int(np.count_nonzero(graph.degrees)), graph.n_edges])
        head = ["group", "file", "n_cells_used", "n_genes_used", "genes_with_neighbors", "edges"]
        write_csv(folder / INDEX, head, table)
    return written


def check_graph_folder(folder: str | os.PathLike[str]) -> Path:
    """Return the folder to save graphs in, or raise InputError; call it before the work, not after it."""
    folder = check_output_folder(folder)
    if folder.exists() and any(folder.iterdir()):
        raise InputError(f"{folder} exists already and is no empty folder; remove it, or choose another name")
    return folder


def _file_name(group: str, taken: set[str]) -> str:
    """Return a name for a group's file that every file system takes, unlike those ``taken`` (in lower case)."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "_", group)[:MAX_NAME_CHARS].strip("._") or "group"
    name, number = plain, 1
    while name.lower() in taken:
        number += 1
        name = f"{plain}-{number}"
    return name


def _some(names: list[str]) -> str:
    more = len(names) - MAX_NAMED
    return ", ".join(names[:MAX_NAMED]) + (f" and {more} more" if more > 0 else "")
