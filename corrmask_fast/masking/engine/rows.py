"""Masking on the CPU: a batch of tensors or ragged NumPy rows, output buffers, scratch memory, threads, the kernel."""

from __future__ import annotations

import math
import threading
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from corrmask_fast.buffers import empty
from corrmask_fast.kernels.layout import AT_ONCE, KERNELS, P_HI, Settings
from corrmask_fast.masking.engine.checks import check_graph_ids, check_priorities, raise_unknown_token
from corrmask_fast.masking.engine.tables import number_connected, number_members
from corrmask_fast.threads import run_ranges

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from corrmask_fast.masking.engine.draws import Draws

NOTHING = np.empty(0, np.uint8)
NO_NUMBERS = np.empty(0, np.int64)
NO_IDS = np.empty(0, np.uint16)
EVEN_SCALE = 2.0**58  # of keys whose cost is the largest, see kernels/weights.py
MIN_TOKENS = 98_304  # half a millisecond of work: waking another thread takes a tenth
MIN_TOKENS_OF_RANGE = 16_384  # threads wait for each other's last range

Result = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


class CpuPlan(NamedTuple):
    """All that the CPU kernel takes of a masker, packed once. A row's mask follows from it and the row's draw."""

    ids: np.ndarray  # (graphs · (V + 1),) uint16 or int32: the numbers of genes with neighbours, see tables.py
    lookup: np.ndarray  # uint64: buckets of pairs, or bits of sets, see tables.py
    indptr: np.ndarray  # int32 or int64: the neighbours of each number, the genes of each set
    indices: np.ndarray  # uint16 or int32
    costs: np.ndarray  # uint32: of tokens, where they have weights
    edge_costs: np.ndarray  # uint32: of neighbours, where they have weights, see below
    settings: np.ndarray  # int64, see kernels/layout.py
    seed: np.ndarray  # (1,) int64, the bits of the seed
    rates: np.ndarray  # (4,) float64, the ends of p and of λ: the masker's own memory, where schedules change them
    scratch: tuple[int, int]  # what the memory must suffice for: numbers of genes, neighbours of one or sets
    size: int  # of the vocabulary
    n_graphs: int
    checks_priorities: bool  # not where the masker itself makes them
    max_probability: float  # the largest p that ``rates`` may hold


def make_plan(
    seed_bits: torch.Tensor,
    rate_bits: torch.Tensor,
    lookup: torch.Tensor,
    indptr: torch.Tensor,
    indices: torch.Tensor,
    costs: torch.Tensor,
    edge_costs: torch.Tensor,
    settings: Sequence[int],
    max_probability: float,
) -> CpuPlan:
    """Pack what a masker holds: views of its memory, and the numbers of the genes with neighbours."""
    settings = Settings(*settings)
    ids, starts, neighbors, scratch, n_graphs = NO_IDS, indptr.numpy(), NO_IDS, (0, 0), 0
    if KERNELS[settings.strategy].reads == "graph":
        ids, starts, neighbors = number_connected(starts, indices.numpy(), settings.size)
        scratch, n_graphs = (starts.size - 1, settings.degree), ids.size // (settings.size + 1)
    elif KERNELS[settings.strategy].reads == "gene sets":
        ids, neighbors = number_members(indices.numpy(), settings.size)
        scratch = (int(ids.max(initial=0)) + 1, starts.size - 1)
    return CpuPlan(
        ids=ids,
        lookup=lookup.numpy().view(np.uint64),
        indptr=starts,
        indices=neighbors,
        costs=costs.numpy().view(np.uint32),
        edge_costs=_with_means(edge_costs.numpy().view(np.uint32), starts),
        settings=np.array(settings, np.int64),
        seed=seed_bits.numpy(),
        rates=rate_bits.numpy().view(np.float64),
        scratch=scratch,
        size=settings.size,
        n_graphs=n_graphs,
        checks_priorities=KERNELS[settings.strategy].priorities != "columns",
        max_probability=max_probability,
    )


def _with_means(costs: np.ndarray, indptr: np.ndarray) -> np.ndarray:
    """Return the mean cost of each number's edges, by which the kernel guesses, then the costs; nothing of nothing."""
    if not costs.size:
        return costs
    degrees = np.diff(indptr[1:])  # number 0 has no neighbours
    means = degrees / np.add.reduceat(1.0 / costs, indptr[1:-1])  # harmonic: chances are one over costs
    return np.concatenate([[0], means, costs, [0] * AT_ONCE]).astype(np.uint32)


def mask_batch(
    plan: CpuPlan,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None,
    special_tokens_mask: torch.Tensor | None,
    draws: Draws,
    graph_ids: torch.Tensor | None,
    priorities: torch.Tensor | None,
    *,
    validate: bool,
) -> Result:
    """Mask a padded batch of checked CPU tensors; return (input_ids, labels, masked_positions)."""
    rows, columns = input_ids.shape
    out, labels = empty((rows, columns)), empty((rows, columns))
    positions = empty((rows, math.floor(columns * plan.max_probability)))
    tokens = np.ascontiguousarray(input_ids.numpy(), np.int64).reshape(-1)
    row_ptr = row_starts(rows, columns)
    more: dict[str, Any] = {}
    if graph_ids is not None:
        numbers = graph_ids.contiguous().numpy()
        more["graph_ids"] = check_graph_ids(numbers, plan.n_graphs) if validate else numbers
    if priorities is not None:
        ranks = priorities.contiguous().numpy()
        more["priorities"] = (check_priorities(ranks) if validate and plan.checks_priorities else ranks).reshape(-1)
    bad = -1
    if rows:
        bad = mask_rows(
            plan, row_ptr, tokens, draws, out, labels, positions,
            attention_mask=as_bytes(attention_mask), special_tokens_mask=as_bytes(special_tokens_mask), **more,
        )  # fmt: skip
    if bad >= 0 and validate:
        raise_unknown_token(bad, tokens[row_ptr[bad] : row_ptr[bad + 1]], plan.size)
    masked = torch.from_numpy(out)
    return (
        masked if input_ids.dtype == torch.int64 else masked.to(input_ids.dtype),
        torch.from_numpy(labels),
        torch.from_numpy(positions),
    )


@lru_cache(maxsize=16)
def row_starts(rows: int, columns: int) -> np.ndarray:
    """Return where the rows of a padded batch begin."""
    return np.arange(rows + 1, dtype=np.int64) * columns


def as_bytes(mask: torch.Tensor | None) -> np.ndarray:
    """Return a mask of CPU tensors as kernels take it."""
    if mask is None:
        return NOTHING
    return (mask if mask.dtype == torch.bool else mask != 0).contiguous().view(torch.uint8).numpy().reshape(-1)


class _Scratch(threading.local):
    """Memory that a thread keeps for its next rows; it only ever grows."""

    sizes: tuple[int, int, int] = (0, 0, 0)
    arrays: tuple[np.ndarray, ...] = ()

    def ready(self, plan: CpuPlan, columns: int) -> tuple[np.ndarray, ...]:
        """Return the arrays for rows of up to ``columns`` columns, in the kernel's order."""
        (genes, degree), (max_genes, max_degree, max_columns) = plan.scratch, self.sizes
        if not self.arrays or genes > max_genes or degree > max_degree or columns > max_columns:
            sizes = genes, degree, width = max(genes, max_genes), max(degree, max_degree), max(columns, max_columns)
            padded, neighbors = (-(-size // 64) * 64 + 64 for size in (width, degree))
            # The smaller the gene table, the more of it stays in the first cache.
            entry = np.uint16 if padded < 2**16 else np.int32
            self.sizes = (0, 0, 0)  # nothing is claimed before all the memory is there
            self.arrays = (
                np.ones(1, np.int64),  # table_base: entries of the gene table below it are left from earlier rows
                # rates of the rows before: columns masked for each seed or set looked at, neighbours in the cell, and
                # the scales of w1 and w0 that are keys by weight
                np.array([2.0, 0.5, EVEN_SCALE, EVEN_SCALE]),
                np.zeros(genes, entry),  # pos
                *(np.empty(padded, np.uint32) for _ in range(4)),  # w0 w1 w2 w3
                np.empty(padded // 64, np.uint64),  # pool
                np.empty(padded // 64, np.uint64),  # masked
                np.empty(padded, np.uint8),  # flags: masked, a byte each
                np.empty(padded, np.uint64),  # seed_keys
                np.empty(neighbors, np.uint32),  # words of a seed's neighbours, or of sets
                np.empty(neighbors, np.uint64),  # keys of those in the cell, or of sets
                np.empty(max(padded, neighbors), np.uint64),  # order
                np.empty(max(padded, 128), np.uint64),  # spare: PMI uses 18 words of it for 64 columns
            )
            self.sizes = sizes
        return self.arrays


_scratch = _Scratch()


@cache
def _mask_kernel() -> Callable[..., int]:
    from corrmask_fast.kernels.mask import mask  # brings Numba in: not before rows are masked

    return mask


def mask_rows(
    plan: CpuPlan,
    row_ptr: np.ndarray,
    tokens: np.ndarray,
    draws: Draws,
    out: np.ndarray,
    labels: np.ndarray,
    positions: np.ndarray,
    *,
    attention_mask: np.ndarray = NOTHING,
    special_tokens_mask: np.ndarray = NOTHING,
    graph_ids: np.ndarray = NO_NUMBERS,
    priorities: np.ndarray = NO_NUMBERS,
    out_attention: np.ndarray = NO_NUMBERS,
    packed: bool = False,
) -> int:
    """Mask rows into ``out``, ``labels``, ``positions`` (and ``out_attention``), all int64 (rows, columns).

    Parameters
    ----------
    row_ptr, tokens
        Row i is ``tokens[row_ptr[i]:row_ptr[i + 1]]``; it is padded on the right as it is written.
    attention_mask, special_tokens_mask
        uint8, like ``tokens``: 0 at padding, 1 where never to be masked. Empty: padding is where the padding token
        stands; nothing more is protected.
    graph_ids
        (rows,) int64: the number of each row's graph. Empty: the first.
    priorities
        int64 in [0, 2**32), like ``tokens``: in place of w0, or of w1 where they order the top-up. Empty: neither.
    packed
        ``out`` and ``labels`` are (1, tokens): the rows lie in them as in ``tokens``, without padding.

    Returns
    -------
    The first row that holds a token outside the vocabulary, or −1.
    """
    mask = _mask_kernel()
    rows = row_ptr.size - 1
    columns = int(np.diff(row_ptr).max()) if packed else out.shape[1]
    out_ptr = row_ptr if packed else row_starts(rows, columns)
    flat = [array.reshape(-1) for array in (out, out_attention, labels)]
    rates = plan.rates
    if positions.shape[1] < math.floor(columns * rates[P_HI]):
        raise ValueError(f"masked_positions has {positions.shape[1]} columns; p = {rates[P_HI]} of {columns} need more")

    def work(begin: int, end: int) -> int:
        # The kernel itself writes what is kept for the next call: an interrupt after it loses nothing.
        return mask(
            begin, end, row_ptr, tokens, attention_mask, special_tokens_mask, draws.values, draws.mode, draws.offset,
            plan.seed[0], rates, plan.settings, plan.ids, plan.lookup, plan.indptr, plan.indices,
            plan.costs, plan.edge_costs, graph_ids, priorities,
            *_scratch.ready(plan, columns),
            out_ptr, *flat, positions,
        )  # fmt: skip

    smallest = rows if out.size < MIN_TOKENS else -(-MIN_TOKENS_OF_RANGE // columns)
    return min((row for row in run_ranges(work, rows, smallest) if row >= 0), default=-1)
