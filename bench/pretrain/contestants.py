"""Pretraining: contestants, goals, and the checks before any clock."""

from __future__ import annotations

import copy
from dataclasses import replace
from itertools import chain, count, repeat
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from harness.goals import Goal
from harness.timing import Contestant

from corrmask_fast import (
    CorpusDataset,
    CorrMaskCallback,
    CorrMasker,
    CorrMaskTrainer,
    DataCollatorForCorrMask,
    MultinomialAttentionMasker,
    with_sparse_head,
)
from corrmask_fast.masking.stock import stock_collator
from corrmask_fast.training.mam_model import attach
from corrmask_fast.training.run import make_model
from corrmask_fast.training.settings import PretrainingSettings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from harness.workload import Workload

STOCK_INPUT = "stock Trainer, datasets folder, Geneformer-style collator"
LISTS_INPUT = "stock Trainer, datasets folder, our collator"
PLAIN_INPUT = "stock Trainer, CorpusDataset, our collator"
OUR_INPUT = "CorrMaskTrainer, CorpusDataset, our collator"
STOCK_STEP = "BertForMaskedLM"
OUR_STEP = "BertForSparseMaskedLM"
# A step with logits at masked positions alone, by where its masks come from.
READY_STEP = "step, masked beforehand"
CORRMASK_STEP = "step, CorrMasker inside"
MAM_STEP = "step, MultinomialAttentionMasker inside"
CORRMASK_ALONE = "CorrMasker alone"
MAM_ALONE = "MultinomialAttentionMasker's masks alone"
STEPS = {"step": 0.0, "step-dropout": 0.02}  # case → dropout
# Models beside BERT that take a sparse head, and what their configuration needs for the vocabulary.
KINDS: dict[str, dict[str, Any]] = {
    "Roberta": {}, "Esm": {"mask_token_id": 1, "position_embedding_type": "absolute"}, "Electra": {}, "DistilBert": {},
    "ModernBert": {"cls_token_id": 0, "sep_token_id": 0, "bos_token_id": 0, "eos_token_id": 0},
}  # fmt: skip

GOALS = (
    Goal("input of our Trainer", "input", OUR_INPUT, (STOCK_INPUT,), 40),
    Goal("input of the stock Trainer", "input", PLAIN_INPUT, (STOCK_INPUT,), 40),
    Goal("input from an unchanged folder", "input", LISTS_INPUT, (STOCK_INPUT,), 8),
    *(Goal(f"training step, dropout {rate}", case, OUR_STEP, (STOCK_STEP,), 1.8) for case, rate in STEPS.items()),
    Goal("training step, masks by CorrMask", "mam", CORRMASK_STEP, (READY_STEP,), 0.98),
    Goal("training step, masks by MAM", "mam", MAM_STEP, (READY_STEP, CORRMASK_STEP), 0.95),
)


def settings_of(workload: Workload, dropout: float, *, small: bool) -> PretrainingSettings:
    """Return the paper's settings (Table 5); ``small``: of a model for a smoke run."""
    sizes: dict[str, int] = {"hidden_size": 32, "layers": 1, "heads": 2, "intermediate_size": 32} if small else {}
    return PretrainingSettings(dropout=dropout, max_length=workload.size.length, **sizes)


def model_of(workload: Workload, settings: PretrainingSettings, head: str) -> Any:
    """Return a model as pretraining makes it, with the weights that follow from the seed."""
    vocabulary = workload.graph.vocabulary
    return make_model(vocabulary.size, vocabulary.pad_token_id, replace(settings, head=head))


def step_race(workload: Workload, batch: int, dropout: float, *, small: bool) -> list[Contestant]:
    """Forward, backward and AdamW over one masked batch: all logits against those at masked positions."""
    settings = settings_of(workload, dropout, small=small)
    rows = torch.from_numpy(workload.rows(batch))
    masked = CorrMasker(workload.graph)(rows, epoch=0)
    inputs = {"input_ids": masked.input_ids, "attention_mask": torch.ones_like(rows), "labels": masked.labels}
    stock, ours = (model_of(workload, settings, head) for head in ("full", "masked"))
    check_step(stock, ours, inputs, masked.masked_positions)
    return [
        _step(STOCK_STEP, stock, inputs, batch),
        _step(OUR_STEP, ours, inputs | {"masked_positions": masked.masked_positions}, batch),
    ]


def head_race(workload: Workload, batch: int, kind: str, *, small: bool) -> tuple[list[Contestant], dict[str, float]]:
    """The same for another model of transformers; also what each keeps in memory for its backward pass, in MiB."""
    rows = torch.from_numpy(workload.rows(batch))
    masked = CorrMasker(workload.graph)(rows, epoch=0)
    inputs = {"input_ids": masked.input_ids, "attention_mask": torch.ones_like(rows), "labels": masked.labels}
    stock = model_of_kind(kind, workload, settings_of(workload, 0.0, small=small))
    ours = with_sparse_head(copy.deepcopy(stock))
    check_step(stock, ours, inputs, masked.masked_positions)
    names = f"{kind}ForMaskedLM", f"{kind}ForMaskedLM, sparse head"
    given = inputs, inputs | {"masked_positions": masked.masked_positions}
    models = stock, ours
    kept = {name: kept_mib(model, one) for name, model, one in zip(names, models, given, strict=True)}
    return [_step(name, model, one, batch) for name, model, one in zip(names, models, given, strict=True)], kept


def model_of_kind(kind: str, workload: Workload, settings: PretrainingSettings) -> Any:
    """Return a model of transformers, of the size that the settings say; without dropout."""
    import transformers

    vocabulary, positions = workload.graph.vocabulary, settings.max_length + 1  # some count from 1
    names = {"hidden_size": "dim", "num_hidden_layers": "n_layers", "num_attention_heads": "n_heads",
             "intermediate_size": "hidden_dim"} if kind == "DistilBert" else {}  # fmt: skip
    sizes = {
        "hidden_size": settings.hidden_size, "num_hidden_layers": settings.layers,
        "num_attention_heads": settings.heads, "intermediate_size": settings.intermediate_size,
    }  # fmt: skip
    drop = ("hidden_dropout_prob", "attention_probs_dropout_prob", "dropout", "attention_dropout")
    options = {names.get(name, name): size for name, size in sizes.items()} | dict.fromkeys(drop, 0.0) | KINDS[kind]
    if kind == "Electra":
        options["embedding_size"] = settings.hidden_size
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=vocabulary.size, pad_token_id=vocabulary.pad_token_id, max_position_embeddings=positions, **options
    )
    torch.manual_seed(0)
    return getattr(transformers, f"{kind}ForMaskedLM")(config).train()


def kept_mib(model: Any, inputs: dict[str, torch.Tensor]) -> float:
    """Return the size of all tensors that a forward pass keeps for the backward pass, weights left out."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model(**inputs).loss  # held, so that no memory is handed out twice
    del loss
    return sum(kept.values()) / 2**20


def check_step(stock: Any, ours: Any, inputs: dict[str, torch.Tensor], positions: torch.Tensor) -> None:
    """Loss equal to 1e-5, every gradient to float tolerance; dropout off, for it draws."""
    losses = []
    for model, more in ((stock, {}), (ours, {"masked_positions": positions})):
        loss = model.eval()(**inputs, **more).loss
        loss.backward()
        losses.append(loss.item())
    assert abs(losses[0] - losses[1]) <= 1e-5, f"losses {losses}"
    pairs = zip(stock.named_parameters(), ours.named_parameters(), strict=True)
    for (name, one), (_, other) in pairs:
        if one.grad is None and other.grad is None:
            continue  # no part of the loss, as ESM's head for contacts
        apart = (one.grad - other.grad).norm() / one.grad.norm().clamp(min=1e-6)
        # A key's bias adds the same to all scores of a query: its gradient is rounding alone.
        assert apart < 1e-4 or "key.bias" in name, f"gradients of {name} differ by {apart:.1e}"
        one.grad = other.grad = None
    print(f"loss {losses[0]:.6f} and {losses[1]:.6f}, gradients agree", flush=True)


def _step(name: str, model: Any, inputs: dict[str, torch.Tensor], batch: int) -> Contestant:
    return Contestant(name, training(model, lambda: inputs), batch, torch.get_num_threads())


def training(
    model: Any, inputs: Callable[[], dict[str, torch.Tensor]], *, autocast: torch.device | None = None
) -> Callable[[], None]:
    """Return forward, backward and AdamW over what ``inputs`` returns; ``autocast``: in bfloat16 on this device."""
    fused = autocast is not None and autocast.type == "cuda"
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=1e-3, weight_decay=0.001, fused=fused)
    kind = "cpu" if autocast is None else autocast.type

    def run() -> None:
        given = inputs()
        with torch.autocast(kind, dtype=torch.bfloat16, enabled=autocast is not None):
            loss = model(**given).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return run


def learned_race(workload: Workload, batch: int, *, small: bool) -> list[Contestant]:
    """A step with masks made beforehand, by CorrMask inside the step, and by MAM, which learns with the model.

    As CorrMaskTrainer does it with masks made on the device: another epoch's draws in each step.
    """
    settings = settings_of(workload, 0.0, small=small)
    rows, epochs = torch.from_numpy(workload.rows(batch)), count()
    attention = torch.ones_like(rows)
    corrmask = CorrMasker(workload.graph)
    mam = MultinomialAttentionMasker(workload.graph.vocabulary, settings.hidden_size, n_heads=settings.heads)
    plain, masked_inside, learning = (model_of(workload, settings, "masked") for _ in range(3))
    attach(mam, learning)
    embeddings = learning.get_input_embeddings()

    def by_corrmask() -> dict[str, torch.Tensor]:
        return {"attention_mask": attention, **corrmask(rows, attention, epoch=next(epochs))._asdict()}

    def by_mam() -> dict[str, torch.Tensor]:
        masked, latents = mam.draw(rows, attention, embeddings=embeddings, epoch=next(epochs))
        return {"attention_mask": attention, "latents": latents, **masked._asdict()}

    check_learned(plain, learning, mam, by_mam())
    ready, threads = by_corrmask(), torch.get_num_threads()
    return [
        Contestant(READY_STEP, training(plain, lambda: ready), batch, threads),
        Contestant(CORRMASK_STEP, training(masked_inside, by_corrmask), batch, threads),
        Contestant(MAM_STEP, training(learning, by_mam), batch, threads),
        Contestant(CORRMASK_ALONE, by_corrmask, batch),
        Contestant(MAM_ALONE, by_mam, batch, threads),
    ]


def check_learned(plain: Any, learning: Any, mam: Any, inputs: dict[str, torch.Tensor]) -> None:
    """Masks as many tokens as it should; without its context it is the plain step, and with it the latents learn."""
    columns = inputs["labels"].shape[1]
    assert ((inputs["labels"] != -100).sum(1) == int(columns * 0.15)).all(), "another number of masked tokens"
    loss = learning.eval()(**inputs).loss
    loss.backward()
    assert mam.latents.grad.abs().max() > 0, "the latents do not learn"
    learning.zero_grad()
    project = copy.deepcopy(mam.project.state_dict())
    with torch.no_grad():
        for parameter in mam.project.parameters():
            parameter.zero_()
        alone = learning(**inputs).loss.item()
        expected = plain.eval()(**{name: value for name, value in inputs.items() if name != "latents"}).loss.item()
    mam.project.load_state_dict(project)
    assert abs(alone - expected) <= 1e-5, f"losses {alone} and {expected}"
    assert abs(loss.item() - expected) > 1e-5, "the context changes nothing"
    print(f"loss {loss.item():.6f} with MAM's context, {alone:.6f} without it, as the plain step's", flush=True)


def input_race(workload: Workload, batch: int, folder: Path) -> list[Contestant]:
    """Batches out of a Trainer's own loader, without workers, one thread; the same cells in all."""
    import transformers
    from datasets import load_from_disk

    lists = load_from_disk(str(workload.folder))
    cells, masker = CorpusDataset(workload.corpus), CorrMasker(workload.graph)
    arguments = transformers.TrainingArguments(
        str(folder), per_device_train_batch_size=batch, dataloader_drop_last=True, report_to=[], use_cpu=True
    )
    model = model_of(workload, settings_of(workload, 0.0, small=True), "full")
    trainers = {}
    for name, dataset, collator in (
        (STOCK_INPUT, lists, stock_collator(workload.graph.vocabulary)),
        (LISTS_INPUT, lists, DataCollatorForCorrMask(masker)),
        (PLAIN_INPUT, cells, DataCollatorForCorrMask(masker)),
    ):
        callbacks = [CorrMaskCallback(collator)] if name != STOCK_INPUT else []
        trainers[name] = transformers.Trainer(model, arguments, collator, dataset, callbacks=callbacks)
    trainers[OUR_INPUT] = CorrMaskTrainer(model, arguments, train_dataset=cells, masker=masker)
    loaders = {name: trainer.get_train_dataloader() for name, trainer in trainers.items()}
    for name, loader in loaders.items():
        check_input(name, loader, workload, batch)
    return [Contestant(name, _endless(loader).__next__, batch) for name, loader in loaders.items()]


def check_input(name: str, loader: Any, workload: Workload, batch: int) -> None:
    """A batch holds whole cells of the workload, masked at about the rate."""
    found = next(iter(loader))
    ids = torch.where(found["labels"] == -100, found["input_ids"], found["labels"]).numpy()
    known = {row.tobytes() for row in workload.rows(workload.corpus.n_cells)}
    assert ids.shape == (batch, workload.size.length), f"{name}: {ids.shape}"
    assert all(row.astype(np.int64).tobytes() in known for row in ids), f"{name}: not the cells"
    rate = (found["labels"] != -100).float().mean().item()
    assert 0.05 < rate < 0.25, f"{name}: masks {rate:.0%}"


def _endless(loader: Any) -> Iterator[Any]:
    return chain.from_iterable(repeat(loader))
