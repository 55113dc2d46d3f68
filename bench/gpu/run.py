"""Check, time and record on a GPU: ``python bench/gpu/run.py`` prints tables and appends rows to bench/results/gpu.csv.

Exit code 0: all done; 1: a case failed (the others still ran); 2: there is nothing here to measure with.
"""

from __future__ import annotations

import sys
from pathlib import Path

BENCH = Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    sys.path[0] = str(BENCH)  # the folder of benches, in place of this one: `gpu` is a package in it

# ruff: noqa: E402
import argparse
import json
import time
import traceback
from typing import TYPE_CHECKING, Any

import records
import torch
from timing import Timing, race

from corrmask_fast import CorrMasker, get_num_threads
from gpu import devices, goals, graphs, masking, parity, profiling, results, training
from gpu.workloads import COMPARED, SMOKE, Sizes, atlas, masking_workload, rows_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from timing import Contestant

CASES = ("masking", "graph", "training", "profile")


class Bench:
    """What the cases share: device, sizes, workload, and the rows so far."""

    def __init__(self, device: torch.device, sizes: Sizes, path: Path | None) -> None:
        self.device, self.sizes, self.path = device, sizes, path
        self.rows: list[records.Row] = []
        began = time.perf_counter()
        self.workload = masking_workload(sizes)
        self.described = self.workload.describe()
        print(f"workload made in {time.perf_counter() - began:.1f} s: {self.described}", flush=True)

    def race(self, contestants: Sequence[Contestant]) -> dict[str, Timing]:
        """Time contestants in turns."""
        clock = devices.clock_of(self.device)
        return race(contestants, rounds=self.sizes.rounds, sample_ms=self.sizes.sample_ms, clock=clock)

    def keep(
        self,
        case: str,
        batch: int,
        timings: dict[str, Timing],
        *,
        threads: dict[str, int] | None = None,
        moved: int = 0,
        details: dict[str, Any] | None = None,
        described: records.Row | None = None,
        rounds: int | None = None,
    ) -> None:
        """Print rows, and append them to the file at once: a run that is cut short keeps what it had."""
        shared = devices.conditions(self.device, described or self.described, rounds or self.sizes.rounds)
        rows = []
        for name, timing in timings.items():
            row = {"case": case, "contestant": name, "batch": batch, "threads": (threads or {}).get(name, 1)}
            row |= {f"{key}_us": round(float(value), 3) for key, value in timing._asdict().items()}
            detail = (details or {}).get(name)
            rows.append(row | {"bytes": moved, "detail": json.dumps(detail) if detail else ""} | shared)
        print(f"\n{case}, {batch:,}\n{results.table(rows)}", flush=True)
        self.rows += rows
        if self.path is not None:
            records.append(rows, self.path)


def run_masking(bench: Bench) -> None:
    """Masks are the CPU's and the oracle's; then everybody masks."""
    if bench.device.type == "cuda":
        print(f"parity: {parity.check_cases(bench.device)} results of the tests' cases are the CPU's", flush=True)
    else:
        print(f"parity: {parity.check_emulated(bench.workload)}", flush=True)
    for batch in bench.sizes.batches:
        parity.check_batch(bench.workload, batch, bench.device)
        contestants = masking.masking_race(bench.workload, batch, bench.device)
        threads = {one.name: one.threads for one in contestants}
        moved = masking.bytes_moved(rows_of(bench.workload, batch))
        bench.keep("masking", batch, bench.race(contestants), threads=threads, moved=moved)
        del contestants
        devices.free_memory()


def run_graph(bench: Bench) -> None:
    """A small graph is the CPU's; then atlases, stage by stage; the large graphs are compared with the CPU's too."""
    sizes, device = bench.sizes, bench.device
    small = {"n_cells": 600, "min_presence": 10, "min_cooccurrence": 20}
    corpus = atlas(COMPARED, 1_500 if device.type == "cuda" else 200)
    print(f"parity: {parity.check_graph(corpus, device, **small)}", flush=True)
    least = {"min_presence": min(50, sizes.atlas_cells // 10), "min_cooccurrence": min(200, sizes.atlas_cells // 10)}
    for n_genes in sizes.atlas_genes:
        began = time.perf_counter()
        corpus = atlas(sizes, n_genes)
        print(f"\n{corpus}: made in {time.perf_counter() - began:.1f} s", flush=True)
        rounds = []
        for _ in range(min(3, sizes.rounds)):
            graph, seconds = graphs.build_timed(corpus, device, **least)
            rounds.append(seconds)
        timed = {f"graph, {name}": Timing(*values) for name, values in graphs.percentiles(rounds).items()}
        host_graph, host = graphs.build_timed(corpus, torch.device("cpu"), **least)
        timed |= {f"graph on the CPU, {name}": Timing(*[s * 1e6] * 3) for name, s in host.items()}
        assert graph.fingerprint == host_graph.fingerprint, f"{n_genes} genes: the device's graph is not the CPU's"
        threads = dict.fromkeys(timed, get_num_threads())
        linked = graph.degrees > 0
        described = bench.described | {
            "columns": sizes.columns,
            "vocabulary": corpus.vocabulary.size,
            "graph_edges": graph.indices.size // 2,
            "with_neighbors": round(float(linked.mean()), 3),
            "mean_degree": round(float(graph.degrees[linked].mean()) if linked.any() else 0.0, 1),
            "present_share": "",
        }
        bench.keep(
            f"graph: {n_genes} genes",
            corpus.n_cells,
            timed,
            threads=threads,
            moved=corpus.tokens.nbytes,
            described=described,
            rounds=len(rounds),
        )


def run_training(bench: Bench) -> None:
    """A step of pretraining, by where its masks come from."""
    for wanted in bench.sizes.training_batches:
        batch = training.fitting_batch(bench.workload, wanted, bench.sizes, bench.device)
        if batch < wanted:
            print(f"a step of {wanted} does not fit this device: {batch} in its place", flush=True)
        parity.check_batch(bench.workload, batch, bench.device)
        contestants = training.training_race(bench.workload, batch, bench.sizes, bench.device)
        timings = bench.race(contestants)
        bench.keep("training", batch, timings)
        off, ours = timings[goals.OFF].p50, timings[goals.OURS].p50
        print(f"masking on the device adds {100 * (ours - off) / ours:.2f} % to a step of {batch}", flush=True)
        del contestants
        devices.free_memory()


def run_profile(bench: Bench) -> None:
    """Kernels by name, what they take, parts of the work, blocks of other sizes, at the largest batch."""
    batch = bench.sizes.batches[-1]
    ids = rows_of(bench.workload, batch).to(bench.device)
    masker = CorrMasker(bench.workload.graph).to(bench.device)
    moved = masking.bytes_moved(ids)
    bench.keep("profile: parts", batch, bench.race(profiling.parts_race(bench.workload, ids)), moved=moved)
    if bench.device.type != "cuda":
        print("\nkernels, their resources and blocks of other sizes need a device: left out")
        return
    with profiling.watched_launches() as launches:
        masker(ids)
    details = {one.name: profiling.resources(bench.device, one) for one in launches}
    times, told = {}, {}
    for key, _, us in profiling.kernel_times(lambda: masker(ids)):
        times[key] = Timing(us, us, us)
        told[key] = next((found for name, found in details.items() if key.startswith(name)), None)
    bench.keep("profile: kernels", batch, times, moved=moved, details=told)
    # Few rows leave multiprocessors idle: larger blocks may win there.
    for some in (ids, ids[: bench.sizes.batches[0]]):
        contestants = profiling.blocks_race(bench.workload, some)
        bench.keep("profile: blocks", len(some), bench.race(contestants), moved=masking.bytes_moved(some))


RUN: dict[str, Callable[[Bench], None]] = {
    "masking": run_masking,
    "graph": run_graph,
    "training": run_training,
    "profile": run_profile,
}


def main() -> int:
    """Run what the arguments ask for; return the exit code."""
    arguments = _arguments()
    reason = devices.why_not()
    if reason and not arguments.smoke:
        print(
            f"nothing can be measured here: {reason}; --smoke tries the bench itself on the CPU and records nothing",
            file=sys.stderr,
        )
        return 2
    device = torch.device("cpu") if reason else torch.device("cuda", torch.cuda.current_device())
    sizes = SMOKE if arguments.smoke else Sizes()
    if arguments.rounds:
        sizes = Sizes(**{**vars(sizes), "rounds": arguments.rounds})
    path = None if arguments.smoke or arguments.dry else arguments.results
    if arguments.smoke:
        print(
            "A smoke run: tiny sizes, nothing is recorded, and the figures mean nothing."
            + f" ({reason})" * bool(reason)
        )
    bench, failed = Bench(device, sizes, path), []
    for case in arguments.cases:
        try:
            RUN[case](bench)
        except Exception:  # noqa: BLE001 (whatever it was: the other cases may still be measured)
            traceback.print_exc()
            failed.append(case)
    if bench.rows:
        print(f"\n{goals.verdicts(results.medians(bench.rows))}\n\n{results.said_conditions(bench.rows[-1])}")
    if path is not None:
        print(f"{len(bench.rows)} rows appended to {path}")
    if failed:
        print(f"FAILED: {', '.join(failed)} (see above)", file=sys.stderr)
    return 1 if failed else 0


def _arguments() -> argparse.Namespace:
    def cases(text: str) -> list[str]:
        asked = text.split(",")
        if unknown := set(asked) - set(CASES):
            raise argparse.ArgumentTypeError(
                f"{', '.join(sorted(unknown))}: no such case; there are {', '.join(CASES)}"
            )
        return asked

    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cases", type=cases, default=CASES, help=f"any of {','.join(CASES)} (default: all)")
    parser.add_argument("--rounds", type=int, help="samples of each contestant (default: 40)")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, on the CPU where there is no GPU; no record")
    parser.add_argument("--dry", action="store_true", help="print, but record nothing")
    parser.add_argument("--results", type=Path, default=results.RESULTS, help="the CSV that rows are appended to")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
