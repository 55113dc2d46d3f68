"""Any collator audited: the same figures as its masker's audit, every layout read, and what cannot be read refused."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from collator_cases import (
    VOCABULARY,
    BioNeMoStyle,
    ChangesTokens,
    MasksCls,
    MasksPadding,
    Sound,
    WrongLabels,
    cells_of,
    geneformer_style,
    hugging_face,
    pad_alone,
)

from corrmask_fast import (
    CorpusDataset,
    CorrMasker,
    DataCollatorForCorrMask,
    DependencyGraph,
    InputError,
    PaddingCollator,
    RandomMasker,
    SpanMasker,
    Vocabulary,
    audit_collator,
    audit_masking,
    read_corpus,
)
from corrmask_fast.audit.collators import COLLATOR_CONTROL as CONTROL
from corrmask_fast.audit.report import COUNTS
from corrmask_fast.cli.main import main

GRAPH = DependencyGraph.from_edges([(f"G{i}", f"G{(i + 7) % 60}") for i in range(60)], VOCABULARY)


def audit(collator, corpus, graph=GRAPH, **options):
    return audit_collator(collator, corpus, graph, progress=False, **options)


def figures(audited):
    """All that an audit counted, but the name and the settings, which a collator does not tell."""
    told = {"strategy", "structural_ratio", "max_partners", "mlm_probability", "graph"}
    exact = {"shortcut": audited.shortcut_sum, "masked": audited.times_masked.tolist()}
    return {name: value for name, value in audited.to_dict().items() if name not in told} | exact


@pytest.mark.parametrize("version", ["V1", "V2"])
@pytest.mark.parametrize("sample", [None, 70])
def test_our_own_collator_is_audited_as_its_masker(version, sample):
    names = (f"G{i}" for i in range(60))
    vocabulary = VOCABULARY if version == "V2" else Vocabulary(("<pad>", "<mask>", *names))
    corpus = cells_of(130, vocabulary, least=0)
    graph = DependencyGraph.from_edges([(f"G{i}", f"G{(i + 7) % 60}") for i in range(60)], vocabulary)
    for masker in (
        CorrMasker(graph, mlm_probability=0.3, structural_ratio=0.8, seed=5),
        SpanMasker(vocabulary, seed=5),
    ):
        collator = DataCollatorForCorrMask(masker, pad_to_multiple_of=8)
        expected = audit_masking(masker, corpus, graph, epochs=2, n_cells=sample, progress=False)
        for dataset in (None, CorpusDataset(corpus)):
            options = {"dataset": dataset, "epochs": 2, "n_cells": sample, "batch_size": 48, "seed": 5}
            report = audit(collator, corpus, graph, **options)
            # The control too: RandomMasker's masks of this seed, as many in each row.
            for ours, theirs in zip(report, expected, strict=True):
                assert figures(ours) == figures(theirs)
        assert collator._epoch.item() == -1  # a copy was audited
    assert report.notes == ()
    assert "the control masks as many genes of each cell" in report.table()


class FollowsPaddingCollator:
    """The user's own masking after our padding: tensors."""

    def __init__(self, sound):
        self.sound, self.pads = sound, PaddingCollator(sound.vocabulary)

    def set_epoch(self, epoch):
        self.sound.set_epoch(epoch)

    def __call__(self, examples):
        padded = self.pads([{"input_ids": example["input_ids"]} for example in examples])
        batch = self.sound(examples)
        hidden = batch["labels"] != -100
        return {
            **padded,
            "input_ids": torch.where(hidden, batch["input_ids"], padded["input_ids"]),
            "labels": batch["labels"],
        }


def test_every_layout_gives_the_same_figures():
    corpus = cells_of(100)
    usual = audit(Sound(), corpus)
    assert usual["Sound"].rate == pytest.approx(0.15, abs=0.02)
    assert usual["Sound"].masked == usual[CONTROL].masked
    layouts = [
        Sound(side="left"),
        Sound(side="left", multiple=64, form=np.array),
        Sound(multiple=8, form=list),
        FollowsPaddingCollator(Sound()),
    ]
    for collator in layouts:
        for ours, theirs in zip(audit(collator, corpus, batch_size=7), usual, strict=True):
            assert figures(ours) == figures(theirs)
    for side in ("left", "right"):  # its masks follow from the genes alone, so they are others
        dropped = audit(Sound(keep_special=False, side=side, multiple=16), corpus)
        assert dropped["Sound"].maskable == usual["Sound"].maskable
        assert dropped["Sound"].rate == pytest.approx(0.15, abs=0.02)


def test_the_control_has_as_many_in_each_row():
    class Uneven(Sound):
        """Half of a cell, or nothing."""

        def row(self, cell, rng):
            self.p = 0.5 * (cell[1] % 2)
            return super().row(cell, rng)

    corpus = cells_of(60)
    audited = []
    for i in range(corpus.n_cells):
        ours, control = audit(Uneven(), corpus.take(np.array([i])))
        assert ours.masked == control.masked
        audited.append(ours.masked)
    assert min(audited) == 0 < max(audited)
    # A random collator is no better than the control: nothing follows from uneven rows.
    ours, control = audit(Uneven(), cells_of(1500, seed=3))
    assert ours.hit_rate == pytest.approx(control.hit_rate, abs=0.01)
    assert ours.rate == pytest.approx(0.25, abs=0.02)


def test_hugging_faces_collators():
    pytest.importorskip("transformers")
    corpus = cells_of(300)
    torch.manual_seed(11)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    report = audit(hugging_face(), corpus, epochs=2)
    again = audit(hugging_face(), corpus, epochs=2)
    assert figures(report.strategies[0]) == figures(again.strategies[0])
    assert report.notes == ()
    ours, control = report
    assert ours.name == "DataCollatorForLanguageModeling"
    assert ours.masked == control.masked
    assert ours.hit_rate == pytest.approx(control.hit_rate, abs=0.02)

    note = audit(geneformer_style(), corpus).notes[0]
    assert "special tokens and 0 of padding" in note
    assert note in audit(geneformer_style(), corpus).table()
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1].tolist(), random.getstate()) == before[1:]
    assert figures(audit(hugging_face(), corpus, seed=1).strategies[0]) != figures(again.strategies[0])


def test_a_dataset_that_masks():
    corpus = cells_of(120)
    dataset = BioNeMoStyle(corpus)
    report = audit(pad_alone, corpus, dataset=dataset, n_cells=50, epochs=2)
    assert report["pad_alone"].rate == pytest.approx(0.15, abs=0.03)
    assert report.n_cells == 50


def test_labelled_padding_and_special_tokens_are_no_genes():
    corpus = cells_of(100)
    usual = audit(Sound(), corpus)["Sound"]
    report = audit(MasksCls(), corpus)
    assert figures(report["MasksCls"]) == figures(usual)
    assert report.notes[0].startswith("The collator also masked 100 special tokens and 0 of padding")
    assert report.to_dict()["notes"] == list(report.notes)
    report = audit(MasksPadding(), corpus)
    assert report["MasksPadding"].masked == usual.masked
    assert "masked 0 special tokens and " in report.notes[0]


@pytest.mark.parametrize(
    ("collator", "message"),
    [
        (
            ChangesTokens(),
            r"a token without a label must be the cell's.*; input_ids of row 0, column \d+ is 1, and cell 0 has \d+",
        ),
        (
            WrongLabels(),
            r"a label must be the cell's token, or -100.*; labels of row 0, column \d+ is \d+, and cell 0 has",
        ),
        (lambda _: [1], "must return a dict with input_ids and labels"),
        (lambda _: {"input_ids": [[1]]}, "input_ids and labels, .*; it returned input_ids"),
        (lambda _: {"input_ids": [[1]] * 4, "labels": [[1], [2, 3]]}, r"labels must be \(rows, columns\) integers"),
        (
            lambda _: {"input_ids": [[1]], "labels": [[1]]},
            r"a row for each of 4 examples \(packed rows cannot be read\)",
        ),
        (lambda _: {"input_ids": [[1.5]] * 4, "labels": [[1]] * 4}, "input_ids must be .* integers"),
        (lambda _: {"input_ids": [[1, 2]] * 4, "labels": [[1]] * 4}, r"of one shape; .* \(4, 2\) and \(4, 1\)"),
        (
            lambda _: {"input_ids": [[1]] * 4, "labels": [[1]] * 4},
            r"1 columns for a cell of \d+ tokens; read the",
        ),
        (lambda _: {}["spam"], "the collator failed on cells 0, 1, 2, 3: it lacks 'spam'"),
        (lambda examples: Sound()(examples[::-1]), "in the order of the examples; input_ids of row 0"),
    ],
)
def test_what_cannot_be_read_is_refused(collator, message):
    with pytest.raises(InputError, match=message):
        audit(collator, cells_of(4, least=30))


def test_bad_parameters():
    corpus = cells_of(3)
    with pytest.raises(InputError, match="batch_size must be an integer >= 1; got 0"):
        audit(Sound(), corpus, batch_size=0)
    with pytest.raises(InputError, match="seed must be an integer"):
        audit(Sound(), corpus, seed=-1)
    with pytest.raises(InputError, match="empty corpus"):
        audit(Sound(), corpus.take(np.arange(0)))
    with pytest.raises(InputError, match="different vocabularies"):
        audit(Sound(), read_corpus([[2]], Vocabulary(("<pad>", "<mask>", "A"))))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A corpus, a graph, and a module of collators in PYTHONPATH."""
    from corrmask_fast import write_corpus

    write_corpus(cells_of(64), tmp_path / "cells.npz")
    GRAPH.save(tmp_path / "g.safetensors")
    (tmp_path / "lc_collators.py").write_text(
        "from collator_cases import MasksCls, Sound, WrongLabels\n"
        "def fails(vocabulary):\n    raise KeyError('no file')\n"
        "def nothing(vocabulary):\n    return None\n"
        "constant = 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


AUDIT = ["audit", "cells.npz", "--graph", "g.safetensors", "--no-progress"]


def test_command_line(folder, capsys):
    pytest.importorskip("matplotlib")
    files = ["--csv", "a.csv", "--plot", "a.png", "--coverage-csv", "c.csv"]
    assert main([*AUDIT, "--collator", "lc_collators:Sound", "--n-cells", "50", "--epochs", "2", *files]) == 0
    out = capsys.readouterr().out
    assert out.startswith("Masking audit: 50 cells, 2 epochs; the control masks as many genes of each cell, at random")
    assert [line.split()[0] for line in out.splitlines()[4:6]] == ["Sound", "control"]
    assert all((folder / file).stat().st_size for file in ("a.csv", "a.png", "c.csv"))

    assert main([*AUDIT, "--collator", "lc_collators:Sound", "--conformance"]) == 0
    assert capsys.readouterr().out.startswith("Conformance of Sound: 64 cells, 0 of 12 items broken")
    assert main([*AUDIT, "--collator", "lc_collators:MasksCls", "--conformance"]) == 1
    out = capsys.readouterr().out
    assert "1 of 12 items broken" in out.splitlines()[0]
    assert "The collator also masked 64 special tokens" in out
    # The audit fails, but what was found stands before it.
    assert main([*AUDIT, "--collator", "lc_collators:WrongLabels", "--conformance"]) == 2
    assert "labels are the cell's tokens" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["lc_collators"], "name the collator as package.module:Name; got 'lc_collators'"),
        (["lc_collators:spam"], "the collator lc_collators:spam cannot be imported (AttributeError"),
        (["lc_collators:constant"], "lc_collators:constant must be a function of (vocabulary); it is 3"),
        (["lc_collators:fails"], "lc_collators:fails(vocabulary), which must return the collator, failed: no file"),
        (["lc_collators:nothing"], "lc_collators:nothing(vocabulary) must return a collator; it returned None"),
        (["lc_collators:Sound", "--all"], "--collator has its own masks; leave --all out, or --collator"),
        (["lc_collators:Sound", "--gene-sets", "a.gmt"], "--collator has its own masks; leave --gene-sets out"),
        (
            ["lc_collators:Sound", "--strategy", "span", "--max-partners", "3", "--mlm-probability", "0.3"],
            "leave --strategy and --mlm-probability and --max-partners out",
        ),
    ],
)
def test_command_line_refuses(folder, fails, options, message):
    assert message in fails(*AUDIT, "--collator", *options)


def test_conformance_belongs_to_a_collator(folder, fails):
    assert "--conformance belongs to --collator" in fails(*AUDIT, "--conformance")


def test_a_masker_s_control_is_random_masker(monkeypatch):
    """The control's masks are those of RandomMasker at its own rate."""
    corpus = cells_of(40)
    masker = RandomMasker(VOCABULARY, seed=9, mlm_probability=0.2)
    ours, control = audit(DataCollatorForCorrMask(masker), corpus, seed=9)
    assert figures(ours) == figures(control)
    assert sum(getattr(ours, name) for name in COUNTS) > 0
