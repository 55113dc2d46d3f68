"""Batches to try a masking backend on: every odd shape in one list, shared by tests, benches and the CUDA tests.

    for case in cases():
        for parameters in PARAMETERS:
            expected = case.expected(draw_ids=draw_ids(case.rows), **parameters)     # slow: plain Python, row by row
            assert_same(expected, backend(case.graph, case.input_ids, …), case.name)

Long rows are cases of their own (:func:`long_cases`), since the oracle needs tens of milliseconds for each.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from corrmask_fast import reference
from corrmask_fast.cells.corpus_io import read_corpus
from corrmask_fast.cells.vocabulary import Vocabulary
from corrmask_fast.graph.dependency_graph import DependencyGraph, graph_of_pairs
from corrmask_fast.masking.pmi_table import PMITable
from corrmask_fast.masking.strategies import CONTROL, DEFAULT, STRATEGIES

if TYPE_CHECKING:
    from collections.abc import Callable

    from corrmask_fast.cells.corpus import Corpus
    from corrmask_fast.masking.base import Masker

__all__ = [
    "LONG_PARAMETERS", "PARAMETERS", "STRATEGY_PARAMETERS", "WEIGHTED_PARAMETERS", "Case", "Expected", "assert_same",
    "cases", "draw_ids", "long_cases", "make_graph", "make_vocabulary",
]  # fmt: skip

# Keyword arguments of CorrMasker (and of reference.mask_row) that together reach every branch of SPEC 4.
PARAMETERS: tuple[dict[str, Any], ...] = (
    {},
    {"structural_ratio": 0.0, "seed": 2**64 - 1},
    {"structural_ratio": 1.0, "mlm_probability": 0.3, "seed": 1},
    {"structural_ratio": 1.0, "max_partners": 0},
    {"structural_ratio": 1.0, "max_partners": 1, "mlm_probability": 0.5},
    {"structural_ratio": 1.0, "max_partners": 50, "mlm_probability": 0.6},
    {"structural_ratio": 0.7, "max_partners": 9, "mlm_probability": 0.95, "seed": 2**63},
    {"structural_ratio": 1.0, "mlm_probability": 0.999, "max_partners": 2},
    {"mask_replace_prob": 1.0, "random_replace_prob": 0.0},
    {"mask_replace_prob": 0.0, "random_replace_prob": 1.0, "mlm_probability": 0.4},
    {"mask_replace_prob": 0.0, "random_replace_prob": 0.0, "mlm_probability": 0.2},
    {"mask_replace_prob": 0.25, "random_replace_prob": 0.75, "mlm_probability": 0.45},
)
LONG_PARAMETERS = (PARAMETERS[0], PARAMETERS[2], PARAMETERS[5])
# The other strategies, on the same cases: as they are, with much masked, with λ of their own where they have one.
STRATEGY_PARAMETERS: tuple[dict[str, Any], ...] = tuple(
    {"strategy": name, **parameters}
    for name, strategy in STRATEGIES.items()
    if name != DEFAULT and not strategy.fixed and not strategy.control
    for parameters in (
        {},
        {"mlm_probability": 0.55, "seed": 2**64 - 1},
        {"mlm_probability": 0.95, "structural_ratio": 0.6},
    )
    if set(parameters) <= {"mlm_probability", "seed", *strategy.takes}
)
# CorrMask with weights of genes (those of the case), of partners, and of both.
WEIGHTED_PARAMETERS: tuple[dict[str, Any], ...] = (
    {"weights": True, "mlm_probability": 0.3},
    {"partners": "weighted", "structural_ratio": 1.0, "mlm_probability": 0.4},
    {"partners": "weighted", "weights": True, "max_partners": 20, "structural_ratio": 0.8},
    {"partners": "weighted", "weights": True, "max_partners": 1, "structural_ratio": 1.0, "mlm_probability": 0.9},
)


class Expected(NamedTuple):
    """What a backend must return for a case, all int64.

    Attributes
    ----------
    input_ids, labels
        (rows, columns).
    masked_positions
        (rows, floor(columns · p)), -1 after a row's own.
    """

    input_ids: np.ndarray
    labels: np.ndarray
    masked_positions: np.ndarray


@dataclass(frozen=True, eq=False)
class Case:
    """A padded batch and the graph to mask it with.

    Attributes
    ----------
    name
        What is special about it.
    graph
        The dependency graph; its vocabulary is the batch's.
    input_ids
        (rows, columns) int32 or int64.
    attention_mask, special_tokens_mask
        (rows, columns) uint8, or None.
    known
        Whether all tokens lie in the vocabulary; if not, mask with ``validate=False``.
    """

    name: str
    graph: DependencyGraph
    input_ids: np.ndarray
    attention_mask: np.ndarray | None = None
    special_tokens_mask: np.ndarray | None = None
    known: bool = True

    @property
    def rows(self) -> int:
        """Number of rows."""
        return self.input_ids.shape[0]

    @property
    def columns(self) -> int:
        """Number of columns, padding included."""
        return self.input_ids.shape[1]

    @cached_property
    def neighbors(self) -> dict[int, list[int]]:
        """Gene → its neighbours, as the oracle takes them."""
        graph = self.graph
        linked = np.flatnonzero(graph.degrees)
        return {int(g): graph.indices[graph.indptr[g] : graph.indptr[g + 1]].tolist() for g in linked}

    @cached_property
    def pairs(self) -> PMITable:
        """Ordered pairs of genes, most of them neighbours in the batch: for each gene those that follow it but one."""
        size, (lo, hi) = self.graph.vocabulary.size, self.graph.vocabulary.gene_range
        u, v = self.input_ids[:, :-1].reshape(-1), self.input_ids[:, 1:].reshape(-1)
        genes = (np.minimum(u, v) >= lo) & (np.maximum(u, v) < hi) & ((u + 2 * v) % 7 > 1)
        some = np.arange(lo, min(hi - 3, lo + 300))  # in the table, and mostly not in the batch
        codes = np.unique(np.concatenate([u[genes] * size + v[genes], some * size + some + 3]))
        indptr = np.concatenate([[0], np.cumsum(np.bincount(codes // size, minlength=size))])
        npmi = np.where(codes % 5 == 0, 0.05, 0.5)  # some below the least
        return PMITable(indptr, codes % size, npmi, np.full(codes.size, 50), self.graph.vocabulary)

    @cached_property
    def pairs_of_gene(self) -> dict[int, list[int]]:
        """Gene → the genes that follow it in a pair of NPMI 0.1 or more, as the oracle takes them."""
        indptr, indices = self.pairs.at_least(0.1)
        return {int(g): indices[indptr[g] : indptr[g + 1]].tolist() for g in np.flatnonzero(np.diff(indptr))}

    @cached_property
    def sets(self) -> dict[str, list[int]]:
        """Gene sets: most are of near ids, some of one gene or none, a gene may stand twice; one holds all genes."""
        lo, hi = self.graph.vocabulary.gene_range
        rng = np.random.default_rng(hi - lo)
        found = [[], [lo], [hi - 1, hi - 1], list(range(lo, hi)), [lo, hi - 1]]
        sizes = rng.integers(1, 40, min(700, 20 + (hi - lo) // 5))
        near = (rng.integers(hi - lo) + rng.integers(0, 2 * size, size) for size in sizes)
        found += [(lo + ids % (hi - lo)).tolist() for ids in near]
        return {f"set {number}": found[number] for number in rng.permutation(len(found))}

    @cached_property
    def corpus(self) -> Corpus:
        """The batch's genes as cells, each gene once."""
        lo, hi = self.graph.vocabulary.gene_range
        return read_corpus([np.unique(row[(row >= lo) & (row < hi)]) for row in self.input_ids], self.graph.vocabulary)

    @cached_property
    def weights(self) -> np.ndarray:
        """(V,) float64: weights of genes, as far apart as they may be, some alike; of special tokens no number."""
        vocabulary = self.graph.vocabulary
        weights = 2.0 ** np.random.default_rng(8).integers(-10, 11, vocabulary.size)
        weights *= np.where(np.arange(vocabulary.size) % 3, 1.0, 0.7)
        lo, hi = vocabulary.gene_range
        weights[lo:hi] = weights[lo:hi].clip(0.7 * 2.0**-10, 0.7 * 2.0**10)
        weights[[*range(lo), *range(hi, vocabulary.size)]] = np.nan
        return weights

    @cached_property
    def costs(self) -> list[int]:
        """The costs of the tokens, as the oracle takes them."""
        lo, hi = self.graph.vocabulary.gene_range
        return [0] * lo + reference.costs_of(self.weights[lo:hi].tolist()) + [0] * (self.graph.vocabulary.size - hi)

    @cached_property
    def edge_costs(self) -> dict[int, list[int]]:
        """Gene → the costs of its neighbours, as the oracle takes them."""
        rho, indptr = self.graph.rho, self.graph.indptr
        return {gene: reference.edge_costs_of(rho[indptr[gene] : indptr[gene + 1]].tolist()) for gene in self.neighbors}

    def masker(self, strategy: str = DEFAULT, **parameters: Any) -> Masker:
        """Return the masker of a strategy for this case; ``weights=True``: with those of the case."""
        from corrmask_fast.masking.factory import make_masker

        if parameters.pop("weights", False) or "weights" in STRATEGIES[strategy].requires:
            parameters["weights"] = self.weights
        validate = None if self.known else False
        sources: dict[str, Any] = {"graph": self.graph, "pmi": self.pairs, "sets": self.sets}
        if STRATEGIES[strategy].fitted:
            sources["corpus"] = self.corpus
        return make_masker(strategy, **sources, validate=validate, **parameters)

    def astype(self, dtype: Any) -> Case:
        """Return the case with ``input_ids`` of another dtype; a token that does not fit moves to the nearest end."""
        limits = np.iinfo(dtype)
        return replace(self, input_ids=np.clip(self.input_ids, limits.min, limits.max).astype(dtype))

    def take(self, rows: Any) -> Case:
        """Return the case with the given rows only (an index array or a slice)."""
        masks = (self.attention_mask, self.special_tokens_mask)
        attention, special = (None if mask is None else mask[rows] for mask in masks)
        return replace(self, input_ids=self.input_ids[rows], attention_mask=attention, special_tokens_mask=special)

    def expected(self, *, draw_ids: np.ndarray | None = None, epoch: int | None = None, **parameters: Any) -> Expected:
        """Mask the batch with the oracle, row by row.

        Parameters
        ----------
        draw_ids, epoch
            One of them: (rows,) int64 draws, or the epoch.
        **parameters
            Those of :meth:`masker`, and ``priorities`` (rows, columns).
        """
        vocabulary = self.graph.vocabulary
        width = math.floor(self.columns * np.max(parameters.get("mlm_probability", 0.15)))
        priorities = parameters.pop("priorities", None)
        strategy = STRATEGIES.get(parameters.get("strategy", DEFAULT), STRATEGIES[CONTROL])
        if parameters.pop("weights", False) or "weights" in strategy.requires:
            parameters["costs"] = self.costs
        if parameters.pop("partners", "uniform") == "weighted":
            parameters["edge_costs"] = self.edge_costs
        neighbors: dict[int, list[int]] = {
            "pmi": lambda: self.pairs_of_gene,
            "gene_sets": lambda: dict(enumerate(self.sets.values())),
        }.get(strategy.needs, lambda: self.neighbors)()
        default = {"structural_ratio": strategy.ratio or 0.0}
        out, labels = self.input_ids.astype(np.int64), np.full(self.input_ids.shape, -100, np.int64)
        positions = np.full((self.rows, width), -1, np.int64)
        for row in range(self.rows):
            masks = (self.attention_mask, self.special_tokens_mask)
            attention, special = (None if mask is None else mask[row].tolist() for mask in masks)
            masked = reference.mask_row(
                self.input_ids[row].tolist(),
                neighbors,
                vocab_size=vocabulary.size,
                gene_range=vocabulary.gene_range,
                pad_token_id=vocabulary.pad_token_id,
                mask_token_id=vocabulary.require_mask_token(),
                special_token_ids=vocabulary.special_token_ids,
                draw_id=None if draw_ids is None else int(draw_ids[row]),
                epoch=epoch,
                attention_mask=attention,
                special_tokens_mask=special,
                priorities=None if priorities is None else priorities[row].tolist(),
                validate=self.known,
                **{"seed": 0, **default, **parameters},
            )
            out[row], labels[row] = masked.input_ids, masked.labels
            positions[row, : len(masked.masked_positions)] = masked.masked_positions
        return Expected(out, labels, positions)

    def __repr__(self) -> str:
        return f"Case({self.name!r}, {self.rows} by {self.columns} {self.input_ids.dtype})"


def assert_same(expected: Any, got: Any, name: str) -> None:
    """Assert that two results are equal to the bit; the message says where they first differ.

    Parameters
    ----------
    expected
        Of :meth:`Case.expected`.
    got
        Object with arrays of the same names, such as a :class:`~corrmask_fast.MaskedBatch` on the CPU.
    name
        Name of the case, for the message.

    Raises
    ------
    AssertionError
        If a shape or a value differs.
    """
    for field in Expected._fields:
        want, have = np.asarray(getattr(expected, field)), np.asarray(getattr(got, field))
        assert want.shape == have.shape, f"{name}: {field} must have shape {want.shape}; got {have.shape}"
        if not np.array_equal(want, have):
            row, column = (int(i) for i in np.argwhere(want != have)[0])
            raise AssertionError(
                f"{name}: {field}[{row}, {column}] must be {want[row, column]}; got {have[row, column]} "
                f"({np.count_nonzero(want != have)} of {want.size} values differ)"
            )


def draw_ids(rows: int, seed: int = 0) -> np.ndarray:
    """Return draws of rows, the extreme ones first.

    Parameters
    ----------
    rows
        Number of rows.
    seed
        Seed of the draws after the extreme ones.

    Returns
    -------
    numpy.ndarray
        (rows,) int64.
    """
    extreme = np.array([0, -1, -(2**63), 2**63 - 1, 2**32, -(2**32)], np.int64)
    drawn = np.random.default_rng(seed).integers(-(2**63), 2**63, rows, np.int64)
    drawn[: extreme.size] = extreme[:rows]
    return drawn


def make_vocabulary(n_genes: int, *, v2: bool = False, genes_first: bool = False) -> Vocabulary:
    """Return a vocabulary of genes G0, G1, … and special tokens.

    Parameters
    ----------
    n_genes
        Number of genes.
    v2
        Special tokens ``<pad>``, ``<mask>``, ``<cls>``, ``<eos>``, as in Geneformer's V2. False: the first two, as in
        V1.
    genes_first
        The special tokens come after the genes. False: before them, as in Geneformer.

    Returns
    -------
    Vocabulary
        Without ``genes_first``, gene Gi is token 2 + i, or 4 + i with ``v2``.

    Examples
    --------
    >>> from corrmask_fast.testing import make_vocabulary
    >>> make_vocabulary(3).names
    ('<pad>', '<mask>', 'G0', 'G1', 'G2')
    """
    special = ("<pad>", "<mask>", "<cls>", "<eos>") if v2 else ("<pad>", "<mask>")
    genes = tuple(f"G{i}" for i in range(n_genes))
    return Vocabulary(genes + special[::-1] if genes_first else special + genes)


def make_graph(vocabulary: Vocabulary, *, degree: float = 8.0, hub: bool = True, seed: int = 0) -> DependencyGraph:
    """Return a random graph whose edges link genes with near ids.

    Parameters
    ----------
    vocabulary
        The genes. The last tenth of them has no neighbours.
    degree
        Mean number of neighbours of the other genes, before edges that are drawn twice are left out.
    hub
        Whether the first gene is a neighbour of all genes but the last tenth.
    seed
        Seed of the edges and their rho.

    Returns
    -------
    DependencyGraph
        With rho drawn from [−1, 1).

    Examples
    --------
    >>> from corrmask_fast.testing import make_graph, make_vocabulary
    >>> graph = make_graph(make_vocabulary(100))
    >>> len(graph.neighbors("G0")[0])  # the hub
    89
    """
    rng = np.random.default_rng(seed)
    lo, hi = vocabulary.gene_range
    linked = max(2, (hi - lo) * 9 // 10)
    one = rng.integers(0, linked, round(linked * degree / 2))
    other = np.minimum(one + rng.integers(1, 500, one.size) % linked, linked - 1)
    if hub:
        one, other = np.append(one, np.zeros(linked, np.int64)), np.append(other, np.arange(linked))
    both = np.unique((one * linked + other)[one < other])
    rho = rng.uniform(-1, 1, both.size).astype(np.float32)
    return graph_of_pairs(lo + both // linked, lo + both % linked, rho, vocabulary)


def cases(seed: int = 0) -> list[Case]:
    """Return short batches of every odd kind, to try a masking backend on.

    Parameters
    ----------
    seed
        Seed of the cells and graphs.

    Returns
    -------
    list of Case
        With ``input_ids`` int64; :meth:`Case.astype` changes that.
    """
    v1, v2 = make_graph(make_vocabulary(200), seed=seed), make_graph(make_vocabulary(150, v2=True), seed=seed + 1)
    after = make_graph(make_vocabulary(120, v2=True, genes_first=True), seed=seed + 2)
    dense = make_graph(make_vocabulary(60), degree=200, seed=seed + 3)
    alone = make_graph(make_vocabulary(60), degree=0, hub=False, seed=seed + 4)
    large = make_graph(make_vocabulary(70_000), degree=8, seed=seed + 5)
    rng = np.random.default_rng(seed)
    batch = _batches(rng)
    return [
        Case("no rows", v1, np.empty((0, 20), np.int64)),
        Case("no columns", v1, np.empty((3, 0), np.int64)),
        Case("one token", v1, batch(v1, [1, 1, 1])),
        Case("all special", v2, rng.choice(v2.vocabulary.special_token_ids, (3, 40))),
        Case("all padding", v1, np.full((3, 70), v1.vocabulary.pad_token_id)),
        Case("shorter than a budget of one", v1, batch(v1, [6, 5, 1, 0])),
        Case("lengths around a word of 64", v1, batch(v1, [63, 64, 65, 127, 128, 129])),
        Case("any length", v1, batch(v1, rng.integers(0, 150, 12))),
        Case("genes without neighbors", alone, batch(alone, [40, 50])),
        Case("everyone's neighbor", dense, batch(dense, [60, 60, 31])),
        Case("repeated genes", v1, batch(v1, [90, 90, 90], repeats=True)),
        Case("constant", v1, np.repeat(rng.integers(2, 100, (3, 1)), 75, axis=1)),
        Case("genes before special tokens", after, batch(after, [100, 70, 3])),
        Case("70 000 genes", large, batch(large, [200, 150])),
        _with_specials("V2, between <cls> and <eos>", v2, batch(v2, [100, 80, 20])),
        _unknown("tokens outside the vocabulary", v1, batch(v1, [90, 90, 64]), rng),
        *_padded_cases(v1, batch(v1, [80, 64, 97, 5]), rng),
        _protected("special_tokens_mask", v2, batch(v2, [100, 70]), rng),
    ]


def long_cases(seed: int = 0) -> list[Case]:
    """Return batches with rows of 97 to 4 096 tokens, and vocabularies of Geneformer's sizes (V1 and V2).

    Parameters
    ----------
    seed
        Seed of the cells and graphs.

    Returns
    -------
    list of Case
        With ``input_ids`` int64.
    """
    rng = np.random.default_rng(seed)
    batch = _batches(rng)
    v1 = make_graph(make_vocabulary(25_424), degree=20, seed=seed)
    v2 = make_graph(make_vocabulary(20_271, v2=True), degree=20, seed=seed + 1)
    few = make_graph(make_vocabulary(1_500), degree=30, seed=seed + 2)
    return [
        Case("97 columns", v1, batch(v1, [97, 61])),
        Case("1024 columns", few, batch(few, [1024])),
        Case("1025 columns", few, batch(few, [1025])),
        Case("2048 columns", v1, batch(v1, [2048])),
        Case("2048 columns, repeated genes", few, batch(few, [2048], repeats=True)),
        _with_specials("4096 columns, V2", v2, batch(v2, [4094])),
    ]


def _batches(rng: np.random.Generator) -> Callable[..., np.ndarray]:
    """Return a function that makes cells of the given lengths, padded on the right; most hold the hub."""

    def batch(graph: DependencyGraph, lengths: Any, *, repeats: bool = False) -> np.ndarray:
        lo, hi = graph.vocabulary.gene_range
        out = np.full((len(lengths), max(lengths)), graph.vocabulary.pad_token_id, np.int64)
        for row, length in enumerate(lengths):
            width = min(hi - lo, max(1, length // 2 if repeats else 3 * length))
            cell = rng.integers(lo, hi - width + 1) + rng.choice(width, length, replace=repeats)
            if length > 1 and lo not in cell:
                cell[rng.integers(length)] = lo
            out[row, :length] = cell
        return out

    return batch


def _with_specials(name: str, graph: DependencyGraph, genes: np.ndarray) -> Case:
    """``<cls>`` before and ``<eos>`` after every cell."""
    vocabulary = graph.vocabulary
    rows = len(genes)
    out = np.concatenate([np.full((rows, 1), vocabulary.cls_token_id), genes, np.full((rows, 1), 0)], axis=1)
    out[:, -1] = vocabulary.pad_token_id
    out[np.arange(rows), 1 + (genes != vocabulary.pad_token_id).sum(1)] = vocabulary.eos_token_id
    return Case(name, graph, out)


def _unknown(name: str, graph: DependencyGraph, genes: np.ndarray, rng: np.random.Generator) -> Case:
    """Tokens outside the vocabulary, as far as int32 and (in its place) int64 reach, in full words and at ends."""
    strange = np.array([-1, graph.vocabulary.size, -100, 2**31 - 1, -(2**31), 2**63 - 1, -(2**63)])
    out = genes.copy()
    for row in range(len(out)):
        columns = rng.choice(out.shape[1], 2 * strange.size, replace=False)
        out[row, columns] = np.concatenate([strange, strange])
    out[0, 0], out[0, -1] = -1, graph.vocabulary.size
    return Case(name, graph, out, known=False)


def _padded_cases(graph: DependencyGraph, genes: np.ndarray, rng: np.random.Generator) -> list[Case]:
    """Pad the same cells on any side, and with holes; by the padding token and by an attention mask."""
    pad = graph.vocabulary.pad_token_id
    rows, columns = genes.shape
    seen = (genes != pad).astype(np.uint8)

    def around(array: np.ndarray, left: int, right: int, value: int) -> np.ndarray:
        return np.pad(array, ((0, 0), (left, right)), constant_values=value)

    def pushed(array: np.ndarray) -> np.ndarray:  # right padding to the left
        return np.stack([np.roll(row, columns - int(count)) for row, count in zip(array, seen.sum(1), strict=True)])

    holes = seen * rng.choice([0, 1], genes.shape, p=[0.2, 0.8]).astype(np.uint8)
    holed = np.where(holes == 1, genes, pad)
    genes_below = np.where(genes == pad, 5, genes)  # what is masked out may be anything
    below = genes_below.copy()
    below[0, 3], holes[0, 3] = pad, 1  # a padding token that is attended to: neither padding nor maskable
    return [
        Case("right padding", graph, around(genes, 0, 67, pad)),
        Case("left padding", graph, pushed(genes)),
        Case("left padding, attention_mask", graph, pushed(genes_below), pushed(seen)),
        Case("padding on both sides", graph, around(genes, 13, 64, pad)),
        Case("padding on both sides, attention_mask", graph, around(genes_below, 64, 9, 7), around(seen, 64, 9, 0)),
        Case("padding tokens in between", graph, holed),
        Case("holes in attention_mask", graph, below, holes),
        Case("attention_mask of zeros", graph, genes_below, np.zeros((rows, columns), np.uint8)),
    ]


def _protected(name: str, graph: DependencyGraph, genes: np.ndarray, rng: np.random.Generator) -> Case:
    """Give a special_tokens_mask that protects some genes, and forgets the special tokens."""
    case = _with_specials(name, graph, genes)
    special = rng.choice([0, 1], case.input_ids.shape, p=[0.7, 0.3]).astype(np.uint8)
    special[np.isin(case.input_ids, graph.vocabulary.special_token_ids)] = 0
    special[1, :] = 0
    return replace(case, special_tokens_mask=special)
