"""Central differences: the oracle of every layer and loss. Works in float64 on the sum of y * random numbers.

The code under test computes on arrays of ``xp``; the expected values stay on the host."""

from itertools import pairwise

import numpy as np

from ddl.arrays import Arena, FlatBuffer, Layout, generator, host
from ddl.nn import Context


def run_backward(backward):
    """(input gradient, names in the order announced)."""
    names = []
    while True:
        try:
            names += map(str, next(backward))
        except StopIteration as end:
            return end.value, names


def made(layer, shape, seed=5, dtype="float64", xp=np):
    """(parameters and averages as views, gradients as views) of a layer; the parameters are random, none 0."""
    spec = layer.spec(shape)
    shapes = {n: s for n, (s, _) in spec.params.items()}
    averages = {n: a.shape for n, a in spec.averages.items()}
    layout = Layout.of({**shapes, **averages}, dtype)
    params = FlatBuffer(layout)
    random = generator(seed, "test")
    for name, (size, initial) in spec.params.items():
        params[name][...] = initial(size, random) + 0.1 * random.standard_normal(size)
    for name, average in spec.averages.items():
        params[name][...] = average.initial
    params = FlatBuffer(layout, xp.asarray(params.flat))
    grads = FlatBuffer(layout, xp=xp)
    grads.flat[:] = np.nan
    return params.views, grads.views, spec


def on_host(views):
    """Copies by name, in NumPy."""
    return {name: np.array(host(array)) for name, array in views.items()}


def context(rows, training=True, shards=1, xp=np, **more):
    edges = [rows * i // shards for i in range(shards + 1)]
    segments = [slice(a, b) for a, b in pairwise(edges)]
    arena = Arena(xp)
    return Context(training=training, segments=segments, shards=list(range(shards)), seed=3, arena=arena, **more)


def difference(f, x, at):
    """df/dx[at] by central differences of fourth order."""
    kept, values = float(x[at]), []
    h = 1e-3 * max(1.0, abs(kept))
    for k in (-2, -1, 1, 2):
        x[at] = kept + k * h
        values.append(f())
    x[at] = kept
    return (values[0] - 8 * values[1] + 8 * values[2] - values[3]) / (12 * h)


def check_layer(layer, x, xp, shards=1, samples=None, prepare=None, skip_input=False):
    """Gradients of all parameters and of the input agree with central differences to 1e-6; returns the output.

    x: on the host, and so is what is returned. samples: places of each array that are looked at; fewer on a device,
    whose arithmetic is that of the plain twins."""
    samples = samples or (24 if xp is np else 3)
    params, grads, spec = made(layer, x.shape[1:], xp=xp)
    ctx, x = context(len(x), shards=shards, xp=xp), xp.asarray(x)

    def forward():
        ctx.begin(ctx.segments, ctx.shards, 0)
        if prepare:
            prepare(ctx)
        return layer.forward(params, x, ctx)

    y, cache = forward()
    assert y.shape == (len(x), *spec.output)
    first = np.array(host(y))
    direction = np.random.default_rng(1).standard_normal(y.shape)
    dx, names = run_backward(layer.backward(params, grads, cache, xp.asarray(direction.copy())))
    got = on_host(grads)
    assert sorted(names) == sorted([*spec.params, *spec.averages])
    value = lambda: float((host(forward()[0]) * direction).sum())  # noqa: E731
    dx = None if skip_input else np.array(host(dx))
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
