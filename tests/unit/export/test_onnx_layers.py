"""Networks of every layer of ddl.nn give the same outputs in onnxruntime; what has no ONNX form is refused by name."""

from __future__ import annotations

import json

import numpy as np
import pytest

onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")

from ddl import nn  # noqa: E402
from ddl.arrays import Views  # noqa: E402
from ddl.data import Field, Normalise  # noqa: E402
from ddl.errors import ConfigError  # noqa: E402
from ddl.export.onnx import onnx_model  # noqa: E402
from ddl.kernels.backend import use_compiled  # noqa: E402
from ddl.models import build, initial_values  # noqa: E402
from ddl.nn.context import Context  # noqa: E402

IMAGE, TEXT, ROW = ((9, 8, 3), "float32"), ((7,), "int64"), ((5,), "float32")
NETWORKS = {
    "convolutions": (
        IMAGE,
        lambda: nn.Sequential(
            nn.Conv2D(4, (3, 2), stride=(2, 1), padding=(1, 0), activation="tanh"),
            nn.Conv2D(8, 3, padding="same", groups=2, bias=False),
            nn.BatchNorm(),
            nn.LeakyReLU(0.2),
            nn.MaxPool2D(3, stride=2, padding=1),
            nn.ConvTranspose2D(5, 3, stride=2, padding=1, extra=1, activation="sigmoid"),
            nn.AvgPool2D((2, 1)),
            nn.GlobalAvgPool(),
            nn.Dense(3),
        ),
    ),
    "activations": (
        ROW,
        lambda: nn.Sequential(
            nn.Dense(6, "gelu"),
            nn.LayerNorm(),
            nn.Residual(nn.Dense(6, "relu"), nn.Dropout(0.4), nn.Dense(6)),
            nn.Scale(1.7),
            nn.GELU(),
            nn.ReLU(),
            nn.Dense(6, "tanh", bias=False),
            nn.Sigmoid(),
            nn.Softmax(),
            nn.Tanh(),
            nn.Dense(3),
        ),
    ),
    **{
        f"{kind.__name__.lower()}s over padding": (
            TEXT,
            lambda kind=kind: nn.Sequential(
                nn.Embedding(11, 4, padding=0), kind(5, sequences=True), kind(6), nn.Dense(3)
            ),
        )
        for kind in (nn.RNN, nn.LSTM, nn.GRU)
    },
    "attention over padding": (
        TEXT,
        lambda: nn.Sequential(
            nn.Embedding(11, 8, padding=0),
            nn.PositionalEmbedding("sinusoidal"),
            nn.MultiHeadAttention(2, rotary=True),
            nn.TokenMean(),
            nn.Dense(3),
        ),
    ),
    "causal attention": (
        TEXT,
        lambda: nn.Sequential(
            nn.Embedding(11, 8), nn.PositionalEmbedding(), nn.MultiHeadAttention(4, causal=True), nn.TokenMean(),
            nn.Dense(3),
        ),
    ),
}  # fmt: skip


@pytest.fixture(autouse=True)
def plain():
    use_compiled("off")
    yield
    use_compiled("auto")


def made(network, shape, dtype, rng):
    """(the model, its parameters and averages), both far from their initial values."""
    fields = {
        "x": Field(shape, np.dtype(dtype), 11 if dtype == "int64" else None),
        "y": Field((), np.dtype("int64"), 3),
    }
    model = build(network, fields)
    arrays = {name: value.astype("float32") for name, value in initial_values(model, 1).items()}
    arrays = {name: value + rng.normal(0, 0.2, value.shape).astype("float32") for name, value in arrays.items()}
    averages = {name: rng.uniform(0.5, 2, one.shape).astype("float32") for name, one in model.averages.items()}
    return model, {**arrays, **averages}, fields["x"]


def ours(model, arrays, x):
    context = Context(segments=[slice(0, len(x))], shards=[0])
    return model.predict(Views(arrays), Views({}), {"x": x}, context)["output"]


def run(proto, x):
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return dict(zip([one.name for one in session.get_outputs()], session.run(None, {"x": x}), strict=True))


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_gives_the_same_outputs_for_any_number_of_rows(name, rng):
    (shape, dtype), network = NETWORKS[name]
    model, arrays, x = made(network(), shape, dtype, rng)
    proto = onnx_model(model, arrays, x)
    for rows in (6, 1):
        batch = (
            rng.normal(size=(rows, *shape)).astype(dtype) if dtype != "int64" else rng.integers(1, 11, (rows, *shape))
        )
        if dtype == "int64":  # padding at the end, at the start, in between, and nothing else
            batch[0, 4:], batch[-1, :2], batch[rows // 2, 3] = 0, 0, 0
            batch[rows - 2] = 0
        found = run(proto, batch)
        wanted = ours(model, arrays, batch)
        np.testing.assert_allclose(found["output"], wanted, rtol=1e-5, atol=1e-5)
        shares = np.exp(wanted) / np.exp(wanted).sum(axis=1, keepdims=True)
        np.testing.assert_allclose(found["probabilities"], shares, rtol=1e-5, atol=1e-5)


def test_normalisation_is_part_of_the_graph_and_labels_of_its_metadata(rng):
    model, arrays, _ = made(nn.Sequential(nn.Dense(3)), (4,), "float32", rng)
    x = 1e7 + rng.normal(size=(5, 4))  # float32 would lose the differences
    normalise = Normalise(x.mean(axis=0).tolist(), x.std(axis=0).tolist(), "float32")
    proto = onnx_model(model, arrays, Field((4,), np.dtype("float64")), normalise, ["a", "b", "c"])
    z = ((x - x.mean(axis=0)) / x.std(axis=0)).astype("float32")
    np.testing.assert_allclose(run(proto, x)["output"], ours(model, arrays, z), rtol=1e-5, atol=1e-6)
    assert {one.key: json.loads(one.value) for one in proto.metadata_props} == {"labels": ["a", "b", "c"]}


def test_a_layer_without_onnx_form_is_named(rng):
    class Twice(nn.Scale):
        pass

    class Own:
        def spec(self, shape):
            return nn.Spec(shape)

        def forward(self, params, x, ctx):
            return x, None

        def backward(self, params, grads, cache, dy):
            yield from ()
            return dy

    for layer in (Twice(2.0), Own()):  # a subclass may compute anything
        model, arrays, x = made(nn.Sequential(nn.Dense(3), layer), (4,), "float32", rng)
        with pytest.raises(ConfigError, match=f"layer {type(layer).__name__} has no ONNX form"):
            onnx_model(model, arrays, x)


def test_embedded_categories_are_an_input_of_their_own(rng):
    network = nn.Sequential(nn.WithCategories(7, 2, 3), nn.Dense(5, "relu"), nn.Dense(3))
    model, arrays, field = made(network, (4,), "float32", rng)
    for rows in (5, 1):
        x, categories = rng.normal(size=(rows, 4)).astype("float32"), rng.integers(0, 7, (rows, 2))
        context = Context(segments=[slice(0, rows)], shards=[0])
        batch = {"x": x, "categories": categories}
        wanted = model.predict(Views(arrays), Views({}), batch, context)["output"]
        proto = onnx_model(model, arrays, field).SerializeToString()
        session = onnxruntime.InferenceSession(proto, providers=["CPUExecutionProvider"])
        np.testing.assert_allclose(session.run(["output"], batch)[0], wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_values_are_in_the_units_of_the_data(precision, rng):
    y = Field((2,), np.dtype(precision))
    model = build(nn.Sequential(nn.Dense(2)), {"x": Field((4,), np.dtype("float32")), "y": y})
    model = model.with_target_scale(np.array([1.5e5, 0.0]), np.array([8e4, 1e-6]))
    arrays = {name: value.astype("float32") for name, value in initial_values(model, 1).items()}
    scale = {name: kept.initial for name, kept in model.kept.items()}
    x = rng.normal(size=(6, 4)).astype("float32")
    context = Context(segments=[slice(0, 6)], shards=[0])
    wanted = model.predict(Views(arrays), Views(scale), {"x": x}, context)["output"]
    found = run(onnx_model(model, {**arrays, **scale}, Field((4,), x.dtype)), x)["output"]
    assert found.dtype == wanted.dtype == precision and abs(wanted[:, 0]).max() > 1e4
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-12)
