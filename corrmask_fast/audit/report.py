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
    "masked genes, another mix in each line: CorrMask masks hubs more often. 'Same genes' weighs each gene as the\n"
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
    """One strategy's masks, counted over all rows; the figures are quotients of the counts.

    Counts are exact integers; ``shortcut_sum`` and its parts are added up column by column, row by row, in order.
    """

    name: str
    maskable: int
    masked: int
    runs: int
    judged: int
    """Masked columns that are their gene's position and have a neighbour in the row."""
    pairs: int
    """(judged column, neighbour in the row)."""
    hits: int
    """Of ``pairs``, those whose neighbour is masked."""
    all_pairs: int
    """(judged column, neighbour), in the row or not."""
    hidden: int
    """Judged columns all of whose neighbours in the row are masked."""
    shortcut_sum: float
    times_masked: np.ndarray = field(repr=False)
    """(V,) int64: rows in which each gene was masked."""
    times_present: np.ndarray = field(repr=False)
    """(V,) int64: rows in which each gene stood."""
    times_judged: np.ndarray = field(repr=False)
    """(V,) int64: judged columns of each gene."""
    shortcut_of_gene: np.ndarray = field(repr=False)
    """(V,) float64: each gene's part of ``shortcut_sum``."""
    mix: np.ndarray = field(repr=False)
    """(V,) int64: weights of genes, shared by the strategies of a report; 0 for a gene that one never judged."""
    label: str = ""
    """What the strategy is called where its settings stand beside it; empty: its name."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Values of ``SETTINGS``, as far as they have a meaning."""

    @property
    def hit_rate(self) -> float:
        """Share of present neighbours that are masked too."""
        return _share(self.hits, self.pairs)

    @property
    def all_partner_hit_rate(self) -> float:
        """Share of all neighbours, present or not, that are masked too."""
        return _share(self.hits, self.all_pairs)

    @property
    def hidden_rate(self) -> float:
        """Share of judged columns all of whose present neighbours are masked."""
        return _share(self.hidden, self.judged)

    @property
    def residual_shortcut(self) -> float:
        """Mean over judged columns of the largest stored abs(rho) among visible neighbours (0 if none)."""
        return _share(self.shortcut_sum, self.judged)

    @property
    def residual_shortcut_same_genes(self) -> float:
        """The residual shortcut with each gene's mean weighted by ``mix``: comparable between strategies."""
        genes = self.mix > 0
        means = self.shortcut_of_gene[genes] / self.times_judged[genes]
        return _share(float(means @ self.mix[genes]), int(self.mix.sum()))

    @property
    def mean_span(self) -> float:
        """Mean length of maximal runs of masked columns, in genes."""
        return _share(self.masked, self.runs)

    @property
    def rate(self) -> float:
        """Masked columns of all maskable columns."""
        return _share(self.masked, self.maskable)

    @property
    def coverage(self) -> np.ndarray:
        """(V,) float64: times masked / times present of each gene, NaN for a gene that never stood in a cell."""
        with np.errstate(invalid="ignore"):
            return self.times_masked / self.times_present

    @property
    def genes_reached(self) -> float:
        """Share of the genes that stood in a cell which were masked at least once."""
        return _share(int(np.count_nonzero(self.times_masked)), int(np.count_nonzero(self.times_present)))

    def to_dict(self) -> dict[str, Any]:
        """Return settings, figures and counts by name (coverage as its percentiles over genes)."""
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
    """Audits of one or more strategies on the same cells with the same draws: a row each.

    ``report["CorrMask"]`` is the row of that name; iterating goes over the rows.
    """

    strategies: tuple[StrategyAudit, ...]
    vocabulary: Vocabulary
    n_cells: int
    epochs: int
    controls: tuple[str, ...] = ()
    """Names of the rows that others are compared with; the first gives the genes of *shortcut, same genes*."""
    step: int | None = None
    """Training step whose rates were audited, where a rate goes by a schedule."""
    compared: str = "the same draws in every line"
    """How the rows go together."""
    notes: tuple[str, ...] = ()
    """What was found beside the figures, a line each."""
    graph: str = ""
    """Which graph says who is a partner: the first digits of its fingerprint, or its file."""

    @property
    def scope(self) -> str:
        """What was audited, in a few words: cells, epochs, and the step where rates go by it."""
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
        """Return the report as an aligned text table, a line for each strategy, and how to read it."""
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
        """Return the report as plain values, ready for JSON."""
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
        """Write one line a strategy: its settings, every figure, the counts it was made of, and what was audited."""
        scope = {"n_cells": self.n_cells, "epochs": self.epochs, "step": self.step, "graph": self.graph}
        rows = [strategy.to_dict() | scope for strategy in self.strategies]
        write_csv(path, list(rows[0]), [list(row.values()) for row in rows])

    def save_coverage_csv(self, path: str | os.PathLike[str]) -> None:
        """Write one line a gene that stood in a cell: how often it was there, and how often each strategy masked it."""
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
