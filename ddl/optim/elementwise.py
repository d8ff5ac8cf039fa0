"""Optimizers whose rule treats each element alike: one fused pass over flat memory, in one of three spellings.

The rules are in optimizers.py, their Numba loops in kernels/optim_numba.py; rules with layer norms: layerwise.py."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from types import ModuleType
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np

from ddl.arrays import Array, Device, namespace_of
from ddl.kernels.backend import is_compiled

# Elements of a block in the plain path: parameters, gradient, two slots and two scratch arrays of
# one block (6 x 32 KiB in float32) stay in a core's L2 cache through all the passes of a rule.
BLOCK = 8192


@runtime_checkable
class Optimizer(Protocol):
    """A rule that changes flat parameters in place, given the gradient of a sum.

    slots: names of the flat arrays that it keeps, as long as the parameters and zero at the start.
    layerwise: it looks at one named parameter at a time (Groups hands it one after another).
    lr: the learning rate it was made with, before any schedule."""

    @property
    def slots(self) -> tuple[str, ...]: ...

    @property
    def layerwise(self) -> bool: ...

    @property
    def lr(self) -> float: ...

    @property
    def weight_decay(self) -> float: ...

    def update(
        self, params: Array, grads: Array, slots: Mapping[str, Array], lr: float, step: int, scale: float
    ) -> None:
        """One step, in place. All arrays are flat, contiguous, of one length and dtype.

        ``grads * scale`` is the mean gradient, clipped (clip.py); ``step`` counts updates from 0."""
        ...


_local = threading.local()


def scratch(dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
    """Two arrays of BLOCK elements that belong to this thread; undefined content."""
    arrays: dict[np.dtype, tuple[np.ndarray, np.ndarray]] = _local.__dict__.setdefault("arrays", {})
    if dtype not in arrays:
        arrays[dtype] = np.empty(BLOCK, dtype), np.empty(BLOCK, dtype)
    return arrays[dtype]


def in_blocks(x: Array) -> list[tuple[slice, Array, Array]]:
    """Cut ``x`` (length,) into blocks, each with two scratch arrays of its size and dtype.

    On a GPU, whose kernels want length, it is one block with arrays from the memory pool."""
    xp, length = namespace_of(x), len(x)
    if xp is not np:
        return [(slice(0, length), xp.empty_like(x), xp.empty_like(x))]
    a, b = scratch(x.dtype)
    edges = [(start, min(start + BLOCK, length)) for start in range(0, length, BLOCK)]
    return [(slice(start, stop), a[: stop - start], b[: stop - start]) for start, stop in edges]


class Elementwise:
    """What the elementwise optimizers share: choosing the spelling that suits the arrays.

    A rule is written three times, tested equal: ``block`` in plain NumPy without temporaries, loops
    of the same name in optim_numba.py, which do the same operations in the same order and so give the
    same bits, and ``cuda`` for CuPy's ElementwiseKernel."""

    slots: ClassVar[tuple[str, ...]] = ()
    layerwise: ClassVar[bool] = False
    rule: ClassVar[str]  # the loop's name in optim_numba.py
    constants: ClassVar[tuple[str, ...]]  # what ``scalars`` returns
    cuda: ClassVar[str]  # changes p and the slots, given g and the constants

    def scalars(self, lr: float, step: int, scale: float) -> tuple[float, ...]:
        raise NotImplementedError

    def block(self, arrays: Sequence[np.ndarray], scalars: Sequence[float], a: np.ndarray, b: np.ndarray) -> None:
        """The rule for one block. arrays: parameters, gradient, slots; ``a`` and ``b`` are scratch."""
        raise NotImplementedError

    def update(
        self, params: Array, grads: Array, slots: Mapping[str, Array], lr: float, step: int, scale: float
    ) -> None:
        scalars = self.scalars(lr, step, scale)
        arrays = (params, grads, *(slots[name] for name in self.slots))
        xp = namespace_of(params)
        if xp is not np:
            _cuda_kernel(self.rule, self.constants, self.slots, self.cuda)(grads, *scalars, params, *arrays[2:])
            return
        loop = _loop(self.rule, params.dtype)
        if loop is not None:
            loop(tuple(map(params.dtype.type, scalars)), grads, params, *arrays[2:])
            return
        for block, a, b in in_blocks(params):
            self.block([x[block] for x in arrays], scalars, a, b)

    def update_into(
        self,
        new: Sequence[np.ndarray],
        old: Sequence[np.ndarray],
        grads: np.ndarray,
        lr: float,
        step: int,
        scale: float,
    ) -> None:
        """The same step on the host, from ``old`` (parameters, then slots in their order) to ``new``, which lie
        elsewhere; ``old`` stays as it is."""
        dtype = grads.dtype
        loop = _loop(f"{self.rule}_into", dtype)
        if loop is not None:
            loop(tuple(map(dtype.type, self.scalars(lr, step, scale))), grads, *old, *new)
            return
        for known, coming in zip(old, new, strict=True):
            coming[...] = known
        self.update(new[0], grads, dict(zip(self.slots, new[1:], strict=True)), lr, step, scale)


def follows_its_rule(optimizer: object) -> bool:
    """Whether ``optimizer`` treats each element alike and nothing else: a class of the user's may do more in update."""
    if not isinstance(optimizer, Elementwise) or optimizer.layerwise:
        return False
    kind = type(optimizer)
    return kind.update is Elementwise.update and kind.update_into is Elementwise.update_into


@cache
def _cuda_kernel(rule: str, constants: tuple[str, ...], slots: tuple[str, ...], code: str) -> Any:
    inputs = ", ".join(["T g", *(f"T {name}" for name in constants)])
    outputs = ", ".join(["T p", *(f"T {name}" for name in slots)])
    return Device(0).xp.ElementwiseKernel(inputs, outputs, code, f"ddl_{rule}")


def _loop(name: str, dtype: np.dtype) -> Callable[..., None] | None:
    """A loop of optim_numba.py, where compiled kernels are wanted, can be had and know the type.

    Its scalars must be of the arrays' own type, which keeps the arithmetic in it, as NumPy does."""
    return getattr(_loops(), name) if is_compiled() and dtype in (np.float32, np.float64) else None


@cache
def _loops() -> ModuleType:
    from ddl.kernels import optim_numba

    return optim_numba
