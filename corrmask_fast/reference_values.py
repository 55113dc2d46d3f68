"""Cells with values (SPEC 8) in plain Python: the oracle of kernels/value_rows.py. Imports the other oracle alone."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from corrmask_fast import reference

if TYPE_CHECKING:
    from collections.abc import Sequence

BLOCK = 2**32 - 4


class PreparedCell(NamedTuple):
    """A cell as it is masked: ids, values, values before the transform (0 at special tokens), and its draw_id."""

    tokens: list[int]
    values: list[float]
    raw: list[float]
    draw_id: int


def prepare_cell(
    tokens: Sequence[int],
    values: Sequence[float],
    *,
    genes: range,
    seed: int,
    salt: int,
    cls: int | None = None,
    transform: str | None = None,
    target_sum: float | None = 10_000.0,
    n_bins: int = 51,
    bin_ties: str = "spread",
    max_length: int | None = None,
    sampling: bool = True,
) -> PreparedCell:
    """Transform a cell and cut it to ``max_length`` columns; values are numbers that float32 holds.

    >>> cell = prepare_cell([2, 3, 4], [1, 9, 0], genes=range(2, 5), seed=0, salt=0, transform="bins", n_bins=4)
    >>> cell.values
    [1.0, 3.0, 0.0]
    """
    if cls is not None and list(tokens[:1]) != [cls]:
        tokens, values = [cls, *tokens], [0.0, *values]
    own = [column for column, token in enumerate(tokens) if token in genes]
    content = reference.row_content({c: tokens[c] for c in own}, {c: values[c] for c in own})
    draw_id = reference.mix(content + salt)
    words = {c: reference.words(seed, draw_id, c, BLOCK) for c in own}
    made = {c: float(values[c]) for c in own}
    if transform == "log1p":
        total = math.fsum(values[c] for c in own)
        for c in own:
            scaled = values[c] if target_sum is None else values[c] / total * target_sum if total else 0.0
            made[c] = math.log1p(scaled)
    elif transform == "bins":
        edges = _quantiles(sorted(values[c] for c in own if values[c] > 0), n_bins - 1)
        for c in own:
            below, upto = (sum(test) for test in ([e < values[c] for e in edges], [e <= values[c] for e in edges]))
            spread = below + 1 + (words[c][1] * (upto - below) >> 32)
            number = {"lower": below, "upper": upto, "spread": spread}[bin_ties] if upto > below else below
            made[c] = float(number if values[c] > 0 else 0)
    kept = list(range(len(tokens)))
    if max_length is not None and len(tokens) > max_length:
        special = [c for c in kept if c not in own]
        drawn = sorted(own, key=lambda c: (words[c][0], c))[: max_length - len(special)]
        kept = sorted(special + drawn) if sampling else kept[:max_length]
    return PreparedCell(
        [tokens[c] for c in kept],
        [made.get(c, 0.0) for c in kept],
        [float(values[c]) if c in own else 0.0 for c in kept],
        draw_id,
    )


def _quantiles(ordered: Sequence[float], n: int) -> list[float]:
    """Return ``n`` quantiles of sorted numbers, at 0, step, 2 step … 1, between neighbours in proportion."""
    step = 1 / (n - 1)
    edges = []
    for j in range(n) if ordered else ():
        place = (j * step if j < n - 1 else 1.0) * (len(ordered) - 1)
        below = math.floor(place)
        a, b, share = ordered[below], ordered[min(below + 1, len(ordered) - 1)], place - below
        edges.append(b - (b - a) * (1 - share) if share >= 0.5 else a + (b - a) * share)
    return edges
