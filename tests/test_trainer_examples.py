"""The examples of docs/how-to/other-trainers.md: each holds its interrupted runs to one at once."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[1] / "docs"
NEEDS = {
    "plain_loop": [], "accelerate_loop": ["accelerate"], "stateful_loader": ["torchdata"],
    "lightning_run": ["lightning", "torchdata"],
}  # fmt: skip


@pytest.mark.parametrize("name", NEEDS)
def test_an_example_resumes_exactly(name):
    for package in NEEDS[name]:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed; .ci/lightning runs this example")
    run = [sys.executable, "-W", "ignore", str(DOCS / "examples" / "trainers" / f"{name}.py")]
    done = subprocess.run(run, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert re.fullmatch(r"\d+ steps, loss .*; the same after interruptions at [\d, ]+\n", done.stdout)


def test_every_example_is_on_the_page():
    page = (DOCS / "how-to" / "other-trainers.md").read_text()
    assert set(re.findall(r"\(\.\./examples/trainers/(\w+)\.py\)", page)) == set(NEEDS)
    assert {path.stem for path in (DOCS / "examples" / "trainers").glob("*.py")} == {*NEEDS, "cells"}
