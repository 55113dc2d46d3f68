"""Gene sets: their files, what is refused, and that the masker goes wherever a built-in goes."""

from __future__ import annotations

import contextlib
import gzip
import pickle
import warnings

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from corrmask_fast import (
    CorpusDataset,
    CorrMaskTrainer,
    DataCollatorForCorrMask,
    GeneSetMasker,
    InputError,
    Vocabulary,
    audit_all_strategies,
    read_corpus,
    read_gene_sets,
    write_corpus,
)
from corrmask_fast.cli.main import main
from corrmask_fast.testing import make_graph, make_vocabulary

GENES = make_vocabulary(60)
SETS = {f"set {i}": [f"G{gene}" for gene in range(3 * i, 3 * i + 5)] for i in range(18)}
CELLS = [(2 + np.random.default_rng(seed).permutation(60)[: 20 + seed]).tolist() for seed in range(16)]
ROWS = torch.tensor([cell[:20] for cell in CELLS])


def masker_of(sets=SETS, **given):
    return GeneSetMasker(GENES, sets, **{"mlm_probability": 0.4, **given})


# --------------------------------------------------------------------------------------------------------------- files


def test_a_file_is_read(tmp_path):
    content = "\ufeffone\thttp://x\tA\tB\tA\t\t\r\n\r\ntwo words\t\tC \tD\n\n".encode()
    for name, written in (
        ("sets.gmt", content),
        ("sets.gmt.gz", gzip.compress(content, mtime=0)),
        ("sets.txt", content),
    ):
        (tmp_path / name).write_bytes(written)
        assert read_gene_sets(tmp_path / name) == {"one": ["A", "B"], "two words": ["C", "D"]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it holds no gene set; each line must be a name, a description and genes, with tabs between"),
        (b"\n \n", "it holds no gene set"),
        (
            b"one\tlink\tA\tB\ntwo\tlink\n",
            "line 2 must be a name, a description and genes, with tabs between; got 2 fi",
        ),
        (b"one link A B\n", "line 1 must be a name, a description and genes, with tabs between; got 1 fields: 'one li"),
        (b"one\tlink\t\t \n", "line 1 must be a name, a description and genes"),
        (b"\tlink\tA\tB\n", "line 1 must be a name"),
        (b"one\t\tA\tB\n\none\t\tC\tD\n", "lines 1 and 3 are both called 'one'; give one of them another name"),
        (b"one\t\tA\tB\ntwo\t\t\xff\tD\n", "line 2 is not UTF-8 text (invalid start byte); save the file as UTF-8"),
        (gzip.compress(b"one\t\tA\tB\n" * 50, mtime=0)[:-9], "is not a readable .gmt file of gene sets"),
    ],
)
def test_files_that_are_none(tmp_path, content, message):
    (tmp_path / "sets.gmt").write_bytes(content)
    with pytest.raises(InputError) as error:
        read_gene_sets(tmp_path / "sets.gmt")
    assert message in str(error.value)
    assert str(tmp_path / "sets.gmt") in str(error.value)
    with pytest.raises(InputError, match=r"no file at .*none\.gmt; give a \.gmt file of gene sets"):
        read_gene_sets(tmp_path / "none.gmt")


@pytest.mark.parametrize("compressed", [False, True])
def test_a_damaged_file_is_read_or_refused(tmp_path, compressed):
    content = "".join(f"{name}\t\t" + "\t".join(genes) + "\n" for name, genes in SETS.items()).encode()
    content = gzip.compress(content, mtime=0) if compressed else content
    for seed in range(200):
        rng = np.random.default_rng(seed)
        damaged = bytearray(content[: rng.integers(1, len(content) + 1)])
        for _ in range(rng.integers(1, 4)):
            damaged[rng.integers(len(damaged))] = rng.choice([0, 9, 10, 13, 255, rng.integers(256)])
        (tmp_path / "sets.gmt").write_bytes(damaged)
        with contextlib.suppress(InputError):
            assert all(name and genes for name, genes in read_gene_sets(tmp_path / "sets.gmt").items())


def test_unknown_genes_of_a_file_are_said_once(tmp_path):
    path = tmp_path / "sets.gmt"
    path.write_text("one\t\tG1\tG2\tX1\ntwo\t\tG3\tX1\nthree\t\tX2\tG4\tG5\n")
    with pytest.warns(UserWarning, match="2 of 7 genes are not in the vocabulary, such as 'X1', and are left") as seen:
        masker = masker_of(path)
    assert len(seen) == 1
    assert "1 of 3 sets have fewer than two genes left" in str(seen[0].message)
    assert masker.n_sets == 2
    same = masker_of(
        {"a": ["G2", 3, "G1"], "b": ["G3"], "c": [6, 7, 7]}
    )  # by any name; a set of one gene keeps a number
    assert torch.equal(masker(ROWS, epoch=1).labels, same(ROWS, epoch=1).labels)
    assert torch.equal(masker.table_fingerprint, same.table_fingerprint)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert masker_of(path, unknown="skip").n_sets == 2
    with pytest.raises(
        InputError, match=r"sets\.gmt: the set 'one': no gene 'X1' in this vocabulary .* unknown='skip'"
    ):
        masker_of(path, unknown="error")
    path.write_text("one\t\tG1\tX2\tX1\ntwo\t\tX1\tX9\n")
    message = "sets.gmt: none of 2 gene sets has two genes of the vocabulary; 3 genes are not in it, such as 'X2'"
    with pytest.raises(InputError) as error:
        masker_of(path)
    assert message in str(error.value)
    assert "Vocabulary.from_token_dictionary(tokens, symbols)" in str(error.value)


def test_symbols_find_genes():
    genes = Vocabulary(("<pad>", "<mask>", "ENSG1", "ENSG2", "ENSG3"), {"ENSG1": "ACTB", "ENSG3": "GAPDH"})
    masker = GeneSetMasker(genes, {"housekeeping": ["ACTB", "GAPDH"]}, mlm_probability=0.7)
    assert masker(torch.tensor([[2, 3, 4]]), epoch=0).masked_positions.tolist() == [[0, 2]]


@pytest.mark.parametrize(
    ("sets", "given", "message"),
    [
        (
            [["G1", "G2"]],
            {},
            "sets must be a mapping of names to genes, or the path of a .gmt file; got [['G1', 'G2']]",
        ),
        ({}, {}, "none of 0 gene sets has two genes of the vocabulary"),
        ({"a": "G1"}, {}, "the genes of the set 'a' must be a list; got 'G1'"),
        ({"a": 3}, {}, "the genes of the set 'a' must be a list; got 3"),
        (
            {"a": ["G1", "G1"], "b": ["G2"]},
            {},
            "none of 2 gene sets has two genes of the vocabulary; 0 genes are not in",
        ),
        ({"a": ["G1", "G99"]}, {}, "the set 'a': no gene 'G99' in this vocabulary of 60 genes (did you mean 'G9'?); "),
        ({"a": ["G1", None]}, {}, "unknown='skip' leaves such genes out"),
        ({"a": ["G1", 62]}, {}, "the set 'a': no gene 62 in this vocabulary"),
        (SETS, {"unknown": "ignore"}, "unknown must be 'error', 'skip' or None; got 'ignore'"),
        (SETS, {"structural_ratio": 2}, "structural_ratio must be a number in [0, 1]; got 2"),
    ],
)
def test_what_cannot_be_made(sets, given, message):
    with pytest.raises(InputError) as error:
        masker_of(sets, **given)
    assert message in str(error.value)


# --------------------------------------------------------------------------------------------------------------- masks


def test_whole_sets_are_masked():
    """Disjoint sets of four, a budget of eight: two whole sets. One that has one gene in the cell is none."""
    sets = {f"{i}": list(range(2 + 4 * i, 6 + 4 * i)) for i in range(5)} | {"one": [21, 50], "none": [40, 41]}
    hidden = masker_of(sets)(torch.arange(2, 22).repeat(400, 1)).labels != -100
    assert hidden.sum(1).unique().tolist() == [8]
    assert sorted(hidden.reshape(400, 5, 4).sum(2).unique().tolist()) == [0, 4]
    alone = masker_of({"one": [21, 50], "none": [40, 41], "far": [2, 60]})
    random = masker_of({"none": [40, 41]})
    rows = torch.arange(2, 22)[None]
    assert torch.equal(alone(rows, epoch=3).labels, random(rows, epoch=3).labels)


def test_a_fingerprint_is_of_what_decides_masks():
    one = masker_of()
    names = {f"other {i}": genes[::-1] for i, genes in enumerate(SETS.values())}
    same = masker_of(names | {"a single gene": ["G7"]})
    for other in (masker_of(dict(reversed(SETS.items()))), masker_of({"first": [], **SETS})):
        assert not torch.equal(one.table_fingerprint, other.table_fingerprint)
        assert not torch.equal(one(ROWS, epoch=0).labels, other(ROWS, epoch=0).labels)
    assert torch.equal(one.table_fingerprint, same.table_fingerprint)
    assert torch.equal(one(ROWS, epoch=0).labels, same(ROWS, epoch=0).labels)
    with pytest.raises(
        InputError, match=r"the saved masker used gene sets .* resume with the gene sets of the first run"
    ):
        masker_of({"first": [], **SETS}).load_state_dict(one.state_dict())
    with pytest.raises(InputError, match="graph"):
        one(ROWS, epoch=0, graph_ids=torch.zeros(len(ROWS), dtype=torch.int64))


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_workers_mask_as_the_main_process(context):
    collator = DataCollatorForCorrMask(masker_of())
    collator.set_epoch(2)
    again = pickle.loads(pickle.dumps(collator))
    dataset = CorpusDataset(read_corpus(CELLS, GENES))
    loader = DataLoader(dataset, 4, collate_fn=collator, num_workers=1, multiprocessing_context=context)
    for batch, other in zip(loader, DataLoader(dataset, 4, collate_fn=again), strict=True):
        assert torch.equal(batch["labels"], other["labels"])


def test_training_masks_in_workers_and_steps_alike(tmp_path):
    trainers = pytest.importorskip("trainers")
    losses = {}
    for masking in ("worker", "device"):
        trainer = CorrMaskTrainer(
            trainers.make_model(positions=64),
            trainers.make_arguments(tmp_path / masking, logging_steps=1),
            train_dataset=CorpusDataset(read_corpus(CELLS, GENES)),
            masker=masker_of(),
            masking=masking,
        )
        trainer.train()
        losses[masking] = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert losses["worker"] == losses["device"]
    assert len(losses["worker"]) == 3


@pytest.fixture
def folder(tmp_path, monkeypatch, make_corpus):
    """A corpus, its graph, and gene sets of which one gene is unknown."""
    corpus = make_corpus(60, 60, seed=3, max_length=40)
    write_corpus(corpus, tmp_path / "cells.npz")
    make_graph(corpus.vocabulary).save(tmp_path / "graph.safetensors")
    lines = ["\t".join([name, "link", *genes, "X"]) for name, genes in SETS.items()]
    (tmp_path / "sets.gmt").write_text("\n".join(lines))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_audit_of_all_takes_them(folder, capsys):
    files = ["audit", "cells.npz", "--graph", "graph.safetensors", "--no-progress", "--all"]
    assert main([*files, "--gene-sets", "sets.gmt", "--mlm-probability", "0.4"]) == 0
    printed = capsys.readouterr()
    assert "\nGene sets " in printed.out
    assert printed.err.count("warning: sets.gmt: 1 of ") == 1
    assert main(files) == 0
    assert "\nGene sets " not in capsys.readouterr().out
    corpus, graph = read_corpus(folder / "cells.npz"), make_graph(GENES)
    report = audit_all_strategies(corpus, graph, sets=SETS, progress=False)
    assert report["Gene sets"].masked == report["Random (lambda = 0)"].masked


def test_a_run_resumes_with_its_sets(folder, fails, capsys):
    pytest.importorskip("transformers")
    pytest.importorskip("matplotlib")
    sizes = {"hidden-size": 16, "layers": 1, "heads": 2, "intermediate-size": 16, "max-steps": 2, "workers": 1}
    options = [text for name, value in (sizes | {"save-every": 1}).items() for text in (f"--{name}", str(value))]
    run = ["pretrain", "cells.npz", "--out", "run", "--device", "cpu", "--no-progress", *options]
    assert main([*run, "--strategy", "gene-sets", "--gene-sets", "sets.gmt"]) == 0
    assert f'gene_sets = "{folder}/sets.gmt"' in (folder / "run" / "settings.toml").read_text()
    resumed = ["pretrain", "cells.npz", "--out", "run", "--resume", "--no-progress", "--max-steps", "3"]
    assert main(resumed) == 0
    (folder / "sets.gmt").write_text("one\t\tG1\tG2\n")
    assert "was made with table" in fails(*resumed[:-1], "4")
