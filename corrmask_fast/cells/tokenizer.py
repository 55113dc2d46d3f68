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

    A gene's value in a cell is ``count / total * target_sum / median``, in float64 and in this order; the total is over
    all columns that are genes, of the vocabulary or not. Genes are sorted by falling value, ties by lower token.
    Several columns of one gene are summed. Memory is one chunk of cells, 8 bytes a cell, and those columns of ``obs``
    that are asked for (CSC takes a temporary file, see :class:`corrmask_fast.cells.counts.Counts`).

    Parameters
    ----------
    adata_or_path
        The path of an ``.h5ad`` file or a zarr store, or an ``AnnData`` in memory or backed, with raw counts as CSR,
        CSC or dense; 10x ``.h5`` files, ``matrix.mtx`` folders and ``.loom`` files where scanpy (loompy) is installed.
        A list of these, or a folder that holds some: the cells of all, in this order. Where ``var`` has Cell Ranger's
        ``feature_types`` and some are ``Gene Expression``, the other
        columns (antibodies, peaks) are left out, of totals too.
    output
        A folder to write (Hugging Face ``datasets``), or a file by the suffix ``.npz``; see
        :class:`corrmask_fast.cells.corpus_io.CorpusWriter`. Of several inputs, a folder has a part for each; while
        parts are missing they lie in ``OUTPUT.parts``, and the same call goes on with those that are missing.
    vocabulary
        The genes, by id or symbol. Versions of Ensembl ids (``ENSG….12``) do not matter. Where genes are found by id
        and ``var`` has symbols, the corpus stores these. None: the inputs' own genes (:func:`vocabulary_of`).
    medians
        Gene → non-zero median of scaled counts: a mapping, or a ``.json`` or ``.pkl`` file such as Geneformer's
        ``gene_median_dictionary``. Genes without one are left out. None: of the cells of all
        inputs (:func:`corpus_medians`).
    layer
        Where the counts are: None for ``X``, ``"raw"`` for ``raw/X``, else the name of a layer.
    gene_column
        Column of ``var`` with gene ids or symbols, ``"index"`` for its index. None: the index or an id column
        (``ensembl_id``, ``gene_ids``, ``gene_id``, ``feature_id``), whichever matches the vocabulary best.
    gene_mapping
        Retired id → current id, for names that the vocabulary lacks: a mapping, or a file such as Geneformer's
        ``ensembl_mapping_dict``.
    obs
        Columns of ``obs`` that travel along; missing values become None. A column keeps its type; over several inputs
        it has the widest of them, or text, and is missing in the cells of inputs without it.
    obs_names
        Name of a column of the corpus for the cells' names, the index of ``obs``. None: they do not travel along.
    file_column
        Of several inputs: name of a column of the corpus for the name of each cell's input. None: no such column.
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
        Most genes of a cell. None: the vocabulary's, two fewer with V2 for ``<cls>`` and ``<eos>``; with ``values``
        none.
    values
        Write each gene's count beside it, as float32, for models that read values
        (:class:`~corrmask_fast.DataCollatorForValues`); no ``<cls>`` and ``<eos>`` are written then.
    chunk_cells
        Cells read at a time. None: as many as hold about two million counts.
    shard
        (k, n): write the parts of the k-th of n shares of the inputs alone, from 1. The shares may be written at
        the same time; the last one to finish makes the corpus. Needs ``medians``.
    progress
        Show progress bars.

    Returns
    -------
    TokenizeReport
        How many cells and genes were found and left out; of several inputs in all, and in each (``files``).

    Raises
    ------
    InputError
        If the counts are negative, NaN or (without ``allow_fractional``) fractional; no gene matches; a layer or column
        is missing; the parts of the AnnData do not fit each other; an input has no cell with a gene of the vocabulary;
        ``output`` is an existing folder, or what is read here; ``OUTPUT.parts`` is of another call.
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
            "shards need inputs on disk, a folder to write, and medians, the same for all; find them first: "
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
    """Return the exact non-zero median of each gene's scaled counts over all inputs, by name.

    Parameters as in :func:`tokenize`: one or many AnnData. With an even number of values: the mean of the two in the
    middle. Genes that never occur have no entry. What is returned may be given to :func:`tokenize` and
    :class:`~corrmask_fast.RankEncoder`, or be kept as JSON for them.

    Notes
    -----
    Two passes over the inputs, more only beyond hundreds of millions of counts. Memory, whatever the inputs: 4 kB a
    gene of the vocabulary for histograms, 128 MB of values, one chunk of cells.

    Examples
    --------
    >>> import anndata, pandas
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
