"""Importing the package costs no more than importing NumPy, and loads nothing else that is heavy."""

from __future__ import annotations

import subprocess
import sys

import pytest

import corrmask_fast

HEAVY = ("torch", "numba", "llvmlite", "scipy", "transformers", "datasets", "pyarrow", "pandas", "h5py", "anndata",
         "safetensors", "matplotlib", "cupy", "tqdm", "networkx", "threadpoolctl")  # fmt: skip


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


@pytest.mark.parametrize(
    ("statement", "own", "others"), [("import corrmask_fast", 3, 0), ("import corrmask_fast.cli.main", 40, 30)]
)
def test_few_modules_come_beside_numpy_s(statement, own, others):
    """The time of an import goes with the modules that it executes; counts do not depend on the machine."""
    modules = "; import sys; print(*sys.modules)"
    loaded = set(run(f"import numpy; {statement}{modules}").split()) - set(run(f"import numpy{modules}").split())
    ours = {name for name in loaded if name.partition(".")[0] == "corrmask_fast"}
    assert len(ours) <= own, ours
    assert len(loaded - ours) <= others, loaded - ours
    assert {name.partition(".")[0] for name in loaded - ours} <= sys.stdlib_module_names


def test_every_public_name_is_there():
    assert set(dir(corrmask_fast)) - set(corrmask_fast.__all__) == {"CorrMaskLightningCallback"}  # test_lightning.py
    for name in corrmask_fast.__all__:
        assert getattr(corrmask_fast, name).__name__ == name or name == "tokenize_h5ad"
    assert corrmask_fast.tokenize_h5ad is corrmask_fast.tokenize


def test_without_lightning_its_callback_names_the_extra():
    code = (
        "import sys; sys.modules['lightning'] = sys.modules['pytorch_lightning'] = None\n"
        "import corrmask_fast\n"
        "try:\n    corrmask_fast.CorrMaskLightningCallback\n"
        "except corrmask_fast.MissingExtraError as error:\n    print(error)"
    )
    assert "install it with: pip install 'corrmask-fast[lightning]'" in run(code)
