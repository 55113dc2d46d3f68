"""Changes to the structure of AnnData files: arrays, attributes, lengths, storage, links, older encodings."""

from __future__ import annotations

import json
import re

import h5py
import numpy as np
from fuzz.mutations import FLOATS, NUMBERS, one_of, spoil_array, spoil_json

try:
    import zarr
except ImportError:
    zarr = None


def put(file, name, values, **options):
    """Replace a dataset; its attributes stay."""
    attributes = dict(file[name].attrs)
    del file[name]
    if isinstance(values, np.ndarray) and values.dtype.kind == "O":
        options["dtype"] = h5py.string_dtype()
    file.create_dataset(name, data=values, **options)
    for key, value in attributes.items():
        file[name].attrs[key] = value


def change_hdf5(file, plan, rng):
    """Make one change to an HDF5 file; return its name."""
    items = {"/": file}
    file.visititems(items.__setitem__)
    needed = {None: "X", "raw": "raw", "counts": "layers/counts"}[plan["where"]]
    likely = [name for name in items if re.match(rf"{needed}|obs/|var/|obs$|var$", name)]
    names = likely if likely and rng.random() < 0.8 else list(items)
    datasets = [name for name in names if isinstance(items[name], h5py.Dataset)] or ["obs/_index"]
    ways = {
        change_array: 8,
        change_attribute: 8,
        change_length: 4,
        change_storage: 3,
        change_link: 3,
        change_encoding: 2,
    }
    way = one_of(rng, [way for way, n in ways.items() for _ in range(n)])
    try:
        return way(file, one_of(rng, datasets if way in {change_array, change_storage} else names), rng)
    except Exception as error:  # noqa: BLE001 (HDF5 admits no such change)
        return f"not possible: {way.__name__} {type(error).__name__}"


def change_array(file, name, rng):
    values = file[name][()]
    if isinstance(values, np.ndarray) and values.dtype.kind == "O":
        values = np.array([v.decode(errors="replace") if isinstance(v, bytes) else v for v in values.ravel()], object)
    changed, way = spoil_array(values, rng)
    put(file, name, changed)
    return f"array {way}"


def change_length(file, name, rng):
    """Give a whole axis another length on one side only: the frame, or the counts."""
    del name
    frame = one_of(rng, ["obs", "var", "raw/var", "X", "raw/X", "layers/counts", "obs", "var"])
    if frame not in file:
        frame = frame.replace("raw/", "") if frame.startswith("raw") else "X"
    more = bool(rng.random() < 0.5)
    if frame[-1] != "X" and frame[-1] != "s":
        n = file[frame][file[frame].attrs["_index"]].shape[0]
        for part in [f"{frame}/{one}" for one in all_names(file[frame])]:
            if isinstance(file[part], h5py.Dataset) and file[part].shape == (n,) and "categories" not in part:
                values = file[part][()]
                put(
                    file, part, np.concatenate([values, values[:1]]) if more else values[: -one_of(rng, [1, 1, n // 2])]
                )
    elif isinstance(file[frame], h5py.Dataset):
        values = file[frame][()]
        axis = int(rng.integers(2))
        put(file, frame, np.concatenate([values, values], axis) if more else np.delete(values, 0, axis))
    else:
        shape = file[frame].attrs["shape"].copy()
        shape[int(rng.integers(2))] += one_of(rng, [1, 7, 10**6]) if more else -1
        file[frame].attrs["shape"] = shape
        indptr = file[f"{frame}/indptr"][()]
        if rng.random() < 0.5:
            put(file, f"{frame}/indptr", np.append(indptr, indptr[-1:]) if more else indptr[:-1])
    return f"length {frame} {'more' if more else 'less'}"


def change_attribute(file, name, rng):
    attributes = file[name].attrs
    if not len(attributes):
        attributes, name = file["X"].attrs, "X"
    key = one_of(rng, sorted(attributes))
    value, way = attributes[key], one_of(rng, ["set", "set", "set", "delete", "longer", "other"])
    if way == "delete" or key == "encoding-version":
        del attributes[key]
        if key == "encoding-version":
            attributes[key] = one_of(rng, ["9.9.9", "0.1.0", "", 3])
    elif way == "other" or key == "encoding-type":
        encodings = "csr_matrix csc_matrix array dataframe dict string-array categorical null string raw anndata x"
        encodings = [*encodings.split(), "nullable-integer", "nullable-boolean", "numeric-scalar", "awkward-array"]
        attributes["encoding-type"] = one_of(rng, encodings)
        key = "encoding-type"
    elif isinstance(value, np.ndarray):
        changed, way = spoil_array(value, rng)
        if changed.dtype.kind == "O":
            changed = [str(one) for one in np.ravel(changed)]
        del attributes[key]
        attributes[key] = changed
    else:
        nasty = [
            *NUMBERS,
            *FLOATS[-8:],
            "",
            "x",
            "_index",
            "\u00e9",
            b"\xff\xfe",
            h5py.Empty("f4"),
            [1, 2, 3],
            "obs",
            "/",
            ".",
        ]
        del attributes[key]
        attributes[key] = one_of(rng, nasty)
    return f"attribute {key} {way}"[:40]


def change_storage(file, name, rng):
    """Other storage of one dataset: some of it valid, some of it boundless or without data."""
    values = file[name][()]
    shape, dtype = np.shape(values), file[name].dtype
    ways = ["huge", "wide", "fill", "null", "group", "compound", "references", "lists", "opaque", "bytes", "virtual",
            "outside", "chunks", "filters", "big strings", "enum"]  # fmt: skip
    way = one_of(rng, ways)
    attributes = dict(file[name].attrs)
    del file[name]
    make_dataset = file.create_dataset
    if way in {"huge", "wide"}:
        n = int(one_of(rng, [10**6, 10**9, 10**12, 2**62]))
        new = (n, *shape[1:]) if way == "huge" or len(shape) < 2 else (shape[0], n)
        make_dataset(name, new, dtype, chunks=tuple(min(size, 1000) or 1 for size in new), maxshape=(None,) * len(new))
    elif way == "fill":
        make_dataset(name, shape, dtype, fillvalue=7 if dtype.kind in "iuf" else None)
    elif way == "null":
        file[name] = h5py.Empty(dtype)
    elif way == "group":
        file.create_group(name)["values"] = 1
    elif way == "compound":
        make_dataset(name, data=np.zeros(shape, [("a", "i4"), ("b", "f4")]))
    elif way == "references":
        make_dataset(name, shape, h5py.ref_dtype)
    elif way == "lists":
        make_dataset(name, shape, h5py.vlen_dtype(np.int32))
    elif way == "opaque":
        make_dataset(name, data=np.zeros(shape, "V4"))
    elif way in {"bytes", "big strings"}:
        text = [b"\xff\xfe", b"G\x00", b"ENSG00000000001", "\u00e9".encode("latin-1")]
        make_dataset(
            name, data=np.resize(np.array(text, "S20"), shape) if way == "bytes" else np.full(shape, b"x" * 4000)
        )
    elif way == "virtual":
        layout = h5py.VirtualLayout(shape, dtype)
        layout[...] = h5py.VirtualSource("nowhere.h5", "x", shape)
        file.create_virtual_dataset(name, layout)
    elif way == "outside":
        make_dataset(name, shape, dtype, external=[("/nowhere/x.bin", 0, h5py.h5f.UNLIMITED)])
    elif way == "enum":
        make_dataset(name, data=np.zeros(shape, "i1"), dtype=h5py.enum_dtype({"A": 0, "B": 1}, "i1"))
    else:
        options = {"chunks": {"chunks": tuple(max(size // 2, 1) for size in shape) or None}}
        filters = {"shuffle": True, "fletcher32": True, "compression": one_of(rng, ["gzip", "lzf"]), "chunks": True}
        make_dataset(name, data=values, dtype=dtype, **options.get(way, filters))
    for key, value in attributes.items():
        file[name].attrs[key] = value
    return f"storage {way}"


def change_link(file, name, rng):
    """Remove, rename or exchange members, or put a link in their place."""
    way = one_of(rng, ["remove", "rename", "exchange", "nowhere", "itself", "parent", "outside", "other", "copy"])
    if name == "/":
        name = one_of(rng, sorted(file))
    other = one_of(rng, [one for one in all_names(file) if not one.startswith(name) and not name.startswith(one)])
    if way in {"exchange", "copy", "other"}:
        file.move(name, "kept")
        if way == "exchange":
            file.move(other, name)
            file.move("kept", other)
        elif way == "other":
            file[name] = h5py.SoftLink(f"/{other}")
        else:
            file.copy(other, name)
        return f"link {way}"
    if way == "rename":
        file.move(name, f"{name} ")
        return "link rename"
    del file[name]
    parent = name.rpartition("/")[0] or "/"
    if way != "remove":
        new = {"nowhere": h5py.SoftLink("/nowhere"), "itself": h5py.SoftLink(f"/{name}"), "parent": file[parent],
               "outside": h5py.ExternalLink("nowhere.h5", "/X")}  # fmt: skip
        file[name] = new[way]
    return f"link {way}"


def all_names(file):
    names = []
    file.visit(names.append)
    return names


def change_encoding(file, name, rng):
    """Write parts as older versions of AnnData did."""
    way = one_of(rng, ["categories beside", "h5sparse", "no encodings", "root without", "compound frame"])
    if way == "categories beside":
        for axis in ("obs", "var"):
            for key in [key for key, item in file[axis].items() if "categories" in item]:
                item, frame = file[axis][key], file[axis]
                frame[f"__categories/{key}"] = item["categories"][()]
                codes = item["codes"][()]
                del frame[key]
                frame[key] = codes
                frame[key].attrs["categories"] = frame[f"__categories/{key}"].ref
            file[axis].attrs["encoding-version"] = "0.1.0"
    elif way == "h5sparse" and "X" in file and "shape" in file["X"].attrs:
        attributes = file["X"].attrs
        attributes["h5sparse_format"] = str(attributes["encoding-type"])[:3]
        attributes["h5sparse_shape"] = attributes["shape"]
        for key in ("encoding-type", "encoding-version", "shape"):
            del attributes[key]
    elif way == "compound frame":
        n = file["obs/_index"].shape[0]
        del file["obs"]
        file["obs"] = np.array([(f"c{i}".encode(), i) for i in range(n)], [("index", "S9"), ("n", "i4")])
    elif way != "h5sparse":
        items = [file, *(file[one] for one in all_names(file))] if way == "no encodings" else [file]
        for item in items:
            for key in ("encoding-type", "encoding-version"):
                item.attrs.pop(key, None)
    return f"older {way}"


def change_zarr(path, rng):
    """Make one change to a zarr folder: in its JSON, or in an array, or among its files."""
    way = one_of(rng, ["JSON", "JSON", "array", "array", "array", "file"])
    files = sorted(p for p in path.rglob("*") if p.is_file())
    described = [p for p in files if p.name in {"zarr.json", ".zarray", ".zattrs", ".zgroup", ".zmetadata"}]
    try:
        if way == "JSON":
            file = one_of(rng, described)
            changed, way = spoil_json(file.read_bytes(), rng)
            file.write_bytes(changed)
        elif way == "file":
            a, b = one_of(rng, files), one_of(rng, files)
            kept, other = a.read_bytes(), b.read_bytes()
            a.write_bytes(other)
            b.write_bytes(kept)
            way = "files exchanged"
        else:
            root = zarr.open_group(str(path), mode="r+", use_consolidated=False)
            arrays = []
            places = [p.parent for p in described if p.name == ".zarray"]
            places += [
                p.parent
                for p in described
                if p.name == "zarr.json" and json.loads(p.read_text()).get("shape") is not None
            ]
            arrays = sorted(str(place.relative_to(path)) for place in places)
            name = one_of(rng, arrays)
            attributes = dict(root[name].attrs)
            changed, way = spoil_array(root[name][()], rng)
            del root[name]
            root.create_array(name, data=np.asarray(changed)).attrs.update(attributes)
            way = f"array {way}"
            if rng.random() < 0.7:
                zarr.consolidate_metadata(str(path))
    except Exception as error:  # noqa: BLE001 (zarr admits no such change)
        return f"not possible: zarr {way[:12]} {type(error).__name__}"
    return way
