"""Sums of more than 64 bits, for graphs of more cells than 64 bits hold the sums of.

A sum is kept in two words, high · 2**64 + low. What is added comes in 64-bit sums of a chunk of cells, few enough that
these do not overflow; a carry is seen by the low word having become smaller than what was added to it. At the end a sum
becomes a float64, rounded once, to the nearest (ties to even), as Python rounds its integers:

    |  high  |  low   |   →   its 64 leading bits, the last one set if any bit below is   →   float64 · 2**shift

Work split: any range of sums. Assumed: fewer than 2**31 cells.
"""

import numpy as np

from .jit import inline, kernel, stage

LOW32, S32 = np.uint64(0xFFFFFFFF), np.uint64(32)
ONE, TOP = np.uint64(1), np.uint64(2**63)


@inline
def multiply(a, b):
    """Return (high, low) of the product of two uint64."""
    a0, a1, b0, b1 = a & LOW32, a >> S32, b & LOW32, b >> S32
    low, middle = a0 * b0, a1 * b0
    middle += low >> S32
    other = a0 * b1 + (middle & LOW32)
    return a1 * b1 + (middle >> S32) + (other >> S32), (other << S32) | (low & LOW32)


@inline
def add(high, low, more_high, more_low):
    """Return (high, low) of a sum, modulo 2**128."""
    total = low + more_low
    return high + more_high + np.uint64(total < low), total


@inline
def negate(high, low):
    """Return (high, low) of the negative, modulo 2**128."""
    return add(~high, ~low, np.uint64(0), ONE)


@stage
def to_float(high, low):
    """Return a signed 128-bit integer as float64, rounded once."""
    negative = high >= TOP
    if negative:
        high, low = negate(high, low)
    if high == 0:
        value = np.float64(low)
    else:
        shift = np.uint64(0)
        for step in (32, 16, 8, 4, 2, 1):
            if (high >> np.uint64(64 - step)) == 0:
                high = (high << np.uint64(step)) | (low >> np.uint64(64 - step))
                low <<= np.uint64(step)
                shift += np.uint64(step)
        value = np.float64(high | np.uint64(low != 0)) * np.float64(TOP >> shift) * 2.0
    return -value if negative else value


@kernel
def fold(part, low, high):
    """Add ``part`` (uint64, any shape, flat) to the sums ``low`` (uint64) and ``high`` (uint32)."""
    for i in range(part.size):
        total = low[i] + part[i]
        high[i] += np.uint32(total < part[i])
        low[i] = total


@kernel
def centre_sums(low, high, columns_u, columns_v, n_cells, n_positive, products):
    """products[a, b] = the sum of e_u·e_v, minus n_cells·m_u·m_v, as float64; may lie where ``low`` lies."""
    for a in range(columns_u.size):
        for b in range(columns_v.size):
            m_u, m_v = n_positive[columns_u[a]], n_positive[columns_v[b]]
            off_high, off_low = negate(*multiply(np.uint64(n_cells) * np.uint64(m_u), np.uint64(m_v)))
            total_high, total_low = add(np.uint64(high[a, b]), low[a, b], off_high, off_low)
            products[a, b] = to_float(total_high, total_low)


@kernel
def to_floats(low, high, out):
    """Round signed sums: ``low`` uint64, ``high`` int64."""
    for i in range(low.size):
        out[i] = to_float(np.uint64(high[i]), low[i])
