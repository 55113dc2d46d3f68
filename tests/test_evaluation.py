"""Evaluations: a model that has something to find finds it; labels and lists that do not fit are refused."""

from __future__ import annotations

import csv
import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from corrmask_fast import Corpus, FineTuning, InputError, Vocabulary, annotate_cells, classify_genes
from corrmask_fast.cells.corpus_io import write_corpus
from corrmask_fast.cli.main import main
from corrmask_fast.evaluation.fine_tuning import UNLABELLED, Labeller, padded_cells, usable_length
from corrmask_fast.evaluation.gene_classification import _genes_in_cells, read_gene_labels
from corrmask_fast.training.pretrained import load_encoder

transformers = pytest.importorskip("transformers")
pytest.importorskip("sklearn")

QUICK = FineTuning(epochs=15, batch_size=16, learning_rate=5e-3, device="cpu")


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def typed_corpus(make_corpus):
    """Three types of cells, each with genes of its own in front: 60, 40 and 14 cells, and 6 without a label."""
    vocabulary = make_corpus(1, 60).vocabulary
    rng = np.random.default_rng(0)
    types = np.repeat(["B cell", "T cell", "mast", "nan"], [60, 40, 14, 6])
    own = {"B cell": np.arange(10), "T cell": np.arange(10, 20), "mast": np.arange(20, 30), "nan": np.arange(30, 40)}
    cells = [np.concatenate([rng.permutation(own[t]), rng.permutation(np.arange(40, 60))]) + 2 for t in types]
    indptr = np.concatenate([[0], np.cumsum([cell.size for cell in cells])])
    return Corpus(indptr, np.concatenate(cells), vocabulary, obs={"cell_type": types.astype(object)})


@pytest.fixture(scope="module")
def model(tmp_path_factory, typed_corpus):
    """A small checkpoint, as pretraining leaves it."""
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=typed_corpus.vocabulary.size,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
        pad_token_id=0,
    )
    folder = tmp_path_factory.mktemp("model")
    transformers.BertForMaskedLM(config).save_pretrained(folder)
    return folder


def labeller_of(model, vocabulary, n_classes):
    return Labeller(load_encoder(model, vocabulary), vocabulary, n_classes, per_gene=False)


def test_cell_types_with_genes_of_their_own_are_named(typed_corpus, model):
    report = annotate_cells(model, typed_corpus, repeats=2, settings=QUICK, progress=False)
    assert report.types == ["B cell", "T cell", "mast"]  # by abundance; a cell without a label is none
    assert report.n_cells.tolist() == [60, 40, 14]
    assert report.f1.shape == (2, 3)
    assert report.macro_f1.min() > 0.9
    np.testing.assert_array_equal(report.rare_f1, report.f1[:, 2])
    assert "mean of the rarest 1" in report.table()


def test_without_training_nothing_is_known(typed_corpus, model):
    settings = FineTuning(epochs=0, device="cpu")
    untrained = annotate_cells(model, typed_corpus, settings=settings, progress=False)
    assert untrained.macro_f1[0] < 0.6


def test_without_epochs_no_head_is_shown(typed_corpus, model):
    settings = FineTuning(epochs=0, device="cpu")
    found = annotate_cells(model, typed_corpus, settings=settings, baselines=True, progress=False)
    assert found.method == "10 nearest cells, embeddings"
    assert not {"fine-tuned", "fine-tuned, new weights"} & set(found.confusions)
    assert "fine-tuned" not in found.table()
    np.testing.assert_array_equal(found.f1, found.f1_of("10 nearest cells, embeddings"))


def test_the_same_seed_gives_the_same_scores_and_leaves_torch_alone(typed_corpus, model):
    before = torch.random.get_rng_state()
    first = annotate_cells(model, typed_corpus, settings=QUICK, progress=False)
    assert torch.equal(before, torch.random.get_rng_state())
    torch.manual_seed(99)
    np.testing.assert_array_equal(first.f1, annotate_cells(model, typed_corpus, settings=QUICK, progress=False).f1)


def test_frozen_layers_keep_their_weights(typed_corpus, model):
    encoder = load_encoder(model, typed_corpus.vocabulary)
    labeller = Labeller(encoder, typed_corpus.vocabulary, 2, per_gene=False)
    labeller.freeze(1)
    trained = {name for name, weight in labeller.named_parameters() if weight.requires_grad}
    assert not any("embeddings" in name or "layer.0." in name for name in trained)
    assert any("layer.1." in name for name in trained)
    with pytest.raises(InputError, match="at most the model's 2 layers; got 3"):
        labeller.freeze(3)
    labeller.freeze(-1)
    assert {name for name, weight in labeller.named_parameters() if weight.requires_grad} == {
        "head.weight",
        "head.bias",
    }


def test_padding_does_not_change_a_cells_logits(typed_corpus, model):
    labeller = labeller_of(model, typed_corpus.vocabulary, 3).eval()
    ids, seen = padded_cells(typed_corpus, np.array([0]), 20)
    wide = torch.nn.functional.pad(ids, (0, 5)), torch.nn.functional.pad(seen, (0, 5))
    torch.testing.assert_close(labeller(ids, seen), labeller(*wide))


class PlainEncoder(torch.nn.Module):
    """An encoder without attention: a column's output is its token's number."""

    config = SimpleNamespace(hidden_size=1)

    def forward(self, input_ids, attention_mask):
        return SimpleNamespace(last_hidden_state=input_ids[..., None].double())


def test_a_cells_embedding_is_the_mean_over_its_genes_alone(v2_corpus):
    labeller = Labeller(PlainEncoder(), v2_corpus.vocabulary, 1, per_gene=False).double().eval()
    torch.nn.init.ones_(labeller.head.weight)
    ids, seen = padded_cells(v2_corpus, np.arange(3), 10)
    assert ids[0].tolist() == [2, 5, 6, 8, 3]  # <cls>, the genes, <eos>
    assert labeller(ids, seen).flatten().tolist() == [19 / 3, 7.0, 0.0]  # a cell without genes has no mean


def test_cells_that_are_cut_keep_their_end_token(v2_corpus):
    ids, seen = padded_cells(v2_corpus, np.arange(3), 4)
    assert ids.tolist() == [[2, 5, 6, 3], [2, 7, 3, 0], [2, 3, 0, 0]]
    assert seen.sum(1).tolist() == [4, 3, 2]
    with pytest.raises(InputError, match=r"space for a gene beside <cls> and <eos>, so be 3 at least; got 2"):
        padded_cells(v2_corpus, np.arange(3), 2)


@pytest.mark.parametrize(("positions", "longest"), [(64, 5), (None, 5), (4, 4)])
def test_a_model_sees_as_many_genes_as_in_training(v2_corpus, positions, longest):
    corpus = Corpus(v2_corpus.indptr, v2_corpus.tokens, v2_corpus.vocabulary, max_length=3)  # genes
    encoder = SimpleNamespace(config=SimpleNamespace(max_position_embeddings=positions))
    assert usable_length(encoder, corpus, None) == longest  # tokens
    assert usable_length(encoder, corpus, 3) == 3
    ids, _ = padded_cells(corpus, np.array([0]), longest)
    assert ids[0, -1] == 3
    assert longest == positions or ids[0].tolist() == corpus.gather_for_training(np.array([0]))[1].tolist()


@pytest.fixture(scope="module")
def v2_corpus():
    """Cells of three genes, of one and of none, over a vocabulary with ``<cls>`` and ``<eos>``."""
    names = ("<pad>", "<mask>", "<cls>", "<eos>", *(f"G{i}" for i in range(6)))
    return Corpus(np.array([0, 3, 4, 4]), np.array([5, 6, 8, 7]), Vocabulary(names))


@pytest.fixture(scope="module")
def gene_labels(typed_corpus):
    """Genes that only stand in front against genes that only stand behind."""
    name = typed_corpus.vocabulary.name_of
    return (
        {name(g + 2): "front" for g in range(20)} | {name(g + 2): "rear" for g in range(40, 60)} | {"no gene": "rear"}
    )


def test_genes_are_told_apart_by_their_place_in_the_cell(typed_corpus, model, gene_labels):
    settings = FineTuning(epochs=4, batch_size=8, learning_rate=3e-3, device="cpu")
    report = classify_genes(model, typed_corpus, gene_labels, folds=2, settings=settings, progress=False)
    assert report.classes == ("front", "rear")
    assert report.auc.min() > 0.9
    assert report.n_absent == 1
    held_out = np.concatenate([fold.genes for fold in report.folds])
    assert sorted(held_out) == [*range(2, 22), *range(42, 62)]  # each gene held out once
    assert "were left out: the vocabulary lacks them, or the model sees them in none of the cells" in report.table()


def test_a_gene_listed_by_id_and_by_symbol_counts_once():
    vocabulary = Vocabulary(("<pad>", "<mask>", "A", "B", "C"), symbols={"A": "TP53"})
    seen = np.array([False, False, True, True, False])
    labels = {"TP53": "yes", "B": "no", "A": "yes", "C": "no", "unknown": "no"}
    genes, truth, n_absent = _genes_in_cells(vocabulary, seen, labels, ("no", "yes"), 1)
    assert (genes.tolist(), truth.tolist(), n_absent) == ([2, 3], [1, 0], 2)
    with pytest.raises(InputError, match=r"'TP53' and 'A' are one gene \(token 2\) with two classes, 'yes' and 'no'"):
        _genes_in_cells(vocabulary, seen, labels | {"A": "no"}, ("no", "yes"), 1)


def test_classes_drawn_by_lot_are_not_told_apart(typed_corpus, model, gene_labels):
    genes = [gene for gene in gene_labels if gene != "no gene"]
    lot = np.random.default_rng(1).permutation(np.repeat(["a", "b"], 20))
    settings = FineTuning(epochs=2, batch_size=16, learning_rate=1e-3, device="cpu")
    report = classify_genes(
        model, typed_corpus, dict(zip(genes, lot, strict=True)), folds=4, settings=settings, progress=False
    )
    assert 0.2 < report.auc.mean() < 0.8


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("gene,label\nA,yes\nB,no\n", {"A": "yes", "B": "no"}),
        ("id\tname\tlow\thigh\nA\tx1\tYes\t\nB\tx2\t\tYes\n", {"A": "low", "B": "high"}),
        ("\r\ngene\tlabel\r\n\t\r\nA\tyes\r\n\r\nB\tno\r\n\r\n", {"A": "yes", "B": "no"}),
    ],
)
def test_both_forms_of_gene_lists_are_read(tmp_path, text, labels):
    (tmp_path / "genes.csv").write_text(text)
    assert read_gene_labels(tmp_path / "genes.csv") == labels


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gene,label\n", "has no genes"),
        ("gene,label\nA,x\nA,y\n", "line 3: gene 'A' has two classes"),
        ("gene,label\n\nA,x\n\nB,\n", "line 5: gene 'B' has no class"),
        ('gene,label\n"A\nalias",x\nB,\n', "line 4: gene 'B' has no class"),
        ("gene,low,high\nA,Yes,Yes\n", "line 2: gene 'A' has 2 classes"),
        ("gene,label\nA," + "x" * 200_000, "is no table in text: field larger than field limit"),
    ],
)
def test_bad_gene_lists_are_refused(tmp_path, text, message):
    (tmp_path / "genes.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        read_gene_labels(tmp_path / "genes.csv")


def test_labels_that_do_not_fit_are_refused(typed_corpus, model, gene_labels, make_corpus):
    with pytest.raises(InputError, match=r"no obs column 'tissue'.*'cell_type'"):
        annotate_cells(model, typed_corpus, "tissue", progress=False)
    with pytest.raises(InputError, match="has 1 types of at least min_cells=50"):
        annotate_cells(model, typed_corpus, min_cells=50, progress=False)
    with pytest.raises(InputError, match="two classes; got 3"):
        classify_genes(model, typed_corpus, gene_labels | {"G25": "middle"}, progress=False)
    with pytest.raises(InputError, match="50 folds need as many genes"):
        classify_genes(model, typed_corpus, gene_labels, folds=50, progress=False)
    with pytest.raises(InputError, match=r"the model at .* knows 62 tokens, the corpus has 102"):
        load_encoder(model, make_corpus(1, 100).vocabulary)
    with pytest.raises(InputError, match="holds no model"):
        load_encoder(model / "nothing", typed_corpus.vocabulary)


def test_a_pickled_checkpoint_is_refused(typed_corpus, model, tmp_path):
    (tmp_path / "config.json").write_bytes((model / "config.json").read_bytes())
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"must be a \.safetensors file"):
        load_encoder(tmp_path, typed_corpus.vocabulary)


@pytest.mark.parametrize("share", [0, 0.5])
def test_damaged_weights_are_refused(typed_corpus, model, tmp_path, fails, share):
    shutil.copytree(model, tmp_path / "model")
    weights = tmp_path / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[: int(share * weights.stat().st_size)])
    with pytest.raises(InputError, match=r"the weights at .*model are damaged or cut short"):
        load_encoder(tmp_path / "model", typed_corpus.vocabulary)
    write_corpus(typed_corpus, tmp_path / "cells.dataset")
    err = fails("evaluate", "cells", tmp_path / "model", tmp_path / "cells.dataset", "--no-progress")
    assert f"the weights at {tmp_path}/model are damaged" in err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": 64}, "are not those of its config.json"),
        ({"num_attention_heads": 5}, "are not those of its config.json"),
        (
            {"num_hidden_layers": 3},
            r"lack 16 of those that .* speaks of, such as '(bert\.)?encoder\.layer\.2\.",
        ),
    ],
    ids=["wider", "other heads", "one layer more"],
)
def test_weights_of_another_configuration_are_refused(typed_corpus, model, tmp_path, change, message):
    shutil.copytree(model, tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(InputError, match=message):
        load_encoder(tmp_path / "model", typed_corpus.vocabulary)


def test_a_damaged_index_of_weights_is_refused(typed_corpus, model, tmp_path):
    (tmp_path / "config.json").write_bytes((model / "config.json").read_bytes())
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": ')
    with pytest.raises(InputError, match="are damaged or cut short"):
        load_encoder(tmp_path, typed_corpus.vocabulary)


def test_a_model_of_other_genes_is_refused(typed_corpus, model, tmp_path):
    names = typed_corpus.vocabulary.names
    shutil.copytree(model, tmp_path / "model")
    typed_corpus.vocabulary.save(tmp_path / "model" / "token_dictionary.json")
    load_encoder(tmp_path / "model", typed_corpus.vocabulary)
    swapped = (*names[:-2], names[-1], names[-2])  # as many tokens, with other meanings
    Vocabulary(swapped).save(tmp_path / "model" / "token_dictionary.json")
    with pytest.raises(InputError, match=r"the model at .* and the corpus have different vocabularies"):
        load_encoder(tmp_path / "model", typed_corpus.vocabulary)


def test_batches_without_a_label_train_nothing(typed_corpus, model):
    from corrmask_fast.evaluation.fine_tuning import fine_tune
    from corrmask_fast.progress import progress_bar

    labeller = labeller_of(model, typed_corpus.vocabulary, 2)
    before = labeller.head.weight.clone()
    unlabelled = lambda batch, _: torch.full((batch.size,), UNLABELLED)  # noqa: E731
    with progress_bar("", 1, "step", shown=False) as bar:
        fine_tune(labeller, typed_corpus, np.arange(8), unlabelled, QUICK, bar)
    assert torch.equal(before, labeller.head.weight)


def test_command_line(typed_corpus, model, gene_labels, tmp_path, capsys):
    write_corpus(typed_corpus, tmp_path / "cells.dataset")
    quick = ["--epochs", "2", "--batch-size", "16", "--learning-rate", "3e-3", "--no-progress", "--device", "cpu"]
    outputs = ["--csv", str(tmp_path / "types.csv"), "--plot", str(tmp_path / "types.png")]
    assert main(["evaluate", "cells", str(model), str(tmp_path / "cells.dataset"), *quick, *outputs]) == 0
    assert "macro-F1" in capsys.readouterr().out
    with (tmp_path / "types.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["method"] == "fine-tuned"]
    assert [row["cell_type"] for row in rows] == ["B cell", "T cell", "mast"]
    assert [row["rare"] for row in rows] == ["False", "False", "True"]
    assert (tmp_path / "types.png").stat().st_size > 5000

    (tmp_path / "genes.csv").write_text("gene,label\n" + "".join(f"{g},{c}\n" for g, c in gene_labels.items()))
    outputs = ["--csv", str(tmp_path / "roc.csv"), "--plot", str(tmp_path / "roc.png"), "--folds", "2"]
    genes = ["--genes", str(tmp_path / "genes.csv")]
    assert main(["evaluate", "genes", str(model), str(tmp_path / "cells.dataset"), *genes, *quick, *outputs]) == 0
    assert "mean ± sd" in capsys.readouterr().out
    assert (tmp_path / "roc.png").stat().st_size > 5000

    assert main(["evaluate", "cells", str(model), str(tmp_path / "cells.dataset"), "--labels", "nope"]) == 2
    assert "no obs column 'nope'" in capsys.readouterr().err
