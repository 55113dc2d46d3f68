"""Checks that come before any clock: what is about to be timed gives the right result."""

from __future__ import annotations

import copy
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from corrmask_fast import (
    CorrMasker,
    DataCollatorForCorrMask,
    MaskedBatch,
    build_dependency_graph,
    get_num_threads,
    set_num_threads,
)
from corrmask_fast.testing import Case, assert_same
from harness.records import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from corrmask_fast import Corpus
    from corrmask_fast.masking.base import Masker
    from harness.workload import Workload

FEW = 3  # rows that the oracle masks; it takes its time
CPU = torch.device("cpu")


def first_rows(masked: Any, rows: int = FEW) -> MaskedBatch:
    """Return the first rows of a result, on the CPU."""
    return MaskedBatch(*(tensor[:rows].cpu() for tensor in masked))


def check_masker(
    workload: Workload,
    batch: int,
    masker: Masker | None = None,
    *,
    device: torch.device = CPU,
    strategy: str = "corrmask",
    pairs: Any = None,
    sets: Any = None,
) -> None:
    """A masker gives the oracle's bits, counted and by epoch: with one thread, with two, and on the device.

    ``masker`` lies on the CPU and has masked nothing yet (None: CorrMask); ``pairs``, ``sets``: the PMI table and
    the gene sets that it looks up.
    """
    masker = masker or CorrMasker(workload.graph)
    rows = torch.from_numpy(workload.rows(batch))
    few = Case("bench", workload.graph, rows[:FEW].numpy())
    for name, given in (("pairs", pairs), ("sets", sets)):
        if given is not None:
            object.__setattr__(few, name, given)
    threads = get_num_threads()
    for epoch, draw in ((None, {"draw_ids": np.arange(few.rows)}), (1, {"epoch": 1})):
        expected, results = few.expected(**draw, strategy=strategy), []
        for n in (2, 1):
            set_num_threads(n)
            results.append(copy.deepcopy(masker)(rows, epoch=epoch))
            assert_same(expected, first_rows(results[-1]), f"{strategy}, {n} threads, {draw}")
        assert_same(*results, f"{strategy}: one thread beside two")
        if device.type != "cpu":
            there = copy.deepcopy(masker).to(device)(rows.to(device), epoch=epoch)
            assert_same(results[0], first_rows(there, batch), f"{strategy}, batch {batch} on the device, {draw}")
    set_num_threads(threads)


def check_pipelines(workload: Workload, batch: int, pipelines: Sequence[tuple[str, Any, Any]]) -> None:
    """Every (name, dataset, collator) delivers the same cells; those of ours the oracle's masks."""
    rows, cells_of_batch = workload.rows(batch), list(range(batch))
    expected = Case("bench", workload.graph, rows[:FEW]).expected(epoch=0)
    for name, dataset, collator in pipelines:
        ours = isinstance(collator, DataCollatorForCorrMask)
        if ours:
            collator.set_epoch(0)
            collator.return_masked_positions = True
        found = collator(dataset.__getitems__(cells_of_batch))
        ids, labels = found["input_ids"], found["labels"]
        assert np.array_equal(torch.where(labels == -100, ids, labels), rows), f"{name}: the cells are not the same"
        assert found["attention_mask"].all(), f"{name}: padding in cells of one length"
        if ours:
            assert_same(expected, first_rows((ids, labels, found["masked_positions"])), name)


def check_packers(
    workload: Workload, batch: int, flatten: Callable[[], dict[str, Any]], pack: Callable[[], dict[str, Any]]
) -> None:
    """Both give the cells one after the other, masked as the oracle does, and say where they begin."""
    theirs, ours = flatten(), pack()
    expected = Case("bench", workload.graph, workload.rows(batch)[:FEW]).expected(epoch=0)
    ids, labels = (ours[name].reshape(batch, -1) for name in ("input_ids", "labels"))
    assert np.array_equal(ids[:FEW], expected.input_ids), "the oracle's tokens"
    assert np.array_equal(labels[:FEW], expected.labels), "the oracle's labels"
    theirs["labels"][0, ours["cu_seq_lens_q"][:-1].long()] = labels[:, 0]  # they have a separator there, −100
    assert theirs.keys() == ours.keys()
    for name, value in theirs.items():
        assert torch.equal(torch.as_tensor(value), torch.as_tensor(ours[name])), name


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


def tensors_of(case: Case, dtype: type) -> list[torch.Tensor | None]:
    """Return tokens, attention mask and special tokens mask of a case on the CPU."""
    narrow = case.astype(dtype)
    arrays = narrow.input_ids, narrow.attention_mask, narrow.special_tokens_mask
    return [None if array is None else torch.from_numpy(array) for array in arrays]


def check_emulated(workload: Workload) -> str:
    """Without a device: the very source that would run there, emulated on a few rows; return what was done."""
    from corrmask_fast.cuda import kernel_source

    folder = str(ROOT / "tests" / "cuda_host")
    sys.path.insert(0, folder)
    try:
        launch, masking = import_module("launch"), import_module("masking")
    finally:
        sys.path.remove(folder)
    if reason := launch.missing():
        return f"not checked: {reason}"
    module = launch.HostModule(kernel_source("corrmask.cu"))
    few = Case("bench", workload.graph, workload.rows(FEW))
    for draw in ({"draw_ids": np.arange(FEW)}, {"epoch": 1}):
        for case in (few, few.astype(np.int32)):
            assert_same(case.expected(**draw), masking.emulate(module, case, **draw), f"emulated, {draw}")
    return f"{FEW} rows emulated on the CPU equal the oracle's"
