"""The loss at masked genes, split by whether a partner of the gene is in view: a description, no measure of copying."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from corrmask_fast.training.losses import logits_of, losses_at_masked, targets_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from corrmask_fast.graph.dependency_graph import DependencyGraph

__all__ = ["PartnerLoss"]

# All partners in the cell are masked too; a partner is visible; no partner is in the cell.
HIDDEN, VISIBLE, ALONE = range(3)
GROUPS = {"visible": VISIBLE, "hidden": HIDDEN, "absent": ALONE}
LARGEST_LOG = 700.0  # e to this is a float64


class PartnerLoss:
    """Sums the cross-entropy at masked genes: of genes with a visible partner, with hidden partners, and with none.

    Parameters
    ----------
    graph
        Its neighbours are the partners. None: only the sum over all masked genes is kept.

    Notes
    -----
    The three groups are different genes: which genes have a partner in view depends on the masks, and common genes have
    lower losses than rare ones. A model that cannot copy has a gap between the groups too. So the gap does not measure
    how much a model copies; :func:`corrmask_fast.measure_shortcut` does, at the same genes.
    """

    def __init__(self, graph: DependencyGraph | None) -> None:
        self.neighbors: Any = None
        if graph is not None:
            self.neighbors = graph.to_scipy().astype(bool).astype(np.int32)
        self.total, self.count, self.right = np.zeros((3, 3))

    def add(self, model: Any, batch: dict[str, torch.Tensor]) -> None:
        """Run ``model`` on a masked batch with labels, and add its losses."""
        losses, rows, tokens, right = masked_losses(model, batch)
        view = np.full(losses.size, ALONE)
        if self.neighbors is not None:
            view = self._partners_in_view(batch, rows, tokens)
        self.total += np.bincount(view, losses, minlength=3)
        self.count += np.bincount(view, minlength=3)
        self.right += np.bincount(view, right, minlength=3)

    def _partners_in_view(self, batch: dict[str, torch.Tensor], rows: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """Say of each masked gene whether a partner is VISIBLE, all in the cell are HIDDEN, or it is ALONE."""
        labels = batch["labels"].cpu().numpy()
        shown = (labels == -100) & (batch["attention_mask"].cpu().numpy() != 0)
        ids = batch["input_ids"].cpu().numpy()
        size = self.neighbors.shape[0]
        visible, masked = np.zeros((2, labels.shape[0], size), np.int32)
        visible[np.nonzero(shown)[0], np.clip(ids[shown], 0, size - 1)] = 1
        masked[rows, tokens] = 1
        in_view, in_cell = (cells @ self.neighbors for cells in (visible, visible | masked))
        return np.where(in_view[rows, tokens] > 0, VISIBLE, np.where(in_cell[rows, tokens] > 0, HIDDEN, ALONE))

    def add_up(self, total_over_processes: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Replace the sums by those over all processes."""
        sums = total_over_processes(torch.from_numpy(np.stack([self.total, self.count, self.right])))
        self.total, self.count, self.right = sums.double().cpu().numpy()

    def metrics(self, prefix: str = "eval_") -> dict[str, float]:
        """Return the mean losses in nats, what follows from them, and loss and number of genes of each group."""
        loss = _mean(self.total.sum(), self.count.sum())
        result = {
            f"{prefix}loss": loss,
            f"{prefix}accuracy": _mean(self.right.sum(), self.count.sum()),
            f"{prefix}perplexity": float(np.exp(min(loss, LARGEST_LOG))),
        }
        if self.neighbors is not None:
            for name, group in GROUPS.items():
                result[f"{prefix}loss_partner_{name}"] = _mean(self.total[group], self.count[group])
                result[f"{prefix}genes_partner_{name}"] = float(self.count[group])
        return result


@torch.no_grad()
def masked_losses(model: Any, batch: dict[str, torch.Tensor]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return (cross-entropy in nats, row, token, is right) of every masked gene, row after row.

    The model may return logits at all columns, or at ``masked_positions`` alone.
    """
    labels = batch["labels"]
    logits = logits_of(model(**{name: value for name, value in batch.items() if name != "labels"}))
    targets, rows = targets_of(logits, labels, batch.get("masked_positions"))
    losses, of_row, tokens, right = (one.cpu() for one in losses_at_masked(logits, targets, rows))
    return losses.double().numpy(), of_row.numpy(), tokens.numpy(), right.numpy()


def _mean(total: float, count: float) -> float:
    return float(total / count) if count else float("nan")
