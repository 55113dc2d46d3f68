"""Shared fixtures. Set CORRMASK_DATA to a folder of real cells to run the tests that need them."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

# The tests keep compiled kernels to themselves, in a folder for each text of the kernels.
# This must stand before the first import of Numba.
_KERNELS = Path(__file__).resolve().parents[1] / "kernels"
_TEXT = b"".join(path.read_bytes() for path in sorted(_KERNELS.glob("*.py")))
os.environ["NUMBA_CACHE_DIR"] = str(
    Path(tempfile.gettempdir()) / f"corrmask-numba-{os.getuid()}-{hashlib.sha256(_TEXT).hexdigest()[:16]}"
)

import numpy as np
import pytest

from corrmask_fast import Corpus, Vocabulary

# Helpers that check tell what differs, as tests do.
pytest.register_assert_rewrite("graph_cases")

# Scripts that tests start as processes of their own, and what test files share: no tests in them.
collect_ignore_glob = ["ddp_rank.py", "guarded_rows.py", "trainers.py", "*_cases.py"]


@pytest.fixture(autouse=True)
def clean_environment():
    """Old versions of transformers leave the settings of a compiled run in the environment, for the next run."""
    before = {name for name in os.environ if name.startswith("ACCELERATE_")}
    yield
    for name in [name for name in os.environ if name.startswith("ACCELERATE_") and name not in before]:
        del os.environ[name]


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """Folder of real cells; the test is skipped where there is none."""
    folder = Path(os.environ.get("CORRMASK_DATA", ""))
    if not os.environ.get("CORRMASK_DATA") or not folder.is_dir():
        pytest.skip("real cells: set CORRMASK_DATA to a folder with pbmc3k.h5ad and geneformer/ to run this")
    return folder


@pytest.fixture(scope="session")
def pbmc(data_folder, tmp_path_factory) -> Corpus:
    """PBMC 3k with Geneformer's dictionaries, as a datasets folder."""
    from corrmask_fast import read_corpus, tokenize

    folder = data_folder / "geneformer"
    vocabulary = Vocabulary.from_token_dictionary(folder / "token_dictionary.json", folder / "gene_name_id_dict.json")
    path = tmp_path_factory.mktemp("pbmc") / "pbmc.dataset"
    medians = folder / "gene_median_dictionary.json"
    tokenize(data_folder / "pbmc3k.h5ad", path, vocabulary, medians, progress=False)
    return read_corpus(path, vocabulary)


def make_vocabulary(n_genes: int, *, v2: bool = False) -> Vocabulary:
    """A vocabulary of ``n_genes`` genes G0, G1, … behind the special tokens."""
    special = ("<pad>", "<mask>", "<cls>", "<eos>") if v2 else ("<pad>", "<mask>")
    return Vocabulary(special + tuple(f"G{i}" for i in range(n_genes)))


def make_corpus(n_cells: int, n_genes: int, *, seed: int = 0, max_length: int | None = None) -> Corpus:
    """Random cells of very different lengths over genes of very different abundance."""
    rng = np.random.default_rng(seed)
    vocabulary = make_vocabulary(n_genes)
    weight = rng.gamma(0.5, size=n_genes) + 1e-6
    module = rng.integers(0, 5, n_genes)
    cells = []
    for _ in range(n_cells):
        strength = rng.gamma(weight) * np.where(module == rng.integers(5), 4.0, 1.0)
        order = np.argsort(-strength, kind="stable")
        cells.append(order[: rng.integers(0, n_genes + 1)] + 2)
    indptr = np.concatenate([[0], np.cumsum([cell.size for cell in cells])])
    return Corpus(indptr, np.concatenate(cells or [np.empty(0, np.int64)]), vocabulary, max_length=max_length)


@pytest.fixture
def obeys_permissions(monkeypatch) -> None:
    """Folders that may not be written to are so for root too, whom the system lets write everywhere."""
    if os.geteuid() == 0:
        monkeypatch.setattr(os, "access", lambda path, mode: bool(Path(path).stat().st_mode & 0o200 or not mode & 2))


@pytest.fixture(scope="session")
def vocabulary() -> Vocabulary:
    """Thirty genes, V1."""
    return make_vocabulary(30)


@pytest.fixture(scope="session", name="make_corpus")
def make_corpus_fixture():
    """The function make_corpus (test files cannot import it)."""
    return make_corpus


@pytest.fixture(scope="module")
def one_thread():
    """One thread for PyTorch: small layers lose more by waiting for other threads than they gain."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def cuda_host() -> SimpleNamespace:
    """CUDA kernels on the CPU: the modules of tests/cuda_host; the test is skipped where they cannot run."""
    folder = Path(__file__).parent / "cuda_host"
    sys.path.insert(0, str(folder))
    try:
        found = {name: importlib.import_module(name) for name in ("launch", "masking", "graph", "sanitize")}
    finally:
        sys.path.remove(str(folder))
    if reason := found["launch"].missing():
        pytest.skip(reason)
    return SimpleNamespace(folder=folder, **found)


@pytest.fixture
def emulated_cuda(cuda_host, monkeypatch) -> Any:
    """A device that is the CPU: the loader takes CPU tensors where CUDA tensors would come; kernels are emulated.

    Returns the stand-in for CuPy (what was compiled and launched); its ``device`` is the loader's.
    """
    import torch

    from corrmask_fast import cuda

    fake = cuda_host.launch.FakeCuPy()
    monkeypatch.setitem(sys.modules, "cupy", fake)
    monkeypatch.setattr(torch.cuda, "device", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda index: 1000 + index, raising=False)
    fake.device = cuda.CudaDevice(3)
    monkeypatch.setattr(cuda, "open_device", lambda _: fake.device)
    return fake


@pytest.fixture(scope="session")
def gpu() -> Any:
    """The CUDA device; the test is skipped where there is none."""
    import torch

    if not torch.cuda.is_available():
        pytest.skip("no CUDA device: the kernels were only emulated")
    pytest.importorskip("cupy", reason="CuPy is not installed: pip install 'corrmask-fast[cuda13]'")
    return torch.device("cuda", torch.cuda.current_device())


# ----------------------------------------------------------------------------------------------------- the command line


@pytest.fixture(scope="session")
def made_up_cells() -> Any:
    """Cells with planted modules and types."""
    from corrmask_fast.synthetic import generate_cells

    return generate_cells(300, 120, n_modules=4, n_types=2, seed=1)


@pytest.fixture(scope="session")
def cli_folder(tmp_path_factory, made_up_cells) -> Path:
    """A corpus of 300 cells (``cells.npz``), its graph, its token dictionary."""
    from corrmask_fast import read_corpus, write_corpus
    from corrmask_fast.cli.main import main

    folder = tmp_path_factory.mktemp("cli")
    ranked = [np.lexsort((row.indices, -row.data)) for row in made_up_cells.counts]
    write_corpus(
        read_corpus(
            [row.indices[order] + 2 for row, order in zip(made_up_cells.counts, ranked, strict=True)],
            made_up_cells.vocabulary,
        ),
        folder / "cells.npz",
    )
    options = ["--min-cooccurrence", "30", "--min-presence", "20", "--no-progress"]
    assert main(["graph", "build", f"{folder}/cells.npz", "-o", f"{folder}/graph.safetensors", *options]) == 0
    tokens = {name: token for token, name in enumerate(made_up_cells.vocabulary.names)}
    (folder / "tokens.json").write_text(json.dumps(tokens))
    return folder


@pytest.fixture(scope="session")
def run():
    """Run a command as a process of its own; returns what it printed and its exit code."""
    return lambda *command: subprocess.run(list(map(str, command)), check=False, capture_output=True, text=True)


@pytest.fixture
def fails(capsys):
    """Run a command that must fail: one line on stderr, exit code 2."""

    from corrmask_fast.cli.main import main

    def fail(*arguments):
        capsys.readouterr()
        assert main([str(argument) for argument in arguments]) == 2
        out, err = capsys.readouterr()
        err = "".join(line for line in err.splitlines(True) if "compiling kernels" not in line)  # the first time
        assert out == ""
        assert err.startswith("corrmask-fast: error: ")
        assert err.count("\n") == 1
        return err

    return fail
