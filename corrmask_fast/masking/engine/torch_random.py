"""The random numbers of SPEC 3 as PyTorch operations, on any device: for what is drawn outside the kernels.

PyTorch has no unsigned 64-bit arithmetic: an int64 holds the bits. Products wrap around as they should; a shift to the
right brings in the sign, which a mask takes away.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch

from corrmask_fast.kernels.layout import CONTENT, COUNTED
from corrmask_fast.masking.engine.checks import check_batch
from corrmask_fast.masking.engine.draws import draws_of_tensors, priorities_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from corrmask_fast.cells.vocabulary import Vocabulary

VALUES = "values"  # the column of numbers beside tokens that are a part of a cell's content
LOW = 0xFFFFFFFF
PHILOX_M0, PHILOX_M1 = 0xD2511F53, 0xCD9E8D57
PHILOX_W0, PHILOX_W1 = 0x9E3779B9, 0xBB67AE85


def philox_words(
    seed_bits: torch.Tensor, draw_ids: torch.Tensor, columns: torch.Tensor, block: int | torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return w0, w1, w2, w3 = words(seed, draw_id, column, block): Philox4x32-10 (Salmon et al. 2011).

    Parameters
    ----------
    seed_bits
        (1,) int64: the bits of the seed.
    draw_ids, columns, block
        int64, of shapes that broadcast; columns and block in [0, 2**32).

    Returns
    -------
    int64 tensors of the broadcast shape, in [0, 2**32).

    Examples
    --------
    >>> zero = torch.zeros(1, dtype=torch.int64)
    >>> [f"{int(word):08x}" for word in philox_words(zero, zero, zero, 0)]  # a known answer of Random123
    ['6627e8d5', 'e169c58d', 'bc57ac4c', '9b00dbd8']
    """
    c0, c1, c2, c3 = torch.broadcast_tensors(
        columns,
        torch.as_tensor(block, dtype=torch.int64, device=columns.device),
        draw_ids & LOW,
        (draw_ids >> 32) & LOW,
    )
    k0, k1 = seed_bits & LOW, (seed_bits >> 32) & LOW
    for _ in range(10):
        p0, p1 = PHILOX_M0 * c0, PHILOX_M1 * c2
        c0, c1, c2, c3 = ((p1 >> 32) & LOW) ^ c1 ^ k0, p1 & LOW, ((p0 >> 32) & LOW) ^ c3 ^ k1, p0 & LOW
        k0, k1 = (k0 + PHILOX_W0) & LOW, (k1 + PHILOX_W1) & LOW
    return c0, c1, c2, c3


def mix(x: torch.Tensor) -> torch.Tensor:
    """splitmix64's finaliser on the bits of an int64 tensor."""
    x = (x ^ _shifted(x, 30)) * (0xBF58476D1CE4E5B9 - 2**64)
    x = (x ^ _shifted(x, 27)) * (0x94D049BB133111EB - 2**64)
    return x ^ _shifted(x, 31)


def _shifted(x: torch.Tensor, bits: int) -> torch.Tensor:
    return (x >> bits) & (2 ** (64 - bits) - 1)


def maskable_columns(
    vocabulary: Vocabulary, input_ids: torch.Tensor, visible: torch.Tensor, special_tokens_mask: torch.Tensor | None
) -> torch.Tensor:
    """Return (rows, columns) bool: what can be masked, as the kernels see it (a token outside [0, V) is a gene)."""
    special = torch.zeros_like(visible)
    for token in vocabulary.special_token_ids:
        special |= input_ids == token
    if special_tokens_mask is not None:
        special |= special_tokens_mask != 0
    return visible & ~special


def relative_columns(visible: torch.Tensor) -> torch.Tensor:
    """Return int64 of that shape: columns counted from each row's first one that is ``visible`` (not padding)."""
    columns = torch.arange(visible.shape[-1], device=visible.device)
    if not visible.shape[-1]:
        return columns.expand_as(visible)
    return columns - visible.to(torch.int64).argmax(dim=-1, keepdim=True)


def draw_ids_of(
    draws: tuple[torch.Tensor, int, int], input_ids: torch.Tensor, maskable: torch.Tensor, columns: torch.Tensor
) -> torch.Tensor:
    """Return (rows,) int64: the draw of each row, where the kernels would find it (SPEC 3).

    Parameters
    ----------
    draws
        (values, mode, offset) of :func:`corrmask_fast.masking.engine.draws.draws_of_tensors`.
    input_ids, maskable, columns
        (rows, columns): tokens, which of them can be masked, and their :func:`relative_columns`.
    """
    values, mode, offset = draws
    if mode == COUNTED:
        return values + offset + torch.arange(input_ids.shape[0], device=input_ids.device)
    if mode == CONTENT:
        return mix(row_content(input_ids, maskable, columns) + values)
    return values


def row_content(
    input_ids: torch.Tensor, maskable: torch.Tensor, columns: torch.Tensor, values: Sequence[torch.Tensor] = ()
) -> torch.Tensor:
    """Return int64: the content of each row's maskable tokens, and of their values where they have some (SPEC 3).

    Parameters
    ----------
    input_ids, maskable, columns
        (rows, columns), or (columns,) where all rows have the same: see :func:`draw_ids_of`.
    values
        Each (rows, columns), any real dtype.
    """
    numbers = mix((columns << 32) | (input_ids.to(torch.int64) & LOW))
    content = torch.where(maskable, numbers, 0).sum(dim=-1)
    if not values:
        return content
    for one in values:
        numbers = mix(numbers ^ _float_bits(one))
    return content + torch.where(maskable, numbers, 0).sum(dim=-1)


def draw_ids_by_values(
    vocabulary: Vocabulary, batch: Mapping[str, torch.Tensor], salt: torch.Tensor
) -> torch.Tensor | None:
    """Return (rows,) int64: the draws of a padded batch whose tokens have values beside them; None if they have none.

    Values have the name ``values``, floating point and the shape of ``input_ids``; the name decides, for a vector of a
    cell may be as long as a batch is wide. ``salt``, (1,) int64, is added to content.
    """
    ids, values = batch["input_ids"], batch.get(VALUES)
    if values is None or not values.is_floating_point() or values.shape != ids.shape:
        return None
    seen = batch["attention_mask"] != 0
    maskable = maskable_columns(vocabulary, ids, seen, batch.get("special_tokens_mask"))
    return mix(row_content(ids, maskable, relative_columns(seen), [values]) + salt)


def _float_bits(values: torch.Tensor) -> torch.Tensor:
    """Return int64 in [0, 2**32): the bits of values as float32; −0.0 is 0.0, and every NaN is the same."""
    values = values.to(torch.float32)
    bits = (values.view(torch.int32).to(torch.int64) & LOW).masked_fill(values == 0, 0)
    return bits.masked_fill(values.isnan(), 0x7FC00000)


def gumbel_priorities(weights: torch.Tensor, w0: torch.Tensor) -> torch.Tensor:
    """Return priorities whose smallest are drawn by weight without replacement: Gumbel top-k (SPEC 5).

    Parameters
    ----------
    weights
        (rows, columns), >= 0: the chance of a column is its share of the weights left. Columns of weight 0 come last,
        and with them what is no weight (below 0, NaN).
    w0
        (rows, columns) int64: the columns' first random words.

    Returns
    -------
    (rows, columns) int64: by falling log(weight) − log(−log((w0 + ½) / 2³²)), ties by column.
    """
    uniform = (w0.to(torch.float64) + 0.5) / 2**32
    weights = torch.where(weights > 0, weights, 0.0)  # the logarithm's NaN would come first of all
    return priorities_of(weights.to(torch.float64).log() - (-uniform.log()).log())


class HasDraws(Protocol):
    """What :func:`row_draws` reads of a masker."""

    vocabulary: Vocabulary
    seed_bits: torch.Tensor
    draw_counter: torch.Tensor


class RowDraws(NamedTuple):
    """What the kernels would find out about the rows of a batch."""

    draw_ids: torch.Tensor  # (rows,) int64
    visible: torch.Tensor  # (rows, columns) bool: not padding
    maskable: torch.Tensor  # (rows, columns) bool
    w0: torch.Tensor  # (rows, columns) int64: the columns' first random words
    w1: torch.Tensor  # and their second ones
    counted: bool  # whether the masker's counter has to move on


def row_draws(
    masker: HasDraws,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None,
    special_tokens_mask: torch.Tensor | None,
    draw_ids: torch.Tensor | None,
    epoch: int | torch.Tensor | None,
) -> RowDraws:
    """Check a padded batch and return its rows' draws and words."""
    check_batch(input_ids, attention_mask, special_tokens_mask, masker.seed_bits.device)
    visible = input_ids != masker.vocabulary.pad_token_id if attention_mask is None else attention_mask != 0
    maskable = maskable_columns(masker.vocabulary, input_ids, visible, special_tokens_mask)
    columns = relative_columns(visible)
    draws = draws_of_tensors(input_ids.shape[0], draw_ids, epoch, masker.draw_counter, input_ids.device)
    draw = draw_ids_of(draws, input_ids, maskable, columns)
    w0, w1, *_ = philox_words(masker.seed_bits, draw[:, None], columns.clamp(min=0), 0)
    return RowDraws(draw, visible, maskable, w0, w1, draws[1] == COUNTED)
