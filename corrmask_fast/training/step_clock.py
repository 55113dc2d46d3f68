"""Where the time of training steps goes: waiting for input, masking on the device, and the rest."""

from __future__ import annotations

import time
from typing import Any

import torch

__all__ = ["StepClock"]


class StepClock:
    """Measures where the time between two readings goes."""

    def __init__(self, device: Any) -> None:
        self.device = device
        self.tokens: list[torch.Tensor] = []
        self.input = self.masking_on_cpu = self.paused = 0.0
        self.events: list[tuple[Any, Any]] = []
        self.began = time.perf_counter()

    def masking(self) -> _Timed:
        """Return a context manager: the time in its block counts as masking."""
        return _Timed(self)

    def pause(self, seconds: float) -> None:
        """Leave out seconds that were not spent in training steps."""
        self.paused += seconds

    def read(self, world_size: int) -> dict[str, float]:
        """Return tokens per second and shares of the time since the last reading, and start again."""
        masking = self.masking_on_cpu
        if self.events:
            torch.cuda.synchronize(self.device)
            masking = sum(before.elapsed_time(after) for before, after in self.events) / 1000
        seconds = max(time.perf_counter() - self.began - self.paused, 1e-9)
        tokens = int(torch.stack(self.tokens).sum()) if self.tokens else 0
        result = {
            "tokens_per_second": tokens * world_size / seconds,
            "share_input": self.input / seconds,
            "share_masking": masking / seconds,
        }
        self.__init__(self.device)  # type: ignore[misc]
        return result


class _Timed:
    """Times one masking: by the CPU's clock, or on a GPU by events, without waiting."""

    def __init__(self, clock: StepClock) -> None:
        self.clock = clock

    def __enter__(self) -> None:
        self.began = time.perf_counter()
        if self.clock.device.type == "cuda":
            self.before = torch.cuda.Event(enable_timing=True)
            self.before.record()

    def __exit__(self, *_: object) -> None:
        if self.clock.device.type == "cuda":
            after = torch.cuda.Event(enable_timing=True)
            after.record()
            self.clock.events.append((self.before, after))
        else:
            self.clock.masking_on_cpu += time.perf_counter() - self.began
