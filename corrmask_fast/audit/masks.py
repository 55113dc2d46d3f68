"""Auditing masks: corpora are masked as in training and what stays visible is counted, strategy beside strategy.

What the figures mean stands in ``report.py``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from corrmask_fast.audit.report import COUNTS, SETTINGS, AuditReport, StrategyAudit, setting_text
from corrmask_fast.errors import InputError, check_integer
from corrmask_fast.masking.schedules import Schedule, rate_text
from corrmask_fast.progress import progress_bar
from corrmask_fast.threads import run_ranges

if TYPE_CHECKING:
    from collections.abc import Callable

    from corrmask_fast.cells.corpus import Corpus
    from corrmask_fast.graph.dependency_graph import DependencyGraph
    from corrmask_fast.masking.base import Masker

    # (indptr, tokens, epoch) -> masked columns of each row, (rows, k) int64, -1 after a row's own
    Masks = Callable[[np.ndarray, np.ndarray, int], np.ndarray]

__all__ = ["CONTROL", "audit_masking", "audit_strategies", "masks_of"]

CHUNK_CELLS = 1024  # cells masked at a time: bounds memory, changes no result
CONTROL = "control (lambda = 0)"


def audit_masking(
    masker: Masker | Sequence[Masker] | Mapping[str, Masker],
    corpus: Corpus,
    graph: DependencyGraph,
    *,
    epochs: int = 1,
    n_cells: int | None = None,
    progress: bool = True,
) -> AuditReport:
    """Mask a corpus as in training, and count which partners of masked genes stay visible, beside a random control.

    Parameters
    ----------
    masker
        The masking strategy. A rate that is a schedule is taken at the masker's current step
        (:meth:`corrmask_fast.Masker.set_step`). Or several: a list, whose rows are named by the settings in which they
        differ; or a mapping from names of your own to maskers.
    corpus
        A :class:`~corrmask_fast.Corpus` of the same vocabulary.
    graph
        The :class:`~corrmask_fast.DependencyGraph` whose neighbours count as partners; as a rule that of the masker.
    epochs
        How often each cell is masked, >= 1, anew each time.
    n_cells
        Audit a sample of this many cells. None: all.
    progress
        Show a progress bar.

    Returns
    -------
    AuditReport
        A row for each masker, and one for the control, ``"control (lambda = 0)"``: random masks at the rate of the
        first masker, with its draws (seed, cell, epoch).

    Raises
    ------
    InputError
        If the corpus is empty; vocabularies differ; a number is out of range; there is no masker, or two in a list have
        the same label and settings; or a masker needs a model or has several graphs.

    Examples
    --------
    >>> from corrmask_fast import CorrMasker, DependencyGraph, Vocabulary, audit_masking, read_corpus
    >>> genes = Vocabulary(("<pad>", "<mask>", *"ABCDEFGH"))
    >>> cells = read_corpus([[2, 3, 4, 5, 6, 7, 8, 9], [5, 4, 7, 2, 8, 3, 9, 6]], genes)
    >>> graph = DependencyGraph.from_edges([("A", "B"), ("C", "D"), ("E", "F")], genes)
    >>> maskers = [CorrMasker(graph, mlm_probability=0.25, structural_ratio=ratio) for ratio in (0.5, 1.0)]
    >>> [row.name for row in audit_masking(maskers, cells, graph, progress=False)]
    ['CorrMask, lambda 0.5', 'CorrMask, lambda 1', 'control (lambda = 0)']
    """
    named = _named(masker)
    for each in named.values():
        each.vocabulary.check_same(graph.vocabulary, "the masker", "the graph")
    several = len(named) > 1 and not isinstance(masker, Mapping)
    first = next(iter(named.values()))
    report = audit_strategies(
        {name: masks_of(each, label=each.label if several else "") for name, each in named.items()}
        | {CONTROL: masks_of(_control(first))},
        graph,
        corpus,
        controls=[CONTROL],
        epochs=epochs,
        n_cells=n_cells,
        seed=first.seed,
        progress=progress,
    )
    steps = [int(each.schedule_step) for each in named.values() if each.has_schedule]
    notes = dict.fromkeys(each.note for each in named.values() if each.note)
    return replace(report, step=steps[0] if steps else None, notes=tuple(notes))


def _control(masker: Masker) -> Masker:
    """Return random masks with a masker's rate and draws; not the masker itself with λ = 0, which may have weights."""
    from corrmask_fast.masking.strategies.random import RandomMasker

    control = RandomMasker(masker.vocabulary, mlm_probability=masker.mlm_probability, seed=masker.seed)
    if masker.has_schedule:
        control.set_step(int(masker.schedule_step))
    return control


def _named(masker: Masker | Sequence[Masker] | Mapping[str, Masker]) -> dict[str, Masker]:
    """Return maskers by names of their rows: labels, with the settings in which maskers of one label differ."""
    if isinstance(masker, Mapping):
        named = {str(name): each for name, each in masker.items()}
    else:
        every = list(masker) if isinstance(masker, Sequence) else [masker]
        alike: dict[str, list[Masker]] = {}
        for each in every:
            alike.setdefault(each.label, []).append(each)
        named = {}
        for each in every:
            others = [masks_of(other).settings for other in alike[each.label]]
            differ = {name: text for name, text in SETTINGS.items() if len({str(one[name]) for one in others}) > 1}
            mine = masks_of(each).settings
            parts = [f"{text} {setting_text(mine[name])}" for name, text in differ.items() if mine[name] is not None]
            named[", ".join([each.label, *parts])] = each
        if len(named) < len(every):
            raise InputError("two maskers have the same label and settings; name them: {name: masker}")
    if not named:
        raise InputError("masker must be a masker, or one or more of them; got none")
    if CONTROL in named:
        raise InputError(f"no masker may be named {CONTROL!r}, which is the control's name; choose another")
    return named


@dataclass(frozen=True)
class _MaskerMasks:
    """A masker's masks, with the settings that an audit's rows name."""

    masker: Masker
    structural_ratio: float | None
    label: str

    def __call__(self, indptr: np.ndarray, tokens: np.ndarray, epoch: int) -> np.ndarray:
        ratio = self.structural_ratio
        masked = self.masker.mask_ragged(indptr, tokens, epoch=epoch, structural_ratio=ratio, marks_only=True)
        return masked.masked_positions

    @property
    def settings(self) -> dict[str, Any]:
        """Values of ``SETTINGS``; of a schedule, that of the masker's step. K is None where it has no meaning."""
        masker, step = self.masker, int(self.masker.schedule_step)
        matches = getattr(masker, "matches", None)  # of a control: what the strategy has that it is a control of
        rates: list[Any] = [masker.structural_ratio, masker.mlm_probability]
        partners = masker.max_partners if hasattr(masker, "partners") else None
        if self.structural_ratio is not None:
            rates[0] = self.structural_ratio
        elif matches is not None:
            rates[0], partners = matches["structural_ratio"], matches["max_partners"]
        ratio, p = (rate_text(rate(step) if isinstance(rate, Schedule) else rate) for rate in rates)
        partners = None if ratio == 0 else partners
        return {"structural_ratio": ratio, "max_partners": partners, "mlm_probability": p, "seed": masker.seed}


def masks_of(masker: Masker, *, structural_ratio: float | None = None, label: str = "") -> _MaskerMasks:
    """Return a masker's masks as :func:`audit_strategies` takes them; ``structural_ratio`` in place of its own."""
    return _MaskerMasks(masker, structural_ratio, label)


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
        :func:`masks_of` makes one of a masker, with its settings.
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
    audits = (tally.finish(name, mix) for name, tally in tallies.items())
    told = tuple(
        replace(audit, label=masks.label, settings=masks.settings) if isinstance(masks, _MaskerMasks) else audit
        for audit, masks in zip(audits, strategies.values(), strict=True)
    )
    which = graph.fingerprint[:12]
    return AuditReport(told, corpus.vocabulary, int(rows.size), epochs, tuple(controls), graph=which)


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
        counts: dict[str, Any] = dict(zip(COUNTS, self.counts.tolist(), strict=True))
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
