"""``corrmask-fast graph plot | enrich | modules | merge | compare | stability | export``: uses of a built graph."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from corrmask_fast.cli.options import (
    add_corpus,
    check_outputs,
    check_tensors_file,
    command,
    load_graph,
    open_corpus,
    setting,
)
from corrmask_fast.errors import InputError, check_integer, listed
from corrmask_fast.suggestions import did_you_mean

if TYPE_CHECKING:
    import argparse

    from corrmask_fast.cells.corpus import Corpus
    from corrmask_fast.graph.dependency_graph import DependencyGraph


def add_graph_uses(group: Any) -> None:
    """Add the commands to the group ``graph``."""
    _add_plot(group)
    _add_enrich(group)
    _add_modules(group)
    _add_merge(group)
    _add_compare(group)
    _add_stability(group)
    _add_export(group)


# ---------------------------------------------------------------------------------------------------------------- plot


def _add_plot(group: Any) -> None:
    parser = command(
        group,
        "plot",
        _plot,
        summary="pictures of a graph: partners, rho, modules",
        text="Draw three pictures: how many partners genes have; rho over all cells against rho over the cells that "
        "hold both genes; modules, as a clustered heat map of the strongest genes of the largest modules.",
        example="graph plot graph.safetensors graph.png --kind modules",
        computes=False,
    )
    parser.add_argument("graph", metavar="GRAPH", help="graph file")
    parser.add_argument("output", metavar="OUT", help="picture to write (.png, .pdf or .svg)")
    parser.add_argument("--kind", default="all", metavar="KIND", help="degree, rho, modules or all (default: all)")
    parser.add_argument("--n-genes", type=int, metavar="N", help="number of genes of the heat map, with --kind modules")


def _plot(arguments: argparse.Namespace) -> None:
    from corrmask_fast.graph.plots import MODULE_GENES, plot_graph, plot_modules

    check_outputs(arguments, picture="output")
    if arguments.n_genes is not None and arguments.kind != "modules":
        raise InputError("--n-genes belongs to --kind modules; give both, or neither")
    graph = load_graph(arguments.graph)
    if arguments.kind == "modules":
        plot_modules(graph, arguments.output, n_genes=arguments.n_genes or MODULE_GENES)
    else:
        plot_graph(graph, arguments.output, kind=arguments.kind)
    print(f"saved to {arguments.output}")


# -------------------------------------------------------------------------------------------------------- gene sets


def _add_enrich(group: Any) -> None:
    parser = command(
        group,
        "enrich",
        _enrich,
        summary="which gene sets have more edges within than by chance",
        text="Count the edges between the genes of each set, and compare with random graphs in which each gene has as "
        "many partners as here. A p-value is the probability of at least so many edges in such a graph; q-values "
        "are corrected for the number of sets (Benjamini and Hochberg). Genes that are not in the vocabulary are "
        "counted and left out.",
        example="graph enrich graph.safetensors hallmark.gmt --csv enriched.csv",
        computes=False,
    )
    parser.add_argument("graph", metavar="GRAPH", help="graph file")
    parser.add_argument("sets", metavar="SETS.gmt", help="gene sets, such as MSigDB's or Reactome's")
    _add_table(parser, "sets", "a line for each set")


def _enrich(arguments: argparse.Namespace) -> None:
    from corrmask_fast.graph.genesets import enrich_gene_sets

    check_outputs(arguments, "csv")
    limit = check_integer("-n", arguments.n, 0) or None
    _show_table(enrich_gene_sets(load_graph(arguments.graph), arguments.sets), limit, arguments.csv)


def _add_modules(group: Any) -> None:
    parser = command(
        group,
        "modules",
        _modules,
        summary="groups of strongly linked genes, named by gene sets",
        text="Find modules, groups of four genes or more with many strong edges between them: by the Leiden algorithm "
        "where igraph is installed (pip install 'corrmask-fast[leiden]'), else by average linkage, as 'graph plot' "
        "does. With --sets, each module has the name of the gene set with the smallest p-value "
        "(hypergeometric test, q <= 0.05).",
        example="graph modules graph.safetensors --sets hallmark.gmt --csv modules.csv",
        computes=False,
    )
    parser.add_argument("graph", metavar="GRAPH", help="graph file")
    parser.add_argument("--sets", metavar="SETS.gmt", help="gene sets that name modules")
    parser.add_argument(
        "--method", metavar="NAME", help="leiden or linkage (default: leiden where igraph is installed)"
    )
    setting(parser, "--resolution", 1.0, "X", "of leiden: larger values give more and smaller modules")
    _add_table(parser, "modules", "a line for each gene with its module")


def _modules(arguments: argparse.Namespace) -> None:
    from corrmask_fast.graph.modules import find_modules

    check_outputs(arguments, "csv")
    limit = check_integer("-n", arguments.n, 0) or None
    options = {"method": arguments.method, "resolution": arguments.resolution, "sets": arguments.sets}
    _show_table(find_modules(load_graph(arguments.graph), **options), limit, arguments.csv)


def _add_table(parser: argparse.ArgumentParser, what: str, lines: str) -> None:
    parser.add_argument("--csv", metavar="FILE", help=f"save {lines}")
    setting(parser, "-n", 20, "N", f"number of {what} shown; 0: all")


def _show_table(found: Any, limit: int | None, csv: str | None) -> None:
    print(found.table(limit))
    if csv is not None:
        found.save_csv(csv)
        print(f"saved to {csv}")


# --------------------------------------------------------------------------------------------------------------- merge


def _add_merge(group: Any) -> None:
    parser = command(
        group,
        "merge",
        _merge,
        summary="merge graphs into one",
        text="Merge graphs that have the same vocabulary. Keep the edges that are in any of the graphs, in all of "
        "them, or in at least N. The rho of an edge is the mean over the graphs that have it, or the strongest.",
        example="graph merge lung.safetensors skin.safetensors liver.safetensors -o common.safetensors --keep 2",
        computes=False,
    )
    parser.add_argument("graphs", metavar="GRAPH", nargs="+", help="graph files, two or more")
    parser.add_argument("-o", "--output", required=True, metavar="GRAPH", help="file to write (.safetensors)")
    parser.add_argument(
        "--keep", default="union", metavar="RULE", help="union, intersection, or a number of graphs (default: union)"
    )
    parser.add_argument(
        "--combine", default="mean", metavar="RULE", help="rho of an edge: mean or strongest (default: mean)"
    )


def _merge(arguments: argparse.Namespace) -> None:
    from corrmask_fast.graph.compare import merge_graphs
    from corrmask_fast.graph.reports import summary_table

    check_tensors_file(arguments, "a graph file")
    keep = int(arguments.keep) if arguments.keep.isdecimal() else arguments.keep
    graph = merge_graphs([load_graph(path) for path in arguments.graphs], keep, combine=arguments.combine)
    graph.save(arguments.output)
    print(summary_table(graph))
    print(f"saved to {arguments.output}")


# ------------------------------------------------------------------------------------------------------------- compare


COMPARE_COLUMNS = """columns:
  shared       number of edges that both graphs have; by chance: number that two random graphs share, in which each
               gene has as many partners as here; fold: the first divided by the second
  Jaccard      shared edges divided by all edges; by chance: the same for the random graphs; median gene: the Jaccard
               index of a gene's partners, median over genes with partners in both graphs
  r of rho     Pearson's correlation of rho over the shared edges
  same sign    share of the shared edges whose rho has one sign in both"""


def _add_compare(group: Any) -> None:
    parser = command(
        group,
        "compare",
        _compare,
        summary="which edges graphs share, and how many by chance",
        text="Compare graphs that have the same vocabulary, each pair of them: shared edges, Jaccard index, rho.",
        notes=COMPARE_COLUMNS,
        example="graph compare lung.safetensors skin.safetensors --genes-csv genes.csv --plot compare.png",
        computes=False,
    )
    parser.add_argument("graphs", metavar="GRAPH", nargs="+", help="graph files, two or more")
    parser.add_argument("--csv", metavar="FILE", help="save the table")
    parser.add_argument("--genes-csv", metavar="FILE", help="save a line for each gene (of two graphs)")
    parser.add_argument("--plot", metavar="FILE", help="save a picture (.png, .pdf or .svg)")


def _compare(arguments: argparse.Namespace) -> None:
    from corrmask_fast.graph.compare import compare_all, comparison_table, save_comparisons_csv
    from corrmask_fast.graph.plots_compare import plot_comparison

    check_outputs(arguments, "csv", "genes_csv")
    paths = arguments.graphs
    if len(paths) < 2:
        raise InputError(f"give at least two graphs to compare; got {len(paths)}")
    if arguments.genes_csv is not None and len(paths) > 2:
        raise InputError(f"--genes-csv is for two graphs; got {len(paths)}")
    graphs = {name: load_graph(path) for name, path in zip(_names(paths), paths, strict=True)}
    comparisons = compare_all(graphs)
    print(comparison_table(comparisons))
    if arguments.csv is not None:
        save_comparisons_csv(comparisons, arguments.csv)
    if arguments.genes_csv is not None:
        comparisons[0].save_genes_csv(arguments.genes_csv)
    if arguments.plot is not None:
        plot_comparison(comparisons, arguments.plot)


def _names(paths: list[str]) -> list[str]:
    """Return a name for each file: without folder and ending where that tells them apart."""
    stems = [Path(path).stem for path in paths]
    names = stems if len(set(stems)) == len(stems) else paths
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"{twice} is given twice; give each graph once")
    return names


# ----------------------------------------------------------------------------------------------------------- stability


def _add_stability(group: Any) -> None:
    parser = command(
        group,
        "stability",
        _stability,
        summary="how often edges come back in parts of the cells",
        text="Build a graph several times from parts of its cells, with its own parameters, and count in how many "
        "repeats each edge occurs. --min-cooccurrence and --min-presence shrink with the number of cells.",
        example="graph stability cells.dataset graph.safetensors -o stable.safetensors --min-frequency 0.8",
    )
    add_corpus(parser, "the cells that the graph was built from")
    parser.add_argument("graph", metavar="GRAPH", help="graph file, of 'graph build'")
    parser.add_argument(
        "--where", metavar="COLUMN=VALUE", help="cells of one group, for a graph that was built with --by: tissue=lung"
    )
    setting(parser, "--n-repeats", 10, "N", "number of graphs to build")
    setting(parser, "--fraction", 0.5, "X", "share of the cells in each")
    parser.add_argument("--seed", type=int, metavar="N", help="seed of the parts (default: the graph's)")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default: %(default)s)")
    parser.add_argument("-o", "--output", metavar="GRAPH", help="save the graph of the edges that come back")
    setting(parser, "--min-frequency", 0.8, "X", "with -o: smallest share of repeats in which an edge occurs")
    parser.add_argument("--csv", metavar="FILE", help="save a line for each edge")
    parser.add_argument("--plot", metavar="FILE", help="save a picture (.png, .pdf or .svg)")


def _stability(arguments: argparse.Namespace) -> None:
    from corrmask_fast.errors import check_number
    from corrmask_fast.graph.plots_compare import plot_stability
    from corrmask_fast.graph.stability import edge_stability

    check_number("min_frequency", arguments.min_frequency, 0, 1)
    check_tensors_file(arguments, "a graph file", "csv")
    stability = edge_stability(
        _part(open_corpus(arguments), arguments.where),
        load_graph(arguments.graph),
        n_repeats=arguments.n_repeats,
        fraction=arguments.fraction,
        seed=arguments.seed,
        device=arguments.device,
        progress=arguments.progress,
    )
    print(stability.table())
    if arguments.csv is not None:
        stability.save_csv(arguments.csv)
    if arguments.plot is not None:
        plot_stability(stability, arguments.plot)
    if arguments.output is not None:
        graph: DependencyGraph = stability.filter(arguments.min_frequency)
        graph.save(arguments.output)
        print(f"saved to {arguments.output}: {graph}")


def _part(corpus: Corpus, where: str | None) -> Corpus:
    """Return the cells of one group, as ``--by`` takes them."""
    from corrmask_fast.graph.groups import rows_by_group

    if where is None:
        return corpus
    column, equals, value = where.partition("=")
    if not equals:
        raise InputError(f"--where must be COLUMN=VALUE, as tissue=lung; got {where!r}")
    groups = rows_by_group(corpus, column)
    if value not in groups:
        meant = did_you_mean(value, groups)
        raise InputError(f"no cell has {value!r} in obs column {column!r}{meant}; there are {listed(groups)}")
    return corpus.select(groups[value])


# -------------------------------------------------------------------------------------------------------------- export


def _add_export(group: Any) -> None:
    parser = command(
        group,
        "export",
        _export,
        summary="export a graph to Scanpy, Cytoscape, a table",
        text="Write a graph as an edge list (.csv), for Cytoscape, Gephi or igraph (.graphml), or as AnnData (.h5ad, "
        "varp corrmask_rho and corrmask_rho_global): a new file, or a copy of one of yours.",
        example="graph export graph.safetensors cells_with_graph.h5ad --into cells.h5ad",
        computes=False,
    )
    parser.add_argument("graph", metavar="GRAPH", help="graph file")
    parser.add_argument("output", metavar="OUT", help="file to write: .csv, .graphml or .h5ad")
    parser.add_argument("--into", metavar="FILE.h5ad", help="AnnData file: the graph is added to a copy of it")
    parser.add_argument(
        "--gene-column",
        metavar="COLUMN",
        help="var column of that file with gene ids or symbols (default: the best match)",
    )


def _export(arguments: argparse.Namespace) -> None:
    from corrmask_fast.graph.export import check_export, export_graph

    check_export(arguments.output)
    check_outputs(arguments, "output")
    graph = load_graph(arguments.graph)
    exported = export_graph(graph, arguments.output, into=arguments.into, gene_column=arguments.gene_column)
    whole = f" of {graph.n_edges:,}" if exported.edges < graph.n_edges else ""
    print(f"saved to {exported.path}: {exported.edges:,}{whole} edges between {exported.genes:,} genes")
