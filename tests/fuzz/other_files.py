"""The project's other files, whole or damaged: corpora, graphs, tables, checkpoints, vocabularies, dictionaries, settings."""

from __future__ import annotations

import dataclasses
import io
import json
import pickle
import pickletools
import shutil
import tomllib
import zipfile

import anndata
import datasets
import numpy as np
import pandas
import pyarrow as pa
from fuzz import geneformer
from fuzz.harness import Refused, TheirFault, Unclear
from fuzz.mutations import (
    DEEP,
    LONG,
    copy,
    one_of,
    spoil_array,
    spoil_bytes,
    spoil_file,
    spoil_json,
    spoil_tree,
    spoil_value,
)
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

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
from corrmask_fast.tensor_files import METADATA, canonical, hash_tensors  # to make damaged files with the right hash
from corrmask_fast.training.settings import PretrainingSettings

tokenize = getattr(corrmask_fast, "tokenize", None) or corrmask_fast.tokenize_h5ad
NAMES = ("<pad>", "<mask>", *(f"ENSG{i:011d}" for i in range(40)))
SYMBOLS = {name: f"SYM{i}" for i, name in enumerate(NAMES[2:])}
BUILD = {"min_presence": 1, "min_cooccurrence": 1, "rho_min": 0.1, "n_neighbors": 5, "progress": False, "device": "cpu"}
FILES = {
    "folder": "cells.dataset", "npz": "cells.npz", "graph": "graph.safetensors", "PMI table": "pmi.safetensors",
    "checkpoint": "checkpoint", "vocabulary": "vocabulary.json", "tokens json": "tokens.json", "tokens pkl": "tokens.pkl",
    "medians json": "medians.json", "medians pkl": "medians.pkl", "symbols json": "symbols.json", "symbols pkl": "symbols.pkl",
    "settings": "settings.toml",
}  # fmt: skip
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
    anndata.AnnData(counts, var=pandas.DataFrame(index=NAMES[2:])).write_h5ad(home / "cells.h5ad")
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
    path = copy(BASE["home"] / FILES[plan["kind"]], folder / FILES[plan["kind"]])
    if path.suffix == ".pkl":
        path.write_bytes(pickle.dumps(BASE["tables"][plan["kind"].split()[0]], plan["protocol"]))
    if plan["change"] == "none":
        return "none"
    ways = []
    for _ in range(plan["n_changes"]):
        change = (
            spoil_file
            if plan["change"] == "bytes"
            else CHANGES[path.suffix if path.suffix != ".dataset" else plan["kind"]]
        )
        try:
            ways.append(change(path, rng))
        except Exception as error:  # noqa: BLE001 (a second change may find no file to change)
            ways.append(f"not possible: {type(error).__name__}")
    return ways[0] if len(ways) == 1 else "several"


# ------------------------------------------------------------------------------------------------- damage to structure


def change_json(path, rng):
    changed, way = spoil_json(path.read_bytes(), rng)
    path.write_bytes(changed)
    return way


def change_tensors(path, rng):
    """Change tensors or header, and make the hash right again."""
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    if rng.random() < 0.15:  # safetensors' own header
        header, way = spoil_json(content[8 : 8 + size], rng)
        path.write_bytes(len(header).to_bytes(8, "little") + header + content[8 + size :])
        return f"tensors' {way}"[:30]
    tensors = load_file(path)
    header = json.loads(json.loads(content[8 : 8 + size])["__metadata__"][METADATA])
    header.pop("sha256", None)
    name = one_of(rng, sorted(tensors))
    way = one_of(rng, ["array"] * 6 + ["header", "header", "removed", "renamed", "another"])
    if way == "array":
        changed, way = spoil_array(tensors[name], rng)
        tensors[name], way = np.ascontiguousarray(changed), f"{name} {way}"
        if tensors[name].dtype.kind in "Sc" or tensors[name].dtype.byteorder == ">":
            tensors[name] = tensors[name].astype("u1" if tensors[name].dtype.kind == "S" else "f8")
    elif way == "header":
        header, way = spoil_tree(header, rng)
        way = f"header {way}"
    else:
        changed = tensors.pop(name) if way != "another" else np.zeros(3)
        if way != "removed":
            tensors[f"{name}2"] = changed
    text = canonical(header).decode()
    if isinstance(header, dict):
        header["sha256"] = hash_tensors(canonical(header), tensors)
        text = canonical(header).decode()
    text = text.replace(DEEP, "[" * 100_000 + "]" * 100_000).replace(LONG, "9" * 6000)
    save_file(tensors, path, {METADATA: text})
    return way[:30]


def change_checkpoint(path, rng):
    parts = sorted(p for p in path.iterdir() if p.suffix == ".safetensors")
    part = one_of(rng, parts)
    way = one_of(rng, ["tensors"] * 6 + ["of another build", "of another stage", "build.json", "removed"])
    if rng.random() < 0.5:  # so that the part in question is used
        for one in parts:
            if one.name > part.name or rng.random() < 0.3:
                (one.unlink if one != part else str)()
    if way == "tensors":
        (path.parent / "rehashed").touch()
        return change_tensors(part, rng)
    if way == "build.json":
        return change_json(path / "build.json", rng)
    if way == "removed":
        part.unlink()
    else:
        shutil.copy(BASE["home"] / "other" / part.name if way == "of another build" else one_of(rng, parts), part)
    return way


def change_npz(path, rng):
    with np.load(path) as file:
        arrays = dict(file)
    way = one_of(rng, ["array"] * 6 + ["vocabulary", "removed", "objects", "zip", "header", "twice", "another"])
    name = one_of(rng, sorted(arrays))
    save = np.savez
    if way == "array":
        arrays[name], way = spoil_array(arrays[name], rng)
        way = f"{name} {way}"
    elif way == "vocabulary":
        text, way = spoil_json(arrays["vocabulary"].tobytes(), rng)
        arrays["vocabulary"] = np.frombuffer(text, np.uint8)
    elif way == "removed":
        del arrays[name]
    elif way == "objects":
        arrays[name] = arrays[name].astype(object)
    elif way == "another":
        arrays[one_of(rng, ["obs/x", "x", "obs/", "obs/input_ids"])] = arrays[name]
    elif way == "twice":
        save = np.savez_compressed
    save(path, **arrays)
    if way == "zip":
        return change_zip(path, rng)
    if way == "header":
        content = path.read_bytes()
        old = content[(at := content.index(b"'shape': (")) :].split(b"}")[0]
        new = one_of(
            rng,
            [
                b"'shape': (99999999999999,), ",
                b"'shape': (-1,), ",
                b"'shape': (), ",
                b"'shape': (1" + b"0" * 30 + b",),",
            ],
        )
        path.write_bytes(content[:at] + new.ljust(len(old))[: len(old)] + content[at + len(old) :])
        return "header"
    return way[:30]


def change_zip(path, rng):
    """The same members, stored otherwise; or flags and sizes that lie."""
    with zipfile.ZipFile(path) as file:
        members = {name: file.read(name) for name in file.namelist()}
    way = one_of(rng, ["deflated", "bzip2", "lzma", "encrypted", "sizes", "twice", "folder"])
    method = {"deflated": 8, "bzip2": 12, "lzma": 14}.get(way, 0)
    with zipfile.ZipFile(path, "w", method) as file:
        for name, content in members.items():
            file.writestr(name, content)
        if way == "twice":
            file.writestr("indptr.npy", members["tokens.npy"])
        if way == "folder":
            file.writestr("obs/", b"")
    content = bytearray(path.read_bytes())
    entry = content.index(b"PK\x01\x02")
    if way == "encrypted":
        content[6] |= 1
        content[entry + 8] |= 1
    elif way == "sizes":
        content[entry + 20 : entry + 28] = rng.integers(256, size=8, dtype=np.uint8).tobytes()
    elif rng.random() < 0.5:
        content, _ = spoil_bytes(bytes(content), rng)
    path.write_bytes(content)
    return f"zip {way}"


def change_folder(path, rng):
    """Other Arrow types, chunks and offsets, or other JSON around them."""
    if rng.random() < 0.25:
        return change_json(path / one_of(rng, ["state.json", "dataset_info.json", "vocabulary.json"]), rng)
    file = path / "data-00000-of-00001.arrow"
    table = pa.ipc.open_stream(file.read_bytes()).read_all()
    column = table["input_ids"]
    ways = ["offsets"] * 6 + ["type", "type", "child type", "nulls", "child nulls", "dictionary", "chunks", "no rows", "renamed",
            "removed", "file format", "compressed", "schema", "obs", "token", "token", "null type", "shifted", "two columns"]  # fmt: skip
    way, options = one_of(rng, ways), None
    lists = [None if cell is None else list(cell) for cell in column.to_pylist()]
    if way in {"offsets", "shifted"}:
        chunk = column.combine_chunks()
        chunk = chunk.chunk(0) if isinstance(chunk, pa.ChunkedArray) else chunk
        offsets = np.asarray(chunk.offsets)
        changed, how = (offsets[1:], "shifted") if way == "shifted" else spoil_array(offsets, rng)
        with np.errstate(all="ignore"):
            changed = (
                np.resize(changed.astype(np.int32).ravel(), offsets.size) if np.size(changed) else offsets[::-1].copy()
            )
        buffers = [None, pa.py_buffer(np.ascontiguousarray(changed))]
        column, way = pa.Array.from_buffers(chunk.type, len(chunk), buffers, children=[chunk.values]), f"offsets {how}"
    elif way == "type":
        kinds = [pa.large_list(pa.int32()), pa.list_(pa.int64()), pa.list_(pa.uint16()), pa.list_(pa.uint64()), pa.list_view(pa.int32()),
                 pa.large_list_view(pa.int64()), pa.list_(pa.float64()), pa.list_(pa.string()), pa.list_(pa.int8())]  # fmt: skip
        column = (
            pa.array(lists).cast(pa.list_(pa.string()))
            if "string" in str(kind := one_of(rng, kinds))
            else pa.array(lists, kind)
        )
    elif way == "child type":
        column = pa.array([[[t] for t in cell] for cell in lists])
    elif way == "nulls":
        column = pa.array([None if rng.random() < 0.2 else cell for cell in lists], column.type)
    elif way == "child nulls":
        column = pa.array([[*cell, None] for cell in lists], column.type)
    elif way == "dictionary":
        column = pa.array([str(cell) for cell in lists]).dictionary_encode()
    elif way == "chunks":
        column = pa.chunked_array([column.slice(a, 1).combine_chunks() for a in range(len(lists))])
    elif way == "token":
        cell = one_of(rng, [cell for cell in lists if cell])
        cell[int(rng.integers(len(cell)))] = int(one_of(rng, [-1, 0, 1, 2, 41, 42, 65536, 2**31 - 1]))
        column = pa.array(lists, column.type)
    elif way == "null type":
        column = pa.nulls(len(lists))
    elif way == "no rows":
        table, column = table.slice(0, 0), column.slice(0, 0)
    place = table.column_names.index("input_ids")
    table = table.set_column(place, "input_ids" if way != "renamed" else "ids", column)
    if way == "removed":
        table = table.drop_columns(["input_ids"])
    elif way == "schema":
        table = table.replace_schema_metadata(
            {"huggingface": one_of(rng, ["{", "[]", '{"info": 3}', '{"info": {"features": {}}}'])}
        )
    elif way == "obs":
        values, _ = spoil_array(np.asarray(table["n"]), rng)
        table = table.drop_columns(["n"]).append_column("n", pa.array(np.resize(np.ravel(values), len(lists)).tolist()))
    elif way == "two columns":
        table = table.append_column("input_ids", column)
    elif way == "compressed":
        options = pa.ipc.IpcWriteOptions(compression=one_of(rng, ["lz4", "zstd"]))
    new = pa.ipc.new_file if way == "file format" else pa.ipc.new_stream
    with new(str(file), table.schema, options=options) as sink:
        sink.write_table(table)
    if rng.random() < 0.5:
        features = datasets.Features.from_arrow_schema(table.schema)
        datasets.DatasetInfo(features=features).write_to_directory(str(path))
    return way[:30]


def change_pickle(path, rng):
    """Other opcodes, values or nesting, or code that must not run."""
    content, table = path.read_bytes(), pickle.loads(path.read_bytes())
    way = one_of(
        rng,
        ["value", "value", "value", "opcode", "opcode", "code", "deep", "numpy", "object", "long", "bomb", "behind"],
    )
    if way == "value":
        changed, way = spoil_tree(table, rng)
        path.write_bytes(pickle.dumps(changed))
        return f"value {way}"[:30]
    if way == "opcode":
        places = [at for _, _, at in pickletools.genops(content)]
        at, end = sorted(rng.integers(len(places), size=2))
        codes = b"(.012FIJKLMNPQRSTUVXabcdeghijlopqrstu}])C\x80\x81\x82\x85\x87\x88\x8a\x8b\x8c\x8d\x8f\x90\x91\x92\x93\x94\x95"
        code = bytes([one_of(rng, codes)])
        cut = one_of(rng, [places[at], places[at] + 1, places[end]])
        path.write_bytes(content[: places[at]] + code + content[cut:])
        return f"opcode {code!r}"
    key = NAMES[5]
    made = {
        "code": one_of(
            rng,
            [b"cposix\nsystem\n(S'exit 3'\ntR.", b"cbuiltins\neval\n(S'1/0'\ntR.", b"ccollections\nOrderedDict\n)R."],
        ),
        "deep": b"\x80\x02" + b"]" * 200_000 + b"a" * 199_999 + b".",
        "bomb": b"\x80\x02]q\x00" + b"".join(b"]q%c(h%ch%ch%ch%ce" % (i, *[i - 1] * 4) for i in range(1, 60)) + b".",
        "long": b"\x80\x02"
        + one_of(rng, [b"\x8b\xff\xff\xff\x7f", b"\x8e" + b"\xff" * 7 + b"\x7f", b"T\xff\xff\xff\x7f"])
        + b"abc",
        "behind": content + b"x" * 5,
    }
    if way == "numpy":
        table[key] = one_of(
            rng, [np.int64(5), np.float32(2.5), np.bool_(True), np.array([1, 2]), np.str_("x"), np.longdouble(3)]
        )
    elif way == "object":
        table[key] = one_of(rng, [b"x", {1, 2}, (1,), 1j, range(3), bytearray(3), frozenset([1]), 10**5000])
    path.write_bytes(made[way] if way in made else pickle.dumps(table))
    return way


def change_toml(path, rng):
    lines = path.read_text().splitlines()
    i = int(rng.integers(len(lines)))
    name, _, text = lines[i].partition(" = ")
    way = one_of(rng, ["value"] * 6 + ["text", "text", "twice", "name", "table", "deep"])
    if way == "value":
        new = spoil_value(json.loads(text), rng)
        try:
            lines[i] = f"{name} = {json.dumps(new)}"
        except UnicodeEncodeError:
            lines[i] = f"{name} = ''"
    elif way == "text":
        new = one_of(
            rng,
            [
                "nan",
                "inf",
                "-inf",
                "1979-05-27",
                "07:32:00",
                "1_0",
                "0x10",
                "1e400",
                "9" * 6000,
                "'12'",
                "{a = 1}",
                "[1, 2]",
                "1.",
                "",
            ],
        )
        lines[i] = f"{name} = {new}"
    elif way == "twice":
        lines.append(lines[i])
    elif way == "name":
        lines[i] = f"{one_of(rng, ['x', name.upper(), name + '_', 'seed', 'graph', 'strategy', 'preset'])} = {text}"
    elif way == "table":
        lines.insert(i, one_of(rng, ["[model]", "[[a]]", "[" + "a." * 5000 + "b]"]))
    else:
        lines[i] = f"{name} = {'[' * 50_000}{']' * 50_000}"
    path.write_bytes("\n".join(lines).encode(errors="surrogatepass"))
    return f"TOML {way} {name}"


CHANGES = {".json": change_json, ".safetensors": change_tensors, "": change_checkpoint, ".npz": change_npz, "folder": change_folder,
           ".pkl": change_pickle, ".toml": change_toml}  # fmt: skip


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
        cells = [
            c.tokens[a:b].tolist() for c in corpus.chunks(7) for a, b in zip(c.indptr[:-1], c.indptr[1:], strict=True)
        ]
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
        return {
            "cells": [corpus.tokens[a:b].tolist() for a, b in zip(corpus.indptr[:-1], corpus.indptr[1:], strict=True)]
        }
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
        if path.suffix == ".json":
            table = json.loads(path.read_bytes())
        else:
            table = Plain(io.BytesIO(path.read_bytes())).load()
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
    check(len(set(names)) == len(names) and {"<pad>", "<mask>"} <= set(names), "names twice or missing")
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
        if set(table) != {"names", "symbols"}:
            return token_names(table)
        check(isinstance(table["symbols"], dict), "symbols of another kind")
        check(all(isinstance(value, str) for value in table["symbols"].values()), "symbols that are no text")
        return {"names": names_of(table), "symbols": table["symbols"]}
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
                check(0 < value < np.inf and float(value) < np.inf, f"a median {value!r:.50}")
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
    cells = cells_in([tokens[a:b].tolist() for a, b in zip(bounds[:-1], bounds[1:], strict=True)], names)
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
    values = {name: [float(x) if x % 1 else int(x) for x in array.tolist()] if name in {"indptr", "indices", "counts"}
              and np.all(np.isfinite(array.astype("f8"))) else array.tolist() for name, array in tensors.items()}  # fmt: skip
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
