"""Masking for models that keep a gene in view and hide its value: scGPT, scBERT, scFoundation.

gene ids   RPL3  CD3E  LYZ   …        a masker chooses columns by their genes, as for tokens;
values     4.2   0     1.7   …   →    where it would write <mask>, the value is hidden: -1   0   1.7 …
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
import torch
from torch import nn

from corrmask_fast.errors import InputError, check_number, shown
from corrmask_fast.masking.engine.checks import check_batch, check_tensor
from corrmask_fast.masking.engine.draws import draws_of_tensors
from corrmask_fast.masking.engine.torch_random import maskable_columns, mix, relative_columns, row_content
from corrmask_fast.masking.strategies.random import RandomMasker
from corrmask_fast.threads import run_ranges

if TYPE_CHECKING:
    from corrmask_fast.masking.base import MaskedBatch, Masker

__all__ = ["MaskedValues", "ValueReplacement"]


DTYPES = (
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
    *(torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
)  # of values
MIN_VALUES_OF_RANGE = 65_536  # a thread takes half a millisecond for them


class MaskedValues(NamedTuple):
    """A batch of values, some of them hidden, as :class:`~corrmask_fast.ValueReplacement` returns it: a named tuple.

    Attributes
    ----------
    values
        (rows, columns), the dtype given: the values after hiding. Of the masked ones, the masker's
        ``mask_replace_prob`` is the share that is hidden; the others stay as they are.
    targets
        (rows, columns): the values as they were given.
    masked
        (rows, columns) bool: what is to be predicted, as in ``loss(prediction[masked], targets[masked])``.

    Examples
    --------
    >>> import torch
    >>> from corrmask_fast import RandomMasker, ValueReplacement, Vocabulary
    >>> genes = Vocabulary(("<pad>", "<mask>", *"ABCD"))
    >>> masker = RandomMasker(genes, mlm_probability=0.5, mask_replace_prob=1.0, random_replace_prob=0.0)
    >>> out = ValueReplacement.scgpt(masker)(torch.arange(2, 6), torch.tensor([[1.0, 5.0, 0.0, 2.0]]), epoch=0)
    >>> out.values, out.masked
    (tensor([[-1.,  5., -1.,  2.]]), tensor([[ True, False,  True, False]]))
    """

    values: torch.Tensor
    targets: torch.Tensor
    masked: torch.Tensor


class ValueReplacement(nn.Module):
    """Hide the values of the genes that a masker chooses; the genes' ids stay visible.

    A module that takes padded batches of ids and values. For cells of other lengths, transforms and padding use
    :class:`~corrmask_fast.DataCollatorForValues`.

    Parameters
    ----------
    masker
        Chooses columns by their genes: any strategy. Its ``mask_replace_prob`` is the share of the chosen values that
        is hidden; the others are predicted too, and stay as they are. Its ``random_replace_prob`` must be 0 (unless
        ``replace_ids``): a random gene is no value.
    mask_value
        What a hidden value becomes.
    nonzero_only
        True: choose only among values other than 0. Then p is the share of these.
    zero_probability
        With ``nonzero_only``: share of the zeros that is masked too, at random, in [0, 1).
    replace_ids
        True: hide ids and values together (GeneCompass). The masker replaces ids as for a masked language model, and
        where an id was replaced, the value is hidden. Only :class:`~corrmask_fast.DataCollatorForValues` does this.

    Attributes
    ----------
    masker
        The masking strategy.
    zero_masker
        The masker of zeros; None without ``zero_probability``.
    n_appended
        Number of columns that values have after those of the genes: see :meth:`scbert`.

    Raises
    ------
    InputError
        If ``masker`` is none or replaces genes at random, a number is out of range, or ``zero_probability`` is given
        without ``nonzero_only`` or with ``replace_ids``.

    Examples
    --------
    >>> import torch
    >>> from corrmask_fast import RandomMasker, ValueReplacement, Vocabulary
    >>> genes = Vocabulary(("<pad>", "<mask>", *(f"G{i}" for i in range(10))))
    >>> masker = RandomMasker(genes, mlm_probability=0.4, mask_replace_prob=1.0, random_replace_prob=0.0)
    >>> hide = ValueReplacement.scgpt(masker)
    >>> out = hide(torch.arange(2, 12), torch.full((3, 10), 7.0), epoch=0)
    >>> out.masked.sum(dim=1), (out.values[out.masked] == -1).all()
    (tensor([4, 4, 4]), tensor(True))
    """

    def __init__(
        self,
        masker: Masker,
        mask_value: float,
        *,
        nonzero_only: bool = False,
        zero_probability: float = 0.0,
        replace_ids: bool = False,
    ) -> None:
        super().__init__()
        if not isinstance(masker, nn.Module) or not hasattr(masker, "random_replace_prob"):
            raise InputError(f"a masker chooses the values, such as RandomMasker(vocabulary); got {shown(masker)}")
        check_number("mask_value", mask_value, -math.inf, math.inf, open_ends=True)
        if masker.random_replace_prob != 0 and not replace_ids:
            raise InputError(
                "a masker of values must have random_replace_prob=0, for a random gene is no value; "
                f"got {masker.random_replace_prob}; make it with mask_replace_prob=1, random_replace_prob=0"
            )
        if check_number("zero_probability", zero_probability, 0, 1) == 1:
            raise InputError("zero_probability must be below 1, for something must stay in view; got 1")
        if zero_probability > 0 and (replace_ids or not nonzero_only):
            raise InputError(
                "zero_probability needs nonzero_only=True and replace_ids=False: else zeros are masked like every value"
            )
        self.masker, self.mask_value, self.nonzero_only = masker, mask_value, nonzero_only
        self.replace_ids, self.n_appended = replace_ids, 0
        self._dtypes = frozenset(dtype for dtype in DTYPES if holds(dtype, mask_value))
        self.zero_masker = None
        if zero_probability > 0:
            self.zero_masker = RandomMasker(
                masker.vocabulary,
                mlm_probability=zero_probability,
                mask_replace_prob=masker.mask_replace_prob,
                random_replace_prob=0.0,
                seed=(masker.seed + 1) % 2**64,  # another key: what is drawn has nothing to do with the masker's draws
            )

    @classmethod
    def scgpt(cls, masker: Masker) -> Self:
        """Return what hides values as scGPT does (Cui et al. 2024): values of genes, zeros too, become −1.

        scGPT masks 15 to 40 % of the genes and hides them all; its loss is a squared error.

        Parameters
        ----------
        masker
            Chooses the genes, with ``mask_replace_prob=1, random_replace_prob=0``.

        Returns
        -------
        ValueReplacement
            With ``mask_value=-1``.

        Raises
        ------
        InputError
            If the masker replaces genes at random.
        """
        return cls(masker, -1)

    @classmethod
    def scbert(cls, masker: Masker, n_bins: int = 5, *, appended: bool = False) -> Self:
        """Return what hides values as scBERT does (Yang et al. 2022).

        Values are expression bins, 0 to ``n_bins``, at fixed gene columns. Bins other than 0 become the mask token,
        ``n_bins + 1``. scBERT masks 15 % of them and hides nine in ten of these; its loss is a cross-entropy over bins.

        Parameters
        ----------
        masker
            Chooses the genes, with ``mlm_probability=0.15, mask_replace_prob=0.9, random_replace_prob=0``.
        n_bins
            The largest bin.
        appended
            Whether values have one more column than there are genes: the 0 that scBERT appends to each cell. It is
            never masked.

        Returns
        -------
        ValueReplacement
            With ``mask_value=n_bins + 1, nonzero_only=True``.

        Raises
        ------
        InputError
            If the masker replaces genes at random.
        """
        hide = cls(masker, n_bins + 1, nonzero_only=True)
        hide.n_appended = int(appended)
        return hide

    @classmethod
    def scfoundation(cls, masker: Masker, *, zero_probability: float = 0.03, mask_value: float = 102) -> Self:
        """Return what hides values as scFoundation does (Hao et al. 2024).

        It masks 30 % of the values other than 0, and 3 % of the zeros. scFoundation's encoder takes the columns
        ``(out.targets > 0) & ~out.masked``. Do not use ``out.values > 0``: the mask value is above 0 too.

        Parameters
        ----------
        masker
            Chooses the genes, with ``mlm_probability=0.3, random_replace_prob=0``.
        zero_probability
            Share of the zeros that is masked, in [0, 1).
        mask_value
            What a hidden value becomes; scFoundation's embedding takes 102 for its mask token.

        Returns
        -------
        ValueReplacement
            With ``nonzero_only=True``.

        Raises
        ------
        InputError
            If the masker replaces genes at random, or a number is out of range.
        """
        return cls(masker, mask_value, nonzero_only=True, zero_probability=zero_probability)

    def forward(
        self,
        gene_ids: torch.Tensor,
        values: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        *,
        draw_ids: torch.Tensor | None = None,
        epoch: int | torch.Tensor | None = None,
        **more: Any,
    ) -> MaskedValues:
        """Choose columns and hide their values. Call the module itself: ``hide(gene_ids, values, …)``.

        Parameters
        ----------
        gene_ids
            (rows, columns) or, where every row has the same genes, (columns,): int32 or int64 ids of the masker's
            vocabulary. Special tokens are never masked.
        values
            (rows, columns): expression, or its bins; floating point or integers. Not changed.
        attention_mask
            (rows, columns): 0 at padding. None: padding is where gene ids are ``<pad>``.
        draw_ids, epoch
            As for every masker: see :meth:`corrmask_fast.Masker.forward`. With ``epoch`` the draw follows from the
            cell's genes and their values, so that cells with the same genes have masks of their own.
        **more
            ``special_tokens_mask``, ``graph_ids`` and ``priorities``, as for the masker.

        Returns
        -------
        MaskedValues
            Values, targets and what is masked: see :class:`~corrmask_fast.MaskedValues`.

        Raises
        ------
        InputError
            If shapes do not fit, the dtype of ``values`` cannot hold the mask value, a value that is not padding is NaN
            (looked for on the CPU, and elsewhere with the masker's ``validate=True``), or ``replace_ids`` is set.
        """
        if self.replace_ids:
            raise InputError("a padded batch keeps its ids: replace_ids=True is for DataCollatorForValues")
        for name, given in (("gene_ids", gene_ids), ("values", values)):
            check_tensor(name, given)
        if self.n_appended:
            gene_ids = nn.functional.pad(gene_ids, (0, self.n_appended), value=self.masker.vocabulary.pad_token_id)
        if values.dim() != 2 or gene_ids.shape not in {values.shape, values.shape[1:]}:
            raise InputError(
                "values must be (rows, columns) and gene_ids the same, or (columns,); "
                f"got {tuple(values.shape)} and {tuple(gene_ids.shape)}"
            )
        if values.dtype not in self._dtypes:
            raise InputError(f"values of {values.dtype} cannot hold the mask value {self.mask_value}; convert them")
        kind = float if values.dtype.is_floating_point else int
        check_batch(gene_ids.expand_as(values), attention_mask, None, self.masker.seed_bits.device)
        visible = gene_ids != self.masker.vocabulary.pad_token_id if attention_mask is None else attention_mask != 0
        self._check_no_nan(values, visible)
        if epoch is not None:
            draws = draws_of_tensors(values.shape[0], draw_ids, epoch, self.masker.draw_counter, values.device)
            maskable = maskable_columns(self.masker.vocabulary, gene_ids, visible, None)
            draw_ids, epoch = mix(_content(gene_ids, maskable, relative_columns(visible), values) + draws[0]), None
        gene_ids = gene_ids.expand_as(values).contiguous()
        fixed = more.pop("special_tokens_mask", None)
        zero = _either(values == 0, fixed) if self.nonzero_only else fixed
        draw = {"draw_ids": draw_ids, "epoch": epoch}
        # A protected column is never chosen, and p is the share of the others.
        chosen = self.masker(gene_ids, attention_mask, zero, marks_only=True, **draw, **more)
        masked, hide = chosen.labels != -100, self._hidden(chosen)
        if self.zero_masker is not None:
            zeros = self.zero_masker(gene_ids, attention_mask, _either(values != 0, fixed), marks_only=True, **draw)
            masked = masked | (zeros.labels != -100)
            hide = hide | self._hidden(zeros)
        return MaskedValues(values.masked_fill(hide, kind(self.mask_value)), values, masked)

    def _check_no_nan(self, values: torch.Tensor, visible: torch.Tensor) -> None:
        validate = values.device.type == "cpu" if self.masker.validate is None else self.masker.validate
        if not validate or not values.is_floating_point() or torch.compiler.is_compiling() or not values.isnan().any():
            return
        bad = (values.isnan() & visible).nonzero()
        if len(bad):
            row, column = bad[0].tolist()
            raise InputError(
                f"the value in row {row}, column {column} is NaN, which nothing can be learned from; give 0 for a gene "
                "that was not counted, or attention_mask=0 where there is none"
            )

    @staticmethod
    def _hidden(chosen: MaskedBatch) -> torch.Tensor:
        # Without random genes, what was masked and is another id than before became the mask token.
        return (chosen.labels != -100) & (chosen.labels != chosen.input_ids)


def _either(mask: torch.Tensor, other: torch.Tensor | None) -> torch.Tensor:
    return mask if other is None else mask | (other != 0)


def holds(dtype: torch.dtype, value: float) -> bool:
    """Return whether a dtype holds a number as it is, neither rounded nor wrapped around."""
    try:
        return torch.tensor(value, dtype=dtype).item() == value and (dtype.is_floating_point or value == int(value))
    except (RuntimeError, TypeError, OverflowError):
        return False


def _content(
    gene_ids: torch.Tensor, maskable: torch.Tensor, columns: torch.Tensor, values: torch.Tensor
) -> torch.Tensor:
    """Return (rows,) int64: the content of rows, genes and values; where the kernel can, by the kernel."""
    if type(values) is not torch.Tensor or values.device.type != "cpu" or torch.compiler.is_compiling():
        return row_content(gene_ids, maskable, columns, [values])
    from corrmask_fast.kernels.values import value_content

    rows, width = values.shape
    content = torch.empty(rows, dtype=torch.int64)
    if values.numel() == 0:
        return content.zero_()
    one_for_all = rows > 1 and maskable.dim() == 1  # a panel without padding: its genes are looked at once
    shape = (1, width) if one_for_all else (rows, width)
    tokens = gene_ids.to(torch.int64).expand(shape).contiguous().numpy()
    may = maskable.expand(shape).contiguous().view(torch.uint8).numpy()
    first = (-columns.expand(shape)[:, 0]).contiguous().numpy()
    bits = values.detach().to(torch.float32).contiguous().numpy().view(np.uint32)

    def work(begin: int, end: int) -> None:
        value_content(begin, end, tokens, may, first, bits, content.numpy().view(np.uint64))

    run_ranges(work, rows, -(-MIN_VALUES_OF_RANGE // width))
    return content
