"""The contestants' names, as they stand in the results, and what is to be reached."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

COPY = "floor: copy of the same bytes"
COPY_REPLAY = "floor: copy of the same bytes, graph replay"
TORCH_MASK = "torch_mask_tokens on the device (random masks)"
TORCH_CORRMASK = "CorrMask in PyTorch operations"
HOST_PATH = "CorrMasker on the CPU, results copied to the device"
FROM_HOST = "tokens copied to the device, CorrMasker there"
MASKER = "CorrMasker"
MASKER_EPOCH = "CorrMasker, draws from the epoch"
REPLAY = "CorrMasker, graph replay"

# A training step, by where its masks come from.
OFF = "step, masked beforehand"
STOCK = "step, stock collator on the CPU"
COLLATOR = "step, our collator on the CPU"
OURS = "step, CorrMasker on the device"
ALONE = "CorrMasker alone"
LEARNED = "step, MultinomialAttentionMasker on the device"

GRAPH = "graph, end to end"
GRAPH_CPU = "graph on the CPU, end to end"

BIG = 16_384
Times = "Mapping[tuple[str, str, int], float]"  # (case, contestant, batch) -> median, µs a call


class Goal(NamedTuple):
    """A measured number and the most it may be: a time in ``unit``, or a ratio of two times (``unit`` is x or %)."""

    what: str
    case: str
    batch: int
    ours: str
    at_most: float
    unit: str
    against: str = ""  # the ratio's divisor
    minus: str = ""  # taken off ours before: what a step costs more than another

    def measured(self, times: Mapping[tuple[str, str, int], float]) -> float | None:
        """Return the number, or None where it was not measured."""
        needed = [name for name in (self.ours, self.against, self.minus) if name]
        if any((self.case, name, self.batch) not in times for name in needed):
            return None
        value = times[self.case, self.ours, self.batch]
        if self.minus:
            value -= times[self.case, self.minus, self.batch]
        if self.against:
            return value / times[self.case, self.against, self.batch] * (100 if self.unit == "%" else 1)
        return value / {"µs": 1.0, "s": 1e6}[self.unit]


def goals(training_batches: tuple[int, ...] = (12, 64), cells: int = 100_000) -> list[Goal]:
    """Return the goals, in the order in which they are printed."""
    return [
        Goal("mask 16 384 rows, beside the copy", "masking", BIG, MASKER, 4.0, "x", COPY),
        Goal("mask 16 384 rows, beside torch_mask_tokens", "masking", BIG, MASKER, 1.0, "x", TORCH_MASK),
        Goal("mask 16 384 rows, beside PyTorch's CorrMask", "masking", BIG, MASKER, 0.1, "x", TORCH_CORRMASK),
        Goal("mask 12 rows, eager", "masking", 12, MASKER, 60.0, "µs"),
        Goal("mask 12 rows, graph replay", "masking", 12, REPLAY, 25.0, "µs"),
        *(
            goal
            for batch in training_batches
            for goal in (
                Goal(f"masking alone, of a step of {batch}", "training", batch, ALONE, 0.5, "%", OURS),
                Goal(f"what masking adds to a step of {batch}", "training", batch, OURS, 0.5, "%", OURS, OFF),
                Goal(f"what MAM adds to a step of {batch}", "training", batch, LEARNED, 5.0, "%", LEARNED, OFF),
            )
        ),
        Goal("graph of 25 000 genes", "graph: 25000 genes", cells, GRAPH, 5.0, "s"),
        Goal("graph of 2 000 genes", "graph: 2000 genes", cells, GRAPH, 1.0, "s"),
    ]


def verdicts(times: Mapping[tuple[str, str, int], float]) -> str:
    """Return a Markdown table: measured, goal, met or short; what was not measured is left out."""
    lines = ["| goal | measured | at most | |", "|---|---|---|---|"]
    for goal in goals():
        value = goal.measured(times)
        if value is not None:
            verdict = "met" if value <= goal.at_most else "SHORT"
            lines.append(f"| {goal.what} | {value:,.3g} {goal.unit} | {goal.at_most:g} {goal.unit} | {verdict} |")
    return "\n".join(lines) if len(lines) > 2 else ""
