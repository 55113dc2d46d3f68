"""Random masking that covers each gene as often as CorrMask does: the control of CorrMask's frequencies."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from corrmask_fast.errors import InputError
from corrmask_fast.masking.matching import matched_weights
from corrmask_fast.masking.schedules import Schedule
from corrmask_fast.masking.strategies.corrmask import CorrMasker
from corrmask_fast.masking.strategies.weighted import WeightedMasker

if TYPE_CHECKING:
    from corrmask_fast.cells.corpus import Corpus
    from corrmask_fast.graph.dependency_graph import DependencyGraph
    from corrmask_fast.masking.base import RateLike

__all__ = ["MatchedRandomMasker"]


class MatchedRandomMasker(WeightedMasker):
    """Mask single genes at random, each as often as CorrMask masks it in this corpus: a control of CorrMask.

    CorrMask masks genes with many partners far more often than others. This control does too, and masks no partners
    together. What CorrMask gains over this control does not come from how often each gene is masked over all cells.

    Parameters
    ----------
    graph
        The :class:`~corrmask_fast.DependencyGraph` of the CorrMask that is matched.
    corpus
        A :class:`~corrmask_fast.Corpus` with the graph's vocabulary. :func:`~corrmask_fast.matched_weights` fits the
        weights on a sample of 2 500 of its cells.
    mlm_probability
        p, in (0, 1), of the CorrMask that is matched and of this masker. A number or a range, no schedule.
    structural_ratio
        λ, in [0, 1], of the CorrMask that is matched. A number or a range, no schedule.
    max_partners, partners
        Of the CorrMask that is matched: see :class:`~corrmask_fast.CorrMasker`.
    seed
        Of both maskers' draws and of the sample, in [0, 2**64).
    **replacement
        ``mask_replace_prob``, ``random_replace_prob``, ``replace`` and ``validate``, as for
        :class:`~corrmask_fast.CorrMasker`.

    Attributes
    ----------
    matched
        :class:`~corrmask_fast.MatchedWeights`: the weights, and how far the coverages are from CorrMask's.
    matches
        dict: ``structural_ratio`` and ``max_partners`` of the CorrMask that is matched.

    Raises
    ------
    InputError
        As :class:`~corrmask_fast.CorrMasker` and :func:`~corrmask_fast.matched_weights` do. If a rate is a schedule:
        the coverages would change with the step, and the weights do not.

    Examples
    --------
    >>> import numpy as np
    >>> from corrmask_fast import DependencyGraph, MatchedRandomMasker, Vocabulary, read_corpus
    >>> genes = Vocabulary(("<pad>", "<mask>", *"ABCDEFGH"))
    >>> rng = np.random.default_rng(0)
    >>> cells = read_corpus([(2 + rng.permutation(8)).tolist() for _ in range(100)], genes)
    >>> graph = DependencyGraph.from_edges([("A", "B"), ("A", "C"), ("A", "D")], genes)  # A is a hub
    >>> masker = MatchedRandomMasker(graph, cells, mlm_probability=0.5)
    >>> bool(masker.weights[genes.id_of("A")] > 2 * masker.weights[genes.id_of("H")])
    True
    """

    label = "Random, matched"

    def __init__(
        self,
        graph: DependencyGraph,
        corpus: Corpus,
        *,
        mlm_probability: RateLike = 0.15,
        structural_ratio: RateLike = 0.5,
        max_partners: int = 5,
        partners: str = "uniform",
        seed: int = 0,
        **replacement: Any,
    ) -> None:
        for name, rate in (("mlm_probability", mlm_probability), ("structural_ratio", structural_ratio)):
            if isinstance(rate, Schedule):
                raise InputError(
                    f"{name} must be a number or a range in random-matched, whose weights are fitted once; got a "
                    "schedule over steps"
                )
        corrmask = CorrMasker(
            graph,
            mlm_probability=mlm_probability,
            structural_ratio=structural_ratio,
            max_partners=max_partners,
            partners=partners,
            seed=seed,
        )
        matched = matched_weights(corrmask, corpus, seed=seed, progress=False)
        super().__init__(
            corrmask.vocabulary, matched.weights, mlm_probability=mlm_probability, seed=seed, **replacement
        )
        self.matched = matched
        self.matches = {"structural_ratio": corrmask.structural_ratio, "max_partners": corrmask.max_partners}
        self.note = matched.summary()
