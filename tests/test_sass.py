"""The machine code that NVRTC makes gives the oracle's masks when it is executed on the CPU."""

from __future__ import annotations

import numpy as np
import pytest
from cuda_cases import MIXED
from cuda_host import nvrtc, sass

from corrmask_fast.testing import Case, assert_same, cases, draw_ids, make_graph, make_vocabulary

NVDISASM = sass.find_nvdisasm()
if nvrtc.library() is None or NVDISASM is None:
    pytest.skip("needs NVRTC and nvdisasm: pip install nvidia-cuda-nvrtc nvidia-cuda-nvdisasm", allow_module_level=True)
SMALL = Case("small", make_graph(make_vocabulary(60), degree=9, seed=1), np.arange(2, 50).reshape(2, 24))


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    def load(stem):
        path = tmp_path_factory.mktemp("cubin") / f"{stem}.cubin"
        path.write_bytes(nvrtc.compiled(f"{stem}.cu", 90)[0])
        return sass.SassModule(sass.disassemble(NVDISASM, str(path)))

    return load


@pytest.mark.parametrize("strategy", ["corrmask", "random", "span", "corrmask-balanced"])
def test_machine_code_gives_the_oracles_masks(cuda_host, load, strategy):
    module, how = (
        load(strategy.removeprefix("corrmask-")),
        {"strategy": strategy, "draw_ids": draw_ids(MIXED.rows, seed=7)},
    )
    for case in (MIXED, MIXED.astype(np.int32)):
        got = cuda_host.masking.emulate(module, case, **how)
        assert_same(case.expected(**how), got, strategy)
    assert module.counts.issued.sum() > 10_000
    assert module.counts.distinct["written"] * 32 >= MIXED.input_ids.size * (4 + 8)


def test_masks_odd_columns_and_draws_from_the_content(cuda_host, load):
    module = load("corrmask")
    for case in [case for case in cases() if case.columns < 100]:
        got = cuda_host.masking.emulate(module, case, epoch=3, mask_dtype=np.int64)
        assert_same(case.expected(epoch=3), got, case.name)


def test_instructions_that_can_be_counted_by_hand(cuda_host, load):
    """A warp of one pass over the columns stores input_ids and labels once, and every barrier is one instruction."""
    module = load("random")
    cuda_host.masking.emulate(module, SMALL, strategy="random", draw_ids=draw_ids(2), threads=32)
    code, issued = module.kernels["random_i64"], module.counts.issued
    assert (
        sum(n for one, n in zip(code, issued, strict=True) if one.op == "STG" and "128" in one.kinds) == 2 * SMALL.rows
    )
    assert sum(n for one, n in zip(code, issued, strict=True) if one.op == "BAR") == module.counts.barriers > 10
