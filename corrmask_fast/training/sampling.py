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
    "ShuffledSampler",
    "cell_lengths",
    "data_seed",
    "groups_by_length",
    "is_stream",
    "leave_undivided",
]

# Batches that are sorted by length together. More of them: less padding, and less random batches.
BATCHES_TOGETHER = 50


class ShuffledSampler(Sampler[int]):
    """Every cell once per epoch, in an order that depends on (seed, epoch) alone.

    Unlike ``RandomSampler`` it uses nothing of torch's global generator: a resumed run has the same order, and so has a
    run with other numbers of workers and ranks. accelerate and our callback call :meth:`set_epoch`.

    All ranks must take the same number of steps, each with a full batch. So accelerate fills up the last step of an
    epoch with the first cells of that epoch: these are seen twice. With ``dataloader_drop_last=True`` the last,
    incomplete step is left out instead.

    Parameters
    ----------
    n_cells
        Number of cells.
    seed
        Key of the order, in [0, 2**64).

    Examples
    --------
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
        """Choose the order of the next pass."""
        self.epoch = check_integer("epoch", epoch, 0)

    def __len__(self) -> int:
        return self.n_cells

    def __iter__(self) -> Iterator[int]:
        return iter(self.order().tolist())

    def order(self) -> np.ndarray:
        """(n_cells,) int64: the epoch's order."""
        return _shuffled(self.n_cells, self._bits())

    def _bits(self) -> np.random.Philox:
        return np.random.Philox(np.random.SeedSequence([self.seed, self.epoch]))


class LengthGroupedSampler(ShuffledSampler):
    """Cells of similar length in one batch, for less padding; otherwise like :class:`ShuffledSampler`.

    The cells are shuffled, then sorted by length within groups of fifty batches, then the batches are shuffled. The
    batch with the longest cell comes first: if memory does not suffice, the run fails in its first step. An incomplete
    batch comes last.

    Parameters
    ----------
    lengths
        (n_cells,) integers: see :func:`cell_lengths`.
    batch_size
        Number of cells of similar length: those of one step, over all ranks and accumulated batches.
    seed
        Key of the order, in [0, 2**64).

    Examples
    --------
    >>> sampler = LengthGroupedSampler([9, 2, 2, 3, 9, 2, 3, 2] * 2, batch_size=2)
    >>> order = list(sampler)
    >>> sampler.lengths[order[0]].item(), sorted(order) == list(range(16))
    (9, True)
    """

    def __init__(self, lengths: Any, batch_size: int, *, seed: int = 0) -> None:
        self.lengths = np.asarray(lengths)
        if self.lengths.ndim != 1 or (self.lengths.dtype.kind not in "iu" and self.lengths.size):
            raise InputError(
                f"lengths must be one integer per cell; got shape {self.lengths.shape} of {self.lengths.dtype}"
            )
        super().__init__(self.lengths.size, seed=seed)
        self.batch_size = check_integer("batch_size", batch_size, 1)

    def order(self) -> np.ndarray:
        """(n_cells,) int64: the epoch's order."""
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
