"""Rates that change: p and λ as functions of the training step, or drawn by each row from a range.

    number       every row, every step
    (low, high)  each row draws its own, evenly between the two
    schedule     a function of the step: Linear, Cosine, Piecewise

A schedule is computed from the step as a number, or on the device from a step kept there, by the same float64 formula.
Its values are rounded to 12 decimals, so that both give the same bits: the last ones of a cosine differ from one
library to another, and floor(n · p) could turn on them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from corrmask_fast.errors import InputError, check_integer, check_number

if TYPE_CHECKING:
    import torch

__all__ = ["Cosine", "Linear", "Piecewise", "Schedule", "parse_rate"]

DECIMALS = 1e12


class Schedule:
    """A rate as a function of the training step, from 0 on; after its last step it stays as it is there.

    Call it with a step for the value there. A schedule of your own is a subclass with :attr:`values` and
    :meth:`formula`.
    """

    @property
    def values(self) -> tuple[float, ...]:
        """Values between which all others lie."""
        raise NotImplementedError

    def formula(self, step: Any, math_of: Any) -> Any:
        """Compute the value at a step.

        Parameters
        ----------
        step
            The step: a float, or a float64 tensor.
        math_of
            The functions ``unit`` (cut to [0, 1]) and ``cos`` for it.

        Returns
        -------
        float or torch.Tensor
            The value, of the step's type.
        """
        raise NotImplementedError

    def __call__(self, step: int) -> float:
        """Return the value at a step.

        Parameters
        ----------
        step
            The step, >= 0.

        Returns
        -------
        float
            The value, rounded to 12 decimals.

        Raises
        ------
        InputError
            If the step is no integer >= 0.
        """
        value = self.formula(float(check_integer("step", step, 0)), _OfNumbers)
        return _rounded(value)

    def at(self, step: torch.Tensor) -> torch.Tensor:
        """Return the value at a step that a tensor holds, without copying it to the host.

        Parameters
        ----------
        step
            Integer tensor, on any device.

        Returns
        -------
        torch.Tensor
            The value, float64, on the step's device, with the same bits as a call gives.
        """
        value = self.formula(step.double(), _OfTensors)
        return (value * DECIMALS).round() / DECIMALS


def _rounded(value: float) -> float:
    return round(value * DECIMALS) / DECIMALS


class _OfNumbers:
    """Arithmetic of floats."""

    @staticmethod
    def unit(x: float) -> float:
        """Cut off what lies outside [0, 1]."""
        return min(max(x, 0.0), 1.0)

    cos = math.cos


class _OfTensors:
    """Arithmetic of tensors."""

    @staticmethod
    def unit(x: torch.Tensor) -> torch.Tensor:
        """Cut off what lies outside [0, 1]."""
        return x.clamp(0.0, 1.0)

    @staticmethod
    def cos(x: torch.Tensor) -> torch.Tensor:
        """Cosine."""
        return x.cos()


@dataclass(frozen=True)
class _Ramp(Schedule):
    """From ``start`` to ``end`` in ``steps`` steps."""

    start: float
    end: float
    steps: int

    def __post_init__(self) -> None:
        for name in ("start", "end"):  # as plain numbers: repr and text of NumPy's are others
            value = check_number(name, getattr(self, name), -math.inf, math.inf, open_ends=True)
            object.__setattr__(self, name, value)
        object.__setattr__(self, "steps", check_integer("steps", self.steps, 1, 2**53))

    @property
    def values(self) -> tuple[float, ...]:
        """The start and the end."""
        return self.start, self.end


class Linear(_Ramp):
    """A rate that goes from ``start`` to ``end`` in equal steps, then stays.

    Give it to a masker as ``mlm_probability`` or ``structural_ratio``. Call it with a step for the value there.

    Parameters
    ----------
    start
        Value at step 0.
    end
        Value at step ``steps`` and after.
    steps
        Number of training steps, >= 1.

    Raises
    ------
    InputError
        If start or end is not a finite number, or ``steps`` is no integer >= 1. The masker checks that the rate stays
        in its range.

    Examples
    --------
    >>> from corrmask_fast import Linear
    >>> rate = Linear(0.3, 0.15, 1000)
    >>> rate(0), rate(500), rate(5000)
    (0.3, 0.225, 0.15)
    """

    def formula(self, step: Any, math_of: Any) -> Any:
        """Compute start + (end − start) · step / steps.

        Parameters
        ----------
        step
            The step: a float, or a float64 tensor.
        math_of
            The functions ``unit`` (cut to [0, 1]) and ``cos`` for it.

        Returns
        -------
        float or torch.Tensor
            The value, of the step's type.
        """
        return self.start + (self.end - self.start) * math_of.unit(step / self.steps)


class Cosine(_Ramp):
    """A rate that goes from ``start`` to ``end`` along half a cosine, slow at both ends, then stays.

    Give it to a masker as ``mlm_probability`` or ``structural_ratio``. Call it with a step for the value there.

    Parameters
    ----------
    start
        Value at step 0.
    end
        Value at step ``steps`` and after.
    steps
        Number of training steps, >= 1.

    Raises
    ------
    InputError
        If start or end is not a finite number, or ``steps`` is no integer >= 1. The masker checks that the rate stays
        in its range.

    Examples
    --------
    >>> from corrmask_fast import Cosine
    >>> rate = Cosine(0.0, 1.0, 100)
    >>> rate(0), rate(50), rate(100)
    (0.0, 0.5, 1.0)
    """

    def formula(self, step: Any, math_of: Any) -> Any:
        """Compute start + (end − start) · (1 − cos(π · step / steps)) / 2.

        Parameters
        ----------
        step
            The step: a float, or a float64 tensor.
        math_of
            The functions ``unit`` (cut to [0, 1]) and ``cos`` for it.

        Returns
        -------
        float or torch.Tensor
            The value, of the step's type.
        """
        turn = math_of.cos(math_of.unit(step / self.steps) * math.pi)
        return self.start + (self.end - self.start) * (1.0 - turn) * 0.5


@dataclass(frozen=True)
class Piecewise(Schedule):
    """A rate that follows straight lines between points; constant before the first and after the last.

    Give it to a masker as ``mlm_probability`` or ``structural_ratio``. Call it with a step for the value there.

    Parameters
    ----------
    points
        (step, value) pairs, at least one; the steps are integers >= 0 and rise.

    Raises
    ------
    InputError
        If there is no point, a point is no such pair, the steps do not rise, or a value is not a finite number. The
        masker checks that the rate stays in its range.

    Examples
    --------
    >>> from corrmask_fast import Piecewise
    >>> rate = Piecewise(((0, 0.0), (100, 0.5), (200, 0.25)))
    >>> rate(50), rate(100), rate(150), rate(999)
    (0.25, 0.5, 0.375, 0.25)
    """

    points: tuple[tuple[int, float], ...]

    def __post_init__(self) -> None:
        try:
            points = tuple((step, value) for step, value in self.points)
        except (TypeError, ValueError) as error:
            raise InputError(f"points must be (step, value) pairs; got {self.points!r}") from error
        if not points:
            raise InputError("points must hold one (step, value) pair at least")
        plain: list[tuple[int, float]] = []
        for i, (step, value) in enumerate(points):
            number = check_integer(f"the step of point {i}", step, plain[-1][0] + 1 if plain else 0)
            plain.append((number, check_number(f"the value of point {i}", value, -math.inf, math.inf, open_ends=True)))
        object.__setattr__(self, "points", tuple(plain))

    @property
    def values(self) -> tuple[float, ...]:
        """The values of the points."""
        return tuple(value for _, value in self.points)

    def formula(self, step: Any, math_of: Any) -> Any:
        """Compute the first value plus, of each line, as much of its rise as lies before the step.

        Parameters
        ----------
        step
            The step: a float, or a float64 tensor.
        math_of
            The functions ``unit`` (cut to [0, 1]) and ``cos`` for it.

        Returns
        -------
        float or torch.Tensor
            The value, of the step's type.
        """
        rate = self.points[0][1] + 0.0 * step
        for (begin, low), (end, high) in zip(self.points[:-1], self.points[1:], strict=True):
            rate = rate + (high - low) * math_of.unit((step - begin) / (end - begin))
        return rate


class Rate(NamedTuple):
    """A rate, checked: its ends at the first step, the largest that a row may ever have, and its schedule if any.

    ``as_given`` is the rate as it was given, in plain Python numbers.
    """

    low: float
    high: float
    largest: float
    schedule: Schedule | None
    as_given: float | tuple[float, float] | Schedule


def check_rate(name: str, rate: Any, *, open_ends: bool = False) -> Rate:
    """Return a number, a (low, high) range or a schedule as a :class:`Rate` inside [0, 1], or (0, 1)."""
    interval = "(0, 1)" if open_ends else "[0, 1]"
    if isinstance(rate, Schedule):
        values = [_rounded(value) for value in rate.values]
        for value in values:
            if not (0 < value < 1 if open_ends else 0 <= value <= 1):
                raise InputError(f"{name} must stay in {interval} at every step; {rate!r} reaches {value}")
        return Rate(rate(0), rate(0), max(values), rate, rate)
    if isinstance(rate, tuple | list):
        if len(rate) != 2:
            raise InputError(f"a range of {name} must be (low, high); got {rate!r}")
        low, high = (check_number(f"each end of {name}", end, 0, 1, open_ends=open_ends) for end in rate)
        if low > high:
            raise InputError(f"a range of {name} must rise; got {rate!r}; give ({high}, {low})")
        return Rate(low, high, high, None, low if low == high else (low, high))
    number = check_number(name, rate, 0, 1, open_ends=open_ends)
    return Rate(number, number, number, None, number)


def rate_text(rate: float | tuple[float, float] | Schedule) -> float | str:
    """Return a rate as :func:`parse_rate` reads it; a number stays one.

    Raises
    ------
    InputError
        If it is a schedule of one's own, which :func:`parse_rate` could not give back.

    Examples
    --------
    >>> rate_text(0.15), rate_text((0.1, 0.3)), rate_text(Piecewise(((0, 0.3), (1000, 0.15))))
    (0.15, '0.1..0.3', 'piecewise:0=0.3,1000=0.15')
    """
    if isinstance(rate, tuple | list):
        return "..".join(repr(float(end)) for end in rate)
    if type(rate) is Piecewise:
        return "piecewise:" + ",".join(f"{step}={value!r}" for step, value in rate.points)
    if type(rate) is Linear or type(rate) is Cosine:  # a subclass may compute what it likes
        return f"{type(rate).__name__.lower()}:{rate.start!r}:{rate.end!r}:{rate.steps}"
    if isinstance(rate, Schedule):
        raise InputError(
            f"neither the file of a masker nor the command line can name the schedule {rate!r} "
            f"({type(rate).__name__}); use Linear, Cosine or Piecewise"
        )
    return rate


def parse_rate(text: str) -> float | tuple[float, float] | Schedule:
    """Return what the command line means by a rate.

    Examples
    --------
    >>> parse_rate("0.15"), parse_rate("0.1..0.3"), parse_rate("linear:0.3:0.15:1000")
    (0.15, (0.1, 0.3), Linear(start=0.3, end=0.15, steps=1000))
    >>> parse_rate("piecewise:0=0.3,1000=0.15")
    Piecewise(points=((0, 0.3), (1000, 0.15)))
    """
    kind, colon, rest = text.partition(":")
    try:
        if not colon:
            low, dots, high = text.partition("..")
            return (float(low), float(high)) if dots else float(text)
        if kind == "piecewise":
            return Piecewise(
                tuple((int(step), float(value)) for step, value in (point.split("=") for point in rest.split(",")))
            )
        if kind in {"linear", "cosine"}:
            start, end, steps = rest.split(":")
            return (Linear if kind == "linear" else Cosine)(float(start), float(end), int(steps))
    except InputError:
        raise
    except ValueError:
        pass
    raise InputError(
        f"a rate must be a number, a range low..high that each cell draws from, or a schedule over steps: "
        f"linear:START:END:STEPS, cosine:START:END:STEPS or piecewise:STEP=VALUE,…; got {text!r}"
    )
