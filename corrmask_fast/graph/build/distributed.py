"""The processes that build one graph together, on ``torch.distributed``; a single process is a team of one.

    with current_team() as team:         every rank runs the same program
        team.agree({"seed": 0, …})       an error on all ranks if they were started differently
        team.share(costs)                the tasks of this rank: all ranks together have each task once
        team.sum(histogram)              added up over ranks, where it lies
        team.gather(arrays)              every rank's arrays, on every rank

Arrays go over gloo, whichever backend trains on the group; they are small (histograms, lists of partners). Before each
exchange the ranks meet in gloo's monitored barrier. A rank that dies closes its connections: the ranks that wait for it
see that at once. A rank that raises first says why, in the process group's key-value store.

No wait is without a limit:

    CORRMASK_JOIN_SECONDS   300      until all ranks are started, and until all call
    CORRMASK_WAIT_SECONDS   21 600   for a rank that is still computing; reached only where it hangs or is cut off
    TRANSFER_SECONDS        120      for one array, once all ranks are there
    TELL_SECONDS            5        for the others to hear why a rank stops
"""

from __future__ import annotations

import heapq
import json
import math
import os
import socket
import sys
import time
from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from corrmask_fast.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from types import TracebackType

SAME_START = "start every rank with the same options and corpus"
TRANSFER_SECONDS, TELL_SECONDS, CHECK_SECONDS = 120.0, 5.0, 1.0
TOLD = "_told_to_team"  # attribute of an error that all ranks know of

_teams = 0  # made by this process: equal on all ranks, so that no team reads what an earlier one wrote


def limit_of(name: str, default: float) -> float:
    """Return a limit in seconds from the environment, as ``CORRMASK_JOIN_SECONDS``."""
    text = os.environ.get(name, "")
    try:
        seconds = float(text or default)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise InputError(f"{name} must be a number of seconds above 0; got {text!r}; correct or unset it")
    return seconds


def join_seconds() -> float:
    """Return how long ranks wait for each other to start, and to call."""
    return limit_of("CORRMASK_JOIN_SECONDS", 300.0)


def current_team() -> Team:
    """Return the team of all ranks of the initialised process group, or of this process alone."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        return Team()
    return TorchTeam() if distributed.get_world_size() > 1 else Team()


class Team:
    """One process; also what a team of several offers."""

    rank, size = 0, 1
    local_size = 1  # ranks on this machine

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def check(self) -> None:
        """Raise if another rank has failed; cheap enough for every task."""

    def agree(self, settings: Mapping[str, Any], fix: str = SAME_START) -> None:
        """Raise InputError on all ranks, naming what differs, unless all give equal ``settings`` (JSON values)."""

    def sum(self, array: np.ndarray) -> None:
        """Replace an integer array by its sum over ranks."""

    def gather(self, arrays: Mapping[str, np.ndarray]) -> Iterator[Mapping[str, np.ndarray]]:
        """Yield every rank's arrays, in order of rank."""
        yield arrays

    def any(self, flag: bool) -> bool:
        """Whether ``flag`` is true on any rank."""
        return any(bool(arrays["flag"][0]) for arrays in self.gather({"flag": np.array([flag])}))

    def min(self, number: int) -> int:
        """Return the smallest ``number`` of all ranks."""
        return min(int(arrays["number"][0]) for arrays in self.gather({"number": np.array([number], np.int64)}))

    def share(self, costs: Sequence[float] | np.ndarray) -> np.ndarray:
        """Return the indices, ascending, of this rank's tasks: the longest first, each to the rank with least to do."""
        costs = np.asarray(costs, np.float64)
        if self.size == 1:
            return np.arange(costs.size)
        mine, loads = [], [(0.0, rank) for rank in range(self.size)]
        for task in np.argsort(-costs, kind="stable").tolist():
            load, rank = loads[0]
            heapq.heapreplace(loads, (load + costs[task], rank))
            if rank == self.rank:
                mine.append(task)
        return np.sort(np.array(mine, np.int64))


class TorchTeam(Team):
    """All ranks of the default process group."""

    def __init__(self) -> None:
        import torch.distributed as dist
        from torch.distributed.distributed_c10d import _get_default_store

        global _teams  # noqa: PLW0603
        _teams += 1
        self._dist, self.rank, self.size = dist, dist.get_rank(), dist.get_world_size()
        self._store = dist.PrefixStore(f"corrmask_fast/{_teams}", _get_default_store())
        self._group: Any = None
        self._wait = timedelta(seconds=limit_of("CORRMASK_WAIT_SECONDS", 6 * 3600.0))
        self._looked = time.monotonic()

    # ------------------------------------------------------------------------------------------- coming and going

    def __enter__(self) -> Self:
        try:
            self._store.set(f"joined/{self.rank}", socket.gethostname())
            self._await_joined()
            machines = [self._store.get(f"joined/{rank}") for rank in range(self.size)]
            self._group = self._dist.new_group(backend="gloo", timeout=timedelta(seconds=TRANSFER_SECONDS))
        except RuntimeError as error:  # a rank that joined is gone already, or the store went with its rank
            raise self._lost(error) from error
        self.local_size = machines.count(machines[self.rank])
        return self

    def _await_joined(self) -> None:
        seconds = join_seconds()
        limit, missing = time.monotonic() + seconds, list(range(self.size))
        while missing := [rank for rank in missing if not self._store.check([f"joined/{rank}"])]:
            if failure := self._failure():
                raise failure
            if time.monotonic() > limit:
                raise ConnectionError(
                    f"rank {self.rank} waits for {_ranks(missing)} since {seconds:.0f} s: inside a process group of "
                    "several ranks all of them build the graph together; call build_dependency_graph on every rank"
                )
            time.sleep(0.02)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._report(error)
        if self._group is not None:
            group, self._group = self._group, None
            self._dist.destroy_process_group(group)  # closes the connections: who waits for this rank sees it
        if error is not None:
            self._await_heard()

    def tell(self, error: BaseException) -> None:
        """Say why this rank will not join; the others have a moment to hear it before its process ends."""
        self._report(error)
        self._await_heard()

    def _report(self, error: BaseException) -> None:
        if _is_told(error):
            return
        setattr(error, TOLD, True)
        report = {"rank": self.rank, "input": isinstance(error, InputError), "text": str(error) or repr(error)}
        report["text"] = report["text"] if report["input"] else f"{type(error).__name__}: {report['text']}"
        with suppress(RuntimeError):  # the store is gone: the others notice that
            self._store.compare_set("failed", "", json.dumps(report))

    def _await_heard(self) -> None:
        """Return when all ranks know why the team ends, or after TELL_SECONDS: the store may end with this process."""
        limit = time.monotonic() + TELL_SECONDS
        with suppress(RuntimeError):
            while self._store.add("heard", 0) < self.size - 1 and time.monotonic() < limit:
                time.sleep(0.02)

    # ----------------------------------------------------------------------------------------- how the others are

    def _failure(self) -> Exception | None:
        """Return what another rank's failure means for this one, if one has reported one."""
        if not self._store.check(["failed"]):
            return None
        report = json.loads(self._store.get("failed"))
        if report["rank"] == self.rank:
            return None
        self._store.add("heard", 1)
        kind = InputError if report["input"] else ConnectionError
        failure = kind(f"rank {report['rank']} stopped, and the others with it: {report['text']}")
        setattr(failure, TOLD, True)
        return failure

    def _lost(self, error: RuntimeError) -> Exception:
        """Return what it means that a connection closed: a rank that reported why, or one that is gone."""
        error.with_traceback(None)  # its frames hold the group, whose connections shall close
        with suppress(RuntimeError):
            if failure := self._failure():
                return failure
        return ConnectionError(
            f"rank {self.rank} lost contact with the other ranks: {str(error).splitlines()[0]}; see what ended one of "
            "them (memory?), and start again with the same checkpoint folder"
        )

    def check(self) -> None:
        """Raise if another rank has reported a failure; looked up once in CHECK_SECONDS."""
        if time.monotonic() - self._looked < CHECK_SECONDS:
            return
        self._looked = time.monotonic()
        try:
            failure = self._failure()
        except RuntimeError as error:  # the store went with its rank
            raise self._lost(error) from error
        if failure is not None:
            raise failure

    def _meet(self) -> None:
        """Return when all ranks have come to this point."""
        self._exchange(self._dist.monitored_barrier, timeout=self._wait)

    # ------------------------------------------------------------------------------------------------- exchanging

    def agree(self, settings: Mapping[str, Any], fix: str = SAME_START) -> None:
        """Raise InputError on all ranks unless all give equal ``settings``."""
        text = np.frombuffer(json.dumps(dict(settings)).encode(), np.uint8)
        given = [json.loads(arrays["settings"].tobytes()) for arrays in self.gather({"settings": text})]
        for name in settings:
            for rank, other in enumerate(given):
                if other.get(name) != given[0].get(name):
                    raise InputError(
                        f"{name} must be the same on all ranks; got {given[0].get(name)!r} on rank 0 and "
                        f"{other.get(name)!r} on rank {rank}; {fix}"
                    )

    def sum(self, array: np.ndarray) -> None:
        """Replace an integer array by its sum over ranks."""
        import torch

        self._meet()
        # Gloo knows no unsigned integers wider than a byte: the signed ones add to the same bits.
        signed = array.view(np.dtype(f"i{array.itemsize}"))
        self._exchange(self._dist.all_reduce, torch.from_numpy(signed))

    def gather(self, arrays: Mapping[str, np.ndarray]) -> Iterator[Mapping[str, np.ndarray]]:
        """Yield every rank's arrays, in order of rank; to be used up by all ranks."""
        import torch

        self._meet()
        # Copies: the caller may change its own while it takes up those of the first ranks.
        mine = {name: np.array(array, order="C") for name, array in arrays.items()}
        for rank in range(self.size):
            box = [mine if rank == self.rank else None]
            self._exchange(self._dist.broadcast_object_list, box, src=rank, device=torch.device("cpu"))
            yield box[0] or {}

    def _exchange(self, operation: Any, *tensors: Any, **options: Any) -> None:
        try:
            operation(*tensors, group=self._group, **options)
        except RuntimeError as error:
            raise self._lost(error) from error


def _is_told(error: BaseException) -> bool:
    """Whether all ranks know of an error, or of the one that it was raised from."""
    cause = error.__cause__
    return bool(getattr(error, TOLD, False)) or (cause is not None and _is_told(cause))


def _ranks(ranks: Sequence[int]) -> str:
    return f"rank{'' if len(ranks) == 1 else 's'} {', '.join(map(str, ranks))}"


def started_by_torchrun() -> bool:
    """Whether the environment is that of one process of several that ``torchrun`` started."""
    return os.environ.get("WORLD_SIZE", "1") != "1" and {"RANK", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys()


class ProcessGroup:
    """The process group of a command that ``torchrun`` started, for the time of a ``with`` block.

    Processes on one machine share its cores unless ``threads`` are given, and each takes the GPU of its number there,
    beginning again where they are more. Without torchrun nothing happens. A rank that fails outside of a team, reading
    its corpus or saving a graph, tells those that wait for it in the next one.
    """

    def __init__(self, device: str, threads: int | None) -> None:
        self.device, self.threads, self.rank, self._made = device, threads, 0, False

    def __enter__(self) -> Self:
        if started_by_torchrun():
            import torch
            import torch.distributed as dist

            from corrmask_fast.threads import get_num_threads, set_num_threads

            if self.threads is None and "CORRMASK_NUM_THREADS" not in os.environ:
                set_num_threads(max(1, get_num_threads() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))
            on_cuda = self.device != "cpu" and torch.cuda.is_available()
            if on_cuda:
                torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
            # NCCL connects when it is first asked to send something.
            backend = "cpu:gloo,cuda:nccl" if on_cuda and dist.is_nccl_available() else "gloo"
            seconds = join_seconds()
            try:
                dist.init_process_group(backend, timeout=timedelta(seconds=seconds))
            except RuntimeError as error:
                raise ConnectionError(
                    f"rank {os.environ['RANK']} of {os.environ['WORLD_SIZE']} did not find all others within "
                    f"{seconds:.0f} s ({' '.join(str(error).split())}); see what the others say, and that "
                    "MASTER_ADDR and MASTER_PORT are reached from all of them"
                ) from error
            self.rank, self._made = dist.get_rank(), True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._made:
            import torch.distributed as dist

            # A ConnectionError itself is a team's, and the others have one too; the system raises subclasses.
            known = error is not None and (_is_told(error) or type(error) is ConnectionError)
            if error is not None and not known and dist.get_world_size() > 1:
                with suppress(ConnectionError):  # the store is gone, and nobody is left to hear
                    TorchTeam().tell(error)
            dist.destroy_process_group()
