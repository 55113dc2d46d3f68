"""CUDA masking through the loader: emulated on the CPU, and on a device where there is one."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from cuda_cases import MIXED, SOURCE, arguments, as_result

from corrmask_fast import InputError, MissingExtraError, cuda
from corrmask_fast.kernels.layout import CONTENT, COUNTED
from corrmask_fast.masking.engine import device, ops
from corrmask_fast.testing import Case, assert_same, cases, draw_ids, long_cases

CASES, LONG_CASES = cases(), long_cases()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_the_loader_equals_the_oracle_to_the_bit(emulated_cuda, case, dtype):
    case = case.astype(dtype)
    out, labels, positions = ops.mask_on_device(*arguments(case, mlm_probability=0.3))
    assert (out.dtype, labels.dtype, positions.dtype) == (torch.from_numpy(case.input_ids).dtype, *[torch.int64] * 2)
    expected = case.expected(draw_ids=draw_ids(case.rows, seed=7), mlm_probability=0.3)
    assert_same(expected, as_result((out, labels, positions)), case.name)
    if case.input_ids.size == 0:
        assert not emulated_cuda.launches
        return
    name, grid, block, _, stream = emulated_cuda.launches[0]
    assert (name, grid, block) == (f"corrmask_i{8 * dtype().itemsize}", (case.rows,), (256,))
    assert stream == 1003


def test_the_module_is_compiled_once_and_gets_all_shared_memory(emulated_cuda):
    for case in (MIXED, MIXED.astype(np.int32), MIXED):
        ops.mask_on_device(*arguments(case))
    assert emulated_cuda.compiled == [SOURCE]
    assert set(emulated_cuda.limits) == {227 * 1024}
    assert emulated_cuda.carveouts == {"corrmask_i32": 100, "corrmask_i64": 100}  # not those in device memory


def test_a_row_too_long_for_shared_memory_takes_device_memory(emulated_cuda):
    emulated_cuda.device.shared_limit = 8_000
    case = Case("rows", MIXED.graph, np.concatenate([MIXED.input_ids] * 3))
    got = ops.mask_on_device(*arguments(case))
    assert emulated_cuda.launches[0][:2] == ("corrmask_i64_scratch", (4,))  # two blocks a multiprocessor
    assert_same(case.expected(draw_ids=draw_ids(case.rows, seed=7)), as_result(got), "scratch")


@pytest.mark.parametrize("dtype", [torch.bool, torch.int16, torch.float32, torch.int64, torch.uint8])
def test_masks_of_any_dtype_and_layout(emulated_cuda, dtype):
    case = next(case for case in CASES if case.name == "holes in attention_mask")
    args = arguments(case)
    args[0] = args[0].T.contiguous().T  # strided
    args[1] = args[1].to(dtype).repeat_interleave(2, dim=1)[:, ::2]
    before = [args[0].clone(), args[1].clone()]
    expected = case.expected(draw_ids=draw_ids(case.rows, seed=7))
    assert_same(expected, as_result(ops.mask_on_device(*args)), str(dtype))
    assert all(torch.equal(a, b) for a, b in zip(args, before, strict=False))


def test_counter_and_epoch_through_the_loader(emulated_cuda):
    got = ops.mask_on_device(*arguments(MIXED, draws=torch.tensor([5]), mode=COUNTED, offset=-(1 << 63)))
    draws = np.array([-(1 << 63) + 5 + row for row in range(3)])
    assert_same(MIXED.expected(draw_ids=draws), as_result(got), "counter")
    salt = torch.from_numpy(np.array([7 * 0x9E3779B97F4A7C15 % 2**64], np.uint64).view(np.int64))
    got = ops.mask_on_device(*arguments(MIXED, draws=salt, mode=CONTENT))
    assert_same(MIXED.expected(epoch=7), as_result(got), "epoch")


def replaced(index, change):
    args = arguments(next(case for case in CASES if case.name == "holes in attention_mask"))
    args[index] = change(args[index])
    return args


@pytest.mark.parametrize(
    ("index", "change", "message"),
    [
        (0, lambda t: t[0], r"input_ids must be \(rows, columns\) of int32 or int64; got"),
        (0, lambda t: t.float(), r"of int32 or int64; got shape \(\d+, \d+\) of torch.float32"),
        (1, lambda t: t[:, :3], r"attention_mask must have the shape \(4, 97\) and device cpu of input_ids"),
        (1, lambda t: t.to("meta"), r"attention_mask must have the shape .*; got \(4, 97\) on meta"),
        (3, lambda t: t.int(), r"draws must be \(4,\) int64 on cpu; got \(4,\) torch.int32"),
        (3, lambda t: t[:2], r"draws must be \(4,\) int64 on cpu; got \(2,\)"),
        (10, lambda t: t.to("meta"), "rates is on meta, indptr on cpu; move the masker with"),
        (13, lambda t: t.long(), "indices must be of int32; got torch.int64"),
    ],
)
def test_bad_tensors_are_refused(emulated_cuda, index, change, message):
    with pytest.raises(InputError, match=message):
        ops.mask_on_device(*replaced(index, change))
    assert not emulated_cuda.launches


def test_a_kernel_cannot_be_loaded_while_a_graph_is_captured(emulated_cuda, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(InputError, match=r"corrmask_i64 is not loaded yet.* before the capture"):
        ops.mask_on_device(*arguments(MIXED))
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    ops.mask_on_device(*arguments(MIXED))
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    ops.mask_on_device(*arguments(MIXED.astype(np.int32)))  # of the same file


def test_cpu_tensors_are_refused():
    with pytest.raises(InputError, match="CUDA kernels need tensors on a CUDA device; got one on cpu"):
        ops.mask_on_device(*arguments(MIXED))


def test_without_cupy_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(MissingExtraError, match=r"corrmask-fast\[cuda1\d\]"):
        cuda.CudaDevice(0)


def test_includes_are_pasted_with_their_lines():
    """The whole text, each header once; a message of the compiler points at the file's own line."""
    assert "#include" not in SOURCE
    assert SOURCE.count("philox_words(u64 seed") == 1
    lines = SOURCE.split("\n")
    shown = {}
    for line in lines:
        if line.startswith("#line"):
            number, name = int(line.split()[1]), line.split('"')[1]
        else:
            shown[name, number] = line
            number += 1
    for name in ("corrmask.cu", "rows.cuh", "block.cuh", "philox.cuh"):
        text = cuda.resources.files("corrmask_fast.kernels").joinpath(name).read_text().split("\n")
        here = {number: line for (file, number), line in shown.items() if file == name}
        assert here == {i: line for i, line in enumerate(text, 1) if not line.startswith("#include")}


# ------------------------------------------------------------------------------------------------ a device


def assert_on_device(case, got, **parameters):
    expected = case.expected(draw_ids=draw_ids(case.rows, seed=7), **parameters)
    assert_same(expected, as_result(got), f"{case.name}, {parameters}")


@pytest.mark.gpu
@pytest.mark.parametrize("threads", [32, 96, 416, 1024])
def test_device_takes_any_block(gpu, threads, monkeypatch):
    monkeypatch.setattr(device, "THREADS", threads)
    got = ops.mask_on_device(*arguments(MIXED, gpu))
    assert_on_device(MIXED, got)


@pytest.mark.gpu
def test_device_works_on_a_side_stream(gpu):
    args = arguments(MIXED, gpu)
    stream = torch.cuda.Stream(gpu)
    stream.wait_stream(torch.cuda.current_stream(gpu))
    with torch.cuda.stream(stream):
        args[0] = args[0] * 1  # not ready on the default stream
        got = ops.mask_on_device(*args)
    stream.synchronize()
    assert_on_device(MIXED, got)


@pytest.mark.gpu
def test_device_graph_replays_follow_the_counter(gpu):
    counter = torch.zeros(1, dtype=torch.int64, device=gpu)
    args = arguments(MIXED, gpu, draws=counter, mode=COUNTED)
    args[3] = counter
    ops.mask_on_device(*args)  # loads the kernel
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = ops.mask_on_device(*args)
        counter += MIXED.rows
    for replay in range(3):
        graph.replay()
        torch.cuda.synchronize()
        expected = MIXED.expected(draw_ids=np.arange(3) + 3 * replay)
        assert_same(expected, as_result(got), f"replay {replay}")


@pytest.mark.gpu
def test_device_masks_a_hundred_thousand_rows(gpu):
    """Every row with its own draw: the same as row by row, for rows from all over the batch."""
    rows = 100_000
    ids = np.tile(MIXED.input_ids[:1, :64], (rows, 1))
    draws = np.arange(rows)
    args = arguments(Case("many", MIXED.graph, ids), gpu, draws=torch.from_numpy(draws), structural_ratio=1.0)
    got = ops.mask_on_device(*args)
    some = np.array([0, 1, 65_535, 65_536, rows - 1])
    expected = Case("some", MIXED.graph, ids[some]).expected(draw_ids=draws[some], structural_ratio=1.0)
    assert_same(expected, as_result(tensor[some] for tensor in got), "many rows")
