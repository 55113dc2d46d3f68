"""Two processes (gloo) against one: the same cells, masks, losses and gradients."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers", minversion="4.46")
pytest.importorskip("accelerate")
if not torch.distributed.is_gloo_available():
    pytest.skip("this PyTorch has no gloo", allow_module_level=True)

from trainers import assert_masked_as_in
from two_ranks import run_two_ranks

pytestmark = pytest.mark.usefixtures("one_thread")

HERE = Path(__file__).parent
RUNS = (("worker", 1), ("device", 2), ("learned", 2))


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What each of two ranks saw, wherever the masks came from."""
    folder = tmp_path_factory.mktemp("ddp")
    return folder, run_two_ranks(HERE / "ddp_rank.py", folder)


def rows_of(batches):
    """Cell → its masked row and labels, without padding."""
    found = {}
    for batch in batches:
        for row, seen in enumerate(batch["attention_mask"] == 1):
            ids, labels = batch["input_ids"][row][seen], batch["labels"][row][seen]
            cell = tuple(torch.where(labels == -100, ids, labels).tolist())
            found[cell] = ids.tolist(), labels.tolist()
    return found


@pytest.mark.parametrize(("masking", "accumulated"), RUNS)
def test_two_processes_train_as_one(ranks, tmp_path, monkeypatch, masking, accumulated):
    monkeypatch.syspath_prepend(HERE)
    import ddp_rank

    assert ddp_rank.RUNS == RUNS
    alone = ddp_rank.run(tmp_path, masking, accumulated, 4)
    one, other = (rank[masking] for rank in ranks[1])
    assert (one["rank"], other["rank"]) == (0, 1)
    assert len(alone["losses"]) == len(one["losses"]) == len(other["losses"]) == 6 * accumulated
    for step in range(6 * accumulated):
        together = rows_of([one["batches"][step], other["batches"][step]])
        assert together == rows_of([alone["batches"][step]])
        assert (one["losses"][step] + other["losses"][step]) / 2 == pytest.approx(alone["losses"][step], rel=1e-4)
    assert one["said"] == pytest.approx(alone["said"], rel=1e-4)
    for mine, theirs, both in zip(one["gradients"], other["gradients"], alone["gradients"], strict=True):
        assert torch.equal(mine, theirs)
        torch.testing.assert_close(mine, both, rtol=1e-3, atol=1e-5)
    for mine, theirs in zip(one["weights"], other["weights"], strict=True):
        assert torch.equal(mine, theirs)
    assert one["evaluation"] == pytest.approx(other["evaluation"])
    assert one["evaluation"] == pytest.approx(alone["evaluation"], rel=1e-4)  # no cell counts twice
    for trained in (one, other, alone):
        assert trained["prediction"] == pytest.approx(trained["evaluation"], rel=1e-6)
    assert not [name for name in one["buffers"] if "neighbor" in name or "draw" in name]  # DDP broadcasts buffers


@pytest.mark.parametrize("masking", ["worker", "device"])
def test_two_processes_pass_through_a_stream_as_one(ranks, tmp_path, monkeypatch, masking):
    """21 cells, four a step: the last step of a pass is filled up with its first cells; each pass is an epoch."""
    monkeypatch.syspath_prepend(HERE)
    import ddp_rank

    both = [rank["streams"][masking] for rank in ranks[1]]
    assert [one["steps"] for one in both] == [8, 8]
    cells = ddp_rank.make_cells(21, seed=6)
    for step, batches in enumerate(zip(*(one["batches"] for one in both), strict=True)):
        k = 4 * (step % 6)
        assert list(rows_of(batches)) == [tuple(cells[i % 21]) for i in range(k, k + 4)]
        assert_masked_as_in(batches, step // 6)


def test_two_processes_read_a_stream_once(ranks, monkeypatch):
    """Without a Trainer, each rank reads its own share."""
    monkeypatch.syspath_prepend(HERE)
    import ddp_rank

    one, other = (rank["share"] for rank in ranks[1])
    cells = ddp_rank.make_cells(21, seed=6)
    assert (one, other) == (cells[::2], cells[1::2])


def test_the_command_line_in_two_processes_logs_what_it_does_in_one(ranks, tmp_path, monkeypatch):
    """Eleven held-out cells: none counts twice; warm-up by the steps of both together; one process speaks."""
    monkeypatch.syspath_prepend(HERE)
    import ddp_rank

    folder, (one, other) = ranks
    assert "steps; the model lies in" in one["said"]
    assert "the model lies in" not in other["said"]
    ddp_rank.command_line(tmp_path, 4)
    logs = []
    for run in (folder / "run", tmp_path / "run"):
        with (run / "log.csv").open() as file:
            logs.append(list(csv.DictReader(file)))
    for name, tolerance in (("learning_rate", 0), ("loss", 1e-4), ("eval_loss", 1e-4)):
        together, alone = ([float(row[name]) for row in log if row[name]] for log in logs)
        assert together == pytest.approx(alone, rel=tolerance), name
        assert alone
