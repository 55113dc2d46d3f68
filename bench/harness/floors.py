"""What no implementation can beat: moving the bytes, and computing the random words.

    masking a padded tensor   8 bytes read, 16 written a token  (input_ids; input_ids, labels)
    collating                 4 bytes read, 24 written a token  (Arrow's int32; input_ids, attention_mask, labels)
    random words              one Philox call a column: w0 orders seeds, w1 the top-up; w2, w3 replace

The calls for the neighbours of seeds come on top: how many are needed depends on the cell.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from corrmask_fast.kernels.jit import kernel
from corrmask_fast.kernels.philox import philox

if TYPE_CHECKING:
    from collections.abc import Callable


def copy_masked(rows: int, columns: int) -> Callable[[], None]:
    """Return a function that moves as many bytes as masking a padded tensor does."""
    tokens, out, labels = (torch.ones((rows, columns), dtype=torch.int64) for _ in range(3))

    def run() -> None:
        out.copy_(tokens)
        labels.fill_(-100)

    return run


def copy_collated(rows: int, columns: int) -> Callable[[], None]:
    """Return a function that moves as many bytes as collating does."""
    tokens = torch.ones((rows, columns), dtype=torch.int32)
    out, attention, labels = (torch.ones((rows, columns), dtype=torch.int64) for _ in range(3))

    def run() -> None:
        out.copy_(tokens)
        attention.fill_(1)
        labels.fill_(-100)

    return run


def philox_words(rows: int, columns: int) -> Callable[[], None]:
    """Return a function that computes the words of every column, keeping w0 and w1."""
    w0, w1 = np.empty(columns, np.uint32), np.empty(columns, np.uint32)
    return lambda: _philox_words(rows, w0, w1)


@kernel
def _philox_words(rows, w0, w1):
    zero = np.uint64(0)
    for row in range(rows):
        for column in range(w0.size):
            a, b, c, d = philox(np.uint64(column), zero, np.uint64(row), zero, zero, zero)
            w0[column] = a ^ c
            w1[column] = b ^ d
