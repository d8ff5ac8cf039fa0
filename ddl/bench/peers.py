"""The same networks and steps in PyTorch, with DistributedDataParallel over Gloo, for comparison.

Imported only on request."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import timedelta
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.distributed
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel


def join(rank: int, size: int, store: str) -> None:
    """Make PyTorch's own group of the same ranks, over Gloo. store: a file that does not exist yet."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=size, timeout=timedelta(seconds=120)
    )


def leave() -> None:
    torch.distributed.destroy_process_group()


def gloo_allreduce(nbytes: int) -> Callable[[], object]:
    x = torch.full((nbytes // 4,), 0.0)
    return lambda: torch.distributed.all_reduce(x)


class _LSTM(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.lstm = nn.Embedding(10_000, 64), nn.LSTM(64, 64, batch_first=True)
        self.dense, self.out = nn.Linear(64, 64), nn.Linear(64, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        _, (h, _) = self.lstm(self.embedding(x))
        return self.out(F.relu(self.dense(h[0])))


class _Text(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10_000, 64)
        self.dense, self.out = nn.Linear(64, 64), nn.Linear(64, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(F.relu(self.dense(self.embedding(x).mean(1))))


class _Block(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.project, self.gather = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.widen, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, time, width = x.shape
        parts = self.project(self.norm1(x)).view(batch, time, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(parts[0], parts[1], parts[2], is_causal=True)
        x = x + self.gather(seen.transpose(1, 2).reshape(batch, time, width))
        return x + self.narrow(F.gelu(self.widen(self.norm2(x)), approximate="tanh"))


class _Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.positions = nn.Embedding(256, 128), nn.Parameter(torch.zeros(128, 128))
        self.blocks = nn.Sequential(*[_Block(128, 4) for _ in range(4)])
        self.norm, self.out = nn.LayerNorm(128), nn.Linear(128, 256)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.norm(self.blocks(self.embedding(x) + self.positions)))


def _mlp(*sizes: int) -> nn.Module:
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes[:-1]):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(sizes[-2], sizes[-1]))


def _cnn() -> nn.Module:
    convolutions = [nn.Conv2d(1, 32, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2)]
    more = [nn.Conv2d(64, 64, 3), nn.ReLU(), nn.Flatten(), nn.Linear(576, 64), nn.ReLU(), nn.Linear(64, 10)]
    network: Any = nn.Sequential(*convolutions, *more)
    return network.to(memory_format=torch.channels_last)


def _autoencoder() -> nn.Module:
    encoder = [nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 64)]
    return nn.Sequential(*encoder, nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 784), nn.Sigmoid())


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "mlp": lambda: _mlp(784, 512, 256, 10),
    "autoencoder": _autoencoder,
    "lstm": _LSTM,
    "text": _Text,
    "cnn": _cnn,
    "transformer": _Transformer,
    "digits": lambda: _mlp(64, 128, 64, 10),
}


class _ChannelsFirst(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.permute(0, 3, 1, 2)


def adapted(name: str) -> Any:
    """The network as a model of ddl."""
    from ddl.torch import Model

    torch.manual_seed(0)
    network = NETWORKS[name]()
    if name == "autoencoder":
        return Model(network, F.mse_loss, target="x")

    def loss(output: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(output.flatten(0, -2), y.flatten())

    return Model(nn.Sequential(_ChannelsFirst(), network) if name == "cnn" else network, loss)


class TorchStep:
    """One rank's training steps of a network in PyTorch, on the samples of ``arrays`` in order.

    ranks: above 1 with DistributedDataParallel. fused: Adam in one pass, which is not PyTorch's default.
    process_group: over which DistributedDataParallel works, if not over Gloo."""

    def __init__(
        self,
        name: str,
        arrays: Mapping[str, np.ndarray],
        batch: int,
        ranks: int,
        *,
        fused: bool = False,
        device: str = "cpu",
        process_group: Any = None,
    ):
        torch.manual_seed(0)
        network = NETWORKS[name]().to(device)
        self.network: Any = DistributedDataParallel(network, process_group=process_group) if ranks > 1 else network
        self.optimizer = torch.optim.Adam(network.parameters(), lr=1e-3, fused=fused or None)
        self._x, self._y = torch.from_numpy(arrays["x"]).to(device), torch.from_numpy(arrays["y"]).to(device)
        if name == "cnn":  # the same pixels, seen as PyTorch's channels_last
            self._x = self._x.permute(0, 3, 1, 2)
        self._name, self._batch, self._device, self._next = name, batch, device, 0
        self._order = torch.randperm(len(self._x)).to(device)

    def __call__(self) -> float:
        loss = self.gradients()
        self.optimizer.step()
        return float(loss)

    def gradients(self) -> torch.Tensor:
        """Forward and backward of the next batch; returns the loss."""
        if self._next + self._batch > len(self._order):
            self._order, self._next = torch.randperm(len(self._x)).to(self._device), 0
        rows = self._order[self._next : self._next + self._batch]
        self._next += self._batch
        x, y = self._x[rows], self._y[rows]
        if self._name == "cnn":
            x = x.contiguous(memory_format=torch.channels_last)
        self.optimizer.zero_grad()
        output = self.network(x)
        if self._name == "autoencoder":
            loss = F.mse_loss(output, x)
        else:
            loss = F.cross_entropy(output.flatten(0, -2), y.flatten())
        loss.backward()
        return loss.detach()
