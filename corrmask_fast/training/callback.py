"""The callback that passes the epoch to a collator, under any of Hugging Face's Trainers."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from corrmask_fast.errors import InputError, import_extra
from corrmask_fast.masking.collator import DataCollatorForCorrMask, check_epoch
from corrmask_fast.training.checkpoint_files import check_random_states, numpy_states
from corrmask_fast.training.checks import check_model, check_packing
from corrmask_fast.training.run_record import RunRecord
from corrmask_fast.training.sampling import leave_undivided

transformers: Any = import_extra("transformers", "hf")

__all__ = ["CorrMaskCallback"]


class CorrMaskCallback(transformers.TrainerCallback):
    """Callback of Hugging Face's ``Trainer`` that passes epoch and step to the collator.

    The stock Trainer does not pass the epoch to the collator. With this callback a cell's mask depends on the masker's
    seed, the epoch and the cell alone. The number of workers and ranks does not change it, nor does a resume. Each pass
    over a stream is an epoch. A masker with a schedule gets the step.

    Each checkpoint gets a file ``corrmask.json``. A resume with another corpus, graph or seed is refused.

    Parameters
    ----------
    collator
        The run's ``data_collator``: a :class:`~corrmask_fast.DataCollatorForCorrMask`, or another collator of this
        package that masks.

    Raises
    ------
    InputError
        If ``collator`` has no ``set_epoch``. When training begins: if model, corpus, masker and checkpoint do not fit
        each other.

    See Also
    --------
    CorrMaskTrainer : A Trainer that includes this callback.

    Examples
    --------
    >>> from corrmask_fast import CorrMaskCallback, CorrMasker, DataCollatorForCorrMask, DependencyGraph
    >>> from corrmask_fast.testing import make_vocabulary
    >>> graph = DependencyGraph.from_edges([("G0", "G1")], make_vocabulary(8))
    >>> collator = DataCollatorForCorrMask(CorrMasker(graph))
    >>> callback = CorrMaskCallback(collator)  # Trainer(…, data_collator=collator, callbacks=[callback])
    """

    def __init__(self, collator: Any) -> None:
        if not hasattr(collator, "set_epoch"):
            raise InputError(f"CorrMaskCallback needs a DataCollatorForCorrMask; got {type(collator).__name__}")
        self.masker = collator.masker
        self.listeners = [collator]  # all that get the epoch
        self.resumed_from: str | None = None
        self.checked: Any = None  # a dataset that was checked already
        self._epoch: int | None = None
        self._pass = 0  # of a stream: the pass in which the run starts
        self._record: RunRecord | None = None
        self._admitted = ExitStack()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Check that model, corpus, masker and checkpoint fit each other.

        Parameters
        ----------
        args, state, control, **kwargs
            What ``Trainer`` passes to every callback.

        Raises
        ------
        InputError
            If they do not, or if this version of transformers cannot resume the stream.
        """
        loader, self._epoch, self._pass = kwargs["train_dataloader"], None, 0
        leave_undivided(loader, args.world_size)
        if self.checked is None or self.checked is not loader.dataset:
            check_model(kwargs["model"], self.masker, loader.dataset)
        for collator in self.listeners:
            if getattr(collator, "packing", False):
                check_packing(kwargs["model"], collator.position_ids_start)
        self._record = RunRecord.of(self.masker, loader.dataset, args)
        if state.global_step:
            folder = self.resumed_from or f"{args.output_dir}/checkpoint-{state.global_step}"
            saved = self._record.check_folder(folder)
            # Without skipping, Trainer reads the stream from its start: these cells had the masks of this pass before.
            self._pass = (int(state.epoch or 0) if saved is None else saved) + bool(args.ignore_data_skip)
            stops = batches_of(loader) is None and not hasattr(transformers.Trainer, "_run_epoch")  # before 5
            if stops and self._pass and not args.ignore_data_skip:
                raise InputError(
                    f"the checkpoint is of pass {self._pass} over a stream (the first is 0); this version of "
                    "transformers would skip one pass, find no more cells and stop; set ignore_data_skip=True to start "
                    "the next pass"
                )
            check_random_states(folder)
            if not hasattr(transformers.trainer, "safe_globals"):  # 4.46 saves NumPy's state, and cannot load it
                self._admitted.enter_context(numpy_states())

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Pass the epoch to the collator.

        Parameters
        ----------
        args, state, control, **kwargs
            What ``Trainer`` passes to every callback.
        """
        if self._epoch is None:
            updates = _updates_an_epoch(kwargs["train_dataloader"], args)
            self._epoch = self._pass if updates is None else state.global_step // updates
        else:
            self._epoch += 1
        for listener in self.listeners:
            listener.set_epoch(self._epoch)
        self._pass_step_on(state.global_step)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Pass the step to a collator whose masker has a schedule.

        Parameters
        ----------
        args, state, control, **kwargs
            What ``Trainer`` passes to every callback.

        Raises
        ------
        InputError
            If something else has changed the collator's epoch.
        """
        self._admitted.close()  # Trainer loads NumPy's state before its first step
        for listener in self.listeners:
            if isinstance(listener, DataCollatorForCorrMask):
                check_epoch(listener, self._epoch or 0)
        self._pass_step_on(state.global_step)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Write ``corrmask.json`` into the checkpoint: what decides the masks.

        Parameters
        ----------
        args, state, control, **kwargs
            What ``Trainer`` passes to every callback.
        """
        if state.is_world_process_zero and self._record is not None:
            self._record.write_to(f"{args.output_dir}/checkpoint-{state.global_step}", self._epoch or 0)

    def _pass_step_on(self, step: int) -> None:
        for listener in self.listeners:
            if hasattr(listener, "set_step"):
                listener.set_step(step)


def batches_of(loader: Any) -> int | None:
    """Return the number of a loader's batches; None for a stream of unknown length."""
    try:
        return len(loader)
    except (TypeError, AttributeError, NotImplementedError):
        return None


def _updates_an_epoch(loader: Any, args: Any) -> int | None:
    """Return Trainer's number of optimizer steps in an epoch; before 4.49 it does not count a last, shorter step."""
    batches, together = batches_of(loader), args.gradient_accumulation_steps
    if not batches:  # Trainer takes 0, too, for an unknown length
        return None
    rounds_up = hasattr(transformers.Trainer, "set_initial_training_values")
    return max(-(-batches // together) if rounds_up else batches // together, 1)
