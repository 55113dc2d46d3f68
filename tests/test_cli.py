"""The command line: what it prints, what it writes, and one clear line for everything that can be wrong."""

from __future__ import annotations

import csv
import json
import os
import pickle
import re
import subprocess
import sys

import numpy as np
import pytest

from corrmask_fast import (
    DependencyGraph,
    Vocabulary,
    build_graphs_by,
    cli,
    get_num_threads,
    read_corpus,
    set_num_threads,
    write_corpus,
)
from corrmask_fast.cli import main
from corrmask_fast.cli_options import in_options
from corrmask_fast.synthetic import generate_cells


@pytest.fixture(scope="module")
def cells():
    return generate_cells(300, 120, n_modules=4, n_types=2, seed=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, cells):
    """A corpus of 300 cells (``cells.npz``), its graph, its token dictionary."""
    folder = tmp_path_factory.mktemp("cli")
    ranked = [np.lexsort((row.indices, -row.data)) for row in cells.counts]
    write_corpus(
        read_corpus(
            [row.indices[order] + 2 for row, order in zip(cells.counts, ranked, strict=True)], cells.vocabulary
        ),
        folder / "cells.npz",
    )
    options = ["--min-cooccurrence", "30", "--min-presence", "20", "--no-progress"]
    assert main(["graph", "build", f"{folder}/cells.npz", "-o", f"{folder}/graph.safetensors", *options]) == 0
    tokens = {name: token for token, name in enumerate(cells.vocabulary.names)}
    (folder / "tokens.json").write_text(json.dumps(tokens))
    return folder


def run(*command):
    return subprocess.run(list(map(str, command)), check=False, capture_output=True, text=True)


@pytest.fixture
def fails(capsys):
    """Run a command that must fail: one line on stderr, exit code 2."""

    def fail(*arguments):
        capsys.readouterr()
        assert main([str(argument) for argument in arguments]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("corrmask-fast: error: ")
        assert err.count("\n") == 1
        return err

    return fail


# ------------------------------------------------------------------------------------------------------- what it does


def test_graphs_by_group(folder, cells, capsys, fails):
    corpus = read_corpus(folder / "cells.npz")
    corpus.obs = {"cell_type": np.array([f"type {i}" for i in cells.cell_types])}
    write_corpus(corpus, folder / "typed.npz")
    given = ["--min-cooccurrence", "30", "--min-presence", "20", "--no-progress", "--by"]
    assert main(["graph", "build", f"{folder}/typed.npz", "-o", f"{folder}/by_type", *given, "cell_type"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert re.search(
        r"^type 0: DependencyGraph\(\d+ edges between \d+ of 120 genes\), from \d+ cells$", out, re.MULTILINE
    )
    assert out.endswith(f"saved to {folder}/by_type: 2 graphs, and groups.csv\n")
    graphs = build_graphs_by(read_corpus(folder / "typed.npz"), "cell_type", min_cooccurrence=30, min_presence=20)
    for number, (group, graph) in enumerate(graphs.items()):
        stored = DependencyGraph.load(folder / "by_type" / f"type_{number}.safetensors")
        assert (group, stored.fingerprint) == (f"type {number}", graph.fingerprint)
    again = fails("graph", "build", f"{folder}/typed.npz", "-o", f"{folder}/by_type", *given, "cell_type")
    assert "exists already and is no empty folder" in again
    assert "no obs column 'organ'; it has 'cell_type'" in fails(
        "graph", "build", f"{folder}/typed.npz", "-o", f"{folder}/by_organ", *given, "organ"
    )
    assert not (folder / "by_organ").exists()


def test_help_is_instant_and_has_an_example_for_each_command():
    code = (
        "import sys; from corrmask_fast.cli import main\n"
        "try: main(['--help'])\nexcept SystemExit as e: assert e.code == 0\n"
        "assert not {'numba', 'torch', 'scipy', 'transformers', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    for command in (
        ["tokenize"],
        ["graph", "build"],
        ["graph", "show"],
        ["graph", "info"],
        ["graph", "plot"],
        ["audit"],
        ["demo"],
    ):
        result = run(sys.executable, "-m", "corrmask_fast", *command, "--help")
        assert result.returncode == 0
        assert f"example:\n  corrmask-fast {' '.join(command)}" in result.stdout


def test_version(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["--version"])
    assert exit_.value.code == 0
    assert capsys.readouterr().out.startswith("corrmask-fast ")


@pytest.mark.parametrize("arguments", [[], ["mask"], ["graph"], ["audit"], ["audit", "x", "--graph"]])
def test_wrong_usage_exits_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2
    assert "usage: corrmask-fast" in capsys.readouterr().err


def test_graph_show_lists_partners_by_strength(folder, capsys):
    graph = DependencyGraph.load(folder / "graph.safetensors")
    hub = int(graph.degrees.argmax())
    ids, rho = graph.neighbors(hub)
    name = graph.vocabulary.names[hub]
    assert main(["graph", "show", f"{folder}/graph.safetensors", name, "-n", "2"]) == 0
    title, head, *lines = capsys.readouterr().out.splitlines()
    assert title == f"{name}, token {hub}: {ids.size} partners"
    assert head.split() == ["partner", "token", "rho", "rho,", "all", "cells"]
    assert [line.split()[:2] for line in lines[:2]] == [[graph.vocabulary.names[i], str(i)] for i in ids[:2]]
    assert [float(line.split()[2]) for line in lines[:2]] == [round(float(value), 3) for value in rho[:2]]
    row = slice(graph.indptr[hub], graph.indptr[hub + 1])
    everywhere = dict(zip(graph.indices[row].tolist(), graph.rho_global[row].tolist(), strict=True))
    assert [float(line.split()[3]) for line in lines[:2]] == [round(everywhere[int(i)], 3) for i in ids[:2]]
    assert lines[2] == f"... and {ids.size - 2} more"
    assert main(["graph", "show", f"{folder}/graph.safetensors", str(hub), "-n", "0"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == ids.size + 2


def test_graph_show_of_a_gene_without_partners(tmp_path, capsys):
    vocabulary = Vocabulary(("<pad>", "<mask>", "A", "B", "C"), symbols={"C": "CD3E"})
    DependencyGraph.from_edges([("A", "B")], vocabulary).save(tmp_path / "g.safetensors")
    assert main(["graph", "show", f"{tmp_path}/g.safetensors", "CD3E"]) == 0
    assert (
        capsys.readouterr().out == "CD3E (C), token 4: 0 partners; no other gene passed the thresholds of this graph\n"
    )
    assert main(["graph", "show", f"{tmp_path}/g.safetensors", "A"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].split() == ["B", "3", "+1.000", "-"]


def test_graph_info_names_size_and_parameters(folder, capsys):
    assert main(["graph", "info", f"{folder}/graph.safetensors"]) == 0
    out = capsys.readouterr().out
    graph = DependencyGraph.load(folder / "graph.safetensors")
    facts = dict(re.split(r"\s{2,}", line, maxsplit=1) for line in out.splitlines() if not line.startswith(" "))
    assert facts["edges"] == f"{graph.n_edges:,}"
    assert facts["genes it was built over"] == str(graph.params["n_genes_used"])
    assert facts["rho, all cells"].startswith(f"{graph.rho_global.min():+.3f}")
    assert facts["rho, cells with both"].startswith(f"{graph.rho.min():+.3f}")
    assert "min_cooccurrence=30" in out


def test_graph_parameters_reach_the_build(folder, tmp_path):
    options = {
        "n_cells": 250, "max_length": 90, "n_neighbors": 7, "rho_min": 0.1, "min_cooccurrence": 9, "min_presence": 11,
        "max_genes": 60, "seed": 3,
    }  # fmt: skip
    given = [part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    output = tmp_path / "g.safetensors"
    given += ["--no-progress", "--threads", "1"]
    assert main(["graph", "build", f"{folder}/cells.npz", "-o", str(output), *given]) == 0
    assert get_num_threads() == 1
    set_num_threads(None)
    params = DependencyGraph.load(output).params
    assert {name: params[name] for name in options} == options


def test_a_whole_corpus_in_little_memory_with_a_checkpoint(folder, tmp_path, fails):
    output, state = tmp_path / "graph.safetensors", tmp_path / "state"
    build = ["graph", "build", f"{folder}/cells.npz", "--min-cooccurrence", "30", "--no-progress", "--threads", "1"]
    whole = [*build, "--n-cells", "all", "-o", str(output)]
    assert main(whole) == 0
    expected = output.read_bytes()
    least = re.search(r"needs at least ([\d.]+MB); raise --memory-limit", fails(*whole, "--memory", "1MB"))[1]
    for _ in range(2):  # the second takes up what the first has done
        assert main([*whole, "--memory", least, "--checkpoint", str(state)]) == 0
        assert output.read_bytes() == expected
    other = fails(*build, "-o", output, "--n-cells", "100", "--checkpoint", state)
    assert "belongs to another build: --n-cells was None there and is 100 now" in other
    both = fails(*build, "-o", tmp_path / "graphs", "--by", "cell_type", "--checkpoint", state)
    assert "--checkpoint is of one graph, and --by builds several; leave one of them out" in both


def test_audit_prints_and_saves(folder, tmp_path, capsys):
    arguments = [
        "--graph",
        f"{folder}/graph.safetensors",
        "--epochs",
        "2",
        "--n-cells",
        "100",
        "--structural-ratio",
        "1",
    ]
    files = ["--csv", f"{tmp_path}/a.csv", "--coverage-csv", f"{tmp_path}/c.csv"]
    assert main(["audit", f"{folder}/cells.npz", *arguments, *files, "--no-progress"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert out.startswith("Masking audit: 100 cells, 2 epochs")
    with (tmp_path / "a.csv").open() as file:
        ours, control = csv.DictReader(file)
    assert (ours["strategy"], control["strategy"]) == ("CorrMask", "control (lambda = 0)")
    assert float(ours["hit_rate"]) > float(control["hit_rate"])
    assert f"{100 * float(ours['hit_rate']):.2f} %" in out
    assert (tmp_path / "c.csv").read_text().count("\n") > 50


def test_audit_plot(folder, tmp_path):
    pytest.importorskip("matplotlib")
    plot = tmp_path / "a.png"
    graph = ["--graph", f"{folder}/graph.safetensors"]
    assert main(["audit", f"{folder}/cells.npz", *graph, "--plot", str(plot), "--no-progress"]) == 0
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_tokenize_build_and_audit_from_counts(cells, folder, tmp_path, capsys):
    pytest.importorskip("anndata")
    pytest.importorskip("datasets")
    cells.write_h5ad(tmp_path / "cells.h5ad")
    given = ["--tokens", f"{folder}/tokens.json", "--obs", "cell_type", "--no-progress"]
    assert main(["tokenize", f"{tmp_path}/cells.h5ad", f"{tmp_path}/cells.dataset", *given]) == 0
    out = capsys.readouterr().out
    assert "300 of 300 cells written" in out
    assert "medians: of these cells" in out
    corpus = read_corpus(tmp_path / "cells.dataset")
    assert set(corpus.obs["cell_type"]) == {"type 0", "type 1"}
    options = ["--min-cooccurrence", "30", "--min-presence", "20", "--no-progress"]
    assert main(["graph", "build", f"{tmp_path}/cells.dataset", "-o", f"{tmp_path}/g.safetensors", *options]) == 0
    assert main(["audit", f"{tmp_path}/cells.dataset", "--graph", f"{tmp_path}/g.safetensors", "--no-progress"]) == 0


def test_a_corpus_without_vocabulary_takes_a_token_dictionary(cells, folder, tmp_path, fails):
    corpus = read_corpus(folder / "cells.npz")
    np.savez(tmp_path / "plain.npz", indptr=corpus.indptr, tokens=corpus.tokens)
    build = ["graph", "build", f"{tmp_path}/plain.npz", "-o", f"{tmp_path}/g.safetensors", "--min-cooccurrence", "30"]
    assert "no vocabulary is stored" in fails(*build, "--no-progress")
    assert "--symbols belongs to --vocabulary" in fails(*build, "--symbols", "s.json", "--no-progress")
    symbols = tmp_path / "symbols.json"
    symbols.write_text(json.dumps({"RPL3": cells.gene_names[0]}))
    given = ["--vocabulary", f"{folder}/tokens.json", "--symbols", str(symbols), "--no-progress"]
    assert main([*build, *given]) == 0
    assert DependencyGraph.load(tmp_path / "g.safetensors").vocabulary.name_of(2) == "RPL3"


def test_a_graph_without_edges_is_a_warning(folder, tmp_path, capsys):
    options = ["--rho-min", "1", "--min-cooccurrence", "1", "--no-progress"]
    assert main(["graph", "build", f"{folder}/cells.npz", "-o", f"{tmp_path}/g.safetensors", *options]) == 0
    out, err = capsys.readouterr()
    assert err.startswith("corrmask-fast: warning: the graph has no edges")
    assert err.count("\n") == 1
    assert re.search(r"^edges +0$", out, re.MULTILINE)


# --------------------------------------------------------------------------------------------------------- bad input


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
def test_audit_parameters_out_of_range(folder, fails, options, message):
    err = fails("audit", folder / "cells.npz", "--graph", folder / "graph.safetensors", "--no-progress", *options)
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
def test_graph_parameters_out_of_range(folder, tmp_path, fails, options, message):
    output = tmp_path / "g.safetensors"
    assert message in fails("graph", "build", folder / "cells.npz", "-o", output, "--no-progress", *options)
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
        ([[2, 3], [4, 5], [7, 6, 7]], "cell 2 holds gene GENE0006 (token 7) twice"),
        ([], "the corpus has no cells"),
    ],
    ids=["a token outside the vocabulary", "a gene twice", "no cells"],
)
def test_corpora_that_are_none(cells, tmp_path, fails, rows, message):
    corpus = save_cells(tmp_path / "bad.npz", rows, cells.vocabulary)
    assert message in fails("graph", "build", corpus, "-o", tmp_path / "g.safetensors", "--no-progress")
    assert not (tmp_path / "g.safetensors").exists()


def test_an_empty_corpus_cannot_be_audited(cells, folder, tmp_path, fails):
    corpus = save_cells(tmp_path / "empty.npz", [], cells.vocabulary)
    assert "empty corpus" in fails("audit", corpus, "--graph", folder / "graph.safetensors", "--no-progress")


def test_a_graph_of_another_vocabulary(folder, tmp_path, fails):
    other = Vocabulary(("<pad>", "<mask>", *(f"G{i}" for i in range(120))))
    DependencyGraph.from_edges([("G0", "G1")], other).save(tmp_path / "other.safetensors")
    err = fails("audit", folder / "cells.npz", "--graph", tmp_path / "other.safetensors", "--no-progress")
    assert "the graph and the corpus have different vocabularies" in err
    assert "token 2 is 'G0' in one and 'GENE0001' in the other" in err


@pytest.mark.parametrize("command", ["info", "show", "audit"])
def test_graph_files_that_are_none(command, folder, tmp_path, fails):
    whole = (folder / "graph.safetensors").read_bytes()
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
            err = fails("audit", folder / "cells.npz", "--graph", path, "--no-progress")
        else:
            err = fails("graph", command, path, *(["GENE0001"] if command == "show" else []))
        assert str(path) in err
        assert any(word in err for word in ("truncated", "altered", "damaged"))
    assert "no graph file at" in fails("graph", "info", tmp_path / "missing")


def test_unknown_genes_and_files(folder, tmp_path, fails):
    unknown = fails("graph", "show", folder / "graph.safetensors", "NOPE")
    assert "no gene 'NOPE'" in unknown
    assert "this graph has no symbols" in unknown
    assert "-n must be an integer >= 0; got -1" in fails(
        "graph", "show", folder / "graph.safetensors", "GENE0001", "-n", "-1"
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
def test_counts_that_are_none_leave_no_output(change, message, cells, folder, tmp_path, fails):
    anndata = pytest.importorskip("anndata")
    counts = change(cells.counts.astype(float)).tocsr()
    adata = anndata.AnnData(counts)
    adata.var_names = list(cells.gene_names)
    adata.write_h5ad(tmp_path / "bad.h5ad")
    err = fails(
        "tokenize", tmp_path / "bad.h5ad", tmp_path / "out", "--tokens", folder / "tokens.json", "--no-progress"
    )
    assert message in err
    assert [path.name for path in tmp_path.iterdir()] == ["bad.h5ad"]


def test_a_missing_extra_names_what_to_install(folder, tmp_path, fails, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    err = fails("audit", folder / "cells.npz", "--graph", folder / "graph.safetensors", "--plot", tmp_path / "a.png")
    assert "pip install 'corrmask-fast[plot]'" in err
    monkeypatch.setitem(sys.modules, "anndata.io", None)
    err = fails("tokenize", tmp_path / "c.h5ad", tmp_path / "out", "--tokens", folder / "tokens.json")
    assert "pip install 'corrmask-fast[anndata]'" in err
    assert list(tmp_path.iterdir()) == []


def test_no_traceback_reaches_a_user(folder, tmp_path):
    result = run(sys.executable, "-m", "corrmask_fast", "graph", "info", tmp_path / "none")
    assert (result.returncode, result.stdout) == (2, "")
    message = f"no graph file at {tmp_path}/none; build one with `corrmask-fast graph build`"
    assert result.stderr == f"corrmask-fast: error: {message}\n"


def test_an_interrupt_exits_with_130(monkeypatch, capsys):
    def interrupt(path):
        raise KeyboardInterrupt

    monkeypatch.setattr("corrmask_fast.cli_graph.load_graph", interrupt)
    assert main(["graph", "info", "x"]) == cli.INTERRUPTED
    assert capsys.readouterr().err == "corrmask-fast: interrupted\n"


def test_a_reader_that_leaves_early_is_no_error(folder):
    command = f"{sys.executable} -m corrmask_fast graph info {folder}/graph.safetensors | true; exit ${{PIPESTATUS[0]}}"
    result = run("bash", "-c", command)
    assert (result.returncode, result.stderr) == (0, "")
