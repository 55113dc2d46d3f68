"""Masking strategies as ``torch.nn.Module``: a batch of token ids in, masked ids and labels out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from corrmask_fast.errors import InputError, shown
from corrmask_fast.kernels.layout import CORRMASK, PMI, RANDOM, SPAN
from corrmask_fast.masking.base import MaskedBatch, Masker, RateLike
from corrmask_fast.masking.batch_checks import check_no_priorities
from corrmask_fast.masking.neighbor_tables import no_table, table_of_graphs, table_of_pairs
from corrmask_fast.tensor_files import hash_tensors

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from corrmask_fast.cells.vocabulary import Vocabulary
    from corrmask_fast.graph.dependency_graph import DependencyGraph
    from corrmask_fast.masking.pmi import PMITable

__all__ = ["CorrMasker", "PMIMasker", "RandomMasker", "SpanMasker"]


class RandomMasker(Masker):
    """Mask random genes: exactly floor(n · p) of a row's n maskable tokens, each set of them as likely as any other.

    Parameters
    ----------
    vocabulary
        Which id is which gene.
    mlm_probability, mask_replace_prob, random_replace_prob, seed, validate
        See :class:`CorrMasker`; with ``structural_ratio=0`` that gives the same masks.

    Examples
    --------
    >>> import torch
    >>> from corrmask_fast import RandomMasker, Vocabulary
    >>> genes = Vocabulary(("<pad>", "<mask>", *(f"G{i}" for i in range(8))))
    >>> masked = RandomMasker(genes, mlm_probability=0.25)(torch.arange(2, 10).repeat(2, 1), epoch=0)
    >>> (masked.labels != -100).sum(1)
    tensor([2, 2])
    """

    label = "Random"

    def __init__(
        self,
        vocabulary: Vocabulary,
        *,
        mlm_probability: RateLike = 0.15,
        mask_replace_prob: float = 0.8,
        random_replace_prob: float = 0.1,
        seed: int = 0,
        validate: bool | None = None,
    ) -> None:
        super().__init__(
            vocabulary,
            RANDOM,
            no_table(vocabulary),
            mlm_probability=mlm_probability,
            structural_ratio=0.0,
            mask_replace_prob=mask_replace_prob,
            random_replace_prob=random_replace_prob,
            seed=seed,
            validate=validate,
        )


class SpanMasker(Masker):
    """Mask runs of neighbouring genes (SpanBERT, Joshi et al. 2020): lengths geometric with p = 0.2, up to 10.

    Parameters
    ----------
    vocabulary
        Which id is which gene.
    structural_ratio
        λ, in [0, 1]: share of the masked tokens that spans choose; the rest is random.
    mlm_probability, mask_replace_prob, random_replace_prob, seed, validate
        See :class:`CorrMasker`.

    Examples
    --------
    >>> import torch
    >>> from corrmask_fast import SpanMasker, Vocabulary
    >>> genes = Vocabulary(("<pad>", "<mask>", *(f"G{i}" for i in range(30))))
    >>> masker = SpanMasker(genes, mlm_probability=0.2)
    >>> masker(torch.arange(2, 32).repeat(1, 1), epoch=1).masked_positions
    tensor([[ 8, 24, 26, 27, 28, 29]])
    """

    label = "Span"

    def __init__(
        self,
        vocabulary: Vocabulary,
        *,
        mlm_probability: RateLike = 0.15,
        structural_ratio: RateLike = 1.0,
        mask_replace_prob: float = 0.8,
        random_replace_prob: float = 0.1,
        seed: int = 0,
        validate: bool | None = None,
    ) -> None:
        super().__init__(
            vocabulary,
            SPAN,
            no_table(vocabulary),
            mlm_probability=mlm_probability,
            structural_ratio=structural_ratio,
            mask_replace_prob=mask_replace_prob,
            random_replace_prob=random_replace_prob,
            seed=seed,
            validate=validate,
        )


class PMIMasker(Masker):
    """Mask runs of genes that stand next to each other more often than by chance (PMI masking, Levine et al. 2021).

    Parameters
    ----------
    table
        Which ordered pairs of genes are associated; its vocabulary is the masker's.
    npmi_min
        NPMI from which on two neighbours belong together.
    structural_ratio
        λ, in [0, 1]: share of the masked tokens that runs choose, as far as there are any; the rest is random. The
        paper's PMI is 1, its PMI-Rand 0.5.
    mlm_probability, mask_replace_prob, random_replace_prob, seed, validate
        See :class:`CorrMasker`.

    Examples
    --------
    >>> import torch
    >>> from corrmask_fast import PMIMasker, PMITable, Vocabulary, read_corpus
    >>> genes = Vocabulary(("<pad>", "<mask>", "A", "B", "C", "D", "E", "F"))
    >>> cells = read_corpus([[2, 3, 4, 5, 6, 7], [5, 2, 3, 7], [4, 2, 3, 6]], genes)
    >>> table = PMITable.from_corpus(cells, min_count=2, progress=False)
    >>> masker = PMIMasker(table, mlm_probability=0.4)
    >>> masker(torch.tensor([[5, 4, 2, 3, 6]]), epoch=0).masked_positions  # A and B
    tensor([[2, 3]])
    """

    label = "PMI"
    goes_by = "PMI table"

    def __init__(
        self,
        table: PMITable,
        *,
        npmi_min: float = 0.1,
        mlm_probability: RateLike = 0.15,
        structural_ratio: RateLike = 1.0,
        mask_replace_prob: float = 0.8,
        random_replace_prob: float = 0.1,
        seed: int = 0,
        validate: bool | None = None,
    ) -> None:
        if not hasattr(table, "at_least"):
            raise InputError(f"table must be a PMITable; got {shown(table)}; PMITable.load(path) reads a file")
        indptr, indices = table.at_least(npmi_min)
        digest = hash_tensors(table.vocabulary.fingerprint.encode(), {"indptr": indptr, "indices": indices})
        super().__init__(
            table.vocabulary,
            PMI,
            table_of_pairs(indptr, indices, digest),
            mlm_probability=mlm_probability,
            structural_ratio=structural_ratio,
            mask_replace_prob=mask_replace_prob,
            random_replace_prob=random_replace_prob,
            seed=seed,
            validate=validate,
        )
        self.npmi_min = float(npmi_min)
        self.n_pairs = int(indices.size)

    def extra_repr(self) -> str:
        """Return the parameters for ``repr``."""
        return f"{super().extra_repr()}, {self.n_pairs} pairs, npmi_min={self.npmi_min}"


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
        which goes by :meth:`set_step`.
    structural_ratio
        λ, in [0, 1]: share of the masked tokens chosen through the graph; the rest is random. 0 is random masking. A
        number, a range or a schedule.
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

    label = "CorrMask"
    goes_by = "graph"

    def __init__(
        self,
        graph: DependencyGraph | Sequence[DependencyGraph],
        *,
        mlm_probability: RateLike = 0.15,
        structural_ratio: RateLike = 0.5,
        max_partners: int = 5,
        mask_replace_prob: float = 0.8,
        random_replace_prob: float = 0.1,
        seed: int = 0,
        validate: bool | None = None,
    ) -> None:
        graphs = graphs_of(graph)
        super().__init__(
            graphs[0].vocabulary,
            CORRMASK,
            table_of_graphs(graphs),
            mlm_probability=mlm_probability,
            structural_ratio=structural_ratio,
            max_partners=max_partners,
            mask_replace_prob=mask_replace_prob,
            random_replace_prob=random_replace_prob,
            seed=seed,
            validate=validate,
        )

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
            (rows, columns) floating point, >= 0: chances of columns to be the next seed, as their weights. Learned
            weights say where to start, and the graph where to go. None: all alike. To train such weights with the
            model: :class:`~corrmask_fast.MultinomialAttentionMasker` with ``graph``.
        """
        if seed_weights is None:
            return super().forward(
                input_ids, attention_mask, special_tokens_mask, draw_ids=draw_ids, epoch=epoch, **more
            )
        from corrmask_fast.masking.torch_random import check_weights, gumbel_priorities, look_at_rows

        check_no_priorities(more, "seed_weights are")
        rows = look_at_rows(self, input_ids, attention_mask, special_tokens_mask, draw_ids, epoch)
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
        return f"{super().extra_repr()}, {edges} edges{several}, max_partners={self.max_partners}"


def graphs_of(graph: DependencyGraph | Sequence[DependencyGraph]) -> list[DependencyGraph]:
    """Return one graph or several as a list; they must be graphs of one vocabulary."""
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
    return graphs
