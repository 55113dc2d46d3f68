"""Do correlated masks help? ``corrmask-fast compare`` on real cells, CorrMask beside its controls.

    CORRMASK_DATA=folder python bench/pretrain_compare/run.py           about an hour on 2 cores
    CORRMASK_DATA=folder python bench/pretrain_compare/run.py --quick   a few minutes, to see that it runs

Cells: two donors' PBMC and a pancreas, 70 % of them to pretrain on, 30 % to score. First six strategies with five seeds
on all training cells, then three of them on a tenth and on 30 % of these. Interrupted, the same command goes on. The
rows go to ``bench/results/pretrain_compare``, the page to ``docs/_static/comparison.html``.
"""

from __future__ import annotations

import argparse
import os
import shutil
from dataclasses import replace
from pathlib import Path

from corrmask_fast import compare_strategies
from corrmask_fast.comparison.plan import Scoring
from corrmask_fast.training.settings import PRESETS

ROOT = Path(__file__).resolve().parents[2]
FILES = ("pbmc3k.h5ad", "baron_h1.h5ad", "pbmc_frozenA.h5ad")
STRATEGIES = ("random", "corrmask", "corrmask-rewired", "random-matched", "corrmask-balanced", "random@0.1..0.9")
# On shares of the cells: the best three by probe macro-F1, but for random@0.1..0.9, whose models take 250 s.
SMALLER = ("random", "corrmask", "corrmask-rewired")
COMMAND = "CORRMASK_DATA=folder python bench/pretrain_compare/run.py"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few steps, one seed: to see that it runs")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "pretrain_compare", metavar="FOLDER")
    arguments = parser.parse_args()
    data = Path(os.environ.get("CORRMASK_DATA", ""))
    if not (data / FILES[0]).is_file():
        raise SystemExit(f"this needs real cells: set CORRMASK_DATA to a folder with {', '.join(FILES)}")
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    scoring, settings, seeds = Scoring(), PRESETS["tiny"], 5
    if arguments.quick:
        scoring, settings, seeds = Scoring(50, 50, 1), replace(settings, max_steps=5), 1
        arguments.out = arguments.out.with_name(f"{arguments.out.name}-quick")
    for names, fractions in ((STRATEGIES, (1.0,)), (SMALLER, (0.1, 0.3))):
        comparison = compare_strategies(
            [data / name for name in FILES],
            arguments.out,
            labels="cell_type",
            strategies=names,
            fractions=fractions,
            seeds=seeds,
            settings=settings,
            scoring=scoring,
            command=COMMAND,
        )
    print(comparison.table())
    if arguments.quick:
        return
    rows = ROOT / "bench" / "results" / "pretrain_compare"
    rows.mkdir(exist_ok=True)
    for name in ("comparison.json", "rows.csv", "details.csv", "differences.csv"):
        shutil.copy(arguments.out / name, rows / name)
    shutil.copy(arguments.out / "report.html", ROOT / "docs" / "_static" / "comparison.html")


if __name__ == "__main__":
    main()
