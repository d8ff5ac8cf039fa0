"""The elementwise optimizers as loops compiled by Numba: one pass, every operation in the order of the plain path.

Imported only where Numba is wanted and installed (elementwise.py). Without fastmath LLVM neither
reorders nor contracts, so each loop gives the bits of its plain twin; error_model="numpy" drops
the zero checks that would keep it from vectorising."""

from __future__ import annotations

from math import sqrt

from numba import njit

compiled = njit(cache=True, nogil=True, error_model="numpy")


@compiled
def sgd(p, g, scale, decay, lr):  # type: ignore[no-untyped-def]
    for i in range(p.size):
        d = g[i] * scale
        if decay != 0:
            d += p[i] * decay
        p[i] -= d * lr


@compiled
def momentum(p, g, trace, scale, decay, lr, mu, nesterov):  # type: ignore[no-untyped-def]
    for i in range(p.size):
        d = g[i] * scale
        if decay != 0:
            d += p[i] * decay
        trace[i] = trace[i] * mu + d
        if nesterov != 0:
            p[i] -= (trace[i] * mu + d) * lr
        else:
            p[i] -= trace[i] * lr


@compiled
def adam(p, g, mean, square, scale, decay, lr, keep1, add1, keep2, add2, unbias, eps):  # type: ignore[no-untyped-def]
    for i in range(p.size):
        d = g[i] * scale
        if decay != 0:
            d += p[i] * decay
        mean[i] = mean[i] * keep1 + d * add1
        square[i] = square[i] * keep2 + d * d * add2
        p[i] -= mean[i] / (sqrt(square[i]) * unbias + eps) * lr


@compiled
def adamw(p, g, mean, square, scale, kept, lr, keep1, add1, keep2, add2, unbias, eps):  # type: ignore[no-untyped-def]
    for i in range(p.size):
        d = g[i] * scale
        mean[i] = mean[i] * keep1 + d * add1
        square[i] = square[i] * keep2 + d * d * add2
        p[i] = p[i] * kept - mean[i] / (sqrt(square[i]) * unbias + eps) * lr


@compiled
def rmsprop(p, g, square, scale, decay, lr, keep, add, eps):  # type: ignore[no-untyped-def]
    for i in range(p.size):
        d = g[i] * scale
        if decay != 0:
            d += p[i] * decay
        square[i] = square[i] * keep + d * d * add
        p[i] -= d / (sqrt(square[i]) + eps) * lr


@compiled
def adagrad(p, g, square, scale, decay, lr, eps):  # type: ignore[no-untyped-def]
    for i in range(p.size):
        d = g[i] * scale
        if decay != 0:
            d += p[i] * decay
        square[i] += d * d
        p[i] -= d / (sqrt(square[i]) + eps) * lr
