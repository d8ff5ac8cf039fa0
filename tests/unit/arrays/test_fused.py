"""The C code of the CuPy kernels, compiled for the host, gives the results of the NumPy versions.

So it is right as C++ and as arithmetic where there is no GPU; on one, the tests of the layers run the kernels."""

import ctypes
import shutil
import subprocess

import numpy as np
import pytest

from ddl.kernels import cells, cells_cupy, cupy_kernels, optim_cupy, rowwise, rowwise_cupy
from ddl.optim import OPTIMIZERS
from ddl.optim.elementwise import Elementwise

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")

ELEMENTWISE = {name: make for name, make in OPTIMIZERS.items() if issubclass(make, Elementwise)}
TYPES = {"float32": "float", "float64": "double"}
FUSED = [v for room in (cells_cupy, rowwise_cupy) for v in vars(room).values() if isinstance(v, cupy_kernels.Fused)]


def of_optimizer(make):
    return optim_cupy.kernel(make.rule, 1 + len(make.slots))


def function(kernel, dtype):
    """A loop over elements around the code: inputs are read only, as CuPy gives them."""
    arguments, names = [], []
    for declared, constant in ((kernel.inputs, "const "), (kernel.changed, "")):
        for kind, name in map(str.split, declared.split(",")):
            arguments.append(f"{constant}{kind}* {name}_")
            names.append(f"{constant}{kind}& {name} = {name}_[at];")
    return f"""extern "C" void {kernel.name}_{dtype}(long count, {", ".join(arguments)}) {{
        typedef {TYPES[dtype]} T;
        for (long at = 0; at < count; at++) {{ {" ".join(names)} {kernel.code}; }} }}""".replace(
        "const T*", f"const {TYPES[dtype]}*"
    ).replace(" T* ", f" {TYPES[dtype]}* ")


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fused")
    made = [*FUSED, *map(of_optimizer, ELEMENTWISE.values())]
    source = "\n".join(["#include <cmath>", "using namespace std;", *(function(k, d) for k in made for d in TYPES)])
    (folder / "fused.cpp").write_text(source)
    compiled = folder / "fused.so"
    words = ["g++", "-std=c++17", "-O1", "-Wall", "-Werror", "-shared", "-fPIC", "-o", str(compiled)]
    done = subprocess.run([*words, str(folder / "fused.cpp")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return ctypes.CDLL(str(compiled))


def call(library, kernel, *arrays):
    """Run the kernel on NumPy arrays that broadcast to the shape of the last; changed arrays are written back."""
    shape, dtype = arrays[-1].shape, arrays[-1].dtype
    kinds = [word.split()[0] for word in f"{kernel.inputs},{kernel.changed}".split(",")]
    laid = [
        np.array(np.broadcast_to(np.asarray(x, bool if kind == "bool" else dtype), shape), order="C")
        for x, kind in zip(arrays, kinds, strict=True)
    ]
    pointers = [ctypes.c_void_p(x.ctypes.data) for x in laid]
    getattr(library, f"{kernel.name}_{dtype}")(ctypes.c_long(arrays[-1].size), *pointers)
    for place in range(kernel.inputs.count(",") + 1, len(arrays)):
        arrays[place][...] = laid[place]


@pytest.fixture(params=list(TYPES))
def dtype(request):
    return request.param


@pytest.fixture
def on_host(library, monkeypatch):
    """The fused twins, called with arrays of the host."""
    monkeypatch.setattr(cupy_kernels.Fused, "__call__", lambda kernel, *arrays: call(library, kernel, *arrays))


def same(room, name, make, dtype):
    twin = getattr(__import__(f"ddl.kernels.{room}_cupy", fromlist=[name]), name)
    plain = getattr({"cells": cells, "rowwise": rowwise}[room], name).plain
    ours, theirs = (make(np.random.default_rng(8)) for _ in range(2))
    twin(*ours), plain(*theirs)
    close = {"rtol": 1e-5, "atol": 1e-6} if dtype == "float32" else {"rtol": 1e-12, "atol": 1e-13}
    flat = lambda items: [a for i in items for a in (flat(i) if isinstance(i, tuple) else [i])]  # noqa: E731
    for a, b in zip(flat(ours), flat(theirs), strict=True):
        np.testing.assert_allclose(a, b, **close)


@pytest.mark.parametrize("masked", [False, True])
def test_cells(on_host, dtype, masked):
    rows, units = 6, 5

    def normal(r, *shape):
        return r.normal(size=shape).astype(dtype)

    def mask(r):
        return r.random(rows) < 0.6 if masked else np.zeros(0, bool)

    def state(r):
        return normal(r, rows, units), normal(r, rows, units)

    wide = (rows, 4 * units)
    same(
        "cells",
        "lstm_cell",
        lambda r: (
            *(normal(r, *wide), normal(r, *wide), normal(r, 4 * units), mask(r)),
            *(state(r), state(r), normal(r, rows, units)),
        ),
        dtype,
    )
    same("cells", "lstm_cell_backward", lambda r: (normal(r, *wide), *state(r), mask(r), *state(r)), dtype)
    wide = (rows, 3 * units)
    same("cells", "gru_cell", lambda r: (normal(r, *wide), normal(r, *wide), mask(r), *state(r)), dtype)
    same("cells", "gru_cell_backward", lambda r: (normal(r, *wide), normal(r, *wide), mask(r), *state(r)), dtype)


def test_activations(on_host, dtype):
    def normal(r, *shape):
        x = r.normal(size=shape).astype(dtype)
        x.flat[:3] = 0, np.nan, -2  # NaN must stay NaN
        return x

    same("rowwise", "gelu", lambda r: (normal(r, 4, 7), normal(r, 4, 7), normal(r, 4, 7)), dtype)
    same("rowwise", "bias_gelu", lambda r: (normal(r, 4, 7), normal(r, 7), normal(r, 4, 7)), dtype)
    same("rowwise", "bias_relu", lambda r: (normal(r, 4, 7), normal(r, 7)), dtype)
    same("rowwise", "relu_backward", lambda r: (normal(r, 2, 3, 4), normal(r, 2, 3, 4)), dtype)


@pytest.mark.parametrize("decay", [0.0, 0.03])
@pytest.mark.parametrize("name", ELEMENTWISE)
def test_optimizers(library, dtype, name, decay):
    optimizer, r = ELEMENTWISE[name](lr=0.05, weight_decay=decay), np.random.default_rng(3)
    p, g = (r.normal(size=50).astype(dtype) for _ in range(2))
    slots = {slot: r.random(50).astype(dtype) for slot in optimizer.slots}
    theirs, kept = p.copy(), {slot: value.copy() for slot, value in slots.items()}
    optimizer.update(theirs, g, kept, 0.02, 3, 0.5)
    scalars = optimizer.constants(0.02, 3, 0.5)
    call(library, of_optimizer(type(optimizer)), g, *scalars, p, *slots.values())
    close = {"rtol": 1e-5, "atol": 1e-6} if dtype == "float32" else {"rtol": 1e-12, "atol": 1e-13}
    for ours, wanted in zip([p, *slots.values()], [theirs, *kept.values()], strict=True):
        np.testing.assert_allclose(ours, wanted, **close)


def test_each_twin_has_a_plain_function_of_its_name():
    for room, twins in ((cells, cells_cupy), (rowwise, rowwise_cupy)):
        names = [n for n, v in vars(twins).items() if callable(v) and v.__module__ == twins.__name__ and n[0] != "_"]
        assert names and all(hasattr(getattr(room, name), "plain") for name in names)
        for name in names:
            assert getattr(room, name).implementation("_cupy") is getattr(twins, name)
    assert rowwise.layer_norm.implementation("_cupy") is rowwise.layer_norm.plain
