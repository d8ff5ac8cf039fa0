"""The functions of a Horovod script beyond ``ddl.init``, ``rank``, ``size`` and ``local_rank``, under the same names.

Such a loop does not survive the death of a rank: ``ddl.torch.State`` or ``ddl.Trainer`` does."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ddl import world
from ddl.collectives import allreduce as sum_in_place
from ddl.collectives import check_same_call, check_same_values
from ddl.comm import Group
from ddl.torch.allocator import keep_freed_memory
from ddl.torch.stepped import as_taken


def DistributedOptimizer(optimizer: torch.optim.Optimizer, named_parameters: Any = None) -> torch.optim.Optimizer:
    """Make ``optimizer.step`` average the gradients over all ranks before it updates; returns ``optimizer``.

    A closure's gradients and loss are averaged each time the optimizer calls it. named_parameters: for messages.
    A missing gradient counts as zero, but a parameter without a gradient on any rank is not updated. The first step
    raises ValueError, on every rank, if the ranks' parameters differ.

    To change the mean gradients before the update, for example to clip them: ``optimizer.synchronize()`` averages them,
    and the next ``step`` does not again. ``with optimizer.skip_synchronize():`` says that ``step`` must not."""
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(f"ddl.torch.DistributedOptimizer takes an optimizer of torch.optim, not {_kind(optimizer)}")
    if optimizer in world.JOINABLE:
        raise TypeError(f"the {type(optimizer).__name__} averages its gradients already")
    keep_freed_memory()
    averaging = _Averaging(optimizer, dict(named_parameters or ()))
    world.JOINABLE[optimizer] = averaging
    optimizer.register_step_pre_hook(averaging)
    optimizer.synchronize = averaging.synchronize  # type: ignore[attr-defined]
    optimizer.skip_synchronize = averaging.skip_synchronize  # type: ignore[attr-defined]
    return optimizer


def _kind(given: Any) -> str:
    return f"the class {given.__name__}: make one" if isinstance(given, type) else f"a {type(given).__name__}"


def broadcast_parameters(params: nn.Module | Mapping[str, Any] | Iterable[tuple[str, Any]], root_rank: int = 0) -> None:
    """Overwrite the tensors of a module, or tensors by name (a state_dict, or ``named_parameters()``), with those of
    ``root_rank``."""
    if isinstance(params, nn.Module):
        params = params.state_dict()
    pairs = list(params.items() if isinstance(params, Mapping) else params)
    if not all(isinstance(pair, tuple) and isinstance(pair[0], str) for pair in pairs):
        raise TypeError("broadcast_parameters takes a module, its state_dict(), or tensors with names")
    given = dict(pairs)
    tensors = {name: value.detach() for name, value in given.items() if isinstance(value, Tensor)}
    hosts = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    world.broadcast({name: _bytes(host) for name, host in hosts.items()}, root_rank)
    for name, tensor in tensors.items():
        tensor.copy_(hosts[name])


def broadcast_optimizer_state(optimizer: torch.optim.Optimizer, root_rank: int = 0) -> None:
    """Give every rank the state and the settings of ``root_rank``'s optimizer."""
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(f"broadcast_optimizer_state takes an optimizer of torch.optim, not {_kind(optimizer)}")
    group = world.group()
    optimizer.load_state_dict(
        group.gather_objects(optimizer.state_dict() if group.rank == root_rank else None)[root_rank]
    )


@dataclass(frozen=True)
class _AveragedStep(world.OptimizerStep):
    """settings: of the parameter groups, which a scheduler changes."""

    settings: tuple[dict[str, Any], ...] = ()
    has_closure: bool = False

    def why_not_shadowed(self) -> str:
        return "since it has a closure" if self.has_closure else super().why_not_shadowed()

    def shadow(self, group: Group, contributors: int) -> None:
        group.kept["join"][self.place].shadow(self.settings, contributors)


class _Averaging:
    """What PyTorch calls before each step of an optimizer."""

    def __init__(self, optimizer: torch.optim.Optimizer, named: dict[str, Tensor]):
        self._optimizer = weakref.ref(optimizer)  # which owns this
        self._names = {id(parameter): name for name, parameter in named.items()}
        self._is_checked = self._shadows = self._skips = self._is_averaged = False

    def synchronize(self) -> None:
        """Average the gradients over all ranks now, instead of in the next step. Called by all ranks together."""
        optimizer = self._optimizer()
        assert optimizer is not None
        if world.place_in_join(self) >= 0:
            raise ValueError("synchronize() cannot be shadowed by a rank that has left a ddl.join block: leave it out")
        self._average(optimizer, False)
        self._is_averaged = True

    @contextmanager
    def skip_synchronize(self) -> Iterator[None]:
        """Inside, ``step`` uses the gradients as they are: after ``synchronize``."""
        self._skips = True
        try:
            yield
        finally:
            self._skips = False

    def __call__(self, optimizer: Any, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        if self._shadows:
            return None
        if self._skips or self._is_averaged:
            if not self._is_averaged:
                raise ValueError("in skip_synchronize() a step needs a call of synchronize() before")
            self._is_averaged = False
            return None
        closure = options.pop("closure", arguments[1] if len(arguments) > 1 else None)
        if closure is None:
            self._average(optimizer, False)
            return None

        def averaged() -> Any:
            loss = closure()
            self._average(optimizer, True)
            return None if loss is None else torch.as_tensor(world.allreduce(torch.as_tensor(loss).detach()))

        return (optimizer, averaged), options

    def _average(self, optimizer: torch.optim.Optimizer, has_closure: bool) -> None:
        group = world.group()
        settings = tuple({k: v for k, v in one.items() if k != "params"} for one in optimizer.param_groups)
        shapes = "; ".join(f"{tuple(p.shape)} {p.dtype}" for p in _parameters(optimizer))
        rates = ", ".join(f"{float(one['lr']):g}" for one in settings)
        text = f"ddl.torch.DistributedOptimizer.step({shapes}; lr {rates})"
        place = world.place_in_join(self)
        contributors = check_same_call(group, _AveragedStep(text, None, place, 0.0, settings, has_closure))
        self.check_start()
        _sum_gradients(optimizer, contributors)

    def check_start(self) -> None:
        """Raises ValueError, on every rank, if the ranks' parameters differ before the first step."""
        optimizer = self._optimizer()
        if self._is_checked or optimizer is None:
            return
        values = {
            self._names.get(id(p), f"parameter {place}"): _bytes(p) for place, p in enumerate(_parameters(optimizer))
        }
        advice = "call ddl.torch.broadcast_parameters(module.state_dict()) first"
        check_same_values(world.group(), values, "parameters before the first step", advice)
        self._is_checked = True

    def shadow(self, settings: tuple[dict[str, Any], ...], contributors: int) -> None:
        """Take part in a step of the other ranks without gradients."""
        optimizer = self._optimizer()
        assert optimizer is not None
        for mine, theirs in zip(optimizer.param_groups, settings, strict=True):
            mine.update(theirs)
        for parameter in _parameters(optimizer):
            parameter.grad = None
        _sum_gradients(optimizer, contributors)
        self._shadows = True
        try:
            optimizer.step()
        finally:
            self._shadows = False


def _parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def _bytes(tensor: Tensor) -> np.ndarray:
    """The tensor's values as bytes, since NumPy lacks some of the types; of one in host memory not copied."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()


@torch.no_grad()
def _sum_gradients(optimizer: torch.optim.Optimizer, contributors: int) -> None:
    """Give each parameter the sum of the ranks' gradients, divided by ``contributors``."""
    group, parameters = world.group(), _parameters(optimizer)
    has_gradient = np.array([p.grad is not None for p in parameters], np.float64)
    group.native_allreduce(has_gradient)
    summed = [p for p, ranks in zip(parameters, has_gradient) if ranks]
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in summed]
    flat = torch.cat([g.to_dense().reshape(-1).cpu().to(_wide(parameters)) for g in gradients] or [torch.zeros(0)])
    sum_in_place(flat.numpy(), group)
    flat /= contributors
    for parameter, mean in zip(summed, flat.split([p.numel() for p in summed])):
        parameter.grad = as_taken(mean.view(parameter.shape).to(parameter.device, parameter.dtype), optimizer)


def _wide(parameters: list[Tensor]) -> torch.dtype:
    return torch.float64 if any(p.dtype == torch.float64 for p in parameters) else torch.float32
