"""Rank-value encoding (SPEC 7) in plain Python: the oracle of kernels/encode.py. Imports nothing of the package."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


def encode_cell(
    entries: Sequence[tuple[int, float]],
    token_of_column: Sequence[int | None],
    median_of_token: Mapping[int, float],
    *,
    target_sum: float = 10_000.0,
    total: float | None = None,
    fractional: bool = False,
    max_length: int | None = None,
) -> list[int]:
    """Return a cell's tokens by falling value, ties by lower token.

    Parameters
    ----------
    entries
        (column, count) as stored; a column may stand there several times.
    token_of_column
        The token of each column; −1 where the column counts for the total alone, None where not even for that.
    median_of_token
        Tokens without a median are left out.
    total
        The cell's total. None: the sum of its counts, in the order of the entries.

    Raises
    ------
    ValueError
        If a count is negative, not finite or (without ``fractional``) not whole, or a total is not above 0.
    """
    whole = 0.0
    sums: dict[int, float] = {}
    for column, count in entries:
        token = token_of_column[column]
        if token is None:
            continue
        if not 0 <= count < math.inf or (count != math.floor(count) and not fractional):
            raise ValueError(f"{count} is no count")
        whole += count
        if token in median_of_token and count > 0:
            sums[token] = sums.get(token, 0.0) + count
    if whole > 0 and total is not None:
        whole = total if total > 0 else math.inf
    if not whole < math.inf:
        raise ValueError(f"{whole} is no total")
    value = {token: count / whole * target_sum / median_of_token[token] for token, count in sums.items()}
    return sorted(value, key=lambda token: (-value[token], token))[:max_length]
