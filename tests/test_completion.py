"""`corrmask-fast completion`: the script in a real bash, and the other shells' as text."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest

from corrmask_fast.cli import completion
from corrmask_fast.cli.main import build_parser, main

pytest.importorskip("shtab")


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    path = tmp_path_factory.mktemp("completion") / "bash"
    command = [sys.executable, "-m", "corrmask_fast", "completion", "bash"]
    path.write_text(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return path


@pytest.fixture
def complete(script, tmp_path):
    """What bash offers for the last of some words, in a folder with two files."""
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("no bash here")
    (tmp_path / "cells.h5ad").touch()
    (tmp_path / "graph.safetensors").touch()
    program = f"""source {script}
    complete -p corrmask-fast | grep -o -- '-F [^ ]*' >&2
    COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
    _shtab_corrmask_fast corrmask-fast "${{COMP_WORDS[COMP_CWORD]}}" "${{COMP_WORDS[COMP_CWORD - 1]}}"
    printf '%s\\n' "${{COMPREPLY[@]}}"
    """

    def run(*words):
        command = [bash, "-c", program, "bash", "corrmask-fast", *words]
        result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
        assert result.stderr == "-F _shtab_corrmask_fast\n"
        return result.stdout.split()

    return run


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["to"], ["tokenize"]),
        (["graph", "s"], ["show", "stability"]),
        (["audit", "--mlm"], ["--mlm-probability"]),
        (["audit", "c"], ["cells.h5ad"]),
        (["audit", "x", "--graph", "g"], ["graph.safetensors"]),
        (["pretrain", "--preset", ""], ["paper", "small", "tiny"]),
        (["audit", "x", "--strategy", "corrmask-1"], ["corrmask-100"]),
        (["audit", "x", "--strategy", "mam"], []),  # a model learns it: pretrain alone takes it
        (["pretrain", "x", "--strategy", "mam"], ["mam"]),
        (["graph", "plot", "g", "p.png", "--kind", "m"], ["modules"]),
        (["evaluate", "cells", "m", "x", "--labels", "c"], []),
        (["completion", ""], ["bash", "zsh", "tcsh"]),
    ],
)
def test_bash(complete, words, offered):
    assert sorted(complete(*words)) == sorted(offered)


def test_other_shells(capsys):
    for shell, begins in (("zsh", "#compdef corrmask-fast"), ("tcsh", "# AUTOMATICALLY GENERATED")):
        assert main(["completion", shell]) == 0
        out = capsys.readouterr().out
        assert out.startswith(begins)
        assert "stability" in out


def test_every_file_is_completed_as_one():
    """Metavariables say what is a file: the table by name must have them all."""
    files = {"FILE", "FOLDER", "CORPUS", "GRAPH", "DICT", "MODEL", "TABLE", "IN", "OUT", "CELLS"}
    for action in completion._actions(build_parser()):
        name = str(action.metavar).partition(".")[0]
        is_file = name in files or name in {"SETS", "GENES"}
        assert (action.dest in completion.FILES and action.nargs != 0) == is_file, action


def test_names_are_those_that_the_library_takes():
    from corrmask_fast.graph.plots import KINDS
    from corrmask_fast.graph.reports import SORTS

    assert set(completion.NAMES["kind"]) == set(KINDS)
    assert set(completion.NAMES["sort"]) == set(SORTS)


def test_without_shtab(monkeypatch, fails):
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert "pip install 'corrmask-fast[completion]'" in fails("completion", "bash")
