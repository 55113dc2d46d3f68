"""One pool of threads over ranges of rows, safe under fork and in DataLoader workers.

Kernels release the GIL and never use Numba's own parallel loops: those hang or abort in forked workers.
"""

from __future__ import annotations

import os
import sys
from collections import deque
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from threading import Lock
from typing import TYPE_CHECKING, Any

from corrmask_fast.errors import check_integer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from concurrent.futures import Future

__all__ = ["get_num_threads", "set_num_threads"]

_state: dict[str, Any] = {"threads": None, "pool": None, "pool_key": None}
_blas: dict[str, Any] = {"lock": Lock(), "users": 0, "controller": None, "limit": None}


def set_num_threads(threads: int | None) -> None:
    """Set how many CPU threads the kernels use, in this process.

    Parameters
    ----------
    threads : int or None
        Number of threads, at least 1. None: the environment variable ``CORRMASK_NUM_THREADS`` if it is set, else all
        cores that this process may use.

    Raises
    ------
    InputError
        If ``threads`` is no integer >= 1.

    Examples
    --------
    >>> from corrmask_fast import get_num_threads, set_num_threads
    >>> set_num_threads(2)
    >>> get_num_threads()
    2
    >>> set_num_threads(None)
    """
    _state["threads"] = None if threads is None else check_integer("threads", threads, 1)


def get_num_threads() -> int:
    """Return the number of CPU threads that the kernels use: always 1 inside a DataLoader worker.

    Returns
    -------
    int
        The number that :func:`~corrmask_fast.set_num_threads` set; else the environment variable
        ``CORRMASK_NUM_THREADS``; else the number of cores that this process may use.

    Raises
    ------
    InputError
        If ``CORRMASK_NUM_THREADS`` is used and is no integer >= 1.

    Examples
    --------
    >>> from corrmask_fast import get_num_threads, set_num_threads
    >>> set_num_threads(4)
    >>> get_num_threads()
    4
    >>> set_num_threads(None)
    """
    torch_data = sys.modules.get("torch.utils.data")
    if torch_data is not None and torch_data.get_worker_info() is not None:
        return 1
    if _state["threads"] is not None:
        return _state["threads"]
    if "CORRMASK_NUM_THREADS" in os.environ:
        value = os.environ["CORRMASK_NUM_THREADS"]
        return check_integer("CORRMASK_NUM_THREADS", int(value) if value.isdecimal() else value, 1)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def thread_pool() -> ThreadPoolExecutor:
    """Return the pool of this process, made anew after a fork or when the number of threads changed."""
    key = (os.getpid(), get_num_threads())
    if _state["pool_key"] != key:
        _state["pool"] = ThreadPoolExecutor(key[1], thread_name_prefix="corrmask")
        _state["pool_key"] = key
    return _state["pool"]


def run_ranges(function: Callable[[int, int], Any], n: int, smallest: int) -> list[Any]:
    """Call ``function(begin, end)`` over [0, n), cut into ranges not shorter than ``smallest``; return its results.

    Each thread takes the next range when it is done with one, so that a busy core delays nobody; ranges become shorter
    towards the end, where threads wait for each other. The calling thread works too: a single range costs nothing
    extra.
    """
    smallest = max(smallest, 1)
    if n < 2 * smallest or (threads := get_num_threads()) == 1:
        return [function(0, n)]
    waiting = deque(_shrinking_ranges(n, smallest, 2 * threads))
    results: dict[int, Any] = {}

    def work() -> None:
        while True:
            try:
                begin, end = waiting.popleft()
            except IndexError:
                return
            try:
                results[begin] = function(begin, end)
            except BaseException:
                waiting.clear()  # nobody begins another range
                raise

    helpers = [thread_pool().submit(work) for _ in range(min(threads, len(waiting)) - 1)]
    try:
        work()
    finally:
        begun = [helper for helper in helpers if not helper.cancel()]
        wait(begun)
    for helper in begun:
        helper.result()
    return [results[begin] for begin in sorted(results)]


def _shrinking_ranges(n: int, smallest: int, share: int) -> Iterator[tuple[int, int]]:
    """Cut [0, n) into ranges, each one part in ``share`` of what is left, but not shorter than ``smallest``."""
    begin = 0
    while begin < n:
        left = n - begin
        end = begin + left // max(1, min(share, left // smallest))
        yield begin, end
        begin = end


def map_tasks(function: Callable[[Any], Any], tasks: Iterable[Any]) -> Iterator[Any]:
    """Yield ``function(task)`` for every task, in order, computed on the pool (in place with one thread).

    Tasks are taken from ``tasks`` a few at a time, by the calling thread: results that wait to be used stay few.
    """
    threads = get_num_threads()
    if threads == 1:
        yield from map(function, tasks)
        return
    waiting: deque[Future[Any]] = deque()
    try:
        for task in tasks:
            waiting.append(thread_pool().submit(function, task))
            if len(waiting) > 2 * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Let each call of BLAS run in its own thread alone: several of ours call it at the same time."""
    with _blas["lock"]:
        if _blas["users"] == 0:
            if _blas["controller"] is None:
                from threadpoolctl import ThreadpoolController

                _blas["controller"] = ThreadpoolController()
            _blas["limit"] = _blas["controller"].limit(limits=1, user_api="blas")
        _blas["users"] += 1
    try:
        yield
    finally:
        with _blas["lock"]:
            _blas["users"] -= 1
            if _blas["users"] == 0:
                _blas["limit"].restore_original_limits()
