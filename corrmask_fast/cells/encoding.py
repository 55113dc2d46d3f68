"""What rank-value encoding looks up, and the call of its kernel."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from corrmask_fast.buffers import empty
from corrmask_fast.errors import InputError, check_integer
from corrmask_fast.threads import run_ranges

if TYPE_CHECKING:
    from collections.abc import Callable

    from corrmask_fast.cells.count_batches import CountRows
    from corrmask_fast.cells.gene_matching import GeneMatch
    from corrmask_fast.cells.vocabulary import Vocabulary

MIN_CELLS_A_THREAD = 32  # a thread is not worth waking for fewer


@dataclass(frozen=True, eq=False)
class EncodingTables:
    """What the kernel looks up: which token each column is, and each token's median."""

    token_of_column: np.ndarray  # (columns,) int32; -1: counted without a token; -2: no part of totals
    median_of_token: np.ndarray  # (V,) float64
    once: bool  # no token has two columns, and all columns count
    target_sum: float
    fractional: bool  # whether counts may be fractions
    limit: int  # most genes of a cell

    @classmethod
    def of(
        cls, genes: GeneMatch, median_of_token: np.ndarray, target_sum: float, limit: int, *, fractional: bool
    ) -> EncodingTables:
        """Make them of the columns' genes; genes without a median (NaN) are left out."""
        tokens = genes.only(~np.isnan(median_of_token)).counting_tokens()
        known = tokens[tokens >= 0]
        once = genes.counted is None and np.unique(known).size == known.size
        medians = np.where(np.isnan(median_of_token), 1.0, median_of_token)  # of genes that no column is
        return cls(np.ascontiguousarray(tokens, np.int32), medians, once, target_sum, fractional, limit)

    def encode(
        self, rows: CountRows, totals: np.ndarray | None, fault: Callable[[int, int, int], InputError]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return ``(indptr, tokens, found)`` of cells; ``found`` (n,) are their genes before the cut.

        ``fault(code, row, entry)`` makes the error of what is no count.
        """
        from corrmask_fast.kernels.encode import OK, encode_rows

        indptr = rows.indptr
        n = indptr.size - 1
        found, out = np.zeros(n, np.int64), empty((int(indptr[-1] - indptr[0]),), np.int32)
        tables = self.token_of_column, self.median_of_token, self.once, self.target_sum
        totals = np.empty(0, np.float64) if totals is None else totals
        run = partial(encode_rows, *rows, *tables, totals, self.fractional, self.limit, found, out)
        ends: dict[int, int] = {}  # of the tokens of each range of rows
        for code, row, position, first in run_ranges(run, n, MIN_CELLS_A_THREAD):
            if code != OK:
                raise fault(code, row, position)
            ends[first] = position
        out_indptr = np.concatenate([[0], np.cumsum(np.minimum(found, self.limit))])
        for first, end in ends.items():  # close the gaps between the ranges
            begin, place = indptr[first] - indptr[0], out_indptr[first]
            if begin != place:
                out[place : place + end - begin] = out[begin:end]
        return out_indptr, out[: out_indptr[-1]], found

    def values(self, rows: CountRows, indptr: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """Return (nnz,) float32: the counts of encoded cells' genes."""
        from corrmask_fast.kernels.encode import values_of_rows

        out = empty((tokens.size,), np.float32)
        run = partial(values_of_rows, *rows, self.token_of_column, self.median_of_token.size, indptr, tokens, out)
        run_ranges(run, indptr.size - 1, MIN_CELLS_A_THREAD)
        return out


def check_max_length(max_length: int | None, vocabulary: Vocabulary, *, values: bool = False) -> int:
    """Return the most genes of a cell: at most the vocabulary's, less what is put around cells; all with ``values``."""
    longest = vocabulary.size if values else vocabulary.max_length - vocabulary.n_surrounding
    return longest if max_length is None else check_integer("max_length", max_length, 1, longest)
