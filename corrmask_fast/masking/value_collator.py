"""From cells of genes with values to padded batches of hidden values, in one call: draw, transform, mask, pad."""

from __future__ import annotations

from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
import torch

from corrmask_fast.buffers import empty
from corrmask_fast.cells.dataset import RaggedBatch
from corrmask_fast.cells.segments import check_values, float32_of
from corrmask_fast.errors import InputError, check_integer, check_number, shown
from corrmask_fast.masking.collator import DataCollatorForCorrMask
from corrmask_fast.masking.engine.checks import check_ragged, raise_unknown_token, row_at
from corrmask_fast.masking.features import as_cells, concatenate, graph_ids_of, other_inputs, ragged
from corrmask_fast.masking.value_masking import ValueReplacement, holds
from corrmask_fast.suggestions import did_you_mean
from corrmask_fast.threads import run_ranges

if TYPE_CHECKING:
    from collections.abc import Mapping

    from corrmask_fast.cells.rank_encoder import RankEncoder
    from corrmask_fast.masking.base import Masker

__all__ = ["DataCollatorForValues"]

TRANSFORMS = (None, "log1p", "bins")
TIES = ("spread", "lower", "upper")  # in the order of kernels/value_rows.py
MIN_CELLS_A_THREAD = 16  # a thread is not worth waking for fewer
HIDDEN = ("input_ids", "attention_mask", "values", "targets", "masked", "labels")
MARKS = ("attention_mask", "special_tokens_mask")  # which cells without padding do not need
LARGEST = float(np.finfo(np.float32).max)
SPLIT = ("given_ids", "given_values", "given_raw", "generated_ids", "generated_values", "generated_raw")


class Pairs(NamedTuple):
    """Cells of genes with values: cell i is ``[indptr[i], indptr[i + 1])`` of both."""

    indptr: np.ndarray  # (n + 1,) int64
    tokens: np.ndarray  # int32
    values: np.ndarray  # float32


class DataCollatorForValues(DataCollatorForCorrMask):
    """Collate cells whose genes have values, for models that predict hidden values (scGPT, Tahoe-x1, GeneCompass …).

    In this order: ``<cls>`` is put before each cell, where the vocabulary has one and the cell does not begin with it;
    values are transformed over the whole cell; of a cell with too many genes some are drawn; values are hidden, as
    ``hide`` says; rows are padded on the right. docs/SPEC.md 8 defines each step.

    Cells are dicts with ids and values (lists, arrays or tensors), what :class:`~corrmask_fast.CorpusDataset` with
    ``values=True`` hands out, or, with ``encoder``, raw counts.

    Parameters
    ----------
    hide
        Which values are hidden, and by what: a :class:`~corrmask_fast.ValueReplacement`.
    max_length
        Most columns of a row, >= 2, ``<cls>`` included. None: as many as the longest cell has.
    sampling
        True: a cell that is too long keeps a random draw of its genes, another one in each epoch. False: it keeps the
        first ones.
    transform
        ``"log1p"``: log1p(value / total of the cell · ``target_sum``). ``"bins"`` (scGPT): the bin of each value above
        0 among the cell's quantiles, 1 to ``n_bins`` − 1 (with ``bin_ties="lower"`` 0 to ``n_bins`` − 2), and 0 for 0.
        None: values are taken as they are. A value that becomes 0 counts as a zero in ``hide``.
    target_sum
        For ``"log1p"``: what the cell's values are scaled to, > 0. None: they are not scaled.
    n_bins
        For ``"bins"``: number of bins, >= 3, with that of 0.
    bin_ties
        For ``"bins"``: the bin of a value that lies on several edges. ``"spread"``: any of their bins at random
        (scGPT); ``"lower"``: the number of edges below it, as ``torch.bucketize``; ``"upper"``: the number of edges up
        to it.
    pad_value
        The value of padding and of special tokens.
    integers
        True: values are int64, for models that look bins up. False: float32.
    split
        True: split each row into the genes that are given and those that are to be generated; the masker chooses them.
    fields
        A mapping from what the batch has to its name there. Keys are ``input_ids``, ``attention_mask``, ``values``,
        ``targets``, ``masked`` and ``labels``; with ``split`` they are ``given_ids``, ``given_values``, ``given_raw``,
        ``generated_ids``, ``generated_values`` and ``generated_raw`` (raw: before the transform). None: all but raw
        values, and ``labels`` only where ids are replaced too.
    columns
        The names of ids and values in the cells.
    encoder
        For cells that are raw counts: a :class:`~corrmask_fast.RankEncoder`; each gene's value is its count.
    pad_to_multiple_of, graph_column, graph_numbers
        As for :class:`~corrmask_fast.DataCollatorForCorrMask`.

    Raises
    ------
    InputError
        If ``hide`` is no ValueReplacement, a parameter is out of range, parameters exclude each other, ``integers``
        cannot hold the pad or mask value, or the encoder has another vocabulary.

    Notes
    -----
    ``values`` (hidden where masked) and ``targets`` are (rows, columns) float32 or int64, ``input_ids``,
    ``attention_mask`` and ``labels`` int64, ``masked`` bool.

    After :meth:`set_epoch` draws and masks follow from the masker's seed, the epoch and the cell: its ids and values
    before the transform. Other columns with a number for each cell come along, such as batch labels.

    Examples
    --------
    >>> from corrmask_fast import DataCollatorForValues, RandomMasker, Vocabulary
    >>> genes = Vocabulary(("<pad>", "<mask>", "<cls>", "<eos>", *(f"G{i}" for i in range(9))))
    >>> masker = RandomMasker(genes, mlm_probability=0.4, mask_replace_prob=1.0, random_replace_prob=0.0)
    >>> collator = DataCollatorForValues.scgpt(masker, max_length=6, n_bins=5)
    >>> collator.set_epoch(0)
    >>> batch = collator([{"genes": [4, 5, 6, 7, 8, 9, 10], "expressions": [1, 4, 2, 8, 3, 6, 5]}])
    >>> batch["gene"].tolist(), batch["expr"].tolist(), batch["masked_expr"].tolist()
    ([[2, 4, 6, 8, 9, 10]], [[-2.0, 1.0, 1.0, 2.0, 3.0, 3.0]], [[-2.0, 1.0, -1.0, -1.0, 3.0, 3.0]])
    """

    hides_values = True

    def __init__(
        self,
        hide: ValueReplacement,
        *,
        max_length: int | None = None,
        sampling: bool = True,
        transform: str | None = None,
        target_sum: float | None = 10_000,
        n_bins: int = 51,
        bin_ties: str = "spread",
        pad_value: float = 0.0,
        integers: bool = False,
        split: bool = False,
        fields: Mapping[str, str] | None = None,
        columns: tuple[str, str] = ("input_ids", "values"),
        encoder: RankEncoder | None = None,
        pad_to_multiple_of: int | None = None,
        graph_column: str | None = None,
        graph_numbers: Mapping[Any, int] | None = None,
    ) -> None:
        if not isinstance(hide, ValueReplacement):
            raise InputError(
                "hide must be a ValueReplacement, which says how values are hidden, such as "
                f"ValueReplacement.scgpt(masker); got {shown(hide)}"
            )
        self._replaces_ids = hide.replace_ids
        super().__init__(
            hide.masker,
            pad_to_multiple_of=pad_to_multiple_of,
            graph_column=graph_column,
            graph_numbers=graph_numbers,
        )
        self.hide = hide
        vocabulary = self.masker.vocabulary
        self.max_length = None if max_length is None else check_integer("max_length", max_length, 2)
        self.sampling = sampling
        for name, value, among in (("transform", transform, TRANSFORMS), ("bin_ties", bin_ties, TIES)):
            if value not in among:
                meant = did_you_mean(value, among)
                raise InputError(f"{name} must be one of {', '.join(map(repr, among))}; got {shown(value)}{meant}")
        self.transform, self.bin_ties = transform, bin_ties
        self.target_sum = (
            None if target_sum is None else check_number("target_sum", target_sum, 0, LARGEST, open_ends=True)
        )
        self.n_bins = check_integer("n_bins", n_bins, 3, 2**20)
        self._quantiles = np.linspace(0, 1, self.n_bins - 1)
        self.pad_value = check_number("pad_value", pad_value, -np.inf, np.inf, open_ends=True)
        self.integers, self.split = integers, split
        if integers and transform == "log1p":
            raise InputError("integers=True cannot hold the values of transform='log1p'; use 'bins', or leave it out")
        dtype = torch.int64 if integers else torch.float32
        for name, number in (("pad_value", pad_value), ("mask_value", hide.mask_value)):
            if not holds(dtype, number):
                raise InputError(f"{name} must be a number that {dtype} holds, the type of the values; got {number}")
        if split and hide.replace_ids:
            raise InputError("split=True hands out ids as they are; leave it out, or make hide without replace_ids")
        self.fields = self._check_fields(fields)
        if isinstance(columns, str) or len(columns) != 2 or columns[0] == columns[1]:
            raise InputError(f"columns must be two names, of ids and of values; got {shown(columns)}")
        self.columns = columns
        if encoder is not None:
            if not hasattr(encoder, "vocabulary"):
                raise InputError(f"encoder must be a RankEncoder; got {shown(encoder)}")
            if graph_column is not None:
                raise InputError("graph_column needs a column beside the tokens, and counts bring none; give one graph")
            encoder.vocabulary.check_same(vocabulary, "the encoder", f"the masker's {self.masker.mask_source}")
        self.encoder = encoder
        self._cls = -1 if vocabulary.cls_token_id is None else vocabulary.cls_token_id

    @classmethod
    def scgpt(
        cls, masker: Masker, *, split: bool = False, category: bool = False, n_bins: int = 51, **options: Any
    ) -> Self:
        """Return a collator with the bins and the field names of scGPT's own (Cui et al. 2024).

        Cells have the columns ``genes`` and ``expressions``; batches have ``gene``, ``expr`` and ``masked_expr``.

        Parameters
        ----------
        masker
            Chooses the genes; with ``mask_replace_prob=1, random_replace_prob=0``.
        split
            scGPT's ``data_style="both"``: batches have ``pcpt_gene``, ``pcpt_expr``, ``gen_gene`` and
            ``gen_expr_target``. The masker chooses the genes to be generated.
        category
            scGPT's ``input_emb_style="category"``: values are int64, padding is ``n_bins``, the mask value is
            ``n_bins`` + 1. False: values are float32, padding is −2, the mask value is −1.
        n_bins
            Number of bins, with that of 0.
        **options
            Any parameter of the class, in place of the above.

        Returns
        -------
        DataCollatorForValues
            The collator.

        Raises
        ------
        InputError
            As the class does; and if the masker replaces genes at random.
        """
        names = {"given_ids": "pcpt_gene", "given_values": "pcpt_expr"}
        names |= {"generated_ids": "gen_gene", "generated_values": "gen_expr_target"}
        given: dict[str, Any] = {
            "transform": "bins",
            "fields": names if split else {"input_ids": "gene", "targets": "expr", "values": "masked_expr"},
            "columns": ("genes", "expressions"),
            "pad_value": n_bins if category else -2,
            "integers": category,
        }
        hide = ValueReplacement(masker, n_bins + 1 if category else -1)
        return cls(hide, split=split, n_bins=n_bins, **given | options)

    @classmethod
    def tahoe(cls, masker: Masker, **options: Any) -> Self:
        """Return a collator with the field names of Tahoe-x1's own: those of scGPT with ``split``, and raw values too.

        ``pcpt_expr_raw`` and ``gen_expr_raw`` are the values before the bins. Ties of bins go down
        (``right_binning=False``). Further columns such as ``drug_ids`` come along.

        Parameters
        ----------
        masker
            Chooses the genes to be generated; with ``mask_replace_prob=1, random_replace_prob=0``.
        **options
            ``category``, ``n_bins`` (see :meth:`scgpt`), or any parameter of the class.

        Returns
        -------
        DataCollatorForValues
            The collator.

        Raises
        ------
        InputError
            As :meth:`scgpt` does.
        """
        names = {"given_ids": "pcpt_gene", "given_values": "pcpt_expr", "given_raw": "pcpt_expr_raw"}
        names |= {"generated_ids": "gen_gene", "generated_values": "gen_expr_target", "generated_raw": "gen_expr_raw"}
        return cls.scgpt(masker, split=True, **{"fields": names, "bin_ties": "lower", **options})

    @classmethod
    def genecompass(cls, masker: Masker, **options: Any) -> Self:
        """Return a collator with the field names of GeneCompass's own (Yang et al. 2024).

        It hides ids and values together. Batches have ``input_ids``, ``values``, ``attention_mask``, ``labels`` (ids)
        and ``labels_values``; a column ``species`` comes along. The masker replaces the ids of masked genes, and where
        an id was replaced, the value becomes −1.

        Parameters
        ----------
        masker
            Chooses the genes and replaces their ids, by default 80 % with the mask token and 10 % with a random gene.
        **options
            Any parameter of the class, in place of the above.

        Returns
        -------
        DataCollatorForValues
            The collator.

        Raises
        ------
        InputError
            As the class does.
        """
        names = {name: name for name in ("input_ids", "values", "attention_mask", "labels")}
        hide = ValueReplacement(masker, -1, replace_ids=True)
        return cls(hide, **{"fields": names | {"targets": "labels_values"}, "sampling": False, **options})

    @classmethod
    def scfoundation(cls, masker: Masker, *, zero_probability: float = 0.03, **options: Any) -> Self:
        """Return a collator that masks by scFoundation's rules (Hao et al. 2024), with ``transform="log1p"``.

        scFoundation's encoder takes the columns ``(batch["targets"] > 0) & ~batch["masked"]``. Do not use ``values >
        0``: the mask value is above 0 too.

        Parameters
        ----------
        masker
            Chooses the genes; see :meth:`corrmask_fast.ValueReplacement.scfoundation`.
        zero_probability
            Share of the zeros that is masked, in [0, 1).
        **options
            Any parameter of the class, in place of the above.

        Returns
        -------
        DataCollatorForValues
            The collator.

        Raises
        ------
        InputError
            As the class does; and if the masker replaces genes at random.
        """
        hide = ValueReplacement.scfoundation(masker, zero_probability=zero_probability)
        return cls(hide, **{"transform": "log1p", **options})

    def __call__(self, features: Any, return_tensors: str | None = None) -> dict[str, torch.Tensor]:
        """Collate one batch.

        Parameters
        ----------
        features
            The cells, in any form that the class names.
        return_tensors
            ``"pt"`` or None: batches are always PyTorch tensors.

        Returns
        -------
        dict
            The ``fields``. ``values`` (hidden where masked) and ``targets`` are (rows, columns) float32 or int64,
            ``input_ids`` and ``attention_mask`` int64, ``masked`` bool; ``labels`` are the ids at masked columns, −100
            elsewhere. The parts of a split are padded to the longest of their kind.

        Raises
        ------
        InputError
            If ids and values of a cell are not of one length, a token lies outside the vocabulary, a value is not
            finite (or below 0, with a transform; or not whole, with ``integers``), or ``max_length`` leaves no column
            for a gene beside the special tokens.
        """
        if return_tensors not in {None, "pt"}:
            raise InputError(f"return_tensors must be 'pt', for batches are PyTorch tensors; got {return_tensors!r}")
        pairs, cells = self._pairs_of(features)
        self._follow_step()
        rows, raw, zero, draws = self._prepare(pairs, self._salt_of(cells))
        batch = self._hidden(rows, zero, draws.view(np.int64), cells)
        if self.split:
            batch = self._split(rows, batch, raw)
        made = {name: torch.from_numpy(batch[own]) for own, name in self.fields.items()}
        return made | self._others(cells, pairs.indptr, made)

    def _check_fields(self, fields: Mapping[str, str] | None) -> dict[str, str]:
        known = SPLIT if self.split else HIDDEN
        if fields is None:
            left_out = ("given_raw", "generated_raw", *(() if self.hide.replace_ids else ("labels",)))
            return {name: name for name in known if name not in left_out}
        if unknown := [name for name in fields if name not in known]:
            raise InputError(f"fields must be of {', '.join(known)}; got {shown(unknown[0])}")
        if len(set(fields.values())) < len(fields):
            raise InputError(f"fields must have a name each, or one would replace another; got {shown(fields)}")
        return dict(fields)

    def _pairs_of(self, features: Any) -> tuple[Pairs, Any]:
        """Return ids and values of a batch, and its cells."""
        if self.encoder is not None:
            features = self.encoder(features, values=True)
        cells = as_cells(features, self.columns[0])
        if isinstance(cells, RaggedBatch):
            if cells.values is None:
                raise InputError("the batch has no values; make CorpusDataset(corpus, values=True)")
            indptr, tokens, _ = ragged(cells, self.masker.vocabulary, self.masker.mask_source)
            # Anyone can make a batch, and kernels take these arrays as addresses.
            indptr, tokens, _ = check_ragged(indptr, tokens, self.masker.vocabulary.size)
            return Pairs(indptr, tokens, check_values(cells.values, tokens.size)), cells
        ids, values = self.columns
        for i, cell in enumerate(cells):
            if values not in cell:
                raise InputError(f"feature {i} has no {values!r}; it has {', '.join(map(repr, cell))}")
        indptr, tokens = concatenate([cell[ids] for cell in cells], ids)
        arrays = [_as_floats(cell[values], values, i) for i, cell in enumerate(cells)]
        for i, (array, n) in enumerate(zip(arrays, np.diff(indptr), strict=True)):
            if array.shape != (n,):
                raise InputError(
                    f"{values} of row {i} must have one number for each of its {n} {ids}; got {array.shape}"
                )
        return Pairs(indptr, tokens, np.concatenate(arrays)), cells

    def _prepare(self, pairs: Pairs, salt: int) -> tuple[Pairs, np.ndarray, np.ndarray, np.ndarray]:
        """Return rows transformed and cut, their raw values (none if nobody asks), where these are 0, and draws."""
        from corrmask_fast.kernels import value_rows as kernels

        self._check_known(pairs)
        vocabulary, lengths = self.masker.vocabulary, np.diff(pairs.indptr)
        n = lengths.size
        if self._cls >= 0:
            begins = np.zeros(n, np.bool_)
            begins[lengths > 0] = pairs.tokens[pairs.indptr[:-1][lengths > 0]] == self._cls
            lengths = lengths + ~begins
        length = max(int(lengths.max(initial=1)), 1) if self.max_length is None else self.max_length
        indptr = np.concatenate([[0], np.cumsum(np.minimum(lengths, length))])
        size = int(indptr[-1])
        tokens, values, zero = empty((size,), np.int32), empty((size,), np.float32), empty((size,), np.uint8)
        wants_raw = self.split and not {"given_raw", "generated_raw"}.isdisjoint(self.fields)
        raw, draws = empty((size if wants_raw else 0,), np.float32), np.empty(n, np.uint64)
        scaled = self.transform == "log1p" and self.target_sum is not None
        run = partial(
            kernels.prepare_rows, *pairs, np.uint64(salt), np.uint64(self.masker.seed),
            *vocabulary.gene_range, self._cls,
            kernels.SCALED if scaled else kernels.BINS if self.transform == "bins" else kernels.AS_GIVEN,
            float(self.target_sum or 0), self._quantiles, TIES.index(self.bin_ties), length,
            self.sampling, self.transform is not None, indptr, tokens, values, raw, zero, draws,
        )  # fmt: skip
        for code, row, column in run_ranges(run, n, MIN_CELLS_A_THREAD):
            if code != kernels.OK:
                raise self._fault(code == kernels.NO_SPACE, pairs, row, column)
        if self.integers and self.transform is None:
            self._check_whole(pairs)
        if self.transform == "log1p":
            np.log1p(values, out=values)
        return Pairs(indptr, tokens, values), raw, zero, draws

    def _check_known(self, pairs: Pairs) -> None:
        """Raise InputError for a token outside the vocabulary: a draw or a cut may leave it out, or move it."""
        tokens, size = pairs.tokens, self.masker.vocabulary.size
        if tokens.size == 0 or self.masker.validate is False or (tokens.min() >= 0 and tokens.max() < size):
            return
        raise_unknown_token(*row_at(pairs.indptr, tokens, ((tokens < 0) | (tokens >= size)).argmax()), size)

    def _check_whole(self, pairs: Pairs) -> None:
        """Raise InputError for a value that int64 does not hold."""
        low, high = self.masker.vocabulary.gene_range
        odd = (pairs.values != np.floor(pairs.values)) | (np.abs(pairs.values) >= 2.0**63)
        odd &= (pairs.tokens >= low) & (pairs.tokens < high)
        if odd.any():
            place = int(odd.argmax())
            row, _ = row_at(pairs.indptr, pairs.values, place)
            raise InputError(
                f"with integers=True a value must be a whole number that int64 holds; row {row}, column "
                f"{place - pairs.indptr[row]} has {pairs.values[place]}; give transform='bins', or leave integers out"
            )

    def _fault(self, no_space: bool, pairs: Pairs, row: int, column: int) -> InputError:
        if no_space:
            return InputError(
                f"row {row} has {column} special tokens, and max_length={self.max_length} leaves no column for a gene; "
                "give a larger one"
            )
        value = pairs.values[pairs.indptr[row] + column]
        rule = "finite" if self.transform is None else "finite and >= 0"
        return InputError(
            f"the value in row {row}, column {column} must be {rule}; got {value}; give 0 for a gene that was not "
            "counted"
        )

    def _hidden(self, rows: Pairs, zero: np.ndarray, draws: np.ndarray, cells: Any) -> dict[str, np.ndarray]:
        """Return the padded rows with hidden values."""
        from corrmask_fast.kernels.value_rows import hide_rows

        hide, vocabulary = self.hide, self.masker.vocabulary
        how: dict[str, Any] = {
            "multiple_of": self.pad_to_multiple_of or 1,
            "draw_ids": draws,
            "marks_only": not hide.replace_ids,
        }
        more: dict[str, Any] = {}
        if self.graph_column is not None:
            more["graph_ids"] = graph_ids_of(cells, self.graph_column, self.graph_numbers)
        if hide.nonzero_only:
            more["special_tokens_mask"] = zero
        masked = self.masker.mask_ragged(rows.indptr, rows.tokens, **how, **more)
        zeros = np.empty((len(draws), 0), np.int64), np.empty((len(draws), 0), np.int64)
        if hide.zero_masker is not None:
            chosen = hide.zero_masker.mask_ragged(rows.indptr, rows.tokens, **how, special_tokens_mask=1 - zero)
            zeros = chosen.input_ids, chosen.labels
        shape, dtype = masked.input_ids.shape, np.dtype(np.int64 if self.integers else np.float32)
        values, targets, chosen_columns = empty(shape, dtype), empty(shape, dtype), empty(shape, np.bool_)
        run = partial(
            hide_rows, *rows, masked.input_ids, masked.labels, *zeros, *vocabulary.gene_range,
            dtype.type(hide.mask_value), dtype.type(self.pad_value), hide.replace_ids, values, targets, chosen_columns,
        )  # fmt: skip
        run_ranges(run, len(draws), MIN_CELLS_A_THREAD)
        return {
            "input_ids": masked.input_ids,
            "attention_mask": masked.attention_mask,
            "values": values,
            "targets": targets,
            "masked": chosen_columns,
            "labels": masked.labels,
        }

    def _split(self, rows: Pairs, batch: dict[str, np.ndarray], raw: np.ndarray) -> dict[str, np.ndarray]:
        """Return the parts of rows that are given and that are to be generated."""
        from corrmask_fast.kernels.value_rows import split_rows

        n_made, lengths = batch["masked"].sum(axis=1), np.diff(rows.indptr)
        multiple, pad = self.pad_to_multiple_of or 1, self.masker.vocabulary.pad_token_id
        parts = []
        for sizes in (lengths - n_made, n_made):
            shape = len(sizes), -(-int(sizes.max(initial=0)) // multiple) * multiple
            dtype = batch["targets"].dtype
            parts += [empty(shape), empty(shape, dtype), empty(shape if raw.size else (len(sizes), 0), np.float32)]
        run = partial(
            split_rows, rows.indptr, rows.tokens, batch["masked"], batch["targets"], raw, pad,
            batch["targets"].dtype.type(self.pad_value), *parts,
        )  # fmt: skip
        run_ranges(run, len(lengths), MIN_CELLS_A_THREAD)
        return dict(zip(SPLIT, parts, strict=True))

    def _others(self, cells: Any, indptr: np.ndarray, made: dict[str, Any]) -> dict[str, torch.Tensor]:
        """Return the cells' other columns, a number a cell each."""
        if isinstance(cells, RaggedBatch):
            cells = RaggedBatch(cells.indptr, cells.tokens, columns=cells.columns)
        else:
            cells = [{name: cell[name] for name in cell if name not in self.columns} for cell in cells]
            lengths = np.diff(indptr).tolist()
            for name in dict.fromkeys(chain.from_iterable(cells)):
                sizes = [len(cell[name]) if hasattr(cell.get(name), "__len__") else -1 for cell in cells]
                if name in MARKS or (max(lengths) > 1 and sizes == lengths):
                    raise InputError(f"{name!r} has a value for each gene; a draw of genes would not fit it; remove it")
        others = other_inputs(cells, indptr, self.pad_to_multiple_of, self.graph_column)
        if both := sorted(others.keys() & made):
            raise InputError(
                f"a feature is named {both[0]!r}, and the collator makes that one itself; rename or remove it"
            )
        return others


def _as_floats(values: Any, name: str, row: int) -> np.ndarray:
    try:
        if isinstance(values, torch.Tensor):
            values = values.detach().cpu()
            values = values.float() if values.dtype == torch.bfloat16 else values  # NumPy has no such type
        array = np.asarray(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{name} of row {row} must be numbers: {error}") from error
    return float32_of(array, f"{name} of row {row}")
