"""A case of everything at once, and what the loader of the kernels is given: shared by the tests of CUDA masking."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import torch

from corrmask_fast import cuda
from corrmask_fast.kernels.layout import GIVEN
from corrmask_fast.testing import Case, draw_ids, make_graph, make_vocabulary

SOURCE = cuda.kernel_source("corrmask.cu")
FORWARD, REVERSE, RANDOM = range(3)
MIXED = Case(
    "hub, repeats, padding",
    make_graph(make_vocabulary(500), degree=40, seed=3),
    np.where(np.arange(400) < [[400], [333], [70]], np.random.default_rng(1).integers(2, 502, (3, 400)), 0),
)


def arguments(
    case,
    device="cpu",
    *,
    draws=None,
    mode=GIVEN,
    offset=0,
    graph_ids=None,
    priorities=None,
    validate=False,
    **parameters,
):
    """What the operator is given for a case: of CUDA tensors ``mask_on_device`` takes them."""
    masker = case.masker(**parameters).to(device)
    given = torch.from_numpy(draw_ids(case.rows, seed=7)) if draws is None else draws
    tensors = [
        None if each is None else torch.from_numpy(each).to(device)
        for each in (case.input_ids, case.attention_mask, case.special_tokens_mask)
    ]
    return [*tensors, given.to(device), mode, offset, graph_ids, priorities, validate, *masker.fixed_arguments()]


def as_result(tensors):
    """Tensors, wherever they lie, under the names of the oracle's arrays."""
    arrays = (tensor.cpu() for tensor in tensors)
    return SimpleNamespace(**dict(zip(("input_ids", "labels", "masked_positions"), arrays, strict=True)))
