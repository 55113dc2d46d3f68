"""Hidden values: the genes a masker chooses, in the shapes of scGPT, scBERT and scFoundation."""

from __future__ import annotations

import math

import pytest
import torch

from corrmask_fast import CorrMasker, InputError, RandomMasker, ValueReplacement, Vocabulary, reference
from corrmask_fast.masking.engine.torch_random import maskable_columns, mix, relative_columns, row_content
from corrmask_fast.testing import make_graph, make_vocabulary


def value_masker(vocabulary, p, hidden=1.0):
    return RandomMasker(vocabulary, mlm_probability=p, mask_replace_prob=hidden, random_replace_prob=0.0)


def draws_by_hand(vocabulary, ids, values, epoch):
    """Draw ids of padded rows as the oracle has them, as signed 64-bit numbers."""
    draws = []
    for row, tokens in enumerate(ids.expand(values.shape).tolist()):
        first, maskable = reference.maskable_columns(
            tokens, special_token_ids=vocabulary.special_token_ids, pad_token_id=vocabulary.pad_token_id
        )
        own = {column: float(values[row, first + column]) for column in maskable}
        draw = reference.draw_id_of_epoch(reference.row_content(maskable, own), epoch)
        draws.append(draw - 2**64 if draw >= 2**63 else draw)
    return draws


def test_scgpt_hides_values_of_genes_and_never_of_cls():
    """Rows of 1 200 genes after <cls>, values in 51 bins as floats, padded with -2."""
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
    # The columns are those that the masker chooses for tokens, of the same draws.
    draws = torch.tensor(draws_by_hand(vocabulary, ids, values, 3))
    assert torch.equal(out.masked, graph_free(ids, draw_ids=draws).labels != -100)


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
    draws = torch.arange(5)
    out = ValueReplacement.scgpt(masker)(ids, torch.ones(5, 60), draw_ids=draws)
    assert torch.equal(out.masked, masker(ids.expand(5, -1), draw_ids=draws).labels != -100)


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


# ------------------------------------------------------------------------------------- the draw of a cell with values

PANEL = torch.arange(2, 42)
SHAPES = {
    "scgpt": ValueReplacement.scgpt,
    "scbert": lambda masker: ValueReplacement.scbert(masker, n_bins=200),
    "scfoundation": lambda masker: ValueReplacement.scfoundation(masker, zero_probability=0.2),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_cells_of_one_panel_have_masks_of_their_own(shape):
    """Also cells that differ in a single value; the same cell has the same mask in any batch, of any order."""
    hide = SHAPES[shape](value_masker(make_vocabulary(40), 0.4))
    values = torch.rand(500, 40, generator=torch.Generator().manual_seed(0)).mul(9).add(1).round(decimals=3)
    values[:, ::5] = 0
    masks = [hide(PANEL, values, epoch=epoch).masked for epoch in range(3)]
    for mask in masks:
        assert len({tuple(row) for row in mask.tolist()}) > 490
    never = ~(masks[0] | masks[1] | masks[2])
    assert 0.15 < never[values > 0].float().mean() < 0.3  # 0.6³ = 0.22, of all cells together as of each gene
    assert never[:, 1].float().mean() < 0.35
    order = torch.randperm(500)[:40]
    assert torch.equal(hide(PANEL, values[order], epoch=2).masked, masks[2][order])
    nearly = values[:1].repeat(40, 1)
    nearly[range(40), range(40)] += (values[0] != 0) * 0.5
    changed = {tuple(row) for row in hide(PANEL, nearly, epoch=0).masked.tolist()}
    assert len(changed) > 28  # 32 cells other than the first, which the zeros' rows are


def test_draws_are_the_oracles():
    """Kernel and PyTorch operations; rows with genes of their own, <cls>, padding on both sides; and a panel."""
    vocabulary = make_vocabulary(60, v2=True)
    values = torch.randn(7, 20, generator=torch.Generator().manual_seed(1)) * 10.0 ** torch.arange(-10, 10)
    values[0, :9] = torch.tensor([0.0, -0.0, 1.0, 0.1, 1e-40, 1e30, float("inf"), -float("inf"), -1.0])
    ids = torch.stack([torch.randperm(60)[:20] + 4 for _ in range(7)])
    ids[1, :3], ids[2, 15:], ids[3, 0] = 0, 0, vocabulary.cls_token_id
    masker = value_masker(vocabulary, 0.3)
    for genes in (ids, ids[3], ids[4]):
        draws = torch.tensor(draws_by_hand(vocabulary, genes, values, 5))
        expected = masker(genes.expand(7, -1).contiguous(), draw_ids=draws).labels != -100
        assert torch.equal(ValueReplacement.scgpt(masker)(genes, values, epoch=5).masked, expected)
        seen = genes != 0
        content = row_content(genes, maskable_columns(vocabulary, genes, seen, None), relative_columns(seen), [values])
        assert torch.equal(mix(content + torch.tensor(5) * (reference.GOLDEN - 2**64)), draws)


def test_the_draw_of_a_cell_worked_by_hand():
    """Genes 5 and 3 with values 2.0 and -0.0: the bits of 2.0 are 0x40000000."""
    mix_ = reference.mix
    first, second = mix_(5), mix_((1 << 32) | 3)
    content = (first + mix_(first ^ 0x40000000) + second + mix_(second)) % 2**64
    assert reference.row_content({0: 5, 1: 3}, {0: 2.0, 1: -0.0}) == content
    assert reference.row_content({0: 5, 1: 3}) == (first + second) % 2**64


def test_padding_and_types_change_no_mask():
    hide = ValueReplacement.scgpt(value_masker(make_vocabulary(60), 0.4))
    ids, values = torch.stack([torch.randperm(60)[:20] + 2 for _ in range(6)]), torch.randint(0, 50, (6, 20))
    expected = hide(ids, values, epoch=4).masked
    for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int32, torch.uint8, torch.int16):
        assert torch.equal(ValueReplacement(hide.masker, 7)(ids, values.to(dtype), epoch=4).masked, expected)
    assert torch.equal(hide(ids, torch.where(values == 0, -0.0, values), epoch=4).masked, expected)
    pad = torch.nn.functional.pad
    for left, right in ((3, 0), (0, 5), (2, 2)):
        wide = hide(pad(ids, (left, right)), pad(values, (left, right), value=9), epoch=4).masked
        assert torch.equal(wide, pad(expected, (left, right)))
    with_mask = hide(pad(ids, (0, 4), value=7), pad(values, (0, 4)), pad(torch.ones_like(ids), (0, 4)), epoch=4)
    assert torch.equal(with_mask.masked, pad(expected, (0, 4)))


def test_compiled_masks_are_the_same():
    hide = ValueReplacement.scfoundation(value_masker(make_vocabulary(60), 0.3), zero_probability=0.2)
    values = torch.rand(4, 60) * (torch.rand(4, 60) < 0.5)
    compiled = torch.compile(hide, backend="aot_eager", fullgraph=True)
    for epoch in (0, 1):
        expected = hide(torch.arange(2, 62), values, epoch=epoch)
        found = compiled(torch.arange(2, 62), values, epoch=torch.tensor([epoch]))
        assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_counted_and_given_draws_do_not_look_at_values():
    hide = ValueReplacement.scgpt(value_masker(make_vocabulary(40), 0.4))
    one, other = torch.rand(5, 40), torch.rand(5, 40)
    draws = torch.arange(5)
    assert torch.equal(hide(PANEL, one, draw_ids=draws).masked, hide(PANEL, other, draw_ids=draws).masked)
    assert torch.equal(hide(PANEL, one).masked, hide(PANEL, one, draw_ids=draws).masked)  # counted from 0
    with pytest.raises(InputError, match="give draw_ids or epoch, not both"):
        hide(PANEL, one, draw_ids=draws, epoch=0)


def test_a_value_that_is_none_is_refused():
    hide = ValueReplacement.scgpt(value_masker(make_vocabulary(40), 0.4))
    values = torch.rand(3, 40)
    values[1, 7] = float("nan")
    for draw in ({"epoch": 0}, {}, {"draw_ids": torch.arange(3)}):
        with pytest.raises(InputError, match="the value in row 1, column 7 is NaN"):
            hide(PANEL, values, **draw)
    padded = torch.ones(3, 40)
    padded[1, 7] = 0
    assert not hide(PANEL, values, padded, epoch=0).masked[1, 7]
    with pytest.raises(InputError, match=r"values must be a torch tensor; got ndarray; give torch\.as_tensor"):
        hide(PANEL, values.numpy(), epoch=0)
    assert hide(PANEL, torch.empty(0, 40), epoch=0).masked.shape == (0, 40)
    assert hide(torch.empty(2, 0, dtype=torch.int64), torch.empty(2, 0), epoch=0).masked.shape == (2, 0)


TEN = Vocabulary(("<pad>", "<mask>", *(f"G{i}" for i in range(10))))


@pytest.mark.parametrize(
    ("mask_value", "dtype"),
    [
        *[(-1, torch.uint8), (-129, torch.int8), (2049, torch.float16), (301, torch.bfloat16), (1.5, torch.int64)],
        *[(1e6, torch.int16), (70_000, torch.float16), (0, torch.bool), (0, torch.complex64)],
    ],
)
def test_a_mask_value_that_the_dtype_cannot_hold_is_refused(mask_value, dtype):
    masker = RandomMasker(TEN, mlm_probability=0.4, mask_replace_prob=1.0, random_replace_prob=0.0)
    values = torch.ones((2, 10)).to(dtype)
    with pytest.raises(InputError, match="cannot hold the mask value"):
        ValueReplacement(masker, mask_value)(torch.arange(2, 12), values, epoch=0)


def test_odd_arguments_of_value_masking():
    masker = RandomMasker(TEN, mlm_probability=0.4, mask_replace_prob=1.0, random_replace_prob=0.0)
    for bad, message in ((float("nan"), "mask_value must be a number"), ("x", "mask_value must be a number")):
        with pytest.raises(InputError, match=message):
            ValueReplacement(masker, bad)
    with pytest.raises(InputError, match="zero_probability must be below 1"):
        ValueReplacement(masker, 9, nonzero_only=True, zero_probability=1.0)
    with pytest.raises(InputError, match="a masker chooses the values"):
        ValueReplacement(None, -1)
    values = torch.rand((3, 10), requires_grad=True)
    fixed = torch.zeros((3, 10), dtype=torch.int64)
    fixed[:, 2:] = 1
    for hide in (ValueReplacement(masker, -1), ValueReplacement.scfoundation(masker)):
        out = hide(torch.arange(2, 12), values, epoch=0, special_tokens_mask=fixed)
        assert not out.masked[:, 2:].any()
