"""Compiled kernels equal their plain twins, in float32 and float64, on odd shapes."""

import numpy as np
import pytest

from ddl.errors import ConfigError
from ddl.kernels import cells, direct_conv, im2col, rowwise, winograd
from ddl.kernels.backend import is_compiled, use_compiled

pytest.importorskip("numba")

WINDOWS = [  # image, window, stride, padding
    ((2, 5, 6, 3), (3, 3), (1, 1), (0, 0)),
    ((1, 4, 5, 1), (2, 3), (2, 1), (1, 2)),
    ((3, 3, 3, 20), (3, 2), (3, 2), (1, 1)),
    ((0, 3, 3, 2), (2, 2), (2, 2), (0, 0)),
    ((2, 7, 6, 36), (2, 2), (2, 2), (1, 0)),
    ((2, 5, 5, 16), (3, 3), (2, 2), (1, 1)),
]


def same(kernel, make, dtype):
    """Run both twins on equal arguments from make(random); all arrays and the returned values agree."""
    sides = []
    for run in (kernel, kernel.plain):
        arguments = make(np.random.default_rng(0))
        sides.append((arguments, run(*arguments)))
    (ours, got), (theirs, wanted) = sides
    close = {"rtol": 2e-5, "atol": 2e-6} if dtype == "float32" else {"rtol": 1e-12, "atol": 1e-12}
    flat = lambda items: [a for i in items for a in (flat(i) if isinstance(i, tuple) else [i])]  # noqa: E731
    for a, b in zip(flat(ours), flat(theirs), strict=True):
        np.testing.assert_allclose(a, b, **close)
    if wanted is not None:
        np.testing.assert_allclose(got, wanted, **close)


@pytest.fixture(params=["float32", "float64"])
def dtype(request):
    use_compiled("on")
    yield request.param
    use_compiled("auto")


@pytest.mark.parametrize(("image", "size", "stride", "padding"), WINDOWS)
def test_windows(image, size, stride, padding, dtype):
    rows, columns = ((image[1 + i] + 2 * padding[i] - size[i]) // stride[i] + 1 for i in (0, 1))
    cols, pooled = (image[0], rows, columns, *size, image[3]), (image[0], rows, columns, image[3])

    def drawn(random, shape):  # few values, so that a window has equal ones
        return random.integers(-3, 4, shape).astype(dtype)

    same(im2col.im2col, lambda r: (drawn(r, image), np.full(cols, 7, dtype), stride, padding), dtype)
    same(im2col.col2im, lambda r: (drawn(r, cols), np.full(image, 7, dtype), stride, padding), dtype)
    places = np.empty(pooled, np.int16)
    same(
        im2col.max_pool,
        lambda r: (drawn(r, image), np.empty(pooled, dtype), places.copy(), size, stride, padding),
        dtype,
    )
    im2col.max_pool(drawn(np.random.default_rng(0), image), np.empty(pooled, dtype), places, size, stride, padding)
    same(
        im2col.max_pool_backward,
        lambda r: (drawn(r, pooled), places, np.full(image, 7, dtype), size, stride, padding),
        dtype,
    )


def test_max_pool_keeps_nan(dtype):
    x = np.array([[[[-1.0], [np.nan]], [[5.0], [-np.inf]]]], dtype)
    for run in (im2col.max_pool, im2col.max_pool.plain):
        y, where = np.empty((1, 1, 1, 1), dtype), np.empty((1, 1, 1, 1), np.int16)
        run(x, y, where, (2, 2), (2, 2), (0, 0))
        assert np.isnan(y).all() and where.item() == 1


@pytest.mark.parametrize(
    ("image", "padding"), [((2, 6, 7, 16), (0, 0)), ((3, 3, 1, 32), (1, 2)), ((0, 4, 4, 16), (1, 1))]
)
def test_winograd(image, padding, dtype):
    places = tuple(image[1 + i] + 2 * padding[i] - 2 for i in (0, 1))
    out = (image[0], *places, 32)
    count = image[0] * np.prod(winograd.tiles_of(places))

    def tiles(r, channels):  # one more than there are: it stays as it is
        found = r.standard_normal((16, count + 1, channels)).astype(dtype)
        found[:, count] = 7
        return found

    def normal(r, *shape):
        return r.standard_normal(shape).astype(dtype)

    same(winograd.spread_image, lambda r: (normal(r, *image), tiles(r, image[3]), places, padding), dtype)
    same(winograd.gather_image, lambda r: (tiles(r, image[3]), normal(r, *image), places, padding), dtype)
    same(winograd.gather_places, lambda r: (tiles(r, 32), normal(r, *out)), dtype)
    same(winograd.spread_places, lambda r: (normal(r, *out), tiles(r, 32)), dtype)


@pytest.mark.parametrize(
    ("image", "size", "stride", "padding"),
    [
        ((2, 6, 7, 1), (3, 3), (1, 1), (0, 0)),
        ((3, 5, 6, 3), (2, 4), (2, 1), (1, 2)),
        ((0, 4, 4, 1), (3, 3), (1, 1), (1, 1)),
    ],
)
def test_straight_convolution(image, size, stride, padding, dtype):
    rows, columns = ((image[1 + i] + 2 * padding[i] - size[i]) // stride[i] + 1 for i in (0, 1))
    weight, out = (*size, image[3], 32), (image[0], rows, columns, 32)

    def normal(r, *shape):
        return r.standard_normal(shape).astype(dtype)

    same(
        direct_conv.convolve,
        lambda r: (normal(r, *image), normal(r, *weight), normal(r, *out), stride, padding),
        dtype,
    )
    same(
        direct_conv.convolve_backward,
        lambda r: (normal(r, *image), normal(r, *out), normal(r, *weight), stride, padding),
        dtype,
    )


@pytest.mark.parametrize("shape", [(7, 19), (1, 1), (0, 3)])
def test_rows(shape, dtype):
    rows, columns = shape

    def normal(r, *size):
        return (3 * r.standard_normal(size)).astype(dtype)

    def empty(*size):
        return np.zeros(size, dtype)

    same(rowwise.bias_relu, lambda r: (normal(r, *shape), normal(r, columns)), dtype)
    same(rowwise.relu_backward, lambda r: (normal(r, *shape), normal(r, *shape)), dtype)
    same(rowwise.relu_bias_backward, lambda r: (normal(r, *shape), normal(r, *shape), empty(columns)), dtype)
    same(rowwise.softmax_backward, lambda r: (normal(r, *shape), normal(r, *shape), 0.5), dtype)
    same(rowwise.gelu, lambda r: (normal(r, *shape), empty(*shape), empty(*shape)), dtype)
    same(rowwise.bias_gelu, lambda r: (normal(r, *shape), normal(r, columns), empty(*shape)), dtype)
    same(rowwise.slope_bias_backward, lambda r: (normal(r, *shape), normal(r, *shape), empty(columns)), dtype)
    same(
        rowwise.layer_norm,
        lambda r: (
            normal(r, *shape),
            normal(r, columns),
            normal(r, columns),
            0.1,
            empty(*shape),
            empty(*shape),
            empty(rows),
        ),
        dtype,
    )
    same(
        rowwise.layer_norm_backward,
        lambda r: (
            *(normal(r, *shape), normal(r, *shape), normal(r, rows), normal(r, columns)),
            *(empty(*shape), empty(columns), empty(columns)),
        ),
        dtype,
    )
    same(rowwise.scatter_add, lambda r: (normal(r, *shape), r.integers(0, 4, rows), normal(r, 4, columns)), dtype)
    if rows:
        for smoothing in (0.0, 0.1):
            for weights in (np.zeros(0, dtype), np.linspace(0, 2, columns).astype(dtype)):
                same(
                    rowwise.cross_entropy,
                    lambda r, w=weights, s=smoothing: (
                        *(normal(r, *shape), r.integers(-1, columns, rows), w, s, empty(*shape)),
                    ),
                    dtype,
                )


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("is_masked", [False, True])
def test_masked_softmax(causal, is_masked, dtype):
    mask = np.array([[1, 1, 0, 1, 0], [0, 0, 0, 0, 0]], bool) if is_masked else np.zeros((0, 0), bool)
    same(
        rowwise.masked_softmax,
        lambda r: (r.standard_normal((2, 3, 5, 5)).astype(dtype), mask, 0.7, causal),
        dtype,
    )


def test_relu_backward_in_whole_vectors(dtype):
    def drawn(r):  # a sum of these is exact in any order
        dy, y = (r.integers(-3, 4, (150, 32)).astype(dtype) for _ in "ab")
        y[5, 7], dy[5, 7] = np.nan, 1
        return dy, y, np.full(32, 7, dtype)

    same(rowwise.relu_bias_backward, drawn, dtype)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("keys", [63, 64, 65, 150])
def test_softmax_of_many_keys(causal, keys, dtype):
    mask = np.arange(keys)[None] % 7 != 3
    for hidden in (np.zeros((0, 0), bool), mask):
        same(
            rowwise.masked_softmax,
            lambda r, m=hidden: (9 * r.standard_normal((1, 2, keys, keys)).astype(dtype), m, 0.7, causal),
            dtype,
        )


def test_softmax_keeps_nan_and_infinity_to_its_row(dtype):
    scores = np.zeros((1, 1, 3, 40), dtype)
    scores[0, 0, 1, 5], scores[0, 0, 2, 33] = np.nan, -np.inf
    rowwise.masked_softmax(scores, np.zeros((0, 0), bool), 1.0, False)
    np.testing.assert_allclose(scores[0, 0, 0], 1 / 40, rtol=1e-6)
    assert np.isnan(scores[0, 0, 1]).all() and scores[0, 0, 2, 33] == 0
    np.testing.assert_allclose(scores[0, 0, 2].sum(), 1, rtol=1e-6)


@pytest.mark.parametrize("mask", [np.zeros(0, bool), np.array([True, False, True])])
def test_cells(mask, dtype):
    units, rows = 9, 3

    def normal(r, width):
        return (2 * r.standard_normal((rows, width))).astype(dtype)

    def lstm(r):
        old, new = (
            (normal(r, units), normal(r, units)),
            (np.zeros((rows, units), dtype), np.zeros((rows, units), dtype)),
        )
        # What the cell squashes of a row that keeps its state is undefined, so the row's own is compared with itself.
        return normal(r, 4 * units), normal(r, 4 * units), normal(r, 4 * units)[0], mask, old, new, normal(r, units)

    if not len(mask):
        same(cells.lstm_cell, lstm, dtype)
    same(
        cells.lstm_cell_backward,
        lambda r: (
            np.abs(normal(r, 4 * units)),
            normal(r, units),
            normal(r, units),
            mask,
            normal(r, units),
            normal(r, units),
        ),
        dtype,
    )
    if not len(mask):
        same(
            cells.gru_cell,
            lambda r: (normal(r, 3 * units), normal(r, 3 * units), mask, normal(r, units), normal(r, units)),
            dtype,
        )
    same(
        cells.gru_cell_backward,
        lambda r: (normal(r, 3 * units), normal(r, 3 * units), mask, normal(r, units), normal(r, units)),
        dtype,
    )


def test_exp_and_tanh_equal_those_of_numpy():
    numba = pytest.importorskip("numba")
    from ddl.kernels import maths_numba as maths

    @numba.njit(error_model="numpy", fastmath={"reassoc", "contract", "nsz"})  # as the kernels are
    def run(x, e, t, s):
        for i in range(x.size):
            e[i], t[i], s[i] = maths.exp(x[i]), maths.tanh(x[i]), maths.sigmoid(x[i])

    edges = [np.nan, np.inf, -np.inf, 0.0, -0.0, 88.72, -87.2, 89.5, -110.0, 1e-30]
    for dtype, tolerance in (("float32", 3e-6), ("float64", 1e-14)):
        x = np.concatenate([edges, np.linspace(-20, 20, 4001), np.linspace(-0.2, 0.2, 101)]).astype(dtype)
        e, t, s = np.empty_like(x), np.empty_like(x), np.empty_like(x)
        run(x, e, t, s)
        with np.errstate(all="ignore"):
            near = x < 88.6
            np.testing.assert_allclose(e[near], np.exp(x[near]), rtol=tolerance, atol=1e-37)
            np.testing.assert_allclose(t, np.tanh(x), rtol=tolerance)
            np.testing.assert_allclose(s, 1 / (1 + np.exp(-x)), rtol=tolerance, atol=1e-37)
        assert np.isposinf(e[1]) and np.isnan(e[0])


def test_the_choice_is_one_of_three_words():
    use_compiled("off")
    assert not is_compiled()
    use_compiled("auto")
    assert is_compiled()
    with pytest.raises(ConfigError, match="known are auto, on, off"):
        use_compiled("fast")
