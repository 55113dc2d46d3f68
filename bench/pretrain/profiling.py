"""Where the time of a training step goes: PyTorch's profiler, its events summed by what they belong to."""

from __future__ import annotations

import ctypes
import os
import sys
import time
from contextlib import contextmanager
from itertools import count
from typing import TYPE_CHECKING, Any

import torch
from harness.timing import Timing
from torch.autograd.profiler import record_function
from torch.profiler import ProfilerActivity, profile

from corrmask_fast import CorrMasker
from pretrain.contestants import OUR_STEP, STEPS, STOCK_STEP, model_of, settings_of, training

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from harness.workload import Workload
    from torch.autograd.profiler_util import FunctionEvent

REST, LEFT, STEP = "layer norm and the rest", "between operations", "step"
SYSTEM = "CPU time in the operating system"  # seconds of all threads; they are within the groups
BACKWARD = "autograd::engine::evaluate_function: "  # the name of a node of the backward pass begins so
KEPT = ", memory kept"
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4  # of glibc's mallopt
# What an event belongs to: the first group that names the event or one that it is inside of. Names without `::` are
# those that `label` gives, and PyTorch's own for a step of an optimizer.
GROUPS = {
    "random numbers of dropout": ("aten::bernoulli_",),
    "dropout, applied": ("aten::dropout", "aten::native_dropout"),
    "prediction head": ("head",),
    "loss": ("aten::cross_entropy_loss",),
    "attention": ("aten::scaled_dot_product_attention",),
    "linear layers of the encoder": ("aten::linear",),
    "embeddings": ("embeddings",),
    "AdamW": ("Optimizer.step#AdamW.step",),
    "masking": ("masking",),
}
ALL = (*GROUPS, REST, LEFT)
HEADS = {"full": STOCK_STEP, "masked": OUR_STEP}


def label(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that the profiler shows as one event around all that it does."""

    def labelled(*args: Any, **kwargs: Any) -> Any:
        with record_function(name):
            return function(*args, **kwargs)

    return labelled


def steps_of(workload: Workload, batch: int, *, small: bool) -> dict[str, Callable[[], None]]:
    """Return a training step for each dropout and head: masking by CorrMask, forward, backward, AdamW."""
    rows, epochs = torch.from_numpy(workload.rows(batch)), count()
    masker, attention = CorrMasker(workload.graph), torch.ones_like(rows)

    def inputs(names: tuple[str, ...]) -> dict[str, torch.Tensor]:
        masked = masker(rows, epoch=next(epochs))._asdict()
        return {"attention_mask": attention, **{name: masked[name] for name in names}}

    steps = {}
    for dropout in STEPS.values():
        for head, kind in HEADS.items():
            model = model_of(workload, settings_of(workload, dropout, small=small), head)
            model.cls.forward = label("head", model.cls.forward)
            model.bert.embeddings.forward = label("embeddings", model.bert.embeddings.forward)
            names = ("input_ids", "labels", *(("masked_positions",) if head == "masked" else ()))
            steps[f"{kind}, dropout {dropout}"] = training(model, label("masking", lambda names=names: inputs(names)))
    return steps


def grouped(events: Iterable[FunctionEvent]) -> Iterator[tuple[str, FunctionEvent]]:
    """Yield every event after the group that it belongs to.

    An event of the backward pass belongs where the operation of the forward pass does whose gradient it computes: the
    two have the same sequence number. Of several operations with one number the last made the node. Only events of the
    backward pass name a thread of the forward pass.
    """
    events = sorted(events, key=lambda event: event.time_range.start)
    forward = {event.sequence_nr: event for event in events if event.sequence_nr >= 0 and not event.fwd_thread}
    for event in events:
        names: set[str] = set()
        at: FunctionEvent | None = event
        while at is not None:
            names.add(at.name)
            at = forward.get(at.sequence_nr) if at.name.startswith(BACKWARD) else at.cpu_parent
        yield next((group for group, those in GROUPS.items() if names.intersection(those)), REST), event


def seconds_of(events: Iterable[FunctionEvent]) -> dict[str, float]:
    """Return the seconds of each group; of an event only what is not within another counts."""
    seconds = dict.fromkeys((*GROUPS, REST), 0.0)
    for group, event in grouped(events):
        seconds[group] += event.self_cpu_time_total / 1e6
    return seconds


def profiled(step: Callable[[], None]) -> dict[str, float]:
    """Return the seconds of each group in one step, what is left over, and the whole step."""
    with profile(activities=[ProfilerActivity.CPU]) as found:
        system, began = os.times().system, time.perf_counter()
        step()
        took, system = time.perf_counter() - began, os.times().system - system
    seconds = seconds_of(found.events())
    return {**seconds, LEFT: took - sum(seconds.values()), STEP: took, SYSTEM: system}


@contextmanager
def memory_kept() -> Iterator[None]:
    """Let glibc keep memory that is freed, as ``MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=1000000000000`` do.

    By default every tensor of more than 32 MiB is mapped anew, and the system clears each of its pages.
    """
    libc = ctypes.CDLL(None)
    libc.mallopt(M_MMAP_MAX, 0)
    libc.mallopt(M_TRIM_THRESHOLD, -1)
    try:
        yield
    finally:  # what glibc comes to by itself after large tensors
        libc.mallopt(M_MMAP_MAX, 65_536)
        libc.mallopt(M_MMAP_THRESHOLD, 2**25)
        libc.mallopt(M_TRIM_THRESHOLD, 2**26)
        libc.malloc_trim(0)


def profile_steps(steps: dict[str, Callable[[], None]], rounds: int) -> dict[str, dict[str, float]]:
    """Return the quickest of several steps of each kind, in turns; with glibc also with memory that is kept.

    A step that is not profiled comes before the first, and before each whose memory is kept.
    """
    quickest: dict[str, dict[str, float]] = {}

    def keep(name: str, seconds: dict[str, float]) -> None:
        if name not in quickest or seconds[STEP] < quickest[name][STEP]:
            quickest[name] = seconds

    for step in steps.values():
        step()
    for _ in range(rounds):
        for name, step in steps.items():
            keep(name, profiled(step))
            if sys.platform == "linux" and hasattr(ctypes.CDLL(None), "mallopt"):
                with memory_kept():
                    step()
                    keep(name + KEPT, profiled(step))
    return quickest


def timings_of(found: dict[str, dict[str, float]], batch: int) -> dict[str, Timing]:
    """Return microseconds a cell, as rows have them: of one step, so all percentiles are the same."""
    return {
        f"{name}: {group}": Timing(*[1e6 * seconds / batch] * 3)
        for name, groups in found.items()
        for group, seconds in groups.items()
    }


def table_of(found: dict[str, dict[str, float]]) -> str:
    """Return seconds a step and shares as Markdown tables: a line for each group, a column for each kind of step."""
    tables = []
    for kept in (False, True):
        some = {name: seconds for name, seconds in found.items() if name.endswith(KEPT) == kept}
        lines = [f"| | {' | '.join(some)} |", f"|---|{'---:|' * len(some)}"]
        for group in (*ALL, STEP, SYSTEM):
            cells = [f"{each[group]:.2f} s, {each[group] / each[STEP]:.0%}" for each in some.values()]
            lines.append(f"| {group} | {' | '.join(cells)} |")
        tables += ["\n".join(lines)] if some else []
    return "\n\n".join(tables)
