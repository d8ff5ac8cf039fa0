"""An ONNX graph under construction: nodes and constants, added one by one.

layers.py adds those of a layer, onnx.py the inputs and outputs of a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ddl.errors import ConfigError

OPSET = 17  # LayerNormalization; runtimes since 2022 have it
IR_VERSION = 8


def library() -> Any:
    """The package onnx. Raises ConfigError if it is not installed."""
    try:
        import onnx
        import onnx.helper
        import onnx.numpy_helper
    except ImportError as error:
        raise ConfigError("ONNX files need the package onnx (extra: onnx)") from error
    return onnx


class Graph:
    """Values are known by name. dtype: of the parameters. mask: (rows, time) booleans, the value that is False where a
    sequence is padding, as in ``ddl.nn.Context``; None where there is no padding. inputs: those of the network beside
    its first, name -> (dtype, shape of a sample)."""

    def __init__(self, dtype: np.dtype):
        self._onnx = library()
        self.dtype, self.mask = dtype, None  # type: tuple[np.dtype, str | None]
        self.inputs: dict[str, tuple[Any, tuple[int, ...]]] = {}
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self._count = 0

    def add(self, operator: str, *inputs: str, outputs: int = 1, **attributes: Any) -> Any:
        """The value of a new node, or the values if it has several outputs; "" is an absent input."""
        self._count += 1
        names = [f"{operator.lower()}_{self._count}{f'_{place}' if place else ''}" for place in range(outputs)]
        self.nodes.append(self._onnx.helper.make_node(operator, list(inputs), names, names[0], **attributes))
        return names[0] if outputs == 1 else names

    def constant(self, value: Any, dtype: Any = None) -> str:
        """A constant; numbers with a fraction are of the graph's type unless a dtype is given."""
        array = np.asarray(value)
        if dtype is None and array.dtype.kind == "f":
            dtype = self.dtype
        array = np.ascontiguousarray(array, dtype).reshape(array.shape)
        self._count += 1
        name = f"constant_{self._count}"
        self.constants.append(self._onnx.numpy_helper.from_array(array, name))
        return name

    def cast(self, value: str, dtype: Any) -> str:
        return str(self.add("Cast", value, to=self.kind(dtype)))

    def kind(self, dtype: Any) -> int:
        """ONNX's number of a dtype."""
        return int(self._onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))

    def reshape(self, value: str, *shape: int) -> str:
        """(rows, *shape); other rows than one of ``value`` only where a shape says -1 first."""
        return str(self.add("Reshape", value, self.constant(np.array(shape, np.int64))))

    def model(
        self, inputs: Mapping[str, Any], outputs: Mapping[str, Any], about: Mapping[str, str], name: str = "ddl"
    ) -> Any:
        """The finished, checked ModelProto. inputs, outputs: name -> (dtype, shape of a sample).

        Raises ConfigError for parameters beyond the 2 GiB of one ONNX file."""
        helper = self._onnx.helper
        ends = [
            [helper.make_tensor_value_info(key, self.kind(dtype), ["rows", *shape]) for key, (dtype, shape) in values]
            for values in (inputs.items(), outputs.items())
        ]
        graph = helper.make_graph(self.nodes, name, *ends, initializer=self.constants)
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], producer_name="ddl")
        made.ir_version = IR_VERSION
        helper.set_model_props(made, dict(about))
        try:
            size = made.ByteSize()
            if size < 2**31:
                self._onnx.checker.check_model(made, full_check=True)
                return made
        except ValueError as error:  # protobuf refuses to count so far
            raise ConfigError("the network is beyond 2 GiB, the most that one ONNX file holds") from error
        raise ConfigError(f"the network is {size / 2**30:.1f} GiB, beyond the 2 GiB that one ONNX file holds")
