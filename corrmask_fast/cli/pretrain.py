"""``corrmask-fast pretrain``: a corpus and a graph to a pretrained model."""

from __future__ import annotations

import argparse
import math
from contextlib import nullcontext
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from corrmask_fast.cli.masker_options import RATE, add_masker_options, is_own, masker_of
from corrmask_fast.cli.options import add_corpus, command, load_graph, open_corpus
from corrmask_fast.errors import InputError, naming, shown
from corrmask_fast.masking.schedules import parse_rate, rate_text
from corrmask_fast.masking.strategies import CONTROL, LEARNED_STRATEGIES, OPTIONS, SOURCES, STRATEGIES
from corrmask_fast.suggestions import did_you_mean
from corrmask_fast.training.settings import (
    MASKER_OPTIONS,
    OF_CHECKPOINT,
    PRESETS,
    SETTINGS,
    PretrainingSettings,
    add_setting_options,
    read_config,
)

if TYPE_CHECKING:
    from corrmask_fast.cells.corpus import Corpus
    from corrmask_fast.graph.dependency_graph import DependencyGraph
    from corrmask_fast.masking.base import Masker

CELL_TYPE = "cell_type"  # the obs column of the baseline that knows the type alone, where the corpus has it
RATES = "mlm_probability", "structural_ratio"
FILES = (*(name for name, source in SOURCES.items() if source.metavar), "weights")
TEXTS = "strategy", "eval_strategy", "replace", "partners", *FILES
LEARNED = " and ".join(LEARNED_STRATEGIES)


def add_pretrain(commands: Any) -> None:
    """Add the command."""
    parser = command(
        commands,
        "pretrain",
        _pretrain,
        summary="pretrain a BERT on masked genes (Geneformer's architecture), or go on with any checkpoint",
        text="Pretrain a new BertForMaskedLM, or with --model go on with a checkpoint of any masked language model of "
        "transformers. The defaults are those of the paper (Table 5). A TOML file (--config) changes them, and options "
        "change both. --resume takes the settings of the run, from its settings.toml. Writes checkpoints, log.csv, "
        "loss.png, settings.toml, and the model as transformers saves it. Held-out cells are masked in the same "
        "way whatever strategy the training has: the losses of two runs on the same cells can be compared. At the end "
        "they are printed beside baselines without a model. With a graph, the loss is also given by whether a partner "
        "of the masked gene is in view. This describes different genes; `evaluate shortcut` measures what partners in "
        f"view are worth. {LEARNED} learn with the model what to mask; what they learned is saved in its folder.",
        example="pretrain cells.dataset --graph graph.safetensors --out run --preset small --max-steps 1000",
    )
    add_corpus(parser)
    parser.add_argument("--out", required=True, metavar="FOLDER", help="folder to write the run to")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint in --out")
    parser.add_argument("--preset", choices=PRESETS, default="paper", help="settings to begin with (default: paper)")
    parser.add_argument(
        "--config", metavar="FILE.toml", help="settings and options of the masker, as in a run's settings.toml"
    )
    add_masker_options(parser, learned=True)
    parser.add_argument(
        "--eval-strategy", choices=STRATEGIES, help="how held-out cells are masked, with seed 0 (default: random)"
    )
    parser.add_argument(
        "--eval-mlm-probability",
        type=float,
        metavar="P",
        help=f"share of the genes of held-out cells that is masked (default: {RATE})",
    )
    parser.set_defaults(**dict.fromkeys(MASKER_OPTIONS))  # not given: the configuration file decides
    add_setting_options(parser)


def _pretrain(arguments: argparse.Namespace) -> None:
    from corrmask_fast.errors import import_extra
    from corrmask_fast.files import check_output_folder

    import_extra("transformers", "hf")
    import_extra("matplotlib", "plot")  # before the work
    check_output_folder(arguments.out)
    config = arguments.config
    if config is None and arguments.resume and (own := Path(arguments.out) / SETTINGS).is_file():
        config = own
    given = {one.name: getattr(arguments, one.name) for one in fields(PretrainingSettings)}
    settings = PretrainingSettings.read(config, arguments.preset, **given)
    if settings.model:
        for name in OF_CHECKPOINT:
            if given[name] is not None:
                raise InputError(f"{name} must be left out with --model: it comes from the checkpoint {settings.model}")
        settings = replace(settings, model=str(Path(settings.model).absolute())).of_checkpoint()
    found = {} if config is None else read_config(config)[1]
    found = {name: value for name, value in found.items() if getattr(arguments, name) is None}
    _fill_in_masker(arguments, found, config)
    corpus = open_corpus(arguments, model_length=settings.max_length)
    graph = load_graph(arguments.graph) if arguments.graph else None
    with naming(config) if found and config is not None else nullcontext():
        masker = masker_of(
            arguments,
            vocabulary=corpus.vocabulary,
            graph=graph,
            corpus=corpus,
            width=settings.hidden_size,
            heads=settings.heads,
        )
        eval_masker = _eval_masker(arguments, corpus, graph)

    from corrmask_fast.training.plots import plot_pretraining
    from corrmask_fast.training.run import PLOT, pretrain

    report = pretrain(
        corpus,
        masker,
        arguments.out,
        settings,
        graph=graph,
        eval_masker=eval_masker,
        resume=arguments.resume,
        progress=arguments.progress,
        masker_options=_masker_options(arguments),
    )
    if report.main_process:
        plot_pretraining(report, Path(arguments.out) / PLOT)
        print(report.summary())
        if masker.note:
            print(masker.note)
        if not math.isnan(report.last("eval_loss")):
            from corrmask_fast.evaluation.cell_annotation import cell_labels
            from corrmask_fast.evaluation.masked_scores import score_masks
            from corrmask_fast.training.run import MODEL, split_cells

            held_out = split_cells(corpus, settings)[1]
            labels = CELL_TYPE if CELL_TYPE in held_out.obs and cell_labels(held_out, CELL_TYPE)[1].size else None
            scores = score_masks(
                {"this model": report.folder / MODEL}, held_out, eval_masker, labels=labels,
                batch_size=settings.batch_size, device=settings.device, progress=arguments.progress,
            )  # fmt: skip
            print(f"\nheld-out cells: {scores.table()}")
            if scores.loss("this model").mean >= scores.loss("unigram").mean:
                print("\nThis model is not better than the unigram: so far it has learnt nothing from the other genes.")


def _eval_masker(arguments: argparse.Namespace, corpus: Corpus, graph: DependencyGraph | None) -> Masker | None:
    """Return what masks the held-out cells, if the options ask for another strategy or rate than the default."""
    strategy, rate = arguments.eval_strategy, arguments.eval_mlm_probability
    if strategy is None and rate is None:
        return None
    strategy = strategy or CONTROL
    own: dict[str, Any] = {"strategy": strategy, "mlm_probability": RATE if rate is None else rate, "seed": 0}
    if strategy != arguments.strategy:  # the options are those of the training's strategy
        own |= {name: None for name in (*OPTIONS, "replace") if name not in STRATEGIES[strategy].requires}
    changed = argparse.Namespace(**{**vars(arguments), **own})
    return masker_of(changed, vocabulary=corpus.vocabulary, graph=graph, corpus=corpus)


def _fill_in_masker(arguments: argparse.Namespace, found: dict[str, Any], config: str | Path | None) -> None:
    """Set the options of the masker that were not given: from the configuration file, or to their defaults."""
    for name, default in MASKER_OPTIONS.items():
        if getattr(arguments, name) is None:
            value = found.get(name, default)
            if name in found and name in TEXTS and not isinstance(value, str):
                raise InputError(f"{config}: {name} must be a text in quotes; got {shown(value)}")
            if name in RATES and isinstance(value, str):
                with naming(str(config)):
                    value = parse_rate(value)
            setattr(arguments, name, value)
    strategies = STRATEGIES | LEARNED_STRATEGIES
    if is_own(arguments.strategy) and arguments.strategy == found.get("strategy"):
        raise InputError(
            f"{config} names {arguments.strategy}, and only what the command line names is imported, for this runs its "
            f"code; if you trust it, give --strategy {arguments.strategy}"
        )
    for name, known in (("strategy", strategies), ("eval_strategy", STRATEGIES)):
        chosen = getattr(arguments, name)
        if chosen is not None and chosen not in known and not (name == "strategy" and is_own(chosen)):
            meant = did_you_mean(chosen, known)
            raise InputError(f"{config}: {name} must be one of {', '.join(known)}; got {shown(chosen)}{meant}")


def _masker_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the options of the masker for a configuration file; paths of files are absolute."""
    found = {name: getattr(arguments, name) for name in MASKER_OPTIONS if getattr(arguments, name) is not None}
    found |= {name: str(Path(found[name]).absolute()) for name in FILES if name in found}
    return found | {name: rate_text(found[name]) for name in RATES if name in found}
