"""Benches are scripts beside each other: put their folder on the path, and make the workload once."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import pytest


@pytest.fixture(scope="session")
def workload(tmp_path_factory):
    """Tiny cells and their graph, one thread."""
    import torch
    from harness.workload import SMOKE, make_workload

    from corrmask_fast import get_num_threads, set_num_threads

    threads = torch.get_num_threads(), get_num_threads()
    torch.set_num_threads(1)
    set_num_threads(1)
    yield make_workload(SMOKE, tmp_path_factory.mktemp("bench"))
    torch.set_num_threads(threads[0])
    set_num_threads(threads[1])
