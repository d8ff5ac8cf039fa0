"""Sequence layers: gradients under masks, and outputs against one step after another in plain NumPy."""

import numpy as np
import pytest
from check_gradients import check_layer, context, made, on_host, run_backward

from ddl import nn
from ddl.arrays import host
from ddl.errors import ConfigError, DataError
from ddl.nn import attention

LENGTHS = np.array([4, 1, 2])


def masked(lengths, time, xp):
    mask = np.arange(time) < np.asarray(lengths)[:, None]

    def prepare(ctx):
        ctx.mask = xp.asarray(mask)

    return prepare


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def one_by_one(layer, params, x, lengths):
    """All states (batch, time, units), one sample and one step after another."""
    out = np.zeros((*x.shape[:2], layer.units))
    w, u, b = params["weight"], params["recurrent"], params["bias"]
    for n in range(len(x)):
        h = c = np.zeros(layer.units)
        for t in range(x.shape[1]):
            if t < lengths[n]:
                a, r = x[n, t] @ w + b, h @ u
                if isinstance(layer, nn.RNN):
                    h = np.tanh(a + r)
                elif isinstance(layer, nn.LSTM):
                    i, f, g, o = np.split(a + r, 4)
                    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
                    h = sigmoid(o) * np.tanh(c)
                else:
                    (ar, az, an), (rr, rz, rn) = np.split(a, 3), np.split(r, 3)
                    z = sigmoid(az + rz)
                    h = (1 - z) * np.tanh(an + sigmoid(ar + rr) * (rn + params["recurrent_bias"])) + z * h
            out[n, t] = h
    return out


@pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM, nn.GRU])
@pytest.mark.parametrize("sequences", [False, True])
@pytest.mark.parametrize("lengths", [None, LENGTHS])
def test_recurrent(kind, sequences, lengths, xp):
    x = np.random.default_rng(0).standard_normal((3, 4, 2))
    layer = kind(5, sequences)
    y = check_layer(layer, x, xp, prepare=None if lengths is None else masked(lengths, 4, xp))
    params, _, _ = made(layer, x.shape[1:])
    wanted = one_by_one(layer, params, x, [4] * 3 if lengths is None else lengths)
    np.testing.assert_allclose(y, wanted if sequences else wanted[:, -1], atol=1e-12)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("lengths", [None, LENGTHS, [0, 3, 4]])
@pytest.mark.parametrize("run", [1, 3, 64])
def test_attention(causal, lengths, run, xp, monkeypatch):
    monkeypatch.setattr(attention, "CAUSAL_RUN", run)
    x = np.random.default_rng(0).standard_normal((3, 4, 6))
    layer = nn.MultiHeadAttention(2, causal)
    y = check_layer(layer, x, xp, prepare=None if lengths is None else masked(lengths, 4, xp))
    params, _, _ = made(layer, x.shape[1:])
    wanted = np.zeros_like(y)
    for n in range(3):
        q, k, v = np.split(x[n] @ params["weight"] + params["bias"], 3, axis=1)
        rows = np.zeros((4, 6))
        for h in (slice(0, 3), slice(3, 6)):
            for i in range(4):
                seen = [j for j in range(4) if (not causal or j <= i) and (lengths is None or j < lengths[n])]
                if seen:
                    e = np.exp(q[i, h] @ k[seen, h].T / np.sqrt(3))
                    rows[i, h] = (e / e.sum()) @ v[seen, h]
        wanted[n] = rows @ params["output_weight"] + params["output_bias"]
    np.testing.assert_allclose(y, wanted, atol=1e-12)


@pytest.mark.parametrize("causal", [False, True])
def test_rotary_attention(causal, xp):
    x = np.random.default_rng(0).standard_normal((2, 5, 8))
    layer = nn.MultiHeadAttention(2, causal, rotary=True)
    y = check_layer(layer, x, xp)
    params, _, _ = made(layer, x.shape[1:])
    rotations = []
    for place in range(5):
        rotation = np.zeros((4, 4))
        for pair, rate in enumerate((1.0, 0.01)):
            c, s = np.cos(place * rate), np.sin(place * rate)
            rotation[2 * pair : 2 * pair + 2, 2 * pair : 2 * pair + 2] = [[c, -s], [s, c]]
        rotations.append(rotation)
    for n in range(2):
        q, k, v = np.split(x[n] @ params["weight"] + params["bias"], 3, axis=1)
        rows = np.zeros((5, 8))
        for h in (slice(0, 4), slice(4, 8)):
            for i in range(5):
                seen = range(i + 1 if causal else 5)
                e = np.exp([rotations[i] @ q[i, h] @ (rotations[j] @ k[j, h]) / 2 for j in seen])
                rows[i, h] = (e / e.sum()) @ v[: len(seen), h]
        np.testing.assert_allclose(y[n], rows @ params["output_weight"] + params["output_bias"], atol=1e-12)
    with pytest.raises(ConfigError, match="pairs"):
        nn.MultiHeadAttention(2, rotary=True).spec((5, 6))


def test_embedding(xp):
    tokens = np.array([[1, 4, 1], [0, 0, 2]])
    layer = nn.Embedding(5, 3, padding=0)
    y = check_layer(layer, tokens, xp, skip_input=True)
    np.testing.assert_array_equal(y, made(layer, (3,))[0]["weight"][tokens])
    ctx, params = context(2, xp=xp), made(layer, (3,), xp=xp)[0]
    layer.forward(params, xp.asarray(tokens), ctx)
    np.testing.assert_array_equal(host(ctx.mask), tokens != 0)
    for wrong in ([[5]], [[-1]], [[0.5]]):
        with pytest.raises(DataError):
            layer.forward(params, xp.asarray(wrong), ctx)


def test_embedded_categories_are_appended_to_the_inputs(xp):
    numbers, x = np.array([[1, 4], [0, 4], [2, 3]]), np.random.default_rng(0).standard_normal((3, 2))
    layer = nn.WithCategories(5, 2, 3)
    params, grads, spec = made(layer, (2,), xp=xp)
    ctx = context(3, xp=xp, categories=xp.asarray(numbers))
    y, kept = layer.forward(params, xp.asarray(x), ctx)
    table = host(params["weight"])
    np.testing.assert_array_equal(host(y), np.concatenate([x, table[numbers].reshape(3, 6)], axis=1))
    assert spec.output == (8,)
    dy = np.random.default_rng(1).standard_normal((3, 8))
    dx, _ = run_backward(layer.backward(params, grads, kept, xp.asarray(dy)))
    wanted = np.zeros((5, 3))
    np.add.at(wanted, numbers, dy[:, 2:].reshape(3, 2, 3))
    np.testing.assert_allclose(host(grads["weight"]), wanted, atol=1e-12)
    np.testing.assert_array_equal(host(dx), dy[:, :2])
    with pytest.raises(DataError, match="lack the field 'categories'"):
        layer.forward(params, xp.asarray(x), context(3, xp=xp))


@pytest.mark.parametrize("kind", ["learned", "sinusoidal"])
def test_positions(kind, xp):
    x = np.random.default_rng(0).standard_normal((2, 3, 4))
    layer = nn.PositionalEmbedding(kind)
    y = check_layer(layer, x, xp)
    if kind == "sinusoidal":
        wanted = np.array([[np.sin(t), np.cos(t), np.sin(t / 100), np.cos(t / 100)] for t in range(3)])
        np.testing.assert_allclose(y - x, np.broadcast_to(wanted, x.shape), atol=1e-12)


@pytest.mark.parametrize("lengths", [None, [3, 0]])
def test_token_mean(lengths, xp):
    x = np.random.default_rng(0).standard_normal((2, 4, 3))
    y = check_layer(nn.TokenMean(), x, xp, prepare=lengths and masked(lengths, 4, xp))
    wanted = x.mean(axis=1) if lengths is None else [x[0, :3].mean(axis=0), np.zeros(3)]
    np.testing.assert_allclose(y, wanted, atol=1e-12)


@pytest.mark.parametrize(
    "rest",
    [
        [nn.LSTM(4)],
        [nn.GRU(4, sequences=True), nn.RNN(3)],
        [nn.PositionalEmbedding(), nn.Residual(nn.LayerNorm(), nn.MultiHeadAttention(2)), nn.TokenMean()],
    ],
)
def test_padding_changes_nothing(rest, xp):
    """A sequence gives the same result alone and filled up beside a longer one; gradients too."""
    net = nn.Sequential(nn.Embedding(9, 4, padding=0), *rest, nn.Dense(2))
    full = xp.asarray([[3, 5, 8, 2, 1], [7, 4, 6, 0, 0]])
    params, grads, _ = made(net, (5,), xp=xp)
    y, cache = net.forward(params, full, context(2, xp=xp))
    run_backward(net.backward(params, grads, cache, xp.asarray([[0.0, 0], [1, 2]])))
    together = on_host(grads)
    alone, cache = net.forward(params, full[1:, :3], context(1, xp=xp))
    run_backward(net.backward(params, grads, cache, xp.asarray([[1.0, 2]])))
    np.testing.assert_allclose(host(y[1:]), host(alone), atol=1e-12)
    for name, gradient in on_host(grads).items():
        np.testing.assert_allclose(together[name], gradient, atol=1e-12, err_msg=name)
