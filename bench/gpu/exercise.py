"""Every CUDA kernel, on small inputs, checked against the CPU: what compute-sanitizer and a profiler are run on.

compute-sanitizer --tool racecheck python bench/gpu/exercise.py --small --kernels corrmask
"""

from __future__ import annotations

import sys
from pathlib import Path

BENCH = Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    sys.path[0] = str(BENCH)

# ruff: noqa: E402
import argparse
import copy
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple
from unittest.mock import patch

import numpy as np
import torch
from harness.parity import check_graph, first_rows, tensors_of

from corrmask_fast import DependencyGraph, RankEncoder, cuda, make_masker
from corrmask_fast.cells import encode_device
from corrmask_fast.graph.build import stages_cuda
from corrmask_fast.kernels.layout import FUNCTION, KERNELS, SAMPLED
from corrmask_fast.masking.base import Masker
from corrmask_fast.masking.engine.tables import no_table
from corrmask_fast.masking.strategies import STRATEGIES
from corrmask_fast.testing import (
    PARAMETERS,
    STRATEGY_PARAMETERS,
    WEIGHTED_PARAMETERS,
    Case,
    assert_same,
    cases,
    draw_ids,
    make_graph,
    make_vocabulary,
)
from gpu import devices, profiling
from gpu.workloads import COMPARED, atlas

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

FOLDER = Path(cuda.__file__).parent / "kernels"
FILES = tuple(path.stem for path in sorted(FOLDER.glob("*.cu")))
MASKING = tuple(dict.fromkeys(kernels.stem for kernels in KERNELS))
GRAPH, ENCODE = ("correlation", "overlap", "ranks"), "encode"
ROWS = 24  # a few blocks on each of some multiprocessors
MASKS = (np.uint8, np.bool_, np.int64, np.float32)  # the last one is converted first


class Given(NamedTuple):
    """A masker, and what its batches are given beside the tokens."""

    what: str
    masker: Masker
    graphs: int = 0  # rows name one of so many graphs, or none
    priorities: bool = False

    @property
    def stem(self) -> str:
        """The file of its kernels, without the ending."""
        return KERNELS[self.masker._settings.strategy].stem


def batches(*, small: bool = False) -> list[Case]:
    """Rows as long as real ones, odd ones, and the tests' cases: padding on any side, masks, stray tokens.

    ``small``: two batches that have some of each, for tools that slow a kernel down a hundred times. Only rows of an
    even length are read and written by pairs of columns.
    """
    graph = make_graph(make_vocabulary(3_000), degree=30, seed=1)
    rng = np.random.default_rng(0)
    ids = np.stack([rng.permutation(3_000)[:2_048] + 2 for _ in range(ROWS)])
    ids[1, 900:] = 0
    odd = np.ascontiguousarray(ids[:, :397])
    protected = (rng.random(odd.shape) < 0.1).astype(np.uint8)
    attention = (rng.random(odd.shape) < 0.9).astype(np.uint8)
    if small:
        tables = odd[:3], attention[:3], protected[:3]
        even = [np.ascontiguousarray(table[:, :396]) for table in tables]
        return [Case("small, odd", graph, *tables), Case("small, even", graph, *even)]
    return [
        Case("long", graph, ids),
        Case("long, attention", graph, ids[:4], (ids[:4] != 0).astype(np.uint8)),
        Case("odd", graph, odd, attention, protected),
        *[case for case in cases() if case.columns < 200],
    ]


def by_priorities(case: Case, strategy: int) -> Masker:
    """Return a masker whose kernel goes by given priorities alone, as FunctionMasker's does and MAM's."""
    vocabulary = case.graph.vocabulary
    return Masker(
        vocabulary, strategy, no_table(vocabulary), mlm_probability=0.3, structural_ratio=0.7, seed=0,
        mask_replace_prob=0.8, random_replace_prob=0.1, validate=False,
    )  # fmt: skip


def maskers_of(case: Case, *, small: bool = False) -> list[Given]:
    """Every strategy at its defaults; CorrMask by each of its options; kernels that go by given priorities.

    Not ``small``: all parameters of the tests too.
    """
    many = {"structural_ratio": 1.0, "max_partners": 40, "mlm_probability": 0.4}
    weighted = {"partners": "weighted", "weights": True}
    others = () if small else (*PARAMETERS[1:], *STRATEGY_PARAMETERS, *WEIGHTED_PARAMETERS)
    several = [case.graph, make_graph(case.graph.vocabulary, degree=5, seed=2)]
    several.append(DependencyGraph.from_edges([], case.graph.vocabulary))
    ranges = {"mlm_probability": (0.1, 0.6), "structural_ratio": (0.2, 0.9)}
    strategies = [name for name, each in STRATEGIES.items() if not each.control]
    return [
        *(Given(name, case.masker(name)) for name in strategies),
        *(Given(f"{name}, groups replaced whole", case.masker(name, replace="group")) for name in strategies),
        Given("many partners", case.masker("corrmask", **many)),
        Given("many partners, by weight", case.masker("corrmask", **many, **weighted)),
        Given("rates of ranges", case.masker("corrmask", **ranges)),
        Given("several graphs", make_masker("corrmask", graph=several, validate=False), graphs=len(several)),
        Given(
            "several graphs, balanced", make_masker("corrmask-balanced", graph=several, validate=False), len(several)
        ),
        Given("given priorities", case.masker("corrmask"), priorities=True),
        Given("columns by priority", by_priorities(case, FUNCTION), priorities=True),
        Given("top-up by priority", by_priorities(case, SAMPLED), priorities=True),
        *(Given(str(each), case.masker(**each)) for each in others if len(each) > 1 or "strategy" not in each),
    ]


@contextmanager
def small_shared_memory(device: torch.device) -> Iterator[None]:
    """Let every row seem too long for shared memory: the kernels that work in device memory take it."""
    ours = cuda.open_device(device)
    given, ours.shared_limit = ours.shared_limit, 0
    try:
        yield
    finally:
        ours.shared_limit = given


def written(*size: Any, **how: Any) -> torch.Tensor:
    """Return what ``torch.empty`` does, but written, so that initcheck is quiet about working memory.

    Kernels load words of it beside those that they use. That these change nothing is tested with the kernels emulated.
    """
    return torch.full(size[0] if isinstance(size[0], tuple) else size, 0xCD, **how)


class LostDeviceError(RuntimeError):
    """A kernel ended the process' use of the device; the message is its file, without the ending."""


class Tally:
    """What was compared, and what was wrong: one fault does not hide the others, for a GPU is lent for minutes."""

    def __init__(self) -> None:
        self.compared = 0
        self.wrong: list[str] = []

    @contextmanager
    def comparing(self, what: str, stem: str) -> Iterator[None]:
        """Count a result of a file's kernels, or keep what went wrong."""
        try:
            yield
            self.compared += 1
        except Exception as error:
            self.wrong.append(what)
            print(f"WRONG: {what}: {type(error).__name__}: {error}", flush=True)
            if not devices.works():
                raise LostDeviceError(stem) from error


def mask_everything(device: torch.device, tally: Tally, files: Sequence[str] = FILES, *, small: bool = False) -> None:
    """Mask the batches by both dtypes, in shared and in device memory."""
    for case in batches(small=small):
        rng = np.random.default_rng(case.columns)
        priorities = torch.from_numpy(rng.integers(0, 2**32, case.input_ids.shape))
        for number, given in enumerate(maskers_of(case, small=small)):
            if given.stem not in files:
                continue
            began = time.perf_counter()
            for dtype in (np.int64, np.int32):
                compare(device, tally, case, given, number, dtype, priorities)
            if small:
                print(f"{given.what}: {time.perf_counter() - began:.1f} s", flush=True)


def compare(
    device: torch.device, tally: Tally, case: Case, given: Given, number: int, dtype: type, priorities: torch.Tensor
) -> None:
    """Mask a case on the CPU and on the device, each twice; draws and masks take turns in their kinds."""
    ids, *masks = tensors_of(case, dtype)
    kind = torch.from_numpy(np.zeros(1, MASKS[number % len(MASKS)])).dtype
    tensors = ids, *(None if mask is None else mask.to(kind) for mask in masks)
    more: dict[str, Any] = {"priorities": priorities} if given.priorities else {}
    if given.graphs:
        more["graph_ids"] = torch.arange(case.rows) % given.graphs
    more |= ({"epoch": 3}, {"draw_ids": torch.from_numpy(draw_ids(case.rows, seed=7))}, {})[number % 3]
    there = [to(device, tensor) for tensor in tensors], {name: to(device, value) for name, value in more.items()}
    vocabulary = given.masker.vocabulary
    on_device = copy.deepcopy(given.masker, {id(vocabulary): vocabulary}).to(device)
    for memory in (nullcontext, partial(small_shared_memory, device)):
        where = "shared" if memory is nullcontext else "device"
        what = f"{case.name}, {given.what}, {np.dtype(dtype)}, in {where} memory"
        for masker in (given.masker, on_device):
            masker.draw_counter.zero_()  # whatever went wrong before
        with tally.comparing(what, given.stem), memory(), patch.object(torch, "empty", written):
            assert_same(given.masker(*tensors, **more), first_rows(on_device(*there[0], **there[1]), case.rows), what)


def to(device: torch.device, value: Any) -> Any:
    """Return a tensor on the device; anything else as it is."""
    return value.to(device) if isinstance(value, torch.Tensor) else value


def build_graphs(device: torch.device, tally: Tally, *, small: bool = False) -> None:
    """Build a small graph: in shared and in device memory, with sums of integers, of tokens of 16 and 32 bits."""
    corpus = atlas(COMPARED, 120 if small else 400)
    settings = {"n_cells": 150 if small else 600, "min_presence": 10, "min_cooccurrence": 5 if small else 20}
    for what, cells, changed in (
        ("a graph", corpus, nullcontext()),
        ("a graph, bins in device memory", corpus, small_shared_memory(device)),
        ("a graph, sums of integers", corpus, patch.object(stages_cuda, "EXACT", 2.0**26)),
        ("a graph, tokens of 32 bits", wide_tokens(corpus), nullcontext()),
    ):
        with tally.comparing(what, GRAPH[0]), changed:
            print(f"{what}: {check_graph(cells, device, **settings)}", flush=True)


def wide_tokens(corpus: Any) -> Any:
    """Return the same cells by a vocabulary so large that tokens take 32 bits."""
    shift = 2**16
    vocabulary = make_vocabulary(corpus.vocabulary.size - 2 + shift)
    return type(corpus)(corpus.indptr, corpus.tokens.astype(np.int64) + shift, vocabulary)


def encode_counts(device: torch.device, tally: Tally, *, small: bool = False) -> None:
    """Encode cells with sums of columns and without, in shared and in device memory."""
    rng, n_genes = np.random.default_rng(0), 300 if small else 3_000
    vocabulary = make_vocabulary(n_genes)
    names = list(vocabulary.names[slice(*vocabulary.gene_range)])
    medians = dict(zip(names, rng.gamma(2, 1, n_genes) + 0.1, strict=True))
    counts = torch.from_numpy(rng.poisson(0.8, (4 if small else ROWS, n_genes)).astype(np.float64))
    for columns in (names, names[:-1] + names[:1]):
        encoder = RankEncoder(vocabulary, medians, columns)
        want = encoder.padded(counts)
        for capacity in (encode_device.IN_SHARED, 16):
            what = f"cells of {len(set(columns))} genes, {capacity} entries in shared memory"
            with tally.comparing(what, ENCODE), patch.object(encode_device, "IN_SHARED", capacity):
                got = encoder.padded(counts.to(device))
                for name, tensor in want.items():
                    assert torch.equal(tensor, got[name].cpu()), name


def exercise(device: torch.device, files: Sequence[str] = FILES, *, small: bool = False) -> Tally:
    """Launch every kernel of the files and compare what it gives with the CPU."""
    tally = Tally()
    if ENCODE in files:
        encode_counts(device, tally, small=small)
    if set(MASKING) & set(files):
        mask_everything(device, tally, files, small=small)
    if set(GRAPH) & set(files):
        build_graphs(device, tally, small=small)
    print(f"{tally.compared} results are the CPU's, {len(tally.wrong)} are not", flush=True)
    return tally


def unlaunched(launches: list[profiling.Launch], files: Sequence[str] = FILES) -> list[str]:
    """Kernels of the files that were not launched."""
    launched = {(one.file, one.name) for one in launches}
    return [
        f"{stem}.cu: {name}"
        for stem in files
        for name in cuda.kernel_names(cuda.kernel_source(f"{stem}.cu"))
        if (f"{stem}.cu", name) not in launched
    ]


def compile_kernels(device: torch.device, files: Sequence[str] = FILES) -> list[str]:
    """Compile the files beside each other, and say what each kernel takes of the device; return those that fail."""
    ours, failed = cuda.open_device(device), []

    def compiled(stem: str) -> list[str]:
        began, file = time.perf_counter(), f"{stem}.cu"
        with torch.cuda.device(device):
            found = profiling.taken_by(ours, file)
        return [f"{file}: {time.perf_counter() - began:.1f} s", *found]

    began = time.perf_counter()
    with ThreadPoolExecutor() as pool:
        for stem, future in [(stem, pool.submit(compiled, stem)) for stem in files]:
            try:
                print("\n  ".join(future.result()), flush=True)
            except Exception as error:  # noqa: BLE001 (the others may be right)
                failed.append(stem)
                print(f"WRONG: {stem}.cu does not compile: {error}", flush=True)
    print(f"{len(files)} files compiled in {time.perf_counter() - began:.1f} s", flush=True)
    return failed


def main() -> int:
    """Run the kernels; exit code 1 if one of them was wrong or not reached, 2 without a device."""
    arguments = _arguments()
    if reason := devices.why_not():
        print(f"no kernel can be launched here: {reason}", file=sys.stderr)
        return 2
    device = torch.device("cuda", torch.cuda.current_device())
    failed = compile_kernels(device, arguments.kernels)
    files = [stem for stem in arguments.kernels if stem not in failed]
    try:
        with profiling.watched_launches() as launches:
            tally = exercise(device, files, small=arguments.small)
    except LostDeviceError as lost:
        return run_others(str(lost), files, small=arguments.small)
    torch.cuda.synchronize()
    largest = {one.name: one for one in sorted(launches, key=lambda one: one.shared_bytes)}
    print(f"{len(launches)} launches of {len(largest)} kernels; what the largest launch of each takes:")
    for name in sorted(largest):
        try:
            taken: Any = profiling.resources(device, largest[name])
        except Exception as error:  # noqa: BLE001 (it decides nothing)
            taken = f"not known: {error}"
        print(f"  {name}: {taken}")
    missed = unlaunched(launches, arguments.kernels)
    for what, found in (("not launched", missed), ("WRONG", tally.wrong)):
        if found:
            print(f"{what}: {len(found)}\n  " + "\n  ".join(found[:20]), file=sys.stderr)
    return 1 if missed or tally.wrong or failed else 0


def run_others(lost: str, files: Sequence[str], *, small: bool) -> int:
    """Run the files without those of the kernel that ended the use of the device, in a new process; return 1."""
    others = [stem for stem in files if stem != lost and not {stem, lost} <= set(GRAPH)]
    print(
        f"LOST: the device, by a kernel of {lost}.cu. A new process runs: {', '.join(others) or 'nothing'}", flush=True
    )
    if others:
        more = ["--small"] if small else []
        subprocess.run([sys.executable, __file__, "--kernels", ",".join(others), *more], check=False)
    return 1


def _arguments() -> argparse.Namespace:
    def files(text: str) -> list[str]:
        asked = [name.removesuffix(".cu") for name in text.split(",")]
        if unknown := set(asked) - set(FILES):
            raise argparse.ArgumentTypeError(
                f"{', '.join(sorted(unknown))}: no such file; there are {', '.join(FILES)}"
            )
        # A graph is built by all of its files.
        return [*asked, *(name for name in GRAPH if set(asked) & set(GRAPH) and name not in asked)]

    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kernels", type=files, default=list(FILES), help=f"any of {','.join(FILES)} (default: all)")
    parser.add_argument("--small", action="store_true", help="two small batches for each kernel")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
