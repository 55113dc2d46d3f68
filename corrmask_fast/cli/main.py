"""The command line: ``corrmask-fast COMMAND``.

Each command is a function that adds its parser, and one that runs it; heavy imports stand in the latter, so that
``--help`` is instant. Bad input ends in one line on stderr and exit code 2, never in a traceback.
"""

from __future__ import annotations

import io
import os
import re
import sys
import warnings
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from corrmask_fast import __version__
from corrmask_fast.cli.audit import add_audit
from corrmask_fast.cli.compare import add_compare
from corrmask_fast.cli.completion import add_completion
from corrmask_fast.cli.embed import add_embed
from corrmask_fast.cli.evaluate import add_evaluate
from corrmask_fast.cli.graph import add_graph
from corrmask_fast.cli.options import (
    PROGRAM,
    Parser,
    add_dictionary_options,
    check_dictionary,
    command,
    in_options,
    roles_of,
)
from corrmask_fast.cli.pmi import add_pmi
from corrmask_fast.cli.pretrain import add_pretrain
from corrmask_fast.cli.tokenize import add_medians, add_tokenize
from corrmask_fast.errors import InputError, MissingExtraError, reason
from corrmask_fast.progress import bars, shows_progress, write_line

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable, Iterator, Sequence

__all__ = ["main"]

BAD_INPUT, INTERRUPTED = 2, 130  # exit codes: what argparse uses, and 128 + SIGINT


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code: 0, 1 if a check failed, 2 for bad input, 130 if interrupted."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as standard error: letters that the locale lacks
    arguments = build_parser().parse_args(argv)
    with warnings.catch_warnings():
        warnings.showwarning = partial(_warn, vars(arguments))
        with bars(shown=getattr(arguments, "progress", True)), _messages_shown():
            return _run(arguments)


def _run(arguments: argparse.Namespace) -> int:
    code = 0
    try:
        if getattr(arguments, "threads", None) is not None:
            from corrmask_fast.threads import set_num_threads

            set_num_threads(arguments.threads)
        code = arguments.run(arguments) or 0
        print(end="", flush=True)  # standard output may be None
    except BrokenPipeError:
        # The reader (head, less) ended first; Python must not complain again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (InputError, MissingExtraError) as error:
        return _fail(in_options(str(error), vars(arguments)))
    except (MemoryError, RuntimeError) as error:
        if (message := _out_of_memory(error, arguments)) is None:
            raise
        return _fail(message)
    except OSError as error:
        named = error.filename is not None and error.strerror is not None
        return _fail(f"{error.filename}: {error.strerror}" if named else str(error))
    except KeyboardInterrupt:
        write_line(f"{PROGRAM}: interrupted")
        return INTERRUPTED
    return code


def _out_of_memory(error: Exception, arguments: argparse.Namespace) -> str | None:
    """Return what to do where memory, or threads, ran out; None for another error. Torch and CuPy have own types."""
    no_thread = "can't start new thread" in str(error)
    known = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or no_thread
    if not known and not re.search(r"can't allocate memory|not enough memory|out of memory", str(error)):
        return None
    fixes = [
        "--memory with less than is free" if hasattr(arguments, "memory_limit") else "",
        "fewer --threads" if hasattr(arguments, "threads") else "",
        "a smaller --batch-size" if hasattr(arguments, "batch_size") else "",
    ]
    what = "no thread could be started" if no_thread else f"not enough memory ({reason(error)})"
    return f"{what}; give {' or '.join(filter(None, [*fixes, 'the process more memory']))}"


@contextmanager
def _messages_shown() -> Iterator[None]:
    """Show what the library says while it works, such as that kernels are being compiled."""
    import logging

    class Shown(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if shows_progress():
                write_line(f"{PROGRAM}: {record.getMessage()}")

    log, handler = logging.getLogger("corrmask_fast"), Shown()
    level, propagates = log.level, log.propagate
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
        log.propagate = propagates


def _warn(options: Iterable[str], message: Warning | str, *_: object, **__: object) -> None:
    """Show a warning as a line of our own, not with the place in the code that it came from."""
    write_line(f"{PROGRAM}: warning: {' '.join(in_options(str(message), options).split())}")


def _fail(message: str) -> int:
    write_line(f"{PROGRAM}: error: {' '.join(message.split())}")
    return BAD_INPUT


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    parser = Parser(
        prog=PROGRAM,
        description="Mask correlated genes together when you pretrain single-cell foundation models (CorrMask): from "
        "counts to tokenised cells, a gene dependency graph, masks, models, and audits of what masks hide.",
        epilog=f"'{PROGRAM} COMMAND --help' describes a command. Start with '{PROGRAM} demo'; if something fails, "
        f"'{PROGRAM} doctor'.",
    )
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    add_tokenize(commands)
    add_medians(commands)
    add_graph(commands)
    add_pmi(commands)
    add_audit(commands)
    add_pretrain(commands)
    add_embed(commands)
    add_evaluate(commands)
    add_compare(commands)
    _add_demo(commands)
    _add_doctor(commands)
    add_completion(commands, build_parser)
    return parser


# -------------------------------------------------------------------------------------------------------------- demo


def _add_demo(commands: Any) -> None:
    parser = command(
        commands,
        "demo",
        _demo,
        summary="everything once, on made-up or on your own cells",
        text="Tokenise cells, build the graph, mask an epoch, audit the masks, compare speeds with Hugging Face's "
        "collator, and train a tiny BERT. The folder then has the graph, pictures and a report. "
        "Without --input: 20 000 made-up cells with planted modules.",
        example="demo --input cells.h5ad --out demo-output",
    )
    parser.add_argument("--input", metavar="FILE.h5ad", help="raw counts (default: made-up cells)")
    parser.add_argument("--tokens", metavar="DICT", help="token dictionary (default: the genes of the file)")
    parser.add_argument("--medians", metavar="FILE", help="gene medians (default: of these cells)")
    add_dictionary_options(parser, "--tokens")
    parser.add_argument("--out", default="demo-output", metavar="FOLDER", help="folder to write (default: %(default)s)")


def _demo(arguments: argparse.Namespace) -> None:
    from corrmask_fast.cli.demo import run_demo

    for option in ("tokens", "medians", "symbols"):
        if getattr(arguments, option) and not arguments.input:
            raise InputError(f"--{option} belongs to --input; give the file of the cells too")
    check_dictionary(arguments, "tokens")
    run_demo(
        Path(arguments.out),
        input_path=arguments.input,
        tokens=arguments.tokens,
        medians=arguments.medians,
        symbols=arguments.symbols,
        roles=roles_of(arguments),
        progress=arguments.progress,
    )


# --------------------------------------------------------------------------------------------------------------- doctor


def _add_doctor(commands: Any) -> None:
    command(
        commands,
        "doctor",
        _doctor,
        summary="what is installed, what works, and how to install what is missing",
        text="Print versions, processor, memory, GPU and the cache of compiled kernels, for yourself or for a bug "
        "report; then mask a small batch and compare it with the pure-Python reference. For each package that is "
        "missing: what it is for, and the line that installs it. The text holds no name of yours and none of the "
        "machine. Exit code 1 if masking, or something else that is installed, does not work.",
        example="doctor > doctor.txt",
        computes=False,
    )


def _doctor(_: argparse.Namespace) -> int:
    from corrmask_fast.cli.doctor import examine

    return examine()
