"""CuPy kernels of rowwise.py: several elementwise passes become one launch.

Sums over rows use CuPy's own reductions."""

from __future__ import annotations

from ddl.arrays.namespace import Array
from ddl.kernels.cupy_kernels import Fused
from ddl.kernels.rowwise import GELU_CUBE, GELU_SLOPE

# The slope first: y may lie where x does.
_GELU = f"""T t = tanh(T({GELU_SLOPE}) * (v + T({GELU_CUBE}) * v * v * v));
       T inner = T({GELU_SLOPE}) * (1 + T({3 * GELU_CUBE}) * v * v);
       slope = T(0.5) * (1 + t) + T(0.5) * v * (1 - t * t) * inner;
       y = T(0.5) * v * (1 + t)"""

_gelu = Fused("gelu", "T x", "T y, T slope", "T v = x;" + _GELU)
_bias_gelu = Fused("bias_gelu", "T bias", "T y, T slope", "T v = y + bias;" + _GELU)
# Written as v < 0 rather than max(v, 0), so that NaN stays NaN.
_bias_relu = Fused("bias_relu", "T bias", "T y", "T v = y + bias; y = v < 0 ? T(0) : v")
_relu_backward = Fused("relu_backward", "T y", "T dy", "dy = y <= 0 ? T(0) : dy")


def gelu(x: Array, y: Array, slope: Array) -> None:
    _gelu(x, y, slope)


def bias_gelu(y: Array, bias: Array, slope: Array) -> None:
    _bias_gelu(bias, y, slope)


def bias_relu(y: Array, bias: Array) -> None:
    _bias_relu(bias, y)


def relu_backward(dy: Array, y: Array) -> None:
    _relu_backward(y, dy)
