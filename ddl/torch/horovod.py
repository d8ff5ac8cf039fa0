"""The functions of a Horovod script beyond ``ddl.init``, ``rank``, ``size`` and ``local_rank``, under the same names.

Such a loop does not survive the death of a rank: ``ddl.torch.State`` or ``ddl.Trainer`` does."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddl import world
from ddl.collectives import Call, check_same_call
from ddl.collectives import allreduce as sum_in_place


def DistributedOptimizer(optimizer: torch.optim.Optimizer, named_parameters: Any = None) -> torch.optim.Optimizer:
    """Make ``optimizer.step`` average the gradients over all ranks before it updates; returns ``optimizer``.

    named_parameters is accepted but not needed. A missing gradient counts as zero, but a parameter without a gradient
    on any rank is not updated."""

    def average(optimizer: torch.optim.Optimizer, arguments: Any, options: Any) -> None:
        _average([p for group in optimizer.param_groups for p in group["params"]])

    optimizer.register_step_pre_hook(average)
    return optimizer


def broadcast_parameters(params: Mapping[str, Any] | Iterable[tuple[str, Any]], root_rank: int = 0) -> None:
    """Overwrite tensors by name (a state_dict, or ``named_parameters()``) with those of ``root_rank``."""
    given = dict(params.items() if isinstance(params, Mapping) else params)
    tensors = {name: value.detach() for name, value in given.items() if isinstance(value, Tensor)}
    hosts = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    # As bytes, since NumPy lacks some of the types.
    world.broadcast({name: host.reshape(-1).view(torch.uint8).numpy() for name, host in hosts.items()}, root_rank)
    for name, tensor in tensors.items():
        tensor.copy_(hosts[name])


def broadcast_optimizer_state(optimizer: torch.optim.Optimizer, root_rank: int = 0) -> None:
    """Give every rank the state and the settings of ``root_rank``'s optimizer."""
    group = world.group()
    optimizer.load_state_dict(
        group.gather_objects(optimizer.state_dict() if group.rank == root_rank else None)[root_rank]
    )


class _Averaging(Call):
    """A step of DistributedOptimizer."""

    def why_not_shadowed(self) -> str:
        return "since gradients are averaged over all ranks"


@torch.no_grad()
def _average(parameters: list[Tensor]) -> None:
    group = world.group()
    shapes = "; ".join(f"{tuple(p.shape)} {p.dtype}" for p in parameters)
    check_same_call(group, _Averaging(f"ddl.torch.DistributedOptimizer.step({shapes})"))
    has_gradient = np.array([p.grad is not None for p in parameters], np.float64)
    group.native_allreduce(has_gradient)
    summed = [p for p, ranks in zip(parameters, has_gradient) if ranks]
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in summed]
    flat = torch.cat([g.to_dense().reshape(-1).cpu().to(_wide(parameters)) for g in gradients] or [torch.zeros(0)])
    sum_in_place(flat.numpy(), group)
    flat /= group.size
    for parameter, mean in zip(summed, flat.split([p.numel() for p in summed])):
        parameter.grad = mean.view(parameter.shape).to(parameter.device, parameter.dtype)


def _wide(parameters: list[Tensor]) -> torch.dtype:
    return torch.float64 if any(p.dtype == torch.float64 for p in parameters) else torch.float32
