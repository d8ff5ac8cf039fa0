"""One step on N ranks is the step on one rank with the same global batch, for every layer and every optimizer."""

import numpy as np
import pytest

from ddl import nn
from ddl.arrays import Device, Layout
from ddl.comm.threads import run_ranks
from ddl.data import Arrays, Order
from ddl.models import build as build_model
from ddl.optim import OPTIMIZERS, Groups
from ddl.train.loop import Loop
from ddl.train.state import TrainingState
from ddl.train.task import Task

ROWS, SHARDS, BATCH = 26, 6, 13


def images(random):
    return random.normal(size=(ROWS, 6, 6, 2)).astype(np.float32)


def vectors(random):
    return random.normal(size=(ROWS, 7)).astype(np.float32)


def sequences(random):
    return random.normal(size=(ROWS, 5, 4)).astype(np.float32)


def tokens(random):
    return random.integers(0, 11, (ROWS, 5))


NETWORKS = {
    "dense and activations": (vectors, lambda: nn.Sequential(nn.Dense(6, "tanh"), nn.LeakyReLU(), nn.Dense(3))),
    "sigmoid, gelu, residual": (
        vectors,
        lambda: nn.Sequential(nn.Dense(5), nn.GELU(), nn.Residual(nn.Dense(5), nn.Sigmoid()), nn.Dense(3)),
    ),
    "batch norm": (
        vectors,
        lambda: nn.Sequential(nn.Dense(6, bias=False), nn.BatchNorm(sync=False), nn.ReLU(), nn.Dense(3)),
    ),
    "synchronised batch norm": (
        vectors,
        lambda: nn.Sequential(nn.Dense(6, bias=False), nn.BatchNorm(sync=True), nn.ReLU(), nn.Dense(3)),
    ),
    "layer norm and dropout": (
        vectors,
        lambda: nn.Sequential(nn.Dense(6), nn.LayerNorm(), nn.Dropout(0.4), nn.ReLU(), nn.Dense(3)),
    ),
    "convolution and max pooling": (
        images,
        lambda: nn.Sequential(nn.Conv2D(4, padding="same"), nn.ReLU(), nn.MaxPool2D(2), nn.Flatten(), nn.Dense(3)),
    ),
    "groups, stride, average pooling": (
        images,
        lambda: nn.Sequential(nn.Conv2D(4, stride=2, padding=1, groups=2), nn.AvgPool2D(3), nn.Flatten(), nn.Dense(3)),
    ),
    "transposed convolution": (
        images,
        lambda: nn.Sequential(nn.ConvTranspose2D(3, 3, stride=2), nn.GlobalAvgPool(), nn.Dense(3)),
    ),
    "recurrent": (sequences, lambda: nn.Sequential(nn.RNN(5, sequences=True), nn.GRU(4), nn.Dense(3))),
    "lstm": (tokens, lambda: nn.Sequential(nn.Embedding(11, 4), nn.LSTM(5), nn.Dense(3))),
    "attention": (
        tokens,
        lambda: nn.Sequential(
            nn.Embedding(11, 4),
            nn.PositionalEmbedding(),
            nn.Residual(nn.LayerNorm(), nn.MultiHeadAttention(2)),
            nn.TokenMean(),
            nn.Dense(3),
        ),
    ),
}


def after_steps(group, inputs, network, optimizer, loss="cross_entropy", steps=3, freeze=()):
    """Flat parameters after some steps, and the last step's outcome."""
    random = np.random.default_rng(5)
    x, y = inputs(random), random.integers(0, 3, ROWS)
    if loss == "binary_cross_entropy":
        y = (y > 0).astype(np.float32)[:, None]
    if loss in ("mse", "mae", "huber"):
        y = random.normal(size=(ROWS, 3)).astype(np.float32)
    source = Arrays(x, y)
    model = build_model(network(), source.fields, loss, None)
    layout = Layout.of({name: shape for name, (shape, _) in model.params.items()}, "float32")
    order = Order(ROWS, SHARDS, BATCH, 2)
    outcomes = []
    task = Task(
        model=model,
        train=source,
        validation=None,
        test=None,
        order=order,
        optimizer=Groups(layout, optimizer, freeze=freeze),
        lr=lambda step: optimizer.lr,
        total_steps=steps,
        prefetch=0,
        clip_norm=1.0,
        callbacks=[outcomes.append],
    )
    state = TrainingState(model, task.optimizer.slots, "float32", 0, Device())
    loop = Loop(task, group, Device(), state)
    try:
        assert loop.train() is None
    finally:
        loop.close()
    return state, outcomes


def close(ours, theirs):
    """Equal up to the rounding of sums in another order."""
    scale = np.abs(theirs).max(initial=0)
    return np.allclose(ours, theirs, rtol=2e-5, atol=2e-6 * max(scale, 1))


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("name", NETWORKS)
def test_every_layer(name, size):
    inputs, network = NETWORKS[name]
    # Momentum: Adam divides by the gradient's size, which would show the rounding of gradients that are zero.
    optimizer = OPTIMIZERS["momentum"](lr=0.05)
    one, said = run_ranks(1, lambda g: after_steps(g, inputs, network, optimizer))[0]
    results = run_ranks(size, lambda g: after_steps(g, inputs, network, optimizer))
    for state, _ in results:
        assert close(state.params.flat, one.params.flat)
        assert close(state.averages.flat, one.averages.flat)
    found = results[0][1]
    assert [o.samples for o in found] == [o.samples for o in said] == [13, 13, 13]
    assert np.allclose([o.loss for o in found], [o.loss for o in said], rtol=1e-5)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer(name):
    optimizer = OPTIMIZERS[name](lr=0.01)
    inputs, network = NETWORKS["dense and activations"]
    one, _ = run_ranks(1, lambda g: after_steps(g, inputs, network, optimizer))[0]
    for state, _ in run_ranks(3, lambda g: after_steps(g, inputs, network, optimizer)):
        assert close(state.params.flat, one.params.flat)
        for slot in state.slots:
            assert close(state.slots[slot], one.slots[slot])


@pytest.mark.parametrize("loss", ["mse", "mae", "huber", "binary_cross_entropy"])
def test_every_loss(loss):
    units = 1 if loss == "binary_cross_entropy" else 3
    optimizer = OPTIMIZERS["sgd"](lr=0.1)

    def network():
        return nn.Sequential(nn.Dense(5, "relu"), nn.Dense(units))

    one, _ = run_ranks(1, lambda g: after_steps(g, vectors, network, optimizer, loss))[0]
    for state, _ in run_ranks(3, lambda g: after_steps(g, vectors, network, optimizer, loss)):
        assert close(state.params.flat, one.params.flat)


def test_clipping_counts_only_trained_parameters():
    """Where the norm is clipped to 1, plain gradient descent moves the trained parameters by exactly lr."""

    def steep(random):
        return 100 * vectors(random)

    def network():
        return nn.Sequential(nn.Dense(5), nn.Dense(3))

    moved = []
    for steps in (0, 1):
        optimizer = OPTIMIZERS["sgd"](lr=0.1)
        run = run_ranks(
            2, lambda g, n=steps, o=optimizer: after_steps(g, steep, network, o, steps=n, freeze=["dense1*"])
        )
        moved.append({name: value.copy() for name, value in run[0][0].params.views.items()})
    before, after = moved
    assert all((before[name] == after[name]).all() for name in before if name.startswith("dense1"))
    distance = sum(np.square(after[name] - before[name]).sum() for name in before)
    assert np.isclose(np.sqrt(distance), 0.1, rtol=1e-5)
