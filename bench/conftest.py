"""Benches are scripts beside each other: put their folder on the path, and make the workload once."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import pytest


@pytest.fixture(scope="session")
def workload(request, tmp_path_factory):
    """Cells and their graph, one thread: full size with --benchmark-enable, tiny without."""
    import torch
    from harness.workload import SMOKE, Size, make_workload

    from corrmask_fast import get_num_threads, set_num_threads

    threads = torch.get_num_threads(), get_num_threads()
    torch.set_num_threads(1)
    set_num_threads(1)
    full = request.config.getoption("benchmark_enable")
    folder = Path(__file__).parents[1] / "build" / "bench" if full else tmp_path_factory.mktemp("bench")
    yield make_workload(Size() if full else SMOKE, folder)
    torch.set_num_threads(threads[0])
    set_num_threads(threads[1])
