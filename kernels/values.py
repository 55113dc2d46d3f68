"""Content of rows whose genes have values (SPEC 3): genes, columns and values of a cell in one 64-bit number.

    gene ids  RPL3  CD3E  <pad> …   (rows, columns), or one row for all
    values    4.2   0     0     …   float32 by their bits
    content = Σ n + mix(n xor bits(value)),  n = mix((column << 32) | token),  over maskable columns

One pass over a row, without a branch, so that it runs in vectors; threads take ranges of rows.
"""

import numpy as np

from .jit import kernel
from .rows import mix


@kernel(makes_arrays=False)
def value_content(begin, end, tokens, maskable, first, values, content):
    """Write the content of rows begin … end − 1; ``tokens``, ``maskable`` and ``first`` may hold one row for all.

    maskable: uint8; first: the column that counts as 0; values: uint32, the bits of float32.
    """
    low, keep, zero = np.uint64(0xFFFFFFFF), np.uint32(0x7FFFFFFF), np.uint64(0)
    infinite, nan = np.uint32(0x7F800000), np.uint64(0x7FC00000)
    several = tokens.shape[0] > 1
    for row in range(begin, end):
        which = row if several else 0
        offset = first[which]
        total = zero
        for c in range(values.shape[1]):
            number = mix((np.uint64(c - offset) << np.uint64(32)) | (np.uint64(tokens[which, c]) & low))
            size = values[row, c] & keep
            bits = zero if size == 0 else nan if size > infinite else np.uint64(values[row, c])
            total += (number + mix(number ^ bits)) if maskable[which, c] else zero
        content[row] = total
