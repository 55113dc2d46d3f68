"""What came of tokenising: how many cells and genes were found and left out."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field, fields
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from corrmask_fast.errors import readable
from corrmask_fast.tables import align

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["TokenizeReport"]


@dataclass(frozen=True)
class TokenizeReport:
    """What :func:`~corrmask_fast.tokenize` read and wrote; printing it says so in a few lines."""

    output: Path
    """Where the corpus is; in the report of one of several inputs, that input."""
    n_cells_read: int
    n_cells_written: int
    n_cells_filtered: int
    """Cells left out since they did not pass the filter."""
    filter_column: str | None
    n_cells_cut: int
    cells_by_length: Sequence[int]
    """Number of cells with 0, 1, 2 … genes, after the cut."""
    gene_column: str
    n_columns: int
    n_columns_matched: int
    n_columns_mapped: int
    """Columns found through ``gene_mapping`` alone."""
    n_columns_ambiguous: int
    """Columns found by a symbol that several genes share: it means one of them."""
    n_genes_matched: int
    n_genes_without_median: int
    medians: str
    """Which medians: "of these cells", or where they came from."""
    total: str | None = None
    """The obs column of cells' totals; None: sums of counts."""
    other_features: Mapping[str, int] = field(default_factory=dict)
    """Feature types that are no genes, with their number of columns: these were left out."""
    files: Sequence[TokenizeReport] = ()
    """The same of each input, where there are several."""
    n_missing: int = 0
    """Inputs that other shards have not written yet: the corpus is not complete."""

    @property
    def median_length(self) -> float:
        """Median number of genes of the cells that were written."""
        upto = np.cumsum(self.cells_by_length[1:])
        if not upto.size:
            return 0.0
        middle = [int(np.searchsorted(upto, rank, side="right")) + 1 for rank in ((upto[-1] - 1) // 2, upto[-1] // 2)]
        return float(np.mean(middle))

    @property
    def n_cells_left_out(self) -> int:
        """Cells that passed but have no count in any gene of the vocabulary: these are not written."""
        return self.n_cells_read - self.n_cells_filtered - self.n_cells_written

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, as JSON holds them."""
        return asdict(self) | {"output": str(self.output)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Return the report that :meth:`to_dict` made plain; other values beside it do not matter."""
        with readable("a report of tokenize", "report"):
            known = {one.name: values[one.name] for one in fields(cls) if one.name in values}
            return cls(**{**known, "output": Path(values["output"])})

    def _table(self) -> str:
        header = ["input", "cells", "written", "median length", "genes", "of columns"]
        rows = [
            [
                one.output.name,
                f"{one.n_cells_read:,}",
                f"{one.n_cells_written:,}",
                f"{one.median_length:g}",
                f"{one.n_genes_matched:,}",
                f"{one.n_columns:,}",
            ]
            for one in self.files
        ]
        return "\n".join(align([header, *rows]))

    def __str__(self) -> str:
        written = f"{self.n_cells_written} of {self.n_cells_read} cells written to {self.output}"
        if self.n_missing:
            written = f"{self.n_cells_written} of {self.n_cells_read} cells written for {self.output}"
            missing = f"{self.n_missing} of {self.n_missing + len(self.files)} inputs are missing"
            return f"{self._table()}\n{written}; {missing}: the corpus appears with the last of them"
        columns = sum(self.other_features.values())
        matched = f"{self.n_columns_matched} of {self.n_columns - columns} columns are genes of the vocabulary"
        lines = [
            *([self._table()] if len(self.files) > 1 else []),
            f"{written}, median length {self.median_length:g} genes",
            f"{matched} (by var {self.gene_column}): {self.n_genes_matched} genes",
        ]
        if self.n_columns_mapped:
            lines.append(f"{self.n_columns_mapped} of these columns by the gene mapping")
        if self.n_columns_ambiguous:
            lines.append(f"{self.n_columns_ambiguous} of these columns by a symbol that several genes share")
        if columns:
            kinds = ", ".join(f"{count} {kind}" for kind, count in self.other_features.items())
            lines.append(
                f"{columns} columns left out, of totals too, since var feature_types says they are no genes: {kinds}"
            )
        lines.append(f"medians: {self.medians}")
        if self.total is not None:
            lines.append(f"totals of cells: obs {self.total}")
        if self.n_cells_filtered:
            lines.append(f"{self.n_cells_filtered} cells left out: obs {self.filter_column} is not 1")
        if self.n_cells_left_out:
            lines.append(f"{self.n_cells_left_out} cells left out: no count in any gene of the vocabulary")
        if self.n_cells_cut:
            lines.append(f"{self.n_cells_cut} cells had more genes than a cell may hold, and were cut")
        if self.n_genes_without_median:
            lines.append(f"{self.n_genes_without_median} genes left out: no median given")
        return "\n".join(lines)


def united(reports: Sequence[TokenizeReport], output: Path, n_missing: int = 0) -> TokenizeReport:
    """Return the report of all inputs; of columns, those of the input that has most."""
    widest = max(reports, key=lambda one: one.n_genes_matched, default=None)
    if widest is None:
        return TokenizeReport(output, 0, 0, 0, None, 0, [], "index", 0, 0, 0, 0, 0, 0, "as given", n_missing=n_missing)
    sums = {
        name: sum(getattr(one, name) for one in reports)
        for name in ("n_cells_read", "n_cells_written", "n_cells_filtered", "n_cells_cut")
    }
    lengths = [sum(counts) for counts in zip_longest(*(one.cells_by_length for one in reports), fillvalue=0)]
    left_out: Counter[str] = Counter()
    for one in reports:
        left_out |= Counter(one.other_features)
    filters = [one.filter_column for one in reports if one.filter_column is not None]
    values = (
        vars(widest)
        | sums
        | {
            "output": output,
            "cells_by_length": lengths,
            "other_features": dict(left_out),
            "filter_column": filters[0] if filters else None,
            "files": tuple(reports) if len(reports) > 1 or n_missing else (),
            "n_missing": n_missing,
        }
    )
    return TokenizeReport(**values)
