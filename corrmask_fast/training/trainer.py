"""Pretraining with Hugging Face's Trainer: one that knows epochs, freezes held-out masks, and masks on the device.

Runs with transformers 4.46 to 5: nothing is imported that one of them lacks, and what they call is overridden with the
signature left open.
"""

from __future__ import annotations

import copy
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import SequentialSampler

from corrmask_fast.errors import InputError, import_extra
from corrmask_fast.masking.collator import DataCollatorForCorrMask, PaddingCollator, check_graph_column
from corrmask_fast.masking.engine.draws import draws_of_tensors
from corrmask_fast.masking.engine.torch_random import draw_ids_by_values
from corrmask_fast.training.callback import CorrMaskCallback, batches_of
from corrmask_fast.training.checks import check_learning, check_model, parameters_of
from corrmask_fast.training.losses import logits_of, summed_by_row, targets_of
from corrmask_fast.training.run_record import is_stream
from corrmask_fast.training.sampling import (
    LengthGroupedSampler,
    ShuffledSampler,
    cell_lengths,
    data_seed,
    groups_by_length,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch.utils.data import Sampler

    from corrmask_fast.masking.base import Masker

transformers: Any = import_extra("transformers", "hf")

__all__ = ["EVALUATION_EPOCH", "CorrMaskCallback", "CorrMaskTrainer"]

# The epoch of evaluation masks: no training run gets there, and every evaluation sees the same masks.
EVALUATION_EPOCH = 2**63 - 1
LAST_STEP = 2**53  # and its schedules, if it has any, are at their ends
# What collators and masks bring to a batch, whether the model's signature names it or not.
OURS = frozenset(
    {"input_ids", "attention_mask", "labels", "masked_positions", "special_tokens_mask", "graph_ids", "mask_epoch"}
)


class CorrMaskTrainer(transformers.Trainer):
    """Hugging Face's Trainer for masked language modelling of cells.

    Beside the stock one: knows epochs (:class:`CorrMaskCallback`), masks on the device or in the workers with the
    same result, freezes the masks of evaluation, orders the cells by a seed and the epoch alone, and takes the mean
    loss over all masked tokens of a step: accumulated batches and ranks together give the gradient of one large batch
    (stock 4.46 and 5 sum the means of accumulated batches for BERT).

    Parameters
    ----------
    model, args, data_collator, train_dataset, eval_dataset, **kwargs
        As for ``Trainer``. ``data_collator`` is a :class:`~corrmask_fast.DataCollatorForCorrMask`; with ``masker``
        and ``masking="device"`` it may be a :class:`~corrmask_fast.PaddingCollator`, which names a ``graph_column``.
    masker
        In place of ``data_collator``: the masking strategy. A :class:`~corrmask_fast.MultinomialAttentionMasker` is
        trained with the model, as a part of it, and saved in its checkpoints (``training.mam_model``).
    masking
        ``"worker"``: the collator masks, in worker processes where there are some. ``"device"``: the collator pads,
        and the step masks on the model's device.
    pad_to_multiple_of
        With ``masker``: round a batch's width up to a multiple of this.

    Notes
    -----
    Grouping by length is asked for as usual: ``group_by_length`` in transformers 4, ``train_sampling_strategy`` in 5.
    A model whose ``forward`` takes ``masked_positions`` gets them; one that projects at labels alone (ModernBERT's
    ``sparse_prediction``) gets the labels. Each pass over a stream has masks of its own.

    The loss of an evaluation is the mean over its masked genes, whatever the size of its batches, and
    ``compute_metrics`` gets the labels of the columns that logits are of. Where the masker learns, evaluation is of the
    model that :meth:`save_model` writes, without the latents' context, and masks all genes alike: by learned weights,
    losses of one evaluation would not compare with those of the next.

    Under several processes an epoch's last step is filled up with that epoch's first cells; ``dataloader_drop_last``
    leaves the rest out instead.

    Raises
    ------
    InputError
        If collator, masker, model, corpus and arguments do not fit each other.
    """

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
        pad_to_multiple_of: int | None = None,
        **kwargs: Any,
    ) -> None:
        if masking not in {"worker", "device"}:
            raise InputError(f"masking must be 'worker' or 'device'; got {masking!r}")
        if masker is not None and masker.needs_model:
            check_learning(masker, model, masking)
        collator: Any = _the_collator(data_collator, masker, pad_to_multiple_of, masking)
        self.masker: Any = collator.masker if masker is None else masker
        self.masking = masking
        if masking == "device" and getattr(collator, "compat", None):
            raise InputError("compat='geneformer' masks in the collator; use masking='worker' with it")
        if masking == "worker" and self.masker.has_schedule:
            raise InputError(
                "the masker's rates go by the step, and workers prepare batches ahead of it; use masking='device'"
            )
        super().__init__(model, args, collator, train_dataset, eval_dataset, **kwargs)
        self._check_arguments()
        held_out = eval_dataset.values() if isinstance(eval_dataset, dict) else [eval_dataset]
        for dataset in (train_dataset, *held_out):
            check_model(self.model, self.masker, dataset)
        if self.masker.needs_model:  # behind all checks: a model that is refused is left as it was
            from corrmask_fast.training.mam_model import attach

            attach(self.masker, self.model)  # type: ignore[arg-type]
        parameters = parameters_of(self.model)
        self._takes = {name for name in ("masked_positions", "num_items_in_batch") if name in parameters}
        # A model that projects at the labels alone (ModernBERT's sparse_prediction) has to see them.
        self._projects_at_labels = "labels" in parameters and bool(getattr(self.model, "sparse_prediction", False))
        if self.args.label_names is None:
            self.label_names = ["labels"]  # those of a second task would be waited for
        self._set_up_collators(collator)
        # Trainer shall leave accumulated losses as they are: compute_loss divides by what get_batch_samples counted.
        self.model_accepts_loss_kwargs = True
        self._callback = CorrMaskCallback(self)
        if isinstance(collator, DataCollatorForCorrMask):
            self._callback.listeners.append(collator)
        self.add_callback(self._callback)
        if self.accelerator.dispatch_batches is None and self.args.world_size > 1:
            # Rank 0 would read a stream for all, and cannot join batches of several widths: each reads it for itself.
            self.accelerator.dataloader_config.dispatch_batches = False
        self._epoch, self._steps_of_pass = 0, 0
        self._whole_logits = False  # whether an evaluation hands out logits, or their loss alone
        self._row_sums, self._targets = torch.zeros(0, 2), torch.zeros(0)  # of the batch that was evaluated last
        self._held_out = torch.zeros(2, dtype=torch.float64)  # summed loss and masked genes of an evaluation
        self._on_device: Any = None  # the masker there; never part of the model, which DDP wraps and broadcasts

    def _check_arguments(self) -> None:
        """Refuse what would not do what it says."""
        if self.args.label_smoothing_factor or self.compute_loss_func is not None:
            raise InputError(
                "CorrMaskTrainer computes the masked language modelling loss itself; leave out label_smoothing_factor "
                "and compute_loss_func, or use transformers.Trainer with CorrMaskCallback"
            )
        if self.args.n_gpu > 1:
            raise InputError(
                f"{self.args.n_gpu} GPUs in one process would train by DataParallel, which splits batches after they "
                "were counted; start one process a GPU: torchrun --nproc-per-node=auto …, or set CUDA_VISIBLE_DEVICES"
            )

        if groups_by_length(self.args) and is_stream(self.train_dataset):
            raise InputError(
                "a stream cannot be grouped by length; leave out group_by_length, or give a dataset with a length"
            )

    def _set_up_collators(self, collator: Any) -> None:
        """Choose the collators of training and of evaluation."""
        if self.masking == "device":
            pads = isinstance(collator, PaddingCollator)
            self.data_collator: Any = collator if pads else PaddingCollator.like(collator)
            self._eval_collator: Any = self.data_collator
            return
        if "masked_positions" in self._takes and not collator.compat:
            collator = copy.copy(collator)  # it still hears of the epochs of the one that was given
            collator.return_masked_positions = True
        self.data_collator = collator
        self._eval_collator = collator.frozen(EVALUATION_EPOCH)

    def set_epoch(self, epoch: int) -> None:
        """Hear of the epoch: the callback calls this."""
        self._epoch, self._steps_of_pass = epoch, 0

    # ---------------------------------------------------------------------------------------------------------- data

    def _get_train_sampler(self, *args: Any) -> Sampler[int] | None:
        """Return our samplers for shuffled cells and for cells grouped by length; else what Trainer takes."""
        dataset = args[0] if args else self.train_dataset
        strategy = getattr(self.args, "train_sampling_strategy", "random")  # transformers 5
        if dataset is None or not hasattr(dataset, "__len__") or strategy not in {"random", "group_by_length"}:
            return super()._get_train_sampler(*args)
        seed = data_seed(self.args)
        if groups_by_length(self.args):
            together = self._train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
            # Columns that the model does not take, the lengths among them, are gone from the dataset given.
            lengths = cell_lengths(self.train_dataset, self.args.length_column_name or "length")
            sampler: ShuffledSampler = LengthGroupedSampler(lengths, together, seed=seed)
        else:
            sampler = ShuffledSampler(len(dataset), seed=seed)
        self._callback.listeners = [one for one in self._callback.listeners if not isinstance(one, ShuffledSampler)]
        self._callback.listeners.append(sampler)
        return sampler

    def _get_eval_sampler(self, eval_dataset: Any) -> Sampler[int] | None:
        """Return cells in their order, grouped by length or not."""
        if eval_dataset is None or not hasattr(eval_dataset, "__len__") or self.args.world_size > 1:
            return None
        return SequentialSampler(eval_dataset)

    def get_eval_dataloader(self, *args: Any, **kwargs: Any) -> Any:
        """Return the loader of an evaluation: masks are those of one epoch that training never reaches."""
        with self._held_out_masks():
            return super().get_eval_dataloader(*args, **kwargs)

    def get_test_dataloader(self, *args: Any, **kwargs: Any) -> Any:
        """Return the loader of a prediction: with the masks of an evaluation."""
        with self._held_out_masks():
            return super().get_test_dataloader(*args, **kwargs)

    @contextmanager
    def _held_out_masks(self) -> Iterator[None]:
        training, self.data_collator = self.data_collator, self._eval_collator
        try:
            yield
        finally:
            self.data_collator = training

    def _set_signature_columns_if_needed(self) -> None:
        """Keep the columns that the collator needs, beside those that the model takes."""
        super()._set_signature_columns_if_needed()
        column = getattr(self.data_collator, "graph_column", None)
        needed = ["attention_mask", "special_tokens_mask", *([] if column is None else [column])]
        known: list[str] = self._signature_columns  # type: ignore[has-type]
        self._signature_columns = [*known, *(name for name in needed if name not in known)]

    # ------------------------------------------------------------------------------------------------------ the step

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, *args: Any) -> tuple[list[Any], Any]:
        """Return a step's batches, masked, and the number of masked tokens in all of them, over all ranks.

        Batches at the end of a stream that are too few for a step are left out: Trainer would add them to the next.
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
        """Evaluate or predict; the loss is the mean over all masked genes, whatever the size of the batches."""
        self._held_out = torch.zeros(2, dtype=torch.float64)
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        if f"{metric_key_prefix}_loss" in output.metrics:
            total, count = self._held_out.tolist()
            output.metrics[f"{metric_key_prefix}_loss"] = total / max(count, 1)
        return output

    def prediction_step(
        self, model: Any, inputs: Any, prediction_loss_only: bool, *args: Any, **kwargs: Any
    ) -> tuple[Any, Any, Any]:
        """Evaluate a batch, masked as in :data:`EVALUATION_EPOCH`, at the rates with which schedules end.

        Labels are those of the columns that logits are of: all, or the ``masked_positions``.
        """
        inputs, self._whole_logits = self._prepare_input(inputs), not prediction_loss_only
        inputs = self._masked(inputs, EVALUATION_EPOCH, LAST_STEP)
        loss, logits, labels = super().prediction_step(model, inputs, prediction_loss_only, *args, **kwargs)
        # Where ranks fill a last batch up with cells that were there before, those are taken off again.
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
        """Return the cross-entropy summed over the batch's masked tokens, over ``num_items_in_batch``.

        Without a count (and in evaluation) over the batch's own masked tokens; 0 where there are none.
        """
        labels, training = inputs["labels"], model.training
        count = num_items_in_batch if training and num_items_in_batch is not None else (labels != -100).sum()
        count = torch.as_tensor(count, device=labels.device).clamp(min=1)
        if training and "num_items_in_batch" in self._takes:
            outputs = model(**inputs, num_items_in_batch=count)
            loss = outputs["loss"]
        else:
            shown = self._projects_at_labels and (training or not self._whole_logits)
            outputs = model(**(inputs if shown else {name: inputs[name] for name in inputs if name != "labels"}))
            logits = logits_of(outputs, behind_loss=shown)
            targets, rows = targets_of(logits, labels, inputs.get("masked_positions"))
            if training:
                loss = cross_entropy(logits.flatten(0, -2), targets.flatten(), ignore_index=-100, reduction="sum")
            else:
                self._row_sums, self._targets = summed_by_row(logits, targets, rows, len(labels)), targets
                loss = self._row_sums[:, 0].sum()
            loss = loss / count
        if training:
            loss = loss * self.args.world_size  # DDP takes the mean over ranks; the count is of all of them
        return (loss, outputs) if return_outputs else loss

    def _masked(self, batch: dict[str, Any], epoch: int, step: int) -> dict[str, Any]:
        """Mask a padded batch where it lies; a batch that comes with labels is left as it is."""
        if self.args.remove_unused_columns:  # of a CorpusDataset too, whose rows Trainer does not look into
            self._set_signature_columns_if_needed()
            batch = {name: value for name, value in batch.items() if name in self._signature_columns or name in OURS}
        if self.masking == "worker":
            if "labels" not in batch:
                raise InputError(f"a batch came without labels (it has {', '.join(batch)}); was the collator replaced?")
            return batch
        if self._on_device is None:  # one that learns is a part of the model, and there with it
            twin = self.masker if self.masker.needs_model else copy.deepcopy(self.masker)
            self._on_device = twin.to(batch["input_ids"].device)
        more: dict[str, Any] = {"graph_ids": batch.pop("graph_ids")} if "graph_ids" in batch else {}
        learning = self.masker.needs_model and epoch != EVALUATION_EPOCH
        epoch = batch.pop("mask_epoch")[:1] if "mask_epoch" in batch else epoch  # the dataset's own
        more["epoch"] = epoch
        if any(value.is_floating_point() for value in batch.values()):
            salt, *_ = draws_of_tensors(0, None, epoch, self.masker.draw_counter, batch["input_ids"].device)
            draws = draw_ids_by_values(self.masker.vocabulary, batch, salt)
            more |= {} if draws is None else {"draw_ids": draws, "epoch": None}
        self._on_device.set_step(step)
        rows = batch["input_ids"], batch["attention_mask"], batch.pop("special_tokens_mask", None)
        if self.masker.needs_model:
            # What was learned changes from one evaluation to the next: their masks do not go by it. Nor is there a
            # context in the model that is saved, and it is that one whose loss is wanted.
            more |= {"embeddings": self.model.get_input_embeddings(), "weighted": learning}
            masked, latents = self._on_device.draw(*rows, **more)
            batch |= {"latents": latents} if learning else {}
        else:
            with torch.no_grad():
                masked = self._on_device(*rows, **more)
        batch |= {"input_ids": masked.input_ids, "labels": masked.labels}
        if "masked_positions" in self._takes:
            batch["masked_positions"] = masked.masked_positions
        return batch

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the model; a masker that is a part of it comes beside it, into ``attention_masker.safetensors``."""
        from corrmask_fast.training.mam_model import FILE, attached, detached

        masker = attached(self.model)
        checkpoint = _internal_call and output_dir is not None  # and not push_to_hub: training goes on from it
        if masker is None or checkpoint:
            super().save_model(output_dir, _internal_call)
            return
        with detached(self.model):
            super().save_model(output_dir, _internal_call=True)
        if self.args.should_save:
            masker.save(Path(output_dir or self.args.output_dir) / FILE)
        if self.args.push_to_hub and not _internal_call:  # when all is there; it saves into args.output_dir as well
            self.push_to_hub(commit_message="Model save")

    def train(self, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Train; a checkpoint of another corpus, graph or seed is refused."""
        self._callback.resumed_from = resume_from_checkpoint if isinstance(resume_from_checkpoint, str) else None
        return super().train(resume_from_checkpoint, *args, **kwargs)


def _the_collator(
    collator: Any, masker: Any, multiple: int | None, masking: str
) -> DataCollatorForCorrMask | PaddingCollator:
    """Return the collator given, or one over the masker given."""
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
    if multiple is not None:
        raise InputError("pad_to_multiple_of goes with masker; give it to the data_collator itself")
    return collator
