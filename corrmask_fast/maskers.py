"""Masking strategies as ``torch.nn.Module``: a batch of token ids in, masked ids and labels out."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import nn

from corrmask_fast import torch_ops
from corrmask_fast.buffers import empty
from corrmask_fast.errors import InputError, check_integer, check_number, check_seed
from corrmask_fast.kernels.layout import CONTENT, COUNTED, GIVEN
from corrmask_fast.masking import Draws, RowRules, mask_rows, raise_unknown_token

if TYPE_CHECKING:
    from corrmask_fast.graph import DependencyGraph
    from corrmask_fast.vocabulary import Vocabulary

__all__ = ["CorrMasker", "MaskedBatch"]

GOLDEN = 0x9E3779B97F4A7C15
# What the kernels take from buffers: setting the attribute alone would change nothing but what is shown.
FIXED = frozenset(
    {"mlm_probability", "structural_ratio", "max_partners", "mask_replace_prob", "random_replace_prob", "seed"}
)


class MaskedBatch(NamedTuple):
    """What a masker returns, on the device of its input.

    Attributes
    ----------
    input_ids
        (rows, columns), the input's dtype: tokens after replacement.
    labels
        (rows, columns) int64: the token at masked columns, −100 elsewhere.
    masked_positions
        (rows, floor(columns · p)) int64: the masked columns of each row ascending, −1 behind them.
    """

    input_ids: torch.Tensor
    labels: torch.Tensor
    masked_positions: torch.Tensor


class RaggedMasked(NamedTuple):
    """Padded and masked rows as NumPy arrays, all (rows, columns) int64 but ``masked_positions``."""

    input_ids: np.ndarray
    attention_mask: np.ndarray
    labels: np.ndarray
    masked_positions: np.ndarray


class CorrMasker(nn.Module):
    """Mask correlated genes together (CorrMask, Hacohen et al. 2026, Algorithm 2).

    Parameters
    ----------
    graph
        Which genes depend on each other.
    mlm_probability
        p, in (0, 1): share of a row's maskable tokens that is masked, exactly floor(n · p) of n.
    structural_ratio
        λ, in [0, 1]: share of the masked tokens chosen through the graph; the rest is random. 0 is random masking.
    max_partners
        K_max, >= 0: partners masked with a seed.
    mask_replace_prob, random_replace_prob
        Share of masked tokens that become ``<mask>``, and that become a random gene; the rest stays.
    seed
        Key of the random generator, in [0, 2**64).
    validate
        Whether tokens outside the vocabulary raise. None: on the CPU yes, on a device no (there they count as genes
        without neighbours).

    Notes
    -----
    A row's mask is a pure function of (seed, draw_id, row): the same on CPU and GPU, for any batch, padding, thread,
    worker or rank layout. The draw_id is given, or follows from the row's content and the ``epoch``, or counts up
    with every row masked; the counter is the one thing that ``state_dict`` carries, beside the graph's fingerprint.

    Examples
    --------
    >>> from corrmask_fast import CorrMasker, DependencyGraph, Vocabulary
    >>> genes = Vocabulary(("<pad>", "<mask>", *(f"G{i}" for i in range(8))))
    >>> graph = DependencyGraph.from_edges([("G0", "G1"), ("G2", "G3")], genes)
    >>> masker = CorrMasker(graph, mlm_probability=0.5, structural_ratio=1.0)
    >>> masked = masker(torch.arange(2, 10).repeat(2, 1), epoch=0)
    >>> masked.masked_positions.shape
    torch.Size([2, 4])
    """

    draw_counter: torch.Tensor
    graph_fingerprint: torch.Tensor
    neighbor_indptr: torch.Tensor
    neighbor_indices: torch.Tensor
    seed_bits: torch.Tensor
    rate_bits: torch.Tensor

    def __init__(
        self,
        graph: DependencyGraph,
        *,
        mlm_probability: float = 0.15,
        structural_ratio: float = 0.5,
        max_partners: int = 5,
        mask_replace_prob: float = 0.8,
        random_replace_prob: float = 0.1,
        seed: int = 0,
        validate: bool | None = None,
    ) -> None:
        super().__init__()
        if not hasattr(graph, "fingerprint"):
            raise InputError(f"graph must be a DependencyGraph; got {graph!r}; DependencyGraph.load(path) reads a file")
        self.mlm_probability = check_number("mlm_probability", mlm_probability, 0, 1, open_ends=True)
        self.structural_ratio = check_number("structural_ratio", structural_ratio, 0, 1)
        self.max_partners = check_integer("max_partners", max_partners, 0, 2**31 - 1)
        self.mask_replace_prob = check_number("mask_replace_prob", mask_replace_prob, 0, 1)
        self.random_replace_prob = check_number("random_replace_prob", random_replace_prob, 0, 1)
        if self.mask_replace_prob + self.random_replace_prob > 1:
            raise InputError(
                "mask_replace_prob + random_replace_prob must be at most 1; "
                f"got {mask_replace_prob} + {random_replace_prob}"
            )
        self.seed = check_seed(seed)
        self.validate = validate
        self.vocabulary: Vocabulary = graph.vocabulary
        self._settings = RowRules.settings_of(
            graph.vocabulary, graph.indptr, self.max_partners, self.mask_replace_prob, self.random_replace_prob
        )
        self._cpu_rules: tuple[RowRules, np.ndarray] | None = None
        narrow = np.int32 if graph.indptr[-1] < 2**31 else np.int64
        # Not saved: a graph is large and lies in a file of its own; its fingerprint tells whether it is the same.
        self.register_buffer("neighbor_indptr", torch.from_numpy(graph.indptr.astype(narrow)), persistent=False)
        self.register_buffer("neighbor_indices", torch.from_numpy(graph.indices.astype(np.int32)), persistent=False)
        # As int64 bits: operators take no integer from 2**63 on, a float argument that changes would recompile,
        # and .half() must not round the rates.
        self.register_buffer("seed_bits", _bits(np.array([self.seed], np.uint64)), persistent=False)
        rates = np.array([self.mlm_probability, self.structural_ratio])
        self.register_buffer("rate_bits", _bits(rates), persistent=False)
        self.register_buffer("draw_counter", torch.zeros(1, dtype=torch.int64, device="cpu"))
        fingerprint = np.frombuffer(bytes.fromhex(graph.fingerprint), np.uint8)
        self.register_buffer("graph_fingerprint", torch.from_numpy(fingerprint.copy()))

    def __setattr__(self, name: str, value: Any) -> None:
        if name in FIXED and name in self.__dict__:
            raise InputError(
                f"{name} is fixed when a masker is made; make another: CorrMasker(graph, {name}={value!r})"
            )
        super().__setattr__(name, value)

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        special_tokens_mask: torch.Tensor | None = None,
        *,
        draw_ids: torch.Tensor | None = None,
        epoch: int | torch.Tensor | None = None,
    ) -> MaskedBatch:
        """Mask a padded batch.

        Parameters
        ----------
        input_ids
            (rows, columns) int32 or int64, padded on any side; not changed.
        attention_mask
            (rows, columns): 0 at padding. None: padding is where ``<pad>`` stands.
        special_tokens_mask
            (rows, columns): 1 at columns that must not be masked, beside the vocabulary's special tokens.
        draw_ids
            (rows,) int64: the draw of each row.
        epoch
            Draws follow from this number and the row's content: another mask in each epoch, whatever the batch.
            A one-element int64 tensor on the masker's device stays variable in a captured CUDA graph.

        Raises
        ------
        InputError
            On shapes, dtypes or devices that do not fit, both ``draw_ids`` and ``epoch``, and (with ``validate``)
            a token outside the vocabulary (row, column, value).
        """
        _check_batch(input_ids, attention_mask, special_tokens_mask, self.neighbor_indptr.device)
        draws, mode, offset = self._draws(input_ids.shape[0], draw_ids, epoch)
        validate = input_ids.device.type == "cpu" if self.validate is None else self.validate
        # A plain CPU call skips the dispatcher, which costs as much as a row; everything else goes through the op.
        if type(input_ids) is torch.Tensor and input_ids.device.type == "cpu" and not torch.compiler.is_compiling():
            rules, rates = self._rules_and_rates()
            result = torch_ops.mask_on_cpu(
                rules,
                rates,
                input_ids,
                attention_mask,
                special_tokens_mask,
                Draws(draws.numpy(), mode, offset),
                max_probability=self.mlm_probability,
                validate=validate,
            )
        else:
            result = torch_ops.corrmask(
                input_ids,
                attention_mask,
                special_tokens_mask,
                draws,
                mode,
                offset,
                self.seed_bits,
                self.rate_bits,
                self.neighbor_indptr,
                self.neighbor_indices,
                self._settings,
                self.mlm_probability,
                validate,
            )
        if mode == COUNTED:
            self.draw_counter.add_(input_ids.shape[0])  # += would register the buffer anew, at twenty times the cost
        return MaskedBatch(*result)

    def mask_ragged(
        self,
        indptr: np.ndarray,
        tokens: np.ndarray,
        *,
        columns: int | None = None,
        multiple_of: int = 1,
        draw_ids: np.ndarray | None = None,
        epoch: int | None = None,
        salt: int | None = None,
        structural_ratio: float | None = None,
        seen: np.ndarray | None = None,
        protected: np.ndarray | None = None,
    ) -> RaggedMasked:
        """Pad and mask ragged rows of NumPy arrays in one pass, on the CPU.

        Parameters
        ----------
        indptr, tokens
            Row i is ``tokens[indptr[i]:indptr[i + 1]]``.
        columns
            Width of the batch; None: the longest row, rounded up to a multiple of ``multiple_of``.
        draw_ids, epoch, salt
            One of them: (rows,) int64 draws; the epoch; or what is added to a row's content in place of the epoch.
        structural_ratio
            λ in place of the masker's own (a control with 0 has the same draws).
        seen, protected
            (nnz,) uint8: 0 where a stored token is padding; 1 where a token must not be masked.
        """
        rules, rates = self._rules_and_rates()
        check_integer("multiple_of", multiple_of, 1)
        if structural_ratio is not None:
            rates = np.array([rates[0], check_number("structural_ratio", structural_ratio, 0, 1)])
        indptr, narrow, longest = _check_ragged(indptr, tokens, self.vocabulary.size)
        rows = indptr.size - 1
        columns = (
            -(-longest // multiple_of) * multiple_of if columns is None else check_integer("columns", columns, longest)
        )
        if sum(given is not None for given in (draw_ids, epoch, salt)) != 1:
            raise InputError("mask_ragged needs one of draw_ids, epoch and salt: each alone decides the draw")
        if draw_ids is not None:
            draws = Draws(_check_array("draw_ids", draw_ids, rows, np.int64), GIVEN)
        else:
            draws = Draws(_int64_array(epoch_salt(epoch) if salt is None else salt), CONTENT)
        out, attention, labels = (empty((rows, columns)) for _ in range(3))
        positions = empty((rows, math.floor(columns * self.mlm_probability)))
        marks = {
            name: _check_array(name, mark, narrow.size, np.uint8)
            for name, mark in (("seen", seen), ("protected", protected))
            if mark is not None
        }
        bad = mask_rows(
            rules, rates, indptr, narrow, draws, out, labels, positions, attention=attention, **marks
        ) if rows else -1  # fmt: skip
        if bad >= 0 and self.validate is not False:
            raise_unknown_token(bad, tokens[indptr[bad] : indptr[bad + 1]], self.vocabulary.size)
        if seen is not None:  # what is given is not to be guessed from the padding token
            attention[:] = 0
            attention[np.arange(columns) < np.diff(indptr)[:, None]] = marks["seen"]
        return RaggedMasked(out, attention, labels, positions)

    def _draws(
        self, rows: int, draw_ids: torch.Tensor | None, epoch: int | torch.Tensor | None
    ) -> tuple[torch.Tensor, int, int]:
        """Return (values, mode, offset): where the kernel finds each row's draw (SPEC 3)."""
        device = self.neighbor_indptr.device
        if draw_ids is not None:
            if epoch is not None:
                raise InputError("give draw_ids or epoch, not both: each alone decides the draw")
            if draw_ids.shape != (rows,) or draw_ids.dtype != torch.int64 or draw_ids.device != device:
                raise InputError(
                    f"draw_ids must be ({rows},) int64 on {device}; "
                    f"got {tuple(draw_ids.shape)} {draw_ids.dtype} on {draw_ids.device}"
                )
            return draw_ids.contiguous(), GIVEN, 0
        if epoch is None:
            return self.draw_counter, COUNTED, _signed((_rank() << 48) % 2**64)
        if torch.compiler.is_compiling() and not isinstance(epoch, torch.Tensor):
            epoch = torch.full((1,), epoch, dtype=torch.int64, device=device)  # a constant would compile for each epoch
        if isinstance(epoch, torch.Tensor):
            if epoch.numel() != 1 or epoch.dtype != torch.int64 or epoch.device != device:
                raise InputError(f"an epoch tensor must be one int64 on {device}; got {epoch.dtype} on {epoch.device}")
            return epoch.reshape(1) * _signed(GOLDEN), CONTENT, 0
        # Filled in where it is used: a copy from the host would wait, and could not be captured in a CUDA graph.
        return torch.full((1,), _signed(epoch_salt(epoch)), dtype=torch.int64, device=device), CONTENT, 0

    def _rules_and_rates(self) -> tuple[RowRules, np.ndarray]:
        """Return the constants as the CPU kernels take them: views of the buffers, made once."""
        if self._cpu_rules is None:
            if self.neighbor_indptr.device.type != "cpu":
                raise InputError(
                    f"this masker lies on {self.neighbor_indptr.device}; masking on the CPU needs masker.to('cpu') "
                    "(a collator masks on the CPU: give it a masker of its own)"
                )
            # Half the bytes, where they suffice: the table is far larger than the cache.
            narrow = np.uint16 if self.vocabulary.size <= 2**16 else np.int32
            indices = self.neighbor_indices.numpy().astype(narrow)
            rules = RowRules.make(self.neighbor_indptr.numpy(), indices, self._settings, self.seed_bits.numpy())
            self._cpu_rules = rules, self.rate_bits.numpy().view(np.float64)
        return self._cpu_rules

    def _apply(self, fn: Any, recurse: bool = True) -> CorrMasker:
        self._cpu_rules = None
        return super()._apply(fn, recurse)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cpu_rules": None}

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        saved = state_dict.get(f"{prefix}graph_fingerprint")
        if saved is not None and not torch.equal(saved.cpu(), self.graph_fingerprint.cpu()):
            raise InputError(
                f"the saved masker used graph {bytes(saved.tolist()).hex()[:12]}…, this one uses "
                f"{bytes(self.graph_fingerprint.tolist()).hex()[:12]}…; resume with the graph of the first run"
            )
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        """Return the parameters for ``repr``."""
        return (
            f"{self.vocabulary!r}, {self.neighbor_indices.numel() // 2} edges, mlm_probability={self.mlm_probability}, "
            f"structural_ratio={self.structural_ratio}, max_partners={self.max_partners}, seed={self.seed}"
        )


def epoch_salt(epoch: Any) -> int:
    """Return what is added to a row's content for an epoch: epoch · 0x9E3779B97F4A7C15 mod 2**64."""
    return check_integer("epoch", epoch, 0, 2**63 - 1) * GOLDEN % 2**64


def _check_batch(
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None,
    special_tokens_mask: torch.Tensor | None,
    device: torch.device,
) -> None:
    """Raise InputError unless the batch has a shape, dtype and device that the kernels take."""
    if not isinstance(input_ids, torch.Tensor):
        raise InputError(
            f"input_ids must be a tensor (rows, columns) of int32 or int64; got {type(input_ids).__name__}"
        )
    if input_ids.dim() != 2 or input_ids.dtype not in {torch.int32, torch.int64}:
        raise InputError(
            "input_ids must be (rows, columns) of int32 or int64; "
            f"got shape {tuple(input_ids.shape)} of {input_ids.dtype}"
        )
    if input_ids.device != device:
        raise InputError(
            f"input_ids lies on {input_ids.device}, the masker on {device}; use masker.to(input_ids.device)"
        )
    for name, mask in (("attention_mask", attention_mask), ("special_tokens_mask", special_tokens_mask)):
        if mask is not None and (mask.shape != input_ids.shape or mask.device != device):
            raise InputError(
                f"{name} must have the shape {tuple(input_ids.shape)} and device {device} of input_ids; "
                f"got {tuple(mask.shape)} on {mask.device}"
            )


def _check_ragged(indptr: np.ndarray, tokens: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Return (offsets as int64, tokens as int32, longest row)."""
    from corrmask_fast.kernels.ragged import longest_row

    indptr, tokens = np.ascontiguousarray(indptr, np.int64), np.asarray(tokens)
    if tokens.dtype.kind not in "iu" and tokens.size:
        raise InputError(f"tokens must be integers; got {tokens.dtype}")
    longest = longest_row(indptr, tokens.size)
    if longest < 0:
        raise InputError(f"indptr must rise from 0 to the number of tokens, {tokens.size}; got {indptr}")
    if tokens.dtype.itemsize > 4 or tokens.dtype == np.uint32:  # must not wrap around to a token that is known
        lost = (tokens < -(2**31)) | (tokens >= 2**31)
        if lost.any():
            row = int(np.searchsorted(indptr, lost.argmax(), side="right")) - 1
            raise_unknown_token(row, tokens[indptr[row] : indptr[row + 1]], size)
    return indptr, np.ascontiguousarray(tokens, np.int32), longest


def _check_array(name: str, array: np.ndarray, size: int, dtype: Any) -> np.ndarray:
    """Return an array as the kernels take it: (size,) of ``dtype``."""
    if array.shape != (size,) or array.dtype != dtype:
        raise InputError(f"{name} must be ({size},) {np.dtype(dtype)}; got {array.shape} {array.dtype}")
    return np.ascontiguousarray(array)


def _rank() -> int:
    distributed = torch.distributed
    return distributed.get_rank() if distributed.is_available() and distributed.is_initialized() else 0


def _signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value


def _int64_array(value: int) -> np.ndarray:
    return np.array([_signed(value)], np.int64)


def _bits(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array.view(np.int64).copy())
