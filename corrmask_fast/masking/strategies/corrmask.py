"""CorrMask: correlated genes are masked together (Hacohen et al. 2026)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from corrmask_fast.errors import InputError, shown
from corrmask_fast.graph.rewiring import rewired
from corrmask_fast.kernels.layout import CORRMASK
from corrmask_fast.masking.base import MaskedBatch, Masker, RateLike
from corrmask_fast.masking.engine.checks import check_no_priorities, check_weights
from corrmask_fast.masking.engine.tables import NO_COSTS, NeighborTable, costs_of_edges, table_of_graphs
from corrmask_fast.masking.weights import gene_weights, token_costs

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from corrmask_fast.cells.vocabulary import Vocabulary
    from corrmask_fast.graph.dependency_graph import DependencyGraph
    from corrmask_fast.masking.weights import Weights

__all__ = ["CorrMasker", "RewiredCorrMasker", "by_graphs"]

PARTNERS = ("uniform", "weighted")


class CorrMasker(Masker):
    """Mask correlated genes together (CorrMask, Hacohen et al. 2026, Algorithm 2).

    Parameters
    ----------
    graph
        Which genes depend on each other. Or several graphs of one vocabulary, such as one for each tissue: then rows
        name theirs by its number, ``graph_ids`` at the call, and each row is masked as by that graph alone.
    mlm_probability
        p, in (0, 1): share of a row's maskable tokens that is masked, exactly floor(n · p) of n. A number; or
        ``(low, high)``, between which each row draws its own; or a schedule over steps (``schedules.py``),
        whose step :meth:`set_step` sets.
    structural_ratio
        λ, in [0, 1]: share of the masked tokens chosen through the graph; the rest is random. 0 is random masking. A
        number, a range or a schedule.
    max_partners
        K_max, >= 0: partners masked with a seed.
    partners
        How they are drawn from a seed's neighbours in the cell: ``"uniform"``, as in the paper, all alike; or
        ``"weighted"``, one after the other with a chance proportional to |rho|, as the graph stores it (of a graph
        :meth:`~corrmask_fast.DependencyGraph.from_edges`: the scores given).
    weights
        Of genes, by which seeds and the random rest are drawn: see :class:`~corrmask_fast.WeightedMasker`. None: all
        alike.
    mask_replace_prob, random_replace_prob
        Share of masked tokens that become ``<mask>``, and that become a random gene; the rest stays.
    replace
        ``"token"``: chance decides for each masked token which of the three it is. ``"group"``: for all that a seed
        masks alike, as SpanBERT replaces spans, so that no partner stays readable beside its hidden module. The shares
        are the same; which columns are masked is the same too.
    seed
        Key of the random generator, in [0, 2**64).
    validate
        Whether tokens outside the vocabulary raise. None: on the CPU yes, on a device no (there they count as genes
        without neighbours).

    Notes
    -----
    A row's mask is a pure function of (seed, draw_id, row): the same on CPU and GPU, for any batch, padding, thread,
    worker or rank layout. The draw_id is given, or follows from the row's content and the ``epoch``, or counts up
    with every row masked; the counter is the one thing that ``state_dict`` carries, beside the graph's fingerprint.

    Examples
    --------
    >>> from corrmask_fast import CorrMasker, DependencyGraph, Vocabulary
    >>> genes = Vocabulary(("<pad>", "<mask>", *(f"G{i}" for i in range(8))))
    >>> graph = DependencyGraph.from_edges([("G0", "G1"), ("G2", "G3")], genes)
    >>> masker = CorrMasker(graph, mlm_probability=0.5, structural_ratio=1.0)
    >>> import torch
    >>> masked = masker(torch.arange(2, 10).repeat(2, 1), epoch=0)
    >>> masked.masked_positions.shape
    torch.Size([2, 4])
    """

    label = "CorrMask"
    mask_source = "graph"

    def __init__(
        self,
        graph: DependencyGraph | Sequence[DependencyGraph],
        *,
        mlm_probability: RateLike = 0.15,
        structural_ratio: RateLike = 0.5,
        max_partners: int = 5,
        partners: str = "uniform",
        weights: Weights | None = None,
        mask_replace_prob: float = 0.8,
        random_replace_prob: float = 0.1,
        replace: str = "token",
        seed: int = 0,
        validate: bool | None = None,
    ) -> None:
        vocabulary, strategy, table = by_graphs(graph)
        if partners not in PARTNERS:
            raise InputError(f"partners must be {' or '.join(map(repr, PARTNERS))}; got {shown(partners)}")
        found = None if weights is None else gene_weights(weights, vocabulary)
        costs = NO_COSTS if found is None else token_costs(found, vocabulary)
        super().__init__(
            vocabulary,
            strategy,
            table.with_costs(costs, _costs_of_partners(graph) if partners == "weighted" else NO_COSTS),
            mlm_probability=mlm_probability,
            structural_ratio=structural_ratio,
            max_partners=max_partners,
            mask_replace_prob=mask_replace_prob,
            random_replace_prob=random_replace_prob,
            replace=replace,
            seed=seed,
            validate=validate,
        )
        self.partners, self.weights = partners, found
        if costs.size:
            self.mask_source = "graph and weights"
        if costs.size or partners == "weighted":
            self.label = "CorrMask-weighted"

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        special_tokens_mask: torch.Tensor | None = None,
        *,
        draw_ids: torch.Tensor | None = None,
        epoch: int | torch.Tensor | None = None,
        seed_weights: torch.Tensor | None = None,
        **more: Any,
    ) -> MaskedBatch:
        """Mask a padded batch: see :meth:`Masker.forward` for all but ``seed_weights``.

        Parameters
        ----------
        seed_weights
            (rows, columns) floating point, >= 0: a column's chance to be the next seed is proportional to its weight.
            The weights choose seeds, the graph chooses their partners. None: all columns alike. To train such weights
            with the model: :class:`~corrmask_fast.MultinomialAttentionMasker` with ``graph``.
        """
        if seed_weights is None:
            return super().forward(
                input_ids, attention_mask, special_tokens_mask, draw_ids=draw_ids, epoch=epoch, **more
            )
        from corrmask_fast.masking.engine.torch_random import gumbel_priorities, row_draws

        check_no_priorities(more, "seed_weights are")
        rows = row_draws(self, input_ids, attention_mask, special_tokens_mask, draw_ids, epoch)
        check_weights("seed_weights", seed_weights, input_ids)
        more["priorities"] = gumbel_priorities(seed_weights, rows.w0)
        masked = super().forward(input_ids, attention_mask, special_tokens_mask, draw_ids=rows.draw_ids, **more)
        if rows.counted:
            self.draw_counter.add_(input_ids.shape[0])
        return masked

    def extra_repr(self) -> str:
        """Return the parameters for ``repr``."""
        edges = self.neighbor_indices.numel() // 2
        several = f" in {self.n_graphs} graphs" if self.n_graphs > 1 else ""
        more = "" if self.partners == "uniform" else f", partners={self.partners!r}"
        more += "" if self.weights is None else ", weights"
        return f"{super().extra_repr()}, {edges} edges{several}, max_partners={self.max_partners}{more}"


class RewiredCorrMasker(CorrMasker):
    """CorrMask by a graph of the same degrees and other partners: a control of CorrMask.

    It masks genes with many partners nearly as often as CorrMask does, and genes together that are no partners. What
    CorrMask gains beside it comes from which genes are linked.

    Parameters
    ----------
    graph
        The graph, or several: ``rewired(graph, seed)`` is what masks (see :func:`~corrmask_fast.rewired`). That takes
        about 4 seconds for a million edges.
    seed
        Of the masks, and of the rewiring.
    **parameters
        See :class:`~corrmask_fast.CorrMasker`.

    Examples
    --------
    >>> import torch
    >>> from corrmask_fast import CorrMasker, DependencyGraph, RewiredCorrMasker, Vocabulary, rewired
    >>> genes = Vocabulary(("<pad>", "<mask>", *"ABCDEFGH"))
    >>> graph = DependencyGraph.from_edges(zip("ABCDEF", "BCDEFA"), genes)
    >>> cells = torch.arange(2, 10).repeat(3, 1)
    >>> control, same = RewiredCorrMasker(graph, seed=1), CorrMasker(rewired(graph, 1), seed=1)
    >>> torch.equal(control(cells, epoch=0).labels, same(cells, epoch=0).labels)
    True
    """

    def __init__(self, graph: DependencyGraph | Sequence[DependencyGraph], *, seed: int = 0, **parameters: Any) -> None:
        by_graphs(graph)  # checks them
        graphs: list[Any] = list(graph) if isinstance(graph, list | tuple) else [graph]
        super().__init__([rewired(each, seed) for each in graphs], seed=seed, **parameters)
        self.label = f"{self.label}, rewired graph"


def _costs_of_partners(graph: DependencyGraph | Sequence[DependencyGraph]) -> np.ndarray:
    graphs: list[Any] = list(graph) if isinstance(graph, list | tuple) else [graph]
    return np.concatenate([costs_of_edges(each) for each in graphs])


def by_graphs(graph: DependencyGraph | Sequence[DependencyGraph]) -> tuple[Vocabulary, int, NeighborTable]:
    """Return (vocabulary, strategy, table) of a masker with one graph, or with several of one vocabulary."""
    graphs: list[Any] = list(graph) if isinstance(graph, list | tuple) else [graph]
    for each in graphs:
        if not hasattr(each, "fingerprint"):
            raise InputError(
                f"graph must be a DependencyGraph; got {shown(each)}; DependencyGraph.load(path) reads a file"
            )
    if not graphs:
        raise InputError("CorrMasker needs one graph at least; got none")
    for number, each in enumerate(graphs[1:], 1):
        graphs[0].vocabulary.check_same(each.vocabulary, "graph 0", f"graph {number}")
    return graphs[0].vocabulary, CORRMASK, table_of_graphs(graphs)
