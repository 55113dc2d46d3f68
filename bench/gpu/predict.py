"""What the masking kernels need of a GPU, found without one: registers, occupancy, instructions, predicted times.

    python bench/gpu/predict.py                  what each masking kernel needs on sm_90; then CorrMask's instructions
                                                 and bytes a row, and predicted times
    python bench/gpu/predict.py --arch 80        what each needs on another architecture
    python bench/gpu/predict.py --rows 8 --attention     more rows, and an int64 attention mask

The first table is NVRTC's (pip install nvidia-cuda-nvrtc). The others execute the machine code on the CPU
(tests/cuda_host/sass.py) on the cells of workloads.py; the masks must be the oracle's. They need nvdisasm (pip install
nvidia-cuda-nvdisasm, or NVDISASM=path). Times are predictions: see MODEL.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
if __name__ == "__main__":
    sys.path[0] = str(ROOT / "bench")
sys.path += [str(ROOT / "tests"), str(ROOT / "tests" / "cuda_host")]

# ruff: noqa: E402
import argparse
import re
import tempfile
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from cuda_host import masking, nvrtc, sass

from corrmask_fast import cuda
from corrmask_fast.kernels.layout import CORRMASK, KERNELS
from corrmask_fast.masking.engine.device import Arena, kernel_of
from corrmask_fast.testing import Case, assert_same, draw_ids

if TYPE_CHECKING:
    from collections.abc import Sequence

    from corrmask_fast.kernels.layout import Kernels

MODEL = """\
A row needs T cycles of a multiprocessor: the most of instructions / 4 schedulers; instructions of the ALU, or of the
integer multiplier, / 2; those of the slow units · 2; cycles of shared memory and shuffles. Alone it takes L cycles
(latencies of sass.py): it uses u = T / L of what it needs most, and k blocks together 1 − (1 − u)^k. A batch takes the
longest row at least. Its bytes pass at 4.3 TB/s; the longer of the two counts, and 3 µs for a launch."""
SMS, HERTZ, BYTES_PER_S, LAUNCH_S = 132, 1.98e9, 4.3e12, 3e-6  # an H200
BATCHES = (12, 256, 4_096, 16_384)
COLUMNS, VOCABULARY = 2048, 25_426


class Sm(NamedTuple):
    """What a multiprocessor has."""

    warps: int
    blocks: int
    carveouts: tuple[int, ...]  # KiB of shared memory that it can be divided into


SM = {
    75: Sm(32, 16, (32, 64)),
    80: Sm(64, 32, (0, 8, 16, 32, 64, 100, 132, 164)),
    86: Sm(48, 16, (0, 8, 16, 32, 64, 100)),
    89: Sm(48, 24, (0, 8, 16, 32, 64, 100)),
    90: Sm(64, 32, (0, 8, 16, 32, 64, 100, 132, 164, 196, 228)),
    100: Sm(64, 32, (0, 8, 16, 32, 64, 100, 132, 164, 196, 228)),
    120: Sm(48, 24, (0, 8, 16, 32, 64, 100)),
}


def blocks_of(arch: int, registers: int, shared: int, threads: int = cuda.THREADS, carveout: int = -1) -> int:
    """Blocks that live on a multiprocessor: a warp takes registers by 256, a block 1 KiB beyond its shared memory."""
    sm, warps = SM[arch], threads // 32
    by_registers = 65_536 // (-(-32 * registers // 256) * 256) // 4 * 4 // warps
    reserved = 1024 if arch >= 80 else 0
    by_shared = 1024 * sm.carveouts[carveout] // (-(-(shared + reserved) // 128) * 128)
    return min(sm.blocks, sm.warps // warps, by_registers, by_shared)


def smallest_carveout(arch: int, shared: int) -> int:
    """The first carve-out that holds one block: what a driver may choose where nothing is asked for."""
    return next(i for i, size in enumerate(SM[arch].carveouts) if 1024 * size >= shared + 1024)


def needs(arch: int, strategies: Sequence[Kernels] = KERNELS) -> list[tuple]:
    """(kernel, registers, spilled bytes, static and dynamic shared bytes, blocks, occupancy, blocks by default)."""
    rows = []
    for kernels in dict.fromkeys(strategies):
        arena = Arena.make(COLUMNS, VOCABULARY, 5, kernels)
        found = nvrtc.properties(nvrtc.compiled(f"{kernels.stem}.cu", arch)[1])
        for token_bytes in (4, 8):
            name = kernel_of(kernels, token_bytes)[1]
            registers, spills, static = found[name]
            blocks = blocks_of(arch, registers, arena.bytes)
            least = blocks_of(arch, registers, arena.bytes, carveout=smallest_carveout(arch, arena.bytes))
            share = blocks * cuda.THREADS / 32 / SM[arch].warps
            row = (name, registers, spills, static, arena.bytes, blocks, f"{share:.0%}", least)
            if row not in rows:
                rows.append(row)
    return rows


# ---------------------------------------------------------------------------------------------------- counted on a CPU


class Row(NamedTuple):
    """What a row takes, of the mean row."""

    parts: dict[str, float]  # instructions by part
    phases: dict[str, float]  # cycles of a block alone, by the part that has the barrier they end with
    issued: float
    pipes: dict[str, float]
    shared_cycles: float  # of loads, stores, atomics
    conflicts: float  # of these, beyond one an instruction of 32 words
    requested: float  # bytes, of global requests
    moved: float  # bytes, each sector once: what comes from device memory, or from the graph's L2
    barriers: float
    cycles: float  # of a block that is alone
    longest: float  # of these


# Functions that only call the others.
CALLERS = re.compile(r"mask_row|finish_row|expand_seeds|take_groups|corrmask_i\d+")


def functions() -> dict[str, list[tuple[int, str]]]:
    """File → (first line, name) of its functions."""
    found = {}
    for path in (ROOT / "kernels").glob("*.cu*"):
        starts = []
        for number, line in enumerate(path.read_text().splitlines(), 1):
            if match := re.match(r'(?:extern "C" )?__(?:device|global)__ .*?(\w+)\(', line):
                starts.append((number, match[1]))
        found[path.name] = starts
    return found


def part_of(chain: tuple[tuple[str, int], ...], known: dict[str, list[tuple[int, str]]]) -> str:
    """The outermost function of an instruction's place that is not only a caller."""
    name = "?"
    for file, line in reversed(chain):
        starts = [one for one in known.get(file, ()) if one[0] <= line]
        name = starts[-1][1] if starts else name
        if starts and not CALLERS.fullmatch(name):
            return name
    return name


def count(nvdisasm: str, case: Case, **emulated) -> Row:
    """Execute CorrMask's kernel on a case; the masks must be the oracle's."""
    kernels = KERNELS[CORRMASK]
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(nvrtc.compiled(f"{kernels.stem}.cu", 90)[0])
        file.flush()
        module = sass.SassModule(sass.disassemble(nvdisasm, file.name))
    draws = {"draw_ids": draw_ids(case.rows, seed=7)}
    got = masking.emulate(module, case, **draws, **emulated)
    assert_same(case.expected(**draws), got, "machine code")
    n, counts = case.rows, module.counts
    code = module.kernels[kernel_of(kernels, case.input_ids.itemsize)[1]]
    known, parts, pipes, ideal = functions(), Counter(), Counter(), 0
    phases = Counter()
    for at, cycles in counts.phases.items():
        phases[part_of(code[at].chain, known) if at >= 0 else "end"] += cycles / n
    for one, issued in zip(code, counts.issued, strict=True):
        if issued:
            parts[part_of(one.chain, known)] += issued / n
            pipes[one.pipe] += issued / n
            ideal += issued if one.pipe == "shared" else 0
    return Row(
        parts=dict(parts.most_common()),
        phases=dict(phases),
        issued=counts.issued.sum() / n,
        pipes=dict(pipes),
        shared_cycles=counts.waves.sum() / n,
        conflicts=(counts.waves.sum() - ideal) / n,
        requested=32 * counts.sectors.total() / n,
        moved=32 * counts.distinct.total() / n,
        barriers=counts.barriers / n,
        cycles=float(np.mean(counts.cycles)),
        longest=float(max(counts.cycles)),
    )


def predicted_s(row: Row, rows: int, blocks: int, streamed_bytes: float) -> float:
    """Seconds for a batch: see MODEL."""
    pipes = row.pipes
    need = max(
        row.issued / 4, pipes["alu"] / 2, pipes["fma"] / 2, 2 * pipes["slow"], row.shared_cycles + pipes["shuffle"]
    )
    each = -(-rows // SMS)  # rows that a multiprocessor takes
    share = 1 - (1 - need / row.cycles) ** min(blocks, each)
    busy = max(row.longest, each * need / share) / HERTZ
    return LAUNCH_S + max(busy, rows * streamed_bytes / BYTES_PER_S)


def table(head: tuple, rows: list[tuple]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(
        "| " + " | ".join(f"{c:,.0f}" if isinstance(c, float) else str(c) for c in line) + " |" for line in lines
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--arch", type=int, default=90, choices=sorted(SM))
    parser.add_argument("--rows", type=int, default=4, help="rows that are executed")
    parser.add_argument("--attention", action="store_true", help="with an int64 attention mask")
    parser.add_argument("--smoke", action="store_true", help="tiny cells")
    parser.add_argument("--nvdisasm", default=sass.find_nvdisasm())
    args = parser.parse_args()
    if nvrtc.library() is None:
        print("no NVRTC here: pip install nvidia-cuda-nvrtc", file=sys.stderr)
        return 2
    print(f"{nvrtc.version()}, sm_{args.arch}, {cuda.THREADS} threads, rows of {COLUMNS:,} of {VOCABULARY:,} tokens\n")
    head = (
        "kernel",
        "registers",
        "spilled",
        "static",
        "shared",
        "blocks",
        "occupancy",
        "blocks in the least carve-out",
    )
    print(table(head, needs(args.arch, KERNELS[CORRMASK : CORRMASK + 1] if args.smoke else KERNELS)))
    if args.nvdisasm is None:
        print("\nno nvdisasm here, so nothing is executed: pip install nvidia-cuda-nvdisasm", file=sys.stderr)
        return 0
    from gpu.workloads import SMOKE, Sizes, masking_workload

    workload = masking_workload(SMOKE if args.smoke else Sizes())
    ids = workload.rows(args.rows)
    attention = np.ones(ids.shape, np.uint8) if args.attention else None
    row = count(args.nvdisasm, Case("bench", workload.graph, ids, attention), mask_dtype=np.int64)
    print(f"\nCorrMask, int64, {args.rows} rows executed; the masks are the oracle's. Warp instructions a row:\n")
    parts = [(name, n, row.phases.get(name, 0.0)) for name, n in row.parts.items() if n >= 50 or name in row.phases]
    parts += [("end", 0.0, row.phases["end"]), ("together", row.issued, row.cycles)]
    print(table(("part", "instructions", "cycles up to its barriers, alone"), parts))
    counted = [(f"instructions: {name}", n) for name, n in sorted(row.pipes.items(), key=lambda one: -one[1])]
    counted += [
        ("cycles of shared memory", row.shared_cycles),
        ("of these by bank conflicts and wide words", row.conflicts),
        ("barriers", row.barriers),
        ("bytes requested of caches", row.requested),
        ("bytes, each sector once", row.moved),
        ("cycles, alone", row.cycles),
        ("cycles, the longest row", row.longest),
    ]
    print("\n" + table(("of a row", "count"), counted))
    copied, masks = 3 * 8 * COLUMNS, 8 * COLUMNS if args.attention else 0
    streamed = copied + masks + 8 * int(0.15 * COLUMNS)
    registers = nvrtc.properties(nvrtc.compiled("corrmask.cu", 90)[1])["corrmask_i64"][0]
    shared = Arena.make(COLUMNS, VOCABULARY, 5, KERNELS[CORRMASK]).bytes
    blocks = blocks_of(90, registers, shared)
    least = blocks_of(90, registers, shared, carveout=smallest_carveout(90, shared))
    print(f"\nPredicted for an H200, µs ({blocks} blocks a multiprocessor). {MODEL}\n")
    times = []
    for n in BATCHES:
        ours, worst = (predicted_s(row, n, live, streamed) for live in (blocks, least))
        copy = LAUNCH_S + n * copied / BYTES_PER_S
        times.append((f"{n:,}", *(f"{1e6 * s:.1f}" for s in (ours, worst, copy)), f"{ours / copy:.2f}"))
    print(table(("rows", "CorrMask", "in the least carve-out", "copy of the same bytes", "ratio"), times))
    return 0


if __name__ == "__main__":
    sys.exit(main())
