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
        A :class:`~corrmask_fast.DependencyGraph`: which genes are partners. Or a list of graphs of one vocabulary, such
        as one for each tissue: then each row names its graph by number (``graph_ids`` at the call) and is masked by
        that graph alone.
    mlm_probability
        p, in (0, 1): share of a row's n maskable tokens that is masked, exactly floor(n · p). A number; or
        ``(low, high)``, from which each row draws its own; or a schedule over training steps
        (:class:`~corrmask_fast.Linear`, :class:`~corrmask_fast.Cosine`, :class:`~corrmask_fast.Piecewise`), whose step
        :meth:`set_step` sets.
    structural_ratio
        λ, in [0, 1]: share of the masked tokens that are chosen through the graph; the rest is random. 0 is random
        masking. A number, a range or a schedule.
    max_partners
        K_max, >= 0: most partners that are masked with a seed gene.
    partners
        How partners are drawn from a seed's neighbours in the cell. ``"uniform"``, as in the paper: all alike.
        ``"weighted"``: one after the other, with a chance proportional to the edge's |rho| as the graph stores it (for
        a graph of :meth:`~corrmask_fast.DependencyGraph.from_edges`: the scores given).
    weights
        Weights of genes, by which seeds and the random rest are drawn, as :class:`~corrmask_fast.WeightedMasker` takes
        them. None: all genes alike.
    mask_replace_prob
        Share of the masked tokens that become the mask token, in [0, 1].
    random_replace_prob
        Share of the masked tokens that become a random gene, in [0, 1]; with ``mask_replace_prob`` at most 1. The
        others stay as they are.
    replace
        ``"token"``: each masked token draws its own replacement. ``"group"``: a seed and the partners masked with it
        share one draw, as SpanBERT replaces spans. Then no partner stays readable while the rest of its group is
        hidden. Which columns are masked, and the shares of replacements, stay the same.
    seed
        Key of the random generator, in [0, 2**64).
    validate
        True: a token outside the vocabulary raises. False: it counts as a gene without partners. None: True on the CPU,
        False on a device.

    Attributes
    ----------
    weights
        (V,) float64, read-only: the weight of each token; None without weights.

    Raises
    ------
    InputError
        If ``graph`` is no graph, several graphs have different vocabularies, a parameter is out of range, or
        ``weights`` break the rules of :class:`~corrmask_fast.WeightedMasker`.

    Notes
    -----
    A row's mask is a function of the seed, the row's draw and the row: the same on CPU and GPU, for any batch, padding,
    thread, worker or rank layout (docs/SPEC.md 3 and 4). The draw is given (``draw_ids``), or follows from the row's
    genes and the ``epoch``, or counts up with every row masked. ``state_dict`` has this counter, the fingerprint of the
    graph, and nothing else.

    Examples
    --------
    >>> import torch
    >>> from corrmask_fast import CorrMasker, DependencyGraph, Vocabulary
    >>> genes = Vocabulary(("<pad>", "<mask>", *(f"G{i}" for i in range(8))))
    >>> graph = DependencyGraph.from_edges([("G0", "G1"), ("G2", "G3")], genes)
    >>> masker = CorrMasker(graph, mlm_probability=0.5, structural_ratio=1.0)
    >>> masker(torch.arange(2, 10)[None], epoch=0).masked_positions  # the two pairs
    tensor([[0, 1, 2, 3]])
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
        """Mask a padded batch. Call the masker itself: ``masker(input_ids, …)``.

        Parameters
        ----------
        input_ids, attention_mask, special_tokens_mask, draw_ids, epoch
            As for every masker: see :meth:`corrmask_fast.Masker.forward`.
        seed_weights
            (rows, columns) floating point, >= 0: a column's chance to be the next seed is proportional to its weight.
            The weights choose seeds; the graph chooses their partners. None: all columns alike. To train such weights
            with the model, use :class:`~corrmask_fast.MultinomialAttentionMasker` with ``graph``.
        **more
            ``graph_ids``, ``priorities`` and ``marks_only``, likewise.

        Returns
        -------
        MaskedBatch
            Masked ids, labels and masked columns: see :class:`~corrmask_fast.MaskedBatch`.

        Raises
        ------
        InputError
            As for every masker; and if ``seed_weights`` do not fit the batch, are below 0 (looked for on the CPU only),
            or are given beside ``priorities``.
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
    """Mask by a rewired graph, of the same degrees and other partners: a control of CorrMask.

    It masks genes with many partners nearly as often as CorrMask does, and it masks genes together that are no
    partners. What CorrMask gains over this control comes from which genes are linked.

    Parameters
    ----------
    graph
        A :class:`~corrmask_fast.DependencyGraph`, or a list of them, as for :class:`~corrmask_fast.CorrMasker`. Masks
        go by ``rewired(graph, seed)``: see :func:`~corrmask_fast.rewired`. Rewiring takes about 4 seconds for a million
        edges.
    seed
        Of the masks and of the rewiring, in [0, 2**64).
    **parameters
        All others of :class:`~corrmask_fast.CorrMasker`.

    Raises
    ------
    InputError
        As :class:`~corrmask_fast.CorrMasker` does.

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
