"""A training loop in PyTorch that survives failures: module, optimizer and scheduler as a state of ``ddl.elastic``.

state = ddl.torch.State(net, optimizer, scheduler)

@ddl.elastic.resilient(state, shards=60)
def train(state, world):
    for rows in world.batches(dataset, global_batch=256):
        optimizer.zero_grad()
        loss_sum(net(x[rows]), y[rows]).backward()
        state.update(len(rows))

train()
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from ddl import elastic
from ddl.collectives import allreduce
from ddl.comm import Group
from ddl.errors import UserError
from ddl.torch.allocator import keep_freed_memory
from ddl.torch.buffers import Buffers
from ddl.torch.stepped import as_taken, check_scheduler, needs_closure


class State(elastic.State):
    """What a commit saves: the parameters and buffers of ``module``, the state of ``optimizer`` and ``scheduler``, and
    further arrays and values by name; each of the three may be a list of several. steps: updates so far.

    All ranks begin with the modules of rank 0. Running statistics of norms are averaged over the ranks by their
    samples; any other buffer must change alike on all of them. Modules may lie on a GPU; sums go through the host."""

    def __init__(
        self,
        module: nn.Module | Sequence[nn.Module],
        optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer],
        scheduler: Any = None,
        *,
        steps: int = 0,
        **values: Any,
    ):
        super().__init__(steps=steps, **values)
        self.__dict__["_training"] = Training(_several(module), _several(optimizer), _several(scheduler))
        self._training.save()

    def average(self, weight: float, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Give each parameter the mean gradient of the global batch, before ``update``: to clip it, for example.

        weight: what this rank's part of the sum counts, usually its samples. The loss that was differentiated is a sum.
        optimizer: only that one's parameters. Called by all ranks together. Raises PeerLost."""
        self._training.average(self._group, weight, optimizer)

    def step(self, optimizer: torch.optim.Optimizer, weight: float | None = None) -> None:
        """One of several optimizers makes its step, after ``average(weight, optimizer)`` unless that was called. An
        ``update()`` after those of all commits them together."""
        if weight is not None:
            self.average(weight, optimizer)
        self._training.step(optimizer)

    def update(self, weight: float | None = None) -> None:
        """One step: ``average(weight)`` unless that was called, then the optimizers, the schedulers and ``commit``.

        Optimizers whose gradients were not averaged, or that have made their step, make none. A ReduceLROnPlateau makes
        its steps in ``validated``."""
        if weight is not None:
            self.average(weight)
        self._training.update()
        self.steps += 1
        self.commit()

    def validated(self, loss: float, weight: float) -> float:
        """Step each ReduceLROnPlateau with the mean of a loss over the ranks, and commit; returns that mean.

        loss: the sum over this rank's samples. weight: their number. Called by all ranks together. Raises PeerLost."""
        sums = np.array([loss, weight], np.float64)
        if self._group is not None:
            self._group.native_allreduce(sums)
        mean = float(sums[0] / sums[1]) if sums[1] else float("nan")
        self._training.validated(mean)
        self.commit()
        return mean

    def save(self) -> None:
        super().save()
        self._training.save()

    def restore(self) -> None:
        super().restore()
        self._training.restore()

    def compared(self) -> dict[str, Any]:
        return {**super().compared(), **self._training.compared()}

    def saved_arrays(self) -> list[np.ndarray]:
        return [*super().saved_arrays(), *self._training.saved_arrays()]

    def saved_values(self) -> Any:
        return super().saved_values(), self._training.saved_objects

    def become(self, values: Any) -> None:
        own, self._training.saved_objects = values
        super().become(own)

    def join(self, group: Group) -> None:
        super().join(group)
        if self.commits == 0:  # drawn on each rank for itself
            for array in self._training.saved_arrays():
                group.broadcast(array, 0)


def _several(given: Any) -> list[Any]:
    return [] if given is None else list(given) if isinstance(given, (list, tuple)) else [given]


class Training:
    """Modules with their optimizers and schedulers, and a copy of all that they hold."""

    def __init__(self, modules: list[nn.Module], optimizers: list[torch.optim.Optimizer], schedulers: list[Any]):
        keep_freed_memory()
        self.optimizers, self.schedulers = optimizers, schedulers
        self.saved_objects: dict[int, Any] = {}
        self._averaged: set[int] = set()  # numbers of the optimizers whose step is due
        self._has_stepped = False
        tensors = [module.state_dict(keep_vars=True) for module in modules]
        known = {id(p) for module in modules for p in module.parameters()}
        self._parameters = [[p for group in one.param_groups for p in group["params"]] for one in optimizers]
        every = [p for parameters in self._parameters for p in parameters]
        if strangers := [tuple(p.shape) for p in every if id(p) not in known]:
            raise UserError(f"the optimizer has a parameter of shape {strangers[0]} that is not the module's")
        if len({id(p) for p in every}) < len(every):
            raise UserError("two optimizers have the same parameter")
        for optimizer in optimizers:
            if needs_closure(optimizer):
                raise UserError(
                    f"{type(optimizer).__name__} needs a closure, and update() has none: "
                    "ddl.torch.DistributedOptimizer runs it"
                )
        for scheduler in schedulers:
            check_scheduler(scheduler)
        buffers = [Buffers(module) for module in modules]
        self._averages = [own[name] for found, own in zip(buffers, tensors) for name in found.averages]
        self._counters = [
            own[name] for found, own in zip(buffers, tensors) for name, kept in found.kept.items() if kept.counts
        ]
        # Tied tensors occur twice in the state_dict.
        of = "the module's" if len(modules) == 1 else "module {}'s"
        names = {id(t): f"{of.format(n)} {name}" for n, own in enumerate(tensors) for name, t in own.items()}
        self._tensors = list({id(tensor): tensor for own in tensors for tensor in own.values()}.values())
        self._names = [names[id(tensor)] for tensor in self._tensors]
        self._saved = [tensor.detach().cpu().clone().contiguous() for tensor in self._tensors]
        summed = [*self._parameters, self._averages]
        wide = torch.float64 if any(t.dtype == torch.float64 for part in summed for t in part) else torch.float32
        lengths = [sum(t.numel() for t in part) for part in summed]
        self._flat = torch.zeros(sum(lengths), dtype=wide)
        self._parts = self._flat.split(lengths)  # the gradients of each optimizer, and the running averages
        self._views = [
            [view.view(t.shape) for view, t in zip(flat.split([t.numel() for t in part]), part)]
            for flat, part in zip(self._parts, summed)
        ]

    @torch.no_grad()
    def average(self, group: Group | None, weight: float, optimizer: torch.optim.Optimizer | None) -> None:
        """See ``State.average``. A parameter without a gradient on any rank has none afterwards."""
        chosen = range(len(self.optimizers)) if optimizer is None else [self._number(optimizer)]
        parameters = [p for number in chosen for p in self._parameters[number]]
        gradients = [view for number in chosen for view in self._views[number]]
        averages = self._views[-1]
        for view, parameter in zip(gradients, parameters):
            if parameter.grad is None:
                view.zero_()
            elif parameter.grad.is_sparse:
                view.copy_(parameter.grad.to_dense())
            elif parameter.grad.data_ptr() != view.data_ptr():
                view.copy_(parameter.grad)
        for view, tensor in zip(averages, self._averages):
            view.copy_(tensor).mul_(weight)
        counts = [weight * float(counter) for counter in self._counters]
        header = np.array([weight, *counts, *(p.grad is not None for p in parameters)], np.float64)
        sums = [self._flat] if optimizer is None else [*(self._parts[number] for number in chosen), self._parts[-1]]
        if group is not None:
            for part in sums:
                allreduce(part.numpy(), group)
            group.native_allreduce(header)
        total, has_gradient = header[0], header[1 + len(counts) :]
        if not total > 0:
            raise UserError(f"the weights of the ranks add up to {total:g}: update() takes the number of samples")
        for part in sums:
            part.div_(total)
        owners = [self.optimizers[number] for number in chosen for _ in self._parameters[number]]
        for view, parameter, owner, has in zip(gradients, parameters, owners, has_gradient):
            if not has:
                parameter.grad = None
            elif parameter.dtype == view.dtype and parameter.device == view.device:
                parameter.grad = as_taken(view, owner)
            else:
                parameter.grad = as_taken(view.to(parameter.device, parameter.dtype), owner)
        for view, tensor in zip(averages, self._averages):
            tensor.copy_(view)
        for counter, count in zip(self._counters, header[1:]):
            counter.fill_(round(count / total))
        self._averaged.update(chosen)

    def _number(self, optimizer: torch.optim.Optimizer) -> int:
        found = next((number for number, one in enumerate(self.optimizers) if one is optimizer), None)
        if found is None:
            raise UserError(f"the state has {len(self.optimizers)} optimizers, and this {type(optimizer).__name__} not")
        return found

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        number = self._number(optimizer)
        if number not in self._averaged:
            raise UserError("step() needs the number of samples, or a call of average() before")
        optimizer.step()
        self._averaged.remove(number)
        self._has_stepped = True

    def update(self) -> None:
        if not self._averaged and not self._has_stepped:
            raise UserError("update() needs the number of samples, or a call of average() before")
        for number in sorted(self._averaged):
            self.optimizers[number].step()
        for scheduler in self.schedulers:
            if not isinstance(scheduler, ReduceLROnPlateau):
                scheduler.step()
        self._forget()

    def validated(self, loss: float) -> None:
        for scheduler in self.schedulers:
            if isinstance(scheduler, ReduceLROnPlateau):
                scheduler.step(loss)

    def _forget(self) -> None:
        self._averaged.clear()
        self._has_stepped = False

    @torch.no_grad()
    def save(self) -> None:
        for saved, tensor in zip(self._saved, self._tensors):
            saved.copy_(tensor)
        objects = {number: one.state_dict() for number, one in enumerate([*self.optimizers, *self.schedulers])}
        self.saved_objects = _copied(objects, self.saved_objects)

    @torch.no_grad()
    def restore(self) -> None:
        for saved, tensor in zip(self._saved, self._tensors):
            tensor.copy_(saved)
        for number, one in enumerate([*self.optimizers, *self.schedulers]):
            one.load_state_dict(copy.deepcopy(self.saved_objects[number]))
        self._forget()

    def compared(self) -> dict[str, Any]:
        """The bytes of the modules' saved tensors, by name."""
        return dict(zip(self._names, self.saved_arrays(), strict=True))

    def saved_arrays(self) -> list[np.ndarray]:
        """The bytes of the saved tensors, whatever their types are."""
        return [saved.view(-1).view(torch.uint8).numpy() for saved in self._saved]


def _copied(value: Any, into: Any) -> Any:
    """A deep copy of ``value``, which reuses the tensors of an older copy."""
    if isinstance(value, Tensor):
        value = value.detach()
        fits = isinstance(into, Tensor) and into.shape == value.shape and into.dtype == value.dtype
        return into.copy_(value) if fits else value.cpu().clone()
    if isinstance(value, Mapping):
        older = into if isinstance(into, Mapping) else {}
        return {key: _copied(one, older.get(key)) for key, one in value.items()}
    return copy.deepcopy(value)
