"""The command line on token dictionaries of other models: special tokens by role, wherever a dictionary is given."""

from __future__ import annotations

import json

import numpy as np
import pytest

from corrmask_fast import DependencyGraph, read_corpus
from corrmask_fast.cli.main import main

ROLES = ["--pad-token", "[PAD]", "--mask-token", "[MASK]", "--special-tokens", "[CLS]"]


@pytest.fixture
def bert_tokens(cli_folder, tmp_path):
    """The dictionary of ``cli_folder`` with other names for its special tokens, and one more."""
    tokens = json.loads((cli_folder / "tokens.json").read_text())
    tokens = {{"<pad>": "[PAD]", "<mask>": "[MASK]"}.get(name, name): token for name, token in tokens.items()}
    path = tmp_path / "bert.json"
    path.write_text(json.dumps({**tokens, "[CLS]": len(tokens)}))
    return path


def test_tokenize_graph_and_audit(made_up_cells, cli_folder, bert_tokens, tmp_path, capsys, fails):
    made_up_cells.write_h5ad(tmp_path / "cells.h5ad")
    tokenize = ["tokenize", f"{tmp_path}/cells.h5ad", f"{tmp_path}/cells.npz", "--tokens", str(bert_tokens)]
    assert (
        "give pad='[PAD]', mask='[MASK]', special=['[CLS]'] (at the command line: --pad-token '[PAD]' "
        "--mask-token '[MASK]' --special-tokens '[CLS]')"
    ) in fails(*tokenize, "--no-progress")
    assert main([*tokenize, *ROLES, "--no-progress"]) == 0
    assert capsys.readouterr().err == ""
    usual = ["tokenize", f"{tmp_path}/cells.h5ad", f"{tmp_path}/usual.npz", "--tokens", f"{cli_folder}/tokens.json"]
    assert main([*usual, "--no-progress"]) == 0
    corpus, usual = read_corpus(tmp_path / "cells.npz"), read_corpus(tmp_path / "usual.npz")
    assert np.array_equal(corpus.tokens, usual.tokens)
    assert (corpus.vocabulary.pad, corpus.vocabulary.mask, corpus.vocabulary.special) == ("[PAD]", "[MASK]", ("[CLS]",))

    np.savez(tmp_path / "plain.npz", indptr=corpus.indptr, tokens=corpus.tokens)
    options = ["--min-cooccurrence", "30", "--min-presence", "20", "--no-progress"]
    build = ["graph", "build", f"{tmp_path}/plain.npz", "-o", f"{tmp_path}/g.safetensors", *options]
    assert main([*build, "--vocabulary", str(bert_tokens), *ROLES]) == 0
    assert DependencyGraph.load(tmp_path / "g.safetensors").vocabulary.fingerprint == corpus.vocabulary.fingerprint
    audit = ["audit", f"{tmp_path}/cells.npz", "--graph", f"{tmp_path}/g.safetensors", "--no-progress"]
    assert main(audit) == 0


def test_roles_by_id_and_a_special_token_that_was_forgotten(cli_folder, bert_tokens, tmp_path, capsys):
    corpus = read_corpus(cli_folder / "cells.npz")
    np.savez(tmp_path / "plain.npz", indptr=corpus.indptr, tokens=corpus.tokens)
    build = ["pmi", "build", f"{tmp_path}/plain.npz", "-o", f"{tmp_path}/p.safetensors", "--no-progress"]
    assert main([*build, "--vocabulary", str(bert_tokens), "--pad-token", "0", "--mask-token", "1"]) == 0
    assert capsys.readouterr().err == (
        "corrmask-fast: warning: names in brackets count as genes, which are masked; for special tokens give "
        "special=['[CLS]'] (at the command line: --special-tokens '[CLS]')\n"
    )


@pytest.mark.parametrize("option", [["--pad-token", "A"], ["--mask-token", "A"], ["--special-tokens", "A", "B"]])
def test_roles_belong_to_a_dictionary(option, cli_folder, tmp_path, fails):
    corpus, out = f"{cli_folder}/cells.npz", f"{tmp_path}/g.safetensors"
    assert f"{option[0]} belongs to --vocabulary; give both, or neither" in fails(
        "graph", "build", corpus, "-o", out, *option
    )
    assert f"{option[0]} belongs to --tokens; give both, or neither" in fails("demo", "--out", f"{tmp_path}/x", *option)


def test_roles_of_no_token(cli_folder, bert_tokens, tmp_path, fails):
    error = fails(
        "graph", "build", f"{cli_folder}/cells.npz", "-o", f"{tmp_path}/g.safetensors",
        "--vocabulary", str(bert_tokens), "--pad-token", "nothing",
    )  # fmt: skip
    assert f"{bert_tokens}: pad must be the name of a token" in error
    assert "got 'nothing'" in error
