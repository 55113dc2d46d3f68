"""Inputs that become a corpus: their cells encoded and written, as one file or as parts."""

from __future__ import annotations

import hashlib
import os
import shutil
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from corrmask_fast import __version__
from corrmask_fast.cells.corpus_io import CorpusWriter, check_corpus_output
from corrmask_fast.cells.corpus_parts import CorpusParts
from corrmask_fast.cells.count_batches import CountRows
from corrmask_fast.cells.count_scaling import no_count
from corrmask_fast.cells.dictionaries import read_dictionary
from corrmask_fast.cells.encoding import EncodingTables
from corrmask_fast.cells.gene_matching import symbols_of, warn_of_few_counts
from corrmask_fast.cells.medians import exact_medians, medians_by_name, medians_of_tokens, read_medians
from corrmask_fast.cells.obs_columns import ObsColumn
from corrmask_fast.cells.sources import KindOfColumn, Source, Sources, as_kind, united_kind
from corrmask_fast.cells.tokenize_report import TokenizeReport, united
from corrmask_fast.errors import InputError, listed
from corrmask_fast.progress import progress_bar
from corrmask_fast.suggestions import did_you_mean

if TYPE_CHECKING:
    from corrmask_fast.cells.counts import Rows
    from corrmask_fast.cells.medians import Medians
    from corrmask_fast.cells.vocabulary import Vocabulary

CELLS_CHECKED = 256  # to see whether their counts are of the vocabulary's genes


def is_path(source: Any) -> bool:
    """Whether an input lies on disk."""
    return isinstance(source, str | os.PathLike)


class Task:
    """Sources that become a corpus: what is known before the first cell is read, and the ways to write it."""

    def __init__(
        self,
        sources: Sources,
        vocabulary: Vocabulary,
        limit: int,
        obs: list[str],
        obs_names: str | None,
        file_column: str | None,
        *,
        values: bool,
        progress: bool,
    ) -> None:
        self.sources, self.vocabulary, self.limit, self.progress = sources, vocabulary, limit, progress
        self.values = values
        self.obs, self.obs_names, self.file_column = obs, obs_names, file_column
        symbols: dict[str, str] = {}
        found: dict[str, list[KindOfColumn]] = {name: [] for name in obs}
        there: dict[str, None] = {}
        for source in sources:  # opens every input: what is wrong with one is said before the work
            symbols = symbols_of(source.counts.var, source.genes, vocabulary) | symbols
            there |= dict.fromkeys(source.counts.obs.columns())
            for name in obs:
                if (column := source.obs(name)) is not None:
                    found[name].append(KindOfColumn.of(column))
        for name in obs:
            if not found[name]:
                meant = did_you_mean(name, there)
                if len(sources) == 1:
                    raise InputError(f"{sources[0].name} has no obs column {name!r}{meant}; it has {listed(there)}")
                raise InputError(
                    f"no obs column {name!r} in any of {len(sources)} inputs{meant}; they have {listed(there)}"
                )
        several = len(sources) > 1
        self.kinds = {name: united_kind(name, kinds) for name, kinds in found.items()} if several else {}
        self.stored = vocabulary.with_symbols(symbols)

    def write(self, output: Path, medians: Medians | None) -> TokenizeReport:
        """Write one file, or a folder of one."""
        median_of_token = self._medians(medians)
        with CorpusWriter(output, self.stored) as writer, self._bar(self.sources.n_kept) as bar:
            reports = [
                self._encode(number, median_of_token, medians, writer.write, bar) for number in range(len(self.sources))
            ]
        return united(reports, output)

    def write_parts(self, output: Path, medians: Medians | None, shard: tuple[int, int]) -> TokenizeReport:
        """Write the missing parts of a shard; where it is the last one, the corpus is there."""
        given = None if medians is None else self._medians(medians)
        parts = CorpusParts(output, self._plan(given), len(self.sources))
        if (done := parts.finished()) is not None:  # by other shards, which found nothing missing
            return united([TokenizeReport.from_dict(one) for one in done], output)
        check_corpus_output(output)
        parts.begin()
        try:
            self._write_missing(parts, medians, given, shard)
            n_missing, reports = parts.n_missing(), [TokenizeReport.from_dict(one) for one in parts.reports()]
            complete = parts.complete(self.stored)
        except BaseException:
            if not all(map(is_path, self.sources.inputs)):  # no other call can go on with these
                shutil.rmtree(parts.folder, ignore_errors=True)
            elif shard[1] == 1 and parts.folder.is_dir():
                parts.forget()
            raise
        return united(reports, output, n_missing=0 if complete else n_missing)

    def _write_missing(
        self, parts: CorpusParts, medians: Medians | None, given: np.ndarray | None, shard: tuple[int, int]
    ) -> None:
        if given is not None:
            median_of_token = given
        elif (known := parts.medians()) is not None:
            median_of_token = medians_of_tokens(known, self.vocabulary)
        else:
            median_of_token = self._medians(None)
            if np.isnan(median_of_token).all():
                raise InputError(
                    f"none of the {self.sources.n_kept} cells of {len(self.sources)} inputs has a count in a gene of "
                    "the vocabulary; check the counts (layer) and the vocabulary"
                )
            parts.keep_medians(medians_by_name(median_of_token, self.vocabulary))
        mine = [number for number in range(shard[0] - 1, len(self.sources), shard[1]) if not parts.is_done(number)]
        with self._bar(sum(self.sources[number].n_kept for number in mine)) as bar:
            for number in mine:
                with parts.part(number, self.stored) as sink:
                    report = self._encode(number, median_of_token, medians, partial(_flat, sink.write), bar)
                parts.finish_part(number, report.to_dict())

    def _plan(self, given: np.ndarray | None) -> dict[str, Any]:
        """Return all that decides what is in the parts, as plain values; ``given``: the medians, if they are."""
        reading = {name: value for name, value in vars(self.sources.reading).items() if name != "chunk_cells"}
        mapping = reading.pop("gene_mapping")
        mapped = None if mapping is None else _hash(repr(sorted(map(str, read_dictionary(mapping).items()))))
        return {
            "version": __version__,
            "inputs": [_identity(one) for one in self.sources.inputs],
            "names": self.sources.names(),
            "vocabulary": _hash(self.vocabulary.to_json()),
            "medians": None if given is None else np.nan_to_num(given).tolist(),
            "gene_mapping": mapped,
            **reading,
            "max_length": self.limit,
            "values": self.values,
            "obs": self.obs,
            "obs_names": self.obs_names,
            "file_column": self.file_column,
        }

    def _bar(self, n_cells: int) -> Any:
        return progress_bar("tokenize", n_cells, "cell", shown=self.progress)

    def _medians(self, medians: Medians | None) -> np.ndarray:
        if medians is None:
            return exact_medians(self.sources, self.vocabulary.size, progress=self.progress)
        return read_medians(medians, self.vocabulary)

    def _columns(self, number: int) -> dict[str, ObsColumn]:
        """Return the columns of an input that travel along."""
        source, n = self.sources[number], self.sources[number].counts.n_cells
        columns = {name: source.obs(name) for name in self.obs}
        columns = {
            name: as_kind(column, n, self.kinds[name]) if self.kinds else column for name, column in columns.items()
        }
        if self.obs_names is not None:
            columns[self.obs_names] = source.cell_names(self.obs_names)
        if self.file_column is not None:
            names = np.array([self.sources.names()[number]], object)
            columns[self.file_column] = ObsColumn(names, np.zeros(n, np.int8))
        return columns  # type: ignore[return-value]

    def _encode(
        self, number: int, median_of_token: np.ndarray, medians: Medians | None, write: Any, bar: Any
    ) -> TokenizeReport:
        """Write the cells of an input that have a gene; return what came of them."""
        source, columns = self.sources[number], self._columns(number)
        reading, limit = self.sources.reading, self.limit
        tables = EncodingTables.of(
            source.genes, median_of_token, reading.target_sum, limit, fractional=reading.allow_fractional
        )
        lengths = np.zeros(self.vocabulary.size, np.int64)
        looked = False
        for chosen, rows in source.counts.chunks(source.kept):
            totals = None if source.totals is None else source.totals[chosen]
            fault = partial(no_count, source, rows, chosen)
            cells = CountRows(rows.indptr, rows.columns, rows.counts)
            indptr, tokens, found = tables.encode(cells, totals, fault)
            if not looked:
                looked = _warn_of_few_counts(source.name, rows, tables, totals)
            written = np.flatnonzero(found)
            obs = {name: column.take(chosen[written]) for name, column in columns.items()}
            values = tables.values(cells, indptr, tokens) if self.values else None
            write(indptr[np.append(written, found.size)], tokens, obs, values)
            lengths += np.bincount(found, minlength=lengths.size)
            bar.update(chosen.size)
        if not lengths[1:].any():
            raise InputError(
                f"none of the {lengths.sum()} cells of {source.name} has a count in a gene that has a token and a "
                "median; check the counts (layer), the vocabulary and the medians"
            )
        without = 0 if medians is None else np.unique(source.genes.only(np.isnan(median_of_token)).tokens).size
        return _report(source, lengths, limit, without, medians)


def _flat(
    write: Any, indptr: np.ndarray, tokens: np.ndarray, columns: dict[str, ObsColumn], values: np.ndarray | None
) -> None:
    write(indptr, tokens, {name: column.flat() for name, column in columns.items()}, values)


def _cut(lengths: np.ndarray, limit: int) -> list[int]:
    """Return how many cells have n genes after the cut, for every n from 0 to the largest."""
    kept = lengths[: limit + 1].copy()
    kept[-1] += lengths[limit + 1 :].sum()
    return np.trim_zeros(kept, "b").tolist()


def _report(
    source: Source, lengths: np.ndarray, limit: int, n_without_median: int, medians: Medians | None
) -> TokenizeReport:
    counts, genes = source.counts, source.genes
    return TokenizeReport(
        output=Path(source.name),
        n_cells_read=counts.n_cells,
        n_cells_written=int(lengths[1:].sum()),
        n_cells_filtered=counts.n_cells - int(lengths.sum()),
        filter_column=source.filter_column,
        n_cells_cut=int(lengths[limit + 1 :].sum()),
        cells_by_length=_cut(lengths, limit),
        gene_column=genes.column,
        n_columns=counts.n_genes,
        n_columns_matched=int(np.count_nonzero(genes.token_of_column >= 0)),
        n_columns_mapped=genes.n_mapped,
        n_columns_ambiguous=genes.n_ambiguous,
        n_genes_matched=genes.n_genes,
        n_genes_without_median=n_without_median,
        medians=_source_of(medians),
        total=source.reading.total,
        other_features=dict(genes.left_out),
    )


def _identity(source: Any) -> Any:
    """Return what tells an input from a changed one: path, size and time of a file, or of all files of a folder."""
    if not is_path(source):
        return f"in memory {id(source)}"
    path = Path(os.path.realpath(source))
    files = sorted(one for one in path.rglob("*") if one.is_file()) if path.is_dir() else [path]
    stats = [(str(one), one.stat().st_size, one.stat().st_mtime_ns) for one in files]
    return stats[0] if stats and files == [path] else [str(path), _hash(repr(stats))]


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _warn_of_few_counts(name: str, rows: Rows, tables: EncodingTables, totals: np.ndarray | None) -> bool:
    """Warn if the first cells have few counts in genes of the vocabulary; return whether there were any to look at."""
    n = min(rows.indptr.size - 1, CELLS_CHECKED)
    end = rows.indptr[n]
    tokens, counts = tables.token_of_column[rows.columns[:end]], rows.counts[:end]
    cell = np.repeat(np.arange(n), np.diff(rows.indptr[: n + 1]))
    known, all_of = (np.bincount(cell, np.where(tokens >= least, counts, 0.0), n) for least in (0, -1))
    total = all_of if totals is None else totals[:n]
    shares = known[total > 0] / total[total > 0]
    if shares.size:
        warn_of_few_counts(name, float(np.mean(shares)))
    return bool(shares.size)


def _source_of(medians: Medians | None) -> str:
    if medians is None:
        return "of these cells"
    return f"from {medians}" if isinstance(medians, str | os.PathLike) else "as given"
