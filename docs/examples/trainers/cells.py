"""What the examples share: cells, a masker, a small model, and the check that a resume changes nothing."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from corrmask_fast import CorpusDataset, CorrMasker, DependencyGraph, Vocabulary, read_corpus

if TYPE_CHECKING:
    from collections.abc import Callable

VOCABULARY = Vocabulary(("<pad>", "<mask>", *(f"G{i}" for i in range(60))))
MASKER = CorrMasker(DependencyGraph.from_edges([(2 + i, 3 + i) for i in range(0, 60, 2)], VOCABULARY), seed=7)
DATASET = CorpusDataset(read_corpus([[*range(2 + i, 22 + i)] for i in range(40)], VOCABULARY))


class Model(torch.nn.Module):
    """A model of your own: ``body`` gives a state for each gene, ``head`` the logits of a state."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__()
        self.embed = torch.nn.Embedding(VOCABULARY.size, 16)
        self.layer = torch.nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
        self.head = torch.nn.Linear(16, VOCABULARY.size)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Return the states, (rows, columns, 16)."""
        return self.layer(self.embed(input_ids), src_key_padding_mask=attention_mask == 0)


def check(train: Callable[..., list[float]], steps: int, stops: tuple[int, ...]) -> None:
    """Train at once, then with an interruption after each of these steps: the losses must be the same."""
    with tempfile.TemporaryDirectory() as folder:
        whole = train(Path(folder) / "whole")
        assert len(whole) == steps, whole
        for stop in stops:
            checkpoint = Path(folder) / f"stopped-{stop}"
            losses = [*train(checkpoint, stop_after=stop), *train(checkpoint)]
            assert losses == whole, f"interrupted after step {stop}: {losses} instead of {whole}"
    at = ", ".join(map(str, stops))
    print(f"{steps} steps, loss {whole[0]:.2f} to {whole[-1]:.2f}; the same after interruptions at {at}")
