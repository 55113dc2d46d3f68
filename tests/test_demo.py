"""The demo end to end at a small size, and what it measures with: gene sets, and today's input path."""

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
    build_dependency_graph,
    read_corpus,
    tokenize,
)
from corrmask_fast.cli.demo import DemoSize, run_demo
from corrmask_fast.graph.genesets import ribosomal_genes, set_cohesion
from corrmask_fast.masking.stock import StockPreCollator, stock_collator

VOCABULARY = Vocabulary(("<pad>", "<mask>", *(f"G{i}" for i in range(40))))


def make_graph(pairs):
    return DependencyGraph.from_edges([tuple(map(int, pair)) for pair in pairs], VOCABULARY)


def test_cohesion_worked_by_hand():
    # Set {2, 3, 4}: edges 2-3 and 3-9; beside it 7-8 and 8-9. Degrees: 2:1 3:2 7:1 8:2 9:2, sum 8.
    found = set_cohesion(make_graph([(2, 3), (3, 9), (7, 8), (8, 9)]), [2, 3, 4])
    assert (found.genes, found.partners) == (2, 3)
    assert found.share == 2 / 3
    assert found.chance == pytest.approx((1 * 2 / 7 + 2 * 1 / 6) / 3)
    assert found.enrichment == found.share / found.chance
    assert "66.7 % of the 3 partners of 2 genes" in str(found)


def test_chance_is_that_of_graphs_rewired_with_the_same_degrees():
    rng = np.random.default_rng(0)
    graph = make_graph([rng.choice(40, 2, replace=False) + 2 for _ in range(150)])
    inside = np.zeros(VOCABULARY.size, bool)
    inside[2:12] = True
    stubs = np.repeat(np.arange(VOCABULARY.size), np.diff(graph.indptr))
    shares = []
    for _ in range(2000):
        a, b = rng.permutation(stubs).reshape(2, -1)
        a, b = a[a != b], b[a != b]
        shares.append(2 * np.sum(inside[a] & inside[b]) / (np.sum(inside[a]) + np.sum(inside[b])))
    error = np.std(shares) / np.sqrt(len(shares))
    assert abs(set_cohesion(graph, range(2, 12)).chance - np.mean(shares)) < 5 * error


def test_cohesion_of_genes_without_partners_and_of_nothing():
    graph = make_graph([(2, 3)])
    assert str(set_cohesion(graph, ["G8"])) == "no gene of the set has a partner"
    with pytest.raises(InputError, match="the gene set is empty"):
        set_cohesion(graph, [])
    with pytest.raises(InputError, match="no gene 'G99'"):
        set_cohesion(graph, ["G99"])


def test_ribosomal_genes_by_symbol():
    yes = ["RPL3", "RPS6", "RPLP0", "RPSA", "RPL10A", "RPS4X", "RPS4Y1", "RPL36AL", "RPL22L1", "RPS27L", "Rpl13a"]
    no = ["RPS6KA1", "RPS19BP1", "RPL7P9", "RPSAP58", "RPL34-AS1", "MRPL13", "RPN1", "RPL17-C18orf32"]
    ids = [f"ENSG{i}" for i in range(len(yes + no))]
    vocabulary = Vocabulary(("<pad>", "<mask>", *ids), dict(zip(ids, yes + no, strict=True)))
    assert ribosomal_genes(vocabulary).tolist() == list(range(2, 2 + len(yes)))


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
    ratios = [float(ratio) for ratio in re.findall(r"our collator .* ([\d.]+)x", text)]
    assert len(ratios) == 2
    assert all(ratio > 1 for ratio in ratios)
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


def test_ribosomal_genes_are_each_others_partners_in_blood_cells(extras, data_folder, tmp_path):
    dictionaries = data_folder / "geneformer"
    vocabulary = Vocabulary.from_token_dictionary(
        dictionaries / "token_dictionary.pkl", dictionaries / "gene_name_id_dict.json"
    )
    medians = dictionaries / "gene_median_dictionary.pkl"
    tokenize(data_folder / "pbmc3k.h5ad", tmp_path / "cells.npz", vocabulary, medians, progress=False)
    graph = build_dependency_graph(read_corpus(tmp_path / "cells.npz"), progress=False)
    found = set_cohesion(graph, ribosomal_genes(vocabulary))
    assert found.genes > 60
    assert found.share > 0.5
    assert found.enrichment > 2
