"""Pretraining with Hugging Face's Trainer: a callback for the stock one, and a Trainer that masks on the device.

Runs with transformers 4.46 to 5: nothing is imported that one of them lacks, and what they call is overridden with the
signature left open.
"""

from __future__ import annotations

import copy
import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import SequentialSampler

from corrmask_fast.errors import InputError, import_extra
from corrmask_fast.masking.collator import DataCollatorForCorrMask, PaddingCollator, check_graph_column
from corrmask_fast.masking.schedules import parse_rate, rate_text
from corrmask_fast.training.run_record import RunRecord, check_model
from corrmask_fast.training.sampling import (
    LengthGroupedSampler,
    ShuffledSampler,
    cell_lengths,
    data_seed,
    groups_by_length,
)

if TYPE_CHECKING:
    from torch.utils.data import Sampler

    from corrmask_fast.masking.base import Masker

transformers: Any = import_extra("transformers", "hf")

__all__ = ["EVALUATION_EPOCH", "CorrMaskCallback", "CorrMaskTrainer"]

# The epoch of evaluation masks: no training run gets there, and every evaluation sees the same masks.
EVALUATION_EPOCH = 2**63 - 1
LAST_STEP = 2**53  # and its schedules, if it has any, are at their ends


class CorrMaskCallback(transformers.TrainerCallback):
    """Tell a collator the epoch (and the step, where its masker has a schedule); give it to any ``Trainer``.

    Trainer tells no collator what epoch it is. With this callback a cell's mask follows from the masker's seed, the
    epoch and the cell, whatever the number of workers and ranks, and in a resumed run too. Each checkpoint gets a
    file ``corrmask.json``; resuming with another corpus, graph or seed is refused.

    Parameters
    ----------
    collator
        The run's collator.

    Examples
    --------
    >>> from corrmask_fast import CorrMasker, DataCollatorForCorrMask, DependencyGraph, Vocabulary
    >>> genes = Vocabulary(("<pad>", "<mask>", *(f"G{i}" for i in range(8))))
    >>> collator = DataCollatorForCorrMask(CorrMasker(DependencyGraph.from_edges([("G0", "G1")], genes)))
    >>> callback = CorrMaskCallback(collator)  # Trainer(…, data_collator=collator, callbacks=[callback])
    """

    def __init__(self, collator: Any) -> None:
        if not hasattr(collator, "set_epoch"):
            raise InputError(f"CorrMaskCallback needs a DataCollatorForCorrMask; got {type(collator).__name__}")
        self.masker = collator.masker
        self.listeners = [collator]  # all that want to know the epoch
        self.resumed_from: str | None = None
        self._epoch: int | None = None
        self._record: RunRecord | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Check that model, corpus and masker fit each other, and the checkpoint where there is one."""
        loader, self._epoch = kwargs["train_dataloader"], None
        check_model(kwargs["model"], self.masker, loader.dataset)
        self._record = RunRecord.of(self.masker, loader.dataset, args)
        if state.global_step:
            folder = self.resumed_from or f"{args.output_dir}/checkpoint-{state.global_step}"
            self._record.check_folder(folder)

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Pass the epoch on."""
        if self._epoch is None:
            self._epoch = state.global_step // _updates_an_epoch(kwargs["train_dataloader"], args)
        else:
            self._epoch += 1
        for listener in self.listeners:
            listener.set_epoch(self._epoch)
        self._pass_step_on(state.global_step)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Pass the step on."""
        self._pass_step_on(state.global_step)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Put the run's record beside the weights."""
        if state.is_world_process_zero and self._record is not None:
            self._record.write_to(f"{args.output_dir}/checkpoint-{state.global_step}")

    def _pass_step_on(self, step: int) -> None:
        for listener in self.listeners:
            if hasattr(listener, "set_step"):
                listener.set_step(step)


def _updates_an_epoch(loader: Any, args: Any) -> int:
    """Return Trainer's number of optimizer steps an epoch; before 4.49 it left out accumulations cut short."""
    batches, together = len(loader), args.gradient_accumulation_steps
    whole = (
        -(-batches // together)
        if hasattr(transformers.Trainer, "set_initial_training_values")
        else (batches // together)
    )
    return max(whole, 1)


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
    A model whose ``forward`` takes ``masked_positions`` gets them. Where the masker learns, evaluation is of the model
    that :meth:`save_model` writes, without the latents' context, and masks all genes alike: by learned weights, losses
    of one evaluation would not compare with those of the next. Under several processes an
    epoch's last step is filled up with that epoch's first cells; ``dataloader_drop_last`` leaves the rest out instead.

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
            _check_learning(masker, model, masking)
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
        for dataset in (train_dataset, eval_dataset):
            check_model(self.model, self.masker, dataset)
        if self.masker.needs_model:  # behind all checks: a model that is refused is left as it was
            from corrmask_fast.training.mam_model import attach

            attach(self.masker, self.model)  # type: ignore[arg-type]
        parameters = inspect.signature(self.model.forward).parameters
        self._takes = {name for name in ("masked_positions", "num_items_in_batch") if name in parameters}
        self._set_up_collators(collator)
        # Trainer shall leave accumulated losses as they are: compute_loss divides by what get_batch_samples counted.
        self.model_accepts_loss_kwargs = True
        self._callback = CorrMaskCallback(self)
        if isinstance(collator, DataCollatorForCorrMask):
            self._callback.listeners.append(collator)
        self.add_callback(self._callback)
        self._epoch = 0
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
        self._epoch = epoch

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
        training, self.data_collator = self.data_collator, self._eval_collator
        try:
            return super().get_eval_dataloader(*args, **kwargs)
        finally:
            self.data_collator = training

    # ------------------------------------------------------------------------------------------------------ the step

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, *args: Any) -> tuple[list[Any], Any]:
        """Return a step's batches, masked, and the number of masked tokens in all of them, over all ranks."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, *args)
        if not batches:
            return batches, None
        batches = [self._masked(self._prepare_input(batch), self._epoch, self.state.global_step) for batch in batches]
        count = sum((batch["labels"] != -100).sum() for batch in batches)
        if self.args.world_size > 1:
            count = self.accelerator.gather(count.reshape(1)).sum()
        return batches, count

    def prediction_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Evaluate a batch, masked as in :data:`EVALUATION_EPOCH`, at the rates with which schedules end."""
        return super().prediction_step(
            model, self._masked(self._prepare_input(inputs), EVALUATION_EPOCH, LAST_STEP), *args, **kwargs
        )

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return the cross-entropy summed over the batch's masked tokens, over ``num_items_in_batch``.

        Without a count (and in evaluation) over the batch's own masked tokens; 0 where there are none.
        """
        labels = inputs["labels"]
        count = num_items_in_batch if model.training and num_items_in_batch is not None else (labels != -100).sum()
        count = torch.as_tensor(count, device=labels.device).clamp(min=1)
        if "num_items_in_batch" in self._takes:
            outputs = model(**inputs, num_items_in_batch=count)
            loss = outputs["loss"]
        else:
            outputs = model(**{name: value for name, value in inputs.items() if name != "labels"})
            logits = outputs["logits"] if isinstance(outputs, dict) else outputs[0]
            loss = cross_entropy(logits.flatten(0, -2), labels.flatten(), ignore_index=-100, reduction="sum") / count
        if model.training:
            loss = loss * self.args.world_size  # DDP takes the mean over ranks; the count is of all of them
        return (loss, outputs) if return_outputs else loss

    def _masked(self, batch: dict[str, Any], epoch: int, step: int) -> dict[str, Any]:
        """Mask a padded batch where it lies; a batch that comes with labels is left as it is."""
        if self.masking == "worker":
            if "labels" not in batch:
                raise InputError(f"a batch came without labels (it has {', '.join(batch)}); was the collator replaced?")
            return batch
        if self._on_device is None:  # one that learns is a part of the model, and there with it
            twin = self.masker if self.masker.needs_model else copy.deepcopy(self.masker)
            self._on_device = twin.to(batch["input_ids"].device)
        more = {"graph_ids": batch.pop("graph_ids")} if "graph_ids" in batch else {}
        self._on_device.set_step(step)
        rows = batch["input_ids"], batch["attention_mask"], batch.pop("special_tokens_mask", None)
        if self.masker.needs_model:
            # What was learned changes from one evaluation to the next: their masks do not go by it. Nor is there a
            # context in the model that is saved, and it is that one whose loss is wanted.
            learning = epoch != EVALUATION_EPOCH
            more |= {"embeddings": self.model.get_input_embeddings(), "weighted": learning}
            masked, latents = self._on_device.draw(*rows, epoch=epoch, **more)
            batch |= {"latents": latents} if learning else {}
        else:
            with torch.no_grad():
                masked = self._on_device(*rows, epoch=epoch, **more)
        batch |= {"input_ids": masked.input_ids, "labels": masked.labels}
        if "masked_positions" in self._takes:
            batch["masked_positions"] = masked.masked_positions
        return batch

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the model; a masker that is a part of it comes beside it, into ``attention_masker.safetensors``."""
        from corrmask_fast.training.mam_model import FILE, attached, taken_off

        masker = attached(self.model)
        checkpoint = _internal_call and output_dir is not None  # and not push_to_hub: training goes on from it
        if masker is None or checkpoint:
            super().save_model(output_dir, _internal_call)
            return
        with taken_off(self.model):
            super().save_model(output_dir, _internal_call=True)
        if self.args.should_save:
            masker.save(Path(output_dir or self.args.output_dir) / FILE)
        if self.args.push_to_hub and not _internal_call:  # when all is there; it saves into args.output_dir as well
            self.push_to_hub(commit_message="Model save")

    def train(self, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Train; a checkpoint of another corpus, graph or seed is refused."""
        self._callback.resumed_from = resume_from_checkpoint if isinstance(resume_from_checkpoint, str) else None
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def _load_rng_state(self, checkpoint: Any) -> None:
        """Restore the random generators: 4.46 saves NumPy's as arrays, which torch.load refuses since 2.6."""
        arrays: list[Any] = [np.ndarray, np.dtype, type(np.dtype(np.uint32)), np.empty(0).__reduce__()[0]]
        with torch.serialization.safe_globals(arrays):
            super()._load_rng_state(checkpoint)


def _check_learning(masker: Any, model: Any, masking: str) -> None:
    """Raise InputError unless a masker that learns can do so here, and be saved in the end."""
    name = type(masker).__name__
    if masking == "worker":
        raise InputError(f"{name} masks by the model's embeddings, which workers do not have; use masking='device'")
    if model is None:
        raise InputError(f"{name} learns with one model; give model=, in place of model_init")
    for rate in (masker.mlm_probability, masker.structural_ratio):
        # One that could not be read back with the masker is refused before the training, not behind it.
        if parse_rate(str(rate_text(rate))) != rate:
            raise InputError(f"{rate!r} could not be saved with the masker; use a number, a range, Linear or Cosine")


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
