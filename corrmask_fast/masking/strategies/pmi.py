"""PMI masking: runs of genes that stand next to each other more often than by chance."""

from __future__ import annotations

from typing import TYPE_CHECKING

from corrmask_fast.errors import InputError, shown
from corrmask_fast.kernels.layout import PMI
from corrmask_fast.masking.base import Masker, RateLike
from corrmask_fast.masking.engine.tables import table_of_pairs
from corrmask_fast.tensor_files import hash_tensors

if TYPE_CHECKING:
    from corrmask_fast.masking.pmi_table import PMITable

__all__ = ["PMIMasker"]


class PMIMasker(Masker):
    """Mask runs of genes that stand next to each other more often than by chance (PMI masking, Levine et al. 2021).

    Parameters
    ----------
    table
        The :class:`~corrmask_fast.PMITable`: which ordered pairs of genes are associated. Its vocabulary is the
        masker's.
    npmi_min
        Least NPMI of two neighbours in a run.
    mlm_probability
        p, in (0, 1): share of a row's n maskable tokens that is masked, exactly floor(n · p). A number, a range or a
        schedule.
    structural_ratio
        λ, in [0, 1]: share of the masked tokens that runs choose, if there are enough; the rest is random. 1 is the
        CorrMask paper's PMI, 0.5 its PMI-Rand. A number, a range or a schedule.
    mask_replace_prob, random_replace_prob, replace, seed, validate
        As for :class:`~corrmask_fast.CorrMasker`.

    Attributes
    ----------
    npmi_min
        As given.
    n_pairs
        Number of ordered pairs with this NPMI or more.

    Raises
    ------
    InputError
        If ``table`` is no PMI table, or a parameter is out of range.

    Notes
    -----
    A run is a longest sequence of two or more neighbouring genes whose neighbouring pairs all have at least
    ``npmi_min`` (docs/SPEC.md 5).

    Examples
    --------
    >>> import torch
    >>> from corrmask_fast import PMIMasker, PMITable, Vocabulary, read_corpus
    >>> genes = Vocabulary(("<pad>", "<mask>", "A", "B", "C", "D", "E", "F"))
    >>> cells = read_corpus([[2, 3, 4, 5, 6, 7], [5, 2, 3, 7], [4, 2, 3, 6]], genes)
    >>> table = PMITable.from_corpus(cells, min_count=2, progress=False)
    >>> masker = PMIMasker(table, mlm_probability=0.4)
    >>> masker(torch.tensor([[5, 4, 2, 3, 6]]), epoch=0).masked_positions  # A and B
    tensor([[2, 3]])
    """

    label = "PMI"
    mask_source = "PMI table"

    def __init__(
        self,
        table: PMITable,
        *,
        npmi_min: float = 0.1,
        mlm_probability: RateLike = 0.15,
        structural_ratio: RateLike = 1.0,
        mask_replace_prob: float = 0.8,
        random_replace_prob: float = 0.1,
        replace: str = "token",
        seed: int = 0,
        validate: bool | None = None,
    ) -> None:
        if not hasattr(table, "at_least"):
            raise InputError(f"table must be a PMITable; got {shown(table)}; PMITable.load(path) reads a file")
        indptr, indices = table.at_least(npmi_min)
        digest = hash_tensors(table.vocabulary.fingerprint.encode(), {"indptr": indptr, "indices": indices})
        super().__init__(
            table.vocabulary,
            PMI,
            table_of_pairs(indptr, indices, digest),
            mlm_probability=mlm_probability,
            structural_ratio=structural_ratio,
            mask_replace_prob=mask_replace_prob,
            random_replace_prob=random_replace_prob,
            replace=replace,
            seed=seed,
            validate=validate,
        )
        self.npmi_min = float(npmi_min)
        self.n_pairs = int(indices.size)

    def extra_repr(self) -> str:
        """Return the parameters for ``repr``."""
        return f"{super().extra_repr()}, {self.n_pairs} pairs, npmi_min={self.npmi_min}"
