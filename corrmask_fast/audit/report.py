"""What a mask hides: how often the correlated partners of a masked gene are masked with it, beside a control.

The definitions are those of the project's audit (the paper's Table 3 leaves them open):

=====================  ==========================================================================================
hit rate               of the neighbours that stand in the cell beside a masked gene, the share that is masked too
all-partner hit rate   the same over all neighbours of the gene, present in the cell or not
hidden rate            share of masked genes all of whose present neighbours are masked
residual shortcut      mean of the largest stored abs(rho) among a masked gene's visible neighbours (0 if none)
shortcut, same genes   the same, each gene's mean weighted as often as the control judged that gene
mean span              mean length of runs of masked columns, in genes
rate                   masked columns of all maskable columns
coverage (of a gene)   times masked / times present
=====================  ==========================================================================================

The first five count masked genes with at least one neighbour in their cell. An empty sum is NaN.

CorrMask masks hubs more often than the control does, so the first four are over another mix of genes in each line; a
hub has strong partners, and its weight can raise the mean although each gene's own shortcut falls (Simpson's paradox).
*Shortcut, same genes* takes that out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from corrmask_fast.tables import align, write_csv

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Mapping

    from corrmask_fast.cells.vocabulary import Vocabulary

__all__ = ["AuditReport", "StrategyAudit"]

NOTE = (
    "Hit rates, hidden rate and shortcuts are over the masked genes that have a partner in the cell. Shortcut: the\n"
    "largest |rho| among a masked gene's partners in view (0 if none), on average. 'Residual' takes each line's own\n"
    "masked genes, which differ between lines: CorrMask masks hubs more often. 'Same genes' weighs each gene as the\n"
    "control does: compare lines by this one."
)


class Metric(NamedTuple):
    """A figure of the audit: its attribute, the two lines above its column, whether it is shown as a percentage."""

    name: str
    heading: tuple[str, str]
    percent: bool


METRICS = (
    Metric("hit_rate", ("", "hit rate"), percent=True),
    Metric("all_partner_hit_rate", ("all-partner", "hit rate"), percent=True),
    Metric("hidden_rate", ("hidden", "rate"), percent=True),
    Metric("residual_shortcut_same_genes", ("shortcut,", "same genes"), percent=False),
    Metric("residual_shortcut", ("residual", "shortcut"), percent=False),
    Metric("mean_span", ("mean", "span"), percent=False),
    Metric("rate", ("", "rate"), percent=True),
    Metric("genes_reached", ("genes", "reached"), percent=True),
)

# Of the maskers, and what columns call them: in files always, in the table where they differ between lines.
SETTINGS = {"structural_ratio": "lambda", "max_partners": "K", "mlm_probability": "p", "seed": "seed"}

# The counts of kernels/audit.py, in its order.
COUNTS = ("maskable", "masked", "runs", "judged", "pairs", "hits", "all_pairs", "hidden")


@dataclass(frozen=True)
class StrategyAudit:
    """The figures of one strategy in an audit: counts over all rows, and their quotients.

    Attributes
    ----------
    name
        Name of the row.
    maskable
        Columns that may be masked.
    masked
        Columns that were masked.
    runs
        Maximal runs of masked columns.
    judged
        Masked columns whose gene has at least one neighbour in the row.
    pairs
        (judged column, neighbour in the row).
    hits
        Of ``pairs``, those whose neighbour is masked.
    all_pairs
        (judged column, neighbour), in the row or not.
    hidden
        Judged columns all of whose neighbours in the row are masked.
    shortcut_sum
        Sum over judged columns of the largest abs(rho) among visible neighbours; float64, added in the order of the
        rows.
    times_masked
        (V,) int64: rows in which each gene was masked.
    times_present
        (V,) int64: rows in which each gene stood.
    times_judged
        (V,) int64: judged columns of each gene.
    shortcut_of_gene
        (V,) float64: each gene's part of ``shortcut_sum``.
    mix
        (V,) int64: weights of genes, shared by the strategies of a report; 0 for a gene that one of them never judged.
    label
        What the strategy is called where its settings stand beside it; empty: its name.
    settings
        λ, ``max_partners``, p and seed of the masker, as far as they have a meaning.
    """

    name: str
    maskable: int
    masked: int
    runs: int
    judged: int
    pairs: int
    hits: int
    all_pairs: int
    hidden: int
    shortcut_sum: float
    times_masked: np.ndarray = field(repr=False)
    times_present: np.ndarray = field(repr=False)
    times_judged: np.ndarray = field(repr=False)
    shortcut_of_gene: np.ndarray = field(repr=False)
    mix: np.ndarray = field(repr=False)
    label: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def hit_rate(self) -> float:
        """Share of present neighbours that are masked too, in [0, 1]."""
        return _share(self.hits, self.pairs)

    @property
    def all_partner_hit_rate(self) -> float:
        """Share of all neighbours, present or not, that are masked too, in [0, 1]."""
        return _share(self.hits, self.all_pairs)

    @property
    def hidden_rate(self) -> float:
        """Share of judged columns all of whose present neighbours are masked, in [0, 1]."""
        return _share(self.hidden, self.judged)

    @property
    def residual_shortcut(self) -> float:
        """Mean over judged columns of the largest stored abs(rho) among visible neighbours (0 if none)."""
        return _share(self.shortcut_sum, self.judged)

    @property
    def residual_shortcut_same_genes(self) -> float:
        """The residual shortcut with each gene's mean weighted by ``mix``, comparable between strategies."""
        genes = self.mix > 0
        means = self.shortcut_of_gene[genes] / self.times_judged[genes]
        return _share(float(means @ self.mix[genes]), int(self.mix.sum()))

    @property
    def mean_span(self) -> float:
        """Mean length of maximal runs of masked columns, in genes."""
        return _share(self.masked, self.runs)

    @property
    def rate(self) -> float:
        """Share of the maskable columns that are masked, in [0, 1]."""
        return _share(self.masked, self.maskable)

    @property
    def coverage(self) -> np.ndarray:
        """Times masked / times present of each gene, (V,) float64, NaN for a gene that never stood in a cell."""
        with np.errstate(invalid="ignore"):
            return self.times_masked / self.times_present

    @property
    def genes_reached(self) -> float:
        """Share of the genes that stood in a cell which were masked at least once, in [0, 1]."""
        return _share(int(np.count_nonzero(self.times_masked)), int(np.count_nonzero(self.times_present)))

    def to_dict(self) -> dict[str, Any]:
        """Return settings, figures and counts by name.

        Returns
        -------
        dict
            Plain values; of the coverage its percentiles 5, 50 and 95 over genes.
        """
        figures: dict[str, Any] = {"strategy": self.label or self.name}
        figures |= {name: self.settings.get(name) for name in SETTINGS}
        figures |= {metric.name: getattr(self, metric.name) for metric in METRICS}
        figures |= {name: getattr(self, name) for name in COUNTS}
        coverage = self.coverage[self.times_present > 0]
        for percent in (5, 50, 95):
            figures[f"coverage_p{percent:02}"] = float(np.percentile(coverage, percent)) if coverage.size else math.nan
        return figures


@dataclass(frozen=True)
class AuditReport:
    """What masks hide: audits of one or more strategies on the same cells, a row each.

    :func:`~corrmask_fast.audit_masking`, :func:`~corrmask_fast.audit_all_strategies` and
    :func:`~corrmask_fast.audit_collator` return it. ``report["CorrMask"]`` is the row of that name (KeyError if there
    is none); iterating goes over the rows.

    Attributes
    ----------
    strategies
        The rows: a tuple of objects with a strategy's figures, see the notes.
    vocabulary
        The :class:`~corrmask_fast.Vocabulary` of the cells.
    n_cells
        Number of cells that were masked in each epoch.
    epochs
        How often each cell was masked.
    controls
        Names of the rows that others are compared with. The first one gives the genes of *shortcut, same genes*.
    step
        Training step whose rates were audited; None without a schedule.
    compared
        How the rows go together, in words.
    notes
        What was found beside the figures, a line each.
    graph
        Which graph says who is a partner: the first digits of its fingerprint, or its file.

    Notes
    -----
    The figures of a row; docs/SPEC.md 6 defines them (the paper's Table 3 does not say). A partner of a gene is its
    neighbour in the graph. The first five count the masked genes that have a partner in their cell. Rates are shares in
    [0, 1]; an empty sum is NaN.

    - ``hit_rate``: of their partners in the cell, the share that is masked too
    - ``all_partner_hit_rate``: the same over all partners, in the cell or not
    - ``hidden_rate``: share of these genes all of whose partners in the cell are masked
    - ``residual_shortcut``: mean of the largest abs(rho) among a gene's visible partners (0 if none)
    - ``residual_shortcut_same_genes``: the same, each gene weighted as often as the first control judged it. Compare
      strategies by this one: CorrMask masks hubs more often, so that ``residual_shortcut`` is over another mix of genes
    - ``mean_span``: mean length of runs of masked columns, in genes
    - ``rate``: share of maskable columns that are masked
    - ``coverage``: (V,) times masked / times present of each gene; NaN for a gene in no cell
    - ``genes_reached``: share of the genes in the cells that were masked at least once

    Examples
    --------
    >>> from corrmask_fast import CorrMasker, DependencyGraph, Vocabulary, audit_masking, read_corpus
    >>> genes = Vocabulary(("<pad>", "<mask>", *"ABCDEFGH"))
    >>> cells = read_corpus([[2, 3, 4, 5, 6, 7, 8, 9], [5, 4, 7, 2, 8, 3, 9, 6]], genes)
    >>> graph = DependencyGraph.from_edges([("A", "B"), ("C", "D"), ("E", "F"), ("G", "H")], genes)
    >>> masker = CorrMasker(graph, mlm_probability=0.5, structural_ratio=1)
    >>> report = audit_masking(masker, cells, graph, progress=False)
    >>> report["CorrMask"].hit_rate, report["CorrMask"].residual_shortcut
    (1.0, 0.0)
    >>> report.scope
    '2 cells, 1 epoch'
    """

    strategies: tuple[StrategyAudit, ...]
    vocabulary: Vocabulary
    n_cells: int
    epochs: int
    controls: tuple[str, ...] = ()
    step: int | None = None
    compared: str = "the same draws in every line"
    notes: tuple[str, ...] = ()
    graph: str = ""

    @property
    def scope(self) -> str:
        """What was audited, in a few words, such as ``"2 cells, 1 epoch"``; with a schedule the step too."""
        epochs = f"{self.epochs} epoch{'s' if self.epochs > 1 else ''}"
        step = "" if self.step is None else f", rates of training step {self.step:,}"
        return f"{self.n_cells:,} cells, {epochs}{step}"

    def __getitem__(self, name: str) -> StrategyAudit:
        for strategy in self.strategies:
            if strategy.name == name:
                return strategy
        raise KeyError(f"no strategy {name!r} in this report; it has {', '.join(s.name for s in self.strategies)}")

    def __iter__(self) -> Iterator[StrategyAudit]:
        return iter(self.strategies)

    def table(self) -> str:
        """Return the report as an aligned text table, a line for each strategy, and how to read it.

        Returns
        -------
        str
            Several lines. Settings have columns where they differ between strategies.
        """
        settings = [name for name in SETTINGS if len({s.settings.get(name) for s in self.strategies}) > 1]
        headings = [("", "strategy"), *(("", SETTINGS[name]) for name in settings), *(m.heading for m in METRICS)]
        body = [
            [s.label or s.name, *(setting_text(s.settings.get(name)) for name in settings)]
            + [_format(getattr(s, m.name), m.percent) for m in METRICS]
            for s in self.strategies
        ]
        lines = align([*(list(line) for line in zip(*headings, strict=True)), *body])
        title = f"Masking audit: {self.scope}; {self.compared}"
        return "\n".join([title, *lines[:2], "-" * len(lines[0]), *lines[2:], "", *self.notes, NOTE])

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain values, ready for JSON (where NaN is allowed).

        Returns
        -------
        dict
            ``n_cells``, ``epochs``, ``step``, ``graph``, ``notes``; and ``strategies``, a dict for each row with its
            settings, figures and counts.
        """
        rows = [strategy.to_dict() for strategy in self.strategies]
        return {
            "n_cells": self.n_cells,
            "epochs": self.epochs,
            "step": self.step,
            "graph": self.graph,
            "notes": list(self.notes),
            "strategies": rows,
        }

    def save_csv(self, path: str | os.PathLike[str]) -> None:
        """Write a CSV file with a line for each strategy: settings, figures, counts, and what was audited.

        Parameters
        ----------
        path
            The file; it appears whole or not at all, and replaces one of that name.

        Raises
        ------
        InputError
            If the file cannot be written.
        """
        scope = {"n_cells": self.n_cells, "epochs": self.epochs, "step": self.step, "graph": self.graph}
        rows = [strategy.to_dict() | scope for strategy in self.strategies]
        write_csv(path, list(rows[0]), [list(row.values()) for row in rows])

    def save_coverage_csv(self, path: str | os.PathLike[str]) -> None:
        """Write a CSV file with a line for each gene in the cells: how often it was there, and how often it was masked.

        Parameters
        ----------
        path
            The file; it appears whole or not at all, and replaces one of that name. It has a column for each strategy.

        Raises
        ------
        InputError
            If the file cannot be written.
        """
        head = ["gene", "symbol", "times_present", *(f"times_masked: {s.name}" for s in self.strategies)]
        present = self.strategies[0].times_present
        names = self.vocabulary.names
        rows = [
            [names[g], self.vocabulary.name_of(g), present[g], *(s.times_masked[g] for s in self.strategies)]
            for g in np.flatnonzero(present).tolist()
        ]
        write_csv(path, head, rows)


def _share(part: float, whole: float) -> float:
    return float(part / whole) if whole else math.nan


def setting_text(value: Any) -> str:
    """Return a setting as tables have it."""
    return "-" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _format(value: float, percent: bool) -> str:
    if math.isnan(value):
        return "-"
    return f"{100 * value:.2f} %" if percent else f"{value:.3f}"
