"""Learning-rate schedules: pure functions of the step number that give a factor of the base rate.

Steps count from 0. The base rate belongs to the optimizer."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import cos, pi

from ddl.errors import ConfigError
from ddl.wording import instead

Schedule = Callable[[int], float]


@dataclass(frozen=True)
class Constant:
    """Always 1."""

    def __call__(self, step: int) -> float:
        return 1.0


@dataclass(frozen=True)
class StepDecay:
    """Times ``factor`` after each ``every`` steps, never below ``floor``."""

    every: int
    factor: float = 0.1
    floor: float = 0.0

    def __call__(self, step: int) -> float:
        return max(self.factor ** (step // self.every), self.floor)


@dataclass(frozen=True)
class Linear:
    """Falls in a straight line from 1 at step 0 to ``floor`` at step ``steps``, and stays there."""

    steps: int
    floor: float = 0.0

    def __call__(self, step: int) -> float:
        return 1 - (1 - self.floor) * min(step / self.steps, 1.0)


@dataclass(frozen=True)
class Cosine:
    """Falls along half a cosine from 1 at step 0 to ``floor`` at step ``steps``, and stays there."""

    steps: int
    floor: float = 0.0

    def __call__(self, step: int) -> float:
        return self.floor + (1 - self.floor) * (1 + cos(pi * min(step / self.steps, 1.0))) / 2


@dataclass(frozen=True)
class Warmup:
    """Rises in a straight line to 1 over ``steps`` steps (1/steps at step 0), then ``after`` from its own step 0."""

    steps: int
    after: Schedule = Constant()

    def __call__(self, step: int) -> float:
        return (step + 1) / self.steps if step < self.steps else self.after(step - self.steps)


@dataclass(frozen=True)
class LearningRate:
    """step -> learning rate: ``base`` times a schedule over the steps from ``begin`` to ``end``. make: length -> it."""

    base: float
    make: Callable[[int], Schedule]
    begin: int
    end: int

    def __call__(self, step: int) -> float:
        return self.base * self.factor(step - self.begin)

    @functools.cached_property
    def factor(self) -> Schedule:
        return self.make(self.end - self.begin)

    def over(self, begin: int, end: int) -> LearningRate:
        """The same schedule over other steps."""
        return replace(self, begin=begin, end=end)


def resumed_span(choice: str, span: list[int], step: int, total_steps: int) -> list[int]:
    """The steps that a schedule is made for after a resume at ``step`` with another number of steps.

    span: the steps that it was made for. choice: "rescale" it to the new end, "restart" it for the steps that are left,
    or "hold" it: past its end it stays at its last value."""
    return {"rescale": [span[0], total_steps], "restart": [step, total_steps], "hold": span}[choice]


SCHEDULES = ("constant", "step", "linear", "cosine")


def schedule(
    name: str,
    total_steps: int,
    *,
    warmup_steps: int = 0,
    floor: float = 0.0,
    step_every: int = 0,
    step_factor: float = 0.1,
) -> Schedule:
    """The schedule of a job of ``total_steps``: warm-up first, then ``name`` over the rest.

    floor: the smallest factor (min_lr / lr). Raises ConfigError for a name or number that cannot be."""
    if warmup_steps < 0 or not 0 <= floor <= 1:
        raise ConfigError(f"optim.warmup_steps = {warmup_steps} and min_lr / lr = {floor} must be >= 0, the ratio <= 1")
    rest = max(total_steps - warmup_steps, 1)
    if name == "constant":
        after: Schedule = Constant()
    elif name == "step":
        if step_every < 1:
            raise ConfigError(f"optim.schedule = step needs optim.step_every >= 1 (steps), it is {step_every}")
        after = StepDecay(step_every, step_factor, floor)
    elif name == "linear":
        after = Linear(rest, floor)
    elif name == "cosine":
        after = Cosine(rest, floor)
    else:
        raise ConfigError(f"optim.schedule = {name!r} is unknown; {instead(name, SCHEDULES)}")
    return Warmup(warmup_steps, after) if warmup_steps else after


def scaled_lr(lr: float, global_batch: int, reference_batch: int) -> float:
    """The linear scaling rule: a rate that suits ``reference_batch`` made to suit ``global_batch``."""
    return lr * global_batch / reference_batch
