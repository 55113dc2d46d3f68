"""The demo end to end at a small size, and what it measures with: today's input path."""

from __future__ import annotations

import importlib.util
import re
import sys

import numpy as np
import pytest

from corrmask_fast import (
    CorrMasker,
    DependencyGraph,
    InputError,
    Vocabulary,
    audit_masking,
    read_corpus,
)
from corrmask_fast.cli.demo import MODEL_LENGTH, DemoSize, run_demo
from corrmask_fast.masking.stock import StockPreCollator, stock_collator

VOCABULARY = Vocabulary(("<pad>", "<mask>", *(f"G{i}" for i in range(40))))


def test_the_stock_path_is_the_stock_path():
    pytest.importorskip("transformers")
    cells = [{"input_ids": list(range(2, 42))}, {"input_ids": [5, 3]}, {"input_ids": []}]
    batch = stock_collator(VOCABULARY)(cells)
    ids, labels, attention = (batch[name].numpy() for name in ("input_ids", "labels", "attention_mask"))
    assert attention.sum(1).tolist() == [40, 2, 0]
    assert np.all(ids[attention == 0] == VOCABULARY.pad_token_id)
    assert np.all(labels[attention == 0] == -100)
    masked = labels != -100
    original = np.zeros((3, 40), int)
    for row, cell in enumerate(cells):
        original[row, : len(cell["input_ids"])] = cell["input_ids"]
    assert np.array_equal(labels[masked], original[masked])
    assert np.array_equal(ids[~masked], original[~masked])
    assert StockPreCollator(VOCABULARY).pad(cells, pad_to_multiple_of=64)["input_ids"].shape == (3, 64)


SMALL = DemoSize(n_cells=600, n_genes=200, n_modules=4, compare_seconds=0.05, training_steps=40)


@pytest.fixture
def extras():
    for module in ("anndata", "matplotlib"):
        pytest.importorskip(module)


def test_the_demo_end_to_end(extras, tmp_path, capsys):
    pytest.importorskip("datasets")
    pytest.importorskip("transformers")
    folder = tmp_path / "new-demo"
    report = run_demo(folder, progress=False, size=SMALL)
    out = capsys.readouterr().out
    text = report.read_text()
    assert report == folder / "report.md"
    for part in (
        "exactly floor(n * 0.15) of n in 600 of 600 cells",
        "loss at masked genes fell",
        "control (lambda = 0)",
    ):
        assert part in text.lower()
        assert part in " ".join(out.lower().split())
    recall = re.search(r"stand in 60 cells or more .*: ([\d.]+) % are edges \(([\d.]+) % by chance", text)
    assert float(recall[1]) > 5 * float(recall[2])
    assert len(re.findall(r"our collator .* [\d.]+x", text)) == 2
    for picture in re.findall(r"!\[.*\]\((.*)\)", text):
        assert (folder / picture).read_bytes().startswith(b"\x89PNG")
    graph = DependencyGraph.load(folder / "graph.safetensors")
    assert re.search(rf"^edges +{graph.n_edges:,}$", text, re.MULTILINE)
    audited = audit_masking(CorrMasker(graph), read_corpus(folder / "cells.dataset"), graph, progress=False)
    assert f"{100 * audited['CorrMask'].hit_rate:.1f} %" in text

    # Once more into the same folder: what is there is of an earlier demo.
    assert run_demo(folder, input_path=folder / "cells.h5ad", progress=False, size=SMALL) == report
    again = report.read_text()
    assert again.startswith("# CorrMask on cells.h5ad")
    assert "Vocabulary: the genes of the file" in again
    assert "Ribosomal" not in again


def test_the_demo_of_cells_longer_than_the_tiny_bert(extras, tmp_path):
    import anndata

    pytest.importorskip("transformers")
    counts = np.random.default_rng(0).poisson(3, (100, MODEL_LENGTH + 50)) + 1.0  # every gene is in every cell
    cells = anndata.AnnData(counts.astype(np.float32))
    cells.var_names = [f"G{i}" for i in range(counts.shape[1])]
    cells.write_h5ad(tmp_path / "long.h5ad")
    report = run_demo(tmp_path / "demo", input_path=tmp_path / "long.h5ad", progress=False, size=SMALL).read_text()
    assert f"first {MODEL_LENGTH} " in report
    assert "loss at masked genes" in report.lower()


def test_the_demo_without_hugging_face(extras, tmp_path, monkeypatch, capsys):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name, *rest: None if name == "datasets" else find_spec(name, *rest)
    )
    monkeypatch.setitem(sys.modules, "transformers", None)
    report = run_demo(tmp_path / "demo", progress=False, size=SMALL)
    text = report.read_text()
    assert "The comparison and the tiny BERT are left out: this needs 'transformers'" in text
    assert "pip install 'corrmask-fast[hf]'" in text
    assert (tmp_path / "demo" / "cells.npz").is_file()
    assert "Masking audit" in text


def test_the_demo_clears_no_folder_but_its_own(extras, tmp_path):
    (tmp_path / "cells.dataset").mkdir()
    with pytest.raises(InputError, match="not empty and not of an earlier demo; choose another folder with --out"):
        run_demo(tmp_path, progress=False, size=SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["cells.dataset"]
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="it is a file; give the name of a folder"):
        run_demo(tmp_path / "file", progress=False, size=SMALL)
    with pytest.raises(InputError, match="does not exist; create it first"):
        run_demo(tmp_path / "nowhere" / "demo", progress=False)
    with pytest.raises(InputError, match="symbols name the genes of a token dictionary"):
        run_demo(tmp_path / "demo", input_path="cells.h5ad", symbols="symbols.json", progress=False)
    assert not (tmp_path / "demo").exists()
