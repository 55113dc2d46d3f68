"""The progress bar of everything that takes long."""

from __future__ import annotations

import sys
from typing import Any


def progress_bar(what: str, total: int | None, unit: str, *, shown: bool) -> Any:
    """Return a tqdm bar on standard error: ``update(n)`` moves it; a context manager."""
    from tqdm import tqdm

    return tqdm(desc=what, total=total, unit=unit, unit_scale=True, disable=not shown, file=sys.stderr, mininterval=0.5)
