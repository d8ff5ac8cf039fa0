# mypy: disable-error-code="untyped-decorator,no-untyped-def,call-overload"
"""exp, tanh and sigmoid for float32 that compiled loops can vectorise; float64 uses the C library.

NaN stays NaN. exp is accurate to 2 units in the last place of float32, tanh to 3."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit, types
from numba.extending import overload

# x * log2(e) + this has the nearest whole number in its low bits (1.5 * 2**23).
_ROUND = np.float32(12582912.0)
_LOG2_E = np.float32(1.4426950408889634)
# ln 2 in two parts: the product of the first with a whole number below 2**9 is exact.
_LN2_HIGH, _LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)
_LOWEST, _HIGHEST = np.float32(-87.3), np.float32(88.7)
_C2, _C3, _C4 = np.float32(0.49999994), np.float32(0.16666654), np.float32(0.041668452)
_C5, _C6 = np.float32(0.0083361866), np.float32(0.0013925234)
_T3, _T5, _T7 = np.float32(-0.3333328), np.float32(0.13331431), np.float32(-0.053739145)
_T9, _T11 = np.float32(0.020637818), np.float32(-0.0057039922)
_ONE, _TWO = np.float32(1), np.float32(2)
_BIAS, _SHIFT = np.int32(126), np.int32(23)

# Compiled with separate flags: if a caller allows reordering of sums, LLVM would remove "+ _ROUND - _ROUND".
_own: dict[str, Any] = {"nogil": True, "error_model": "numpy", "forceinline": True, "fastmath": {"contract"}}


@njit(**_own)
def _exp32(x):
    # Comparisons that are false for NaN leave it as it is.
    v = _LOWEST if x < _LOWEST else x
    v = _HIGHEST if v > _HIGHEST else v
    shifted = np.float32(v * _LOG2_E + _ROUND)
    whole = np.float32(shifted - _ROUND)
    rest = np.float32(v - whole * _LN2_HIGH)
    rest = np.float32(rest - whole * _LN2_LOW)
    p = _C5 + rest * _C6
    p = _C4 + rest * p
    p = _C3 + rest * p
    p = _C2 + rest * p
    p = _ONE + rest * (_ONE + rest * p)
    # Half of 2**whole, so that the largest exponent fits.
    scale = np.int32((np.int32(shifted.view(np.int32)) + _BIAS) << _SHIFT).view(np.float32)
    y = np.float32(p * scale * _TWO)
    y = np.float32(np.inf) if x > _HIGHEST else y
    return np.float32(0) if x < _LOWEST else y


@njit(**_own)
def _tanh32(x):
    # Below 0.625 the difference from 1 would cancel: there an odd polynomial, fitted by least squares.
    square = x * x
    p = _T7 + square * (_T9 + square * _T11)
    near = x + x * (square * (_T3 + square * (_T5 + square * p)))
    away = _ONE - _TWO / (_exp32(_TWO * x) + _ONE)
    return near if square < np.float32(0.390625) else away


@njit(**_own)
def _sigmoid32(x):
    return _ONE / (_ONE + _exp32(-x))


def exp(x: float) -> float:
    """e to the x."""
    return math.exp(x)


def tanh(x: float) -> float:
    """The hyperbolic tangent."""
    return math.tanh(x)


def sigmoid(x: float) -> float:
    """1 / (1 + exp(-x))."""
    return 1 / (1 + math.exp(-x))


@overload(exp)
def _overload_exp(x):
    return _exp32_entry if x == types.float32 else _exp64_entry


@overload(tanh)
def _overload_tanh(x):
    return _tanh32_entry if x == types.float32 else _tanh64_entry


@overload(sigmoid)
def _overload_sigmoid(x):
    return _sigmoid32_entry if x == types.float32 else _sigmoid64_entry


def _exp32_entry(x):
    return _exp32(x)


def _exp64_entry(x):
    return math.exp(x)


def _tanh32_entry(x):
    return _tanh32(x)


def _tanh64_entry(x):
    return math.tanh(x)


def _sigmoid32_entry(x):
    return _sigmoid32(x)


def _sigmoid64_entry(x):
    return 1.0 / (1.0 + math.exp(-x))
