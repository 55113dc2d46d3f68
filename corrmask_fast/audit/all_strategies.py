"""Every strategy audited side by side on the same cells, with its controls.

==========================  =========================================================================================
line                        what it is
==========================  =========================================================================================
Random (lambda = 0)         the control of the others: with ``structural_ratio=0`` each strategy without weights masks
                            just these columns, since draws belong to cells and not to strategies
each other strategy         as its name says (``masking/strategies``), with its own λ; gene sets where they are given
CorrMask, rewired graph     CorrMask by a graph of the same degrees and other partners, judged by the true graph: what
                            masking hubs more often, and together, does by itself
Random, matched             single genes, each as often as CorrMask masks it: what its frequencies do by themselves
maskers of your own         as they are made; Random is their control if they have its ``seed`` and rate, and no weights
==========================  =========================================================================================

Multinomial attention masking is left out: what it masks depends on a trained model. So is weighted masking, which needs
weights: give it as a masker of your own.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from corrmask_fast.audit.masks import audit_strategies, masks_of
from corrmask_fast.errors import InputError, check_integer
from corrmask_fast.masking.factory import make_masker
from corrmask_fast.masking.schedules import Schedule
from corrmask_fast.masking.strategies import CONTROL, STRATEGIES

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Mapping, Sequence

    from corrmask_fast.audit.report import AuditReport
    from corrmask_fast.cells.corpus import Corpus
    from corrmask_fast.graph.dependency_graph import DependencyGraph
    from corrmask_fast.masking.base import Masker, RateLike
    from corrmask_fast.masking.pmi_table import PMITable

__all__ = ["ALL_CONTROL", "audit_all_strategies"]

ALL_CONTROL = f"{STRATEGIES[CONTROL].label} (lambda = 0)"


def audit_all_strategies(
    corpus: Corpus,
    graph: DependencyGraph,
    pmi: PMITable | None = None,
    *,
    sets: Mapping[str, Iterable[int | str]] | str | os.PathLike[str] | None = None,
    maskers: Sequence[Masker] = (),
    mlm_probability: RateLike = 0.15,
    max_partners: int = 5,
    npmi_min: float = 0.1,
    step: int = 0,
    epochs: int = 1,
    n_cells: int | None = None,
    seed: int = 0,
    progress: bool = True,
) -> AuditReport:
    """Audit all strategies that need no model on the same cells, with the same draws, against one graph.

    Parameters
    ----------
    corpus
        The :class:`~corrmask_fast.Corpus` that is masked.
    graph
        The :class:`~corrmask_fast.DependencyGraph` whose neighbours count as partners, and by which CorrMask masks.
    pmi
        The :class:`~corrmask_fast.PMITable` of PMI masking. None: counted from the whole corpus.
    sets
        Gene sets, as :class:`~corrmask_fast.GeneSetMasker` takes them. None: the report has no such row.
    maskers
        More maskers, such as a :class:`~corrmask_fast.FunctionMasker`: a row each, by its ``label``.
    mlm_probability, max_partners, npmi_min
        Of the maskers, where they have a meaning; see their classes. λ is what a strategy's name stands for.
    step
        Training step whose rates are audited, >= 0, where ``mlm_probability`` is a schedule; the report names it.
    epochs
        How often each cell is masked, >= 1, anew each time.
    n_cells
        Audit a sample of this many cells. None: all.
    seed
        Of masks, sample and rewiring, in [0, 2**64).
    progress
        Show progress bars.

    Returns
    -------
    AuditReport
        A row for each strategy; ``controls`` are Random, and the controls of CorrMask. A note tells how well the
        frequencies of *Random, matched* match.

    Raises
    ------
    InputError
        If the corpus is empty, vocabularies differ, two rows would have the same name, a masker needs a model, or a
        parameter is out of range.

    Notes
    -----
    Three rows are controls. With λ = 0 every strategy without weights masks just what *Random (lambda = 0)* masks.
    *CorrMask, rewired graph* masks by a graph of the same degrees and other partners, and is judged by the true graph.
    *Random, matched* masks single genes, each as often as CorrMask does. The other rows are all strategies of
    :func:`~corrmask_fast.make_masker` but MAM, which depends on a trained model, and weighted masking, which needs
    weights: give that as one of ``maskers``.

    Examples
    --------
    >>> from corrmask_fast import DependencyGraph, Vocabulary, audit_all_strategies, read_corpus
    >>> genes = Vocabulary(("<pad>", "<mask>", *"ABCDEFGH"))
    >>> cells = read_corpus([[2, 3, 4, 5, 6, 7, 8, 9], [5, 4, 7, 2, 8, 3, 9, 6]], genes)
    >>> graph = DependencyGraph.from_edges([("A", "B"), ("C", "D"), ("E", "F")], genes)
    >>> report = audit_all_strategies(cells, graph, mlm_probability=0.25, progress=False)
    >>> [row.name for row in report][-5:]
    ['CorrMask', 'CorrMask, rewired graph', 'Random, matched', 'CorrMask-100', 'CorrMask-balanced']
    >>> report["CorrMask-100"].hit_rate
    1.0
    """
    from corrmask_fast.masking.pmi_table import PMITable

    graph.vocabulary.check_same(corpus.vocabulary, "the graph", "the corpus")
    check_integer("step", step, 0, 2**63 - 1)  # before the table is counted
    check_integer("epochs", epochs, 1)
    if pmi is None:
        pmi = PMITable.from_corpus(corpus, seed=seed, progress=progress)
    own = {"max_partners": max_partners, "npmi_min": npmi_min}
    scheduled = isinstance(mlm_probability, Schedule)
    rate = mlm_probability(step) if isinstance(mlm_probability, Schedule) else mlm_probability

    def masker(name: str) -> Masker:
        given: dict[str, Any] = {key: value for key, value in own.items() if key in STRATEGIES[name].takes}
        sources: dict[str, Any] = {"graph": graph, "pmi": pmi, "corpus": corpus, "sets": sets}
        return make_masker(name, **sources, mlm_probability=rate, seed=seed, **given)

    every = {
        ALL_CONTROL if name == CONTROL else each.label: masker(name)
        for name, each in STRATEGIES.items()
        if not each.requires and (each.needs != "gene_sets" or sets is not None)
    }
    for more in maskers:
        more.vocabulary.check_same(corpus.vocabulary, f"the masker {more.label}", "the corpus")
        if more.label in every:
            raise InputError(f"two lines cannot be called {more.label!r}; give the masker another name")
        more.set_step(step)
        every[more.label] = more
    report = audit_strategies(
        {name: masks_of(each) for name, each in every.items()},
        graph,
        corpus,
        controls=[ALL_CONTROL, *(each.label for each in STRATEGIES.values() if each.control)],
        epochs=epochs,
        n_cells=n_cells,
        seed=seed,
        progress=progress,
    )
    notes = tuple(each.note for each in every.values() if each.note)
    return replace(report, step=step if scheduled else None, notes=notes)
