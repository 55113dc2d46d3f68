"""Special tokens by role: other models' vocabularies, those without a mask token, and what depends on the roles."""

from __future__ import annotations

import copy
import json
import pickle
import warnings

import numpy as np
import pytest
import torch

from corrmask_fast import (
    CorrMasker,
    DataCollatorForCorrMask,
    DependencyGraph,
    InputError,
    MultinomialAttentionMasker,
    RandomMasker,
    ValueReplacement,
    Vocabulary,
    audit_masking,
    read_corpus,
)
from corrmask_fast.masking.stock import stock_collator

GENES = tuple(f"G{i}" for i in range(30))
USUAL = Vocabulary(("<pad>", "<mask>", "<cls>", *GENES))
BERT = Vocabulary(("[PAD]", "[MASK]", "[CLS]", *GENES), pad="[PAD]", mask="[MASK]", special=["[CLS]"])
SCGPT = Vocabulary((*GENES, "<pad>", "<cls>", "<eoc>"))
CELLS = [[2, *range(3 + i, 33)] for i in range(8)]


def graph_of(vocabulary):
    return DependencyGraph.from_edges([("G0", "G1"), ("G1", "G2"), ("G7", "G20")], vocabulary)


# ------------------------------------------------------------------------------------------------------------- roles


def test_roles_by_name():
    assert (BERT.pad_token_id, BERT.mask_token_id, BERT.special_token_ids) == (0, 1, (0, 1, 2))
    assert (BERT.gene_range, BERT.cls_token_id, BERT.n_surrounding) == ((3, 33), None, 0)
    assert repr(BERT) == "Vocabulary(30 genes, ids 3 to 32; [PAD] [MASK] [CLS])"


def test_roles_by_id():
    names = ("m", "p", "x", "c", *GENES)
    genes = Vocabulary(names, pad=1, mask=np.int64(0), special=[2, 3])
    assert (genes.pad, genes.mask, genes.special) == ("p", "m", ("x", "c"))
    assert (genes.pad_token_id, genes.mask_token_id, genes.gene_range) == (1, 0, (4, 34))
    assert genes.fingerprint == Vocabulary(names, pad="p", mask="m", special=("c", "x", "p")).fingerprint


def test_special_tokens_may_lie_on_both_sides_of_the_genes():
    genes = Vocabulary(("[CLS]", "<x>", "A", "B", "[PAD]", "<mask>"), pad="[PAD]", special="[CLS]")
    assert (genes.gene_range, genes.special_token_ids, genes.special) == ((2, 4), (0, 1, 4, 5), ("[CLS]",))
    with pytest.raises(InputError, match=r"contiguous, but the special token '\[CLS\]' \(id 2\) lies"):
        Vocabulary(("<pad>", "A", "[CLS]", "B"), special=["[CLS]"])


def test_from_a_token_dictionary(tmp_path):
    tokens = {name: token for token, name in enumerate(BERT.names)}
    roles = {"pad": "[PAD]", "mask": "[MASK]", "special": ["[CLS]"]}
    (tmp_path / "tokens.json").write_text(json.dumps(tokens))
    for given in (tokens, tmp_path / "tokens.json"):
        genes = Vocabulary.from_token_dictionary(given, {"TP53": "G0"}, **roles)
        assert (genes.names, genes.fingerprint, genes.id_of("TP53")) == (BERT.names, BERT.fingerprint, 3)


@pytest.mark.parametrize(
    ("roles", "message"),
    [
        ({"pad": "[PAD]"}, "pad must be the name of a token, or an id from 0 to 3; got '[PAD]'"),
        ({"mask": 4}, "mask must be the name of a token, or an id from 0 to 3; got 4"),
        ({"pad": True}, "got True"),
        ({"mask": 1.5}, "got 1.5"),
        ({"special": ["B", "nothing"]}, "special must be the name of a token, or an id from 0 to 3; got 'nothing'"),
        ({"special": 2.5}, "got 2.5"),
        ({"special": [None]}, "got None"),
        ({"mask": "<pad>"}, "pad and mask are both '<pad>'; padding needs a token of its own"),
        ({"special": ["A", "B"]}, "the vocabulary has no genes"),
    ],
    ids=str,
)
def test_bad_roles(roles, message):
    with pytest.raises(InputError) as error:
        Vocabulary(("<pad>", "<mask>", "A", "B"), **roles)
    assert message in str(error.value)


def test_other_brackets_without_roles_get_the_roles_to_give():
    with pytest.raises(InputError) as error:
        Vocabulary.from_token_dictionary({"A": 0, "[PAD]": 1, "[MASK]": 2, "[CLS]": 3})
    assert str(error.value) == (
        "the vocabulary has no '<pad>' token; if it has other special tokens, give pad='[PAD]', mask='[MASK]', "
        "special=['[CLS]'] (at the command line: --pad-token '[PAD]' --mask-token '[MASK]' --special-tokens '[CLS]')"
    )
    with pytest.raises(InputError, match=r"no '<pad>' token; .* give pad='<PAD>' \(at"):
        Vocabulary(("<PAD>", "<mask>", "A"))


@pytest.mark.parametrize("name", ["[CLS]", "(sep)", "{x}", "|x|", "__unk__", "<eoc", "cls>"])
def test_genes_in_brackets_are_pointed_out(name):
    with pytest.warns(UserWarning, match="names in brackets count as genes.* --special-tokens") as caught:
        genes = Vocabulary(("<pad>", "<mask>", "A", name))
    assert caught[0].filename == __file__
    assert repr(name) in str(caught[0].message)
    assert genes.gene_range == (2, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Vocabulary(genes.names, special=[name])


def test_usual_names_of_genes_are_not_pointed_out():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        names = ("mask", "pad", "CLS", "HLA-A", "Gm20(1)", "[x", "su(w[a])", "__no_feature", "T>C1", "IL2|IL2R")
        Vocabulary(("<pad>", "<mask>", *names))


# ----------------------------------------------------------------------------------------------- stored and compared


def test_roles_are_stored_and_part_of_the_fingerprint(tmp_path):
    BERT.save(tmp_path / "vocabulary.json")
    graph_of(BERT).save(tmp_path / "graph.safetensors")
    again = [
        Vocabulary.load(tmp_path / "vocabulary.json"),
        Vocabulary.from_json(BERT.to_json()),
        DependencyGraph.load(tmp_path / "graph.safetensors").vocabulary,
        pickle.loads(pickle.dumps(BERT)),
        copy.deepcopy(BERT),
    ]
    for genes in again:
        assert (genes.pad, genes.mask, genes.special) == ("[PAD]", "[MASK]", ("[CLS]",))
        assert (genes.fingerprint, genes.special_token_ids) == (BERT.fingerprint, (0, 1, 2))
    others = [{"pad": "[PAD]"}, {"pad": "[PAD]", "mask": "[MASK]"}, {"pad": "[MASK]", "mask": "[PAD]"}]
    with pytest.warns(UserWarning, match="names in brackets"):
        fingerprints = {Vocabulary(BERT.names, **roles).fingerprint for roles in others}
    assert len(fingerprints | {BERT.fingerprint}) == 4


def test_roles_that_are_the_usual_ones_change_nothing():
    spelled = Vocabulary(USUAL.names, pad="<pad>", mask="<mask>", special=["<cls>", "<pad>"])
    assert (spelled.fingerprint, spelled.to_json()) == (USUAL.fingerprint, USUAL.to_json())


def test_other_roles_are_another_vocabulary():
    other = Vocabulary(BERT.names, pad="[PAD]", mask="[CLS]", special=["[MASK]"])
    with pytest.raises(InputError, match=r"special tokens: pad '\[PAD\]', mask '\[MASK\]'.* against .*mask '\[CLS\]'"):
        BERT.check_same(other, "the graph", "the corpus")


# ---------------------------------------------------------------------------------------------------- masks by roles


@pytest.mark.parametrize("make", [lambda v: RandomMasker(v, seed=5), lambda v: CorrMasker(graph_of(v), seed=5)])
def test_masks_are_those_of_the_same_ids_by_usual_names(make):
    ours, theirs = (DataCollatorForCorrMask(make(genes)) for genes in (BERT, USUAL))
    for collator in (ours, theirs):
        collator.set_epoch(3)
    a, b = ([{"input_ids": cell} for cell in CELLS] for _ in range(2))
    for key, value in ours(a).items():
        assert torch.equal(value, theirs(b)[key])
    assert not torch.any(ours(a)["labels"] == 2)  # [CLS]


def test_the_stock_collator_goes_by_roles():
    cells = [{"input_ids": cell} for cell in CELLS]
    batches = []
    for genes in (BERT, USUAL):
        torch.manual_seed(0)
        batches.append(stock_collator(genes, mlm_probability=0.5)([dict(cell) for cell in cells]))
    for key in ("input_ids", "labels"):
        assert torch.equal(batches[0][key], batches[1][key])


# ---------------------------------------------------------------------------------------------- without a mask token


def test_a_vocabulary_without_a_mask_token():
    assert (SCGPT.mask_token_id, SCGPT.mask, SCGPT.pad_token_id) == (None, None, 30)
    assert SCGPT.special_token_ids == (30, 31, 32)
    assert Vocabulary.from_json(SCGPT.to_json()).mask is None


@pytest.mark.parametrize("nonzero_only", [False, True])
@pytest.mark.parametrize("share", [1.0, 0.5])
@pytest.mark.parametrize("pads", [0, 3])
def test_values_are_masked_without_a_mask_token(nonzero_only, share, pads):
    """The same masks as with one more token, which no gene's id depends on."""
    with_mask = Vocabulary((*SCGPT.names, "<mask>"))
    values = torch.rand(20, 30, generator=torch.Generator().manual_seed(0)).round(decimals=1)
    ids = torch.arange(30).repeat(20, 1)
    ids[:, 30 - pads :] = SCGPT.pad_token_id
    found = []
    for genes in (SCGPT, with_mask):
        masker = CorrMasker(graph_of(genes), mlm_probability=0.4, mask_replace_prob=share, random_replace_prob=0.0)
        zeros = 0.2 if nonzero_only else 0.0
        hide = ValueReplacement(masker, -1, nonzero_only=nonzero_only, zero_probability=zeros)
        found.append(hide(ids, values, epoch=1))
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b)
    hidden = found[0].values == -1
    assert hidden.any()
    assert torch.equal(hidden, found[0].masked) == (share == 1)


def test_an_audit_needs_no_mask_token():
    cells = [list(range(i, 30)) for i in range(8)]
    report = audit_masking(CorrMasker(graph_of(SCGPT)), read_corpus(cells, SCGPT), graph_of(SCGPT), progress=False)
    usual = [[token + 3 for token in cell] for cell in cells]
    corpus = read_corpus(usual, USUAL)
    expected = audit_masking(CorrMasker(graph_of(USUAL)), corpus, graph_of(USUAL), progress=False)
    assert report.strategies[0].rate == expected.strategies[0].rate > 0


def test_what_puts_mask_tokens_into_cells_says_that_there_is_none():
    refusals = [
        lambda: RandomMasker(SCGPT)(torch.arange(30)[None], epoch=0),
        lambda: RandomMasker(SCGPT).mask_ragged(np.array([0, 30]), np.arange(30), epoch=0),
        lambda: MultinomialAttentionMasker(SCGPT, 8, n_heads=2)(
            torch.arange(30)[None], embeddings=torch.nn.Embedding(33, 8)
        ),
        lambda: DataCollatorForCorrMask(CorrMasker(graph_of(SCGPT))),
        lambda: stock_collator(SCGPT, mlm_probability=0.15),
    ]
    for refused in refusals:
        with pytest.raises(InputError, match=r"no '<mask>'; add one .* mask= \(--mask-token\), or mask values"):
            refused()


def test_masked_genes_that_stay_or_become_others_need_no_mask_token():
    masker = RandomMasker(SCGPT, mask_replace_prob=0.0, random_replace_prob=0.5)
    batch = DataCollatorForCorrMask(masker)([{"input_ids": list(range(30))}])
    assert (batch["labels"] != -100).sum() == 4
    assert batch["input_ids"].max() < 30
