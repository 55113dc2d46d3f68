"""Which genes follow each other in cells more often than by chance: normalised pointwise mutual information (NPMI)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from corrmask_fast.errors import InputError, check_number, naming, shown
from corrmask_fast.masking.pair_counting import MEMORY, count_pairs
from corrmask_fast.tensor_files import PMI_TABLE, plain_params, read_graph, write_graph

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

    from corrmask_fast.cells.corpus import Corpus
    from corrmask_fast.cells.vocabulary import Vocabulary

__all__ = ["PMITable"]


class PMITable:
    """Ordered pairs of genes that stand next to each other in cells, with their NPMI.

    NPMI is normalised pointwise mutual information (Bouma 2009; PMI masking: Levine et al. 2021). With
    P(u, v) = count(u, v) / pairs and P(u) = count(u) / tokens, counted over a corpus, it is in float64::

        NPMI = log(P(u, v) / (P(u) · P(v))) / −log P(u, v)

    and 1 where P(u, v) = 1 (docs/SPEC.md 5). A pair that was counted too seldom has none. NPMI can exceed 1 in short
    cells, since there are fewer pairs than tokens. :meth:`from_corpus` makes a table, :meth:`load` reads one.

    Parameters
    ----------
    indptr
        (V + 1,) integers: the token u is followed by the tokens ``indices[indptr[u]:indptr[u + 1]]``.
    indices
        (n_pairs,) integers: tokens, ascending for each u.
    npmi
        (n_pairs,) finite numbers: the NPMI of each pair.
    counts
        (n_pairs,) integers >= 1: how often each pair was seen.
    vocabulary
        The :class:`~corrmask_fast.Vocabulary`: which id is which gene.
    params
        How the table was made: a mapping of names to plain JSON values. None: nothing is known.

    Attributes
    ----------
    indptr
        (V + 1,) int64.
    indices
        (n_pairs,) int32.
    npmi
        (n_pairs,) float64.
    counts
        (n_pairs,) int64.
    vocabulary
        As given.
    params
        dict of plain JSON values.

    Raises
    ------
    InputError
        If the arrays do not describe such a table.

    Examples
    --------
    >>> from corrmask_fast import PMITable, Vocabulary, read_corpus
    >>> genes = Vocabulary(("<pad>", "<mask>", "A", "B", "C", "D"))
    >>> cells = read_corpus([[2, 3, 4], [5, 2, 3], [4, 5, 2]], genes)
    >>> table = PMITable.from_corpus(cells, min_count=2, progress=False)
    >>> table
    PMITable(2 pairs of 4 genes)
    >>> [(u, v, round(npmi, 3)) for u, v, npmi in table.strongest()]
    [('A', 'B', 1.369), ('D', 'A', 1.369)]
    """

    def __init__(
        self,
        indptr: np.ndarray,
        indices: np.ndarray,
        npmi: np.ndarray,
        counts: np.ndarray,
        vocabulary: Vocabulary,
        params: Mapping[str, Any] | None = None,
    ) -> None:
        self.vocabulary = vocabulary
        self.params = plain_params(params or {})
        self.indptr, self.indices = _check_pairs(indptr, indices, vocabulary)
        self.npmi = _check_values("npmi", npmi, self.indices.size, np.float64)
        self.counts = _check_values("counts", counts, self.indices.size, np.int64)
        if self.counts.size and self.counts.min() < 1:
            raise InputError(f"counts must be at least 1, for pairs that were seen; got {self.counts.min()}")

    @classmethod
    def from_corpus(
        cls,
        corpus: Corpus,
        *,
        min_count: int = 50,
        n_cells: int | None = None,
        seed: int = 0,
        memory: int = MEMORY,
        progress: bool = True,
    ) -> PMITable:
        """Count the ordered pairs of neighbouring tokens over a corpus.

        Parameters
        ----------
        corpus
            A :class:`~corrmask_fast.Corpus`; each cell is cut to the corpus' ``max_length``.
        min_count
            Pairs seen less often have no NPMI and are left out; >= 1.
        n_cells
            Count a sample of this many cells. None: all.
        seed
            Of the sample.
        memory
            Bytes for the counts. With less, the corpus is read more often; the result is the same.
        progress
            Show a progress bar.

        Returns
        -------
        PMITable
            The table.

        Raises
        ------
        InputError
            If the corpus is empty or holds a token outside its vocabulary, or a number is out of range.
        """
        counted = count_pairs(corpus, min_count, n_cells=n_cells, seed=seed, memory=memory, progress=progress)
        size = corpus.vocabulary.size
        indptr = np.concatenate([[0], np.cumsum(np.bincount(counted.first, minlength=size))])
        params = {
            "min_count": min_count,
            "n_cells": counted.n_cells,
            "n_tokens": counted.n_tokens,
            "n_pairs_counted": counted.n_pairs,
            "max_length": corpus.max_length,
            "seed": seed,
        }
        return cls(indptr, counted.second, counted.npmi(), counted.counts, corpus.vocabulary, params)

    # ----------------------------------------------------------------------------------------------------- looking

    @property
    def n_pairs(self) -> int:
        """Number of ordered pairs."""
        return self.indices.size

    def npmi_of(self, first: str | int, second: str | int) -> float | None:
        """Return the NPMI of a pair of genes in this order.

        Parameters
        ----------
        first, second
            Genes by token id, name or symbol.

        Returns
        -------
        float or None
            NPMI; None if the pair was seen too seldom.

        Raises
        ------
        InputError
            If a gene is not in the vocabulary.
        """
        u, v = self.vocabulary.id_of(first), self.vocabulary.id_of(second)
        row = self.indices[self.indptr[u] : self.indptr[u + 1]]
        k = int(np.searchsorted(row, v))
        return float(self.npmi[self.indptr[u] + k]) if k < row.size and row[k] == v else None

    def strongest(self, n: int | None = None) -> list[tuple[str, str, float]]:
        """Return the pairs of largest NPMI, strongest first.

        Parameters
        ----------
        n
            Number of pairs. None: all.

        Returns
        -------
        list of tuple
            (gene, gene, NPMI); genes by symbol where the vocabulary has one, else by name.
        """
        order = np.argsort(-self.npmi, kind="stable")[:n]
        first = np.searchsorted(self.indptr, order, side="right") - 1
        name = self.vocabulary.name_of
        return [
            (name(u), name(v), npmi)
            for u, v, npmi in zip(first.tolist(), self.indices[order].tolist(), self.npmi[order].tolist(), strict=True)
        ]

    def at_least(self, npmi_min: float) -> tuple[np.ndarray, np.ndarray]:
        """Return the pairs with NPMI >= ``npmi_min``: what PMI masking masks together.

        Parameters
        ----------
        npmi_min
            Least NPMI, a finite number.

        Returns
        -------
        indptr : numpy.ndarray
            (V + 1,) int64.
        indices : numpy.ndarray
            (pairs,) int32: u is followed by ``indices[indptr[u]:indptr[u + 1]]``.

        Raises
        ------
        InputError
            If ``npmi_min`` is not a finite number.
        """
        keep = self.npmi >= check_number("npmi_min", npmi_min, -np.inf, np.inf, open_ends=True)
        return np.concatenate([[0], np.cumsum(keep)])[self.indptr], self.indices[keep]

    def summary(self) -> dict[str, Any]:
        """Return what ``pmi info`` shows.

        Returns
        -------
        dict
            ``genes`` (that begin a pair), ``pairs``, ``params``; and if there are pairs, ``npmi_quantiles`` (least,
            quartiles, largest) and ``pairs_at_0.1_or_more``.
        """
        facts: dict[str, Any] = {"genes": int(np.count_nonzero(np.diff(self.indptr))), "pairs": self.n_pairs}
        if self.n_pairs:
            facts["npmi_quantiles"] = [float(q) for q in np.quantile(self.npmi, [0, 0.25, 0.5, 0.75, 1])]
            facts["pairs_at_0.1_or_more"] = int(np.count_nonzero(self.npmi >= 0.1))
        return {**facts, "params": self.params}

    def __repr__(self) -> str:
        lo, hi = self.vocabulary.gene_range
        return f"PMITable({self.n_pairs} pair{'' if self.n_pairs == 1 else 's'} of {hi - lo} genes)"

    # ------------------------------------------------------------------------------------------------ saving, loading

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the table as one ``safetensors`` file; the same table always gives the same bytes.

        Parameters
        ----------
        path
            The file; it appears whole or not at all, and replaces one of that name.

        Raises
        ------
        InputError
            If the file cannot be written.
        """
        tensors = {"indptr": self.indptr, "indices": self.indices, "npmi": self.npmi, "counts": self.counts}
        write_graph(path, tensors, self.vocabulary, self.params, PMI_TABLE)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> PMITable:
        """Read a table that :meth:`save` wrote.

        Parameters
        ----------
        path
            The file.

        Returns
        -------
        PMITable
            The table.

        Raises
        ------
        InputError
            If there is no such file, it is truncated, altered, of another format, or of a newer version.
        """
        tensors, vocabulary, params = read_graph(path, PMI_TABLE)
        with naming(path):
            return cls(**tensors, vocabulary=vocabulary, params=params)


def _check_pairs(indptr: Any, indices: Any, vocabulary: Vocabulary) -> tuple[np.ndarray, np.ndarray]:
    """CSR arrays of ordered pairs of the vocabulary's genes, as int64 and int32."""
    indptr, indices = np.asarray(indptr), np.asarray(indices)
    for name, array in (("indptr", indptr), ("indices", indices)):
        if array.ndim != 1 or array.dtype.kind not in "iu":
            raise InputError(f"{name} must be a one-dimensional integer array; got {array.ndim}-d {array.dtype}")
    size, (lo, hi) = vocabulary.size, vocabulary.gene_range
    # Of unsigned numbers no difference is negative.
    indptr, indices = np.ascontiguousarray(indptr, np.int64), np.ascontiguousarray(indices, np.int64)
    if indptr.size != size + 1 or indptr[0] != 0 or indptr[-1] != indices.size or np.any(np.diff(indptr) < 0):
        raise InputError(
            f"indptr must have {size + 1} entries, one more than the vocabulary has tokens, and rise from 0 to "
            f"{indices.size}; got {indptr.size} entries, from {indptr[:1]} to {indptr[-1:]}; "
            "give the vocabulary that the table was made with"
        )
    rows = np.repeat(np.arange(size), np.diff(indptr))
    for wrong, rule in (
        (
            (np.minimum(rows, indices) < lo) | (np.maximum(rows, indices) >= hi),
            f"pairs must be of tokens in [{lo}, {hi})",
        ),
        (np.diff(rows * size + indices, prepend=-1) <= 0, "indices must ascend in each row, each once"),
    ):
        if wrong.any():
            k = int(wrong.argmax())
            raise InputError(f"{rule}; got the pair ({rows[k]}, {indices[k]}), place {k} of indices")
    return indptr, indices.astype(np.int32)


def _check_values(name: str, values: Any, size: int, dtype: Any) -> np.ndarray:
    values = np.asarray(values)
    if values.shape != (size,) or values.dtype.kind not in "fiu" or not np.isfinite(values).all():
        raise InputError(
            f"{name} must hold one finite number for each of {size} pairs; got {values.dtype} {values.shape}"
        )
    if dtype is np.int64 and values.size:
        wrong = (values != np.floor(values)) | (np.abs(values.astype(np.float64)) >= 2.0**63)
        if wrong.any():
            raise InputError(f"{name} must be integers of 64 bits; got {shown(values[wrong][0].item())}")
    return np.ascontiguousarray(values, dtype)
