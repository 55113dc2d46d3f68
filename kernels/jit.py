"""How every Numba function here is compiled: without the GIL, with strict floating point, kernels cached on disk."""

import hashlib
from functools import partial
from pathlib import Path

from numba import njit

# No parallel=True (unsafe in forked workers) and no fastmath (results are promised to the bit).
stage = njit(nogil=True, error_model="numpy")  # a part of a kernel
maker = njit(nogil=True, error_model="numpy", _nrt=True)  # a part that makes arrays where the kernel says it makes none
inline = njit(nogil=True, error_model="numpy", forceinline=True)  # must dissolve in the caller's loop to run in vectors

_SOURCES = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))).digest()


def kernel(function=None, *, makes_arrays=True):
    """Compile a function that is called from Python.

    Where neither it nor a stage of it makes arrays (a copy of one slice to another does) or returns them, Numba need
    not count who uses those that it is given: atomic instructions for each array that one function hands to another.

    Numba's cache looks at the time of the function's own file, but a kernel holds what it calls from other files too:
    here a cached kernel is as old as the text of all of them.
    """
    if function is None:
        return partial(kernel, makes_arrays=makes_arrays)
    options = {"nogil": True, "error_model": "numpy", "_nrt": makes_arrays}
    try:
        dispatcher = njit(cache=True, **options)(function)
    except RuntimeError:  # no folder to write to: compile in every process
        return njit(**options)(function)
    cache_file = getattr(getattr(dispatcher, "_cache", None), "_cache_file", None)
    if cache_file is not None:
        cache_file._source_stamp = _SOURCES  # noqa: SLF001 (Numba offers no public way)
    return dispatcher
