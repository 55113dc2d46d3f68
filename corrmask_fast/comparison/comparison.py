"""`Comparison`: strategies pretrained under equal conditions; its table, its differences, its report."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from corrmask_fast.comparison.differences import MANY, Difference, all_differences
from corrmask_fast.comparison.results import Results, percent
from corrmask_fast.files import atomic_file, check_output_folder
from corrmask_fast.tables import align, write_csv

if TYPE_CHECKING:
    import os

    from corrmask_fast.comparison.measures import Measure

__all__ = ["Comparison"]

_COLUMNS = 4  # of measures side by side in a terminal
_HEAD = ("fraction", "measure", "strategy", "against", "n", "mean", "sd", "low", "high", "seeds_needed")


class Comparison(Results):
    """Result of :func:`~corrmask_fast.compare_strategies`: the scores of models that differ in their masks alone.

    There is one model for each strategy, fraction of the training cells, and seed. :meth:`read` opens the folder of a
    comparison, finished or not.

    Attributes
    ----------
    facts
        Content of ``comparison.json``: strategies, numbers of cells and genes, settings, versions.
    rows
        The rows of ``rows.csv``, one for each model that has ended, and for each baseline and seed. A row has ``kind``
        (``"model"``, ``"untrained"`` or ``"baseline"``), ``strategy``, ``fraction``, ``seed`` and ``values`` (name of a
        column → float).
    details
        The rows of ``details.csv``: F1 and losses by cell type, losses by gene frequency, and shortcuts by gene
        frequency and by the partners' absolute rho.

    Raises
    ------
    InputError
        If facts and rows do not fit each other.

    Examples
    --------
    >>> from corrmask_fast import Comparison
    >>> from corrmask_fast.comparison.results import Row
    >>> facts = {
    ...     "strategies": {"random": "Random", "corrmask": "CorrMask"}, "reference": "random", "fractions": [1.0],
    ...     "seeds": 2, "train_cells": 700, "test_cells": 300, "genes": 50,
    ... }
    >>> losses = {("random", 0): 3.1, ("random", 1): 3.3, ("corrmask", 0): 3.2, ("corrmask", 1): 3.5}
    >>> rows = [Row("model", name, 1.0, seed, {"loss": loss}) for (name, seed), loss in losses.items()]
    >>> comparison = Comparison(facts, rows)  # of a folder: Comparison.read("comparison")
    >>> comparison.values("corrmask", "loss", 1.0)  # by seed
    {0: 3.2, 1: 3.5}
    >>> [round(difference.mean, 3) for difference in comparison.differences()]  # CorrMask minus Random
    [0.15]
    """

    def differences(self) -> list[Difference]:
        """Return each strategy minus the reference, for each fraction and measure, paired by seed.

        A few other pairs follow, such as CorrMask minus Random matched to its frequencies. A pair of strategies without
        a common seed is left out.

        Returns
        -------
        list
            Of each difference: ``fraction``, ``measure``, ``strategy``, ``against``, ``n`` (number of seeds), ``mean``,
            ``sd`` over seeds, ``low`` and ``high`` (Student's 95 % interval; NaN with one seed), ``verdict``, and
            ``seeds_needed`` (for a power of 80 %). Units are those of the measure.
        """
        return all_differences(self)

    def table(self) -> str:
        """Return the main measures of each strategy and baseline, and the differences whose interval excludes 0.

        Returns
        -------
        str
            Tables in plain text.
        """
        differences = self.differences()
        measures = [measure for measure in self.measures if measure.main]
        lines = [*self.remarks(), ""] if self.remarks() else []
        for fraction in self.started:
            told = {(one.strategy, one.measure) for one in differences
                    if one.fraction == fraction and one.against == self.reference and one.excludes_zero}  # fmt: skip
            for first in range(0, len(measures), _COLUMNS):
                lines += [*align(self._block(fraction, measures[first : first + _COLUMNS], told)), ""]
        lines.append("mean ± standard deviation over seeds")
        if differences:
            lines[-1] += "; * the 95 % interval of the difference to the reference, paired by seed, excludes 0"
        for difference in differences:
            if difference.excludes_zero and difference.measure.main and difference.fraction == self.started[0]:
                way = "" if difference.measure.better == "" else f": {difference.verdict}"
                pair = self.pair(difference.strategy, difference.against)
                lines.append(f"{pair}: {difference.measure.label} {difference.interval()}, {difference.n} seeds{way}")
        return "\n".join(lines)

    def _block(self, fraction: float, measures: list[Measure], told: set[tuple[str, Measure]]) -> list[list[str]]:
        """Return some columns of a table: a line for each strategy and baseline that has any of them."""
        lines = [
            ["", "", *(f"{one.label} " for one in measures)],
            [f"{self.cells(fraction):,} cells ({percent(fraction)})", "seeds",
             *(f"({one.unit}) " if one.unit else "" for one in measures)],
        ]  # fmt: skip
        for name in [*self.strategies, *self.baselines]:
            columns = [[*self.values(name, one.name, fraction).values()] for one in measures]
            if any(columns):
                label = f"{self.label(name)} (reference)" if name == self.reference else self.label(name)
                texts = [
                    one.mean_sd(column) + (" *"[(name, one) in told]) if column else "– "
                    for one, column in zip(measures, columns, strict=True)
                ]
                lines.append([label, str(max(map(len, columns))), *texts])
        return lines

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write ``differences.csv`` and ``report.html`` into a folder.

        The CSV file has measures as ``rows.csv`` has them (accuracy as a share). The page needs no other file and no
        network.

        Parameters
        ----------
        folder
            Folder to write to. It is made if it does not exist.

        Raises
        ------
        InputError
            If nothing can be written there.
        MissingExtraError
            Without matplotlib (extra ``plot``).
        """
        from corrmask_fast.comparison.report import page

        folder = check_output_folder(folder)
        folder.mkdir(exist_ok=True)
        differences = self.differences()
        write_csv(folder / "differences.csv", _HEAD, map(_fields, differences))
        text = page(self, differences)
        with atomic_file(Path(folder) / "report.html") as temporary:
            temporary.write_text(text, encoding="utf-8", errors="replace")


def _fields(one: Difference) -> list[str | int | float]:
    """Return a line of ``differences.csv``; what one seed does not tell is empty."""
    numbers = [f"{value:.6g}" if math.isfinite(value) else "" for value in (one.mean, one.sd, one.low, one.high)]
    needed = one.seeds_needed or (MANY if one.n > 1 else "")
    return [one.fraction, one.measure.name, one.strategy, one.against, one.n, *numbers, needed]
