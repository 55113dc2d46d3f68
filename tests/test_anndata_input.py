"""AnnData: files, zarr stores and objects give the same cells; what does not fit is refused and named."""

from __future__ import annotations

import gzip
import json
import pickle
import sys
import types

import numpy as np
import pytest
import scipy.sparse as sp
from count_cases import GENES, NAMES, by_hand, cells_of, some_counts, tokenize, write_h5ad

from corrmask_fast import InputError
from corrmask_fast.cells.anndata_store import open_anndata

anndata = pytest.importorskip("anndata")
pandas = pytest.importorskip("pandas")
h5py = pytest.importorskip("h5py")

ONES = dict.fromkeys(NAMES, 1.0)
BY_HAND = by_hand(some_counts(), np.arange(2, 14), dict.fromkeys(range(2, 14), 1.0))


def some_cells(layout=sp.csr_matrix, **more):
    cells = pandas.DataFrame({"donor": list("uvwxyz") * 10}, index=[f"cell{i}" for i in range(60)])
    return anndata.AnnData(layout(some_counts()), obs=cells, var=pandas.DataFrame(index=list(NAMES)), **more)


# ------------------------------------------------------------------------------------------- every place, every layout


@pytest.mark.parametrize("layout", [sp.csr_matrix, sp.csc_matrix, sp.csr_array, np.asarray, np.asfortranarray])
@pytest.mark.parametrize("place", ["file", "zarr2", "zarr3", "memory", "view", "backed", "backed view"])
def test_every_place_gives_the_same_cells(tmp_path, layout, place):
    cells = some_cells(layout)
    if place.startswith("zarr"):
        with anndata.settings.override(zarr_write_format=int(place[-1])):
            cells.write_zarr(tmp_path / "cells.zarr")
        source = tmp_path / "cells.zarr"
    elif place == "memory":
        source = cells
    elif place == "view":
        source = anndata.concat([cells, cells], index_unique="-")[:60]
        assert source.is_view
    else:
        cells.write_h5ad(tmp_path / "cells.h5ad")
        source = tmp_path / "cells.h5ad"
        if place.startswith("backed"):
            source = anndata.read_h5ad(source, backed="r")
            source = source[np.arange(60)] if place == "backed view" else source
    report, corpus = tokenize(
        source, tmp_path / "out.npz", medians=ONES, chunk_cells=7, obs=["donor"], obs_names="name"
    )
    assert cells_of(corpus) == BY_HAND
    assert report.n_cells_written == 60
    assert corpus.obs["donor"].tolist() == list("uvwxyz") * 10
    assert corpus.obs["name"][59].startswith("cell59")


@pytest.mark.parametrize("dtype", ["float16", ">f4", ">i2", "uint8", "int64", "bool", "float64"])
@pytest.mark.parametrize("part", ["sparse", "dense"])
def test_every_dtype_of_counts(tmp_path, dtype, part):
    counts = np.minimum(some_counts(), 1 if dtype == "bool" else 200)
    path = write_h5ad(tmp_path / "cells.h5ad", sp.csr_matrix(counts) if part == "sparse" else counts)
    place = "X/data" if part == "sparse" else "X"
    with h5py.File(path, "r+") as file:
        values, attributes = file[place][...].astype(dtype), dict(file[place].attrs)
        del file[place]
        file[place] = values
        file[place].attrs.update(attributes)
    _, corpus = tokenize(path, tmp_path / "out.npz", medians=ONES)
    assert cells_of(corpus) == by_hand(counts, np.arange(2, 14), dict.fromkeys(range(2, 14), 1.0))


@pytest.mark.parametrize("width", ["int64", "uint32", "uint64", ">i4"])
def test_every_dtype_of_indices(tmp_path, width):
    for layout in (sp.csr_matrix, sp.csc_matrix):
        path = write_h5ad(tmp_path / "cells.h5ad", layout(some_counts()))
        with h5py.File(path, "r+") as file:
            for name in ("X/indices", "X/indptr"):
                values = file[name][:].astype(width)
                del file[name]
                file[name] = values
        assert cells_of(tokenize(path, tmp_path / "out.npz", medians=ONES)[1]) == BY_HAND


# -------------------------------------------------------------------------------------------- parts that do not fit


def renamed(file, frame, names):
    kept = dict(file[f"{frame}/_index"].attrs)
    del file[f"{frame}/_index"]
    file[frame].create_dataset("_index", data=names, dtype=h5py.string_dtype()).attrs.update(kept)


def replaced(file, name, values):
    kept = dict(file[name].attrs)
    del file[name]
    file[name] = values
    file[name].attrs.update(kept)


DAMAGE = {
    "fewer genes named": (lambda f: renamed(f, "var", NAMES[:11]), "X has 12 columns, var has 11 names"),
    "more genes named": (lambda f: renamed(f, "var", [*NAMES, "more"]), "X has 12 columns, var has 13 names"),
    "fewer cells named": (lambda f: renamed(f, "obs", ["a"] * 59), "X has 60 rows, obs has 59 names"),
    "more cells named": (lambda f: renamed(f, "obs", ["a"] * 61), "X has 60 rows, obs has 61 names"),
    "a short column of obs": (
        lambda f: replaced(f, "obs/donor/codes", np.zeros(59, np.int8)),
        r"the column 'donor' of obs has \(59,\) values for 60 names",
    ),
    "another shape": (lambda f: f["X"].attrs.__setitem__("shape", (60, 13)), "X has 13 columns, var has 12 names"),
    "more rows": (lambda f: f["X"].attrs.__setitem__("shape", (61, 12)), "pointers of its sparse counts do not fit"),
    "no shape": (lambda f: f["X"].attrs.__delitem__("shape"), "its shape is missing, or not two numbers"),
    "three numbers": (
        lambda f: f["X"].attrs.__setitem__("shape", (60, 12, 1)),
        "its shape is missing, or not two numbers",
    ),
    "negative shape": (lambda f: f["X"].attrs.__setitem__("shape", (-60, 12)), r"its shape is \(-60, 12\)"),
    "pointers that fall": (lambda f: f["X/indptr"].__setitem__(5, 10**6), "pointers of its sparse counts do not fit"),
    "negative pointers": (lambda f: f["X/indptr"].__setitem__(1, -4), "pointers of its sparse counts do not fit"),
    "fractional pointers": (lambda f: replaced(f, "X/indptr", f["X/indptr"][:] * 1.0), "it holds float64, int32 and"),
    "fractional indices": (lambda f: replaced(f, "X/indices", f["X/indices"][:] * 1.0), "it holds int32, float64 and"),
    "text for counts": (lambda f: replaced(f, "X/data", ["1"] * f["X/data"].size), "no counts"),
    "complex counts": (lambda f: replaced(f, "X/data", f["X/data"][:] * 1j), "no counts"),
    "fewer counts": (lambda f: replaced(f, "X/data", f["X/data"][:-1]), "pointers of its sparse counts do not fit"),
    "two dimensions": (lambda f: replaced(f, "X/data", f["X/data"][:][None]), "its parts are no lists of numbers"),
    "a single number": (lambda f: replaced(f, "X/indptr", 3), "its parts are no lists of numbers"),
    "no index": (lambda f: f["var"].attrs.__delitem__("_index"), "is not a readable .h5ad file: .*_index"),
    "an index that is not there": (lambda f: f["obs"].attrs.__setitem__("_index", "x"), "is not a readable .h5ad file"),
    "a version of tomorrow": (
        lambda f: f.attrs.__setitem__("encoding-version", "9"),
        "says that it is 'anndata 9', and",
    ),
    "no mark of a dataframe": (lambda f: f["var"].attrs.__delitem__("encoding-type"), "var is no dataframe as AnnData"),
    "no order of columns": (lambda f: f["obs"].attrs.__delitem__("column-order"), "obs is no dataframe as AnnData"),
    "a column that is not there": (lambda f: f.__delitem__("obs/donor"), "is not a readable .h5ad file: .*donor"),
    "no indices": (lambda f: f.__delitem__("X/indices"), "is not a readable .h5ad file: .*indices"),
    "another encoding": (lambda f: f["X"].attrs.__setitem__("encoding-type", "coo_matrix"), "holds X as 'coo_matrix'"),
    "an encoding of frames": (
        lambda f: f["X"].attrs.__setitem__("encoding-type", "dataframe"),
        "holds X as 'dataframe'",
    ),
    "a column outside": (lambda f: f["X/indices"].__setitem__(3, 12), "its counts name columns outside its 12 genes"),
    "a loop of links": (
        lambda f: (f.__delitem__("var"), f.__setitem__("var", h5py.SoftLink("/var"))),
        "is not a readable .h5ad file|has no 'var'",
    ),
    "a column of codes too high": (
        lambda f: f["obs/kind/codes"].__setitem__(0, 77),
        "is not a readable .h5ad file",
    ),
}


@pytest.mark.parametrize("damage", list(DAMAGE))
def test_parts_that_do_not_fit_are_refused(tmp_path, damage):
    cells = some_cells()
    cells.obs["kind"] = pandas.Categorical(list("ab") * 30)
    cells.write_h5ad(tmp_path / "cells.h5ad")
    spoil, message = DAMAGE[damage]
    with h5py.File(tmp_path / "cells.h5ad", "r+") as file:
        spoil(file)
    with pytest.raises(InputError, match=f"cells.h5ad.*{message}"):
        tokenize(tmp_path / "cells.h5ad", tmp_path / "out.npz", medians=ONES, obs=["donor", "kind"])
    assert [path.name for path in tmp_path.iterdir()] == ["cells.h5ad"]


@pytest.mark.parametrize("layer", ["raw", "counts"])
def test_layers_and_raw_have_to_fit_too(tmp_path, layer):
    cells = some_cells(layers={"counts": sp.csr_matrix(some_counts())})
    cells.raw = cells.copy()
    cells.write_h5ad(tmp_path / "cells.h5ad")
    place = "raw/X" if layer == "raw" else "layers/counts"
    with h5py.File(tmp_path / "cells.h5ad", "r+") as file:
        file[place].attrs["shape"] = (60, 14)
    with pytest.raises(InputError, match=f"{place} has 14 columns, {'raw/' if layer == 'raw' else ''}var has 12 names"):
        tokenize(tmp_path / "cells.h5ad", tmp_path / "out.npz", layer=layer)
    with h5py.File(tmp_path / "cells.h5ad", "r+") as file:
        del file["raw/var"]
    if layer == "raw":
        with pytest.raises(InputError, match="is damaged: it has no raw/var"):
            tokenize(tmp_path / "cells.h5ad", tmp_path / "out.npz", layer=layer)


def test_names_stored_as_bytes_are_text(tmp_path):
    """Files without the mark of text: AnnData gives bytes."""
    path = write_h5ad(tmp_path / "cells.h5ad", sp.csr_matrix(some_counts()))
    with h5py.File(path, "r+") as file:
        for name in ("var/_index", "obs/_index"):
            for mark in ("encoding-type", "encoding-version"):
                del file[name].attrs[mark]
    _, corpus = tokenize(path, tmp_path / "out.npz", medians=ONES, obs_names="cell")
    assert cells_of(corpus) == BY_HAND
    assert corpus.obs["cell"][0] == "cell0"


def test_a_zarr_store_that_does_not_fit_is_refused(tmp_path):
    zarr = pytest.importorskip("zarr")
    some_cells().write_zarr(tmp_path / "cells.zarr")
    group = zarr.open_group(str(tmp_path / "cells.zarr"), mode="r+", use_consolidated=False)
    group["X"].attrs["shape"] = [60, 13]
    (tmp_path / "cells.zarr" / ".zmetadata").unlink(missing_ok=True)
    with pytest.raises(InputError, match=r"cells.zarr is damaged: X has 13 columns, var has 12 names"):
        tokenize(tmp_path / "cells.zarr", tmp_path / "out.npz")
    next((tmp_path / "cells.zarr" / "X" / "data").glob("[.z]*a*r*y*")).write_text("[[[[")
    with pytest.raises(InputError, match=r"cells.zarr is not a readable zarr store"):
        tokenize(tmp_path / "cells.zarr", tmp_path / "out.npz")


def store_with_a_pickle(path, value):
    """A zarr store whose names of cells are a pickle of ``value``."""
    with anndata.settings.override(zarr_write_format=2):
        some_cells().write_zarr(path)
    for name in (".zmetadata", "zarr.json"):
        (path / name).unlink(missing_ok=True)
    file = path / "obs" / "_index" / ".zarray"
    array = json.loads(file.read_text())
    # The second filter: zarr 3 itself refuses a pickle as the first, and decodes others.
    array |= {"filters": [{"id": "vlen-utf8"}, {"id": "pickle", "protocol": 5}], "compressor": None}
    file.write_text(json.dumps(array))
    next(part for part in file.parent.iterdir() if not part.name.startswith(".")).write_bytes(pickle.dumps(value))
    return path


def test_a_pickle_in_a_zarr_store_is_not_read(tmp_path):
    class Trap:
        def __reduce__(self):
            return (tmp_path.joinpath("ran").touch, ())

    store_with_a_pickle(tmp_path / "cells.zarr", Trap())
    with pytest.raises(InputError, match="refused: an array of this store is a pickle"):
        tokenize(tmp_path / "cells.zarr", tmp_path / "out.npz", obs_names="name")
    assert not (tmp_path / "ran").exists()


def test_pickles_are_refused_as_long_as_any_zarr_store_is_open(tmp_path):
    registry = pytest.importorskip("numcodecs.registry").codec_registry
    before = dict(registry)
    path = store_with_a_pickle(tmp_path / "cells.zarr", np.array([f"cell{i}" for i in range(60)]))
    for there in (True, False):  # numcodecs' own pickle codec, or none
        if not there:
            registry.pop("pickle", None)
        expected = dict(registry)
        first, second = open_anndata(path), open_anndata(path)
        first.__enter__()
        store = second.__enter__()
        first.__exit__(None, None, None)
        with pytest.raises(InputError, match="refused: an array of this store is a pickle"):
            store.frame("obs").index()
        second.__exit__(None, None, None)
        assert registry == expected
        with pytest.raises(InputError, match="refused: an array of this store is a pickle"):  # and again
            tokenize(path, tmp_path / "out.npz", obs_names="name")
        assert registry == expected
    registry.update(before)


def test_a_dataset_that_declares_what_it_does_not_hold(tmp_path):
    some_cells().write_h5ad(tmp_path / "cells.h5ad")
    with h5py.File(tmp_path / "cells.h5ad", "r+") as file:
        kept = dict(file["obs/_index"].attrs)
        del file["obs/_index"], file["X"]
        many = 10**12
        file["obs"].create_dataset("_index", (many,), h5py.string_dtype(), chunks=(1000,)).attrs.update(kept)
        file.create_dataset("X", (many, 12), "f4", chunks=(1000, 12)).attrs.update(
            {"encoding-type": "array", "encoding-version": "0.2.0"}
        )
    with pytest.raises(InputError, match="declares 12000000000000 values, and the file holds none"):
        tokenize(tmp_path / "cells.h5ad", tmp_path / "out.npz")


def test_a_damaged_chunk(tmp_path):
    counts = np.tile(some_counts(), (50, 1))
    adata = anndata.AnnData(sp.csr_matrix(counts), var=pandas.DataFrame(index=list(NAMES)))
    adata.write_h5ad(tmp_path / "cells.h5ad", compression="gzip")
    with h5py.File(tmp_path / "cells.h5ad") as file:
        place = file["X/data"].id.get_chunk_info(0).byte_offset
    content = bytearray((tmp_path / "cells.h5ad").read_bytes())
    content[place + 30 : place + 60] = bytes(30)
    (tmp_path / "cells.h5ad").write_bytes(content)
    with pytest.raises(InputError, match=r"cells.h5ad is not a readable .h5ad file: .*(filter|inflate)"):
        tokenize(tmp_path / "cells.h5ad", tmp_path / "out.npz")


def test_a_filter_that_hdf5_lacks(tmp_path, monkeypatch):
    path = write_h5ad(tmp_path / "cells.h5ad", sp.csr_matrix(some_counts()))
    unknown = 32042
    with h5py.File(path, "r+") as file:
        size = file["X/data"].size
        del file["X/data"]
        properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        properties.set_chunk((size,))
        properties.set_filter(unknown, h5py.h5z.FLAG_OPTIONAL, ())
        dataset = h5py.h5d.create(
            file["X"].id, b"data", h5py.h5t.IEEE_F32LE, h5py.h5s.create_simple((size,)), properties
        )
        dataset.write_direct_chunk((0,), bytes(4 * size))
    monkeypatch.setitem(sys.modules, "hdf5plugin", None)
    with pytest.raises(InputError, match=r"compressed by a filter that HDF5 lacks here; .*pip install hdf5plugin"):
        tokenize(path, tmp_path / "out.npz")
    monkeypatch.setitem(sys.modules, "hdf5plugin", types.ModuleType("hdf5plugin"))
    with pytest.raises(InputError, match="hdf5plugin is installed and does not have it either"):
        tokenize(path, tmp_path / "out.npz")


# ----------------------------------------------------------------------------------------------- files of other kinds


def test_files_of_other_kinds_are_named(tmp_path, monkeypatch):
    for package in ("scanpy", "loompy"):
        monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    good = write_h5ad(tmp_path / "good.h5ad", sp.csr_matrix(some_counts()))
    (tmp_path / "packed.h5ad.gz").write_bytes(gzip.compress(good.read_bytes()))
    (tmp_path / "table.csv").write_text("gene,a\nb,1\n")
    (tmp_path / "matrix.mtx").write_text("%%MatrixMarket matrix coordinate integer general\n")
    for folder, name in (
        ("mtx", "matrix.mtx.gz"),
        ("corpus", "dataset_info.json"),
        ("empty", None),
    ):
        (tmp_path / folder).mkdir()
        if name:
            (tmp_path / folder / name).write_text("")
    for name, groups in (("ten.h5", ["matrix"]), ("cells.loom", ["row_attrs", "col_attrs"]), ("more.h5mu", ["mod"])):
        with h5py.File(tmp_path / name, "w") as file:
            for group in groups:
                file.create_group(group)
    with h5py.File(tmp_path / "more.h5mu", "r+") as file, h5py.File(good) as source:
        source.copy("obs", file)
        source.copy("var", file)
    for name, message in (
        ("packed.h5ad.gz", r"is compressed with gzip; unpack it first: gunzip"),
        (
            "table.csv",
            r"is a table; convert it \(cells in rows\): python -c \"import anndata.io; anndata.io.read_csv",
        ),
        ("matrix.mtx", "is a Matrix Market file"),
        (
            "mtx",
            r"is a 10x matrix; to read it, pip install scanpy, or convert it: python -c \"import scanpy; scanpy.read",
        ),
        ("corpus", "it is a corpus of tokenised cells already"),
        ("empty", "is a folder, but no zarr store"),
        ("ten.h5", r"is a 10x file; to read it, pip install scanpy, or convert it: .*scanpy.read_10x_h5"),
        ("cells.loom", r"is a loom file; to read it, pip install loompy, or convert it: .*anndata.io.read_loom"),
        ("more.h5mu", r"holds several modalities \(MuData\)"),
    ):
        with pytest.raises(InputError, match=message):
            tokenize(tmp_path / name, tmp_path / "out.npz")
    with pytest.raises(InputError, match=r"https://host/cells.h5ad is an address; download the file first"):
        tokenize("https://host/cells.h5ad", tmp_path / "out.npz")
    with pytest.raises(InputError, match="cannot be read from standard input"):
        tokenize("-", tmp_path / "out.npz")
    with pytest.raises(InputError, match="or an AnnData; got DataFrame"):
        tokenize(pandas.DataFrame(), tmp_path / "out.npz")


def test_nothing_that_is_read_is_replaced(tmp_path):
    path = write_h5ad(tmp_path / "cells.h5ad", sp.csr_matrix(some_counts()))
    before = path.read_bytes()
    (tmp_path / "link.npz").symlink_to(path)
    with pytest.raises(InputError, match=r"output would replace .*link.npz, which is read here"):
        tokenize(path, tmp_path / "link.npz")
    (tmp_path / "medians.json").write_text(json.dumps(ONES))
    (tmp_path / "m.npz").symlink_to(tmp_path / "medians.json")
    with pytest.raises(InputError, match=r"would replace .*m.npz"):
        tokenize(path, tmp_path / "m.npz", medians=tmp_path / "medians.json")
    some_cells().write_zarr(tmp_path / "cells.zarr")
    (tmp_path / "cells.zarr" / "X" / "part.npz").write_text("a part of the store")
    with pytest.raises(InputError, match=r"would replace .*part.npz"):
        tokenize(tmp_path / "cells.zarr", tmp_path / "cells.zarr" / "X" / "part.npz")
    assert path.read_bytes() == before
    assert json.loads((tmp_path / "medians.json").read_text()) == ONES
    assert GENES.size == 14


@pytest.mark.parametrize("layout", [sp.csr_matrix, sp.csc_matrix])
def test_an_object_whose_indices_lie_outside(tmp_path, layout):
    cells = some_cells(layout)
    cells.X.indices[3] = 10**6  # nobody looks at them in memory
    with pytest.raises(InputError, match=r"the AnnData is damaged: its counts name (rows|columns) outside its"):
        tokenize(cells, tmp_path / "out.npz")


def test_counts_that_are_computed_when_asked_for(tmp_path):
    class Lazy:  # as a dask array: slices of it are computed
        shape, dtype = (60, 12), np.dtype(np.float32)

        def __init__(self, turn):
            self.turn = turn

        def __getitem__(self, rows):
            return types.SimpleNamespace(compute=lambda: self.turn(some_counts()[rows]))

    for turn in (np.asarray, sp.csr_matrix):
        frame = pandas.DataFrame(index=[f"cell{i}" for i in range(60)])
        var = pandas.DataFrame(index=list(NAMES))
        cells = types.SimpleNamespace(obs=frame, var=var, X=Lazy(turn), layers={}, raw=None, n_obs=60)
        assert cells_of(tokenize(cells, tmp_path / "out.npz", medians=ONES)[1]) == BY_HAND
