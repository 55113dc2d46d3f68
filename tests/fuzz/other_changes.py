"""Changes to the structure of the project's other files: what is valid in its format, and still not right."""

from __future__ import annotations

import json
import pickle
import pickletools
import shutil

import datasets
import numpy as np
import pyarrow as pa
from fuzz.mutations import one_of, spoil_array, spoil_json, spoil_tree, spoil_value, written
from safetensors.numpy import load_file, save_file

from corrmask_fast.tensor_files import METADATA, canonical, hash_tensors  # to make damaged files with the right hash


def change_json(path, rng):
    changed, way = spoil_json(path.read_bytes(), rng)
    path.write_bytes(changed)
    return way


def change_tensors(path, rng):
    """Change tensors or header, and make the hash right again."""
    content, tensors = path.read_bytes(), load_file(path)
    size = int.from_bytes(content[:8], "little")
    if rng.random() < 0.15:  # safetensors' own header
        header, way = spoil_json(content[8 : 8 + size], rng)
        path.write_bytes(len(header).to_bytes(8, "little") + header + content[8 + size :])
        return f"tensors' {way}"[:30]
    header = json.loads(json.loads(content[8 : 8 + size])["__metadata__"][METADATA])
    header.pop("sha256", None)
    name = one_of(rng, sorted(tensors))
    if (chance := rng.random()) < 0.7:
        changed, way = spoil_array(tensors[name], rng)
        text = changed.dtype.kind in "Sc" or changed.dtype.byteorder == ">"  # what safetensors does not have
        tensors[name] = np.ascontiguousarray(changed.astype("f8") if text else changed)
    elif chance < 0.9:
        header, way = spoil_tree(header, rng)
    else:
        tensors[f"{name}2"] = tensors.pop(name)
        way = "renamed"
    if isinstance(header, dict):
        header["sha256"] = hash_tensors(canonical(header), tensors)
    save_file(tensors, path, {METADATA: written(header)})
    (path.parent / "rehashed").touch()
    return f"{name} {way}"[:30]


def change_checkpoint(path, rng):
    parts = sorted(p for p in path.iterdir() if p.suffix == ".safetensors")
    part = one_of(rng, parts)
    way = one_of(rng, ["tensors"] * 6 + ["of another build", "of another stage", "build.json", "removed"])
    if rng.random() < 0.5:  # so that the part in question is used
        for one in parts:
            if one != part and (one.name > part.name or rng.random() < 0.3):
                one.unlink()
    if way == "tensors":
        change = change_tensors(part, rng)
        if (path / "rehashed").exists():
            (path / "rehashed").rename(path.parent / "rehashed")
        return change
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
    way = one_of(rng, ["array"] * 6 + ["vocabulary", "removed", "renamed", "objects", "another", "compressed"])
    name = one_of(rng, sorted(arrays))
    if rng.random() < 0.5:
        arrays.pop("array_names", None)  # as earlier versions wrote it, and others do
        name = "tokens" if name == "array_names" else name
    if way == "array":
        arrays[name], way = spoil_array(arrays[name], rng)
    elif way == "vocabulary":
        text, way = spoil_json(arrays["vocabulary"].tobytes(), rng)
        arrays["vocabulary"] = np.frombuffer(text, np.uint8)
    elif way == "objects":
        arrays[name] = arrays[name].astype(object)
    elif way == "another":
        arrays[one_of(rng, ["obs/x", "x", "obs/", "obs/input_ids", "missing/n"])] = arrays[name]
    elif way in {"removed", "renamed"}:
        arrays |= {f"{name}x": arrays.pop(name)} if way == "renamed" else {}
        arrays.pop(name, None)
    (np.savez_compressed if way == "compressed" else np.savez)(path, **arrays)
    return f"{name} {way}"[:30]


def change_folder(path, rng):
    """Other Arrow types, offsets and tokens, or other JSON around them."""
    if rng.random() < 0.25:
        return change_json(path / one_of(rng, ["state.json", "dataset_info.json", "vocabulary.json"]), rng)
    file = path / "data-00000-of-00001.arrow"
    table = pa.ipc.open_stream(file.read_bytes()).read_all()
    column = table["input_ids"]
    lists = column.to_pylist()
    way = one_of(rng, ["offsets"] * 6 + ["type", "type", "nulls", "child nulls", "token", "token", "schema", "obs"])
    if way == "offsets":  # in the bytes of the file: Arrow would not write them
        offsets = np.asarray(one_of(rng, column.chunks).offsets)
        if rng.random() < 0.2:  # cells keep their lengths, and lie elsewhere
            changed, way = offsets.astype(np.int64), "shifted"
            changed[int(rng.integers(offsets.size)) :] += one_of(rng, [1, -1, 5000, 10**7, 2**30, -(10**7)])
        else:
            changed, way = spoil_array(offsets, rng)
        with np.errstate(all="ignore"):
            changed = np.asarray(changed).astype(np.int32).ravel()
        changed = np.resize(changed, offsets.size) if changed.size else offsets[::-1]
        file.write_bytes(file.read_bytes().replace(offsets.tobytes(), changed.tobytes(), 1))
        return f"offsets {way}"
    if way == "type":
        kinds = [pa.list_view(pa.int32()), pa.large_list(pa.int32()), pa.large_list_view(pa.int64()), pa.null()]
        kinds += [pa.list_(of()) for of in (pa.int8, pa.uint16, pa.int64, pa.uint64, pa.float64)]
        kind = one_of(rng, kinds)
        column = pa.nulls(len(lists)) if kind == pa.null() else pa.array(lists, kind)
    elif way == "nulls":
        column = pa.array([None if rng.random() < 0.2 else cell for cell in lists], column.type)
    elif way == "child nulls":
        column = pa.array([[*cell, None] for cell in lists], column.type)
    elif way == "token":
        cell = one_of(rng, [cell for cell in lists if cell])
        cell[int(rng.integers(len(cell)))] = int(one_of(rng, [-1, 0, 1, 2, 41, 42, 65536, 2**31 - 1]))
        column = pa.array(lists, column.type)
    table = table.set_column(table.column_names.index("input_ids"), "input_ids", column)
    if way == "schema":
        infos = ["{", "[]", '{"info": 3}', '{"info": {"features": {}}}']
        table = table.replace_schema_metadata({"huggingface": one_of(rng, infos)})
    elif way == "obs":
        values, _ = spoil_array(np.asarray(table["n"]), rng)
        table = table.drop_columns(["n"]).append_column("n", pa.array(np.resize(np.ravel(values), len(lists)).tolist()))
    with pa.ipc.new_stream(str(file), table.schema) as sink:
        sink.write_table(table)
    if rng.random() < 0.9:
        features = datasets.Features.from_arrow_schema(table.schema)
        datasets.DatasetInfo(features=features).write_to_directory(str(path))
    return way


def change_pickle(path, rng):
    """Other values, or another opcode, or code that must not run."""
    content, way = path.read_bytes(), one_of(rng, ["value", "value", "number", "opcode", "opcode", "code"])
    if way == "code":
        path.write_bytes(one_of(rng, [b"cposix\nsystem\n(S'exit 3'\ntR.", b"cbuiltins\neval\n(S'1/0'\ntR."]))
        return way
    if way == "opcode":
        places = [at for _, _, at in pickletools.genops(content)]
        at, end = sorted(rng.integers(len(places), size=2))
        code = one_of(rng, [one.code.encode("latin-1") for one in pickletools.opcodes])
        path.write_bytes(
            content[: places[at]] + code + content[one_of(rng, [places[at], places[at] + 1, places[end]]) :]
        )
        return f"opcode {code!r}"
    table = pickle.loads(content)
    if way == "value":
        table, way = spoil_tree(table, rng)
    else:
        numbers = [
            np.int64(5),
            np.float32(2.5),
            np.bool_(True),
            np.array([1, 2]),
            np.str_("x"),
            np.longdouble(3),
            b"x",
            1j,
        ]
        table[list(table)[5]] = one_of(rng, numbers)
    path.write_bytes(pickle.dumps(table))
    return f"value {way}"[:30]


def change_toml(path, rng):
    lines = path.read_text().splitlines()
    i = int(rng.integers(len(lines)))
    name, _, text = lines[i].partition(" = ")
    new = one_of(
        rng, ["nan", "-inf", "1979-05-27", "1e400", "9" * 6000, "'12'", "{a = 1}", "1.", "[" * 50_000, "1\n[a]"]
    )
    if rng.random() < 0.7:
        new = json.dumps(spoil_value(json.loads(text), rng)).replace("\\ud800", "")
    lines[i] = f"{name} = {new}"
    path.write_text("\n".join(lines))
    return f"TOML {name}"


CHANGES = {
    "folder": change_folder, "npz": change_npz, "graph": change_tensors, "PMI table": change_tensors,
    "checkpoint": change_checkpoint, "vocabulary": change_json, "json": change_json, "pkl": change_pickle,
    "settings": change_toml,
}  # fmt: skip
