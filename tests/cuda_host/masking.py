"""The masking kernels of kernels/corrmask.cu, emulated on a case of corrmask_fast.testing."""

from __future__ import annotations

import math

import numpy as np

from corrmask_fast.cuda import Arena, corrmask_arguments
from corrmask_fast.kernels.layout import CONTENT, CORRMASK, GIVEN
from corrmask_fast.masking import RowRules
from corrmask_fast.testing import Expected

GOLDEN = 0x9E3779B97F4A7C15


TIE_BITS = 0xFF000000


def with_ties(source: str) -> str:
    """Return the kernels with random words of eight bits, as those of an oracle with TIE_BITS: keys often are equal."""
    weak = ", ".join(f"c{i} & {TIE_BITS:#x}u" for i in range(4))
    changed = source.replace("return make_uint4(c0, c1, c2, c3);", f"return make_uint4({weak});")
    assert changed != source
    return changed


def emulate(
    module,
    case,
    *,
    draw_ids=None,
    epoch=None,
    draws=None,
    threads=256,
    arena=None,
    scratch_blocks=0,
    mask_dtype=np.uint8,
    indptr_dtype=np.int32,
    offset=0,
    guard_bytes=256,
    rates=None,
    mlm_probability=0.15,
    structural_ratio=0.5,
    max_partners=5,
    mask_replace_prob=0.8,
    random_replace_prob=0.1,
    seed=0,
    **how,
):
    """Mask a case with the emulated kernel; return what :meth:`Case.expected` does.

    Parameters
    ----------
    draw_ids, epoch, draws
        One of them: (rows,) draws, the epoch, or (values, mode, offset).
    arena
        In place of the one that the loader would choose.
    scratch_blocks
        If not 0, use the kernel that works in device memory, with so many blocks.
    """
    from launch import Guarded, poisoned, read_only

    if draws is None:
        salt = None if epoch is None else np.array([epoch * GOLDEN % 2**64], np.uint64).view(np.int64)
        draws = (draw_ids, GIVEN, 0) if epoch is None else (salt, CONTENT, 0)
    rows, columns = case.input_ids.shape
    graph = case.graph
    settings = RowRules.settings_of(
        graph.vocabulary, CORRMASK, int(graph.degrees.max()), max_partners, mask_replace_prob, random_replace_prob
    )
    max_masked = math.floor(columns * mlm_probability)
    arena = arena or Arena.make(columns, graph.vocabulary.size, max_partners, threads)
    masks = [
        None if mask is None else mask.astype(mask_dtype) for mask in (case.attention_mask, case.special_tokens_mask)
    ]
    inputs = {
        "input_ids": np.ascontiguousarray(case.input_ids),
        "attention_mask": masks[0],
        "special_tokens_mask": masks[1],
        "draws": np.ascontiguousarray(draws[0]),
        "seed": np.array([seed], np.uint64),
        "rates": np.repeat([mlm_probability, structural_ratio] if rates is None else rates, 2),
        "indptr": graph.indptr.astype(indptr_dtype),
        "indices": graph.indices.astype(np.int32),
    }
    outputs = {
        "out_ids": poisoned((rows, columns), case.input_ids.dtype),
        "labels": poisoned((rows, columns), np.int64),
        "masked_positions": poisoned((rows, max_masked), np.int64),
    }
    arrays = {name: read_only(array) for name, array in inputs.items()} | outputs
    guarded = {name: Guarded(array, offset=offset, guard_bytes=guard_bytes) for name, array in arrays.items()}
    buffers = {name: array.buffer for name, array in guarded.items()}
    args = corrmask_arguments((rows, columns), max_masked, settings, arena, draws[1], draws[2], **buffers)
    name = "corrmask_i64" if case.input_ids.dtype == np.int64 else "corrmask_i32"
    if rows == 0 or columns == 0:
        pass  # nothing is launched
    elif scratch_blocks:
        scratch = Guarded(poisoned((scratch_blocks, arena.bytes), np.uint8), guard_bytes=guard_bytes)
        args += [scratch.buffer.address, np.int64(arena.bytes // 16)]
        module.launch(f"{name}_scratch", (scratch_blocks,), (threads,), args, **how)
        scratch.finish("scratch")
    else:
        module.launch(name, (rows,), (threads,), args, shared_bytes=arena.bytes, **how)
    for name, array in guarded.items():
        array.finish(name)
    return Expected(outputs["out_ids"].astype(np.int64), outputs["labels"], outputs["masked_positions"])
