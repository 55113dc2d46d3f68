"""The file of a graph, a PMI table or an attention masker: ``safetensors``, all that is no tensor in one JSON header.

    tensors    graph: indptr  indices  rho  [rho_global]
               PMI table: indptr  indices  npmi  counts
               attention masker: its weights
    header     format  version  params  vocabulary (names, symbols)  sha256 (over all else)

The header stands as text in the file's metadata, under the name ``corrmask_fast``.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from corrmask_fast.cells.vocabulary import Vocabulary
from corrmask_fast.errors import InputError, as_integer, readable, reason, shown
from corrmask_fast.files import atomic_file

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

METADATA = "corrmask_fast"


class FileKind(NamedTuple):
    """A kind of file that holds tensors over a vocabulary."""

    format: str
    version: int
    noun: str  # what it holds, in messages
    short: str
    command: str  # that makes one
    needed: frozenset[str]  # tensors
    known: frozenset[str]


_CSR = frozenset({"indptr", "indices"})
GRAPH = FileKind(
    *("corrmask-fast dependency graph", 1, "dependency graph", "graph", "graph build"),
    *(_CSR | {"rho"}, _CSR | {"rho", "rho_global"}),
)
PMI_TABLE = FileKind(
    *("corrmask-fast PMI table", 1, "PMI table", "PMI table", "pmi build"),
    *(_CSR | {"npmi", "counts"}, _CSR | {"npmi", "counts"}),
)


def write_graph(
    path: str | os.PathLike[str],
    tensors: Mapping[str, np.ndarray],
    vocabulary: Vocabulary,
    params: Mapping[str, Any],
    kind: FileKind = GRAPH,
) -> None:
    """Write a graph, or a table of another kind, atomically; the same graph always gives the same bytes."""
    from safetensors.numpy import save_file

    header = {
        "format": kind.format,
        "version": kind.version,
        "params": params,
        "vocabulary": json.loads(vocabulary.to_json()),
    }
    header["sha256"] = hash_tensors(canonical(header), tensors)
    with atomic_file(path) as temporary:
        # One entry of metadata only: safetensors writes several in random order.
        save_file(dict(tensors), temporary, {METADATA: canonical(header).decode()})


def read_graph(
    path: str | os.PathLike[str], kind: FileKind = GRAPH
) -> tuple[dict[str, np.ndarray], Vocabulary, dict[str, Any]]:
    """Return tensors, vocabulary and params of a graph file, or raise InputError naming what is wrong with it."""
    if not Path(path).is_file():
        raise InputError(f"no {kind.short} file at {path}; build one with `corrmask-fast {kind.command}`")
    header, tensors = read_tensors(Path(path), f"{kind.short} file")
    if not isinstance(header, dict) or header.get("format") != kind.format:
        raise InputError(f"{path} is a safetensors file, but no {kind.noun} of this project")
    version = as_integer(header.get("version"))
    if version is not None and version > kind.version:
        raise InputError(
            f"{path} has format version {shown(version)}, and this version of corrmask-fast reads up to "
            f"{kind.version}; upgrade corrmask-fast"
        )
    parts = [header.get("params"), header.get("vocabulary")]
    whole = kind.needed <= tensors.keys() <= kind.known and all(isinstance(part, dict) for part in parts)
    if version is None or version < 1 or not whole:
        raise InputError(
            f"{path} lacks a part of a {kind.short}, or has a part too many: it was altered or damaged; build it again"
        )
    with readable(path, f"{kind.short} file"):
        digest = header.pop("sha256", None)
        if digest != hash_tensors(canonical(header), tensors):
            raise InputError(f"{path} was altered or damaged since it was saved (its SHA-256 differs); build it again")
        return tensors, Vocabulary.from_json(header["vocabulary"]), header["params"]


def read_tensors(path: Path, kind: str) -> tuple[Any, dict[str, np.ndarray]]:
    """Return header (None if there is none) and tensors of a safetensors file of a ``kind`` that messages name."""
    from safetensors import safe_open

    with readable(path, f"{kind} (truncated, damaged or of another kind)"):
        with safe_open(path, framework="numpy") as file:
            text = (file.metadata() or {}).get(METADATA)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        return (None if text is None else json.loads(text)), tensors


def plain_params(params: Mapping[str, Any]) -> dict[str, Any]:
    """Take ``params`` through JSON, so that a loaded graph equals the saved one."""

    def number(value: Any) -> Any:
        if isinstance(value, np.generic):
            return value.item()
        raise TypeError(f"{shown(value)} is a {type(value).__name__}")

    try:
        return json.loads(json.dumps(dict(params), default=number, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"params must hold plain JSON values (numbers, text, lists, None): {reason(error)}") from error


def hash_tensors(header: bytes, tensors: Mapping[str, np.ndarray]) -> str:
    """SHA-256 of a header and of named tensors with their dtypes and shapes, as hexadecimal text."""
    sha = hashlib.sha256(header)
    for name in sorted(tensors):
        tensor = np.ascontiguousarray(tensors[name])
        sha.update(f"\n{name} {tensor.dtype.str} {tensor.shape}\n".encode())
        sha.update(tensor.data)
    return sha.hexdigest()


def canonical(header: Mapping[str, Any]) -> bytes:
    """Return a header as JSON, the same bytes for equal headers."""
    return json.dumps(header, sort_keys=True, ensure_ascii=True).encode()
