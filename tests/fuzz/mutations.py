"""Ways to damage arrays, JSON, bytes and folders; everything follows from a NumPy generator."""

from __future__ import annotations

import json
import shutil

import numpy as np

DTYPES = ("i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f2", "f4", "f8", ">i4", ">i8", ">f4", ">f8", "?", "c8", "S5")
NUMBERS = (-1, 0, 1, 2, 3, 5, 127, 255, 1 << 15, 1 << 16, (1 << 31) - 1, 1 << 31, -(1 << 31), (1 << 63) - 1, -(1 << 63))
FLOATS = (*NUMBERS, 0.5, 1e300, 2.0**53, -0.0, 1e-300, np.nan, np.inf, -np.inf)
DEEP, LONG = '"@@deep@@"', '"@@long@@"'  # what json.dumps could not write


def one_of(rng, values):
    return values[int(rng.integers(len(values)))]


def spoil_array(array, rng):
    """Return another array, and what was done to it."""
    array = np.asarray(array)
    text = array.dtype.kind in "OSUT"
    ways = [
        "longer",
        "shorter",
        "none left",
        "only one",
        "scalar",
        "column",
        "row",
        "repeated",
        "reversed",
        "constant",
        "constant",
    ]
    ways += ["one value"] * 8 + ["dtype"] * 4 + ["two swapped"] * 2 + ["shuffled", "sorted", "many values"]
    way = one_of(rng, ways)
    if array.ndim == 0 and way in {"longer", "shorter", "only one", "reversed", "shuffled", "sorted", "two swapped"}:
        way = "row"
    changed = array.copy()
    if way == "longer":
        changed = np.concatenate([array, array[-1:] if len(array) else np.zeros((1, *array.shape[1:]), array.dtype)])
    elif way in {"shorter", "only one", "none left"} and array.ndim:
        changed = array[: {"shorter": max(len(array) - 1, 0), "only one": 1, "none left": 0}[way]]
    elif way == "scalar":
        changed = array.ravel()[0] if array.size else np.zeros((), array.dtype)
    elif way in {"column", "row"}:
        changed = array[..., None] if way == "column" else array[None]
    elif way == "repeated":
        changed = np.concatenate([np.atleast_1d(array)] * 2)
    elif way == "reversed":
        changed = array[::-1]
    elif way == "shuffled":
        changed = rng.permutation(array)
    elif way == "sorted":
        changed = np.sort(array.astype(str) if text else array, axis=0).astype(array.dtype)
    elif way == "two swapped" and array.size:
        a, b = rng.integers(len(array), size=2)
        changed[[a, b]] = array[[b, a]]
    elif way == "constant" and array.size:
        own = array.ravel()[int(rng.integers(array.size))]
        with np.errstate(all="ignore"):
            changed[...] = (
                own if text or rng.random() < 0.3 else np.asarray([one_of(rng, NUMBERS)]).astype(array.dtype)[0]
            )
    elif way in {"one value", "many values"} and array.size:
        values = ("", "ENSG00000000003", "x" * 5000, "\u00e9\u4e2d", "None", "nan", "-1") if text else FLOATS
        places = rng.integers(array.size, size=1 if way == "one value" else 3)
        value = one_of(rng, values if text or array.dtype.kind == "f" else NUMBERS)
        with np.errstate(all="ignore"):
            changed.reshape(-1)[places] = np.asarray([value]).astype(array.dtype) if not text else value
    elif way == "dtype":
        code = one_of(rng, DTYPES)
        way = f"dtype {code}"
        with np.errstate(all="ignore"):
            changed = np.arange(array.size).reshape(array.shape).astype(code) if text else array.astype(code)
    return changed, way


def spoil_value(value, rng):
    """Return another value for a node of JSON (or TOML)."""
    others = [None, True, False, -1, 0, 1, 2, 1.5, 1 << 31, 1 << 63, 1 << 64, 10**30, 1e308, float("nan"), float("inf")]
    others += ["", "x", "0", "1", "nan", "x" * 100_000, "\ud800", "\u00e9", "a\u0000b", "../../x", "/dev/zero"]
    others += [[], {}, [[]], [None], {"": 0}, [0] * 1000]
    if isinstance(value, int | float) and not isinstance(value, bool):
        others += [value + 1, value - 1, -value, float(value), str(value), [value]] * 2
    if isinstance(value, str):
        others += [value + "x", value[:-1], value.upper(), [value], value.encode().hex(), f" {value}"] * 2
    if isinstance(value, list | tuple) and len(value):
        others += [list(value[:-1]), [*value, value[-1]], list(value[::-1]), value[0], [value]] * 2
    if isinstance(value, dict) and value:
        others += [dict(list(value.items())[1:]), list(value), list(value.items())] * 2
    return one_of(rng, others)


def spoil_tree(content, rng):
    """Change one node of nested dictionaries and lists, in place; return the content and what was done."""
    places = [(None, None)]
    waiting = [content]
    while waiting:
        node = waiting.pop()
        items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
        places += [(node, key) for key, _ in items]
        waiting += [value for _, value in items]
    # Every level has its share: else the longest list would take all changes.
    node, key = one_of(rng, places if rng.random() < 0.5 else places[:12])
    if node is None:
        return spoil_value(content, rng), "the whole"
    way = one_of(rng, ["value", "value", "value", "value", "no such key", "other key", "deep", "long number", "swap"])
    label = f"{way} {key if isinstance(node, dict) else '[]'}"[:30]
    if way == "no such key":
        del node[key]
    elif way == "other key" and isinstance(node, dict):
        node[one_of(rng, ["", "x", f"{key} ", str(key).upper(), "\u00e9"])] = node.pop(key)
    elif way in {"deep", "long number"}:
        node[key] = DEEP[1:-1] if way == "deep" else LONG[1:-1]
    elif way == "swap":
        other, at = one_of(rng, places[1:])
        if (other is node or key != at) and at in (other if isinstance(other, dict) else range(len(other))):
            kept = node[key]
            node[key] = json.loads(json.dumps(other[at]))
            other[at] = json.loads(json.dumps(kept)) if other is node else other[at]
    else:
        node[key] = spoil_value(node[key], rng)
    return content, label


def spoil_json(text, rng):
    """Return other bytes for a JSON text, and what was done."""
    way = one_of(rng, ["tree"] * 6 + ["twice", "BOM", "UTF-16", "behind", "NaN", "quotes", "nul"])
    if way == "tree":
        content, way = spoil_tree(json.loads(text), rng)
        changed = json.dumps(content)
        changed = changed.replace(DEEP, "[" * 100_000 + "]" * 100_000).replace(LONG, "9" * 6000)
        return changed.encode(), f"JSON {way}"
    if way == "twice":
        return text.replace(b"{", b'{"names": [], "format": 1, "zarr_format": 9, ', 1), "JSON key twice"
    if way in {"BOM", "UTF-16"}:
        return (b"\xef\xbb\xbf" + text if way == "BOM" else text.decode().encode("utf-16")), f"JSON {way}"
    if way == "behind":
        return text + one_of(rng, [b"x", b"{}", b"\x00", b"\n\n  "]), "JSON text behind"
    digits = [i for i, c in enumerate(text) if chr(c) in "0123456789"] or [0]
    i = one_of(rng, digits)
    new = {"NaN": b"NaN", "quotes": b'"1"', "nul": b"\x00"}[way]
    return text[:i] + new + text[i + 1 :], f"JSON {way}"


def spoil_bytes(content, rng):
    """Return other bytes, and what was done: one to three small changes anywhere, or near the front."""
    ways = []
    for _ in range(int(rng.integers(1, 4))):
        way = one_of(rng, [*["flip", "byte", "zeros", "ones", "random", "copy"] * 4, "insert", "delete", "cut"])
        ways.append(way)
        size = len(content)
        at = int(rng.integers(max(min(size, one_of(rng, [size, size, 1024, 8192])), 1)))
        n = int(one_of(rng, [1, 2, 4, 8, 16, 64]))
        noise = rng.integers(256, size=n, dtype=np.uint8).tobytes()
        new = {"zeros": bytes(n), "ones": b"\xff" * n, "random": noise, "insert": noise, "delete": b"", "cut": b""}
        if size == 0:
            content = noise
        elif way == "flip":
            content = content[:at] + bytes([content[at] ^ (1 << int(rng.integers(8)))]) + content[at + 1 :]
        elif way == "byte":
            content = content[:at] + noise[:1] + content[at + 1 :]
        elif way == "copy":
            other = int(rng.integers(size))
            content = content[:at] + content[other : other + n] + content[at + n :]
        else:
            end = {"insert": at, "cut": size}.get(way, at + n)
            content = content[:at] + new[way] + content[end:]
    return content, f"bytes {ways[0]}" if len(ways) == 1 else "bytes several"


def spoil_file(path, rng):
    """Damage a file, or one of those in a folder; return what was done."""
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.is_file())
        path = one_of(rng, files)
        way = one_of(rng, ["bytes"] * 16 + ["removed", "empty", "a folder", "of another", "a link"])
        if way != "bytes":
            other = one_of(rng, files).read_bytes()
            path.unlink()
            if way == "a folder":
                path.mkdir()
            elif way == "a link":
                path.symlink_to(one_of(rng, [path.name, "nowhere", "..", "/dev/null"]))
            elif way != "removed":
                path.write_bytes(b"" if way == "empty" else other)
            return f"file {way}"
    changed, way = spoil_bytes(path.read_bytes(), rng)
    path.write_bytes(changed)
    return way


def copy(source, target):
    (shutil.copytree if source.is_dir() else shutil.copy)(source, target)
    return target
