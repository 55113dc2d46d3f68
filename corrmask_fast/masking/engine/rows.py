"""Masking of NumPy rows: output buffers, scratch memory and threads around the compiled kernels."""

from __future__ import annotations

import math
import threading
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from corrmask_fast.errors import InputError
from corrmask_fast.kernels.layout import CORRMASK, DEGREE, P_HI, SIZE, STRATEGY
from corrmask_fast.masking.neighbor_tables import number_connected
from corrmask_fast.threads import run_ranges

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from corrmask_fast.cells.vocabulary import Vocabulary
    from corrmask_fast.masking.neighbor_tables import Connected

NOTHING = np.empty(0, np.uint8)
NO_NUMBERS = np.empty(0, np.int64)
NO_IDS = np.empty(0, np.uint16)
NO_LOOKUP = np.empty(0, np.uint64)
NO_OUTPUT = np.empty((1, 0), np.int64)
FEWEST_TOKENS = 98_304  # half a millisecond of work: waking another thread takes a tenth
TOKENS_A_RANGE = 16_384  # at least: threads wait for each other's last range


class Draws(NamedTuple):
    """Where each row's draw_id comes from: ``mode`` is GIVEN, COUNTED or CONTENT of ``kernels/layout.py``."""

    values: np.ndarray  # int64: (rows,) draw ids, or (1,) a counter, or (1,) the salt of the content
    mode: int
    offset: int = 0  # COUNTED: added to the counter (rank << 48)


class RowRules(NamedTuple):
    """Everything that decides a row's mask but its rates and its draw, as the kernels take it."""

    ids: np.ndarray  # (graphs · (V + 1),) uint16 or int32: the numbers of genes with neighbours, see neighbor_tables.py
    lookup: np.ndarray  # uint64: buckets of pairs, see neighbor_tables.py
    indptr: np.ndarray  # int32 or int64: the neighbours of each number
    indices: np.ndarray  # uint16 or int32
    settings: np.ndarray  # int64, see kernels/layout.py
    seed: np.ndarray  # (1,) int64, the bits of the seed
    scratch: tuple[int, int]  # what the memory must suffice for: numbers of genes, neighbours of one

    @classmethod
    def make(
        cls,
        lookup: np.ndarray,
        indptr: np.ndarray,
        indices: np.ndarray,
        settings: Sequence[int],
        seed: np.ndarray,
        table: Connected | None = None,
    ) -> RowRules:
        """Collect the rules of a masker; ``table`` is what its graphs come to, where that is known already."""
        constants = np.array(settings, np.int64), seed
        if settings[STRATEGY] != CORRMASK:
            return cls(NO_IDS, lookup.view(np.uint64), indptr, NO_IDS, *constants, (0, 0))
        table = number_connected(indptr, indices, settings[SIZE]) if table is None else table
        return cls(
            table.ids, NO_LOOKUP, table.indptr, table.indices, *constants, (table.indptr.size - 1, settings[DEGREE])
        )

    @staticmethod
    def settings_of(
        vocabulary: Vocabulary,
        strategy: int,
        degree: int,
        max_partners: int,
        mask_replace_prob: float,
        random_replace_prob: float,
    ) -> list[int]:
        """Return the integer constants of a masker in the order of ``kernels/layout.py``."""
        lo, hi = vocabulary.gene_range
        mask_below = math.floor(mask_replace_prob * 2**32)
        random_below = math.floor((mask_replace_prob + random_replace_prob) * 2**32)
        pad, mask = vocabulary.pad_token_id, vocabulary.mask_token_id
        if mask is None:
            mask = pad  # any id that is no gene's marks what is hidden
        return [pad, mask, lo, hi, vocabulary.size, max_partners, mask_below, random_below, degree, strategy]


class _Scratch(threading.local):
    """Memory that a thread keeps for its next rows; it only ever grows."""

    sizes: tuple[int, int, int] = (0, 0, 0)
    arrays: tuple[np.ndarray, ...] = ()

    def ready(self, rules: RowRules, columns: int) -> tuple[np.ndarray, ...]:
        """Return the arrays for rows of up to ``columns`` columns, in the kernel's order."""
        (genes, degree), (most_genes, most_degree, most_columns) = rules.scratch, self.sizes
        if not self.arrays or genes > most_genes or degree > most_degree or columns > most_columns:
            sizes = genes, degree, width = max(genes, most_genes), max(degree, most_degree), max(columns, most_columns)
            padded, neighbors = (-(-size // 64) * 64 + 64 for size in (width, degree))
            # The smaller the gene table, the more of it stays in the first cache.
            entry = np.uint16 if padded < 2**16 else np.int32
            self.sizes = (0, 0, 0)  # nothing is claimed before all the memory is there
            self.arrays = (
                np.ones(1, np.int64),  # table_base: entries of the gene table below it are left from earlier rows
                # rates of the rows before: columns masked for each one looked at as a seed, neighbours in the cell
                np.array([2.0, 0.5]),
                np.zeros(genes, entry),  # pos
                *(np.empty(padded, np.uint32) for _ in range(4)),  # w0 w1 w2 w3
                np.empty(padded // 64, np.uint64),  # pool
                np.empty(padded // 64, np.uint64),  # masked
                np.empty(padded, np.uint8),  # flags: masked, a byte each
                np.empty(padded, np.uint64),  # seed_keys
                np.empty(neighbors, np.uint32),  # words of a seed's neighbours
                np.empty(neighbors, np.uint64),  # keys of those in the cell
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
    rules: RowRules,
    rates: np.ndarray,
    row_ptr: np.ndarray,
    tokens: np.ndarray,
    draws: Draws,
    out: np.ndarray,
    labels: np.ndarray,
    positions: np.ndarray,
    *,
    seen: np.ndarray = NOTHING,
    protected: np.ndarray = NOTHING,
    graph_ids: np.ndarray = NO_NUMBERS,
    priorities: np.ndarray = NO_NUMBERS,
    attention: np.ndarray = NO_OUTPUT,
) -> int:
    """Mask rows into ``out``, ``labels``, ``positions`` (and ``attention``), all int64 (rows, columns).

    Parameters
    ----------
    rates
        (4,) float64: the ends of p and of λ, see ``kernels/layout.py``.
    row_ptr, tokens
        Row i is ``tokens[row_ptr[i]:row_ptr[i + 1]]``; it is padded on the right as it is written.
    seen, protected
        uint8, like ``tokens``: 1 where attended to, 1 where never to be masked. Empty: by the padding token; none.
    graph_ids
        (rows,) int64: which table a row goes by. Empty: the first.
    priorities
        int64 in [0, 2**32), like ``tokens``: in place of w0, or of w1 where the strategy is SAMPLED. Empty: neither.

    Returns
    -------
    The first row that holds a token outside the vocabulary, or −1.
    """
    mask = _mask_kernel()
    rows, columns = out.shape
    if positions.shape[1] < math.floor(columns * rates[P_HI]):
        raise ValueError(f"masked_positions has {positions.shape[1]} columns; p = {rates[P_HI]} of {columns} need more")

    def work(begin: int, end: int) -> int:
        # The kernel itself writes what is kept for the next call: an interrupt behind it loses nothing.
        return mask(
            begin, end, row_ptr, tokens, seen, protected, draws.values, draws.mode, draws.offset, rules.seed[0], rates,
            rules.settings, rules.ids, rules.lookup, rules.indptr, rules.indices, graph_ids, priorities,
            *_scratch.ready(rules, columns),
            out, attention, labels, positions,
        )  # fmt: skip

    smallest = rows if rows * columns < FEWEST_TOKENS else -(-TOKENS_A_RANGE // columns)
    return min((row for row in run_ranges(work, rows, smallest) if row >= 0), default=-1)


def check_graph_ids(graph_ids: np.ndarray, n_graphs: int) -> np.ndarray:
    """Return the graphs' numbers of rows, or raise the error for the first that is none."""
    if graph_ids.size and not (graph_ids.min() >= 0 and graph_ids.max() < n_graphs):
        row = int(np.flatnonzero((graph_ids < 0) | (graph_ids >= n_graphs))[0])
        raise InputError(
            f"graph_ids[{row}] must be in [0, {n_graphs}), the graphs of this masker; got {graph_ids[row]}"
        )
    return graph_ids


def check_priorities(priorities: np.ndarray) -> np.ndarray:
    """Return the priorities of columns, or raise the error for the first that does not fit 32 bits."""
    if priorities.size and not (priorities.min() >= 0 and priorities.max() < 2**32):
        row, column = (int(i) for i in np.argwhere((priorities < 0) | (priorities >= 2**32))[0])
        raise InputError(
            f"priorities must be in [0, 4294967296); got {priorities[row, column]} in row {row}, column {column}"
        )
    return priorities


def raise_unknown_token(row: int, tokens: np.ndarray, size: int) -> None:
    """Raise the error for the first token of a row that lies outside the vocabulary."""
    column = int(np.flatnonzero((tokens < 0) | (tokens >= size))[0])
    raise InputError(
        f"token {tokens[column]} in row {row}, column {column} must be in [0, {size}), the vocabulary of the "
        "graph; use the token dictionary that the graph was built with"
    )
