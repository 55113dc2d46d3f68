"""Balanced CorrMask: correlated genes are masked together, and every gene of a cell equally often."""

from __future__ import annotations

from typing import TYPE_CHECKING

from corrmask_fast.kernels.layout import BALANCED
from corrmask_fast.masking.base import Masker, RateLike
from corrmask_fast.masking.strategies.corrmask import by_graphs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from corrmask_fast.graph.dependency_graph import DependencyGraph

__all__ = ["BalancedCorrMasker"]


class BalancedCorrMasker(Masker):
    """Mask correlated genes together, and every gene of a cell with the same probability.

    CorrMask masks a gene with many partners far more often than others, since each partner brings it along. Here a row
    is divided into modules: each gene joins the first, in a random order, of itself and its partners in the row. The
    shuffled modules form a circle, and an arc of the circle, from a random start, is masked. This strategy is not from
    the paper: docs/SPEC.md 5 defines it.

    Parameters
    ----------
    graph
        A :class:`~corrmask_fast.DependencyGraph`, or a list of them, as for :class:`~corrmask_fast.CorrMasker`.
    mlm_probability
        p, in (0, 1): share of a row's n maskable tokens that is masked, exactly floor(n · p). A number, a range or a
        schedule.
    structural_ratio
        λ, in [0, 1]: share of the masked tokens that the graph chooses; the rest is random. A number, a range or a
        schedule.
    mask_replace_prob, random_replace_prob, replace, seed, validate
        As for :class:`~corrmask_fast.CorrMasker`.

    Raises
    ------
    InputError
        If ``graph`` is no graph, several graphs have different vocabularies, or a parameter is out of range.

    Examples
    --------
    >>> import torch
    >>> from corrmask_fast import BalancedCorrMasker, DependencyGraph, Vocabulary
    >>> genes = Vocabulary(("<pad>", "<mask>", *(f"G{i}" for i in range(8))))
    >>> graph = DependencyGraph.from_edges([("G0", "G1"), ("G2", "G3"), ("G4", "G5"), ("G6", "G7")], genes)
    >>> masker = BalancedCorrMasker(graph, mlm_probability=0.5)
    >>> masker(torch.arange(2, 10).repeat(2, 1), epoch=0).masked_positions.shape
    torch.Size([2, 4])
    """

    label = "CorrMask-balanced"
    mask_source = "graph"

    def __init__(
        self,
        graph: DependencyGraph | Sequence[DependencyGraph],
        *,
        mlm_probability: RateLike = 0.15,
        structural_ratio: RateLike = 1.0,
        mask_replace_prob: float = 0.8,
        random_replace_prob: float = 0.1,
        replace: str = "token",
        seed: int = 0,
        validate: bool | None = None,
    ) -> None:
        vocabulary, _, table = by_graphs(graph)
        super().__init__(
            vocabulary,
            BALANCED,
            table,
            mlm_probability=mlm_probability,
            structural_ratio=structural_ratio,
            mask_replace_prob=mask_replace_prob,
            random_replace_prob=random_replace_prob,
            replace=replace,
            seed=seed,
            validate=validate,
        )
