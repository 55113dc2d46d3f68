"""What a comparison measures: the table that all tables, differences and pictures go by; how numbers are written."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["MEASURES", "Measure"]


class Measure(NamedTuple):
    """A measure of a model: its column in ``rows.csv``, and how it is shown."""

    name: str
    label: str
    unit: str
    better: str
    """``"lower"``, ``"higher"``, or empty: neither is better in itself."""
    digits: int
    says: str
    """What it is, for readers of the report."""
    main: bool = True
    """Whether it stands in the first table."""
    scale: float = 1

    @property
    def heading(self) -> str:
        """The label with its unit."""
        return f"{self.label} ({self.unit})" if self.unit else self.label

    def text(self, value: float, digits: int | None = None, *, sign: bool = False) -> str:
        """Return a value as it is shown, without its unit.

        >>> MEASURES[0].text(-0.03126, sign=True)
        '−0.031'
        """
        digits = self.digits if digits is None else digits
        text = f"{value * self.scale:{'+' if sign else ''},.{digits}f}".replace("-", "−")
        return text.lstrip("+−") if not text.strip("+−0.,") else text

    def mean_sd(self, values: Sequence[float]) -> str:
        """Return mean ± standard deviation as text; the mean alone where all values are the same."""
        mean = self.text(float(np.mean(values)))
        return mean if len(set(values)) == 1 else f"{mean} ± {self.text(float(np.std(values, ddof=1)))}"

    @property
    def difference_unit(self) -> str:
        """The unit of a difference of two values, with a space before it; empty if it has none."""
        return {"%": " percentage points", "": ""}.get(self.unit, f" {self.unit}")


_F1 = "the mean of F1 over cell types"
MEASURES = (
    Measure("loss", "Loss", "nats", "lower", 3,
            "cross-entropy at masked genes of the test cells; every model is given the same random masks, which are "
            "those that Random is trained with: they favour it"),
    Measure("accuracy", "Accuracy", "%", "higher", 2,
            "masked genes that are the model's first guess, under the same masks", scale=100),
    Measure("perplexity", "Perplexity", "genes", "lower", 1, "exp(loss): as many equally likely genes", main=False),
    Measure("shortcut", "Shortcut", "nats", "", 3,
            "loss at a target gene with its partners hidden, minus the loss with them in view: what the model takes "
            "from partners in view. Neither high nor low is better in itself"),
    Measure("placebo", "Placebo", "nats", "", 3,
            "the same with as many random genes of matched frequency in place of the partners", main=False),
    Measure("excess", "Shortcut − placebo", "nats", "", 3,
            "what partners in view are worth beyond any other genes, paired by target"),
    Measure("probe_f1", "Probe macro-F1", "", "higher", 3,
            f"{_F1}, of a logistic regression on frozen cell embeddings"),
    Measure("probe_rare_f1", "Probe rare F1", "", "higher", 3, "the same over the rare types alone", main=False),
    Measure("macro_f1", "Fine-tuned macro-F1", "", "higher", 3, f"{_F1}, after fine-tuning the whole model"),
    Measure("rare_f1", "Fine-tuned rare F1", "", "higher", 3, "the same over the rare types alone"),
    Measure("knn_purity", "kNN purity", "", "higher", 3,
            "nearest neighbours of a cell, by embedding, that have its cell type, as a share"),
)  # fmt: skip
