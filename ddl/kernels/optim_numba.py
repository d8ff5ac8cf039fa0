# mypy: disable-error-code="untyped-decorator,no-untyped-def"
"""The elementwise optimizers compiled by Numba: a rule is what becomes of one element, in the order of operations of
the plain path; its loops run it in one pass, in place, or from one copy of parameters and slots into another.

Imported only where Numba is wanted and installed (elementwise.py). Without fastmath LLVM neither
reorders nor contracts, so each loop gives the bits of its plain twin; error_model="numpy" drops
the zero checks that would keep it from vectorising. In place and into are two loops, since arrays
that might overlap keep it from that as well."""

from __future__ import annotations

from math import sqrt

from numba import njit

rule = njit(error_model="numpy")
loop = njit(cache=True, nogil=True, error_model="numpy")


@rule
def _mean_gradient(p, g, scale, decay):
    d = g * scale
    if decay != 0:
        d += p * decay
    return d


@rule
def _sgd(p, g, scale, decay, lr):
    return p - _mean_gradient(p, g, scale, decay) * lr


@rule
def _momentum(p, g, trace, scale, decay, lr, mu, nesterov):
    d = _mean_gradient(p, g, scale, decay)
    trace = trace * mu + d
    if nesterov != 0:
        return p - (trace * mu + d) * lr, trace
    return p - trace * lr, trace


@rule
def _adam(p, g, mean, square, scale, decay, lr, keep1, add1, keep2, add2, unbias, eps):
    d = _mean_gradient(p, g, scale, decay)
    mean = mean * keep1 + d * add1
    square = square * keep2 + d * d * add2
    return p - mean / (sqrt(square) * unbias + eps) * lr, mean, square


@rule
def _adamw(p, g, mean, square, scale, kept, lr, keep1, add1, keep2, add2, unbias, eps):
    d = g * scale
    mean = mean * keep1 + d * add1
    square = square * keep2 + d * d * add2
    return p * kept - mean / (sqrt(square) * unbias + eps) * lr, mean, square


@rule
def _rmsprop(p, g, square, scale, decay, lr, keep, add, eps):
    d = _mean_gradient(p, g, scale, decay)
    square = square * keep + d * d * add
    return p - d / (sqrt(square) + eps) * lr, square


@rule
def _adagrad(p, g, square, scale, decay, lr, eps):
    d = _mean_gradient(p, g, scale, decay)
    square = square + d * d
    return p - d / (sqrt(square) + eps) * lr, square


@loop
def sgd(scalars, g, p):
    for i in range(p.size):
        p[i] = _sgd(p[i], g[i], *scalars)


@loop
def sgd_into(scalars, g, p, p2):
    for i in range(p.size):
        p2[i] = _sgd(p[i], g[i], *scalars)


@loop
def momentum(scalars, g, p, trace):
    for i in range(p.size):
        p[i], trace[i] = _momentum(p[i], g[i], trace[i], *scalars)


@loop
def momentum_into(scalars, g, p, trace, p2, trace2):
    for i in range(p.size):
        p2[i], trace2[i] = _momentum(p[i], g[i], trace[i], *scalars)


@loop
def adam(scalars, g, p, mean, square):
    for i in range(p.size):
        p[i], mean[i], square[i] = _adam(p[i], g[i], mean[i], square[i], *scalars)


@loop
def adam_into(scalars, g, p, mean, square, p2, mean2, square2):
    for i in range(p.size):
        p2[i], mean2[i], square2[i] = _adam(p[i], g[i], mean[i], square[i], *scalars)


@loop
def adamw(scalars, g, p, mean, square):
    for i in range(p.size):
        p[i], mean[i], square[i] = _adamw(p[i], g[i], mean[i], square[i], *scalars)


@loop
def adamw_into(scalars, g, p, mean, square, p2, mean2, square2):
    for i in range(p.size):
        p2[i], mean2[i], square2[i] = _adamw(p[i], g[i], mean[i], square[i], *scalars)


@loop
def rmsprop(scalars, g, p, square):
    for i in range(p.size):
        p[i], square[i] = _rmsprop(p[i], g[i], square[i], *scalars)


@loop
def rmsprop_into(scalars, g, p, square, p2, square2):
    for i in range(p.size):
        p2[i], square2[i] = _rmsprop(p[i], g[i], square[i], *scalars)


@loop
def adagrad(scalars, g, p, square):
    for i in range(p.size):
        p[i], square[i] = _adagrad(p[i], g[i], square[i], *scalars)


@loop
def adagrad_into(scalars, g, p, square, p2, square2):
    for i in range(p.size):
        p2[i], square2[i] = _adagrad(p[i], g[i], square[i], *scalars)
