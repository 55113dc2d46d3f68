"""The PMI table in plain Python: the oracle that :meth:`PMITable.from_corpus` must equal to the bit."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["pmi_table"]


def pmi_table(cells: Sequence[Sequence[int]], *, min_count: int = 50) -> dict[tuple[int, int], float]:
    """Return the NPMI of every ordered pair of neighbouring tokens seen at least ``min_count`` times.

    Parameters
    ----------
    cells
        Every cell as its gene tokens, without special tokens.
    """
    of_gene: dict[int, int] = {}
    of_pair: dict[tuple[int, int], int] = {}
    for cell in cells:
        for gene in cell:
            of_gene[gene] = of_gene.get(gene, 0) + 1
        for pair in pairwise(cell):
            of_pair[pair] = of_pair.get(pair, 0) + 1
    tokens, pairs = sum(of_gene.values()), sum(of_pair.values())
    npmi = {}
    for (u, v), count in sorted(of_pair.items()):
        if count < min_count:
            continue
        p_uv, p_u, p_v = count / pairs, of_gene[u] / tokens, of_gene[v] / tokens
        npmi[u, v] = 1.0 if p_uv == 1.0 else math.log(p_uv / (p_u * p_v)) / -math.log(p_uv)
    return npmi
