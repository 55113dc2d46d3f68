"""Parity: every backend gives the bits of the plain-Python oracle, by every strategy, for every kind of row.

numba      a padded batch of CPU tensors
op         the same through the operator, as compiled functions have it
ragged     rows of NumPy arrays, as the collator has them
emulated   the CUDA kernels on the CPU, threads in random order
loader     the same through the operator: outputs, launch plan, launch
gpu        a device, where there is one
"""

from __future__ import annotations

import functools
from itertools import pairwise
from types import SimpleNamespace

import numba
import numpy as np
import pytest
import torch
from cuda_cases import MIXED, RANDOM

from corrmask_fast import (
    DependencyGraph,
    FunctionMasker,
    Vocabulary,
    build_dependency_graph,
    cuda,
    make_masker,
    read_corpus,
    tokenize,
)
from corrmask_fast.kernels.layout import CONTENT, GIVEN, KERNELS, SAMPLED
from corrmask_fast.masking.base import Masker
from corrmask_fast.masking.engine import ops
from corrmask_fast.masking.engine.draws import Draws, epoch_salt, signed
from corrmask_fast.masking.engine.tables import no_table
from corrmask_fast.masking.strategies import DEFAULT
from corrmask_fast.testing import (
    LONG_PARAMETERS,
    PARAMETERS,
    STRATEGY_PARAMETERS,
    WEIGHTED_PARAMETERS,
    Case,
    assert_same,
    cases,
    draw_ids,
    long_cases,
    make_graph,
    make_vocabulary,
)

CASES, LONG_CASES = [MIXED, *cases()], long_cases()
STRATEGIES = [each for each in STRATEGY_PARAMETERS if len(each) == 1]  # each as it is
RANGES = (
    {"mlm_probability": (0.1, 0.6), "structural_ratio": (0.2, 0.9)},
    *({**each, "mlm_probability": (0.05, 0.9), "seed": 4} for each in STRATEGIES),
)
# Groups replaced whole, by the groups that one strategy and another make; the top-up decides for itself.
GROUPED = tuple(
    {**each, "mlm_probability": 0.5, "replace": "group", "seed": 5}
    for each in ({"structural_ratio": 0.9}, {"structural_ratio": 1.0, "max_partners": 40}, {}, *STRATEGIES)
)
EVERY = (*PARAMETERS, *STRATEGY_PARAMETERS, *WEIGHTED_PARAMETERS, *RANGES, *GROUPED)


class Backend:
    """Masks a case; ``result`` has the arrays of :meth:`Case.expected`."""

    def __init__(self, name, request):
        self.name = name
        self.device = torch.device("cpu")
        if name == "emulated":
            self.host = request.getfixturevalue("cuda_host")
            self.modules = request.getfixturevalue("parity_modules")
        elif name == "loader":
            request.getfixturevalue("emulated_cuda")
        elif name == "gpu":
            self.device = request.getfixturevalue("gpu")

    def mask(self, case, masker, number, *, priorities=None, graph_ids=None, **draw):
        """Mask by one of ``draw_ids`` and ``epoch``; ``number`` decides the order of emulated threads."""
        if self.name == "emulated":
            module = self.modules(KERNELS[masker._settings.strategy].stem)
            how = {"schedule": RANDOM, "schedule_seed": number, "preempt_percent": 20 if case.columns < 500 else 0}
            more = {"masker": masker, "priorities": priorities, "graph_ids": graph_ids}
            return self.host.masking.emulate(module, case, **draw, **more, **how)
        if self.name == "ragged":
            marks = {"attention_mask": case.attention_mask, "special_tokens_mask": case.special_tokens_mask}
            marks = {name: mask.reshape(-1) for name, mask in marks.items() if mask is not None}
            more = {} if graph_ids is None else {"graph_ids": graph_ids}
            indptr = np.arange(case.rows + 1) * case.columns
            return masker.mask_ragged(indptr, case.input_ids.reshape(-1), columns=case.columns, **marks, **more, **draw)
        arrays = (case.input_ids, case.attention_mask, case.special_tokens_mask)
        ids, attention, special = (self.tensor(array) for array in arrays)
        priorities, graph_ids = self.tensor(priorities), self.tensor(graph_ids)
        if self.name in {"op", "loader"}:
            salt = torch.tensor([signed(epoch_salt(draw["epoch"]))]) if "epoch" in draw else None
            draws = (self.tensor(draw["draw_ids"]), GIVEN) if salt is None else (salt, CONTENT)
            batch = ids, attention, special, *draws, 0, graph_ids, priorities, False
            run = ops.mask if self.name == "op" else ops.mask_on_device
            return as_arrays(run(*batch, *masker.fixed_arguments()))
        if "draw_ids" in draw:
            draw["draw_ids"] = self.tensor(draw["draw_ids"])
        more = {"priorities": priorities, "graph_ids": graph_ids}
        return as_arrays(masker.to(self.device)(ids, attention, special, **more, **draw))

    def tensor(self, array):
        return None if array is None else torch.from_numpy(np.array(array)).to(self.device)

    def check(self, case, parameters, number=0, *, narrow=False, **draw):
        """Compare a case with the oracle; rows of int32 tokens where ``narrow``, and where they always are."""
        case = case.astype(np.int32) if narrow or self.name == "ragged" else case
        draw = draw or {"draw_ids": draw_ids(case.rows, seed=7)}
        got = self.mask(case, case.masker(**parameters), number, **draw)
        assert_same(expected_of(case, draw, parameters), got, f"{self.name}, {case.name}, {parameters}")
        if self.name in {"numba", "op", "loader", "gpu"}:
            assert got.input_ids.dtype == case.input_ids.dtype
            assert got.labels.dtype == got.masked_positions.dtype == np.int64


ANSWERS = {}


def expected_of(case, draw, parameters):
    """Return what the oracle says, asked once for all backends: it is plain Python, and takes longer than they do."""
    draws = {name: np.asarray(given).tobytes() for name, given in draw.items()}
    key = case.name, case.input_ids.dtype, hash(case.input_ids.tobytes()), repr(draws), repr(sorted(parameters.items()))
    if key not in ANSWERS:
        ANSWERS[key] = case.expected(**draw, **parameters)
    return ANSWERS[key]


def as_arrays(masked):
    arrays = (tensor.cpu().numpy() for tensor in masked)
    return SimpleNamespace(**dict(zip(("input_ids", "labels", "masked_positions"), arrays, strict=True)))


@pytest.fixture(scope="module")
def parity_modules(cuda_host):
    """The emulated kernels of a strategy's file, compiled once."""
    return functools.cache(lambda stem: cuda_host.launch.HostModule(cuda.kernel_source(f"{stem}.cu")))


@pytest.fixture(params=["numba", "op", "ragged", "emulated", "loader", pytest.param("gpu", marks=pytest.mark.gpu)])
def backend(request):
    return Backend(request.param, request)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_kind_of_row(backend, case):
    for number, parameters in enumerate(EVERY):
        backend.check(case, parameters, number)
        if number % 3 == 0 or backend.name in {"numba", "gpu"}:
            backend.check(case, parameters, number, narrow=True)


@pytest.mark.parametrize("case", LONG_CASES, ids=lambda case: case.name)
def test_long_rows(backend, case):
    for number, parameters in enumerate((*LONG_PARAMETERS, *STRATEGIES, *GROUPED, *WEIGHTED_PARAMETERS)):
        backend.check(case, parameters, number, narrow=number == 0)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_draws_from_the_epoch(backend, case):
    for number, epoch in enumerate((0, 3, 2**63 - 1)):
        backend.check(case, {"mlm_probability": 0.35, "seed": 11}, number, epoch=epoch)
    for parameters in (*STRATEGY_PARAMETERS[1::3], *WEIGHTED_PARAMETERS[::3]):
        backend.check(case, parameters, narrow=True, epoch=3)


def test_made_up_rows(backend):
    """Rows of any length with any rates, by every strategy; tokens repeat, and some are padding."""
    rng = np.random.default_rng(5)
    graph, kinds = make_graph(make_vocabulary(90), degree=12, seed=9), ({}, {}, *STRATEGIES)
    for number in range(200):
        columns = int(rng.integers(1, 200))
        attention = rng.integers(0, 8, (1, columns)).clip(max=1).astype(np.uint8) if number % 3 == 0 else None
        share = float(rng.uniform())
        parameters = {
            **kinds[number % len(kinds)],
            "mlm_probability": float(rng.uniform(0.02, 0.98)),
            "seed": int(rng.integers(2**63)),
            "mask_replace_prob": share,
            "random_replace_prob": (1 - share) * float(rng.choice([0, 0.5, 1])),
        }
        if "strategy" not in parameters:
            parameters |= {"structural_ratio": float(rng.choice([0.2, 0.5, 0.9, 1.0]))}
            parameters |= {"max_partners": int(rng.choice([0, 1, 3, 5, 8, 9, 40]))}
        case = Case("made up", graph, rng.integers(0, 92, (1, columns)), attention)
        backend.check(case, parameters, number, draw_ids=draw_ids(1, seed=number))


DEGREES = (*range(1, 130), 255, 256, 257, 600, 700)


@pytest.mark.parametrize("max_partners", [0, 1, 5, 6, 40, 700])
def test_seeds_of_any_degree(backend, max_partners):
    """The quota cuts among seeds and partners anywhere; of some seeds few neighbours are in the cell."""
    rng = np.random.default_rng(max_partners)
    genes = make_vocabulary(900)
    hubs = {2 + gene: degree for gene, degree in enumerate(DEGREES)}
    edges = [(gene, int(other)) for gene, degree in hubs.items() for other in 902 - 1 - rng.permutation(760)[:degree]]
    graph = DependencyGraph.from_edges(edges, genes)
    for number, (p, share) in enumerate(((0.02, 0.1), (0.1, 0.9), (0.3, 0.5), (0.9, 1.0))):
        others = 902 - 1 - rng.permutation(760)[: int(760 * share)]
        ids = rng.permutation(np.concatenate([list(hubs), others]))[None]
        parameters = {"max_partners": max_partners, "structural_ratio": 1.0, "mlm_probability": p}
        backend.check(Case(f"degrees, {share}", graph, ids), parameters, number)


# -------------------------------------------------------------------------------------- priorities, several graphs


def priorities_of_kind(rng, shape, kind):
    """Numbers that tie, as random words hardly ever do: few, extreme, in a narrow range, alike; or spread."""
    return {
        "few": lambda: rng.choice(np.array([0, 7, 2**31, 2**32 - 1]), shape),
        "extreme": lambda: rng.choice(np.array([0, 2**32 - 1, 2**32 - 2]), shape),
        "narrow": lambda: rng.integers(5, 9, shape),
        "low": lambda: rng.integers(0, 2**20, shape),
        "high": lambda: rng.integers(2**32 - 2**20, 2**32, shape),
        "alike": lambda: np.full(shape, rng.choice([0, 12345, 2**32 - 1])),
        "spread": lambda: rng.integers(0, 2**32, shape),
    }[kind]().astype(np.int64)


def sampled(vocabulary, p):
    """A masker that takes the columns of smallest priority."""
    return Masker(
        vocabulary, SAMPLED, no_table(vocabulary), mlm_probability=p, structural_ratio=0.0, seed=0,
        mask_replace_prob=0.8, random_replace_prob=0.1, validate=False,
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["few", "extreme", "narrow", "low", "high", "alike", "spread"])
def test_priorities_that_tie(backend, kind):
    if backend.name == "ragged":
        pytest.skip("ragged rows have no priorities")
    rng = np.random.default_rng(len(kind))
    for number, case in enumerate([each for each in CASES if each.known]):
        given, draws = priorities_of_kind(rng, case.input_ids.shape, kind), draw_ids(case.rows, seed=7)
        for strategy in ({}, *STRATEGIES, WEIGHTED_PARAMETERS[0], WEIGHTED_PARAMETERS[2]):
            parameters = {**strategy, "mlm_probability": 0.4, "replace": ("token", "group")[number % 2]}
            got = backend.mask(case, case.masker(**parameters), number, priorities=given, draw_ids=draws)
            expected = case.expected(draw_ids=draws, priorities=given, **parameters)
            assert_same(expected, got, f"{case.name}, {parameters}")
        for p in (0.04, 0.5, 0.97):
            masker = sampled(case.graph.vocabulary, p)
            got = backend.mask(case, masker, number, priorities=given, draw_ids=draws)
            expected = case.expected(draw_ids=draws, strategy="sampled", mlm_probability=p, priorities=given)
            assert_same(expected, got, f"sampled, {case.name}, {p}")


@pytest.mark.parametrize(
    ("strategy", "weighted"),
    [(DEFAULT, {}), (DEFAULT, {"partners": "weighted", "weights": True}), ("corrmask-balanced", {})],
    ids=["corrmask", "by weight", "balanced"],
)
def test_each_row_goes_by_its_own_graph(backend, strategy, weighted):
    """A number of no graph is a row without a graph: a device cannot refuse it without waiting."""
    vocabulary, nothing = MIXED.graph.vocabulary, DependencyGraph.from_edges([], MIXED.graph.vocabulary)
    graphs = [make_graph(vocabulary, degree=5, seed=1), make_graph(vocabulary, degree=30, seed=2), nothing]
    parameters = {"strategy": strategy, "mlm_probability": 0.4, "structural_ratio": 0.9}
    given = {**weighted, "weights": MIXED.weights} if weighted else {}
    masker, draws = make_masker(graph=graphs, validate=False, **parameters, **given), np.arange(3)
    for which in ([0, 1, 1], [1, 2, 0], [1, 0, 7], [-1, 2**62, 0]):
        if backend.name == "ragged" and not set(which) <= {0, 1, 2}:
            continue  # refused
        got = backend.mask(MIXED, masker, 1, graph_ids=np.array(which), draw_ids=draws)
        for row, number in enumerate(which):
            graph = graphs[number] if number in {0, 1, 2} else nothing
            alone = Case("row", graph, MIXED.input_ids[row : row + 1])
            expected = alone.expected(draw_ids=draws[row : row + 1], **parameters, **weighted)
            fields = {name: getattr(got, name)[row : row + 1] for name in expected._fields}
            assert_same(expected, SimpleNamespace(**fields), f"{which}, row {row}")


# --------------------------------------------------------------------------------------------- functions of the user's


def some_groups(tokens, words):
    """Groups of 0 to 6 places, some of which come again; together they are mostly fewer than are asked for."""
    sizes = (words[::3, 1] % 7).astype(np.int64)
    indptr = np.zeros(sizes.size + 1, np.int64)
    indptr[1:] = np.cumsum(sizes)
    columns = np.empty(indptr[-1], np.int64)
    for i in range(columns.size):
        columns[i] = (np.int64(words[i % tokens.size, 2]) + tokens[i % tokens.size] + i) % tokens.size
    return indptr, columns


def some_weights(tokens, words):
    """Numbers far apart, a third of them 0, and some alike."""
    weights = np.empty(tokens.size, np.float64)
    for i in range(tokens.size):
        weights[i] = 0.0 if tokens[i] % 3 == 0 else np.float64(words[i, 3] % 5) ** 20
    return weights


@pytest.mark.parametrize("compiled", [False, True], ids=["python", "numba"])
@pytest.mark.parametrize("propose", [some_groups, some_weights], ids=lambda function: function.__name__)
def test_functions(backend, propose, compiled):
    given = numba.njit(propose) if compiled else propose

    def plain(tokens, words):
        return propose(np.array(tokens), np.array(words, np.uint32))

    kind = np.int32 if backend.name == "ragged" else np.int64
    for number, case in enumerate([each.astype(kind) for each in CASES if each.known]):
        for parameters in (
            {"mlm_probability": 0.15, "structural_ratio": 1.0},
            {"mlm_probability": 0.6, "structural_ratio": 0.7, "seed": 2**64 - 1, "replace": "group"},
            {"mlm_probability": (0.05, 0.9), "structural_ratio": (0.2, 1.0), "mask_replace_prob": 0.3},
        ):
            masker, draw = FunctionMasker(case.graph.vocabulary, given, **parameters), {"epoch": 3}
            expected = case.expected(strategy="function", propose=plain, **draw, **parameters)
            if backend.name in {"op", "loader", "emulated"}:  # these are given what the masker makes of the rows
                draw |= {"priorities": priorities_of_function(masker, case)}
            assert_same(expected, backend.mask(case, masker, number, **draw), f"{case.name}, {parameters}")


def priorities_of_function(masker, case):
    masks = {"attention_mask": case.attention_mask, "special_tokens_mask": case.special_tokens_mask}
    masks = {name: mask.reshape(-1) for name, mask in masks.items() if mask is not None}
    draws = Draws(np.array([signed(epoch_salt(3))]), CONTENT)
    indptr, tokens = np.arange(case.rows + 1) * case.columns, case.input_ids.reshape(-1)
    return masker._propose(indptr, tokens, draws, **masks)[1].reshape(case.input_ids.shape).copy()


# ------------------------------------------------------------------------------------------------------- real cells


@pytest.fixture(scope="module")
def real_case(data_folder, tmp_path_factory):
    path = tmp_path_factory.mktemp("real") / "cells.npz"
    folder = data_folder / "geneformer"
    genes = Vocabulary.from_token_dictionary(folder / "token_dictionary.pkl")
    tokenize(data_folder / "pbmc3k.h5ad", path, genes, folder / "gene_median_dictionary.pkl")
    corpus = read_corpus(path)
    sizes = {"n_neighbors": 50, "min_cooccurrence": 20, "min_presence": 50, "max_genes": 600}
    graph = build_dependency_graph(corpus, n_cells=700, progress=False, **sizes)
    indptr, tokens = corpus.gather(np.arange(0, 2700, 300))
    ids = np.full((9, np.diff(indptr).max()), genes.pad_token_id)
    for row, (begin, end) in zip(ids, pairwise(indptr), strict=True):
        row[: end - begin] = tokens[begin:end]
    return Case("real cells", graph, ids)


def test_real_cells(backend, real_case):
    if backend.name == "ragged":  # as a collator gives them: without padding
        inside = real_case.input_ids != 0
        indptr, tokens = np.concatenate([[0], inside.sum(1).cumsum()]), real_case.input_ids[inside]
        for parameters in LONG_PARAMETERS:
            got = real_case.masker(**parameters).mask_ragged(indptr, tokens, epoch=3)
            assert_same(real_case.expected(epoch=3, **parameters), got, f"ragged, {parameters}")
    for number, parameters in enumerate((*LONG_PARAMETERS, *STRATEGIES)):
        backend.check(real_case, parameters, number, epoch=3)
