"""Misspelt options, commands, columns and choices: the message names what may be meant."""

from __future__ import annotations

import numpy as np
import pytest

from corrmask_fast import (
    CorpusDataset,
    CorrMasker,
    DependencyGraph,
    InputError,
    make_masker,
    read_corpus,
    write_corpus,
)
from corrmask_fast.cli.main import main
from corrmask_fast.graph.groups import rows_by_group
from corrmask_fast.suggestions import did_you_mean, similar_names
from corrmask_fast.training.settings import PretrainingSettings


def refused(capsys, *arguments):
    """The message of a command line that argparse refuses."""
    with pytest.raises(SystemExit) as exit_:
        main([str(argument) for argument in arguments])
    assert exit_.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    return err.splitlines()[-1]


@pytest.mark.parametrize(
    ("given", "names", "similar"),
    [
        ("celltype", ["cell_type", "donor"], ["cell_type"]),
        ("Cell_Type", ["cell_type", "cell_types"], ["cell_type"]),
        ("tissue", ["cell_type", "donor"], []),
        ("", ["cell_type"], []),
        (7, ["cell_type"], []),
        ("corr", ["corrmask-rewired", "random", "corrmask"], ["corrmask", "corrmask-rewired"]),
        ("a", ["ab", 3, None], ["ab"]),
    ],
)
def test_similar_names(given, names, similar):
    assert similar_names(given, names) == similar


def test_two_names_may_be_meant():
    assert did_you_mean("actb", ["Actb", "ACTB"]) == " (did you mean 'Actb' or 'ACTB'?)"
    assert did_you_mean("cd", ["CD3D", "CD3E", "CD4"]) == " (did you mean 'CD4', 'CD3D' or 'CD3E'?)"


# -------------------------------------------------------------------------------------------------- the command line


@pytest.mark.parametrize(
    ("arguments", "end"),
    [
        (["toknize", "cells.h5ad"], "(did you mean 'tokenize'?)"),
        (["graph", "buid"], "(did you mean 'build'?)"),
        (
            ["audit", "c", "--graph", "g", "--mlm-probablity", "0.2"],
            "--mlm-probablity: did you mean --mlm-probability?",
        ),
        (["audit", "c", "--graph", "g", "--mlm-probablity=0.2"], "--mlm-probablity: did you mean --mlm-probability?"),
        (["audit", "c", "--graf", "g"], "required: --graph; --graf: did you mean --graph?"),
        (["audit", "c", "--graph", "g", "--strategy", "corrmsk"], "got 'corrmsk' (did you mean 'corrmask'?)"),
        (["pretrain", "c", "--out", "o", "--preset", "smal"], "(did you mean 'small'?)"),
        (["audit", "c", "--graph", "g", "--quux", "2"], "unrecognized arguments: --quux 2"),
    ],
)
def test_a_misspelt_option_command_or_choice(capsys, arguments, end):
    assert refused(capsys, *arguments).endswith(end)


def test_an_abbreviated_option_is_no_mistake(cli_folder, capsys):
    files = cli_folder / "cells.npz", "--graph", cli_folder / "graph.safetensors"
    assert refused(capsys, "audit", *files, "--mlm-prob", "0.2", "--conformence").endswith(
        "--conformence: did you mean --conformance?"
    )


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (
            ["audit", "--graph", "g", "--max-partners", "1", "5", "c"],
            "--max-partners takes all that follows it: put CORPUS",
        ),
        (["tokenize", "--obs", "cell_type", "cells.h5ad"], "--obs takes all that follows it: put IN"),
    ],
)
def test_an_option_that_took_the_corpus(capsys, arguments, hint):
    assert refused(capsys, *arguments).endswith(f"{hint} first, or after --")


@pytest.mark.parametrize(
    "arguments",
    [
        ["audit", "c.dataset", "--graph", "g", "--max-partners", "1", "x"],  # the corpus came first
        ["audit", "--graph", "g"],  # no such option
        ["graph", "merge", "-o", "x.safetensors", "--keep"],
    ],
)
def test_other_mistakes_have_no_such_hint(capsys, arguments):
    assert "takes all that follows" not in refused(capsys, *arguments)


def test_the_corpus_may_stand_behind_two_dashes(cli_folder, capsys):
    options = ["--no-progress", "--graph", f"{cli_folder}/graph.safetensors", "--max-partners", "1", "5"]
    assert main(["audit", *options, "--", f"{cli_folder}/cells.npz"]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("CorrMask")]
    assert [row.split()[2] for row in rows] == ["1", "5"]


# ------------------------------------------------------------------------------------------- columns, and other choices


@pytest.fixture
def typed(cli_folder, made_up_cells, tmp_path):
    corpus = read_corpus(cli_folder / "cells.npz")
    corpus.obs = {"cell_type": np.array([f"type {i}" for i in made_up_cells.cell_types])}
    write_corpus(corpus, tmp_path / "typed.npz")
    return tmp_path / "typed.npz"


def test_misspelt_columns(typed, cli_folder, made_up_cells, tmp_path, fails):
    made_up_cells.write_h5ad(tmp_path / "cells.h5ad")
    meant = "'celltype' (did you mean 'cell_type'?)"
    assert f"has no obs column {meant}" in fails(
        "tokenize", tmp_path / "cells.h5ad", "-o", tmp_path / "a.npz", "--obs", "celltype", "--no-progress"
    )
    assert f"has no obs column {meant}" in fails(
        "tokenize", tmp_path / "cells.h5ad", "-o", tmp_path / "a.npz", "--total", "celltype", "--no-progress"
    )
    assert "no var column 'modul' (did you mean 'module'?)" in fails(
        "tokenize", tmp_path / "cells.h5ad", "-o", tmp_path / "a.npz", "--gene-column", "modul", "--no-progress"
    )
    assert f"has no obs column {meant}" in fails(
        "graph", "build", typed, "-o", tmp_path / "graphs", "--by", "celltype", "--no-progress"
    )
    assert "(did you mean 'type 1'?)" in fails(
        "graph", "stability", typed, cli_folder / "graph.safetensors", "--where", "cell_type=Type 1", "--no-progress"
    )


def test_misspelt_columns_and_choices_in_python(typed, cli_folder):
    corpus = read_corpus(typed)
    with pytest.raises(
        InputError, match=r"no obs column 'cell_typ' \(did you mean 'cell_type'\?\); it has 'cell_type'"
    ):
        CorpusDataset(corpus, columns=("cell_typ",))
    with pytest.raises(InputError, match=r"'Cell_type' \(did you mean 'cell_type'\?\)"):
        rows_by_group(corpus, "Cell_type")
    graph = DependencyGraph.load(cli_folder / "graph.safetensors")
    with pytest.raises(InputError, match=r"got 'corrmaks' \(did you mean 'corrmask'"):
        make_masker("corrmaks", graph=graph)
    with pytest.raises(InputError, match=r"got 'bfloat' \(did you mean 'bfloat16', "):
        PretrainingSettings(precision="bfloat")
    assert CorrMasker(graph).n_graphs == 1


def test_a_misspelt_layer(made_up_cells, tmp_path, fails):
    anndata = pytest.importorskip("anndata")
    made_up_cells.write_h5ad(tmp_path / "cells.h5ad")
    adata = anndata.read_h5ad(tmp_path / "cells.h5ad")
    adata.layers["counts"] = adata.X.copy()
    adata.write_h5ad(tmp_path / "cells.h5ad")
    err = fails("tokenize", tmp_path / "cells.h5ad", "-o", tmp_path / "a.npz", "--layer", "count", "--no-progress")
    assert "has no layers/count (did you mean 'counts'?)" in err


def test_a_misspelt_setting(tmp_path, cli_folder, fails):
    (tmp_path / "settings.toml").write_text("learning_rat = 1e-3\n")
    err = fails("pretrain", cli_folder / "cells.npz", "--out", tmp_path / "run", "--config", tmp_path / "settings.toml")
    assert "there is no setting 'learning_rat' (did you mean 'learning_rate'?)" in err
