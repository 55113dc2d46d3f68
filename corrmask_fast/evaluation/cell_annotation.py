"""Cell types named by a fine-tuned model, the rare ones apart (paper, section 6.3 and figure 6)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from corrmask_fast.errors import InputError, check_integer, check_number, import_extra
from corrmask_fast.evaluation.frozen_features import f1_by_type
from corrmask_fast.progress import progress_bar
from corrmask_fast.tables import align, write_csv

if TYPE_CHECKING:
    import os

    from corrmask_fast.cells.corpus import Corpus
    from corrmask_fast.evaluation.fine_tuning import FineTuning

__all__ = ["CellAnnotation", "annotate_cells"]

MISSING = {"", "nan", "none", "<na>"}  # how a cell without a label is spelt


@dataclass(frozen=True)
class CellAnnotation:
    """How well cell types are named in cells that were not trained on.

    Attributes
    ----------
    types
        (n_types,) names, the most abundant first.
    n_cells
        (n_types,) labelled cells of each.
    f1
        (repeats, n_types): F1 of each type in each repeat.
    n_rare
        So many of the last types count as rare.
    """

    types: list[str]
    n_cells: np.ndarray
    f1: np.ndarray
    n_rare: int

    @property
    def macro_f1(self) -> np.ndarray:
        """(repeats,): mean F1 over types."""
        return self.f1.mean(axis=1)

    @property
    def rare_f1(self) -> np.ndarray:
        """(repeats,): mean F1 over the rare types."""
        return self.f1[:, -self.n_rare :].mean(axis=1)

    def table(self) -> str:
        """Return F1 of every type, the rarest last, and the means; ± is a standard error over repeats."""
        lines = [["cell type", "cells", "F1"]]
        for name, cells, f1 in zip(self.types, self.n_cells, self.f1.T, strict=True):
            lines.append([name, f"{cells:,}", plus_minus(f1)])
        lines.append([f"mean of the rarest {self.n_rare}", "", plus_minus(self.rare_f1)])
        lines.append(
            [f"mean of all {len(self.types)} (macro-F1)", f"{self.n_cells.sum():,}", plus_minus(self.macro_f1)]
        )
        return "\n".join(align(lines))

    def save_csv(self, path: str | os.PathLike[str]) -> None:
        """Write F1 of each type in each repeat."""
        rows = [
            [repeat, name, cells, rank >= len(self.types) - self.n_rare, f1]
            for repeat, scores in enumerate(self.f1.tolist())
            for rank, (name, cells, f1) in enumerate(zip(self.types, self.n_cells.tolist(), scores, strict=True))
        ]
        write_csv(path, ["repeat", "cell_type", "n_cells", "rare", "f1"], rows)


def annotate_cells(
    model: str | os.PathLike[str],
    corpus: Corpus,
    labels: str = "cell_type",
    *,
    test_share: float = 0.2,
    repeats: int = 1,
    min_cells: int = 10,
    n_rare: int | None = None,
    settings: FineTuning | None = None,
    progress: bool = True,
) -> CellAnnotation:
    """Fine-tune a classification head on cell types, and score it on cells held out.

    Parameters
    ----------
    model
        Folder of a Hugging Face checkpoint, such as a pretrained ``BertForMaskedLM``; its weights stay as they are.
    corpus
        Tokenised cells of the model's vocabulary.
    labels
        The obs column with the cell types. Cells without a label are left out.
    test_share
        Share of cells held out, of each type alike.
    repeats
        Times to split, train and score, with seeds of their own.
    min_cells
        Types with fewer cells are left out.
    n_rare
        So many of the rarest types are averaged apart; None: a third of them.
    settings
        Of fine-tuning; None: 5 epochs of :class:`~corrmask_fast.evaluation.fine_tuning.FineTuning`.
    progress
        Show a progress bar on standard error.

    Raises
    ------
    InputError
        If the corpus has no such column, fewer than two types are left, or the model does not fit the corpus.
    MissingExtraError
        Without transformers (extra ``hf``) or scikit-learn (extra ``eval``).

    Notes
    -----
    Hacohen et al. 2026, section 6.3 and appendix C.2, after Theodoris et al. 2023.
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
    steps = sum(settings.steps(train.size) for train, _ in splits)
    with progress_bar("fine-tuning", steps, "step", shown=progress) as bar:
        scores = [
            fine_tuned_f1(model, corpus, of_cell, split, replace(settings, seed=(settings.seed + k) % 2**64), bar)
            for k, split in enumerate(splits)
        ]
    return CellAnnotation(types, np.bincount(codes), np.array(scores), n_rare)


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
    import torch

    from corrmask_fast.evaluation.fine_tuning import Labeller, fine_tune, predictions
    from corrmask_fast.training.pretrained import load_encoder

    train, test = split
    n_types = int(of_cell.max()) + 1
    labeller = Labeller(
        load_encoder(model, corpus.vocabulary), corpus.vocabulary, n_types, per_gene=False, seed=settings.seed
    )
    fine_tune(labeller, corpus, train, lambda batch, _: torch.from_numpy(of_cell[batch]), settings, bar)
    logits = [logits.argmax(-1).numpy() for _, _, logits in predictions(labeller, corpus, test, settings)]
    return f1_by_type(of_cell[test], np.concatenate(logits), n_types)


def cell_labels(corpus: Corpus, column: str) -> tuple[np.ndarray, np.ndarray]:
    """Return ((n_cells,) labels as text, indices of the cells that have one); InputError without such a column."""
    if column not in corpus.obs:
        has = ", ".join(map(repr, corpus.obs)) or "none"
        raise InputError(
            f"the corpus has no obs column {column!r} with labels; it has {has} "
            f"(corrmask-fast tokenize --obs {column} brings one along)"
        )
    text = np.array([str(value).strip() for value in corpus.obs[column]], object)
    return text, np.flatnonzero(np.array([value.lower() not in MISSING for value in text], np.bool_))


def labelled_cells(corpus: Corpus, column: str, min_cells: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Return (rows, code of each, names of the codes): types by falling abundance, those too rare left out."""
    text, labelled = cell_labels(corpus, column)
    names, codes, counts = np.unique(text[labelled].astype(str), return_inverse=True, return_counts=True)
    kept = np.flatnonzero(counts >= min_cells)
    if kept.size < 2:
        raise InputError(
            f"column {column!r} has {kept.size} types of at least min_cells={min_cells} cells, and naming needs two; "
            f"its {names.size} types have {', '.join(map(str, sorted(counts.tolist(), reverse=True)[:10]))} cells"
        )
    order = kept[np.argsort(-counts[kept], kind="stable")]
    place = np.full(names.size, -1, np.int64)
    place[order] = np.arange(order.size)
    own = place[codes]
    return labelled[own >= 0], own[own >= 0], [str(names[i]) for i in order]


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
