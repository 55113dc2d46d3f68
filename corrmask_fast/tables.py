"""Tables of results: aligned text for the terminal, CSV for everything else."""

from __future__ import annotations

import csv
from typing import TYPE_CHECKING, Any

from corrmask_fast.files import atomic_file

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Sequence


def align(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return lines of aligned columns: the first to the left, the others to the right.

    >>> align([["gene", "degree"], ["RPL3", "7"]])
    ['gene  degree', 'RPL3       7']
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join([row[0].ljust(widths[0]), *(text.rjust(w) for text, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]


def write_csv(path: str | os.PathLike[str], head: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a CSV file, whole or not at all."""
    with atomic_file(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(head)
        writer.writerows(rows)
