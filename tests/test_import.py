"""Importing the package costs no more than importing NumPy, and loads nothing else that is heavy."""

from __future__ import annotations

import subprocess
import sys

import pytest

import corrmask_fast

HEAVY = ("torch", "numba", "llvmlite", "scipy", "transformers", "datasets", "pyarrow", "pandas", "h5py", "anndata",
         "safetensors", "matplotlib", "cupy", "tqdm", "networkx", "threadpoolctl")  # fmt: skip
ALLOWED_SECONDS = 0.05


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize(
    "statement",
    [
        "import corrmask_fast",
        "from corrmask_fast import Corpus, Vocabulary, read_corpus, InputError, reference",
        "import corrmask_fast.cli.main",
    ],
)
def test_nothing_heavy_is_loaded(statement):
    loaded = run(f"{statement}; import sys; print(*sys.modules)").split()
    assert "corrmask_fast" in loaded
    assert not set(HEAVY) & {name.partition(".")[0] for name in loaded}


def test_the_oracle_needs_nothing_at_all():
    loaded = run("import corrmask_fast.reference, sys; print(*sys.modules)").split()
    assert not {*HEAVY, "numpy"} & {name.partition(".")[0] for name in loaded}


def test_it_takes_no_longer_than_numpy():
    clock = "import time; begin = time.perf_counter(); {}; print(time.perf_counter() - begin)"
    ours, numpy = [], []
    for _ in range(7):  # side by side, so that a busy moment meets both
        numpy.append(float(run(clock.format("import numpy"))))
        ours.append(float(run(clock.format("import numpy, corrmask_fast"))))
    assert min(ours) - min(numpy) <= ALLOWED_SECONDS


def test_every_public_name_is_there():
    assert corrmask_fast.__all__ == dir(corrmask_fast)
    for name in corrmask_fast.__all__:
        assert getattr(corrmask_fast, name).__name__ == name or name == "tokenize_h5ad"
    assert corrmask_fast.tokenize_h5ad is corrmask_fast.tokenize
