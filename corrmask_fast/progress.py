"""Progress of everything that takes long: a bar on a terminal, a line now and then in a file."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Iterator

Bar = Callable[[str, int, str], Any]  # (what, total, unit) -> a progress bar as tqdm makes it

SECONDS, SHARE = 10.0, 0.01  # between two lines of a file, at least: seconds, and a share of the time that has passed
_state = {"shown": True}


@contextmanager
def bars(*, shown: bool) -> Iterator[None]:
    """Show no progress inside the block where ``shown`` is False, whatever a function is asked for."""
    before = _state["shown"]
    _state["shown"] = shown
    try:
        yield
    finally:
        _state["shown"] = before


def shows_progress() -> bool:
    """Whether this process shows progress: of several ranks the first does, and none inside ``bars(shown=False)``.

    Without standard error (``2>&-``, a service, ``pythonw``) none does.
    """
    return _state["shown"] and sys.stderr is not None and os.environ.get("RANK", "0") == "0"


def is_live() -> bool:
    """Whether a line of standard error can be overwritten: on a terminal, and in a notebook."""
    isatty = getattr(sys.stderr, "isatty", None)  # what takes the place of standard error may have none
    return isatty is not None and (isatty() or hasattr(sys, "ps1"))


def progress_bar(what: str, total: int | None, unit: str, *, shown: bool) -> Any:
    """Return a bar on standard error: ``update(n)`` moves it; a context manager.

    Without a terminal it is a line each ten seconds, later fewer, and one at the end: a log file stays short. What was
    done before, in a run that goes on, is set as ``bar.initial`` and ``bar.n``: the time left is then right.
    """
    shown = shown and shows_progress()
    if shown and not is_live():
        return LineBar(what, total, unit)
    from tqdm import tqdm

    return tqdm(desc=what, total=total, unit=unit, unit_scale=True, disable=not shown, file=sys.stderr, mininterval=0.5)


def silent_bar(what: str, total: int | None, unit: str) -> Any:
    """Return a :func:`progress_bar` that shows nothing."""
    return progress_bar(what, total, unit, shown=False)


class LineBar:
    """A progress bar that writes whole lines."""

    def __init__(self, what: str, total: int | None, unit: str) -> None:
        self.what, self.total, self.unit = what, total, unit
        self.n = self.initial = 0
        self._began = self._told = time.monotonic()

    def update(self, n: int = 1) -> None:
        """Move the bar; write a line if the last one is old enough."""
        self.n += n
        now = time.monotonic()
        if now - self._told >= max(SECONDS, SHARE * (now - self._began)):
            self._write()

    def close(self) -> None:
        """Write the last line."""
        self._write()

    def _write(self) -> None:
        from tqdm import tqdm

        self._told = time.monotonic()
        elapsed, look = self._told - self._began, {"unit": self.unit, "unit_scale": True, "prefix": self.what}
        text = tqdm.format_meter(self.n, self.total, elapsed, 0, initial=self.initial, **look)
        write_line(text)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def write_line(text: str) -> None:
    """Write a line to standard error, above the bars that are there; where nobody can read it, nothing happens."""
    if sys.stderr is None:  # print would take standard output
        return
    tqdm = sys.modules.get("tqdm")
    with suppress(OSError):  # a pipe that its reader left, a full disk: the work goes on
        if tqdm is None or not is_live():
            print(text, file=sys.stderr, flush=True)  # noqa: T201
        else:
            tqdm.tqdm.write(text, file=sys.stderr)


def duration(seconds: float) -> str:
    """Return a duration as one reads it.

    >>> duration(12.4), duration(600), duration(9000)
    ('12 s', '10 min', '2.5 h')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
