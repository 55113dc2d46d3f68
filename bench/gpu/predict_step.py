"""What a training step should take on an H200, from operations and bytes: ``python bench/gpu/predict_step.py``.

Nothing of it was measured on a GPU. ``run.py --cases training`` prints it beside what it measures.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from typing import TYPE_CHECKING, NamedTuple

from gpu.workloads import Sizes

if TYPE_CHECKING:
    from collections.abc import Iterable

    from corrmask_fast.training.settings import PretrainingSettings

# Peaks of an H200, operations and bytes a second: bfloat16, TF32 (both dense), float32; memory.
MATRIX, TF32, FLOAT32, BANDWIDTH = 989e12, 494e12, 67e12, 4.8e12
# Assumed: the share of a peak that is reached. Products here are narrow (256), and attention has heads of 64.
OF_PRODUCTS, OF_ATTENTION, OF_BANDWIDTH = 0.5, 0.3, 0.8
LAUNCHES = 1_000  # kernels in a step, by PyTorch's profiler on the CPU
OF_HOST = 10e-6  # assumed: seconds of the host for each
MASKING = (0.02e-3, 0.08e-3)  # seconds of the kernel: what predict.py says of up to 132 rows, and four times that
VOCABULARY = 25_426


class Group(NamedTuple):
    """A part of a step, forward and backward: its operations, its bytes, and the share of the peak it reaches."""

    name: str
    flops: float
    bytes: float
    reaches: float = OF_PRODUCTS

    @property
    def seconds(self) -> float:
        """What takes longer: its operations or its bytes."""
        return max(self.flops / (MATRIX * self.reaches), self.bytes / (BANDWIDTH * OF_BANDWIDTH))


def groups_of(batch: int, model: PretrainingSettings, *, vocabulary: int = VOCABULARY, sparse: bool) -> list[Group]:
    """Return the parts of a step in bfloat16 (autocast, weights and AdamW in float32), as its kernels read and write.

    A product's backward pass is two more products. Attention's (flash) is 2.5 times its forward pass.
    """
    width, wide, length, layers = model.hidden_size, model.intermediate_size, model.max_length, model.layers
    tokens = batch * length
    predicted = batch * int(0.15 * length) if sparse else tokens
    weights = 4 * width**2 + 2 * width * wide  # of a layer
    ends = 8 * width + 2 * (width + wide)  # what a layer's products read and write of a token
    numbers = (vocabulary + length) * width + layers * weights + width**2 + vocabulary  # that are learned
    # Of a token and layer in the forward pass: three casts for q, k, v and one before the wide layer (6 bytes each),
    # two of dropout (5), addition (10) and layer norm (8), and ReLU (4); the backward pass moves twice as much.
    small = 3 * ((4 * 6 + 2 * (5 + 10 + 8)) * width + 4 * wide)
    return [
        Group("linear layers", 3 * 2 * weights * layers * tokens, 3 * 2 * ends * layers * tokens),
        Group("attention", 3.5 * 4 * length * width * layers * tokens, 12 * 2 * width * layers * tokens, OF_ATTENTION),
        Group("layer norm, dropout, additions", 0, small * layers * tokens),
        # Logits are written once in bfloat16, and their gradient is read twice.
        Group(
            "prediction head",
            3 * 2 * (width**2 + width * vocabulary) * predicted,
            3 * 2 * vocabulary * predicted + 60 * width * predicted,
        ),
        # Cast to float32 (6 bytes a logit), log softmax (8), its gradient (4 + 12), cast back (6).
        Group("loss", 0, 36 * vocabulary * predicted),
        Group("embeddings", 0, 100 * width * tokens + 12 * vocabulary * width),
        # Weight, gradient and two moments are read, three of them written; weights are cast to bfloat16.
        Group("AdamW", 0, 34 * numbers),
    ]


def logits_gib(batch: int, model: PretrainingSettings, *, vocabulary: int = VOCABULARY, sparse: bool) -> float:
    """Return the memory of logits at the peak: bfloat16, and three of float32 (log softmax and two gradients)."""
    columns = int(0.15 * model.max_length) if sparse else model.max_length
    return batch * columns * vocabulary * (2 + 3 * 4) / 2**30


def table_of(batches: tuple[int, ...], model: PretrainingSettings, vocabulary: int = VOCABULARY) -> str:
    """Return a Markdown table: operations, bytes and time of each group, by batch and head."""
    steps = [(batch, sparse) for batch in batches for sparse in (False, True)]
    parts = [groups_of(batch, model, vocabulary=vocabulary, sparse=sparse) for batch, sparse in steps]
    totals = [sum(group.seconds for group in groups) for groups in parts]
    host = LAUNCHES * OF_HOST
    lines = [
        "| | " + " | ".join(f"{batch}, {'sparse' if sparse else 'full'} head" for batch, sparse in steps) + " |",
        "|---|" + "---:|" * len(steps),
    ]
    for row in zip(*parts, strict=True):
        cells = [f"{group.flops / 1e12:.2f}, {group.bytes / 1e9:.2f}: {1e3 * group.seconds:.2f} ms" for group in row]
        lines.append(f"| {row[0].name} | {' | '.join(cells)} |")

    def line(name: str, cells: Iterable[str]) -> None:
        lines.append(f"| {name} | {' | '.join(cells)} |")

    line("**device, without masking**", [f"**{1e3 * total:.1f} ms**" for total in totals])
    flops = [sum(group.flops for group in groups) for groups in parts]
    others = [f"{1e3 * each / (TF32 * OF_PRODUCTS):.0f}; {1e3 * each / (FLOAT32 * 0.8):.0f} ms" for each in flops]
    line("operations alone, had they TF32; float32", others)
    line("host, eager", [f"{1e3 * host:.0f} ms"] * len(steps))
    line("masking", [f"{100 * MASKING[0] / each:.2f} to {100 * MASKING[1] / each:.2f} %" for each in totals])
    line("logits at the peak", [f"{logits_gib(b, model, vocabulary=vocabulary, sparse=s):.1f} GiB" for b, s in steps])
    return "\n".join(lines)


if __name__ == "__main__":
    print(table_of(Sizes().training_batches, Sizes().model))
