"""Changes to the structure of AnnData files: arrays, attributes, lengths, storage, links, older encodings."""

from __future__ import annotations

import re

import h5py
import numpy as np
from fuzz.mutations import VALUES, one_of, spoil_array, spoil_json

try:
    import zarr
except ImportError:
    zarr = None

ENCODINGS = ["csr_matrix", "csc_matrix", "array", "dataframe", "dict", "string-array", "categorical", "null", "string",
             "raw", "x", "nullable-integer", "nullable-boolean", "numeric-scalar", "awkward-array"]  # fmt: skip
FRAMES = ("obs", "var", "raw/var", "X", "raw/X", "layers/counts")


def put(file, name, values, **options):
    """Replace a dataset; its attributes stay."""
    attributes = dict(file[name].attrs)
    del file[name]
    if isinstance(values, np.ndarray) and values.dtype.kind == "O":
        options["dtype"] = h5py.string_dtype()
    file.create_dataset(name, data=values, **options)
    file[name].attrs.update(attributes)


def change_hdf5(file, plan, rng):
    """Make one change to an HDF5 file; return its name."""
    items = {"/": file}
    file.visititems(items.__setitem__)
    needed = {None: "X", "raw": "raw", "counts": "layers/counts"}[plan["where"]]
    likely = [name for name in items if re.match(rf"{needed}|obs/|var/|obs$|var$", name)]
    names = likely if likely and rng.random() < 0.8 else list(items)
    datasets = [name for name in names if isinstance(items[name], h5py.Dataset)] or ["obs/_index"]
    ways = [change_array] * 8 + [change_attribute] * 8 + [change_length] * 4 + [change_storage] * 3 + [change_link] * 3
    way = one_of(rng, [*ways, change_encoding, change_encoding])
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
    frame = one_of(rng, [part for part in FRAMES if part in file])
    more = bool(rng.random() < 0.5)
    if frame.endswith(("obs", "var")):
        n = file[frame][file[frame].attrs["_index"]].shape[0]
        kept = n - int(one_of(rng, [1, 1, 2, n // 2]))
        for part in [f"{frame}/{one}" for one in all_names(file[frame])]:
            if isinstance(file[part], h5py.Dataset) and file[part].shape == (n,) and "categories" not in part:
                values = file[part][()]
                put(file, part, np.concatenate([values, values[:1]]) if more else values[:kept])
    elif isinstance(file[frame], h5py.Dataset):
        values, axis = file[frame][()], int(rng.integers(2))
        put(file, frame, np.concatenate([values, values], axis) if more else np.delete(values, 0, axis))
    else:
        shape = file[frame].attrs["shape"].copy()
        shape[int(rng.integers(2))] += one_of(rng, [1, 7, 10**6]) if more else -1
        file[frame].attrs["shape"] = shape
    return f"length {frame} {'more' if more else 'less'}"


def change_attribute(file, name, rng):
    name = name if len(file[name].attrs) else "X"
    attributes = file[name].attrs
    key = one_of(rng, [*sorted(attributes), "encoding-type"])
    if key == "encoding-type":
        way = new = one_of(rng, ENCODINGS)
    elif isinstance(attributes[key], np.ndarray):
        new, way = spoil_array(attributes[key], rng)
        new = [str(one) for one in np.ravel(new)] if new.dtype.kind == "O" else new
    else:
        way, new = "set", one_of(rng, [*VALUES[1:30], "9.9.9", "0.1.0", "_index", "obs", b"\xff", h5py.Empty("f4")])
    del attributes[key]
    if rng.random() < 0.8:
        attributes[key] = new
    return f"attribute {key} {way}"[:40]


def change_storage(file, name, rng):
    """Other storage of one dataset: some of it valid, some of it boundless or without data."""
    values = file[name][()]
    shape, dtype, attributes = np.shape(values), file[name].dtype, dict(file[name].attrs)
    huge = (int(one_of(rng, [10**6, 10**9, 10**12, 2**62])), *shape[1:])
    filters = {"shuffle": True, "fletcher32": True, "compression": one_of(rng, ["gzip", "lzf"]), "chunks": True}
    ways = {
        "huge": lambda: file.create_dataset(name, huge, dtype, chunks=tuple(min(n, 1000) or 1 for n in huge)),
        "null": lambda: file.create_dataset(name, data=h5py.Empty(dtype)),
        "group": lambda: file.create_group(f"{name}/values"),
        "fill": lambda: file.create_dataset(name, shape, dtype, fillvalue=7 if dtype.kind in "iuf" else None),
        "filters": lambda: file.create_dataset(name, data=values, dtype=dtype, **filters),
        "bytes": lambda: file.create_dataset(name, data=np.resize(np.array([b"\xff\xfe", b"G\x00", b"\xe9"]), shape)),
    }
    way = one_of(rng, list(ways))
    del file[name]
    ways[way]()
    file[name].attrs.update(attributes)
    return f"storage {way}"


def change_link(file, name, rng):
    """Remove, rename or exchange members, or put a link in their place."""
    way = one_of(rng, ["remove", "rename", "exchange", "nowhere", "itself", "outside", "other"])
    name = one_of(rng, sorted(file)) if name == "/" else name
    other = one_of(rng, [one for one in all_names(file) if not one.startswith(name) and not name.startswith(one)])
    links = {"nowhere": h5py.SoftLink("/nowhere"), "itself": h5py.SoftLink(f"/{name}"),
             "outside": h5py.ExternalLink("nowhere.h5", "/X"), "other": h5py.SoftLink(f"/{other}")}  # fmt: skip
    file.move(name, f"{name} ")
    if way == "exchange":
        file.move(other, name)
        file.move(f"{name} ", other)
    elif way != "rename":
        del file[f"{name} "]
    if way in links:
        file[name] = links[way]
    return f"link {way}"


def all_names(file):
    names = []
    file.visit(names.append)
    return names


def change_encoding(file, name, rng):
    """Write parts as older versions of AnnData did."""
    way = one_of(rng, ["categories beside", "h5sparse", "no encodings", "root without"])
    if way == "categories beside":
        for frame in (file["obs"], file["var"]):
            for key in [key for key, item in frame.items() if "categories" in item]:
                frame[f"__categories/{key}"] = frame[key]["categories"][()]
                codes = frame[key]["codes"][()]
                del frame[key]
                frame[key] = codes
                frame[key].attrs["categories"] = frame[f"__categories/{key}"].ref
            frame.attrs["encoding-version"] = "0.1.0"
    elif way == "h5sparse" and "X" in file and "shape" in file["X"].attrs:
        attributes = file["X"].attrs
        attributes["h5sparse_format"] = str(attributes["encoding-type"])[:3]
        attributes["h5sparse_shape"] = attributes["shape"]
        for key in ("encoding-type", "encoding-version", "shape"):
            del attributes[key]
    elif way != "h5sparse":
        for item in [file, *(file[one] for one in all_names(file))] if way == "no encodings" else [file]:
            for key in ("encoding-type", "encoding-version"):
                item.attrs.pop(key, None)
    return f"older {way}"


def change_zarr(path, rng):
    """Make one change to a zarr folder: in its JSON, or in an array."""
    described = [p for name in ("zarr.json", ".zarray", ".zattrs", ".zgroup", ".zmetadata") for p in path.rglob(name)]
    way = "zarr"
    try:
        if rng.random() < 0.4:
            file = one_of(rng, sorted(described))
            changed, way = spoil_json(file.read_bytes(), rng)
            file.write_bytes(changed)
            return way
        root = zarr.open_group(str(path), mode="r+", use_consolidated=False)
        array = one_of(rng, [array for _, array in sorted(root.members(None)) if hasattr(array, "shape")])
        name, attributes = array.path, dict(array.attrs)
        changed, way = spoil_array(array[()], rng)
        del root[name]
        root.create_array(name, data=np.asarray(changed)).attrs.update(attributes)
        if rng.random() < 0.7:
            zarr.consolidate_metadata(str(path))
    except Exception as error:  # noqa: BLE001 (zarr admits no such change)
        return f"not possible: {way[:12]} {type(error).__name__}"
    return f"array {way}"
