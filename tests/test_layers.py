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
# What each file beside the rooms imports of the package.
SHARED = {
    "__init__": set(),  # public names load on first use
    "__main__": {"cli"},
    "buffers": set(),
    "cuda": {"errors"},
    "errors": set(),
    "files": {"errors"},
    "plots": {"errors", "files"},
    "progress": set(),
    "reference": set(),
    "reference_pmi": set(),
    "reference_windows": set(),
    "synthetic": {"errors", "files", "cells", "graph"},
    "tables": {"files"},
    "tensor_files": {"errors", "files", "cells"},
    "testing": {"reference", "cells", "graph", "masking"},
    "threads": {"errors"},
}


def imported(path):
    """Modules of the package that a file imports, wherever in it: ``cells.corpus``, also for ``Corpus``."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [name.name for name in node.names]
            assert not any(name.name == "corrmask_fast" and name.asname for name in node.names), f"{path}: no alias"
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 or path.parent.name == "kernels", f"{path}: imports are absolute"
            within = ("", "corrmask_fast.kernels.", "corrmask_fast.")[node.level]
            names = [f"{within}{node.module}.{name.name}" for name in node.names]
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            names = [f"{node.value.id}.{node.attr}"]  # import corrmask_fast; corrmask_fast.Corpus
        else:
            continue
        for name in names:
            package, _, module = name.partition(".")
            if package == "corrmask_fast" and module and not module.startswith("_"):
                yield corrmask_fast._ROOMS.get(module, module)


def parts_of(path):
    """Rooms and files beside them that a file imports."""
    return {module.split(".")[0] for module in imported(path)}


def rooms_of(path):
    """Rooms that a file imports, itself or by way of files beside the rooms."""
    parts = parts_of(path)
    return (parts & set(MAY_IMPORT)).union(*(SHARED[part] & set(MAY_IMPORT) for part in parts & set(SHARED)))


def test_every_room_is_listed():
    rooms = {path.parent.name for path in PACKAGE.glob("*/__init__.py")} - {"kernels"}
    assert rooms == set(MAY_IMPORT)
    assert {path.stem for path in PACKAGE.glob("*.py")} == set(SHARED)


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_a_room_imports_from_those_before_it(room):
    for path in (PACKAGE / room).rglob("*.py"):
        assert rooms_of(path) - {room} <= MAY_IMPORT[room], path


def test_the_engine_of_masking_imports_nothing_of_what_stands_on_it():
    for path in (PACKAGE / "masking" / "engine").glob("*.py"):
        above = {module for module in imported(path) if module.startswith("masking.")}
        assert {module.split(".")[1] for module in above} <= {"engine"}, path


def test_no_files_of_masking_import_each_other():
    """Type-checking imports and those inside functions count."""
    files = (PACKAGE / "masking").rglob("*.py")
    modules = {
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path for path in files
    }
    left = {}
    for name, path in modules.items():
        found = [f"{each}." for each in imported(path)]
        needs = {other for other in modules if any(each.startswith(f"{other}.") for each in found)}
        left[name] = {other for other in needs if not f"{name}.".startswith(f"{other}.")}  # it lies in none of them
    while free := {name for name, needs in left.items() if not needs & set(left)}:
        left = {name: needs for name, needs in left.items() if name not in free}
    assert not left


@pytest.mark.parametrize("name", SHARED)
def test_a_file_beside_the_rooms_imports_what_is_listed(name):
    assert parts_of(PACKAGE / f"{name}.py") - {name} == SHARED[name]


def test_kernels_import_kernels_alone():
    for path in (PACKAGE / "kernels").glob("*.py"):
        assert parts_of(path) <= {"kernels"}, path


@pytest.mark.parametrize(
    ("text", "rooms"),
    [
        ("from corrmask_fast import CorrMasker, InputError", {"masking"}),
        ("import corrmask_fast\ndef late(): return corrmask_fast.build_dependency_graph", {"graph"}),
        ("def late():\n    from corrmask_fast.cli import main", {"cli"}),
        ("import corrmask_fast.audit.masks", {"audit"}),
        ("from corrmask_fast.testing import Case", {"cells", "graph", "masking"}),
        ("from corrmask_fast import plots, __version__", set()),
    ],
)
def test_every_way_to_import_counts(tmp_path, text, rooms):
    (tmp_path / "module.py").write_text(text)
    assert rooms_of(tmp_path / "module.py") == rooms
