"""Cells and genes as vectors: what a layer of a model holds of them, and an AnnData of it."""

from __future__ import annotations

import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from corrmask_fast.cells.obs_columns import obs_column
from corrmask_fast.errors import InputError, as_integer, check_integer, import_extra, shown
from corrmask_fast.progress import progress_bar
from corrmask_fast.suggestions import did_you_mean

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator

    import torch

    from corrmask_fast.cells.corpus import Corpus
    from corrmask_fast.cells.vocabulary import Vocabulary

__all__ = ["GeneEmbeddings", "cells_to_anndata", "embed_cells", "embed_genes", "genes_to_anndata"]

CHUNK = 1 << 16  # cells that are sorted by length: batches of like length, from one part of the file
OBS_NAMES = "obs_names"  # the column where `tokenize --obs-names` puts the cells' names
POOLS, PRECISIONS = ("mean", "cls"), ("float32", "bfloat16")


class GeneEmbeddings(NamedTuple):
    """Vectors of the genes of a vocabulary, as :func:`~corrmask_fast.embed_genes` returns them.

    Row i of each array is the gene with the token ``vocabulary.gene_range[0] + i``.

    Attributes
    ----------
    static
        (genes, width) float32: the model's input embeddings, the same in every cell.
    contextual
        (genes, width) float32: the mean of a layer's vectors over the cells with the gene; NaN if there are none.
    n_cells
        (genes,) int64: number of cells in which the model saw the gene.

    Examples
    --------
    >>> import numpy as np
    >>> from corrmask_fast import GeneEmbeddings
    >>> genes = GeneEmbeddings(np.zeros((3, 4), np.float32), np.ones((3, 4), np.float32), np.array([7, 0, 2]))
    >>> genes.contextual[genes.n_cells > 0].shape  # of the genes that are in some cell
    (2, 4)
    """

    static: np.ndarray
    contextual: np.ndarray
    n_cells: np.ndarray


def embed_cells(
    model: str | os.PathLike[str] | torch.nn.Module,
    corpus: Corpus,
    *,
    pool: str = "mean",
    layer: int = -1,
    max_length: int | None = None,
    batch_size: int = 64,
    device: str = "auto",
    precision: str = "float32",
    progress: bool = True,
) -> np.ndarray:
    """Return a vector for every cell: a layer's mean over the cell's genes, or the layer at ``<cls>``.

    Cells are read batch by batch, so a corpus on disk may be larger than memory.

    Parameters
    ----------
    model
        Folder of a Hugging Face checkpoint, or a module. A module is an encoder that returns ``last_hidden_state``, or
        a model of transformers that contains one; it stays on its device.
    corpus
        Cells of the model's vocabulary.
    pool
        ``"mean"``: the mean over the genes of a cell. ``<cls>``, ``<eos>`` and padding do not count; a cell without
        genes gets zeros. ``"cls"``: the vector at ``<cls>``, which V2 vocabularies have.
    layer
        −1: the last layer; −2: the one before it; 0: the embeddings before the first layer.
    max_length
        Cells are cut to this many tokens, ``<cls>`` and ``<eos>`` included. None: as many as the model can take.
    batch_size
        Number of cells in a batch. It changes the result by rounding errors only.
    device
        Where a checkpoint is loaded: ``"cpu"``, ``"cuda"``, or ``"auto"`` (a GPU if there is one).
    precision
        ``"float32"``, or ``"bfloat16"``: faster on GPUs that support it, with 2 to 3 significant digits.
    progress
        Show a progress bar on standard error.

    Returns
    -------
    numpy.ndarray
        (n_cells, width) float32, in the order of the corpus.

    Raises
    ------
    InputError
        If the corpus has no cells; if the checkpoint cannot be loaded or has another vocabulary; if the model has no
        such layer; if ``pool="cls"`` and the vocabulary has no ``<cls>``; or if an option is out of range.

    See Also
    --------
    embed_genes : Vectors of genes.

    Examples
    --------
    >>> from transformers import BertConfig, BertModel
    >>> from corrmask_fast import embed_cells, read_corpus
    >>> from corrmask_fast.testing import make_vocabulary
    >>> genes = make_vocabulary(20)
    >>> corpus = read_corpus([[2, 5, 9], [4, 3], [21, 7, 2]], genes)
    >>> config = BertConfig(
    ...     vocab_size=genes.size, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8
    ... )
    >>> embed_cells(BertModel(config), corpus, progress=False).shape
    (3, 8)
    """
    from corrmask_fast.evaluation.fine_tuning import mean_over_genes

    if pool not in POOLS:
        raise InputError(f"pool must be 'mean' or 'cls'; got {shown(pool)}")
    if pool == "cls" and corpus.vocabulary.cls_token_id is None:
        raise InputError(
            "pool='cls' needs a <cls> token in front of each cell, and this vocabulary has none (Geneformer V1); use "
            "pool='mean'"
        )
    out: np.ndarray | None = None
    batches = _layer_of_batches(model, corpus, layer, max_length, batch_size, device, precision, progress=progress)
    for rows, ids, seen, hidden in batches:
        found = hidden[:, 0] if pool == "cls" else mean_over_genes(hidden, ids, seen, corpus.vocabulary.gene_range)
        if out is None:
            out = np.zeros((corpus.n_cells, found.shape[1]), np.float32)
        out[rows] = found.cpu().numpy()
    assert out is not None
    return out


def embed_genes(
    model: str | os.PathLike[str] | torch.nn.Module,
    corpus: Corpus,
    *,
    layer: int = -1,
    max_length: int | None = None,
    batch_size: int = 64,
    device: str = "auto",
    precision: str = "float32",
    progress: bool = True,
) -> GeneEmbeddings:
    """Return two vectors for every gene: the model's input embedding, and a layer's mean over cells.

    Parameters
    ----------
    model, corpus, layer, max_length, batch_size, device, precision, progress
        As for :func:`~corrmask_fast.embed_cells`.

    Returns
    -------
    GeneEmbeddings
        Vectors of all genes of the vocabulary, and the number of cells with each gene.

    Raises
    ------
    InputError
        As :func:`~corrmask_fast.embed_cells`; or if a module has no ``get_input_embeddings()``.

    Examples
    --------
    >>> from transformers import BertConfig, BertModel
    >>> from corrmask_fast import embed_genes, read_corpus
    >>> from corrmask_fast.testing import make_vocabulary
    >>> genes = make_vocabulary(20)
    >>> corpus = read_corpus([[2, 5, 9], [4, 3], [21, 7, 2]], genes)
    >>> config = BertConfig(
    ...     vocab_size=genes.size, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8
    ... )
    >>> embedded = embed_genes(BertModel(config), corpus, progress=False)
    >>> embedded.contextual.shape, embedded.n_cells[:4]  # G0 is in two cells
    ((20, 8), array([2, 1, 1, 1]))
    """
    import torch

    sums: torch.Tensor | None = None
    n_cells = np.zeros(corpus.vocabulary.size, np.int64)
    lo, hi = corpus.vocabulary.gene_range
    with _opened(model, corpus.vocabulary, device) as (encoder, _):
        batches = _layer_of_batches(
            encoder, corpus, layer, max_length, batch_size, device, precision, progress=progress
        )
        try:
            static = encoder.get_input_embeddings().weight[lo:hi].detach().float().cpu().numpy()
        except (AttributeError, NotImplementedError) as error:
            raise InputError(
                f"{type(encoder).__name__} does not say which its input embeddings are; give it "
                "get_input_embeddings(), as models of transformers have it"
            ) from error
        for _, ids, seen, hidden in batches:
            if sums is None:
                sums = torch.zeros(n_cells.size, hidden.shape[-1], dtype=torch.float64, device=hidden.device)
            there = seen != 0
            sums.index_add_(0, ids[there], hidden[there].double())
            n_cells += np.bincount(ids[there].cpu().numpy(), minlength=n_cells.size)
    assert sums is not None
    n_cells = n_cells[lo:hi]
    contextual = np.full((hi - lo, sums.shape[1]), np.nan, np.float32)
    np.divide(
        sums[lo:hi].cpu().numpy(), n_cells[:, None], out=contextual, where=n_cells[:, None] > 0, casting="same_kind"
    )
    return GeneEmbeddings(static, contextual, n_cells)


@contextmanager
def _opened(model: Any, vocabulary: Vocabulary, device: str) -> Iterator[tuple[Any, torch.device]]:
    """Yield an encoder without dropout, and its device; a module is left in the mode that it was in."""
    import torch

    from corrmask_fast.evaluation.fine_tuning import FineTuning
    from corrmask_fast.training.pretrained import load_encoder

    place = FineTuning(device=device).torch_device()
    if isinstance(model, torch.nn.Module):
        encoder = getattr(model, "base_model", model)  # of a model of transformers with a head
        weight = next(encoder.parameters(), None)
        place = torch.device("cpu") if weight is None else weight.device
    else:
        encoder = load_encoder(model, vocabulary).to(place)
    training = encoder.training
    encoder.eval()
    try:
        yield encoder, place
    finally:
        encoder.train(training)


def _layer_of_batches(
    model: Any,
    corpus: Corpus,
    layer: int,
    max_length: int | None,
    batch_size: int,
    device: str,
    precision: str,
    *,
    progress: bool,
) -> Iterator[tuple[np.ndarray, torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Yield (rows, input_ids, attention_mask, (cells, columns, width) float32 of the layer) of batches of cells."""
    import torch

    from corrmask_fast.evaluation.fine_tuning import padded_cells, usable_length

    check_integer("batch_size", batch_size, 1)
    if as_integer(layer) is None:
        raise InputError(f"layer must be an integer, such as -1 for the last one; got {shown(layer)}")
    if precision not in PRECISIONS:
        raise InputError(f"precision must be 'float32' or 'bfloat16'; got {shown(precision)}")
    if max_length is not None:
        check_integer("max_length", max_length, 1)
    if corpus.n_cells == 0:
        raise InputError("the corpus has no cells; check the file that it was read from")
    more = {} if layer == -1 else {"output_hidden_states": True}
    with _opened(model, corpus.vocabulary, device) as (encoder, place):
        length = usable_length(encoder, corpus, max_length)
        with progress_bar("embed", corpus.n_cells, "cell", shown=progress) as bar:
            for rows in _by_length(corpus, batch_size):
                ids, seen = (each.to(place) for each in padded_cells(corpus, rows, length))
                # Both end before the yield: they would hold in the caller too.
                half = torch.autocast(place.type, torch.bfloat16, enabled=precision == "bfloat16")
                with torch.inference_mode(), half:
                    hidden = _layer_of(encoder(input_ids=ids, attention_mask=seen, **more), layer)
                yield rows, ids, seen, hidden.float()
                bar.update(rows.size)


def _by_length(corpus: Corpus, batch_size: int) -> Iterator[np.ndarray]:
    """Yield the rows of batches: cells of like length, which need little padding."""
    for begin in range(0, corpus.n_cells, CHUNK):
        rows = np.arange(begin, min(begin + CHUNK, corpus.n_cells))
        rows = rows[np.argsort(corpus.lengths_of(rows), kind="stable")]
        yield from (rows[first : first + batch_size] for first in range(0, rows.size, batch_size))


def _layer_of(output: Any, layer: int) -> torch.Tensor:
    """Return a layer of an encoder's output. The last one is ``last_hidden_state``, with the norm behind all layers."""
    states = () if layer == -1 else getattr(output, "hidden_states", None) or ()
    last = getattr(output, "last_hidden_state", None)
    if last is None or (layer != -1 and not states):
        wanted = "last_hidden_state" if last is None else "hidden_states, where every layer but the last is read"
        raise InputError(f"the model returns no {wanted}; give an encoder as transformers has them")
    n = len(states)
    if layer != -1 and not -n <= layer < n:
        raise InputError(
            f"layer must be in [{-n}, {n - 1}] for this model of {n - 1} layers: 0 is its embeddings, -1 its last "
            f"layer; got {layer}"
        )
    return last if layer in {-1, n - 1} else states[layer]


def cells_to_anndata(
    embedded: np.ndarray, corpus: Corpus, *, name: str = "embedding", obs_names: str | None = None
) -> Any:
    """Return an ``AnnData`` of embedded cells without genes: ``obsm["X_<name>"]``, and the corpus's obs columns.

    Parameters
    ----------
    embedded
        (n_cells, width), as :func:`embed_cells` returns it.
    corpus
        The cells.
    name
        Of the embedding.
    obs_names
        Column with the cells' names; None: ``obs_names``, where ``tokenize --obs-names`` puts them, if it is there,
        else the cells' numbers.

    Raises
    ------
    InputError
        If there is no such column.
    MissingExtraError
        Without anndata.

    Warns
    -----
    UserWarning
        Of columns that hold lists: these are left out.
    """
    anndata, pandas = import_extra("anndata", "anndata"), import_extra("pandas", "anndata")
    if obs_names is not None and obs_names not in corpus.obs:
        has = ", ".join(map(repr, corpus.obs)) or "none"
        raise InputError(
            f"obs_names must be one of the corpus's obs columns ({has}); "
            f"got {shown(obs_names)}{did_you_mean(obs_names, corpus.obs)}"
        )
    columns = {}
    for column in corpus.obs:
        try:
            columns[column] = _for_pandas(column, corpus.obs[column], pandas)
        except InputError as error:
            warnings.warn(f"left out: {error}", stacklevel=2)
    index = columns.pop(OBS_NAMES if obs_names is None else obs_names, np.arange(corpus.n_cells))
    obs = pandas.DataFrame(columns, index=pandas.Index(np.asarray(index).astype(str).astype(object)))
    return anndata.AnnData(obs=obs, obsm={f"X_{name}": embedded})


def _for_pandas(name: str, column: Any, pandas: Any) -> Any:
    """Return a column with one type for all its values, as HDF5 can hold them: times become text."""
    values, _, missing = obs_column(name, column).flat()
    if values.dtype.kind in "mM":
        values = np.where(np.isnat(values), "", values.astype(str)).astype(object)
    if values.dtype == object:
        return values if missing is None else pandas.Categorical(pandas.Series(values).mask(missing))
    if missing is None or values.dtype.kind == "f":
        return values
    nullable = pandas.arrays.BooleanArray if values.dtype.kind == "b" else pandas.arrays.IntegerArray
    return nullable(values, missing)


def genes_to_anndata(genes: GeneEmbeddings, vocabulary: Vocabulary, *, name: str = "embedding") -> Any:
    """Return an ``AnnData`` whose observations are the genes that a cell holds.

    ``obsm["X_<name>"]`` is the contextual embedding, ``obsm["X_<name>_static"]`` the static one; ``obs`` has
    ``symbol``, ``token`` and ``n_cells``, and is indexed by the vocabulary's names.
    """
    anndata, pandas = import_extra("anndata", "anndata"), import_extra("pandas", "anndata")
    seen = np.flatnonzero(genes.n_cells)
    tokens = (vocabulary.gene_range[0] + seen).tolist()
    columns = {
        "symbol": [vocabulary.name_of(token) for token in tokens],
        "token": tokens,
        "n_cells": genes.n_cells[seen],
    }
    obs = pandas.DataFrame(columns, index=[vocabulary.names[token] for token in tokens])
    return anndata.AnnData(obs=obs, obsm={f"X_{name}": genes.contextual[seen], f"X_{name}_static": genes.static[seen]})
