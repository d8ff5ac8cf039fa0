"""Optimizers and learning-rate schedulers of PyTorch, translated to ddl's rules where these compute the same.

ddl's rules run over flat memory, which is faster; an object of PyTorch that is translated is read once and never
stepped. All others run as they are (stepped.py)."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import lr_scheduler

from ddl.errors import ConfigError
from ddl.optim import SGD, Adagrad, Adam, AdamW, Momentum, NAdam, Optimizer, RAdam, RMSprop, Rule, Schedule
from ddl.torch.model import Model
from ddl.torch.stepped import AsTheyAre

Group = Mapping[str, Any]


def _adam(kind: Callable[..., Optimizer], group: Group, **more: float) -> Optimizer:
    beta1, beta2 = group["betas"]
    return kind(beta1=float(beta1), beta2=float(beta2), eps=group["eps"], **_common(group), **more)


def _common(group: Group) -> dict[str, float]:
    return {"lr": float(group["lr"]), "weight_decay": float(group["weight_decay"])}


def _sgd(group: Group) -> Optimizer:
    if not group["momentum"]:
        return SGD(**_common(group))
    return Momentum(momentum=group["momentum"], nesterov=group["nesterov"], **_common(group))


def _adam_or_adamw(group: Group) -> Optimizer:
    return _adam(AdamW if group.get("decoupled_weight_decay") else Adam, group)


# The rule that computes what an optimizer of PyTorch does, and the options that must be off for that.
RULES: dict[type, tuple[Callable[[Group], Optimizer], tuple[str, ...]]] = {
    torch.optim.SGD: (_sgd, ("dampening",)),
    torch.optim.Adam: (_adam_or_adamw, ("amsgrad",)),
    torch.optim.AdamW: (lambda group: _adam(AdamW, group), ("amsgrad",)),
    torch.optim.NAdam: (
        lambda group: _adam(NAdam, group, momentum_decay=group["momentum_decay"]),
        ("decoupled_weight_decay",),
    ),
    torch.optim.RAdam: (lambda group: _adam(RAdam, group), ("decoupled_weight_decay",)),
    torch.optim.RMSprop: (
        lambda group: RMSprop(decay=group["alpha"], eps=group["eps"], **_common(group)),
        ("centered", "momentum"),
    ),
    torch.optim.Adagrad: (
        lambda group: Adagrad(eps=group["eps"], **_common(group)),
        ("lr_decay", "initial_accumulator_value"),
    ),
}


def translated(
    optimizer: Any, model: Any, schedule: Any = None
) -> tuple[Optimizer | AsTheyAre, list[Rule], str | Schedule | None]:
    """ddl's optimizer for the first parameter group, rules for the parameters of the others, and the schedule.

    optimizer: one of PyTorch, or several that share out the parameters. model: the module, or its Model. schedule: a
    name or function of ddl's, or what sets the optimizers' rates, one scheduler or several; the rates of rules are
    those before any schedule. Parameters of the module that no optimizer has are frozen. Optimizers that ddl has no
    rule for run as they are, together with their schedulers. Raises ConfigError for one that needs a closure."""
    module = model.module if isinstance(model, Model) else model
    if not isinstance(module, nn.Module):
        raise ConfigError("an optimizer of PyTorch goes with a torch.nn.Module: give the model as one")
    optimizers, schedulers = _several(optimizer), [one for one in _several(schedule) if hasattr(one, "step")]
    for one in optimizers:
        if isinstance(one, type):
            raise ConfigError(f"the optimizer is a class: make one, {one.__name__}(module.parameters())")
        if not isinstance(one, torch.optim.Optimizer):
            raise ConfigError(f"several optimizers must all be PyTorch's, and {one!r:.60} is not")
    for scheduler in schedulers:
        if isinstance(scheduler, lr_scheduler.LRScheduler) and not any(scheduler.optimizer is o for o in optimizers):
            raise ConfigError("the scheduler is of another optimizer than the one that is given")
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    left_out = [Rule(name, frozen=True) for name in _left_out(optimizers, names)]
    if len(optimizers) > 1 or not _has_rule(optimizers[0]) or not _are_factors(schedulers):
        given = AsTheyAre(module, optimizers, schedulers)
        return given, left_out, given.factor if schedulers else schedule
    rule, groups = RULES[type(optimizers[0])][0], optimizers[0].param_groups
    of_groups = [rule({**group, "lr": group["initial_lr"]} if schedulers else group) for group in groups]
    rules = [
        Rule(names[id(parameter)], own)
        for group, own in zip(groups, of_groups, strict=True)
        for parameter in group["params"]
        if own != of_groups[0]
    ]
    return of_groups[0], [*rules, *left_out], Factors(schedulers[0]) if schedulers else schedule


def _several(given: Any) -> list[Any]:
    return list(given) if isinstance(given, (list, tuple)) else [given]


def _left_out(optimizers: Sequence[torch.optim.Optimizer], names: Mapping[int, str]) -> list[str]:
    """The parameters that no optimizer has. Raises ConfigError for one that two have, or that is not the module's."""
    seen: set[int] = set()
    for optimizer in optimizers:
        for number, group in enumerate(optimizer.param_groups):
            for parameter in group["params"]:
                if id(parameter) not in names:
                    raise ConfigError(
                        f"parameter group {number} of the optimizer has a parameter of shape {tuple(parameter.shape)} "
                        "that is not the module's: make the optimizer of this module's parameters"
                    )
                if id(parameter) in seen:
                    raise ConfigError(f"parameter {names[id(parameter)]!r} has two optimizers")
                seen.add(id(parameter))
    return [name for number, name in names.items() if number not in seen]


def _has_rule(optimizer: torch.optim.Optimizer) -> bool:
    """Whether ddl has a rule that computes the same. Its slots are empty at the start."""
    if type(optimizer) not in RULES or any(_has_stepped(state) for state in optimizer.state.values()):
        return False
    off = (*RULES[type(optimizer)][1], "maximize")
    return not any(group.get(option) for group in optimizer.param_groups for option in off)


def _has_stepped(state: Mapping[str, Any]) -> bool:
    return bool(float(state.get("step", 0))) or state.get("momentum_buffer") is not None


LOOKED_AT = 50  # steps of a scheduler


def _are_factors(schedulers: Sequence[Any]) -> bool:
    """Whether there is at most one, and its first steps give one factor for all learning rates."""
    if not schedulers:
        return True
    if len(schedulers) > 1 or not isinstance(schedulers[0], lr_scheduler.LRScheduler):
        return False
    if isinstance(schedulers[0], lr_scheduler.ReduceLROnPlateau):
        return False
    try:
        Factors(schedulers[0])(LOOKED_AT)
    except NotAFactor:
        return False
    except ConfigError:  # it ends before, and the Trainer says so where it ends before the job
        return True
    return True


class NotAFactor(ConfigError):
    """A scheduler does more than multiply all learning rates by one factor."""


class Factors:
    """step -> factor of the learning rate, as a scheduler of PyTorch sets it that is stepped after each update.

    Read off a copy of the scheduler, so the given one stays as it is. Raises NotAFactor for a scheduler that sets more
    than learning rates, or has different factors for different groups; ConfigError for one that ends too early."""

    def __init__(self, scheduler: lr_scheduler.LRScheduler):
        groups = scheduler.optimizer.param_groups
        shared = {id(parameter): parameter for group in groups for parameter in group["params"]}
        self._scheduler = copy.deepcopy(scheduler, dict(shared))
        self._others = self._options()
        self._factors = [self._read()]

    def __call__(self, step: int) -> float:
        while len(self._factors) <= step:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that the optimizer makes no steps
                try:
                    self._scheduler.step()
                except ValueError as error:
                    raise ConfigError(f"the scheduler ends before step {step}: {error}") from error
            self._factors.append(self._read())
        return self._factors[step]

    def _options(self) -> list[dict[str, Any]]:
        groups = self._scheduler.optimizer.param_groups
        return [{k: v for k, v in group.items() if k not in ("params", "lr")} for group in groups]

    def _read(self) -> float:
        groups = self._scheduler.optimizer.param_groups
        factors = [float(group["lr"]) / float(group["initial_lr"]) for group in groups]
        if max(factors) - min(factors) > 1e-9 * max(factors):
            raise NotAFactor("the scheduler gives parameter groups different factors of their learning rates")
        if self._options() != self._others:
            raise NotAFactor(
                f"{type(self._scheduler).__name__} changes more than learning rates: use cycle_momentum=False"
            )
        return factors[0]
