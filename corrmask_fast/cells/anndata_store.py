"""An AnnData read element by element: an ``.h5ad`` file, a zarr store, or an object in memory or backed.

Elements are read by AnnData's own readers (``anndata.io``). What these do not check is checked here and in
``counts.py``: whether the lengths of the parts fit each other, before any kernel sees them.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import threading
from collections.abc import Iterable
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from corrmask_fast.cells.obs_columns import ObsColumn, obs_column, text_of
from corrmask_fast.cells.other_formats import (
    TENX_FOLDER,
    is_count_matrix,
    other_format,
    read_by,
    what_else,
    what_file,
    what_folder,
)
from corrmask_fast.errors import InputError, MissingExtraError, import_extra, listed, readable, reason, shown
from corrmask_fast.suggestions import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Iterator

OLD_FILE = (
    "it was written by anndata < 0.7 or by another program; read it with `anndata.read_h5ad` and write it anew with "
    "`.write_h5ad`"
)
ENCODINGS = ["anndata", "0.1.0"], ["", ""]  # of the file as a whole; the latter before anndata 0.8
MAX_UNSTORED = 1 << 24  # elements that a dataset may declare without a byte of them in the file


class Frame(Protocol):
    """``obs`` or ``var``: an index and columns."""

    size: int  # number of rows

    def columns(self) -> list[str]:
        """Return the names of the columns."""

    def index(self) -> np.ndarray:
        """(size,) object: the names of the rows, as text."""

    def column(self, name: str) -> ObsColumn:
        """Return a column; ``"index"`` is the index where no column has this name."""


class Store(Protocol):
    """An AnnData, wherever it lies."""

    name: str  # in messages

    def frame(self, name: str) -> Frame:
        """Return ``obs``, ``var`` or ``raw/var``."""

    def matrix(self, name: str) -> Any:
        """Return ``X``, ``raw/X`` or ``layers/…`` as SciPy or NumPy array, HDF5 dataset or backed matrix, or None."""

    def layers(self) -> list[str]:
        """Return the names of the layers."""

    def reading(self) -> contextlib.AbstractContextManager[None]:
        """Turn whatever reading may raise inside the block into an InputError that names the source."""


@contextmanager
def open_anndata(source: Any) -> Iterator[Store]:
    """Open the path of an ``.h5ad`` file or a zarr store, or an ``AnnData``.

    Raises
    ------
    InputError
        If there is no such file, or it is of another kind (says what it is, and how to convert it).
    MissingExtraError
        Without anndata.
    """
    if not isinstance(source, str | os.PathLike):
        if not all(hasattr(source, name) for name in ("obs", "var", "layers", "n_obs")):
            raise InputError(
                f"counts must be the path of an .h5ad file or a zarr store, or an AnnData; got {type(source).__name__}"
            )
        yield _MemoryStore(source)
        return
    import_extra("anndata.io", "anndata")
    path = _check_path(source)
    if is_count_matrix(path, "10x"):
        yield _MemoryStore(read_by(TENX_FOLDER, path), str(path))
        return
    with ExitStack() as opened:
        kind = "zarr store" if path.is_dir() else ".h5ad file"
        group = _open_zarr(path, opened) if path.is_dir() else _open_hdf5(path, opened)
        store = _GroupStore(group, str(path), kind)
        with store.reading():
            members = set(group)
            encoding = [attribute(group, f"encoding-{name}") for name in ("type", "version")]
        if encoding not in ENCODINGS:
            raise InputError(
                f"{path} says that it is {' '.join(encoding)!r}, and this version reads {' '.join(ENCODINGS[0])!r}; "
                "write it anew with AnnData"
            )
        if (other := other_format(members)) is not None:
            opened.close()
            yield _MemoryStore(read_by(other, path), str(path))
            return
        if not {"obs", "var"} <= members or ("mod" in members and "X" not in members):
            raise InputError(f"{path} {what_else(members) or _no_anndata(members, kind)}")
        yield store


# ------------------------------------------------------------------------------------------------ a file or zarr store


class _GroupStore:
    """An AnnData in an HDF5 or a zarr group."""

    def __init__(self, group: Any, name: str, kind: str) -> None:
        self.name, self._group, self._kind = name, group, kind
        self._io = import_extra("anndata.io", "anndata")

    @contextmanager
    def reading(self) -> Iterator[None]:
        try:
            with readable(self.name, self._kind):
                yield
        except InputError as error:
            if missing := _missing_filter(error.__cause__):
                raise InputError(f"{self.name} is compressed by a filter that HDF5 lacks here; {missing}") from error
            raise

    def frame(self, name: str) -> Frame:
        with self.reading():
            if name not in self._group:
                raise InputError(f"{self.name} is damaged: it has no {name}")
            return _GroupFrame(self, name, self._group[name], self._io.read_elem)

    def matrix(self, name: str) -> Any:
        with self.reading():
            if name not in self._group:
                return None
            elem = self._group[name]
            if hasattr(elem, "shape"):
                check_stored(elem, self.name)
                return elem
            encoding = attribute(elem, "encoding-type") or attribute(elem, "h5sparse_format") or "unknown"
            if not encoding.startswith(("csr", "csc")):
                raise InputError(f"{self.name} holds {name} as {encoding!r}; store counts as CSR, CSC or dense")
            return self._io.sparse_dataset(elem)

    def layers(self) -> list[str]:
        with self.reading():
            return list(self._group["layers"]) if "layers" in self._group else []


class _Frame:
    """A dataframe, however it is stored: how its index and its columns are found."""

    def __init__(self, store: Any, name: str) -> None:
        self._store, self._name = store, name

    def columns(self) -> list[str]:
        raise NotImplementedError

    def index(self) -> np.ndarray:
        with self._store.reading():
            return np.array([text_of(name) for name in self._read_index()], object)

    def column(self, name: str) -> ObsColumn:
        names = self.columns()
        if names.count(name) > 1:
            raise InputError(f"{self._store.name} has the {self._name} column {name!r} twice; rename one")
        if name in names:
            with self._store.reading():
                return obs_column(name, self._read(name))
        if name == "index":
            return obs_column(name, self.index())
        meant = did_you_mean(name, names)
        raise InputError(f"{self._store.name} has no {self._name} column {name!r}{meant}; it has {listed(names)}")

    def _read_index(self) -> Any:
        raise NotImplementedError

    def _read(self, name: str) -> Any:
        raise NotImplementedError


class _GroupFrame(_Frame):
    """A dataframe in a group; a column is read when it is asked for."""

    def __init__(self, store: _GroupStore, name: str, group: Any, read_elem: Any) -> None:
        super().__init__(store, name)
        self._group, self._read_elem = group, read_elem
        # Without this mark AnnData takes the file for one of before 0.7, and numbers the rows.
        if attribute(group, "encoding-type") != "dataframe" or "column-order" not in group.attrs:
            raise InputError(f"{store.name}: {name} is no dataframe as AnnData writes it: {OLD_FILE}")
        self._index_name = str(group.attrs["_index"])
        elem = group[self._index_name]
        values = elem if hasattr(elem, "shape") else elem["codes" if "codes" in elem else "values"]
        check_stored(values, store.name)
        if len(values.shape or ()) != 1:
            raise InputError(f"{store.name} is damaged: the index of {name} is no list of names")
        if elem is values and lacks_chunks(values):
            raise InputError(f"{store.name} is damaged: a part of the index of {name} is missing")
        self.size = int(values.shape[0])

    def columns(self) -> list[str]:
        with self._store.reading():
            return [str(name) for name in self._group.attrs["column-order"]]

    def _read_index(self) -> Any:
        return self._whole(self._index_name, self._read_elem(self._group[self._index_name]))

    def _read(self, name: str) -> Any:
        if attribute(self._group, "encoding-version") == "0.2.0":
            return self._whole(name, self._read_elem(self._group[name]))
        return self._read_elem(self._group)[name].array  # anndata 0.7 keeps categories beside the columns

    def _whole(self, name: str, column: Any) -> Any:
        if np.ndim(column) != 1 or len(column) != self.size:
            raise InputError(
                f"{self._store.name} is damaged: the column {name!r} of {self._name} has {np.shape(column)} values for "
                f"{self.size} names"
            )
        return column


def attribute(elem: Any, name: str) -> str:
    """Return an attribute as text, "" where there is none; ``attrs.get`` would say so of a damaged one too."""
    return str(elem.attrs[name]) if name in elem.attrs else ""


def check_stored(dataset: Any, name: str) -> None:
    """Refuse an HDF5 dataset that declares many elements and stores none: to read it would never end."""
    stored = getattr(getattr(dataset, "id", None), "get_storage_size", None)
    if stored is not None and dataset.shape is not None and dataset.size > MAX_UNSTORED and stored() == 0:
        raise InputError(f"{name} is damaged: {dataset.name} declares {dataset.size} values, and the file holds none")


def lacks_chunks(array: Any) -> bool:
    """Return whether chunks of an array are not in the file or store, so that reading gives zeros in their place."""
    if hasattr(array, "nchunks_initialized"):  # zarr
        return array.nchunks_initialized < array.nchunks
    chunks = getattr(array, "chunks", None)
    if chunks is None or not hasattr(getattr(array, "id", None), "get_num_chunks"):
        return False
    return array.id.get_num_chunks() < math.prod(-(-n // size) for n, size in zip(array.shape, chunks, strict=True))


# -------------------------------------------------------------------------------------------------- an object in memory


class _MemoryStore:
    """An ``AnnData``, in memory or backed."""

    def __init__(self, adata: Any, name: str = "the AnnData") -> None:
        self._adata, self.name = adata, name

    def reading(self) -> contextlib.AbstractContextManager[None]:
        return readable(self.name, "AnnData")

    def frame(self, name: str) -> Frame:
        with self.reading():
            frame = self._adata.raw.var if name == "raw/var" else getattr(self._adata, name)
            return MemoryFrame(frame, name, self)

    def matrix(self, name: str) -> Any:
        with self.reading():
            if name == "raw/X":
                return None if self._adata.raw is None else self._adata.raw.X
            return self._adata.X if name == "X" else self._adata.layers.get(name.removeprefix("layers/"))

    def layers(self) -> list[str]:
        return list(self._adata.layers)


class MemoryFrame(_Frame):
    """A ``pandas.DataFrame``: ``obs`` or ``var`` of a store, or by itself."""

    def __init__(self, frame: Any, name: str, store: Any = None) -> None:
        super().__init__(_MemoryStore(None, name) if store is None else store, name)
        self._frame = frame
        self.size = len(frame.index)

    def columns(self) -> list[str]:
        """Return the names of the columns."""
        return [str(name) for name in self._frame.columns]

    def _read_index(self) -> Any:
        return self._frame.index

    def _read(self, name: str) -> Any:
        return self._frame[name].array


class NamesFrame(_Frame):
    """A list of names alone: an index without columns."""

    def __init__(self, names: Any) -> None:
        super().__init__(_MemoryStore(None, "the list of names"), "names")
        if isinstance(names, str) or not isinstance(names, Iterable):
            raise InputError(f"genes must be a list of names, or a table with them as its index; got {shown(names)}")
        self._names = list(names)
        self.size = len(self._names)

    def columns(self) -> list[str]:
        """Return none."""
        return []

    def _read_index(self) -> Any:
        return self._names


# -------------------------------------------------------------------------------------------------------------- opening


def _check_path(source: str | os.PathLike[str]) -> Path:
    """Return the path of a file or folder that may be an AnnData; say of others what they are and what to do."""
    text, path = os.fspath(source), Path(source)
    if re.match(r"[a-zA-Z][a-zA-Z0-9+.-]+://", text):
        raise InputError(f"{text} is an address; download the file first and give its path")
    if text == "-":
        raise InputError("counts cannot be read from standard input ('-'); give the path of an .h5ad file")
    if not path.exists():
        raise InputError(f"no file at {path}; give the path of an .h5ad file or a zarr store")
    if path.is_dir() and not is_count_matrix(path):
        raise InputError(f"{path} is a folder, but no zarr store; {what_folder(path)}")
    return path


def _open_hdf5(path: Path, opened: ExitStack) -> Any:
    h5py = import_extra("h5py", "anndata")
    with contextlib.suppress(ImportError):
        import_extra("hdf5plugin", "anndata")  # adds filters (blosc, zstd, …) to HDF5 where it is installed
    if not path.is_file():
        raise InputError(f"{path} is no ordinary file; give the path of an .h5ad file or a zarr store")
    with readable(path, ".h5ad file"):
        try:
            return opened.enter_context(h5py.File(path, "r"))
        except Exception as error:
            raise InputError(f"{path} is not a readable .h5ad file: {what_file(path) or reason(error)}") from error


def _open_zarr(path: Path, opened: ExitStack) -> Any:
    zarr, registry = import_extra("zarr", "anndata"), import_extra("numcodecs.registry", "anndata")
    opened.enter_context(_without_pickle(registry.codec_registry))
    with readable(path, "zarr store"):
        return zarr.open_group(str(path), mode="r")


@contextmanager
def _without_pickle(codecs: dict[str, Any]) -> Iterator[None]:
    """Keep zarr from decoding pickles, which can run code, while any store is open here."""
    with _stores_lock:
        if not _stores_open:
            _codec_before.update({"pickle": codecs["pickle"]} if "pickle" in codecs else {})
            codecs["pickle"] = _RefusedCodec
        _stores_open.append(True)
    try:
        yield
    finally:
        with _stores_lock:
            _stores_open.pop()
            if not _stores_open:
                del codecs["pickle"]
                codecs.update(_codec_before)
                _codec_before.clear()


_stores_lock = threading.Lock()
_stores_open: list[bool] = []
_codec_before: dict[str, Any] = {}


class _RefusedCodec:
    codec_id = "pickle"

    @classmethod
    def from_config(cls, config: Any) -> Any:  # noqa: ARG003
        raise InputError("refused: an array of this store is a pickle, which can run code; write it anew with anndata")


def _no_anndata(members: set[str], kind: str) -> str:
    missing = "obs" if "obs" not in members else "var"
    what = "an HDF5 file, but no .h5ad" if kind == ".h5ad file" else "a zarr store, but of no AnnData"
    return f"has no {missing!r}: it is {what}; write it with AnnData"


def _missing_filter(error: BaseException | None) -> str | None:
    """Say how to read a file whose filter HDF5 does not have, if that is what the error says."""
    text = str(error)
    if not isinstance(error, OSError) or not ("plugin" in text or "not registered" in text):
        return None
    try:
        import_extra("hdf5plugin", "anndata")
    except MissingExtraError:
        return "install the filters of blosc, zstd, lz4 and others: pip install hdf5plugin"
    return f"hdf5plugin is installed and does not have it either ({reason(error)}); write the file anew with gzip"
