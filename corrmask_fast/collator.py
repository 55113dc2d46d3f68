"""The Hugging Face data collator: pad, mask and label a batch in one pass."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from corrmask_fast.dataset import RaggedBatch
from corrmask_fast.draws import mix
from corrmask_fast.errors import InputError, check_integer

if TYPE_CHECKING:
    from corrmask_fast.masker_base import Masker

__all__ = ["DataCollatorForCorrMask"]


class DataCollatorForCorrMask:
    """Collate cells for masked language modelling; give it to ``Trainer(data_collator=…)`` or a DataLoader.

    Takes what :class:`~corrmask_fast.CorpusDataset` hands out (fastest), or features as ``datasets`` has them: dicts
    with ``input_ids`` as list, NumPy array or tensor. Special tokens are never masked. Rows are padded on the right.

    Parameters
    ----------
    masker
        The masking strategy, on the CPU.
    pad_to_multiple_of
        Round the batch's width up to a multiple of this.
    return_masked_positions
        Also return ``masked_positions``.

    Notes
    -----
    After :meth:`set_epoch` a cell's mask follows from the masker's seed, the epoch and the cell, for any number of
    workers and any batch size. Without it every call draws afresh, from torch's seed of the process.

    Examples
    --------
    >>> from corrmask_fast import CorrMasker, DependencyGraph, Vocabulary
    >>> genes = Vocabulary(("<pad>", "<mask>", *(f"G{i}" for i in range(8))))
    >>> collator = DataCollatorForCorrMask(CorrMasker(DependencyGraph.from_edges([("G0", "G1")], genes)))
    >>> batch = collator([{"input_ids": [2, 3, 4]}, {"input_ids": [5]}])
    >>> batch["attention_mask"].tolist()
    [[1, 1, 1], [1, 0, 0]]
    """

    def __init__(
        self, masker: Masker, *, pad_to_multiple_of: int | None = None, return_masked_positions: bool = False
    ) -> None:
        self.masker = masker
        if pad_to_multiple_of is not None:
            check_integer("pad_to_multiple_of", pad_to_multiple_of, 1)
        self.pad_to_multiple_of = pad_to_multiple_of
        self.return_masked_positions = return_masked_positions
        self._calls = 0
        # Shared memory: persistent workers see an epoch that is set after they started.
        self._epoch = torch.tensor([-1], device="cpu").share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Make masks a function of (seed, epoch, cell) from the next batch on, in running workers too."""
        self._epoch[0] = check_integer("epoch", epoch, 0, 2**63 - 1)

    def __call__(self, features: Any) -> dict[str, torch.Tensor]:
        """Collate one batch.

        Returns
        -------
        ``input_ids``, ``attention_mask`` and ``labels``, each (rows, columns) int64, and ``masked_positions``
        (rows, floor(columns · p)) int64 where asked for.

        Raises
        ------
        InputError
            If the batch is empty, a feature has no ``input_ids``, a token lies outside the vocabulary, or the cells
            come from a corpus of another vocabulary.
        """
        if isinstance(features, RaggedBatch) and features.vocabulary is not None:
            features.vocabulary.check_same(self.masker.vocabulary, "the corpus", f"the masker's {self.masker.goes_by}")
        indptr, tokens, marks = _ragged(features)
        epoch = int(self._epoch[0])
        draw = {"epoch": epoch} if epoch >= 0 else {"salt": self._fresh_salt()}
        multiple = self.pad_to_multiple_of or 1
        masked = self.masker.mask_ragged(indptr, tokens, multiple_of=multiple, **draw, **marks)  # type: ignore[arg-type]
        batch = {
            "input_ids": torch.from_numpy(masked.input_ids),
            "attention_mask": torch.from_numpy(masked.attention_mask),
            "labels": torch.from_numpy(masked.labels),
        }
        if self.return_masked_positions:
            batch["masked_positions"] = torch.from_numpy(masked.masked_positions)
        return batch

    def _fresh_salt(self) -> int:
        """mix(nonce): another one in each call, worker and (where torch is seeded anew) epoch."""
        nonce = mix(torch.initial_seed()) + self._calls
        self._calls += 1
        return mix(nonce)

    def __getstate__(self) -> dict[str, Any]:
        if self.masker.neighbor_indptr.device.type != "cpu":
            raise InputError(
                f"the collator's masker lies on {self.masker.neighbor_indptr.device} and cannot go to a worker process;"
                " give the collator a masker on the CPU, or mask on the device inside the training step"
            )
        return dict(self.__dict__)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if not self._epoch.is_shared():  # a copy; a worker that is being started gets the shared one
            self._epoch = self._epoch.clone().share_memory_()


def _ragged(features: Any) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Return (indptr, tokens, marks) of a batch in any of the forms that datasets hand out."""
    if isinstance(features, RaggedBatch):
        return features.indptr, features.tokens, {}
    if isinstance(features, Mapping):
        names = list(features)
        features = [dict(zip(names, row, strict=True)) for row in zip(*features.values(), strict=True)]
    if not isinstance(features, Sequence) or not features:
        raise InputError(f"a batch must be a non-empty list of features; got {features!r}")
    rows = [{"input_ids": row} if not isinstance(row, Mapping) else row for row in features]
    for i, row in enumerate(rows):
        if "input_ids" not in row:
            raise InputError(f"feature {i} has no 'input_ids'; it has {', '.join(map(repr, row)) or 'nothing'}")
    indptr, tokens = _concatenate([row["input_ids"] for row in rows], "input_ids")
    marks = {}
    for name, mark in (("attention_mask", "seen"), ("special_tokens_mask", "protected")):
        if any(name in row for row in rows):
            ends, values = _concatenate([row.get(name, ()) for row in rows], name)
            if not np.array_equal(ends, indptr):
                raise InputError(f"{name} must have one value for each of a row's input_ids, in all rows or none")
            marks[mark] = (values != 0).view(np.uint8)
    return indptr, tokens, marks


def _concatenate(cells: list[Any], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Concatenate lists, arrays or tensors of integers."""
    indptr = np.zeros(len(cells) + 1, np.int64)
    try:
        np.cumsum([len(cell) for cell in cells], out=indptr[1:])
    except TypeError as error:
        raise InputError(f"{name} must be a list, array or tensor of integers in each row: {error}") from error
    tokens = np.empty(int(indptr[-1]), np.int32)
    for i, cell in enumerate(cells):
        here = tokens[indptr[i] : indptr[i + 1]]
        if isinstance(cell, list | tuple):
            # struct is the fastest way from Python integers to memory, twice as fast as NumPy.
            try:
                struct.pack_into(f"{len(cell)}i", here, 0, *cell)  # type: ignore[arg-type]
            except struct.error as error:
                raise InputError(f"{name} of row {i} must be integers that fit int32: {error}") from error
        else:
            array = np.asarray(cell)
            if array.ndim != 1 or array.dtype.kind not in "iub":
                raise InputError(
                    f"{name} of row {i} must be one-dimensional integers; got {array.ndim}-d {array.dtype}"
                )
            if array.size and array.dtype.itemsize > 2 and not -(2**31) <= array.min() <= array.max() < 2**31:
                raise InputError(f"{name} of row {i} must fit int32; it reaches from {array.min()} to {array.max()}")
            here[:] = array
    return indptr, tokens
