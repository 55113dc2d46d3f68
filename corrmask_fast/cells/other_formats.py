"""Files of counts that are no AnnData: what they are, who reads them, and how they are converted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from corrmask_fast.errors import InputError, MissingExtraError, import_extra, readable

if TYPE_CHECKING:
    from pathlib import Path


def is_count_matrix(folder: Path, kind: str = "any") -> bool:
    """Whether a folder is one matrix of counts: a zarr store, or 10x' (``kind="10x"``) matrix with names beside it."""
    stores = () if kind == "10x" else ("zarr.json", ".zgroup", ".zmetadata")
    return any((folder / name).exists() for name in (*stores, "matrix.mtx", "matrix.mtx.gz"))


def what_folder(path: Path) -> str:
    """Say what a folder is that is no zarr store."""
    names = {entry.name for entry in path.iterdir()}
    if {"state.json", "dataset_info.json"} & names:
        return "it is a corpus of tokenised cells already; give it to `graph build`"
    return "give the path of an .h5ad file or a zarr store"


def _convert(reader: str, path: Path) -> str:
    module = reader.rpartition(".")[0]
    return f'python -c "import {module}; {reader}({str(path)!r}).write_h5ad({str(path.with_suffix(".h5ad"))!r})"'


# The first bytes of files that are taken for .h5ad files, and what they are.
_MAGIC = (
    (b"\x1f\x8b", "it is compressed with gzip; unpack it first: gunzip {path}"),
    (b"PK\x03\x04", "it is a zip archive; unpack it first, and give what is in it"),
    (b"BZh", "it is compressed with bzip2; unpack it first: bunzip2 {path}"),
    (b"\xfd7zXZ", "it is compressed with xz; unpack it first: unxz {path}"),
    (b"\x28\xb5\x2f\xfd", "it is compressed with zstd; unpack it first: unzstd {path}"),
    (b"PAR1", "it is a parquet file; make an AnnData of it and write it with .write_h5ad"),
    (
        b"%%MatrixMarket",
        "it is a Matrix Market file without names of genes; give the folder of the 10x matrix to scanpy",
    ),
)
_TEXTS = {".csv": "read_csv", ".tsv": "read_text", ".txt": "read_text"}


def what_file(path: Path) -> str | None:
    """Say what a file is that is no HDF5, by how it begins or is named."""
    with path.open("rb") as file:
        begin = file.read(16)
    for magic, what in _MAGIC:
        if begin.startswith(magic):
            return what.format(path=path)
    if path.suffix in _TEXTS:
        return f"it is a table; convert it (cells in rows): {_convert(f'anndata.io.{_TEXTS[path.suffix]}', path)}"
    return None


def what_else(members: set[str]) -> str | None:
    """Say what an HDF5 file is that is no AnnData, by the names of its groups."""
    if "mod" in members:
        return "holds several modalities (MuData); write one: mudata.read_h5mu(file)['rna'].write_h5ad('rna.h5ad')"
    return None


class _Format(NamedTuple):
    """Another format of counts, and who reads it into memory."""

    what: str
    module: str
    function: str
    needs: str  # package


TENX_FOLDER = _Format("10x matrix", "scanpy", "read_10x_mtx", "scanpy")
TENX_FILE = _Format("10x file", "scanpy", "read_10x_h5", "scanpy")
LOOM = _Format("loom file", "anndata.io", "read_loom", "loompy")


def other_format(members: set[str]) -> _Format | None:
    """Say which other format an HDF5 file has, by the names of its groups; None: AnnData's, or none that is known."""
    if "obs" in members or "mod" in members:
        return None
    if {"row_attrs", "col_attrs"} <= members:
        return LOOM
    return TENX_FILE if "matrix" in members else None


def read_by(format_: _Format, path: Path) -> Any:
    """Return a file of another format as AnnData, by a reader that is installed; else say how to convert it."""
    module, function = format_.module, format_.function
    try:
        import_extra(format_.needs, "anndata")
        read = getattr(import_extra(module, "anndata"), function)
    except MissingExtraError as error:
        convert = _convert(f"{module}.{function}", path)
        raise InputError(
            f"{path} is a {format_.what}; to read it, pip install {format_.needs}, or convert it: {convert}"
        ) from error
    with readable(path, format_.what):
        return read(path)
