"""What grows, and nothing else."""

import growth
import numpy as np


def test_cells_of_all_lengths_have_one_graph():
    graphs, cells = zip(*(growth.made_up(4, length, 8, longest=512) for length in (128, 512)), strict=True)
    assert graphs[0].fingerprint == graphs[1].fingerprint
    for ids, length in zip(cells, (128, 512), strict=True):
        assert all(len(set(cell)) == length for cell in ids.tolist())
        linked = graphs[0].degrees[ids.numpy()] > 0
        np.testing.assert_allclose(linked.mean(), growth.LINKED, atol=0.01)
