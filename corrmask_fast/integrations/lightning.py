"""Pretraining with Lightning: masks that follow the epoch, also after a resume; masking on the device."""

from __future__ import annotations

import copy
import importlib.util
from typing import TYPE_CHECKING, Any

import torch

from corrmask_fast.errors import InputError, import_extra, readable, shown
from corrmask_fast.masking.collator import check_epoch
from corrmask_fast.masking.padded_batch import EVALUATION_EPOCH, LAST_STEP, padded_inputs
from corrmask_fast.training.run_record import check_same, masks_record

if TYPE_CHECKING:
    from collections.abc import Iterable

    from corrmask_fast.masking.base import Masker

PACKAGE = "lightning.pytorch" if importlib.util.find_spec("lightning") else "pytorch_lightning"
lightning: Any = import_extra(PACKAGE, "lightning")

__all__ = ["CorrMaskLightningCallback"]


class CorrMaskLightningCallback(lightning.Callback):
    """Callback of Lightning's ``Trainer`` that passes epoch and step to the collator, or masks on the device.

    With it a cell's mask depends on seed, epoch and cell alone, also in a resumed run. Lightning does not pass the
    epoch to the collator, and it fetches the first batches of an epoch before it calls its hooks of that epoch. This
    callback sets the epoch before that. It works with the packages ``lightning`` and ``pytorch_lightning``.

    Parameters
    ----------
    collator
        The ``collate_fn`` of the training DataLoader: a :class:`~corrmask_fast.DataCollatorForCorrMask`. The
        DataLoaders of validation and test must have ``collator.frozen()``.
    masker
        In place of ``collator``, to mask on the module's device. The DataLoaders have a
        :class:`~corrmask_fast.PaddingCollator`. The steps of training, validation and test get ``input_ids``,
        ``labels`` and ``masked_positions``. Masks of validation and test are frozen. Schedules follow
        ``trainer.global_step``.
    listeners
        Other objects with ``set_epoch`` that choose the cells of the training DataLoader: a ``ShuffledSampler`` (of
        ``corrmask_fast.training.sampling``), a :class:`~corrmask_fast.PackedBatchSampler` or a
        :class:`~corrmask_fast.CorpusStream`. Lightning sets the epoch of samplers too late after a resume, and never
        sets that of batch samplers and streams.

    Attributes
    ----------
    epoch : int
        Epoch of the batches that are fetched now. ``trainer.current_epoch`` can be smaller after a resume with
        ``max_steps``.

    Raises
    ------
    InputError
        If both of ``collator`` and ``masker`` are given, or none, or one does not fit. In the run: if the training
        DataLoader has another collator, if validation or test has that of training, if something else changes the
        epoch, or if a checkpoint has another seed, strategy or graph.

    See Also
    --------
    CorrMaskTrainer : Hugging Face's Trainer with masks that follow the epoch.

    Examples
    --------
    >>> from corrmask_fast import CorrMaskLightningCallback, CorrMasker, DataCollatorForCorrMask, DependencyGraph
    >>> from corrmask_fast.testing import make_vocabulary
    >>> graph = DependencyGraph.from_edges([("G0", "G1")], make_vocabulary(8))
    >>> collator = DataCollatorForCorrMask(CorrMasker(graph))
    >>> callback = CorrMaskLightningCallback(collator)  # Trainer(callbacks=[callback], …)
    >>> callback.epoch
    0
    """

    def __init__(self, collator: Any = None, *, masker: Masker | None = None, listeners: Iterable[Any] = ()) -> None:
        if (collator is None) == (masker is None):
            raise InputError(
                "CorrMaskLightningCallback needs one of collator, which masks in the DataLoader, and masker, which "
                "masks on the device"
            )
        if collator is not None and not (hasattr(collator, "set_epoch") and hasattr(collator, "masker")):
            raise InputError(
                f"collator must be a DataCollatorForCorrMask; got {type(collator).__name__}; behind a PaddingCollator, "
                "give masker= instead: it masks on the device"
            )
        if masker is not None and masker.needs_model:
            raise InputError(f"{type(masker).__name__} learns with the model; train it with CorrMaskTrainer")
        self.listeners = [*listeners, *([] if collator is None else [collator])]  # all that get the epoch
        for listener in self.listeners:
            if not hasattr(listener, "set_epoch"):
                raise InputError(f"listeners must have set_epoch; got {type(listener).__name__}; leave it out")
        self.collator = collator
        self.masker: Masker = collator.masker if masker is None else masker
        self.epoch = 0  # of the batches that are fetched now
        self._checked: Any = None  # the training DataLoader that was checked last
        self._on_device: Any = None  # the masker there; no part of the module: DDP broadcasts buffers

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:  # noqa: ARG002
        """Set the epoch in which the run starts, unless a checkpoint says otherwise.

        Parameters
        ----------
        trainer, pl_module, stage
            What Lightning passes to every callback.
        """
        if stage == "fit":
            self._checked = None
            self._set(_epoch_of(trainer), trainer.global_step)

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:  # noqa: ARG002
        """Set the epoch in which a resumed run goes on; Lightning restores its own epoch later.

        Parameters
        ----------
        trainer, pl_module, checkpoint
            What Lightning passes to every callback.

        Raises
        ------
        InputError
            If the checkpoint has another seed, strategy or graph, or is damaged.
        """
        if trainer.state.fn != "fit":
            return
        saved = checkpoint["callbacks"].get(self.state_key)
        with readable("the checkpoint", "checkpoint of Lightning"):
            if saved is not None:  # None: it is of a run without this callback
                check_same("the checkpoint", saved, masks_record(self.masker))
            self._set(_epoch_to_go_on(checkpoint["loops"]["fit_loop"]), checkpoint["global_step"])

    def on_train_epoch_end(self, trainer: Any, *_: Any) -> None:
        """Set the next epoch: its first batches are fetched before it starts.

        Parameters
        ----------
        trainer, *_
            What Lightning passes to every callback.
        """
        self._set(_epoch_of(trainer), trainer.global_step)

    def state_dict(self) -> dict[str, Any]:
        """Return what decides the masks, for the checkpoint.

        Returns
        -------
        dict
            The masker with its seed and settings, and digests of its vocabulary and graph.
        """
        return masks_record(self.masker)

    def _set(self, epoch: int, step: int) -> None:
        self.epoch = epoch
        for listener in self.listeners:
            listener.set_epoch(epoch)
        self._set_step(step)

    def _set_step(self, step: int) -> None:
        if hasattr(self.collator, "set_step"):
            self.collator.set_step(step)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, *_: Any) -> None:  # noqa: ARG002
        """Check that the batch has the masks of this epoch; with ``masker``, mask it.

        Parameters
        ----------
        trainer, pl_module, batch, *_
            What Lightning passes to every callback.

        Raises
        ------
        InputError
            If the DataLoader has another collator, or the epoch is not the one that this callback has set.
        """
        if (loaders := trainer.train_dataloader) is not self._checked:
            self._check_training(loaders)
            self._checked = loaders
        if self.epoch != (now := _epoch_of(trainer)):
            raise InputError(
                f"Lightning is in epoch {now}, and its batches have the masks of epoch {self.epoch}; this version of "
                "Lightning resumes in a way that is not known here: resume from a checkpoint of an epoch's end"
            )
        if self.collator is None:
            self._mask(batch, self.epoch, trainer.global_step)
        else:
            check_epoch(self.collator, self.epoch)

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        """Pass the step to a collator whose masker has a schedule.

        Parameters
        ----------
        trainer, *_
            What Lightning passes to every callback.
        """
        self._set_step(trainer.global_step)

    def on_validation_start(self, trainer: Any, *_: Any) -> None:
        """Check that the masks of validation are not those of training.

        Parameters
        ----------
        trainer, *_
            What Lightning passes to every callback.

        Raises
        ------
        InputError
            If the DataLoader of validation has the collator of training.
        """
        self._check_held_out(trainer.val_dataloaders, "validation")

    def on_test_start(self, trainer: Any, *_: Any) -> None:
        """Check that the masks of a test are not those of training.

        Parameters
        ----------
        trainer, *_
            What Lightning passes to every callback.

        Raises
        ------
        InputError
            If the DataLoader of the test has the collator of training.
        """
        self._check_held_out(trainer.test_dataloaders, "test")

    def on_validation_batch_start(self, trainer: Any, pl_module: Any, batch: Any, *_: Any) -> None:  # noqa: ARG002
        """With ``masker``, mask a batch of validation or test: the same masks in every epoch.

        Parameters
        ----------
        trainer, pl_module, batch, *_
            What Lightning passes to every callback.

        Raises
        ------
        InputError
            If the batch is not one of a :class:`~corrmask_fast.PaddingCollator`.
        """
        if self.collator is None:
            self._mask(batch, EVALUATION_EPOCH, LAST_STEP)

    on_test_batch_start = on_validation_batch_start

    def _mask(self, batch: Any, epoch: int, step: int) -> None:
        if not isinstance(batch, dict) or "input_ids" not in batch or "labels" in batch:
            found = ", ".join(map(str, batch)) if isinstance(batch, dict) else type(batch).__name__
            raise InputError(f"masker= masks batches of a PaddingCollator, dicts without labels; got {shown(found)}")
        device = batch["input_ids"].device
        if self._on_device is None or self._on_device.rate_bits.device != device:
            self._on_device = copy.deepcopy(self.masker).to(device)
        self._on_device.set_step(step)
        rows, more = padded_inputs(self._on_device, batch, epoch)
        with torch.no_grad():
            batch |= self._on_device(*rows, **more)._asdict()

    def _check_training(self, loaders: Any) -> None:
        for loader in _flat(loaders):
            found = getattr(loader, "collate_fn", self.collator)  # a loader of another package may have none
            masks, name = hasattr(found, "set_epoch"), getattr(found, "__name__", type(found).__name__)
            if self.collator is None and masks:
                raise InputError(
                    f"masker= masks on the device, and the training DataLoader's {name} masks too; give the DataLoader "
                    "a PaddingCollator, or the callback collator= instead of masker="
                )
            if self.collator is not None and found is not self.collator:
                raise InputError(
                    f"the training DataLoader's collate_fn is {name}, which "
                    f"{'is not that of the callback' if masks else 'has no set_epoch'}; give DataLoader(collate_fn=…) "
                    "the object that the callback has, the same one each time that the DataLoader is made"
                )

    def _check_held_out(self, loaders: Any, kind: str) -> None:
        if self.collator is not None and any(getattr(one, "collate_fn", 0) is self.collator for one in _flat(loaders)):
            raise InputError(
                f"the DataLoader of {kind} has the collator of training, whose masks change with the epoch; give it "
                "collate_fn=collator.frozen()"
            )


def _epoch_of(trainer: Any) -> int:
    """Return the epoch as Lightning gives it to samplers."""
    return trainer.fit_loop.epoch_progress.current.processed


def _epoch_to_go_on(loops: dict[str, Any]) -> int:
    """Return the epoch of the batches that a resumed run fetches first."""
    epoch, batches = loops["epoch_progress"]["current"], loops["epoch_loop.batch_progress"]
    # A checkpoint of the last batch, from on_train_batch_end: Lightning counts its epoch as done when it resumes.
    done = batches["is_last_batch"] and batches["current"]["completed"] < batches["current"]["processed"]
    return epoch["processed"] + int(done and epoch["ready"] > epoch["processed"])


def _flat(loaders: Any) -> Any:
    """Return the DataLoaders in whatever Lightning was given: one, or lists and dicts of them."""
    return importlib.import_module(f"{PACKAGE}.utilities.combined_loader").CombinedLoader(loaders).flattened
