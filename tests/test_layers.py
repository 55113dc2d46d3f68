"""Rooms of the package import in one direction (docs/design.md)."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import corrmask_fast

PACKAGE = Path(corrmask_fast.__file__).parent
MAY_IMPORT = {
    "cells": set(),
    "graph": {"cells"},
    "masking": {"cells", "graph"},
    "audit": {"cells", "graph", "masking"},
    "training": {"cells", "graph", "masking"},
    "evaluation": {"cells"},
    "cli": {"cells", "graph", "masking", "audit", "training", "evaluation"},
}


def imported(path):
    """Modules that a file imports, wherever in it, as dotted names."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: imports are absolute"
            yield node.module
            yield from (f"{node.module}.{name.name}" for name in node.names)


def test_every_room_is_listed():
    rooms = {path.parent.name for path in PACKAGE.glob("*/__init__.py")} - {"kernels"}
    assert rooms == set(MAY_IMPORT)


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_a_room_imports_from_those_before_it(room):
    for path in (PACKAGE / room).glob("*.py"):
        parts = [name.split(".") for name in imported(path) if name.startswith("corrmask_fast.")]
        used = {part[1] for part in parts} & set(MAY_IMPORT) - {room}
        assert used <= MAY_IMPORT[room], path
