"""A strategy is added in few files, and a batch passes through few (docs/design.md): both are counted."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import pytest
import torch

import corrmask_fast
from corrmask_fast.kernels import layout
from corrmask_fast.masking.strategies import LEARNED_STRATEGIES, OF_MODEL, OPTIONS, SOURCES, STRATEGIES
from corrmask_fast.testing import make_graph, make_vocabulary

PACKAGE = Path(corrmask_fast.__file__).parent
STEMS = sorted({kernels.stem for kernels in layout.KERNELS})
OWN = (
    "kernels/{}.py",
    "kernels/{}.cu",
    "kernels/mask.py",
    "kernels/layout.py",
    "masking/strategies/{}.py",
    "reference.py",
    "plots.py",  # a line: its colour and marker
)
# Files that use a strategy as any caller could: the number of files to touch for a new one does not grow by them.
USERS = {
    # CorrMask-MAM: CorrMask whose seeds are learned; balanced CorrMask: by the same graphs; its frequencies, matched
    # and the CPU kernel of gene sets looks genes up in the same table
    "corrmask": {
        "masking/strategies/mam.py",
        "masking/strategies/balanced.py",
        "masking/strategies/matched.py",
        "comparison/differences.py",  # questions that a comparison answers
        "kernels/balanced.py",
        "kernels/gene_sets.py",
    },
    "balanced": {"comparison/differences.py"},
    # zeros are masked at random; weights stand in the random order; held-out cells and an audit's control go by it
    "random": {
        "audit/masks.py",
        "masking/value_masking.py",
        "masking/strategies/weighted.py",
        "training/run.py",
        "evaluation/masked_scores.py",
        "evaluation/shortcut.py",  # a version of a cell with random genes masked
        "comparison/models.py",
        "comparison/estimate.py",
    },
}
ORDINARY = {"corrmask", "random", "span", *SOURCES}  # texts that also name the package, a sampler, a metric, a table


def names_in(path):
    """Names, texts and imported modules of Python code without its docstrings; of CUDA code the words."""
    text = path.read_text()
    if path.suffix != ".py":
        return set(re.findall(r"\w+", re.sub(r"//.*", "", text)))
    tree, found = ast.parse(text), set()
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            found.add(node.id)
        elif isinstance(node, ast.Attribute):
            found.add(node.attr)
        elif isinstance(node, ast.ImportFrom):
            found |= {name.name for name in node.names}
            module = (node.module or "").rpartition(".")
            if node.level or module[0].endswith("strategies"):
                found.add(f"import {module[2]}")
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            found.add(repr(node.value))
    return found


def names_of(stem):
    """What a strategy is called in code: its number, classes, module, kernels, and its names in the table."""
    numbers = {name for name in dir(layout) if name.isupper() and name.lower() == stem}
    modules = corrmask_fast._MODULES.items()
    classes = {name for name, module in modules if module == f"masking.strategies.{stem}"}
    table = {repr(name) for name, each in STRATEGIES.items() if each.masker in classes and name not in ORDINARY}
    assert numbers, f"kernels/layout.py numbers no strategy {stem}"
    assert classes, f"no class of masking/strategies/{stem}.py is public"
    return {*numbers, *classes, *table, f"import {stem}", f"{stem}_i64"}


@pytest.mark.parametrize("stem", STEMS)
def test_a_strategy_is_named_in_six_files_and_where_it_has_its_colour(stem):
    files = [*PACKAGE.rglob("*.py"), *(PACKAGE / "kernels").glob("*"), PACKAGE / "kernels" / "rows.cuh"]
    files = {path for path in files if path.suffix in {".py", ".cu", ".cuh"} and path.name != "__init__.py"}
    found = {path.relative_to(PACKAGE).as_posix() for path in files if names_in(path) & names_of(stem)}
    assert found <= {name.format(stem) for name in OWN} | USERS.get(stem, set())


def test_names_in_code_are_found(tmp_path):
    """Or the count would be of nothing."""
    texts = ["x = SPAN", "from .span import f", "y = SpanMasker(v)", "import a\nx = a.SpanMasker"]
    for text in texts:
        (tmp_path / "x.py").write_text(text)
        assert names_in(tmp_path / "x.py") & names_of("span"), text
    (tmp_path / "x.py").write_text('"""SPAN."""\nspan = "mean span"')
    assert not names_in(tmp_path / "x.py") & names_of("span")
    (tmp_path / "x.py").write_text("x = 'pmi-rand'")
    assert names_in(tmp_path / "x.py") & names_of("pmi")
    assert "span_i64" in names_in(PACKAGE / "kernels" / "span.cu")


@pytest.mark.parametrize("name", [*STRATEGIES, *LEARNED_STRATEGIES])
def test_the_table_says_what_a_masker_takes(name):
    strategy = (STRATEGIES | LEARNED_STRATEGIES)[name]
    assert strategy.needs in SOURCES
    assert {*strategy.takes, *strategy.fixed} <= {*OPTIONS, *OF_MODEL}
    assert ("structural_ratio" in {*strategy.takes, *strategy.fixed}) == (strategy.ratio is not None)
    vocabulary = make_vocabulary(20)
    pmi = corrmask_fast.PMITable.from_corpus(corrmask_fast.read_corpus([[2, 3]], vocabulary), progress=False)
    assert set(strategy.requires) <= set(strategy.takes)
    given = {"dim": 8} if name in LEARNED_STRATEGIES else {option: {} for option in strategy.requires}
    given |= {"vocabulary": vocabulary, "graph": make_graph(vocabulary), "pmi": pmi, "sets": {"a set": [2, 3]}}
    given |= {"corpus": corrmask_fast.read_corpus([[*range(2, 22)]], vocabulary)} if strategy.fitted else {}
    masker = corrmask_fast.make_masker(name, **given)
    if strategy.control:
        assert masker.label == strategy.label
    else:
        assert name.startswith(masker.label.lower().replace(" ", "-"))
    if not strategy.fitted:  # whose options are those of the strategy that it is fitted to
        assert masker.structural_ratio == (strategy.ratio or 0.0)
        assert all(hasattr(masker, option) for option in strategy.takes)


# ------------------------------------------------------------------------------------------------- the walk of a batch


def files_of(call):
    """Files of the package whose functions a call runs; kernels are machine code, and not among them."""
    found = set()

    def note(frame, event, _):
        path = Path(frame.f_code.co_filename)
        if event == "call" and path.is_relative_to(PACKAGE) and not path.is_relative_to(PACKAGE / "kernels"):
            found.add(path.relative_to(PACKAGE).as_posix())

    sys.setprofile(note)
    try:
        call()
    finally:
        sys.setprofile(None)
    return found - {"threads.py", "buffers.py"}


ENGINE = {f"masking/engine/{name}.py" for name in ("checks", "draws", "rows")}


def test_a_batch_on_the_cpu_passes_through_six_files():
    """The fifth are checks of numbers in errors.py, the sixth is kernels/mask.py."""
    masker = corrmask_fast.SpanMasker(make_vocabulary(30))
    ids = torch.arange(2, 32).repeat(3, 1)
    masker(ids, epoch=0)  # packs what the kernel takes
    assert files_of(lambda: masker(ids, ids > 5, ids > 20, epoch=1)) <= {"masking/base.py", "errors.py", *ENGINE}
    indptr, tokens = torch.arange(4).numpy() * 30, ids.numpy().ravel()
    assert files_of(lambda: masker.mask_ragged(indptr, tokens, epoch=1)) <= {"masking/base.py", "errors.py", *ENGINE}


def test_a_batch_on_a_device_passes_through_six_files(emulated_cuda):
    """Beside base.py, checks.py and draws.py: the device's own two, and the kernel."""
    from corrmask_fast.masking.engine import device

    masker = corrmask_fast.SpanMasker(make_vocabulary(30))
    plan, ids = device.make_plan(*masker.fixed_arguments()), torch.arange(2, 32).repeat(3, 1)
    batch = ids, None, None, torch.arange(3), layout.GIVEN, 0, None, None, False
    device.mask_batch(plan, *batch)
    assert files_of(lambda: device.mask_batch(plan, *batch)) == {"masking/engine/device.py", "cuda.py"}
    assert emulated_cuda.launches[-1][0] == "span_i64"
