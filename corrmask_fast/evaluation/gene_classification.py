"""Two classes of genes distinguished by a fine-tuned model, such as dosage sensitivity (paper, section 6.2)."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from corrmask_fast.errors import InputError, check_integer, import_extra, shown
from corrmask_fast.progress import progress_bar
from corrmask_fast.tables import align, write_csv

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Mapping, Sequence

    import torch

    from corrmask_fast.cells.corpus import Corpus
    from corrmask_fast.cells.vocabulary import Vocabulary
    from corrmask_fast.evaluation.fine_tuning import FineTuning

__all__ = ["GeneClassification", "classify_genes", "read_gene_labels"]

YES, NO = {"yes", "true", "1", "x"}, {"", "no", "false", "0", "nan"}


class GeneFold(NamedTuple):
    """Held-out genes of one fold: their true class (0 or 1) and the mean probability of class 1 over cells."""

    genes: np.ndarray
    truth: np.ndarray
    score: np.ndarray


@dataclass(frozen=True)
class GeneClassification:
    """How well a model tells two classes of genes apart, as :func:`~corrmask_fast.classify_genes` returns it.

    Attributes
    ----------
    classes
        Names of class 0 and class 1.
    auc
        (folds,) float64: area under the ROC curve over the held-out genes of each fold.
    folds
        For each fold ``genes``, (n,) int64 tokens of the held-out genes; ``truth``, (n,) int64, their class; and
        ``score``, (n,) float64, the mean probability of class 1 over cells.
    n_absent
        Number of genes of the list that were left out: the vocabulary lacks them, or they are in no cell once cells are
        cut to the model's length.

    Examples
    --------
    >>> import numpy as np
    >>> from corrmask_fast import GeneClassification
    >>> found = GeneClassification(("insensitive", "sensitive"), np.array([0.8, 0.9]), folds=[], n_absent=0)
    >>> float(found.auc.mean().round(2))
    0.85
    """

    classes: tuple[str, str]
    auc: np.ndarray
    folds: list[GeneFold]
    n_absent: int

    def table(self) -> str:
        """Return the AUC of each fold, their mean and standard deviation.

        Returns
        -------
        str
            A table in plain text.
        """
        lines = [["fold", *self.classes, "AUC"]]
        for number, (fold, auc) in enumerate(zip(self.folds, self.auc, strict=True), 1):
            ones = int(fold.truth.sum())
            lines.append([str(number), str(fold.truth.size - ones), str(ones), f"{auc:.3f}"])
        mean = f"{self.auc.mean():.3f} ± {self.auc.std(ddof=1):.3f}" if self.auc.size > 1 else f"{self.auc.mean():.3f}"
        lines.append(["mean ± sd", "", "", mean])
        absent = (
            f"\n{self.n_absent} genes of the list were left out: the vocabulary lacks them, or the model sees them in "
            "none of the cells, which are cut to its length"
            if self.n_absent
            else ""
        )
        return "\n".join(align(lines)) + absent

    def save_csv(self, path: str | os.PathLike[str], vocabulary: Vocabulary) -> None:
        """Write fold, true class and score of each gene to a CSV file.

        Parameters
        ----------
        path
            The file to write.
        vocabulary
            The corpus's vocabulary, which names the genes.
        """
        rows = [
            [number, vocabulary.name_of(gene), self.classes[truth], score]
            for number, fold in enumerate(self.folds, 1)
            for gene, truth, score in zip(*(column.tolist() for column in fold), strict=True)
        ]
        write_csv(path, ["fold", "gene", "class", "score"], rows)


def classify_genes(
    model: str | os.PathLike[str],
    corpus: Corpus,
    labels: Mapping[str, str],
    *,
    folds: int = 5,
    n_cells: int = 10_000,
    settings: FineTuning | None = None,
    progress: bool = True,
) -> GeneClassification:
    """Fine-tune a model to tell two classes of genes apart, and score it on held-out genes.

    A head reads a gene's class from the gene's contextual embedding in a cell. Cross-validation is over genes.

    Parameters
    ----------
    model
        Folder of a Hugging Face checkpoint. It is not changed.
    corpus
        Tokenised cells of the model's vocabulary.
    labels
        Gene (id or symbol) → name of its class. There must be two classes; class 1 is the later one in alphabetical
        order. ``corrmask_fast.evaluation.gene_classification.read_gene_labels`` reads a file.
    folds
        Number of parts into which the genes are divided. Each is held out once.
    n_cells
        Number of cells that are used. A fifth of them are for scoring alone.
    settings
        Settings of fine-tuning. None: ``FineTuning(epochs=1)``, as in the paper.
    progress
        Show a progress bar on standard error.

    Returns
    -------
    GeneClassification
        The AUC of each fold, and the score of each gene.

    Raises
    ------
    InputError
        If there are not two classes, or a class has fewer than ``folds`` genes in the cells; if a gene is listed with
        two classes; or if the model does not fit the corpus.
    MissingExtraError
        Without transformers (extra ``hf``) or scikit-learn (extra ``eval``).

    Notes
    -----
    Dosage sensitivity is the task of Hacohen et al. 2026, section 6.2, after Theodoris et al. 2023.

    Examples
    --------
    >>> import tempfile
    >>> from transformers import BertConfig, BertForMaskedLM
    >>> from corrmask_fast import FineTuning, classify_genes, read_corpus
    >>> from corrmask_fast.testing import make_vocabulary
    >>> genes = make_vocabulary(20)
    >>> corpus = read_corpus([range(2, 22)] * 10, genes)
    >>> labels = {f"G{i}": "sensitive" if i < 8 else "insensitive" for i in range(20)}
    >>> config = BertConfig(
    ...     vocab_size=genes.size, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8
    ... )
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     BertForMaskedLM(config).save_pretrained(folder)
    ...     found = classify_genes(folder, corpus, labels, folds=2, settings=FineTuning(epochs=1), progress=False)
    >>> found.classes, found.auc.shape
    (('insensitive', 'sensitive'), (2,))
    """
    model_selection = import_extra("sklearn.model_selection", "eval")
    metrics = import_extra("sklearn.metrics", "eval")
    import torch

    from corrmask_fast.evaluation.fine_tuning import (
        UNLABELLED,
        FineTuning,
        Labeller,
        fine_tune,
        predictions,
        usable_length,
    )
    from corrmask_fast.training.pretrained import load_encoder

    settings = settings or FineTuning(epochs=1)
    check_integer("folds", folds, 2)
    cells = corpus.sample_rows(check_integer("n_cells", n_cells, 5), settings.seed)
    cells = np.random.default_rng(settings.seed).permutation(cells)
    test_cells, train_cells = np.split(cells, [max(1, cells.size // 5)])
    classes = _two_classes(labels)
    length = usable_length(load_encoder(model, corpus.vocabulary), corpus, settings.max_length)
    seen = _seen_in(corpus, train_cells, length) & _seen_in(corpus, test_cells, length)
    genes, truth, n_absent = _genes_in_cells(corpus.vocabulary, seen, labels, classes, folds)
    results, scores = [], []
    splitter = model_selection.StratifiedKFold(folds, shuffle=True, random_state=settings.seed % 2**32)
    steps = folds * settings.steps(train_cells.size)
    with progress_bar("fine-tuning", steps, "step", shown=progress) as bar:
        for train, test in splitter.split(genes, truth):
            known = np.full(corpus.vocabulary.size, UNLABELLED, np.int64)
            known[genes[train]] = truth[train]
            encoder = load_encoder(model, corpus.vocabulary)
            labeller = Labeller(encoder, corpus.vocabulary, 2, per_gene=True, seed=settings.seed)
            fine_tune(labeller, corpus, train_cells, _look_up(known), settings, bar)
            total, times = np.zeros((2, corpus.vocabulary.size))
            held_out = np.isin(np.arange(corpus.vocabulary.size), genes[test])
            for _, ids, logits in predictions(labeller, corpus, test_cells, settings):
                here = torch.from_numpy(held_out)[ids]
                found, chance = ids[here].numpy(), logits[here].softmax(-1)[:, 1].double().numpy()
                np.add.at(total, found, chance)
                np.add.at(times, found, 1)
            fold = GeneFold(genes[test], truth[test], total[genes[test]] / times[genes[test]])
            results.append(fold)
            scores.append(metrics.roc_auc_score(fold.truth, fold.score))
    return GeneClassification(classes, np.array(scores), results, n_absent)


def _look_up(table: np.ndarray) -> Callable[[np.ndarray, torch.Tensor], torch.Tensor]:
    """Give every token of a batch its entry of a table (V,)."""
    import torch

    entries = torch.from_numpy(table)
    return lambda _, ids: entries[ids]


def _two_classes(labels: Mapping[str, str]) -> tuple[str, str]:
    classes = sorted(set(labels.values()))
    if len(classes) != 2:
        raise InputError(f"gene labels must name two classes; got {len(classes)}: {', '.join(map(shown, classes[:5]))}")
    return classes[0], classes[1]


def _seen_in(corpus: Corpus, rows: np.ndarray, length: int) -> np.ndarray:
    """Return which tokens (V,) stand in some of the cells, cut to ``length`` tokens."""
    _, tokens = corpus.gather_for_training(rows, length)
    return np.bincount(tokens, minlength=corpus.vocabulary.size) > 0


def _genes_in_cells(
    vocabulary: Vocabulary, seen: np.ndarray, labels: Mapping[str, str], classes: Sequence[str], folds: int
) -> tuple[np.ndarray, np.ndarray, int]:
    """Return (token, class) of the labelled genes that are ``seen``, each once, and how many are not."""
    name_of, n_unknown = _names_of_tokens(vocabulary, labels)
    tokens = np.array(sorted(name_of), np.int64)
    truth = np.array([labels[name_of[token]] == classes[1] for token in tokens.tolist()], np.int64)
    here = seen[tokens]
    counts = np.bincount(truth[here], minlength=2)
    if counts.min() < folds:
        raise InputError(
            f"{folds} folds need as many genes of each class in the cells; found {counts[0]} {shown(classes[0])} and "
            f"{counts[1]} {shown(classes[1])} of {tokens.size + n_unknown} genes; lower folds, or bring more cells"
        )
    return tokens[here], truth[here], n_unknown + int(np.count_nonzero(~here))


def _names_of_tokens(vocabulary: Vocabulary, labels: Mapping[str, str]) -> tuple[dict[int, str], int]:
    """Return the name by which a list has each gene, and how many names the vocabulary lacks.

    A gene may be listed by its id and by its symbol, but with one class.
    """
    name_of: dict[int, str] = {}
    n_unknown = 0
    for name, label in labels.items():
        token = _token_of(vocabulary, name)
        if token is None:
            n_unknown += 1
        elif labels[first := name_of.setdefault(token, name)] != label:
            raise InputError(
                f"{shown(first)} and {shown(name)} are one gene (token {token}) with two classes, "
                f"{shown(labels[first])} and {shown(label)}; each gene must have one: correct the list, or leave the "
                "gene out"
            )
    return name_of, n_unknown


def _token_of(vocabulary: Vocabulary, gene: str) -> int | None:
    """Return a gene's token, or None where the vocabulary lacks it: lists of genes hold more than one dictionary."""
    try:
        return vocabulary.id_of(gene)
    except InputError:
        return None


def read_gene_labels(path: str | os.PathLike[str]) -> dict[str, str]:
    r"""Read classes of genes from a CSV or TSV file with a header.

    The first column has the gene's id or symbol. Either a column ``label`` names the class. Or each class has a column
    of its own that says Yes for its genes, as in Geneformer's lists of dosage-sensitive transcription factors.

    Parameters
    ----------
    path
        The file.

    Returns
    -------
    dict
        Gene → name of its class.

    Raises
    ------
    InputError
        If the file is no such table, or a gene has two classes.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> from corrmask_fast import read_gene_labels
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "genes.csv")
    ...     _ = path.write_text("gene,label\nCD3D,T cell\nMS4A1,B cell\n")
    ...     read_gene_labels(path)
    {'CD3D': 'T cell', 'MS4A1': 'B cell'}
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
        head, _, _ = text.lstrip("\n").partition("\n")
        reader = csv.reader(io.StringIO(text, newline=""), delimiter="\t" if "\t" in head else ",")
        table = [(reader.line_num, cells) for row in reader if any(cells := [cell.strip() for cell in row])]
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(
            f"{path} is no table in text: {error}; give a CSV file with a column of genes and one of labels"
        ) from error
    if len(table) < 2:
        raise InputError(f"{path} has no genes; it must be a table with a header and a line for each gene")
    (_, names), *lines = table
    rows = [[*row, *[""] * len(names)][: len(names)] for _, row in lines]
    marked = [
        j
        for j in range(1, len(names))
        if {row[j].lower() for row in rows} <= YES | NO and any(row[j].lower() in YES for row in rows)
    ]
    found: dict[str, str] = {}
    for (line, _), row in zip(lines, rows, strict=True):
        if "label" in names:
            own = [label for label in [row[names.index("label")]] if label]
        else:
            own = [names[j] for j in marked if row[j].lower() in YES]
        if len(own) != 1:
            raise InputError(
                f"{path}, line {line}: gene {shown(row[0])} has {f'{len(own)} classes' if own else 'no class'}; give a "
                "column 'label', or a column for each class that says Yes for its genes"
            )
        if found.setdefault(row[0], own[0]) != own[0]:
            raise InputError(f"{path}, line {line}: gene {shown(row[0])} has two classes; each gene must have one")
    return found
