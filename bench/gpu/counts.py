"""From counts on the device to masked tokens there, and hidden values: beside PyTorch's operations, and the CPU."""

from __future__ import annotations

import copy
import warnings
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from harness.goals import Goal
from harness.timing import Contestant

from corrmask_fast import (
    CorrMasker,
    DataCollatorForCounts,
    DataCollatorForValues,
    RaggedBatch,
    RandomMasker,
    RankEncoder,
    ValueReplacement,
    get_num_threads,
)
from corrmask_fast.testing import assert_same
from gpu import exercise, masking

if TYPE_CHECKING:
    from harness.workload import Workload

TORCH_TOKENS = "tokens in PyTorch operations"
TORCH_MASKED = "tokens and random masks in PyTorch operations"
TOKENS = "RankEncoder on the device"
MASKED = "RankEncoder and CorrMasker on the device"
FROM_HOST = "counts copied to the device, RankEncoder and CorrMasker there"
HOST_PATH = "DataCollatorForCounts on the CPU, results copied to the device"
COUNTS, VALUES = "counts", "values"
# Of a gene, read and written: its column and count, and three outputs; its value, and what it became, and whether.
BYTES_OF_COUNT, BYTES_OF_VALUE = 8 + 4 + 3 * 8, 4 + 4 + 1
P, MASK_VALUE = 0.4, -1.0
TORCH_VALUES = "masked_fill by bernoulli"
HIDE, HIDE_EPOCH = "ValueReplacement", "ValueReplacement, draws from the epoch"
HOST_VALUES = "DataCollatorForValues on the CPU, results copied to the device"
GOALS = (
    Goal("counts to masked tokens, beside PyTorch", COUNTS, MASKED, (TORCH_MASKED,), at_most=1),
    Goal("hide values, beside masked_fill", VALUES, HIDE, (TORCH_VALUES,), at_most=1),
)


class Counts(NamedTuple):
    """Cells that each express as many genes: CSR on the CPU, with every gene of the vocabulary as a column."""

    csr: torch.Tensor  # (cells, genes) float32
    expressed: int
    token_of_column: np.ndarray
    median_of_column: np.ndarray
    encoder: RankEncoder


def counts_of(workload: Workload, batch: int) -> Counts:
    """Return made-up counts of the workload's cells: the first genes of a cell have the most."""
    vocabulary, rng = workload.graph.vocabulary, np.random.default_rng(0)
    lo, hi = vocabulary.gene_range
    names = list(vocabulary.names[lo:hi])
    order = rng.permutation(hi - lo)  # columns stand in another order than tokens
    medians = rng.gamma(2, 1, hi - lo) + 0.1
    column_of = np.empty(hi - lo, np.int64)
    column_of[order] = np.arange(hi - lo)
    rows = column_of[workload.rows(batch) - lo]
    counts = 1 + rng.poisson(20 / (1 + np.arange(rows.shape[1])), rows.shape)
    ascending = rows.argsort(axis=1)
    rows, counts = (np.take_along_axis(each, ascending, 1) for each in (rows, counts))
    indptr = torch.arange(batch + 1) * rows.shape[1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch: sparse CSR is in beta
        values = torch.from_numpy(counts.astype(np.float32)).flatten()
        csr = torch.sparse_csr_tensor(indptr, torch.from_numpy(rows).flatten(), values, (batch, hi - lo))
    encoder = RankEncoder(vocabulary, dict(zip(names, medians.tolist(), strict=True)), [names[k] for k in order])
    return Counts(csr, rows.shape[1], lo + order, medians[order], encoder)


def counts_race(workload: Workload, batch: int, device: torch.device) -> list[Contestant]:
    """Raw counts to tokens, and to masked tokens, after the device gave those of the CPU.

    All cells express as many genes, so that PyTorch's version needs no ragged sort: this favours it.
    """
    on_host = counts_of(workload, batch)
    there, encoder, vocabulary = on_host.csr.to(device), on_host.encoder, workload.graph.vocabulary
    masker, host_masker = CorrMasker(workload.graph).to(device), CorrMasker(workload.graph)
    want = encoder.padded(on_host.csr)
    got = encoder.padded(there)
    for name, tensor in want.items():
        assert torch.equal(tensor, got[name].cpu()), f"{name} of a batch of {batch} is not the CPU's"
    masked = masker(got["input_ids"], got["attention_mask"], epoch=1)
    assert_same(
        host_masker(want["input_ids"], want["attention_mask"], epoch=1), exercise.first_rows(masked, batch), "counts"
    )
    in_torch = torch_encoder(on_host, device)
    stock: dict[str, Any] = {"mask_token": vocabulary.mask_token_id, "vocab_size": vocabulary.size}
    special = torch.zeros(want["input_ids"].shape, dtype=torch.bool, device=device)
    collator = DataCollatorForCounts(encoder, host_masker)

    def encoded(counts: torch.Tensor) -> Any:
        batch = encoder.padded(counts)
        return masker(batch["input_ids"], batch["attention_mask"])

    def host_path() -> list[torch.Tensor]:
        return [tensor.to(device, non_blocking=True) for tensor in collator(on_host.csr).values()]

    threads = get_num_threads()
    return [
        Contestant(masking.COPY, copy_of_counts(there), 1),
        Contestant(TORCH_TOKENS, lambda: in_torch(there), 1),
        Contestant(TORCH_MASKED, lambda: masking.torch_mask_tokens(in_torch(there), special, **stock), 1),
        Contestant(HOST_PATH, host_path, 1, threads),
        Contestant(FROM_HOST, lambda: encoded(on_host.csr.to(device)), 1),
        Contestant(TOKENS, lambda: encoder.padded(there), 1),
        Contestant(MASKED, lambda: encoded(there), 1),
    ]


def copy_of_counts(counts: torch.Tensor) -> Any:
    """Return a function that reads columns and counts, and writes input_ids, attention mask and labels."""
    columns, values = counts.col_indices(), counts.values()
    ids, attention, labels = (torch.empty_like(columns) for _ in range(3))

    def run() -> None:
        ids.copy_(columns)
        attention.copy_(values)
        labels.fill_(-100)

    return run


def torch_encoder(counts: Counts, device: torch.device) -> Any:
    """Return rank-value encoding of cells that express as many genes, as PyTorch's operations have it."""
    token_of = torch.from_numpy(counts.token_of_column).to(device)
    median_of = torch.from_numpy(counts.median_of_column).to(device)

    def run(csr: torch.Tensor) -> torch.Tensor:
        columns = csr.col_indices().view(-1, counts.expressed)
        values = csr.values().view(-1, counts.expressed).double()
        scaled = values / values.sum(1, keepdim=True) * 10_000 / median_of[columns]
        return token_of[columns].gather(1, scaled.argsort(dim=1, descending=True, stable=True))

    return run


def values_race(workload: Workload, batch: int, device: torch.device) -> list[Contestant]:
    """Hide the values of masked genes, as scGPT does; the device's are those of the CPU."""
    genes = torch.from_numpy(workload.rows(batch))
    rng = np.random.default_rng(0)
    values = torch.from_numpy((1 + rng.poisson(2, genes.shape)).astype(np.float32))
    ids, there, vocabulary = genes.to(device), values.to(device), workload.graph.vocabulary
    masker = RandomMasker(vocabulary, mlm_probability=P, mask_replace_prob=1.0, random_replace_prob=0.0)
    on_host, hide = ValueReplacement.scgpt(masker), ValueReplacement.scgpt(copy.deepcopy(masker).to(device))
    for name, want, got in zip(
        ("values", "targets", "masked"), on_host(genes, values, epoch=1), hide(ids, there, epoch=1), strict=True
    ):
        assert torch.equal(want, got.cpu()), f"{name} of a batch of {batch} are not the CPU's"
    hidden, masked = torch.empty_like(there), torch.empty(there.shape, dtype=torch.bool, device=device)
    collator = DataCollatorForValues.scgpt(masker, max_length=genes.shape[1], transform=None)
    ragged = RaggedBatch(
        np.arange(batch + 1) * genes.shape[1], genes.numpy().reshape(-1).astype(np.int32), vocabulary,
        values=values.numpy().reshape(-1),
    )  # fmt: skip

    def copied() -> None:
        hidden.copy_(there)
        masked.fill_(False)

    def in_torch() -> tuple[torch.Tensor, torch.Tensor]:
        chosen = torch.bernoulli(torch.full(there.shape, P, device=device)).bool()
        return there.masked_fill(chosen, MASK_VALUE), chosen

    def host_path() -> list[torch.Tensor]:
        return [tensor.to(device, non_blocking=True) for tensor in collator(ragged).values()]

    return [
        Contestant(masking.COPY, copied, 1),
        Contestant(TORCH_VALUES, in_torch, 1),
        Contestant(HOST_VALUES, host_path, 1, get_num_threads()),
        Contestant(HIDE_EPOCH, lambda: hide(ids, there, epoch=1), 1),
        Contestant(HIDE, lambda: hide(ids, there), 1),
    ]
