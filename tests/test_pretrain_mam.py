"""Pretraining with masks that are learned with the model: through Trainer, its checkpoints, and the command line."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch

from corrmask_fast import (
    CorpusDataset,
    DependencyGraph,
    InputError,
    MultinomialAttentionMasker,
    RandomMasker,
    read_corpus,
)
from corrmask_fast.cells.corpus_io import write_corpus
from corrmask_fast.cli.main import main
from corrmask_fast.masking.schedules import Schedule

transformers = pytest.importorskip("transformers", minversion="4.46")
pytest.importorskip("accelerate")

from trainers import GRAPH, VOCABULARY, StopAfter, cells_of, make_cells, make_masker, make_model, original, our_trainer

from corrmask_fast.training.mam_model import attached
from corrmask_fast.training.run_record import _settings
from corrmask_fast.training.trainer import EVALUATION_EPOCH

pytestmark = pytest.mark.usefixtures("one_thread")


def learning_trainer(folder, model=None, masker=None, **options):
    return our_trainer(folder, model, masker=masker or make_masker(), masking="device", **options)


def test_latents_learn_with_the_model(tmp_path):
    """The first step's masks are by the weights at hand; then model and masker move, the masker by its context."""
    model, masker = make_model(), make_masker()
    first, embeddings = copy.deepcopy(masker), copy.deepcopy(model.get_input_embeddings())
    trainer = learning_trainer(tmp_path, model, masker, max_steps=7)
    trainer.train()
    batch = trainer.batches[0]
    masked, latents = first.draw(original(batch), batch["attention_mask"], embeddings=embeddings, epoch=0)
    assert torch.equal(batch["input_ids"], masked.input_ids)
    assert torch.equal(batch["latents"], latents)
    moved = [(a - b).abs().max() > 0 for a, b in zip(masker.parameters(), first.parameters(), strict=True)]
    assert all(moved)
    assert torch.equal(trainer.model.attention_masker.latents, masker.latents)
    assert len(set(map(tuple, cells_of(trainer.batches[6:])))) == 4  # the second epoch's masks are others
    assert not torch.equal(trainer.batches[6]["input_ids"], trainer.batches[0]["input_ids"])


@pytest.mark.parametrize("options", [{}, {"graph": GRAPH}], ids=["mam", "corrmask-mam"])
def test_accumulated_batches_are_one_large_batch(tmp_path, options):
    small = learning_trainer(
        tmp_path,
        masker=make_masker(**options),
        per_device_train_batch_size=2,
        gradient_accumulation_steps=4,
        max_steps=2,
    )
    large = learning_trainer(tmp_path, masker=make_masker(**options), per_device_train_batch_size=8, max_steps=2)
    small.train()
    large.train()
    for one, other, atol in zip(small.gradients, large.gradients, (1e-6, 1e-4), strict=True):
        # Gradients of a key's bias are rounding alone, of which AdamW makes whole steps: later ones are further apart.
        torch.testing.assert_close(one, other, rtol=1e-4, atol=atol)
    np.testing.assert_allclose(np.reshape(small.losses, (2, 4)).sum(1), large.losses, rtol=1e-5)


def test_a_run_that_is_stopped_and_resumed_loses_the_same(tmp_path):
    """Stopped within the second epoch, with dropout and accumulated batches; latents and their optimizer too."""

    def run(folder, last, resume=None, **changes):
        trainer = learning_trainer(
            tmp_path / folder, make_model(dropout=0.1), make_masker(**changes), max_steps=9, save_strategy="steps",
            save_steps=4, gradient_accumulation_steps=2,
        )  # fmt: skip
        if last:
            trainer.add_callback(StopAfter(last))
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    whole = run("whole", None)
    stopped = run("stopped", 8)
    checkpoint = str(tmp_path / "stopped" / "checkpoint-8")
    resumed = run("stopped", None, checkpoint)
    assert stopped.losses + resumed.losses == whole.losses
    for one, other in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other)
    record = json.loads((tmp_path / "stopped" / "checkpoint-8" / "corrmask.json").read_text())["masker"]
    assert (record["strategy"], record["n_latents"], record["latent_ratio"]) == ("MultinomialAttentionMasker", 6, 0.5)
    for changes, message in (
        ({"n_latents": 7}, "was made with n_latents=6, this run has n_latents=7"),
        ({"latent_ratio": 1.0}, r"was made with latent_ratio=0\.5, this run has latent_ratio=1\.0"),
        ({"n_heads": 2}, "was made with n_heads=4, this run has n_heads=2"),
    ):
        with pytest.raises(InputError, match=message):
            run("stopped", None, checkpoint, **changes)
    with pytest.raises(
        InputError, match="the saved masker has n_latents=6 and dim=32, this one n_latents=7 and dim=32"
    ):
        make_masker(n_latents=7).load_state_dict(make_masker().state_dict())


def test_masks_of_evaluation_are_frozen_while_latents_learn(tmp_path):
    held_out = make_cells(13, seed=9)
    trainer = learning_trainer(
        tmp_path, eval_dataset=CorpusDataset(read_corpus(held_out, VOCABULARY)), max_steps=8, eval_strategy="steps",
        eval_steps=4,
    )  # fmt: skip
    seen, inner = [], trainer.model.forward
    trainer.model.forward = lambda **inputs: (trainer.model.training or seen.append(inputs), inner(**inputs))[1]
    masks, compute = [], trainer.compute_loss

    def compute_loss(model, inputs, *args, **kwargs):
        if not model.training:
            masks.append(inputs["input_ids"])
        return compute(model, inputs, *args, **kwargs)

    trainer.compute_loss = compute_loss
    trainer.train()
    losses = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert len(set(losses)) == 2  # the model learns
    padded = torch.tensor([cell + [0] * (24 - len(cell)) for cell in held_out])
    expected = RandomMasker(VOCABULARY, mlm_probability=0.3, seed=5)(padded, epoch=EVALUATION_EPOCH).input_ids
    rows = torch.cat([torch.nn.functional.pad(ids, (0, 24 - ids.shape[1])) for ids in masks])
    assert torch.equal(rows, torch.cat([expected] * 2))
    assert all("input_ids" in inputs and inputs.get("inputs_embeds") is None for inputs in seen)  # and no context
    assert losses[1] == pytest.approx(trainer.evaluate()["eval_loss"])
    trainer.save_model(str(tmp_path / "model"))
    again = our_trainer(
        tmp_path, transformers.BertForMaskedLM.from_pretrained(tmp_path / "model"), eval_dataset=trainer.eval_dataset,
        masker=RandomMasker(VOCABULARY, mlm_probability=0.3, seed=5),
    )  # fmt: skip
    assert losses[1] == pytest.approx(again.evaluate()["eval_loss"], rel=1e-5)  # what is reported is what is saved


def test_the_saved_model_is_an_ordinary_one_with_its_masker_beside_it(tmp_path):
    masker = make_masker(graph=GRAPH)
    trainer = learning_trainer(tmp_path, masker=masker, max_steps=2)
    trainer.train()
    trainer.save_model(str(tmp_path / "model"))
    model, told = transformers.BertForMaskedLM.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not any(told[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    again = MultinomialAttentionMasker.load(tmp_path / "model" / "attention_masker.safetensors", GRAPH)
    ids = original(trainer.batches[0])
    for weights, name in ((model, "model"), (again, "masker")):
        trained = trainer.model if name == "model" else masker
        for key, value in weights.named_parameters():
            assert torch.equal(value, dict(trained.named_parameters())[key]), key
    masks = [one.draw(ids, embeddings=model.get_input_embeddings(), epoch=3)[0].labels for one in (masker, again)]
    assert torch.equal(*masks)
    assert trainer.model.attention_masker is masker


class Halved(Schedule):
    """A schedule of one's own, which no file could name."""

    def __init__(self, start):
        self.start = start

    @property
    def values(self):
        return self.start, self.start / 2

    def formula(self, step, math_of):
        return self.start / (1 + math_of.unit(step))


def test_what_does_not_fit_is_refused(tmp_path):
    with pytest.raises(InputError, match="which workers do not have; use masking='device'"):
        our_trainer(tmp_path, masker=make_masker())
    with pytest.raises(InputError, match="dim must be the width of the model's embeddings, 32; got 16"):
        learning_trainer(tmp_path, masker=MultinomialAttentionMasker(VOCABULARY, 16))
    model = make_model()
    with pytest.raises(InputError, match="use Linear, Cosine or Piecewise"):
        learning_trainer(tmp_path, model, make_masker(mlm_probability=Halved(0.4)))
    with pytest.raises(InputError, match="leave out label_smoothing_factor"):
        learning_trainer(tmp_path, model, label_smoothing_factor=0.1)
    assert attached(model) is None
    assert not model._forward_pre_hooks
    assert _settings(RandomMasker(VOCABULARY, mlm_probability=Halved(0.4)))["mlm_probability"].endswith("(0.4, 0.2)")
    from corrmask_fast import CorrMaskTrainer

    with pytest.raises(InputError, match="learns with one model; give model=, in place of model_init"):
        CorrMaskTrainer(None, masker=make_masker(), masking="device", model_init=make_model)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, make_corpus):
    folder = tmp_path_factory.mktemp("mam")
    corpus = make_corpus(60, 40, seed=3, max_length=40)
    write_corpus(corpus, folder / "cells.dataset")
    pairs = [(2 * i, 2 * i + 1) for i in range(1, 20)]
    DependencyGraph.from_edges(pairs, corpus.vocabulary).save(folder / "graph.safetensors")
    return folder


def options_of(folder, run):
    return [
        "pretrain", str(folder / "cells.dataset"), "--out", str(run), "--no-progress", "--hidden-size", "16",
        "--layers", "1", "--heads", "2", "--intermediate-size", "16", "--max-length", "40", "--batch-size", "8",
        "--held-out", "0.2", "--device", "cpu", "--eval-every", "3", "--save-every", "3", "--log-every", "1",
    ]  # fmt: skip


@pytest.mark.parametrize("strategy", ["mam", "corrmask-mam"])
def test_the_command_line_trains_resumes_and_saves(folder, tmp_path, capsys, strategy):
    graph = ["--graph", str(folder / "graph.safetensors")]
    made = [*options_of(folder, tmp_path / "run"), "--strategy", strategy, *graph, "--n-latents", "6"]
    assert main([*made, "--latent-ratio", "0.4", "--max-steps", "3"]) == 0
    out = capsys.readouterr().out
    assert "% masking" in out  # on the device, as it must be
    assert "all partners hidden" in out
    settings = (tmp_path / "run" / "settings.toml").read_text()
    assert f'strategy = "{strategy}"' in settings
    assert "latent_ratio = 0.4" in settings
    assert main([*made[:5], "--resume", "--max-steps", "6"]) == 0
    masker = MultinomialAttentionMasker.load(
        tmp_path / "run" / "model" / "attention_masker.safetensors",
        DependencyGraph.load(folder / "graph.safetensors") if strategy == "corrmask-mam" else None,
    )
    assert (masker.dim, masker.n_latents, masker.n_heads, masker.latent_ratio) == (16, 6, 2, 0.4)
    transformers.BertForMaskedLM.from_pretrained(tmp_path / "run" / "model")
    capsys.readouterr()
    assert main([*made[:5], "--resume", "--max-steps", "9", "--n-latents", "7"]) == 2
    assert "was made with --n-latents 6, this run has --n-latents 7" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--strategy", "mam", "--masking", "worker"], "which workers do not have; use --masking device"),
        (["--strategy", "mam", "--max-partners", "3"], "--max-partners has no meaning for the strategy 'mam'"),
        (["--strategy", "mam", "--latent-ratio", "0"], "--latent-ratio must be a number in (0, 1]; got 0.0"),
        (["--strategy", "random", "--n-latents", "3"], "--n-latents has no meaning for the strategy 'random'"),
        (["--strategy", "corrmask-mam"], "--strategy corrmask-mam needs --graph GRAPH"),
    ],
)
def test_bad_options(folder, tmp_path, capsys, options, message):
    assert main([*options_of(folder, tmp_path / "run"), *options, "--max-steps", "1"]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
