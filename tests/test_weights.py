"""Weights of genes and of partners: the key to the bit, the chances that come of it, and what is refused."""

from __future__ import annotations

import copy
import math
import pickle
from collections import Counter
from fractions import Fraction
from itertools import permutations

import numpy as np
import pytest
import torch

from corrmask_fast import (
    CorrMasker,
    DependencyGraph,
    InputError,
    MultinomialAttentionMasker,
    RandomMasker,
    Vocabulary,
    WeightedMasker,
    make_masker,
    reference,
)
from corrmask_fast.masking.engine.tables import costs_of_edges
from corrmask_fast.testing import make_vocabulary

GENES = make_vocabulary(40)
LOW = 2**32 - 1
SIGMAS = 5.0
EVEN = 2**31  # the cost of equal weights


def keys_of(words, costs):
    """Keys by the CPU's kernel; both arrays (n,), n a multiple of 32."""
    from numba import njit

    from corrmask_fast.kernels.lanes import weigh_words

    @njit
    def weigh(words, costs):
        for begin in range(0, words.size, 32):
            weigh_words(words, begin, costs, begin)

    keys = np.array(words, np.uint32)
    weigh(keys, np.array(costs, np.uint32))
    return keys


# ------------------------------------------------------------------------------------------------------------ the key


def test_keys_by_hand():
    assert reference.race_key(0, EVEN) == (0 + 31) << 26  # u = 1 − 2⁻³³: E = 1
    assert reference.race_key(LOW, EVEN) == (32 + 31) << 26 | 2**26 // 32  # u = 2⁻³³: E = 33 · 2²⁷ = 2³² · (1 + 1/32)
    assert reference.race_key(2**31 - 1, EVEN) == (27 + 31) << 26  # u = ½ + 2⁻³³: E = 2²⁷
    assert reference.race_key(3 * 2**30 - 1, EVEN) == (28 + 31) << 26  # u = ¼ + 2⁻³³
    assert reference.race_key(0, 2**11) == (0 + 11) << 26  # the smallest key there is
    assert reference.race_key(2**31 - 1, 3 * 2**20) == (27 + 21) << 26 | 2**25


def test_kernel_keys_are_the_oracles():
    rng = np.random.default_rng(0)
    words = rng.integers(0, 2**32, 6400)
    words[:192:3] = [0, 1, 2, 3, LOW, LOW - 1, 2**31, 2**31 - 1] * 8
    costs = 2.0 ** rng.uniform(11, 31, 6400)
    costs[:128:2], costs[1:128:2] = EVEN, 2**11
    costs = costs.astype(np.int64)
    assert keys_of(words, costs).tolist() == [
        reference.race_key(*map(int, pair)) for pair in zip(words, costs, strict=True)
    ]


def test_no_product_overflows():
    assert 33 * 2**27 * EVEN < 2**64
    assert reference.race_key(LOW, EVEN) < 2**32


def exact_arrival(word):
    """−log2(u) of a word, in 80-bit floating point: y has 33 bits and is exact there."""
    return -(np.log2(np.longdouble(2 * (LOW - int(word)) + 1)) - 33)


def test_arrivals_are_logarithms():
    rng = np.random.default_rng(1)
    words = [*range(2000), *(LOW - k for k in range(2000)), *rng.integers(0, 2**32, 4000).tolist()]
    for word in words:
        key = reference.race_key(word, EVEN)  # E is the key's value: a cost of 2³¹ moves the point alone
        arrival = Fraction(2**26 + key % 2**26, 2**26) * Fraction(2) ** ((key >> 26) - 31)
        exact = exact_arrival(word) * 2**27
        # The key cuts E to 27 bits, so at most 2⁻²⁶ of it is lost.
        assert abs(float(arrival) - float(exact)) <= 1.3e-6 * float(exact) + 3, word


def test_keys_rise_with_words_and_costs():
    """Where words are next to each other, and over all of them; where octaves meet."""
    near = [np.arange(begin, begin + 32_000) for begin in (0, 2**31 - 16_000, 2**32 - 2**30 - 16_000, 2**32 - 32_000)]
    for words in (*near, np.arange(0, 2**32, 2**17 + 1)[:32_000]):
        for cost in (EVEN, 2**11, 12345):
            assert (np.diff(keys_of(words, np.full(words.size, cost)).astype(np.int64)) >= 0).all()
    costs = np.sort(np.random.default_rng(2).integers(2**11, EVEN + 1, 32_000))
    assert (np.diff(keys_of(np.full(32_000, 10**9), costs).astype(np.int64)) >= 0).all()


def test_the_device_has_the_same_key(cuda_host):
    """Over words and costs that parity does not reach: a kernel of its own."""
    from launch import Guarded

    from corrmask_fast import cuda

    source = (
        cuda.kernel_source("random.cu")
        + """
extern "C" __global__ void keys_of(u32* words, const u32* costs, u32 n) {
  for (u32 i = threadIdx.x; i < n; i += blockDim.x) words[i] = race_key(words[i], costs[i]);
}
"""
    )
    rng = np.random.default_rng(3)
    words = np.concatenate([[0, 1, LOW, LOW - 1, 2**31], rng.integers(0, 2**32, 27), 2 ** np.arange(32)]).astype(
        np.uint32
    )
    costs = np.concatenate([[EVEN] * 5, (2.0 ** rng.uniform(11, 31, 59))]).astype(np.uint32)
    expected = [reference.race_key(int(word), int(cost)) for word, cost in zip(words, costs, strict=True)]
    held, given = Guarded(words), Guarded(costs)
    args = [held.buffer.address, given.buffer.address, np.uint32(64)]
    cuda_host.launch.HostModule(source).launch("keys_of", (1,), (32,), args)
    held.finish("words")
    given.finish("costs")
    assert words.tolist() == expected


# ----------------------------------------------------------------------------------------------------------- chances


def chances(weights, size):
    """Each set of ``size`` places → its chance, drawn one after the other without replacement."""
    found = Counter()
    for order in permutations(range(len(weights)), size):
        chance, left = Fraction(1), Fraction(sum(weights))
        for place in order:
            chance *= Fraction(weights[place]) / left
            left -= weights[place]
        found[frozenset(order)] += chance
    return found


def assert_frequencies(sets, expected):
    """Each set came as often as its chance says, within five sigma."""
    counts, n = Counter(sets), len(sets)
    assert set(counts) <= set(expected)
    for each, chance in expected.items():
        sigma = math.sqrt(n * chance * (1 - chance))
        assert abs(counts[each] - n * float(chance)) <= SIGMAS * sigma, (each, counts[each] / n, float(chance))


def sets_of(masker, row, rows=60_000, **more):
    masked = masker(torch.tensor([row]).repeat(rows, 1), draw_ids=torch.arange(rows) * 1_000_003, **more)
    return [frozenset(row[row >= 0].tolist()) for row in masked.masked_positions.numpy()]


@pytest.mark.parametrize("weights", [(1, 2, 5, 1), (1000, 1, 30, 2), (1, 1, 1, 1)])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_chances_of_genes(weights, size):
    row = [2, 3, 4, 5]
    masker = WeightedMasker(GENES, dict(zip(row, weights, strict=True)), mlm_probability=(size + 0.5) / 4)
    assert_frequencies(sets_of(masker, row), chances(weights, size))


def test_chances_at_the_largest_ratio():
    """One gene weighs as much as 2²⁰ others: of two draws its is one, but for once in half a million."""
    row = [2, 3, 4, 5]
    masker = WeightedMasker(GENES, {2: 2.0**20}, mlm_probability=0.6)
    assert_frequencies(sets_of(masker, row), chances((2**20, 1, 1, 1), 2))


def test_chances_of_seeds_and_of_the_rest():
    """Half the quota by seeds (places 0 to 3), half by the top-up over what is left."""
    row, weights = [2, 3, 4, 5, 20, 21], (1, 2, 5, 3, 4, 1)
    graph = DependencyGraph.from_edges([(2, 10), (3, 11), (4, 12), (5, 13)], GENES)
    given = dict(zip(row, weights, strict=True))
    masker = CorrMasker(graph, weights=given, mlm_probability=2.5 / 6, structural_ratio=0.5, max_partners=0)
    expected = Counter()
    for seed in range(4):
        for other in set(range(6)) - {seed}:
            rest = sum(weights) - weights[seed]
            expected[frozenset((seed, other))] += Fraction(weights[seed], sum(weights[:4])) * Fraction(
                weights[other], rest
            )
    assert_frequencies(sets_of(masker, row), expected)


@pytest.mark.parametrize("most", [1, 2])
def test_chances_of_partners(most):
    """A star of four leaves: where its middle is the first seed, its partners are drawn by |rho|."""
    rho = (0.9, -0.3, 0.1, 0.5)
    star = DependencyGraph.from_edges([(2, 3 + k, value) for k, value in enumerate(rho)], GENES)
    row = [2, 3, 4, 5, 6]
    masker = CorrMasker(
        star, partners="weighted", weights={2: 1000.0}, mlm_probability=(most + 1.5) / 5, structural_ratio=1.0,
        max_partners=most,
    )  # fmt: skip
    first = [each for each in sets_of(masker, row) if 0 in each and len(each) == most + 1]
    # The middle is the first seed but for 4 rows in 1004; there a leaf brings it: too few to be seen.
    counted = {frozenset({0, *(1 + k for k in each)}): chance for each, chance in chances((9, 3, 1, 5), most).items()}
    slack = dict.fromkeys(counted, 4 / 1004)
    counts = Counter(first)
    for each, chance in counted.items():
        sigma = math.sqrt(float(chance) * (1 - float(chance)) / len(first))
        assert abs(counts[each] / len(first) - float(chance)) <= SIGMAS * sigma + slack[each], (each, counts[each])


def test_equal_weights_are_random_masks():
    """The same genes come first, but where two words are equal in 27 bits."""
    rows, draws = torch.arange(2, 42).repeat(3000, 1), {"draw_ids": torch.arange(3000)}
    plain = RandomMasker(GENES, mlm_probability=0.3)(rows, **draws)
    for weights in ({}, {2: 1.0}, np.full(42, 7.5)):
        same = WeightedMasker(GENES, weights, mlm_probability=0.3)(rows, **draws).labels == plain.labels
        assert same.all(dim=1).double().mean() > 0.999


def test_weights_are_compared_with_each_other_alone():
    rows, weights = torch.arange(2, 42).repeat(50, 1), np.random.default_rng(0).integers(1, 50, 42).astype(float)
    one, other = WeightedMasker(GENES, weights), WeightedMasker(GENES, 4 * weights)
    assert torch.equal(one.table_fingerprint, other.table_fingerprint)
    assert torch.equal(one(rows, epoch=1).labels, other(rows, epoch=1).labels)


def test_masks_of_the_paper_stay_what_they_are():
    """Without weights neither the fingerprint nor the mask has changed."""
    graph = DependencyGraph.from_edges([(2, 3, 0.5), (3, 4, 0.7)], GENES)
    masker = CorrMasker(graph)
    assert bytes(masker.table_fingerprint.tolist()).hex() == graph.fingerprint
    assert bytes(RandomMasker(GENES).table_fingerprint.tolist()).hex() == GENES.fingerprint
    assert (masker.label, masker.mask_source, masker.partners, masker.weights) == ("CorrMask", "graph", "uniform", None)
    prints = [
        bytes(CorrMasker(graph, **more).table_fingerprint.tolist())
        for more in ({}, {"partners": "weighted"}, {"weights": {2: 3.0}}, {"weights": {2: 3.0}, "partners": "weighted"})
    ]
    assert len(set(prints)) == 4
    stronger = DependencyGraph.from_edges([(2, 3, 0.6), (3, 4, 0.7)], GENES)
    assert graph.fingerprint == stronger.fingerprint
    assert prints[1] != bytes(CorrMasker(stronger, partners="weighted").table_fingerprint.tolist())


def test_costs_of_edges():
    graph = DependencyGraph.from_edges([(2, 3, 0.0), (2, 4, -0.5), (3, 4, 0.25), (6, 7, 0.0)], GENES)
    costs = costs_of_edges(graph).tolist()
    #       2–3 2–4           3–2  3–4          4–2      4–3   6–7   7–6
    assert costs == [2**31, 2**11, 2**31, 2**11, 2**30, 2**31, 2**31, 2**31]
    assert costs_of_edges(DependencyGraph.from_edges([], GENES)).size == 0


# ------------------------------------------------------------------------------------------------- what is made of it


def test_maskers_travel_and_resume():
    rows, graph = torch.arange(2, 42).repeat(4, 1), DependencyGraph.from_edges([(2, 3, 0.5), (3, 4, 0.7)], GENES)
    for masker in (WeightedMasker(GENES, {2: 9.0}), CorrMasker(graph, partners="weighted", weights={"G1": 9.0})):
        masker(rows)
        for again in (copy.deepcopy(masker), pickle.loads(pickle.dumps(masker)), copy.deepcopy(masker).half()):
            assert torch.equal(again(rows).labels, copy.deepcopy(masker)(rows).labels)
            assert np.array_equal(again.weights, masker.weights)
    other = WeightedMasker(GENES, {2: 8.0})
    with pytest.raises(InputError, match=r"the saved masker used weights .*; resume with the weights of the first run"):
        other.load_state_dict(WeightedMasker(GENES, {2: 9.0}).state_dict())
    with pytest.raises(InputError, match="weights is fixed when a masker is made"):
        other.weights = np.ones(42)
    with pytest.raises(InputError, match="partners is fixed when a masker is made"):
        masker.partners = "uniform"


def test_given_seed_weights_replace_those_of_seeds_alone():
    rows, graph = torch.arange(2, 42).repeat(400, 1), DependencyGraph.from_edges([(2, 3), (4, 5)], GENES)
    more = {"mlm_probability": 0.05, "structural_ratio": 0.5, "max_partners": 0}  # one seed, one more
    chosen = torch.zeros(rows.shape)
    chosen[:, 0] = 1.0
    masker = CorrMasker(graph, weights={30: 2.0**19}, **more)
    masked = masker(rows, draw_ids=torch.arange(400), seed_weights=chosen).masked_positions
    assert (masked == torch.tensor([0, 28])).all(dim=1).double().mean() > 0.99


def test_symbols_arrays_and_files(tmp_path):
    genes = Vocabulary(("<pad>", "<mask>", "ENSG1", "ENSG2", "ENSG3"), {"ENSG1": "CD3D", "ENSG2": "CD8A"})
    array = np.array([0, np.nan, 3.0, 1.0, 0.5])
    expected = WeightedMasker(genes, array).weights
    assert expected.tolist() == [1.0, 1.0, 3.0, 1.0, 0.5]
    path = tmp_path / "weights.tsv"
    for text in (
        "gene\tweight\nCD3D\t3\n\nENSG3\t0.5\n",
        "CD3D,3.0\nENSG3 , 0.5",
        "\ufeffgene,score\nENSG1,3e0\nENSG3,.5\r\n",
    ):
        path.write_text(text, encoding="utf-8")
        for given in (path, str(path)):
            assert np.array_equal(WeightedMasker(genes, given).weights, expected)
    for given in (
        {"CD3D": 3, 4: 0.5},
        {"ENSG1": np.float32(3), "ENSG3": torch.tensor(0.5)},
        torch.tensor(array),
        array.tolist(),
    ):
        assert np.array_equal(WeightedMasker(genes, given).weights, expected)
    assert not expected.flags.writeable


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"G0": 0.0, "G3": -1},
            r"finite and above 0; got G0 \(0\), G3 \(-1\); a gene that must never be masked goes into",
        ),
        ({"G0": math.inf}, r"got G0 \(inf\); .* special_tokens_mask"),
        ({"G0": "1"}, "the weight of gene 'G0' must be a number; got '1'"),
        ({"G0": True}, "the weight of gene 'G0' must be a number; got True"),
        ({"G0": 2.0**20 + 1}, r"at most 1,048,576 times the smallest; got G0 \(1.04858e\+06\) and G1 \(1\)"),
        ({"X": 1.0}, "weights name no gene 'X' in this vocabulary of 40 genes"),
        ({0: 1.0}, "weights name no gene 0 in"),
        ({"G0": 1.0, 2: 2.0}, r"gene 2 has two weights \('G0' too\)"),
        (np.ones(40), r", \(42,\) numbers \(one for each token\), or the path of a file; got float64 \(40,\)"),
        (np.zeros(42), r"finite and above 0; got G0 \(0\), .* and 20 more"),
        (np.ones(42, bool), "weights must be a mapping"),
        (3.0, r"got float64 \(\)"),
        (None, "weights must be a mapping .* got None"),
    ],
)
def test_bad_weights(given, message):
    with pytest.raises(InputError, match=message):
        WeightedMasker(GENES, given)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("G0 3\nG1 4\n", "line 1: must be a gene, a tab or comma, and a number; got 'G0 3'"),
        ("gene,weight\nG0,3\nG1,x\n", "line 3: must be a gene, a tab or comma, and a number; got 'G1,x'"),
        (",3\n", "line 1: must be a gene"),
        ("G0,3\nNONE,4\n", "line 2: weights name no gene 'NONE'"),
        ("G0,3\nG0,4\n", r"line 2: gene 'G0' has two weights"),
        ("G0,0\n", r"finite and above 0; got G0 \(0\)"),
        ("", "has no weights"),
    ],
)
def test_bad_files(tmp_path, text, message):
    (tmp_path / "w.csv").write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        WeightedMasker(GENES, tmp_path / "w.csv")
    assert "w.csv: " in str(caught.value)
    with pytest.raises(InputError, match=r"missing\.csv is not a readable file of weights"):
        WeightedMasker(GENES, "missing.csv")


def test_who_takes_weights():
    graph = DependencyGraph.from_edges([(2, 3)], GENES)
    with pytest.raises(InputError, match="partners must be 'uniform' or 'weighted'; got 'strong'"):
        CorrMasker(graph, partners="strong")
    with pytest.raises(InputError, match="the strategy 'weighted' needs weights"):
        make_masker("weighted", vocabulary=GENES)
    for name in ("random", "span", "corrmask-balanced", "mam", "corrmask-mam"):
        for option in ({"weights": {2: 3.0}}, {"partners": "weighted"}):
            with pytest.raises(InputError, match=f"{next(iter(option))} has no meaning for the strategy '{name}'"):
                make_masker(name, vocabulary=GENES, graph=graph, **option, **({"dim": 8} if "mam" in name else {}))
    with pytest.raises(TypeError):
        MultinomialAttentionMasker(GENES, 8, graph=graph, weights={2: 3.0})
    made = make_masker("corrmask-100", graph=graph, weights={2: 3.0}, partners="weighted")
    assert (made.structural_ratio, made.partners, made.weights[2]) == (1.0, "weighted", 3.0)
