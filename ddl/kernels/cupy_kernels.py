"""Kernels for a GPU that do in one launch what array code does in many: CuPy's ElementwiseKernel, made when called.

Their C is straight-line code over elements; what they compute is said by the plain functions whose twins they are
(kernels.py). The optimizers have theirs in optim/elementwise.py."""

from __future__ import annotations

from functools import cache
from types import ModuleType
from typing import Any

from ddl.arrays.namespace import Array, namespace_of


class Fused:
    """``code`` over all elements of arrays that broadcast to one shape.

    inputs, changed: declarations such as "T x, bool on", T being the arrays' own type; what is ``changed`` may be
    read as well. Numbers are written T(0.5): plain 0.5 is a double, in which GPUs are slow."""

    def __init__(self, name: str, inputs: str, changed: str, code: str):
        self.name, self.inputs, self.changed, self.code = name, inputs, changed, code

    def __call__(self, *arrays: Array) -> None:
        """arrays: the inputs, of which masks may be True, then those that change; the last decides the device."""
        _made(namespace_of(arrays[-1]), self.name, self.inputs, self.changed, self.code)(*arrays)


@cache
def _made(xp: ModuleType, name: str, inputs: str, changed: str, code: str) -> Any:
    return xp.ElementwiseKernel(inputs, changed, code, f"ddl_{name}")
