"""The cells of a comparison: what is pretrained on, and what is scored, over one set of genes."""

from __future__ import annotations

import hashlib
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from corrmask_fast.cells.corpus import Corpus
from corrmask_fast.cells.corpus_files import is_corpus
from corrmask_fast.cells.corpus_io import read_corpus
from corrmask_fast.cells.tokenizer import corpus_medians, tokenize, vocabulary_of
from corrmask_fast.cells.vocabulary import Vocabulary
from corrmask_fast.errors import InputError, check_number
from corrmask_fast.evaluation.frozen_features import gene_features
from corrmask_fast.suggestions import did_you_mean

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    import scipy.sparse

    from corrmask_fast.cells.medians import Medians

FEWEST_CELLS = 10  # that a gene must stand in, whatever the share


@dataclass(frozen=True)
class ComparedCells:
    """Cells to pretrain on, and cells that no model is trained on, over the same genes.

    Attributes
    ----------
    train, test
        Tokenised cells, cut to what models read of them.
    features
        (test cells, V) CSR: what a regression without a model reads. ``log1p`` of counts per 10 000 where there are
        counts, else 1 − rank / genes of the cell.
    has_counts
        Which of these it is.
    train_name, test_name
        What they were read from.
    """

    train: Corpus
    test: Corpus
    features: scipy.sparse.csr_array
    has_counts: bool
    train_name: str
    test_name: str

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all cells, their vocabulary, their labels and the features."""
        digest = hashlib.sha256(self.train.vocabulary.fingerprint.encode())
        digest.update(self.features.data.tobytes())
        for name, column in self.test.obs.items():
            digest.update(repr((name, column.tolist())).encode("utf-8", "surrogatepass"))
        for corpus in (self.train, self.test):
            digest.update(corpus.indptr.astype(np.int64).tobytes())
            digest.update(corpus.tokens.astype(np.int32).tobytes())
        return digest.hexdigest()


def read_cells(
    train: Sequence[str | os.PathLike[str]],
    test: str | os.PathLike[str] | None = None,
    *,
    max_length: int,
    labels: str | None = None,
    vocabulary: Vocabulary | None = None,
    medians: Medians | None = None,
    test_share: float = 0.3,
    gene_share: float = 0.01,
    fixed_genes: bool = False,
    progress: bool = True,
) -> ComparedCells:
    """Read and tokenise the cells of a comparison.

    Parameters
    ----------
    train
        Inputs with raw counts, as :func:`~corrmask_fast.tokenize` takes them, or one corpus of tokenised cells.
    test
        The cells to score, of the same kind. None: ``test_share`` of the cells of ``train``, the same for every seed.
    max_length
        How many tokens of a cell models read.
    labels
        An obs column of the test cells. None: no cell types.
    vocabulary, medians
        Of counts; None: the genes of the inputs, and the medians of all cells of ``train``.
    gene_share
        Genes in a smaller share of the training cells (or in fewer than 10 of them) are left out; then those that are
        so rare among the first ``max_length`` of a cell, which are all that models see.
    fixed_genes
        Keep the vocabulary as it is: graphs and tables that are given have just this one.

    Raises
    ------
    InputError
        If an input cannot be read, the test cells have no such column, or no gene or no cell is left.
    """
    check_number("test_share", test_share, 0, 1, open_ends=True)
    check_number("gene_share", gene_share, 0, 1)
    inputs = [*train, *([] if test is None else [test])]
    tokenised = [is_corpus(path) for path in inputs]
    if any(tokenised) and not (all(tokenised) and len(train) == 1):
        kinds = [f"{path} ({'tokenised' if one else 'counts'})" for path, one in zip(inputs, tokenised, strict=True)]
        raise InputError(
            "give counts, of one or several files, or one corpus of tokenised cells, and test cells of the same kind; "
            f"got {', '.join(kinds)}"
        )
    if all(tokenised):
        whole = read_corpus(train[0], vocabulary)
        held = None if test is None else read_corpus(test, vocabulary)
        if held is not None:
            held.vocabulary.check_same(whole.vocabulary, f"the test cells {test}", f"the cells {train[0]}")
    else:
        whole, held = _tokenised(list(train), test, vocabulary, medians, labels, progress)
    _check_labels(whole if held is None else held, labels, train[0] if test is None else test)
    names = ", ".join(map(_shown, train))
    if held is None:
        rows = whole.sample_rows(max(1, round(test_share * whole.n_cells)))
        parts = (whole, np.setdiff1d(np.arange(whole.n_cells), rows)), (whole, rows)
        test_name = f"{100 * test_share:g} % of these cells"
    else:
        parts = (whole, np.arange(whole.n_cells)), (held, np.arange(held.n_cells))
        test_name = _shown(test)  # type: ignore[arg-type]
    for (_, some), what in zip(parts, ("to pretrain on", "to score"), strict=True):
        if not some.size:
            raise InputError(f"there is no cell {what}; give more cells, or another test_share than {test_share}")
    narrowed = [_narrowed(corpus, some, corpus.vocabulary) for corpus, some in parts]
    for length in () if fixed_genes else (whole.vocabulary.size, max_length):
        genes = _common_genes(_cut(narrowed[0], length), gene_share)
        narrowed = [_narrowed(corpus, np.arange(corpus.n_cells), genes) for corpus in narrowed]
    room = max_length - narrowed[0].vocabulary.n_surrounding  # <cls> and <eos> of a vocabulary that is given
    kept, held_out = (_cut(corpus, max(1, room)) for corpus in narrowed)
    return ComparedCells(kept, held_out, gene_features(narrowed[1]), narrowed[1].has_values, names, test_name)


def _tokenised(
    train: list[Any],
    test: Any,
    vocabulary: Vocabulary | None,
    medians: Medians | None,
    labels: str | None,
    progress: bool,
) -> tuple[Corpus, Corpus | None]:
    """Return the cells of ``train`` and of ``test`` (None where that is None), with their counts."""
    inputs = train if test is None else [*train, test]
    if vocabulary is None:
        vocabulary = vocabulary_of(inputs)
    if medians is None:
        medians = corpus_medians(train, vocabulary, progress=progress)
    with tempfile.TemporaryDirectory() as folder:

        def cells(given: list[Any], name: str, labelled: bool) -> Corpus:
            obs = [labels] if labels is not None and labelled else []
            out = Path(folder) / f"{name}.npz"
            tokenize(given, out, vocabulary, medians, obs=obs, file_column=None, values=True, progress=progress)
            return read_corpus(out)

        return cells(train, "train", test is None), None if test is None else cells([test], "test", True)


def _shown(path: str | os.PathLike[str]) -> str:
    """Return the name of a file, whatever bytes it has, as text that any file can hold."""
    return Path(path).name.encode("utf-8", "replace").decode()


def _check_labels(corpus: Corpus, labels: str | None, path: Any) -> None:
    if labels is not None and labels not in corpus.obs:
        has = ", ".join(map(repr, corpus.obs)) or "none"
        meant = did_you_mean(labels, corpus.obs)
        raise InputError(
            f"{path}: the cells to score have no obs column {labels!r} with their types{meant} (they have {has}); "
            "name the column with labels, or leave labels out: then cell types are not scored"
        )


def _common_genes(corpus: Corpus, share: float) -> Vocabulary:
    """Return a vocabulary of the genes that stand in enough of the cells."""
    vocabulary, n_cells = corpus.vocabulary, corpus.n_cells
    lo, hi = vocabulary.gene_range
    presence = np.bincount(corpus.tokens, minlength=hi)[lo:hi]
    least = max(FEWEST_CELLS, share * n_cells)
    kept = lo + np.flatnonzero(presence >= least)
    if kept.size < 2:
        raise InputError(
            f"{kept.size} genes stand in {least:.0f} or more of {n_cells} training cells, and masking needs more; "
            "lower gene_share, or give more cells"
        )
    names = (vocabulary.names[token] for token in kept)
    return Vocabulary(("<pad>", "<mask>", *names), vocabulary.symbols, aliases=vocabulary.aliases)


def _narrowed(corpus: Corpus, rows: np.ndarray, genes: Vocabulary) -> Corpus:
    """Return cells in memory, over the genes of another vocabulary; cells without any of these are left out."""
    values = None
    if corpus.has_values:
        indptr, tokens, values = corpus.gather_with_values(rows)
    else:
        indptr, tokens = corpus.gather(rows)
    obs = {name: np.asarray(column)[rows] for name, column in corpus.obs.items()}
    if genes is not corpus.vocabulary:
        of_token = np.full(corpus.vocabulary.size, -1, np.int32)
        for new, name in enumerate(genes.names):
            if (old := corpus.vocabulary.tokens_by_name.get(name)) is not None:
                of_token[old] = new
        tokens = of_token[tokens]
        kept = tokens >= genes.gene_range[0]
        indptr = np.concatenate([[0], np.cumsum(kept)])[indptr]
        tokens, values = tokens[kept], None if values is None else values[kept]
    narrowed = Corpus(indptr, tokens, genes, max_length=max(int(np.diff(indptr).max()), 1), obs=obs, values=values)
    filled = np.flatnonzero(narrowed.lengths > 0)
    return narrowed if filled.size == rows.size else narrowed.take(filled)


def _cut(corpus: Corpus, max_length: int) -> Corpus:
    """Return the cells without values, cut to ``max_length`` genes."""
    return Corpus(corpus.indptr, corpus.tokens, corpus.vocabulary, max_length=max_length, obs=corpus.obs)
