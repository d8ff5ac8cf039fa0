"""GPU kernels that replace many launches of array code by one: CuPy's ElementwiseKernel, compiled at the first call.

Their C is straight-line code per element. The NumPy function of the same name documents what a kernel computes
(backend.py). The kernels of optimizers are in optim_cupy.py."""

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
        """arrays: the inputs (a mask may be the constant True), then the changed arrays; the last sets the device."""
        _made(namespace_of(arrays[-1]), self.name, self.inputs, self.changed, self.code)(*arrays)


@cache
def _made(xp: ModuleType, name: str, inputs: str, changed: str, code: str) -> Any:
    return xp.ElementwiseKernel(inputs, changed, code, f"ddl_{name}")
