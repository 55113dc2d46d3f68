"""A gene that a vocabulary does not have: the error, with the names of similar spelling."""

from __future__ import annotations

import difflib
import re
from functools import cached_property
from typing import TYPE_CHECKING, Any

from corrmask_fast.errors import InputError, shown

if TYPE_CHECKING:
    from collections.abc import Collection

__all__ = ["UnknownGeneError", "other_cases", "similar_names"]

MOST, SIMILAR = 3, 0.75  # number of suggestions; share of letters in common
ACCESSION = re.compile(r"\d{5}")


def other_cases(gene: str, names: Collection[str]) -> list[str]:
    """Return the names that differ from a gene's in upper and lower case alone."""
    return [name for name in names if name.casefold() == gene.casefold()]


def similar_names(gene: Any, names: Collection[str]) -> list[str]:
    """Return at most three names that may be meant: in other case, then those that begin so, then of similar spelling.

    >>> names = ["CD3D", "CD3E", "TP53", "ENSG00000141510"]
    >>> [similar_names(gene, names) for gene in ("cd3d", "CD3", "TP5.3", "ENSG00000141510.18")]
    [['CD3D'], ['CD3D', 'CD3E'], ['TP53'], ['ENSG00000141510']]
    """
    if not isinstance(gene, str) or not gene:
        return []
    if same := other_cases(gene, names):
        return same[:MOST]
    given, by_case = gene.casefold(), {name.casefold(): name for name in names}
    if ACCESSION.search(gene):  # one digit off is another gene; a version may stand behind it
        found = [name for name in by_case if name == given.partition(".")[0]]
    else:
        found = sorted((name for name in by_case if name.startswith(given)), key=lambda name: (len(name), name))
        found += difflib.get_close_matches(given, by_case.keys() - found, MOST, SIMILAR)
    return [by_case[name] for name in found[:MOST]]


class UnknownGeneError(InputError):
    """``UnknownGeneError(gene, names, (lo, hi), example)``: a gene that no name finds, in ids lo <= id < hi.

    Similar names are looked for when the message is read: many such errors are caught, and never shown.
    """

    @cached_property
    def _message(self) -> str:
        gene, names, (lo, hi), example = self.args
        *others, last = [shown(name) for name in similar_names(gene, names)] or [""]
        meant = f" (did you mean {', '.join(others)}{' or ' if others else ''}{last}?)" if last else ""
        return (
            f"no gene {shown(gene)} in this vocabulary of {hi - lo} genes{meant}; "
            f"give a token id from {lo} to {hi - 1}, or a name such as {shown(example)}"
        )

    def __str__(self) -> str:
        return self._message
