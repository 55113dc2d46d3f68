"""Special tokens recognised by their spelling, and what to say about those that were not declared."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from corrmask_fast.errors import shown

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

BRACKETS = {"[": "]", "(": ")", "{": "}", "|": "|", "_": "_"}  # that special tokens have in other models
MAX_SHOWN = 6  # names in a message


def in_angles(name: str) -> bool:
    """Whether a name is special without being declared."""
    return name.startswith("<") and name.endswith(">")


def looks_special(name: str) -> bool:
    """Whether a gene's name is written as other models write their special tokens."""
    return BRACKETS.get(name[0]) == name[-1] or name[0] == "<" or name[-1] == ">"


def no_padding(names: Iterable[Any]) -> str:
    """Return what to say of a vocabulary without ``<pad>``."""
    suspects = [name for name in names if isinstance(name, str) and name and looks_special(name)]
    fix = (
        f"if it has other special tokens, give {roles_of(suspects)}"
        if any(_word(name) == "pad" for name in suspects)
        else "give a token dictionary, as Geneformer's, or name the token that fills up short cells: pad= (--pad-token)"
    )
    return f"the vocabulary has no '<pad>' token; {fix}"


def roles_of(suspects: Sequence[str]) -> str:
    """Return what would declare names in brackets to be special, in Python and at the command line."""
    python, options = [], []
    for role in ("pad", "mask"):
        name = next((name for name in suspects if _word(name) == role), f"<{role}>")
        if name != f"<{role}>":  # the default
            python.append(f"{role}={shown(name)}")
            options.append(f"--{role}-token {shown(name)}")
    rest = [shown(name) for name in suspects if _word(name) not in {"pad", "mask"} and not in_angles(name)]
    if rest:
        rest = [*rest[:MAX_SHOWN], *["…"] * (len(rest) > MAX_SHOWN)]
        python.append(f"special=[{', '.join(rest)}]")
        options.append(f"--special-tokens {' '.join(rest)}")
    return f"{', '.join(python)} (at the command line: {' '.join(options)})"


def _word(name: str) -> str:
    return name.strip("[](){}|_<>").casefold()
