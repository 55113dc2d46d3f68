"""Output arrays from memory that was used before: fresh memory costs a page fault for every 4 KiB.

A batch of 256 cells is 4 MiB an array. The allocator gives such blocks back to the system as soon as they are free, and
faulting them in again takes about as long as masking does; it may do so with blocks of 16 KiB too, when they lie at the
end of its memory. Here a block is kept, and used again once nothing that was made of it (array or tensor) is left.
"""

from __future__ import annotations

import math
import os
import sys
import threading
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import DTypeLike

SMALLEST = 2**13  # bytes: below, a look for a block takes longer than page faults
LARGEST = 2**26  # bytes: what is larger is no batch, and would be kept for nothing
KEPT = 2**29  # bytes kept at most, in all
MOST = 64  # blocks kept at most: all are looked through

_blocks: list[np.ndarray] = []
_lock = threading.RLock()


def _start_anew() -> None:
    """In a forked child, where the lock may be held by a thread that is not there."""
    global _lock  # noqa: PLW0603
    _lock = threading.RLock()
    _blocks.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_anew)


def empty(shape: tuple[int, ...], dtype: DTypeLike = np.int64) -> np.ndarray:
    """Return an array of a shape and dtype, its content undefined."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    if not SMALLEST <= size <= LARGEST:
        return np.empty(shape, dtype)
    with _lock:
        for block in _blocks:
            if size <= block.size <= 2 * size and sys.getrefcount(block) == _UNUSED:
                return block[:size].view(dtype).reshape(shape)
        block = np.empty(size, np.uint8)
        _blocks.append(block)
        while len(_blocks) > MOST or sum(kept.nbytes for kept in _blocks) > KEPT:
            del _blocks[0]  # whoever uses it still has it
        return block[:size].view(dtype).reshape(shape)


def _references_of_an_unused_block() -> int:
    """Count what ``empty`` sees of a block that only the list holds."""
    for block in [np.empty(0)]:
        return sys.getrefcount(block)
    return 0


# A debugger that looks at the locals above holds one more; with 3 a block in use is never given away.
_UNUSED = min(3, _references_of_an_unused_block())
