"""Check, time and record: ``python bench/run.py`` prints the table and appends rows to bench/results/masking.csv.

Run it by its path, not with ``-m``: the repository's root on ``sys.path`` would show its folder ``kernels`` to packages
that look for Hugging Face's package of that name.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import torch
from contestants import (
    FLOORS,
    GOALS,
    MASKER,
    OURS,
    input_race,
    masking_race,
    packers,
    packing_race,
    pipelines,
    reference_race,
    thread_race,
)
from harness import records
from harness.bench import Bench, parser_of
from harness.goals import headlines
from harness.parity import check_masker, check_packers, check_pipelines
from harness.workload import SMOKE, Size, Workload, make_workload

from corrmask_fast import CorrMasker, set_num_threads

if TYPE_CHECKING:
    from pathlib import Path

CASES = ("input", "masking", "packing", "reference", "threads")
RESULTS, PAGE = records.RESULTS / "masking.csv", records.ROOT / "docs" / "explanation" / "speed.md"
BEGIN = "<!-- figures: written by bench/run.py --page from the last rows of bench/results/masking.csv -->"
END = "<!-- end of figures -->"
HOW = "Medians of {rounds} rounds in turns, one thread against one thread unless said,"


def main() -> None:
    """Run what the arguments ask for."""
    parser = parser_of(__doc__, RESULTS.name, CASES, rounds=40)
    parser.add_argument("--page", action="store_true", help="only: the last recorded run into docs/explanation")
    arguments = parser.parse_args()
    if arguments.page:
        write_page(last_run(), PAGE)
        return
    torch.set_num_threads(1)
    set_num_threads(1)
    workload = make_workload(SMOKE if arguments.smoke else Size(), arguments.keep)
    first_call = round(_first_call(workload), 2)
    print(f"first call of the masker, compiled or loaded from Numba's cache: {first_call:.2f} s", flush=True)
    described = {"first_call_s": first_call, **workload.describe()}
    bench = Bench(arguments, GOALS, described, floors=FLOORS, how=HOW)
    for case in arguments.cases:
        measure(bench, case, workload)
    bench.finish()


def _first_call(workload: Workload) -> float:
    """Seconds that the first batch takes."""
    rows, masker = torch.from_numpy(workload.rows(1)), CorrMasker(workload.graph)
    began = time.perf_counter()
    masker(rows)
    return time.perf_counter() - began


def measure(bench: Bench, case: str, workload: Workload) -> None:
    """Check and time a case at every batch size."""
    for batch in workload.size.thread_batches if case == "threads" else workload.size.batches:
        check_masker(workload, batch)
        if case == "threads":
            for name in (MASKER, OURS):
                bench.race(f"threads: {name}", batch, thread_race(workload, batch, ragged=name == OURS))
            set_num_threads(1)
            continue
        if case == "input":
            check_pipelines(workload, batch, pipelines(workload))
        if case == "packing":
            check_packers(workload, batch, *packers(workload, batch))
        races = {"input": input_race, "masking": masking_race, "packing": packing_race, "reference": reference_race}
        bench.race(case, batch, races[case](workload, batch))


def last_run(path: Path = RESULTS) -> list[records.Row]:
    """Return the rows of the last run that covers every case of the page's table: packing has no line there."""
    return records.last_run(records.read(path), {goal.case for goal in GOALS} - {"packing"})


def figures(rows: list[records.Row]) -> str:
    """Return what stands between the marks of the page: a run's figures, and their conditions right below."""
    conditions = records.conditions_text(rows[0], HOW.format(**rows[0]))
    return f"\n\n{headlines(rows, GOALS)}\n\n{conditions} In brackets our microseconds a cell.\n\n"


def write_page(rows: list[records.Row], path: Path) -> None:
    """Put a run's figures into the page."""
    before, rest = path.read_text().split(BEGIN)
    path.write_text(before + BEGIN + figures(rows) + END + rest.split(END)[1])


if __name__ == "__main__":
    main()
