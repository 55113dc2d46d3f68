"""``corrmask-fast evaluate cells | genes``: what a pretrained model has learnt."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from corrmask_fast.cli.options import add_corpus, check_outputs, command, open_corpus, setting

if TYPE_CHECKING:
    import argparse

    from corrmask_fast.evaluation.fine_tuning import FineTuning


def add_evaluate(commands: Any) -> None:
    """Add the group of commands."""
    parser = commands.add_parser("evaluate", help="what a pretrained model has learnt: cell types, classes of genes")
    group = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_cells(group)
    _add_genes(group)


def _add_cells(commands: Any) -> None:
    parser = command(
        commands,
        "cells",
        _cells,
        summary="name cell types: F1 of each, the rarest apart",
        text="Fine-tune a classification head on labelled cells and score it on cells held out. The model on disk "
        "stays as it is.",
        example="evaluate cells model cells.dataset --labels cell_type --repeats 3 --plot types.png",
    )
    _add_model_and_corpus(parser)
    parser.add_argument("--labels", default="cell_type", metavar="COLUMN", help="obs column (default: %(default)s)")
    setting(parser, "--test-share", 0.2, "SHARE", "of the cells, held out")
    setting(parser, "--repeats", 1, "N", "splits, each trained and scored")
    setting(parser, "--min-cells", 10, "N", "leave out types with fewer cells")
    parser.add_argument("--n-rare", type=int, metavar="N", help="average the N rarest types apart (default: a third)")
    _add_training(parser, epochs=5)


def _add_genes(commands: Any) -> None:
    parser = command(
        commands,
        "genes",
        _genes,
        summary="tell two classes of genes apart: AUC on genes held out",
        text="Fine-tune a head on the contextual embeddings of listed genes and score it on genes held out, as in "
        "dosage sensitivity. GENES is a CSV file with a header: ids or symbols in its first column, and a column "
        "'label', or a column for each class that says Yes.",
        example="evaluate genes model cells.dataset --genes dosage.csv --folds 5 --plot roc.png",
    )
    _add_model_and_corpus(parser)
    parser.add_argument("--genes", required=True, metavar="GENES.csv", help="genes and their class")
    setting(parser, "--folds", 5, "N", "parts of the genes, each held out once")
    setting(parser, "--n-cells", 10_000, "N", "cells sampled")
    _add_training(parser, epochs=1)


def _add_model_and_corpus(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="folder of a checkpoint (config.json, model.safetensors)")
    add_corpus(parser)


def _add_training(parser: argparse.ArgumentParser, *, epochs: int) -> None:
    setting(parser, "--epochs", epochs, "N", "of fine-tuning")
    setting(parser, "--batch-size", 12, "N", "cells in a step")
    setting(parser, "--learning-rate", 5e-5, "RATE", "of the first step; it falls linearly to 0")
    setting(parser, "--frozen-layers", 0, "N", "layers that keep their weights; -1: train the head alone")
    parser.add_argument(
        "--max-length",
        type=int,
        metavar="N",
        help="cut cells to N tokens, <cls> and <eos> included (default: all the model sees)",
    )
    setting(parser, "--seed", 0, "N", "of splits, head and order")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"], help="default: %(default)s")
    parser.add_argument("--csv", metavar="FILE", help="save every score")
    parser.add_argument("--plot", metavar="FILE", help="save a picture (.png, .pdf or .svg)")


def _cells(arguments: argparse.Namespace) -> None:
    from corrmask_fast.evaluation.cell_annotation import annotate_cells

    check_outputs(arguments, "csv")
    report = annotate_cells(
        arguments.model,
        open_corpus(arguments),
        arguments.labels,
        test_share=arguments.test_share,
        repeats=arguments.repeats,
        min_cells=arguments.min_cells,
        n_rare=arguments.n_rare,
        settings=_settings(arguments),
        progress=arguments.progress,
    )
    print(report.table())
    if arguments.csv is not None:
        report.save_csv(arguments.csv)
    if arguments.plot is not None:
        from corrmask_fast.evaluation.plots import plot_cell_annotation

        plot_cell_annotation(report, arguments.plot)


def _genes(arguments: argparse.Namespace) -> None:
    from corrmask_fast.evaluation.gene_classification import classify_genes, read_gene_labels

    check_outputs(arguments, "csv")
    labels, corpus = read_gene_labels(arguments.genes), open_corpus(arguments)
    report = classify_genes(
        arguments.model,
        corpus,
        labels,
        folds=arguments.folds,
        n_cells=arguments.n_cells,
        settings=_settings(arguments),
        progress=arguments.progress,
    )
    print(report.table())
    if arguments.csv is not None:
        report.save_csv(arguments.csv, corpus.vocabulary)
    if arguments.plot is not None:
        from corrmask_fast.evaluation.plots import plot_gene_classification

        plot_gene_classification(report, arguments.plot)


def _settings(arguments: argparse.Namespace) -> FineTuning:
    from corrmask_fast.evaluation.fine_tuning import FineTuning

    names = ("epochs", "batch_size", "learning_rate", "frozen_layers", "max_length", "seed", "device")
    return FineTuning(**{name: getattr(arguments, name) for name in names})
