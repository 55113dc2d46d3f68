"""What a run may start from and be computed with: checkpoints, precision, compilation, TensorBoard, masks held out."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_pretraining_run import TINY, _one_thread, corpus, graph  # noqa: F401 (fixtures)

from corrmask_fast import (
    CorrMasker,
    InputError,
    Linear,
    MultinomialAttentionMasker,
    RandomMasker,
    Vocabulary,
    cuda,
    score_masks,
)
from corrmask_fast.cells.corpus_io import write_corpus
from corrmask_fast.cli.main import main

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from trainers import FIT, NO_DROPOUT, make_kind, our_trainer

from corrmask_fast.training.run import _masking, pretrain, split_cells


def run(corpus, masker, folder, *, settings=TINY, **options):  # noqa: F811
    return pretrain(corpus, masker, folder, settings, progress=False, **options)


def losses(report, name="loss"):
    return [row[name] for row in report.history if name in row]


# ------------------------------------------------------------------------------------------------- from a checkpoint


@pytest.mark.parametrize("kind", ["Bert", "Roberta", "Esm"])
def test_it_goes_on_with_a_checkpoint_of_any_kind(corpus, tmp_path, kind):  # noqa: F811
    more = {"token_dropout": False} if kind == "Esm" else {}  # it divides by the length of a cell, which may be 0
    model = make_kind(kind, **FIT[kind] | NO_DROPOUT | {"max_position_embeddings": 64} | more)
    model.save_pretrained(tmp_path / "start")
    settings = replace(TINY, model=str(tmp_path / "start"))
    masker = RandomMasker(corpus.vocabulary)
    report = run(corpus, masker, tmp_path / "run", settings=settings)
    again = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / "run" / "model")
    assert type(again) is type(model)
    moved = [not torch.equal(one, other) for one, other in zip(model.parameters(), again.parameters(), strict=True)]
    assert np.mean(moved) > 0.5
    # Its first loss is that of the checkpoint's weights, not of new ones: the same as with the whole head.
    whole = run(corpus, masker, tmp_path / "whole", settings=replace(settings, head="full"))
    np.testing.assert_allclose(losses(report), losses(whole), rtol=1e-4)
    recorded = (tmp_path / "run" / "settings.toml").read_text()
    assert "hidden_size = 16" in recorded
    assert "layers = 1" in recorded
    if kind != "Esm":  # transformers 5 saves its layer norms by old names, and its Trainer does not find them again
        resumed = run(corpus, masker, tmp_path / "run", settings=replace(settings, max_steps=9), resume=True)
        assert len(losses(resumed)) == 9


def test_a_run_that_starts_from_another_has_lower_losses(corpus, graph, tmp_path):  # noqa: F811
    masker = CorrMasker(graph)
    first = run(corpus, masker, tmp_path / "first", settings=replace(TINY, max_steps=60, learning_rate=2e-2))
    second = run(corpus, masker, tmp_path / "second", settings=replace(TINY, model=str(tmp_path / "first" / "model")))
    assert losses(second)[0] < losses(first)[0] - 0.1
    other = replace(TINY, model=str(tmp_path / "second" / "model"))
    with pytest.raises(InputError, match=r"has model=.*first/model, and cannot go on with .*second/model"):
        run(corpus, masker, tmp_path / "second", settings=other, resume=True)


def test_checkpoints_that_do_not_fit(corpus, tmp_path):  # noqa: F811
    masker = RandomMasker(corpus.vocabulary)

    def refused(message, folder="start"):
        with pytest.raises(InputError, match=message):
            run(corpus, masker, tmp_path / "run", settings=replace(TINY, model=str(tmp_path / folder)))
        assert not (tmp_path / "run").exists()

    refused("holds no model", "nothing")
    transformers.BertForMaskedLM(transformers.BertConfig(vocab_size=20, hidden_size=16, num_hidden_layers=1,
        num_attention_heads=2, intermediate_size=16)).save_pretrained(tmp_path / "start")  # fmt: skip
    refused(f"knows 20 tokens, the corpus has {corpus.vocabulary.size}")
    model = make_kind("Bert", **NO_DROPOUT)
    model.save_pretrained(tmp_path / "start")
    names = list(corpus.vocabulary.names)
    Vocabulary((*names[:-1], "another")).save(tmp_path / "start" / "token_dictionary.json")
    refused("another|differ")
    for path in (tmp_path / "start").glob("token_dictionary*"):
        path.unlink()
    model.bert.save_pretrained(tmp_path / "encoder")
    refused("lack .* such as 'cls", "encoder")
    (tmp_path / "start" / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "start" / "pytorch_model.bin")
    refused("must be a .safetensors file")
    transformers.GPT2Config(vocab_size=62, n_embd=16, n_layer=1, n_head=2).save_pretrained(tmp_path / "gpt2")
    refused("is of type gpt2, which has no masked language model", "gpt2")


def test_a_size_beside_a_checkpoint_is_refused(corpus, tmp_path, capsys):  # noqa: F811
    write_corpus(corpus, tmp_path / "cells.dataset")
    make_kind("Bert", max_position_embeddings=64).save_pretrained(tmp_path / "start")
    given = ["pretrain", str(tmp_path / "cells.dataset"), "--out", str(tmp_path / "run"), "--strategy", "random"]
    given += ["--model", str(tmp_path / "start"), "--max-steps", "2", "--no-progress", "--device", "cpu"]
    assert main([*given, "--layers", "3"]) == 2
    assert "--layers must be left out with --model: it comes from the checkpoint" in capsys.readouterr().err
    assert main(given) == 0
    assert "2 steps; the model lies in" in capsys.readouterr().out
    assert f'model = "{tmp_path}/start"' in (tmp_path / "run" / "settings.toml").read_text()
    assert main([*given[:4], "--no-progress", "--resume", "--max-steps", "3"]) == 0
    assert "3 steps; the model lies in" in capsys.readouterr().out


# ------------------------------------------------------------------------------------------------- how it is computed


def test_precision_compilation_and_activations_computed_twice(corpus, graph, tmp_path, monkeypatch):  # noqa: F811
    compiled, compile_model = [], torch.compile

    def traced(model, **options):  # what Inductor makes of it takes a minute, and is not ours
        compiled.append(type(model).__name__)
        return compile_model(model, **{**options, "backend": "aot_eager"})

    monkeypatch.setattr(torch, "compile", traced)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")  # so that it is after this test what it was before
    masker = CorrMasker(graph)
    plain = run(corpus, masker, tmp_path / "plain")
    ways = {"precision": "bfloat16"}, {"gradient_checkpointing": True}, {"compile": True}
    for number, (way, tolerance) in enumerate(zip(ways, (2e-2, 1e-5, 1e-4), strict=True)):
        report = run(corpus, masker, tmp_path / str(number), settings=replace(TINY, **way))
        np.testing.assert_allclose(losses(report), losses(plain), rtol=tolerance, err_msg=str(way))
        if "precision" in way:
            assert losses(report) != losses(plain)
        saved = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / str(number) / "model")
        assert type(saved) is transformers.BertForMaskedLM
    assert compiled == ["BertForSparseMaskedLM"]
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="precision='float16' needs a GPU"):
            run(corpus, masker, tmp_path / "half", settings=replace(TINY, precision="float16"))


@pytest.mark.parametrize(
    ("cupy", "version", "where"), [(1, "13.0", "device"), (0, "13.0", "worker"), (1, None, "worker")]
)
def test_kernels_are_left_out_where_they_cannot_run(monkeypatch, corpus, cupy, version, where):  # noqa: F811
    """On a GPU without CuPy, and on AMD's, whose PyTorch has no CUDA version, the collator masks."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.version, "cuda", version)
    monkeypatch.setattr(cuda.importlib.util, "find_spec", lambda _: cupy or None)
    assert _masking(TINY, RandomMasker(corpus.vocabulary)) == "worker"  # TINY asks for the CPU
    assert _masking(replace(TINY, device="auto"), RandomMasker(corpus.vocabulary)) == where


def test_tensorboard(corpus, tmp_path):  # noqa: F811
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    report = run(
        corpus, RandomMasker(corpus.vocabulary), tmp_path / "run", settings=replace(TINY, report_to="tensorboard")
    )
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    assert [event.value for event in events.Scalars("train/loss")] == pytest.approx(losses(report))
    assert [event.value for event in events.Scalars("eval/accuracy")] == pytest.approx(losses(report, "eval_accuracy"))


# ------------------------------------------------------------------------------------------------ how it is evaluated


def test_accuracy_and_perplexity_are_of_the_held_out_cells(corpus, graph, tmp_path):  # noqa: F811
    """By hand, from the saved model and the frozen masks."""
    from torch.utils.data import DataLoader

    from corrmask_fast import CorpusDataset, DataCollatorForCorrMask
    from corrmask_fast.training.trainer import EVALUATION_EPOCH

    masker = CorrMasker(graph, mlm_probability=0.3)
    settings = replace(TINY, max_steps=30, learning_rate=2e-2)
    report = run(corpus, masker, tmp_path / "run", settings=settings, eval_masker=masker)
    model = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / "run" / "model").eval()
    collate = DataCollatorForCorrMask(masker).frozen(EVALUATION_EPOCH)
    right, total, loss = 0, 0, 0.0
    for batch in DataLoader(CorpusDataset(split_cells(corpus, TINY)[1]), 8, collate_fn=collate):
        with torch.no_grad():
            logits = model(batch["input_ids"], batch["attention_mask"]).logits
        masked = batch["labels"] != -100
        right += (logits.argmax(-1) == batch["labels"])[masked].sum().item()
        loss += torch.nn.functional.cross_entropy(logits[masked], batch["labels"][masked], reduction="sum").item()
        total += masked.sum().item()
    assert right > 0
    assert report.last("eval_accuracy") == pytest.approx(right / total)
    assert report.last("eval_perplexity") == pytest.approx(math.exp(loss / total), rel=1e-4)
    assert (
        f"perplexity {math.exp(loss / total):,.1f}; {100 * right / total:.1f} % of masked genes named"
        in report.summary()
    )


@pytest.mark.parametrize("masking", ["worker", "device"])
def test_held_out_losses_of_any_two_strategies_compare(corpus, graph, tmp_path, masking):  # noqa: F811
    """They are those of one yardstick: the same genes, whatever the training masked."""
    maskers = {"corrmask": CorrMasker(graph, mlm_probability=0.3, seed=7), "random": RandomMasker(corpus.vocabulary)}
    settings = replace(TINY, masking=masking)
    reports = {name: run(corpus, masker, tmp_path / name, settings=settings) for name, masker in maskers.items()}
    models = {name: tmp_path / name / "model" for name in maskers}
    scores = score_masks(models, split_cells(corpus, TINY)[1], device="cpu", progress=False)
    for name, report in reports.items():
        assert report.last("eval_loss") == pytest.approx(scores.loss(name).mean, rel=1e-5)
        assert report.last("eval_accuracy") == pytest.approx(scores.accuracy(name).mean)
    assert losses(reports["corrmask"]) != losses(reports["random"])


@pytest.mark.parametrize("masking", ["worker", "device"])
def test_evaluation_has_a_strategy_and_a_rate_of_its_own(corpus, graph, tmp_path, masking):  # noqa: F811
    """Training's masks are left as they are; the held-out loss is that of a run with these masks, at the first step."""
    held_out = RandomMasker(corpus.vocabulary, mlm_probability=0.3)
    settings = replace(TINY, masking=masking, max_steps=2, eval_every=1)
    plain = run(corpus, CorrMasker(graph), tmp_path / "plain", settings=settings)
    other = run(corpus, CorrMasker(graph), tmp_path / "other", settings=settings, eval_masker=held_out)
    assert losses(other) == losses(plain)
    assert losses(other, "eval_loss") != losses(plain, "eval_loss")
    assert losses(other, "eval_loss")[-1] == pytest.approx(
        _loss_of(tmp_path / "other" / "model", corpus, held_out), rel=1e-5
    )
    learned = MultinomialAttentionMasker(corpus.vocabulary, 16, n_latents=4)
    if masking == "device":
        report = run(corpus, learned, tmp_path / "learned", settings=settings, eval_masker=held_out)
        assert report.last("eval_loss") == pytest.approx(
            _loss_of(tmp_path / "learned" / "model", corpus, held_out), rel=1e-5
        )
    with pytest.raises(InputError, match="a MultinomialAttentionMasker learns, and its masks would change"):
        run(corpus, CorrMasker(graph), tmp_path / "wrong", settings=settings, eval_masker=learned)
    by_step = RandomMasker(corpus.vocabulary, mlm_probability=Linear(0.1, 0.3, 5))
    with pytest.raises(InputError, match="eval_masker's rates go by the step"):
        run(corpus, CorrMasker(graph), tmp_path / "wrong", settings=settings, eval_masker=by_step)


def _loss_of(model, corpus, masker):  # noqa: F811
    from corrmask_fast import CorpusDataset

    trainer = our_trainer(
        model.parent / "again", transformers.AutoModelForMaskedLM.from_pretrained(model),
        CorpusDataset(split_cells(corpus, TINY)[0]), masker=masker,
    )  # fmt: skip
    return trainer.evaluate(CorpusDataset(split_cells(corpus, TINY)[1]))["eval_loss"]


def test_evaluation_masks_on_the_command_line(corpus, graph, tmp_path, capsys):  # noqa: F811
    write_corpus(corpus, tmp_path / "cells.dataset")
    graph.save(tmp_path / "graph.safetensors")
    (tmp_path / "tiny.toml").write_text(TINY.to_toml())
    given = ["pretrain", str(tmp_path / "cells.dataset"), "--no-progress", "--config", str(tmp_path / "tiny.toml")]
    given += ["--graph", str(tmp_path / "graph.safetensors"), "--max-partners", "3", "--out"]
    assert main([*given, str(tmp_path / "a"), "--eval-strategy", "random", "--eval-mlm-probability", "0.3"]) == 0
    said = capsys.readouterr().out
    by_hand = _loss_of(tmp_path / "a" / "model", corpus, RandomMasker(corpus.vocabulary, mlm_probability=0.3))
    assert f"loss on held-out cells      {by_hand:.3f} nats" in said
    masker = RandomMasker(corpus.vocabulary, mlm_probability=0.3)
    held_out = split_cells(corpus, TINY)[1]
    scores = score_masks({"this model": tmp_path / "a" / "model"}, held_out, masker, device="cpu", progress=False)
    assert f"held-out cells: {scores.table()}\n" in said
    assert "masks: Random, 0.3 of a cell's genes, seed 0" in said
    recorded = (tmp_path / "a" / "settings.toml").read_text()
    assert 'eval_strategy = "random"' in recorded
    assert "eval_mlm_probability = 0.3" in recorded
    assert main([*given, str(tmp_path / "c"), "--eval-strategy", "corrmask", "--seed", "5"]) == 0
    by_hand = _loss_of(tmp_path / "c" / "model", corpus, CorrMasker(graph, mlm_probability=0.15, max_partners=3))
    assert f"loss on held-out cells      {by_hand:.3f} nats" in capsys.readouterr().out
    assert main([*given, str(tmp_path / "b"), "--eval-mlm-probability", "1.5"]) == 2
    assert "--mlm-probability must be a number in (0, 1)" in capsys.readouterr().err
