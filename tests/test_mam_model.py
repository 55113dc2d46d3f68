"""A masker as a part of a model: what is added, what a call takes, what is left behind, and what is saved of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

from corrmask_fast import (
    CorpusDataset,
    CorrMasker,
    InputError,
    MultinomialAttentionMasker,
    PaddingCollator,
    RandomMasker,
    read_corpus,
)
from corrmask_fast.testing import make_graph

transformers = pytest.importorskip("transformers", minversion="4.46")
pytest.importorskip("accelerate")

from trainers import CELLS, GRAPH, VOCABULARY, make_arguments, make_masker, make_model, our_trainer

from corrmask_fast.training.mam_model import attach, attached, detach
from corrmask_fast.training.trainer import CorrMaskTrainer

pytestmark = pytest.mark.usefixtures("one_thread")

IDS = torch.arange(2, 22).repeat(2, 1)
WEIGHT = "bert.embeddings.word_embeddings.weight"


def ignored_by_ddp(model):
    return getattr(model, "_ddp_params_and_buffers_to_ignore", None)


def test_nothing_is_left_of_a_masker_that_is_detached():
    model = make_model().eval()
    names, plain = list(model.state_dict()), model(IDS).logits
    for _ in range(2):
        attach(make_masker(), model)
        detach(model)
    assert attached(model) is None
    assert list(model.state_dict()) == names
    assert not model._forward_pre_hooks
    assert ignored_by_ddp(model) is None
    assert torch.equal(model(IDS).logits, plain)


def test_a_masker_that_was_deleted_leaves_no_second_hook_and_a_clear_error():
    model = make_model().eval()
    for _ in range(2):
        attach(make_masker(), model)
        del model.attention_masker
    with pytest.raises(InputError, match=r"latents= needs the masker that drew them; call .*attach"):
        model(input_ids=IDS, latents=torch.zeros(2, 3, dtype=torch.int64))
    attach(make_masker(), model)
    assert len(model._forward_pre_hooks) == 1


def test_what_a_user_told_ddp_to_ignore_stays_ignored():
    model = make_model()
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, [WEIGHT])
    attach(make_masker(), model)
    assert WEIGHT in ignored_by_ddp(model)
    assert "attention_masker.neighbor_indptr" in ignored_by_ddp(model)
    detach(model)
    assert ignored_by_ddp(model) == [WEIGHT]


def test_ids_and_what_follows_them_may_be_positional():
    model, masker = make_model().eval(), make_masker()
    attach(masker, model)
    seen, latents = (IDS < 19).long(), torch.tensor([[0, 1, 2]] * 2)
    expected = model(input_ids=IDS, attention_mask=seen, latents=latents).logits
    assert torch.equal(model(IDS, seen, latents=latents).logits, expected)
    assert torch.equal(model(IDS, attention_mask=seen, inputs_embeds=None, latents=latents).logits, expected)
    embedded = model.get_input_embeddings()(IDS)
    for args, more in (((), {}), ((IDS,), {})):
        with pytest.raises(InputError, match=r"latents= needs input_ids, and no inputs_embeds"):
            model(*args, inputs_embeds=embedded, latents=latents, **more)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_learns_in_half_precision(tmp_path, dtype):
    """With weights of bfloat16, which the masker takes on, and in mixed precision."""
    masker = make_masker()
    before = masker.latents.detach().clone()
    trainer = our_trainer(tmp_path, make_model().to(dtype), masker=masker, masking="device", bf16=True)
    trainer.train()
    assert np.isfinite(trainer.losses).all()
    assert {weight.dtype for weight in trainer.model.parameters()} == {dtype}
    assert (masker.latents - before.to(dtype)).abs().max() > 0


def test_a_trainer_with_another_strategy_saves_an_ordinary_model(tmp_path):
    model, masker = make_model(), make_masker()
    our_trainer(tmp_path, model, masker=masker, masking="device")
    order = [name for name, _ in model.named_parameters()]
    trainer = our_trainer(tmp_path, model, masker=RandomMasker(VOCABULARY, mlm_probability=0.3))
    trainer.save_model(str(tmp_path / "model"))
    _, told = transformers.BertForMaskedLM.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not any(told[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert attached(model) is masker
    assert [name for name, _ in model.named_parameters()] == order


@pytest.mark.parametrize("direct", [False, True], ids=["save_model", "push_to_hub"])
def test_all_files_are_there_when_the_hub_gets_them(tmp_path, monkeypatch, direct):
    trainer = our_trainer(tmp_path / "run", masker=make_masker(), masking="device")
    pushed = []

    def push(self, *_, **__):
        self.save_model(_internal_call=True)  # as Trainer's own does, before it uploads output_dir
        pushed.append({path.name for path in (tmp_path / "run").iterdir()})

    monkeypatch.setattr(CorrMaskTrainer, "push_to_hub", push)
    if direct:
        trainer.push_to_hub()
    else:
        trainer.args.push_to_hub = True
        trainer.save_model(str(tmp_path / "model"))
        assert (tmp_path / "model" / "attention_masker.safetensors").is_file()
    assert len(pushed) == 1
    assert pushed[0] >= {"model.safetensors", "attention_masker.safetensors"}
    _, told = transformers.BertForMaskedLM.from_pretrained(tmp_path / "run", output_loading_info=True)
    assert not told["unexpected_keys"]


def test_rates_of_numpy_are_saved_with_it(tmp_path):
    masker = make_masker(mlm_probability=(np.float64(0.1), np.float64(0.3)))
    trainer = our_trainer(tmp_path, masker=masker, masking="device")
    trainer.save_model(str(tmp_path / "model"))
    again = MultinomialAttentionMasker.load(tmp_path / "model" / "attention_masker.safetensors")
    assert again.mlm_probability == (0.1, 0.3)


def test_several_graphs_go_by_a_column_of_the_cells(tmp_path):
    """The masks of CorrMask-MAM are CorrMask's seeded by attention, each row by the graph of its tissue."""
    graphs = [GRAPH, make_graph(VOCABULARY, degree=3, seed=8)]
    corpus = read_corpus(CELLS, VOCABULARY)
    corpus.obs = {"tissue": np.array(["lung", "kidney"] * (len(CELLS) // 2))}
    masker, model = make_masker(graph=graphs), make_model()
    pads = PaddingCollator(VOCABULARY, graph_column="tissue", graph_numbers={"lung": 0, "kidney": 1})

    def trainer_of(collator, **more):
        dataset = CorpusDataset(corpus, columns=("tissue",))
        arguments = make_arguments(tmp_path)
        return CorrMaskTrainer(model, arguments, collator, train_dataset=dataset, **more)

    trainer = trainer_of(pads, masker=masker, masking="device")
    batch = next(iter(trainer.get_train_dataloader()))
    ids, numbers = batch["input_ids"].clone(), batch["graph_ids"].clone()
    assert set(numbers.tolist()) == {0, 1}
    expected = masker.draw(
        ids, batch["attention_mask"], embeddings=model.get_input_embeddings(), epoch=0, graph_ids=numbers
    )[0]
    assert torch.equal(trainer._masked(batch, 0, 0)["input_ids"], expected.input_ids)
    detach(model)
    with pytest.raises(InputError, match="the masker has 2 graphs; give graph_column to the collator"):
        trainer_of(None, masker=masker, masking="device")
    with pytest.raises(InputError, match="needs one of masker and data_collator"):
        trainer_of(pads, masker=CorrMasker(graphs))
