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


def whole(batch):
    return batch


INDICES = {
    "list": [3, 0, 0], "tuple": (3, 0, 0), "array": np.array([3, 0, 0]), "narrow": np.array([3, 0, 0], np.uint8),
    "tensor": torch.tensor([3, 0, 0]), "from the end": [-1, -4, 0], "NumPy integers": [np.int64(3), np.int8(0), 0],
}  # fmt: skip


@pytest.mark.parametrize("index", INDICES.values(), ids=INDICES)
def test_several_cells_by_their_indices(index):
    dataset = CorpusDataset(read_corpus(CELLS, V1))
    for cells in (dataset, dataset.__getitems__(range(4)), dataset[:]):
        batch = cells[index]
        assert isinstance(batch, RaggedBatch)
        assert cells_of(batch) == [[10, 11], [4, 6, 5], [4, 6, 5]]
        assert batch.vocabulary is dataset.corpus.vocabulary


def test_no_cell_some_cells_and_cells_by_a_mask():
    corpus = read_corpus(CELLS, V1)
    corpus.obs = {"tissue": np.array(["a", "b", "c", "d"])}
    dataset = CorpusDataset(corpus, epoch=4, columns=("tissue",))
    for cells in (dataset, dataset[::1]):
        assert cells_of(cells[[]]) == cells_of(cells[np.array([], np.int64)]) == cells_of(cells[4:]) == []
        assert cells_of(cells[range(3, 1, -1)]) == cells_of(cells[3:1:-1]) == [[10, 11], [9]]
        assert cells_of(cells[np.array([True, False, False, True])]) == [[4, 6, 5], [10, 11]]
        chosen = cells[[2, 0]]
        assert chosen.columns["tissue"].tolist() == ["c", "a"]
        assert chosen.epoch == 4
        assert chosen[1]["tissue"] == "a"
        assert cells[torch.tensor(2)]["input_ids"].tolist() == cells[np.int64(-2)]["input_ids"].tolist() == [9]


def test_indices_that_are_none():
    dataset = CorpusDataset(read_corpus(CELLS, V1))
    for cells in (dataset, dataset[:]):
        for outside in (4, -5, [0, 4], [-5], np.array([2**40]), np.array([2**63], np.uint64)):
            with pytest.raises(IndexError, match=r"cell index must be in \[-4, 4\); got"):
                cells[outside]
        for wrong in (1.5, "input_ids", None, [0.0], ["a"], [[0, 1]], [[0], [1, 2]], [True, False], {0: 1}, True):
            with pytest.raises(InputError, match="cells are chosen by an integer, a slice, or a list"):
                cells[wrong]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_batch_sampler_as_sampler(workers):
    dataset = CorpusDataset(read_corpus(CELLS, V1))
    sampler = torch.utils.data.BatchSampler(torch.utils.data.SequentialSampler(dataset), 3, drop_last=False)
    batches = list(DataLoader(dataset, batch_size=None, sampler=sampler, num_workers=workers, collate_fn=whole))
    assert [cells_of(batch) for batch in batches] == [CELLS[:3], CELLS[3:]]
