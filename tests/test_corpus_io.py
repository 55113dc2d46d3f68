"""Corpora on disk: datasets folders as Geneformer and others write them, archives, lists; whole or not at all."""

from __future__ import annotations

import pickle
import zipfile

import numpy as np
import pytest
from corpus_cases import TYPES, V1, V2, cells_of, dataset_of, make_cells, make_corpus

from corrmask_fast import InputError, Vocabulary, read_corpus, write_corpus

datasets = pytest.importorskip("datasets")


# --------------------------------------------------------------------------------------------------- there and back


@pytest.mark.parametrize("name", ["cells.dataset", "cells.npz"])
@pytest.mark.parametrize("vocabulary", [V1, V2], ids=["V1", "V2"])
@pytest.mark.parametrize("chunk_cells", [1, 7, 1000])
def test_what_is_written_is_read(tmp_path, name, vocabulary, chunk_cells):
    cells = make_cells()
    kinds = np.array([TYPES[i % 3] for i in range(50)])
    corpus = make_corpus(cells, vocabulary, cell_type=kinds, depth=np.arange(50) / 7, batch=np.arange(50))
    write_corpus(corpus, tmp_path / name, chunk_cells=chunk_cells)
    again = read_corpus(tmp_path / name)
    assert cells_of(again) == cells
    assert again.vocabulary.fingerprint == vocabulary.fingerprint
    assert set(again.obs) == {"cell_type", "depth", "batch"}
    assert again.obs["cell_type"].tolist() == kinds.tolist()
    assert again.obs["depth"].tolist() == (np.arange(50) / 7).tolist()
    assert again.obs["batch"].tolist() == list(range(50))
    assert list(tmp_path.iterdir()) == [tmp_path / name]


@pytest.mark.parametrize("name", ["none.dataset", "none.npz"])
def test_no_cells_are_a_corpus_too(tmp_path, name):
    for cells in ([], [[], []]):
        path = tmp_path / f"{len(cells)}-{name}"
        write_corpus(make_corpus(cells), path)
        assert cells_of(read_corpus(path)) == cells


def test_folders_hold_what_geneformer_writes(tmp_path):
    """input_ids with <cls> and <eos> (V2), length; and Hugging Face's own reader takes them."""
    cells = make_cells(10)
    write_corpus(make_corpus(cells, V2), tmp_path / "cells.dataset")
    stored = datasets.load_from_disk(str(tmp_path / "cells.dataset"))
    assert stored["input_ids"][:] == [[2, *cell, 3] for cell in cells]
    assert stored["length"][:] == [len(cell) + 2 for cell in cells]
    assert set(stored.column_names) == {"input_ids", "length"}
    write_corpus(make_corpus(cells, V1), tmp_path / "v1.dataset")
    assert datasets.load_from_disk(str(tmp_path / "v1.dataset"))["input_ids"][:] == cells


def test_obs_values_that_are_missing_stay_missing(tmp_path):
    kinds = np.array([None, None, "B", None], object)
    corpus = make_corpus([[4], [5], [6], [7]], cell_type=kinds)
    write_corpus(corpus, tmp_path / "cells.dataset", chunk_cells=1)  # the first chunks hold no value at all
    assert read_corpus(tmp_path / "cells.dataset").obs["cell_type"].tolist() == [None, None, "B", None]


# ------------------------------------------------------------------------------------- folders that others wrote


@pytest.mark.parametrize("dtype", ["int64", "int32", "uint16", "int16"])
def test_any_integer_column(tmp_path, dtype):
    cells = make_cells()
    dataset_of(cells, dtype, cell_type=[TYPES[i % 3] for i in range(50)]).save_to_disk(str(tmp_path / "cells"))
    corpus = read_corpus(tmp_path / "cells", V1)
    assert not corpus.in_memory
    assert cells_of(corpus) == cells
    assert list(corpus.obs) == ["cell_type"]
    assert corpus.obs["cell_type"].tolist() == [TYPES[i % 3] for i in range(50)]
    with pytest.raises(KeyError):
        corpus.obs["input_ids"]


def test_special_tokens_in_a_folder_are_stripped(tmp_path):
    dataset_of([[2, 9, 8, 3], [2, 3, 0, 0]], "int32").save_to_disk(str(tmp_path / "cells"))
    corpus = read_corpus(tmp_path / "cells", V2)
    assert cells_of(corpus) == [[9, 8], []]
    assert corpus.lengths.tolist() == [4, 4]


def test_shuffled_filtered_joined_and_sliced_datasets(tmp_path):
    cells = make_cells()
    whole = dataset_of(cells)
    whole.save_to_disk(str(tmp_path / "cells"), num_shards=3)
    stored = datasets.load_from_disk(str(tmp_path / "cells"))
    views = {
        "stored": stored,
        "shuffled": stored.shuffle(seed=3),
        "filtered": stored.filter(lambda row: row["length"] > 10),
        "slice": stored.select(range(11, 33)),
        "select": stored.select([4, 4, 49, 0]),
        "joined": datasets.concatenate_datasets([stored.select(range(5)), whole.shuffle(seed=1)]),
        "shard": stored.shard(4, 1),
        "none": stored.select([]),
        "formatted": stored.with_format("torch"),
        "renamed": stored.rename_column("length", "input_length"),
    }
    for name, view in views.items():
        corpus = read_corpus(view, V1)
        assert cells_of(corpus) == view.with_format(None)["input_ids"][:], name
        obs = corpus.obs.get("input_length")
        assert obs is None or obs.tolist() == [len(cell) for cell in cells]
    views["shuffled"].save_to_disk(str(tmp_path / "shuffled"))
    assert cells_of(read_corpus(tmp_path / "shuffled", V1)) == views["shuffled"]["input_ids"][:]


def test_obs_of_a_folder_travel_and_are_read_when_asked_for(tmp_path):
    cells = make_cells()
    kinds = [TYPES[i % 3] for i in range(50)]
    dataset_of(cells, cell_type=kinds, depth=list(map(str, range(50)))).save_to_disk(str(tmp_path / "cells"))
    stored = datasets.load_from_disk(str(tmp_path / "cells"))
    for name, view in {
        "stored": stored,
        "shuffled": stored.shuffle(seed=3),
        "slice": stored.select(range(9, 40)),
    }.items():
        corpus = read_corpus(view, V1)
        rows = np.array([30, 2, 2, 7])
        for part in (corpus.take(rows), corpus.select(rows), corpus.select(np.arange(31)[::-1]).take(30 - rows)):
            assert part.obs["cell_type"].tolist() == [view[int(i)]["cell_type"] for i in rows], name
            assert part.obs["depth"].tolist() == [view[int(i)]["depth"] for i in rows], name
            assert cells_of(part) == [view[int(i)]["input_ids"] for i in rows], name
        depths = [depth for chunk in corpus.chunks(8) for depth in chunk.obs["depth"].tolist()]
        assert depths == view["depth"][:], name
    write_corpus(read_corpus(stored, V1).select(np.array([3, 4])), tmp_path / "two.npz")
    assert read_corpus(tmp_path / "two.npz").obs["depth"].tolist() == ["3", "4"]


def test_a_folder_is_mapped_not_copied(tmp_path):
    """Neither opening a folder nor sending its corpus to a worker carries the tokens."""
    cells = make_cells(400, most=290)
    write_corpus(make_corpus(cells), tmp_path / "cells.dataset")
    corpus = read_corpus(tmp_path / "cells.dataset")
    assert not corpus.in_memory
    sent = pickle.dumps(corpus)
    stored = sum(file.stat().st_size for file in (tmp_path / "cells.dataset").iterdir())
    assert len(sent) < 0.3 * stored
    again = pickle.loads(sent)
    assert cells_of(again) == cells
    assert again.vocabulary.names == corpus.vocabulary.names
    part = read_corpus(datasets.load_from_disk(str(tmp_path / "cells.dataset")).select([5, 3]), V1, max_length=4)
    assert cells_of(pickle.loads(pickle.dumps(part))) == [cells[5][:4], cells[3][:4]]


def test_of_selected_cells_only_their_numbers_go_to_a_worker(tmp_path):
    cells = make_cells(400, most=290)
    write_corpus(make_corpus(cells, donor=np.arange(400)), tmp_path / "cells.dataset")
    write_corpus(make_corpus(cells), tmp_path / "cells.npz")
    mapped, rows = read_corpus(tmp_path / "cells.dataset"), np.array([7, 3, 3, 99])
    in_memory = [read_corpus(tmp_path / "cells.npz"), read_corpus(dataset_of(cells), V1)]
    for corpus in (mapped, mapped.select(np.arange(399, -1, -1)).select(399 - np.arange(400)), *in_memory):
        sent = pickle.dumps(corpus.select(rows))
        assert len(sent) < 20_000
        again = pickle.loads(sent)
        assert cells_of(again) == [cells[i] for i in rows]
        assert "donor" not in again.obs or again.obs["donor"].tolist() == rows.tolist()


@pytest.mark.parametrize("name", ["cells.dataset", "cells.npz"])
def test_the_vocabulary_given_must_agree_with_the_stored_one_and_may_bring_symbols(tmp_path, name):
    path = tmp_path / name
    write_corpus(make_corpus([[4, 5]]), path)
    with pytest.raises(InputError, match=rf"the vocabulary given and the corpus .*{name} have different vocabularies"):
        read_corpus(path, Vocabulary(tuple(gene.replace("G", "H") for gene in V1.names)))
    with_symbols = Vocabulary(V1.names, {"G3": "RPL3"})
    assert read_corpus(path, with_symbols).vocabulary is with_symbols
    other = tmp_path / f"more-{name}"
    write_corpus(read_corpus(path, with_symbols), other)
    assert read_corpus(other, V1).vocabulary.symbols == {"G3": "RPL3"}


def test_counts_are_no_corpus_yet(tmp_path):
    with pytest.raises(InputError, match=r"cells\.h5ad is an \.h5ad of counts: run `corrmask-fast tokenize` first"):
        read_corpus(tmp_path / "cells.h5ad", V1)


def test_max_length(tmp_path):
    cells = make_cells()
    for name in ("cells.dataset", "cells.npz"):
        write_corpus(make_corpus(cells), tmp_path / name)
        assert cells_of(read_corpus(tmp_path / name, max_length=5)) == [cell[:5] for cell in cells]


# ------------------------------------------------------------------------------------------------ lists and arrays


def test_cells_in_memory():
    cells = make_cells(5)
    for form in (cells, tuple(cells), [np.array(cell, np.uint16) for cell in cells], iter(cells)):
        assert cells_of(read_corpus(form, V1)) == cells
    assert read_corpus([], V1).n_cells == 0
    assert cells_of(read_corpus([[], np.empty(0), [5]], V1)) == [[], [], [5]]


BAD_CELLS = [
    ([[4, 5], 7], "cell 1 must be a list of integer token ids; got 0-d int64"),
    ([[4, 5], [4.0]], "cell 1 must be a list of integer token ids; got 1-d float64"),
    ([["G1"]], "cell 0 must be a list of integer token ids"),
    ([[[4, 5]]], "cell 0 must be a list of integer token ids; got 2-d int64"),
    ([[4, [5]]], "cell 0 must be a list of integer token ids"),
    ([[4], [2**70]], "cell 1 must be a list of integer token ids"),
    ([[4], [5, 999]], "cell 1 holds token 999, outside the vocabulary of 302 tokens"),
    ([[4], np.array([2**63], np.uint64)], "cell 1"),
    (5, "cells must be"),
]


@pytest.mark.parametrize(("cells", "message"), BAD_CELLS, ids=range(len(BAD_CELLS)))
def test_cells_that_are_none(cells, message):
    with pytest.raises(InputError) as error:
        read_corpus(cells, V1)
    assert message in str(error.value)


# --------------------------------------------------------------------------------------------------------- bad files


def test_cells_in_memory_carry_no_vocabulary():
    with pytest.raises(InputError, match="cells in memory carry no vocabulary; give vocabulary="):
        read_corpus([[4]])


def test_folders_and_files_without_a_vocabulary(tmp_path):
    dataset_of([[4]]).save_to_disk(str(tmp_path / "cells"))
    np.savez(tmp_path / "cells.npz", indptr=np.array([0, 1]), tokens=np.array([4]))
    for path in (tmp_path / "cells", tmp_path / "cells.npz"):
        with pytest.raises(InputError, match=r"no vocabulary is stored with .*; give the token dictionary"):
            read_corpus(path)
        assert cells_of(read_corpus(path, V1)) == [[4]]


def test_folders_that_are_no_corpus(tmp_path):
    def check(path, message):
        with pytest.raises(InputError, match=message):
            read_corpus(path, V1)

    check(tmp_path / "nothing", "no corpus at .*nothing: give a datasets folder or an .npz file")
    (tmp_path / "empty").mkdir()
    check(tmp_path / "empty", "is not a readable datasets folder")
    splits = datasets.DatasetDict({"train": dataset_of([[4]]), "test": dataset_of([[5]])})
    splits.save_to_disk(str(tmp_path / "splits"))
    check(tmp_path / "splits", r"holds several splits \(train, test\); give the folder of one of them")
    datasets.Dataset.from_dict({"tokens": [[4]]}).save_to_disk(str(tmp_path / "other"))
    check(tmp_path / "other", "must have a column 'input_ids'; it has tokens")
    for name, column, message in (
        ("flat", [4, 5], r"must hold lists of integers; it holds int\d\d"),
        ("floats", [[4.0], [5.0]], "must hold integers; it holds double"),
        ("text", [["a"]], "must hold integers; it holds string"),
        ("missing", [[4], None], "holds missing values"),
        ("holes", [[4, None], [5]], "holds missing values"),
        ("nested", [[[4]]], "must hold integers; it holds"),
    ):
        datasets.Dataset.from_dict({"input_ids": column}).save_to_disk(str(tmp_path / name))
        check(tmp_path / name, message)


def test_errors_in_a_folder_come_with_the_chunk_and_name_the_cell(tmp_path):
    for name, cells, message in (
        ("unknown", [[4]] * 9 + [[4, 302]], "cell 9 holds token 302, outside the vocabulary"),
        ("negative", [[4]] * 9 + [[4, -1]], "cell 9 holds token -1, outside the vocabulary"),
    ):
        dataset_of(cells).save_to_disk(str(tmp_path / name))
        corpus = read_corpus(tmp_path / name, V1)
        chunks = corpus.chunks(9)
        assert next(chunks).n_cells == 9
        with pytest.raises(InputError, match=message):
            next(chunks)
        with pytest.raises(InputError, match=message):
            _ = corpus.tokens


def test_truncated_folders(tmp_path):
    write_corpus(make_corpus(make_cells(200)), tmp_path / "cells")
    arrow = next((tmp_path / "cells").glob("*.arrow"))
    content = arrow.read_bytes()
    for size in (0, 100, len(content) // 2):
        arrow.write_bytes(content[:size])
        with pytest.raises(InputError, match=r"data-.*\.arrow is cut off or damaged: .*; copy it again"):
            read_corpus(tmp_path / "cells")
    arrow.write_bytes(content)
    (tmp_path / "cells" / "vocabulary.json").write_text("{}")
    with pytest.raises(InputError, match="not a vocabulary written by this project"):
        read_corpus(tmp_path / "cells")


def test_archives_that_are_no_corpus(tmp_path):
    def check(message, path=tmp_path / "cells.npz"):
        with pytest.raises(InputError, match=message):
            read_corpus(path, V1)

    path = tmp_path / "cells.npz"
    for content in (b"", b"PK\x03\x04", b"no archive at all", pickle.dumps([1])):
        path.write_bytes(content)
        check("is not a readable .npz file")
    with path.open("wb") as file:
        np.save(file, np.arange(3))
    check("is not a readable .npz file: no zip archive, or one that is cut off; give a datasets folder or an .npz file")
    np.savez(path, tokens=np.array([4]))
    check("must hold arrays indptr and tokens; it lacks indptr")
    np.savez(path, indptr=np.array([0, 2]), tokens=np.array([4]))
    check("indptr must rise from 0")
    np.savez(path, indptr=np.array([0, 1]), tokens=np.array(["G"]))
    check("tokens must be a one-dimensional integer array")
    np.savez(path, indptr=np.array([0, 1]), tokens=np.array([4], object), allow_pickle=True)
    check("is not a readable .npz file")
    np.savez_compressed(path, indptr=np.arange(5001), tokens=np.tile(np.arange(4, 254), 20))
    content = bytearray(path.read_bytes())
    for place in (len(content) // 2, len(content) // 3, 200):
        damaged = content.copy()
        damaged[place : place + 20] = bytes(20)
        path.write_bytes(damaged)
        check("is not a readable .npz file")
    path.write_bytes(content[:-30])
    check("is not a readable .npz file")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("indptr.npy", b"\x93NUMPY nonsense")
        archive.writestr("tokens.npy", b"")
    check("is not a readable .npz file")


# ---------------------------------------------------------------------------------------------------- lists of files


def test_a_list_of_files_is_one_corpus(tmp_path):
    cells = make_cells()
    kinds = [TYPES[i % 3] for i in range(50)]
    dataset = dataset_of(cells, cell_type=kinds)
    dataset.select(range(20)).to_parquet(tmp_path / "a.parquet")
    dataset.shuffle(seed=1).select(range(10)).save_to_disk(str(tmp_path / "b"))  # with a table of row numbers, or not
    dataset.select(range(20, 50)).save_to_disk(str(tmp_path / "c"))
    arrow = next((tmp_path / "c").glob("*.arrow"))
    some = datasets.load_from_disk(str(tmp_path / "b")).with_format(None)
    expected = [*cells[:20], *some["input_ids"][:], *cells[20:], *cells[20:]]
    types = [*kinds[:20], *some["cell_type"][:], *kinds[20:], *kinds[20:]]
    corpus = read_corpus([tmp_path / "a.parquet", str(tmp_path / "b"), tmp_path / "c", str(arrow)], V1)
    assert cells_of(corpus) == expected
    assert corpus.obs["cell_type"].tolist() == types
    rows = np.array([89, 5, 25])
    part = corpus.select(rows)
    assert cells_of(part) == [expected[i] for i in rows]
    assert part.obs["cell_type"].tolist() == [types[i] for i in rows]
    assert cells_of(pickle.loads(pickle.dumps(corpus))) == expected
    assert cells_of(read_corpus((str(tmp_path / "a.parquet"),), V1, max_length=3)) == [cell[:3] for cell in cells[:20]]


def test_lists_of_files_that_are_no_corpus(tmp_path):
    cells = make_cells(5)
    dataset_of(cells).to_parquet(tmp_path / "a.parquet")
    dataset_of(cells, cell_type=["B"] * 5).to_parquet(tmp_path / "b.parquet")
    write_corpus(make_corpus(cells), tmp_path / "c.npz")
    for paths, message in (
        (["a.parquet", "b.parquet"], r"'cell_type' is missing in .*a\.parquet and string in .*b\.parquet"),
        (["a.parquet", "c.npz"], r"a list of paths takes datasets folders, \.arrow and \.parquet files; got .*c\.npz"),
        (["a.parquet", "d.parquet"], r"no corpus at .*d\.parquet"),
    ):
        with pytest.raises(InputError, match=message):
            read_corpus([tmp_path / name for name in paths], V1)
    with pytest.raises(InputError, match=r"no vocabulary is stored with .*a\.parquet"):
        read_corpus([tmp_path / "a.parquet"])
