"""Cells as vectors: what a model's last layer holds, as a mean over a cell's genes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from corrmask_fast.errors import check_integer

if TYPE_CHECKING:
    import os

    from corrmask_fast.cells.corpus import Corpus

__all__ = ["embed_cells"]


def embed_cells(
    model: str | os.PathLike[str] | Any,
    corpus: Corpus,
    *,
    max_length: int | None = None,
    batch_size: int = 64,
    device: str = "auto",
) -> np.ndarray:
    """Return an embedding of every cell: the mean of the last layer over the cell's genes.

    Parameters
    ----------
    model
        Folder of a Hugging Face checkpoint, or an encoder that returns ``last_hidden_state``.
    corpus
        Cells of the model's vocabulary.
    max_length
        Cells are cut to so many tokens, ``<cls>`` and ``<eos>`` included; None: what the model can see.
    batch_size
        Cells at a time.
    device
        ``"cpu"``, ``"cuda"``, or ``"auto"``: a GPU where there is one.

    Returns
    -------
    (n_cells, width) float32. ``<cls>``, ``<eos>`` and padding do not count; a cell without genes is 0.

    Raises
    ------
    InputError
        If there is no such checkpoint, or it has another vocabulary.
    """
    import torch

    from corrmask_fast.evaluation.fine_tuning import FineTuning, mean_over_genes, padded_cells, usable_length
    from corrmask_fast.training.pretrained import load_encoder

    check_integer("batch_size", batch_size, 1)
    encoder = model if isinstance(model, torch.nn.Module) else load_encoder(model, corpus.vocabulary)
    place = FineTuning(device=device).torch_device()
    length = usable_length(encoder, corpus, max_length)
    config: Any = encoder.config
    out = np.zeros((corpus.n_cells, config.hidden_size), np.float32)
    encoder.to(place).eval()
    by_length = np.argsort(corpus.lengths, kind="stable")  # less padding
    with torch.inference_mode():
        for begin in range(0, corpus.n_cells, batch_size):
            rows = by_length[begin : begin + batch_size]
            ids, seen = (each.to(place) for each in padded_cells(corpus, rows, length))
            hidden = encoder(input_ids=ids, attention_mask=seen).last_hidden_state
            out[rows] = mean_over_genes(hidden, ids, seen, corpus.vocabulary.gene_range).float().cpu().numpy()
    return out
