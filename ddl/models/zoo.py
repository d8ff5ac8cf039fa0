"""Textbook networks for vectors and images: linear, mlp, cnn, autoencoder.

Each builder takes the problem (a description of the data) and its own options, and returns the network.
Networks for sequences are in sequence.py and transformer.py, the GAN in adversarial.py."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, log2, prod
from typing import Literal

from ddl.errors import ConfigError
from ddl.models.blueprint import Blueprint, Problem
from ddl.nn import (
    AvgPool2D,
    BatchNorm,
    Conv2D,
    ConvTranspose2D,
    Dense,
    Dropout,
    Flatten,
    GlobalAvgPool,
    MaxPool2D,
    ReLU,
    Reshape,
    Sequential,
    Sigmoid,
    WithCategories,
)
from ddl.nn.layer import Layer, Shape
from ddl.wording import listed

LARGE = 40  # pixels
Activation = Literal["relu", "tanh", "sigmoid"]


def head(outputs: Shape) -> list[Layer]:
    """The last dense layer: one value for each of ``outputs``, in that shape."""
    return [Dense(prod(outputs))] if len(outputs) == 1 else [Dense(prod(outputs)), Reshape(outputs)]


def dense_head(outputs: Shape, dense: Sequence[int], dropout: float) -> list[Layer]:
    """Dense layers with ReLU, then the last one; dropout before each."""
    drop: list[Layer] = [Dropout(dropout)] if dropout else []
    layers = [layer for units in dense for layer in [*drop, Dense(units, "relu")]]
    return [*layers, *drop, *head(outputs)]


def linear(problem: Problem) -> Layer:
    """One dense layer and nothing else: y = x W + b.

    With MSE this is linear regression, with cross-entropy logistic regression. The loss is convex, so
    gradient descent finds the one best answer; whatever a deeper model reaches is measured against it."""
    return Sequential(Flatten(), *_with_categories(problem), *head(problem.need_outputs("linear")))


def _with_categories(problem: Problem) -> list[Layer]:
    """What appends the vectors of a table's embedded categories to the inputs."""
    if problem.embedded is None:
        return []
    tokens, columns = problem.embedded
    return [WithCategories(tokens, columns, min(32, ceil(1.6 * (tokens / columns) ** 0.56)))]


def mlp(
    problem: Problem, *, hidden: Sequence[int] = (256, 128), activation: Activation = "relu", dropout: float = 0.0
) -> Layer:
    """A multilayer perceptron: dense layers with a nonlinearity between them.

    Without the nonlinearity the layers would collapse into one. Pixels or features are taken as one long
    vector: which of them are neighbours is not known to this model (it is to a CNN).

    hidden: units of each hidden layer. activation: "relu" learns fastest; "tanh" and "sigmoid" saturate.
    dropout: the share of hidden values set to zero in training, against overfitting."""
    outputs = problem.need_outputs("mlp")
    return _perceptron((problem.inputs, *hidden), outputs, activation, dropout, _with_categories(problem))


def _perceptron(
    sizes: Sequence[int], outputs: Shape, nonlinearity: str, dropout: float, first: Sequence[Layer] = ()
) -> Layer:
    layers: list[Layer] = [Reshape((sizes[0],)), *first]
    for units in sizes[1:]:
        layers.append(Dense(units, nonlinearity))
        if dropout:
            layers.append(Dropout(dropout))
    return Sequential(*layers, *head(outputs))


def MLP(sizes: Sequence[int], activation: str = "relu", dropout: float = 0.0) -> Layer:
    """The network of ``mlp`` by all its sizes, inputs and outputs included: ``MLP([64, 128, 10])``."""
    if len(sizes) < 2:
        raise ConfigError(f"MLP needs the number of inputs and of outputs at least, got {listed(sizes)}")
    return _perceptron(sizes[:-1], (sizes[-1],), activation, dropout)


def cnn(
    problem: Problem,
    *,
    channels: Sequence[int] | None = None,
    kernel: int = 3,
    pool: Literal["max", "average", "none"] = "max",
    dense: Sequence[int] = (64,),
    dropout: float = 0.0,
    batch_norm: bool | Literal["sync", "shard"] | None = None,
    global_pool: bool | None = None,
) -> Layer:
    """A convolutional network: small filters slide over the image, pooling halves it, dense layers decide.

    A filter has the same weights at every place, so a stroke is recognised wherever it lies, with few
    parameters. Deeper filters see larger parts of the image, since each pooling halves it.

    The defaults suit images of any size: as many convolutions as bring the shorter side to about 4 pixels, and
    beyond 40 pixels batch norm and an average over the image. For CIFAR add batch_norm = true and dropout.

    channels: filters of each convolution. kernel: their width in pixels (odd). pool: after each convolution.
    dense: units of the dense layers before the last. dropout: before each dense layer. batch_norm: normalise after
    each convolution, by the statistics of the global batch (true or "sync") or of each shard ("shard").
    global_pool: average each channel over the image instead of flattening."""
    is_grey = len(problem.shape) == 2
    shape = (*problem.shape, 1) if is_grey else problem.need_rank(3, "cnn", "(height, width, channels)")
    height, width = shape[:2]
    is_large = min(height, width) > LARGE
    batch_norm = is_large if batch_norm is None else batch_norm
    global_pool = is_large if global_pool is None else global_pool
    layers: list[Layer] = [Reshape(shape)] if is_grey else []
    for filters in _filters(min(height, width)) if channels is None else channels:
        if batch_norm:  # it subtracts the mean: a bias before it would have no effect
            norm = BatchNorm(sync=batch_norm != "shard")
            layers += [Conv2D(filters, kernel, padding="same", bias=False, initial="he"), norm, ReLU()]
        else:
            layers.append(Conv2D(filters, kernel, padding="same", activation="relu"))
        if pool != "none" and min(height, width) >= 2:
            layers.append(MaxPool2D(2) if pool == "max" else AvgPool2D(2))
            height, width = height // 2, width // 2
    layers.append(GlobalAvgPool() if global_pool else Flatten())
    return Sequential(*layers, *dense_head(problem.need_outputs("cnn"), dense, dropout))


def _filters(side: int) -> list[int]:
    """Filters for images whose shorter side is ``side``: few where the image is large, since their cost is its area."""
    count = max(2, round(log2(side / 4)))
    return [32, 64, 64][:count] if side <= LARGE else [min(16 << place, 128) for place in range(count)]


def autoencoder(
    problem: Problem,
    *,
    code: int = 16,
    hidden: Sequence[int] = (256, 128),
    channels: Sequence[int] = (),
    output: Literal["linear", "sigmoid"] = "linear",
) -> Blueprint:
    """A network that reproduces its input through a narrow code, which therefore keeps the essentials.

    The loss compares the output with the input itself, so no labels are needed. With one linear layer on
    each side it would find what PCA finds; with nonlinear layers it can do better at the same width.

    code: the width of the narrow place. hidden: dense units on the way to it, mirrored on the way back. channels:
    where given, convolutions of stride 2 instead, mirrored by transposed ones; samples are (height, width, channels),
    height and width divisible by 2 for each. output: "sigmoid" for values between 0 and 1."""
    encoder, decoder = _conv_coder(problem, code, channels) if channels else _dense_coder(problem, code, hidden)
    if output == "sigmoid":
        decoder.append(Sigmoid())
    network = Sequential(encoder=Sequential(*encoder), decoder=Sequential(*decoder))
    return Blueprint(network, loss="mse", metrics=("rmse",), target="x")


def _dense_coder(problem: Problem, code: int, hidden: Sequence[int]) -> tuple[list[Layer], list[Layer]]:
    encoder: list[Layer] = [Flatten()]
    for units in hidden:
        encoder.append(Dense(units, "relu"))
    decoder: list[Layer] = []
    for units in reversed(hidden):
        decoder.append(Dense(units, "relu"))
    return [*encoder, Dense(code)], [*decoder, Dense(problem.inputs), Reshape(problem.shape)]


def _conv_coder(problem: Problem, code: int, channels: Sequence[int]) -> tuple[list[Layer], list[Layer]]:
    height, width, depth = problem.need_rank(3, "autoencoder", "(height, width, channels)")
    factor = 2 ** len(channels)
    if height % factor or width % factor:
        raise ConfigError(f"autoencoder: {len(channels)} convolutions of stride 2 do not divide {height} x {width}")
    encoder: list[Layer] = [Conv2D(filters, 3, stride=2, padding=1, activation="relu") for filters in channels]
    narrow = (height // factor, width // factor, channels[-1])
    decoder: list[Layer] = [Dense(prod(narrow), "relu"), Reshape(narrow)]
    for filters in reversed(channels[:-1]):
        decoder.append(ConvTranspose2D(filters, 4, stride=2, padding=1, activation="relu"))
    decoder.append(ConvTranspose2D(depth, 4, stride=2, padding=1))
    return [*encoder, Flatten(), Dense(code)], decoder
