"""Changes to the structure of the project's other files: what is valid in its format, and still not right."""

from __future__ import annotations

import json
import pickle
import pickletools
import shutil
import zipfile

import datasets
import numpy as np
import pyarrow as pa
from fuzz.mutations import DEEP, LONG, one_of, spoil_array, spoil_bytes, spoil_json, spoil_tree, spoil_value
from safetensors.numpy import load_file, save_file

from corrmask_fast.tensor_files import METADATA, canonical, hash_tensors  # to make damaged files with the right hash


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
        shutil.copy(path.parent / "other" / part.name if way == "of another build" else one_of(rng, parts), part)
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
        new = b"'shape': (%s), " % one_of(rng, [b"99999999999999,", b"-1,", b"", b"1%s," % (b"0" * 30)])
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
    ways = ["type", "type", "nulls", "dictionary", "chunks", "renamed", "removed", "compressed", "schema", "obs"]
    ways += ["offsets"] * 6 + [
        "shifted",
        "token",
        "token",
        "child type",
        "child nulls",
        "no rows",
        "file format",
        "null type",
        "two columns",
    ]
    way, options = one_of(rng, ways), None
    lists = [None if cell is None else list(cell) for cell in column.to_pylist()]
    if way in {"offsets", "shifted"}:  # in the bytes of the file: Arrow would not write them
        offsets = np.asarray(one_of(rng, column.chunks).offsets)
        if way == "shifted":  # cells keep their lengths, and lie elsewhere
            changed = offsets.astype(np.int64)
            changed[int(rng.integers(offsets.size)) * (rng.random() < 0.7) :] += one_of(
                rng, [1, -1, 5000, 10**7, 2**30, -(10**7)]
            )
        else:
            changed, way = spoil_array(offsets, rng)
        with np.errstate(all="ignore"):
            changed = np.asarray(changed).astype(np.int32).ravel()
        changed = np.resize(changed, offsets.size) if changed.size else offsets[::-1]
        content = file.read_bytes()
        file.write_bytes(content.replace(offsets.tobytes(), changed.tobytes(), 1))
        return f"offsets {way}"
    if way == "type":
        kinds = [pa.list_view(pa.int32()), pa.large_list(pa.int32()), pa.large_list_view(pa.int64())]
        kinds += [pa.list_(of()) for of in (pa.int8, pa.uint16, pa.int64, pa.uint64, pa.float64, pa.string)]
        kind = one_of(rng, kinds)
        column = pa.array([[str(t) for t in cell] for cell in lists] if kind == kinds[-1] else lists, kind)
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
    if rng.random() < 0.9:
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
        code = one_of(rng, [one.code.encode("latin-1") for one in pickletools.opcodes])
        cut = one_of(rng, [places[at], places[at] + 1, places[end]])
        path.write_bytes(content[: places[at]] + code + content[cut:])
        return f"opcode {code!r}"
    key = list(table)[5]
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


CHANGES = {
    "folder": change_folder,
    "npz": change_npz,
    "graph": change_tensors,
    "PMI table": change_tensors,
    "checkpoint": change_checkpoint,
    "vocabulary": change_json,
    "json": change_json,
    "pkl": change_pickle,
    "settings": change_toml,
}
