"""The Hugging Face data collator: pad or pack, mask and label a batch in one pass."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from corrmask_fast.buffers import empty
from corrmask_fast.cells.dataset import RaggedBatch
from corrmask_fast.errors import InputError, check_integer
from corrmask_fast.masking.engine.draws import epoch_salt, mix, signed
from corrmask_fast.masking.engine.torch_random import VALUES, draw_ids_by_values
from corrmask_fast.masking.features import Cells, as_cells, graph_ids_of, other_inputs, padded_width, ragged
from corrmask_fast.masking.packing import mask_packed
from corrmask_fast.masking.padded_batch import EVALUATION_EPOCH, LAST_STEP

if TYPE_CHECKING:
    from collections.abc import Mapping

    from corrmask_fast.cells.rank_encoder import RankEncoder
    from corrmask_fast.cells.vocabulary import Vocabulary
    from corrmask_fast.masking.base import Masker

__all__ = ["DataCollatorForCorrMask", "PaddingCollator"]


class DataCollatorForCorrMask:
    """Collate cells for masked language modelling: pad, mask and label a batch in one pass.

    Give it to ``Trainer(data_collator=…)`` or to a DataLoader (``collate_fn=``). It returns a dict of tensors:
    ``input_ids``, ``attention_mask`` and ``labels``, (rows, columns) int64 each; labels are the original tokens at
    masked columns, −100 elsewhere. Special tokens are never masked. Rows are padded on the right, or packed.

    Parameters
    ----------
    masker
        The masking strategy, on the CPU. A strategy that learns with a model masks on the model's device only: see
        :class:`~corrmask_fast.PaddingCollator`.
    pad_to_multiple_of
        Round the batch's width up to a multiple of this, >= 1. None: the longest row.
    return_masked_positions
        Also return ``masked_positions``, (rows, floor(columns · p)) int64: the masked columns of each row, then −1.
    compat
        ``"geneformer"``: mask as Geneformer's own pretraining does, for comparisons. Every token that is neither
        ``<pad>`` nor ``<mask>`` is masked with probability p (``<cls>`` and ``<eos>`` too), by torch's global
        generator; graph, seed and epoch are not used. Needs transformers. None: the masker's masks.
    graph_column
        For a masker with several graphs: the name of the column that chooses each cell's graph, such as ``"tissue"``. A
        :class:`~corrmask_fast.CorpusDataset` must be made with ``columns=("tissue",)``.
    graph_numbers
        A mapping from values of that column to numbers of graphs. None: the values are the numbers.
    packing
        Put the cells one after the other in a single row, without padding. Their masks are those of the padded batch.
        Only flash attention keeps packed cells apart: it reads where they begin, and no attention mask is returned.
        Other attentions let cells attend to each other, without an error; :class:`~corrmask_fast.CorrMaskTrainer`
        refuses them. :class:`~corrmask_fast.PackedBatchSampler` fills batches to a number of tokens.
    position_ids_start
        With ``packing``: the ``position_ids`` of each cell's first token, >= 0. Models like RoBERTa, and ESM with
        absolute positions, need ``pad_token_id + 1``.

    Attributes
    ----------
    masker
        The masking strategy.
    hides_values
        Whether values of genes are predicted, and not ids.

    Raises
    ------
    InputError
        If the masker needs a model or its vocabulary has no mask token, a parameter is out of range, parameters exclude
        each other, or ``graph_column`` is missing for several graphs, or given for none.

    Notes
    -----
    A batch is what :class:`~corrmask_fast.CorpusDataset` hands out (fastest), or a list of dicts with ``input_ids`` as
    list, NumPy array or tensor, as ``datasets`` has them.

    After :meth:`set_epoch` a cell's mask follows from the masker's seed, the epoch and the cell, for any number of
    workers and any batch size. Without it every call draws anew, from torch's seed of the process.

    Other columns come along as tensors, integers as int64 and other numbers as float32:

    - one number a cell: (rows,)
    - one number a token, such as ``token_type_ids``: (rows, columns), padded with 0 (a column named ``…labels`` with
      −100); packed (1, tokens)
    - arrays of one shape: (rows, …)

    ``length`` and the column of ``graph_column`` are left out. What is no number is left out with a warning. A column
    ``values`` with one floating-point number a token counts as a part of the cell: cells with the same genes and other
    values have masks of their own.

    Examples
    --------
    >>> from corrmask_fast import CorrMasker, DataCollatorForCorrMask, DependencyGraph, Vocabulary
    >>> genes = Vocabulary(("<pad>", "<mask>", *(f"G{i}" for i in range(8))))
    >>> collator = DataCollatorForCorrMask(CorrMasker(DependencyGraph.from_edges([("G0", "G1")], genes)))
    >>> batch = collator([{"input_ids": [2, 3, 4]}, {"input_ids": [5]}])
    >>> batch["attention_mask"].tolist()
    [[1, 1, 1], [1, 0, 0]]
    >>> packs = DataCollatorForCorrMask(collator.masker, packing=True)
    >>> batch = packs([{"input_ids": [2, 3, 4]}, {"input_ids": [5]}])
    >>> batch["position_ids"].tolist(), batch["cu_seq_lens_q"].tolist(), batch["max_length_q"]
    ([[0, 1, 2, 0]], [0, 3, 4], 3)
    """

    _replaces_ids = True  # so that the vocabulary must have a mask token
    hides_values = False  # whether values are predicted, and not ids

    def __init__(
        self,
        masker: Masker,
        *,
        pad_to_multiple_of: int | None = None,
        return_masked_positions: bool = False,
        compat: str | None = None,
        graph_column: str | None = None,
        graph_numbers: Mapping[Any, int] | None = None,
        packing: bool = False,
        position_ids_start: int = 0,
    ) -> None:
        if masker.needs_model:
            raise InputError(
                f"{type(masker).__name__} masks by the embeddings of the model that it learns with, and a collator has "
                "none; use CorrMaskTrainer(masker=…, masking='device'), or call the masker with embeddings="
            )
        if masker.mask_replace_prob > 0 and self._replaces_ids:
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
        if packing and compat:
            raise InputError("compat='geneformer' masks padded rows, as Geneformer does; leave out packing or compat")
        if packing and pad_to_multiple_of is not None:
            raise InputError("a packed row has no padding; leave out pad_to_multiple_of or packing")
        self.packing = packing
        self.position_ids_start = check_integer("position_ids_start", position_ids_start, 0, 2**31 - 1)
        if position_ids_start and not packing:
            raise InputError("position_ids are returned with packing=True alone; leave out position_ids_start")
        self.graph_column = check_graph_column(masker, graph_column, graph_numbers)
        self.graph_numbers = None if graph_numbers is None else dict(graph_numbers)
        self._calls = 0
        # Shared memory: persistent workers see an epoch that is set after they started.
        self._epoch = torch.tensor([-1], device="cpu").share_memory_()
        self._step = torch.tensor([0], device="cpu").share_memory_()  # of the masker's schedules
        self._step_set = 0  # the step that the masker of this process has

    def set_step(self, step: int) -> None:
        """Set the training step of the masker's schedules, in running workers too.

        Workers prepare batches ahead: the step at which a batch is prepared decides its rates.

        Parameters
        ----------
        step
            The step, >= 0.

        Raises
        ------
        InputError
            If it is no integer in [0, 2**63).
        """
        self._step[0] = check_integer("step", step, 0, 2**63 - 1)

    def set_epoch(self, epoch: int) -> None:
        """Make masks a function of (seed, epoch, cell) from the next batch on, in running workers too.

        Parameters
        ----------
        epoch
            The epoch, >= 0.

        Raises
        ------
        InputError
            If it is no integer in [0, 2**63).
        """
        self._epoch[0] = check_integer("epoch", epoch, 0, 2**63 - 1)

    @property
    def epoch(self) -> int | None:
        """The epoch that was set; None before :meth:`set_epoch`."""
        epoch = int(self._epoch.item())
        return None if epoch < 0 else epoch

    @property
    def tokenizer(self) -> TokenIds:
        """An object with ``pad_token_id`` and the like, for code that asks a collator's tokenizer."""
        return TokenIds(self.masker.vocabulary)

    def __call__(self, features: Any, return_tensors: str | None = None) -> dict[str, Any]:
        """Collate one batch.

        Parameters
        ----------
        features
            The cells, in any form that the class names.
        return_tensors
            ``"pt"`` or None, as the collators of Hugging Face have it: batches are always PyTorch tensors.

        Returns
        -------
        dict
            ``input_ids``, ``attention_mask`` and ``labels``, (rows, columns) int64 each; ``masked_positions``,
            (rows, floor(columns · p)) int64, where asked for; and the cells' other columns.

            With ``packing``, (1, tokens) int64 each: ``input_ids``, ``labels`` and ``position_ids``, which begin anew
            with each cell; ``cu_seq_lens_q`` and ``cu_seq_lens_k``, (cells + 1,) int32: where cells begin, then the
            end; the integers ``max_length_q`` and ``max_length_k``: the longest cell; ``masked_positions`` (1,
            floor(tokens · p)).

        Raises
        ------
        InputError
            If the batch is empty, a cell has no ``input_ids``, a token lies outside the vocabulary, the cells come from
            a corpus of another vocabulary, or another column has no shape that a tensor can have; with ``packing`` also
            if a cell holds padding, or no cell holds a token.
        """
        _check_return_tensors(return_tensors)
        cells = as_cells(features)
        if self.compat:
            return self._mask_as_geneformer(cells)
        self._follow_step()
        indptr, tokens, marks = ragged(cells, self.masker.vocabulary, self.masker.mask_source)
        salt = self._salt_of(cells)
        draw: dict[str, Any] = {"salt": salt}
        others = other_inputs(cells, indptr, self.pad_to_multiple_of, self.graph_column, packed=self.packing)
        if VALUES in others:
            padded = _padded(indptr, tokens, marks, self.masker.vocabulary, self.pad_to_multiple_of)
            padded |= other_inputs(cells, indptr, None, self.graph_column) if self.packing else others
            draws = draw_ids_by_values(self.masker.vocabulary, padded, torch.tensor([signed(salt)], device="cpu"))
            draw = draw if draws is None else {"draw_ids": draws.numpy()}
        if self.graph_column is not None:
            marks["graph_ids"] = graph_ids_of(cells, self.graph_column, self.graph_numbers)
        if self.packing:
            start, positions = self.position_ids_start, self.return_masked_positions
            return mask_packed(self.masker, indptr, tokens, start, draw | marks, positions=positions) | others
        multiple = self.pad_to_multiple_of or 1
        masked = self.masker.mask_ragged(indptr, tokens, multiple_of=multiple, **draw, **marks)  # type: ignore[arg-type]
        batch = {
            "input_ids": torch.from_numpy(masked.input_ids),
            "attention_mask": torch.from_numpy(masked.attention_mask),
            "labels": torch.from_numpy(masked.labels),
        }
        if self.return_masked_positions:
            batch["masked_positions"] = torch.from_numpy(masked.masked_positions)
        return batch | others

    def frozen(self, epoch: int = EVALUATION_EPOCH) -> DataCollatorForCorrMask:
        """Return a copy for evaluation, whose masks are the same every time, so that losses can be compared.

        Schedules are at their last step.

        Parameters
        ----------
        epoch
            The epoch whose masks are used, >= 0. The default is one that no training reaches.

        Returns
        -------
        DataCollatorForCorrMask
            A copy of the same class; the original does not change.

        Raises
        ------
        InputError
            If the epoch is no integer in [0, 2**63).
        """
        frozen = copy.deepcopy(self)
        frozen.set_epoch(epoch)
        frozen.set_step(LAST_STEP)
        return frozen

    def _mask_as_geneformer(self, cells: Cells) -> dict[str, torch.Tensor]:
        from corrmask_fast.masking.stock import mask_as_stock

        batch = PaddingCollator(self.masker.vocabulary, pad_to_multiple_of=self.pad_to_multiple_of)(cells)
        for name in ("special_tokens_mask", "mask_epoch"):
            batch.pop(name, None)
        batch["input_ids"], batch["labels"] = mask_as_stock(batch["input_ids"], self.masker)
        return batch

    def _follow_step(self) -> None:
        """Tell the masker of this process the step that was set."""
        step = self._step.item()
        if step != self._step_set:
            self.masker.set_step(step)
            self._step_set = step

    def _salt_of(self, cells: Cells) -> int:
        """Return what is added to content: the epoch of the cells, or the one set, or a new number in each call."""
        epoch = self._epoch.item()
        if isinstance(cells, RaggedBatch) and cells.epoch is not None:
            epoch = cells.epoch
        return epoch_salt(epoch) if epoch >= 0 else self._fresh_salt()

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

    It returns a dict of tensors: ``input_ids`` and ``attention_mask``, (rows, columns) int64 each, and the cells' other
    columns as :class:`~corrmask_fast.DataCollatorForCorrMask` has them. :class:`~corrmask_fast.CorrMaskTrainer` with
    ``masking="device"`` makes one by itself. You need to make one only if the masker has several graphs and learns with
    the model.

    Parameters
    ----------
    vocabulary
        The :class:`~corrmask_fast.Vocabulary`, which names the padding token.
    pad_to_multiple_of
        Round the batch's width up to a multiple of this, >= 1. None: the longest row.
    graph_column
        As for :class:`~corrmask_fast.DataCollatorForCorrMask`; the batch gets ``graph_ids``, (rows,) int64.
    graph_numbers
        As for :class:`~corrmask_fast.DataCollatorForCorrMask`.
    encoder
        For cells that are raw counts: the :class:`~corrmask_fast.RankEncoder` that encodes them. None: cells are
        tokens.

    Raises
    ------
    InputError
        If ``pad_to_multiple_of`` is below 1. When called: if the batch is empty, a cell has no ``input_ids``, or a
        column has no shape that a tensor can have.

    Examples
    --------
    >>> from corrmask_fast import PaddingCollator, Vocabulary
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
        encoder: RankEncoder | None = None,
    ) -> None:
        self.vocabulary, self.encoder = vocabulary, encoder
        self.pad_to_multiple_of = _check_multiple(pad_to_multiple_of)
        self.graph_column, self.graph_numbers = graph_column, graph_numbers

    @classmethod
    def like(cls, collator: DataCollatorForCorrMask) -> PaddingCollator:
        """Return a collator that pads as another one does, and leaves masking to its masker on the device.

        Parameters
        ----------
        collator
            A :class:`~corrmask_fast.DataCollatorForCorrMask`, or :class:`~corrmask_fast.DataCollatorForCounts`.

        Returns
        -------
        PaddingCollator
            With the same vocabulary, width, graph column and encoder.

        Raises
        ------
        InputError
            If the collator packs cells, or hides values: that happens in the collator, not on the device.
        """
        if collator.packing:
            raise InputError(
                "packed cells are masked in the collator, not on the device; use masking='worker' with packing"
            )
        if collator.hides_values:
            raise InputError(
                f"a {type(collator).__name__} hides values in the collator, not on the device; mask a padded batch of "
                "values with ValueReplacement"
            )
        return cls(
            collator.masker.vocabulary,
            pad_to_multiple_of=collator.pad_to_multiple_of,
            graph_column=collator.graph_column,
            graph_numbers=collator.graph_numbers,
            encoder=getattr(collator, "encoder", None),
        )

    @property
    def tokenizer(self) -> TokenIds:
        """An object with ``pad_token_id`` and the like, for code that asks a collator's tokenizer."""
        return TokenIds(self.vocabulary)

    def __call__(self, features: Any, return_tensors: str | None = None) -> dict[str, torch.Tensor]:
        """Collate one batch.

        Parameters
        ----------
        features
            The cells, in any form that :class:`~corrmask_fast.DataCollatorForCorrMask` takes; counts with ``encoder``.
        return_tensors
            ``"pt"`` or None: batches are always PyTorch tensors.

        Returns
        -------
        dict
            ``input_ids`` and ``attention_mask``, (rows, columns) int64 each. Where the cells have one,
            ``special_tokens_mask``, likewise. With a :class:`~corrmask_fast.CorpusDataset` that has an epoch of its
            own, ``mask_epoch``, (rows,) int64. With ``graph_column``, ``graph_ids``, (rows,) int64. And the cells'
            other columns.
        """
        _check_return_tensors(return_tensors)
        cells = as_cells(features if self.encoder is None else self.encoder(features))
        indptr, tokens, marks = ragged(cells, self.vocabulary)
        batch = _padded(indptr, tokens, marks, self.vocabulary, self.pad_to_multiple_of)
        if isinstance(cells, RaggedBatch) and cells.epoch is not None:
            batch["mask_epoch"] = torch.full((len(cells),), cells.epoch, device="cpu")
        if self.graph_column is not None:
            batch["graph_ids"] = torch.from_numpy(graph_ids_of(cells, self.graph_column, self.graph_numbers))
        return batch | other_inputs(cells, indptr, self.pad_to_multiple_of, self.graph_column)


def check_graph_column(masker: Masker, column: str | None, numbers: Mapping[Any, int] | None) -> str | None:
    """Return the name of the feature that chooses a graph; there must be one exactly where there are several graphs."""
    if column is None and masker.n_graphs > 1:
        raise InputError(
            f"the masker has {masker.n_graphs} graphs; give graph_column to the collator: the name of the feature that "
            "chooses each cell's graph"
        )
    if column is not None and masker.n_graphs == 0:
        raise InputError(f"graph_column={column!r} chooses among graphs, and this masker has none; leave it out")
    for value, number in (numbers or {}).items():
        check_integer(f"the graph's number of {value!r}", number, 0, masker.n_graphs - 1)
    return column


def check_epoch(collator: Any, epoch: int) -> None:
    """Raise InputError unless a collator still has the epoch that a training loop set."""
    if (found := getattr(collator, "epoch", epoch)) != epoch:
        raise InputError(
            f"the collator's epoch is {found}, and training is in epoch {epoch}: another set_epoch changed it; call "
            "set_epoch nowhere else, give each run a collator of its own, and evaluation collator.frozen()"
        )


def _check_multiple(multiple: int | None) -> int | None:
    return None if multiple is None else check_integer("pad_to_multiple_of", multiple, 1)


def _padded(
    indptr: np.ndarray, tokens: np.ndarray, marks: dict[str, np.ndarray], vocabulary: Vocabulary, multiple: int | None
) -> dict[str, torch.Tensor]:
    """Return ``input_ids``, ``attention_mask`` and, where given, ``special_tokens_mask``, padded on the right."""
    lengths, shape = np.diff(indptr), (indptr.size - 1, padded_width(indptr, multiple))
    inside = np.arange(shape[1]) < lengths[:, None]
    ids, attention = empty(shape), empty(shape)
    ids[:] = vocabulary.pad_token_id
    ids[inside] = tokens
    attention[:] = ids != vocabulary.pad_token_id
    if "attention_mask" in marks:
        attention[inside] = marks["attention_mask"]
    batch = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(attention)}
    if "special_tokens_mask" in marks:
        special = np.zeros(shape, np.int64)
        special[inside] = marks["special_tokens_mask"]
        batch["special_tokens_mask"] = torch.from_numpy(special)
    return batch


def _check_return_tensors(kind: Any) -> None:
    if kind not in {None, "pt"}:
        raise InputError(f"batches are PyTorch tensors, return_tensors='pt'; got {kind!r}; convert what comes out")


class TokenIds:
    """What code around a collator asks its ``tokenizer``: the numbers of the special tokens."""

    padding_side = "right"
    model_input_names = ("input_ids", "attention_mask")

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocab_size = vocabulary.size
        self.all_special_ids = list(vocabulary.special_token_ids)
        for name in ("pad", "mask", "cls", "eos"):
            setattr(self, f"{name}_token_id", getattr(vocabulary, f"{name}_token_id"))

    def __len__(self) -> int:
        return self.vocab_size

    def save_pretrained(self, *_: Any, **__: Any) -> tuple[str, ...]:
        """Write nothing: Trainer saves a collator's tokenizer beside each model, and this is none."""
        return ()
