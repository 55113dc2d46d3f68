"""Who masks against whom on a device. Every function returns contestants of one race: a call masks a whole batch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from harness.goals import Goal
from harness.timing import Contestant
from torch_corrmask import TorchCorrMask

from corrmask_fast import CorrMasker, get_num_threads
from gpu.devices import replay_of

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from harness.workload import Workload

COPY = "floor: copy of the same bytes"
COPY_REPLAY = "floor: copy of the same bytes, graph replay"
TORCH_MASK = "torch_mask_tokens on the device (random masks)"
TORCH_CORRMASK = "CorrMask in PyTorch operations"
HOST_PATH = "CorrMasker on the CPU, results copied to the device"
FROM_HOST = "tokens copied to the device, CorrMasker there"
MASKER = "CorrMasker"
MASKER_EPOCH = "CorrMasker, draws from the epoch"
MASKER_ATTENTION = "CorrMasker, int64 attention mask"  # what CorrMaskTrainer always passes
REPLAY = "CorrMasker, graph replay"

SMALL, LARGE = (12, 12), (16_384, 16_384)
GOALS = (
    Goal("mask a batch, beside the copy", "masking", MASKER, (COPY,), at_most=4, batches=LARGE),
    Goal("mask a batch, beside torch_mask_tokens", "masking", MASKER, (TORCH_MASK,), at_most=1, batches=LARGE),
    Goal("mask a batch, beside PyTorch's CorrMask", "masking", MASKER, (TORCH_CORRMASK,), at_most=0.1, batches=LARGE),
    Goal("mask a batch, eager", "masking", MASKER, at_most=60, unit="µs", batches=SMALL),
    Goal("mask a batch, graph replay", "masking", REPLAY, at_most=25, unit="µs", batches=SMALL),
)


def copy_of_the_bytes(ids: torch.Tensor) -> Callable[[], None]:
    """Return a function that moves what masking must: input_ids read; input_ids and labels written."""
    out, labels = torch.empty_like(ids), torch.empty_like(ids)

    def run() -> None:
        out.copy_(ids)
        labels.fill_(-100)

    return run


def bytes_moved(ids: torch.Tensor | np.ndarray) -> int:
    """What :func:`copy_of_the_bytes` reads and writes."""
    return 3 * ids.nbytes


def torch_mask_tokens(
    inputs: torch.Tensor,
    special_tokens_mask: torch.Tensor,
    *,
    mask_token: int,
    vocab_size: int,
    mlm_probability: float = 0.15,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Hugging Face's ``DataCollatorForLanguageModeling.torch_mask_tokens``, its tensors made on the input's device.

    Theirs makes them on the CPU; otherwise the same operations in the same order, so that equal seeds give equal masks.
    It writes into ``inputs``, as theirs does.
    """
    here: dict[str, Any] = {"device": inputs.device}
    labels = inputs.clone()
    probability = torch.full(labels.shape, mlm_probability, **here)
    probability.masked_fill_(special_tokens_mask.bool(), value=0.0)
    masked = torch.bernoulli(probability).bool()
    labels[~masked] = -100
    replaced = torch.bernoulli(torch.full(labels.shape, 0.8, **here)).bool() & masked
    inputs[replaced] = mask_token
    rest = 1 - 0.8
    randomised = torch.bernoulli(torch.full(labels.shape, 0.1 / rest, **here)).bool() & masked & ~replaced
    words = torch.randint(vocab_size, labels.shape, dtype=torch.long, **here)
    inputs[randomised] = words[randomised]
    return inputs, labels


def masking_race(workload: Workload, batch: int, device: torch.device) -> list[Contestant]:
    """All contestants mask the same padded batch; those that start on the host have it in their names."""
    on_host = torch.from_numpy(workload.rows(batch))
    ids, vocabulary = on_host.to(device), workload.graph.vocabulary
    masker, host_masker = CorrMasker(workload.graph).to(device), CorrMasker(workload.graph)
    theirs, special = ids.clone(), torch.zeros(ids.shape, dtype=torch.bool, device=device)
    stock: dict[str, Any] = {"mask_token": vocabulary.mask_token_id, "vocab_size": vocabulary.size}
    in_torch = TorchCorrMask(workload.graph, device)
    copy = copy_of_the_bytes(ids)

    def host_path() -> list[torch.Tensor]:
        return [tensor.to(device, non_blocking=True) for tensor in host_masker(on_host)]

    threads, attention = get_num_threads(), torch.ones_like(ids)
    eager = [
        Contestant(COPY, copy, 1),
        Contestant(TORCH_MASK, lambda: torch_mask_tokens(theirs, special, **stock), 1),
        Contestant(TORCH_CORRMASK, lambda: in_torch(ids), 1),
        Contestant(HOST_PATH, host_path, 1, threads),
        Contestant(FROM_HOST, lambda: masker(on_host.to(device, non_blocking=True)), 1),
        Contestant(MASKER_EPOCH, lambda: masker(ids, epoch=1), 1),
        Contestant(MASKER_ATTENTION, lambda: masker(ids, attention_mask=attention), 1),
        Contestant(MASKER, lambda: masker(ids), 1),
    ]
    if device.type != "cuda":
        return eager
    return [
        *eager,
        Contestant(COPY_REPLAY, replay_of(copy), 1),
        Contestant(REPLAY, replay_of(lambda: masker(ids)), 1),
    ]
