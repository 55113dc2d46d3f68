"""The docstring of a public name is its page in the API reference: parameters, results and an example must be there."""

from __future__ import annotations

import dataclasses
import inspect
import re
from functools import cached_property
from pathlib import Path

import pytest

import corrmask_fast

reason = "numpydoc checks the docstrings; it comes with the extra dev"
NumpyDocString = pytest.importorskip("numpydoc.docscrape", reason=reason).NumpyDocString
validate = pytest.importorskip("numpydoc.validate", reason=reason).validate

MISSING = {"GL08"}
SUMMARY = {"SS03", "SS04", "SS05", "SS06"}  # a sentence on one line; of functions in the imperative
PARAMETERS = {"PR01", "PR02", "PR03"}  # each one, no other, in the order of the signature
RESULTS = {"RT01", "RT03"}  # named, and described
EXAMPLE = {"EX01"}
CODES = MISSING | SUMMARY | PARAMETERS | RESULTS
METHODS = (staticmethod, classmethod, property, cached_property)


def ours(cls):
    return cls.__module__.startswith("corrmask_fast.")


def members(cls):
    """Methods and properties on a class's page: its own, and those of bases that have no page."""
    for base in cls.__mro__:
        if base is cls or (ours(base) and base.__name__ not in dir(corrmask_fast)):
            for name, value in vars(base).items():
                if not name.startswith("_") and (inspect.isfunction(value) or isinstance(value, METHODS)):
                    yield name


def overrides(cls, name):
    """Whether a method takes the place of one of a framework, such as Trainer's, which documents its arguments."""
    return name != "forward" and any(name in vars(base) for base in cls.__mro__ if not ours(base))


def fields(cls):
    """Fields of a dataclass or a named tuple; none of other classes."""
    if dataclasses.is_dataclass(cls):
        return [field.name for field in dataclasses.fields(cls) if not field.name.startswith("_")]
    return list(getattr(cls, "_fields", ()))


def faults_of_fields(cls):
    doc = NumpyDocString(inspect.getdoc(cls) or "")
    named = {name for section in ("Parameters", "Attributes") for one in doc[section] for name in one.name.split(", ")}
    for name in fields(cls):
        if name not in named:
            yield f"{cls.__name__}.{name}: stands neither in Parameters nor in Attributes"
    for one in doc["Attributes"]:
        if "," in one.name:
            yield f"{cls.__name__}: Sphinx takes one name in an entry of Attributes, not {one.name!r}"


def faults_of_property(name, value):
    """Sphinx takes what is before a colon for the type: that is right for a shape and dtype alone."""
    first = re.sub(r":\w+:`.*?`|``.*?``", "", (inspect.getdoc(value) or "").partition("\n")[0])
    if ":" in first and not first.startswith("("):
        yield f"{name}: before a colon only a shape and dtype may stand, not {first.partition(':')[0]!r}"


@pytest.mark.parametrize("name", dir(corrmask_fast))
def test_the_docstring_is_complete(name):
    try:
        value = getattr(corrmask_fast, name)
    except corrmask_fast.MissingExtraError as error:
        pytest.skip(str(error))
    codes, faults = {name: CODES | EXAMPLE}, []
    if inspect.isclass(value):
        for member in members(value):
            codes[f"{name}.{member}"] = MISSING | SUMMARY if overrides(value, member) else CODES
            if isinstance(found := inspect.getattr_static(value, member), property | cached_property):
                faults += faults_of_property(f"{name}.{member}", found)
        faults += faults_of_fields(value)
        if fields(value):  # checked above: they may stand in Attributes
            codes[name] = codes[name] - {"PR01"}
    for one, wanted in codes.items():
        errors = validate(f"corrmask_fast.{one}")["errors"]
        faults += [f"{one}: {code} {what}" for code, what in errors if code in wanted]
    assert not faults, "\n".join(["", *faults])


def test_every_public_name_is_in_the_reference():
    page = (Path(__file__).resolve().parents[1] / "docs" / "reference" / "api.md").read_text()
    assert sorted(re.findall(r"^   (\w+)$", page, re.MULTILINE)) == sorted(dir(corrmask_fast))
