"""The stand-in for cupy refuses what cupy refuses, and counts when the host waits for the device."""

import numpy as np
import pytest

from ddl.arrays import host

HOST = np.arange(6.0)

REFUSED = {
    "adding an array of the host's": lambda cupy, x: x + HOST,
    "adding to an array of the host's": lambda cupy, x: HOST + x,
    "adding a single number that is an array": lambda cupy, x: x + np.asarray(1.0),
    "assigning an array of the host's": lambda cupy, x: x.__setitem__(slice(0, 6), HOST),
    "assigning a list": lambda cupy, x: x.__setitem__(slice(0, 2), [1, 2]),
    "an index of the host's": lambda cupy, x: x[np.array([1, 2])],
    "a conversion that is not said": lambda cupy, x: np.asarray(x),
    "a list of arrays as an array": lambda cupy, x: np.array([x, x]),
    "a result in an array of the host's": lambda cupy, x: cupy.add(x, 1, out=np.empty(6)),
    "drawing into it": lambda cupy, x: np.random.default_rng(0).random(out=x),
    "a ufunc with where": lambda cupy, x: cupy.add(x, 1, where=x > 2),
    "take with a mode": lambda cupy, x: cupy.take(x, cupy.asarray([1]), mode="clip"),
    "take into another type": lambda cupy, x: cupy.take(x, cupy.asarray([1]), out=cupy.empty(1, "float32")),
    "max with an initial value": lambda cupy, x: x.max(initial=0),
    "a sum of some": lambda cupy, x: np.sum(x, where=x > 2),
    "setting another type": lambda cupy, x: x.set(HOST.astype("float32")),
}


@pytest.mark.parametrize("what", REFUSED)
def test_the_standin_rejects_calls_that_cupy_rejects(what, cupy):
    with pytest.raises((TypeError, ValueError)):
        REFUSED[what](cupy, cupy.asarray(HOST))


def test_the_standin_lacks_functions_that_cupy_lacks(cupy):
    x = cupy.asarray(HOST)
    for thing, name in ((cupy, "emath"), (cupy.exp, "at"), (x, "ctypes")):
        with pytest.raises(AttributeError):
            getattr(thing, name)


def test_device_arrays_are_copies_and_slices_are_views(cupy):
    x = cupy.asarray(HOST)
    x[2:] += 1
    one = x[0]
    one += 5
    np.subtract(x, 1, out=x)
    assert type(one) is type(x) and host(x).tolist() == [4, 0, 2, 3, 4, 5] and HOST.tolist() == [0, 1, 2, 3, 4, 5]


def test_the_host_waits_where_it_reads(cupy):
    x = cupy.asarray(HOST)

    def waits(action):
        before = cupy.ndarray.waited
        action()
        return cupy.ndarray.waited - before

    for action in (lambda: float(x[0]), lambda: bool((x > 1).any()), lambda: x.get(), lambda: x[x > 1]):
        assert waits(action) == 1
    assert waits(lambda: cupy.copyto(x, 0, where=x > 1)) == waits(lambda: x[cupy.asarray([1, 2])]) == 0
