"""Statistics of the training part are exact, and bitwise equal for any assignment of shards to ranks."""

import numpy as np
import pytest

from ddl.data import Arrays, Inputs, Known, Normalise, Order, assign, can_normalise, combine, moments, open_dataset
from ddl.data.normalise import needs_precision
from ddl.errors import ConfigError, DataError


def data(*shape, samples=2500):
    rng = np.random.default_rng(0)
    return (1e4 + rng.standard_normal((samples, *shape)) * np.arange(1, shape[-1] + 1)).astype(np.float32)


def of_ranks(source, order, ranks):
    plan, found = assign(order.shards, ranks), {}
    for rank in reversed(range(ranks)):
        found.update(moments(source, order, plan.shards_of(rank)))
    return found


@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
def test_ranks_do_not_change_a_bit(ranks):
    source = Arrays(data(3))
    order = Order(len(source), 5, 64, 0)
    assert combine(of_ranks(source, order, ranks)) == combine(of_ranks(source, order, 1))


@pytest.mark.parametrize(
    ("shape", "kind", "axes"),
    [((3,), "feature", 0), ((4, 4, 3), "feature", (0, 1, 2)), ((5, 3), "feature", None), ((3,), "all", None)],
)
def test_the_result_has_mean_0_and_deviation_1(shape, kind, axes):
    x = data(*shape)
    order = Order(len(x), 4, 64, 0)
    normalise = combine(moments(Arrays(x), order, range(4)), kind)
    assert np.allclose(normalise.mean, x.astype(np.float64).mean(axis=axes), rtol=1e-12)
    assert np.allclose(normalise.scale, x.astype(np.float64).std(axis=axes), rtol=1e-9)
    out = normalise({"x": x.astype(np.float64)})["x"]
    assert np.allclose(out.mean(axis=axes), 0, atol=1e-9)
    assert np.allclose(out.std(axis=axes), 1)
    assert np.allclose(normalise.undo(out), x)


def test_unit_brings_the_training_part_into_0_to_1():
    x = np.array([[2.0, 4.0], [6.0, 10.0]])
    normalise = combine(moments(Arrays(x), Order(2, 1, 2, 0), [0]), "unit")
    assert normalise({"x": x.copy()})["x"].tolist() == [[0, 0.25], [0.5, 1]]


def test_constant_inputs_become_zero():
    x = np.tile([0.1, 7.0], (100, 1))
    assert not combine(moments(Arrays(x), Order(100, 3, 10, 0), range(3)))({"x": x})["x"].round(12).any()


def test_a_sample_that_is_not_finite_is_named_when_all_ranks_know():
    x = data(2, samples=100)
    x[70, 1], x[90, 0] = np.nan, np.inf
    found = moments(Arrays(x), Order(100, 4, 10, 0), range(4))  # no rank raises alone while others wait for it
    with pytest.raises(DataError, match="training sample 70 is not finite"):
        combine(found)


def test_json_carries_it_exactly():
    import json

    normalise = combine(moments(Arrays(data(3)), Order(2500, 2, 10, 0), range(2)))
    assert Normalise.from_json(json.loads(json.dumps(normalise.to_json()))) == normalise


def test_whole_numbers_are_not_measurements():
    fields = Arrays(np.zeros((3, 2)), np.zeros(3, int)).fields
    assert can_normalise(fields["x"])
    assert not can_normalise(fields["y"])
    with pytest.raises(ConfigError, match="numbers of tokens"):
        moments(Arrays(np.zeros((3, 2), int)), Order(3, 1, 2, 0), [0])
    with pytest.raises(DataError, match="'standard'"):
        combine({0: np.zeros((6, 1))}, "standard")


def test_a_small_change_of_a_large_number_is_normalised_in_float64():
    x = 1.7e9 + np.arange(100.0)[:, None]
    normalise = combine(moments(Arrays(x), Order(100, 3, 10, 0), range(3)), "feature", "float32")
    got = normalise({"x": x.copy()})["x"]
    assert got.dtype == np.float32
    assert np.allclose(got[:, 0], (np.arange(100) - 49.5) / np.arange(100).std(), atol=1e-6)
    again = Normalise.from_json(normalise.to_json())({"x": x.copy()})["x"]
    assert np.array_equal(got, again)


@pytest.mark.parametrize("scale", [1e-60, 1e50])
def test_numbers_beyond_the_range_of_float32_stay_in_float64(scale):
    assert needs_precision(Arrays(scale * np.arange(100.0)[:, None]))


@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_numbers_whose_squares_cannot_be_computed_are_refused(scale):
    with pytest.raises(DataError, match="lie too close together or too far apart to be normalised: rescale them"):
        combine(moments(Arrays(scale * np.arange(100.0)[:, None]), Order(100, 3, 10, 0), range(3)))


@pytest.mark.parametrize("suffix", ["npz", "csv"])
@pytest.mark.parametrize(("offset", "dtype"), [(1.7e9, "float64"), (0.0, "float32")])
def test_x_stays_in_float64_only_if_a_cast_would_lose_it(tmp_path, suffix, offset, dtype):
    x, y = offset + np.arange(100.0)[:, None] / 3, np.arange(100) % 2
    path = tmp_path / f"a.{suffix}"
    if suffix == "npz":
        np.savez(path, x=x, y=y)
    else:
        path.write_text("x,y\n" + "".join(f"{value!r},{label}\n" for value, label in zip(x[:, 0].tolist(), y)))
    splits = open_dataset("files", path=str(path), validation=0.0, test=0.2, normalize="feature")
    for part in (splits.train, splits.test):
        assert part.fields["x"].dtype == dtype
    known = Known.from_json(Known.of(splits.train, splits.names, splits.target).to_json())
    source = Inputs(is_labelled=True).open(str(path), known)
    source.hold([range(100)])
    assert np.array_equal(source.gather(np.arange(100))["x"], x.astype(dtype))
