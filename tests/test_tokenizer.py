"""From counts to ranked cells: real cells against plain NumPy, which gene is which, ranks, columns that travel."""

from __future__ import annotations

import pickle
import sys

import numpy as np
import pytest
import scipy.sparse as sp
from count_cases import ALL, NAMES, by_hand, cells_of, medians_by_hand, some_counts, tokenize, write_h5ad
from hypothesis import given, settings
from hypothesis import strategies as st

from corrmask_fast import InputError, MissingExtraError, Vocabulary, set_num_threads
from corrmask_fast.cells import tokenizer
from corrmask_fast.cells.tokenizer import corpus_medians, vocabulary_of

anndata = pytest.importorskip("anndata")
pandas = pytest.importorskip("pandas")


# ----------------------------------------------------------------------------------------------------------- real cells


@pytest.fixture(scope="module")
def geneformer(data_folder):
    folder = data_folder / "geneformer"
    return (
        Vocabulary.from_token_dictionary(folder / "token_dictionary.pkl", folder / "gene_name_id_dict.json"),
        folder / "gene_median_dictionary.pkl",
    )


def test_real_cells_match_plain_numpy(data_folder, geneformer, tmp_path):
    vocabulary, median_file = geneformer
    path = data_folder / "pbmc3k.h5ad"
    report, corpus = tokenize(path, tmp_path / "cells.npz", vocabulary, median_file, obs=["cell_type"])
    adata = anndata.read_h5ad(path)
    ids = {name: token for token, name in enumerate(vocabulary.names)}
    tokens = np.array([ids.get(name, -1) for name in adata.var["ensembl_id"]])
    with median_file.open("rb") as file:
        medians = pickle.load(file)
    median_of_column = np.array([float(medians.get(name, np.nan)) for name in adata.var["ensembl_id"]])
    counts = adata.X.astype(np.float64)
    found = cells_of(corpus)
    assert len(found) == adata.n_obs == report.n_cells_written
    for i in range(adata.n_obs):
        entries = slice(counts.indptr[i], counts.indptr[i + 1])
        columns, row = counts.indices[entries], counts.data[entries]
        value = (row / row.sum()) * 10_000 / median_of_column[columns]
        order = np.lexsort((tokens[columns], -value))
        ranked = tokens[columns][order]
        assert found[i] == ranked[ranked >= 0][:2048].tolist()
    assert (report.n_columns, report.n_columns_matched, report.n_genes_matched) == (32738, 20331, 20331)
    assert report.gene_column == "ensembl_id"
    assert report.n_cells_cut == sum((counts[:, tokens >= 0] > 0).sum(axis=1) > 2048)
    assert report.median_length == np.median([len(cell) for cell in found])
    assert sum(corpus.obs["cell_type"] == None) == adata.obs["cell_type"].isna().sum()  # noqa: E711 (of an array)


def test_real_cells_by_symbol_and_their_own_medians(data_folder, geneformer, tmp_path):
    vocabulary, _ = geneformer
    path = data_folder / "pbmc3k.h5ad"
    by_symbol, corpus = tokenize(path, tmp_path / "symbols.npz", vocabulary, gene_column="index")
    assert by_symbol.gene_column == "index"
    assert 15_000 < by_symbol.n_genes_matched < 20_331
    found = corpus_medians(path, vocabulary, gene_column="index", progress=False)
    adata = anndata.read_h5ad(path)
    counts = adata.X.astype(np.float64)
    scaled = sp.csc_matrix(sp.diags(1 / np.asarray(counts.sum(axis=1)).ravel()) @ counts)  # same genes, other rounding
    for symbol in ("RPL3", "CD3D", "GNLY", "B2M"):
        column = scaled[:, adata.var_names.get_loc(symbol)]
        name = vocabulary.names[vocabulary.id_of(symbol)]
        assert found[name] == pytest.approx(np.median(column.data) * 10_000, rel=1e-12)
    again, same = tokenize(path, tmp_path / "again.npz", vocabulary, found, gene_column="index", chunk_cells=700)
    assert np.array_equal(same.tokens, corpus.tokens)
    assert again.n_genes_without_median == by_symbol.n_genes_matched - len(found)


# -------------------------------------------------------------------------------------------------- which gene is which


def test_symbols_versions_and_several_columns_of_one_gene(tmp_path):
    counts = some_counts(n_genes=6)
    index = ["SYM3", "ENSG00000000005.12", "unknown", "SYM0", "g1", "SYM9"]
    genes = Vocabulary(("<pad>", "<mask>", "ENSG0", "ENSG00000000005", "ENSG2"), {"ENSG0": "SYM3", "ENSG2": "SYM9"})
    path = write_h5ad(tmp_path / "cells.h5ad", sp.csr_matrix(counts), index=index)
    tokens = [2, 3, -1, -1, -1, 4]
    report, corpus = tokenize(path, tmp_path / "cells.npz", genes)
    assert cells_of(corpus) == by_hand(counts, tokens, medians_by_hand(counts, tokens, genes))
    assert (report.n_columns, report.n_columns_matched, report.n_genes_matched) == (6, 3, 3)

    doubled = {"gene_ids": ["ENSG0", "ENSG2", "ENSG0", "?", "ENSG2", "ENSG0"]}
    path = write_h5ad(tmp_path / "doubled.h5ad", sp.csr_matrix(counts), index=list("abcdef"), var=doubled)
    tokens = [2, 4, 2, -1, 4, 2]
    report, corpus = tokenize(path, tmp_path / "doubled.npz", genes)
    assert cells_of(corpus) == by_hand(counts, tokens, medians_by_hand(counts, tokens, genes))
    assert (report.gene_column, report.n_columns_matched, report.n_genes_matched) == ("gene_ids", 5, 2)


def test_entries_stored_twice_and_zeros_stored(tmp_path):
    indptr, columns = np.array([0, 4, 5]), np.array([3, 1, 3, 0, 2])
    counts = sp.csr_matrix((np.array([1.0, 2, 1, 0, 0]), columns, indptr), shape=(2, 12))
    path = write_h5ad(tmp_path / "cells.h5ad", counts)
    report, corpus = tokenize(path, tmp_path / "cells.npz", medians=dict.fromkeys(NAMES, 1.0))
    assert cells_of(corpus) == [[3, 5]]  # 2 and 1 + 1 tie: the lower token comes first
    assert (report.n_cells_read, report.n_cells_written, report.n_cells_left_out) == (2, 1, 1)


def test_the_column_that_matches_best_is_taken_or_the_one_asked_for(tmp_path):
    var = {"ensembl_id": ["ENSG000", *["?"] * 11], "mine": [*NAMES[6:], *NAMES[:6]]}
    path = write_h5ad(tmp_path / "cells.h5ad", sp.csr_matrix(some_counts()), var=var)
    assert tokenize(path, tmp_path / "a.npz")[0].gene_column == "index"
    report, _ = tokenize(path, tmp_path / "b.npz", gene_column="ensembl_id")
    assert report.n_genes_matched == 1
    assert "1 of 12 columns are genes of the vocabulary (by var ensembl_id)" in str(report)
    medians = dict.fromkeys(NAMES, 1.0)
    _, corpus = tokenize(path, tmp_path / "c.npz", medians=medians, gene_column="mine")
    assert cells_of(corpus) == by_hand(some_counts(), [*ALL[6:], *ALL[:6]], dict.fromkeys(range(2, 14), 1.0))


def test_names_made_of_digits_are_not_token_ids(tmp_path):
    path = write_h5ad(tmp_path / "cells.h5ad", sp.csr_matrix(some_counts()), index=[str(i) for i in range(12)])
    with pytest.raises(
        InputError, match=r"no gene of .* The file has index: 0, 1, 2; the vocabulary has ENSG000 \(SYM0\)"
    ):
        tokenize(path, tmp_path / "cells.npz")


def test_the_files_own_genes_as_vocabulary(tmp_path):
    path = write_h5ad(tmp_path / "cells.h5ad", sp.csr_matrix(some_counts()))
    assert vocabulary_of(path).names == ("<pad>", "<mask>", *NAMES)


# -------------------------------------------------------------------------------------------------- ranking and medians


def test_ties_length_and_genes_without_median(tmp_path):
    counts = np.array([[5, 5, 0, 5, 1, 9, 2, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0]], np.float32)
    path = write_h5ad(tmp_path / "cells.h5ad", counts)
    medians = {name: 1.0 for name in NAMES if name != "ENSG005"} | {"ENSG006": 0.25, "not in the vocabulary": -1.0}
    report, corpus = tokenize(path, tmp_path / "cells.npz", medians=medians, max_length=3)
    assert cells_of(corpus) == [[8, 2, 3]]  # 2 / 0.25 first, then three ties, of which two fit
    assert (report.n_genes_matched, report.n_genes_without_median) == (12, 1)
    assert (report.n_cells_left_out, report.n_cells_cut, report.median_length) == (1, 1, 3.0)
    assert "1 genes left out" in str(report)
    assert "1 cells left out" in str(report)
    assert "1 cells had more genes" in str(report)


def test_values_that_differ_in_the_last_bit_are_in_order(tmp_path):
    path = write_h5ad(tmp_path / "cells.h5ad", np.ones((1, 12), np.float32))
    step = np.random.default_rng(0).permutation(12)
    medians = {name: 1 + int(k) * 2.0**-52 for name, k in zip(NAMES, step, strict=True)}
    _, corpus = tokenize(path, tmp_path / "cells.npz", medians=medians)
    assert cells_of(corpus) == [(np.argsort(step) + 2).tolist()]


def test_v2_cells_leave_room_for_cls_and_eos(tmp_path):
    names = tuple(f"G{i}" for i in range(4200))
    v2 = Vocabulary(("<pad>", "<mask>", "<cls>", "<eos>", *names))
    path = write_h5ad(
        tmp_path / "cells.h5ad", np.arange(1, 4201, dtype=np.float32)[None].repeat(2, axis=0), index=names
    )
    datasets = pytest.importorskip("datasets")
    tokenizer.tokenize(path, tmp_path / "cells.dataset", v2, dict.fromkeys(names, 1.0), progress=False)
    stored = datasets.load_from_disk(str(tmp_path / "cells.dataset"))
    assert stored["length"][0] == len(stored["input_ids"][0]) == 4096
    assert stored["input_ids"][0][:3] == [2, 4203, 4202]
    assert stored["input_ids"][0][-1] == 3
    with pytest.raises(InputError, match=r"max_length must be an integer in \[1, 4094\]; got 4096"):
        tokenize(path, tmp_path / "no.npz", v2, max_length=4096)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 300), st.sampled_from([None, 1, 3]))
def test_ranks_of_any_cells(tmp_path_factory, seed, n_genes, threads):
    folder = tmp_path_factory.mktemp("any")
    rng = np.random.default_rng(seed)
    counts = rng.poisson(rng.gamma(0.3, 10, (5, n_genes))).astype(np.float32)
    counts[0, 0] = 2.0**30  # far from the others
    names = [f"G{i}" for i in range(n_genes)]
    order = rng.permutation(n_genes)
    genes = Vocabulary(("<pad>", "<mask>", *(names[i] for i in order)))
    medians = {name: float(rng.choice([1.0, 0.5, rng.lognormal()])) for name in names}
    path = write_h5ad(folder / "cells.h5ad", sp.csr_matrix(counts), index=names)
    tokens = {name: token for token, name in enumerate(genes.names)}
    set_num_threads(threads)
    try:
        _, corpus = tokenize(path, folder / "cells.npz", genes, medians)
    finally:
        set_num_threads(None)
    expected = by_hand(counts, [tokens[name] for name in names], {tokens[name]: medians[name] for name in names})
    assert cells_of(corpus) == expected


# -------------------------------------------------------------------------------------------------- columns that travel


def test_obs_columns_travel_along(tmp_path):
    pytest.importorskip("datasets")
    counts = some_counts(6)
    counts[2] = 0  # this cell is left out, with its labels
    obs = {
        "cell_type": pandas.Categorical([None, "B", "T", None, "B", "T"]),
        "age": np.array([1.5, 2, 3, np.nan, 5, 6]),
        "batch": np.arange(6),
        "donor": list("uvwxyz"),
        "sick": pandas.array([True, None, False, True, False, True], dtype="boolean"),
    }
    path = write_h5ad(tmp_path / "cells.h5ad", sp.csr_matrix(counts), obs=obs)
    output = tmp_path / "cells.dataset"
    report, corpus = tokenize(path, output, obs=list(obs), chunk_cells=1)
    assert (report.n_cells_written, corpus.n_cells) == (5, 5)
    assert corpus.obs["cell_type"].tolist() == [None, "B", None, "B", "T"]
    assert corpus.obs["age"].tolist() == [1.5, 2, None, 5, 6]
    assert corpus.obs["batch"].tolist() == [0, 1, 3, 4, 5]
    assert corpus.obs["donor"].tolist() == ["u", "v", "x", "y", "z"]
    assert corpus.obs["sick"].tolist() == [True, None, True, False, True]
    with pytest.raises(InputError, match="has no obs column 'tissue'; it has cell_type, age, batch, donor, sick"):
        tokenize(path, tmp_path / "no.dataset", obs=["tissue"])
    with pytest.raises(InputError, match="obs column 'length' would collide"):
        tokenize(path, tmp_path / "no.dataset", obs=["length"])


# ------------------------------------------------------------------------------------------------------------ bad input


def test_nothing_to_write(tmp_path):
    path = write_h5ad(tmp_path / "zero.h5ad", sp.csr_matrix((3, 12), dtype=np.float32))
    with pytest.raises(InputError, match=r"none of the 3 cells of .*zero.h5ad has a count"):
        tokenize(path, tmp_path / "out.npz")
    path = write_h5ad(tmp_path / "none.h5ad", sp.csr_matrix((0, 12), dtype=np.float32))
    with pytest.raises(InputError, match="has no cells"):
        tokenize(path, tmp_path / "out.npz")
    assert not (tmp_path / "out.npz").exists()


def test_bad_arguments(tmp_path):
    path = write_h5ad(tmp_path / "cells.h5ad", sp.csr_matrix(some_counts()), var={"symbol": list("abcdefghijkl")})
    with pytest.raises(InputError, match="has no var column 'gene'; it has symbol"):
        tokenize(path, tmp_path / "out.npz", gene_column="gene")
    with pytest.raises(InputError, match="target_sum must be a number in"):
        tokenize(path, tmp_path / "out.npz", target_sum=0)
    with pytest.raises(InputError, match="chunk_cells must be an integer >= 1"):
        tokenize(path, tmp_path / "out.npz", chunk_cells=0)
    (tmp_path / "there").mkdir()
    with pytest.raises(InputError, match="there exists already"):
        tokenize(path, tmp_path / "there")


@pytest.mark.parametrize("package", ["anndata.io", "h5py"])
def test_a_missing_extra_is_named(tmp_path, monkeypatch, package):
    path = write_h5ad(tmp_path / "cells.h5ad", sp.csr_matrix(some_counts()))
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=r"pip install 'corrmask-fast\[anndata\]'"):
        tokenize(path, tmp_path / "out.npz")
