"""A made-up comparison: the files that runs leave, with effects that are planted."""

from __future__ import annotations

import csv
import json

import numpy as np

STRATEGIES = {
    "random": "Random", "corrmask": "CorrMask", "corrmask-rewired": "CorrMask, rewired graph",
    "random-matched": "Random, frequency-matched", "corrmask-balanced": "Balanced CorrMask",
    "random@0.1..0.9": "Random 10–90 %",
}  # fmt: skip
TYPES = {
    "CD4+ T cell": 640, "CD14+ Monocyte": 410, "B cell": 260, "CD8+ T cell": 220, "NK cell": 130,
    "FCGR3A+ Monocyte": 90, "Dendritic cell": 35, "Megakaryocyte": 15,
}  # fmt: skip
HEAD = ["kind", "strategy", "fraction", "seed", "cells", "steps", "seconds", "graph_edges", "coverage_error",
        "own_loss", "loss", "loss_se",
        "accuracy", "accuracy_se", "perplexity", "shortcut", "shortcut_se", "placebo", "placebo_se",
        "excess", "excess_se", "targets", "probe_f1", "probe_rare_f1", "macro_f1", "rare_f1", "knn_purity"]  # fmt: skip
GROUPS = {
    "loss by frequency": ["0-1 %", "1-5 %", "5-20 %", "20-50 %", "50-100 %"],
    "shortcut by rho": ["0.1-0.2", "0.2-0.3", "0.3-0.5", "0.5-1"],
    "shortcut by frequency": ["0-5 %", "5-20 %", "20-100 %"],
}
# Of each strategy: loss, shortcut and F1 beside Random's. CorrMask's loss is planted 0.03 below.
EFFECTS = {"random": (0, 0.15, 0), "corrmask": (-0.03, 0.06, 0.03), "corrmask-rewired": (-0.005, 0.13, 0.0),
           "random-matched": (-0.004, 0.14, 0.005), "corrmask-balanced": (-0.02, 0.08, 0.04)}  # fmt: skip


def facts(strategies=STRATEGIES, seeds=5, fractions=(0.1, 1.0), labels=True):
    return {
        "strategies": dict(strategies), "reference": next(iter(strategies)), "fractions": list(fractions),
        "seeds": seeds, "train_cells": 4200, "test_cells": 1800, "labelled_cells": 1800 if labels else 0, "genes": 6400,
        "types": TYPES if labels else {}, "rare": [*TYPES][-3:] if labels else [],
        "settings": {"hidden_size": 64, "layers": 2, "heads": 4, "max_length": 192, "batch_size": 32, "max_steps": 600,
                     "learning_rate": 0.001},
        "evaluation": {"mask_rate": 0.15, "mask_seed": 7, "targets": 421},
        "inputs": {"train": "pbmc.h5ad", "test": "30 % of the cells"},
        "notes": ["Coverage of random-matched was fitted in 8 rounds."],
        "versions": {"corrmask-fast": "0.1.0", "torch": "2.13.0"},
    }  # fmt: skip


def rows(given, labels=True, seed=0):
    """Rows of all models, then of baselines, as dicts by column."""
    rng = np.random.default_rng(seed)
    shared = {s: rng.normal(0, 0.02) for s in range(given["seeds"])}
    found = []
    for fraction in given["fractions"]:
        for s in range(given["seeds"]):
            for name in given["strategies"]:
                gain, shortcut, f1 = EFFECTS.get(name, (0.01, 0.12, -0.01))
                loss = 7.1 + 0.2 * (1 - fraction) + shared[s] + gain + rng.normal(0, 0.006)
                row = {
                    "kind": "model", "strategy": name, "fraction": fraction, "seed": s, "cells": round(4200 * fraction),
                    "steps": 600, "seconds": 93.2, "own_loss": loss - 0.5 * ("corrmask" in name),
                    "loss": loss, "loss_se": 0.004, "perplexity": np.exp(loss),
                    "accuracy": 0.05 - 0.04 * gain + rng.normal(0, 0.002), "accuracy_se": 0.001,
                    "shortcut": shortcut * fraction**0.3 + rng.normal(0, 0.01), "shortcut_se": 0.005,
                    "placebo": 0.02 + rng.normal(0, 0.004), "placebo_se": 0.004, "excess_se": 0.006, "targets": 421,
                }  # fmt: skip
                row["excess"] = row["shortcut"] - row["placebo"]
                if "corrmask" in name:
                    row["graph_edges"] = 51_230
                if name == "random-matched":
                    row["coverage_error"] = 0.0043
                if labels:
                    base = 0.62 + 0.08 * fraction + f1 + rng.normal(0, 0.012)
                    row |= {"probe_f1": base - 0.2, "probe_rare_f1": base - 0.3, "macro_f1": base,
                            "rare_f1": base - 0.12, "knn_purity": base + 0.1}  # fmt: skip
                found.append(row)
    for s in range(given["seeds"]):
        blank = {"kind": "untrained", "strategy": "untrained", "seed": s, "loss": 8.77, "accuracy": 0.0002,
                 "shortcut": 0.0, "placebo": 0.0, "excess": 0.0}  # fmt: skip
        found.append(blank | ({"probe_f1": 0.21 + rng.normal(0, 0.01), "knn_purity": 0.4} if labels else {}))
        for name, loss in (("unigram", 8.42), ("cell type", 8.10)):
            found.append({"kind": "baseline", "strategy": name, "seed": s, "loss": loss, "accuracy": 0.01})
        for name, score in (("majority", 0.08), ("logistic, counts", 0.715), ("logistic, PCA", 0.68)) if labels else ():
            f1 = score + rng.normal(0, 0.003) * (name != "majority")
            scores = {"macro_f1": f1, "rare_f1": 0.8 * f1, "probe_f1": f1, "probe_rare_f1": 0.8 * f1}
            found.append({"kind": "baseline", "strategy": name, "seed": s, **scores})
    return found


def details(given, labels=True, seed=1):
    rng = np.random.default_rng(seed)
    tables = dict(GROUPS) | ({"f1": [*TYPES], "probe": [*TYPES], "loss by type": [*TYPES]} if labels else {})
    for fraction in given["fractions"]:
        for s in range(given["seeds"]):
            for name in given["strategies"]:
                gain, shortcut, f1 = EFFECTS.get(name, (0.01, 0.12, -0.01))
                for table, groups in tables.items():
                    for i, group in enumerate(groups):
                        if table in ("f1", "probe"):
                            value = np.clip(0.95 - 0.08 * i + f1 + rng.normal(0, 0.02), 0, 1)
                        elif table == "loss by frequency":
                            value = 9 - 0.7 * i + gain * i / 2 + rng.normal(0, 0.01)
                        elif table == "loss by type":
                            value = 7 + rng.normal(0, 0.02)
                        else:
                            value = shortcut * (0.5 + 0.5 * i) + rng.normal(0, 0.01)
                        yield name, fraction, s, table, group, value, 100 + i


def write(folder, given=None, lines=None, parts=None, labels=True):
    """Write the three files of a comparison; return the folder."""
    given = facts(labels=labels) if given is None else given
    lines = rows(given, labels) if lines is None else lines
    parts = details(given, labels) if parts is None else parts
    folder.mkdir(exist_ok=True)
    (folder / "comparison.json").write_text(json.dumps(given))
    with (folder / "rows.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, HEAD, restval="")
        writer.writeheader()
        writer.writerows(lines)
    with (folder / "details.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["strategy", "fraction", "seed", "table", "group", "value", "n"])
        writer.writerows(parts)
    return folder
