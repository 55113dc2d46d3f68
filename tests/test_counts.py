"""Files of counts: every layout gives the same cells, and what is damaged, scaled or logged is refused."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
from count_cases import ALL, GENES, NAMES, by_hand, cells_of, medians_by_hand, some_counts, tokenize, write_h5ad

from corrmask_fast import InputError
from corrmask_fast.cells.counts import Counts
from corrmask_fast.cells.tokenizer import corpus_medians

anndata = pytest.importorskip("anndata")
pandas = pytest.importorskip("pandas")


@pytest.mark.parametrize("layout", ["csr", "csc", "dense", "csr_int64", "dense_uint16", "csc_int32"])
@pytest.mark.parametrize("chunk_cells", [None, 1, 7])
def test_every_layout_gives_the_same_cells(tmp_path, layout, chunk_cells):
    counts = some_counts()
    kind, _, dtype = layout.partition("_")
    matrix = counts.astype(dtype or "float32")
    matrix = {"csr": sp.csr_matrix, "csc": sp.csc_matrix, "dense": np.asarray}[kind](matrix)
    path = write_h5ad(tmp_path / "cells.h5ad", matrix)
    medians = medians_by_hand(counts, ALL, GENES)
    report, corpus = tokenize(path, tmp_path / "cells.npz", chunk_cells=chunk_cells)
    assert cells_of(corpus) == by_hand(counts, ALL, medians)
    assert report.n_cells_read == 60
    assert corpus_medians(path, GENES, chunk_cells=chunk_cells, progress=False) == {
        GENES.names[token]: value for token, value in medians.items()
    }


def test_csc_leaves_no_temporary_file(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))
    (tmp_path / "scratch").mkdir()
    path = write_h5ad(tmp_path / "cells.h5ad", sp.csc_matrix(some_counts()))
    with Counts(path) as file:
        assert not list((tmp_path / "scratch").iterdir())  # names and columns can be read without it
        for _ in range(2):
            assert sum(cells.size for cells, _ in file.chunks()) == 60
            assert len(list((tmp_path / "scratch").iterdir())) == 1
    assert not list((tmp_path / "scratch").iterdir())


def test_chunks_are_bounded_by_entries(tmp_path, monkeypatch):
    monkeypatch.setattr("corrmask_fast.cells.counts.CHUNK_ENTRIES", 50)
    counts = some_counts()
    for i, matrix in enumerate([sp.csr_matrix(counts), sp.csc_matrix(counts), counts]):
        with Counts(write_h5ad(tmp_path / f"{i}.h5ad", matrix)) as file:
            chunks = [sp.csr_matrix(rows[2::-1], shape=(cells.size, 12)) for cells, rows in file.chunks()]
            assert len(chunks) > 5
            assert np.array_equal(sp.vstack(chunks).toarray(), counts)


def test_layer_and_raw(tmp_path):
    counts, other = some_counts(), some_counts(seed=1)
    raw = np.hstack([some_counts(seed=2), np.full((60, 1), 3, np.float32)])  # one gene more than X has
    path = write_h5ad(tmp_path / "cells.h5ad", sp.csr_matrix(counts), layers={"counts": sp.csr_matrix(other)}, raw=raw)
    medians = dict.fromkeys(NAMES, 1.0)
    ones = dict.fromkeys(range(2, 14), 1.0)
    _, x = tokenize(path, tmp_path / "x.npz", medians=medians)
    assert cells_of(x) == by_hand(counts, ALL, ones)
    _, layer = tokenize(path, tmp_path / "layer.npz", medians=medians, layer="counts")
    assert cells_of(layer) == by_hand(other, ALL, ones)
    report, from_raw = tokenize(path, tmp_path / "raw.npz", medians=medians, layer="raw")
    assert cells_of(from_raw) == by_hand(raw, [*ALL, -1], ones)
    assert report.n_columns == 13
    with pytest.raises(InputError, match=r"has no layers/spliced; it has X \(layer=None\), 'raw', 'counts'"):
        tokenize(path, tmp_path / "no.npz", layer="spliced")


def test_a_file_without_x_says_where_counts_are(tmp_path):
    adata = anndata.AnnData(var=pandas.DataFrame(index=list(NAMES)), shape=(60, 12))
    adata.layers["counts"] = sp.csr_matrix(some_counts())
    adata.write_h5ad(tmp_path / "cells.h5ad")
    with pytest.raises(InputError, match="counts"):
        tokenize(tmp_path / "cells.h5ad", tmp_path / "no.npz")
    assert tokenize(tmp_path / "cells.h5ad", tmp_path / "yes.npz", layer="counts")[0].n_cells_read == 60


def normalised(counts):
    return counts / counts.sum(axis=1, keepdims=True) * 10_000


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda x: np.log1p(normalised(x)), r"in cell cell0, gene ENSG\d+: this looks normalised and log-transformed"),
        (normalised, "this looks normalised[.]"),
        (np.log1p, "this looks log-transformed"),
        (lambda x: (x - x.mean()) / 3, r"has -0.\d+ in cell cell0, gene ENSG000: this looks scaled \(z-scores\)"),
        (
            lambda x: np.where(np.arange(x.size).reshape(x.shape) == 33, np.nan, x),
            "has nan in cell cell2, gene ENSG009",
        ),
        (
            lambda x: np.where(np.arange(x.size).reshape(x.shape) == 33, np.inf, x),
            "has inf in cell cell2, gene ENSG009",
        ),
        (lambda x: np.where(np.arange(x.size).reshape(x.shape) == 33, -2, x), "has -2 in cell cell2, gene ENSG009[.]"),
    ],
)
@pytest.mark.parametrize("layout", [sp.csr_matrix, sp.csc_matrix, np.asarray])
def test_what_is_no_count_is_refused(tmp_path, spoil, message, layout):
    counts = some_counts() + 1
    path = write_h5ad(tmp_path / "cells.h5ad", layout(spoil(counts).astype(np.float32)))
    output = tmp_path / "cells.npz"
    with pytest.raises(InputError, match=f"counts must be whole numbers >= 0; .*{message}.*go back to the raw counts"):
        tokenize(path, output, chunk_cells=20)
    with pytest.raises(InputError, match="counts must be whole numbers >= 0"):
        tokenize(path, output, medians=dict.fromkeys(NAMES, 1.0))
    assert [file.name for file in tmp_path.iterdir()] == ["cells.h5ad"]
    layers = {"counts": sp.csr_matrix(counts)}
    path = write_h5ad(tmp_path / "cells.h5ad", layout(spoil(counts)), layers=layers, raw=counts)
    with pytest.raises(InputError, match="try layer='raw' or layer='counts'"):
        tokenize(path, output)


def test_bad_files(tmp_path):
    (tmp_path / "text.h5ad").write_text("not HDF5 at all")
    with pytest.raises(InputError, match=r"text.h5ad is not a readable .h5ad file"):
        tokenize(tmp_path / "text.h5ad", tmp_path / "out.npz")
    with pytest.raises(InputError, match=r"no file at .*missing.h5ad"):
        tokenize(tmp_path / "missing.h5ad", tmp_path / "out.npz")
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["numbers"] = np.arange(3)
    with pytest.raises(InputError, match=r"has no 'obs': it is an HDF5 file, but no \.h5ad"):
        tokenize(tmp_path / "other.h5", tmp_path / "out.npz")
    for name, layout, spoil, message in (
        ("columns", sp.csr_matrix, lambda x: x["indices"].__setitem__(5, 12), "columns outside its 12 genes"),
        ("negative", sp.csr_matrix, lambda x: x["indices"].__setitem__(5, -1), "columns outside its 12 genes"),
        ("rows", sp.csc_matrix, lambda x: x["indices"].__setitem__(5, 60), "rows outside its 60 cells"),
        ("pointers", sp.csr_matrix, lambda x: x["indptr"].__setitem__(5, 10**6), "pointers of its sparse counts"),
    ):
        path = write_h5ad(tmp_path / f"{name}.h5ad", layout(some_counts()))
        with h5py.File(path, "r+") as file:
            spoil(file["X"])
        with pytest.raises(InputError, match=f"{name}.h5ad is damaged: .*{message}"):
            tokenize(path, tmp_path / "out.npz")
    assert not (tmp_path / "out.npz").exists()
