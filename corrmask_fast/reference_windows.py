"""The windows of appendix C.6 of the CorrMask paper in plain Python: the oracle of ``kernels/windows.py``."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Container, Mapping, Sequence

__all__ = ["count_windows"]


def count_windows(
    cells: Sequence[Sequence[int]], neighbors: Mapping[int, Container[int]], width: int
) -> tuple[int, int, int, int, int]:
    """Return tokens, tokens with a neighbour in the graph, of these those with one near, windows, those with a pair.

    Parameters
    ----------
    cells
        Every cell as its gene tokens by falling expression, without special tokens.
    neighbors
        Gene → its neighbours in the dependency graph; genes without any may be left out.
    width
        Tokens of a window, and how many on either side are near.
    """
    tokens = linked = near = windows = with_pair = 0
    for cell in cells:
        for i, gene in enumerate(cell):
            tokens += 1
            partners = neighbors.get(gene)
            if partners:
                linked += 1
                near += any(other in partners for other in (*cell[max(0, i - width) : i], *cell[i + 1 : i + 1 + width]))
        for begin in range(len(cell) - width + 1):
            window = cell[begin : begin + width]
            windows += 1
            with_pair += any(other in neighbors.get(gene, ()) for gene in window for other in window)
    return tokens, linked, near, windows, with_pair
