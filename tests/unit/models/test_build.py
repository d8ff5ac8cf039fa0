"""models.build: its defaults, the options it accepts from users, and its error messages."""

from __future__ import annotations

import sys
import types
from dataclasses import dataclass

import numpy as np
import pytest

from ddl import models, nn
from ddl.errors import ConfigError
from ddl.models import MLP, Blueprint, Supervised, build
from ddl.nn.losses import MSE, CrossEntropy, Huber
from ddl.nn.metric import Accuracy


@dataclass(frozen=True)
class Field:
    shape: tuple[int, ...]
    dtype: np.dtype
    size: int | None = None


def fields(x=(8, 8, 1), y=(), dtype="int64", size=10, x_dtype="float32", x_size=None):
    named = {"x": Field(x, np.dtype(x_dtype), x_size)}
    return named if y is None else {**named, "y": Field(y, np.dtype(dtype), size)}


def metric_names(model):
    return [metric.name for metric in model.metrics]


def test_whole_numbers_are_classified_and_values_are_fitted():
    model = build("cnn", fields())
    assert isinstance(model.loss, CrossEntropy) and model.spec.output == (10,) and metric_names(model) == ["accuracy"]
    model = build("mlp", fields((5,), (), "float32", None))
    assert isinstance(model.loss, MSE) and model.spec.output == () and metric_names(model) == ["rmse", "r2"]
    assert build("linear", fields((5,), (3,), "float32", None)).spec.output == (3,)
    assert build("linear", fields((5,), (3,), "float32", None), "cross_entropy").spec.output == (3,)
    assert build("mlp", fields((5,), (), size=2), "binary_cross_entropy").spec.output == ()
    assert build("autoencoder", fields(y=None)).target == "x"
    assert build("autoencoder", fields(size=None), "binary_cross_entropy").target == "x"


def test_sequences():
    tokens = {"x_dtype": "int32", "x_size": 50}
    model = build("transformer", fields((12,), (12,), size=50, **tokens))
    assert model.spec.output == (12, 50) and metric_names(model) == ["accuracy", "perplexity"]
    model = build("transformer", fields((12,), (12,), size=256, x_dtype="uint8"))
    assert metric_names(model)[-1] == "bits_per_byte"
    assert build("transformer", fields((12,), **tokens)).spec.output == (10,)
    assert build("text", fields((12,), x_dtype="int64"), options={"vocabulary": 30}).params["embedding1.weight"][0] == (
        30,
        64,
    )
    assert build("lstm", fields((8, 8))).params["lstm1.weight"][0] == (8, 256)
    assert build("gru", fields((9,))).params["gru1.weight"][0] == (1, 192)


def test_a_network_of_the_users_gets_loss_and_metrics():
    model = build(MLP([64, 128, 10]), fields(), "cross_entropy")
    assert isinstance(model, Supervised) and metric_names(model) == ["accuracy"]
    assert {name: shape for name, (shape, _) in model.params.items()} == {
        "dense1.weight": (64, 128),
        "dense1.bias": (128,),
        "dense2.weight": (128, 10),
        "dense2.bias": (10,),
    }
    assert build(model, fields()) is model
    assert build(nn.Sequential(nn.Flatten(), nn.Dense(10)), fields(), CrossEntropy(0.1), [Accuracy()]).metrics


def test_options_reach_model_and_loss():
    model = build("mlp", fields(), options={"hidden": [7], "loss": {"label_smoothing": 0.1}, "classes": 12})
    assert model.loss.label_smoothing == 0.1 and model.params["dense2.weight"][0] == (7, 12)
    assert not build("cnn", fields(), options={"batch_norm": "shard"}).synchronised
    assert build("cnn", fields(), options={"batch_norm": True}).synchronised
    assert build("cnn", fields(), options={"batch_norm": "sync"}).synchronised


def test_perplexity_beside_a_smoothed_loss_is_of_the_outputs():
    tokens = fields((6,), (6,), size=256, x_dtype="uint8")
    plain = build("transformer", tokens)
    smoothed = build("transformer", tokens, options={"loss": {"label_smoothing": 0.1}})
    assert [m.of_outputs for m in plain.metrics[1:]] == [False, False]
    assert [m.of_outputs for m in smoothed.metrics[1:]] == [True, True]


@pytest.fixture
def mine(monkeypatch):
    """A user's module."""
    module = types.ModuleType("mine")

    def network(problem, *, units: int = 3):
        return nn.Sequential(nn.Flatten(), nn.Dense(units), nn.Dense(problem.outputs[0]))

    def by_fields(fields, depth: int = 1):
        return Blueprint(MLP([64, *[9] * depth, 10]), loss="huber", metrics=["mae"])

    class Loss(Huber):
        pass

    class Share(Accuracy):
        pass

    class Whole(models.GAN):
        def __init__(self, noise: int = 2):
            super().__init__(nn.Sequential(nn.Dense(4)), nn.Sequential(nn.Dense(1)), (4,), noise)

    for thing in (network, by_fields, Loss, Share, Whole):
        setattr(module, thing.__name__, thing)
    module.instance, module.number = MLP([64, 10]), 5
    monkeypatch.setitem(sys.modules, "mine", module)
    return module


def test_models_losses_and_metrics_of_the_users_by_name(mine):
    model = build("mine:network", fields(), "mine:Loss", ["mine:Share", "top3"], {"units": 5})
    assert isinstance(model.loss, mine.Loss) and metric_names(model) == ["accuracy", "top3"]
    assert model.params["dense1.weight"][0] == (64, 5)
    assert isinstance(build("mine:Whole", fields((4,), None), options={"noise": 3}), mine.Whole)
    assert build("mine:instance", fields()).network is mine.instance
    got = build("mine:by_fields", fields(y=(10,), dtype="float32", size=None), options={"depth": 2})
    assert isinstance(got.loss, Huber) and metric_names(got) == ["mae"] and "dense3.weight" in got.params
    assert build(mine.network, fields()).spec.output == (10,)


INVALID = {
    "unknown model": (("cmm", fields()), {}, ["cmm", "autoencoder", "cnn"]),
    "unknown loss": (("cnn", fields(), "cross"), {}, ["cross_entropy"]),
    "unknown metric": (("cnn", fields(), None, ["acuracy"]), {}, ["accuracy"]),
    "unknown option": (("mlp", fields()), {"hiden": [3]}, ["hiden", "did you mean", "hidden"]),
    "wrong type": (("mlp", fields()), {"hidden": 64}, ["hidden", "64", "int"]),
    "wrong item": (("mlp", fields()), {"hidden": ["a"]}, ["hidden"]),
    "not a number": (("mlp", fields()), {"dropout": "half"}, ["dropout", "float"]),
    "not a choice": (("mlp", fields()), {"activation": "rely"}, ["activation", "relu"]),
    "unknown loss option": (("mlp", fields()), {"loss": {"smooth": 1}}, ["smooth", "label_smoothing"]),
    "no targets": (("cnn", fields(y=None)), {}, ["targets"]),
    "no x": (("cnn", {"y": Field((), np.dtype("int64"), 3)}), {}, ["'x'"]),
    "classes unknown": (("cnn", fields(size=None)), {}, ["classes"]),
    "values for cross-entropy": (("mlp", fields(dtype="float32", size=None), "cross_entropy"), {}, ["float32"]),
    "classes for binary": (("mlp", fields(), "binary_cross_entropy"), {}, ["0 and 1", "9"]),
    "a float for tokens": (("text", fields((12,))), {}, ["tokens", "float32"]),
    "vocabulary unknown": (("text", fields((12,), x_dtype="int64")), {}, ["vocabulary"]),
    "heads": (("transformer", fields((12,), x_dtype="uint8")), {"width": 10}, ["width", "heads"]),
    "tied": (
        ("transformer", fields((12,), (12,), x_dtype="uint8", size=9)),
        {},
        ["tied", "9", "256"],
    ),
    "no image": (("cnn", fields((12,))), {}, ["height"]),
    "network too wide": ((MLP([64, 11]), fields(), "cross_entropy"), {}, ["(11,)", "(10,)"]),
    "network of other inputs": ((MLP([60, 10]), fields(), "cross_entropy"), {}, ["60"]),
    "not a model": (("mine:number", fields()), {}, ["int"]),
    "no module": (("their:model", fields()), {}, ["their"]),
    "no attribute": (("mine:nothing", fields()), {}, ["nothing"]),
    "a loss for a model that has one": (("gan", fields(), "mse"), {}, ["gan", "own loss"]),
    "a stride that does not divide": (("autoencoder", fields()), {"channels": [2, 2, 2, 2]}, ["8 x 8"]),
    "no units": (("mlp", fields()), {"hidden": [0]}, ["mlp", "(64, 0)"]),
    "units below none": (("mlp", fields()), {"hidden": [-3]}, ["mlp"]),
    "no heads": (("transformer", fields((12,), x_dtype="uint8")), {"heads": 0}, ["transformer", "heads"]),
    "values of classes": (("cnn", fields(), None, ["r2"]), {}, ["r2", "(10,)"]),
    "more choices than outputs": (("mlp", fields((5,), (), size=2), "binary_cross_entropy", ["top5"]), {}, ["top5"]),
    "bits of a regression": (("mlp", fields((5,), (), "float32", None), "mse", ["perplexity"]), {}, ["MSE"]),
    "weights of other classes": (("mlp", fields()), {"loss": {"class_weights": [1.0, 2.0]}}, ["2", "10"]),
    "an object with options": ((MLP([64, 10]), fields()), {"hidden": [3]}, ["options"]),
}


@pytest.mark.parametrize("kind", INVALID)
def test_errors_are_one_line(kind, mine):
    arguments, options, says = INVALID[kind]
    with pytest.raises(ConfigError) as caught:
        build(*arguments, options=options)
    message = str(caught.value)
    assert "\n" not in message and all(word in message for word in says), message


def test_the_readme_line_of_the_python_interface():
    model = build(models.MLP([64, 128, 10]), fields((64,)), "cross_entropy")
    assert model.spec.output == (10,)


def test_a_model_that_does_not_fit_the_samples_suggests_one_that_does():
    rows, images = fields((5,)), fields((8, 8))
    for model, data, suggested in (("cnn", rows, "mlp"), ("text", rows, "mlp"), ("transformer", images, "cnn")):
        with pytest.raises(ConfigError, match=f"which model '{suggested}' takes"):
            build(model, data)
        assert build(suggested, data).params


@pytest.mark.parametrize(
    ("given", "name"),
    [
        (fields(x=(5,)), "mlp"),
        (fields(x=(8, 8, 1)), "cnn"),
        (fields(x=(8, 8)), "cnn"),
        (fields(x=(2, 3, 4, 5)), "linear"),
        (fields(x=(9,), x_dtype="int64", x_size=30), "text"),
        (fields(x=(9,), x_dtype="int64", x_size=30, y=(9,), size=30), "transformer"),
    ],
)
def test_auto_is_the_model_that_suits_the_samples(given, name):
    assert build("auto", given).params.keys() == build(name, given).params.keys()
