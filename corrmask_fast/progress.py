"""The progress bar of everything that takes long."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

Bar = Callable[[str, int, str], Any]  # (what, total, unit) -> a progress bar as tqdm makes it


def progress_bar(what: str, total: int | None, unit: str, *, shown: bool) -> Any:
    """Return a tqdm bar on standard error: ``update(n)`` moves it; a context manager."""
    from tqdm import tqdm

    return tqdm(desc=what, total=total, unit=unit, unit_scale=True, disable=not shown, file=sys.stderr, mininterval=0.5)


def silent_bar(what: str, total: int | None, unit: str) -> Any:
    """Return a :func:`progress_bar` that shows nothing."""
    return progress_bar(what, total, unit, shown=False)


def duration(seconds: float) -> str:
    """Return a duration as one reads it.

    >>> duration(12.4), duration(600), duration(9000)
    ('12 s', '10 min', '2.5 h')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
