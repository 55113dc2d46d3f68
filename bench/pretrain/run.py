"""Check, time and record pretraining: ``python bench/pretrain/run.py`` appends to bench/results/pretrain.csv."""

from __future__ import annotations

import sys
from pathlib import Path

BENCH = Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    sys.path[0] = str(BENCH)  # the folder of benches, in place of this one: `pretrain` is a package in it

# ruff: noqa: E402
import argparse
import tempfile

import records
import torch
from timing import race
from workload import SMOKE, Size, Workload, make_workload

from corrmask_fast import get_num_threads, set_num_threads
from pretrain.contestants import input_race, learned_race, step_race
from pretrain.targets import STEPS, TARGETS

RESULTS = records.RESULTS.with_name("pretrain.csv")
CASES = ("input", *STEPS, "mam")
STEP_BATCH = 4


def main() -> None:
    """Run what the arguments ask for."""
    arguments = _arguments()
    workload = make_workload(SMOKE if arguments.smoke else Size(), arguments.keep)
    shared = records.conditions(workload.describe(), arguments.rounds, 0.0)
    rows: list[records.Row] = []
    if "input" in arguments.cases:
        rows += time_input(workload, 3 if arguments.smoke else 10 * arguments.rounds, shared)
    for case in CASES[1:]:
        if case in arguments.cases:
            rows += time_steps(workload, case, arguments.rounds, shared, small=arguments.smoke)
    done = {row["case"] for row in rows}
    print(f"\n{records.table(rows, [target for target in TARGETS if target.case in done])}")
    if arguments.smoke:
        print("\nA smoke run: nothing is recorded, and the figures mean nothing.")
    elif not arguments.dry:
        records.append(rows, RESULTS)
        print(f"\n{len(rows)} rows appended to {RESULTS.relative_to(BENCH.parent)}")


def time_input(workload: Workload, rounds: int, shared: records.Row) -> list[records.Row]:
    """Time the loaders of Trainers at every batch size, one thread."""
    threads, torch_threads = get_num_threads(), torch.get_num_threads()
    set_num_threads(1)
    torch.set_num_threads(1)
    rows = []
    try:
        for batch in workload.size.batches:
            with tempfile.TemporaryDirectory() as folder:
                contestants = input_race(workload, batch, Path(folder))
                timings = race(contestants, rounds=rounds, sample_ms=20)
            shared = shared | {"rounds": rounds}
            rows += records.rows_of_race("input", batch, contestants, timings, shared)
    finally:
        set_num_threads(threads)
        torch.set_num_threads(torch_threads)
    return rows


def time_steps(workload: Workload, case: str, rounds: int, shared: records.Row, *, small: bool) -> list[records.Row]:
    """Time training steps with all threads of PyTorch."""
    contestants = (
        step_race(workload, STEP_BATCH, STEPS[case], small=small)
        if case in STEPS
        else learned_race(workload, STEP_BATCH, small=small)
    )
    timings = race(contestants, rounds=rounds)
    for contestant in contestants:
        print(f"{case}: {contestant.name} {timings[contestant.name].p50 * STEP_BATCH / 1e6:.3g} s", flush=True)
    return records.rows_of_race(case, STEP_BATCH, contestants, timings, shared)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cases", nargs="+", choices=CASES, default=CASES, help="default: all")
    parser.add_argument("--rounds", type=int, default=3, help="steps of each contestant (default: %(default)s)")
    parser.add_argument("--dry", action="store_true", help="print, but record nothing")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes: does everything run, and agree?")
    parser.add_argument("--keep", type=Path, default=BENCH.parent / "build" / "bench", help="where cells are kept")
    return parser.parse_args()


if __name__ == "__main__":
    main()
