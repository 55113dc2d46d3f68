"""The Hugging Face data collator: pad, mask and label a batch in one pass."""

from __future__ import annotations

import copy
import struct
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from corrmask_fast.buffers import empty
from corrmask_fast.cells.dataset import RaggedBatch, RaggedRow
from corrmask_fast.errors import InputError, as_integer, check_integer
from corrmask_fast.masking.draws import mix

if TYPE_CHECKING:
    from corrmask_fast.cells.vocabulary import Vocabulary
    from corrmask_fast.masking.base import Masker

__all__ = ["DataCollatorForCorrMask", "PaddingCollator"]


class DataCollatorForCorrMask:
    """Collate cells for masked language modelling; give it to ``Trainer(data_collator=…)`` or a DataLoader.

    Takes what :class:`~corrmask_fast.CorpusDataset` hands out (fastest), or features as ``datasets`` has them: dicts
    with ``input_ids`` as list, NumPy array or tensor. Special tokens are never masked. Rows are padded on the right.

    Parameters
    ----------
    masker
        The masking strategy, on the CPU; one that learns with a model masks on the model's device alone
        (:class:`PaddingCollator`).
    pad_to_multiple_of
        Round the batch's width up to a multiple of this.
    return_masked_positions
        Also return ``masked_positions``.
    compat
        ``"geneformer"``: mask as Geneformer's own pretraining does, to compare with: every token that is neither
        ``<pad>`` nor ``<mask>`` with probability p (``<cls>`` and ``<eos>`` too), from torch's global generator; the
        graph, the seed and the epoch have no part in it.
    graph_column
        For a masker with several graphs: the name of the feature that says which one each cell goes by, such as
        ``"tissue"``; of a :class:`~corrmask_fast.CorpusDataset` made with ``columns=("tissue",)``, or in the features.
    graph_numbers
        Value of that feature → number of the graph. None: the values are the numbers.

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
        self,
        masker: Masker,
        *,
        pad_to_multiple_of: int | None = None,
        return_masked_positions: bool = False,
        compat: str | None = None,
        graph_column: str | None = None,
        graph_numbers: Mapping[Any, int] | None = None,
    ) -> None:
        if masker.needs_model:
            raise InputError(
                f"{type(masker).__name__} masks by the embeddings of the model that it learns with, and a collator has "
                "none; use CorrMaskTrainer(masker=…, masking='device'), or call the masker with embeddings="
            )
        if masker.mask_replace_prob > 0:
            masker.vocabulary.require_mask_token()
        self.masker = masker
        self.pad_to_multiple_of = _check_multiple(pad_to_multiple_of)
        self.return_masked_positions = return_masked_positions
        if compat not in {None, "geneformer"}:
            raise InputError(f"compat must be None or 'geneformer'; got {compat!r}")
        if compat and return_masked_positions:
            raise InputError("compat='geneformer' masks any number of tokens a row: it has no masked_positions")
        if compat and not isinstance(masker.mlm_probability, float):
            raise InputError(f"compat='geneformer' has one rate for all; got {masker.mlm_probability!r}")
        self.compat = compat
        self.graph_column = check_graph_column(masker, graph_column, graph_numbers)
        self.graph_numbers = None if graph_numbers is None else dict(graph_numbers)
        self._calls = 0
        # Shared memory: persistent workers see an epoch that is set after they started.
        self._epoch = torch.tensor([-1], device="cpu").share_memory_()
        self._step = torch.tensor([0], device="cpu").share_memory_()  # of the masker's schedules
        self._step_set = 0  # the one that the masker of this process has been told

    def set_step(self, step: int) -> None:
        """Set the training step that the masker's schedules go by, in running workers too.

        Workers prepare batches ahead: a batch goes by the step at which it is prepared.
        """
        self._step[0] = check_integer("step", step, 0, 2**63 - 1)

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
        features = _whole_batch(features)
        if self.compat:
            return self._mask_as_geneformer(features)
        epoch, step = self._epoch.item(), self._step.item()
        if step != self._step_set:
            self.masker.set_step(step)
            self._step_set = step
        indptr, tokens, marks = _ragged(features, self.masker.vocabulary, self.masker.goes_by)
        if isinstance(features, RaggedBatch) and features.epoch is not None:
            epoch = features.epoch
        draw = {"epoch": epoch} if epoch >= 0 else {"salt": self._fresh_salt()}
        if self.graph_column is not None:
            marks["graph_ids"] = _graph_ids(features, self.graph_column, self.graph_numbers)
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

    def frozen(self, epoch: int) -> DataCollatorForCorrMask:
        """Return a copy that masks as in one epoch, always: for evaluation, so that losses compare."""
        twin = copy.deepcopy(self)
        twin.set_epoch(epoch)
        return twin

    def _mask_as_geneformer(self, features: Any) -> dict[str, torch.Tensor]:
        from corrmask_fast.masking.stock import mask_as_stock

        batch = PaddingCollator(self.masker.vocabulary, pad_to_multiple_of=self.pad_to_multiple_of)(features)
        batch.pop("special_tokens_mask", None)
        batch["input_ids"], batch["labels"] = mask_as_stock(batch["input_ids"], self.masker)
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
            self._step = self._step.clone().share_memory_()


class PaddingCollator:
    """Pad cells on the right and mask nothing: for masking on the device, inside the training step.

    ``CorrMaskTrainer(data_collator=PaddingCollator(…), masker=masker, masking="device")`` takes one, where the masker
    has several graphs and learns with the model.

    Parameters
    ----------
    vocabulary
        Names the padding token.
    pad_to_multiple_of
        Round the batch's width up to a multiple of this.
    graph_column, graph_numbers
        As for :class:`DataCollatorForCorrMask`: the batch gets ``graph_ids``, (rows,) int64.

    Examples
    --------
    >>> from corrmask_fast import Vocabulary
    >>> PaddingCollator(Vocabulary(("<pad>", "<mask>", "A", "B")))([[3, 2], [2]])["input_ids"].tolist()
    [[3, 2], [2, 0]]
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        *,
        pad_to_multiple_of: int | None = None,
        graph_column: str | None = None,
        graph_numbers: Mapping[Any, int] | None = None,
    ) -> None:
        self.vocabulary = vocabulary
        self.pad_to_multiple_of = _check_multiple(pad_to_multiple_of)
        self.graph_column, self.graph_numbers = graph_column, graph_numbers

    @classmethod
    def like(cls, collator: DataCollatorForCorrMask) -> PaddingCollator:
        """Return what pads as a collator does, and leaves the masking to its masker."""
        return cls(
            collator.masker.vocabulary,
            pad_to_multiple_of=collator.pad_to_multiple_of,
            graph_column=collator.graph_column,
            graph_numbers=collator.graph_numbers,
        )

    def __call__(self, features: Any) -> dict[str, torch.Tensor]:
        """Collate one batch: ``input_ids`` and ``attention_mask``, each (rows, columns) int64.

        ``special_tokens_mask`` comes along where the features have one.
        """
        features = _whole_batch(features)
        indptr, tokens, marks = _ragged(features, self.vocabulary)
        lengths, multiple = np.diff(indptr), self.pad_to_multiple_of or 1
        shape = lengths.size, -(-int(lengths.max(initial=0)) // multiple) * multiple
        inside = np.arange(shape[1]) < lengths[:, None]
        ids, attention = empty(shape), empty(shape)
        ids[:] = self.vocabulary.pad_token_id
        ids[inside] = tokens
        attention[:] = ids != self.vocabulary.pad_token_id
        if "seen" in marks:
            attention[inside] = marks["seen"]
        batch = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(attention)}
        if "protected" in marks:
            protected = np.zeros(shape, np.int64)
            protected[inside] = marks["protected"]
            batch["special_tokens_mask"] = torch.from_numpy(protected)
        if self.graph_column is not None:
            batch["graph_ids"] = torch.from_numpy(_graph_ids(features, self.graph_column, self.graph_numbers))
        return batch


def check_graph_column(masker: Masker, column: str | None, numbers: Mapping[Any, int] | None) -> str | None:
    """Return the name of the feature that chooses a graph; there must be one exactly where there are several graphs."""
    if column is None and masker.n_graphs > 1:
        raise InputError(
            f"the masker has {masker.n_graphs} graphs; give graph_column to the collator: the name of the feature that "
            "says which of them a cell goes by"
        )
    if column is not None and masker.n_graphs == 0:
        raise InputError(f"graph_column={column!r} chooses among graphs, and this masker has none; leave it out")
    for value, number in (numbers or {}).items():
        check_integer(f"the graph's number of {value!r}", number, 0, masker.n_graphs - 1)
    return column


def _graph_ids(features: Any, column: str, numbers: Mapping[Any, int] | None) -> np.ndarray:
    """Return (rows,) int64: the number of each row's graph, by the value of a feature."""
    if isinstance(features, RaggedBatch):
        if column not in features.columns:
            raise InputError(f"the batch has no column {column!r}; make CorpusDataset(corpus, columns=({column!r},))")
        values = features.columns[column].tolist()
    elif isinstance(features, Mapping):
        values = list(features.get(column, ()))
    else:
        for i, row in enumerate(features):
            if not isinstance(row, Mapping) or column not in row:
                raise InputError(f"feature {i} has no {column!r}, which says which graph the cell goes by")
        values = [row[column] for row in features]
    if numbers is not None:
        for row, value in enumerate(values):
            if value not in numbers:
                known = ", ".join(map(repr, numbers))
                raise InputError(f"{column!r} of row {row} must be one of {known}; got {value!r}")
        values = [numbers[value] for value in values]
    if any(as_integer(value) is None for value in values):
        raise InputError(
            f"{column!r} must hold numbers of graphs; got {values[0]!r}; graph_numbers= names them by value"
        )
    return np.array([as_integer(value) for value in values], np.int64)


def _check_multiple(multiple: int | None) -> int | None:
    return None if multiple is None else check_integer("pad_to_multiple_of", multiple, 1)


def _whole_batch(features: Any) -> Any:
    """Return the RaggedBatch whose rows, all and in order, a list holds; else the features as they are."""
    if type(features) is not list or not features or type(features[0]) is not RaggedRow:
        return features
    batch = features[0].batch
    whole = len(features) == len(batch) and all(
        type(row) is RaggedRow and row.batch is batch and row.index == i for i, row in enumerate(features)
    )
    return batch if whole else features


def _ragged(
    features: Any, vocabulary: Vocabulary, goes_by: str = "vocabulary"
) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Return (indptr, tokens, marks) of a batch in any of the forms that datasets hand out."""
    if isinstance(features, RaggedBatch):
        if features.vocabulary is not None:
            features.vocabulary.check_same(vocabulary, "the corpus", f"the masker's {goes_by}")
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
