"""Central differences: the oracle of every layer and loss. Works in float64 on the sum of y * random numbers."""

from itertools import pairwise

import numpy as np

from ddl.arrays import FlatBuffer, Layout, generator
from ddl.nn import Context


def run_backward(backward):
    """(input gradient, names in the order announced)."""
    names = []
    while True:
        try:
            names += next(backward)
        except StopIteration as end:
            return end.value, names


def made(layer, shape, seed=5, dtype="float64"):
    """(parameters and averages as views, gradients as views) of a layer; the parameters are random, none 0."""
    spec = layer.spec(shape)
    shapes = {n: s for n, (s, _) in spec.params.items()}
    averages = {n: a.shape for n, a in spec.averages.items()}
    params = FlatBuffer(Layout.of({**shapes, **averages}, dtype))
    random = generator(seed, "test")
    for name, (size, initial) in spec.params.items():
        params[name][...] = initial(size, random) + 0.1 * random.standard_normal(size)
    for name, average in spec.averages.items():
        params[name][...] = average.initial
    grads = FlatBuffer(Layout.of({**shapes, **averages}, dtype))
    grads.flat[:] = np.nan
    return params.views, grads.views, spec


def context(rows, training=True, shards=1, **more):
    edges = [rows * i // shards for i in range(shards + 1)]
    segments = [slice(a, b) for a, b in pairwise(edges)]
    return Context(training=training, segments=segments, shards=list(range(shards)), seed=3, **more)


def difference(f, x, at):
    """df/dx[at] by central differences of fourth order."""
    h = 1e-3 * max(1.0, abs(x[at]))
    kept, values = x[at], []
    for k in (-2, -1, 1, 2):
        x[at] = kept + k * h
        values.append(f())
    x[at] = kept
    return (values[0] - 8 * values[1] + 8 * values[2] - values[3]) / (12 * h)


def check_layer(layer, x, shards=1, samples=24, prepare=None, skip_input=False):
    """Gradients of all parameters and of the input agree with central differences to 1e-6; returns the output."""
    params, grads, spec = made(layer, x.shape[1:])
    ctx = context(len(x), shards=shards)

    def forward():
        ctx.begin(ctx.segments, ctx.shards, 0)
        if prepare:
            prepare(ctx)
        return layer.forward(params, x, ctx)

    y, cache = forward()
    assert y.shape == (len(x), *spec.output)
    direction = np.random.default_rng(1).standard_normal(y.shape)
    first = y.copy()
    dx, names = run_backward(layer.backward(params, grads, cache, direction.copy()))
    got = {name: np.array(grads[name]) for name in spec.params}
    assert sorted(names) == sorted([*spec.params, *spec.averages])
    value = lambda: float((forward()[0] * direction).sum())  # noqa: E731
    dx = None if skip_input else dx.copy()
    pick = np.random.default_rng(2)
    for name, array in [*((n, params[n]) for n in spec.params), *([] if skip_input else [("x", x)])]:
        gradient = dx if name == "x" else got[name]
        assert gradient.shape == array.shape
        places = pick.permutation(array.size)[:samples]
        wanted = np.array([difference(value, array, np.unravel_index(i, array.shape)) for i in places])
        scale = max(np.abs(gradient).max(), np.abs(wanted).max(initial=0), 1e-3)
        error = np.abs(gradient.reshape(-1)[places] - wanted).max(initial=0) / scale
        assert error < 1e-6, f"{name}: {error}"
    return first
