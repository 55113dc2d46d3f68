"""Means with standard errors over cells: the genes of a cell are not independent, so a cell counts as one draw."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np

__all__ = ["Estimate", "estimate", "in_bins"]


class Estimate(NamedTuple):
    """A mean over values of several cells.

    Attributes
    ----------
    mean
        Of all values; NaN if there are none.
    error
        Its standard error over cells; NaN with fewer than two cells.
    n, n_cells
        Values and cells that it is of.
    """

    mean: float
    error: float
    n: int
    n_cells: int

    def text(self, decimals: int = 3, scale: float = 1.0) -> str:
        """Return ``mean ± error``, both times ``scale``, and no minus before a zero; "" of no value."""
        if not self.n:
            return ""
        mean = f"{scale * self.mean:z,.{decimals}f}"
        return mean if np.isnan(self.error) else f"{mean} ± {scale * self.error:,.{decimals}f}"


def estimate(values: np.ndarray, cells: np.ndarray, among: np.ndarray | None = None) -> Estimate:
    """Return the mean of values with its standard error over cells.

    Parameters
    ----------
    values
        (n,) numbers; NaN are left out.
    cells
        (n,) integers: the cell of each value.
    among
        (n,) bool: which values count; None: all.

    Notes
    -----
    The mean is a ratio of two sums over cells, L_c of the values and n_c of their numbers. Its variance is that of
    cluster sampling: sum over cells of (L_c - mean · n_c)², times C / (C - 1) for C cells, divided by n² (Cochran 1977,
    section 6.3).

    Examples
    --------
    >>> estimate(np.array([1.0, 3.0, 5.0, 7.0]), np.array([0, 0, 1, 1]))
    Estimate(mean=4.0, error=2.0, n=4, n_cells=2)
    """
    known = ~np.isnan(values) if among is None else among & ~np.isnan(values)
    values, of_cell = values[known], np.unique(cells[known], return_inverse=True)[1]
    n, n_cells = values.size, int(of_cell.max(initial=-1)) + 1
    if n == 0:
        return Estimate(float("nan"), float("nan"), 0, 0)
    mean = float(values.mean(dtype=np.float64))
    if n_cells < 2:
        return Estimate(mean, float("nan"), n, n_cells)
    residuals = np.bincount(of_cell, values - mean)
    error = float(np.sqrt((residuals**2).sum() * n_cells / (n_cells - 1)) / n)
    return Estimate(mean, error, n, n_cells)


def in_bins(values: np.ndarray, edges: tuple[float, ...], *, percent: bool = False) -> dict[str, np.ndarray]:
    """Return name → (n,) bool of ranges of values between ascending edges; a range holds its lower edge.

    >>> {name: found.tolist() for name, found in in_bins(np.array([0.01, 0.3]), (0.05, 0.2), percent=True).items()}
    {'below 5 %': [True, False], '5-20 %': [False, False], '20 % and above': [False, True]}
    """
    number = np.digitize(values, edges)
    shown, unit = [f"{100 * edge:g}" if percent else f"{edge:g}" for edge in edges], " %" if percent else ""
    names = [f"below {shown[0]}{unit}"]
    names += [f"{low}-{high}{unit}" for low, high in pairwise(shown)]
    names += [f"{shown[-1]}{unit} and above"]
    return {name: number == i for i, name in enumerate(names)}
