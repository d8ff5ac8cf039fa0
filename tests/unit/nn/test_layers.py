"""Gradients of layers agree with central differences, and outputs with plain loops."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from check_gradients import check_layer, context, made, on_host, run_backward

from ddl import nn
from ddl.arrays import Arena, host
from ddl.errors import ConfigError


def images(rows, height, width, channels):
    return np.random.default_rng(0).standard_normal((rows, height, width, channels))


@pytest.mark.parametrize("activation", ["linear", "relu", "tanh", "sigmoid", "gelu"])
@pytest.mark.parametrize("shape", [(5, 4), (1, 3), (3, 2, 4)])
def test_dense(activation, shape, xp):
    x = np.random.default_rng(0).standard_normal(shape)
    y = check_layer(nn.Dense(3, activation), x, xp)
    params, _, _ = made(nn.Dense(3, activation), shape[1:])
    z = np.einsum("...i,ij->...j", x, params["weight"]) + params["bias"]
    f = {"linear": z, "relu": z * (z > 0), "tanh": np.tanh(z), "sigmoid": 1 / (1 + np.exp(-z))}
    f["gelu"] = z / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (z + 0.044715 * z**3)))
    np.testing.assert_allclose(y, f[activation], atol=1e-12)


CONVOLUTIONS = [
    (nn.Conv2D(4, 3), (2, 5, 6, 3)),
    (nn.Conv2D(4, 3, stride=2, padding=1, activation="relu"), (2, 6, 5, 2)),
    (nn.Conv2D(6, (2, 3), stride=(2, 1), padding=(1, 2), groups=2), (3, 4, 5, 4)),
    (nn.Conv2D(4, 1, bias=False), (2, 3, 3, 2)),
    (nn.Conv2D(4, 3, padding="same", groups=4), (1, 3, 3, 4)),
    (nn.Conv2D(2, 3, stride=3, padding=4), (1, 2, 2, 1)),
    # Winograd and direct convolution (conv_algorithms.py), for the compiled half of these tests.
    (nn.Conv2D(8, 3), (2, 6, 6, 8)),
    (nn.Conv2D(16, 3, padding="same"), (2, 5, 7, 8)),
    (nn.Conv2D(8, 3, padding=(1, 4), bias=False), (1, 4, 2, 16)),
    (nn.Conv2D(8, 3, stride=2, padding=1, activation="relu"), (2, 6, 8, 2)),
    (nn.Conv2D(16, 5, padding="same"), (2, 5, 5, 1)),
    (nn.Conv2D(8, (1, 2), stride=(1, 2), bias=False), (2, 3, 9, 3)),
]


@pytest.mark.parametrize(("layer", "shape"), CONVOLUTIONS)
def test_convolution(layer, shape, xp):
    x = images(*shape)
    y = check_layer(layer, x, xp)
    params, _, _ = made(layer, shape[1:])
    size, stride, padding = layer._numbers()
    padded = np.pad(x, [(0, 0), (padding[0],) * 2, (padding[1],) * 2, (0, 0)])
    inputs, units = shape[3] // layer.groups, layer.units // layer.groups
    wanted = np.zeros_like(y)
    for n, i, j, u in np.ndindex(*y.shape):
        g = u // units
        window = padded[n, i * stride[0] :, j * stride[1] :][: size[0], : size[1], g * inputs : (g + 1) * inputs]
        wanted[n, i, j, u] = (window * params["weight"][..., u]).sum() + (params["bias"][u] if layer.bias else 0)
    if layer.activation == "relu":
        wanted = np.maximum(wanted, 0)
    np.testing.assert_allclose(y, wanted, atol=1e-12)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.ConvTranspose2D(3, 3), (2, 3, 4, 2)),
        (nn.ConvTranspose2D(2, (3, 4), stride=2, padding=1, extra=1, activation="tanh"), (1, 3, 2, 3)),
        (nn.ConvTranspose2D(2, 2, stride=3, bias=False), (2, 2, 2, 1)),
    ],
)
def test_transposed_convolution_is_the_adjoint_of_a_convolution(layer, shape, xp):
    x = images(*shape)
    y = check_layer(layer, x, xp)
    if layer.activation != "linear" or layer.bias:
        return
    params, _, _ = made(layer, shape[1:])
    conv = nn.Conv2D(shape[3], layer.size, layer.stride, layer.padding, bias=False)
    other = np.random.default_rng(4).standard_normal(y.shape)
    forward, _ = conv.forward({"weight": params["weight"]}, other, context(len(x)))
    assert np.isclose((forward * x).sum(), (y * other).sum())


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.MaxPool2D(), (2, 4, 6, 3)),
        (nn.MaxPool2D(3, stride=2, padding=1), (2, 5, 4, 2)),
        (nn.MaxPool2D((2, 3), stride=1), (1, 3, 4, 1)),
    ],
)
def test_max_pooling(layer, shape, xp):
    x = images(*shape)
    y = check_layer(layer, x, xp)
    size, stride, padding = layer._numbers()
    padded = np.pad(x, [(0, 0), (padding[0],) * 2, (padding[1],) * 2, (0, 0)], constant_values=-np.inf)
    for n, i, j, c in np.ndindex(*y.shape):
        assert y[n, i, j, c] == padded[n, i * stride[0] :, j * stride[1] :, c][: size[0], : size[1]].max()


@pytest.mark.parametrize("layer", [nn.AvgPool2D(), nn.AvgPool2D((3, 2), stride=1)])
def test_average_pooling(layer, xp):
    x = images(2, 5, 4, 3)
    y = check_layer(layer, x, xp)
    size, stride = layer._numbers()
    for n, i, j, c in np.ndindex(*y.shape):
        window = x[n, i * stride[0] :, j * stride[1] :, c][: size[0], : size[1]]
        assert np.isclose(y[n, i, j, c], window.mean())


def test_global_average(xp):
    x = images(3, 2, 4, 5)
    np.testing.assert_allclose(check_layer(nn.GlobalAvgPool(), x, xp), x.mean(axis=(1, 2)))


@pytest.mark.parametrize(
    "layer", [nn.ReLU(), nn.Tanh(), nn.Sigmoid(), nn.LeakyReLU(0.1), nn.GELU(), nn.Softmax(), nn.Scale(2.5)], ids=repr
)
@pytest.mark.parametrize("shape", [(4, 5), (1, 2, 3)])
def test_activation(layer, shape, xp):
    check_layer(layer, np.random.default_rng(0).standard_normal(shape), xp)


@pytest.mark.parametrize("shape", [(7, 4), (6, 2, 3, 4)])
@pytest.mark.parametrize("shards", [1, 3])
def test_batch_norm(shape, shards, xp):
    x = np.random.default_rng(0).standard_normal(shape)
    check_layer(nn.BatchNorm(sync=False), x, xp, shards=shards)


def test_batch_norm_sums_equal_those_of_the_segments(xp):
    x = np.random.default_rng(0).standard_normal((7, 2, 3))
    layer = nn.BatchNorm(sync=False)
    params, grads, _ = made(layer, x.shape[1:], xp=xp)
    ctx = context(7, shards=2, xp=xp)
    _, cache = layer.forward(params, xp.asarray(x), ctx)
    run_backward(layer.backward(params, grads, cache, xp.ones(x.shape)))
    grads = on_host(grads)
    parts = [x[:3].reshape(-1, 3), x[3:].reshape(-1, 3)]
    np.testing.assert_allclose(grads["mean"], 3 * parts[0].mean(0) + 4 * parts[1].mean(0))
    np.testing.assert_allclose(grads["variance"], 3 * parts[0].var(0, ddof=1) + 4 * parts[1].var(0, ddof=1))


def test_batch_norm_evaluates_with_its_averages(xp):
    x = np.random.default_rng(0).standard_normal((4, 3))
    params, _, _ = made(nn.BatchNorm(), (3,), xp=xp)
    params["mean"][...], params["variance"][...] = xp.asarray([1, 2, 3]), xp.asarray([4, 5, 6])
    y, _ = nn.BatchNorm().forward(params, xp.asarray(x), context(4, training=False, xp=xp))
    params = on_host(params)
    wanted = (x - [1, 2, 3]) / np.sqrt(np.array([4, 5, 6]) + 1e-5) * params["weight"] + params["bias"]
    np.testing.assert_allclose(host(y), wanted)


def test_layer_norm(xp):
    x = np.random.default_rng(0).standard_normal((3, 2, 5))
    y = check_layer(nn.LayerNorm(), x, xp)
    params, _, _ = made(nn.LayerNorm(), (2, 5))
    unit = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(y, unit * params["weight"] + params["bias"])


def test_dropout(xp):
    x = np.random.default_rng(0).standard_normal((6, 50)) + 5
    y = check_layer(nn.Dropout(0.4), x, xp, shards=3)
    kept = y != 0
    np.testing.assert_allclose(y[kept], (x / 0.6)[kept])
    assert 0.5 < kept.mean() < 0.7
    x = xp.asarray(x)
    assert nn.Dropout(0.4).forward({}, x, context(6, training=False, xp=xp))[0] is x


@pytest.mark.parametrize("layer", [nn.Dropout(0.5), nn.BatchNorm(sync=False)], ids=repr)
def test_two_segments_together_are_the_two_apart(layer, xp):
    x = xp.asarray(np.random.default_rng(0).standard_normal((7, 2, 6)))
    params, grads, _ = made(layer, x.shape[1:], xp=xp)
    dy = xp.asarray(np.random.default_rng(1).standard_normal(x.shape))

    def run(rows, segments, shards):
        ctx = nn.Context(training=True, segments=segments, shards=shards, seed=1, arena=Arena(xp))
        y, cache = layer.forward(params, x[rows], ctx)
        dx, _ = run_backward(layer.backward(params, grads, cache, dy[rows].copy()))
        return host(y.copy()), host(dx.copy()), on_host(grads)

    together = run(slice(0, 7), [slice(0, 3), slice(3, 7)], [4, 9])
    apart = run(slice(0, 3), [slice(0, 3)], [4]), run(slice(3, 7), [slice(0, 4)], [9])
    np.testing.assert_array_equal(together[0], np.concatenate([apart[0][0], apart[1][0]]))
    np.testing.assert_array_equal(together[1], np.concatenate([apart[0][1], apart[1][1]]))
    for name in together[2]:
        np.testing.assert_allclose(together[2][name], apart[0][2][name] + apart[1][2][name], rtol=1e-12, atol=1e-12)


def test_residual_and_reshape(xp):
    x = np.random.default_rng(0).standard_normal((3, 6))
    block = nn.Residual(nn.Dense(5, "relu"), nn.ReLU(), nn.Dense(6))
    check_layer(nn.Sequential(nn.Dense(6), block, nn.Reshape((2, -1)), nn.Flatten(), last=nn.Dense(2)), x, xp)
    with pytest.raises(ConfigError, match="keep the shape"):
        nn.Residual(nn.Dense(5)).spec((6,))


def test_the_gradient_of_the_data_is_not_computed(xp):
    x = xp.asarray(images(2, 4, 4, 1))
    for net in (
        nn.Sequential(nn.Conv2D(2), nn.Flatten(), nn.Dense(2)),
        nn.Sequential(nn.Flatten(), nn.Dense(2)),
        nn.Sequential(nn.Dropout(0), nn.Residual(nn.Conv2D(1, padding="same")), nn.Flatten()),
    ):
        params, grads, _ = made(net, x.shape[1:], xp=xp)
        ctx = context(2, xp=xp)
        y, cache = net.forward(params, x, ctx)
        dx, _ = run_backward(net.backward(params, grads, cache, xp.ones(y.shape)))
        wanted = on_host(grads)
        assert dx.shape == x.shape
        ctx.data = x
        y, cache = net.forward(params, x, ctx)
        dx, _ = run_backward(net.backward(params, grads, cache, xp.ones(y.shape)))
        assert dx is None
        for name, gradient in on_host(grads).items():
            np.testing.assert_array_equal(gradient, wanted[name])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nonfinite_values_stay_nonfinite(bad, xp):
    x = np.ones((1, 4, 4, 1), np.float32)
    x[0, 1, 1, 0] = bad
    net = nn.Sequential(nn.Conv2D(4, activation="relu"), nn.MaxPool2D(), nn.Flatten(), nn.GELU(), nn.LayerNorm())
    params, _, _ = made(net, (4, 4, 1), dtype="float32", xp=xp)
    with np.errstate(all="ignore"):
        y, _ = net.forward(params, xp.asarray(x), context(1, xp=xp))
        loss, _, gradient = nn.CrossEntropy().forward(y, xp.asarray([0]), context(1, xp=xp))
    assert not np.isfinite(loss) and not np.isfinite(host(gradient)).all()


def test_synchronised_batch_norm_on_two_ranks_is_one_batch(xp):
    x = np.random.default_rng(0).standard_normal((7, 2, 3))
    dy = np.random.default_rng(1).standard_normal(x.shape)
    layer = nn.BatchNorm(sync=True)
    meeting, parts = threading.Barrier(2), {}

    def run(rank, rows, total):
        params, grads, _ = made(layer, x.shape[1:], xp=xp)
        ctx = context(len(x[rows]), sum_over_ranks=total, xp=xp)
        y, cache = layer.forward(params, xp.asarray(x[rows]), ctx)
        dx, _ = run_backward(layer.backward(params, grads, cache, xp.asarray(dy[rows].copy())))
        return host(y), host(dx), on_host(grads)

    def summed(rank):
        def total(array):
            parts[rank] = array.copy()
            meeting.wait(10)
            both = parts[0] + parts[1]
            meeting.wait(10)
            return both

        return total

    with ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(run, r, rows, summed(r)) for r, rows in enumerate([slice(0, 2), slice(2, 7)])]
        two = [f.result() for f in futures]
    one = run(0, slice(0, 7), lambda array: array)
    np.testing.assert_allclose(np.concatenate([two[0][0], two[1][0]]), one[0], atol=1e-12)
    np.testing.assert_allclose(np.concatenate([two[0][1], two[1][1]]), one[1], atol=1e-12)
    for name in one[2]:
        np.testing.assert_allclose(two[0][2][name] + two[1][2][name], one[2][name], atol=1e-12)
    check_layer(layer, x, xp, shards=2)
