"""Bad input at the command line: one clear line for everything that can be wrong, and exit code 2."""

from __future__ import annotations

import os
import pickle
import sys

import numpy as np
import pytest

from corrmask_fast import DependencyGraph, Vocabulary
from corrmask_fast.cli.main import INTERRUPTED, main
from corrmask_fast.cli.options import in_options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--structural-ratio", "1.5"], "--structural-ratio must be a number in [0, 1]; got 1.5"),
        (["--structural-ratio", "nan"], "--structural-ratio must be a number in [0, 1]; got nan"),
        (["--mlm-probability", "0"], "--mlm-probability must be a number in (0, 1); got 0.0"),
        (["--max-partners", "-1"], "--max-partners must be an integer "),
        (["--seed", "-1"], "--seed must be an integer in [0, 18446744073709551615]; got -1"),
        (["--epochs", "0"], "--epochs must be an integer >= 1; got 0"),
        (["--n-cells", "0"], "--n-cells must be an integer >= 1; got 0"),
        (["--threads", "0"], "--threads must be an integer >= 1; got 0"),
        (["--plot", "a.xyz"], "a picture must end in .png, .pdf or .svg; got a.xyz"),
        (["--csv", "nowhere/a.csv"], "cannot write nowhere/a.csv: the folder nowhere does not exist"),
    ],
)
def test_audit_parameters_out_of_range(cli_folder, fails, options, message):
    err = fails(
        "audit", cli_folder / "cells.npz", "--graph", cli_folder / "graph.safetensors", "--no-progress", *options
    )
    assert message in err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--min-cooccurrence", "301"], "--min-cooccurrence must be at most the number of cells"),
        (["--rho-min", "1.1"], "--rho-min must be a number in [0, 1]; got 1.1"),
        (["--n-neighbors", "0"], "--n-neighbors must be an integer >= 1; got 0"),
        (["--device", "tpu"], "--device must be 'auto', 'cpu' or 'cuda'; got 'tpu'"),
        (["-o", "g.txt"], "a graph file must end in .safetensors; got g.txt"),
        (["--device", "cpu", "-o", "nowhere/g.safetensors"], "the folder nowhere does not exist"),
    ],
)
def test_graph_parameters_out_of_range(cli_folder, tmp_path, fails, options, message):
    output = tmp_path / "g.safetensors"
    assert message in fails("graph", "build", cli_folder / "cells.npz", "-o", output, "--no-progress", *options)
    assert list(tmp_path.iterdir()) == []


def save_cells(path, rows, vocabulary):
    indptr = np.cumsum([0, *map(len, rows)])
    text = np.frombuffer(vocabulary.to_json().encode(), np.uint8)
    np.savez(path, indptr=indptr, tokens=np.array([token for row in rows for token in row], int), vocabulary=text)
    return path


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([[2, 3], [4, 500]], "cell 1 holds token 500, outside the vocabulary of 122 tokens"),
        ([], "the corpus has no cells"),
    ],
    ids=["a token outside the vocabulary", "no cells"],
)
def test_corpora_that_are_none(made_up_cells, tmp_path, fails, rows, message):
    corpus = save_cells(tmp_path / "bad.npz", rows, made_up_cells.vocabulary)
    assert message in fails("graph", "build", corpus, "-o", tmp_path / "g.safetensors", "--no-progress")
    assert not (tmp_path / "g.safetensors").exists()


def test_an_empty_corpus_cannot_be_audited(made_up_cells, cli_folder, tmp_path, fails):
    corpus = save_cells(tmp_path / "empty.npz", [], made_up_cells.vocabulary)
    assert "empty corpus" in fails("audit", corpus, "--graph", cli_folder / "graph.safetensors", "--no-progress")


def test_a_graph_of_another_vocabulary(cli_folder, tmp_path, fails):
    other = Vocabulary(("<pad>", "<mask>", *(f"G{i}" for i in range(120))))
    DependencyGraph.from_edges([("G0", "G1")], other).save(tmp_path / "other.safetensors")
    err = fails("audit", cli_folder / "cells.npz", "--graph", tmp_path / "other.safetensors", "--no-progress")
    assert "the graph and the corpus have different vocabularies" in err
    assert "token 2 is 'G0' in one and 'GENE0001' in the other" in err


@pytest.mark.parametrize("command", ["info", "show", "audit"])
def test_graph_files_that_are_none(command, cli_folder, tmp_path, fails):
    whole = (cli_folder / "graph.safetensors").read_bytes()
    altered = bytearray(whole)
    altered[-5] ^= 1
    contents = {
        "truncated": whole[: len(whole) // 2],
        "altered": bytes(altered),
        "empty": b"",
        "text": b"not a graph" * 9,
    }
    for name, content in contents.items():
        path = tmp_path / name
        path.write_bytes(content)
        if command == "audit":
            err = fails("audit", cli_folder / "cells.npz", "--graph", path, "--no-progress")
        else:
            err = fails("graph", command, path, *(["GENE0001"] if command == "show" else []))
        assert str(path) in err
        assert any(word in err for word in ("truncated", "altered", "damaged"))
    assert "no graph file at" in fails("graph", "info", tmp_path / "missing")


def test_unknown_genes_and_files(cli_folder, tmp_path, fails):
    unknown = fails("graph", "show", cli_folder / "graph.safetensors", "NOPE")
    assert "no gene 'NOPE'" in unknown
    assert "symbols" not in unknown  # its names are symbols
    ids = Vocabulary(("<pad>", "<mask>", *(f"ENSG{number:011}" for number in range(4))))
    DependencyGraph.from_edges([(2, 3)], ids).save(tmp_path / "ids.safetensors")
    assert "this graph has no symbols" in fails("graph", "show", tmp_path / "ids.safetensors", "CD3D")
    assert "-n must be an integer >= 0; got -1" in fails(
        "graph", "show", cli_folder / "graph.safetensors", "GENE0001", "-n", "-1"
    )
    assert "no corpus at" in fails(
        "graph", "build", tmp_path / "none", "-o", tmp_path / "g.safetensors", "--no-progress"
    )
    missing = fails("tokenize", tmp_path / "cells.h5ad", tmp_path / "out", "--tokens", tmp_path / "tokens.pkl")
    assert "tokens.pkl; give a .json or .pkl dictionary" in missing
    assert "--tokens belongs to --input" in fails("demo", "--tokens", "tokens.pkl")
    counts = fails("graph", "build", tmp_path / "c.h5ad", "-o", tmp_path / "g.safetensors")
    assert "run `corrmask-fast tokenize` first" in counts


def test_messages_speak_of_options():
    options = ["layer", "gene_column", "rho_min", "seed", "device"]
    for message, said in {
        "has X (layer=None); try layer='raw' or layer='a b'": "has X (without --layer); try --layer raw or --layer a b",
        "name it with gene_column=, or not": "name it with --gene-column, or not",
        "below rho_min=0.2; lower rho_min": "below --rho-min 0.2; lower --rho-min",
        "seed must be an integer; got 'seed'": "--seed must be an integer; got 'seed'",
        "/data/rho_min/x.rho_min: a device, a layer": "/data/rho_min/x.rho_min: a device, a layer",
    }.items():
        assert in_options(message, options) == said


def test_a_hostile_pickle_runs_nothing(tmp_path, fails):
    class Attack:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path}/attacked",)

    (tmp_path / "tokens.pkl").write_bytes(pickle.dumps({"<pad>": Attack()}))
    err = fails("tokenize", tmp_path / "cells.h5ad", tmp_path / "out", "--tokens", tmp_path / "tokens.pkl")
    assert "refused: the pickle asks for" in err
    assert [path.name for path in tmp_path.iterdir()] == ["tokens.pkl"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda counts: -counts, "counts must be whole numbers >= 0"),
        (lambda counts: counts * 0.5, "counts must be whole numbers >= 0"),
        (lambda counts: counts.multiply(1e4 / counts.sum(1)).tocsr().log1p(), "log-transformed"),
    ],
    ids=["negative", "fractional", "logged"],
)
def test_counts_that_are_none_leave_no_output(change, message, made_up_cells, cli_folder, tmp_path, fails):
    anndata = pytest.importorskip("anndata")
    counts = change(made_up_cells.counts.astype(float)).tocsr()
    adata = anndata.AnnData(counts)
    adata.var_names = list(made_up_cells.gene_names)
    adata.write_h5ad(tmp_path / "bad.h5ad")
    err = fails(
        "tokenize", tmp_path / "bad.h5ad", tmp_path / "out", "--tokens", cli_folder / "tokens.json", "--no-progress"
    )
    assert message in err
    assert [path.name for path in tmp_path.iterdir()] == ["bad.h5ad"]


def test_a_missing_extra_names_what_to_install(cli_folder, tmp_path, fails, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    err = fails(
        "audit", cli_folder / "cells.npz", "--graph", cli_folder / "graph.safetensors", "--plot", tmp_path / "a.png"
    )
    assert "pip install 'corrmask-fast[plot]'" in err
    monkeypatch.setitem(sys.modules, "anndata.io", None)
    err = fails("tokenize", tmp_path / "c.h5ad", tmp_path / "out", "--tokens", cli_folder / "tokens.json")
    assert "pip install 'corrmask-fast[anndata]'" in err
    assert list(tmp_path.iterdir()) == []


def test_no_traceback_reaches_a_user(cli_folder, tmp_path, run):
    result = run(sys.executable, "-m", "corrmask_fast", "graph", "info", tmp_path / "none")
    assert (result.returncode, result.stdout) == (2, "")
    message = f"no graph file at {tmp_path}/none; build one with `corrmask-fast graph build`"
    assert result.stderr == f"corrmask-fast: error: {message}\n"


def test_an_interrupt_exits_with_130(monkeypatch, capsys):
    def interrupt(path):
        raise KeyboardInterrupt

    monkeypatch.setattr("corrmask_fast.cli.graph.load_graph", interrupt)
    assert main(["graph", "info", "x"]) == INTERRUPTED
    assert capsys.readouterr().err == "corrmask-fast: interrupted\n"


def test_a_reader_that_leaves_early_is_no_error(cli_folder, run):
    command = (
        f"{sys.executable} -m corrmask_fast graph info {cli_folder}/graph.safetensors | true; exit ${{PIPESTATUS[0]}}"
    )
    result = run("bash", "-c", command)
    assert (result.returncode, result.stderr) == (0, "")
