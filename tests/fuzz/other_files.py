"""The project's other files, whole or damaged: corpora, graphs, tables, checkpoints, dictionaries, settings.

What is right is read without this project: by datasets, NumPy, json, pickle and tomllib. A graph, a PMI table or a
checkpoint has a hash: what is read must be what was written. Where the hash was made right again, no crash and no
exception is all that can be asked.
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
from fuzz.harness import Refused, TheirFault, Unclear, difference
from fuzz.mutations import copy, spoil_file
from fuzz.other_changes import CHANGES
from hypothesis import strategies as st

import corrmask_fast as cm
from corrmask_fast.training.settings import PretrainingSettings

NAMES = ("<pad>", "<mask>", *(f"ENSG{i:011d}" for i in range(40)))
SYMBOLS = {name: f"SYM{i}" for i, name in enumerate(NAMES[2:])}
BUILD = {"min_presence": 1, "min_cooccurrence": 1, "rho_min": 0.1, "n_neighbors": 5, "progress": False, "device": "cpu"}
FILES = {f"{name} {form}": f"{name}.{form}" for name in ("tokens", "medians") for form in ("json", "pkl")}
FILES |= {"folder": "cells.dataset", "npz": "cells.npz", "graph": "graph.safetensors", "PMI table": "pmi.safetensors"}
FILES |= {"valued folder": "valued.dataset", "valued npz": "valued.npz"}  # corpora with values beside the tokens
FILES |= {"checkpoint": "checkpoint", "vocabulary": "vocabulary.json", "settings": "settings.toml"}
NPZ_ARRAYS = {"indptr", "tokens", "values", "vocabulary", "array_names"}
BASE = {}  # where the whole files are, and what is in them


@st.composite
def plans(draw):
    often = ["folder", "npz", "valued folder", "valued npz", "graph", "PMI table", "checkpoint"]
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
    vocabulary = cm.Vocabulary(NAMES, SYMBOLS)
    cells = [rng.permutation(np.arange(2, 42))[: rng.integers(0, 41)] for _ in range(60)]
    some = np.where(rng.random(60) < 0.3, None, rng.choice(["x", ""], 60))
    obs = {"type": rng.choice(["B", "T"], 60), "n": rng.integers(0, 9, 60), "share": rng.random(60), "some": some}
    corpus = cm.Corpus(np.cumsum([0, *map(len, cells)]), np.concatenate(cells), vocabulary, obs=obs)
    other = cm.Corpus(corpus.indptr, np.concatenate([rng.permutation(cell) for cell in cells]), vocabulary)
    cm.write_corpus(corpus, home / "cells.dataset", chunk_cells=25)
    cm.write_corpus(corpus, home / "cells.npz")
    valued = cm.Corpus(corpus.indptr, corpus.tokens, vocabulary, obs=obs, values=rng.poisson(2, corpus.nnz))
    cm.write_corpus(valued, home / "valued.dataset", chunk_cells=25)
    cm.write_corpus(valued, home / "valued.npz")
    graph = cm.build_dependency_graph(corpus, checkpoint=home / "checkpoint", **BUILD)
    cm.build_dependency_graph(other, checkpoint=home / "other", **BUILD)
    graph.save(home / "graph.safetensors")
    table = cm.PMITable.from_corpus(corpus, min_count=2, progress=False)
    table.save(home / "pmi.safetensors")
    vocabulary.save(home / "vocabulary.json")
    tables = {
        "tokens": {name: i for i, name in enumerate(NAMES)},
        "medians": {name: float(i % 7 + 0.5) for i, name in enumerate(NAMES[2:])},
    }
    for name, content in tables.items():
        (home / f"{name}.json").write_text(json.dumps(content))
    (home / "settings.toml").write_text(PretrainingSettings().to_toml())
    counts = rng.poisson(0.7, (20, 40)).astype(np.float32)
    anndata.AnnData(counts, var=pd.DataFrame(index=NAMES[2:])).write_h5ad(home / "cells.h5ad")
    BASE.update(home=home, corpus=corpus, tables=tables, counts=home / "cells.h5ad")
    BASE.update({"graph": content_of(graph), "checkpoint": content_of(graph), "PMI table": content_of(table)})
    for kind in FILES:
        plan = {"kind": kind, "change": "none", "n_changes": 1, "protocol": 4, "seed": 0}
        place = folder / f"whole {kind}"
        (place / "out").mkdir(parents=True)
        make(plan, place)
        assert difference(ours(plan, place, None), right(plan, place)) is None, kind


def make(plan, folder):
    rng, kind = np.random.default_rng(plan["seed"]), plan["kind"]
    path = folder / FILES[kind]
    if kind == "checkpoint":
        copy(BASE["home"] / "other", folder / "other")
    if path.suffix == ".pkl":
        path.write_bytes(pickle.dumps(BASE["tables"][kind.split()[0]], plan["protocol"]))
    else:
        copy(BASE["home"] / FILES[kind], path)
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


def given(plan, folder):
    """Nothing: every file is read by its path."""


def ours(plan, folder, given):
    kind, path = plan["kind"], folder / FILES[plan["kind"]]
    if kind.endswith(("folder", "npz")):
        corpus = cm.read_corpus(path)
        chunks = list(corpus.chunks(7))
        cells = [c.tokens[a:b].tolist() for c in chunks for a, b in pairwise(c.indptr)]
        bits = [c.values.view(np.uint32)[a:b].tolist() for c in chunks if c.has_values for a, b in pairwise(c.indptr)]
        columns = {name: geneformer.plain(np.asarray(corpus.obs[name]).tolist()) for name in corpus.obs}
        assert corpus.lengths.size == len(cells)
        return {"cells": cells, "values": bits, "obs": columns, "names": list(corpus.vocabulary.names)}
    if kind in {"graph", "PMI table"}:
        return content_of((cm.DependencyGraph if kind == "graph" else cm.PMITable).load(path))
    if kind == "checkpoint":
        return content_of(cm.build_dependency_graph(BASE["corpus"], checkpoint=path, **BUILD))
    if kind == "vocabulary":
        vocabulary = cm.Vocabulary.load(path)
        return {"names": list(vocabulary.names), "symbols": dict(vocabulary.symbols)}
    if kind.startswith("tokens"):
        return {"names": list(cm.Vocabulary.from_token_dictionary(path).names)}
    if kind == "settings":
        return {"settings": dataclasses.asdict(PretrainingSettings.read(path))}
    output = folder / "out" / "cells.npz"
    cm.tokenize(BASE["counts"], output, BASE["corpus"].vocabulary, path, progress=False)
    corpus = cm.read_corpus(output)
    return {"cells": [corpus.tokens[a:b].tolist() for a, b in pairwise(corpus.indptr)]}


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
    if kind in {"graph", "PMI table", "checkpoint"}:
        if (folder / "rehashed").exists():
            raise Unclear("numbers with a right hash")
        return BASE[kind]
    if kind.endswith(("folder", "npz")):
        return (folder_content if kind.endswith("folder") else npz_content)(path)
    if kind == "settings":
        return {"settings": settings_of(path)}
    table = table_of(path)
    if kind == "vocabulary" and "names" in table:
        check(isinstance(table.get("symbols"), dict), "symbols of another kind")
        check(all(isinstance(value, str) for value in table["symbols"].values()), "symbols that are no text")
        names = names_of(table)
        return {
            "names": names,
            "symbols": {name: text for name, text in table["symbols"].items() if name in names and text},
        }
    return {"cells": median_cells(table)} if kind.startswith("medians") else token_names(table)


def settings_of(path):
    try:
        found = tomllib.loads(path.read_bytes().decode())
    except Exception as error:
        raise Refused(f"{type(error).__name__}") from error
    usual = dataclasses.asdict(PretrainingSettings())
    if set(found) - set(usual):
        raise Unclear("other settings")
    for name, value in found.items():
        kinds = {float, int} if isinstance(usual[name], float) else {type(usual[name])}
        check(type(value) in kinds, f"{name} = {value!r:.50}")
    return usual | found


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
                number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
                check(number, "a median of another type")
                check(0 < value < np.inf, "a median out of range")
                medians.setdefault(i + 2, float(value))
    check(not {"<pad>", "<mask>"} & set(table) and medians, "no medians")
    by_name = {name: i for i, name in enumerate(NAMES) if i > 1}
    return geneformer.encode(anndata.read_h5ad(BASE["counts"]), by_name, medians)["cells"]


def cells_in(lists, names, values=None):
    """The cells of a corpus: special tokens stripped; of a gene that stands twice the first counts; bits of values."""
    special = {i for i, name in enumerate(names) if name.startswith("<") and name.endswith(">")}
    cells, bits = [], []
    for i, cell in enumerate(lists):
        check(cell is not None and all(is_int(token) and 0 <= token < len(names) for token in cell), "no tokens")
        cells.append(list(dict.fromkeys(int(token) for token in cell if token not in special)))
        if values is not None:
            own = values[i]
            check(own is not None and len(own) == len(cell), "values of another length")
            check(not any(value is None or isinstance(value, bool) for value in own), "values that are missing")
            first = dict(zip(reversed(cell), reversed(own), strict=True))
            with np.errstate(over="ignore"):
                bits.append(
                    np.array([first[t] for t in cells[-1]], np.float64).astype(np.float32).view(np.uint32).tolist()
                )
    return cells, bits


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
    values = None
    if "values" in columns and str(table["values"].type).startswith(("list", "large_list", "fixed")):
        check(not str(table["values"].type.value_type).startswith(("list", "string", "bool", "struct")), "no numbers")
        values = columns.pop("values")
    cells, bits = cells_in(columns.pop("input_ids"), names, values)
    columns.pop("length", None)
    obs = {name: geneformer.plain(column) for name, column in columns.items()}
    return {"cells": cells, "values": bits, "obs": obs, "names": names}


def npz_content(path):
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
    except Exception as error:
        raise TheirFault(f"{type(error).__name__}: {error}"[:200]) from error
    check({"indptr", "tokens", "vocabulary"} <= set(arrays), "arrays are missing")
    arrays = {
        name: array for name, array in arrays.items() if name.startswith(("obs/", "missing/")) or name in NPZ_ARRAYS
    }
    stated = arrays.pop("array_names", None)
    check(stated is None or stated.tolist() == sorted(arrays), "other arrays than stated")
    try:
        names = names_of(json.loads(arrays["vocabulary"].tobytes()))
    except (ValueError, RecursionError) as error:
        raise Refused("no vocabulary") from error
    indptr, tokens = arrays["indptr"], arrays["tokens"]
    check(indptr.ndim == tokens.ndim == 1 and indptr.dtype.kind in "iu" and tokens.dtype.kind in "iu", "no integers")
    bounds = [int(value) for value in indptr]
    fits = bounds and bounds[0] == 0 and bounds[-1] == tokens.size and sorted(bounds) == bounds
    check(fits, "pointers that do not fit")
    values, ends = arrays.get("values"), list(pairwise(bounds))
    if values is not None:
        check(
            values.shape == tokens.shape and (values.dtype.kind in "iuf" or not tokens.size), "values that do not fit"
        )
        values = [values[a:b].tolist() for a, b in ends]
    cells, bits = cells_in([tokens[a:b].tolist() for a, b in ends], names, values)
    obs = {}
    for name in (name[4:] for name in arrays if name.startswith("obs/")):
        column, gone = arrays[f"obs/{name}"], arrays.get(f"missing/{name}", np.zeros(len(cells), bool))
        check(all(isinstance(each, np.ndarray) for each in (column, gone)), "obs that is no array")
        check(column.shape == gone.shape == (len(cells),) and gone.dtype == bool, "obs of another length")
        obs[name] = geneformer.plain([None if no else value for value, no in zip(column.tolist(), gone, strict=True)])
    return {"cells": cells, "values": bits, "obs": obs, "names": names}


def genes(plan, value):
    return {i for i, name in enumerate(value.get("names", NAMES)) if not name.startswith("<")}
