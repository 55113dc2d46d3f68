"""What came of tokenising: how many cells and genes were found and left out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = ["TokenizeReport"]


@dataclass(frozen=True)
class TokenizeReport:
    """What :func:`~corrmask_fast.tokenize` read and wrote; printing it says so in a few lines."""

    output: Path
    n_cells_read: int
    n_cells_written: int
    n_cells_filtered: int
    """Cells left out since they did not pass the filter."""
    filter_column: str | None
    n_cells_cut: int
    median_length: float
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

    @property
    def n_cells_left_out(self) -> int:
        """Cells that passed but have no count in any gene of the vocabulary: these are not written."""
        return self.n_cells_read - self.n_cells_filtered - self.n_cells_written

    def __str__(self) -> str:
        written = f"{self.n_cells_written} of {self.n_cells_read} cells written to {self.output}"
        columns = sum(self.other_features.values())
        matched = f"{self.n_columns_matched} of {self.n_columns - columns} columns are genes of the vocabulary"
        lines = [
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
