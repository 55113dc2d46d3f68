"""How masking's time grows with batch, length, neighbours and threads: ``python bench/growth.py``.

Rows go to results/growth.csv, and one picture to results/growth.png. Cells are made up of modules: a module's genes are
all neighbours of each other, and a cell holds some of the genes of some modules, beside genes without neighbours.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from contestants import COPY, FLOORS, MASKER, PHILOX, TORCH_MASK, floors_of_masking, torch_mask
from harness.bench import Bench, parser_of
from harness.timing import Contestant

from corrmask_fast import CorrMasker, DependencyGraph, RandomMasker, Vocabulary, set_num_threads
from corrmask_fast.plots import BLUE, GREY, ORANGE, PAGE, style_axis
from corrmask_fast.testing import Case, assert_same

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from harness.records import Row

    from corrmask_fast import Masker

RANDOM, FLOOR = "RandomMasker", "floor: copy and random words"
TOKENS = 131_072  # of a batch where its cells grow longer
BATCH, LENGTH, DEGREE = 64, 2_048, 53  # where they do not vary; the degree is that of bench/run.py's graph
LINKED, INSIDE = 0.37, 0.39  # of a cell's genes have neighbours; of a module's genes are in a cell, as there
CASES = {
    "batch": (1, 4, 12, 32, 64, 256, 1_024),
    "length": (256, 512, 1_024, 2_048, 4_096, 8_192, 16_384),
    "degree": (4, 8, 16, 32, 53, 128, 256, 512),
    "threads": (1, 2, 4, 8, 16),
}
SMOKE = {"batch": (1, 4), "length": (64, 128), "degree": (4, 8), "threads": (1, 2)}
LABELS = {
    "batch": f"cells of a batch, {LENGTH:,} genes each",
    "length": f"genes of a cell, {TOKENS:,} of a batch",
    "degree": "neighbours of a gene that has some (of a larger graph)",
    "threads": f"threads, 1,024 cells of {LENGTH:,} genes",
}
STYLES = {TORCH_MASK: (ORANGE, "v"), MASKER: (BLUE, "s"), RANDOM: (GREY, "o"), FLOOR: ("#000000", "")}


def made_up(rows: int, length: int, degree: int, longest: int) -> tuple[DependencyGraph, torch.Tensor]:
    """Return a graph of modules of ``degree`` + 1 genes, and cells, (rows, length) int64.

    The vocabulary has room for cells of ``longest`` genes.
    """
    rng, size = np.random.default_rng(length + degree), degree + 1
    of_modules = round(LINKED * length)
    inside = round(INSIDE * size + 0.5)
    active = -(-of_modules // inside)  # modules of a cell
    most = -(-round(LINKED * longest) // inside)
    modules = max(4 * most, 9_000 // size)  # of an atlas some 9 000 genes have neighbours
    linked, others = modules * size, 2 * longest + 16_000
    vocabulary = Vocabulary(("<pad>", "<mask>", *(f"G{i}" for i in range(linked + others))))
    members = 2 + np.arange(linked).reshape(modules, size)
    but_one = np.nonzero(~np.eye(size, dtype=np.bool_))[1]  # of each member the others
    indptr = np.concatenate([[0, 0], np.arange(linked + 1) * degree, np.full(others, linked * degree)])
    indices = members[:, but_one].reshape(-1).astype(np.int32)
    graph = DependencyGraph(indptr, indices, np.full(indices.size, 0.5, np.float32), vocabulary)
    cells = np.empty((rows, length), np.int64)
    for cell in cells:
        some = members[rng.choice(modules, active, replace=False)].reshape(-1)
        inside = rng.permutation(some)[:of_modules]
        cell[: inside.size] = inside
        cell[inside.size :] = 2 + linked + rng.permutation(others)[: length - inside.size]
        rng.shuffle(cell)
    return graph, torch.from_numpy(cells)


def contestants(graph: DependencyGraph, ids: torch.Tensor, threads: int = 1) -> list[Contestant]:
    """Return who masks these rows; the floors have one thread."""
    one = Case("growth", graph, ids[:1].numpy())
    ours: dict[str, Masker] = {MASKER: CorrMasker(graph), RANDOM: RandomMasker(graph.vocabulary)}
    for masker, strategy in zip(ours.values(), ("corrmask", "random"), strict=True):
        expected = one.expected(draw_ids=np.arange(1), strategy=strategy)
        assert_same(masker(ids[:1], draw_ids=torch.arange(1)), expected, f"{strategy}, {tuple(ids.shape)}")

    def ready() -> None:
        set_num_threads(threads)
        torch.set_num_threads(threads)

    masks = [torch_mask(ids, graph.vocabulary)]
    masks += [Contestant(name, partial(masker, ids), len(ids)) for name, masker in ours.items()]
    masks = [replace(each, threads=threads, prepare=ready) for each in masks]
    return masks if threads > 1 else [*floors_of_masking(ids), *masks]


def measure(bench: Bench, case: str, size: int) -> None:
    """Time one size of a case: the rest is as the constants say; cells of all lengths have one graph."""
    rows, length, degree = BATCH, LENGTH, DEGREE
    if bench.smoke:
        rows, length, degree = 2, 64, 4
    longest = length
    if case == "batch":
        rows = size
    elif case == "length":
        rows, length = max(1, TOKENS // size) if not bench.smoke else rows, size
        longest = max((SMOKE if bench.smoke else CASES)[case])
    elif case == "degree":
        degree = size
    graph, ids = made_up(1_024 if case == "threads" and not bench.smoke else rows, length, degree, longest)
    threads = size if case == "threads" else 1
    described = {"size": size, "columns": length, "degree": degree}
    bench.race(case, len(ids), contestants(graph, ids, threads), more=described)
    set_num_threads(1)
    torch.set_num_threads(1)


def nanoseconds(rows: Sequence[Row], case: str, name: str) -> tuple[list[int], list[float]]:
    """Return the sizes of a case, and a contestant's nanoseconds a gene at each."""
    found = {int(row["size"]): float(row["p50_us"]) * 1e3 / int(row["columns"])
             for row in rows if (row["case"], row["contestant"]) == (case, name)}  # fmt: skip
    return sorted(found), [found[size] for size in sorted(found)]


def draw(rows: Sequence[Row], path: Path) -> None:
    """Save nanoseconds a gene against batch, length, neighbours and threads, one panel each."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(PAGE, 5.2), layout="constrained")
    for axes, (case, label) in zip(figure.subplots(2, 2, sharey=True).flat, LABELS.items(), strict=True):
        for name, (color, marker) in STYLES.items():
            if name == FLOOR:
                sizes, copied = nanoseconds(rows, case, COPY)
                times = [a + b for a, b in zip(copied, nanoseconds(rows, case, PHILOX)[1], strict=True)]
            else:
                sizes, times = nanoseconds(rows, case, name)
            if sizes:
                axes.plot(
                    sizes, times, color=color, marker=marker, markersize=4, linestyle="-" if marker else ":", label=name
                )
        ticks = sorted({int(row["size"]) for row in rows if row["case"] == case})
        axes.set(xscale="log", yscale="log")
        style_axis(axes, title="", x=label)
        axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
        axes.minorticks_off()
        axes.set_yticks([1, 2, 5, 10, 20, 50, 100], ["1", "2", "5", "10", "20", "50", "100"])
        axes.grid(alpha=0.25)
    figure.supylabel("nanoseconds a gene", fontsize=9)
    figure.legend(
        *figure.axes[0].get_legend_handles_labels(), loc="outside upper left", ncols=4, fontsize=7, frameon=False
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def print_table(rows: Sequence[Row]) -> None:
    """Print nanoseconds a gene."""
    for case in dict.fromkeys(row["case"] for row in rows):
        sizes = nanoseconds(rows, case, MASKER)[0]
        print(f"\n{case:<34}" + "".join(f"{size:>9,}" for size in sizes))
        for name in (TORCH_MASK, MASKER, RANDOM, COPY, PHILOX):
            if times := nanoseconds(rows, case, name)[1]:
                print(f"{name:<34}" + "".join(f"{time:>9.2f}" for time in times))


def main() -> None:
    """Check, time, print, record, draw."""
    arguments = parser_of(__doc__, "growth.csv", tuple(CASES), rounds=15).parse_args()
    torch.set_num_threads(1)
    set_num_threads(1)
    bench = Bench(arguments, (), {"linked": LINKED, "inside": INSIDE}, floors=FLOORS)
    for case in arguments.cases:
        for size in SMOKE[case] if arguments.smoke else CASES[case]:
            if case != "threads" or size <= bench.shared["cores"]:
                measure(bench, case, size)
    bench.finish()
    if not arguments.smoke:
        print_table(bench.rows)
    draw(
        bench.rows,
        arguments.keep / "growth.png" if arguments.smoke or arguments.dry else arguments.results.with_suffix(".png"),
    )


if __name__ == "__main__":
    main()
