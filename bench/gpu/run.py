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
import json
import time
import traceback
from typing import TYPE_CHECKING, Any

import torch
from harness.bench import Bench, parser_of
from harness.goals import Goal
from harness.parity import check_cases, check_emulated, check_graph, check_masker
from harness.timing import Timing

from corrmask_fast import CorrMasker, get_num_threads
from gpu import devices, graphs, masking, profiling, training
from gpu.workloads import COMPARED, SMOKE, Sizes, atlas, masking_workload

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Sequence

    from harness.records import Row
    from harness.timing import Contestant

CELLS = (100_000, 100_000)
GOALS = (
    *masking.GOALS,
    *training.GOALS,
    Goal("graph of 25 000 genes", "graph: 25000 genes", f"graph, {graphs.TOTAL}", at_most=5, unit="s", batches=CELLS),
    Goal("graph of 2 000 genes", "graph: 2000 genes", f"graph, {graphs.TOTAL}", at_most=1, unit="s", batches=CELLS),
)
HOW = "Medians of {rounds} rounds in turns"


class GpuBench(Bench):
    """What the cases share: device, sizes, workload; rows are recorded at once, so that a run cut short keeps them."""

    def __init__(self, arguments: argparse.Namespace, device: torch.device) -> None:
        self.device, self.sizes = device, SMOKE if arguments.smoke else Sizes()
        began = time.perf_counter()
        self.workload = masking_workload(self.sizes)
        described = self.workload.describe()
        print(f"workload made in {time.perf_counter() - began:.1f} s: {described}", flush=True)
        super().__init__(arguments, GOALS, described, packages=devices.PACKAGES, how=HOW)
        self.shared = devices.described(device, self.shared)

    def time(self, case: str, batch: int, contestants: Sequence[Contestant], moved: int = 0) -> dict[str, Timing]:
        """Time contestants in turns; ``moved``: the bytes that a call reads and writes."""
        how = {"sample_ms": self.sizes.sample_ms, "clock": devices.clock_of(self.device)}
        return self.race(case, batch, contestants, more={"bytes": moved, "detail": ""}, **how)

    def keep(self, case: str, batch: int, timings: dict[str, Timing], threads: dict[str, int], more: Row) -> None:
        """Keep rows, print them, and append them to the file."""
        before = len(self.rows)
        super().keep(case, batch, timings, threads, more)
        print(f"\n{rows_table(self.rows[before:])}\n", flush=True)
        self.record()


def rows_table(rows: Sequence[Row]) -> str:
    """Return rows as a Markdown table: microseconds a call, and where bytes are counted, the rate."""
    lines = ["| | p20, µs | median, µs | p80, µs | GB/s | |", "|---|---:|---:|---:|---:|---|"]
    for row in rows:
        times = " | ".join(f"{float(row[name]):,.1f}" for name in ("p20_us", "p50_us", "p80_us"))
        moved, median = int(row["bytes"] or 0), float(row["p50_us"])
        rate = f"{moved / median / 1e3:,.1f}" if moved and median else ""
        lines.append(f"| {row['contestant']} | {times} | {rate} | {row['detail']} |")
    return "\n".join(lines)


def run_masking(bench: GpuBench) -> None:
    """Check that masks are the CPU's and the oracle's; then time all contestants."""
    if bench.device.type == "cuda":
        print(f"parity: {check_cases(bench.device)} results of the tests' cases are the CPU's", flush=True)
    else:
        print(f"parity: {check_emulated(bench.workload)}", flush=True)
    for batch in bench.sizes.batches:
        check_masker(bench.workload, batch, device=bench.device)
        contestants = masking.masking_race(bench.workload, batch, bench.device)
        bench.time("masking", batch, contestants, masking.bytes_moved(bench.workload.rows(batch)))
        del contestants
        devices.free_memory()


def run_graph(bench: GpuBench) -> None:
    """A small graph is the CPU's; then atlases, stage by stage; the large graphs are compared with the CPU's too."""
    sizes, device = bench.sizes, bench.device
    small = {"n_cells": 600, "min_presence": 10, "min_cooccurrence": 20}
    corpus = atlas(COMPARED, 1_500 if device.type == "cuda" else 200)
    print(f"parity: {check_graph(corpus, device, **small)}", flush=True)
    least = {"min_presence": min(50, sizes.atlas_cells // 10), "min_cooccurrence": min(200, sizes.atlas_cells // 10)}
    for n_genes in sizes.atlas_genes:
        began = time.perf_counter()
        corpus = atlas(sizes, n_genes)
        print(f"\n{corpus}: made in {time.perf_counter() - began:.1f} s", flush=True)
        rounds = []
        for _ in range(min(3, bench.rounds)):
            graph, seconds = graphs.build_timed(corpus, device, **least)
            rounds.append(seconds)
        timed = {f"graph, {name}": Timing(*values) for name, values in graphs.percentiles(rounds).items()}
        host_graph, host = graphs.build_timed(corpus, torch.device("cpu"), **least)
        timed |= {f"graph on the CPU, {name}": Timing(*[s * 1e6] * 3) for name, s in host.items()}
        assert graph.fingerprint == host_graph.fingerprint, f"{n_genes} genes: the device's graph is not the CPU's"
        linked = graph.degrees > 0
        described = {
            "columns": sizes.length,
            "vocabulary": corpus.vocabulary.size,
            "graph_edges": graph.indices.size // 2,
            "with_neighbors": round(float(linked.mean()), 3),
            "mean_degree": round(float(graph.degrees[linked].mean()) if linked.any() else 0.0, 1),
            "present_share": "",
        }
        more = {"bytes": corpus.tokens.nbytes, "detail": "", **bench.shared, "rounds": len(rounds), **described}
        bench.keep(f"graph: {n_genes} genes", corpus.n_cells, timed, dict.fromkeys(timed, get_num_threads()), more)


def run_training(bench: GpuBench) -> None:
    """A step of pretraining, by where its masks come from."""
    for wanted in bench.sizes.training_batches:
        batch = training.fitting_batch(bench.workload, wanted, bench.sizes, bench.device)
        if batch < wanted:
            print(f"a step of {wanted} does not fit this device: {batch} in its place", flush=True)
        check_masker(bench.workload, batch, device=bench.device)
        contestants = training.training_race(bench.workload, batch, bench.sizes, bench.device)
        timings = bench.time("training", batch, contestants)
        off, ours = timings[training.OFF].p50, timings[training.OURS].p50
        print(f"masking on the device adds {100 * (ours - off) / ours:.2f} % to a step of {batch}", flush=True)
        del contestants
        devices.free_memory()


def run_profile(bench: GpuBench) -> None:
    """Kernels by name, what they take, parts of the work, blocks of other sizes, at the largest batch."""
    batch = bench.sizes.batches[-1]
    ids = torch.from_numpy(bench.workload.rows(batch)).to(bench.device)
    masker = CorrMasker(bench.workload.graph).to(bench.device)
    moved = masking.bytes_moved(ids)
    bench.time("profile: parts", batch, profiling.parts_race(bench.workload, ids), moved)
    if bench.device.type != "cuda":
        print("kernels, their resources and blocks of other sizes need a device: left out")
        return
    with profiling.watched_launches() as launches:
        masker(ids)
    details = {one.name: profiling.resources(bench.device, one) for one in launches}
    for key, _, us in profiling.kernel_times(lambda: masker(ids)):
        detail: Any = next((found for name, found in details.items() if key.startswith(name)), None)
        more = {"bytes": moved, "detail": json.dumps(detail) if detail else "", **bench.shared}
        bench.keep("profile: kernels", batch, {key: Timing(us, us, us)}, {}, more)
    # Few rows leave multiprocessors idle: larger blocks may win there.
    for some in (ids, ids[: bench.sizes.batches[0]]):
        contestants = profiling.blocks_race(bench.workload, some)
        bench.time("profile: blocks", len(some), contestants, masking.bytes_moved(some))


RUN: dict[str, Callable[[GpuBench], None]] = {
    "masking": run_masking,
    "graph": run_graph,
    "training": run_training,
    "profile": run_profile,
}


def main() -> int:
    """Run what the arguments ask for; return the exit code."""
    arguments = parser_of(__doc__, "gpu.csv", tuple(RUN), rounds=40).parse_args()
    reason = devices.why_not()
    if reason and not arguments.smoke:
        print(
            f"nothing can be measured here: {reason}; --smoke tries the bench itself on the CPU and records nothing",
            file=sys.stderr,
        )
        return 2
    if reason:
        print(f"on the CPU: {reason}")
    bench = GpuBench(arguments, torch.device("cpu") if reason else torch.device("cuda", torch.cuda.current_device()))
    failed = []
    for case in arguments.cases:
        try:
            RUN[case](bench)
        except Exception:  # noqa: BLE001 (whatever it was: the other cases may still be measured)
            traceback.print_exc()
            failed.append(case)
    bench.finish()
    if failed:
        print(f"FAILED: {', '.join(failed)} (see above)", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
