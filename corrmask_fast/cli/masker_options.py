"""The options of every command that masks: which strategy, made from which files, with which parameters."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from corrmask_fast.errors import InputError
from corrmask_fast.masking.schedules import parse_rate
from corrmask_fast.masking.strategies import DEFAULT, LEARNED_STRATEGIES, OF_MODEL, OPTIONS, SOURCES, STRATEGIES
from corrmask_fast.suggestions import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from corrmask_fast.cells.corpus import Corpus
    from corrmask_fast.cells.vocabulary import Vocabulary
    from corrmask_fast.graph.dependency_graph import DependencyGraph
    from corrmask_fast.masking.base import Masker
    from corrmask_fast.masking.strategies import Strategy


RATE = 0.15  # where no --mlm-probability is given


def add_masker_options(
    parser: argparse.ArgumentParser,
    *,
    default: str = DEFAULT,
    graph_required: bool = False,
    learned: bool = False,
    several: Collection[str] = (),
) -> None:
    """Add ``--strategy``, the files that strategies are made from, and their parameters.

    ``learned``: with the strategies that learn with a model, for commands that train one. ``several``: parameters that
    may have several values, for commands that make a masker for each; these are lists.
    """
    strategies = STRATEGIES | (LEARNED_STRATEGIES if learned else {})
    names = ", ".join(f"{name} ({strategy.summary})" for name, strategy in strategies.items())
    parser.add_argument(
        "--strategy",
        type=_strategy_of(strategies),
        default=default,
        metavar="NAME",
        help=f"what is masked together: {names} (default: {default}). Or a strategy of your own, package.module:Name. "
        "The module is imported from PYTHONPATH, which runs its code; Name(vocabulary, **options) must return a "
        "masker, such as a FunctionMasker. The options are mlm_probability, seed and those below that are given",
    )
    for name, source in SOURCES.items():
        if source.metavar:
            users = ", ".join(each for each, strategy in strategies.items() if strategy.needs == name)
            required = name == "graph" and graph_required
            text = f"{source.name} file" + ("" if required else f", for {users}")
            parser.add_argument(_flag(name), required=required, metavar=source.metavar, help=text)
    parser.add_argument(
        "--mlm-probability",
        type=_parser(parse_rate),
        default=RATE,
        metavar="P",
        help="share of genes masked: a number; a range LOW..HIGH, from which each cell draws its own; or a schedule "
        f"over training steps, linear:START:END:STEPS, cosine:START:END:STEPS, piecewise:STEP=P,… (default: {RATE})",
    )
    for name, option in OPTIONS.items():
        if any(name in strategy.takes for strategy in strategies.values()):
            text = option.help + (f" (default: {_ratios(strategies)})" if name == "structural_ratio" else "")
            many: dict[str, Any] = {"nargs": "+"} if name in several else {}
            text += "; several: a line for each" if many else ""
            parser.add_argument(_flag(name), type=_parser(option.parse), metavar=option.metavar, help=text, **many)
    parser.add_argument(
        "--replace",
        choices=("token", "group"),
        help="a masked gene becomes <mask>, a random gene, or stays as it is. token: each gene draws which of these; "
        "group: genes that are masked together draw once (default: token)",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the masks (default: 0)")


def is_own(strategy: str) -> bool:
    """Return whether a strategy is a user's own, ``package.module:Name``."""
    return ":" in strategy


def _strategy_of(strategies: Collection[str]) -> Callable[[str], str]:
    def parsed(text: str) -> str:
        if text not in strategies and not is_own(text):
            raise argparse.ArgumentTypeError(
                f"must be one of {', '.join(strategies)}, or package.module:Name; "
                f"got {text!r}{did_you_mean(text, strategies)}"
            )
        return text

    return parsed


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _ratios(strategies: Mapping[str, Strategy]) -> str:
    """Return lambda where none is given, and for which strategies."""
    names: dict[float, list[str]] = {}
    for name, strategy in strategies.items():
        if strategy.ratio is not None and not strategy.fixed:
            names.setdefault(strategy.ratio, []).append(name)
    return "; ".join(f"{ratio:g} for {', '.join(names[ratio])}" for ratio in sorted(names))


def _parser(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    """Return a parser of an option's text; argparse shows the message of what is refused."""
    if isinstance(parse, type):  # argparse names the type itself
        return parse

    def parsed(text: str) -> Any:
        try:
            return parse(text)
        except InputError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return parsed


def masker_of(
    arguments: argparse.Namespace,
    *,
    vocabulary: Vocabulary | None = None,
    graph: DependencyGraph | None = None,
    corpus: Corpus | None = None,
    width: int | None = None,
    heads: int | None = None,
) -> Masker:
    """Return the masker that the options of :func:`add_masker_options` describe.

    Parameters
    ----------
    vocabulary
        The corpus', for strategies that need nothing else; a graph's or table's must be the same.
    graph
        The graph, if it was loaded already.
    corpus
        The cells, for strategies that are fitted on them.
    width, heads
        Of the model, which strategies that learn have in common with it.
    """
    import corrmask_fast
    from corrmask_fast.masking.factory import make_masker

    own = is_own(arguments.strategy)
    needs = "vocabulary" if own else (STRATEGIES | LEARNED_STRATEGIES)[arguments.strategy].needs
    source = SOURCES[needs]
    names = *OPTIONS, "replace"
    given = {name: getattr(arguments, name) for name in names if getattr(arguments, name, None) is not None}
    if source.metavar:
        path = getattr(arguments, needs)
        if path is None:
            raise InputError(f"--strategy {arguments.strategy} needs {_flag(needs)} {source.metavar}; {source.origin}")
        if source.cls:
            given[needs] = graph if needs == "graph" and graph else getattr(corrmask_fast, source.cls).load(path)
        else:
            given |= {source.keyword: path, "graph": graph}  # one that may have symbols
    if arguments.strategy in LEARNED_STRATEGIES:
        given |= dict(zip(OF_MODEL, (width, heads), strict=True))
    return make_masker(
        arguments.strategy,
        vocabulary=vocabulary,
        corpus=corpus,
        mlm_probability=arguments.mlm_probability,
        seed=arguments.seed,
        **given,
    )
