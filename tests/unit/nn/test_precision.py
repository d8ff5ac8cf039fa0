"""float16 is only storage: every layer and loss agrees with float32 on sizes where half precision stalls or overflows.

And sums do not lose digits where float32 alone would: many rows, losses close to 0, large logits, large means."""

import numpy as np
import pytest
from check_gradients import context, made, on_host, run_backward

from ddl import nn
from ddl.arrays import host
from ddl.errors import ConfigError
from ddl.kernels.backend import use_compiled
from ddl.nn import metric

ROWS = 5000  # sums of ones in float16 stop at 2048


def run(layer, x, dtype, dy, xp=np, **more):
    """(output, input gradient, gradients by name) as float64, of equal parameters in any dtype."""
    params, grads, _ = made(layer, x.shape[1:], dtype=dtype, xp=xp)
    rounded, _, _ = made(layer, x.shape[1:], dtype="float16", xp=xp)
    for name in params:
        params[name][...] = rounded[name]
    x = xp.asarray(x) if x.dtype.kind in "iu" else xp.asarray(x.astype("float16").astype(dtype))
    y, cache = layer.forward(params, x, context(len(x), xp=xp, **more))
    assert y.dtype == dtype
    dx, _ = run_backward(layer.backward(params, grads, cache, xp.asarray(dy(y.shape).astype("float16").astype(dtype))))
    gradients = {name: value.astype("float64") for name, value in on_host(grads).items()}
    return host(y).astype("float64"), None if dx is None else host(dx).astype("float64"), gradients


def values(*shape, size=1.0):
    return np.random.default_rng(0).standard_normal(shape) * size


LAYERS = {
    "dense": (nn.Dense(3), values(ROWS, 4)),
    "dense relu": (nn.Dense(16, "relu"), values(ROWS, 4)),
    "dense gelu": (nn.Dense(3, "gelu"), values(ROWS, 4)),
    "dense tanh": (nn.Dense(3, "tanh"), values(ROWS, 4)),
    "conv": (nn.Conv2D(16), values(20, 18, 18, 1)),
    "conv of groups": (nn.Conv2D(4, groups=2), values(20, 18, 18, 2)),
    "transposed conv": (nn.ConvTranspose2D(2, stride=2), values(20, 9, 9, 2)),
    "batch norm": (nn.BatchNorm(), values(ROWS, 3) + 5),
    "batch norm of shards": (nn.BatchNorm(sync=False), values(ROWS, 3) + 5),
    "layer norm": (nn.LayerNorm(), values(ROWS, 7)),
    "layer norm of large values": (nn.LayerNorm(), values(60, 700, size=2000)),
    "gelu": (nn.GELU(), values(50, 60, size=1000)),
    "softmax": (nn.Softmax(), values(4, 4000)),
    "sigmoid": (nn.Sigmoid(), values(50, 60, size=20)),
    "leaky relu": (nn.LeakyReLU(), values(50, 60)),
    "max pool": (nn.MaxPool2D(), values(5, 8, 8, 3)),
    "mean pool": (nn.AvgPool2D(16), 1000 + values(3, 16, 16, 2)),
    "global mean": (nn.GlobalAvgPool(), 1000 + values(3, 60, 60, 2)),
    "token mean": (nn.TokenMean(), values(3, 4000, 2)),
    "embedding": (nn.Embedding(3, 4), np.random.default_rng(0).integers(0, 3, (ROWS, 3))),
    "positions": (nn.PositionalEmbedding(), values(ROWS, 2, 3)),
    "attention": (nn.MultiHeadAttention(2), values(700, 5, 8)),
    "causal rotary attention": (nn.MultiHeadAttention(2, causal=True, rotary=True), values(700, 5, 8)),
    "rotary attention of width 2": (nn.MultiHeadAttention(4, rotary=True), values(10, 5, 8)),
    "rnn": (nn.RNN(3), values(700, 5, 2)),
    "lstm": (nn.LSTM(3), values(700, 5, 2)),
    "gru": (nn.GRU(3, sequences=True), values(700, 5, 2)),
    "residual": (nn.Residual(nn.Dense(4)), values(ROWS, 4)),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.filterwarnings("error")
def test_a_layer_in_float16_agrees_with_float32(name, xp):
    layer, x = LAYERS[name]
    half, single = (run(layer, x, dtype, np.ones, xp) for dtype in ("float16", "float32"))
    for ours, wanted in [*zip(half[:2], single[:2], strict=True), *((half[2][n], single[2][n]) for n in single[2])]:
        if wanted is not None:
            scale = max(np.abs(wanted).max(), 1e-2)
            assert np.abs(np.clip(wanted, -65504, 65504) - np.clip(ours, -65504, 65504)).max() / scale < 2e-2


LOSSES = {
    "cross entropy": (nn.CrossEntropy(), np.zeros(ROWS, int)),
    "smoothed cross entropy": (nn.CrossEntropy(0.1), np.zeros(ROWS, int)),
    "soft cross entropy": (nn.CrossEntropy(), np.full((ROWS, 4), 0.25)),
    "binary cross entropy": (nn.BinaryCrossEntropy(), np.ones((ROWS, 4))),
    "mse": (nn.MSE(), np.ones((ROWS, 4))),
    "mae": (nn.MAE(), np.ones((ROWS, 4))),
    "huber": (nn.Huber(), np.ones((ROWS, 4))),
    "distillation": (nn.Distillation(), np.ones((ROWS, 4))),
}


@pytest.mark.parametrize("size", [1, 300])
@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_in_float16_agrees_with_float32(name, size, xp):
    loss, targets = LOSSES[name]
    outputs = (values(ROWS, 4) * size).astype("float16")
    half, single = (
        loss.forward(xp.asarray(outputs.astype(dtype)), xp.asarray(targets), context(ROWS, xp=xp))
        for dtype in ("float16", "float32")
    )
    np.testing.assert_allclose(half[:2], single[:2], rtol=1e-3)
    gradients = [host(loss.backward(x[2])).astype("float64") for x in (half, single)]
    np.testing.assert_allclose(*gradients, rtol=2e-3, atol=2e-3)


def test_the_mean_square_of_a_whole_image_of_halves_is_finite(xp):
    ones = xp.ones((128, 784), "float16")
    assert nn.MSE().forward(ones, xp.zeros((128, 784), "float16"), context(128, xp=xp))[0] == 128 * 784


@pytest.mark.parametrize(
    "layer", [nn.Dense(16), nn.Dense(16, "relu"), nn.Dense(5, "relu"), nn.Dense(5, "gelu")], ids=repr
)
def test_bias_gradients_of_200000_rows_keep_their_digits(layer, xp):
    rows = 200_000
    dy = np.random.default_rng(0).random((rows, layer.units)).astype("float32")
    params, grads, _ = made(layer, (1,), dtype="float32", xp=xp)
    params["bias"][...] = 10  # every unit is active, with slope 1
    params["weight"][...] = 0
    _, cache = layer.forward(params, xp.zeros((rows, 1), "float32"), context(rows, xp=xp))
    run_backward(layer.backward(params, grads, cache, xp.asarray(dy.copy())))
    wanted = dy.astype("float64").sum(axis=0)
    assert np.abs(host(grads["bias"]) / wanted - 1).max() < 1e-6


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_does_not_depend_on_a_shift_of_the_logits(smoothing, xp):
    logits = np.array([[0.5, 1, 2], [3, 1, 0.25]], "float32")
    near, far = (
        nn.CrossEntropy(smoothing).forward(
            xp.asarray(logits + np.float32(shift)), xp.asarray([0, 1]), context(2, xp=xp)
        )
        for shift in (0, 2**20)
    )
    np.testing.assert_allclose(near[0], far[0], rtol=1e-6)


@pytest.mark.parametrize("targets", [[0], [[1.0, 0.0, 0.0]]], ids=["labels", "probabilities"])
def test_a_loss_close_to_zero_keeps_its_digits(targets, xp):
    logits = xp.asarray([[18.0, 1.5, 0.25]], "float32")
    loss = nn.CrossEntropy().forward(logits, xp.asarray(targets), context(1, xp=xp))[0]
    np.testing.assert_allclose(loss, np.log1p(np.exp(-16.5) + np.exp(-17.75)), rtol=1e-5)


def test_compiled_tanh_is_accurate_to_four_units_in_the_last_place():
    pytest.importorskip("numba")
    from numba import njit

    from ddl.kernels.maths_numba import tanh

    @njit
    def tanhs(x, y):
        for i in range(x.size):
            y[i] = tanh(x[i])

    x = np.concatenate([np.linspace(-1, 1, 200_001), np.linspace(-12, 12, 20_001)]).astype("float32")
    y = np.empty_like(x)
    tanhs(x, y)
    wanted = np.tanh(x.astype("float64"))
    assert (np.abs(y - wanted) / np.spacing(np.abs(wanted).astype("float32"))).max() < 4


def test_a_window_of_more_than_32767_pixels_has_gradients(xp):
    x = np.zeros((1, 200, 200, 1), "float32")
    x[0, 190, 180] = 1
    _, dx, _ = run(nn.MaxPool2D(200), x, "float32", np.ones, xp)
    assert dx[0, 190, 180, 0] == 1 and dx.sum() == 1


@pytest.mark.parametrize("name", list(LAYERS))
def test_a_rank_without_samples_computes_empty_outputs_and_zero_gradients(name, xp):
    layer, x = LAYERS[name]
    y, _, gradients = run(layer, x[:0], "float32", np.ones, xp)
    assert len(y) == 0 and not any(g.any() for n, g in gradients.items() if n not in ("mean", "variance"))


def test_batch_norm_by_default_does_not_depend_on_shards(xp):
    layer, x = nn.BatchNorm(), xp.asarray(values(9, 3))
    params, _, _ = made(layer, (3,), xp=xp)
    one, nine = (np.array(host(layer.forward(params, x, context(9, shards=n, xp=xp))[0])) for n in (1, 9))
    np.testing.assert_array_equal(one, nine)


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Conv2D(0),
        lambda: nn.ConvTranspose2D(0),
        lambda: nn.LSTM(0),
        lambda: nn.Conv2D(4, 0),
    ],
)
def test_a_layer_without_units_or_window_is_refused(make):
    with pytest.raises(ConfigError, match="at least 1"):
        make()


def test_top_k_of_nan_is_zero():
    top = metric.TopK(5)
    assert top.value(top.sums(np.full((4, 10), np.nan), np.zeros(4, int), 0.0), 4) == 0
    assert top.value(top.sums(np.full((4, 3), np.nan), np.zeros(4, int), 0.0), 4) == 0


@pytest.mark.parametrize("parts", [1, 2, 5])
def test_r2_of_large_means_is_exact_in_any_number_of_parts(parts):
    random = np.random.default_rng(0)
    targets = 2e6 + random.choice([-1.0, 1.0], (40, 2))
    outputs = targets + random.normal(size=targets.shape) * 0.25
    r2 = metric.R2()
    sums = sum(r2.sums(o, t, 0.0) for o, t in zip(np.array_split(outputs, parts), np.array_split(targets, parts)))
    wanted = 1 - np.square(outputs - targets).sum(0) / np.square(targets - targets.mean(0)).sum(0)
    np.testing.assert_allclose(r2.value(sums, 40), wanted.mean(), rtol=1e-9)


def test_averages_of_precision_recall_and_f1_have_their_own_names():
    assert metric.Precision().name == "precision" and metric.F1("weighted").name == "f1_weighted"
    kinds = [kind(average) for kind in (metric.Precision, metric.Recall, metric.F1) for average in ("macro", "micro")]
    assert len({one.name for one in kinds}) == 6


@pytest.fixture(autouse=True)
def _compiled_again():
    yield
    use_compiled("auto")
