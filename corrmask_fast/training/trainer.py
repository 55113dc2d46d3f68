"""Pretraining with Hugging Face's Trainer: masks that follow the epoch, frozen held-out masks, masking on the device.

Runs with transformers 4.46 to 5. Only names that all of these versions have are imported. Overridden methods take
``*args`` where the signatures differ.
"""

from __future__ import annotations

import copy
import math
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import SequentialSampler

from corrmask_fast.errors import InputError, import_extra, readable, shown
from corrmask_fast.masking.collator import DataCollatorForCorrMask, PaddingCollator, check_graph_column
from corrmask_fast.masking.features import PACKED
from corrmask_fast.masking.padded_batch import EVALUATION_EPOCH, LAST_STEP, padded_inputs
from corrmask_fast.training.callback import CorrMaskCallback, batches_of
from corrmask_fast.training.checkpoint_files import KIND, check_checkpoint
from corrmask_fast.training.checks import (
    check_arguments,
    check_attention,
    check_eval_masker,
    check_learning,
    check_model,
    check_packing,
    check_width,
    parameters_of,
    positions_of,
)
from corrmask_fast.training.losses import logits_of, summed_by_row, targets_of
from corrmask_fast.training.run_record import RunRecord
from corrmask_fast.training.sampling import (
    LengthGroupedSampler,
    ShuffledSampler,
    cell_lengths,
    data_seed,
    groups_by_length,
    leave_undivided,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch.utils.data import Sampler

    from corrmask_fast.masking.base import Masker

transformers: Any = import_extra("transformers", "hf")

__all__ = ["EVALUATION_EPOCH", "CorrMaskCallback", "CorrMaskTrainer"]

# Columns that collators and maskers add to a batch. They are kept, whether the model's forward names them or not.
OURS = frozenset(
    {"input_ids", "attention_mask", "labels", "masked_positions", "special_tokens_mask", "graph_ids", "mask_epoch"}
)


class CorrMaskTrainer(transformers.Trainer):
    """Hugging Face's Trainer for masked language modelling of cells.

    It differs from the stock Trainer in five points:

    - Masks follow the epoch, as with :class:`~corrmask_fast.CorrMaskCallback`.
    - Masking runs in the workers or on the device, with the same result.
    - Masks of evaluations are frozen: the same in every evaluation.
    - The order of the cells depends on a seed and the epoch alone.
    - The loss is the mean over all masked genes of a step. So accumulated batches and ranks give the gradient of one
      large batch. (For BERT, the stock Trainer of transformers 4.46 and 5 adds up the means of accumulated batches.)

    Parameters
    ----------
    model
        As for ``Trainer``. A model whose ``forward`` takes ``masked_positions`` gets them.
    args
        ``TrainingArguments``, as for ``Trainer``.
    data_collator
        A :class:`~corrmask_fast.DataCollatorForCorrMask`, which holds the masker. Or, with ``masker`` and
        ``masking="device"``, a :class:`~corrmask_fast.PaddingCollator`; it can have a ``graph_column``.
    train_dataset
        Cells: a :class:`~corrmask_fast.CorpusDataset`, a :class:`~corrmask_fast.CorpusStream`, or another dataset with
        ``input_ids``.
    eval_dataset
        Held-out cells, or several such datasets by name.
    masker
        The masking strategy, in place of ``data_collator``. A :class:`~corrmask_fast.MultinomialAttentionMasker` is
        trained as a part of the model, and saved in its checkpoints.
    masking
        ``"worker"``: the collator masks, in worker processes if there are any. ``"device"``: the collator pads, and the
        step masks on the model's device.
    eval_masker
        Masks the cells of evaluations and predictions. It must not have a schedule, and must not learn. None: the
        masker of the training; then the losses of runs with different maskers cannot be compared.
    pad_to_multiple_of
        With ``masker``: a batch's width is rounded up to a multiple of this number.
    **kwargs
        Other arguments of ``Trainer``.

    Raises
    ------
    InputError
        If collator, masker, model, corpus and arguments do not fit each other.

    See Also
    --------
    CorrMaskCallback : For the stock Trainer.
    CorrMaskLightningCallback : For Lightning's Trainer.

    Notes
    -----
    To group cells by length, set ``group_by_length`` (transformers 4) or ``train_sampling_strategy`` (transformers 5).

    A collator with ``packing=True`` needs a model with flash attention. With any other attention the cells of a batch
    would attend to each other without an error, so it is refused. ``per_device_train_batch_size`` is the number of
    cells in a packed batch.

    The loss of an evaluation is the mean over its masked genes, for any batch size. ``compute_metrics`` gets labels of
    the shape of the logits. If the masker learns, the model is evaluated as it is saved, without the masker, and all
    genes are masked with the same weight: learned weights change from one evaluation to the next.

    With several processes the last step of an epoch is filled up with the first cells of that epoch. With
    ``dataloader_drop_last`` the last, incomplete step is left out instead.

    Examples
    --------
    >>> import tempfile
    >>> from transformers import BertConfig, TrainingArguments
    >>> from corrmask_fast import (
    ...     BertForSparseMaskedLM, CorpusDataset, CorrMasker, CorrMaskTrainer, DependencyGraph, read_corpus
    ... )
    >>> from corrmask_fast.testing import make_vocabulary
    >>> genes = make_vocabulary(20)
    >>> cells = CorpusDataset(read_corpus([range(2, 22)] * 16, genes))
    >>> masker = CorrMasker(DependencyGraph.from_edges([("G0", "G1")], genes))
    >>> config = BertConfig(
    ...     vocab_size=genes.size, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8
    ... )
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     args = TrainingArguments(folder, max_steps=1, use_cpu=True, report_to=[], disable_tqdm=True)
    ...     trainer = CorrMaskTrainer(BertForSparseMaskedLM(config), args, train_dataset=cells, masker=masker)
    ...     trainer.train().global_step
    {'train_runtime': ...}
    1
    """

    resumes_whole = False  # whether a checkpoint must have an optimizer's state: see check_checkpoint

    def __init__(
        self,
        model: Any = None,
        args: Any = None,
        data_collator: Any = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        *,
        masker: Masker | None = None,
        masking: str = "worker",
        eval_masker: Masker | None = None,
        pad_to_multiple_of: int | None = None,
        **kwargs: Any,
    ) -> None:
        if masking not in {"worker", "device"}:
            raise InputError(f"masking must be 'worker' or 'device'; got {shown(masking)}")
        if masker is not None and masker.needs_model:
            check_learning(masker, model, masking)
        collator: Any = _the_collator(data_collator, masker, pad_to_multiple_of, masking)
        self.masker: Any = collator.masker if masker is None else masker
        self.masking = masking
        self.eval_masker: Any = self.masker if eval_masker is None else eval_masker
        if eval_masker is not None:
            check_eval_masker(eval_masker, self.masker)
            if eval_masker.n_graphs:
                check_graph_column(eval_masker, collator.graph_column, collator.graph_numbers)
        if masking == "device" and getattr(collator, "compat", None):
            raise InputError("compat='geneformer' masks in the collator; use masking='worker' with it")
        if masking == "worker" and self.masker.has_schedule:
            raise InputError(
                "the masker's rates depend on the step, and workers prepare batches ahead of it; use masking='device'"
            )
        super().__init__(model, args, collator, train_dataset, eval_dataset, **kwargs)
        check_arguments(self.args, self.compute_loss_func, train_dataset)
        held_out = eval_dataset.values() if isinstance(eval_dataset, dict) else [eval_dataset]
        for dataset in (train_dataset, *held_out):
            check_model(self.model, self.masker, dataset)
        if getattr(collator, "packing", False):
            check_packing(self.model, collator.position_ids_start)
        if self.masker.needs_model:  # after all checks: a refused model is left unchanged
            from corrmask_fast.training.mam_model import attach

            attach(self.masker, self.model)  # type: ignore[arg-type]
        parameters, (self._places, _) = parameters_of(self.model), positions_of(self.model)
        self._takes = {name for name in ("masked_positions", "num_items_in_batch") if name in parameters}
        # A model that projects at the labels alone (ModernBERT's sparse_prediction) needs them.
        self._projects_at_labels = "labels" in parameters and bool(getattr(self.model, "sparse_prediction", False))
        if self.args.label_names is None:
            self.label_names = ["labels"]  # Trainer would also require the labels of a second task
        self._set_up_collators(collator)
        # Trainer must not divide the losses: compute_loss divides by the count of get_batch_samples.
        self.model_accepts_loss_kwargs = True
        self._callback = CorrMaskCallback(self)
        self._callback.checked = train_dataset
        if isinstance(collator, DataCollatorForCorrMask):
            self._callback.listeners.append(collator)
        self.add_callback(self._callback)
        if self.accelerator.dispatch_batches is None and self.args.world_size > 1:
            # Otherwise rank 0 reads a stream for all ranks, and cannot join batches of different widths.
            self.accelerator.dataloader_config.dispatch_batches = False
        self._epoch, self._steps_of_pass = 0, 0
        self._kept: frozenset[str] | None = None  # names of the columns that a batch keeps
        self._whole_logits = False  # whether an evaluation returns logits, not the loss alone
        self._row_sums, self._targets = torch.zeros(0, 2), torch.zeros(0)  # of the last batch of an evaluation
        self._held_out = torch.zeros(2, dtype=torch.float64)  # summed loss and masked genes of an evaluation
        # Maskers there; not in the model (unless they learn): DDP broadcasts buffers.
        self._on_device: dict[Masker, Any] = {}

    def _set_up_collators(self, collator: Any) -> None:
        """Choose the collators of training and of evaluation."""
        if self.masking == "device":
            pads = isinstance(collator, PaddingCollator)
            self.data_collator: Any = collator if pads else PaddingCollator.like(collator)
            self._eval_collator: Any = self.data_collator
            return
        if "masked_positions" in self._takes and not collator.compat:
            collator = copy.copy(collator)  # it shares the epoch with the collator that was given
            collator.return_masked_positions = True
        self.data_collator = collator
        self._eval_collator = collator.frozen(EVALUATION_EPOCH)
        if self.eval_masker is not self.masker:
            self._eval_collator.masker = copy.deepcopy(self.eval_masker)
            if self.eval_masker.n_graphs == 0:
                self._eval_collator.graph_column = None

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the masks; the Trainer itself calls this when an epoch begins.

        Parameters
        ----------
        epoch
            Number of the epoch, from 0.
        """
        self._epoch, self._steps_of_pass = epoch, 0

    # ---------------------------------------------------------------------------------------------------------- data

    def _get_train_sampler(self, *args: Any) -> Sampler[int] | None:
        """Return our sampler for shuffled or length-grouped cells; for other strategies, Trainer's."""
        dataset = args[0] if args else self.train_dataset
        strategy = getattr(self.args, "train_sampling_strategy", "random")  # transformers 5
        if dataset is None or not hasattr(dataset, "__len__") or strategy not in {"random", "group_by_length"}:
            return super()._get_train_sampler(*args)
        seed = data_seed(self.args)
        if groups_by_length(self.args):
            together = self._train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
            # Trainer has removed unused columns from ``dataset``, the lengths among them.
            lengths = cell_lengths(self.train_dataset, self.args.length_column_name or "length")
            sampler: ShuffledSampler = LengthGroupedSampler(lengths, together, seed=seed)
        else:
            sampler = ShuffledSampler(len(dataset), seed=seed)
        self._callback.listeners = [one for one in self._callback.listeners if not isinstance(one, ShuffledSampler)]
        self._callback.listeners.append(sampler)
        return sampler

    def _get_eval_sampler(self, eval_dataset: Any) -> Sampler[int] | None:
        """Return a sampler that keeps the order of the cells, also if training groups them by length."""
        if eval_dataset is None or not hasattr(eval_dataset, "__len__") or self.args.world_size > 1:
            return None
        return SequentialSampler(eval_dataset)

    def get_eval_dataloader(self, *args: Any, **kwargs: Any) -> Any:
        """Return the loader of an evaluation, with frozen masks.

        Parameters
        ----------
        *args, **kwargs
            As for ``Trainer``.

        Returns
        -------
        torch.utils.data.DataLoader
            Batches of the cells, in their order.
        """
        with self._held_out_masks():
            loader = super().get_eval_dataloader(*args, **kwargs)
        leave_undivided(loader, self.args.world_size)
        return loader

    def get_test_dataloader(self, *args: Any, **kwargs: Any) -> Any:
        """Return the loader of a prediction, with the masks of an evaluation.

        Parameters
        ----------
        *args, **kwargs
            As for ``Trainer``.

        Returns
        -------
        torch.utils.data.DataLoader
            Batches of the cells, in their order.
        """
        with self._held_out_masks():
            loader = super().get_test_dataloader(*args, **kwargs)
        leave_undivided(loader, self.args.world_size)
        return loader

    @contextmanager
    def _held_out_masks(self) -> Iterator[None]:
        training, self.data_collator = self.data_collator, self._eval_collator
        try:
            yield
        finally:
            self.data_collator = training

    def _set_signature_columns_if_needed(self) -> None:
        """Keep the columns that the collator needs, as well as those that the model takes."""
        super()._set_signature_columns_if_needed()
        column = getattr(self.data_collator, "graph_column", None)
        needed = ["attention_mask", "special_tokens_mask", *([] if column is None else [column])]
        known: list[str] = self._signature_columns  # type: ignore[has-type]
        self._signature_columns = [*known, *(name for name in needed if name not in known)]

    # ------------------------------------------------------------------------------------------------------ the step

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, *args: Any) -> tuple[list[Any], Any]:
        """Return a step's masked batches, and the number of masked genes in them, over all ranks.

        An incomplete step at the end of a stream is left out: Trainer would add its gradients to the next step.

        Parameters
        ----------
        epoch_iterator, num_batches, *args
            As for ``Trainer``.

        Returns
        -------
        batches : list of dict
            Masked batches on the device.
        count : torch.Tensor or None
            Number of masked genes, int64; None without batches.

        Raises
        ------
        InputError
            If a stream has fewer batches than a step takes, or a batch comes without labels.
        """
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, *args)
        if 0 < len(batches) < num_batches and batches_of(self.callback_handler.train_dataloader) is None:
            if self._steps_of_pass == 0:
                raise InputError(
                    f"the stream ends after {len(batches)} batches, a step takes {num_batches}; lower "
                    "gradient_accumulation_steps or the batch size"
                )
            batches = []
        if not batches:
            return batches, None
        self._steps_of_pass += 1
        batches = [self._masked(self._prepare_input(batch), self._epoch, self.state.global_step) for batch in batches]
        count = sum((batch["labels"] != -100).sum() for batch in batches)
        if self.args.world_size > 1:
            count = self.accelerator.gather(count.reshape(1)).sum()
        return batches, count

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> Any:
        """Evaluate or predict; the loss is the mean over all masked genes, for any batch size.

        Parameters
        ----------
        *args
            As for ``Trainer``.
        metric_key_prefix
            Prefix of the names in ``metrics``.
        **kwargs
            As for ``Trainer``.

        Returns
        -------
        transformers.trainer_utils.EvalLoopOutput
            As of ``Trainer``; ``metrics["eval_loss"]`` is in nats a gene, NaN if no gene was masked.
        """
        self._held_out = torch.zeros(2, dtype=torch.float64)
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        if f"{metric_key_prefix}_loss" in output.metrics:
            total, count = self._held_out.tolist()
            output.metrics[f"{metric_key_prefix}_loss"] = total / count if count else math.nan
        return output

    def prediction_step(
        self, model: Any, inputs: Any, prediction_loss_only: bool, *args: Any, **kwargs: Any
    ) -> tuple[Any, Any, Any]:
        """Evaluate a batch under the frozen masks, at the last rates of schedules.

        Parameters
        ----------
        model, inputs, prediction_loss_only, *args, **kwargs
            As for ``Trainer``.

        Returns
        -------
        loss, logits, labels
            As of ``Trainer``. Labels have the shape of the logits without the vocabulary: all columns, or the
            ``masked_positions``.
        """
        inputs, self._whole_logits = self._prepare_input(inputs), not prediction_loss_only
        inputs = self._masked(inputs, EVALUATION_EPOCH, LAST_STEP)
        loss, logits, labels = super().prediction_step(model, inputs, prediction_loss_only, *args, **kwargs)
        # With several ranks a last batch is filled up with cells that were evaluated already; this drops them.
        sums = self.accelerator.gather_for_metrics(self._row_sums)
        self._held_out += sums.cpu().double().sum(0)
        if isinstance(labels, tuple):
            named = zip(self.label_names, labels, strict=True)
            labels = tuple(self._targets if name == "labels" else value for name, value in named)
        elif labels is not None:
            labels = self._targets
        return loss, logits, labels

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return the loss of a batch: the summed cross-entropy of its masked genes, divided by their number.

        Parameters
        ----------
        model, inputs
            As for ``Trainer``.
        return_outputs
            Return the model's outputs too.
        num_items_in_batch
            What the sum is divided by in training: the number of masked genes in all batches of a step. None, and in
            evaluation: the number in this batch.

        Returns
        -------
        torch.Tensor or tuple
            Scalar: the loss in nats a gene, 0 if no gene is masked; with ``return_outputs`` (loss, outputs). In
            training it is multiplied by the number of ranks, because DDP takes the mean over ranks.
        """
        labels, training = inputs["labels"], model.training
        count = num_items_in_batch if training and num_items_in_batch is not None else (labels != -100).sum()
        count = torch.as_tensor(count, device=labels.device).clamp(min=1)
        if training and "num_items_in_batch" in self._takes:
            outputs = model(**inputs, num_items_in_batch=count)
            loss = outputs["loss"]
        else:
            with_labels = self._projects_at_labels and (training or not self._whole_logits)
            outputs = model(**{name: inputs[name] for name in inputs if with_labels or name != "labels"})
            logits = logits_of(outputs)
            starts = inputs.get("cu_seq_lens_q")
            targets, rows = targets_of(logits, labels, inputs.get("masked_positions"), starts)
            if training:
                loss = cross_entropy(logits.flatten(0, -2), targets.flatten(), ignore_index=-100, reduction="sum")
            else:
                n_rows = len(labels) if starts is None else starts.numel() - 1
                self._row_sums, self._targets = summed_by_row(logits, targets, rows, n_rows), targets
                loss = self._row_sums[:, 0].sum()
            loss = loss / count
        if training:
            loss = loss * self.args.world_size  # DDP takes the mean over ranks, and the count is the sum over ranks
        return (loss, outputs) if return_outputs else loss

    def _masked(self, batch: dict[str, Any], epoch: int, step: int) -> dict[str, Any]:
        """Mask a padded batch on its device; with ``masking="worker"`` it is masked already."""
        packed = "cu_seq_lens_q" in batch
        if packed:  # the attention, and the collator, may have been replaced
            check_attention(self.model)
            check_width(batch["max_length_q"], self._places)
        elif "input_ids" in batch:
            check_width(batch["input_ids"].shape[1], self._places)
        if self.args.remove_unused_columns:  # Trainer removes them from a datasets.Dataset only
            if self._kept is None:
                self._set_signature_columns_if_needed()
                self._kept = OURS.union(self._signature_columns)
            kept = self._kept | PACKED if packed else self._kept
            batch = {name: value for name, value in batch.items() if name in kept}
        if self.masking == "worker":
            if "labels" not in batch:
                raise InputError(f"a batch came without labels (it has {', '.join(batch)}); was the collator replaced?")
            return batch
        masker = self.eval_masker if epoch == EVALUATION_EPOCH else self.masker
        if masker not in self._on_device:  # a masker that learns is a part of the model, on its device
            own = masker if masker.needs_model else copy.deepcopy(masker)
            self._on_device[masker] = own.to(batch["input_ids"].device)
        learning = masker.needs_model and epoch != EVALUATION_EPOCH
        rows, more = padded_inputs(masker, batch, epoch)
        self._on_device[masker].set_step(step)
        if masker.needs_model:
            # Learned weights change between evaluations, so evaluation masks do not use them. The saved model has no
            # context, so evaluation has none.
            more |= {"embeddings": self.model.get_input_embeddings(), "weighted": learning}
            masked, latents = self._on_device[masker].draw(*rows, **more)
            batch |= {"latents": latents} if learning else {}
        else:
            with torch.no_grad():
                masked = self._on_device[masker](*rows, **more)
        batch |= {"input_ids": masked.input_ids, "labels": masked.labels}
        if "masked_positions" in self._takes:
            batch["masked_positions"] = masked.masked_positions
        return batch

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the model, and beside it the masker if that has learnt with the model.

        Parameters
        ----------
        output_dir
            Folder. None: ``output_dir`` of the training arguments. A masker that learns is written to the file
            ``attention_masker.safetensors`` in it.
        _internal_call
            Whether ``Trainer`` calls this itself.
        """
        from corrmask_fast.training.mam_model import FILE, attached, detached

        masker = attached(self.model)
        checkpoint = _internal_call and output_dir is not None  # to resume from; push_to_hub gives no output_dir
        if masker is None or checkpoint:
            super().save_model(output_dir, _internal_call)
            return
        with detached(self.model):
            super().save_model(output_dir, _internal_call=True)
        if self.args.should_save:
            masker.save(Path(output_dir or self.args.output_dir) / FILE)
        if self.args.push_to_hub and not _internal_call:  # after all files are written
            self.push_to_hub(commit_message="Model save")

    def train(self, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Train the model, from the start or from a checkpoint.

        Parameters
        ----------
        resume_from_checkpoint
            Folder of a checkpoint, or True for the last one in the run's folder. None: train from the start.
        *args, **kwargs
            As for ``Trainer``.

        Returns
        -------
        transformers.trainer_utils.TrainOutput
            As of ``Trainer``.

        Raises
        ------
        InputError
            If the checkpoint is of another corpus, graph or seed, or one of its files is damaged or could run code.
        """
        folder = resume_from_checkpoint
        if folder is True:
            folder = transformers.trainer_utils.get_last_checkpoint(self.args.output_dir)
        self._callback.resumed_from = str(folder) if folder else None
        if folder:
            if self.train_dataset is not None:
                RunRecord.of(self.masker, self.train_dataset, self.args).check_folder(folder)
            check_checkpoint(folder, self.model, whole=self.resumes_whole)
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def _load_optimizer_and_scheduler(self, checkpoint: Any) -> None:
        """Load them; states of another optimizer, or with damaged values, are refused."""
        with readable(f"{checkpoint}: optimizer.pt or scheduler.pt", KIND):
            super()._load_optimizer_and_scheduler(checkpoint)


def _the_collator(
    collator: Any, masker: Any, multiple: int | None, masking: str
) -> DataCollatorForCorrMask | PaddingCollator:
    """Return the given collator, or a new one with the given masker."""
    pads = isinstance(collator, PaddingCollator) and masker is not None and masking == "device"
    if (collator is None) == (masker is None) and not pads:
        raise InputError("CorrMaskTrainer needs one of masker and data_collator: masker=CorrMasker(graph)")
    if collator is None and not masker.needs_model:
        return DataCollatorForCorrMask(masker, pad_to_multiple_of=multiple)
    if collator is None:
        collator, multiple, pads = PaddingCollator(masker.vocabulary, pad_to_multiple_of=multiple), None, True
    if pads:
        collator.vocabulary.check_same(masker.vocabulary, "the collator", "the masker")
        check_graph_column(masker, collator.graph_column, collator.graph_numbers)
    if not pads and not isinstance(collator, DataCollatorForCorrMask):
        raise InputError(f"data_collator must be a DataCollatorForCorrMask; got {type(collator).__name__}")
    if not pads and collator.hides_values:
        raise InputError(
            f"CorrMaskTrainer's loss is that of masked ids, and a {type(collator).__name__} hides values; use "
            "transformers.Trainer with a model that computes its own loss, and callbacks=[CorrMaskCallback(collator)]"
        )
    if multiple is not None:
        raise InputError("pad_to_multiple_of goes with masker; set it in the data_collator instead")
    return collator
