"""A script run as two ranks of one process group (gloo), each of which saves what it saw."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import torch


def run_two_ranks(script, folder):
    """Run ``script`` with ``folder`` as its argument on two ranks; return what they saved there as ``rank-R.pt``."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    shared |= {"LOCAL_WORLD_SIZE": "2", "ACCELERATE_USE_CPU": "true"}
    started = [
        subprocess.Popen(
            [sys.executable, str(script), str(folder)],
            env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        said = [process.communicate(timeout=240)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    assert all(process.returncode == 0 for process in started), "\n".join(text[-3000:] for text in said)
    return [torch.load(folder / f"rank-{rank}.pt", weights_only=True) for rank in range(2)]
