"""What a user decides when counts become cells: fractions, totals, filters, names, retired ids, features, symbols."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest
import scipy.sparse as sp
from count_cases import ALL, GENES, NAMES, by_hand, cells_of, medians_by_hand, some_counts, tokenize, write_h5ad

from corrmask_fast import InputError, Vocabulary, read_corpus
from corrmask_fast.cells.tokenizer import corpus_medians, vocabulary_of
from corrmask_fast.cli.main import main

anndata = pytest.importorskip("anndata")
pandas = pytest.importorskip("pandas")

ONES = dict.fromkeys(NAMES, 1.0)
FLAT = dict.fromkeys(range(2, 14), 1.0)  # the same by token


# ------------------------------------------------------------------------------------------------------ counts, totals


def corrected(counts):
    """Counts less a share of background, as SoupX leaves them."""
    return np.maximum(counts.astype(np.float64) - 0.13, 0)


@pytest.mark.parametrize("layout", [sp.csr_matrix, sp.csc_matrix, np.asarray])
def test_fractional_counts_on_request(tmp_path, layout):
    counts = corrected(some_counts())
    path = write_h5ad(tmp_path / "cells.h5ad", layout(counts))
    with pytest.raises(
        InputError, match=r"has \d\.87 in cell .*[.] Tokenising .* allow fractions .*allow_fractional"
    ) as e:
        tokenize(path, tmp_path / "out.npz", medians=ONES)
    assert "looks" not in str(e.value)  # no guess where there is no ground for one
    _, corpus = tokenize(path, tmp_path / "out.npz", medians=ONES, allow_fractional=True)
    assert cells_of(corpus) == by_hand(counts, ALL, FLAT)
    medians = medians_by_hand(counts, ALL, GENES)
    found = corpus_medians(path, GENES, allow_fractional=True, progress=False)
    assert found == {GENES.names[token]: value for token, value in medians.items()}
    _, corpus = tokenize(path, tmp_path / "out.npz", allow_fractional=True)
    assert cells_of(corpus) == by_hand(counts, ALL, medians)


def test_medians_of_values_of_any_size(tmp_path):
    rng = np.random.default_rng(0)
    counts = 10.0 ** rng.uniform(-300, 280, (60, 12))
    path = write_h5ad(tmp_path / "cells.h5ad", sp.csr_matrix(counts))
    found = corpus_medians(path, GENES, allow_fractional=True, progress=False)
    assert found == {GENES.names[token]: value for token, value in medians_by_hand(counts, ALL, GENES).items()}


@pytest.mark.parametrize(
    ("value", "said"), [(6.0000005, "6.0000005"), (np.nan, "nan"), (-0.5, "-0.5"), (1e300, "1e[+]300")]
)
def test_what_is_no_count_is_quoted_in_full(tmp_path, value, said):
    counts = some_counts().astype(np.float64)
    counts[3, 4] = value
    path = write_h5ad(tmp_path / "cells.h5ad", sp.csr_matrix(counts))
    if value == 1e300:  # a whole number, and no total overflows
        tokenize(path, tmp_path / "out.npz", medians=ONES)
        counts[3, 5] = counts[3, 6] = 1.7e308
        path = write_h5ad(tmp_path / "cells.h5ad", sp.csr_matrix(counts))
        with pytest.raises(InputError, match=r"the counts of cell cell3 of .* add up to more than a float64 holds"):
            tokenize(path, tmp_path / "out.npz", medians=ONES)
        return
    with pytest.raises(InputError, match=f"has {said} in cell cell3, gene ENSG004[.]"):
        tokenize(path, tmp_path / "out.npz", medians=ONES)
    if not value > 0:
        with pytest.raises(InputError, match=f"counts must be numbers >= 0; .* has {said} in cell cell3"):
            tokenize(path, tmp_path / "out.npz", medians=ONES, allow_fractional=True)


def test_totals_from_a_column(tmp_path):
    counts = some_counts(8) + 1
    totals = np.array([100, 7, 20, 31, 55, 40, 1000, 900])
    obs = {"n_counts": totals, "kind": list("abcdefgh"), "holes": [None, *totals[1:].astype(float)]}
    path = write_h5ad(tmp_path / "cells.h5ad", sp.csr_matrix(counts), obs=obs)
    scaled = counts.astype(np.float64) / totals[:, None] * 10_000
    medians = {GENES.names[t]: np.median(scaled[:, t - 2]) for t in range(2, 14)}
    assert corpus_medians(path, GENES, total="n_counts", progress=False) == medians
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # these totals are not of these cells
        report, _ = tokenize(path, tmp_path / "out.npz", total="n_counts")
    assert "totals of cells: obs n_counts" in str(report)
    with pytest.raises(InputError, match="total must be a column of numbers; obs 'kind'"):
        tokenize(path, tmp_path / "out.npz", total="kind")
    with pytest.raises(InputError, match=r"a cell's total must be a finite number above 0; cell cell0 of .* has nan"):
        tokenize(path, tmp_path / "out.npz", total="holes")
    with pytest.raises(InputError, match="has no obs column 'x'; it has n_counts, kind, holes"):
        tokenize(path, tmp_path / "out.npz", total="x")


# --------------------------------------------------------------------------------------------------------------- cells


@pytest.mark.parametrize("kind", ["int", "bool", "float", "boolean", "category"])
def test_cells_that_do_not_pass_are_left_out(tmp_path, kind):
    counts = some_counts()
    passes = np.arange(60) % 3 == 0
    passes[6:40] = False  # whole chunks
    marks = {
        "int": passes.astype(int),
        "bool": passes,
        "float": np.where(passes, 1.0, np.nan),
        "boolean": pandas.array([True if p else None for p in passes], dtype="boolean"),
        "category": pandas.Categorical(passes.astype(int)),
    }[kind]
    path = write_h5ad(tmp_path / "cells.h5ad", sp.csr_matrix(counts), obs={"filter_pass": marks, "mine": ~passes})
    report, corpus = tokenize(path, tmp_path / "out.npz", obs_names="name", chunk_cells=5)
    assert cells_of(corpus) == by_hand(counts[passes], ALL, medians_by_hand(counts[passes], ALL, GENES))
    assert corpus.obs["name"].tolist() == [f"cell{i}" for i in np.flatnonzero(passes)]
    assert f"{60 - passes.sum()} cells left out: obs filter_pass is not 1" in str(report)
    _, everyone = tokenize(path, tmp_path / "out.npz", filter_pass="none")
    assert everyone.n_cells == 60
    report, others = tokenize(path, tmp_path / "out.npz", filter_pass="mine", medians=ONES)
    assert cells_of(others) == by_hand(counts[~passes], ALL, FLAT)
    assert (report.n_cells_read, report.n_cells_written, report.n_cells_left_out) == (60, (~passes).sum(), 0)


def test_filters_that_are_none(tmp_path):
    obs = {"filter_pass": ["yes", "no"] * 30, "never": np.zeros(60), "many": np.arange(60)}
    path = write_h5ad(tmp_path / "cells.h5ad", sp.csr_matrix(some_counts()), obs=obs)
    with pytest.raises(InputError, match=r"must be a column of 0 and 1.*has 'yes'; filter_pass='none' takes all cells"):
        tokenize(path, tmp_path / "out.npz")
    with pytest.raises(InputError, match=r"no cell of .* passes: obs 'never' is 1 nowhere"):
        tokenize(path, tmp_path / "out.npz", filter_pass="never")
    with pytest.raises(InputError, match=r"obs\['many'\] has 2"):
        tokenize(path, tmp_path / "out.npz", filter_pass="many")


def test_names_of_cells_travel_along(tmp_path):
    counts = some_counts(6)
    counts[2] = 0  # left out, with its name
    path = write_h5ad(tmp_path / "cells.h5ad", sp.csr_matrix(counts), obs={"age": np.arange(6)})
    _, corpus = tokenize(path, tmp_path / "out.npz", obs=["index", "age"], obs_names="barcode", chunk_cells=2)
    names = ["cell0", "cell1", "cell3", "cell4", "cell5"]
    assert corpus.obs["barcode"].tolist() == corpus.obs["index"].tolist() == names
    assert corpus.obs["age"].tolist() == [0, 1, 3, 4, 5]
    for bad, message in ((["age", "age"], "'age' is named twice"), (["input_ids"], "would collide")):
        with pytest.raises(InputError, match=message):
            tokenize(path, tmp_path / "out.npz", obs=bad)
    with pytest.raises(InputError, match="'age' is named twice"):
        tokenize(path, tmp_path / "out.npz", obs=["age"], obs_names="age")


# -------------------------------------------------------------------------------------------- types of columns of obs


@pytest.mark.parametrize("output", ["out.npz", "out.dataset"])
def test_a_column_has_the_type_it_had_whatever_its_first_cells(tmp_path, output):
    pytest.importorskip("datasets")
    late = [None] * 30
    obs = {
        "age": pandas.array([*late, *range(30)], dtype="Int32"),
        "sick": pandas.array([*late, *[True, False] * 15], dtype="boolean"),
        "group": pandas.Categorical([*late, *[1, 2] * 15]),
        "type": pandas.Categorical([*late, *["B", "T"] * 15]),
        "score": np.array([np.nan] * 30 + list(np.arange(30) / 2)),
        "donor": ["u", "v"] * 30,
        "lane": np.arange(60, dtype=np.int16),
        "unknown": pandas.array([None] * 60, dtype="Int64"),
        "never": pandas.array([None] * 60, dtype="boolean"),
        "whole": pandas.array(range(60), dtype="Int64"),
    }
    path = write_h5ad(tmp_path / "cells.h5ad", sp.csr_matrix(some_counts()), obs=obs)
    _, corpus = tokenize(path, tmp_path / output, obs=list(obs), chunk_cells=7)
    found = {name: corpus.obs[name].tolist() for name in obs}
    for name, column in obs.items():
        expected = [None if pandas.isna(value) else value for value in list(column)]
        assert found[name] == expected, name
        kinds = {type(value) for value in found[name]} - {type(None)}
        assert len(kinds) <= 1, name
    assert type(found["sick"][30]) is bool
    assert type(found["group"][31]) is type(found["age"][31]) is int
    if output.endswith("dataset"):
        datasets = pytest.importorskip("datasets")
        stored = datasets.load_from_disk(str(tmp_path / output)).features
        kinds = {name: stored[name].dtype for name in stored if name not in {"input_ids", "length"}}
        assert list(kinds.items()) == [
            *[("age", "int32"), ("sick", "bool"), ("group", "int64"), ("type", "string"), ("score", "float64")],
            *[("donor", "string"), ("lane", "int16"), ("unknown", "int64"), ("never", "bool"), ("whole", "int64")],
        ]


def test_files_with_and_without_values_go_together(tmp_path):
    datasets = pytest.importorskip("datasets")
    for name, ages in (("a", [None] * 60), ("b", range(60))):
        obs = {"age": pandas.array(ages, dtype="Int64")}
        path = write_h5ad(tmp_path / f"{name}.h5ad", sp.csr_matrix(some_counts()), obs=obs)
        tokenize(path, tmp_path / f"{name}.dataset", medians=ONES, obs=["age"])
    parts = [datasets.load_from_disk(str(tmp_path / f"{name}.dataset")) for name in "ab"]
    assert datasets.concatenate_datasets(parts)["age"][58:62] == [None, None, 0, 1]


def test_columns_that_are_no_values_are_refused(tmp_path):
    path = write_h5ad(tmp_path / "cells.h5ad", sp.csr_matrix(some_counts()), obs={"z": np.ones(60) * 1j})
    with pytest.raises(
        InputError, match="obs column 'z' must hold one number, text or time a cell; it holds complex128"
    ):
        tokenize(path, tmp_path / "out.npz", obs=["z"])


# --------------------------------------------------------------------------------------------------------------- genes


def test_other_features_do_not_count(tmp_path):
    counts = some_counts()
    proteins = np.random.default_rng(1).integers(500, 5000, (60, 4)) + 0.5  # not even counts
    kinds = ["Gene Expression"] * 12 + ["Antibody Capture"] * 3 + ["Peaks"]
    names = [*NAMES, "CD3", "CD4", NAMES[0], "chr1:10-90"]
    both = write_h5ad(
        tmp_path / "both.h5ad", sp.csr_matrix(np.c_[counts, proteins]), index=names, var={"feature_types": kinds}
    )
    alone = write_h5ad(tmp_path / "alone.h5ad", sp.csr_matrix(counts))
    report, corpus = tokenize(both, tmp_path / "both.npz")
    _, expected = tokenize(alone, tmp_path / "alone.npz")
    assert cells_of(corpus) == cells_of(expected)
    assert corpus_medians(both, GENES, progress=False) == corpus_medians(alone, GENES, progress=False)
    assert "12 of 12 columns are genes" in str(report)
    assert "4 columns left out, of totals too, since var feature_types" in str(report)
    assert "3 Antibody Capture, 1 Peaks" in str(report)
    assert vocabulary_of(both).names == ("<pad>", "<mask>", *NAMES)


def test_feature_types_of_other_names(tmp_path):
    index, counts = [*NAMES, "CD3"], np.c_[some_counts(), np.full(60, 9000)]
    gex = {"feature_types": ["GEX"] * 12 + ["ADT"]}
    _, corpus = tokenize(
        write_h5ad(tmp_path / "a.h5ad", sp.csr_matrix(counts), index=index, var=gex), tmp_path / "a.npz"
    )
    _, expected = tokenize(write_h5ad(tmp_path / "b.h5ad", sp.csr_matrix(some_counts())), tmp_path / "b.npz")
    assert cells_of(corpus) == cells_of(expected)
    odd = {"feature_types": ["mine"] * 12 + ["yours"]}
    path = write_h5ad(tmp_path / "c.h5ad", sp.csr_matrix(counts), index=index, var=odd)
    with pytest.warns(UserWarning, match="has the feature type 'Gene Expression' .there are mine, yours.; all columns"):
        report, _ = tokenize(path, tmp_path / "c.npz", medians=ONES)
    assert report.n_columns == 13


def test_names_of_any_length_make_short_messages(tmp_path):
    index = ["x" * 4000 + str(i) for i in range(12)]
    path = write_h5ad(tmp_path / "cells.h5ad", sp.csr_matrix(some_counts()), index=index, obs={"y" * 4000: range(60)})
    for options in ({}, {"obs": ["z"]}, {"gene_column": "z"}):
        with pytest.raises(InputError) as error:
            tokenize(path, tmp_path / "out.npz", **options)
        assert len(str(error.value)) < 1000


def test_retired_ids_by_a_mapping(tmp_path):
    counts = some_counts()
    index = ["OLD0", "ENSG00000000777.3", *NAMES[2:]]
    path = write_h5ad(tmp_path / "cells.h5ad", sp.csr_matrix(counts), index=index)
    mapping = {"OLD0": NAMES[0], "ENSG00000000777": NAMES[1], NAMES[2]: NAMES[3]}
    report, corpus = tokenize(path, tmp_path / "out.npz", medians=ONES, gene_mapping=mapping)
    assert cells_of(corpus) == by_hand(counts, ALL, FLAT)  # what the vocabulary knows is not mapped
    assert "2 of these columns by the gene mapping" in str(report)
    file = tmp_path / "mapping.json"
    file.write_text(json.dumps(mapping))
    assert cells_of(tokenize(path, tmp_path / "out.npz", medians=ONES, gene_mapping=file)[1]) == cells_of(corpus)
    assert tokenize(path, tmp_path / "out.npz", medians=ONES)[0].n_columns_matched == 10
    swapped = {current: old for old, current in mapping.items() if current != NAMES[3]}
    with pytest.raises(InputError, match=r"gene_mapping names no gene of the vocabulary: '.*' becomes 'OLD0', and so"):
        tokenize(path, tmp_path / "out.npz", medians=ONES, gene_mapping=swapped)


def test_symbols_of_the_file_are_kept(tmp_path):
    symbols = [f"FILE{i}" for i in range(12)]
    path = write_h5ad(
        tmp_path / "cells.h5ad", sp.csr_matrix(some_counts()), index=symbols, var={"gene_ids": list(NAMES)}
    )
    named = Vocabulary(GENES.names, {NAMES[0]: "FILE5", NAMES[1]: "SYM1"})  # FILE5 is another gene here
    for genes in (Vocabulary(GENES.names), named):
        tokenize(path, tmp_path / "out.npz", genes, ONES)
        stored = read_corpus(tmp_path / "out.npz").vocabulary
        assert [stored.name_of(token) for token in range(2, 14)] == symbols
        assert [stored.id_of(symbol) for symbol in symbols] == list(range(2, 14))
        assert stored.fingerprint == GENES.fingerprint
    assert stored.id_of("SYM1") == 3
    by_symbol = write_h5ad(tmp_path / "s.h5ad", sp.csr_matrix(some_counts()), index=[f"SYM{i}" for i in range(12)])
    tokenize(by_symbol, tmp_path / "out.npz", GENES, ONES)
    assert read_corpus(tmp_path / "out.npz").vocabulary.symbols == GENES.symbols


def test_a_file_of_another_species_is_told(tmp_path):
    index = [f"Sym{i}" for i in range(11)] + ["SYM11"]
    path = write_h5ad(tmp_path / "mouse.h5ad", sp.csr_matrix(some_counts() + 1), index=index)
    with pytest.warns(UserWarning, match=r"only 1 genes of .*; in capitals 12 would match: .* another species"):
        tokenize(path, tmp_path / "out.npz", medians=ONES)
    many = np.c_[some_counts() + 1, np.full((60, 3), 900)]
    path = write_h5ad(tmp_path / "few.h5ad", sp.csr_matrix(many), index=[*NAMES, "x", "y", "z"])
    with pytest.warns(UserWarning, match=r"only \d\.\d % of the counts of .* are of genes with a token and a median"):
        tokenize(path, tmp_path / "out.npz", medians=ONES)
    good = write_h5ad(tmp_path / "good.h5ad", sp.csr_matrix(some_counts() + 1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tokenize(good, tmp_path / "out.npz", medians=ONES)


# --------------------------------------------------------------------------------------------------- the command line


def test_the_options_of_the_command(tmp_path, capsys):
    obs = {"n_counts": some_counts().sum(axis=1) + 5, "good": [1, 0] * 30}
    path = write_h5ad(tmp_path / "cells.h5ad", sp.csr_matrix(corrected(some_counts() + 1)), obs=obs)
    for name, content in (("tokens", dict(zip(GENES.names, range(14), strict=True))), ("map", {"A": NAMES[0]})):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    given = ["tokenize", str(path), f"{tmp_path}/out.npz", "--tokens", f"{tmp_path}/tokens.json", "--no-progress"]
    assert main(given) == 2
    assert "allow fractions if these are corrected or estimated counts (--allow-fractional)" in capsys.readouterr().err
    more = ["--allow-fractional", "--total", "n_counts", "--filter-pass", "good", "--obs-names", "--max-length", "3"]
    assert main([*given, *more, "--gene-mapping", f"{tmp_path}/map.json"]) == 0
    out = capsys.readouterr().out
    assert "30 of 60 cells written" in out
    assert "30 cells left out: obs good is not 1" in out
    corpus = read_corpus(tmp_path / "out.npz")
    assert corpus.lengths.tolist() == [3] * 30
    assert corpus.obs["obs_names"].tolist() == [f"cell{i}" for i in range(0, 60, 2)]
    (tmp_path / "link.npz").symlink_to(tmp_path / "tokens.json")
    given[2] = f"{tmp_path}/link.npz"
    assert main(given) == 2
    assert "link.npz, which is read here" in capsys.readouterr().err
