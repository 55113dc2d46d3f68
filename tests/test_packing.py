"""Packed batches: the bits of the padded ones, without padding, under transformers' names."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from corrmask_fast import (
    CorpusDataset,
    CorrMasker,
    DataCollatorForCorrMask,
    DataCollatorForCounts,
    InputError,
    PaddingCollator,
    RandomMasker,
    RankEncoder,
    get_num_threads,
    read_corpus,
    set_num_threads,
)
from corrmask_fast.testing import PARAMETERS, STRATEGY_PARAMETERS, Case, make_graph, make_vocabulary

GRAPHS = {
    "V1": make_graph(make_vocabulary(2100)),
    "V2": make_graph(make_vocabulary(2100, v2=True)),
    "V2, genes first": make_graph(make_vocabulary(2100, v2=True, genes_first=True)),
}
LENGTHS = [5, 0, 1, 63, 64, 65, 0, 2048, 200, 1, 0]
PACKED = ["position_ids", "cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k"]


def make_cells(graph, lengths=LENGTHS, seed=0):
    """Cells of near genes, between <cls> and <eos> where the vocabulary has them; a cell of length 0 has neither."""
    rng, vocabulary = np.random.default_rng(seed), graph.vocabulary
    (lo, hi), ends = vocabulary.gene_range, (vocabulary.cls_token_id, vocabulary.eos_token_id)
    cells = []
    for length in lengths:
        width = min(hi - lo, 3 * length + 1)
        genes = (rng.integers(lo, hi - width + 1) + rng.choice(width, length, replace=False)).tolist()
        cells.append(genes if ends[0] is None or length < 2 else [ends[0], *genes[:-2], ends[1]])
    return cells


def collators(masker, **options):
    """A collator that pads and one that packs, of the same epoch."""
    both = [DataCollatorForCorrMask(masker, return_masked_positions=True, **options, **more)
            for more in ({}, {"packing": True})]  # fmt: skip
    for one in both:
        one.set_epoch(3)
    return both


def assert_packed(packed, padded, lengths, start=0):
    """A packed batch holds the padded one's rows, one after the other, and says where they begin."""
    inside = torch.arange(padded["input_ids"].shape[1]) < torch.tensor(lengths)[:, None]
    for name in ("input_ids", "labels"):
        assert torch.equal(packed[name], padded[name][inside][None]), name
        assert packed[name].dtype == torch.int64
    assert packed["position_ids"].tolist() == [[start + i for length in lengths for i in range(length)]]
    for name in ("cu_seq_lens_q", "cu_seq_lens_k"):
        assert packed[name].tolist() == np.cumsum([0, *lengths]).tolist()
        assert packed[name].dtype == torch.int32
    assert packed["max_length_q"] == packed["max_length_k"] == max(lengths)
    assert type(packed["max_length_q"]) is int
    assert "attention_mask" not in packed


@pytest.mark.parametrize("parameters", [*PARAMETERS, *STRATEGY_PARAMETERS], ids=str)
def test_masks_are_those_of_the_padded_batch(parameters):
    graph = GRAPHS["V1"]
    cells = make_cells(graph)
    width = max(LENGTHS)
    case = Case("cells", graph, np.array([cell + [0] * (width - len(cell)) for cell in cells]))
    pads, packs = collators(case.masker(**parameters))
    padded, packed = pads(cells), packs(cells)
    assert (padded["labels"] >= 0).sum() > 100
    assert_packed(packed, padded, LENGTHS)
    masked = (packed["labels"][0] >= 0).nonzero().flatten().tolist()
    positions = packed["masked_positions"]
    assert positions.shape == (1, int(np.floor(sum(LENGTHS) * parameters.get("mlm_probability", 0.15))))
    assert positions[0].tolist() == masked + [-1] * (positions.shape[1] - len(masked))


@pytest.mark.parametrize("kind", GRAPHS)
def test_cells_of_a_corpus_are_packed_by_any_number_of_threads(kind):
    graph, threads = GRAPHS[kind], get_num_threads()
    rng = np.random.default_rng(1)
    genes = [rng.choice(np.arange(8, 2090), length, replace=False) for length in rng.integers(0, 2048, 200)]
    dataset = CorpusDataset(read_corpus(genes, graph.vocabulary))
    pads, packs = collators(CorrMasker(graph))
    padded = pads(dataset[:])
    lengths = padded["attention_mask"].sum(1).tolist()
    try:
        for n in (2, 1):
            set_num_threads(n)
            assert_packed(packs(dataset[:]), padded, lengths)
    finally:
        set_num_threads(threads)
    as_dicts = [{"input_ids": list(cell["input_ids"])} for cell in dataset[:]]
    assert torch.equal(packs(as_dicts)["input_ids"], packs(dataset[:])["input_ids"])


def test_counts_are_packed():
    vocabulary = make_vocabulary(40)
    names = [f"G{i}" for i in range(40)]
    encoder = RankEncoder(vocabulary, dict.fromkeys(names, 5.0), names)
    counts = np.random.default_rng(0).poisson(0.7, (12, 40))
    counts[4] = 0
    pads, packs = (DataCollatorForCounts(encoder, RandomMasker(vocabulary, mlm_probability=0.3), **more)
                   for more in ({}, {"packing": True}))  # fmt: skip
    for one in (pads, packs):
        one.set_epoch(1)
    with pytest.warns(UserWarning, match="1 of 12 cells of a batch have no count .*: their rows hold no gene"):
        padded, packed = pads(counts), packs(counts)
    assert_packed(packed, padded, (counts > 0).sum(1).tolist())


def test_position_ids_begin_where_the_model_counts_from():
    cells = make_cells(GRAPHS["V1"])
    masker = RandomMasker(GRAPHS["V1"].vocabulary)
    packs = DataCollatorForCorrMask(masker, packing=True, position_ids_start=2)
    packs.set_epoch(3)
    assert_packed(packs(cells), collators(masker)[0](cells), LENGTHS, start=2)


def test_other_columns_come_along():
    cells = make_cells(GRAPHS["V1"], [3, 1, 4])
    types = [[1, 0, 1], [1], [0, 1, 0, 1]]
    given = [
        {"input_ids": cell, "token_type_ids": types[i], "ner_labels": np.array(types[i], np.int8), "age": i / 2,
         "batch": i, "latent": [[0.5] * 2] * 6, "two": np.full((len(cell), 2), i), "length": len(cell)}
        for i, cell in enumerate(cells)
    ]  # fmt: skip
    pads, packs = collators(RandomMasker(GRAPHS["V1"].vocabulary, mlm_probability=0.4))
    padded, packed = pads(given), packs(given)
    assert_packed(packed, padded, [3, 1, 4])
    for name in ("token_type_ids", "ner_labels"):
        assert packed[name].tolist() == [[1, 0, 1, 1, 0, 1, 0, 1]]
        assert packed[name].dtype == torch.int64
    assert packed["two"].tolist() == [[[i, i] for i, cell in enumerate(cells) for _ in cell]]
    for name in ("age", "batch", "latent"):  # a number, or an array, of each cell
        assert torch.equal(packed[name], padded[name])
    assert "length" not in packed


def test_values_are_a_part_of_the_cell():
    rng, cells = np.random.default_rng(0), make_cells(GRAPHS["V1"], [30] * 20 + [12], seed=1)
    given = [{"input_ids": cells[i % 2 if i < 20 else i], "values": rng.random(len(cell))}
             for i, cell in enumerate(cells)]  # fmt: skip
    pads, packs = collators(RandomMasker(GRAPHS["V1"].vocabulary, mlm_probability=0.4))
    padded, packed = pads(given), packs(given)
    assert_packed(packed, padded, [30] * 20 + [12])
    assert len({tuple(row) for row in packed["labels"][0, :600].reshape(20, 30).tolist()}) == 20
    assert packed["values"].tolist() == [[np.float32(value) for cell in given for value in cell["values"]]]


def test_each_cell_has_its_graph():
    vocabulary = make_vocabulary(200)
    masker = CorrMasker([make_graph(vocabulary), make_graph(vocabulary, seed=1)], structural_ratio=1.0)
    given = [{"input_ids": list(range(10, 190)), "tissue": tissue} for tissue in ("lung", "blood", "lung")]
    options = {"graph_column": "tissue", "graph_numbers": {"lung": 0, "blood": 1}}
    pads, packs = collators(masker, **options)
    padded, packed = pads(given), packs(given)
    assert_packed(packed, padded, [180] * 3)
    one, other, again = packed["labels"].reshape(3, 180).tolist()
    assert one == again != other
    assert "tissue" not in packed


def test_protected_tokens_are_protected():
    cells = make_cells(GRAPHS["V1"], [40, 9])
    given = [{"input_ids": cell, "special_tokens_mask": [1] * (len(cell) - 4) + [0] * 4} for cell in cells]
    pads, packs = collators(RandomMasker(GRAPHS["V1"].vocabulary, mlm_probability=0.9))
    packed = packs(given)
    assert_packed(packed, pads(given), [40, 9])
    assert (packed["labels"][0] >= 0).nonzero().flatten().tolist() == packed["masked_positions"][0, :6].tolist()
    assert (packed["labels"] >= 0).sum() == 6


@pytest.mark.parametrize("workers", [0, 2])
def test_masks_follow_the_epoch_in_any_worker(workers):
    graph = GRAPHS["V2"]
    dataset = CorpusDataset(read_corpus(make_cells(GRAPHS["V1"], [20, 7, 90, 33] * 5), graph.vocabulary))
    pads, packs = collators(CorrMasker(graph, mlm_probability=0.4))
    loader = DataLoader(dataset, 7, collate_fn=packs, num_workers=workers, persistent_workers=workers > 0,
                        multiprocessing_context="fork" if workers else None)  # fmt: skip
    seen = []
    for epoch in (0, 1, 0):
        for one in (pads, packs):
            one.set_epoch(epoch)
        batches = list(loader)
        assert len(batches) == 3
        for i, batch in enumerate(batches):
            padded = pads(dataset[7 * i : 7 * i + 7])
            assert_packed(batch, padded, padded["attention_mask"].sum(1).tolist())
        seen.append(torch.cat([batch["labels"][0] for batch in batches]))
    assert torch.equal(seen[0], seen[2])
    assert not torch.equal(seen[0], seen[1])


def test_without_an_epoch_every_call_draws_afresh():
    packs = DataCollatorForCorrMask(RandomMasker(GRAPHS["V1"].vocabulary), packing=True)
    cells = make_cells(GRAPHS["V1"])
    one, other = packs(cells), packs(cells)
    assert not torch.equal(one["labels"], other["labels"])
    assert torch.equal(packs.frozen(4)(cells)["labels"], packs.frozen(4)(cells)["labels"])


def test_transformers_flattens_the_same_masked_cells_to_the_same_row():
    transformers = pytest.importorskip("transformers", minversion="5")
    pads, packs = collators(CorrMasker(GRAPHS["V2"]))
    lengths = [length for length in LENGTHS if length]  # transformers leaves empty cells out
    cells = make_cells(GRAPHS["V2"], lengths)
    padded, packed = pads(cells), packs(cells)
    rows = zip(padded["input_ids"], padded["labels"], lengths, strict=True)
    features = [{"input_ids": ids[:length], "labels": labels[:length]} for ids, labels, length in rows]
    flattened = transformers.DataCollatorWithFlattening(return_flash_attn_kwargs=True)(features)
    flattened["labels"][0, packed["cu_seq_lens_q"][:-1].long()] = packed["labels"][
        0, packed["cu_seq_lens_q"][:-1].long()
    ]
    del packed["masked_positions"]
    assert packed.keys() == flattened.keys()
    for name, value in flattened.items():
        assert type(value) is type(packed[name])
        assert torch.equal(torch.as_tensor(packed[name]), torch.as_tensor(value)), name
        assert isinstance(value, int) or packed[name].dtype == value.dtype


def test_bionemo_flattens_what_the_collator_pads():
    """Stands in for DataCollatorWithFlattening of bionemo-recipes (esm2), which wraps a collator.

    It calls ``collator(features, return_tensors=None)``, takes ``input_ids`` and ``labels`` of the batch where its
    ``attention_mask`` is 1, counts the ``input_ids`` of each feature, and reads ``collator.tokenizer.pad_token_id``
    to append padding. The features are iterated over, and indexed by 0.
    """
    graph = GRAPHS["V2"]
    dataset = CorpusDataset(read_corpus(make_cells(GRAPHS["V1"], [20, 7, 90]), graph.vocabulary))
    pads, packs = collators(CorrMasker(graph, mlm_probability=0.4))
    for features in (dataset[:], list(dataset[:]), [{"input_ids": cell["input_ids"].tolist()} for cell in dataset[:]]):
        padded, packed = pads(features, return_tensors=None), packs(features)
        seen = padded["attention_mask"].bool()
        for name in ("input_ids", "labels"):
            assert torch.equal(padded[name][seen][None], packed[name])
        lengths = [len(feature["input_ids"]) for feature in features]
        assert np.cumsum([0, *lengths]).tolist() == packed["cu_seq_lens_q"].tolist()
        assert "labels" not in features[0]
    assert isinstance(pads.tokenizer.pad_token_id, int)


def test_what_cannot_be_packed_is_refused():
    masker = RandomMasker(make_vocabulary(60))
    for options, message in (
        ({"packing": True, "compat": "geneformer"}, "masks padded rows, as Geneformer does; leave out packing"),
        ({"packing": True, "pad_to_multiple_of": 8}, "a packed row has no padding; leave out pad_to_multiple_of"),
        ({"position_ids_start": 2}, "with packing=True alone; leave out position_ids_start"),
        ({"packing": True, "position_ids_start": -1}, "position_ids_start must be"),
    ):
        with pytest.raises(InputError, match=message):
            DataCollatorForCorrMask(masker, **options)
    packs = DataCollatorForCorrMask(masker, packing=True)
    with pytest.raises(InputError, match="masked in the collator, not on the device; use masking='worker'"):
        PaddingCollator.like(packs)
    with pytest.raises(InputError, match="all cells of the batch are empty"):
        packs([[], []])
    with pytest.raises(InputError, match="row 1 has some at column 2; give each cell its own tokens alone"):
        packs([[5, 6], [7, 8, 0]])
    with pytest.raises(InputError, match="row 2 has some at column 0"):
        packs([{"input_ids": [5, 6], "attention_mask": mask} for mask in ([1, 1], [1, 1], [0, 1])])
    with pytest.raises(InputError, match=r"999"):
        packs([[5, 6], [7, 999]])
    for name in PACKED:
        with pytest.raises(InputError, match=f"a feature is named '{name}', and the collator makes that one itself"):
            packs([{"input_ids": [5, 6], name: [1, 2]}])
