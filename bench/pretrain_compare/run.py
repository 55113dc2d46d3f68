"""Pretraining compared: Random, PMI-Rand and CorrMask from the same seeds, scored by the cell types they can name.

    CORRMASK_DATA=folder python bench/pretrain_compare/run.py    27 models; by estimate under an hour on 2 cores
    python bench/pretrain_compare/run.py --quick                 a minute, to see that it runs

The curve of the paper (figure 5, "up to 3x less data") in small: models pretrained on a share of the cells, the same
number of steps for all, then fine-tuned on labelled cells that none of them has seen.

    pretraining     the PBMC of one donor, and half of a pancreas; genes that stand in enough cells
    evaluation      PBMC of another donor and experiment (9 types), the other half of the pancreas (14 types)

A run's weights, order of cells, split and head follow from its seed alone: strategies differ in their masks only.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from corrmask_fast import (
    Corpus,
    FineTuning,
    PMITable,
    Vocabulary,
    annotate_cells,
    build_dependency_graph,
    make_masker,
    read_corpus,
    tokenize,
)
from corrmask_fast.plots import COLORS, new_figure, save_figure, style_axis
from corrmask_fast.tables import align, write_csv

RESULTS = Path(__file__).resolve().parents[1] / "results"
STRATEGIES = {"random": "Random", "pmi-rand": "PMI-Rand", "corrmask": "CorrMask"}
FRACTIONS = (0.1, 0.3, 1.0)
TISSUES = ("pbmc", "pancreas")


class Plan(NamedTuple):
    """What every run has in common."""

    steps: int
    seeds: int
    length: int = 192
    batch_size: int = 16
    least_cells: int = 150  # a gene must stand in so many cells of the pretraining corpus
    min_cooccurrence: int = 20  # of the graph, at any number of cells: the default suits atlases, as does PMI's
    min_count: int = 5  # of PMI's table
    epochs: int = 10  # of fine-tuning


class Data(NamedTuple):
    """The cells: what is pretrained on, and what is named."""

    pretraining: Corpus
    pbmc: Corpus
    pancreas: Corpus


def read_data(folder: Path, plan: Plan) -> Data:
    """Tokenise the real cells, over the genes that are common enough in the pretraining corpus."""
    genes = folder / "geneformer"
    full = Vocabulary.from_token_dictionary(genes / "token_dictionary.json", genes / "gene_name_id_dict.json")
    with tempfile.TemporaryDirectory() as temporary:
        cells = {}
        for name, obs in (("pbmc_frozenA", []), ("pbmc3k", ["cell_type"]), ("baron_h1", ["cell_type"])):
            out = Path(temporary) / f"{name}.npz"
            tokenize(folder / f"{name}.h5ad", out, full, genes / "gene_median_dictionary.json", obs=obs, progress=False)
            cells[name] = read_corpus(out)
    half = np.random.default_rng(0).permutation(cells["baron_h1"].n_cells)
    first, second = np.sort(half[: half.size // 2]), np.sort(half[half.size // 2 :])
    donors = [cells["pbmc_frozenA"], cells["baron_h1"].take(first)]
    tokens = np.concatenate([donor.tokens for donor in donors])
    kept = np.flatnonzero(np.bincount(tokens, minlength=full.size) >= plan.least_cells)
    kept = kept[kept >= full.gene_range[0]]
    small = Vocabulary(("<pad>", "<mask>", *(full.name_of(int(token)) for token in kept)))
    of_token = np.full(full.size, -1)
    of_token[kept] = np.arange(2, 2 + kept.size)

    def narrowed(parts: list[Corpus]) -> Corpus:
        rows = [
            of_token[part.tokens[a:b]] for part in parts for a, b in zip(part.indptr, part.indptr[1:], strict=False)
        ]
        rows = [row[row >= 0] for row in rows]
        indptr = np.concatenate([[0], np.cumsum([row.size for row in rows])])
        obs = {name: np.concatenate([np.asarray(part.obs[name]) for part in parts]) for name in parts[0].obs}
        return Corpus(indptr, np.concatenate(rows), small, max_length=plan.length, obs=obs)

    return Data(narrowed(donors), narrowed([cells["pbmc3k"]]), narrowed([cells["baron_h1"].take(second)]))


def run_one(task: tuple[str, float, int], data: Data, plan: Plan) -> dict[str, Any]:
    """Pretrain with one strategy on a share of the cells, and score the model on both tissues."""
    from corrmask_fast.training.run import pretrain
    from corrmask_fast.training.settings import PretrainingSettings

    strategy, fraction, seed = task
    began = time.perf_counter()
    torch.set_num_threads(1)
    rows = data.pretraining.sample_rows(max(64, round(fraction * data.pretraining.n_cells)), seed)
    corpus = data.pretraining.take(rows)
    graph = build_dependency_graph(corpus, min_cooccurrence=plan.min_cooccurrence, min_presence=20, progress=False)
    pmi = PMITable.from_corpus(corpus, min_count=plan.min_count, progress=False)
    masker = make_masker(strategy, graph=graph, pmi=pmi, vocabulary=corpus.vocabulary, seed=seed)
    settings = PretrainingSettings(
        hidden_size=64,
        layers=2,
        heads=4,
        intermediate_size=128,
        dropout=0.0,  # attention with dropout is three times as slow on a CPU
        max_length=plan.length,
        batch_size=plan.batch_size,
        max_steps=plan.steps,
        learning_rate=1e-3,
        run_seed=seed,
        held_out=0.0,
        device="cpu",
        log_every=plan.steps,
        save_every=10 * plan.steps,
    )
    row: dict[str, Any] = {"strategy": strategy, "fraction": fraction, "cells": rows.size, "seed": seed}
    row |= {"graph_edges": graph.n_edges, "pmi_pairs": pmi.n_pairs}
    with tempfile.TemporaryDirectory() as folder, quiet():
        report = pretrain(corpus, masker, Path(folder) / "run", settings, progress=False)
        row["loss"] = report.last("loss")
        tuning = FineTuning(epochs=plan.epochs, batch_size=16, learning_rate=1e-3, seed=seed, device="cpu")
        for tissue in TISSUES:
            scored = annotate_cells(
                report.folder / "model", getattr(data, tissue), test_share=0.5, settings=tuning, progress=False
            )
            row |= {f"{tissue}_macro_f1": scored.macro_f1[0], f"{tissue}_rare_f1": scored.rare_f1[0]}
    return row | {"seconds": time.perf_counter() - began}


@contextlib.contextmanager
def quiet() -> Any:
    """Leave out what Trainer prints."""
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
        yield


def summarise(rows: list[dict[str, Any]]) -> dict[tuple[str, float], dict[str, tuple[float, float]]]:
    """Return mean and standard error over seeds of each score, by (strategy, fraction)."""
    result = {}
    for key in dict.fromkeys((row["strategy"], float(row["fraction"])) for row in rows):
        own = [row for row in rows if (row["strategy"], float(row["fraction"])) == key]
        scores = {}
        for kind in ("macro_f1", "rare_f1"):
            values = np.array([np.mean([float(row[f"{tissue}_{kind}"]) for tissue in TISSUES]) for row in own])
            error = values.std(ddof=1) / np.sqrt(values.size) if values.size > 1 else float("nan")
            scores[kind] = float(values.mean()), float(error)
        result[key] = scores
    return result


def table(rows: list[dict[str, Any]]) -> str:
    scores = summarise(rows)
    fractions = sorted({fraction for _, fraction in scores})
    cells = {float(row["fraction"]): int(row["cells"]) for row in rows}
    head = ["", *(f"{cells[fraction]:,} cells" for fraction in fractions)]
    lines = []
    for kind, name in (("macro_f1", "macro-F1"), ("rare_f1", "F1 of the rarest third")):
        lines.append([name, *[""] * len(fractions)])
        for strategy, label in STRATEGIES.items():
            found = [scores[strategy, fraction][kind] for fraction in fractions if (strategy, fraction) in scores]
            lines.append([f"  {label}", *(f"{mean:.3f} ± {error:.3f}" for mean, error in found)])
    return "\n".join(align([head, *lines]))


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    scores = summarise(rows)
    cells = {float(row["fraction"]): int(row["cells"]) for row in rows}
    figure = new_figure((9.0, 3.8))
    for axis, (kind, title) in zip(
        figure.subplots(1, 2), (("macro_f1", "All cell types"), ("rare_f1", "The rarest third")), strict=True
    ):
        for color, (strategy, label) in zip(COLORS, STRATEGIES.items(), strict=False):
            points = [(cells[f], *scores[s, f][kind]) for s, f in scores if s == strategy]
            x, mean, error = (np.array(column) for column in zip(*sorted(points), strict=True))
            axis.errorbar(x, mean, error, color=color, marker="o", markersize=4, capsize=3, label=label)
        axis.set_xscale("log")
        axis.set_xticks(sorted(cells.values()), [f"{n:,}" for n in sorted(cells.values())])
        axis.minorticks_off()
        style_axis(axis, title=title, x="cells pretrained on", y="macro-F1, fine-tuned")
    axis.legend(frameon=False, fontsize=8)
    save_figure(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few steps, one seed: to see that it runs")
    parser.add_argument("--steps", type=int, default=1500, help="of pretraining, for every run (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each kind (default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=2, help="processes (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="FOLDER", help="for table and picture")
    arguments = parser.parse_args()
    folder = Path(os.environ.get("CORRMASK_DATA", ""))
    if not (folder / "pbmc3k.h5ad").is_file():
        raise SystemExit("this needs real cells: set CORRMASK_DATA to a folder with pbmc3k.h5ad, baron_h1.h5ad, …")
    plan = Plan(steps=arguments.steps, seeds=arguments.seeds)
    fractions: tuple[float, ...] = FRACTIONS
    if arguments.quick:
        plan, fractions = Plan(steps=10, seeds=1, length=64, least_cells=600, epochs=1), (1.0,)
    data = read_data(folder, plan)
    print(
        f"{data.pretraining.n_cells:,} cells to pretrain on, {data.pretraining.vocabulary.size - 2:,} genes; "
        f"{data.pbmc.n_cells:,} and {data.pancreas.n_cells:,} cells to name"
    )
    # Whole sets of strategies one after the other: what is broken off can still be compared.
    tasks = [(name, fraction, seed) for seed in range(plan.seeds) for fraction in fractions for name in STRATEGIES]
    rows: list[dict[str, Any]] = []
    out = arguments.out / "pretrain_compare.csv"
    arguments.out.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(arguments.jobs, mp_context=get_context("spawn")) as pool:
        for row in pool.map(run_one, tasks, [data] * len(tasks), [plan] * len(tasks)):
            rows.append({"steps": plan.steps, **row})
            print(
                f"{row['strategy']:>9} {row['cells']:5} cells, seed {row['seed']}: macro-F1 pbmc "
                f"{row['pbmc_macro_f1']:.3f}, pancreas {row['pancreas_macro_f1']:.3f} ({row['seconds']:.0f} s)",
                flush=True,
            )
            write_csv(out, list(rows[0]), [list(one.values()) for one in rows])
    print(table(rows))
    if len({row["cells"] for row in rows}) > 1:
        plot(rows, out.with_suffix(".png"))


if __name__ == "__main__":
    main()
