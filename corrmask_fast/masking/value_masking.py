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
    """What :class:`ValueReplacement` returns.

    Attributes
    ----------
    values
        (rows, columns), the dtype given: hidden where masked (but for the share that stays as it was).
    targets
        (rows, columns): the values as they were given.
    masked
        (rows, columns) bool: what is to be predicted, ``loss(prediction[masked], targets[masked])``.
    """

    values: torch.Tensor
    targets: torch.Tensor
    masked: torch.Tensor


class ValueReplacement(nn.Module):
    """Hide the values of the genes that a masker chooses; their ids stay in view.

    Parameters
    ----------
    masker
        Chooses columns by their genes: any strategy. Its ``mask_replace_prob`` is the share of chosen values that are
        hidden; the rest is predicted in plain sight. ``random_replace_prob`` must be 0: a random gene is no value.
    mask_value
        What a hidden value becomes.
    nonzero_only
        Choose among values other than 0 only: p is then the share of these.
    zero_probability
        With ``nonzero_only``: the share of zeros that is masked beside them, at random.
    replace_ids
        Hide ids and values together (GeneCompass): the masker replaces ids as for a masked language model, and where
        the id is another one, the value is hidden. :class:`~corrmask_fast.DataCollatorForValues` alone does this.

    Examples
    --------
    >>> from corrmask_fast import RandomMasker, Vocabulary
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
        """Return scGPT's way (Cui et al. 2024): values of genes, zeros too, become −1; the loss is a squared error.

        Its masks take 15 to 40 % of the genes, and hide them all: ``mask_replace_prob=1``.
        """
        return cls(masker, -1)

    @classmethod
    def scbert(cls, masker: Masker, n_bins: int = 5, *, appended: bool = False) -> Self:
        """Return scBERT's way (Yang et al. 2022): expression bins 0 … ``n_bins`` at fixed gene columns.

        Bins other than 0 become the mask token, ``n_bins + 1``: 15 % of them, nine in ten of these hidden
        (``mlm_probability=0.15, mask_replace_prob=0.9``); the loss is a cross-entropy over bins. ``appended``: values
        have one more column than there are genes, the 0 that scBERT appends to each cell; it is never masked.
        """
        hide = cls(masker, n_bins + 1, nonzero_only=True)
        hide.n_appended = int(appended)
        return hide

    @classmethod
    def scfoundation(cls, masker: Masker, *, zero_probability: float = 0.03, mask_value: float = 102) -> Self:
        """Return scFoundation's way (Hao et al. 2024): 30 % of the values and 3 % of the zeros, by its mask token.

        The masker has ``mlm_probability=0.3``; the value 102 is what its embedding takes for the mask token. The
        columns that its encoder takes are ``(out.targets > 0) & ~out.masked``: the mask value itself is above 0.
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
        """Choose columns and hide their values.

        Parameters
        ----------
        gene_ids
            (rows, columns) or, where every row has the same genes, (columns,): int32 or int64 ids of the masker's
            vocabulary. Special tokens are never masked.
        values
            (rows, columns): expression, or its bins; floating point or integers. Not changed.
        attention_mask
            (rows, columns): 0 at padding. None: padding is where gene ids are ``<pad>``.
        draw_ids, epoch, **more
            As for the masker; with ``epoch`` the draw follows from the cell's genes and their values, so that cells
            of one gene panel have masks of their own.

        Raises
        ------
        InputError
            If shapes do not fit, the dtype of ``values`` cannot hold the mask value, or a value beside padding is NaN
            (looked for as the masker looks for unknown tokens: on the CPU, elsewhere with ``validate=True``).
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
