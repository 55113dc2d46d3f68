"""Files of a corpus: the dataset that a folder, an Arrow or Parquet file, or a list of these is, and its vocabulary."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from corrmask_fast.cells.vocabulary import Vocabulary
from corrmask_fast.errors import InputError, import_extra, naming, readable

VOCABULARY_FILE = "vocabulary.json"


def paths_of(source: Any) -> list[Path]:
    """Return the paths that a source of cells is or lists; none of anything else."""
    found = [source] if isinstance(source, str | os.PathLike) else source
    if not isinstance(found, list | tuple) or not all(isinstance(path, str | os.PathLike) for path in found):
        return []
    return [corpus_path(path) for path in found]


def corpus_path(source: str | os.PathLike[str]) -> Path:
    """Return a path if there may be a corpus, or raise InputError."""
    path = Path(source)
    if path.suffix == ".h5ad":
        raise InputError(
            f"{path} is an .h5ad of counts: run `corrmask-fast tokenize` first (or corrmask_fast.tokenize)"
        )
    if not path.exists():
        raise InputError(f"no corpus at {path}: give a datasets folder or an .npz file")
    return path


def is_corpus(source: str | os.PathLike[str]) -> bool:
    """Return whether a path is one of tokenised cells, and not of counts; what is not there may be either."""
    path = Path(source)
    if path.is_dir():
        marks = ("state.json", "dataset_dict.json", "*.arrow", "*.parquet")
        return any(next(path.glob(mark), None) is not None for mark in marks)
    return path.suffix in {".npz", ".arrow", ".parquet"}


def load_dataset(path: Path) -> Any:
    """Return the ``datasets.Dataset`` of a folder or file."""
    return _load_folder(path) if path.is_dir() else _load_files([path])


def load_all(paths: list[Path], given: Vocabulary | None) -> tuple[Any, Vocabulary]:
    """Return the dataset of all paths, one after the other, and their vocabulary."""
    datasets = import_extra("datasets", "hf")
    parts, vocabulary = [], given
    whose = "the vocabulary given" if given is not None else f"the corpus {paths[0]}"
    for path in paths:
        if not path.is_dir() and path.suffix not in {".arrow", ".parquet"}:
            raise InputError(
                f"a list of paths takes datasets folders, .arrow and .parquet files; got {path}; read that one alone, "
                "and write it as a folder with write_corpus"
            )
        with naming(path):
            parts.append(load_dataset(path))
            check_columns(parts[0].features.arrow_schema, parts[-1].features.arrow_schema, paths[0], path)
            vocabulary = stored_vocabulary(path, vocabulary, whose)
    with readable(paths[0], "corpus to join with the others"):
        return parts[0] if len(parts) == 1 else datasets.concatenate_datasets(parts), vocabulary  # type: ignore[return-value]


def check_columns(first: Any, other: Any, first_path: Path, path: Path) -> None:
    """Raise InputError unless two Arrow schemas have the same columns, in any order."""
    one, two = ({field.name: str(field.type) for field in schema} for schema in (first, other))
    for name in {**one, **two}:
        if one.get(name) != two.get(name):
            raise InputError(
                f"the files of a corpus must have the same columns; {name!r} is {one.get(name, 'missing')} in "
                f"{first_path} and {two.get(name, 'missing')} in {path}; write one of them anew with the other's"
            )


def _load_folder(path: Path) -> Any:
    datasets = import_extra("datasets", "hf")
    files = sorted(path.glob("*.arrow")) or sorted(path.glob("*.parquet"))
    if files and not ((path / "state.json").exists() or (path / "dataset_dict.json").exists()):
        return _load_files(files)
    with readable(path, "datasets folder"):
        try:
            dataset = datasets.load_from_disk(str(path))
        except Exception as error:
            for file in files:
                if damage := _damage(file):
                    raise InputError(
                        f"{file} is cut off or damaged: {damage}; copy it again, or make it again"
                    ) from error
            raise
    if not isinstance(dataset, datasets.Dataset):
        names = ", ".join(map(str, dataset))
        raise InputError(f"{path} holds several splits ({names}); give the folder of one of them, such as {path}/train")
    return dataset


def _load_files(files: list[Path]) -> Any:
    """Return the dataset of ``.arrow`` files (memory-mapped) or of ``.parquet`` files, one after the other."""
    datasets = import_extra("datasets", "hf")
    if files[0].suffix == ".arrow":
        parts = []
        for file in files:
            with readable(file, "Arrow file of a dataset (a stream, as save_to_disk writes it)"):
                parts.append(datasets.Dataset.from_file(str(file)))
        return parts[0] if len(parts) == 1 else datasets.concatenate_datasets(parts)
    pa, parquet = import_extra("pyarrow", "hf"), import_extra("pyarrow.parquet", "hf")
    tables = []
    for file in files:
        with readable(file, "Parquet file"):
            tables.append(parquet.ParquetFile(file).read())
    with readable(files[0].parent, "folder of Parquet files with the same columns"):
        table = datasets.table.InMemoryTable(pa.concat_tables(tables))
        return datasets.Dataset(table, fingerprint=files[0].stem)  # its own would hash all tokens


def _damage(file: Path) -> str | None:
    """Return what is wrong with an Arrow file, or None; its cells are not looked at."""
    pa = import_extra("pyarrow", "hf")
    try:
        with pa.memory_map(str(file)) as source, pa.ipc.open_stream(source) as stream:
            for _ in stream:
                pass
    except (OSError, ValueError) as error:  # Arrow's own errors are among these
        return str(error)
    return None


def stored_vocabulary(path: Path, given: Vocabulary | None, whose: str = "the vocabulary given") -> Vocabulary:
    """Return the vocabulary stored beside a corpus, or the given one; both must mean the same."""
    file = (path if path.is_dir() else path.parent) / VOCABULARY_FILE
    if not file.is_file():
        return agreed_vocabulary(path, given, None, whose)
    with readable(file, "vocabulary"):
        stored = Vocabulary.from_json(file.read_bytes())
    return agreed_vocabulary(path, given, stored, whose)


def agreed_vocabulary(
    path: Path, given: Vocabulary | None, stored: Vocabulary | None, whose: str = "the vocabulary given"
) -> Vocabulary:
    """Return the given or the stored vocabulary; both must mean the same, and symbols that are given count."""
    if given is None and stored is None:
        raise InputError(_no_vocabulary(path))
    if given is None or stored is None:
        return given or stored  # type: ignore[return-value]
    given.check_same(stored, whose, f"the corpus {path}")
    return given if given.symbols else stored


def _no_vocabulary(path: Path) -> str:
    return (
        f"no vocabulary is stored with {path}; give the token dictionary it was made with "
        "(vocabulary=Vocabulary.from_token_dictionary('token_dictionary.pkl'), or --vocabulary at the command line)"
    )
