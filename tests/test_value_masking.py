"""Hidden values: the genes a masker chooses, in the shapes of scGPT, scBERT and scFoundation."""

from __future__ import annotations

import math

import pytest
import torch

from corrmask_fast import CorrMasker, InputError, RandomMasker, ValueReplacement, Vocabulary
from corrmask_fast.testing import make_graph, make_vocabulary


def value_masker(vocabulary, p, hidden=1.0):
    return RandomMasker(vocabulary, mlm_probability=p, mask_replace_prob=hidden, random_replace_prob=0.0)


def test_scgpt_hides_values_of_genes_and_never_of_cls():
    """Rows of 1 200 genes behind <cls>, values in 51 bins as floats, padded with -2."""
    genes = tuple(f"G{i}" for i in range(60_694))
    vocabulary = Vocabulary((*genes, "<pad>", "<cls>", "<eos>", "<mask>"))
    ids = torch.stack([torch.randperm(60_694)[:1201] for _ in range(4)])
    ids[:, 0] = vocabulary.cls_token_id
    values = torch.randint(0, 51, ids.shape).float()
    ids[3, 1000:], values[3, 1000:] = vocabulary.pad_token_id, -2
    graph_free = value_masker(vocabulary, 0.4)
    out = ValueReplacement.scgpt(graph_free)(ids, values, epoch=3)
    assert out.masked.sum(dim=1).tolist() == [480, 480, 480, math.floor(999 * 0.4)]
    assert (out.values[out.masked] == -1).all()
    torch.testing.assert_close(out.values[~out.masked], values[~out.masked])
    assert not out.masked[:, 0].any()
    assert not out.masked[3, 1000:].any()
    assert (values[out.masked] == 0).any()  # zeros are values here
    torch.testing.assert_close(out.targets, values)
    # The columns are those that the masker chooses for tokens.
    assert torch.equal(out.masked, graph_free(ids, epoch=3).labels != -100)


def test_scbert_hides_nonzero_bins_at_fixed_columns():
    """16 906 genes, each at a column of its own, bins 0 to 5: nine in ten of 15 % of the others than 0 become 6."""
    vocabulary = make_vocabulary(16_906)
    bins = torch.randint(0, 6, (3, 16_906)) * (torch.rand(3, 16_906) < 0.1)
    hide = ValueReplacement.scbert(value_masker(vocabulary, 0.15, hidden=0.9))
    out = hide(torch.arange(2, 16_908), bins, draw_ids=torch.arange(3))
    expressed = (bins != 0).sum(dim=1)
    assert out.masked.sum(dim=1).tolist() == [math.floor(int(n) * 0.15) for n in expressed]
    assert not out.masked[bins == 0].any()
    hidden = out.values[out.masked] == 6
    n = hidden.numel()
    assert abs(hidden.float().mean() - 0.9) < 5 * math.sqrt(0.9 * 0.1 / n)
    assert torch.equal(out.values[out.masked][~hidden], bins[out.masked][~hidden])  # the tenth stays in view
    assert out.values.dtype == torch.int64


def test_scfoundation_hides_values_and_some_zeros():
    """19 264 genes: 30 % of the values and 3 % of the zeros become 102."""
    vocabulary = make_vocabulary(19_264)
    values = torch.rand(2, 19_264).log1p() * (torch.rand(2, 19_264) < 0.15)
    hide = ValueReplacement.scfoundation(value_masker(vocabulary, 0.3))
    out = hide(torch.arange(2, 19_266), values, epoch=0)
    for row in range(2):
        zero = values[row] == 0
        assert int(out.masked[row][~zero].sum()) == math.floor(int((~zero).sum()) * 0.3)
        assert int(out.masked[row][zero].sum()) == math.floor(int(zero.sum()) * 0.03)
    assert (out.values[out.masked] == 102).all()
    assert out.values.dtype == values.dtype


def test_correlated_genes_lose_their_values_together():
    graph = make_graph(make_vocabulary(60), degree=4, seed=0)
    masker = CorrMasker(graph, structural_ratio=1.0, mask_replace_prob=1.0, random_replace_prob=0.0)
    ids = torch.arange(2, 62)
    out = ValueReplacement.scgpt(masker)(ids, torch.ones(5, 60), epoch=1)
    assert torch.equal(out.masked, masker(ids.expand(5, -1), epoch=1).labels != -100)


def test_draws_decide_values_too():
    hide = ValueReplacement.scfoundation(value_masker(make_vocabulary(500), 0.3))
    values = torch.rand(4, 500) * (torch.rand(4, 500) < 0.5)
    first, again, other = (hide(torch.arange(2, 502), values, epoch=epoch).masked for epoch in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_what_does_not_fit_is_refused():
    vocabulary = make_vocabulary(20)
    with pytest.raises(InputError, match=r"must have random_replace_prob=0.*got 0\.1"):
        ValueReplacement.scgpt(RandomMasker(vocabulary))
    with pytest.raises(InputError, match="zero_probability needs nonzero_only"):
        ValueReplacement(value_masker(vocabulary, 0.2), -1, zero_probability=0.1)
    hide = ValueReplacement(value_masker(vocabulary, 0.2), -1.5)
    with pytest.raises(InputError, match=r"int64 cannot hold the mask value -1\.5"):
        hide(torch.arange(2, 22), torch.ones(2, 20, dtype=torch.int64), epoch=0)
    with pytest.raises(InputError, match=r"got \(2, 20\) and \(19,\)"):
        hide(torch.arange(2, 21), torch.ones(2, 20), epoch=0)
