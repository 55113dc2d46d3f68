"""Progress: a bar on a terminal, whole lines in a file, nothing from other ranks; kernels that are compiled."""

from __future__ import annotations

import io
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from corrmask_fast import progress
from corrmask_fast.progress import bars, progress_bar, silent_bar


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """A clock that a test moves."""
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_lines_where_there_is_no_terminal(clock, capsys):
    with progress_bar("audit", 100, "cell", shown=True) as bar:
        for _ in range(100):  # 50 seconds
            clock[0] += 0.5
            bar.update(1)
    out, err = capsys.readouterr()
    assert out == ""
    assert "\r" not in err
    lines = err.splitlines()
    assert [re.search(r"\d+%", line)[0] for line in lines] == ["20%", "40%", "60%", "80%", "100%", "100%"]
    assert lines[0] == "audit:  20% 20.0/100 [00:10<00:40, 2.00cell/s]"


def test_a_long_task_has_fewer_lines(clock, capsys):
    with progress_bar("pretrain", None, "step", shown=True) as bar:
        for _ in range(7200):  # two days
            clock[0] += 24
            bar.update(1)
    assert 400 < len(capsys.readouterr().err.splitlines()) < 700


def test_the_time_left_of_a_run_that_goes_on(clock, capsys):
    with progress_bar("pretrain", 100, "step", shown=True) as bar:
        bar.initial = bar.n = 50
        clock[0] += 10
        bar.update(10)
    assert capsys.readouterr().err.startswith("pretrain:  60% 60.0/100 [00:10<00:40, 1.00step/s]\n")


def test_a_short_task_is_one_line(clock, capsys):
    with progress_bar("medians", None, "cell", shown=True) as bar:
        clock[0] += 2
        bar.update(600)
    assert capsys.readouterr().err == "medians: 600cell [00:02, 300cell/s]\n"


def test_the_last_line_comes_after_an_error_too(clock, capsys):
    def work():
        with progress_bar("audit", 10, "cell", shown=True) as bar:
            clock[0] += 1
            bar.update(3)
            raise ValueError("planted")

    with pytest.raises(ValueError, match="planted"):
        work()
    assert capsys.readouterr().err.startswith("audit:  30% 3.00/10.0 ")


def test_a_bar_on_a_terminal(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with progress_bar("audit", 10, "cell", shown=True) as bar:
        bar.update(10)
    assert "\raudit: 100%" in terminal.getvalue()


def test_nothing_is_shown(monkeypatch, capsys):
    def use(**options):
        with progress_bar("audit", 10, "cell", **options) as bar:
            bar.update(10)

    use(shown=False)
    with silent_bar("audit", 10, "cell") as bar:
        bar.update(1)
    with bars(shown=False):
        use(shown=True)
    monkeypatch.setenv("RANK", "1")
    use(shown=True)
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("RANK", "0")
    use(shown=True)
    assert capsys.readouterr().err.count("\n") == 1


# ------------------------------------------------------------------------------------------------ kernels are compiled

WHEN = "for the first time, up to half a minute (they are kept for this machine and version)"
LINE = f"compiling kernels that are used here {WHEN}\n"
INTERACTIVE = "import sys; sys.ps1 = '>>> '"


@pytest.fixture
def said(tmp_path):
    """What a program says that compiles a kernel of a small package, and a function that is none of its kernels."""
    package = tmp_path / "small"
    package.mkdir()
    for name, text in {
        "__init__": "",
        "jit": (Path(__file__).parents[1] / "kernels" / "jit.py").read_text(),
        "one": "from .jit import kernel\n@kernel\ndef one(x):\n    return x + 1\n",
        "two": "from .jit import kernel\n@kernel\ndef two(x):\n    return x + 2\n",
        "three": "from .jit import kernel, stage\n@stage\ndef part(x):\n    return x\n"
        "@kernel\ndef three(x):\n    return part(x)\n",
    }.items():
        (package / f"{name}.py").write_text(text)

    def run(before, *, cache="cache", after="one(1), two(1), one(1.0)", rank="0"):
        program = f"{before}\nfrom small.one import one\nfrom small.two import two\n{after}"
        environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / cache), "RANK": rank}
        command = [sys.executable, "-c", program]
        result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path, env=environment)
        return result.stderr

    return run


def test_a_line_for_a_burst_of_compilations(said):
    assert said(INTERACTIVE, cache="new") == f"corrmask-fast: {LINE}"
    assert said(INTERACTIVE, cache="new") == ""  # from the cache
    later = "one(1)\nfrom small import jit\njit.BURST = 0\ntwo(1)"
    assert said(INTERACTIVE, cache="newer", after=later) == 2 * f"corrmask-fast: {LINE}"
    info = "import logging; logging.basicConfig(level=logging.INFO)"
    assert said(info, cache="newest") == f"INFO:corrmask_fast:{LINE}"


def test_a_slow_stage_of_a_kernel_is_not_told_again(said):
    slow = "from small import jit\nfrom small.three import three\njit.BURST = 0\nthree(1)"
    assert said(INTERACTIVE, cache="new", after=slow) == f"corrmask-fast: {LINE}"


@pytest.mark.parametrize(
    ("before", "options"),
    [
        ("", {}),  # a script
        (INTERACTIVE, {"rank": "1"}),
        (f"{INTERACTIVE}; import multiprocessing; multiprocessing.parent_process = lambda: 1", {}),  # a worker
        (INTERACTIVE, {"after": "import numba; numba.njit(lambda x: x + 1)(1)"}),
    ],
)
def test_nothing_is_said(said, before, options):
    assert said(before, **options) == ""


def test_where_kernels_cannot_be_saved(said):
    nowhere = f"{INTERACTIVE}\nfrom numba.core import caching\ncaching.CompileResultCacheImpl._locator_classes = []"
    assert "(in every process, for they cannot be saved: set NUMBA_CACHE_DIR to a folder" in said(nowhere)


def test_the_command_line_says_that_kernels_are_compiled(made_up_cells, tmp_path):
    made_up_cells.write_h5ad(tmp_path / "cells.h5ad")

    def medians(cache, *options):
        command = [sys.executable, "-m", "corrmask_fast", "medians", "cells.h5ad", "-o", "medians.json", *options]
        environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / cache)}
        result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path, env=environment)
        return result.stderr

    first = medians("one")
    assert f"corrmask-fast: {LINE}" in first
    assert first.splitlines()[-1].startswith("medians: 100% 300/300 ")
    assert "\r" not in first
    assert LINE not in medians("one")
    assert medians("two", "--no-progress") == ""


@pytest.mark.parametrize("stderr", ["closed", "left"])
def test_work_goes_on_where_nobody_reads_standard_error(made_up_cells, tmp_path, stderr):
    """Closed before the start, or a pipe whose reader ends first, as in ``2>&1 >cells.txt | head -1``."""
    made_up_cells.write_h5ad(tmp_path / "cells.h5ad")
    program = [sys.executable, "-m", "corrmask_fast", "tokenize", "cells.h5ad", "-o", "cells.npz"]
    shell = f"exec {shlex.join(program)} 2>&-" if stderr == "closed" else shlex.join(program)
    read, write = os.pipe()
    os.close(read)
    result = subprocess.run(
        ["sh", "-c", shell], stdout=subprocess.PIPE, stderr=write, text=True, check=True, cwd=tmp_path
    )
    os.close(write)
    assert (tmp_path / "cells.npz").exists()
    assert "it/s" not in result.stdout
    assert result.stdout.startswith("300 of 300 cells written")


def test_an_error_never_lands_on_standard_output(tmp_path):
    program = [sys.executable, "-m", "corrmask_fast", "graph", "info", "none.safetensors"]
    result = subprocess.run(
        ["sh", "-c", f"exec {shlex.join(program)} 2>&-"], stdout=subprocess.PIPE, check=False, cwd=tmp_path
    )
    assert (result.returncode, result.stdout) == (2, b"")


@pytest.mark.parametrize("options", [[], ["--no-progress"]])
def test_pretraining_writes_lines_to_a_file(cli_folder, tmp_path, options):
    pytest.importorskip("transformers")
    command = [sys.executable, "-m", "corrmask_fast", "pretrain", cli_folder / "cells.npz", "--preset", "tiny"]
    command += ["--strategy", "random", "--max-steps", "3", "--out", tmp_path / "run", "--max-length", "32"]
    err = subprocess.run([*command, *options], capture_output=True, text=True, check=True).stderr
    assert "\r" not in err
    assert (re.search(r"^pretrain: 100% 3.00/3.00 ", err, re.MULTILINE) is None) == bool(options)
