"""``<cls>`` and ``<eos>`` around cells, where the vocabulary has them (V2)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from corrmask_fast.buffers import empty
from corrmask_fast.errors import InputError

if TYPE_CHECKING:
    from corrmask_fast.cells.vocabulary import Vocabulary


def with_special_tokens(
    indptr: np.ndarray, tokens: np.ndarray, vocabulary: Vocabulary, max_length: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Put ``<cls>`` before and ``<eos>`` after every cell where the vocabulary has them (V2).

    Genes that no longer fit ``max_length`` tokens are cut off; there, no more fit than the vocabulary's own.
    """
    cls, eos = (-1 if token is None else token for token in (vocabulary.cls_token_id, vocabulary.eos_token_id))
    added = vocabulary.n_surrounding
    if not added and max_length is None:
        return indptr, tokens
    most = vocabulary.max_length if added else tokens.size
    longest = most if max_length is None else min(most, max_length)
    if added and longest <= added:
        raise InputError(
            f"max_length must leave space for a gene beside <cls> and <eos>, so be {added + 1} at least; got {longest}"
        )
    from corrmask_fast.kernels.ragged import surround_rows

    out_indptr = np.empty_like(indptr)
    out = empty((tokens.size + added * (indptr.size - 1),), tokens.dtype)
    surround_rows(indptr, tokens, cls, eos, longest - added, out_indptr, out)
    return out_indptr, out[: out_indptr[-1]]
