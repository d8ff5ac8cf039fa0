"""Optimizers and learning-rate schedulers of PyTorch, translated to ddl's rules where these compute the same.

ddl's rules run over flat memory and their slots travel and are saved with the state; the object of PyTorch is read once
and never stepped."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import lr_scheduler

from ddl.errors import ConfigError
from ddl.optim import SGD, Adagrad, Adam, AdamW, Momentum, NAdam, Optimizer, RAdam, RMSprop, Rule
from ddl.torch.model import Model

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


def translated(optimizer: torch.optim.Optimizer, model: Any, scheduler: Any = None) -> tuple[Optimizer, list[Rule]]:
    """ddl's optimizer for the first parameter group, and rules for the parameters of the others.

    model: the module, or its Model. scheduler: what sets this optimizer's rates, if that is an object of PyTorch; the
    rates are then those before any schedule. Parameters of the module that the optimizer does not have are frozen.
    Raises ConfigError for an optimizer, or an option, that ddl has no rule for."""
    module = model.module if isinstance(model, Model) else model
    if not isinstance(module, nn.Module):
        raise ConfigError("an optimizer of PyTorch goes with a torch.nn.Module: give the model as one")
    if isinstance(optimizer, type):
        raise ConfigError(f"the optimizer is a class: make one, {optimizer.__name__}(module.parameters())")
    kind = type(optimizer)
    if kind not in RULES:
        raise ConfigError(
            f"ddl has no rule that computes what {kind.__name__} does; it has those of "
            f"{', '.join(sorted(known.__name__ for known in RULES))} and ddl.torch.State runs any in your own loop"
        )
    _refuse_state(optimizer)
    scheduled = isinstance(scheduler, lr_scheduler.LRScheduler)
    if scheduled and scheduler.optimizer is not optimizer:
        raise ConfigError("the scheduler is of another optimizer than the one that is given")
    _refuse_plateau(scheduler)
    groups = [
        _rule_of(kind, {**group, "lr": group["initial_lr"]} if scheduled else group) for group in optimizer.param_groups
    ]
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    rules, seen = [], set()
    for number, group in enumerate(optimizer.param_groups):
        for parameter in group["params"]:
            if id(parameter) not in names:
                raise ConfigError(
                    f"parameter group {number} of the optimizer has a parameter of shape {tuple(parameter.shape)} that "
                    "is not the module's: make the optimizer of this module's parameters"
                )
            seen.add(id(parameter))
            if groups[number] != groups[0]:
                rules.append(Rule(names[id(parameter)], groups[number]))
    left_out = (name for number, name in names.items() if number not in seen)
    return groups[0], [*rules, *(Rule(name, frozen=True) for name in left_out)]


def _rule_of(kind: type, group: Group) -> Optimizer:
    rule, off = RULES[kind]
    for option in (*off, "maximize"):
        if group.get(option):
            raise ConfigError(f"ddl has no rule that computes {kind.__name__} with {option} = {group[option]}")
    return rule(group)


def _refuse_plateau(scheduler: Any) -> None:
    if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau):
        raise ConfigError("ReduceLROnPlateau needs the results of training, which a schedule does not have")


def _refuse_state(optimizer: torch.optim.Optimizer) -> None:
    """ddl's optimizers start from empty slots."""
    for state in optimizer.state.values():
        if float(state.get("step", 0)) or state.get("momentum_buffer") is not None:
            raise ConfigError(
                f"the {type(optimizer).__name__} has made steps already, and ddl would forget them: make a new one"
            )


class Factors:
    """step -> factor of the learning rate, as a scheduler of PyTorch sets it that is stepped after each update.

    Read off a copy of the scheduler, so the given one stays as it is. Raises ConfigError for a scheduler that needs the
    results of training, sets more than learning rates, or has different factors for different groups."""

    def __init__(self, scheduler: lr_scheduler.LRScheduler):
        _refuse_plateau(scheduler)
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
            raise ConfigError("the scheduler gives parameter groups different factors of their learning rates")
        if self._options() != self._others:
            raise ConfigError(
                f"{type(self._scheduler).__name__} changes more than learning rates: use cycle_momentum=False"
            )
        return factors[0]
