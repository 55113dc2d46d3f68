"""Checks that come before any clock: the device gives the bits of the CPU and of the oracle."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from corrmask_fast import CorrMasker, MaskedBatch, build_dependency_graph
from corrmask_fast.cuda import kernel_source
from corrmask_fast.testing import LONG_PARAMETERS, PARAMETERS, Case, assert_same, cases, draw_ids, long_cases
from gpu.workloads import rows_of

if TYPE_CHECKING:
    from workload import Workload

    from corrmask_fast import Corpus

FEW = 3  # rows that the oracle masks; it takes its time
CUDA_HOST = Path(__file__).resolve().parents[2] / "tests" / "cuda_host"


def to_cpu(masked: Any) -> MaskedBatch:
    """Return a result on the CPU."""
    return MaskedBatch(*(tensor.cpu() for tensor in masked))


def check_cases(device: torch.device) -> int:
    """Mask every case of the tests on the device and on the CPU; return how many results were compared."""
    compared = 0
    for case in [*cases(), *long_cases()]:
        for parameters in PARAMETERS if case.columns < 500 else LONG_PARAMETERS:
            maskers = [CorrMasker(case.graph, validate=False, **parameters).to(where) for where in ("cpu", device)]
            for dtype in (np.int64, np.int32):
                narrow = case.astype(dtype)
                tensors = [
                    None if array is None else torch.from_numpy(array)
                    for array in (narrow.input_ids, narrow.attention_mask, narrow.special_tokens_mask)
                ]
                draws = torch.from_numpy(draw_ids(case.rows, seed=7))
                for how in ({"draw_ids": draws}, {"epoch": 3}):
                    host, ours = (
                        masker(
                            *(None if tensor is None else tensor.to(where) for tensor in tensors),
                            **{name: v.to(where) if isinstance(v, torch.Tensor) else v for name, v in how.items()},
                        )
                        for masker, where in zip(maskers, ("cpu", device), strict=True)
                    )
                    assert_same(host, to_cpu(ours), f"{case.name}, {parameters}, {dtype.__name__}, {list(how)}")
                    compared += 1
    return compared


def check_batch(workload: Workload, batch: int, device: torch.device) -> None:
    """The batch that is about to be timed: the device gives the CPU's bits, and the oracle's for a few rows."""
    rows = rows_of(workload, batch)
    few = Case("bench", workload.graph, rows[:FEW].numpy())
    for epoch, draw in ((None, {"draw_ids": np.arange(len(few.input_ids))}), (1, {"epoch": 1})):
        on_device = to_cpu(CorrMasker(workload.graph).to(device)(rows.to(device), epoch=epoch))
        assert_same(CorrMasker(workload.graph)(rows, epoch=epoch), on_device, f"batch {batch}, {draw}")
        some = MaskedBatch(*(tensor[:FEW] for tensor in on_device))
        assert_same(few.expected(**draw), some, f"batch {batch} beside the oracle, {draw}")


def cuda_host() -> Any:
    """Return the modules (launch, masking) of the host emulation of CUDA."""
    sys.path.insert(0, str(CUDA_HOST))
    try:
        return import_module("launch"), import_module("masking")
    finally:
        sys.path.remove(str(CUDA_HOST))


def check_emulated(workload: Workload) -> str:
    """Without a device: the very source that would run there, emulated on a few rows; return what was done."""
    launch, masking = cuda_host()
    if reason := launch.missing():
        return f"not checked: {reason}"
    module = launch.HostModule(kernel_source("corrmask.cu"))
    few = Case("bench", workload.graph, rows_of(workload, FEW).numpy())
    for draw in ({"draw_ids": np.arange(FEW)}, {"epoch": 1}):
        for case in (few, few.astype(np.int32)):
            assert_same(case.expected(**draw), masking.emulate(module, case, **draw), f"emulated, {draw}")
    return f"{FEW} rows emulated on the CPU equal the oracle's"


def check_graph(corpus: Corpus, device: torch.device, **parameters: Any) -> str:
    """Build a small graph on the device and on the CPU: the same file to the bit; return what was compared."""
    host, ours = (
        build_dependency_graph(corpus, progress=False, device=where, **parameters) for where in ("cpu", device.type)
    )
    assert host.indices.size, "a graph without edges compares nothing"
    for name in ("indptr", "indices", "rho", "rho_global"):
        assert np.array_equal(getattr(host, name), getattr(ours, name)), f"{name} differs between {device} and the CPU"
    assert host.fingerprint == ours.fingerprint, "fingerprints differ"
    return f"{host.indices.size // 2} edges of {corpus.n_cells} cells are the CPU's"
