"""Corpora on disk: Hugging Face ``datasets`` folders as Geneformer writes them, ``.npz`` files, and plain lists."""

from __future__ import annotations

import json
import os
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from corrmask_fast.cells.corpus import Corpus, Segment, with_special_tokens
from corrmask_fast.cells.obs_columns import ObsColumn, obs_column
from corrmask_fast.cells.vocabulary import Vocabulary
from corrmask_fast.errors import InputError, import_extra
from corrmask_fast.files import atomic_file, atomic_folder, check_output, check_output_folder

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["CorpusWriter", "read_corpus", "write_corpus"]

VOCABULARY_FILE = "vocabulary.json"


def read_corpus(path_or_cells: Any, vocabulary: Vocabulary | None = None, *, max_length: int | None = None) -> Corpus:
    """Open a corpus of tokenised cells.

    Parameters
    ----------
    path_or_cells
        The path of a Hugging Face ``datasets`` folder with a column ``input_ids`` (memory-mapped, read as it is
        used) or of an ``.npz`` file with ``indptr`` and ``tokens``; a ``datasets.Dataset``; or a list of cells, each
        a list or array of token ids.
    vocabulary
        Which id is which gene. None: the vocabulary stored beside the corpus. One that gives ids another meaning than
        the stored one is refused; its symbols, where it has any, take the place of the stored ones.
    max_length
        Cells are cut to this many genes; None: the vocabulary's.

    Raises
    ------
    InputError
        If there is no such corpus, no vocabulary, or the content is not what it should be. Tokens are checked when
        they are read: at once for ``.npz`` files and lists, chunk by chunk for folders.

    Examples
    --------
    >>> genes = Vocabulary(("<pad>", "<mask>", "A", "B", "C"))
    >>> read_corpus([[2, 4], [3]], genes).tokens
    array([2, 4, 3], dtype=uint16)
    """
    if isinstance(path_or_cells, str | os.PathLike):
        path = Path(path_or_cells)
        if path.is_dir():
            return _from_dataset(_load_folder(path), _stored_vocabulary(path, vocabulary), max_length)
        if path.suffix == ".h5ad":
            raise InputError(f"{path} is an .h5ad of counts: run `corrmask-fast tokenize` first (or tokenize_h5ad)")
        if not path.exists():
            raise InputError(f"no corpus at {path}: give a datasets folder or an .npz file")
        return _from_npz(path, vocabulary, max_length)
    if vocabulary is None:
        raise InputError("cells in memory carry no vocabulary; give vocabulary=Vocabulary.from_token_dictionary(…)")
    if hasattr(path_or_cells, "features") and hasattr(path_or_cells, "data"):
        return _from_dataset(path_or_cells, vocabulary, max_length)
    if not isinstance(path_or_cells, Iterable):
        kind = type(path_or_cells).__name__
        raise InputError(f"cells must be a path, a datasets.Dataset, or a list of cells; got {kind}")
    indptr, tokens = flatten(list(path_or_cells))
    return Corpus(indptr, tokens, vocabulary, max_length=max_length)


def flatten(cells: list[Any]) -> tuple[np.ndarray, np.ndarray]:
    """Return ``(indptr, tokens)`` of a list of lists or arrays of token ids."""
    arrays = []
    for i, cell in enumerate(cells):
        try:
            array = np.asarray(cell)
        except ValueError as error:
            raise InputError(f"cell {i} must be a list of integer token ids; {error}") from error
        if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
            raise InputError(f"cell {i} must be a list of integer token ids; got {array.ndim}-d {array.dtype}")
        # Beside int64, NumPy would turn uint64 into floats; what int64 does not hold is no token anyway.
        arrays.append(array.astype(np.int64) if array.dtype == np.uint64 else array)
    indptr = np.zeros(len(arrays) + 1, np.int64)
    np.cumsum([array.size for array in arrays], out=indptr[1:])
    filled = [array for array in arrays if array.size]
    return indptr, np.concatenate(filled) if filled else np.empty(0, np.int64)


def write_corpus(corpus: Corpus, path: str | os.PathLike[str], *, chunk_cells: int = 16_384) -> None:
    """Write a corpus, its obs columns and its vocabulary: as ``.npz`` by that suffix, else as a datasets folder.

    Nothing is left behind if writing fails; an existing folder is refused.
    """
    obs = {name: obs_column(name, corpus.obs[name]) for name in corpus.obs}  # one type, whatever a chunk's values are
    with CorpusWriter(path, corpus.vocabulary) as writer:
        for i, chunk in enumerate(corpus.chunks(chunk_cells)):
            rows = i * chunk_cells + np.arange(chunk.n_cells)
            writer.write(chunk.indptr, chunk.tokens, {name: column.take(rows) for name, column in obs.items()})


def check_corpus_output(path: str | os.PathLike[str]) -> Path:
    """Return where to write a corpus, or raise InputError: a file ending in ``.npz`` is replaced, a folder is new."""
    return check_output(path) if Path(path).suffix == ".npz" else check_output_folder(path, new=True)


class CorpusWriter(AbstractContextManager["CorpusWriter"]):
    """Writes a corpus chunk by chunk; the file or folder appears whole at the end of the ``with`` block, or not at all.

    ``path`` ending in ``.npz`` gives an uncompressed NumPy archive (held in memory until the end); anything else a
    Hugging Face ``datasets`` folder with ``input_ids``, ``length`` and the obs columns, one chunk in memory at a time.

    V2 vocabularies: ``<cls>`` and ``<eos>`` are written around every cell of a folder, as Geneformer stores them.
    """

    def __init__(self, path: str | os.PathLike[str], vocabulary: Vocabulary) -> None:
        self.path, self.vocabulary = Path(path), vocabulary
        self._exit = ExitStack()
        self._columns: set[str] | None = None
        self._sink: _NpzSink | _FolderSink

    def __enter__(self) -> Self:
        with ExitStack() as stack:  # nothing may stay behind if the sink cannot be made (a missing extra)
            if self.path.suffix == ".npz":
                self._sink = _NpzSink(stack.enter_context(atomic_file(self.path)), self.vocabulary)
            else:
                self._sink = _FolderSink(stack.enter_context(atomic_folder(self.path)), self.vocabulary)
            self._exit = stack.pop_all()
        return self

    def write(self, indptr: np.ndarray, tokens: np.ndarray, obs: Mapping[str, Any] | None = None) -> None:
        """Append cells: ``tokens[indptr[i]:indptr[i + 1]]`` and one value of each obs column a cell."""
        columns = {name: obs_column(name, column) for name, column in (obs or {}).items()}
        for name, column in columns.items():
            if column.size != len(indptr) - 1:
                raise InputError(f"obs column {name!r} has {column.size} values for {len(indptr) - 1} cells")
        if self._columns is not None and self._columns != set(columns):
            raise InputError(f"obs columns must be the same in every chunk; got {self._columns} and {set(columns)}")
        self._columns = set(columns)
        everyone = np.arange(len(indptr) - 1)
        self._sink.write(indptr, tokens, {name: column.take(everyone) for name, column in columns.items()})

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._sink.close(complete=kind is None)
        except BaseException as failure:
            if not self._exit.__exit__(type(failure), failure, failure.__traceback__):
                raise
        self._exit.__exit__(kind, error, trace)


class _NpzSink:
    """Collects chunks and writes indptr, tokens, the vocabulary as JSON bytes, and obs columns.

    A column is ``obs/<name>``, and where values are missing ``missing/<name>``, True for these.
    """

    def __init__(self, path: Path, vocabulary: Vocabulary) -> None:
        self.path, self.vocabulary = path, vocabulary
        self.lengths: list[np.ndarray] = []
        self.tokens: list[np.ndarray] = []
        self.obs: dict[str, list[np.ndarray]] = {}

    def write(self, indptr: np.ndarray, tokens: np.ndarray, obs: Mapping[str, ObsColumn]) -> None:
        self.lengths.append(np.diff(indptr))
        self.tokens.append(np.asarray(tokens, self.vocabulary.token_dtype))
        for name, (values, _, missing) in obs.items():
            gone = np.zeros(len(values), np.bool_) if missing is None else missing
            self.obs.setdefault(f"obs/{name}", []).append(values.astype(str) if values.dtype == object else values)
            self.obs.setdefault(f"missing/{name}", []).append(gone)

    def close(self, *, complete: bool) -> None:
        if not complete:
            return
        indptr = np.zeros(sum(map(len, self.lengths)) + 1, np.int64)
        if self.lengths:
            np.cumsum(np.concatenate(self.lengths), out=indptr[1:])
        columns: dict[str, np.ndarray] = {
            "indptr": indptr,
            "tokens": np.concatenate(self.tokens) if self.tokens else np.empty(0, self.vocabulary.token_dtype),
            "vocabulary": np.frombuffer(self.vocabulary.to_json().encode(), np.uint8),
        }
        whole = {name: np.concatenate(parts) for name, parts in self.obs.items()}
        columns |= {name: column for name, column in whole.items() if name.startswith("obs/") or column.any()}
        with self.path.open("wb") as file:
            np.savez(file, allow_pickle=False, **columns)  # type: ignore[arg-type]


class _FolderSink:
    """Streams record batches into the Arrow file of a datasets folder."""

    def __init__(self, folder: Path, vocabulary: Vocabulary) -> None:
        self.folder, self.vocabulary = folder, vocabulary
        self.arrow = import_extra("pyarrow", "hf")
        self.datasets = import_extra("datasets", "hf")
        self.file_name = "data-00000-of-00001.arrow"
        self.writer: Any = None

    def write(self, indptr: np.ndarray, tokens: np.ndarray, obs: Mapping[str, ObsColumn]) -> None:
        pa = self.arrow
        indptr, tokens = with_special_tokens(np.asarray(indptr, np.int64), np.asarray(tokens), self.vocabulary)
        columns = {
            "input_ids": pa.LargeListArray.from_arrays(indptr, pa.array(tokens, pa.int32())).cast(pa.list_(pa.int32())),
            "length": pa.array(np.diff(indptr), pa.int32()),
        }
        for name, (values, _, missing) in obs.items():
            columns[name] = pa.array(values, pa.string() if values.dtype == object else None, mask=missing)
        table = pa.table(columns)
        if self.writer is None:
            self.writer_schema = table.schema
            self.writer = pa.ipc.new_stream(str(self.folder / self.file_name), table.schema)
        self.writer.write_table(table.cast(self.writer_schema))

    def close(self, *, complete: bool) -> None:
        if complete and self.writer is None:
            self.write(np.zeros(1, np.int64), np.empty(0, np.int32), {})
        if self.writer is not None:
            self.writer.close()
        if not complete:
            return
        features = self.datasets.Features.from_arrow_schema(self.writer_schema)
        self.datasets.DatasetInfo(features=features).write_to_directory(str(self.folder))
        state: dict[str, Any] = {
            "_data_files": [{"filename": self.file_name}],
            "_fingerprint": self.vocabulary.fingerprint[:16],
            "_format_columns": None,
            "_format_kwargs": {},
            "_format_type": None,
            "_output_all_columns": False,
            "_split": None,
        }
        (self.folder / "state.json").write_text(json.dumps(state, indent=2))
        (self.folder / VOCABULARY_FILE).write_text(self.vocabulary.to_json())


def _from_npz(path: Path, vocabulary: Vocabulary | None, max_length: int | None) -> Corpus:
    if not zipfile.is_zipfile(path):  # NumPy would take it for a pickle, and say how to load that
        why = "no zip archive, or one that is cut off; give a datasets folder or an .npz file"
        raise InputError(f"{path} is not a readable .npz file: {why}")
    try:
        with np.load(path, allow_pickle=False) as file:
            columns: dict[str, np.ndarray] = dict(file)
    except (ValueError, OSError, EOFError, KeyError, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{path} is not a readable .npz file: {error}") from error
    missing = {"indptr", "tokens"} - set(columns)
    if missing:
        raise InputError(f"{path} must hold arrays indptr and tokens; it lacks {', '.join(sorted(missing))}")
    stored = Vocabulary.from_json(columns["vocabulary"].tobytes()) if "vocabulary" in columns else None
    vocabulary = _agreed_vocabulary(path, vocabulary, stored)
    obs = {
        name.removeprefix("obs/"): ObsColumn(
            column, None, columns.get(f"missing/{name.removeprefix('obs/')}")
        ).to_numpy()
        for name, column in columns.items()
        if name.startswith("obs/")
    }
    return Corpus(columns["indptr"], columns["tokens"], vocabulary, max_length=max_length, obs=obs)


def _load_folder(path: Path) -> Any:
    datasets = import_extra("datasets", "hf")
    try:
        dataset = datasets.load_from_disk(str(path))
    except Exception as error:  # datasets raises a different type for each thing that can be wrong
        for file in sorted(path.glob("*.arrow")):
            if damage := _damage(file):
                raise InputError(f"{file} is cut off or damaged: {damage}; copy it again, or make it again") from error
        raise InputError(f"{path} is not a readable datasets folder: {error}") from error
    if not isinstance(dataset, datasets.Dataset):
        names = ", ".join(map(str, dataset))
        raise InputError(f"{path} holds several splits ({names}); give the folder of one of them, such as {path}/train")
    return dataset


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


def _stored_vocabulary(path: Path, given: Vocabulary | None) -> Vocabulary:
    file = path / VOCABULARY_FILE
    return _agreed_vocabulary(path, given, Vocabulary.from_json(file.read_bytes()) if file.is_file() else None)


def _agreed_vocabulary(path: Path, given: Vocabulary | None, stored: Vocabulary | None) -> Vocabulary:
    """Return the given or the stored vocabulary; both must mean the same, and symbols that are given count."""
    if given is None and stored is None:
        raise InputError(_no_vocabulary(path))
    if given is None or stored is None:
        return given or stored  # type: ignore[return-value]
    given.check_same(stored, "the vocabulary given", f"the corpus {path}")
    return given if given.symbols else stored


def _no_vocabulary(path: Path) -> str:
    return (
        f"no vocabulary is stored with {path}; give the token dictionary it was made with "
        "(vocabulary=Vocabulary.from_token_dictionary('token_dictionary.pkl'), or --vocabulary at the command line)"
    )


def _from_dataset(dataset: Any, vocabulary: Vocabulary, max_length: int | None) -> _DatasetCorpus:
    """Corpus over the Arrow buffers of a ``datasets.Dataset``; nothing is copied."""
    pa = import_extra("pyarrow", "hf")
    if "input_ids" not in dataset.column_names:
        raise InputError(f"the dataset must have a column 'input_ids'; it has {', '.join(dataset.column_names)}")
    segments = []
    for chunk in dataset.data.column("input_ids").chunks:
        if not (pa.types.is_list(chunk.type) or pa.types.is_large_list(chunk.type)):
            raise InputError(f"the column 'input_ids' must hold lists of integers; it holds {chunk.type}")
        if not pa.types.is_integer(chunk.type.value_type):
            raise InputError(f"the column 'input_ids' must hold integers; it holds {chunk.type.value_type}")
        if chunk.null_count or chunk.values.null_count:
            raise InputError("the column 'input_ids' holds missing values; drop those cells first")
        offsets = np.asarray(chunk.offsets)  # a slice keeps offsets into the whole of chunk.values
        segments.append(Segment(offsets, np.asarray(chunk.values)))
    if not segments:
        segments = [Segment(np.zeros(1, np.int64), np.empty(0, np.int32))]
    indices = getattr(dataset, "_indices", None)  # set by select, shuffle and filter
    order = None if indices is None else np.asarray(indices.column(0)).astype(np.int64)
    obs = _DatasetColumns(dataset)
    corpus = _DatasetCorpus.from_segments(segments, vocabulary, max_length=max_length, obs=obs, order=order)
    corpus.dataset = dataset
    files = [Path(file["filename"]) for file in dataset.cache_files]
    corpus.files = {file: file.stat().st_size for file in files if file.is_file()}
    return corpus


class _DatasetCorpus(Corpus):
    """A corpus over a dataset's buffers: goes to worker processes as the dataset does, by the paths of its files."""

    dataset: Any

    def __reduce__(self) -> tuple[Any, ...]:
        return _from_dataset, (self.dataset, self.vocabulary, self.max_length)


class _DatasetColumns(Mapping[str, np.ndarray]):
    """The other columns of a dataset, each read when asked for; of some cells only, where ``rows`` are given."""

    def __init__(self, dataset: Any, rows: np.ndarray | None = None) -> None:
        self._dataset, self._rows = dataset, rows
        self._names = [name for name in dataset.column_names if name not in {"input_ids", "length"}]

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._names:
            raise KeyError(name)
        # Without the tokens: selecting cells must not touch them.
        column = self._dataset.with_format(None).select_columns([name])
        return np.asarray((column if self._rows is None else column.select(self._rows))[name][:])

    def take(self, rows: np.ndarray) -> _DatasetColumns:
        """Return the columns of some cells; nothing is read yet."""
        return _DatasetColumns(self._dataset, rows if self._rows is None else self._rows[rows])

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
