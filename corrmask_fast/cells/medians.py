"""Each gene's non-zero median over a corpus: read from a dictionary, or found exactly in bounded memory."""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from corrmask_fast.cells.count_scaling import ScaledCells, scaled_chunks
from corrmask_fast.cells.dictionaries import read_dictionary
from corrmask_fast.cells.gene_matching import unversioned
from corrmask_fast.cells.vocabulary import SPECIAL_TOKENS
from corrmask_fast.errors import InputError, check_number, shown
from corrmask_fast.progress import progress_bar
from corrmask_fast.threads import run_ranges

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from corrmask_fast.cells.sources import Sources
    from corrmask_fast.cells.vocabulary import Vocabulary

    Medians = Mapping[str, float] | str | os.PathLike[str]

MEDIAN_VALUES = 16_000_000  # values held at once to pick medians from, 8 bytes each
OCTAVES = 53  # a count is at least 2**-53 of its cell's total, unless that is above 2**53
ALL_OCTAVES = 2047  # of a float64, from 0 to infinity
EXPONENT = 52  # where the exponent begins in the bits of a float64
MIN_TOKENS_A_THREAD = 4096  # a thread is not worth waking for fewer


def read_medians(medians: Medians, vocabulary: Vocabulary) -> np.ndarray:
    """(V,) float64: the given median of each token, NaN without one."""
    known = vocabulary.tokens_by_name
    out = np.full(vocabulary.size, np.nan)
    given = read_dictionary(medians)
    source = str(medians) if isinstance(medians, str | os.PathLike) else "the dictionary given"
    special = dict.fromkeys((*SPECIAL_TOKENS, *(vocabulary.names[token] for token in vocabulary.special_token_ids)))
    if there := [name for name in special if name in given]:
        raise InputError(
            f"{source} is a token dictionary (it has {there[0]!r}), not medians; "
            "give Geneformer's gene_median_dictionary, or leave the medians out to take those of these cells"
        )
    lo, hi = vocabulary.gene_range
    tokens = {name: token for token, name in enumerate(vocabulary.names) if lo <= token < hi}
    for names in (tokens, known):  # ids before symbols
        for name, value in given.items():
            token = names.get(name)
            if token is None and isinstance(name, str):
                token = names.get(unversioned(name))
            if token is None or out[token] == out[token]:
                continue
            try:
                usual = type(value) is float and 0 < value < np.inf
                out[token] = value if usual else check_number("a median", value, 0, np.inf, open_ends=True)
            except InputError as error:
                raise InputError(
                    f"the median of a gene must be a finite number above 0; {shown(name)} has {shown(value)} in "
                    f"{source}; give gene medians, or leave them out"
                ) from error
    if np.isnan(out).all():
        raise InputError(
            f"none of the medians in {source} is of a gene of the vocabulary; give medians by the same gene names"
        )
    return out


def exact_medians(sources: Sources, n_tokens: int, *, progress: bool) -> np.ndarray:
    """(V,) float64: the non-zero median of each token's scaled counts over all inputs, NaN where it never occurs."""
    reading = sources.reading
    bounded = not reading.allow_fractional and reading.total is None
    search = MedianSearch(n_tokens, reading.target_sum if bounded else None)

    def each(do: Callable[[ScaledCells], None]) -> None:
        with progress_bar("medians", sources.n_kept, "cell", shown=progress) as bar:
            for source in sources:
                for cells in scaled_chunks(source, n_tokens):
                    do(cells)
                    bar.update(cells.lengths.size)

    while not search.narrow_enough:
        each(search.count)
        search.narrow()
    each(search.collect)
    return search.medians()


def medians_by_name(median_of_token: np.ndarray, vocabulary: Vocabulary) -> dict[str, float]:
    """Return gene → median, of the genes that have one."""
    return {
        vocabulary.names[token]: float(median_of_token[token]) for token in np.flatnonzero(~np.isnan(median_of_token))
    }


def medians_of_tokens(medians: Mapping[str, float], vocabulary: Vocabulary) -> np.ndarray:
    """(V,) float64: what :func:`medians_by_name` made names of."""
    out = np.full(vocabulary.size, np.nan)
    tokens = {name: token for token, name in enumerate(vocabulary.names)}
    for name, value in medians.items():
        if name in tokens:
            out[tokens[name]] = value
    return out


class MedianSearch:
    """Exact medians of many streams at once, in several passes over the same values.

    Bits of positive float64 values, read as int64, rise with them. Each token has an interval of bits that holds the
    lower of its two middle values. A counting pass divides it into 1 024 bins, of which one is kept; the first pass
    leaves bins of 1/16 octave, the second of 1/16 384. Once all intervals together hold few enough values, a last pass
    collects these, and the least value beyond each interval (which may be the upper of the two).

    ``count`` all values, ``narrow``, and so on until ``narrow_enough``; then ``collect`` all values, and ask for
    ``medians``. ``most_values`` bounds what is collected. Whole counts of a cell's own total lie between ``target_sum``
    and 2**-53 of it, but for totals above 2**53. With ``target_sum=None``, or if the first pass finds a value below
    these, values may be any number, and the search takes a pass more.
    """

    def __init__(self, n_tokens: int, target_sum: float | None, most_values: int = MEDIAN_VALUES) -> None:
        self._most_values = most_values
        self._begin(n_tokens, *((np.inf, ALL_OCTAVES) if target_sum is None else (target_sum, OCTAVES)))

    def _begin(self, n_tokens: int, highest: float, octaves: int) -> None:
        """Search all values from ``highest`` to so many octaves below it."""
        from corrmask_fast.kernels.tokenize import N_BINS

        lowest = int(np.float64(highest).view(np.int64)) - (octaves << EXPONENT)
        self._low = np.full(n_tokens, lowest, np.int64)  # where a token's interval begins
        self._step = int(N_BINS).bit_length() - 1
        self._shift = ((octaves << EXPONENT) + 1).bit_length() - self._step  # bins of 2**shift bits
        self._width = N_BINS << self._shift  # of all intervals
        self._histogram = np.zeros((n_tokens, N_BINS), np.int32)
        self._n_values = 0  # of all tokens, wherever they lie
        self._total: np.ndarray | None = None  # values of each token
        self._place: np.ndarray | None = None

    @property
    def narrow_enough(self) -> bool:
        """Whether it is time to collect: few values are left, or each interval is a single value."""
        return self._total is not None and (self._width == 1 or int(self._inside.sum()) <= self._most_values)

    def count(self, cells: ScaledCells) -> None:
        """Add values to the histograms."""
        from corrmask_fast.kernels.tokenize import histogram_values

        self._n_values += int(cells.lengths.sum())
        given = (cells.indptr, cells.lengths, cells.tokens, cells.values.view(np.int64))
        histogram = partial(histogram_values, *given, self._low, self._shift, self._histogram)
        run_ranges(histogram, self._low.size, MIN_TOKENS_A_THREAD)

    def narrow(self) -> None:
        """Keep of each interval the bin that holds the lower middle value."""
        upto = np.cumsum(self._histogram, axis=1, out=self._histogram)
        if self._total is None:
            if upto[:, -1].sum(dtype=np.int64) < self._n_values:
                self._begin(self._low.size, np.inf, ALL_OCTAVES)
                return
            self._total = upto[:, -1].astype(np.int64)
            self._rank = np.maximum(self._total - 1, 0) // 2  # of the lower middle value, inside the interval
        rows = np.arange(self._low.size)
        chosen = np.minimum((upto <= self._rank[:, None]).sum(axis=1), upto.shape[1] - 1)
        before = np.where(chosen > 0, upto[rows, chosen - 1], 0).astype(np.int64)
        self._inside = np.where(self._total > 0, upto[rows, chosen] - before, 0)
        self._rank -= before
        self._low += chosen << self._shift
        self._width = 1 << self._shift
        self._shift = max(self._shift - self._step, 0)
        self._histogram.fill(0)

    def collect(self, cells: ScaledCells) -> None:
        """Take the values inside the intervals, and the least beyond each."""
        from corrmask_fast.kernels.tokenize import collect_values

        if self._place is None:
            # In an interval of width 1 all values are the same: none need be collected.
            self._ends = np.cumsum(self._inside if self._width > 1 else np.zeros_like(self._inside))
            self._place = np.append(0, self._ends[:-1])
            self._begins = self._place.copy()
            self._values = np.empty(self._ends[-1], np.int64)
            self._above = np.full(self._low.size, np.iinfo(np.int64).max)
        given = (cells.indptr, cells.lengths, cells.tokens, cells.values.view(np.int64))
        taken = (self._low, self._width, self._above, self._place, self._ends, self._values)
        run_ranges(partial(collect_values, *given, *taken), self._low.size, MIN_TOKENS_A_THREAD)

    def medians(self) -> np.ndarray:
        """(V,) float64: the mean of the two middle values, NaN for tokens without a value."""
        assert self._total is not None
        middle = np.zeros((self._low.size, 2), np.int64)
        for token in np.flatnonzero(self._total):
            rank, inside = self._rank[token], self._inside[token]
            values = np.sort(self._values[self._begins[token] : self._ends[token]])
            middle[token, 0] = values[rank] if self._width > 1 else self._low[token]
            if self._total[token] % 2 == 1:
                middle[token, 1] = middle[token, 0]
            elif rank + 1 == inside:
                middle[token, 1] = self._above[token]
            else:
                middle[token, 1] = values[rank + 1] if self._width > 1 else self._low[token]
        pairs = middle.view(np.float64)
        return np.where(self._total > 0, (pairs[:, 0] + pairs[:, 1]) / 2, np.nan)
