"""``make_masker``: every strategy by its name, made through one function."""

from __future__ import annotations

import importlib
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from corrmask_fast.errors import InputError, shown
from corrmask_fast.masking.strategies import LEARNED_STRATEGIES, OF_MODEL, OPTIONS, SOURCES, STRATEGIES
from corrmask_fast.suggestions import did_you_mean

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Mapping

    from corrmask_fast.cells.corpus import Corpus
    from corrmask_fast.cells.vocabulary import Vocabulary
    from corrmask_fast.graph.dependency_graph import DependencyGraph
    from corrmask_fast.masking.base import Masker
    from corrmask_fast.masking.pmi_table import PMITable

__all__ = ["make_masker"]


def make_masker(
    strategy: str,
    *,
    graph: DependencyGraph | None = None,
    pmi: PMITable | None = None,
    vocabulary: Vocabulary | None = None,
    corpus: Corpus | None = None,
    sets: Mapping[str, Iterable[int | str]] | str | os.PathLike[str] | None = None,
    **parameters: Any,
) -> Masker:
    """Return the masker of a strategy by its name.

    Parameters
    ----------
    strategy
        One of the names in the notes. Or a strategy of your own, ``"package.module:Name"``: the module is imported,
        which runs its code, and ``Name(vocabulary, **parameters)`` must return a masker, such as a
        :class:`~corrmask_fast.FunctionMasker`.
    graph
        A :class:`~corrmask_fast.DependencyGraph`, or a list of them.
    pmi
        A :class:`~corrmask_fast.PMITable`.
    vocabulary
        A :class:`~corrmask_fast.Vocabulary`. None: that of the graph, table or corpus.
    corpus
        A :class:`~corrmask_fast.Corpus`, on which ``"random-matched"`` is fitted.
    sets
        Gene sets, as :class:`~corrmask_fast.GeneSetMasker` takes them.
    **parameters
        Those of the strategy's class, such as ``mlm_probability``, ``structural_ratio``, ``max_partners``,
        ``npmi_min``, ``seed``.

    Returns
    -------
    Masker
        A masker of the strategy's class.

    Raises
    ------
    InputError
        If there is no such strategy, what it needs is not given, the things given have different vocabularies, a
        parameter has no meaning for it or is out of range, or a strategy of your own cannot be imported, fails or makes
        no masker.

    Notes
    -----
    Give whatever is there: each strategy takes what it needs.

    ======================  ==================================================  ================================
    name                    class                                               needs
    ======================  ==================================================  ================================
    ``random``              :class:`~corrmask_fast.RandomMasker`                a vocabulary
    ``weighted``            :class:`~corrmask_fast.WeightedMasker`              a vocabulary, ``weights``
    ``span``                :class:`~corrmask_fast.SpanMasker`                  a vocabulary
    ``pmi``                 :class:`~corrmask_fast.PMIMasker`, λ = 1            a PMI table
    ``pmi-rand``            the same, λ = 0.5                                   a PMI table
    ``corrmask``            :class:`~corrmask_fast.CorrMasker`, λ = 0.5         a graph
    ``corrmask-100``        the same, λ = 1                                     a graph
    ``corrmask-rewired``    :class:`~corrmask_fast.RewiredCorrMasker`           a graph
    ``corrmask-balanced``   :class:`~corrmask_fast.BalancedCorrMasker`          a graph
    ``random-matched``      :class:`~corrmask_fast.MatchedRandomMasker`         a graph, a corpus
    ``gene-sets``           :class:`~corrmask_fast.GeneSetMasker`               gene sets, a vocabulary
    ``mam``                 :class:`~corrmask_fast.MultinomialAttentionMasker`  a vocabulary, ``dim`` of the model
    ``corrmask-mam``        the same, with a graph                              a graph, ``dim`` of the model
    ======================  ==================================================  ================================

    Examples
    --------
    >>> from corrmask_fast import Vocabulary, make_masker
    >>> genes = Vocabulary(("<pad>", "<mask>", "A", "B", "C"))
    >>> type(make_masker("random", vocabulary=genes, mlm_probability=0.3)).__name__
    'RandomMasker'
    """
    every = STRATEGIES | LEARNED_STRATEGIES
    found = every.get(strategy) if isinstance(strategy, str) else None
    sources = {"graph": graph, "pmi": pmi, "vocabulary": vocabulary, "corpus": corpus, "gene_sets": sets}
    sources |= {name: parameters.pop(name, None) for name in SOURCES if name not in sources}
    if found is None:
        return _made_by(strategy, _imported(strategy, every), _common_vocabulary(sources), parameters)
    learns = strategy in LEARNED_STRATEGIES
    for name in parameters:
        if name in found.fixed:
            base = next(other for other, each in STRATEGIES.items() if each.masker == found.masker)
            raise InputError(
                f"{name} is {found.fixed[name]} in the strategy {strategy!r}; choose it freely with {base!r}"
            )
        if name in {*OPTIONS, *OF_MODEL} and name not in found.takes:
            raise InputError(f"{name} has no meaning for the strategy {strategy!r}; leave it out")
    for name in found.requires:
        if parameters.get(name) is None:
            raise InputError(f"the strategy {strategy!r} needs {name}; give {name}=…")
    common = _common_vocabulary(sources)
    source: Any = sources[found.needs]
    if found.needs == "vocabulary" and source is None:
        source = common
    fitted_on = (("corpus", corpus),) if found.fitted else ()
    for name, given in ((found.needs, source), ("vocabulary", common), *fitted_on):
        if given is None:
            needs = SOURCES[name]
            raise InputError(
                f"the strategy {strategy!r} needs {needs.kind}: give {needs.keyword or name}={needs.value}"
            )
    if learns and "dim" not in parameters:
        raise InputError(f"the strategy {strategy!r} needs dim, the width of the model that it learns with")
    import corrmask_fast

    masker = getattr(corrmask_fast, found.masker)
    if learns and found.needs != "vocabulary":
        return masker(source.vocabulary, **{found.needs: source}, **parameters)
    sources_of_it = (source,) if SOURCES[found.needs].cls else (common, source)
    return masker(*sources_of_it, *(given for _, given in fitted_on), **found.fixed, **parameters)


def _common_vocabulary(sources: dict[str, Any]) -> Any:
    """Return the vocabulary of all that is given, one with symbols if there is one; None where nothing is."""
    vocabularies: dict[str, Any] = {
        SOURCES[name].name: getattr(source, "vocabulary", source)
        for name, source in sources.items()
        if source is not None and SOURCES[name].cls
    }
    for one, other in pairwise(vocabularies):
        vocabularies[one].check_same(vocabularies[other], f"the {one}", f"the {other}")
    every = list(vocabularies.values())
    return next((each for each in every if getattr(each, "symbols", None)), every[0] if every else None)


def _imported(strategy: Any, names: Iterable[str]) -> Callable[..., Any]:
    """Return what ``"package.module:Name"`` names."""
    if not isinstance(strategy, str) or not all(strategy.partition(":")):
        raise InputError(
            f"strategy must be one of {', '.join(names)}, or your own as package.module:Name; "
            f"got {shown(strategy)}{did_you_mean(strategy, names)}"
        )
    return imported(strategy, "strategy", "(vocabulary, **parameters)")


def imported(own: str, what: str, takes: str) -> Callable[..., Any]:
    """Return the function that ``"package.module:Name"`` names; the module is imported, which runs its code."""
    module, _, name = own.partition(":")
    if not (module and name):
        raise InputError(f"name the {what} as package.module:Name; got {shown(own)}")
    try:
        found = getattr(importlib.import_module(module), name)
    except Exception as error:
        raise InputError(
            f"the {what} {own} cannot be imported ({type(error).__name__}: {error}); is the folder of its "
            "module in PYTHONPATH?"
        ) from error
    if not callable(found):
        raise InputError(f"{own} must be a function of {takes}; it is {shown(found)}")
    return found


def _made_by(strategy: str, own: Callable[..., Any], vocabulary: Any, parameters: dict[str, Any]) -> Masker:
    """Return the masker that a strategy of the user's own makes."""
    from corrmask_fast.masking.base import Masker

    if vocabulary is None:
        raise InputError(f"the strategy {strategy} needs a vocabulary: give vocabulary=Vocabulary.load(path)")
    try:
        masker = own(vocabulary, **parameters)
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{strategy} failed ({type(error).__name__}: {error})") from error
    if not isinstance(masker, Masker):
        raise InputError(f"{strategy} must return a masker, such as FunctionMasker(…); it returned {shown(masker)}")
    return masker
