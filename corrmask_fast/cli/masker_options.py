"""The options of every command that masks: which strategy, made from which files, with which parameters."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from corrmask_fast.cli.options import load_graph
from corrmask_fast.errors import InputError
from corrmask_fast.masking.schedules import parse_rate
from corrmask_fast.masking.strategies import LEARNED_STRATEGIES, STRATEGIES

if TYPE_CHECKING:
    from corrmask_fast.cells.vocabulary import Vocabulary
    from corrmask_fast.graph.dependency_graph import DependencyGraph
    from corrmask_fast.masking.base import Masker

# Options that not every strategy has: handed on where given, else the strategy's own default holds.
OWN = ("structural_ratio", "max_partners", "npmi_min", "n_latents", "latent_ratio")
FILES = {
    "graph": ("--graph GRAPH", "corrmask-fast graph build"),
    "pmi": ("--pmi TABLE", "corrmask-fast pmi build"),
}


def add_masker_options(parser: argparse.ArgumentParser, *, graph_required: bool = False, learned: bool = False) -> None:
    """Add ``--strategy``, the files that strategies are made from, and their parameters.

    ``learned``: with the strategies that learn with a model, for commands that train one.
    """
    strategies = STRATEGIES | (LEARNED_STRATEGIES if learned else {})
    by_graph = [name for name, strategy in strategies.items() if strategy.needs == "graph" and not strategy.fixed]
    names = ", ".join(f"{name} ({strategy.summary})" for name, strategy in strategies.items())
    parser.add_argument(
        "--strategy",
        choices=strategies,
        default="corrmask",
        metavar="NAME",
        help=f"what is masked together: {names} (default: corrmask)",
    )
    parser.add_argument(
        "--graph",
        required=graph_required,
        metavar="GRAPH",
        help="graph file" if graph_required else f"graph file, for {' and '.join(by_graph)}",
    )
    parser.add_argument("--pmi", metavar="TABLE", help="PMI table, for pmi and pmi-rand")
    parser.add_argument(
        "--mlm-probability",
        type=_rate,
        default=0.15,
        metavar="P",
        help="share of genes masked: a number; LOW..HIGH, from which each cell draws its own; or a schedule over "
        "training steps, linear:START:END:STEPS, cosine:START:END:STEPS, piecewise:STEP=P,… (default: 0.15)",
    )
    parser.add_argument(
        "--structural-ratio",
        type=_rate,
        metavar="L",
        help="lambda: share of masked genes that the strategy chooses, the rest is random; given like "
        "--mlm-probability (default: 0.5 for corrmask, 1 for span and pmi)",
    )
    parser.add_argument("--max-partners", type=int, metavar="K", help="partners masked with a gene (default: 5)")
    parser.add_argument("--npmi-min", type=float, metavar="X", help="least NPMI of neighbours in a run (default: 0.1)")
    if learned:
        parser.add_argument("--n-latents", type=int, metavar="N", help="latents that learn, for mam (default: 64)")
        parser.add_argument(
            "--latent-ratio", type=float, metavar="X", help="share of them that attend to a cell (default: 0.5)"
        )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the masks (default: 0)")


def _rate(text: str) -> Any:
    """Parse a rate; argparse shows the message of what is none."""
    try:
        return parse_rate(text)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def masker_of(
    arguments: argparse.Namespace,
    *,
    vocabulary: Vocabulary | None = None,
    graph: DependencyGraph | None = None,
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
    width, heads
        Of the model, which strategies that learn have in common with it.
    """
    from corrmask_fast.masking.pmi import PMITable
    from corrmask_fast.masking.strategies import make_masker

    needs = (STRATEGIES | LEARNED_STRATEGIES)[arguments.strategy].needs
    if needs in FILES and getattr(arguments, needs) is None:
        option, builder = FILES[needs]
        raise InputError(f"--strategy {arguments.strategy} needs {option}; `{builder}` makes one")
    given: dict[str, Any] = {
        name: getattr(arguments, name) for name in OWN if getattr(arguments, name, None) is not None
    }
    if arguments.strategy in LEARNED_STRATEGIES:
        given |= {"dim": width, "n_heads": heads}
    if needs == "graph":
        given["graph"] = graph or load_graph(arguments.graph)
    elif needs == "pmi":
        given["pmi"] = PMITable.load(arguments.pmi)
    return make_masker(
        arguments.strategy,
        vocabulary=vocabulary,
        mlm_probability=arguments.mlm_probability,
        seed=arguments.seed,
        **given,
    )
