"""How every Numba kernel here is compiled: without the GIL, cached on disk, with strict floating point."""

from numba import njit

# No parallel=True (unsafe in forked workers) and no fastmath (results are promised to the bit).
kernel = njit(nogil=True, cache=True, error_model="numpy")
inline = njit(nogil=True, error_model="numpy", inline="never")
