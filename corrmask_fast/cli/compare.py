"""``corrmask-fast compare``: models of several strategies, trained and scored alike, and a report."""

from __future__ import annotations

import shlex
import sys
import warnings
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from corrmask_fast.cli.options import (
    PROGRAM,
    add_dictionary_options,
    check_dictionary,
    command,
    load_vocabulary,
    roles_of,
    setting,
)
from corrmask_fast.comparison.plan import NOT_COMPARED, RATE, Scoring
from corrmask_fast.masking.strategies import CONTROL, LEARNED_STRATEGIES, STRATEGIES
from corrmask_fast.training.settings import PRESETS, PretrainingSettings, add_setting_options, read_config

if TYPE_CHECKING:
    import argparse

USUAL = (CONTROL, "random-matched", "corrmask")

CONTROLS = """what a difference to Random may come from, and the strategy that tells:
  random-matched      Random that masks each gene as often as CorrMask: what is left is not its frequencies
  corrmask-rewired    CorrMask by a graph of the same degrees and other partners
  corrmask-balanced   CorrMask that masks all genes of a cell equally often (with lambda 1)
  random@0.1..0.9     Random, a rate of its own for each cell (R2MAE)
  random@0.4          Random at a high rate

the folder has report.html (open it in a browser), rows.csv (a row for each model, written as it ends), differences.csv,
details.csv, the graphs and the models. After an interruption, the same command goes on; with more strategies, seeds or
fractions it adds to what is there."""


def add_compare(commands: Any) -> None:
    """Add ``compare``."""
    parser = command(
        commands,
        "compare",
        _compare,
        summary="does a strategy help on these cells? models trained and scored alike, with intervals",
        text="Pretrain models that differ in their masks alone: the same initial weights, order of cells and steps. "
        "Score all on cells that none has seen: loss under common masks, how much the loss rises when partners are "
        "hidden, cell types, nearest cells; and baselines without a transformer. Differences are paired by seed and "
        "come with confidence intervals.",
        notes=CONTROLS,
        example="compare train.h5ad --test other.h5ad --labels cell_type --out comparison "
        "--strategies random random-matched corrmask",
    )
    parser.add_argument(
        "cells", nargs="+", metavar="CELLS", help="raw counts (.h5ad …), one file or several; or a tokenised corpus"
    )
    parser.add_argument(
        "--test", metavar="CELLS", help="cells to score, such as another donor's (default: a random share of CELLS)"
    )
    parser.add_argument("--out", required=True, metavar="FOLDER", help="folder to write the comparison to")
    parser.add_argument(
        "--labels",
        metavar="COLUMN",
        help="obs column with cell types; only the test cells need it (default: do not score cell types)",
    )
    names = ", ".join((*STRATEGIES, *LEARNED_STRATEGIES))
    parser.add_argument(
        "--strategies",
        nargs="+",
        default=USUAL,
        metavar="NAME",
        help=f"strategies to compare: {names}, or your own package.module:Name. A mask rate may follow: random@0.4 "
        f"(default: {' '.join(USUAL)})",
    )
    parser.add_argument(
        "--reference",
        default=CONTROL,
        metavar="NAME",
        help="strategy that the others are compared with (default: %(default)s)",
    )
    setting(parser, "--seeds", 5, "N", "number of models of each kind")
    parser.add_argument(
        "--fractions",
        nargs="+",
        type=float,
        default=[1.0],
        metavar="X",
        help="shares of the training cells to pretrain on (default: 1)",
    )
    setting(parser, "--mlm-probability", RATE, "P", "share of genes masked")
    parser.add_argument(
        "--graph", metavar="GRAPH", help="graph file for all models (default: each builds one from its training cells)"
    )
    parser.add_argument(
        "--pmi", metavar="TABLE", help="PMI table for all models (default: each counts one in its training cells)"
    )
    parser.add_argument("--gene-sets", metavar="FILE.gmt", help="gene sets, for the strategy gene-sets")
    parser.add_argument("--weights", metavar="FILE", help="weights of genes, for the strategy weighted")
    parser.add_argument("--tokens", metavar="DICT", help="token dictionary (default: the genes of the files)")
    parser.add_argument("--medians", metavar="FILE", help="gene medians (default: of the training cells)")
    add_dictionary_options(parser, "--tokens")
    setting(parser, "--test-share", 0.3, "SHARE", "share of CELLS to score, without --test")
    setting(parser, "--gene-share", 0.01, "SHARE", "leave out genes in a smaller share of the training cells")
    for name, metavar, text in (
        ("n_cells", "N", "number of test cells for losses"),
        ("n_targets", "N", "number of masked genes for the shortcut; 0: do not measure it"),
        ("fine_tuning_epochs", "N", "epochs of fine-tuning on cell types; 0: frozen embeddings alone"),
        ("min_cells", "N", "leave out types with fewer labelled test cells"),
    ):
        setting(parser, f"--{name.replace('_', '-')}", getattr(Scoring(), name), metavar, text)
    parser.add_argument(
        "--jobs", type=int, metavar="N", help="models at a time (default: one per CPU thread; one on a GPU)"
    )
    parser.add_argument(
        "--preset",
        choices=PRESETS,
        default="tiny",
        help="settings to begin with (default: tiny; the others need --max-steps)",
    )
    parser.add_argument(
        "--config", metavar="FILE.toml", help="settings, as in a run's settings.toml; its options of masks are not used"
    )
    add_setting_options(parser, leave_out=NOT_COMPARED, preset="tiny")


def _compare(arguments: argparse.Namespace) -> None:
    from corrmask_fast.comparison.running import compare_strategies

    check_dictionary(arguments, "tokens")
    given = {one.name: getattr(arguments, one.name, None) for one in fields(PretrainingSettings)}
    settings = PretrainingSettings.read(arguments.config, arguments.preset, **given)
    if arguments.config is not None and (masks := read_config(arguments.config)[1]):
        warnings.warn(f"{arguments.config}: what it says of masks is not used: {', '.join(masks)}", stacklevel=1)
    vocabulary = None
    if arguments.tokens is not None:
        vocabulary = load_vocabulary(arguments.tokens, arguments.symbols, roles_of(arguments))
    names = ("n_cells", "n_targets", "fine_tuning_epochs", "min_cells")
    options = {name: getattr(arguments, name) for name in ("gene_sets", "weights")}
    comparison = compare_strategies(
        arguments.cells,
        arguments.out,
        test=arguments.test,
        labels=arguments.labels,
        strategies=arguments.strategies,
        reference=arguments.reference,
        seeds=arguments.seeds,
        fractions=arguments.fractions,
        mlm_probability=arguments.mlm_probability,
        settings=settings,
        scoring=Scoring(**{name: getattr(arguments, name) for name in names}),
        graph=arguments.graph,
        pmi=arguments.pmi,
        options={name: value for name, value in options.items() if value is not None},
        vocabulary=vocabulary,
        medians=arguments.medians,
        test_share=arguments.test_share,
        gene_share=arguments.gene_share,
        jobs=arguments.jobs,
        command=shlex.join([PROGRAM, *sys.argv[1:]]),
    )
    print(comparison.table())
    print(f"\nreport: {arguments.out}/report.html")
