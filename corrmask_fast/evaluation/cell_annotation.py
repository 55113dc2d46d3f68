"""Cell types named by a fine-tuned model, the rare ones apart (paper, section 6.3 and figure 6)."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from corrmask_fast.errors import InputError, check_integer, check_number, import_extra
from corrmask_fast.evaluation.frozen_features import (
    confusion_matrix,
    f1_by_type,
    f1_of,
    gene_features,
    nearest_types,
    probe_types,
)
from corrmask_fast.progress import duration, progress_bar
from corrmask_fast.suggestions import did_you_mean, entry
from corrmask_fast.tables import align, write_csv

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from torch import nn

    from corrmask_fast.cells.corpus import Corpus
    from corrmask_fast.evaluation.fine_tuning import FineTuning

__all__ = ["CellAnnotation", "annotate_cells"]

MISSING = {"", "nan", "none", "<na>"}  # how a cell without a label is spelt


# How cells are named: the model, and what stands beside it.
FINE_TUNED = "fine-tuned"
UNTRAINED = "fine-tuned, new weights"
NEAREST = "10 nearest cells, embeddings"
NEAREST_UNTRAINED = "10 nearest cells, new weights"
LOGISTIC = "logistic regression, {}"
MAJORITY = "most common type"


@dataclass(frozen=True)
class CellAnnotation:
    """How well a model names the types of held-out cells, as :func:`~corrmask_fast.annotate_cells` returns it.

    Attributes
    ----------
    types
        n_types names, the most abundant type first.
    n_cells
        (n_types,) int64: number of labelled cells of each type.
    confusions
        Method → number of labelled cells that it learnt from → (repeats, n_types, n_types) int64. An entry is the
        number of held-out cells of the row's type that were given the column's type. The first method is
        ``"fine-tuned"``, the model, unless it had no epochs; the others are baselines.
    n_rare
        Number of types, the last ones, that count as rare.

    Examples
    --------
    >>> import numpy as np
    >>> from corrmask_fast import CellAnnotation
    >>> confusion = np.array([[[8, 0], [1, 1]]])  # one repeat: 8 T cells and 1 of 2 B cells are named correctly
    >>> found = CellAnnotation(["T cell", "B cell"], np.array([40, 10]), {"fine-tuned": {40: confusion}}, n_rare=1)
    >>> found.macro_f1.round(3), found.rare_f1.round(3)
    (array([0.804]), array([0.667]))
    """

    types: list[str]
    n_cells: np.ndarray
    confusions: Mapping[str, Mapping[int, np.ndarray]]
    n_rare: int

    @property
    def method(self) -> str:
        """Method whose figures come first, ``"fine-tuned"`` or, without epochs, the nearest cells among embeddings."""
        return next(iter(self.confusions))

    @property
    def sizes(self) -> list[int]:
        """Numbers of labelled cells that were learnt from, ascending; the last is all that are not held out."""
        return sorted(self.confusions[self.method])

    @property
    def f1(self) -> np.ndarray:
        """(repeats, n_types) float64: F1 of each type in each repeat, of ``method``."""
        return self.f1_of(self.method)

    def f1_of(self, method: str, size: int | None = None) -> np.ndarray:
        """Return F1 of each type in each repeat.

        Parameters
        ----------
        method
            A key of ``confusions``.
        size
            One of ``sizes``: the number of labelled cells that the method learnt from. None: the largest.

        Returns
        -------
        numpy.ndarray
            (repeats, n_types) float64.

        Raises
        ------
        InputError
            If there is no such method or size.
        """
        by_size = entry(self.confusions, method, "method")
        return f1_of(entry(by_size, self.sizes[-1] if size is None else size, "number of labelled cells"))

    @property
    def confusion(self) -> np.ndarray:
        """(n_types, n_types) int64: the model's confusion matrix, summed over repeats; rows are the true types."""
        return self.confusions[self.method][self.sizes[-1]].sum(0)

    @property
    def macro_f1(self) -> np.ndarray:
        """(repeats,) float64: mean F1 over all types, of ``method``."""
        return self.f1.mean(axis=1)

    @property
    def rare_f1(self) -> np.ndarray:
        """(repeats,) float64: mean F1 over the rare types, of ``method``."""
        return self.f1[:, -self.n_rare :].mean(axis=1)

    def table(self) -> str:
        """Return F1 of every type, the rarest last, and the means; ± is a standard error over repeats.

        Returns
        -------
        str
            A table in plain text. With baselines, or several numbers of labelled cells, more tables follow.
        """
        lines = [["cell type", "cells", "F1" if self.method == FINE_TUNED else f"F1 ({self.method})"]]
        for name, cells, f1 in zip(self.types, self.n_cells, self.f1.T, strict=True):
            lines.append([name, f"{cells:,}", plus_minus(f1)])
        lines.append([f"mean of the rarest {self.n_rare}", "", plus_minus(self.rare_f1)])
        lines.append(
            [f"mean of all {len(self.types)} (macro-F1)", f"{self.n_cells.sum():,}", plus_minus(self.macro_f1)]
        )
        tables = [lines]
        if len(self.confusions) > 1:
            tables.append([["named by", "macro-F1", f"rarest {self.n_rare}", "accuracy"]])
            for method, found in self.confusions.items():
                cells = found[self.sizes[-1]]
                f1, right = f1_of(cells), np.trace(cells, axis1=1, axis2=2) / cells.sum((1, 2))
                scores = f1.mean(1), f1[:, -self.n_rare :].mean(1), right
                tables[-1].append([method, *map(plus_minus, scores)])
        if len(self.sizes) > 1:
            tables.append([["macro-F1 by labelled cells", *(f"{size:,}" for size in self.sizes)]])
            for method in self.confusions:
                means = [plus_minus(self.f1_of(method, size).mean(1)) for size in self.sizes]
                tables[-1].append([method, *means])
        return "\n\n".join("\n".join(align(lines)) for lines in tables)

    def save_csv(self, path: str | os.PathLike[str]) -> None:
        """Write F1 to a CSV file: a row for each method, number of labelled cells, repeat and type.

        Parameters
        ----------
        path
            The file to write.
        """
        rows = [
            [repeat, name, cells, rank >= len(self.types) - self.n_rare, f1, method, size]
            for method, found in self.confusions.items()
            for size in sorted(found, reverse=True)
            for repeat, scores in enumerate(f1_of(found[size]).tolist())
            for rank, (name, cells, f1) in enumerate(zip(self.types, self.n_cells.tolist(), scores, strict=True))
        ]
        write_csv(path, ["repeat", "cell_type", "n_cells", "rare", "f1", "method", "labelled_cells"], rows)

    def save_confusion(self, path: str | os.PathLike[str]) -> None:
        """Write the model's confusion matrix to a CSV file: a row for each true type, a column for each given type.

        Parameters
        ----------
        path
            The file to write.
        """
        rows = [[name, *cells] for name, cells in zip(self.types, self.confusion.tolist(), strict=True)]
        write_csv(path, ["cell_type", *self.types], rows)


def annotate_cells(
    model: str | os.PathLike[str],
    corpus: Corpus,
    labels: str = "cell_type",
    *,
    test_share: float = 0.2,
    repeats: int = 1,
    min_cells: int = 10,
    n_rare: int | None = None,
    baselines: bool = False,
    sizes: Sequence[int] = (),
    settings: FineTuning | None = None,
    progress: bool = True,
) -> CellAnnotation:
    """Fine-tune a model on cell types, and score it on held-out cells.

    Parameters
    ----------
    model
        Folder of a Hugging Face checkpoint, such as a pretrained ``BertForMaskedLM``. It is not changed.
    corpus
        Tokenised cells of the model's vocabulary.
    labels
        Obs column with the cell types. Cells without a label are left out.
    test_share
        Share of cells to hold out, in (0, 1), the same of each type.
    repeats
        Number of times to split, train and score, each time with another seed.
    min_cells
        Types with fewer cells are left out.
    n_rare
        Number of the rarest types whose mean is reported separately. None: a third of the types.
    baselines
        Name the same cells by other methods too: an encoder of the same configuration with new weights, fine-tuned in
        the same way; the 10 nearest labelled cells by the model's embeddings, and by those of new weights, without
        training; logistic regression on counts if the corpus has values, else on ranks; the most common type.
    sizes
        Numbers of labelled cells for a learning curve. Each method also learns from this many cells, the same share of
        each type, and names the same held-out cells. Fine-tuning takes as many steps as with all labelled cells.
    settings
        Settings of fine-tuning. None: the defaults of :class:`~corrmask_fast.FineTuning` (5 epochs).
    progress
        Print how long the work will take, and show a progress bar, on standard error.

    Returns
    -------
    CellAnnotation
        Confusion matrices, and F1 of each type.

    Raises
    ------
    InputError
        If the corpus has no such column, fewer than two types are left, the model does not fit the corpus, or a number
        is out of range.
    MissingExtraError
        Without transformers (extra ``hf``) or scikit-learn (extra ``eval``).

    Notes
    -----
    Hacohen et al. 2026, section 6.3 and appendix C.2, after Theodoris et al. 2023.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> from transformers import BertConfig, BertForMaskedLM
    >>> from corrmask_fast import Corpus, FineTuning, annotate_cells
    >>> from corrmask_fast.testing import make_vocabulary
    >>> genes, types = make_vocabulary(16), np.array(["T cell", "B cell"] * 15)
    >>> tokens = np.tile(np.arange(2, 18), 15)  # G0 … G7 in T cells, G8 … G15 in B cells
    >>> corpus = Corpus(np.arange(0, 241, 8), tokens, genes, obs={"cell_type": types})
    >>> config = BertConfig(
    ...     vocab_size=genes.size, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8
    ... )
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     BertForMaskedLM(config).save_pretrained(folder)
    ...     found = annotate_cells(folder, corpus, settings=FineTuning(epochs=1), progress=False)
    >>> found.types, found.f1.shape
    (['B cell', 'T cell'], (1, 2))
    """
    from corrmask_fast.evaluation.fine_tuning import FineTuning

    settings = settings or FineTuning()
    check_number("test_share", test_share, 0, 1, open_ends=True)
    check_integer("repeats", repeats, 1)
    rows, codes, types = labelled_cells(corpus, labels, check_integer("min_cells", min_cells, 2))
    n_rare = max(1, len(types) // 3) if n_rare is None else check_integer("n_rare", n_rare, 1, len(types))
    of_cell = np.full(corpus.n_cells, -1, np.int64)
    of_cell[rows] = codes
    splits = stratified_splits(rows, codes, test_share, repeats, settings.seed)
    n_train = splits[0][0].size
    sizes = [*sorted({check_integer("sizes", size, 2, n_train - 1) for size in sizes}), n_train]
    tuned = repeats * len(sizes) * (2 if baselines else 1) if settings.epochs or not baselines else 0
    steps = tuned * settings.steps(n_train)
    found: dict[str, dict[int, list[np.ndarray]]] = {}
    if progress and (steps or baselines):
        from corrmask_fast.training.pretrained import load_encoder

        load_encoder(model, corpus.vocabulary)  # damaged weights are refused before an estimate is made
        a_step, a_batch = _seconds(model, corpus, rows, len(types), settings)
        batches = tuned * -(-splits[0][1].size // settings.batch_size)
        batches += 2 * -(-rows.size // settings.batch_size) if baselines else 0
        left = duration(steps * a_step + batches * a_batch)
        sys.stderr.write(f"{tuned} models to fine-tune, {steps:,} steps in all: about {left}\n")
    frozen = _frozen(model, corpus, rows, settings, progress=progress) if baselines else None
    with progress_bar("fine-tuning", steps, "step", shown=progress) as bar:
        for k, split in enumerate(splits):
            own = replace(settings, seed=(settings.seed + k) % 2**64)
            learnt = {size: few_of(split[0], of_cell, size, own.seed) for size in sizes}
            for method, name in _methods(model, corpus, of_cell, split, own, bar, frozen):
                for size in reversed(sizes):
                    cells = confusion_matrix(of_cell[split[1]], name(learnt[size]), len(types))
                    found.setdefault(method, {}).setdefault(size, []).append(cells)
    stacked = {method: {size: np.array(cells) for size, cells in of.items()} for method, of in found.items()}
    return CellAnnotation(types, np.bincount(codes), stacked, n_rare)


def _seconds(*given: Any) -> tuple[float, float]:
    from corrmask_fast.evaluation.estimate import seconds_a_batch

    return seconds_a_batch(*given)


def _methods(
    model: str | os.PathLike[str],
    corpus: Corpus,
    of_cell: np.ndarray,
    split: tuple[np.ndarray, np.ndarray],
    settings: FineTuning,
    bar: Any,
    frozen: Mapping[str, tuple[Callable[..., np.ndarray], Any]] | None,
) -> Iterator[tuple[str, Callable[[np.ndarray], np.ndarray]]]:
    """Yield methods by name: functions of the rows to learn from that return types of the rows to score.

    For the arguments see :func:`fine_tuned_f1` and :func:`_frozen`; ``frozen=None``: without baselines.
    """
    from corrmask_fast.training.pretrained import load_encoder, new_encoder

    train, test = split

    def tuned(encoder: Callable[[], nn.Module], rows: np.ndarray) -> np.ndarray:
        epochs = round(settings.steps(train.size) / replace(settings, epochs=1).steps(rows.size))
        own = replace(settings, epochs=epochs)
        return fine_tuned_types(encoder(), corpus, of_cell, (rows, test), own, bar)

    def by_features(name: Callable[..., np.ndarray], features: Any, rows: np.ndarray) -> np.ndarray:
        return name(features[place[rows]], of_cell[rows], features[place[test]])

    if settings.epochs or frozen is None:  # a head that was never trained names types at random
        yield FINE_TUNED, partial(tuned, partial(load_encoder, model, corpus.vocabulary))
    if frozen is None:
        return
    if settings.epochs:
        yield UNTRAINED, partial(tuned, partial(new_encoder, model, settings.seed))
    place = np.cumsum(of_cell >= 0) - 1  # among the labelled cells
    for method, (name, features) in frozen.items():
        yield method, partial(by_features, name, features)
    yield MAJORITY, lambda rows: np.full(test.size, np.bincount(of_cell[rows]).argmax())


def _frozen(
    model: str | os.PathLike[str], corpus: Corpus, rows: np.ndarray, settings: FineTuning, *, progress: bool
) -> dict[str, tuple[Callable[..., np.ndarray], Any]]:
    """Return, by method, how types are told from vectors, and those of the cells ``rows``: the same in every repeat."""
    from corrmask_fast.evaluation.embeddings import embed_cells
    from corrmask_fast.training.pretrained import load_encoder, new_encoder

    cells, found = corpus.take(rows), {}
    encoders = {NEAREST: load_encoder(model, corpus.vocabulary), NEAREST_UNTRAINED: new_encoder(model, settings.seed)}
    for method, encoder in encoders.items():
        embedded = embed_cells(
            encoder.to(settings.torch_device()),
            cells,
            max_length=settings.max_length,
            batch_size=settings.batch_size,
            progress=progress,
        )
        found[method] = nearest_types, embedded
    what = "counts" if corpus.has_values else "ranks"
    return found | {LOGISTIC.format(what): (probe_types, gene_features(cells))}


def few_of(rows: np.ndarray, of_cell: np.ndarray, size: int, seed: int) -> np.ndarray:
    """Return ``size`` of the rows, of each type alike; those of a smaller size are among those of a larger one."""
    if size == rows.size:
        return rows
    shuffled = np.random.default_rng(seed).permutation(rows)
    types, place = of_cell[shuffled], np.empty(rows.size)
    for code in np.unique(types):
        own = np.flatnonzero(types == code)
        place[own] = (np.arange(own.size) + 0.5) / own.size
    few = shuffled[np.argsort(place, kind="stable")[:size]]
    if np.unique(of_cell[few]).size < 2:
        raise InputError(
            f"sizes must be large enough for cells of two types; {size} cells, of each type alike, have one"
        )
    return few


def fine_tuned_f1(
    model: str | os.PathLike[str],
    corpus: Corpus,
    of_cell: np.ndarray,
    split: tuple[np.ndarray, np.ndarray],
    settings: FineTuning,
    bar: Any,
) -> np.ndarray:
    """Return F1 of each type, (n_types,), after fine-tuning on some rows of the corpus and naming others.

    ``of_cell``: (n_cells,) the type of each cell; ``split``: rows to train on, and rows to score.
    """
    from corrmask_fast.training.pretrained import load_encoder

    named = fine_tuned_types(load_encoder(model, corpus.vocabulary), corpus, of_cell, split, settings, bar)
    return f1_by_type(of_cell[split[1]], named, int(of_cell.max()) + 1)


def fine_tuned_types(
    encoder: nn.Module,
    corpus: Corpus,
    of_cell: np.ndarray,
    split: tuple[np.ndarray, np.ndarray],
    settings: FineTuning,
    bar: Any,
) -> np.ndarray:
    """Return the types of the rows to score that an encoder gives them once it is fine-tuned, in place."""
    import torch

    from corrmask_fast.evaluation.fine_tuning import Labeller, fine_tune, predictions

    train, test = split
    labeller = Labeller(encoder, corpus.vocabulary, int(of_cell.max()) + 1, per_gene=False, seed=settings.seed)
    fine_tune(labeller, corpus, train, lambda batch, _: torch.from_numpy(of_cell[batch]), settings, bar)
    return np.concatenate([logits.argmax(-1).numpy() for _, _, logits in predictions(labeller, corpus, test, settings)])


def cell_labels(corpus: Corpus, column: str) -> tuple[np.ndarray, np.ndarray]:
    """Return ((n_cells,) labels as text, indices of the cells that have one); InputError without such a column."""
    if column not in corpus.obs:
        has = ", ".join(map(repr, corpus.obs)) or "none"
        raise InputError(
            f"the corpus has no obs column {column!r} with labels{did_you_mean(column, corpus.obs)}; it has {has} "
            f"(corrmask-fast tokenize --obs {column} brings one along)"
        )
    text = np.array([str(value).strip() for value in corpus.obs[column]], object)
    return text, np.flatnonzero(np.array([value.lower() not in MISSING for value in text], np.bool_))


def labelled_cells(corpus: Corpus, column: str, min_cells: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Return (rows, code of each, names of the codes): types by falling abundance, those too rare left out."""
    labelled, codes, names, counts = types_by_abundance(corpus, column)
    n_types = int(np.count_nonzero(counts >= min_cells))
    if n_types < 2:
        raise InputError(
            f"column {column!r} has {n_types} types of at least min_cells={min_cells} cells, and naming needs two; "
            f"its {counts.size} types have {', '.join(map(str, counts[:10].tolist()))} cells"
        )
    kept = codes < n_types
    return labelled[kept], codes[kept], names[:n_types]


def types_by_abundance(corpus: Corpus, column: str) -> tuple[np.ndarray, np.ndarray, list[str], np.ndarray]:
    """Return (rows of labelled cells, code of each, names of the codes, cells of each), by falling abundance."""
    text, labelled = cell_labels(corpus, column)
    names, codes, counts = np.unique(text[labelled].astype(str), return_inverse=True, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    return labelled, np.argsort(order)[codes], [str(names[i]) for i in order], counts[order]


def stratified_splits(
    rows: np.ndarray, codes: np.ndarray, test_share: float, repeats: int, seed: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return (rows to train on, rows to score) for each repeat, of every type alike."""
    model_selection = import_extra("sklearn.model_selection", "eval")
    splitter = model_selection.StratifiedShuffleSplit(repeats, test_size=test_share, random_state=seed % 2**32)
    try:
        return [(rows[train], rows[test]) for train, test in splitter.split(rows, codes)]
    except ValueError as error:
        raise InputError(
            f"{rows.size} cells of {codes.max() + 1} types cannot be split with test_share={test_share}: {error}"
        ) from error


def plus_minus(values: np.ndarray) -> str:
    """Return a mean, with its standard error where there are several values."""
    if values.size == 1:
        return f"{values[0]:.3f}"
    return f"{values.mean():.3f} ± {values.std(ddof=1) / np.sqrt(values.size):.3f}"
