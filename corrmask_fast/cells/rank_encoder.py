"""Batches of counts in memory, as loaders hand them out, to rank-value encoded cells."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from corrmask_fast.cells.anndata_store import MemoryFrame, NamesFrame
from corrmask_fast.cells.count_batches import CountRows, count_batch, is_table, numbers_of_cells, var_of
from corrmask_fast.cells.encoding import EncodingTables, check_max_length
from corrmask_fast.cells.gene_matching import FEATURE_TYPES, ID_COLUMNS, match_genes
from corrmask_fast.cells.medians import read_medians
from corrmask_fast.cells.surrounding import with_special_tokens
from corrmask_fast.cells.vocabulary import Vocabulary
from corrmask_fast.errors import InputError, brief, check_integer, check_number, shown

if TYPE_CHECKING:
    import torch

    from corrmask_fast.cells.dataset import RaggedBatch
    from corrmask_fast.cells.gene_matching import GeneMapping
    from corrmask_fast.cells.medians import Medians

__all__ = ["RankEncoder"]


class RankEncoder:
    """Encoder of raw counts: a batch in memory becomes rank-value encoded cells, without a corpus on disk.

    Calling it gives a :class:`~corrmask_fast.RaggedBatch`. Cells are those of :func:`~corrmask_fast.tokenize`, to the
    bit: genes by falling ``count / total * target_sum / median``. :class:`~corrmask_fast.DataCollatorForCounts` masks
    and pads them.

    Parameters
    ----------
    vocabulary : Vocabulary
        The genes, by id or symbol.
    medians : mapping, path or None
        Gene → non-zero median of scaled counts: a mapping, or a ``.json`` or ``.pkl`` file such as Geneformer's
        ``gene_median_dictionary``; :func:`~corrmask_fast.corpus_medians` finds those of a corpus. Genes without a
        median are left out. None: every median is 1, so genes are ordered by falling count.
    genes : sequence of str or DataFrame, optional
        Which gene each column of the counts is: names (ids or symbols) such as ``adata.var_names``, or a table ``var``
        with a column of ids. None: batches are ``AnnData``, which name their columns.
    gene_column, gene_mapping, target_sum
        As for :func:`~corrmask_fast.tokenize`.
    max_length : int, optional
        Most genes of a cell. None: the vocabulary's ``max_length``, less two with V2 for ``<cls>`` and ``<eos>``.
    allow_fractional : bool
        As for :func:`~corrmask_fast.tokenize`.

    Raises
    ------
    InputError
        If no gene or no median is of the vocabulary, or a number is out of range. When a batch is encoded: if it has
        another number of columns than there are genes, or an entry is no count.

    Notes
    -----
    docs/SPEC.md, section 7.

    Examples
    --------
    >>> import scipy.sparse
    >>> from corrmask_fast import RankEncoder, Vocabulary
    >>> genes = Vocabulary(("<pad>", "<mask>", "RPL3", "CD3E", "LYZ"))
    >>> encoder = RankEncoder(genes, {"RPL3": 5000.0, "CD3E": 900.0, "LYZ": 1000.0}, ["LYZ", "CD3E", "RPL3"])
    >>> cells = encoder(scipy.sparse.csr_matrix([[0, 1, 5], [9, 0, 1]]))
    >>> cells.indptr, cells.tokens
    (array([0, 2, 4]), array([3, 2, 4, 2], dtype=int32))
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        medians: Medians | None,
        genes: Any = None,
        *,
        gene_column: str | None = None,
        gene_mapping: GeneMapping | None = None,
        target_sum: float = 10_000,
        max_length: int | None = None,
        allow_fractional: bool = False,
    ) -> None:
        if not isinstance(vocabulary, Vocabulary):
            raise InputError(f"vocabulary must be a Vocabulary; got {shown(vocabulary)}")
        self.vocabulary = vocabulary
        self.max_length = check_max_length(max_length, vocabulary)
        self.target_sum = check_number("target_sum", target_sum, 0, np.inf, open_ends=True)
        self.allow_fractional = allow_fractional
        self.gene_column, self.gene_mapping = gene_column, gene_mapping
        self._median_of_token = np.ones(vocabulary.size) if medians is None else read_medians(medians, vocabulary)
        self._seen: list[Any] = []  # names of the last batch that named its columns
        self._tables: EncodingTables | None = None
        self._on_device: Any = None  # a device, tables, and these there
        self._fixed = genes is not None
        if genes is not None:
            named = None if is_table(genes) else var_of(genes)  # of an AnnData
            self._match(genes if named is None else named)

    def __call__(self, counts: Any, totals: Any = None, *, values: bool = False) -> RaggedBatch:
        """Encode a batch.

        Parameters
        ----------
        counts : matrix, tensor, array, AnnData, mapping or list
            (cells, columns) raw counts: a SciPy sparse matrix (CSR is fastest), a sparse or dense tensor on the CPU, a
            dense array, an ``AnnData`` (view) or what has ``X`` and ``var_names`` like one, a mapping with ``"X"``, or
            a list of rows.
        totals : array, optional
            (cells,) each cell's total. None: the sum of its counts.
        values : bool
            Hand out each gene's count beside it, for models that read values
            (:class:`~corrmask_fast.DataCollatorForValues`): all genes of a cell in the same order, without ``<cls>``
            and ``<eos>``.

        Returns
        -------
        RaggedBatch
            The cells as int32 tokens; with a V2 vocabulary each between ``<cls>`` and ``<eos>``. A cell without a count
            in a known gene has no gene.

        Raises
        ------
        InputError
            If the number of columns is not that of the genes, an entry is no count (names row and gene), or a total is
            not above 0.
        """
        from corrmask_fast.cells.dataset import RaggedBatch

        tables, batch = self._tables_for(counts), count_batch(counts)
        _check_width(batch.n_columns, tables)
        given = None if totals is None else numbers_of_cells(totals, len(batch))
        fault = partial(self._fault, batch.rows, given)
        if values:
            tables = replace(tables, limit=self.vocabulary.size)
            indptr, tokens, _ = tables.encode(batch.rows, given, fault)
            return RaggedBatch(indptr, tokens, self.vocabulary, values=tables.values(batch.rows, indptr, tokens))
        indptr, tokens, _ = tables.encode(batch.rows, given, fault)
        return RaggedBatch(*with_special_tokens(indptr, tokens, self.vocabulary), self.vocabulary)

    def padded(
        self, counts: Any, totals: Any = None, *, pad_to_multiple_of: int | None = None
    ) -> dict[str, torch.Tensor]:
        """Encode a batch and pad it, on the device of the counts.

        Counts on a CUDA device (a dense or sparse tensor, or a mapping with one as ``"X"``) are encoded there, to the
        bits of the CPU. The host reads only a few numbers of a batch, such as the length of its longest cell.

        Parameters
        ----------
        counts, totals
            As for calling the encoder.
        pad_to_multiple_of : int, optional
            The number of columns is rounded up to a multiple of this.

        Returns
        -------
        dict
            ``input_ids`` and ``attention_mask``, each a (cells, columns) int64 tensor, padded on the right: what a
            masker takes.

        Raises
        ------
        InputError
            As for calling the encoder.
        MissingExtraError
            If the counts are on a CUDA device and CuPy is not installed.
        """
        multiple = 1 if pad_to_multiple_of is None else check_integer("pad_to_multiple_of", pad_to_multiple_of, 1)
        given = counts["X"] if isinstance(counts, Mapping) and "X" in counts else counts
        if not hasattr(given, "layout") or given.device.type == "cpu":
            return self(counts, totals).padded(self.vocabulary.pad_token_id, multiple)
        return self._padded_on_device(counts, given, totals, multiple)

    def _padded_on_device(
        self, counts: Any, given: torch.Tensor, totals: Any, multiple: int
    ) -> dict[str, torch.Tensor]:
        import torch

        from corrmask_fast.cells.encode_device import DeviceTables, cells_on_device, encode_on_device

        tables, cells = self._tables_for(counts), cells_on_device(given)
        _check_width(cells.n_columns, tables)
        if self._on_device is None or self._on_device[:2] != (given.device, tables):
            self._on_device = given.device, tables, DeviceTables.of(tables, given.device)
        if totals is not None:
            totals = torch.from_numpy(numbers_of_cells(totals, len(given))).to(given.device)
        batch = encode_on_device(cells, tables, self._on_device[2], self.vocabulary, totals, multiple)
        if batch is None:  # the CPU says what is wrong
            self(given.cpu(), None if totals is None else totals.cpu().numpy())
            raise InputError(
                "the device found a value that is not a count, and the CPU found none; encode the batch on the CPU"
            )
        return dict(zip(("input_ids", "attention_mask"), batch, strict=True))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_on_device": None}

    def _tables_for(self, counts: Any) -> EncodingTables:
        """Return the tables of a batch's columns; genes are matched anew only where a batch names others."""
        names = var_of(counts)
        if names is None and not self._fixed:
            raise InputError(
                f"the encoder does not know which genes the columns of a {type(counts).__name__} are; give "
                "RankEncoder(genes=…)"
            )
        if names is not None and not _same(seen := self._looked_at(names), self._seen):
            if self._fixed:
                self._check_order(seen[0])
            else:
                self._match(names)
            self._seen = seen
        assert self._tables is not None
        return self._tables

    def _looked_at(self, names: Any) -> list[Any]:
        """Return all of a batch's names that matching looks at: the index first, then columns."""
        if not is_table(names):
            return [names]
        columns = [*(ID_COLUMNS if self.gene_column is None else (self.gene_column,)), FEATURE_TYPES]
        return [names.index, *(names[name] for name in columns if name in names.columns)]

    def _check_order(self, names: Any) -> None:
        """Refuse a batch whose columns are the genes that were given, in another order."""
        there = list(map(str, names))
        if there != self._columns and sorted(there) == sorted(self._columns):
            raise InputError(
                "a batch names the encoder's genes in another order; give RankEncoder(genes=…) those of this "
                "loader, or leave genes out where each batch names its own"
            )

    def _match(self, genes: Any) -> None:
        frame = MemoryFrame(genes, "genes") if is_table(genes) else NamesFrame(genes)
        match = match_genes(frame, "the encoder", self.vocabulary, self.gene_column, self.gene_mapping)
        self._tables = EncodingTables.of(
            match, self._median_of_token, self.target_sum, self.max_length, fractional=self.allow_fractional
        )
        self._columns = match.names

    def _fault(self, rows: CountRows, totals: np.ndarray | None, code: int, row: int, entry: int) -> InputError:
        from corrmask_fast.kernels.encode import BAD_TOTAL, OUTSIDE

        if code == OUTSIDE:
            return InputError(f"row {row} of the batch has a count in column {rows.columns[entry]}, which is not there")
        if code == BAD_TOTAL:
            total = "the sum of its counts" if totals is None else totals[row]
            return InputError(f"a cell's total must be a finite number above 0; row {row} of the batch has {total}")
        rule = "numbers" if self.allow_fractional else "whole numbers"
        gene = brief(self._columns[rows.columns[entry]])
        return InputError(
            f"counts must be {rule} >= 0; row {row} of the batch has {rows.counts[entry]} in gene {gene}; give raw "
            "counts, or allow_fractional=True if these are corrected or estimated counts"
        )


def _check_width(n_columns: int, tables: EncodingTables) -> None:
    if n_columns != tables.token_of_column.size:
        raise InputError(
            f"a batch has {n_columns} columns, and the encoder knows the genes of {tables.token_of_column.size}; give "
            "RankEncoder(genes=…) those of this loader"
        )


def _same(one: list[Any], other: list[Any]) -> bool:
    """Whether two lists of names, or of columns of tables, are equal."""
    return len(one) == len(other) and all(
        a is b or (type(a) is type(b) and (a.equals(b) if hasattr(a, "equals") else a == b))
        for a, b in zip(one, other, strict=True)
    )
