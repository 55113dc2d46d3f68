"""Content of rows whose genes have values (SPEC 3): genes, columns and values of a cell in one 64-bit number.

    gene ids  RPL3  CD3E  <pad> …   (rows, columns), or one row for all
    values    4.2   0     0     …   float32 by their bits
    content = Σ n + mix(n xor bits(value)),  n = mix((column << 32) | token),  over maskable columns

One pass over a row, without a branch, so that it runs in vectors; threads take ranges of rows.
"""

import numpy as np

from .jit import inline, kernel
from .philox import LOW, S32
from .rows import mix


@inline
def content_of(column, token, bits):
    """What a gene and its value add to the content of a cell; ``bits`` of float32."""
    number = mix((np.uint64(column) << S32) | (np.uint64(token) & LOW))
    size = bits & np.uint32(0x7FFFFFFF)
    seen = np.uint64(0) if size == 0 else np.uint64(0x7FC00000) if size > np.uint32(0x7F800000) else np.uint64(bits)
    return number + mix(number ^ seen)


@kernel(makes_arrays=False)
def value_content(begin, end, tokens, maskable, first, values, content):
    """Write the content of rows begin … end − 1; ``tokens``, ``maskable`` and ``first`` may hold one row for all.

    maskable: uint8; first: the column that counts as 0; values: uint32, the bits of float32.
    """
    zero, several = np.uint64(0), tokens.shape[0] > 1
    for row in range(begin, end):
        which = row if several else 0
        offset = first[which]
        total = zero
        for c in range(values.shape[1]):
            total += content_of(c - offset, tokens[which, c], values[row, c]) if maskable[which, c] else zero
        content[row] = total
