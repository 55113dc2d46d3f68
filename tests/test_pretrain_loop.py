"""A plain accelerate loop with a masker in it has the losses of CorrMaskTrainer."""

from __future__ import annotations

import pytest
import torch

from corrmask_fast import CorpusDataset, CorrMasker, read_corpus
from corrmask_fast.testing import make_graph, make_vocabulary

transformers = pytest.importorskip("transformers", minversion="4.46")
accelerate = pytest.importorskip("accelerate")

from corrmask_fast import BertForSparseMaskedLM, CorrMaskTrainer
from corrmask_fast.masking.collator import PaddingCollator
from corrmask_fast.training.sampling import ShuffledSampler

pytestmark = pytest.mark.usefixtures("one_thread")


def loop(model, dataset, masker, *, epochs, batch_size, seed):
    """Train with masks made in the step."""
    accelerator = accelerate.Accelerator(cpu=True)
    sampler = ShuffledSampler(len(dataset), seed=seed)
    loader = torch.utils.data.DataLoader(
        dataset, batch_size, sampler=sampler, collate_fn=PaddingCollator(masker.vocabulary)
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    masker = masker.to(accelerator.device)  # not prepared: DDP must not wrap it
    losses = []
    for epoch in range(epochs):
        loader.set_epoch(epoch)
        for batch in loader:
            masked = masker(batch["input_ids"], batch["attention_mask"], epoch=epoch)
            loss = model(attention_mask=batch["attention_mask"], **masked._asdict()).loss
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
    return losses


def test_the_loop_trains_as_the_trainer_does(tmp_path):
    vocabulary = make_vocabulary(60)
    masker = CorrMasker(make_graph(vocabulary), mlm_probability=0.3)
    dataset = CorpusDataset(read_corpus([[*range(2 + i, 20 + i)] for i in range(16)], vocabulary))

    def make():
        torch.manual_seed(0)
        return BertForSparseMaskedLM(
            transformers.BertConfig(
                vocab_size=62, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
                hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
            )
        )  # fmt: skip

    losses = loop(make().train(), dataset, masker, epochs=2, batch_size=4, seed=3)
    arguments = transformers.TrainingArguments(
        str(tmp_path), num_train_epochs=2, per_device_train_batch_size=4, learning_rate=1e-3, data_seed=3, report_to=[],
        lr_scheduler_type="constant", max_grad_norm=1e9, weight_decay=0.01, save_strategy="no", use_cpu=True,
        disable_tqdm=True,
    )  # fmt: skip
    recorded = []

    class Recorded(CorrMaskTrainer):
        def training_step(self, *args, **kwargs):
            loss = super().training_step(*args, **kwargs)
            recorded.append(loss.item())
            return loss

    Recorded(make(), arguments, train_dataset=dataset, masker=masker, masking="device").train()
    assert len(losses) == 8
    assert losses[:3] == pytest.approx(recorded[:3], abs=1e-4)  # Trainer spares biases and norms the weight decay
    assert losses == pytest.approx(recorded, abs=5e-3)
