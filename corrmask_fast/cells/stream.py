"""Cells in passing: a PyTorch stream over files or an iterator that shards, shuffles in a buffer and resumes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from corrmask_fast.cells.corpus import Corpus
from corrmask_fast.cells.corpus_files import paths_of
from corrmask_fast.cells.dataset import RaggedBatch, RaggedRow
from corrmask_fast.cells.row_numbers import first_by_key
from corrmask_fast.cells.segments import Repeats, Segment
from corrmask_fast.cells.stream_sources import READ_CELLS, FileSource, IteratorSource, Share, drawn_order
from corrmask_fast.errors import InputError, check_integer, check_seed

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from corrmask_fast.cells.stream_sources import Piece
    from corrmask_fast.cells.vocabulary import Vocabulary

__all__ = ["CorpusStream", "stream_corpus"]

GATHERED = 64  # cells gathered at a time: they stay in the processor's cache until they are masked
MAX_WORKERS = 1024
MOST_HELD = 1.25  # of the cells that are sampled
SHARED_COLUMNS = 3  # cells to skip, the share to read in place of the worker's own, number of workers


def stream_corpus(
    source: Any,
    vocabulary: Vocabulary | None = None,
    *,
    shuffle_buffer: int = 0,
    seed: int = 0,
    max_length: int | None = None,
    columns: Sequence[str] = (),
    values: bool = False,
    n_cells: int | None = None,
    rank: int | None = None,
    world_size: int | None = None,
    drop_last: bool = False,
) -> CorpusStream:
    """Open tokenised cells as a stream for a DataLoader: they are read in order, in bounded memory.

    A cell gets the same mask as from a :class:`~corrmask_fast.CorpusDataset`.

    Parameters
    ----------
    source : path, list of paths, iterable or function
        A path, or a list of paths, as :func:`~corrmask_fast.read_corpus` takes them: ``.parquet`` files are decoded as
        they are read, the rest is memory-mapped. Or an iterable of cells (lists of token ids, or rows with
        ``input_ids``), a ``datasets.IterableDataset``, or a function that returns a new iterator for each pass.
    vocabulary : Vocabulary, optional
        Which id is which gene. None: the one stored beside the files.
    shuffle_buffer : int
        Number of cells that are shuffled together in memory. 0: cells come in order. The order of a file's row groups
        (or of blocks of 1024 cells) is shuffled too.
    seed : int
        Seed of the order, in [0, 2**64). The order follows from seed and epoch.
    max_length : int, optional
        Cells are cut to this many genes. None: the vocabulary's ``max_length``.
    columns : sequence of str
        Names of columns to hand out too, for a collator that chooses each cell's graph by one.
    values : bool
        Hand out the values of tokens too, for :class:`~corrmask_fast.DataCollatorForValues`. Then ``<cls>`` and
        ``<eos>`` are left out, and only a given ``max_length`` cuts cells.
    n_cells : int, optional
        Number of cells that the source must hold; an error says where it ends early. None: what the files hold, or the
        ``len`` of an iterable, or not checked.
    rank, world_size : int, optional
        Which part of the cells this process reads. None: as ``torch.distributed`` says when a pass begins, if it is
        initialised; else all. ``world_size=1``: all, where something else divides batches among ranks.
    drop_last : bool
        True: leave out the last cells, fewer than there are ranks. Then all ranks have the same number of cells and of
        batches. False: every cell is read; a rank may have one cell more than another, and so one batch more.

    Returns
    -------
    CorpusStream
        The stream. It is opened, and no cell is read yet.

    Raises
    ------
    InputError
        If there is no such file, vocabulary or column, or a number is out of range. While cells are read: if a token
        lies outside the vocabulary, a cell is no list of integers or has other columns than the first one (names the
        cell), or the source ends early.

    Examples
    --------
    >>> from corrmask_fast import Vocabulary, stream_corpus
    >>> genes = Vocabulary(("<pad>", "<mask>", "A", "B", "C"))
    >>> stream = stream_corpus(lambda: ([2 + i, 4] for i in range(2)), genes)
    >>> [cell["input_ids"].tolist() for cell in stream]
    [[2, 4], [3, 4]]
    """
    if paths := paths_of(source):
        files = FileSource(paths, vocabulary, max_length, columns, values=values)
        if n_cells not in {None, files.n_cells}:
            raise InputError(
                f"the files hold {files.n_cells} cells, and n_cells says {n_cells}; bring the missing cells, or give "
                "the right number"
            )
        opened: FileSource | IteratorSource = files
    else:
        if vocabulary is None:
            raise InputError("a stream carries no vocabulary; give vocabulary=Vocabulary.from_token_dictionary(…)")
        if n_cells is None and hasattr(source, "__len__"):
            n_cells = len(source)
        opened = IteratorSource(source, vocabulary, max_length, columns, n_cells, values=values)
    return CorpusStream(
        opened,
        max_length=max_length,
        values=values,
        shuffle_buffer=shuffle_buffer,
        seed=seed,
        rank=rank,
        world_size=world_size,
        drop_last=drop_last,
    )


class CorpusStream(IterableDataset[RaggedRow]):
    """Iterable PyTorch dataset over tokenised cells, which :func:`~corrmask_fast.stream_corpus` makes.

    Give it to a DataLoader or a Trainer with ``batch_size``. An item is a row ``{"input_ids": array}`` of a
    :class:`~corrmask_fast.RaggedBatch`; collators of this package put rows together without a copy.

    Parameters
    ----------
    source : FileSource or IteratorSource
        The opened files or iterator.
    max_length, values, shuffle_buffer, seed, rank, world_size, drop_last
        As for :func:`~corrmask_fast.stream_corpus`.

    Attributes
    ----------
    vocabulary : Vocabulary
        Which id is which gene.

    Raises
    ------
    InputError
        If a number is out of range, or one of ``rank`` and ``world_size`` is missing.

    Notes
    -----
    Every worker of every rank reads its own share of the cells. From files, a share is a run of cells in the order of
    the pass. From an iterator, a share is every n-th cell, and every worker iterates over all cells. Shares differ by
    one cell at most. A cell without genes stays a cell.

    Cells are shuffled in windows of ``shuffle_buffer`` cells of a share. The order of a window follows from (seed,
    epoch, rank, worker, window), and the order of row groups and blocks from (seed, epoch). So to resume, a stream over
    files reads at most one window again. A stream over an iterator iterates over all cells before.

    Examples
    --------
    >>> from corrmask_fast import Vocabulary, stream_corpus
    >>> genes = Vocabulary(("<pad>", "<mask>", "A", "B", "C"))
    >>> stream = stream_corpus([[2], [3], [4], [2, 3]], genes, shuffle_buffer=4)
    >>> stream.set_epoch(1)
    >>> sorted(cell["input_ids"].tolist() for cell in stream)
    [[2], [2, 3], [3], [4]]
    """

    def __init__(
        self,
        source: FileSource | IteratorSource,
        *,
        max_length: int | None,
        values: bool,
        shuffle_buffer: int,
        seed: int,
        rank: int | None,
        world_size: int | None,
        drop_last: bool,
    ) -> None:
        if (rank is None) != (world_size is None) and world_size != 1:
            raise InputError("rank and world_size go together; give both, or none")
        self.source, self.vocabulary, self.values = source, source.vocabulary, values
        longest = self.vocabulary.size if values else self.vocabulary.max_length
        self.max_length = check_integer("max_length", longest if max_length is None else max_length, 1)
        self.shuffle_buffer = check_integer("shuffle_buffer", shuffle_buffer, 0)
        self.seed = check_seed(seed)
        self.world_size = None if world_size is None else check_integer("world_size", world_size, 1)
        self.rank = None if self.world_size is None else check_integer("rank", rank or 0, 0, self.world_size - 1)
        self.drop_last = drop_last
        # Shared memory: persistent workers see what is set after they started.
        self._epoch = torch.tensor([0], device="cpu").share_memory_()
        self._resume = torch.full((MAX_WORKERS, SHARED_COLUMNS), -1, device="cpu").share_memory_()
        self._repeats = Repeats(0)
        self._state: dict[str, Any] | None = None  # to go on from, in this process
        self._passed = 0  # cells of this pass that were handed out, in this process

    @property
    def n_cells(self) -> int | None:
        """Number of cells of a pass, over all ranks; None if it is not known."""
        return self.source.n_cells

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the next pass, in running workers too.

        Trainer and accelerate call this before each epoch.

        Parameters
        ----------
        epoch : int
            The epoch, from 0.

        Raises
        ------
        InputError
            If ``epoch`` is no integer >= 0.
        """
        if check_integer("epoch", epoch, 0, 2**63 - 1) != self._epoch:
            self._epoch[0], self._passed = epoch, 0

    def state_dict(self) -> dict[str, Any]:
        """Return how far this process is in its pass.

        For a DataLoader without workers, or torchdata's StatefulDataLoader.

        Returns
        -------
        dict
            Plain values: epoch, cells handed out, and the settings that decide the order.
        """
        return {"epoch": int(self._epoch), "cells": self._passed, **self._settings()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Begin the next pass after the cells that were handed out when ``state`` was taken.

        The next pass raises ``InputError`` if the settings of ``state`` are not those of this stream.

        Parameters
        ----------
        state : dict
            What :meth:`~corrmask_fast.CorpusStream.state_dict` returned.
        """
        self.set_epoch(state["epoch"])
        self._state, self._passed = dict(state), state["cells"]

    def skip(self, n_batches: int, batch_size: int, num_workers: int = 0) -> None:
        """Begin the next pass after its first batches, to resume training.

        Call :meth:`~corrmask_fast.CorpusStream.set_epoch` too. The batches that follow are those of a pass without
        interruption.

        Parameters
        ----------
        n_batches : int
            Number of batches that the DataLoader has handed out.
        batch_size : int
            Batch size of the DataLoader.
        num_workers : int
            Number of workers of the DataLoader.

        Raises
        ------
        InputError
            If a number is out of range. The next pass raises it if the DataLoader has another number of workers.
        """
        n = check_integer("n_batches", n_batches, 0)
        size = check_integer("batch_size", batch_size, 1)
        workers = check_integer("num_workers", num_workers, 0, MAX_WORKERS)
        for worker in range(max(workers, 1)):  # workers take turns, and the first one is to go on where it is its turn
            share = (worker + n) % max(workers, 1)
            done = len(range(share, n, max(workers, 1)))
            self._resume[worker] = torch.tensor([done * size, share, workers])

    def __iter__(self) -> Iterator[RaggedRow]:
        info = get_worker_info()
        worker, n_workers = (0, 0) if info is None else (info.id, info.num_workers)
        skip, share = self._begin(worker, n_workers)
        rank, world_size = self._place()
        epoch, self._passed = int(self._epoch), skip
        return self._rows(Share(rank, world_size, share, max(n_workers, 1), self.drop_last), epoch, skip)

    def _rows(self, share: Share, epoch: int, skip: int) -> Iterator[RaggedRow]:
        for batch in self._batches(share, epoch, skip):
            for row in batch:
                self._passed += 1
                yield row

    def _begin(self, worker: int, n_workers: int) -> tuple[int, int]:
        """Return how many cells of which share a worker skips, once after it was asked for."""
        cells, share, workers = self._resume[worker].tolist()
        if cells >= 0:
            if workers != n_workers:
                raise InputError(f"skip was given num_workers={workers}, and the DataLoader has {n_workers}; give that")
            self._resume[worker] = -1
            return cells, share
        state, self._state = self._state, None
        if state is None:
            return 0, worker
        for name, now in self._settings().items():
            if state.get(name) != now:
                raise InputError(
                    f"the state is of another stream: {name} was {state.get(name)} and is {now} now; make the stream "
                    "and its DataLoader as they were"
                )
        return int(state["cells"]), worker

    def _settings(self) -> dict[str, Any]:
        """Return what decides the order of a pass, beside the epoch."""
        info, (rank, world_size) = get_worker_info(), self._place()
        return {
            "seed": self.seed,
            "shuffle_buffer": self.shuffle_buffer,
            "n_cells": self.n_cells,
            "rank": rank,
            "world_size": world_size,
            "num_workers": 0 if info is None else info.num_workers,
        }

    def _place(self) -> tuple[int, int]:
        """Return (rank, world size)."""
        if self.world_size is not None:
            return self.rank or 0, self.world_size
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            return torch.distributed.get_rank(), torch.distributed.get_world_size()
        return 0, 1

    def _batches(self, share: Share, epoch: int, skip: int) -> Iterator[RaggedBatch]:
        """Yield a share's cells but the first ``skip``, in the order of an epoch."""
        together = self.shuffle_buffer or READ_CELLS
        window, inside = divmod(skip, together)
        blocks = self._bits(epoch) if self.shuffle_buffer else None
        for pieces in _windows(self.source.pieces(share, window * together, blocks), together):
            corpus = self._corpus_of(pieces)
            rows = np.arange(corpus.n_cells)
            if self.shuffle_buffer:
                rows = drawn_order(rows.size, self._bits(epoch, 1 + share.rank, share.worker, window))
            for begin in range(inside, rows.size, GATHERED):
                chosen = rows[begin : begin + GATHERED]
                obs = {name: column[chosen] for name, column in corpus.obs.items()}
                if self.values:
                    indptr, tokens, values = corpus.gather_with_values(chosen)
                    yield RaggedBatch(indptr, tokens, self.vocabulary, None, obs, values)
                else:
                    yield RaggedBatch(*corpus.gather_for_training(chosen), self.vocabulary, None, obs)
            window, inside = window + 1, 0

    def _bits(self, *key: int) -> np.random.Philox:
        return np.random.Philox(np.random.SeedSequence([self.seed, *key]))

    def _corpus_of(self, pieces: list[Piece]) -> Corpus:
        obs = {name: np.concatenate([piece.obs[name] for piece in pieces]) for name in pieces[0].obs}
        segments = [piece.segment for piece in pieces]
        corpus = Corpus.from_segments(segments, self.vocabulary, max_length=self.max_length, obs=obs)
        corpus.count_from(np.concatenate([piece.numbers for piece in pieces]), self._repeats)
        return corpus

    def sample(self, n_cells: int | None, seed: int = 0) -> Corpus:
        """Draw cells without replacement in one pass.

        They are the cells that :meth:`~corrmask_fast.Corpus.sample_rows` draws of a corpus on disk. At most about 1.25
        times ``n_cells`` cells, and those just read, are in memory at a time. Every rank draws from all cells.

        Parameters
        ----------
        n_cells : int
            Number of cells to draw, at least 1.
        seed : int
            Seed in [0, 2**64).

        Returns
        -------
        Corpus
            The cells in memory, in the order of the stream; all if there are no more.

        Raises
        ------
        InputError
            If the stream is shuffled or reads a part of the cells, ``n_cells`` is None, or a number is out of range.
        """
        from corrmask_fast.kernels.philox import sample_keys

        fix = "make one without it: stream_corpus(source, vocabulary)"
        if self.shuffle_buffer:
            raise InputError(
                "cells are sampled by their numbers, and this stream is shuffled "
                f"(shuffle_buffer={self.shuffle_buffer}); {fix}"
            )
        if self.world_size not in {None, 1}:
            raise InputError(f"cells are sampled from all, and this stream has world_size={self.world_size}; {fix}")
        if n_cells is None:
            raise InputError(
                "a stream is sampled in bounded memory; give n_cells, or write the cells with CorpusWriter.write_cells "
                "and read that corpus"
            )
        check_integer("n_cells", n_cells, 1)
        check_seed(seed)
        kept = [Segment(np.zeros(1, np.int64), np.empty(0, self.vocabulary.token_dtype))]
        keys, largest = np.empty(0, np.uint64), None  # of the cells kept, in order; keys from this one on are not drawn

        def thinned() -> Corpus:
            whole = Corpus.from_segments(kept, self.vocabulary, max_length=self.max_length)
            return whole.take(first_by_key(keys, n_cells))

        for pieces in _windows(self.source.pieces(Share(), 0, None), READ_CELLS):
            corpus = self._corpus_of(pieces)
            drawn = np.empty(corpus.n_cells, np.uint64)
            sample_keys(np.uint64(seed), int(pieces[0].numbers[0]), drawn)
            rows = np.arange(corpus.n_cells) if largest is None else np.flatnonzero(drawn < largest)
            kept.append(Segment(*corpus.gather(rows)))
            keys = np.concatenate([keys, drawn[rows]])
            if keys.size > MOST_HELD * n_cells:
                kept = thinned().segments_of(0, n_cells)
                keys = keys[first_by_key(keys, n_cells)]
                largest = keys.max()
        return thinned()

    def __getstate__(self) -> dict[str, Any]:
        rank, world_size = self._place()  # a worker process has no process group
        return {**self.__dict__, "rank": rank, "world_size": world_size, "_repeats": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _repeats=Repeats(0))
        if not self._epoch.is_shared():  # a copy; a worker that is being started gets the shared one
            self._epoch = self._epoch.clone().share_memory_()
            self._resume = self._resume.clone().share_memory_()


def _windows(pieces: Iterator[Piece], n_cells: int) -> Iterator[list[Piece]]:
    """Yield pieces that hold ``n_cells`` together; the last may hold fewer."""
    window: list[Piece] = []
    left = n_cells
    for piece in pieces:
        rest = piece
        while rest.numbers.size >= left:
            yield [*window, rest.cut(0, left)]
            rest, window, left = rest.cut(left, rest.numbers.size), [], n_cells
        if rest.numbers.size:
            window.append(rest)
            left -= rest.numbers.size
    if window:
        yield window
