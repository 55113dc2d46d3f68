"""The parser of the command line, with the signs escaped that reStructuredText would read as markup."""

from __future__ import annotations

import argparse
import re
import textwrap

from corrmask_fast.cli.main import build_parser


def escaped(parser: argparse.ArgumentParser | None = None) -> argparse.ArgumentParser:
    """Return the parser of all commands, ready for sphinx-argparse."""
    parser = parser or build_parser()
    for action in parser._actions:  # noqa: SLF001
        if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001
            for child in action.choices.values():
                escaped(child)
        elif action.help:
            action.help = _as_text(action.help)
    parser.description = _as_text(parser.description or "")
    if parser.epilog:  # tables and examples, aligned for a terminal: a literal block
        parser.epilog = "::\n\n" + textwrap.indent(parser.epilog, "  ")
    return parser


def _as_text(text: str) -> str:
    """Escape markup, and put options in literals: dashes of plain text become typographic ones."""
    text = re.sub(r"([|*`\\])", r"\\\1", text)
    return re.sub(r"(?<![\w-])(--[a-z][a-z-]*)", r"``\1``", text)
