"""Export a graph to other tools: edge list (CSV), GraphML (Cytoscape, Gephi, igraph), AnnData (Scanpy)."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from corrmask_fast.errors import InputError, import_extra
from corrmask_fast.files import atomic_file, check_output
from corrmask_fast.tables import write_csv

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator

    from corrmask_fast.graph.dependency_graph import DependencyGraph

__all__ = ["Exported", "add_to_h5ad", "export_graph", "graph_to_anndata"]

KINDS = (".csv", ".graphml", ".h5ad")
NAMES = ("gene_a", "symbol_a", "gene_b", "symbol_b")
KEY = "corrmask"


class Exported(NamedTuple):
    """What was written: the whole graph, or its part over the genes of an ``.h5ad`` file."""

    path: Path
    genes: int
    """Genes with an edge there."""
    edges: int


def export_graph(
    graph: DependencyGraph,
    path: str | os.PathLike[str],
    *,
    into: str | os.PathLike[str] | None = None,
    gene_column: str | None = None,
) -> Exported:
    """Write a graph to a file for other tools; the ending of its name decides the format.

    - ``.csv``: a line for each edge, with names and symbols of both genes, ``rho`` and ``rho_global``.
    - ``.graphml`` (Cytoscape, Gephi, igraph): genes that have a neighbour as nodes (``symbol``, ``token``), edges with
      ``rho`` and ``rho_global``.
    - ``.h5ad`` (scanpy): AnnData with ``varp["corrmask_rho"]`` and ``varp["corrmask_rho_global"]``: a new file with the
      vocabulary's genes and no cells, or a copy of ``into`` with these added.

    Parameters
    ----------
    graph : DependencyGraph
        The graph.
    path : path
        File to write. A file that is there is replaced.
    into : path, optional
        An ``.h5ad`` file: the output is a copy of it, with the graph added. It may be ``path`` itself.
    gene_column : str, optional
        Column of the ``var`` of ``into`` with gene ids or symbols; ``"index"``: its index. None: the column that
        matches best.

    Returns
    -------
    NamedTuple
        What was written: ``path``; ``genes``, the number of genes with an edge; ``edges``, the number of edges. Of a
        copy of ``into``: those between its genes.

    Raises
    ------
    InputError
        If the name has another ending, ``into`` or ``gene_column`` does not fit the format, or no gene of ``into`` is
        in the vocabulary.
    MissingExtraError
        If networkx (``.graphml``) or anndata (``.h5ad``) is not installed.

    Examples
    --------
    >>> import tempfile
    >>> from corrmask_fast import DependencyGraph, Vocabulary, export_graph
    >>> genes = Vocabulary(("<pad>", "<mask>", "A", "B", "C"))
    >>> graph = DependencyGraph.from_edges([("A", "B", 0.5)], genes)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     exported = export_graph(graph, f"{folder}/edges.csv")
    ...     print(exported.path.read_text().strip())
    gene_a,symbol_a,gene_b,symbol_b,rho
    A,A,B,B,0.5
    """
    path = check_export(path)
    if (into is not None or gene_column is not None) and path.suffix.lower() != ".h5ad":
        raise InputError(f"into must be left out, and gene_column too, unless the output ends in .h5ad; got {path}")
    if into is not None:
        return add_to_h5ad(graph, into, path, gene_column=gene_column)
    if gene_column is not None:
        raise InputError("gene_column names a column of the file given as into; give that file too")
    if path.suffix.lower() == ".csv":
        _save_edge_list(graph, path)
    elif path.suffix.lower() == ".graphml":
        networkx = import_extra("networkx", "networkx")
        nodes = graph.to_networkx()
        nodes.remove_nodes_from(list(networkx.isolates(nodes)))
        with atomic_file(path) as temporary:
            networkx.write_graphml(nodes, temporary)
    else:
        adata = graph_to_anndata(graph)
        with atomic_file(path) as temporary:
            adata.write_h5ad(temporary)
    return Exported(path, int(np.count_nonzero(graph.degrees)), graph.n_edges)


def check_export(path: str | os.PathLike[str]) -> Path:
    """Return the file to export to, or raise InputError."""
    path = check_output(path)
    if path.suffix.lower() not in KINDS:
        raise InputError(f"a graph is exported to a file ending in .csv, .graphml or .h5ad; got {path}")
    return path


def edge_rows(graph: DependencyGraph, *columns: np.ndarray, order: np.ndarray | None = None) -> Iterator[list[Any]]:
    """Yield a row for each edge: names and symbols of its genes (see NAMES), then its value in each column.

    Columns are (n_edges,) in order of ``graph.edges()``; float32 becomes the shortest text that reads back equal.
    """
    names, name_of, edges = graph.vocabulary.names, graph.vocabulary.name_of, graph.edges()
    order = np.arange(edges.u.size) if order is None else order
    texts = [column.astype(str) if column.dtype == np.float32 else column for column in columns]
    for u, v, *values in zip(*(column[order].tolist() for column in (edges.u, edges.v, *texts)), strict=True):
        yield [names[u], name_of(u), names[v], name_of(v), *values]


def _save_edge_list(graph: DependencyGraph, path: Path) -> None:
    edges = graph.edges()
    weights = {"rho": edges.rho} | ({} if edges.rho_global is None else {"rho_global": edges.rho_global})
    write_csv(path, [*NAMES, *weights], edge_rows(graph, *weights.values()))


def graph_to_anndata(graph: DependencyGraph) -> Any:
    """Return an ``AnnData`` without cells: the vocabulary's genes in ``var``, the graph in ``varp``.

    ``var`` has ``token``, ``symbol`` and ``degree``; ``varp["corrmask_rho"]`` and, where known,
    ``varp["corrmask_rho_global"]`` are (genes, genes) CSR matrices; ``uns["corrmask"]`` says how the graph was made.

    Raises
    ------
    MissingExtraError
        Without anndata.
    """
    anndata: Any = import_extra("anndata", "anndata")
    pandas: Any = import_extra("pandas", "anndata")
    lo, hi = graph.vocabulary.gene_range
    tokens = np.arange(lo, hi)
    var = pandas.DataFrame(
        {
            "token": tokens,
            "symbol": [graph.vocabulary.name_of(token) for token in range(lo, hi)],
            "degree": graph.degrees[lo:hi],
        },
        index=list(graph.vocabulary.names[lo:hi]),
    )
    obs = pandas.DataFrame(index=pandas.Index([], dtype=str))
    return anndata.AnnData(obs=obs, var=var, varp=_matrices(graph, tokens), uns={KEY: _origin(graph)})


def add_to_h5ad(
    graph: DependencyGraph,
    source: str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    gene_column: str | None = None,
) -> Exported:
    """Write a copy of ``source``, with the graph in its ``varp``, to ``path``; counts are not loaded.

    Rows and columns of ``varp`` are the file's genes. If several of them are the same gene of the vocabulary, the first
    gets its edges. Edges of genes that the file does not have are left out.

    Raises
    ------
    InputError
        If ``source`` is no ``.h5ad`` file, or none of its genes is in the vocabulary.
    MissingExtraError
        Without anndata and h5py.
    """
    from corrmask_fast.cells.counts import Counts
    from corrmask_fast.cells.gene_matching import match_genes

    if Path(source).is_dir():
        raise InputError(f"{source} is a folder; a graph is added to a copy of an .h5ad file")
    with Counts(source) as counts:
        tokens = match_genes(counts.var, counts.name, graph.vocabulary, gene_column).token_of_column.astype(np.int64)
    _, first = np.unique(tokens, return_index=True)
    repeats = np.ones(tokens.size, np.bool_)
    repeats[first] = False
    tokens[repeats] = -1
    matrices = _matrices(graph, tokens)
    h5py, io = import_extra("h5py", "anndata"), import_extra("anndata.io", "anndata")
    with atomic_file(path) as temporary:
        shutil.copyfile(source, temporary)
        with h5py.File(temporary, "r+") as file:
            if "varp" not in file:
                io.write_elem(file, "varp", {})
            for name, matrix in matrices.items():
                io.write_elem(file["varp"], name, matrix)
            if "uns" not in file:
                io.write_elem(file, "uns", {})
            io.write_elem(file["uns"], KEY, _origin(graph))
    rho = matrices[f"{KEY}_rho"]
    return Exported(Path(path), int(np.count_nonzero(np.diff(rho.indptr))), rho.nnz // 2)


def _matrices(graph: DependencyGraph, tokens: np.ndarray) -> dict[str, Any]:
    """Return rho and rho_global as CSR over places that hold these tokens, each token once (-1: no gene)."""
    from scipy.sparse import csr_matrix

    place = np.full(graph.vocabulary.size, -1, np.int64)
    here = np.flatnonzero(tokens >= 0)
    place[tokens[here]] = here
    edges = graph.edges()
    u, v = place[edges.u], place[edges.v]
    kept = (u >= 0) & (v >= 0)
    rows, columns = np.concatenate([u[kept], v[kept]]), np.concatenate([v[kept], u[kept]])
    weights = {"rho": edges.rho, "rho_global": edges.rho_global}
    return {
        f"{KEY}_{name}": csr_matrix((np.tile(values[kept], 2), (rows, columns)), shape=(tokens.size, tokens.size))
        for name, values in weights.items()
        if values is not None
    }


def _origin(graph: DependencyGraph) -> dict[str, str]:
    """Return what ``uns`` says of the graph; parameters as JSON, since HDF5 knows no None."""
    return {"fingerprint": graph.fingerprint, "params": json.dumps(graph.params, sort_keys=True)}
