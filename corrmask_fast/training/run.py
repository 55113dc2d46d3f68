"""One pretraining run: from a corpus to a model, with a log and checkpoints."""

from __future__ import annotations

import math
import os
import re
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Subset

from corrmask_fast.cells.dataset import CorpusDataset
from corrmask_fast.cells.vocabulary import DICTIONARY_FILE
from corrmask_fast.errors import InputError
from corrmask_fast.files import atomic_file, check_output, check_output_folder
from corrmask_fast.masking.strategies.random import RandomMasker
from corrmask_fast.progress import is_live, progress_bar, shows_progress
from corrmask_fast.tables import write_csv
from corrmask_fast.training.partner_loss import GROUPS, PartnerLoss
from corrmask_fast.training.pretrained import no_bars
from corrmask_fast.training.run_record import FILE as RECORD
from corrmask_fast.training.settings import SETTINGS, PretrainingSettings, to_toml
from corrmask_fast.training.step_clock import StepClock
from corrmask_fast.training.trainer import EVALUATION_EPOCH, LAST_STEP, CorrMaskTrainer, transformers

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from corrmask_fast.cells.corpus import Corpus
    from corrmask_fast.cells.vocabulary import Vocabulary
    from corrmask_fast.graph.dependency_graph import DependencyGraph
    from corrmask_fast.masking.base import Masker

__all__ = ["PretrainingReport", "pretrain"]

MAX_HELD_OUT = 2000
DIFFERENT_GENES = "these are different genes: the gap is no measure of copying; `corrmask-fast evaluate shortcut` is"
NOT_ALIKE = "runs with other masks do not compare"
LOG, MODEL, PLOT = "log.csv", "model", "loss.png"
# Settings that a resumed run must keep. Its record checks corpus, masker and cells per step.
LASTING = ("model", "hidden_size", "layers", "heads", "intermediate_size", "max_length", "held_out", "run_seed")


@dataclass(frozen=True)
class PretrainingReport:
    """Result of :func:`pretrain`.

    Attributes
    ----------
    folder
        Folder with ``model/`` (an ordinary checkpoint of transformers), ``log.csv``, ``settings.toml``, ``loss.png``
        and checkpoints.
    history
        The log, a dict for each entry: ``step``, ``loss`` and ``eval_loss`` (nats a gene), ``tokens_per_second``, …
    masking
        ``"worker"`` (the time of the input includes masking) or ``"device"``.
    main_process
        Whether this process writes the files of the run. With several processes one does.
    """

    folder: Path
    history: list[dict[str, float]]
    masking: str
    main_process: bool = True

    def last(self, name: str) -> float:
        """Return the last value of a column of the log.

        Parameters
        ----------
        name
            Name of the column, such as ``"eval_loss"``.

        Returns
        -------
        float
            The value; NaN if there is none.
        """
        return next((row[name] for row in reversed(self.history) if name in row), math.nan)

    def summary(self) -> str:
        """Return the results of the run in a few lines.

        Returns
        -------
        str
            Steps, losses, speed, and where the model is.
        """
        lines = [f"{int(self.last('step')):,} steps; the model lies in {self.folder / MODEL}"]
        if not math.isnan(self.last("eval_loss")):
            lines.append(
                f"loss on held-out cells      {self.last('eval_loss'):.3f} nats; perplexity "
                f"{self.last('eval_perplexity'):,.1f}; {100 * self.last('eval_accuracy'):.1f} % of masked genes named"
            )
        genes = {name: self.last(f"eval_genes_partner_{name}") for name in GROUPS}
        if (n := sum(genes.values())) > 0:  # NaN without a graph
            named = {
                "visible": "a partner in view",
                "hidden": "all partners hidden",
                "absent": "no partner in the cell",
            }
            lines += [
                f"  {named[name]:<27}{self.last(f'eval_loss_partner_{name}'):.3f} ({genes[name]:,.0f} genes, "
                f"{100 * genes[name] / n:.1f} %)"
                for name in GROUPS
            ]
            lines.append(f"  {DIFFERENT_GENES}")
        if not math.isnan(self.last("loss")):
            lines.append(
                f"loss in training            {self.last('loss'):.3f} nats under the run's own masks: {NOT_ALIKE}"
            )
        if not math.isnan(self.last("tokens_per_second")):
            masking = (
                f", {100 * self.last('share_masking'):.1f} % masking" if self.masking == "device" else " and masks"
            )
            share = 100 * self.last("share_input")
            lines.append(f"{self.last('tokens_per_second'):,.0f} tokens/s; {share:.1f} % of the time: input{masking}")
        return "\n".join(lines)


def pretrain(
    corpus: Corpus,
    masker: Masker,
    folder: str | Path,
    settings: PretrainingSettings,
    *,
    graph: DependencyGraph | None = None,
    eval_masker: Masker | None = None,
    resume: bool = False,
    progress: bool = True,
    masker_options: Mapping[str, Any] | None = None,
) -> PretrainingReport:
    """Pretrain a masked language model on a corpus: a new ``BertForMaskedLM``, or the model of a checkpoint.

    Parameters
    ----------
    corpus
        Tokenised cells of the masker's vocabulary.
    masker
        The masking strategy, on the CPU. A masker that learns is trained with the model and saved in its folder.
    folder
        Folder for checkpoints, log and model. Without ``resume`` it must not contain a run.
    settings
        Model and training: :class:`~corrmask_fast.PretrainingSettings`.
    graph
        Splits the loss on held-out cells by whether a partner of the masked gene is in view. This only describes: the
        groups are different genes. :func:`~corrmask_fast.measure_shortcut` measures what partners in view are worth.
    eval_masker
        Masks the held-out cells. None: ``RandomMasker(vocabulary, mlm_probability=0.15, seed=0)``, whatever ``masker``
        is, so that the losses of any two runs on the same held-out cells can be compared.
    resume
        Continue from the last complete checkpoint in ``folder``. The losses are those of an uninterrupted run.
    progress
        Show a progress bar.
    masker_options
        Options of the command line that made the masker. They are written to ``settings.toml``.

    Returns
    -------
    PretrainingReport
        The folder of the run, and its log.

    Raises
    ------
    InputError
        If corpus, masker and settings do not fit each other; if ``folder`` contains a run and ``resume`` is not set; or
        if a file of the run to resume is damaged or could run code.

    Notes
    -----
    The defaults of the settings are Table 5 of Hacohen et al. 2026.

    Examples
    --------
    >>> import tempfile
    >>> from corrmask_fast import CorrMasker, DependencyGraph, PretrainingSettings, pretrain, read_corpus
    >>> from corrmask_fast.testing import make_vocabulary
    >>> genes = make_vocabulary(20)
    >>> corpus = read_corpus([range(2, 22)] * 50, genes)
    >>> masker = CorrMasker(DependencyGraph.from_edges([("G0", "G1")], genes))
    >>> settings = PretrainingSettings(
    ...     hidden_size=8, layers=1, heads=1, intermediate_size=8, max_length=20, max_steps=1, device="cpu"
    ... )
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     report = pretrain(corpus, masker, folder, settings, progress=False)  # prints two lines of the log
    {...}
    {...}
    >>> report.last("step")
    1
    """
    folder = Path(folder)
    if folder.exists():
        check_output_folder(folder)
        for name in (SETTINGS, LOG, PLOT):
            check_output(folder / name)
    checkpoint = _checkpoint(folder, resume)
    settings = settings.of_checkpoint()
    if checkpoint is not None:
        _check_lasting(folder / SETTINGS, settings)
    settings.check_size(corpus.vocabulary.size)
    corpus.vocabulary.check_same(masker.vocabulary, "the corpus", "the masker")
    if graph is not None:
        graph.vocabulary.check_same(corpus.vocabulary, "the graph", "the corpus")
    train, held_out = split_cells(corpus, settings)
    if eval_masker is None and held_out.n_cells:
        corpus.vocabulary.require_mask_token()  # now, not at the first evaluation
    longest = min(int(train.lengths.max()), train.max_length)
    if math.floor(longest * masker.max_probability) == 0:
        raise InputError(
            f"a rate of {masker.max_probability} masks none of {longest} genes, the longest cell's, and nothing would "
            f"be learnt; mlm_probability must be {1 / longest:.2g} at least"
        )
    live = progress and shows_progress() and is_live()
    trainer = RunTrainer(
        start_model(masker.vocabulary, settings),
        training_arguments(folder, settings, train.n_cells, held_out.n_cells, progress=live),
        train_dataset=CorpusDataset(train),
        eval_dataset=CorpusDataset(held_out) if held_out.n_cells else None,
        masker=masker,
        masking=_masking(settings, masker),
        eval_masker=RandomMasker(corpus.vocabulary) if eval_masker is None else eval_masker,
        partner_graph=graph,
    )
    if settings.report_to == "tensorboard":
        trainer.add_callback(_tensorboard(folder))
    if progress and not live:
        trainer.add_callback(_Lines())
    trainer.add_callback(_RunFiles(folder, settings.to_toml() + to_toml(masker_options or {})))
    with nullcontext() if live else no_bars():
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        evaluated = [row["step"] for row in trainer.state.log_history if "eval_loss" in row]
        if held_out.n_cells and trainer.state.global_step not in evaluated[-1:]:
            trainer.evaluate()
        history = [dict(row) for row in trainer.state.log_history]
        if trainer.is_world_process_zero():
            trainer.save_model(str(folder / MODEL))
    if trainer.is_world_process_zero():
        masker.vocabulary.save(folder / MODEL / DICTIONARY_FILE)
        _write_log(folder / LOG, history)
    return PretrainingReport(folder, history, trainer.masking, trainer.is_world_process_zero())


def split_cells(corpus: Corpus, settings: PretrainingSettings) -> tuple[Corpus, Corpus]:
    """Return (training cells, held-out cells); the split depends on ``run_seed`` alone."""
    if corpus.n_cells == 0:
        raise InputError("the corpus has no cells; check the file that it was read from")
    n_held_out = min(round(corpus.n_cells * settings.held_out), MAX_HELD_OUT)
    all_cells = np.arange(corpus.n_cells)
    held_out = corpus.sample_rows(n_held_out, settings.run_seed) if n_held_out else all_cells[:0]
    if n_held_out == corpus.n_cells:
        raise InputError(f"held_out={settings.held_out} leaves none of {corpus.n_cells} cells to train on; lower it")
    return corpus.select(np.setdiff1d(all_cells, held_out)), corpus.select(held_out)


def start_model(vocabulary: Vocabulary, settings: PretrainingSettings) -> Any:
    """Return the model that training starts from: the settings' checkpoint, or a new BERT."""
    if not settings.model:
        return make_model(vocabulary.size, vocabulary.pad_token_id, settings)
    from corrmask_fast.training.pretrained import load_masked_lm
    from corrmask_fast.training.sparse_head import with_sparse_head

    model = load_masked_lm(settings.model, vocabulary)
    return with_sparse_head(model) if settings.head == "masked" else model


def make_model(vocab_size: int, pad_token_id: int, settings: PretrainingSettings) -> Any:
    """Return a BERT for masked language modelling; its random weights depend on ``run_seed`` alone."""
    config = transformers.BertConfig(
        vocab_size=vocab_size,
        hidden_size=settings.hidden_size,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        intermediate_size=settings.intermediate_size,
        hidden_dropout_prob=settings.dropout,
        attention_probs_dropout_prob=settings.dropout,
        max_position_embeddings=settings.max_length,
        hidden_act="relu",  # Geneformer's
        pad_token_id=pad_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(settings.run_seed % 2**63)
        if settings.head == "masked":
            from corrmask_fast.training.sparse_head import BertForSparseMaskedLM

            return BertForSparseMaskedLM(config)
        return transformers.BertForMaskedLM(config)


def training_arguments(
    folder: Path, settings: PretrainingSettings, n_train: int, n_held_out: int, *, progress: bool
) -> Any:
    """Return the settings as TrainingArguments of the installed version of transformers."""
    on_gpu = settings.device != "cpu" and torch.cuda.is_available()
    if settings.device == "cuda" and not on_gpu:
        raise InputError("device='cuda': PyTorch finds no GPU here; use device='auto' or 'cpu'")
    if settings.precision == "float16" and not on_gpu:
        raise InputError("precision='float16' needs a GPU; use precision='bfloat16' on the CPU")
    bf16 = settings.precision == "bfloat16" or (
        settings.precision == "auto" and on_gpu and torch.cuda.is_bf16_supported()
    )
    # Arguments leave the precision of a run in this variable, and those of the next run in the process would take it.
    os.environ["ACCELERATE_MIXED_PRECISION"] = "no"
    known = {one.name for one in transformers.TrainingArguments.__dataclass_fields__.values()}
    grouping: dict[str, Any] = {}
    if settings.group_by_length:  # transformers 4 and 5 name it differently
        new = "train_sampling_strategy" in known
        grouping = {"train_sampling_strategy": "group_by_length"} if new else {"group_by_length": True}
    checkpointing: dict[str, Any] = {}
    if settings.gradient_checkpointing:
        name = "activation_checkpointing" if "activation_checkpointing" in known else "gradient_checkpointing"
        checkpointing = {name: True, f"{name}_kwargs": {"use_reentrant": False}}
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=settings.batch_size,
        per_device_eval_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.gradient_accumulation,
        learning_rate=settings.learning_rate,
        lr_scheduler_type=settings.lr_schedule if settings.lr_schedule != "constant" else "constant_with_warmup",
        weight_decay=settings.weight_decay,
        num_train_epochs=settings.epochs,
        max_steps=settings.max_steps or -1,
        seed=settings.run_seed % 2**32,
        data_seed=settings.run_seed % 2**32,
        bf16=bf16,
        fp16=settings.precision == "float16",
        torch_compile=settings.compile,
        use_cpu=not on_gpu,
        dataloader_num_workers=settings.workers,
        eval_strategy="steps" if n_held_out else "no",
        eval_steps=settings.eval_every,
        save_steps=settings.save_every,
        save_total_limit=2,
        logging_steps=settings.log_every,
        disable_tqdm=not progress,
        report_to=[],
        **grouping,
        **checkpointing,
    )
    together = settings.batch_size * settings.gradient_accumulation * arguments.world_size  # arguments know it
    steps = settings.max_steps or math.ceil(settings.epochs * n_train / together)
    arguments.warmup_steps = min(settings.warmup_steps, steps // 10)
    return arguments


def _tensorboard(folder: Path) -> Any:
    """Return the callback that writes the log for TensorBoard."""
    from corrmask_fast.errors import import_extra

    import_extra("tensorboard", "tensorboard")
    from torch.utils.tensorboard import SummaryWriter
    from transformers.integrations import TensorBoardCallback

    return TensorBoardCallback(SummaryWriter(str(folder / "tensorboard")))


def _masking(settings: PretrainingSettings, masker: Masker) -> str:
    if settings.masking != "auto":
        return settings.masking
    # Workers know neither the step of a schedule nor the model that a masker learns with.
    if masker.has_schedule or masker.needs_model:
        return "device"
    if masker.on_host:
        return "worker"
    from corrmask_fast.cuda import can_use_cuda

    return "device" if settings.device != "cpu" and can_use_cuda() else "worker"


def _checkpoint(folder: Path, resume: bool) -> Path | None:
    """Return the checkpoint to resume from; raise InputError if the folder holds a run that is not resumed.

    A checkpoint's record is written last. A checkpoint without a record is incomplete: the run was killed.
    """
    numbers = [re.fullmatch(r"checkpoint-(\d+)", path.parent.name) for path in folder.glob(f"checkpoint-*/{RECORD}")]
    found = sorted(int(number[1]) for number in numbers if number)
    if resume:
        if not found:
            raise InputError(f"{folder} holds no whole checkpoint to resume from; leave out resume to begin a run")
        return folder / f"checkpoint-{found[-1]}"
    if found or (folder / MODEL).exists():
        raise InputError(
            f"{folder} holds a run already; continue it with --resume (in Python resume=True), or choose another folder"
        )
    return None


def _check_lasting(path: Path, settings: PretrainingSettings) -> None:
    """Raise InputError if the run to resume, with the settings in ``path``, has other lasting settings."""
    if not path.is_file():
        return
    before = PretrainingSettings.read(path)
    for name in LASTING:
        then, now = getattr(before, name), getattr(settings, name)
        if then != now:
            raise InputError(f"the run in {path.parent} has {name}={then}, and cannot go on with {now}; begin another")


class RunTrainer(CorrMaskTrainer):
    """A trainer that measures where the time goes, and splits the loss on held-out cells by partners in view."""

    resumes_whole = True

    def __init__(self, *args: Any, partner_graph: DependencyGraph | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._partner_graph = partner_graph
        self._clock = StepClock(self.args.device)

    def get_batch_samples(self, *args: Any) -> Any:
        """Return a step's batches; the time for this, without masking, counts as input."""
        began, masking = time.perf_counter(), self._clock.masking_on_cpu
        batches, count = super().get_batch_samples(*args)
        self._clock.input += time.perf_counter() - began - (self._clock.masking_on_cpu - masking)
        for batch in batches:
            self._clock.tokens.append(batch["attention_mask"].sum())
        return batches, count

    def _masked(self, batch: dict[str, Any], epoch: int, step: int) -> dict[str, Any]:
        if self.masking == "worker":
            return super()._masked(batch, epoch, step)
        with self._clock.masking():
            return super()._masked(batch, epoch, step)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add tokens per second and shares of the time to the log of training."""
        if "loss" in logs:
            logs |= self._clock.read(self.args.world_size)
        super().log(logs, *args, **kwargs)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:  # noqa: ARG002
        """Return and log the loss on held-out cells, of the model as it is saved, with frozen masks."""
        began = time.perf_counter()
        losses, training = PartnerLoss(self._partner_graph), self.model.training
        self.model.eval()
        for batch in self._held_out_batches():
            masked = super()._masked(self._prepare_input(batch), EVALUATION_EPOCH, LAST_STEP)
            with (
                self.autocast_smart_context_manager()
                if hasattr(self, "autocast_smart_context_manager")
                else torch.no_grad()
            ):
                losses.add(self.model, masked)
        self.model.train(training)
        if self.args.world_size > 1:
            losses.add_up(lambda sums: self.accelerator.reduce(sums.to(self.args.device), "sum"))
        metrics = losses.metrics()
        self._clock.pause(time.perf_counter() - began)
        self.log(metrics)
        self.control: Any = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _held_out_batches(self) -> Iterable[dict[str, torch.Tensor]]:
        """Return this process' share of the held-out cells; Trainer's own loader would repeat some to fill up."""
        cells: Any = self.eval_dataset
        if self.args.world_size > 1:
            cells = Subset(cells, range(self.args.process_index, len(cells), self.args.world_size))
        return DataLoader(
            cells,
            self.args.eval_batch_size,
            collate_fn=self._eval_collator,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.device.type == "cuda",
        )


class _Lines(transformers.TrainerCallback):
    """The progress of a run as lines, where no bar can be drawn."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        self.bar = progress_bar("pretrain", state.max_steps, "step", shown=state.is_world_process_zero)
        self.bar.initial = self.bar.n = state.global_step  # not 0 where a run goes on

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        self.bar.update(state.global_step - self.bar.n)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        self.bar.close()


class _RunFiles(transformers.TrainerCallback):
    """Writes the settings when a run begins, and the log whenever it grows: a killed run has both."""

    def __init__(self, folder: Path, settings: str) -> None:
        self.folder, self.settings = folder, settings

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        if state.is_world_process_zero:  # CorrMaskCallback runs earlier, and has checked the checkpoint
            with atomic_file(self.folder / SETTINGS) as temporary:
                temporary.write_text(self.settings, encoding="utf-8")

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        if state.is_world_process_zero:
            _write_log(self.folder / LOG, state.log_history)


def _write_log(path: Path, history: list[dict[str, float]]) -> None:
    """Write the log as a table with one row per step; missing values stay empty."""
    rows: dict[float, dict[str, float]] = {}
    for row in history:
        rows.setdefault(row["step"], {}).update(row)
    names = list(dict.fromkeys(["step", "epoch", *(name for row in rows.values() for name in row)]))
    write_csv(path, names, [[row.get(name, "") for name in names] for row in rows.values()])
