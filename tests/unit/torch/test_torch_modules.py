"""Modules of every kind train on several ranks, with and without a death, as a plain loop of PyTorch does."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

import torch.nn.functional as F
from torch import nn

import ddl.torch
from ddl.comm.deaths import Death
from ddl.data import Arrays, Order

ROWS, BATCH, SHARDS, STEPS = 48, 16, 4, 6


class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, dy):
        (x,) = ctx.saved_tensors
        return 2 * x * dy


class OwnFunction(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.last(Square.apply(self.first(x)))


class Conditional(nn.Module):
    """``rare`` is used for some samples only, and ``rarest`` for those of some batches only."""

    def __init__(self):
        super().__init__()
        self.first, self.rare, self.rarest, self.last = (
            nn.Linear(6, 8),
            nn.Linear(8, 8),
            nn.Linear(8, 8),
            nn.Linear(8, 3),
        )

    def forward(self, x):
        h = torch.tanh(self.first(x))
        for part, limit in ((self.rare, 0.5), (self.rarest, 1.9)):
            chosen = x[:, 0] > limit
            if chosen.any():
                h = torch.where(chosen[:, None], part(h), h)
        return self.last(h)


class TwoInputs(nn.Module):
    """Two inputs, and two outputs, of which the loss takes both."""

    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Linear(6, 3), nn.Linear(4, 3)

    def forward(self, x, z):
        return {"left": self.left(x), "right": self.right(z)}

    @staticmethod
    def loss(outputs, y):
        return F.cross_entropy(outputs["left"], y) + 0.3 * F.mse_loss(outputs["right"], outputs["left"].detach())


class GRU(nn.Module):
    def __init__(self):
        super().__init__()
        self.cells, self.out = nn.GRU(2, 5, batch_first=True), nn.Linear(5, 3)

    def forward(self, x):
        return self.out(self.cells(x.view(-1, 3, 2))[0][:, -1])


class ChannelsLast(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.deep, self.out = nn.Conv2d(1, 4, 2), nn.Conv2d(4, 3, (1, 2)), nn.Linear(3, 3)
        self.to(memory_format=torch.channels_last)

    def forward(self, x):
        x = x.view(-1, 1, 2, 3).contiguous(memory_format=torch.channels_last)
        return self.out(torch.tanh(self.deep(torch.tanh(self.conv(x)))).flatten(1))


class Compiled(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
        self.layers.compile(backend="eager", dynamic=True)

    def forward(self, x):
        return self.layers(x)


MODULES = [OwnFunction, Conditional, TwoInputs, GRU, ChannelsLast, Compiled]


def samples():
    random = np.random.default_rng(3)
    x = random.normal(size=(ROWS, 6))
    return {"x": x, "z": random.normal(size=(ROWS, 4)), "y": x[:, :3].argmax(1)}


def by_pytorch(net, inputs, loss):
    data = {name: torch.from_numpy(value) for name, value in samples().items()}
    optimizer, order = torch.optim.SGD(net.parameters(), 0.2, momentum=0.9), Order(ROWS, SHARDS, BATCH, 0)
    for step in range(STEPS):
        rows = order.indices(*divmod(step, order.steps_per_epoch), range(SHARDS))[0].copy()
        optimizer.zero_grad(set_to_none=False)
        loss(net(*(data[name][rows] for name in inputs)), data["y"][rows]).backward()
        optimizer.step()
    return net


@pytest.mark.parametrize("kind", MODULES)
def test_a_module_trains_on_several_ranks_as_in_pytorch_with_and_without_a_death(trained, fresh, kind):
    inputs = ("x", "z") if kind is TwoInputs else ("x",)
    loss = getattr(kind, "loss", F.cross_entropy)
    wanted = by_pytorch(fresh(kind), inputs, loss).state_dict()
    data = samples()
    source = lambda: Arrays(data["x"], data["y"], z=data["z"])  # noqa: E731
    make = lambda: ddl.torch.Model(fresh(kind), loss, inputs=inputs)  # noqa: E731
    optimizer = ddl.optim.Momentum(lr=0.2)
    for death in (None, Death(1, 20)):
        options = {"steps": STEPS, "batch": BATCH, "shards": SHARDS, "optimizer": optimizer, "source": source}
        results = trained(3, make, None, None, threads={"death": death}, **options)
        assert len(results) == (3 if death is None else 2)
        for model, _ in results:
            for name, value in wanted.items():
                torch.testing.assert_close(model.module.state_dict()[name], value, rtol=1e-9, atol=1e-9)
