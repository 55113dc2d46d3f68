"""Pickles of plain values, read without running them: a pickle is a program, and here few of its instructions count.

What comes out is made of dict, list, tuple, str, bytes, numbers and None; NumPy's numeric scalars become plain numbers.
Anything else is refused by name. Time and memory grow with the length of the file, whatever it says.
"""

from __future__ import annotations

import pickle
import pickletools
import struct
from dataclasses import dataclass
from typing import Any

from corrmask_fast.errors import InputError, shown

__all__ = ["read_plain_pickle"]

LARGEST_INTEGER = 2**64
FRAME_BYTES = 9  # the instruction and the length of a frame
_VALUES = frozenset({  # instructions that push what they hold
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT",
    "STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8",
    "BINBYTES", "SHORT_BINBYTES", "BINBYTES8",
})  # fmt: skip
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_KEPT = frozenset({"BINGET", "LONG_BINGET", "GET"})
_KEEP = frozenset({"BINPUT", "LONG_BINPUT", "PUT"})
_TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_SCALAR, _DTYPE = object(), object()  # stand for the two names that a pickle may ask for
_KNOWN = {
    ("numpy.core.multiarray", "scalar"): _SCALAR,
    ("numpy._core.multiarray", "scalar"): _SCALAR,
    ("numpy", "dtype"): _DTYPE,
}
_NUMBERS = {  # NumPy's types and their letters in struct
    "i1": "b", "i2": "h", "i4": "i", "i8": "q", "u1": "B", "u2": "H", "u4": "I", "u8": "Q",
    "f2": "e", "f4": "f", "f8": "d",
}  # fmt: skip


@dataclass
class _NumberType:
    """What a pickled ``numpy.dtype`` says."""

    code: Any
    order: str = "<"


def read_plain_pickle(data: bytes) -> Any:
    """Return what a pickle of plain values holds.

    Raises
    ------
    InputError
        If it asks for any code, or for a value that is not plain.
    Exception
        Of any type, if it is no pickle or a damaged one: call it in :func:`corrmask_fast.errors.readable`.
    """
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}
    argument: Any
    for instruction, argument, place in pickletools.genops(data):
        name = instruction.name
        if name == "PROTO" and argument > pickle.HIGHEST_PROTOCOL:
            raise ValueError(f"unsupported pickle protocol: {argument}")
        if name == "FRAME" and (place or 0) + FRAME_BYTES + argument > len(data):
            raise ValueError("a frame of the pickle is longer than the file: it was cut off")
        if name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in _KEPT:
            stack.append(memo[argument])
        elif name in _VALUES:
            if type(argument) is int and abs(argument) > LARGEST_INTEGER:
                raise InputError("refused: the pickle holds an integer of more than 64 bits, which is no id or count")
            stack.append(argument)
        elif name in _TUPLES:
            stack.append(tuple(_pop(stack, len(stack) - _TUPLES[name])))
        elif name == "REDUCE":
            arguments = stack.pop()
            stack.append(_reduce(stack.pop(), arguments))
        elif name in _KEEP:
            memo[argument] = stack[-1]
        elif name == "MARK":
            marks.append(len(stack))
        elif name in {"SETITEMS", "SETITEM"}:
            _set_items(*_target(stack, marks.pop() if name == "SETITEMS" else len(stack) - 2, dict))
        elif name in {"APPENDS", "APPEND"}:
            target, values = _target(stack, marks.pop() if name == "APPENDS" else len(stack) - 1, list)
            target.extend(values)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in {"GLOBAL", "STACK_GLOBAL"}:
            stack.append(_known(*(argument.split(" ", 1) if name == "GLOBAL" else _pop(stack, len(stack) - 2))))
        elif name == "BUILD":
            _build(*_pop(stack, len(stack) - 2, keep=1))
        elif name == "EMPTY_DICT":
            stack.append({})
        elif name == "EMPTY_LIST":
            stack.append([])
        elif name == "DICT":
            items = _pop(stack, marks.pop())
            stack.append({})
            _set_items(stack[-1], items)
        elif name in {"LIST", "TUPLE"}:
            stack.append((list if name == "LIST" else tuple)(_pop(stack, marks.pop())))
        elif name not in {"PROTO", "FRAME", "STOP"}:
            raise InputError(
                f"refused: the pickle has the instruction {name}, and a dictionary of names and numbers needs none such"
            )
    if marks or len(stack) != 1:
        raise ValueError("the pickle leaves values behind: it is damaged")
    return stack.pop()


def _pop(stack: list[Any], begin: int, keep: int = 0) -> list[Any]:
    """Return the values from ``begin`` on, and leave the first ``keep`` of them on the stack."""
    if begin < 0:
        raise IndexError("the pickle takes more values than it has")
    values = stack[begin:]
    del stack[begin + keep :]
    return values


def _target(stack: list[Any], begin: int, kind: type) -> tuple[Any, list[Any]]:
    values = _pop(stack, begin)
    if not isinstance(stack[-1], kind):
        raise TypeError(f"the pickle puts a value into {shown(stack[-1])}, which is no {kind.__name__}")
    return stack[-1], values


def _set_items(target: dict[Any, Any], items: list[Any]) -> None:
    for key, value in zip(items[::2], items[1::2], strict=True):
        # The hash of a tuple of tuples may take for ever.
        if not isinstance(key, str | int | float | None):
            raise InputError(f"refused: a dictionary of names and numbers has no {type(key).__name__} as a key")
        if key in target:
            raise InputError(f"{shown(key)} stands twice; a dictionary must have each name once")
        target[key] = value


def _known(module: Any, name: Any) -> Any:
    found = _KNOWN.get((module, name)) if isinstance(module, str) and isinstance(name, str) else None
    if found is None:
        asked = f"{module}.{name}" if isinstance(module, str) and isinstance(name, str) else shown((module, name))
        raise InputError(
            f"refused: the pickle asks for {asked[:100]}, and a dictionary of names and numbers needs no code; "
            "take the file from its original source, or convert it to JSON"
        )
    return found


def _reduce(what: Any, arguments: Any) -> Any:
    """Return what NumPy's two functions would return, as plain values."""
    if what is _DTYPE and isinstance(arguments, tuple) and arguments:
        return _NumberType(arguments[0])
    if what is _SCALAR and isinstance(arguments, tuple) and len(arguments) == 2:
        kind, data = arguments
        if isinstance(kind, _NumberType) and isinstance(data, bytes):
            if not isinstance(kind.code, str) or kind.code not in _NUMBERS:
                raise InputError(f"refused: the pickle holds a NumPy value of type {shown(kind.code)}, not a number")
            return struct.unpack(kind.order + _NUMBERS[kind.code], data)[0]
    raise InputError("refused: the pickle calls a function in a way that NumPy never writes")


def _build(what: Any, state: Any) -> None:
    if not isinstance(what, _NumberType) or not isinstance(state, tuple) or state[1] not in ("<", ">", "|"):
        raise InputError("refused: the pickle sets the state of something that is no type of NumPy's numbers")
    what.order = ">" if state[1] == ">" else "<"
