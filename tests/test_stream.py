"""Streams of cells: each cell once over ranks and workers, shuffled in a buffer, resumed exactly, masked as on disk."""

from __future__ import annotations

import copy
import pickle
import warnings
from contextlib import suppress
from itertools import chain

import numpy as np
import pytest
import torch
from corpus_cases import V1, V2, dataset_of, make_cells, make_corpus
from torch.utils.data import DataLoader

from corrmask_fast import (
    CorpusDataset,
    CorpusStream,
    CorpusWriter,
    CorrMasker,
    DataCollatorForCorrMask,
    InputError,
    RaggedBatch,
    Vocabulary,
    build_dependency_graph,
    read_corpus,
    stream_corpus,
    write_corpus,
)
from corrmask_fast.cells import stream as stream_module
from corrmask_fast.cells import stream_sources
from corrmask_fast.cells.stream_sources import Share
from corrmask_fast.masking.features import as_cells
from corrmask_fast.testing import make_graph

pa = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")
datasets = pytest.importorskip("datasets")

pytestmark = pytest.mark.usefixtures("one_thread")

CELLS = make_cells(103)  # some of them empty
MASKER = CorrMasker(make_graph(V1), mlm_probability=0.3, seed=5)


@pytest.fixture(autouse=True)
def small_reads(monkeypatch):
    """Blocks, decoded batches and gathers end in the midst of everything."""
    monkeypatch.setattr(stream_sources, "READ_CELLS", 8)
    monkeypatch.setattr(stream_module, "READ_CELLS", 8)
    monkeypatch.setattr(stream_module, "GATHERED", 5)


def write_parquet(path, cells, rows=20, **columns):
    lists = pa.array(cells, pa.list_(pa.int32()))
    parquet.write_table(pa.table({"input_ids": lists, **columns}), path, row_group_size=rows)
    return path


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """The same cells in every form: name → what makes the source, and its vocabulary where it needs one."""
    folder = tmp_path_factory.mktemp("cells")
    two = [write_parquet(folder / "a.parquet", CELLS[:41]), write_parquet(folder / "b.parquet", CELLS[41:], 7)]
    (folder / "parts").mkdir()
    for k, part in enumerate((CELLS[:60], CELLS[60:])):
        write_parquet(folder / "parts" / f"{k}.parquet", part)
    write_corpus(make_corpus(CELLS), folder / "cells.dataset", chunk_cells=30)
    write_corpus(make_corpus(CELLS), folder / "cells.npz")
    dataset_of(CELLS).shuffle(seed=1).select(range(50)).save_to_disk(str(folder / "some"))
    dataset_of(CELLS).shuffle(seed=1).select(range(50, 103)).to_parquet(folder / "rest.parquet", batch_size=20)
    return {
        "parquet": lambda: write_parquet(folder / "one.parquet", CELLS),
        "two files": lambda: two,
        "folder of parquet": lambda: folder / "parts",
        "datasets folder": lambda: folder / "cells.dataset",
        "npz": lambda: str(folder / "cells.npz"),
        "folder and file": lambda: [folder / "some", folder / "rest.parquet"],
        "list": lambda: CELLS,
        "function": lambda: lambda: iter([{"input_ids": np.array(cell, np.uint16)} for cell in CELLS]),
        "datasets": lambda: dataset_of(CELLS).to_iterable_dataset(num_shards=3),
    }


SOURCES = ("parquet", "two files", "folder of parquet", "datasets folder", "npz", "folder and file", "list",
           "function", "datasets")  # fmt: skip


def lists_of(stream):
    return [row["input_ids"].tolist() for row in stream]


def loaded(stream, batch_size=4, **options):
    """Batches that a DataLoader hands out, each a list of cells."""
    return [[row["input_ids"].tolist() for row in batch]
            for batch in DataLoader(stream, batch_size, collate_fn=Plain(), **options)]  # fmt: skip


class Plain:
    """A collator that workers can send back: cells as arrays."""

    def __call__(self, rows):
        return [{"input_ids": np.array(row["input_ids"])} for row in rows]


def masks_of(batches):
    """Cell → its masked row and labels, without padding."""
    found = {}
    for batch in batches:
        for row, seen in enumerate(batch["attention_mask"] == 1):
            ids, labels = batch["input_ids"][row][seen], batch["labels"][row][seen]
            found[tuple(torch.where(labels == -100, ids, labels).tolist())] = ids.tolist(), labels.tolist()
    return found


# --------------------------------------------------------------------------------------------- every cell, in order


@pytest.mark.parametrize("name", SOURCES)
def test_cells_come_as_those_of_the_corpus(sources, name):
    stream = stream_corpus(sources[name](), V1)
    assert isinstance(stream, CorpusStream)
    passing = name in {"function", "datasets"}
    expected = CELLS if passing else lists_of(CorpusDataset(read_corpus(sources[name](), V1))[:])
    assert lists_of(stream) == expected
    assert lists_of(stream) == expected  # each pass anew
    assert sorted(expected) == sorted(CELLS)
    assert stream.n_cells == (None if passing else 103)


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("buffer", [0, 16])
@pytest.mark.parametrize(("ranks", "workers"), [(1, 2), (2, 2), (3, 1), (2, 0)])
def test_ranks_and_workers_read_each_cell_once(sources, name, buffer, ranks, workers):
    found = []
    for rank in range(ranks):
        stream = stream_corpus(sources[name](), V1, shuffle_buffer=buffer, rank=rank, world_size=ranks)
        share = list(chain(*loaded(stream, num_workers=workers)))
        assert 103 // ranks <= len(share) <= -(-103 // ranks)
        found += share
    assert sorted(found) == sorted(CELLS)


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("ranks", [2, 5])
def test_drop_last_makes_ranks_alike(sources, name, ranks):
    streams = [stream_corpus(sources[name](), V1, rank=rank, world_size=ranks, drop_last=True) for rank in range(ranks)]
    shares = [lists_of(stream) for stream in streams]
    assert {len(share) for share in shares} == {103 // ranks}
    everything = lists_of(stream_corpus(sources[name](), V1))
    assert sorted(chain(*shares)) == sorted(everything[: 103 - 103 % ranks])


@pytest.mark.parametrize("workers", [1, 3])
def test_drop_last_gives_all_ranks_as_many_batches(workers):
    for n_cells in (0, 5, 40, 103):
        shares = [
            [Share(rank, 4, worker, workers, True).between(n_cells) for worker in range(workers)] for rank in range(4)
        ]
        assert len({sum(-(-(end - begin) // 4) for begin, end in rank) for rank in shares}) == 1


def test_a_row_group_is_decoded_in_bounded_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(stream_sources, "READ_CELLS", 256)
    monkeypatch.setattr(stream_module, "READ_CELLS", 256)
    cells = np.random.default_rng(0).permuted(np.tile(np.arange(4, 300, dtype=np.int32), (32_000, 1)), axis=1)[:, :250]
    path = write_parquet(tmp_path / "cells.parquet", list(cells), rows=32_000)  # 32 MB, compressed 9 MB
    before, most = pa.total_allocated_bytes(), 0
    for _ in stream_corpus(path, V1):
        most = max(most, pa.total_allocated_bytes() - before)
    assert most < 4_000_000


def test_shares_of_few_cells():
    """More ranks and workers than cells: some have none."""
    found = []
    for rank in range(3):
        found += chain(*loaded(stream_corpus([[4], [5]], V1, rank=rank, world_size=3), num_workers=2))
    assert sorted(found) == [[4], [5]]
    assert lists_of(stream_corpus([], V1)) == []
    assert not any(lists_of(stream_corpus([[4]] * 3, V1, rank=k, world_size=4, drop_last=True)) for k in range(4))


def test_a_stream_takes_its_place_from_torch_distributed(monkeypatch):
    stream = stream_corpus(CELLS, V1)
    for name, value in (("is_initialized", True), ("get_rank", 1), ("get_world_size", 4)):
        monkeypatch.setattr(torch.distributed, name, lambda value=value: value)
    assert lists_of(stream) == CELLS[1::4]
    sent = pickle.dumps(stream)  # as for a worker that is started anew: it has no process group
    assert lists_of(stream_corpus(CELLS, V1, world_size=1)) == CELLS
    monkeypatch.undo()
    assert lists_of(pickle.loads(sent)) == CELLS[1::4]


# -------------------------------------------------------------------------------------------------------- shuffling


@pytest.mark.parametrize("name", ["parquet", "datasets folder", "function"])
def test_the_order_is_that_of_seed_and_epoch(sources, name):
    stream = stream_corpus(sources[name](), V1, shuffle_buffer=40, seed=3)
    first = lists_of(stream)
    assert first == lists_of(stream)
    assert sorted(first) == sorted(CELLS)
    stream.set_epoch(1)
    second = lists_of(stream)
    other = lists_of(stream_corpus(sources[name](), V1, shuffle_buffer=40, seed=4))
    assert len({str(order) for order in (CELLS, first, second, other)}) == 4
    stream.set_epoch(0)
    assert lists_of(stream) == first


def test_a_window_holds_cells_of_row_groups_from_everywhere(tmp_path):
    path = write_parquet(tmp_path / "cells.parquet", [[4 + i] for i in range(200)], rows=10)
    places = np.array(lists_of(stream_corpus(path, V1, shuffle_buffer=40))).ravel() - 4
    assert np.ptp(places[:40]) > 80  # in order, a window would span 40
    assert sorted(places) == list(range(200))
    assert len(set(places[:40] // 10)) == 4  # whole row groups: each is decoded once


def test_persistent_workers_see_the_epoch():
    stream = stream_corpus(CELLS, V1, shuffle_buffer=30)
    loader = DataLoader(stream, 4, num_workers=2, persistent_workers=True, collate_fn=Plain())
    passes = []
    for epoch in (0, 1, 0):
        stream.set_epoch(epoch)
        passes.append([row["input_ids"].tolist() for batch in loader for row in batch])
    assert passes[0] == passes[2] != passes[1]
    assert sorted(passes[0]) == sorted(passes[1]) == sorted(CELLS)


# ------------------------------------------------------------------------------------------------------------ masks


@pytest.mark.parametrize("name", ["two files", "datasets folder", "datasets"])
@pytest.mark.parametrize("options", [{}, {"num_workers": 2}])
def test_masks_are_those_of_the_cells_on_disk(sources, name, options):
    collator = DataCollatorForCorrMask(MASKER)
    for epoch in (0, 3):
        collator.set_epoch(epoch)
        expected = masks_of(DataLoader(CorpusDataset(read_corpus(CELLS, V1)), 10, collate_fn=collator))
        batches = []
        for rank in range(2):
            stream = stream_corpus(sources[name](), V1, shuffle_buffer=24, rank=rank, world_size=2)
            batches += DataLoader(stream, 7, collate_fn=collator, **options)
        assert masks_of(batches) == expected


def test_special_tokens_of_v2_come_back_and_cells_are_cut(tmp_path):
    write_corpus(make_corpus(CELLS, V2), tmp_path / "cells.dataset")
    for length in (None, 6):
        dataset = CorpusDataset(read_corpus(tmp_path / "cells.dataset", max_length=length))
        stream = stream_corpus(tmp_path / "cells.dataset", max_length=length)
        assert lists_of(stream) == lists_of(dataset[:])


def test_rows_of_batches_are_joined_without_a_copy_where_they_can(sources):
    rows = list(stream_corpus(CELLS, V1))
    batch = as_cells(rows[1:4])  # of one gather
    assert isinstance(batch, RaggedBatch)
    assert np.shares_memory(batch.tokens, rows[0].batch.tokens)
    for chosen in (rows[3:17], rows[8:2:-1], [rows[2], rows[2]], rows[:5]):
        batch = as_cells(chosen)
        assert isinstance(batch, RaggedBatch)
        assert batch.vocabulary is V1
        assert lists_of(batch) == lists_of(chosen)
    assert not isinstance(as_cells([rows[0], {"input_ids": [4]}]), RaggedBatch)
    other = list(stream_corpus(CELLS, V2))
    assert not isinstance(as_cells([rows[0], other[0]]), RaggedBatch)


@pytest.mark.parametrize("form", ["parquet", "folder", "rows"])
@pytest.mark.parametrize("buffer", [0, 16])
def test_columns_travel_along(tmp_path, form, buffer):
    tissue = [f"tissue {i % 3}" for i in range(103)]
    write_corpus(make_corpus(CELLS, tissue=np.array(tissue)), tmp_path / "cells.dataset")
    source = {
        "parquet": write_parquet(tmp_path / "cells.parquet", CELLS, tissue=tissue),
        "folder": tmp_path / "cells.dataset",
        "rows": [{"input_ids": cell, "tissue": name} for cell, name in zip(CELLS, tissue, strict=True)],
    }[form]
    stream = stream_corpus(source, V1, columns=("tissue",), shuffle_buffer=buffer)
    found = [(row["input_ids"].tolist(), row["tissue"]) for row in stream]
    assert sorted(found) == sorted(zip(CELLS, tissue, strict=True))
    batch = as_cells(list(stream)[3:20])
    assert batch.columns["tissue"].tolist() == [name for _, name in found[3:20]]
    with pytest.raises(InputError, match="'donor'"):
        list(stream_corpus(source, V1, columns=("donor",)))


# ---------------------------------------------------------------------------------------------------------- resuming


@pytest.mark.parametrize("name", ["two files", "datasets folder", "function", "datasets"])
@pytest.mark.parametrize("buffer", [0, 16])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_pass_goes_on_after_any_batch(sources, name, buffer, workers):
    options = {"rank": 1, "world_size": 2, "shuffle_buffer": buffer}
    stream = stream_corpus(sources[name](), V1, **options)
    stream.set_epoch(2)
    whole = loaded(stream, num_workers=workers)
    for n in (1, 6) if workers else (0, 1, 2, 5, len(whole) - 1, len(whole)):
        resumed = stream_corpus(sources[name](), V1, **options)
        resumed.set_epoch(2)
        resumed.skip(n, 4, workers)
        loader = DataLoader(resumed, 4, collate_fn=Plain(), num_workers=workers, persistent_workers=workers > 0)
        passes = [[[row["input_ids"].tolist() for row in batch] for batch in loader] for _ in range(2)]
        assert passes[0] == whole[n:], n
        assert passes[1] == whole  # the next pass is whole again


@pytest.mark.parametrize("name", ["parquet", "datasets"])
@pytest.mark.parametrize("buffer", [0, 16])
def test_the_state_of_a_stream_without_workers(sources, name, buffer):
    def make():
        return stream_corpus(sources[name](), V1, shuffle_buffer=buffer, seed=2)

    stream = make()
    stream.set_epoch(4)
    whole = lists_of(stream)
    for n in (0, 1, 16, 50, 103):
        rows = iter(stream)
        for _ in range(n):
            next(rows)
        state = stream.state_dict()
        resumed = make()
        resumed.load_state_dict(pickle.loads(pickle.dumps(state)))
        assert resumed.state_dict() == state
        assert lists_of(resumed) == whole[n:]
        assert lists_of(resumed) == whole
    stream.set_epoch(5)  # between two passes, nothing of the next one was read
    assert stream.state_dict()["cells"] == 0


def test_states_of_other_streams_are_refused():
    state = stream_corpus(CELLS, V1, shuffle_buffer=8).state_dict()
    other = stream_corpus(CELLS, V1, shuffle_buffer=9)
    other.load_state_dict(state)
    with pytest.raises(InputError, match="shuffle_buffer was 8 and is 9 now"):
        iter(other)
    stream = stream_corpus(CELLS, V1)
    stream.skip(2, 4, 3)
    with pytest.raises(InputError, match="skip was given num_workers=3, and the DataLoader has 2"):
        loaded(stream, num_workers=2)


def test_a_stateful_loader_resumes(sources):
    stateful = pytest.importorskip("torchdata.stateful_dataloader")
    for workers in (0, 2):

        def make(workers=workers):
            stream = stream_corpus(sources["two files"](), V1, shuffle_buffer=16)
            return stateful.StatefulDataLoader(stream, 4, collate_fn=Plain(), num_workers=workers)

        whole = [[row["input_ids"].tolist() for row in batch] for batch in make()]
        for n in (1, 4, 11):
            loader = make()
            batches = iter(loader)
            for _ in range(n):
                next(batches)
            state, resumed = loader.state_dict(), make()
            resumed.load_state_dict(state)
            assert [[row["input_ids"].tolist() for row in batch] for batch in resumed] == whole[n:]


def test_copies_and_pickles_are_streams_of_their_own():
    stream = stream_corpus(CELLS, V1, shuffle_buffer=16)
    for other in (copy.deepcopy(stream), pickle.loads(pickle.dumps(stream))):
        before = lists_of(other)
        other.set_epoch(3)
        assert lists_of(stream) == before != lists_of(other)


# ------------------------------------------------------------------------------------------------- graphs of streams


@pytest.mark.parametrize("name", ["two files", "datasets folder", "function"])
@pytest.mark.parametrize("n_cells", [1, 30, 102, 103, 500])
@pytest.mark.parametrize("seed", [0, 7])
def test_a_sample_is_that_of_the_cells_on_disk(sources, name, n_cells, seed):
    corpus = read_corpus(CELLS, V1)
    sample = stream_corpus(sources[name](), V1).sample(n_cells, seed)
    expected = corpus.take(corpus.sample_rows(n_cells, seed))
    assert np.array_equal(sample.indptr, expected.indptr)
    assert np.array_equal(sample.tokens, expected.tokens)
    assert sample.in_memory
    assert sample.max_length == corpus.max_length


def test_a_graph_of_a_stream_is_that_of_the_cells_on_disk(tmp_path):
    rng = np.random.default_rng(0)
    modules = rng.permutation(np.arange(4, 104)).reshape(10, 10)
    cells = [np.concatenate([rng.permutation(modules[k])[:8] for k in rng.permutation(10)[:4]]) for _ in range(400)]
    path = write_parquet(tmp_path / "cells.parquet", cells, rows=64)
    options = {"n_cells": 300, "seed": 5, "min_cooccurrence": 5, "min_presence": 5, "progress": False}
    corpus = read_corpus(path, V1)
    expected = build_dependency_graph(corpus, checkpoint=tmp_path / "checkpoint", **options)
    assert expected.indices.size > 50
    graph = build_dependency_graph(stream_corpus(path, V1), **options)
    expected.save(tmp_path / "expected.safetensors")
    graph.save(tmp_path / "graph.safetensors")
    assert (tmp_path / "graph.safetensors").read_bytes() == (tmp_path / "expected.safetensors").read_bytes()
    # The checkpoint of the cells on disk fits: it knows its cells by a fingerprint.
    again = build_dependency_graph(stream_corpus(path, V1), checkpoint=tmp_path / "checkpoint", **options)
    assert np.array_equal(again.rho, expected.rho)
    other = build_dependency_graph(stream_corpus(path, V1), **options | {"seed": 6})
    assert not np.array_equal(other.rho, expected.rho)


def test_streams_that_give_no_graph():
    for options, message in (
        ({"shuffle_buffer": 10}, r"this stream is shuffled \(shuffle_buffer=10\); make one without it"),
        ({"rank": 0, "world_size": 2}, "this stream has world_size=2; make one without it"),
    ):
        with pytest.raises(InputError, match=message):
            build_dependency_graph(stream_corpus(CELLS, V1, **options), progress=False)
    with pytest.raises(InputError, match="sampled in bounded memory; give n_cells"):
        build_dependency_graph(stream_corpus(CELLS, V1), n_cells=None, progress=False)
    with pytest.raises(InputError, match="the corpus has no cells"):
        build_dependency_graph(stream_corpus([], V1), progress=False)


def test_a_sample_holds_few_cells(monkeypatch):
    """Of ten thousand cells that pass, few are read, and some more than those that are sampled are held."""
    read, held = 0, []
    segment, first_by_key = stream_module.Segment, stream_module.first_by_key

    def reading(indptr, tokens):
        nonlocal read
        read += indptr.size - 1
        return segment(indptr, tokens)

    def thinning(keys, n):
        held.append(keys.size)
        return first_by_key(keys, n)

    stream = stream_corpus(lambda: ([4 + i % 250] for i in range(10_000)), V1)
    monkeypatch.setattr(stream_module, "Segment", reading)
    monkeypatch.setattr(stream_module, "first_by_key", thinning)
    assert stream.sample(100).n_cells == 100
    assert 100 < read < 1000  # 100 · (1.25 + ln(10 000 / 125)) = 560 on average
    assert 125 < max(held) <= 125 + 8


# -------------------------------------------------------------------------------------------------------- bad input


def test_streams_that_end_early_or_late():
    for cells in (CELLS[:100], [*CELLS, [4]]):
        with pytest.raises(InputError, match=rf"the stream ended after {len(cells)} cells, and n_cells says 103"):
            list(stream_corpus(lambda cells=cells: iter(cells), V1, n_cells=103))


def test_files_that_end_early(sources, tmp_path):
    with pytest.raises(InputError, match="the files hold 103 cells, and n_cells says 104"):
        stream_corpus(sources["two files"](), V1, n_cells=104)
    path = write_parquet(tmp_path / "cells.parquet", CELLS)
    stream = stream_corpus(path, V1)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=r"cells\.parquet is not a readable Parquet file"):
        list(stream)
    with pytest.raises(InputError, match=r"cells\.parquet is not a readable Parquet file"):
        stream_corpus(path, V1)
    for place in range(4, 400, 40):  # damaged pages: an error of ours, or cells that came to nothing
        damaged = bytearray(content)
        damaged[place : place + 8] = b"\xff" * 8
        path.write_bytes(damaged)
        with suppress(InputError):
            list(stream)


BAD = [
    ([[4], "cell"], "cell 1 must be a list of integer token ids"),
    ([[4], [5.5]], "cell 1 must be a list of integer token ids; got 1-d float64"),
    ([*CELLS[:40], [4, 999], [5]], "cell 40 holds token 999, outside the vocabulary of 302 tokens"),
    ([{"input_ids": [4], "a": 1}, {"input_ids": [4]}], "cell 1 has the columns input_ids, and those before it input_i"),
    ([*({"input_ids": [4]} for _ in range(20)), {"tokens": [4]}], "cell 20 has no 'input_ids'; it has tokens"),
    (lambda: 5, "the stream's function must return an iterator of cells; it returned 5"),
]  # fmt: skip


@pytest.mark.parametrize(("cells", "message"), BAD, ids=range(len(BAD)))
def test_cells_that_are_none(cells, message):
    with pytest.raises(InputError) as error:
        list(stream_corpus(cells, V1))
    assert message in str(error.value)


@pytest.mark.parametrize("buffer", [0, 16])
def test_an_unknown_token_is_named_by_its_cell(tmp_path, buffer):
    cells = [*CELLS[:90], [4, 999], *CELLS[90:]]
    path = write_parquet(tmp_path / "cells.parquet", cells)
    for source in (path, cells, dataset_of(cells).to_iterable_dataset()):
        ranks = [stream_corpus(source, V1, shuffle_buffer=buffer, rank=rank, world_size=2) for rank in range(2)]
        with pytest.raises(InputError, match="cell 90 holds token 999"):
            list(chain(*ranks))


def test_sources_that_are_none(tmp_path):
    with pytest.raises(InputError, match="no corpus at"):
        stream_corpus(tmp_path / "nothing")
    with pytest.raises(InputError, match="a stream carries no vocabulary"):
        stream_corpus(CELLS)
    with pytest.raises(InputError, match="a stream's source must be paths, an iterable"):
        stream_corpus(5, V1)
    parquet.write_table(pa.table({"tokens": [[4]]}), tmp_path / "other.parquet")
    with pytest.raises(InputError, match="must have a column 'input_ids'; it has tokens"):
        stream_corpus(tmp_path / "other.parquet", V1)
    one = write_parquet(tmp_path / "one.parquet", [[4]], a=[1])
    two = write_parquet(tmp_path / "two.parquet", [[4]], a=["x"])
    with pytest.raises(InputError, match="the files of a corpus must have the same columns; 'a' is int64 in"):
        stream_corpus([one, two], V1, columns=("a",))
    assert len(list(stream_corpus([one, two], V1))) == 2  # which it does not read
    with pytest.raises(InputError, match="no vocabulary is stored with"):
        stream_corpus(one)
    with pytest.raises(InputError, match="rank and world_size go together"):
        stream_corpus(CELLS, V1, rank=1)
    with pytest.raises(InputError, match=r"rank must be an integer in \[0, 1\]; got 2"):
        stream_corpus(CELLS, V1, rank=2, world_size=2)


def test_an_iterator_passes_once():
    stream = stream_corpus(iter(CELLS), V1)
    assert lists_of(stream) == CELLS
    with pytest.raises(InputError, match="an iterator, which can be passed over once, in one process; give a function"):
        list(stream)
    with pytest.raises(InputError, match="an iterator, which can be passed over once"):
        loaded(stream_corpus(iter(CELLS), V1), num_workers=2)


def test_a_stream_warns_once_of_genes_that_stand_twice(sources):
    cells = [*CELLS[:50], [4, 5, 4], *CELLS[50:], [7, 7]]
    stream = stream_corpus(cells, V1)
    with pytest.warns(UserWarning, match=r"1 gene stood twice in its cell: gene .* \(token 4\) in cell 50") as caught:
        assert lists_of(stream)[50] == [4, 5]
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        list(stream)


def test_files_of_several_vocabularies(tmp_path):
    write_corpus(make_corpus([[4]]), tmp_path / "one")
    write_corpus(make_corpus([[4]], Vocabulary(("<pad>", "<mask>", *map(str, range(300))))), tmp_path / "two")
    for reader in (read_corpus, stream_corpus):
        with pytest.raises(InputError, match=r"one and the corpus .*two have different vocabularies"):
            reader([tmp_path / "one", tmp_path / "two"])


# ------------------------------------------------------------------------------------------- a writer of what passes


@pytest.mark.parametrize("name", ["cells.dataset", "cells.npz"])
@pytest.mark.parametrize("vocabulary", [V1, V2], ids=["V1", "V2"])
def test_a_writer_takes_what_passes(tmp_path, name, vocabulary):
    rows = ({"input_ids": [*cell, 1], "depth": i / 7, "length": 9} for i, cell in enumerate(CELLS))
    with CorpusWriter(tmp_path / name, vocabulary) as writer:
        writer.write_cells(rows, chunk_cells=10)
    corpus = read_corpus(tmp_path / name)
    expected = read_corpus(CELLS, vocabulary)
    assert np.array_equal(corpus.tokens, expected.tokens)
    assert np.array_equal(corpus.indptr, expected.indptr)
    assert list(corpus.obs) == ["depth"]
    assert corpus.obs["depth"].tolist() == [i / 7 for i in range(103)]
    other = tmp_path / f"short-{name}"
    with CorpusWriter(other, vocabulary) as writer:
        writer.write_cells(dataset_of(CELLS).to_iterable_dataset(), max_length=3)
    assert read_corpus(other).indptr.tolist() == np.cumsum([0, *(min(len(cell), 3) for cell in CELLS)]).tolist()


@pytest.mark.parametrize("name", ["cells.dataset", "cells.npz"])
def test_cells_that_turn_out_bad_leave_nothing(tmp_path, name):
    def failing():
        yield from CELLS
        raise RuntimeError("the disk of another")

    def check(cells, message, error=InputError):
        with pytest.raises(error, match=message), CorpusWriter(tmp_path / name, V1) as writer:
            writer.write_cells(cells, chunk_cells=10)
        assert list(tmp_path.iterdir()) == []

    check(failing(), "the disk of another", RuntimeError)
    check([*CELLS[:33], [999]], "cell 33 holds token 999, outside the vocabulary")
    check([*CELLS[:33], ["a"]], "cell 33 must be a list of integer token ids")
    check([*({"input_ids": [4]} for _ in range(33)), {"input_ids": [4], "a": 1}], "cell 33 has the columns")


def test_a_writer_warns_once(tmp_path):
    with pytest.warns(UserWarning, match=r"gene stood twice .* in cell 15") as caught:  # noqa: SIM117
        with CorpusWriter(tmp_path / "cells.npz", V1) as writer:
            writer.write_cells([*CELLS[:15], [4, 4], *CELLS, [5, 5]], chunk_cells=10)
    assert len(caught) == 1
    assert read_corpus(tmp_path / "cells.npz").take(np.array([15])).tokens.tolist() == [4]
