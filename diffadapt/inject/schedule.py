"""A strength that follows the denoising: data that says what it is at every step.

    window(0.0, 0.4)                    1 for the first 40 % of the steps, 0 after
    first(0.25, 0.8)                    0.8 for the first quarter
    points([(0, 1.0), (1, 0.2)])        straight lines between the points
    steps([1.0, 0.5, 0.0])              as many equal parts of the run as there are numbers
    curve(lambda p: (1 - p) ** 2)       any function
    switch(["a", "b"], every=2)         one adapter at a time, in turns of two steps

Progress is the share of the scheduler's steps that are done before a step: with 10 steps it is 0, 0.1, ..., 0.9 at
their denoiser calls, whatever the timesteps are. Image-to-image starts where it enters the scheduler's steps.

Sources: turns are LoRA Switch of "Multi-LoRA Composition for Image Generation" (arXiv:2402.16843). Windows are the
`start=` and `stop=` that sd-webui-lora-block-weight has, as shares of the run.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from diffadapt.errors import StackError

# The product of a step's share and the number of parts is a whole number where it is meant to be: 3/10 * 10 is not.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Moment:
    """How far denoising has come. progress: in [0, 1]; step: how many steps are done."""

    progress: float = 0.0
    step: int = 0


START = Moment()


class Schedule(ABC):
    """A strength at every moment of the denoising. Frozen; stands wherever a strength has a number."""

    @abstractmethod
    def at(self, moment: Moment) -> float:
        """The strength at a moment."""

    @abstractmethod
    def __mul__(self, factor: float) -> Schedule:
        """The schedule with every strength multiplied."""

    def __rmul__(self, factor: float) -> Schedule:
        return self * factor

    @abstractmethod
    def to_json(self) -> dict[str, Any]:
        """The schedule as JSON data. Raises StackError for a function, which is no data."""


@dataclass(frozen=True)
class Window(Schedule):
    """`value` while start <= progress < stop (at a stop of 1 to the very end), 0 outside."""

    start: float
    stop: float
    value: float = 1.0

    def __post_init__(self) -> None:
        _finite(self.value, "value of a window")
        if not 0.0 <= _finite(self.start, "start") < _finite(self.stop, "stop") <= 1.0:
            raise StackError(f"A window from {self.start} to {self.stop}; expected 0 <= start < stop <= 1.")

    def at(self, moment: Moment) -> float:
        progress = moment.progress + _ROUNDING
        return self.value if progress >= self.start and (progress < self.stop or self.stop == 1.0) else 0.0

    def __mul__(self, factor: float) -> Window:
        return replace(self, value=self.value * factor)

    def to_json(self) -> dict[str, Any]:
        return {"window": [self.start, self.stop], "value": self.value}


@dataclass(frozen=True)
class Points(Schedule):
    """Straight lines between (progress, strength) pairs; level before the first and after the last."""

    pairs: tuple[tuple[float, float], ...]

    def __post_init__(self) -> None:
        places = [_finite(place, "progress of a point") for place, _ in self.pairs]
        for _, value in self.pairs:
            _finite(value, "strength of a point")
        if not places or places != sorted(places) or not 0.0 <= places[0] <= places[-1] <= 1.0:
            raise StackError(f"Points at {places}; expected at least one, in order, from 0 to 1.")

    def at(self, moment: Moment) -> float:
        place = min(max(moment.progress, 0.0), 1.0)
        last = self.pairs[0]
        for pair in self.pairs:
            if pair[0] > place:
                share = (place - last[0]) / (pair[0] - last[0]) if pair[0] > last[0] else 0.0
                return last[1] + share * (pair[1] - last[1])
            last = pair
        return last[1]

    def __mul__(self, factor: float) -> Points:
        return Points(tuple((place, value * factor) for place, value in self.pairs))

    def to_json(self) -> dict[str, Any]:
        return {"points": [list(pair) for pair in self.pairs]}


@dataclass(frozen=True)
class Steps(Schedule):
    """The run in equal parts, each with its strength: as many numbers as steps give every step its own."""

    values: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.values:
            raise StackError("steps() takes at least one number.")
        for value in self.values:
            _finite(value, "strength of a step")

    def at(self, moment: Moment) -> float:
        part = int(moment.progress * len(self.values) + _ROUNDING)
        return self.values[min(max(part, 0), len(self.values) - 1)]

    def __mul__(self, factor: float) -> Steps:
        return Steps(tuple(value * factor for value in self.values))

    def to_json(self) -> dict[str, Any]:
        return {"steps": list(self.values)}


@dataclass(frozen=True)
class Curve(Schedule):
    """factor * function(progress)."""

    function: Callable[[float], float]
    factor: float = 1.0

    def at(self, moment: Moment) -> float:
        return self.factor * _finite(self.function(moment.progress), f"curve at {moment.progress:.3f}")

    def __mul__(self, factor: float) -> Curve:
        return replace(self, factor=self.factor * factor)

    def to_json(self) -> dict[str, Any]:
        raise StackError("A curve is a function, which no file can hold; give its values as points() or steps().")


@dataclass(frozen=True)
class Turn(Schedule):
    """`value` in every `among`th run of `every` steps, beginning with run number `index`; 0 in the others."""

    index: int
    among: int
    every: int = 1
    value: float = 1.0

    def __post_init__(self) -> None:
        _finite(self.value, "value of a turn")
        numbers: tuple[Any, ...] = (self.index, self.among, self.every)
        whole = all(isinstance(n, int) and not isinstance(n, bool) for n in numbers)
        if not whole or self.every < 1 or not 0 <= self.index < self.among:
            raise StackError(f"Turn {self.index} of {self.among}, every {self.every} steps; expected whole numbers.")

    def at(self, moment: Moment) -> float:
        return self.value if (moment.step // self.every) % self.among == self.index else 0.0

    def __mul__(self, factor: float) -> Turn:
        return replace(self, value=self.value * factor)

    def to_json(self) -> dict[str, Any]:
        return {"turn": [self.index, self.among], "every": self.every, "value": self.value}


def window(start: float, stop: float, value: float = 1.0) -> Window:
    """`value` from `start` to `stop`, shares of the run in [0, 1]; 0 outside."""
    return Window(start, stop, value)


def first(share: float, value: float = 1.0) -> Window:
    """`value` in the first steps only: for what has set the composition by then, or a few steps of a distillation."""
    return Window(0.0, share, value)


def points(pairs: Sequence[tuple[float, float]]) -> Points:
    """Straight lines between (progress, strength) pairs."""
    return Points(tuple(_pair(pair) for pair in pairs))


def steps(values: Sequence[float]) -> Steps:
    """Strengths for equal parts of the run."""
    return Steps(tuple(values))


def curve(function: Callable[[float], float]) -> Curve:
    """The strength as any function of the progress."""
    return Curve(function)


def switch(adapters: Sequence[str] | Mapping[str, float], every: int = 1) -> dict[str, Turn]:
    """Adapter -> schedule, for `pipe.adapters.set`: one adapter at a time, the next after every `every` steps.

    adapters: names in the order of their turns, or name -> strength. Schedulers that call the denoiser twice in a step
    (Heun's) have twice the steps here. Raises StackError for no adapters, or a number of steps below 1.
    """
    strengths = adapters if isinstance(adapters, Mapping) else dict.fromkeys(adapters, 1.0)
    if not strengths or isinstance(adapters, str):
        raise StackError(f"switch() takes the names of adapters, not {adapters!r}.")
    return {name: Turn(i, len(strengths), every, value) for i, (name, value) in enumerate(strengths.items())}


def from_json(data: Mapping[str, Any]) -> Schedule:
    """The schedule that `to_json` wrote. Raises StackError for anything else."""
    made: Schedule
    match data:
        case {"window": [start, stop], **rest} if set(rest) <= {"value"}:
            made = Window(start, stop, rest.get("value", 1.0))
        case {"points": [*pairs], **rest} if not rest:
            made = points(pairs)
        case {"steps": [*values], **rest} if not rest:
            made = Steps(tuple(values))
        case {"turn": [index, among], **rest} if set(rest) <= {"every", "value"}:
            made = Turn(index, among, rest.get("every", 1), rest.get("value", 1.0))
        case _:
            raise StackError(f"{data!r} is no schedule; expected a window, points, steps or a turn.")
    return made


def _pair(pair: Any) -> tuple[float, float]:
    if not isinstance(pair, Sequence) or isinstance(pair, str) or len(pair) != 2:
        raise StackError(f"{pair!r} is no point; expected (progress, strength).")
    return pair[0], pair[1]


def _finite(value: Any, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise StackError(f"The {what} is {value!r}; expected a finite number.")
    return float(value)


Number: TypeAlias = "float | Schedule"
"""A strength at one module."""


def value_at(number: Number, moment: Moment) -> float:
    """A strength at a moment."""
    return number.at(moment) if isinstance(number, Schedule) else number
