"""Every masking strategy by its name, made through one function.

==============  ======================================================================  =====  ==========
name            what is masked together                                                 λ      needs
==============  ======================================================================  =====  ==========
random          nothing: single genes                                                   –      vocabulary
span            runs of random length (SpanBERT)                                        1      vocabulary
pmi             runs of genes that stand next to each other more often than by chance   1      PMI table
pmi-rand        the same, half the genes at random                                      0.5    PMI table
corrmask        genes and their partners in a dependency graph, half at random          0.5    graph
corrmask-100    the same, as many as there are                                          1      graph
mam             nothing: single genes, those that learned latents attend to             –      vocabulary
corrmask-mam    as corrmask, from genes that learned latents attend to                  0.5    graph
==============  ======================================================================  =====  ==========

The last two learn with the model that is trained: pretraining takes them, an audit of masks alone cannot.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

from corrmask_fast.errors import InputError, shown

if TYPE_CHECKING:
    from corrmask_fast.cells.vocabulary import Vocabulary
    from corrmask_fast.graph.dependency_graph import DependencyGraph
    from corrmask_fast.masking.base import Masker
    from corrmask_fast.masking.pmi import PMITable

__all__ = ["LEARNED_STRATEGIES", "STRATEGIES", "Strategy", "make_masker"]


class Strategy(NamedTuple):
    """How a strategy is made, and what it takes."""

    label: str  # in tables and pictures
    masker: str  # the class
    needs: str  # the argument of make_masker that it is made from
    summary: str
    fixed: dict[str, Any] = {}  # parameters that its name stands for  # noqa: RUF012 (never changed)
    refused: frozenset[str] = frozenset()  # parameters that have no meaning for it


_NO_GRAPH = frozenset({"max_partners"})
_NO_RUNS = frozenset({"npmi_min"})
_LEARNED_ALONE = frozenset({"dim", "n_latents", "n_heads", "latent_ratio"})
STRATEGIES: dict[str, Strategy] = {
    "random": Strategy(
        "Random", "RandomMasker", "vocabulary", "single genes", refused=_NO_GRAPH | {"structural_ratio", "npmi_min"}
    ),
    "span": Strategy("Span", "SpanMasker", "vocabulary", "runs of random length", refused=_NO_GRAPH | {"npmi_min"}),
    "pmi": Strategy("PMI", "PMIMasker", "pmi", "runs of associated neighbours", refused=_NO_GRAPH),
    "pmi-rand": Strategy(
        "PMI-Rand", "PMIMasker", "pmi", "half of that, half single genes", {"structural_ratio": 0.5}, _NO_GRAPH
    ),
    "corrmask": Strategy("CorrMask", "CorrMasker", "graph", "correlated genes, half single genes", refused=_NO_RUNS),
    "corrmask-100": Strategy(
        "CorrMask-100", "CorrMasker", "graph", "correlated genes", {"structural_ratio": 1.0}, _NO_RUNS
    ),
}
# Those whose masks go by a model, with which they learn.
LEARNED_STRATEGIES: dict[str, Strategy] = {
    "mam": Strategy(
        "MAM",
        "MultinomialAttentionMasker",
        "vocabulary",
        "single genes that learned latents attend to",
        refused=_NO_GRAPH | _NO_RUNS | {"structural_ratio"},
    ),
    "corrmask-mam": Strategy(
        "CorrMask-MAM",
        "MultinomialAttentionMasker",
        "graph",
        "correlated genes, from genes that learned latents attend to",
        refused=_NO_RUNS,
    ),
}


def make_masker(
    strategy: str,
    *,
    graph: DependencyGraph | None = None,
    pmi: PMITable | None = None,
    vocabulary: Vocabulary | None = None,
    **parameters: Any,
) -> Masker:
    """Return the masker of a strategy.

    Parameters
    ----------
    strategy
        A name of :data:`STRATEGIES` or of :data:`LEARNED_STRATEGIES`.
    graph, pmi, vocabulary
        What strategies are made from; give what is there, each takes what it needs. A strategy that needs a
        vocabulary takes the graph's or the table's where none is given.
    **parameters
        Those of the strategy's class, such as ``mlm_probability``, ``structural_ratio``, ``max_partners``,
        ``npmi_min``, ``seed``. A strategy that learns needs ``dim``, the width of its model.

    Raises
    ------
    InputError
        If there is no such strategy, what it needs is not given, the things given have different vocabularies, or a
        parameter has no meaning for it.

    Examples
    --------
    >>> from corrmask_fast import Vocabulary, make_masker
    >>> genes = Vocabulary(("<pad>", "<mask>", "A", "B", "C"))
    >>> type(make_masker("span", vocabulary=genes, mlm_probability=0.3)).__name__
    'SpanMasker'
    """
    every = STRATEGIES | LEARNED_STRATEGIES
    found = every.get(strategy) if isinstance(strategy, str) else None
    if found is None:
        raise InputError(f"strategy must be one of {', '.join(every)}; got {shown(strategy)}")
    learns = strategy in LEARNED_STRATEGIES
    for name in parameters:
        if name in found.refused or (name in _LEARNED_ALONE and not learns):
            raise InputError(f"{name} has no meaning for the strategy {strategy!r}; leave it out")
        if name in found.fixed:
            base = next(other for other, each in STRATEGIES.items() if each.masker == found.masker)
            raise InputError(
                f"{name} is {found.fixed[name]} in the strategy {strategy!r}; choose it freely with {base!r}"
            )
    vocabularies: dict[str, Vocabulary] = {}
    for name, each in (("graph", graph), ("PMI table", pmi)):
        if each is not None:
            vocabularies[name] = each.vocabulary
    if vocabulary is not None:
        vocabularies["vocabulary"] = vocabulary
    for one, other in pairwise(vocabularies):
        vocabularies[one].check_same(vocabularies[other], f"the {one}", f"the {other}")
    source: Any = {"graph": graph, "pmi": pmi, "vocabulary": next(iter(vocabularies.values()), None)}[found.needs]
    if source is None:
        needs = {
            "graph": "a dependency graph: give graph=DependencyGraph.load(path)",
            "pmi": "a PMI table: give pmi=PMITable.load(path)",
            "vocabulary": "a vocabulary: give vocabulary=Vocabulary.load(path)",
        }
        raise InputError(f"the strategy {strategy!r} needs {needs[found.needs]}")
    if learns and "dim" not in parameters:
        raise InputError(f"the strategy {strategy!r} needs dim, the width of the model that it learns with")
    import corrmask_fast

    masker = getattr(corrmask_fast, found.masker)
    if learns and found.needs == "graph":
        return masker(source.vocabulary, graph=source, **parameters)
    return masker(source, **found.fixed, **parameters)
