"""Span masking: runs of neighbouring genes, of random length."""

from __future__ import annotations

from typing import TYPE_CHECKING

from corrmask_fast.kernels.layout import SPAN
from corrmask_fast.masking.base import Masker, RateLike
from corrmask_fast.masking.engine.tables import no_table

if TYPE_CHECKING:
    from corrmask_fast.cells.vocabulary import Vocabulary

__all__ = ["SpanMasker"]


class SpanMasker(Masker):
    """Mask runs of neighbouring genes (SpanBERT, Joshi et al. 2020).

    The length of a run is geometric with p = 0.2, truncated to 1 to 10 genes (docs/SPEC.md 5).

    Parameters
    ----------
    vocabulary
        The :class:`~corrmask_fast.Vocabulary`: which id is which gene.
    mlm_probability
        p, in (0, 1): share of a row's n maskable tokens that is masked, exactly floor(n · p). A number, a range or a
        schedule.
    structural_ratio
        λ, in [0, 1]: share of the masked tokens that spans choose; the rest is random. A number, a range or a schedule.
    mask_replace_prob, random_replace_prob, replace, seed, validate
        As for :class:`~corrmask_fast.CorrMasker`.

    Raises
    ------
    InputError
        If a parameter is out of range.

    Examples
    --------
    >>> import torch
    >>> from corrmask_fast import SpanMasker, Vocabulary
    >>> genes = Vocabulary(("<pad>", "<mask>", *(f"G{i}" for i in range(30))))
    >>> masker = SpanMasker(genes, mlm_probability=0.2)
    >>> masker(torch.arange(2, 32)[None], epoch=1).masked_positions
    tensor([[ 8, 24, 26, 27, 28, 29]])
    """

    label = "Span"

    def __init__(
        self,
        vocabulary: Vocabulary,
        *,
        mlm_probability: RateLike = 0.15,
        structural_ratio: RateLike = 1.0,
        mask_replace_prob: float = 0.8,
        random_replace_prob: float = 0.1,
        replace: str = "token",
        seed: int = 0,
        validate: bool | None = None,
    ) -> None:
        super().__init__(
            vocabulary,
            SPAN,
            no_table(vocabulary),
            mlm_probability=mlm_probability,
            structural_ratio=structural_ratio,
            mask_replace_prob=mask_replace_prob,
            random_replace_prob=random_replace_prob,
            replace=replace,
            seed=seed,
            validate=validate,
        )
