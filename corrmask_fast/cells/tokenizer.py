"""From counts to rank-value encoded cells, as Geneformer tokenises them (Theodoris et al. 2023).

A cell's counts are divided by its total, scaled to 10 000, divided by each gene's non-zero median over a corpus, and
the genes sorted by falling value: what stands first is unusually high in this cell, not merely abundant everywhere.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from corrmask_fast.cells.corpus_io import check_corpus_output
from corrmask_fast.cells.corpus_parts import check_shard
from corrmask_fast.cells.encoding import check_max_length
from corrmask_fast.cells.gene_matching import gene_columns, names_of, warn_of_other_names
from corrmask_fast.cells.medians import exact_medians, medians_by_name
from corrmask_fast.cells.sources import Reading, Sources, inputs_of
from corrmask_fast.cells.tokenize_report import TokenizeReport
from corrmask_fast.cells.tokenize_task import Task, is_path
from corrmask_fast.cells.vocabulary import Vocabulary
from corrmask_fast.errors import InputError, shown
from corrmask_fast.files import check_not_input, target_of

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from corrmask_fast.cells.gene_matching import GeneMapping
    from corrmask_fast.cells.medians import Medians

__all__ = ["TokenizeReport", "corpus_medians", "tokenize", "tokenize_h5ad", "vocabulary_of"]

RESERVED = ("input_ids", "length", "values")  # columns of the corpus itself


def tokenize(
    adata_or_path: Any,
    output: str | os.PathLike[str],
    vocabulary: Vocabulary | None = None,
    medians: Medians | None = None,
    *,
    layer: str | None = None,
    gene_column: str | None = None,
    gene_mapping: GeneMapping | None = None,
    obs: Sequence[str] = (),
    obs_names: str | None = None,
    file_column: str | None = "file",
    filter_pass: str = "auto",
    total: str | None = None,
    allow_fractional: bool = False,
    target_sum: float = 10_000,
    max_length: int | None = None,
    values: bool = False,
    chunk_cells: int | None = None,
    shard: tuple[int, int] | None = None,
    progress: bool = True,
) -> TokenizeReport:
    """Tokenise the raw counts of one or many AnnData into one corpus on disk.

    A gene's value in a cell is ``count / total * target_sum / median``. A cell is its genes by falling value; of equal
    values the lower token comes first. The total is over all genes of the file, of the vocabulary or not. Several
    columns of one gene are added up. Cells are read in chunks; beside one chunk, 8 bytes a cell and the columns of
    ``obs`` that are asked for are in memory. A CSC matrix needs a temporary file.

    Parameters
    ----------
    adata_or_path : path, AnnData, or a list of these
        The path of an ``.h5ad`` file or a zarr store, or an ``AnnData`` in memory or backed, with raw counts as CSR,
        CSC or dense matrix. 10x ``.h5`` files and ``matrix.mtx`` folders need scanpy, ``.loom`` files need loompy. A
        list of these, or a folder that holds some: the cells of all, in this order. Where ``var`` has Cell Ranger's
        ``feature_types`` and some are ``Gene Expression``, the other columns (antibodies, peaks) are left out, also of
        totals.
    output : path
        A folder to write (Hugging Face ``datasets``), or an ``.npz`` file by that suffix; see
        :class:`~corrmask_fast.CorpusWriter`. Of several inputs, a folder has a part for each. Until all parts are there
        they lie in ``OUTPUT.parts``; after an interruption the same call writes those that are missing.
    vocabulary : Vocabulary, optional
        The genes, by id or symbol. Versions of Ensembl ids (``ENSG….12``) are ignored. Where genes are found by id and
        ``var`` has symbols, the corpus stores these. None: the genes of the inputs, after ``<pad>`` and ``<mask>``.
    medians : mapping or path, optional
        Gene → non-zero median of scaled counts: a mapping, or a ``.json`` or ``.pkl`` file such as Geneformer's
        ``gene_median_dictionary``. Genes without a median are left out. None: the medians of the cells of all inputs
        (:func:`~corrmask_fast.corpus_medians`).
    layer : str, optional
        Where the counts are: None for ``X``, ``"raw"`` for ``raw/X``, else the name of a layer.
    gene_column : str, optional
        Column of ``var`` with gene ids or symbols, ``"index"`` for its index. None: the index or an id column
        (``ensembl_id``, ``gene_ids``, ``gene_id``, ``feature_id``), whichever matches the vocabulary best.
    gene_mapping : mapping or path, optional
        Retired id → current id, for names that the vocabulary lacks: a mapping, or a file such as Geneformer's
        ``ensembl_mapping_dict``.
    obs : sequence of str
        Columns of ``obs`` to store with the cells; missing values become None. A column keeps its type. Over several
        inputs it has the widest of their types, or is text; it is missing in the cells of inputs without it.
    obs_names : str, optional
        Name of a column to store the cells' names in (the index of ``obs``). None: they are not stored.
    file_column : str, optional
        Of several inputs: name of a column to store the name of each cell's input in. None: it is not stored.
    filter_pass : str
        Column of ``obs`` that is 1 (or True) for the cells to write, as Geneformer's ``filter_pass``. ``"auto"``: the
        column ``filter_pass`` if there is one. ``"none"``: all cells.
    total : str, optional
        Column of ``obs`` with each cell's total, such as Geneformer's ``n_counts``. None: the sum of its counts.
    allow_fractional : bool
        Take counts that are no whole numbers: corrected for background (SoupX, CellBender), or estimated (RSEM,
        alevin).
    target_sum : float
        What the counts of a cell are scaled to.
    max_length : int, optional
        Most genes of a cell. None: the vocabulary's ``max_length``, less two with V2 for ``<cls>`` and ``<eos>``; with
        ``values`` no limit.
    values : bool
        Write each gene's count beside it, as float32, for models that read values
        (:class:`~corrmask_fast.DataCollatorForValues`). Then no ``<cls>`` and ``<eos>`` are written.
    chunk_cells : int, optional
        Number of cells read at a time. None: as many as hold about two million counts.
    shard : tuple of int, optional
        (k, n): write only the parts of the k-th of n shares of the inputs, k from 1. Shares may be written at the same
        time; the last one to finish makes the corpus. Needs ``medians``.
    progress : bool
        Show progress bars on standard error.

    Returns
    -------
    TokenizeReport
        How many cells and genes were found, written and left out (``n_cells_written``, ``n_genes_matched``, …); of
        several inputs in all, and for each (``files``). Printed, it is a summary of a few lines.

    Raises
    ------
    InputError
        If the counts are negative, NaN or (without ``allow_fractional``) fractional; no gene matches; a layer or column
        is missing; the parts of the AnnData do not fit each other; an input has no cell with a gene of the vocabulary;
        ``output`` is an existing folder, or what is read here; ``OUTPUT.parts`` is of another call.
    MissingExtraError
        If anndata is not installed, or (for a folder) datasets.

    Notes
    -----
    Rank-value encoding of Geneformer (Theodoris et al. 2023); docs/SPEC.md, section 7, defines it to the bit.

    Examples
    --------
    >>> import tempfile
    >>> import anndata, numpy as np, pandas
    >>> from corrmask_fast import Vocabulary, read_corpus, tokenize
    >>> genes = Vocabulary(("<pad>", "<mask>", "RPL3", "CD3E", "LYZ"))
    >>> counts = np.array([[5.0, 1, 0], [1, 0, 9]])
    >>> cells = anndata.AnnData(counts, var=pandas.DataFrame(index=["RPL3", "CD3E", "LYZ"]))
    >>> output = f"{tempfile.mkdtemp()}/cells.npz"
    >>> report = tokenize(cells, output, genes, progress=False)
    >>> report.n_cells_written, read_corpus(output).tokens.tolist()
    (2, [2, 3, 4, 2])
    """
    inputs, shard = inputs_of(adata_or_path), check_shard(shard)
    reading = Reading(layer, gene_column, gene_mapping, filter_pass, total, allow_fractional, target_sum, chunk_cells)
    if isinstance(obs, str) or not isinstance(obs, Iterable):
        raise InputError(f"obs must be a list of names of columns; got {shown(obs)}")
    obs, path = list(obs), Path(output)
    in_parts = path.suffix != ".npz" and (len(inputs) > 1 or shard[1] > 1)
    file_column = file_column if len(inputs) > 1 else None
    _check_columns(obs, obs_names, file_column)
    if shard[1] > 1 and (not in_parts or medians is None or not all(map(is_path, inputs))):
        raise InputError(
            "shards need inputs on disk, a folder to write, and medians, the same for all; find the medians first: "
            "`corrmask-fast medians IN… -o medians.json`, or corpus_medians(inputs)"
        )
    if shard[1] == 1 or not path.is_dir():  # another shard may have finished the corpus
        check_corpus_output(output)
    for source in (*inputs, medians, gene_mapping):
        check_not_input(output, source)
        if is_path(source) and target_of(source) in target_of(output).parents:
            raise InputError(f"{output} lies inside {source}, which is read here; choose another place")
    vocabulary = vocabulary_of(inputs, layer=layer, gene_column=gene_column) if vocabulary is None else vocabulary
    if not isinstance(vocabulary, Vocabulary):
        raise InputError(f"vocabulary must be a Vocabulary; got {shown(vocabulary)}")
    limit = check_max_length(max_length, vocabulary, values=values)
    with Sources(inputs, vocabulary, reading) as sources:
        task = Task(sources, vocabulary, limit, obs, obs_names, file_column, values=values, progress=progress)
        if in_parts:
            return task.write_parts(path, medians, shard)
        return task.write(path, medians)


tokenize_h5ad = tokenize  # its name when it took files alone


def corpus_medians(
    adata_or_path: Any,
    vocabulary: Vocabulary | None = None,
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
    """Return the exact non-zero median of each gene's scaled counts, over the cells of all inputs.

    Scaled counts are ``count / total * target_sum``. The result may be given to :func:`~corrmask_fast.tokenize` and
    :class:`~corrmask_fast.RankEncoder`, or be kept as a JSON file for them.

    Parameters
    ----------
    adata_or_path : path, AnnData, or a list of these
        The inputs, as for :func:`~corrmask_fast.tokenize`.
    vocabulary : Vocabulary, optional
        The genes, by id or symbol. None: the genes of the inputs.
    layer, gene_column, gene_mapping, filter_pass, total, allow_fractional, target_sum, chunk_cells, progress
        As for :func:`~corrmask_fast.tokenize`.

    Returns
    -------
    dict
        Name of a gene → median (float). Of an even number of values it is the mean of the two in the middle. Genes
        without a count are left out.

    Raises
    ------
    InputError
        If the counts are negative, NaN or (without ``allow_fractional``) fractional, no gene matches, or a layer or
        column is missing.
    MissingExtraError
        If anndata is not installed.

    Notes
    -----
    docs/SPEC.md, section 7. The inputs are read twice, more often only beyond hundreds of millions of counts. Memory
    does not grow with the inputs: 4 kB for each gene of the vocabulary, 128 MB of values, and one chunk of cells.

    Examples
    --------
    >>> import anndata, numpy as np, pandas
    >>> from corrmask_fast import Vocabulary, corpus_medians
    >>> genes = pandas.DataFrame(index=["RPL3", "CD3E"])
    >>> cells = [anndata.AnnData(np.array([counts]), var=genes) for counts in ([3.0, 1.0], [2.0, 2.0], [1.0, 0.0])]
    >>> corpus_medians(cells, Vocabulary(("<pad>", "<mask>", "RPL3", "CD3E")), progress=False)
    {'RPL3': 7500.0, 'CD3E': 3750.0}
    """
    inputs = inputs_of(adata_or_path)
    reading = Reading(layer, gene_column, gene_mapping, filter_pass, total, allow_fractional, target_sum, chunk_cells)
    vocabulary = vocabulary_of(inputs, layer=layer, gene_column=gene_column) if vocabulary is None else vocabulary
    with Sources(inputs, vocabulary, reading) as sources:
        return medians_by_name(exact_medians(sources, vocabulary.size, progress=progress), vocabulary)


def vocabulary_of(adata_or_path: Any, *, layer: str | None = None, gene_column: str | None = None) -> Vocabulary:
    """Return a vocabulary of the inputs' own genes, in their order, after ``<pad>`` and ``<mask>``.

    Genes are named by the index of ``var``, or by ``gene_column`` of it. Inputs may be many; genes that an input adds
    come after those before. Warns if an input shares hardly a name with those before it.
    """
    from corrmask_fast.cells.counts import Counts

    found: dict[str, None] = {}
    for one in inputs_of(adata_or_path):
        with Counts(one, layer=layer) as counts:
            names = np.array(names_of(counts.var, gene_column or "index"), object)
            genes, _ = gene_columns(counts.var, counts.name)
            mine = dict.fromkeys(name for name in (names if genes is None else names[genes]).tolist() if name)
            if found:
                warn_of_other_names(counts.name, found, mine)
            found |= mine
    return Vocabulary(("<pad>", "<mask>", *found))


def _check_columns(obs: list[Any], obs_names: Any, file_column: Any) -> None:
    for what, name in (*(("obs", name) for name in obs), ("obs_names", obs_names), ("file_column", file_column)):
        if name is None and what != "obs":
            continue
        if not isinstance(name, str):
            raise InputError(f"{what} must be a name of a column; got {shown(name)}")
        if name in RESERVED:
            raise InputError(f"obs column {name!r} would collide with the corpus' own; rename it in the AnnData first")
    if file_column is not None and file_column in [*obs, obs_names]:
        raise InputError(
            f"obs column {file_column!r} and the column of the inputs' names have one name; give "
            "file_column another, or None"
        )
    names = obs if obs_names is None else [*obs, obs_names]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"obs column {name!r} is named twice; name each column once")
