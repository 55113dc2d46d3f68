"""Random masking: single genes, all alike. It is the control of every other strategy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from corrmask_fast.kernels.layout import RANDOM
from corrmask_fast.masking.base import Masker, RateLike
from corrmask_fast.masking.engine.tables import no_table

if TYPE_CHECKING:
    from corrmask_fast.cells.vocabulary import Vocabulary

__all__ = ["RandomMasker"]


class RandomMasker(Masker):
    """Mask random genes: exactly floor(n · p) of a row's n maskable tokens, each set of them as likely as any other.

    It is the control of the other strategies. :class:`~corrmask_fast.CorrMasker` with ``structural_ratio=0`` gives the
    same masks.

    Parameters
    ----------
    vocabulary
        The :class:`~corrmask_fast.Vocabulary`: which id is which gene.
    mlm_probability
        p, in (0, 1): share of a row's maskable tokens that is masked. A number, a range or a schedule.
    mask_replace_prob, random_replace_prob, replace, seed, validate
        As for :class:`~corrmask_fast.CorrMasker`.

    Raises
    ------
    InputError
        If a parameter is out of range.

    Examples
    --------
    >>> import torch
    >>> from corrmask_fast import RandomMasker, Vocabulary
    >>> genes = Vocabulary(("<pad>", "<mask>", *(f"G{i}" for i in range(8))))
    >>> masked = RandomMasker(genes, mlm_probability=0.25)(torch.arange(2, 10).repeat(2, 1), epoch=0)
    >>> (masked.labels != -100).sum(1)
    tensor([2, 2])
    """

    label = "Random"

    def __init__(
        self,
        vocabulary: Vocabulary,
        *,
        mlm_probability: RateLike = 0.15,
        mask_replace_prob: float = 0.8,
        random_replace_prob: float = 0.1,
        replace: str = "token",
        seed: int = 0,
        validate: bool | None = None,
    ) -> None:
        super().__init__(
            vocabulary,
            RANDOM,
            no_table(vocabulary),
            mlm_probability=mlm_probability,
            structural_ratio=0.0,
            mask_replace_prob=mask_replace_prob,
            random_replace_prob=random_replace_prob,
            replace=replace,
            seed=seed,
            validate=validate,
        )
