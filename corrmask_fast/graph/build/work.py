"""The long stages of a build as lists of tasks, which the ranks of a team divide, and which are saved now and then.

shard = work.divide("pairs", layout, costs, state)     state takes up what an earlier run had done
for task in shard.tasks:                               this rank's tasks, those that are left
    …                                                  results go into state
    shard.done(task)                                   saves state, every SAVE_SECONDS
shard.finish()                                         state holds the results of all ranks, on all ranks
"""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from corrmask_fast.errors import InputError
from corrmask_fast.graph.build.checkpoint import Checkpoint
from corrmask_fast.graph.build.distributed import Team
from corrmask_fast.graph.build.records import Expected, check_arrays
from corrmask_fast.progress import Bar, silent_bar

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    Check = Callable[[Mapping[str, np.ndarray]], None]

SAVE_SECONDS = 60.0
COUNTS = "SHA-256 of presence and sums of values"
DONE = "done"  # the array of a part that says which tasks are done


class State(Protocol):
    """Results of tasks, in whatever order these are done."""

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the results so far."""

    def merge(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Take up results of other tasks, or of the same ones once more."""

    def check(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Raise InputError for arrays, read from a file, that :meth:`merge` cannot take."""


@dataclass(frozen=True)
class Work:
    """Who works on a build, where it is saved, and how its progress is shown.

    By default this process works alone, and nothing is saved or shown.
    """

    team: Team = field(default_factory=Team)
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    bar: Bar = silent_bar

    def confirm(self, *counts: np.ndarray) -> None:
        """Raise InputError unless all ranks, and the run that was saved, counted the same in the corpus."""
        digest = hashlib.sha256(b"".join(np.ascontiguousarray(array).tobytes() for array in counts)).hexdigest()
        self.team.agree({"what is counted in the corpus": digest})
        expected = {"sha256": Expected(np.uint8, (len(digest),), ord("0"), ord("f"))}
        for part in self.checkpoint.parts("counts", COUNTS, partial(check_arrays, expected=expected)):
            if part["sha256"].tobytes().decode() != digest:
                raise InputError(
                    f"the checkpoint {self.checkpoint.folder} belongs to another corpus: other tokens are counted in "
                    "it now; give the same corpus, or another folder"
                )
        self.checkpoint.save("counts", COUNTS, {"sha256": np.frombuffer(digest.encode(), np.uint8)})

    def recall(
        self, name: str, layout: str, check: Check, compute: Callable[[], dict[str, np.ndarray]]
    ) -> Mapping[str, np.ndarray]:
        """Return what is saved of a stage if all ranks have it; else let all ranks compute it, and save it.

        ``check`` raises InputError for arrays that the stage cannot have saved. ``compute`` gives all ranks the same.
        """
        saved = next(self.checkpoint.parts(name, layout, check), None)
        if not self.team.any(saved is None):
            return saved or {}
        arrays = compute()
        if self.team.rank == 0:
            self.checkpoint.save(name, layout, arrays)
        return arrays

    def divide(self, name: str, layout: Any, costs: Sequence[float] | np.ndarray, state: State) -> TaskShard:
        """Begin a stage: load what is saved of it into ``state``, and divide the other tasks among the ranks.

        Parameters
        ----------
        name
            Name of the stage, and of its parts in the checkpoint.
        layout
            What the tasks are: any value whose repr describes them. It must be equal on all ranks.
        costs
            Estimated cost of each task, in any unit.
        state
            Holds the results; empty at first.
        """
        return TaskShard(self, name, hashlib.sha256(repr(layout).encode()).hexdigest(), np.asarray(costs), state)


class TaskShard:
    """One rank's tasks of a stage."""

    def __init__(self, work: Work, name: str, layout: str, costs: np.ndarray, state: State) -> None:
        self._team, self._checkpoint = work.team, work.checkpoint
        self._name, self._layout, self._state = name, layout, state
        self._done = np.zeros(costs.size, np.bool_)
        self._team.agree({f"the tasks of stage {name!r}": layout})
        if self._checkpoint:
            for part in self._checkpoint.parts(name, layout, self._check):
                self._take(part)
            # Ranks may have folders of their own, with different parts; and no rank may write before all have read.
            self._exchange()
        left = np.flatnonzero(~self._done)
        self.tasks = left[self._team.share(costs[left])]
        self._saved = time.monotonic()

    def done(self, tasks: Any) -> None:
        """Note that tasks are done and that ``state`` holds their results. Raises if another rank has failed."""
        self._done[tasks] = True
        self._team.check()
        if self._checkpoint and time.monotonic() - self._saved >= SAVE_SECONDS:
            self.save()

    def save(self) -> None:
        """Save what is done."""
        self._checkpoint.save(self._name, self._layout, self._part())
        self._saved = time.monotonic()

    def finish(self) -> None:
        """Merge the results of all ranks into ``state`` on every rank, and save them."""
        if self.tasks.size and self._checkpoint:
            self.save()
        self._exchange()
        if not self._done.all():
            raise AssertionError(f"tasks of stage {self._name!r} were left out")
        if self._team.size > 1 and self._team.rank == 0 and self._checkpoint:
            self.save()

    def _part(self) -> dict[str, np.ndarray]:
        return {**self._state.arrays(), DONE: self._done}

    def _check(self, part: Mapping[str, np.ndarray]) -> None:
        check_arrays({DONE: part[DONE]}, {DONE: Expected(np.bool_, self._done.shape, 0, 1)})
        self._state.check({key: array for key, array in part.items() if key != DONE})

    def _take(self, part: Mapping[str, np.ndarray]) -> None:
        self._state.merge({key: array for key, array in part.items() if key != DONE})
        self._done |= part[DONE]

    def _exchange(self) -> None:
        if self._team.size > 1:
            for rank, part in enumerate(self._team.gather(self._part())):
                if rank != self._team.rank:
                    self._take(part)
