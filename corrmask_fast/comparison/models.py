"""One run of a comparison: a model trained, or left untrained, and scored; and what is known without a model."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from corrmask_fast.cells.corpus_io import read_corpus
from corrmask_fast.comparison.plan import TUNING_BATCH, Plan, Task, parse_compared
from corrmask_fast.errors import InputError
from corrmask_fast.evaluation.cell_annotation import fine_tuned_f1, labelled_cells, stratified_splits
from corrmask_fast.evaluation.embeddings import embed_cells
from corrmask_fast.evaluation.fine_tuning import FineTuning
from corrmask_fast.evaluation.frozen_features import f1_by_type, knn_purity, probe_types, reduced
from corrmask_fast.evaluation.masked_scores import MaskScores, score_masks
from corrmask_fast.evaluation.scored_models import gene_counts
from corrmask_fast.evaluation.shortcut import MEASURES, measure_shortcut, plan_targets
from corrmask_fast.graph.build.building import build_dependency_graph
from corrmask_fast.graph.build.thresholds import suggest_thresholds
from corrmask_fast.graph.dependency_graph import DependencyGraph
from corrmask_fast.masking.factory import make_masker
from corrmask_fast.masking.pmi_table import PMITable
from corrmask_fast.masking.strategies import LEARNED_STRATEGIES, STRATEGIES
from corrmask_fast.masking.strategies.random import RandomMasker
from corrmask_fast.masking.weights import read_weights
from corrmask_fast.progress import silent_bar

if TYPE_CHECKING:
    from collections.abc import Iterator

    import scipy.sparse

    from corrmask_fast.cells.corpus import Corpus
    from corrmask_fast.masking.base import Masker

    Row = dict[str, Any]

GRAPHS, MODELS, TEMPORARY = "graphs", "models", ".run-"
TRAIN, TEST, FEATURES = "train.npz", "test.npz", "features.npz"
HELD_SHARE = 0.5  # of the labelled test cells; a head is trained on the others


class Labelled(NamedTuple):
    """The test cells with a type, half of them to train a head on."""

    of_cell: np.ndarray  # (test cells,) type, −1 of cells without
    types: list[str]  # the most abundant first
    train: np.ndarray  # rows
    test: np.ndarray
    n_rare: int

    def scores(self, f1: np.ndarray, prefix: str, table: str) -> tuple[Row, list[Row]]:
        """Return the columns of a row, and the details, of F1 by type."""
        row = {f"{prefix}_f1".replace("fine_f1", "macro_f1"): float(f1.mean())}
        row[f"{prefix}_rare_f1".replace("fine_rare_f1", "rare_f1")] = float(f1[-self.n_rare :].mean())
        n = np.bincount(self.of_cell[self.test], minlength=len(self.types)).tolist()
        groups = zip(self.types, f1.tolist(), n, strict=True)
        return row, [{"table": table, "group": name, "value": value, "n": count} for name, value, count in groups]


class Cells:
    """The cells of a comparison as its folder holds them, and graphs and tables of shares of them."""

    def __init__(self, folder: Path, plan: Plan) -> None:
        self.folder, self.plan = folder, plan
        self.train: Corpus = read_corpus(folder / TRAIN, max_length=plan.settings.max_length)
        self.test: Corpus = read_corpus(folder / TEST, max_length=plan.settings.max_length)

    def share(self, fraction: float, seed: int) -> Corpus:
        """Return a share of the training cells; a larger share of a seed need not hold a smaller one."""
        n = max(1, round(fraction * self.train.n_cells))
        return self.train.take(self.train.sample_rows(n, seed))

    def scored(self) -> Corpus:
        """Return the test cells whose losses are taken."""
        return self.test.take(self.test.sample_rows(self.plan.scoring.n_cells))

    def yardstick(self) -> Masker:
        """Return how the test cells are masked, for all models."""
        return RandomMasker(self.test.vocabulary, mlm_probability=self.plan.mlm_probability)

    def graph(self, fraction: float = 1.0, seed: int = 0) -> DependencyGraph:
        """Return the graph that is given, or the one of a share of the training cells, which is kept in the folder."""
        if self.plan.graph is not None:
            return DependencyGraph.load(self.plan.graph)
        path = self._kept("graph", fraction, seed)
        if path.is_file():
            return DependencyGraph.load(path)
        corpus = self.share(fraction, seed)
        graph = build_dependency_graph(corpus, **suggest_thresholds(corpus.n_cells), progress=False)
        graph.save(path)
        return graph

    def check_targets(self) -> None:
        """Refuse cells without a target for the shortcut, before a model is trained; make the graph that it goes by."""
        graph, plan, cells = self.graph(), self.plan, self.scored()
        if plan.scoring.n_targets == 0:
            return
        length = plan.settings.max_length
        try:
            plan_targets(cells, graph, gene_counts(cells, length), length, plan.mlm_probability, 1, 0)
        except InputError as error:
            raise InputError(f"{error}; or leave the shortcut out: n_targets=0") from None

    def pmi(self, fraction: float, seed: int) -> PMITable:
        """Like :meth:`graph`, the PMI table."""
        if self.plan.pmi is not None:
            return PMITable.load(self.plan.pmi)
        path = self._kept("pmi", fraction, seed)
        if path.is_file():
            return PMITable.load(path)
        corpus = self.share(fraction, seed)
        table = PMITable.from_corpus(corpus, min_count=max(5, min(50, corpus.n_cells // 100)), progress=False)
        table.save(path)
        return table

    def _kept(self, what: str, fraction: float, seed: int) -> Path:
        (self.folder / GRAPHS).mkdir(exist_ok=True)
        share = "all" if fraction == 1 else f"{fraction:g}-seed-{seed}"
        return self.folder / GRAPHS / f"{what}-{share}.safetensors"

    def labelled(self, seed: int) -> Labelled | None:
        """Return the test cells with a type and their split; None where no labels are given."""
        if self.plan.labels is None:
            return None
        return split_labelled(self.test, self.plan.labels, self.plan.scoring.min_cells, seed)

    def features(self) -> scipy.sparse.csr_array:
        """Return what a regression without a model reads of the test cells."""
        import scipy.sparse

        return scipy.sparse.csr_array(scipy.sparse.load_npz(self.folder / FEATURES))


def split_labelled(test: Corpus, labels: str, min_cells: int, seed: int) -> Labelled:
    """Return the labelled test cells of the types that are common enough, halved by the seed."""
    rows, codes, types = labelled_cells(test, labels, min_cells)
    of_cell = np.full(test.n_cells, -1, np.int64)
    of_cell[rows] = codes
    [(train, held)] = stratified_splits(rows, codes, HELD_SHARE, 1, seed)
    return Labelled(of_cell, types, train, held, max(1, len(types) // 3))


def masker_of(name: str, plan: Plan, cells: Cells, corpus: Corpus, task: Task) -> Masker:
    """Return the masker of a strategy on a share of the cells."""
    compared = parse_compared(name)
    found = (STRATEGIES | LEARNED_STRATEGIES).get(compared.strategy)
    needs = found.needs if found else "vocabulary"
    sources: dict[str, Any] = {"vocabulary": corpus.vocabulary}
    if needs == "graph":
        sources["graph"] = cells.graph(task.fraction, task.seed)
    elif needs == "pmi":
        sources["pmi"] = cells.pmi(task.fraction, task.seed)
    elif needs == "gene_sets":
        sources["sets"] = plan.options.get("gene_sets")
    if found is not None and found.fitted:
        sources["corpus"] = corpus
    taken: dict[str, Any] = {}
    if found is not None and "weights" in found.requires:
        # Genes that are too rare here have no token.
        read = read_weights(plan.options["weights"], corpus.vocabulary)
        known = corpus.vocabulary.tokens_by_name
        taken["weights"] = {gene: weight for _, gene, weight in read if gene in known}
    if compared.strategy in LEARNED_STRATEGIES:
        taken |= {"dim": plan.settings.hidden_size, "n_heads": plan.settings.heads}
    rate = plan.mlm_probability if compared.rate is None else compared.rate
    return make_masker(compared.strategy, **sources, **taken, mlm_probability=rate, seed=task.seed)


def check_maskers(plan: Plan, cells: Cells) -> None:
    """Make the masker of each strategy once, before a model is trained: whatever it lacks is told now."""
    for name in plan.strategies:
        for fraction in plan.fractions[:1]:
            masker_of(name, plan, cells, cells.share(fraction, 0), Task(name, fraction, 0))


def run_task(task: Task, folder: str, plan: Plan, threads: int | None) -> tuple[list[Row], list[Row]]:
    """Train and score one model; return rows of ``rows.csv`` and of ``details.csv``.

    ``threads``: of this process, from now on; None: as many as it has.
    """
    from corrmask_fast.threads import set_num_threads

    if threads is not None:
        torch.set_num_threads(threads)
        set_num_threads(threads)
    cells = Cells(Path(folder), plan)
    with warnings.catch_warnings(), _quiet():
        warnings.simplefilter("ignore")  # those of the cells were told before the runs
        if task.strategy is None:
            return _untrained(task, cells)
        return _trained(task, cells)


def _trained(task: Task, cells: Cells) -> tuple[list[Row], list[Row]]:
    from corrmask_fast.training.run import pretrain

    plan, began = cells.plan, time.perf_counter()
    assert task.strategy is not None
    corpus = cells.share(task.fraction, task.seed)
    masker = masker_of(task.strategy, plan, cells, corpus, task)
    steps = plan.settings.max_steps
    settings = replace(
        plan.settings, run_seed=task.seed, held_out=0.0, log_every=steps, save_every=10 * steps, eval_every=steps
    )
    row: Row = {"kind": "model", **task._asdict(), "cells": corpus.n_cells, "steps": steps}
    strategy = STRATEGIES.get(parse_compared(task.strategy).strategy)
    if strategy is not None and strategy.needs == "graph":
        row["graph_edges"] = cells.graph(task.fraction, task.seed).n_edges
    matched = getattr(masker, "matched", None)
    row["coverage_error"] = "" if matched is None else matched.mean_error
    kept = cells.folder / MODELS / f"{task.strategy.replace(':', '.')}-{task.fraction:g}-seed-{task.seed}"
    with tempfile.TemporaryDirectory(prefix=TEMPORARY, dir=cells.folder) as temporary:
        report = pretrain(corpus, masker, Path(temporary) / "run", settings, progress=False)
        kept.parent.mkdir(exist_ok=True)
        shutil.rmtree(kept, ignore_errors=True)
        shutil.move(report.folder / "model", kept)
    own = None if masker.needs_model or masker.has_schedule else masker
    return _scored(task, row, kept, cells, own, began)


def _untrained(task: Task, cells: Cells) -> tuple[list[Row], list[Row]]:
    """Score the encoder that the models of a seed start from; and the baselines."""
    from corrmask_fast.training.run import start_model

    began, settings = time.perf_counter(), replace(cells.plan.settings, run_seed=task.seed)
    row: Row = {"kind": "untrained", **task._asdict(), "strategy": "untrained", "fraction": "", "cells": 0, "steps": 0}
    with tempfile.TemporaryDirectory(prefix=TEMPORARY, dir=cells.folder) as temporary:
        start_model(cells.test.vocabulary, settings).save_pretrained(temporary)
        rows, details = _scored(task, row, Path(temporary), cells, None, began)
    return [*rows, *_baselines(task, cells)], details


def _scored(
    task: Task, row: Row, model: Path, cells: Cells, own: Masker | None, began: float
) -> tuple[list[Row], list[Row]]:
    """Return the row of a model, those of baselines of the same losses (once), and the details of the model."""
    plan, name, details = cells.plan, row["strategy"], []
    scored, device = cells.scored(), plan.settings.device
    scores = score_masks({name: model}, scored, cells.yardstick(), labels=plan.labels, device=device, progress=False)
    row |= _losses(scores, name)
    for table, groups in scores.groups().items():
        for group, among in groups.items():
            if (loss := scores.loss(name, among)).n:
                details.append({"table": table, "group": group, "value": loss.mean, "n": loss.n})
    if own is not None:
        row["own_loss"] = score_masks({name: model}, scored, own, device=device, progress=False).loss(name).mean
    if plan.scoring.n_targets:
        columns, more = _shortcut(name, model, scored, cells)
        row |= columns
        details += more
    if (labelled := cells.labelled(task.seed)) is not None:
        columns, more = _types(task, model, labelled, cells)
        row |= columns
        details += more
    row["seconds"] = time.perf_counter() - began
    common = {"strategy": name, "fraction": row["fraction"], "seed": task.seed}
    rows = [row]
    if task.strategy is None and task.seed == 0:
        base = {"kind": "baseline", "fraction": "", "seed": 0}
        rows += [base | {"strategy": line} | _losses(scores, line) for line in scores.lines if line != name]
    return rows, [common | one for one in details]


def _shortcut(name: str, model: Path, scored: Corpus, cells: Cells) -> tuple[Row, list[Row]]:
    plan = cells.plan
    found = measure_shortcut(
        {name: model},
        scored,
        cells.graph(),
        mlm_probability=plan.mlm_probability,
        n_targets=plan.scoring.n_targets,
        device=plan.settings.device,
        progress=False,
    )
    row: Row = {"targets": found.genes.size}
    for measure in MEASURES:
        mean = found.mean(name, measure)
        row |= {measure: mean.mean, f"{measure}_se": mean.error}
    details = []
    for table, groups in found.groups().items():
        for group, among in groups.items():
            if (mean := found.mean(name, "shortcut", among)).n:
                details.append({"table": table, "group": group, "value": mean.mean, "n": mean.n})
    return row, details


def _losses(scores: MaskScores, line: str) -> Row:
    row: Row = {}
    for measure in ("loss", "accuracy", "perplexity"):
        found = getattr(scores, measure)(line)
        row |= {measure: found.mean, f"{measure}_se": found.error}
    return row


def _types(task: Task, model: Path, labelled: Labelled, cells: Cells) -> tuple[Row, list[Row]]:
    """Return how well a model tells cell types: from frozen embeddings, and fine-tuned."""
    plan, details = cells.plan, []
    row: Row = {}
    of_cell, train, test = labelled.of_cell, labelled.train, labelled.test
    rows = np.concatenate([train, test])
    embedded = np.zeros((of_cell.size, plan.settings.hidden_size), np.float32)
    embedded[rows] = embed_cells(model, cells.test.select(rows), device=plan.settings.device, progress=False)
    named = probe_types(embedded[train], of_cell[train], embedded[test])
    f1 = {"probe": f1_by_type(of_cell[test], named, len(labelled.types))}
    if plan.scoring.fine_tuning_epochs:
        tuning = FineTuning(
            epochs=plan.scoring.fine_tuning_epochs,
            batch_size=TUNING_BATCH,
            learning_rate=plan.settings.learning_rate,
            seed=task.seed,
            device=plan.settings.device,
        )
        with silent_bar("", 0, "") as bar:
            f1["fine"] = fine_tuned_f1(model, cells.test, of_cell, (train, test), tuning, bar)
    for prefix, found in f1.items():
        columns, more = labelled.scores(found, prefix, "f1" if prefix == "fine" else "probe")
        row |= columns
        details += more
    row["knn_purity"] = knn_purity(embedded[rows], of_cell[rows], plan.scoring.neighbors)
    return row, details


def _baselines(task: Task, cells: Cells) -> list[Row]:
    """Return how well cell types are told without a transformer, for the split of a seed."""
    plan = cells.plan
    rows: list[Row] = []
    if (labelled := cells.labelled(task.seed)) is None:
        return rows
    of_cell, train, test = labelled.of_cell, labelled.train, labelled.test
    features, both = cells.features(), np.concatenate([train, test])
    found = reduced(features[both], seed=task.seed)
    components = np.zeros((of_cell.size, found.shape[1]), np.float32)
    components[both] = found
    for name, named in (
        ("majority", np.full(test.size, np.bincount(of_cell[train]).argmax())),
        ("logistic, counts", probe_types(features[train], of_cell[train], features[test])),
        ("logistic, PCA", probe_types(components[train], of_cell[train], components[test])),
    ):
        f1 = f1_by_type(of_cell[test], named, len(labelled.types))
        columns: Row = {}
        for prefix in ("probe", "fine"):
            columns |= labelled.scores(f1, prefix, "f1")[0]
        rows.append({"kind": "baseline", "strategy": name, "fraction": "", "seed": task.seed} | columns)
    rows[-1]["knn_purity"] = knn_purity(found, of_cell[both], plan.scoring.neighbors)
    return rows


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Leave out what transformers prints: each model has one line of the comparison's own."""
    from corrmask_fast.training.pretrained import no_bars

    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere), no_bars():
        yield
