"""A graph built on a CUDA device has the CPU's bits, stage by stage: by emulated kernels, and on a device if any."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from graph_cases import BASE, ODD_CELLS, A, B, C, D, E, assert_equal_stages, corpus_of, every_stage, on_host

from corrmask_fast import Corpus, InputError, Vocabulary, build_dependency_graph
from corrmask_fast.graph.build import building, memory, stages_cuda
from corrmask_fast.graph.build.records import GeneColumns
from corrmask_fast.graph.build.stages_cpu import CpuStages

FORWARD, REVERSE, RANDOM = range(3)


@pytest.fixture(name="emulated")
def emulated_fixture(cuda_host):
    """Run the CUDA stages on emulated kernels."""

    def emulated(corpus, settings, *, cut=None, constants=None, **how):
        device = cuda_host.graph.EmulatedDevice(**how)
        cut = stages_cuda.Cut(*cut) if cut else None
        with cuda_host.graph.in_place(device, **(constants or {})) as stages:
            return every_stage(stages, corpus, cut=cut, **settings), device

    return emulated


# ------------------------------------------------------------------------------------------------ kernels, emulated

SETTINGS = (
    {},
    {"n_neighbors": 1},
    {"n_neighbors": 10_000, "rho_min": 0.0, "min_cooccurrence": 0},
    {"max_length": 7, "n_neighbors": 3},  # cells are longer
    {"max_length": 1},  # every gene constant
    {"max_length": 65_535},
)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_each_stage_has_the_bits_of_the_cpu(emulated, make_corpus, settings):
    corpus, settings = make_corpus(110, 24, seed=1), {**BASE, **settings}
    expected = every_stage(CpuStages, corpus, **settings)
    assert expected["u"].size or settings["max_length"] == 1
    got, device = emulated(
        corpus, settings, cut=(7, 32, 3), schedule=RANDOM, preempt_percent=20, constants={"CHUNK_CELLS": 9}
    )
    assert_equal_stages(got, expected)
    assert ("rank_columns_scratch" in device.launched) == (settings["max_length"] == 65_535)
    assert_equal_stages(emulated(corpus, settings, threads=32)[0], expected)


@pytest.mark.parametrize("threads", [32, 96, 256, 992])
@pytest.mark.parametrize("schedule", [FORWARD, REVERSE, RANDOM])
def test_any_block_and_any_order_of_threads(emulated, make_corpus, threads, schedule):
    corpus = make_corpus(70, 14, seed=5)
    got, _ = emulated(
        corpus, BASE, threads=threads, schedule=schedule, preempt_percent=30, schedule_seed=threads, cut=(5, 16, 2)
    )
    assert_equal_stages(got, every_stage(CpuStages, corpus, **BASE))


@pytest.mark.parametrize("cells", ODD_CELLS)
def test_ties_and_constant_genes(emulated, cells):
    corpus = corpus_of(cells)
    for max_length, n_neighbors in itertools.product((1, 4, 9), (1, 2, 50)):
        settings = {"max_length": max_length, "n_neighbors": n_neighbors, "min_presence": 1, "rho_min": 0.0}
        settings["min_cooccurrence"] = 0
        got, _ = emulated(corpus, settings, threads=32, cut=(2, 16, 1), schedule=RANDOM)
        assert_equal_stages(got, every_stage(CpuStages, corpus, **settings))


@pytest.mark.parametrize("settings", [{}, {"n_neighbors": 16, "rho_min": 0.0}], ids=str)
@pytest.mark.parametrize("exact", [2.0**53, 2.0**20])
def test_any_cut_into_strips_chunks_and_slices(cuda_host, emulated, make_corpus, settings, exact):
    """Lists overflow slice by slice; sums that float64 would not hold are added up as integers."""
    changed = cuda_host.graph.changed
    corpus, settings = make_corpus(80, 40, seed=7), {**BASE, **settings}
    expected = every_stage(CpuStages, corpus, **settings)
    small = {"correlation.cu": changed("correlation.cu", ("SLICE = 1024", "SLICE = 6"), ("== 16392", "> 0"))}
    for cut in ((40, 80, 40), (9, 16, 9), (9, 33, 4), (1, 16, 1), None):
        got, device = emulated(
            corpus, settings, threads=32, cut=cut, replace=small, constants={"EXACT": exact, "BLOCK_BYTES": 8192}
        )
        assert_equal_stages(got, expected)
    assert device.launched.count("fill_dense") > 1


def test_kernels_with_bins_in_device_memory(emulated, make_corpus):
    corpus = make_corpus(70, 14, seed=5)
    got, device = emulated(corpus, BASE, shared_limit=400, schedule=RANDOM)
    assert_equal_stages(got, every_stage(CpuStages, corpus, **BASE))
    assert {"rank_columns_scratch", "correlate_overlaps_scratch"} <= set(device.launched)


def test_tokens_of_32_bits(emulated, make_corpus):
    small = make_corpus(60, 14, seed=5)
    wide = Vocabulary(("<pad>", "<mask>", *(f"G{i}" for i in range(70_000))))
    corpus = Corpus(small.indptr, small.tokens.astype(np.int64) + 66_000, wide)
    assert corpus.tokens.max() > 2**16
    got, _ = emulated(corpus, BASE, threads=32)
    assert_equal_stages(got, every_stage(CpuStages, corpus, **BASE))


@pytest.mark.parametrize("n_cells", [131_072, 200_000, memory.MAX_CELLS_OF_64_BITS])
def test_sums_are_exact_at_the_limits(cuda_host, n_cells):
    """Columns whose sums come as close to the limit as they can: no ties to speak of, every cell full."""
    rng = np.random.default_rng(0)
    levels = rng.integers(2, 65_536, (2, n_cells)).astype(np.uint16)
    levels[1] = np.maximum(2, 65_537 - levels[0].astype(np.int64))  # as far from the first as can be
    indptr, cells = np.arange(3) * n_cells, np.tile(np.arange(n_cells, dtype=np.int32), 2)
    columns = GeneColumns(np.arange(2, 4), n_cells, 65_535, indptr, cells, levels.reshape(-1))
    ranks = CpuStages().rank_genes(columns)
    pairs = CpuStages().strongest_pairs(columns, ranks, 5, 0.0)
    device = cuda_host.graph.EmulatedDevice(threads=32)
    on_device = GeneColumns(columns.genes, n_cells, 65_535, indptr, device.upload(cells), device.upload(columns.levels))
    with cuda_host.graph.in_place(device) as stages:
        got_ranks = stages().rank_genes(on_device)
        # With most cells there are thousands of chunks, which take their time here.
        most = n_cells == memory.MAX_CELLS_OF_64_BITS
        got_pairs = pairs if most else stages().strongest_pairs(on_device, got_ranks, 5, 0.0)
        got = stages().correlate_pairs(on_device, got_pairs, 1)
    np.testing.assert_array_equal(on_host(got_ranks.e, np.uint32), ranks.e)
    np.testing.assert_array_equal(got_ranks.sum_squares, ranks.sum_squares)
    assert got_pairs.rho.tolist() == pairs.rho.tolist()
    assert pairs.rho[0] < -0.99
    assert [values.tolist() for values in got] == [[n_cells], pairs.rho.tolist()]  # every cell holds both


def strongest_of(cuda_host, products, length, *, strip, **how):
    """Each gene's list, from the kernel alone: rho is products / 4."""
    device, n = cuda_host.graph.EmulatedDevice(threads=32, schedule=RANDOM, **how), len(products)
    lists = stages_cuda.DevicePartners(device, n, length, 0.25)
    zeros, squares = device.upload(np.zeros(n, np.int64)), device.upload(np.full(n, 4.0))
    inexact = device.zeros(1, torch.int32)
    for begin in range(0, n, strip):
        end = min(begin + strip, n)
        sums = device.upload(np.where(np.arange(n) <= np.arange(begin, end)[:, None], products[begin:end], 10**9))
        for by_column, genes in ((0, end - begin), (1, end)):
            args = [sums, np.int32(1), n, np.int32(by_column), begin, end, 50, zeros, squares, np.uint32(length)]
            args += [lists.n_kept, lists.gene, lists.rho, lists.threshold, inexact]
            device.launch("correlation.cu", "keep_strongest", genes, args, shared_bytes=stages_cuda.FOUND)
    assert not inexact.item()
    return lists


@pytest.mark.parametrize("length", [1, 31, 33, 80, 129])
@pytest.mark.parametrize("kinds", [3, 1000])
def test_lists_longer_than_a_block(cuda_host, length, kinds):
    """Many ties, or hardly any; lists that never fill, that fill late, and that overflow from the first slice on."""
    rng = np.random.default_rng(length)
    products = np.tril(rng.integers(-kinds, kinds + 1, (130, 130)))
    products += np.tril(products, -1).T
    np.fill_diagonal(products, 4)
    source = cuda_host.graph.changed("correlation.cu", ("SLICE = 1024", "SLICE = 48"), ("== 16392", "> 0"))
    lists = strongest_of(cuda_host, products, length, strip=57, replace={"correlation.cu": source})
    for gene, row in enumerate(products):
        order = np.lexsort((np.arange(130), -abs(row)))
        order = order[(order != gene) & (abs(row[order]) >= 1)][:length]
        assert int(lists.n_kept[gene]) == order.size
        assert lists.gene[gene, : order.size].tolist() == order.tolist()
        assert lists.rho[gene, : order.size].tolist() == (row[order] / 4).tolist()
        assert lists.threshold[gene] == (abs(row[order[-1]]) / 4 if order.size == length else 0.25)


CLEARED = "clear_bins(bins, columns.max_length + 1);\n  __syncthreads();"
OF_ROW = "max(first, gene + 1) : 0, partner_end = by_column ? end : gene"
FAULTS = {  # what goes wrong: file, text, what stands in its place
    "cells of a chunk overtake each other": ("ranks.cu", "    __syncthreads();  // the next", "    // the next"),
    "bins are cleared while others count": ("ranks.cu", CLEARED, CLEARED.replace("__syncthreads();", "")),
    "a gene's last place counts as a value": ("ranks.cu", "if (level > 1) atomicAdd", "if (level > 0) atomicAdd"),
    "a chunk takes a cell of the next": ("correlation.cu", "< first_cell + width", "<= first_cell + width"),
    "a tie goes to the higher gene": ("correlation.cu", "gene < other_gene)", "gene > other_gene)"),
    "a gene is its own partner": ("correlation.cu", OF_ROW, OF_ROW + " + 1"),
    "one kind of bins only is cleared": ("overlap.cu", "clear_bins(bins_v, n_bins);", ""),
    "overlaps are counted too early": ("overlap.cu", "n_bins);\n  __syncthreads();", "n_bins);"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_show_in_the_results(cuda_host, emulated, make_corpus, fault):
    file, *change = FAULTS[fault]
    settings = {"max_length": 9, "n_neighbors": 3, "rho_min": 0.0, "min_presence": 3, "min_cooccurrence": 0}
    how = {"cut": (5, 16, 2), "schedule": RANDOM, "preempt_percent": 30, "shared_limit": 400}
    corpora = make_corpus(70, 14, seed=5), corpus_of([[A, B, C, D, E]] * 3 + [[]] * 3)  # the second is all ties
    expected = [every_stage(CpuStages, corpus, **settings) for corpus in corpora]

    def compare(replace=None):
        for corpus, of_cpu in zip(corpora, expected, strict=True):
            assert_equal_stages(emulated(corpus, settings, replace=replace, **how)[0], of_cpu)

    compare()
    with pytest.raises((AssertionError, InputError, cuda_host.launch.LaunchError)):
        compare({file: cuda_host.graph.changed(file, tuple(change))})


# ------------------------------------------------------------------------------------------------ memory, exactness


@pytest.mark.parametrize("gigabytes", [4, 14, 130])
@pytest.mark.parametrize(("n_genes", "n_cells"), [(2_000, 100_000), (25_000, 100_000), (60_000, 1_900_000)])
def test_strips_and_chunks_fit_the_memory(gigabytes, n_genes, n_cells):
    exact_cells = stages_cuda._exact_cells(n_cells, np.array([n_cells // 2]), np.array([n_cells**3 / 4.0]))
    assert (exact_cells == n_cells) == (n_cells == 100_000)
    cut = stages_cuda.Cut.fitting(n_genes, n_cells, exact_cells, gigabytes << 30)
    assert 8 * n_genes * (cut.cells + cut.genes) <= 0.62 * (gigabytes << 30)
    assert cut.cells <= exact_cells or (exact_cells == n_cells and cut.cells % 16 == 0)
    if gigabytes > 4 and n_genes < 60_000:
        assert min(cut.cells, cut.genes) >= 2000  # long enough for a matrix product at full speed


def test_too_little_memory_is_named(cuda_host, emulated, make_corpus, monkeypatch):
    corpus = make_corpus(60, 14, seed=5)
    with pytest.raises(InputError, match=r"14 genes need .* MiB of free GPU memory .*; got 0 MiB; .*device='cpu'"):
        emulated(corpus, BASE, free=1000)

    def full(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB. GPU 0 has …")

    monkeypatch.setattr(torch, "mm", full)
    with pytest.raises(
        InputError, match=r"does not fit the GPU's memory \(CUDA out of memory\); .* or use device='cpu'"
    ):
        emulated(corpus, BASE)


def test_a_product_that_is_not_exact_is_refused(emulated, make_corpus, monkeypatch):
    exact = torch.mm

    def emulated_product(a, b, *, out):
        return out.copy_(exact(a.bfloat16(), b.bfloat16()))

    monkeypatch.setattr(torch, "mm", emulated_product)
    with pytest.raises(InputError, match=r"float64 matrix product .* is not exact.*or use device='cpu'"):
        emulated(make_corpus(60, 14, seed=5), BASE)


# ------------------------------------------------------------------------------------------------ a device


@pytest.mark.gpu
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize(("n_cells", "n_genes"), [(110, 24), (3000, 400)])
def test_device_has_the_bits_of_the_cpu(gpu, make_corpus, settings, n_cells, n_genes):
    corpus, settings = make_corpus(n_cells, n_genes, seed=1), {**BASE, **settings}
    expected = every_stage(CpuStages, corpus, **settings)
    for cut in (None, stages_cuda.Cut(37, 160, 11)):
        assert_equal_stages(every_stage(stages_cuda.CudaStages, corpus, cut=cut, **settings), expected)


@pytest.mark.gpu
def test_device_adds_up_integers_beyond_float64(gpu, make_corpus, monkeypatch):
    corpus = make_corpus(500, 90, seed=2)
    monkeypatch.setattr(stages_cuda, "EXACT", 2.0**26)
    assert_equal_stages(every_stage(stages_cuda.CudaStages, corpus, **BASE), every_stage(CpuStages, corpus, **BASE))


@pytest.mark.gpu
def test_device_is_chosen_by_auto(gpu, make_corpus, tmp_path):
    corpus = make_corpus(2000, 1500, seed=4)
    assert building._kind_of_device("auto") == "cuda"
    files = []
    for device in ("auto", "cuda", "cpu"):
        build_dependency_graph(corpus, device=device, min_cooccurrence=20, progress=False).save(
            tmp_path / "g.safetensors"
        )
        files.append((tmp_path / "g.safetensors").read_bytes())
    assert len(set(files)) == 1
