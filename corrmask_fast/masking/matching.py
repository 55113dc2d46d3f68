"""Weights of genes by which random masks cover each gene as often as another strategy does: its control of frequency.

    coverage of a gene  =  P(masked | in the cell)

CorrMask differs from Random in two ways: partners are masked together, and some genes are masked far more often. Random
masks by these weights have the second difference and not the first.

The weights are fitted in rounds: masks are drawn by them and counted, and each weight is moved by the ratio of the
coverage that is wanted to the one reached. A round takes more draws than the one before, for its noise stays in the
weights. Steps are made of +, −, ×, / and square roots, which every machine rounds alike: the weights are the same to
the bit.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from corrmask_fast.cells.corpus import Corpus
from corrmask_fast.errors import InputError, check_integer, shown
from corrmask_fast.masking.engine.tables import LARGEST_RATIO
from corrmask_fast.masking.strategies.weighted import WeightedMasker
from corrmask_fast.progress import progress_bar

if TYPE_CHECKING:
    from typing import Any

    from corrmask_fast.cells.vocabulary import Vocabulary
    from corrmask_fast.masking.base import Masker

__all__ = ["MatchedWeights", "matched_weights"]

CHUNK_CELLS = 512  # masked at a time: bounds memory, changes no result
EPOCHS = 32  # of masks in which a coverage is measured
FIRST_EPOCHS = 4  # of the first two rounds; doubled after every second round
PRIOR_CELLS = 5  # added to each gene's, masked at the mean rate: what is counted in few cells moves a weight less
FIRST_EPOCH = 2**40  # of these masks: no epoch of training or of evaluation has the same
LEAST_CELLS = 50  # in which a gene must stand for its error to say something


@dataclass(frozen=True, eq=False)
class MatchedWeights:
    """Weights for :class:`~corrmask_fast.WeightedMasker`, and how well they match another strategy's frequencies.

    :func:`~corrmask_fast.matched_weights` returns it. The coverage of a gene is times masked / times present. Coverages
    are measured in 32 epochs of masks of the cells of the fit, by draws that the weights were not fitted on.

    Attributes
    ----------
    weights
        (V,) float64, > 0: the weight of each token. A gene that is in none of the cells has the median weight of the
        others.
    wanted
        (V,) float64: coverage under the strategy that is matched; NaN for a gene in no cell.
    reached
        (V,) float64: coverage under random masks by these weights; NaN likewise.
    present
        (V,) int64: number of cells that hold the gene.
    wanted_again
        (V,) float64: like ``wanted``, measured a second time by other draws. The difference is noise alone.
    n_cells
        Number of cells of the fit.
    label
        Name of the strategy that is matched.
    vocabulary
        The :class:`~corrmask_fast.Vocabulary` of the V tokens.

    Examples
    --------
    >>> import numpy as np
    >>> from corrmask_fast import CorrMasker, DependencyGraph, Vocabulary, matched_weights, read_corpus
    >>> genes = Vocabulary(("<pad>", "<mask>", *"ABCDEFGH"))
    >>> rng = np.random.default_rng(0)
    >>> cells = read_corpus([(2 + rng.permutation(8)).tolist() for _ in range(100)], genes)
    >>> graph = DependencyGraph.from_edges([("A", "B"), ("A", "C"), ("A", "D")], genes)
    >>> matched = matched_weights(CorrMasker(graph, mlm_probability=0.5), cells, progress=False)
    >>> genes.name_of(matched.wanted[2:].argmax() + 2)  # the hub is masked most often
    'A'
    """

    weights: np.ndarray
    wanted: np.ndarray
    reached: np.ndarray
    present: np.ndarray
    wanted_again: np.ndarray = field(repr=False)
    n_cells: int
    label: str
    vocabulary: Vocabulary = field(repr=False)

    @property
    def mean_error(self) -> float:
        """Mean of abs(reached − wanted) over the genes of all cells.

        A gene counts as often as it occurs.
        """
        return self._mean(self.reached)

    @property
    def mean_noise(self) -> float:
        """Mean of abs(wanted_again − wanted) over the genes of all cells.

        It is what ``mean_error`` would be if all weights were exact.
        """
        return self._mean(self.wanted_again)

    @property
    def random_error(self) -> float:
        """Mean of abs(mean rate − wanted) over the genes of all cells.

        It is the error of masks that cover all genes alike.
        """
        genes = self.present > 0
        rate = float(self.wanted[genes] @ self.present[genes] / max(int(self.present.sum()), 1))
        return self._mean(np.full_like(self.wanted, rate))

    @property
    def largest_error(self) -> float:
        """Largest abs(reached − wanted) of a gene that is in 50 or more cells.

        If no gene is in so many: of the genes in the largest number of cells.
        """
        return abs(float(self.reached[self.worst] - self.wanted[self.worst]))

    @property
    def worst(self) -> int:
        """Token id of the gene with the largest error."""
        error = np.where(self.present >= min(LEAST_CELLS, int(self.present.max())), abs(self.reached - self.wanted), -1)
        return int(np.nanargmax(error))

    def summary(self) -> str:
        """Return how far the coverages are from those that were wanted, in words.

        Returns
        -------
        str
            One line, in percentage points.
        """
        return (
            f"Random, matched: how often genes are masked differs from {self.label} by {100 * self.mean_error:.2f} "
            f"percentage points on average ({self.label} measured twice: {100 * self.mean_noise:.2f}; Random: "
            f"{100 * self.random_error:.2f}), by {100 * self.largest_error:.1f} at most "
            f"({self.vocabulary.name_of(self.worst)}, in {self.present[self.worst]:,} of {self.n_cells:,} cells)"
        )

    def _mean(self, other: np.ndarray) -> float:
        genes = self.present > 0
        error = np.abs(other - self.wanted)[genes]
        return float(error @ self.present[genes] / max(int(self.present.sum()), 1))


def matched_weights(
    masker: Masker, corpus: Corpus, *, n_cells: int = 2500, rounds: int = 8, seed: int = 0, progress: bool = True
) -> MatchedWeights:
    """Fit weights by which :class:`~corrmask_fast.WeightedMasker` masks each gene as often as ``masker`` does.

    If a strategy beats this control, its gain does not come from masking some genes more often than others.

    Parameters
    ----------
    masker
        The strategy to match. Its rate and seed are those of the fit; a scheduled rate is taken at
        the masker's current step.
    corpus
        A :class:`~corrmask_fast.Corpus` of the same vocabulary, in which coverages are counted.
    n_cells
        Fit on a sample of this many cells (all if there are no more). 2 500 cells of 2 000 genes take about 10 seconds
        on two cores.
    rounds
        Steps of the fit, >= 1. The draws of a round double with every second one, and so does its time.
    seed
        Of the sample of cells.
    progress
        Show a progress bar.

    Returns
    -------
    MatchedWeights
        The weights, and how well they match. Bit-identical for the same masker, cells and seed. A weight is at least
        2^−20 of the largest. Genes in few cells, whose coverage is mostly noise, have weights nearer to that of a gene
        masked at the mean rate.

    Raises
    ------
    InputError
        If ``corpus`` is no Corpus (a stream is none) or has no cells, vocabularies differ, or a number is out of range.

    Examples
    --------
    >>> import numpy as np
    >>> from corrmask_fast import CorrMasker, DependencyGraph, Vocabulary, WeightedMasker, matched_weights, read_corpus
    >>> genes = Vocabulary(("<pad>", "<mask>", *"ABCDEFGH"))
    >>> rng = np.random.default_rng(0)
    >>> cells = read_corpus([(2 + rng.permutation(8)).tolist() for _ in range(300)], genes)
    >>> graph = DependencyGraph.from_edges([("A", "B"), ("A", "C"), ("A", "D")], genes)
    >>> corrmask = CorrMasker(graph, mlm_probability=0.5)
    >>> matched = matched_weights(corrmask, cells, progress=False)
    >>> matched.mean_error < matched.random_error / 10
    True
    >>> control = WeightedMasker(genes, matched.weights, mlm_probability=0.5)
    """
    if not isinstance(corpus, Corpus):
        raise InputError(
            f"weights are fitted on a Corpus, whose cells are masked many times; got {shown(corpus)}; "
            "read_corpus(path) opens files, read_corpus(list of cells) takes a sample of a stream"
        )
    masker.vocabulary.check_same(corpus.vocabulary, "the masker", "the corpus")
    check_integer("rounds", rounds, 1)
    if corpus.n_cells == 0:
        raise InputError("weights cannot be fitted on an empty corpus; give at least one cell")
    rows = corpus.sample_rows(n_cells, seed)
    lengths = [FIRST_EPOCHS << round_ // 2 for round_ in range(rounds)]
    with progress_bar("weights", 3 * EPOCHS + sum(lengths), "epoch", shown=progress) as bar:
        counted = _Coverage(corpus, rows, bar)
        times = counted.masked(masker, EPOCHS)
        wanted_again = counted.of(times, EPOCHS)
        mean = float(times.sum() / max(int(counted.present.sum()) * EPOCHS, 1))
        target = counted.of(times, EPOCHS, mean)
        weights = target / (1 - target) if mean > 0 else np.ones(corpus.vocabulary.size)
        weights = _limited(weights, corpus.vocabulary)
        for epochs in lengths:
            by_weight = _weighted(masker, weights)
            reached = counted.of(counted.masked(by_weight, epochs), epochs, mean)
            if mean > 0:
                # The second factor: of a gene that is nearly always masked, what is left over matters.
                ratio = target / reached * np.sqrt((1 - reached) / (1 - target))
                root = np.sqrt(ratio)
                weights = _limited(weights * root * np.sqrt(root), corpus.vocabulary)  # a step of ratio^0.75
        some = counted.present > 0
        weights[~some] = np.median(weights[some]) if some.any() else 1.0
        return MatchedWeights(
            weights,
            counted.of(counted.masked(masker, EPOCHS), EPOCHS),
            counted.of(counted.masked(_weighted(masker, weights), EPOCHS), EPOCHS),
            counted.present,
            wanted_again,
            int(rows.size),
            masker.label,
            corpus.vocabulary,
        )


def _limited(weights: np.ndarray, vocabulary: Vocabulary) -> np.ndarray:
    """Raise weights that are too far below the largest."""
    lo, hi = vocabulary.gene_range
    return np.maximum(weights, weights[lo:hi].max() / LARGEST_RATIO)


def _weighted(masker: Masker, weights: np.ndarray) -> WeightedMasker:
    """Return random masks by weights, at the rate that ``masker`` has now."""
    low, high = masker.current_rates()[0]
    rate = low if low == high else (low, high)
    return WeightedMasker(masker.vocabulary, weights, mlm_probability=rate, seed=masker.seed)


class _Coverage:
    """Counts how often genes are masked in the same cells, each time with draws that were not used before."""

    def __init__(self, corpus: Corpus, rows: np.ndarray, bar: Any) -> None:
        parts = (rows[begin : begin + CHUNK_CELLS] for begin in range(0, rows.size, CHUNK_CELLS))
        self.chunks = [corpus.gather_for_training(part) for part in parts]
        self.genes, self.size = corpus.vocabulary.gene_range, corpus.vocabulary.size
        self.present = sum((self._count(tokens) for _, tokens in self.chunks), np.zeros(self.size, np.int64))
        self.bar, self.epoch = bar, FIRST_EPOCH

    def masked(self, masker: Masker, epochs: int) -> np.ndarray:
        """(V,) int64: how often each gene is masked in so many epochs."""
        times = np.zeros(self.size, np.int64)
        for epoch in range(self.epoch, self.epoch + epochs):
            for indptr, tokens in self.chunks:
                labels = masker.mask_ragged(indptr, tokens, epoch=epoch, marks_only=True, packed=True).labels
                times += self._count(labels[labels >= 0])
            self.bar.update()
        self.epoch += epochs
        return times

    def of(self, times: np.ndarray, epochs: int, mean: float | None = None) -> np.ndarray:
        """(V,) float64: coverages; with a ``mean`` as if each gene were in a few more cells and masked so often."""
        extra = 0 if mean is None else PRIOR_CELLS
        with np.errstate(invalid="ignore"):
            return (times + extra * epochs * (mean or 0.0)) / ((self.present + extra) * epochs)

    def _count(self, tokens: np.ndarray) -> np.ndarray:
        times = np.bincount(tokens, minlength=self.size)
        times[: self.genes[0]] = times[self.genes[1] :] = 0  # <cls>, <eos>
        return times
