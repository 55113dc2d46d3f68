"""The errors a user meets: each message names the value, the rule and the fix."""

from __future__ import annotations

import importlib
import math
import operator
import os
import reprlib
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from types import ModuleType

LONGEST_VALUE = 120  # characters of a value that a message quotes
LONGEST_REASON = 400  # characters of what a library says
MAX_NAME_CHARS, MAX_NAMES = 40, 20  # of a list of names

__all__ = ["InputError", "MissingExtraError"]


class InputError(ValueError):
    """Input that breaks a rule: the message names the value, the rule and the fix.

    It is a :class:`ValueError`. The command line prints the message and ends with exit code 2.

    Examples
    --------
    >>> from corrmask_fast import InputError, suggest_thresholds
    >>> try:
    ...     suggest_thresholds(0)
    ... except InputError as error:
    ...     print(error)
    n_cells must be an integer >= 1; got 0
    """


class MissingExtraError(ImportError):
    """An optional dependency that cannot be imported: the message has the line that installs it.

    It is an :class:`ImportError`.

    Examples
    --------
    >>> from corrmask_fast import MissingExtraError
    >>> try:
    ...     raise MissingExtraError("this needs 'igraph'; install it with: pip install 'corrmask-fast[leiden]'")
    ... except ImportError as error:
    ...     print(error)
    this needs 'igraph'; install it with: pip install 'corrmask-fast[leiden]'
    """


@contextmanager
def readable(source: str | os.PathLike[str], kind: str) -> Iterator[None]:
    """Turn whatever a parser raises inside the block into an InputError: "SOURCE is not a readable KIND: reason".

    Everything that reads a file from outside stands in such a block. Parsers raise more types than anyone lists:
    RecursionError for deep JSON, OverflowError for a size of 10**30, MemoryError for a declared 8 TiB, LZMAError. An
    InputError raised inside keeps its message, with the source before it.

    >>> with readable("cells.npz", ".npz file"):
    ...     raise OverflowError("a size of 10**30")
    Traceback (most recent call last):
    corrmask_fast.errors.InputError: cells.npz is not a readable .npz file: a size of 10**30
    """
    try:
        with naming(source):
            yield
    except (InputError, MissingExtraError):
        raise
    except MemoryError as error:
        raise InputError(
            f"{source} takes more memory than there is, or is a damaged {kind}: {reason(error)}"
        ) from error
    except Exception as error:
        raise InputError(f"{source} is not a readable {kind}: {reason(error)}") from error


@contextmanager
def naming(source: Any) -> Iterator[None]:
    """Put the name of a file before the message of an InputError raised inside the block, unless it stands in it.

    For checks of what was read, which know the values but not where they come from. Of anything but a path or a name
    nothing is put there.
    """
    try:
        yield
    except InputError as error:
        if not isinstance(source, str | os.PathLike) or str(source) in str(error):
            raise
        raise InputError(f"{source}: {error}") from error


def reason(error: BaseException) -> str:
    """Return what an exception says, on one line and not too long; its type where it says nothing."""
    text = " ".join(str(error).split())
    if isinstance(error, KeyError) and error.args:
        text = f"it lacks {text}" if " " not in text else str(error.args[0])  # some libraries raise it with a sentence
    elif not text or isinstance(error, MemoryError | RecursionError | AttributeError | TypeError | IndexError):
        text = f"{type(error).__name__}: {text}".rstrip(": ")
    return brief(text, LONGEST_REASON)


def brief(text: str, longest: int = LONGEST_VALUE) -> str:
    """Return text for a message, cut to its first ``longest`` characters."""
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def listed(names: Iterable[str]) -> str:
    """Return names from a file for a message: the first twenty, each cut; "none" of none."""
    names = list(names)
    more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    return ", ".join(brief(str(name), MAX_NAME_CHARS) for name in names[:MAX_NAMES]) + more or "none"


def shown(value: Any) -> str:
    """Return the repr of a value for a message: short, whatever is nested in it, however many digits it has.

    >>> shown(1.5), len(shown("a" * 1000)), shown(10**5000)
    ('1.5', 120, 'a int')
    """
    try:
        text = _SHORT.repr(value)
    except Exception:  # noqa: BLE001 (a repr from elsewhere may raise anything)
        text = f"a {type(value).__name__}"
    return brief(" ".join(text.split()))


_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother, _SHORT.maxlong = 2, LONGEST_VALUE, 2 * LONGEST_VALUE, 40


def import_extra(module: str, extra: str) -> ModuleType:
    """Import an optional dependency, or say which extra of this project brings it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise MissingExtraError(
            f"this needs {package!r}, which could not be imported ({error}); "
            f"install it with: pip install 'corrmask-fast[{extra}]'"
        ) from error


def check_number(name: str, value: Any, low: float, high: float, *, open_ends: bool = False) -> float:
    """Return ``value`` as a float inside [low, high], or inside (low, high) with ``open_ends``.

    Text and truth values are no numbers: ``"0.1"`` or ``true`` in a configuration file is a mistake.

    >>> check_number("dropout", 0.5, 0, 1)
    0.5
    >>> check_number("dropout", "0.5", 0, 1)
    Traceback (most recent call last):
    corrmask_fast.errors.InputError: dropout must be a number in [0, 1]; got '0.5'
    """
    brackets = "()" if open_ends else "[]"
    try:
        no_number = isinstance(value, str | bytes | bytearray | bool) or _is_numpy_bool(value)
        number = math.nan if no_number else float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):  # the last: a tensor of several numbers
        number = math.nan
    inside = low < number < high if open_ends else low <= number <= high
    if not inside:
        raise InputError(f"{name} must be a number in {brackets[0]}{low}, {high}{brackets[1]}; got {shown(value)}")
    return number


def _is_numpy_bool(value: Any) -> bool:
    return getattr(getattr(value, "dtype", None), "kind", None) == "b"


def as_integer(value: Any) -> int | None:
    """Return ``value`` as an int if it is an integer of any kind (but no bool), else None."""
    try:
        return None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        return None


def check_integer(name: str, value: Any, low: int, high: int | None = None) -> int:
    """Return ``value`` as an int in [low, high] (``high=None``: no upper end)."""
    number = as_integer(value)
    if number is None or number < low or (high is not None and number > high):
        rule = f">= {low}" if high is None else f"in [{low}, {high}]"
        raise InputError(f"{name} must be an integer {rule}; got {shown(value)}")
    return number


def check_seed(seed: Any) -> int:
    """Return a seed in [0, 2**64): the key of the random generator, 0 included."""
    return check_integer("seed", seed, 0, 2**64 - 1)
