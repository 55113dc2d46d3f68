"""Ways to damage arrays, JSON, bytes and folders; everything follows from a NumPy generator."""

from __future__ import annotations

import json
import shutil

import numpy as np

DTYPES = ["i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f2", "f4", "f8", ">i4", ">i8", ">f4", ">f8", "?", "c8", "S5"]
NUMBERS = (-1, 0, 1, 2, 3, 5, 127, 255, 1 << 15, 1 << 16, (1 << 31) - 1, 1 << 31, -(1 << 31), (1 << 63) - 1, -(1 << 63))
FLOATS = (*NUMBERS, 0.5, 1e300, 2.0**53, -0.0, 1e-300, np.nan, np.inf, -np.inf)
TEXTS = ("", "ENSG00000000003", "x" * 5000, "\u00e9\u4e2d", "None", "nan", "-1")
VALUES = [None, True, False, -1, 0, 1, 2, 1.5, 1 << 31, 1 << 63, 1 << 64, 10**30, 1e308, float("nan"), float("inf"), "",
          "x", "0", "1", "nan", "x" * 100_000, "\ud800", "\u00e9", "a\u0000b", "../../x", "/dev/zero", [], {}, [[]],
          [None], {"": 0}, [0] * 1000]  # fmt: skip
DEEP, LONG = '"@@deep@@"', '"@@long@@"'  # what json.dumps could not write


def one_of(rng, values):
    return values[int(rng.integers(len(values)))]


def spoil_array(array, rng):
    """Return another array, and what was done to it."""
    array = np.asarray(array)
    rows, flat, text = np.atleast_1d(array), array.ravel(), array.dtype.kind in "OSUT"

    def value():
        return one_of(rng, TEXTS if text else FLOATS if array.dtype.kind == "f" else NUMBERS)

    def put(new, how_many):
        changed = array.copy()
        places = rng.integers(flat.size, size=how_many) if how_many and flat.size else slice(None)
        changed.reshape(-1)[places] = new if text else np.asarray([new]).astype(array.dtype)[0]
        return changed

    def swapped():
        order = np.arange(len(rows))
        if order.size:
            a, b = rng.integers(order.size, size=2)
            order[[a, b]] = b, a
        return rows[order]

    code = one_of(rng, DTYPES)
    ways = {
        "longer": lambda: np.concatenate(
            [rows, rows[-1:] if len(rows) else np.zeros((1, *rows.shape[1:]), rows.dtype)]
        ),
        "shorter": lambda: rows[:-1],
        "none left": lambda: rows[:0],
        "only one": lambda: rows[:1],
        "scalar": lambda: flat[0] if flat.size else np.zeros((), array.dtype),
        "column": lambda: array[..., None],
        "row": lambda: array[None],
        "repeated": lambda: np.concatenate([rows] * 2),
        "reversed": lambda: rows[::-1],
        "shuffled": lambda: rng.permutation(rows),
        "sorted": lambda: np.sort(rows.astype(str) if text else rows, axis=0).astype(array.dtype),
        "two swapped": swapped,
        "constant": lambda: put(one_of(rng, flat) if flat.size and rng.random() < 0.4 else value(), None),
        "one value": lambda: put(value(), 1),
        "many values": lambda: put(value(), 3),
        "dtype": lambda: (np.arange(flat.size).reshape(array.shape) if text else array).astype(code),
    }
    way = one_of(rng, [*ways, *["one value"] * 7, *["dtype"] * 3, "two swapped", "constant"])
    with np.errstate(all="ignore"):
        return ways[way](), f"dtype {code}" if way == "dtype" else way


def spoil_value(value, rng):
    """Return another value for a node of JSON (or TOML)."""
    others = VALUES.copy()
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
    places, waiting = [(None, None)], [content]
    while waiting:
        node = waiting.pop()
        items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
        places += [(node, key) for key, _ in items]
        waiting += [value for _, value in items]
    # Every level has its share: else the longest list would take all changes.
    node, key = one_of(rng, places if rng.random() < 0.5 else places[:12])
    if node is None:
        return spoil_value(content, rng), "the whole"
    way = one_of(rng, ["value"] * 4 + ["no such key", "other key", "deep", "long number"])
    label = f"{way} {key if isinstance(node, dict) else '[]'}"[:30]
    if way == "no such key":
        del node[key]
    elif way == "other key" and isinstance(node, dict):
        node[one_of(rng, ["", "x", f"{key} ", str(key).upper(), "\u00e9"])] = node.pop(key)
    else:
        node[key] = {"deep": DEEP[1:-1], "long number": LONG[1:-1]}.get(way) or spoil_value(node[key], rng)
    return content, label


def written(content):
    """JSON of a tree, with what json.dumps could not write."""
    return json.dumps(content).replace(DEEP, "[" * 100_000 + "]" * 100_000).replace(LONG, "9" * 6000)


def spoil_json(text, rng):
    """Return other bytes for a JSON text, and what was done."""
    way = one_of(rng, ["tree"] * 6 + ["twice", "BOM", "UTF-16", "behind", "NaN", "quotes", "nul"])
    if way == "tree":
        content, way = spoil_tree(json.loads(text), rng)
        return written(content).encode(), f"JSON {way}"
    digits = [i for i, c in enumerate(text) if chr(c) in "0123456789"] or [0]
    i = one_of(rng, digits)
    if new := {"NaN": b"NaN", "quotes": b'"1"', "nul": b"\x00"}.get(way):
        changed = text[:i] + new + text[i + 1 :]
    elif way == "twice":
        changed = text.replace(b"{", b'{"names": [], "format": 1, "zarr_format": 9, ', 1)
    elif way == "behind":
        changed = text + one_of(rng, [b"x", b"{}", b"\x00", b"\n\n  "])
    else:
        changed = b"\xef\xbb\xbf" + text if way == "BOM" else text.decode().encode("utf-16")
    return changed, f"JSON {way}"


def spoil_bytes(content, rng):
    """Return other bytes, and what was done: one to three small changes anywhere, or near the front or the end."""
    ways = []
    for _ in range(int(rng.integers(1, 4))):
        way = one_of(rng, [*["flip", "byte", "zeros", "ones", "random", "copy"] * 4, "insert", "delete", "cut"])
        ways.append(way)
        size, reach = len(content), int(one_of(rng, [len(content)] * 3 + [1024, 8192, -1024]))
        at = int(rng.integers(max(min(size, abs(reach)), 1)))
        at = max(size - 1 - at, 0) if reach < 0 else at
        n = int(one_of(rng, [1, 2, 4, 8, 16, 64]))
        noise, other = rng.integers(256, size=n, dtype=np.uint8).tobytes(), int(rng.integers(max(size, 1)))
        new = {"zeros": bytes(n), "ones": b"\xff" * n, "delete": b"", "cut": b"", "byte": noise[:1],
               "copy": content[other : other + n]}.get(way, noise)  # fmt: skip
        if way == "flip" and size:
            new = bytes([content[at] ^ (1 << int(rng.integers(8)))])
        end = {"insert": at, "cut": size, "delete": at + n}.get(way, at + len(new))
        content = content[:at] + new + content[end:]
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
