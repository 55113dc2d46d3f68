"""Run kernels under a sanitizer: started in a process of its own, with the sanitizer's library preloaded.

LD_PRELOAD=$(g++ -print-file-name=libtsan.so) python sanitize.py thread selftest fault_plain_increment
LD_PRELOAD=$(g++ -print-file-name=libasan.so) python sanitize.py address corrmask [barrier to leave out: syncthreads 3]
LD_PRELOAD=$(g++ -print-file-name=libtsan.so) python sanitize.py thread graph [file old new: a change of its source]
LD_PRELOAD=$(g++ -print-file-name=libtsan.so) python sanitize.py thread encode [old new]
"""

from __future__ import annotations

import re
import sys

import numpy as np


def selftest(sanitizer: str, name: str) -> None:
    """One block of 64 threads of a kernel of selftest.cu."""
    from launch import HERE, Guarded, HostModule, poisoned

    module = HostModule((HERE / "selftest.cu").read_text(), sanitizer=sanitizer)
    out = Guarded(poisoned((64,), np.int32), guard_bytes=0)
    module.launch(name, (1,), (64,), [out.buffer.address], shared_bytes=64 * 4)


def corrmask(sanitizer: str, left_out: str = "") -> None:
    """The masking kernels on a batch that reaches most of their code; ``left_out``: a barrier, as "syncthreads 3"."""
    from launch import RANDOM, REVERSE, HostModule
    from masking import emulate, with_ties

    from corrmask_fast.cuda import kernel_source
    from corrmask_fast.kernels.layout import CORRMASK, KERNELS
    from corrmask_fast.masking.engine.device import Arena
    from corrmask_fast.testing import Case, draw_ids, make_graph, make_vocabulary

    source = without_barrier(with_ties(kernel_source("corrmask.cu")), *left_out.split())
    module = HostModule(source, sanitizer=sanitizer)
    graph = make_graph(make_vocabulary(400), degree=30, seed=1)
    rng = np.random.default_rng(0)
    ids = np.stack([rng.permutation(400)[:300] + 2 for _ in range(3)])
    ids[1, 250:] = graph.vocabulary.pad_token_id
    ids[2] = rng.integers(0, 405, 300)
    masks = (ids != 0).astype(np.uint8), rng.choice([0, 1], ids.shape, p=[0.9, 0.1])
    plain, masked = Case("plain", graph, ids, known=False), Case("masks", graph, ids, *masks, known=False)
    draws = {"draw_ids": draw_ids(3), "mlm_probability": 0.4, "guard_bytes": 0}
    small = Arena.make(300, graph.vocabulary.size, 5, KERNELS[CORRMASK])._replace(
        wave_capacity=4
    )  # waves overflow, and are many
    emulate(module, plain, **draws, threads=128, schedule=REVERSE)
    emulate(module, masked, **draws, threads=96, arena=small, schedule=RANDOM, preempt_percent=20)
    emulate(module, masked, epoch=3, mlm_probability=0.4, guard_bytes=0, threads=64, schedule=RANDOM, schedule_seed=2)
    emulate(module, plain, **draws, threads=64, scratch_blocks=2, max_partners=40, structural_ratio=1.0)


def graph(sanitizer: str, file: str = "", old: str = "", new: str = "") -> None:
    """The kernels of a graph on cells that reach most of their code; ``old`` becomes ``new`` in ``file``."""
    import torch
    from graph import EmulatedDevice, changed, in_place
    from launch import RANDOM

    from corrmask_fast import Corpus
    from corrmask_fast.graph.build.records import Cells
    from corrmask_fast.graph.build.stages_cuda import Cut
    from corrmask_fast.testing import make_vocabulary

    torch.set_num_threads(1)  # its threads are no business of the sanitizer
    small = {"correlation.cu": changed("correlation.cu", ("SLICE = 1024", "SLICE = 8"), ("== 16392", "> 0"))}
    if file:
        small[file] = changed(small.get(file, file), (old, new))
    rng = np.random.default_rng(0)
    cells = [rng.permutation(20)[: rng.integers(0, 20)] + 2 for _ in range(40)] + [np.arange(2, 22)] * 3
    corpus = Corpus(np.cumsum([0, *map(len, cells)]), np.concatenate(cells), make_vocabulary(20))
    for shared_limit, preempt_percent in ((2000, 0), (400, 20)):
        device = EmulatedDevice(
            shared_limit=shared_limit, replace=small, sanitizer=sanitizer, schedule=RANDOM,
            preempt_percent=preempt_percent,
        )  # fmt: skip
        with in_place(device, CHUNK_CELLS=9) as make_stages:
            stages = make_stages(cut=Cut(7, 16, 4))
            sample = stages.read_sample(Cells(corpus, range(corpus.n_cells), 15))
            columns = stages.make_columns(sample, np.arange(2, 21))
            ranks = stages.rank_genes(columns)
            pairs = stages.strongest_pairs(columns, ranks, 3, 0.0)
            stages.correlate_pairs(columns, pairs, 3)


def encode(sanitizer: str, old: str = "", new: str = "") -> None:
    """The kernels of rank-value encoding, in shared and in device memory; ``old`` becomes ``new`` in their source."""
    from types import SimpleNamespace
    from unittest.mock import patch

    import torch
    from launch import RANDOM, HostModule

    from corrmask_fast.cells import encode_device
    from corrmask_fast.cells.encoding import EncodingTables
    from corrmask_fast.cuda import kernel_source
    from corrmask_fast.testing import make_vocabulary

    torch.set_num_threads(1)
    source = kernel_source(encode_device.FILE)
    assert old in source
    module = HostModule(source.replace(old, new), sanitizer=sanitizer)

    def launch(_: str, name: str, grid: int, threads: int, args: list, shared_bytes: int = 0) -> None:
        module.launch(
            name, (grid,), (min(threads, 96),), args, shared_bytes=shared_bytes, schedule=RANDOM, preempt_percent=20
        )

    rng, n_columns = np.random.default_rng(0), 150
    vocabulary = make_vocabulary(100)
    tokens = rng.integers(-2, 100, n_columns).astype(np.int32)  # several columns of a gene, and columns without one
    tokens[tokens >= 0] += 2
    counts = torch.from_numpy(rng.integers(0, 4, (5, n_columns)) * rng.choice([1.0, 0.5], (5, n_columns)))
    emulated = SimpleNamespace(shared_limit=4096, launch=launch)
    for once, capacity in ((False, 4096), (True, 4096), (False, 16)):
        of = np.where(tokens >= 0, 2 + np.arange(n_columns) % 98, tokens).astype(np.int32) if once else tokens
        tables = EncodingTables(of, rng.choice([0.5, 1.0], vocabulary.size), once, 1e4, fractional=True, limit=40)
        with (
            patch.object(encode_device.cuda, "open_device", lambda _: emulated),
            patch.object(encode_device, "IN_SHARED", capacity),
        ):
            held = encode_device.DeviceTables.of(tables, torch.device("cpu"))
            cells = encode_device.cells_on_device(counts)
            assert encode_device.encode_on_device(cells, tables, held, vocabulary, None, 8) is not None


def without_barrier(source: str, kind: str = "", number: str = "0") -> str:
    """Return the source without its number-th ``__<kind>();``."""
    if not kind:
        return source
    found = [match.span() for match in re.finditer(re.escape(f"__{kind}();"), source)]
    begin, end = found[int(number)]
    return f"{source[:begin]};{source[end:]}"


if __name__ == "__main__":
    sanitizer, what, *rest = sys.argv[1:]
    {"selftest": selftest, "corrmask": corrmask, "graph": graph, "encode": encode}[what](sanitizer, *rest)
