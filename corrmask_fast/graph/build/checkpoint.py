"""Checkpoints of a build: a folder that holds what is done of each stage, so that a killed build can be resumed.

    FOLDER/build.json                what is built: parameters, and a fingerprint of all cells sampled
    FOLDER/pairs-0.safetensors       a part: what rank 0 has done of a stage, with a hash over it

A part is written whole or not at all. It names its build, and the layout of its tasks. A part is not used if it is
damaged, if it belongs to another build or layout (of another version, for instance), or if its arrays have other types,
shapes or ranges than the stage gives. What it held is computed again. No file here can run code.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from corrmask_fast.cells.row_numbers import rows_between
from corrmask_fast.errors import InputError, reason, shown
from corrmask_fast.files import atomic_file, check_output_folder
from corrmask_fast.tensor_files import METADATA, canonical, hash_tensors, read_tensors
from corrmask_fast.threads import map_tasks

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator, Mapping

    from corrmask_fast.graph.build.records import Cells
    from corrmask_fast.progress import Bar

FORMAT, VERSION = "corrmask-fast checkpoint of a graph", 3
SUFFIX = ".safetensors"
FINGERPRINT_CELLS = 4096  # of a piece: pieces are read and hashed side by side


class Checkpoint:
    """The folder of a build's checkpoint. Without a folder, nothing is saved and nothing is found."""

    def __init__(self, folder: str | os.PathLike[str] | None = None, rank: int = 0) -> None:
        self.folder = None if folder is None else Path(folder)
        self.rank = rank
        self._build = ""  # hash of the settings: parts of another build may have the same layout

    def __bool__(self) -> bool:
        return self.folder is not None

    def open(self, settings: Mapping[str, Any]) -> None:
        """Make the folder; InputError if it is there and of another build than ``settings`` (JSON values) say."""
        if self.folder is None:
            return
        settings = json.loads(json.dumps(dict(settings)))
        self._build = hashlib.sha256(canonical(settings)).hexdigest()
        check_output_folder(self.folder)
        self.folder.mkdir(exist_ok=True)
        file = self.folder / "build.json"
        present = {path.name for path in self.folder.iterdir() if not path.name.startswith(".")}
        if file.name not in present:  # other ranks may write theirs at this moment, which says the same
            if present:
                raise InputError(f"checkpoint={self.folder} holds other files already; give a new or an empty folder")
            with atomic_file(file) as temporary:
                temporary.write_text(json.dumps({"format": FORMAT, "version": VERSION, "settings": settings}, indent=2))
            return
        stored = self._read_manifest(file)
        for name in {**settings, **stored}:  # parameters first: with another sample the fingerprint differs too
            then, now = stored.get(name), settings.get(name)
            if then != now:
                raise InputError(
                    f"the checkpoint {self.folder} belongs to another build: {shown(name)[1:-1]} was {shown(then)} "
                    f"there and is {shown(now)} now; give the same corpus and parameters, or another folder"
                )

    def _read_manifest(self, file: Path) -> dict[str, Any]:
        try:
            manifest = json.loads(file.read_bytes())
            if manifest["format"] == FORMAT and manifest["version"] == VERSION:
                return dict(manifest["settings"])
            why = f"it has version {shown(manifest['version'])} of {shown(manifest['format'])}"
        except Exception as error:  # noqa: BLE001 (RecursionError for one)
            why = f"it is damaged ({reason(error)})"
        raise InputError(f"{file} is no description of a build: {why}; delete {self.folder}, or give another folder")

    def save(self, name: str, layout: str, arrays: Mapping[str, np.ndarray]) -> None:
        """Write this rank's part ``name`` and replace an earlier one; warn if it cannot be written."""
        if self.folder is None:
            return
        from safetensors.numpy import save_file

        header = self._header(layout)
        arrays = {key: np.ascontiguousarray(array) for key, array in arrays.items()}
        header["sha256"] = hash_tensors(canonical(header), arrays)
        try:
            with atomic_file(self.folder / f"{name}-{self.rank}{SUFFIX}") as temporary:
                save_file(arrays, temporary, {METADATA: canonical(header).decode()})
        except (OSError, InputError) as error:  # hours of work must not end with a full disk, or a folder in the way
            why = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) else str(error)
            warnings.warn(
                f"the checkpoint was not saved, and the build goes on without: {why}", UserWarning, stacklevel=2
            )

    def _header(self, layout: str) -> dict[str, Any]:
        return {"format": FORMAT, "build": self._build, "layout": layout}

    def parts(
        self, name: str, layout: str, check: Callable[[Mapping[str, np.ndarray]], None], *, own: bool = False
    ) -> Iterator[dict[str, np.ndarray]]:
        """Yield the parts ``name`` of this layout, of all ranks or of this one; warn of each part that is damaged.

        ``check`` raises InputError for arrays that the stage cannot have saved.
        """
        if self.folder is None:
            return
        for path in sorted(self.folder.glob(f"{name}-{self.rank if own else '*'}{SUFFIX}")):
            try:
                header, arrays = read_tensors(path, "part of a checkpoint")
                digest = header.pop("sha256")
                if digest != hash_tensors(canonical(header), arrays):
                    raise InputError("it was altered or damaged since it was saved")  # noqa: TRY301
                if {**header, "layout": layout} != self._header(layout):
                    raise InputError("it belongs to another build")  # noqa: TRY301
                if header["layout"] == layout:
                    check(arrays)
            except Exception as error:  # noqa: BLE001 (a header may be anything)
                why = str(error) if str(path) in str(error) else f"{path} is not used: {reason(error)}"
                warnings.warn(f"{why}; what it held is computed again", UserWarning, stacklevel=2)
                continue
            if header["layout"] == layout:
                yield arrays

    def drop(self, name: str) -> None:
        """Remove this rank's part ``name``, which is no longer needed."""
        if self.folder is not None:
            (self.folder / f"{name}-{self.rank}{SUFFIX}").unlink(missing_ok=True)


def fingerprint_cells(cells: Cells, bar: Bar) -> str:
    """Return a hash over the vocabulary and the sampled cells: every token of every cell, in order.

    A processor with instructions for SHA-256 hashes more than 1 GB/s: a hundred thousand cells of 2 000 genes take a
    fraction of a second, far below a hundredth of the build.
    """
    corpus, rows, _ = cells

    def digest(begin: int) -> tuple[bytes, int]:
        corpus.check_files()
        indptr, tokens = corpus.gather(rows_between(rows, begin, begin + FINGERPRINT_CELLS), warn=False)
        piece = hashlib.sha256(indptr.astype("<i8", copy=False).data)
        piece.update(tokens.astype(tokens.dtype.newbyteorder("<"), copy=False).data)
        return piece.digest(), indptr.size - 1

    whole = hashlib.sha256(f"{len(rows)} {corpus.max_length} {corpus.vocabulary.fingerprint}".encode())
    with bar("looking at cells", len(rows), "cell") as progress:
        for piece, n_cells in map_tasks(digest, range(0, len(rows), FINGERPRINT_CELLS)):
            whole.update(piece)
            progress.update(n_cells)
    return whole.hexdigest()
