"""Damaged files end in the right cells or in InputError: a hundred AnnData files and eighty of other kinds.

``make fuzz`` runs 20 000 of each; ``python tests/fuzz anndata --seed S --only N`` runs one of them again.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

FUZZ = Path(__file__).parent / "fuzz"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="each file is read in a forked child process")
@pytest.mark.parametrize(("what", "files", "seed"), [("anndata", 100, 3), ("others", 80, 0)])
def test_damaged_files_are_read_rightly_or_refused(what, files, seed, tmp_path):
    for module in ("hypothesis", "anndata", "datasets"):
        pytest.importorskip(module, reason=f"the fuzzer needs {module}")
    command = [sys.executable, FUZZ, what, "--files", files, "--seed", seed, "--jobs", 1, "--keep", tmp_path / "bad"]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
    assert f"{files} files: " in done.stdout
