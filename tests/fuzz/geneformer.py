"""Geneformer's rank-value encoding in plain Python, entry by entry in float64: what the tokenizer must give.

Written from what the documentation says, and from nothing else of this project.
"""

from __future__ import annotations

import re
from itertools import pairwise

import numpy as np
from fuzz.harness import Refused, Unclear, is_missing

ID_COLUMNS = ("ensembl_id", "gene_ids", "gene_id", "feature_id")


def entries_of(matrix):
    """For each cell its (column, count) that is not 0, as stored: by column where the matrix is dense or CSC."""
    if matrix is None or len(getattr(matrix, "shape", ())) != 2:
        raise Refused("no matrix")
    if not hasattr(matrix, "indptr"):
        matrix = np.asarray(matrix)
        if matrix.dtype.kind not in "iufb":
            raise Refused(f"a matrix of {matrix.dtype}")
        return [[(int(k), float(row[k])) for k in np.flatnonzero(row)] for row in matrix]
    n, m = matrix.shape
    by_columns = matrix.format == "csc"
    indptr, indices, data = (np.asarray(part) for part in (matrix.indptr, matrix.indices, matrix.data))
    if data.dtype.kind not in "iufb":
        raise Refused(f"a matrix of {data.dtype}")
    major, minor = (m, n) if by_columns else (n, m)
    if any(part.ndim != 1 for part in (indptr, indices, data)) or {indptr.dtype.kind, indices.dtype.kind} - set("iu"):
        raise Refused("parts that are no vectors of integers")
    bounds, places = indptr.tolist(), indices.tolist()
    sizes_fit = len(bounds) == major + 1 and data.size == len(places)
    if not sizes_fit or bounds[0] != 0 or sorted(bounds) != bounds or bounds[-1] > len(places):
        raise Refused("pointers that do not fit")
    places = places[: bounds[-1]]
    if places and not 0 <= min(places) <= max(places) < minor:
        raise Refused("indices out of range")
    if n > 10**6:
        raise Unclear("too many cells for plain Python")
    cells = [[] for _ in range(n)]
    for i, (a, b) in enumerate(pairwise(bounds)):
        for place, count in zip(places[a:b], data[a:b], strict=True):
            if count != 0:
                cells[place if by_columns else i].append((i if by_columns else place, float(count)))
    return cells


def plain(values):
    """A list of Python values, missing ones as None."""
    values = [value.item() if isinstance(value, np.generic) else value for value in values]
    values = [
        value.decode(errors="replace") if isinstance(value, bytes) else value for value in values
    ]  # files without encodings
    return [None if is_missing(value) else value for value in values]


def current(name, names):
    """What ``names`` has for a name, with or without the version of an Ensembl id, or None."""
    versioned = isinstance(name, str) and re.fullmatch(r"(ENS[A-Z]*G\d+)\.\d+", name)
    return names.get(name, names.get(versioned[1]) if versioned else None)


def best_match(var, by_name, mapping, gene_column, counted):
    """The token of each column or None, by the named column of var, or by the one that finds most genes."""
    candidates = [gene_column] if gene_column else ["index", *(name for name in ID_COLUMNS if name in var.columns)]
    best, most = None, 0
    for candidate in candidates:
        if candidate != "index" and list(var.columns).count(candidate) != 1:
            raise Refused(f"no column {candidate}")
        tokens = []
        for name, counts in zip(plain(var.index if candidate == "index" else var[candidate]), counted, strict=True):
            token = current(name, by_name)
            token = current(current(name, mapping), by_name) if token is None else token
            tokens.append(token if counts else None)
        if (n := len(set(tokens) - {None})) > most:
            best, most = tokens, n
    if best is None:
        raise Refused("no gene of the vocabulary")
    return best


def totals_of(column, kept, cells):
    """Each cell's total from obs; Refused where it is none."""
    values = plain(column)
    there = [value for value in values if value is not None]
    if not there or any(isinstance(value, bool) or not isinstance(value, int | float) for value in there):
        raise Refused("totals that are no numbers")
    for i in kept:
        if values[i] is None or not 0 < values[i] < np.inf:
            if cells[i]:
                raise Refused(f"a total of {values[i]}")
            raise Unclear("a total that is none, of a cell without counts")
    return [value if value is None else float(value) for value in values]


def encode(adata, by_name, medians, *, layer=None, gene_column=None, mapping=(), obs=(), obs_names=None, total=None,
           fractional=False, target_sum=10_000, max_length=2048):  # fmt: skip
    """Return {"cells": …, "obs": {name: values}} that a corpus must hold; Refused if it must not be made."""
    if layer == "raw" and adata.raw is None:
        raise Refused("no raw")
    if layer not in {None, "raw"} and layer not in adata.layers:
        raise Refused(f"no layer {layer}")
    holder = adata.raw if layer == "raw" else adata
    matrix, var = adata.layers[layer] if layer not in {None, "raw"} else holder.X, holder.var
    if matrix is not None and matrix.shape != (adata.n_obs, len(var)):
        raise Refused(f"counts {matrix.shape} for {adata.n_obs} cells and {len(var)} genes")
    cells = entries_of(matrix)
    for name in [*obs, *([total] if total else [])]:
        if list(adata.obs.columns).count(name) != 1:
            raise Refused(f"no obs column {name}")
    columns = {name: plain(adata.obs[name]) for name in obs}
    if obs_names:
        columns[obs_names] = plain(adata.obs.index)
        if None in columns[obs_names]:
            raise Unclear("cells without a name")

    counted = [True] * len(var)
    if "feature_types" in var.columns:  # where no column is a gene, all count
        genes = [str(kind).lower() in {"gene expression", "gex", "rna"} for kind in plain(var["feature_types"])]
        counted = genes if any(genes) else counted
    token_of_column = best_match(var, by_name, dict(mapping), gene_column, counted)
    kept = list(range(adata.n_obs))
    if "filter_pass" in adata.obs.columns:
        kept = [i for i, value in enumerate(plain(adata.obs["filter_pass"])) if value == 1]
    totals = totals_of(adata.obs[total], kept, cells) if total else None

    scaled = {}
    for i in kept:
        whole, sums = 0.0, {}
        for column, count in cells[i]:
            if not counted[column]:
                continue
            if not 0 <= count < np.inf or (count % 1 and not fractional):
                raise Refused(f"a count of {count}")
            whole += count
            if (token := token_of_column[column]) is not None:
                sums[token] = sums.get(token, 0.0) + count
        if whole == np.inf:
            raise Refused("counts that add up to infinity")
        scaled[i] = {token: count / (totals[i] if totals else whole) * target_sum for token, count in sums.items()}
    if medians is None:
        values = {}
        for token, value in (pair for cell in scaled.values() for pair in cell.items()):
            values.setdefault(token, []).append(value)
        medians = {token: np.median(found) for token, found in values.items()}
    found = {}
    for i, cell in scaled.items():
        value = {token: float(np.float64(x) / medians[token]) for token, x in cell.items() if token in medians}
        if value:
            found[i] = sorted(value, key=lambda token, value=value: (-value[token], token))[:max_length]
    if not found:
        raise Refused("no cell with a gene")
    return {"cells": list(found.values()), "obs": {name: [c[i] for i in found] for name, c in columns.items()}}
