"""The project's other files, whole or damaged: corpora, graphs, tables, checkpoints, dictionaries, settings.

What is right is read without this project: by datasets, NumPy, safetensors, json, pickle and tomllib.
"""

from __future__ import annotations

import dataclasses
import io
import json
import pickle
import tomllib
from itertools import pairwise

import anndata
import datasets
import numpy as np
import pandas as pd
from fuzz import geneformer
from fuzz.harness import Refused, TheirFault, Unclear
from fuzz.mutations import copy, spoil_file
from fuzz.other_changes import CHANGES
from hypothesis import strategies as st
from safetensors.numpy import load_file

import corrmask_fast
from corrmask_fast import (
    Corpus,
    DependencyGraph,
    PMITable,
    Vocabulary,
    build_dependency_graph,
    read_corpus,
    write_corpus,
)
from corrmask_fast.tensor_files import METADATA, canonical, hash_tensors
from corrmask_fast.training.settings import PretrainingSettings

tokenize = getattr(corrmask_fast, "tokenize", None) or corrmask_fast.tokenize_h5ad
NAMES = ("<pad>", "<mask>", *(f"ENSG{i:011d}" for i in range(40)))
SYMBOLS = {name: f"SYM{i}" for i, name in enumerate(NAMES[2:])}
BUILD = {"min_presence": 1, "min_cooccurrence": 1, "rho_min": 0.1, "n_neighbors": 5, "progress": False, "device": "cpu"}
FILES = {f"{name} {form}": f"{name}.{form}" for name in ("tokens", "medians", "symbols") for form in ("json", "pkl")}
FILES |= {"folder": "cells.dataset", "npz": "cells.npz", "graph": "graph.safetensors", "PMI table": "pmi.safetensors"}
FILES |= {"checkpoint": "checkpoint", "vocabulary": "vocabulary.json", "settings": "settings.toml"}
BASE = {}  # where the whole files are, and what is in them


@st.composite
def plans(draw):
    often = ["folder", "npz", "graph", "PMI table", "checkpoint"]
    return {
        "kind": draw(st.sampled_from([*FILES, *often, *often])),
        "change": draw(st.sampled_from(["none", *["structure"] * 6, *["bytes"] * 5])),
        "n_changes": draw(st.sampled_from([1, 1, 1, 2])),
        "protocol": draw(st.integers(0, 5)),
    }


def source(plan):
    return plan["kind"]


def prepare(folder):
    """Write a whole file of each kind, and compile everything once."""
    home = folder / "whole"
    home.mkdir()
    rng = np.random.default_rng(0)
    vocabulary = Vocabulary(NAMES, SYMBOLS)
    cells = [rng.permutation(np.arange(2, 42))[: rng.integers(0, 41)] for _ in range(60)]
    obs = {"type": rng.choice(["B", "T"], 60), "n": rng.integers(0, 9, 60), "share": rng.random(60)}
    corpus = Corpus(np.cumsum([0, *map(len, cells)]), np.concatenate(cells), vocabulary, obs=obs)
    other = Corpus(corpus.indptr, np.concatenate([rng.permutation(cell) for cell in cells]), vocabulary)
    write_corpus(corpus, home / "cells.dataset", chunk_cells=25)
    write_corpus(corpus, home / "cells.npz")
    graph = build_dependency_graph(corpus, checkpoint=home / "checkpoint", **BUILD)
    build_dependency_graph(other, checkpoint=home / "other", **BUILD)
    graph.save(home / "graph.safetensors")
    PMITable.from_corpus(corpus, min_count=2, progress=False).save(home / "pmi.safetensors")
    vocabulary.save(home / "vocabulary.json")
    tables = {
        "tokens": {name: i for i, name in enumerate(NAMES)},
        "medians": {name: float(i % 7 + 0.5) for i, name in enumerate(NAMES[2:])},
        "symbols": {symbol: name for name, symbol in SYMBOLS.items()},
    }
    for name, table in tables.items():
        (home / f"{name}.json").write_text(json.dumps(table))
        (home / f"{name}.pkl").write_bytes(pickle.dumps(table))
    (home / "settings.toml").write_text(PretrainingSettings().to_toml())
    counts = rng.poisson(0.7, (20, 40)).astype(np.float32)
    anndata.AnnData(counts, var=pd.DataFrame(index=NAMES[2:])).write_h5ad(home / "cells.h5ad")
    BASE.update(home=home, corpus=corpus, graph=content_of(graph), counts=home / "cells.h5ad")
    BASE["tables"] = tables
    for kind in FILES:
        plan = {"kind": kind, "change": "none", "n_changes": 1, "protocol": 4, "seed": 0}
        place = folder / f"whole {kind}"
        (place / "out").mkdir(parents=True)
        make(plan, place)
        value = ours(plan, place)
        assert difference(plan, value, right(plan, place)) is None, kind


def make(plan, folder):
    rng = np.random.default_rng(plan["seed"])
    kind = plan["kind"]
    path = copy(BASE["home"] / FILES[kind], folder / FILES[kind])
    if kind == "checkpoint":
        copy(BASE["home"] / "other", folder / "other")
    if path.suffix == ".pkl":
        path.write_bytes(pickle.dumps(BASE["tables"][kind.split()[0]], plan["protocol"]))
    if plan["change"] == "none":
        return "none"
    change = spoil_file if plan["change"] == "bytes" else CHANGES.get(kind) or CHANGES[kind.split()[-1]]
    ways = []
    for _ in range(plan["n_changes"]):
        try:
            ways.append(change(path, rng))
        except Exception as error:  # noqa: BLE001 (a second change may find no file to change)
            ways.append(f"not possible: {type(error).__name__}")
    return ways[0] if len(ways) == 1 else "several"


# --------------------------------------------------------------------------------------------------------- our reading


def content_of(thing):
    """What a graph or a PMI table holds, as plain values."""
    arrays = ("indptr", "indices", "rho", "rho_global", "npmi", "counts")
    found = {name: getattr(thing, name) for name in arrays if getattr(thing, name, None) is not None}
    return {name: np.asarray(array).tolist() for name, array in found.items()} | {"names": list(thing.vocabulary.names)}


def ours(plan, folder):
    kind, path = plan["kind"], folder / FILES[plan["kind"]]
    if kind in {"folder", "npz"}:
        corpus = read_corpus(path)
        lengths = corpus.lengths.tolist()
        cells = [c.tokens[a:b].tolist() for c in corpus.chunks(7) for a, b in pairwise(c.indptr)]
        columns = {name: geneformer.plain(np.asarray(corpus.obs[name]).tolist()) for name in corpus.obs}
        assert len(lengths) == len(cells)
        return {"cells": cells, "obs": columns, "names": list(corpus.vocabulary.names)}
    if kind in {"graph", "PMI table"}:
        return content_of((DependencyGraph if kind == "graph" else PMITable).load(path))
    if kind == "checkpoint":
        return content_of(build_dependency_graph(BASE["corpus"], checkpoint=path, **BUILD))
    if kind == "vocabulary":
        vocabulary = Vocabulary.load(path)
        return {"names": list(vocabulary.names), "symbols": dict(vocabulary.symbols)}
    if kind.startswith("tokens"):
        return {"names": list(Vocabulary.from_token_dictionary(path).names)}
    if kind.startswith("symbols"):
        vocabulary = Vocabulary.from_token_dictionary(BASE["tables"]["tokens"], path)
        return {
            "ids": {
                name: attempt_id(vocabulary, name) for name in (*SYMBOLS.values(), *(f"{s}x" for s in SYMBOLS.values()))
            }
        }
    if kind.startswith("medians"):
        output = folder / "out" / "cells.npz"
        tokenize(BASE["counts"], output, BASE["corpus"].vocabulary, path, progress=False)
        corpus = read_corpus(output)
        return {"cells": [corpus.tokens[a:b].tolist() for a, b in pairwise(corpus.indptr)]}
    return {"settings": dataclasses.asdict(PretrainingSettings.read(path))}


def attempt_id(vocabulary, name):
    try:
        return vocabulary.id_of(name)
    except corrmask_fast.InputError:
        return None


# -------------------------------------------------------------------------------------------------- the other reading


class Plain(pickle.Unpickler):
    """Numbers of NumPy, and nothing else that a pickle may name."""

    def find_class(self, module, name):
        if module.startswith("numpy") and name in {"scalar", "dtype"}:
            return super().find_class(module, name)
        raise Refused(f"a pickle of {module}.{name}")


def table_of(path):
    try:
        content = path.read_bytes()
        table = json.loads(content) if path.suffix == ".json" else Plain(io.BytesIO(content)).load()
    except Exception as error:
        raise Refused(f"{type(error).__name__}") from error
    if not isinstance(table, dict):
        raise Refused("no dictionary")
    return table


def check(condition, why):
    if not condition:
        raise Refused(why)


def is_int(value):
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def names_of(content):
    """The names of a vocabulary in JSON."""
    check(isinstance(content, dict) and isinstance(content.get("names"), list), "no vocabulary")
    names = content["names"]
    check(all(isinstance(name, str) for name in names), "names that are no text")
    check(len(set(names)) == len(names), "names twice")
    if not {"<pad>", "<mask>"} <= set(names):
        raise Unclear("special tokens of other names, or none")
    return names


def right(plan, folder):
    kind, path = plan["kind"], folder / FILES[plan["kind"]]
    if kind == "checkpoint":
        if (folder / "rehashed").exists():
            raise Unclear("numbers with a right hash: no crash and no exception is all that can be asked")
        return BASE["graph"]
    if kind == "folder":
        return folder_content(path)
    if kind == "npz":
        return npz_content(path)
    if kind in {"graph", "PMI table"}:
        return tensor_content(kind, path)
    if kind == "settings":
        return settings_content(path)
    table = table_of(path)
    if kind == "vocabulary":
        if "names" not in table:
            return token_names(table)
        check(isinstance(table["symbols"], dict), "symbols of another kind")
        check(all(isinstance(value, str) for value in table["symbols"].values()), "symbols that are no text")
        names = names_of(table)
        return {"names": names, "symbols": {name: text for name, text in table["symbols"].items() if name in names}}
    if kind.startswith("tokens"):
        return token_names(table)
    if kind.startswith("symbols"):
        pairs = [(k, v) for k, v in table.items() if isinstance(k, str) and isinstance(v, str)]
        pairs = pairs if any(v in NAMES for _, v in pairs) else [(v, k) for k, v in pairs]
        pairs = [(symbol, name) for symbol, name in pairs if name in NAMES]
        check(pairs, "no symbol of a gene")
        if len({symbol for symbol, _ in pairs}) < len(pairs):
            raise Unclear("one symbol of two genes")
        asked = [*SYMBOLS.values(), *(f"{symbol}x" for symbol in SYMBOLS.values())]
        return {"ids": {symbol: NAMES.index(name) for symbol, name in pairs if symbol in asked}}
    return {"cells": median_cells(table)}


def token_names(table):
    check(all(isinstance(name, str) and is_int(token) for name, token in table.items()), "no names and ids")
    check(sorted(table.values()) == list(range(len(table))), "ids with gaps")
    names = sorted(table, key=table.get)
    return {"names": names_of({"names": names})}


def median_cells(table):
    medians = {}
    for i, name in enumerate(NAMES[2:]):
        for key in (name, SYMBOLS[name]):
            if key in table:
                value = table[key]
                check(
                    isinstance(value, int | float | np.number) and not isinstance(value, bool),
                    f"a median {value!r:.50}",
                )
                check(0 < value < np.inf and value < 1e308, "a median out of range")
                medians.setdefault(i + 2, float(value))
    check(not {"<pad>", "<mask>"} & set(table) and medians, "no medians")
    by_name = {name: i for i, name in enumerate(NAMES) if i > 1}
    options = {"layer": None, "gene_column": None, "obs": (), "target_sum": 10_000, "max_length": 2048}
    return geneformer.encode(anndata.read_h5ad(BASE["counts"]), by_name, medians, **options)[1]


def cells_in(lists, names):
    """The cells of a corpus: special tokens stripped; of a gene that stands twice the first counts."""
    special = {i for i, name in enumerate(names) if name.startswith("<") and name.endswith(">")}
    cells = []
    for cell in lists:
        check(cell is not None and all(is_int(token) and 0 <= token < len(names) for token in cell), "no tokens")
        cells.append(list(dict.fromkeys(int(token) for token in cell if token not in special)))
    return cells


def folder_content(path):
    names = names_of(table_of(path / "vocabulary.json")) if (path / "vocabulary.json").is_file() else None
    check(names, "no vocabulary")
    try:
        dataset = datasets.load_from_disk(str(path))
        assert isinstance(dataset, datasets.Dataset)
        dataset = dataset.with_format(None)
        table = dataset.data.table
    except Exception as error:
        raise TheirFault(f"{type(error).__name__}: {error}"[:200]) from error
    check(table.column_names.count("input_ids") == 1, "no cells")
    try:
        table["input_ids"].validate(full=True)
    except Exception as error:
        raise Refused("Arrow says that the cells are damaged") from error
    check(str(table["input_ids"].type).startswith(("list", "large_list", "fixed")), "no lists")
    try:
        table.validate(full=True)
        columns = {name: list(dataset[name]) for name in dataset.column_names}
    except Exception as error:
        raise TheirFault(f"{type(error).__name__}: {error}"[:200]) from error
    cells = cells_in(columns.pop("input_ids"), names)
    columns.pop("length", None)
    return {"cells": cells, "obs": {name: geneformer.plain(column) for name, column in columns.items()}, "names": names}


def npz_content(path):
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
    except Exception as error:
        raise TheirFault(f"{type(error).__name__}: {error}"[:200]) from error
    check({"indptr", "tokens", "vocabulary"} <= set(arrays), "arrays are missing")
    try:
        names = names_of(json.loads(arrays["vocabulary"].tobytes()))
    except (ValueError, RecursionError) as error:
        raise Refused("no vocabulary") from error
    indptr, tokens = arrays["indptr"], arrays["tokens"]
    check(indptr.ndim == tokens.ndim == 1 and indptr.dtype.kind in "iu" and tokens.dtype.kind in "iu", "no integers")
    bounds = [int(value) for value in indptr]
    check(
        bounds and bounds[0] == 0 and bounds[-1] == tokens.size and sorted(bounds) == bounds, "pointers that do not fit"
    )
    cells = cells_in([tokens[a:b].tolist() for a, b in pairwise(bounds)], names)
    columns = {name[4:]: array for name, array in arrays.items() if name.startswith("obs/")}
    check(all(np.ndim(column) and len(column) == len(cells) for column in columns.values()), "obs of another length")
    return {
        "cells": cells,
        "obs": {name: geneformer.plain(column.tolist()) for name, column in columns.items()},
        "names": names,
    }


def tensor_content(kind, path):
    try:
        tensors = load_file(path)
        content = path.read_bytes()
        header = json.loads(
            json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"][METADATA]
        )
    except Exception as error:
        raise Refused(f"{type(error).__name__}") from error
    check(isinstance(header, dict) and "vocabulary" in header, "no header")
    digest = header.pop("sha256", None)
    check(digest == hash_tensors(canonical(header), tensors), "another hash")
    names = names_of(header["vocabulary"])
    needed = {"indptr", "indices"} | ({"rho"} if kind == "graph" else {"npmi", "counts"})
    check(needed <= set(tensors) <= needed | {"rho_global"}, "tensors are missing")
    check(all(array.ndim == 1 for array in tensors.values()), "tensors of other dimensions")
    stored = {"indptr": "i8", "indices": "i8", "rho": "f4", "rho_global": "f4"}
    check(all(tensors[name].dtype.kind in "iu" for name in ("indptr", "indices")), "no integers")
    check(all(array.dtype.kind in "iuf" for array in tensors.values()), "no numbers")
    with np.errstate(all="ignore"):
        values = {name: array.astype(stored.get(name, array.dtype)).tolist() for name, array in tensors.items()}
    bounds, others = values["indptr"], values["indices"]
    check(all(is_int(x) for x in (*bounds, *others)), "no integers")
    check(
        len(bounds) == len(names) + 1 and bounds[0] == 0 and bounds[-1] == len(others) and sorted(bounds) == bounds,
        "pointers",
    )
    check(all(len(values[name]) == len(others) for name in needed - {"indptr"}), "values of another length")
    genes = {i for i, name in enumerate(names) if not name.startswith("<")}
    pairs = [(u, v) for u in range(len(names)) for v in others[bounds[u] : bounds[u + 1]]]
    check(
        pairs == sorted(set(pairs)) and all(u in genes and v in genes for u, v in pairs), "pairs out of range or order"
    )
    if kind == "graph":
        rho = dict(zip(pairs, values["rho"], strict=True))
        check(all(u != v and (v, u) in rho for u, v in pairs), "an edge in one direction, or to itself")
        weights = [*values["rho"], *values.get("rho_global", [])]
    else:
        weights = [*values["npmi"], *values["counts"]]
        check(all(c >= 0 and c % 1 == 0 for c in values["counts"]), "counts that are no counts")
    check(all(np.isfinite(weights)), "weights that are not finite")
    return values | {"names": names}


def settings_content(path):
    try:
        found = tomllib.loads(path.read_bytes().decode())
    except Exception as error:
        raise Refused(f"{type(error).__name__}") from error
    expected = dataclasses.asdict(PretrainingSettings())
    for name, value in found.items():
        if name not in expected:
            raise Unclear(f"another name, {name!r:.30}")
        kinds = (int, float) if isinstance(expected[name], float) else type(expected[name])
        right_kind = isinstance(value, kinds) and isinstance(value, bool) == isinstance(expected[name], bool)
        check(right_kind, f"{name} = {value!r:.50}")
        expected[name] = value
    sizes = ("hidden_size", "layers", "heads", "intermediate_size", "max_length", "batch_size")
    check(all(expected[name] < 10**9 for name in sizes), "absurd sizes")
    return {"settings": expected}


def valid(plan, folder, value):
    """What cannot be right of a file that the reference refuses, or None."""
    names, cells = value.get("names", NAMES), value.get("cells", [])
    genes = {i for i, name in enumerate(names) if not name.startswith("<")}
    wrong = next((cell for cell in cells if len(set(cell)) < len(cell) or not set(cell) <= genes), None)
    return None if wrong is None else f"a cell is {wrong[:12]}"


def difference(plan, value, expected):
    """The first thing that is not as it should be, or None."""
    for key, content in expected.items():
        mine = value.get(key)
        if key in {"obs", "ids", "settings"}:
            for name, column in content.items():
                other = mine.get(name) if mine else None
                if not same(other, column):
                    return f"{key} {name!r:.40} is {other!r:.80}, right {column!r:.80}"
        elif not same(mine, content):
            return f"{key}: {first_difference(mine, content)}"
    return None


def same(a, b):
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(same, a, b))
    a, b = [x.item() if isinstance(x, np.generic) else x for x in (a, b)]
    missing = [geneformer.is_missing(x) if not isinstance(x, list | dict) else False for x in (a, b)]
    return all(missing) or (isinstance(a, bool) == isinstance(b, bool) and a == b)


def first_difference(mine, content):
    if not isinstance(mine, list) or len(mine) != len(content):
        return f"{len(mine or [])} values, right {len(content)}"
    i = next(i for i in range(len(content)) if not same(mine[i], content[i]))
    return f"number {i} is {mine[i]!r:.80}, right {content[i]!r:.80}"
