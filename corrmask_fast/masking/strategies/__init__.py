"""Every masking strategy by its name: its class, what it is made from, and which parameters are its own.

=================  ======================================================================  =====  ==========
name               what is masked together                                                 λ      needs
=================  ======================================================================  =====  ==========
random             nothing: single genes                                                   –      vocabulary
weighted           nothing: single genes, each as often as its weight says                 –      vocabulary
span               runs of random length (SpanBERT)                                        1      vocabulary
pmi                runs of genes that stand next to each other more often than by chance   1      PMI table
pmi-rand           the same, half the genes at random                                      0.5    PMI table
corrmask           genes and their partners in a dependency graph, half at random          0.5    graph
corrmask-rewired   genes that are partners in a random graph of the same degrees           0.5    graph
random-matched     nothing: single genes, each as often as corrmask masks it               0.5    graph, corpus
corrmask-100       the same as corrmask, as many as there are                              1      graph
corrmask-balanced  genes and their partners, every gene of a cell equally often            1      graph
gene-sets          the genes of a pathway, or of any other set                             1      gene sets
mam                nothing: single genes, those that learned latents attend to             –      vocabulary
corrmask-mam       as corrmask, from genes that learned latents attend to                  0.5    graph
=================  ======================================================================  =====  ==========

corrmask-rewired and random-matched are controls of corrmask. The last two learn with the model that is trained:
pretraining takes them, an audit of masks alone cannot.

``make_masker``, the command line, settings of runs, audits and the cases of tests go by these tables. A strategy that
is added here needs no other line in them; ``LOOKS`` in ``corrmask_fast/plots.py`` gives it a colour of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from corrmask_fast.masking.schedules import parse_rate

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["CONTROL", "DEFAULT", "LEARNED_STRATEGIES", "OPTIONS", "SOURCES", "STRATEGIES", "Option", "Strategy"]


class Source(NamedTuple):
    """What strategies are made from: a keyword of ``make_masker`` and, of what lies in a file, an option."""

    name: str  # in messages
    kind: str  # in full
    value: str  # of the keyword, for one who lacks it
    metavar: str = ""  # of the option
    origin: str = ""  # of such a file
    cls: str = ""  # the public class, which has a vocabulary, and whose ``load`` reads a file
    keyword: str = ""  # where it is not the name of the option


SOURCES = {
    "graph": Source(
        *("graph", "a dependency graph", "DependencyGraph.load(path)", "GRAPH"),
        *("`corrmask-fast graph build` makes one", "DependencyGraph"),
    ),
    "pmi": Source(
        *("PMI table", "a PMI table", "PMITable.load(path)", "TABLE"),
        *("`corrmask-fast pmi build` makes one", "PMITable"),
    ),
    "vocabulary": Source("vocabulary", "a vocabulary", "Vocabulary.load(path)", cls="Vocabulary"),
    "corpus": Source("corpus", "the corpus, on which it is fitted", "read_corpus(path)", cls="Corpus"),
    "gene_sets": Source(
        *("gene sets", "gene sets", "the path of a .gmt file, or a mapping of names to genes", "FILE.gmt"),
        *("Reactome and MSigDB publish such files", "", "sets"),
    ),
}


class Option(NamedTuple):
    """A parameter that not every strategy takes, as the command line has it."""

    parse: Callable[[str], Any]
    metavar: str
    help: str


OPTIONS = {
    "structural_ratio": Option(
        parse_rate,
        "L",
        "lambda: share of the masked genes that the strategy chooses; the rest is random. A number, "
        "a range or a schedule, as --mlm-probability",
    ),
    "max_partners": Option(int, "K", "largest number of partners masked with a seed gene (default: 5)"),
    "partners": Option(str, "HOW", "how partners are drawn: uniform, or weighted by |rho| (default: uniform)"),
    "weights": Option(
        str,
        "FILE",
        "file of weights: in each line a gene, a tab or comma, and its weight (other genes: 1). Genes of larger weight "
        "are masked more often",
    ),
    "npmi_min": Option(float, "X", "smallest NPMI of neighbours in a run (default: 0.1)"),
    "n_latents": Option(int, "N", "number of learned latents, for mam (default: 64)"),
    "latent_ratio": Option(float, "X", "share of the latents that attend to a cell (default: 0.5)"),
}
OF_MODEL = ("dim", "n_heads")  # parameters that a strategy which learns has in common with its model


class Strategy(NamedTuple):
    """How a strategy is made, and what it takes."""

    label: str  # in tables and pictures
    masker: str  # the public class
    needs: str  # a key of SOURCES
    summary: str
    ratio: float | None  # λ where none is given; None: λ has no meaning
    takes: tuple[str, ...] = ()  # keys of OPTIONS and names of OF_MODEL
    requires: tuple[str, ...] = ()  # of ``takes``: without these it cannot be made
    fixed: dict[str, Any] = {}  # parameters that its name stands for  # noqa: RUF012 (never changed)
    fitted: bool = False  # on the corpus, which it needs too
    control: bool = False  # of another strategy: its kernels are those of others


DEFAULT, CONTROL = "corrmask", "random"  # what is masked unless asked otherwise; what all others are compared with
STRATEGIES: dict[str, Strategy] = {
    "random": Strategy("Random", "RandomMasker", "vocabulary", "single genes", None),
    "weighted": Strategy(
        *("Weighted", "WeightedMasker", "vocabulary", "single genes by weight", None, ("weights",), ("weights",)),
    ),
    "span": Strategy("Span", "SpanMasker", "vocabulary", "runs of random length", 1.0, ("structural_ratio",)),
    "pmi": Strategy("PMI", "PMIMasker", "pmi", "runs of associated neighbours", 1.0, ("structural_ratio", "npmi_min")),
    "pmi-rand": Strategy(
        *("PMI-Rand", "PMIMasker", "pmi", "half runs of associated neighbours, half single genes", 0.5, ("npmi_min",)),
        fixed={"structural_ratio": 0.5},
    ),
    "corrmask": Strategy(
        *("CorrMask", "CorrMasker", "graph", "correlated genes, half single genes", 0.5),
        takes=("structural_ratio", "max_partners", "partners", "weights"),
    ),
    "corrmask-rewired": Strategy(
        *("CorrMask, rewired graph", "RewiredCorrMasker", "graph", "corrmask by a graph of other partners", 0.5),
        takes=("structural_ratio", "max_partners", "partners", "weights"),
        control=True,
    ),
    "random-matched": Strategy(
        *("Random, matched", "MatchedRandomMasker", "graph", "single genes as often as corrmask masks them", 0.5),
        takes=("structural_ratio", "max_partners", "partners"),
        fitted=True,
        control=True,
    ),
    "corrmask-100": Strategy(
        *("CorrMask-100", "CorrMasker", "graph", "correlated genes only", 1.0, ("max_partners", "partners", "weights")),
        fixed={"structural_ratio": 1.0},
    ),
    "corrmask-balanced": Strategy(
        *("CorrMask-balanced", "BalancedCorrMasker", "graph", "correlated genes, all genes of a cell equally often"),
        *(1.0, ("structural_ratio",)),
    ),
    "gene-sets": Strategy(
        *("Gene sets", "GeneSetMasker", "gene_sets", "whole gene sets, such as pathways", 1.0, ("structural_ratio",)),
    ),
}
# Those whose masks depend on a model, with which they learn.
LEARNED_STRATEGIES: dict[str, Strategy] = {
    "mam": Strategy(
        *("MAM", "MultinomialAttentionMasker", "vocabulary", "single genes that learned latents attend to", None),
        takes=("n_latents", "latent_ratio", *OF_MODEL),
    ),
    "corrmask-mam": Strategy(
        *("CorrMask-MAM", "MultinomialAttentionMasker", "graph"),
        *("correlated genes, from genes that learned latents attend to", 0.5),
        takes=("structural_ratio", "max_partners", "n_latents", "latent_ratio", *OF_MODEL),
    ),
}
