"""Arrays, subsets and casts give what NumPy's own indexing gives."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddl.data import Arrays, Shared, Source, Subset, as_dtype, as_source, digits, labels_of
from ddl.data.held import Held, runs
from ddl.errors import DataError


@given(st.lists(st.integers(0, 60), max_size=40))
def test_runs_cover_exactly_the_numbers(numbers):
    found = runs(np.array(numbers, np.int64))
    assert [n for r in found for n in r] == sorted(set(numbers))
    assert all(a.stop < b.start for a, b in pairwise(found))


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 12)), max_size=8))
def test_held_samples_know_their_place(pairs):
    ranges = [range(start, start + length) for start, length in pairs]
    held = Held(ranges)
    wanted = sorted({n for r in ranges for n in r})
    assert held.numbers().tolist() == wanted
    assert len(held) == len(wanted)
    assert held.places(np.array(wanted[::-1], np.int64)).tolist() == list(range(len(wanted)))[::-1]
    with pytest.raises(IndexError, match="99 is not held"):
        held.places(np.array([99]))


def test_arrays_are_numpys_indexing():
    rng = np.random.default_rng(0)
    x, y, z = rng.random((20, 3)), rng.integers(0, 4, 20), rng.random(20)
    source = Arrays(x, y, weight=z)
    pick = np.array([3, 3, 19, 0])
    batch = source.gather(pick)
    assert len(source) == 20
    for name, value in (("x", x), ("y", y), ("weight", z)):
        assert np.array_equal(batch[name], value[pick])
        assert not np.shares_memory(batch[name], value)
    out = {name: np.empty_like(value) for name, value in batch.items()}
    source.gather_into(pick, out)
    assert all(np.array_equal(out[name], batch[name]) for name in batch)
    assert source.fields["y"].size == 4
    assert source.fields["x"].size is None


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: Arrays(np.zeros((3, 2)), np.zeros(4)), "number of samples"),
        (lambda: Arrays(np.zeros((0, 2))), "no samples"),
        (lambda: Arrays(np.array([None, 1])), "not of numbers"),
        (lambda: Arrays(np.array(["a", "b"])), "not of numbers"),
        (lambda: Subset(Arrays(np.zeros(3)), np.array([3])), "beyond"),
        (lambda: Subset(Arrays(np.zeros(3)), np.array([], int)), "no samples"),
    ],
)
def test_objects_that_are_not_datasets_are_rejected(make, word):
    with pytest.raises(DataError, match=word):
        make()


class Recording(Arrays):
    """Records the samples that ``hold`` asks for."""

    def hold(self, ranges):
        self.held = [n for r in ranges for n in r]


def test_a_subset_indexes_twice_and_passes_hold_on():
    x = np.arange(40) * 10
    base = Recording(x)
    indices = np.array([1, 2, 3, 7, 7, 30, 31])
    subset = Subset(base, indices)
    subset.hold([range(0, 2), range(4, 6)])
    assert base.held == [1, 2, 7, 30]
    assert list(subset.gather(np.array([5, 0]))["x"]) == [300, 10]


def test_subsets_of_one_source_do_not_drop_each_others_samples():
    base = Recording(np.arange(20))
    shared = Shared(base)
    train, test = Subset(shared, np.arange(10)), Subset(shared, np.arange(10, 20))
    train.hold([range(0, 3)])
    test.hold([range(5, 10)])
    assert base.held == [0, 1, 2, 15, 16, 17, 18, 19]
    train.hold([range(3, 4)])
    assert base.held == [3, 15, 16, 17, 18, 19]


def test_floats_and_images_are_cast_and_whole_numbers_are_not():
    source = as_dtype(Arrays(np.ones((4, 2, 2), np.uint8), np.arange(4), z=np.ones(4)), "float32")
    assert {name: str(f.dtype) for name, f in source.fields.items()} == {"x": "float32", "y": "int64", "z": "float32"}
    tokens = Arrays(np.ones((4, 2), np.int64))
    assert as_dtype(tokens, "float32") is tokens


def test_large_arrays_are_cast_as_they_are_gathered(monkeypatch):
    monkeypatch.setattr("ddl.data.memory.CONVERTED_AT_ONCE", 0)
    x = np.arange(12.0).reshape(6, 2)
    source = as_dtype(Arrays(x, np.arange(6)), "float32")
    batch = source.gather(np.array([5, 1]))
    assert batch["x"].dtype == np.float32
    assert np.array_equal(batch["x"], x[[5, 1]])
    assert list(labels_of(source)) == list(range(6))


def test_the_digits_are_scikit_learns():
    datasets = pytest.importorskip("sklearn.datasets")
    images, labels = datasets.load_digits(return_X_y=True)
    batch = digits().gather(np.arange(1797))
    assert np.array_equal(batch["x"].reshape(1797, 64), images)
    assert np.array_equal(batch["y"], labels)


def test_a_class_with_only_the_four_members_is_a_source():
    class Bare:
        fields = Arrays(np.zeros(3), np.zeros(3, int)).fields
        __len__ = lambda self: 6  # noqa: E731
        hold = lambda self, ranges: None  # noqa: E731
        gather = lambda self, indices: {"x": indices * 1.0, "y": indices % 3}  # noqa: E731

    source = as_source(Bare())
    out = {"x": np.empty(2), "y": np.empty(2, int)}
    source.gather_into(np.array([4, 1]), out)
    assert out["x"].tolist() == [4.0, 1.0] and out["y"].tolist() == [1, 1]
    assert (source.names, source.is_cheap, source.is_sequential, source.learned()) == ((), False, False, {})
    assert Subset(Bare(), np.array([5, 2])).labels().tolist() == [2, 2]
    assert as_source(source) is source


def test_labels_of_a_source_without_the_method_are_gathered():
    class Plain:
        fields = Arrays(np.zeros(3), np.zeros(3, int)).fields
        __len__ = lambda self: 9000  # noqa: E731
        hold = lambda self, ranges: setattr(self, "held", ranges)  # noqa: E731

        def gather(self, indices):
            assert all(any(i in r for r in self.held) for i in indices[:1])
            return {"y": indices % 5}

    assert np.array_equal(labels_of(Plain()), np.arange(9000) % 5)


class Convertible:
    """Like a pandas or torch object: NumPy reads it through ``__array__``."""

    def __init__(self, values):
        self.values = values

    def __array__(self, dtype=None, copy=None):
        return self.values if dtype is None else self.values.astype(dtype)


NUMBERS = np.arange(24).reshape(8, 3)


@pytest.mark.parametrize(
    "x",
    [
        NUMBERS.astype(">i4"),
        NUMBERS.astype(">f8"),
        np.asfortranarray(NUMBERS),
        np.repeat(NUMBERS, 2, axis=0)[::2],
        NUMBERS.tolist(),
        Convertible(NUMBERS),
    ],
)
def test_arrays_of_any_layout_are_read_as_native_contiguous_ones(x):
    value = Arrays(x).arrays["x"]
    assert value.flags.c_contiguous and value.dtype.isnative
    assert np.array_equal(value, NUMBERS)


@pytest.mark.parametrize("dtype", ["int16", "uint16", "int64", "bool", ">i2"])
def test_whole_numbers_are_measurements_if_the_caller_says_so(dtype):
    x = NUMBERS.astype(dtype)
    source = as_dtype(Arrays(x, np.arange(8)), "float32", measured=True)
    assert {name: str(f.dtype) for name, f in source.fields.items()} == {"x": "float32", "y": "int64"}
    assert np.array_equal(source.gather(np.arange(8))["x"], x)
    tokens = Arrays(x, np.arange(8))
    assert as_dtype(tokens, "float32") is tokens


def test_masked_values_are_refused():
    x = np.arange(6.0).reshape(3, 2)
    with pytest.raises(DataError, match="an array is masked: fill its masked values"):
        Arrays(np.ma.masked_array(x, mask=x > 4), [0, 1, 0])
    assert Arrays(np.ma.masked_array(x), [0, 1, 0]).arrays["x"].tolist() == x.tolist()


@pytest.mark.parametrize("member", ["fields", "hold", "gather", "__len__"])
def test_what_a_source_of_your_own_lacks_is_named(member):
    class Mine(Source):
        pass

    with pytest.raises(NotImplementedError, match=f"Mine does not define {member}"):
        Mine().fields if member == "fields" else getattr(Mine(), member)(*[np.zeros(1)][: member != "__len__"])
