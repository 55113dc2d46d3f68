"""Counts scaled gene by gene: which column is which token, and cell by cell count / total * target_sum."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from corrmask_fast.errors import InputError
from corrmask_fast.progress import progress_bar
from corrmask_fast.threads import run_ranges

if TYPE_CHECKING:
    from collections.abc import Iterator

    from scipy.sparse import csr_matrix

    from corrmask_fast.cells.counts_file import CountsFile
    from corrmask_fast.cells.vocabulary import Vocabulary

# Where AnnData files keep ids beside an index of symbols.
ID_COLUMNS = ("ensembl_id", "gene_ids", "gene_id", "feature_id")
VERSIONED = re.compile(r"(ENS[A-Z]*G\d+)\.\d+")
FEWEST_CELLS = 64  # a thread is not worth waking for fewer


@dataclass(frozen=True)
class GeneMatch:
    """Which token each column of the counts is."""

    column: str
    token_of_column: np.ndarray  # (n_columns,) int32, -1 where no gene of the vocabulary

    @property
    def n_genes(self) -> int:
        """Number of genes of the vocabulary found."""
        return np.unique(self.token_of_column[self.token_of_column >= 0]).size

    def only(self, tokens: np.ndarray) -> GeneMatch:
        """Leave out the columns whose token is False in ``tokens`` (V,) bool."""
        mine = self.token_of_column
        return GeneMatch(self.column, np.where((mine >= 0) & tokens[mine], mine, -1).astype(np.int32))


def tokens_by_name(vocabulary: Vocabulary) -> dict[str, int]:
    """Return the token of each gene by name and by symbol; a name comes before a symbol of the same spelling."""
    lo, hi = vocabulary.gene_range
    by_name = {vocabulary.names[token]: token for token in range(lo, hi)}
    return {symbol: by_name[gene] for gene, symbol in vocabulary.symbols.items()} | by_name


def match_genes(file: CountsFile, vocabulary: Vocabulary, gene_column: str | None) -> GeneMatch:
    """Find the vocabulary's genes among the columns; None: by whichever column of ``var`` matches most genes."""
    known = tokens_by_name(vocabulary)
    if gene_column is None:
        candidates = {"index": file.var_names()}
        candidates |= {name: file.var_column(name) for name in ID_COLUMNS if name in file.var_columns()}
    else:
        candidates = {gene_column: file.var_names() if gene_column == "index" else file.var_column(gene_column)}
    matches = []
    for column, names in candidates.items():
        tokens = [known.get(name, known.get(VERSIONED.sub(r"\1", name), -1)) for name in map(str, names)]
        matches.append(GeneMatch(column, np.array(tokens, np.int32)))
    best = max(matches, key=lambda match: match.n_genes)
    if best.n_genes == 0:
        lo = vocabulary.gene_range[0]
        theirs = "; ".join(f"{column}: {', '.join(map(str, names[:3]))}" for column, names in candidates.items())
        mine = [vocabulary.names[token] for token in range(lo, min(lo + 3, vocabulary.size))]
        shown = ", ".join(
            f"{name} ({vocabulary.symbols[name]})" if name in vocabulary.symbols else name for name in mine
        )
        raise InputError(
            f"no gene of {file.path} is in the vocabulary. The file has {theirs}; the vocabulary has {shown}. Name the "
            "column of ids with gene_column=, or give the vocabulary symbols if the file has symbols only"
        )
    return best


class ScaledCells(NamedTuple):
    """Cells with the genes they express: cell r's from ``indptr[r]`` on, as many as ``lengths[r]``."""

    indptr: np.ndarray  # (n + 1,) int64
    lengths: np.ndarray  # (n,) int64
    tokens: np.ndarray  # int32, ascending in each cell
    values: np.ndarray  # float64: count / total * target_sum


def scaled_chunks(
    file: CountsFile, genes: GeneMatch, n_tokens: int, target_sum: float, what: str, *, progress: bool
) -> Iterator[tuple[int, ScaledCells]]:
    """Yield (first cell, its chunk scaled), with a progress bar; refuses what is no count."""
    from corrmask_fast.kernels.tokenize import OK, scale_rows

    with progress_bar(what, file.n_cells, "cell", shown=progress) as bar:
        for begin, rows in file.chunks():
            indptr, columns = rows.indptr.astype(np.int64), rows.indices.astype(np.int64)
            counts = rows.data.astype(np.float64)
            lengths = np.zeros(indptr.size - 1, np.int64)
            cells = ScaledCells(indptr, lengths, np.empty(counts.size, np.int32), np.empty(counts.size, np.float64))
            scale = partial(
                scale_rows, indptr, columns, counts, genes.token_of_column, n_tokens, target_sum, *cells[1:]
            )
            found = run_ranges(scale, lengths.size, FEWEST_CELLS)
            for code, row, position in found:
                if code != OK:
                    raise InputError(_no_count(file, rows, begin + row, columns[position], counts[position]))
            yield begin, cells
            bar.update(lengths.size)


def _no_count(file: CountsFile, rows: csr_matrix, cell: int, column: int, value: float) -> str:
    """Say what was found instead of a count, what it looks like, and where counts may be."""
    elsewhere = [f"layer={name!r}" for name in file.layers if name != file.layer]
    cure = f"try {' or '.join(elsewhere)}" if elsewhere else "the file has no other layer: go back to the raw counts"
    looks = _looks_like(rows)
    return (
        f"counts must be whole numbers >= 0; {file.path} has {value:.6g} in cell {file.obs_names()[cell]}, gene "
        f"{file.var_names()[column]}{f': this looks {looks}' if looks else ''}. Tokenising needs raw counts; {cure}"
    )


def _looks_like(rows: csr_matrix) -> str | None:
    """Say what was probably done to these counts, judged by the totals of cells."""
    if not np.isfinite(rows.data).all():
        return None
    if rows.data.min() < 0:
        return None if np.array_equal(rows.data, np.floor(rows.data)) else "scaled (z-scores)"
    totals = np.asarray(rows.sum(axis=1)).ravel()
    unlogged = np.asarray(rows.astype(np.float64).expm1().sum(axis=1)).ravel() if rows.data.max() < 50 else None
    for what, sums in (("normalised", totals), ("normalised and log-transformed", unlogged)):
        if sums is not None and sums[sums > 0].size > 1 and np.ptp(sums[sums > 0]) < 1e-3 * sums.max():
            return what
    return "log-transformed" if rows.data.max() < 20 else "normalised"
