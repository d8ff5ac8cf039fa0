"""Optimizers as passes over flat memory, schedules, clipping, parameter groups.

An optimizer is a frozen choice of numbers; its slots live in flat buffers that the caller owns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

from ddl.errors import ConfigError
from ddl.optim.clip import gradient_scale
from ddl.optim.groups import FineTuning, Groups, Rule
from ddl.optim.layerwise import LAMB, LARS
from ddl.optim.optimizer import Optimizer, OwnState, slot_dtype
from ddl.optim.optimizers import SGD, Adagrad, Adam, AdamW, Momentum, NAdam, RAdam, RMSprop
from ddl.optim.prune import Pruning
from ddl.optim.schedule import (
    SCHEDULES,
    Constant,
    Cosine,
    LearningRate,
    Linear,
    Schedule,
    StepDecay,
    Warmup,
    resumed_span,
    scaled_lr,
    schedule,
)
from ddl.optim.whole import Whole
from ddl.wording import instead, listed

OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "sgd": SGD,
    "momentum": Momentum,
    "adam": Adam,
    "adamw": AdamW,
    "nadam": NAdam,
    "radam": RAdam,
    "rmsprop": RMSprop,
    "adagrad": Adagrad,
    "lamb": LAMB,
    "lars": LARS,
}


def build(name: str, options: Mapping[str, Any] | None = None) -> Optimizer:
    """The optimizer called ``name``; options that are None keep its defaults.

    Raises ConfigError for an unknown name, an option that it does not have, or an impossible value."""
    if name not in OPTIMIZERS:
        raise ConfigError(f"optim.name = {name!r} is unknown; {instead(name, OPTIMIZERS)}")
    given = {key: value for key, value in (options or {}).items() if value is not None}
    known = [field.name for field in fields(OPTIMIZERS[name])]  # type: ignore[arg-type]
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise ConfigError(f"optimizer {name!r} has no option {listed(unknown)}; {instead(unknown[0], known, 'it has')}")
    return OPTIMIZERS[name](**given)


__all__ = [
    "LAMB",
    "LARS",
    "OPTIMIZERS",
    "SCHEDULES",
    "SGD",
    "Adagrad",
    "Adam",
    "AdamW",
    "Constant",
    "Cosine",
    "FineTuning",
    "Groups",
    "LearningRate",
    "Linear",
    "Momentum",
    "NAdam",
    "Optimizer",
    "OwnState",
    "Pruning",
    "RAdam",
    "RMSprop",
    "Rule",
    "Schedule",
    "StepDecay",
    "Warmup",
    "Whole",
    "build",
    "gradient_scale",
    "resumed_span",
    "scaled_lr",
    "schedule",
    "slot_dtype",
]
