"""The collator: every kind of features, DataLoader workers of every kind, epochs, and Hugging Face's Trainer."""

from __future__ import annotations

import copy
import pickle
from collections import UserDict
from multiprocessing.reduction import ForkingPickler

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from corrmask_fast import (
    CorpusDataset,
    CorrMasker,
    DataCollatorForCorrMask,
    InputError,
    Linear,
    RaggedBatch,
    RandomMasker,
    read_corpus,
    set_num_threads,
    write_corpus,
)
from corrmask_fast.masking.engine import rows as masking_rows
from corrmask_fast.testing import Case, assert_same, make_graph, make_vocabulary

GRAPH, GRAPH_V2 = make_graph(make_vocabulary(300)), make_graph(make_vocabulary(300, v2=True))


def make_cells(n_cells=30, seed=0, least=0):
    rng = np.random.default_rng(seed)
    return [rng.choice(np.arange(4, 300), rng.integers(least, 60), replace=False).tolist() for _ in range(n_cells)]


CELLS = make_cells()


@pytest.fixture
def collator():
    return DataCollatorForCorrMask(CorrMasker(GRAPH, mlm_probability=0.3))


def assert_equal(one, other):
    assert list(one) == list(other)
    for name in one:
        assert one[name].dtype == other[name].dtype == torch.int64
        assert torch.equal(one[name], other[name]), name


def original(batch):
    return torch.where(batch["labels"] == -100, batch["input_ids"], batch["labels"])


def masks_of(batches):
    """Cell → its masked row, over batches of any width; a cell that comes twice must come out alike."""
    found = {}
    for batch in batches:
        before = original(batch)
        for row in range(len(before)):
            real = batch["attention_mask"][row].bool()
            cell = tuple(before[row][real].tolist())
            masked = batch["input_ids"][row][real].tolist(), batch["labels"][row][real].tolist()
            assert found.setdefault(cell, masked) == masked
            assert not (batch["labels"][row][~real] != -100).any()
    return found


# --------------------------------------------------------------------------------------------------------- one batch


def test_a_batch_is_padded_masked_and_labelled(collator):
    collator.set_epoch(2)
    batch = collator([{"input_ids": cell} for cell in CELLS])
    assert list(batch) == ["input_ids", "attention_mask", "labels"]
    width = max(map(len, CELLS))
    padded = np.array([cell + [0] * (width - len(cell)) for cell in CELLS])
    assert np.array_equal(original(batch).numpy(), padded)
    assert np.array_equal(batch["attention_mask"].numpy(), padded != 0)
    expected = Case("cells", GRAPH, padded).expected(epoch=2, mlm_probability=0.3)
    assert np.array_equal(batch["input_ids"].numpy(), expected.input_ids)
    assert np.array_equal(batch["labels"].numpy(), expected.labels)


FORMS = {
    "arrays": lambda: [{"input_ids": np.array(cell, np.int64)} for cell in CELLS],
    "narrow arrays": lambda: [{"input_ids": np.array(cell, np.uint16)} for cell in CELLS],
    "strided arrays": lambda: [{"input_ids": np.repeat(np.array(cell, np.int32), 2)[::2]} for cell in CELLS],
    "tensors": lambda: [{"input_ids": torch.tensor(cell, dtype=torch.int64)} for cell in CELLS],
    "tuples": lambda: [{"input_ids": tuple(cell)} for cell in CELLS],
    "lists of NumPy integers": lambda: [{"input_ids": list(np.array(cell, np.int32))} for cell in CELLS],
    "bare lists": lambda: CELLS,
    "one dict of lists": lambda: {"input_ids": CELLS, "length": [len(cell) for cell in CELLS]},
    "dict-like": lambda: UserDict({"input_ids": CELLS}),
    "dict-like features": lambda: [UserDict({"input_ids": cell}) for cell in CELLS],
    "other columns": lambda: [{"input_ids": cell, "length": len(cell), "cell_type": "B"} for cell in CELLS],
    "attention": lambda: [{"input_ids": cell, "attention_mask": [1] * len(cell)} for cell in CELLS],
    "attention, bool": lambda: [{"input_ids": c, "attention_mask": np.ones(len(c), bool)} for c in CELLS],
    "ragged": lambda: CorpusDataset(read_corpus(CELLS, GRAPH.vocabulary)).__getitems__(range(30)),
    "ragged, int64": lambda: RaggedBatch(np.cumsum([0, *map(len, CELLS)]), np.concatenate(CELLS).astype(np.int64)),
    "tuple of features": lambda: tuple({"input_ids": cell} for cell in CELLS),
}


@pytest.mark.filterwarnings("ignore:'cell_type' is left out")
@pytest.mark.parametrize("form", FORMS)
def test_all_forms_of_features_come_out_alike(collator, form):
    collator.set_epoch(1)
    assert_equal(collator(FORMS[form]()), collator([{"input_ids": cell} for cell in CELLS]))


@pytest.mark.parametrize(("multiple", "width"), [(None, 50), (1, 50), (8, 56), (64, 64), (50, 50)])
def test_widths(multiple, width):
    masker = CorrMasker(GRAPH)
    collator = DataCollatorForCorrMask(masker, pad_to_multiple_of=multiple, return_masked_positions=True)
    collator.set_epoch(0)
    batch = collator([list(range(4, 54)), list(range(60, 70))])
    assert batch["input_ids"].shape == batch["attention_mask"].shape == batch["labels"].shape == (2, width)
    assert batch["masked_positions"].shape == (2, int(width * 0.15))
    for row in range(2):
        positions = batch["masked_positions"][row]
        assert torch.equal(positions[positions >= 0], torch.nonzero(batch["labels"][row] != -100).ravel())


def test_cells_without_genes(collator):
    batch = collator([[], [4, 5, 6, 7, 8, 9, 10, 11], []])
    assert batch["attention_mask"].sum(1).tolist() == [0, 8, 0]
    assert (batch["labels"] != -100).sum(1).tolist() == [0, 2, 0]
    assert collator([[], []])["input_ids"].shape == (2, 0)


def test_masks_in_the_features_count():
    collator = DataCollatorForCorrMask(CorrMasker(GRAPH, mlm_probability=0.999))
    cell = list(range(4, 24))
    seen, fixed = [1] * 15 + [0] * 5, [0, 1] * 10
    batch = collator([{"input_ids": cell, "attention_mask": seen, "special_tokens_mask": fixed}] * 2)
    assert batch["attention_mask"].tolist() == [seen] * 2
    masked = batch["labels"] != -100
    assert not masked[:, 15:].any()
    assert not masked[:, 1::2].any()
    assert masked.sum(1).tolist() == [7, 7]  # floor(8 · 0.999)
    uneven = collator(
        [{"input_ids": cell, "attention_mask": seen}, {"input_ids": cell[:3], "attention_mask": [0, 1, 1]}]
    )
    assert uneven["attention_mask"][1].tolist() == [0, 1, 1] + [0] * 17


def test_special_tokens_are_never_masked_in_v2():
    """Today's path knows <pad> and <mask> alone, and hides <cls> and <eos> as it does genes."""
    collator = DataCollatorForCorrMask(CorrMasker(GRAPH_V2, mlm_probability=0.95, structural_ratio=1.0))
    dataset = CorpusDataset(read_corpus(make_cells(), GRAPH_V2.vocabulary))
    for features in (dataset.__getitems__(range(30)), [{"input_ids": [2, *cell, 3]} for cell in CELLS]):
        for _ in range(20):
            batch = collator(features)
            special = original(batch) < 4
            assert special.sum() >= 60
            assert not (batch["labels"] != -100)[special].any()
            assert torch.equal(batch["input_ids"][special], original(batch)[special])
            drawn = batch["input_ids"][(batch["labels"] != -100) & (batch["input_ids"] != 1)]
            assert drawn.min() >= 4


BAD_FEATURES = [
    ([], "a batch must be a non-empty list of features"),
    (None, "a batch must be a non-empty list of features; got None"),
    ({}, "a batch must be a non-empty list of features"),
    ([{"tokens": [4]}], "feature 0 has no 'input_ids'; it has 'tokens'"),
    ([{"input_ids": [4]}, {}], "feature 1 has no 'input_ids'; it has nothing"),
    ([{"input_ids": [4, 5.5]}], "input_ids of row 0 must be integers that fit int32"),
    ([{"input_ids": [4]}, {"input_ids": ["G1"]}], "input_ids of row 1 must be integers"),
    ([{"input_ids": [[4, 5]]}], "input_ids of row 0 must be integers"),
    ([{"input_ids": [2**31]}], "input_ids of row 0 must be integers that fit int32"),
    ([{"input_ids": np.array([2**31])}], "input_ids of row 0 must fit int32"),
    ([{"input_ids": np.array([2**63], np.uint64)}], "input_ids of row 0 must fit int32"),
    ([{"input_ids": np.array([4.0])}], "input_ids of row 0 must be one-dimensional integers; got 1-d float64"),
    ([{"input_ids": torch.tensor([[4]])}], "got 2-d int64"),
    ([{"input_ids": 4}], "input_ids must be a list, array or tensor of integers in each row"),
    ([{"input_ids": None}], "input_ids must be a list, array or tensor of integers in each row"),
    ([{"input_ids": [4, 5], "attention_mask": [1]}], "attention_mask must have one value for each"),
    ([{"input_ids": [4], "attention_mask": [1]}, {"input_ids": [4]}], "attention_mask must have one value for each"),
    ([{"input_ids": [4, 5], "special_tokens_mask": [1, 0, 0]}], "special_tokens_mask must have one value for each"),
    ([[4, 5], [6, 302, 7]], "token 302 in row 1, column 1 must be in [0, 302)"),
    ([np.array([4, -1])], "token -1 in row 0, column 1 must be in [0, 302)"),
    ([np.array([4, 65535], np.uint16)], "token 65535 in row 0, column 1"),
]


@pytest.mark.parametrize(("features", "message"), BAD_FEATURES, ids=range(len(BAD_FEATURES)))
def test_features_that_do_not_fit(collator, features, message):
    with pytest.raises(InputError) as error:
        collator(features)
    assert message in str(error.value)


def test_other_bad_input(collator):
    for multiple in (0, -8, 1.5):
        with pytest.raises(InputError, match="pad_to_multiple_of must be an integer >= 1"):
            DataCollatorForCorrMask(collator.masker, pad_to_multiple_of=multiple)
    for epoch in (-1, 1.0, None, 2**63):
        with pytest.raises(InputError, match="epoch must be an integer in"):
            collator.set_epoch(epoch)


def test_a_corpus_of_another_vocabulary_is_refused(collator):
    for vocabulary in (make_vocabulary(301), make_vocabulary(300, v2=True)):
        dataset = CorpusDataset(read_corpus([[4, 5], [6]], vocabulary))
        with pytest.raises(InputError, match="the corpus and the masker's graph have different vocabularies"):
            collator(dataset.__getitems__([0, 1]))


# ------------------------------------------------------------------------------------------------------------ epochs


def test_an_epoch_decides_the_masks(collator):
    features = CELLS
    batches = []
    for epoch in (0, 1, 0, 2**63 - 1):
        collator.set_epoch(epoch)
        batches.append(collator(features))
        assert_equal(collator(features), batches[-1])
    assert_equal(batches[0], batches[2])
    assert not torch.equal(batches[0]["labels"], batches[1]["labels"])
    other = DataCollatorForCorrMask(CorrMasker(GRAPH, mlm_probability=0.3, seed=1))
    other.set_epoch(0)
    assert not torch.equal(other(features)["labels"], batches[0]["labels"])


def test_without_an_epoch_every_call_is_fresh_and_seeded(collator):
    def draw():
        torch.manual_seed(7)
        fresh = DataCollatorForCorrMask(collator.masker)
        return [fresh(CELLS)["labels"] for _ in range(5)]

    calls = draw()
    assert len({labels.numpy().tobytes() for labels in calls}) == 5
    assert all(torch.equal(a, b) for a, b in zip(calls, draw(), strict=True))
    torch.manual_seed(8)
    assert not torch.equal(DataCollatorForCorrMask(collator.masker)(CELLS)["labels"], calls[0])


def test_the_salt_of_a_call_worked_by_hand(collator):
    """draw_id = mix(content + mix(nonce)), the nonce from torch's seed and the count of calls (SPEC 3)."""
    from corrmask_fast.reference import mix

    torch.manual_seed(3)
    fresh = DataCollatorForCorrMask(collator.masker)
    indptr, tokens = np.cumsum([0, *map(len, CELLS)]), np.concatenate(CELLS).astype(np.int64)
    for call in range(3):
        expected = collator.masker.mask_ragged(indptr, tokens, salt=mix(mix(3) + call))
        assert np.array_equal(fresh(CELLS)["labels"].numpy(), expected.labels)


# ----------------------------------------------------------------------------------------------------------- workers


def load(collator, *, batch_size=4, workers=0, context=None, **options):
    dataset = CorpusDataset(read_corpus(make_cells(40, least=1), GRAPH.vocabulary))
    return DataLoader(
        dataset, batch_size=batch_size, collate_fn=collator, num_workers=workers, multiprocessing_context=context,
        shuffle=True, generator=torch.Generator().manual_seed(1), **options,
    )  # fmt: skip


def test_any_number_of_workers_and_batch_size_gives_the_same_masks(collator):
    collator.set_epoch(4)
    expected = masks_of(load(collator, batch_size=40))
    assert len(expected) == 40
    for workers, batch_size in ((0, 1), (0, 7), (1, 3), (2, 4), (2, 13)):
        batches = load(collator, workers=workers, batch_size=batch_size, context="fork" if workers else None)
        assert masks_of(batches) == expected


def test_workers_do_not_hang_where_the_parent_used_threads(collator, monkeypatch):
    """Parallel loops of Numba or OpenMP would: a forked child has none of its parent's threads."""
    monkeypatch.setattr(masking_rows, "MIN_TOKENS", 1)
    monkeypatch.setattr(masking_rows, "MIN_TOKENS_OF_RANGE", 1)
    try:
        set_num_threads(3)
        collator.set_epoch(4)
        expected = masks_of(load(collator, batch_size=40))  # three threads in this process
        torch.ones(500, 500) @ torch.ones(500, 500)
        assert masks_of(load(collator, workers=2, batch_size=20, context="fork", timeout=120)) == expected
    finally:
        set_num_threads(None)


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_running_workers_hear_of_a_new_epoch(collator, context):
    loader = load(collator, workers=2, context=context, persistent_workers=True)
    for epoch in (0, 1, 5, 0):
        collator.set_epoch(epoch)
        assert masks_of(loader) == masks_of(load(collator, batch_size=9))  # the latter in this process


def test_the_epoch_survives_another_way_of_sharing_memory(collator):
    """PyTorch moves a shared tensor when it is sent to a process in another way than it was shared in."""
    before = torch.multiprocessing.get_sharing_strategy()
    collator.set_epoch(3)
    expected = masks_of(load(collator, batch_size=9))
    try:
        for strategy in sorted(torch.multiprocessing.get_all_sharing_strategies()):
            torch.multiprocessing.set_sharing_strategy(strategy)
            ForkingPickler.dumps(collator)
            assert masks_of(load(collator, batch_size=9)) == expected
    finally:
        torch.multiprocessing.set_sharing_strategy(before)


@pytest.mark.parametrize("options", [{"workers": 0}, {"workers": 2}, {"workers": 2, "persistent_workers": True}])
def test_every_epoch_is_fresh_without_set_epoch(collator, options):
    torch.manual_seed(0)
    loader = load(collator, context="fork" if options["workers"] else None, **options)
    epochs = [masks_of(loader) for _ in range(3)]
    for one, other in ((0, 1), (1, 2), (0, 2)):
        assert epochs[one].keys() == epochs[other].keys()
        same = sum(epochs[one][cell] == epochs[other][cell] for cell in epochs[one])
        assert same < 12  # the shortest cells have nothing to mask


def test_workers_draw_apart_without_set_epoch(collator):
    """The same cell in two workers' first batches is masked differently."""
    torch.manual_seed(0)
    dataset = CorpusDataset(read_corpus([list(range(4, 200))] * 2, GRAPH.vocabulary))
    one, other = DataLoader(dataset, batch_size=1, collate_fn=collator, num_workers=2, multiprocessing_context="fork")
    assert not torch.equal(one["labels"], other["labels"])


def test_the_stock_collator_repeats_its_masks_and_ours_does_not(collator):
    transformers = pytest.importorskip("transformers")
    from corrmask_fast.masking.stock import StockPreCollator

    def epochs(collate, seed):
        torch.manual_seed(seed)
        cells = [{"input_ids": list(range(4, 200))}] * 4
        loader = DataLoader(cells, batch_size=2, collate_fn=collate, num_workers=1, multiprocessing_context="fork")
        return [torch.cat([batch["labels"] for batch in loader]) for _ in range(2)]

    stock = transformers.DataCollatorForLanguageModeling(StockPreCollator(GRAPH.vocabulary), seed=3)
    first, second = epochs(stock, 0)
    assert torch.equal(first, second)
    first, second = epochs(collator, 0)
    assert not torch.equal(first, second)


# ------------------------------------------------------------------------------------------------------------ copies


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda collator: pickle.loads(pickle.dumps(collator))])
def test_copies_have_an_epoch_of_their_own(collator, copied):
    collator.set_epoch(3)
    copy_of_it = copied(collator)
    assert_equal(copy_of_it(CELLS), collator(CELLS))
    copy_of_it.set_epoch(4)
    expected = collator(CELLS)
    assert not torch.equal(copy_of_it(CELLS)["labels"], expected["labels"])
    assert copy_of_it._epoch.is_shared()  # its own workers must hear of its epochs
    collator.set_epoch(4)
    assert_equal(copy_of_it(CELLS), collator(CELLS))


def test_a_masker_on_a_device_cannot_go_to_workers(collator):
    collator.masker.to("meta")  # as on a GPU: not on the CPU
    for send in (pickle.dumps, copy.deepcopy):
        with pytest.raises(InputError, match=r"lies on meta and cannot go to a worker process; give the collator"):
            send(collator)
    with pytest.raises(InputError, match=r"this masker lies on meta, and masking on the CPU needs|lies on meta"):
        collator(CELLS)


# ----------------------------------------------------------------------------------------------------------- Trainer


def test_works_inside_trainer(tmp_path):
    """On a datasets folder with columns that the model does not take, and on a CorpusDataset."""
    transformers, datasets = pytest.importorskip("transformers"), pytest.importorskip("datasets")
    pytest.importorskip("accelerate")
    corpus = read_corpus(make_cells(16, least=20), GRAPH.vocabulary)
    corpus.obs = {"cell_type": np.array(["B", "T"] * 8)}
    write_corpus(corpus, tmp_path / "cells.dataset")
    config = transformers.BertConfig(
        vocab_size=302, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8,
        max_position_embeddings=64,
    )  # fmt: skip
    seen = []

    class Collator(DataCollatorForCorrMask):
        def __call__(self, features):
            seen.append(features)
            return super().__call__(features)

    losses = []
    for dataset in (datasets.load_from_disk(str(tmp_path / "cells.dataset")), CorpusDataset(corpus)):
        torch.manual_seed(0)
        collator = Collator(CorrMasker(GRAPH))
        collator.set_epoch(0)
        trainer = transformers.Trainer(
            transformers.BertForMaskedLM(config),
            transformers.TrainingArguments(
                str(tmp_path / "out"), max_steps=2, per_device_train_batch_size=8, report_to=[], use_cpu=True,
                save_strategy="no", disable_tqdm=True, logging_steps=1, learning_rate=0.0, remove_unused_columns=True,
            ),
            data_collator=collator,
            train_dataset=dataset,
        )  # fmt: skip
        trainer.train()
        losses.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    assert {tuple(row) for features in seen for row in features} == {("input_ids",)}
    assert losses[0] == losses[1]  # the same cells in the same order with the same masks
    assert all(4 < loss < 8 for loss in losses[0])  # log(302) = 5.7


def test_masks_of_a_whole_epoch_equal_the_oracle(collator):
    collator.set_epoch(6)
    dataset = CorpusDataset(read_corpus(make_cells(40, least=1), GRAPH.vocabulary))
    for begin, batch in zip(range(0, 40, 8), DataLoader(dataset, batch_size=8, collate_fn=collator), strict=True):
        rows = dataset.__getitems__(range(begin, begin + 8))
        padded = np.zeros(batch["input_ids"].shape, np.int64)
        for row, cell in enumerate(rows):
            padded[row, : cell["input_ids"].size] = cell["input_ids"]
        expected = Case("batch", GRAPH, padded).expected(epoch=6, mlm_probability=0.3)
        positions = torch.from_numpy(expected.masked_positions)
        got = type(expected)(batch["input_ids"], batch["labels"], positions)
        assert_same(expected, got, f"batch from {begin}")


def test_a_frozen_copy_is_for_evaluation():
    """Its masks are of an epoch that no training reaches, at the last rates; the collator goes on as it was."""
    vocabulary = make_vocabulary(40)
    rising = RandomMasker(vocabulary, mlm_probability=Linear(0.1, 0.5, steps=10), seed=3)
    collator, cells = DataCollatorForCorrMask(rising), [[*range(2, 22)]]
    assert collator.epoch is None
    collator.set_epoch(4)
    frozen = collator.frozen()
    collator.set_epoch(1)  # an earlier epoch is no error: a resume needs it
    assert (collator.epoch, frozen.epoch) == (1, 2**63 - 1)
    expected = RandomMasker(vocabulary, mlm_probability=0.5, seed=3)(torch.tensor(cells), epoch=2**63 - 1)
    for _ in range(2):
        assert torch.equal(frozen(cells)["labels"], expected.labels)
    assert (collator(cells)["labels"] != -100).sum() == 2
