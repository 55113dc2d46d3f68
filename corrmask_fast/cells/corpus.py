"""Tokenised cells: a ragged corpus in memory or on disk, read row by row or chunk by chunk."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from corrmask_fast.buffers import empty
from corrmask_fast.cells.row_numbers import first_by_key, obs_of, rows_of
from corrmask_fast.cells.segments import Repeats, Segment, check_arrays, check_values
from corrmask_fast.cells.surrounding import with_special_tokens
from corrmask_fast.errors import InputError, check_integer, check_seed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from corrmask_fast.cells.vocabulary import Vocabulary

__all__ = ["Corpus"]

SAMPLE_BLOCK = 1 << 20  # cells whose keys are drawn at a time


class Corpus:
    """Tokenised cells: of each its gene tokens by falling expression (rank-value encoding), without special tokens.

    A corpus lies in memory, or on disk and is read cell by cell. :func:`~corrmask_fast.read_corpus` opens one.

    Parameters
    ----------
    indptr : array
        (n_cells + 1,) integers: cell i is ``tokens[indptr[i]:indptr[i + 1]]``.
    tokens : array
        (nnz,) integer token ids.
    vocabulary : Vocabulary
        Which id is which gene.
    max_length : int, optional
        Cells are cut to this many genes. None: the vocabulary's ``max_length`` (2048 for V1, 4096 for V2); with
        ``values`` no cut.
    obs : mapping, optional
        Columns of the cells, such as ``cell_type``: name → array of n_cells values.
    values : array, optional
        (nnz,) numbers, one beside each token, such as counts or their bins. Kept as float32.

    Attributes
    ----------
    vocabulary : Vocabulary
        As given.
    max_length : int
        Most genes of a cell.
    obs : mapping
        Name → array of one value a cell, for each column.
    files : mapping
        Path → size in bytes of each file that is memory-mapped; empty in memory.

    Raises
    ------
    InputError
        If a token lies outside the vocabulary (names cell and token), ``indptr`` does not fit the tokens, or ``obs`` or
        ``values`` have another length.

    Warns
    -----
    UserWarning
        Once per corpus, if a gene stands twice in a cell: its first occurrence counts, the others are dropped.

    Notes
    -----
    docs/SPEC.md, section 1.

    Examples
    --------
    >>> import numpy as np
    >>> from corrmask_fast import Corpus, Vocabulary
    >>> genes = Vocabulary(("<pad>", "<mask>", "A", "B", "C"))
    >>> corpus = Corpus(np.array([0, 2, 3]), np.array([4, 2, 3]), genes)
    >>> corpus.n_cells, corpus.nnz, corpus.tokens.dtype
    (2, 3, dtype('uint16'))
    """

    def __init__(
        self,
        indptr: np.ndarray,
        tokens: np.ndarray,
        vocabulary: Vocabulary,
        *,
        max_length: int | None = None,
        obs: Mapping[str, np.ndarray] | None = None,
        values: np.ndarray | None = None,
    ) -> None:
        indptr, tokens = check_arrays(indptr, tokens)
        segment = Segment(indptr, tokens, None if values is None else check_values(values, tokens.size))
        self._setup([segment], vocabulary, max_length, obs)
        clean = self._copied(np.arange(self.n_cells))
        self._setup([clean], vocabulary, max_length, obs)
        self._clean = True

    @classmethod
    def from_segments(
        cls,
        segments: list[Segment],
        vocabulary: Vocabulary,
        *,
        max_length: int | None = None,
        obs: Mapping[str, np.ndarray] | None = None,
        order: np.ndarray | None = None,
    ) -> Self:
        """Return a corpus over buffers that stay where they are, such as memory-mapped files; nothing is read yet.

        Cells are stripped, cut and checked each time they are read.

        Parameters
        ----------
        segments : list of Segment
            The buffers, in order: at least one.
        vocabulary, max_length, obs
            As for :class:`~corrmask_fast.Corpus`.
        order : array, optional
            (n_cells,) int64: the stored row of each cell, where a dataset was shuffled or filtered. None: as stored.

        Returns
        -------
        Corpus
            The cells.

        Raises
        ------
        InputError
            If an obs column has another number of values than there are cells.
        """
        corpus = cls.__new__(cls)
        corpus._setup(segments, vocabulary, max_length, obs, order)
        return corpus

    def _setup(
        self,
        segments: list[Segment],
        vocabulary: Vocabulary,
        max_length: int | None,
        obs: Mapping[str, np.ndarray] | None,
        order: np.ndarray | None = None,
        repeats: Repeats | None = None,
    ) -> None:
        self.vocabulary = vocabulary
        longest = vocabulary.size if segments[0].values is not None else vocabulary.max_length
        self.max_length = longest if max_length is None else check_integer("max_length", max_length, 1)
        self.obs: Mapping[str, np.ndarray] = {} if obs is None else obs
        self._segments = [segment for segment in segments if segment.offsets.size > 1] or segments[:1]
        self._order = order
        self.files: Mapping[Path, int] = {}  # of memory-mapped segments, with their sizes
        self._clean = False  # whether the one segment holds the cells stripped, cut and checked
        self._numbers: np.ndarray | None = None  # of stored cells, in the stream that they come from
        self._index_segments()
        self._repeats = Repeats(int(self._first_cell[-1])) if repeats is None else repeats
        if isinstance(self.obs, dict):  # a dataset's own columns are not read before they are asked for
            for name, column in self.obs.items():
                if len(column) != self.n_cells:
                    raise InputError(f"obs column {name!r} has {len(column)} values for {self.n_cells} cells")

    def _index_segments(self) -> None:
        """Keep the addresses of all segments; offsets and tokens share one dtype over segments."""
        dtypes = {(segment.offsets.dtype, segment.tokens.dtype) for segment in self._segments}
        if len(dtypes) > 1:
            offsets, tokens = (np.result_type(*column) for column in zip(*dtypes, strict=True))
            self._segments = [
                replace(s, offsets=s.offsets.astype(offsets), tokens=s.tokens.astype(tokens)) for s in self._segments
            ]
        sizes = [segment.offsets.size - 1 for segment in self._segments]
        self._first_cell = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        self._offset_address = np.array([s.offsets.ctypes.data for s in self._segments], np.uint64)
        self._token_address = np.array([s.tokens.ctypes.data for s in self._segments], np.uint64)
        places = [0 if s.values is None else s.values.ctypes.data + 4 * s.shift for s in self._segments]
        self._value_address = np.array(places, np.uint64)

    def count_from(self, numbers: np.ndarray, repeats: Repeats) -> None:
        """Give the stored cells the numbers that they have in their stream, for errors and warnings.

        Parameters
        ----------
        numbers : array
            (n_cells,) int64: the place of each cell in the stream.
        repeats : Repeats
            What the stream found so far of genes that stand twice in a cell. A stream warns of them once.
        """
        self._numbers, self._repeats = numbers, Repeats(numbers.size, repeats)

    def segments_of(self, begin: int, end: int) -> list[Segment]:
        """Return the cells from ``begin`` to ``end - 1`` as stored.

        They stay in the same buffers, and are copied only if the corpus was shuffled or filtered.

        Parameters
        ----------
        begin, end : int
            First cell, and the one after the last.

        Returns
        -------
        list of Segment
            The buffers of these cells.
        """
        if self._order is not None:
            return [self._copied(np.arange(begin, end))]
        found = []
        for segment, first in zip(self._segments, self._first_cell.tolist(), strict=False):
            a, b = max(begin - first, 0), min(end - first, segment.offsets.size - 1)
            if a < b:
                found.append(segment.between(a, b))
        return found

    def __getstate__(self) -> dict[str, Any]:
        if self._order is not None:  # some cells of larger buffers: only these travel
            return self.take(np.arange(self.n_cells)).__getstate__()
        hidden = ("_first_cell", "_offset_address", "_token_address", "_value_address", "_repeats")
        return {name: value for name, value in self.__dict__.items() if name not in hidden}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._index_segments()  # addresses hold in one process only
        self._repeats = Repeats(int(self._first_cell[-1]))

    @property
    def n_cells(self) -> int:
        """Number of cells."""
        return int(self._first_cell[-1]) if self._order is None else self._order.size

    def __len__(self) -> int:
        return self.n_cells

    @property
    def in_memory(self) -> bool:
        """Whether all cells lie in memory, stripped, cut and checked."""
        return self._clean

    @property
    def token_dtype(self) -> np.dtype[Any]:
        """The dtype of ``tokens``, uint16 if it holds every id of the vocabulary, else int32."""
        return self.vocabulary.token_dtype

    @property
    def indptr(self) -> np.ndarray:
        """(n_cells + 1,) int64: where each cell begins in ``tokens``. Reads a corpus on disk into memory."""
        self._load()
        return self._segments[0].offsets

    @property
    def tokens(self) -> np.ndarray:
        """(nnz,) uint16 or int32: the tokens of all cells. Reads a corpus on disk into memory."""
        self._load()
        return self._segments[0].tokens

    @property
    def has_values(self) -> bool:
        """Whether tokens have values."""
        return self._segments[0].values is not None

    @property
    def values(self) -> np.ndarray | None:
        """(nnz,) float32: the values of all tokens; None without values. Reads a corpus on disk into memory."""
        self._load()
        return self._segments[0].values

    @property
    def nnz(self) -> int:
        """Number of tokens of all cells. Reads a corpus on disk into memory."""
        return int(self.indptr[-1])

    @property
    def lengths(self) -> np.ndarray:
        """(n_cells,) int64: number of tokens of each cell as stored, special tokens included."""
        return self.lengths_of(np.arange(self.n_cells))

    def lengths_of(self, rows: np.ndarray) -> np.ndarray:
        """Return the lengths of some cells; their tokens are not read.

        Parameters
        ----------
        rows : array
            (k,) int64 indices of cells in [0, n_cells). They are not checked.

        Returns
        -------
        array
            (k,) int64: number of tokens of each cell as stored, special tokens included.
        """
        from corrmask_fast.kernels.ragged import row_lengths

        out = np.empty(rows.size, np.int64)
        row_lengths(self._first_cell, self._offset_address, self._segments[0].offsets[:0], self._stored_rows(rows), out)
        return out

    def check_files(self) -> None:
        """Check that no memory-mapped file became shorter: reading past its end would end the process.

        Raises
        ------
        InputError
            If a file was cut off or removed since it was opened.
        """
        for path, size in self.files.items():
            now = path.stat().st_size if path.exists() else 0
            if now < size:
                raise InputError(
                    f"{path} had {size} bytes when it was opened and has {now} now: it was cut off or removed while it "
                    "was being read; bring it back"
                )

    def _load(self) -> None:
        if not self._clean:
            clean = self._copied(np.arange(self.n_cells))
            self._segments, self._order, self._clean = [clean], None, True
            self._index_segments()

    def _stored_rows(self, rows: np.ndarray) -> np.ndarray:
        return rows if self._order is None else self._order[rows]

    def _check_rows(self, rows: np.ndarray) -> np.ndarray:
        from corrmask_fast.kernels.ragged import first_outside

        if not isinstance(rows, np.ndarray) or rows.dtype != np.int64 or rows.ndim != 1:
            try:
                rows = np.atleast_1d(rows_of(rows, self.n_cells))
            except IndexError as error:
                raise InputError(str(error)) from error
        rows = np.ascontiguousarray(rows)
        bad = first_outside(rows, self.n_cells)
        if bad >= 0:
            raise InputError(f"cell index must be in [0, {self.n_cells}); got {rows[bad]}")
        return rows

    def gather(self, rows: np.ndarray, *, warn: bool = True) -> tuple[np.ndarray, np.ndarray]:
        """Return the tokens of some cells, stripped and cut, each gene once.

        Parameters
        ----------
        rows : array
            (k,) indices of cells, in any order.
        warn : bool
            Warn of genes that stand twice in a cell. A pass over many cells passes False, and calls
            :meth:`~corrmask_fast.Corpus.warn_of_repeats` at its end.

        Returns
        -------
        indptr : array
            (k + 1,) int64: where each cell begins in ``tokens``.
        tokens : array
            uint16 or int32 token ids, cell after cell.

        Raises
        ------
        InputError
            If there is no such cell, or a token lies outside the vocabulary.
        """
        indptr, tokens, _ = self._gather(rows, lambda size: np.empty(size, self.token_dtype))
        if warn:
            self.warn_of_repeats()
        return indptr, tokens

    def _copied(self, rows: np.ndarray) -> Segment:
        """Return the given cells, with their values if they have any: see :meth:`gather`."""
        indptr, tokens, values = self._gather(rows, lambda size: np.empty(size, self.token_dtype), self.has_values)
        self.warn_of_repeats()
        return Segment(indptr, tokens, values if self.has_values else None)

    def gather_with_values(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the genes of some cells with their values, without ``<cls>`` and ``<eos>``.

        The corpus must have values (:attr:`~corrmask_fast.Corpus.has_values`).

        Parameters
        ----------
        rows : array
            (k,) indices of cells, in any order.

        Returns
        -------
        indptr : array
            (k + 1,) int64: where each cell begins in ``tokens`` and ``values``.
        tokens : array
            int32 token ids, cell after cell.
        values : array
            float32, one for each token.

        Raises
        ------
        InputError
            If there is no such cell, or a token lies outside the vocabulary.
        """
        cells = self._gather(rows, lambda size: empty((size,), np.int32), values=True)
        self.warn_of_repeats()
        return cells

    def warn_of_repeats(self) -> None:
        """Warn, once per corpus, if genes stood twice in a cell that was read so far.

        The warning counts cells as they are stored.

        Warns
        -----
        UserWarning
            If a gene was dropped because it stood in its cell already.
        """
        self._repeats.warn(self.vocabulary)

    def gather_for_training(self, rows: np.ndarray, max_length: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Return the tokens of some cells for training: with a V2 vocabulary, between ``<cls>`` and ``<eos>``.

        Parameters
        ----------
        rows : array
            (k,) indices of cells, in any order.
        max_length : int, optional
            Cells are cut to this many tokens, ``<cls>`` and ``<eos>`` included. None: the corpus's cut.

        Returns
        -------
        indptr : array
            (k + 1,) int64: where each cell begins in ``tokens``.
        tokens : array
            int32 token ids, cell after cell.

        Raises
        ------
        InputError
            If there is no such cell, a token lies outside the vocabulary, or ``max_length`` leaves no space for a gene.
        """
        indptr, tokens, _ = self._gather(rows, lambda size: empty((size,), np.int32))
        self.warn_of_repeats()
        return with_special_tokens(indptr, tokens, self.vocabulary, max_length)

    def _gather(
        self, rows: np.ndarray, allocate: Callable[[int], np.ndarray], values: bool = False
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        from corrmask_fast.kernels.ragged import OK, gather_rows, most_tokens

        rows = self._check_rows(rows)
        stored = self._stored_rows(rows)
        segment, offsets = self._segments[0], self._segments[0].offsets[:0]
        most = most_tokens(self._first_cell, self._offset_address, offsets, stored, self.max_length)
        indptr, tokens = np.empty(rows.size + 1, np.int64), allocate(most)
        numbers = empty((most if values else 0,), np.float32)
        what, k, token, dropped = gather_rows(
            self._first_cell,
            self._offset_address,
            self._token_address,
            self._value_address,
            offsets,
            segment.tokens[:0],
            stored,
            self.vocabulary.size,
            *self.vocabulary.gene_range,
            self.max_length,
            self._repeats.known[:0] if self._clean else self._repeats.known,
            indptr,
            tokens,
            numbers,
        )
        if what != OK:
            cell = rows[k] if self._numbers is None else self._numbers[stored[k]]
            raise InputError(
                f"cell {cell} holds token {token}, outside the vocabulary of {self.vocabulary.size} tokens; "
                "use the token dictionary that the corpus was made with"
            )
        if dropped:
            first = stored[k] if self._numbers is None else self._numbers[stored[k]]
            self._repeats.dropped.append((int(dropped), int(first), int(token)))
        return indptr, tokens[: indptr[-1]], numbers[: indptr[-1]]

    def take(self, rows: np.ndarray) -> Corpus:
        """Return some cells as a corpus in memory, with their obs.

        Parameters
        ----------
        rows : array
            (k,) indices of cells, in the order wanted; or a slice, or (n_cells,) booleans.

        Returns
        -------
        Corpus
            The k cells, copied.

        Raises
        ------
        InputError
            If there is no such cell, or a token lies outside the vocabulary.

        See Also
        --------
        select : The same cells, without reading them.
        """
        rows = self._check_rows(rows)
        cells, obs = self._copied(rows), obs_of(self.obs, rows)
        corpus = Corpus.from_segments([cells], self.vocabulary, max_length=self.max_length, obs=obs)
        corpus._clean = True
        return corpus

    def select(self, rows: np.ndarray) -> Corpus:
        """Return some cells as a corpus over the same buffers, with their obs; nothing is read yet.

        A cell is read when it is used. So a part of a corpus larger than memory takes no more memory than its indices.

        Parameters
        ----------
        rows : array
            (k,) indices of cells, in the order wanted; or a slice, or (n_cells,) booleans.

        Returns
        -------
        Corpus
            The k cells.

        Raises
        ------
        InputError
            If there is no such cell.

        Examples
        --------
        >>> import numpy as np
        >>> from corrmask_fast import Corpus, Vocabulary
        >>> genes = Vocabulary(("<pad>", "<mask>", "A", "B"))
        >>> obs = {"tissue": np.array(["lung", "liver"])}
        >>> corpus = Corpus(np.array([0, 2, 3]), np.array([2, 3, 3]), genes, obs=obs)
        >>> liver = corpus.select(np.flatnonzero(corpus.obs["tissue"] == "liver"))
        >>> liver.n_cells, liver.tokens.tolist(), liver.obs["tissue"].tolist()
        (1, [3], ['liver'])
        """
        rows = self._check_rows(rows)
        order, obs = self._stored_rows(rows), obs_of(self.obs, rows)
        chosen = type(self).__new__(type(self))
        repeats = Repeats(0) if self._clean else self._repeats
        chosen._setup(self._segments, self.vocabulary, self.max_length, obs, order, repeats)
        chosen.files = self.files
        return chosen

    def chunks(self, n_cells: int) -> Iterator[Corpus]:
        """Yield the corpus in order, a number of cells at a time.

        Parameters
        ----------
        n_cells : int
            Number of cells of each chunk; the last may have fewer.

        Yields
        ------
        Corpus
            Some cells in memory.

        Raises
        ------
        InputError
            If ``n_cells`` is no integer >= 1.
        """
        check_integer("n_cells", n_cells, 1)
        for begin in range(0, self.n_cells, n_cells):
            yield self.take(np.arange(begin, min(begin + n_cells, self.n_cells)))

    def sample_rows(self, n_cells: int, seed: int = 0) -> np.ndarray:
        """Draw cells without replacement.

        Parameters
        ----------
        n_cells : int
            Number of cells to draw, at least 1.
        seed : int
            Seed in [0, 2**64). The same seed draws the same cells.

        Returns
        -------
        array
            (n_cells,) int64 indices, ascending; all cells if there are no more.

        Raises
        ------
        InputError
            If ``n_cells`` or ``seed`` is out of range.

        Notes
        -----
        docs/SPEC.md, section 2, step 1.
        """
        from corrmask_fast.kernels.philox import sample_keys

        check_integer("n_cells", n_cells, 1)
        check_seed(seed)
        if n_cells >= self.n_cells:
            return np.arange(self.n_cells)
        # Of one block after the other: no more keys are held than are sampled.
        keys, cells = np.empty(0, np.uint64), np.empty(0, np.int64)
        for begin in range(0, self.n_cells, SAMPLE_BLOCK):
            block = np.arange(begin, min(begin + SAMPLE_BLOCK, self.n_cells))
            drawn = np.empty(block.size, np.uint64)
            sample_keys(np.uint64(seed), begin, drawn)
            keys, cells = np.concatenate([keys, drawn]), np.concatenate([cells, block])
            kept = first_by_key(keys, n_cells)
            keys, cells = keys[kept], cells[kept]
        return cells

    def __repr__(self) -> str:
        return f"Corpus({self.n_cells} cells, {self.vocabulary!r})"
