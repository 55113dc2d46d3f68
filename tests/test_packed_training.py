"""Packed batches in a model: logits and steps of padded ones where attention keeps cells apart; refused elsewhere."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from corrmask_fast import DataCollatorForCorrMask, InputError

transformers = pytest.importorskip("transformers", minversion="5")
pytest.importorskip("accelerate")

from trainers import CELLS, DATASET, MASKER, VOCABULARY, OurTrainer, StockTrainer, make_arguments, make_model

from corrmask_fast.training.checks import check_packing, positions_of
from corrmask_fast.training.losses import summed_by_row, targets_of
from corrmask_fast.training.sparse_head import BertForSparseMaskedLM
from corrmask_fast.training.trainer import CorrMaskCallback, CorrMaskTrainer

pytestmark = pytest.mark.usefixtures("one_thread")

LENGTHS = [len(cell) for cell in CELLS]
OF_CELL = torch.repeat_interleave(torch.arange(len(CELLS)), torch.tensor(LENGTHS))
FLASH = "flash_stand_in"


def by_blocks(module, query, key, value, attention_mask, cu_seq_lens_q=None, **kwargs):
    """Stands in for flash attention, which needs a GPU: plain attention inside each cell, or with the padding mask."""
    kwargs.pop("is_causal", None)
    if cu_seq_lens_q is not None:
        assert attention_mask is None
        of_cell = torch.bucketize(torch.arange(query.shape[2], dtype=torch.int32), cu_seq_lens_q[1:], right=True)
        attention_mask = of_cell == of_cell[:, None]
    elif attention_mask is not None:
        attention_mask = attention_mask[:, None, None].bool()
    sdpa = transformers.AttentionInterface._global_mapping["sdpa"]
    return sdpa(module, query, key, value, attention_mask, is_causal=False, **kwargs)


@pytest.fixture
def flash(monkeypatch):
    """A name of an attention that keeps packed cells apart on the CPU."""
    from transformers.masking_utils import AttentionMaskInterface

    monkeypatch.setitem(transformers.AttentionInterface._global_mapping, FLASH, by_blocks)
    masks = AttentionMaskInterface._global_mapping
    monkeypatch.setitem(masks, FLASH, masks["flash_attention_2"])
    return FLASH


def make_bert(kind=transformers.BertForMaskedLM, attention=None):
    model = kind(make_model().config)
    model.load_state_dict(make_model().state_dict())
    return with_attention(model, attention)


def with_attention(model, name):
    """Set a model's attention; ``set_attn_implementation`` would look for a package that has "flash" in its name."""
    with torch.no_grad():
        for weights in model.parameters():
            weights.mul_(4 if weights.dim() == 2 else 1)  # who attends to whom must show in the logits
    if name is not None:
        model.config._attn_implementation = name
    return model


NO_ROLES = {"pad_token_id": 0, "cls_token_id": 0, "sep_token_id": 0, "bos_token_id": 0, "eos_token_id": 0}


def make_modern(attention=None):
    torch.manual_seed(1)
    config = transformers.ModernBertConfig(
        vocab_size=62, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=32, global_attn_every_n_layers=1, **NO_ROLES,
    )  # fmt: skip
    return with_attention(transformers.ModernBertForMaskedLM(config), attention)


MODELS = {"BERT": make_bert, "ModernBERT": make_modern}


def collator(**options):
    made = DataCollatorForCorrMask(MASKER, **options)
    made.set_epoch(0)
    return made


def logits_of_padded(model):
    """(tokens, vocabulary): the logits of the padded batch where there is no padding."""
    padded = collator()(CELLS)
    del padded["labels"]
    return model(**padded).logits[padded["attention_mask"].bool()]


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
@torch.no_grad()
def test_logits_are_the_padded_ones_where_cells_are_kept_apart(make):
    model = make(attention="sdpa").eval()
    expected, packed = logits_of_padded(model), collator(packing=True)(CELLS)
    kept = {name: packed[name] for name in ("input_ids", "position_ids")}
    blocks = (OF_CELL[:, None] == OF_CELL)[None, None]
    mask = blocks if make is make_bert else {"full_attention": blocks, "sliding_attention": blocks}
    torch.testing.assert_close(model(**kept, attention_mask=mask).logits[0], expected, rtol=1e-4, atol=1e-4)
    # Why other attentions are refused: the model takes transformers' names, and the cells attend to each other.
    mixed = model(**{name: value for name, value in packed.items() if name != "labels"}).logits[0]
    assert (mixed - expected).abs().max() > 0.05


KINDS = {
    "Bert": {}, "DistilBert": {}, "Electra": {}, "Albert": {"embedding_size": 16}, "Roberta": {"pad_token_id": 0},
    "Camembert": {"pad_token_id": 0}, "Esm": {"pad_token_id": 0}, "ModernBert": NO_ROLES,
    "Esm, rotary": {"pad_token_id": 0, "position_embedding_type": "rotary"},
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_models_tell_their_attention_where_cells_begin(flash, kind):
    name, options = kind.partition(",")[0], KINDS[kind]
    sizes = (
        {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 16}
        if name == "DistilBert"
        else {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    )
    torch.manual_seed(1)
    config = getattr(transformers, f"{name}Config")(
        **sizes | {"vocab_size": 62, "max_position_embeddings": 34} | options
    )
    model = with_attention(getattr(transformers, f"{name}ForMaskedLM")(config).eval(), flash)
    start = 0 if positions_of(model)[0] is None else positions_of(model)[1]
    check_packing(model, start)
    packed = collator(packing=True, position_ids_start=start)(CELLS)
    del packed["labels"]
    torch.testing.assert_close(model(**packed).logits[0], logits_of_padded(model), rtol=1e-4, atol=1e-4)
    with_attention(model, "sdpa")
    assert (model(**packed).logits[0] - logits_of_padded(model)).abs().max() > 0.01


def train(folder, model, *, packing, **options):
    trainer = OurTrainer(
        model, make_arguments(folder, max_grad_norm=1e9, **options), collator(packing=packing), DATASET, DATASET
    )
    trainer.train()
    return trainer


@pytest.mark.parametrize("kind", [transformers.BertForMaskedLM, BertForSparseMaskedLM])
@pytest.mark.parametrize("options", [{}, {"gradient_accumulation_steps": 2, "dataloader_num_workers": 1}], ids=str)
def test_training_and_evaluation_are_those_of_padded_batches(tmp_path, monkeypatch, flash, kind, options):
    monkeypatch.setattr(OurTrainer, "training_step", CorrMaskTrainer.training_step)  # batches hold integers too
    runs = [train(tmp_path, make_bert(kind, flash), packing=packing, **options) for packing in (False, True)]
    assert len(runs[0].gradients) == len(runs[1].gradients) == 3
    for one, other in zip(*(run.gradients for run in runs), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)
    losses = [run.evaluate()["eval_loss"] for run in runs]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert runs[1].predict(DATASET).metrics["test_loss"] == pytest.approx(losses[0], rel=1e-5)
    assert runs[1]._row_sums.shape == (4, 2)  # the last batch: of 24 cells five at a time


def test_what_a_batch_holds_reaches_the_model(tmp_path, flash):
    trainer = OurTrainer(make_bert(attention=flash), make_arguments(tmp_path), collator(packing=True), DATASET)
    batches, count = trainer.get_batch_samples(iter(trainer.get_train_dataloader()), 2, torch.device("cpu"))
    assert count == sum((batch["labels"] >= 0).sum() for batch in batches) > 0
    assert set(batches[0]) == {"input_ids", "labels", "position_ids", "cu_seq_lens_q", "cu_seq_lens_k",
                               "max_length_q", "max_length_k"}  # fmt: skip
    assert batches[0]["cu_seq_lens_q"].numel() == 5


@pytest.mark.parametrize("attention", ["sdpa", "eager", "flex_attention"])
def test_attention_that_mixes_cells_is_refused(tmp_path, attention):
    model = make_bert(attention=attention)
    message = f"the model's attention is '{attention}': its cells would attend to each other, .*flash_attention_2"
    with pytest.raises(InputError, match=message):
        CorrMaskTrainer(model, make_arguments(tmp_path), collator(packing=True), DATASET)
    packs = collator(packing=True)
    stock = StockTrainer(
        model, make_arguments(tmp_path), packs, train_dataset=DATASET, callbacks=[CorrMaskCallback(packs)]
    )
    with pytest.raises(InputError, match=message):
        stock.train()


def test_a_replaced_collator_or_attention_is_refused_too(tmp_path, flash):
    trainer = CorrMaskTrainer(make_bert(attention="sdpa"), make_arguments(tmp_path), collator(), DATASET, DATASET)
    trainer.data_collator = trainer._eval_collator = collator(packing=True)
    for run in (trainer.train, trainer.evaluate, lambda: trainer.predict(DATASET)):
        with pytest.raises(InputError, match="the model's attention is 'sdpa'"):
            run()
    trainer = CorrMaskTrainer(
        make_bert(attention=flash), make_arguments(tmp_path), collator(packing=True), DATASET, DATASET
    )
    trainer.evaluate()
    trainer.model.config._attn_implementation = "eager"
    with pytest.raises(InputError, match="the model's attention is 'eager'"):
        trainer.evaluate()


def test_masking_on_the_device_is_refused(tmp_path, flash):
    with pytest.raises(InputError, match="masked in the collator, not on the device; use masking='worker'"):
        CorrMaskTrainer(
            make_bert(attention=flash), make_arguments(tmp_path), collator(packing=True), DATASET, masking="device"
        )


def test_positions_must_be_counted_as_the_model_counts_them(tmp_path, flash):
    torch.manual_seed(1)
    config = transformers.RobertaConfig(**make_bert().config.to_dict() | {"max_position_embeddings": 33})
    model = with_attention(transformers.RobertaForMaskedLM(config).eval(), flash)
    for start in (0, 2):
        with pytest.raises(InputError, match=f"counts positions from 1 on, the collator from {start}; .*start=1"):
            CorrMaskTrainer(model, make_arguments(tmp_path), collator(packing=True, position_ids_start=start), DATASET)
    packs = collator(packing=True, position_ids_start=VOCABULARY.pad_token_id + 1)
    CorrMaskTrainer(model, make_arguments(tmp_path), packs, DATASET)
    packed = packs(CELLS)
    del packed["labels"]
    with torch.no_grad():
        torch.testing.assert_close(model(**packed).logits[0], logits_of_padded(model), rtol=1e-4, atol=1e-4)
    with pytest.raises(InputError, match="counts positions from 0 on, the collator from 1"):
        CorrMaskTrainer(make_bert(attention=flash), make_arguments(tmp_path), packs, DATASET)


def test_a_model_that_does_not_tell_its_attention_where_cells_begin_is_refused(tmp_path, flash):
    class Plain(transformers.BertForMaskedLM):
        def forward(self, input_ids=None, attention_mask=None, position_ids=None):
            return super().forward(input_ids, attention_mask, position_ids=position_ids)

    class Forgets(transformers.BertForMaskedLM):  # as ModernBERT does before transformers 5
        _supports_attention_backend = False

    for kind in (Plain, Forgets):
        with pytest.raises(InputError, match=f"{kind.__name__} does not tell its attention .*cu_seq_lens_k, cu_seq_l"):
            CorrMaskTrainer(make_bert(kind, flash), make_arguments(tmp_path), collator(packing=True), DATASET)


def test_a_cell_longer_than_the_model_is_refused(tmp_path, flash):
    model = make_bert(attention=flash)
    trainer = CorrMaskTrainer(model, make_arguments(tmp_path), collator(packing=True), DATASET)
    cells = [{"input_ids": cell} for cell in [*CELLS[:3], list(range(2, 36))]]
    with pytest.raises(InputError, match="a batch has cells of 34 columns, the model 32 positions"):
        trainer.evaluate(cells)


def test_losses_are_summed_by_cell():
    labels = torch.tensor([[-100, 5, 6, -100, -100, 7]])
    starts = torch.tensor([0, 0, 3, 5, 5, 6, 6], dtype=torch.int32)
    for shape, rows in (
        ((1, 6, 10), [[1, 1, 1, 2, 2, 4]]), ((1, 4, 10), [[1, 1, 4, 1]]), ((6, 10), [1, 1, 1, 2, 2, 4]),
        ((3, 10), [1, 1, 4]),
    ):  # fmt: skip
        targets, of_cell = targets_of(torch.zeros(shape), labels, torch.tensor([[1, 2, 5, -1]]), starts)
        assert of_cell.tolist() == rows
        sums = summed_by_row(torch.zeros(shape), targets, of_cell, 6)
        np.testing.assert_allclose(sums[:, 0], np.log(10) * np.array([0, 2, 0, 0, 1, 0]), rtol=1e-6)
        assert sums[:, 1].tolist() == [0, 2, 0, 0, 1, 0]
