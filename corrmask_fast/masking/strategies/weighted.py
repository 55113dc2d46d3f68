"""Weighted masking: single genes, each as often as its weight says."""

from __future__ import annotations

from typing import TYPE_CHECKING

from corrmask_fast.kernels.layout import RANDOM
from corrmask_fast.masking.base import Masker, RateLike
from corrmask_fast.masking.engine.tables import no_table
from corrmask_fast.masking.weights import gene_weights, token_costs

if TYPE_CHECKING:
    from corrmask_fast.cells.vocabulary import Vocabulary
    from corrmask_fast.masking.weights import Weights

__all__ = ["WeightedMasker"]


class WeightedMasker(Masker):
    """Mask genes by weight: exactly floor(n · p) of a row's n maskable tokens, drawn one after the other.

    Each draw takes one of the genes that are left, with a chance proportional to its weight. With equal weights that
    is :class:`~corrmask_fast.RandomMasker`.

    Parameters
    ----------
    vocabulary
        Which id is which gene.
    weights
        Gene (token id, name or symbol) → weight, > 0; genes that are not named have 1. Or (V,) numbers, one for each
        token (those of special tokens are ignored). Or the path of a text file with a gene, a tab or comma, and its
        weight in each line. The largest is at most 2^20 times the smallest.
    mlm_probability, mask_replace_prob, random_replace_prob, replace, seed, validate
        See :class:`~corrmask_fast.CorrMasker`, which takes weights too.

    Raises
    ------
    InputError
        If a weight is not finite, not above 0 or too far from the others, or a gene is not in the vocabulary. A gene
        that must never be masked goes into ``special_tokens_mask``.

    Notes
    -----
    Weights are compared with each other alone: twice all weights are the same masks. In a row, a heavy gene is masked
    less often than its share of the weights says, for it can be masked only once.

    Examples
    --------
    >>> import torch
    >>> from corrmask_fast import Vocabulary, WeightedMasker
    >>> genes = Vocabulary(("<pad>", "<mask>", *(f"G{i}" for i in range(8))))
    >>> masker = WeightedMasker(genes, {"G0": 9.0}, mlm_probability=0.25)
    >>> masked = masker(torch.arange(2, 10).repeat(4000, 1), epoch=0)
    >>> (masked.labels != -100).sum(1).unique()
    tensor([2])
    >>> masker.weights[2:5]
    array([9., 1., 1.])
    """

    label = "Weighted"
    mask_source = "weights"

    def __init__(
        self,
        vocabulary: Vocabulary,
        weights: Weights,
        *,
        mlm_probability: RateLike = 0.15,
        mask_replace_prob: float = 0.8,
        random_replace_prob: float = 0.1,
        replace: str = "token",
        seed: int = 0,
        validate: bool | None = None,
    ) -> None:
        found = gene_weights(weights, vocabulary)
        super().__init__(
            vocabulary,
            RANDOM,
            no_table(vocabulary).with_costs(token_costs(found, vocabulary)),
            mlm_probability=mlm_probability,
            structural_ratio=0.0,
            mask_replace_prob=mask_replace_prob,
            random_replace_prob=random_replace_prob,
            replace=replace,
            seed=seed,
            validate=validate,
        )
        self.weights = found
