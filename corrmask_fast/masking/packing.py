"""A packed batch: cells one after the other in a single row, and where each begins, by transformers' names."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from corrmask_fast.buffers import empty
from corrmask_fast.errors import InputError

if TYPE_CHECKING:
    from corrmask_fast.masking.base import Masker

__all__ = ["mask_packed"]


def mask_packed(
    masker: Masker, indptr: np.ndarray, tokens: np.ndarray, start: int, given: dict[str, Any], *, positions: bool
) -> dict[str, Any]:
    """Mask ragged cells into one row.

    Parameters
    ----------
    masker, indptr, tokens, given
        As for :meth:`~corrmask_fast.Masker.mask_ragged`; ``given``: its draws and marks.
    start
        The ``position_ids`` of each cell's first token.
    positions
        Also return ``masked_positions``.
    """
    from corrmask_fast.kernels.ragged import number_columns  # brings Numba in: not before rows are masked

    indptr = np.asarray(indptr, np.int64)
    _check_unpadded(indptr, given.get("attention_mask", tokens != masker.vocabulary.pad_token_id))
    masked = masker.mask_ragged(indptr, tokens, packed=True, **given)
    position_ids, cu_seq_lens = empty(masked.input_ids.shape), torch.from_numpy(indptr.astype(np.int32))
    number_columns(indptr, start, position_ids[0])
    longest = int(np.diff(indptr).max())
    batch = {
        "input_ids": torch.from_numpy(masked.input_ids),
        "labels": torch.from_numpy(masked.labels),
        "position_ids": torch.from_numpy(position_ids),
        "cu_seq_lens_q": cu_seq_lens,
        "cu_seq_lens_k": cu_seq_lens,
        "max_length_q": longest,
        "max_length_k": longest,
    }
    if positions:
        columns = masked.masked_positions
        chosen = (columns + indptr[:-1, None])[columns >= 0]
        of_row = np.full((1, math.floor(tokens.size * masker.max_probability)), -1)
        of_row[0, : chosen.size] = chosen
        batch["masked_positions"] = torch.from_numpy(of_row)
    return batch


def _check_unpadded(indptr: np.ndarray, visible: np.ndarray) -> None:
    """Raise InputError unless packed cells hold tokens, and no padding."""
    if not visible.size:
        raise InputError("all cells of the batch are empty, and a packed row needs a token; leave empty cells out")
    if not visible.all():
        place = int(visible.argmin())
        row = int(np.searchsorted(indptr, place, side="right")) - 1
        raise InputError(
            f"packed cells hold no padding; row {row} has some at column {place - indptr[row]}; give each cell its own "
            "tokens alone"
        )
