"""FSDP2 on two processes (gloo) against one process: the same masks, loss and weights, with the sparse head."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers", minversion="4.46")
if not torch.distributed.is_gloo_available():
    pytest.skip("this PyTorch has no gloo", allow_module_level=True)

from test_sparse_head import MASKER, make_pair
from two_ranks import run_two_ranks

STEPS, CELLS = 3, 8


def cells():
    """Return (CELLS, 20) different cells."""
    generator = torch.Generator().manual_seed(0)
    return torch.stack([2 + torch.randperm(60, generator=generator)[:20] for _ in range(CELLS)])


def train(model, rows, world_size=1):
    """Train on these cells of each step; return masks and losses of this process."""
    optimizer, batches, losses = torch.optim.SGD(model.parameters(), lr=0.5), [], []
    for step in range(STEPS):
        masked = MASKER(rows, epoch=step)
        count = (masked.labels != -100).sum()
        if world_size > 1:
            torch.distributed.all_reduce(count)
        loss = model(**masked._asdict(), num_items_in_batch=count).loss
        (loss * world_size).backward()  # the mean over ranks is taken of gradients
        optimizer.step()
        optimizer.zero_grad()
        batches.append(masked.input_ids)
        losses.append(loss.detach())
    return {"batches": torch.stack(batches), "losses": torch.stack(losses)}


def main(folder):
    """Train as one of two ranks."""
    from torch.distributed.fsdp import fully_shard

    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    rank, mesh = int(os.environ["RANK"]), torch.distributed.init_device_mesh("cpu", (2,))
    _, model = make_pair()
    for layer in model.bert.encoder.layer:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    assert type(next(model.parameters())).__name__ == "DTensor"
    found = train(model, cells().chunk(2)[rank], world_size=2)
    found["weights"] = {name: weight.full_tensor().detach() for name, weight in model.named_parameters()}
    torch.save(found, folder / f"rank-{rank}.pt")
    os._exit(0)  # gloo's threads can abort an interpreter that ends


@pytest.mark.skipif(
    not hasattr(torch.distributed, "fsdp") or not hasattr(torch.distributed.fsdp, "fully_shard"),
    reason="this PyTorch has no FSDP2",
)
def test_two_ranks_are_one(tmp_path, one_thread):
    ranks = run_two_ranks(__file__, tmp_path)
    _, model = make_pair()
    alone = train(model, cells())
    assert torch.equal(torch.cat([rank["batches"] for rank in ranks], dim=1), alone["batches"])
    torch.testing.assert_close(ranks[0]["losses"] + ranks[1]["losses"], alone["losses"])
    before = dict(make_pair()[1].named_parameters())
    for name, weight in model.named_parameters():
        assert (weight - before[name]).norm() > 0 or "key.bias" in name
        for rank in ranks:
            torch.testing.assert_close(rank["weights"][name], weight, rtol=1e-4, atol=1e-6, msg=name)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
