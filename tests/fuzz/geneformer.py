"""Geneformer's rank-value encoding in plain NumPy and Python, on dense float64: what the tokenizer must give.

Written from what the documentation says, and from nothing else of this project.
"""

from __future__ import annotations

import re

import numpy as np
from fuzz.harness import Refused, Unclear

ID_COLUMNS = ("ensembl_id", "gene_ids", "gene_id", "feature_id")
EXACT = 2.0**53  # sums up to here do not depend on their order


def dense(matrix):
    """(n_cells, n_genes) float64 of what AnnData read, duplicates summed; Refused if it is no such matrix."""
    if matrix is None or len(getattr(matrix, "shape", ())) != 2:
        raise Refused("no matrix")
    if not hasattr(matrix, "indptr"):
        matrix = np.asarray(matrix)
        if matrix.dtype.kind not in "iufb":
            raise Refused(f"a matrix of {matrix.dtype}")
        return matrix.astype(np.float64)
    n, m = matrix.shape
    by_columns = matrix.format == "csc"
    indptr, indices, data = (np.asarray(part) for part in (matrix.indptr, matrix.indices, matrix.data))
    if data.dtype.kind not in "iufb":
        raise Refused(f"a matrix of {data.dtype}")
    major, minor = (m, n) if by_columns else (n, m)
    if any(part.ndim != 1 for part in (indptr, indices, data)) or {indptr.dtype.kind, indices.dtype.kind} - set("iu"):
        raise Refused("parts that are no vectors of integers")
    indptr, indices = indptr.astype(np.int64), indices.astype(np.int64)
    rises = indptr.size == major + 1 and indptr[0] == 0 and np.all(np.diff(indptr) >= 0)
    if not rises or indptr[-1] > indices.size or indices.size != data.size:
        raise Refused("pointers that do not fit")
    indices, data = indices[: indptr[-1]], data[: indptr[-1]]
    if indices.size and not 0 <= indices.min() <= indices.max() < minor:
        raise Refused("indices out of range")
    if major * minor > 10**8:
        raise Unclear("too large to be dense")
    out = np.zeros((major, minor))
    counts = data.astype(np.float64)
    with np.errstate(invalid="ignore"):
        sound = np.all((counts >= 0) & (counts == np.floor(counts)) & (counts < EXACT))
    places = np.repeat(np.arange(major), np.diff(indptr)) * minor + indices
    if not sound and np.unique(places).size < places.size:
        raise Unclear("entries that are no counts, and some that stand twice: their sum may be one")
    np.add.at(out, (np.repeat(np.arange(major), np.diff(indptr)), indices), counts)
    return out.T if by_columns else out


def is_missing(value):
    try:
        return value is None or bool(value != value) or type(value).__name__ in {"NAType", "NaTType"}  # noqa: PLR0124
    except TypeError:
        return True  # pandas.NA has no truth value


def plain(values):
    """A list of Python values, missing ones as None."""
    values = [value.item() if isinstance(value, np.generic) else value for value in values]
    values = [value.decode() if isinstance(value, bytes) else value for value in values]  # files without encodings
    return [None if is_missing(value) else value for value in values]


def tokens_of(names, by_name):
    """The token of each column, -1 where it is no gene of the vocabulary."""
    found = []
    for name in names:
        versioned = isinstance(name, str) and re.fullmatch(r"(ENS[A-Z]*G\d+)\.\d+", name)
        found.append(by_name.get(name, by_name.get(versioned[1], -1) if versioned else -1))
    return np.array(found, np.int64)


def best_match(var, by_name, gene_column, counted):
    """The token of each column, by the named column of var, or by the one that finds most genes."""
    candidates = [gene_column] if gene_column else ["index", *(name for name in ID_COLUMNS if name in var.columns)]
    best, most = None, 0
    for name in candidates:
        if name != "index" and list(var.columns).count(name) != 1:
            raise Refused(f"no column {name}")
        tokens = np.where(counted, tokens_of(plain(var.index if name == "index" else var[name]), by_name), -1)
        if (n := np.unique(tokens[tokens >= 0]).size) > most:
            best, most = tokens, n
    if best is None:
        raise Refused("no gene of the vocabulary")
    return best


def encode(adata, by_name, medians, *, layer, gene_column, obs, target_sum, max_length):
    """Return (rows, cells, {name: values}) that a corpus must hold; Refused if it must not be made."""
    n_cells = adata.n_obs
    if layer == "raw" and adata.raw is None:
        raise Refused("no raw")
    if layer not in {None, "raw"} and layer not in adata.layers:
        raise Refused(f"no layer {layer}")
    holder = adata.raw if layer == "raw" else adata
    counts = dense(adata.layers[layer] if layer not in {None, "raw"} else holder.X)
    var = holder.var
    if counts.shape != (n_cells, len(var)):
        raise Refused(f"counts {counts.shape} for {n_cells} cells and {len(var)} genes")
    for name in obs:
        if list(adata.obs.columns).count(name) != 1:
            raise Refused(f"no obs column {name}")
    columns = {name: plain(adata.obs[name]) for name in obs}

    counted = np.ones(len(var), bool)
    if "feature_types" in var.columns:
        counted = np.array([str(kind).lower() == "gene expression" for kind in plain(var["feature_types"])], bool)
        if not counted.any():
            raise Unclear("no column is of the type Gene Expression")
    token_of_column = best_match(var, by_name, gene_column, counted)
    kept = np.ones(n_cells, bool)
    if "filter_pass" in adata.obs.columns:
        kept = np.array([value == 1 for value in plain(adata.obs["filter_pass"])], bool)
    counts = np.where(counted[None, :], counts, 0)[kept]
    if not np.all(np.isfinite(counts)) or (counts.size and (counts.min() < 0 or np.any(counts != np.floor(counts)))):
        raise Refused("no counts")
    totals = counts.sum(axis=1)
    if totals.size and totals.max() > EXACT:
        raise Unclear("sums beyond exact float64")

    tokens = np.unique(token_of_column[token_of_column >= 0])
    sums = np.stack([counts[:, token_of_column == token].sum(axis=1) for token in tokens], axis=1)
    scaled = sums / np.where(totals == 0, 1, totals)[:, None] * target_sum
    if medians is None:
        medians = {t: np.median(scaled[sums[:, k] > 0, k]) for k, t in enumerate(tokens) if np.any(sums[:, k] > 0)}
    rows, cells = [], []
    for i, row in enumerate(np.flatnonzero(kept)):
        value = {t: scaled[i, k] / medians[t] for k, t in enumerate(tokens) if sums[i, k] > 0 and t in medians}
        if value:
            rows.append(int(row))
            cells.append([int(t) for t in sorted(value, key=lambda t: (-value[t], t))[:max_length]])
    if not cells:
        raise Refused("no cell with a gene")
    return rows, cells, {name: [values[row] for row in rows] for name, values in columns.items()}


def same_value(a, b, *, empty_is_missing):
    """Whether a column holds what it should: a is what was read back, b what AnnData read."""
    if is_missing(a) or is_missing(b):
        return (is_missing(a) or (empty_is_missing and isinstance(a, str) and not a)) and is_missing(b)
    a = a.item() if isinstance(a, np.generic) else a
    if isinstance(a, bool) != isinstance(b, bool) or isinstance(a, str) != isinstance(b, str):
        return False
    return a == b
