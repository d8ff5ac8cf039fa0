"""An ONNX graph whose weights and activations are 8-bit whole numbers, quantised by onnxruntime.

Weights have a scale for each output channel; the ranges of activations are those seen on given samples."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ddl.errors import ConfigError
from ddl.export.graph import library

# What computes with weights, and what only moves or compares numbers between two of these. The others stay in float32:
# a softmax and the normalisation of raw samples need more than 8 bits.
OPERATORS = (
    *("Conv", "Gemm", "MatMul", "Gather"),
    *("Relu", "MaxPool", "AveragePool", "GlobalAveragePool", "Reshape", "Transpose"),
)


def runtime() -> Any:
    """The package onnxruntime. Raises ConfigError if it is not installed."""
    try:
        import onnxruntime
    except ImportError as error:
        raise ConfigError("quantisation needs the package onnxruntime (extra: quantize)") from error
    onnxruntime.set_default_logger_severity(3)
    return onnxruntime


def session(graph: bytes) -> Any:
    """What computes a serialised graph, on one thread."""
    ort = runtime()
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def quantized(graph: bytes, samples: Iterable[Mapping[str, np.ndarray]]) -> bytes:
    """``graph`` with 8-bit weights and activations. samples: batches of its inputs by name, from which the ranges of
    activations are taken. Raises ConfigError for a graph of which onnxruntime cannot quantise anything."""
    runtime(), library()
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory() as folder:
        given, folded, made = (Path(folder, name) for name in ("given.onnx", "folded.onnx", "made.onnx"))
        given.write_bytes(graph)
        # It folds batch normalisation and biases into the weights before them.
        quant_pre_process(str(given), str(folded), skip_symbolic_shape=True)
        with _quiet():
            quantization.quantize_static(
                str(folded),
                str(made),
                _Reader(iter(samples)),
                quant_format=quantization.QuantFormat.QOperator,
                op_types_to_quantize=list(OPERATORS),
                per_channel=True,
                weight_type=quantization.QuantType.QInt8,
                activation_type=quantization.QuantType.QUInt8,
            )
        found = library().load(str(made))
    if not any(node.op_type == "QuantizeLinear" for node in found.graph.node):
        raise ConfigError("onnxruntime can quantise no layer of this network")
    return _short(found)


class _Reader:
    """The calibration data that onnxruntime asks for batch by batch."""

    def __init__(self, batches: Iterator[Mapping[str, np.ndarray]]):
        self._batches = batches

    def get_next(self) -> dict[str, np.ndarray] | None:
        batch = next(self._batches, None)
        return None if batch is None else dict(batch)


class _quiet:
    """onnxruntime's advice, which it logs to the root logger, is left out within this context."""

    def __enter__(self) -> None:
        self._level = logging.root.manager.disable
        logging.disable(logging.WARNING)

    def __exit__(self, *_: object) -> None:
        logging.disable(self._level)


def _short(model: Any) -> bytes:
    """``model`` with short names inside: in a small network they take as many bytes as the weights."""
    graph = model.graph
    kept = {value.name for value in (*graph.input, *graph.output)}
    names: dict[str, str] = {}

    def short(name: str) -> str:
        return name if not name or name in kept else names.setdefault(name, format(len(names), "x"))

    for node in graph.node:
        node.input[:] = [short(name) for name in node.input]
        node.output[:] = [short(name) for name in node.output]
        node.ClearField("name")
    for constant in graph.initializer:
        constant.name = short(constant.name)
    del graph.value_info[:]
    library().checker.check_model(model)
    return bytes(model.SerializeToString())
