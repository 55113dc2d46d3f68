"""Names of similar spelling, for messages about one that is not there: genes, columns, options, choices."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from corrmask_fast.errors import InputError, shown

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["did_you_mean", "entry", "other_cases", "similar_names"]

MOST, SIMILAR = 3, 0.75  # number of suggestions; share of letters in common
ACCESSION = re.compile(r"\d{5}")


def other_cases(given: str, names: Iterable[str]) -> list[str]:
    """Return the names that differ from the given one in upper and lower case alone."""
    return [name for name in names if name.casefold() == given.casefold()]


def similar_names(given: Any, names: Iterable[Any]) -> list[str]:
    """Return at most three names that may be meant: in other case, then those that begin so, then of similar spelling.

    >>> names = ["CD3D", "CD3E", "TP53", "ENSG00000141510"]
    >>> [similar_names(given, names) for given in ("cd3d", "CD3", "TP5.3", "ENSG00000141510.18")]
    [['CD3D'], ['CD3D', 'CD3E'], ['TP53'], ['ENSG00000141510']]
    """
    import difflib

    if not isinstance(given, str) or not given:
        return []
    names = [name for name in names if isinstance(name, str)]
    if same := other_cases(given, names):
        return same[:MOST]
    word, by_case = given.casefold(), {name.casefold(): name for name in names}
    if ACCESSION.search(given):  # one digit off is another gene; a version may stand behind it
        found = [name for name in by_case if name == word.partition(".")[0]]
    else:
        found = sorted((name for name in by_case if name.startswith(word)), key=lambda name: (len(name), name))
        found += difflib.get_close_matches(word, by_case.keys() - found, MOST, SIMILAR)
    return [by_case[name] for name in found[:MOST]]


def did_you_mean(given: Any, names: Iterable[Any]) -> str:
    """Return :func:`similar_names` as a part of a message, which follows the name that is not there; "" of none.

    >>> did_you_mean("celltype", ["cell_type", "donor"]), did_you_mean("tissue", ["cell_type", "donor"])
    (" (did you mean 'cell_type'?)", '')
    """
    *others, last = [shown(name) for name in similar_names(given, names)] or [""]
    return f" (did you mean {', '.join(others)}{' or ' if others else ''}{last}?)" if last else ""


def entry(table: Mapping[Any, Any], name: Any, what: str) -> Any:
    """Return an entry of a result; raise InputError with the names that there are.

    >>> entry({"CorrMask": 1.0}, "corrmask", "model")
    Traceback (most recent call last):
    corrmask_fast.errors.InputError: no model 'corrmask' (did you mean 'CorrMask'?); there is CorrMask
    """
    if name not in table:
        raise InputError(f"no {what} {shown(name)}{did_you_mean(name, table)}; there is {', '.join(map(str, table))}")
    return table[name]
