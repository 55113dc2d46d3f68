"""From counts to rank-value encoded cells, as Geneformer tokenises them (Theodoris et al. 2023).

A cell's counts are divided by its total, scaled to 10 000, divided by each gene's non-zero median over a corpus, and
the genes sorted by falling value: what stands first is unusually high in this cell, not merely abundant everywhere.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from corrmask_fast.cells.corpus_io import CorpusWriter, check_corpus_output
from corrmask_fast.cells.count_scaling import FEWEST_CELLS, match_genes, scaled_chunks
from corrmask_fast.cells.counts_file import CountsFile
from corrmask_fast.cells.medians import exact_medians, read_medians
from corrmask_fast.cells.vocabulary import Vocabulary
from corrmask_fast.errors import InputError, check_integer, check_number
from corrmask_fast.threads import run_ranges

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from corrmask_fast.cells.count_scaling import ScaledCells
    from corrmask_fast.cells.medians import Medians

__all__ = ["TokenizeReport", "corpus_medians", "tokenize_h5ad", "vocabulary_of_h5ad"]

RESERVED = ("input_ids", "length")  # columns of the corpus itself


@dataclass(frozen=True)
class TokenizeReport:
    """What :func:`tokenize_h5ad` read and wrote; printing it says so in a few lines."""

    output: Path
    n_cells_read: int
    n_cells_written: int
    n_cells_cut: int
    median_length: float
    gene_column: str
    n_columns: int
    n_columns_matched: int
    n_genes_matched: int
    n_genes_without_median: int
    medians: str
    """Which medians: "of these cells", or where they came from."""

    @property
    def n_cells_left_out(self) -> int:
        """Cells without a count in any gene of the vocabulary: these are not written."""
        return self.n_cells_read - self.n_cells_written

    def __str__(self) -> str:
        written = f"{self.n_cells_written} of {self.n_cells_read} cells written to {self.output}"
        matched = f"{self.n_columns_matched} of {self.n_columns} columns are genes of the vocabulary"
        lines = [
            f"{written}, median length {self.median_length:g} genes",
            f"{matched} (by var {self.gene_column}): {self.n_genes_matched} genes",
        ]
        lines.append(f"medians: {self.medians}")
        if self.n_cells_left_out:
            lines.append(f"{self.n_cells_left_out} cells left out: no count in any gene of the vocabulary")
        if self.n_cells_cut:
            lines.append(f"{self.n_cells_cut} cells had more genes than a cell may hold, and were cut")
        if self.n_genes_without_median:
            lines.append(f"{self.n_genes_without_median} genes left out: no median given")
        return "\n".join(lines)


def tokenize_h5ad(
    path: str | os.PathLike[str],
    output: str | os.PathLike[str],
    vocabulary: Vocabulary,
    medians: Medians | None = None,
    *,
    layer: str | None = None,
    gene_column: str | None = None,
    obs: Sequence[str] = (),
    target_sum: float = 10_000,
    max_length: int | None = None,
    chunk_cells: int | None = None,
    progress: bool = True,
) -> TokenizeReport:
    """Tokenise the raw counts of an ``.h5ad`` file into a corpus on disk.

    A gene's value in a cell is ``count / total * target_sum / median``, in float64 and in this order; the total is over
    all columns of the file. Genes are sorted by falling value, ties by lower token. Several columns of one gene are
    summed. Memory does not grow with the file (CSC takes a temporary file, see :class:`CountsFile`).

    Parameters
    ----------
    path
        An ``.h5ad`` file with raw counts as CSR, CSC or dense.
    output
        A folder to write (Hugging Face ``datasets``), or a file by the suffix ``.npz``; see
        :class:`corrmask_fast.cells.corpus_io.CorpusWriter`.
    vocabulary
        The genes, by id or symbol. Versions of Ensembl ids (``ENSG….12``) do not matter.
    medians
        Gene → non-zero median of scaled counts: a mapping, or a ``.json`` or ``.pkl`` file such as Geneformer's
        ``gene_median_dictionary``. Genes without one are left out. None: of these cells (:func:`corpus_medians`).
    layer
        Where the counts are: None for ``X``, ``"raw"`` for ``raw/X``, else the name of a layer.
    gene_column
        Column of ``var`` with gene ids or symbols, ``"index"`` for its index. None: the index or an id column
        (``ensembl_id``, ``gene_ids``, ``gene_id``, ``feature_id``), whichever matches the vocabulary best.
    obs
        Columns of ``obs`` that travel along; missing values become None.
    target_sum
        What the counts of a cell are scaled to.
    max_length
        Most genes of a cell. None: the vocabulary's, two fewer with V2 for ``<cls>`` and ``<eos>``.
    chunk_cells
        Cells read at a time. None: as many as hold about two million counts.
    progress
        Show progress bars.

    Returns
    -------
    TokenizeReport
        How many cells and genes were found and left out.

    Raises
    ------
    InputError
        If the counts are negative, fractional or NaN; no gene matches; a layer or column is missing; the file is no
        ``.h5ad``; no cell has a gene of the vocabulary; or ``output`` is an existing folder.
    MissingExtraError
        Without anndata and h5py, or (for a folder) datasets.
    """
    limit = _check_length(max_length, vocabulary)
    target_sum = check_number("target_sum", target_sum, 0, np.inf, open_ends=True)
    taken = [name for name in obs if name in RESERVED]
    if taken:
        raise InputError(f"obs column {taken[0]!r} would collide with the corpus' own; rename it in the .h5ad first")
    check_corpus_output(output)
    with CountsFile(path, layer=layer, chunk_cells=chunk_cells) as file:
        if file.n_cells == 0:
            raise InputError(f"{path} has no cells; give a file with counts")
        genes = match_genes(file, vocabulary, gene_column)
        read_obs = file.obs_reader(list(obs))
        if medians is None:
            median_of_token = exact_medians(file, genes, vocabulary.size, target_sum, progress=progress)
            kept = genes
        else:
            median_of_token = read_medians(medians, vocabulary)
            kept = genes.only(~np.isnan(median_of_token))
        chunks = scaled_chunks(file, kept, vocabulary.size, target_sum, "tokenize", progress=progress)
        lengths = _write(output, vocabulary, chunks, median_of_token, limit, read_obs)
    return TokenizeReport(
        output=Path(output),
        n_cells_read=file.n_cells,
        n_cells_written=int(np.count_nonzero(lengths)),
        n_cells_cut=int(np.count_nonzero(lengths > limit)),
        median_length=float(np.median(np.minimum(lengths[lengths > 0], limit))),
        gene_column=genes.column,
        n_columns=file.n_genes,
        n_columns_matched=int(np.count_nonzero(genes.token_of_column >= 0)),
        n_genes_matched=genes.n_genes,
        n_genes_without_median=genes.n_genes - kept.n_genes,
        medians=_source(medians),
    )


def corpus_medians(
    path: str | os.PathLike[str],
    vocabulary: Vocabulary,
    *,
    layer: str | None = None,
    gene_column: str | None = None,
    target_sum: float = 10_000,
    chunk_cells: int | None = None,
    progress: bool = True,
) -> dict[str, float]:
    """Return the exact non-zero median of each gene's scaled counts, by name; parameters as in :func:`tokenize_h5ad`.

    With an even number of values: the mean of the two in the middle. Genes that never occur have no entry. What is
    returned may be given to :func:`tokenize_h5ad`, or be kept as JSON for it.

    Notes
    -----
    Two passes over the file, more only beyond hundreds of millions of counts. Memory, whatever the file: 4 kB a gene of
    the vocabulary for histograms, 128 MB of values, one chunk of cells.
    """
    target_sum = check_number("target_sum", target_sum, 0, np.inf, open_ends=True)
    with CountsFile(path, layer=layer, chunk_cells=chunk_cells) as file:
        genes = match_genes(file, vocabulary, gene_column)
        medians = exact_medians(file, genes, vocabulary.size, target_sum, progress=progress)
    return {vocabulary.names[token]: float(medians[token]) for token in np.flatnonzero(~np.isnan(medians))}


def vocabulary_of_h5ad(path: str | os.PathLike[str], *, layer: str | None = None) -> Vocabulary:
    """Return a vocabulary of the file's own genes (the index of ``var``), in order, behind ``<pad>`` and ``<mask>``."""
    with CountsFile(path, layer=layer) as file:
        return Vocabulary(("<pad>", "<mask>", *dict.fromkeys(map(str, file.var_names()))))


def _source(medians: Medians | None) -> str:
    if medians is None:
        return "of these cells"
    return f"from {medians}" if isinstance(medians, str | os.PathLike) else "as given"


def _check_length(max_length: int | None, vocabulary: Vocabulary) -> int:
    longest = vocabulary.max_length - vocabulary.n_surrounding
    return longest if max_length is None else check_integer("max_length", max_length, 1, longest)


def _write(
    output: str | os.PathLike[str],
    vocabulary: Vocabulary,
    chunks: Iterable[tuple[int, ScaledCells]],
    median_of_token: np.ndarray,
    limit: int,
    read_obs: Callable[[int, int], dict[str, np.ndarray]],
) -> np.ndarray:
    """Rank and write the cells that have a gene; return how many genes each cell has, before the cut."""
    lengths = [np.empty(0, np.int64)]
    with CorpusWriter(output, vocabulary) as writer:
        for begin, cells in chunks:
            indptr, tokens = _rank(cells, median_of_token, limit)
            written = np.flatnonzero(cells.lengths)
            columns = read_obs(begin, begin + cells.lengths.size)
            chosen = {name: column[written] for name, column in columns.items()}
            writer.write(indptr[np.append(written, cells.lengths.size)], tokens, chosen)
            lengths.append(cells.lengths)
        every = np.concatenate(lengths)
        if not every.any():
            raise InputError(
                f"none of the {every.size} cells has a count in a gene that has a token and a median; "
                "check the counts (layer), the vocabulary and the medians"
            )
    return every


def _rank(cells: ScaledCells, median_of_token: np.ndarray, limit: int) -> tuple[np.ndarray, np.ndarray]:
    """Return ``(indptr, tokens)`` of the cells, ranked and cut."""
    from corrmask_fast.kernels.tokenize import rank_rows

    indptr = np.zeros(cells.lengths.size + 1, np.int64)
    np.cumsum(np.minimum(cells.lengths, limit), out=indptr[1:])
    tokens = np.empty(indptr[-1], np.int32)
    run_ranges(partial(rank_rows, *cells, median_of_token, indptr, tokens), cells.lengths.size, FEWEST_CELLS)
    return indptr, tokens
