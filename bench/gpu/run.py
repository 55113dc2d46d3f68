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
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from harness.bench import Bench, parser_of
from harness.goals import Goal
from harness.parity import check_emulated, check_graph, check_masker
from harness.timing import Timing

from corrmask_fast import CorrMasker, get_num_threads
from gpu import counts, devices, exercise, graphs, masking, predict_step, profiling, strategies, training
from gpu.workloads import COMPARED, SMOKE, Sizes, atlas, masking_workload

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Sequence

    from harness.records import Row
    from harness.timing import Contestant
    from harness.workload import Workload

CELLS = (100_000, 100_000)
GOALS = (
    *masking.GOALS,
    *strategies.GOALS,
    *counts.GOALS,
    *training.GOALS,
    Goal("graph of 25 000 genes", "graph: 25000 genes", f"graph, {graphs.TOTAL}", at_most=5, unit="s", batches=CELLS),
    Goal("graph of 2 000 genes", "graph: 2000 genes", f"graph, {graphs.TOTAL}", at_most=1, unit="s", batches=CELLS),
)
HOW = "Medians of {rounds} rounds in turns"
ENOUGH_S = 40.0  # no further round of a graph after so long


class GpuBench(Bench):
    """What the cases share: device, sizes, workload; rows are recorded at once, so that a run cut short keeps them."""

    def __init__(self, arguments: argparse.Namespace, device: torch.device) -> None:
        self.device, self.sizes = device, SMOKE if arguments.smoke else Sizes()
        super().__init__(arguments, GOALS, {}, packages=devices.PACKAGES, how=HOW)
        self.shared = devices.described(device, self.shared)

    @cached_property
    def workload(self) -> Workload:
        """Cells and their graph, made when the first case asks for them; from then on rows describe them."""
        began = time.perf_counter()
        workload = masking_workload(self.sizes)
        described = workload.describe()
        print(f"workload made in {time.perf_counter() - began:.1f} s: {described}", flush=True)
        self.shared |= described
        return workload

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
    if bench.device.type != "cuda":
        print(f"parity: {check_emulated(bench.workload)}", flush=True)
    for batch in bench.sizes.batches:
        check_masker(bench.workload, batch, device=bench.device)
        contestants = masking.masking_race(bench.workload, batch, bench.device)
        bench.time("masking", batch, contestants, masking.bytes_moved(bench.workload.rows(batch)))
        del contestants
        devices.free_memory()


def run_strategies(bench: GpuBench) -> None:
    """Every strategy and every option: those whose masks are the CPU's are timed."""
    tally = exercise.Tally()
    for batch in bench.sizes.strategy_batches:
        contestants = strategies.strategies_race(bench.workload, batch, bench.device, tally)
        bench.time("strategies", batch, contestants, masking.bytes_moved(bench.workload.rows(batch)))
        del contestants
        devices.free_memory()
    assert not tally.wrong, f"not the CPU's masks: {', '.join(tally.wrong)}"


def run_counts(bench: GpuBench) -> None:
    """Counts to tokens to masks on the device, then hidden values; both are the CPU's."""
    for batch in bench.sizes.count_batches:
        n = bench.sizes.length * batch
        for case, race, moved in (
            (counts.COUNTS, counts.counts_race, n * counts.BYTES_OF_COUNT),
            (counts.VALUES, counts.values_race, n * counts.BYTES_OF_VALUE),
        ):
            contestants = race(bench.workload, batch, bench.device)
            bench.time(case, batch, contestants, moved)
            del contestants
            devices.free_memory()


def run_graph(bench: GpuBench) -> None:
    """A small graph is the CPU's; then one of a panel of genes, stage by stage."""
    small = {"n_cells": 600, "min_presence": 10, "min_cooccurrence": 20}
    corpus = atlas(COMPARED, 1_500 if bench.device.type == "cuda" else 200)
    print(f"parity: {check_graph(corpus, bench.device, **small)}", flush=True)
    build_graph(bench, bench.sizes.atlas_genes[0])


def run_atlas(bench: GpuBench) -> None:
    """A graph of all genes, stage by stage."""
    build_graph(bench, bench.sizes.atlas_genes[1])


def build_graph(bench: GpuBench, n_genes: int) -> None:
    """Time the stages on the device, then on the CPU; both graphs must be the same.

    What the device took is recorded before the CPU begins, with the graph's fingerprint.
    """
    sizes, device = bench.sizes, bench.device
    least = {"min_presence": min(50, sizes.atlas_cells // 10), "min_cooccurrence": min(200, sizes.atlas_cells // 10)}
    began = time.perf_counter()
    corpus = atlas(sizes, n_genes)
    print(f"\n{corpus}: made in {time.perf_counter() - began:.1f} s", flush=True)
    fingerprints = []
    for where, place, most in (("", device, bench.rounds), (" on the CPU", torch.device("cpu"), 1)):
        rounds: list[dict[str, float]] = []
        began = time.perf_counter()
        while not rounds or (len(rounds) < min(3, most) and time.perf_counter() - began < ENOUGH_S):
            graph, seconds = graphs.build_timed(corpus, place, **least)
            rounds.append(seconds)
            print(f"a graph{where}: {seconds[graphs.TOTAL]:.2f} s", flush=True)
        linked = graph.degrees > 0
        described = {
            "columns": sizes.length,
            "vocabulary": corpus.vocabulary.size,
            "graph_edges": graph.indices.size // 2,
            "with_neighbors": round(float(linked.mean()), 3),
            "mean_degree": round(float(graph.degrees[linked].mean()) if linked.any() else 0.0, 1),
            "present_share": "",
        }
        fingerprints.append(graph.fingerprint)
        detail = f"graph {graph.fingerprint[:12]}"
        more = {"bytes": corpus.tokens.nbytes, "detail": detail, **bench.shared, "rounds": len(rounds), **described}
        timed = {f"graph{where}, {name}": Timing(*values) for name, values in graphs.percentiles(rounds).items()}
        if not where:
            floor = np.percentile(graphs.product_seconds(n_genes, corpus.n_cells, device), [20, 50, 80])
            timed[f"graph, {graphs.PRODUCT}"] = Timing(*floor * 1e6)
        threads = dict.fromkeys(timed, get_num_threads())
        bench.keep(f"graph: {n_genes} genes", corpus.n_cells, timed, threads, more)
    assert len(set(fingerprints)) == 1, f"{n_genes} genes: the device's graph is not the CPU's"


def run_training(bench: GpuBench) -> None:
    """A step of pretraining, by where its masks come from."""
    for wanted in bench.sizes.training_batches:
        batch = training.fitting_batch(bench.workload, wanted, bench.sizes, bench.device)
        if batch < wanted:
            print(f"a step of {wanted} does not fit this device: {batch} in its place", flush=True)
        check_masker(bench.workload, batch, device=bench.device)
        contestants = training.training_race(bench.workload, batch, bench.sizes, bench.device)
        model = replace(bench.sizes.model, max_length=bench.sizes.length)
        table = predict_step.table_of((batch,), model, bench.workload.graph.vocabulary.size)
        print(f"predicted for an H200, before any measurement:\n\n{table}\n", flush=True)
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


def run_launch(bench: GpuBench) -> None:
    """Mask the largest batch twice: for Nsight Compute, which replays each launch many times."""
    ids = torch.from_numpy(bench.workload.rows(bench.sizes.batches[-1])).to(bench.device)
    masker = CorrMasker(bench.workload.graph).to(bench.device)
    for _ in range(2):
        masker(ids)


RUN: dict[str, Callable[[GpuBench], None]] = {
    "masking": run_masking,
    "strategies": run_strategies,
    "counts": run_counts,
    "graph": run_graph,
    "atlas": run_atlas,
    "training": run_training,
    "profile": run_profile,
    "launch": run_launch,
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
