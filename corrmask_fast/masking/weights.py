"""Weights of genes: given as a mapping, an array or a file, checked, and as the costs that kernels go by."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from corrmask_fast.errors import InputError, listed, naming, readable, shown
from corrmask_fast.masking.engine.tables import LARGEST_COST, LARGEST_RATIO, costs_of

if TYPE_CHECKING:
    from corrmask_fast.cells.vocabulary import Vocabulary

    Weights = Mapping[str | int, float] | np.ndarray | str | os.PathLike[str]

NEVER = "a gene that must never be masked goes into special_tokens_mask"


def gene_weights(weights: Weights, vocabulary: Vocabulary) -> np.ndarray:
    """Return (V,) float64, read-only: the weight of each gene; special tokens have 1.

    Parameters
    ----------
    weights
        Gene (token id, name or symbol) → weight, 1 for genes that are not named; or (V,) numbers, of which those of
        special tokens are ignored; or a text file of such pairs, see :func:`read_weights`.

    Raises
    ------
    InputError
        If a gene is not in the vocabulary or has two weights, a weight is not finite or not above 0, or the largest is
        more than 2^20 times the smallest.
    """
    lo, hi = vocabulary.gene_range
    found = np.ones(vocabulary.size)
    if isinstance(weights, str | os.PathLike):
        with naming(weights):
            lines = list(read_weights(weights, vocabulary))
            if not lines:
                raise InputError("has no weights; it must have lines of a gene, a tab or comma, and a number")
            _fill_in(found, ((f"line {line}: ", gene, weight) for line, gene, weight in lines), vocabulary)
            _check(found, vocabulary)
    elif isinstance(weights, Mapping):
        _fill_in(found, (("", gene, weight) for gene, weight in weights.items()), vocabulary)
        _check(found, vocabulary)
    else:
        given = _as_array(weights)
        if given is None or given.shape != (vocabulary.size,):
            what = shown(weights) if given is None else f"{given.dtype} {given.shape}"
            raise InputError(
                f"weights must be a mapping from genes to numbers, ({vocabulary.size},) numbers (one for each token), "
                f"or the path of a file; got {what}"
            )
        found[lo:hi] = given[lo:hi]
        _check(found, vocabulary)
    found.flags.writeable = False
    return found


def token_costs(weights: np.ndarray, vocabulary: Vocabulary) -> np.ndarray:
    """Return (V + 1,) uint32: the cost of each token, then of a token outside the vocabulary (docs/SPEC.md 3)."""
    lo, hi = vocabulary.gene_range
    costs = np.full(vocabulary.size + 1, LARGEST_COST, np.uint32)
    costs[lo:hi] = costs_of(weights[lo:hi], weights[lo:hi].min())
    return costs


def read_weights(path: str | os.PathLike[str], vocabulary: Vocabulary) -> Iterator[tuple[int, str, float]]:
    """Read weights of genes from a text file: a line for each gene, its name or symbol, a tab or comma, its weight.

    The first line may be a header, which names no gene; empty lines are passed over.

    Yields
    ------
    Number of the line, gene, weight.
    """
    with readable(path, "file of weights (lines of a gene, a tab or comma, and a number)"):
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    filled = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    for place, (number, line) in enumerate(filled):
        gene, _, text = (part.strip() for part in line.rpartition("\t" if "\t" in line else ","))
        try:
            weight = float(text)
        except ValueError:
            if place == 0 and gene and gene not in vocabulary.tokens_by_name:
                continue  # a header
            gene, weight = "", 0.0
        if not gene:
            raise InputError(f"line {number}: must be a gene, a tab or comma, and a number; got {shown(line)}")
        yield number, gene, weight


def _fill_in(found: np.ndarray, entries: Iterator[tuple[str, Any, Any]], vocabulary: Vocabulary) -> None:
    """Put weights where their genes are; entries are (what goes before a message, gene, weight)."""
    seen: dict[int, Any] = {}
    for where, gene, weight in entries:
        try:
            token = vocabulary.id_of(gene)
        except InputError as error:
            raise InputError(f"{where}weights name {error}") from None
        if token in seen:
            raise InputError(f"{where}gene {shown(gene)} has two weights ({shown(seen[token])} too); give one")
        seen[token] = gene
        number = _as_array(weight)
        if number is None or number.size != 1:
            raise InputError(f"{where}the weight of gene {shown(gene)} must be a number; got {shown(weight)}")
        found[token] = number.reshape(())


def _as_array(given: Any) -> np.ndarray | None:
    """Return real numbers as float64; None if they are none."""
    try:
        array = np.asarray(given)
        return array.astype(np.float64) if array.dtype.kind in "fiu" else None
    except (TypeError, ValueError, RuntimeError):
        return None


def _check(weights: np.ndarray, vocabulary: Vocabulary) -> None:
    lo, hi = vocabulary.gene_range
    genes = weights[lo:hi]
    bad = np.flatnonzero(~(np.isfinite(genes) & (genes > 0)))
    if bad.size:
        names = listed(f"{vocabulary.names[lo + k]} ({genes[k]:g})" for k in bad)
        raise InputError(f"weights must be finite and above 0; got {names}; {NEVER}")
    least, most = int(genes.argmin()), int(genes.argmax())
    if genes[most] / LARGEST_RATIO > genes[least]:
        one, other = ((vocabulary.names[lo + k], genes[k]) for k in (most, least))
        raise InputError(
            f"the largest weight must be at most {LARGEST_RATIO:,} times the smallest; got {one[0]} ({one[1]:g}) and "
            f"{other[0]} ({other[1]:g}); {NEVER}"
        )
