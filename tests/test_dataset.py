"""CorpusDataset and RaggedBatch: cells for a DataLoader, straight from the corpus's buffers."""

from __future__ import annotations

import pickle
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from corrmask_fast import CorpusDataset, InputError, RaggedBatch, read_corpus
from corrmask_fast.testing import make_vocabulary

V1, V2 = make_vocabulary(20), make_vocabulary(20, v2=True)
CELLS = [[4, 6, 5], [], [9], [10, 11]]


def cells_of(batch):
    return [batch.tokens[a:b].tolist() for a, b in pairwise(batch.indptr)]


def test_a_batch_comes_at_once():
    dataset = CorpusDataset(read_corpus(CELLS, V1))
    assert len(dataset) == 4
    batch = dataset.__getitems__([3, 0, 0])
    assert isinstance(batch, RaggedBatch)
    assert cells_of(batch) == [[10, 11], [4, 6, 5], [4, 6, 5]]
    assert batch.tokens.dtype == np.int32  # which maskers take without a copy
    assert dataset[2]["input_ids"].tolist() == [9]
    assert dataset[-1]["input_ids"].tolist() == [10, 11]
    assert cells_of(dataset.__getitems__([])) == []
    with pytest.raises(IndexError):
        dataset[4]
    with pytest.raises(InputError, match=r"cell index must be in \[0, 4\); got 4"):
        dataset.__getitems__([1, 4])


def test_cells_stand_between_cls_and_eos_in_v2():
    batch = CorpusDataset(read_corpus(CELLS, V2)).__getitems__([1, 3])
    assert cells_of(batch) == [[2, 3], [2, 10, 11, 3]]
    assert batch.tokens.dtype == np.int32


def test_a_ragged_batch_is_a_sequence_of_features():
    batch = RaggedBatch(np.array([0, 3, 3, 4]), np.array([4, 6, 5, 9], np.uint16))
    assert len(batch) == 3
    assert [row["input_ids"].tolist() for row in batch] == [[4, 6, 5], [], [9]]
    assert [row["input_ids"].tolist() for row in batch[1:]] == [[], [9]]
    assert batch[-1]["input_ids"].tolist() == [9]
    with pytest.raises(IndexError):
        batch[3]
    again = pickle.loads(pickle.dumps(batch))
    assert cells_of(again) == cells_of(batch)


def test_a_loader_hands_whole_batches_to_the_collator():
    dataset = CorpusDataset(read_corpus(CELLS, V1))
    loader = DataLoader(dataset, batch_size=3, collate_fn=lambda batch: batch)
    assert [type(batch) for batch in loader] == [RaggedBatch, RaggedBatch]
    assert [cell for batch in loader for cell in cells_of(batch)] == CELLS


def test_other_collators_can_read_it():
    def pad(features):
        rows = [torch.as_tensor(row["input_ids"].astype(np.int64)) for row in features]
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)

    (batch,) = DataLoader(CorpusDataset(read_corpus(CELLS, V1)), batch_size=4, collate_fn=pad)
    assert batch.tolist() == [[4, 6, 5], [0, 0, 0], [9, 0, 0], [10, 11, 0]]
