"""The ONNX operators of each layer of ddl.nn. Images stay (height, width, channels) outside convolutions.

The layers themselves, and what they compute, are in ddl/nn."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ddl import nn
from ddl.errors import ConfigError
from ddl.export.graph import Graph
from ddl.kernels.rowwise import GELU_CUBE, GELU_SLOPE
from ddl.models.transformer import Decoder
from ddl.nn.attention import _turns
from ddl.nn.conv import pair
from ddl.nn.embedding import _waves
from ddl.nn.layer import Shape

Arrays = Mapping[str, np.ndarray]  # parameters and averages of a layer, by name


Convert = Callable[[Any, Graph, Arrays, str, Shape], str]
LAYERS: dict[type, Convert] = {}  # class of a layer -> the function that adds it to a graph


def of(*kinds: type) -> Callable[[Convert], Convert]:
    """The function below it converts layers of these classes."""

    def register(function: Convert) -> Convert:
        LAYERS.update(dict.fromkeys(kinds, function))
        return function

    return register


def converted(layer: Any, graph: Graph, params: Arrays, x: str, shape: Shape) -> str:
    """The output of ``layer`` for the value ``x`` (rows, *shape). Raises ConfigError for a layer without ONNX form; a
    subclass has none, since it may compute anything."""
    convert = LAYERS.get(type(layer))
    if convert is None:
        raise ConfigError(f"layer {type(layer).__name__} has no ONNX form in ddl")
    return convert(layer, graph, params, x, shape)


def below(params: Arrays, scope: str) -> dict[str, np.ndarray]:
    """The parameters of a part, by their names in it."""
    return {name[len(scope) + 1 :]: value for name, value in params.items() if name.startswith(f"{scope}.")}


@of(nn.Sequential)
def _sequential(layer: nn.Sequential, graph: Graph, params: Arrays, x: str, shape: Shape) -> str:
    for name, part in layer.layers.items():
        x = converted(part, graph, below(params, name), x, shape)
        shape = part.spec(shape).output
    return x


@of(nn.Residual)
def _residual(layer: nn.Residual, graph: Graph, params: Arrays, x: str, shape: Shape) -> str:
    return graph.add("Add", x, converted(layer.body, graph, params, x, shape))


@of(Decoder)
def _decoder(layer: Decoder, graph: Graph, params: Arrays, x: str, shape: Shape) -> str:
    table = graph.constant(params["embedding.weight"])
    hidden = graph.add("Gather", table, x, axis=0)
    hidden = converted(layer.trunk, graph, below(params, "trunk"), hidden, (*shape, layer.width))
    if not layer.tied:
        return converted(layer.scores, graph, below(params, "scores"), hidden, (*shape, layer.width))
    return graph.add("MatMul", hidden, graph.add("Transpose", table, perm=[1, 0]))


# Dense layers and activations.


@of(nn.Dense)
def _dense(layer: nn.Dense, graph: Graph, params: Arrays, x: str, shape: Shape) -> str:
    y = graph.add("MatMul", x, graph.constant(params["weight"]))
    return _activated(graph, _biased(graph, y, params), layer.activation)


def _biased(graph: Graph, x: str, params: Arrays) -> str:
    return graph.add("Add", x, graph.constant(params["bias"])) if "bias" in params else x


def _activated(graph: Graph, x: str, activation: str) -> str:
    if activation == "gelu":
        return _gelu(graph, x)
    return x if activation == "linear" else str(graph.add(activation.capitalize(), x))


def _gelu(graph: Graph, x: str) -> str:
    """In its tanh form, for which this opset has no operator."""
    cube = graph.add("Mul", x, graph.add("Mul", x, x))
    inner = graph.add("Add", x, graph.add("Mul", cube, graph.constant(float(GELU_CUBE))))
    t = graph.add("Tanh", graph.add("Mul", inner, graph.constant(float(GELU_SLOPE))))
    half = graph.add("Mul", x, graph.constant(0.5))
    return str(graph.add("Mul", half, graph.add("Add", t, graph.constant(1.0))))


def _plain(operator: str) -> Convert:
    return lambda layer, graph, params, x, shape: str(graph.add(operator, x))


LAYERS[nn.ReLU] = _plain("Relu")
LAYERS[nn.Tanh] = _plain("Tanh")
LAYERS[nn.Sigmoid] = _plain("Sigmoid")
LAYERS[nn.GELU] = lambda layer, graph, params, x, shape: _gelu(graph, x)
LAYERS[nn.Dropout] = lambda layer, graph, params, x, shape: x
LAYERS[nn.Softmax] = lambda layer, graph, params, x, shape: graph.add("Softmax", x, axis=-1)


@of(nn.LeakyReLU)
def _leaky(layer: nn.LeakyReLU, graph: Graph, params: Arrays, x: str, shape: Shape) -> str:
    return graph.add("LeakyRelu", x, alpha=layer.slope)


@of(nn.Scale)
def _scale(layer: nn.Scale, graph: Graph, params: Arrays, x: str, shape: Shape) -> str:
    return graph.add("Mul", x, graph.constant(float(layer.factor)))


@of(nn.Reshape, nn.Flatten)
def _reshape(layer: nn.Reshape, graph: Graph, params: Arrays, x: str, shape: Shape) -> str:
    graph.mask = None
    return graph.reshape(x, -1, *layer.spec(shape).output)


# Images.


def _on_channels(graph: Graph, x: str, operator: str, *constants: str, **attributes: Any) -> str:
    """An operator that wants (rows, channels, height, width)."""
    y = graph.add(operator, graph.add("Transpose", x, perm=[0, 3, 1, 2]), *constants, **attributes)
    return graph.add("Transpose", y, perm=[0, 2, 3, 1])


@of(nn.Conv2D)
def _conv(layer: nn.Conv2D, graph: Graph, params: Arrays, x: str, shape: Shape) -> str:
    size, stride, padding = layer._numbers()
    weight = graph.constant(params["weight"].transpose(3, 2, 0, 1))
    settings = {"kernel_shape": size, "strides": stride, "pads": [*padding, *padding], "group": layer.groups}
    return _activated(
        graph, _biased(graph, _on_channels(graph, x, "Conv", weight, **settings), params), layer.activation
    )


@of(nn.ConvTranspose2D)
def _conv_transpose(layer: nn.ConvTranspose2D, graph: Graph, params: Arrays, x: str, shape: Shape) -> str:
    padding = pair(layer.padding)
    weight = graph.constant(params["weight"].transpose(3, 2, 0, 1))
    settings = {
        "kernel_shape": pair(layer.size),
        "strides": pair(layer.stride),
        "pads": [*padding, *padding],
        "output_padding": pair(layer.extra),
    }
    y = _on_channels(graph, x, "ConvTranspose", weight, **settings)
    return _activated(graph, _biased(graph, y, params), layer.activation)


@of(nn.MaxPool2D)
def _max_pool(layer: nn.MaxPool2D, graph: Graph, params: Arrays, x: str, shape: Shape) -> str:
    size, stride, padding = layer._numbers()
    return _on_channels(graph, x, "MaxPool", kernel_shape=size, strides=stride, pads=[*padding, *padding])


@of(nn.AvgPool2D)
def _average_pool(layer: nn.AvgPool2D, graph: Graph, params: Arrays, x: str, shape: Shape) -> str:
    size, stride = layer._numbers()
    return _on_channels(graph, x, "AveragePool", kernel_shape=size, strides=stride)


@of(nn.GlobalAvgPool)
def _global_average(layer: nn.GlobalAvgPool, graph: Graph, params: Arrays, x: str, shape: Shape) -> str:
    graph.mask = None
    return graph.add("ReduceMean", x, axes=list(range(1, len(shape))), keepdims=0)


@of(nn.BatchNorm)
def _batch_norm(layer: nn.BatchNorm, graph: Graph, params: Arrays, x: str, shape: Shape) -> str:
    scale = params["weight"] / np.sqrt(params["variance"] + layer.eps)
    scaled = graph.add("Mul", x, graph.constant(scale))
    return graph.add("Add", scaled, graph.constant(params["bias"] - params["mean"] * scale))


@of(nn.LayerNorm)
def _layer_norm(layer: nn.LayerNorm, graph: Graph, params: Arrays, x: str, shape: Shape) -> str:
    weight, bias = graph.constant(params["weight"]), graph.constant(params["bias"])
    return graph.add("LayerNormalization", x, weight, bias, axis=-1, epsilon=layer.eps)


# Sequences.


@of(nn.Embedding)
def _embedding(layer: nn.Embedding, graph: Graph, params: Arrays, x: str, shape: Shape) -> str:
    if layer.padding is None:
        graph.mask = None
    else:
        padding = graph.constant(np.array(layer.padding, np.int64))
        graph.mask = graph.add("Not", graph.add("Equal", x, padding))
    return graph.add("Gather", graph.constant(params["weight"]), x, axis=0)


@of(nn.WithCategories)
def _with_categories(layer: nn.WithCategories, graph: Graph, params: Arrays, x: str, shape: Shape) -> str:
    graph.inputs["categories"] = (np.int64, (layer.columns,))
    vectors = graph.add("Gather", graph.constant(params["weight"]), "categories", axis=0)
    return graph.add("Concat", x, graph.reshape(vectors, -1, layer.columns * layer.width), axis=1)


@of(nn.PositionalEmbedding)
def _positions(layer: nn.PositionalEmbedding, graph: Graph, params: Arrays, x: str, shape: Shape) -> str:
    table = params["weight"][: shape[0]] if layer.kind == "learned" else _waves(*shape)
    return graph.add("Add", x, graph.constant(table))


@of(nn.TokenMean)
def _token_mean(layer: nn.TokenMean, graph: Graph, params: Arrays, x: str, shape: Shape) -> str:
    if graph.mask is None:
        return graph.add("ReduceMean", x, axes=[1], keepdims=0)
    counted, axis = graph.cast(graph.mask, graph.dtype), graph.constant(np.array([1], np.int64))
    count = graph.add("Max", graph.add("ReduceSum", counted, axis, keepdims=1), graph.constant(1.0))
    shares = graph.add("Unsqueeze", graph.add("Div", counted, count), axis)
    graph.mask = None
    return graph.add("Squeeze", graph.add("MatMul", shares, x), axis)


@of(nn.MultiHeadAttention)
def _attention(layer: nn.MultiHeadAttention, graph: Graph, params: Arrays, x: str, shape: Shape) -> str:
    time, width = shape
    each = width // layer.heads
    projected = graph.add(
        "Add", graph.add("MatMul", x, graph.constant(params["weight"])), graph.constant(params["bias"])
    )
    parts = graph.add("Split", projected, outputs=3, axis=-1)
    parts = [graph.reshape(part, -1, time, layer.heads, each) for part in parts]
    if layer.rotary:
        parts[:2] = [_turned(graph, part, time, layer.heads, each) for part in parts[:2]]
    queries, values = (graph.add("Transpose", parts[place], perm=[0, 2, 1, 3]) for place in (0, 2))
    scores = graph.add("MatMul", queries, graph.add("Transpose", parts[1], perm=[0, 2, 3, 1]))
    scores = graph.add("Mul", scores, graph.constant(float(each**-0.5)))
    hidden = graph.constant(-1e30)  # finite: a query that may see no key must not become NaN
    if layer.causal:
        seen = graph.constant(np.tril(np.ones((time, time), bool)))
        scores = graph.add("Where", seen, scores, hidden)
    keys = None
    if graph.mask is not None:
        keys = graph.add("Unsqueeze", graph.mask, graph.constant(np.array([1, 2], np.int64)))
        scores = graph.add("Where", keys, scores, hidden)
    shares = graph.add("Softmax", scores, axis=-1)
    if keys is not None:
        shares = graph.add("Mul", shares, graph.cast(keys, graph.dtype))
    gathered = graph.add("Transpose", graph.add("MatMul", shares, values), perm=[0, 2, 1, 3])
    y = graph.add("MatMul", graph.reshape(gathered, -1, time, width), graph.constant(params["output_weight"]))
    return graph.add("Add", y, graph.constant(params["output_bias"]))


def _turned(graph: Graph, x: str, time: int, heads: int, each: int) -> str:
    """Queries or keys (rows, time, heads, each), each pair of values turned by its place."""
    turns = _turns(time, each // 2)
    pairs = graph.reshape(x, -1, time, heads, each // 2, 2)
    axis = graph.constant(np.array([-1], np.int64))
    first, second = (graph.add("Squeeze", part, axis) for part in graph.add("Split", pairs, outputs=2, axis=-1))
    cosine, sine = graph.constant(turns.real), graph.constant(turns.imag)
    left = graph.add("Sub", graph.add("Mul", first, cosine), graph.add("Mul", second, sine))
    right = graph.add("Add", graph.add("Mul", first, sine), graph.add("Mul", second, cosine))
    joined = graph.add("Concat", *(graph.add("Unsqueeze", part, axis) for part in (left, right)), axis=-1)
    return graph.reshape(joined, -1, time, heads, each)


@of(nn.RNN)
def _rnn(layer: nn.RNN, graph: Graph, params: Arrays, x: str, shape: Shape) -> str:
    return _recurrent(layer, graph, params, x, shape, "RNN", [0])


@of(nn.LSTM)
def _lstm(layer: nn.LSTM, graph: Graph, params: Arrays, x: str, shape: Shape) -> str:
    return _recurrent(layer, graph, params, x, shape, "LSTM", [0, 3, 1, 2])  # ONNX: input, output, forget, candidate


@of(nn.GRU)
def _gru(layer: nn.GRU, graph: Graph, params: Arrays, x: str, shape: Shape) -> str:
    return _recurrent(layer, graph, params, x, shape, "GRU", [1, 0, 2], linear_before_reset=1)  # update, reset, ...


def _recurrent(
    layer: Any, graph: Graph, params: Arrays, x: str, shape: Shape, operator: str, order: list[int], **settings: int
) -> str:
    """order: where ONNX's gates are among ours."""
    units, time = layer.units, shape[0]

    def gates(value: np.ndarray) -> np.ndarray:
        """(..., gates * units) -> the same in ONNX's order, as rows (1, gates * units, ...)."""
        parts = [value[..., place * units : (place + 1) * units] for place in order]
        return np.concatenate(parts, axis=-1).T[None]

    of_recurrent = np.zeros(layer.gates * units, params["bias"].dtype)
    for name in layer.extra:  # of the last gate
        of_recurrent[-units:] = params[name]
    both = np.concatenate([gates(params["bias"]), gates(of_recurrent)], axis=1)
    lengths, places = "", None
    if graph.mask is not None:
        x, lengths, places = _compacted(graph, x, time)
    steps = graph.add("Transpose", x, perm=[1, 0, 2])
    weights = [graph.constant(gates(params[name])) for name in ("weight", "recurrent")]
    inputs = [steps, *weights, graph.constant(both), lengths]
    states, last = graph.add(operator, *inputs, outputs=2, hidden_size=units, **settings)
    if not layer.sequences:
        graph.mask = None
        return graph.add("Squeeze", last, graph.constant(np.array([0], np.int64)))
    y = graph.add("Transpose", graph.add("Squeeze", states, graph.constant(np.array([1], np.int64))), perm=[1, 0, 2])
    if places is None:
        return y
    # The state at a place is the one after as many tokens as there are up to it; before the first it is zero.
    y = graph.add("Pad", y, graph.constant(np.array([0, 1, 0, 0, 0, 0], np.int64)))
    return graph.add("GatherND", y, places, batch_dims=1)


def _compacted(graph: Graph, x: str, time: int) -> tuple[str, str, str]:
    """(``x`` with the tokens of each row before its padding, their number, tokens up to each place): recurrent
    operators of ONNX know padding at the end only."""
    assert graph.mask is not None
    last = graph.constant(np.array([-1], np.int64))
    falling = np.arange(time, 0, -1, dtype=np.int64)
    keys = graph.add("Where", graph.mask, graph.constant(falling + time), graph.constant(falling))
    _, order = graph.add("TopK", keys, graph.constant(np.array([time], np.int64)), outputs=2, axis=1)
    gathered = graph.add("GatherND", x, graph.add("Unsqueeze", order, last), batch_dims=1)
    counted = graph.cast(graph.mask, np.int64)
    length = graph.add("ReduceSum", counted, graph.constant(np.array([1], np.int64)), keepdims=0)
    upto = graph.add("CumSum", counted, graph.constant(np.array(1, np.int64)))
    return gathered, graph.cast(length, np.int32), graph.add("Unsqueeze", upto, last)
