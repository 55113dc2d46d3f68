"""The errors a user meets: each message names the value, the rule and the cure."""

from __future__ import annotations

import importlib
import math
import operator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from types import ModuleType

__all__ = ["InputError", "MissingExtraError"]


class InputError(ValueError):
    """Input that breaks a rule; the CLI prints its message and exits with code 2."""


class MissingExtraError(ImportError):
    """An optional dependency that is not installed; the message names the extra that brings it."""


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
    """Return ``value`` as a float inside [low, high], or inside (low, high) with ``open_ends``."""
    brackets = "()" if open_ends else "[]"
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    inside = low < number < high if open_ends else low <= number <= high
    if not inside:
        raise InputError(f"{name} must be a number in {brackets[0]}{low}, {high}{brackets[1]}; got {value!r}")
    return number


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
        raise InputError(f"{name} must be an integer {rule}; got {value!r}")
    return number


def check_seed(seed: Any) -> int:
    """Return a seed in [0, 2**64): the key of the random generator, 0 included."""
    return check_integer("seed", seed, 0, 2**64 - 1)
