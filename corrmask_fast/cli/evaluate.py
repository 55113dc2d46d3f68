"""``corrmask-fast evaluate masks | shortcut | cells | genes``: what a pretrained model has learnt."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from corrmask_fast.cli.masker_options import add_masker_options, masker_of
from corrmask_fast.cli.options import add_corpus, check_outputs, command, load_graph, open_corpus, setting
from corrmask_fast.errors import import_extra
from corrmask_fast.masking.strategies import CONTROL

if TYPE_CHECKING:
    import argparse

    from corrmask_fast.evaluation.fine_tuning import FineTuning


def add_evaluate(commands: Any) -> None:
    """Add the group of commands."""
    parser = commands.add_parser(
        "evaluate", help="what a pretrained model has learnt: masked genes, cell types, classes of genes"
    )
    group = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_masks(group)
    _add_shortcut(group)
    _add_cells(group)
    _add_genes(group)


def _add_masks(commands: Any) -> None:
    parser = command(
        commands,
        "masks",
        _masks,
        summary="score models at the same masked genes, beside baselines without a model",
        text="Score one or several models on cells that none was trained on, all under the same masks: loss in nats, "
        "perplexity, accuracy, with standard errors over cells, and paired differences from the first model. Beside "
        "them stands a baseline that knows how often each gene occurs, and with --labels one that knows the cell type "
        "alone.",
        example="evaluate masks random/model corrmask/model held_out.dataset --labels cell_type --csv scores.csv",
    )
    _add_models_and_corpus(parser)
    add_masker_options(parser, default=CONTROL)
    parser.add_argument("--labels", metavar="COLUMN", help="obs column with the cell types, for the baseline of types")
    _add_scoring(parser, 16, "cells in a batch")


def _add_shortcut(commands: Any) -> None:
    parser = command(
        commands,
        "shortcut",
        _shortcut,
        summary="how much visible partners help a model, at the same genes",
        text="Predict the same masked genes (targets) of the same cells three times, with the same number of masked "
        "genes each time. First, random genes are masked beside the target. Then its partners in the graph are masked "
        "in place of some of these; and last, in place of the partners, random genes of the same frequency (placebo). "
        "The shortcut is how much the loss rises when the partners are hidden. Standard errors are over cells; "
        "differences between models are paired.",
        example="evaluate shortcut random/model corrmask/model held_out.dataset --graph graph.safetensors --plot s.png",
    )
    _add_models_and_corpus(parser)
    parser.add_argument("--graph", required=True, metavar="GRAPH", help="graph file; it has the partners of each gene")
    setting(parser, "--mlm-probability", 0.15, "P", "share of a cell's genes masked")
    setting(parser, "--n-targets", 1_000, "N", "number of masked genes to score; fewer if there are no more")
    setting(parser, "--seed", 0, "N", "seed of targets and masks")
    _add_scoring(parser, 8, "targets in a batch, each with three cells")
    parser.add_argument("--plot", metavar="FILE", help="save a picture (.png, .pdf or .svg)")


def _add_cells(commands: Any) -> None:
    parser = command(
        commands,
        "cells",
        _cells,
        summary="name cell types: F1 of each, the rarest apart",
        text="Fine-tune a classification head on labelled cells and score it on cells held out. The model on disk is "
        "not changed. Four baselines stand beside it: the same encoder with new weights, fine-tuned in the same way; "
        "the nearest labelled cells among the embeddings of both, without training; logistic regression on counts "
        "(tokenize --values) or ranks; the most common type. The command first prints how long it will take.",
        example="evaluate cells model cells.dataset --labels cell_type --sizes 50 100 200 --plot types.png",
    )
    _add_model_and_corpus(parser)
    parser.add_argument("--labels", default="cell_type", metavar="COLUMN", help="obs column (default: %(default)s)")
    setting(parser, "--test-share", 0.2, "SHARE", "share of the cells that is held out")
    setting(parser, "--repeats", 1, "N", "splits, each trained and scored")
    setting(parser, "--min-cells", 10, "N", "leave out types with fewer cells")
    parser.add_argument("--n-rare", type=int, metavar="N", help="average the N rarest types apart (default: a third)")
    parser.add_argument(
        "--no-baselines", dest="baselines", action="store_false", help="the fine-tuned model alone: half the time"
    )
    parser.add_argument(
        "--sizes",
        nargs="+",
        type=int,
        default=[],
        metavar="N",
        help="labelled cells to learn from, for a learning curve; each takes as long as all cells (default: no curve)",
    )
    parser.add_argument("--confusion-csv", metavar="FILE", help="save the confusion matrix")
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
    setting(parser, "--n-cells", 10_000, "N", "number of cells to sample")
    _add_training(parser, epochs=1)


def _add_model_and_corpus(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="folder of a checkpoint (config.json, model.safetensors)")
    add_corpus(parser)


def _add_models_and_corpus(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "models", nargs="+", metavar="MODEL", help="folders of checkpoints (config.json, model.safetensors)"
    )
    add_corpus(parser)


def _add_scoring(parser: argparse.ArgumentParser, batch_size: int, text: str) -> None:
    setting(parser, "--batch-size", batch_size, "N", text)
    _add_length_and_device(parser, "all that every model sees")
    parser.add_argument("--csv", metavar="FILE", help="save every score")


def _add_length_and_device(parser: argparse.ArgumentParser, default: str) -> None:
    parser.add_argument(
        "--max-length",
        type=int,
        metavar="N",
        help=f"cut cells to N tokens, <cls> and <eos> included (default: {default})",
    )
    parser.add_argument(
        "--device", default="auto", choices=["auto", "cpu", "cuda"], help="where to compute (default: %(default)s)"
    )


def _add_training(parser: argparse.ArgumentParser, *, epochs: int) -> None:
    setting(parser, "--epochs", epochs, "N", "epochs of fine-tuning")
    setting(parser, "--batch-size", 12, "N", "cells in a step")
    setting(parser, "--learning-rate", 5e-5, "RATE", "learning rate of the first step; it falls linearly to 0")
    setting(parser, "--frozen-layers", 0, "N", "number of layers that keep their weights; -1: train the head alone")
    _add_length_and_device(parser, "all the model sees")
    setting(parser, "--seed", 0, "N", "seed of splits, head and order")
    parser.add_argument("--csv", metavar="FILE", help="save every score")
    parser.add_argument("--plot", metavar="FILE", help="save a picture (.png, .pdf or .svg)")


def _masks(arguments: argparse.Namespace) -> None:
    import_extra("transformers", "hf")
    check_outputs(arguments, "csv")
    corpus = open_corpus(arguments)
    graph = load_graph(arguments.graph) if arguments.graph else None
    masker = masker_of(arguments, vocabulary=corpus.vocabulary, graph=graph, corpus=corpus)
    from corrmask_fast.evaluation.masked_scores import score_masks

    scores = score_masks(
        arguments.models,
        corpus,
        masker,
        labels=arguments.labels,
        batch_size=arguments.batch_size,
        max_length=arguments.max_length,
        device=arguments.device,
        progress=arguments.progress,
    )
    print(scores.table())
    if arguments.csv is not None:
        scores.save_csv(arguments.csv)


def _shortcut(arguments: argparse.Namespace) -> None:
    import_extra("transformers", "hf")
    check_outputs(arguments, "csv")
    corpus, graph = open_corpus(arguments), load_graph(arguments.graph)
    from corrmask_fast.evaluation.shortcut import measure_shortcut

    names = ("mlm_probability", "n_targets", "seed", "batch_size", "max_length", "device", "progress")
    report = measure_shortcut(arguments.models, corpus, graph, **{name: getattr(arguments, name) for name in names})
    print(report.table())
    if arguments.csv is not None:
        report.save_csv(arguments.csv)
    if arguments.plot is not None:
        from corrmask_fast.evaluation.plots import plot_shortcut

        plot_shortcut(report, arguments.plot)


def _cells(arguments: argparse.Namespace) -> None:
    from corrmask_fast.evaluation.cell_annotation import annotate_cells

    check_outputs(arguments, "csv", "confusion_csv")
    report = annotate_cells(
        arguments.model,
        open_corpus(arguments),
        arguments.labels,
        test_share=arguments.test_share,
        repeats=arguments.repeats,
        min_cells=arguments.min_cells,
        n_rare=arguments.n_rare,
        baselines=arguments.baselines,
        sizes=arguments.sizes,
        settings=_settings(arguments),
    )
    print(report.table())
    if arguments.csv is not None:
        report.save_csv(arguments.csv)
    if arguments.confusion_csv is not None:
        report.save_confusion(arguments.confusion_csv)
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
