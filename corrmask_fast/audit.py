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

from corrmask_fast.errors import InputError, check_integer
from corrmask_fast.tables import align, write_csv
from corrmask_fast.threads import run_ranges

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Mapping

    from corrmask_fast.corpus import Corpus
    from corrmask_fast.graph import DependencyGraph
    from corrmask_fast.masker_base import Masker
    from corrmask_fast.vocabulary import Vocabulary

    # (indptr, tokens, epoch) -> masked columns of each row, (rows, k) int64, -1 behind a row's own
    Masks = Callable[[np.ndarray, np.ndarray, int], np.ndarray]

__all__ = ["AuditReport", "StrategyAudit", "audit_masking", "audit_strategies"]

CHUNK_CELLS = 1024  # cells masked at a time: bounds memory, changes no result
CONTROL = "control (lambda = 0)"
NOTE = (
    "Hit, hidden and residual figures are over the masked genes that have a partner in the cell, another mix of genes\n"
    "in each line: CorrMask masks hubs more often. 'Shortcut, same genes' weighs each gene as the control does."
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
    Metric("residual_shortcut", ("residual", "shortcut"), percent=False),
    Metric("residual_shortcut_same_genes", ("shortcut,", "same genes"), percent=False),
    Metric("mean_span", ("mean", "span"), percent=False),
    Metric("rate", ("", "rate"), percent=True),
    Metric("genes_reached", ("genes", "reached"), percent=True),
)

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
        """Return figures and counts by name (coverage as its percentiles over genes)."""
        figures: dict[str, Any] = {"strategy": self.name}
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

    def __getitem__(self, name: str) -> StrategyAudit:
        for strategy in self.strategies:
            if strategy.name == name:
                return strategy
        raise KeyError(f"no strategy {name!r} in this report; it has {', '.join(s.name for s in self.strategies)}")

    def __iter__(self) -> Any:
        return iter(self.strategies)

    def table(self) -> str:
        """Return the report as an aligned text table, a line for each strategy, and how to read it."""
        above, below = zip(("", "strategy"), *(metric.heading for metric in METRICS), strict=True)
        body = [[s.name, *(_format(getattr(s, m.name), m.percent) for m in METRICS)] for s in self.strategies]
        lines = align([list(above), list(below), *body])
        epochs = f"{self.epochs} epoch{'s' if self.epochs > 1 else ''}"
        title = f"Masking audit: {self.n_cells:,} cells, {epochs}; the same draws in every line"
        return "\n".join([title, *lines[:2], "-" * len(lines[0]), *lines[2:], "", NOTE])

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain values, ready for JSON."""
        rows = [strategy.to_dict() for strategy in self.strategies]
        return {"n_cells": self.n_cells, "epochs": self.epochs, "strategies": rows}

    def save_csv(self, path: str | os.PathLike[str]) -> None:
        """Write one line a strategy: every figure, then the counts it was made of."""
        rows = [strategy.to_dict() | {"n_cells": self.n_cells, "epochs": self.epochs} for strategy in self.strategies]
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


def audit_masking(
    masker: Masker,
    corpus: Corpus,
    graph: DependencyGraph,
    *,
    epochs: int = 1,
    n_cells: int | None = None,
    progress: bool = True,
) -> AuditReport:
    """Mask a corpus as ``masker`` does, and count what stays visible, beside the control with lambda = 0.

    Parameters
    ----------
    masker
        The strategy.
    corpus
        The cells, of the same vocabulary.
    graph
        Whose neighbours count as partners: the masker's own graph as a rule (the masker itself keeps no rho).
    epochs
        How many epochs to mask: every cell is drawn anew in each.
    n_cells
        Audit a sample of this many cells; None: all.
    progress
        Show a progress bar.

    Returns
    -------
    AuditReport
        Two rows: the masker's, and the control's: the same draws (seed, cell, epoch) with ``structural_ratio=0``.

    Raises
    ------
    InputError
        If the corpus is empty, or corpus, graph and masker differ in their vocabularies.
    """
    masker.vocabulary.check_same(graph.vocabulary, "the masker", "the graph")

    def ours(indptr: np.ndarray, tokens: np.ndarray, epoch: int) -> np.ndarray:
        return masker.mask_ragged(indptr, tokens, epoch=epoch).masked_positions

    def control(indptr: np.ndarray, tokens: np.ndarray, epoch: int) -> np.ndarray:
        return masker.mask_ragged(indptr, tokens, epoch=epoch, structural_ratio=0.0).masked_positions

    strategies = {masker.label: ours, CONTROL: control}
    return audit_strategies(
        strategies, graph, corpus, epochs=epochs, n_cells=n_cells, seed=masker.seed, progress=progress
    )


def audit_strategies(
    strategies: Mapping[str, Masks],
    graph: DependencyGraph,
    corpus: Corpus,
    *,
    epochs: int = 1,
    n_cells: int | None = None,
    seed: int = 0,
    progress: bool = True,
) -> AuditReport:
    """Audit any number of strategies on the same cells against one graph.

    Parameters
    ----------
    strategies
        Name → function of ``(indptr, tokens, epoch)`` that returns the masked columns of each row, (rows, k) int64,
        -1 behind a row's own. Rows come as they do to the collator, so that an epoch is audited as it is trained on.
    graph
        Whose neighbours count as partners.
    seed
        Of the sample of cells, where ``n_cells`` asks for one.
    """
    from tqdm.auto import tqdm

    check_integer("epochs", epochs, 1)
    graph.vocabulary.check_same(corpus.vocabulary, "the graph", "the corpus")
    if corpus.n_cells == 0:
        raise InputError("cannot audit an empty corpus; give at least one cell")
    rows = np.arange(corpus.n_cells) if n_cells is None else corpus.sample_rows(n_cells, seed)
    tallies = {name: _Tally(graph) for name in strategies}
    starts, (lo, hi) = range(0, rows.size, CHUNK_CELLS), corpus.vocabulary.gene_range
    with tqdm(total=rows.size * epochs, desc="audit", unit="cell", disable=not progress) as bar:
        for epoch in range(epochs):
            for start in starts:
                indptr, tokens = corpus.gather_for_training(rows[start : start + CHUNK_CELLS])
                maskable = (tokens >= lo) & (tokens < hi)
                for name, masks in strategies.items():
                    tallies[name].add(indptr, tokens, maskable, masks(indptr, tokens, epoch))
                bar.update(indptr.size - 1)
    mix = common_mix({name: tally.times_judged for name, tally in tallies.items()})
    audits = tuple(tally.finish(name, mix) for name, tally in tallies.items())
    return AuditReport(audits, corpus.vocabulary, int(rows.size), epochs)


def common_mix(times_judged: Mapping[str, np.ndarray]) -> np.ndarray:
    """(V,) int64: how often the control (else the first strategy) judged each gene that all strategies judged."""
    base = next((times for name, times in times_judged.items() if name.startswith("control")), None)
    every = list(times_judged.values())
    return np.where(np.all([times > 0 for times in every], axis=0), every[0] if base is None else base, 0)


class _Tally:
    """Counts of one strategy, added to chunk by chunk."""

    def __init__(self, graph: DependencyGraph) -> None:
        from corrmask_fast.kernels.audit import N_COUNTS

        self.indptr = np.ascontiguousarray(graph.indptr, np.int64)
        self.indices = np.ascontiguousarray(graph.indices, np.int32)
        self.strength = np.abs(np.ascontiguousarray(graph.rho, np.float32))
        self.counts = np.zeros(N_COUNTS, np.int64)
        self.shortcut_sum = 0.0
        self.times_masked, self.times_present, self.times_judged = np.zeros((3, graph.vocabulary.size), np.int64)
        self.shortcut_of_gene = np.zeros(graph.vocabulary.size, np.float64)

    def add(self, indptr: np.ndarray, tokens: np.ndarray, maskable: np.ndarray, masked_positions: np.ndarray) -> None:
        """Count ragged rows; ``maskable`` (nnz,) bool, ``masked_positions`` (rows, k) int64."""
        from corrmask_fast.kernels.audit import audit_rows

        tokens = np.ascontiguousarray(tokens)
        masked = np.zeros(tokens.size, np.bool_)
        masked[(indptr[:-1, None] + masked_positions)[masked_positions >= 0]] = True
        shortcut = np.empty(indptr.size - 1, np.float64)
        strongest = np.full(tokens.size, -1, np.float32)  # -1: not judged

        def count(begin: int, end: int) -> tuple[np.ndarray, np.ndarray]:
            counts, times = np.zeros_like(self.counts), np.zeros((2, self.times_masked.size), np.int64)
            audit_rows(
                indptr[begin : end + 1],
                tokens,
                maskable,
                masked,
                self.indptr,
                self.indices,
                self.strength,
                counts,
                shortcut[begin:end],
                strongest,
                times[0],
                times[1],
            )
            return counts, times

        for counts, times in run_ranges(count, indptr.size - 1, smallest=16):
            self.counts += counts
            self.times_masked += times[0]
            self.times_present += times[1]
        # One row after the other, so that neither chunks nor threads change the last bit.
        self.shortcut_sum = float(np.cumsum(np.concatenate([[self.shortcut_sum], shortcut]))[-1])
        judged = np.flatnonzero(strongest >= 0)
        np.add.at(self.times_judged, tokens[judged], 1)
        np.add.at(self.shortcut_of_gene, tokens[judged], strongest[judged].astype(np.float64))

    def finish(self, name: str, mix: np.ndarray | None = None) -> StrategyAudit:
        counts = dict(zip(COUNTS, self.counts.tolist(), strict=True))
        return StrategyAudit(
            name=name,
            shortcut_sum=self.shortcut_sum,
            times_masked=self.times_masked,
            times_present=self.times_present,
            times_judged=self.times_judged,
            shortcut_of_gene=self.shortcut_of_gene,
            mix=self.times_judged if mix is None else mix,
            **counts,
        )


def _share(part: float, whole: float) -> float:
    return float(part / whole) if whole else math.nan


def _format(value: float, percent: bool) -> str:
    if math.isnan(value):
        return "-"
    return f"{100 * value:.2f} %" if percent else f"{value:.3f}"
