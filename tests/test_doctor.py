"""`corrmask-fast doctor`: what it says of a whole installation, and of what is missing or broken."""

from __future__ import annotations

import getpass
import importlib.metadata
import platform
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from corrmask_fast.cli import doctor
from corrmask_fast.cli.main import main

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]


class Metadata(dict):
    def get_all(self, name):
        return self[name]


def replace_distribution(monkeypatch, make):
    """Let the metadata of this package come from a function; Numba asks for that of others."""
    real = importlib.metadata.distribution
    monkeypatch.setattr(
        importlib.metadata, "distribution", lambda name: make() if name == "corrmask-fast" else real(name)
    )


@pytest.fixture
def installed(monkeypatch):
    """The metadata of this checkout, as pip writes it, and versions that a test changes; None: not installed."""
    own = [*PROJECT["dependencies"]]
    for extra, requirements in PROJECT["optional-dependencies"].items():
        own += [f'{one.partition(";")[0]}; extra == "{extra}"' for one in requirements]
    extras = Metadata({"Provides-Extra": list(PROJECT["optional-dependencies"])})
    replace_distribution(monkeypatch, lambda: SimpleNamespace(requires=own, metadata=extras))
    versions = {"lightning": "2.6.0", "cupy-cuda12x": None, "cupy-cuda13x": None, "igraph": "1.0.0", "shtab": "1.7.1"}
    real = importlib.metadata.version

    def version(name):
        if versions.get(name, "") is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return versions.get(name) or real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    return versions


def lines_of(capsys, code):
    """Run the command; its lines, without what kernels say that are compiled."""
    assert main(["doctor"]) == code
    return capsys.readouterr().out.splitlines()


def test_a_whole_installation(installed, capsys):
    lines = lines_of(capsys, 0)
    assert lines[0].split()[0] == "corrmask-fast"
    text = "\n".join(lines)
    for pattern in (
        rf"\nPython +{platform.python_version()}\n",
        rf"\n  numba +{importlib.metadata.version('numba')}\n",
        r"\n  torch +\S+  \(built for ",
        r"\n  cupy-cuda12x +not installed",
        r"\n  zarr +\d",
        r"\n  threads +\d+ \(CORRMASK_NUM_THREADS is not set: all cores\)\n",
        r"\n  folder +\S+ \(can be written to\)\n",
        r"\n  CPU  works: 8 cells masked as the pure-Python reference masks them; \d+ µs a cell",
    ):
        assert re.search(pattern, text), pattern
    assert "does not work" not in text
    assert "not installed" not in lines  # no such part


def test_every_extra_has_a_purpose():
    assert set(doctor.PURPOSES) == set(PROJECT["optional-dependencies"]) - doctor.FOR_DEVELOPERS


def test_what_is_missing_or_too_old(installed, capsys):
    installed |= {"matplotlib": None, "igraph": None, "numba": "0.70.0"}
    text = "\n".join(lines_of(capsys, 0))
    assert re.search(r"matplotlib \(pictures\) +pip install 'corrmask-fast\[plot\]'\n", text)
    assert re.search(r"igraph \(modules by the Leiden algorithm\) +pip install 'corrmask-fast\[leiden\]'\n?", text)
    assert re.search(r"\n  numba +0.70.0  not <0.69,>=0.61\n", text)
    assert re.search(
        r"numba <0.69,>=0.61 \(here is 0.70.0, which was not tried\) +pip install 'numba<0.69,>=0.61'", text
    )


def test_cupy_is_missing_where_pytorch_has_cuda(installed, monkeypatch, capsys):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    text = "\n".join(lines_of(capsys, 0))
    assert re.search(
        r"cupy-cuda13x \(masks and graphs on an NVIDIA GPU, CUDA 13\) +pip install 'corrmask-fast\[cuda13\]'", text
    )
    assert re.search(r"cupy-cuda12x +not installed; not needed by this PyTorch\n", text)
    assert re.search(r'device="cuda" +refused: PyTorch \(\S+\) sees no CUDA device; look at nvidia-smi', text)


@pytest.mark.skipif(torch.version.cuda is not None, reason="a CUDA build of PyTorch")
def test_why_cuda_is_refused(installed, capsys):
    text = "\n".join(lines_of(capsys, 0))
    assert re.search(r'device="cuda" +refused: this PyTorch \(\S+\) is built without CUDA; install a CUDA build', text)


def test_masks_that_differ_from_the_reference(installed, monkeypatch, capsys):
    from corrmask_fast.testing import Case

    case = Case.expected
    monkeypatch.setattr(Case, "expected", lambda self, **given: case(self, **given | {"seed": 1}))
    lines = lines_of(capsys, 1)
    assert lines[-2] == "does not work"
    assert re.match(r"  CPU  AssertionError: masks on cpu: input_ids\[\d, \d+\] must be ", lines[-1])


def test_broken_installations_end_in_lines(installed, monkeypatch, capsys):
    broken = SimpleNamespace(find_spec=lambda _: True)
    monkeypatch.setattr(doctor.importlib, "util", broken)
    monkeypatch.setitem(sys.modules, "cupy", None)
    monkeypatch.setattr(doctor, "_processor", lambda: 1 / 0)
    monkeypatch.setenv("CORRMASK_NUM_THREADS", "many")
    text = "\n".join(lines_of(capsys, 1))
    assert re.search(r"\n  CuPy +does not work: ModuleNotFoundError: ", text)
    assert "\nmachine\n  failed  ZeroDivisionError: division by zero" in text
    assert "Traceback" not in text


def test_a_pytorch_that_does_not_load(installed, monkeypatch, capsys):
    def broken():
        raise OSError("libcudart.so.13: cannot open shared object file")

    monkeypatch.setattr(doctor, "_build_of_torch", broken)
    text = "\n".join(lines_of(capsys, 1))
    assert re.search(r"\n  torch +does not work: OSError: libcudart.so.13: cannot open", text)
    assert re.search(r"\n  transformers +", text)  # what follows is listed all the same


def test_a_folder_that_is_not_installed(monkeypatch, capsys):
    def distribution():
        raise importlib.metadata.PackageNotFoundError

    replace_distribution(monkeypatch, distribution)
    text = "\n".join(lines_of(capsys, 0))
    assert re.search(r"\n  corrmask-fast +is not installed \(it runs from a folder\)", text)
    assert re.search(rf"\n  numba +{importlib.metadata.version('numba')}\n", text)


def test_no_names_of_the_user_and_the_machine(monkeypatch):
    monkeypatch.setattr(Path, "home", lambda: Path("/home/anna"))
    monkeypatch.setattr(getpass, "getuser", lambda: "anna")
    monkeypatch.setattr(platform, "node", lambda: "lab-7")
    text = doctor._without_names("/home/anna/cache /home/anna-lena /scratch/anna/x lab-7 hannah lab-70")
    assert text == "~/cache /home/anna-lena /scratch/USER/x HOST hannah lab-70"


@pytest.mark.parametrize("home", ["/", "", None])
def test_without_a_home_folder(monkeypatch, home):
    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(getpass, "getuser", lambda: "")
    monkeypatch.setattr(platform, "node", lambda: "")
    if home is None:
        monkeypatch.setattr(Path, "home", no_home)
    else:
        monkeypatch.setenv("HOME", home)
    assert doctor._without_names("/scratch/x.y") == "/scratch/x.y"


def test_cupy_that_conda_installed(installed, monkeypatch, capsys):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    installed["cupy"] = "13.6.0"
    text = "\n".join(lines_of(capsys, 0))
    assert re.search(r"\n  cupy-cuda13x +not installed; the package cupy is\n", text)
    assert "pip install 'corrmask-fast[cuda13]'" not in text


def test_nothing_but_the_report_is_printed(tmp_path):
    command = [sys.executable, "-m", "corrmask_fast", "doctor"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0
    assert all("compiling kernels" in line for line in result.stderr.splitlines())
    assert str(Path.home()) not in result.stdout
