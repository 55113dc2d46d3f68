"""Measure in a separate process: it has its own peak memory, and one that fails does not stop the bench."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS", "CORRMASK_NUM_THREADS")


TO_PREPARE_S = 120  # beside the limit: loading, reading, bringing cells into the form that a peer likes


def measure(script: str, python: str = sys.executable, *, threads: int, limit_s: float, **what: Any) -> dict[str, Any]:
    """Run ``script`` of this folder with ``what`` as JSON; return the JSON object that it prints last.

    Where it fails, the object holds ``error``: why, in a line; and ``too_long`` where it ended itself at its limit.
    """
    environment = os.environ | dict.fromkeys(THREADS, str(threads))
    command = [python, str(HERE / script), json.dumps({"threads": threads, "limit_s": limit_s, **what}, default=str)]
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=False, timeout=limit_s + TO_PREPARE_S
        )
    except subprocess.TimeoutExpired:
        return {"error": f"took longer than {limit_s + TO_PREPARE_S:.0f} s, preparation included"}
    lines = done.stdout.splitlines()
    if done.returncode == 0:
        return json.loads(lines[-1])
    if done.returncode == -signal.SIGALRM:
        return {"too_long": True, "error": f"takes longer than {limit_s:.0f} s"} | (
            json.loads(lines[-1]) if lines else {}
        )
    if done.returncode == -signal.SIGKILL:
        return {"error": "killed, most likely for want of memory"}
    return {"error": (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]}
