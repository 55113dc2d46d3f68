"""Fine-tuning a pretrained encoder on labelled cells or genes: what the evaluations share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from corrmask_fast.errors import InputError, check_integer, check_number, check_seed
from corrmask_fast.training.checks import positions_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from corrmask_fast.cells.corpus import Corpus
    from corrmask_fast.cells.vocabulary import Vocabulary

    Targets = Callable[[np.ndarray, torch.Tensor], torch.Tensor]  # (rows, input_ids) -> labels

__all__ = ["FineTuning"]

UNLABELLED = -100  # what cross_entropy leaves out


@dataclass(frozen=True)
class FineTuning:
    """Settings of fine-tuning an encoder: AdamW, with a learning rate that falls linearly to 0.

    Parameters
    ----------
    epochs
        Passes over the training cells. 0: no training.
    batch_size
        Number of cells in a step.
    learning_rate
        Learning rate of the first step. The default is BERT's. (Theodoris et al. 2023 tune it for each task.)
    frozen_layers
        The embeddings and this many first layers keep their weights. 0: all weights are trained. −1: the whole encoder
        is frozen and only the head is trained (a linear probe).
    max_length
        Cells are cut to this many tokens, ``<cls>`` and ``<eos>`` included. None: as many as the model can take.
    seed
        Seed of the head's first weights, of the order of the cells and of dropout, in [0, 2**64).
    device
        ``"cpu"``, ``"cuda"``, or ``"auto"`` (a GPU if there is one).

    Raises
    ------
    InputError
        If a value is out of range, or ``device="cuda"`` and there is no GPU.

    Examples
    --------
    >>> from corrmask_fast import FineTuning
    >>> settings = FineTuning(epochs=2, batch_size=12, frozen_layers=4)
    >>> settings.steps(100)
    18
    """

    epochs: int = 5
    batch_size: int = 12
    learning_rate: float = 5e-5
    frozen_layers: int = 0
    max_length: int | None = None
    seed: int = 0
    device: str = "auto"

    def __post_init__(self) -> None:
        check_integer("epochs", self.epochs, 0)
        check_integer("batch_size", self.batch_size, 1)
        check_number("learning_rate", self.learning_rate, 0, 1)
        check_integer("frozen_layers", self.frozen_layers, -1)
        if self.max_length is not None:
            check_integer("max_length", self.max_length, 1)
        check_seed(self.seed)
        if self.device not in {"auto", "cpu", "cuda"}:
            raise InputError(f"device must be 'auto', 'cpu' or 'cuda'; got {self.device!r}")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise InputError("device='cuda': PyTorch finds no GPU here; use device='auto' or 'cpu'")

    def steps(self, n_cells: int) -> int:
        """Return the number of training steps.

        Parameters
        ----------
        n_cells
            Number of cells to train on.

        Returns
        -------
        int
            Steps over all epochs; the last step of an epoch may have fewer cells.
        """
        return self.epochs * -(-n_cells // self.batch_size)

    def torch_device(self) -> torch.device:
        """Return the device to train on.

        Returns
        -------
        torch.device
            The CPU, or the GPU if there is one and ``device`` is not ``"cpu"``.
        """
        return torch.device("cuda" if self.device != "cpu" and torch.cuda.is_available() else "cpu")


class Labeller(nn.Module):
    """An encoder under a linear head that names each cell, or each gene of a cell.

    A cell's representation is the mean over its genes, as Geneformer's own cell embeddings are: V1 vocabularies have no
    ``<cls>``, and what V2's ``<cls>`` and ``<eos>`` hold is left out.
    """

    def __init__(
        self, encoder: nn.Module, vocabulary: Vocabulary, n_classes: int, *, per_gene: bool, seed: int = 0
    ) -> None:
        super().__init__()
        self.encoder, self.per_gene, self.gene_range = encoder, per_gene, vocabulary.gene_range
        config: Any = encoder.config
        self.dropout = nn.Dropout(getattr(config, "hidden_dropout_prob", 0.0))
        with torch.random.fork_rng():
            torch.manual_seed(seed % 2**63)
            self.head = nn.Linear(config.hidden_size, n_classes)
            nn.init.normal_(self.head.weight, std=getattr(config, "initializer_range", 0.02))
        nn.init.zeros_(self.head.bias)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Return logits: (cells, classes), or (cells, genes, classes) with ``per_gene``."""
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        if not self.per_gene:
            hidden = mean_over_genes(hidden, input_ids, attention_mask, self.gene_range)
        return self.head(self.dropout(hidden))

    def freeze(self, layers: int) -> None:
        """Keep the weights of the first ``layers`` layers and of the embeddings (-1: of the whole encoder)."""
        if layers == 0:
            return
        encoder: Any = self.encoder
        stack = encoder.encoder.layer
        if layers > len(stack):
            raise InputError(f"frozen_layers must be at most the model's {len(stack)} layers; got {layers}")
        fixed = [encoder] if layers == -1 else [encoder.embeddings, *stack[:layers]]
        for module in fixed:
            module.requires_grad_(False)


def mean_over_genes(
    hidden: torch.Tensor, input_ids: torch.Tensor, attention_mask: torch.Tensor, gene_range: tuple[int, int]
) -> torch.Tensor:
    """Return (cells, width): the mean of (cells, columns, width) over the columns that are genes."""
    lo, hi = gene_range
    genes = (attention_mask != 0) & (input_ids >= lo) & (input_ids < hi)
    # Not by a product with 0: what stands at padding may be NaN, where a cell is padding alone.
    return hidden.masked_fill(~genes.unsqueeze(-1), 0).sum(1) / genes.sum(1, keepdim=True).clamp(min=1)


def usable_length(encoder: nn.Module, corpus: Corpus, max_length: int | None) -> int:
    """Return how many tokens of a cell the model can see, ``<cls>`` and ``<eos>`` included."""
    config: Any = getattr(encoder, "config", None)
    longest = corpus.max_length + corpus.vocabulary.n_surrounding  # the corpus counts genes
    positions = positions_of(encoder)[0] if isinstance(encoder, nn.Module) else None
    positions = positions or getattr(config, "max_position_embeddings", None) or longest
    return min(positions, longest, max_length or positions)


def padded_cells(corpus: Corpus, rows: np.ndarray, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (input_ids, attention_mask), both (cells, longest) int64, of cells cut to ``length`` tokens."""
    indptr, tokens = corpus.gather_for_training(rows, length)
    lengths = np.diff(indptr)
    columns = np.arange(max(int(lengths.max(initial=0)), 1))
    seen = columns < lengths[:, None]
    ids = np.full(seen.shape, corpus.vocabulary.pad_token_id, np.int64)
    ids[seen] = tokens
    return torch.from_numpy(ids), torch.from_numpy(seen.astype(np.int64))


def fine_tune(
    model: Labeller, corpus: Corpus, rows: np.ndarray, targets: Targets, settings: FineTuning, bar: Any
) -> None:
    """Train ``model`` in place on the cells ``rows``; ``targets`` gives the labels of a batch."""
    length = usable_length(model.encoder, corpus, settings.max_length)
    model.to(settings.torch_device()).train()
    model.freeze(settings.frozen_layers)
    with torch.random.fork_rng():  # the caller's random numbers stay what they were
        torch.manual_seed(settings.seed % 2**63)  # dropout
        _train(model, corpus, rows, targets, settings, length, bar)


def _train(
    model: Labeller, corpus: Corpus, rows: np.ndarray, targets: Targets, settings: FineTuning, length: int, bar: Any
) -> None:
    device = settings.torch_device()
    step, steps = 0, settings.steps(rows.size)
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=settings.learning_rate, weight_decay=0.001)
    order = np.random.default_rng(settings.seed)
    for _ in range(settings.epochs):
        for batch in _batches(order.permutation(rows), settings.batch_size):
            ids, seen = padded_cells(corpus, batch, length)
            labels = targets(batch, ids)
            if (labels != UNLABELLED).any():  # a batch without a label would have a loss of 0 / 0
                logits = model(ids.to(device), seen.to(device))
                loss = nn.functional.cross_entropy(logits.flatten(0, -2), labels.to(device).flatten())
                loss.backward()
                optimizer.param_groups[0]["lr"] = settings.learning_rate * (1 - step / steps)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            step += 1
            bar.update(1)


@torch.inference_mode()
def predictions(
    model: Labeller, corpus: Corpus, rows: np.ndarray, settings: FineTuning
) -> Iterator[tuple[np.ndarray, torch.Tensor, torch.Tensor]]:
    """Yield (rows, input_ids, logits on the CPU) of batches of cells."""
    device, length = settings.torch_device(), usable_length(model.encoder, corpus, settings.max_length)
    model.to(device).eval()
    for batch in _batches(rows, settings.batch_size):
        ids, seen = padded_cells(corpus, batch, length)
        yield batch, ids, model(ids.to(device), seen.to(device)).float().cpu()


def _batches(rows: np.ndarray, size: int) -> Iterator[np.ndarray]:
    return (rows[begin : begin + size] for begin in range(0, rows.size, size))
