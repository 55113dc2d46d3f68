"""Masking strategies as ``torch.nn.Module``: a batch of token ids in, masked ids and labels out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from corrmask_fast.errors import InputError
from corrmask_fast.kernels.layout import CORRMASK
from corrmask_fast.masker_base import MaskedBatch, Masker
from corrmask_fast.neighbor_tables import table_of_graphs

if TYPE_CHECKING:
    from corrmask_fast.graph import DependencyGraph

__all__ = ["CorrMasker", "MaskedBatch"]


class CorrMasker(Masker):
    """Mask correlated genes together (CorrMask, Hacohen et al. 2026, Algorithm 2).

    Parameters
    ----------
    graph
        Which genes depend on each other.
    mlm_probability
        p, in (0, 1): share of a row's maskable tokens that is masked, exactly floor(n · p) of n.
    structural_ratio
        λ, in [0, 1]: share of the masked tokens chosen through the graph; the rest is random. 0 is random masking.
    max_partners
        K_max, >= 0: partners masked with a seed.
    mask_replace_prob, random_replace_prob
        Share of masked tokens that become ``<mask>``, and that become a random gene; the rest stays.
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

    goes_by = "graph"

    def __init__(
        self,
        graph: DependencyGraph,
        *,
        mlm_probability: float = 0.15,
        structural_ratio: float = 0.5,
        max_partners: int = 5,
        mask_replace_prob: float = 0.8,
        random_replace_prob: float = 0.1,
        seed: int = 0,
        validate: bool | None = None,
    ) -> None:
        if not hasattr(graph, "fingerprint"):
            raise InputError(f"graph must be a DependencyGraph; got {graph!r}; DependencyGraph.load(path) reads a file")
        super().__init__(
            graph.vocabulary,
            CORRMASK,
            table_of_graphs([graph]),
            mlm_probability=mlm_probability,
            structural_ratio=structural_ratio,
            max_partners=max_partners,
            mask_replace_prob=mask_replace_prob,
            random_replace_prob=random_replace_prob,
            seed=seed,
            validate=validate,
        )

    def extra_repr(self) -> str:
        """Return the parameters for ``repr``."""
        return (
            f"{self.vocabulary!r}, {self.neighbor_indices.numel() // 2} edges, mlm_probability={self.mlm_probability}, "
            f"structural_ratio={self.structural_ratio}, max_partners={self.max_partners}, seed={self.seed}"
        )
