"""Damaged files: each raises one clear error that names the file; none crashes or gives other cells."""

from __future__ import annotations

import contextlib
import io
import json
import struct
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from corpus_cases import V1, cells_of, make_cells, make_corpus
from safetensors.numpy import save_file

from corrmask_fast import DependencyGraph, InputError, MultinomialAttentionMasker, PMITable, read_corpus, write_corpus
from corrmask_fast.masking.strategies.mam import KIND as MASKER
from corrmask_fast.tensor_files import GRAPH, METADATA, PMI_TABLE, canonical, hash_tensors

datasets = pytest.importorskip("datasets")
pa = pytest.importorskip("pyarrow")

DEEP = "[" * 100_000


# ------------------------------------------------------------------------------------------------ Arrow offsets


def replace_once(path, old, new):
    content = path.read_bytes()
    assert content.count(old) == 1
    path.write_bytes(content.replace(old, new))


def folder_of(path, column, **others):
    """A datasets folder of one Arrow chunk for each entry of ``column``."""
    path.mkdir()
    tables = [pa.table({"input_ids": part, **{name: parts[i] for name, parts in others.items()}})
              for i, part in enumerate(column)]  # fmt: skip
    file = path / "data-00000-of-00001.arrow"
    with pa.ipc.new_stream(str(file), tables[0].schema) as writer:
        for table in tables:
            writer.write_table(table)
    features = datasets.Features.from_arrow_schema(tables[0].schema)
    datasets.DatasetInfo(features=features).write_to_directory(str(path))
    state = {"_data_files": [{"filename": file.name}], "_fingerprint": "ab", "_format_columns": None,
             "_format_kwargs": {}, "_format_type": None, "_output_all_columns": False, "_split": None}  # fmt: skip
    (path / "state.json").write_text(json.dumps(state))
    return file


OFFSETS = {
    "fall": (0, 5, 3, 6),
    "are negative": (-4, 3, 5, 6),
    "pass the end": (0, 3, 5, 7),
    "pass the end between": (0, 100_000, 5, 6),
    "lie far off": (2**31 - 9, 2**31 - 7, 2**31 - 5, 2**31 - 1),
}


@pytest.mark.parametrize("offsets", OFFSETS.values(), ids=OFFSETS)
@pytest.mark.parametrize("large", [False, True], ids=["list", "large_list"])
@pytest.mark.parametrize("damaged", [0, 1], ids=["first chunk", "second chunk"])
def test_offsets_of_lists(tmp_path, offsets, large, damaged):
    array, dtype = (pa.LargeListArray, "i8") if large else (pa.ListArray, "i4")
    good = [np.array([0, 3, 5, 6], dtype), np.array([0, 2, 5, 6], dtype)]
    chunks = [array.from_arrays(pa.array(one), pa.array([4, 5, 6, 7, 8, 9], pa.int32())) for one in good]
    file = folder_of(tmp_path / "cells", chunks)
    assert cells_of(read_corpus(tmp_path / "cells", V1)) == [[4, 5, 6], [7, 8], [9], [4, 5], [6, 7, 8], [9]]
    replace_once(file, good[damaged].tobytes(), np.array(offsets, dtype).tobytes())
    with pytest.raises(InputError, match="cells is not a readable"):
        read_corpus(tmp_path / "cells", V1)
    with pytest.raises(InputError, match=r"\.arrow is not a readable"):
        read_corpus(file, V1)
    stored = datasets.load_from_disk(str(tmp_path / "cells"))
    with pytest.raises(InputError, match="is not a readable"):
        read_corpus(stored.select([3 * damaged + 2, 3 * damaged + 1, 3 * damaged]), V1)


def test_a_slice_of_damaged_offsets_is_refused_where_it_is_damaged(tmp_path):
    offsets = np.array([0, 2, 4, 6, 8, 9], "i4")
    column = pa.ListArray.from_arrays(pa.array(offsets), pa.array(np.arange(4, 13, dtype="i4")))
    file = folder_of(tmp_path / "cells", [column])
    replace_once(file, offsets.tobytes(), np.array([0, 2, 4, 90, 8, 9], "i4").tobytes())
    stored = datasets.load_from_disk(str(tmp_path / "cells"))
    assert cells_of(read_corpus(stored.select(range(2)), V1)) == [[4, 5], [6, 7]]
    for part in (range(1, 4), range(2, 5), range(3, 5)):
        with pytest.raises(InputError, match="is not a readable"):
            read_corpus(stored.select(part), V1)


def test_row_numbers_of_a_shuffled_dataset(tmp_path):
    write_corpus(make_corpus(make_cells(20)), tmp_path / "cells")
    shuffled = datasets.load_from_disk(str(tmp_path / "cells")).shuffle(seed=1)
    shuffled.save_to_disk(str(tmp_path / "again"))
    for row in (20, 2**40, 2**63, 2**64 - 1):
        rows = np.arange(20, dtype="u8")
        rows[3] = row
        damaged = datasets.load_from_disk(str(tmp_path / "cells"))
        damaged._indices = datasets.table.InMemoryTable(pa.table({"indices": rows}))
        with pytest.raises(InputError, match=r"names rows outside \[0, 20\)"):
            read_corpus(damaged, V1)


def test_other_columns_are_validated_when_they_are_read(tmp_path):
    lists = pa.ListArray.from_arrays(pa.array([0, 1, 2, 3], pa.int32()), pa.array([4, 5, 6], pa.int32()))
    number = np.array([0, 1, 0], "i4")
    kinds = pa.DictionaryArray.from_arrays(pa.array(number), pa.array(["B cell", "T cell"]))
    names, ends = pa.array(["one", "three", "eleven"]), np.array([0, 3, 8, 14], "i4")
    for column, values, old, new in (
        ("kind", kinds.cast(pa.string()), np.array([0, 6, 12, 18], "i4"), [0, 6, 3, 18]),
        ("name", names, ends, [0, 3, 2**30, 14]),
        ("name", names, ends, [0, 3, 8, 2**30]),
    ):
        folder = tmp_path / f"{column} {new[-2:]}"
        file = folder_of(folder, [lists], **{column: [values]})
        assert read_corpus(folder, V1).obs[column].tolist() == values.to_pylist()
        replace_once(file, old.tobytes(), np.array(new, "i4").tobytes())
        with pytest.raises(InputError, match="is not a readable"):
            _ = read_corpus(folder, V1).obs[column]


# -------------------------------------------------------------------------------------------------- forms of cells


def test_forms_in_which_cells_come(tmp_path):
    cells = make_cells(30)
    dataset = datasets.Dataset.from_dict({"input_ids": cells, "donor": [i % 3 for i in range(30)]})
    fixed = datasets.Features({"input_ids": datasets.Sequence(datasets.Value("int32"), length=2)})
    dataset.save_to_disk(str(tmp_path / "cells"))
    (tmp_path / "parquet").mkdir()
    dataset.select(range(20)).to_parquet(str(tmp_path / "parquet" / "a.parquet"))
    dataset.select(range(20, 30)).to_parquet(str(tmp_path / "parquet" / "b.parquet"))
    arrow = next((tmp_path / "cells").glob("*.arrow"))
    for form in (datasets.DatasetDict(train=dataset), [{"input_ids": cell} for cell in cells], list(dataset), arrow,
                 tmp_path / "parquet"):  # fmt: skip
        assert cells_of(read_corpus(form, V1)) == cells
    assert cells_of(read_corpus(tmp_path / "parquet" / "b.parquet", V1)) == cells[20:]
    assert read_corpus(tmp_path / "parquet", V1).obs["donor"].tolist() == [i % 3 for i in range(30)]
    pairs = datasets.Dataset.from_dict({"input_ids": [[4, 5], [7, 6], [8, 9]]}, features=fixed)
    for view, expected in ((pairs, [[4, 5], [7, 6], [8, 9]]), (pairs.select(range(1, 3)), [[7, 6], [8, 9]])):
        assert cells_of(read_corpus(view, V1)) == expected
    (tmp_path / "cells" / "state.json").unlink()  # its Arrow files alone
    assert cells_of(read_corpus(tmp_path / "cells", V1)) == cells


def test_forms_that_are_no_corpus_name_the_fix(tmp_path):
    dataset = datasets.Dataset.from_dict({"input_ids": [[4, 5], [6, 7]]})
    for form, message in (
        (datasets.DatasetDict(train=dataset, test=dataset), r"holds splits \('train', 'test'\); give one of them"),
        (dataset.to_iterable_dataset(), r"an IterableDataset gives its cells one after the other.*stream_corpus"),
        ({"input_ids": [[4]], "length": [1]}, "a dict of columns; give its 'input_ids'"),
        (dataset.to_pandas(), "got a DataFrame; give the list in its column 'input_ids'"),
        (dataset.with_transform(lambda rows: rows), r"has a transform .*apply it with dataset\.map"),
    ):
        with pytest.raises(InputError, match=message):
            read_corpus(form, V1)
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 nothing PAR1")
    (tmp_path / "bad.arrow").write_bytes(b"ARROW1 nothing")
    for name in ("bad.parquet", "bad.arrow"):
        with pytest.raises(InputError, match=rf"{name} is not a readable"):
            read_corpus(tmp_path / name, V1)


# ------------------------------------------------------------------------------------------------------- archives

WHOLE = {"indptr": np.array([0, 2, 3]), "tokens": np.array([4, 5, 6]), "obs/donor": np.array(["a", "b"])}


def member(array):
    with io.BytesIO() as buffer:
        np.save(buffer, array)
        return buffer.getvalue()


def header(shape, kind="<i8"):
    text = f"{{'descr': {kind!r}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    text += b" " * (64 - (11 + len(text)) % 64) + b"\n"
    return b"\x93NUMPY\x01\0" + struct.pack("<H", len(text)) + text


def archive(path, method=zipfile.ZIP_STORED, extra=(), **changes):
    with zipfile.ZipFile(path, "w", method) as file:
        for name, content in ({f"{key}.npy": member(value) for key, value in WHOLE.items()} | changes).items():
            file.writestr(name, content)
        for name, content in extra:
            file.writestr(name, content)


RECORD = np.zeros(2, [("a", "i8")])
MEMBERS = {
    "8 TiB": {"tokens.npy": header("(1099511627776,)") + bytes(16)},
    "10**30": {"tokens.npy": header(f"({10**30},)") + bytes(16)},
    "10**5000": {"tokens.npy": header(f"(1{'0' * 5000},)")},
    "negative": {"tokens.npy": header("(-3,)") + bytes(24)},
    "deep": {"tokens.npy": header("(" * 2000)},
    "more than there is": {"tokens.npy": header("(4,)") + bytes(24)},
    "objects": {"tokens.npy": header("(3,)", "|O") + bytes(24)},
    "no array": {"vocabulary": b"hello"},
    "0-d": {"obs/donor.npy": member(np.array(3))},
    "0-d tokens": {"tokens.npy": member(np.array(3))},
    "structured": {"obs/donor.npy": member(RECORD)},
    "structured tokens": {"tokens.npy": member(np.zeros(3, [("a", "i8")]))},
    "complex": {"obs/donor.npy": member(np.zeros(2, complex))},
    "too many": {"obs/donor.npy": member(np.arange(3))},
    "2-d": {"obs/donor.npy": member(np.zeros((2, 2)))},
    "deep vocabulary": {"vocabulary.npy": member(np.frombuffer(DEEP.encode(), np.uint8))},
    "falling": {"indptr.npy": member(np.array([0, 4, 3], np.uint64))},
    "floats": {"indptr.npy": member(np.array([0.0, 2, 3]))},
    "empty": {"indptr.npy": member(np.array([], int))},
}


@pytest.mark.parametrize("changes", MEMBERS.values(), ids=MEMBERS)
def test_members_of_an_archive_that_lie(tmp_path, changes):
    path = tmp_path / "cells.npz"
    archive(path)
    assert cells_of(read_corpus(path, V1)) == [[4, 5], [6]]
    archive(path, **changes)
    with pytest.raises(InputError, match=r"cells\.npz"):
        read_corpus(path, V1)


def flipped(content, place, bit):
    return content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1 :]


def test_archives_that_are_damaged(tmp_path):
    path = tmp_path / "cells.npz"
    with pytest.warns(UserWarning, match="Duplicate name"):
        archive(path, extra=[("tokens.npy", member(np.array([7, 8, 9])))])
    with pytest.raises(
        InputError, match=r"cells\.npz is not a readable \.npz file: it holds an array of one name twice"
    ):
        read_corpus(path, V1)
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        archive(path, method)
        content, rng = path.read_bytes(), np.random.default_rng(method)
        for place in rng.choice(len(content), 60, replace=False).tolist():
            path.write_bytes(flipped(content, place, int(rng.integers(8))))
            with contextlib.suppress(InputError):
                corpus = read_corpus(path, V1)
                assert (cells_of(corpus), corpus.obs["donor"].tolist()) == ([[4, 5], [6]], ["a", "b"])
    archive(path)
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1  # encrypted, it says
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"not a readable \.npz file: .*encrypted"):
        read_corpus(path, V1)


def test_names_of_arrays_have_no_checksum_and_are_checked(tmp_path):
    path = tmp_path / "cells.npz"
    # Names of which one bit more in a length hides the next, and one that is not ASCII.
    donor = np.array(["a", None], object)
    obs = {"abcdefghijklmn": np.arange(2), "donor": donor, "\u03b3": np.arange(2.0), "0123456789": np.arange(3, 5)}
    write_corpus(make_corpus([[4, 5], [6]], **obs), path)
    content, refused = path.read_bytes(), 0
    for place in range(content.index(b"PK\x01\x02"), len(content)):
        for bit in range(8):
            path.write_bytes(flipped(content, place, bit))
            try:
                corpus = read_corpus(path)
            except InputError:
                refused += 1
            else:
                assert cells_of(corpus) == [[4, 5], [6]]
                assert {name: corpus.obs[name].tolist() for name in corpus.obs} == {
                    name: values.tolist() for name, values in obs.items()
                }
    assert refused > 1000
    path.write_bytes(content)
    with np.load(path) as file:
        arrays = dict(file)
    for changes in ({"obs/more": np.arange(2)}, {"obs/donor": None}, {"missing/donor": None}, {"vocabulary": None}):
        np.savez(path, **{name: array for name, array in (arrays | changes).items() if array is not None})
        with pytest.raises(InputError, match=r"cells\.npz is not a readable \.npz file: it does not hold the arrays"):
            read_corpus(path, V1)
    del arrays["array_names"]  # as earlier versions wrote it
    np.savez(path, **arrays)
    assert read_corpus(path).obs["donor"].tolist() == ["a", None]


def test_padded_archives_name_the_fix(tmp_path):
    padded = np.array([[4, 5, 0], [6, 0, 0]])
    np.savez(tmp_path / "cells.npz", indptr=np.arange(3), tokens=padded)
    with pytest.raises(InputError, match=r"its tokens are 2-d; .*read_corpus\(list\(array\), vocabulary\)"):
        read_corpus(tmp_path / "cells.npz", V1)
    assert cells_of(read_corpus(list(padded), V1)) == [[4, 5], [6]]


# --------------------------------------------------------------------------------- graphs, PMI tables, maskers


def graph_parts():
    graph = DependencyGraph.from_edges([("G1", "G2", 0.5), ("G2", "G3", -0.5)], V1)
    return {"indptr": graph.indptr, "indices": graph.indices, "rho": graph.rho}


def pmi_parts():
    table = PMITable.from_corpus(make_corpus([[4, 5, 6], [4, 5, 7]] * 3), min_count=1, progress=False)
    return {"indptr": table.indptr, "indices": table.indices, "npmi": table.npmi, "counts": table.counts}


def masker_file(path):
    MultinomialAttentionMasker(V1, dim=8, n_latents=4, n_heads=2).save(path)


def write(path, kind, tensors, **changes):
    """A file whose hash is right, whatever it holds."""
    head = {"format": kind.format, "version": kind.version, "params": {}, "vocabulary": json.loads(V1.to_json())}
    head |= changes
    head["sha256"] = hash_tensors(canonical(head), tensors)
    save_file(tensors, path, {METADATA: canonical(head).decode()})


KINDS = {"graph": (GRAPH, graph_parts, DependencyGraph.load), "pmi": (PMI_TABLE, pmi_parts, PMITable.load)}
HEADERS = [
    {"params": []}, {"params": 7}, {"params": None}, {"vocabulary": []}, {"vocabulary": "x"}, {"vocabulary": {}},
    {"vocabulary": {"names": 5, "symbols": {}}}, {"version": "1"}, {"version": True}, {"version": 1.0},
    {"version": None}, {"version": -1}, {"version": 10**4000}, {"params": {"seed": float("inf")}},
]  # fmt: skip


@pytest.mark.parametrize("changes", HEADERS, ids=range(len(HEADERS)))
@pytest.mark.parametrize("name", KINDS)
def test_headers_of_other_types(tmp_path, name, changes):
    kind, parts, load = KINDS[name]
    path = tmp_path / "file.safetensors"
    write(path, kind, parts())
    load(path)
    write(path, kind, parts(), **changes)
    with pytest.raises(InputError, match=r"file\.safetensors"):
        load(path)


def raw_safetensors(path, metadata, tensors):
    text = json.dumps({"__metadata__": metadata, **tensors}).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(64))


@pytest.mark.parametrize("load", [DependencyGraph.load, PMITable.load, MultinomialAttentionMasker.load])
def test_headers_too_deep_or_too_long_and_types_numpy_does_not_know(tmp_path, load):
    path = tmp_path / "file.safetensors"
    for metadata in (DEEP, f'{{"a": {DEEP}', "1" * 5000, "null", "[]", '"text"'):
        raw_safetensors(path, {METADATA: metadata}, {"a": {"dtype": "U8", "shape": [64], "data_offsets": [0, 64]}})
        with pytest.raises(InputError, match=r"file\.safetensors"):
            load(path)
    for dtype, size in (("F8_E4M3", 64), ("F8_E5M2", 64), ("BF16", 32), ("F16", 32)):
        raw_safetensors(path, {METADATA: "{}"}, {"a": {"dtype": dtype, "shape": [size], "data_offsets": [0, 64]}})
        with pytest.raises(InputError, match=r"file\.safetensors"):
            load(path)


PMI_ARRAYS = {
    "unsigned that falls": ("indptr", lambda a: np.array([*a[:-4], a[-1], 0, 1, a[-1]], np.uint64)),
    "far off": ("indptr", lambda a: np.array([0, *[2**63] * (a.size - 2), a[-1]], np.uint64)),
    "falls": ("indptr", lambda a: np.array([*a[:-3], 9, 1, a[-1]])),
    "floats": ("indptr", lambda a: a.astype(float)),
    "huge": ("counts", lambda a: np.full(a.size, 1e300)),
    "too large": ("counts", lambda a: np.full(a.size, 2.0**63)),
    "unsigned": ("counts", lambda a: np.full(a.size, 2**64 - 1, np.uint64)),
    "negative": ("counts", lambda a: -a),
    "none": ("counts", lambda a: 0 * a),
    "fractions": ("counts", lambda a: a + 0.5),
    "nan": ("npmi", lambda a: a * np.nan),
    "2-d": ("npmi", lambda a: a[None]),
    "complex": ("npmi", lambda a: a.astype(np.complex64)),
    "other genes": ("indices", lambda a: a + V1.size),
    "specials": ("indices", lambda a: 0 * a),
    "wrapped": ("indices", lambda a: a.astype(np.uint64) + np.uint64(2**64 - 8)),
}


@pytest.mark.parametrize(("name", "change"), PMI_ARRAYS.values(), ids=PMI_ARRAYS)
def test_arrays_of_a_pmi_table(tmp_path, name, change):
    parts = pmi_parts()
    write(tmp_path / "file.safetensors", PMI_TABLE, {**parts, name: change(parts[name])})
    with pytest.raises(InputError, match=r"file\.safetensors"):
        PMITable.load(tmp_path / "file.safetensors")


def test_files_of_an_attention_masker(tmp_path):
    from safetensors import safe_open

    path = tmp_path / "file.safetensors"
    masker_file(path)
    MultinomialAttentionMasker.load(path)
    with safe_open(path, "numpy") as file:
        head = json.loads(file.metadata()[METADATA])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    params = head["params"]
    for changes, changed in (
        ({"table": 5}, {}), ({"dim": 10**9}, {}), ({"n_latents": 10**12}, {}), ({"dim": "8"}, {}), ({"dim": True}, {}),
        ({"n_heads": 3}, {}), ({"seed": -1}, {}), ({"other": 1}, {}), ({"mlm_probability": [1]}, {}),
        ({"latent_ratio": 10**400}, {}), ({"mlm_probability": "9" * 5000}, {}),
        ({}, {"latents": np.zeros((4, 9), "f4")}), ({}, {"latents": np.full((4, 8), np.nan, "f4")}),
        ({}, {"query.weight": np.zeros((8, 8), "i4")}), ({}, {"norm.bias": np.zeros((), "f4")}),
    ):  # fmt: skip
        write(path, MASKER, tensors | changed, params=params | changes)
        with pytest.raises(InputError, match=r"file\.safetensors"):
            MultinomialAttentionMasker.load(path)
    del params["table"]
    write(path, MASKER, tensors, params=params)
    with pytest.raises(InputError, match=r"file\.safetensors is not a readable attention masker: it lacks 'table'"):
        MultinomialAttentionMasker.load(path)


# ------------------------------------------------------------------------------------------ the cache of kernels

KERNEL = """
import sys, warnings
from corrmask_fast.kernels.ragged import longest_row
import numpy as np
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    print(longest_row(np.array([0, 2, 5]), 5), longest_row(np.array([0, 2, 5], np.int32), 5))
print(sum(longest_row.stats.cache_hits.values()), len(caught), *[str(one.message) for one in caught])
"""


def compiled(folder):
    """Call a kernel with a cache in ``folder``; return its result, the kernels from the cache, and warnings."""
    import os

    environment = {**os.environ, "NUMBA_CACHE_DIR": str(folder)}
    run = subprocess.run([sys.executable, "-c", KERNEL], env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    result, facts = run.stdout.splitlines()
    hits, number, *message = facts.split(" ", 2)
    return result, int(hits), int(number), "".join(message)


def test_a_damaged_cache_of_kernels_is_compiled_anew_and_mended(tmp_path):
    assert compiled(tmp_path) == ("3 3", 0, 0, "")
    assert compiled(tmp_path) == ("3 3", 2, 0, "")
    index = next(tmp_path.rglob("*longest_row*.nbi"))
    data = sorted(tmp_path.rglob("*longest_row*.nbc"))
    assert len(data) == 2
    whole, flipped = data[0].read_bytes(), bytearray(data[0].read_bytes())
    flipped[len(flipped) // 2] ^= 1
    for file, damaged in ((index, b""), (index, index.read_bytes()[:99]), (data[0], whole[:9999]), (data[0], flipped)):
        file.write_bytes(damaged)
        result, _, number, message = compiled(tmp_path)
        assert (result, number) == ("3 3", 1)
        assert f"the cache of compiled kernels in {index.parent} cannot be used" in message
        assert compiled(tmp_path) == ("3 3", 2, 0, "")  # mended
    index.unlink()
    index.mkdir()
    for _ in range(2):
        result, _, number, message = compiled(tmp_path)
        assert (result, number) == ("3 3", 1)
        assert "free some space, delete that folder, or set NUMBA_CACHE_DIR" in message
