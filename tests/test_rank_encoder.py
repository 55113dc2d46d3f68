"""Counts in memory to ranked cells and masked batches: the kernel and its oracle, every kind of batch, bad input."""

from __future__ import annotations

import pickle
import warnings

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from count_cases import GENES, NAMES, cells_of, some_counts, tokenize, write_h5ad
from torch.overrides import TorchFunctionMode
from torch.utils.data import DataLoader

from corrmask_fast import (
    CorpusDataset,
    CorrMasker,
    CountsDataset,
    DataCollatorForCorrMask,
    DataCollatorForCounts,
    InputError,
    RandomMasker,
    RankEncoder,
    Vocabulary,
    read_corpus,
    set_num_threads,
)
from corrmask_fast.cells.count_batches import CountRows
from corrmask_fast.cells.encoding import EncodingTables
from corrmask_fast.kernels.encode import NOT_COUNTED
from corrmask_fast.reference_encode import encode_cell
from corrmask_fast.testing import make_graph

anndata = pytest.importorskip("anndata")
pandas = pytest.importorskip("pandas")

MEDIANS = {name: 100.0 + 37 * (i % 5) for i, name in enumerate(NAMES)}
COUNTS = some_counts()
ENCODER = RankEncoder(GENES, MEDIANS, NAMES)


def ragged(batch):
    return [batch.tokens[a:b].tolist() for a, b in zip(batch.indptr[:-1], batch.indptr[1:], strict=True)]


# ------------------------------------------------------------------------------------------- the kernel and the oracle


def rows_of(case, rng, n_columns, dtype):
    """Cells of one kind as lists of (column, count)."""
    rows = []
    for _ in range(40):
        n = int(rng.integers(0, n_columns + 1))
        columns = np.sort(rng.choice(n_columns, n, replace=False))
        counts = rng.geometric(0.3, n)
        if case == "zeros":
            counts[rng.random(n) < 0.4] = 0
        elif case == "unsorted":
            columns = rng.permutation(columns)
        elif case == "repeated" and n > 1:
            columns[1:][rng.random(n - 1) < 0.3] = columns[0]
        elif case == "all equal":
            counts[:] = 3
        elif case == "wide":
            counts = 2 ** rng.integers(0, 31, n)
        rows.append((columns, counts.astype(dtype) * (dtype(0.37) if case == "fractional" else dtype(1))))
    return rows


CASES = ("usual", "zeros", "unsorted", "repeated", "all equal", "wide", "fractional", "beyond 2**53", "other features")


SHAPES = (30, 2048), (1500, 700), (5000, 1024)  # columns and the most genes of a cell
TRIED = [
    (case, dtype, columns_dtype, shape)
    for case in CASES
    for dtype in (np.float32, np.float64, np.int32)
    for columns_dtype in (np.int32, np.int64)
    for shape in SHAPES
    if not (dtype is np.int32 and case in {"fractional", "beyond 2**53"})
    and (columns_dtype, shape) != (np.int64, SHAPES[2])
]


@pytest.mark.parametrize(("case", "dtype", "columns_dtype", "shape"), TRIED)
def test_the_kernel_gives_the_tokens_of_the_oracle(case, dtype, columns_dtype, shape):
    n_columns, limit = shape
    rng = np.random.default_rng(n_columns + CASES.index(case))
    rows = rows_of(case, rng, n_columns, dtype)
    if case == "beyond 2**53":
        rows = [(columns, np.where(np.arange(counts.size) == 0, dtype(2.0**60), counts)) for columns, counts in rows]
    tokens = np.where(rng.random(n_columns) < 0.1, -1, 2 + rng.permutation(n_columns)).astype(np.int32)
    if case == "other features":
        tokens[::7] = NOT_COUNTED
    # Medians with many ties: several genes of one count have one value.
    medians = (
        rng.choice([0.5, 1.0, 1.5, 7.0], n_columns + 2) if case != "usual" else rng.gamma(2, 1, n_columns + 2) + 0.1
    )
    totals = rng.integers(1, 10**6, len(rows)).astype(float) if case == "wide" else None
    indptr = np.append(0, np.cumsum([columns.size for columns, _ in rows]))
    cells = CountRows(
        indptr, np.concatenate([c for c, _ in rows]).astype(columns_dtype), np.concatenate([c for _, c in rows])
    )
    tables = EncodingTables(tokens, medians, case != "other features", 10_000.0, case == "fractional", limit)
    found_indptr, found_tokens, n_found = tables.encode(cells, totals, lambda *_: AssertionError("no count"))
    token_of = [None if token == NOT_COUNTED else int(token) for token in tokens]
    for r, (columns, counts) in enumerate(rows):
        entries = list(zip(columns.tolist(), counts.astype(float).tolist(), strict=True))
        total = None if totals is None else totals[r]
        right = encode_cell(entries, token_of, dict(enumerate(medians.tolist())), total=total, fractional=True)
        assert found_tokens[found_indptr[r] : found_indptr[r + 1]].tolist() == right[:limit]
        assert n_found[r] == len(right)


def test_the_oracle_by_hand():
    # 6 counts; per 12: 2 and 6 and 4; by medians 1, 6, 2: 2, 1, 2: the tie goes to the lower token.
    assert encode_cell([(0, 1), (1, 3), (2, 2)], [7, 5, 6], {7: 1.0, 5: 6.0, 6: 2.0}, target_sum=12.0) == [6, 7, 5]
    assert encode_cell([(0, 1), (1, 3)], [7, -1], {7: 1.0}) == [7]
    assert encode_cell([(0, 1), (1, 0.5)], [7, None], {7: 1.0}) == [7]
    assert encode_cell([], [7], {7: 1.0}, total=0.0) == []
    for entries, options in (([(0, -1)], {}), ([(0, 0.5)], {}), ([(0, float("nan"))], {}), ([(0, 1)], {"total": 0.0})):
        with pytest.raises(ValueError, match="is no"):
            encode_cell(entries, [7], {7: 1.0}, **options)


def test_ties_and_outliers_in_any_number():
    """Runs of equal cut keys are sorted whole: many of them, few, and beside a value far from all others."""
    for n in (2, 16, 17, 300, 4000):
        for counts in (np.ones(n), np.append(np.ones(n - 1), 2.0**30), np.arange(1, n + 1) % 3 + 1):
            medians = np.append(
                [1.0, 1.0], np.nextafter(1.0, 2.0) ** np.arange(n)
            )  # values that differ in their last bits
            tokens = np.random.default_rng(n).permutation(n).astype(np.int32) + 2
            tables = EncodingTables(tokens, medians, True, 10_000.0, False, 10**6)
            cells = CountRows(np.array([0, n]), np.arange(n), counts.astype(np.float64))
            _, found, _ = tables.encode(cells, None, lambda *_: AssertionError("no count"))
            entries = list(enumerate(counts.tolist()))
            assert found.tolist() == encode_cell(entries, tokens.tolist(), dict(enumerate(medians.tolist())))


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_change_nothing(threads):
    counts = sp.csr_matrix(np.tile(COUNTS, (20, 1)))
    try:
        set_num_threads(threads)
        assert ragged(ENCODER(counts)) == ragged(ENCODER(sp.csr_matrix(COUNTS))) * 20
    finally:
        set_num_threads(None)


# ----------------------------------------------------------------------------------------------------- kinds of batches


def as_anndata(counts):
    return anndata.AnnData(sp.csr_matrix(counts), var=pandas.DataFrame(index=list(NAMES)))


KINDS = {
    "csr": sp.csr_matrix,
    "csr array": sp.csr_array,
    "csc": sp.csc_matrix,
    "coo": sp.coo_matrix,
    "dense": np.asarray,
    "float64": lambda counts: sp.csr_matrix(counts.astype(np.float64)),
    "uint16": lambda counts: sp.csr_matrix(counts.astype(np.uint16)),
    "int64": lambda counts: sp.csr_matrix(counts.astype(np.int64)),
    "tensor": torch.from_numpy,
    "sparse tensor": lambda counts: torch.from_numpy(counts).to_sparse_csr(),
    "coo tensor": lambda counts: torch.from_numpy(counts).to_sparse(),
    "AnnData": as_anndata,
    "view": lambda counts: as_anndata(np.concatenate([counts, counts]))[: len(counts)],
    "mapping": lambda counts: {"X": sp.csr_matrix(counts), "obs": None},
    "rows": lambda counts: [sp.csr_matrix(row) for row in counts],
    "dense rows": list,
    "samples": lambda counts: [{"X": sp.csr_matrix(row)} for row in counts],
}


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")
@pytest.mark.parametrize("kind", list(KINDS))
def test_every_kind_of_batch_gives_the_cells_of_tokenize(tmp_path, kind):
    path = write_h5ad(tmp_path / "cells.h5ad", sp.csr_matrix(COUNTS))
    expected = cells_of(tokenize(path, tmp_path / "out.npz", medians=MEDIANS)[1])
    batch = ENCODER(KINDS[kind](COUNTS))
    assert [cell for cell in ragged(batch) if cell] == expected
    assert batch.tokens.dtype == np.int32
    assert batch.vocabulary is GENES


def test_genes_are_matched_as_in_files_and_once(monkeypatch):
    encoder = RankEncoder(GENES, MEDIANS)
    cells = as_anndata(COUNTS)
    by_symbol = cells.copy()
    by_symbol.var_names = [f"SYM{i}" for i in range(12)]
    mixed = cells[:, ::-1].copy()
    for adata in (cells, by_symbol, mixed, cells[3:9]):
        rows = slice(3, 9) if adata.n_obs == 6 else slice(None)
        assert ragged(encoder(adata)) == ragged(ENCODER(sp.csr_matrix(COUNTS)))[rows]
    monkeypatch.setattr("corrmask_fast.cells.rank_encoder.match_genes", None)
    encoder(cells[:2])  # the genes of the batch before
    table = pandas.DataFrame({"ensembl_id": NAMES}, index=[f"x{i}" for i in range(12)])
    monkeypatch.undo()
    assert ragged(RankEncoder(GENES, MEDIANS, table)(COUNTS)) == ragged(ENCODER(COUNTS))
    retired = RankEncoder(GENES, MEDIANS, ["OLD", *NAMES[1:]], gene_mapping={"OLD": NAMES[0]})
    assert ragged(retired(COUNTS)) == ragged(ENCODER(COUNTS))


def test_genes_named_by_a_column_are_matched_anew_where_the_column_changes():
    """The index of two batches may be the same, and their genes others (CELLxGENE numbers them)."""
    encoder = RankEncoder(GENES, MEDIANS)
    order = np.random.default_rng(0).permutation(12)
    for columns in (np.arange(12), order):
        var = pandas.DataFrame({"feature_id": np.array(NAMES)[columns]}, index=list(map(str, range(12))))
        cells = anndata.AnnData(sp.csr_matrix(COUNTS[:, columns]), var=var)
        assert ragged(encoder(cells)) == ragged(ENCODER(COUNTS))
    typed = cells.copy()
    typed.var["feature_types"] = ["Gene Expression"] * 11 + ["Antibody Capture"]
    assert ragged(encoder(typed)) != ragged(ENCODER(COUNTS))
    assert ragged(encoder({"X": COUNTS, "var": list(NAMES)})) == ragged(ENCODER(COUNTS))
    assert ragged(encoder(pandas.DataFrame(COUNTS, columns=NAMES))) == ragged(ENCODER(COUNTS))


def test_a_batch_that_names_the_genes_in_another_order_is_refused():
    for batch in (as_anndata(COUNTS)[:, ::-1], pandas.DataFrame(COUNTS, columns=NAMES[::-1])):
        with pytest.raises(InputError, match="names the encoder's genes in another order; give RankEncoder"):
            ENCODER(batch)
    assert ragged(ENCODER(pandas.DataFrame(COUNTS, columns=NAMES))) == ragged(ENCODER(COUNTS))


@pytest.mark.parametrize("bad", [-5, 9, 10**8])
def test_damaged_columns_of_csc_and_coo_are_refused_before_scipy_trusts_them(bad):
    damaged = sp.csc_matrix(COUNTS[:8])
    damaged.indices[3] = bad
    coo = sp.coo_matrix(COUNTS[:8])
    coo.row[3] = bad
    for batch in (damaged, coo):
        with pytest.raises(InputError, match="the batch: its sparse counts name rows outside its 8"):
            ENCODER(batch)


def test_tensors_of_every_type_and_what_is_no_matrix():
    right = ragged(ENCODER(COUNTS))
    for batch in (
        torch.from_numpy(COUNTS).bfloat16(),
        torch.from_numpy(COUNTS).half(),
        [torch.from_numpy(row) for row in COUNTS],
        torch.from_numpy(COUNTS).requires_grad_(),
        COUNTS.astype(">f4"),
        np.asfortranarray(COUNTS),
    ):
        assert ragged(ENCODER(batch)) == right
    assert ENCODER(COUNTS[:0]).indptr.tolist() == [0]
    for batch in (
        torch.from_numpy(COUNTS).to(torch.complex64),
        torch.zeros(3, 4, 12),
        np.ma.masked_array(COUNTS, COUNTS > 3),
        [[1, 2], [3]],
        np.zeros((2, 12), [("a", "f4")]),
        pandas.DataFrame([[pandas.NA] * 12]),
        sp.coo_array(np.ones(12)),
        5,
    ):
        with pytest.raises(InputError):
            ENCODER(batch)
    for totals in (torch.ones(60).bfloat16(), torch.ones(60, requires_grad=True), list(range(1, 61))):
        ENCODER(COUNTS, totals)
    for totals in ([[1], [2, 3]], ["a"] * 60, np.ones(60, bool), np.ma.masked_array(np.ones(60), np.ones(60))):
        with pytest.raises(InputError, match="totals"):
            ENCODER(COUNTS, totals)
    with pytest.raises(InputError, match="vocabulary must be a Vocabulary; got 5"):
        RankEncoder(5, MEDIANS)


def test_options():
    assert max(map(len, ragged(RankEncoder(GENES, MEDIANS, NAMES, max_length=3)(COUNTS)))) == 3
    halves = RankEncoder(GENES, MEDIANS, NAMES, allow_fractional=True)
    assert ragged(halves(COUNTS * 0.5)) == ragged(ENCODER(COUNTS))
    totals = np.arange(1, 61)
    right = [
        encode_cell(
            list(enumerate(row.tolist())), range(2, 14), {i + 2: MEDIANS[n] for i, n in enumerate(NAMES)}, total=t
        )
        for row, t in zip(COUNTS, totals, strict=True)
    ]
    assert ragged(ENCODER(COUNTS, totals)) == right
    v2 = Vocabulary(("<pad>", "<mask>", "<cls>", "<eos>", *NAMES))
    cells = ragged(RankEncoder(v2, MEDIANS, NAMES)(COUNTS))
    assert all(cell[0] == 2 and cell[-1] == 3 for cell in cells)
    assert [[token - 2 for token in cell[1:-1]] for cell in cells] == ragged(ENCODER(COUNTS))
    again = pickle.loads(pickle.dumps(ENCODER))
    assert ragged(again(COUNTS)) == ragged(ENCODER(COUNTS))


def wrong(value, place=(4, 2)):
    counts = COUNTS.copy()
    counts[place] = value
    return counts


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (wrong(-1), r"counts must be whole numbers >= 0; row 4 of the batch has -1.0 in gene ENSG002; give raw counts"),
        (wrong(0.5), r"row 4 of the batch has 0.5 in gene ENSG002; .* allow_fractional=True"),
        (wrong(np.nan), "row 4 of the batch has nan in gene ENSG002"),
        (wrong(np.inf), "row 4 of the batch has inf in gene ENSG002"),
        (COUNTS[:, :9], "a batch has 9 columns, and the encoder knows the genes of 12; give RankEncoder"),
        (COUNTS[0], "counts must be a matrix of cells and genes; got 1 dimensions"),
        (np.array([["a"]]), "counts must be numbers; got <U1"),
        ([], "a batch must hold at least one cell"),
        ([np.ones(12), np.ones(11)], "the cells of a batch must have the same columns"),
        ([sp.csr_matrix(np.ones(12)), sp.csr_matrix(np.ones(11))], "the cells of a batch must have the same columns"),
        ({"counts": COUNTS}, "a mapping with 'X'; got counts"),
    ],
    ids=str,
)
def test_what_is_no_batch_of_counts_is_refused(batch, message):
    with pytest.raises(InputError, match=message):
        ENCODER(batch)


def test_damaged_matrices_and_totals_are_refused():
    damaged = sp.csr_matrix(COUNTS)
    damaged.indices[3] = 99
    with pytest.raises(InputError, match="row 0 of the batch has a count in column 99, which is not there"):
        ENCODER(damaged)
    damaged = sp.csr_matrix(COUNTS)
    damaged.indptr[2] = 10**6
    with pytest.raises(InputError, match="the batch: the pointers of its sparse counts do not fit"):
        ENCODER(damaged)
    for totals, message in (
        (np.zeros(60), "a cell's total must be a finite number above 0; row 0 of the batch has 0.0"),
        (np.ones(3), r"totals must hold one number for each of 60 cells; got float64 \(3,\)"),
    ):
        with pytest.raises(InputError, match=message):
            ENCODER(COUNTS, totals)
    with pytest.raises(InputError, match="does not know which genes the columns of a ndarray are"):
        RankEncoder(GENES, MEDIANS)(COUNTS)
    with pytest.raises(InputError, match="no gene of the encoder is in the vocabulary"):
        RankEncoder(GENES, MEDIANS, ["x", "y"])
    with pytest.raises(InputError, match="genes must be a list of names"):
        RankEncoder(GENES, MEDIANS, "ENSG001")
    with pytest.raises(InputError, match=r"max_length must be an integer in \[1, 2048\]"):
        RankEncoder(GENES, MEDIANS, NAMES, max_length=0)


# ------------------------------------------------------------------------------------------------------- masked batches


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_from_counts_are_those_of_the_corpus_on_disk(tmp_path, workers):
    path = write_h5ad(tmp_path / "cells.h5ad", sp.csr_matrix(COUNTS))
    tokenize(path, tmp_path / "out.npz", medians=MEDIANS)
    corpus = read_corpus(tmp_path / "out.npz")
    masker = CorrMasker(make_graph(GENES), mlm_probability=0.4, seed=3)
    full = np.flatnonzero(COUNTS.sum(axis=1))
    collators = DataCollatorForCorrMask(masker), DataCollatorForCounts(ENCODER, masker)
    for collator in collators:
        collator.set_epoch(2)
    options = {"batch_size": 7, "num_workers": workers}
    on_disk = DataLoader(CorpusDataset(corpus), collate_fn=collators[0], **options)
    straight = DataLoader(CountsDataset(sp.csr_matrix(COUNTS[full])), collate_fn=collators[1], **options)
    assert all(equal(one, other) for one, other in zip(on_disk, straight, strict=True))
    whole = collators[1](as_anndata(COUNTS[full]))
    assert equal(whole, collators[0](CorpusDataset(corpus)[:]))


def test_a_cell_without_a_known_gene_is_told_once():
    counts = COUNTS[:4].copy()
    counts[1] = 0
    collator = DataCollatorForCounts(ENCODER, RandomMasker(GENES))
    with pytest.warns(UserWarning, match="1 of 4 cells of a batch have no count in a gene of the vocabulary"):
        batch = collator(counts)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        collator(counts)
    assert batch["attention_mask"][1].sum() == 0


def test_what_does_not_fit_the_collator_is_refused():
    other = Vocabulary(("<pad>", "<mask>", *NAMES[::-1]))
    with pytest.raises(InputError, match="the encoder and the masker's vocabulary have different vocabularies"):
        DataCollatorForCounts(ENCODER, RandomMasker(other))
    with pytest.raises(InputError, match="counts must be CSR, whose rows are quick to find; got 'csc'"):
        CountsDataset(sp.csc_matrix(COUNTS))
    with pytest.raises(
        InputError, match="counts must be a SciPy CSR matrix, a dense array or an AnnData, of cells and genes; got"
    ):
        CountsDataset([1, 2])
    with pytest.raises(InputError, match="got DataFrame"):
        CountsDataset(pandas.DataFrame(COUNTS))


# ---------------------------------------------------------------------------------------------------------- on a device


@pytest.fixture(params=["emulated", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request, monkeypatch):
    """Where counts lie: a GPU, or the CPU with the CUDA kernels emulated and told that it is one."""
    if request.param == "cuda":
        return request.getfixturevalue("gpu")
    request.getfixturevalue("emulated_cuda")

    def padded(self, counts, totals=None, *, pad_to_multiple_of=1):
        given = counts["X"] if isinstance(counts, dict) else counts
        return self._padded_on_device(counts, given, totals, pad_to_multiple_of)

    monkeypatch.setattr(RankEncoder, "padded", padded)
    return torch.device("cpu")


def on(device, counts):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch: sparse CSR is in beta
        return torch.from_numpy(np.asarray(counts)).to_sparse_csr().to(device)


def assert_padded(batch, cells, width):
    assert batch["input_ids"].shape == batch["attention_mask"].shape == (len(cells), width)
    for ids, mask, cell in zip(batch["input_ids"].tolist(), batch["attention_mask"].tolist(), cells, strict=True):
        assert ids == [*cell, *[0] * (width - len(cell))]
        assert mask == [*[1] * len(cell), *[0] * (width - len(cell))]


def test_padded_on_the_cpu():
    cells = ragged(ENCODER(COUNTS))
    assert_padded(ENCODER.padded(COUNTS, pad_to_multiple_of=8), cells, 16)
    assert_padded(ENCODER.padded({"X": torch.from_numpy(COUNTS)}), cells, max(map(len, cells)))


@pytest.mark.parametrize("v2", [False, True])
@pytest.mark.parametrize("max_length", [None, 3])
def test_a_device_gives_the_cells_of_the_cpu(device, v2, max_length):
    vocabulary = Vocabulary(("<pad>", "<mask>", *(["<cls>", "<eos>"] if v2 else []), *NAMES))
    encoder = RankEncoder(vocabulary, MEDIANS, NAMES, max_length=max_length)
    cells = ragged(encoder(COUNTS))
    for counts in (on(device, COUNTS), {"X": torch.from_numpy(COUNTS).to(device)}):
        assert_padded(encoder.padded(counts, pad_to_multiple_of=4), cells, -(-max(map(len, cells)) // 4) * 4)
    totals = np.arange(1.0, 61)
    assert_padded(encoder.padded(on(device, COUNTS), totals), ragged(encoder(COUNTS, totals)), max(map(len, cells)))
    empty = encoder.padded(on(device, COUNTS[:3] * 0))
    assert empty["input_ids"].tolist() == [[2, 3]] * 3 if v2 else empty["input_ids"].shape == (3, 0)


class CountedReads(TorchFunctionMode):
    """Counts what copies values of a CUDA tensor to the host."""

    READS = ("tolist", "item", "numpy", "cpu", "nonzero", "__bool__", "__int__", "__float__", "__index__")

    def __init__(self):
        super().__init__()
        self.reads = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.reads += [func.__name__] if func.__name__ in self.READS else []
        return func(*args, **(kwargs or {}))


def test_the_host_waits_twice(device):
    """For the pointers, and for the longest cell."""
    counts = on(device, COUNTS)
    ENCODER.padded(counts)
    with CountedReads() as counted:
        ENCODER.padded(counts)
    assert counted.reads == ["tolist", "tolist"]


@pytest.mark.parametrize("case", CASES)
def test_every_case_on_a_device(device, case, monkeypatch):
    from corrmask_fast.cells import encode_device

    rng = np.random.default_rng(CASES.index(case))
    n_columns = 90
    rows = rows_of(case, rng, n_columns, np.float64)[:12]
    if case == "beyond 2**53":
        rows = [(columns, np.where(np.arange(counts.size) == 0, 2.0**60, counts)) for columns, counts in rows]
    tokens = np.where(rng.random(n_columns) < 0.1, -1, 2 + rng.permutation(n_columns)).astype(np.int32)
    tokens[5:9] = tokens[4]  # several columns of a gene
    if case == "other features":
        tokens[::7] = NOT_COUNTED
    medians = rng.choice([0.5, 1.0, 1.5, 7.0], n_columns + 2)
    indptr = np.append(0, np.cumsum([columns.size for columns, _ in rows]))
    cells = CountRows(
        indptr, np.concatenate([c for c, _ in rows]).astype(np.int64), np.concatenate([c for _, c in rows])
    )
    tables = EncodingTables(tokens, medians, False, 10_000.0, case == "fractional", 40)
    expected = tables.encode(cells, None, lambda *_: AssertionError("no count"))
    held = encode_device.DeviceTables.of(tables, device)
    there = encode_device.DeviceCells(*(torch.from_numpy(np.array(part)).to(device) for part in cells), n_columns)
    genes = Vocabulary(("<pad>", "<mask>", *(f"G{i}" for i in range(n_columns))))
    for capacity in (4096, 16):  # shared memory, and device memory
        monkeypatch.setattr(encode_device, "IN_SHARED", capacity)
        ids, mask = encode_device.encode_on_device(there, tables, held, genes, None, 1)
        found = [row[row_mask != 0].tolist() for row, row_mask in zip(ids.cpu(), mask.cpu(), strict=True)]
        assert found == [expected[1][a:b].tolist() for a, b in zip(expected[0][:-1], expected[0][1:], strict=True)]


def test_what_is_no_count_on_a_device_is_refused_as_on_the_cpu(device):
    for value, message in (
        (-1.0, "row 4 of the batch has -1.0 in gene ENSG002"),
        (0.5, "has 0.5"),
        (np.nan, "has nan"),
    ):
        with pytest.raises(InputError, match=message):
            ENCODER.padded(on(device, wrong(value)))
    with pytest.raises(InputError, match="a batch has 9 columns, and the encoder knows the genes of 12"):
        ENCODER.padded(on(device, COUNTS[:, :9]))
    with pytest.raises(InputError, match=r"row 0 of the batch has 0\.0"):
        ENCODER.padded(on(device, COUNTS), np.zeros(60))
    with pytest.raises(InputError, match=r"totals must hold one number for each of 60 cells; got float64 \(3,\)"):
        ENCODER.padded(on(device, COUNTS), np.ones(3))


def test_damaged_pointers_on_a_device_are_refused(device):
    counts = on(device, COUNTS)
    pointers = counts.crow_indices().clone()
    pointers[5] = 10**6
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        damaged = torch.sparse_csr_tensor(
            pointers, counts.col_indices(), counts.values(), counts.shape, check_invariants=False
        )
    with pytest.raises(InputError, match="the pointers of its sparse counts do not fit its"):
        ENCODER.padded(damaged)


def test_counts_to_masks_on_a_device(device):
    masker = CorrMasker(make_graph(GENES), mlm_probability=0.4, seed=3)
    batch = ENCODER.padded(on(device, COUNTS))
    masked = masker.to(device)(batch["input_ids"], batch["attention_mask"], epoch=1)
    on_cpu = ENCODER(COUNTS).padded(0)
    expected = CorrMasker(make_graph(GENES), mlm_probability=0.4, seed=3)(*on_cpu.values(), epoch=1)
    assert torch.equal(masked.input_ids.cpu(), expected.input_ids)
    assert torch.equal(masked.labels.cpu(), expected.labels)
