"""Check, time and record: ``python bench/run.py`` prints the table and appends rows to bench/results/masking.csv.

Run it by its path, not with ``-m``: the repository's root on ``sys.path`` would show its folder ``kernels`` to packages
that look for Hugging Face's package of that name.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import records
import torch
from contestants import input_race, masking_race, reference_race, thread_race
from goals import MASKER, OURS
from parity import check_masker, check_pipelines
from timing import race
from workload import SMOKE, Size, Workload, make_workload

from corrmask_fast import CorrMasker, set_num_threads

ROOT = Path(__file__).resolve().parents[1]
CASES = ("input", "masking", "reference", "threads")


def main() -> None:
    """Run what the arguments ask for."""
    arguments = _arguments()
    if arguments.readme:
        records.write_readme(records.last_run())
        return
    torch.set_num_threads(1)
    set_num_threads(1)
    size, rounds = (SMOKE, 3) if arguments.smoke else (Size(), arguments.rounds)
    workload = make_workload(size, arguments.keep)
    first_call = _first_call(workload)
    shared = records.conditions(workload.describe(), rounds, first_call)
    print(f"first call of the masker, compiled or loaded from Numba's cache: {first_call:.2f} s", flush=True)
    rows = []
    for case in arguments.cases:
        rows += _measure(case, workload, rounds, shared)
    print(f"\n{records.table(rows)}\n\n{records.said_conditions(rows)}")
    if arguments.smoke:
        print("\nA smoke run: nothing is recorded, and the figures mean nothing.")
    elif not arguments.dry:
        records.append(rows)
        print(f"\n{len(rows)} rows appended to {records.RESULTS.relative_to(ROOT)}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cases", nargs="+", choices=CASES, default=CASES, help="default: all")
    parser.add_argument("--rounds", type=int, default=40, help="samples of each contestant (default: %(default)s)")
    parser.add_argument("--dry", action="store_true", help="print, but record nothing")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes: does everything run, and agree?")
    parser.add_argument("--readme", action="store_true", help="only: put the last recorded run into README.md")
    parser.add_argument("--keep", type=Path, default=ROOT / "build" / "bench", help="where cells and graph are kept")
    return parser.parse_args()


def _first_call(workload: Workload) -> float:
    """Seconds that the first batch takes."""
    rows, masker = torch.from_numpy(workload.rows(1)), CorrMasker(workload.graph)
    began = time.perf_counter()
    masker(rows)
    return time.perf_counter() - began


def _measure(case: str, workload: Workload, rounds: int, shared: records.Row) -> list[records.Row]:
    """Check and time a case at every batch size."""
    rows = []
    for batch in workload.size.thread_batches if case == "threads" else workload.size.batches:
        check_masker(workload, batch)
        if case == "threads":
            for name in (MASKER, OURS):
                contestants = thread_race(workload, batch, ragged=name == OURS)
                timings = race(contestants, rounds=rounds)
                rows += records.rows_of_race(f"threads: {name}", batch, contestants, timings, shared)
            set_num_threads(1)
            continue
        if case == "input":
            check_pipelines(workload, batch)
        entrants = {"input": input_race, "masking": masking_race, "reference": reference_race}[case](workload, batch)
        rows += records.rows_of_race(case, batch, entrants, race(entrants, rounds=rounds), shared)
        print(f"{case}, batch {batch}: checked and timed", flush=True)
    return rows


if __name__ == "__main__":
    main()
