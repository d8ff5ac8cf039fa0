"""Modules on a GPU: their parameters stay there, as copies of ddl's, which are in host memory with the optimizer.

A step copies the parameters to the GPU, and each gradient back through pinned memory as soon as autograd has finished
it. A module in host memory needs none of this: its parameters are views of ddl's."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddl.environment import launched_local_rank
from ddl.errors import ConfigError


def is_remote(device: torch.device) -> bool:
    """Whether tensors on ``device`` are copied to reach ddl's memory."""
    return device.type == "cuda"


def device_of(tensors: Mapping[str, Tensor]) -> torch.device:
    """Where a module's parameters and buffers are. Raises ConfigError for a device that this rank cannot train on."""
    first = next(iter(tensors.values())).device
    for name, tensor in tensors.items():
        if tensor.device.type not in ("cpu", "cuda"):
            raise ConfigError(
                f"{name} is on {tensor.device}: ddl.torch trains modules in host memory, or on the GPU of their rank"
            )
        if tensor.device != first:
            raise ConfigError(f"{name} is on {tensor.device}, and other parts of the module are on {first}")
    local, gpus = launched_local_rank(), torch.cuda.device_count() if first.type == "cuda" else 0
    if local is not None and gpus and first.index != local % gpus:
        raise ConfigError(
            f"the module is on {first}, but the GPU of this rank, number {local} on its node, is cuda:{local % gpus}"
        )
    return first


def seed_generators(seed: int, device: torch.device) -> None:
    """Seed the generators that forward on ``device`` draws from."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index].manual_seed(seed)


def has_drawn(seed: int, device: torch.device) -> bool:
    """Whether the GPU's generator has drawn since it was seeded."""
    if device.type != "cuda":
        return False
    fresh = torch.Generator(device).manual_seed(seed)
    return not torch.equal(fresh.get_state(), torch.cuda.get_rng_state(device))


@torch.no_grad()
def upload(tensors: Mapping[str, Tensor], values: Mapping[str, np.ndarray]) -> None:
    """Copy ``values`` into the tensors of the same names."""
    for name, tensor in tensors.items():
        tensor.detach().copy_(torch.from_numpy(values[name]))


class Staging:
    """Two pinned buffers through which gradients reach host memory: one is filled while the other is emptied.

    length: elements of the largest gradient."""

    def __init__(self, length: int, dtype: torch.dtype, device: torch.device):
        self._is_async = device.type == "cuda"
        self._free = deque(torch.empty(length, dtype=dtype, pin_memory=self._is_async) for _ in range(2))
        self._coming: deque[tuple[Any, Tensor, Tensor, Callable[[Tensor], None]]] = deque()

    def take(self, gradient: Tensor, arrived: Callable[[Tensor], None]) -> None:
        """Begin to copy ``gradient``; ``arrived`` is called with it in host memory, at the latest by ``finish``."""
        if not self._free:
            self._arrive()
        buffer = self._free.popleft()
        copy, event = buffer[: gradient.numel()].view(gradient.shape), None
        copy.copy_(gradient.detach(), non_blocking=True)
        if self._is_async:
            event = torch.cuda.Event()
            event.record(torch.cuda.current_stream(gradient.device))
        self._coming.append((event, buffer, copy, arrived))

    def _arrive(self) -> None:
        event, buffer, copy, arrived = self._coming.popleft()
        self._free.append(buffer)
        if event is not None:
            event.synchronize()
        arrived(copy)

    def finish(self) -> None:
        while self._coming:
            self._arrive()

    def forget(self) -> None:
        """Wait for what is being copied, and drop it: the step has failed."""
        while self._coming:
            event, buffer, _, _ = self._coming.popleft()
            self._free.append(buffer)
            if event is not None:
                event.synchronize()
