"""``corrmask-fast graph build | show | info``: make dependency graphs and look at them."""

from __future__ import annotations

import argparse
import warnings
from collections import deque
from typing import TYPE_CHECKING, Any

from corrmask_fast.cli.graph_uses import add_graph_uses
from corrmask_fast.cli.options import (
    add_corpus,
    check_tensors_file,
    command,
    load_graph,
    open_corpus,
    setting,
)
from corrmask_fast.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from corrmask_fast.graph.dependency_graph import DependencyGraph

# Options of `graph build` that are parameters of build_dependency_graph.
THRESHOLDS = ("min_cooccurrence", "min_presence")  # None: the default
BUILD_OPTIONS = ("n_cells", "max_length", "n_neighbors", "rho_min", *THRESHOLDS, "max_genes",
                 "seed", "device", "memory_limit", "progress")  # fmt: skip


def add_graph(commands: Any) -> None:
    """Add ``graph build``, ``graph show``, ``graph info`` and what there is in :mod:`corrmask_fast.cli.graph_uses`."""
    group = commands.add_parser(
        "graph", help="build, show, draw, test, merge, compare and export dependency graphs"
    ).add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_graph_build(group)
    show = command(
        group,
        "show",
        _graph_show,
        summary="a gene's partners",
        text="List the partners of a gene, strongest first, with rho over the cells that hold both genes and rho over "
        "all cells. With --corpus also the number of cells that hold both, which a graph file does not store.",
        example="graph show graph.safetensors RPL3 -n 10",
        computes=False,
    )
    show.add_argument("graph", metavar="GRAPH", help="graph file")
    show.add_argument("gene", metavar="GENE", help="symbol, gene id (upper or lower case) or token id")
    show.add_argument(
        "-n", type=int, default=20, metavar="N", help="number of partners shown (default: %(default)s; 0: all)"
    )
    show.add_argument(
        "--sort",
        metavar="KEY",
        help="global: |rho| over all cells; local: |rho| over the cells that hold both genes; overlap: number of cells "
        "that hold both, with --corpus (default: global, where the graph stores it)",
    )
    show.add_argument(
        "--corpus", metavar="CORPUS", help="cells that the graph was built from, to count those that hold both genes"
    )
    info = command(
        group,
        "info",
        _graph_info,
        summary="size, degrees and parameters of a graph",
        text="Describe a graph file: genes, edges, degrees, rho, and the parameters of its build.",
        example="graph info graph.safetensors",
        computes=False,
    )
    info.add_argument("graph", metavar="GRAPH", help="graph file")
    add_graph_uses(group)


def _add_graph_build(commands: Any) -> None:
    parser = command(
        commands,
        "build",
        _graph_build,
        summary="build a graph from a corpus (Algorithm 1)",
        text="For each gene, find the genes of largest absolute Spearman correlation (rho). Keep the pairs that occur "
        "together in enough cells, and compute their rho again over those cells. The graph is the same, to the bit, on "
        "every machine.",
        notes="Under torchrun, the processes build one graph together, with the same bits. Where there are GPUs, each\n"
        "process takes its own:\n"
        "  torchrun --nproc-per-node 2 -m corrmask_fast graph build cells.dataset -o graph.safetensors",
        example="graph build cells.dataset -o graph.safetensors --n-cells 100000\n"
        "  corrmask-fast graph build cells.dataset -o graphs --by tissue",
    )
    add_corpus(parser)
    parser.add_argument(
        "-o", "--output", required=True, metavar="GRAPH", help="file to write (.safetensors); with --by a folder"
    )
    parser.add_argument(
        "--by",
        metavar="COLUMN",
        help="build a graph for each value of this obs column (tissue, donor, ...), in folder GRAPH",
    )
    parser.add_argument(
        "--n-cells",
        type=_cells,
        default=100_000,
        metavar="N",
        help="number of cells to sample, or 'all' (default: %(default)s)",
    )
    setting(parser, "--max-length", 2048, "N", "number of genes read of each cell")
    setting(parser, "--n-neighbors", 50, "N", "number of partners that each gene proposes")
    setting(parser, "--rho-min", 0.2, "X", "smallest |rho| of a pair over all sampled cells; absent genes rank last")
    for flag, usual, text in (("cooccurrence", 200, "both genes"), ("presence", 50, "a gene")):
        parser.add_argument(
            f"--min-{flag}",
            type=int,
            metavar="N",
            help=f"smallest number of cells that hold {text} (default: {usual}; a warning "
            "suggests another if there are few cells)",
        )
    parser.add_argument(
        "--max-genes",
        type=int,
        metavar="N",
        help="keep only the N genes with the largest sum of values (default: all)",
    )
    setting(parser, "--seed", 0, "N", "seed of the sample of cells")
    parser.add_argument(
        "--device", default="auto", help="auto (a GPU if there is one), cpu or cuda (default: %(default)s)"
    )
    parser.add_argument(
        "--memory",
        "--memory-limit",
        dest="memory_limit",
        metavar="SIZE",
        help="memory for each process, such as 8GB. Cells that do not fit are read in several passes, with the same "
        "result (default: 80%% of the free memory, divided by the processes on a machine)",
    )
    parser.add_argument(
        "--checkpoint",
        metavar="FOLDER",
        help="save the state of the build here: the same command resumes it. Remove the folder afterwards",
    )


def _cells(text: str) -> int | None:
    if text == "all":
        return None
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be an integer >= 1, or 'all'; got {text!r}") from None


def _graph_build(arguments: argparse.Namespace) -> None:
    from corrmask_fast.graph.build.building import build_dependency_graph
    from corrmask_fast.graph.build.distributed import ProcessGroup
    from corrmask_fast.graph.reports import summary_table

    parameters = {name: getattr(arguments, name) for name in BUILD_OPTIONS}
    chosen = {name: parameters.pop(name) for name in THRESHOLDS}
    parameters |= {name: value for name, value in chosen.items() if value is not None}
    if arguments.by is not None:
        _build_by(arguments, parameters)
        return
    with ProcessGroup(arguments.device, arguments.threads) as group:
        check_tensors_file(arguments, "a graph file")  # before the work
        graph = build_dependency_graph(open_corpus(arguments), checkpoint=arguments.checkpoint, **parameters)
        if group.rank == 0:
            graph.save(arguments.output)
            _warn_of_thresholds(graph, parameters)
            print(summary_table(graph))
            print(f"saved to {arguments.output}")


def _build_by(arguments: argparse.Namespace, parameters: dict[str, Any]) -> None:
    from corrmask_fast.graph.build.distributed import ProcessGroup
    from corrmask_fast.graph.groups import check_graph_folder, iter_graphs_by, save_graphs

    if arguments.checkpoint is not None:
        raise InputError("--checkpoint saves the build of one graph, and --by builds several; leave one of them out")
    with ProcessGroup(arguments.device, arguments.threads) as group:
        folder = check_graph_folder(arguments.output)
        graphs = iter_graphs_by(open_corpus(arguments), arguments.by, **parameters)
        if group.rank:  # takes part; rank 0 writes
            deque(graphs, maxlen=0)
            return
        paths = save_graphs(_told(graphs, parameters), folder)
    print(f"saved to {folder}: {len(paths)} graph{'' if len(paths) == 1 else 's'}, and groups.csv")


def _warn_of_thresholds(graph: DependencyGraph, parameters: dict[str, Any], group: str = "") -> None:
    """Warn where a default threshold hardly fits the cells of the graph."""
    from corrmask_fast.graph.build.thresholds import advice_on_thresholds

    if advice := advice_on_thresholds(graph.params["n_cells_used"], parameters):
        warnings.warn(f"{group}{advice}", stacklevel=2)


def _told(
    graphs: Iterator[tuple[str, DependencyGraph]], parameters: dict[str, Any]
) -> Iterator[tuple[str, DependencyGraph]]:
    """Print each group's graph as soon as it is built."""
    for group, graph in graphs:
        _warn_of_thresholds(graph, parameters, f"{group}: ")
        print(f"{group}: {graph}, from {graph.params['n_cells_used']:,} cells", flush=True)
        yield group, graph


def _graph_show(arguments: argparse.Namespace) -> None:
    from corrmask_fast.cells.corpus_io import read_corpus
    from corrmask_fast.errors import check_integer
    from corrmask_fast.graph.reports import partner_table

    graph = load_graph(arguments.graph)
    limit = check_integer("-n", arguments.n, 0) or None
    name = arguments.gene
    gene = int(name) if name.isdecimal() and name not in graph.vocabulary.names else name  # a token id, typed
    try:
        token = graph.vocabulary.id_of(gene, any_case=True)
    except InputError as error:
        if graph.vocabulary.symbols or not graph.vocabulary.names[graph.vocabulary.gene_range[0]].startswith("ENS"):
            raise
        fix = "this graph has no symbols: build it with --vocabulary and --symbols, or tokenize with --symbols"
        raise InputError(f"{error}; {fix}") from error
    corpus = None if arguments.corpus is None else read_corpus(arguments.corpus, graph.vocabulary)
    print(partner_table(graph, token, limit, sort=arguments.sort, corpus=corpus))


def _graph_info(arguments: argparse.Namespace) -> None:
    from corrmask_fast.graph.reports import summary_table

    print(summary_table(load_graph(arguments.graph)))
