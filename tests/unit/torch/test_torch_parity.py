"""One rank trains a module to the parameters that plain PyTorch reaches, and several ranks to those of one."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

import torch.nn.functional as F
from torch import nn

import ddl
import ddl.torch
from ddl.comm.deaths import Death
from ddl.data import Order

ROWS, BATCH, STEPS = 48, 32, 100


class MLP(nn.Module):
    shape = (5,)

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))

    def forward(self, x):
        return self.layers(x)


class CNN(nn.Module):
    shape = (2, 6, 6)

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.out = nn.Conv2d(2, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Linear(16, 3)

    def forward(self, x):
        return self.out(F.max_pool2d(F.relu(self.norm(self.conv(x))), 2).flatten(1))


class LSTM(nn.Module):
    shape = (7, 4)

    def __init__(self):
        super().__init__()
        self.cells, self.out = nn.LSTM(4, 6, batch_first=True), nn.Linear(6, 3)

    def forward(self, x):
        return self.out(self.cells(x)[0][:, -1])


class Transformer(nn.Module):
    shape = (6, 8)

    def __init__(self):
        super().__init__()
        self.block = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.out = nn.Linear(8, 3)

    def forward(self, x):
        return self.out(self.block(x).mean(1))


def model_of(fresh, kind):
    return ddl.torch.Model(fresh(kind), F.cross_entropy)


MODULES = [MLP, CNN, LSTM, Transformer]


def samples(kind):
    random = np.random.default_rng(1)
    x = random.normal(size=(ROWS, *kind.shape))
    return x, x.reshape(ROWS, -1)[:, :3].argmax(axis=1)


def by_pytorch(net, x, y, steps, optimizer):
    """The plain loop, over the batches that one rank with one shard takes."""
    order = Order(ROWS, 1, BATCH, 0)
    for step in range(steps):
        rows, _ = order.indices(*divmod(step, order.steps_per_epoch), [0])
        optimizer.zero_grad()
        F.cross_entropy(net(torch.from_numpy(x[rows])), torch.from_numpy(y[rows])).backward()
        optimizer.step()
    return net.state_dict()


@pytest.mark.parametrize("kind", MODULES)
def test_a_hundred_steps_on_one_rank_are_those_of_plain_pytorch(trained, fresh, kind):
    x, y = samples(kind)
    plain = fresh(kind)
    wanted = by_pytorch(plain, x, y, STEPS, torch.optim.Adam(plain.parameters(), 1e-2))
    make = partial(model_of, fresh, kind)
    [(model, loop)] = trained(1, make, x, y, steps=STEPS, batch=BATCH, optimizer=ddl.optim.Adam(lr=1e-2))
    found = model.module.state_dict()
    assert list(found) == list(wanted)
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-9)
    # The checkpoint has the names and axes of the state_dict.
    saved = {name.partition("/")[2]: value for name, value in loop.state.to_named().items() if "square" not in name}
    assert set(saved) == set(wanted)
    assert {name: value.shape for name, value in saved.items()} == {n: tuple(v.shape) for n, v in wanted.items()}


@pytest.mark.parametrize("kind", MODULES)
@pytest.mark.parametrize("sharded", ["off", "on"])
def test_several_ranks_train_to_the_module_of_one(trained, fresh, kind, sharded):
    x, y = samples(kind)
    make = partial(model_of, fresh, kind)
    options = {"steps": 8, "batch": BATCH, "shards": 4, "optimizer": ddl.optim.Adam(lr=1e-2), "sharded": sharded}
    [(alone, _)] = trained(1, make, x, y, **options)
    for ranks in (2, 3):
        results = trained(ranks, make, x, y, **options)
        assert len(results) == ranks
        for model, _ in results:
            for name, value in alone.module.state_dict().items():
                torch.testing.assert_close(model.module.state_dict()[name], value, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", MODULES)
@pytest.mark.parametrize("rank", [0, 1])
def test_a_death_in_the_middle_changes_nothing(trained, fresh, kind, rank):
    x, y = samples(kind)
    make = partial(model_of, fresh, kind)
    options = {"steps": 8, "batch": BATCH, "shards": 4, "optimizer": ddl.optim.AdamW(lr=1e-2)}
    [(alone, _)] = trained(1, make, x, y, **options)
    for sharded in ("off", "on"):
        results = trained(3, make, x, y, threads={"death": Death(rank, 40)}, sharded=sharded, **options)
        assert len(results) == 2
        for model, loop in results:
            assert loop.group.generation == 1 and 0 < loop.reports[0].step < 8
            for name, value in alone.module.state_dict().items():
                torch.testing.assert_close(model.module.state_dict()[name], value, rtol=1e-9, atol=1e-9)
