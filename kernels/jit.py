"""How every Numba function here is compiled: without the GIL, with strict floating point, kernels cached on disk."""

from numba import njit

# No parallel=True (unsafe in forked workers) and no fastmath (results are promised to the bit).
kernel = njit(nogil=True, cache=True, error_model="numpy")  # called from Python
stage = njit(nogil=True, error_model="numpy")  # a part of a kernel
inline = njit(nogil=True, error_model="numpy", forceinline=True)  # must dissolve in the caller's loop to run in vectors
