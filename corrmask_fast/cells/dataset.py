"""A corpus as a PyTorch dataset that hands whole ragged batches to the collator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import Dataset

from corrmask_fast.buffers import empty
from corrmask_fast.cells.row_numbers import rows_of
from corrmask_fast.errors import InputError, check_integer
from corrmask_fast.suggestions import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Iterator

    from corrmask_fast.cells.corpus import Corpus
    from corrmask_fast.cells.vocabulary import Vocabulary

__all__ = ["CorpusDataset", "CountsDataset", "RaggedBatch", "RaggedRow"]


class RaggedBatch(Sequence[dict[str, np.ndarray]]):
    """A batch of cells without padding: cell i is ``tokens[indptr[i]:indptr[i + 1]]``.

    Datasets of this package hand them out, and its collators take the arrays as they are. For any other collator a
    batch is a sequence of rows ``{"input_ids": array}``. ``batch[2]`` is one cell; ``batch[1:]`` and ``batch[[0, 2]]``
    are batches. All arguments are attributes, too.

    Parameters
    ----------
    indptr : array
        (cells + 1,) int64: where each cell begins.
    tokens : array
        (nnz,) int32 token ids.
    vocabulary : Vocabulary, optional
        Which id is which gene. Collators refuse a batch whose vocabulary is not that of their masker.
    epoch : int, optional
        Mask these cells as in this epoch. None: as the collator says.
    columns : mapping, optional
        Further values of cells: name → (cells,) array.
    values : array, optional
        (nnz,) float32: the value of each token.

    Examples
    --------
    >>> from corrmask_fast import CorpusDataset, Vocabulary, read_corpus
    >>> genes = Vocabulary(("<pad>", "<mask>", "A", "B", "C"))
    >>> batch = CorpusDataset(read_corpus([[2, 4], [3], [4, 3]], genes))[[0, 2]]
    >>> len(batch), batch.tokens.tolist(), batch[1]["input_ids"].tolist()
    (2, [2, 4, 4, 3], [4, 3])
    """

    __slots__ = ("columns", "epoch", "indptr", "tokens", "values", "vocabulary")

    def __init__(
        self,
        indptr: np.ndarray,
        tokens: np.ndarray,
        vocabulary: Vocabulary | None = None,
        epoch: int | None = None,
        columns: Mapping[str, np.ndarray] | None = None,
        values: np.ndarray | None = None,
    ) -> None:
        self.indptr, self.tokens = indptr, tokens
        self.values = values  # float32, one a token, or none
        self.columns = columns or {}  # values of cells that travel along: name → (cells,)
        self.vocabulary = vocabulary  # so that a collator can tell a corpus that is not its graph's
        self.epoch = epoch  # masks of this epoch, whatever the collator's

    def __len__(self) -> int:
        return self.indptr.size - 1

    def __getitem__(self, index: Any) -> Any:
        """Return a cell as a dict, or the batch of several: by a slice, or integers as list, array or tensor."""
        chosen = rows_of(index, len(self))
        if isinstance(chosen, np.ndarray):
            return self._take(chosen)
        more = {name: column[chosen] for name, column in self.columns.items()}
        cell = slice(self.indptr[chosen], self.indptr[chosen + 1])
        if self.values is not None:
            more["values"] = self.values[cell]
        return {"input_ids": self.tokens[cell], **more}

    def padded(self, pad_token_id: int, multiple: int = 1) -> dict[str, torch.Tensor]:
        """Return the batch as padded tensors.

        Parameters
        ----------
        pad_token_id : int
            Token that fills the end of shorter cells.
        multiple : int
            The number of columns is rounded up to a multiple of this.

        Returns
        -------
        dict
            ``input_ids`` and ``attention_mask``, each (cells, columns) int64, padded on the right.

        Examples
        --------
        >>> import numpy as np
        >>> from corrmask_fast import RaggedBatch
        >>> batch = RaggedBatch(np.array([0, 2, 3]), np.array([4, 2, 3], np.int32))
        >>> batch.padded(pad_token_id=0, multiple=4)["input_ids"].tolist()
        [[4, 2, 0, 0], [3, 0, 0, 0]]
        """
        lengths = np.diff(self.indptr)
        width = -(-int(lengths.max(initial=0)) // multiple) * multiple
        inside = np.arange(width) < lengths[:, None]
        ids = np.full(inside.shape, pad_token_id)
        ids[inside] = self.tokens
        return {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(inside.astype(np.int64))}

    def cut(self, begin: int, end: int) -> RaggedBatch:
        """Return the cells from ``begin`` to ``end - 1``, without a copy.

        Parameters
        ----------
        begin, end : int
            First cell, and the one after the last.

        Returns
        -------
        RaggedBatch
            These cells, over the same arrays.
        """
        indptr = self.indptr[begin : end + 1]
        columns = {name: column[begin:end] for name, column in self.columns.items()}
        tokens = slice(indptr[0], indptr[-1])
        values = None if self.values is None else self.values[tokens]
        return RaggedBatch(indptr - indptr[0], self.tokens[tokens], self.vocabulary, self.epoch, columns, values)

    def _take(self, rows: np.ndarray) -> RaggedBatch:
        starts, lengths = self.indptr[rows], self.indptr[rows + 1] - self.indptr[rows]
        indptr = np.concatenate([[0], np.cumsum(lengths)])
        places = np.arange(indptr[-1]) + np.repeat(starts - indptr[:-1], lengths)
        columns = {name: column[rows] for name, column in self.columns.items()}
        values = None if self.values is None else self.values[places]
        return RaggedBatch(indptr, self.tokens[places], self.vocabulary, self.epoch, columns, values)

    def __iter__(self) -> Iterator[Any]:
        return (RaggedRow(self, i) for i in range(len(self)))


class RaggedRow(Mapping[str, np.ndarray]):
    """A row of a :class:`RaggedBatch`, as ``{"input_ids": array}``; it knows where it comes from."""

    __slots__ = ("batch", "index")

    def __init__(self, batch: RaggedBatch, index: int) -> None:
        self.batch, self.index = batch, index

    def __getitem__(self, name: str) -> np.ndarray:
        return self.batch[self.index][name]

    def __iter__(self) -> Iterator[str]:
        values = () if self.batch.values is None else ("values",)
        return iter(("input_ids", *self.batch.columns, *values))

    def __len__(self) -> int:
        return sum(1 for _ in self)


def joined(rows: Sequence[Any]) -> RaggedBatch | None:
    """Return rows of batches as one batch, without a copy where they follow each other in one; None of other rows."""
    runs: list[list[Any]] = []  # (batch, first row, end)
    batch, end = None, -1
    for row in rows:
        if type(row) is not RaggedRow:
            return None
        if row.batch is not batch or row.index != end:
            batch, end = row.batch, row.index
            runs.append([batch, end, end])
        end += 1
        runs[-1][2] = end
    if not runs:
        return None
    parts = [one if end - first == len(one) else one.cut(first, end) for one, first, end in runs]
    if len(parts) == 1:
        return parts[0]
    of = [(one.vocabulary, one.epoch, one.columns.keys(), one.tokens.dtype, one.values is None) for one in parts]
    if any(one != of[0] for one in of):
        return None
    lengths = np.concatenate([np.diff(one.indptr) for one in parts])
    tokens = empty((int(lengths.sum()),), parts[0].tokens.dtype)
    np.concatenate([one.tokens for one in parts], out=tokens)
    first, indptr = parts[0], np.concatenate([[0], np.cumsum(lengths)])
    columns = {name: np.concatenate([one.columns[name] for one in parts]) for name in first.columns}
    values = None if first.values is None else np.concatenate([one.values for one in parts])
    return RaggedBatch(indptr, tokens, first.vocabulary, first.epoch, columns, values)


class CorpusDataset(Dataset[dict[str, np.ndarray]]):
    """Map-style PyTorch dataset over a corpus: batches come straight from its arrays, without Python lists.

    A DataLoader gets each batch as one :class:`~corrmask_fast.RaggedBatch`; so does ``dataset[[0, 1, 2]]``. With a V2
    vocabulary each cell stands between ``<cls>`` and ``<eos>``, and is cut so that all fits the vocabulary's
    ``max_length``.

    Parameters
    ----------
    corpus : Corpus
        The cells.
    epoch : int, optional
        Mask these cells always as in this epoch: for evaluation, so that losses compare. None: as the collator says.
    columns : sequence of str
        Names of obs columns to hand out too, for a collator that chooses each cell's graph by one.
    values : bool
        Hand out the values of tokens too, for :class:`~corrmask_fast.DataCollatorForValues`. Then ``<cls>`` and
        ``<eos>`` are left out.

    Attributes
    ----------
    corpus : Corpus
        As given.
    columns : mapping
        Name → array of one value a cell, for each of the columns named.

    Raises
    ------
    InputError
        If the corpus has no such column or no values, or ``epoch`` is no integer >= 0.

    Examples
    --------
    >>> from corrmask_fast import CorpusDataset, Vocabulary, read_corpus
    >>> genes = Vocabulary(("<pad>", "<mask>", "A", "B", "C"))
    >>> dataset = CorpusDataset(read_corpus([[2, 4], [3]], genes))
    >>> len(dataset), dataset[0]["input_ids"].tolist()
    (2, [2, 4])
    """

    def __init__(
        self, corpus: Corpus, *, epoch: int | None = None, columns: Sequence[str] = (), values: bool = False
    ) -> None:
        self.corpus, self.values = corpus, values
        if values and not corpus.has_values:
            raise InputError("the corpus has no values; write it with them: tokenize(…, values=True)")
        for name in columns:
            if name not in corpus.obs:
                there = ", ".join(map(repr, corpus.obs)) or "none"
                fix = "; values of tokens come with values=True" if name == "values" and corpus.has_values else ""
                meant = did_you_mean(name, corpus.obs)
                raise InputError(f"the corpus has no obs column {name!r}{meant}; it has {there}{fix}")
        self.columns = {name: np.asarray(corpus.obs[name]) for name in columns}
        self.epoch = None if epoch is None else check_integer("epoch", epoch, 0, 2**63 - 1)

    @property
    def lengths(self) -> np.ndarray:
        """(cells,) int64: number of tokens of each cell in a batch; the tokens are not read.

        It is up to two too large for a cell that is stored with special tokens.
        """
        corpus, vocabulary = self.corpus, self.corpus.vocabulary
        added = 0 if self.values else vocabulary.n_surrounding
        longest = vocabulary.max_length if added else corpus.max_length
        return np.minimum(np.minimum(corpus.lengths, corpus.max_length) + added, longest)

    def __len__(self) -> int:
        return self.corpus.n_cells

    def __getitem__(self, index: Any) -> Any:
        """Return a cell as a dict, or the :class:`RaggedBatch` of several: by a slice, or integers as list or array."""
        chosen = rows_of(index, len(self))
        return self.__getitems__(chosen) if isinstance(chosen, np.ndarray) else self.__getitems__([chosen])[0]

    def __getitems__(self, indices: Sequence[int] | np.ndarray) -> RaggedBatch:
        """Return the cells of a batch; DataLoader calls this once for each."""
        rows = np.asarray(indices)
        rows = rows if rows.dtype == np.int64 else np.atleast_1d(rows_of(rows, len(self)))
        columns = {name: column[rows] for name, column in self.columns.items()} if self.columns else None
        if self.values:
            indptr, tokens, values = self.corpus.gather_with_values(rows)
            return RaggedBatch(indptr, tokens, self.corpus.vocabulary, self.epoch, columns, values)
        cells = self.corpus.gather_for_training(rows)
        return RaggedBatch(*cells, self.corpus.vocabulary, self.epoch, columns)


class CountsDataset(Dataset[Any]):
    """Map-style PyTorch dataset over a matrix of raw counts, for :class:`~corrmask_fast.DataCollatorForCounts`.

    A DataLoader gets the rows of a batch as one matrix of the same kind.

    Parameters
    ----------
    counts : csr_matrix, array or AnnData
        (cells, genes) raw counts: a SciPy CSR matrix, a dense array, or an ``AnnData`` in memory or backed.

    Raises
    ------
    InputError
        If ``counts`` is none of these, or sparse in another format than CSR.

    Examples
    --------
    >>> import scipy.sparse
    >>> from corrmask_fast import CountsDataset
    >>> dataset = CountsDataset(scipy.sparse.csr_matrix([[1, 0], [0, 2], [3, 4]]))
    >>> len(dataset), dataset.__getitems__([2, 0]).toarray().tolist()
    (3, [[3, 4], [1, 0]])
    """

    def __init__(self, counts: Any) -> None:
        taken = isinstance(counts, np.ndarray) or hasattr(counts, "tocsr") or hasattr(counts, "var_names")
        if not taken or len(counts.shape) != 2:
            raise InputError(
                "counts must be a SciPy CSR matrix, a dense array or an AnnData, of cells and genes; got "
                f"{type(counts).__name__}"
            )
        if getattr(counts, "format", "csr") != "csr":
            raise InputError(f"counts must be CSR, whose rows are quick to find; got {counts.format!r}; give .tocsr()")
        self.counts = counts

    def __len__(self) -> int:
        return int(self.counts.shape[0])

    def __getitem__(self, index: int) -> Any:
        """Return a cell as a matrix of one row."""
        return self.__getitems__([index])

    def __getitems__(self, indices: Sequence[int] | np.ndarray) -> Any:
        """Return the cells of a batch; DataLoader calls this once for each."""
        return self.counts[np.atleast_1d(rows_of(indices, len(self)))]
