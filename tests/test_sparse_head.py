"""A vocabulary projection at masked positions alone: loss and gradients of the full head, in every mode of training."""

from __future__ import annotations

import copy
import json
import pickle

import numpy as np
import pytest
import torch

from corrmask_fast import CorrMasker, DataCollatorForCorrMask, InputError, masked_lm_loss, with_sparse_head
from corrmask_fast.testing import make_graph, make_vocabulary

transformers = pytest.importorskip("transformers", minversion="4.46")

from trainers import FIT, NO_DROPOUT, make_kind, our_trainer

from corrmask_fast.training import sparse_head
from corrmask_fast.training.sparse_head import BertForSparseMaskedLM

pytestmark = pytest.mark.usefixtures("one_thread")

VOCABULARY = make_vocabulary(60)
MASKER = CorrMasker(make_graph(VOCABULARY), mlm_probability=0.3)


def make_config(**options):
    return transformers.BertConfig(
        vocab_size=62, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=32, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, **options,
    )  # fmt: skip


def make_pair(**options):
    """A stock model and ours, of the same weights."""
    torch.manual_seed(3)
    stock = transformers.BertForMaskedLM(make_config(**options))
    torch.nn.init.normal_(stock.cls.predictions.bias)  # zeros hide mistakes
    ours = BertForSparseMaskedLM(make_config(**options))
    ours.load_state_dict(stock.state_dict())
    return stock.train(), ours.train()


def make_batch(lengths=(24, 24, 17, 5, 2), seed=0):
    """Rows of several lengths; of the last one nothing can be masked."""
    rng = np.random.default_rng(seed)
    ids = torch.zeros(len(lengths), max(lengths), dtype=torch.int64)
    for row, length in enumerate(lengths):
        ids[row, :length] = torch.from_numpy(rng.choice(np.arange(2, 62), length, replace=False))
    masked = MASKER(ids, epoch=0)
    batch = {"input_ids": masked.input_ids, "attention_mask": (ids != 0).long(), "labels": masked.labels}
    return batch, masked.masked_positions


def gradients(model):
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


def assert_same_step(stock, ours, batch, positions, *, rtol=1e-4, atol=1e-7):
    """The same loss to 1e-5, the same gradients to float tolerance, and logits where they were asked for."""
    expected, found = stock(**batch), ours(**batch, masked_positions=positions)
    assert found.loss.item() == pytest.approx(expected.loss.item(), abs=1e-5)
    assert found.logits.shape == (*positions.shape, 62)
    there = positions >= 0
    at_positions = expected.logits.gather(1, positions.clamp(min=0)[..., None].expand(-1, -1, 62))
    torch.testing.assert_close(found.logits[there], at_positions[there], rtol=1e-4, atol=1e-5)
    expected.loss.backward()
    found.loss.backward()
    one, other = gradients(stock), gradients(ours)
    assert one.keys() == other.keys()
    for name in one:
        scale = one[name].abs().max().item()
        torch.testing.assert_close(other[name], one[name], rtol=rtol, atol=atol + 1e-5 * scale, msg=name)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_loss_and_gradients_are_those_of_the_full_head(attention):
    batch, positions = make_batch()
    assert (positions[-1] == -1).all()
    assert_same_step(*make_pair(attn_implementation=attention), batch, positions)


def test_gradient_checkpointing():
    stock, ours = make_pair()
    ours.gradient_checkpointing_enable()
    assert_same_step(stock, ours, *make_batch())


def test_compiled_without_a_break():
    stock, ours = make_pair()
    compiled = torch.compile(ours, backend="aot_eager", fullgraph=True)
    batch, positions = make_batch()
    torch.testing.assert_close(compiled(**batch, masked_positions=positions).loss, stock(**batch).loss)
    other, its_positions = make_batch(seed=5)
    with torch.compiler.set_stance("fail_on_recompile"):
        loss = compiled(**other, masked_positions=its_positions).loss
    assert loss.item() == pytest.approx(stock(**other).loss.item(), abs=1e-5)
    loss.backward()
    stock(**other).loss.backward()
    for name, gradient in gradients(ours).items():
        torch.testing.assert_close(gradient, gradients(stock)[name], rtol=1e-4, atol=1e-6, msg=name)


def test_bfloat16():
    """As far from float32 as the full head is in bfloat16, or nearer."""
    batch, positions = make_batch()
    stock, ours = make_pair()
    exact = stock(**batch).loss.item()
    with torch.autocast("cpu", torch.bfloat16):
        output = ours(**batch, masked_positions=positions)
        full = stock(**batch).loss.item()
    assert output.logits.dtype == torch.bfloat16
    assert output.loss.dtype == torch.float32
    assert output.loss.item() == pytest.approx(full, abs=1e-3)
    assert output.loss.item() == pytest.approx(exact, rel=0.01)
    output.loss.backward()
    stock(**batch).loss.backward()
    for name, gradient in gradients(ours).items():
        expected = gradients(stock)[name]
        assert (gradient - expected).norm() < 0.05 * expected.norm() + 1e-4, name
    whole = ours.to(torch.bfloat16)(**batch, masked_positions=positions).loss
    assert whole.dtype == torch.float32
    assert whole.item() == pytest.approx(exact, rel=0.02)


def test_the_count_of_a_larger_batch_divides_the_loss():
    """Two halves, each over the count of both, are the whole; as a tensor and as a number."""
    _, ours = make_pair()
    batch, positions = make_batch((24, 24, 10, 7))
    count = (batch["labels"] != -100).sum()
    whole = ours(**batch, masked_positions=positions).loss
    halves = [
        ours(
            **{name: value[rows] for name, value in batch.items()}, masked_positions=positions[rows],
            num_items_in_batch=number,
        ).loss
        for rows, number in ((slice(2), count), (slice(2, 4), count.item()))
    ]  # fmt: skip
    torch.testing.assert_close(sum(halves), whole)


def test_without_positions_it_is_the_full_head():
    stock, ours = make_pair()
    batch, _ = make_batch()
    with pytest.warns(UserWarning, match="labels came without masked_positions"):
        found = ours(**batch)
    expected = stock(**batch)
    torch.testing.assert_close(found.loss, expected.loss)
    assert torch.equal(found.logits, expected.logits)
    ours.eval()
    del batch["labels"]
    plain = ours(**batch, output_hidden_states=True)
    assert plain.loss is None
    assert len(plain.hidden_states) == 3
    assert len(ours(**batch, return_dict=False)) == 1


def test_nothing_to_predict_is_no_loss_and_no_nan():
    _, ours = make_pair()
    batch, positions = make_batch((2, 3))
    assert (batch["labels"] == -100).all()
    for given in (positions, torch.full((2, 4), -1)):
        loss = ours(**batch, masked_positions=given).loss
        assert loss.item() == 0
        loss.backward()
        assert all(gradient.abs().max() == 0 for gradient in gradients(ours).values())


def test_checkpoints_are_ordinary_ones(tmp_path):
    stock, ours = make_pair()
    batch, positions = make_batch()
    expected = stock.eval()(**batch).loss
    ours.save_pretrained(tmp_path / "ours")
    assert json.loads((tmp_path / "ours" / "config.json").read_text())["architectures"] == ["BertForMaskedLM"]
    for kind in (transformers.AutoModelForMaskedLM, transformers.BertForMaskedLM):
        loaded = kind.from_pretrained(tmp_path / "ours")
        assert type(loaded) is transformers.BertForMaskedLM
        torch.testing.assert_close(loaded(**batch).loss, expected)
    stock.save_pretrained(tmp_path / "stock")
    files = [sorted(path.name for path in (tmp_path / name).iterdir()) for name in ("ours", "stock")]
    assert files[0] == files[1]
    again = BertForSparseMaskedLM.from_pretrained(tmp_path / "stock")
    torch.testing.assert_close(again(**batch, masked_positions=positions).loss, expected)
    assert again.cls.predictions.decoder.weight is again.bert.embeddings.word_embeddings.weight


def test_bad_positions():
    _, ours = make_pair()
    batch, positions = make_batch()
    for wrong in (positions[:2], positions.int(), positions[0]):
        with pytest.raises(InputError, match=r"masked_positions must be \(5, K\) int64; got"):
            ours(**batch, masked_positions=wrong)


# ------------------------------------------------------------------------------------------- any model of transformers


def pair_of(kind, **options):
    """A stock model of a kind, and the same with a sparse head."""
    stock = make_kind(kind, **FIT[kind] | NO_DROPOUT | options)
    for name, parameter in stock.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.1)  # zeros hide mistakes
    return stock.train(), with_sparse_head(copy.deepcopy(stock)).train()


@pytest.mark.parametrize("kind", FIT)
def test_any_masked_language_model_takes_a_sparse_head(kind, tmp_path):
    stock, ours = pair_of(kind)
    batch, positions = make_batch()
    assert_same_step(stock, ours, batch, positions)
    ours.zero_grad()
    assert torch.equal(
        ours.eval()(**{**batch, "labels": None}).logits, stock.eval()(**{**batch, "labels": None}).logits
    )
    assert with_sparse_head(ours) is ours
    ours.save_pretrained(tmp_path / "ours")
    stock.save_pretrained(tmp_path / "stock")
    # 4.46 loses RoBERTa's bias of the head when it saves: of its own class too.
    loaded, expected = (
        transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / name) for name in ("ours", "stock")
    )
    assert type(loaded) is type(stock)
    assert torch.equal(loaded(**batch).logits, expected(**batch).logits)
    again = type(ours).from_pretrained(tmp_path / "stock").eval()
    assert type(again) is getattr(sparse_head, f"{kind}ForSparseMaskedLM")
    there = positions >= 0
    at_positions = expected(**batch).logits.gather(1, positions.clamp(min=0)[..., None].expand(-1, -1, 62))
    found = again(**batch, masked_positions=positions).logits
    torch.testing.assert_close(found[there], at_positions[there], rtol=1e-4, atol=1e-5)
    found = ours(**batch, masked_positions=positions).logits
    for one in (pickle.loads(pickle.dumps(ours)), copy.deepcopy(ours)):
        assert type(one) is type(ours)
        assert torch.equal(one(**batch, masked_positions=positions).logits, found)


def test_modern_bert_keeps_its_own_sparse_prediction():
    """It projects at the labels; ours, at the positions; both lose the same."""
    own = make_kind("ModernBert", **FIT["ModernBert"] | NO_DROPOUT, sparse_prediction=True).train()
    ours = with_sparse_head(copy.deepcopy(own))
    batch, positions = make_batch()
    expected, found = own(**batch), ours(**batch, masked_positions=positions)
    assert expected.logits.shape == ((batch["labels"] != -100).sum(), 62)
    assert found.logits.shape == (*positions.shape, 62)
    torch.testing.assert_close(found.loss, expected.loss)


@pytest.mark.parametrize("kind", ["Roberta", "DistilBert"])
def test_it_trains_in_our_trainer(kind, tmp_path):
    """The same steps with the sparse head as with the full one, by masks of both places."""
    runs = []
    for model, masking in zip(pair_of(kind), ("worker", "device"), strict=True):
        trainer = our_trainer(tmp_path, model, masking=masking, max_steps=3, learning_rate=1e-4)
        trainer.train()
        runs.append(trainer.losses)
    assert runs[0] == pytest.approx(runs[1], rel=1e-4)


def test_the_encoder_alone_is_the_stock_one_after_an_error():
    stock, ours = make_pair()
    batch, positions = make_batch()
    with pytest.raises(IndexError):
        ours(batch["input_ids"] + 62, masked_positions=positions)
    for model in (stock, ours):
        model.eval()
    assert torch.equal(ours.bert(batch["input_ids"])[0], stock.bert(batch["input_ids"])[0])


def test_what_has_no_head_is_refused():
    bert = transformers.BertModel(make_config())
    with pytest.raises(InputError, match=r"BertModel has no output embeddings, .* BertForMaskedLM"):
        with_sparse_head(bert)
    with pytest.raises(InputError, match=r"needs a masked language model of transformers; got .*masked_lm_loss"):
        with_sparse_head(torch.nn.Linear(2, 2))
    t5 = transformers.T5Config(vocab_size=62, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    with pytest.raises(InputError, match="T5ForConditionalGeneration has a decoder"):
        with_sparse_head(transformers.T5ForConditionalGeneration(t5))


# -------------------------------------------------------------------------------------------------- any model at all


@pytest.fixture
def parts():
    """A model of one's own: an encoder and a head."""
    torch.manual_seed(0)
    return torch.nn.Embedding(62, 16), torch.nn.Sequential(
        torch.nn.Linear(16, 16), torch.nn.GELU(), torch.nn.Linear(16, 62)
    )


def full_loss(embed, head, batch):
    logits = head(embed(batch["input_ids"]))
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten(), ignore_index=-100)


def test_the_loss_of_a_model_of_ones_own(parts):
    embed, head = parts
    batch, positions = make_batch()
    expected = full_loss(embed, head, batch)
    grads = torch.autograd.grad(expected, [*embed.parameters(), *head.parameters()])
    masker_result = MASKER(torch.where(batch["labels"] == -100, batch["input_ids"], batch["labels"]), epoch=0)
    for masked in (batch | {"masked_positions": positions}, batch, masker_result):
        loss = masked_lm_loss(embed(batch["input_ids"]), head, masked)
        torch.testing.assert_close(loss, expected)
        for one, other in zip(grads, torch.autograd.grad(loss, [*embed.parameters(), *head.parameters()]), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-7)


def test_the_loss_sees_masked_columns_alone(parts):
    embed, head = parts
    batch, _ = make_batch()
    seen = []
    masked_lm_loss(embed(batch["input_ids"]), lambda here: seen.append(here.shape) or head(here), batch)
    assert seen == [((batch["labels"] != -100).sum(), 16)]
    by_hand = masked_lm_loss(embed(batch["input_ids"]), head, batch, num_items_in_batch=1000)
    assert by_hand.item() == pytest.approx(full_loss(embed, head, batch).item() * seen[0][0] / 1000, rel=1e-5)
    batch["labels"][:] = -100
    assert masked_lm_loss(embed(batch["input_ids"]), head, batch).item() == 0


def test_the_loss_of_a_collators_batch(parts):
    collate = DataCollatorForCorrMask(MASKER, return_masked_positions=True)
    collate.set_epoch(0)
    batch = collate([{"input_ids": list(range(2, 40))}, {"input_ids": list(range(20, 50))}])
    embed, head = parts
    torch.testing.assert_close(masked_lm_loss(embed(batch["input_ids"]), head, batch), full_loss(embed, head, batch))


def test_what_the_loss_refuses(parts):
    embed, head = parts
    batch, positions = make_batch()
    hidden = embed(batch["input_ids"])
    with pytest.raises(
        InputError, match=r"masked must hold labels, .* it has input_ids, attention_mask; was the batch"
    ):
        masked_lm_loss(hidden, head, {"input_ids": 1, "attention_mask": 1})
    with pytest.raises(InputError, match=r"masked must hold labels, .* it has nothing"):
        masked_lm_loss(hidden, head, None)
    with pytest.raises(InputError, match=r"hidden must be \(5, 24, width\), as the labels are; got \(5, 23, 16\)"):
        masked_lm_loss(hidden[:, 1:], head, batch)
    with pytest.raises(InputError, match=r"head must return logits, \(.*, vocabulary\); got \(16,\)"):
        masked_lm_loss(hidden, lambda here: here.flatten(0, -2)[0], batch)
    with pytest.raises(InputError, match=r"masked_positions must be \(5, K\) int64"):
        masked_lm_loss(hidden, head, batch | {"masked_positions": positions.int()})
