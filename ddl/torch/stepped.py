"""Optimizers and schedulers of PyTorch that run as they are: on the module's parameters, which are views of ddl's, with
the mean gradients.

Their states are saved, and sent to ranks that are behind, with ddl's own. Optimizers with an equal rule in ddl
are translated instead (optimizers.py)."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler

from ddl.arrays import Array, Layout
from ddl.errors import ConfigError
from ddl.optim import SGD, Groups, OwnState, Rule
from ddl.torch.device import is_remote
from ddl.torch.trees import packed, unpacked


class AsTheyAre:
    """optimizers: their ``step`` needs no closure. schedulers: stepped after each update, or, if they are
    ReduceLROnPlateau, after each evaluation on the validation split. lr: the first rate before any schedule."""

    def __init__(self, module: nn.Module, optimizers: Sequence[torch.optim.Optimizer], schedulers: Sequence[Any] = ()):
        self.module, self.optimizers, self.schedulers = module, list(optimizers), list(schedulers)
        for optimizer in self.optimizers:
            if needs_closure(optimizer):
                raise ConfigError(
                    f"{type(optimizer).__name__}.step needs a closure that computes the loss again, which a Trainer "
                    "has not: ddl.torch.DistributedOptimizer runs it in your own loop"
                )
        for scheduler in self.schedulers:
            check_scheduler(scheduler)
            if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau) and scheduler.mode != "min":
                raise ConfigError('ReduceLROnPlateau follows the validation loss, which should fall: mode="min"')
        self.rates = [[group.get("lr") for group in o.param_groups] for o in self.optimizers]
        self.lr = self.rate or 1.0  # before any schedule
        self._begun = copy.deepcopy([one.state_dict() for one in (*self.optimizers, *self.schedulers)])

    @property
    def needs_validation(self) -> bool:
        return any(isinstance(one, lr_scheduler.ReduceLROnPlateau) for one in self.schedulers)

    @property
    def kinds(self) -> list[str]:
        return [type(one).__name__ for one in (*self.optimizers, *self.schedulers)]

    @property
    def rate(self) -> float:
        """The first learning rate as it is now."""
        return float(self.optimizers[0].param_groups[0].get("lr") or 0.0)

    def factor(self, step: int) -> float:
        """A schedule of ddl that says what the schedulers have set."""
        return self.rate / self.lr

    def over(self, layout: Layout, rules: Sequence[Rule], freeze: Sequence[str]) -> Stepped:
        """All begin with the state that optimizers and schedulers had when they were given."""
        for one, state in zip((*self.optimizers, *self.schedulers), self._begun):
            one.load_state_dict(copy.deepcopy(state))
        return Stepped(layout, self, rules, freeze)

    def unscheduled(self) -> AsTheyAre:
        alone = copy.copy(self)
        alone.schedulers = []
        return alone

    def __repr__(self) -> str:
        return "; ".join(map(repr, self.optimizers))


def needs_closure(optimizer: torch.optim.Optimizer) -> bool:
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    return isinstance(optimizer, torch.optim.LBFGS) or (closure is not None and closure.default is closure.empty)


def as_taken(gradient: Tensor, optimizer: torch.optim.Optimizer | None) -> Tensor:
    """A dense gradient as ``optimizer`` takes it: SparseAdam takes, and updates, the rows that are not zero."""
    return gradient.to_sparse(1) if isinstance(optimizer, torch.optim.SparseAdam) else gradient


def check_scheduler(scheduler: Any) -> None:
    """Raises ConfigError for an object that is not a scheduler, or whose state cannot be saved."""
    if lacking := [name for name in ("step", "state_dict", "load_state_dict") if not hasattr(scheduler, name)]:
        raise ConfigError(f"a scheduler needs {lacking[0]}(), which {type(scheduler).__name__} has not")


def _load_all(pairs: Sequence[tuple[Any, Any]]) -> None:
    """Give each object the state beside it; if one refuses its own, all of them keep what they had."""
    before = [(one, one.state_dict()) for one, _ in pairs]  # loading replaces these values and leaves them unchanged
    try:
        for one, state in pairs:
            one.load_state_dict(state)
    except Exception:
        for one, state in before:
            one.load_state_dict(state)
        raise


class Stepped(Groups, OwnState):
    """The update of parameters with this layout by such optimizers."""

    def __init__(self, layout: Layout, given: AsTheyAre, rules: Sequence[Rule], freeze: Sequence[str]):
        super().__init__(layout, SGD(given.lr), rules, freeze=freeze)
        self._given = given
        frozen = {name for part in self.ranges if part.optimizer is None for name in part.names}
        parameters = dict(given.module.named_parameters())
        self._parameters = {name: parameters[name] for name in layout.shapes}
        self._trained = {name: p for name, p in self._parameters.items() if name not in frozen}
        self._names = {id(parameter): name for name, parameter in self._parameters.items()}
        self._factor = 1.0  # what a schedule of ddl has multiplied their rates by
        pairs = [(o, group) for o in given.optimizers for group in o.param_groups]
        self._optimizer_of = {id(p): optimizer for optimizer, group in pairs for p in group["params"]}
        self._mean = torch.zeros(0)

    @property
    def slots(self) -> tuple[str, ...]:
        return ()

    @property
    def is_elementwise(self) -> bool:
        return False

    @property
    def own(self) -> OwnState:
        return self

    def update(
        self, params: Array, grads: Array, slots: Mapping[str, Array], lr: float, step: int, scale: float
    ) -> None:
        gradient = torch.from_numpy(grads)
        if self._mean.shape != gradient.shape or self._mean.dtype != gradient.dtype:
            self._mean = torch.empty_like(gradient)
        torch.mul(gradient, scale, out=self._mean)
        views = self.layout.views(params)
        for name, parameter in self._parameters.items():
            parameter.grad = None
            self._bind(parameter, views[name])
            if name in self._trained:
                mean = self._mean[self.layout.slices[name]].view(self.layout.shapes[name]).to(parameter.device)
                parameter.grad = as_taken(mean, self._optimizer_of.get(id(parameter)))
        self._schedule(lr / self.lr)
        for optimizer in self._given.optimizers:
            optimizer.step()
        for scheduler in self._given.schedulers:
            if not isinstance(scheduler, lr_scheduler.ReduceLROnPlateau):
                scheduler.step()
        for name, parameter in self._parameters.items():
            parameter.grad = None
            # On a GPU, or replaced by an optimizer that assigns to parameter.data.
            if parameter.data_ptr() != views[name].ctypes.data:
                torch.from_numpy(views[name]).copy_(parameter.data)
                self._bind(parameter, views[name])

    def _schedule(self, factor: float) -> None:
        """Apply the factor of a schedule of ddl. An optimizer that sets its own rates keeps them meanwhile."""
        if factor == self._factor or self._given.schedulers:
            return
        self._factor = factor
        for optimizer, rates in zip(self._given.optimizers, self._given.rates, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                if rate is not None:
                    group["lr"] = float(rate) * factor

    def validated(self, loss: float) -> None:
        for scheduler in self._given.schedulers:
            if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau):
                scheduler.step(loss)

    # The state of optimizers and schedulers.

    def named(self) -> tuple[dict[str, np.ndarray], Any]:
        arrays: dict[str, np.ndarray] = {}
        rest = {
            "kinds": self._given.kinds,
            "factor": self._factor,
            "optimizers": [
                packed(self._by_name(o), f"optimizer{number or ''}", arrays)
                for number, o in enumerate(self._given.optimizers)
            ],
            "schedulers": [
                packed(s.state_dict(), f"scheduler{number or ''}", arrays)
                for number, s in enumerate(self._given.schedulers)
            ],
        }
        return arrays, rest

    def load(self, arrays: Mapping[str, np.ndarray], rest: Any) -> None:
        if isinstance(rest, Mapping) and rest.get("kinds") != self._given.kinds:
            raise ValueError(f"it is of the optimizers and schedulers {rest.get('kinds')}, not {self._given.kinds}")
        try:
            factor = float(rest["factor"])
            optimizers, schedulers = (unpacked(rest[key], arrays) for key in ("optimizers", "schedulers"))
            optimizers = [
                self._by_number(o, state) for o, state in zip(self._given.optimizers, optimizers, strict=True)
            ]
            pairs = [*zip(self._given.optimizers, optimizers), *zip(self._given.schedulers, schedulers, strict=True)]
            _load_all(pairs)
        except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
            raise ValueError(f"the state of {self._given.kinds} cannot be taken over: {error!r}") from error
        self._factor = factor

    def _by_name(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """The optimizer's state_dict, in which parameters are called by their names."""
        names, found = self._order(optimizer), optimizer.state_dict()
        state = {names[key] if isinstance(key, int) else key: value for key, value in found["state"].items()}
        groups = [{k: v for k, v in group.items() if k != "params"} for group in found["param_groups"]]
        return {**found, "state": state, "param_groups": groups}

    def _by_number(self, optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> dict[str, Any]:
        numbers = {name: number for number, name in enumerate(self._order(optimizer))}
        of_each = {numbers.get(key, key): value for key, value in state["state"].items()}
        now = optimizer.state_dict()["param_groups"]
        groups = [{**mine, "params": one["params"]} for mine, one in zip(state["param_groups"], now, strict=True)]
        return {**state, "state": of_each, "param_groups": groups}

    def _order(self, optimizer: torch.optim.Optimizer) -> list[str]:
        return [self._names[id(p)] for group in optimizer.param_groups for p in group["params"]]

    def _bind(self, parameter: Tensor, view: np.ndarray) -> None:
        """The parameter has the values of ``view``: it is one, or on a GPU a copy."""
        if is_remote(parameter.device):
            parameter.data.copy_(torch.from_numpy(view))
        elif parameter.data_ptr() != view.ctypes.data:
            parameter.data = torch.from_numpy(view)
