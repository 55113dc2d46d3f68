"""A corpus as a PyTorch dataset that hands whole ragged batches to the collator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch.utils.data import Dataset

if TYPE_CHECKING:
    from collections.abc import Iterator

    from corrmask_fast.corpus import Corpus
    from corrmask_fast.vocabulary import Vocabulary

__all__ = ["CorpusDataset", "RaggedBatch"]


class RaggedBatch(Sequence[dict[str, np.ndarray]]):
    """Cells one behind the other: cell i is ``tokens[indptr[i]:indptr[i + 1]]``.

    A sequence of ``{"input_ids": array}`` too, so that any collator can read it; ours takes the buffers as they are.
    """

    __slots__ = ("indptr", "tokens", "vocabulary")

    def __init__(self, indptr: np.ndarray, tokens: np.ndarray, vocabulary: Vocabulary | None = None) -> None:
        self.indptr, self.tokens = indptr, tokens
        self.vocabulary = vocabulary  # so that a collator can tell a corpus that is not its graph's

    def __len__(self) -> int:
        return self.indptr.size - 1

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        i = range(len(self))[index]
        return {"input_ids": self.tokens[self.indptr[i] : self.indptr[i + 1]]}

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        return (self[i] for i in range(len(self)))


class CorpusDataset(Dataset[dict[str, np.ndarray]]):
    """Map-style dataset over a corpus, straight from its buffers: no Python lists.

    A DataLoader asks for a whole batch at once and gets a :class:`RaggedBatch`. For a V2 vocabulary every cell comes
    between ``<cls>`` and ``<eos>`` again, cut so that it fits the vocabulary's ``max_length`` with both.

    Examples
    --------
    >>> from corrmask_fast import Vocabulary, read_corpus
    >>> genes = Vocabulary(("<pad>", "<mask>", "A", "B", "C"))
    >>> dataset = CorpusDataset(read_corpus([[2, 4], [3]], genes))
    >>> len(dataset), dataset[0]["input_ids"].tolist()
    (2, [2, 4])
    """

    def __init__(self, corpus: Corpus) -> None:
        self.corpus = corpus

    def __len__(self) -> int:
        return self.corpus.n_cells

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return self.__getitems__(range(len(self))[index])
        return self.__getitems__([range(len(self))[index]])[0]

    def __getitems__(self, indices: Sequence[int]) -> RaggedBatch:
        """Return the cells of a batch; DataLoader calls this once for each."""
        cells = self.corpus.gather_for_training(np.asarray(indices, np.int64))
        return RaggedBatch(*cells, self.corpus.vocabulary)
