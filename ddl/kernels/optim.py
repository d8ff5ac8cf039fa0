"""Elementwise optimizer rules, each written once, and the passes that apply them to flat arrays.

A rule is a function of one parameter ``p``, its gradient ``g``, the slots and the constants; it updates p and the slots
and returns them. It begins by naming its slots, if it has some, and its constants. The body is valid for NumPy blocks
(in place), for Numba scalars (optim_numba.py) and, since it holds only assignments, conditions, arithmetic and np.sqrt,
as C for CuPy (optim_cupy.py). All three keep the order of operations, so NumPy and Numba give the same bits.
``g * scale`` is the mean gradient, ``decay`` the L2 weight decay."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ddl.arrays.namespace import Array, namespace_of
from ddl.kernels.backend import runs_compiled

UpdateRule = Callable[[Any, Any, Any, Any], tuple[Any, ...]]

# Elements per block in the NumPy pass: parameters, gradient, two slots and the temporaries of one block (32 KiB each in
# float32) stay in a core's L2 cache through all the operations of a rule.
BLOCK = 8192


def sgd(p, g, slots, constants):
    scale, decay, lr = constants
    d = g * scale
    if decay != 0:
        d += p * decay
    p -= d * lr
    return (p,)


def momentum(p, g, slots, constants):
    (trace,) = slots
    scale, decay, lr, mu, nesterov = constants
    d = g * scale
    if decay != 0:
        d += p * decay
    trace *= mu
    trace += d
    if nesterov != 0:
        p -= (trace * mu + d) * lr
    else:
        p -= trace * lr
    return p, trace


def adam(p, g, slots, constants):
    mean, square = slots
    scale, decay, lr, keep1, add1, keep2, add2, unbias, eps = constants
    d = g * scale
    if decay != 0:
        d += p * decay
    mean *= keep1
    mean += d * add1
    square *= keep2
    square += d * d * add2
    p -= mean / (np.sqrt(square) * unbias + eps) * lr
    return p, mean, square


def adamw(p, g, slots, constants):
    mean, square = slots
    scale, kept, lr, keep1, add1, keep2, add2, unbias, eps = constants
    d = g * scale
    mean *= keep1
    mean += d * add1
    square *= keep2
    square += d * d * add2
    p *= kept
    p -= mean / (np.sqrt(square) * unbias + eps) * lr
    return p, mean, square


def nadam(p, g, slots, constants):
    mean, square = slots
    scale, decay, of_gradient, of_mean, keep1, add1, keep2, add2, unbias, eps = constants
    d = g * scale
    if decay != 0:
        d += p * decay
    mean *= keep1
    mean += d * add1
    square *= keep2
    square += d * d * add2
    p -= (d * of_gradient + mean * of_mean) / (np.sqrt(square) * unbias + eps)
    return p, mean, square


def radam(p, g, slots, constants):
    mean, square = slots
    scale, decay, plain, rectified, keep1, add1, keep2, add2, eps = constants
    d = g * scale
    if decay != 0:
        d += p * decay
    mean *= keep1
    mean += d * add1
    square *= keep2
    square += d * d * add2
    p -= mean * plain + mean / (np.sqrt(square) + eps) * rectified
    return p, mean, square


def rmsprop(p, g, slots, constants):
    (square,) = slots
    scale, decay, lr, keep, add, eps = constants
    d = g * scale
    if decay != 0:
        d += p * decay
    square *= keep
    square += d * d * add
    p -= d / (np.sqrt(square) + eps) * lr
    return p, square


def adagrad(p, g, slots, constants):
    (square,) = slots
    scale, decay, lr, eps = constants
    d = g * scale
    if decay != 0:
        d += p * decay
    square += d * d
    p -= d / (np.sqrt(square) + eps) * lr
    return p, square


def apply(rule: UpdateRule, state: Sequence[Array], grads: Array, constants: Sequence[float]) -> None:
    """Apply ``rule`` to every element, in place. state: parameters and slots, flat arrays of the dtype of ``grads``."""
    if namespace_of(grads) is not np:
        from ddl.kernels.optim_cupy import kernel

        kernel(rule, len(state))(grads, *constants, *state)
    elif runs_compiled(grads):
        from ddl.kernels.optim_numba import loop

        # Constants of the arrays' own dtype keep the arithmetic in it, as NumPy does.
        loop(rule, len(state), False)(tuple(map(grads.dtype.type, constants)), grads, *state)
    else:
        for start in range(0, len(grads), BLOCK):
            p, *slots = (x[start : start + BLOCK] for x in state)
            rule(p, grads[start : start + BLOCK], slots, constants)


def apply_into(
    rule: UpdateRule,
    new: Sequence[np.ndarray],
    old: Sequence[np.ndarray],
    grads: np.ndarray,
    constants: Sequence[float],
) -> None:
    """Write what ``apply`` would make of ``old`` into ``new``; ``old`` is unchanged and must not overlap ``new``."""
    if runs_compiled(grads):
        from ddl.kernels.optim_numba import loop

        loop(rule, len(old), True)(tuple(map(grads.dtype.type, constants)), grads, *old, *new)
        return
    for source, target in zip(old, new, strict=True):
        target[...] = source
    apply(rule, new, grads, constants)
