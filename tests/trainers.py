"""Small models, cells and Trainers that remember their steps: what the tests of pretraining share."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import torch

from corrmask_fast import CorpusDataset, CorrMasker, MultinomialAttentionMasker, read_corpus
from corrmask_fast.testing import make_graph, make_vocabulary

transformers = pytest.importorskip("transformers", minversion="4.46")
pytest.importorskip("accelerate")

from corrmask_fast.training.trainer import CorrMaskTrainer

VOCABULARY = make_vocabulary(60)
GRAPH = make_graph(VOCABULARY)
MASKER = CorrMasker(GRAPH, mlm_probability=0.3, seed=5)


def make_cells(n_cells, seed=0, least=4, most=24):
    rng = np.random.default_rng(seed)
    return [rng.choice(np.arange(2, 62), rng.integers(least, most + 1), replace=False).tolist() for _ in range(n_cells)]


CELLS = make_cells(24)
DATASET = CorpusDataset(read_corpus(CELLS, VOCABULARY))


def make_model(*, dropout=0.0, vocab_size=62, positions=32):
    torch.manual_seed(1)
    config = transformers.BertConfig(
        vocab_size=vocab_size, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=positions, hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout,
    )  # fmt: skip
    return transformers.BertForMaskedLM(config)


SMALL = {
    "vocab_size": 62, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16,
    "max_position_embeddings": 32,
}  # fmt: skip
DISTIL = {"vocab_size": 62, "dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 16, "max_position_embeddings": 32}
NO_ROLES = {"cls_token_id": 0, "sep_token_id": 0, "bos_token_id": 0, "eos_token_id": 0}
NO_DROPOUT = dict.fromkeys(
    ("hidden_dropout_prob", "attention_probs_dropout_prob", "dropout", "attention_dropout", "embedding_dropout",
     "mlp_dropout"), 0.0)  # fmt: skip
# Kinds of models that fit the vocabulary, and what their configuration needs for it.
FIT = {
    "Bert": {}, "DistilBert": {}, "Electra": {}, "Roberta": {"pad_token_id": 0}, "ModernBert": {"pad_token_id": 0},
    "Esm": {"pad_token_id": 0, "mask_token_id": 1, "token_dropout": True}, "Albert": {"embedding_size": 16},
    "Camembert": {"pad_token_id": 0},
}  # fmt: skip


def make_kind(name, **options):
    """Return a small model; its configuration is transformers' own but for ``options``."""
    if not hasattr(transformers, f"{name}ForMaskedLM"):
        pytest.skip(f"this transformers has no {name}")
    torch.manual_seed(1)
    sizes = DISTIL if name == "DistilBert" else SMALL | ({"embedding_size": 16} if name == "Electra" else {})
    roles = NO_ROLES if name == "ModernBert" else {}
    config = getattr(transformers, f"{name}Config")(**sizes | roles | options)
    return getattr(transformers, f"{name}ForMaskedLM")(config)


def make_masker(**changes):
    """Return a masker that learns with ``make_model``'s model."""
    return MultinomialAttentionMasker(VOCABULARY, 32, **{"n_latents": 6, "mlm_probability": 0.3, "seed": 5, **changes})


def make_arguments(folder, *, group_by_length=False, **options):
    defaults = {
        "output_dir": str(folder), "max_steps": 3, "per_device_train_batch_size": 4, "per_device_eval_batch_size": 5,
        "report_to": [], "use_cpu": True, "save_strategy": "no", "disable_tqdm": True, "learning_rate": 1e-2, "seed": 7,
    }  # fmt: skip
    if group_by_length:
        new = "train_sampling_strategy" in inspect.signature(transformers.TrainingArguments).parameters
        options |= {"train_sampling_strategy": "group_by_length"} if new else {"group_by_length": True}
    return transformers.TrainingArguments(**defaults | options)


class Recorded:
    """Mixed into a Trainer: what every step saw and lost, and the gradients that every update used."""

    def __init__(self, *args, **kwargs):
        self.losses, self.batches, self.gradients = [], [], []
        super().__init__(*args, **kwargs)
        self.add_callback(Gradients(self))

    def training_step(self, model, inputs, *args, **kwargs):
        self.batches.append({name: value.clone() for name, value in inputs.items()})
        loss = super().training_step(model, inputs, *args, **kwargs)
        self.losses.append(loss.item())
        return loss


class Gradients(transformers.TrainerCallback):
    def __init__(self, trainer):
        self.trainer = trainer

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        gradients = [p.grad for p in kwargs["model"].parameters() if p.grad is not None]
        self.trainer.gradients.append(torch.cat([gradient.flatten() for gradient in gradients]).clone())


class OurTrainer(Recorded, CorrMaskTrainer):
    pass


class StockTrainer(Recorded, transformers.Trainer):
    pass


def our_trainer(folder, model=None, dataset=DATASET, *, masker=MASKER, masking="worker", eval_dataset=None, **options):
    return OurTrainer(
        model or make_model(), make_arguments(folder, max_grad_norm=1e9, **options), train_dataset=dataset,
        eval_dataset=eval_dataset, masker=masker, masking=masking,
    )  # fmt: skip


def original(batch):
    return torch.where(batch["labels"] == -100, batch["input_ids"], batch["labels"])


def cells_of(batches):
    return [row[row != 0].tolist() for batch in batches for row in original(batch)]


def assert_masked_as_in(batches, epoch, masker=MASKER):
    for batch in batches:
        expected = masker(original(batch), batch["attention_mask"], epoch=epoch)
        assert torch.equal(batch["input_ids"], expected.input_ids)
        assert torch.equal(batch["labels"], expected.labels)


class StopAfter(transformers.TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step >= self.step
