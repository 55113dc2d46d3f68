"""Gene sets: the genes of a pathway are masked together."""

from __future__ import annotations

import os
import warnings
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from corrmask_fast.cells.gene_sets import open_gene_sets, tokens_of_set
from corrmask_fast.errors import InputError, naming, shown
from corrmask_fast.kernels.layout import GENE_SETS
from corrmask_fast.masking.base import Masker, RateLike
from corrmask_fast.masking.engine.tables import table_of_sets
from corrmask_fast.tensor_files import hash_tensors

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from corrmask_fast.cells.vocabulary import Vocabulary

__all__ = ["GeneSetMasker"]


class GeneSetMasker(Masker):
    """Mask whole gene sets, such as pathways or complexes: set after set in random order.

    A set can be masked in a cell that has at least two of its genes; then those of its genes that the cell has are
    masked. Sets may overlap. This strategy is not from the paper: docs/SPEC.md 5 defines it.

    Parameters
    ----------
    vocabulary
        The :class:`~corrmask_fast.Vocabulary`: which id is which gene.
    sets
        A mapping from a set's name to its genes, each by token id, name or symbol; or the path of a ``.gmt`` file, such
        as Reactome's or MSigDB's (:func:`~corrmask_fast.read_gene_sets`). A gene counts once in a set.
    unknown
        What to do with genes outside the vocabulary: ``"error"`` or ``"skip"``. None: an error in a mapping; in a file
        they are left out, and a warning gives their number.
    mlm_probability
        p, in (0, 1): share of a row's n maskable tokens that is masked, exactly floor(n · p). A number, a range or a
        schedule.
    structural_ratio
        λ, in [0, 1]: share of the masked tokens that sets choose, if there are enough; the rest is random. A number, a
        range or a schedule.
    mask_replace_prob, random_replace_prob, replace, seed, validate
        As for :class:`~corrmask_fast.CorrMasker`.

    Attributes
    ----------
    n_sets
        Number of sets with two or more genes of the vocabulary.

    Raises
    ------
    InputError
        If ``sets`` are none or the file cannot be read, a gene is unknown, no set has two genes of the vocabulary, or a
        parameter is out of range.

    Warns
    -----
    UserWarning
        If a file has genes outside the vocabulary, and ``unknown`` is None.

    Notes
    -----
    The order of the sets decides masks; the order of genes in a set does not. A run resumes with the same sets only;
    their names do not matter.

    Examples
    --------
    >>> import torch
    >>> from corrmask_fast import GeneSetMasker, Vocabulary
    >>> genes = Vocabulary(("<pad>", "<mask>", *"ABCDEFGH"))
    >>> masker = GeneSetMasker(genes, {"repair": ["A", "C", "E"], "transport": ["X", "F"]}, unknown="skip")
    >>> masker.n_sets  # of the other one, a single gene is left
    1
    >>> masker = GeneSetMasker(genes, {"repair": ["A", "C", "E"]}, mlm_probability=0.4)
    >>> masker(torch.arange(2, 10)[None], epoch=0).masked_positions
    tensor([[0, 2, 4]])
    """

    label = "Gene sets"
    mask_source = "gene sets"

    def __init__(
        self,
        vocabulary: Vocabulary,
        sets: Mapping[str, Iterable[int | str]] | str | os.PathLike[str],
        *,
        unknown: Literal["error", "skip"] | None = None,
        mlm_probability: RateLike = 0.15,
        structural_ratio: RateLike = 1.0,
        mask_replace_prob: float = 0.8,
        random_replace_prob: float = 0.1,
        replace: str = "token",
        seed: int = 0,
        validate: bool | None = None,
    ) -> None:
        members = _tokens_of(vocabulary, sets, unknown)
        sizes = [part.size if part.size > 1 else 0 for part in members]
        indptr = np.concatenate([[0], np.cumsum(sizes)])
        indptr = indptr[: 1 + int(np.flatnonzero(sizes)[-1]) + 1]  # sets after the last one that is masked tell nothing
        indices = np.concatenate([part for part in members if part.size > 1])
        digest = hash_tensors(vocabulary.fingerprint.encode(), {"indptr": indptr, "indices": indices})
        super().__init__(
            vocabulary,
            GENE_SETS,
            table_of_sets(indptr, indices, digest),
            mlm_probability=mlm_probability,
            structural_ratio=structural_ratio,
            mask_replace_prob=mask_replace_prob,
            random_replace_prob=random_replace_prob,
            replace=replace,
            seed=seed,
            validate=validate,
        )
        self.n_sets = int(np.count_nonzero(sizes))

    def extra_repr(self) -> str:
        """Return the parameters for ``repr``."""
        return f"{super().extra_repr()}, {self.n_sets} sets"


def _tokens_of(vocabulary: Vocabulary, sets: Any, unknown: str | None) -> list[np.ndarray]:
    """Return the token ids of each set's genes, ascending; at least one set has two."""
    if unknown not in {None, "error", "skip"}:
        raise InputError(f"unknown must be 'error', 'skip' or None; got {shown(unknown)}")
    is_file = isinstance(sets, str | os.PathLike)
    found = open_gene_sets(sets)
    skips = unknown == "skip" or (unknown is None and is_file)
    lost: dict[Any, None] = {}
    with naming(sets):
        members = [tokens_of_set(vocabulary, name, genes, lost if skips else None) for name, genes in found.items()]
        if not any(part.size > 1 for part in members):
            example = f", such as {shown(next(iter(lost)))}" if lost else ""
            raise InputError(
                f"none of {len(members)} gene sets has two genes of the vocabulary; {len(lost)} genes are not in it"
                f"{example}. Genes are found by names like {shown(vocabulary.names[vocabulary.gene_range[0]])}, and by "
                "symbols where the vocabulary has them (Vocabulary.from_token_dictionary(tokens, symbols))"
            )
    if lost and unknown is None:
        total = len({gene for genes in found.values() for gene in genes})
        few = sum(part.size < 2 for part in members)
        warnings.warn(
            f"{sets}: {len(lost):,} of {total:,} genes are not in the vocabulary, such as {shown(next(iter(lost)))}, "
            "and are left out"
            + (f"; {few:,} of {len(members):,} sets have fewer than two genes left, and are not used" if few else ""),
            stacklevel=4,
        )
    return members
