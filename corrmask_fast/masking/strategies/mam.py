"""Multinomial Attention Masking (MAM, Naziri et al. 2026): learned latents choose which genes to mask.

    latents (n, dim), a random few of them for each row
        │ attend over the model's gene embeddings
        ▼
    attention summed over heads and latents ──▶ B columns drawn by weight, without replacement ──▶ replacement
                                                (or with a graph: CorrMask's seeds)                    │
                                                                                                       │
    embeddings of the masked row ◀── + context: the latents' mean attention output over it, projected ◀┘

Sampling lets no gradient through: the latents learn through the context alone, and the context sees only what stays
visible. How it is done is SPEC 5's; the paper's code is not public.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 (its usual name)

from corrmask_fast.errors import InputError, check_integer, readable, shown
from corrmask_fast.kernels.layout import SAMPLED
from corrmask_fast.masking.base import MaskedBatch, Masker, RateLike
from corrmask_fast.masking.engine.checks import check_embedded, check_no_priorities
from corrmask_fast.masking.engine.tables import no_table
from corrmask_fast.masking.engine.torch_random import gumbel_priorities, philox_words, row_draws
from corrmask_fast.masking.schedules import parse_rate, rate_text
from corrmask_fast.masking.strategies.corrmask import by_graphs
from corrmask_fast.tensor_files import FileKind, read_graph, write_graph

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

    from corrmask_fast.cells.vocabulary import Vocabulary
    from corrmask_fast.graph.dependency_graph import DependencyGraph

__all__ = ["MultinomialAttentionMasker"]

MAX_SIZE = 65_536  # of latents, in number and in width
LATENT_BLOCK = 2**32 - 1  # the Philox block from which latents are chosen
LAYERS = ("norm", "query", "key", "value", "project")
WEIGHTS = frozenset({"latents", *(f"{name}.{part}" for name in LAYERS for part in ("weight", "bias"))})
KIND = FileKind(
    *("corrmask-fast attention masker", 1, "attention masker", "attention masker", "pretrain --strategy mam"),
    *(WEIGHTS, WEIGHTS),
)


class MultinomialAttentionMasker(Masker):
    """Mask the genes that learned latents attend to (Multinomial Attention Masking, MAM, Naziri et al. 2026).

    The masker learns with a model. ``CorrMaskTrainer(model, masker=masker, masking="device")`` does everything. In a
    training loop of your own, :meth:`masked_lm` is a forward pass of a Hugging Face model; give the parameters of both
    to the optimiser. For another model, :meth:`draw` makes the mask, and :meth:`context` is what you add to the
    embeddings of the masked ids.

    Parameters
    ----------
    vocabulary
        The :class:`~corrmask_fast.Vocabulary`: which id is which gene.
    dim
        Width of the model's embeddings.
    graph
        A :class:`~corrmask_fast.DependencyGraph` of that vocabulary, or a list of them, as for
        :class:`~corrmask_fast.CorrMasker`. Then attention chooses the seeds of CorrMask, and the graph chooses their
        partners (CorrMask-MAM). None: attention chooses the masked genes.
    n_latents
        Number of learned latents.
    n_heads
        Number of attention heads; must divide ``dim``.
    latent_ratio
        In (0, 1]: share of the latents, at least one, that attend to a row. Which ones is drawn anew for each row.
    mlm_probability
        p, in (0, 1): share of a row's n maskable tokens that is masked, exactly floor(n · p). A number, a range or a
        schedule.
    structural_ratio
        With ``graph`` only: λ, as for :class:`~corrmask_fast.CorrMasker`. None: 0.5.
    max_partners
        With ``graph`` only: as for :class:`~corrmask_fast.CorrMasker`. None: 5.
    mask_replace_prob, random_replace_prob, replace
        As for :class:`~corrmask_fast.CorrMasker`.
    seed
        Of the draws and of the initial weights, in [0, 2**64).
    validate
        As for :class:`~corrmask_fast.CorrMasker`.

    Attributes
    ----------
    n_chosen
        Number of latents that attend to a row: max(1, floor(n_latents · latent_ratio)).
    latents
        (n_latents, dim) parameter: the latents.

    Raises
    ------
    InputError
        If a parameter is out of range, ``structural_ratio`` or ``max_partners`` is given without a graph, or the
        graph's vocabulary is another one.

    Notes
    -----
    No gradient passes through the sampling of a mask: the latents learn through the context alone, and the context sees
    only what stays visible. The paper's code is not public; docs/SPEC.md 5 says what is computed.

    Examples
    --------
    >>> import torch
    >>> from corrmask_fast import MultinomialAttentionMasker, Vocabulary
    >>> genes = Vocabulary(("<pad>", "<mask>", *(f"G{i}" for i in range(20))))
    >>> embeddings = torch.nn.Embedding(genes.size, 8)
    >>> masker = MultinomialAttentionMasker(genes, dim=8, n_latents=4, n_heads=2, mlm_probability=0.2)
    >>> masker(torch.arange(2, 22).repeat(3, 1), embeddings=embeddings, epoch=0).masked_positions.shape
    torch.Size([3, 4])
    """

    label = "MAM"
    needs_model = True
    own_parameters = ("n_latents", "n_heads", "latent_ratio")

    def __init__(
        self,
        vocabulary: Vocabulary,
        dim: int,
        *,
        graph: DependencyGraph | Sequence[DependencyGraph] | None = None,
        n_latents: int = 64,
        n_heads: int = 4,
        latent_ratio: float = 0.5,
        mlm_probability: RateLike = 0.15,
        structural_ratio: RateLike | None = None,
        max_partners: int | None = None,
        mask_replace_prob: float = 0.8,
        random_replace_prob: float = 0.1,
        replace: str = "token",
        seed: int = 0,
        validate: bool | None = None,
    ) -> None:
        strategy, table, defaults = SAMPLED, no_table(vocabulary), {"structural_ratio": 0.0, "max_partners": 0}
        given = {"structural_ratio": structural_ratio, "max_partners": max_partners}
        given = {name: value for name, value in given.items() if value is not None}
        if graph is not None:
            graph_vocabulary, strategy, table = by_graphs(graph)
            graph_vocabulary.check_same(vocabulary, "the graph", "the masker")
            defaults = {"structural_ratio": 0.5, "max_partners": 5}
        elif given:
            raise InputError(f"{next(iter(given))} goes with a graph; give graph=DependencyGraph.load(path)")
        super().__init__(
            vocabulary,
            strategy,
            table,
            mlm_probability=mlm_probability,
            mask_replace_prob=mask_replace_prob,
            random_replace_prob=random_replace_prob,
            replace=replace,
            seed=seed,
            validate=validate,
            **(defaults | given),  # type: ignore[arg-type]
        )
        if graph is not None:
            self.label, self.mask_source = "CorrMask-MAM", "graph"
        self.dim = check_integer("dim", dim, 1, MAX_SIZE)
        self.n_heads = check_integer("n_heads", n_heads, 1, MAX_SIZE)
        if dim % n_heads:
            raise InputError(f"n_heads must divide dim={dim}; got {n_heads}")
        self.n_latents = check_integer("n_latents", n_latents, 1, MAX_SIZE)
        if isinstance(latent_ratio, bool) or not isinstance(latent_ratio, int | float) or not 0 < latent_ratio <= 1:
            raise InputError(
                f"latent_ratio must be a number in (0, 1]; got {shown(latent_ratio)}; 1 lets all latents attend"
            )
        self.latent_ratio = float(latent_ratio)
        self.n_chosen = max(1, int(n_latents * self.latent_ratio))
        self._make_weights()

    def _make_weights(self) -> None:
        # On the CPU, whatever the default device: the seed's weights are the same ones everywhere.
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            torch.default_generator.manual_seed(self.seed)
            self.latents = nn.Parameter(torch.empty(self.n_latents, self.dim))
            nn.init.normal_(self.latents, std=0.02)
            self.norm = nn.LayerNorm(self.dim)  # of the embeddings attended to, whatever their scale
            self.query, self.key, self.value, self.project = (nn.Linear(self.dim, self.dim) for _ in range(4))

    # --------------------------------------------------------------------------------------------------- drawing masks

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        special_tokens_mask: torch.Tensor | None = None,
        *,
        draw_ids: torch.Tensor | None = None,
        epoch: int | torch.Tensor | None = None,
        embeddings: nn.Module | None = None,
        **more: Any,
    ) -> MaskedBatch:
        """Mask a padded batch; no gradient passes through. Call the masker itself: ``masker(input_ids, …)``.

        Parameters
        ----------
        input_ids, attention_mask, special_tokens_mask, draw_ids, epoch
            As for every masker: see :meth:`corrmask_fast.Masker.forward`.
        embeddings
            The model's token embeddings: see :meth:`draw`.
        **more
            ``graph_ids``, ``marks_only``; and ``weighted``: see :meth:`draw`.

        Returns
        -------
        MaskedBatch
            Masked ids, labels and masked columns: see :class:`~corrmask_fast.MaskedBatch`.

        Raises
        ------
        InputError
            As :meth:`draw` does.
        """
        more |= {"embeddings": embeddings, "draw_ids": draw_ids, "epoch": epoch}
        return self.draw(input_ids, attention_mask, special_tokens_mask, **more)[0]

    @torch.no_grad()
    def draw(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        special_tokens_mask: torch.Tensor | None = None,
        *,
        embeddings: nn.Module | None = None,
        draw_ids: torch.Tensor | None = None,
        epoch: int | torch.Tensor | None = None,
        weighted: bool = True,
        **more: Any,
    ) -> tuple[MaskedBatch, torch.Tensor]:
        """Mask a padded batch, and tell which latents attended to each row.

        Parameters
        ----------
        input_ids, attention_mask, special_tokens_mask
            As for every masker: see :meth:`corrmask_fast.Masker.forward`.
        embeddings
            The model's token embeddings, ``model.get_input_embeddings()``: a module from ids to (rows, columns, dim).
        draw_ids, epoch
            As for every masker.
        weighted
            False: mask without the learned weights. These are the masks of :class:`~corrmask_fast.RandomMasker` (with a
            graph: :class:`~corrmask_fast.CorrMasker`) of the same seed, so that losses can be compared.
        **more
            ``graph_ids`` and ``marks_only``, as for every masker.

        Returns
        -------
        masked : MaskedBatch
            Masked ids, labels and masked columns: see :class:`~corrmask_fast.MaskedBatch`.
        latents : torch.Tensor
            (rows, n_chosen) int64: the latents that attended to each row.

        Raises
        ------
        InputError
            As for every masker; and if ``embeddings`` are not given, or have another width or dtype than the masker, or
            if ``priorities`` are given.
        """
        check_no_priorities(more, "the latents' attention is")
        rows = row_draws(self, input_ids, attention_mask, special_tokens_mask, draw_ids, epoch)
        latents = self.choose_latents(rows.draw_ids)
        if weighted:
            weights = self.weights(self._embedded(embeddings, input_ids), rows.visible, latents)
            more["priorities"] = gumbel_priorities(torch.where(rows.maskable, weights, 0.0), rows.w0)
        elif self._needs_priorities:
            more["priorities"] = rows.w1  # by which the other strategies top up
        masked = super().forward(input_ids, attention_mask, special_tokens_mask, draw_ids=rows.draw_ids, **more)
        if rows.counted:
            self.draw_counter.add_(input_ids.shape[0])
        return masked, latents

    def _embedded(self, embeddings: nn.Module | None, input_ids: torch.Tensor) -> torch.Tensor:
        if embeddings is None:
            raise InputError(
                "this masker attends to a model's embeddings; give embeddings=model.get_input_embeddings()"
            )
        # An unknown token must not read beyond the table.
        embedded = embeddings(input_ids.clamp(0, self.vocabulary.size - 1))
        return check_embedded(embedded, (*input_ids.shape, self.dim), self.latents.dtype)

    def choose_latents(self, draw_ids: torch.Tensor) -> torch.Tensor:
        """Choose the latents that attend to each row: those with the smallest random words (docs/SPEC.md 5).

        Parameters
        ----------
        draw_ids
            (rows,) int64: the draw of each row.

        Returns
        -------
        torch.Tensor
            (rows, n_chosen) int64: numbers of latents.
        """
        latents = torch.arange(self.n_latents, device=draw_ids.device)
        w0 = philox_words(self.seed_bits, draw_ids[:, None], latents, LATENT_BLOCK)[0]
        return w0.argsort(dim=1, stable=True)[:, : self.n_chosen]

    @torch.no_grad()
    def weights(self, embedded: torch.Tensor, visible: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
        """Compute the weights by which columns are drawn: the chosen latents' attention, summed over latents and heads.

        Parameters
        ----------
        embedded
            (rows, columns, dim): embeddings of the ids before masking.
        visible
            (rows, columns) bool: not padding.
        latents
            (rows, n_chosen) int64: the latents that attend, of :meth:`choose_latents`.

        Returns
        -------
        torch.Tensor
            (rows, columns) float32, >= 0; 0 at padding. No gradient passes through.
        """
        queries = self._heads(self.query(self.latents)[latents]).float()
        keys = self._heads(self.key(self.norm(embedded))).float()
        scores = queries @ keys.transpose(-1, -2) * keys.shape[-1] ** -0.5
        scores = scores.masked_fill(~visible[:, None, None, :], float("-inf"))
        attention = scores.softmax(dim=-1).sum(dim=(1, 2))
        return torch.where(visible, attention, 0.0)  # a row of padding alone has none

    def mask_ragged(self, *_: Any, **__: Any) -> Any:
        """Raise InputError: a collator has no model, whose embeddings this masker attends to.

        Parameters
        ----------
        *_, **__
            Whatever is given; it is not used.

        Raises
        ------
        InputError
            Always.
        """
        raise InputError(
            f"{type(self).__name__} masks by the embeddings of the model that it learns with, and a collator or an "
            "audit has none; use CorrMaskTrainer with masking='device', or call the masker with embeddings="
        )

    # -------------------------------------------------------------------------------------------------------- learning

    def context(self, embedded: torch.Tensor, visible: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
        """Compute the context of a masked batch: the chosen latents' mean attention output, projected.

        Parameters
        ----------
        embedded
            (rows, columns, dim): embeddings of the ids *after* masking, so that nothing hidden leaks.
        visible
            (rows, columns) bool: not padding.
        latents
            (rows, n_chosen) int64: the latents that attended, as :meth:`draw` returns them.

        Returns
        -------
        torch.Tensor
            (rows, dim): to be added to the embedding of every column of the row. The latents learn through it.
        """
        keys, some = self.norm(embedded), visible.any(dim=1, keepdim=True)
        mask = (visible | ~some)[:, None, None, :]  # a row of padding alone would attend to nothing: 0 / 0 spreads
        pooled = F.scaled_dot_product_attention(
            self._heads(self.query(self.latents)[latents]),
            self._heads(self.key(keys)),
            self._heads(self.value(keys)),
            attn_mask=mask.expand(-1, 1, latents.shape[1], -1),
        ).mean(dim=2)
        return self.project(torch.where(some, pooled.flatten(1), 0.0))

    def _heads(self, x: torch.Tensor) -> torch.Tensor:
        """(rows, n, dim) to (rows, heads, n, dim / heads)."""
        return x.unflatten(-1, (self.n_heads, -1)).transpose(1, 2)

    def embed(
        self, model: nn.Module, masked_ids: torch.Tensor, attention_mask: torch.Tensor | None, latents: torch.Tensor
    ) -> torch.Tensor:
        """Embed a masked batch with a model's embeddings, and add each row's :meth:`context`.

        Parameters
        ----------
        model
            A model with ``get_input_embeddings()``.
        masked_ids
            (rows, columns) int64: ids after masking.
        attention_mask
            (rows, columns): 0 at padding. None: padding is where ``<pad>`` stands.
        latents
            (rows, n_chosen) int64: the latents that attended, as :meth:`draw` returns them.

        Returns
        -------
        torch.Tensor
            (rows, columns, dim): what the model takes as ``inputs_embeds``.
        """
        visible = _visible(masked_ids, attention_mask, self.vocabulary.pad_token_id)
        embedded = model.get_input_embeddings()(masked_ids)  # type: ignore[operator]
        return embedded + self.context(embedded, visible, latents).unsqueeze(1)

    def masked_lm(
        self,
        model: nn.Module,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        special_tokens_mask: torch.Tensor | None = None,
        *,
        draw_ids: torch.Tensor | None = None,
        epoch: int | torch.Tensor | None = None,
        **inputs: Any,
    ) -> tuple[Any, MaskedBatch]:
        """Mask a batch and run a masked language model on it, with the latents' context in its embeddings.

        Parameters
        ----------
        model
            A model that takes ``inputs_embeds``, ``attention_mask`` and ``labels``, such as ``BertForMaskedLM``.
        input_ids, attention_mask, special_tokens_mask, draw_ids, epoch
            As for every masker: see :meth:`corrmask_fast.Masker.forward`.
        **inputs
            More inputs of the model.

        Returns
        -------
        output
            What the model returns, with ``.loss`` and ``.logits``.
        masked : MaskedBatch
            Masked ids, labels and masked columns: see :class:`~corrmask_fast.MaskedBatch`.

        Raises
        ------
        InputError
            As :meth:`draw` does.
        """
        embeddings: Any = model.get_input_embeddings()  # type: ignore[operator]
        masked, latents = self.draw(
            input_ids, attention_mask, special_tokens_mask, embeddings=embeddings, draw_ids=draw_ids, epoch=epoch
        )
        attention_mask = _visible(input_ids, attention_mask, self.vocabulary.pad_token_id).to(torch.int64)
        embedded = self.embed(model, masked.input_ids, attention_mask, latents)
        return model(inputs_embeds=embedded, attention_mask=attention_mask, labels=masked.labels, **inputs), masked

    # ------------------------------------------------------------------------------------------------- saving, loading

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write parameters and weights as one ``safetensors`` file. A graph is not stored, only its fingerprint.

        Parameters
        ----------
        path
            The file; it appears whole or not at all, and replaces one of that name.

        Raises
        ------
        InputError
            If a rate is a schedule other than :class:`~corrmask_fast.Linear`, :class:`~corrmask_fast.Cosine` and
            :class:`~corrmask_fast.Piecewise`, or the file cannot be written.
        """
        params: dict[str, Any] = {name: getattr(self, name) for name in ("dim", *self.own_parameters, "seed")}
        params |= {name: getattr(self, name) for name in ("mask_replace_prob", "random_replace_prob", "replace")}
        params["mlm_probability"] = rate_text(self.mlm_probability)
        if self.n_graphs:
            params |= {"structural_ratio": rate_text(self.structural_ratio), "max_partners": self.max_partners}
        params["table"] = self._table()
        tensors = {name: value.detach().float().cpu().numpy() for name, value in self.named_parameters()}
        write_graph(path, tensors, self.vocabulary, params, KIND)

    @classmethod
    def load(
        cls, path: str | os.PathLike[str], graph: DependencyGraph | Sequence[DependencyGraph] | None = None
    ) -> Self:
        """Read a masker that :meth:`save`, or a run of :class:`~corrmask_fast.CorrMaskTrainer`, wrote.

        Parameters
        ----------
        path
            The file; in the folder of a run's model it is ``attention_masker.safetensors``.
        graph
            The graph, or graphs, that the masker was made with; None if it was made without.

        Returns
        -------
        MultinomialAttentionMasker
            The masker, on the CPU.

        Raises
        ------
        InputError
            If there is no such file, it is damaged or of another kind, or ``graph`` is not what the masker was made
            with.
        """
        tensors, vocabulary, params = read_graph(path, KIND)
        with readable(path, "attention masker"):
            table, with_graph = params.pop("table"), "max_partners" in params
            if with_graph != (graph is not None):
                rule = "with a graph; give it: graph=DependencyGraph.load(path)" if with_graph else "without a graph"
                raise InputError(f"the masker in {path} was made {rule}")
            for name in ("mlm_probability", "structural_ratio"):
                if isinstance(params.get(name), str):
                    params[name] = parse_rate(params[name])
            _check_weights(tensors, params["n_latents"], params["dim"])  # before memory is asked for
            masker = cls(vocabulary, graph=graph, **params)
            if masker._table() != table:
                now = masker._table()
                raise InputError(f"the masker in {path} was made with graph {shown(table[:12])}, this is {now[:12]!r}")
            masker.load_state_dict({name: torch.from_numpy(value) for name, value in tensors.items()}, strict=False)
        return masker

    def _table(self) -> str:
        return bytes(self.table_fingerprint.tolist()).hex()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        saved = state_dict.get(f"{prefix}latents")
        if saved is not None and saved.shape != self.latents.shape:
            raise InputError(
                f"the saved masker has n_latents={saved.shape[0]} and dim={saved.shape[1]}, this one "
                f"n_latents={self.n_latents} and dim={self.dim}; make it as the saved one was made"
            )
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        """Return the parameters for ``repr``."""
        own = ", ".join(f"{name}={getattr(self, name)}" for name in ("dim", *self.own_parameters))
        return f"{super().extra_repr()}, {own}"


def _check_weights(tensors: Mapping[str, np.ndarray], n_latents: Any, dim: Any) -> None:
    """Raise InputError unless weights are finite numbers of the shapes that a masker has."""
    for name, tensor in tensors.items():
        square = (dim, dim) if name.endswith(".weight") and not name.startswith("norm") else (dim,)
        shape = (n_latents, dim) if name == "latents" else square
        if tensor.shape != shape or tensor.dtype.kind != "f" or not np.isfinite(tensor).all():
            raise InputError(
                f"{name} must hold finite numbers, {shown(shape)}; it is {tensor.dtype} {tensor.shape}; train it again"
            )


def _visible(input_ids: torch.Tensor, attention_mask: torch.Tensor | None, pad: int) -> torch.Tensor:
    return input_ids != pad if attention_mask is None else attention_mask != 0
