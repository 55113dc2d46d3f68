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
        The :class:`~corrmask_fast.Vocabulary`: which id is which gene.
    weights
        One of: a mapping from genes (token id, name or symbol) to weights, where other genes have 1; (V,) numbers, one
        for each token, of which those of special tokens are ignored; the path of a text file with a gene, a tab or
        comma, and its weight in each line. Weights are finite and > 0, the largest at most 2^20 times the smallest.
    mlm_probability
        p, in (0, 1): share of a row's maskable tokens that is masked. A number, a range or a schedule.
    mask_replace_prob, random_replace_prob, replace, seed, validate
        As for :class:`~corrmask_fast.CorrMasker`.

    Attributes
    ----------
    weights
        (V,) float64, read-only: the weight of each token; special tokens have 1.

    Raises
    ------
    InputError
        If a weight is not finite, not above 0 or too far from the others, a gene is not in the vocabulary or has two
        weights, the file cannot be read, or a parameter is out of range. A gene that must never be masked goes into
        ``special_tokens_mask``.

    Notes
    -----
    Only ratios of weights matter: doubling all of them changes no mask. In a row, a gene of large weight is masked less
    often than its share of the weights, since it can be masked only once. Draws by weight: Efraimidis & Spirakis 2006,
    docs/SPEC.md 3.

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
