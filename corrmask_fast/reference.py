"""Algorithms 1 and 2 of the CorrMask paper (Hacohen et al. 2026, appendix A.4 and A.5) in plain Python.

Slow and obvious on purpose: the oracle that every kernel must equal to the bit. Imports nothing from the fast path.
"""

from __future__ import annotations

import math
import struct
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    Order = Callable[[int], tuple[int, int]]  # column → what it is sorted by
    Words = Callable[[int, int], tuple[int, int, int, int]]  # column, block → random words

__all__ = ["audit_rows", "mask_row", "mix", "philox4x32", "row_content", "words"]

MASK32, MASK64 = 2**32 - 1, 2**64 - 1
GOLDEN = 0x9E3779B97F4A7C15


# ---------------------------------------------------------------------------------------------------- randomness


def philox4x32(counter: Sequence[int], key: Sequence[int]) -> tuple[int, int, int, int]:
    """Philox4x32-10 (Salmon et al. 2011): four 32-bit words of a four-word counter and a two-word key."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 & MASK32, (p0 >> 32) ^ c3 ^ k1, p0 & MASK32
        k0, k1 = (k0 + 0x9E3779B9) & MASK32, (k1 + 0xBB67AE85) & MASK32
    return c0, c1, c2, c3


def words(seed: int, draw_id: int, column: int, block: int) -> tuple[int, int, int, int]:
    """Return the words w0 w1 w2 w3 of one column and block of a row's draw."""
    draw_id &= MASK64
    return philox4x32((column, block, draw_id & MASK32, draw_id >> 32), (seed & MASK32, seed >> 32))


def mix(x: int) -> int:
    """splitmix64's finaliser on 64 bits."""
    x &= MASK64
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK64
    return x ^ (x >> 31)


def row_content(tokens: Mapping[int, int], values: Mapping[int, float] | None = None) -> int:
    """Return the content of a row's maskable tokens (column → token), and of their values, however it is padded."""
    content = 0
    for column, token in tokens.items():
        number = mix((column << 32) | (token & MASK32))
        content += number
        if values is not None:
            bits = struct.pack("<f", values[column] or 0.0)  # −0.0 is 0.0
            content += mix(number ^ int.from_bytes(bits, "little"))
    return content & MASK64


def draw_id_of_epoch(content: int, epoch: int) -> int:
    """Return the draw of a cell in an epoch."""
    return mix(content + epoch * GOLDEN)


# ------------------------------------------------------------------------------------------------------- weights


def costs_of(weights: Sequence[float]) -> list[int]:
    """Return the cost of each weight: 2³¹ for the smallest, and the less the larger a weight is."""
    smallest = min(weights)
    return [math.floor(2**31 * (smallest / weight)) for weight in weights]


def edge_costs_of(rhos: Sequence[float]) -> list[int]:
    """Return the costs of a gene's edges: weights are |rho|, but no less than 2⁻²⁰ of the largest."""
    strengths = [abs(rho) for rho in rhos]
    largest = max(strengths)
    return costs_of([max(strength, largest / 2**20) if largest else 1.0 for strength in strengths])


def race_key(word: int, cost: int) -> int:
    """Return the place of a random word in a draw by weight: the smallest first.

    In an exponential race a gene of weight v arrives after −log(u) / v, with u uniform: who comes first is a draw
    without replacement, by weight (Efraimidis & Spirakis 2006).
    """
    y = 2 * (MASK32 - word) + 1  # u = y / 2³³
    top = y.bit_length() - 1
    x = ((y << (32 - top)) - 2**32) & ~31  # y = 2^top · (1 + x / 2³²)
    a0, a1, a2, a3, a4, a5 = 1901054808, 1190405809, 822506361, 517674646, 230751926, 49432681

    def times(a: int, b: int) -> int:
        return (a * b) >> 32

    q = a0 - times(x, a1 - times(x, a2 - times(x, a3 - times(x, a4 - times(x, a5)))))
    log = x + times(times(x, MASK32 - x), q)  # log2(1 + x), times 2³²
    arrival = (((33 - top) << 27) - (log >> 5)) * cost
    top = arrival.bit_length() - 1
    return (top << 26) | ((arrival << 26 >> top) & (2**26 - 1))


# ------------------------------------------------------------------------------------------- Algorithm 2: masking


class MaskedRow(NamedTuple):
    """One masked row, as :func:`mask_row` returns it.

    Attributes
    ----------
    input_ids
        Token of each column, after replacement.
    labels
        Original token of each masked column, −100 elsewhere.
    masked_positions
        Masked columns, ascending.
    """

    input_ids: list[int]
    labels: list[int]
    masked_positions: list[int]


def maskable_columns(
    tokens: Sequence[int],
    *,
    special_token_ids: Sequence[int],
    pad_token_id: int,
    attention_mask: Sequence[int] | None = None,
    special_tokens_mask: Sequence[int] | None = None,
) -> tuple[int, dict[int, int]]:
    """Return the row's first non-padding column and its maskable tokens: column counted from there → token."""

    def is_padding(c: int) -> bool:
        return tokens[c] == pad_token_id if attention_mask is None else not attention_mask[c]

    real = [c for c in range(len(tokens)) if not is_padding(c)]
    first = real[0] if real else 0
    protected = [False] * len(tokens) if special_tokens_mask is None else [bool(x) for x in special_tokens_mask]
    return first, {c - first: tokens[c] for c in real if tokens[c] not in special_token_ids and not protected[c]}


def row_rate(rate: float | tuple[float, float], word: int) -> float:
    """Return a row's own p or λ: the number given, or what a random word gives between two ends."""
    if not isinstance(rate, tuple):
        return rate
    low, high = rate
    return low + (high - low) * word / 2**32


def correlated_groups(
    maskable: Mapping[int, int],
    neighbors: Mapping[int, Sequence[int]],
    edge_costs: Mapping[int, Sequence[int]] | None,
    max_partners: int,
    order: Order,
    draw: Words,
) -> Iterator[list[int]]:
    """CorrMask: seeds in random order, each with its sampled partners."""
    position: dict[int, int] = {}  # gene → its first maskable column
    for column, token in maskable.items():
        position.setdefault(token, column)
    seeds = [column for token, column in position.items() if neighbors.get(token)]
    for column in sorted(seeds, key=order):
        keyed = []
        for j, gene in enumerate(neighbors[maskable[column]]):
            if gene in position:
                key = draw(column, 1 + j // 4)[j % 4]
                if edge_costs is not None:
                    key = race_key(key, edge_costs[maskable[column]][j])
                keyed.append((key, j, position[gene]))
        yield [column, *(partner for _, _, partner in sorted(keyed)[:max_partners])]


def span_groups(maskable: Mapping[int, int], order: Order, draw: Words) -> Iterator[list[int]]:
    """Span masking: from every column in random order so many, the length geometric (p = 0.2), 10 at most."""
    columns = list(maskable)
    longer = [math.floor(2**32 * (1 - 0.8**k) / (1 - 0.8**10)) for k in range(1, 10)]
    for column in sorted(columns, key=order):
        word = draw(column, 1)[0]
        begin = columns.index(column)
        yield columns[begin : begin + 1 + sum(word >= bound for bound in longer)]


def run_groups(maskable: Mapping[int, int], pairs: Mapping[int, Sequence[int]], order: Order) -> Iterator[list[int]]:
    """PMI masking: maximal runs of two or more neighbouring columns, each pair of neighbours in the table."""
    runs: list[list[int]] = []
    for column, token in maskable.items():
        if column - 1 in maskable and token in pairs.get(maskable[column - 1], ()):
            runs[-1].append(column)
        else:
            runs.append([column])
    yield from sorted((run for run in runs if len(run) > 1), key=lambda run: order(run[0]))


def module_leaders(maskable: Mapping[int, int], neighbors: Mapping[int, Sequence[int]], order: Order) -> dict[int, int]:
    """Return each column's leader: of itself and its partners the first; of a gene's later columns each itself."""
    position: dict[int, int] = {}  # gene → its first maskable column
    for column, token in maskable.items():
        position.setdefault(token, column)
    leaders = {column: column for column in maskable}
    for token, column in position.items():
        partners = [position[gene] for gene in neighbors.get(token, ()) if gene in position]
        leaders[column] = min([column, *partners], key=order)
    return leaders


def balanced_group(leaders: Mapping[int, int], order: Order, draw: Words) -> list[int]:
    """Balanced CorrMask: modules of columns with one leader, end to end as a circle, from a random place around."""
    modules: dict[int, list[int]] = {}
    for column, leader in leaders.items():
        modules.setdefault(leader, []).append(column)
    circle: list[int] = []
    for leader in sorted(modules, key=lambda leader: (draw(leader, 1)[0], leader)):
        circle += sorted(modules[leader], key=order)
    start = (draw(2**32 - 3, 0)[0] * len(circle)) >> 32
    return circle[start:] + circle[:start]


def set_groups(
    maskable: Mapping[int, int], sets: Mapping[int, Sequence[int]], order: Order, draw: Words
) -> Iterator[list[int]]:
    """Gene sets in random order: of each the genes that stand in the row, at least two, by their first columns."""
    position: dict[int, int] = {}  # gene → its first maskable column
    for column, token in maskable.items():
        position.setdefault(token, column)
    for number in sorted(sets, key=lambda number: (draw(number, 2**32 - 2)[0], number)):
        present = {position[gene] for gene in sets[number] if gene in position}
        if len(present) > 1:
            yield sorted(present, key=order)


def function_groups(maskable: Mapping[int, int], propose: Callable[..., Any], draw: Words) -> Iterator[list[int]]:
    """User's function: groups, as CSR of places among the maskable columns; or single columns by its weights."""
    columns = list(maskable)
    answer = propose(list(maskable.values()), [draw(column, 2**32 - 3) for column in columns]) if columns else []
    if isinstance(answer, tuple):
        indptr, places = answer
        for begin, end in pairwise(indptr):
            yield [columns[place] for place in places[begin:end]]
        return

    def score(column: int, weight: float) -> float:
        return math.log(weight) - math.log(-math.log((draw(column, 0)[0] + 0.5) / 2**32))

    scores = {column: score(column, weight) for column, weight in zip(columns, answer, strict=True) if weight > 0}
    for column in sorted(scores, key=lambda column: (-scores[column], column)):
        yield [column]


def mask_row(
    tokens: Sequence[int],
    neighbors: Mapping[int, Sequence[int]],
    *,
    vocab_size: int,
    gene_range: tuple[int, int],
    pad_token_id: int,
    mask_token_id: int,
    special_token_ids: Sequence[int],
    seed: int,
    draw_id: int | None = None,
    epoch: int | None = None,
    strategy: str = "corrmask",
    mlm_probability: float | tuple[float, float] = 0.15,
    structural_ratio: float | tuple[float, float] = 0.5,
    max_partners: int = 5,
    mask_replace_prob: float = 0.8,
    random_replace_prob: float = 0.1,
    replace: str = "token",
    attention_mask: Sequence[int] | None = None,
    special_tokens_mask: Sequence[int] | None = None,
    priorities: Sequence[int] | None = None,
    costs: Sequence[int] | None = None,
    edge_costs: Mapping[int, Sequence[int]] | None = None,
    propose: Callable[..., Any] | None = None,
    validate: bool = True,
) -> MaskedRow:
    """Mask one row: Algorithm 2 with every open detail closed, and the other strategies in the same form.

    Parameters
    ----------
    tokens
        Tokens of the row, padding included.
    neighbors
        Gene → its neighbours in the dependency graph, ascending; for ``"pmi"`` gene → the genes that follow it in a
        pair of the table. Genes without any may be left out. For ``"gene-sets"`` number of a set → its genes.
    vocab_size, gene_range
        Size of the vocabulary; first token of a gene, and the token after the last gene.
    pad_token_id, mask_token_id, special_token_ids
        Special tokens. They are never masked.
    seed
        Seed of the random words, in [0, 2**64).
    draw_id, epoch
        Give one of them: the draw itself, or the epoch, from which it follows together with the row's content.
    strategy
        ``"random"``, ``"span"``, ``"pmi"``, ``"corrmask"``, ``"corrmask-balanced"``, ``"gene-sets"``; ``"sampled"``:
        the columns of smallest priority; or ``"function"``: what ``propose`` returns.
    mlm_probability, structural_ratio
        Numbers in [0, 1], or two ends between which the row draws its own.
    max_partners
        Largest number of partners that are masked with a seed gene.
    mask_replace_prob, random_replace_prob
        Probability that a masked gene becomes ``<mask>``, and that it becomes a random gene; else it stays.
    replace
        ``"token"``: each masked column is replaced by a draw of its own.
        ``"group"``: w2 of a group's first column decides for all columns that the group added; with
        ``"corrmask-balanced"`` w2 of its leader for each.
    attention_mask, special_tokens_mask
        A number for each column of the row: 0 in ``attention_mask`` is padding, 1 in ``special_tokens_mask`` is never
        masked.
    priorities
        A number for each column of the row, in place of w0; with ``"sampled"`` in place of w1.
    costs
        Of each token, where genes have weights: see :func:`costs_of`.
    edge_costs
        Gene → the costs of its neighbours, where partners have weights: see :func:`edge_costs_of`.
    propose
        (tokens, words) of the maskable columns → (indptr, places) or weights, all as lists.
    validate
        Raise ValueError for a token outside [0, vocab_size). False: it counts as a gene without neighbours.

    Returns
    -------
    MaskedRow
        Tokens after replacement, labels, and masked columns.

    Raises
    ------
    ValueError
        If ``validate`` and a token is outside the vocabulary.

    Notes
    -----
    Hacohen et al. 2026, Algorithm 2; docs/SPEC.md, sections 3 to 5, says where w0, w1, w2 come from.

    Examples
    --------
    >>> from corrmask_fast.reference import mask_row
    >>> masked = mask_row(
    ...     [2, 3, 4, 5, 6, 7, 8, 9, 0, 0], {2: [3], 3: [2]}, vocab_size=10, gene_range=(2, 10), pad_token_id=0,
    ...     mask_token_id=1, special_token_ids=[0, 1], seed=0, epoch=0, mlm_probability=0.25, structural_ratio=1.0,
    ...     mask_replace_prob=1.0, random_replace_prob=0.0,
    ... )
    >>> len(masked.masked_positions)  # floor(0.25 * 8 genes)
    2
    """
    for column, token in enumerate(tokens):
        if validate and not 0 <= token < vocab_size:
            raise ValueError(f"token {token} in column {column} must be in [0, {vocab_size})")
    first, maskable = maskable_columns(
        tokens,
        special_token_ids=special_token_ids,
        pad_token_id=pad_token_id,
        attention_mask=attention_mask,
        special_tokens_mask=special_tokens_mask,
    )
    if draw_id is None:
        assert epoch is not None, "give draw_id or epoch"
        draw_id = draw_id_of_epoch(row_content(maskable), epoch)

    def w(column: int) -> tuple[int, int, int, int]:
        w0, w1, w2, w3 = words(seed, draw_id, column, 0)
        if costs is not None:
            cost = costs[maskable[column]] if 0 <= maskable[column] < vocab_size else 2**31
            w1 = race_key(w1, cost)
            w0 = race_key(w0, cost) if strategy == "corrmask" else w0
        return w0, w1, w2, w3

    def group_order(column: int) -> tuple[int, int]:
        return (w(column)[0] if priorities is None else priorities[first + column]), column

    def rest_order(column: int) -> tuple[int, int]:
        return group_order(column) if strategy == "sampled" else (w(column)[1], column)

    v0, v1, _, _ = words(seed, draw_id, 2**32 - 2, 0)
    n = len(maskable)
    budget = math.floor(n * row_rate(mlm_probability, v0))
    quota = math.floor(budget * row_rate(structural_ratio, v1))

    # What the strategy proposes, group after group, until the quota is reached.
    masked: set[int] = set()
    leaders: Mapping[int, int] = {}  # of columns that are not led by the first of their group
    if strategy == "corrmask":
        groups = correlated_groups(
            maskable, neighbors, edge_costs, max_partners, group_order, partial(words, seed, draw_id)
        )
    elif strategy == "corrmask-balanced":
        leaders = module_leaders(maskable, neighbors, group_order)
        groups = iter([balanced_group(leaders, group_order, partial(words, seed, draw_id))])
    elif strategy == "span":
        groups = span_groups(maskable, group_order, partial(words, seed, draw_id))
    elif strategy == "pmi":
        groups = run_groups(maskable, neighbors, group_order)
    elif strategy == "gene-sets":
        groups = set_groups(maskable, neighbors, group_order, partial(words, seed, draw_id))
    elif strategy == "function":
        assert propose is not None, "give propose"
        groups = function_groups(maskable, propose, partial(words, seed, draw_id))
    else:
        groups = iter(())
    decides: dict[int, int] = {}  # masked column → the one whose w2 decides what it becomes
    for group in groups:
        for column in group:
            if len(masked) < quota and column not in masked:
                masked.add(column)
                decides[column] = leaders.get(column, group[0]) if replace == "group" else column
        if len(masked) >= quota:
            break

    # Random top-up: the budget is always met.
    rest = sorted((column for column in maskable if column not in masked), key=rest_order)
    masked.update(rest[: budget - len(masked)])

    # 80/10/10 replacement.
    mask_below = math.floor(mask_replace_prob * 2**32)
    random_below = math.floor((mask_replace_prob + random_replace_prob) * 2**32)
    lo, hi = gene_range
    out, labels = list(tokens), [-100] * len(tokens)
    for column in masked:
        w2, w3 = w(decides.get(column, column))[2], w(column)[3]
        labels[first + column] = tokens[first + column]
        if w2 < mask_below:
            out[first + column] = mask_token_id
        elif w2 < random_below:
            out[first + column] = lo + ((w3 * (hi - lo)) >> 32)
    return MaskedRow(out, labels, sorted(first + column for column in masked))


# ----------------------------------------------------------------------------------------------------- the audit


class AuditCounts(NamedTuple):
    """What the audit counts over rows; its figures are quotients of these."""

    maskable: int
    masked: int
    runs: int
    judged: int
    pairs: int
    hits: int
    all_pairs: int
    hidden: int
    shortcut_sum: float
    times_masked: dict[int, int]
    times_present: dict[int, int]


def audit_rows(
    rows: Sequence[tuple[Mapping[int, int], Sequence[int]]], neighbors: Mapping[int, Mapping[int, float]]
) -> AuditCounts:
    """Count what masks hide.

    Parameters
    ----------
    rows
        For each row its maskable tokens (column → token, columns ascending) and its masked columns.
    neighbors
        Gene → its neighbours in the dependency graph, with rho.

    Returns
    -------
    AuditCounts
        Sums over the rows; docs/SPEC.md, section 6, defines each.
    """
    maskable = masked = runs = judged = pairs = hits = all_pairs = hidden = 0
    shortcut_sum = 0.0
    times_masked: dict[int, int] = {}
    times_present: dict[int, int] = {}
    for tokens, columns in rows:
        position: dict[int, int] = {}
        for column, token in tokens.items():
            position.setdefault(token, column)
        maskable += len(tokens)
        masked += len(columns)
        runs += sum(column - 1 not in columns for column in columns)
        shortcut = 0.0
        for column in sorted(columns):
            gene = tokens[column]
            partners = [other for other in neighbors.get(gene, {}) if other in position]
            if position[gene] != column or not partners:
                continue
            hit = sum(position[other] in columns for other in partners)
            judged += 1
            pairs += len(partners)
            hits += hit
            all_pairs += len(neighbors[gene])
            hidden += hit == len(partners)
            visible = [abs(neighbors[gene][other]) for other in partners if position[other] not in columns]
            shortcut += max(visible, default=0.0)
        shortcut_sum += shortcut
        for gene, column in position.items():
            times_present[gene] = times_present.get(gene, 0) + 1
            times_masked[gene] = times_masked.get(gene, 0) + (column in columns)
    return AuditCounts(
        maskable, masked, runs, judged, pairs, hits, all_pairs, hidden, shortcut_sum, times_masked, times_present
    )


# ---------------------------------------------------------------------------------- Algorithm 1: the dependency graph


def sample_cells(n: int, n_cells: int, seed: int) -> list[int]:
    """Return the indices, ascending, of ``n_cells`` of n cells drawn without replacement (all if there are no more)."""
    keys = {i: words(seed, i, 2**32 - 1, 0)[:2] for i in range(n)}
    return sorted(sorted(keys, key=lambda i: (keys[i], i))[:n_cells])


def centred_ranks(values: Sequence[int]) -> list[int]:
    """Return 2 · rank - (n + 1) of every value, with average ranks for ties: integers that sum to 0."""
    count: dict[int, int] = {}
    for value in values:
        count[value] = count.get(value, 0) + 1
    ranks, below = {}, 0
    for value in sorted(count):
        ranks[value] = 2 * below + count[value] + 1 - (len(values) + 1)
        below += count[value]
    return [ranks[value] for value in values]


def rank_correlation(d_u: Sequence[int], d_v: Sequence[int]) -> float | None:
    """Return the correlation of centred ranks; None where either is constant."""
    product = sum(x * y for x, y in zip(d_u, d_v, strict=True))
    squares_u, squares_v = sum(x * x for x in d_u), sum(x * x for x in d_v)
    if squares_u == 0 or squares_v == 0:
        return None
    return float(product) / math.sqrt(float(squares_u) * float(squares_v))


def build_dependency_graph(
    cells: Sequence[Sequence[int]],
    *,
    n_cells: int = 100_000,
    max_length: int = 2048,
    n_neighbors: int = 50,
    rho_min: float = 0.2,
    min_cooccurrence: int = 200,
    min_presence: int = 50,
    max_genes: int | None = None,
    seed: int = 0,
) -> dict[int, dict[int, tuple[float, float]]]:
    """Build the dependency graph: Algorithm 1 with every open detail closed.

    Parameters
    ----------
    cells
        Gene tokens of each cell by falling expression, without special tokens.
    n_cells
        Largest number of cells that are sampled.
    max_length
        Number of first tokens of a cell that count.
    n_neighbors
        Largest number of neighbours that a gene chooses.
    rho_min
        Least absolute rho of an edge, over all cells.
    min_cooccurrence
        Least number of cells that hold both genes of an edge.
    min_presence
        Least number of cells that hold a gene.
    max_genes
        Largest number of genes. None: all.
    seed
        Seed of the sample of cells.

    Returns
    -------
    dict
        Gene → neighbour → (rho over the cells that hold both, rho over all cells); both ascending, both directions
        of every edge, genes without neighbours left out.

    Notes
    -----
    Hacohen et al. 2026, Algorithm 1; docs/SPEC.md, section 2.

    Examples
    --------
    >>> from corrmask_fast.reference import build_dependency_graph
    >>> cells = [[2, 3, 4], [3, 2, 4], [4, 2, 3], [4, 3, 2]]  # genes 2 and 3 stand before 4, or behind it
    >>> graph = build_dependency_graph(cells, rho_min=0.5, min_cooccurrence=2, min_presence=2)
    >>> {gene: sorted(neighbors) for gene, neighbors in graph.items()}
    {2: [4], 3: [4], 4: [2, 3]}
    """
    sample = [cells[i][:max_length] for i in sample_cells(len(cells), n_cells, seed)]
    N = len(sample)

    # X[g][i]: the value of gene g in cell i, 0 where absent. A gene in the last place has value 0 and is present.
    X: dict[int, list[int]] = {}
    present: dict[int, set[int]] = {}
    for i, cell in enumerate(sample):
        for pos, gene in enumerate(cell, start=1):
            X.setdefault(gene, [0] * N)[i] = max_length - pos
            present.setdefault(gene, set()).add(i)

    genes = sorted(gene for gene in X if len(present[gene]) >= min_presence)
    if max_genes is not None:
        genes = sorted(sorted(genes, key=lambda gene: (-sum(X[gene]), gene))[:max_genes])
    ranks = {gene: centred_ranks(X[gene]) for gene in genes}

    edges: dict[tuple[int, int], tuple[float, float]] = {}
    for u in genes:
        rho = {v: rank_correlation(ranks[u], ranks[v]) for v in genes if v != u}
        defined = {v: value for v, value in rho.items() if value is not None}
        candidates = sorted(defined, key=lambda v: (-abs(defined[v]), v))[:n_neighbors]
        for v in candidates:
            if abs(defined[v]) < rho_min:
                continue
            overlap = sorted(present[u] & present[v])
            if len(overlap) < min_cooccurrence:
                continue
            local = rank_correlation(
                centred_ranks([X[u][i] for i in overlap]), centred_ranks([X[v][i] for i in overlap])
            )
            edges[u, v] = edges[v, u] = (local if local is not None else 0.0, defined[v])

    graph: dict[int, dict[int, tuple[float, float]]] = {}
    for u, v in sorted(edges):
        graph.setdefault(u, {})[v] = edges[u, v]
    return graph
