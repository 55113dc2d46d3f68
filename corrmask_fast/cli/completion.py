"""``corrmask-fast completion``: the script by which a shell completes commands, options, choices and files."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from corrmask_fast.cli.options import INPUTS, PROGRAM, command
from corrmask_fast.errors import import_extra
from corrmask_fast.masking.strategies import LEARNED_STRATEGIES, STRATEGIES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

INSTALLING = f"""to install it, once:
  bash  {PROGRAM} completion bash > ~/.local/share/bash-completion/completions/{PROGRAM}
        (make the folder first; needs the package bash-completion. Without it: add the script to ~/.bashrc)
  zsh   {PROGRAM} completion zsh > ~/.zfunc/_{PROGRAM}
        (with `fpath+=~/.zfunc` before `compinit` in ~/.zshrc)
  tcsh  {PROGRAM} completion tcsh > ~/.{PROGRAM}.tcsh
        (with `source ~/.{PROGRAM}.tcsh` in ~/.tcshrc)
then open a new shell."""

# Arguments that are files or folders beside INPUTS, by dest: those to write, and those with names of their own.
FILES = {
    *INPUTS, "inputs", "cells", "test", "output", "out", "csv", "genes_csv", "coverage_csv", "windows_csv",
    "confusion_csv", "plot", "checkpoint", "gene_sets", "weights",
}  # fmt: skip
# What is completed of options that argparse has no choices of: some take other values too, as strategies of one's own.
NAMES = {
    "strategy": (*STRATEGIES, *LEARNED_STRATEGIES),
    "strategies": (*STRATEGIES, *LEARNED_STRATEGIES),
    "reference": (*STRATEGIES, *LEARNED_STRATEGIES),
    "device": ("auto", "cpu", "cuda"),
    "kind": ("degree", "rho", "modules", "all"),
    "sort": ("local", "global", "overlap"),
    "method": ("leiden", "linkage"),
    "keep": ("union", "intersection"),
    "combine": ("mean", "strongest"),
    "partners": ("uniform", "weighted"),
}


def add_completion(commands: Any, build_parser: Callable[[], argparse.ArgumentParser]) -> None:
    """Add ``completion``; ``build_parser`` makes the parser whose commands are completed."""
    parser = command(
        commands,
        "completion",
        lambda arguments: _completion(arguments.shell, build_parser()),
        summary="the script that completes commands and options in your shell",
        text="Print a script for bash, zsh or tcsh. With it the Tab key completes commands, options, choices, files "
        "and folders. Names of columns and genes are not completed: they stand inside files.",
        notes=INSTALLING,
        example="completion bash",
        computes=False,
    )
    parser.add_argument("shell", choices=("bash", "zsh", "tcsh"), help="your shell")


def _completion(shell: str, parser: argparse.ArgumentParser) -> None:
    shtab = import_extra("shtab", "completion")
    for action in _actions(parser):
        if action.dest in FILES and action.nargs != 0:
            action.complete = shtab.FILE  # type: ignore[attr-defined]
        elif action.dest in NAMES:
            action.choices = [name for name in NAMES[action.dest] if _takes(action, name)]
    print(shtab.complete(parser, shell))


def _takes(action: argparse.Action, name: str) -> bool:
    try:
        return not callable(action.type) or bool(action.type(name))
    except argparse.ArgumentTypeError:
        return False


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """Yield the arguments of a parser and of its commands."""
    for action in parser._actions:  # noqa: SLF001 (argparse offers no public list)
        if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001
            for one in action.choices.values():
                yield from _actions(one)
        else:
            yield action
