"""How every Numba function here is compiled: without the GIL, with strict floating point, kernels cached on disk."""

import hashlib
import pickle
import warnings
from contextlib import suppress
from functools import partial
from pathlib import Path

from numba import njit
from numba.core.caching import FunctionCache, IndexDataCacheFile

# No parallel=True (unsafe in forked workers) and no fastmath (results are promised to the bit).
stage = njit(nogil=True, error_model="numpy")  # a part of a kernel
maker = njit(nogil=True, error_model="numpy", _nrt=True)  # a part that makes arrays where the kernel says it makes none
inline = njit(nogil=True, error_model="numpy", forceinline=True)  # must dissolve in the caller's loop to run in vectors

_SOURCES = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))).digest()
_told = set()  # cache folders that this process has warned of


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
