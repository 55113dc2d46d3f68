"""How the cost of a build grows with cells and genes: fitted exponents, and a picture."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from corrmask_fast.plots import COLORS

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from harness.records import Row


class Fit(NamedTuple):
    """seconds = scale · cells ** cells_power · genes ** genes_power, by least squares of logarithms."""

    scale: float
    cells_power: float
    genes_power: float

    def seconds(self, cells: float, genes: np.ndarray) -> np.ndarray:
        """Seconds by the fit."""
        return self.scale * cells**self.cells_power * genes**self.genes_power


def fit(rows: Sequence[Row]) -> Fit:
    """Fit the measured builds."""
    cells, genes, seconds = (np.array([float(row[name]) for row in rows]) for name in ("n_cells", "n_genes", "seconds"))
    design = np.column_stack([np.ones(cells.size), np.log(cells), np.log(genes)])
    scale, cells_power, genes_power = np.linalg.lstsq(design, np.log(seconds), rcond=None)[0]
    return Fit(float(np.exp(scale)), float(cells_power), float(genes_power))


def draw(rows: Sequence[Row], path: Path) -> Fit:
    """Save seconds against genes, a line for each number of cells, with the fit; return the fit."""
    from matplotlib.figure import Figure

    found = fit(rows)
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for color, cells in zip(COLORS, sorted({int(row["n_cells"]) for row in rows}), strict=False):
        of_cells = sorted((int(row["n_genes"]), float(row["seconds"])) for row in rows if int(row["n_cells"]) == cells)
        genes, seconds = np.array(of_cells).T
        axes.plot(genes, seconds, "o", color=color, label=f"{cells:,} cells")
        smooth = np.geomspace(genes.min(), genes.max(), 50)
        axes.plot(smooth, found.seconds(cells, smooth), "-", color=color, linewidth=1, alpha=0.6)
    axes.set_xscale("log")
    axes.set_yscale("log")
    ticks = sorted({int(row["n_genes"]) for row in rows})
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel("genes")
    axes.set_ylabel("seconds, tokens in memory to saved graph")
    axes.set_title(
        f"Building a graph: time ∝ cells^{found.cells_power:.2f} · genes^{found.genes_power:.2f}", loc="left"
    )
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    return found
