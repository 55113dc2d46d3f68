"""Auditing any collator: it is fed the cells of a corpus, and its masks are read off its labels.

    cell         A   B   C   D            what the collator was given
    input_ids    A   #   C   Q   ·   ·    what it returned (# is <mask>, · is <pad>)
    labels       .   B   .   D   .   .    . is -100
    masked           1       3

Padding may stand on either side; ``<cls>`` and ``<eos>`` may be kept or dropped. What has no label must be the cell's
token, and a label too; else nothing could be counted.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from corrmask_fast.audit.masks import audit_strategies
from corrmask_fast.cells.dataset import RaggedBatch
from corrmask_fast.errors import InputError, check_integer, check_seed, listed, reason, shown
from corrmask_fast.masking.engine.torch_random import row_draws
from corrmask_fast.masking.factory import make_masker
from corrmask_fast.masking.features import IGNORED_LABEL
from corrmask_fast.masking.strategies import CONTROL

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from corrmask_fast.audit.report import AuditReport
    from corrmask_fast.cells.corpus import Corpus
    from corrmask_fast.cells.vocabulary import Vocabulary
    from corrmask_fast.graph.dependency_graph import DependencyGraph
    from corrmask_fast.masking.base import Masker

__all__ = ["COLLATOR_CONTROL", "audit_collator"]

COLLATOR_CONTROL = "control (random)"
COMPARED = "the control masks as many genes of each cell, at random"


def audit_collator(
    collator: Callable[[Any], Mapping[str, Any]],
    corpus: Corpus,
    graph: DependencyGraph,
    *,
    dataset: Any = None,
    epochs: int = 1,
    n_cells: int | None = None,
    batch_size: int = 64,
    seed: int = 0,
    progress: bool = True,
) -> AuditReport:
    """Mask a corpus by any collator, and count what stays visible, beside a random control.

    Parameters
    ----------
    collator
        A callable that takes a list of examples and returns a dict with ``input_ids`` and ``labels``, (rows, columns)
        each, as tensors, arrays or lists; labels are −100 where nothing is to be predicted. A copy of it is used, if it
        can be copied. Its ``set_epoch`` is called, if it has one.
    corpus
        A :class:`~corrmask_fast.Corpus`, whose cells are as long as the collator leaves them
        (``read_corpus(…, max_length=…)``).
    graph
        The :class:`~corrmask_fast.DependencyGraph` whose neighbours count as partners.
    dataset
        What gives the collator its examples: ``dataset[i]`` is cell i of the corpus. None: dicts with ``input_ids``,
        a list, and ``length``, as a folder of ``datasets`` has them.
    epochs
        How often each cell is masked, >= 1.
    n_cells
        Audit a sample of this many cells. None: all.
    batch_size
        Cells in a batch, >= 1; a batch never has more than 1024.
    seed
        Of the sample, of the control, and of the generators of Python, NumPy and torch (CPU), from which collators
        draw. They are restored afterwards.
    progress
        Show a progress bar.

    Returns
    -------
    AuditReport
        Two rows: the collator's, by the name of its class or function, and ``"control (random)"``. In every row of
        cells the control masks as many genes as the collator did, at random, so that only which genes are masked
        differs. Special tokens and padding with a label are not counted; a note of the report gives their number.

    Raises
    ------
    InputError
        If the collator fails; returns no labels, other rows than it was given, or cells that were cut; or changes a
        token that has no label; or a label is not the cell's token (the message names row and column). If the corpus is
        empty, vocabularies differ, or a number is out of range.

    Examples
    --------
    >>> from corrmask_fast import CorrMasker, DataCollatorForCorrMask, DependencyGraph, Vocabulary
    >>> from corrmask_fast import audit_collator, read_corpus
    >>> genes = Vocabulary(("<pad>", "<mask>", *"ABCDEFGH"))
    >>> cells = read_corpus([[2, 3, 4, 5, 6, 7, 8, 9], [5, 4, 7, 2, 8, 3, 9, 6]], genes)
    >>> graph = DependencyGraph.from_edges([("A", "B"), ("C", "D"), ("E", "F"), ("G", "H")], genes)
    >>> collator = DataCollatorForCorrMask(CorrMasker(graph, mlm_probability=0.25, structural_ratio=1))
    >>> report = audit_collator(collator, cells, graph, progress=False)
    >>> [(row.name, row.masked) for row in report], report["DataCollatorForCorrMask"].hit_rate
    ([('DataCollatorForCorrMask', 4), ('control (random)', 4)], 1.0)
    """
    check_integer("batch_size", batch_size, 1)
    check_seed(seed)
    cells = np.arange(corpus.n_cells) if n_cells is None else corpus.sample_rows(n_cells, seed)
    feed = Feed(copied(collator), corpus, dataset)
    theirs = _Masks(feed, cells, batch_size)
    ours = partial(_as_many, theirs, make_masker(CONTROL, vocabulary=corpus.vocabulary, seed=seed))
    with seeded(seed):
        report = audit_strategies(
            {name_of(collator): theirs, COLLATOR_CONTROL: ours},
            graph,
            corpus.select(cells),
            controls=[COLLATOR_CONTROL],
            epochs=epochs,
            progress=progress,
        )
    note = (
        f"The collator also masked {theirs.special:,} special tokens and {theirs.padding:,} of padding: no genes, so "
        "the figures leave them out."
    )
    rows = tuple(replace(row, settings={"seed": seed}) for row in report)
    notes = (note,) if theirs.special or theirs.padding else ()
    return replace(report, strategies=rows, compared=COMPARED, notes=notes)


def name_of(collator: Any) -> str:
    """Return what tables call a collator: its class, or a function's own name."""
    return getattr(collator, "__name__", type(collator).__name__)


def copied(collator: Any) -> Any:
    """Return a copy, with a state of its own; what cannot be copied, as it is."""
    try:
        return copy.deepcopy(collator)
    except Exception:  # noqa: BLE001 (a generator or a file inside; any type of error)
        return collator


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the generators that collators draw from; restore them afterwards."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed devices too
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        torch.set_rng_state(states[2])


class Collated(NamedTuple):
    """A batch that a collator returned, beside what it was given: (rows, columns) int64 each."""

    input_ids: np.ndarray
    labels: np.ndarray
    given: np.ndarray  # the cells' tokens, the padding token around them
    places: np.ndarray  # of each column, among the tokens of all cells; -1 at padding

    @property
    def masked(self) -> np.ndarray:
        """(rows, columns) bool: what has a label."""
        return self.labels != IGNORED_LABEL

    @property
    def changed(self) -> np.ndarray:
        """(rows, columns) bool: what has no label, and is not the cell's token."""
        return ~self.masked & (self.input_ids != self.given)

    @property
    def mislabelled(self) -> np.ndarray:
        """(rows, columns) bool: labels that are not the cell's token."""
        return self.masked & (self.labels != self.given)

    def check(self, cells: np.ndarray) -> None:
        """Raise where the cells cannot be told from the batch."""
        rules = "a token without a label must be the cell's", "a label must be the cell's token, or -100 for none"
        for name, wrong, rule in zip(("input_ids", "labels"), (self.changed, self.mislabelled), rules, strict=True):
            if wrong.any():
                row, column = np.argwhere(wrong)[0].tolist()
                raise InputError(
                    f"{rule}, in the order of the examples; {name} of row {row}, column {column} is "
                    f"{getattr(self, name)[row, column]}, and cell {cells[row]} has {self.given[row, column]} there"
                )


class Feed:
    """Cells on their way through a collator, and what it returned read beside them."""

    def __init__(self, collator: Any, corpus: Corpus, dataset: Any = None) -> None:
        self.collator, self.corpus = collator, corpus
        self.dataset = _Examples(corpus) if dataset is None else dataset

    def set_epoch(self, epoch: int) -> None:
        """Tell collator and dataset the epoch, as far as they ask for it."""
        for part in (self.collator, self.dataset):
            if hasattr(part, "set_epoch"):
                part.set_epoch(epoch)

    def __call__(self, cells: Sequence[int] | np.ndarray) -> Collated:
        """Collate the cells of a batch."""
        cells = np.asarray(cells)
        many = getattr(self.dataset, "__getitems__", None)
        try:
            examples = [self.dataset[i] for i in cells.tolist()] if many is None else many(cells.tolist())
            batch = self.collator(examples)
        except Exception as error:
            raise InputError(f"the collator failed on cells {listed(map(str, cells))}: {reason(error)}") from error
        return read_batch(batch, *self.corpus.gather_for_training(cells), self.corpus.vocabulary)


class _Examples:
    """The cells of a corpus, as a folder of ``datasets`` hands them out."""

    def __init__(self, corpus: Corpus) -> None:
        self.corpus = corpus

    def __len__(self) -> int:
        return self.corpus.n_cells

    def __getitem__(self, index: int) -> dict[str, Any]:
        tokens = self.corpus.gather_for_training(np.array([index]))[1].tolist()
        return {"input_ids": tokens, "length": len(tokens)}


def read_batch(batch: Any, indptr: np.ndarray, tokens: np.ndarray, vocabulary: Vocabulary) -> Collated:
    """Return a collator's batch beside the cells ``tokens[indptr[i]:indptr[i + 1]]`` that it was given.

    Of the layouts that it can have (padding on the right or left; special tokens kept or dropped) it has the one under
    which the fewest tokens without a label are not the cell's.
    """
    if not isinstance(batch, Mapping) or not {"input_ids", "labels"} <= set(batch):
        there = listed(batch) if isinstance(batch, Mapping) else shown(batch)
        raise InputError(
            "the collator must return a dict with input_ids and labels, -100 where nothing is to be predicted; it "
            f"returned {there}"
        )
    ids, labels = (_matrix(batch, name, indptr.size - 1) for name in ("input_ids", "labels"))
    if ids.shape != labels.shape:
        raise InputError(
            f"input_ids and labels must be of one shape; the collator's are {ids.shape} and {labels.shape}"
        )
    lo, hi = vocabulary.gene_range
    best, fewest = None, labels.size + 1
    for kept in (np.ones(tokens.size, np.bool_), (tokens >= lo) & (tokens < hi)):
        lengths = np.diff(np.concatenate([[0], np.cumsum(kept)])[indptr])[:, None]
        columns, longest = np.arange(ids.shape[1]), int(lengths.max(initial=0))
        if longest > columns.size:
            continue
        for inside in (columns < lengths, columns >= columns.size - lengths):
            places = np.full(ids.shape, -1)
            places[inside] = np.flatnonzero(kept)
            given = np.full(ids.shape, vocabulary.pad_token_id)
            given[inside] = tokens[kept]
            found = Collated(ids, labels, given, places)
            if (wrong := int(found.changed.sum())) < fewest:
                best, fewest = found, wrong
            if not fewest:
                return found
    if best is None:
        longest = int(np.diff(indptr).max())
        raise InputError(
            f"the collator returned {ids.shape[1]} columns for a cell of {longest} tokens; read the corpus with "
            "max_length, so that no cell is cut"
        )
    return best


def _matrix(batch: Mapping[str, Any], name: str, rows: int) -> np.ndarray:
    """Return a field of a batch as (rows, columns) int64."""
    try:
        array = batch[name].detach().cpu().numpy() if isinstance(batch[name], torch.Tensor) else np.asarray(batch[name])
    except ValueError as error:  # lists of other lengths
        raise InputError(f"{name} must be (rows, columns) integers: {reason(error)}") from error
    if array.ndim != 2 or array.dtype.kind not in "iu" or len(array) != rows:
        raise InputError(
            f"{name} must be (rows, columns) integers, a row for each of {rows} examples (packed rows cannot be read); "
            f"the collator returned {array.shape} {array.dtype}"
        )
    return array.astype(np.int64, copy=False)


class _Masks:
    """A collator's masks, as :func:`audit_strategies` takes them: it brings ``rows`` in this order, each epoch."""

    def __init__(self, feed: Feed, rows: np.ndarray, batch_size: int) -> None:
        self.feed, self.rows, self.batch_size = feed, rows, batch_size
        self.done = self.special = self.padding = 0
        self.counts = np.zeros(0, np.int64)  # masked genes of each row that came last

    def __call__(self, indptr: np.ndarray, tokens: np.ndarray, epoch: int) -> np.ndarray:
        if self.done == 0:
            self.feed.set_epoch(epoch)
        lo, hi = self.feed.corpus.vocabulary.gene_range
        size, masked = indptr.size - 1, np.zeros(tokens.size, np.bool_)
        for begin in range(0, size, self.batch_size):
            cells = self.rows[self.done + begin : self.done + min(begin + self.batch_size, size)]
            batch = self.feed(cells)
            batch.check(cells)
            genes = batch.masked & (batch.given >= lo) & (batch.given < hi)
            masked[indptr[begin] + batch.places[genes]] = True
            padding = int((batch.masked & (batch.places < 0)).sum())
            self.padding += padding
            self.special += int(batch.masked.sum() - genes.sum()) - padding
        self.done = (self.done + size) % self.rows.size
        self.counts = np.diff(np.concatenate([[0], np.cumsum(masked)])[indptr])
        columns = np.zeros((size, int(self.counts.max(initial=0))), np.int64)
        columns[np.arange(columns.shape[1]) < self.counts[:, None]] = np.flatnonzero(masked)
        return _first(columns - indptr[:-1, None], self.counts)


def _as_many(theirs: _Masks, masker: Masker, indptr: np.ndarray, tokens: np.ndarray, epoch: int) -> np.ndarray:
    """Return the columns that random masking takes first, as many in each row as a collator masked there."""
    batch = RaggedBatch(indptr, tokens).padded(masker.vocabulary.pad_token_id)
    draws = row_draws(masker, batch["input_ids"], batch["attention_mask"], None, None, epoch)
    order = torch.where(draws.maskable, draws.w1, 2**32).argsort(dim=1, stable=True).numpy()
    return _first(order, theirs.counts)


def _first(columns: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return the first ``counts[r]`` columns of each row r, -1 after them."""
    most = int(counts.max(initial=0))
    return np.where(np.arange(most) < counts[:, None], columns[:, :most], -1)
