"""CorrMask in PyTorch operations alone, as a good engineer would write it who does not write CUDA.

The same steps and the same distribution as CorrMasker (SPEC 4), whole batches at a time; only where the random numbers
come from is its own. Partners do not depend on what is masked already, so the seeds of a wave are expanded together,
and M after them is the quota's worth of columns with the smallest first hit; waves follow until every row is full.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from corrmask_fast import DependencyGraph

NEVER = 2**31 - 1
WAVE = 48  # seeds of a row that are expanded at a time: enough for most rows of 2 048 genes at p = 0.15, λ = 0.5
CHUNK_ROWS = 4096  # bounds the table of first columns, rows by vocabulary


class TorchWords:
    """Random numbers in [0, 1) from torch's generator."""

    def columns(self, ids: torch.Tensor) -> list[torch.Tensor]:
        """Four numbers for each column: order of seeds, order of the top-up, kind of replacement, replacement."""
        return [torch.rand(ids.shape, device=ids.device) for _ in range(4)]

    def neighbors(self, row: torch.Tensor, column: torch.Tensor, j: torch.Tensor) -> torch.Tensor:  # noqa: ARG002
        """One number for each neighbour ``j`` of the seed at ``column``."""
        return torch.rand(row.shape, device=row.device, dtype=torch.float64)


class TorchCorrMask:
    """Mask (rows, columns) int64 tokens of a known vocabulary; return (input_ids, labels)."""

    def __init__(
        self,
        graph: DependencyGraph,
        device: torch.device,
        *,
        mlm_probability: float = 0.15,
        structural_ratio: float = 0.5,
        max_partners: int = 5,
        mask_replace_prob: float = 0.8,
        random_replace_prob: float = 0.1,
        words: Any = None,
    ) -> None:
        self.indptr = torch.from_numpy(graph.indptr).to(device)
        self.indices = torch.from_numpy(graph.indices).to(device)
        self.degree = self.indptr.diff()
        self.size, (self.lo, self.hi) = graph.vocabulary.size, graph.vocabulary.gene_range
        self.mask_token = graph.vocabulary.mask_token_id
        self.p, self.ratio, self.max_partners = mlm_probability, structural_ratio, max_partners
        self.mask_below, self.random_below = mask_replace_prob, mask_replace_prob + random_replace_prob
        self.words = words or TorchWords()

    def __call__(self, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        out, labels = torch.empty_like(ids), torch.empty_like(ids)
        for begin in range(0, ids.shape[0], CHUNK_ROWS):
            part = slice(begin, begin + CHUNK_ROWS)
            out[part], labels[part] = self._mask(ids[part])
        return out, labels

    def _mask(self, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        w0, w1, w2, w3 = self.words.columns(ids)
        maskable = (ids >= self.lo) & (ids < self.hi)
        n = maskable.sum(1, dtype=torch.float64)
        budget = (n * self.p).floor()
        quota = (budget * self.ratio).floor().long()
        first_hit = self._first_hits(ids, maskable, w0, quota)
        # First hits differ within a row: the quota's worth of the smallest lies below the next one.
        limit = first_hit.sort(1).values.gather(1, quota[:, None])
        structural = first_hit < limit
        want = budget.long() - structural.sum(1)
        order = torch.where(maskable & ~structural, w1, 2.0).argsort(dim=1, stable=True)
        chosen = torch.arange(ids.shape[1], device=ids.device) < want[:, None]
        masked = structural.scatter(1, order, structural.gather(1, order) | chosen)
        gene = self.lo + (w3 * (self.hi - self.lo)).long()
        other = torch.where(w2 < self.mask_below, self.mask_token, torch.where(w2 < self.random_below, gene, ids))
        return torch.where(masked, other, ids), torch.where(masked, ids, -100)

    def _first_hits(
        self, ids: torch.Tensor, maskable: torch.Tensor, w0: torch.Tensor, quota: torch.Tensor
    ) -> torch.Tensor:
        """(rows, columns) int32: when a column is first proposed, as a seed or as a partner; NEVER if it is not."""
        rows, columns = ids.shape
        column = torch.arange(columns, dtype=torch.int32, device=ids.device).expand(rows, columns)
        place = torch.full((rows, self.size), columns, dtype=torch.int32, device=ids.device)
        place.scatter_reduce_(1, ids, torch.where(maskable, column, columns), "amin")
        is_seed = maskable & (self.degree[ids] > 0) & (place.gather(1, ids) == column)
        order = torch.where(is_seed, w0, 2.0).argsort(dim=1, stable=True)
        first_hit = torch.full((rows, columns), NEVER, dtype=torch.int32, device=ids.device)
        n_seeds = is_seed.sum(1)
        for begin in range(0, columns, WAVE):
            seeds = order[:, begin : begin + WAVE]
            self._expand(ids, place, seeds, is_seed.gather(1, seeds), begin, first_hit)
            full = ((first_hit != NEVER).sum(1) >= quota) | (n_seeds <= begin + WAVE)
            if bool(full.all()):  # waits for the device, once a wave
                break
        return first_hit

    def _expand(
        self,
        ids: torch.Tensor,
        place: torch.Tensor,
        seeds: torch.Tensor,
        valid: torch.Tensor,
        begin: int,
        first_hit: torch.Tensor,
    ) -> None:
        """Enter a wave of seeds and their partners; seed k of a row proposes at (begin + k)·(max_partners + 1)."""
        columns, stride = ids.shape[1], self.max_partners + 1
        at = (begin + torch.arange(seeds.shape[1], device=ids.device)) * stride
        genes = ids.gather(1, seeds)
        proposed = torch.where(valid, at, NEVER).int()
        first_hit.scatter_reduce_(1, seeds, proposed, "amin")
        degree = torch.where(valid, self.degree[genes], 0).reshape(-1)
        owner = torch.repeat_interleave(torch.arange(degree.numel(), device=ids.device), degree)
        j = torch.arange(owner.numel(), device=ids.device) - (degree.cumsum(0) - degree)[owner]
        row = owner // seeds.shape[1]
        neighbor = self.indices[self.indptr[genes.reshape(-1)][owner] + j].long()
        column = place.view(-1)[row * self.size + neighbor]
        present = (column < columns).nonzero().squeeze(1)
        owner, row, column, j = owner[present], row[present], column[present], j[present]
        key = self.words.neighbors(row, seeds.reshape(-1)[owner], j)
        owner_first = (owner + key).argsort(stable=True)  # below 2**20 owners of 32-bit keys: float64 keeps both
        owner, row, column = owner[owner_first], row[owner_first], column[owner_first]
        here = torch.bincount(owner, minlength=degree.numel())
        rank = torch.arange(owner.numel(), device=ids.device) - (here.cumsum(0) - here)[owner]
        taken = (rank < self.max_partners).nonzero().squeeze(1)
        hit = at[owner[taken] % seeds.shape[1]] + 1 + rank[taken]
        first_hit.view(-1).scatter_reduce_(0, row[taken] * columns + column[taken], hit.int(), "amin")
