"""Do correlated masks help? ``corrmask-fast compare`` on real cells, CorrMask beside its controls.

    CORRMASK_DATA=folder python bench/pretrain_compare/run.py           about an hour on 2 cores
    CORRMASK_DATA=folder python bench/pretrain_compare/run.py --quick   a few minutes, to see that it runs

Cells: two donors' PBMC and a pancreas, 70 % of them to pretrain on, 30 % to score. First six strategies with five seeds
on all training cells, then three of them on a tenth and on 30 % of these. Interrupted, the same command goes on. The
rows go to ``bench/results/pretrain_compare``, the page to ``docs/comparison.html``.
"""

from __future__ import annotations

import argparse
import os
import shutil
from pathlib import Path

from corrmask_fast.cli.main import main as corrmask_fast

ROOT = Path(__file__).resolve().parents[2]
FILES = ("pbmc3k.h5ad", "baron_h1.h5ad", "pbmc_frozenA.h5ad")
STRATEGIES = ("random", "corrmask", "corrmask-rewired", "random-matched", "corrmask-balanced", "random@0.1..0.9")
SMALLER = ("random", "corrmask", "random-matched")  # also on shares of the cells
QUICK = ("--max-steps", "5", "--seeds", "1", "--n-cells", "50", "--n-targets", "50", "--fine-tuning-epochs", "1")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few steps, one seed: to see that it runs")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "pretrain_compare", metavar="FOLDER")
    arguments = parser.parse_args()
    data = Path(os.environ.get("CORRMASK_DATA", ""))
    if not (data / FILES[0]).is_file():
        raise SystemExit(f"this needs real cells: set CORRMASK_DATA to a folder with {', '.join(FILES)}")
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    common = ["compare", *(str(data / name) for name in FILES), "--labels", "cell_type", "--out", str(arguments.out)]
    common += QUICK if arguments.quick else ()
    for more in (["--strategies", *STRATEGIES], ["--strategies", *SMALLER, "--fractions", "0.1", "0.3"]):
        if code := corrmask_fast([*common, *more]):
            raise SystemExit(code)
    if arguments.quick:
        return
    rows = ROOT / "bench" / "results" / "pretrain_compare"
    rows.mkdir(exist_ok=True)
    for name in ("comparison.json", "rows.csv", "details.csv", "differences.csv"):
        shutil.copy(arguments.out / name, rows / name)
    shutil.copy(arguments.out / "report.html", ROOT / "docs" / "comparison.html")


if __name__ == "__main__":
    main()
