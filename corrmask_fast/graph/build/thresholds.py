"""Thresholds for few cells: what ``min_cooccurrence`` and ``min_presence`` may be, by the number of cells."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from corrmask_fast.errors import check_integer

if TYPE_CHECKING:
    from collections.abc import Container

__all__ = ["DEFAULTS", "advice_on_thresholds", "suggest_thresholds"]

DEFAULTS = {"min_cooccurrence": 200, "min_presence": 50}  # of build_dependency_graph, for atlases
FEWEST = 20
HARDLY_FITS = 2  # times the suggestion: from here on a default is worth a warning


def suggest_thresholds(n_cells: int) -> dict[str, Any]:
    """Return ``min_cooccurrence`` and ``min_presence`` for a graph of so many cells.

    Each is 1 % of the cells, but at most the default (200 and 50) and at least 20. With fewer than 20 cells it is their
    number.

    Parameters
    ----------
    n_cells : int
        Number of cells that the graph is built from, at least 1.

    Returns
    -------
    dict
        The two by name, as :func:`~corrmask_fast.build_dependency_graph` takes them.

    Raises
    ------
    InputError
        If ``n_cells`` is no integer >= 1.

    Notes
    -----
    The default wants 200 cells that hold both genes. Of 2 700 cells these are 7 %, and most genes are found in fewer:
    only pairs of common genes would be left. 1 % keeps the others.

    Between two independent genes, rho over n cells has a standard deviation of 1 / sqrt(n - 1): 0.07 over 200 cells,
    0.23 over 20. Below 20 cells it is larger than the default ``rho_min`` of 0.2, so the suggestion is never lower.
    With fewer than 2 000 cells, where 20 is more than 1 %, rho of pairs near the limit is uncertain;
    :func:`~corrmask_fast.edge_stability` shows how much.

    Examples
    --------
    >>> from corrmask_fast import suggest_thresholds
    >>> suggest_thresholds(2_700)
    {'min_cooccurrence': 27, 'min_presence': 27}
    >>> suggest_thresholds(100_000)
    {'min_cooccurrence': 200, 'min_presence': 50}
    """
    n_cells = check_integer("n_cells", n_cells, 1)
    return {name: min(max(FEWEST, min(usual, n_cells // 100)), n_cells) for name, usual in DEFAULTS.items()}


def advice_on_thresholds(n_cells: int, given: Container[str] = ()) -> str | None:
    """Return what to say where a default hardly fits so many cells; None where all fit, or none is used.

    ``given``: names of the thresholds that were chosen, and are not judged.
    """
    suggested = {name: value for name, value in suggest_thresholds(n_cells).items() if name not in given}
    unfit = [name for name, value in suggested.items() if DEFAULTS[name] > HARDLY_FITS * value]
    if not unfit:
        return None
    name = unfit[0]
    advised = " and ".join(f"{one}={value}" for one, value in suggested.items() if value < DEFAULTS[one])
    return (
        f"the default {name}={DEFAULTS[name]} is {100 * DEFAULTS[name] / n_cells:.1f} % of these {n_cells:,} cells, so "
        f"edges of rarer genes are left out; try {advised}"
    )
