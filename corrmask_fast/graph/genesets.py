"""Known gene sets in a graph: whether genes of a set are partners of each other more often than by chance."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from corrmask_fast.errors import InputError
from corrmask_fast.graph.chance import expected_neighbors

if TYPE_CHECKING:
    from collections.abc import Iterable

    from corrmask_fast.cells.vocabulary import Vocabulary
    from corrmask_fast.graph.dependency_graph import DependencyGraph

__all__ = ["SetCohesion", "ribosomal_genes", "set_cohesion"]

# Proteins of the two ribosomal subunits and their paralogues (RPL10A, RPS4Y1, RPLP0, RPSA, RPL22L1), not the
# ribosomal S6 kinases (RPS6KA1) nor pseudogenes (RPL7P9).
_RIBOSOMAL = re.compile(r"RP[LS](A|P\d|\d+(A|AL|X|Y\d|L\d?)?)", re.IGNORECASE)


@dataclass(frozen=True)
class SetCohesion:
    """How often the partners of a set's genes are in the set, over all their edges."""

    genes: int
    """Number of genes of the set that have a partner."""
    partners: int
    """Number of their partners; one that several genes have counts several times."""
    share: float
    """Share of these partners that are in the set."""
    chance: float
    """Expected share in a random graph with the same degrees; see :mod:`corrmask_fast.graph.chance`."""

    @property
    def enrichment(self) -> float:
        """``share / chance``."""
        return self.share / self.chance if self.chance else math.nan

    def __str__(self) -> str:
        if not self.partners:
            return "no gene of the set has a partner"
        return (
            f"{100 * self.share:.1f} % of the {self.partners:,} partners of {self.genes} genes are of the set; "
            f"{100 * self.chance:.1f} % by chance with the same degrees: {self.enrichment:.1f}-fold"
        )


def ribosomal_genes(vocabulary: Vocabulary) -> np.ndarray:
    """Return the token ids of cytosolic ribosomal proteins (RPL*, RPS*), found by symbol.

    Examples
    --------
    >>> from corrmask_fast import Vocabulary
    >>> vocabulary = Vocabulary(("<pad>", "<mask>", "RPL3", "RPS6", "RPS6KA1", "RPLP0", "CD3E"))
    >>> ribosomal_genes(vocabulary)
    array([2, 3, 5])
    """
    lo, hi = vocabulary.gene_range
    return np.array([token for token in range(lo, hi) if _RIBOSOMAL.fullmatch(vocabulary.name_of(token))], np.int64)


def set_cohesion(graph: DependencyGraph, genes: Iterable[int | str]) -> SetCohesion:
    """Compare the partners of a set's genes with chance: a random graph that keeps every gene's degree.

    Parameters
    ----------
    graph
        The graph.
    genes
        Token ids, names or symbols; at least one.

    Raises
    ------
    InputError
        If the set is empty or names an unknown gene.
    """
    members = np.unique([graph.vocabulary.id_of(gene) for gene in genes]).astype(np.int64)
    if members.size == 0:
        raise InputError("the gene set is empty; give at least one gene")
    degrees = graph.degrees
    inside = np.zeros(degrees.size, np.bool_)
    inside[members] = True
    own = degrees[members]
    partners = int(own.sum())
    if partners == 0:
        return SetCohesion(0, 0, math.nan, math.nan)
    source = np.repeat(np.arange(degrees.size), degrees)
    within = int(np.count_nonzero(inside[source] & inside[graph.indices]))
    chance = float(expected_neighbors([degrees], inside)[members].sum() / partners)
    return SetCohesion(int(np.count_nonzero(own)), partners, within / partners, chance)
