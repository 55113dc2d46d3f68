"""``corrmask-fast graph``: build, show and describe dependency graphs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from corrmask_fast.cli_options import add_vocabulary_options, command, load_graph, open_corpus, setting

if TYPE_CHECKING:
    import argparse

    from corrmask_fast.graph import DependencyGraph


def add_graph(commands: Any) -> None:
    """Add ``graph build``, ``graph show`` and ``graph info``."""
    group = commands.add_parser("graph", help="build, show and describe dependency graphs").add_subparsers(
        title="commands", metavar="COMMAND", required=True
    )
    _add_graph_build(group)
    show = command(
        group,
        "show",
        _graph_show,
        summary="a gene's partners",
        text="List the partners of a gene, strongest first, with rho over the cells that hold both, and over all.",
        example="graph show graph.safetensors RPL3 -n 10",
        computes=False,
    )
    show.add_argument("graph", metavar="GRAPH", help="graph file")
    show.add_argument("gene", metavar="GENE", help="symbol, gene id or token id")
    show.add_argument("-n", type=int, default=20, metavar="N", help="show so many (default: %(default)s; 0: all)")
    info = command(
        group,
        "info",
        _graph_info,
        summary="size, degrees and parameters of a graph",
        text="Describe a graph file: genes, edges, degrees, rho, and the parameters it was built with.",
        example="graph info graph.safetensors",
        computes=False,
    )
    info.add_argument("graph", metavar="GRAPH", help="graph file")


def _add_graph_build(commands: Any) -> None:
    parser = command(
        commands,
        "build",
        _graph_build,
        summary="build a graph from a corpus (Algorithm 1)",
        text="Find each gene's strongest Spearman partners among all others, keep the pairs that share enough cells, "
        "and score them over those cells. The same bits on every machine.",
        example="graph build cells.dataset -o graph.safetensors --n-cells 100000",
    )
    parser.add_argument("corpus", metavar="CORPUS", help="datasets folder or .npz file of tokenised cells")
    parser.add_argument("-o", "--output", required=True, metavar="GRAPH", help="file to write (.safetensors)")
    add_vocabulary_options(parser)
    setting(parser, "--n-cells", 100_000, "N", "cells sampled")
    setting(parser, "--max-length", 2048, "N", "genes read of a cell")
    setting(parser, "--n-neighbors", 50, "N", "partners sought for each gene")
    setting(parser, "--rho-min", 0.2, "X", "least |rho| of a pair")
    setting(parser, "--min-cooccurrence", 200, "N", "cells that a pair must share")
    setting(parser, "--min-presence", 50, "N", "cells that a gene must stand in")
    parser.add_argument("--max-genes", type=int, metavar="N", help="only so many genes, highest first (default: all)")
    setting(parser, "--seed", 0, "N", "of the sample of cells")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default: %(default)s)")


def _graph_build(arguments: argparse.Namespace) -> None:
    from corrmask_fast.files import check_output
    from corrmask_fast.graph_building import build_dependency_graph

    check_output(arguments.output)  # before the work, not behind it
    graph = build_dependency_graph(
        open_corpus(arguments),
        n_cells=arguments.n_cells,
        max_length=arguments.max_length,
        n_neighbors=arguments.n_neighbors,
        rho_min=arguments.rho_min,
        min_cooccurrence=arguments.min_cooccurrence,
        min_presence=arguments.min_presence,
        max_genes=arguments.max_genes,
        seed=arguments.seed,
        device=arguments.device,
        progress=arguments.progress,
    )
    graph.save(arguments.output)
    print(graph.summary())
    print(f"saved: {arguments.output}")


def _graph_show(arguments: argparse.Namespace) -> None:
    from corrmask_fast.errors import check_integer

    graph = load_graph(arguments.graph)
    limit = check_integer("-n", arguments.n, 0) or None
    print(partner_table(graph, arguments.gene, limit))


def _graph_info(arguments: argparse.Namespace) -> None:
    print(load_graph(arguments.graph).summary())


def partner_table(graph: DependencyGraph, gene: str | int, limit: int | None = None) -> str:
    """Return a gene's partners, strongest first, as an aligned table of at most ``limit`` lines."""
    from corrmask_fast.audit import align

    vocabulary = graph.vocabulary
    token = vocabulary.id_of(gene)
    ids, rho = graph.neighbors(token)
    title = f"{vocabulary.name_of(token)} (token {token}, {vocabulary.names[token]}): {ids.size} partners"
    if ids.size == 0:
        return f"{title}; no other gene passed the thresholds of this graph"
    begin, end = graph.indptr[token], graph.indptr[token + 1]
    overall = None
    if graph.rho_global is not None:
        overall = dict(zip(graph.indices[begin:end].tolist(), graph.rho_global[begin:end].tolist(), strict=True))
    rows = [["partner", "gene id", "rho", "rho, all cells"]]
    for other, value in zip(ids.tolist()[:limit], rho.tolist(), strict=False):
        text = "-" if overall is None else f"{overall[other]:+.3f}"
        rows.append([vocabulary.name_of(other), vocabulary.names[other], f"{value:+.3f}", text])
    rest = ids.size - (len(rows) - 1)
    return "\n".join([title, *align(rows), *([f"… and {rest} more"] if rest else [])])
