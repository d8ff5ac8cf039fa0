"""Modules x optimizers x numbers of ranks, one of which dies in the middle: all give what a loop of PyTorch gives.

Every module meets every optimizer, and both of them 1, 2 and 3 ranks. A module with dropout, whose masks a plain loop
cannot draw, is compared with one undisturbed rank. DDL_MATRIX=full tries all 120 combinations."""

from __future__ import annotations

import os
import threading

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

import numpy as np
import torch.nn.functional as F
from torch import nn

import ddl.torch
from ddl.comm.deaths import Death
from ddl.data import Order

ROWS, BATCH, SHARDS, STEPS, TOKENS = 48, 24, 6, 5, 7


class MLP(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(30, 8), nn.Tanh(), nn.Linear(8, TOKENS))


class Normed(nn.Sequential):
    """A CNN with batch norm."""

    def __init__(self):
        conv = [nn.Conv1d(5, 4, 3, bias=False), nn.BatchNorm1d(4), nn.ReLU(), nn.MaxPool1d(2)]
        super().__init__(*conv, nn.Flatten(), nn.Linear(8, TOKENS))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.cells, self.out = nn.LSTM(6, 5, batch_first=True), nn.Linear(5, TOKENS)

    def forward(self, x):
        return self.out(self.cells(x)[0][:, -1])


class Dropping(nn.Module):
    """A Transformer with dropout."""

    def __init__(self):
        super().__init__()
        # Without biases: that of the keys has a gradient of rounding errors alone, which Adam would scale up.
        self.block = nn.TransformerEncoderLayer(6, 2, 8, dropout=0.2, batch_first=True, bias=False)
        self.out = nn.Linear(6, TOKENS)

    def forward(self, x):
        return self.out(self.block(x).mean(1))


class Tied(nn.Module):
    """A language model whose last layer is its table of embeddings, with a parameter that is never used."""

    def __init__(self):
        super().__init__()
        self.table, self.mix, self.unused = nn.Embedding(TOKENS, 6), nn.Linear(6, 6), nn.Linear(2, 2)

    def forward(self, x):
        tokens = (10 * x[:, :, 0]).abs().long() % TOKENS
        return torch.tanh(self.mix(self.table(tokens).mean(1))) @ self.table.weight.T


MODULES = [MLP, Normed, Recurrent, Dropping, Tied]
OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, 0.1),
    "Nesterov": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, nesterov=True, weight_decay=0.01),
    "Adam": lambda p: torch.optim.Adam(p, 0.01, weight_decay=0.01),
    "AdamW": lambda p: torch.optim.AdamW(p, 0.01),
    "NAdam": lambda p: torch.optim.NAdam(p, 0.01),
    "RAdam": lambda p: torch.optim.RAdam(p, 0.01, (0.9, 0.99)),
    "RMSprop": lambda p: torch.optim.RMSprop(p, 0.01),
    "Adagrad": lambda p: torch.optim.Adagrad(p, 0.1),
}
FULL = os.environ.get("DDL_MATRIX") == "full"
CASES = [
    pytest.param(kind, name, ranks, id=f"{kind.__name__}-{name}-{ranks}")
    for m, kind in enumerate(MODULES)
    for o, name in enumerate(OPTIMIZERS)
    for ranks in ((1, 2, 3) if FULL else (1 + (m + o) % 3,))
]


class Model(ddl.torch.Model):
    """Ranks as threads share PyTorch's generator, from which dropout draws: one computes at a time."""

    turn = threading.Lock()

    def loss_and_gradients(self, *arguments):
        with self.turn:
            return super().loss_and_gradients(*arguments)


@pytest.fixture(scope="module")
def samples():
    random = np.random.default_rng(4)
    x = random.normal(size=(ROWS, 5, 6))
    return x, x.reshape(ROWS, -1)[:, :TOKENS].argmax(axis=1)


def by_pytorch(net, optimizer, x, y):
    """The state after a plain loop: forward over the samples of one shard after another, as batch norm needs it."""
    order = Order(ROWS, SHARDS, BATCH, 0)
    for step in range(STEPS):
        before = {name: value.clone() for name, value in net.named_buffers()}
        means = {name: torch.zeros_like(value) for name, value in before.items()}
        optimizer.zero_grad()
        for shard in range(SHARDS):
            rows = order.indices(*divmod(step, order.steps_per_epoch), [shard])[0]
            for name, value in net.named_buffers():
                value.copy_(before[name])
            F.cross_entropy(net(x[rows]), y[rows], reduction="sum").div(BATCH).backward()
            for name, value in net.named_buffers():
                means[name] += value * len(rows) / BATCH if value.is_floating_point() else 0
        for name, value in net.named_buffers():
            value.copy_(means[name] if value.is_floating_point() else before[name] + 1)
        for parameter in net.parameters():  # ddl's sum has a zero for what is not used
            parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        optimizer.step()
    return net.state_dict()


@pytest.mark.parametrize(("kind", "name", "ranks"), CASES)
def test_every_module_with_every_optimizer_and_a_death(trained, fresh, samples, kind, name, ranks):
    def run(ranks, threads=None):
        rule = ddl.torch.translated(OPTIMIZERS[name](net.parameters()), net)[0]
        options = {"steps": STEPS, "batch": BATCH, "shards": SHARDS, "optimizer": rule, "threads": threads}
        return trained(ranks, lambda: Model(fresh(kind), F.cross_entropy), *samples, **options)

    net = fresh(kind)
    if kind is Dropping:
        wanted = run(1)[0][0].module.state_dict()
    else:
        wanted = by_pytorch(net, OPTIMIZERS[name](net.parameters()), *map(torch.tensor, samples))
        net = fresh(kind)
    results = run(ranks, {"death": Death(ranks - 1, 15 * ranks)} if ranks > 1 else None)
    assert len(results) == max(ranks - 1, 1)
    for model, loop in results:
        assert loop.group.generation == int(ranks > 1)
        assert all(0 < report.step < STEPS for report in loop.reports)
        for key, value in wanted.items():
            # NAdam's products of momenta are float32 in PyTorch.
            rtol = 1e-6 if name == "NAdam" else 1e-9
            torch.testing.assert_close(model.module.state_dict()[key], value, rtol=rtol, atol=1e-9)
