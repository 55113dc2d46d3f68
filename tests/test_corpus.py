"""The corpus: cells stripped, cut and checked, whole or chunk by chunk, from one segment or many."""

from __future__ import annotations

import copy
import pickle
import warnings
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corrmask_fast import Corpus, CorpusDataset, InputError, Vocabulary, read_corpus
from corrmask_fast.cells.segments import Segment
from corrmask_fast.cells.surrounding import with_special_tokens
from corrmask_fast.testing import make_vocabulary

V1, V2 = make_vocabulary(20), make_vocabulary(20, v2=True)
LARGE = make_vocabulary(70_000)


def flat(cells, dtype=np.int64):
    indptr = np.cumsum([0, *map(len, cells)])
    return indptr, np.array([token for cell in cells for token in cell], dtype)


def cells_of(corpus):
    indptr, tokens = corpus.indptr, corpus.tokens
    return [tokens[a:b].tolist() for a, b in pairwise(indptr)]


def plain(cells, vocabulary, max_length):
    """What SPEC 1 says a stored cell is."""
    return [[token for token in cell if token not in vocabulary.special_token_ids][:max_length] for cell in cells]


@st.composite
def stored_cells(draw):
    """Cells as a file may hold them: genes, each once, with special tokens anywhere."""
    cells = []
    for _ in range(draw(st.integers(0, 8))):
        genes = draw(st.lists(st.integers(4, 23), unique=True, max_size=20))
        for special in draw(st.lists(st.integers(0, 3), max_size=4)):
            genes.insert(draw(st.integers(0, len(genes))), special)
        cells.append(genes)
    return cells


@given(
    stored_cells(), st.integers(1, 25), st.integers(1, 5), st.sampled_from([np.int64, np.int32, np.uint16, np.uint8])
)
@settings(max_examples=150, deadline=None, derandomize=True)
def test_cells_are_stripped_and_cut(cells, max_length, chunk, dtype):
    corpus = Corpus(*flat(cells, dtype), V2, max_length=max_length)
    expected = plain(cells, V2, max_length)
    assert cells_of(corpus) == expected
    assert (corpus.tokens.dtype, corpus.indptr.dtype) == (np.uint16, np.int64)
    assert (len(corpus), corpus.n_cells, corpus.nnz) == (len(cells), len(cells), sum(map(len, expected)))
    chunks = list(corpus.chunks(chunk))
    assert [cell for part in chunks for cell in cells_of(part)] == expected
    assert all(part.n_cells == chunk for part in chunks[:-1])


@given(stored_cells(), st.lists(st.integers(1, 3), min_size=1, max_size=4), st.integers(0, 2**32))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_segments_are_one_corpus(cells, sizes, seed):
    """Cells that lie in several buffers, in another order, read like the same cells in one."""
    rng = np.random.default_rng(seed)
    segments, begin = [], 0
    for size in [*sizes, len(cells)]:
        part = cells[begin : begin + size]
        indptr, tokens = flat(part, np.int32)
        lead = int(rng.integers(0, 4))  # a slice of a larger buffer: offsets do not begin at 0
        segments.append(
            Segment((indptr + lead).astype(np.int32), np.concatenate([np.full(lead, -7, np.int32), tokens]))
        )
        begin += size
    order = None if seed % 2 else rng.permutation(len(cells))
    corpus = Corpus.from_segments(segments, V2, order=order)
    expected = plain(cells, V2, V2.max_length)
    expected = expected if order is None else [expected[i] for i in order]
    rows = rng.integers(0, len(cells), 6) if cells else np.empty(0, np.int64)
    indptr, tokens = corpus.gather(rows)
    assert [tokens[a:b].tolist() for a, b in pairwise(indptr)] == [expected[row] for row in rows]
    assert corpus.lengths.tolist() == [len(cells[i]) for i in (range(len(cells)) if order is None else order)]
    for again in (corpus, pickle.loads(pickle.dumps(corpus)), copy.deepcopy(corpus)):
        assert [cell for part in again.chunks(3) for cell in cells_of(part)] == expected
    assert cells_of(corpus) == expected  # reads it into memory
    assert corpus.in_memory


def test_buffers_as_stored_are_not_taken_for_clean_cells():
    """A segment may have the corpus's dtype and still hold special tokens, long cells or offsets of its own."""
    for vocabulary, dtype in ((V2, np.uint16), (LARGE, np.int32)):
        pad, mask = vocabulary.pad_token_id, vocabulary.mask_token_id
        segment = Segment(np.array([2, 5, 8], np.int32), np.array([9, 9, pad, 10, 11, 12, mask, 13], dtype))
        corpus = Corpus.from_segments([segment], vocabulary, max_length=2)
        assert not corpus.in_memory
        assert cells_of(corpus) == [[10, 11], [12, 13]]
        assert corpus.indptr.dtype == np.int64
        assert corpus.indptr[0] == 0
        assert corpus.in_memory
    twice = Segment(np.array([0, 2], np.int64), np.array([9, 9], np.uint16))
    with pytest.warns(UserWarning, match=r"1 gene stood twice in its cell: gene G5 \(token 9\) in cell 0"):
        assert Corpus.from_segments([twice], V2).tokens.tolist() == [9]


def test_rows_come_in_the_order_asked_for():
    corpus = Corpus(*flat([[4], [5, 6], [], [7, 8, 9]]), V1)
    indptr, tokens = corpus.gather(np.array([3, 1, 1, 2, 0]))
    assert (indptr.tolist(), tokens.tolist()) == ([0, 3, 5, 7, 7, 8], [7, 8, 9, 5, 6, 5, 6, 4])
    assert cells_of(corpus.take([3, 0])) == [[7, 8, 9], [4]]
    assert corpus.lengths.tolist() == [1, 2, 0, 3]


def test_nothing_is_written_to_what_is_given():
    indptr, tokens = flat([[0, 4, 5], [6, 1]])
    indptr.flags.writeable = tokens.flags.writeable = False
    corpus = Corpus(indptr, tokens, V1)
    assert cells_of(corpus) == [[4, 5], [6]]
    assert (tokens == [0, 4, 5, 6, 1]).all()


def test_any_byte_order_and_stride():
    indptr, tokens = flat([[4, 5], [6]])
    expected = [[4, 5], [6]]
    assert cells_of(Corpus(indptr.astype(">i4"), tokens.astype(">i2"), V1)) == expected
    assert cells_of(Corpus(np.repeat(indptr, 2)[::2], np.repeat(tokens, 3)[::3], V1)) == expected
    assert cells_of(Corpus([0, 2, 3], [4, 5, 6], V1)) == expected


def test_the_length_is_the_vocabulary_s_unless_given():
    for vocabulary, length in ((make_vocabulary(5000), 2048), (make_vocabulary(5000, v2=True), 4096)):
        cell = list(range(4, 4504))
        corpus = Corpus(*flat([cell]), vocabulary)
        assert (corpus.max_length, corpus.nnz) == (length, length)


# ---------------------------------------------------------------------------------------------------- special tokens


def test_cls_and_eos_come_back_for_training():
    cells = [[5, 6], [], [7]]
    indptr, tokens = Corpus(*flat([[2, 5, 6, 3], [2, 3], [7]]), V2).gather_for_training(np.arange(3))
    assert [tokens[a:b].tolist() for a, b in pairwise(indptr)] == [[2, *cell, 3] for cell in cells]
    indptr, tokens = Corpus(*flat(cells), V1).gather_for_training(np.arange(3))
    assert [tokens[a:b].tolist() for a, b in pairwise(indptr)] == cells


def test_a_cell_fits_with_both_its_special_tokens():
    genes = make_vocabulary(5000, v2=True)
    cells = [list(range(4, 4 + n)) for n in (4096, 4095, 4094, 4093)]
    indptr, tokens = Corpus(*flat(cells), genes).gather_for_training(np.arange(4))
    assert np.diff(indptr).tolist() == [4096, 4096, 4096, 4095]
    for a, b in pairwise(indptr):
        assert (tokens[a], tokens[b - 1]) == (2, 3)
        assert tokens[a + 1 : b - 1].tolist() == list(range(4, 4 + b - a - 2))


def test_one_special_token_alone():
    only = Vocabulary(("<pad>", "<mask>", "<cls>", "A", "B"))
    indptr, tokens = with_special_tokens(np.array([0, 2, 2]), np.array([3, 4], np.uint16), only)
    assert (indptr.tolist(), tokens.tolist()) == ([0, 3, 4], [2, 3, 4, 2])


# ----------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize("token", [22, 65535, 2**31, 2**32 + 5, -1, -(2**63)])
def test_a_token_outside_the_vocabulary_is_named(token):
    with pytest.raises(InputError) as error:
        Corpus(*flat([[4, 5], [6, token, 7]]), V1)
    assert str(error.value) == (
        f"cell 1 holds token {token}, outside the vocabulary of 22 tokens; "
        "use the token dictionary that the corpus was made with"
    )


def test_of_a_gene_twice_in_a_cell_the_first_counts_and_the_number_dropped_is_told():
    genes = Vocabulary(V1.names, {"G3": "TP53"})
    message = r"2 genes stood twice in a cell, as gene TP53 \(token 5\) in cell 2; the first occurrence counts"
    with pytest.warns(UserWarning, match=message):
        corpus = Corpus(*flat([[5], [6, 7], [5, 4, 8, 5], [5, 5]]), genes)
    assert cells_of(corpus) == [[5], [6, 7], [5, 4, 8], [5]]
    corpus = Corpus(*flat([[0, 0, 5, 0], [5]]), genes)  # special tokens may repeat, and genes in other cells
    assert cells_of(corpus) == [[5], [5]]


def test_what_lies_behind_the_cut_is_not_looked_at():
    assert cells_of(Corpus(*flat([[4, 5, 4, 99]]), V1, max_length=2)) == [[4, 5]]
    with pytest.raises(InputError, match="token 99"):
        Corpus(*flat([[4, 5, 4, 99]]), V1, max_length=3)  # two genes: the cut comes after the third


def test_repeated_genes_are_dropped_before_the_cut_and_in_every_way_to_read_a_cell():
    cells = [[4, 5], [6, 7, 6, 6, 8, 7, 9], [5, 4, 9], [8, 8]]
    right = [[4, 5], [6, 7, 8], [5, 4, 9], [8]]
    stored = Segment(np.array([0, 2, 9, 12, 14]), np.array([token for cell in cells for token in cell], np.int32))
    rows = np.array([3, 1, 1, 0, 2])

    def ragged(indptr, tokens):
        return [tokens[a:b].tolist() for a, b in pairwise(indptr.tolist())]

    corpus, wanted = Corpus.from_segments([stored], V1, max_length=3), [right[i] for i in rows]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):  # the second time it is known which cells hold no gene twice
            assert ragged(*corpus.gather_for_training(rows)) == wanted
            assert ragged(*corpus.gather(rows)) == wanted
            assert cells_of(corpus.take(rows)) == wanted
            chosen = corpus.select(rows)
            assert ragged(*chosen.gather(np.arange(5))) == wanted
            assert ragged(*pickle.loads(pickle.dumps(chosen)).gather(np.arange(5))) == wanted
        assert cells_of(corpus) == right
        assert cells_of(Corpus(stored.offsets, stored.tokens, V1, max_length=3)) == right
    said = [str(warning.message) for warning in caught]
    assert len(said) == 2, said  # once for each of the two corpora
    assert "3 genes stood twice in a cell, as gene G6 (token 8) in cell 3" in said[0]
    assert "3 genes stood twice in a cell, as gene G4 (token 6) in cell 1" in said[1]
    assert corpus.select(rows).lengths.tolist() == [1, 3, 3, 2, 3]
    assert Corpus.from_segments([stored], V1).lengths.tolist() == [2, 7, 3, 2]  # as stored


def test_cells_of_a_chunk_are_named_as_in_the_corpus():
    segment = Segment(np.arange(11), np.array([4, 5, 6, 7, 8, 9, 10, 99, 12, 13]))
    corpus = Corpus.from_segments([segment], V1)
    read = corpus.chunks(3)
    assert [next(read).n_cells, next(read).n_cells] == [3, 3]
    with pytest.raises(InputError, match="cell 7 holds token 99"):
        next(read)


BAD_ARRAYS = [
    (np.array([0.0, 1.0]), np.array([4]), "indptr must be a one-dimensional integer array; got 1-d float64"),
    (np.array([0, 1]), np.array([4.0]), "tokens must be a one-dimensional integer array; got 1-d float64"),
    (np.array([[0, 1]]), np.array([4]), "indptr must be a one-dimensional integer array; got 2-d int64"),
    (np.array([0, 1]), np.array(["G1"]), "tokens must be a one-dimensional integer array"),
    (np.array([], np.int64), np.array([], np.int64), r"indptr must rise from 0 to the number of tokens (0)"),
    (np.array([1, 2]), np.array([4, 5]), "indptr must rise from 0 to the number of tokens (2)"),
    (np.array([0, 1]), np.array([4, 5]), "indptr must rise from 0 to the number of tokens (2)"),
    (np.array([0, 2, 1, 2]), np.array([4, 5]), "indptr must rise from 0"),
    (np.array([0, 3]), np.array([4, 5]), "indptr must rise from 0"),
]


@pytest.mark.parametrize(("indptr", "tokens", "message"), BAD_ARRAYS, ids=range(len(BAD_ARRAYS)))
def test_arrays_that_are_no_corpus(indptr, tokens, message):
    with pytest.raises(InputError) as error:
        Corpus(indptr, tokens, V1)
    assert message in str(error.value)


def test_other_bad_input():
    corpus = Corpus(*flat([[4], [5]]), V1)
    for rows in ([2], [0, -1]):
        with pytest.raises(InputError, match=r"cell index must be in \[0, 2\); got"):
            corpus.gather(np.array(rows))
    with pytest.raises(InputError, match="max_length must be an integer >= 1; got 0"):
        Corpus(*flat([[4]]), V1, max_length=0)
    with pytest.raises(InputError, match="n_cells must be an integer >= 1; got 0"):
        next(corpus.chunks(0))
    with pytest.raises(InputError, match="obs column 'type' has 3 values for 2 cells"):
        Corpus(*flat([[4], [5]]), V1, obs={"type": np.arange(3)})


def test_obs_travel_with_the_cells():
    corpus = Corpus(*flat([[4], [5, 6], [], [7]]), V1, obs={"type": np.array(list("abca")), "depth": np.arange(4.0)})
    taken = corpus.take(np.array([3, 1]))
    assert {name: column.tolist() for name, column in taken.obs.items()} == {"type": ["a", "b"], "depth": [3, 1]}
    assert [chunk.obs["type"].tolist() for chunk in corpus.chunks(3)] == [["a", "b", "c"], ["a"]]
    assert corpus.obs["type"].tolist() == list("abca")
    assert pickle.loads(pickle.dumps(taken)).obs["depth"].tolist() == [3, 1]


def test_selected_cells_are_those_taken_and_not_read():
    corpus = Corpus(*flat([[4], [5, 6], [], [7]]), V1, obs={"type": np.array(list("abca"))})
    rows = np.array([3, 1, 1])
    view, taken = corpus.select(rows), corpus.take(rows)
    assert not view.in_memory
    again = view.select(np.array([2, 0]))
    assert again.indptr.tolist() == [0, 2, 3]
    assert again.tokens.tolist() == [5, 6, 7]
    assert again.obs["type"].tolist() == ["b", "a"]
    for mine, theirs in zip(view.gather(np.arange(3)), (taken.indptr, taken.tokens), strict=True):
        assert mine.tolist() == theirs.tolist()
    assert view.obs["type"].tolist() == taken.obs["type"].tolist() == ["a", "b", "b"]
    with pytest.raises(InputError, match=r"cell index must be in \[0, 4\); got 4"):
        corpus.select(np.array([4]))


def test_an_empty_corpus_is_a_corpus():
    corpus = Corpus(*flat([]), V1)
    assert (corpus.n_cells, corpus.nnz, list(corpus.chunks(4))) == (0, 0, [])
    assert corpus.tokens.dtype == np.uint16
    assert repr(corpus) == "Corpus(0 cells, Vocabulary(20 genes, ids 2 to 21; <pad> <mask>))"


def test_what_is_known_of_cells_is_shared_with_forked_workers(tmp_path):
    datasets = pytest.importorskip("datasets")
    torch = pytest.importorskip("torch")
    datasets.Dataset.from_dict({"input_ids": [[2, 3, 2], [4, 3], [3, 3]] * 20}).save_to_disk(str(tmp_path / "cells"))
    corpus = read_corpus(tmp_path / "cells", Vocabulary(("<pad>", "<mask>", "A", "B", "C")))
    part = corpus.select(np.arange(59, -1, -1))
    loader = torch.utils.data.DataLoader(
        CorpusDataset(part), batch_size=6, num_workers=2, collate_fn=list, multiprocessing_context="fork"
    )
    for _ in range(2):
        assert sum(len(batch) for batch in loader) == 60
    assert corpus._repeats.known.all()  # what workers found, this process need not look for
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a worker has warned
        assert corpus.take(np.array([2])).tokens.tolist() == [3]
