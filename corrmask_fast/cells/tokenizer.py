"""From counts to rank-value encoded cells, as Geneformer tokenises them (Theodoris et al. 2023).

A cell's counts are divided by its total, scaled to 10 000, divided by each gene's non-zero median over a corpus, and
the genes sorted by falling value: what stands first is unusually high in this cell, not merely abundant everywhere.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from corrmask_fast.cells.corpus_io import CorpusWriter, check_corpus_output
from corrmask_fast.cells.count_scaling import MIN_CELLS_A_THREAD, Scaling, scaled_chunks
from corrmask_fast.cells.counts import Counts
from corrmask_fast.cells.gene_matching import gene_columns, match_genes, symbols_of, warn_of_few_counts
from corrmask_fast.cells.medians import exact_medians, read_medians
from corrmask_fast.cells.obs_columns import ObsColumn, marks, obs_column
from corrmask_fast.cells.tokenize_report import TokenizeReport
from corrmask_fast.cells.vocabulary import Vocabulary
from corrmask_fast.errors import InputError, check_integer, check_number, shown
from corrmask_fast.files import check_not_input
from corrmask_fast.threads import run_ranges

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from corrmask_fast.cells.count_scaling import ScaledCells
    from corrmask_fast.cells.gene_matching import GeneMapping
    from corrmask_fast.cells.medians import Medians

__all__ = ["TokenizeReport", "corpus_medians", "tokenize", "tokenize_h5ad", "vocabulary_of"]

RESERVED = ("input_ids", "length")  # columns of the corpus itself
FILTER_PASS = "filter_pass"  # Geneformer's column of obs
CELLS_CHECKED = 256  # to see whether their counts are of the vocabulary's genes


def tokenize(
    adata_or_path: Any,
    output: str | os.PathLike[str],
    vocabulary: Vocabulary,
    medians: Medians | None = None,
    *,
    layer: str | None = None,
    gene_column: str | None = None,
    gene_mapping: GeneMapping | None = None,
    obs: Sequence[str] = (),
    obs_names: str | None = None,
    filter_pass: str = "auto",
    total: str | None = None,
    allow_fractional: bool = False,
    target_sum: float = 10_000,
    max_length: int | None = None,
    chunk_cells: int | None = None,
    progress: bool = True,
) -> TokenizeReport:
    """Tokenise the raw counts of an AnnData into a corpus on disk.

    A gene's value in a cell is ``count / total * target_sum / median``, in float64 and in this order; the total is over
    all columns that are genes, of the vocabulary or not. Genes are sorted by falling value, ties by lower token.
    Several columns of one gene are summed. Memory is one chunk of cells, 8 bytes a cell, and those columns of ``obs``
    that are asked for (CSC takes a temporary file, see :class:`corrmask_fast.cells.counts.Counts`).

    Parameters
    ----------
    adata_or_path
        The path of an ``.h5ad`` file or a zarr store, or an ``AnnData`` in memory or backed, with raw counts as CSR,
        CSC or dense. Where ``var`` has Cell Ranger's ``feature_types`` and some are ``Gene Expression``, the other
        columns (antibodies, peaks) are left out, of totals too.
    output
        A folder to write (Hugging Face ``datasets``), or a file by the suffix ``.npz``; see
        :class:`corrmask_fast.cells.corpus_io.CorpusWriter`.
    vocabulary
        The genes, by id or symbol. Versions of Ensembl ids (``ENSG….12``) do not matter. Where genes are found by id
        and ``var`` has symbols, the corpus stores these.
    medians
        Gene → non-zero median of scaled counts: a mapping, or a ``.json`` or ``.pkl`` file such as Geneformer's
        ``gene_median_dictionary``. Genes without one are left out. None: of these cells (:func:`corpus_medians`).
    layer
        Where the counts are: None for ``X``, ``"raw"`` for ``raw/X``, else the name of a layer.
    gene_column
        Column of ``var`` with gene ids or symbols, ``"index"`` for its index. None: the index or an id column
        (``ensembl_id``, ``gene_ids``, ``gene_id``, ``feature_id``), whichever matches the vocabulary best.
    gene_mapping
        Retired id → current id, for names that the vocabulary lacks: a mapping, or a file such as Geneformer's
        ``ensembl_mapping_dict``.
    obs
        Columns of ``obs`` that travel along; missing values become None. A column keeps its type.
    obs_names
        Name of a column of the corpus for the cells' names, the index of ``obs``. None: they do not travel along.
    filter_pass
        Column of ``obs`` that is 1 (or True) for the cells to write, as Geneformer's ``filter_pass``. ``"auto"``: the
        column ``filter_pass`` where there is one. ``"none"``: all cells.
    total
        Column of ``obs`` with each cell's total, such as Geneformer's ``n_counts``. None: the sum of its counts here.
    allow_fractional
        Take fractions for counts: corrected for background (SoupX, CellBender), or estimated (RSEM, alevin).
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
        If the counts are negative, NaN or (without ``allow_fractional``) fractional; no gene matches; a layer or column
        is missing; the parts of the AnnData do not fit each other; no cell has a gene of the vocabulary; ``output`` is
        an existing folder, or what is read here.
    MissingExtraError
        Without anndata, or (for a folder) datasets.

    Examples
    --------
    >>> import tempfile
    >>> import anndata, pandas
    >>> from corrmask_fast import Vocabulary, read_corpus, tokenize
    >>> genes = Vocabulary(("<pad>", "<mask>", "RPL3", "CD3E", "LYZ"))
    >>> counts = np.array([[5.0, 1, 0], [1, 0, 9]])
    >>> cells = anndata.AnnData(counts, var=pandas.DataFrame(index=["RPL3", "CD3E", "LYZ"]))
    >>> output = f"{tempfile.mkdtemp()}/cells.npz"
    >>> report = tokenize(cells, output, genes, progress=False)
    >>> report.n_cells_written, read_corpus(output).tokens.tolist()
    (2, [2, 3, 4, 2])
    """
    limit = _check_length(max_length, vocabulary)
    target_sum = check_number("target_sum", target_sum, 0, np.inf, open_ends=True)
    if isinstance(obs, str) or not isinstance(obs, Iterable):
        raise InputError(f"obs must be a list of names of columns; got {shown(obs)}")
    names = [*obs, *([] if obs_names is None else [obs_names])]
    _check_columns(names)
    check_corpus_output(output)
    for path in (adata_or_path, medians, gene_mapping):
        check_not_input(output, path)
    with Counts(adata_or_path, layer=layer, chunk_cells=chunk_cells) as counts:
        if counts.n_cells == 0:
            raise InputError(f"{counts.name} has no cells; give an AnnData with counts")
        genes = match_genes(counts, vocabulary, gene_column, gene_mapping)
        filter_column = _filter_column(counts, filter_pass)
        scaling = Scaling(target_sum, allow_fractional, _totals(counts, total), _kept(counts, filter_column))
        columns = {name: counts.obs.column(name) for name in obs}
        if obs_names is not None:
            columns[obs_names] = obs_column(obs_names, counts.obs.index())
        if medians is None:
            median_of_token = exact_medians(counts, genes, vocabulary.size, scaling, progress=progress)
            kept = genes
        else:
            median_of_token = read_medians(medians, vocabulary)
            kept = genes.only(~np.isnan(median_of_token))
        chunks = scaled_chunks(counts, kept, vocabulary.size, scaling, "tokenize", progress=progress)
        chunks = _warned_of_few(counts.name, chunks, target_sum)
        stored = vocabulary.with_symbols(symbols_of(counts, genes, vocabulary))
        lengths = _write(output, stored, chunks, median_of_token, limit, columns)
    return TokenizeReport(
        output=Path(output),
        n_cells_read=counts.n_cells,
        n_cells_written=int(lengths[1:].sum()),
        n_cells_filtered=counts.n_cells - int(lengths.sum()),
        filter_column=filter_column,
        n_cells_cut=int(lengths[limit + 1 :].sum()),
        median_length=_median_length(lengths, limit),
        gene_column=genes.column,
        n_columns=counts.n_genes,
        n_columns_matched=int(np.count_nonzero(genes.token_of_column >= 0)),
        n_columns_mapped=genes.n_mapped,
        n_columns_ambiguous=genes.n_ambiguous,
        n_genes_matched=genes.n_genes,
        n_genes_without_median=genes.n_genes - kept.n_genes,
        medians=_source(medians),
        total=total,
        other_features=genes.left_out,
    )


tokenize_h5ad = tokenize  # its name when it took files alone


def corpus_medians(
    adata_or_path: Any,
    vocabulary: Vocabulary,
    *,
    layer: str | None = None,
    gene_column: str | None = None,
    gene_mapping: GeneMapping | None = None,
    filter_pass: str = "auto",
    total: str | None = None,
    allow_fractional: bool = False,
    target_sum: float = 10_000,
    chunk_cells: int | None = None,
    progress: bool = True,
) -> dict[str, float]:
    """Return the exact non-zero median of each gene's scaled counts, by name; parameters as in :func:`tokenize`.

    With an even number of values: the mean of the two in the middle. Genes that never occur have no entry. What is
    returned may be given to :func:`tokenize`, or be kept as JSON for it.

    Notes
    -----
    Two passes over the file, more only beyond hundreds of millions of counts. Memory, whatever the file: 4 kB a gene of
    the vocabulary for histograms, 128 MB of values, one chunk of cells.
    """
    target_sum = check_number("target_sum", target_sum, 0, np.inf, open_ends=True)
    with Counts(adata_or_path, layer=layer, chunk_cells=chunk_cells) as counts:
        genes = match_genes(counts, vocabulary, gene_column, gene_mapping)
        kept = _kept(counts, _filter_column(counts, filter_pass))
        scaling = Scaling(target_sum, allow_fractional, _totals(counts, total), kept)
        medians = exact_medians(counts, genes, vocabulary.size, scaling, progress=progress)
    return {vocabulary.names[token]: float(medians[token]) for token in np.flatnonzero(~np.isnan(medians))}


def vocabulary_of(adata_or_path: Any, *, layer: str | None = None) -> Vocabulary:
    """Return a vocabulary of an AnnData's own genes (index of ``var``), in order, after ``<pad>`` and ``<mask>``."""
    with Counts(adata_or_path, layer=layer) as counts:
        names, (genes, _) = counts.var.index(), gene_columns(counts)
        return Vocabulary(("<pad>", "<mask>", *dict.fromkeys(names if genes is None else names[genes])))


def _check_columns(names: list[str]) -> None:
    for name in names:
        if name in RESERVED:
            raise InputError(f"obs column {name!r} would collide with the corpus' own; rename it in the AnnData first")
        if names.count(name) > 1:
            raise InputError(f"obs column {name!r} is named twice; name each column once")


def _filter_column(counts: Counts, filter_pass: str) -> str | None:
    if filter_pass != "auto":
        return None if filter_pass == "none" else filter_pass
    return FILTER_PASS if FILTER_PASS in counts.obs.columns() else None


def _kept(counts: Counts, column: str | None) -> np.ndarray | None:
    """Return (n_cells,) bool, the cells that pass; None: all do."""
    if column is None:
        return None
    values = counts.obs.column(column)
    try:
        kept = marks(column, values, "filter_pass")
    except InputError as error:
        raise InputError(f"{counts.name}: {error}; filter_pass='none' takes all cells") from error
    if not kept.any():
        raise InputError(
            f"no cell of {counts.name} passes: obs {column!r} is 1 nowhere; filter_pass='none' takes all cells"
        )
    return kept


def _totals(counts: Counts, total: str | None) -> np.ndarray | None:
    """(n_cells,) float64: each cell's total where an obs column gives it, NaN where that has no value."""
    if total is None:
        return None
    values, _, missing = counts.obs.column(total).flat()
    if values.dtype.kind not in "iuf":
        raise InputError(f"total must be a column of numbers; obs {total!r} of {counts.name} holds {values.dtype}")
    numbers = values.astype(np.float64)
    return numbers if missing is None else np.where(missing, np.nan, numbers)


def _warned_of_few(
    name: str, chunks: Iterable[tuple[np.ndarray, ScaledCells]], target_sum: float
) -> Iterator[tuple[np.ndarray, ScaledCells]]:
    """Pass chunks on; warn if the first cells have few counts in genes of the vocabulary."""
    looked = False
    for chosen, cells in chunks:
        first = np.flatnonzero(np.diff(cells.indptr))[:CELLS_CHECKED]
        if first.size and not looked:
            ends = cells.indptr[first] + cells.lengths[first]
            sums = [cells.values[begin:end].sum() for begin, end in zip(cells.indptr[first], ends, strict=True)]
            warn_of_few_counts(name, float(np.mean(sums)) / target_sum)
            looked = True
        yield chosen, cells


def _median_length(lengths: np.ndarray, limit: int) -> float:
    """Return the median length of cells that have a gene, cut to ``limit``; ``lengths[n]`` cells have n genes."""
    upto = np.cumsum(lengths[1:])
    middle = [int(np.searchsorted(upto, rank, side="right")) + 1 for rank in ((upto[-1] - 1) // 2, upto[-1] // 2)]
    return float(np.mean(np.minimum(middle, limit)))


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
    chunks: Iterable[tuple[np.ndarray, ScaledCells]],
    median_of_token: np.ndarray,
    limit: int,
    columns: Mapping[str, ObsColumn],
) -> np.ndarray:
    """Rank and write the cells that have a gene; return how many cells have n genes, before the cut."""
    lengths = np.zeros(vocabulary.size, np.int64)
    with CorpusWriter(output, vocabulary) as writer:
        for chosen, cells in chunks:
            indptr, tokens = _rank(cells, median_of_token, limit)
            written = np.flatnonzero(cells.lengths)
            values = {name: column.take(chosen[written]) for name, column in columns.items()}
            writer.write(indptr[np.append(written, cells.lengths.size)], tokens, values)
            lengths += np.bincount(cells.lengths, minlength=lengths.size)
        if not lengths[1:].any():
            raise InputError(
                f"none of the {lengths.sum()} cells has a count in a gene that has a token and a median; "
                "check the counts (layer), the vocabulary and the medians"
            )
    return lengths


def _rank(cells: ScaledCells, median_of_token: np.ndarray, limit: int) -> tuple[np.ndarray, np.ndarray]:
    """Return ``(indptr, tokens)`` of the cells, ranked and cut."""
    from corrmask_fast.kernels.tokenize import rank_rows

    indptr = np.zeros(cells.lengths.size + 1, np.int64)
    np.cumsum(np.minimum(cells.lengths, limit), out=indptr[1:])
    tokens = np.empty(indptr[-1], np.int32)
    run_ranges(partial(rank_rows, *cells, median_of_token, indptr, tokens), cells.lengths.size, MIN_CELLS_A_THREAD)
    return indptr, tokens
