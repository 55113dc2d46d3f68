"""The options of commands that mask, and ``corrmask-fast pmi``."""

from __future__ import annotations

import argparse
import itertools

import numpy as np
import pytest

from corrmask_fast import DependencyGraph, PMITable, make_masker, read_corpus, write_corpus
from corrmask_fast.cli.main import main
from corrmask_fast.cli.masker_options import add_masker_options, masker_of
from corrmask_fast.masking.strategies import STRATEGIES


@pytest.fixture(scope="module")
def folder(tmp_path_factory, make_corpus):
    """A corpus, a graph, gene sets and a PMI table of one vocabulary; a graph of another."""
    folder = tmp_path_factory.mktemp("masker")
    (folder / "sets.gmt").write_text("one\tlink\tG1\tG2\tG3\nanother\t\tG3\tG14\n")
    corpus = make_corpus(80, 30)
    write_corpus(corpus, folder / "cells.npz")
    names = [f"G{i}" for i in range(30)]
    DependencyGraph.from_edges(list(itertools.pairwise(names)), corpus.vocabulary).save(folder / "g.safetensors")
    DependencyGraph.from_edges([("G0", "G1")], make_corpus(1, 31).vocabulary).save(folder / "other.safetensors")
    assert (
        main(
            [
                "pmi",
                "build",
                f"{folder}/cells.npz",
                "-o",
                f"{folder}/p.safetensors",
                "--min-count",
                "5",
                "--no-progress",
            ]
        )
        == 0
    )
    (folder / "w.csv").write_text("gene,weight\nG0,9\nG7,0.5\n")
    return folder


def parsed(*arguments):
    parser = argparse.ArgumentParser()
    add_masker_options(parser)
    return parser.parse_args([str(each) for each in arguments])


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_options_make_what_make_masker_makes(folder, strategy):
    files = {
        "graph": ["--graph", folder / "g.safetensors"],
        "pmi": ["--pmi", folder / "p.safetensors"],
        "vocabulary": [],
        "gene_sets": ["--gene-sets", folder / "sets.gmt"],
    }
    corpus = read_corpus(folder / "cells.npz")
    table, graph = PMITable.load(folder / "p.safetensors"), DependencyGraph.load(folder / "g.safetensors")
    needs = STRATEGIES[strategy].needs
    required = STRATEGIES[strategy].requires
    more = {"weights": folder / "w.csv"} if required else {}
    ours = masker_of(
        parsed("--strategy", strategy, *files[needs], "--mlm-probability", 0.4, "--seed", 3,
               *(part for name in required for part in (f"--{name}", more[name]))),
        vocabulary=table.vocabulary,
        corpus=corpus,
    )  # fmt: skip
    sets = {"one": ["G1", "G2", "G3"], "another": ["G3", "G14"]}
    sources = {"graph": graph, "pmi": table, "corpus": corpus, "sets": sets}
    theirs = make_masker(strategy, **sources, mlm_probability=0.4, seed=3, **more)
    rows = np.array([0, 20]), np.arange(2, 22)
    for masker in (ours, theirs):
        assert (type(masker).__name__, masker.seed) == (STRATEGIES[strategy].masker, 3)
    assert np.array_equal(ours.mask_ragged(*rows, epoch=1).labels, theirs.mask_ragged(*rows, epoch=1).labels)


def test_parameters_reach_the_masker(folder):
    arguments = parsed("--graph", folder / "g.safetensors", "--max-partners", 2, "--structural-ratio", 0.25)
    assert (masker_of(arguments).max_partners, masker_of(arguments).structural_ratio) == (2, 0.25)
    arguments = parsed("--strategy", "pmi", "--pmi", folder / "p.safetensors", "--npmi-min", 0.3)
    assert masker_of(arguments).npmi_min == 0.3
    for strategy in ("corrmask", "corrmask-100"):
        files = ["--graph", folder / "g.safetensors", "--weights", folder / "w.csv"]
        masker = masker_of(parsed("--strategy", strategy, *files, "--partners", "weighted"))
        assert (masker.partners, masker.weights[[2, 3, 9]].tolist()) == ("weighted", [9.0, 1.0, 0.5])
    for given, replace in (([], "token"), (["--replace", "group"], "group")):
        assert masker_of(parsed("--graph", folder / "g.safetensors", *given)).replace == replace


@pytest.mark.parametrize("strategy", ["span", "pmi-rand", "random", "gene-sets"])
def test_audit_of_a_strategy(folder, capsys, strategy):
    files = ["--graph", f"{folder}/g.safetensors", "--pmi", f"{folder}/p.safetensors"]
    files += ["--gene-sets", f"{folder}/sets.gmt"]
    assert main(["audit", f"{folder}/cells.npz", *files, "--strategy", strategy, "--no-progress"]) == 0
    line = capsys.readouterr().out.splitlines()[4]
    assert line.split()[0] in {"Span", "PMI", "Random", "Gene"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--strategy", "pmi"], "--strategy pmi needs --pmi TABLE; `corrmask-fast pmi build` makes one"),
        (["--strategy", "gene-sets"], "--strategy gene-sets needs --gene-sets FILE.gmt; Reactome and MSigDB publish"),
        (["--strategy", "gene-sets", "--gene-sets", "missing"], "no file at missing; give a .gmt file of gene sets"),
        (["--strategy", "gene-sets", "--gene-sets", "g.safetensors"], "g.safetensors: line 1 "),
        (
            ["--strategy", "span", "--max-partners", "3"],
            "--max-partners has no meaning for the strategy 'span'; leave it out",
        ),
        (
            ["--strategy", "corrmask-100", "--structural-ratio", "0.3"],
            "--structural-ratio is 1.0 in the strategy 'corrma",
        ),
        (["--strategy", "pmi", "--pmi", "g.safetensors"], "g.safetensors is a safetensors file, but no PMI table"),
        (["--strategy", "pmi", "--pmi", "missing"], "no PMI table file at missing"),
        (["--strategy", "weighted"], "the strategy 'weighted' needs weights"),
        (["--weights", "missing"], "missing is not a readable file of weights"),
        (["--strategy", "span", "--weights", "w.csv"], "weights has no meaning for the strategy 'span'"),
        (["--partners", "strong"], "partners must be 'uniform' or 'weighted'; got 'strong'"),
        (["--all", "--partners", "weighted"], "--partners would change only some of the strategies"),
        (["--strategy", "pmi", "--pmi", "p.safetensors", "--graph", "other.safetensors"], "tokens"),
    ],
)
def test_bad_options(folder, fails, monkeypatch, options, message):
    monkeypatch.chdir(folder)
    graph = [] if "--graph" in options else ["--graph", "g.safetensors"]
    assert message in fails("audit", "cells.npz", *graph, *options, "--no-progress")


def test_audit_by_weight(folder, capsys):
    files = ["--graph", f"{folder}/g.safetensors", "--weights", f"{folder}/w.csv", "--no-progress"]
    for options, names in (
        (["--strategy", "weighted"], ["Weighted"]),
        (["--partners", "weighted"], ["CorrMask-weighted"]),
        (["--all", "--pmi", f"{folder}/p.safetensors"], ["Random", "CorrMask-100", "Weighted"]),
    ):
        assert main(["audit", f"{folder}/cells.npz", *files, *options]) == 0
        lines = {line.split()[0] for line in capsys.readouterr().out.splitlines() if line.strip()}
        assert set(names) <= lines


def test_an_unknown_strategy(folder, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["audit", "cells.npz", "--graph", "g.safetensors", "--strategy", "spam"])
    assert stop.value.code == 2
    assert "corrmask-100" in capsys.readouterr().err


def test_pmi_build_and_info(folder, tmp_path, capsys):
    path = tmp_path / "t.safetensors"
    options = ["--min-count", "3", "--n-cells", "50", "--seed", "1", "--no-progress"]
    assert main(["pmi", "build", f"{folder}/cells.npz", "-o", str(path), *options]) == 0
    built = capsys.readouterr().out
    assert f"saved to {path}" in built
    assert main(["pmi", "info", str(path), "-n", "3"]) == 0
    told = capsys.readouterr().out
    assert told.startswith(built.partition("saved")[0].rstrip())
    table = PMITable.load(path)
    assert f"{table.n_pairs}" in told
    assert "min_count=3" in told
    first, second, npmi = table.strongest(1)[0]
    assert told.splitlines()[-3].split() == [first, second, f"{npmi:+.3f}"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--min-count", "0"], "--min-count must be an integer >= 1; got 0"),
        (["-o", "t.npz"], "a PMI table file must end in .safetensors; got t.npz"),
        (["-o", "nowhere/t.safetensors"], "the folder nowhere does not exist"),
    ],
)
def test_pmi_build_refuses(folder, tmp_path, fails, options, message):
    output = ["-o", tmp_path / "t.safetensors"]
    assert message in fails("pmi", "build", folder / "cells.npz", *output, *options, "--no-progress")
    assert list(tmp_path.iterdir()) == []
