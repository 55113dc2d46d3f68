"""The order of the cells in a training run: a pure function of a seed and the epoch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from torch.utils.data import IterableDataset, Sampler

from corrmask_fast.cells.stream import CorpusStream
from corrmask_fast.errors import InputError, check_integer, check_seed, import_extra, shown

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "LengthGroupedSampler",
    "PackedBatchSampler",
    "ShuffledSampler",
    "cell_lengths",
    "data_seed",
    "groups_by_length",
    "is_stream",
    "leave_undivided",
]

# Batches that are sorted by length together. More of them: less padding, and less random batches.
BATCHES_TOGETHER = 50
MOST_TOKENS = 2**26  # of a packed batch: no device holds more


class ShuffledSampler(Sampler[int]):
    """Sampler of every cell once per epoch, in an order that depends on (seed, epoch) alone.

    Unlike ``RandomSampler`` it does not use torch's global generator. The order is the same in a resumed run, and for
    any number of workers and ranks. accelerate and the callbacks of this package call :meth:`set_epoch`; in a loop of
    your own, call it before each epoch.

    All ranks must take the same number of steps, each with a full batch. So accelerate fills up the last step of an
    epoch with the first cells of that epoch: these are seen twice. With ``dataloader_drop_last=True`` the last,
    incomplete step is left out instead.

    Parameters
    ----------
    n_cells
        Number of cells.
    seed
        Seed of the order, in [0, 2**64).

    Raises
    ------
    InputError
        If ``n_cells`` is negative, or ``seed`` out of range.

    Examples
    --------
    >>> from corrmask_fast import ShuffledSampler
    >>> sampler = ShuffledSampler(5, seed=3)
    >>> first = list(sampler)
    >>> sampler.set_epoch(1)
    >>> first == list(sampler), sorted(sampler)
    (False, [0, 1, 2, 3, 4])
    """

    def __init__(self, n_cells: int, *, seed: int = 0) -> None:
        self.n_cells = check_integer("n_cells", n_cells, 0)
        self.seed = check_seed(seed)
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the next pass.

        Parameters
        ----------
        epoch
            Number of the epoch, from 0.
        """
        self.epoch = check_integer("epoch", epoch, 0)

    def __len__(self) -> int:
        return self.n_cells

    def __iter__(self) -> Iterator[int]:
        return iter(self.order().tolist())

    def order(self) -> np.ndarray:
        """Return the epoch's order.

        Returns
        -------
        numpy.ndarray
            (n_cells,) int64: numbers of the cells.
        """
        return _shuffled(self.n_cells, self._bits())

    def _bits(self) -> np.random.Philox:
        return np.random.Philox(np.random.SeedSequence([self.seed, self.epoch]))


class LengthGroupedSampler(ShuffledSampler):
    """Sampler that puts cells of similar length into one batch, for less padding.

    Otherwise it is like :class:`ShuffledSampler`. The cells are shuffled, then sorted by length within groups of fifty
    batches, then the batches are shuffled. The batch with the longest cell comes first: if memory does not suffice, the
    run fails in its first step. An incomplete batch comes last.

    Parameters
    ----------
    lengths
        (n_cells,) integers: length of each cell in tokens, such as ``CorpusDataset.lengths``.
    batch_size
        Number of cells of similar length: those of one step, over all ranks and accumulated batches.
    seed
        Seed of the order, in [0, 2**64).

    Raises
    ------
    InputError
        If ``lengths`` is not one integer per cell, or a number is out of range.

    Examples
    --------
    >>> from corrmask_fast.training.sampling import LengthGroupedSampler
    >>> sampler = LengthGroupedSampler([9, 2, 2, 3, 9, 2, 3, 2] * 2, batch_size=2)
    >>> order = list(sampler)
    >>> sampler.lengths[order[0]].item(), sorted(order) == list(range(16))
    (9, True)
    """

    def __init__(self, lengths: Any, batch_size: int, *, seed: int = 0) -> None:
        self.lengths = _checked_lengths(lengths)
        super().__init__(self.lengths.size, seed=seed)
        self.batch_size = check_integer("batch_size", batch_size, 1)

    def order(self) -> np.ndarray:
        """Return the epoch's order.

        Returns
        -------
        numpy.ndarray
            (n_cells,) int64: numbers of the cells, those of one batch side by side.
        """
        bits, size = self._bits(), self.batch_size
        shuffled = _shuffled(self.n_cells, bits)
        stretch = np.arange(self.n_cells) // (size * min(BATCHES_TOGETHER, max(self.n_cells // (4 * size), 1)))
        order = shuffled[np.lexsort((-self.lengths[shuffled].astype(np.int64), stretch))]
        full = self.n_cells // size
        if full == 0:
            return order
        batches, rest = order[: full * size].reshape(full, size), order[full * size :]
        batches = batches[_shuffled(full, bits)]
        longest = int(self.lengths[batches].max(axis=1).argmax())
        batches[[0, longest]] = batches[[longest, 0]]
        return np.concatenate([batches.ravel(), rest])


class PackedBatchSampler(Sampler[list[int]]):
    """Batch sampler that fills each batch up to a number of tokens, for a collator with ``packing=True``.

    Every cell comes once per epoch. The cells are shuffled. Each then goes to the batch that it fills up best, or to a
    new batch if it fits none. So a batch holds cells of all lengths. At last the batches are shuffled. They depend on
    ``lengths``, ``max_tokens``, ``seed`` and the epoch alone. The number of batches may change from epoch to epoch.

    Parameters
    ----------
    lengths
        (n_cells,) integers >= 0: length of each cell in tokens, such as ``CorpusDataset.lengths``.
    max_tokens
        Largest number of tokens in a batch; at least the length of the longest cell.
    seed
        Seed of the order, in [0, 2**64).
    shuffle
        False: cells are packed in their own order, and batches come in the order in which they were begun.
    num_replicas
        Number of processes. Each gets every ``num_replicas``-th batch.
    rank
        Number of this process, from 0.
    drop_last
        What happens if the number of batches is no multiple of ``num_replicas``. True: the last batches are left out.
        False: the first batches come again. In both cases all processes take the same number of steps.

    Raises
    ------
    InputError
        If a cell has more than ``max_tokens`` tokens, ``lengths`` is not one integer per cell, or a number is out of
        range.

    Examples
    --------
    >>> from corrmask_fast import PackedBatchSampler
    >>> sampler = PackedBatchSampler([5, 3, 2, 8, 1, 1], max_tokens=10, shuffle=False)
    >>> list(sampler), sampler.fill_rate  # DataLoader(dataset, batch_sampler=sampler, collate_fn=collator)
    ([[0, 1, 2], [3, 4, 5]], 1.0)
    """

    def __init__(
        self,
        lengths: Any,
        max_tokens: int,
        *,
        seed: int = 0,
        shuffle: bool = True,
        num_replicas: int = 1,
        rank: int = 0,
        drop_last: bool = False,
    ) -> None:
        self.lengths = _checked_lengths(lengths).astype(np.int64, copy=False)
        self.max_tokens = check_integer("max_tokens", max_tokens, 1, MOST_TOKENS)
        if self.lengths.size and self.lengths.min() < 0:
            raise InputError(f"lengths must be >= 0; got {self.lengths.min()} of cell {self.lengths.argmin()}")
        if self.lengths.size and self.lengths.max() > max_tokens:
            cell, length = int(self.lengths.argmax()), int(self.lengths.max())
            raise InputError(
                f"max_tokens must be at least the tokens of the longest cell; cell {cell} has {length}, max_tokens is "
                f"{max_tokens}; raise max_tokens, or read the corpus with max_length={max_tokens}"
            )
        self.seed, self.epoch, self.shuffle, self.drop_last = check_seed(seed), 0, shuffle, drop_last
        self.num_replicas = check_integer("num_replicas", num_replicas, 1)
        self.rank = check_integer("rank", rank, 0, self.num_replicas - 1)
        self._packed: tuple[int, np.ndarray, np.ndarray] | None = None  # of an epoch: cells, and where batches begin

    def set_epoch(self, epoch: int) -> None:
        """Choose the batches of the next pass.

        Parameters
        ----------
        epoch
            Number of the epoch, from 0.
        """
        self.epoch = check_integer("epoch", epoch, 0)

    def __len__(self) -> int:
        return self._mine().size

    def __iter__(self) -> Iterator[list[int]]:
        cells, indptr = self.batches()
        return (cells[indptr[i] : indptr[i + 1]].tolist() for i in self._mine())

    @property
    def fill_rate(self) -> float:
        """Mean share of ``max_tokens`` that the epoch's batches hold, over all processes."""
        _, indptr = self.batches()
        return float(self.lengths.sum() / max((indptr.size - 1) * self.max_tokens, 1))

    def batches(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the epoch's batches of all processes.

        Returns
        -------
        cells : numpy.ndarray
            (n_cells,) int64: numbers of the cells, batch after batch.
        indptr : numpy.ndarray
            (n_batches + 1,) int64: batch i is ``cells[indptr[i]:indptr[i + 1]]``.
        """
        if self._packed is None or self._packed[0] != self.epoch:
            self._packed = self.epoch, *self._pack()
        return self._packed[1:]

    def _mine(self) -> np.ndarray:
        """Return the numbers of this process' batches."""
        n = self.batches()[1].size - 1
        steps = n // self.num_replicas if self.drop_last else -(-n // self.num_replicas)
        return (np.arange(steps) * self.num_replicas + self.rank) % max(n, 1)

    def _pack(self) -> tuple[np.ndarray, np.ndarray]:
        from corrmask_fast.kernels.packing import best_fit  # brings Numba in

        bits = np.random.Philox(np.random.SeedSequence([self.seed, self.epoch]))
        order = _shuffled(self.lengths.size, bits) if self.shuffle else np.arange(self.lengths.size)
        batch_of, below = np.empty((2, order.size), np.int64)
        rooms = np.zeros(self.max_tokens // 64 + 1, np.uint64)
        words = np.zeros(rooms.size // 64 + 1, np.uint64)
        free = np.full(self.max_tokens + 1, -1)
        n = best_fit(self.lengths[order], free, below, rooms, words, batch_of)
        if self.shuffle:
            place = np.empty(n, np.int64)
            place[_shuffled(n, bits)] = np.arange(n)
            batch_of = place[batch_of]
        indptr = np.concatenate([[0], np.cumsum(np.bincount(batch_of, minlength=n))])
        return order[np.argsort(batch_of, kind="stable")], indptr


def _checked_lengths(lengths: Any) -> np.ndarray:
    try:
        array = np.asarray(lengths)
    except ValueError as error:  # lists of other lengths
        raise InputError(f"lengths must be one integer per cell; got {shown(lengths)}") from error
    if array.ndim != 1 or (array.dtype.kind not in "iu" and array.size):
        raise InputError(f"lengths must be one integer per cell; got shape {array.shape} of {array.dtype}")
    return array


def is_stream(dataset: Any) -> bool:
    """Return whether a DataLoader can only iterate over a dataset, without indices."""
    return isinstance(dataset, IterableDataset) or not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__"))


def leave_undivided(loader: Any, world_size: int) -> None:
    """Have a :class:`~corrmask_fast.CorpusStream` hand out all its cells: Trainer itself divides them among ranks."""
    stream = getattr(loader.dataset, "dataset", loader.dataset)  # accelerate wraps it
    if world_size == 1 or not isinstance(stream, CorpusStream):
        return
    if (stream.world_size or 1) > 1:
        raise InputError(
            f"Trainer divides batches among ranks itself, and the stream has world_size={stream.world_size}; leave out "
            "rank and world_size"
        )
    stream.rank, stream.world_size = 0, 1


def cell_lengths(dataset: Any, column: str = "length") -> np.ndarray:
    """Return the (n_cells,) int64 lengths of a dataset's cells.

    A :class:`~corrmask_fast.CorpusDataset` knows them. In a ``datasets.Dataset`` the given column is read; without it,
    the lengths of ``input_ids``. From any other dataset every cell is fetched once.
    """
    if (known := getattr(dataset, "lengths", None)) is not None:
        return np.asarray(known, np.int64)
    if hasattr(dataset, "column_names") and hasattr(dataset, "with_format"):
        if column in dataset.column_names:
            return np.asarray(dataset.with_format("numpy")[column][:], np.int64)
        if "input_ids" in dataset.column_names:
            compute = import_extra("pyarrow.compute", "hf")
            batches = dataset.select_columns(["input_ids"]).with_format("arrow").iter(10_000)
            parts = [compute.list_value_length(batch["input_ids"]).to_numpy() for batch in batches]
            return np.concatenate([np.empty(0, np.int64), *parts]).astype(np.int64)
    lengths = np.empty(len(dataset), np.int64)
    for i in range(lengths.size):
        cell = dataset[i]
        try:
            lengths[i] = len(cell["input_ids"])
        except (TypeError, KeyError, IndexError) as error:
            raise InputError(f"grouping by length needs cells with 'input_ids'; cell {i} is {shown(cell)}") from error
    return lengths


def data_seed(args: Any) -> int:
    """Return the seed of the cells' order: ``data_seed`` of the training arguments, or ``seed`` if that is None."""
    return check_seed(args.seed if getattr(args, "data_seed", None) is None else args.data_seed)


def groups_by_length(args: Any) -> bool:
    """Return whether training arguments group cells by length; the option has a new name in transformers 5."""
    strategy = getattr(args, "train_sampling_strategy", None)
    return strategy == "group_by_length" or bool(getattr(args, "group_by_length", False))


def _shuffled(n: int, bits: np.random.Philox) -> np.ndarray:
    """Return 0 … n − 1 in random order, from raw words: these are the same in all versions of NumPy."""
    return np.argsort(bits.random_raw(n), kind="stable")
