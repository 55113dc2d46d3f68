"""Memory safety of the masking kernels: arrays between closed pages, in a process that a fault may end."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="pages are closed as Linux does it")
SCRIPT = Path(__file__).with_name("guarded_rows.py")


def run_guarded(what):
    return subprocess.run([sys.executable, str(SCRIPT), what], capture_output=True, text=True, check=False, timeout=300)


@pytest.mark.parametrize("table", ["uint16", "int32"])
def test_masking_stays_inside_its_arrays(table):
    """Every strategy, rows with every length of a vector's tail, genes with 0 … 300 neighbours, and hubs."""
    process = run_guarded(table)
    last = process.stdout.strip().rpartition("\n")[2]
    assert process.returncode == 0, f"ended with {process.returncode} in: {last}\n{process.stderr}"


def test_guards_catch_what_goes_beyond():
    assert run_guarded("after").returncode == -signal.SIGSEGV
    process = run_guarded("before")
    assert process.returncode == 1
    assert "trodden was written to in front of its begin" in process.stderr
