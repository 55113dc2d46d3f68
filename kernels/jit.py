"""How every Numba function here is compiled: without the GIL, with strict floating point, kernels cached on disk."""

import hashlib
import logging
import math
import multiprocessing
import os
import pickle
import sys
import time
import warnings
from contextlib import suppress
from functools import partial
from pathlib import Path

from numba import njit
from numba.core import event
from numba.core.caching import FunctionCache, IndexDataCacheFile

# No parallel=True (unsafe in forked workers) and no fastmath (results are promised to the bit).
stage = njit(nogil=True, error_model="numpy")  # a part of a kernel
maker = njit(nogil=True, error_model="numpy", _nrt=True)  # a part that makes arrays where the kernel says it makes none
inline = njit(nogil=True, error_model="numpy", forceinline=True)  # must dissolve in the caller's loop to run in vectors

_SOURCES = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))).digest()
_told = set()  # cache folders that this process has warned of
_log = logging.getLogger("corrmask_fast")
BURST = 10.0  # seconds without a compilation, after which the next one is told again


def kernel(function=None, *, makes_arrays=True):
    """Compile a function that is called from Python.

    Where neither it nor a stage of it makes arrays (a copy of one slice to another does) or returns them, Numba need
    not count who uses those that it is given: atomic instructions for each array that one function hands to another.
    """
    if function is None:
        return partial(kernel, makes_arrays=makes_arrays)
    dispatcher = njit(nogil=True, error_model="numpy", _nrt=makes_arrays)(function)
    with suppress(RuntimeError, OSError):  # no folder to write to: compile in every process
        dispatcher._cache = _Cache(function)  # noqa: SLF001 (what cache=True sets; Numba offers no public way)
    return dispatcher


def cache_state(dispatcher):
    """Return the folder of a kernel's cache, None where there is none, and whether it holds the kernel of today."""
    cache = dispatcher._cache  # noqa: SLF001
    if not isinstance(cache, _Cache):
        return None, False
    return cache.cache_path, cache.is_saved(dispatcher.targetctx.codegen().magic_tuple())


class _CacheFile(IndexDataCacheFile):
    """Kernels with a hash: damaged machine code must not run."""

    def _save_data(self, name, data):
        code = self._dump(data)
        super()._save_data(name, (hashlib.sha256(code).digest(), code))

    def _load_data(self, name):
        digest, code = super()._load_data(name)
        if hashlib.sha256(code).digest() != digest:
            raise ValueError(f"{name} is damaged")
        return pickle.loads(code)  # noqa: S301 (as Numba does)


class _Cache(FunctionCache):
    """Numba's cache of a kernel; where it cannot be read or written, the kernel is compiled in memory.

    Numba looks at the time of the function's own file, but a kernel holds what it calls from other files too: here a
    cached kernel is as old as the text of all of them.
    """

    def __init__(self, function):
        super().__init__(function)
        self._cache_file = _CacheFile(self.cache_path, self._impl.filename_base, _SOURCES)

    def load_overload(self, sig, target_context):
        try:
            return super().load_overload(sig, target_context)
        except Exception as error:  # noqa: BLE001 (a damaged pickle may raise any)
            with suppress(Exception):
                self.flush()  # an empty index, so that the cache is written anew
            self._warn(error)
            return None

    def save_overload(self, sig, data):
        try:
            super().save_overload(sig, data)
        except Exception as error:  # noqa: BLE001
            self._warn(error)

    def is_saved(self, processor):
        """Return whether machine code of this version is there, for a processor as Numba describes it."""
        return any(of == processor for _, of, _ in self._cache_file._load_index())  # noqa: SLF001

    def _warn(self, error):
        if self.cache_path not in _told:
            _told.add(self.cache_path)
            warnings.warn(
                f"the cache of compiled kernels in {self.cache_path} cannot be used ({type(error).__name__}: {error}); "
                "kernels are compiled in memory, up to a minute in each process; free some space, delete that "
                "folder, or set NUMBA_CACHE_DIR to another one",
                UserWarning,
                stacklevel=2,
            )


class _Announcement(event.Listener):
    """Says that kernels are compiled, before the first of a burst: the user waits, and sees nothing else.

    It is a message of the logger ``corrmask_fast`` at INFO, which the command line shows. In an interactive Python that
    shows no such messages it goes to standard error. Workers of a DataLoader and ranks other than 0 say nothing.
    """

    def __init__(self):
        self._last, self._depth = -math.inf, 0

    def on_start(self, event):
        if not _is_ours(event):
            return
        begins, self._last = self._depth == 0 and time.monotonic() - self._last >= BURST, time.monotonic()
        self._depth += 1  # stages are compiled inside their kernel, under Numba's lock
        if not begins or multiprocessing.parent_process() is not None or os.environ.get("RANK", "0") != "0":
            return
        often = "they are kept for this machine and version"
        if not isinstance(event.data["dispatcher"]._cache, _Cache):  # noqa: SLF001
            often = "in every process, for they cannot be saved: set NUMBA_CACHE_DIR to a folder that can be written to"
        text = f"compiling kernels that are used here for the first time, up to half a minute ({often})"
        if _log.isEnabledFor(logging.INFO):
            _log.info(text)
        elif hasattr(sys, "ps1") and sys.stderr is not None:
            print(f"corrmask-fast: {text}", file=sys.stderr)  # noqa: T201

    def on_end(self, event):
        if _is_ours(event):
            self._last, self._depth = time.monotonic(), self._depth - 1


def _is_ours(event):
    return str(getattr(event.data["dispatcher"].py_func, "__module__", "")).startswith(f"{__package__}.")


event.register("numba:compile", _Announcement())
