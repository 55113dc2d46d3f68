"""Auditing masks: corpora are masked as in training and what stays visible is counted, strategy beside strategy.

What the figures mean stands in ``report.py``.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from corrmask_fast.audit.report import COUNTS, AuditReport, StrategyAudit
from corrmask_fast.errors import InputError, check_integer
from corrmask_fast.progress import progress_bar
from corrmask_fast.threads import run_ranges

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from corrmask_fast.cells.corpus import Corpus
    from corrmask_fast.graph.dependency_graph import DependencyGraph
    from corrmask_fast.masking.base import Masker

    # (indptr, tokens, epoch) -> masked columns of each row, (rows, k) int64, -1 after a row's own
    Masks = Callable[[np.ndarray, np.ndarray, int], np.ndarray]

__all__ = ["CONTROL", "audit_masking", "audit_strategies", "masks_of"]

CHUNK_CELLS = 1024  # cells masked at a time: bounds memory, changes no result
CONTROL = "control (lambda = 0)"


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
        The strategy. Rates that go by a schedule are those of the step it is at (:meth:`Masker.set_step`).
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
        Two rows: the masker's, and the control's: the same draws (seed, cell, epoch) with ``structural_ratio=0``. With
        a schedule it names the step.

    Raises
    ------
    InputError
        If the corpus is empty, or corpus, graph and masker differ in their vocabularies.
    """
    masker.vocabulary.check_same(graph.vocabulary, "the masker", "the graph")
    report = audit_strategies(
        {masker.label: masks_of(masker), CONTROL: masks_of(masker, structural_ratio=0.0)},
        graph,
        corpus,
        controls=[CONTROL],
        epochs=epochs,
        n_cells=n_cells,
        seed=masker.seed,
        progress=progress,
    )
    step = int(masker.schedule_step) if masker.has_schedule else None
    return replace(report, step=step, notes=(masker.note,) if masker.note else ())


def masks_of(masker: Masker, *, structural_ratio: float | None = None) -> Masks:
    """Return a masker's masks as :func:`audit_strategies` takes them; ``structural_ratio`` in place of its own."""

    def masks(indptr: np.ndarray, tokens: np.ndarray, epoch: int) -> np.ndarray:
        masked = masker.mask_ragged(indptr, tokens, epoch=epoch, structural_ratio=structural_ratio, marks_only=True)
        return masked.masked_positions

    return masks


def audit_strategies(
    strategies: Mapping[str, Masks],
    graph: DependencyGraph,
    corpus: Corpus,
    *,
    controls: Sequence[str] = (),
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
        -1 after a row's own. Rows come as they do to the collator, so that an epoch is audited as it is trained on.
    graph
        Whose neighbours count as partners.
    controls
        Names of strategies that the others are compared with; none: the first strategy takes that place.
    seed
        Of the sample of cells, where ``n_cells`` asks for one.
    """
    check_integer("epochs", epochs, 1)
    graph.vocabulary.check_same(corpus.vocabulary, "the graph", "the corpus")
    if corpus.n_cells == 0:
        raise InputError("cannot audit an empty corpus; give at least one cell")
    rows = np.arange(corpus.n_cells) if n_cells is None else corpus.sample_rows(n_cells, seed)
    tallies = {name: _Tally(graph) for name in strategies}
    starts, (lo, hi) = range(0, rows.size, CHUNK_CELLS), corpus.vocabulary.gene_range
    with progress_bar("audit", rows.size * epochs, "cell", shown=progress) as bar:
        for epoch in range(epochs):
            for start in starts:
                indptr, tokens = corpus.gather_for_training(rows[start : start + CHUNK_CELLS])
                maskable = (tokens >= lo) & (tokens < hi)
                for name, masks in strategies.items():
                    tallies[name].add(indptr, tokens, maskable, masks(indptr, tokens, epoch))
                bar.update(indptr.size - 1)
    mix = common_mix({name: tally.times_judged for name, tally in tallies.items()}, *controls[:1])
    audits = tuple(tally.finish(name, mix) for name, tally in tallies.items())
    return AuditReport(audits, corpus.vocabulary, int(rows.size), epochs, tuple(controls))


def common_mix(times_judged: Mapping[str, np.ndarray], base: str | None = None) -> np.ndarray:
    """(V,) int64: how often ``base`` (else the first strategy) judged each gene that all strategies judged."""
    every = list(times_judged.values())
    return np.where(np.all([times > 0 for times in every], axis=0), times_judged[base] if base else every[0], 0)


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
