"""The file of a dependency graph: ``safetensors``, with everything that is not a tensor in one JSON header.

    tensors    indptr  indices  rho  [rho_global]
    header     format  version  params  vocabulary (names, symbols)  sha256 (over all else)

The header stands as text in the file's metadata, under the name ``corrmask_fast``.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from corrmask_fast.errors import InputError
from corrmask_fast.files import atomic_file
from corrmask_fast.vocabulary import Vocabulary

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

FORMAT, VERSION = "corrmask-fast dependency graph", 1
METADATA = "corrmask_fast"
NEEDED, KNOWN = {"indptr", "indices", "rho"}, {"indptr", "indices", "rho", "rho_global"}


def write_graph(
    path: str | os.PathLike[str],
    tensors: Mapping[str, np.ndarray],
    vocabulary: Vocabulary,
    params: Mapping[str, Any],
) -> None:
    """Write a graph, atomically; the same graph always gives the same bytes."""
    from safetensors.numpy import save_file

    header = {
        "format": FORMAT,
        "version": VERSION,
        "params": params,
        "vocabulary": json.loads(vocabulary.to_json()),
    }
    header["sha256"] = hash_tensors(_canonical(header), tensors)
    with atomic_file(path) as temporary:
        # One entry of metadata only: safetensors writes several in random order.
        save_file(dict(tensors), temporary, {METADATA: _canonical(header).decode()})


def read_graph(path: str | os.PathLike[str]) -> tuple[dict[str, np.ndarray], Vocabulary, dict[str, Any]]:
    """Return tensors, vocabulary and params of a graph file, or raise InputError naming what is wrong with it."""
    header, tensors = _read(Path(path))
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise InputError(f"{path} is a safetensors file, but no dependency graph of this project")
    version = header.get("version")
    if isinstance(version, int) and version > VERSION:
        raise InputError(
            f"{path} has format version {version}, and this version of corrmask-fast reads up to {VERSION}; "
            "upgrade corrmask-fast"
        )
    if not (NEEDED <= tensors.keys() <= KNOWN and {"params", "vocabulary"} <= header.keys()):
        raise InputError(
            f"{path} lacks a part of a graph, or has a part too many: it was altered or damaged; build it again"
        )
    digest = header.pop("sha256", None)
    if digest != hash_tensors(_canonical(header), tensors):
        raise InputError(f"{path} was altered or damaged since it was saved (its SHA-256 differs); build it again")
    return tensors, Vocabulary.from_json(json.dumps(header["vocabulary"])), header["params"]


def _read(path: Path) -> tuple[Any, dict[str, np.ndarray]]:
    """Header (None if there is none) and tensors of a safetensors file."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise InputError(f"no graph file at {path}; build one with `corrmask-fast graph build`")
    try:
        with safe_open(path, framework="numpy") as file:
            text = (file.metadata() or {}).get(METADATA)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        return (None if text is None else json.loads(text)), tensors
    except (SafetensorError, ValueError, OSError, TypeError, KeyError) as error:
        raise InputError(
            f"{path} is no readable graph file (truncated, damaged or of another kind): {error}"
        ) from error


def plain_params(params: Mapping[str, Any]) -> dict[str, Any]:
    """Take ``params`` through JSON, so that a loaded graph equals the saved one."""

    def number(value: Any) -> Any:
        if isinstance(value, np.generic):
            return value.item()
        raise TypeError(f"{value!r} is a {type(value).__name__}")

    try:
        return json.loads(json.dumps(dict(params), default=number, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise InputError(f"params must hold plain JSON values (numbers, text, lists, None): {error}") from error


def hash_tensors(header: bytes, tensors: Mapping[str, np.ndarray]) -> str:
    """SHA-256 of a header and of named tensors with their dtypes and shapes, as hexadecimal text."""
    sha = hashlib.sha256(header)
    for name in sorted(tensors):
        tensor = np.ascontiguousarray(tensors[name])
        sha.update(f"\n{name} {tensor.dtype.str} {tensor.shape}\n".encode())
        sha.update(tensor.data)
    return sha.hexdigest()


def _canonical(header: Mapping[str, Any]) -> bytes:
    return json.dumps(header, sort_keys=True, ensure_ascii=True).encode()
