"""From a loader's counts to a masked batch in one call: encode, mask, label and pad."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from corrmask_fast.errors import InputError
from corrmask_fast.masking.collator import DataCollatorForCorrMask

if TYPE_CHECKING:
    from corrmask_fast.cells.rank_encoder import RankEncoder
    from corrmask_fast.masking.base import Masker

__all__ = ["DataCollatorForCounts"]


class DataCollatorForCounts(DataCollatorForCorrMask):
    """Collate raw counts for masked language modelling: no tokenised copy of the cells is needed.

    Give it to a DataLoader over counts (``collate_fn=``), call it with the batches of a loader that hands out counts,
    or give it to ``Trainer(data_collator=…)`` with a :class:`~corrmask_fast.CountsDataset`. Batches and masks are those
    of :class:`~corrmask_fast.DataCollatorForCorrMask` for the same cells tokenised on disk, to the bit.

    Parameters
    ----------
    encoder
        The :class:`~corrmask_fast.RankEncoder` that encodes the counts; it says what a batch of counts may be.
    masker
        The masking strategy, on the CPU, with the encoder's vocabulary.
    **options
        The other parameters of :class:`~corrmask_fast.DataCollatorForCorrMask`, except ``graph_column``.

    Raises
    ------
    InputError
        If encoder and masker have different vocabularies, or an option is not allowed. When called: if a batch is no
        counts.

    Warns
    -----
    UserWarning
        Once, if a cell has no count in a known gene: its row holds no gene.

    Examples
    --------
    >>> import numpy as np
    >>> import scipy.sparse
    >>> from corrmask_fast import DataCollatorForCounts, RandomMasker, RankEncoder, Vocabulary
    >>> genes = Vocabulary(("<pad>", "<mask>", *(f"G{i}" for i in range(20))))
    >>> encoder = RankEncoder(genes, {f"G{i}": 500.0 for i in range(20)}, [f"G{i}" for i in range(20)])
    >>> collator = DataCollatorForCounts(encoder, RandomMasker(genes))
    >>> batch = collator(scipy.sparse.csr_matrix(np.arange(60).reshape(3, 20) % 4))
    >>> {name: tuple(tensor.shape) for name, tensor in batch.items()}
    {'input_ids': (3, 15), 'attention_mask': (3, 15), 'labels': (3, 15)}
    """

    def __init__(self, encoder: RankEncoder, masker: Masker, **options: Any) -> None:
        super().__init__(masker, **options)
        if self.graph_column is not None:
            raise InputError("graph_column needs a column beside the tokens, and counts bring none; give one graph")
        encoder.vocabulary.check_same(masker.vocabulary, "the encoder", f"the masker's {masker.mask_source}")
        self.encoder = encoder
        self._warned = False

    def __call__(self, features: Any, return_tensors: str | None = None) -> dict[str, Any]:
        """Collate one batch of counts.

        Parameters
        ----------
        features
            Counts, in any form that :class:`~corrmask_fast.RankEncoder` takes.
        return_tensors
            ``"pt"`` or None: batches are always PyTorch tensors.

        Returns
        -------
        dict
            As :class:`~corrmask_fast.DataCollatorForCorrMask` returns it: a padded batch, or with ``packing`` one row.
        """
        cells = self.encoder(features)
        n_empty = int(np.count_nonzero(np.diff(cells.indptr) == self.masker.vocabulary.n_surrounding))
        if n_empty and not self._warned:
            self._warned = True
            warnings.warn(
                f"{n_empty} of {len(cells)} cells of a batch have no count in a gene of the vocabulary: their rows "
                "hold no gene; leave such cells out, or check that vocabulary and medians belong to these cells",
                UserWarning,
                stacklevel=2,
            )
        return super().__call__(cells, return_tensors)
