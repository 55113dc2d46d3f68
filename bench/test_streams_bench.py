"""The bench of streams runs, and its contestants hand out every cell."""

from __future__ import annotations

from streams import contestants


def test_every_contestant_hands_out_the_same_masked_cells(workload, tmp_path):
    for one in contestants(workload, tmp_path, workload.size.batches[0]):  # checked by it
        assert one.rows == workload.corpus.n_cells
        one.run()
