"""The custom op and the module around it: opcheck, torch.compile, fake tensors, the counter, copies and dtypes."""

from __future__ import annotations

import copy
import io
import pickle
import shutil
from multiprocessing.reduction import ForkingPickler

import numpy as np
import pytest
import torch

from corrmask_fast import CorrMasker, InputError
from corrmask_fast.kernels.layout import CONTENT, COUNTED, GIVEN
from corrmask_fast.masking.engine import ops
from corrmask_fast.testing import Case, assert_same, cases, make_graph, make_vocabulary

GRAPH = make_graph(make_vocabulary(200), seed=1)
FIELDS = ("input_ids", "labels", "masked_positions")


@pytest.fixture
def masker():
    return CorrMasker(GRAPH, mlm_probability=0.3, seed=2**64 - 1)


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch.compiler.reset()


def batch(rows=4, columns=96, dtype=torch.int64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randperm(200, generator=generator)[:columns] + 2 for _ in range(rows)]).to(dtype)


def op_arguments(masker, input_ids, attention=None, special=None, *, mode=CONTENT, draws=None, validate=True):
    draws = torch.tensor([5]) if draws is None else draws
    return (input_ids, attention, special, draws, mode, 0, None, None, validate, *masker.fixed_arguments())


def assert_equal(one, other):
    for name, a, b in zip(FIELDS, one, other, strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b), name


# --------------------------------------------------------------------------------------------------------------- op

SAMPLES = {
    "int64": lambda m: op_arguments(m, batch()),
    "int32": lambda m: op_arguments(m, batch(dtype=torch.int32)),
    "masks": lambda m: op_arguments(m, batch(), torch.ones(4, 96, dtype=torch.bool), torch.zeros(4, 96)),
    "given draws": lambda m: op_arguments(m, batch(), mode=GIVEN, draws=torch.arange(4)),
    "counter": lambda m: op_arguments(m, batch(), mode=COUNTED, draws=m.draw_counter),
    "no rows": lambda m: op_arguments(m, batch()[:0]),
    "no columns": lambda m: op_arguments(m, batch()[:, :0]),
    "strided": lambda m: op_arguments(m, batch().T.contiguous().T),
}


@pytest.mark.parametrize("sample", SAMPLES)
def test_opcheck(masker, sample):
    torch.library.opcheck(ops.mask, SAMPLES[sample](masker))


def test_the_fake_version_has_the_real_shapes_dtypes_and_strides(masker):
    from torch._subclasses.fake_tensor import FakeTensorMode

    for case in cases():
        real = CorrMasker(case.graph, mlm_probability=0.37, validate=case.known)
        arguments = op_arguments(real, torch.from_numpy(case.input_ids), validate=case.known)
        results = ops.mask(*arguments)
        with FakeTensorMode() as mode:
            faked = [mode.from_tensor(each) if isinstance(each, torch.Tensor) else each for each in arguments]
            fakes = ops.mask(*faked)
        for fake, result in zip(fakes, results, strict=True):
            assert (fake.shape, fake.dtype) == (result.shape, result.dtype), case.name
            assert not result.numel() or fake.stride() == result.stride(), case.name


def test_a_module_takes_fake_and_meta_tensors(masker):
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        masked = masker(mode.from_tensor(batch()), epoch=torch.tensor(1))
    assert masked.masked_positions.shape == (4, 28)
    masked = copy.deepcopy(masker).to("meta")(batch().to("meta"), draw_ids=torch.zeros(4, dtype=torch.int64).to("meta"))
    assert masked.labels.shape == (4, 96)
    assert masked.labels.device.type == "meta"


def test_errors_of_the_op(masker):
    wrong = batch()
    wrong[2, 7] = 999
    with pytest.raises(InputError, match="token 999 in row 2, column 7"):
        ops.mask(*op_arguments(masker, wrong))
    ops.mask(*op_arguments(masker, wrong, validate=False))


# ---------------------------------------------------------------------------------------------------------- compiled

BACKENDS = [
    "aot_eager",
    pytest.param(
        "inductor",
        marks=pytest.mark.skipif(shutil.which("g++") is None and shutil.which("clang++") is None, reason="no compiler"),
    ),
]


@pytest.mark.parametrize("backend", BACKENDS)
def test_compiled_whole(masker, backend):
    def step(input_ids, attention, draw_ids):
        return masker(input_ids, attention, draw_ids=draw_ids)

    compiled = torch.compile(step, fullgraph=True, backend=backend)
    attention = torch.ones(4, 96, dtype=torch.int64)
    attention[:, :9] = 0
    draws = torch.tensor([1, -2, 3, -(2**63)])
    assert_equal(compiled(batch(), attention, draws), step(batch(), attention, draws))
    assert_equal(compiled(batch(seed=1), attention, draws + 1), step(batch(seed=1), attention, draws + 1))


def test_compiled_modules_count_on_as_uncompiled_ones_do(masker):
    plain = copy.deepcopy(masker)
    compiled = torch.compile(masker, fullgraph=True, backend="aot_eager")
    for step in range(3):
        assert_equal(compiled(batch(seed=step)), plain(batch(seed=step)))
    assert masker.draw_counter.item() == plain.draw_counter.item() == 12


def count_compilations(function, calls, **options):
    """Return how many graphs torch.compile makes for the calls; results are held against the function itself."""
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(function, fullgraph=True, backend=backend, **options)
    for call in calls:
        assert_equal(compiled(*call), function(*call))
    return len(graphs)


def test_one_graph_serves_any_shape(masker):
    def step(input_ids, draw_ids):
        return masker(input_ids, draw_ids=draw_ids)

    shapes = [(4, 96), (2, 50), (7, 181), (3, 64)]
    assert count_compilations(step, [(batch(*shape), torch.arange(shape[0])) for shape in shapes], dynamic=True) == 1


def test_epochs_in_a_compiled_step(masker):
    """As a tensor an epoch changes nothing in the graph; as a number it is right all the same."""

    def step(input_ids, epoch):
        return masker(input_ids, epoch=epoch)

    tensors = [(batch(), torch.tensor(epoch)) for epoch in range(6)]
    assert count_compilations(step, tensors) == 1
    torch.compiler.reset()
    for epoch in (0, 2**62):  # numbers that change become symbols: 64 bits must not overflow
        torch.compiler.reset()
        compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
        for number in (epoch, epoch + 1, epoch + 2):
            assert_equal(compiled(batch(), number), step(batch(), number))


def test_another_seed_or_rate_needs_no_new_graph():
    """They travel as tensors: one graph serves maskers that differ in them."""
    maskers = [CorrMasker(GRAPH, seed=seed, structural_ratio=ratio) for seed, ratio in ((0, 0.5), (1, 0.2), (9, 0.2))]

    def step(input_ids, draws, seed_bits, rate_bits):
        arguments = list(op_arguments(maskers[0], input_ids, mode=GIVEN, draws=draws))
        arguments[9:11] = seed_bits, rate_bits
        return ops.mask(*arguments)

    calls = [(batch(), torch.arange(4), each.seed_bits.clone(), each.rate_bits.clone()) for each in maskers]
    assert count_compilations(step, calls) == 1
    for each, call in zip(maskers, calls, strict=True):
        assert_equal(step(*call), each(batch(), draw_ids=torch.arange(4)))


def test_exported_whole(masker):
    program = torch.export.export(masker, (batch(),), {"draw_ids": torch.arange(4)})
    assert_equal(program.module()(batch(), draw_ids=torch.arange(4)), masker(batch(), draw_ids=torch.arange(4)))


# ----------------------------------------------------------------------------------------------------------- counter


def test_rows_are_counted(masker):
    case = Case("counted", GRAPH, batch(5).numpy())
    draws = np.arange(5)
    assert_same(case.expected(draw_ids=draws, mlm_probability=0.3, seed=2**64 - 1), masker(batch(5)), "first batch")
    draws = np.arange(5, 10)
    assert_same(case.expected(draw_ids=draws, mlm_probability=0.3, seed=2**64 - 1), masker(batch(5)), "second batch")
    assert masker.draw_counter.tolist() == [10]
    masker(batch(5), epoch=3)
    masker(batch(5), draw_ids=torch.arange(5))
    masker(batch(5)[:0])
    assert masker.draw_counter.tolist() == [10]


def test_a_resumed_run_continues_exactly(masker):
    for step in range(3):
        masker(batch(seed=step))
    saved = io.BytesIO()
    torch.save(masker.state_dict(), saved)
    following = [masker(batch(seed=step)) for step in range(3, 6)]
    saved.seek(0)
    state = torch.load(saved, weights_only=True)
    assert set(state) == {"draw_counter", "table_fingerprint"}  # small: the graph has a file of its own
    resumed = CorrMasker(GRAPH, mlm_probability=0.3, seed=2**64 - 1)
    resumed.load_state_dict(state)
    for step, expected in enumerate(following, start=3):
        assert_equal(resumed(batch(seed=step)), expected)


def test_a_resumed_run_needs_the_same_graph(masker):
    model = torch.nn.ModuleDict({"masker": masker})
    other = torch.nn.ModuleDict({"masker": CorrMasker(make_graph(make_vocabulary(200), seed=2))})
    with pytest.raises(InputError, match=r"the saved masker used graph .*; resume with the graph of the first run"):
        other.load_state_dict(model.state_dict())
    equal = CorrMasker(make_graph(make_vocabulary(200), seed=1))  # built again, the same
    torch.nn.ModuleDict({"masker": equal}).load_state_dict(model.state_dict())
    broken = {**model.state_dict(), "masker.table_fingerprint": torch.zeros(3, dtype=torch.uint8)}
    with pytest.raises(InputError, match="resume with the graph"):
        model.load_state_dict(broken)


@pytest.mark.parametrize("rank", [1, 7, 2**15, 2**16 - 1])
def test_ranks_draw_apart(masker, monkeypatch, rank):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: rank)
    masker.draw_counter.fill_(100)
    expected_draws = np.array([((rank << 48) + 100 + row) % 2**64 for row in range(4)], np.uint64).astype(np.int64)
    case = Case("a rank's rows", GRAPH, batch().numpy())
    expected = case.expected(draw_ids=expected_draws, mlm_probability=0.3, seed=2**64 - 1)
    assert_same(expected, masker(batch()), f"rank {rank}")
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 0)
    masker.draw_counter.fill_(100)
    assert not torch.equal(masker(batch()).labels, torch.from_numpy(expected.labels))


# ------------------------------------------------------------------------------------------- copies, dtypes, contexts


@pytest.mark.parametrize(
    "change",
    [
        torch.nn.Module.half,
        torch.nn.Module.bfloat16,
        torch.nn.Module.double,
        lambda module: module.to(torch.float16),
        lambda module: module.to("cpu", torch.bfloat16),
        lambda module: module.eval().requires_grad_(False),
        copy.deepcopy,
        copy.copy,
        lambda module: pickle.loads(pickle.dumps(module)),
        lambda module: torch.nn.Sequential(module).half()[0],
        lambda module: module.share_memory(),
    ],
)
def test_masks_stay_the_same(masker, change):
    expected = masker(batch(), epoch=1)
    through_numpy = masker.mask_ragged(np.arange(5) * 96, batch().numpy().ravel(), epoch=1)
    changed = change(masker)
    assert_equal(changed(batch(), epoch=1), expected)
    again = changed.mask_ragged(np.arange(5) * 96, batch().numpy().ravel(), epoch=1)
    assert np.array_equal(again.labels, through_numpy.labels)
    assert {buffer.dtype for buffer in changed.buffers()} == {torch.int32, torch.int64, torch.uint8}
    assert not list(changed.parameters())


@pytest.mark.parametrize("sent", [lambda masker: masker, copy.copy])
def test_a_masker_that_was_sent_to_a_process_masks_on(masker, sent):
    """PyTorch moves its buffers to shared memory then, and what lay there before is free for others."""
    ids = batch()
    expected = masker(ids, epoch=4), ops.mask(*op_arguments(masker, ids))
    ForkingPickler.dumps(sent(masker))
    others = [torch.full_like(buffer, -1) for buffer in masker.buffers() for _ in range(8)]
    assert_equal(masker(ids, epoch=4), expected[0])
    assert_equal(ops.mask(*op_arguments(masker, ids)), expected[1])
    assert others


def test_copies_count_on_their_own(masker):
    masker(batch())
    copied = copy.deepcopy(masker)
    assert_equal(copied(batch()), masker(batch()))
    masker(batch())
    assert (copied.draw_counter.item(), masker.draw_counter.item()) == (8, 12)


def test_under_inference_mode_no_grad_and_autocast(masker):
    expected = [copy.deepcopy(masker)(batch()), masker(batch(), epoch=1)]
    masker.draw_counter.zero_()
    for context in (torch.inference_mode(), torch.no_grad(), torch.autocast("cpu", torch.bfloat16)):
        with context:
            assert_equal(masker(batch().clone()), expected[0])
            assert_equal(masker(batch(), epoch=1), expected[1])
        masker.draw_counter.zero_()
    assert_equal(masker(batch()), expected[0])  # the counter can still be written


def test_the_module_is_shown_with_its_parameters(masker):
    text = repr(masker)
    for part in ("200 genes", f"{GRAPH.n_edges} edges", "mlm_probability=0.3", f"seed={2**64 - 1}"):
        assert part in text


def test_a_masker_on_a_device_does_not_mask_on_the_cpu(masker):
    masker.to("meta")
    with pytest.raises(InputError, match=r"this masker lies on meta, and masking on the CPU needs|lies on meta"):
        masker.mask_ragged(np.array([0, 2]), np.array([2, 3]), epoch=0)
    with pytest.raises(InputError, match=r"input_ids lies on cpu, the masker on meta; use masker.to"):
        masker(batch(), epoch=0)


def test_cuda_tensors_have_a_kernel_of_their_own():
    """Not the one for any device, which would read device memory from the host."""
    assert torch._C._dispatch_has_kernel_for_dispatch_key("corrmask_fast::mask", "CUDA")


def test_epochs_do_not_compile_again_and_again():
    case = cases(0)[0]
    masker, rows = CorrMasker(case.graph), torch.from_numpy(case.input_ids)
    torch._dynamo.reset()
    compiled = torch.compile(lambda epoch: masker(rows, epoch=epoch).labels, fullgraph=True, backend="aot_eager")
    for epoch in range(20):
        assert torch.equal(compiled(epoch), masker(rows, epoch=epoch).labels)
