"""The processes that build one graph together, on ``torch.distributed``; a single process is a team of one.

    with current_team() as team:         every rank runs the same program
        team.agree({"seed": 0, …})       an error on all ranks if they were started differently
        team.share(costs)                the tasks of this rank: all ranks together have each task once
        team.sum(histogram)              added up over ranks, where it lies
        team.gather(arrays)              every rank's arrays, on every rank

A rank that raises tells the others, and one that dies falls silent: either ends the whole team with an error, soon. For
that, ranks meet in the process group's key-value store before they exchange anything, and a thread of each leaves signs
of life there. So no limit is set to how long a rank may compute, and none waits for a rank that is gone. What is
exchanged is small (histograms, lists of partners) and goes over gloo, whichever backend trains on the group.
"""

from __future__ import annotations

import heapq
import json
import os
import socket
import sys
import threading
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
JOIN_SECONDS = 300.0  # for all ranks to call
LOST_SECONDS = 60.0  # without a sign of life
BEAT_SECONDS = 0.5
TELL_SECONDS = 5.0
TRANSFER_SECONDS = 600.0  # for one array, once all ranks are there
TOLD = "_told_to_team"  # attribute of an error that all ranks know of

_teams = 0  # made by this process: equal on all ranks, so that no team reads what an earlier one wrote


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

    def agree(self, settings: Mapping[str, Any], cure: str = SAME_START) -> None:
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

        global _teams  # noqa: PLW0603
        _teams += 1
        self._dist, self.rank, self.size = dist, dist.get_rank(), dist.get_world_size()
        self._store = dist.PrefixStore(f"corrmask_fast/{_teams}", self._connection())
        self._group: Any = None
        self._steps = 0
        self._failure: Exception | None = None
        self._left = threading.Event()
        self._beats = threading.Thread(target=self._beat, name="corrmask-team", daemon=True)

    def _connection(self) -> Any:
        """Return a connection of this team's own to the group's store; ConnectionError if the store is gone."""
        from torch.distributed.distributed_c10d import _get_default_store

        store = _get_default_store()
        if not hasattr(store, "clone"):
            return store
        try:
            store.check(["joined"])  # a clone connects anew, and goes on trying for minutes where nobody listens
            return store.clone()
        except RuntimeError as error:
            raise self._lost(error) from error

    def _lost(self, error: Exception) -> ConnectionError:
        return ConnectionError(f"rank {self.rank} lost contact with the other ranks: {error}")

    # ------------------------------------------------------------------------------------------- coming and going

    def __enter__(self) -> Self:
        try:
            self._store.set(f"joined/{self.rank}", socket.gethostname())
            self._await_joined()
            machines = [self._store.get(f"joined/{rank}") for rank in range(self.size)]
            self.local_size = machines.count(machines[self.rank])
        except RuntimeError as error:  # the store went with its rank
            raise self._lost(error) from error
        self._beats.start()
        try:
            limit = timedelta(seconds=TRANSFER_SECONDS)
            self._group = self._dist.new_group(backend="gloo", timeout=limit)
        except BaseException as error:
            self.__exit__(type(error), error, error.__traceback__)
            if isinstance(error, RuntimeError):  # a rank that joined is gone already, or the store with it
                raise self._lost(error) from error
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self.tell(error)
        self._left.set()
        if self._beats.ident is not None:
            self._beats.join(timeout=2 * BEAT_SECONDS)
        if error is None and self._group is not None:
            self._dist.destroy_process_group(self._group)

    def tell(self, error: BaseException) -> None:
        """Say why this rank stops, or does not join; the others have a moment to hear it before its process ends."""
        if self._failure is not None or _is_told(error):
            return
        setattr(error, TOLD, True)
        report = {"rank": self.rank, "input": isinstance(error, InputError), "text": str(error) or repr(error)}
        report["text"] = report["text"] if report["input"] else f"{type(error).__name__}: {report['text']}"
        with suppress(Exception):  # a store that is gone: the others notice that
            self._store.compare_set("failed", "", json.dumps(report))
            limit = time.monotonic() + TELL_SECONDS
            while self._store.add("heard", 0) < self.size - 1 and time.monotonic() < limit:
                time.sleep(0.02)

    def _await_joined(self) -> None:
        limit = time.monotonic() + JOIN_SECONDS
        missing = list(range(self.size))
        while missing := [rank for rank in missing if not self._store.check([f"joined/{rank}"])]:
            if failure := self._failed_rank():
                raise failure
            if time.monotonic() > limit:
                raise ConnectionError(
                    f"rank {self.rank} waits for {_ranks(missing)} since {JOIN_SECONDS:.0f} s: inside a process group "
                    "of several ranks all of them build the graph together; call build_dependency_graph on every rank"
                )
            time.sleep(0.02)

    # ----------------------------------------------------------------------------------------- how the others are

    def _beat(self) -> None:
        heard = dict.fromkeys((rank for rank in range(self.size) if rank != self.rank), (b"", time.monotonic()))
        count = 0
        while not self._left.wait(BEAT_SECONDS if count else 0):
            count += 1
            try:
                self._store.set(f"beat/{self.rank}", str(count))
                self._failure = self._failure or self._failed_rank() or self._silent_rank(heard)
            except Exception as error:  # noqa: BLE001 (the store's errors are of many types)
                if not self._left.is_set():
                    self._failure = self._failure or ConnectionError(f"lost contact with the other ranks: {error}")
                return

    def _failed_rank(self) -> Exception | None:
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

    def _silent_rank(self, heard: dict[int, tuple[bytes, float]]) -> Exception | None:
        now = time.monotonic()
        for rank, (last, since) in heard.items():
            beat = self._store.get(f"beat/{rank}") if self._store.check([f"beat/{rank}"]) else b""
            if beat != last:
                heard[rank] = (beat, now)
            elif now - since > LOST_SECONDS:
                return ConnectionError(
                    f"rank {rank} gave no sign of life for {LOST_SECONDS:.0f} s, so the others stop; "
                    "see what ended it (memory?), and start again with the same checkpoint folder"
                )
        return None

    def check(self) -> None:
        """Raise what another rank's failure, or silence, means for this one."""
        if self._failure is not None:
            raise self._failure

    def _meet(self) -> None:
        """Return when all ranks have come to this point."""
        self._steps += 1
        key, pause = f"step/{self._steps}", 0.0005
        try:
            self._store.add(key, 1)
            while self._store.add(key, 0) < self.size:
                self.check()
                time.sleep(pause)
                pause = min(2 * pause, 0.05)
        except RuntimeError as error:  # the store went with its rank
            raise self._lost(error) from error

    # ------------------------------------------------------------------------------------------------- exchanging

    def agree(self, settings: Mapping[str, Any], cure: str = SAME_START) -> None:
        """Raise InputError on all ranks unless all give equal ``settings``."""
        text = np.frombuffer(json.dumps(dict(settings)).encode(), np.uint8)
        given = [json.loads(arrays["settings"].tobytes()) for arrays in self.gather({"settings": text})]
        for name in settings:
            for rank, other in enumerate(given):
                if other.get(name) != given[0].get(name):
                    raise InputError(
                        f"{name} must be the same on all ranks; got {given[0].get(name)!r} on rank 0 and "
                        f"{other.get(name)!r} on rank {rank}; {cure}"
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
        arrays = {name: np.array(array, order="C") for name, array in arrays.items()}
        shapes = {name: (array.dtype.str, array.shape) for name, array in arrays.items()}
        header = np.frombuffer(json.dumps(shapes).encode(), np.uint8).copy()
        sizes = torch.zeros(self.size, dtype=torch.int64)
        sizes[self.rank] = header.size
        self._exchange(self._dist.all_reduce, sizes)
        for rank in range(self.size):
            mine = rank == self.rank
            text = torch.from_numpy(header) if mine else torch.empty(int(sizes[rank]), dtype=torch.uint8)
            self._exchange(self._dist.broadcast, text, src=rank)
            out = {}
            for name, (dtype, shape) in json.loads(text.numpy().tobytes()).items():
                array = arrays[name] if mine else np.empty(shape, dtype)
                if array.size:
                    self._exchange(self._dist.broadcast, torch.from_numpy(array.reshape(-1).view(np.uint8)), src=rank)
                out[name] = array
            yield out

    def _exchange(self, operation: Any, tensor: Any, **options: Any) -> None:
        try:
            operation(tensor, group=self._group, **options)
        except RuntimeError as error:  # a connection closed: its rank is gone, or says why in a moment
            time.sleep(2 * BEAT_SECONDS)
            self.check()
            raise ConnectionError(f"rank {self.rank} lost another rank: {error}") from error


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
            try:
                dist.init_process_group(backend, timeout=timedelta(seconds=JOIN_SECONDS))
            except RuntimeError as error:
                raise ConnectionError(
                    f"rank {os.environ['RANK']} of {os.environ['WORLD_SIZE']} did not find all others within "
                    f"{JOIN_SECONDS:.0f} s ({' '.join(str(error).split())}); see what the others say, and that "
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
