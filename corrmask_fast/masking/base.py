"""What every masking strategy has in common: a batch of token ids in, masked ids and labels out."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
import torch
from torch import nn

from corrmask_fast.buffers import empty
from corrmask_fast.errors import InputError, check_integer, check_number, check_seed, shown
from corrmask_fast.kernels.layout import COUNTED, KERNELS, NEEDED, P_HI, P_LO, RATIO_HI, RATIO_LO, Settings
from corrmask_fast.masking.engine import device as on_device
from corrmask_fast.masking.engine import ops
from corrmask_fast.masking.engine import rows as on_cpu
from corrmask_fast.masking.engine.checks import (
    check_array,
    check_batch,
    check_graph_ids,
    check_graphs_given,
    check_one_number,
    check_ragged,
    check_row_numbers,
    raise_unknown_token,
)
from corrmask_fast.masking.engine.draws import Draws, draws_of_arrays, draws_of_tensors
from corrmask_fast.masking.schedules import Schedule, check_rate

if TYPE_CHECKING:
    from corrmask_fast.cells.vocabulary import Vocabulary
    from corrmask_fast.masking.engine.tables import NeighborTable

__all__ = ["MaskedBatch", "Masker"]

NO_ADDRESS = -1  # of a plan of a device: never that of memory
RateLike = float | tuple[float, float] | Schedule
# Kernels read these from buffers. Setting the attribute would change nothing but what is shown.
FIXED = frozenset(
    {
        "mlm_probability",
        "structural_ratio",
        "max_partners",
        "mask_replace_prob",
        "random_replace_prob",
        "replace",
        "seed",
    }
)
REPLACED = ("token", "group")
TOLD = frozenset({"partners", "weights"})  # the same, told by the table's fingerprint


class MaskedBatch(NamedTuple):
    """A masked batch, as every masker returns it: a named tuple of tensors on the device of the input.

    Attributes
    ----------
    input_ids
        (rows, columns), the input's dtype: tokens after replacement.
    labels
        (rows, columns) int64: the original token at masked columns, −100 elsewhere. −100 is what losses ignore.
    masked_positions
        (rows, floor(columns · p)) int64: the masked columns of each row, ascending, then −1. Of a range or a schedule,
        p is the largest rate that a row may have.

    Examples
    --------
    >>> import torch
    >>> from corrmask_fast import RandomMasker, Vocabulary
    >>> genes = Vocabulary(("<pad>", "<mask>", *"ABCDEFGH"))
    >>> batch = RandomMasker(genes, mlm_probability=0.25)(torch.arange(2, 10)[None], epoch=0)
    >>> batch.masked_positions
    tensor([[4, 6]])
    >>> batch.labels
    tensor([[-100, -100, -100, -100,    6, -100,    8, -100]])
    """

    input_ids: torch.Tensor
    labels: torch.Tensor
    masked_positions: torch.Tensor


class RaggedMasked(NamedTuple):
    """Padded and masked rows as NumPy arrays, all (rows, columns) int64 but ``masked_positions``.

    Packed rows: (1, tokens), and no attention mask; ``masked_positions`` are still columns of each row.
    """

    input_ids: np.ndarray
    attention_mask: np.ndarray
    labels: np.ndarray
    masked_positions: np.ndarray


class Masker(nn.Module):
    """Base class of all masking strategies: a module that takes a padded batch of token ids and masks it.

    Do not make one directly: use a strategy's own class, such as :class:`~corrmask_fast.CorrMasker`, or
    :func:`~corrmask_fast.make_masker`. For a strategy of your own use :class:`~corrmask_fast.FunctionMasker`.

    Parameters
    ----------
    vocabulary
        The :class:`~corrmask_fast.Vocabulary`: which id is which gene.
    strategy
        Internal: the number of the strategy's kernel.
    table
        Internal: the table that the kernel reads.
    mlm_probability
        p, in (0, 1): share of a row's n maskable tokens that is masked, exactly floor(n · p). A number; or
        ``(low, high)``, from which each row draws its own; or a schedule over training steps
        (:class:`~corrmask_fast.Linear`, :class:`~corrmask_fast.Cosine`, :class:`~corrmask_fast.Piecewise`), whose step
        :meth:`set_step` sets.
    structural_ratio
        λ, in [0, 1]: share of the masked tokens that the strategy chooses; the rest is random. A number, a range or a
        schedule.
    mask_replace_prob
        Share of the masked tokens that become the mask token, in [0, 1].
    random_replace_prob
        Share of the masked tokens that become a random gene, in [0, 1]; with ``mask_replace_prob`` at most 1. The
        others stay as they are.
    seed
        Key of the random generator, in [0, 2**64).
    validate
        True: a token outside the vocabulary raises. False: it counts as a gene without partners. None: True on the CPU,
        False on a device.
    max_partners
        Partners that are masked with a seed gene, >= 0; only CorrMask uses it.
    replace
        ``"token"``: each masked token draws its own replacement. ``"group"``: genes that were masked together share one
        draw.

    Attributes
    ----------
    n_graphs
        Number of dependency graphs; 0 for a strategy that uses none.
    label
        Name of the strategy in tables and pictures.
    mask_source
        What the masks depend on beside the parameters, in words: ``"vocabulary"``, ``"graph"`` …
    note
        One line about what was found when the masker was made; it is shown with audits and runs. Often empty.
    needs_model
        Whether the masks depend on a model, with which the masker learns.
    on_host
        Whether masks are always computed on the CPU, also for a batch on a device.
    own_parameters
        Names of further parameters that decide the masks.
    draw_counter
        (1,) int64 buffer: number of rows masked without ``draw_ids`` and ``epoch``; saved in ``state_dict``.

    Raises
    ------
    InputError
        If a parameter is out of range. When ``mlm_probability`` or another parameter is set afterwards: a masker's
        parameters are fixed.

    Notes
    -----
    Which columns a row has masked follows from the seed, the row's draw and the row: not from padding, batch size,
    threads, workers or device (docs/SPEC.md 3 and 4). ``state_dict`` has the counter of draws and a fingerprint of the
    table. Loading the state of a masker with another table raises InputError.

    Examples
    --------
    >>> import torch
    >>> from corrmask_fast import RandomMasker, Vocabulary
    >>> masker = RandomMasker(Vocabulary(("<pad>", "<mask>", *"ABCDEFGH")), mlm_probability=0.5)
    >>> first = masker(torch.tensor([[2, 3, 4, 5, 0, 0]]), epoch=3)  # 0 is <pad>
    >>> again = masker(torch.tensor([[2, 3, 4, 5]]), epoch=3)
    >>> torch.equal(first.labels[:, :4], again.labels)
    True
    """

    draw_counter: torch.Tensor
    table_fingerprint: torch.Tensor
    neighbor_lookup: torch.Tensor
    neighbor_indptr: torch.Tensor
    neighbor_indices: torch.Tensor
    token_costs: torch.Tensor
    edge_costs: torch.Tensor
    seed_bits: torch.Tensor
    rate_bits: torch.Tensor
    schedule_step: torch.Tensor
    label = ""  # what tables and pictures call it
    mask_source = "vocabulary"  # what its masks depend on, beside the numbers
    note = ""  # what was found when it was made: a line, shown with audits and runs
    needs_model = False  # whether they depend on a model too, with which the masker learns
    on_host = False  # whether its masks are computed on the CPU, whatever the device
    own_parameters: tuple[str, ...] = ()  # parameters beside FIXED that decide its masks, and that no table tells

    def __init__(
        self,
        vocabulary: Vocabulary,
        strategy: int,
        table: NeighborTable,
        *,
        mlm_probability: RateLike,
        structural_ratio: RateLike,
        mask_replace_prob: float,
        random_replace_prob: float,
        seed: int,
        validate: bool | None,
        max_partners: int = 0,
        replace: str = "token",
    ) -> None:
        super().__init__()
        p = check_rate("mlm_probability", mlm_probability, open_ends=True)
        ratio = check_rate("structural_ratio", structural_ratio)
        self.mlm_probability = p.as_given
        self.structural_ratio = ratio.as_given
        self.max_partners = check_integer("max_partners", max_partners, 0, 2**31 - 1)
        self.mask_replace_prob = check_number("mask_replace_prob", mask_replace_prob, 0, 1)
        self.random_replace_prob = check_number("random_replace_prob", random_replace_prob, 0, 1)
        if self.mask_replace_prob + self.random_replace_prob > 1:
            raise InputError(
                "mask_replace_prob + random_replace_prob must be at most 1; "
                f"got {mask_replace_prob} + {random_replace_prob}"
            )
        if replace not in REPLACED:
            raise InputError(f"replace must be 'token' or 'group'; got {shown(replace)}")
        self.replace = replace
        self.seed = check_seed(seed)
        self.validate = validate
        self.vocabulary = vocabulary
        self._lacks_mask_token = self.mask_replace_prob > 0 and vocabulary.mask_token_id is None
        self.max_probability = p.largest  # that a row may ever have: the width of masked_positions
        schedules = ((P_LO, p.schedule), (RATIO_LO, ratio.schedule))
        self._schedules = [(entry, schedule) for entry, schedule in schedules if schedule is not None]
        self.n_graphs = table.n_graphs
        self._settings = self._make_settings(strategy, table.degree)
        self._needs_priorities = KERNELS[strategy].priorities in NEEDED
        self._needs_more = table.n_graphs > 1 or self._needs_priorities  # than a batch
        # What kernels take of the masker: packed once, with its device and the address of one buffer's memory.
        self._plan: tuple[Any, torch.device, int] | None = None
        # Not saved: a table is large and lies in a file of its own; its fingerprint tells whether it is the same.
        self.register_buffer("neighbor_lookup", _bits(table.lookup), persistent=False)
        self.register_buffer("neighbor_indptr", torch.from_numpy(table.indptr), persistent=False)
        self.register_buffer("neighbor_indices", torch.from_numpy(table.indices), persistent=False)
        for name, costs in (("token_costs", table.costs), ("edge_costs", table.edge_costs)):
            self.register_buffer(name, torch.from_numpy(costs.view(np.int32).copy()), persistent=False)
        # As int64 bits: operators take no integer from 2**63 on, a float argument that changes would recompile,
        # and .half() must not round the rates.
        self.register_buffer("seed_bits", _bits(np.array([self.seed], np.uint64)), persistent=False)
        rates = np.array([p.low, p.high, ratio.low, ratio.high])
        self.register_buffer("rate_bits", _bits(rates), persistent=False)
        self.register_buffer("schedule_step", torch.zeros(1, dtype=torch.int64, device="cpu"), persistent=False)
        self.register_buffer("draw_counter", torch.zeros(1, dtype=torch.int64, device="cpu"))
        fingerprint = np.frombuffer(bytes.fromhex(table.fingerprint), np.uint8)
        self.register_buffer("table_fingerprint", torch.from_numpy(fingerprint.copy()))

    def _make_settings(self, strategy: int, degree: int) -> Settings:
        pad, mask = self.vocabulary.pad_token_id, self.vocabulary.mask_token_id
        lo, hi = self.vocabulary.gene_range
        return Settings(
            pad=pad,
            mask=pad if mask is None else mask,  # any id that is no gene's marks what is hidden
            lo=lo,
            hi=hi,
            size=self.vocabulary.size,
            max_partners=self.max_partners,
            mask_below=math.floor(self.mask_replace_prob * 2**32),
            random_below=math.floor((self.mask_replace_prob + self.random_replace_prob) * 2**32),
            degree=degree,
            strategy=strategy,
            grouped=int(self.replace == "group"),
        )

    def __setattr__(self, name: str, value: Any) -> None:
        if (name in FIXED or name in TOLD) and name in self.__dict__:
            raise InputError(
                f"{name} is fixed when a masker is made; make another {type(self).__name__} with {name}={value!r}"
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
        graph_ids: torch.Tensor | None = None,
        priorities: torch.Tensor | None = None,
        marks_only: bool = False,
    ) -> MaskedBatch:
        """Mask a padded batch. Call the masker itself: ``masker(input_ids, …)``.

        Parameters
        ----------
        input_ids
            (rows, columns) int32 or int64, padded on any side; not changed.
        attention_mask
            (rows, columns): 0 at padding. None: padding is where ``<pad>`` stands.
        special_tokens_mask
            (rows, columns): 1 at columns that must not be masked, beside the vocabulary's special tokens.
        draw_ids
            (rows,) int64: the draw of each row. None: from ``epoch``; without that, rows are counted, so that each call
            draws anew.
        epoch
            The draw follows from this number, >= 0, and the row's genes: masks change with the epoch, not with the
            batch. A one-element int64 tensor on the masker's device stays variable in a captured CUDA graph.
        graph_ids
            (rows,) int64: the number of each row's graph, for a masker with several. On a device, a row whose number
            is out of range has no graph.
        priorities
            (rows, columns) int64 in [0, 2**32): groups of columns are proposed in this order, smallest first (ties: the
            earlier column), in place of a random order. Strategies that propose no groups ignore it. Without
            ``validate`` only the lower 32 bits count. ``corrmask_fast.masking.engine.draws.priorities_of`` makes
            priorities of scores.
        marks_only
            True: the masked ids only mark what is hidden, and no model reads them. Then the vocabulary needs no mask
            token.

        Returns
        -------
        MaskedBatch
            Masked ids, labels and masked columns: see :class:`~corrmask_fast.MaskedBatch`.

        Raises
        ------
        InputError
            If shapes, dtypes or devices do not fit; both ``draw_ids`` and ``epoch`` are given; ``graph_ids`` are
            missing for several graphs, or given for none; the vocabulary has no mask token; or (with ``validate``) a
            token, graph number or priority is out of range: the message names row, column and value.
        """
        if self._lacks_mask_token and not marks_only:
            self.vocabulary.require_mask_token()
        # A plain call skips the dispatcher, which costs as much as a row on the CPU, or as all else on a device's host.
        plain = type(input_ids) is torch.Tensor and not torch.compiler.is_compiling()
        kept = self._plan if plain else None  # a compiled function would be compiled anew when the plan is made
        # Looking a buffer up costs time.
        device = self.neighbor_indptr.device if kept is None else kept[1]
        check_batch(input_ids, attention_mask, special_tokens_mask, device)
        if graph_ids is not None or priorities is not None or self._needs_more:
            check_row_numbers(graph_ids, priorities, self.n_graphs, self._needs_priorities, input_ids)
        draws, mode, offset = draws_of_tensors(input_ids.shape[0], draw_ids, epoch, self.draw_counter, device)
        validate = device.type == "cpu" if self.validate is None else self.validate
        if plain and device.type == "cpu":
            values = draws.numpy()
            result = on_cpu.mask_batch(
                self._cpu_plan(),
                input_ids,
                attention_mask,
                special_tokens_mask,
                Draws(values, mode, offset),
                graph_ids,
                priorities,
                validate=validate,
            )
            if mode == COUNTED:
                values[0] += input_ids.shape[0]  # the counter's memory; adding to the tensor is far slower
            return MaskedBatch(*result)
        batch = (input_ids, attention_mask, special_tokens_mask, draws, mode, offset, graph_ids, priorities, validate)
        if plain and device.type == "cuda":
            result = on_device.mask_batch(self._device_plan(device), *batch)
        else:
            result = ops.mask(*batch, *self.fixed_arguments())
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
        graph_ids: np.ndarray | None = None,
        attention_mask: np.ndarray | None = None,
        special_tokens_mask: np.ndarray | None = None,
        marks_only: bool = False,
        packed: bool = False,
    ) -> RaggedMasked:
        """Pad and mask ragged rows of NumPy arrays in one pass, on the CPU.

        Exactly one of ``draw_ids``, ``epoch`` and ``salt`` must be given.

        Parameters
        ----------
        indptr
            (rows + 1,) integers: row i is ``tokens[indptr[i]:indptr[i + 1]]``.
        tokens
            (nnz,) integers: the tokens of all rows. Not changed.
        columns
            Width of the batch, at least the longest row. None: the longest row, rounded up to a multiple of
            ``multiple_of``.
        multiple_of
            Used where ``columns`` is None, >= 1.
        draw_ids
            (rows,) int64: the draw of each row.
        epoch
            The draw follows from this number, >= 0, and the row's genes.
        salt
            Integer that is added to a row's content in place of the epoch's own number (docs/SPEC.md 3).
        structural_ratio
            λ in place of the masker's own. With 0 the result is the random control with the same draws.
        graph_ids
            (rows,) int64: the number of each row's graph, for a masker with several.
        attention_mask
            (nnz,) uint8: 0 where a stored token is padding. None: padding is where ``<pad>`` stands.
        special_tokens_mask
            (nnz,) uint8: 1 where a token must not be masked, beside the vocabulary's special tokens.
        marks_only
            True: no model reads the masked ids. Then the vocabulary needs no mask token.
        packed
            Put the rows one after the other in a single row, without padding; the masks are the same.

        Returns
        -------
        RaggedMasked
            A named tuple of arrays: ``input_ids``, ``attention_mask`` and ``labels``, (rows, columns) int64, and
            ``masked_positions``, (rows, floor(columns · p)) int64. With ``packed``, ``input_ids`` and ``labels`` are
            (1, nnz), ``attention_mask`` is empty, and ``masked_positions`` are still columns of each row.

        Raises
        ------
        InputError
            If not exactly one of ``draw_ids``, ``epoch`` and ``salt`` is given; an array does not fit; ``columns`` is
            less than the longest row; a token lies outside the vocabulary (unless ``validate=False``); graph numbers
            are missing or out of range; the vocabulary has no mask token; or the masker lies on a device.

        Examples
        --------
        >>> import numpy as np
        >>> from corrmask_fast import RandomMasker, Vocabulary
        >>> masker = RandomMasker(Vocabulary(("<pad>", "<mask>", *"ABCDEFGH")), mlm_probability=0.5)
        >>> masked = masker.mask_ragged(np.array([0, 4, 6]), np.array([2, 3, 4, 5, 6, 7]), epoch=0)
        >>> masked.attention_mask
        array([[1, 1, 1, 1],
               [1, 1, 0, 0]])
        >>> (masked.labels != -100).sum(axis=1)
        array([2, 1])
        """
        if self._lacks_mask_token and not marks_only:
            self.vocabulary.require_mask_token()
        plan = self._cpu_plan()
        check_integer("multiple_of", multiple_of, 1)
        if structural_ratio is not None:
            ratio = check_number("structural_ratio", structural_ratio, 0, 1)
            plan = plan._replace(rates=np.array([plan.rates[P_LO], plan.rates[P_HI], ratio, ratio]))
        indptr, narrow, longest = check_ragged(indptr, tokens, plan.size)
        rows = indptr.size - 1
        columns = (
            -(-longest // multiple_of) * multiple_of if columns is None else check_integer("columns", columns, longest)
        )
        draws = draws_of_arrays(rows, draw_ids, epoch, salt)
        shape = (1, narrow.size) if packed else (rows, columns)
        out, labels, attention = empty(shape), empty(shape), empty((0,) if packed else shape)
        positions = empty((rows, math.floor(columns * self.max_probability)))
        marks = {
            name: check_array(name, mark, narrow.size, np.uint8)
            for name, mark in (("attention_mask", attention_mask), ("special_tokens_mask", special_tokens_mask))
            if mark is not None
        }
        if graph_ids is not None or self._needs_more:
            check_graphs_given(graph_ids is not None, self.n_graphs)
        if self._needs_priorities:
            draws, marks["priorities"] = self._propose(indptr, narrow, draws, plan.rates[RATIO_HI], **marks)
        if graph_ids is not None:
            marks["graph_ids"] = check_graph_ids(check_array("graph_ids", graph_ids, rows, np.int64), self.n_graphs)
        bad = on_cpu.mask_rows(
            plan, indptr, narrow, draws, out, labels, positions, out_attention=attention, packed=packed, **marks
        ) if rows else -1  # fmt: skip
        if bad >= 0 and self.validate is not False:
            raise_unknown_token(bad, tokens[indptr[bad] : indptr[bad + 1]], plan.size)
        if attention_mask is not None and not packed:  # what is given is not to be guessed from the padding token
            attention[:] = 0
            attention[np.arange(columns) < np.diff(indptr)[:, None]] = marks["attention_mask"]
        return RaggedMasked(out, attention, labels, positions)

    def _propose(self, *_: Any, **__: Any) -> tuple[Draws, np.ndarray]:
        """Return the draws of ragged rows, and their priorities (see ``mask_rows``)."""
        raise InputError("ragged rows have no priorities; mask a padded batch by calling the masker")

    def set_step(self, step: int | torch.Tensor) -> None:
        """Set the training step of schedules, from the next batch on. Without schedules it changes nothing.

        Parameters
        ----------
        step
            The step, >= 0; or a one-element int64 tensor on the masker's device. The tensor's value is never copied to
            the host: in a captured CUDA graph or a compiled function it may change.

        Raises
        ------
        InputError
            If the step is no integer in [0, 2**63), or the tensor has another size, dtype or device.
        """
        device = self.rate_bits.device
        if isinstance(step, torch.Tensor):
            check_one_number("a step", step, device)
        elif torch.compiler.is_compiling():
            step = torch.full((1,), step, dtype=torch.int64, device=device)  # a constant would compile for each step
        else:
            self.schedule_step.fill_(check_integer("step", step, 0, 2**63 - 1))
            for entry, schedule in self._schedules:
                self.rate_bits.view(torch.float64)[entry : entry + 2].fill_(schedule(step))
            return
        self.schedule_step.copy_(step.reshape(1))
        for entry, schedule in self._schedules:
            value = schedule.at(self.schedule_step).view(torch.int64)
            self.rate_bits[entry : entry + 2].copy_(value.expand(2))

    @property
    def has_schedule(self) -> bool:
        """Whether ``mlm_probability`` or ``structural_ratio`` is a schedule over steps."""
        return bool(self._schedules)

    def current_rates(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """Return p and λ as they are now, at the step that was set.

        Returns
        -------
        tuple
            ``((p_low, p_high), (ratio_low, ratio_high))``, floats. Low and high differ only where each row draws its
            own.
        """
        p_low, p_high, low, high = self.rate_bits.view(torch.float64).tolist()
        return (p_low, p_high), (low, high)

    def fixed_arguments(self) -> tuple[Any, ...]:
        """Return the last arguments of the operator in ``engine/ops.py``, the same for all batches. For internal use.

        Returns
        -------
        tuple
            Buffers, settings and the largest p.
        """
        return (
            *(self.seed_bits, self.rate_bits, self.neighbor_lookup, self.neighbor_indptr, self.neighbor_indices),
            *(self.token_costs, self.edge_costs, self._settings, self.max_probability),
        )

    def _cpu_plan(self) -> on_cpu.CpuPlan:
        """Return what the CPU kernel takes of the masker: views of its buffers, made once.

        A tensor that is sent to a process, by this masker or by a copy that shares it, leaves its memory for another.
        """
        address = self._buffers["rate_bits"].data_ptr()  # type: ignore[union-attr]
        plan = self._plan
        if plan is None or plan[2] != address:
            device = self.neighbor_indptr.device
            if device.type != "cpu":
                raise InputError(
                    f"this masker lies on {device}; masking on the CPU needs masker.to('cpu') "
                    "(a collator masks on the CPU: give it a masker of its own)"
                )
            plan = self._plan = on_cpu.make_plan(*self.fixed_arguments()), device, address
        return plan[0]

    def _device_plan(self, device: torch.device) -> on_device.DevicePlan:
        """Return what the CUDA kernels take of the masker: addresses of its buffers and its constants, packed once."""
        if self._plan is None:
            self._plan = on_device.make_plan(*self.fixed_arguments()), device, NO_ADDRESS
        return self._plan[0]

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        self._plan = None
        return super()._apply(fn, recurse)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_plan": None}

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        saved = state_dict.get(f"{prefix}table_fingerprint")
        if saved is not None and not torch.equal(saved.cpu(), self.table_fingerprint.cpu()):
            raise InputError(
                f"the saved masker used {self.mask_source} {bytes(saved.tolist()).hex()[:12]}…, "
                f"this one uses {bytes(self.table_fingerprint.tolist()).hex()[:12]}…; "
                f"resume with the {self.mask_source} of the first run"
            )
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        """Return the parameters for ``repr``."""
        replace = "" if self.replace == "token" else f", replace={self.replace!r}"
        return (
            f"{self.vocabulary!r}, mlm_probability={self.mlm_probability}, "
            f"structural_ratio={self.structural_ratio}, seed={self.seed}{replace}"
        )


def _bits(array: np.ndarray) -> torch.Tensor:
    # A clone lies at a multiple of 64 bytes, NumPy's copy does not: a bucket of pairs would lie in two cache lines.
    return torch.from_numpy(array.view(np.int64)).clone()
