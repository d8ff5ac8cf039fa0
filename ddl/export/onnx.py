"""A trained model as an ONNX graph, from samples as they are stored to logits and probabilities.

Normalisation is part of the graph; text is not: it takes token numbers. layers.py knows the layers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ddl.data import Field, Normalise
from ddl.errors import ConfigError
from ddl.export.graph import Graph
from ddl.export.layers import below, converted
from ddl.models import Model
from ddl.models.target_scale import DEVIATION, MEAN


def onnx_model(
    model: Model,
    arrays: Mapping[str, np.ndarray],
    x: Field,
    normalise: Normalise | None = None,
    labels: Sequence[str] = (),
) -> Any:
    """The ModelProto of ``model``, checked; its number of rows is free.

    arrays: its parameters and buffers by name. x: the samples. Inputs: "x", or "noise" of a GAN, whose generator is
    exported, and "categories" where the network embeds some. Outputs: "output", as ``ddl.predict --raw`` gives it, and
    "probabilities" where there are some. labels: recorded in the metadata. Raises ConfigError for a network of another
    framework or a layer without ONNX form."""
    if not model.networks:
        kind = f"{type(model).__module__}.{type(model).__name__}"
        instead = "torch.onnx.export(module, x, FILE) writes the module, which Trainer.load or model.from has filled"
        hint = f"; {instead}" if kind.startswith("ddl.torch.") else ""
        raise ConfigError(f"{kind} has no ONNX form: only networks of ddl.nn do{hint}")
    own = [value.dtype for name, value in arrays.items() if name in model.params]
    dtype = np.promote_types(own[0], np.float32) if own else np.dtype(np.float32)
    graph = Graph(dtype)
    scope, (network, shape) = next(iter(model.networks.items()))
    name = value = "noise" if model.generates else "x"
    kind = dtype if model.generates else x.dtype
    if normalise is not None and not model.generates:
        value, kind = _normalised(graph, value, kind, normalise)
    if kind.kind == "f" and kind != dtype:
        value = graph.cast(value, dtype)
    output = converted(network, graph, below(arrays, scope) if scope else dict(arrays), value, shape)
    of_output = network.spec(shape).output
    if normalise is not None and (model.generates or model.reconstructs):
        scaled = graph.add("Mul", output, graph.constant(np.asarray(normalise.scale)))
        output = graph.add("Add", scaled, graph.constant(np.asarray(normalise.mean)))
    of_values = dtype
    if model.target_scale is not None:
        of_values = np.promote_types(dtype, model.target_scale.precision)
        output = _in_units(graph, output, dtype, of_values, arrays)
    outputs = {"output": (of_values, of_output)}
    graph.nodes.append(_renamed(graph, output, "output"))
    if model.output_kind != "values":
        settings = {"axis": -1} if model.output_kind == "logits" else {}
        shares = graph.add("Softmax" if model.output_kind == "logits" else "Sigmoid", output, **settings)
        graph.nodes.append(_renamed(graph, shares, "probabilities"))
        outputs["probabilities"] = (dtype, of_output)
    about = {"labels": json.dumps(list(labels))} if labels else {}
    stored = dtype if model.generates else x.dtype
    return graph.model({name: (stored, shape), **graph.inputs}, outputs, about)


def _in_units(graph: Graph, output: str, kind: np.dtype, wanted: np.dtype, arrays: Mapping[str, np.ndarray]) -> str:
    """Values in the units of the data; as the network computes them if it did not learn scaled ones."""
    mean, deviation = arrays.get(MEAN, np.zeros(1)), arrays.get(DEVIATION, np.ones(1))
    output = output if kind == wanted else graph.cast(output, wanted)
    if (mean == 0).all() and (deviation == 1).all():
        return output
    scaled = graph.add("Mul", output, graph.constant(deviation, wanted))
    return str(graph.add("Add", scaled, graph.constant(mean, wanted)))


def _renamed(graph: Graph, value: str, name: str) -> Any:
    graph.add("Identity", value)
    node = graph.nodes.pop()
    node.output[0] = name
    return node


def _normalised(graph: Graph, x: str, kind: np.dtype, normalise: Normalise) -> tuple[str, np.dtype]:
    """``x`` after ``Normalise``, computed in the type in which it computes, and its type."""
    if kind.kind != "f":
        x, kind = graph.cast(x, np.float32), np.dtype(np.float32)
    mean = graph.add("Sub", x, graph.constant(np.asarray(normalise.mean), kind))
    if kind == np.float64 and normalise.dtype not in (None, "float64"):
        scaled = graph.add("Div", mean, graph.constant(np.asarray(normalise.scale), kind))
        return graph.cast(scaled, normalise.dtype), np.dtype(normalise.dtype)
    return graph.add("Mul", mean, graph.constant(1 / np.asarray(normalise.scale), kind)), kind
