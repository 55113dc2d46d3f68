"""Corpora on disk: Hugging Face ``datasets`` folders as Geneformer writes them, ``.npz`` files, and plain lists."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Mapping
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from corrmask_fast.cells.cell_lists import blocks_of_cells, cells_in_memory, flatten, flatten_values
from corrmask_fast.cells.corpus import Corpus
from corrmask_fast.cells.corpus_files import (
    VOCABULARY_FILE,
    agreed_vocabulary,
    corpus_path,
    load_all,
    load_dataset,
    paths_of,
    stored_vocabulary,
)
from corrmask_fast.cells.dataset_corpus import VALUES, corpus_of_dataset
from corrmask_fast.cells.obs_columns import MAX_TEXT, ObsColumn, obs_column, unfit_text
from corrmask_fast.cells.segments import Repeats
from corrmask_fast.cells.surrounding import with_special_tokens
from corrmask_fast.cells.vocabulary import Vocabulary
from corrmask_fast.errors import InputError, brief, import_extra, naming, readable, shown
from corrmask_fast.files import atomic_file, atomic_folder, check_output, check_output_folder

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import TracebackType

__all__ = ["CorpusWriter", "read_corpus", "write_corpus"]

NPZ_ARRAYS = {"indptr", "tokens", "values", "vocabulary", "array_names"}  # beside obs/… and missing/…


def read_corpus(path_or_cells: Any, vocabulary: Vocabulary | None = None, *, max_length: int | None = None) -> Corpus:
    """Open a corpus of tokenised cells.

    Parameters
    ----------
    path_or_cells : path, list of paths, Dataset or list of cells
        One of these:

        - the path of a Hugging Face ``datasets`` folder with a column ``input_ids``, or of its ``.arrow`` file: it is
          memory-mapped, and cells are read when they are used;
        - the path of a ``.parquet`` file, or of a folder of these: it is read into memory;
        - the path of an ``.npz`` file with arrays ``indptr`` and ``tokens``;
        - a list of such paths (but ``.npz``): the cells of all, one file after the other;
        - a ``datasets.Dataset``;
        - a list of cells, each a list or array of token ids, or a row ``{"input_ids": …}``.

        A column ``values`` of lists (in ``.npz`` an array) has a number for each token.
    vocabulary : Vocabulary, optional
        Which id is which gene. None: the vocabulary stored beside the corpus. If both are there they must give ids the
        same meaning; symbols of the given one, where it has any, replace the stored ones.
    max_length : int, optional
        Cells are cut to this many genes. None: the vocabulary's ``max_length``; with values no cut.

    Returns
    -------
    Corpus
        The cells. Columns of a file beside ``input_ids`` are its ``obs``.

    Raises
    ------
    InputError
        If there is no such corpus, no vocabulary, or the content breaks a rule. Where cells lie in the file is checked
        at once. Tokens are checked when they are read: at once for ``.npz`` files and lists, chunk by chunk for the
        others.
    MissingExtraError
        If ``datasets`` is not installed and the path is not that of an ``.npz`` file.

    Examples
    --------
    >>> from corrmask_fast import Vocabulary, read_corpus
    >>> genes = Vocabulary(("<pad>", "<mask>", "A", "B", "C"))
    >>> read_corpus([[2, 4], [3]], genes).tokens
    array([2, 4, 3], dtype=uint16)
    """
    if isinstance(path_or_cells, str | os.PathLike):
        path = corpus_path(path_or_cells)
        with naming(path):
            if not path.is_dir() and path.suffix not in {".arrow", ".parquet"}:
                return _from_npz(path, vocabulary, max_length)
            return corpus_of_dataset(load_dataset(path), stored_vocabulary(path, vocabulary), max_length, str(path))
    if paths := paths_of(path_or_cells):
        dataset, vocabulary = load_all(paths, vocabulary)
        return corpus_of_dataset(dataset, vocabulary, max_length, f"{paths[0]} and {len(paths) - 1} more")
    if vocabulary is None:
        raise InputError("cells in memory carry no vocabulary; give vocabulary=Vocabulary.from_token_dictionary(…)")
    if isinstance(path_or_cells, Mapping) and len(path_or_cells) == 1 and "input_ids" not in path_or_cells:
        path_or_cells = next(iter(path_or_cells.values()))  # a DatasetDict of one split
    if hasattr(path_or_cells, "features") and hasattr(path_or_cells, "data"):
        return corpus_of_dataset(path_or_cells, vocabulary, max_length)
    cells, values = cells_in_memory(path_or_cells)
    indptr, tokens = flatten(cells)
    return Corpus(indptr, tokens, vocabulary, max_length=max_length, values=flatten_values(values, indptr))


def write_corpus(corpus: Corpus, path: str | os.PathLike[str], *, chunk_cells: int = 16_384) -> None:
    """Write a corpus with its obs columns and its vocabulary.

    If writing fails, no file is left behind.

    Parameters
    ----------
    corpus : Corpus
        The cells.
    path : path
        What to write: an ``.npz`` file by that suffix, which replaces one that is there; else a Hugging Face
        ``datasets`` folder, which must not exist yet.
    chunk_cells : int
        Number of cells written at a time.

    Raises
    ------
    InputError
        If the folder exists already, its parent does not, or an obs column holds what cannot be stored.
    MissingExtraError
        If ``datasets`` is not installed and a folder is to be written.

    Examples
    --------
    >>> import tempfile
    >>> from corrmask_fast import Vocabulary, read_corpus, write_corpus
    >>> genes = Vocabulary(("<pad>", "<mask>", "A", "B", "C"))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_corpus(read_corpus([[2, 4], [3]], genes), f"{folder}/cells.npz")
    ...     read_corpus(f"{folder}/cells.npz")
    Corpus(2 cells, Vocabulary(3 genes, ids 2 to 4; <pad> <mask>))
    """
    obs = {name: obs_column(name, corpus.obs[name]) for name in corpus.obs}  # one type, whatever a chunk's values are
    with CorpusWriter(path, corpus.vocabulary) as writer:
        for i, chunk in enumerate(corpus.chunks(chunk_cells)):
            rows = i * chunk_cells + np.arange(chunk.n_cells)
            columns = {name: column.take(rows) for name, column in obs.items()}
            writer.write(chunk.indptr, chunk.tokens, columns, chunk.values)


def check_corpus_output(path: str | os.PathLike[str]) -> Path:
    """Return where to write a corpus, or raise InputError: a file ending in ``.npz`` is replaced, a folder is new."""
    return check_output(path) if Path(path).suffix == ".npz" else check_output_folder(path, new=True)


class CorpusWriter(AbstractContextManager["CorpusWriter"]):
    """Writer of a corpus, chunk by chunk, for a ``with`` block.

    The file or folder appears at the end of the block, whole; after an error it does not appear. An ``.npz`` file is
    held in memory until then. Of a folder one chunk is in memory at a time; it has columns ``input_ids``, ``length``
    and those of obs, and with a V2 vocabulary each cell stands between ``<cls>`` and ``<eos>``, as Geneformer stores
    cells.

    Parameters
    ----------
    path : path
        What to write: an ``.npz`` file by that suffix, which replaces one that is there; else a Hugging Face
        ``datasets`` folder, which must not exist yet.
    vocabulary : Vocabulary
        Which id is which gene. It is stored beside the cells.

    Raises
    ------
    InputError
        At the start of the block, if the folder exists already, or its parent does not.
    MissingExtraError
        At the start of the block, if ``datasets`` is not installed and a folder is to be written.

    Examples
    --------
    >>> import tempfile
    >>> from corrmask_fast import CorpusWriter, Vocabulary, read_corpus
    >>> genes = Vocabulary(("<pad>", "<mask>", "A", "B", "C"))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with CorpusWriter(f"{folder}/cells.npz", genes) as writer:
    ...         writer.write_cells([2 + i, 4] for i in range(2))
    ...     read_corpus(f"{folder}/cells.npz").tokens.tolist()
    [2, 4, 3, 4]
    """

    def __init__(self, path: str | os.PathLike[str], vocabulary: Vocabulary) -> None:
        self.path, self.vocabulary = Path(path), vocabulary
        self._exit = ExitStack()
        self._kinds: dict[str, np.dtype[Any]] | None = None
        self._written = self._valued = False  # whether there are chunks, and these have values
        self._sink: _NpzSink | _OneFileSink

    def __enter__(self) -> Self:
        with ExitStack() as stack:  # nothing may stay behind if the sink cannot be made (a missing extra)
            if self.path.suffix == ".npz":
                self._sink = _NpzSink(stack.enter_context(atomic_file(self.path)), self.vocabulary)
            else:
                self._sink = _OneFileSink(stack.enter_context(atomic_folder(self.path)), self.vocabulary)
            self._exit = stack.pop_all()
        return self

    def write(
        self,
        indptr: np.ndarray,
        tokens: np.ndarray,
        obs: Mapping[str, Any] | None = None,
        values: np.ndarray | None = None,
    ) -> None:
        """Append cells that lie in arrays.

        Parameters
        ----------
        indptr : array
            (cells + 1,) integers: cell i is ``tokens[indptr[i]:indptr[i + 1]]``.
        tokens : array
            (nnz,) integer token ids, without ``<cls>`` and ``<eos>``. They are not checked.
        obs : mapping, optional
            Columns of the cells: name → (cells,) values. All chunks have the same columns.
        values : array, optional
            (nnz,) numbers, one beside each token, kept as float32: in all chunks, or in none. With values no ``<cls>``
            and ``<eos>`` are written.

        Raises
        ------
        InputError
            If a column or ``values`` has another length, or columns, their types or whether there are values differ
            from the chunks before.
        """
        if values is not None and np.shape(values) != np.shape(tokens):
            raise InputError(f"values must be one number for each of {len(tokens)} tokens; got {len(values)}")
        if values is None and self._valued:
            raise InputError("values must be given with every chunk, or with none")
        columns = {name: obs_column(name, column).flat() for name, column in (obs or {}).items()}
        for name, column in columns.items():
            if column.size != len(indptr) - 1:
                raise InputError(f"obs column {name!r} has {column.size} values for {len(indptr) - 1} cells")
        kinds = {name: column.values.dtype for name, column in columns.items()}
        self._kinds = kinds if self._kinds is None else self._kinds
        if self._kinds != kinds:
            raise InputError(
                "obs columns must be the same in every chunk, with one type for all values (obs_column gives a whole "
                f"column one); got {self._kinds} and {kinds}"
            )
        if values is not None and self._written and not self._valued:
            raise InputError("values must be given with every chunk, or with none")
        self._valued, self._written = values is not None, True
        self._sink.write(indptr, tokens, columns, values)

    def write_cells(self, cells: Iterable[Any], *, max_length: int | None = None, chunk_cells: int = 16_384) -> None:
        """Append cells from a list or a generator, ``chunk_cells`` of them in memory at a time.

        Special tokens are stripped. If a gene stands twice in a cell, its first occurrence counts, and a warning says
        so.

        Parameters
        ----------
        cells : iterable
            Lists or arrays of token ids, or rows ``{"input_ids": …}``. Other columns of rows become obs columns, except
            ``length``, which is computed, and ``values`` if it holds lists: a number for each token.
        max_length : int, optional
            Cells are cut to this many genes. None: the vocabulary's ``max_length``; with values no cut.
        chunk_cells : int
            Number of cells in memory.

        Raises
        ------
        InputError
            If a cell is no list of integers, holds a token outside the vocabulary (names cell and token), or has other
            columns than the first one.
        """
        first, repeats = 0, Repeats(0)
        for block in blocks_of_cells(cells, self.vocabulary, max_length, chunk_cells):
            block.count_from(np.arange(first, first + block.n_cells), repeats)
            whole = block.take(np.arange(block.n_cells))
            self.write(whole.indptr, whole.tokens, block.obs, whole.values)
            first += block.n_cells

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._sink.finish(complete=kind is None)
        except BaseException as failure:
            if not self._exit.__exit__(type(failure), failure, failure.__traceback__):
                raise
        self._exit.__exit__(kind, error, trace)


class _NpzSink:
    """Collects chunks and writes indptr, tokens, the vocabulary as JSON bytes, and obs columns.

    A column is ``obs/<name>``, and where values are missing ``missing/<name>``, True for these. ``array_names`` lists
    the arrays: a zip archive has no checksum of its members' names.
    """

    def __init__(self, path: Path, vocabulary: Vocabulary) -> None:
        self.path, self.vocabulary = path, vocabulary
        self.lengths: list[np.ndarray] = []
        self.tokens: list[np.ndarray] = []
        self.values: list[np.ndarray] = []
        self.obs: dict[str, list[np.ndarray]] = {}

    def write(
        self, indptr: np.ndarray, tokens: np.ndarray, obs: Mapping[str, ObsColumn], values: np.ndarray | None = None
    ) -> None:
        if values is not None:
            self.values.append(np.asarray(values, np.float32))
        self.lengths.append(np.diff(indptr))
        self.tokens.append(np.asarray(tokens, self.vocabulary.token_dtype))
        for name, (column, _, missing) in obs.items():
            gone = np.zeros(len(column), np.bool_) if missing is None else missing
            if column.dtype == object and (text := unfit_text(column)) is not None:
                raise InputError(
                    f"obs column {name!r} has a text of {len(text)} characters, {shown(text)}; .npz takes {MAX_TEXT}, "
                    "and drops a NUL at the end; write a folder"
                )
            self.obs.setdefault(f"obs/{name}", []).append(column.astype(str) if column.dtype == object else column)
            self.obs.setdefault(f"missing/{name}", []).append(gone)

    def finish(self, *, complete: bool) -> None:
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
        if self.values:
            columns["values"] = np.concatenate(self.values)
        whole = {name: np.concatenate(parts) for name, parts in self.obs.items()}
        columns |= {name: column for name, column in whole.items() if name.startswith("obs/") or column.any()}
        columns = {
            "array_names": np.array(sorted(columns)),
            **columns,
        }  # first: what hides a member hides one inside it
        with self.path.open("wb") as file:
            np.savez(file, allow_pickle=False, **columns)  # type: ignore[arg-type]


class FolderSink:
    """Streams record batches into an Arrow file of a datasets folder."""

    def __init__(self, file: Path, vocabulary: Vocabulary) -> None:
        self.file, self.vocabulary = file, vocabulary
        self.arrow = import_extra("pyarrow", "hf")
        import_extra("datasets", "hf")  # before the work: the folder is described with it
        self.writer: Any = None

    def write(
        self, indptr: np.ndarray, tokens: np.ndarray, obs: Mapping[str, ObsColumn], values: np.ndarray | None = None
    ) -> None:
        """Append cells: see :meth:`CorpusWriter.write`."""
        pa, indptr, tokens = self.arrow, np.asarray(indptr, np.int64), np.asarray(tokens)
        if values is None:
            indptr, tokens = with_special_tokens(indptr, tokens, self.vocabulary)
        columns = {
            "input_ids": self._lists(indptr, tokens, pa.int32()),
            "length": pa.array(np.diff(indptr), pa.int32()),
        }
        if values is not None:
            columns[VALUES] = self._lists(indptr, values, pa.float32())
        for name, (column, _, missing) in obs.items():
            if name in columns:
                raise InputError(f"obs column {name!r} has a name that the corpus uses itself; rename it")
            with readable(f"obs column {name!r}", "column of numbers or text"):  # text may hold what UTF-8 cannot
                columns[name] = pa.array(column, pa.string() if column.dtype == object else None, mask=missing)
        table = pa.table(columns)
        if self.writer is None:
            self.writer_schema = table.schema
            self.writer = pa.ipc.new_stream(str(self.file), table.schema)
        self.writer.write_table(table.cast(self.writer_schema))

    def _lists(self, indptr: np.ndarray, numbers: Any, kind: Any) -> Any:
        pa = self.arrow
        return pa.LargeListArray.from_arrays(indptr, pa.array(numbers, kind)).cast(pa.list_(kind))

    def close(self) -> None:
        """Write the end of the file."""
        if self.writer is not None:
            self.writer.close()


class _OneFileSink(FolderSink):
    """A datasets folder of one Arrow file."""

    def __init__(self, folder: Path, vocabulary: Vocabulary) -> None:
        super().__init__(folder / "data-00000-of-00001.arrow", vocabulary)

    def finish(self, *, complete: bool) -> None:
        if complete and self.writer is None:
            self.write(np.zeros(1, np.int64), np.empty(0, np.int32), {})
        self.close()
        if complete:
            folder = self.file.parent
            describe_folder(folder, self.file, [self.file.name], self.vocabulary)
            (folder / VOCABULARY_FILE).write_text(self.vocabulary.to_json())


def describe_folder(folder: Path, file: Path, names: list[str], vocabulary: Vocabulary) -> None:
    """Write what makes a datasets folder of Arrow files: their columns, as one of them has them, and their names."""
    pa, datasets = import_extra("pyarrow", "hf"), import_extra("datasets", "hf")
    with pa.memory_map(str(file)) as source, pa.ipc.open_stream(source) as stream:
        features = datasets.Features.from_arrow_schema(stream.schema)
    datasets.DatasetInfo(features=features).write_to_directory(str(folder))
    state: dict[str, Any] = {
        "_data_files": [{"filename": name} for name in names],
        "_fingerprint": vocabulary.fingerprint[:16],
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": None,
    }
    (folder / "state.json").write_text(json.dumps(state, indent=2))


def _from_npz(path: Path, vocabulary: Vocabulary | None, max_length: int | None) -> Corpus:
    with readable(path, ".npz file"):
        if not zipfile.is_zipfile(path):  # NumPy would take it for a pickle, and say how to load that
            raise ValueError("no zip archive, or one that is cut off; give a datasets folder or an .npz file")
        with np.load(path, allow_pickle=False) as file:
            for member in file.zip.infolist():  # also those not read: one may be obs/… under a damaged name
                file.zip.open(member).close()  # compares the two places where its name stands
            names = [name for name in file.files if name in NPZ_ARRAYS or name.startswith(("obs/", "missing/"))]
            if len(set(names)) < len(names):
                raise ValueError("it holds an array of one name twice")
            columns: dict[str, np.ndarray] = {name: file[name] for name in names}
        for name, column in columns.items():
            if not isinstance(column, np.ndarray) or column.ndim == 0 or column.dtype.kind not in "biufUSMm":
                raise ValueError(f"its member {name!r} is no array of numbers or text")
        listed = columns.pop("array_names", None)  # older files have none
        if listed is not None and sorted(columns) != listed.tolist():
            raise ValueError(
                f"it does not hold the arrays that it lists: {brief(', '.join(map(str, listed.tolist())))}"
            )
        text = columns["vocabulary"].tobytes() if "vocabulary" in columns else None
        stored = None if text is None else Vocabulary.from_json(text)
    missing = {"indptr", "tokens"} - set(columns)
    if missing or columns["tokens"].ndim > 1:
        what = f"it lacks {', '.join(sorted(missing))}" if missing else f"its tokens are {columns['tokens'].ndim}-d"
        raise InputError(
            f"{path} must hold arrays indptr and tokens; {what}; cell i is tokens[indptr[i]:indptr[i + 1]]. Padded "
            "cells, one a row, are read by read_corpus(list(array), vocabulary)"
        )
    vocabulary = agreed_vocabulary(path, vocabulary, stored)
    obs = {}
    for name, column in columns.items():
        if name.startswith("obs/"):
            gone = columns.get(f"missing/{name[4:]}", np.zeros(column.shape, np.bool_))
            if column.ndim != 1 or gone.shape != column.shape or gone.dtype != np.bool_:
                raise InputError(f"{path}: obs column {name[4:]!r} must hold one value for each cell, missing or not")
            obs[name[4:]] = ObsColumn(column, None, gone).to_numpy()
    arrays = columns["indptr"], columns["tokens"]
    return Corpus(*arrays, vocabulary, max_length=max_length, obs=obs, values=columns.get("values"))
