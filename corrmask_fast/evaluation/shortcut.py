"""The shortcut, paired: what it is worth to a model that a gene's partners are in view, at the same gene of a cell."""

from __future__ import annotations

import math
import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from corrmask_fast.errors import InputError, check_integer, check_number, check_seed
from corrmask_fast.evaluation.scored_models import FREQUENCIES, Models, gene_counts, opened, scored_length
from corrmask_fast.evaluation.standard_errors import Estimate, estimate, in_bins
from corrmask_fast.progress import progress_bar
from corrmask_fast.suggestions import entry
from corrmask_fast.tables import align, write_csv

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

    from corrmask_fast.cells.corpus import Corpus
    from corrmask_fast.cells.vocabulary import Vocabulary
    from corrmask_fast.graph.dependency_graph import DependencyGraph

__all__ = ["MEASURES", "Shortcut", "measure_shortcut"]

RANDOM, PARTNERS, PLACEBO = range(3)  # what is hidden beside the target: versions (a), (b) and (c) of a cell
# A measure is the loss at the target in one version less that in another.
MEASURES = {"shortcut": (PARTNERS, RANDOM), "placebo": (PLACEBO, RANDOM), "excess": (PARTNERS, PLACEBO)}
RHOS = (0.3, 0.4, 0.6)  # edges of ranges of the largest |rho|


class Refused(NamedTuple):
    """Genes that cannot be targets, among all genes of the cells that were looked at."""

    cells: int
    """Cells that were looked at."""
    genes: int
    """Genes in them."""
    no_partner: int
    """Genes without a partner in the cell."""
    too_many_partners: int
    """Genes whose k partners in the cell are more than (B - 1) / 2; B is the number of genes masked in the cell."""
    too_few_genes: int
    """Genes beside which the cell has too few others, to hide at random and as a placebo."""

    def text(self) -> str:
        """Return the numbers in words."""
        shares = [f"{100 * part / max(self.genes, 1):.1f} %" for part in self[2:]]
        return (
            f"Of {self.genes:,} genes in the {self.cells:,} cells looked at, {shares[0]} have no partner in the cell, "
            f"{shares[1]} have more partners there than half of the genes that are masked beside them, {shares[2]} "
            "have too few other genes"
        )


@dataclass(frozen=True)
class Shortcut:
    """Losses of models at the same target genes, as :func:`~corrmask_fast.measure_shortcut` returns them.

    Each target is predicted in three versions of its cell: with random genes masked beside it (a), with its partners
    masked (b), with placebo genes masked (c). n is the number of targets. A measure is the difference of two losses:
    ``"shortcut"`` is (b) − (a), ``"placebo"`` is (c) − (a), ``"excess"`` is (b) − (c).

    Attributes
    ----------
    cells
        (n,) int64: the cell of each target, by its place in the corpus.
    genes
        (n,) int64: token of the target.
    partners
        (n,) int64: number of the target's neighbours in the graph that are in its cell.
    rho
        (n,) float64: the largest absolute rho among these partners.
    frequency
        (n,) float64: share of the corpus's cells that have the target, in [0, 1].
    losses
        Name of a model → (n, 3) float64: losses in the versions (a), (b), (c), in nats.
    refused
        Numbers of genes that could not be targets, by reason.
    mlm_probability
        Share of a cell's genes that is masked in each version.
    vocabulary
        Which token is which gene.

    Examples
    --------
    >>> import torch
    >>> from corrmask_fast import DependencyGraph, measure_shortcut, read_corpus
    >>> from corrmask_fast.testing import make_vocabulary
    >>> genes = make_vocabulary(8)
    >>> graph, corpus = DependencyGraph.from_edges([("G0", "G1")], genes), read_corpus([range(2, 10)] * 2, genes)
    >>> def uniform(input_ids, attention_mask):  # gives all 10 tokens the same probability
    ...     return torch.zeros(*input_ids.shape, 10)
    >>> found = measure_shortcut({"uniform": uniform}, corpus, graph, mlm_probability=0.5, progress=False)
    >>> found.losses["uniform"].shape, found.mean("uniform", "placebo").mean
    ((4, 3), 0.0)
    """

    cells: np.ndarray
    genes: np.ndarray
    partners: np.ndarray
    rho: np.ndarray
    frequency: np.ndarray
    losses: Mapping[str, np.ndarray]
    refused: Refused
    mlm_probability: float
    vocabulary: Vocabulary

    @property
    def models(self) -> list[str]:
        """Names of the models."""
        return list(self.losses)

    def values(self, model: str, measure: str = "shortcut") -> np.ndarray:
        """Return a measure at each target.

        Parameters
        ----------
        model
            Name of a model.
        measure
            ``"shortcut"``, ``"placebo"`` or ``"excess"``.

        Returns
        -------
        numpy.ndarray
            (n,) float64, in nats.

        Raises
        ------
        InputError
            If there is no such model or measure.
        """
        if measure not in MEASURES:
            raise InputError(f"measure must be one of {', '.join(MEASURES)}; got {measure!r}")
        hidden, shown = MEASURES[measure]
        losses = entry(self.losses, model, "model")
        return losses[:, hidden] - losses[:, shown]

    def mean(self, model: str, measure: str = "shortcut", among: np.ndarray | None = None) -> Estimate:
        """Return the mean of a measure, with its standard error over cells.

        Parameters
        ----------
        model
            Name of a model.
        measure
            ``"shortcut"``, ``"placebo"`` or ``"excess"``.
        among
            (n,) bool: the targets that count. None: all.

        Returns
        -------
        Estimate
            In nats: ``mean``, ``error``; ``n`` and ``n_cells``: the number of targets and of their cells.
        """
        return estimate(self.values(model, measure), self.cells, among)

    def difference(self, model: str, other: str, measure: str = "shortcut") -> Estimate:
        """Return the mean of one model's measure minus another's at the same targets: a paired difference.

        Parameters
        ----------
        model, other
            Names of models: the measure of ``model`` minus that of ``other``.
        measure
            ``"shortcut"``, ``"placebo"`` or ``"excess"``.

        Returns
        -------
        Estimate
            In nats: ``mean``, ``error`` (standard error over cells); ``n`` and ``n_cells`` as of :meth:`mean`.
        """
        return estimate(self.values(model, measure) - self.values(other, measure), self.cells)

    def groups(self) -> dict[str, dict[str, np.ndarray]]:
        """Return the targets in groups, by the largest absolute rho of their partners and by their frequency.

        Returns
        -------
        dict
            ``"shortcut by rho"`` and ``"shortcut by frequency"`` → name of a group → (n,) bool.
        """
        by_frequency = in_bins(self.frequency, FREQUENCIES, percent=True)
        return {"shortcut by rho": in_bins(self.rho, RHOS), "shortcut by frequency": by_frequency}

    def table(self) -> str:
        """Return the measures of all models, their differences from the first model, and the measures by group.

        Returns
        -------
        str
            Tables in plain text.
        """
        first = self.models[0]
        several = len(self.models) > 1
        rows = [["", "loss, in view", *MEASURES, *(["shortcut less first", "excess less first"] if several else [])]]
        for model in self.models:
            in_view = estimate(self.losses[model][:, RANDOM], self.cells)
            row = [model, in_view.text(), *(self.mean(model, measure).text(4) for measure in MEASURES)]
            if several:
                less = (self.difference(model, first, measure).text(4) for measure in ("shortcut", "excess"))
                row += ["", ""] if model == first else less
            rows.append(row)
        parts = [self._head(), "\n".join(align(rows))]
        titles = {"shortcut by rho": "largest |rho|", "shortcut by frequency": "share of cells with gene"}
        for name, groups in self.groups().items():
            rows = [[titles[name], "targets", "model", *MEASURES]]
            for group, among in groups.items():
                number = f"{np.count_nonzero(among):,}"
                for model in self.models if among.any() else ():
                    of_model = [self.mean(model, measure, among).text(4) for measure in MEASURES]
                    rows.append([group, number, model, *of_model])
                    group, number = "", ""  # noqa: PLW2901 (named once)
            parts.append("\n".join([name.capitalize(), *align(rows)]))
        return "\n\n".join(parts)

    def _head(self) -> str:
        return (
            f"{self.genes.size:,} targets in {np.unique(self.cells).size:,} cells; {self.mlm_probability:g} of a "
            f"cell's genes masked, always by <mask>.\n{textwrap.fill(self.refused.text(), 110)}.\n"
            "Nats; ± is the standard error over cells. loss, in view: at the target, with random genes hidden beside "
            "it and\nall partners in view. shortcut: the rise of the loss if its partners are hidden in place of as "
            "many of these.\nplacebo: the same for random genes of the partners' frequency. excess: shortcut less "
            "placebo."
        )

    def save_csv(self, path: str | os.PathLike[str]) -> None:
        """Write every target to a CSV file: its cell, gene, partners and frequency, and each model's three losses.

        Parameters
        ----------
        path
            The file to write.
        """
        head = ["cell", "gene", "symbol", "partners", "rho", "frequency"]
        head += [f"{model} {version}" for model in self.models for version in ("(a)", "(b)", "(c)")]
        losses = np.concatenate([self.losses[model] for model in self.models], axis=1).tolist()
        columns = (self.cells, self.genes, self.partners, self.rho, self.frequency)
        write_csv(
            path,
            head,
            (
                [cell, self.vocabulary.names[gene], self.vocabulary.name_of(gene), *more, *of_models]
                for (cell, gene, *more), of_models in zip(
                    zip(*(column.tolist() for column in columns), strict=True), losses, strict=True
                )
            ),
        )


class Target(NamedTuple):
    """A gene of a cell, and which genes are masked in each version of the cell."""

    cell: int
    gene: int
    partners: np.ndarray  # (k,) int64 tokens, the largest |rho| first
    rho: float
    masked: np.ndarray  # (3, B) int64 tokens, the target first


def measure_shortcut(
    models: Models,
    corpus: Corpus,
    graph: DependencyGraph,
    *,
    mlm_probability: float = 0.15,
    n_targets: int = 1000,
    seed: int = 0,
    batch_size: int = 8,
    max_length: int | None = None,
    device: str = "auto",
    progress: bool = True,
) -> Shortcut:
    """Measure how much a model's loss at a masked gene rises when the gene's partners are masked too.

    The same gene of the same cell, the target, is predicted three times. Each time the same number of genes is masked:

    (a) the target, and random genes that are not its partners;
    (b) the target and its partners, in place of some of the random genes;
    (c) the target and the placebo genes, in place of the same random genes: for each partner a gene of similar
        frequency.

    The shortcut is the loss in (b) minus that in (a). The placebo is the loss in (c) minus that in (a): what it costs
    to mask as many genes that are not partners.

    Parameters
    ----------
    models
        As for :func:`~corrmask_fast.score_masks`.
    corpus
        Cells that no model was trained on, of the models' vocabulary.
    graph
        Graph whose neighbours are the partners. It is used for all cells. If groups of cells have graphs of their own,
        call this for each group (``corpus.select``).
    mlm_probability
        Share of a cell's genes that is masked in each version: B = floor(share · genes), the target among them.
    n_targets
        Largest number of targets.
    seed
        Seed of the targets and masks, the same for all models, in [0, 2**64).
    batch_size
        Number of targets in a batch, with three rows each. It changes the losses by rounding errors only.
    max_length, device, progress
        As for :func:`~corrmask_fast.score_masks`.

    Returns
    -------
    Shortcut
        The three losses of every model at every target.

    Raises
    ------
    InputError
        If a model cannot be loaded; if a model or the graph has another vocabulary than the corpus; or if no gene can
        be a target.

    See Also
    --------
    score_masks : Losses of models under the same masks.

    Notes
    -----
    A target has k partners in its cell, 1 ≤ k ≤ (B − 1) / 2, and the cell has enough other genes. Targets are chosen in
    rounds over the cells in random order. Each round takes one more random gene of each cell.

    Placebo genes are chosen among the cell's genes that are neither target, nor partner, nor masked in (a). For each
    partner, in order of falling absolute rho, it is the gene that is in the most similar number of cells. Masked genes
    become ``<mask>``; ``<cls>`` and ``<eos>`` stay.

    A gene's partners also tell a cell's type, and a model can use that without copying. The placebo genes may tell less
    of the type.

    Examples
    --------
    >>> from transformers import BertConfig, BertForMaskedLM
    >>> from corrmask_fast import DependencyGraph, measure_shortcut, read_corpus
    >>> from corrmask_fast.testing import make_vocabulary
    >>> genes = make_vocabulary(20)
    >>> graph = DependencyGraph.from_edges([("G0", "G1"), ("G2", "G3")], genes)
    >>> corpus = read_corpus([range(2, 22)] * 10, genes)
    >>> config = BertConfig(
    ...     vocab_size=genes.size, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8
    ... )
    >>> found = measure_shortcut(
    ...     {"new weights": BertForMaskedLM(config)}, corpus, graph, mlm_probability=0.3, n_targets=20, progress=False
    ... )
    >>> found.mean("new weights").n, int(found.partners.max())
    (20, 1)
    """
    share = check_number("mlm_probability", mlm_probability, 0, 1, open_ends=True)
    check_integer("n_targets", n_targets, 1)
    check_integer("batch_size", batch_size, 1)
    check_seed(seed)
    corpus.vocabulary.check_same(graph.vocabulary, "the corpus", "the graph")
    corpus.vocabulary.require_mask_token()
    with opened(models, corpus.vocabulary, device) as scored:
        length = scored_length(scored, corpus, max_length)
        counts = gene_counts(corpus, length)
        targets, refused = plan_targets(corpus, graph, counts, length, share, n_targets, seed)
        losses = {model.name: np.empty((len(targets), 3)) for model in scored}
        sizes = corpus.lengths_of(np.array([target.cell for target in targets]))
        order = np.argsort(sizes, kind="stable")  # cells of like length side by side: less padding
        with progress_bar("scoring", len(targets) * len(scored), "target", shown=progress) as bar:
            for begin in range(0, order.size, batch_size):
                chosen = order[begin : begin + batch_size]
                batch = _batch(corpus, [targets[i] for i in chosen], length)
                for model in scored:
                    losses[model.name][chosen] = model.losses(batch)[0].reshape(-1, 3)
                    bar.update(chosen.size)
    cells, genes = (np.array([getattr(target, name) for target in targets]) for name in ("cell", "gene"))
    return Shortcut(
        cells=cells,
        genes=genes,
        partners=np.array([target.partners.size for target in targets]),
        rho=np.array([target.rho for target in targets]),
        frequency=counts[genes] / corpus.n_cells,
        losses=losses,
        refused=refused,
        mlm_probability=share,
        vocabulary=corpus.vocabulary,
    )


def plan_targets(
    corpus: Corpus, graph: DependencyGraph, counts: np.ndarray, length: int, share: float, n_targets: int, seed: int
) -> tuple[list[Target], Refused]:
    """Return the targets with their masks, in the order in which they are drawn, and what could not be one.

    ``counts`` (V,): the number of cells with each gene.
    """
    neighbors = graph.to_scipy(None)
    order = np.random.default_rng(seed).permutation(corpus.n_cells)
    candidates: list[tuple[int, np.ndarray]] = []  # (cell, its eligible genes in random order)
    numbers = np.zeros(4, np.int64)
    chosen: list[tuple[int, int]] = []
    for cell in order.tolist():
        genes = _genes_of(corpus, cell, length)
        eligible, kinds = _eligible(neighbors, genes, _budget(share, genes))
        numbers += kinds
        candidates.append((cell, np.random.default_rng([seed, cell]).permutation(eligible)))
        chosen += [(cell, int(gene)) for gene in candidates[-1][1][:1]]
        if len(chosen) == n_targets:
            break
    refused = Refused(len(candidates), *numbers.tolist())
    later = 1
    while len(chosen) < n_targets and (more := [(cell, genes) for cell, genes in candidates if genes.size > later]):
        chosen += [(cell, int(genes[later])) for cell, genes in more[: n_targets - len(chosen)]]
        candidates, later = more, later + 1
    if not chosen:
        raise InputError(
            f"no gene can be a target: {refused.text()}; a cell of n genes masks B = floor({share:g} · n), and a "
            "target needs 1 to (B - 1) / 2 partners in its cell; raise mlm_probability, or give longer cells or "
            "another graph"
        )
    return [_target(corpus, graph, counts, length, share, seed, *each) for each in chosen], refused


def _genes_of(corpus: Corpus, cell: int, length: int) -> np.ndarray:
    """Return the genes of a cell as the models see it, in its order."""
    lo, hi = corpus.vocabulary.gene_range
    tokens = corpus.gather_for_training(np.array([cell]), length)[1].astype(np.int64)
    return tokens[(tokens >= lo) & (tokens < hi)]


def _budget(share: float, genes: np.ndarray) -> int:
    return math.floor(share * genes.size)


def _eligible(neighbors: Any, genes: np.ndarray, budget: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the genes of a cell that may be targets, ascending, and (4,) numbers: all genes, and those refused."""
    present = np.zeros(neighbors.shape[0], np.float32)
    present[genes] = 1
    genes = np.sort(genes)
    k = (neighbors @ present)[genes].astype(np.int64)
    none, many = k == 0, (k > 0) & (2 * k > budget - 1)
    # Beside target and partners: B - 1 genes that are masked in (a), and k more that are the placebo.
    few = ~none & ~many & (genes.size - 1 - k < budget - 1 + k)
    numbers = np.array([genes.size, none.sum(), many.sum(), few.sum()])
    return genes[~(none | many | few)], numbers


def _target(
    corpus: Corpus, graph: DependencyGraph, counts: np.ndarray, length: int, share: float, seed: int,
    cell: int, gene: int,
) -> Target:  # fmt: skip
    """Return a target with its masks; they follow from seed, cell and gene."""
    genes = _genes_of(corpus, cell, length)
    budget = _budget(share, genes)
    partners, rho = graph.neighbors(gene)
    here = np.isin(partners, genes)
    partners, rho = partners[here].astype(np.int64), rho[here]
    others = np.setdiff1d(genes, np.append(partners, gene))
    others = np.random.default_rng([seed, cell, gene]).permutation(others)
    rest, pool = others[: budget - 1], others[budget - 1 :]
    placebo = []
    for partner in partners:
        nearest = int(np.abs(counts[pool] - counts[partner]).argmin())  # the first of equals, in random order
        placebo.append(pool[nearest])
        pool = np.delete(pool, nearest)
    common = rest[: budget - 1 - partners.size]
    masked = [rest, np.concatenate([partners, common]), np.concatenate([placebo, common])]
    return Target(cell, gene, partners, float(np.abs(rho[0])), np.stack([np.append(gene, each) for each in masked]))


def _batch(corpus: Corpus, targets: list[Target], length: int) -> dict[str, torch.Tensor]:
    """Return a padded batch: of each target the three versions of its cell, with a label at the target alone."""
    vocabulary = corpus.vocabulary
    indptr, tokens = corpus.gather_for_training(np.array([target.cell for target in targets]), length)
    inside = np.arange(np.diff(indptr).max()) < np.diff(indptr)[:, None]
    cells = np.full(inside.shape, vocabulary.pad_token_id, np.int64)
    cells[inside] = tokens
    ids, attention = np.repeat(cells, 3, axis=0), np.repeat(inside.astype(np.int64), 3, axis=0)
    labels, positions = np.full_like(ids, -100), np.empty((len(ids), 1), np.int64)
    place = np.zeros(vocabulary.size, np.int64)  # of each gene in the cell
    for i, target in enumerate(targets):
        cell = cells[i, : indptr[i + 1] - indptr[i]]
        place[cell] = np.arange(cell.size)
        rows, column = np.arange(3 * i, 3 * i + 3), place[target.gene]
        ids[rows[:, None], place[target.masked]] = vocabulary.require_mask_token()
        labels[rows, column], positions[rows] = target.gene, column
    arrays = {"input_ids": ids, "attention_mask": attention, "labels": labels, "masked_positions": positions}
    return {name: torch.from_numpy(array) for name, array in arrays.items()}
