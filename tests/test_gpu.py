"""A masker on a device, through its public door. Each test runs on a GPU where there is one; everywhere it runs on the
CPU, and with the CUDA kernels emulated behind the same door, so that the tests themselves are tried."""

from __future__ import annotations

import contextlib
import copy
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode

from corrmask_fast import CorrMasker, DataCollatorForCorrMask, InputError, Linear, RandomMasker, ValueReplacement
from corrmask_fast.masking.base import MaskedBatch
from corrmask_fast.masking.engine import ops
from corrmask_fast.masking.strategies import STRATEGIES
from corrmask_fast.testing import PARAMETERS, Case, assert_same, cases, draw_ids, make_graph, make_vocabulary

CASES = [case for case in cases() if case.columns < 200]
GRAPH = make_graph(make_vocabulary(300), degree=20, seed=3)
HUB = Case(
    "hub, repeats, padding",
    GRAPH,
    np.where(np.arange(200) < [[200], [151], [40], [0]], np.random.default_rng(1).integers(2, 302, (4, 200)), 0),
)
EXPECTED = HUB.expected(epoch=4)


class Emulated(torch.Tensor):
    """A CPU tensor that a masker sends through the custom op, as it does with every tensor that is not plain."""


class Place:
    """Where a test runs: how tensors get there and back, and what stands in for CUDA graphs without them."""

    def __init__(self, name):
        self.name = name
        self.device = torch.device("cuda", torch.cuda.current_device()) if name == "cuda" else torch.device("cpu")

    def put(self, array):
        tensor = torch.from_numpy(np.array(array)) if isinstance(array, np.ndarray) else array
        return tensor.as_subclass(Emulated) if self.name == "emulated" else tensor.to(self.device)

    def get(self, masked):
        return MaskedBatch(*(tensor.as_subclass(torch.Tensor).cpu() for tensor in masked))

    def masker(self, graph=GRAPH, *, validate=False, **parameters):
        return CorrMasker(graph, validate=validate, **parameters).to(self.device)

    def capture(self, run):
        """Capture a call in a CUDA graph; return what replays it and hands out the results."""
        if self.name != "cuda":
            return lambda: self.get(run())
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            results = run()

        def replay():
            graph.replay()
            torch.cuda.synchronize()
            return self.get(results)

        return replay

    def no_waiting(self):
        """Raise where the host waits for the device: PyTorch does on a GPU, else a look at what the host calls."""
        return refused_syncs() if self.name == "cuda" else RefusedReads()


class RefusedReads(TorchFunctionMode):
    """Refuse what copies values of a CUDA tensor to the host, or of the host's memory to the device: both wait."""

    READS = {"item", "tolist", "numpy", "cpu", "nonzero", "argwhere", "masked_select", "equal", "allclose"}  # noqa: RUF012
    READS |= {"__bool__", "__int__", "__float__", "__index__", "__array__", "__contains__", "__format__", "is_nonzero"}
    READS |= {"unique", "unique_consecutive", "bincount", "synchronize"}
    COPIES = {"tensor", "as_tensor", "cuda", "pin_memory"}  # noqa: RUF012

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name = getattr(func, "__name__", "")
        waits = name in self.READS or name in self.COPIES
        if name in {"__getitem__", "__setitem__"}:  # by a mask of bools: how many are set decides the shape
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            waits = any(isinstance(each, torch.Tensor) and each.dtype in {torch.bool, torch.uint8} for each in index)
        places = [*args[1:], *(kwargs or {}).values()]  # to another dtype it does not wait
        waits |= name == "to" and any(isinstance(each, str | torch.device | torch.Tensor) for each in places)
        waits |= name == "copy_" and [type(each) is torch.Tensor for each in args[:2]] == [False, True]  # from the host
        waits |= name == "where" and len(args) + len(kwargs or {}) == 1
        waits |= name == "repeat_interleave" and isinstance(args[1], torch.Tensor)
        assert not waits, f"the host waits for the device: {name}"
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def refused_syncs():
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.fixture(params=["cpu", "emulated", pytest.param("cuda", marks=pytest.mark.gpu)])
def place(request):
    if request.param == "cuda":
        if not torch.cuda.is_available():
            pytest.skip("no CUDA device: tried on the CPU and emulated alone")
        pytest.importorskip("cupy", reason="CuPy is not installed: pip install 'corrmask-fast[cuda13]'")
    if request.param == "emulated":
        request.getfixturevalue("emulated_cuda")
        request.getfixturevalue("monkeypatch").setattr(ops, "mask", ops.mask_on_device)
    return Place(request.param)


def test_the_emulated_place_launches_cuda_kernels(emulated_cuda, request, monkeypatch):
    monkeypatch.setattr(ops, "mask", ops.mask_on_device)
    place = Place("emulated")
    place.masker()(place.put(HUB.input_ids), epoch=4)
    assert [launch[0] for launch in emulated_cuda.launches] == ["corrmask_i64"]


# ------------------------------------------------------------------------------------------------------------- results


@pytest.mark.parametrize("case", [HUB, *CASES], ids=lambda case: case.name)
def test_masks_are_the_oracle_s(place, case):
    masks = [None if mask is None else place.put(mask) for mask in (case.attention_mask, case.special_tokens_mask)]
    draws = draw_ids(case.rows, seed=7)
    for parameters in (PARAMETERS[0], PARAMETERS[4]):
        masker = place.masker(case.graph, **parameters)
        got = masker(place.put(case.input_ids), *masks, draw_ids=place.put(draws))
        assert got.input_ids.device == got.labels.device == got.masked_positions.device == place.device
        assert_same(case.expected(draw_ids=draws, **parameters), place.get(got), f"{case.name}, {parameters}")


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_the_counter_goes_on_and_travels_in_the_state(place, dtype):
    masker, ids = place.masker(), place.put(HUB.input_ids).to(dtype)
    for step in range(3):
        got = masker(ids)
        assert got.input_ids.dtype == dtype
        assert_same(HUB.expected(draw_ids=np.arange(4) + 4 * step), place.get(got), f"step {step}")
    resumed = place.masker()
    resumed.load_state_dict(masker.state_dict())
    assert_same(HUB.expected(draw_ids=np.arange(12, 16)), place.get(resumed(ids)), "resumed")
    assert resumed.to("cpu").draw_counter.item() == 16


def test_a_copy_of_a_masker_counts_for_itself(place):
    masker, ids = place.masker(), place.put(HUB.input_ids)
    other = copy.deepcopy(masker)
    masker(ids)
    assert_same(HUB.expected(draw_ids=np.arange(4)), place.get(other(ids)), "copy")


def test_autocast_and_half_change_nothing(place):
    masker, ids = place.masker().half(), place.put(HUB.input_ids)
    with torch.autocast(place.device.type, dtype=torch.bfloat16):
        assert_same(EXPECTED, place.get(masker(ids, epoch=4)), "autocast")


def test_a_large_batch_is_its_rows_one_by_one(place):
    rows = 100_000 if place.name == "cuda" else 300
    ids = np.tile(HUB.input_ids[:1, :64], (rows, 1))
    draws = np.arange(rows)
    got = place.get(place.masker()(place.put(ids), draw_ids=place.put(draws)))
    some = np.unique([0, 1, rows // 2, min(rows - 1, 65_535), min(rows - 1, 65_536), rows - 1])
    expected = Case("some", GRAPH, ids[some]).expected(draw_ids=draws[some])
    assert_same(expected, MaskedBatch(*(tensor[some] for tensor in got)), "large batch")


# -------------------------------------------------------------------------------------------- streams, graphs, compiled


def test_the_current_stream_is_used(place):
    """What a side stream makes ready late is masked after it is ready."""
    masker, ids = place.masker(), place.put(HUB.input_ids)
    masker(ids, epoch=4)  # the kernel is loaded
    if place.name != "cuda":
        assert_same(EXPECTED, place.get(masker(ids, epoch=4)), "no streams")
        return
    stream, late = torch.cuda.Stream(), torch.zeros_like(ids)
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(20_000_000)  # about 10 ms: a launch on another stream would read zeros
        late.copy_(ids)
        got = masker(late, epoch=4)
    stream.synchronize()
    assert_same(EXPECTED, place.get(got), "side stream")


AWAY = pytest.mark.parametrize("place", ["emulated", pytest.param("cuda", marks=pytest.mark.gpu)], indirect=True)
WAITS = {  # what a call must not do; the last two wait only where the tensor is on a device
    "bool": lambda ids: bool(ids.any()),
    "int": lambda ids: int(ids[0, 0]),
    "item": lambda ids: ids.max().item(),
    "a mask of bools": lambda ids: ids[ids > 3],
    "where": lambda ids: torch.where(ids > 3),
    "repeats of a tensor": lambda ids: ids[0].repeat_interleave(ids[0]),
    "a number of the host": lambda ids: ids + torch.tensor([1], device=ids.device),
    "an array of the host": lambda ids: torch.from_numpy(np.zeros(3)).to(ids.device),
}


@AWAY
@pytest.mark.parametrize("wait", WAITS.values(), ids=WAITS)
def test_waiting_is_noticed(place, wait):
    ids = place.put(HUB.input_ids)
    with place.no_waiting(), pytest.raises((AssertionError, RuntimeError), match=r"wait|sync"):
        wait(ids)


@AWAY
def test_the_host_does_not_wait(place):
    masker, ids, draws = place.masker(), place.put(HUB.input_ids), place.put(np.arange(4))
    attention = ids != 0
    masker(ids)
    with place.no_waiting():
        masker(ids)
        masker(ids, epoch=3)
        masker(ids, attention, draw_ids=draws)


@AWAY
@pytest.mark.parametrize("strategy", [name for name, each in STRATEGIES.items() if not each.control])
def test_the_host_does_not_wait_for_any_strategy(place, strategy):
    """Nor for a schedule's step, groups replaced whole, priorities, a mask that the kernels cannot read as it is."""
    rate = Linear(0.1, 0.3, 10)
    masker = HUB.masker(strategy, mlm_probability=rate, replace="group").to(place.device)
    masker.validate = False
    ids, step = place.put(HUB.input_ids), place.put(np.array([3]))
    attention, priorities = (ids != 0).half(), ids * 1
    masker(ids)
    with place.no_waiting():
        masker.set_step(step)
        masker(ids, attention, epoch=step, priorities=priorities)
    several = CorrMasker([GRAPH, GRAPH], validate=False).to(place.device)
    several(ids, graph_ids=step.repeat(4) * 0)
    with place.no_waiting():
        several(ids, graph_ids=step.repeat(4) * 0)


@AWAY
def test_the_host_does_not_wait_for_values(place):
    masker = RandomMasker(GRAPH.vocabulary, mask_replace_prob=1.0, random_replace_prob=0.0, validate=False)
    hide, ids = ValueReplacement.scfoundation(masker).to(place.device), place.put(HUB.input_ids)
    hide.zero_masker.validate = False  # as on a device
    values, epoch = ids % 5 * 0.5, place.put(np.array([3]))
    hide(ids, values)
    with place.no_waiting():
        hide(ids, values)
        hide(ids, values, epoch=epoch)


def test_replays_of_a_captured_graph_count_on(place):
    masker, ids = place.masker(), place.put(HUB.input_ids)
    masker(ids)  # draws 0 … 3; loads the kernel
    replay = place.capture(lambda: masker(ids))
    for step in range(1, 4):
        assert_same(HUB.expected(draw_ids=np.arange(4) + 4 * step), replay(), f"replay {step}")
    assert_same(HUB.expected(draw_ids=np.arange(16, 20)), place.get(masker(ids)), "eager, after the replays")


def test_an_epoch_tensor_stays_variable_in_a_captured_graph(place):
    masker, ids = place.masker(), place.put(HUB.input_ids)
    epoch = torch.zeros(1, dtype=torch.int64, device=place.device)
    masker(ids, epoch=epoch)
    replay = place.capture(lambda: masker(ids, epoch=epoch))
    for number in (4, 0, 2**40):
        epoch.fill_(number)
        assert_same(HUB.expected(epoch=number), replay(), f"epoch {number}")


def test_a_captured_batch_may_change_in_place(place):
    masker, ids = place.masker(), place.put(HUB.input_ids.copy())
    masker(ids, epoch=4)
    replay = place.capture(lambda: masker(ids, epoch=4))
    ids.copy_(ids.flip(0))
    flipped = Case("flipped", GRAPH, HUB.input_ids[::-1].copy())
    assert_same(flipped.expected(epoch=4), replay(), "another batch")


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_compiled_steps_are_uncompiled_ones(place, mode):
    if place.name == "emulated":
        pytest.skip("torch.compile traces the op itself, which has no emulated device")
    torch.compiler.reset()
    masker, plain, ids = place.masker(), place.masker(), place.put(HUB.input_ids)
    if place.name == "cuda":
        plain(ids, epoch=0)  # the kernel is loaded before a graph is captured
        how = {"mode": mode}
    else:
        how = {"backend": "aot_eager"}
    compiled = torch.compile(lambda ids, epoch: masker(ids, epoch=epoch).labels + 1, fullgraph=True, **how)
    for number in (0, 1, 2, 3):
        epoch = torch.tensor([number], device=place.device)
        assert torch.equal(compiled(ids, epoch), plain(ids, epoch=number).labels + 1), number


def test_a_compiled_masker_counts_on(place):
    if place.name == "emulated":
        pytest.skip("torch.compile traces the op itself, which has no emulated device")
    torch.compiler.reset()
    masker, ids = place.masker(), place.put(HUB.input_ids)
    compiled = torch.compile(masker, fullgraph=True, **({} if place.name == "cuda" else {"backend": "aot_eager"}))
    for step in range(3):
        assert_same(HUB.expected(draw_ids=np.arange(4) + 4 * step), place.get(compiled(ids)), f"step {step}")


# ------------------------------------------------------------------------------------------------------ several devices


@pytest.mark.gpu
def test_a_device_that_is_not_the_current_one():
    if torch.cuda.device_count() < 2:
        pytest.skip(f"needs two CUDA devices; there are {torch.cuda.device_count()}")
    results = {}
    for index in (1, 0):  # the first of them while another device is current
        device = torch.device("cuda", index)
        got = CorrMasker(GRAPH).to(device)(torch.from_numpy(HUB.input_ids).to(device), epoch=4)
        assert got.labels.device == device
        results[index] = [tensor.cpu() for tensor in got]
        assert_same(EXPECTED, MaskedBatch(*results[index]), str(device))
    with pytest.raises(InputError, match="cuda:0, the masker on cuda:1"):
        CorrMasker(GRAPH).to("cuda:1")(torch.from_numpy(HUB.input_ids).to("cuda:0"))


def train_one_rank(rank, folder, device):
    """Two steps of a tiny model under DDP, masked by a masker that stays outside the wrapper; results go to a file."""
    from torch.nn.parallel import DistributedDataParallel

    torch.distributed.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=2)
    torch.manual_seed(rank)  # DDP starts all ranks from the first one's weights
    model = torch.nn.Sequential(torch.nn.Embedding(302, 8), torch.nn.Linear(8, 302)).to(device)
    wrapped = DistributedDataParallel(model)
    masker, ids = CorrMasker(GRAPH).to(device), torch.from_numpy(HUB.input_ids).to(device)
    kept = {}
    for step in range(2):
        batch = masker(ids)
        kept |= {f"{step} {name}": tensor.cpu().numpy() for name, tensor in batch._asdict().items()}
        logits = wrapped(batch.input_ids)
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch.labels.flatten()).backward()
        with torch.no_grad():
            for weight in model.parameters():
                weight.sub_(0.1 * weight.grad)
                weight.grad = None
    weights = torch.cat([weight.detach().flatten().cpu() for weight in model.parameters()])
    np.savez(f"{folder}/{rank}.npz", counter=masker.draw_counter.cpu().numpy(), weights=weights.numpy(), **kept)


@pytest.mark.parametrize("where", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_ranks_under_ddp_draw_for_themselves_and_train_one_model(where, tmp_path):
    """Both ranks hold the same rows: rank r draws (r << 48) + counter + row, and gradients are shared."""
    if where == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device: tried on the CPU alone")
    command = [sys.executable, __file__]
    ranks = [
        subprocess.Popen([*command, str(rank), str(tmp_path), where], stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    try:
        for process in ranks:
            told = process.communicate(timeout=100)[1]
            assert process.returncode == 0, told
    finally:
        for process in ranks:
            process.kill()
    got = [np.load(tmp_path / f"{rank}.npz") for rank in range(2)]
    assert np.array_equal(got[0]["weights"], got[1]["weights"])
    for rank, found in enumerate(got):
        assert found["counter"].item() == 8
        for step in range(2):
            batch = MaskedBatch(*(found[f"{step} {name}"] for name in MaskedBatch._fields))
            draws = (rank << 48) + 4 * step + np.arange(4)
            assert_same(HUB.expected(draw_ids=draws), batch, f"rank {rank}, step {step}")


# ------------------------------------------------------------------------------------------------------------ bad input

STRAY = np.array([-1, 302, -(2**31), 2**31 - 1, 2**62, -(2**63)])


def test_stray_tokens_are_genes_without_neighbors(place):
    """Wherever they stand and however far out they are, nothing outside the row is read or written."""
    ids = HUB.input_ids.copy()
    ids[0, [0, 31, 32, 63, 64, 199]] = STRAY
    ids[1, :150] = np.resize(STRAY, 150)
    stray = Case("stray", GRAPH, ids, known=False)
    got = place.masker(structural_ratio=1.0, mlm_probability=0.5)(place.put(ids), epoch=2)
    assert_same(stray.expected(epoch=2, structural_ratio=1.0, mlm_probability=0.5), place.get(got), "stray tokens")


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("token", [-1, 302, 2**31 - 1])
def test_validate_names_row_column_and_value(place, token, dtype):
    ids = HUB.input_ids.copy()
    ids[2, 17] = ids[2, 18] = ids[3, 0] = token
    masker = place.masker(validate=True)
    with pytest.raises(InputError, match=rf"token {token} in row 2, column 17 must be in \[0, 302\)"):
        masker(place.put(ids).to(dtype), epoch=0)
    masker(place.put(HUB.input_ids).to(dtype), epoch=0)


def test_without_being_asked_the_cpu_validates_and_a_device_does_not(place):
    ids = HUB.input_ids.copy()
    ids[1, 3] = 5000
    masker = CorrMasker(GRAPH).to(place.device)
    if place.device.type == "cpu":
        with pytest.raises(InputError, match="token 5000 in row 1, column 3"):
            masker(place.put(ids), epoch=0)
    else:
        expected = Case("stray", GRAPH, ids, known=False).expected(epoch=0)
        assert_same(expected, place.get(masker(place.put(ids), epoch=0)), "not validated")


def elsewhere(tensor):
    return tensor.as_subclass(torch.Tensor).to("cpu" if tensor.is_cuda else "meta")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda ids: (elsewhere(ids), {}), "input_ids lies on (meta|cpu), the masker on"),
        (
            lambda ids: (ids, {"attention_mask": elsewhere(ids)}),
            "attention_mask must have the shape",
        ),
        (lambda ids: (ids, {"special_tokens_mask": elsewhere(ids)}), "special_tokens_mask must have the shape"),
        (lambda ids: (ids, {"draw_ids": elsewhere(ids[:, 0])}), r"draw_ids must be \(4,\) int64 on"),
        (lambda ids: (ids, {"epoch": elsewhere(ids[0, :1])}), "an epoch tensor must be one int64 on"),
        (lambda ids: (ids, {"draw_ids": ids[:3, 0]}), r"draw_ids must be \(4,\) int64 .*got \(3,\)"),
        (lambda ids: (ids, {"draw_ids": ids[:, 0].int()}), "got .* torch.int32"),
        (lambda ids: (ids, {"attention_mask": ids[:, :7]}), r"attention_mask must have the shape \(4, 200\)"),
        (lambda ids: (ids.short(), {}), "of int32 or int64; got .* torch.int16"),
        (lambda ids: (ids.float(), {}), "of int32 or int64; got .* torch.float32"),
        (lambda ids: (ids.bool(), {}), "of int32 or int64; got .* torch.bool"),
        (lambda ids: (ids[0], {}), r"must be \(rows, columns\) .* got shape \(200,\)"),
    ],
)
def test_devices_shapes_and_dtypes_that_do_not_fit_are_refused(place, change, message):
    masker, counter = place.masker(), place.masker().draw_counter
    ids, more = change(place.put(HUB.input_ids))
    with pytest.raises(InputError, match=message):
        masker(ids, **more)
    assert torch.equal(masker.draw_counter, counter)


@pytest.mark.parametrize("shape", [(0, 7), (3, 0), (0, 0)])
def test_empty_batches(place, shape):
    ids = torch.zeros(shape, dtype=torch.int64)
    masked = place.masker(mlm_probability=0.3)(place.put(ids.numpy()))
    assert masked.input_ids.shape == masked.labels.shape == shape
    assert masked.masked_positions.shape == (shape[0], int(shape[1] * 0.3))
    assert all(tensor.device == place.device for tensor in masked)


LAYOUTS = {
    "transposed": lambda t: t.T.contiguous().T,
    "every other column": lambda t: t.repeat_interleave(2, dim=1)[:, ::2],
    "a window": lambda t: torch.nn.functional.pad(t, (3, 5, 1, 1))[1:-1, 3:-5],
    "expanded": lambda t: t[:1].expand(4, -1),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_tensors_of_any_layout_are_read_and_left_alone(place, layout):
    plain = torch.from_numpy(HUB.input_ids)
    ids = LAYOUTS[layout](place.put(HUB.input_ids))
    attention = LAYOUTS[layout](place.put((HUB.input_ids != 0).astype(np.uint8)))
    before = ids.clone()
    got = place.get(place.masker()(ids, attention, epoch=4))
    case = Case(layout, GRAPH, LAYOUTS[layout](plain).numpy().copy())
    assert_same(case.expected(epoch=4), got, layout)
    assert torch.equal(ids, before)


@pytest.mark.gpu
def test_an_eager_call_on_a_device_skips_the_dispatcher(monkeypatch):
    """Which costs the host as much as all else it does; a compiled call needs it."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    monkeypatch.setattr(ops, "mask", None)
    masker, ids = CorrMasker(GRAPH).to("cuda"), torch.from_numpy(HUB.input_ids).to("cuda")
    assert_same(EXPECTED, MaskedBatch(*(tensor.cpu() for tensor in masker(ids, epoch=4))), "eager")


@pytest.mark.gpu
def test_a_masker_on_a_device_stays_out_of_collators_and_workers():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    collator = DataCollatorForCorrMask(CorrMasker(GRAPH).to("cuda"))
    with pytest.raises(InputError, match="cuda"):
        collator([{"input_ids": [2, 3, 4, 5]}])


if __name__ == "__main__":  # a rank of the test of DDP
    train_one_rank(int(sys.argv[1]), *sys.argv[2:])
    # PyTorch's DDP keeps gloo's threads alive, and one that still drops a tensor aborts an interpreter that ends
    # (github.com/pytorch/pytorch/pull/179291).
    os._exit(0)
