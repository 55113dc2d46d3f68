"""``corrmask-fast pretrain``: a corpus and a graph to a pretrained model."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from corrmask_fast.cli_masker import add_masker_options, masker_of
from corrmask_fast.cli_options import add_vocabulary_options, command, load_graph, open_corpus
from corrmask_fast.pretraining_settings import PRESETS, PretrainingSettings, add_setting_options

if TYPE_CHECKING:
    import argparse


def add_pretrain(commands: Any) -> None:
    """Add the command."""
    parser = command(
        commands,
        "pretrain",
        _pretrain,
        summary="pretrain a BERT on masked genes (Geneformer's architecture)",
        text="Pretrain a BertForMaskedLM. The defaults are those of the paper (Table 5); a TOML file or options change "
        "them, the options win. Writes checkpoints, log.csv, loss.png, the settings, and the model as any "
        "BertForMaskedLM is saved. With a graph, the loss on held-out cells is split by whether a partner of the "
        "masked gene stayed in view.",
        example="pretrain cells.dataset --graph graph.safetensors --out run --preset small --max-steps 1000",
    )
    parser.add_argument("corpus", metavar="CORPUS", help="datasets folder or .npz file of tokenised cells")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="folder of the run")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint in the folder")
    parser.add_argument("--preset", choices=PRESETS, default="paper", help="settings to begin with (default: paper)")
    parser.add_argument("--config", metavar="FILE.toml", help="settings, as in a run's settings.toml")
    add_vocabulary_options(parser)
    add_masker_options(parser)
    add_setting_options(parser)


def _pretrain(arguments: argparse.Namespace) -> None:
    from corrmask_fast.errors import import_extra
    from corrmask_fast.files import check_output

    import_extra("transformers", "hf")
    import_extra("matplotlib", "plot")  # before the work, not behind it
    check_output(Path(arguments.out))
    given = {one.name: getattr(arguments, one.name) for one in fields(PretrainingSettings)}
    settings = PretrainingSettings.read(arguments.config, arguments.preset, **given)
    corpus = open_corpus(arguments, model_length=settings.max_length)
    graph = load_graph(arguments.graph) if arguments.graph else None
    masker = masker_of(arguments, vocabulary=corpus.vocabulary, graph=graph)

    from corrmask_fast.plots_evaluation import plot_pretraining
    from corrmask_fast.pretraining_run import PLOT, pretrain

    report = pretrain(
        corpus,
        masker,
        arguments.out,
        settings,
        graph=graph,
        resume=arguments.resume,
        progress=arguments.progress,
    )
    plot_pretraining(report, Path(arguments.out) / PLOT)
    print(report.summary())
