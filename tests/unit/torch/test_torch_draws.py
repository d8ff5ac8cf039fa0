"""Dropout, other draws and batch statistics belong to shards: a gradient is the same however shards are spread."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

import torch.nn.functional as F
from torch import nn
from torch.nn.functional import dropout as bound_early
from torch.utils.checkpoint import checkpoint

import ddl.torch
from ddl.arrays import Device, FlatBuffer
from ddl.models import gradient_layout
from ddl.nn import Context
from ddl.train.state import TrainingState

ROWS, SHARDS = 24, 6


class Net(nn.Module):
    """Linear, something, linear. parts: modules by name; middle: a function of the net and the hidden values."""

    def __init__(self, middle, **parts):
        super().__init__()
        self.first, self.last, self.middle = nn.Linear(4, 8), nn.Linear(8, 3), middle
        for name, part in parts.items():
            self.add_module(name, part())

    def forward(self, x):
        return self.last(self.middle(self, torch.tanh(self.first(x))).reshape(len(x), -1, 8).mean(1))


def sequence(net, h, first):
    """The hidden values as sequences of 48 steps, a multiple of the rows of some plans."""
    steps = h[:, None, :] * torch.linspace(0.5, 1, 48, dtype=h.dtype)[:, None]
    return net.block(steps) if first else net.block(steps.transpose(0, 1)).transpose(0, 1)


def recomputed(net, h, reentrant):
    return checkpoint(lambda h: F.dropout(torch.relu(h), 0.4, net.training), h, use_reentrant=reentrant)


def block(batch_first):
    return nn.TransformerEncoderLayer(8, 2, 8, dropout=0.3, batch_first=batch_first)


def attention(net, h):
    steps = h[:, None, :] * torch.linspace(0.5, 1, 5, dtype=h.dtype)[:, None]
    return net.block(steps, steps, steps, need_weights=True)[0]


def causal(net, h):
    q = h[:, None, None, :] * torch.linspace(0.5, 1, 5, dtype=h.dtype)[:, None]
    return F.scaled_dot_product_attention(q, q, q, dropout_p=0.3 * net.training, is_causal=True)


IN_ONE_PIECE = {
    "dropout": partial(Net, lambda net, h: net.drop(h), drop=partial(nn.Dropout, 0.4)),
    "no dropout": partial(Net, lambda net, h: h),
    "transformer": partial(Net, partial(sequence, first=True), block=partial(block, True)),
    "attention with weights": partial(
        Net, attention, block=partial(nn.MultiheadAttention, 8, 2, dropout=0.3, batch_first=True)
    ),
    "causal attention": partial(Net, causal),
    "reentrant checkpoint": partial(Net, partial(recomputed, reentrant=True)),
    "checkpoint": partial(Net, partial(recomputed, reentrant=False)),
}
BY_SHARDS = {
    "steps first": partial(Net, partial(sequence, first=False), block=partial(block, False)),
    "dropout bound early": partial(Net, lambda net, h: bound_early(h, 0.4, net.training)),
    "channels": partial(Net, lambda net, h: F.dropout1d(h[:, None], 0.4, net.training)),
    "LSTM": partial(
        Net, lambda net, h: net.cells(h[:, None])[0], cells=partial(nn.LSTM, 8, 8, 2, batch_first=True, dropout=0.4)
    ),
    "noise": partial(Net, lambda net, h: h + torch.randn_like(h) * net.training),
    "rows that affect each other": partial(Net, lambda net, h: h - h.mean(0)),
    "batch norm": partial(Net, lambda net, h: net.norm(h), norm=partial(nn.BatchNorm1d, 8)),
}


def gradient(kind, plan, fresh, step=3):
    """(gradient summed over the ranks of a plan, passes through forward that each rank makes in a second step)."""
    random = np.random.default_rng(2)
    x = random.normal(size=(ROWS, 4))
    y = x[:, :3].argmax(1)
    per_shard, total, passes = ROWS // SHARDS, 0.0, []
    for shards in plan:
        model = ddl.torch.Model(fresh(kind), F.cross_entropy)
        state = TrainingState(model, (), "float64", 0, Device())
        grads = FlatBuffer(gradient_layout(model, "float64"))
        rows = np.concatenate([np.arange(s * per_shard, (s + 1) * per_shard) for s in shards])
        segments = [slice(i * per_shard, (i + 1) * per_shard) for i in range(len(shards))]
        calls = []
        model.module.register_forward_hook(lambda *arguments, calls=calls: calls.append(1))
        for _ in range(2):  # in the first step a rank finds out how to compute
            calls.clear()
            ctx = Context(training=True, seed=5)
            ctx.begin(segments, shards, step)
            model.loss_and_gradients(state.params.views, state.buffers, {"x": x[rows], "y": y[rows]}, grads.views, ctx)
        total = total + grads.flat
        passes.append(len(calls))
    return total, passes


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("kind", [*IN_ONE_PIECE, *BY_SHARDS])
def test_a_gradient_does_not_depend_on_the_plan(fresh, kind):
    make = {**IN_ONE_PIECE, **BY_SHARDS}[kind]
    whole, passes = gradient(make, [range(SHARDS)], fresh)
    assert passes == [1 if kind in IN_ONE_PIECE else SHARDS]
    for plan in ([[0, 1, 2], [3, 4, 5]], [[4, 0], [3], [1, 5, 2]], [[shard] for shard in range(SHARDS)]):
        np.testing.assert_allclose(gradient(make, plan, fresh)[0], whole, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", ["dropout", "transformer", "noise"])
def test_draws_differ_between_steps(fresh, kind):
    make = {**IN_ONE_PIECE, **BY_SHARDS}[kind]
    first, second = (gradient(make, [range(SHARDS)], fresh, step)[0] for step in (3, 4))
    assert not np.allclose(first, second, rtol=1e-3)


def test_masks_keep_the_mean_and_leave_the_share_out_that_is_asked_for(fresh):
    from ddl.torch.masks import Masks, masked

    x = torch.ones(40, 500)
    with masked(Masks([slice(0, 15), slice(15, 40)], [3, 8])):
        y = F.dropout(x, 0.25)
    assert abs(float((y == 0).double().mean()) - 0.25) < 0.02 and abs(float(y.mean()) - 1) < 0.02
    assert not torch.equal(y[:15], y[15:30])
    assert torch.equal(F.dropout(x, 0.25, training=False), x)


def test_training_leaves_the_generator_of_the_process_as_it_was(fresh):
    torch.manual_seed(9)
    wanted = torch.rand(3)
    torch.manual_seed(9)
    make = IN_ONE_PIECE["dropout"]
    state = torch.random.get_rng_state()
    gradient(make, [range(SHARDS)], lambda kind: fresh(make))
    torch.random.set_rng_state(state)
    gradient(make, [range(SHARDS)], lambda kind: fresh(make))
    assert torch.equal(torch.rand(3), wanted)
