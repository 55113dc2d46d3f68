"""The masking kernels of kernels/*.cu, emulated on a case of corrmask_fast.testing."""

from __future__ import annotations

import math

import numpy as np

from corrmask_fast.kernels.layout import CONTENT, GIVEN, KERNELS
from corrmask_fast.masking.engine.device import Arena, kernel_arguments, kernel_of, pack
from corrmask_fast.testing import Expected

GOLDEN = 0x9E3779B97F4A7C15
PARAMETERS = {
    *("strategy", "mlm_probability", "structural_ratio", "max_partners", "npmi_min", "seed"),
    *("mask_replace_prob", "random_replace_prob", "replace", "partners", "weights"),
}


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
    masker=None,
    graph_ids=None,
    priorities=None,
    **options,
):
    """Mask a case with the emulated kernel of its strategy; return what :meth:`Case.expected` does.

    Parameters
    ----------
    module
        The kernels: those of the strategy's file.
    draw_ids, epoch, draws
        One of them: (rows,) draws, the epoch, or (values, mode, offset).
    arena
        In place of the one that the loader would choose.
    scratch_blocks
        If not 0, use the kernel that works in device memory, with so many blocks.
    rates
        p and λ in place of the masker's.
    masker
        In place of the one that the parameters among the options describe.
    **options
        Parameters of :meth:`Case.masker`; the others say how to launch.
    """
    from launch import Guarded, poisoned, read_only

    parameters = {name: value for name, value in options.items() if name in PARAMETERS}
    how = {name: value for name, value in options.items() if name not in PARAMETERS}
    masker = masker or case.masker(**parameters)
    if draws is None:
        salt = None if epoch is None else np.array([epoch * GOLDEN % 2**64], np.uint64).view(np.int64)
        draws = (draw_ids, GIVEN, 0) if epoch is None else (salt, CONTENT, 0)
    rows, columns = case.input_ids.shape
    settings = masker._settings
    kernels = KERNELS[settings.strategy]
    arena = arena or Arena.make(columns, settings.size, settings.max_partners, kernels, settings.grouped)
    masks = [
        None if mask is None else mask.astype(mask_dtype) for mask in (case.attention_mask, case.special_tokens_mask)
    ]
    fixed = {
        "seed": masker.seed_bits.numpy(),
        "rates": masker.rate_bits.numpy().view(np.float64) if rates is None else np.repeat(rates, 2),
        "lookup": masker.neighbor_lookup.numpy(),
        "indptr": masker.neighbor_indptr.numpy().astype(indptr_dtype),
        "indices": masker.neighbor_indices.numpy(),
        "costs": masker.token_costs.numpy() if masker.token_costs.numel() else None,
        "edge_costs": masker.edge_costs.numpy() if masker.edge_costs.numel() else None,
    }
    inputs = {
        "input_ids": np.ascontiguousarray(case.input_ids),
        "attention_mask": masks[0],
        "special_tokens_mask": masks[1],
        "draws": np.ascontiguousarray(draws[0]),
        "graph_ids": graph_ids,
        "priorities": None if priorities is None else np.ascontiguousarray(priorities),
    }
    outputs = {
        "out_ids": poisoned((rows, columns), case.input_ids.dtype),
        "labels": poisoned((rows, columns), np.int64),
        "masked_positions": poisoned((rows, math.floor(columns * masker.max_probability)), np.int64),
    }
    arrays = {name: read_only(array) for name, array in (fixed | inputs).items()} | outputs
    guarded = {name: Guarded(array, offset=offset, guard_bytes=guard_bytes) for name, array in arrays.items()}
    buffers = {name: array.buffer for name, array in guarded.items()}
    plan = pack(
        settings, masker.max_probability, n_starts=fixed["indptr"].size, device=None,
        **{name: buffers.pop(name) for name in fixed},
    )  # fmt: skip
    args = kernel_arguments(plan, arena, (rows, columns), *draws[1:], **buffers)
    name = kernel_of(kernels, case.input_ids.itemsize, in_device_memory=bool(scratch_blocks))[1]
    if rows == 0 or columns == 0:
        pass  # nothing is launched
    elif scratch_blocks:
        scratch = Guarded(poisoned((scratch_blocks, arena.bytes), np.uint8), guard_bytes=guard_bytes)
        args += [scratch.buffer.address, np.int64(arena.bytes // 16)]
        module.launch(name, (scratch_blocks,), (threads,), args, **how)
        scratch.finish("scratch")
    else:
        module.launch(name, (rows,), (threads,), args, shared_bytes=arena.bytes, **how)
    for name, array in guarded.items():
        array.finish(name)
    return Expected(outputs["out_ids"].astype(np.int64), outputs["labels"], outputs["masked_positions"])
