"""Check, time and record pretraining: ``python bench/pretrain/run.py`` appends to bench/results/pretrain.csv."""

from __future__ import annotations

import sys
from pathlib import Path

BENCH = Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    sys.path[0] = str(BENCH)  # the folder of benches, in place of this one: `pretrain` is a package in it

# ruff: noqa: E402
import tempfile

import torch
from harness.bench import Bench, parser_of
from harness.workload import SMOKE, Size, Workload, make_workload

from corrmask_fast import get_num_threads, set_num_threads
from pretrain.contestants import GOALS, KINDS, STEPS, head_race, input_race, learned_race, step_race
from pretrain.profiling import profile_steps, steps_of, table_of, timings_of

CASES = ("input", *STEPS, "mam", "heads", "profile")
STEP_BATCH = 4


def main() -> None:
    """Run what the arguments ask for."""
    arguments = parser_of(__doc__, "pretrain.csv", CASES, rounds=3).parse_args()
    workload = make_workload(SMOKE if arguments.smoke else Size(), arguments.keep)
    bench = Bench(arguments, GOALS, {"first_call_s": 0.0, **workload.describe(), "kept_mib": ""})
    for case in arguments.cases:
        if case == "input":
            time_input(bench, workload)
        elif case == "heads":
            time_heads(bench, workload)
        elif case == "profile":
            profile_training(bench, workload)
        else:
            time_steps(bench, workload, case)
    bench.finish()


def time_input(bench: Bench, workload: Workload) -> None:
    """Time the loaders of Trainers at every batch size, one thread."""
    threads, torch_threads = get_num_threads(), torch.get_num_threads()
    set_num_threads(1)
    torch.set_num_threads(1)
    rounds = bench.rounds if bench.smoke else 10 * bench.rounds  # a batch takes less than a step
    try:
        for batch in workload.size.batches:
            with tempfile.TemporaryDirectory() as folder:
                bench.race("input", batch, input_race(workload, batch, Path(folder)), rounds=rounds, sample_ms=20)
    finally:
        set_num_threads(threads)
        torch.set_num_threads(torch_threads)


def time_heads(bench: Bench, workload: Workload) -> None:
    """Time steps of other models with a full and a sparse head, and count what is kept for the backward pass."""
    for kind in KINDS:
        contestants, kept = head_race(workload, STEP_BATCH, kind, small=bench.smoke)
        for name, timing in bench.race("heads", STEP_BATCH, contestants).items():
            next(row for row in bench.rows if row["contestant"] == name)["kept_mib"] = round(kept[name])
            print(f"{name}: {timing.p50 * STEP_BATCH / 1e6:.3g} s, keeps {kept[name]:,.0f} MiB", flush=True)


def profile_training(bench: Bench, workload: Workload) -> None:
    """Print where the time of a step goes, with all threads of PyTorch; keep the quickest step of each kind."""
    found = profile_steps(steps_of(workload, STEP_BATCH, small=bench.smoke), bench.rounds)
    timings = timings_of(found, STEP_BATCH)
    bench.keep("profile", STEP_BATCH, timings, dict.fromkeys(timings, torch.get_num_threads()), bench.shared)
    print(f"\n{table_of(found)}\n", flush=True)


def time_steps(bench: Bench, workload: Workload, case: str) -> None:
    """Time training steps with all threads of PyTorch."""
    contestants = (
        step_race(workload, STEP_BATCH, STEPS[case], small=bench.smoke)
        if case in STEPS
        else learned_race(workload, STEP_BATCH, small=bench.smoke)
    )
    for name, timing in bench.race(case, STEP_BATCH, contestants).items():
        print(f"{case}: {name} {timing.p50 * STEP_BATCH / 1e6:.3g} s", flush=True)


if __name__ == "__main__":
    main()
