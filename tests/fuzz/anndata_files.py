"""Files as AnnData writes them, whole or damaged: what the tokenizer and a plain NumPy Geneformer make of them."""

from __future__ import annotations

import itertools
import shutil
import warnings

import anndata
import h5py
import numpy as np
import pandas as pd
import scipy.sparse
from fuzz import geneformer
from fuzz.anndata_changes import change_hdf5, change_zarr, put, zarr
from fuzz.harness import TheirFault, plan_of
from fuzz.mutations import one_of, spoil_bytes, spoil_file
from hypothesis import strategies as st

import corrmask_fast

IDS = tuple(f"ENSG{i:011d}" for i in range(30))
SPECIALS = {"V1": ("<pad>", "<mask>"), "V2": ("<pad>", "<mask>", "<cls>", "<eos>")}
VOCABULARIES = {
    kind: corrmask_fast.Vocabulary((*special, *IDS), {name: f"SYM{i}" for i, name in enumerate(IDS)})
    for kind, special in SPECIALS.items()
}
# The door that takes AnnData too; rules that came with it (feature_types, filter_pass) are not asked of the older one.
tokenize = getattr(corrmask_fast, "tokenize", None) or corrmask_fast.tokenize_h5ad
NEW = hasattr(corrmask_fast, "tokenize")
KINDS = ("csr", "csc", "dense", "dense F", "csr array", "csc array")
NUMBER_TYPES = ("i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f4", "f4", "f8", "?")
OBS = ("text", "labels", "ordered", "int", "float", "bool", "Int", "Bool", "Text", "number labels", "bool labels")


@st.composite
def plans(draw):
    """Everything about a file and how it is read, as plain values."""

    def pick(*values):
        return draw(st.sampled_from(values))

    def seldom(value, otherwise, n=10):
        return value if draw(st.integers(1, n)) == n else otherwise

    formats = ["h5ad"] * 14 + (["zarr 2", "zarr 3"] if zarr and NEW else [])
    return {
        "format": pick(*formats),
        "kind": pick(*KINDS),
        "dtype": pick(*NUMBER_TYPES),
        "retype": [pick(None, None, None, None, "f2", ">f4", ">i4", "u2", ">f8") if i == 0 else
                   pick(None, None, None, None, "i8", "u4", ">i4", "i2") for i in range(3)],
        "n_cells": pick(*[20] * 5, *[60] * 4, 7, 7, 3, 2, 1, 0),
        "n_genes": pick(*[12] * 8, *[30] * 6, 40, 40, 3, 2, 1, 0),
        "density": pick(0.5, 0.5, 0.5, 0.2, 0.1, 1.0, 0.0),
        "values": seldom(pick("fractional", "negative", "nan", "log", "infinite", "huge"), "counts", 12),
        "entries": pick("plain", "plain", "unsorted", "twice", "zeros"),
        "where": pick(None, None, None, "raw", "counts"),
        "compression": pick(None, None, "gzip", "lzf"),
        "names": pick(*["ids"] * 4, "symbols", "symbols", "versions", "mixed", "foreign"),
        "var": draw(st.lists(st.sampled_from(["gene_ids", "ensembl_id", "feature_id", "symbol"]), unique=True)),
        "repeats": seldom(True, False, 4),
        "feature_types": NEW and seldom(True, False, 6),
        "filter_pass": pick("int", "bool", "float", "Int") if NEW and seldom(True, False, 8) else None,
        "columns": draw(st.lists(st.sampled_from(OBS), max_size=4, unique=True)),
        "missing": pick("none", "some", "all", "first half"),
        "asked": pick(0, 1, 2, 2, 4),
        "extras": draw(st.lists(st.sampled_from(["obsm", "uns", "varm", "layers", "obsp"]), max_size=2, unique=True)),
        "vocabulary": pick("V1", "V2"),
        "medians": pick("given", "given", "given", "some", "theirs"),
        "gene_column": seldom(pick("index", "index", "gene_ids", "symbol", "absent"), None, 12),
        "target_sum": pick(10_000, 10_000, 10_000, 1, 12345.678),
        "max_length": pick(None, None, None, 1, 3),
        "chunk_cells": pick(None, None, 1, 3, 7),
        "output": pick("npz", "npz", "dataset"),
        "door": pick(*["path"] * 7, "object") if NEW else "path",
        "change": pick("none", *["structure"] * 5, *["bytes"] * 5),
        "n_changes": pick(1, 1, 1, 2, 3),
    }  # fmt: skip


def source(plan):
    return f"{plan['format']} {plan['kind']} {plan['where'] or 'X'}"


def path_of(plan, folder):
    return folder / f"cells.{plan['format'].split()[0]}"


def medians_of(plan):
    if plan["medians"] == "theirs":
        return None
    rng = np.random.default_rng(plan["seed"])
    values = np.round(rng.choice([0.5, 1.0, 1.0, 2.0, 3.3, 0.123456789], len(IDS)), 9)
    return dict(zip(IDS[: 10 if plan["medians"] == "some" else None], map(float, values), strict=False))


def asked(plan):
    return plan["columns"][: plan["asked"]]


# ---------------------------------------------------------------------------------------------------- making the files


def make(plan, folder):
    """Write the file of a plan and damage it; return what was done, for the table."""
    rng = np.random.default_rng(plan["seed"])
    path = path_of(plan, folder)
    anndata.settings.allow_write_nullable_strings = True
    cells = cells_of(plan, rng)
    if plan["format"] == "h5ad":
        cells.write_h5ad(path, compression=plan["compression"])
    else:
        anndata.settings.zarr_write_format = int(plan["format"][-1])
        cells.write_zarr(path)
    ways = []
    if plan["format"] == "h5ad":
        if plan["change"] == "none":  # SciPy refuses some of the types below: what they hold is read from this one
            shutil.copy(path, folder / "plain.h5ad")
        with h5py.File(path, "r+") as file:
            retype(plan, file)
            if plan["change"] == "structure":
                ways = [change_hdf5(file, plan, rng) for _ in range(plan["n_changes"])]
        if plan["change"] == "bytes":
            changed, way = spoil_bytes(path.read_bytes(), rng)
            path.write_bytes(changed)
            ways = [way]
    elif plan["change"] == "structure":
        ways = [change_zarr(path, rng) for _ in range(plan["n_changes"])]
    elif plan["change"] == "bytes":
        ways = [spoil_file(path, rng)]
    return ways[0] if len(ways) == 1 else "several" if ways else "none"


def cells_of(plan, rng):
    n, m = plan["n_cells"], plan["n_genes"]
    obs = pd.DataFrame(index=[f"cell{i}" for i in range(n)])
    for kind in plan["columns"]:
        obs[kind] = obs_column(kind, n, plan["missing"], rng)
    if plan["filter_pass"]:
        values = pd.Series(rng.integers(0, 2, n), index=obs.index)
        obs["filter_pass"] = values.astype({"Int": "Int64"}.get(plan["filter_pass"], plan["filter_pass"]))
    columns = rng.permutation(max(m, len(IDS)))[:m] if not plan["repeats"] else rng.integers(0, max(m // 2, 1), m)
    var = pd.DataFrame(index=gene_names(plan["names"], columns))
    for name in plan["var"]:
        kind = "symbols" if name == "symbol" else one_of(rng, ["ids", "ids", "versions", "foreign"])
        var[name] = gene_names(kind, columns)
        if rng.random() < 0.4:
            var[name] = pd.Categorical(np.where(rng.random(m) < 0.1, None, var[name].to_numpy(object)))
    if plan["feature_types"]:
        var["feature_types"] = pd.Categorical(
            rng.choice(["Gene Expression", "Antibody Capture", "Peaks"], m, p=[0.8, 0.1, 0.1])
        )
    matrix = matrix_of(plan, rng)
    other = scipy.sparse.csr_matrix(rng.poisson(0.5, (n, m)).astype(np.float32))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if plan["where"] == "raw":
            cells = anndata.AnnData(matrix, obs=obs, var=var)
            cells.raw = cells
            cells = cells[:, : max(m // 2, 1)].copy()
        elif plan["where"] == "counts":
            cells = anndata.AnnData(one_of(rng, [other, None]), obs=obs, var=var, layers={"counts": matrix})
        else:
            cells = anndata.AnnData(matrix, obs=obs, var=var)
    if "layers" in plan["extras"]:
        cells.layers["other"] = cells.layers["counts"] if plan["where"] == "counts" else other[:, : cells.n_vars]
    if "obsm" in plan["extras"]:
        cells.obsm["X_pca"] = rng.normal(size=(n, 3))
    if "varm" in plan["extras"]:
        cells.varm["PCs"] = rng.normal(size=(cells.n_vars, 3))
    if "obsp" in plan["extras"]:
        cells.obsp["distances"] = scipy.sparse.eye(n, format="csr")
    if "uns" in plan["extras"]:
        cells.uns["log1p"] = {"base": None, "names": np.array(["a", "b"]), "n": 3}
    return cells


def gene_names(kind, columns):
    if kind == "foreign":
        return [
            one_of(np.random.default_rng(c), ["<pad>", "<mask>", "GENE", "", "ENSG"]) + str(c) * (c % 2)
            for c in columns
        ]
    names = [IDS[c] if c < len(IDS) else f"OTHER{c}" for c in columns]
    if kind == "versions":
        return [f"{name}.{i % 12}" for i, name in enumerate(names)]
    symbols = [f"SYM{c}" for c in columns]
    return (
        symbols
        if kind == "symbols"
        else names
        if kind == "ids"
        else [*names[: len(names) // 2], *symbols[len(names) // 2 :]]
    )


def obs_column(kind, n, missing, rng):
    """A column of n values, some of them missing if its type has such."""
    gone = {"none": np.zeros(n, bool), "all": np.ones(n, bool), "some": rng.random(n) < 0.4}.get(
        missing, np.arange(n) < n / 2
    )
    text = rng.choice(["B", "T", "", "NK cell", "\u03b3\u03b4", "1", "true"], n).astype(object)
    if kind in {"text", "Text", "labels", "ordered"}:
        if kind == "text":
            return text
        text[gone] = None
        return pd.array(text, "string") if kind == "Text" else pd.Categorical(text, ordered=kind == "ordered")
    if kind in {"number labels", "bool labels"}:
        codes = rng.integers(0, 2, n)
        categories = [3, 7] if kind == "number labels" else [False, True]
        return pd.Categorical.from_codes(np.where(gone, -1, codes), categories)
    if kind in {"Int", "Bool"}:
        numbers = rng.integers(-5, 2**40, n) if kind == "Int" else rng.random(n) < 0.5
        nullable = pd.array(numbers, "Int64" if kind == "Int" else "boolean")
        nullable[gone] = pd.NA
        return nullable
    if kind == "float":
        return np.where(gone, np.nan, rng.normal(size=n)).astype(one_of(rng, ["f4", "f8"]))
    return (
        rng.random(n) < 0.5
        if kind == "bool"
        else rng.integers(-3, 100, n).astype(one_of(rng, ["i1", "i4", "i8", "u2"]))
    )


def matrix_of(plan, rng):
    n, m = plan["n_cells"], plan["n_genes"]
    counts = rng.integers(1, one_of(rng, [2, 4, 100]), (n, m)) * (rng.random((n, m)) < plan["density"])
    counts = counts.astype(plan["dtype"] if plan["values"] == "counts" else "f8")
    if counts.size and plan["values"] != "counts":
        place = tuple(rng.integers(0, size) for size in (n, m))
        values = {"fractional": 0.5, "negative": -1, "nan": np.nan, "infinite": np.inf, "huge": 2.0**60}
        counts[place] = values.get(plan["values"], 1)
        counts = np.log1p(counts) if plan["values"] == "log" else counts
    if plan["kind"].startswith("dense"):
        return np.asfortranarray(counts) if plan["kind"] == "dense F" else counts
    make_csr = scipy.sparse.csr_array if "array" in plan["kind"] else scipy.sparse.csr_matrix
    make_csc = scipy.sparse.csc_array if "array" in plan["kind"] else scipy.sparse.csc_matrix
    matrix = (make_csr if plan["kind"].startswith("csr") else make_csc)(counts)
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


def retype(plan, file):
    """Store parts of a sparse matrix, or a dense one, in another type: files that other programs write."""
    where = {None: "X", "raw": "raw/X"}.get(plan["where"], "layers/counts")
    if where not in file:
        return
    parts = (
        (where,) if isinstance(file[where], h5py.Dataset) else (f"{where}/data", f"{where}/indices", f"{where}/indptr")
    )
    for part, dtype in zip(parts, plan["retype"], strict=False):
        if plan["change"] != "none" and dtype in {"f2", ">f4", ">f8", ">i4", "u2"}:
            continue  # AnnData would refuse the file, whatever is changed
        values = file[part][()] if dtype and file[part].shape else None
        with np.errstate(all="ignore"):
            if dtype and values is not None and np.array_equal(values.astype(dtype).astype(values.dtype), values):
                put(file, part, values.astype(dtype))


# --------------------------------------------------------------------------------------------------- the two readings


def read(plan, folder):
    path = path_of(plan, folder)
    path = plain if (plain := folder / "plain.h5ad").exists() else path
    return anndata.read_h5ad(path) if plan["format"] == "h5ad" else anndata.read_zarr(path)


def ours(plan, folder):
    """Tokenize, and read the corpus back: cells, obs columns."""
    given = path_of(plan, folder)
    if plan["door"] == "object":
        try:
            given = read(plan, folder)
        except Exception as error:
            raise corrmask_fast.InputError(f"AnnData refuses: {type(error).__name__}") from error
    vocabulary = VOCABULARIES[plan["vocabulary"]]
    output = folder / "out" / f"cells.{plan['output']}"
    options = {name: plan[name] for name in ("gene_column", "target_sum", "max_length", "chunk_cells")}
    tokenize(
        given, output, vocabulary, medians_of(plan), layer=plan["where"], obs=asked(plan), progress=False, **options
    )
    return read_back(output, asked(plan))


def read_back(output, names):
    corpus = corrmask_fast.read_corpus(output)
    indptr, tokens = corpus.indptr.tolist(), corpus.tokens.tolist()
    cells = [tokens[a:b] for a, b in itertools.pairwise(indptr)]
    columns = {}
    for name in names:
        column = corpus.obs[name]
        columns[name] = geneformer.plain(column.tolist() if hasattr(column, "tolist") else list(column))
    return cells, columns


def right(plan, folder):
    try:
        cells = read(plan, folder)
        cells.obs_names, cells.n_obs  # noqa: B018
    except Exception as error:
        raise TheirFault(f"{type(error).__name__}: {error}"[:300]) from error
    vocabulary = VOCABULARIES[plan["vocabulary"]]
    n_special = len(SPECIALS[plan["vocabulary"]])
    by_name = {f"SYM{i}": i + n_special for i in range(len(IDS))} | {name: i + n_special for i, name in enumerate(IDS)}
    medians = medians_of(plan)
    medians = None if medians is None else {by_name[name]: value for name, value in medians.items()}
    options = {name: plan[name] for name in ("gene_column", "target_sum")}
    options |= {"layer": plan["where"], "obs": asked(plan), "max_length": plan["max_length"] or vocabulary.max_length}
    return geneformer.encode(cells, by_name, medians, **options)


def valid(plan, folder, value):
    """What cannot be right of cells from a file that AnnData refuses, or None."""
    cells, columns = value
    lo, hi = VOCABULARIES[plan["vocabulary"]].gene_range
    for i, cell in enumerate(cells):
        if not cell or len(set(cell)) < len(cell) or min(cell) < lo or max(cell) >= hi:
            return f"cell {i} is {cell}"
    if any(len(column) != len(cells) for column in columns.values()):
        return "obs columns of another length"
    if len(cells) > max(plan["n_cells"], 1) * 2 + 1:
        return f"{len(cells)} cells from a file of {plan['n_cells']}"
    return None


def difference(plan, value, expected):
    """What differs between our reading and the right one, or None."""
    cells, columns = value
    _, right_cells, right_columns = expected
    if len(cells) != len(right_cells):
        return f"{len(cells)} cells, right {len(right_cells)}"
    for i, (a, b) in enumerate(zip(cells, right_cells, strict=True)):
        if a != b:
            return f"cell {i} is {a[:12]}, right {b[:12]}"
    for name, column in right_columns.items():
        for i, (a, b) in enumerate(zip(columns[name], column, strict=True)):
            if not geneformer.same_value(a, b, empty_is_missing=plan["output"] == "npz"):
                return f"obs {name!r} of cell {i} is {a!r:.80}, right {b!r:.80}"
    return None


def prepare(folder):
    """Compile and import everything once, before children are forked (zarr starts a thread, so it is not used here)."""
    usual = {"format": "h5ad", "change": "none", "values": "counts", "names": "ids", "n_cells": 20, "n_genes": 12}
    usual |= {"density": 0.5, "medians": "theirs", "gene_column": "index", "filter_pass": None, "door": "path"}
    usual |= {"retype": [None] * 3, "where": None, "columns": ["text", "Int"], "asked": 2, "feature_types": False}
    for number, (kind, output) in enumerate(itertools.product(("csr", "csc", "dense"), ("npz", "dataset"))):
        plan = plan_of(plans(), 0, number) | usual | {"kind": kind, "output": output}
        place = folder / f"whole {number}"
        (place / "out").mkdir(parents=True)
        make(plan, place)
        assert difference(plan, ours(plan, place), right(plan, place)) is None or not NEW
