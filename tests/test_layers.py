"""Imports run one way: between subpackages by a table (docs/design.md), between files without a circle."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import corrmask_fast

PACKAGE = Path(corrmask_fast.__file__).parent
MASKING = ("masking", "masking/engine", "masking/strategies")
# Subpackages as in a path below corrmask_fast/. One that lies inside another may be imported by it, and vice versa only
# file by file, without a circle.
MAY_IMPORT = {
    "cells": set(),
    "graph": {"cells", "graph/build"},
    "graph/build": {"cells", "graph"},
    "masking": {"cells", "graph", *MASKING[1:]},
    "masking/engine": {"cells", "graph"},
    "masking/strategies": {"cells", "graph", "masking", "masking/engine"},
    "audit": {"cells", "graph", *MASKING},
    "training": {"cells", "graph", *MASKING},
    "evaluation": {"cells", "graph", *MASKING, "training"},
    "integrations": {"cells", "graph", *MASKING, "training"},
    "comparison": {"cells", "graph", "graph/build", *MASKING, "training", "evaluation"},
    "cli": {"cells", "graph", "graph/build", *MASKING, "audit", "training", "evaluation", "comparison"},
}
# What each file beside the subpackages imports of the package.
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
    "reference_encode": set(),
    "reference_pmi": set(),
    "reference_values": {"reference"},
    "reference_windows": set(),
    "suggestions": {"errors"},
    "synthetic": {"errors", "files", "cells", "graph"},
    "tables": {"files"},
    "tensor_files": {"errors", "files", "cells"},
    "testing": {"reference", "cells", "graph", "masking", "masking/strategies"},
    "threads": {"errors"},
}


def imported(path):
    """Modules that a file imports of the package, wherever in it, for type checking too: ``cells.corpus.Corpus``."""
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
                yield corrmask_fast._MODULES.get(module, module)


def parts_of(path):
    """Subpackages, and files beside them, that a file imports."""
    for module in imported(path):
        names = module.split(".")
        inner = "/".join(names[:2])
        yield inner if inner in MAY_IMPORT else names[0]


def subpackages_of(path):
    """Subpackages that a file imports, itself or by way of files beside them."""
    parts = set(parts_of(path))
    return (parts & set(MAY_IMPORT)).union(*(SHARED[part] & set(MAY_IMPORT) for part in parts & set(SHARED)))


def files_imported(root):
    """For every file below ``root``, as ``cells.corpus``: the files that it imports."""
    paths = {path for path in root.rglob("*.py") if path.name != "__init__.py"}
    names = {".".join(path.relative_to(root).with_suffix("").parts): path for path in paths}

    def file_of(module):
        while module and module not in names:
            module = module.rpartition(".")[0]
        return module

    return {name: {file_of(module) for module in imported(path)} - {"", name} for name, path in names.items()}


def circle_in(imports):
    """A circle of files, the first once more at its end; None if there is none."""
    done = set()

    def walk(name, way):
        if name in way:
            return [*way[way.index(name) :], name]
        if name in done:
            return None
        for other in sorted(imports[name]):
            if circle := walk(other, [*way, name]):
                return circle
        done.add(name)
        return None

    return next((circle for name in sorted(imports) if (circle := walk(name, []))), None)


def test_every_subpackage_is_listed():
    found = {path.parent.relative_to(PACKAGE).as_posix() for path in PACKAGE.glob("*/**/__init__.py")} - {"kernels"}
    assert found == set(MAY_IMPORT)
    assert {path.stem for path in PACKAGE.glob("*.py")} == set(SHARED)


@pytest.mark.parametrize("subpackage", MAY_IMPORT)
def test_a_subpackage_imports_from_those_before_it(subpackage):
    for path in (PACKAGE / subpackage).glob("*.py"):
        assert subpackages_of(path) - {subpackage} <= MAY_IMPORT[subpackage], path


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
def test_a_file_beside_the_subpackages_imports_what_is_listed(name):
    assert set(parts_of(PACKAGE / f"{name}.py")) - {name} == SHARED[name]


def test_kernels_import_kernels_alone():
    for path in (PACKAGE / "kernels").glob("*.py"):
        assert set(parts_of(path)) <= {"kernels"}, path


def test_no_files_import_each_other_in_a_circle():
    imports = files_imported(PACKAGE)
    assert {"graph.build.building", "cells.corpus", "errors"} <= set(imports)
    circle = circle_in(imports)
    assert circle is None, " imports ".join(circle or ())


@pytest.mark.parametrize(
    ("text", "circle"),
    [
        ("from corrmask_fast.cells import corpus", True),
        ("from corrmask_fast.cells.corpus import Corpus", True),
        ("from corrmask_fast import Corpus", True),
        ("def late():\n    import corrmask_fast.cells.corpus", True),
        (
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from corrmask_fast.cells.corpus import Corpus",
            True,
        ),
        ("from corrmask_fast.errors import InputError", False),
    ],
)
def test_a_planted_circle_is_found(tmp_path, text, circle):
    """corpus imports vocabulary, which imports a file two folders down, which imports corpus."""
    for path, content in {
        "cells/corpus.py": "from corrmask_fast.cells.vocabulary import Vocabulary",
        "cells/vocabulary.py": "from corrmask_fast.cells.inner.planted import thing",
        "cells/inner/planted.py": text,
        "errors.py": "",
    }.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(content)
    expected = ["cells.corpus", "cells.vocabulary", "cells.inner.planted", "cells.corpus"] if circle else None
    assert circle_in(files_imported(tmp_path)) == expected


@pytest.mark.parametrize(
    ("text", "subpackages"),
    [
        ("from corrmask_fast import CorrMasker, InputError", {"masking/strategies"}),
        ("import corrmask_fast\ndef late(): return corrmask_fast.build_dependency_graph", {"graph/build"}),
        ("from corrmask_fast.graph.build import work", {"graph/build"}),
        ("from corrmask_fast.graph.compare import merge_graphs", {"graph"}),
        ("def late():\n    from corrmask_fast.cli import main", {"cli"}),
        ("import corrmask_fast.audit.masks", {"audit"}),
        ("from corrmask_fast.testing import Case", {"cells", "graph", "masking", "masking/strategies"}),
        ("from corrmask_fast import plots, __version__", set()),
    ],
)
def test_every_way_to_import_counts(tmp_path, text, subpackages):
    (tmp_path / "module.py").write_text(text)
    assert subpackages_of(tmp_path / "module.py") == subpackages
