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
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ddl import elastic
from ddl.collectives import allreduce
from ddl.comm import Group
from ddl.errors import UserError
from ddl.torch.allocator import keep_freed_memory
from ddl.torch.buffers import Buffers


class State(elastic.State):
    """What a commit saves: the parameters and buffers of ``module``, the state of ``optimizer`` and ``scheduler``, and
    further arrays and values by name. steps: updates so far.

    All ranks begin with the module of rank 0. Running statistics of norms are averaged over the ranks by their samples;
    any other buffer must change alike on all of them. The module may lie on a GPU; sums go through the host."""

    def __init__(
        self,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        scheduler: Any = None,
        *,
        steps: int = 0,
        **values: Any,
    ):
        super().__init__(steps=steps, **values)
        self.__dict__["_training"] = Training(module, optimizer, scheduler)
        self._training.save()

    def average(self, weight: float) -> None:
        """Give each parameter the mean gradient of the global batch, before ``update``: to clip it, for example.

        weight: what this rank's part of the sum counts, usually its samples. The loss that was differentiated is a sum.
        Called by all ranks together. Raises PeerLost."""
        self._training.average(self._group, weight)

    def update(self, weight: float | None = None) -> None:
        """One step: ``average(weight)`` unless that was called, then optimizer, scheduler and ``commit``."""
        if weight is not None:
            self.average(weight)
        elif not self._training.is_averaged:
            raise UserError("update() needs the number of samples, or a call of average() before")
        self._training.step()
        self.steps += 1
        self.commit()

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


class Training:
    """A module with its optimizer and scheduler, and a copy of all that they hold."""

    def __init__(self, module: nn.Module, optimizer: torch.optim.Optimizer, scheduler: Any):
        keep_freed_memory()
        self.module, self.optimizer, self.scheduler = module, optimizer, scheduler
        self.saved_objects: dict[str, Any] = {}
        self.is_averaged = False
        self._parameters = [p for group in optimizer.param_groups for p in group["params"]]
        known = {id(p) for p in module.parameters()}
        if strangers := [tuple(p.shape) for p in self._parameters if id(p) not in known]:
            raise UserError(f"the optimizer has a parameter of shape {strangers[0]} that is not the module's")
        if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
            raise UserError(
                "ReduceLROnPlateau needs a loss: leave it out of the State, and call its step with a loss that is "
                "equal on all ranks, as world.allreduce returns it"
            )
        if isinstance(optimizer, torch.optim.LBFGS):
            raise UserError("LBFGS needs a closure, and update() has none: ddl.torch.DistributedOptimizer runs it")
        buffers, tensors = Buffers(module), module.state_dict(keep_vars=True)
        self._averages = [tensors[name] for name in buffers.averages]
        self._counters = [tensors[name] for name, kept in buffers.kept.items() if kept.counts]
        # Tied tensors occur twice in the state_dict.
        self._tensors = list({id(tensor): tensor for tensor in tensors.values()}.values())
        self._saved = [tensor.detach().cpu().clone().contiguous() for tensor in self._tensors]
        self._summed = self._parameters + self._averages
        wide = torch.float64 if any(t.dtype == torch.float64 for t in self._summed) else torch.float32
        self._flat = torch.zeros(sum(t.numel() for t in self._summed), dtype=wide)
        sizes = [tensor.numel() for tensor in self._summed]
        self._views = [part.view(t.shape) for part, t in zip(self._flat.split(sizes), self._summed)]

    @torch.no_grad()
    def average(self, group: Group | None, weight: float) -> None:
        """See ``State.average``. A parameter without a gradient on any rank has none afterwards."""
        gradients, averages = self._views[: len(self._parameters)], self._views[len(self._parameters) :]
        for view, parameter in zip(gradients, self._parameters):
            if parameter.grad is None:
                view.zero_()
            elif parameter.grad.data_ptr() != view.data_ptr():
                view.copy_(parameter.grad.to_dense() if parameter.grad.is_sparse else parameter.grad)
        for view, tensor in zip(averages, self._averages):
            view.copy_(tensor).mul_(weight)
        counts = [weight * float(counter) for counter in self._counters]
        header = np.array([weight, *counts, *(p.grad is not None for p in self._parameters)], np.float64)
        if group is not None:
            allreduce(self._flat.numpy(), group)
            group.native_allreduce(header)
        total, has_gradient = header[0], header[1 + len(counts) :]
        if not total > 0:
            raise UserError(f"the weights of the ranks add up to {total:g}: update() takes the number of samples")
        self._flat.div_(total)
        for view, parameter, has in zip(gradients, self._parameters, has_gradient):
            if not has:
                parameter.grad = None
            elif parameter.dtype == view.dtype and parameter.device == view.device:
                parameter.grad = view
            else:
                parameter.grad = view.to(parameter.device, parameter.dtype)
        for view, tensor in zip(averages, self._averages):
            tensor.copy_(view)
        for counter, count in zip(self._counters, header[1:]):
            counter.fill_(round(count / total))
        self.is_averaged = True

    def step(self) -> None:
        self.optimizer.step()
        if self.scheduler is not None:
            self.scheduler.step()
        self.is_averaged = False

    @torch.no_grad()
    def save(self) -> None:
        for saved, tensor in zip(self._saved, self._tensors):
            saved.copy_(tensor)
        objects = {"optimizer": self.optimizer.state_dict()}
        if self.scheduler is not None:
            objects["scheduler"] = self.scheduler.state_dict()
        self.saved_objects = _copied(objects, self.saved_objects)

    @torch.no_grad()
    def restore(self) -> None:
        for saved, tensor in zip(self._saved, self._tensors):
            tensor.copy_(saved)
        self.optimizer.load_state_dict(copy.deepcopy(self.saved_objects["optimizer"]))
        if self.scheduler is not None:
            self.scheduler.load_state_dict(copy.deepcopy(self.saved_objects["scheduler"]))
        self.is_averaged = False

    def compared(self) -> dict[str, Any]:
        """The bytes of the module's saved tensors, by name."""
        names = {id(tensor): name for name, tensor in self.module.state_dict(keep_vars=True).items()}
        arrays = zip(self._tensors, self.saved_arrays(), strict=True)
        return {f"the module's {names[id(tensor)]}": array for tensor, array in arrays}

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
