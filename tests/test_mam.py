"""Multinomial Attention Masking: who is chosen, by what, what leaks, and what learns."""

from __future__ import annotations

import copy
import math
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from corrmask_fast import (
    CorrMasker,
    DataCollatorForCorrMask,
    InputError,
    MultinomialAttentionMasker,
    RandomMasker,
    audit_masking,
    read_corpus,
    reference,
)
from corrmask_fast.masking.engine.torch_random import gumbel_priorities
from corrmask_fast.masking.schedules import Linear
from corrmask_fast.testing import make_graph, make_vocabulary
from corrmask_fast.training.mam_model import attach, detached

pytestmark = pytest.mark.usefixtures("one_thread")

VOCABULARY = make_vocabulary(60)
DIM = 16
GRAPH = make_graph(VOCABULARY)
CORPUS = read_corpus([[2, 3, 4, 5], [6, 3, 2]], VOCABULARY)


@pytest.fixture(name="embeddings")
def embeddings_fixture():
    torch.manual_seed(0)
    return nn.Embedding(VOCABULARY.size, DIM)


def make_masker(**changes):
    torch.manual_seed(1)
    masker = MultinomialAttentionMasker(
        VOCABULARY, DIM, **{"n_latents": 6, "n_heads": 2, "mlm_probability": 0.3, "seed": 5, **changes}
    )
    with torch.no_grad():
        masker.latents.mul_(300)  # so that attention differs between genes
    return masker


def batch(rows=4, columns=30, padding=(0, 3, 11, 29)):
    rng = np.random.default_rng(2)
    ids = np.stack([rng.permutation(60)[:columns] + 2 for _ in range(rows)])
    for row, pad in zip(ids, padding, strict=False):
        row[columns - pad :] = 0
    return torch.from_numpy(ids)


def test_masks_are_those_of_the_definition(embeddings):
    """Latents, attention, scores and replacement computed row by row, latent by latent."""
    masker, ids = make_masker(latent_ratio=0.5), batch()
    got = masker(ids, embeddings=embeddings, draw_ids=torch.tensor([7, 8, -1, 2**40]))
    for row, draw in enumerate([7, 8, 2**64 - 1, 2**40]):
        cell = ids[row].tolist()
        seen = [c for c, token in enumerate(cell) if token != 0]
        key = [reference.words(5, draw, latent, 2**32 - 1)[0] for latent in range(6)]
        chosen = sorted(range(6), key=lambda latent: (key[latent], latent))[:3]
        with torch.no_grad():
            keys = masker.key(masker.norm(embeddings(ids[row][seen])))
            queries = masker.query(masker.latents)
            weight = torch.zeros(len(cell), dtype=torch.float32)
            for latent in chosen:
                for head in (slice(0, 8), slice(8, 16)):
                    scores = keys[:, head] @ queries[latent, head] / math.sqrt(8)
                    weight[seen] += scores.softmax(0)
        gumbel = [-math.log(-math.log((reference.words(5, draw, c, 0)[0] + 0.5) / 2**32)) for c in range(len(cell))]
        score = {c: math.log(weight[c]) + gumbel[c] for c in seen}
        order = sorted(seen, key=lambda c: (-score[c], c))
        expected = reference.mask_row(
            cell,
            {},
            vocab_size=VOCABULARY.size,
            gene_range=VOCABULARY.gene_range,
            pad_token_id=0,
            mask_token_id=1,
            special_token_ids=VOCABULARY.special_token_ids,
            seed=5,
            draw_id=draw,
            strategy="sampled",
            mlm_probability=0.3,
            priorities=[order.index(c) if c in order else 99 for c in range(len(cell))],
        )
        assert got.input_ids[row].tolist() == expected.input_ids
        assert got.labels[row].tolist() == expected.labels


def test_attention_draws_the_masks(embeddings):
    """Genes attended to more are masked more: over many draws, in the order of their weights."""
    masker, ids = make_masker(latent_ratio=1.0, mlm_probability=0.1), batch(1, 30, (0,))
    rows = ids.repeat(4000, 1)
    times = (masker(rows, embeddings=embeddings, draw_ids=torch.arange(4000)).labels != -100).double().mean(0)
    seen = torch.ones_like(ids, dtype=torch.bool)
    weights = masker.weights(embeddings(ids), seen, masker.choose_latents(torch.zeros(1, dtype=torch.int64)))[0]
    assert weights.max() > 3 * weights.min()  # else there is nothing to see
    assert np.corrcoef(times, weights)[0, 1] > 0.95
    assert times.sum() == pytest.approx(3)


def test_the_context_alone_teaches_the_latents(embeddings):
    masker, ids = make_masker(), batch()
    masked, chosen = masker.draw(ids, embeddings=embeddings, epoch=0)
    embeddings(masked.input_ids).sum().backward()
    assert masker.latents.grad is None
    seen = ids != 0
    context = masker.context(embeddings(masked.input_ids), seen, chosen)
    context.square().sum().backward()
    assert masker.latents.grad is not None
    assert masker.latents.grad.abs().max() > 0
    assert masker.project.weight.grad.abs().max() > 0


def test_what_is_hidden_does_not_leak_into_the_context(embeddings):
    masker, ids = make_masker(mask_replace_prob=1.0, random_replace_prob=0.0), batch()
    masked, chosen = masker.draw(ids, embeddings=embeddings, epoch=0)
    before = masker.context(embeddings(masked.input_ids), ids != 0, chosen)
    other = nn.Embedding.from_pretrained(embeddings.weight.detach().clone())
    hidden = torch.unique(masked.labels[0][masked.labels[0] >= 0])
    other.weight[hidden] = 1000.0
    after = masker.context(other(masked.input_ids), ids != 0, chosen)
    torch.testing.assert_close(before[0], after[0])


def test_draws_follow_from_cell_and_epoch_whatever_the_batch(embeddings):
    masker, ids = make_masker(), batch()
    whole = masker(ids, embeddings=embeddings, epoch=3)
    for row in range(4):
        n = int((ids[row] != 0).sum())
        alone = masker(ids[row : row + 1, :n], embeddings=embeddings, epoch=3)
        assert alone.labels[0].tolist() == whole.labels[row, :n].tolist()
    assert not torch.equal(whole.labels, masker(ids, embeddings=embeddings, epoch=4).labels)


def test_its_counter_goes_on_and_is_saved(embeddings):
    masker, ids = make_masker(), batch()
    first, second = masker(ids, embeddings=embeddings), masker(ids, embeddings=embeddings)
    assert not torch.equal(first.labels, second.labels)
    again = make_masker()
    again.load_state_dict({**masker.state_dict(), "draw_counter": torch.tensor([4])})
    assert torch.equal(again(ids, embeddings=embeddings).labels, second.labels)


def test_rows_of_padding_stay_finite(embeddings):
    masker, ids = make_masker(), batch()
    ids[2] = 0
    masked, chosen = masker.draw(ids, embeddings=embeddings, epoch=0)
    assert (masked.labels[2] == -100).all()
    context = masker.context(embeddings(masked.input_ids), ids != 0, chosen)
    context.sum().backward()
    assert torch.isfinite(context).all()
    assert torch.isfinite(masker.latents.grad).all()


def test_training_bert_with_it():
    model, masker = make_bert().train(), make_masker()
    before = masker.latents.detach().clone()
    optimizer = torch.optim.AdamW([*model.parameters(), *masker.parameters()], lr=1e-2)
    ids, losses = batch(16, 30, (0,) * 16), []
    for step in range(40):
        output, masked = masker.masked_lm(model, ids, epoch=step)
        assert int((masked.labels != -100).sum()) == 16 * 9
        output.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(output.loss.item())
    assert np.mean(losses[-5:]) < 0.95 * np.mean(losses[:5])  # genes at random: little to learn but which there are
    assert (masker.latents - before).abs().max() > 1e-3


def test_seeds_go_by_weights():
    graph = make_graph(VOCABULARY, degree=3, seed=0)
    masker = CorrMasker(graph, structural_ratio=1.0, mlm_probability=0.15, max_partners=0)
    ids = torch.arange(2, 62).repeat(500, 1)
    seeds = np.flatnonzero(graph.degrees[2:62])
    weights = torch.zeros(500, 60)
    weights[:, seeds[:9]] = 1.0
    masked = masker(ids, seed_weights=weights, epoch=0, draw_ids=None)
    assert masked.masked_positions[0].tolist() == seeds[:9].tolist()  # nine of weight: all of them
    weights[:, seeds[:9]] = torch.arange(1.0, 10.0)
    weights[:, seeds[9:]] = 0.5
    times = (masker(ids, seed_weights=weights, draw_ids=torch.arange(500)).labels != -100).double().mean(0)
    assert times[seeds[8]] > times[seeds[0]] + 0.2
    with pytest.raises(InputError, match=r"seed_weights must be \(500, 60\) floating point"):
        masker(ids, seed_weights=weights[:, :5], epoch=0)
    for wrong in (-1.0, float("nan")):
        weights[7, 3] = wrong
        with pytest.raises(InputError, match=f"seed_weights must be >= 0; got {wrong} in row 7, column 3"):
            masker(ids, seed_weights=weights, epoch=0)


def test_attention_chooses_where_corrmask_starts(embeddings):
    """The masks are CorrMask's with attention as its seeds' weights, whatever of λ and partners is asked for."""
    ids, seen = batch(), batch() != 0
    for options in ({}, {"structural_ratio": 1.0, "max_partners": 2}):
        masker = make_masker(graph=GRAPH, **options)
        draws = torch.arange(4)
        weights = masker.weights(embeddings(ids), seen, masker.choose_latents(draws))
        expected = CorrMasker(GRAPH, mlm_probability=0.3, seed=5, **options)(ids, seed_weights=weights, draw_ids=draws)
        got = masker(ids, embeddings=embeddings, draw_ids=draws)
        assert torch.equal(got.labels, expected.labels)
        assert torch.equal(got.input_ids, expected.input_ids)
        others = masker.draw(ids, draw_ids=draws, weighted=False)[0]
        assert not torch.equal(others.labels, got.labels)
        assert torch.equal(
            others.labels, CorrMasker(GRAPH, mlm_probability=0.3, seed=5, **options)(ids, draw_ids=draws)[1]
        )


def test_without_weights_the_masks_are_those_of_random_masking():
    ids = batch()
    for expected in (RandomMasker(VOCABULARY, mlm_probability=0.3, seed=5)(ids, epoch=7),):
        got = make_masker().draw(ids, epoch=7, weighted=False)[0]
        assert all(torch.equal(one, other) for one, other in zip(got, expected, strict=True))


def test_first_weights_follow_from_the_seed_and_leave_torchs_generator_alone():
    def made(seed):
        before = torch.get_rng_state()
        masker = MultinomialAttentionMasker(VOCABULARY, DIM, seed=seed)
        assert torch.equal(torch.get_rng_state(), before)
        return torch.cat([parameter.detach().flatten() for parameter in masker.parameters()])

    first = made(3)
    with torch.device("meta"):  # or a GPU, whose generator draws others
        assert torch.equal(made(3), first)
    assert not torch.equal(made(3), made(4))


@pytest.mark.parametrize("options", [{}, {"graph": GRAPH, "max_partners": 2, "structural_ratio": (0.2, 0.6)}])
def test_saved_and_loaded_it_masks_the_same(tmp_path, embeddings, options):
    path = tmp_path / "masker.safetensors"
    masker = make_masker(latent_ratio=0.3, mlm_probability=Linear(0.5, 0.1, 10), **options)
    masker.save(path)
    again = MultinomialAttentionMasker.load(path, options.get("graph"))
    assert repr(again) == repr(masker)
    for step in (0, 10):
        for each in (masker, again):
            each.set_step(step)
        assert torch.equal(*(each(batch(), embeddings=embeddings, epoch=1).labels for each in (masker, again)))
    other = None if options else GRAPH
    with pytest.raises(InputError, match="was made with a graph" if options else "was made without a graph"):
        MultinomialAttentionMasker.load(path, other)
    if options:
        with pytest.raises(InputError, match=r"was made with graph .*, this is "):
            MultinomialAttentionMasker.load(path, make_graph(VOCABULARY, seed=9))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match="is not a readable attention masker"):
        MultinomialAttentionMasker.load(path, options.get("graph"))


def make_bert(width=DIM, seed=0):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(seed)
    config = transformers.BertConfig(
        vocab_size=VOCABULARY.size, hidden_size=width, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=DIM, max_position_embeddings=40,
    )  # fmt: skip
    return transformers.BertForMaskedLM(config).eval()


def test_attached_it_is_a_part_of_the_model():
    model, masker, ids = make_bert(), make_masker(), batch()
    expected, masked = masker.masked_lm(model, ids, epoch=2)
    plain, size = model(masked.input_ids).logits, sum(1 for _ in model.parameters())
    attach(masker, model)
    attach(masker, model)
    assert len(dict(model.named_parameters())) == size + 11
    _, latents = masker.draw(ids, embeddings=model.get_input_embeddings(), epoch=2)
    batch_of = {"input_ids": masked.input_ids, "attention_mask": (ids != 0).long(), "labels": masked.labels}
    for each in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        torch.testing.assert_close(each(**batch_of, latents=latents).loss, expected.loss)
        assert torch.equal(each(masked.input_ids).logits, plain)
    assert expected.loss != model(**batch_of).loss
    with detached(model):
        assert len(model.state_dict()) == len(make_bert().state_dict())
    assert model.attention_masker is masker
    with pytest.raises(
        InputError, match=r"another masker; call corrmask_fast.training.mam_model.detach\(model\) first"
    ):
        attach(make_masker(), model)
    with pytest.raises(InputError, match="dim must be the width of the model's embeddings, 8; got 16"):
        attach(masker, make_bert(8))
    with pytest.raises(InputError, match="must take inputs_embeds, as BertForMaskedLM's; got Linear"):
        attach(masker, nn.Linear(2, 2))


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("options", [{}, {"graph": GRAPH}], ids=["mam", "corrmask-mam"])
def test_on_a_device(request, device, options):
    """Masks are the CPU's but where rounding changes an order; without weights they are just those. It trains there."""
    device = request.getfixturevalue("gpu") if device == "cuda" else torch.device("cpu")
    model, masker, ids = make_bert(), make_masker(**options), batch(64, 30, (0, 3, 11, 29) * 16)
    embeddings, draws = model.get_input_embeddings(), torch.arange(64)
    expected = [masker.draw(ids, embeddings=embeddings, draw_ids=draws, weighted=each)[0] for each in (True, False)]
    model, masker, ids, draws = (each.to(device) for each in (model, masker, ids, draws))
    got = [masker.draw(ids, embeddings=embeddings, draw_ids=draws, weighted=each)[0] for each in (True, False)]
    assert (got[0].labels.cpu() == expected[0].labels).double().mean() > 0.99
    assert torch.equal(got[1].labels.cpu(), expected[1].labels)
    assert torch.equal(got[1].input_ids.cpu(), expected[1].input_ids)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        loss = masker.masked_lm(model.train(), ids, epoch=0)[0].loss
    loss.backward()
    for name, parameter in masker.named_parameters():
        assert torch.isfinite(parameter.grad).all(), name
    assert masker.latents.grad.abs().max() > 0


def test_what_is_no_weight_comes_last():
    weights = torch.tensor([[float("nan"), 1.0, -1.0, 0.0, 2.0]])
    order = gumbel_priorities(weights, torch.full((1, 5), 2**31)).argsort()
    assert order.tolist() == [[4, 1, 0, 2, 3]]


def test_the_rate_goes_by_a_schedule():
    masker = make_masker(mlm_probability=Linear(0.5, 0.1, 10))
    embeddings = nn.Embedding(VOCABULARY.size, 16)
    shares = []
    for step in (0, 10):
        masker.set_step(step)
        shares.append((masker(batch(), embeddings=embeddings, epoch=0).labels != -100).double().mean().item())
    assert shares[1] < 0.3 * shares[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"latent_ratio": 0}, r"latent_ratio must be a number in \(0, 1\]; got 0"),
        ({"latent_ratio": 1.5}, r"latent_ratio must be a number in \(0, 1\]; got 1.5"),
        ({"n_heads": 3}, "n_heads must divide dim=16; got 3"),
        ({"n_latents": 0}, "n_latents must be an integer in"),
        ({"structural_ratio": 0.5}, "structural_ratio goes with a graph; give graph="),
        ({"max_partners": 3}, "max_partners goes with a graph"),
        (
            {"graph": make_graph(make_vocabulary(61))},
            r"the graph and the masker have different vocabularies \(63 against 62",
        ),
    ],
)
def test_bad_parameters_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        make_masker(**changes)


def test_what_has_no_model_is_refused():
    masker = make_masker()
    with pytest.raises(InputError, match="a collator has none; use CorrMaskTrainer"):
        DataCollatorForCorrMask(masker)
    with pytest.raises(InputError, match="a collator or an audit has none; use CorrMaskTrainer with masking='dev"):
        audit_masking(masker, CORPUS, GRAPH)
    with pytest.raises(InputError, match=r"give embeddings=model.get_input_embeddings"):
        masker(batch(), epoch=0)


def test_embeddings_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match="vectors of dim=16; got"):
        make_masker()(batch(), embeddings=nn.Embedding(VOCABULARY.size, 8), epoch=0)
    with pytest.raises(InputError, match=r"the masker is torch.float32, .* are torch.bfloat16; use masker.to\(torch.b"):
        make_masker()(batch(), embeddings=nn.Embedding(VOCABULARY.size, DIM, dtype=torch.bfloat16), epoch=0)


def test_priorities_beside_weights_are_refused(embeddings):
    ids = batch()
    with pytest.raises(InputError, match="the latents' attention is what priorities are drawn from here"):
        make_masker()(ids, embeddings=embeddings, epoch=0, priorities=torch.zeros_like(ids))
    with pytest.raises(InputError, match="seed_weights are what priorities are drawn from here"):
        CorrMasker(GRAPH)(ids, seed_weights=torch.ones(ids.shape), epoch=0, priorities=torch.zeros_like(ids))


def test_a_small_ratio_still_leaves_a_latent():
    assert make_masker(latent_ratio=0.01).n_chosen == 1
