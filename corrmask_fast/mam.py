"""Multinomial Attention Masking (MAM, Naziri et al. 2026): learned latents choose which genes to mask.

    latents (n, dim), a random few of them for each row
        │ attend over the model's gene embeddings
        ▼
    attention summed over heads and latents ──▶ B columns drawn by weight, without replacement ──▶ replacement
                                                                                                       │
    embeddings of the masked row ◀── + context: the latents' mean attention output over it, projected ◀┘

Sampling lets no gradient through: the latents learn through the context alone, and the context sees only what stays
visible. How it is done is SPEC 5's; the paper's code is not public.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 (its usual name)

from corrmask_fast.errors import InputError, check_integer
from corrmask_fast.kernels.layout import SAMPLED
from corrmask_fast.masker_base import MaskedBatch, Masker
from corrmask_fast.neighbor_tables import no_table
from corrmask_fast.torch_random import gumbel_priorities, look_at_rows, philox_words

if TYPE_CHECKING:
    from corrmask_fast.vocabulary import Vocabulary

__all__ = ["MultinomialAttentionMasker"]

LATENT_BLOCK = 2**32 - 1  # the Philox block from which latents are chosen


class MultinomialAttentionMasker(nn.Module):
    """Mask the genes that learned latents attend to (MAM).

    Parameters
    ----------
    vocabulary
        Which id is which gene.
    dim
        Width of the model's embeddings.
    n_latents
        Latents that are learned.
    n_heads
        Of the attention; divides ``dim``.
    latent_ratio
        In (0, 1]: share of the latents, at least one, that attend for a row; which ones is drawn anew for each.
    mlm_probability, mask_replace_prob, random_replace_prob, seed, validate
        See :class:`~corrmask_fast.CorrMasker`.

    Notes
    -----
    Train its parameters with the model's: give both to the optimiser. ``masker.masked_lm(model, ...)`` does one
    forward pass of a Hugging Face model; to build it into another model call :meth:`forward` for the mask, and add
    :meth:`context` to the embeddings of the masked ids.

    Examples
    --------
    >>> from corrmask_fast import Vocabulary
    >>> genes = Vocabulary(("<pad>", "<mask>", *(f"G{i}" for i in range(20))))
    >>> embeddings = nn.Embedding(genes.size, 8)
    >>> masker = MultinomialAttentionMasker(genes, dim=8, n_latents=4, n_heads=2, mlm_probability=0.2)
    >>> masker(torch.arange(2, 22).repeat(3, 1), embeddings, epoch=0).masked_positions.shape
    torch.Size([3, 4])
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        dim: int,
        *,
        n_latents: int = 64,
        n_heads: int = 4,
        latent_ratio: float = 0.5,
        mlm_probability: Any = 0.15,
        mask_replace_prob: float = 0.8,
        random_replace_prob: float = 0.1,
        seed: int = 0,
        validate: bool | None = None,
    ) -> None:
        super().__init__()
        check_integer("dim", dim, 1)
        self.n_heads = check_integer("n_heads", n_heads, 1)
        if dim % n_heads:
            raise InputError(f"n_heads must divide dim={dim}; got {n_heads}")
        check_integer("n_latents", n_latents, 1)
        if isinstance(latent_ratio, bool) or not isinstance(latent_ratio, int | float) or not 0 < latent_ratio <= 1:
            raise InputError(
                f"latent_ratio must be a number in (0, 1]; got {latent_ratio!r}; 1 lets all latents attend"
            )
        self.latent_ratio = float(latent_ratio)
        self.n_chosen = max(1, int(n_latents * self.latent_ratio))
        self.sampler = Masker(
            vocabulary,
            SAMPLED,
            no_table(vocabulary),
            mlm_probability=mlm_probability,
            structural_ratio=0.0,
            mask_replace_prob=mask_replace_prob,
            random_replace_prob=random_replace_prob,
            seed=seed,
            validate=validate,
        )
        self.latents = nn.Parameter(torch.empty(n_latents, dim))
        nn.init.normal_(self.latents, std=0.02)
        self.norm = nn.LayerNorm(dim)  # of the embeddings attended to, whatever their scale
        self.query, self.key, self.value, self.project = (nn.Linear(dim, dim) for _ in range(4))

    @property
    def vocabulary(self) -> Vocabulary:
        """Which id is which gene."""
        return self.sampler.vocabulary

    @property
    def mlm_probability(self) -> Any:
        """Share of a row's genes that is masked."""
        return self.sampler.mlm_probability

    def set_step(self, step: int | torch.Tensor) -> None:
        """Set the training step that a schedule of ``mlm_probability`` goes by: see :meth:`Masker.set_step`."""
        self.sampler.set_step(step)

    def forward(
        self,
        input_ids: torch.Tensor,
        embeddings: nn.Module,
        attention_mask: torch.Tensor | None = None,
        special_tokens_mask: torch.Tensor | None = None,
        *,
        draw_ids: torch.Tensor | None = None,
        epoch: int | torch.Tensor | None = None,
    ) -> MaskedBatch:
        """Draw a mask for a padded batch; no gradient passes through it.

        Parameters
        ----------
        input_ids, attention_mask, special_tokens_mask, draw_ids, epoch
            As for every masker.
        embeddings
            The model's token embeddings, ``model.get_input_embeddings()``: ids to (rows, columns, dim).
        """
        return self._draw(input_ids, embeddings, attention_mask, special_tokens_mask, draw_ids, epoch)[0]

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
            Takes ``inputs_embeds``, ``attention_mask`` and ``labels``, such as ``BertForMaskedLM``.
        input_ids, attention_mask, special_tokens_mask, draw_ids, epoch
            As for every masker.
        **inputs
            More inputs of the model.

        Returns
        -------
        What the model returns (``.loss``, ``.logits``), and the :class:`~corrmask_fast.MaskedBatch`.
        """
        embeddings: Any = model.get_input_embeddings()  # type: ignore[operator]
        masked, chosen = self._draw(input_ids, embeddings, attention_mask, special_tokens_mask, draw_ids, epoch)
        seen = _visible(input_ids, attention_mask, self.vocabulary.pad_token_id)
        embedded = embeddings(masked.input_ids)
        embedded = embedded + self.context(embedded, seen, chosen).unsqueeze(1)
        output = model(inputs_embeds=embedded, attention_mask=seen.to(torch.int64), labels=masked.labels, **inputs)
        return output, masked

    def context(self, embedded: torch.Tensor, visible: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        """Return (rows, dim): the chosen latents' mean attention output over a masked batch, projected.

        Parameters
        ----------
        embedded
            (rows, columns, dim): embeddings of the ids *after* masking: what is hidden does not leak.
        visible
            (rows, columns) bool: not padding.
        chosen
            (rows, n_chosen) int64: the latents that attend, of :meth:`choose_latents`.
        """
        keys = self.norm(embedded)
        mask = visible[:, None, None, :].expand(-1, 1, chosen.shape[1], -1)
        pooled = F.scaled_dot_product_attention(
            self._heads(self.query(self.latents)[chosen]),
            self._heads(self.key(keys)),
            self._heads(self.value(keys)),
            attn_mask=mask,
        ).mean(dim=2)
        # A row of padding alone attends to nothing: 0 / 0 would spread.
        pooled = torch.where(visible.any(dim=1)[:, None, None], pooled, 0.0)
        return self.project(pooled.flatten(1))

    def choose_latents(self, draw_ids: torch.Tensor) -> torch.Tensor:
        """Return (rows, n_chosen) int64: the latents with the smallest (w0, latent) of block 2³² − 1."""
        latents = torch.arange(self.latents.shape[0], device=draw_ids.device)
        w0 = philox_words(self.sampler.seed_bits, draw_ids[:, None], latents, LATENT_BLOCK)[0]
        return w0.argsort(dim=1, stable=True)[:, : self.n_chosen]

    @torch.no_grad()
    def weights(self, embedded: torch.Tensor, visible: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        """Return (rows, columns): the attention of the chosen latents, summed over latents and heads."""
        queries = self._heads(self.query(self.latents)[chosen]).float()
        keys = self._heads(self.key(self.norm(embedded))).float()
        scores = queries @ keys.transpose(-1, -2) * keys.shape[-1] ** -0.5
        scores = scores.masked_fill(~visible[:, None, None, :], float("-inf"))
        attention = scores.softmax(dim=-1).sum(dim=(1, 2))
        return torch.where(visible, attention, 0.0)  # a row of padding alone has none

    def _heads(self, x: torch.Tensor) -> torch.Tensor:
        """(rows, n, dim) to (rows, heads, n, dim / heads)."""
        return x.unflatten(-1, (self.n_heads, -1)).transpose(1, 2)

    @torch.no_grad()
    def _draw(
        self,
        input_ids: torch.Tensor,
        embeddings: nn.Module,
        attention_mask: torch.Tensor | None,
        special_tokens_mask: torch.Tensor | None,
        draw_ids: torch.Tensor | None,
        epoch: int | torch.Tensor | None,
    ) -> tuple[MaskedBatch, torch.Tensor]:
        """Return the masked batch and the latents that chose it."""
        rows = look_at_rows(self.sampler, input_ids, attention_mask, special_tokens_mask, draw_ids, epoch)
        chosen = self.choose_latents(rows.draw_ids)
        known = input_ids.clamp(0, self.vocabulary.size - 1)  # an unknown token must not read beyond the table
        embedded = embeddings(known)
        if embedded.shape != (*input_ids.shape, self.latents.shape[1]):
            raise InputError(
                f"embeddings must turn ids into vectors of dim={self.latents.shape[1]}; got {tuple(embedded.shape)}"
            )
        weights = self.weights(embedded, rows.visible, chosen)
        priorities = gumbel_priorities(torch.where(rows.maskable, weights, 0.0), rows.w0)
        masked = self.sampler(
            input_ids, attention_mask, special_tokens_mask, draw_ids=rows.draw_ids, priorities=priorities
        )
        if rows.counted:
            self.sampler.draw_counter.add_(input_ids.shape[0])
        return masked, chosen


def _visible(input_ids: torch.Tensor, attention_mask: torch.Tensor | None, pad: int) -> torch.Tensor:
    return input_ids != pad if attention_mask is None else attention_mask != 0
