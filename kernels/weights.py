"""Weights as an order (SPEC 3): the smallest keys are a draw without replacement, by weight.

    word w    ──▶  y = 2·(2³² − 1 − w) + 1, a uniform number y / 2³³
              ──▶  E = −log2(y / 2³³), 27 fractional bits
              ──▶  P = E · cost, the time at which an exponential race reaches a gene (Efraimidis & Spirakis 2006)
              ──▶  key: the number of P's top bit, and the 26 bits after that bit

    log2(1 + x) = x + x(1 − x)·q(x), where q is a polynomial: 1.2 · 10⁻⁶ of E, at most, and exact at both ends

Below that are guesses: which key a share of the columns does not exceed. They decide the time, never the result.
"""

import math

import numpy as np

from .jit import stage
from .philox import LOW

# Of q, times 2³²: a0 − x(a1 − x(a2 − …)).
COEFFICIENTS = (1901054808, 1190405809, 822506361, 517674646, 230751926, 49432681)
FRACTION = 0xFFFFFFE0  # as fine as E: so E never rises with w
KEY_BITS = 26  # of a key after the number of P's top bit
COST_SCALE = 2.0**27  # what a cost adds to the scale of keys, see key_at


def race_key(word, cost):
    """Return keys of words and costs, all as ``Lanes``."""
    y = (word ^ LOW) << 1 | 1
    zeros = y.leading_zeros()
    x = (y << (zeros - 31)) & FRACTION
    q = COEFFICIENTS[-1]
    for a in COEFFICIENTS[-2::-1]:
        q = a - (x * q >> 32) & LOW  # LLVM shall see that 32 bits suffice
    log = x + ((x * (x ^ LOW) >> 32) * q >> 32)
    p = ((zeros - 30 << 27) - (log >> 5)) * cost
    zeros = p.leading_zeros()
    return (62 - zeros << KEY_BITS) + (p << zeros >> 63 - KEY_BITS)


@stage
def key_at(share, scale):
    """Return the key below which lies about this share of the columns: P there is −scale · log2(1 − share)."""
    if share <= 0.0:
        return np.uint64(0)
    if share >= 1.0:
        return LOW
    mantissa, exponent = math.frexp(-scale * np.log2(1.0 - share))
    return np.uint64(min(max((exponent - 2 + 2.0 * mantissa) * 2.0**KEY_BITS, 0.0), 4294967295.0))


@stage
def scale_of(key, share):
    """Return the scale with which :func:`key_at` gives this key for that share, inside (0, 1)."""
    place = np.float64(key) / 2.0**KEY_BITS
    top = np.floor(place)
    return -math.ldexp(1.0 + place - top, np.int64(top)) / np.log2(1.0 - share)
