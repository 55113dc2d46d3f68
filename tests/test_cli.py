"""The command line: what it prints, what it writes, and one clear line for everything that can be wrong."""

from __future__ import annotations

import argparse
import csv
import json
import re
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest

from corrmask_fast import (
    Corpus,
    DependencyGraph,
    Vocabulary,
    build_dependency_graph,
    build_graphs_by,
    get_num_threads,
    read_corpus,
    set_num_threads,
    write_corpus,
)
from corrmask_fast.cli.main import build_parser, main
from corrmask_fast.graph.reports import cells_with_both

# ------------------------------------------------------------------------------------------------------- what it does


def test_graphs_by_group(cli_folder, made_up_cells, capsys, fails):
    corpus = read_corpus(cli_folder / "cells.npz")
    corpus.obs = {"cell_type": np.array([f"type {i}" for i in made_up_cells.cell_types])}
    write_corpus(corpus, cli_folder / "typed.npz")
    given = ["--min-cooccurrence", "30", "--min-presence", "20", "--no-progress", "--by"]
    assert main(["graph", "build", f"{cli_folder}/typed.npz", "-o", f"{cli_folder}/by_type", *given, "cell_type"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert re.search(
        r"^type 0: DependencyGraph\(\d+ edges between \d+ of 120 genes\), from \d+ cells$", out, re.MULTILINE
    )
    assert out.endswith(f"saved to {cli_folder}/by_type: 2 graphs, and groups.csv\n")
    graphs = build_graphs_by(read_corpus(cli_folder / "typed.npz"), "cell_type", min_cooccurrence=30, min_presence=20)
    for number, (group, graph) in enumerate(graphs.items()):
        stored = DependencyGraph.load(cli_folder / "by_type" / f"type_{number}.safetensors")
        assert (group, stored.fingerprint) == (f"type {number}", graph.fingerprint)
    again = fails("graph", "build", f"{cli_folder}/typed.npz", "-o", f"{cli_folder}/by_type", *given, "cell_type")
    assert "exists already and is no empty folder" in again
    assert "no obs column 'organ'; it has 'cell_type'" in fails(
        "graph", "build", f"{cli_folder}/typed.npz", "-o", f"{cli_folder}/by_organ", *given, "organ"
    )
    assert not (cli_folder / "by_organ").exists()


def test_help_is_instant_and_has_an_example_for_each_command(run):
    code = (
        "import sys; from corrmask_fast.cli.main import main\n"
        "try: main(['--help'])\nexcept SystemExit as e: assert e.code == 0\n"
        "assert not {'numba', 'torch', 'scipy', 'transformers', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    result = run(sys.executable, "-m", "corrmask_fast", "graph", "build", "--help")
    assert result.returncode == 0
    assert "example:\n  corrmask-fast graph build" in result.stdout


def parsers(parser):
    """Every parser of a command."""
    groups = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not groups:
        yield parser
    for one in groups[0].choices.values() if groups else ():
        yield from parsers(one)


def test_every_command_has_help_with_an_example():
    found = list(parsers(build_parser()))
    assert len(found) >= 25
    for parser in found:
        text = parser.format_help()  # a bare % sign in a help text fails here
        assert f"example:\n  {parser.prog}" in text
        for action in parser._actions:
            assert action.help, (parser.prog, action.dest)


@pytest.mark.parametrize("arguments", [["audit", "--help"], ["doctor"]])
def test_letters_that_the_locale_lacks(run, monkeypatch, arguments):
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    result = run(sys.executable, "-m", "corrmask_fast", *arguments)
    assert result.returncode == 0
    assert "\\u2026" in result.stdout or "\\xb5s a cell" in result.stdout  # … and µs


def test_standard_output_may_be_closed(run, cli_folder):
    command = f"{sys.executable} -m corrmask_fast graph info {cli_folder}/graph.safetensors"
    result = run("sh", "-c", f"exec {command} >&-")
    assert (result.returncode, result.stderr) == (0, "")


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


def test_graph_show_lists_partners_by_strength(cli_folder, capsys):
    graph = DependencyGraph.load(cli_folder / "graph.safetensors")
    hub = int(graph.degrees.argmax())
    row = slice(graph.indptr[hub], graph.indptr[hub + 1])
    order = np.lexsort((-np.abs(graph.rho[row]), -np.abs(graph.rho_global[row])))  # over all cells, the strongest first
    ids, rho = graph.indices[row][order], graph.rho[row][order]
    name = graph.vocabulary.names[hub]
    assert main(["graph", "show", f"{cli_folder}/graph.safetensors", name, "-n", "2"]) == 0
    title, head, *lines = capsys.readouterr().out.splitlines()
    assert title == f"{name}, token {hub}: {ids.size} partners"
    assert head.split() == ["partner", "token", "rho", "rho,", "all", "cells"]
    assert [line.split()[:2] for line in lines[:2]] == [[graph.vocabulary.names[i], str(i)] for i in ids[:2]]
    assert [float(line.split()[2]) for line in lines[:2]] == [round(float(value), 3) for value in rho[:2]]
    everywhere = dict(zip(graph.indices[row].tolist(), graph.rho_global[row].tolist(), strict=True))
    assert [float(line.split()[3]) for line in lines[:2]] == [round(everywhere[int(i)], 3) for i in ids[:2]]
    assert lines[2] == f"... and {ids.size - 2} more"
    assert main(["graph", "show", f"{cli_folder}/graph.safetensors", str(hub), "-n", "0"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == ids.size + 2


def test_graph_show_sorts_and_counts(cli_folder, capsys, fails):
    graph, corpus = DependencyGraph.load(cli_folder / "graph.safetensors"), read_corpus(cli_folder / "cells.npz")
    hub = int(graph.degrees.argmax())
    row = slice(graph.indptr[hub], graph.indptr[hub + 1])
    ids, local, overall = (part[row].tolist() for part in (graph.indices, graph.rho, graph.rho_global))
    cells = [set(corpus.tokens[a:b].tolist()) for a, b in pairwise(corpus.indptr.tolist())]
    both = [sum({hub, other} <= cell for cell in cells) for other in ids]
    given = ["graph", "show", f"{cli_folder}/graph.safetensors", str(hub), "-n", "0"]
    for sort, values in (("local", local), ("global", overall), ("overlap", both)):
        assert main([*given, "--sort", sort, "--corpus", f"{cli_folder}/cells.npz"]) == 0
        title, head, *lines = capsys.readouterr().out.splitlines()
        assert title.endswith(f"{len(ids)} partners, in {sum(hub in cell for cell in cells):,} of {len(cells)} cells")
        assert head.endswith("cells with both")
        order = sorted(range(len(ids)), key=lambda i: (-abs(values[i]), -abs(local[i]), ids[i]))
        assert [int(line.split()[1]) for line in lines] == [ids[i] for i in order]
        assert [int(line.split()[-1]) for line in lines] == [both[i] for i in order]
    assert "--sort must be one of 'local', 'global', 'overlap'; got 'rho'" in fails(*given, "--sort", "rho")
    assert "--sort overlap needs --corpus, the cells that the graph was built from" in fails(
        *given, "--sort", "overlap"
    )
    write_corpus(corpus.select(range(90)), cli_folder / "part.npz")
    wrong = fails(*given, "--corpus", cli_folder / "part.npz")
    assert "and the corpus has 90; give the corpus that it was built from" in wrong


def test_the_overlap_is_that_of_the_sampled_cells_and_first_genes(made_up_cells, cli_folder):
    """A graph of every pair, of some cells and their first 40 genes: by its own threshold, none stands apart."""
    corpus = read_corpus(cli_folder / "cells.npz")
    how = {"n_cells": 300, "max_length": 40, "seed": 3, "rho_min": 0.0, "min_presence": 1, "progress": False}
    graph = build_dependency_graph(corpus, min_cooccurrence=5, n_neighbors=200, **how)
    counts = cells_with_both(graph, corpus, 7)
    cells = [corpus.tokens[a:b][:40] for a, b in (corpus.indptr[i : i + 2] for i in corpus.sample_rows(300, 3))]
    expected = sum(np.bincount(cell, minlength=counts.size) for cell in cells if 7 in cell)
    assert np.array_equal(counts, expected)
    assert counts[graph.neighbors(7)[0]].min() >= 5


def test_graph_show_in_any_case_and_with_suggestions(tmp_path, capsys, fails):
    vocabulary = Vocabulary(("<pad>", "<mask>", "A", "B", "C"), symbols={"A": "CD3D", "C": "CD3E"})
    DependencyGraph.from_edges([("A", "B")], vocabulary).save(tmp_path / "g.safetensors")
    for name in ("cd3d", "Cd3d", "a"):
        assert main(["graph", "show", f"{tmp_path}/g.safetensors", name]) == 0
        assert capsys.readouterr().out.startswith("CD3D (A), token 2: 1 partner")
    assert "(did you mean 'CD3D' or 'CD3E'?)" in fails("graph", "show", tmp_path / "g.safetensors", "cd3")
    assert "--sort global needs rho over all cells, which this graph does not store" in fails(
        "graph", "show", tmp_path / "g.safetensors", "A", "--sort", "global"
    )
    assert "the graph does not say how it was built" in fails(
        "graph", "show", tmp_path / "g.safetensors", "A", "--corpus", _corpus_of(vocabulary, tmp_path)
    )


def _corpus_of(vocabulary, folder):
    write_corpus(Corpus(np.array([0, 2]), np.array([2, 3]), vocabulary), folder / "two.npz")
    return folder / "two.npz"


@pytest.mark.parametrize("symbols", [None, "others"])
def test_graph_show_knows_the_symbols_of_the_file(symbols, made_up_cells, tmp_path, capsys):
    """The token dictionary has none, or other ones: those of the file's var are shown, and find their gene."""
    anndata = pytest.importorskip("anndata")
    names = made_up_cells.vocabulary.names[2:]
    cells = anndata.AnnData(made_up_cells.counts.astype(np.float32))
    cells.var_names = [f"FILE{i}" for i in range(len(names))]
    cells.var["gene_ids"] = names
    cells.write_h5ad(tmp_path / "cells.h5ad")
    tokens = {name: token for token, name in enumerate(made_up_cells.vocabulary.names)}
    (tmp_path / "tokens.json").write_text(json.dumps(tokens))
    (tmp_path / "symbols.json").write_text(json.dumps({f"OTHER{i}": name for i, name in enumerate(names)}))
    given = ["--tokens", f"{tmp_path}/tokens.json", "--no-progress"]
    given += [] if symbols is None else ["--symbols", f"{tmp_path}/symbols.json"]
    assert main(["tokenize", f"{tmp_path}/cells.h5ad", f"{tmp_path}/cells.npz", *given]) == 0
    build = ["--min-cooccurrence", "20", "--min-presence", "20", "--no-progress"]
    assert main(["graph", "build", f"{tmp_path}/cells.npz", "-o", f"{tmp_path}/g.safetensors", *build]) == 0
    graph = DependencyGraph.load(tmp_path / "g.safetensors")
    hub = int(graph.degrees.argmax())
    partner = int(graph.neighbors(hub)[0][0])
    capsys.readouterr()
    for name in (f"FILE{hub - 2}", f"file{hub - 2}", names[hub - 2], *([f"OTHER{hub - 2}"] if symbols else [])):
        assert main(["graph", "show", f"{tmp_path}/g.safetensors", name]) == 0
        title, _, first, *_ = capsys.readouterr().out.splitlines()
        assert title.startswith(f"FILE{hub - 2} ({names[hub - 2]}), token {hub}:")
        assert first.startswith(f"FILE{partner - 2} ({names[partner - 2]}) ")


def test_graph_show_of_a_gene_without_partners(tmp_path, capsys):
    vocabulary = Vocabulary(("<pad>", "<mask>", "A", "B", "C"), symbols={"C": "CD3E"})
    DependencyGraph.from_edges([("A", "B")], vocabulary).save(tmp_path / "g.safetensors")
    assert main(["graph", "show", f"{tmp_path}/g.safetensors", "CD3E"]) == 0
    assert (
        capsys.readouterr().out == "CD3E (C), token 4: 0 partners; no other gene passed the thresholds of this graph\n"
    )
    assert main(["graph", "show", f"{tmp_path}/g.safetensors", "A"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].split() == ["B", "3", "+1.000", "-"]


def test_graph_info_names_size_and_parameters(cli_folder, capsys):
    assert main(["graph", "info", f"{cli_folder}/graph.safetensors"]) == 0
    out = capsys.readouterr().out
    graph = DependencyGraph.load(cli_folder / "graph.safetensors")
    facts = dict(re.split(r"\s{2,}", line, maxsplit=1) for line in out.splitlines() if not line.startswith(" "))
    assert facts["edges"] == f"{graph.n_edges:,}"
    assert facts["genes it was built over"] == str(graph.params["n_genes_used"])
    assert facts["rho, all cells"].startswith(f"{graph.rho_global.min():+.3f}")
    assert facts["rho, cells with both"].startswith(f"{graph.rho.min():+.3f}")
    assert "min_cooccurrence=30" in out


def test_graph_parameters_reach_the_build(cli_folder, tmp_path):
    options = {
        "n_cells": 250, "max_length": 90, "n_neighbors": 7, "rho_min": 0.1, "min_cooccurrence": 9, "min_presence": 11,
        "max_genes": 60, "seed": 3,
    }  # fmt: skip
    given = [part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    output = tmp_path / "g.safetensors"
    given += ["--no-progress", "--threads", "1"]
    assert main(["graph", "build", f"{cli_folder}/cells.npz", "-o", str(output), *given]) == 0
    assert get_num_threads() == 1
    set_num_threads(None)
    params = DependencyGraph.load(output).params
    assert {name: params[name] for name in options} == options


def test_a_whole_corpus_in_little_memory_with_a_checkpoint(cli_folder, tmp_path, fails):
    output, state = tmp_path / "graph.safetensors", tmp_path / "state"
    build = ["graph", "build", f"{cli_folder}/cells.npz", "--min-cooccurrence", "30", "--no-progress", "--threads", "1"]
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
    assert "--checkpoint saves the build of one graph, and --by builds several; leave one of them out" in both


def test_audit_prints_and_saves(cli_folder, tmp_path, capsys):
    arguments = [
        "--graph",
        f"{cli_folder}/graph.safetensors",
        "--epochs",
        "2",
        "--n-cells",
        "100",
        "--structural-ratio",
        "1",
    ]
    files = ["--csv", f"{tmp_path}/a.csv", "--coverage-csv", f"{tmp_path}/c.csv"]
    assert main(["audit", f"{cli_folder}/cells.npz", *arguments, *files, "--no-progress"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert out.startswith("Masking audit: 100 cells, 2 epochs")
    with (tmp_path / "a.csv").open() as file:
        ours, control = csv.DictReader(file)
    assert (ours["strategy"], control["strategy"]) == ("CorrMask", "control (lambda = 0)")
    assert float(ours["hit_rate"]) > float(control["hit_rate"])
    assert f"{100 * float(ours['hit_rate']):.2f} %" in out
    assert (tmp_path / "c.csv").read_text().count("\n") > 50


def test_audit_plot(cli_folder, tmp_path):
    pytest.importorskip("matplotlib")
    plot = tmp_path / "a.png"
    graph = ["--graph", f"{cli_folder}/graph.safetensors"]
    assert main(["audit", f"{cli_folder}/cells.npz", *graph, "--plot", str(plot), "--no-progress"]) == 0
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_tokenize_build_and_audit_from_counts(made_up_cells, cli_folder, tmp_path, capsys):
    pytest.importorskip("anndata")
    pytest.importorskip("datasets")
    made_up_cells.write_h5ad(tmp_path / "cells.h5ad")
    given = ["--tokens", f"{cli_folder}/tokens.json", "--obs", "cell_type", "--no-progress"]
    assert main(["tokenize", f"{tmp_path}/cells.h5ad", f"{tmp_path}/cells.dataset", *given]) == 0
    out = capsys.readouterr().out
    assert "300 of 300 cells written" in out
    assert "medians: of these cells" in out
    corpus = read_corpus(tmp_path / "cells.dataset")
    assert set(corpus.obs["cell_type"]) == {"type 0", "type 1"}
    options = ["--min-cooccurrence", "30", "--min-presence", "20", "--no-progress"]
    assert main(["graph", "build", f"{tmp_path}/cells.dataset", "-o", f"{tmp_path}/g.safetensors", *options]) == 0
    assert main(["audit", f"{tmp_path}/cells.dataset", "--graph", f"{tmp_path}/g.safetensors", "--no-progress"]) == 0


def test_a_corpus_without_vocabulary_takes_a_token_dictionary(made_up_cells, cli_folder, tmp_path, fails):
    corpus = read_corpus(cli_folder / "cells.npz")
    np.savez(tmp_path / "plain.npz", indptr=corpus.indptr, tokens=corpus.tokens)
    build = ["graph", "build", f"{tmp_path}/plain.npz", "-o", f"{tmp_path}/g.safetensors", "--min-cooccurrence", "30"]
    assert "no vocabulary is stored" in fails(*build, "--no-progress")
    assert "--symbols belongs to --vocabulary" in fails(*build, "--symbols", "s.json", "--no-progress")
    symbols = tmp_path / "symbols.json"
    symbols.write_text(json.dumps({"RPL3": made_up_cells.gene_names[0]}))
    given = ["--vocabulary", f"{cli_folder}/tokens.json", "--symbols", str(symbols), "--no-progress"]
    assert main([*build, *given]) == 0
    assert DependencyGraph.load(tmp_path / "g.safetensors").vocabulary.name_of(2) == "RPL3"


def test_a_graph_without_edges_is_a_warning(cli_folder, tmp_path, capsys):
    options = ["--rho-min", "1", "--min-cooccurrence", "1", "--min-presence", "50", "--no-progress"]
    assert main(["graph", "build", f"{cli_folder}/cells.npz", "-o", f"{tmp_path}/g.safetensors", *options]) == 0
    out, err = capsys.readouterr()
    assert err.startswith("corrmask-fast: warning: the graph has no edges")
    assert err.count("\n") == 1
    assert re.search(r"^edges +0$", out, re.MULTILINE)
