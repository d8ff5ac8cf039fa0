"""All convolution algorithms agree, up to rounding, over several blocks of images."""

import numpy as np
import pytest

from ddl.kernels.backend import use_compiled
from ddl.nn import Context, conv_algorithms

pytest.importorskip("numba")

SHAPES = [  # images, weight, padding, the way that is chosen
    ((23, 9, 7, 16), (3, 3, 16, 32), (1, 1), conv_algorithms.Winograd),
    ((9, 13, 13, 32), (3, 3, 32, 16), (0, 0), conv_algorithms.Winograd),
    ((11, 6, 5, 1), (3, 3, 1, 16), (1, 0), conv_algorithms.DirectConvolution),
    ((11, 8, 8, 3), (3, 3, 3, 32), (0, 0), conv_algorithms.DirectConvolution),
    ((5, 5, 5, 16), (3, 3, 16, 16), (0, 0), conv_algorithms.Im2col),  # 3 x 3 places: too few for Winograd
    ((5, 8, 8, 16), (3, 3, 16, 10), (0, 0), conv_algorithms.Im2col),
]


def results(way, x, weight, y, dy):
    """(y, dweight, dx) of a way."""
    ctx = Context(training=True)
    ctx.begin([], [], 0)
    seen = []
    kept = way.forward(x, weight, y, lambda rows: seen.append(len(rows)), ctx)
    dweight, dx = np.full_like(weight, np.nan), np.full_like(x, np.nan)
    undone = []
    way.backward(kept, y, dy.copy(), weight, dweight, dx, lambda slopes, rows: undone.append(len(rows)), ctx)
    assert sum(seen) == sum(undone) == y[..., 0].size
    return y, dweight, dx


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("image", "weight", "padding", "chosen"), SHAPES)
def test_ways_agree(image, weight, padding, chosen, dtype, monkeypatch):
    monkeypatch.setattr(conv_algorithms, "BLOCK_BYTES", 1)
    random = np.random.default_rng(0)
    x, w = random.standard_normal(image).astype(dtype), random.standard_normal(weight).astype(dtype)
    places = tuple(image[1 + i] + 2 * padding[i] - 2 for i in (0, 1))
    out = (image[0], *places, weight[3])
    dy = random.standard_normal(out).astype(dtype)
    use_compiled("on")
    try:
        way = conv_algorithms.choose(w, places, (1, 1), padding, 1)
        assert type(way) is chosen
        ours = results(way, x, w, np.full(out, np.nan, dtype), dy)
        use_compiled("off")
        plain = conv_algorithms.choose(w, places, (1, 1), padding, 1)
        assert type(plain) is conv_algorithms.Im2col
        theirs = results(plain, x.astype("float64"), w.astype("float64"), np.empty(out), dy.astype("float64"))
    finally:
        use_compiled("auto")
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=np.abs(b).max() * (1e-6 if dtype == "float32" else 1e-14))


def test_other_numbers_groups_and_devices_take_windows(cupy):
    weight = np.zeros((3, 3, 16, 16), "float16")
    assert type(conv_algorithms.choose(weight, (8, 8), (1, 1), (0, 0), 1)) is conv_algorithms.Im2col
    assert type(conv_algorithms.choose(weight.astype("float32"), (8, 8), (1, 1), (0, 0), 2)) is conv_algorithms.Im2col
    assert type(conv_algorithms.choose(weight.astype("float32"), (8, 8), (2, 1), (0, 0), 1)) is conv_algorithms.Im2col
    on_device = cupy.asarray(weight.astype("float32"))
    assert type(conv_algorithms.choose(on_device, (8, 8), (1, 1), (0, 0), 1)) is conv_algorithms.Im2col
