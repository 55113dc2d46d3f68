"""One yardstick for masked language models: the same frozen masks for all, beside baselines that need no model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from corrmask_fast.errors import InputError, check_integer
from corrmask_fast.evaluation.cell_annotation import types_by_abundance
from corrmask_fast.evaluation.scored_models import FREQUENCIES, Models, gene_counts, opened, scored_length
from corrmask_fast.evaluation.standard_errors import Estimate, estimate, in_bins
from corrmask_fast.masking.padded_batch import EVALUATION_EPOCH
from corrmask_fast.masking.schedules import rate_text
from corrmask_fast.masking.strategies.random import RandomMasker
from corrmask_fast.progress import progress_bar
from corrmask_fast.suggestions import entry
from corrmask_fast.tables import align, write_csv

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

    from corrmask_fast.cells.corpus import Corpus
    from corrmask_fast.masking.base import Masker

__all__ = ["MaskScores", "score_masks"]

BASELINES = UNIGRAM, CELL_TYPE = "unigram", "cell type"


@dataclass(frozen=True)
class MaskScores:
    """Losses of models and baselines at the same masked genes, as :func:`~corrmask_fast.score_masks` returns them.

    A line is a model or a baseline. n is the number of masked genes.

    Attributes
    ----------
    cells
        (n,) int64: the cell of each masked gene, by its place in the corpus.
    tokens
        (n,) int64: token of the masked gene.
    losses
        Line → (n,) float64: cross-entropy in nats. The models come in the order given, then the baselines.
    right
        Line → (n,) bool: whether the gene was the most likely one.
    frequency
        (n,) float64: share of the corpus's cells that have the gene, in [0, 1].
    types
        Cell type → (n,) bool: whether the gene's cell is of this type. The most abundant type comes first. Empty
        without labels.
    n_cells
        Number of cells in the corpus.
    masks
        How the cells were masked, as text.

    Examples
    --------
    >>> import torch
    >>> from corrmask_fast import read_corpus, score_masks
    >>> from corrmask_fast.testing import make_vocabulary
    >>> corpus = read_corpus([range(2, 10)] * 2, make_vocabulary(8))
    >>> def uniform(input_ids, attention_mask):  # gives all 10 tokens the same probability
    ...     return torch.zeros(*input_ids.shape, 10)
    >>> scores = score_masks({"uniform": uniform}, corpus, progress=False)
    >>> scores.lines, scores.loss("uniform").text(), scores.perplexity("uniform").text(1)
    (['uniform', 'unigram'], '2.303 ± 0.000', '10.0 ± 0.0')
    """

    cells: np.ndarray
    tokens: np.ndarray
    losses: Mapping[str, np.ndarray]
    right: Mapping[str, np.ndarray]
    frequency: np.ndarray
    types: Mapping[str, np.ndarray]
    n_cells: int
    masks: str

    @property
    def lines(self) -> list[str]:
        """Names of the models, then of the baselines."""
        return list(self.losses)

    def loss(self, line: str, among: np.ndarray | None = None) -> Estimate:
        """Return the mean loss of a line, with its standard error over cells.

        Parameters
        ----------
        line
            Name of a model or baseline: one of ``lines``.
        among
            (n,) bool: the masked genes that count. None: all.

        Returns
        -------
        Estimate
            In nats: ``mean``, ``error``; ``n`` and ``n_cells``: the number of masked genes and of their cells.

        Raises
        ------
        InputError
            If there is no such line.
        """
        return estimate(entry(self.losses, line, "line"), self.cells, among)

    def accuracy(self, line: str, among: np.ndarray | None = None) -> Estimate:
        """Return the share of masked genes that a line names correctly, with its standard error over cells.

        Parameters
        ----------
        line
            Name of a model or baseline: one of ``lines``.
        among
            (n,) bool: the masked genes that count. None: all.

        Returns
        -------
        Estimate
            In [0, 1]: ``mean``, ``error``; ``n`` and ``n_cells`` as of :meth:`loss`.

        Raises
        ------
        InputError
            If there is no such line.
        """
        return estimate(entry(self.right, line, "line").astype(np.float64), self.cells, among)

    def perplexity(self, line: str) -> Estimate:
        """Return exp(mean loss), with its standard error over cells.

        Parameters
        ----------
        line
            Name of a model or baseline: one of ``lines``.

        Returns
        -------
        Estimate
            ``mean``; ``error`` follows from that of the loss (delta method); ``n`` and ``n_cells`` as of :meth:`loss`.
        """
        loss = self.loss(line)
        with np.errstate(over="ignore"):
            value = float(np.exp(loss.mean))
        return loss._replace(mean=value, error=value * loss.error)

    def difference(self, line: str, other: str, among: np.ndarray | None = None) -> Estimate:
        """Return the mean of one line's loss minus another's at the same genes: a paired difference.

        Parameters
        ----------
        line, other
            Names of models or baselines: the loss of ``line`` minus that of ``other``.
        among
            (n,) bool: the masked genes that count. None: all.

        Returns
        -------
        Estimate
            In nats: ``mean``, ``error`` (standard error over cells); ``n`` and ``n_cells`` as of :meth:`loss`.
        """
        return estimate(self.losses[line] - self.losses[other], self.cells, among)

    def groups(self) -> dict[str, dict[str, np.ndarray]]:
        """Return the masked genes in groups, by frequency of the gene and by cell type.

        Returns
        -------
        dict
            ``"loss by frequency"``, and with labels ``"loss by type"`` → name of a group → (n,) bool.
        """
        tables = {"loss by frequency": in_bins(self.frequency, FREQUENCIES, percent=True)}
        return tables | ({"loss by type": dict(self.types)} if self.types else {})

    def table(self) -> str:
        """Return the scores of all lines, their differences from the first line, and the losses by group.

        Returns
        -------
        str
            Tables in plain text.
        """
        first = self.lines[0]
        rows = [["", "loss (nats)", "perplexity", "accuracy (%)", "loss less first", "masked genes"]]
        for line in self.lines:
            loss = self.loss(line)
            less = "" if line == first else self.difference(line, first).text()
            scores = [loss.text(), self.perplexity(line).text(1), self.accuracy(line).text(1, 100), less]
            rows.append([line, *scores, f"{loss.n:,}"])
        parts = [self._head(), "\n".join(align(rows))]
        titles = {"loss by frequency": "share of cells with gene", "loss by type": "cell type"}
        for name, groups in self.groups().items():
            rows = [[titles[name], *self.lines, "masked genes"]]
            for group, among in groups.items():
                if among.any():
                    losses = [self.loss(line, among).text() for line in self.lines]
                    rows.append([group, *losses, f"{np.count_nonzero(among):,}"])
            parts.append("\n".join([name.capitalize().replace("Loss", "Loss (nats)"), *align(rows)]))
        return "\n\n".join(parts)

    def _head(self) -> str:
        return (
            f"{self.cells.size:,} masked genes in {np.unique(self.cells).size:,} of {self.n_cells:,} cells; masks: "
            f"{self.masks}.\nAll lines are scored at the same genes under the same masks, so models trained with any "
            "masking compare.\n± is the standard error over cells. unigram: how often each gene occurs in the other "
            "cells."
            + (
                " cell type: the same in\nthe other cells of the type; of cells without a label the unigram's."
                if self.types
                else ""
            )
        )

    def save_csv(self, path: str | os.PathLike[str]) -> None:
        """Write the scores to a CSV file: a row for each line (table ``all``), and for each line and group.

        Parameters
        ----------
        path
            The file to write.
        """
        head = ["table", "group", "line", "masked_genes", "cells", "loss", "loss_se", "accuracy", "accuracy_se"]
        head += ["perplexity", "perplexity_se", "loss_less_first", "loss_less_first_se"]
        rows: list[list[Any]] = []
        everything = {"all": {"": np.ones(self.cells.size, np.bool_)}} | self.groups()
        for table, groups in everything.items():
            for group, among in groups.items():
                for line in self.lines:
                    loss, accuracy = self.loss(line, among), self.accuracy(line, among)
                    less = self.difference(line, self.lines[0], among)
                    row = [table, group, line, loss.n, loss.n_cells, *loss[:2], *accuracy[:2]]
                    rows.append([*row, *(self.perplexity(line)[:2] if table == "all" else ("", "")), *less[:2]])
        write_csv(path, head, rows)


def score_masks(
    models: Models,
    corpus: Corpus,
    masker: Masker | None = None,
    *,
    labels: str | None = None,
    batch_size: int = 16,
    max_length: int | None = None,
    device: str = "auto",
    progress: bool = True,
) -> MaskScores:
    """Score models at the same masked genes of the same cells, beside baselines without a model.

    Parameters
    ----------
    models
        Name → model, or folders of checkpoints (a folder's name is its path). A model is a folder, a module or a
        function. A folder holds a checkpoint of a masked language model of transformers. A module or function takes
        ``input_ids`` and ``attention_mask``, both (rows, columns) int64, and returns logits.
    corpus
        Cells that no model was trained on, of the models' vocabulary.
    masker
        How the cells are masked for all models, whatever masks they were trained with. The masks are frozen: those of
        the evaluations of :class:`~corrmask_fast.CorrMaskTrainer`. None:
        ``RandomMasker(vocabulary, mlm_probability=0.15, seed=0)``.
    labels
        Obs column with the cell types. Adds losses by type, and a baseline that knows only the type.
    batch_size
        Number of cells in a batch. It changes the scores by rounding errors only.
    max_length
        Cells are cut to this many tokens, ``<cls>`` and ``<eos>`` included. None: as many as all models can take.
    device
        Where checkpoints are loaded: ``"cpu"``, ``"cuda"``, or ``"auto"`` (a GPU if there is one). A module runs on its
        device, a function on the CPU.
    progress
        Show a progress bar on standard error.

    Returns
    -------
    MaskScores
        The loss of every model and baseline at every masked gene.

    Raises
    ------
    InputError
        If a model cannot be loaded or has another vocabulary; if the masker learns, has a schedule or has several
        graphs; if the corpus has no such column; or if no gene is masked.

    See Also
    --------
    measure_shortcut : What partners in view are worth to a model.

    Notes
    -----
    Baselines give each gene g of a cell c a probability, counted in the other cells of the corpus, cut as for the
    models. G is the number of genes.

    - **unigram**: 1 + the number of other cells with g, divided by the sum of this over all genes.
    - **cell type**: the number of other cells of c's type with g + G · the unigram's probability, divided by the sum of
      this over all genes (a Dirichlet prior of strength G). For cells without a label it is the unigram's.

    Examples
    --------
    >>> import torch
    >>> from corrmask_fast import read_corpus, score_masks
    >>> from corrmask_fast.testing import make_vocabulary
    >>> corpus = read_corpus([range(2, 10)] * 2, make_vocabulary(8))
    >>> def uniform(input_ids, attention_mask):  # gives all 10 tokens the same probability
    ...     return torch.zeros(*input_ids.shape, 10)
    >>> scores = score_masks({"uniform": uniform}, corpus, progress=False)
    >>> scores.lines, round(scores.loss("uniform").mean, 3), round(scores.loss("unigram").mean, 3)
    (['uniform', 'unigram'], 2.303, 2.079)
    """
    check_integer("batch_size", batch_size, 1)
    masker = _usable(RandomMasker(corpus.vocabulary) if masker is None else masker, corpus)
    types = None if labels is None else _types_of(corpus, labels)
    cells, tokens = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    found: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}  # line → (losses, is right) of each batch
    with opened(models, corpus.vocabulary, device, BASELINES) as scored:
        length = scored_length(scored, corpus, max_length)
        baselines = _Baselines(corpus, length, types)
        with progress_bar("scoring", corpus.n_cells * len(scored), "cell", shown=progress) as bar:
            for begin in range(0, corpus.n_cells, batch_size):
                rows = np.arange(begin, min(begin + batch_size, corpus.n_cells))
                batch = _masked(masker, *corpus.gather_for_training(rows, length))
                of_row, columns = np.nonzero(batch["labels"].numpy() != -100)
                cells.append(rows[of_row])
                tokens.append(batch["labels"].numpy()[of_row, columns])
                bar.update(rows.size * len(scored) if not of_row.size else 0)
                for model in scored if of_row.size else ():
                    found.setdefault(model.name, []).append(model.losses(batch))
                    bar.update(rows.size)
                for line, scores in baselines.scores(rows, of_row, tokens[-1]).items():
                    found.setdefault(line, []).append(scores)
    of_gene, gene = np.concatenate(cells), np.concatenate(tokens)
    if not gene.size:
        longest = min(int(corpus.lengths.max(initial=0)), length)
        raise InputError(
            f"no gene is masked at a rate of {rate_text(masker.mlm_probability)} in {corpus.n_cells} cells, the "
            f"longest of {longest} tokens; raise mlm_probability, or give other cells"
        )
    lines = [*(model.name for model in scored), *(line for line in BASELINES if line in found)]
    losses, right = ({line: np.concatenate([part[i] for part in found[line]]) for line in lines} for i in (0, 1))
    return MaskScores(
        cells=of_gene,
        tokens=gene,
        losses=losses,
        right=right,
        frequency=(baselines.counts / corpus.n_cells)[gene],
        types={} if types is None else {name: types[0][of_gene] == i for i, name in enumerate(types[1])},
        n_cells=corpus.n_cells,
        masks=f"{masker.label}, {rate_text(masker.mlm_probability)} of a cell's genes, seed {masker.seed}",
    )


def _usable(masker: Masker, corpus: Corpus) -> Masker:
    """Return the masker, if it gives every cell the same masks whatever is asked."""
    corpus.vocabulary.check_same(masker.vocabulary, "the corpus", "the masker")
    if masker.needs_model or masker.has_schedule or masker.n_graphs > 1:
        why = "learns" if masker.needs_model else "has rates that go by the step" if masker.has_schedule else (
            f"has {masker.n_graphs} graphs"
        )  # fmt: skip
        raise InputError(
            f"all models must be scored under the same masks, and this {type(masker).__name__} {why}; give a masker "
            "with fixed rates and at most one graph"
        )
    return masker


def _masked(masker: Masker, indptr: np.ndarray, tokens: np.ndarray) -> dict[str, torch.Tensor]:
    """Return a padded batch with the frozen masks of evaluation, which follow from the content of a cell alone."""
    masked = masker.mask_ragged(indptr, tokens, epoch=EVALUATION_EPOCH)
    return {name: torch.from_numpy(array) for name, array in masked._asdict().items()}


def _types_of(corpus: Corpus, column: str) -> tuple[np.ndarray, list[str]]:
    """Return ((n_cells,) number of each cell's type, -1 without a label; names, the type of most cells first)."""
    labelled, codes, names, _ = types_by_abundance(corpus, column)
    if not names:
        raise InputError(f"column {column!r} has no label in {corpus.n_cells} cells; give a column with cell types")
    types = np.full(corpus.n_cells, -1)
    types[labelled] = codes
    return types, names


class _Baselines:
    """Probabilities of genes from counts of the other cells."""

    def __init__(self, corpus: Corpus, length: int, types: tuple[np.ndarray, list[str]] | None) -> None:
        self.corpus, self.length, self.types = corpus, length, None if types is None else types[0]
        self.counts = gene_counts(corpus, length)
        if types is not None:
            of_type = [corpus.select(np.flatnonzero(types[0] == i)) for i in range(len(types[1]))]
            self.by_type = np.stack([gene_counts(cells, length) for cells in of_type])

    def scores(
        self, rows: np.ndarray, of_row: np.ndarray, tokens: np.ndarray
    ) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Return line → (losses, is right) at the masked ``tokens`` of the cells ``rows[of_row]``."""
        lo, hi = self.corpus.vocabulary.gene_range
        indptr, own = self.corpus.gather_for_training(rows, self.length)
        has = np.zeros((rows.size, self.corpus.vocabulary.size))
        has[np.repeat(np.arange(rows.size), np.diff(indptr)), own] = 1.0
        has, genes = has[:, lo:hi], tokens - lo
        unigram = self.counts[lo:hi] - has + 1.0
        unigram /= unigram.sum(1, keepdims=True)
        found = {UNIGRAM: unigram}
        if self.types is not None:
            labelled = self.types[rows] >= 0
            known = unigram.copy()  # of cells without a label: all lines are scored at the same genes
            own_type = self.types[rows[labelled]]
            known[labelled] = self.by_type[own_type, lo:hi] - has[labelled] + (hi - lo) * unigram[labelled]
            found[CELL_TYPE] = known / known.sum(1, keepdims=True)
        return {
            line: (-np.log(shares[of_row, genes]), shares.argmax(1)[of_row] == genes) for line, shares in found.items()
        }
