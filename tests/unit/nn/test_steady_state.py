"""After the first step nothing large is allocated: scratch arrays are used again; a device is not waited for."""

import tracemalloc

import numpy as np
import pytest
from check_gradients import made

from ddl import nn
from ddl.arrays import Arena

NETWORKS = {
    "mlp": (nn.Sequential(nn.Dense(256, "relu"), nn.Dropout(0.5), nn.Dense(10)), (256, 128)),
    "cnn": (
        nn.Sequential(
            *(nn.Conv2D(16, activation="relu"), nn.MaxPool2D(), nn.Conv2D(16, activation="relu")),
            *(nn.Conv2D(8), nn.BatchNorm(), nn.AvgPool2D(), nn.Flatten(), nn.Dense(10)),
        ),
        (32, 20, 20, 1),
    ),
    "lstm": (nn.Sequential(nn.LSTM(32, sequences=True), nn.GRU(16), nn.Dense(10)), (32, 20, 16)),
    "attention": (
        nn.Sequential(
            nn.PositionalEmbedding(),
            nn.Residual(nn.LayerNorm(), nn.MultiHeadAttention(2, causal=True, rotary=True)),
            *(nn.Residual(nn.Dense(64), nn.GELU(), nn.Dense(32)), nn.TokenMean(), nn.Dense(10)),
        ),
        (16, 40, 32),
    ),
}


def stepping(name, xp):
    """(context, a step of one network as a function of its number)."""
    network, shape = NETWORKS[name]
    params, grads, _ = made(network, shape[1:], dtype="float32", xp=xp)
    x = xp.asarray(np.random.default_rng(0).standard_normal(shape).astype("float32"))
    y = xp.asarray(np.arange(shape[0]) % 10)
    ctx, loss = nn.Context(training=True, arena=Arena(xp)), nn.CrossEntropy()

    def step(number):
        ctx.begin([slice(0, 10), slice(10, shape[0])], [0, 1], number)
        ctx.data = x
        outputs, cache = network.forward(params, x, ctx)
        _, _, kept = loss.forward(outputs, y, ctx)
        for _ in network.backward(params, grads, cache, loss.backward(kept)):
            pass

    return ctx, step


@pytest.mark.parametrize("name", NETWORKS)
def test_the_second_step_allocates_nothing_large(name):
    pytest.importorskip("numba")
    ctx, step = stepping(name, np)
    for number in range(3):
        step(number)
    grown = ctx.arena.grown
    tracemalloc.start()
    step(3)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert ctx.arena.grown == grown
    # NumPy buffers up to 8192 elements of an operand that is strided or cast: 192 KiB for three of complex numbers.
    assert peak < 224 * 1024 < ctx.arena.nbytes / 4, f"{peak} bytes beside {ctx.arena.nbytes} of the arena"


@pytest.mark.parametrize("name", NETWORKS)
def test_the_host_waits_for_a_device_only_to_read_the_loss(name, cupy):
    ctx, step = stepping(name, cupy)
    step(0)
    grown, waited = ctx.arena.grown, cupy.ndarray.waited
    step(1)
    assert ctx.arena.grown == grown
    assert (
        cupy.ndarray.waited - waited == 4
    )  # for the largest label, the number of padded rows, the loss and its weight
