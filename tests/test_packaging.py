"""One version, kernels in their place, a command that starts, a cache that knows how old it is."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import corrmask_fast

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def run(*command, **keywords):
    return subprocess.run(command, capture_output=True, text=True, check=True, **keywords).stdout


def test_the_version_stands_in_one_place():
    assert PROJECT["project"]["dynamic"] == ["version"]
    assert PROJECT["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "corrmask_fast.__version__"}
    assert re.fullmatch(r"\d+\.\d+\.\d+", corrmask_fast.__version__)
    assert importlib.metadata.version("corrmask-fast") == corrmask_fast.__version__


def test_kernels_are_reached_through_the_package_alone(monkeypatch):
    link = ROOT / "corrmask_fast" / "kernels"
    assert link.is_symlink()
    assert link.readlink() == Path("../kernels")
    assert Path(importlib.util.find_spec("corrmask_fast.kernels").origin).resolve() == ROOT / "kernels" / "__init__.py"
    # `python -m pytest` shows the folder that it runs in, where anything can be imported.
    monkeypatch.setattr(sys, "path", [path for path in sys.path if Path(path).resolve() != ROOT])
    spec = importlib.util.find_spec("kernels")
    assert spec is None or ROOT not in Path(spec.origin).parents, "a top-level package `kernels` came along"


def test_the_wheel_takes_every_source():
    setuptools = PROJECT["tool"]["setuptools"]
    folders = {
        package: ROOT / setuptools["package-dir"].get(package, package.replace(".", "/"))
        for package in setuptools["packages"]
    }
    for package, folder in folders.items():
        patterns = ["*.py", *setuptools["package-data"].get(package, ())]
        taken = {path for pattern in patterns for path in folder.glob(pattern)}
        files = {path for path in folder.iterdir() if path.is_file()}
        assert files == taken, f"{package}: not in the wheel: {files - taken}"
        inside = {path for path in folder.iterdir() if any(path.glob("*.py")) and not path.is_symlink()}
        assert inside <= set(folders.values()), f"{package}: folders that no wheel takes"


def test_every_extra_that_an_error_names_exists():
    extras = set(PROJECT["project"]["optional-dependencies"])
    assert extras >= {"cuda12", "cuda13", "hf", "anndata", "plot", "dev"}
    text = "".join(path.read_text() for path in (ROOT / "corrmask_fast").rglob("*.py"))
    named = set(re.findall(r'import_extra\(\s*"[\w.]+",\s*"(\w+)"', text))
    assert named
    assert named <= extras


def test_the_command_is_installed():
    (entry,) = importlib.metadata.entry_points(group="console_scripts", name="corrmask-fast")
    assert entry.value == PROJECT["project"]["scripts"]["corrmask-fast"]
    assert entry.load() is importlib.import_module("corrmask_fast.cli.main").main
    command = Path(sys.executable).with_name("corrmask-fast")
    assert run(command, "--version").split() == ["corrmask-fast", corrmask_fast.__version__]
    assert run(sys.executable, "-P", "-m", "corrmask_fast", "--version") == run(command, "--version")


def test_a_cached_kernel_is_made_anew_when_what_it_calls_changes(tmp_path):
    package = tmp_path / "small"
    package.mkdir()
    for name, text in {
        "__init__": "",
        "jit": (ROOT / "kernels" / "jit.py").read_text(),
        "part": "from .jit import stage\n@stage\ndef part(x):\n    return x + 1\n",
        "whole": "from .jit import kernel\nfrom .part import part\n@kernel\ndef whole(x):\n    return part(x)\n",
    }.items():
        (package / f"{name}.py").write_text(text)
    program = "from small.whole import whole; print(whole(1), sum(whole.stats.cache_hits.values()))"

    def call():
        environment = {"NUMBA_CACHE_DIR": str(tmp_path / "cache"), "PATH": ""}
        return run(sys.executable, "-c", program, cwd=tmp_path, env=environment).split()

    assert call() == ["2", "0"]
    assert call() == ["2", "1"]
    (package / "part.py").write_text((package / "part.py").read_text().replace("x + 1", "x + 2"))
    assert call() == ["3", "0"]
