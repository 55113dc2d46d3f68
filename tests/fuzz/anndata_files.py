"""Files as AnnData writes them, whole or damaged: what the tokenizer and a plain Python Geneformer make of them."""

from __future__ import annotations

import itertools
import warnings

import anndata
import h5py
import numpy as np
import pandas as pd
import scipy.sparse
from fuzz import geneformer
from fuzz.anndata_changes import change_hdf5, change_zarr, zarr
from fuzz.harness import TheirFault, difference, plan_of
from fuzz.mutations import one_of, spoil_file
from hypothesis import strategies as st

import corrmask_fast

IDS = tuple(f"ENSG{i:011d}" for i in range(30))
SPECIALS = {"V1": ("<pad>", "<mask>"), "V2": ("<pad>", "<mask>", "<cls>", "<eos>")}
VOCABULARIES = {
    kind: corrmask_fast.Vocabulary((*special, *IDS), {name: f"SYM{i}" for i, name in enumerate(IDS)})
    for kind, special in SPECIALS.items()
}
MAPPING = {f"ENSG9{i:010d}": name for i, name in enumerate(IDS)} | {IDS[0]: IDS[1], "GENE": IDS[2], "x": "nowhere"}
OBS = ("text", "labels", "ordered", "number labels", "int", "float", "bool", "Int", "Bool", "Text")


@st.composite
def plans(draw):
    """Everything about a file and how it is read, as plain values."""

    def pick(*values):
        return draw(st.sampled_from(values))

    def seldom(value, otherwise=None, n=10):
        return value if draw(st.integers(1, n)) == n else otherwise

    def some(most, *values):
        return draw(st.lists(st.sampled_from(values), max_size=most, unique=True))

    return {
        "format": pick(*["h5ad"] * 14, *(["zarr 2", "zarr 3"] if zarr else [])),
        "kind": pick("csr", "csc", "dense", "dense F", "csr array", "csc array"),
        "dtype": pick(*["i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f4", "f4", "f8", "?"]),
        "n_cells": pick(*[20] * 5, *[60] * 4, 7, 7, 3, 2, 1, 0),
        "n_genes": pick(*[12] * 8, *[30] * 6, 40, 40, 3, 2, 1, 0),
        "density": pick(0.5, 0.5, 0.5, 0.2, 0.1, 1.0, 0.0),
        "values": seldom(pick(*["fractional"] * 3, "negative", "nan", "log", "infinite", "huge"), "counts", 6),
        "allow_fractional": pick(True, False),
        "entries": pick("plain", "plain", "unsorted", "twice", "zeros"),
        "where": pick(None, None, None, "raw", "counts"),
        "names": pick(*["ids"] * 4, "symbols", "symbols", "versions", "mixed", "foreign", "retired"),
        "var": some(4, "gene_ids", "ensembl_id", "feature_id", "symbol"),
        "mapping": pick(True, False),
        "repeats": seldom(True, False, 4),
        "feature_types": seldom(pick(0.8, 0.8, 0.8, 0.0), None, 6),
        "filter_pass": seldom(pick("int", "bool", "float", "Int64"), None, 8),
        "total": seldom(pick("int", "float", "Int64"), None, 4),
        "columns": some(4, *OBS),
        "missing": pick(0.0, 0.4, 0.4, 1.0),
        "asked": pick(0, 1, 2, 2, 4),
        "obs_names": seldom("name", None, 4),
        "vocabulary": pick("V1", "V2"),
        "medians": pick("given", "given", "some", "theirs"),
        "gene_column": seldom(pick("index", "index", "gene_ids", "symbol", "absent"), None, 12),
        "target_sum": pick(10_000, 10_000, 10_000, 1, 12345.678),
        "max_length": pick(None, None, None, 1, 3),
        "chunk_cells": pick(None, None, 1, 3, 7),
        "output": pick("npz", "npz", "dataset"),
        "door": pick(*["path"] * 8, "object", "backed"),
        "change": pick("none", "none", *["structure"] * 5, *["bytes"] * 5),
        "n_changes": pick(1, 1, 1, 2, 3),
    }


def source(plan):
    return f"{plan['format']} {plan['kind'].split()[0]} {plan['change']}"


def path_of(plan, folder):
    return folder / f"cells.{plan['format'].split()[0]}"


def options_of(plan):
    """What both readings are asked for."""
    options = {name: plan[name] for name in ("gene_column", "target_sum", "obs_names")}
    options |= {"layer": plan["where"], "obs": plan["columns"][: plan["asked"]]}
    return options | {"total": "n_counts" if plan["total"] else None}


def medians_of(plan):
    if plan["medians"] == "theirs":
        return None
    values = np.random.default_rng(plan["seed"]).choice([0.5, 1.0, 1.0, 2.0, 3.3, 0.123456789], len(IDS))
    return dict(zip(IDS[: 10 if plan["medians"] == "some" else None], map(float, values), strict=False))


# ---------------------------------------------------------------------------------------------------- making the files


def make(plan, folder):
    """Write the file of a plan and damage it; return what was done, for the table."""
    rng = np.random.default_rng(plan["seed"])
    path, ways = path_of(plan, folder), []
    anndata.settings.allow_write_nullable_strings = True
    cells = cells_of(plan, rng)
    if plan["format"] == "h5ad":
        cells.write_h5ad(path, compression=one_of(rng, [None, None, "gzip", "lzf"]))
    else:
        anndata.settings.zarr_write_format = int(plan["format"][-1])
        cells.write_zarr(path)
    if plan["change"] == "bytes":
        ways = [spoil_file(path, rng)]
    elif plan["change"] == "structure" and plan["format"] != "h5ad":
        ways = [change_zarr(path, rng) for _ in range(plan["n_changes"])]
    elif plan["change"] == "structure":
        with h5py.File(path, "r+") as file:
            ways = [change_hdf5(file, plan, rng) for _ in range(plan["n_changes"])]
    return ways[0] if len(ways) == 1 else "several" if ways else "none"


def cells_of(plan, rng):
    n, m = plan["n_cells"], plan["n_genes"]
    obs = pd.DataFrame(index=[f"cell{i}" for i in range(n)])
    for kind in plan["columns"]:
        obs[kind] = obs_column(kind, n, rng.random(n) < plan["missing"], rng)
    if plan["filter_pass"]:
        obs["filter_pass"] = pd.Series(rng.integers(0, 2, n), index=obs.index).astype(plan["filter_pass"])
    if plan["total"]:
        obs["n_counts"] = pd.Series(rng.integers(1, 500, n), index=obs.index).astype(plan["total"])
    columns = rng.integers(0, max(m // 2, 1), m) if plan["repeats"] else rng.permutation(max(m, len(IDS)))[:m]
    var = pd.DataFrame(index=gene_names(plan["names"], columns))
    for name in plan["var"]:
        kind = "symbols" if name == "symbol" else one_of(rng, ["ids", "ids", "versions", "foreign", "retired"])
        var[name] = gene_names(kind, columns)
        if rng.random() < 0.4:
            var[name] = pd.Categorical(np.where(rng.random(m) < 0.1, None, var[name].to_numpy(object)))
    if plan["feature_types"] is not None:
        kinds = np.where(rng.random(m) < plan["feature_types"], "Gene Expression", "Antibody Capture")
        var["feature_types"] = pd.Categorical(kinds)
    matrix = matrix_of(plan, rng)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if plan["where"] == "counts":
            other = one_of(rng, [scipy.sparse.csr_matrix(rng.poisson(0.5, (n, m)).astype(np.float32)), None])
            return anndata.AnnData(other, obs=obs, var=var, layers={"counts": matrix})
        cells = anndata.AnnData(matrix, obs=obs, var=var)
        if plan["where"] == "raw":
            cells.raw = cells
            cells = cells[:, : max(m // 2, 1)].copy()
    return cells


def gene_names(kind, columns):
    ids = [IDS[c] if c < len(IDS) else f"OTHER{c}" for c in columns]
    symbols, half = [f"SYM{c}" for c in columns], len(columns) // 2
    names = {"ids": ids, "symbols": symbols, "versions": [f"{name}.{i % 12}" for i, name in enumerate(ids)],
             "mixed": ids[:half] + symbols[half:], "retired": [f"ENSG9{c:010d}" for c in columns[:half]] + ids[half:]
             }  # fmt: skip
    foreign = ["<pad>", "<mask>", "GENE", "", "ENSG"]
    return names.get(kind) or [foreign[c % 5] + str(c) * (c % 2) for c in columns]


def obs_column(kind, n, gone, rng):
    """A column of n values, some of them missing if its type has such."""
    text = rng.choice(["B", "T", "", "NK cell", "\u03b3\u03b4", "1", "true"], n).astype(object)
    numbers, truths = rng.integers(-5, 2**40, n), rng.random(n) < 0.5
    with_gone = np.where(gone, None, text)
    return {
        "text": lambda: text,
        "Text": lambda: pd.array(with_gone, "string"),
        "labels": lambda: pd.Categorical(with_gone),
        "ordered": lambda: pd.Categorical(with_gone, ordered=True),
        "number labels": lambda: pd.Categorical.from_codes(np.where(gone, -1, truths), [3, 7]),
        "int": lambda: (numbers % 100).astype(one_of(rng, ["i1", "i4", "i8", "u2"])),
        "float": lambda: np.where(gone, np.nan, rng.normal(size=n)).astype(one_of(rng, ["f4", "f8"])),
        "bool": lambda: truths,
        "Int": lambda: pd.arrays.IntegerArray(numbers, gone),
        "Bool": lambda: pd.arrays.BooleanArray(truths, gone),
    }[kind]()


def matrix_of(plan, rng):
    n, m = plan["n_cells"], plan["n_genes"]
    counts = rng.integers(1, one_of(rng, [2, 4, 100]), (n, m)) * (rng.random((n, m)) < plan["density"])
    counts = counts.astype(plan["dtype"] if plan["values"] == "counts" else one_of(rng, ["f4", "f8"]))
    if plan["values"] in {"log", "fractional"}:
        counts = np.log1p(counts) if plan["values"] == "log" else counts * counts.dtype.type(0.1)
    elif counts.size and plan["values"] != "counts":
        place = tuple(rng.integers(0, size) for size in (n, m))
        counts[place] = {"negative": -1, "nan": np.nan, "infinite": np.inf, "huge": 2.0**60}[plan["values"]]
    if plan["kind"].startswith("dense"):
        return np.asfortranarray(counts) if plan["kind"] == "dense F" else counts
    layout, _, new = plan["kind"].partition(" ")
    matrix = getattr(scipy.sparse, f"{layout}_{new or 'matrix'}")(counts)
    indptr, indices, data = matrix.indptr.copy(), matrix.indices.copy(), matrix.data.copy()
    if plan["entries"] == "zeros":
        data[rng.random(data.size) < 0.3] = 0
    for a, b in itertools.pairwise(indptr):
        if plan["entries"] == "unsorted":
            order = a + rng.permutation(b - a)
            indices[a:b], data[a:b] = indices[order], data[order]
        elif plan["entries"] == "twice" and b - a > 1:
            indices[a] = indices[a + 1]
    return type(matrix)((data, indices, indptr), shape=matrix.shape)


# --------------------------------------------------------------------------------------------------- the two readings


def read(plan, folder, **options):
    path = path_of(plan, folder)
    return anndata.read_h5ad(path, **options) if plan["format"] == "h5ad" else anndata.read_zarr(path)


def given(plan, folder):
    """What we are given: the path, or an object that AnnData reads."""
    if plan["door"] == "path":
        return path_of(plan, folder)
    try:
        return read(plan, folder, backed="r" if plan["door"] == "backed" else None)
    except Exception as error:
        raise corrmask_fast.InputError(f"AnnData refuses: {type(error).__name__}") from error


def ours(plan, folder, given):
    """Tokenize, and read the corpus back."""
    output = folder / "out" / f"cells.{plan['output']}"
    options = options_of(plan) | {name: plan[name] for name in ("max_length", "chunk_cells", "allow_fractional")}
    options["gene_mapping"] = MAPPING if plan["mapping"] else None
    vocabulary = VOCABULARIES[plan["vocabulary"]]
    corrmask_fast.tokenize(given, output, vocabulary, medians_of(plan), progress=False, **options)
    corpus = corrmask_fast.read_corpus(output)
    indptr, tokens = corpus.indptr.tolist(), corpus.tokens.tolist()
    cells = [tokens[a:b] for a, b in itertools.pairwise(indptr)]
    return {"cells": cells, "obs": {name: geneformer.plain(list(corpus.obs[name])) for name in corpus.obs}}


def right(plan, folder):
    try:
        cells = read(plan, folder)
        cells.obs_names, cells.n_obs  # noqa: B018
    except Exception as error:
        raise TheirFault(f"{type(error).__name__}: {error}"[:300]) from error
    n_special, longest = len(SPECIALS[plan["vocabulary"]]), VOCABULARIES[plan["vocabulary"]].max_length
    by_name = {name: i + n_special for i in range(len(IDS)) for name in (IDS[i], f"SYM{i}")}
    medians = medians_of(plan)
    medians = None if medians is None else {by_name[name]: value for name, value in medians.items()}
    options = options_of(plan) | {"max_length": plan["max_length"] or longest, "fractional": plan["allow_fractional"]}
    return geneformer.encode(cells, by_name, medians, mapping=MAPPING if plan["mapping"] else {}, **options)


def genes(plan, value):
    return set(range(*VOCABULARIES[plan["vocabulary"]].gene_range))


def prepare(folder):
    """Compile and import everything once, before children are forked (zarr starts a thread, so it is not used here)."""
    usual = {"format": "h5ad", "change": "none", "values": "counts", "names": "ids", "n_cells": 20, "n_genes": 12}
    usual |= {"density": 0.5, "gene_column": "index", "door": "path", "columns": ["text", "Int"], "where": None}
    usual |= dict.fromkeys(("filter_pass", "feature_types", "total")) | {"medians": "theirs", "dtype": "f4"}
    for number, (kind, output) in enumerate(itertools.product(("csr", "csc", "dense"), ("npz", "dataset"))):
        plan = plan_of(plans(), 0, number) | usual | {"kind": kind, "output": output}
        place = folder / f"whole {number}"
        (place / "out").mkdir(parents=True)
        make(plan, place)
        assert difference(ours(plan, place, given(plan, place)), right(plan, place)) is None
