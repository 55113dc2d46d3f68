"""Thresholds by the number of cells, and when ``graph build`` advises them."""

from __future__ import annotations

import inspect

import numpy as np
import pytest

from corrmask_fast import Corpus, InputError, build_dependency_graph, suggest_thresholds, write_corpus
from corrmask_fast.cli.main import main
from corrmask_fast.graph.build.thresholds import DEFAULTS, advice_on_thresholds
from corrmask_fast.graph.groups import build_graphs_by


@pytest.mark.parametrize(
    ("n_cells", "both", "one"),
    [(1, 1, 1), (19, 19, 19), (300, 20, 20), (2_700, 27, 27), (7_000, 70, 50), (20_000, 200, 50), (10**7, 200, 50)],
)
def test_one_per_cent_of_the_cells(n_cells, both, one):
    assert suggest_thresholds(n_cells) == {"min_cooccurrence": both, "min_presence": one}


def test_the_defaults_are_those_of_the_builds():
    for build in (build_dependency_graph, build_graphs_by):
        parameters = inspect.signature(build).parameters
        assert {name: parameters[name].default for name in DEFAULTS} == DEFAULTS
    for wrong in (0, 2.5, "many"):
        with pytest.raises(InputError, match="n_cells must be an integer >= 1"):
            suggest_thresholds(wrong)


def test_advice_where_a_default_is_more_than_twice_the_suggestion():
    assert advice_on_thresholds(10_000) is None
    assert advice_on_thresholds(9_999) == (
        "the default min_cooccurrence=200 is 2.0 % of these 9,999 cells, so edges of rarer genes are left out; "
        "try min_cooccurrence=99"
    )
    assert advice_on_thresholds(1_000).endswith("20.0 % of these 1,000 cells, so edges of rarer genes are left out; "
                                                "try min_cooccurrence=20 and min_presence=20")  # fmt: skip
    assert advice_on_thresholds(1_000, {"min_cooccurrence": 200}).startswith("the default min_presence=50 is 5.0 %")
    assert advice_on_thresholds(1_000, {"min_cooccurrence": 200, "min_presence": 50}) is None


@pytest.fixture(scope="module")
def cells(tmp_path_factory, make_corpus):
    path = tmp_path_factory.mktemp("few") / "cells.npz"
    corpus = make_corpus(600, 30, seed=4)
    donor = np.repeat(["a", "b"], 300)
    write_corpus(Corpus(corpus.indptr, corpus.tokens, corpus.vocabulary, obs={"donor": donor}), path)
    return path


def test_a_build_warns_unless_thresholds_are_chosen(cells, tmp_path, capsys):
    build = ["graph", "build", str(cells), "--no-progress", "--rho-min", "0.05", "-o"]
    assert main([*build, str(tmp_path / "g.safetensors")]) == 0
    assert capsys.readouterr().err == (
        "corrmask-fast: warning: the default --min-cooccurrence 200 is 33.3 % of these 600 cells, so edges of rarer "
        "genes are left out; try --min-cooccurrence 20 and --min-presence 20\n"
    )
    chosen = ["--min-cooccurrence", "200", "--min-presence", "50"]
    assert main([*build, str(tmp_path / "chosen.safetensors"), *chosen]) == 0
    assert capsys.readouterr().err == ""
    assert (tmp_path / "chosen.safetensors").read_bytes() == (tmp_path / "g.safetensors").read_bytes()
    assert main([*build, str(tmp_path / "by"), "--by", "donor"]) == 0
    err = capsys.readouterr().err
    assert "warning: a: the default --min-cooccurrence 200 is 66.7 % of these 300 cells" in err
    assert "warning: b: the default" in err


def test_too_few_cells_name_the_suggestion(cells, tmp_path, fails):
    build = ["graph", "build", str(cells), "--no-progress", "-o", tmp_path / "g.safetensors", "--n-cells", "150"]
    assert "lower it, or bring more cells; for 150 cells --min-cooccurrence 20 is suggested" in fails(*build)
