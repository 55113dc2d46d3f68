"""Every CUDA kernel, on small inputs, checked against the CPU: what compute-sanitizer and a profiler are run on.

compute-sanitizer --tool racecheck python bench/gpu/exercise.py
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
from contextlib import contextmanager
from typing import TYPE_CHECKING
from unittest.mock import patch

import numpy as np
import torch
from harness.parity import check_graph, first_rows, tensors_of

from corrmask_fast import RankEncoder, cuda
from corrmask_fast.cells import encode_device
from corrmask_fast.masking.strategies import STRATEGIES
from corrmask_fast.testing import Case, assert_same, cases, make_graph, make_vocabulary
from gpu import devices, profiling
from gpu.workloads import COMPARED, atlas

if TYPE_CHECKING:
    from collections.abc import Iterator

    from corrmask_fast.masking.base import Masker

KERNELS = Path(cuda.__file__).parent / "kernels"
ROWS = 24  # a few blocks on each of some multiprocessors


def batches() -> list[Case]:
    """Rows as long as real ones, odd ones, and the tests' cases: padding on any side, masks, stray tokens."""
    graph = make_graph(make_vocabulary(3_000), degree=30, seed=1)
    rng = np.random.default_rng(0)
    ids = np.stack([rng.permutation(3_000)[:2_048] + 2 for _ in range(ROWS)])
    ids[1, 900:] = 0
    attention = (ids != 0).astype(np.uint8)
    odd = np.ascontiguousarray(ids[:, :397])
    protected = (rng.random(odd.shape) < 0.1).astype(np.uint8)
    return [
        Case("long", graph, ids),
        Case("long, attention", graph, ids[:4], attention[:4]),
        Case("odd", graph, odd, None, protected),
        *[case for case in cases() if case.columns < 200],
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


def maskers_of(case: Case) -> list[Masker]:
    """Every strategy at its defaults; CorrMask with more partners than a warp ranks at a time, also by weight."""
    many = {"structural_ratio": 1.0, "max_partners": 40, "mlm_probability": 0.4}
    weighted = {"partners": "weighted", "weights": True}
    return [
        *(case.masker(name) for name, each in STRATEGIES.items() if not each.control),
        case.masker("corrmask", **many),
        case.masker("corrmask", **many, **weighted),
    ]


def mask_everything(device: torch.device) -> int:
    """Mask the batches by both dtypes, in shared and in device memory; return how many results were compared."""
    compared = 0
    for case in batches():
        for masker in maskers_of(case):
            on_device = copy.deepcopy(masker).to(device)
            for dtype in (np.int64, np.int32):
                tensors = tensors_of(case, dtype)
                there = [None if tensor is None else tensor.to(device) for tensor in tensors]
                want, what = masker(*tensors, epoch=3), f"{case.name}, {masker.label}, {np.dtype(dtype)}"
                assert_same(want, first_rows(on_device(*there, epoch=3), case.rows), what)
                with small_shared_memory(device):
                    got = first_rows(on_device(*there, epoch=3), case.rows)
                assert_same(want, got, f"{what}, in device memory")
                compared += 2
    return compared


def build_graphs(device: torch.device) -> None:
    """Build a small graph, in shared and in device memory."""
    corpus = atlas(COMPARED, 400)
    settings = {"n_cells": 600, "min_presence": 10, "min_cooccurrence": 20}
    print(check_graph(corpus, device, **settings), flush=True)
    with small_shared_memory(device):
        print(check_graph(corpus, device, **settings), "with bins in device memory", flush=True)


def encode_counts(device: torch.device) -> int:
    """Encode cells with sums of columns and without, in shared and in device memory; return how many were compared."""
    rng, n_genes = np.random.default_rng(0), 3_000
    vocabulary = make_vocabulary(n_genes)
    names = list(vocabulary.names[slice(*vocabulary.gene_range)])
    medians = dict(zip(names, rng.gamma(2, 1, n_genes) + 0.1, strict=True))
    counts = torch.from_numpy(rng.poisson(0.8, (ROWS, n_genes)).astype(np.float64))
    compared = 0
    for columns in (names, names[:-1] + names[:1]):
        encoder = RankEncoder(vocabulary, medians, columns)
        want = encoder.padded(counts)
        for capacity in (encode_device.IN_SHARED, 16):
            with patch.object(encode_device, "IN_SHARED", capacity):
                got = encoder.padded(counts.to(device))
            for name, tensor in want.items():
                assert torch.equal(tensor, got[name].cpu()), f"{name}, {capacity} entries in shared memory"
                compared += 1
    return compared


def unlaunched(launches: list[profiling.Launch]) -> list[str]:
    """Kernels of ``kernels/*.cu`` that were not launched."""
    launched = {(one.file, one.name) for one in launches}
    return [
        f"{path.name}: {name}"
        for path in sorted(KERNELS.glob("*.cu"))
        for name in cuda.kernel_names(cuda.kernel_source(path.name))
        if (path.name, name) not in launched
    ]


def main() -> int:
    """Run the kernels; exit code 1 if one of them was not reached, 2 without a device."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", choices=("masking", "graph"), help="default: both")
    arguments = parser.parse_args()
    if reason := devices.why_not():
        print(f"no kernel can be launched here: {reason}", file=sys.stderr)
        return 2
    device = torch.device("cuda", torch.cuda.current_device())
    with profiling.watched_launches() as launches:
        if arguments.only != "graph":
            print(f"{encode_counts(device)} tensors of encoded cells are the CPU's", flush=True)
            print(f"{mask_everything(device)} masked batches are the CPU's", flush=True)
        if arguments.only != "masking":
            build_graphs(device)
    torch.cuda.synchronize()
    print(f"{len(launches)} launches of {len({one.name for one in launches})} kernels")
    missed = unlaunched(launches)
    if missed and not arguments.only:
        print(f"not launched: {', '.join(missed)}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
