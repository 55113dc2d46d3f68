"""Embeddings: each vector is what the model says of the cell alone, however cells are batched; and its AnnData."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from corrmask_fast import Corpus, InputError, Vocabulary, embed_cells, embed_genes, read_corpus, write_corpus
from corrmask_fast.cli.main import main
from corrmask_fast.evaluation import embeddings
from corrmask_fast.evaluation.embeddings import cells_to_anndata
from corrmask_fast.evaluation.fine_tuning import mean_over_genes

transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.usefixtures("one_thread")

ROOT = Path(__file__).resolve().parents[1]
SHAPE = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 24}
POSITIONS = {"max_position_embeddings": 40}
KINDS = {
    "bert": (transformers.BertConfig, POSITIONS),
    "roberta": (transformers.RobertaConfig, {"max_position_embeddings": 31}),  # 30 positions: padding_idx + 1 is lost
    "distilbert": (transformers.DistilBertConfig, {**POSITIONS, "dim": 16, "n_layers": 3, "n_heads": 2}),
    "modernbert": (
        transformers.ModernBertConfig,
        {"max_position_embeddings": 40, "cls_token_id": 2, "sep_token_id": 3},
    ),
}


def vocabulary_of(*special):
    return Vocabulary(("<pad>", "<mask>", *special, *(f"G{i}" for i in range(50))))


@pytest.fixture(scope="module")
def corpus():
    """V2 cells of 0 to 40 genes; G49 stands in none."""
    rng = np.random.default_rng(0)
    cells = [4 + rng.permutation(49)[:n] for n in (7, 0, 40, 1, 25, 12, 40, 3, 18, 18, 5)]
    names = np.array([f"cell{i}" for i in range(len(cells))], object)
    obs = {"obs_names": names, "cell_type": np.array(list("AABBBABAABB"), object)}
    indptr = np.cumsum([0, *map(len, cells)])
    return Corpus(indptr, np.concatenate(cells), vocabulary_of("<cls>", "<eos>"), obs=obs)


def make_model(kind="bert", size=54):
    config, more = KINDS[kind]
    shape = {} if kind == "distilbert" else SHAPE
    torch.manual_seed(0)
    return transformers.AutoModel.from_config(config(vocab_size=size, pad_token_id=0, **shape, **more)).eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory, corpus):
    """A checkpoint with a head, as pretraining leaves it."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("model")
    config = transformers.BertConfig(vocab_size=54, pad_token_id=0, **SHAPE, **POSITIONS)
    transformers.BertForMaskedLM(config).save_pretrained(path)
    corpus.vocabulary.save(path / "token_dictionary.json")
    return path


def states_alone(model, corpus, length=None):
    """Yield (tokens, hidden states of all layers) of each cell, asked alone, without padding."""
    for cell in range(corpus.n_cells):
        ids = torch.from_numpy(corpus.gather_for_training(np.array([cell]), length)[1].astype(np.int64))
        with torch.inference_mode():
            out = model(input_ids=ids[None], attention_mask=torch.ones_like(ids)[None], output_hidden_states=True)
        layers = [state[0] for state in out.hidden_states]
        layers[-1] = out.last_hidden_state[0]
        yield ids, layers


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layer", [-1, -2, 0, 3])
def test_a_cell_is_the_mean_over_its_genes_whatever_the_batch(corpus, kind, layer):
    model = make_model(kind)
    length = 30 if kind == "roberta" else None  # what it can see
    expected = np.zeros((corpus.n_cells, 16))
    for cell, (ids, layers) in enumerate(states_alone(model, corpus, length or 40)):
        if (genes := ids >= 4).any():
            expected[cell] = layers[layer][genes].mean(0)
    for batch_size in (1, 3, 64):
        found = embed_cells(model, corpus, layer=layer, batch_size=batch_size, progress=False)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, rtol=2e-4, atol=2e-5)


def test_the_vector_of_cls(corpus):
    model = make_model()
    expected = [layers[1][0].numpy() for _, layers in states_alone(model, corpus, 40)]
    found = embed_cells(model, corpus, pool="cls", layer=1, batch_size=4, progress=False)
    np.testing.assert_allclose(found, expected, rtol=2e-4, atol=2e-5)
    v1 = Corpus(np.array([0, 2]), np.array([3, 4]), vocabulary_of())
    with pytest.raises(InputError, match=r"pool='cls' needs a <cls> token .* this vocabulary has none"):
        embed_cells(make_model(size=52), v1, pool="cls", progress=False)


def test_cells_pass_in_batches_sorted_within_chunks(corpus, folder, tmp_path, monkeypatch):
    whole = embed_cells(folder, corpus, batch_size=64, progress=False)
    write_corpus(corpus, tmp_path / "cells.dataset")
    on_disk = read_corpus(tmp_path / "cells.dataset")
    read, gather = [], on_disk.gather_for_training
    on_disk.gather_for_training = lambda rows, length: read.append(rows) or gather(rows, length)
    monkeypatch.setattr(embeddings, "CHUNK", 4)
    np.testing.assert_allclose(embed_cells(folder, on_disk, batch_size=3, progress=False), whole, rtol=1e-4, atol=1e-6)
    assert [rows.tolist() for rows in read] == [[1, 3, 0], [2], [7, 5, 4], [6], [10, 8, 9]]
    assert not on_disk.in_memory  # the tokens were never loaded as a whole


def test_a_module_is_left_as_it_was(corpus, folder):
    model = transformers.AutoModelForMaskedLM.from_pretrained(folder).train()  # with a head: its encoder is asked
    found = embed_cells(model, corpus, progress=False)
    assert model.bert.training
    np.testing.assert_array_equal(found, embed_cells(folder, corpus, device="cpu", progress=False))


def test_bfloat16_is_near(corpus, folder):
    exact = embed_cells(folder, corpus, progress=False)
    half = embed_cells(folder, corpus, precision="bfloat16", progress=False)
    assert 0 < np.abs(half - exact).max() < 0.1


def test_genes_are_means_over_the_cells_that_hold_them(corpus, folder):
    found = embed_genes(folder, corpus, max_length=30, batch_size=3, progress=False)
    model = transformers.AutoModel.from_pretrained(folder, add_pooling_layer=False).eval()
    sums, n_cells = np.zeros((54, 16)), np.zeros(54, int)
    for ids, layers in states_alone(model, corpus, 30):
        np.add.at(sums, ids.numpy(), layers[-1].numpy())
        n_cells[ids] += 1
    assert found.n_cells.tolist() == n_cells[4:].tolist()
    seen = found.n_cells > 0
    assert not seen[49]
    means = sums[4:][seen] / found.n_cells[seen, None]
    np.testing.assert_allclose(found.contextual[seen], means, rtol=2e-4, atol=2e-5)
    assert np.isnan(found.contextual[~seen]).all()
    np.testing.assert_array_equal(found.static, model.embeddings.word_embeddings.weight[4:].detach())


class Plain(torch.nn.Module):
    """Returns nothing but the last layer: the tokens' numbers."""

    def forward(self, input_ids, attention_mask):
        return SimpleNamespace(last_hidden_state=input_ids[..., None].float())


def test_padding_does_not_count_even_where_it_has_no_number():
    v1 = Corpus(np.array([0, 2, 2]), np.array([3, 4]), vocabulary_of())
    found = embed_cells(make_model(size=52), v1, progress=False)
    assert np.isfinite(found).all()
    assert not found[1].any()  # a cell without genes, and without <cls>
    hidden = torch.tensor([[[1.0], [2.0], [torch.nan]], [[torch.nan]] * 3])
    ids, seen = torch.tensor([[3, 4, 0], [0, 0, 0]]), torch.tensor([[1, 1, 0], [0, 0, 0]])
    assert mean_over_genes(hidden, ids, seen, (2, 52)).tolist() == [[1.5], [0.0]]


def test_what_is_refused(corpus, folder):
    for options, message in (
        ({"layer": 4}, r"layer must be in \[-4, 3\] for this model of 3 layers: 0 is its embeddings, -1 its last"),
        ({"layer": -5}, r"layer must be in \[-4, 3\].*got -5"),
        ({"layer": 0.5}, "layer must be an integer"),
        ({"pool": "max"}, "pool must be 'mean' or 'cls'; got 'max'"),
        ({"precision": "float16"}, "precision must be 'float32' or 'bfloat16'"),
        ({"batch_size": 0}, "batch_size must be an integer >= 1"),
        ({"max_length": 0}, "max_length must be an integer >= 1"),
        ({"device": "tpu"}, "device must be 'auto', 'cpu' or 'cuda'"),
    ):
        with pytest.raises(InputError, match=message):
            embed_cells(folder, corpus, progress=False, **options)
    with pytest.raises(InputError, match="the corpus has no cells"):
        embed_cells(folder, corpus.take(np.arange(0)), progress=False)
    assert embed_cells(Plain(), corpus, progress=False)[3] == corpus.tokens[47]  # a cell of one gene
    with pytest.raises(InputError, match="Plain does not say which its input embeddings are"):
        embed_genes(Plain(), corpus, progress=False)
    loss = torch.nn.Module()
    loss.forward = lambda **_: SimpleNamespace(loss=0)
    with pytest.raises(InputError, match="the model returns no last_hidden_state"):
        embed_cells(loss, corpus, progress=False)


def test_obs_columns_of_every_kind_are_written(corpus, tmp_path):
    anndata = pytest.importorskip("anndata")
    n = corpus.n_cells
    columns = {
        "text": np.array(["a", None, "b"] + ["a"] * (n - 3), object),
        "whole": np.array([1, None] + [2] * (n - 2), object),
        "truth": np.array([True, None] + [False] * (n - 2), object),
        "number": np.array([0.5, np.nan] + [1.0] * (n - 2)),
        "day": np.array(["2024-05-01"] * n, "M8[us]"),
        "count": np.arange(n),
        "lists": np.arange(2 * n).reshape(n, 2),
    }
    cells = Corpus(corpus.indptr, corpus.tokens, corpus.vocabulary, obs=columns)
    vectors = np.arange(2.0 * n, dtype=np.float32).reshape(n, 2)
    with pytest.warns(UserWarning, match="left out: obs column 'lists'"):
        adata = cells_to_anndata(vectors, cells, name="random")
    adata.write_h5ad(tmp_path / "a.h5ad")
    back = anndata.read_h5ad(tmp_path / "a.h5ad")
    assert back.obs_names.tolist() == [str(i) for i in range(n)]
    assert list(back.obs.columns) == ["text", "whole", "truth", "number", "day", "count"]
    assert back.obs["text"].isna().tolist() == [False, True] + [False] * (n - 2)
    assert back.obs["whole"].tolist()[2:] == [2] * (n - 2)
    assert back.obs["whole"].isna().sum() == back.obs["truth"].isna().sum() == back.obs["number"].isna().sum() == 1
    assert set(back.obs["day"]) == {"2024-05-01T00:00:00.000000"}
    np.testing.assert_array_equal(back.obsm["X_random"], vectors)
    with pytest.raises(InputError, match=r"obs_names must be one of the corpus's obs columns .*; got 'barcode'"):
        cells_to_anndata(vectors, corpus, obs_names="barcode")


def test_the_command(corpus, folder, tmp_path, monkeypatch, capsys, fails):
    anndata = pytest.importorskip("anndata")
    monkeypatch.chdir(tmp_path)
    write_corpus(corpus, "cells.dataset")
    Path("run").mkdir()
    Path("run/model").symlink_to(folder)
    given = ["embed", "run/model", "cells.dataset", "--no-progress", "--device", "cpu"]
    assert main([*given, "-o", "embedded.h5ad"]) == 0
    assert "embedded.h5ad: 11 cells, 16 numbers each in obsm['X_embedding']; obs: cell_type" in capsys.readouterr().out
    cells = anndata.read_h5ad("embedded.h5ad")
    assert cells.obs_names.tolist() == [f"cell{i}" for i in range(11)]
    assert "".join(cells.obs["cell_type"]) == "AABBBABAABB"
    assert dict(cells.uns["embedding"]) == {"model": "run/model", "layer": -1, "pool": "mean"}
    np.testing.assert_array_equal(cells.obsm["X_embedding"], embed_cells(folder, corpus, device="cpu", progress=False))

    assert main([*given, "-o", "genes.h5ad", "--genes", "--name", "bert", "--layer", "2"]) == 0
    genes, expected = anndata.read_h5ad("genes.h5ad"), embed_genes(folder, corpus, layer=2, progress=False)
    held = np.flatnonzero(expected.n_cells)  # G49 is in no cell
    assert genes.obs_names.tolist() == [f"G{i}" for i in held]
    assert genes.obs["token"].tolist() == (4 + held).tolist()
    assert genes.obs["n_cells"].tolist() == expected.n_cells[held].tolist()
    np.testing.assert_array_equal(genes.obsm["X_bert"], expected.contextual[held])
    np.testing.assert_array_equal(genes.obsm["X_bert_static"], expected.static[held])

    for options, message in (
        (["-o", "a.csv"], "embeddings are written to a file ending in .h5ad; got a.csv"),
        (["-o", "a.h5ad", "--genes", "--pool", "cls"], "--pool cls applies to cells; leave it out with --genes"),
        (["-o", "a.h5ad", "--layer", "9"], "--layer must be in [-4, 3]"),
        (["-o", "a.h5ad", "--obs-names", "barcode"], "--obs-names must be one of the corpus's obs columns"),
    ):
        assert message in fails(*given, *options)
        assert not Path("a.h5ad").exists()
