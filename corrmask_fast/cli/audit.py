"""``corrmask-fast audit``: what masking hides, by one strategy or by all of them side by side."""

from __future__ import annotations

import argparse
from dataclasses import replace
from itertools import product
from typing import TYPE_CHECKING, Any

from corrmask_fast.cli.masker_options import RATE, add_masker_options, is_own, masker_of
from corrmask_fast.cli.options import (
    add_corpus,
    check_outputs,
    command,
    load_graph,
    open_corpus,
    setting,
)
from corrmask_fast.errors import InputError, check_integer, reason, shown
from corrmask_fast.masking.schedules import Schedule
from corrmask_fast.masking.strategies import DEFAULT, OPTIONS, SOURCES, STRATEGIES

if TYPE_CHECKING:
    from corrmask_fast.audit.report import AuditReport
    from corrmask_fast.cells.corpus import Corpus
    from corrmask_fast.graph.dependency_graph import DependencyGraph

    Audited = tuple[AuditReport, str, int]  # the report, what else is printed, the exit code

BROKEN = 1  # exit code
SEVERAL = ("structural_ratio", "max_partners")  # options that may have several values: a line for each combination

COLUMNS = f"""columns (those about partners are over the masked genes that have a partner in their cell):
  lambda, K, p, seed    of the masks, where they differ between lines; --csv has them always
  hit rate              of the partners in the cell, the share that is masked too
  all-partner hit rate  the same over all partners, in the cell or not
  hidden rate           share of masked genes all of whose partners in the cell are masked
  shortcut, same genes  mean over masked genes of the largest |rho| among their visible partners (0 if none), each
                        gene weighted as the control masks it: compare lines by this one
  residual shortcut     the same over each line's own masked genes. CorrMask masks hubs more often, so this figure,
                        like hit rates and hidden rate, is over other genes in each line
  mean span             mean length of runs of masked genes, in genes
  rate                  masked genes of all genes
  genes reached         of the genes that stood in a cell, the share that was masked at least once

with --all: {", ".join(name for name, each in STRATEGIES.items() if not each.requires)} (with --gene-sets)
  on the same cells with the same draws; and how often correlated genes stand close to each other in rank. Random is
  the control (lambda = 0) of the others. corrmask-rewired and random-matched are controls of corrmask: a graph of the
  same degrees but other partners; and single genes, each as often as corrmask masks it.
  MAM is left out: what it masks depends on a trained model."""


def add_audit(commands: Any) -> None:
    """Add ``audit``."""
    parser = command(
        commands,
        "audit",
        _audit,
        summary="what masking hides, beside a random control",
        text="Mask a corpus and count how often the partners of a masked gene are masked with it. The control line is "
        "random masking: the same draws with lambda = 0. With --all the table has every strategy.",
        notes=COLUMNS,
        example="audit cells.dataset --graph graph.safetensors --all --plot audit.png --csv audit.csv",
    )
    add_corpus(parser)
    parser.add_argument(
        "--all",
        action="store_true",
        help="audit all strategies. Without --pmi the PMI table is counted from CORPUS. --strategy package.module:Name "
        "adds a line for a strategy of your own, --weights one for weighted masking",
    )
    parser.add_argument(
        "--collator",
        metavar="NAME",
        help="audit a collator of your own or of another library, package.module:Name. The module is imported from "
        "PYTHONPATH, which runs its code; Name(vocabulary) must return the collator. The control masks as many genes "
        "of each cell at random",
    )
    parser.add_argument(
        "--conformance",
        action="store_true",
        help="with --collator: also check its masks, labels and replacements, and whether they depend on batches, "
        "workers, ranks and resumes; exit code 1 if something is broken",
    )
    add_masker_options(parser, graph_required=True, several=SEVERAL)
    setting(parser, "--epochs", 1, "N", "epochs to mask")
    parser.add_argument(
        "--step", type=int, metavar="N", help="with a schedule: audit the rates of this training step (default: 0)"
    )
    parser.add_argument("--n-cells", type=int, metavar="N", help="audit a sample of so many cells (default: all)")
    parser.add_argument("--plot", metavar="FILE", help="save a picture (.png, .pdf or .svg)")
    parser.add_argument("--csv", metavar="FILE", help="save the table")
    parser.add_argument("--coverage-csv", metavar="FILE", help="save how often each gene was present and masked")
    parser.add_argument("--windows-csv", metavar="FILE", help="with --all: save the table of genes close in rank")


def _audit(arguments: argparse.Namespace) -> int:
    from corrmask_fast.audit.plots import plot_audit

    _check(arguments)
    graph, corpus = load_graph(arguments.graph), open_corpus(arguments)
    audit = _every_strategy if arguments.all else _collator if arguments.collator else _one_strategy
    report, more, code = audit(arguments, corpus, graph)
    report = replace(report, graph=arguments.graph)
    print(report.table())
    if more:
        print(f"\n{more}")
    if arguments.csv is not None:
        report.save_csv(arguments.csv)
    if arguments.coverage_csv is not None:
        report.save_coverage_csv(arguments.coverage_csv)
    if arguments.plot is not None:
        plot_audit(report, arguments.plot)
    return code


def _check(arguments: argparse.Namespace) -> None:
    """Refuse options that do not go together, and files that cannot be written, before the work begins."""
    if arguments.collator is not None:
        given = ["--all"] if arguments.all else ["--strategy"] if arguments.strategy != DEFAULT else []
        given += ["--mlm-probability"] if arguments.mlm_probability != RATE else []
        files = [name for name, source in SOURCES.items() if source.metavar and name != "graph"]  # that is the audit's
        given += [
            f"--{name.replace('_', '-')}"
            for name in (*files, "replace", *OPTIONS)
            if getattr(arguments, name, None) is not None
        ]
        if given:
            raise InputError(f"--collator has its own masks; leave {' and '.join(given)} out, or --collator")
    elif arguments.conformance:
        raise InputError("--conformance belongs to --collator; give both, or neither")
    if arguments.all and arguments.strategy != DEFAULT and not is_own(arguments.strategy):
        raise InputError(f"--all audits every strategy; leave --strategy {arguments.strategy} out, or --all")
    if arguments.all and arguments.structural_ratio is not None:
        raise InputError("--structural-ratio follows from each strategy's name; leave it out, or --all")
    if arguments.all and arguments.max_partners and len(arguments.max_partners) > 1:
        raise InputError("--all audits every strategy with one --max-partners; give one number, or leave --all out")
    if arguments.all and arguments.partners is not None:
        raise InputError("--partners would change only some of the strategies; leave it out, or --all")
    if arguments.step is not None and not any(
        isinstance(rate, Schedule) for rate in (arguments.mlm_probability, *(arguments.structural_ratio or ()))
    ):
        raise InputError(
            f"--step {arguments.step} belongs to a rate that goes by the step, such as --mlm-probability "
            "linear:0.3:0.15:1000; give both, or neither"
        )
    if arguments.step is not None:
        check_integer("step", arguments.step, 0, 2**63 - 1)
    check_integer("epochs", arguments.epochs, 1)
    if arguments.n_cells is not None:
        check_integer("n_cells", arguments.n_cells, 1)
    if arguments.windows_csv is not None and not arguments.all:
        raise InputError("--windows-csv belongs to --all; give both, or neither")
    _combinations(arguments)  # refuses a value that is given twice
    check_outputs(arguments, "csv", "coverage_csv", "windows_csv")


def _one_strategy(arguments: argparse.Namespace, corpus: Corpus, graph: DependencyGraph) -> Audited:
    from corrmask_fast.audit.masks import audit_masking

    graph.vocabulary.check_same(corpus.vocabulary, "the graph", "the corpus")
    maskers = [
        masker_of(each, vocabulary=corpus.vocabulary, graph=graph, corpus=corpus) for each in _combinations(arguments)
    ]
    for masker in maskers:
        masker.set_step(arguments.step or 0)
    sizes = {"epochs": arguments.epochs, "n_cells": arguments.n_cells}
    return audit_masking(maskers, corpus, graph, **sizes, progress=arguments.progress), "", 0


def _combinations(arguments: argparse.Namespace) -> list[argparse.Namespace]:
    """Return the options of each masker: every combination, without lambda = 0 beside others, which is the control."""
    values = {name: getattr(arguments, name) or [None] for name in SEVERAL}
    for name, given in values.items():
        for value in given:
            if given.count(value) > 1:
                raise InputError(f"--{name.replace('_', '-')} has {value} twice; give each once")
    every = [dict(zip(values, one, strict=True)) for one in product(*values.values())]
    kept = [one for one in every if one["structural_ratio"] != 0] or every[:1]
    return [argparse.Namespace(**(vars(arguments) | one)) for one in kept]


def _collator(arguments: argparse.Namespace, corpus: Corpus, graph: DependencyGraph) -> Audited:
    """Audit the collator that a function of the vocabulary returns, and check it where that is asked for."""
    from corrmask_fast.audit.collators import audit_collator
    from corrmask_fast.audit.conformance import check_collator
    from corrmask_fast.masking.factory import imported

    make = imported(arguments.collator, "collator", "(vocabulary)")
    try:
        collator = make(corpus.vocabulary)
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"{arguments.collator}(vocabulary), which must return the collator, failed: {reason(error)}"
        ) from error
    if not callable(collator):
        raise InputError(f"{arguments.collator}(vocabulary) must return a collator; it returned {shown(collator)}")
    common = {"seed": arguments.seed, "progress": arguments.progress}
    code = 0
    if arguments.conformance:  # first: what it finds may be why the audit fails
        found = check_collator(collator, corpus, **common)
        print(f"{found.table()}\n")
        code = BROKEN if found.broken else 0
    return (
        audit_collator(collator, corpus, graph, epochs=arguments.epochs, n_cells=arguments.n_cells, **common),
        "",
        code,
    )


def _every_strategy(arguments: argparse.Namespace, corpus: Corpus, graph: DependencyGraph) -> Audited:
    """Audit all strategies; what else is printed: the graphs, the table, the windows."""
    from corrmask_fast.audit.all_strategies import audit_all_strategies
    from corrmask_fast.audit.rank_windows import save_windows_csv, windows_beside_controls, windows_table
    from corrmask_fast.graph.compare import compare_graphs
    from corrmask_fast.graph.rewiring import rewired
    from corrmask_fast.masking.pmi_table import PMITable
    from corrmask_fast.masking.strategies.weighted import WeightedMasker

    sample = {"n_cells": arguments.n_cells, "seed": arguments.seed, "progress": arguments.progress}
    [arguments] = _combinations(arguments)
    given = {name: getattr(arguments, name) for name in ("max_partners", "npmi_min")}
    given = {name: value for name, value in given.items() if value is not None}
    graph.vocabulary.check_same(corpus.vocabulary, "the graph", "the corpus")
    own = [masker_of(arguments, vocabulary=corpus.vocabulary)] if is_own(arguments.strategy) else []
    if arguments.weights is not None:
        options = {"mlm_probability": arguments.mlm_probability, "seed": arguments.seed}
        own.append(WeightedMasker(corpus.vocabulary, arguments.weights, **options))
    if arguments.pmi:
        pmi = PMITable.load(arguments.pmi)
    else:
        pmi = PMITable.from_corpus(corpus, seed=arguments.seed, progress=arguments.progress)
    report = audit_all_strategies(
        corpus,
        graph,
        pmi,
        sets=arguments.gene_sets,
        maskers=own,
        mlm_probability=arguments.mlm_probability,
        step=arguments.step or 0,
        epochs=arguments.epochs,
        **given,
        **sample,
    )
    other = rewired(graph, arguments.seed)
    windows = windows_beside_controls(corpus, graph, other, **sample)
    if arguments.windows_csv is not None:
        save_windows_csv(windows, arguments.windows_csv)
    npmi_min = given.get("npmi_min", 0.1)
    shared = compare_graphs(graph, other).shared
    origin = arguments.pmi or "counted from these cells"
    lines = [
        f"PMI table: {pmi.at_least(npmi_min)[1].size:,} pairs with NPMI >= {npmi_min:g} ({origin})",
        f"rewired graph: {other.params['swaps']:,} swaps; {shared:,} of {graph.n_edges:,} edges stand in both graphs",
        "Random is the control of the others: with lambda = 0 each strategy without weights masks the same genes.",
        "",
        windows_table(windows),
    ]
    return report, "\n".join(lines), 0
